"""The relay over real socket pairs, with the PostgreSQL tracker: what passes, what waits, what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import struct
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from protocols import mysql, postgres
from protocols.codes import GATE_CLOSED, GATE_DRAIN, GATE_OPEN
from protocols.errors import ProtocolViolation
from protocols.mysql.constants import TRACK_TRANSACTION_STATE
from protocols.mysql.messages import command, lenenc_bytes, packet
from protocols.mysql.replies import unknown_command_packet
from protocols.wire import BackendFacts, Startup
from proxy.dataplane.backend import Backend
from proxy.dataplane.pool import Pool, PoolRules
from proxy.dataplane.reach import Reach
from proxy.dataplane.relay import Link, Memo, Meter, Owner, Relay, leave_for
from proxy.dataplane.seats import Seats
from proxy.embedded.certificate import write_certificate
from proxy.latency import BUCKETS, OCTAVES, bucket_of, by_octave, lower_us
from proxy.openssl import Context
from tests.kit.waiting import until
from tests.protocols.mysql.relay import TRACKING_FACTS, ok_payload, query, startup, told_payload


def message(tag: bytes, body: bytes) -> bytes:
    return tag + struct.pack("!i", len(body) + 4) + body


QUERY = message(b"Q", b"select 1\0")
ANSWER = (
    message(b"T", b"\0\1?column?\0" + bytes(18))
    + message(b"D", b"\0\1\0\0\0\1" + b"1")
    + message(b"C", b"SELECT 1\0")
    + message(b"Z", b"I")
)


class Listening(Owner):
    """Notes what the relay tells."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.answered: list[tuple[bytes, bytes, int]] = []

    def on_gate(self) -> None:
        self.seen.append("gate")

    def on_boundary(self) -> None:
        self.seen.append("boundary")

    def on_fetched(self) -> None: ...

    def on_client_end(self) -> None:
        self.seen.append("client end")

    def on_client_left(self) -> None:
        self.seen.append("client left")

    def on_server_end(self) -> None:
        self.seen.append("server end")

    def on_first_answer(self, at_ns: int) -> None:
        self.seen.append("first answer")

    def on_violation(self, error: ProtocolViolation) -> None:
        self.seen.append(f"violation by {error.peer}")

    def on_failure(self, error: Exception) -> None:
        raise error

    def on_answered(self, asked: bytes, parent: bytes, began_ns: int, ended_ns: int, errors: int) -> None:
        assert began_ns < ended_ns
        self.answered.append((asked, parent, errors))


class TlsClient:
    """Python's TLS over the client's socket; what is sent is read by `Link.serve`, at once."""

    def __init__(self, sock: socket.socket, link: Link, context: Context) -> None:
        wanted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        wanted.check_hostname = False
        wanted.verify_mode = ssl.CERT_NONE
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = wanted.wrap_bio(self._incoming, self._outgoing)
        told: list[str] = []
        link.start_tls(context, hostname=None, received=b"", done=told.append)
        while not told:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()
            sock.send(self._outgoing.read())
            link.serve()
            with contextlib.suppress(BlockingIOError):
                self._incoming.write(sock.recv(65_536))
        assert told == [""]

    def send(self, data: bytes) -> None:
        self._tls.write(data)
        self._sock.send(self._outgoing.read())

    def opened(self, sealed: bytes) -> bytes:
        """The content of records."""
        self._incoming.write(sealed)
        data = b""
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                data += self._tls.read(65_536)
        return data


class Scene:
    """A client's and a server's end of a relay, both blocking sockets driven from the test's thread pool."""

    def __init__(self, context: Context | None = None) -> None:
        """`context`: of the TLS that the client's link has."""
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.client, near_client = socket.socketpair()
        self.server, near_server = socket.socketpair()
        for sock in (self.client, self.server, near_client, near_server):
            sock.setblocking(False)
        self.owner = Listening()
        self.meter = Meter()
        self.client_link = Link(loop, near_client.detach())
        self.server_link = Link(loop, near_server.detach())
        self.tls = TlsClient(self.client, self.client_link, context) if context is not None else None
        ledger = postgres.WIRE.ledger(Startup("u", "d"))
        self.tracker = postgres.WIRE.tracker(ledger, shares_backends=False)
        self.relay = Relay(self.owner, self.client_link, self.tracker, self.meter)
        self.tracker.link(BackendFacts("18"), {})
        self.relay.attach(self.server_link)

    async def until(self, seen: str) -> None:
        await until(lambda: seen in self.owner.seen, seen)

    async def receive(self, sock: socket.socket, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(5):
            while len(data) < size:
                data += await self.loop.sock_recv(sock, size - len(data))
        return data

    async def settle(self) -> None:
        """Let the loop see everything the kernel has ready."""
        for _ in range(5):
            await asyncio.sleep(0)

    def close(self) -> None:
        self.relay.close()
        self.client_link.close()
        self.server_link.close()
        self.client.close()
        self.server.close()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


async def test_bytes_pass_both_ways_unchanged(scene: Scene) -> None:
    scene.client.send(QUERY)
    assert await scene.receive(scene.server, len(QUERY)) == QUERY
    scene.server.send(ANSWER)
    assert await scene.receive(scene.client, len(ANSWER)) == ANSWER
    assert scene.tracker.requests == 1
    assert sum(scene.meter.fine_buckets) == 1
    assert scene.relay.at_boundary()


async def test_a_message_in_single_bytes_is_the_same_message(scene: Scene) -> None:
    for byte in QUERY:
        scene.client.send(bytes([byte]))
        await scene.settle()
    assert await scene.receive(scene.server, len(QUERY)) == QUERY
    for byte in ANSWER:
        scene.server.send(bytes([byte]))
        await scene.settle()
    assert await scene.receive(scene.client, len(ANSWER)) == ANSWER
    assert scene.relay.at_boundary()


async def test_a_forwarded_chunk_creates_no_object(scene: Scene) -> None:
    """The hot path's promise: memory blocks in use and memory ever allocated stay the same over 2,000 chunks."""
    from proxy.dataplane import relay as relay_module

    def exchange() -> None:
        scene.client.send(QUERY)
        scene.client_link.serve()
        scene.server.recv_into(sink)
        scene.server.send(ANSWER)
        scene.server_link.serve()
        scene.client.recv_into(sink)

    sink = bytearray(4096)
    for _ in range(100):
        exchange()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        exchange()
        before = sys.getallocatedblocks()
        first = tracemalloc.take_snapshot()
        tracemalloc.reset_peak()
        for _ in range(2_000):
            exchange()
        blocks = sys.getallocatedblocks() - before
        second = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
        gc.enable()
    grown = [
        difference
        for difference in second.compare_to(first, "filename")
        if difference.traceback[0].filename == relay_module.__file__ and difference.size_diff > 0
    ]
    assert not grown
    assert blocks < 50, f"{blocks} blocks more after 4,000 chunks"
    assert scene.tracker.requests == 2_101


def peak_of(act: Callable[[], None]) -> int:
    """Bytes of Python's memory that were in use at one time while `act` ran, beyond those before."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    act()
    return tracemalloc.get_traced_memory()[1] - before


def nothing() -> None: ...


@pytest.fixture
def context(tmp_path: Path) -> Context:
    key, certificate = write_certificate(tmp_path)
    context = Context(is_server=True)
    context.load_certificate(str(certificate), str(key))
    return context


@pytest.fixture
async def tls_scene(context: Context) -> AsyncIterator[Scene]:
    scene = Scene(context)
    yield scene
    scene.close()


@pytest.mark.parametrize("size", [1, 60_000])
async def test_a_chunk_that_is_forwarded_through_tls_creates_no_object(tls_scene: Scene, size: int) -> None:
    scene, client = tls_scene, tls_scene.tls
    assert client is not None
    query = message(b"Q", b"select " + b"1" * size + b"\0")
    answer = (
        message(b"T", b"\0\1?column?\0" + bytes(18))
        + message(b"D", b"\0\1" + struct.pack("!i", size) + b"x" * size)
        + message(b"C", b"SELECT 1\0")
        + message(b"Z", b"I")
    )
    tracemalloc.start()
    # So that the figures themselves are large integers, which are objects too, each time.
    ballast = bytearray(100_000)
    try:
        for _ in range(20):
            client.send(query)
            got_query = b""
            while len(got_query) < len(query):
                cost = {"nothing": peak_of(nothing), "reading": peak_of(scene.client_link.serve)}
                got_query += scene.server.recv(100_000)
            scene.server.send(answer)
            got_answer = b""
            while len(got_answer) < len(answer):
                cost["sending"] = peak_of(scene.server_link.serve)
                got_answer += client.opened(scene.client.recv(100_000))
    finally:
        tracemalloc.stop()
    assert got_query == query
    assert got_answer == answer
    assert len(set(cost.values())) == 1, f"bytes of objects: {cost}"
    assert len(ballast) == 100_000


async def test_what_leaves_together_shares_a_record(tls_scene: Scene) -> None:
    """A ParameterStatus is looked at, so an answer with one in it leaves in pieces."""
    scene, client = tls_scene, tls_scene.tls
    assert client is not None
    first, second = (message(b"S", b"application_name\0" + name + b"\0") for name in (b"x", b"y"))
    for size, records in ((1, 1), (20_000, 2), (40_000, 3)):
        client.send(QUERY)
        scene.client_link.serve()
        row = message(b"D", b"\0\1" + struct.pack("!i", size) + b"x" * size)
        answer = ANSWER[: -len(message(b"Z", b"I"))] + first + row + second + message(b"Z", b"I")
        scene.server.send(answer)
        scene.server_link.serve()
        sealed = scene.client.recv(200_000)
        count = at = 0
        while at < len(sealed):
            at += 5 + int.from_bytes(sealed[at + 3 : at + 5], "big")
            count += 1
        assert count == records
        assert client.opened(sealed) == answer


async def test_a_client_that_does_not_read_stops_the_server_not_the_memory(scene: Scene) -> None:
    scene.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    scene.client.send(QUERY)
    await scene.receive(scene.server, len(QUERY))
    row = message(b"D", b"\0\1" + struct.pack("!i", 50_000) + b"x" * 50_000)
    total = (
        message(b"T", b"\0\1?column?\0" + bytes(18)) + row * 200 + message(b"C", b"SELECT 200\0") + message(b"Z", b"I")
    )
    sender = asyncio.create_task(scene.loop.sock_sendall(scene.server, total))
    await asyncio.wait([sender], timeout=0.3)
    assert not sender.done()
    assert scene.client_link.unsent_bytes <= 70_000
    assert await scene.receive(scene.client, len(total)) == total
    await sender
    assert scene.client_link.unsent_bytes == 0
    assert scene.relay.at_boundary()


def _long_pipeline(size: int) -> bytes:
    """Of at least that many bytes, and without a Sync: nothing but an error is answered by a server that reads on."""
    bind = message(b"B", b"\0\0\0\0\0\1" + struct.pack("!i", 32_768) + b"x" * 32_768 + b"\0\0")
    return (bind + message(b"E", b"\0\0\0\0\0")) * (size // 32_768 + 1)


FAILED = message(b"E", b"SERROR\0C23505\0Mduplicate key\0\0")


async def test_an_error_passes_while_the_server_takes_no_more_of_the_pipeline(scene: Scene) -> None:
    sender = asyncio.create_task(scene.loop.sock_sendall(scene.client, _long_pipeline(4_000_000)))
    await until(lambda: scene.server_link.unsent_bytes > 0, "the server's socket is full")
    await scene.loop.sock_sendall(scene.server, FAILED)
    assert await scene.receive(scene.client, len(FAILED)) == FAILED
    assert scene.server_link.unsent_bytes <= 70_000
    assert not sender.done()
    sender.cancel()


async def test_a_client_that_always_has_more_does_not_keep_an_answer_back(scene: Scene) -> None:
    """Links take turns, a chunk each, however much one of them has."""
    scene.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
    passed: list[int] = []
    scene.owner.on_first_answer = lambda at_ns: passed.append(scene.server_link.bytes_out)  # type: ignore[method-assign]
    scene.relay.stamp_first_answer()
    waiting = scene.client.send(_long_pipeline(1_000_000))
    assert waiting > 3 * 65_536
    scene.server.send(FAILED)
    assert await scene.receive(scene.client, len(FAILED)) == FAILED
    assert passed[0] <= 65_536


async def test_a_closed_gate_keeps_a_request_and_tells_the_owner(scene: Scene) -> None:
    scene.relay.set_gate(GATE_CLOSED)
    scene.client.send(QUERY)
    await scene.until("gate")
    await scene.settle()
    with pytest.raises(BlockingIOError):
        scene.server.recv(1)
    scene.relay.set_gate(GATE_OPEN)
    assert await scene.receive(scene.server, len(QUERY)) == QUERY


async def test_a_draining_gate_stops_a_client_that_pipelines_at_its_first_boundary(scene: Scene) -> None:
    scene.relay.notifies = True
    begin = message(b"Q", b"begin\0")
    commit = message(b"Q", b"commit\0")
    scene.client.send(begin)
    await scene.receive(scene.server, len(begin))
    scene.relay.set_gate(GATE_DRAIN)
    scene.server.send(message(b"C", b"BEGIN\0") + message(b"Z", b"T"))
    scene.client.send(commit + begin + QUERY)
    assert await scene.receive(scene.server, len(commit)) == commit
    scene.server.send(message(b"C", b"COMMIT\0") + message(b"Z", b"I"))
    await scene.until("boundary")
    await scene.settle()
    with pytest.raises(BlockingIOError):
        scene.server.recv(1)
    assert scene.relay.has_work
    scene.relay.set_gate(GATE_OPEN)
    assert await scene.receive(scene.server, len(begin + QUERY)) == begin + QUERY


async def test_a_held_relay_reads_nothing_and_stamps_the_first_request(scene: Scene) -> None:
    scene.relay.hold()
    scene.client.send(QUERY)
    await until(lambda: bool(scene.relay.waiting_since_ns), "not scene.relay.waiting_since_ns")
    with pytest.raises(BlockingIOError):
        scene.server.recv(1)
    assert not scene.relay.has_work, "the bytes stay in the socket"
    assert scene.relay.release(GATE_OPEN) > 0
    assert await scene.receive(scene.server, len(QUERY)) == QUERY


async def test_a_client_that_leaves_while_held_is_noticed(scene: Scene) -> None:
    scene.relay.hold()
    scene.client.close()
    await scene.until("client end")


async def test_another_server_goes_on_where_the_first_one_stopped(scene: Scene) -> None:
    scene.client.send(QUERY)
    await scene.receive(scene.server, len(QUERY))
    scene.server.send(ANSWER)
    await scene.receive(scene.client, len(ANSWER))
    scene.relay.hold()
    scene.tracker.unlink()
    scene.relay.detach()
    far, near = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    scene.tracker.link(BackendFacts("18"), {})
    scene.relay.attach(Link(scene.loop, near.detach()))
    scene.relay.stamp_first_answer()
    scene.relay.release(GATE_OPEN)
    scene.client.send(QUERY)
    assert await scene.receive(far, len(QUERY)) == QUERY
    far.send(ANSWER)
    assert await scene.receive(scene.client, len(ANSWER)) == ANSWER
    assert "first answer" in scene.owner.seen
    assert scene.relay.server is not None
    scene.relay.server.close()
    far.close()


def other_server(scene: Scene) -> tuple[socket.socket, Link]:
    """Over TCP, which tells how much of what was sent has come; its far end, and the link that is the server side now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    link = Link(scene.loop, near.detach())
    if scene.relay.server is not None:
        scene.tracker.unlink()
        scene.relay.detach()
    scene.tracker.link(BackendFacts("18"), {})
    scene.relay.attach(link)
    return far, link


def end(far: socket.socket, link: Link) -> None:
    """Close the far end, and go on when that has come, before the event loop is told of it."""
    far.close()
    deadline = time.monotonic() + 5
    while not link.peek_end():
        assert time.monotonic() < deadline


async def test_what_is_sent_to_a_server_that_has_ended_waits_at_the_gate_again(scene: Scene) -> None:
    """Twice: what has waited may meet the next one that ends."""
    first, first_link = other_server(scene)
    end(first, first_link)
    scene.client.send(QUERY)
    scene.client_link.serve()
    await scene.until("server end")
    assert scene.relay.take_back(first_link)
    assert scene.relay.peek_work() == QUERY
    second, second_link = other_server(scene)
    scene.owner.seen.clear()
    end(second, second_link)
    scene.relay.set_gate(GATE_OPEN)
    await scene.until("server end")
    assert scene.relay.take_back(second_link)
    third, third_link = other_server(scene)
    scene.relay.set_gate(GATE_OPEN)
    assert await scene.receive(third, len(QUERY)) == QUERY
    third.send(ANSWER)
    assert await scene.receive(scene.client, len(ANSWER)) == ANSWER
    assert scene.relay.at_boundary()
    for link in (first_link, second_link, third_link):
        link.close()
    third.close()


@pytest.mark.parametrize("has_read", [True, False], ids=["FIN behind it", "RST alone"])
async def test_what_a_server_may_have_read_is_not_taken_back(scene: Scene, has_read: bool) -> None:
    far, link = other_server(scene)
    scene.client.send(QUERY)
    scene.client_link.serve()
    if has_read:
        await scene.receive(far, len(QUERY))
    far.close()
    await scene.until("server end")
    assert not scene.relay.is_untaken(link)
    assert not scene.relay.take_back(link)
    link.close()


async def test_a_request_in_two_chunks_is_not_kept_although_it_was_not_taken(scene: Scene) -> None:
    far, link = other_server(scene)
    end(far, link)
    for part in (QUERY[:7], QUERY[7:]):
        scene.client.send(part)
        scene.client_link.serve()
    await scene.until("server end")
    assert scene.relay.is_untaken(link)
    assert not scene.relay.take_back(link)
    link.close()


async def test_what_was_answered_in_part_without_a_server_is_not_taken_back(scene: Scene) -> None:
    """Transaction mode: a Close of a statement is answered here."""
    ledger = postgres.WIRE.ledger(Startup("u", "d"), shares_backends=True)
    tracker = postgres.WIRE.tracker(ledger, shares_backends=True)
    scene.relay.detach()
    relay = Relay(scene.owner, scene.client_link, tracker, scene.meter)
    tracker.link(BackendFacts("18"), {})
    relay.attach(scene.server_link)
    prepare = message(b"P", b"s\0select 1\0\0\0") + message(b"S", b"")
    scene.client.send(prepare)
    await until(lambda: not tracker.is_idle(), "it is sent")
    scene.server.send(message(b"1", b"") + message(b"Z", b"I"))
    await until(tracker.is_idle, "it is answered")
    tracker.unlink()
    relay.detach()
    scene.relay, scene.tracker = relay, tracker
    far, link = other_server(scene)
    end(far, link)
    scene.client.send(message(b"C", b"Ss\0") + message(b"S", b""))
    scene.client_link.serve()
    await scene.until("server end")
    assert relay.is_untaken(link)
    assert not relay.take_back(link)
    link.close()


async def test_what_is_due_behind_an_edited_answer_is_sent_with_it(scene: Scene) -> None:
    """MySQL: of an OK what it tells is taken off. The next command is none that a server would answer."""
    ledger = mysql.WIRE.ledger(startup())
    tracker = mysql.WIRE.tracker(ledger, shares_backends=False)
    scene.relay.detach()
    relay = Relay(scene.owner, scene.client_link, tracker, scene.meter)
    tracker.link(TRACKING_FACTS, {})
    relay.attach(scene.server_link)
    scene.relay, scene.tracker = relay, tracker
    told = packet(told_payload((TRACK_TRANSACTION_STATE, lenenc_bytes(b"________"))), 1)
    shown = packet(ok_payload(), 1)
    # The ledger hears of the first.
    for text, more in (("begin", b""), ("commit", command(0x66, b""))):
        scene.client.send(query(text) + more)
        await scene.receive(scene.server, len(query(text)))
        scene.server.send(told)
        seen = shown + unknown_command_packet(1) if more else shown
        assert await scene.receive(scene.client, len(seen)) == seen
    assert tracker.is_idle()


async def test_a_length_that_cannot_be_ends_only_this_relay(scene: Scene) -> None:
    scene.client.send(b"Q\x7f\xff\xff\xff")
    await scene.until("violation by client")


async def test_a_server_that_talks_nonsense_is_named(scene: Scene) -> None:
    scene.server.send(b"\0\0\0\0\0\0\0\0")
    await scene.until("violation by server")


async def test_goodbye_is_told_and_not_passed_on(scene: Scene) -> None:
    scene.client.send(message(b"X", b""))
    await scene.until("client left")
    with pytest.raises(BlockingIOError):
        scene.server.recv(1)


async def test_last_words_arrive_although_the_client_is_still_sending() -> None:
    """Closing a socket with unread bytes resets it; `finish` reads on to the peer's end first."""
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    near, _ = listener.accept()
    near.setblocking(False)
    link = Link(loop, near.detach())
    link.sink = lambda data: None
    client.setblocking(False)
    client.send(b"x" * 100_000)
    link.send(b"no")
    link.finish()
    client.send(b"y" * 1_000)
    async with asyncio.timeout(5):
        assert await loop.sock_recv(client, 10) == b"no"
        assert await loop.sock_recv(client, 10) == b""
    client.close()
    await until(lambda: not (link.is_open), "link.is_open")
    listener.close()


class Lender:
    """A pool with one idle backend, and a scene whose relay has none."""

    def __init__(self, scene: Scene) -> None:
        scene.tracker.unlink()
        link = scene.relay.detach()
        assert link is not None
        startup = Startup("u", "d")
        self.backend = Backend(postgres.WIRE, Reach("blue", "127.0.0.1:1"), startup, link, BackendFacts("18"))

        async def open_one(wanted: Startup) -> Backend:
            raise AssertionError("there is an idle one")

        self.pool = Pool(
            ("blue", "d", "u"),
            rules=PoolRules(size=1, wait_timeout_s=1),
            seats=Seats(None, 0, 1),
            open_one=open_one,
        )
        self.pool.adopt(self.backend)
        self.pool.give_back(self.backend)
        self.ledger = postgres.WIRE.ledger(startup)
        scene.relay.lending = self.pool.lending(self.pool.shelf(startup), self.ledger)
        scene.relay.set_gate(GATE_CLOSED)
        scene.relay.notifies = True


async def test_a_backend_is_borrowed_for_one_transaction_and_given_back(scene: Scene) -> None:
    lender = Lender(scene)
    for _ in range(3):
        scene.client.send(QUERY)
        assert await scene.receive(scene.server, len(QUERY)) == QUERY
        assert scene.owner.backend is lender.backend
        assert (lender.pool.idle, lender.pool.in_use) == (0, 1)
        scene.server.send(ANSWER)
        assert await scene.receive(scene.client, len(ANSWER)) == ANSWER
        assert scene.owner.backend is None
        assert (lender.pool.idle, lender.pool.in_use) == (1, 0)
    assert scene.owner.seen == []


async def test_a_session_that_holds_state_keeps_what_it_borrowed(scene: Scene) -> None:
    lender = Lender(scene)
    scene.client.send(QUERY)
    await scene.receive(scene.server, len(QUERY))
    lender.ledger.is_dirty = True
    scene.server.send(ANSWER)
    await scene.until("boundary")
    assert scene.owner.backend is lender.backend
    assert lender.pool.in_use == 1


async def test_nothing_is_borrowed_while_the_session_s_own_backend_is_asked(scene: Scene) -> None:
    lender = Lender(scene)
    near, far = socket.socketpair()
    own = Backend(
        postgres.WIRE,
        Reach("blue", "127.0.0.1:1"),
        Startup("u", "d"),
        Link(scene.loop, near.detach()),
        BackendFacts("18"),
    )
    scene.owner.backend = own
    scene.client.send(QUERY)
    await scene.until("gate")
    assert scene.relay.has_work
    assert lender.pool.idle == 1
    own.close()
    far.close()


async def test_a_held_relay_borrows_nothing(scene: Scene) -> None:
    lender = Lender(scene)
    scene.relay.hold()
    scene.client.send(QUERY)
    await until(lambda: scene.relay.waiting_since_ns != 0, "the request is stamped")
    assert lender.pool.idle == 1
    assert scene.relay.release(GATE_CLOSED) > 0
    await scene.until("gate")
    assert lender.pool.idle == 1, "after a hold the owner says where backends come from"


EXCHANGES = """
import socket, sys
client, server, bell = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:4])
query, answer = bytes.fromhex(sys.argv[4]), bytes.fromhex(sys.argv[5])
for sock in (client, server):
    sock.setblocking(True)
def exchange():
    client.sendall(query)
    server.recv(len(query), socket.MSG_WAITALL)
    server.sendall(answer)
    client.recv(len(answer), socket.MSG_WAITALL)
for _ in range(20):
    exchange()
bell.sendall(b"!")
rounds = 0
while True:
    try:
        bell.recv(1, socket.MSG_DONTWAIT)
        break
    except BlockingIOError:
        exchange()
        rounds += 1
print(rounds)
"""
"""Queries one after another over a relay, until the bell that was rung is heard; prints how many were sent meanwhile."""


async def test_a_descriptor_of_the_loop_that_is_known_does_not_wait_for_the_end_of_the_traffic(scene: Scene) -> None:
    bell, rope = socket.socketpair()
    with bell, rope:
        bell.setblocking(False)

        def heard() -> None:
            bell.send(bell.recv(1))

        scene.loop.add_reader(bell.fileno(), heard)
        leave_for(scene.loop, bell.fileno())
        ends = [scene.client.fileno(), scene.server.fileno(), rope.fileno()]
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", EXCHANGES, *map(str, ends), QUERY.hex(), ANSWER.hex(),
            pass_fds=ends, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(20):
                told, _ = await child.communicate()
        finally:
            scene.loop.remove_reader(bell.fileno())
            if child.returncode is None:
                child.kill()
                await child.wait()
    # One exchange is under way when the bell rings, and it is answered after the batch that showed it.
    assert int(told) <= 5


def test_a_draining_gate_is_a_position_of_its_own() -> None:
    assert len({GATE_OPEN, GATE_DRAIN, GATE_CLOSED}) == 3


async def test_requests_and_errors_are_counted_for_the_engine_that_answered_them(scene: Scene) -> None:
    """Errors of the client's own making are no faults of the engine."""
    for sqlstate in (b"42601", b"23505", b"22012", b"25P02", b"P0001", b"53300", b"40001", b"XX000"):
        scene.client.send(QUERY)
        await scene.receive(scene.server, len(QUERY))
        error = message(b"E", b"SERROR\0C" + sqlstate + b"\0Mno\0\0") + message(b"Z", b"I")
        scene.server.send(error)
        assert await scene.receive(scene.client, len(error)) == error
    assert (scene.meter.spans, scene.meter.errors, scene.meter.faults) == (8, 8, 3)
    assert sum(scene.meter.fine_buckets) == 8
    assert scene.tracker.error_classes == {"42": 1, "23": 1, "22": 1, "25": 1, "P0": 1, "53": 1, "40": 1, "XX": 1}


async def test_a_transaction_takes_from_its_first_request_to_the_answer_that_ends_it(scene: Scene) -> None:
    async def exchange(status: bytes) -> None:
        scene.client.send(QUERY)
        await scene.receive(scene.server, len(QUERY))
        answer = message(b"C", b"X\0") + message(b"Z", status)
        scene.server.send(answer)
        await scene.receive(scene.client, len(answer))

    await exchange(b"I")
    assert (scene.meter.transactions, scene.meter.requests) == (1, 1)
    assert scene.meter.transaction_ns == scene.meter.request_ns, "a statement by itself is a transaction"
    await exchange(b"T")
    # The client thinks. Nobody is waited for: this time itself has to be found below.
    await asyncio.sleep(0.02)
    await exchange(b"T")
    assert scene.meter.transactions == 1
    await exchange(b"I")
    assert (scene.meter.transactions, scene.meter.requests, sum(scene.meter.transaction_buckets)) == (2, 4, 2)
    assert scene.meter.transaction_ns - scene.meter.request_ns > 20_000_000, "the client's pause is in it"


def traced(flags: bytes = b"01", half: bytes = b"b0d1f8f4bd33716a", extra: bytes = b"") -> bytes:
    comment = b"/*traceparent='00-5bd66ef5095369c7" + half + b"-c532cb4098ac3dd2-" + flags + b"'*/"
    return message(b"Q", b"select 1 " + extra + comment + b"\0")


@pytest.mark.parametrize(
    ("query", "up_to", "is_told"),
    [
        (traced(), 2**64 - 1, True),
        (traced(flags=b"00"), 2**64 - 1, False),
        (traced(half=b"b0d1f8f4bd33716A"), 2**64 - 1, False),
        (traced(half=b"7fffffffffffffff"), 2**63, True),
        (traced(half=b"8000000000000001"), 2**63, False),
        (traced(extra=b"'x' " * 3_000), 2**64 - 1, True),
        (QUERY, 2**64 - 1, False),
    ],
    ids=["sampled", "not sampled", "malformed", "in the share", "out of the share", "long", "no comment"],
)
async def test_an_owner_is_told_of_requests_that_are_part_of_a_trace(
    scene: Scene, query: bytes, up_to: int, is_told: bool
) -> None:
    memo = Memo()
    memo.traced_up_to = up_to
    scene.relay.memo = memo
    for _ in range(2):
        # In two pieces, cut within the comment.
        for piece in (query[:-30], query[-30:]):
            scene.client.send(piece)
            await scene.settle()
        await scene.receive(scene.server, len(query))
        scene.server.send(ANSWER)
        assert await scene.receive(scene.client, len(ANSWER)) == ANSWER
    assert len(scene.owner.answered) == (2 if is_told else 0)
    for asked, parent, errors in scene.owner.answered:
        assert query.startswith(asked)
        assert parent == query[-59:-4]
        assert errors == 0


async def test_an_owner_is_told_of_slow_requests_alone(scene: Scene) -> None:
    memo = Memo()
    scene.relay.memo = memo
    for slow_ns in (0, 10**12, 1):
        memo.slow_ns = slow_ns
        scene.client.send(QUERY)
        await scene.receive(scene.server, len(QUERY))
        scene.server.send(ANSWER)
        await scene.receive(scene.client, len(ANSWER))
    assert scene.owner.answered == [(QUERY, b"", 0)]


def test_a_meter_counts_in_the_buckets_that_have_its_bounds() -> None:
    meter = Meter()
    lengths = [0, 1, 15, 16, 17, 31, 32, 100, 1_000, 65_535, 65_536, 10**6, 60 * 10**6, 10**9, 1 << 40]
    for us in lengths:
        meter.note(us * 1000)
    fine, coarse = [0] * BUCKETS, [0] * OCTAVES
    for us in lengths:
        bucket = bucket_of(us)
        assert lower_us(bucket) <= us
        assert us < lower_us(bucket + 1) or bucket == BUCKETS - 1
        fine[bucket] += 1
        coarse[min(us.bit_length(), OCTAVES - 1)] += 1
    assert meter.fine_buckets == fine
    assert by_octave(meter.fine_buckets) == coarse
