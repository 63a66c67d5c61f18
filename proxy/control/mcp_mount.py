"""`/mcp`: lets the MCP SDK answer, and loads it when somebody comes for the first time.

The SDK is slow to import and most Turnouts are never asked by an agent; so neither is paid for by those. It is imported in
a thread: a switch may be under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

import structlog

from proxy.control.service import ControlService
from proxy.tasks import cancel_and_wait, spawn

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

_log = structlog.get_logger("turnout.control")


class McpMount:
    """An ASGI application. One for the life of the control port; `close` ends it."""

    def __init__(self, door: ControlService, body_bytes_max: int) -> None:
        self._door = door
        self._body_bytes_max = body_bytes_max
        self._loading = asyncio.Lock()
        self._manager: StreamableHTTPSessionManager | None = None
        self._task: asyncio.Task[None] | None = None

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        async with self._loading:
            if self._manager is None:
                self._manager = await self._load()
        await self._manager.asgi_app(scope, receive, send)

    async def _load(self) -> StreamableHTTPSessionManager:
        manager = await asyncio.to_thread(self._build)
        ready = asyncio.Event()
        # Its tasks live in the one that entered it.
        self._task = spawn(_run(manager, ready), name="mcp", stays=True)
        await ready.wait()
        return manager

    def _build(self) -> StreamableHTTPSessionManager:
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        from proxy.control.mcp import build_server

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


async def _run(manager: StreamableHTTPSessionManager, ready: asyncio.Event) -> None:
    async with manager.run():
        ready.set()
        await asyncio.Event().wait()
