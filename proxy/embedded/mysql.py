"""MariaDB (Debian's) and real MySQL (see `fetch_mysql`) servers, alone or as a pair with GTID replication.

Both flavours are one class with a small difference of their own each. The accounts every server has:

- `root`/`secret` from 127.0.0.1, may do everything
- `turnout`/`secret`, the admin account with just the rights design.md's config asks for
- `repl`/`secret`, for replication
- `app`/`secret`, an ordinary account that owns the database `app`; `read_only` binds it

They are made before the binary log begins, so that two servers made alike have the same, empty GTID set.
"""

from __future__ import annotations

import abc
import asyncio
import os
import shutil
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import pymysql
import pymysql.cursors

from proxy.embedded import fetch_mysql
from proxy.embedded.made import copy_folder, make_once
from proxy.embedded.process import (
    BinaryMissing,
    Process,
    ServerFailed,
    Workspace,
    free_port,
    is_root,
    run,
)

PASSWORD: Final = "secret"

_ACCOUNTS: Final = (
    "create user if not exists root@'127.0.0.1'",
    f"alter user root@'127.0.0.1' identified by '{PASSWORD}'",
    "grant all on *.* to root@'127.0.0.1' with grant option",
    f"create user repl@'%' identified by '{PASSWORD}'",
    "grant replication slave on *.* to repl@'%'",
    "create database app",
    f"create user app@'%' identified by '{PASSWORD}'",
    "grant all on app.* to app@'%'",
    f"create user turnout@'%' identified by '{PASSWORD}'",
)


class MySqlFamilyServer(abc.ABC):
    """One server. `create` makes it, `clone_to` makes a replica of it while it has not written anything yet."""

    flavour: ClassVar[str]

    def __init__(self, workspace: Workspace, name: str, number: int, port: int) -> None:
        self.workspace = workspace
        self.name = name
        self.number = number
        """server_id"""
        self.port = port
        self.host = "127.0.0.1"
        self.data = workspace.path / name
        self.socket = workspace.path / f"{name}.sock"
        self.log = workspace.path / f"{name}.log"
        self.is_durable = True
        self.options: tuple[str, ...] = ()
        self._process: Process | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.exit_code is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self.is_running and self._process else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.address} {'running' if self.is_running else 'stopped'}>"

    # --- what differs ------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _program(self) -> list[str | Path]:
        """The server and where its files are. Raises BinaryMissing."""

    @abc.abstractmethod
    async def _initialise(self) -> None:
        """Make the data folder, with a root@localhost that has no password."""

    @abc.abstractmethod
    def _flavour_options(self) -> list[str]: ...

    @abc.abstractmethod
    def _grants(self) -> Sequence[str]:
        """Rights of the admin account `turnout`."""

    @abc.abstractmethod
    def _follow(self, source: MySqlFamilyServer) -> Sequence[str]:
        """Statements that make this server a read-only replica."""

    @abc.abstractmethod
    def _is_streaming(self, row: Mapping[str, Any]) -> bool:
        """Judge one row of SHOW REPLICA STATUS."""

    @abc.abstractmethod
    def _replication_error(self, row: Mapping[str, Any]) -> str: ...

    @abc.abstractmethod
    async def wait_caught_up(self, source: MySqlFamilyServer, timeout_s: float = 30.0) -> None:
        """Until this replica has applied what `source` had written when we asked."""

    # --- making and ending -------------------------------------------------------------------------------------------

    @classmethod
    async def create(
        cls,
        workspace: Workspace,
        name: str = "blue",
        *,
        number: int = 1,
        port: int | None = None,
        durable: bool = True,
        options: Sequence[str] = (),
    ) -> Self:
        """A new data folder with all accounts; not started. `durable`: each commit is flushed to disk."""
        server = cls(workspace, name, number, port or free_port())
        server.is_durable = durable
        server.options = tuple(options)
        # The first time MySQL is fetched, 66 MB.
        program = await asyncio.to_thread(server._program)
        await make_once(f"{cls.flavour} {program} {server.options}", server.data, server._make, workspace)
        server._forget_uuid()
        return server

    async def _make(self) -> None:
        """A new data folder with all accounts."""
        await self._initialise()
        statements = ["set sql_log_bin = 0", *_ACCOUNTS, *self._grants()]
        try:
            await self.start(more=["--skip-log-bin"])
            await self.execute(*statements, as_local_root=True)
            await self.stop()
        finally:
            await self.kill()

    def _forget_uuid(self) -> None:
        """Of a copy: no two MySQL servers may have the same one; it gives itself another at its start."""
        (self.data / "auto.cnf").unlink(missing_ok=True)

    def _tmp(self) -> Path:
        """Each server its own: in a common one they take each other's temporary tables for their own."""
        return self.workspace.folder(f"{self.name}-tmp")

    async def start(self, timeout_s: float = 60.0, *, more: Sequence[str] = ()) -> None:
        """Until it answers on its socket. A replica has to be told to be read-only again, see `follow`."""
        assert not self.is_running, f"{self.name} runs already"
        self.socket.unlink(missing_ok=True)
        flush = "1" if self.is_durable else "2"
        self._process = Process(
            [
                *self._program(),
                f"--datadir={self.data}",
                f"--tmpdir={self._tmp()}",
                f"--port={self.port}",
                "--bind-address=127.0.0.1",
                f"--socket={self.socket}",
                f"--pid-file={self.workspace.path / f'{self.name}.pid'}",
                f"--log-error={self.log}",
                f"--server-id={self.number}",
                "--skip-name-resolve",
                "--secure-file-priv=",
                "--local-infile=1",
                "--max-connections=600",
                "--max-connect-errors=1000000",
                "--binlog-format=row",
                "--innodb-buffer-pool-size=64M",
                f"--innodb-flush-log-at-trx-commit={flush}",
                f"--sync-binlog={1 if self.is_durable else 0}",
                *([] if "--skip-log-bin" in more else [f"--log-bin={self.data}/bin", "--log-slave-updates=1"]),
                *self._flavour_options(),
                *self.options,
                *more,
            ],
            log=self.log,
            cwd=self.workspace.path,
            as_nobody=True,
            # It takes a second or two to end in order; nothing in the data folder is worth it.
            death_signal=signal.SIGKILL,
            env=_environment(self.workspace),
            niceness=self.workspace.niceness,
        )
        deadline = time.monotonic() + timeout_s
        why = ""
        while time.monotonic() < deadline:
            if self._process.exit_code is not None:
                raise ServerFailed(f"{self.flavour} {self.name} did not start: {self._process.last_words()}")
            try:
                # Not by PyMySQL, which leaves the socket of a refused connection to the garbage collector.
                with socket.socket(socket.AF_UNIX) as attempt:
                    attempt.connect(str(self.socket))
            except OSError as error:
                why = str(error)
                await asyncio.sleep(0.03)
                continue
            await self.execute("do 1", as_local_root=True)
            return
        await self.kill()
        raise ServerFailed(f"{self.flavour} {self.name} did not accept logins within {timeout_s:g} s: {why}")

    async def stop(self, timeout_s: float = 60.0) -> None:
        """In order, so that it can be started or copied. Idempotent."""
        if self._process is not None:
            await self._process.stop((signal.SIGTERM, timeout_s))
            self._process = None

    async def kill(self) -> None:
        """SIGKILL: a crash."""
        if self._process is not None:
            await self._process.stop()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: an engine that takes connections and does not answer."""
        if self._process is not None:
            self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send(signal.SIGCONT)

    # --- replication -------------------------------------------------------------------------------------------------

    async def clone_to(self, name: str, *, port: int | None = None) -> Self:
        """A server like this one, which is stopped and has no binary log yet: a copy of its folder; not started."""
        assert not self.is_running
        clone = type(self)(self.workspace, name, self.number + 1, port or free_port())
        clone.is_durable = self.is_durable
        clone.options = self.options
        await copy_folder(self.data, clone.data, self.workspace)
        clone._forget_uuid()
        return clone

    async def follow(self, source: MySqlFamilyServer, timeout_s: float = 30.0) -> None:
        """Be a read-only replica of `source`, and wait until it runs and has caught up."""
        await self.execute(*self._follow(source), as_local_root=True)
        deadline = time.monotonic() + timeout_s
        row: Mapping[str, Any] = {}
        while time.monotonic() < deadline:
            rows = await self.fetch("show replica status", as_local_root=True)
            if rows and self._is_streaming(rows[0]):
                await self.wait_caught_up(source, timeout_s)
                return
            if rows and self._replication_error(rows[0]):
                row = rows[0]
                break
            await asyncio.sleep(0.02)
        raise ServerFailed(
            f"{self.name} does not replicate from {source.name}: {self._replication_error(row) or 'no answer'}"
        )

    async def rejoin(self, primary: MySqlFamilyServer) -> str:
        """Come back as a replica of `primary`, after it was promoted. Returns how: always `gtid`."""
        if not self.is_running:
            await self.start()
        await self.follow(primary)
        return "gtid"

    # --- talking to it -----------------------------------------------------------------------------------------------

    def connect_blocking(
        self, database: str | None = None, user: str = "root", password: str = PASSWORD, **options: Any
    ) -> Any:
        """A PyMySQL connection over TCP, autocommit on. Blocks."""
        return pymysql.connect(
            host=self.host,
            port=self.port,
            user=user,
            password=password,
            database=database,
            **{
                "autocommit": True,
                "connect_timeout": 10,
                "read_timeout": 60,
                "cursorclass": pymysql.cursors.DictCursor,
                **options,
            },
        )

    async def execute(self, *statements: str, as_local_root: bool = False, database: str | None = None) -> None:
        """Run statements one after the other on one connection of root's."""
        await asyncio.to_thread(self._run, statements, as_local_root, database)

    async def fetch(
        self, sql: str, *, as_local_root: bool = False, database: str | None = None
    ) -> list[dict[str, Any]]:
        """The rows of one statement, on a connection of root's."""
        rows: list[dict[str, Any]] = await asyncio.to_thread(self._run, [sql], as_local_root, database)
        return rows

    async def fetchval(self, sql: str, *, database: str | None = None) -> Any:
        """First column of the first row; None without rows."""
        rows = await self.fetch(sql, database=database)
        return next(iter(rows[0].values())) if rows else None

    def _run(self, statements: Sequence[str], as_local_root: bool, database: str | None) -> Any:
        if as_local_root:
            connection = self.connect_blocking(database, password="", unix_socket=str(self.socket))
        else:
            connection = self.connect_blocking(database)
        try:
            with connection.cursor() as cursor:
                for sql in statements:
                    cursor.execute(sql)
                return list(cursor.fetchall())
        finally:
            connection.close()


class MariaDBServer(MySqlFamilyServer):
    """Debian's MariaDB."""

    flavour = "MariaDB"

    def _program(self) -> list[str | Path]:
        found = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/usr/libexec")
        if found is None:
            raise BinaryMissing("no MariaDB server: apt-get install mariadb-server-core")
        return [found, "--no-defaults", *(["--user=nobody"] if not is_root() else [])]

    async def _initialise(self) -> None:
        share = next(
            (
                path
                for path in (Path("/usr/share/mysql"), Path("/usr/share/mariadb"))
                if list(path.glob("*system_tables.sql"))
            ),
            None,
        )
        if share is None:
            raise BinaryMissing("MariaDB's system tables are not in /usr/share: apt-get install mariadb-server-core")
        script = self.workspace.path / f"{self.name}-init.sql"
        kinds = ("system_tables", "performance_tables", "system_tables_data")
        parts = ["create database mysql;", "use mysql;", "set @auth_root_socket = NULL;"]
        parts += [next(share.glob(f"*_{kind}.sql")).read_text() for kind in kinds]
        script.write_text("\n".join(parts) + "\ndelete from global_priv where user = '';\n")
        self.workspace.give(script)
        self.workspace.folder(self.name)
        await run(
            [
                *self._program(),
                f"--datadir={self.data}",
                f"--tmpdir={self._tmp()}",
                "--bootstrap",
                "--innodb-log-file-size=32M",
                "--log-warnings=0",
            ],
            workspace=self.workspace,
            log=self.workspace.path / f"{self.name}-init.log",
            timeout_s=60,
            env=_environment(self.workspace),
            stdin=script,
        )

    def _flavour_options(self) -> list[str]:
        return [
            "--gtid-domain-id=0",
            "--gtid-strict-mode=1",
            "--innodb-log-file-size=32M",
            # One applier that flushes each commit cannot keep up with a primary that groups them.
            "--slave-parallel-threads=4",
            # A replica that lost its source asks again after this many seconds.
            "--slave-net-timeout=10",
        ]

    def _grants(self) -> Sequence[str]:
        return (
            "grant process, reload, read_only admin, connection admin, references, show view on *.* to turnout@'%'",
            "grant replication slave admin, slave monitor, binlog monitor on *.* to turnout@'%'",
            "grant select on mysql.* to turnout@'%'",
        )

    def _follow(self, source: MySqlFamilyServer) -> Sequence[str]:
        return (
            "set global read_only = 1",
            "stop slave",
            # What this server wrote itself counts as applied: it was the primary up to that point.
            "set global gtid_slave_pos = @@global.gtid_current_pos",
            (
                f"change master to master_host = '{source.host}', master_port = {source.port}, master_user = 'repl',"
                f" master_password = '{PASSWORD}', master_use_gtid = slave_pos, master_connect_retry = 1"
            ),
            "start slave",
        )

    def _is_streaming(self, row: Mapping[str, Any]) -> bool:
        return [row["Slave_IO_Running"], row["Slave_SQL_Running"]] == ["Yes", "Yes"]

    def _replication_error(self, row: Mapping[str, Any]) -> str:
        return str(row.get("Last_SQL_Error") or row.get("Last_IO_Error") or "")

    async def wait_caught_up(self, source: MySqlFamilyServer, timeout_s: float = 30.0) -> None:
        position = await source.fetchval("select @@global.gtid_binlog_pos")
        if await self.fetchval(f"select master_gtid_wait('{position}', {timeout_s:g})") != 0:
            raise ServerFailed(f"{self.name} did not apply {position} within {timeout_s:g} s")


class MySQLServer(MySqlFamilyServer):
    """Real MySQL, from the cache folder of `fetch_mysql`."""

    flavour = "MySQL"

    def _program(self) -> list[str | Path]:
        root = fetch_mysql.fetch() / "root"
        return [
            *fetch_mysql.program(),
            "--no-defaults",
            f"--basedir={root}/usr",
            f"--plugin-dir={root}/usr/lib/mysql/plugin",
            f"--lc-messages-dir={root}/usr/share/mysql",
            f"--character-sets-dir={root}/usr/share/mysql/charsets",
        ]

    async def _initialise(self) -> None:
        await run(
            [
                *self._program(),
                "--initialize-insecure",
                f"--datadir={self.data}",
                f"--tmpdir={self._tmp()}",
                *self._small(),
            ],
            workspace=self.workspace,
            log=self.workspace.path / f"{self.name}-init.log",
            timeout_s=120,
            env=_environment(self.workspace),
        )

    def _small(self) -> list[str]:
        return ["--innodb-redo-log-capacity=16M"]

    def _flavour_options(self) -> list[str]:
        return [
            "--gtid-mode=ON",
            "--enforce-gtid-consistency=ON",
            "--mysqlx=OFF",
            "--replica-net-timeout=10",
            *self._small(),
        ]

    def _grants(self) -> Sequence[str]:
        return (
            "grant process, replication client, references, show view on *.* to turnout@'%'",
            "grant reload on *.* to turnout@'%'",
            "grant system_variables_admin, connection_admin, replication_slave_admin, xa_recover_admin on *.* to turnout@'%'",
            "grant select on mysql.* to turnout@'%'",
            "grant select on performance_schema.* to turnout@'%'",
        )

    def _follow(self, source: MySqlFamilyServer) -> Sequence[str]:
        return (
            "set global super_read_only = 1",
            "stop replica",
            (
                f"change replication source to source_host = '{source.host}', source_port = {source.port},"
                f" source_user = 'repl', source_password = '{PASSWORD}', source_auto_position = 1,"
                " get_source_public_key = 1, source_connect_retry = 1"
            ),
            "start replica",
        )

    def _is_streaming(self, row: Mapping[str, Any]) -> bool:
        return [row["Replica_IO_Running"], row["Replica_SQL_Running"]] == ["Yes", "Yes"]

    def _replication_error(self, row: Mapping[str, Any]) -> str:
        return str(row.get("Last_SQL_Error") or row.get("Last_IO_Error") or "")

    async def wait_caught_up(self, source: MySqlFamilyServer, timeout_s: float = 30.0) -> None:
        done = await source.fetchval("select @@global.gtid_executed")
        if await self.fetchval(f"select wait_for_executed_gtid_set('{done}', {timeout_s:g})") != 0:
            raise ServerFailed(f"{self.name} did not apply {done} within {timeout_s:g} s")


class _Pair:
    """A primary `blue` and its replica `green`."""

    kind: ClassVar[type[MySqlFamilyServer]]

    def __init__(self, workspace: Workspace, primary: MySqlFamilyServer, standby: MySqlFamilyServer) -> None:
        self.workspace = workspace
        self.primary = primary
        self.standby = standby

    @classmethod
    async def create(cls, *, niceness: int = 0, durable: bool = True, options: Sequence[str] = ()) -> Self:
        """Both running, the replica caught up. What fails on the way is cleaned up."""
        workspace = Workspace("turnout-my-", niceness=niceness)
        servers: list[MySqlFamilyServer] = []
        is_complete = False
        try:
            blue = await cls.kind.create(workspace, "blue", durable=durable, options=options)
            green = await blue.clone_to("green")
            servers = [blue, green]
            await asyncio.gather(blue.start(), green.start())
            await green.follow(blue)
            is_complete = True
            return cls(workspace, blue, green)
        finally:
            if not is_complete:
                for server in servers:
                    await server.kill()
                workspace.close()

    def servers(self) -> tuple[MySqlFamilyServer, MySqlFamilyServer]:
        return self.primary, self.standby

    def by_name(self, name: str) -> MySqlFamilyServer:
        return next(server for server in self.servers() if server.name == name)

    async def swap(self) -> str:
        """After a promotion of the replica: the roles as they are now, and the old primary follows. Returns how."""
        self.primary, self.standby = self.standby, self.primary
        return await self.standby.rejoin(self.primary)

    async def close(self) -> None:
        """End both at once and remove everything."""
        try:
            await asyncio.gather(*(server.kill() for server in self.servers()))
        finally:
            self.workspace.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


class MariaDBPair(_Pair):
    """Two of Debian's MariaDB."""

    kind = MariaDBServer


class MySQLPair(_Pair):
    """Two real MySQL servers."""

    kind = MySQLServer


def _environment(workspace: Workspace) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(workspace.path), "LC_ALL": "C.UTF-8"}
