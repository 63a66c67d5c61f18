"""The shell of a switch on real PostgreSQL servers, with workers that only answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from proxy import ipc
from proxy.clock import SystemClock
from proxy.config import AdminConfig, AuthConfig, EngineConfig, Secret, ServiceConfig, SwitchConfig
from proxy.embedded import PostgresPair
from proxy.engines import engine_for
from proxy.engines.engine import Engine, Role
from proxy.errors import Conflict, EngineError, NotFound, PlanRefused
from proxy.switch.journal import Journal, Standing
from proxy.switch.orchestrator import Orchestrator, _boot_id
from proxy.switch.plan import SwitchPlan, SwitchRecord
from proxy.switch.state import Phase
from proxy.switch.views import Event
from tests.kit.servers import NICENESS
from tests.proxy.switch.scripted import ScriptedCrew

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

END_S = 20.0


class Stage:
    """An orchestrator on a pair; `again()` is a supervisor that comes after this one."""

    def __init__(self, pair: PostgresPair, folder: Path, workers: int = 2, **switch: float) -> None:
        self.pair = pair
        self.folder = folder
        self.events: list[Event] = []
        self.config = ServiceConfig(
            protocol="postgresql",
            active=pair.primary.name,
            admin=AdminConfig(user="postgres", password=Secret(value="secret")),
            auth=AuthConfig(method="trust"),
            engine={server.name: EngineConfig(address=server.address) for server in pair.servers()},
            switch=SwitchConfig(**switch),  # type: ignore[arg-type]
        )
        self.crew = ScriptedCrew(workers)
        self.engines: dict[str, Engine] = {
            name: engine_for("postgresql", name, one, self.config.admin) for name, one in self.config.engine.items()
        }
        self.journal = Journal(folder / "state.sqlite")
        self.orchestrator = Orchestrator(
            {"app": self.config},
            {"app": self.engines},
            self.journal,
            self.crew,
            SystemClock(),
            self.events.append,
            workers,
        )
        self.crew.orchestrator = self.orchestrator

    @property
    def source(self) -> Engine:
        return self.engines[self.pair.primary.name]

    @property
    def target(self) -> Engine:
        return self.engines[self.pair.standby.name]

    def plan(self, **changes: object) -> SwitchPlan:
        return SwitchPlan(service="app", target=self.target.name, **changes)  # type: ignore[arg-type]

    async def switch(self, **changes: object) -> SwitchRecord:
        record = self.orchestrator.begin(self.plan(**changes))
        return await self.orchestrator.wait(record.id, END_S)

    def leave(self, phase: Phase) -> SwitchRecord:
        """What a supervisor leaves in the journal when it is killed in `phase`."""
        plan = self.plan(source=self.source.name, drain_timeout_s=1.0, on_drain_expired="abort")
        record = SwitchRecord(
            id="left", service="app", source=self.source.name, target=self.target.name, strategy="graceful", plan=plan,
            phase=phase, boot=_boot_id(), began_at=1.0, began_ns=1, epoch=self.orchestrator.standing("app").epoch + 1,
        )  # fmt: skip
        self.journal.begin(record)
        if phase in (Phase.CUTTING_OVER, Phase.RELEASING, Phase.VERIFYING):
            self.journal.stand("app", Standing(record.target, record.epoch))
            self.orchestrator._standings["app"] = Standing(record.target, record.epoch)
        return record

    async def writable(self) -> list[str]:
        states = [await engine.probe() for engine in self.engines.values()]
        return [state.name for state in states if state.role is Role.PRIMARY and state.is_writable]

    async def close(self) -> None:
        await self.orchestrator.stop()
        for engine in self.engines.values():
            await engine.close()
        self.journal.close()


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
    """Leaves one writable primary and one standby behind."""
    stage = Stage(pair, tmp_path)
    try:
        yield stage
    finally:
        await stage.close()
        if not await pair.standby.fetchval("select pg_is_in_recovery()"):
            await pair.swap()


pytestmark.append(pytest.mark.asyncio(loop_scope="session"))


async def test_a_switch_promotes_the_target_and_remembers_it(stage: Stage) -> None:
    source, target = stage.source.name, stage.target.name
    record = await stage.switch(reason="drill")
    assert record.phase is Phase.COMPLETED, record.error
    assert await stage.writable() == [target]
    assert stage.journal.standing("app") == Standing(target, 2)
    assert [phase for _, phase in stage.journal.steps(record.id)] == [
        Phase.PENDING, Phase.VALIDATING, Phase.PREPARING, Phase.HOLDING, Phase.FENCING, Phase.CATCHING_UP,
        Phase.PROMOTING, Phase.CUTTING_OVER, Phase.RELEASING, Phase.VERIFYING, Phase.COMPLETED,
    ]  # fmt: skip
    report = stage.journal.report(record.id)
    assert report["fence"]["refused_with"] == "25006"
    assert report["positions"]["source"] == report["positions"]["target"]
    assert report["figures"]["measured_by"] == "hold_to_release"
    assert report["figures"]["cutover_ms"] < 1000
    assert report["plan"]["reason"] == "drill"
    assert (report["source"], report["target"]) == (source, target)
    await asyncio.sleep(0)
    assert [event.data["phase"] for event in stage.events if event.kind.startswith("switch.")][-1] == "completed"


async def test_orders_to_all_workers_come_in_two_phases(stage: Stage) -> None:
    await stage.switch()
    assert [type(order).__name__ for _, order in stage.crew.orders] == [
        "Prepare", "Prepare", "Hold", "Hold", "Retarget", "Retarget", "Release", "Release",
    ]  # fmt: skip


async def test_a_refused_switch_leaves_everything_as_it_was_and_says_why(stage: Stage) -> None:
    stage.config = ServiceConfig(**{name: getattr(stage.config, name) for name in stage.config.__struct_fields__})
    stage.crew.indexes.pop()
    record = await stage.switch()
    assert record.phase is Phase.ABORTED
    assert "check workers failed: 1 of 2" in record.error
    assert record.remedy
    assert stage.crew.orders == []
    assert await stage.writable() == [stage.source.name]
    assert stage.journal.report(record.id)["checks"]


async def test_one_switch_of_a_service_at_a_time(stage: Stage) -> None:
    stage.crew.silent.add(ipc.Prepare)
    record = stage.orchestrator.begin(stage.plan())
    with pytest.raises(Conflict):
        stage.orchestrator.begin(stage.plan())
    with pytest.raises(Conflict):
        await stage.orchestrator.examine("app", stage.target.name)
    stage.orchestrator.cancel(record.id, "ops")
    assert (await stage.orchestrator.wait(record.id, END_S)).phase is Phase.ABORTED


async def test_a_plan_that_cannot_be_is_refused_before_it_is_journaled(stage: Stage) -> None:
    for plan in (
        stage.plan(strategy="canary"),
        stage.plan(strategy="quick"),
        SwitchPlan(service="app", target="nowhere"),
        SwitchPlan(service="app", target=stage.source.name),
        stage.plan(source=stage.target.name),
        stage.plan(drain_timeout_s=-1.0),
        stage.plan(on_drain_expired="explode"),
    ):
        with pytest.raises(PlanRefused) as refused:
            stage.orchestrator.begin(plan)
        assert refused.value.hint
    assert stage.journal.switches(10) == []
    with pytest.raises(NotFound):
        await stage.orchestrator.examine("app", "nowhere")


def _cancel_at(stage: Stage, phase: Phase) -> Callable[[Event], None]:
    """Cancel as soon as the phase has been entered."""

    def on(event: Event) -> None:
        stage.events.append(event)
        if event.data.get("phase") == phase:
            stage.orchestrator.cancel(event.data["id"], "ops")

    return on


@pytest.mark.parametrize("phase", [Phase.VALIDATING, Phase.PREPARING, Phase.HOLDING, Phase.FENCING, Phase.CATCHING_UP])
async def test_a_cancel_in_any_phase_before_the_promotion_gives_the_source_back_within_a_second(
    stage: Stage, phase: Phase
) -> None:
    stage.orchestrator._publish = _cancel_at(stage, phase)
    record = await stage.switch()
    assert record.phase is Phase.ABORTED
    assert await stage.writable() == [stage.source.name]
    if phase is not Phase.VALIDATING:
        assert record.stamps["aborted"] - record.stamps["aborting"] < 1_000_000
        assert stage.crew.told(ipc.Release) == [0, 1]
    await stage.pair.primary.execute("create table if not exists written (n int)")


async def test_a_source_that_cannot_be_fenced_is_given_back(stage: Stage) -> None:
    async def refuses(*args: object) -> None:
        raise EngineError("no")

    stage.source.fence = refuses  # type: ignore[method-assign, assignment]
    record = await stage.switch()
    assert record.phase is Phase.ABORTED
    assert "could not be fenced: no" in record.error
    assert await stage.writable() == [stage.source.name]


async def test_an_internal_error_in_an_engine_does_not_leave_clients_held(stage: Stage) -> None:
    async def breaks(*args: object) -> None:
        raise RuntimeError("our bug")

    stage.target.wait_reached = breaks  # type: ignore[method-assign, assignment]
    record = await stage.switch()
    assert record.phase is Phase.ABORTED
    assert stage.crew.told(ipc.Release) == [0, 1]
    assert await stage.writable() == [stage.source.name]


async def test_a_target_that_does_not_catch_up_in_time_gives_the_source_back(stage: Stage) -> None:
    async def never(*args: object) -> bool:
        return False

    stage.target.wait_reached = never  # type: ignore[method-assign, assignment]
    record = await stage.switch()
    assert record.phase is Phase.ABORTED
    assert "did not reach the position" in record.error
    assert await stage.writable() == [stage.source.name]


async def test_a_worker_that_does_not_hold_is_given_up_at_the_drain_deadline(stage: Stage) -> None:
    stage.crew.silent.add(ipc.Hold)
    record = await stage.switch(drain_timeout_s=0.05)
    assert record.phase is Phase.ABORTED
    assert "0.05 s" in record.error
    assert await stage.writable() == [stage.source.name]


# --- after a restart ----------------------------------------------------------------------------------------------

_STANDS = {0: ({"app": 1}, [ipc.RunState(switch="left", service="app", phase="holding")]), 1: ({"app": 1}, [])}


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.PREPARING, Phase.HOLDING, Phase.FENCING, Phase.CATCHING_UP])
async def test_a_switch_left_before_the_promotion_is_undone(stage: Stage, phase: Phase) -> None:
    stage.leave(phase)
    if phase in (Phase.FENCING, Phase.CATCHING_UP):
        await stage.source.prepare()
        await stage.source.fence()
    await stage.orchestrator.recover(_STANDS)
    record = await stage.orchestrator.wait("left", END_S)
    assert record.phase is Phase.ABORTED
    assert record.recovered
    assert await stage.writable() == [stage.source.name]
    assert stage.orchestrator.standing("app") == Standing(stage.source.name, 1)


@pytest.mark.parametrize("was_promoted", [False, True])
async def test_a_switch_left_while_promoting_is_finished(stage: Stage, was_promoted: bool) -> None:
    source, target = stage.source, stage.target
    stage.leave(Phase.PROMOTING)
    await source.fence()
    position = await source.position()
    assert await target.wait_reached(position, 5.0)
    if was_promoted:
        await target.promote()
    await stage.orchestrator.recover(_STANDS)
    record = await stage.orchestrator.wait("left", END_S)
    assert record.phase is Phase.COMPLETED
    assert await stage.writable() == [target.name]
    assert stage.orchestrator.standing("app") == Standing(target.name, 2)
    assert stage.crew.told(ipc.Retarget) == [0, 1]


async def test_a_switch_left_while_promoting_is_undone_if_somebody_took_the_fence_away(stage: Stage) -> None:
    stage.leave(Phase.PROMOTING)
    await stage.orchestrator.recover(_STANDS)
    record = await stage.orchestrator.wait("left", END_S)
    assert record.phase is Phase.ABORTED
    assert await stage.writable() == [stage.source.name]


@pytest.mark.parametrize("phase", [Phase.CUTTING_OVER, Phase.RELEASING, Phase.VERIFYING])
async def test_a_switch_left_after_the_promotion_is_finished(stage: Stage, phase: Phase) -> None:
    source, target = stage.source, stage.target
    stage.leave(phase)
    await source.fence()
    await target.promote()
    await stage.orchestrator.recover(_STANDS)
    record = await stage.orchestrator.wait("left", END_S)
    assert record.phase is Phase.COMPLETED
    assert await stage.writable() == [target.name]
    assert stage.crew.told(ipc.Release) == [0, 1]
    assert bool(stage.crew.told(ipc.Retarget)) is (phase is Phase.CUTTING_OVER)


async def test_a_silent_target_is_waited_for_and_may_be_given_up(stage: Stage) -> None:
    stage.leave(Phase.PROMOTING)
    await stage.source.fence()
    stage.pair.standby.freeze()
    try:
        await stage.orchestrator.recover(_STANDS)
        record = stage.orchestrator.record("left")
        assert record.phase is Phase.PROMOTING
        assert "does not say" in record.error
        stage.orchestrator.cancel("left", "ops")
        assert (await stage.orchestrator.wait("left", END_S)).phase is Phase.ABORTED
    finally:
        stage.pair.standby.thaw()
    assert await stage.writable() == [stage.source.name]


async def test_the_state_file_is_corrected_where_the_engines_leave_no_doubt(stage: Stage) -> None:
    stage.orchestrator._stand("app", Standing(stage.target.name, 4))
    await stage.orchestrator.agree("app")
    assert stage.orchestrator.standing("app") == Standing(stage.source.name, 5)


async def test_the_state_file_is_not_overruled_by_an_engine_that_is_silent(stage: Stage) -> None:
    stage.orchestrator._stand("app", Standing(stage.target.name, 4))
    stage.pair.standby.freeze()
    try:
        await stage.orchestrator.agree("app")
    finally:
        stage.pair.standby.thaw()
    assert stage.orchestrator.standing("app") == Standing(stage.target.name, 4)


async def test_a_worker_that_missed_the_end_is_released_or_replaced(stage: Stage) -> None:
    record = await stage.switch()
    stage.crew.orders.clear()
    state = ipc.RunState(switch=record.id, service="app", phase="retargeted", target=record.target)
    stage.orchestrator.worker_joined(0, [state], {"app": 2})
    assert stage.crew.told(ipc.Release) == [0]
    stage.orchestrator.worker_joined(1, [], {"app": 1})
    assert stage.crew.replaced == [1]
