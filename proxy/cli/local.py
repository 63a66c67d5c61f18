"""Commands that need no running Turnout: demo, serve, check, version, token."""

from __future__ import annotations

import sys
from typing import Final

import typer

from proxy import VERSION
from proxy.cli.common import AsJson, ConfigPath, fail, present, print_json
from proxy.demo import demo

TOKEN_BYTES: Final = 32
"""Of randomness in a token: 43 characters."""


def register(app: typer.Typer) -> None:
    """Put the commands of this module under `turnout`."""
    for command in (demo, serve, check, version, token):
        app.command()(command)


def serve(config: ConfigPath) -> None:
    """Run Turnout until SIGTERM. SIGHUP reads the config again."""
    from proxy.serving import serve as run

    raise typer.Exit(run(config))


def check(config: ConfigPath, as_json: AsJson = False) -> None:
    """Check the config file, and reach every engine that it names. Shows version and role, and what the admin account may not
    do."""
    import asyncio

    from proxy.cli.check import reach_all
    from proxy.cli.show.admin import show_reached
    from proxy.serving import read

    loaded = read(config)
    rows = asyncio.run(reach_all(loaded))
    is_good = all(not row["problems"] for row in rows)
    present({"is_good": is_good, "engines": rows} if as_json else rows, as_json, show_reached)
    if not is_good:
        failed = [f"{row['service']}.{row['engine']}" for row in rows if row["problems"]]
        fail(f"{config}: not fit for a switch: {', '.join(failed)}")
    if not as_json:
        sys.stdout.write(f"{config}: good\n")


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": VERSION})
    else:
        sys.stdout.write(f"turnout {VERSION}\n")


def token(as_json: AsJson = False) -> None:
    """Make a token for the control port. The hash goes into the config, the token to whoever shall use it."""
    import secrets

    from proxy.config import hash_token

    made = secrets.token_urlsafe(TOKEN_BYTES)
    if as_json:
        print_json({"token": made, "hash": hash_token(made)})
    else:
        sys.stdout.write(f"token  {made}\nhash   {hash_token(made)}\n")
