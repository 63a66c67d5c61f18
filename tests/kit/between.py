"""A go-between before a real PostgreSQL server, for what no real server does: nonsense, silence, an end at any moment.

It passes everybody's bytes on as they are. A client of it chooses what it gets instead: a query that has `said(…)` in
its text never reaches the server, and is answered by the bytes written there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from protocols.postgres.messages import build_ssl_request
from proxy.embedded import free_port

_SAID: Final = re.compile(rb"said\(([0-9a-f]*)(, end)?\)")
_READY: Final = b"Z\0\0\0\x05I"


def said(answer: bytes, *, then_end: bool = False) -> str:
    """Text of a query that is answered by these bytes, and by the end of the connection if asked for."""
    return f"select said({answer.hex()}{', end' if then_end else ''})"


class Between:
    """See the module. `address` is where it listens while `listening`."""

    def __init__(self, server_port: int, user: bytes = b"app") -> None:
        """It meddles with connections of `user` only: the proxy's own account sees the server as it is."""
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.login_answer: bytes | None = None
        """What a StartupMessage is answered by; None: what the server says."""
        self.behind_login = b""
        """Follows the first ReadyForQuery of a connection at once."""
        self.delay_s = 0.0
        """How late the server's answers come, piece by piece."""
        self._server_port = server_port
        self._name = b"user\0" + user + b"\0"
        self._open: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()
            for writer in list(self._open):
                writer.transport.abort()

    def say(self, unasked: bytes) -> None:
        """To every connection of the user that is open now."""
        for writer in self._open:
            writer.write(unasked)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(65536)
        if first == build_ssl_request():
            writer.write(b"N")
            first = await reader.read(65536)
        is_meddled_with = self._name in first
        if is_meddled_with and self.login_answer is not None:
            writer.write(self.login_answer)
            await reader.read()
            writer.close()
            return
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self._server_port)
        behind.write(first)
        if is_meddled_with:
            self._open.add(writer)
        try:
            await asyncio.gather(
                self._ask(reader, behind, writer, is_meddled_with),
                self._answer(behind_reader, writer, self.behind_login if is_meddled_with else b"", is_meddled_with),
            )
        finally:
            self._open.discard(writer)

    @staticmethod
    async def _ask(
        reader: asyncio.StreamReader, behind: asyncio.StreamWriter, writer: asyncio.StreamWriter, is_meddled_with: bool
    ) -> None:
        try:
            while data := await reader.read(65536):
                wanted = _SAID.search(data) if is_meddled_with else None
                if wanted is None:
                    behind.write(data)
                    await behind.drain()
                    continue
                writer.write(bytes.fromhex(wanted[1].decode()))
                if wanted[2]:
                    writer.close()
        except ConnectionError:
            # Whoever left: so does the other.
            return
        finally:
            behind.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, behind_login: bytes, is_meddled_with: bool
    ) -> None:
        try:
            while data := await reader.read(65536):
                if is_meddled_with and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if behind_login and data.endswith(_READY):
                    data += behind_login
                    behind_login = b""
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()
