"""Rolling, canary and the window after a cutover, step by step, and how a run carries them out."""

from __future__ import annotations

from typing import Any

import pytest

from proxy import ipc
from proxy.config import AdminConfig, AuthConfig, EngineConfig, ServiceConfig, SwitchConfig
from proxy.errors import PlanRefused
from proxy.switch import run as core
from proxy.switch import strategies
from proxy.switch.agenda import begins_at, judge_time
from proxy.switch.plan import SwitchPlan, accept
from proxy.switch.run import Timer
from proxy.switch.significance import NOTHING, Limits
from proxy.switch.state import Phase
from proxy.switch.strategies import Answer, Canary, Done, Leave, Look, Move, Pause, Rolling, Window, spread
from tests.proxy.switch.playbook import (
    PASSED,
    Playbook,
    a_run,
    all_held,
    first_row,
    prepare,
    prepared,
    release_on_source,
    released,
    retargeted,
)
from tests.proxy.switch.test_significance import sample

LIMITS = Limits(latency_ratio_max=1.5, error_percent_more_max=0.5, requests_min=100)


@pytest.mark.parametrize(
    ("wanted", "left", "shares"),
    [
        (5, {0: 50, 1: 50}, {0: 3, 1: 2}),
        (10, {0: 90, 1: 10}, {0: 9, 1: 1}),
        (10, {0: 3, 1: 4}, {0: 3, 1: 4}),
        (1, {0: 0, 1: 7}, {0: 0, 1: 1}),
        (4, {}, {}),
    ],
)
def test_a_batch_is_shared_out_among_workers_by_what_they_have(
    wanted: int, left: dict[int, int], shares: dict[int, int]
) -> None:
    assert spread(wanted, left) == shares


def test_rolling_goes_on_until_nobody_is_left_or_nobody_moves() -> None:
    rolling = Rolling(batch_size=4, interval_s=0.5)
    assert rolling.begin([0, 1]) == Move(1, {0: 0, 1: 0}, 0.0)
    assert rolling.moved({0: Answer(0, 0, 6), 1: Answer(0, 0, 2)}) == Move(2, {0: 3, 1: 1}, 0.0)
    answers = {0: Answer(3, 3, 3), 1: Answer(1, 1, 1)}
    assert rolling.moved(answers) == Pause(0.5)
    assert rolling.rang(answers) == Move(3, {0: 3, 1: 1}, 50.0)
    assert rolling.moved({0: Answer(0, 3, 3), 1: Answer(0, 1, 1)}) == Done()
    assert Rolling(4, 0.5).moved({0: Answer(0, 0, 0)}) == Done()


def a_canary() -> Canary:
    """It moves two of eight, and has seen what the engines had done by then."""
    canary = Canary(20.0, 3.0, LIMITS)
    assert canary.begin([0]) == Move(1, {0: 0}, 0.0)
    assert canary.moved({0: Answer(0, 0, 8)}) == Move(2, {0: 2}, 20.0)
    assert canary.moved({0: Answer(2, 2, 6)}) == Look()
    assert canary.looked(sample(5_000, times=9), NOTHING) == Pause(1.0)
    return canary


def test_a_canary_is_judged_by_what_was_done_since_it_began() -> None:
    canary, old = a_canary(), sample(5_000, times=9)
    assert canary.looked(old.plus(sample(200)), sample(90)) == Pause(1.0)
    assert canary.looked(old.plus(sample(300)), sample(110, seed=2)) == Pause(1.0)
    assert canary.looked(old.plus(sample(400)), sample(150, seed=2)) == Done()


def test_a_canary_that_is_clearly_worse_is_left_at_once() -> None:
    step = a_canary().looked(sample(5_000, times=9).plus(sample(300)), sample(300, times=5, seed=2))
    assert isinstance(step, Leave)
    assert "times as long" in step.error


def test_a_canary_of_which_nothing_was_shown_is_left_at_the_end() -> None:
    canary = a_canary()
    for _ in range(2):
        assert canary.looked(sample(6_000, times=9), sample(10)) == Pause(1.0)
    step = canary.looked(sample(6_000, times=9), sample(10))
    assert isinstance(step, Leave)
    assert "not shown" in step.error


def test_a_window_without_enough_requests_accuses_nobody() -> None:
    window = Window(2.0, LIMITS)
    assert window.looked(sample(500), sample(50)) == Pause(1.0)
    assert window.looked(sample(500), sample(60)) == Pause(1.0)
    assert window.looked(sample(500), sample(70)) == Done()
    assert window.opinion is not None
    assert window.opinion.finding == "too_few"


# --- how a run carries them out -----------------------------------------------------------------------------------


def share(worker: int, step: int, moves: int, percent: float = 0.0) -> core.Tell:
    return core.Tell(
        worker, ipc.Share(switch="s1", service="app", target="green", step=step, moves=moves, percent=percent)
    )


def shared(worker: int, step: int, moved: int, on_target: int, left: int, *failed: str) -> core.WorkerSaid:
    return core.WorkerSaid(
        worker,
        ipc.Shared(
            switch="s1", service="app", step=step, moved=moved, on_target=on_target, left=left, failed=list(failed)
        ),
    )


def a_rolling_run(**options: Any) -> Playbook:
    """Two workers with two sessions each; the first batch of two has moved."""
    play = Playbook(a_run(moves_data=False, strategy=Rolling(2, 1.0), **options)).begins()
    play.sees(core.Examined([PASSED])).does(core.Enter(Phase.SHARING), share(0, 1, 0), share(1, 1, 0))
    play.sees(shared(0, 1, 0, 0, 2)).does()
    play.sees(shared(1, 1, 0, 0, 2)).does(share(0, 2, 1), share(1, 2, 1))
    play.sees(shared(0, 2, 1, 1, 1), shared(1, 2, 1, 1, 1)).does().starts(Timer.STEP)
    return play


def test_what_a_rolling_switch_leaves_over_is_held_and_moved_like_any_other() -> None:
    play = a_rolling_run()
    play.sees(core.TimerRang(Timer.STEP)).does(share(0, 3, 1, 50.0), share(1, 3, 1, 50.0))
    play.sees(shared(0, 3, 1, 2, 0), shared(1, 3, 0, 1, 1)).does().starts(Timer.STEP)
    play.sees(core.TimerRang(Timer.STEP)).does(share(0, 4, 0, 75.0), share(1, 4, 1, 75.0))
    play.sees(shared(0, 4, 0, 2, 0), shared(1, 4, 0, 1, 1)).does(core.Enter(Phase.PREPARING), prepare(0), prepare(1))
    play.sees(prepared(0), prepared(1)).sees(core.Approached())
    play.stands_in(Phase.HOLDING)
    play.sees(all_held(0), all_held(1)).stands_in(Phase.CUTTING_OVER)


@pytest.mark.parametrize(
    "trouble",
    [
        core.CancelAsked("ops"),
        core.TargetLost("it is gone"),
        shared(0, 3, 0, 1, 1, "no such role"),
        core.TimerRang(Timer.SHARE),
    ],
)
def test_trouble_while_both_serve_brings_everybody_back(trouble: core.Fact) -> None:
    play = a_rolling_run()
    play.sees(core.TimerRang(Timer.STEP))
    play.sees(trouble).does(core.Enter(Phase.ABORTING), release_on_source(0), release_on_source(1))
    play.sees(released(0), released(1)).does(core.Enter(Phase.ABORTED))


def test_answers_of_an_earlier_step_count_for_nothing() -> None:
    play = a_rolling_run()
    play.sees(core.TimerRang(Timer.STEP))
    play.sees(shared(0, 2, 1, 1, 1), shared(1, 2, 1, 1, 1)).does_nothing()


def test_a_worker_that_is_lost_while_both_serve_takes_nothing_with_it() -> None:
    """The others go on; one that comes in its place moves nobody in this step, but its newcomers belong on both."""
    play = a_rolling_run()
    play.sees(core.TimerRang(Timer.STEP))
    play.sees(shared(0, 3, 1, 2, 0)).does_nothing()
    play.sees(core.WorkerLost(1)).does(core.Enter(Phase.PREPARING), prepare(0))
    play = a_rolling_run()
    play.sees(core.WorkerLost(1)).does_nothing()
    play.sees(core.WorkerJoined(1, False)).does(share(1, 2, 0, 50.0))
    play.sees(shared(1, 2, 0, 0, 0)).does_nothing()


def to_window(*, reverses: bool, moves_data: bool = False) -> Playbook:
    play = Playbook(
        a_run(moves_data=moves_data, reverses=reverses, window=Window(5.0, LIMITS), crew=(0,), strategy=None)
    ).begins()
    play.sees(core.Examined([PASSED]), prepared(0), core.Approached(), all_held(0), retargeted(0))
    play.sees(released(0, 5)).stands_in(Phase.VERIFYING)
    assert core.Weigh() in play.orders
    play.sees(core.Weighed(NOTHING, NOTHING, sample(500))).does().starts(Timer.WINDOW)
    return play


def test_a_service_that_is_worse_goes_back() -> None:
    play = to_window(reverses=False)
    play.sees(first_row(0)).does_nothing()
    play.sees(core.TimerRang(Timer.WINDOW)).does(core.Weigh())
    play.sees(core.Weighed(NOTHING, sample(500, times=9), sample(500)))
    assert play.run.phase is Phase.ROLLING_BACK
    assert isinstance(play.orders[-1], core.GoBack)
    play.sees(core.WentBack()).does(core.Enter(Phase.ROLLED_BACK))


def test_a_way_back_that_fails_leaves_the_target_serving_and_asks_a_person() -> None:
    play = to_window(reverses=False)
    play.sees(core.Weighed(NOTHING, sample(500, times=9), sample(500)))
    play.sees(core.WentBack("drained too long")).does(core.Enter(Phase.FAILED))
    assert "drained too long" in play.run.error


def test_a_service_that_is_no_worse_stays() -> None:
    play = to_window(reverses=False)
    play.sees(first_row(0))
    for _ in range(4):
        play.sees(core.Weighed(NOTHING, sample(500, seed=3), sample(500))).does().starts(Timer.WINDOW)
    play.sees(core.Weighed(NOTHING, sample(500, seed=3), sample(500))).does(core.Enter(Phase.COMPLETED))


# --- plans --------------------------------------------------------------------------------------------------------

SERVICE = ServiceConfig(
    protocol="postgresql",
    active="blue",
    admin=AdminConfig(user="turnout"),
    auth=AuthConfig(method="trust"),
    engine={"blue": EngineConfig(address="a:1"), "green": EngineConfig(address="b:1")},
    switch=SwitchConfig(batch_size=7),
)


def test_a_plan_gets_what_it_does_not_say_from_the_config() -> None:
    plan = accept(SwitchPlan(service="app", target="green", strategy="rolling", interval_s=2.0), SERVICE, "blue")
    assert (plan.batch_size, plan.interval_s, plan.traffic_percentage) == (7, 2.0, None)
    assert isinstance(strategies.strategy_of(plan, LIMITS), Rolling)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"strategy": "rolling", "batch_size": 0}, "out of range"),
        ({"strategy": "canary", "traffic_percentage": 100.0}, "out of range"),
        ({"strategy": "canary", "batch_size": 5}, "is for strategy 'rolling'"),
        ({"validation_duration_s": 5.0}, "is for strategy 'canary'"),
        ({"when_busy": "perhaps"}, "when_busy"),
        ({"strategy": "wild"}, "there is no strategy"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(given: dict[str, Any], why: str) -> None:
    with pytest.raises(PlanRefused, match=why):
        accept(SwitchPlan(service="app", target="green", **given), SERVICE, "blue")


def test_a_time_has_a_zone() -> None:
    assert begins_at("", None, 5.0) is None
    assert begins_at("", 10.0, 5.0) == 15.0
    assert begins_at("1970-01-01T01:00:00+01:00", None, 5.0) == 0.0
    assert begins_at("1970-01-01T00:00:10Z", None, 5.0) == 10.0
    for wrong in ("1970-01-01T00:00:10", "tomorrow"):
        with pytest.raises(PlanRefused):
            begins_at(wrong, None, 5.0)
    with pytest.raises(PlanRefused):
        begins_at("1970-01-01T00:00:10Z", 3.0, 5.0)
    for at in (99.0, 1e10):
        with pytest.raises(PlanRefused):
            judge_time(at, 100.0)
