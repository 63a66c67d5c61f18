"""The tables of a service's engines and of the accounts on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta

from proxy.config.table import RELOADABLE, Secret, Table
from proxy.errors import Conflict
from proxy.tls import TlsSetting


class AdminConfig(Table, frozen=True, kw_only=True):
    """The account Turnout itself uses on the engines of a service."""

    user: str
    """A superuser, or an account with the rights that a switch needs; `turnout check` names those that are missing, each
    with the statement that gives it."""
    password: Secret | None = None
    """Its password."""
    database: str = ""
    """Database it connects to; empty: `postgres` or none."""


class EngineLogin(Table, frozen=True, kw_only=True):
    """One account for all clients' backends of an engine."""

    user: str
    """Its name."""
    password: Secret | None = None
    """Its password."""


class LoadConfig(Table, frozen=True, kw_only=True):
    """Where `cpu_usage_percent` and `memory_usage_percent` of an engine come from. What is not known is not shown, and no
    policy fires on it."""

    source: Literal["none", "process", "node_exporter", "query"] = "none"
    """`none`: they are unknown. `process`: the server runs on this host; its processes are found by the port in `address`, or
    by `pid_file`, and their part of all processors and of the whole memory is shown. `node_exporter`: a Prometheus node
    exporter on the server's host is read, and the whole host is shown. `query`: the server is asked by SQL."""
    pid_file: str = ""
    """With `process`: file whose first line is the server's process id (`postmaster.pid`); empty: whoever listens on the
    engine's port. Needed where Turnout's account may not see that, or where something else listens there."""
    node_exporter: str = ""
    """With `node_exporter`: host:port of the exporter, which is read by `http://host:port/metrics`."""
    cpu_query: str = ""
    """With `query`: SQL of one row and one number from 0 to 100; empty: unknown."""
    memory_query: str = ""
    """The same for memory."""


class EngineConfig(Table, frozen=True, kw_only=True):
    """One database server. Its name is the key; commands and reports call it so."""

    address: str
    """host:port of the server."""
    role: Literal["primary", "standby", "secondary"] = "primary"
    """What it is when Turnout first starts; from then on the engine itself is asked."""
    login: EngineLogin | None = None
    """Account for the clients' backends; default: the client's own user and password."""
    server_tls_sslmode: Annotated[TlsSetting, Meta(extra=RELOADABLE)] = "prefer"
    """TLS with this server, with the meanings of libpq's sslmode: `disable`, `allow` (only where the server refuses to go
    without; PostgreSQL only), `prefer` (where the server has it), `require`, `verify-ca` (the CA file vouches for the
    server), `verify-full` (and its certificate has the name in `address`). For a MySQL server the names of --ssl-mode
    mean the same: `DISABLED`, `PREFERRED`, `REQUIRED`, `VERIFY_CA`, `VERIFY_IDENTITY`."""
    server_tls_ca_file: Annotated[str, Meta(extra=RELOADABLE)] = ""
    """CA certificates that vouch for the server, in PEM form; relative to the config file. With one, `require` means
    `verify-ca`, as in libpq. Read again at each reload, like the other files."""
    server_tls_cert_file: Annotated[str, Meta(extra=RELOADABLE)] = ""
    """Certificate to show to the server."""
    server_tls_key_file: Annotated[str, Meta(extra=RELOADABLE)] = ""
    """Its private key; empty: in the same file."""
    server_tls_protocols: Annotated[str, Meta(extra=RELOADABLE)] = "secure"
    """Versions of TLS: `secure` (1.2 and 1.3), `tlsv1.2`, `tlsv1.3`."""
    server_tls_ciphers: Annotated[str, Meta(extra=RELOADABLE)] = "default"
    """Ciphers of TLS 1.2 as OpenSSL lists them; `default`: OpenSSL's choice."""
    server_compression: Annotated[Literal["none", "zlib", "zstd"], Meta(extra=RELOADABLE)] = "none"
    """Compress the connections of sessions to this MySQL or MariaDB server: worth it over slow lines only. A server that
    does not have it (MariaDB has zlib) refuses them by its name."""
    load: LoadConfig = LoadConfig()
    """Where its use of processor and memory is read."""


def check_addition(service: str, engines: Mapping[str, EngineConfig], name: str, engine: EngineConfig) -> None:
    """May a service with these engines have this one too? Raises Conflict: the name or the address is taken."""
    for other, one in engines.items():
        if other == name:
            raise Conflict(f"service {service!r} has an engine {name!r} already", hint="take another name")
        if one.address == engine.address:
            raise Conflict(f"engine {other!r} has the address {one.address} already", hint="add it once only")
