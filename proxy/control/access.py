"""Who calls, and what a caller may do.

Two ways in. With a token in the config, every request shows it (`Authorization: Bearer …`), from wherever it comes.
Without one the port listens on loopback only (the config loader sees to that), and whoever can open a connection there
is the operator. That second way trusts the machine's users, but must not trust the web pages they look at: a page can
make a browser talk to 127.0.0.1, either as itself (cross-site request: told by `Origin`) or by having its own name
resolve to 127.0.0.1 (DNS rebinding: told by `Host`). Both headers are set by the browser and not by the page.
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from proxy.config import Config, is_loopback
from proxy.errors import NotAllowed

TOKEN_BYTES_MAX: Final = 4_096
"""Longer `Authorization` headers are refused unread."""


class Role(enum.IntEnum):
    """What a caller may do; each role may do all that a lower one may."""

    OBSERVER = 1
    """Look."""
    OPERATOR = 2
    """Switch, cancel."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody at the door."""

    name: str
    """For the log and the record of a switch: how they came in, and from where."""
    role: Role


class TokenWanted(NotAllowed):
    """No token was shown, or a wrong one."""

    status = 401


class Access:
    """Decides for each request who calls. One for the life of the control port."""

    def __init__(self, config: Config) -> None:
        token = config.control.token
        self._token = token.value.encode() if token is not None and token.value else None

    def admit(self, headers: Mapping[str, str], client: str) -> Caller:
        """Who sent these headers from the address `client`. Header names are lower case.

        Raises TokenWanted or NotAllowed.
        """
        if self._token is not None:
            self._check_token(headers.get("authorization", ""))
            return Caller(name=f"token holder at {client}", role=Role.OPERATOR)
        _check_host(headers.get("host", ""))
        _check_origin(headers.get("origin"), headers.get("host", ""))
        return Caller(name=f"local user at {client}", role=Role.OPERATOR)

    def _check_token(self, header: str) -> None:
        assert self._token is not None
        scheme, _space, shown = header[:TOKEN_BYTES_MAX].partition(" ")
        if scheme.lower() != "bearer" or not shown:
            raise TokenWanted("this control port asks for a token", hint="send `Authorization: Bearer TOKEN`")
        if not hmac.compare_digest(shown.strip().encode(), self._token):
            raise TokenWanted("the token is wrong", hint="it is the one that [control] token in the config names")


def _check_host(host: str) -> None:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if not is_loopback(name):
        raise NotAllowed(
            f"Host {host[:100]!r} is not this machine's own address",
            hint="reach a control port without a token as http://127.0.0.1:PORT, or give it a token",
        )


def _check_origin(origin: str | None, host: str) -> None:
    if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        raise NotAllowed(
            "a page of another site may not use this control port",
            hint="give the control port a token, and let the program send it",
        )


def show_client(host: str, port: int) -> str:
    """`127.0.0.1:5000`, `[::1]:5000`."""
    try:
        return f"[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"{host}:{port}"
    except ValueError:
        return f"{host}:{port}"
