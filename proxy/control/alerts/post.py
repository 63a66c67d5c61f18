"""Messages on their way: a queue and a task for each receiver, tries, and what became of each.

One receiver that does not answer holds up its own messages only. They go out in the order in which they were posted, so
that an end is not told before its beginning. What waits is in the state file, and is posted again by the next supervisor: a
message may come twice, but is not lost with a process.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec
import structlog

from proxy.clock import Clock
from proxy.config import ReceiverConfig
from proxy.control.alerts.deliver import deliver, where
from proxy.control.alerts.model import Alert, Delivery, ReceiverView
from proxy.control.alerts.store import AlertStore
from proxy.outside import Outcome
from proxy.switch.views import Event
from proxy.tasks import cancel_and_wait, spawn

_log = structlog.get_logger("turnout.alerts")

QUEUE_MAX: Final = 100
"""Messages that wait for one receiver; of more the oldest is dropped."""

PAUSE_S_FIRST: Final = 1.0
PAUSE_S_MAX: Final = 60.0
"""Between two tries: doubled each time."""


def pause_s(tries: int) -> float:
    """After so many tries that failed."""
    return float(min(PAUSE_S_FIRST * 2 ** (min(tries, 16) - 1), PAUSE_S_MAX))


class _Line:
    """What waits for one receiver, and what was delivered to it."""

    def __init__(self, config: ReceiverConfig) -> None:
        self.config = config
        self.waiting: deque[Delivery] = deque()
        self.is_due = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.counts = {"delivered": 0, "failed": 0, "dropped": 0}
        self.last: Delivery | None = None


class Post:
    """See the module. Lives in the supervisor's loop."""

    def __init__(
        self, store: AlertStore, clock: Clock, publish: Callable[[Event], None], pause: Callable[[int], float] = pause_s
    ) -> None:
        self._store = store
        self._clock = clock
        self._publish = publish
        self._pause = pause
        self._lines: dict[str, _Line] = {}

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self, receivers: Mapping[str, ReceiverConfig]) -> None:
        """Begin, with what an earlier supervisor left."""
        self.reconfigure(receivers)
        for delivery in self._store.waiting():
            line = self._lines.get(delivery.receiver)
            if line is None:
                self._end(None, delivery, "dropped", "there is no such receiver any more")
            else:
                self._queue(line, delivery)

    def reconfigure(self, receivers: Mapping[str, ReceiverConfig]) -> None:
        """The config was read again. What waits for a receiver that is gone is dropped."""
        for name in [name for name in self._lines if name not in receivers]:
            line = self._lines.pop(name)
            if line.task is not None:
                line.task.cancel()
            for delivery in line.waiting:
                self._end(line, delivery, "dropped", "there is no such receiver any more")
        for name, config in receivers.items():
            line = self._lines.setdefault(name, _Line(config))
            line.config = config
            if line.task is None:
                line.task = spawn(self._serve(line), name=f"receiver {name}", stays=True)

    async def stop(self) -> None:
        """End; what waits is left to the next supervisor."""
        await cancel_and_wait(*(line.task for line in self._lines.values()))

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, receiver: str, what: Literal["firing", "resolved"], alert: Alert) -> None:
        """Post a message."""
        delivery = Delivery(number=0, at=self._clock.wall(), receiver=receiver, what=what, alert=alert)
        self._queue(self._lines[receiver], self._add(delivery))

    async def test(self, receiver: str, alert: Alert) -> Delivery:
        """Send a message at once, in one try, past what waits; returns what became of it. Raises KeyError."""
        line = self._lines[receiver]
        delivery = self._add(
            Delivery(number=0, at=self._clock.wall(), receiver=receiver, what="test", alert=alert, state="failed")
        )
        outcome = await deliver(line.config, delivery)
        delivery = msgspec.structs.replace(delivery, tries=1)
        return self._end(line, delivery, "delivered" if outcome.is_good else "failed", _said(outcome))

    def _queue(self, line: _Line, delivery: Delivery) -> None:
        if len(line.waiting) >= QUEUE_MAX:
            # The first one may be on its way just now.
            oldest = line.waiting[1]
            del line.waiting[1]
            self._end(line, oldest, "dropped", f"{QUEUE_MAX} messages waited")
        line.waiting.append(delivery)
        line.is_due.set()

    async def _serve(self, line: _Line) -> None:
        while True:
            while not line.waiting:
                line.is_due.clear()
                await line.is_due.wait()
            delivery = line.waiting[0]
            outcome = await deliver(line.config, delivery)
            delivery = msgspec.structs.replace(delivery, tries=delivery.tries + 1, outcome=_said(outcome))
            wait_s = self._pause(delivery.tries)
            is_late = self._clock.wall() + wait_s - delivery.at > line.config.retry_for_s
            if outcome.is_good or outcome.is_final or is_late:
                line.waiting.popleft()
                self._end(line, delivery, "delivered" if outcome.is_good else "failed", delivery.outcome)
                continue
            line.waiting[0] = delivery
            self._keep(delivery)
            if delivery.tries == 1:
                _log.warning(
                    "a message is not delivered yet",
                    receiver=delivery.receiver,
                    alert=delivery.alert.name,
                    why=delivery.outcome,
                )
            await asyncio.sleep(wait_s)

    def _end(
        self, line: _Line | None, delivery: Delivery, state: Literal["delivered", "failed", "dropped"], outcome: str
    ) -> Delivery:
        delivery = msgspec.structs.replace(delivery, state=state, outcome=outcome, ended_at=self._clock.wall())
        self._keep(delivery)
        if line is not None:
            line.counts[state] += 1
            line.last = delivery
        about = {"receiver": delivery.receiver, "alert": delivery.alert.name, "what": delivery.what}
        if state == "delivered":
            _log.info("message delivered", **about, outcome=outcome, tries=delivery.tries)
            return delivery
        _log.error("message not delivered", **about, state=state, why=outcome, tries=delivery.tries)
        self._publish(
            Event(
                kind="alert.delivery_failed",
                at=delivery.ended_at,
                service=delivery.alert.subject.service,
                data={**about, "state": state, "why": outcome, "tries": delivery.tries, "number": delivery.number},
            )
        )
        return delivery

    def _add(self, delivery: Delivery) -> Delivery:
        """That it cannot be written down must not keep it from being sent: a full disk is worth an alert. It then has the
        number 0, and does not outlive this process."""
        try:
            return self._store.add(delivery)
        except sqlite3.Error as error:
            _log.error("the state file cannot be written", what="a delivery", error=str(error))
            return delivery

    def _keep(self, delivery: Delivery) -> None:
        try:
            self._store.update(delivery)
        except sqlite3.Error as error:
            _log.error("the state file cannot be written", what="a delivery", error=str(error))

    # --- looking ------------------------------------------------------------------------------------------------------

    def views(self) -> list[ReceiverView]:
        """Every receiver, by name."""
        return [
            ReceiverView(
                name=name,
                kind=line.config.kind,
                where=where(line.config),
                waiting=len(line.waiting),
                last=line.last,
                **line.counts,
            )
            for name, line in sorted(self._lines.items())
        ]


def _said(outcome: Outcome) -> str:
    first = outcome.output.partition("\n")[0][:200]
    return f"{outcome.text}: {first}" if first and not outcome.is_good else outcome.text
