"""Switches that wait: for their time, or for the one before them to end. Pure: told the time, it says what is due.

They are records in phase `pending`, journaled when they are asked for. Nothing is promised but the order: a switch that
begins is checked like any other, against who is active then.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final

from proxy.errors import Conflict, PlanRefused
from proxy.switch.plan import SwitchRecord

WAITING_MAX: Final = 100
"""Switches of one service that may wait."""

AHEAD_S_MAX: Final = 366 * 86_400.0
"""How far ahead a switch may be scheduled."""


class Agenda:
    """All that wait, of all services."""

    def __init__(self) -> None:
        self._waiting: dict[str, SwitchRecord] = {}

    def add(self, record: SwitchRecord) -> None:
        """Raises Conflict: too many."""
        if sum(one.service == record.service for one in self._waiting.values()) >= WAITING_MAX:
            raise Conflict(
                f"{WAITING_MAX} switches of service {record.service!r} wait already", hint="cancel some of them"
            )
        self._waiting[record.id] = record

    def __len__(self) -> int:
        return len(self._waiting)

    def find(self, switch_id: str) -> SwitchRecord | None:
        return self._waiting.get(switch_id)

    def of(self, service: str) -> list[SwitchRecord]:
        """Those of one service, in the order in which they were asked for."""
        return [one for one in self._waiting.values() if one.service == service]

    def remove(self, switch_id: str) -> None:
        self._waiting.pop(switch_id, None)

    def missed(self, now: float, grace_s: dict[str, float]) -> list[SwitchRecord]:
        """Those whose time is over by more than their service's grace. Asked at a start only: later nothing is late but
        behind another switch."""
        return [
            one
            for one in self._waiting.values()
            if one.due_at is not None and now - one.due_at > grace_s.get(one.service, 0.0)
        ]

    def due(self, now: float, busy: Collection[str]) -> list[SwitchRecord]:
        """Those that may begin now: of each service that has no switch the one that was due first. One with a time whose
        service is busy is due as well, if it is not to queue: whoever begins it finds out."""
        found: dict[str, SwitchRecord] = {}
        turned_away = []
        for one in sorted(self._waiting.values(), key=lambda one: (one.due_at or one.began_at, one.began_at)):
            if one.due_at is not None and one.due_at > now:
                continue
            if one.service not in busy:
                found.setdefault(one.service, one)
            elif not one.is_queued:
                turned_away.append(one)
        return [*found.values(), *turned_away]

    def next_due(self, after: float) -> float | None:
        """The next time at which something is due, seconds since 1970; None: nothing has a time behind `after`. What was due
        before waits for another switch to end, not for a time."""
        times = (one.due_at for one in self._waiting.values() if one.due_at is not None)
        return min((at for at in times if at > after), default=None)


def begins_at(at: str, in_s: float | None, now: float) -> float | None:
    """Seconds since 1970 of what was asked for; None: now. Raises PlanRefused."""
    if at and in_s is not None:
        raise PlanRefused("a switch has one time", hint="give `at` or the seconds from now, not both")
    if in_s is not None:
        return now + in_s
    if not at:
        return None
    hint = "as in 2030-01-31T02:00:00+01:00, or 2030-01-31T01:00:00Z"
    try:
        time = datetime.fromisoformat(at)
    except ValueError as error:
        raise PlanRefused(f"{at!r} is no time", hint=hint) from error
    if time.tzinfo is None:
        raise PlanRefused(f"{at!r} has no zone", hint=hint)
    return time.timestamp()


def judge_time(at: float, now: float) -> None:
    """Raises PlanRefused for a time that is over, or too far ahead."""
    if at < now:
        raise PlanRefused(f"that time was {now - at:.0f} s ago", hint="give a time to come, with its zone")
    if at - now > AHEAD_S_MAX:
        raise PlanRefused("that time is more than a year ahead", hint="plan it later")
