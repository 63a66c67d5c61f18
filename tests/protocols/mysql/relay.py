"""The relay's contract in its simplest form: drives a tracker as `protocols/wire.py` says, with byte strings for sockets.

It polices the contract on the way: fetched messages are whole, carries are short, nothing is sent to a server that is
not there. Beside it stand builders of the packets that tests speak with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from protocols.codes import EDIT, FETCH, FORWARD, GATE, GATE_CLOSED, GATE_OPEN, INVENT, SWALLOW
from protocols.mysql import WIRE
from protocols.mysql import constants as c
from protocols.mysql.ledger import MysqlLedger
from protocols.mysql.messages import build_err, command, lenenc, lenenc_bytes, packet
from protocols.mysql.tracker import MysqlTracker
from protocols.wire import CARRY_BYTES_MAX, BackendFacts, Startup, Tracker

AUTOCOMMIT = c.SERVER_STATUS_AUTOCOMMIT
IN_TRANS = AUTOCOMMIT | c.SERVER_STATUS_IN_TRANS
MORE = c.SERVER_MORE_RESULTS_EXISTS
CURSOR = c.SERVER_STATUS_CURSOR_EXISTS
LAST_ROW = c.SERVER_STATUS_LAST_ROW_SENT

CHARSETS = (b"utf8mb4", b"utf8mb4", b"utf8mb4", b"utf8mb4_general_ci")

FACTS = BackendFacts(
    "8.0.40",
    process_id=7,
    capabilities=c.OFFERED_CAPABILITIES & ~c.CLIENT_SESSION_TRACK,
    character_set=45,
    charsets=CHARSETS,
)
TRACKING_FACTS = replace(FACTS, capabilities=c.OFFERED_CAPABILITIES)
"""Of a server that tells of changes behind an OK."""
MARIADB_FACTS = replace(FACTS, server_version="5.5.5-10.11.6-MariaDB")


def startup(*, deprecates_eof: bool = False, more: int = 0) -> Startup:
    flags = c.CLIENT_MULTI_STATEMENTS | c.CLIENT_MULTI_RESULTS | more
    return Startup(
        "app", "app", capabilities=flags | (c.CLIENT_DEPRECATE_EOF if deprecates_eof else 0), character_set=45
    )


# --- what clients send ---


def query(text: str | bytes) -> bytes:
    return command(c.COM_QUERY, text.encode() if isinstance(text, str) else text)


def prepare(text: str) -> bytes:
    return command(c.COM_STMT_PREPARE, text.encode())


def execute(
    statement: int, *, parameters: int = 0, types: bytes | None = None, values: bytes = b"", flags: int = 0
) -> bytes:
    """`types` None: new-params-bound is 0."""
    body = statement.to_bytes(4, "little") + bytes([flags]) + b"\1\0\0\0"
    if parameters:
        body += bytes((parameters + 7) // 8) + (b"\0" if types is None else b"\1" + types) + values
    return command(c.COM_STMT_EXECUTE, body)


def on_statement(code: int, statement: int, body: bytes = b"") -> bytes:
    return command(code, statement.to_bytes(4, "little") + body)


def fetch_rows(statement: int, rows: int = 1) -> bytes:
    return on_statement(c.COM_STMT_FETCH, statement, rows.to_bytes(4, "little"))


PING = command(c.COM_PING)
QUIT = command(c.COM_QUIT)
RESET = command(c.COM_RESET_CONNECTION)


# --- what servers send ---


def numbered(payloads: list[bytes], first: int = 1) -> bytes:
    """Packets with rising sequence ids."""
    return b"".join(packet(payload, first + index) for index, payload in enumerate(payloads))


def ok_payload(status: int = AUTOCOMMIT, *, header: int = c.OK, affected: int = 0, info: bytes = b"") -> bytes:
    return bytes([header]) + lenenc(affected) + lenenc(0) + status.to_bytes(2, "little") + b"\0\0" + info


def told_payload(*entries: tuple[int, bytes], status: int = AUTOCOMMIT, header: int = c.OK, info: bytes = b"") -> bytes:
    """An OK that tells of changes: kind and body of each."""
    told = b"".join(bytes([kind]) + lenenc_bytes(body) for kind, body in entries)
    return ok_payload(
        status | c.SERVER_SESSION_STATE_CHANGED, header=header, info=lenenc_bytes(info) + lenenc_bytes(told)
    )


def eof_payload(status: int = AUTOCOMMIT) -> bytes:
    return b"\xfe\0\0" + status.to_bytes(2, "little")


def err_payload(code: int = 1064) -> bytes:
    return build_err(code, "42000", "no")


def column_payload(name: bytes = b"a", kind: int = 253) -> bytes:
    names = (b"def", b"", b"", b"", name, name)
    return b"".join(lenenc_bytes(part) for part in names) + b"\x0c" + b"\x2d\0" + bytes(4) + bytes([kind]) + bytes(5)


def row_payload(*values: bytes | None) -> bytes:
    return b"".join(b"\xfb" if value is None else lenenc_bytes(value) for value in values)


def prepared_payload(statement: int, *, columns: int = 0, parameters: int = 0) -> bytes:
    return (
        b"\0"
        + statement.to_bytes(4, "little")
        + columns.to_bytes(2, "little")
        + parameters.to_bytes(2, "little")
        + b"\0\0\0"
    )


class Speech:
    """Answers of a server that has CLIENT_DEPRECATE_EOF or not."""

    def __init__(self, *, deprecates_eof: bool) -> None:
        self.deprecates_eof = deprecates_eof

    def end(self, status: int = AUTOCOMMIT) -> bytes:
        return ok_payload(status, header=c.EOF) if self.deprecates_eof else eof_payload(status)

    def between(self, status: int = AUTOCOMMIT) -> list[bytes]:
        return [] if self.deprecates_eof else [eof_payload(status)]

    def result(self, rows: int = 1, columns: int = 1, status: int = AUTOCOMMIT) -> list[bytes]:
        return [
            lenenc(columns),
            *[column_payload()] * columns,
            *self.between(status),
            *[row_payload(*[b"x"] * columns)] * rows,
            self.end(status),
        ]

    def charsets(self, *names: bytes | None) -> list[bytes]:
        """What a login asks for."""
        columns = [column_payload()] * len(names)
        return [lenenc(len(names)), *columns, *self.between(), row_payload(*names), self.end()]

    def opened_cursor(self) -> list[bytes]:
        return [lenenc(1), column_payload(), self.end(AUTOCOMMIT | CURSOR)]

    def prepared(self, statement: int, *, columns: int = 0, parameters: int = 0) -> list[bytes]:
        payloads = [prepared_payload(statement, columns=columns, parameters=parameters)]
        for count in (parameters, columns):
            if count:
                payloads += [*[column_payload()] * count, *self.between()]
        return payloads


def split(stream: bytes) -> list[bytes]:
    """Whole packets of a stream."""
    packets = []
    while stream:
        size = int.from_bytes(stream[:3], "little") + 4
        assert len(stream) >= size, "the stream ends inside of a packet"
        packets.append(stream[:size])
        stream = stream[size:]
    return packets


class Relay:
    """One session. `to_server` and `to_client` collect what passed."""

    def __init__(
        self,
        *,
        deprecates_eof: bool = False,
        more: int = 0,
        shares: bool = False,
        is_linked: bool = True,
        facts: BackendFacts = FACTS,
        ledger: MysqlLedger | None = None,
    ) -> None:
        if ledger is None:
            ledger = MysqlLedger(startup(deprecates_eof=deprecates_eof, more=more))
        self.ledger = ledger
        tracker: Tracker = WIRE.tracker(ledger, shares_backends=shares)
        assert isinstance(tracker, MysqlTracker)
        self.tracker: MysqlTracker = tracker
        self.speech = Speech(deprecates_eof=bool(ledger.startup.capabilities & c.CLIENT_DEPRECATE_EOF))
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.notes: dict[str, Any] = {}
        self.is_linked = False
        self._client = _Side()
        self._server = _Side()
        self.fetches = 0
        """Messages that were assembled, in both directions."""
        if is_linked:
            self.link(facts)
        else:
            self.tracker.gate = GATE_CLOSED

    def link(self, facts: BackendFacts = FACTS, notes: dict[str, Any] | None = None) -> None:
        self.notes = {} if notes is None else notes
        assert self.tracker.link(facts, self.notes) == b""
        self.is_linked = True
        self.tracker.gate = GATE_OPEN

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
            self._run(self._client, self.tracker.scan_client, self.tracker.take_client, self._send_server)
        return bytes(self.to_server[before:])

    def go_on(self) -> bytes:
        """The gate may have opened."""
        return self.client(b"")

    def server(self, *chunks: bytes) -> bytes:
        """The server sends; returns what reached the client because of it."""
        before = len(self.to_client)
        for chunk in chunks:
            self._server.kept += chunk
            self._run(self._server, self.tracker.scan_server, self.tracker.take_server, self._send_client)
        if self.tracker.gate != GATE_OPEN and self._client.kept:
            self.go_on()
        return bytes(self.to_client[before:])

    def answer(self, payloads: list[bytes], first: int = 1) -> bytes:
        return self.server(numbered(payloads, first))

    def ask(self, request: bytes, payloads: list[bytes]) -> None:
        """One whole request and its answer, which must pass unchanged."""
        assert self.client(request) == request
        answer = numbered(payloads, 1)
        assert self.server(answer) == answer

    def _send_server(self, data: bytes) -> None:
        assert self.is_linked or not data, "bytes for a server that is not there"
        self.to_server += data

    def _send_client(self, data: bytes) -> None:
        self.to_client += data

    def _invent(self) -> None:
        if self.tracker.has_invented:
            self.to_client += self.tracker.take_invented()

    def _run(
        self,
        side: _Side,
        scan: Callable[[bytes, int, int], int],
        take: Callable[[bytes], bytes],
        send: Callable[[bytes], None],
    ) -> None:
        tracker = self.tracker
        while True:
            if side.skip:
                side.drop()
                if side.skip:
                    return
            if side.fetch:
                if len(side.kept) < side.fetch:
                    return
                self.fetches += 1
                send(take(side.take(side.fetch)))
                side.fetch = 0
                self._invent()
            data = bytes(side.kept)
            verdict = scan(data, 0, len(data))
            stop = tracker.stop
            assert 0 <= stop <= len(data)
            send(side.take(stop))
            if verdict == FORWARD:
                assert len(side.kept) <= CARRY_BYTES_MAX, "an incomplete header is short"
                return
            if verdict == GATE:
                assert side is self._client
                assert tracker.gate != GATE_OPEN, "an open gate lets pass"
                return
            if verdict == INVENT:
                assert side is self._server
                self.to_client += tracker.take_invented()
                continue
            assert tracker.message_size >= 1
            if verdict == EDIT:
                edited = bytes(tracker.edited[: tracker.edited_size])
                assert len(side.take(tracker.message_size)) == tracker.message_size, "all of it is in the chunk"
                send(edited)
                self._invent()
                if not side.kept:
                    return
                continue
            if verdict == FETCH:
                side.fetch = tracker.message_size
            else:
                assert verdict == SWALLOW
                side.skip = tracker.message_size
                self._invent()


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
