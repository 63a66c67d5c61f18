"""A client of raw messages: holds a written conversation with a server, and keeps every message that came back.

What must differ between two connections is left out: process ids and keys, and the numbers of tables just made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from protocols.postgres import WIRE
from protocols.postgres.messages import build, build_query
from protocols.wire import BackendReady, BackendRefused, Startup
from tests.corpus.postgres import Await, Other, Send, Step
from tests.e2e.doors import HOST, Door

ANSWER_TIMEOUT_S: Final = 10.0
"""No answer of a conversation takes so long."""

END: Final = b"end of the conversation"
LAST: Final = build(b"f", b"\0") + build(b"S") + build_query(b"select '" + END + b"'")
"""Ends a COPY that is still open and skips no more, so that the query is answered whatever came before."""


class Talker:
    """One connection, logged in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, greeting: list[bytes]) -> None:
        self._reader = reader
        self._writer = writer
        self._unread = b""
        self.greeting = greeting
        """Messages of the login, from AuthenticationOk on; without the key."""
        self.has_ended = False
        """The server closed the connection."""
        self.messages: list[bytes] = []
        """What came since the login."""

    @classmethod
    async def connect(cls, door: Door) -> Talker:
        """Raises AssertionError if the login is refused."""
        reader, writer = await asyncio.open_connection(HOST, door.port)
        login = WIRE.server_login(Startup(door.user, door.database), door.password)
        said = bytearray()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while True:
                writer.write(login.take_output())
                data = await reader.read(65536)
                assert data, "the login was cut off"
                said += data
                facts = login.receive(data)
                assert not any(isinstance(fact, BackendRefused) for fact in facts), facts
                if any(isinstance(fact, BackendReady) for fact in facts):
                    break
        messages, rest = split(bytes(said))
        assert not rest
        return cls(reader, writer, [message for message in messages if message[:1] not in b"RK"])

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return

    async def talk(
        self, steps: Sequence[Step], cut: int, other: Callable[[str], Awaitable[None]]
    ) -> tuple[list[bytes], bool]:
        """Hold the conversation; `cut` is how many bytes are sent at a time (0: as many as there are).

        Returns the messages that came, and whether the server closed the connection."""
        seen: Counter[str] = Counter()
        unsent = bytearray()
        for step in steps:
            match step:
                case Send(message):
                    unsent += message
                case Await(tag, count):
                    await self._send(unsent, cut)
                    seen[tag] += count
                    await self._read_until(partial(self._has, tag, seen[tag]))
                case Other(sql):
                    await self._send(unsent, cut)
                    await other(sql)
        await self._send(unsent, cut)
        await self._send(bytearray(LAST), 0)
        await self._read_until(self._is_over)
        return self.messages, self.has_ended

    async def send(self, data: bytes) -> None:
        """Bytes as they are. Raises ConnectionError."""
        self._writer.write(data)
        await self._writer.drain()

    def send_later(self, data: bytes) -> None:
        """As the other side takes it."""
        self._writer.write(data)

    @property
    def unsent_bytes(self) -> int:
        """Of those in `send_later`."""
        return self._writer.transport.get_write_buffer_size()

    async def abort(self) -> None:
        """End the connection without a word, whatever is under way."""
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def read_until(self, tag: str) -> None:
        """Until one more message of this type has come."""
        await self._read_until(partial(self._has, tag, 1 + sum(message[0] == ord(tag) for message in self.messages)))

    async def read_to_end(self) -> list[bytes]:
        """Everything that comes until the server closes the connection."""
        self.messages.clear()
        await self._read_until(lambda: False)
        return self.messages

    def _has(self, tag: str, count: int) -> bool:
        return sum(message[0] == ord(tag) for message in self.messages) >= count

    def _is_over(self) -> bool:
        last = self.messages[-3:]
        return len(last) == 3 and last[2][:1] == b"Z" and last[0].endswith(END)

    async def _send(self, unsent: bytearray, cut: int) -> None:
        data = bytes(unsent)
        unsent.clear()
        for begin in range(0, len(data), cut or max(1, len(data))):
            if self.has_ended:
                return
            try:
                self._writer.write(data[begin : begin + cut] if cut else data)
                await self._writer.drain()
            except ConnectionError:
                return

    async def _read_until(self, is_enough: Callable[[], bool]) -> None:
        """Raises TimeoutError with what has come."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                while not is_enough() and not self.has_ended:
                    try:
                        data = await self._reader.read(65536)
                    except ConnectionError:
                        data = b""
                    self.has_ended = not data
                    messages, self._unread = split(self._unread + data)
                    self.messages += [made_equal(message) for message in messages]
        except TimeoutError as error:
            raise TimeoutError(f"no answer after {shown(self.messages)}") from error


def split(stream: bytes) -> tuple[list[bytes], bytes]:
    """Whole messages, and the beginning of the next."""
    messages = []
    begin = 0
    while len(stream) - begin >= 5:
        size = int.from_bytes(stream[begin + 1 : begin + 5], "big") + 1
        if len(stream) - begin < size:
            break
        messages.append(stream[begin : begin + size])
        begin += size
    return messages, stream[begin:]


def made_equal(message: bytes) -> bytes:
    """Without what is another on each connection."""
    if message[:1] == b"A":
        return message[:5] + b"\0\0\0\0" + message[9:]
    if message[:1] == b"T":
        return _without_new_tables(message)
    return message


FIRST_NORMAL_OID: Final = 16_384
"""PostgreSQL's FirstNormalObjectId: tables from here on were made by somebody."""


def _without_new_tables(message: bytes) -> bytes:
    """A RowDescription whose columns belong to no table that a conversation may have made."""
    body = bytearray(message)
    position = 7
    for _ in range(int.from_bytes(message[5:7], "big")):
        position = message.index(0, position) + 1
        if int.from_bytes(message[position : position + 4], "big") >= FIRST_NORMAL_OID:
            body[position : position + 4] = b"\0\0\0\0"
        position += 18
    return bytes(body)


def shown(messages: Sequence[bytes]) -> str:
    """For people, one message a line."""
    return "\n".join(f"  {chr(message[0])} {message[5:205]!r}" for message in messages) or "  nothing"
