"""Whether policies fire, from figures and moments one can check by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from proxy.engines.figures import Window
from proxy.policy.evaluation import Moment, Standing, choose, choose_after_failure, judge
from proxy.policy.model import Code, Judgement, Policy

NOW = 1_000_000.0


def a_policy(name: str = "slow", **keys: Any) -> Policy:
    keys = {"trigger": "performance_degradation", "response_time_threshold_ms": 100.0, **keys}
    return Policy(name=name, service="shop", origin="command", target_engine="green", **keys)


def a_window(**keys: Any) -> Window:
    """A minute of 100 requests of 200 ms."""
    known: dict[str, Any] = {
        "covered_s": 60.0,
        "requests": 100,
        "response_time_ms": 200.0,
        "error_rate_percent": 0.0,
        "server_errors": 0,
        "cpu_percent": None,
        "memory_percent": None,
        "connections": None,
    }
    return Window(**{**known, **keys})


def a_moment(
    window: Window | None = None, look: Callable[[int], Window] | None = None, slower: float = 100.0, **keys: Any
) -> Moment:
    known: dict[str, Any] = {
        "now": NOW, "active": "blue", "engines": ["blue", "green"], "running": None, "last_ended": None, "begun_by_policies": 0, "is_answering": True,
        "slower_percent": lambda _span_s, _threshold_ms: slower,
        "window": look or (lambda _span_s: window if window is not None else a_window()),
    }  # fmt: skip
    return Moment(**{**known, **keys})


def judged(policy: Policy, moment: Moment, **standing: Any) -> Judgement:
    return judge(policy, moment, Standing(**standing))


def test_a_slow_engine_fires_and_says_why() -> None:
    found = judged(a_policy(), a_moment())
    assert found.fires
    assert found.is_resting
    assert found.text == (
        "fired because the mean response time of blue was 200.0 ms over 60 s (100 requests, 100 % slower than 100 ms), "
        "above 100 ms"
    )


def test_the_window_asked_for_is_the_policys_own() -> None:
    asked: list[int] = []

    def window(span_s: int) -> Window:
        asked.append(span_s)
        return a_window(covered_s=float(span_s))

    judged(a_policy(window_duration=17), a_moment(look=window))
    assert asked == [17]


def test_a_mean_that_is_moved_by_a_few_long_requests_is_no_slow_engine() -> None:
    found = judged(a_policy(), a_moment(slower=9.9))
    assert found.code is Code.NOT_ABOVE
    assert "less than 10 % of them were slower than 100 ms" in found.text


@pytest.mark.parametrize(
    ("window", "code"),
    [
        (a_window(requests=19), Code.TOO_LITTLE_EVIDENCE),
        (a_window(covered_s=50.0), Code.TOO_LITTLE_EVIDENCE),
        (a_window(response_time_ms=100.0), Code.NOT_ABOVE),
        (a_window(response_time_ms=100.1), Code.FIRED),
    ],
)
def test_it_takes_enough_evidence_and_a_figure_above_the_threshold(window: Window, code: Code) -> None:
    assert judged(a_policy(), a_moment(window)).code is code


def test_errors_above_their_share_fire() -> None:
    policy = a_policy(trigger="error_rate", error_rate_threshold=5.0)
    assert judged(policy, a_moment(a_window(error_rate_percent=5.0, server_errors=5))).code is Code.NOT_ABOVE
    found = judged(policy, a_moment(a_window(error_rate_percent=6.0, server_errors=6)))
    assert found.text == ("fired because the error rate of blue was 6.00 % over 60 s (6 of 100 requests), above 5 %")


@pytest.mark.parametrize("key", ["cpu", "memory", "connection"])
def test_each_kind_of_load_fires_alone_and_what_is_not_asked_for_is_not_looked_at(key: str) -> None:
    figure = {"cpu": "cpu_percent", "memory": "memory_percent", "connection": "connections"}[key]
    threshold: dict[str, Any] = {f"{key}_threshold": 80}
    policy = a_policy(trigger="load_threshold", **threshold)
    idle = a_window(requests=0, response_time_ms=None, cpu_percent=99.0, memory_percent=99.0, connections=99.0)
    assert judged(policy, a_moment(idle)).fires
    assert not judged(policy, a_moment(a_window(**{figure: 79.0}))).fires
    others = {"cpu_percent": 99.0, "memory_percent": 99.0, "connections": 99.0, figure: 10.0}
    assert judged(policy, a_moment(a_window(**others))).code is Code.NOT_ABOVE


def test_an_unknown_load_fires_nothing() -> None:
    policy = a_policy(trigger="load_threshold", cpu_threshold=80, memory_threshold=80)
    found = judged(policy, a_moment())
    assert found.code is Code.UNKNOWN
    assert found.text == "did not fire because cpu_usage_percent of blue and memory_usage_percent of blue are not known"
    assert judged(policy, a_moment(a_window(memory_percent=90.0))).fires


@pytest.mark.parametrize(
    ("moment", "code"),
    [
        (a_moment(active="green"), Code.TARGET_SERVES),
        (a_moment(running="s1"), Code.SWITCH_RUNS),
        (a_moment(is_answering=False), Code.ENGINE_FAILED),
        (a_moment(last_ended=NOW - 299), Code.COOLS_DOWN),
        (a_moment(last_ended=NOW - 300), Code.FIRED),
        (a_moment(begun_by_policies=4), Code.CAPPED),
        (a_moment(begun_by_policies=3), Code.FIRED),
    ],
)
def test_each_brake_holds_a_policy_whose_cause_is_there(moment: Moment, code: Code) -> None:
    assert judged(a_policy(), moment).code is code


def test_a_policy_that_has_fired_rests_until_the_figure_was_well_below_its_threshold() -> None:
    above, just_below, well_below = (
        a_moment(a_window(response_time_ms=ms)) for ms in (200.0, 91.0, 89.0)
    )  # hysteresis: 10 % of 100 ms
    assert judged(a_policy(), above, is_resting=True).code is Code.RESTS
    assert judged(a_policy(), just_below, is_resting=True).is_resting
    assert not judged(a_policy(), well_below, is_resting=True).is_resting


def test_the_target_that_serves_well_ends_the_rest() -> None:
    served_well = a_moment(a_window(response_time_ms=5.0), active="green")
    found = judged(a_policy(), served_well, is_resting=True)
    assert (found.code, found.is_resting) == (Code.TARGET_SERVES, False)
    unknown = a_moment(a_window(requests=0, response_time_ms=None), active="green")
    assert judged(a_policy(), unknown, is_resting=True).is_resting


def test_a_disabled_policy_never_fires() -> None:
    for policy in (a_policy(enabled=False), a_policy(trigger="scheduled", cron_expression="* * * * *", enabled=False)):
        assert judged(policy, a_moment(), due=NOW).code is Code.DISABLED


def _both(first: Policy, second: Policy) -> dict[str, Code]:
    moment = a_moment()
    found = choose((policy, judge(policy, moment, Standing())) for policy in (first, second))
    return {policy.name: judgement.code for policy, judgement in found}


def test_of_two_that_would_fire_together_the_higher_priority_does() -> None:
    expected = {"a": Code.LOWER_PRIORITY, "b": Code.FIRED}
    assert _both(a_policy("a", priority=10), a_policy("b", priority=11)) == expected
    assert _both(a_policy("b", priority=11), a_policy("a", priority=10)) == expected


def test_of_two_with_the_same_priority_the_first_by_name_fires() -> None:
    assert _both(a_policy("b"), a_policy("a")) == {"a": Code.FIRED, "b": Code.LOWER_PRIORITY}


def test_who_had_to_stand_back_says_for_whom_and_does_not_rest() -> None:
    moment = a_moment()
    pairs = [(one, judge(one, moment, Standing())) for one in (a_policy("a", priority=1), a_policy("b", priority=255))]
    [(_, lower), _] = choose(pairs)
    assert lower.text == "did not fire because policy b with priority 255 goes before it"
    assert not lower.is_resting


def _timed(due: float | None, **keys: Any) -> Judgement:
    policy = a_policy(trigger="scheduled", cron_expression="0 3 * * *")
    return judged(policy, a_moment(**keys), due=due)


def test_a_schedule_fires_when_its_time_has_come_and_not_before() -> None:
    assert _timed(NOW + 0.1).code is Code.WAITS
    assert _timed(NOW).fires
    assert _timed(None).code is Code.WAITS


def test_a_schedule_waits_a_minute_for_a_switch_that_runs_and_is_missed_then() -> None:
    assert _timed(NOW - 60, running="s1").code is Code.SWITCH_RUNS
    assert _timed(NOW - 60).fires
    assert _timed(NOW - 61).code is Code.MISSED


def test_a_schedule_heeds_the_cap_and_no_cool_down() -> None:
    assert _timed(NOW, begun_by_policies=4).code is Code.CAPPED
    assert _timed(NOW, last_ended=NOW - 1).fires
    assert _timed(NOW, active="green").code is Code.TARGET_SERVES


def test_after_a_failure_the_policy_of_the_highest_priority_names_who_takes_over() -> None:
    def failure(name: str, target: str, **keys: Any) -> Policy:
        return Policy(name=name, service="shop", origin="config", trigger="failure", target_engine=target, **keys)

    low, high = failure("low", "green", priority=1), failure("high", "red", priority=2)
    assert choose_after_failure([low, high], "blue") is high
    assert choose_after_failure([low, high], "red") is low
    assert choose_after_failure([failure("off", "green", enabled=False), a_policy()], "blue") is None
