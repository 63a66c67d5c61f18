"""A link that speaks TLS: OpenSSL at the other end, real sockets between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.dataplane.relay import Link
from proxy.embedded.certificate import write_certificate
from tests.kit.waiting import until


class Pair:
    """Our link is the server; the peer is asyncio's own TLS client."""

    def __init__(self, folder: Path) -> None:
        key, certificate = write_certificate(folder)
        self.server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server_context.load_cert_chain(certificate, key)
        self.server_context.num_tickets = 0
        self.client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.client_context.load_verify_locations(certificate)
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.link = Link(asyncio.get_running_loop(), self.near.detach())
        self.heard: list[bytes] = []
        self.told: list[str] = []
        self.link.sink = self.heard.append

    def start(self, received: bytes = b"") -> None:
        self.link.start_tls(
            self.server_context, is_server=True, hostname=None, received=received, done=self.told.append
        )

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(sock=self.far, ssl=self.client_context, server_hostname="localhost")

    async def hear(self, size: int) -> bytes:
        await until(lambda: sum(map(len, self.heard)) >= size, f"{size} bytes")
        return b"".join(self.heard)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.link.close()
    with contextlib.suppress(OSError):
        pair.far.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_what_is_said_within_tls_arrives_whole_in_both_directions(pair: Pair, version: ssl.TLSVersion) -> None:
    pair.client_context.maximum_version = version
    pair.start()
    reader, writer = await pair.connect()
    await until(lambda: pair.told == [""], "the handshake")
    assert pair.link.is_encrypted
    for size in (1, 16_384, 16_385, 1_000_000):
        pair.heard.clear()
        data = os.urandom(size)
        writer.write(data)
        assert await pair.hear(size) == data
        pair.link.send(data)
        assert await reader.readexactly(size) == data
    writer.close()
    await until(lambda: pair.heard[-1] == b"", "the end")
    assert pair.link.lost == ""


async def test_the_other_end_of_tls_is_ours_too(pair: Pair) -> None:
    """A link as the client of another link: what an engine's leg does."""
    pair.start()
    told: list[str] = []
    heard: list[bytes] = []
    far = Link(asyncio.get_running_loop(), pair.far.detach())
    far.sink = heard.append
    far.start_tls(pair.client_context, is_server=False, hostname="localhost", received=b"", done=told.append)
    await until(lambda: told == [""] and pair.told == [""], "both handshakes")
    far.send(b"question")
    assert await pair.hear(8) == b"question"
    pair.link.send(b"answer")
    await until(lambda: heard == [b"answer"], "the answer")
    pair.link.finish()
    await until(lambda: heard[-1] == b"", "the end")
    assert far.lost == ""
    far.close()


async def test_a_certificate_that_does_not_fit_the_name_is_refused(pair: Pair) -> None:
    pair.start()
    told: list[str] = []
    far = Link(asyncio.get_running_loop(), pair.far.detach())
    far.start_tls(pair.client_context, is_server=False, hostname="elsewhere", received=b"", done=told.append)
    await until(lambda: bool(told), "the refusal")
    assert "elsewhere" in told[0]
    far.close()


async def test_bytes_that_are_no_tls_end_the_handshake_with_a_reason(pair: Pair) -> None:
    pair.start()
    pair.far.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f" * 10)
    await until(lambda: bool(pair.told), "the refusal")
    assert pair.told[0]
    assert not pair.heard


async def test_an_endless_handshake_is_cut_off(pair: Pair) -> None:
    """A record that says it is a handshake message, again and again, never complete: bounded memory."""
    pair.start()
    pair.far.setblocking(True)

    def flood() -> None:
        with contextlib.suppress(OSError):
            # ClientHello of the greatest length there is, in many records.
            pair.far.sendall(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff")
            for _ in range(200):
                pair.far.sendall(b"\x16\x03\x01\x40\x00" + bytes(16_384))

    flooding = asyncio.create_task(asyncio.to_thread(flood))
    await until(lambda: bool(pair.told), "the refusal")
    assert pair.told[0]
    pair.link.close()
    await flooding


async def test_bytes_that_came_before_belong_to_the_handshake(pair: Pair) -> None:
    """Direct TLS: the first bytes of a connection are a ClientHello, and have been read by then."""
    connecting = asyncio.create_task(pair.connect())
    await until(lambda: bool(pair.heard), "the hello")
    hello = b"".join(pair.heard)
    pair.heard.clear()
    pair.start(hello)
    _reader, writer = await connecting
    writer.write(b"hello")
    assert await pair.hear(5) == b"hello"
    writer.close()


async def test_a_peer_that_leaves_in_the_handshake_is_told_of(pair: Pair) -> None:
    pair.start()
    pair.far.sendall(b"\x16\x03\x01")
    pair.far.close()
    await until(lambda: bool(pair.told), "the end")
    assert pair.told[0]
