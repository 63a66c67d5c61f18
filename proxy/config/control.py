"""The tables of the control port, and what its callers' tokens are kept as."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from proxy.config.table import RELOADABLE, Secret, Table

RoleName = Literal["viewer", "operator", "admin"]
"""What a caller of the control port may do: look; operate as well; everything."""


class CallerConfig(Table, frozen=True, kw_only=True):
    """Somebody who may use the control port. Its name is the key; records and the audit log call it so."""

    role: RoleName
    """What it may do. `viewer`: look. `operator`: also switch, cancel, order a failover, set policies, compare rows, pause
    databases, silence alerts. `admin`: also force a switch, kill and disable databases, add and remove engines, end sessions,
    reload the config, set the log's level, and read the audit log. docs/control.md has all of it."""
    token: Secret | None = None
    """Bearer token that it shows: at least 16 characters, or `sha256:` and the hash of one in hex, so that the token
    itself stands nowhere. `turnout token` makes both. Turnout keeps the hash only."""
    certificate: str = ""
    """Name in the client certificate that it shows (`tls_client_cert`): the subject's common name, or a DNS name, an e-mail
    address or a URI among its alternative names."""


class JwtConfig(Table, frozen=True, kw_only=True):
    """Callers of the control port who show a token (JWT) of an OpenID Connect provider."""

    issuer: str
    """Who must have signed it: its claim `iss`, letter by letter."""
    audience: str
    """For whom it must be: its claim `aud`, or one of them."""
    jwks_url: str = ""
    """https:// address of the issuer's keys; empty: the one that ISSUER/.well-known/openid-configuration names."""
    jwks_file: str = ""
    """File with the issuer's keys, in place of an address; relative to the config file."""
    algorithms: list[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
    ] = msgspec.field(default_factory=lambda: ["RS256", "ES256", "EdDSA"])
    """Signatures that count."""
    name_claim: str = "sub"
    """Claim with the caller's name."""
    role_claim: str = "roles"
    """Claim with its roles: one text or a list of them. A dot leads into an object: `realm_access.roles`."""
    viewer: list[str] = msgspec.field(default_factory=lambda: ["turnout-viewer"])
    """Values of that claim that make a viewer."""
    operator: list[str] = msgspec.field(default_factory=lambda: ["turnout-operator"])
    """Values of that claim that make an operator."""
    admin: list[str] = msgspec.field(default_factory=lambda: ["turnout-admin"])
    """Values of that claim that make an admin."""
    leeway_s: Annotated[float, Meta(ge=0, le=300)] = 30.0
    """How far the issuer's clock may differ from ours, in seconds."""


class ControlConfig(Table, frozen=True, kw_only=True):
    """The control port: REST, MCP, dashboard, metrics, health. One for the whole Turnout."""

    listen: str = "127.0.0.1:7432"
    """Address and port of the control port."""
    token: Annotated[Secret | None, Meta(extra=RELOADABLE)] = None
    """Bearer token of a caller who may do everything; in short for a `caller` with role admin."""
    tls_cert_file: str = ""
    """Certificate of the control port, and what leads from it to the CA, in PEM form; relative to the config file. Empty:
    plain HTTP. Read again at each reload, like the other files."""
    tls_key_file: str = ""
    """Its private key; empty: in the same file."""
    tls_ca_file: str = ""
    """CA certificates that vouch for client certificates."""
    tls_client_cert: Literal["none", "optional", "required"] = "none"
    """Client certificates (mutual TLS): not asked for; a caller with one is known by it, others show a token; no connection
    without one."""
    allow_without_access_control: bool = False
    """Open the control port on an address that others can reach although nobody has to show who they are: whoever reaches it
    may do everything."""
    allow_without_tls: bool = False
    """Open the control port on an address that others can reach although it has no certificate: whoever is on the way can
    read and use the tokens."""
    requests_per_s: Annotated[float, Meta(gt=0, le=100_000, extra=RELOADABLE)] = 200.0
    """Most requests of one caller, in a second on average; twice as many at once. Callers who fail to show who they are
    count by their address, and get a tenth."""
    processor_share: Annotated[float, Meta(gt=0, le=1, extra=RELOADABLE)] = 0.03
    """Share of one processor that it may take to answer one caller at one address, in the long run; a quarter of a second of
    its time at once. Beyond that the caller's requests wait for their turn, three seconds at most, those of the connection
    that has cost least lately first; one that would have to wait longer is answered 429. Changes asked for by an operator or
    admin, `/metrics`, the stream of events, and health neither wait nor count. 1: no limit."""
    requests_max: Annotated[int, Meta(ge=1, le=10_000)] = 256
    """Most requests at the same time; one more is answered 503."""
    body_bytes_max: Annotated[int, Meta(ge=1_024, le=16 * 1024 * 1024)] = 64 * 1024
    """Longest body of a request, in bytes."""
    caller: Annotated[dict[str, CallerConfig], Meta(extra=RELOADABLE)] = {}
    """Who may use the control port, by name. With none, and neither `token` nor `jwt`, whoever reaches it may do
    everything, and it listens on a loopback address only."""
    jwt: Annotated[JwtConfig | None, Meta(extra=RELOADABLE)] = None
    """Callers by OpenID Connect."""

    @property
    def has_access_control(self) -> bool:
        """Callers have to show who they are."""
        return bool(self.token or self.caller or self.jwt)


HASHED: Final = "sha256:"
"""What a token begins with that stands as its hash."""

TOKEN_LENGTH_MIN: Final = 16
"""Of a token in clear text. One that people think of could be guessed; `turnout token` makes 43 random characters."""


def hash_token(token: str) -> str:
    """`sha256:` and the hash in hex, also of what is a hash already. A plain hash is enough: a token is random, so that
    there is nothing to guess it by."""
    if token.startswith(HASHED):
        return token.lower()
    return HASHED + hashlib.sha256(token.encode()).hexdigest()
