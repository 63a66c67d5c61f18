"""Answers that name connections get the ids that clients know, in passing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.codes import GATE_OPEN
from protocols.mysql import constants as c
from protocols.mysql.connection_ids import parse_ids_wanted
from protocols.mysql.messages import command, lenenc
from protocols.wire import OWN_ID, IdsWanted
from tests.protocols.mysql.relay import (
    FACTS,
    PING,
    Relay,
    column_payload,
    execute,
    numbered,
    ok_payload,
    prepare,
    query,
    row_payload,
)

ID = OWN_ID | 5
KNOWN = {7: ID, 12345678: OWN_ID | 6}
LIST, OWN = IdsWanted(is_list=True), IdsWanted(is_list=False)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("show processlist", LIST),
        ("SHOW FULL PROCESSLIST;", LIST),
        (" /* who */ Show\tFull -- all\n Processlist ", LIST),
        ("select connection_id()", OWN),
        ("SELECT CONNECTION_ID ( ) AS `it` ;", OWN),
        ("select connection_id() as it", OWN),
        ("/*a*/" * 190 + "show processlist", LIST),
        ("/*a*/" * 190 + "show processes", None),
        ("show processlist; select 1", None),
        ("show processlist" + " " * 2_000, None),
        ("show variables", None),
        ("select connection_id() + 1", None),
        ("select connection_id(), 1", None),
        ("select 1, connection_id()", None),
        ("select connection_id() from t", None),
        ("select * from information_schema.processlist", None),
    ],
)
def test_a_statement_is_read_where_ids_stand_first(text: str, wanted: IdsWanted | None) -> None:
    assert parse_ids_wanted(text.encode()) == wanted


@given(st.binary(max_size=60))
def test_any_text_is_read_without_a_fault(text: bytes) -> None:
    parse_ids_wanted(b"SHOW " + text)
    parse_ids_wanted(b"SELECT CONNECTION_ID " + text)


REQUESTS = {
    "list": (query("show processlist"), LIST),
    "full list": (query("/* x */ show full processlist"), LIST),
    "own": (query("select connection_id()"), OWN),
    "command": (command(c.COM_PROCESS_INFO), LIST),
}


def _rows(relay: Relay, *rows: bytes, columns: int = 2) -> bytes:
    """The answer that has them."""
    speech = relay.speech
    return numbered([lenenc(columns), *[column_payload()] * columns, *speech.between(), *rows, speech.end()])


def _asked(request: bytes, wanted: IdsWanted, relay: Relay) -> None:
    """The client has sent it, the session has told, the server has it."""
    assert relay.client(request) == b""
    assert relay.tracker.wants_ids() == wanted
    relay.tracker.answer_ids(KNOWN)
    assert relay.tracker.wants_ids() is None
    relay.tracker.gate = GATE_OPEN
    assert relay.go_on() == request


@pytest.mark.parametrize("deprecates_eof", [False, True])
@pytest.mark.parametrize("form", REQUESTS)
def test_ids_are_replaced_where_they_begin_a_row(form: str, deprecates_eof: bool) -> None:
    """field-notes: KILL [QUERY] id, CONNECTION_ID()"""
    relay = Relay(deprecates_eof=deprecates_eof)
    _asked(*REQUESTS[form], relay)
    rows = (b"7", b"8", b"12345678", None, b"x7", b"", b"00000000000000000007", b"7")
    sent = _rows(relay, *(row_payload(one, b"7") for one in rows))
    known = (b"%d" % ID, b"8", b"%d" % (OWN_ID | 6), None, b"x7", b"", b"00000000000000000007", b"%d" % ID)
    assert relay.server(sent) == _rows(relay, *(row_payload(one, b"7") for one in known))
    assert relay.tracker.at_boundary()
    relay.ask(PING, [ok_payload()])


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_row_may_come_in_pieces(step: int) -> None:
    relay = Relay()
    _asked(query("show processlist"), LIST, relay)
    sent = _rows(relay, row_payload(b"7", b"y" * 300), row_payload(b"8", None), row_payload(b"12345678", b"z"))
    for at in range(0, len(sent), step):
        relay.server(sent[at : at + step])
    known = (row_payload(b"%d" % ID, b"y" * 300), row_payload(b"8", None), row_payload(b"%d" % (OWN_ID | 6), b"z"))
    assert relay.to_client == _rows(relay, *known)


def test_each_one_asks_anew() -> None:
    relay = Relay()
    for _ in range(2):
        _asked(query("show processlist"), LIST, relay)
        relay.server(_rows(relay, row_payload(b"7"), columns=1))
    answer = [lenenc(1), column_payload(), *relay.speech.between(), row_payload(b"7"), relay.speech.end()]
    relay.ask(query("select n from t"), answer)


def test_another_backend_s_ids_are_asked_for_again() -> None:
    relay = Relay()
    relay.client(query("show processlist"))
    relay.tracker.answer_ids(KNOWN)
    relay.unlink()
    relay.link(FACTS)
    assert relay.go_on() == b""
    assert relay.tracker.wants_ids() == LIST


def test_what_is_behind_it_waits_and_what_is_before_goes_on() -> None:
    relay = Relay()
    first, second, third = query("select 1"), query("show processlist"), query("select 2")
    assert relay.client(first + second + third) == first
    relay.tracker.answer_ids(KNOWN)
    relay.tracker.gate = GATE_OPEN
    assert relay.go_on() == second + third
    answers = [numbered(relay.speech.result()), _rows(relay, row_payload(b"7"), columns=1)]
    assert relay.server(answers[0]) == answers[0]
    assert relay.server(answers[1]) == _rows(relay, row_payload(b"%d" % ID), columns=1)
    assert relay.server(answers[0]) == answers[0]


def test_an_error_is_told_as_it_is() -> None:
    relay = Relay()
    _asked(query("show processlist"), LIST, relay)
    error = numbered([b"\xff\xcb\x04#42000denied"])
    assert relay.server(error) == error


def test_a_prepared_one_is_answered_by_the_server_alone() -> None:
    relay = Relay()
    relay.ask(prepare("select connection_id()"), relay.speech.prepared(1, columns=1))
    relay.ask(execute(1), relay.speech.result())
