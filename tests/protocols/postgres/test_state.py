"""Tables, pair by pair: what is declared happens, everything else is a violation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protocols.errors import ProtocolViolation
from protocols.postgres import constants
from protocols.postgres.messages import build
from protocols.postgres.state import CLIENT, SERVER, Awaited, Move, Sent
from tests.protocols.postgres.relay import CALL, SYNC, Relay, bind, close, describe, execute, parse, query

REQUESTS = {
    Awaited.NOTHING: b"",
    Awaited.PARSE: parse("a"),
    Awaited.BIND: bind("a"),
    Awaited.DESCRIBE: describe("a"),
    Awaited.EXECUTE: execute(),
    Awaited.CLOSE: close("a"),
    Awaited.SYNC: SYNC,
    Awaited.QUERY: query("select 1"),
    Awaited.CALL: CALL,
}
BODIES = {"Z": b"I", "S": b"name\0value\0", "E": b"SERROR\0\0", "C": b"SELECT 1\0"}
EXTENDED = frozenset({Awaited.PARSE, Awaited.BIND, Awaited.DESCRIBE, Awaited.EXECUTE, Awaited.CLOSE})


@pytest.mark.parametrize("awaited", Awaited)
def test_each_message_of_a_server_is_declared_or_refused(awaited: Awaited) -> None:
    for code in range(256):
        tag = chr(code)
        relay = Relay()
        relay.client(REQUESTS[awaited])
        message = build(bytes([code]), BODIES.get(tag, b""))
        move = SERVER.get((tag, awaited))
        if move is None:
            with pytest.raises(ProtocolViolation) as caught:
                relay.server(message)
            assert caught.value.peer == "server"
            continue
        assert relay.server(message) == message
        is_answered = (
            move in (Move.ANSWER, Move.READY)
            or (move is Move.COMPLETE and awaited is Awaited.EXECUTE)
            or awaited is Awaited.NOTHING
        )
        skips = move is Move.FAIL and awaited in EXTENDED
        assert relay.tracker.is_idle() == (is_answered and not skips)
        assert relay.tracker.requests == (move is Move.READY)
        assert relay.tracker.errors == (move is Move.FAIL)
        if skips:
            relay.client(SYNC)
            relay.server(build(b"Z", b"I"))
            assert relay.tracker.at_boundary()


def test_each_message_of_a_client_is_declared_or_refused() -> None:
    for code in range(256):
        tag = chr(code)
        relay = Relay()
        message = REQUESTS.get(Awaited(CLIENT[tag]), b"") if tag in CLIENT and CLIENT[tag] < 9 else build(bytes([code]))
        if tag not in CLIENT:
            with pytest.raises(ProtocolViolation) as caught:
                relay.client(message)
            assert caught.value.peer == "client"
        elif CLIENT[tag] is Sent.LEAVE:
            assert relay.client(message) == b""
            assert relay.tracker.client_left
        else:
            assert relay.client(message) == message
            assert relay.tracker.is_idle() == (CLIENT[tag] in (Sent.PASS, Sent.COPY_END))


def test_the_compiled_numbers_are_those_of_the_readable_run() -> None:
    folder = Path(constants.__file__).parent
    declared = re.findall(r"^    ([A-Z_]+) = (0x[0-9a-f]+|\d+)$", (folder / "tracker.pxd").read_text(), re.MULTILINE)
    assert len(declared) > 25
    assert {name: int(value, 0) for name, value in declared} == {name: getattr(constants, name) for name, _ in declared}
