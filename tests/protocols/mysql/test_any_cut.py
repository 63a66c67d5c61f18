"""The same bytes in other cuts give the same bytes out and the same state; garbage gives a violation and nothing else."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolViolation
from protocols.mysql import constants as c
from protocols.mysql.messages import command, lenenc, lenenc_bytes, packet
from tests.protocols.mysql.relay import (
    AUTOCOMMIT,
    CURSOR,
    IN_TRANS,
    LAST_ROW,
    MORE,
    PING,
    TRACKING_FACTS,
    Relay,
    Speech,
    column_payload,
    eof_payload,
    err_payload,
    execute,
    fetch_rows,
    numbered,
    ok_payload,
    on_statement,
    prepare,
    query,
    row_payload,
    told_payload,
)


@dataclass(frozen=True)
class Turn:
    """What a client sends at once, and what the server then answers."""

    request: bytes
    answer: bytes


def turns(speech: Speech) -> list[Turn]:
    """A bit of everything; each turn may follow each other one."""
    rows = [lenenc(2), column_payload(), column_payload(b"b"), *speech.between()]
    rows += [row_payload(b"x" * size, None) for size in (0, 1, 250, 300)]
    types = b"\x08\0\xfd\0"
    many = b"".join(bytes([number % 200, 0]) for number in range(200))
    unknown = command(0x66, b"abc")
    tells = eof_payload(AUTOCOMMIT | c.SERVER_SESSION_STATE_CHANGED)
    if speech.deprecates_eof:
        tells = told_payload((5, b"\x08_______L"), (4, b"\0"), header=c.EOF)
    return [
        Turn(PING, numbered([ok_payload(affected=70_000, info=b"x" * 30)])),
        Turn(query("select a, b from t"), numbered([*rows, speech.end()])),
        Turn(query("select a, b from t"), numbered([*rows, err_payload()])),
        Turn(query("begin"), numbered([ok_payload(IN_TRANS)])),
        Turn(query("commit"), numbered([ok_payload()])),
        Turn(query("set @a = 'x'"), numbered([ok_payload()])),
        Turn(query("select 'it''s', \"a;b\" -- c\n, @@version"), numbered([*rows, speech.end(IN_TRANS)])),
        Turn(query("lock tables t write"), numbered([ok_payload()])),
        Turn(query("insert into t values('" + "y" * 5_000 + "')"), numbered([ok_payload()])),
        Turn(query("set @b = '" + "z" * 70_000 + "'"), numbered([ok_payload()])),
        Turn(query("call p()"), numbered([*rows, speech.end(AUTOCOMMIT | MORE), ok_payload()])),
        Turn(query("call p()"), numbered([err_payload()])),
        Turn(
            prepare("select ?, ?") + prepare("set @c = ?"),
            numbered(speech.prepared(1, columns=2, parameters=2)) + numbered(speech.prepared(2, parameters=1)),
        ),
        Turn(execute(1, parameters=2, types=types, values=b"v" * 20), numbered([*rows, speech.end()])),
        Turn(execute(1, parameters=2, values=b"v" * 20), numbered([*rows, speech.end()])),
        Turn(execute(2, parameters=1, types=b"\x08\0", values=b"v" * 8), numbered([ok_payload()])),
        Turn(prepare("select ?" + ", ?" * 199), numbered(speech.prepared(3, columns=1, parameters=200))),
        Turn(execute(3, parameters=200, types=many, values=b"v" * 900), numbered([ok_payload()])),
        Turn(on_statement(c.COM_STMT_SEND_LONG_DATA, 1, b"\0\0" + b"l" * 500) + PING, numbered([ok_payload()])),
        Turn(on_statement(c.COM_STMT_CLOSE, 2) + PING, numbered([ok_payload()])),
        Turn(on_statement(c.COM_STMT_RESET, 1), numbered([ok_payload()])),
        Turn(execute(1, parameters=2, flags=1), numbered([lenenc(1), column_payload(), speech.end(AUTOCOMMIT | CURSOR)])),
        Turn(fetch_rows(1), numbered([row_payload(b"r"), speech.end(AUTOCOMMIT | LAST_ROW)])),
        Turn(unknown + PING + unknown + unknown, numbered([ok_payload(info=b"y" * 40)])),
        Turn(PING * 3 + query("select 1"), numbered([ok_payload()]) * 3 + numbered([*rows, speech.end()])),
        Turn(command(c.COM_INIT_DB, b"other"), numbered([ok_payload()])),
        Turn(command(c.COM_STATISTICS), numbered([b"Uptime"])),
        Turn(command(c.COM_FIELD_LIST, b"t\0"), numbered([column_payload(), speech.end()])),
        Turn(command(c.COM_SET_OPTION, b"\1\0"), numbered([speech.end()])),
        Turn(command(c.COM_RESET_CONNECTION), numbered([ok_payload()])),
        Turn(query("call tells()"), numbered([told_payload((2, b"1"), (1, lenenc_bytes(b"other")), info=b"told")])),
        Turn(query("select tells()"), numbered([*rows, tells])),
        Turn(query("insert into t values (1), (2)"), numbered([b"\0\2\xfc\1\1\2\0\0\0"])),
        Turn(query("select last_insert_id(), found_rows()"), numbered([*rows, speech.end()])),
    ]  # fmt: skip


def state(relay: Relay) -> tuple[object, ...]:
    tracker, ledger = relay.tracker, relay.ledger
    return (
        tracker._phase, tracker.requests, tracker.transactions, tracker.errors, tracker.at_boundary(),
        tracker.is_idle(), tracker.next_sequence(), ledger.is_dirty, ledger.version, ledger.pins, ledger.database,
        [(one.client_id, one.text, one.types) for one in ledger.statements.values()], relay.notes,
    )  # fmt: skip


def cut(data: bytes, marks: list[int]) -> list[bytes]:
    edges = sorted({mark % (len(data) + 1) for mark in marks} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


MARKS = st.lists(st.integers(0, 100_000), max_size=8)
PLAN = st.lists(st.tuples(st.integers(0, 33), MARKS, MARKS), min_size=1, max_size=12)


def relay_after_switch(*, deprecates_eof: bool, is_switched: bool) -> Relay:
    relay = Relay(deprecates_eof=deprecates_eof, facts=TRACKING_FACTS)
    if is_switched:
        # Another backend, on which everything has another id.
        speech = relay.speech
        relay.ask(prepare("select ?, ?"), speech.prepared(1, columns=2, parameters=2))
        relay.ask(execute(1, parameters=2, types=b"\x08\0\x08\0", values=b"v" * 16), [ok_payload()])
        relay.unlink()
        relay.link(notes={"statement_ids": {1: 7}, "types_due": {1}})
    return relay


@given(plan=PLAN, deprecates_eof=st.booleans(), is_switched=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_cut_gives_the_same_bytes_and_the_same_state(
    plan: list[tuple[int, list[int], list[int]]], deprecates_eof: bool, is_switched: bool
) -> None:
    whole = relay_after_switch(deprecates_eof=deprecates_eof, is_switched=is_switched)
    pieces = relay_after_switch(deprecates_eof=deprecates_eof, is_switched=is_switched)
    every = turns(whole.speech)
    for index, client_marks, server_marks in plan:
        turn = every[index]
        whole.client(turn.request)
        pieces.client(*cut(turn.request, client_marks))
        assert state(whole) == state(pieces)
        whole.server(turn.answer)
        pieces.server(*cut(turn.answer, server_marks))
        assert state(whole) == state(pieces)
        assert whole.to_server == pieces.to_server
        assert whole.to_client == pieces.to_client
    assert whole.tracker.is_idle()


@given(index=st.integers(0, 33), deprecates_eof=st.booleans(), is_switched=st.booleans())
@settings(max_examples=60, deadline=None)
def test_byte_by_byte_is_a_cut_too(index: int, deprecates_eof: bool, is_switched: bool) -> None:
    whole = relay_after_switch(deprecates_eof=deprecates_eof, is_switched=is_switched)
    pieces = relay_after_switch(deprecates_eof=deprecates_eof, is_switched=is_switched)
    turn = turns(whole.speech)[index]
    if len(turn.request) > 6_000:
        return
    whole.client(turn.request)
    whole.server(turn.answer)
    pieces.client(*[turn.request[at : at + 1] for at in range(len(turn.request))])
    pieces.server(*[turn.answer[at : at + 1] for at in range(len(turn.answer))])
    assert state(whole) == state(pieces)
    assert (whole.to_server, whole.to_client) == (pieces.to_server, pieces.to_client)


def nasty_packets() -> st.SearchStrategy[bytes]:
    payloads = st.one_of(
        st.binary(max_size=40),
        st.builds(
            lambda first, rest: bytes([first]) + rest, st.sampled_from([0, 1, 0xFB, 0xFE, 0xFF]), st.binary(max_size=30)
        ),
        st.builds(lambda code, rest: bytes([code]) + rest, st.sampled_from(list(range(0x20))), st.binary(max_size=30)),
    )
    return st.builds(packet, payloads, st.integers(0, 3))


@given(
    requests=st.lists(st.one_of(nasty_packets(), st.binary(max_size=30)), max_size=6),
    answers=st.lists(st.one_of(nasty_packets(), st.binary(max_size=30)), max_size=6),
    begun=st.lists(st.integers(0, 33), max_size=3),
    deprecates_eof=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_garbage_gives_a_violation_and_nothing_else(
    requests: list[bytes], answers: list[bytes], begun: list[int], deprecates_eof: bool
) -> None:
    relay = Relay(deprecates_eof=deprecates_eof, more=c.CLIENT_LOCAL_FILES)
    every = turns(relay.speech)
    for index in begun:
        relay.client(every[index].request)
    try:
        for number in range(max(len(requests), len(answers))):
            relay.server(*answers[number : number + 1])
            relay.client(*requests[number : number + 1])
    except ProtocolViolation:
        return
