"""The relay's contract in its simplest form: drives a tracker as `protocols/wire.py` says, with byte strings for sockets.

It polices the contract on the way: fetched messages are whole, carries are short, nothing is sent to a server that is
not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from protocols.codes import EDIT, FETCH, FORWARD, GATE, GATE_CLOSED, GATE_OPEN, INVENT, SWALLOW
from protocols.errors import Peer, ProtocolViolation
from protocols.postgres import WIRE
from protocols.postgres.ledger import PostgresLedger
from protocols.postgres.messages import build, build_bind, build_execute, build_parse, build_query
from protocols.wire import CARRY_BYTES_MAX, BackendFacts, Startup, Tracker

STARTUP = Startup("app", "app")
FACTS = BackendFacts("15.1", process_id=7, secret=b"abcd", parameters={"server_version": "15.1", "TimeZone": "UTC"})

# Answers of a server.
PARSED = build(b"1")
BOUND = build(b"2")
CLOSED = build(b"3")
NO_DATA = build(b"n")
EMPTY_QUERY = build(b"I")
SUSPENDED = build(b"s")
ROW_DESCRIPTION = build(b"T", b"\0\0")
PARAMETER_DESCRIPTION = build(b"t", b"\0\0")
ROW = build(b"D", b"\0\1\0\0\0\3abc")
COPY_IN = build(b"G", b"\0\0\0")
COPY_OUT = build(b"H", b"\0\0\0")
COPY_DATA = build(b"d", b"1\t2\n")
COPY_DONE = build(b"c")
COPY_FAIL = build(b"f", b"no\0")
NOTICE = build(b"N", b"SNOTICE\0\0")
NOTIFICATION = build(b"A", b"\0\0\0\7chan\0pay\0")
CALLED = build(b"V", b"\xff\xff\xff\xff")

SYNC = build(b"S")
FLUSH = build(b"H")
TERMINATE = build(b"X")
CALL = build(b"F", b"\0\0\0\1\0\0\0\0\0\0")


def ready(status: str = "I") -> bytes:
    return build(b"Z", status.encode())


def done(tag: str = "SELECT 1") -> bytes:
    return build(b"C", tag.encode() + b"\0")


def failed(sqlstate: str = "42601") -> bytes:
    return build(b"E", b"SERROR\0VERROR\0C" + sqlstate.encode() + b"\0Mno\0\0")


def parameter(name: str, value: str) -> bytes:
    return build(b"S", name.encode() + b"\0" + value.encode() + b"\0")


def query(text: str) -> bytes:
    return build_query(text.encode())


def parse(name: str, text: str = "select 1") -> bytes:
    return build_parse(name.encode(), text.encode())


def bind(name: str, portal: str = "", *values: bytes) -> bytes:
    return build_bind(portal.encode(), name.encode(), values)


def describe(name: str, kind: str = "S") -> bytes:
    return build(b"D", kind.encode() + name.encode() + b"\0")


def close(name: str, kind: str = "S") -> bytes:
    return build(b"C", kind.encode() + name.encode() + b"\0")


def execute(portal: str = "") -> bytes:
    return build_execute(portal.encode())


@contextmanager
def may_violate(peer: Peer) -> Iterator[None]:
    """What a stranger sends may be refused, but blames nobody else and breaks nothing."""
    try:
        yield
    except ProtocolViolation as violation:
        if violation.peer != peer:
            raise


def split(stream: bytes) -> list[bytes]:
    """Whole messages of a stream."""
    messages = []
    while stream:
        size = int.from_bytes(stream[1:5], "big") + 1
        assert len(stream) >= size, "the stream ends inside of a message"
        messages.append(stream[:size])
        stream = stream[size:]
    return messages


def tags(stream: bytes) -> str:
    return "".join(chr(message[0]) for message in split(stream))


class Relay:
    """One session. `to_server` and `to_client` collect what passed."""

    def __init__(
        self,
        *,
        shares: bool = False,
        is_linked: bool = True,
        ledger: PostgresLedger | None = None,
        statements_max: int = 200,
    ) -> None:
        self.ledger = ledger if ledger is not None else PostgresLedger(STARTUP)
        self.tracker: Tracker = WIRE.tracker(self.ledger, shares_backends=shares, statements_max=statements_max)
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.notes: dict[str, Any] = {}
        self.is_linked = False
        self._client = _Side()
        self._server = _Side()
        if is_linked:
            self.link()
        else:
            self.tracker.gate = GATE_CLOSED

    def link(self, facts: BackendFacts = FACTS, notes: dict[str, Any] | None = None) -> bytes:
        self.notes = {} if notes is None else notes
        told = self.tracker.link(facts, self.notes)
        self.to_client += told
        self.is_linked = True
        self.tracker.gate = GATE_OPEN
        return told

    def unlink(self) -> None:
        self.tracker.unlink()
        self.is_linked = False
        self.tracker.gate = GATE_CLOSED

    @property
    def kept(self) -> bytes:
        """What waits at the gate."""
        return bytes(self._client.kept)

    def client(self, *chunks: bytes) -> bytes:
        """The client sends; returns what reached the server because of it."""
        before = len(self.to_server)
        for chunk in chunks:
            self._client.kept += chunk
            self._run_client()
        return bytes(self.to_server[before:])

    def go_on(self) -> bytes:
        """The gate may have opened."""
        return self.client(b"")

    def server(self, *chunks: bytes) -> bytes:
        """The server sends; returns what reached the client because of it."""
        before = len(self.to_client)
        for chunk in chunks:
            self._server.kept += chunk
            self._run_server()
        if self.tracker.gate != GATE_OPEN and self._client.kept:
            self.go_on()
        return bytes(self.to_client[before:])

    def take_client(self) -> bytes:
        taken = bytes(self.to_client)
        self.to_client.clear()
        return taken

    def take_server(self) -> bytes:
        taken = bytes(self.to_server)
        self.to_server.clear()
        return taken

    def _send_server(self, data: bytes) -> None:
        assert self.is_linked or not data, "bytes for a server that is not there"
        self.to_server += data

    def _invent(self) -> None:
        if self.tracker.has_invented:
            self.to_client += self.tracker.take_invented()

    def _run_client(self) -> None:
        side, tracker = self._client, self.tracker
        while True:
            if side.skip:
                side.drop()
                if side.skip:
                    return
            if side.fetch:
                if len(side.kept) < side.fetch:
                    return
                self._send_server(tracker.take_client(side.take(side.fetch)))
                side.fetch = 0
                self._invent()
            data = bytes(side.kept)
            verdict = tracker.scan_client(data, 0, len(data))
            stop = tracker.stop
            assert 0 <= stop <= len(data)
            self._send_server(side.take(stop))
            if verdict == FORWARD:
                assert len(side.kept) <= CARRY_BYTES_MAX, "an incomplete header is short"
                return
            if verdict == GATE:
                return
            assert tracker.message_size >= 5
            if verdict == EDIT:
                assert len(side.take(tracker.message_size)) == tracker.message_size, "all of it is in the chunk"
                self._send_server(bytes(tracker.edited[: tracker.edited_size]))
                continue
            if verdict == FETCH:
                side.fetch = tracker.message_size
            else:
                assert verdict == SWALLOW
                side.skip = tracker.message_size

    def _run_server(self) -> None:
        side, tracker = self._server, self.tracker
        while True:
            if side.skip:
                side.drop()
                if side.skip:
                    return
            if side.fetch:
                if len(side.kept) < side.fetch:
                    return
                self.to_client += tracker.take_server(side.take(side.fetch))
                side.fetch = 0
                self._invent()
            data = bytes(side.kept)
            verdict = tracker.scan_server(data, 0, len(data))
            stop = tracker.stop
            assert 0 <= stop <= len(data)
            self.to_client += side.take(stop)
            if verdict == FORWARD:
                assert len(side.kept) <= CARRY_BYTES_MAX, "an incomplete header is short"
                return
            if verdict == INVENT:
                self.to_client += tracker.take_invented()
                continue
            assert tracker.message_size >= 5
            if verdict == FETCH:
                side.fetch = tracker.message_size
            else:
                assert verdict == SWALLOW
                side.skip = tracker.message_size


class _Side:
    """Bytes of one peer that did not pass yet."""

    def __init__(self) -> None:
        self.kept = bytearray()
        self.fetch = 0
        self.skip = 0

    def take(self, size: int) -> bytes:
        taken = bytes(self.kept[:size])
        del self.kept[:size]
        return taken

    def drop(self) -> None:
        self.skip -= len(self.take(min(self.skip, len(self.kept))))
