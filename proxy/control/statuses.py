"""The status for those who listen: one look for all of them, as long as there are any.

A dashboard that asks for the status by itself costs a request each time, and each of them a look at the workers, which serve
nobody meanwhile. Those who listen to events get it there, made and written as JSON once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec
import structlog

from proxy.control.events import EventLog
from proxy.control.views import Status
from proxy.errors import ProxyError
from proxy.tasks import spawn

_log = structlog.get_logger("turnout.control")

EVERY_S: Final = 2.0
"""Between two of them, in seconds."""


class Statuses:
    """One for the life of a supervisor. Not for threads."""

    def __init__(self, look: Callable[[], Awaitable[Status]], events: EventLog) -> None:
        self._look = look
        self._events = events
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None

    async def follow(self, last_id: str | None, service: str | None) -> AsyncIterator[bytes]:
        """Events as of `EventLog.follow`, and the status."""
        self._listeners += 1
        if self._task is None:
            self._task = spawn(self._show(), name="status for those who listen")
        try:
            async for frame in self._events.follow(last_id, service, with_status=True):
                yield frame
        finally:
            self._listeners -= 1

    async def _show(self) -> None:
        try:
            while True:
                await asyncio.sleep(EVERY_S)
                if not self._listeners:
                    return
                try:
                    self._events.show(msgspec.json.encode(await self._look()))
                except ProxyError as error:
                    _log.info("there is no status to show", error=error.text)
        finally:
            self._task = None
