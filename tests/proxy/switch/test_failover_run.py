"""A failover as a conversation: what it sees, what it does."""

from __future__ import annotations

from typing import Any

import pytest

from proxy import ipc
from proxy.engines.engine import EngineState
from proxy.switch import run as core
from proxy.switch.failover_run import FailoverRun, decide
from proxy.switch.run import Timer, Verdict
from proxy.switch.state import Phase
from tests.proxy.switch.playbook import (
    OPEN_SOURCE,
    PASSED,
    PRIMARY_TARGET,
    SILENT_TARGET,
    STANDBY_TARGET,
    SWITCH,
    a_plan,
    all_held,
    engine,
    first_row,
    released,
    retargeted,
)

GONE = engine("blue", None, reachable=False)


def a_failover(phase: Phase = Phase.PENDING, crew: tuple[int, ...] = (0, 1)) -> FailoverRun:
    return FailoverRun(
        SWITCH, a_plan(strategy="failover", drain_timeout_s=0.0, on_drain_expired="terminate"), epoch=7, crew=crew,
        hold_ms_max=5_000, catchup_timeout_s=4.0, promote_timeout_s=10.0, phase=phase,
    )  # fmt: skip


def _told(orders: list[core.Order], kind: type[ipc.Message]) -> list[int]:
    return [order.worker for order in orders if isinstance(order, core.Tell) and isinstance(order.order, kind)]


def _kinds(orders: list[core.Order]) -> set[type[Any]]:
    return {type(order) for order in orders}


def _phase(run: FailoverRun) -> Phase:
    return run.phase


def _letting_go(**options: Any) -> FailoverRun:
    run = a_failover(**options)
    run.begin()
    assert _told(run.sees(core.Examined([PASSED])), ipc.Abandon) == list(range(len(run._crew)))
    assert _phase(run) is Phase.HOLDING
    return run


def _promoting() -> FailoverRun:
    run = _letting_go()
    run.sees(all_held(0))
    run.sees(all_held(1))
    assert _phase(run) is Phase.PROMOTING
    return run


def test_nothing_is_promoted_before_every_worker_has_let_go_of_the_lost_engine() -> None:
    run = _letting_go()
    assert core.Promote not in _kinds(run.sees(all_held(0)))
    assert core.Promote in _kinds(run.sees(all_held(1)))


def test_a_whole_failover_asks_nothing_of_the_lost_engine() -> None:
    run = _promoting()
    orders = run.sees(core.Promoted())
    assert _told(orders, ipc.Retarget) == [0, 1]
    assert run.sees(retargeted(0)) == []
    orders += run.sees(retargeted(1))
    assert _told(orders, ipc.Release) == [0, 1]
    orders += [*run.sees(released(0, 5)), *run.sees(released(1)), *run.sees(first_row(0))]
    assert _phase(run) is Phase.COMPLETED
    assert not _kinds(orders) & {core.Fence, core.ArmFence, core.ReadPosition, core.AwaitPosition, core.Unfence}


def test_a_worker_that_does_not_let_go_is_ended_and_waited_for_no_more() -> None:
    run = _letting_go()
    run.sees(all_held(0))
    assert [
        order.worker for order in run.sees(core.TimerRang(Timer.DRAIN)) if isinstance(order, core.ReplaceWorker)
    ] == [1]
    assert core.Promote in _kinds(run.sees(core.WorkerLost(1)))


def test_without_any_worker_it_goes_on() -> None:
    run = a_failover(crew=())
    run.begin()
    assert core.Promote in _kinds(run.sees(core.Examined([PASSED])))


def test_a_target_that_says_that_it_is_no_primary_gives_the_sessions_back() -> None:
    run = _promoting()
    assert core.Look in _kinds(run.sees(core.ActFailed(core.Act.PROMOTE, "no")))
    orders = run.sees(core.Looked(GONE, STANDBY_TARGET))
    assert _phase(run) is Phase.ABORTING
    assert core.Unfence not in _kinds(orders)
    assert _told(orders, ipc.Release) == [0, 1]
    assert [
        order.order.epoch for order in orders if isinstance(order, core.Tell) and isinstance(order.order, ipc.Release)
    ] == [7, 7]
    assert run.is_target_doubtful
    run.sees(released(0))
    run.sees(released(1))
    assert _phase(run) is Phase.ABORTED
    assert run.remedy


def test_a_target_that_was_promoted_after_all_is_gone_on_with() -> None:
    run = _promoting()
    run.sees(core.ActFailed(core.Act.PROMOTE, "no answer"))
    assert core.Promote in _kinds(run.sees(core.Looked(GONE, PRIMARY_TARGET)))
    run.sees(core.Promoted())
    assert _phase(run) is Phase.CUTTING_OVER


def test_a_silent_target_is_given_up_after_a_while() -> None:
    run = _promoting()
    run.sees(core.ActFailed(core.Act.PROMOTE, "no answer"))
    run.sees(core.Looked(GONE, SILENT_TARGET))
    assert _phase(run) is Phase.PROMOTING
    orders = run.sees(core.TimerRang(Timer.HOLD))
    assert _phase(run) is Phase.ABORTING
    assert _told(orders, ipc.Release) == [0, 1]
    assert run.is_target_doubtful


def test_a_worker_that_joins_has_to_let_go_too() -> None:
    run = _letting_go()
    assert _told(run.sees(core.WorkerJoined(2, False)), ipc.Abandon) == [2]
    run.sees(all_held(0))
    run.sees(all_held(1))
    assert _phase(run) is Phase.HOLDING
    run.sees(all_held(2))
    assert _phase(run) is Phase.PROMOTING


def test_requests_that_were_refused_meanwhile_do_not_stop_it() -> None:
    run = _letting_go()
    assert run.sees(core.WorkerSaid(0, ipc.Expired(switch=SWITCH, service="app", refused=3))) == []
    assert _phase(run) is Phase.HOLDING


@pytest.mark.parametrize(
    ("phase", "source", "target", "verdict"),
    [
        (Phase.VALIDATING, GONE, STANDBY_TARGET, Verdict.UNDO),
        (Phase.HOLDING, GONE, STANDBY_TARGET, Verdict.PROMOTE),
        (Phase.HOLDING, OPEN_SOURCE, STANDBY_TARGET, Verdict.UNDO),
        (Phase.HOLDING, GONE, SILENT_TARGET, Verdict.UNDO),
        (Phase.PROMOTING, GONE, STANDBY_TARGET, Verdict.PROMOTE),
        (Phase.PROMOTING, OPEN_SOURCE, STANDBY_TARGET, Verdict.UNDO),
        (Phase.PROMOTING, OPEN_SOURCE, PRIMARY_TARGET, Verdict.PROMOTE),
        (Phase.PROMOTING, GONE, SILENT_TARGET, Verdict.PROMOTE),
        (Phase.ABORTING, GONE, STANDBY_TARGET, Verdict.UNDO),
        (Phase.CUTTING_OVER, OPEN_SOURCE, SILENT_TARGET, Verdict.FINISH),
        (Phase.RELEASING, GONE, PRIMARY_TARGET, Verdict.FINISH),
    ],
)
def test_what_a_later_supervisor_does_with_it(
    phase: Phase, source: EngineState, target: EngineState, verdict: Verdict
) -> None:
    assert decide(phase, source, target) is verdict


@pytest.mark.parametrize("phase", [Phase.HOLDING, Phase.PROMOTING])
def test_a_later_supervisor_has_the_workers_let_go_again_before_it_promotes(phase: Phase) -> None:
    run = a_failover(phase)
    orders = run.resume(Verdict.PROMOTE)
    assert _told(orders, ipc.Abandon) == [0, 1]
    assert core.Promote not in _kinds(orders)
    run.sees(all_held(0))
    assert core.Promote in _kinds(run.sees(all_held(1)))
