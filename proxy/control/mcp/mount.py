"""`/mcp`: lets the MCP SDK answer, and loads it when somebody comes for the first time.

The SDK is slow to import and most Turnouts are never asked by an agent; so neither is paid for by those. It is imported in
a thread: a switch may be under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from proxy.control.service import ControlService
from proxy.errors import ControlError
from proxy.tasks import cancel_and_wait, spawn

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager


class NotStarted(ControlError):
    """The SDK could not be loaded, or did not start."""

    status = 503


class McpMount:
    """An ASGI application. One for the life of the control port; `close` ends it."""

    def __init__(self, door: ControlService, body_bytes_max: int) -> None:
        self._door = door
        self._body_bytes_max = body_bytes_max
        # The SDK's tasks live in this one; it ends by `close`, or by a failure that is logged.
        self._task: asyncio.Task[None] | None = None
        # Belongs to the task: what answers, as soon as it does; None: it never will.
        self._started: asyncio.Future[StreamableHTTPSessionManager | None] | None = None

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if self._task is None or self._task.done() or self._started is None:
            self._started = asyncio.get_running_loop().create_future()
            self._task = spawn(self._run(self._started), name="mcp", stays=True)
        # Others wait for the same: the one who came first may leave.
        manager = await asyncio.shield(self._started)
        if manager is None:
            raise NotStarted("MCP could not be started; the log has the details", hint="ask again: it is tried again")
        await manager.asgi_app(scope, receive, send)

    async def _run(self, started: asyncio.Future[StreamableHTTPSessionManager | None]) -> None:
        try:
            manager = await asyncio.to_thread(self._build)
            async with manager.run():
                started.set_result(manager)
                await asyncio.Event().wait()
        finally:
            if not started.done():
                started.set_result(None)

    def _build(self) -> StreamableHTTPSessionManager:
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        from proxy.control.mcp.server import build_server

        # Host, Origin, tokens and rates are the gate's; no session is kept, so none can be taken over.
        return StreamableHTTPSessionManager(
            build_server(self._door),
            json_response=True,
            stateless=True,
            max_request_body_size=self._body_bytes_max,
        )

    async def close(self) -> None:
        """End what is under way."""
        await cancel_and_wait(self._task)
