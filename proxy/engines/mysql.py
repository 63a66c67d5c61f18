"""MySQL (8.0 and newer) and MariaDB (10.5 and newer) from the admin side.

Each engine has connections of its own, each with a thread (`mysql_link`): one looks, one acts, one measures. Beside it stand
the fence (`mysql_fence`), what is known of replication (`mysql_replication`) and of sessions (`mysql_sessions`).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection
from typing import Final, Literal, TypeVar
from weakref import WeakSet

from proxy.engines import mysql_inventory
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
from proxy.engines.mysql_fence import fence, prove_writable, read_only, set_read_only
from proxy.engines.mysql_link import Link, Server, version_number
from proxy.engines.mysql_replication import newest, position_of, replica_state, wait_reached, with_received, written
from proxy.engines.mysql_rows import MySqlRows
from proxy.engines.mysql_sessions import client_ids, in_doubt, outsiders, xids
from proxy.engines.positions import covers
from proxy.engines.rows import RowReader
from proxy.errors import EngineError, EngineLost
from proxy.tls import NO_ENGINE_TLS, LibraryTls

T = TypeVar("T")

_TRANSACTIONS: Final = """
select t.trx_mysql_thread_id as pid, greatest(0, timestampdiff(microsecond, t.trx_started, sysdate(6)) / 1e6) as age_s,
       p.user as user, p.db as db, p.command as command
  from information_schema.innodb_trx t left join information_schema.processlist p on p.id = t.trx_mysql_thread_id
 where t.trx_mysql_thread_id <> 0 order by t.trx_started limit %s
"""


class MySqlEngine(Engine):
    """One MySQL or MariaDB server. Which of the two is learnt at the first connection."""

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
        self._server = Server(name, address, user=user, password=password, database=database, tls=tls)
        self._watching = Link(self._server, "looks")
        self._acting = Link(self._server, "acts")
        self._measuring = Link(self._server, "measures")
        # Who compares rows: a fence spares them.
        self._readers: WeakSet[MySqlRows] = WeakSet()

    def __repr__(self) -> str:
        return f"<MySqlEngine {self.name} {self.address}>"

    @property
    def _is_maria(self) -> bool:
        return self._server.flavour == "mariadb"

    async def connect(self, timeout_s: float = 5.0) -> None:
        await self._watching.run(lambda link: link.ask("do 1"), timeout_s)

    async def close(self) -> None:
        self._watching.close()
        self._acting.close()
        self._measuring.close()
        self._watching = Link(self._server, "looks")
        self._acting = Link(self._server, "acts")
        self._measuring = Link(self._server, "measures")

    def use_tls(self, tls: Callable[[], LibraryTls]) -> None:
        self._server.tls = tls

    # --- looking -----------------------------------------------------------------------------------------------------

    async def probe(self, timeout_s: float = 2.0) -> EngineState:
        at_ns = time.monotonic_ns()
        try:
            try:
                state = await self._watching.run(lambda link: self._state(link, at_ns), timeout_s)
            except EngineLost:
                # A connection from before a restart says nothing about the server that runs now.
                state = await self._watching.run(lambda link: self._state(link, at_ns), timeout_s)
        except EngineError as error:
            return EngineState(
                name=self.name, is_reachable=False, why=error.text, failure=error.failure, flavour=self._server.flavour,
                at_ns=at_ns,
            )  # fmt: skip
        return state

    def _state(self, link: Link, at_ns: int) -> EngineState:
        began_ns = time.monotonic_ns()
        link.ask("do 1")
        response_ms = (time.monotonic_ns() - began_ns) / 1e6
        is_maria = self._is_maria
        row = link.ask(
            "select version() as version, @@global.read_only as read_only,"
            + (" @@global.server_id as id" if is_maria else " @@global.server_uuid as id")
        )[0]
        replica = replica_state(link)
        number = version_number(row["version"])
        is_running = bool(replica) and replica["io"] == replica["sql"] == "Yes"
        position = position_of(link)
        return EngineState(
            name=self.name,
            is_reachable=True,
            flavour=self._server.flavour,
            version=f"{'MariaDB' if is_maria else 'MySQL'} {row['version'].split('-')[0]}",
            version_num=number,
            server_id=str(row["id"]),
            role=Role.STANDBY if replica else Role.PRIMARY,
            is_writable=not row["read_only"],
            is_fenced=not replica and bool(row["read_only"]),
            is_replicating=is_running,
            upstream=f"{replica['host']}:{replica['port']}" if replica else None,
            instance=_instance(link),
            replication_error="" if is_running or not replica else replica["error"] or "the replica is stopped",
            position=position,
            received=with_received(position, replica["received"]) if replica else None,
            lag_ms=float(replica["lag_s"]) * 1000 if replica and replica["lag_s"] is not None else None,
            response_time_ms=response_ms,
            at_ns=at_ns,
        )

    async def connections(self, timeout_s: float = 1.0) -> int:
        rows = await self._measuring.run(
            lambda link: link.ask("show global status where variable_name = 'Threads_connected'"), timeout_s
        )
        return int(rows[0]["Value"])

    async def ask_number(self, sql: str, timeout_s: float = 1.0) -> float | None:
        # Without arguments PyMySQL leaves a `%` as it is.
        value = await self._measuring.run(lambda link: link.value(sql), timeout_s)
        try:
            return None if value is None else float(value)
        except (TypeError, ValueError) as error:
            raise EngineError(f"engine {self.name}: a query for its load did not answer with a number") from error

    async def written(self, timeout_s: float = 1.0) -> Position:
        return await self._measuring.run(written, timeout_s)

    async def has_applied(self, position: Position, *, is_standby: bool, timeout_s: float = 1.0) -> bool:
        def look(link: Link) -> bool:
            # A server that was promoted since takes writes of its own.
            follows = not is_standby or bool(link.value("select @@global.read_only"))
            return follows and wait_reached(link, position, 0.0)

        return await self._measuring.run(look, timeout_s)

    async def permissions(self) -> list[MissingRight]:
        return await self._watching.run(self._missing_rights, 5.0)

    def _missing_rights(self, link: Link) -> list[MissingRight]:
        user, _, host = str(link.value("select current_user()")).rpartition("@")
        account = f"'{user}'@'{host}'"
        rows = link.ask(
            "select privilege_type as p from information_schema.user_privileges where grantee = %s", account
        )
        has = {row["p"] for row in rows}
        if self._is_maria:
            # Before 10.11 SUPER included the right to write to a read-only server; from then on it stands alone.
            number = version_number(link.value("select version()"))
            if "SUPER" in has:
                has |= {"CONNECTION ADMIN", "REPLICATION SLAVE ADMIN", "SLAVE MONITOR", "REPLICA MONITOR"}
                if number < 101100:
                    has.add("READ_ONLY ADMIN")
            if has & {"SLAVE MONITOR", "REPLICA MONITOR"}:
                has.add("SLAVE MONITOR")
            needed = {
                "READ_ONLY ADMIN": "fence (SET GLOBAL read_only)",
                "CONNECTION ADMIN": "end the sessions of others",
                "REPLICATION SLAVE ADMIN": "promote a replica",
                "RELOAD": "promote a replica (RESET REPLICA ALL)",
                "SLAVE MONITOR": "see how far a replica is",
                "PROCESS": "see the sessions of others",
            }
        else:
            if "SUPER" in has:
                has |= {"SYSTEM_VARIABLES_ADMIN", "CONNECTION_ADMIN", "REPLICATION_SLAVE_ADMIN", "REPLICATION CLIENT"}
            needed = {
                "SYSTEM_VARIABLES_ADMIN": "fence (SET GLOBAL super_read_only)",
                "CONNECTION_ADMIN": "end the sessions of others",
                "REPLICATION_SLAVE_ADMIN": "promote a replica",
                "RELOAD": "promote a replica (RESET REPLICA ALL)",
                "REPLICATION CLIENT": "see how far a replica is",
                "PROCESS": "see the sessions of others",
                "XA_RECOVER_ADMIN": "see prepared transactions",
            }
        return [
            MissingRight(f"{why} ({right})", f"GRANT {right} ON *.* TO {account}")
            for right, why in needed.items()
            if right not in has
        ]

    async def sessions_outside(self, own_backend_pids: Collection[int]) -> list[OutsideSession]:
        rows = await self._watching.run(lambda link: outsiders(link, {*own_backend_pids, *self._admin_ids()}), 5.0)
        return [
            OutsideSession(
                pid=row["Id"],
                user=row["User"],
                database=row["db"] or "",
                client=row["Host"],
                application="",
                state=row["State"] or row["Command"],
                is_writing=False,
                age_s=float(row["Time"] or 0),
            )
            for row in rows
        ]

    async def capacity(self) -> Capacity:
        def look(link: Link) -> Capacity:
            used = link.ask("show global status like 'Threads_connected'")[0]["Value"]
            return Capacity(int(link.value("select @@global.max_connections")), int(used))

        return await self._watching.run(look, 5.0)

    async def prepared_in_doubt(self) -> list[str]:
        return await self._watching.run(in_doubt, 5.0)

    async def transactions(self) -> list[OpenTransaction]:
        rows = await self._watching.run(lambda link: link.ask(_TRANSACTIONS, TRANSACTIONS_MAX), 5.0)
        return [
            OpenTransaction(
                pid=row["pid"],
                user=row["user"] or "",
                database=row["db"] or "",
                age_s=float(row["age_s"]),
                is_idle=row["command"] == "Sleep",
            )
            for row in rows
        ]

    def row_reader(self) -> RowReader:
        reader = MySqlRows(self.name, self._server.open_blocking)
        self._readers.add(reader)
        return reader

    async def inventory(self, databases: Collection[str], *, with_schema: bool, timeout_s: float) -> Inventory:
        return await self._compare(
            lambda link: mysql_inventory.of_server(
                link.ask,
                databases,
                is_maria=self._is_maria,
                with_schema=with_schema,
                timeout_s=timeout_s,
            ),
            timeout_s,
        )

    async def explain(self, objects: Collection[str], timeout_s: float) -> dict[str, list[str]]:
        return await self._compare(
            lambda link: mysql_inventory.definitions(link.ask, objects, is_maria=self._is_maria, timeout_s=timeout_s),
            timeout_s,
        )

    async def _compare(self, work: Callable[[Link], T], timeout_s: float) -> T:
        """On a connection of its own: the questions may take long, and set bounds for their session."""
        link = Link(self._server, "compares")
        try:
            return await link.run(work, timeout_s)
        finally:
            link.close()

    # --- a switch ----------------------------------------------------------------------------------------------------

    async def prepare(self, timeout_s: float = 5.0) -> None:
        def warm(link: Link) -> None:
            read_only(link)
            position_of(link)
            client_ids(link)
            replica_state(link)

        async def warm_both() -> None:
            await asyncio.gather(self._acting.run(warm, timeout_s), self._watching.run(read_only, timeout_s))

        try:
            await warm_both()
        except EngineLost:
            # Connections from before a restart, or that the network dropped, say nothing about the server as it is now.
            await warm_both()

    async def resolve_in_doubt(self, how: Literal["commit", "rollback"], timeout_s: float = 5.0) -> list[str]:
        def resolve(link: Link) -> list[str]:
            names = in_doubt(link)
            for xid in xids(link):
                link.ask(f"xa {how} {xid}")
            return names

        return await self._acting.run(resolve, timeout_s)

    async def fence(self, own_backend_pids: Collection[int] = (), timeout_s: float = 5.0) -> FenceProof:
        own = frozenset(own_backend_pids)
        return await fence(self._acting, self._watching, lambda: own | self._admin_ids(), timeout_s)

    async def unfence(self, timeout_s: float = 1.0) -> None:
        def give_back(link: Link) -> None:
            if replica_state(link):
                raise EngineError(f"engine {self.name} is a replica: it is not made writable without a promotion")
            set_read_only(link, False, timeout_s)
            prove_writable(link)

        await self._acting.run(give_back, timeout_s)

    async def position(self) -> Position:
        return await self._acting.run(position_of, 5.0)

    async def reached(self, position: Position) -> bool:
        return await self._acting.run(lambda link: wait_reached(link, position, 0.0), 5.0)

    async def wait_reached(self, position: Position, timeout_s: float) -> bool:
        # The server waits, and answers the moment the last transaction is applied.
        return await self._acting.run(lambda link: wait_reached(link, position, timeout_s), timeout_s + 1.0)

    async def promote(self, timeout_s: float = 10.0, *, is_asked: bool = False) -> None:
        def promote(link: Link) -> None:
            replica = replica_state(link)
            while replica and is_asked:
                link.pause(0.01)
                replica = replica_state(link)
            if replica:
                if replica["io"] != "No":
                    link.ask("stop replica io_thread")
                    replica = replica_state(link)
                # What has arrived is applied before the source is forgotten.
                if replica["received"] and replica["sql"] == "Yes":
                    kind = position_of(link).kind
                    left = max(0.001, timeout_s - 1.0)
                    if not wait_reached(link, Position(kind, replica["received"]), left):
                        raise EngineError(f"engine {self.name} does not apply what it received: {replica['error']}")
                link.ask("stop replica")
                link.ask("reset replica all")
            set_read_only(link, False, timeout_s)
            prove_writable(link)

        await self._acting.run(promote, timeout_s)

    async def recent_commits(self, most: int) -> CommitSample:
        position = await self._watching.run(position_of, 5.0)
        if self._is_maria:
            # A position has the last number of each domain; those before it may have other servers' ids.
            return CommitSample(by="position", names=re.findall(r"\d+-\d+-\d+", position.text)[:most])
        return CommitSample(by="gtid", names=newest(position.text, most))

    async def lacking(self, sample: CommitSample) -> list[str]:
        def look(link: Link) -> list[str]:
            if sample.by == "position":
                have = position_of(link).text
                return [name for name in sample.names if not covers("mariadb-gtid", have, name)]
            text = link.value("select gtid_subtract(%s, @@global.gtid_executed)", ",".join(sample.names)) or ""
            return newest(str(text).replace("\n", ""), len(sample.names))

        return await self._watching.run(look, 5.0)

    async def follow(self, leader: Leader, timeout_s: float = 10.0) -> str:
        return await self._acting.run(lambda link: self._follow(link, leader), timeout_s)

    def _follow(self, link: Link, leader: Leader) -> str:
        found = replica_state(link)
        if found and (found["host"], int(found["port"])) == (leader.host, leader.port) and found["sql"] == "Yes":
            return self._await_replica(link, leader)
        if read_only(link)[0] is False:
            raise EngineError(f"engine {self.name} takes writes: it is not made a replica of {leader.name}")
        if found:
            link.ask("stop replica")
        if not found and not leader.user:
            raise EngineError(
                f"engine {self.name} has no account to replicate from {leader.name}: set replication_login"
            )
        word = "master" if self._is_maria else "source"
        # Of a replica the account it has stays as it is.
        account = f" {word}_user = %s, {word}_password = %s," if leader.user else ""
        values = [leader.host, leader.port, *([leader.user, leader.password] if leader.user else [])]
        if self._is_maria:
            # What this server wrote itself counts as applied: it was the primary up to the fence.
            link.ask("set global gtid_slave_pos = @@global.gtid_current_pos")
            link.ask(
                f"change master to master_host = %s, master_port = %s,{account} master_use_gtid = slave_pos,"
                f" master_ssl = {int(leader.is_encrypted)}",
                *values,
            )
        else:
            link.ask(
                f"change replication source to source_host = %s, source_port = %s,{account} source_auto_position = 1,"
                f" get_source_public_key = 1, source_ssl = {int(leader.is_encrypted)}",
                *values,
            )
        link.ask("start replica")
        return self._await_replica(link, leader)

    def _await_replica(self, link: Link, leader: Leader) -> str:
        while True:
            found = replica_state(link)
            if found and found["io"] == found["sql"] == "Yes":
                return f"replicates from {leader.name} by GTID"
            if found and found["error"]:
                raise EngineError(f"engine {self.name} does not follow {leader.name}: {found['error']}")
            link.pause(0.02)

    def _admin_ids(self) -> set[int]:
        links = [link.thread_id for link in (self._watching, self._acting, self._measuring)]
        readers = [reader.thread_id for reader in self._readers]
        return {one for one in (*links, *readers) if one is not None}


def _instance(link: Link) -> str:
    """One running server: two addresses of it give the same, two servers never. UNIX_TIMESTAMP() and Uptime are both
    told as of the statement's begin in whole seconds, so that their difference is the time of the start."""
    if not link.instance:
        status = "information_schema" if link.is_maria else "performance_schema"
        row = link.ask(
            "select @@global.hostname as host, @@global.port as port, @@global.datadir as data,"
            + (" @@global.server_id as id," if link.is_maria else " @@global.server_uuid as id,")
            + f" unix_timestamp() - (select variable_value from {status}.global_status"
            + " where variable_name = 'Uptime') as started"
        )[0]
        link.instance = (
            f"server {row['id']} on {row['host']}:{row['port']} in {row['data']}, started at {int(row['started'])}"
        )
    return link.instance
