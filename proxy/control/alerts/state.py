"""When an alert fires and when it is over: a table, and what goes with its moves. Pure; time is an argument.

Theory of operation
-------------------
Each second a rule is told, for each thing that it watches, whether its condition holds (`Sample.holds`), or that nobody
knows. From that and the times in the alert comes one of six words (`look`), and the word moves the alert (`NEXT`).

`for_s` puts off the firing, `keep_firing_for_s` the resolving: what comes and goes within it is one alert. What is not known
ends what is pending, for it has not been seen to last, and leaves alone what fires: a standby that cannot be asked for its lag
has not caught up. A thing that does not exist any more (an engine was removed, a rule was dropped) takes its alert along.

Messages follow from the state and from what was told before (`due`), not from the moves: so nothing is told twice, what
was silenced is told when the silence ends and it still fires, and the end of what nobody was told of is not told either,
across restarts, too.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from proxy.config import ALERT_EVENTS, AlertRuleConfig
from proxy.control.alerts.model import Alert, State, Subject

EVENT_FIRES_S: Final = 3_600.0
"""How long an alert of an event fires, unless the rule or a better event says otherwise."""


class Seen(enum.Enum):
    """What a look at a condition comes to."""

    HOLDS = "holds"
    """Not yet for as long as `for_s`."""
    LASTED = "lasted"
    """For `for_s` or longer."""
    CLEAR = "clear"
    """It does not hold, not yet for as long as `keep_firing_for_s`."""
    CLEARED = "cleared"
    """It has not held for as long as that."""
    UNKNOWN = "unknown"
    GONE = "gone"
    """What it is about is not there any more."""


NEXT: Final[Mapping[tuple[State, Seen], State]] = {
    (State.INACTIVE, Seen.HOLDS): State.PENDING,
    (State.INACTIVE, Seen.LASTED): State.FIRING,
    (State.INACTIVE, Seen.CLEAR): State.INACTIVE,
    (State.INACTIVE, Seen.CLEARED): State.INACTIVE,
    (State.INACTIVE, Seen.UNKNOWN): State.INACTIVE,
    (State.INACTIVE, Seen.GONE): State.INACTIVE,
    (State.PENDING, Seen.HOLDS): State.PENDING,
    (State.PENDING, Seen.LASTED): State.FIRING,
    (State.PENDING, Seen.CLEAR): State.INACTIVE,
    (State.PENDING, Seen.CLEARED): State.INACTIVE,
    (State.PENDING, Seen.UNKNOWN): State.INACTIVE,
    (State.PENDING, Seen.GONE): State.INACTIVE,
    (State.FIRING, Seen.HOLDS): State.FIRING,
    (State.FIRING, Seen.LASTED): State.FIRING,
    (State.FIRING, Seen.CLEAR): State.FIRING,
    (State.FIRING, Seen.CLEARED): State.RESOLVED,
    (State.FIRING, Seen.UNKNOWN): State.FIRING,
    (State.FIRING, Seen.GONE): State.RESOLVED,
    (State.RESOLVED, Seen.HOLDS): State.PENDING,
    (State.RESOLVED, Seen.LASTED): State.FIRING,
    (State.RESOLVED, Seen.CLEAR): State.RESOLVED,
    (State.RESOLVED, Seen.CLEARED): State.RESOLVED,
    (State.RESOLVED, Seen.UNKNOWN): State.RESOLVED,
    (State.RESOLVED, Seen.GONE): State.RESOLVED,
}
"""Nothing else moves an alert."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a rule watches, now."""

    subject: Subject
    holds: bool | None
    """None: nobody knows."""
    text: str = ""
    """What was found; only where it holds, or is over for good."""
    value: float | None = None
    is_over: bool = False
    """Of an event: something has happened that makes up for it."""


def keep_firing_s(rule: AlertRuleConfig) -> float:
    """How long it goes on firing after its condition held."""
    if rule.keep_firing_for_s is not None:
        return rule.keep_firing_for_s
    return EVENT_FIRES_S if rule.when in ALERT_EVENTS else 0.0


def look(alert: Alert, rule: AlertRuleConfig | None, sample: Sample | None, now: float) -> Seen:
    """What the newest sample says of an alert; None: there is none, or no such rule, any more."""
    if sample is None or rule is None:
        return Seen.GONE
    if sample.holds is None:
        return Seen.UNKNOWN
    if sample.holds:
        has_held_s = now - alert.since if alert.state in (State.PENDING, State.FIRING) else 0.0
        return Seen.LASTED if has_held_s >= rule.for_s else Seen.HOLDS
    if sample.is_over or now - alert.held_at >= keep_firing_s(rule):
        return Seen.CLEARED
    return Seen.CLEAR


def step(alert: Alert, rule: AlertRuleConfig | None, sample: Sample | None, now: float) -> Alert:
    """The alert after a look; the same object if nothing about it has changed."""
    seen = look(alert, rule, sample, now)
    after = NEXT[alert.state, seen]
    changes: dict[str, object] = {}
    if after is not alert.state:
        changes["state"] = after
        if alert.state in (State.INACTIVE, State.RESOLVED):
            changes |= {"since": now, "fired_at": 0.0, "resolved_at": 0.0}
        if after is State.FIRING:
            changes["fired_at"] = now
        if after is State.RESOLVED:
            changes["resolved_at"] = now
    if seen in (Seen.HOLDS, Seen.LASTED):
        assert sample is not None
        assert rule is not None
        changes |= {"held_at": now, "text": sample.text, "value": sample.value, "severity": rule.severity}
    return msgspec.structs.replace(alert, **changes) if changes else alert


def due(
    alert: Alert, now: float, repeat_interval_s: float, *, is_silenced: bool
) -> Literal["firing", "resolved"] | None:
    """What receivers are to be told now; None: nothing."""
    if is_silenced:
        return None
    if alert.state is State.FIRING:
        return "firing" if alert.told != "firing" or now - alert.told_at >= repeat_interval_s else None
    return "resolved" if alert.told == "firing" else None
