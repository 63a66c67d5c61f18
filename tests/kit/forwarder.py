"""Another address of a server, and one that can be made slow: a TCP forwarder that keeps answers back for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.embedded import free_port


class Forwarder:
    """Passes bytes on as they are, those of the server `delay_s` later. `address` is where it listens while `listening`."""

    def __init__(self, server_port: int, delay_s: float = 0.0) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.delay_s = delay_s
        self._server_port = server_port
        self._open: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """Reset every connection there is."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._open |= {writer, behind}
        try:
            await asyncio.gather(
                self._pass(reader, behind, is_answer=False), self._pass(behind_reader, writer, is_answer=True)
            )
        finally:
            self._open -= {writer, behind}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        try:
            while data := await reader.read(65536):
                if is_answer and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            # Whoever left: so does the other.
            return
        finally:
            writer.close()
