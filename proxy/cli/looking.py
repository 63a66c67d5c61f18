"""Commands that only look at a running Turnout."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final

import typer

from proxy.cli.common import (
    WRONG_USE,
    AsJson,
    Service,
    SwitchId,
    TokenFile,
    Url,
    client_of,
    fail,
    present,
    print_json,
    segment,
)

DUMB: Final = ("", "dumb", "unknown")
"""What TERM says of terminals that only print."""


def register(app: typer.Typer) -> None:
    """Put the commands of this module under `turnout`."""
    for command in (status, engines, sessions, pools, history, report, top, events, audit):
        app.command()(command)


def status(url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Services, who is active, the switch that runs."""
    from proxy.cli.show.services import show_status

    present(client_of(url, token_file).get("/v1/status"), as_json, show_status)


def engines(service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Every engine as the last probe saw it."""
    from proxy.cli.show.services import show_engines

    rows = client_of(url, token_file).get("/v1/engines", service=service)
    present(rows, as_json, show_engines, with_service=True)


def sessions(service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Every client connection, and what it would take to move it."""
    from proxy.cli.show.sessions import show_sessions

    present(client_of(url, token_file).pages("/v1/sessions", service=service), as_json, show_sessions)


def pools(service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Backends of each engine, database and user. Those of all workers together."""
    from proxy.cli.show.sessions import show_pools

    present(client_of(url, token_file).get("/v1/pools", service=service), as_json, show_pools)


def history(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000, help="Most lines.")] = 20,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """The switches so far, newest first."""
    from proxy.cli.show.switches import show_history

    present(client_of(url, token_file).get("/v1/switches", limit=limit), as_json, show_history)


def report(switch_id: SwitchId, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """The evidence report of a switch that has ended."""
    from proxy.cli.show.reports import show_report

    present(client_of(url, token_file).get(f"/v1/switches/{segment(switch_id)}/report"), as_json, show_report)


def top(url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Engines, pools, sessions and the running switch, live. With --json one look. Keys: q, s (sort), p (pause), arrows, tab."""
    if not as_json and not (sys.stdin.isatty() and sys.stdout.isatty()):
        fail("`turnout top` needs a terminal", "--json prints one look", code=WRONG_USE)
    if not as_json and os.environ.get("TERM", "dumb") in DUMB:
        fail(
            "`turnout top` needs a terminal that can move its cursor; TERM says that this one cannot",
            "--json prints one look",
            code=WRONG_USE,
        )
    client = client_of(url, token_file)
    client.get("/v1/status")  # says in one line what is wrong, if nobody answers or the token is bad
    from proxy.cli.top import Top, take

    if as_json:
        print_json(take(client))
    else:
        Top(lambda: take(client)).run()


def events(service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """What happens, as it happens, until Ctrl-C. With --json one object a line."""
    from proxy.cli.show.admin import show_event
    from proxy.cli.show.terminal import console

    out = console()
    try:
        for event in client_of(url, token_file).events(service=service):
            if as_json:
                import json

                sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
                sys.stdout.flush()
            else:
                show_event(out, event)
    except KeyboardInterrupt:
        return


def audit(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000, help="Most lines.")] = 50,
    action: Annotated[str | None, typer.Option("--action", help="Only switch, cancel, enter, …")] = None,
    outcome: Annotated[str | None, typer.Option("--outcome", help="Only done, refused or failed.")] = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Who did what through the control port, and who was refused. Newest first."""
    from proxy.cli.show.admin import show_audit

    entries = client_of(url, token_file).get("/v1/audit", limit=limit, action=action, outcome=outcome)
    present(entries, as_json, show_audit)
