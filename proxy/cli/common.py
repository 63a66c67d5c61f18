"""What the commands have in common: their options, the control port they speak to, and how they end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import typer

from proxy.control.client_errors import DEFAULT_URL

if TYPE_CHECKING:
    import ssl

    from proxy.control.client import ControlClient

REFUSED: Final = 1
WRONG_USE: Final = 2

POLL_S: Final = 0.1
"""Pause between two looks at what goes on: a switch (its phases are stamped, so none is missed), a pause, a data check."""

Url = Annotated[
    str | None, typer.Option("--url", help=f"Control port of the Turnout, or TURNOUT_URL.  [default: {DEFAULT_URL}]")
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File whose first line is the control port's token, or TURNOUT_TOKEN."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Service = Annotated[str | None, typer.Option("--service", "-s", help="Service; needed if there are several.")]
ConfigPath = Annotated[Path, typer.Argument(help="The config file, TOML.", metavar="CONFIG")]
Target = Annotated[str, typer.Argument(help="Engine to switch to.", metavar="TARGET")]
Strategy = Literal["graceful", "immediate", "rolling", "canary"]
SwitchId = Annotated[str, typer.Argument(help="Id of the switch, as `turnout history` shows it.", metavar="ID")]


class Globals:
    """Options before the command; the same option after the command wins."""

    url: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


def fail(text: str, remedy: str = "", *, code: int = REFUSED) -> NoReturn:
    """Say why on stderr, and leave."""
    sys.stderr.write(f"turnout: {text}{f'; {remedy}' if remedy else ''}\n")
    sys.exit(code)


def print_json(value: Any) -> None:
    """On stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def where(url: str | None, token_file: Path | None) -> tuple[str, str | None]:
    """Address and token of the control port that is meant."""
    url = url or Globals.url or os.environ.get("TURNOUT_URL") or DEFAULT_URL
    token_file = token_file or Globals.token_file
    token = os.environ.get("TURNOUT_TOKEN") or None
    if token_file is not None:
        try:
            token = token_file.read_text().partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            fail(f"--token-file {token_file} cannot be read: {getattr(error, 'strerror', error)}", code=WRONG_USE)
    return url, token


def tls_of() -> ssl.SSLContext | None:
    """What the options about certificates ask for; None: the system's CAs, and no certificate."""
    if Globals.key_file is not None and Globals.cert_file is None:
        fail("--key-file is for the certificate of --cert-file, which is missing", code=WRONG_USE)
    if Globals.ca_file is None and Globals.cert_file is None:
        return None
    import ssl

    said = f"--ca-file {Globals.ca_file}"
    try:
        context = ssl.create_default_context(cafile=Globals.ca_file)
        if Globals.cert_file is not None:
            said = f"--cert-file {Globals.cert_file}" + (
                f" with --key-file {Globals.key_file}" if Globals.key_file else ""
            )
            context.load_cert_chain(Globals.cert_file, Globals.key_file, password="")
    except (OSError, ValueError) as error:
        fail(f"{said} cannot be used: {getattr(error, 'strerror', None) or error}", code=WRONG_USE)
    return context


def client_of(url: str | None, token_file: Path | None) -> ControlClient:
    """Speaks to the control port that is meant; nothing is sent yet."""
    from proxy.control.client import ControlClient

    address, token = where(url, token_file)
    try:
        return ControlClient(address, token=token, tls=tls_of())
    except ValueError as error:
        fail(str(error), code=WRONG_USE)


def the_service(client: ControlClient, named: str | None) -> str:
    """The service that is meant: the one named, or the only one."""
    if named is not None:
        return named
    names = [service["view"]["name"] for service in client.get("/v1/status")["services"]]
    if len(names) != 1:
        fail(f"there are several services ({', '.join(names)}); name one with --service", code=WRONG_USE)
    return str(names[0])


def segment(name: str) -> str:
    """A name as part of a path."""
    from urllib.parse import quote

    return quote(name, safe="")


def present(answer: Any, as_json: bool, show: Callable[..., None], *args: Any, **options: Any) -> None:
    """`answer` as JSON, or shown for people by one of the functions of proxy.cli.show."""
    if as_json:
        print_json(answer)
        return
    from proxy.cli.show.terminal import console

    show(console(), answer, *args, **options)
