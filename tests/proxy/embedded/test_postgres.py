from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from proxy.embedded import PostgresPair, PostgresServer, Workspace
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]


async def test_a_standby_shows_what_the_primary_wrote(postgres_pair: PostgresPair) -> None:
    await postgres_pair.primary.execute("create table if not exists seen (i int)", database="app")
    await postgres_pair.standby.wait_streaming(postgres_pair.primary)
    assert await postgres_pair.standby.fetchval("select count(*) from seen", database="app") == 0
    assert await postgres_pair.standby.fetchval("select pg_is_in_recovery()")


async def test_the_former_primary_comes_back_as_a_standby_and_the_way_back_is_the_same(
    fresh_postgres_pair: PostgresPair,
) -> None:
    pair = fresh_postgres_pair
    await pair.primary.execute("create table written (by text)")
    # As a switch leaves it: fenced, and with WAL that the other side never saw.
    for _ in range(2):
        await pair.standby.wait_streaming(pair.primary)
        await pair.primary.execute("alter system set default_transaction_read_only = on")
        assert await pair.standby.fetchval("select pg_promote(true)")
        await pair.primary.execute("checkpoint")
        await pair.standby.execute(f"insert into written values ('{pair.standby.name}')")
        await pair.swap()
        assert await pair.standby.fetchval("select pg_is_in_recovery()")
        assert await pair.standby.fetchval("show default_transaction_read_only") == "off"
    assert await pair.standby.fetchval("select count(*) from written") == 2


async def test_a_server_without_the_wal_it_needs_gets_a_new_base_backup(fresh_postgres_pair: PostgresPair) -> None:
    pair = fresh_postgres_pair
    assert await pair.standby.fetchval("select pg_promote(true)")
    await pair.primary.stop("fast")
    # Nothing to rewind from: the control file is gone.
    (pair.primary.data / "global" / "pg_control").unlink()
    assert await pair.swap() == "base backup"


async def test_a_killed_server_starts_again(fresh_postgres_pair: PostgresPair) -> None:
    pair = fresh_postgres_pair
    await pair.primary.kill()
    await pair.primary.start()
    await pair.standby.wait_streaming(pair.primary)


@pytest.mark.skipif(not Path("/usr/lib/postgresql").exists(), reason="Debian's PostgreSQL is not installed")
async def test_debians_server_speaks_tls(workspace: Workspace) -> None:
    from proxy.embedded.postgres import debian_bin

    server = await PostgresServer.create(workspace, bin_dir=debian_bin(), tls=True, fsync=False)
    await server.start()
    try:
        connection = await server.connect(ssl="require")
        assert await connection.fetchval("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
        await connection.close()
    finally:
        await server.stop()


_PROGRAM = """
import asyncio, sys
from proxy.embedded import PostgresPair

async def main():
    pair = await PostgresPair.create(fsync=False)
    print(pair.workspace.path, pair.primary.pid, pair.standby.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_nothing_is_left_when_the_parent_is_killed() -> None:
    root = Path(__file__).parents[3]
    parent = subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    with parent, parent.stdout:
        folder, *pids = parent.stdout.readline().split()
        family = [child for pid in pids for child in (psutil.Process(int(pid)), *psutil.Process(int(pid)).children())]
        assert len(family) > 4
        parent.send_signal(signal.SIGKILL)

    def is_gone() -> bool:
        return not Path(folder).exists() and not any(process.is_running() for process in family)

    asyncio.run(until(is_gone, f"{folder} and {pids} are gone", timeout_s=20))
