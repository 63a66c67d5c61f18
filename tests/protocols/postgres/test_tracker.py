"""Conversations through the reference relay. Session mode unless said otherwise."""

from __future__ import annotations

import tracemalloc

import pytest

import protocols
from protocols.codes import EDIT, FETCH, FORWARD, GATE_CLOSED, GATE_DRAIN, GATE_OPEN
from protocols.errors import IllegalUse, ProtocolViolation
from protocols.postgres import tracker
from protocols.postgres.messages import build
from protocols.wire import BackendFacts
from tests.protocols.postgres.relay import (
    BOUND,
    CALL,
    CALLED,
    CLOSED,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    COPY_IN,
    COPY_OUT,
    EMPTY_QUERY,
    FACTS,
    FLUSH,
    NO_DATA,
    NOTICE,
    NOTIFICATION,
    PARAMETER_DESCRIPTION,
    PARSED,
    ROW,
    ROW_DESCRIPTION,
    SUSPENDED,
    SYNC,
    TERMINATE,
    Relay,
    bind,
    close,
    describe,
    done,
    execute,
    failed,
    parameter,
    parse,
    query,
    ready,
    split,
    tags,
)

EXTENDED = parse("") + bind("") + describe("", "P") + execute() + SYNC
EXTENDED_ANSWER = PARSED + BOUND + ROW_DESCRIPTION + ROW + done() + ready()


def passes_client(relay: Relay, data: bytes) -> None:
    assert relay.client(data) == data


def passes_server(relay: Relay, data: bytes) -> None:
    assert relay.server(data) == data


# --- requests and answers -----------------------------------------------------------------------------------------


def test_a_query_is_in_flight_until_its_ready_for_query() -> None:
    relay = Relay()
    assert relay.tracker.at_boundary()
    passes_client(relay, query("select 1"))
    assert not relay.tracker.at_boundary()
    passes_server(relay, ROW_DESCRIPTION + ROW + done())
    assert not relay.tracker.is_idle()
    passes_server(relay, ready())
    assert relay.tracker.at_boundary()
    assert (relay.tracker.requests, relay.tracker.transactions) == (1, 1)


def test_an_open_transaction_is_never_cut() -> None:
    relay = Relay()
    passes_client(relay, query("begin"))
    passes_server(relay, done("BEGIN") + ready("T"))
    assert relay.tracker.is_idle()
    assert not relay.tracker.at_boundary()
    passes_client(relay, query("selec"))
    passes_server(relay, failed() + ready("E"))
    assert not relay.tracker.at_boundary()
    passes_client(relay, query("rollback"))
    passes_server(relay, done("ROLLBACK") + ready())
    assert relay.tracker.at_boundary()
    assert (relay.tracker.requests, relay.tracker.transactions, relay.tracker.errors) == (3, 1, 1)


def test_each_sync_is_answered_by_one_ready_for_query() -> None:
    relay = Relay()
    passes_client(relay, EXTENDED + EXTENDED + SYNC)
    passes_server(relay, EXTENDED_ANSWER)
    assert not relay.tracker.is_idle()
    passes_server(relay, EXTENDED_ANSWER)
    assert not relay.tracker.is_idle()
    passes_server(relay, ready())
    assert relay.tracker.at_boundary()
    assert relay.tracker.requests == 3


def test_there_is_no_boundary_between_an_answer_and_a_sync_not_sent_yet() -> None:
    relay = Relay()
    passes_client(relay, parse("") + bind("") + execute() + FLUSH)
    passes_server(relay, PARSED + BOUND + done("INSERT 0 1"))
    assert relay.tracker.is_idle()
    assert not relay.tracker.at_boundary(), "the implicit transaction is open until the Sync"
    passes_client(relay, SYNC)
    passes_server(relay, ready())
    assert relay.tracker.at_boundary()


def test_a_flush_after_the_sync_keeps_nobody_from_the_boundary() -> None:
    relay = Relay()
    passes_client(relay, EXTENDED + FLUSH)
    passes_server(relay, EXTENDED_ANSWER)
    assert relay.tracker.at_boundary()


def test_a_suspended_portal_answers_its_execute() -> None:
    relay = Relay()
    passes_client(relay, bind("") + execute() + FLUSH)
    passes_server(relay, BOUND + ROW + SUSPENDED)
    assert relay.tracker.is_idle()
    assert not relay.tracker.at_boundary()
    passes_client(relay, execute() + SYNC)
    passes_server(relay, ROW + done() + ready())
    assert relay.tracker.at_boundary()


def test_a_described_statement_is_answered_twice() -> None:
    relay = Relay()
    passes_client(relay, parse("a") + describe("a") + SYNC)
    passes_server(relay, PARSED + PARAMETER_DESCRIPTION)
    passes_server(relay, NO_DATA + ready())
    assert relay.tracker.at_boundary()


def test_a_function_call_ends_with_ready_for_query() -> None:
    relay = Relay()
    passes_client(relay, CALL)
    passes_server(relay, CALLED)
    assert not relay.tracker.is_idle()
    passes_server(relay, ready())
    assert relay.tracker.at_boundary()


def test_an_empty_query_is_answered() -> None:
    relay = Relay()
    passes_client(relay, query("") + bind("") + execute() + SYNC)
    passes_server(relay, EMPTY_QUERY + ready() + BOUND + EMPTY_QUERY + ready())
    assert relay.tracker.at_boundary()


def test_notices_and_notifications_pass_at_any_time() -> None:
    relay = Relay()
    passes_server(relay, NOTICE + NOTIFICATION)
    passes_client(relay, query("select 1"))
    passes_server(relay, ROW_DESCRIPTION + NOTIFICATION + ROW + NOTICE + done() + NOTIFICATION + ready() + NOTIFICATION)
    assert relay.tracker.at_boundary()


# --- errors -------------------------------------------------------------------------------------------------------


def test_an_error_skips_to_the_next_sync() -> None:
    relay = Relay()
    passes_client(relay, EXTENDED + EXTENDED)
    passes_server(relay, PARSED + failed() + ready() + EXTENDED_ANSWER)
    assert relay.tracker.at_boundary()
    assert relay.tracker.errors == 1


def test_an_error_skips_what_the_client_sends_before_its_sync() -> None:
    relay = Relay()
    passes_client(relay, parse("") + FLUSH)
    passes_server(relay, failed())
    assert not relay.tracker.is_idle(), "the server waits for a Sync"
    passes_client(relay, bind("") + describe("") + execute() + close("x") + parse("y") + query("select 1"))
    assert not relay.tracker.is_idle()
    passes_client(relay, SYNC)
    passes_server(relay, ready())
    assert relay.tracker.at_boundary()
    assert relay.ledger.statements == {}, "the server did not look at it"


def test_a_simple_query_behind_a_failed_pipeline_is_skipped_too() -> None:
    relay = Relay()
    passes_client(relay, parse("") + query("select 1") + SYNC)
    passes_server(relay, failed() + ready())
    assert relay.tracker.at_boundary()


def test_an_error_at_the_sync_itself_is_followed_by_ready_for_query() -> None:
    relay = Relay()
    passes_client(relay, bind("") + execute() + SYNC)
    passes_server(relay, BOUND + done("INSERT 0 1") + failed("23505") + ready())
    assert relay.tracker.at_boundary()


def test_an_error_of_a_query_waits_for_its_ready_for_query() -> None:
    relay = Relay()
    passes_client(relay, query("selec") + query("select 1"))
    passes_server(relay, failed())
    assert not relay.tracker.is_idle()
    passes_server(relay, ready() + ROW_DESCRIPTION + done() + ready())
    assert relay.tracker.at_boundary()


def test_an_error_nobody_asked_for_passes() -> None:
    relay = Relay()
    passes_server(relay, failed("57P01"))
    assert relay.tracker.errors == 1


# --- COPY ---------------------------------------------------------------------------------------------------------


def test_copy_in_of_a_query() -> None:
    relay = Relay()
    passes_client(relay, query("copy t from stdin"))
    passes_server(relay, COPY_IN)
    passes_client(relay, COPY_DATA * 3 + COPY_DONE)
    passes_server(relay, done("COPY 3") + ready())
    assert relay.tracker.at_boundary()


def test_a_sync_sent_too_early_is_ignored_by_copy_in() -> None:
    """What libpq does: Sync behind Execute, and another one behind CopyDone."""
    relay = Relay()
    passes_client(relay, parse("", "copy t from stdin") + bind("") + execute() + SYNC)
    passes_server(relay, PARSED + BOUND + COPY_IN)
    passes_client(relay, COPY_DATA + COPY_DONE + SYNC)
    passes_server(relay, done("COPY 1") + ready())
    assert relay.tracker.at_boundary()
    assert relay.tracker.requests == 1


def test_syncs_amid_copy_data_are_ignored() -> None:
    relay = Relay()
    passes_client(relay, bind("") + execute() + FLUSH)
    passes_server(relay, BOUND + COPY_IN)
    passes_client(relay, COPY_DATA + SYNC + FLUSH + COPY_DATA + SYNC)
    assert not relay.tracker.is_idle()
    passes_client(relay, COPY_DONE)
    passes_server(relay, done("COPY 2"))
    assert relay.tracker.is_idle()
    assert not relay.tracker.at_boundary()
    passes_client(relay, SYNC)
    passes_server(relay, ready())
    assert relay.tracker.at_boundary()


def test_a_copy_that_is_pipelined_whole_keeps_its_last_sync() -> None:
    relay = Relay()
    passes_client(relay, bind("") + execute() + SYNC + COPY_DATA + COPY_DONE + SYNC + query("select 1"))
    passes_server(relay, BOUND + COPY_IN + done("COPY 1") + ready())
    assert not relay.tracker.is_idle()
    passes_server(relay, ROW_DESCRIPTION + done() + ready())
    assert relay.tracker.at_boundary()


def test_two_copies_in_one_query() -> None:
    relay = Relay()
    passes_client(relay, query("copy a from stdin; copy b from stdin"))
    passes_server(relay, COPY_IN)
    passes_client(relay, COPY_DATA + COPY_DONE)
    passes_server(relay, done("COPY 1") + COPY_IN)
    passes_client(relay, SYNC + COPY_DATA + COPY_DONE)
    passes_server(relay, done("COPY 1") + ready())
    assert relay.tracker.at_boundary()


@pytest.mark.parametrize("end", [COPY_DONE, COPY_FAIL])
def test_late_copy_data_after_an_error_of_a_query_are_ignored(end: bytes) -> None:
    relay = Relay()
    passes_client(relay, query("copy t from stdin"))
    passes_server(relay, COPY_IN)
    passes_client(relay, COPY_DATA)
    passes_server(relay, failed() + ready())
    passes_client(relay, COPY_DATA + end)
    assert relay.tracker.at_boundary()
    passes_client(relay, query("select 1"))
    passes_server(relay, ROW_DESCRIPTION + done() + ready())
    assert relay.tracker.at_boundary()


@pytest.mark.parametrize("end", [COPY_DONE, COPY_FAIL])
def test_late_copy_data_after_an_error_of_an_execute_are_ignored(end: bytes) -> None:
    relay = Relay()
    passes_client(relay, bind("") + execute() + SYNC)
    passes_server(relay, BOUND + COPY_IN)
    passes_client(relay, COPY_DATA)
    passes_server(relay, failed())
    assert not relay.tracker.is_idle()
    passes_client(relay, COPY_DATA + end + SYNC)
    passes_server(relay, ready())
    assert relay.tracker.at_boundary()


def test_a_copy_that_the_client_gives_up_fails() -> None:
    relay = Relay()
    passes_client(relay, bind("") + execute() + SYNC)
    passes_server(relay, BOUND + COPY_IN)
    passes_client(relay, COPY_DATA + COPY_FAIL + SYNC)
    passes_server(relay, failed() + ready())
    assert relay.tracker.at_boundary()


def test_a_copy_that_fails_before_it_begins_answers_the_early_sync() -> None:
    relay = Relay()
    passes_client(relay, bind("") + execute() + SYNC + COPY_DATA + COPY_DONE + SYNC)
    passes_server(relay, BOUND + failed() + ready())
    assert not relay.tracker.is_idle()
    passes_server(relay, ready())
    assert relay.tracker.at_boundary()


def test_a_sync_that_the_failed_copy_did_not_read_is_answered_after_all() -> None:
    """A timeout between CopyInResponse and the Sync that is already on its way."""
    relay = Relay()
    passes_client(relay, bind("") + execute() + SYNC)
    passes_server(relay, BOUND + COPY_IN + failed("57014") + ready())
    assert relay.tracker.at_boundary()


def test_copy_out_passes() -> None:
    relay = Relay()
    passes_client(relay, query("copy t to stdout") + bind("") + execute() + SYNC)
    answer = COPY_OUT + COPY_DATA + COPY_DATA + COPY_DONE + done("COPY 2")
    passes_server(relay, answer + ready() + BOUND + answer + ready())
    assert relay.tracker.at_boundary()


def test_stray_copy_messages_of_an_idle_client_are_harmless() -> None:
    relay = Relay()
    passes_client(relay, COPY_DONE + COPY_FAIL + COPY_DATA)
    assert relay.tracker.at_boundary()


# --- the gate -----------------------------------------------------------------------------------------------------


def test_nothing_begins_at_a_closed_gate() -> None:
    relay = Relay(is_linked=False)
    assert relay.client(query("select 1")) == b""
    assert relay.kept == query("select 1")
    relay.link()
    assert relay.go_on() == query("select 1")


def test_a_message_that_has_begun_may_go_on_at_a_closed_gate() -> None:
    relay = Relay()
    message = query("select 1") + query("select 2")
    copy = query("copy t from stdin")
    passes_client(relay, copy)
    passes_server(relay, COPY_IN)
    data = build(b"d", bytes(100))
    passes_client(relay, data[:50])
    relay.tracker.gate = GATE_CLOSED
    assert relay.client(data[50:] + message) == data[50:]


def test_late_copy_messages_at_a_closed_gate_are_dropped() -> None:
    relay = Relay(is_linked=False)
    assert relay.client(COPY_DATA + build(b"d", bytes(1000)) + COPY_DONE + COPY_FAIL + query("select 1")) == b""
    assert relay.kept == query("select 1")


@pytest.mark.parametrize("gate", [GATE_OPEN, GATE_DRAIN, GATE_CLOSED])
def test_a_client_may_leave_at_any_gate(gate: int) -> None:
    relay = Relay()
    relay.tracker.gate = gate
    assert relay.client(TERMINATE) == b""
    assert relay.tracker.client_left


def test_a_draining_session_at_a_boundary_begins_nothing() -> None:
    relay = Relay()
    relay.tracker.gate = GATE_DRAIN
    assert relay.client(EXTENDED) == b""
    relay.tracker.gate = GATE_OPEN
    assert relay.go_on() == EXTENDED


def test_a_draining_session_ends_its_transaction_and_no_more() -> None:
    relay = Relay()
    passes_client(relay, query("begin"))
    passes_server(relay, done("BEGIN") + ready("T"))
    relay.tracker.gate = GATE_DRAIN
    assert relay.client(query("select 1") + query("commit") + query("select 2")) == query("select 1")
    relay.server(ROW_DESCRIPTION + done() + ready("T"))
    assert relay.take_server().endswith(query("commit"))
    relay.server(done("COMMIT") + ready())
    assert relay.take_server() == b""
    assert relay.tracker.at_boundary()
    assert relay.kept == query("select 2")


def test_a_draining_session_may_send_the_rest_of_its_pipeline() -> None:
    relay = Relay()
    passes_client(relay, parse("") + bind(""))
    relay.tracker.gate = GATE_DRAIN
    assert relay.client(execute() + SYNC + EXTENDED) == execute() + SYNC
    relay.server(PARSED + BOUND + done() + ready())
    assert relay.tracker.at_boundary()


@pytest.mark.parametrize("early", [b"", SYNC])
def test_a_draining_session_may_end_its_copy(early: bytes) -> None:
    relay = Relay()
    passes_client(relay, bind("") + execute() + early)
    relay.tracker.gate = GATE_DRAIN
    passes_server(relay, BOUND + COPY_IN)
    passes_client(relay, COPY_DATA + SYNC + COPY_DATA + COPY_DONE + SYNC)
    passes_server(relay, done("COPY 2") + ready())
    assert relay.tracker.at_boundary()


def test_a_draining_session_may_send_copy_data_before_it_is_asked() -> None:
    relay = Relay()
    passes_client(relay, bind("") + execute() + SYNC)
    relay.tracker.gate = GATE_DRAIN
    assert relay.client(COPY_DATA + COPY_DONE + SYNC) == COPY_DATA + COPY_DONE
    passes_server(relay, BOUND + COPY_IN)
    assert relay.take_server().endswith(SYNC)
    passes_server(relay, done("COPY 1") + ready())
    assert relay.tracker.at_boundary()


# --- parameters ---------------------------------------------------------------------------------------------------


def test_a_client_hears_of_a_parameter_only_when_it_changes() -> None:
    relay = Relay()
    assert relay.server(parameter("TimeZone", "UTC")) == b""
    assert relay.server(parameter("TimeZone", "CET")) == parameter("TimeZone", "CET")
    assert relay.server(parameter("TimeZone", "CET")) == b""


def test_a_client_is_told_what_is_different_on_its_new_backend() -> None:
    relay = Relay()
    relay.server(parameter("TimeZone", "CET"))
    new = BackendFacts("16.1", parameters={"server_version": "16.1", "TimeZone": "UTC"})
    assert relay.link(new) == parameter("server_version", "16.1") + parameter("TimeZone", "UTC")
    assert relay.link(new) == b""


def test_what_a_backend_said_later_is_remembered_with_it() -> None:
    relay = Relay()
    notes = relay.notes
    relay.server(parameter("TimeZone", "CET"))
    other = Relay()
    assert other.link(FACTS, notes) == parameter("TimeZone", "CET")


def test_a_promoted_standby_is_not_announced_as_one() -> None:
    relay = Relay(is_linked=False)
    relay.link(BackendFacts("15.1", parameters={"in_hot_standby": "off"}))
    assert relay.link(BackendFacts("15.1", parameters={"in_hot_standby": "on"})) == b""
    relay.client(query("select 1"))
    assert relay.server(done() + parameter("in_hot_standby", "off") + ready()) == done() + ready()


# --- state that outlives its transaction --------------------------------------------------------------------------


def run(relay: Relay, text: str, tag: str = "SET", status: str = "I") -> None:
    relay.client(query(text))
    relay.server(done(tag) + ready(status))


def test_a_setting_makes_the_ledger_dirty_once_its_transaction_has_ended() -> None:
    relay = Relay()
    run(relay, "select 1", "SELECT 1")
    assert not relay.ledger.is_dirty
    run(relay, "begin", "BEGIN", "T")
    run(relay, "set search_path = a", "SET", "T")
    relay.ledger.is_dirty = False
    run(relay, "rollback", "ROLLBACK")
    assert relay.ledger.is_dirty, "the rollback took the setting back"


def test_an_executed_setting_makes_the_ledger_dirty_each_time() -> None:
    relay = Relay()
    relay.client(parse("s", "set search_path = a") + SYNC)
    relay.server(PARSED + ready())
    relay.ledger.is_dirty = False
    relay.client(parse("p") + bind("p") + execute() + SYNC)
    relay.server(PARSED + BOUND + done() + ready())
    assert not relay.ledger.is_dirty
    relay.client(bind("s") + execute() + SYNC)
    relay.server(BOUND + done("SET") + ready())
    assert relay.ledger.is_dirty


def test_a_long_query_counts_as_one_that_changes_something() -> None:
    relay = Relay()
    passes_client(relay, query("select '" + "x" * 2**20 + "'"))
    relay.server(ROW_DESCRIPTION + done() + ready())
    assert relay.ledger.is_dirty


def test_named_statements_are_kept_once_the_server_took_them() -> None:
    relay = Relay()
    relay.client(parse("a") + parse("b", "selec") + SYNC)
    relay.server(PARSED + failed() + ready())
    assert relay.ledger.statements == {b"a": parse("a")}
    relay.client(close("a") + SYNC)
    assert relay.ledger.statements
    relay.server(CLOSED + ready())
    assert relay.ledger.statements == {}


def test_deallocate_all_forgets_the_statements() -> None:
    relay = Relay()
    relay.client(parse("a") + SYNC)
    relay.server(PARSED + ready())
    run(relay, "deallocate all", "DEALLOCATE ALL")
    assert relay.ledger.statements == {}


def test_a_named_statement_too_large_to_keep_is_a_pin() -> None:
    relay = Relay()
    relay.client(parse("a", "select '" + "x" * 2**24 + "'") + SYNC)
    assert relay.ledger.pins == ["statement too large"]


def test_the_unnamed_statement_is_sent_again_to_a_new_backend() -> None:
    relay = Relay()
    relay.client(parse("", "select 7") + SYNC)
    relay.server(PARSED + ready())
    relay.link()
    assert relay.client(bind("") + execute() + SYNC) == parse("", "select 7") + bind("") + execute() + SYNC
    assert relay.server(PARSED + BOUND + ROW + done() + ready()) == BOUND + ROW + done() + ready()
    passes_client(relay, bind("") + SYNC)
    passes_server(relay, BOUND + ready())
    assert relay.tracker.at_boundary()


def lacking(*names: str) -> Relay:
    """A session that prepared statements, on a new backend that refused them when they were replayed."""
    relay = Relay()
    for name in names:
        relay.client(parse(name, "table " + name) + SYNC)
        relay.server(PARSED + ready())
    relay.unlink()
    relay.link(notes={"absent": {name.encode() for name in names}})
    relay.take_server()
    return relay


def test_a_statement_that_was_refused_at_the_move_is_sent_again_when_it_is_used() -> None:
    relay = lacking("a")
    assert relay.client(bind("a") + execute() + SYNC) == parse("a", "table a") + bind("a") + execute() + SYNC
    assert relay.server(PARSED + BOUND + ROW + done() + ready()) == BOUND + ROW + done() + ready()
    passes_client(relay, bind("a") + execute() + SYNC)
    passes_server(relay, BOUND + ROW + done() + ready())
    assert relay.tracker.at_boundary()


def test_a_statement_that_is_refused_when_it_is_used_fails_for_the_client_and_is_not_lost() -> None:
    relay = lacking("a")
    for _ in range(2):
        assert relay.client(describe("a") + SYNC) == parse("a", "table a") + describe("a") + SYNC
        assert relay.server(failed("42P01") + ready()) == failed("42P01") + ready()
        assert relay.tracker.at_boundary()
    assert relay.client(describe("a") + SYNC) == parse("a", "table a") + describe("a") + SYNC
    answer = PARAMETER_DESCRIPTION + NO_DATA + ready()
    assert relay.server(PARSED + answer) == answer


def test_nothing_relies_on_a_statement_made_again_behind_a_sync() -> None:
    """The first may fail or not, each batch stands for itself."""
    relay = lacking("a")
    again, batch = parse("a", "table a"), bind("a") + bind("a") + SYNC
    assert relay.client(batch + batch) == again + batch + close("a") + again + batch
    assert relay.server(failed() + ready() + CLOSED + PARSED + BOUND + BOUND + ready()) == (
        failed() + ready() + BOUND + BOUND + ready()
    )
    passes_client(relay, batch)
    passes_server(relay, BOUND + BOUND + ready())
    relay = lacking("a")
    relay.client(batch + batch)
    assert relay.server(PARSED + BOUND + BOUND + ready() + CLOSED + failed() + ready()) == (
        BOUND + BOUND + ready() + failed() + ready()
    )
    assert relay.client(batch) == again + batch
    relay.server(PARSED + BOUND + BOUND + ready())
    passes_client(relay, batch)


def test_a_statement_made_again_behind_an_error_is_not_there() -> None:
    relay = lacking("a")
    relay.client(bind("wrong") + bind("a") + SYNC)
    assert relay.server(failed("26000") + ready()) == failed("26000") + ready()
    assert relay.client(bind("a") + SYNC) == parse("a", "table a") + bind("a") + SYNC


def test_the_name_of_an_absent_statement_is_free_once_it_is_closed_and_taken_before() -> None:
    relay = lacking("a", "b")
    assert relay.client(parse("a") + SYNC) == parse("a", "table a") + parse("a") + SYNC
    relay.server(PARSED + failed("42P05") + ready())
    passes_client(relay, close("b") + SYNC)
    relay.server(CLOSED + ready())
    passes_client(relay, parse("b") + bind("b") + SYNC)
    relay.server(PARSED + BOUND + ready())
    run(relay, "deallocate all", "DEALLOCATE ALL")
    passes_client(relay, bind("a") + SYNC)


def test_an_inspection_does_not_forget_what_the_backend_lacks() -> None:
    relay = lacking("a")
    inspection = relay.ledger.inspection()
    assert inspection.receive(done("SELECT 0") + ready())
    assert relay.ledger.statements == {b"a": parse("a", "table a")}


def test_a_replay_tells_what_is_lost_from_what_is_postponed() -> None:
    relay = lacking("a", "b")
    replay = relay.ledger.replay(is_late=False)
    assert replay is not None
    assert replay.receive(failed("42P01") + ready() + failed("42P05") + ready())
    assert (replay.errors, replay.postponed) == ([], ["prepared statement a: no (42P01)"])
    assert relay.ledger.adopt({})["absent"] == {b"a"}


# --- violations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3, 2**30 + 4, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("peer", ["client", "server"])
def test_impossible_lengths_are_refused(peer: str, size: int) -> None:
    relay = Relay()
    header = (b"Q" if peer == "client" else b"N") + size.to_bytes(4, "big")
    with pytest.raises(ProtocolViolation) as caught:
        relay.client(header) if peer == "client" else relay.server(header)
    assert caught.value.peer == peer


@pytest.mark.parametrize("tag", [b"p", b"\0", b"R", b"Z", b"\xff", b"G"])
def test_a_client_cannot_send_what_is_no_request(tag: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="client"):
        Relay().client(build(tag))


def test_copy_both_is_no_boundary_until_both_sides_are_done() -> None:
    """field-notes: CopyBoth / replication=…"""
    relay = Relay()
    passes_client(relay, query("START_REPLICATION 0/0"))
    passes_server(relay, build(b"W", b"\0\0\0"))
    for _ in range(3):
        passes_server(relay, COPY_DATA)
        passes_client(relay, COPY_DATA)
        assert not relay.tracker.at_boundary()
    passes_client(relay, COPY_DONE)
    passes_server(relay, COPY_DONE + done("START_STREAMING"))
    assert not relay.tracker.at_boundary()
    passes_server(relay, ready())
    assert relay.tracker.at_boundary()
    # And an ordinary command of a walsender again.
    passes_client(relay, query("IDENTIFY_SYSTEM"))
    passes_server(relay, ROW_DESCRIPTION + ROW + done("IDENTIFY_SYSTEM") + ready())
    assert relay.tracker.at_boundary()


def test_copy_both_only_answers_a_query() -> None:
    relay = Relay()
    relay.client(execute() + SYNC)
    with pytest.raises(ProtocolViolation, match="server"):
        relay.server(build(b"W", b"\0\0\0"))


@pytest.mark.parametrize("body", [b"", b"X", b"\0", b"II"])
def test_a_ready_for_query_says_one_of_three_things(body: bytes) -> None:
    relay = Relay()
    relay.client(query("select 1"))
    with pytest.raises(ProtocolViolation, match="server"):
        relay.server(build(b"Z", body) + b"....")


def test_the_number_of_requests_in_flight_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 2**24
    if protocols.IS_READABLE:
        # As many as that take minutes where they are interpreted.
        most = 2**18
        monkeypatch.setattr(tracker, "IN_FLIGHT_MAX", most)
    relay = Relay()
    chunk = SYNC * 2**16
    for _ in range(most // 2**16):
        relay.tracker.scan_client(chunk, 0, len(chunk))
    with pytest.raises(ProtocolViolation, match="in flight"):
        relay.tracker.scan_client(SYNC, 0, len(SYNC))


def test_a_backend_is_not_exchanged_with_a_request_in_flight() -> None:
    relay = Relay()
    relay.client(query("select 1"))
    with pytest.raises(IllegalUse):
        relay.link()


def test_a_lost_backend_leaves_nothing_in_flight() -> None:
    relay = Relay()
    relay.client(EXTENDED + query("begin"))
    relay.server(EXTENDED_ANSWER[:-3])
    relay.unlink()
    assert relay.tracker.is_idle()


# --- cost ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (query("SELECT abalance FROM pgbench_accounts WHERE aid = 4711;"), ROW_DESCRIPTION + ROW + done() + ready()),
        (
            bind("P_0", "", b"4711") + describe("", "P") + execute() + SYNC,
            BOUND + ROW_DESCRIPTION + ROW + done() + ready(),
        ),
    ],
    ids=["simple", "prepared"],
)
def test_the_steady_state_makes_no_object(request_: bytes, answer: bytes) -> None:
    import protocols

    if protocols.IS_READABLE:
        pytest.skip("only of the compiled form")
    relay = Relay()
    relay.client(parse("P_0", "SELECT abalance FROM pgbench_accounts WHERE aid = $1") + SYNC)
    relay.server(PARSED + ready())
    tracker = relay.tracker
    client_size, server_size = len(request_), len(answer)
    rounds = range(1000)
    tracemalloc.start()
    try:
        tracemalloc.clear_traces()
        base, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in rounds:
            if tracker.scan_client(request_, 0, client_size) != FORWARD:
                raise AssertionError("fetched")
            if tracker.scan_server(answer, 0, server_size) != FORWARD:
                raise AssertionError("fetched")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tracker.requests == 1001
    assert peak - base < 500, "the loop itself makes an iterator and a few integers"


@pytest.mark.parametrize("kind", ["bind", "describe"])
def test_a_name_the_backend_knows_is_edited_in_place(kind: str) -> None:
    name = "P_0"
    relay = Relay(shares=True)
    own = split(relay.client(parse(name) + SYNC))[0][5:].partition(b"\0")[0]
    relay.server(PARSED + ready())
    tracker = relay.tracker
    request = bind(name, "portal", b"4711") if kind == "bind" else describe(name)
    assert tracker.scan_client(request, 0, len(request)) == EDIT
    edited = bytes(tracker.edited[: tracker.edited_size]) + request[tracker.message_size :]
    assert edited == (bind(own.decode(), "portal", b"4711") if kind == "bind" else describe(own.decode()))
    assert tracker.scan_client(request, tracker.message_size, len(request)) == FORWARD
    assert tracker.stop == len(request)


def test_a_name_the_backend_does_not_know_yet_is_fetched() -> None:
    relay = Relay(shares=True)
    relay.client(parse("P_0") + SYNC)
    request = bind("P_0", "", b"4711")
    # Its Parse is under way: whether the name will be there is not known.
    assert relay.tracker.scan_client(request, 0, len(request)) == FETCH


def test_tags_helper_reads_streams() -> None:
    assert tags(EXTENDED_ANSWER) == "12TDCZ"
