"""PostgreSQL servers that are kept equal by logical replication: other versions, other hosts, other page layouts.

A server that has an enabled subscription in a database of the service is the standby; there is no recovery mode to tell.
What differs from a physical standby:

position    The LSN of the source after the fence, and where its sequences stand: they are not replicated.
reached     `latest_end_lsn` of every subscription has passed the LSN. An apply worker sets it when a keepalive comes,
            after it has applied all that came before in the same stream, and the source sends one as soon as it has
            nothing more to send. Then the sequences are moved, with a margin.
promote     The subscriptions are disabled and their workers have ended. (Applied transactions are committed without
            waiting for the disk; the write that proves the promotion flushes them.)
follow      A subscription in the other direction, without copying: the target has all the source had. The slot it reads
            from is made on the target while the switch is prepared, before any client writes there; what came
            from the source until then has an origin and is left out (`origin = none`, PostgreSQL 16 and newer).
            An apply worker is not bound by the fence of its server, so the old source stays read-only for everybody else.

Everything that belongs to a database is done on connections to that database, which `prepare` opens.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from proxy.engines.engine import CommitSample, EngineState, Inventory, Leader, Position, Role
from proxy.engines.postgres import FENCE, HAS_FENCE, POLL_S, PostgresEngine, poll
from proxy.errors import EngineError

PUBLICATION: Final = "turnout"
"""All tables; made on a target that is to be followed afterwards."""
ORIGINS_SINCE: Final = 160000
"""Version from which on a subscription can leave out what its publisher has from elsewhere."""
_CLEAN_UP_TIMEOUT_S: Final = 10.0

_SUBSCRIPTIONS: Final = """
select s.subname::text as name, d.datname::text as database, s.subenabled as is_enabled, s.subslotname::text as slot,
       w.pid is not null as is_running, w.latest_end_lsn::text as lsn
  from pg_subscription s join pg_database d on d.oid = s.subdbid
  left join lateral (select pid, latest_end_lsn from pg_stat_subscription w
                      where w.subid = s.oid and w.relid is null and to_jsonb(w) ->> 'leader_pid' is null limit 1) w on true
 where cardinality($1::text[]) = 0 or d.datname = any($1::text[])
 order by 2, 1
"""

_HAS_REACHED: Final = """
select coalesce(bool_and(exists (
         select from pg_stat_subscription w where w.subid = s.oid and w.relid is null and w.latest_end_lsn >= $2::text::pg_lsn
       )), false)
  from pg_subscription s join pg_database d on d.oid = s.subdbid
 where s.subenabled and (cardinality($1::text[]) = 0 or d.datname = any($1::text[]))
"""
_WORKERS: Final = "select count(*) from pg_stat_subscription where subname = any($1::text[]) and pid is not null"
_STOPPED: Final = """
select count(*) from pg_subscription s join pg_database d on d.oid = s.subdbid
 where s.subenabled and (cardinality($1::text[]) = 0 or d.datname = any($1::text[]))
   and not exists (select from pg_stat_subscription w where w.subid = s.oid and w.relid is null and w.pid is not null)
"""
_NOT_READY: Final = """
select srrelid::regclass::text from pg_subscription_rel r join pg_subscription s on s.oid = r.srsubid
 where s.subenabled and srsubstate <> 'r' order by 1 limit 5
"""

# With the margin, and never past the end of the sequence.
_SEQUENCES: Final = """
select format('%I.%I', schemaname, sequencename) as name,
       case when increment_by > 0 then least(last_value::numeric + $1::int8 * increment_by, max_value)
            else greatest(last_value::numeric + $1::int8 * increment_by, min_value) end::int8 as value
  from pg_sequences where last_value is not null
"""
_MOVE_SEQUENCES: Final = """
select count(setval(s.seqrelid, case when s.seqincrement > 0
         then greatest(one.value, coalesce(pg_sequence_last_value(s.seqrelid), one.value))
         else least(one.value, coalesce(pg_sequence_last_value(s.seqrelid), one.value)) end))
  from unnest($1::text[], $2::int8[]) as one(name, value) join pg_sequence s on s.seqrelid = to_regclass(one.name)
"""

_UNUSED_SLOTS: Final = """
select slot_name::text as name from pg_replication_slots
 where slot_type = 'logical' and not active and slot_name = any($1::text[])
"""
_DATABASES: Final = """
select datname::text as datname from pg_database
 where datallowconn and not datistemplate and datname <> 'postgres' order by 1
"""

_TABLES: Final = """
select n.nspname || '.' || c.relname as name,
       coalesce((select rn.nspname || '.' || r.relname from pg_class r join pg_namespace rn on rn.oid = r.relnamespace
                  where c.relispartition and r.oid = pg_partition_root(c.oid)), '') as root,
       c.relreplident = 'n' or (c.relreplident = 'd' and not exists (
         select from pg_index i where i.indrelid = c.oid and i.indisprimary)) as is_keyless
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
   and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
 order by 1 limit 100000
"""
_SUBSCRIBED: Final = """
select n.nspname || '.' || c.relname as name, r.srsubstate::text as state
  from pg_subscription_rel r join pg_subscription s on s.oid = r.srsubid and s.subenabled
  join pg_class c on c.oid = r.srrelid join pg_namespace n on n.oid = c.relnamespace
"""


class LogicalPostgresEngine(PostgresEngine):
    """One of several servers with logical replication between them. See the module's docstring."""

    def __init__(
        self,
        *given: Any,
        databases: Collection[str] = (),
        sequence_margin: int = 0,
        keeps_way_back: bool = False,
        **named: Any,
    ) -> None:
        """`databases` are those of the service; empty: all that have a subscription. `keeps_way_back`: a source is going
        to follow this server after a switch."""
        super().__init__(*given, **named)
        self._databases = list(databases)
        self._sequence_margin = sequence_margin
        self._keeps_way_back = keeps_way_back
        self._inside: dict[str, Any] = {}
        # The fence was taken away to prepare a switch to this server.
        self._had_fence = False

    async def close(self) -> None:
        inside, self._inside = self._inside, {}
        for one in inside.values():
            one.terminate()
        await super().close()

    def _admin_pids(self) -> list[int]:
        return super()._admin_pids() + [one.get_server_pid() for one in self._inside.values() if not one.is_closed()]

    async def _within(self, database: str, timeout_s: float) -> Any:
        """A connection to one database of the service, which may always write."""
        found = self._inside.get(database)
        if found is None or found.is_closed():
            found = await self._open(timeout_s, database, default_transaction_read_only="off")
            self._inside[database] = found
        return found

    # --- looking -----------------------------------------------------------------------------------------------------

    async def probe(self, timeout_s: float = 2.0) -> EngineState:
        state = await super().probe(timeout_s)
        if not state.is_reachable or state.role is not Role.PRIMARY:
            return state
        try:
            async with self._watch(timeout_s) as connection:
                rows = [row for row in await connection.fetch(_SUBSCRIPTIONS, self._databases) if row["is_enabled"]]
        except EngineError as error:
            return EngineState(name=self.name, is_reachable=False, why=error.text, at_ns=state.at_ns)
        if not rows:
            return state
        stopped = [row["name"] for row in rows if not row["is_running"]]
        known = [row["lsn"] for row in rows if row["lsn"]]
        return msgspec.structs.replace(
            state,
            role=Role.STANDBY,
            is_writable=False,
            is_fenced=False,
            is_replicating=not stopped,
            replication_error=f"no worker runs for subscription {', '.join(stopped)}" if stopped else "",
            position=Position("lsn", min(known, key=lsn_number)) if len(known) == len(rows) else None,
        )

    async def _subscriptions(self, connection: Any) -> list[Any]:
        """Those that are enabled."""
        return [row for row in await connection.fetch(_SUBSCRIPTIONS, self._databases) if row["is_enabled"]]

    async def inventory(self, databases: Collection[str], *, with_schema: bool, timeout_s: float) -> Inventory:
        found = await super().inventory(databases, with_schema=with_schema, timeout_s=timeout_s)
        async with self._translated(timeout_s):
            async with self._comparing(self._database, timeout_s) as connection:
                rows = await self._subscriptions(connection)
                found.subscriptions = {row["name"]: row["slot"] or "" for row in rows}
                subscribed = {row["database"] for row in rows}
            for database in found.collations:
                async with self._comparing(database, timeout_s) as there:
                    for row in await there.fetch(_TABLES):
                        found.tables[f"{database}.{row['name']}"] = f"{database}.{row['root']}" if row["root"] else ""
                        if row["is_keyless"]:
                            found.keyless.append(f"{database}.{row['name']}")
                    if await there.fetchval("select exists (select from pg_largeobject_metadata)"):
                        found.large_objects.append(database)
                    if database in subscribed:
                        for row in await there.fetch(_SUBSCRIBED):
                            found.subscribed[f"{database}.{row['name']}"] = row["state"]
        return found

    # --- a switch ----------------------------------------------------------------------------------------------------

    async def prepare(self, timeout_s: float = 5.0) -> None:
        await super().prepare(timeout_s)
        async with self._act(timeout_s) as (first, second):
            is_standby = bool(await self._subscriptions(first))
            if is_standby and await first.fetchval(HAS_FENCE):
                # It was the primary once. Sessions that log in there to be ready for the switch would stay read-only.
                self._had_fence = True
                await self._take_fence_away(first, second)
        async with self._entered(timeout_s) as (_, databases):
            for database in databases:
                inside = await self._within(database, timeout_s)
                await inside.fetch(_SEQUENCES, 0)
                if is_standby:
                    await inside.fetch(_NOT_READY)
                if is_standby and self._keeps_way_back:
                    await self._make_way_back(inside, database)

    @asynccontextmanager
    async def _entered(self, timeout_s: float) -> AsyncIterator[tuple[Any, list[str]]]:
        """A connection that may write, and the databases of the service. Connections to them are dropped if this does
        not end well."""
        async with self._act(timeout_s) as (first, _):
            databases = self._databases or [row["datname"] for row in await first.fetch(_DATABASES)]
            try:
                yield first, databases
            except BaseException:
                inside, self._inside = self._inside, {}
                for one in inside.values():
                    one.terminate()
                raise

    async def _make_way_back(self, inside: Any, database: str) -> None:
        """What the source will read from, before any client of ours writes here."""
        if await inside.fetchval("select current_setting('server_version_num')::int") < ORIGINS_SINCE:
            raise EngineError(f"engine {self.name} is older than PostgreSQL 16: the way back cannot be replicated")
        if not await inside.fetchval("select exists (select from pg_publication where pubname = $1)", PUBLICATION):
            await inside.execute(f"create publication {PUBLICATION} for all tables")
        # One that an earlier switch left; it holds all changes since.
        name = slot_name(database)
        for row in await inside.fetch(_UNUSED_SLOTS, [name]):
            await inside.fetchval("select pg_drop_replication_slot($1)", row["name"])
        await inside.fetchval("select pg_create_logical_replication_slot($1, 'pgoutput')", name)

    async def unfence(self, timeout_s: float = 1.0) -> None:
        async with self._act(timeout_s) as (first, _):
            if await self._subscriptions(first):
                raise EngineError(f"engine {self.name} is a standby: it cannot be made writable without a promotion")
        await super().unfence(timeout_s)

    async def position(self) -> Position:
        position = await super().position()
        sequences = {}
        async with self._entered(5.0) as (_, databases):
            for database in databases:
                inside = await self._within(database, 5.0)
                rows = await inside.fetch(_SEQUENCES, self._sequence_margin)
                sequences[database] = {row["name"]: row["value"] for row in rows}
        return msgspec.structs.replace(position, sequences=sequences)

    async def reached(self, position: Position) -> bool:
        async with self._act(5.0) as (_, second):
            return bool(await second.fetchval(_HAS_REACHED, self._databases, position.text))

    async def wait_reached(self, position: Position, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        async with self._entered(timeout_s + 1.0) as (first, databases):
            while not await first.fetchval(_HAS_REACHED, self._databases, position.text):
                if time.monotonic() >= deadline:
                    return False
                await asyncio.sleep(POLL_S)
            for database in databases:
                inside = await self._within(database, timeout_s)
                unready = [row[0] for row in await inside.fetch(_NOT_READY)]
                if unready:
                    raise EngineError(
                        f"engine {self.name}: tables that are not copied yet: {database}: {', '.join(unready)}"
                    )
                moved = position.sequences.get(database, {})
                await inside.fetchval(_MOVE_SEQUENCES, list(moved), list(moved.values()))
        return True

    async def promote(self, timeout_s: float = 10.0, *, is_asked: bool = False) -> None:
        async with self._entered(timeout_s) as (first, _):
            rows = await self._subscriptions(first)
            while rows and is_asked:
                await asyncio.sleep(POLL_S)
                rows = await self._subscriptions(first)
            try:
                await self._switch_subscriptions(rows, "disable", timeout_s)
                await poll(first, 0, _WORKERS, [row["name"] for row in rows])
                await super().promote(timeout_s)
                self._had_fence = False
            except BaseException:
                # What is not promoted goes on following.
                await self._switch_subscriptions(rows, "enable", timeout_s)
                raise

    async def _switch_subscriptions(self, rows: Collection[Any], how: str, timeout_s: float) -> None:
        for row in rows:
            inside = await self._within(row["database"], timeout_s)
            await inside.execute(f"alter subscription {_quoted(row['name'])} {how}")

    # --- afterwards --------------------------------------------------------------------------------------------------

    async def recent_commits(self, most: int) -> CommitSample:
        del most
        raise EngineError(
            f"engine {self.name} replicates logically, so that its commits have other names elsewhere",
            hint="compare the rows of both instead",
        )

    async def follow(self, leader: Leader, timeout_s: float = 10.0) -> str:
        name = f"turnout_from_{_plain(leader.name)}"
        async with self._entered(timeout_s) as (first, databases):
            if not await first.fetchval("select current_setting('server_version_num')::int") >= ORIGINS_SINCE:
                raise EngineError(f"engine {self.name} is older than PostgreSQL 16: it cannot follow {leader.name}")
            for database in databases:
                inside = await self._within(database, timeout_s)
                if await inside.fetchval(
                    "select exists (select from pg_subscription s join pg_database d on d.oid = s.subdbid"
                    " where s.subname = $1 and d.datname = current_database())",
                    name,
                ):
                    continue
                await inside.execute(
                    f"create subscription {_quoted(name)} connection {_literal(_conninfo(leader, database))}"
                    f" publication {PUBLICATION} with (create_slot = false, copy_data = false, origin = none,"
                    f" slot_name = {_literal(slot_name(database))})"
                )
            await poll(first, 0, _STOPPED, self._databases)
        return f"follows {leader.name} by subscription {name}"

    async def forget_source(self, timeout_s: float = 10.0) -> list[str]:
        slots = []
        async with self._entered(timeout_s) as (first, _):
            for row in await first.fetch(_SUBSCRIPTIONS, self._databases):
                if row["is_enabled"]:
                    continue
                inside = await self._within(row["database"], timeout_s)
                name = _quoted(row["name"])
                # Without a slot's name nothing is asked of the other side.
                await inside.execute(f"alter subscription {name} set (slot_name = none)")
                await inside.execute(f"drop subscription {name}")
                slots += [row["slot"]] if row["slot"] else []
        return slots

    async def drop_slots(self, names: Collection[str], timeout_s: float = 10.0) -> None:
        async with self._act(timeout_s) as (first, _):
            for row in await first.fetch(_UNUSED_SLOTS, list(names)):
                await first.fetchval("select pg_drop_replication_slot($1)", row["name"])

    async def abandon(self) -> None:
        if self._had_fence:
            self._had_fence = False
            async with self._act(_CLEAN_UP_TIMEOUT_S) as (first, _):
                await first.execute(FENCE)
        if not self._keeps_way_back:
            return
        async with self._translated(_CLEAN_UP_TIMEOUT_S):
            connection = await self._open(_CLEAN_UP_TIMEOUT_S)
            try:
                databases = self._databases or [row["datname"] for row in await connection.fetch(_DATABASES)]
                for row in await connection.fetch(_UNUSED_SLOTS, [slot_name(one) for one in databases]):
                    await connection.fetchval("select pg_drop_replication_slot($1)", row["name"])
            finally:
                connection.terminate()


def lsn_number(text: str) -> int:
    """An LSN as a number of bytes."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) | int(low, 16)


def slot_name(database: str) -> str:
    """Slot on a target for who follows it, one for each database: letters, digits and underscores, 63 at most."""
    return f"turnout_to_{_plain(database)[:40]}_{zlib.crc32(database.encode()):08x}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", name.lower())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    # E'' means the same whatever standard_conforming_strings is.
    return "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _conninfo(leader: Leader, database: str) -> str:
    given = {
        "host": leader.host,
        "port": str(leader.port),
        "dbname": database,
        "user": leader.user,
        "password": leader.password,
        "sslmode": "require" if leader.is_encrypted else "prefer",
    }
    return " ".join(f"{key}='{value.replace(chr(92), chr(92) * 2).replace(chr(39), chr(92) + chr(39))}'"
                    for key, value in given.items())  # fmt: skip
