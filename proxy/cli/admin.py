"""Commands that change a running Turnout: its settings, engines and sessions; and its tools for agents."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from proxy.cli.common import (
    AsJson,
    Service,
    TokenFile,
    Url,
    client_of,
    present,
    print_json,
    segment,
    the_service,
    tls_of,
    where,
)

Engine = Annotated[str, typer.Argument(help="Name of the engine.", metavar="ENGINE")]


def register(app: typer.Typer) -> None:
    """Put the commands of this module under `turnout`."""
    for command in (end, reload, mcp):
        app.command()(command)
    app.command(name="log-level")(log_level)
    engine = typer.Typer(help="Add and remove engines of a running Turnout.", no_args_is_help=True)
    engine.command(name="add")(add_engine)
    engine.command(name="remove")(remove_engine)
    app.add_typer(engine, name="engine")


def end(
    session: Annotated[int, typer.Argument(help="Number of the session, as `turnout sessions` shows it.")],
    reason: Annotated[str, typer.Option("--reason", help="Told to the client.")] = "",
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """End one client's session; its transaction is rolled back."""
    ended = client_of(url, token_file).delete(f"/v1/sessions/{session}", reason=reason or None)
    if as_json:
        print_json(ended)
    else:
        sys.stdout.write(f"ended: {ended['user']}@{ended['database']} from {ended['client']}\n")


def reload(url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Have the running Turnout read its config file again."""
    from proxy.cli.show.admin import show_reloaded

    present(client_of(url, token_file).post("/v1/config/reload"), as_json, show_reloaded)


def mcp(url: Url = None, token_file: TokenFile = None) -> None:
    """Speak MCP over standard input and output. For an agent that starts its servers itself."""
    import asyncio

    client_of(url, token_file).get(
        "/v1/status"
    )  # says in one line what is wrong, if nobody answers or the token is bad
    from proxy.control.mcp.stdio import serve_stdio

    address, shown = where(url, token_file)
    asyncio.run(serve_stdio(address, shown, tls_of()))


def log_level(
    level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, typer.Argument(help="From this level up; none: show it.")
    ] = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show or set what a running Turnout logs. Until a reload or a restart."""
    client = client_of(url, token_file)
    setting = client.get("/v1/log") if level is None else client.put("/v1/log", {"level": level})
    if as_json:
        print_json(setting)
    else:
        sys.stdout.write(f"{setting['level']}\n")


def add_engine(
    engine: Engine,
    address: Annotated[str, typer.Argument(help="host:port of the server.", metavar="ADDRESS")],
    service: Service = None,
    role: Annotated[Literal["primary", "standby", "secondary"], typer.Option("--role", help="What it is.")] = "standby",
    sslmode: Annotated[str, typer.Option("--sslmode", help="TLS with it; see server_tls_sslmode.")] = "prefer",
    ca_file: Annotated[str, typer.Option("--ca-file", help="CA that vouches for it; on Turnout's machine.")] = "",
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Add an engine to a service; kept over restarts. Nothing is switched."""
    from proxy.cli.show.services import show_engines

    client = client_of(url, token_file)
    path = f"/v1/services/{segment(the_service(client, service))}/engines/{segment(engine)}"
    spec = {"address": address, "role": role, "server_tls_sslmode": sslmode, "server_tls_ca_file": ca_file}
    row = client.put(path, spec)
    present(row if as_json else [row], as_json, show_engines, with_service=True)


def remove_engine(
    engine: Engine, service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Take an engine that does not serve from its service. Kept over restarts; the server itself is left alone."""
    client = client_of(url, token_file)
    name = the_service(client, service)
    client.delete(f"/v1/services/{segment(name)}/engines/{segment(engine)}")
    if as_json:
        print_json({"service": name, "removed": engine})
    else:
        sys.stdout.write(f"removed: {engine} from {name}\n")
