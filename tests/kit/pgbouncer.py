"""A real PgBouncer: what its console says is right."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from proxy.embedded import BinaryMissing, ServerFailed, Workspace, free_port
from proxy.embedded.process import Process
from tests.kit.waiting import until

_ROOT: Final = Path(__file__).resolve().parents[2]

BUILT: Final = _ROOT / ".venv" / "pgbouncer" / "pgbouncer"
"""Where tools/setup.sh puts one that is newer than the system's."""

_INI: Final = """\
[databases]
app = host=127.0.0.1 port={server_port}
postgres = host=127.0.0.1 port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
pool_mode = {pool_mode}
auth_type = scram-sha-256
auth_file = {users}
admin_users = admin
stats_users = stats
ignore_startup_parameters = extra_float_digits
server_login_retry = 0.1
query_wait_timeout = 20
logfile = {folder}/pgbouncer-{port}.out
"""


@dataclass(frozen=True, slots=True)
class PgBouncer:
    """One that runs."""

    port: int
    version: tuple[int, ...]


def find() -> tuple[str, tuple[int, ...]]:
    """Path and version of $PGBOUNCER, or else of the one that was built here, or else of the system's. Raises
    BinaryMissing."""
    found = os.environ.get("PGBOUNCER") or (str(BUILT) if BUILT.exists() else None)
    path = found or shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if path is None:
        raise BinaryMissing("pgbouncer is not installed: apt-get install pgbouncer, or `make test`, which does it")
    says = subprocess.run([path, "-V"], capture_output=True, text=True, check=False, timeout=20)
    version = re.search(r"(\d+)\.(\d+)\.(\d+)", says.stdout + says.stderr)
    if version is None:
        raise ServerFailed(f"{path} -V says: {says.stdout or says.stderr}")
    return path, tuple(map(int, version.groups()))


@asynccontextmanager
async def running(
    workspace: Workspace, *, server_port: int, pool_mode: str, users: Mapping[str, str]
) -> AsyncIterator[PgBouncer]:
    """Before one server, with databases app and postgres. It refuses to run as root, so it runs as the servers' account."""
    path, version = find()
    own = workspace.path / "pgbouncer"
    if not own.exists():
        # One below a home of mode 0700 cannot be run by that account.
        shutil.copyfile(path, own)
        own.chmod(0o755)
        workspace.give(own)
    port = free_port()
    userlist, config = workspace.path / f"userlist-{port}.txt", workspace.path / f"pgbouncer-{port}.ini"
    userlist.write_text("".join(f'"{name}" "{word}"\n' for name, word in users.items()))
    config.write_text(
        _INI.format(server_port=server_port, port=port, pool_mode=pool_mode, users=userlist, folder=workspace.path)
    )
    for file in (userlist, config):
        workspace.give(file)
    child = Process(
        [own, "-q", config],
        log=workspace.path / f"pgbouncer-{port}.log",
        cwd=workspace.path,
        as_nobody=True,
        death_signal=signal.SIGKILL,
    )

    async def answers() -> bool:
        assert child.exit_code is None, child.last_words()
        try:
            dsn = f"host=127.0.0.1 port={port} user=admin password={users['admin']} dbname=pgbouncer"
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True):
                return True
        except psycopg.OperationalError:
            return False

    try:
        await until(answers, "PgBouncer answers")
        yield PgBouncer(port=port, version=version)
    finally:
        await child.stop((signal.SIGTERM, 1.0))
