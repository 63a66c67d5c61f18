"""The config file: one typed table. Name with unit, type, range, default, help and whether a reload applies it.

The sample file in `conf/` and the reference in `docs/` are produced from the structs here. Unknown keys are errors that
name the nearest key and the line. Secrets come from an environment variable or a file and are never printed.

`load` reads in four steps, and tells all that a step finds before it gives up: the text is TOML; every key is known and
every value has its type and range (`_Reader`, which walks the structs so that it can name the key; msgspec's own
messages do not); the values fit each other (`_check_meaning`); the secrets are there (`_Resolver`).
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import math
import os
import re
import tomllib
import zoneinfo
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args
from urllib.parse import urlsplit

import msgspec
from cronsim import CronSim, CronSimError
from msgspec import Meta, inspect

from protocols.mysql.auth import unfit as unfit_for_mysql
from protocols.postgres.auth import is_md5, is_verifier
from protocols.wire import PackingName
from proxy.config_text import KeyPath, UsersError, key_lines, parse_users, spell
from proxy.errors import ConfigError
from proxy.hba import HbaError, expand, parse_hba
from proxy.tls import MYSQL_NAMES, TlsProblem, TlsSetting, control_tls, engine_tls, listener_tls, receiver_tls

__all__ = [
    "CONSOLE_DATABASE",
    "AdminConfig",
    "AlertRuleConfig",
    "AlertsConfig",
    "AuthConfig",
    "CallerConfig",
    "Config",
    "ConfigErrors",
    "ConsoleConfig",
    "ControlConfig",
    "EngineConfig",
    "EngineLogin",
    "FailoverConfig",
    "HookConfig",
    "JwtConfig",
    "ListenerConfig",
    "LoadConfig",
    "LogConfig",
    "LogLevel",
    "PolicyConfig",
    "ReceiverConfig",
    "RoleName",
    "RouteConfig",
    "Secret",
    "ServiceConfig",
    "SwitchConfig",
    "TelemetryConfig",
    "decode_effective",
    "encode_effective",
    "hash_token",
    "is_loopback",
    "load",
    "masked",
    "parse_address",
    "parse_users",
    "policy_faults",
    "reload_diff",
    "unfit_secret",
]

RELOADABLE = {"reload": True}


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


_AnyTable = TypeVar("_AnyTable", bound=_Table)


class Secret(_Table, frozen=True, kw_only=True):
    """A password that is not in this file: exactly one of the two."""

    env: str | None = None
    """Name of an environment variable."""
    file: str | None = None
    """Path of a file, relative to the config file; its first line, without the line's end (`users`, `hba`: the whole
    file)."""
    value: str | None = None
    """Filled when the file is loaded; not allowed in the file itself."""

    def __repr__(self) -> str:
        return "Secret(***)"


RoleName = Literal["viewer", "operator", "admin"]
"""What a caller of the control port may do: look; switch, cancel and set policies as well; everything."""


class CallerConfig(_Table, frozen=True, kw_only=True):
    """Somebody who may use the control port. Its name is the key; records and the audit log call it so."""

    role: RoleName
    """What it may do. `viewer`: look. `operator`: also switch, cancel, and set policies. `admin`: also force a switch, add
    and remove engines, end sessions, reload the config, set the log's level, and read the audit log."""
    token: Secret | None = None
    """Bearer token that it shows: at least 16 characters, or `sha256:` and the hash of one in hex, so that the token
    itself stands nowhere. `turnout token` makes both. Turnout keeps the hash only."""
    certificate: str = ""
    """Name in the client certificate that it shows (`tls_client_cert`): the subject's common name, or a DNS name, an e-mail
    address or a URI among its alternative names."""


class JwtConfig(_Table, frozen=True, kw_only=True):
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


class ControlConfig(_Table, frozen=True, kw_only=True):
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


CONSOLE_DATABASE: Final = "pgbouncer"
"""Whoever asks a PostgreSQL port for this database wants the admin console."""


class ConsoleConfig(_Table, frozen=True, kw_only=True):
    """PgBouncer's admin console: the database `pgbouncer` of every PostgreSQL port. A service that has a database of that name
    keeps it. With none of the three lists there is no console."""

    admin_users: Annotated[list[str], Meta(extra=RELOADABLE)] = []
    """Users who may do everything there: the role admin of the control port."""
    operator_users: Annotated[list[str], Meta(extra=RELOADABLE)] = []
    """Users who may also PAUSE, RESUME, RECONNECT, WAIT_CLOSE, SWITCH and CANCEL: the role operator. PgBouncer has no such list."""
    stats_users: Annotated[list[str], Meta(extra=RELOADABLE)] = []
    """Users who may look: the role viewer."""
    auth: Annotated[AuthConfig | None, Meta(extra=RELOADABLE)] = None
    """How they log in, in the form of a service's `auth`: methods of PostgreSQL, and users in a file. No engine is asked."""

    @property
    def is_on(self) -> bool:
        """Somebody may come in."""
        return bool(self.admin_users or self.operator_users or self.stats_users)

    def role_of(self, user: str) -> RoleName | None:
        """What a user may do there; None: nothing, not even come in."""
        if user in self.admin_users:
            return "admin"
        if user in self.operator_users:
            return "operator"
        return "viewer" if user in self.stats_users else None

    def as_service(self) -> ServiceConfig | None:
        """A service without engines, by whose rules the console's clients log in; None: there is no console."""
        if not self.is_on or self.auth is None:
            return None
        return ServiceConfig(protocol="postgresql", active="", admin=AdminConfig(user=""), auth=self.auth, engine={})


class ListenerConfig(_Table, frozen=True, kw_only=True):
    """A port for clients. A service is reached on every listener of its protocol, by the database name."""

    protocol: Literal["postgresql", "mysql"]
    """Protocol spoken on this port."""
    listen: str
    """Address and port for clients."""
    client_tls_sslmode: TlsSetting = "disable"
    """TLS with clients. `disable`: not offered. `allow`, `prefer`: a client that asks for it gets it. `require`: a client
    must use it. `verify-ca`, `verify-full`: and must show a certificate that the CA file vouches for. A CancelRequest may
    always come without. On a MySQL port the names of its --ssl-mode mean the same: `DISABLED`, `PREFERRED`, `REQUIRED`,
    `VERIFY_CA`, `VERIFY_IDENTITY`."""
    client_tls_cert_file: str = ""
    """Certificate, and what leads from it to the CA, in PEM form; relative to the config file. Read again at each reload,
    like the other files."""
    client_tls_key_file: str = ""
    """Its private key; empty: in the same file."""
    client_tls_ca_file: str = ""
    """CA certificates that vouch for clients. Below `verify-ca` a client may show no certificate, but none that is not
    vouched for."""
    client_tls_protocols: str = "secure"
    """Versions of TLS: `secure` (1.2 and 1.3), `tlsv1.2`, `tlsv1.3`."""
    client_tls_ciphers: str = "default"
    """Ciphers of TLS 1.2 as OpenSSL lists them; `default`: OpenSSL's choice."""
    client_compression: Literal["none", "zlib", "zstd", "zlib,zstd"] = "zlib,zstd"
    """What clients of a MySQL port may compress their connection by, if they ask for it: zlib (`--compress`,
    `--compression-algorithms=zlib`), zstd (`--compression-algorithms=zstd`). PostgreSQL has no compression."""
    proxy_protocol: list[str] = []
    """Networks of load balancers (`10.0.0.0/8`, `::1/128`). A connection from one of them must begin with a header of the
    PROXY protocol, version 1 or 2, and counts as coming from the address in it; others must not."""

    @property
    def packings(self) -> Sequence[PackingName]:
        """`client_compression` as a login takes it."""
        names: tuple[PackingName, ...] = ("zlib", "zstd")
        return [name for name in names if name in self.client_compression.split(",")]


LogLevel = Literal["debug", "info", "warning", "error"]


class LogConfig(_Table, frozen=True, kw_only=True):
    """What is written to stderr."""

    level: Annotated[LogLevel, Meta(extra=RELOADABLE)] = "info"
    """Lowest level that is logged."""
    format: Literal["text", "json"] = "text"
    """One line per event, for people or for machines."""


class TelemetryConfig(_Table, frozen=True, kw_only=True):
    """Where traces go, by OpenTelemetry's protocol (OTLP) over HTTP. See docs/tracing.md."""

    endpoint: str = ""
    """URL that takes spans, as a collector has it: `http://collector:4318/v1/traces`. Empty: there are no traces."""
    headers: Secret | None = None
    """Headers of each request, `name=value` with commas between them, as OTEL_EXPORTER_OTLP_HEADERS has them."""
    ca_file: str = ""
    """CA certificates that vouch for an https:// endpoint, relative to the config file; empty: those that Python's certifi
    has."""
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 10.0
    """Longest time for a request, in seconds, repeated tries included."""
    service_name: str = "turnout"
    """What traces call this Turnout: `service.name`."""


class AdminConfig(_Table, frozen=True, kw_only=True):
    """The account Turnout itself uses on the engines of a service."""

    user: str
    """A superuser, or an account with the rights that a switch needs; `turnout check` names those that are missing, each
    with the statement that gives it."""
    password: Secret | None = None
    """Its password."""
    database: str = ""
    """Database it connects to; empty: `postgres` or none."""


class AuthConfig(_Table, frozen=True, kw_only=True):
    """How the clients of a service log in at Turnout."""

    method: Literal[
        "trust",
        "password",
        "md5",
        "scram-sha-256",
        "cert",
        "hba",
        "mysql_native_password",
        "caching_sha2_password",
        "sha256_password",
        "client_ed25519",
        "mysql_clear_password",
    ]
    """How clients prove who they are. PostgreSQL: `trust`, `password` (in clear text, over TLS), `md5`, `scram-sha-256`
    (with channel binding over TLS), `cert` (a certificate with the user's name), or `hba`: the rules of the file `hba` say.
    MySQL: `trust`, `mysql_native_password`, `caching_sha2_password`, `sha256_password`, `client_ed25519` (MariaDB),
    `mysql_clear_password` (over TLS); a user whose verifier is of another method is asked for that one."""
    users: Annotated[Secret | None, Meta(extra=RELOADABLE)] = None
    """Users and passwords in PgBouncer's userlist.txt form: `"user" "password"`, one a line, a password being plain
    text, an md5 hash or a SCRAM-SHA-256 verifier; for MySQL plain text or what the server keeps as
    `authentication_string`: `*…`, `$A$005$…`, `$5$…` (the latter two also as `0x` and their hex()), or for ed25519 the same
    behind `ed25519:`. Required unless `method` is trust or cert, or the engine is asked (`auth_query`). With plain text the same password opens the engine's connections; with a verifier the client's own
    proof does. A changed file is read at the next login."""
    hba: Annotated[Secret | None, Meta(extra=RELOADABLE)] = None
    """Rules in the form of pg_hba.conf: who may come from where to which database, and by which method. Used with
    method `hba` only. PgBouncer: `auth_hba_file`."""
    auth_query: Annotated[str, Meta(extra=RELOADABLE)] = ""
    """Asks the active engine for users that are not in `users`: `$1` is the user's name, the answer is no row, or one with
    the name and the secret (MySQL: name, plugin and authentication_string). Empty: nobody is asked for, unless `auth_user`
    is set; then the query is `select rolname, rolpassword from pg_catalog.pg_authid where rolname = $1`. MySQL: also asked
    for if there is no `users`; empty: mysql.user, or MariaDB's mysql.global_priv."""
    auth_user: Annotated[str, Meta(extra=RELOADABLE)] = ""
    """Account that asks `auth_query`; its password is in `users`. Empty: that of `admin`."""
    auth_dbname: Annotated[str, Meta(extra=RELOADABLE)] = ""
    """Database in which `auth_query` is asked; empty: the client's."""
    password_in_clear: Annotated[bool, Meta(extra=RELOADABLE)] = False
    """Let clients send passwords in clear text without TLS, too. Everybody on the way can read them."""

    @property
    def query(self) -> str:
        """The query that finds users on the engine; empty: the engine is not asked."""
        return self.auth_query or (DEFAULT_AUTH_QUERY if self.auth_user else "")


DEFAULT_AUTH_QUERY: Final = "select rolname, rolpassword from pg_catalog.pg_authid where rolname = $1"
"""See `AuthConfig.auth_query`. Whether the role may log in, and until when, is asked besides, whatever the query is."""


class EngineLogin(_Table, frozen=True, kw_only=True):
    """One account for all clients' backends of an engine."""

    user: str
    """Its name."""
    password: Secret | None = None
    """Its password."""


class LoadConfig(_Table, frozen=True, kw_only=True):
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


class EngineConfig(_Table, frozen=True, kw_only=True):
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


class SwitchConfig(_Table, frozen=True, kw_only=True):
    """Limits of a switch; a plan may narrow them."""

    hold_ms_max: Annotated[int, Meta(ge=100, le=60_000, extra=RELOADABLE)] = 5_000
    """Longest time one client may wait for a switch, in milliseconds; then new work is refused."""
    held_requests_max: Annotated[int, Meta(ge=1, le=1_000_000, extra=RELOADABLE)] = 10_000
    """Most requests that wait for a switch or a failover, in each worker; of more, those that came last are refused."""
    drain_timeout_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 30.0
    """How long open transactions may go on before the plan's `on_drain_expired` applies, in seconds."""
    on_drain_expired: Annotated[Literal["abort", "terminate", "leave"], Meta(extra=RELOADABLE)] = "abort"
    """`abort` gives the source back and nobody notices; `terminate` rolls back the transactions that are left
    and ends the sessions that hold what cannot be carried; `leave` lets them keep the backend they have, which needs
    `replication` none."""
    max_pending_transactions: Annotated[int, Meta(ge=0, le=1_000_000, extra=RELOADABLE)] = 0
    """A switch does not begin while more sessions than that are in a transaction; 0: no limit."""
    catchup_timeout_s: Annotated[float, Meta(gt=0, le=3_600, extra=RELOADABLE)] = 4.0
    """How long the target may take to reach the fenced position, in seconds; then the switch is undone."""
    sync: Annotated[Literal["synchronous", "semi_synchronous"], Meta(extra=RELOADABLE)] = "synchronous"
    """Who must have all that the source wrote before the target is promoted. `synchronous`: the target.
    `semi_synchronous`: `min_replicas` engines of the service, the target among them."""
    min_replicas: Annotated[int, Meta(ge=1, le=100, extra=RELOADABLE)] = 2
    """With `sync` semi_synchronous: engines that must have it, the target counted."""
    in_doubt: Annotated[Literal["block", "commit", "rollback"], Meta(extra=RELOADABLE)] = "block"
    """What becomes of prepared transactions (PREPARE TRANSACTION, XA) that nobody has ended when the source is fenced:
    `block` refuses or undoes the switch and names them; `commit` and `rollback` end all of them."""
    sequence_margin: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 1_000
    """Steps by which the sequences of a target go on ahead of the source's, with `replication` logical."""
    promote_timeout_s: Annotated[float, Meta(gt=0, le=3_600, extra=RELOADABLE)] = 10.0
    """How long the promotion of the target may take, in seconds."""
    temp_tables_bytes_max: Annotated[int, Meta(ge=0, le=1024**3, extra=RELOADABLE)] = 1024 * 1024
    """Most bytes of rows in a session's temporary tables that are carried while it is held, as the server sends them; a
    session with more is pinned. 0: none are carried."""
    lag_bytes_max: Annotated[int, Meta(ge=0, extra=RELOADABLE)] = 64 * 1024 * 1024
    """Most bytes of WAL the target may be behind for a switch to begin."""
    lag_s_max: Annotated[float, Meta(ge=0, extra=RELOADABLE)] = 5.0
    """Most seconds a MySQL or MariaDB target may be behind for a switch to begin."""
    batch_size: Annotated[int, Meta(ge=1, le=100_000, extra=RELOADABLE)] = 50
    """Strategy rolling: sessions that move at a time, of all workers together."""
    interval_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 1.0
    """Strategy rolling: pause between two batches, in seconds."""
    traffic_percentage: Annotated[float, Meta(ge=0.01, le=99, extra=RELOADABLE)] = 10.0
    """Strategy canary: share of the sessions, and of the clients that come, that tries the target."""
    validation_duration_s: Annotated[float, Meta(ge=1, le=86_400, extra=RELOADABLE)] = 60.0
    """Strategy canary: how long that share is compared with the rest, in seconds."""
    requests_min: Annotated[int, Meta(ge=100, le=1_000_000_000, extra=RELOADABLE)] = 200
    """Requests that must be there on either side of a comparison (canary, `verify_window_s`)."""
    latency_ratio_max: Annotated[float, Meta(ge=1.01, le=1_000, extra=RELOADABLE)] = 1.5
    """How many times as long requests may take in a comparison, by the geometric mean, before an engine is called worse."""
    error_percent_more_max: Annotated[float, Meta(ge=0, le=100, extra=RELOADABLE)] = 0.5
    """How many more requests of a hundred may fail, not counting errors that are the client's own (SQLSTATE classes 22, 23,
    42), before an engine is called worse."""
    verify_window_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 0.0
    """How long after a cutover the service is compared with what it was before, in seconds; if it is worse, and the engine
    that was left follows the new one (`reverse_replication`, or `replication` none), the service goes back by itself. 0: it is
    not compared."""
    when_busy: Annotated[Literal["refuse", "queue"], Meta(extra=RELOADABLE)] = "refuse"
    """What becomes of a switch that is asked for while another one of the service runs."""
    schedule_grace_s: Annotated[float, Meta(ge=0, le=86_400, extra=RELOADABLE)] = 60.0
    """How late a scheduled switch may begin, in seconds, because Turnout was down at its time; later it does not begin at
    all."""


class FailoverConfig(_Table, frozen=True, kw_only=True):
    """What happens when the active engine of a service fails."""

    automatic: Annotated[bool, Meta(extra=RELOADABLE)] = True
    """Another engine takes over by itself. Set it to false where something else promotes standbys."""
    probe_interval_s: Annotated[float, Meta(ge=0.05, le=60, extra=RELOADABLE)] = 0.5
    """Pause between two looks at each engine, in seconds. A worker that loses its connections has the active one looked
    at at once."""
    probe_timeout_s: Annotated[float, Meta(ge=0.05, le=60, extra=RELOADABLE)] = 1.0
    """How long an engine may take to answer a look, in seconds."""
    failures: Annotated[int, Meta(ge=1, le=100, extra=RELOADABLE)] = 3
    """Looks that fail in a row before an engine counts as failed. If all were refused by its host, that is enough; else
    the workers must not have had an answer from it either, and must be unable to log in."""
    starting_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 10.0
    """An engine that answers that it starts, recovers or shuts down is waited for so long before looks count as failed,
    in seconds."""
    lag_tolerance_ms: Annotated[float, Meta(ge=0, le=86_400_000, extra=RELOADABLE)] = 10_000.0
    """A standby that may lack commits of more than so many milliseconds before the failure is not promoted by itself. What
    may be missing is in the report."""
    commit_outcome: Literal["unknown", "resolve"] = "unknown"
    """What a client is told whose COMMIT was under way when the server was lost. `unknown`: `08007`. `resolve` (PostgreSQL,
    `replication` stream): the id of each transaction is asked for in the packet of its COMMIT, and when another server
    has taken over, that one is asked whether it has it: the client then gets COMMIT, or `40001`; `08007` where it is not
    certain or takes longer than `hold_ms_max`. It costs the server one small query for each COMMIT."""
    pause_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 30.0
    """After a failover no other begins by itself for so long, in seconds; doubled with each further one within an hour. 0:
    no pause."""


class HookConfig(_Table, frozen=True, kw_only=True):
    """Something of the operator's that runs with each switch of a service: a command or an HTTP call. `{switch}`,
    `{service}`, `{source}`, `{source_address}`, `{target}`, `{target_address}` are filled in."""

    at: Literal["before_fence", "promote", "after_release"]
    """`before_fence`: before anybody is held; `promote`: in place of Turnout's own promotion of the target, while clients
    wait; `after_release`: when clients work on the target."""
    command: list[str] = []
    """Program and arguments, without a shell."""
    url: str = ""
    """http:// or https:// address to call, in place of a command; an answer of 2xx is good."""
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    """Method of the call."""
    body: str = ""
    """Body of the call."""
    content_type: str = "application/json"
    """What the body is."""
    token: Secret | None = None
    """Sent as `Authorization: Bearer`."""
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 10.0
    """How long it may take, in seconds; then it is ended and has failed."""
    on_failure: Literal["abort", "ignore"] = "abort"
    """`abort`: the switch is undone, if it still can be; `ignore`: it goes on. Either way the report has what happened."""


class PolicyConfig(_Table, frozen=True, kw_only=True):
    """When Turnout switches by itself, and to which engine. Its name is the key, and no other policy of any service has
    it. See docs/policies.md. Policies can be set by command, too; those that stand in the file are changed there."""

    trigger: Literal["performance_degradation", "load_threshold", "error_rate", "failure", "manual", "scheduled"]
    """What makes it fire; the figures are those of the engine that serves. `performance_degradation`: requests take longer
    than `response_time_threshold_ms`. `load_threshold`: processor, memory or connections are above their thresholds.
    `error_rate`: more requests than `error_rate_threshold` end with an error that is not the client's own. `failure`: the
    engine has failed; the policy says who is to take over. `manual`: when an operator says so. `scheduled`: by
    `cron_expression`."""
    target_engine: str
    """Engine to go to."""
    strategy: Literal["graceful", "immediate", "rolling", "canary"] = "graceful"
    """How, as in `turnout switch --strategy`."""
    priority: Annotated[int, Meta(ge=0, le=255)] = 100
    """Of several that could fire at once the one with the highest number does; of equals the first by name."""
    enabled: bool = True
    """False: it is kept, and never fires."""
    window_duration: Annotated[int, Meta(ge=1, le=900)] = 60
    """The last so many seconds are looked at as a whole."""
    response_time_threshold_ms: Annotated[float, Meta(ge=0, le=3_600_000)] = 0.0
    """With `performance_degradation`: mean time from request to the end of its answer, in milliseconds, as Turnout sees it;
    a tenth of the requests must be slower, too, so that a few long ones are not mistaken for a slow engine."""
    error_rate_threshold: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """With `error_rate`: share of requests that ended with an error of the server, in percent."""
    cpu_threshold: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """With `load_threshold`: mean of `cpu_usage_percent`; 0: not looked at."""
    memory_threshold: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """With `load_threshold`: mean of `memory_usage_percent`; 0: not looked at."""
    connection_threshold: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """With `load_threshold`: mean of `active_connections`; 0: not looked at."""
    cron_expression: str = ""
    """With `scheduled`: minute, hour, day of month, month, day of week as in Debian's cron: `30 2 * * SUN`."""
    time_zone: str = "UTC"
    """With `scheduled`: zone of these times, by its name: `Europe/Berlin`."""
    cool_down: Annotated[int, Meta(ge=0, le=604_800)] = 300
    """Triggers that watch figures do not fire for so many seconds after any switch of the service, by whomever."""
    hysteresis: Annotated[float, Meta(ge=0, le=100)] = 10.0
    """Percent of the threshold. One that has fired fires again only after the figure has been so far below the threshold
    over a whole window."""
    max_switches_per_hour: Annotated[int, Meta(ge=1, le=3_600)] = 4
    """It does not fire once policies have begun so many switches of the service within an hour."""
    min_evidence: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    """Least number of requests in the window that time and errors are judged by."""


class RouteConfig(_Table, frozen=True, kw_only=True):
    """Statements that surely only read may go to another engine than the one that serves: to a standby, or to one that
    is kept for reports. PostgreSQL in transaction mode. The first rule that fits decides; see docs/routing.md."""

    to: list[str]
    """Engines to read from, in turn; those that are not fresh enough are passed over. If none is left, the engine that
    serves is asked."""
    statements: Literal["reads", "aggregates"] = "reads"
    """`aggregates`: only those that add up rows (an aggregate, GROUP BY or DISTINCT)."""
    users: list[str] = []
    """Only of these users; empty: of all."""
    databases: list[str] = []
    """Only in these databases; empty: in all."""
    applications: list[str] = []
    """Only with one of these as `application_name`; empty: with any."""
    pattern: str = ""
    """Only texts in which this regular expression (Python's, case does not matter) is found; empty: any."""
    functions: list[str] = []
    """Functions of your own that only read, by name (`schema.name` where they are called so). A statement that calls one
    which Turnout does not know stays with the engine that serves. Those of all rules count for all."""
    lag_ms_max: Annotated[int, Meta(ge=100, le=3_600_000)] = 2_000
    """How old what is read may be, in milliseconds. What a session has written itself it always reads."""


class ServiceConfig(_Table, frozen=True, kw_only=True):
    """What a client reaches: a set of engines, one of them active. Its name is the key."""

    protocol: Literal["postgresql", "mysql"]
    """Protocol of its engines and clients."""
    databases: list[str] = []
    """Database names clients reach it by; empty: every name that no other service of the protocol has."""
    pool_mode: Literal["session", "transaction"] = "session"
    """When a backend is given back: at the client's end, or at each boundary."""
    active: str
    """Engine that serves at the first start; from then on the state file knows."""
    admin: AdminConfig
    """Turnout's own account on its engines."""
    auth: AuthConfig
    """How its clients log in."""
    engine: dict[str, EngineConfig]
    """Its engines by name."""
    replication: Literal["stream", "logical", "none"] = "stream"
    """What keeps its engines equal. `stream`: a target is a physical standby of the source (PostgreSQL) or its replica by
    GTID. `logical`: PostgreSQL's subscriptions, also between major versions; schemas are yours to keep alike. `none`: all engines are addresses of
    one and the same server (another host name, a network path, a pooler in between), so that a switch fences
    nobody, waits for nothing and promotes nobody; whether it is one server is checked before each switch, unless `kept_equal_by`
    says otherwise."""
    kept_equal_by: Literal["one_server", "shared_storage", "multi_primary", "read_only"] = "one_server"
    """With `replication` none, why nothing can diverge. `one_server`: the engines are addresses of one. `shared_storage`: they
    have their data in common, and see to it themselves who writes. `multi_primary`: each takes writes and hands them on (Galera,
    Group Replication, BDR). `read_only`: nobody writes; checked before each switch."""
    replication_login: EngineLogin | None = None
    """Account with which one engine replicates from another; needed for `reverse_replication`."""
    reverse_replication: bool = False
    """After a switch the engine that was left is made to replicate from the new one, so that the way back is one
    command: MySQL and MariaDB by GTID, PostgreSQL (16 and newer) with `replication` logical. It needs
    `replication_login`."""
    switch: SwitchConfig = SwitchConfig()
    """Limits of its switches."""
    failover: FailoverConfig = FailoverConfig()
    """What happens when its active engine fails."""
    hook: list[HookConfig] = []
    """What else is to run with each switch, in this order."""
    policy: Annotated[dict[str, PolicyConfig], Meta(extra=RELOADABLE)] = {}
    """When Turnout switches by itself."""
    route: list[RouteConfig] = []
    """Which reads may go elsewhere, in this order."""
    pool_size: Annotated[int, Meta(ge=1, le=100_000, extra=RELOADABLE)] = 200
    """Most backends of one (engine, database, user), in all workers together. PgBouncer: `default_pool_size`."""
    min_pool_size: Annotated[int, Meta(ge=0, le=100_000, extra=RELOADABLE)] = 0
    """A pool that was used keeps at least so many backends open."""
    reserve_pool_size: Annotated[int, Meta(ge=0, le=100_000, extra=RELOADABLE)] = 0
    """Backends above `pool_size` for clients that have waited `reserve_pool_timeout_s`."""
    reserve_pool_timeout_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 5.0
    """How long a client waits before the reserve is touched, in seconds."""
    max_db_connections: Annotated[int, Meta(ge=0, le=1_000_000, extra=RELOADABLE)] = 0
    """Most backends of one (engine, database), all users and workers together; 0: no limit."""
    max_user_connections: Annotated[int, Meta(ge=0, le=1_000_000, extra=RELOADABLE)] = 0
    """Most backends of one (engine, user), all databases and workers together; 0: no limit."""
    query_wait_timeout_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 10.0
    """Longest wait of a client for a backend of a full pool, in seconds."""
    client_idle_timeout_s: Annotated[float, Meta(ge=0, extra=RELOADABLE)] = 0.0
    """A client that asks nothing outside of a transaction for so long is disconnected, in seconds; 0: never."""
    idle_transaction_timeout_s: Annotated[float, Meta(ge=0, extra=RELOADABLE)] = 0.0
    """A client that asks nothing inside of a transaction for so long is disconnected, in seconds; 0: never."""
    server_connect_timeout_s: Annotated[float, Meta(gt=0, le=300, extra=RELOADABLE)] = 10.0
    """Longest time to connect and log in at an engine, in seconds."""
    server_login_retry_s: Annotated[float, Meta(ge=0, le=3_600, extra=RELOADABLE)] = 1.0
    """After a login that an engine refused, or that did not reach it, no other is tried for so long, in seconds; clients
    who need one get the same error at once. Forgotten at each switch. An engine that says it is starting up (57P03) is
    waited for instead, within `query_wait_timeout_s`."""
    server_lifetime_s: Annotated[float, Meta(ge=0, extra=RELOADABLE)] = 3_600.0
    """Idle backends are closed when they have been open for so long, in seconds. 0: in session mode each backend serves
    one session only and ends with it, as without a proxy; in transaction mode they do not end by age."""
    server_idle_timeout_s: Annotated[float, Meta(ge=0, extra=RELOADABLE)] = 600.0
    """Idle backends of a pool are closed after this time, in seconds; 0: never."""
    server_check_query: Annotated[str, Meta(extra=RELOADABLE)] = "select 1"
    """What idle backends are asked now and then to see that they still answer; empty: they are not."""
    server_check_delay_s: Annotated[float, Meta(gt=0, extra=RELOADABLE)] = 30.0
    """How long a backend may be idle before it is asked (again), in seconds."""
    server_reset_query: Annotated[str, Meta(extra=RELOADABLE)] = ""
    """PostgreSQL: what makes a backend of session mode ready for the next client; empty: `DISCARD ALL`, which is right
    unless something else takes care of it."""
    ignore_startup_parameters: Annotated[list[str], Meta(extra=RELOADABLE)] = []
    """PostgreSQL: startup parameters that clients send and nobody shall see, also inside of `options`. All others are
    applied, or refused by name."""
    max_prepared_statements: Annotated[int, Meta(ge=1, le=100_000, extra=RELOADABLE)] = 200
    """PostgreSQL, transaction mode: most prepared statements kept on one backend; the one not used for longest goes."""
    slow_query_ms: Annotated[float, Meta(ge=0, le=3_600_000, extra=RELOADABLE)] = 0.0
    """Log a line for each request that takes longer, in milliseconds, with its text without values; 0: none. See
    docs/operation.md."""
    trace_ratio: Annotated[float, Meta(ge=0, le=1, extra=RELOADABLE)] = 0.0
    """Share of the traces, among those that their callers sample, that the service's queries are shown in, 0 to 1; 0: in none.
    Which ones, their ids say. It needs `[telemetry]`, and clients whose statements have a comment with a `traceparent`."""

    @property
    def asks_engine(self) -> bool:
        """Users that are in no file are looked up on the active engine."""
        is_mysql_without_file = self.protocol == "mysql" and self.auth.users is None and self.auth.method != "trust"
        return bool(self.auth.query) or is_mysql_without_file


AlertEngineFigure = Literal[
    "response_time_ms",
    "cpu_usage_percent",
    "memory_usage_percent",
    "active_connections",
    "query_rate_per_second",
    "error_rate_percent",
    "availability_percent",
]
AlertLag = Literal["replication_lag_ms", "replication_lag_bytes"]
AlertServiceFigure = Literal["sessions", "sessions_held", "clients_waiting", "running_switch_s"]
AlertEngineState = Literal["engine_down", "replication_broken", "former_primary_writes"]
AlertState = Literal["service_takes_no_writes", "automation_off", "worker_down"]
AlertEvent = Literal[
    "switch_failed", "switch_undone", "failover", "failover_impossible", "policy_refused", "data_differs"
]
AlertWhen = Literal[AlertEngineFigure, AlertLag, AlertServiceFigure, AlertEngineState, AlertState, AlertEvent]
"""What an alert is about: `proxy.control.alerts.watched` has each."""

ALERT_FIGURES: Final = frozenset(get_args(AlertEngineFigure) + get_args(AlertLag) + get_args(AlertServiceFigure))
"""Those that are numbers, and need `above` or `below`."""

ALERT_EVENTS: Final = frozenset(get_args(AlertEvent))
"""Those that happen and are over."""

ALERTS_OF_ENGINES: Final = frozenset(get_args(AlertEngineFigure) + get_args(AlertLag) + get_args(AlertEngineState))
"""Those that there is one of for each engine."""

Severity = Literal["info", "warning", "critical"]


class AlertRuleConfig(_Table, frozen=True, kw_only=True):
    """Something that people are to be told of. Its name is the key; one that is called like a rule of Turnout's own takes
    its place. See docs/alerts.md."""

    when: AlertWhen
    """A figure (with `above` or `below`), a state that holds or not, or an event. docs/alerts.md has the table."""
    above: float | None = None
    """Of a figure: alert while it is above."""
    below: float | None = None
    """Of a figure: alert while it is below."""
    for_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """How long that must hold before the alert fires, in seconds; until then it is pending. An event fires at once."""
    keep_firing_for_s: Annotated[float, Meta(ge=0, le=604_800)] | None = None
    """How long it goes on firing when that does not hold any more, in seconds, so that what comes and goes is one alert.
    Default: 0, and of an event 3600."""
    severity: Severity = "warning"
    """How bad it is."""
    enabled: bool = True
    """False: it is never looked at; so is a rule of Turnout's own switched off."""
    services: list[str] = []
    """Only of these services; empty: of all."""
    engines: list[str] = []
    """Only of these engines; empty: of all."""
    of: Literal["all", "active", "others"] = "all"
    """Which engines of a service: all, the one that serves, or the others."""
    receivers: list[str] = []
    """Who is told; empty: every receiver."""


class ReceiverConfig(_Table, frozen=True, kw_only=True):
    """Somebody who is told of alerts. Its name is the key."""

    kind: Literal["webhook", "slack", "email", "command"]
    """`webhook`: an HTTP POST with JSON as Prometheus' Alertmanager sends it. `slack`: one in the form of Slack's incoming
    webhooks, which Mattermost, Rocket.Chat and Discord (`/slack`) take, too. `email`: by SMTP. `command`: a program that
    gets the JSON of `webhook` on its stdin."""
    url: Secret | None = None
    """Of `webhook` and `slack`: the http:// or https:// address. It is a secret: whoever has it can write there."""
    token: Secret | None = None
    """Of `webhook`: sent as `Authorization: Bearer`."""
    server: str = ""
    """Of `email`: host:port of the mail server."""
    tls: Literal["starttls", "tls", "none"] = "starttls"
    """Of `email`: `starttls` (port 587 mostly, or 25), `tls` from the first byte on (465), or none at all."""
    ca_file: str = ""
    """CA certificates that vouch for the receiver's server, in PEM form; relative to the config file. Empty: those that
    are known to everybody."""
    user: str = ""
    """Of `email`: account at the mail server; empty: no login."""
    password: Secret | None = None
    """Of `email`: its password."""
    sender: str = ""
    """Of `email`: address that the mail comes from."""
    to: list[str] = []
    """Of `email`: addresses that it goes to."""
    command: list[str] = []
    """Of `command`: program and arguments, without a shell."""
    severities: list[Severity] = []
    """Only these; empty: all."""
    send_resolved: bool = True
    """Tell when an alert is over, too."""
    timeout_s: Annotated[float, Meta(gt=0, le=120)] = 10.0
    """How long one try may take, in seconds."""
    retry_for_s: Annotated[float, Meta(ge=0, le=86_400)] = 900.0
    """A message that cannot be delivered is tried again after a second, then after twice as long each time up to a minute,
    for so long, in seconds; then it has failed, which is shown. 0: one try."""


class AlertsConfig(_Table, frozen=True, kw_only=True):
    """Of what, and how, people are told; a reload applies all of it. See docs/alerts.md."""

    defaults: Annotated[bool, Meta(extra=RELOADABLE)] = True
    """Watch for what goes wrong by Turnout's own rules, too; docs/alerts.md lists them. They are shown whether there is a
    receiver or not."""
    repeat_interval_s: Annotated[float, Meta(ge=60, le=604_800, extra=RELOADABLE)] = 14_400.0
    """An alert that goes on firing is told again after so long, in seconds."""
    rule: Annotated[dict[str, AlertRuleConfig], Meta(extra=RELOADABLE)] = {}
    """Rules of your own."""
    receiver: Annotated[dict[str, ReceiverConfig], Meta(extra=RELOADABLE)] = {}
    """Who is told, by name."""


class Config(_Table, frozen=True, kw_only=True):
    """The whole file."""

    control: ControlConfig = ControlConfig()
    """The control port."""
    console: ConsoleConfig = ConsoleConfig()
    """PgBouncer's admin console."""
    listener: list[ListenerConfig]
    """Ports for clients."""
    service: dict[str, ServiceConfig]
    """Services by name."""
    log: LogConfig = LogConfig()
    """The log."""
    alerts: AlertsConfig = AlertsConfig()
    """Of what, and how, people are told."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """Traces."""
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Worker processes; each takes its share of the clients."""
    state_file: str = "turnout.sqlite"
    """Who is active, the journal and the reports; relative to the config file."""
    runtime_dir: str = ""
    """Folder of the unix socket; empty: `turnout` below XDG_RUNTIME_DIR, or beside the state file."""
    max_client_conn: Annotated[int, Meta(ge=1, le=1_000_000, extra=RELOADABLE)] = 10_000
    """Most clients in all workers together."""
    client_login_timeout_s: Annotated[float, Meta(gt=0, le=600, extra=RELOADABLE)] = 60.0
    """Longest time a client may take to log in, in seconds."""


# --- loading ------------------------------------------------------------------------------------------------------

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""Names of services and engines: they stand in URLs, on command lines and in metric labels."""

CONFIG_BYTES_MAX: Final = 1024 * 1024
"""No config is longer; a longer file is something else."""

SECRET_BYTES_MAX: Final = 16 * 1024 * 1024
"""Most bytes of a password or users file: some 80,000 users with SCRAM-SHA-256 verifiers."""

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


_METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "postgresql": ("trust", "password", "md5", "scram-sha-256", "cert", "hba"),
    "mysql": (
        "trust",
        "mysql_native_password",
        "caching_sha2_password",
        "sha256_password",
        "client_ed25519",
        "mysql_clear_password",
    ),
}

_NO_DEFAULT: Final = msgspec.NODEFAULT


class ConfigErrors(ConfigError):
    """Several errors of one config file; `errors` has each, and the text is one line for each."""

    def __init__(self, errors: list[ConfigError]) -> None:
        assert errors
        super().__init__(errors[0].where, errors[0].text)
        self.errors = errors
        self.text = "\n".join(error.text for error in errors)
        self.args = (self.text,)


def load(path: str | Path, *, environ: Mapping[str, str] | None = None) -> Config:
    """The config of the file at `path`, checked, with secrets resolved and `state_file`, `runtime_dir` absolute.

    `environ` is where secrets of the form `{ env = … }` are looked up (default: this process's environment).
    Raises ConfigErrors, with file, line and key of everything that is wrong.
    """
    path = Path(path)
    text = _read_text(path)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigErrors([_toml_error(path, text, error)]) from error
    problems = _Problems(path, key_lines(text))
    checked = _Reader(problems).table(_struct(Config), raw, ())
    problems.raise_any()
    config = msgspec.convert(checked, Config)
    _check_meaning(config, problems)
    problems.raise_any()
    resolved = _with_paths(_Resolver(problems, os.environ if environ is None else environ).resolve(config), path)
    _check_tls(resolved, problems)
    problems.raise_any()
    return resolved


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 address stands in brackets. Raises ValueError with what is wrong."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise ValueError("expected [address]:port")
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            raise ValueError("between the brackets must be an IPv6 address") from None
        port = rest[1:]
    else:
        host, colon, port = text.rpartition(":")
        if not colon:
            raise ValueError("expected host:port, and the port is missing")
        if ":" in host:
            raise ValueError("an IPv6 address must stand in brackets: [::1]:5432")
        if not host:
            raise ValueError("expected host:port, and the host is missing; 0.0.0.0 means every address")
        if re.search(r"[\s/@]", host):
            raise ValueError("the host has a character that no host name has")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise ValueError("the port must be a number from 1 to 65535")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Only this machine can reach it. A name other than `localhost` is not looked up, and counts as not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def encode_effective(config: Config) -> bytes:
    """The config with its secrets, for the workers: `ipc.Configure.config`. Never written to a file or a log."""
    return msgspec.json.encode(config)


def decode_effective(data: bytes) -> Config:
    """What `encode_effective` made. Raises msgspec.DecodeError."""
    return msgspec.json.decode(data, type=Config)


def masked(config: Config) -> dict[str, Any]:
    """The config for showing: each value as `{"value": …, "origin": "default" | "file"}`, secrets as `***`.

    A value that equals its default counts as default, whoever wrote it.
    """
    shown = _masked(config, _struct(Config))
    assert isinstance(shown, dict)
    return shown


def reload_diff(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """What a reload from `old` to `new` changes: lines that are applied, and lines that need a restart.

    A line is `service.shop.pool_size: 200 -> 300`; of a secret only the key is told.
    """
    applied: list[str] = []
    needs_restart: list[str] = []
    for path, before, after, is_reloadable in _differences(_struct(Config), old, new, (), False):
        line = spell(path) if before is None and after is None else f"{spell(path)}: {before} -> {after}"
        (applied if is_reloadable else needs_restart).append(line)
    return applied, needs_restart


# --- step 1: text -------------------------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigErrors([ConfigError(str(path), f"cannot be read: {error.strerror}")]) from error
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigErrors([ConfigError(str(path), f"is longer than {CONFIG_BYTES_MAX} bytes; not a config file")])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigErrors([ConfigError(f"{path}:{line}", "is not UTF-8, which TOML must be")]) from error


def _toml_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> ConfigError:
    """The parser gives the place in its message only, and counts the end of the document as a place."""
    said = str(error)
    found = re.search(r" \(at line (\d+), column (\d+)\)$", said)
    if found is None:
        return ConfigError(
            f"{path}:{text.count(chr(10)) + 1}", f"not TOML: {said.removesuffix(' (at end of document)')}"
        )
    return ConfigError(f"{path}:{found[1]}", f"not TOML: {said[: found.start()]} (column {found[2]})")


class _Problems:
    """Collects what is wrong, each with file, line and key."""

    def __init__(self, path: Path, lines: Mapping[KeyPath, int]) -> None:
        self.path = path
        self._lines = lines
        self._errors: list[tuple[int, ConfigError]] = []

    def add(self, key: KeyPath, text: str, *, hint: str = "") -> None:
        line = self._line(key)
        where = f"{self.path}:{line}" + (f": {spell(key)}" if key else "")
        self._errors.append((line, ConfigError(where, text, hint=hint)))

    def add_elsewhere(self, where: str, text: str) -> None:
        """Something wrong in a file that the config names."""
        self._errors.append((1 << 30, ConfigError(where, text)))

    def raise_any(self) -> None:
        if self._errors:
            raise ConfigErrors([error for _line, error in sorted(self._errors, key=lambda found: found[0])])

    def _line(self, key: KeyPath) -> int:
        """Its own line, or that of the nearest table above it."""
        for size in range(len(key), 0, -1):
            line = self._lines.get(key[:size])
            if line is not None:
                return line
        return 1


# --- step 2: keys, types, ranges ----------------------------------------------------------------------------------


def _struct(of: type[msgspec.Struct]) -> inspect.StructType:
    described = inspect.type_info(of)
    assert isinstance(described, inspect.StructType)
    return described


def _bare(kind: inspect.Type) -> tuple[inspect.Type, bool]:
    """The type without its Meta, and whether a reload applies it."""
    is_reloadable = False
    while isinstance(kind, inspect.Metadata):
        is_reloadable = is_reloadable or bool((kind.extra or {}).get("reload"))
        kind = kind.type
    return kind, is_reloadable


class _Reader:
    """Checks a parsed file against the structs. Returns what it read; what is wrong goes to `problems`."""

    def __init__(self, problems: _Problems) -> None:
        self._problems = problems

    def table(self, of: inspect.StructType, raw: Any, at: KeyPath) -> Any:
        if not isinstance(raw, dict):
            self._problems.add(at, f"expected a table, got {_said(raw)}")
            return raw
        known = {field.encode_name: field for field in of.fields}
        if of.cls is Secret:
            known.pop("value")
            if "value" in raw:
                self._problems.add(
                    (*at, "value"), "a secret does not stand in the config file; name a variable (env) or a file (file)"
                )
                return raw
        for key in raw:
            if key not in known:
                self._problems.add((*at, key), _unknown(key, known))
        for name, field in known.items():
            if name in raw:
                self._value(field.type, raw[name], (*at, name))
            elif field.required:
                shape = "table" if isinstance(_bare(field.type)[0], inspect.StructType | inspect.DictType) else "key"
                self._problems.add(at, f'the {shape} "{name}" is missing')
        if of.cls is Secret and not (raw.keys() - known.keys()) and len(raw) != 1:
            self._problems.add(at, 'expected exactly one of "env" and "file"')
        return raw

    def _value(self, kind: inspect.Type, raw: Any, at: KeyPath) -> None:
        kind, _is_reloadable = _bare(kind)
        match kind:
            case inspect.StructType():
                self.table(kind, raw, at)
            case inspect.UnionType():  # `X | None`: TOML has no null, so what stands there is X
                self._value(next(one for one in kind.types if not isinstance(one, inspect.NoneType)), raw, at)
            case inspect.DictType():
                self._names(kind, raw, at)
            case inspect.ListType():
                if not isinstance(raw, list):
                    self._problems.add(at, f"expected an array, got {_said(raw)}")
                    return
                for index, item in enumerate(raw):
                    self._value(kind.item_type, item, (*at, index))
            case inspect.LiteralType():
                if raw not in kind.values:
                    self._problems.add(
                        at, f"expected {_choice(kind.values)}, got {_said(raw)}{_meant(raw, kind.values)}"
                    )
            case inspect.StrType():
                if not isinstance(raw, str):
                    self._problems.add(at, f"expected text in quotes, got {_said(raw)}")
            case inspect.IntType():
                self._number(kind, raw, at, isinstance(raw, int) and not isinstance(raw, bool), "a whole number")
            case inspect.FloatType():
                is_number = isinstance(raw, int | float) and not isinstance(raw, bool) and math.isfinite(raw)
                self._number(kind, raw, at, is_number, "a number")
            case inspect.BoolType():
                if not isinstance(raw, bool):
                    self._problems.add(at, f"expected true or false, got {_said(raw)}")
            case _:
                raise AssertionError(f"the config has a type the reader does not know: {kind}")

    def _names(self, kind: inspect.DictType, raw: Any, at: KeyPath) -> None:
        if not isinstance(raw, dict):
            self._problems.add(at, f"expected a table of tables, got {_said(raw)}")
            return
        if not raw:
            self._problems.add(at, f"at least one [{spell((*at, 'NAME'))}] is needed")
        for name, item in raw.items():
            if not NAME.fullmatch(name):
                self._problems.add(
                    (*at, name), "a name has letters, digits, _ . - only, at most 63, a letter or digit first"
                )
            self._value(kind.value_type, item, (*at, name))

    def _number(
        self, kind: inspect.IntType | inspect.FloatType, raw: Any, at: KeyPath, is_right_type: bool, what: str
    ) -> None:
        is_in_range = is_right_type and (
            (kind.ge is None or raw >= kind.ge)
            and (kind.gt is None or raw > kind.gt)
            and (kind.le is None or raw <= kind.le)
            and (kind.lt is None or raw < kind.lt)
        )
        if not is_in_range:
            self._problems.add(at, f"expected {what}{spell_range(kind)}, got {_said(raw)}")


def spell_range(kind: inspect.IntType | inspect.FloatType) -> str:
    """` from 1 to 64`, ` above 0, at most 300`, or nothing."""
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge:g} to {kind.le:g}" if kind.le < 1e5 else f" from {kind.ge} to {kind.le}"
    parts = []
    if kind.ge is not None:
        parts.append(f"not below {kind.ge}")
    if kind.gt is not None:
        parts.append(f"above {kind.gt}")
    if kind.le is not None:
        parts.append(f"at most {kind.le}")
    if kind.lt is not None:
        parts.append(f"below {kind.lt}")
    return " " + ", ".join(parts) if parts else ""


def _unknown(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f'unknown key; did you mean "{near[0]}"?'
    return f"unknown key; here may stand: {', '.join(known)}"


def _meant(raw: Any, values: tuple[Any, ...]) -> str:
    near = difflib.get_close_matches(raw.lower(), values, n=1, cutoff=0.5) if isinstance(raw, str) else []
    return f'; did you mean "{near[0]}"?' if near else ""


def _choice(values: tuple[Any, ...]) -> str:
    shown = [f'"{value}"' for value in values]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " or " + shown[-1]


def _said(raw: Any) -> str:
    """A value of the file as an error message quotes it."""
    match raw:
        case bool():
            return "true" if raw else "false"
        case str():
            return f'"{raw}"' if len(raw) <= 60 else f'"{raw[:57]}..."'
        case dict():
            return "a table"
        case list():
            return "an array"
        case _:
            return str(raw)


# --- step 3: values fit each other --------------------------------------------------------------------------------


def _check_meaning(config: Config, problems: _Problems) -> None:
    _check_ports(config, problems)
    _check_alerts(config, problems)
    _check_telemetry(config, problems)
    _check_balancers(config, problems)
    _check_console(config.console, problems)
    if not config.listener:
        problems.add(("listener",), "at least one [[listener]] is needed")
    if not config.state_file:
        problems.add(("state_file",), "is empty; it needs a path")
    listened = {listener.protocol for listener in config.listener}
    served = {service.protocol for service in config.service.values()}
    for index, listener in enumerate(config.listener):
        if listener.protocol not in served:
            problems.add(("listener", index, "protocol"), f'no service has protocol = "{listener.protocol}"')
    claimed: dict[tuple[str, str | None], str] = {}
    policies: dict[str, str] = {}
    for name, service in config.service.items():
        at: KeyPath = ("service", name)
        if service.protocol not in listened:
            problems.add((*at, "protocol"), f'no [[listener]] has protocol = "{service.protocol}": nobody can reach it')
        _check_databases(name, service, claimed, problems)
        if service.active not in service.engine:
            near = difflib.get_close_matches(service.active, service.engine, n=1, cutoff=0.5)
            meant = f'; did you mean "{near[0]}"?' if near else f"; there are: {', '.join(service.engine)}"
            problems.add((*at, "active"), f'no engine of this service is called "{service.active}"{meant}')
        addresses: dict[tuple[str, int], str] = {}
        for engine_name, engine in service.engine.items():
            where = (*at, "engine", engine_name, "address")
            address = _address(engine.address, where, problems)
            if address is not None and addresses.setdefault(address, engine_name) != engine_name:
                problems.add(where, f'engine "{addresses[address]}" has the same address')
        _check_auth(service, at, problems)
        if service.switch.on_drain_expired == "leave" and service.replication != "none":
            problems.add((*at, "switch", "on_drain_expired"), '"leave" needs replication = "none"')
        if service.kept_equal_by != "one_server" and service.replication != "none":
            problems.add((*at, "kept_equal_by"), 'needs replication = "none": else replication keeps them equal')
        can_resolve = service.protocol == "postgresql" and service.replication == "stream"
        if service.failover.commit_outcome == "resolve" and not can_resolve:
            text = '"resolve" is for protocol = "postgresql" with replication = "stream"'
            problems.add((*at, "failover", "commit_outcome"), text)
        for index, hook in enumerate(service.hook):
            if bool(hook.command) == bool(hook.url):
                problems.add((*at, "hook", index), 'expected exactly one of "command" and "url"')
            elif hook.url and not hook.url.startswith(("http://", "https://")):
                problems.add((*at, "hook", index, "url"), "expected an address that begins with http:// or https://")
            if hook.at == "promote" and hook.on_failure == "ignore":
                problems.add((*at, "hook", index, "on_failure"), "what promotes the target cannot be ignored")
            if hook.at == "promote" and service.replication == "none":
                problems.add((*at, "hook", index, "at"), 'nobody is promoted with replication = "none"')
        for policy_name, policy in service.policy.items():
            for key, text in policy_faults(policy, service):
                problems.add((*at, "policy", policy_name, key) if key else (*at, "policy", policy_name), text)
            if (owner := policies.setdefault(policy_name, name)) != name:
                problems.add((*at, "policy", policy_name), f'service "{owner}" has a policy of this name already')
        _check_routes(service, at, problems)
        for engine_name, engine in service.engine.items():
            _check_load(engine.load, (*at, "engine", engine_name, "load"), problems)
        if service.reverse_replication and service.replication_login is None:
            problems.add((*at, "reverse_replication"), 'needs "replication_login": the account that replicates')
        if service.reverse_replication and service.protocol == "postgresql" and service.replication != "logical":
            text = 'needs replication = "logical"; a physical standby is made by pg_rewind or a base backup'
            problems.add((*at, "reverse_replication"), text)
        if service.replication == "logical" and service.protocol == "mysql":
            problems.add((*at, "replication"), '"logical" is for postgresql; MySQL replicates by "stream"')


def _check_routes(service: ServiceConfig, at: KeyPath, problems: _Problems) -> None:
    for index, rule in enumerate(service.route):
        here = (*at, "route", index)
        if service.protocol != "postgresql":
            problems.add(here, "is for postgresql only")
        elif service.pool_mode != "transaction":
            problems.add(here, 'needs pool_mode = "transaction": in session mode a client keeps its backend')
        elif service.replication == "logical":
            problems.add(here, 'needs replication = "stream" or "none": only there it is known how fresh an engine is')
        for number, name in enumerate(rule.to):
            if name not in service.engine:
                text = f'no engine of this service is called "{name}"; there are: {", ".join(service.engine)}'
                problems.add((*here, "to", number), text)
        if not rule.to:
            problems.add((*here, "to"), "is empty; it needs an engine to read from")
        try:
            re.compile(rule.pattern)
        except re.error as error:
            problems.add((*here, "pattern"), f"is no regular expression: {error}")


def _check_alerts(config: Config, problems: _Problems) -> None:
    engines = {name for service in config.service.values() for name in service.engine}
    named = {"services": set(config.service), "engines": engines, "receivers": set(config.alerts.receiver)}
    for name, rule in config.alerts.rule.items():
        at: KeyPath = ("alerts", "rule", name)
        said = [key for key in ("above", "below") if getattr(rule, key) is not None]
        if rule.when in ALERT_FIGURES and len(said) != 1:
            problems.add(at, f'"{rule.when}" is a figure: expected exactly one of "above" and "below"')
        elif rule.when not in ALERT_FIGURES and said:
            problems.add((*at, said[0]), f'"{rule.when}" is no figure: nothing is above or below')
        if rule.when in ALERT_EVENTS and rule.for_s:
            problems.add((*at, "for_s"), f'"{rule.when}" is an event: it fires at once')
        if rule.when not in ALERTS_OF_ENGINES and (rule.engines or rule.of != "all"):
            key = "engines" if rule.engines else "of"
            problems.add((*at, key), f'"{rule.when}" is not about engines')
        for key, known in named.items():
            for index, one in enumerate(getattr(rule, key)):
                if one not in known:
                    there = f"there are: {', '.join(sorted(known))}" if known else "there are none"
                    problems.add((*at, key, index), f'"{one}" is unknown; {there}')
    for name, receiver in config.alerts.receiver.items():
        for key, text in _receiver_faults(receiver):
            problems.add(("alerts", "receiver", name, *([key] if key else [])), text)


def _receiver_faults(receiver: ReceiverConfig) -> Iterator[tuple[str, str]]:
    needs = {"webhook": ("url",), "slack": ("url",), "email": ("server", "sender", "to"), "command": ("command",)}
    for key in needs[receiver.kind]:
        if not getattr(receiver, key):
            yield "", f'"{key}" is missing; kind "{receiver.kind}" needs it'
    if receiver.kind != "email":
        return
    if receiver.server:
        try:
            parse_address(receiver.server)
        except ValueError as error:
            yield "server", f'"{receiver.server}": {error}'
    if bool(receiver.user) != bool(receiver.password):
        yield "", '"user" and "password" go together'
    if receiver.password is not None and receiver.tls == "none":
        yield "tls", '"none" with a password: everybody on the way could read it; set "starttls" or "tls"'
    for key, texts in (("sender", [receiver.sender]), ("to", receiver.to)):
        for text in texts:
            if text and not re.fullmatch(r"[!-~]+@[!-~]+", text):
                yield key, f'"{text}" is no address of the form name@host'


def _check_load(load: LoadConfig, at: KeyPath, problems: _Problems) -> None:
    if load.source == "node_exporter":
        _address(load.node_exporter, (*at, "node_exporter"), problems)
    if load.source == "query" and not load.cpu_query and not load.memory_query:
        problems.add(at, '"query" needs "cpu_query" or "memory_query"')


CRON_CHARS_MAX: Final = 200
"""No schedule that a person can read is longer."""


def policy_faults(policy: PolicyConfig, service: ServiceConfig) -> Iterator[tuple[str, str]]:
    """What cannot be about a policy of this service: the key, or nothing, and a line that says what to change."""
    if policy.target_engine not in service.engine:
        names = ", ".join(service.engine)
        yield "target_engine", f'no engine of this service is called "{policy.target_engine}"; there are: {names}'
    match policy.trigger:
        case "performance_degradation" if not policy.response_time_threshold_ms:
            yield "response_time_threshold_ms", "is missing; the trigger needs a time above 0 milliseconds"
        case "error_rate" if not policy.error_rate_threshold:
            yield "error_rate_threshold", "is missing; the trigger needs a share above 0 percent"
        case "load_threshold" if not (policy.cpu_threshold or policy.memory_threshold or policy.connection_threshold):
            yield "", "the trigger needs cpu_threshold, memory_threshold or connection_threshold"
        case "scheduled":
            yield from _schedule_faults(policy)
        case _:
            return


def _schedule_faults(policy: PolicyConfig) -> Iterator[tuple[str, str]]:
    expression = policy.cron_expression
    if len(expression) > CRON_CHARS_MAX or len(expression.split()) != 5:
        yield "cron_expression", "expected five fields: minute, hour, day of month, month, day of week"
    else:
        try:
            next(CronSim(expression, datetime.now(UTC)))
        except CronSimError as error:
            yield "cron_expression", f'"{expression}": {str(error).lower()}'
        except StopIteration:
            yield "cron_expression", f'"{expression}" never comes'
    try:
        zoneinfo.ZoneInfo(policy.time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        yield "time_zone", f'"{policy.time_zone}" is no time zone; expected a name like "Europe/Berlin"'


def _check_databases(
    name: str, service: ServiceConfig, claimed: dict[tuple[str, str | None], str], problems: _Problems
) -> None:
    at = ("service", name, "databases")
    for index, database in enumerate(service.databases):
        owner = claimed.setdefault((service.protocol, database), name)
        if not database:
            problems.add((*at, index), "a database name is empty")
        elif owner != name:
            problems.add((*at, index), f'service "{owner}" has "{database}" already')
        elif database in service.databases[:index]:
            problems.add((*at, index), f'"{database}" stands here twice')
    if not service.databases and (owner := claimed.setdefault((service.protocol, None), name)) != name:
        problems.add(at, f'service "{owner}" takes every other {service.protocol} database already; name some here')


def _check_auth(service: ServiceConfig, at: KeyPath, problems: _Problems) -> None:
    fitting = _METHODS[service.protocol]
    if service.auth.method not in fitting:
        problems.add(
            (*at, "auth", "method"),
            f'"{service.auth.method}" is not for {service.protocol}; expected {_choice(fitting)}',
        )
    auth = service.auth
    if auth.users is None and not service.asks_engine and auth.method not in ("trust", "cert", "hba"):
        problems.add(
            (*at, "auth"), '"users" is missing; name a file, or let the engine be asked: auth_query, auth_user'
        )
    if auth.method == "hba" and auth.hba is None:
        problems.add((*at, "auth"), '"hba" is missing; method "hba" needs a file with rules')
    if auth.auth_query and "$1" not in auth.auth_query:
        problems.add((*at, "auth", "auth_query"), "has no $1, which stands for the user's name")
    if auth.auth_dbname and not service.asks_engine:
        problems.add((*at, "auth", "auth_dbname"), "is for auth_query, which is not set")


def _check_console(console: ConsoleConfig, problems: _Problems) -> None:
    if console.is_on and console.auth is None:
        text = (
            '"auth" is missing: how do these users log in? auth = { method = "scram-sha-256", users = { file = "…" } }'
        )
        problems.add(("console",), text)
    if console.auth is not None and console.auth.query:
        problems.add(("console", "auth"), "the console's users are in a file; no engine is asked for them")
    service = console.as_service()
    if service is not None:
        _check_auth(service, ("console",), problems)


def _check_balancers(config: Config, problems: _Problems) -> None:
    for index, listener in enumerate(config.listener):
        for number, network in enumerate(listener.proxy_protocol):
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                problems.add(("listener", index, "proxy_protocol", number), f"expected a network: {error}")


def _check_ports(config: Config, problems: _Problems) -> None:
    taken: dict[int, list[tuple[str, str]]] = {}
    ports = [(("control", "listen"), config.control.listen)]
    ports += [(("listener", index, "listen"), one.listen) for index, one in enumerate(config.listener)]  # type: ignore[misc]
    for key, text in ports:
        address = _address(text, key, problems)
        if address is None:
            continue
        host, port = address
        for other_host, other_key in taken.setdefault(port, []):
            if host == other_host or _is_wildcard(host) or _is_wildcard(other_host):
                problems.add(key, f"port {port} is used by {other_key} already")
                break
        taken[port].append((host, spell(key)))
    address = _address(config.control.listen, ("control", "listen"), None)
    if address is not None:
        _check_control(config.control, address[0], problems)


def _check_control(control: ControlConfig, host: str, problems: _Problems) -> None:
    """Nobody else's machine reaches it without access control and TLS, unless the file says so in so many words."""
    at: KeyPath = ("control",)
    if not is_loopback(host):
        if not control.has_access_control and not control.allow_without_access_control:
            problems.add(
                at,
                f'"token" is missing, or a [control.caller.NAME]; without one, only a loopback address may be listened on, '
                f"not {host}",
            )
        if not control.tls_cert_file and not control.allow_without_tls:
            problems.add(
                at,
                f'"tls_cert_file" is missing; without TLS, only a loopback address may be listened on, not {host}, unless '
                '"allow_without_tls" says so',
            )
    for name, caller in control.caller.items():
        if caller.token is None and not caller.certificate:
            problems.add((*at, "caller", name), 'has neither "token" nor "certificate": nobody could be it')
        if caller.certificate and control.tls_client_cert == "none":
            problems.add((*at, "caller", name, "certificate"), 'needs tls_client_cert = "optional" or "required"')
    if control.tls_client_cert != "none" and not (control.tls_cert_file and control.tls_ca_file):
        problems.add((*at, "tls_client_cert"), 'needs "tls_cert_file" and "tls_ca_file"')
    jwt = control.jwt
    if jwt is None:
        return
    if jwt.jwks_url and jwt.jwks_file:
        problems.add((*at, "jwt"), 'has both "jwks_url" and "jwks_file"; one says where the keys are')
    for key, url in (
        ("issuer", jwt.issuer if not jwt.jwks_url and not jwt.jwks_file else ""),
        ("jwks_url", jwt.jwks_url),
    ):
        if url and not _is_safe_url(url):
            problems.add((*at, "jwt", key), "expected an address that begins with https://: the keys come from there")
    if not jwt.algorithms:
        problems.add((*at, "jwt", "algorithms"), "is empty: no token would be good")


def _check_telemetry(config: Config, problems: _Problems) -> None:
    telemetry = config.telemetry
    at: KeyPath = ("telemetry", "endpoint")
    if not telemetry.endpoint:
        for name, service in config.service.items():
            if service.trace_ratio:
                problems.add(("service", name, "trace_ratio"), 'needs [telemetry] with an "endpoint" to send spans to')
        return
    try:
        parts = urlsplit(telemetry.endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_url = False
    if not is_url:
        problems.add(at, "expected an address like http://collector:4318/v1/traces")
    elif telemetry.headers is not None and not _is_safe_url(telemetry.endpoint):
        problems.add(at, "expected an address that begins with https://: whoever is on the way could read the headers")


def _pairs(headers: str) -> list[tuple[str, str, str]]:
    return [part.partition("=") for part in headers.split(",")]


def _is_safe_url(url: str) -> bool:
    """Whoever changes what comes from there on the way could make keys of his own."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def _check_tls(config: Config, problems: _Problems) -> None:
    """Make every context once: what is wrong with a certificate is told now, not to the first client."""
    try:
        control_tls(config.control)
    except TlsProblem as problem:
        problems.add(("control", f"tls_{problem.key}"), problem.text)
    for receiver_name, receiver in config.alerts.receiver.items():
        try:
            receiver_tls(receiver.ca_file)
        except TlsProblem as problem:
            problems.add(("alerts", "receiver", receiver_name, problem.key), problem.text)
    for index, listener in enumerate(config.listener):
        at: KeyPath = ("listener", index)
        if listener.protocol != "mysql" and listener.client_tls_sslmode in MYSQL_NAMES:
            problems.add((*at, "client_tls_sslmode"), _only_of_mysql(listener.client_tls_sslmode))
            continue
        try:
            listener_tls(listener)
        except TlsProblem as problem:
            problems.add((*at, f"client_tls_{problem.key}"), problem.text)
    for name, service in config.service.items():
        for engine_name, engine in service.engine.items():
            if service.protocol != "mysql" and engine.server_compression != "none":
                text = "PostgreSQL has no compression"
                problems.add(("service", name, "engine", engine_name, "server_compression"), text)
            key = ("service", name, "engine", engine_name, "server_tls_sslmode")
            if service.protocol != "mysql" and engine.server_tls_sslmode in MYSQL_NAMES:
                problems.add(key, _only_of_mysql(engine.server_tls_sslmode))
                continue
            if service.protocol == "mysql" and engine.server_tls_sslmode == "allow":
                problems.add(key, '"allow" is for postgresql only; a MySQL server does not tell that it wants TLS')
                continue
            try:
                engine_tls(engine, service.protocol)
            except TlsProblem as problem:
                problems.add(("service", name, "engine", engine_name, f"server_tls_{problem.key}"), problem.text)


def _only_of_mysql(setting: str) -> str:
    return f'"{setting}" is for mysql only; for postgresql it is called "{MYSQL_NAMES[setting]}"'


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _address(text: str, key: KeyPath, problems: _Problems | None) -> tuple[str, int] | None:
    try:
        return parse_address(text)
    except ValueError as error:
        if problems is not None:
            problems.add(key, f'"{text}": {error}')
        return None


# --- step 4: secrets ----------------------------------------------------------------------------------------------


class _Resolver:
    """Fills in `Secret.value`. What it reads is never quoted."""

    def __init__(self, problems: _Problems, environ: Mapping[str, str]) -> None:
        self._problems = problems
        self._environ = environ

    def resolve(self, config: Config) -> Config:
        control = config.control
        replace = msgspec.structs.replace
        services = {}
        for name, service in config.service.items():
            at: KeyPath = ("service", name)
            admin = replace(service.admin, password=self._password(service.admin.password, (*at, "admin", "password")))
            users = self._with_place(self._secret(service.auth.users, (*at, "auth", "users")))
            self._check_users(service, users, (*at, "auth", "users"))
            hba = self._rules(service, (*at, "auth", "hba"))
            engines = {}
            for engine_name, engine in service.engine.items():
                login = engine.login
                if login is not None:
                    key = (*at, "engine", engine_name, "login", "password")
                    login = replace(login, password=self._password(login.password, key))
                engines[engine_name] = replace(engine, login=login)
            replicator = service.replication_login
            if replicator is not None:
                replicator = replace(
                    replicator, password=self._password(replicator.password, (*at, "replication_login", "password"))
                )
            hooks = [
                replace(hook, token=self._password(hook.token, (*at, "hook", index, "token")))
                for index, hook in enumerate(service.hook)
            ]
            services[name] = replace(
                service,
                hook=hooks,
                replication_login=replicator,
                admin=admin,
                auth=replace(service.auth, users=users, hba=hba),
                engine=engines,
            )
        console = config.console
        as_service = console.as_service()
        if as_service is not None and console.auth is not None:
            users = self._with_place(self._secret(console.auth.users, ("console", "auth", "users")))
            self._check_users(as_service, users, ("console", "auth", "users"))
            hba = self._rules(as_service, ("console", "auth", "hba"))
            console = replace(console, auth=replace(console.auth, users=users, hba=hba))
        token = self._token(control.token, ("control", "token"))
        callers = {
            name: replace(caller, token=self._token(caller.token, ("control", "caller", name, "token")))
            for name, caller in control.caller.items()
        }
        self._check_different(token, callers)
        control = replace(control, token=token, caller=callers)
        alerts, telemetry = self._alerts(config.alerts), self._telemetry(config.telemetry)
        return replace(config, control=control, console=console, service=services, alerts=alerts, telemetry=telemetry)

    def _telemetry(self, telemetry: TelemetryConfig) -> TelemetryConfig:
        at = ("telemetry", "headers")
        headers = self._password(telemetry.headers, at)
        if headers is not None and headers.value:
            if not all(name.strip() and equals for name, equals, _ in _pairs(headers.value)):
                self._problems.add(at, f"{_origin(headers)} is not of the form name=value,name=value")
        return msgspec.structs.replace(telemetry, headers=headers)

    def _alerts(self, alerts: AlertsConfig) -> AlertsConfig:
        replace = msgspec.structs.replace
        receivers = {}
        for name, receiver in alerts.receiver.items():
            at: KeyPath = ("alerts", "receiver", name)
            secrets = {key: self._password(getattr(receiver, key), (*at, key)) for key in ("url", "token", "password")}
            url = secrets["url"]
            if url is not None and url.value and not url.value.strip().startswith(("http://", "https://")):
                text = f"{_origin(url)} does not hold an address that begins with http:// or https://"
                self._problems.add((*at, "url"), text)
            if url is not None and url.value:
                secrets["url"] = replace(url, value=url.value.strip())
            receivers[name] = replace(receiver, **secrets)
        return replace(alerts, receiver=receivers)

    def _token(self, secret: Secret | None, at: KeyPath) -> Secret | None:
        """A bearer token as its hash."""
        secret = self._password(secret, at)
        if secret is None or not secret.value:
            return secret
        value = secret.value.strip()
        if value.startswith(HASHED) and not re.fullmatch(r"[0-9a-f]{64}", value.removeprefix(HASHED).lower()):
            self._problems.add(
                at, f"{_origin(secret)} begins with {HASHED} but is no SHA-256 in hex; see `turnout token`"
            )
        elif not value.startswith(HASHED) and len(value) < TOKEN_LENGTH_MIN:
            text = f"{_origin(secret)} is shorter than {TOKEN_LENGTH_MIN} characters; `turnout token` makes one that is not"
            self._problems.add(at, text)
        return msgspec.structs.replace(secret, value=hash_token(value))

    def _check_different(self, token: Secret | None, callers: Mapping[str, CallerConfig]) -> None:
        """Who shows a token must be one caller."""
        owners = {token.value: "control.token"} if token is not None else {}
        for name, caller in callers.items():
            if caller.token is None or not caller.token.value:
                continue
            owner = owners.setdefault(caller.token.value, f"control.caller.{name}")
            if owner != f"control.caller.{name}":
                self._problems.add(("control", "caller", name, "token"), f"is the same as that of {owner}")

    def _password(self, secret: Secret | None, at: KeyPath) -> Secret | None:
        """A secret of one line."""
        secret = self._secret(secret, at)
        if secret is None or secret.value is None:
            return secret
        value = secret.value if secret.env is not None else secret.value.partition("\n")[0].removesuffix("\r")
        if not value:
            self._problems.add(at, f"{_origin(secret)} is empty")
        return msgspec.structs.replace(secret, value=value)

    def _secret(self, secret: Secret | None, at: KeyPath) -> Secret | None:
        if secret is None:
            return None
        if secret.env is not None:
            value = self._environ.get(secret.env)
            if value is None:
                self._problems.add(at, f"the environment variable {secret.env} is not set")
        else:
            assert secret.file is not None, "the reader saw exactly one of env and file"
            value = self._read(secret.file, at)
        return msgspec.structs.replace(secret, value=value)

    def _read(self, name: str, at: KeyPath) -> str | None:
        path = self._problems.path.parent / name
        try:
            with path.open("rb") as file:
                data = file.read(SECRET_BYTES_MAX + 1)
            if len(data) > SECRET_BYTES_MAX:
                self._problems.add(at, f"{path} is longer than {SECRET_BYTES_MAX} bytes")
                return None
            return data.decode()
        except OSError as error:
            self._problems.add(at, f"{path} cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self._problems.add(at, f"{path} is not UTF-8")
        return None

    def _with_place(self, users: Secret | None) -> Secret | None:
        """With the file's absolute path: workers look whether it has changed."""
        if users is None or users.file is None:
            return users
        return msgspec.structs.replace(users, file=str(self._problems.path.absolute().parent / users.file))

    def _place(self, secret: Secret) -> str:
        return str(self._problems.path.parent / secret.file) if secret.file is not None else f"${secret.env}"

    def _rules(self, service: ServiceConfig, at: KeyPath) -> Secret | None:
        """The rule file with its includes in place."""
        rules = self._secret(service.auth.hba, at)
        if rules is None or rules.value is None:
            return rules
        folder = self._problems.path.parent
        if rules.file is not None:
            folder = (folder / rules.file).parent

        def read(name: str) -> str:
            with (folder / name).open("rb") as file:
                return file.read(CONFIG_BYTES_MAX).decode("utf-8", "replace")

        try:
            text = expand(rules.value, read)
            parsed = parse_hba(text)
        except HbaError as error:
            self._problems.add_elsewhere(f"{self._place(rules)}:{error.line}", error.text)
            return rules
        if not parsed:
            self._problems.add(at, f"{_origin(rules)} has no rule: nobody could log in")
        asks = next((rule for rule in parsed if rule.method in ("md5", "password", "scram-sha-256")), None)
        if asks is not None and service.auth.method == "hba" and service.auth.users is None and not service.auth.query:
            text_of = f'line {asks.line} of {_origin(rules)} asks for passwords: "users" is missing, or auth_query'
            self._problems.add(at, text_of)
        return msgspec.structs.replace(rules, value=text)

    def _check_users(self, service: ServiceConfig, users: Secret | None, at: KeyPath) -> None:
        if users is None or users.value is None:
            return
        place = self._place(users)
        try:
            known = parse_users(users.value)
        except UsersError as error:
            self._problems.add_elsewhere(f"{place}:{error.line}", error.text)
            return
        if not known:
            self._problems.add(at, f"{_origin(users)} names no user")
        for name, secret in known.items():
            reason = unfit_secret(service, secret)
            if reason:
                self._problems.add_elsewhere(place, f'user "{name}" {reason}')


def unfit_secret(service: ServiceConfig, secret: str) -> str:
    """Why a user's secret cannot be used by this service; empty if it can."""
    if service.protocol == "mysql":
        if is_md5(secret):
            return "has an md5 hash, which MySQL's methods cannot use; use plain text"
        if secret.startswith("SCRAM-SHA-256$"):
            return "has a SCRAM-SHA-256 verifier, which MySQL's methods cannot use; use plain text"
        return unfit_for_mysql(secret)
    elif secret.startswith("SCRAM-SHA-256$") and not is_verifier(secret):
        return "has a SCRAM-SHA-256 verifier that is not complete; copy rolpassword of pg_authid as a whole"
    elif is_md5(secret) and service.auth.method == "scram-sha-256":
        return (
            'has an md5 hash, which method "scram-sha-256" cannot use; use plain text or a SCRAM-SHA-256 verifier, '
            'or method "md5"'
        )
    return ""


def _origin(secret: Secret) -> str:
    return f"the environment variable {secret.env}" if secret.env is not None else str(secret.file)


def _with_paths(config: Config, path: Path) -> Config:
    """All paths absolute; an empty `runtime_dir` gets its default."""
    folder = path.absolute().parent
    state_file = folder / config.state_file
    if config.runtime_dir:
        runtime = folder / config.runtime_dir
    elif base := os.environ.get("XDG_RUNTIME_DIR"):
        runtime = Path(base) / "turnout"
    else:
        runtime = state_file.parent / f"{state_file.stem}.run"
    replace = msgspec.structs.replace
    return replace(
        config,
        state_file=str(state_file),
        runtime_dir=str(runtime),
        control=_with_control_paths(config.control, folder),
        alerts=replace(
            config.alerts,
            receiver={
                name: replace(one, ca_file=str(folder / one.ca_file)) if one.ca_file else one
                for name, one in config.alerts.receiver.items()
            },
        ),
        telemetry=replace(config.telemetry, ca_file=str(folder / config.telemetry.ca_file))
        if config.telemetry.ca_file
        else config.telemetry,
        listener=[_with_tls_paths(one, folder) for one in config.listener],
        service={
            name: replace(
                service,
                engine={
                    key: _with_load_path(_with_tls_paths(one, folder), folder) for key, one in service.engine.items()
                },
            )
            for name, service in config.service.items()
        },
    )


def _with_load_path(engine: EngineConfig, folder: Path) -> EngineConfig:
    if not engine.load.pid_file:
        return engine
    replace = msgspec.structs.replace
    return replace(engine, load=replace(engine.load, pid_file=str(folder / engine.load.pid_file)))


def _with_control_paths(control: ControlConfig, folder: Path) -> ControlConfig:
    replace = msgspec.structs.replace
    jwt = control.jwt
    if jwt is not None and jwt.jwks_file:
        jwt = replace(jwt, jwks_file=str(folder / jwt.jwks_file))
    keys = ("tls_cert_file", "tls_key_file", "tls_ca_file")
    return replace(control, jwt=jwt, **{key: str(folder / name) for key in keys if (name := getattr(control, key))})


def _with_tls_paths(table: _AnyTable, folder: Path) -> _AnyTable:
    """The files of TLS with absolute paths; those that are not named stay so."""
    named = {
        key: str(folder / getattr(table, key))
        for key in table.__struct_fields__
        if "_tls_" in key and key.endswith("_file") and getattr(table, key)
    }
    return msgspec.structs.replace(table, **named)


# --- showing and comparing ----------------------------------------------------------------------------------------


def _fields(of: inspect.StructType) -> Iterator[tuple[inspect.Field, inspect.Type, bool]]:
    for field in of.fields:
        kind, is_reloadable = _bare(field.type)
        if isinstance(kind, inspect.UnionType):
            kind, inner = _bare(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
            is_reloadable = is_reloadable or inner
        yield field, kind, is_reloadable


def _default(field: inspect.Field) -> Any:
    if field.default is not _NO_DEFAULT:
        return field.default
    if field.default_factory is not _NO_DEFAULT:
        make: Callable[[], Any] = field.default_factory
        return make()
    return _NO_DEFAULT


def _masked(value: Any, kind: inspect.Type) -> Any:
    if value is None:
        return None
    match kind:
        case inspect.StructType() if kind.cls is Secret:
            return {"value": "***", "origin": "env" if value.env is not None else "file"}
        case inspect.StructType():
            shown = {}
            for field, inner, _is_reloadable in _fields(kind):
                held = getattr(value, field.name)
                if _is_leaf(inner):
                    origin = "default" if held == _default(field) else "file"
                    shown[field.encode_name] = {"value": held, "origin": origin}
                else:
                    shown[field.encode_name] = _masked(held, inner)
            return shown
        case inspect.DictType():
            return {name: _masked(item, _bare(kind.value_type)[0]) for name, item in value.items()}
        case inspect.ListType():
            return [_masked(item, _bare(kind.item_type)[0]) for item in value]
        case _:
            raise AssertionError(f"not a table: {kind}")


def _is_leaf(kind: inspect.Type) -> bool:
    """A value of one key, or an array of such."""
    if isinstance(kind, inspect.ListType):
        return _is_leaf(_bare(kind.item_type)[0])
    return not isinstance(kind, inspect.StructType | inspect.DictType)


def _differences(
    kind: inspect.Type, old: Any, new: Any, at: KeyPath, is_reloadable: bool
) -> Iterator[tuple[KeyPath, str | None, str | None, bool]]:
    """Path, old and new as text (None for both: not to be told), and whether a reload applies it."""
    if old == new:
        return
    match kind:
        case inspect.StructType() if old is not None and new is not None and kind.cls is not Secret:
            for field, inner, applies in _fields(kind):
                before, after = getattr(old, field.name), getattr(new, field.name)
                yield from _differences(inner, before, after, (*at, field.encode_name), applies or is_reloadable)
        case inspect.StructType() if kind.cls is Secret:
            yield at, None, None, is_reloadable
        case inspect.DictType() if old is not None and new is not None:
            for name in sorted(old.keys() | new.keys()):
                inner, _applies = _bare(kind.value_type)
                yield from _differences(inner, old.get(name), new.get(name), (*at, name), is_reloadable)
        case inspect.StructType() | inspect.DictType():
            yield at, "absent" if old is None else "present", "absent" if new is None else "present", is_reloadable
        case inspect.ListType() if not _is_leaf(kind):
            yield at, f"{len(old)} of them", f"{len(new)} of them, or others", is_reloadable
        case _:
            yield at, _said_plain(old), _said_plain(new), is_reloadable


def _said_plain(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else _said(value)
