"""A way to a database, directly or through Turnout, and the programs people use on it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from proxy.embedded import Turnout

HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Door:
    """Where a client knocks and as whom."""

    name: str
    """direct, session or transaction."""
    port: int
    user: str = "app"
    password: str = "secret"
    database: str = "app"

    def libpq(self) -> dict[str, str]:
        """Environment of PostgreSQL's own programs."""
        return {
            "PGHOST": HOST,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.database,
            "PGSSLMODE": "disable",
            "PGCONNECT_TIMEOUT": "20",
        }

    def dsn(self, **options: str) -> str:
        """For psycopg and asyncpg."""
        words = {"sslmode": "disable", **options}
        query = "&".join(f"{key}={value}" for key, value in words.items())
        return f"postgresql://{self.user}:{self.password}@{HOST}:{self.port}/{self.database}?{query}"

    def mysql(self) -> list[str]:
        """First arguments of MariaDB's and MySQL's own programs; the database comes last, after all options."""
        address = ["--protocol=tcp", f"--host={HOST}", f"--port={self.port}"]
        return ["--no-defaults", *address, f"--user={self.user}", f"--password={self.password}"]


def client_sockets(turnout: Turnout) -> int:
    """Client connections a Turnout's worker has open."""
    connections = turnout.processes()[1].net_connections(kind="tcp")
    return sum(1 for one in connections if one.laddr.port == turnout.port and one.status != psutil.CONN_LISTEN)


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program did."""

    code: int
    out: str
    err: str


async def run(
    argv: list[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    feed: str = "",
    interrupt_when: Callable[[], Awaitable[None]] | None = None,
    timeout_s: float = 60.0,
) -> Ran:
    """Run a program to its end; Ctrl-C it (SIGINT) as soon as `interrupt_when` returns."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOME": "/nonexistent",
            "LC_ALL": "C.UTF-8",
            **(env or {}),
        },
    )
    try:
        async with asyncio.timeout(timeout_s):
            ending = asyncio.create_task(process.communicate(feed.encode()))
            if interrupt_when is not None:
                await interrupt_when()
                process.send_signal(signal.SIGINT)
            out, err = await ending
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Ran(code=process.returncode, out=out.decode(errors="replace"), err=err.decode(errors="replace"))
