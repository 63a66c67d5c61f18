"""Commands that move a service to another engine, undo that, or say who may."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from proxy.cli.common import (
    WRONG_USE,
    AsJson,
    Service,
    Strategy,
    SwitchId,
    Target,
    TokenFile,
    Url,
    client_of,
    fail,
    present,
    segment,
    the_service,
)
from proxy.cli.following import exit_unless_ready, follow, see_through, tell_refused
from proxy.control.client_errors import ClientError


def register(app: typer.Typer) -> None:
    """Put the commands of this module under `turnout`."""
    for command in (ready, switch, cancel, failover):
        app.command()(command)


def ready(
    target: Target, service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """The checks of a switch, with what to do about those that fail. Changes nothing."""
    from proxy.cli.show.switches import show_readiness

    client = client_of(url, token_file)
    readiness = client.get(f"/v1/services/{segment(the_service(client, service))}/ready/{segment(target)}")
    present(readiness, as_json, show_readiness)
    exit_unless_ready(readiness)


def switch(
    target: Target,
    service: Service = None,
    strategy: Annotated[
        Strategy,
        typer.Option("--strategy", help="`immediate`: no drain; `rolling`: in batches; `canary`: a share first."),
    ] = "graceful",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, metavar="N", help="Rolling: sessions that move at a time.")
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option("--interval", min=0, max=3_600, metavar="S", help="Rolling: seconds between two batches."),
    ] = None,
    traffic_percentage: Annotated[
        float | None,
        typer.Option("--traffic-percentage", min=0.01, max=99, metavar="P", help="Canary: share that tries TARGET."),
    ] = None,
    validation_duration: Annotated[
        float | None,
        typer.Option(
            "--validation-duration", min=1, max=86_400, metavar="S", help="Canary: seconds of the comparison."
        ),
    ] = None,
    at: Annotated[
        str, typer.Option("--at", metavar="TIME", help="Begin then: 2030-01-31T02:00+01:00, with its zone.")
    ] = "",
    in_seconds: Annotated[
        float | None, typer.Option("--in", min=0, metavar="S", help="Begin so many seconds from now.")
    ] = None,
    queue: Annotated[
        bool | None,
        typer.Option("--queue/--no-queue", help="Wait for the end of another switch of the service, or be refused."),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            "--drain-timeout", min=0, max=3_600, metavar="S", help="Seconds that open transactions may go on."
        ),
    ] = None,
    max_pending: Annotated[
        int | None,
        typer.Option(
            "--max-pending-transactions", min=0, metavar="N", help="Do not begin with more open than that; 0: no limit."
        ),
    ] = None,
    transaction_abort: Annotated[
        bool,
        typer.Option(
            "--force-transaction-abort/--no-force-transaction-abort",
            help="Of an immediate switch: end open transactions, or do it at once or not at all.",
        ),
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although a check failed, unless it keeps data safe.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only run the checks.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Kept in the record.")] = "",
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Move a service to TARGET, and wait until it is done."""
    from proxy.cli.show.switches import show_readiness

    client = client_of(url, token_file)
    name = the_service(client, service)
    asked = {
        "target_engine": target,
        "strategy": strategy,
        "drain_timeout_seconds": drain_timeout,
        "max_pending_transactions": max_pending,
        "force_transaction_abort": transaction_abort,
        "batch_size": batch_size,
        "interval_seconds": interval,
        "traffic_percentage": traffic_percentage,
        "validation_duration_seconds": validation_duration,
        "at": at,
        "in_seconds": in_seconds,
        "when_busy": None if queue is None else "queue" if queue else "refuse",
        "force": force,
        "dry_run": dry_run,
        "reason": reason,
    }
    try:
        begun = client.post(f"/v1/services/{segment(name)}/switch", asked)
    except ClientError as error:
        tell_refused(error, as_json)
    if dry_run:
        present(begun, as_json, show_readiness)
        exit_unless_ready(begun)
        return
    see_through(client, begun, as_json)


def cancel(switch_id: SwitchId, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Undo a switch that may be undone, or drop one that waits."""
    from proxy.cli.show.switches import show_outcome

    client = client_of(url, token_file)
    client.post(f"/v1/switches/{segment(switch_id)}/cancel")
    ended = follow(client, switch_id, None)
    present(ended, as_json, show_outcome)
    if ended["phase"] not in ("aborted", "rolled_back"):
        fail(f"switch {switch_id} {ended['phase']}: it could not be undone", ended["remedy"])


def failover(
    order: Annotated[
        Literal["on", "off", "start"],
        typer.Argument(
            help="`on` or `off`: by itself or not; a failover that failed switches it off. `start`: now.",
            metavar="ORDER",
        ),
    ],
    target: Annotated[
        str | None, typer.Argument(help="With `start`: who takes over; else the one that has most.", metavar="TARGET")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With `start`: one that may lack more than lag_tolerance_ms allows.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="With `start`: kept in the report.")] = "",
    service: Service = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Switch the automatic failover on or off, or order one. An order is for an active engine that is gone."""
    from proxy.cli.show.services import show_failover

    if order != "start" and (target is not None or force or reason):
        fail(f"nothing else belongs to `turnout failover {order}`", code=WRONG_USE)
    client = client_of(url, token_file)
    path = f"/v1/services/{segment(the_service(client, service))}/failover"
    if order == "start":
        begun = client.post(f"{path}/start", {"target_engine": target, "force": force, "reason": reason})
        see_through(client, begun, as_json)
        return
    view = client.post(path, {"automatic": order == "on"})
    present(view, as_json, show_failover)
    if order == "on" and not view["is_automatic"]:
        fail(f"no engine takes over by itself: {view['why_not']}", "change the config")
