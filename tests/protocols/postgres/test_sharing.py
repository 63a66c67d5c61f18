"""Prepared statements in transaction mode: renamed, shared, provided, evicted; answers invented in their place."""

from __future__ import annotations

import pytest

from protocols.codes import FORWARD, INVENT
from protocols.errors import ProtocolViolation
from protocols.postgres import statements
from protocols.postgres.statements import NOWHERE, OnBackend, shared, unshared
from tests.protocols.postgres.relay import (
    BOUND,
    CLOSED,
    NO_DATA,
    NOTICE,
    PARAMETER_DESCRIPTION,
    PARSED,
    ROW,
    ROW_DESCRIPTION,
    SYNC,
    Relay,
    bind,
    close,
    describe,
    done,
    execute,
    failed,
    parse,
    query,
    ready,
    split,
    tags,
)


def body(text: str) -> bytes:
    return parse("", text)[6:]


def own(text: str) -> str:
    """The name of the shared statement with this text, which a session must be using."""
    return shared(body(text)).name.decode()


def prepare(relay: Relay, name: str, text: str) -> bytes:
    """Parse and Sync, with the answers a server gives to what reaches it; returns what reached it."""
    reached = relay.client(parse(name, text) + SYNC)
    for tag in tags(reached):
        relay.server({"P": PARSED, "C": CLOSED, "S": ready()}[tag])
    assert relay.tracker.at_boundary()
    return reached


def test_a_statement_gets_a_name_of_ours() -> None:
    relay = Relay(shares=True)
    reached = prepare(relay, "a", "select 41")
    assert reached == parse(own("select 41"), "select 41") + SYNC
    assert relay.client(bind("a") + execute() + SYNC) == bind(own("select 41")) + execute() + SYNC
    assert relay.client(describe("a")) == describe(own("select 41"))
    assert relay.ledger.is_empty, "the session needs no backend of its own for it"


def test_the_same_text_is_sent_to_a_backend_once() -> None:
    notes = Relay(shares=True).notes
    one, two = Relay(shares=True), Relay(shares=True)
    one.link(notes=notes)
    two.link(notes=notes)
    prepare(one, "a", "select 42")
    two.client(parse("b", "select 42"))
    assert two.take_client() == PARSED, "invented at once: nothing else is due"
    assert two.client(SYNC) == SYNC


def test_other_parameter_types_make_another_statement() -> None:
    assert shared(b"select $1\0\0\1\0\0\0\x17").name != shared(b"select $1\0\0\0").name


def test_invented_answers_keep_their_place_among_the_real_ones() -> None:
    relay = Relay(shares=True)
    prepare(relay, "known", "select 43")
    prepare(relay, "known too", "select 44")
    reached = relay.client(
        bind("known")
        + parse("x", "select 44")
        + describe("x")
        + parse("y", "select 43")
        + close("x")
        + execute()
        + SYNC
    )
    assert tags(reached) == "BDES"
    assert relay.take_client() == b"" or relay.to_client == b""
    told = relay.server(BOUND + PARAMETER_DESCRIPTION + NO_DATA + ROW + done() + ready())
    assert tags(told) == "21tn13DCZ"


def test_an_invented_answer_waits_for_the_end_of_the_message_before_it() -> None:
    relay = Relay(shares=True)
    prepare(relay, "a", "select 45")
    relay.client(describe("a") + parse("b", "select 45") + SYNC)
    told = b""
    for byte in PARAMETER_DESCRIPTION + ROW_DESCRIPTION + NOTICE + ready():
        told += relay.server(bytes([byte]))
    assert tags(told) == "tT1NZ"


def test_an_invented_answer_is_due_even_at_the_end_of_a_chunk() -> None:
    relay = Relay(shares=True)
    prepare(relay, "a", "select 46")
    relay.client(describe("a", "P") + parse("b", "select 46"))
    assert relay.tracker.scan_server(NO_DATA, 0, 5) == INVENT
    assert relay.tracker.stop == 5
    assert relay.tracker.take_invented() == PARSED
    assert relay.tracker.scan_server(b"", 0, 0) == FORWARD


def test_an_error_skips_invented_answers_too() -> None:
    relay = Relay(shares=True)
    prepare(relay, "a", "select 47")
    relay.client(bind("none") + parse("b", "select 47") + close("a") + SYNC)
    assert tags(relay.server(failed() + ready())) == "EZ"
    assert relay.client(bind("b")) == bind("b"), "the name was not given"
    assert relay.client(bind("a")) == bind(own("select 47")), "and the other one not closed"


def test_a_statement_missing_on_the_backend_is_provided() -> None:
    relay = Relay(shares=True)
    prepare(relay, "a", "select 48")
    relay.link()
    name = own("select 48")
    assert relay.client(bind("a") + execute() + SYNC) == parse(name, "select 48") + bind(name) + execute() + SYNC
    assert relay.server(PARSED + BOUND + ROW + done() + ready()) == BOUND + ROW + done() + ready()
    assert relay.client(describe("a") + SYNC) == describe(name) + SYNC


def test_a_provided_statement_that_fails_fails_for_the_client() -> None:
    relay = Relay(shares=True)
    prepare(relay, "a", "select 49")
    relay.link()
    relay.client(bind("a") + execute() + SYNC)
    assert tags(relay.server(failed() + ready())) == "EZ"
    assert relay.tracker.at_boundary()
    assert tags(relay.client(bind("a") + SYNC)) == "PBS", "it is not on the backend"


def test_a_name_that_is_taken_is_refused_by_the_server() -> None:
    relay = Relay(shares=True)
    prepare(relay, "a", "select 50")
    reached = relay.client(parse("a", "select 51") + SYNC)
    assert reached == parse(own("select 50"), "select 51") + SYNC
    relay.server(failed("42P05") + ready())
    assert relay.client(bind("a") + SYNC) == bind(own("select 50")) + SYNC


def test_a_closed_name_is_free_and_the_backend_keeps_the_statement() -> None:
    relay = Relay(shares=True)
    prepare(relay, "a", "select 52")
    assert relay.client(close("a") + SYNC) == SYNC
    assert relay.take_client().endswith(CLOSED)
    relay.server(ready())
    assert relay.client(bind("a") + SYNC) == bind("a") + SYNC, "the server refuses it"
    relay.server(failed() + ready())
    assert prepare(relay, "a", "select 52") == SYNC


def test_nobody_reaches_anothers_statement_by_its_name() -> None:
    relay = Relay(shares=True)
    name, nowhere = own("select 53"), NOWHERE.decode()
    assert relay.client(bind(name) + describe(name) + close(name)) == bind(nowhere) + describe(nowhere) + close(nowhere)
    assert relay.client(bind("")) == close("") + bind(""), (
        "whoever used the backend before may have left an unnamed one"
    )


def test_statements_of_sql_are_called_as_they_are() -> None:
    assert Relay(shares=True).client(bind("made_by_sql")) == bind("made_by_sql")


def test_deallocate_all_drops_what_was_sent_before_it_only() -> None:
    relay = Relay(shares=True)
    prepare(relay, "a", "select 54")
    reached = relay.client(query("deallocate all") + parse("a", "select 54") + bind("a") + SYNC)
    assert tags(reached) == "QPBS", "what the backend holds now proves nothing"
    relay.server(done("DEALLOCATE ALL") + ready() + PARSED + BOUND + ready())
    assert relay.tracker.at_boundary()
    assert tags(relay.client(bind("a") + SYNC)) == "BS"


def test_the_statement_not_used_for_longest_makes_room() -> None:
    relay = Relay(shares=True, statements_max=2)
    prepare(relay, "a", "select 55")
    prepare(relay, "b", "select 56")
    relay.client(bind("a") + SYNC)
    relay.server(BOUND + ready())
    reached = relay.client(parse("c", "select 57") + SYNC)
    assert split(reached)[0] == close(own("select 56"))
    assert relay.server(CLOSED + PARSED + ready()) == PARSED + ready()
    assert tags(relay.client(bind("b") + SYNC)) == "CPBS"


def test_a_close_of_ours_that_is_skipped_did_not_happen() -> None:
    held = OnBackend()
    held.plan(b"a", True, 0)
    held.settle(b"a", True)
    held.plan(b"a", False, 1)
    assert b"a" not in held
    held.plan(b"a", True, 1)
    held.drop(b"a")
    held.drop(b"a")
    assert b"a" in held


def test_nothing_relies_on_a_statement_under_way_behind_a_sync() -> None:
    held = OnBackend()
    held.plan(b"a", True, 1)
    assert held.has(b"a", 1) is True
    assert held.has(b"a", 2) is None
    held.settle(b"a", True)
    assert held.has(b"a", 2) is True


def test_the_number_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "PER_SESSION_BYTES_MAX", 100)
    relay = Relay(shares=True)
    with pytest.raises(ProtocolViolation, match="more prepared statements"):
        for number in range(10):
            prepare(relay, f"s{number}", f"select {number:020}")


def test_closed_names_do_not_count() -> None:
    relay = Relay(shares=True)
    for number in range(3):
        prepare(relay, "a", f"select 58, {number}")
        relay.client(close("a") + SYNC)
        relay.server(ready())
    assert relay.tracker.at_boundary()


def test_statements_nobody_names_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "RECENT_MAX", 2)
    name = shared(body("select 59")).name
    assert shared(body("select 59")).name == name
    held = shared(body("select 60"))
    shared(body("select 61"))
    shared(body("select 62"))
    assert shared(body("select 59")).name != name
    assert shared(body("select 60")) is held


def test_a_statement_of_its_own_is_shared_with_nobody() -> None:
    assert unshared(body("x")).name != unshared(body("x")).name


def test_ddl_makes_every_text_new_when_it_ran_and_when_it_is_committed() -> None:
    relay, text = Relay(shares=True), "select v from remade"
    former = prepare(relay, "a", text)
    relay.client(query("begin; drop table remade"))
    relay.server(done("BEGIN") + done("DROP TABLE") + ready("T"))
    meanwhile = relay.client(parse("b", text) + SYNC)
    relay.server(PARSED + ready("T"))
    relay.client(query("commit"))
    relay.server(done("COMMIT") + ready())
    after = prepare(relay, "c", text)
    assert len({former, meanwhile, after}) == 3
    assert relay.client(parse("d", text)) == b"", "it is there now"


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("begin", [5, 6, 7])
def test_a_describe_that_no_server_would_take_is_a_violation_however_much_of_it_is_there(
    shares: bool, begin: int
) -> None:
    endless = b"D" + (1024 * 1024 + 1).to_bytes(4, "big") + b"P\0"
    with pytest.raises(ProtocolViolation, match="Describe of 1048577 bytes"):
        Relay(shares=shares).client(endless[:begin])
