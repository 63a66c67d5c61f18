"""The guard on real PostgreSQL servers, with workers that only answer: who takes over, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio

from proxy import ipc
from proxy.clock import SystemClock
from proxy.config import FailoverConfig, ServiceConfig
from proxy.embedded import PostgresPair
from proxy.engines.engine import FenceProof
from proxy.errors import Conflict, EngineError, EngineLost, PlanRefused
from proxy.switch.failover import Health, WorkersWord
from proxy.switch.guard import Guard
from proxy.switch.plan import SwitchRecord
from proxy.switch.state import Phase
from tests.kit.servers import NICENESS
from tests.kit.waiting import until
from tests.proxy.switch.stage import END_S, Stage

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

LIMITS = FailoverConfig(probe_interval_s=0.05, probe_timeout_s=0.3, failures=2, pause_s=0.0, starting_s=0.5)


class Workers:
    """What they know of engines."""

    is_alive = False

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def witness(
        self, service: str, engine: str, epoch: int, since_ns: int, timeout_s: float
    ) -> list[WorkersWord]:
        self.asked.set()
        return [WorkersWord(worker=0, is_alive=self.is_alive, how="as the test says")]


class Guarded:
    """A stage with its guard, and the probes that feed it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.workers = Workers()
        self.guard = Guard(
            {"app": stage.config}, {"app": stage.engines}, stage.orchestrator, stage.journal, self.workers,
            SystemClock(), stage.events.append,
        )  # fmt: skip
        self._probes = [asyncio.create_task(self._probe(name)) for name in stage.engines]

    async def _probe(self, name: str) -> None:
        while True:
            self.guard.probed("app", name, await self.stage.engines[name].probe(LIMITS.probe_timeout_s))
            await self.guard.pause("app", name)

    @property
    def health(self) -> Health:
        return self.guard.view("app").health

    async def answers(self) -> None:
        await until(lambda: self.health is Health.ANSWERING, "the active engine answers")

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in self.stage.events if event.kind == kind]

    async def failover(self) -> SwitchRecord:
        """The newest one, once it has ended."""
        await until(lambda: bool(self.stage.journal.switches(1)), "a failover has begun", END_S)
        record = await self.stage.orchestrator.wait(self.stage.journal.switches(1)[0].id, END_S)
        assert record.strategy == "failover"
        return record

    async def close(self) -> None:
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        await self.guard.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair() -> AsyncIterator[PostgresPair]:
    """One for this module: its tests change the roles."""
    pair = await PostgresPair.create(fsync=False, niceness=NICENESS)
    try:
        yield pair
    finally:
        await pair.close()


@pytest_asyncio.fixture(loop_scope="session")
async def stage(pair: PostgresPair, tmp_path: Path) -> AsyncIterator[Stage]:
    """Leaves a writable primary and a standby behind."""
    stage = Stage(pair, tmp_path, service={"failover": LIMITS})
    try:
        yield stage
    finally:
        pair.primary.thaw()
        await stage.close()
        if not await pair.standby.fetchval("select pg_is_in_recovery()"):
            await pair.swap()


@pytest_asyncio.fixture(loop_scope="session")
async def guarded(stage: Stage) -> AsyncIterator[Guarded]:
    guarded = Guarded(stage)
    try:
        yield guarded
    finally:
        await guarded.close()


async def test_a_silent_primary_that_still_answers_clients_stays(guarded: Guarded) -> None:
    await guarded.answers()
    guarded.workers.is_alive = True
    guarded.stage.pair.primary.freeze()
    await until(lambda: {"suspected", "silent"} <= {one["health"] for one in guarded.told("engine.health")}, "asked")
    await until(lambda: [one["health"] for one in guarded.told("engine.health")].count("silent") > 1, "asked again")
    assert not guarded.stage.journal.switches(1)
    guarded.stage.pair.primary.thaw()
    await guarded.answers()


async def test_nobody_takes_over_when_the_standby_has_failed_too_and_that_is_said(guarded: Guarded) -> None:
    pair = guarded.stage.pair
    await guarded.answers()
    pair.primary.freeze()
    pair.standby.freeze()
    try:
        await until(lambda: bool(guarded.told("failover.impossible")), "it is said")
        [said] = guarded.told("failover.impossible")
        assert (
            f"no engine can take over from {pair.primary.name}: {pair.standby.name}: it cannot be reached"
            in said["why"]
        )
        assert guarded.guard.view("app").why == said["why"]
        assert not guarded.stage.journal.switches(1)
    finally:
        pair.standby.thaw()
        pair.primary.thaw()
    await guarded.answers()


async def test_a_failover_that_fails_gives_the_sessions_back_and_is_the_last_one_until_a_person_says_so(
    guarded: Guarded,
) -> None:
    stage = guarded.stage

    async def refuses(*args: object, **named: object) -> None:
        raise EngineError("no")

    promote, stage.target.promote = stage.target.promote, refuses  # type: ignore[method-assign]
    await guarded.answers()
    stage.pair.primary.freeze()
    record = await guarded.failover()
    assert record.phase is Phase.ABORTED
    assert "could not be promoted: no" in record.error
    assert stage.crew.told(ipc.Release) == [0, 1]
    [said] = guarded.told("failover.automation")
    assert not said["is_on"]
    assert record.id in guarded.guard.view("app").why_not
    await until(lambda: bool(guarded.told("failover.impossible")), "it is said that there is no other one")
    assert len(stage.journal.switches(9)) == 1
    # It is remembered.
    assert not stage.journal.automation("app").is_on
    stage.target.promote = promote  # type: ignore[method-assign]
    guarded.guard.switch_automation("app", True, "ops")
    await until(lambda: len(stage.journal.switches(9)) == 2, "the next one begins")
    record = await guarded.failover()
    assert record.phase is Phase.COMPLETED, record.error


async def test_a_connection_from_before_a_restart_of_the_standby_does_not_make_its_promotion_fail(
    guarded: Guarded,
) -> None:
    """A client library that only looks when it is used finds that out in the promotion."""
    stage = guarded.stage
    promote = stage.target.promote

    async def is_stale_at_first(timeout_s: float = 10.0, *, is_asked: bool = False) -> None:
        stage.target.promote = promote  # type: ignore[method-assign]
        raise EngineLost("the connection ended")

    stage.target.promote = is_stale_at_first  # type: ignore[method-assign]
    await guarded.answers()
    stage.pair.primary.freeze()
    record = await guarded.failover()
    assert record.phase is Phase.COMPLETED, record.error
    assert not guarded.told("failover.automation")


async def test_a_switch_under_way_gives_way_to_the_failover_of_its_source(guarded: Guarded) -> None:
    stage = guarded.stage
    await guarded.answers()
    stage.crew.silent.add(ipc.Prepare)
    switch = stage.orchestrator.begin(stage.plan())
    await until(lambda: stage.crew.told(ipc.Prepare) == [0, 1], "it waits for its workers")
    stage.pair.primary.freeze()
    assert (await stage.orchestrator.wait(switch.id, END_S)).phase is Phase.ABORTED
    await until(lambda: stage.journal.switches(1)[0].strategy == "failover", "a failover has begun", END_S)
    record = await guarded.failover()
    assert record.phase is Phase.COMPLETED, record.error


async def test_after_a_failover_there_is_a_pause_before_the_next(pair: PostgresPair, tmp_path: Path) -> None:
    stage = Stage(pair, tmp_path, service={"failover": FailoverConfig(probe_timeout_s=0.3, probe_interval_s=0.05)})
    stage.journal.automate("app", stage.journal.automation("app").succeeded(SystemClock().wall()))
    guarded = Guarded(stage)
    try:
        await guarded.answers()
        pair.primary.freeze()
        await until(lambda: bool(guarded.told("failover.impossible")), "it is said")
        assert "there was a failover a moment ago" in guarded.told("failover.impossible")[0]["why"]
        assert guarded.guard.view("app").may_begin_at > SystemClock().wall()
        assert not stage.journal.switches(1)
    finally:
        pair.primary.thaw()
        await guarded.close()
        await stage.close()


async def test_the_other_standbys_follow_the_new_primary(pair: PostgresPair, tmp_path: Path) -> None:
    grey = await pair.primary.clone_to("grey")
    await pair.primary.execute("select pg_create_physical_replication_slot('grey')")
    await grey.execute("alter system set primary_slot_name = 'grey'")
    await grey.execute("select pg_reload_conf()")
    stage = Stage(pair, tmp_path, service={"failover": LIMITS}, more=[grey])
    guarded = Guarded(stage)
    # Both have the same: the one that is preferred takes over.
    guarded.guard.preferred = lambda service: pair.standby.name
    try:
        await guarded.answers()
        pair.primary.freeze()
        record = await guarded.failover()
        assert (record.phase, record.target) == (Phase.COMPLETED, pair.standby.name), record.error
        assert stage.journal.report(record.id)["followers"] == [f"grey: streams from {pair.standby.name}"]
        await grey.wait_streaming(pair.standby)
        assert await pair.standby.fetchval("select active from pg_replication_slots where slot_name = 'grey'")
    finally:
        pair.primary.thaw()
        await guarded.close()
        await stage.close()
        await grey.stop("immediate")
        if not await pair.standby.fetchval("select pg_is_in_recovery()"):
            await pair.standby.execute("select pg_drop_replication_slot('grey') from pg_replication_slots")
            await pair.swap()


@pytest.mark.parametrize("phase", [Phase.HOLDING, Phase.PROMOTING, Phase.CUTTING_OVER])
async def test_a_failover_that_an_earlier_supervisor_began_is_finished(stage: Stage, phase: Phase) -> None:
    record = stage.leave(phase, strategy="failover")
    if phase is Phase.CUTTING_OVER:
        await stage.pair.standby.execute("select pg_promote()")
    stage.pair.primary.freeze()
    await stage.orchestrator.recover({})
    ended = await stage.orchestrator.wait(record.id, END_S)
    assert ended.phase is Phase.COMPLETED, ended.error
    assert stage.orchestrator.standing("app").active == stage.target.name
    assert list(stage.journal.deposed("app")) == ([stage.source.name] if phase is not Phase.CUTTING_OVER else [])


async def test_a_failover_whose_source_is_back_is_undone(stage: Stage) -> None:
    record = stage.leave(Phase.HOLDING, strategy="failover")
    await stage.orchestrator.recover({})
    ended = await stage.orchestrator.wait(record.id, END_S)
    assert ended.phase is Phase.ABORTED
    assert await stage.writable() == [stage.source.name]


async def _is_standby_again(guarded: Guarded) -> None:
    """What was fenced follows the primary, and may be seen as a standby again."""
    pair = guarded.stage.pair
    await pair.standby.rejoin(pair.primary)
    await until(lambda: bool(guarded.told("engine.reinstated")), "it is reinstated", END_S)


async def test_a_promotion_that_was_given_up_and_comes_late_is_fenced(guarded: Guarded) -> None:
    stage, standby = guarded.stage, guarded.stage.pair.standby
    await guarded.answers()
    stage.orchestrator.reconfigure({"app": _with_switch(stage, promote_timeout_s=0.5)})
    promote = stage.target.promote
    (startup,) = [
        child.pid for child in psutil.Process(standby.pid).children() if "startup" in " ".join(child.cmdline())
    ]

    async def promote_while_it_hangs(timeout_s: float = 10.0, *, is_asked: bool = False) -> None:
        os.kill(startup, signal.SIGSTOP)
        await promote(timeout_s, is_asked=is_asked)

    stage.target.promote = promote_while_it_hangs  # type: ignore[method-assign]
    try:
        record = await stage.switch()
        assert record.phase is Phase.ABORTED, record.error
        assert await stage.writable() == [stage.source.name]
        # It wakes, and does what it was asked for.
        os.kill(startup, signal.SIGCONT)
        await until(lambda: bool(guarded.told("engine.fenced")), "it is fenced", END_S)
        assert guarded.told("engine.fenced")[0]["engine"] == standby.name
        assert await stage.writable() == [stage.source.name]
    finally:
        await _is_standby_again(guarded)


async def test_a_promotion_that_hung_in_a_failover_serves_when_a_person_says_so(guarded: Guarded) -> None:
    """It came late, and was fenced. And what fences it then does not overtake what promotes it."""
    stage, standby, target = guarded.stage, guarded.stage.pair.standby, guarded.stage.target
    await guarded.answers()
    stage.orchestrator.reconfigure({"app": _with_switch(stage, promote_timeout_s=0.5)})
    promote, fence = target.promote, target.fence
    (startup,) = [
        child.pid for child in psutil.Process(standby.pid).children() if "startup" in " ".join(child.cmdline())
    ]
    happened: list[str] = []

    async def promote_while_it_hangs(timeout_s: float = 10.0, *, is_asked: bool = False) -> None:
        os.kill(startup, signal.SIGSTOP)
        await promote(timeout_s, is_asked=is_asked)

    async def fence_slowly(own_backend_pids: Collection[int] = (), timeout_s: float = 5.0) -> FenceProof:
        await guarded.workers.asked.wait()
        proof = await fence(own_backend_pids, timeout_s)
        happened.append("fenced")
        return proof

    async def promote_quickly(timeout_s: float = 10.0, *, is_asked: bool = False) -> None:
        happened.append("promoted")
        await promote(timeout_s, is_asked=is_asked)

    target.promote, target.fence = promote_while_it_hangs, fence_slowly  # type: ignore[method-assign]
    await stage.pair.primary.kill()
    record = await guarded.failover()
    assert (record.phase, "could not be promoted" in record.error) == (Phase.ABORTED, True), record.error
    assert not guarded.guard.view("app").is_automatic
    target.promote = promote_quickly  # type: ignore[method-assign]
    guarded.workers.asked.clear()
    os.kill(startup, signal.SIGCONT)
    await until(lambda: bool(guarded.guard._bystanders._fencing), "it takes writes, and is about to be fenced", END_S)
    begun = await guarded.guard.start("app", target.name, force=False, by="ops", reason="")
    record = await stage.orchestrator.wait(begun.id, END_S)
    assert record.phase is Phase.COMPLETED, record.error
    assert happened == ["fenced", "promoted"]
    assert await stage.writable() == [target.name]


async def test_a_standby_that_somebody_promoted_while_the_primary_serves_is_told_of_and_fenced(
    guarded: Guarded,
) -> None:
    stage, standby = guarded.stage, guarded.stage.pair.standby
    await guarded.answers()
    await standby.execute("select pg_promote()")
    try:
        await until(lambda: bool(guarded.told("engine.fenced")), "it is fenced", END_S)
        [stray] = guarded.told("engine.stray")
        assert stray == {
            "engine": standby.name,
            "why": f"it takes writes, and {stage.source.name} serves; it is fenced",
        }
        assert await stage.writable() == [stage.source.name]
        assert list(stage.journal.deposed("app")) == [standby.name]
    finally:
        await _is_standby_again(guarded)
    assert not stage.journal.deposed("app")


async def test_a_turnout_that_begins_while_the_active_engine_is_gone_fails_over(stage: Stage) -> None:
    """For it is written down where that one was a moment ago, and its standby has lost it too."""
    pair, before = stage.pair, Guarded(stage)
    try:
        await before.answers()
        await until(lambda: stage.journal.sighting("app") is not None, "it is written down where it is")
    finally:
        await before.close()
    await pair.primary.kill()
    guarded = Guarded(stage)
    try:
        record = await guarded.failover()
        assert (record.phase, record.target) == (Phase.COMPLETED, pair.standby.name), record.error
        assert stage.journal.report(record.id)["failure"]["may_lack_ms"] < LIMITS.lag_tolerance_ms
    finally:
        await guarded.close()


async def test_a_person_may_order_a_failover_once_the_engine_is_gone(pair: PostgresPair, tmp_path: Path) -> None:
    off = FailoverConfig(automatic=False, probe_timeout_s=0.3)
    stage = Stage(pair, tmp_path, service={"failover": off})
    guarded = Guarded(stage)

    async def order(**changes: bool) -> SwitchRecord:
        options: dict[str, Any] = {"force": False, "by": "ops", "reason": "", **changes}
        return await guarded.guard.start("app", pair.standby.name, **options)

    try:
        with pytest.raises(Conflict, match="answers"):
            await order()
        await guarded.close()
        guarded.guard._watches["app"].samples.clear()
        pair.primary.freeze()
        with pytest.raises(PlanRefused, match="is not known"):
            await order()
        guarded.workers.is_alive = True
        with pytest.raises(Conflict, match="worker 0: as the test says"):
            await order(force=True)
        guarded.workers.is_alive = False
        begun = await order(force=True)
        record = await stage.orchestrator.wait(begun.id, END_S)
        assert (record.phase, record.plan.requested_by) == (Phase.COMPLETED, "ops"), record.error
        assert stage.journal.report(record.id)["failure"]["may_be_missing"] == "unknown"
    finally:
        pair.primary.thaw()
        await guarded.close()
        await stage.close()
        if not await pair.standby.fetchval("select pg_is_in_recovery()"):
            await pair.swap()


def _with_switch(stage: Stage, **limits: Any) -> ServiceConfig:
    """The service, with other limits of its switches."""
    replace = msgspec.structs.replace
    return replace(stage.config, switch=replace(stage.config.switch, **limits))
