"""`turnout database …`: pause, kill and disable databases of the PostgreSQL services, as PgBouncer's console does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxy.cli.common import POLL_S, AsJson, TokenFile, Url, client_of, fail, present

if TYPE_CHECKING:
    from proxy.control.client import ControlClient

Databases = Annotated[str, typer.Argument(help="The name that clients connect to; none: all.", metavar="DATABASE")]
Database = Annotated[str, typer.Argument(help="The name that clients connect to.", metavar="DATABASE")]


def register(app: typer.Typer) -> None:
    """Put the commands of this module under `turnout database`."""
    group = typer.Typer(help="Pause, kill or disable databases of PostgreSQL.", no_args_is_help=True)
    group.command(name="list")(list_standstills)
    for command in (pause, resume, reconnect, kill, disable, enable):
        group.command()(command)
    app.add_typer(group, name="database")


def list_standstills(url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """What is paused and disabled."""
    from proxy.cli.show.admin import show_standstills

    present(client_of(url, token_file).get("/v1/databases/standstills"), as_json, show_standstills)


def pause(
    database: Databases = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until no backend is left.")] = True,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Let nobody have a backend, and wait until none is left. Clients wait; Ctrl-C leaves the pause behind."""
    from proxy.cli.show.admin import show_standstills

    client = client_of(url, token_file)
    rows = client.post("/v1/databases/pause", {"database": database})
    try:
        while wait and not _is_done(rows, database):
            time.sleep(POLL_S)
            rows = client.get("/v1/databases/standstills")
    except KeyboardInterrupt:
        fail("the pause goes on", f"`turnout database resume{f' {database}' if database else ''}` undoes it")
    present(rows, as_json, show_standstills)


def _is_done(rows: list[dict[str, Any]], database: str) -> bool:
    """No backend is left of what was paused."""
    paused = [row for row in rows if (database in row["paused"] if database else row["is_paused"])]
    if not paused:
        fail("the pause was undone before all backends were released")
    return all(row["backends_left"] == 0 for row in paused)


def resume(database: Databases = "", url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Undo a pause or a kill of the same name."""
    _order(client_of(url, token_file), "resume", database, as_json)


def reconnect(database: Databases = "", url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Close the backends there are as they become free. New ones are opened as they are needed."""
    _order(client_of(url, token_file), "reconnect", database, as_json)


def kill(database: Databases = "", url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """End every session at once, and pause. Newcomers wait for a resume."""
    _order(client_of(url, token_file), "kill", database, as_json)


def disable(database: Database, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Let nobody log in; who is there stays."""
    _order(client_of(url, token_file), "disable", database, as_json)


def enable(database: Database, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Let clients log in again."""
    _order(client_of(url, token_file), "enable", database, as_json)


def _order(client: ControlClient, what: str, database: str, as_json: bool) -> None:
    from proxy.cli.show.admin import show_standstills

    present(client.post(f"/v1/databases/{what}", {"database": database}), as_json, show_standstills)
