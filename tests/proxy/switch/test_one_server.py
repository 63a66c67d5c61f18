"""Switches between two addresses of one server: nothing is fenced, waited for or promoted, and nobody need move."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proxy import ipc
from proxy.config import SwitchConfig
from proxy.engines.engine import EngineState, Role
from proxy.switch import run as core
from proxy.switch.readiness import Findings, failures, judge
from proxy.switch.run import Timer, Verdict, decide
from proxy.switch.state import Phase
from tests.proxy.switch.playbook import (
    OPEN_SOURCE,
    PASSED,
    PRIMARY_TARGET,
    SILENT_TARGET,
    a_run,
    all_held,
    draining,
    prepared,
)

ENGINE_ACTS = (core.PrepareEngines, core.ArmFence, core.Fence, core.ReadPosition, core.Promote, core.Unfence)


def _run_to_hold(**plan: Any) -> tuple[core.SwitchRun, list[core.Order]]:
    run = a_run(moves_data=False, **plan)
    orders = [*run.begin(), *run.sees(core.Examined([PASSED])), *run.sees(prepared(0)), *run.sees(prepared(1))]
    assert run.phase is Phase.HOLDING
    return run, orders


def test_the_cutover_follows_the_hold() -> None:
    run, orders = _run_to_hold()
    orders += [*run.sees(all_held(0)), *run.sees(all_held(1))]
    assert run.phase is Phase.CUTTING_OVER
    assert not [order for order in orders if isinstance(order, ENGINE_ACTS)]
    told = [order.order for order in orders if isinstance(order, core.Tell)]
    assert [type(order) for order in told[-2:]] == [ipc.Retarget, ipc.Retarget]


def test_an_abort_asks_nothing_of_the_engines() -> None:
    run, _ = _run_to_hold()
    orders = run.sees(core.CancelAsked("ops"))
    assert not [order for order in orders if isinstance(order, ENGINE_ACTS)]
    assert [type(order.order) for order in orders if isinstance(order, core.Tell)] == [ipc.Release, ipc.Release]


def test_who_does_not_come_to_a_boundary_is_left_where_the_plan_says_so() -> None:
    run, _ = _run_to_hold(on_drain_expired="leave")
    run.sees(draining(0))
    run.sees(all_held(1))
    (order,) = run.sees(core.TimerRang(Timer.DRAIN))
    assert isinstance(order, core.Tell)
    assert (order.worker, type(order.order)) == (0, ipc.Leave)
    run.sees(all_held(0))
    assert run.phase is Phase.CUTTING_OVER


def test_a_session_that_cannot_be_prepared_does_not_stop_a_switch_that_may_leave_it() -> None:
    run = a_run(moves_data=False, on_drain_expired="leave")
    run.begin()
    run.sees(core.Examined([PASSED]))
    run.sees(prepared(0, "no such role"))
    run.sees(prepared(1))
    assert run.phase is Phase.HOLDING


@pytest.mark.parametrize(
    ("phase", "verdict"),
    [
        (Phase.HOLDING, Verdict.UNDO),
        (Phase.DRAINING, Verdict.UNDO),
        (Phase.CUTTING_OVER, Verdict.FINISH),
        (Phase.VERIFYING, Verdict.FINISH),
    ],
)
def test_what_becomes_of_it_after_a_restart_does_not_depend_on_the_engines(phase: Phase, verdict: Verdict) -> None:
    for target in (PRIMARY_TARGET, SILENT_TARGET):
        for whole in (True, False):
            assert decide(phase, OPEN_SOURCE, target, is_journal_whole=whole, moves_data=False) is verdict


ONE = EngineState(
    name="one", is_reachable=True, version="PostgreSQL 16.14", version_num=160014, server_id="77",
    instance="server 77, started at noon", role=Role.PRIMARY, is_writable=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "is_one"),
    [
        ({}, True),
        ({"instance": "server 77, started at midnight"}, False),
        ({"instance": "server 78, started at noon"}, False),
        ({"instance": ""}, False),
    ],
)
def test_two_servers_are_not_taken_for_one(changes: dict[str, str], is_one: bool) -> None:
    """Not even with force: both would take writes, and nothing keeps them equal."""
    target = msgspec.structs.replace(ONE, name="two", **changes)
    findings = Findings(kind="none", source=ONE, target=target, source_address="a:1", workers=1)
    checks = judge(findings, SwitchConfig())
    assert bool(failures(checks, force=True)) is not is_one
