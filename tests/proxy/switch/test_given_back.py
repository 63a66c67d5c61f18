"""An aborted switch gives the source back within a second, whatever real thing was in the way.

Measured from outside: somebody writes to the source all the time, and the moment of the abort is the moment after which
the source owes its writes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest
import pytest_asyncio

from proxy import ipc
from proxy.embedded import PostgresPair
from proxy.embedded.postgres import PostgresServer
from proxy.switch.plan import SwitchRecord
from proxy.switch.state import Phase
from proxy.switch.views import Event
from tests.kit.servers import NICENESS
from tests.kit.waiting import until
from tests.proxy.switch.stage import Stage

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair() -> AsyncIterator[PostgresPair]:
    pair = await PostgresPair.create(fsync=False, niceness=NICENESS)
    try:
        await pair.primary.execute("create table heartbeat (at timestamptz)")
        yield pair
    finally:
        await pair.close()


class Writer:
    """Writes to the source all the time; `wrote` are the moments at which a write was acknowledged."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.wrote: list[float] = []

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._write())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            try:
                # A connection of its own each time: an application that comes back.
                await self._server.execute("insert into heartbeat values (now())")
                self.wrote.append(time.monotonic())
            except (asyncpg.ReadOnlySQLTransactionError, asyncpg.AdminShutdownError):
                # Refused by the fence, or ended by it: it tries again.
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)


async def _aborts(stage: Stage, **plan: object) -> tuple[SwitchRecord, float]:
    """The switch, and how long after the beginning of the undoing the source took a write, in seconds."""
    undone: list[float] = []

    def note(event: Event) -> None:
        if event.data.get("phase") == Phase.ABORTING:
            undone.append(time.monotonic())

    stage.orchestrator._publish = note
    writer = Writer(stage.pair.primary)
    async with writer.writing():
        record = await stage.switch(**plan)
        assert record.phase is Phase.ABORTED, (record.phase, record.error)
        (began,) = undone
        await until(lambda: bool(writer.wrote) and writer.wrote[-1] > began, "the source takes a write")
    return record, next(at for at in writer.wrote if at > began) - began


async def test_after_the_drain_deadline(pair: PostgresPair, tmp_path: Path) -> None:
    stage = Stage(pair, tmp_path)
    try:
        stage.crew.silent.add(ipc.Hold)
        record, after_s = await _aborts(stage, drain_timeout_s=0.1)
        assert "did not end their transactions" in record.error
        assert after_s < 1.0
    finally:
        await stage.close()


async def test_of_a_standby_that_is_stuck(pair: PostgresPair, tmp_path: Path) -> None:
    """It does not replay what the source wrote last."""
    stage = Stage(pair, tmp_path, catchup_timeout_s=0.5)
    arm = stage.source.arm

    async def arm_after_it_is_stuck(timeout_s: float = 5.0) -> None:
        await pair.standby.execute("select pg_wal_replay_pause()")
        await pair.primary.execute("insert into heartbeat values (now())")
        await arm(timeout_s)

    stage.source.arm = arm_after_it_is_stuck  # type: ignore[method-assign]
    try:
        record, after_s = await _aborts(stage)
        assert "did not reach the position" in record.error
        assert after_s < 1.0
    finally:
        await pair.standby.execute("select pg_wal_replay_resume()")
        await stage.close()


async def test_of_rows_that_are_found_to_differ_at_the_fence(pair: PostgresPair, tmp_path: Path) -> None:
    """As bad memory or a bad disk changes them: in the standby's file."""
    stage = Stage(pair, tmp_path, compare_at_fence_ms=1_000)
    primary, standby = pair.primary, pair.standby
    await primary.execute(
        "create table marked (id int primary key, word text); insert into marked values (1, 'same'), (2, 'unaltered')",
        database="app",
    )
    await primary.execute("checkpoint")
    path = standby.data / await primary.fetchval("select pg_relation_filepath('marked')", database="app")
    written = await primary.fetchval("select pg_current_wal_lsn()::text")

    async def has_it() -> bool:
        return bool(await standby.fetchval("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", written))

    await until(has_it, "the standby has it")
    # It begins behind this when it is started again.
    await standby.execute("checkpoint")
    has_checksums = await standby.fetchval("show data_checksums") == "on"
    await standby.stop()
    if has_checksums:
        # They find it too, and undo the switch: the row cannot be read then.
        await standby._tool("pg_checksums", "--disable", "-D", str(standby.data), timeout_s=30.0)
    path.write_bytes(path.read_bytes().replace(b"unaltered", b"unalterec"))
    await standby.start()
    await standby.wait_streaming(primary)
    try:
        record, after_s = await _aborts(stage)
        assert record.error == "rows on green are not those of blue: app.public.marked: (2): not alike"
        assert after_s < 1.0
        assert await stage.writable() == [stage.source.name]
        found = stage.journal.report(record.id)["rows_at_fence"]
        assert found["different"] == ["app.public.marked: (2): not alike"]
        # From now on it is known before anybody is held.
        again = await stage.switch()
        assert "check rows failed" in again.error
    finally:
        await stage.close()


async def test_of_a_promotion_that_the_standby_refuses(pair: PostgresPair, tmp_path: Path) -> None:
    """pg_promote makes a file of that name."""
    stage = Stage(pair, tmp_path)
    obstacle = pair.standby.data / "promote"
    obstacle.mkdir()
    try:
        record, after_s = await _aborts(stage)
        assert "could not be promoted" in record.error
        assert after_s < 1.0
        assert await stage.writable() == [stage.source.name]
    finally:
        obstacle.rmdir()
        await stage.close()


async def test_of_a_promotion_that_hangs(pair: PostgresPair, tmp_path: Path) -> None:
    """The standby says that it is one still, for as long as it may take: its recovery process stands still."""
    stage = Stage(pair, tmp_path, promote_timeout_s=0.5)
    promote = stage.target.promote
    assert pair.standby.pid is not None
    (startup,) = [
        child.pid for child in psutil.Process(pair.standby.pid).children() if "startup" in " ".join(child.cmdline())
    ]

    async def promote_while_it_hangs(timeout_s: float = 10.0, *, is_asked: bool = False) -> None:
        os.kill(startup, signal.SIGSTOP)
        await promote(timeout_s, is_asked=is_asked)

    stage.target.promote = promote_while_it_hangs  # type: ignore[method-assign]
    try:
        record, after_s = await _aborts(stage)
        assert "could not be promoted" in record.error
        assert after_s < 1.0
        assert record.stamps["aborting"] - record.stamps["promoting"] < 1_500_000
    finally:
        os.kill(startup, signal.SIGCONT)
        await stage.close()
