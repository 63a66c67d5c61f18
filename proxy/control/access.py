"""Who calls: by the token a request shows, by the certificate of its connection, or by being on this machine.

With access control in the config (`token`, `caller`, `jwt`), every request shows who it is, from wherever it comes.
Without, the port listens on loopback only (the config loader sees to that, unless the file says otherwise in so many
words), and whoever can open a connection there is the admin. That trusts the machine's users, but must not trust the web
pages they look at: a page can make a browser talk to 127.0.0.1, either as itself (cross-site request: told by `Origin`)
or by having its own name resolve to 127.0.0.1 (DNS rebinding: told by `Host`). Both headers are set by the browser and
not by the page. A client certificate is shown by the browser, too, whatever page asks: so `Origin` counts there as well.
A token is sent by the program alone; no page of another site has it.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from proxy.config import ControlConfig, hash_token, is_loopback
from proxy.control.oidc import BadToken, Oidc
from proxy.control.roles import Caller, Role
from proxy.errors import NotAllowed

TOKEN_BYTES_MAX: Final = 16_384
"""Longer `Authorization` headers are refused unread. Tokens of providers that list groups have some thousand bytes."""

_ROLES: Final = {role.word: role for role in Role}


class TokenWanted(NotAllowed):
    """No token was shown, or a wrong one."""

    status = 401


class Access:
    """Decides for each request who calls. One for the life of the control port; `reconfigure` at each reload."""

    def __init__(self, config: ControlConfig) -> None:
        self._oidc: Oidc | None = None
        self.reconfigure(config)

    def reconfigure(self, config: ControlConfig) -> None:
        """From now on these callers, and no others."""
        self._is_open = not config.has_access_control
        self._is_local = is_loopback(_host(config.listen))
        self._by_hash: dict[str, tuple[str, Role]] = {}
        self._by_certificate: dict[str, tuple[str, Role]] = {}
        if config.token is not None and config.token.value:
            self._by_hash[hash_token(config.token.value)] = ("token holder", Role.ADMIN)
        for name, caller in config.caller.items():
            if caller.token is not None and caller.token.value:
                self._by_hash[hash_token(caller.token.value)] = (name, _ROLES[caller.role])
            if caller.certificate:
                self._by_certificate[caller.certificate] = (name, _ROLES[caller.role])
        if self._oidc is None or self._oidc.config != config.jwt:  # else its keys are good still
            self._oidc = Oidc(config.jwt) if config.jwt is not None else None

    async def admit(
        self, headers: Mapping[str, str], client: str, certificate: Mapping[str, Any] | None = None
    ) -> Caller:
        """Who sent these headers from the address `client`. Header names are lower case; `certificate` is what
        `ssl.SSLObject.getpeercert` says of a verified one.

        Raises TokenWanted, NotAllowed, KeysMissing.
        """
        if self._is_open:
            if self._is_local:
                _check_host(headers.get("host", ""))
            _check_origin(headers.get("origin"), headers.get("host", ""))
            name = "local user" if self._is_local else "anybody"
            return Caller(name=f"{name} at {client}", role=Role.ADMIN, subject=name)
        if "authorization" not in headers:
            known = next((found for one in _names(certificate) if (found := self._by_certificate.get(one))), None)
            if known is not None:
                _check_origin(headers.get("origin"), headers.get("host", ""))
                return Caller(name=f"{known[0]} at {client}", role=known[1], subject=f"certificate {known[0]}")
        token = _bearer(headers.get("authorization", ""))
        shown = hash_token(token) if not token.startswith("sha256:") else ""
        for known_hash, (name, role) in self._by_hash.items():
            if hmac.compare_digest(known_hash, shown):
                return Caller(name=f"{name} at {client}", role=role, subject=f"token {name}")
        if self._oidc is None:
            raise TokenWanted("the token is wrong", hint="it is one of those that [control] in the config names")
        try:
            name, role = await self._oidc.verify(token)
        except BadToken as bad:
            raise TokenWanted(bad.text, hint=f"get one from {self._oidc.config.issuer}") from None
        return Caller(name=f"{name} at {client}", role=role, subject=f"jwt {name}")


def _bearer(header: str) -> str:
    if len(header) > TOKEN_BYTES_MAX:
        raise TokenWanted(f"the token is longer than {TOKEN_BYTES_MAX} bytes", hint="send a shorter one")
    scheme, _space, shown = header.partition(" ")
    if scheme.lower() != "bearer" or not shown.strip():
        raise TokenWanted("this control port asks for a token", hint="send `Authorization: Bearer TOKEN`")
    return shown.strip()


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _names(certificate: Mapping[str, Any] | None) -> Iterator[str]:
    """Of the one who owns a verified certificate: alternative names, then the common name."""
    if not certificate:
        return
    for kind, value in certificate.get("subjectAltName", ()):
        if kind in ("DNS", "email", "URI"):
            yield value
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                yield value


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
