"""The shell of a switch on real PostgreSQL servers, with workers that only answer."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import pytest_asyncio

from proxy import ipc
from proxy.config import HookConfig, ServiceConfig
from proxy.embedded import PostgresPair
from proxy.errors import Conflict, EngineError, NotFound, PlanRefused
from proxy.switch.journal import Standing
from proxy.switch.plan import SwitchPlan, SwitchRecord
from proxy.switch.state import Phase
from proxy.switch.strategies import Leave, Window
from proxy.switch.views import Event
from tests.kit.servers import NICENESS
from tests.proxy.switch.stage import END_S, Stage

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]


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
    audit = report["audit"]
    assert (audit["by"], audit["lost"], report["figures"]["acked_lost"]) == ("xid", 0, 0)
    assert audit["checked"] > 0
    assert report["figures"]["measured_by"] == "hold_to_release"
    assert report["figures"]["cutover_ms"] < 1000
    assert report["plan"]["reason"] == "drill"
    assert (report["source"], report["target"]) == (source, target)
    await asyncio.sleep(0)
    assert [event.data["phase"] for event in stage.events if "phase" in event.data][-1] == "completed"


async def test_orders_to_all_workers_come_in_two_phases(stage: Stage) -> None:
    await stage.switch()
    assert [type(order).__name__ for _, order in stage.crew.orders] == [
        "Prepare", "Prepare", "StopOpening", "StopOpening", "Hold", "Hold", "Retarget", "Retarget", "Release", "Release",
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
        stage.plan(batch_size=5),
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
    assert record.stamps["aborted"] - record.stamps["aborting"] < 1_000_000
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
    assert record.stamps["aborted"] - record.stamps["aborting"] < 1_000_000
    assert await stage.writable() == [stage.source.name]


async def test_a_worker_that_does_not_hold_is_given_up_at_the_drain_deadline(stage: Stage) -> None:
    stage.crew.silent.add(ipc.Hold)
    record = await stage.switch(drain_timeout_s=0.05)
    assert record.phase is Phase.ABORTED
    assert "0.05 s" in record.error
    assert record.stamps["aborted"] - record.stamps["aborting"] < 1_000_000
    assert await stage.writable() == [stage.source.name]


async def test_a_promotion_that_fails_gives_the_source_back_within_a_second(stage: Stage) -> None:
    async def refuses(*args: object, **named: object) -> None:
        raise EngineError("no")

    stage.target.promote = refuses  # type: ignore[method-assign]
    record = await stage.switch()
    assert record.phase is Phase.ABORTED
    assert "could not be promoted: no" in record.error
    assert record.stamps["aborted"] - record.stamps["promoting"] < 1_000_000
    assert await stage.writable() == [stage.source.name]


# --- gates, prepared transactions ----------------------------------------------------------------------------------


async def test_what_was_prepared_since_the_checks_undoes_the_switch_by_name(stage: Stage) -> None:
    primary = stage.pair.primary

    async def nothing() -> list[str]:
        return []

    stage.source.prepared_in_doubt = nothing  # type: ignore[method-assign]
    await primary.execute("begin; select txid_current(); prepare transaction 'order 7'")
    try:
        record = await stage.switch()
        assert record.phase is Phase.ABORTED
        assert "prepared transactions in doubt" in record.error
        assert "order 7" in record.error
        assert record.stamps["aborted"] - record.stamps["aborting"] < 1_000_000
    finally:
        await primary.execute("rollback prepared 'order 7'")


@pytest.mark.parametrize("rule", ["commit", "rollback"])
async def test_what_is_in_doubt_is_ended_by_rule(pair: PostgresPair, tmp_path: Path, rule: str) -> None:
    stage = Stage(pair, tmp_path, in_doubt=rule)
    primary, target = pair.primary, pair.standby
    try:
        await primary.execute("drop table if exists doubt")
        await primary.execute("create table doubt (n int)")
        await primary.execute("begin; insert into doubt values (1); prepare transaction 'it''s 7'")
        record = await stage.switch()
        assert record.phase is Phase.COMPLETED, record.error
        assert stage.journal.report(record.id)["in_doubt_resolved"] == [f"{rule} it's 7"]
        assert await target.fetchval("select count(*) from doubt") == (1 if rule == "commit" else 0)
        assert await target.fetchval("select count(*) from pg_prepared_xacts") == 0
    finally:
        await stage.close()
        await pair.swap()


async def test_a_semi_synchronous_switch_waits_for_further_replicas(pair: PostgresPair, tmp_path: Path) -> None:
    grey = await pair.primary.clone_to("grey")
    stage = Stage(pair, tmp_path, more=[grey], sync="semi_synchronous", min_replicas=2, catchup_timeout_s=0.5)
    reached = stage.engines["grey"].wait_reached
    try:

        async def never(*args: object) -> bool:
            return False

        stage.engines["grey"].wait_reached = never  # type: ignore[method-assign, assignment]
        record = await stage.switch()
        assert record.phase is Phase.ABORTED
        assert "1 more of 2 replicas did not reach" in record.error
        stage.engines["grey"].wait_reached = reached  # type: ignore[method-assign]
        record = await stage.switch()
        assert record.phase is Phase.COMPLETED, record.error
        assert stage.journal.report(record.id)["replicas"] == [stage.target.name, "grey"]
    finally:
        await stage.close()
        await grey.stop("immediate")
        await pair.swap()


# --- hooks --------------------------------------------------------------------------------------------------------

PROMOTES = """
import asyncio, asyncpg, os
async def main():
    host, _, port = os.environ["TURNOUT_TARGET_ADDRESS"].partition(":")
    there = await asyncpg.connect(host=host, port=int(port), user="postgres", password="secret", database="postgres")
    print(await there.fetchval("select pg_promote()"))
asyncio.run(main())
"""


class TwoNames:
    """Two addresses of one server."""

    def __init__(self, pair: PostgresPair) -> None:
        self.primary = SimpleNamespace(name="one", address=pair.primary.address)
        self.standby = SimpleNamespace(name="two", address=pair.primary.address)

    def servers(self) -> tuple[SimpleNamespace, SimpleNamespace]:
        return self.primary, self.standby


async def test_a_way_back_that_cannot_be_journaled_leaves_the_target_serving_and_asks_a_person(
    pair: PostgresPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next switch is not kept waiting for one that never began."""
    stage = Stage(TwoNames(pair), tmp_path, service={"replication": "none"}, verify_window_s=1.0)
    begin = stage.journal.begin
    is_full = False

    def worse(_self: Window, _before: object, _target: object) -> Leave:
        nonlocal is_full
        is_full = True
        return Leave("the service is worse", "see the report")

    def begin_if_there_is_room(record: SwitchRecord) -> None:
        if is_full:
            raise sqlite3.OperationalError("database or disk is full")
        begin(record)

    monkeypatch.setattr(Window, "looked", worse)
    monkeypatch.setattr(stage.journal, "begin", begin_if_there_is_room)
    try:
        record = await stage.switch()
        assert record.phase is Phase.FAILED
        assert record.error == "the service is worse; it could not go back: database or disk is full"
        assert record.remedy == "two serves: mend it, or switch to one by hand"
        assert stage.orchestrator.running("app") is None
        assert stage.orchestrator.standing("app").active == "two"
    finally:
        await stage.close()


async def test_a_hook_may_promote_in_our_place(pair: PostgresPair, tmp_path: Path) -> None:
    hook = HookConfig(at="promote", command=[sys.executable, "-c", PROMOTES])
    stage = Stage(pair, tmp_path, service={"hook": [hook]}, compare_at_fence_ms=1_000)
    await pair.primary.execute("create table compared as select 1 as id", database="app")
    try:
        record = await stage.switch()
        assert record.phase is Phase.COMPLETED, record.error
        assert await stage.writable() == [stage.target.name]
        report = stage.journal.report(record.id)
        (told,) = report["hooks"]
        assert (told["at"], told["outcome"], told["output"]) == ("promote", "exit code 0", "True")
        compared = report["rows_at_fence"]
        assert (compared["tables"], compared["rows"], compared["different"]) == (1, 1, [])
    finally:
        await stage.close()
        await pair.swap()


@pytest.mark.parametrize(("at", "left_at"), [("before_fence", "preparing"), ("promote", "promoting")])
async def test_a_hook_that_fails_gives_the_source_back_within_a_second(
    pair: PostgresPair, tmp_path: Path, at: Literal["before_fence", "promote"], left_at: str
) -> None:
    stage = Stage(pair, tmp_path, service={"hook": [HookConfig(at=at, command=["sh", "-c", "echo no; exit 4"])]})
    try:
        record = await stage.switch()
        assert record.phase is Phase.ABORTED
        assert "a hook failed: sh: exit code 4" in record.error
        assert left_at in record.stamps
        assert record.stamps["aborted"] - record.stamps["aborting"] < 1_000_000
        assert await stage.writable() == [stage.source.name]
        assert stage.journal.report(record.id)["hooks"][0]["output"] == "no"
    finally:
        await stage.close()


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
