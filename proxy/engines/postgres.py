"""PostgreSQL (13 and newer) from the admin side, by asyncpg.

Why the fence is built as it is
-------------------------------
What has to be kept from writing are strangers: sessions there are, and sessions to come. Turnout's own backends are held
by their workers, at a boundary; one that still has a transaction id fails the proof.

- Sessions there are that are not Turnout's own are ended. Where the fence was armed before, these are the ones that were
  there when it was: with 1,000 backends a look at all of them takes 4-9 ms, during which clients wait, and who came
  later found the setting in force. What is left to ask then is whether anybody has a transaction id.
- Sessions to come are bound by `ALTER ROLE ALL SET default_transaction_read_only = on`, which every login reads and no
  running session does. It survives a restart. A really new session then tries a real write.
- Roles and databases may have a default of their own (`ALTER ROLE … SET`), which the fence does not bind: it is named in
  the proof as exempt.

ALTER SYSTEM with a reload would bind the sessions there are too, but the reload wakes every one of them, and each reads
the configuration anew: with 1,000 backends that took 80-100 ms of two processors, while clients waited. It is used where
it is needed: if the admin account is no superuser (ALTER ROLE ALL is for superusers only), or if background workers of
extensions or subscriptions are connected, which log in once and can write for ever. The reload is asynchronous: the
postmaster reads the file first and then signals the backends, so a backend that shows the new value proves that every
session forked from then on has it too.

The setting of ALTER ROLE ALL is a row of a catalog, so it reaches the standbys, too, before the position that the target
has to reach: `promote` takes it away there. Backends that are opened between fence and promotion would begin read-only;
workers open none in a hold, and throw away one whose login was under way when the hold began.

Why the position is more than one function call
-----------------------------------------------
With `synchronous_commit = off` an acknowledged commit may be ahead of what is flushed, and only flushed WAL is sent. A
small transactional message, committed synchronously, flushes everything before it. Then the insert position is read. At
the start of a WAL page that function answers the place behind the page's header, which no standby ever reports as
replayed until something follows; `_settled` takes the header off.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import asyncpg
import structlog

from proxy.engines import postgres_inventory
from proxy.engines.engine import (
    TRANSACTIONS_MAX,
    Capacity,
    CommitSample,
    Engine,
    EngineState,
    FenceProof,
    Inventory,
    Leader,
    MissingRight,
    OpenTransaction,
    OutsideSession,
    Position,
    Role,
)
from proxy.engines.newcomer import sqlstate_of
from proxy.engines.postgres_rows import PostgresRows
from proxy.engines.rows import RowReader
from proxy.errors import AuthRefused, ConnectFailed, EngineError, EngineLost, Failure, unreachable
from proxy.tls import NO_ENGINE_TLS, LibraryTls, TlsProblem

_log = structlog.get_logger("turnout.engines")

POLL_S: Final = 0.001
_READ_ONLY: Final = "25006"
"""SQLSTATE read_only_sql_transaction."""
_NO_RIGHT: Final = "42501"
"""SQLSTATE insufficient_privilege."""
_NEWCOMER_TIMEOUT_S: Final = 5.0

NEWCOMERS_S: Final = 0.1
"""How long an engine whose fence was taken away is asked whether new sessions may write."""


_OVER: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""The connection cannot be used again. The last one: asyncpg's own state is not what the server's is, which was seen
when the server ended the session between two statements."""

FENCE: Final = "alter role all set default_transaction_read_only = on"
_NO_FENCE: Final = "alter role all reset default_transaction_read_only"
HAS_FENCE: Final = """
select exists (select from pg_db_role_setting where setdatabase = 0 and setrole = 0
                  and 'default_transaction_read_only=on' = any(setconfig))
"""
_SYSTEM_FENCE: Final = "alter system set default_transaction_read_only = on"
_NO_SYSTEM_FENCE: Final = "alter system reset default_transaction_read_only"

_WRITE: Final = "delete from pg_catalog.pg_description where false"
"""Changes nothing, and is refused like any write: the read-only check comes before the one of permissions."""

_STATE: Final = """
select pg_is_in_recovery() as in_recovery,
       current_setting('server_version_num')::int as version_num,
       split_part(current_setting('server_version'), ' ', 1) as version,
       (select system_identifier::text from pg_control_system()) as server_id,
       to_char(pg_postmaster_start_time() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') as started_at,
       (select setting = 'on' and source <> 'global' from pg_settings where name = 'default_transaction_read_only')
       or exists (select from pg_db_role_setting where setdatabase = 0 and setrole = 0
                     and 'default_transaction_read_only=on' = any(setconfig)) as is_read_only,
       case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end::text as lsn,
       case when pg_is_in_recovery()
            then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            else pg_current_wal_flush_lsn() end::text as received,
       (select greatest(c.timeline_id, r.min_recovery_end_timeline)
          from pg_control_checkpoint() c, pg_control_recovery() r) as timeline,
       r.status, r.sender_host, r.sender_port,
       case when pg_is_in_recovery()
            then greatest(r.latest_end_lsn, pg_last_wal_receive_lsn()) - pg_last_wal_replay_lsn() end::bigint as lag,
       (extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000)::float8 as age_ms
  from (select 1) one left join pg_stat_wal_receiver r on true
"""

_HAS_APPLIED: Final = """
select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() >= $1::text::pg_lsn
            else not $2 and pg_current_wal_insert_lsn() >= $1::text::pg_lsn end
"""

# Standbys get what was flushed. The last of what an open transaction has written, nobody flushes; and at the end of a page the
# position for the next record is behind the header of the next one, which no standby reaches before there is a record.
_SEND: Final = """
select set_config('synchronous_commit', 'local', true), pg_logical_emit_message(true, 'turnout', 'sent')
 where not pg_is_in_recovery() and current_setting('default_transaction_read_only') = 'off'
   and pg_current_wal_flush_lsn() < $1::text::pg_lsn
"""

# Without those that still log in: they will read the new value before their first statement. A superuser's session can be ended
# by a superuser only (pg_signal_backend in the manual).
_CLIENTS: Final = """
select pid, usename, coalesce(datname, '') as datname,
       coalesce(host(client_addr) || ':' || client_port, 'local') as client, coalesce(application_name, '') as app,
       coalesce(state, '') as state, backend_xid is not null as is_writing,
       extract(epoch from clock_timestamp() - backend_start)::float8 as age_s,
       usesysid in (select oid from pg_roles where rolsuper)
       and not (select rolsuper from pg_roles where rolname = current_user) as is_out_of_reach
  from pg_stat_activity
 where backend_type = 'client backend' and usename is not null and pid <> pg_backend_pid() and pid <> all($1::int[])
"""

# One look at all that a fence has to deal with, for with many backends each look at pg_stat_activity takes milliseconds:
# strangers, whoever has a transaction id (autovacuum may; what it writes are no client's rows), and workers that log in
# once and for ever. Parallel workers belong to a client.
_SURVEY: Final = """
select a.pid, a.usename::text as usename, coalesce(a.usename, a.backend_type)::text as who,
       coalesce(a.application_name, '') as app, a.backend_xid is not null as is_writing,
       a.backend_type = 'client backend' and own.pid is null as is_stranger,
       a.backend_type <> 'client backend' and a.backend_xid is null as is_worker
  from pg_stat_activity a left join unnest($1::int[]) as own(pid) on own.pid = a.pid
 where a.pid <> pg_backend_pid() and (
       (a.backend_type = 'client backend' and a.usename is not null and own.pid is null)
       or (a.backend_xid is not null and a.backend_type <> 'autovacuum worker')
       or (a.datid is not null and a.backend_type not in
           ('client backend', 'autovacuum worker', 'walsender', 'parallel worker', 'slotsync worker')))
"""

_TRANSACTIONS: Final = """
select pid, usename::text as usename, coalesce(datname, '')::text as datname, state <> 'active' as is_idle,
       extract(epoch from clock_timestamp() - xact_start)::float8 as age_s
  from pg_stat_activity
 where backend_type = 'client backend' and usename is not null and xact_start is not null and pid <> pg_backend_pid()
 order by xact_start limit $1
"""

# The same look when the fence is armed, in one row: who has to be gone at the fence is known then only.
_PRESENT: Final = """
select coalesce(array_agg(a.pid) filter (where a.backend_type = 'client backend' and a.usename is not null
                    and not (a.usename = current_user and a.application_name = 'turnout')), '{}') as clients,
       coalesce(bool_or(a.datid is not null and a.backend_type not in
           ('client backend', 'autovacuum worker', 'walsender', 'parallel worker', 'slotsync worker')), false) as has_workers
  from pg_stat_activity a where a.pid <> pg_backend_pid()
"""

# Every transaction that has an id holds a lock on it, a prepared one too, which no process owns (pg_locks in the manual).
_GLANCE: Final = """
select exists (select from pg_locks where locktype = 'transactionid' and mode = 'ExclusiveLock' and granted
                  and pid is not null and pid <> pg_backend_pid()) as is_written
"""

_END: Final = "select count(pg_terminate_backend(pid)) from unnest($1::int[]) as pid"
_ARE_LEFT: Final = "select count(*) from pg_stat_activity where pid = any($1::int[])"
_READ_ONLY_NOW: Final = "select current_setting('default_transaction_read_only') = 'on'"
_WHY_READ_ONLY: Final = "select source from pg_settings where name = 'default_transaction_read_only' and setting = 'on'"
# The message's commit flushes all that is before it, the position included. Of what the snapshot shows as committed, all
# is before the position: the snapshot is taken first.
_POSITION: Final = """
select pg_current_wal_insert_lsn()::text as lsn, pg_current_snapshot()::text as snapshot,
       pg_logical_emit_message(true, 'turnout', 'fence')
"""
_IS_SUPERUSER: Final = "select rolsuper from pg_roles where rolname = current_user"
_IN_RECOVERY: Final = "select pg_is_in_recovery()"
# Numbers below 3 are no transactions. A number that was never given out is an error of pg_xact_status.
_RECENT_COMMITS: Final = """
select one::text as xid
  from (select $1::text::pg_snapshot as seen, pg_snapshot_xmax($1::text::pg_snapshot)::text::int8 as next) fence,
       generate_series(greatest(3, next - $2::int8), next - 1) as one
 where pg_visible_in_snapshot(one::text::xid8, seen) and pg_xact_status(one::text::xid8) = 'committed' order by one
"""
_LACKING: Final = """
select one as xid from unnest($1::text[]) as one
 where case when one::xid8 >= pg_snapshot_xmax(pg_current_snapshot()) then true
            else pg_xact_status(one::xid8) is distinct from 'committed' end
"""
_IN_DOUBT: Final = "select gid from pg_prepared_xacts order by gid"
_REACHED: Final = """
select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end
       >= $1::text::pg_lsn
"""
_NOT_YET: Final = "in the future"
"""The server has given the number to no transaction, and replayed none that has it."""
_NO_ID: Final = "0"
_HAS_REPLAYED: Final = "select coalesce(pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn(), true)"
_FOLLOWS: Final = "select exists (select from pg_stat_wal_receiver where status = 'streaming' and sender_port = $1)"
_WHERE: Final = re.compile(r"\b(?:host|hostaddr|port)\s*=\s*(?:'(?:[^'\\]|\\.)*'|[^\s']+)\s*")
"""What says in a connection string where the server is, and the space behind it."""
_EXEMPT: Final = """
select concat_ws(' in ', 'role ' || r.rolname, 'database ' || d.datname) from pg_db_role_setting s
  left join pg_roles r on r.oid = s.setrole left join pg_database d on d.oid = s.setdatabase
 where exists (select from unnest(setconfig) one where one ~* '^default_transaction_read_only=(off|false|no|0)')
"""


_NO_RULE: Final = "28000"
"""SQLSTATE of a host-based rule that does not fit."""

OUT_OF_REACH_S: Final = 0.1
"""How long the fence waits for sessions that it may not end, as of a monitor that comes and goes."""

WRITERS_END_S: Final = 1.0
"""How long the fence waits for transactions that are about to end: the process of a session that was ended takes its
temporary tables and views away, which is a transaction of some milliseconds."""


@dataclass(frozen=True, slots=True)
class _Armed:
    """What was found when sessions to come had been bound."""

    refused_with: str
    """SQLSTATE a newcomer's write got; empty if it was allowed."""
    clients: frozenset[int]
    """Process ids of all client sessions there were, Turnout's admin connections left out."""
    has_workers: bool
    """Background workers were connected, which the fence binds only by the slower way."""


class _OtherWay(Exception):
    """The server wants TLS, or does not want it; `translated` is the error if there is no other way to try."""

    def __init__(self, translated: EngineError) -> None:
        super().__init__(translated.text)
        self.translated = translated


class PostgresEngine(Engine):
    """One PostgreSQL server. Two kinds of connection: one for watching, two for acting, opened by `prepare`."""

    def __init__(
        self,
        name: str,
        address: str,
        *,
        user: str,
        password: str | None,
        database: str = "",
        tls: Callable[[], LibraryTls] = lambda: NO_ENGINE_TLS,
    ) -> None:
        """`tls`: see `use_tls`."""
        self.name = name
        self.address = address
        host, _, port = address.rpartition(":")
        self._host = host.strip("[]")
        self._port = int(port)
        self._user = user
        self._password = password
        self._database = database or "postgres"
        self._tls = tls
        self._watching: Any = None
        self._watch_lock = asyncio.Lock()
        self._measuring: Any = None
        self._measure_lock = asyncio.Lock()
        self._acting: list[Any] = []
        self._is_superuser = False
        self._armed: _Armed | None = None
        self._snapshot = ""
        """What was committed when `position` was asked last."""
        # `arm` has written the setting of the whole server to its disk; nobody has read it yet.
        self._is_written = False
        """SQLSTATE with which a session that began after `arm` was refused to write."""
        self._wal_page_bytes = 8192
        self._wal_segment_bytes = 16 * 1024 * 1024

    def __repr__(self) -> str:
        return f"<PostgresEngine {self.name} {self.address}>"

    # --- connections -------------------------------------------------------------------------------------------------

    def use_tls(self, tls: Callable[[], LibraryTls]) -> None:
        self._tls = tls

    async def _open(self, timeout_s: float, database: str = "", **settings: str) -> Any:
        """With TLS as the config says; `allow` and `prefer` try the other way if the server does not want this one."""
        tls = self._engine_tls()
        *others, last = tls.attempts()
        for is_encrypted in others:
            try:
                return await self._open_once(tls.context if is_encrypted else None, timeout_s, database, settings)
            except _OtherWay:
                continue
        try:
            return await self._open_once(tls.context if last else None, timeout_s, database, settings)
        except _OtherWay as error:
            raise error.translated from error.__cause__

    def _engine_tls(self) -> LibraryTls:
        try:
            return self._tls()
        except TlsProblem as problem:
            raise ConnectFailed(f"engine {self.name}: server_tls_{problem.key}: {problem.text}") from problem

    async def _open_once(
        self, context: ssl.SSLContext | None, timeout_s: float, database: str, settings: dict[str, str]
    ) -> Any:
        try:
            return await asyncpg.connect(
                host=self._host,
                port=self._port,
                user=self._user,
                password=self._password,
                database=database or self._database,
                timeout=timeout_s,
                command_timeout=None,
                ssl=context if context is not None else False,
                server_settings={"application_name": "turnout", **settings},
            )
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            refused = AuthRefused(f"engine {self.name} at {self.address} refuses the admin account: {error}")
            if error.sqlstate == _NO_RULE:
                raise _OtherWay(refused) from error
            raise refused from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise ConnectFailed(
                f"engine {self.name} at {self.address} takes no connection: {error}", failure=_failure_told_by(error)
            ) from error
        except TimeoutError as error:
            raise ConnectFailed(
                f"engine {self.name} at {self.address} does not answer within {timeout_s:g} s"
            ) from error
        except OSError as error:
            failed = ConnectFailed(
                f"engine {self.name} at {self.address} cannot be reached: {unreachable(error)}",
                failure="refused" if isinstance(error, ConnectionRefusedError) else "silent",
            )
            if isinstance(error, ssl.SSLError) or type(error) is ConnectionError:
                # The handshake failed; or asyncpg's own words: the server has no TLS.
                raise _OtherWay(failed) from error
            raise failed from error

    async def connect(self, timeout_s: float = 5.0) -> None:
        if self._watching is None or self._watching.is_closed():
            self._watching = await self._open(timeout_s)

    async def close(self) -> None:
        open_ones = [one for one in (self._watching, self._measuring, *self._acting) if one is not None]
        self._watching, self._measuring, self._acting = None, None, []
        for one in open_ones:
            one.terminate()

    def _admin_pids(self) -> list[int]:
        mine = (self._watching, self._measuring, *self._acting)
        return [one.get_server_pid() for one in mine if one is not None and not one.is_closed()]

    @asynccontextmanager
    async def _watch(self, timeout_s: float = 5.0) -> AsyncIterator[Any]:
        """The connection for looking. It is dropped if a query on it does not end well."""
        async with self._watch_lock:
            async with self._translated(timeout_s):
                await self.connect(timeout_s)
                try:
                    yield self._watching
                except (TimeoutError, asyncio.CancelledError, OSError, *_OVER):
                    if self._watching is not None:
                        self._watching.terminate()
                    self._watching = None
                    raise

    @asynccontextmanager
    async def _measure(self, timeout_s: float) -> AsyncIterator[Any]:
        """The connection for figures; kept and dropped as that of `_watch`, which an operator's query must not hold up."""
        async with self._measure_lock, self._translated(timeout_s):
            if self._measuring is None or self._measuring.is_closed():
                self._measuring = await self._open(timeout_s)
            try:
                yield self._measuring
            except (TimeoutError, asyncio.CancelledError, OSError, *_OVER):
                if self._measuring is not None:
                    self._measuring.terminate()
                self._measuring = None
                raise

    @asynccontextmanager
    async def _act(self, timeout_s: float) -> AsyncIterator[tuple[Any, Any]]:
        """Two connections for acting. The first may always write; the second is as any session would be."""
        async with self._translated(timeout_s):
            if len(self._acting) != 2 or any(one.is_closed() for one in self._acting):
                for one in self._acting:
                    one.terminate()
                self._acting = []
                self._acting.append(
                    await self._open(timeout_s, default_transaction_read_only="off", synchronous_commit="local")
                )
                self._acting.append(await self._open(timeout_s))
            try:
                yield self._acting[0], self._acting[1]
            except (TimeoutError, asyncio.CancelledError, OSError, *_OVER):
                for one in self._acting:
                    one.terminate()
                self._acting = []
                raise

    @asynccontextmanager
    async def _translated(self, timeout_s: float) -> AsyncIterator[None]:
        """A deadline around what is done, and our own errors out of it."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError as error:
            raise EngineError(f"engine {self.name} did not answer within {timeout_s:g} s") from error
        except (OSError, *_OVER) as error:
            raise EngineLost(f"the connection to engine {self.name} ended: {error}") from error
        except asyncpg.PostgresError as error:
            raise EngineError(f"engine {self.name}: {error} ({error.sqlstate})") from error

    # --- looking -----------------------------------------------------------------------------------------------------

    async def probe(self, timeout_s: float = 2.0) -> EngineState:
        at_ns = time.monotonic_ns()
        try:
            try:
                response_ms, row = await self._look(timeout_s)
            except EngineLost:
                # A connection from before a restart says nothing about the server that runs now.
                response_ms, row = await self._look(timeout_s)
        except EngineError as error:
            return EngineState(name=self.name, is_reachable=False, why=error.text, failure=error.failure, at_ns=at_ns)
        is_standby = row["in_recovery"]
        lag = max(0, row["lag"]) if row["lag"] is not None else None
        return EngineState(
            name=self.name,
            is_reachable=True,
            flavour="postgresql",
            version=f"PostgreSQL {row['version']}",
            version_num=row["version_num"],
            server_id=row["server_id"],
            instance=f"server {row['server_id']}, started at {row['started_at']}",
            role=Role.STANDBY if is_standby else Role.PRIMARY,
            is_writable=not is_standby and not row["is_read_only"],
            is_fenced=not is_standby and row["is_read_only"],
            is_replicating=is_standby and row["status"] == "streaming",
            upstream=f"{row['sender_host']}:{row['sender_port']}" if row["sender_host"] else None,
            replication_error="" if not is_standby or row["status"] == "streaming" else "no WAL receiver is connected",
            position=Position("lsn", row["lsn"]) if row["lsn"] else None,
            received=Position("lsn", row["received"]) if row["received"] else None,
            timeline=row["timeline"],
            lag_bytes=lag if is_standby else None,
            lag_ms=(0.0 if lag == 0 else row["age_ms"]) if is_standby else None,
            response_time_ms=response_ms,
            at_ns=at_ns,
        )

    async def _look(self, timeout_s: float) -> tuple[float, Any]:
        async with self._watch(timeout_s) as connection:
            began_ns = time.monotonic_ns()
            await connection.execute("select 1")
            return (time.monotonic_ns() - began_ns) / 1e6, await connection.fetchrow(_STATE)

    async def connections(self, timeout_s: float = 1.0) -> int:
        async with self._measure(timeout_s) as connection:
            return int(await connection.fetchval("select sum(numbackends)::int from pg_stat_database"))

    async def ask_number(self, sql: str, timeout_s: float = 1.0) -> float | None:
        async with self._measure(timeout_s) as connection:
            value = await connection.fetchval(sql)
        try:
            return None if value is None else float(value)
        except (TypeError, ValueError) as error:
            raise EngineError(f"engine {self.name}: a query for its load did not answer with a number") from error

    async def written(self, timeout_s: float = 1.0) -> Position:
        async with self._measure(timeout_s) as connection:
            return Position("lsn", str(await connection.fetchval("select pg_current_wal_insert_lsn()::text")))

    async def has_applied(self, position: Position, *, is_standby: bool, timeout_s: float = 1.0) -> bool:
        async with self._measure(timeout_s) as connection:
            return bool(await connection.fetchval(_HAS_APPLIED, position.text, is_standby))

    async def send_up_to(self, position: Position, timeout_s: float = 1.0) -> None:
        async with self._measure(timeout_s) as connection:
            await connection.fetch(_SEND, position.text)

    async def permissions(self) -> list[MissingRight]:
        async with self._watch() as connection:
            who = await connection.fetchval("select current_user::text")
            if await connection.fetchval(_IS_SUPERUSER):
                return []
            version = await connection.fetchval("select current_setting('server_version_num')::int")
            quoted = await connection.fetchval("select quote_ident($1)", who)
            missing = []
            for role, why in (
                ("pg_monitor", "see replication and the sessions of others"),
                ("pg_signal_backend", "end the sessions of others"),
            ):
                if not await connection.fetchval("select pg_has_role(current_user, $1, 'usage')", role):
                    missing.append(MissingRight(f"{why} ({role})", f"GRANT {role} TO {quoted}"))
            # It got a fourth parameter in PostgreSQL 17.
            more = ", boolean" if version >= 170000 else ""
            for function, why in (
                ("pg_promote(boolean, integer)", "promote a standby"),
                ("pg_reload_conf()", "put the fence in force"),
                (f"pg_logical_emit_message(boolean, text, text{more})", "flush the WAL"),
            ):
                if not await connection.fetchval(
                    "select has_function_privilege(current_user, $1, 'execute')", function
                ):
                    missing.append(
                        MissingRight(f"{why} ({function})", f"GRANT EXECUTE ON FUNCTION {function} TO {quoted}")
                    )
            setting = "default_transaction_read_only"
            may = version >= 150000 and await connection.fetchval(
                "select has_parameter_privilege(current_user, $1, 'alter system')", setting
            )
            if not may:
                grant = f"GRANT ALTER SYSTEM ON PARAMETER {setting} TO {quoted}"
                if version < 150000:
                    grant = f"ALTER ROLE {quoted} SUPERUSER (PostgreSQL before 15 has no finer right)"
                missing.append(MissingRight(f"fence (ALTER SYSTEM SET {setting})", grant))
            return missing

    async def sessions_outside(self, own_backend_pids: Collection[int]) -> list[OutsideSession]:
        async with self._watch() as connection:
            rows = await connection.fetch(_CLIENTS, [*own_backend_pids, *self._admin_pids()])
        rows = [row for row in rows if not self._is_proof(row)]
        return [
            OutsideSession(
                pid=row["pid"],
                user=row["usename"],
                database=row["datname"],
                client=row["client"],
                application=row["app"],
                state=row["state"],
                is_writing=row["is_writing"],
                age_s=row["age_s"],
                is_out_of_reach=row["is_out_of_reach"],
            )
            for row in rows
        ]

    async def capacity(self) -> Capacity:
        async with self._watch() as connection:
            row = await connection.fetchrow(
                "select (select sum(case name when 'max_connections' then setting::int else -setting::int end)"
                "   from pg_settings where name in"
                "   ('max_connections', 'superuser_reserved_connections', 'reserved_connections'))::int as most,"
                " (select count(*) from pg_stat_activity where backend_type = 'client backend')::int as used"
            )
        return Capacity(row["most"], row["used"])

    async def prepared_in_doubt(self) -> list[str]:
        async with self._watch() as connection:
            return [row["gid"] for row in await connection.fetch(_IN_DOUBT)]

    async def transactions(self) -> list[OpenTransaction]:
        async with self._watch() as connection:
            rows = await connection.fetch(_TRANSACTIONS, TRANSACTIONS_MAX)
        return [
            OpenTransaction(
                pid=row["pid"], user=row["usename"], database=row["datname"], age_s=row["age_s"], is_idle=row["is_idle"]
            )
            for row in rows
        ]

    async def inventory(self, databases: Collection[str], *, with_schema: bool, timeout_s: float) -> Inventory:
        async with self._translated(timeout_s), self._comparing(self._database, timeout_s) as connection:
            version_num = await connection.fetchval("select current_setting('server_version_num')::int")
            found, inside = await postgres_inventory.of_server(connection, databases, version_num=version_num)
            for database in inside:
                async with self._comparing(database, timeout_s) as there:
                    await postgres_inventory.of_database(there, database, found, with_schema=with_schema)
        return found

    async def explain(self, objects: Collection[str], timeout_s: float) -> dict[str, list[str]]:
        wanted = {postgres_inventory.kind_and_place(label): label for label in objects}
        found = {}
        async with self._translated(timeout_s):
            for database in sorted({database for _, database, _ in wanted}):
                asked = [(kind, name) for kind, where, name in wanted if where == database]
                async with self._comparing(database, timeout_s) as connection:
                    for (kind, name), lines in (await postgres_inventory.definitions(connection, asked)).items():
                        found[wanted[(kind, database, name)]] = lines
        return found

    @asynccontextmanager
    async def _comparing(self, database: str, timeout_s: float) -> AsyncIterator[Any]:
        """A connection for questions that may take long: the server gives up on them itself."""
        limit = f"{int(timeout_s * 1000)}ms"
        connection = await self._open(timeout_s, database, statement_timeout=limit, search_path="pg_catalog")
        try:
            yield connection
        finally:
            connection.terminate()

    # --- a switch ----------------------------------------------------------------------------------------------------

    async def prepare(self, timeout_s: float = 5.0) -> None:
        async with self._act(timeout_s) as (first, second):
            self._wal_page_bytes = await first.fetchval("select current_setting('wal_block_size')::int")
            self._wal_segment_bytes = await first.fetchval(
                "select pg_size_bytes(current_setting('wal_segment_size'))::int"
            )
            is_standby = await self._know(first)
            # Each statement once: it is parsed, planned and cached, and so are the catalogs it looks into.
            await first.fetch(_SURVEY, [])
            await first.fetchrow(_PRESENT)
            await first.fetchval(_GLANCE)
            await second.fetch(_IN_DOUBT)
            await second.fetch(_EXEMPT)
            await first.fetchval(_END, [])
            await first.fetchval(_ARE_LEFT, [])
            await first.fetchval(HAS_FENCE)
            await first.fetchval(_IS_SUPERUSER)
            await second.fetchval(_READ_ONLY_NOW)
            await second.fetchval(_IN_RECOVERY)
            await second.fetchval(_REACHED, "0/0")
            if is_standby:
                if await second.fetchval(_WHY_READ_ONLY) not in (None, "global"):
                    await self._set_system_fence(first, second, False)
            else:
                await first.fetchval(_POSITION)
                # Not for its answer: the salted password is remembered.
                await self._refused_with()

    async def _know(self, first: Any) -> bool:
        """Find out which fence we may set; True if the server is a standby."""
        self._is_superuser = await first.fetchval(_IS_SUPERUSER)
        return bool(await first.fetchval(_IN_RECOVERY))

    async def arm(self, timeout_s: float = 5.0) -> None:
        async with self._act(timeout_s) as (first, _):
            if await self._know(first):
                raise EngineError(f"engine {self.name} is a standby: there is nothing to fence")
            if not self._is_superuser:
                await first.execute(_SYSTEM_FENCE)
                self._is_written = True
                return
            await first.execute(FENCE)
            # Not before the setting is in force: who comes between look and setting would be seen by neither.
            present, code = await asyncio.gather(first.fetchrow(_PRESENT), self._refused_with())
            self._armed = _Armed(code, frozenset(present["clients"]), present["has_workers"])

    async def resolve_in_doubt(self, how: Literal["commit", "rollback"], timeout_s: float = 5.0) -> list[str]:
        async with self._act(timeout_s) as (first, _):
            rows = await first.fetch(
                "select gid, database::text as database, quote_literal(gid) as quoted from pg_prepared_xacts order by 2, 1"
            )
            for database in dict.fromkeys(row["database"] for row in rows):
                there = await self._open(timeout_s, database, default_transaction_read_only="off")
                try:
                    for row in rows:
                        if row["database"] == database:
                            await there.execute(f"{how} prepared {row['quoted']}")
                finally:
                    there.terminate()
        return [row["gid"] for row in rows]

    async def fence(self, own_backend_pids: Collection[int] = (), timeout_s: float = 5.0) -> FenceProof:
        began_ns = time.monotonic_ns()
        async with self._act(timeout_s) as (first, second):
            armed, self._armed = self._armed, None
            if armed is None and await self._know(first):
                raise EngineError(f"engine {self.name} is a standby: there is nothing to fence")
            spared = {*own_backend_pids, *self._admin_pids()}
            details = asyncio.get_running_loop().create_task(self._details(second), name=f"details {self.name}")
            try:
                is_written = bool(await first.fetchval(_GLANCE))
                in_doubt, exempt, has_fence = await details
            finally:
                details.cancel()
            how, code, ended = "ALTER ROLE ALL SET default_transaction_read_only = on", "", 0
            # As armed, nobody to end, nobody whom the setting does not bind, nobody who writes: the proof stands.
            if (
                armed is not None
                and has_fence
                and not (is_written or exempt or armed.has_workers)
                and armed.clients <= spared
            ):
                code = armed.refused_with
            else:
                how, code, ended = await self._fence_thoroughly(first, second, spared, armed if has_fence else None)
        if code != _READ_ONLY:
            raise EngineError(
                f"engine {self.name} is not fenced: a new session was allowed to write. Is default_transaction_read_only"
                f" set for the role {self._user} or the database {self._database}?"
            )
        now_ns = time.monotonic_ns()
        return FenceProof(
            engine=self.name,
            how=how,
            refused_with=code,
            sessions_ended=ended,
            writers_left=0,
            prepared_in_doubt=in_doubt,
            exempt=exempt,
            took_us=(now_ns - began_ns) // 1000,
            at_ns=now_ns,
        )

    async def _fence_thoroughly(
        self, first: Any, second: Any, spared: Collection[int], armed: _Armed | None
    ) -> tuple[str, str, int]:
        """Bind who comes, end who is there, wait for writers. Returns how, the SQLSTATE a newcomer's write got, and how
        many sessions were ended. `armed` is None if nothing binds newcomers yet."""
        code, how = "", "ALTER ROLE ALL SET default_transaction_read_only = on"
        found = [row for row in await first.fetch(_SURVEY, list(spared)) if not self._is_proof(row)]
        if armed is not None:
            code = armed.refused_with
        elif self._is_superuser:
            await first.execute(FENCE)
        if any(row["is_worker"] for row in found) or not self._is_superuser:
            how, code = "default_transaction_read_only = on", ""
            await self._set_system_fence(first, second, True)
        refusal = None
        if not code:
            refusal = asyncio.get_running_loop().create_task(self._refused_with(), name=f"proof {self.name}")
        try:
            ended, writers = 0, [row for row in found if row["is_writing"] and not row["is_stranger"]]
            if refusal is not None or any(row["is_stranger"] for row in found):
                ended = await self._end_others(first, spared)
                writers = await self._writers(first, spared)
            if refusal is not None:
                code = await refusal
            until = time.monotonic() + WRITERS_END_S
            while writers and time.monotonic() < until:
                await asyncio.sleep(0.005)
                writers = await self._writers(first, spared)
        finally:
            if refusal is not None:
                refusal.cancel()
        if writers:
            who = ", ".join(f"{row['who']} (process {row['pid']})" for row in writers)
            raise EngineError(f"engine {self.name} is not fenced: these still have a writing transaction open: {who}")
        return how, code, ended

    @staticmethod
    async def _writers(first: Any, spared: Collection[int]) -> list[Any]:
        return [row for row in await first.fetch(_SURVEY, list(spared)) if row["is_writing"]]

    def _is_proof(self, row: Any) -> bool:
        """It is a session of our own that comes and goes: a newcomer, or one that compares."""
        return bool(row["usename"] == self._user and row["app"] == "turnout" and not row["is_writing"])

    @staticmethod
    async def _details(second: Any) -> tuple[list[str], list[str], bool]:
        in_doubt = [row["gid"] for row in await second.fetch(_IN_DOUBT)]
        exempt = [row[0] for row in await second.fetch(_EXEMPT)]
        return in_doubt, exempt, bool(await second.fetchval(HAS_FENCE))

    async def unfence(self, timeout_s: float = 1.0) -> None:
        async with self._act(timeout_s) as (first, second):
            if await first.fetchval(_IN_RECOVERY):
                raise EngineError(f"engine {self.name} is a standby: it cannot be made writable without a promotion")
            self._armed, self._is_written = None, False
            like_any = await self._take_fence_away(first, second)
            # Perhaps written and not in force yet.
            await self._set_system_fence(first, like_any, False)
            await self._prove_writable(like_any)
            await self._await_newcomers()

    async def _await_newcomers(self) -> None:
        """Until a session that begins now may write as well: it has the setting from the postmaster, others have read the file.
        For a moment only: a login that is slow, or not to be had now, must not keep those held who are there already."""
        try:
            async with asyncio.timeout(NEWCOMERS_S):
                while await self._refused_with() == _READ_ONLY:  # noqa: ASYNC110  the server tells nobody
                    await asyncio.sleep(POLL_S)
        except (EngineError, TimeoutError) as error:
            _log.warning(
                "not seen whether new sessions may write", engine=self.name, why=str(error) or "no answer in time"
            )

    async def position(self) -> Position:
        async with self._act(5.0) as (first, _):
            row = await first.fetchrow(_POSITION)
            self._snapshot = row["snapshot"]
            return Position("lsn", self._settled(row["lsn"]))

    async def reached(self, position: Position) -> bool:
        async with self._act(5.0) as (_, second):
            return bool(await second.fetchval(_REACHED, position.text))

    def row_reader(self) -> RowReader:
        return PostgresRows(self.name, self._open)

    async def wait_reached(self, position: Position, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        async with self._act(timeout_s + 1.0) as (_, second):
            while not await second.fetchval(_REACHED, position.text):
                if time.monotonic() >= deadline:
                    return False
                await asyncio.sleep(POLL_S)
        return True

    async def promote(self, timeout_s: float = 10.0, *, is_asked: bool = False) -> None:
        async with self._act(timeout_s) as (first, second):
            if await first.fetchval(_IN_RECOVERY):
                # Not pg_promote(true): it looks every 100 ms only.
                if not is_asked:
                    await first.fetchval("select pg_promote(false)")
                await poll(second, False, _IN_RECOVERY)
            # The source's fence came by replication, or an older one in a base backup or by pg_rewind.
            await self._prove_writable(await self._take_fence_away(first, second))

    async def recent_commits(self, most: int) -> CommitSample:
        if not self._snapshot:
            raise EngineError(f"engine {self.name}: what was committed at its fence is not known to this supervisor")
        async with self._watch() as connection:
            rows = await connection.fetch(_RECENT_COMMITS, self._snapshot, most)
        return CommitSample(by="xid", names=[row["xid"] for row in rows])

    async def lacking(self, sample: CommitSample) -> list[str]:
        async with self._watch() as connection:
            return [row["xid"] for row in await connection.fetch(_LACKING, sample.names)]

    async def known_transactions(self, ids: Collection[str], timeout_s: float = 2.0) -> frozenset[str]:
        known = []
        async with self._act(timeout_s) as (first, second):
            if not await first.fetchval(_IN_RECOVERY):
                return frozenset()
            deadline = time.monotonic() + timeout_s / 2
            while True:
                if await second.fetchval(_HAS_REPLAYED) or time.monotonic() >= deadline:
                    break
                await asyncio.sleep(POLL_S)
            for one in ids:
                if await self._status_of(second, one) not in (None, _NOT_YET):
                    known.append(one)
        return frozenset(known)

    async def outcomes(
        self, ids: Collection[str], known: Collection[str], timeout_s: float = 2.0
    ) -> dict[str, Literal["committed", "aborted"]]:
        found: dict[str, Literal["committed", "aborted"]] = {}
        async with self._act(timeout_s) as (_, second):
            for one in ids:
                status = _NOT_YET if one == _NO_ID else await self._status_of(second, one)
                if status == _NOT_YET or (status == "aborted" and one in known):
                    # It never came here, or not its commit.
                    found[one] = "aborted"
                elif status == "committed" and one in known:
                    # Of one that was not known before, another transaction may have the number since the promotion.
                    found[one] = "committed"
        return found

    @staticmethod
    async def _status_of(connection: Any, transaction: str) -> str | None:
        """`committed`, `aborted`, `in progress`, `_NOT_YET`; None if it is too old to tell."""
        try:
            status = await connection.fetchval("select pg_xact_status($1::text::xid8)", transaction)
        except asyncpg.InvalidParameterValueError:
            return _NOT_YET
        return None if status is None else str(status)

    async def slot_used(self) -> str:
        async with self._act(5.0) as (first, _):
            return str(await first.fetchval("select current_setting('primary_slot_name')"))

    async def make_slot(self, name: str) -> None:
        async with self._act(5.0) as (first, _):
            await first.execute(
                "select pg_create_physical_replication_slot($1, true)"
                " where not exists (select from pg_replication_slots where slot_name = $1)",
                name,
            )

    async def follow(self, leader: Leader, timeout_s: float = 10.0) -> str:
        async with self._act(timeout_s) as (first, _):
            if not await first.fetchval(_IN_RECOVERY):
                raise EngineError(
                    f"engine {self.name} is no standby: pg_rewind or a base backup makes it one of {leader.name}"
                )
            old = await first.fetchval("select current_setting('primary_conninfo')")
            new = conninfo_for(old, leader.host, leader.port)
            if new != old:
                await first.execute(
                    f"alter system set primary_conninfo = {await first.fetchval('select quote_literal($1)', new)}"
                )
                await first.fetchval("select pg_reload_conf()")
            await poll(first, True, _FOLLOWS, leader.port)
        return f"streams from {leader.name}"

    # --- parts -------------------------------------------------------------------------------------------------------

    async def _take_fence_away(self, first: Any, second: Any) -> Any:
        """What is in force, of both kinds, whoever set it. Returns `second`, or what has taken its place."""
        if await first.fetchval(HAS_FENCE):
            if not await first.fetchval(_IS_SUPERUSER):
                raise EngineError(
                    f"engine {self.name} is fenced by ALTER ROLE ALL SET default_transaction_read_only, which only a "
                    "superuser can take back"
                )
            await first.execute(_NO_FENCE)
        if not await second.fetchval(_READ_ONLY_NOW):
            return second
        why = await second.fetchval(_WHY_READ_ONLY)
        if why == "global":
            # It logged in under the fence, and is no more like any session.
            second.terminate()
            second = self._acting[1] = await self._open(_NEWCOMER_TIMEOUT_S)
            why = await second.fetchval(_WHY_READ_ONLY)
        if why:
            await self._set_system_fence(first, second, False)
        return second

    async def _set_system_fence(self, first: Any, second: Any, is_on: bool) -> None:
        """Change the setting and return when `second`, a session like any other, shows it."""
        is_written, self._is_written = is_on and self._is_written, False
        if not is_written:
            await first.execute(_SYSTEM_FENCE if is_on else _NO_SYSTEM_FENCE)
        began = time.monotonic()
        await first.execute("select pg_reload_conf()")
        while await second.fetchval(_READ_ONLY_NOW) != is_on:
            if is_written and time.monotonic() - began > 0.1:
                # Somebody took back what `arm` wrote.
                await self._set_system_fence(first, second, is_on)
                return
            if time.monotonic() - began > 0.7:
                source = await second.fetchval(
                    "select coalesce(sourcefile || ' line ' || sourceline, source) from pg_settings"
                    " where name = 'default_transaction_read_only'"
                )
                wanted = "on" if is_on else "off"
                raise EngineError(
                    f"engine {self.name} was told default_transaction_read_only = {wanted}, but sessions do not show it;"
                    f" the value comes from {source}"
                )
            await asyncio.sleep(POLL_S)

    async def _refused_with(self) -> str:
        """SQLSTATE with which a new session's write is refused; empty if it is not."""
        try:
            code = await sqlstate_of(
                _WRITE,
                host=self._host,
                port=self._port,
                user=self._user,
                password=self._password,
                database=self._database,
                tls=self._engine_tls(),
            )
        except AuthRefused:
            # This server wants another way of proving who we are: the driver knows them all, and is slower.
            code = await self._refused_slowly_with()
        # Without the right to write there it is refused all the same, but only past the read-only check.
        return "" if code == _NO_RIGHT else code

    async def _refused_slowly_with(self) -> str:
        connection = await self._open(_NEWCOMER_TIMEOUT_S)
        try:
            await connection.execute(_WRITE)
        except asyncpg.PostgresError as error:
            return str(error.sqlstate)
        finally:
            connection.terminate()
        return ""

    async def _end_others(self, first: Any, spared: Collection[int]) -> int:
        """End every client session but Turnout's, and wait until they are gone. Nobody is ended where one of them may not
        be ended by this account."""
        ended: set[int] = set()
        until = time.monotonic() + OUT_OF_REACH_S
        while True:
            rows = [row for row in await first.fetch(_CLIENTS, list(spared)) if not self._is_proof(row)]
            if not rows:
                return len(ended)
            out_of_reach = [row for row in rows if row["is_out_of_reach"]]
            if out_of_reach:
                if time.monotonic() > until:
                    who = ", ".join(f"{row['usename']}@{row['client']} (process {row['pid']})" for row in out_of_reach)
                    raise EngineError(
                        f"engine {self.name} is not fenced: {self._user} may not end the session of a superuser: {who}"
                    )
                await asyncio.sleep(POLL_S)
                continue
            others = [row["pid"] for row in rows]
            ended |= set(others)
            await first.fetchval(_END, others)
            await poll(first, 0, _ARE_LEFT, others)

    async def _prove_writable(self, second: Any) -> None:
        try:
            await second.execute(_WRITE)
        except asyncpg.InsufficientPrivilegeError:
            pass  # past the read-only check, which is what counts
        except asyncpg.ReadOnlySQLTransactionError as error:
            raise EngineError(f"engine {self.name} still refuses writes: {error}") from error
        # A transaction id makes the commit write WAL and flush it: the disk answers, too.
        await second.fetchval("select txid_current()")

    def _settled(self, lsn: str) -> str:
        """The position without the header of a WAL page that holds nothing yet. See the module's docstring."""
        high, _, low = lsn.partition("/")
        place = (int(high, 16) << 32) | int(low, 16)
        in_page = place % self._wal_page_bytes
        # XLogPageHeaderData is 24 bytes long, 40 on the first page of a segment (access/xlog_internal.h).
        header = 40 if place % self._wal_segment_bytes < self._wal_page_bytes else 24
        if in_page == header:
            place -= header
        return f"{place >> 32:X}/{place & 0xFFFFFFFF:X}"


def conninfo_for(conninfo: str, host: str, port: int) -> str:
    """The connection string of a standby, to another server with the same account and options."""
    if conninfo.startswith(("postgresql://", "postgres://")):
        raise EngineError("primary_conninfo is a URI: write it as host=… port=… so that Turnout can point it elsewhere")
    return f"{_WHERE.sub('', conninfo).strip()} host={host} port={port}".strip()


def _failure_told_by(error: Exception) -> Failure:
    """What a login that failed shows of the server. Only its own words show that it is there: asyncpg makes errors of the
    same classes by itself (they have no severity), and by class 08 speaks who stands before a server that is gone."""
    if not isinstance(error, asyncpg.PostgresError) or error.severity is None:
        return "silent"
    if isinstance(error, asyncpg.CannotConnectNowError):
        return "starting"
    return "silent" if str(error.sqlstate).startswith("08") else "told"


async def poll(connection: Any, wanted: object, sql: str, *args: object) -> None:
    """Ask about every millisecond until the answer is `wanted`; the caller has a deadline around it."""
    while True:
        if await connection.fetchval(sql, *args) == wanted:
            return
        await asyncio.sleep(POLL_S)
