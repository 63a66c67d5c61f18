"""Switches that wait, and the alarm that begins them: for their time, or for the one before them to end."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from proxy.clock import Clock
from proxy.errors import Conflict
from proxy.switch.agenda import Agenda
from proxy.switch.evidence import Evidence
from proxy.switch.journal import Journal
from proxy.switch.plan import SwitchRecord
from proxy.switch.running import Crew, Running
from proxy.switch.state import Event as Why
from proxy.switch.state import after

_log = structlog.get_logger("turnout.switch")

ALARM_S_MAX: Final = 30.0
"""Longest sleep until the next switch that is due: the clock may be set meanwhile."""

ALARM_LATE_S: Final = 0.001
"""A timer that rings early finds nothing due."""

ALARM_AGAIN_S: Final = 0.2


class Waiting:
    """Of all services. `running` are the switches under way by service; `begin` takes over a record whose turn it is, and
    has it closed here if it cannot be; `tell` makes a phase known."""

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        crew: Crew,
        running: Mapping[str, Running],
        *,
        begin: Callable[[SwitchRecord], None],
        tell: Callable[[SwitchRecord], None],
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._crew = crew
        self._running = running
        self._begin = begin
        self._tell = tell
        self._agenda = Agenda()
        self._alarm: asyncio.TimerHandle | None = None
        # When it was last seen to what is due, seconds since 1970.
        self._seen_to = 0.0

    def of(self, service: str) -> list[SwitchRecord]:
        """Those of one service, in the order in which they were asked for."""
        return self._agenda.of(service)

    def find(self, switch_id: str) -> SwitchRecord | None:
        return self._agenda.find(switch_id)

    def add(self, record: SwitchRecord) -> None:
        """Journal it, and let it wait. Raises Conflict, sqlite3.Error."""
        self._agenda.add(record)
        try:
            self._journal.begin(record)
        except sqlite3.Error:
            self._agenda.remove(record.id)
            raise
        _log.info("switch waits", switch=record.id, service=record.service, target=record.target, due_at=record.due_at)
        self._tell(record)
        self._set_alarm()

    def remove(self, record: SwitchRecord) -> None:
        """It begins."""
        self._agenda.remove(record.id)

    def close(self, record: SwitchRecord, error: str, remedy: str) -> None:
        """It does not begin."""
        self._agenda.remove(record.id)
        record.phase = after(record.phase, Why.TROUBLE)
        record.error, record.remedy, record.ended_at = error, remedy, self._clock.wall()
        now_ns = self._clock.now_ns()
        evidence = Evidence()
        try:
            self._journal.enter(record, now_ns)
            figures = evidence.figures(now_ns, now_ns)
            self._journal.end(record, evidence.report(record, figures, self._journal.steps(record.id)))
        except sqlite3.Error as failed:
            _log.error("the journal cannot be written", switch=record.id, error=str(failed))
        _log.warning("switch did not begin", switch=record.id, service=record.service, why=error)
        self._tell(record)

    def take_up(self, records: list[SwitchRecord], grace_s: dict[str, float]) -> None:
        """Those that an earlier supervisor has left. Whose time has passed by more than the grace of its service is closed."""
        for record in records:
            self._agenda.add(record)
        now = self._clock.wall()
        for record in self._agenda.missed(now, grace_s):
            late_s = now - (record.due_at or now)
            self.close(record, f"missed: Turnout was down at its time, {late_s:.0f} s ago", "plan it again")

    def begin_due(self) -> None:
        """Begin what may begin."""
        if not len(self._agenda):
            return
        if not self._crew.workers():
            # At a start: the workers come in a moment.
            self.stop()
            self._alarm = asyncio.get_running_loop().call_later(ALARM_AGAIN_S, self.begin_due)
            return
        self._seen_to = self._clock.wall()
        # Whoever begins makes its service busy, which turns others away.
        while due := self._agenda.due(self._seen_to, self._running):
            for record in due:
                if record.service in self._running and not record.is_queued:
                    error = busy(self._running[record.service].record)
                    self.close(record, error.text, error.hint)
                else:
                    self._begin(record)
        self._set_alarm()

    def stop(self) -> None:
        """Nothing begins any more; what waits is in the journal."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _set_alarm(self) -> None:
        """Look again when something is due; not much later than that, should somebody set the clock."""
        self.stop()
        now = self._clock.wall()
        next_due = self._agenda.next_due(min(self._seen_to, now))
        if next_due is not None:
            in_s = min(max(0.0, next_due - now), ALARM_S_MAX)
            self._alarm = asyncio.get_running_loop().call_later(in_s + ALARM_LATE_S, self.begin_due)


def busy(running: SwitchRecord) -> Conflict:
    """Why another switch of the same service cannot begin."""
    return Conflict(
        f"switch {running.id} of service {running.service!r} is under way",
        hint="one at a time: wait for it, cancel it, or let this one queue (`when_busy`)",
    )
