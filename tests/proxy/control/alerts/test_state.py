"""The table of alerts, without a clock or anything to watch."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from proxy.config import AlertRuleConfig
from proxy.control.alerts.model import Alert, State, Subject
from proxy.control.alerts.state import NEXT, Sample, Seen, due, look, step

LAG = AlertRuleConfig(when="replication_lag_ms", above=100, for_s=10, keep_firing_for_s=5)
BLUE = Subject(service="shop", engine="blue")
FRESH = Alert(name="lag", subject=BLUE, severity="warning")


def found(holds: bool | None, text: str = "it is 200", *, is_over: bool = False) -> Sample:
    return Sample(subject=BLUE, holds=holds, text=text, value=200.0, is_over=is_over)


def seen(*looks: tuple[float, bool | None], rule: AlertRuleConfig = LAG) -> Alert:
    """The alert after looks at these seconds."""
    alert = FRESH
    for now, holds in looks:
        alert = step(alert, rule, found(holds), now)
    return alert


def test_every_pair_of_state_and_finding_is_in_the_table() -> None:
    assert set(NEXT) == set(product(State, Seen))


def test_a_condition_fires_once_it_has_held_for_as_long_as_the_rule_says() -> None:
    assert seen((100, True)).state is State.PENDING
    assert seen((100, True), (109, True)).state is State.PENDING
    alert = seen((100, True), (109, True), (110, True))
    assert (alert.state, alert.since, alert.fired_at, alert.text) == (State.FIRING, 100, 110, "it is 200")


def test_what_holds_not_for_long_enough_never_fires() -> None:
    assert seen((100, True), (109, False)).state is State.INACTIVE
    assert seen((100, True), (109, False), (110, True)).state is State.PENDING


def test_without_a_time_it_fires_at_once() -> None:
    assert seen((100, True), rule=AlertRuleConfig(when="engine_down")).state is State.FIRING


def test_what_comes_and_goes_within_its_time_is_one_alert() -> None:
    fired = [(100.0, True), (110.0, True)]
    assert seen(*fired, (114, False)).state is State.FIRING
    again = seen(*fired, (114, False), (114.5, True), (119, False))
    assert (again.state, again.fired_at) == (State.FIRING, 110)
    over = seen(*fired, (115, False))
    assert (over.state, over.resolved_at) == (State.RESOLVED, 115)


def test_what_is_not_known_leaves_alone_what_fires_and_ends_what_is_pending() -> None:
    assert seen((100, True), (110, True), (200, None)).state is State.FIRING
    assert seen((100, True), (105, None)).state is State.INACTIVE


@pytest.mark.parametrize("rule", [LAG, None])
def test_an_alert_goes_with_what_it_is_about_and_with_its_rule(rule: AlertRuleConfig | None) -> None:
    firing = seen((100, True), (110, True))
    gone = step(firing, rule, None if rule is not None else found(True), 111)
    assert gone.state is State.RESOLVED


def test_an_event_fires_for_an_hour_unless_something_makes_up_for_it() -> None:
    rule = AlertRuleConfig(when="switch_failed")
    firing = step(FRESH, rule, found(True), 100)
    assert firing.state is State.FIRING
    assert step(firing, rule, found(False), 3_699).state is State.FIRING
    assert step(firing, rule, found(False), 3_700).state is State.RESOLVED
    assert step(firing, rule, found(False, is_over=True), 101).state is State.RESOLVED


def test_a_resolved_alert_may_fire_again() -> None:
    over = seen((100, True), (110, True), (120, False))
    assert over.state is State.RESOLVED
    assert look(over, LAG, found(True), 130) is Seen.HOLDS
    again = step(step(over, LAG, found(True), 130), LAG, found(True), 140)
    assert (again.state, again.fired_at, again.resolved_at) == (State.FIRING, 140, 0)


# --- messages -----------------------------------------------------------------------------------------------------

FIRING = msgspec.structs.replace(FRESH, state=State.FIRING, fired_at=100.0)
OVER = msgspec.structs.replace(FRESH, state=State.RESOLVED, resolved_at=200.0)


def told(alert: Alert, what: str, at: float) -> Alert:
    return msgspec.structs.replace(alert, told=what, told_at=at)


def test_one_firing_is_one_message_until_the_interval_is_over() -> None:
    assert due(FIRING, 100, 60, is_silenced=False) == "firing"
    assert due(told(FIRING, "firing", 100), 159, 60, is_silenced=False) is None
    assert due(told(FIRING, "firing", 100), 160, 60, is_silenced=False) == "firing"


def test_an_end_is_told_once_and_only_of_what_was_told() -> None:
    assert due(told(OVER, "firing", 100), 200, 60, is_silenced=False) == "resolved"
    assert due(told(OVER, "resolved", 200), 900, 60, is_silenced=False) is None
    assert due(OVER, 200, 60, is_silenced=False) is None


def test_a_silence_puts_messages_off() -> None:
    assert due(FIRING, 100, 60, is_silenced=True) is None
    assert due(told(OVER, "firing", 100), 200, 60, is_silenced=True) is None
    # Over, and pending again, when the silence ends: the end of what was told is still due.
    pending = told(msgspec.structs.replace(FRESH, state=State.PENDING), "firing", 100)
    assert due(pending, 300, 60, is_silenced=False) == "resolved"
