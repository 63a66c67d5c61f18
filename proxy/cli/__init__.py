"""The command line: `turnout`, or `python -m proxy`.

Exit codes: 0 done, 1 refused or failed (why on stderr), 2 wrong use. Every command has `--json`. Commands that talk to a
running Turnout do so through its control port. Heavy modules are imported by the commands that need them, so that
`turnout --help` is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from proxy.cli import admin, alert, database, datacheck, local, looking, policy, switching
from proxy.cli.common import REFUSED, Globals, TokenFile, Url, fail
from proxy.control.client_errors import ClientError

app = typer.Typer(
    name="turnout",
    help="A database proxy that moves running sessions from one server to another.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for module in (local, looking, switching, datacheck, admin, database, policy, alert):
    module.register(app)


@app.callback()
def _root(
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: Annotated[
        Path | None,
        typer.Option("--ca-file", envvar="TURNOUT_CA_FILE", help="CA that vouches for the control port (https://)."),
    ] = None,
    cert_file: Annotated[
        Path | None,
        typer.Option("--cert-file", envvar="TURNOUT_CERT_FILE", help="Certificate to show to the control port."),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", envvar="TURNOUT_KEY_FILE", help="Its private key, if in another file.")
    ] = None,
) -> None:
    Globals.url = url
    Globals.token_file = token_file
    Globals.ca_file, Globals.cert_file, Globals.key_file = ca_file, cert_file, key_file


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `turnout`; `arguments` are those of the process by default. Ends with SystemExit."""
    try:
        app(arguments)
    except ClientError as error:
        fail(error.text, error.remedy)
    except BrokenPipeError:  # `turnout sessions | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(REFUSED)
    raise AssertionError("typer ends with SystemExit")
