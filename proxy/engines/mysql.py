"""MySQL (8.0 and newer) and MariaDB (10.5 and newer) from the admin side, by PyMySQL.

PyMySQL blocks, so each engine has two threads with a connection each: one looks, one acts. What belongs together runs
as one function in the thread, so that the fence costs a handful of round trips and few changes of thread.

Why the fence is built as it is
-------------------------------
- MySQL's `super_read_only` binds every account; MariaDB's `read_only` does not bind those with READ_ONLY ADMIN (before
  10.11: SUPER). Such accounts are named in the proof as exempt. Replication threads are exempt in both, and stay.
- Setting it waits for statements and commits that are under way. So where it is not done at once, sessions that are not
  Turnout's own are ended meanwhile, by the other thread; the wait has a deadline (`lock_wait_timeout`). Once it is set all
  that are there are ended. To look for them takes a server with a thousand sessions several milliseconds: it is done once.
- It is one global variable, in force for all sessions at once, so reading it is proof that it is set. On MySQL a real
  write is tried as well. On MariaDB the account that may set it is itself exempt, so there is no write to try.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, TypeVar
from weakref import WeakSet

import pymysql
import pymysql.cursors
from pymysql.constants import CR

from proxy.engines import mysql_inventory
from proxy.engines.engine import (
    TRANSACTIONS_MAX,
    Capacity,
    CommitSample,
    Engine,
    EngineState,
    FenceProof,
    Flavour,
    Inventory,
    Leader,
    MissingRight,
    OpenTransaction,
    OutsideSession,
    Position,
    Role,
)
from proxy.engines.mysql_rows import MySqlRows
from proxy.engines.positions import covers
from proxy.engines.rows import RowReader
from proxy.errors import AuthRefused, ConnectFailed, EngineError, EngineLost
from proxy.tasks import cancel_and_wait, spawn
from proxy.tls import NO_ENGINE_TLS, LibraryTls, TlsProblem

T = TypeVar("T")

_OPTION_PREVENTS: Final = 1290
"""ER_OPTION_PREVENTS_STATEMENT: the server runs with --read-only or --super-read-only."""
_NO_SUCH_THREAD: Final = 1094
ACKNOWLEDGED_S: Final = 0.5
"""A replica that is there acknowledges a commit within that."""

_AWAITS_REPLICA: Final = "Waiting for semi-sync ACK"
"""State of a session whose commit is to be acknowledged; "from replica" follows, or what replicas were called before."""

PUT_BACK_S: Final = 0.4
"""Time for the statement that puts a server's setting back, also after the deadline of what it was changed for."""

_KILL_DENIED: Final = 1095
_DENIED: Final = frozenset({1044, 1045, 1142, 1227, 1401, 3879})
"""Access or privilege denied; 1401: XA RECOVER."""
_REFUSED_LOGIN: Final = frozenset({1044, 1045, 1130, 1251, 1524, 1698, 1862, 4151})
_FULL: Final = frozenset({1040, 1203, 1226})
CLIENT_CODES: Final = 2000
"""From here to 2999 error numbers are PyMySQL's own."""

_WRITE: Final = "delete from mysql.time_zone where 1 = 0"
"""Changes nothing, and is refused like any write: the read-only check comes before the one of privileges."""

_TRANSACTIONS: Final = """
select t.trx_mysql_thread_id as pid, greatest(0, timestampdiff(microsecond, t.trx_started, sysdate(6)) / 1e6) as age_s,
       p.user as user, p.db as db, p.command as command
  from information_schema.innodb_trx t left join information_schema.processlist p on p.id = t.trx_mysql_thread_id
 where t.trx_mysql_thread_id <> 0 order by t.trx_started limit %s
"""

LIST_IDLE_S: Final = 0.105
"""After so long without a reader InnoDB makes its list of transactions anew."""
_MONITORED: Final = re.compile(r"^---TRANSACTION [^\n]*\bACTIVE\b.*?(?=^---|\Z)", re.MULTILINE | re.DOTALL)
"""A transaction that is not over, in the text of SHOW ENGINE INNODB STATUS."""
_MONITORED_THREAD: Final = re.compile(r"^(?:MySQL|MariaDB) thread id (\d+)", re.MULTILINE)
_MONITORED_CHANGES: Final = re.compile(r"\bundo log entries \d")

_SERVER_USERS: Final = frozenset({"system user", "event_scheduler", "unauthenticated user"})
_SERVER_COMMANDS: Final = frozenset({"Binlog Dump", "Binlog Dump GTID", "Daemon"})
_CLIENTS: Final = "user not in ({}) and command not in ({})".format(
    *(", ".join(f"'{name}'" for name in sorted(names)) for names in (_SERVER_USERS, _SERVER_COMMANDS))
)
"""Sessions of clients, in the server's list of its processes."""

_WHOLE_LISTS: Final = "set session group_concat_max_len = 16777216"
"""For the admin connections. In bytes; MySQL's own length is 1,024, and what is longer is cut off."""

UNHINDERED_S: Final = 0.005
"""A server that has nothing to wait for is closed to writes within that."""


class _NoTls(ConnectFailed):
    """TLS was asked for and is not to be had."""


class _Link:
    """One connection and the thread that uses it. Functions given to `run` get the link and may call `ask`."""

    def __init__(self, engine: MySqlEngine, purpose: str) -> None:
        self._engine = engine
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"{engine.name}-{purpose}")
        self._connection: Any = None
        self._deadline = 0.0
        self._lock = asyncio.Lock()
        self.instance = ""
        """Which running server the connection leads to, once asked; see `_instance`."""

    async def run(self, work: Callable[[_Link], T], timeout_s: float) -> T:
        """Run `work` in the thread. Raises EngineError and its subclasses."""
        async with self._lock:
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._executor, self._run, work, time.monotonic() + timeout_s)
            try:
                # Each read has the deadline too; this one is for what does not look at it.
                async with asyncio.timeout(timeout_s + 0.5):
                    return await future
            except TimeoutError as error:
                self.drop()
                raise EngineError(f"engine {self._engine.name} did not answer within {timeout_s:g} s") from error
            except asyncio.CancelledError:
                self.drop()
                raise

    def _run(self, work: Callable[[_Link], T], deadline: float) -> T:
        """In the thread: connect if needed, work, and make our own errors."""
        name = self._engine.name
        self._deadline = deadline
        if self._connection is None:
            self._connection = self._engine.open_blocking(self._left())
            self.instance = ""
        try:
            return work(self)
        except TimeoutError as error:
            self.drop()
            raise EngineError(f"engine {name} did not answer in time") from error
        except (pymysql.err.InterfaceError, OSError) as error:
            self.drop()
            raise EngineLost(f"the connection to engine {name} ended: {error}") from error
        except pymysql.err.MySQLError as error:
            code, text = _code_and_text(error)
            if code // 1000 == CLIENT_CODES // 1000:
                # PyMySQL's own codes: lost, timed out, malformed.
                self.drop()
                raise EngineLost(f"the connection to engine {name} ended: {text}") from error
            raise EngineError(f"engine {name}: {text} ({code})") from error

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise EngineError(f"engine {self._engine.name} did not answer in time")
        return left

    def ask(self, sql: str, *args: object) -> list[dict[str, Any]]:
        """In the thread: the rows of one statement."""
        # PyMySQL has no way to change it per statement.
        self._connection._read_timeout = self._left()
        with self._connection.cursor() as cursor:
            cursor.execute(sql, args or None)
            return list(cursor.fetchall())

    def value(self, sql: str, *args: object) -> Any:
        """In the thread: first column of the first row."""
        rows = self.ask(sql, *args)
        return next(iter(rows[0].values())) if rows else None

    def pause(self, seconds: float) -> None:
        """In the thread, between two looks; raises at the deadline."""
        self._left()
        time.sleep(seconds)

    def allow(self, seconds: float) -> None:
        """In the thread: so much from now on, whatever the deadline was. For what must be put back; under 0.5 s."""
        self._deadline = max(self._deadline, time.monotonic() + seconds)

    @property
    def thread_id(self) -> int | None:
        """The server's id of the connection."""
        return self._connection.thread_id() if self._connection is not None else None

    def drop(self) -> None:
        """From any thread: end the connection without a word; a read that waits on it returns."""
        connection, self._connection = self._connection, None
        if connection is not None and connection._sock is not None:
            try:
                connection._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended already
            connection._force_close()

    def close(self) -> None:
        self.drop()
        self._executor.shutdown(wait=False)


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
        """`tls` is asked before each connection, so that files of certificates may change."""
        self.name = name
        self.address = address
        host, _, port = address.rpartition(":")
        self._host = host.strip("[]")
        self._port = int(port)
        self._user = user
        self._password = password
        self._database = database
        self._tls = tls
        self._flavour: Flavour = "mysql"
        self._watching = _Link(self, "looks")
        self._acting = _Link(self, "acts")
        self._measuring = _Link(self, "measures")
        # Who compares rows: a fence spares them.
        self._readers: WeakSet[MySqlRows] = WeakSet()

    def __repr__(self) -> str:
        return f"<MySqlEngine {self.name} {self.address}>"

    def open_blocking(self, timeout_s: float) -> Any:
        """A connection, with TLS as the config says; blocks. Raises ConnectFailed and AuthRefused."""
        try:
            tls = self._tls()
        except TlsProblem as problem:
            raise ConnectFailed(f"engine {self.name}: server_tls_{problem.key}: {problem.text}") from problem
        *others, last = tls.attempts()
        for is_encrypted in others:
            try:
                return self._open_once(tls.context if is_encrypted else None, timeout_s)
            except _NoTls:
                continue
        return self._open_once(tls.context if last else None, timeout_s)

    def _open_once(self, context: ssl.SSLContext | None, timeout_s: float) -> Any:
        where = f"engine {self.name} at {self.address}"
        try:
            sock = socket.create_connection((self._host, self._port), timeout=timeout_s)
        except OSError as error:
            why = error.strerror or str(error)
            is_refused = isinstance(error, ConnectionRefusedError)
            raise ConnectFailed(
                f"{where} cannot be reached: {why}", failure="refused" if is_refused else "silent"
            ) from error
        if sock.getsockname() == sock.getpeername():
            # A closed port inside the ephemeral range, and TCP's simultaneous open: we talk to ourselves.
            sock.close()
            raise ConnectFailed(f"{where} cannot be reached: connection refused", failure="refused")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = pymysql.connect(
            host=self._host,
            port=self._port,
            user=self._user,
            password=self._password or "",
            database=self._database or None,
            autocommit=True,
            connect_timeout=max(1, int(timeout_s)),
            read_timeout=timeout_s,
            write_timeout=timeout_s,
            program_name="turnout",
            init_command=_WHOLE_LISTS,
            cursorclass=pymysql.cursors.DictCursor,
            defer_connect=True,
            ssl=context,
            ssl_disabled=context is None,
        )
        try:
            sock.settimeout(timeout_s)
            connection.connect(sock)
        except (pymysql.err.MySQLError, OSError) as error:
            sock.close()
            code, text = _code_and_text(error)
            if code in _REFUSED_LOGIN:
                raise AuthRefused(f"{where} refuses the admin account: {text} ({code})") from error
            if code == CR.CR_SSL_CONNECTION_ERROR or isinstance(
                getattr(error, "original_exception", None), ssl.SSLError
            ):
                raise _NoTls(f"{where}: no TLS with it: {text}") from error
            # With a number that is none of PyMySQL's own the server has spoken.
            has_spoken = code > 0 and code // 1000 != CLIENT_CODES // 1000
            raise ConnectFailed(
                f"{where} takes no connection: {text}", failure="told" if has_spoken else "silent"
            ) from error
        self._flavour = "mariadb" if "mariadb" in connection.get_server_info().lower() else "mysql"
        return connection

    async def connect(self, timeout_s: float = 5.0) -> None:
        await self._watching.run(lambda link: link.ask("do 1"), timeout_s)

    async def close(self) -> None:
        self._watching.close()
        self._acting.close()
        self._measuring.close()
        self._watching = _Link(self, "looks")
        self._acting = _Link(self, "acts")
        self._measuring = _Link(self, "measures")

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
                name=self.name, is_reachable=False, why=error.text, failure=error.failure, flavour=self._flavour,
                at_ns=at_ns,
            )  # fmt: skip
        return state

    def _state(self, link: _Link, at_ns: int) -> EngineState:
        began_ns = time.monotonic_ns()
        link.ask("do 1")
        response_ms = (time.monotonic_ns() - began_ns) / 1e6
        is_maria = self._flavour == "mariadb"
        row = link.ask(
            "select version() as version, @@global.read_only as read_only,"
            + (" @@global.server_id as id" if is_maria else " @@global.server_uuid as id")
        )[0]
        replica = _replica(link)
        number = _version_number(row["version"])
        is_running = bool(replica) and replica["io"] == replica["sql"] == "Yes"
        position = self._position(link)
        return EngineState(
            name=self.name,
            is_reachable=True,
            flavour=self._flavour,
            version=f"{'MariaDB' if is_maria else 'MySQL'} {row['version'].split('-')[0]}",
            version_num=number,
            server_id=str(row["id"]),
            role=Role.STANDBY if replica else Role.PRIMARY,
            is_writable=not row["read_only"],
            is_fenced=not replica and bool(row["read_only"]),
            is_replicating=is_running,
            upstream=f"{replica['host']}:{replica['port']}" if replica else None,
            instance=_instance(link, is_maria=is_maria),
            replication_error="" if is_running or not replica else replica["error"] or "the replica is stopped",
            position=position,
            received=_received(position, replica["received"]) if replica else None,
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
        return await self._measuring.run(self._written, timeout_s)

    def _written(self, link: _Link) -> Position:
        """Raises EngineError where GTIDs do not tell what was written."""
        is_maria = self._flavour == "mariadb"
        row = link.ask(
            "select @@global.log_bin as logs,"
            + (" @@global.gtid_current_pos as gtids" if is_maria else " @@global.gtid_executed as gtids,")
            + ("" if is_maria else " @@global.gtid_mode = 'ON' as counts")
        )[0]
        if not row["logs"] or not row.get("counts", 1) or not row["gtids"]:
            raise EngineError(f"engine {self.name} cannot be compared with others: it gives its transactions no GTIDs")
        return Position("mariadb-gtid" if is_maria else "mysql-gtid", str(row["gtids"]).replace("\n", ""))

    async def has_applied(self, position: Position, *, is_standby: bool, timeout_s: float = 1.0) -> bool:
        def look(link: _Link) -> bool:
            # A server that was promoted since takes writes of its own.
            follows = not is_standby or bool(link.value("select @@global.read_only"))
            return follows and self._wait(link, position, 0.0)

        return await self._measuring.run(look, timeout_s)

    async def permissions(self) -> list[MissingRight]:
        return await self._watching.run(self._missing_rights, 5.0)

    def _missing_rights(self, link: _Link) -> list[MissingRight]:
        user, _, host = str(link.value("select current_user()")).rpartition("@")
        account = f"'{user}'@'{host}'"
        rows = link.ask(
            "select privilege_type as p from information_schema.user_privileges where grantee = %s", account
        )
        has = {row["p"] for row in rows}
        if self._flavour == "mariadb":
            # Before 10.11 SUPER included the right to write to a read-only server; from then on it stands alone.
            number = _version_number(link.value("select version()"))
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
        rows = await self._watching.run(lambda link: _outsiders(link, {*own_backend_pids, *self._admin_ids()}), 5.0)
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
        def look(link: _Link) -> Capacity:
            used = link.ask("show global status like 'Threads_connected'")[0]["Value"]
            return Capacity(int(link.value("select @@global.max_connections")), int(used))

        return await self._watching.run(look, 5.0)

    async def prepared_in_doubt(self) -> list[str]:
        return await self._watching.run(_in_doubt, 5.0)

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
        reader = MySqlRows(self.name, self.open_blocking)
        self._readers.add(reader)
        return reader

    async def inventory(self, databases: Collection[str], *, with_schema: bool, timeout_s: float) -> Inventory:
        return await self._compare(
            lambda link: mysql_inventory.of_server(
                link.ask,
                databases,
                is_maria=self._flavour == "mariadb",
                with_schema=with_schema,
                timeout_s=timeout_s,
            ),
            timeout_s,
        )

    async def explain(self, objects: Collection[str], timeout_s: float) -> dict[str, list[str]]:
        return await self._compare(
            lambda link: mysql_inventory.definitions(
                link.ask, objects, is_maria=self._flavour == "mariadb", timeout_s=timeout_s
            ),
            timeout_s,
        )

    async def _compare(self, work: Callable[[_Link], T], timeout_s: float) -> T:
        """On a connection of its own: the questions may take long, and set bounds for their session."""
        link = _Link(self, "compares")
        try:
            return await link.run(work, timeout_s)
        finally:
            link.close()

    # --- a switch ----------------------------------------------------------------------------------------------------

    async def prepare(self, timeout_s: float = 5.0) -> None:
        def warm(link: _Link) -> None:
            self._read_only(link)
            self._position(link)
            _client_ids(link)
            _replica(link)

        async def warm_both() -> None:
            await asyncio.gather(self._acting.run(warm, timeout_s), self._watching.run(self._read_only, timeout_s))

        try:
            await warm_both()
        except EngineLost:
            # Connections from before a restart, or that the network dropped, say nothing about the server as it is now.
            await warm_both()

    async def resolve_in_doubt(self, how: Literal["commit", "rollback"], timeout_s: float = 5.0) -> list[str]:
        def resolve(link: _Link) -> list[str]:
            names = _in_doubt(link)
            for xid in _xids(link, is_maria=self._flavour == "mariadb"):
                link.ask(f"xa {how} {xid}")
            return names

        return await self._acting.run(resolve, timeout_s)

    async def fence(self, own_backend_pids: Collection[int] = (), timeout_s: float = 5.0) -> FenceProof:
        began_ns = time.monotonic_ns()
        own = frozenset(own_backend_pids)
        await self._acting.run(self._refuse_replica, timeout_s)
        closing = spawn(self._close_to_writes(timeout_s), name=f"close {self.name} to writes")
        ended = 0
        try:
            # It waits for transactions that are open: those of others are ended meanwhile, which need not be looked for
            # where there are none.
            while not (await asyncio.wait({closing}, timeout=UNHINDERED_S))[0]:
                ended += await self._watching.run(lambda link: self._end_others(link, own), timeout_s)
        except EngineError:
            # Or it might be closed after somebody has opened it again.
            await self._watching.run(self._give_up_closing, timeout_s)
            await asyncio.wait({closing})
            raise
        finally:
            await cancel_and_wait(closing)
        if (error := closing.result()) is not None:
            raise error
        return await self._acting.run(lambda link: self._prove_fenced(link, own, ended, began_ns), timeout_s)

    async def _close_to_writes(self, timeout_s: float) -> EngineError | None:
        """What went wrong, if something did: the fence may be busy with sessions of others then."""
        try:
            await self._acting.run(lambda link: self._set_read_only(link, True, timeout_s), timeout_s)
        except EngineError as error:
            return error
        return None

    def _give_up_closing(self, link: _Link) -> None:
        if (waiting := self._acting.thread_id) is not None:
            link.ask(f"kill query {waiting}")

    def _refuse_replica(self, link: _Link) -> None:
        if _replica(link):
            raise EngineError(f"engine {self.name} is a replica: there is nothing to fence")

    def _prove_fenced(self, link: _Link, own: Collection[int], ended: int, began_ns: int) -> FenceProof:
        ended += self._end_others(link, own)
        if self._read_only(link) != (True, self._flavour == "mysql"):
            raise EngineError(f"engine {self.name} is not fenced: it was told to be read-only and is not")
        refused_with = ""
        if self._flavour == "mysql":
            refused_with = self._refused_with(link)
            if refused_with != str(_OPTION_PREVENTS):
                raise EngineError(
                    f"engine {self.name} is not fenced: a write was allowed or refused for another reason"
                )
        self._wait_no_writers(link)
        exempt: list[str] = []
        if self._flavour == "mariadb":
            number = _version_number(link.value("select version()"))
            right = "READ_ONLY ADMIN" if number >= 101100 else "SUPER"
            rows = link.ask(
                "select distinct grantee as g from information_schema.user_privileges where privilege_type = %s", right
            )
            exempt = sorted(row["g"] for row in rows)
        try:
            in_doubt = _in_doubt(link)
        except pymysql.err.MySQLError as error:
            if _code_and_text(error)[0] not in _DENIED:
                raise
            in_doubt = []
            exempt.append("prepared transactions: the admin account may not see them (XA_RECOVER_ADMIN)")
        now_ns = time.monotonic_ns()
        return FenceProof(
            engine=self.name,
            how="super_read_only = 1" if self._flavour == "mysql" else "read_only = 1",
            refused_with=refused_with,
            sessions_ended=ended,
            writers_left=0,
            prepared_in_doubt=in_doubt,
            exempt=exempt,
            took_us=(now_ns - began_ns) // 1000,
            at_ns=now_ns,
        )

    async def unfence(self, timeout_s: float = 1.0) -> None:
        def give_back(link: _Link) -> None:
            if _replica(link):
                raise EngineError(f"engine {self.name} is a replica: it is not made writable without a promotion")
            self._set_read_only(link, False, timeout_s)
            self._prove_writable(link)

        await self._acting.run(give_back, timeout_s)

    async def position(self) -> Position:
        return await self._acting.run(self._position, 5.0)

    async def reached(self, position: Position) -> bool:
        return await self._acting.run(lambda link: self._wait(link, position, 0.0), 5.0)

    async def wait_reached(self, position: Position, timeout_s: float) -> bool:
        # The server waits, and answers the moment the last transaction is applied.
        return await self._acting.run(lambda link: self._wait(link, position, timeout_s), timeout_s + 1.0)

    async def promote(self, timeout_s: float = 10.0, *, is_asked: bool = False) -> None:
        def promote(link: _Link) -> None:
            replica = _replica(link)
            while replica and is_asked:
                link.pause(0.01)
                replica = _replica(link)
            if replica:
                if replica["io"] != "No":
                    link.ask("stop replica io_thread")
                    replica = _replica(link)
                # What has arrived is applied before the source is forgotten.
                if replica["received"] and replica["sql"] == "Yes":
                    kind = self._position(link).kind
                    left = max(0.001, timeout_s - 1.0)
                    if not self._wait(link, Position(kind, replica["received"]), left):
                        raise EngineError(f"engine {self.name} does not apply what it received: {replica['error']}")
                link.ask("stop replica")
                link.ask("reset replica all")
            self._set_read_only(link, False, timeout_s)
            self._prove_writable(link)

        await self._acting.run(promote, timeout_s)

    async def recent_commits(self, most: int) -> CommitSample:
        position = await self._watching.run(self._position, 5.0)
        if self._flavour == "mariadb":
            # A position has the last number of each domain; those before it may have other servers' ids.
            names = ["-".join(one) for one in _gtids(position.text)]
            return CommitSample(by="position", names=names[:most])
        return CommitSample(by="gtid", names=_newest(position.text, most))

    async def lacking(self, sample: CommitSample) -> list[str]:
        def look(link: _Link) -> list[str]:
            if sample.by == "position":
                have = self._position(link).text
                return [name for name in sample.names if not _covers(have, name)]
            text = link.value("select gtid_subtract(%s, @@global.gtid_executed)", ",".join(sample.names)) or ""
            return _newest(str(text).replace("\n", ""), len(sample.names))

        return await self._watching.run(look, 5.0)

    async def follow(self, leader: Leader, timeout_s: float = 10.0) -> str:
        return await self._acting.run(lambda link: self._follow(link, leader), timeout_s)

    def _follow(self, link: _Link, leader: Leader) -> str:
        found = _replica(link)
        if found and (found["host"], int(found["port"])) == (leader.host, leader.port) and found["sql"] == "Yes":
            return self._await_replica(link, leader)
        if self._read_only(link)[0] is False:
            raise EngineError(f"engine {self.name} takes writes: it is not made a replica of {leader.name}")
        if found:
            link.ask("stop replica")
        if not found and not leader.user:
            raise EngineError(
                f"engine {self.name} has no account to replicate from {leader.name}: set replication_login"
            )
        word = "master" if self._flavour == "mariadb" else "source"
        # Of a replica the account it has stays as it is.
        account = f" {word}_user = %s, {word}_password = %s," if leader.user else ""
        values = [leader.host, leader.port, *([leader.user, leader.password] if leader.user else [])]
        if self._flavour == "mariadb":
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

    def _await_replica(self, link: _Link, leader: Leader) -> str:
        while True:
            found = _replica(link)
            if found and found["io"] == found["sql"] == "Yes":
                return f"replicates from {leader.name} by GTID"
            if found and found["error"]:
                raise EngineError(f"engine {self.name} does not follow {leader.name}: {found['error']}")
            link.pause(0.02)

    # --- parts; all run in a link's thread ---------------------------------------------------------------------------

    def _admin_ids(self) -> set[int]:
        links = [link.thread_id for link in (self._watching, self._acting, self._measuring)]
        readers = [reader.thread_id for reader in self._readers]
        return {one for one in (*links, *readers) if one is not None}

    def _position(self, link: _Link) -> Position:
        if self._flavour == "mariadb":
            # On a replica what is applied, on a primary what is in its own log; the former alone would be enough for
            # MASTER_GTID_WAIT, which knows only that.
            text = link.value("select @@global.gtid_current_pos") or ""
            return Position("mariadb-gtid", str(text))
        return Position("mysql-gtid", str(link.value("select @@global.gtid_executed") or "").replace("\n", ""))

    def _wait(self, link: _Link, position: Position, timeout_s: float) -> bool:
        if self._flavour == "mariadb":
            if timeout_s and link.value("select master_gtid_wait(%s, %s)", position.text, timeout_s) == 0:
                return True
            # It counts only what came by replication; a server that is a primary already has written it itself.
            return covers("mariadb-gtid", self._position(link).text, position.text)
        if timeout_s:
            return bool(link.value("select wait_for_executed_gtid_set(%s, %s) = 0", position.text, timeout_s))
        return bool(link.value("select gtid_subset(%s, @@global.gtid_executed)", position.text))

    def _read_only(self, link: _Link) -> tuple[bool, bool]:
        """read_only and super_read_only."""
        if self._flavour == "mariadb":
            return bool(link.value("select @@global.read_only")), False
        row = link.ask("select @@global.read_only as plain, @@global.super_read_only as super")[0]
        return bool(row["plain"]), bool(row["super"])

    def _set_read_only(self, link: _Link, is_on: bool, timeout_s: float) -> None:
        # Whole seconds; it bounds the wait for statements and commits that are under way.
        link.ask(f"set session lock_wait_timeout = {max(1, int(timeout_s))}")
        if self._flavour == "mariadb":
            link.ask(f"set global read_only = {int(is_on)}")
        elif is_on:
            link.ask("set global super_read_only = 1")
        else:
            link.ask("set global super_read_only = 0")
            link.ask("set global read_only = 0")

    def _end_others(self, link: _Link, own: Collection[int]) -> int:
        """End every client session but `own` and the links, and wait until they are gone. MySQL keeps sessions of accounts with
        SYSTEM_USER from one without it; `super_read_only` binds them all the same, and who writes is waited for."""
        ended: set[int] = set()
        kept: set[int] = set()
        patience_ends = time.monotonic() + ACKNOWLEDGED_S
        while True:
            others = _client_ids(link).difference(self._admin_ids(), kept, own)
            if not others:
                return len(ended)
            if ended.issuperset(others) and time.monotonic() > patience_ends:
                self._acknowledge(link, ended)
                patience_ends = time.monotonic() + ACKNOWLEDGED_S
            for thread_id in others:
                if thread_id in ended:
                    continue
                try:
                    link.ask(f"kill {int(thread_id)}")
                except pymysql.err.MySQLError as error:
                    code = _code_and_text(error)[0]
                    if code == _KILL_DENIED and self._flavour == "mysql":
                        kept.add(thread_id)
                        continue
                    if code != _NO_SUCH_THREAD:
                        raise
                ended.add(thread_id)
            link.pause(0.001)

    def _acknowledge(self, link: _Link, ended: set[int]) -> None:
        """Let sessions go that were told to end, and wait for a replica to acknowledge their commits.

        KILL does not end that wait on MySQL, and after a failover there may be no replica to end it: the fence would wait
        for as long as semi-synchronous replication is told to (for ever, where it must not lose anything). It is switched
        off until these sessions are gone; no client of theirs learns of their commits, for KILL has closed its connection.
        Raises EngineError if somebody waits like that whose connection is open: it would be told of a commit that no replica
        has.
        """
        others = [row["Id"] for row in _outsiders(link, ended) if str(row["State"]).startswith(_AWAITS_REPLICA)]
        if others:
            raise EngineError(
                f"engine {self.name} is not fenced: connections that may not be ended wait for a replica to acknowledge"
                f" their commits: {', '.join(map(str, others))}"
            )
        waiting = link.ask("show global status like 'Rpl\\_semi\\_sync\\_%%\\_wait\\_sessions'")
        for row in waiting:
            if int(row["Value"]) == 0:
                continue
            switch = str(row["Variable_name"]).lower().replace("_wait_sessions", "_enabled")
            link.ask(f"set global {switch} = 0")
            try:
                while not ended.isdisjoint(_client_ids(link)):
                    link.pause(0.001)
            finally:
                link.allow(PUT_BACK_S)
                link.ask(f"set global {switch} = 1")

    def _wait_no_writers(self, link: _Link) -> None:
        """Until InnoDB has no transaction with changes that belongs to a session.

        The list in information_schema is quick to read, but made anew only if nobody has read it for 0.1 s
        (CACHE_MIN_IDLE_TIME_NS in trx0i_s.cc): what it shows may have ended, and goes on being shown for as long as
        somebody looks. InnoDB's monitor is never old, and long where there are many sessions; so it has the last word
        where the list is not empty.
        """
        while writers := _listed_writers(link):
            text = str(link.ask("show engine innodb status")[0]["Status"])
            is_whole = "... truncated..." not in text
            if is_whole:
                writers = _monitored_writers(text)
                if not writers:
                    return
            try:
                link.pause(0.002 if is_whole else LIST_IDLE_S)
            except EngineError as error:
                raise EngineError(
                    f"engine {self.name} is not fenced: connections with a writing transaction open: {', '.join(writers)}"
                ) from error

    def _refused_with(self, link: _Link) -> str:
        try:
            link.ask(_WRITE)
        except pymysql.err.MySQLError as error:
            return str(_code_and_text(error)[0])
        return ""

    def _prove_writable(self, link: _Link) -> None:
        is_plain, is_super = self._read_only(link)
        code = self._refused_with(link)
        if is_plain or is_super or code == str(_OPTION_PREVENTS):
            raise EngineError(f"engine {self.name} still refuses writes (read_only = {int(is_plain)}, {code})")


def _client_ids(link: _Link) -> set[int]:
    """The server's ids of all client sessions, ours among them. Not by SHOW PROCESSLIST, and not in rows: a thousand of them
    take PyMySQL longer than all else that a fence does. (performance_schema's table of the same name is empty where that
    schema is switched off, and has no threads that it does not watch.)"""
    ids = link.value(f"select group_concat(id) from information_schema.processlist where {_CLIENTS}")
    return {int(one) for one in str(ids).split(",")} if ids else set()


def _outsiders(link: _Link, own: Collection[int]) -> list[dict[str, Any]]:
    """Client sessions but for `own`, as the server describes them."""
    ids = ", ".join(str(one) for one in sorted(_client_ids(link).difference(own)))
    if not ids:
        return []
    return link.ask(
        "select id as Id, user as User, host as Host, db, command as Command, time as Time, state as State"
        f" from information_schema.processlist where id in ({ids}) and {_CLIENTS}"
    )


def _listed_writers(link: _Link) -> list[str]:
    """Connections with a transaction that has changed something, now or up to 0.1 s ago."""
    rows = link.ask(
        "select trx_mysql_thread_id as id from information_schema.innodb_trx"
        " where trx_rows_modified > 0 and trx_mysql_thread_id <> 0"
    )
    return [str(row["id"]) for row in rows]


def _monitored_writers(text: str) -> list[str]:
    """The same, as InnoDB's monitor tells at this moment."""
    found = [block.group() for block in _MONITORED.finditer(text)]
    return [
        thread.group(1)
        for block in found
        if _MONITORED_CHANGES.search(block) and (thread := _MONITORED_THREAD.search(block)) is not None
    ]


def _in_doubt(link: _Link) -> list[str]:
    names = [row["data"] for row in link.ask("xa recover")]
    # MariaDB gives bytes.
    return [name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name) for name in names]


def _xids(link: _Link, *, is_maria: bool) -> list[str]:
    """Prepared transactions as XA COMMIT wants them: `X'gtrid',X'bqual',format`."""
    if is_maria:
        return [str(row["data"]) for row in link.ask("xa recover format = 'sql'")]
    found = []
    for row in link.ask("xa recover convert xid"):
        data = str(row["data"]).removeprefix("0x")
        cut = 2 * int(row["gtrid_length"])
        found.append(f"X'{data[:cut]}',X'{data[cut:]}',{int(row['formatID'])}")
    return found


def _replica(link: _Link) -> dict[str, Any]:
    """The replica's state by one set of names; empty if the server is no replica."""
    rows: Sequence[dict[str, Any]] = link.ask("show replica status")
    if not rows:
        return {}
    row = rows[0]

    def either(new: str, old: str) -> Any:
        return row[new] if new in row else row.get(old)

    return {
        "io": either("Replica_IO_Running", "Slave_IO_Running"),
        "sql": either("Replica_SQL_Running", "Slave_SQL_Running"),
        "host": either("Source_Host", "Master_Host"),
        "port": either("Source_Port", "Master_Port"),
        "lag_s": either("Seconds_Behind_Source", "Seconds_Behind_Master"),
        "received": str(either("Retrieved_Gtid_Set", "Gtid_IO_Pos") or "").replace("\n", ""),
        "error": row.get("Last_SQL_Error") or row.get("Last_IO_Error") or "",
    }


def _covers(have: str, wanted: str) -> bool:
    """Whether a MariaDB position (`0-1-42,1-2-7`: domain, server, sequence) includes another."""
    reached = {domain: int(number) for domain, _, number in _gtids(have)}
    return all(reached.get(domain, 0) >= int(number) for domain, _, number in _gtids(wanted))


def _newest(gtids: str, most: int) -> list[str]:
    """Single transactions out of MySQL's set of them (`uuid:1-5:9,uuid:tag:1-3`; tags came with 8.3): at most `most`,
    shared out among its sources, of each the ones with the highest numbers, which stand last."""
    sources: list[tuple[str, list[tuple[int, int]]]] = []
    for part in filter(None, gtids.replace(" ", "").split(",")):
        uuid, *pieces = part.split(":")
        prefix = uuid
        for piece in pieces:
            first, _, last = piece.partition("-")
            if not first.isdigit():
                prefix = f"{uuid}:{piece}"
                continue
            if not sources or sources[-1][0] != prefix:
                sources.append((prefix, []))
            sources[-1][1].append((int(first), int(last or first)))
    names: list[str] = []
    for number, (prefix, intervals) in enumerate(sources):
        left = (most - len(names)) // (len(sources) - number)
        found: list[str] = []
        for lowest, highest in reversed(intervals):
            numbers = range(max(lowest, highest + 1 - (left - len(found))), highest + 1)
            found = [*(f"{prefix}:{one}" for one in numbers), *found]
        names += found
    return names


def _gtids(text: str) -> list[tuple[str, str, str]]:
    return re.findall(r"(\d+)-(\d+)-(\d+)", text)


def _received(applied: Position, received: str) -> Position:
    """What a replica has applied, together with what it has in its relay log."""
    if not received or covers(applied.kind, applied.text, received):
        return applied
    if applied.kind == "mysql-gtid":
        return Position(applied.kind, f"{applied.text},{received}".lstrip(","))
    return Position(applied.kind, received)


def _instance(link: _Link, *, is_maria: bool) -> str:
    """One running server: two addresses of it give the same, two servers never. UNIX_TIMESTAMP() and Uptime are both
    told as of the statement's begin in whole seconds, so that their difference is the time of the start."""
    if not link.instance:
        status = "information_schema" if is_maria else "performance_schema"
        row = link.ask(
            "select @@global.hostname as host, @@global.port as port, @@global.datadir as data,"
            + (" @@global.server_id as id," if is_maria else " @@global.server_uuid as id,")
            + f" unix_timestamp() - (select variable_value from {status}.global_status"
            + " where variable_name = 'Uptime') as started"
        )[0]
        link.instance = (
            f"server {row['id']} on {row['host']}:{row['port']} in {row['data']}, started at {int(row['started'])}"
        )
    return link.instance


def _version_number(version: str) -> int:
    """101119 for `10.11.19-MariaDB-0+deb12u1`, 90704 for `9.7.4-2`; 0 if it is none."""
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        return 0
    major, minor, patch = map(int, found.groups())
    return major * 10000 + minor * 100 + patch


def _code_and_text(error: BaseException) -> tuple[int, str]:
    """Number and text of a PyMySQL or OS error."""
    arguments = error.args
    code = arguments[0] if arguments and isinstance(arguments[0], int) else 0
    text = str(arguments[1]) if len(arguments) > 1 else str(error) or type(error).__name__
    return code, text
