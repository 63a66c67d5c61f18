"""How many sessions of a service are of which kind: grades, pins, prepared statements.

To ask a session costs some three to five microseconds, and a worker may have ten thousand: asked all at once they would hold
up everybody's queries for tens of milliseconds. So a few are asked at each tick, a round of all is begun once a second at most,
and what is shown is the last whole count. A service with few sessions is counted when somebody wants to know.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from protocols.wire import Grade
from proxy.dataplane.registry import Registry, Standing

if TYPE_CHECKING:
    from proxy.dataplane.session import Session

FEW: Final = 20
"""Sessions that are asked at once."""

ROUND_NS: Final = 1_000_000_000
"""Between the beginnings of two counts, in nanoseconds, or longer where there are many sessions."""

STEP_NS: Final = 300_000
"""Time for the sessions of one service at each tick, in nanoseconds."""


class Count:
    """What was found."""

    def __init__(self) -> None:
        self.grades: dict[str, int] = {}
        """Sessions by grade, A to D."""
        self.pinned: dict[str, int] = {}
        """Sessions by what they cannot be carried for; one may have several."""
        self.prepared = 0
        """Prepared statements that sessions have."""

    def add(self, session: Session) -> None:
        """One more."""
        grade, pins = session.portability()
        self.grades[grade.value] = self.grades.get(grade.value, 0) + 1
        for pin in pins:
            self.pinned[pin] = self.pinned.get(pin, 0) + 1
        # Of grade A there is nothing to carry, and to have that counted would take as long as all the rest.
        if session.ledger is not None and grade is not Grade.A:
            self.prepared += session.ledger.carried().get("prepared statements", 0)


class Census:
    """One for each service of a worker."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._last = Count()
        self._new = Count()
        self._left: list[Session] = []
        self._begun_ns: int | None = None
        """When the newest count was begun; None: the next tick begins one."""

    def look(self) -> Count:
        """Of few sessions what is so now, else the last whole count."""
        if len(self._registry) <= FEW:
            self._last = Count()
            for session in self._registry:
                self._last.add(session)
        return self._last

    def tick(self, now_ns: int) -> None:
        """Ask some more; `now_ns` is the time of the monotonic clock."""
        if len(self._registry) <= FEW:
            # `look` asks them.
            self._left, self._new, self._begun_ns = [], Count(), None
            return
        if not self._left:
            if self._begun_ns is not None and now_ns - self._begun_ns < ROUND_NS:
                return
            self._begun_ns = now_ns
            self._new = Count()
            self._left = [one for standing in Standing for one in self._registry.members(standing)]
        until_ns = time.monotonic_ns() + STEP_NS
        while self._left and time.monotonic_ns() < until_ns:
            session = self._left.pop()
            if session.standing is not Standing.ENDED:
                self._new.add(session)
        if not self._left:
            self._last = self._new
