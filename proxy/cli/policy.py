"""`turnout policy …`: the policies of a running Turnout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from proxy.cli.common import (
    AsJson,
    Service,
    Strategy,
    TokenFile,
    Url,
    client_of,
    present,
    segment,
    the_service,
)
from proxy.cli.following import see_through, tell_refused
from proxy.control.client_errors import ClientError

Trigger = Literal["performance_degradation", "load_threshold", "error_rate", "failure", "manual", "scheduled"]

Name = Annotated[str, typer.Argument(help="Name of the policy, of whatever service.", metavar="NAME")]


def register(app: typer.Typer) -> None:
    """Put the commands of this module under `turnout policy`."""
    group = typer.Typer(help="When Turnout switches by itself.", no_args_is_help=True)
    group.command(name="list")(list_policies)
    group.command(name="set")(set_policy)
    for command in (enable, disable, remove, run, history):
        group.command()(command)
    app.add_typer(group, name="policy")


def list_policies(
    service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Every policy, and what was decided last."""
    from proxy.cli.show.policies import show_policies

    present(client_of(url, token_file).get("/v1/policies", service=service), as_json, show_policies)


def set_policy(
    name: Name,
    trigger: Annotated[Trigger, typer.Option("--trigger", help="What makes it fire; docs/policies.md has each.")],
    target: Annotated[str, typer.Option("--target", help="Engine to go to.", metavar="ENGINE")],
    service: Service = None,
    strategy: Annotated[Strategy | None, typer.Option("--strategy", help="As of `turnout switch`.")] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", min=0, max=255, metavar="N", help="0 to 255; the highest goes first.")
    ] = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Keep it, and let it never fire.")] = False,
    window: Annotated[
        int | None, typer.Option("--window-duration", metavar="S", help="Seconds that are looked at as a whole.")
    ] = None,
    response_time: Annotated[
        float | None, typer.Option("--response-time-threshold-ms", metavar="MS", help="Mean time of a request.")
    ] = None,
    error_rate: Annotated[
        float | None, typer.Option("--error-rate-threshold", metavar="PERCENT", help="Requests that failed.")
    ] = None,
    cpu: Annotated[float | None, typer.Option("--cpu-threshold", metavar="PERCENT")] = None,
    memory: Annotated[float | None, typer.Option("--memory-threshold", metavar="PERCENT")] = None,
    connections: Annotated[int | None, typer.Option("--connection-threshold", metavar="N")] = None,
    cron: Annotated[str | None, typer.Option("--cron-expression", help='As in "30 2 * * SUN".')] = None,
    zone: Annotated[str | None, typer.Option("--time-zone", help='As in "Europe/Berlin"; UTC by default.')] = None,
    cool_down: Annotated[
        int | None, typer.Option("--cool-down", metavar="S", help="Seconds after any switch of the service.")
    ] = None,
    hysteresis: Annotated[
        float | None,
        typer.Option("--hysteresis", metavar="PERCENT", help="Below the threshold, before it fires again."),
    ] = None,
    per_hour: Annotated[
        int | None, typer.Option("--max-switches-per-hour", metavar="N", help="Of all policies of the service.")
    ] = None,
    evidence: Annotated[
        int | None, typer.Option("--min-evidence", metavar="N", help="Requests that it takes to judge by.")
    ] = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Set a policy, or replace the one of this name. What is not said has its default."""
    from proxy.cli.show.policies import show_policies

    client = client_of(url, token_file)
    said = {
        "service": the_service(client, service),
        "trigger": trigger,
        "target_engine": target,
        "strategy": strategy,
        "priority": priority,
        "enabled": False if disabled else None,
        "window_duration": window,
        "response_time_threshold_ms": response_time,
        "error_rate_threshold": error_rate,
        "cpu_threshold": cpu,
        "memory_threshold": memory,
        "connection_threshold": connections,
        "cron_expression": cron,
        "time_zone": zone,
        "cool_down": cool_down,
        "hysteresis": hysteresis,
        "max_switches_per_hour": per_hour,
        "min_evidence": evidence,
    }
    body = {key: value for key, value in said.items() if value is not None}
    answer = client.put(f"/v1/policies/{segment(name)}", body)
    present(answer if as_json else [answer], as_json, show_policies)


def enable(name: Name, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Let a policy fire again, also one of the config file."""
    _switch(name, "enable", url, token_file, as_json)


def disable(name: Name, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Keep a policy from firing. Also one of the config file, until it is enabled again."""
    _switch(name, "disable", url, token_file, as_json)


def _switch(name: str, how: str, url: str | None, token_file: Path | None, as_json: bool) -> None:
    from proxy.cli.show.policies import show_policies

    answer = client_of(url, token_file).post(f"/v1/policies/{segment(name)}/{how}")
    present(answer if as_json else [answer], as_json, show_policies)


def remove(name: Name, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Forget a policy that was set by command."""
    answer = client_of(url, token_file).delete(f"/v1/policies/{segment(name)}")
    present(answer, as_json, lambda out, policy: out.print(f"policy {policy['name']} is removed"))


def run(name: Name, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Let a policy fire now, whatever its trigger. Waits until its switch has ended."""
    client = client_of(url, token_file)
    try:
        begun = client.post(f"/v1/policies/{segment(name)}/run")
    except ClientError as error:
        tell_refused(error, as_json)
    see_through(client, begun, as_json)


def history(
    name: Annotated[str | None, typer.Argument(help="Only of this policy.", metavar="NAME")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000, help="Most lines.")] = 20,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """What was decided and why, newest first; only what changed."""
    from proxy.cli.show.policies import show_decisions

    path = "/v1/policy-history" if name is None else f"/v1/policies/{segment(name)}/history"
    present(client_of(url, token_file).get(path, limit=limit), as_json, show_decisions)
