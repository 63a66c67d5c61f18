"""What happens, for those who listen: the newest events in a bounded ring, and the stream of server-sent events over it.

Each event has an id, `START-NUMBER`. Who comes back with the last one it saw (`Last-Event-ID`) gets what came after it. What
the ring does not have any more, or what another supervisor told, cannot be given: then the stream begins with an event
`events.missed`, upon which a listener asks for the state anew. A slow listener does not hold anybody up; it misses some.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from proxy.switch.views import Event

RING_EVENTS: Final = 2_000
"""A switch makes some 15 to 40."""

HEARTBEAT_S: Final = 15.0
"""A comment is sent that often when nothing happens, so that whoever is in between keeps the connection."""

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
        self._changed = asyncio.Event()
        self._is_closed = False

    def add(self, event: Event) -> None:
        """One more; the oldest may go."""
        self._ring.append((self._next, event.service, self._frame(self._next, event)))
        self._next += 1
        self._wake()

    def close(self) -> None:
        """Every stream ends."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, last_id: str | None, service: str | None = None) -> AsyncIterator[bytes]:
        """Server-sent events, from the one after `last_id` on, or from now on; of one service those that are about no
        other. Ends with `close`."""
        number = self._next
        yield f"retry: {RETRY_MS}\n\n".encode()
        if last_id is not None:
            start, _dash, seen = last_id.rpartition("-")
            oldest = self._ring[0][0] if self._ring else self._next
            is_ours = start == self._start and seen.isascii() and seen.isdigit() and len(seen) < 19
            if is_ours and oldest - 1 <= int(seen) < self._next:
                number = int(seen) + 1
            else:
                yield self._missed("what came after the last event you saw is not known any more")
        while not self._is_closed:
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
            if self._next > newest:  # some came while these were written
                continue
            try:
                await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
            except TimeoutError:
                yield b": nothing happened\n\n"

    def _frame(self, number: int, event: Event) -> bytes:
        data = msgspec.json.encode(event)
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (self._start.encode(), number, event.kind.encode(), data)

    def _missed(self, why: str) -> bytes:
        """Its id is that of the newest one: whoever comes back with it has missed no more."""
        data = msgspec.json.encode({"kind": MISSED, "why": why})
        newest = self._next - 1
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (self._start.encode(), newest, MISSED.encode(), data)
