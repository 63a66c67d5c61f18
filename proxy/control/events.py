"""What happens, for those who listen: the newest events in a bounded ring, and the stream of server-sent events over it.

Each event has an id, `START-NUMBER`. Who comes back with the last one it saw (`Last-Event-ID`) gets what came after it. What
the ring does not have any more, or what another supervisor told, cannot be given: then the stream begins with an event
`events.missed`, upon which a listener asks for the state anew. A slow listener does not hold anybody up; it misses some.

Who wants the status, too, gets the newest one in between, as often as one is shown (`proxy.control.statuses`). It has no id, and
is not kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from proxy.switch.views import Event

RING_EVENTS: Final = 2_000
"""A switch makes some 15 to 40."""

HEARTBEAT_S: Final = 15.0
"""A comment is sent that often when nothing happens, so that whoever is in between keeps the connection."""

STREAM_S: Final = 300.0
"""A stream ends after that time: who comes back shows again who it is, and has missed nothing."""

RETRY_MS: Final = 1_000
"""How soon a listener may come back, as it is told."""

MISSED: Final = "events.missed"


class EventLog:
    """One for the life of a supervisor. Not for threads."""

    def __init__(self, start: str, *, ring: int = RING_EVENTS) -> None:
        """`start` names this supervisor's life, so that ids of an earlier one are not taken for ours."""
        self._start = start
        self._ring: deque[tuple[int, str, bytes]] = deque(maxlen=ring)
        """Number, service, and what every listener is sent."""
        self._next = 1
        self._status = (0, b"")
        """How many were shown, and what a listener is sent of the newest."""
        self._changed = asyncio.Event()
        self._is_closed = False

    def add(self, event: Event) -> None:
        """One more; the oldest may go."""
        self._ring.append((self._next, event.service, self._frame(self._next, event)))
        self._next += 1
        self._wake()

    def show(self, status: bytes) -> None:
        """To those who want it: the status, as JSON."""
        self._status = (self._status[0] + 1, b"event: status\ndata: %s\n\n" % status)
        self._wake()

    def close(self) -> None:
        """Every stream ends."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(
        self, last_id: str | None, service: str | None = None, *, with_status: bool = False
    ) -> AsyncIterator[bytes]:
        """Server-sent events, from the one after `last_id` on, or from now on; of one service those that are about no
        other. Ends with `close`, and after `STREAM_S`."""
        ends_at = time.monotonic() + STREAM_S
        statuses = self._status[0]
        following = self._after(last_id) if last_id is not None else self._next
        number = self._next if following is None else following
        # Whoever saw no event can come back, too.
        yield f"retry: {RETRY_MS}\nid: {self._start}-{number - 1}\n\n".encode()
        if following is None:
            yield self._missed("what came after the last event you saw is not known any more")
        while not self._is_closed and (left_s := ends_at - time.monotonic()) > 0:
            changed = self._changed
            if self._ring and self._ring[0][0] > number:
                yield self._missed("you read too slowly")
                number = self._ring[0][0]
            newest = self._next
            # Numbers have no gaps: what is new stands at the end.
            for _, about, frame in [self._ring[place] for place in range(number - newest, 0)]:
                if service is None or about in ("", service):
                    yield frame
            number = newest
            if with_status and self._status[0] > statuses:
                statuses, frame = self._status
                yield frame
            if self._next > newest or (
                with_status and self._status[0] > statuses
            ):  # some came while these were written
                continue
            try:
                await asyncio.wait_for(changed.wait(), min(HEARTBEAT_S, left_s))
            except TimeoutError:
                yield b": nothing happened\n\n"

    def _after(self, last_id: str) -> int | None:
        """Number of the event behind that one; None: it is not known any more."""
        start, _dash, seen = last_id.rpartition("-")
        oldest = self._ring[0][0] if self._ring else self._next
        is_ours = start == self._start and seen.isascii() and seen.isdigit() and len(seen) < 19
        return int(seen) + 1 if is_ours and oldest - 1 <= int(seen) < self._next else None

    def _frame(self, number: int, event: Event) -> bytes:
        data = msgspec.json.encode(event)
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (self._start.encode(), number, event.kind.encode(), data)

    def _missed(self, why: str) -> bytes:
        """Its id is that of the newest one: whoever comes back with it has missed no more."""
        data = msgspec.json.encode({"kind": MISSED, "why": why})
        newest = self._next - 1
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (self._start.encode(), newest, MISSED.encode(), data)
