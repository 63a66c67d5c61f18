"""What is measured: a PostgreSQL server and the relays before it or a MySQL one, each started as its users start it.

Everybody logs in by `trust`, so that what is measured is the relaying and not a password's hash. Each relay has one
process (one thread) that moves the bytes.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.clients import ScramUser
from bench.programs import PgBouncer, compile_c, find_pgbouncer, in_workspace, program
from proxy.embedded import PostgresServer, Setup, Turnout, Workspace, fetch_mysql, free_port
from proxy.embedded.certificate import write_certificate
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from proxy.embedded.process import Process, ServerFailed

PoolMode = Literal["session", "transaction"]

_ROOT: Final = Path(__file__).resolve().parents[1]

BACKENDS_IN_TRANSACTION_MODE: Final = 100
"""Of each pool. No client waits for one at up to as many clients; at 1,000 they share."""

_PGBOUNCER_INI: Final = """\
[databases]
* = host=127.0.0.1 port={server_port}{forced}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
listen_backlog = 4096
unix_socket_dir =
pool_mode = {pool_mode}
default_pool_size = {pool_size}
max_client_conn = 10000
ignore_startup_parameters = extra_float_digits
logfile = {folder}/pgbouncer-{port}.out
{more}
"""

_HAPROXY_CFG: Final = """\
global
    nbthread 1
    maxconn 5000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen database
    bind 127.0.0.1:{port}
    server only 127.0.0.1:{server_port}
"""


_ROUTER_CONF: Final = """\
[DEFAULT]
plugin_folder = {plugins}
logging_folder = {folder}
runtime_folder = {folder}
data_folder = {folder}
[logger]
level = warning
[io]
threads = 1
[routing:only]
bind_address = 127.0.0.1
bind_port = {port}
destinations = 127.0.0.1:{server_port}
routing_strategy = first-available
protocol = classic
client_ssl_mode = DISABLED
server_ssl_mode = DISABLED
max_connections = 2000
"""


@dataclass(frozen=True, slots=True)
class Way:
    """How clients come: what a relay is configured for."""

    pool_mode: PoolMode
    tls: bool = False
    """Between client and relay; the server is on loopback, in clear."""
    user: ScramUser | None = None
    """Who logs in by SCRAM; None: everybody does, by trust."""

    @property
    def pool_size(self) -> int:
        return 5_000 if self.pool_mode == "session" else BACKENDS_IN_TRANSACTION_MODE


def cpu_ns(pid: int) -> int:
    """Processor time of a process up to now, in nanoseconds: user and system, all its threads that live."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, in bytes; what the kernel holds for it (socket buffers, page tables) is not in it."""

    private: int
    """Resident and not shared with another process."""
    pss: int
    """The same, and its part of what is shared."""
    rss: int


def memory(pid: int) -> Memory:
    """Now, from smaps_rollup."""
    sizes = {
        words[0]: int(words[1]) * 1024
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        if len(words := line.split()) == 3
    }
    return Memory(
        private=sizes["Private_Clean:"] + sizes["Private_Dirty:"],
        pss=sizes["Pss:"],
        rss=sizes["Rss:"],
    )


@dataclass(frozen=True, slots=True)
class Relay:
    """A way to the server."""

    name: str
    port: int
    pids: tuple[int, ...] = ()
    """Processes that move bytes; none on the direct way."""
    supervisor: int | None = None
    """Turnout's other process, measured apart: no query passes it."""


async def _listening(port: int, process: Process, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.exit_code is not None:
            raise ServerFailed(f"{process.name} ended with code {process.exit_code}: {process.last_words()}")
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        await asyncio.sleep(0.02)
    raise ServerFailed(f"{process.name} does not listen after {timeout_s:g} s: {process.last_words()}")


@asynccontextmanager
async def server(workspace: Workspace, max_connections: int = 2_000) -> AsyncIterator[PostgresServer]:
    """A PostgreSQL server that trusts everybody on loopback."""
    hba = workspace.path / "pg_hba.conf"
    hba.write_text("host all all 127.0.0.1/32 trust\n")
    workspace.give(hba)
    one = await PostgresServer.create(
        workspace, "server", max_connections=max_connections, fsync=False, settings={"hba_file": str(hba)}
    )
    await one.start()
    try:
        yield one
    finally:
        await one.stop("immediate")


def certificate(workspace: Workspace) -> tuple[Path, Path]:
    """Key and certificate for every relay of the workspace, which all its processes can read."""
    folder = workspace.path / "tls"
    if not folder.exists():
        folder.mkdir()
        workspace.give(folder)
        for path in write_certificate(folder):
            workspace.give(path)
    return folder / "server.key", folder / "server.crt"


@asynccontextmanager
async def floor(workspace: Workspace, server_port: int) -> AsyncIterator[Relay]:
    """`floor.c`: what moving the bytes costs."""
    port = free_port()
    built = workspace.path / "floor"
    async with _child(
        [built if built.exists() else compile_c("floor", workspace), str(port), str(server_port)], workspace, "floor"
    ) as child:
        await _listening(port, child)
        yield Relay(name="floor", port=port, pids=(child.pid,))


@asynccontextmanager
async def pgbouncer(
    workspace: Workspace, engine: PostgresServer, way: Way, which: PgBouncer | None = None
) -> AsyncIterator[Relay]:
    """The PgBouncer of this machine; it refuses to run as root, so it runs as the servers' account."""
    which = which or find_pgbouncer()
    port = free_port()
    if way.user is None:
        # `any` logs in at the server as the user that [databases] names.
        more = ["auth_type = any"]
    else:
        users = workspace.path / f"userlist-{port}.txt"
        users.write_text(f'"{way.user.name}" "{way.user.verifier}"\n')
        workspace.give(users)
        more = ["auth_type = scram-sha-256", f"auth_file = {users}"]
    if which.prepares_in_transactions:
        more.append("max_prepared_statements = 200")
    if way.tls:
        key, cert = certificate(workspace)
        more += ["client_tls_sslmode = require", f"client_tls_key_file = {key}", f"client_tls_cert_file = {cert}"]
    config = workspace.path / f"pgbouncer-{port}.ini"
    config.write_text(
        _PGBOUNCER_INI.format(
            server_port=engine.port,
            port=port,
            pool_mode=way.pool_mode,
            pool_size=way.pool_size,
            folder=workspace.path,
            forced=f" user={SUPERUSER}" if way.user is None else "",
            more="\n".join(more),
        )
    )
    workspace.give(config)
    async with pgbouncer_from(config, workspace, port, which) as relay:
        yield relay


@asynccontextmanager
async def pgbouncer_from(config: Path, workspace: Workspace, port: int, which: PgBouncer) -> AsyncIterator[Relay]:
    """PgBouncer with that config."""
    async with _child([in_workspace(which.path, workspace), "-q", config], workspace, f"pgbouncer-{port}") as child:
        await _listening(port, child)
        yield Relay(name="PgBouncer", port=port, pids=(child.pid,))


@asynccontextmanager
async def bare_reader(workspace: Workspace) -> AsyncIterator[Relay]:
    """`bare_reader.py`: accepts and waits, for measurements of memory."""
    port = free_port()
    async with _child(
        [sys.executable, "-m", "bench.bare_reader", str(port)], workspace, "bare-reader", ours=True
    ) as one:
        await _listening(port, one)
        yield Relay(name="bare reader", port=port, pids=(one.pid,))


@asynccontextmanager
async def haproxy(workspace: Workspace, server_port: int) -> AsyncIterator[Relay]:
    """HAProxy of the system: bytes only, one backend for each client."""
    port = free_port()
    config = workspace.path / f"haproxy-{port}.cfg"
    config.write_text(_HAPROXY_CFG.format(port=port, server_port=server_port))
    workspace.give(config)
    # -db: in the foreground, and one process
    async with _child([program("haproxy", "haproxy"), "-db", "-f", config], workspace, f"haproxy-{port}") as child:
        await _listening(port, child)
        yield Relay(name="HAProxy", port=port, pids=(child.pid,))


@asynccontextmanager
async def mysql_router(workspace: Workspace, server_port: int) -> AsyncIterator[Relay]:
    """MySQL's own: one thread for the bytes, no TLS, a server connection for each client."""
    port = free_port()
    config = workspace.path / f"router-{port}.conf"
    folder = workspace.folder(f"router-{port}")
    root = fetch_mysql.fetch(fetch_mysql.ROUTER) / "root"
    config.write_text(
        _ROUTER_CONF.format(
            port=port, server_port=server_port, folder=folder, plugins=root / "usr/lib/mysqlrouter/plugin"
        )
    )
    workspace.give(config)
    command = [*fetch_mysql.program(fetch_mysql.ROUTER), "-c", config]
    async with _child(command, workspace, f"router-{port}") as child:
        await _listening(port, child)
        yield Relay(name="MySQL Router", port=port, pids=(child.pid,))


@asynccontextmanager
async def turnout(workspace: Workspace, engine: PostgresServer, way: Way) -> AsyncIterator[Relay]:
    """`python -m proxy serve` with one worker."""
    setup = Setup(
        protocol="postgresql",
        engines={"only": engine.address},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={} if way.user is None else {way.user.name: way.user.verifier},
        auth_method="trust" if way.user is None else "scram-sha-256",
        pool_mode=way.pool_mode,
        service={"pool_size": way.pool_size},
        log_level="warning",
    )
    if way.tls:
        key, cert = certificate(workspace)
        setup.listener = {
            "client_tls_sslmode": "require",
            "client_tls_key_file": str(key),
            "client_tls_cert_file": str(cert),
        }
    async with turnout_of(setup, workspace) as relay:
        yield relay


@asynccontextmanager
async def turnout_of(setup: Setup, workspace: Workspace) -> AsyncIterator[Relay]:
    """Turnout with that config."""
    folder = workspace.path / f"turnout-{setup.client_port}"
    folder.mkdir()
    one = Turnout(setup, folder)
    await one.start()
    try:
        supervisor, *workers = (process.pid for process in one.processes())
        yield Relay(name="Turnout", port=one.port, pids=tuple(workers), supervisor=supervisor)
    finally:
        await one.stop()


@asynccontextmanager
async def _child(
    argv: list[str | Path], workspace: Workspace, name: str, *, ours: bool = False
) -> AsyncIterator[Process]:
    """`ours`: a program of this repository, which the servers' account may not be able to read."""
    child = Process(
        argv,
        log=workspace.path / f"{name}.log",
        cwd=_ROOT if ours else workspace.path,
        as_nobody=not ours,
        death_signal=signal.SIGKILL,
    )
    try:
        yield child
    finally:
        await child.stop((signal.SIGTERM, 5.0), (signal.SIGINT, 2.0))


def allow_many_descriptors() -> None:
    """As many as the system lets us; the relays inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
