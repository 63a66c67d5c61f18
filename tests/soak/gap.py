"""A TCP fault injector: what stands between Turnout and an engine, and passes bytes until it is told not to.

Its faults hit whatever the protocol is doing: a connection that is cut after the next so many bytes is cut in the middle
of a login, a row, an acknowledgement.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

from proxy.embedded import free_port
from proxy.tasks import cancel_and_wait, spawn

CHUNK_BYTES: Final = 65_536
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST (socket(7))."""


class Gap:
    """See the module. Connections to `address` come out at the engine."""

    def __init__(self, host: str, port: int) -> None:
        self._engine = (host, port)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self._hangs_up = False
        self._left: int | None = None
        """Bytes until one connection is cut; None: none is."""

    async def open(self) -> None:
        """Pass. Idempotent."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)

    async def close(self) -> None:
        self.refuse()
        self.heal()

    def refuse(self) -> None:
        """As if the engine's process were gone: nobody listens here."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def hang_up(self) -> None:
        """As a go-between does whose server is gone: it takes connections, and ends them at once."""
        self._hangs_up = True
        self.reset()

    def reset(self) -> None:
        """Every connection there is ends by RST, on both sides."""
        for writer in list(self._open):
            _reset(writer)

    def swallow(self) -> None:
        """A black hole: connections stay, new ones are accepted, and nothing passes."""
        self._passes.clear()

    def heal(self) -> None:
        self._passes.set()
        self._hangs_up = False
        self._left = None

    def cut_after(self, count: int) -> None:
        """The connection that carries the byte after the next `count` of all ends there."""
        self._left = count

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._hangs_up:
            writer.close()
            return
        self._open.add(writer)
        behind: asyncio.StreamWriter | None = None
        try:
            await self._passes.wait()
            behind_reader, behind = await asyncio.open_connection(*self._engine)
            self._open.add(behind)
            ways = [
                spawn(self._pass(reader, behind), name="gap to engine"),
                spawn(self._pass(behind_reader, writer), name="gap from engine"),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            await cancel_and_wait(*ways)
        except OSError:
            # The engine is not there, or whoever came has left.
            return
        finally:
            for one in (writer, behind):
                if one is not None:
                    self._open.discard(one)
                    one.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                await self._passes.wait()
                if self._left is not None and self._left < len(data):
                    writer.write(data[: self._left])
                    self._left = None
                    _reset(writer)
                    return
                if self._left is not None:
                    self._left -= len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            # One of both has left; so does the other.
            return


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
