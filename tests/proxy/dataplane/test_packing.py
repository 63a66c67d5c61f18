"""Compressed links: what is sent is what comes, whatever the sizes; what a peer makes up is refused or waits."""

from __future__ import annotations

import asyncio
import os
import socket
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from proxy.dataplane.relay import Link
from proxy.packing import Packing
from tests.kit.waiting import until

PIECE = 65_536


def packet(body: bytes, sequence: int, *, plain: int | None = None) -> bytes:
    """A compressed packet by zlib; `plain` says another size than is right, or 0 that it is not compressed."""
    if plain is None:
        body, plain = zlib.compress(body), len(body)
    return len(body).to_bytes(3, "little") + bytes([sequence]) + plain.to_bytes(3, "little") + body


def query(text: bytes, sequence: int = 0) -> bytes:
    """One packet within."""
    return (len(text) + 1).to_bytes(3, "little") + bytes([sequence]) + b"\x03" + text


class End:
    """One end of a connection: a link and what it has received."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.link = Link(asyncio.get_running_loop(), sock.detach())
        self.received = bytearray()
        self.has_ended = False
        self.link.sink = self._take

    def _take(self, data: bytes) -> None:
        self.received += data
        self.has_ended = self.has_ended or not data


Pair = Callable[[], tuple[End, End]]


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    ends: list[End] = []

    def make() -> tuple[End, End]:
        one, other = (End(sock) for sock in socket.socketpair())
        ends.extend((one, other))
        return one, other

    yield make
    for end in ends:
        end.link.close()


@pytest.mark.parametrize("algorithm", ["zlib", "zstd"])
async def test_what_is_sent_is_what_comes(pair: Pair, algorithm: str) -> None:
    """field-notes: Compression zlib/zstd"""
    client, server = pair()
    client.link.start_packing(Packing(algorithm, 3, is_to_server=True), b"")
    server.link.start_packing(Packing(algorithm, 3, is_to_server=False), b"")
    for size in (1, 48, 49, 50, 51, PIECE - 5, PIECE - 4, PIECE, 3_000_000):
        for text in (bytes(size), os.urandom(size)):
            client.received.clear()
            server.received.clear()
            client.link.send(query(text) + query(text[:20]))
            server.link.send(text)
            sent = query(text) + query(text[:20])
            await until(lambda sent=sent: len(server.received) >= len(sent), "the question")  # type: ignore[misc]
            await until(lambda text=text: len(client.received) >= len(text), "the answer")  # type: ignore[misc]
            assert bytes(server.received) == sent
            assert bytes(client.received) == text
    assert not client.has_ended
    assert not server.has_ended


async def test_each_command_towards_a_server_begins_a_packet_numbered_0(pair: Pair) -> None:
    link, peer = pair()
    link.link.start_packing(Packing("zlib", 0, is_to_server=True), b"")
    link.link.send(query(b"a") + query(b"b" * 200) + query(os.urandom(100_000)))
    await until(lambda: len(peer.received) > 100_000, "all of it")
    sizes, numbers, rest = [], [], bytes(peer.received)
    while len(rest) >= 7:
        packed, plain = int.from_bytes(rest[:3], "little"), int.from_bytes(rest[4:7], "little")
        numbers.append(rest[3])
        sizes.append(plain or packed)
        rest = rest[7 + packed :]
    assert numbers == [0, 0, 0, 1]
    assert sizes == [6, 205, PIECE, 100_005 - PIECE]


async def test_a_small_packet_that_becomes_a_large_one_waits_until_somebody_takes_it(pair: Pair) -> None:
    """16 MB out of 16 KB: a paused link unpacks nothing, and a running one a chunk at a time."""
    link, peer = pair()
    bomb = packet(bytes(0xFF_FFFF), 0)
    assert len(bomb) < 17_000
    chunks: list[int] = []

    def take(data: bytes) -> None:
        chunks.append(len(data))
        link.link.pause()

    link.link.sink = take
    link.link.start_packing(Packing("zlib", 0, is_to_server=False), b"")
    peer.link.send(bomb * 2)
    for count in range(1, 10):
        await until(lambda count=count: len(chunks) >= count, "a chunk")  # type: ignore[misc]
        assert len(chunks) == count, "nothing comes while it is paused"
        link.link.resume()
    link.link.sink = lambda data: chunks.append(len(data))
    await until(lambda: sum(chunks) == 2 * 0xFF_FFFF, "all of it")
    assert max(chunks) <= PIECE


async def test_what_came_behind_a_login_is_unpacked(pair: Pair) -> None:
    link, _ = pair()
    link.link.start_packing(
        Packing("zlib", 0, is_to_server=False), packet(b"x" * 100, 0) + packet(b"y" * 9, 1, plain=0)
    )
    await until(lambda: len(link.received) == 109, "both")
    assert bytes(link.received) == b"x" * 100 + b"y" * 9


LARGE = zlib.compress(bytes(1_000))


@pytest.mark.parametrize(
    "stream",
    [
        packet(b"", 0, plain=0),
        packet(b"not by zlib" * 10, 0, plain=100),
        packet(LARGE, 0, plain=999),
        packet(LARGE, 0, plain=1_001),
        packet(LARGE[:-3], 0, plain=1_000) + packet(b"x", 1, plain=0),
        packet(LARGE + b"more", 0, plain=1_000),
        packet(b"x", 7, plain=0),
        packet(b"x", 0, plain=0) + packet(b"x", 2, plain=0),
    ],
    ids=["empty", "nonsense", "too small", "too large", "cut", "more behind", "first number", "next number"],
)
async def test_what_cannot_be_unpacked_ends_the_connection(pair: Pair, stream: bytes) -> None:
    for algorithm in ("zlib", "zstd"):
        link, peer = pair()
        link.link.start_packing(Packing(algorithm, 0, is_to_server=False), b"")
        peer.link.send(stream)
        await until(lambda link=link: link.has_ended, "the end")  # type: ignore[misc]
        assert link.link.lost.startswith("compression: ")


async def test_a_stream_comes_in_any_cut(pair: Pair) -> None:
    link, peer = pair()
    link.link.start_packing(Packing("zlib", 0, is_to_server=False), b"")
    text = os.urandom(3_000) + bytes(3_000)
    stream = packet(text, 0) + packet(b"tiny", 1, plain=0) + packet(text, 0)
    for at in range(0, len(stream), 97):
        peer.link.send(stream[at : at + 97])
        link.link.serve()
    await until(lambda: len(link.received) == 2 * len(text) + 4, "all of it")
    assert bytes(link.received) == text + b"tiny" + text
