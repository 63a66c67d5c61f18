"""The table of a service: who may log in, how its backends are pooled, which reads go elsewhere."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from proxy.config.engines import AdminConfig, EngineConfig, EngineLogin
from proxy.config.policies import PolicyConfig
from proxy.config.switching import FailoverConfig, HookConfig, SwitchConfig
from proxy.config.table import RELOADABLE, Secret, Table


class AuthConfig(Table, frozen=True, kw_only=True):
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


class RouteConfig(Table, frozen=True, kw_only=True):
    """Statements that surely only read may go to another engine than the one that serves: to a standby, or to one that
    is kept for reports. In transaction mode. The first rule that fits decides; see docs/routing.md."""

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
    """Only with one of these as `application_name` (MySQL: the connection's `program_name`); empty: with any."""
    pattern: str = ""
    """Only texts in which this regular expression (Python's, case does not matter) is found; empty: any."""
    functions: list[str] = []
    """Functions of your own that only read, by name (`schema.name` where they are called so). A statement that calls one
    which Turnout does not know stays with the engine that serves. Those of all rules count for all."""
    lag_ms_max: Annotated[int, Meta(ge=100, le=3_600_000)] = 2_000
    """How old what is read may be, in milliseconds. What a session has written itself it always reads."""


class ServiceConfig(Table, frozen=True, kw_only=True):
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
