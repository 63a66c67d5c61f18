"""Conversations with a switch: the whole way, trouble in each phase, workers that die in each phase, restarts."""

from __future__ import annotations

import msgspec
import pytest

from proxy import ipc
from proxy.config import AdminConfig, AuthConfig, EngineConfig, ServiceConfig
from proxy.engines.engine import EngineState
from proxy.switch import run as core
from proxy.switch.plan import IMMEDIATE_DRAIN_S, SwitchPlan, accept
from proxy.switch.readiness import Check
from proxy.switch.run import Act, Timer, Verdict, decide
from proxy.switch.state import ABORTABLE, ENDED, Phase
from tests.proxy.switch.playbook import (
    FENCED_SOURCE,
    OPEN_SOURCE,
    PASSED,
    POSITION,
    PRIMARY_TARGET,
    PROOF,
    SILENT_TARGET,
    STANDBY_TARGET,
    TO_PHASE,
    Playbook,
    a_run,
    all_held,
    draining,
    expired,
    first_row,
    hold,
    opening_stopped,
    play_to,
    prepare,
    prepared,
    release,
    release_on_source,
    released,
    retarget,
    retargeted,
    stop_opening,
)

SERVICE = ServiceConfig(
    protocol="postgresql",
    active="blue",
    admin=AdminConfig(user="turnout"),
    auth=AuthConfig(method="trust"),
    engine={"blue": EngineConfig(address="a:1"), "green": EngineConfig(address="b:1")},
)


def test_a_graceful_switch_of_two_workers_from_plan_to_end() -> None:
    play = Playbook(a_run()).begins().does(core.Enter(Phase.VALIDATING), core.Examine())
    play.sees(core.Examined([PASSED])).does(core.Enter(Phase.PREPARING), core.PrepareEngines()).starts(Timer.PREPARE)
    play.sees(core.WorkerJoined(0, False)).does_nothing()
    play.sees(core.EnginesPrepared()).does(prepare(0), prepare(1))
    play.sees(prepared(0)).does_nothing()
    play.sees(prepared(1)).does(core.Approach())
    play.sees(core.Approached()).does(stop_opening(0), stop_opening(1))
    play.sees(opening_stopped(1)).does_nothing()
    play.sees(opening_stopped(0)).does(core.ArmFence())
    play.sees(core.FenceArmed()).does(core.Enter(Phase.HOLDING), hold(0), hold(1))
    play.starts(Timer.DRAIN).starts(Timer.HOLD)
    play.sees(draining(0)).does(core.Enter(Phase.DRAINING))
    play.sees(draining(0)).does_nothing()
    play.sees(all_held(1)).does_nothing()
    play.sees(all_held(0)).does(core.Enter(Phase.FENCING), core.Fence(frozenset({200, 201})))
    play.sees(core.Fenced(PROOF)).does(core.Enter(Phase.CATCHING_UP), core.ReadPosition())
    play.sees(core.PositionRead(POSITION)).does(core.AwaitPosition(POSITION, 4.0))
    play.sees(core.PositionAwaited(True)).does(core.Enter(Phase.PROMOTING), core.Promote(10.0))
    play.sees(core.Promoted()).does(core.Enter(Phase.CUTTING_OVER), retarget(0), retarget(1)).starts(Timer.RETARGET)
    play.sees(retargeted(0)).does_nothing()
    play.sees(retargeted(1)).does(core.Enter(Phase.RELEASING), release(0), release(1))
    play.sees(released(0, 900)).does_nothing()
    play.sees(released(1)).does(core.Enter(Phase.VERIFYING)).starts(Timer.VERIFY)
    play.sees(first_row(0)).does(core.Enter(Phase.COMPLETED))
    play.sees(first_row(1)).does_nothing()


def test_a_switch_that_nobody_waited_for_ends_with_the_release() -> None:
    play_to(Phase.RELEASING).sees(released(0), released(1)).does(
        core.Enter(Phase.VERIFYING), core.Enter(Phase.COMPLETED)
    )


def test_a_first_row_before_the_last_release_counts() -> None:
    play = play_to(Phase.RELEASING).sees(released(0, 700), first_row(0))
    play.sees(released(1)).does(core.Enter(Phase.VERIFYING), core.Enter(Phase.COMPLETED))


def test_a_verification_without_an_answer_ends_by_its_deadline() -> None:
    play_to(Phase.VERIFYING).sees(core.TimerRang(Timer.VERIFY)).does(core.Enter(Phase.COMPLETED))


def test_the_old_source_is_made_to_follow_while_clients_work_and_the_end_waits_for_it() -> None:
    play = play_to(Phase.RELEASING, reverses=True).sees(released(0), released(1))
    play.does(core.Enter(Phase.VERIFYING), core.Follow()).starts(Timer.AFTERWARDS)
    play.sees(core.TimerRang(Timer.VERIFY)).does_nothing()
    play.sees(core.Followed()).does(core.Enter(Phase.COMPLETED))
    assert play.run.remedy == ""


@pytest.mark.parametrize(
    "trouble", [core.ActFailed(Act.FOLLOW, "no"), core.TimerRang(Timer.AFTERWARDS)], ids=["failed", "late"]
)
def test_a_switch_is_complete_although_the_old_source_does_not_follow(trouble: core.Fact) -> None:
    play = play_to(Phase.VERIFYING, reverses=True).sees(first_row(0)).does_nothing()
    play.sees(trouble).does(core.Enter(Phase.COMPLETED))
    assert play.run.remedy
    assert play.run.error == ""


def test_the_audit_comes_before_the_old_source_is_changed_and_the_end_waits_for_it() -> None:
    play = play_to(Phase.RELEASING, audits=True, reverses=True).sees(released(0), released(1))
    play.does(core.Enter(Phase.VERIFYING), core.Audit()).starts(Timer.AFTERWARDS)
    play.sees(core.Audited(0)).does(core.Follow())
    play.sees(core.Followed()).does(core.Enter(Phase.COMPLETED))
    assert play.run.remedy == ""


def test_a_source_that_has_what_the_target_lacks_is_left_as_it_is() -> None:
    play = play_to(Phase.VERIFYING, audits=True, reverses=True).sees(first_row(0)).does_nothing()
    play.sees(core.Audited(2)).does(core.Enter(Phase.COMPLETED))
    assert play.run.remedy.startswith("2 of the newest commits of blue are not on green")


@pytest.mark.parametrize(
    "trouble", [core.ActFailed(Act.AUDIT, "it is gone"), core.TimerRang(Timer.AFTERWARDS)], ids=["failed", "late"]
)
def test_a_switch_is_complete_although_there_was_no_audit(trouble: core.Fact) -> None:
    play = play_to(Phase.VERIFYING, audits=True).sees(first_row(0)).does_nothing()
    play.sees(trouble).does(core.Enter(Phase.COMPLETED))
    assert play.run.error == ""


def test_hooks_run_before_anybody_is_held_and_after_everybody_is_released() -> None:
    play = Playbook(a_run(hooks=("before_fence", "after_release"))).begins()
    play.sees(core.Examined([PASSED])).does(
        core.Enter(Phase.PREPARING), core.PrepareEngines(),
        core.RunHooks(core.Stage.BEFORE_FENCE),
    )  # fmt: skip
    play.sees(core.EnginesPrepared()).does(prepare(0), prepare(1))
    play.sees(prepared(0), prepared(1)).does_nothing()
    play.sees(core.HooksRan(core.Stage.BEFORE_FENCE)).does(core.Approach())
    play.sees(core.Approached()).does(stop_opening(0), stop_opening(1))
    play.sees(opening_stopped(0), opening_stopped(1)).does(core.ArmFence())
    play.sees(core.FenceArmed()).does(core.Enter(Phase.HOLDING), hold(0), hold(1))
    for phase in (Phase.DRAINING, Phase.FENCING, Phase.CATCHING_UP, Phase.PROMOTING, Phase.CUTTING_OVER,
                  Phase.RELEASING):  # fmt: skip
        play.sees(*TO_PHASE[phase])
    play.sees(released(0), released(1)).does(core.Enter(Phase.VERIFYING), core.RunHooks(core.Stage.AFTER_RELEASE))
    play.sees(core.HooksRan(core.Stage.AFTER_RELEASE, "clean-up: exit code 1")).does(core.Enter(Phase.COMPLETED))
    assert "clean-up: exit code 1" in play.run.remedy


@pytest.mark.parametrize(
    "trouble",
    [core.HooksRan(core.Stage.BEFORE_FENCE, "pause-cron: exit code 1"), core.ActFailed(Act.HOOKS, "internal error")],
)
def test_a_hook_that_fails_before_the_fence_undoes_the_switch(trouble: core.Fact) -> None:
    play = Playbook(a_run(hooks=("before_fence",))).begins().sees(core.Examined([PASSED]))
    play.sees(trouble).does(core.Enter(Phase.ABORTING), release_on_source(0), release_on_source(1))
    assert "a hook failed" in play.run.error


# --- checks -------------------------------------------------------------------------------------------------------


def test_a_failed_check_refuses_and_says_which_and_how_to_mend_it() -> None:
    failed = Check(name="lag", verdict="fail", found="90 MB", remedy="wait", is_overridable=True)
    play = Playbook(a_run()).begins().sees(core.Examined([PASSED, failed])).does(core.Enter(Phase.ABORTED))
    assert play.run.error == "check lag failed: 90 MB"
    assert play.run.remedy == "wait"


def test_force_overrides_what_only_costs_time() -> None:
    failed = Check(name="lag", verdict="fail", found="90 MB", remedy="wait", is_overridable=True)
    Playbook(a_run(force=True)).begins().sees(core.Examined([failed])).stands_in(Phase.PREPARING)


def test_force_does_not_override_what_keeps_data_safe() -> None:
    failed = Check(name="target_role", verdict="fail", found="follows nobody", remedy="build it anew")
    Playbook(a_run(force=True)).begins().sees(core.Examined([failed])).stands_in(Phase.ABORTED)


def test_a_dry_run_ends_after_the_checks() -> None:
    Playbook(a_run(dry_run=True)).begins().sees(core.Examined([PASSED])).does(core.Enter(Phase.COMPLETED))


def test_an_immediate_switch_ends_who_is_not_at_a_boundary_also_if_the_word_comes_too_early() -> None:
    plan = accept(SwitchPlan(service="app", target="green", strategy="immediate"), SERVICE, "blue")
    assert (plan.drain_timeout_s, plan.on_drain_expired) == (IMMEDIATE_DRAIN_S, "terminate")
    play = play_to(Phase.HOLDING, drain_timeout_s=plan.drain_timeout_s, on_drain_expired=plan.on_drain_expired)
    play.sees(all_held(1), core.TimerRang(Timer.DRAIN))
    ended = [order for order in play.orders if isinstance(order, core.Tell)]
    assert [(order.worker, type(order.order)) for order in ended] == [(0, ipc.Terminate)]
    play.sees(draining(0))
    assert play.run.phase is Phase.DRAINING
    assert [type(order.order) for order in play.orders if isinstance(order, core.Tell)] == [ipc.Terminate]
    careful = SwitchPlan(service="app", target="green", strategy="immediate", force_transaction_abort=False)
    assert accept(careful, SERVICE, "blue").on_drain_expired == "abort"


def test_what_is_in_doubt_at_the_fence_undoes_the_switch_by_name_unless_forced() -> None:
    proof = msgspec.structs.replace(PROOF, prepared_in_doubt=["order 7"])
    play = play_to(Phase.FENCING).sees(core.Fenced(proof)).does(core.Enter(Phase.ABORTING), core.Unfence())
    assert "in doubt on blue: order 7" in play.run.error
    play_to(Phase.FENCING, force=True).sees(core.Fenced(proof)).stands_in(Phase.CATCHING_UP)


def test_replicas_that_lag_undo_the_switch_by_their_number() -> None:
    play = play_to(Phase.CATCHING_UP).sees(core.PositionAwaited(False, "1 more of 2 replicas"))
    play.stands_in(Phase.ABORTING)
    assert play.run.error.startswith("1 more of 2 replicas did not reach the position of blue")


def test_rows_are_compared_between_catch_up_and_promotion() -> None:
    play = play_to(Phase.CATCHING_UP, compares=True).sees(core.PositionAwaited(True)).does(core.CompareRows())
    play.sees(core.RowsCompared([])).does(core.Enter(Phase.PROMOTING), core.Promote(10.0))


def test_rows_that_differ_at_the_fence_are_passed_over_by_force_alone() -> None:
    differ = core.RowsCompared(["orders: (7): missing"])
    play = play_to(Phase.CATCHING_UP, compares=True).sees(differ).does(core.Enter(Phase.ABORTING), core.Unfence())
    assert "orders: (7): missing" in play.run.error
    play_to(Phase.CATCHING_UP, compares=True, force=True).sees(differ).stands_in(Phase.PROMOTING)


# --- undoing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [phase for phase in TO_PHASE if phase in ABORTABLE])
def test_a_cancel_before_the_promotion_gives_the_source_back(phase: Phase) -> None:
    play = play_to(phase)
    fence_was_armed = phase not in (Phase.VALIDATING, Phase.PREPARING)
    play.sees(core.CancelAsked("ops"))
    if phase is Phase.VALIDATING:
        play.does(core.Enter(Phase.ABORTED))
        return
    if fence_was_armed:
        play.does(core.Enter(Phase.ABORTING), core.Unfence())
        play.sees(core.Unfenced()).does(release_on_source(0), release_on_source(1))
    else:
        play.does(core.Enter(Phase.ABORTING), release_on_source(0), release_on_source(1))
    play.sees(released(0)).does_nothing()
    play.sees(released(1)).does(core.Enter(Phase.ABORTED))
    assert play.run.error == "cancelled by ops"


@pytest.mark.parametrize("phase", [Phase.PROMOTING, Phase.CUTTING_OVER, Phase.RELEASING, Phase.VERIFYING])
def test_nothing_is_cancelled_from_the_promotion_on(phase: Phase) -> None:
    play = play_to(phase)
    assert not play.run.is_cancellable
    play.sees(core.CancelAsked("ops")).does_nothing()


@pytest.mark.parametrize(
    ("phase", "trouble"),
    [
        (Phase.PREPARING, core.ActFailed(Act.PREPARE, "no route")),
        (Phase.PREPARING, core.TimerRang(Timer.PREPARE)),
        (Phase.PREPARING, prepared(0, "role x does not exist")),
        (Phase.HOLDING, core.TimerRang(Timer.DRAIN)),
        (Phase.HOLDING, core.TimerRang(Timer.HOLD)),
        (Phase.HOLDING, expired(0)),
        (Phase.DRAINING, core.TimerRang(Timer.DRAIN)),
        (Phase.DRAINING, core.TimerRang(Timer.HOLD)),
        (Phase.FENCING, core.ActFailed(Act.FENCE, "a writer is left")),
        (Phase.FENCING, core.TimerRang(Timer.HOLD)),
        (Phase.CATCHING_UP, core.ActFailed(Act.READ_POSITION, "gone")),
        (Phase.CATCHING_UP, core.ActFailed(Act.AWAIT_POSITION, "gone")),
        (Phase.CATCHING_UP, core.PositionAwaited(False)),
        (Phase.CATCHING_UP, core.ActFailed(Act.COMPARE_ROWS, "gone")),
        (Phase.CATCHING_UP, core.RowsCompared(["orders: (7): missing"])),
        (Phase.CATCHING_UP, core.TimerRang(Timer.HOLD)),
        (Phase.CATCHING_UP, expired(1)),
    ],
    ids=str,
)
def test_trouble_before_the_promotion_is_undone_and_told(phase: Phase, trouble: core.Fact) -> None:
    play = play_to(phase).sees(trouble).stands_in(Phase.ABORTING)
    assert play.run.error
    if phase is not Phase.PREPARING:
        play.does(core.Enter(Phase.ABORTING), core.Unfence())
        play.sees(core.Unfenced())
    play.sees(released(0), released(1)).stands_in(Phase.ABORTED)


def test_the_sessions_are_not_released_into_a_fence() -> None:
    play = play_to(Phase.FENCING).sees(core.CancelAsked("ops"))
    # A late proof of the fence changes nothing.
    play.sees(core.Fenced(PROOF)).does_nothing()
    play.sees(released(0), released(1)).does_nothing().stands_in(Phase.ABORTING)


def test_an_undo_that_fails_is_tried_again() -> None:
    play = play_to(Phase.FENCING).sees(core.CancelAsked("ops"))
    play.sees(core.ActFailed(Act.UNFENCE, "timeout")).starts(Timer.UNFENCE_AGAIN).does()
    play.sees(core.TimerRang(Timer.UNFENCE_AGAIN)).does(core.Unfence())
    play.sees(core.Unfenced()).does(release_on_source(0), release_on_source(1))


def test_an_undo_that_keeps_failing_lets_the_clients_go_and_goes_on_trying() -> None:
    play = play_to(Phase.FENCING).sees(core.CancelAsked("ops"))
    for _ in range(core.UNFENCE_TRIES_HELD):
        play.sees(core.ActFailed(Act.UNFENCE, "down")).does()
        play.sees(core.TimerRang(Timer.UNFENCE_AGAIN)).does(core.Unfence())
    play.sees(core.ActFailed(Act.UNFENCE, "down")).does(release_on_source(0), release_on_source(1))
    play.sees(released(0), released(1)).does_nothing().stands_in(Phase.ABORTING)
    assert "down" in play.run.remedy
    play.sees(core.TimerRang(Timer.UNFENCE_AGAIN)).does(core.Unfence())
    play.sees(core.Unfenced()).does(core.Enter(Phase.ABORTED))


def test_a_person_may_give_up_an_undo_that_keeps_failing() -> None:
    play = play_to(Phase.FENCING).sees(core.CancelAsked("ops"))
    assert not play.run.is_cancellable
    for _ in range(core.UNFENCE_TRIES_HELD + 1):
        play.sees(core.ActFailed(Act.UNFENCE, "down"))
    assert play.run.is_cancellable
    play.sees(core.CancelAsked("ops")).does(core.Enter(Phase.FAILED))


def test_an_undo_ends_although_a_worker_does_not_answer() -> None:
    play = play_to(Phase.HOLDING).sees(core.CancelAsked("ops"), core.Unfenced(), released(0))
    play.sees(core.TimerRang(Timer.RELEASE)).does(core.Enter(Phase.ABORTED))


def test_terminate_ends_the_sessions_of_those_who_still_drain() -> None:
    play = play_to(Phase.DRAINING, on_drain_expired="terminate").sees(all_held(1))
    play.sees(core.TimerRang(Timer.DRAIN)).stands_in(Phase.DRAINING)
    (order,) = play.orders
    assert isinstance(order, core.Tell)
    assert order.worker == 0
    assert isinstance(order.order, ipc.Terminate)
    play.sees(all_held(0)).stands_in(Phase.FENCING)


def test_a_drain_leaves_time_for_the_rest_within_hold_ms_max() -> None:
    assert a_run(hold_ms_max=5_000, drain_timeout_s=30.0).drain_s == 4.5
    assert a_run(hold_ms_max=100, drain_timeout_s=30.0).drain_s == pytest.approx(0.075)
    assert a_run(hold_ms_max=5_000, drain_timeout_s=1.0).drain_s == 1.0


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.HOLDING, Phase.FENCING, Phase.PROMOTING])
def test_a_phase_that_cannot_be_journaled_is_undone(phase: Phase) -> None:
    play = play_to(phase).sees(core.JournalRefused(phase, "disk full")).stands_in(Phase.ABORTING)
    assert "disk full" in play.run.error


def test_a_fence_that_was_not_journaled_is_disarmed() -> None:
    play_to(Phase.FENCING).sees(core.JournalRefused(Phase.FENCING, "disk full")).does(
        core.Enter(Phase.ABORTING), core.Unfence()
    )


def test_a_fence_that_cannot_be_armed_undoes_the_switch() -> None:
    play = play_to(Phase.PREPARING).sees(prepared(0), prepared(1), core.Approached())
    play.sees(opening_stopped(0), opening_stopped(1)).does(core.ArmFence())
    play.sees(core.ActFailed(Act.ARM_FENCE, "no right")).does(core.Enter(Phase.ABORTING), core.Unfence())
    play.sees(core.Unfenced()).does(release_on_source(0), release_on_source(1))


def test_the_fence_is_armed_once_no_worker_opens_backends_any_more() -> None:
    play = play_to(Phase.PREPARING).sees(prepared(0), prepared(1), core.Approached(), opening_stopped(0))
    play.sees(core.WorkerJoined(2, False)).does(stop_opening(2), prepare(2))
    play.sees(opening_stopped(1)).does_nothing()
    play.sees(opening_stopped(2)).does(core.ArmFence())
    play.sees(opening_stopped(2)).does_nothing()
    play.sees(core.FenceArmed()).does_nothing()
    play.sees(prepared(2)).does(core.Enter(Phase.HOLDING), hold(0), hold(1), hold(2))


def test_a_worker_that_joins_behind_an_armed_fence_is_waited_for() -> None:
    play = play_to(Phase.PREPARING).sees(prepared(0), prepared(1), core.Approached())
    play.sees(opening_stopped(0), opening_stopped(1)).does(core.ArmFence())
    play.sees(core.WorkerJoined(2, False)).does(stop_opening(2), prepare(2))
    play.sees(core.FenceArmed()).does_nothing()
    play.sees(prepared(2)).does_nothing()
    play.sees(opening_stopped(2)).does(core.Enter(Phase.HOLDING), hold(0), hold(1), hold(2))


# --- promotion ----------------------------------------------------------------------------------------------------


def test_a_promotion_that_surely_failed_is_undone() -> None:
    play = play_to(Phase.PROMOTING).sees(core.ActFailed(Act.PROMOTE, "no right")).does(core.Look())
    play.sees(core.Looked(FENCED_SOURCE, STANDBY_TARGET)).does(core.Enter(Phase.ABORTING), core.Unfence())
    play.sees(core.Unfenced()).does(release_on_source(0), release_on_source(1))
    assert "no right" in play.run.error


def test_a_promotion_that_took_place_all_the_same_goes_on() -> None:
    play = play_to(Phase.PROMOTING).sees(core.ActFailed(Act.PROMOTE, "connection lost")).does(core.Look())
    play.sees(core.Looked(FENCED_SOURCE, PRIMARY_TARGET)).does(core.Promote(10.0))
    play.sees(core.Promoted()).stands_in(Phase.CUTTING_OVER)
    assert play.run.error == ""


def test_a_promotion_that_keeps_failing_is_repeated_with_pauses() -> None:
    """A target that is a primary already is never left: it may not take writes yet."""
    play = play_to(Phase.PROMOTING).sees(core.ActFailed(Act.PROMOTE, "no")).does(core.Look())
    for _ in range(3):
        play.sees(core.Looked(FENCED_SOURCE, PRIMARY_TARGET)).does(core.Promote(10.0))
        play.sees(core.ActFailed(Act.PROMOTE, "still no")).does().starts(Timer.LOOK_AGAIN)
        play.sees(core.TimerRang(Timer.LOOK_AGAIN)).does(core.Look())
    assert not play.run.is_cancellable


def test_a_target_that_does_not_answer_is_asked_again_and_nobody_is_released() -> None:
    play = play_to(Phase.PROMOTING).sees(core.ActFailed(Act.PROMOTE, "connection lost")).does(core.Look())
    for _ in range(50):
        play.sees(core.Looked(FENCED_SOURCE, SILENT_TARGET)).does().starts(Timer.LOOK_AGAIN)
        play.sees(core.TimerRang(Timer.LOOK_AGAIN)).does(core.Look())
    assert "cancel" in play.run.remedy
    # Back as a standby: the fence still stands, so the promotion may be repeated.
    play.sees(core.Looked(FENCED_SOURCE, STANDBY_TARGET)).does(core.Promote(10.0))
    play.sees(core.Promoted()).stands_in(Phase.CUTTING_OVER)


def test_a_person_may_give_a_silent_target_up() -> None:
    play = play_to(Phase.PROMOTING).sees(core.ActFailed(Act.PROMOTE, "lost"))
    play.sees(core.Looked(FENCED_SOURCE, SILENT_TARGET))
    assert play.run.is_cancellable
    play.sees(core.CancelAsked("ops")).does(core.Enter(Phase.ABORTING), core.Unfence())
    assert "anew" in play.run.remedy


def test_two_primaries_are_for_a_person() -> None:
    play = play_to(Phase.PROMOTING).sees(core.ActFailed(Act.PROMOTE, "lost"))
    play.sees(core.Looked(OPEN_SOURCE, PRIMARY_TARGET)).does(core.Enter(Phase.FAILED))
    assert play.run.remedy


# --- workers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.HOLDING, Phase.DRAINING])
def test_a_worker_that_dies_before_the_fence_undoes_the_switch(phase: Phase) -> None:
    play = play_to(phase).sees(core.WorkerLost(0))
    if phase is Phase.PREPARING:
        play.does(core.Enter(Phase.ABORTING), release_on_source(1))
    else:
        play.does(core.Enter(Phase.ABORTING), core.Unfence())
        play.sees(core.Unfenced()).does(release_on_source(1))
    play.sees(released(1)).does(core.Enter(Phase.ABORTED))


@pytest.mark.parametrize("phase", [Phase.FENCING, Phase.CATCHING_UP, Phase.PROMOTING])
def test_a_worker_that_dies_behind_the_fence_is_not_waited_for(phase: Phase) -> None:
    play = play_to(phase).sees(core.WorkerLost(0)).does_nothing()
    later = [reached for reached in TO_PHASE if list(TO_PHASE).index(reached) > list(TO_PHASE).index(phase)]
    for reached in later[: later.index(Phase.CUTTING_OVER)]:
        play.sees(*TO_PHASE[reached])
    play.sees(core.Promoted()).does(core.Enter(Phase.CUTTING_OVER), retarget(1))
    play.sees(retargeted(1)).does(core.Enter(Phase.RELEASING), release(1))


def test_a_worker_that_dies_at_the_cutover_is_not_waited_for() -> None:
    play = play_to(Phase.CUTTING_OVER).sees(retargeted(1)).does_nothing()
    play.sees(core.WorkerLost(0)).does(core.Enter(Phase.RELEASING), release(1))
    play.sees(core.WorkerLost(1)).does(core.Enter(Phase.VERIFYING), core.Enter(Phase.COMPLETED))


def test_a_worker_that_dies_while_it_is_released_is_not_waited_for() -> None:
    play = play_to(Phase.RELEASING).sees(released(1)).does_nothing()
    play.sees(core.WorkerLost(0)).does(core.Enter(Phase.VERIFYING), core.Enter(Phase.COMPLETED))


def test_a_worker_that_dies_while_the_switch_is_undone_is_not_waited_for() -> None:
    play = play_to(Phase.HOLDING).sees(core.CancelAsked("ops"), core.Unfenced(), released(1))
    play.sees(core.WorkerLost(0)).does(core.Enter(Phase.ABORTED))


def test_a_switch_completes_although_all_workers_died_behind_the_fence() -> None:
    play = play_to(Phase.PROMOTING).sees(core.WorkerLost(0), core.WorkerLost(1)).does_nothing()
    play.sees(core.Promoted()).stands_in(Phase.COMPLETED)


def test_a_worker_that_does_not_retarget_is_replaced() -> None:
    play = play_to(Phase.CUTTING_OVER).sees(retargeted(0))
    play.sees(core.TimerRang(Timer.RETARGET))
    (order,) = play.orders
    assert isinstance(order, core.ReplaceWorker)
    assert order.worker == 1


def test_a_new_worker_behind_the_fence_holds_from_its_beginning_and_is_retargeted_when_it_holds() -> None:
    play = play_to(Phase.FENCING).sees(core.WorkerLost(0)).does_nothing()
    play.sees(core.WorkerJoined(0, False)).does(hold(0))
    play.sees(*TO_PHASE[Phase.CATCHING_UP], *TO_PHASE[Phase.PROMOTING])
    play.sees(core.Promoted()).does(core.Enter(Phase.CUTTING_OVER), retarget(1))
    play.sees(retargeted(1)).does_nothing()
    play.sees(all_held(0)).does(retarget(0))
    play.sees(retargeted(0)).does(core.Enter(Phase.RELEASING), release(0), release(1))


def test_a_new_worker_after_the_cutover_has_nothing_to_do() -> None:
    play = play_to(Phase.CUTTING_OVER).sees(core.WorkerLost(0)).does_nothing()
    play.sees(core.WorkerJoined(0, False)).does_nothing()
    play.sees(retargeted(1)).does(core.Enter(Phase.RELEASING), release(1))


@pytest.mark.parametrize(
    ("phase", "order"),
    [
        (Phase.PREPARING, prepare(0)),
        (Phase.HOLDING, hold(0)),
        (Phase.FENCING, hold(0)),
        (Phase.PROMOTING, hold(0)),
        (Phase.RELEASING, release(0)),
        (Phase.VERIFYING, release(0)),
    ],
)
def test_a_worker_that_comes_back_is_told_again(phase: Phase, order: core.Tell) -> None:
    play_to(phase).sees(core.WorkerJoined(0, True)).does(order)


def test_a_worker_that_comes_back_at_the_cutover_is_retargeted_when_it_says_that_it_holds() -> None:
    play = play_to(Phase.CUTTING_OVER).sees(core.WorkerJoined(0, True)).does(hold(0))
    play.sees(all_held(0)).does(retarget(0))


def test_facts_of_another_switch_or_worker_are_dropped() -> None:
    play = play_to(Phase.HOLDING).sees(all_held(0), all_held(1, switch="older"), all_held(9))
    play.does_nothing().stands_in(Phase.HOLDING)


def test_a_retargeted_with_an_old_epoch_does_not_count() -> None:
    play_to(Phase.CUTTING_OVER).sees(retargeted(0, epoch=7), retargeted(1, epoch=7)).does_nothing()


def test_answers_may_come_twice() -> None:
    play_to(Phase.HOLDING).sees(all_held(0), all_held(0)).does_nothing()
    play_to(Phase.CUTTING_OVER).sees(retargeted(1), retargeted(1)).does_nothing()


@pytest.mark.parametrize("phase", sorted(ENDED))
def test_an_ended_switch_does_nothing(phase: Phase) -> None:
    run = a_run(phase=phase)
    assert run.sees(core.CancelAsked("ops")) == []
    assert run.sees(core.Promoted()) == []


# --- restarts -----------------------------------------------------------------------------------------------------

_UNDONE = [
    Phase.PENDING, Phase.VALIDATING, Phase.PREPARING, Phase.HOLDING, Phase.DRAINING, Phase.FENCING, Phase.CATCHING_UP,
    Phase.ABORTING,
]  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "source", "target", "verdict"),
    [
        *[(phase, FENCED_SOURCE, STANDBY_TARGET, Verdict.UNDO) for phase in _UNDONE],
        *[(phase, OPEN_SOURCE, SILENT_TARGET, Verdict.UNDO) for phase in _UNDONE],
        (Phase.CATCHING_UP, FENCED_SOURCE, PRIMARY_TARGET, Verdict.PERSON),
        (Phase.HOLDING, OPEN_SOURCE, PRIMARY_TARGET, Verdict.UNDO),
        (Phase.PROMOTING, FENCED_SOURCE, STANDBY_TARGET, Verdict.PROMOTE),
        (Phase.PROMOTING, FENCED_SOURCE, PRIMARY_TARGET, Verdict.PROMOTE),
        (Phase.PROMOTING, SILENT_TARGET, STANDBY_TARGET, Verdict.PROMOTE),
        (Phase.PROMOTING, SILENT_TARGET, PRIMARY_TARGET, Verdict.PROMOTE),
        (Phase.PROMOTING, FENCED_SOURCE, SILENT_TARGET, Verdict.WAIT),
        (Phase.PROMOTING, OPEN_SOURCE, STANDBY_TARGET, Verdict.UNDO),
        (Phase.PROMOTING, OPEN_SOURCE, PRIMARY_TARGET, Verdict.PERSON),
        (Phase.CUTTING_OVER, FENCED_SOURCE, PRIMARY_TARGET, Verdict.FINISH),
        (Phase.CUTTING_OVER, FENCED_SOURCE, SILENT_TARGET, Verdict.FINISH),
        (Phase.RELEASING, FENCED_SOURCE, PRIMARY_TARGET, Verdict.FINISH),
        (Phase.VERIFYING, SILENT_TARGET, PRIMARY_TARGET, Verdict.FINISH),
    ],
)
def test_what_becomes_of_an_unfinished_switch(
    phase: Phase, source: EngineState, target: EngineState, verdict: Verdict
) -> None:
    assert decide(phase, source, target) is verdict


@pytest.mark.parametrize(
    ("phase", "source", "target", "verdict"),
    [
        (Phase.VALIDATING, OPEN_SOURCE, PRIMARY_TARGET, Verdict.UNDO),
        (Phase.HOLDING, FENCED_SOURCE, PRIMARY_TARGET, Verdict.PROMOTE),
        (Phase.HOLDING, SILENT_TARGET, PRIMARY_TARGET, Verdict.PROMOTE),
        (Phase.HOLDING, OPEN_SOURCE, PRIMARY_TARGET, Verdict.PERSON),
        (Phase.HOLDING, OPEN_SOURCE, STANDBY_TARGET, Verdict.UNDO),
        (Phase.HOLDING, FENCED_SOURCE, STANDBY_TARGET, Verdict.UNDO),
        (Phase.HOLDING, FENCED_SOURCE, SILENT_TARGET, Verdict.WAIT),
        (Phase.PROMOTING, FENCED_SOURCE, PRIMARY_TARGET, Verdict.PROMOTE),
        (Phase.ABORTING, OPEN_SOURCE, SILENT_TARGET, Verdict.UNDO),
    ],
)
def test_after_a_power_loss_the_target_is_asked_whether_steps_are_missing(
    phase: Phase, source: EngineState, target: EngineState, verdict: Verdict
) -> None:
    assert decide(phase, source, target, is_journal_whole=False) is verdict


def test_a_switch_whose_last_steps_were_lost_is_finished_all_the_same() -> None:
    play = Playbook(a_run(phase=Phase.HOLDING)).resumes(Verdict.PROMOTE).does(hold(0), hold(1), core.Promote(10.0))
    play.sees(all_held(0), all_held(1), core.Promoted()).does(core.Enter(Phase.CUTTING_OVER), retarget(0), retarget(1))


@pytest.mark.parametrize("phase", [phase for phase in TO_PHASE if phase in ABORTABLE and phase is not Phase.VALIDATING])
def test_a_restart_takes_a_fence_away_that_may_be_armed_before_it_releases(phase: Phase) -> None:
    play = Playbook(a_run(phase=phase)).resumes(Verdict.UNDO).does(core.Enter(Phase.ABORTING), core.Unfence())
    play.sees(core.Unfenced()).does(release_on_source(0), release_on_source(1))
    play.sees(released(0), released(1)).does(core.Enter(Phase.ABORTED))


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.VALIDATING])
def test_a_restart_before_anything_was_done_only_ends_the_switch(phase: Phase) -> None:
    Playbook(a_run(phase=phase)).resumes(Verdict.UNDO).does(core.Enter(Phase.ABORTED))


def test_a_restart_while_undoing_goes_on_undoing() -> None:
    play = Playbook(a_run(phase=Phase.ABORTING)).resumes(Verdict.UNDO).does(core.Unfence())
    play.sees(core.Unfenced()).does(release_on_source(0), release_on_source(1))


def test_a_restart_while_promoting_promotes_and_finishes() -> None:
    play = Playbook(a_run(phase=Phase.PROMOTING)).resumes(Verdict.PROMOTE).does(hold(0), hold(1), core.Promote(10.0))
    play.sees(all_held(0), all_held(1)).does_nothing()
    play.sees(core.Promoted()).does(core.Enter(Phase.CUTTING_OVER), retarget(0), retarget(1))
    play.sees(retargeted(0), retargeted(1)).does(core.Enter(Phase.RELEASING), release(0), release(1))


def test_a_restart_while_promoting_waits_for_a_target_that_is_down() -> None:
    play = Playbook(a_run(phase=Phase.PROMOTING)).resumes(Verdict.WAIT).does(hold(0), hold(1))
    play.starts(Timer.LOOK_AGAIN)
    play.sees(core.TimerRang(Timer.LOOK_AGAIN)).does(core.Look())
    play.sees(core.Looked(FENCED_SOURCE, STANDBY_TARGET)).does(core.Promote(10.0))


def test_a_restart_while_promoting_undoes_where_somebody_unfenced_the_source() -> None:
    play = Playbook(a_run(phase=Phase.PROMOTING)).resumes(Verdict.UNDO)
    play.does(core.Enter(Phase.ABORTING), core.Unfence())


def test_a_restart_at_the_cutover_retargets_who_holds() -> None:
    play = Playbook(a_run(phase=Phase.CUTTING_OVER)).resumes(Verdict.FINISH).does(hold(0), hold(1))
    play.sees(all_held(0)).does(retarget(0))
    play.sees(all_held(1)).does(retarget(1))
    play.sees(retargeted(0), retargeted(1)).does(core.Enter(Phase.RELEASING), release(0), release(1))


def test_a_restart_while_releasing_releases() -> None:
    play = Playbook(a_run(phase=Phase.RELEASING)).resumes(Verdict.FINISH).does(release(0), release(1))
    play.sees(released(0), released(1)).does(core.Enter(Phase.VERIFYING), core.Enter(Phase.COMPLETED))


def test_a_restart_while_verifying_completes() -> None:
    play = Playbook(a_run(phase=Phase.VERIFYING)).resumes(Verdict.FINISH)
    play.does(release(0), release(1), core.Enter(Phase.COMPLETED))


def test_a_restart_without_workers_finishes_by_itself() -> None:
    play = Playbook(a_run(phase=Phase.CUTTING_OVER, crew=())).resumes(Verdict.FINISH)
    play.stands_in(Phase.COMPLETED)
