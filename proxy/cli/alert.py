"""`turnout alert …`: the alerts of a running Turnout, and who is told of them."""

from __future__ import annotations

from typing import Annotated

import typer

from proxy.cli.common import AsJson, TokenFile, Url, client_of, fail, present, segment

Receiver = Annotated[str, typer.Argument(help="Name of the receiver, as the config has it.", metavar="NAME")]


def register(app: typer.Typer) -> None:
    """Put the commands of this module under `turnout alert`."""
    group = typer.Typer(help="What is wrong, and who is told of it.", no_args_is_help=True)
    group.command(name="list")(list_alerts)
    group.command(name="test")(send_test)
    for command in (rules, receivers, deliveries, silence, silences, unsilence):
        group.command()(command)
    app.add_typer(group, name="alert")


def list_alerts(url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Alerts that are pending, fire, or were over within a day."""
    from proxy.cli.show.alerts import show_alerts

    present(client_of(url, token_file).get("/v1/alerts"), as_json, show_alerts)


def rules(url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Every rule that alerts come from."""
    from proxy.cli.show.alerts import show_rules

    present(client_of(url, token_file).get("/v1/alerts/rules"), as_json, show_rules)


def receivers(url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Who is told of alerts, and what became of that."""
    from proxy.cli.show.alerts import show_receivers

    present(client_of(url, token_file).get("/v1/alerts/receivers"), as_json, show_receivers)


def deliveries(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000, help="Most lines.")] = 20,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Messages about alerts, newest first, with what became of each."""
    from proxy.cli.show.alerts import show_deliveries

    present(client_of(url, token_file).get("/v1/alerts/deliveries", limit=limit), as_json, show_deliveries)


def send_test(name: Receiver, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Send a receiver a test message, and say what became of it."""
    from proxy.cli.show.alerts import show_deliveries

    delivery = client_of(url, token_file).post(f"/v1/alerts/receivers/{segment(name)}/test")
    present(delivery if as_json else [delivery], as_json, show_deliveries)
    if delivery["state"] != "delivered":
        fail(f"the test message did not reach {name}: {delivery['outcome']}", "see [alerts.receiver] in the config")


def silence(
    duration: Annotated[float, typer.Option("--for", metavar="S", min=1, help="For how long, in seconds.")],
    alert: Annotated[str, typer.Option("--alert", help="Only of this rule.", metavar="NAME")] = "",
    service: Annotated[str, typer.Option("--service", "-s", help="Only of this service.")] = "",
    engine: Annotated[str, typer.Option("--engine", help="Only of this engine.")] = "",
    reason: Annotated[str, typer.Option("--reason", help="Kept with it.")] = "",
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Keep messages about alerts back for a time. What still fires then is told."""
    from proxy.cli.show.alerts import show_silences

    body = {"duration_s": duration, "alert": alert, "service": service, "engine": engine, "reason": reason}
    kept = client_of(url, token_file).post("/v1/alerts/silences", body)
    present(kept if as_json else [kept], as_json, show_silences)


def silences(url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """What keeps messages back now."""
    from proxy.cli.show.alerts import show_silences

    present(client_of(url, token_file).get("/v1/alerts/silences"), as_json, show_silences)


def unsilence(
    number: Annotated[int, typer.Argument(help="Number of the silence.", metavar="NUMBER")],
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """End a silence before its time."""
    ended = client_of(url, token_file).delete(f"/v1/alerts/silences/{number}")
    present(ended, as_json, lambda out, one: out.print(f"silence {one['number']} is over"))
