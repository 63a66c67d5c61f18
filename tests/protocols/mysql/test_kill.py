"""KILL waits at the gate until the session has said whom it means, in each of its forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.codes import FORWARD, GATE, GATE_CLOSED, GATE_OPEN, SWALLOW
from protocols.mysql import constants as c
from protocols.mysql.kill import parse_kill
from protocols.mysql.messages import build_ok, command, packet
from protocols.wire import OWN_ID, KillWanted
from tests.protocols.mysql.relay import Relay, execute, ok_payload, prepare, prepared_payload, query

ID = OWN_ID | 5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"KILL {ID}", KillWanted(ID, False)),
        (f"kill query {ID};", KillWanted(ID, True)),
        (f" /* who */ Kill\tCONNECTION {ID} ", KillWanted(ID, False)),
        (f"KILL HARD QUERY {ID}", KillWanted(ID, True)),
        (f"KILL SOFT {ID} -- now\n", KillWanted(ID, False)),
        ("KILL 7", KillWanted(7, False)),
        ("KILL USER app", None),
        ("KILL QUERY ID 7", None),
        ("KILL ?", None),
        ("KILL 99999999999", None),
        (f"KILL {ID}; select 1", None),
        (f"KILL {ID}" + " " * 2_000, None),
        (f"KILL /*!50000 QUERY */ {ID}", None),
        ("/*a*/" * 190 + f"KILL {ID}", KillWanted(ID, False)),
        ("/*a*/" * 190 + "KILL x", None),
        (f"/**/KILL/**/{ID}/**/", KillWanted(ID, False)),
    ],
)
def test_a_kill_is_read_where_it_is_one_number(text: str, wanted: KillWanted | None) -> None:
    assert parse_kill(text.encode()) == wanted


@given(st.binary(max_size=60))
def test_any_text_is_read_without_a_fault(text: bytes) -> None:
    parse_kill(b"KILL " + text)


def prepared() -> Relay:
    relay = Relay()
    relay.client(prepare(f"KILL QUERY {ID}"))
    relay.answer([prepared_payload(1)])
    return relay


FORMS = {
    "text": (Relay, query(f"KILL QUERY {ID}"), True),
    "command": (Relay, command(c.COM_PROCESS_KILL, ID.to_bytes(4, "little")), False),
    "prepared": (prepared, execute(1), True),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_kill_waits_for_the_session_and_is_answered_in_its_place(form: str) -> None:
    """field-notes: KILL [QUERY] id, CONNECTION_ID()"""
    make, request, is_query = FORMS[form]
    tracker = make().tracker
    for cut in range(4, len(request)):
        assert tracker.scan_client(request, 0, cut) == FORWARD
        assert tracker.stop == 0
    assert tracker.scan_client(request, 0, len(request)) == GATE
    assert (tracker.stop, tracker.gate) == (0, GATE_CLOSED)
    assert tracker.wants_kill() == KillWanted(ID, is_query)
    tracker.answer_kill(build_ok(2))
    tracker.gate = GATE_OPEN
    assert tracker.scan_client(request, 0, len(request)) == SWALLOW
    assert tracker.message_size == len(request)
    assert tracker.has_invented
    assert tracker.take_invented() == packet(build_ok(2), 1)
    assert tracker.at_boundary()
    assert tracker.errors == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_kill_that_is_nobody_s_goes_to_the_server_as_it_is(form: str) -> None:
    make, request, _ = FORMS[form]
    relay = make()
    assert relay.tracker.scan_client(request, 0, len(request)) == GATE
    relay.tracker.answer_kill(None)
    relay.tracker.gate = GATE_OPEN
    assert relay.tracker.scan_client(request, 0, len(request)) == FORWARD
    assert relay.tracker.stop == len(request)
    answer = packet(ok_payload(), 1)
    assert relay.tracker.scan_server(answer, 0, len(answer)) == FORWARD
    assert relay.tracker.at_boundary()
    assert relay.tracker.scan_client(request, 0, len(request)) == GATE, "the next one asks again"


def test_a_kill_behind_other_commands_is_answered_behind_them() -> None:
    tracker = Relay().tracker
    both = query("select 1") + query(f"KILL {ID}")
    first = len(query("select 1"))
    assert tracker.scan_client(both, 0, len(both)) == GATE
    assert tracker.stop == first
    tracker.answer_kill(build_ok(2))
    tracker.gate = GATE_OPEN
    assert tracker.scan_client(both, first, len(both)) == SWALLOW
    assert not tracker.has_invented
    answer = packet(ok_payload(), 1)
    tracker.scan_server(answer, 0, len(answer))
    assert tracker.has_invented


def test_a_kill_that_is_too_long_to_wait_before_the_gate_waits_behind_it() -> None:
    relay = Relay()
    tracker = relay.tracker
    request = query(f"/* {'x' * 80} */ KILL {ID}") + query("select 1")
    for at in range(len(request)):
        assert relay.client(request[at : at + 1]) == b""
    assert tracker.wants_kill() == KillWanted(ID, False)
    assert tracker.gate == GATE_CLOSED
    assert not tracker.has_invented
    tracker.answer_kill(build_ok(2))
    assert tracker.take_invented() == packet(build_ok(2), 1)
    assert tracker.wants_kill() is None
    tracker.gate = GATE_OPEN
    assert relay.go_on() == query("select 1")
