"""A link that speaks TLS: OpenSSL at the other end, real sockets between."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import ssl
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import pytest
from cryptography.hazmat.primitives import serialization

from proxy.dataplane.relay import Link
from proxy.embedded.certificate import write_certificate
from proxy.openssl import Connection, Context, KeyEncrypted, OpenSSLError
from tests.kit.waiting import until

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


class Pair:
    """Our link is the server; the peer is asyncio's own TLS client."""

    def __init__(self, folder: Path) -> None:
        key, certificate = write_certificate(folder)
        self.server_context = Context(is_server=True)
        self.server_context.load_certificate(str(certificate), str(key))
        self.client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.client_context.load_verify_locations(certificate)
        self.our_client_context = Context(is_server=False)
        self.our_client_context.load_ca(str(certificate))
        self.our_client_context.verify_peer(is_required=True, checks_name=True)
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.link = Link(asyncio.get_running_loop(), self.near.detach())
        self.heard: list[bytes] = []
        self.told: list[str] = []
        self.link.sink = self.heard.append

    def start(self, received: bytes = b"") -> None:
        self.link.start_tls(self.server_context, hostname=None, received=received, done=self.told.append)

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


@VERSIONS
async def test_what_is_said_within_tls_arrives_whole_in_both_directions(pair: Pair, version: ssl.TLSVersion) -> None:
    pair.client_context.maximum_version = version
    pair.start()
    reader, writer = await pair.connect()
    await until(lambda: pair.told == [""], "the handshake")
    assert pair.link.is_encrypted
    assert pair.link.ssl is not None
    assert pair.link.ssl.version == version.name.replace("_", ".")
    assert pair.link.ssl.cipher == writer.get_extra_info("cipher")[0]
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
    far.start_tls(pair.our_client_context, hostname="localhost", received=b"", done=told.append)
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
    far.start_tls(pair.our_client_context, hostname="elsewhere", received=b"", done=told.append)
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


# --- what a peer may do -------------------------------------------------------------------------------------------


class Client:
    """The peer as we want it, byte by byte: Python's OpenSSL, and a blocking socket driven from the test."""

    def __init__(self, pair: Pair) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = pair.client_context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.sock = pair.far
        self.loop = asyncio.get_running_loop()

    async def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                self.incoming.write(await self.loop.sock_recv(self.sock, 65_536))
            else:
                await self.flush()
                return

    async def flush(self) -> None:
        await self.loop.sock_sendall(self.sock, self.outgoing.read())

    def sealed(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    async def read(self) -> bytes:
        """Content; b"" after a close_notify. Raises ssl.SSLError, and EOFError where there was none."""
        while True:
            try:
                return self.tls.read(65_536)
            except ssl.SSLWantReadError:
                data = await self.loop.sock_recv(self.sock, 65_536)
                if not data:
                    raise EOFError from None
                self.incoming.write(data)
            except ssl.SSLZeroReturnError:
                return b""


@pytest.fixture
async def client(pair: Pair, request: pytest.FixtureRequest) -> Client:
    """Of the TLS version in the test's parameter `version`, if it has one; its handshake is complete."""
    node: Any = request.node
    version = getattr(node, "callspec", None) and node.callspec.params.get("version")
    if version:
        pair.client_context.maximum_version = version
    pair.start()
    client = Client(pair)
    await client.shake_hands()
    await until(lambda: pair.told == [""], "the handshake")
    return client


@VERSIONS
async def test_records_may_come_in_single_bytes_and_many_at_once(
    pair: Pair, client: Client, version: ssl.TLSVersion
) -> None:
    sealed = b"".join([client.sealed(bytes([i]) * i) for i in range(1, 101)])
    for i in range(2_000):
        client.sock.send(sealed[i : i + 1])
        pair.link.serve()
    await client.loop.sock_sendall(client.sock, sealed[2_000:])
    assert await pair.hear(5_050) == b"".join([bytes([i]) * i for i in range(1, 101)])
    assert pair.link.bytes_in == 5_050


@VERSIONS
async def test_a_forged_record_ends_the_link_after_what_came_before_it(
    pair: Pair, client: Client, version: ssl.TLSVersion
) -> None:
    good, forged = client.sealed(b"good"), bytearray(client.sealed(b"forged"))
    forged[-1] ^= 1
    client.sock.send(good + forged + client.sealed(b"more"))
    await until(lambda: len(pair.heard) == 2, "the end")
    assert pair.heard == [b"good", b""]
    assert pair.link.lost.startswith("TLS: ")
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        await client.read()


@VERSIONS
@pytest.mark.parametrize("rubbish", [b"GET / HTTP/1.0\r\n\r\n", b"\x17\x03\x03\xff\xff" + bytes(70_000)])
async def test_bytes_that_are_no_records_end_the_link(
    pair: Pair, client: Client, version: ssl.TLSVersion, rubbish: bytes
) -> None:
    await client.loop.sock_sendall(client.sock, rubbish)
    await until(lambda: pair.heard == [b""], "the end")
    assert pair.link.lost.startswith("TLS: ")


@VERSIONS
async def test_a_connection_that_ends_within_a_record_ends_the_link(
    pair: Pair, client: Client, version: ssl.TLSVersion
) -> None:
    client.sock.send(client.sealed(b"whole") + client.sealed(b"half")[:-3])
    client.sock.shutdown(socket.SHUT_WR)
    await until(lambda: len(pair.heard) == 2, "the end")
    assert pair.heard == [b"whole", b""]


@VERSIONS
async def test_the_end_is_said_by_both(pair: Pair, client: Client, version: ssl.TLSVersion) -> None:
    """The peer's last bytes and its close_notify come in one piece; what comes behind that is not used."""
    last = client.sealed(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.sock.send(last + client.outgoing.read() + b"rubbish")
    await until(lambda: len(pair.heard) == 2, "the end")
    assert pair.heard == [b"last", b""]
    assert pair.link.lost == ""
    pair.link.send(b"ours")
    pair.link.close()
    assert await client.read() == b"ours"
    assert await client.read() == b"", "a close_notify"


@VERSIONS
async def test_a_peer_that_does_not_read_gets_everything_when_it_does(
    pair: Pair, client: Client, version: ssl.TLSVersion
) -> None:
    data = os.urandom(3_000_000)
    pair.link.send(data)
    assert pair.link.unsent_bytes > 1_000_000
    pair.link.send(b"the end")
    pair.link.finish()
    got = bytearray()
    while piece := await client.read():
        got += piece
    assert bytes(got) == data + b"the end"


async def test_an_owner_may_close_the_link_when_it_is_told_of_bytes(pair: Pair, client: Client) -> None:
    pair.link.sink = lambda _data: pair.link.close()
    client.sock.send(client.sealed(b"x"))
    assert await client.read() == b""
    assert not pair.link.is_open


async def test_an_owner_may_close_the_link_when_it_is_told_of_the_handshake(pair: Pair) -> None:
    """Bytes came behind the handshake in one piece with it; nobody is told of them any more."""
    pair.link.start_tls(pair.server_context, hostname=None, received=b"", done=lambda _why: pair.link.close())
    client = Client(pair)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    await client.flush()
    while True:
        client.incoming.write(await client.loop.sock_recv(client.sock, 65_536))
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
            break
    client.tls.write(b"hello")
    await client.flush()
    assert await client.read() == b""
    assert not pair.link.is_open
    assert not pair.heard


def s_client(port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-quiet", "-no_ign_eof"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def unread(pipe: IO[bytes] | None) -> int:
    """Bytes in a pipe."""
    assert pipe is not None
    size = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, size)
    return int.from_bytes(size, sys.byteorder)


async def test_a_peer_may_change_its_keys_and_ask_us_to(pair: Pair) -> None:
    """`K` makes openssl's own client say KeyUpdate, with the request to do the same."""
    pair.far.close()
    pair.link.close()
    with socket.create_server(("127.0.0.1", 0)) as door:
        client = s_client(door.getsockname()[1])
        near, _ = await asyncio.to_thread(door.accept)
    near.setblocking(False)
    pair.link = Link(asyncio.get_running_loop(), near.detach())
    pair.link.sink = pair.heard.append
    pair.start()
    with client:
        assert client.stdin is not None
        assert client.stdout is not None
        await until(lambda: pair.told == [""], "the handshake")
        for round_ in range(1, 4):
            for line in (b"K\n", b"question\n"):
                # It looks for a command at the beginning of what it reads at once: each has to be alone in the pipe.
                client.stdin.write(line)
                client.stdin.flush()
                await until(lambda: unread(client.stdin) == 0, "openssl read its input")
            assert (await pair.hear(9 * round_)).endswith(b"question\n")
            pair.link.send(b"answer\n")
            assert await asyncio.to_thread(client.stdout.readline) == b"answer\n"
        pair.link.close()


def test_files_that_cannot_be_used_are_told_in_words(tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    other_key, _ = write_certificate(other)
    with pytest.raises(OpenSSLError, match="key values mismatch"):
        Context(is_server=True).load_certificate(str(certificate), str(other_key))
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    with pytest.raises(KeyEncrypted):
        Context(is_server=True).load_certificate(str(certificate), str(key))
    with pytest.raises(OpenSSLError, match="no certificate or crl found"):
        Context(is_server=False).load_ca(str(key))
    with pytest.raises(OpenSSLError, match="no cipher match"):
        Context(is_server=False).set_ciphers("nonsense")


@pytest.mark.parametrize("hostname", ["", None, "a\0b", "x" * 300])
def test_a_name_that_cannot_be_checked_opens_no_connection(hostname: str | None) -> None:
    context = Context(is_server=False)
    context.verify_peer(is_required=True, checks_name=True)
    with pytest.raises(ValueError):
        Connection(context, hostname)
