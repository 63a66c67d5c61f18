"""Conversations: what passes, what is in flight, when the backend may go."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest

from protocols import IS_READABLE
from protocols.codes import GATE_CLOSED, GATE_DRAIN, GATE_OPEN
from protocols.errors import IllegalUse, ProtocolViolation
from protocols.mysql import WIRE
from protocols.mysql import constants as c
from protocols.mysql.messages import command, lenenc, lenenc_bytes, packet, parse_err
from protocols.mysql.replies import error_packet
from protocols.wire import ErrorReply
from tests.protocols.mysql.relay import (
    AUTOCOMMIT,
    CURSOR,
    FACTS,
    IN_TRANS,
    LAST_ROW,
    MARIADB_FACTS,
    MORE,
    PING,
    QUIT,
    RESET,
    TRACKING_FACTS,
    Relay,
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
    split,
    startup,
    told_payload,
)

NEWS = c.SERVER_SESSION_STATE_CHANGED
BOTH = pytest.mark.parametrize("deprecates_eof", [False, True], ids=["eof", "no-eof"])


def begun(relay: Relay) -> None:
    relay.ask(query("begin"), [ok_payload(IN_TRANS)])


# --- boundaries -----------------------------------------------------------------------------------------------------


@BOTH
def test_a_result_is_in_flight_until_its_last_packet(deprecates_eof: bool) -> None:
    relay = Relay(deprecates_eof=deprecates_eof)
    relay.client(query("select 1"))
    answer = numbered(relay.speech.result(rows=3, columns=2))
    for one in split(answer):
        assert not relay.tracker.at_boundary()
        assert relay.server(one) == one
    assert relay.tracker.at_boundary()
    assert (relay.tracker.requests, relay.tracker.transactions, relay.tracker.errors) == (1, 1, 0)


def test_an_open_transaction_is_no_boundary() -> None:
    relay = Relay()
    begun(relay)
    assert relay.tracker.is_idle()
    assert not relay.tracker.at_boundary()
    relay.ask(query("commit"), [ok_payload()])
    assert relay.tracker.at_boundary()
    assert (relay.tracker.requests, relay.tracker.transactions) == (2, 1)


def test_with_autocommit_off_the_flags_decide_and_not_the_setting() -> None:
    """field-notes: autocommit=0"""
    relay = Relay()
    relay.ask(query("set autocommit=0"), [ok_payload(0)])
    assert relay.tracker.at_boundary()
    relay.ask(query("insert into t values(1)"), [ok_payload(c.SERVER_STATUS_IN_TRANS)])
    assert not relay.tracker.at_boundary()
    relay.ask(query("rollback"), [ok_payload(0)])
    assert relay.tracker.at_boundary()


def test_an_error_with_autocommit_off_may_have_left_a_transaction() -> None:
    relay = Relay()
    relay.ask(query("set autocommit=0"), [ok_payload(0)])
    relay.ask(query("insert into t values(1)"), [err_payload()])
    assert not relay.tracker.at_boundary()
    relay.ask(query("rollback"), [ok_payload(0)])
    assert relay.tracker.at_boundary()


def test_an_error_of_a_procedure_may_have_left_a_transaction() -> None:
    relay = Relay()
    relay.ask(query("call p()"), [err_payload()])
    assert not relay.tracker.at_boundary()
    relay.ask(PING, [ok_payload()])
    assert relay.tracker.at_boundary()


def test_an_error_of_a_plain_statement_leaves_things_as_they_are() -> None:
    relay = Relay()
    relay.ask(query("select 1"), [err_payload()])
    assert relay.tracker.at_boundary()
    assert relay.tracker.errors == 1
    begun(relay)
    relay.ask(query("select 1"), [err_payload()])
    assert not relay.tracker.at_boundary()


def test_a_half_sent_command_is_no_boundary() -> None:
    relay = Relay()
    text = query("insert into t values('" + "x" * 100_000 + "')")
    relay.client(text[:50_000])
    assert not relay.tracker.is_idle()
    relay.client(text[50_000:])
    relay.answer([ok_payload()])
    assert relay.tracker.at_boundary()


@BOTH
def test_more_results_belong_to_the_same_command(deprecates_eof: bool) -> None:
    """field-notes: Multi-resultset / SERVER_MORE_RESULTS_EXISTS"""
    relay = Relay(deprecates_eof=deprecates_eof)
    relay.client(query("call p()"))
    relay.answer(
        [
            *relay.speech.result(status=AUTOCOMMIT | MORE),
            *relay.speech.result(status=AUTOCOMMIT | MORE),
            ok_payload(AUTOCOMMIT | MORE),
            ok_payload(),
        ]
    )
    assert relay.tracker.at_boundary()
    assert relay.tracker.requests == 1


@BOTH
def test_an_error_in_the_middle_of_rows_ends_the_answer(deprecates_eof: bool) -> None:
    relay = Relay(deprecates_eof=deprecates_eof)
    relay.client(query("select 1"))
    relay.answer([*relay.speech.result()[:-1], err_payload(1317)])
    assert relay.tracker.at_boundary()
    assert relay.tracker.errors == 1


@BOTH
def test_an_open_cursor_is_no_boundary_until_its_last_row(deprecates_eof: bool) -> None:
    relay = Relay(deprecates_eof=deprecates_eof)
    relay.ask(prepare("select a from t"), relay.speech.prepared(1, columns=1))
    relay.ask(execute(1, flags=1), relay.speech.opened_cursor())
    assert relay.tracker.is_idle()
    assert not relay.tracker.at_boundary()
    row = b"\0\0\1a"
    relay.ask(fetch_rows(1), [row, relay.speech.end(AUTOCOMMIT | CURSOR)])
    assert not relay.tracker.at_boundary()
    relay.ask(fetch_rows(1), [row, relay.speech.end(AUTOCOMMIT | LAST_ROW)])
    assert relay.tracker.at_boundary()


def test_a_reset_or_closed_statement_has_no_cursor() -> None:
    relay = Relay()
    relay.ask(prepare("select a from t"), relay.speech.prepared(1, columns=1))
    relay.ask(execute(1, flags=1), relay.speech.opened_cursor())
    relay.ask(on_statement(c.COM_STMT_RESET, 1), [ok_payload()])
    assert relay.tracker.at_boundary()
    relay.ask(execute(1, flags=1), relay.speech.opened_cursor())
    relay.client(on_statement(c.COM_STMT_CLOSE, 1))
    assert relay.tracker.at_boundary()


def test_long_data_waits_for_its_execute() -> None:
    """field-notes: COM_STMT_SEND_LONG_DATA (no reply), COM_STMT_CLOSE (no reply), COM_STMT_FETCH (28)"""
    relay = Relay()
    relay.ask(prepare("insert into t values(?)"), relay.speech.prepared(1, parameters=1))
    sent = on_statement(c.COM_STMT_SEND_LONG_DATA, 1, b"\0\0" + b"x" * 1000)
    assert relay.client(sent) == sent
    assert relay.tracker.is_idle()
    assert not relay.tracker.at_boundary()
    relay.ask(execute(1, parameters=1, types=b"\xfc\0"), [ok_payload()])
    assert relay.tracker.at_boundary()


def test_set_transaction_waits_for_its_transaction() -> None:
    relay = Relay()
    relay.ask(query("set transaction isolation level serializable"), [ok_payload()])
    assert not relay.tracker.at_boundary()
    begun(relay)
    relay.ask(query("commit"), [ok_payload()])
    assert relay.tracker.at_boundary()


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        c.COM_PING, c.COM_REFRESH, c.COM_DEBUG, c.COM_CREATE_DB, c.COM_DROP_DB,
        c.COM_RESET_CONNECTION, c.COM_INIT_DB,
    ],
)  # fmt: skip
@BOTH
def test_simple_commands_end_with_ok_err_or_eof(code: int, deprecates_eof: bool) -> None:
    relay = Relay(deprecates_eof=deprecates_eof)
    for payload in (ok_payload(), err_payload(), relay.speech.end()):
        relay.ask(command(code, b"abcd"), [payload])
        assert relay.tracker.at_boundary()


@BOTH
def test_a_field_list_ends_with_eof(deprecates_eof: bool) -> None:
    relay = Relay(deprecates_eof=deprecates_eof)
    relay.ask(command(c.COM_FIELD_LIST, b"t\0"), [column_payload(), column_payload(), relay.speech.end()])
    assert relay.tracker.at_boundary()


def test_statistics_are_one_packet_of_text() -> None:
    relay = Relay()
    relay.ask(command(c.COM_STATISTICS), [b"Uptime: 7"])
    assert relay.tracker.at_boundary()


def test_set_option_is_kept_for_the_next_backend() -> None:
    """field-notes: CLIENT_MULTI_STATEMENTS, COM_SET_OPTION, FOUND_ROWS, PS_MULTI_RESULTS per connection"""
    relay = Relay()
    relay.ask(command(c.COM_SET_OPTION, b"\1\0"), [eof_payload()])
    assert relay.ledger.option == 1
    relay.ask(command(c.COM_SET_OPTION, b"\0\0"), [err_payload()])
    assert relay.ledger.option == 1


@pytest.mark.parametrize("code", [0x00, 0x08, 0x0B, 0x13, 0x14, 0x1D, 0x20, 0xFA, 0xFE])
def test_a_command_that_is_not_relayed_is_answered_here(code: int) -> None:
    relay = Relay()
    assert relay.client(command(code, b"abc")) == b""
    (answer,) = split(bytes(relay.to_client))
    assert answer[3] == 1
    assert parse_err(answer[4:], "server").code == 1047
    assert relay.tracker.at_boundary()


def test_our_own_answers_keep_their_place_among_the_servers() -> None:
    relay = Relay()
    unknown = command(c.COM_PROCESS_KILL + 0x20)
    assert relay.client(PING + unknown + unknown + PING) == PING + PING
    assert relay.to_client == b""
    whole = numbered([ok_payload(info=b"some text " * 5)])
    relay.server(whole[:30])
    assert relay.to_client == whole[:30]
    relay.server(whole[30:])
    assert [one[4] for one in split(bytes(relay.to_client))] == [c.OK, c.ERR, c.ERR]
    relay.server(whole)
    assert [one[4] for one in split(bytes(relay.to_client))] == [c.OK, c.ERR, c.ERR, c.OK]
    assert relay.tracker.at_boundary()


def test_our_own_answer_never_cuts_a_packet_of_the_server() -> None:
    relay = Relay()
    relay.client(PING)
    whole = numbered([ok_payload(info=b"some text " * 5)])
    relay.server(whole[:-3])
    relay.client(command(0x55))
    assert relay.to_client == whole[:-3]
    relay.server(whole[-3:])
    assert bytes(relay.to_client).startswith(whole)
    assert len(split(bytes(relay.to_client))) == 2


def test_an_answer_of_ours_follows_a_prepared_statement() -> None:
    relay = Relay()
    relay.client(prepare("do 1") + command(0x55))
    relay.answer(relay.speech.prepared(1))
    assert [one[4] for one in split(bytes(relay.to_client))] == [c.OK, c.ERR]


def test_quit_ends_the_session_and_not_the_backend() -> None:
    relay = Relay(is_linked=False)
    assert relay.client(QUIT) == b""
    assert relay.tracker.client_left


def test_nothing_is_said_into_a_half_packet() -> None:
    relay = Relay()
    error = ErrorReply("gone", "08006", 2013, "HY000")
    answer = numbered(relay.speech.result())
    ends = {0, *itertools.accumulate(len(one) for one in split(answer))}
    relay.client(query("select 1"))
    for at in range(len(answer)):
        assert bool(WIRE.error(error, relay.tracker)) == (len(relay.to_client) in ends)
        relay.server(answer[at : at + 1])
    assert WIRE.error(error, relay.tracker)


def test_change_user_is_handed_to_the_session() -> None:
    relay = Relay()
    packet_of_client = command(c.COM_CHANGE_USER, b"bob\0\0db\0\x2d\0mysql_native_password\0")
    assert relay.client(packet_of_client) == b""
    assert relay.tracker.take_change_user() == packet_of_client


def test_change_user_may_not_be_pipelined() -> None:
    relay = Relay()
    relay.client(PING)
    with pytest.raises(ProtocolViolation, match="client"):
        relay.client(command(c.COM_CHANGE_USER, b"bob\0\0"))


# --- pipelining -----------------------------------------------------------------------------------------------------


def test_answers_are_matched_to_pipelined_commands_in_order() -> None:
    """field-notes: Pipelining clients (MariaDB-J bulk/continuous sends, mysql2)"""
    relay = Relay()
    relay.client(query("select 1") + PING + query("insert into t values(1)"))
    assert not relay.tracker.is_idle()
    relay.answer(relay.speech.result())
    relay.answer([ok_payload()])
    assert not relay.tracker.is_idle()
    relay.answer([ok_payload()])
    assert relay.tracker.at_boundary()
    assert relay.tracker.requests == 3


def test_many_pipelined_commands_are_followed() -> None:
    relay = Relay()
    for _ in range(3):
        relay.client(PING * 100)
        for _ in range(50):
            relay.answer([ok_payload()])
    assert relay.tracker.requests == 150
    for _ in range(150):
        relay.answer([ok_payload()])
    assert relay.tracker.at_boundary()


def test_the_queue_is_bounded() -> None:
    relay = Relay()
    with pytest.raises(ProtocolViolation, match="client"):
        relay.client(PING * 70_000)


# --- packets over 16 MB ---------------------------------------------------------------------------------------------

FULL = c.PAYLOAD_BYTES_MAX


@pytest.mark.parametrize("size", [FULL] if IS_READABLE else [FULL - 1, FULL, FULL + 1, 2 * FULL, 2 * FULL + 5])
def test_a_command_over_16_mb_is_one_command(size: int) -> None:
    """field-notes: Packets ≥ 16 MB − 1"""
    relay = Relay()
    text = b"insert into t values('" + b"x" * (size - 25) + b"')"
    request = query(text)
    assert relay.client(request) == request
    packets = len(split(request))
    relay.answer([ok_payload()], first=packets)
    assert relay.tracker.at_boundary()
    assert not relay.ledger.is_dirty
    assert relay.fetches == 0


@pytest.mark.parametrize("size", [FULL - 1, FULL, FULL + 1, FULL + 100, 2 * FULL])
@BOTH
def test_a_row_over_16_mb_is_one_row(size: int, deprecates_eof: bool) -> None:
    """field-notes: CLIENT_DEPRECATE_EOF"""
    relay = Relay(deprecates_eof=deprecates_eof)
    relay.client(query("select 1"))
    head = numbered([lenenc(1), column_payload(), *relay.speech.between()])
    # A value of over 16 MB begins with 0xFE, as EOF does.
    length = lenenc(size - 9) if size > FULL + 9 else b"\xfd" + (size - 4).to_bytes(3, "little")
    row = packet((length + b"x" * size)[:size], len(split(head)) + 1)
    following = len(split(head)) + len(split(row)) + 1
    answer = head + row + numbered([relay.speech.end()], following)
    assert relay.server(answer) == answer
    assert relay.tracker.at_boundary()
    assert relay.fetches == 0


def test_an_early_refusal_of_a_large_command_passes() -> None:
    relay = Relay()
    request = query(b"insert into t values('" + b"x" * FULL + b"')")
    relay.client(request[: FULL // 2])
    refusal = packet(err_payload(1153), 1)
    assert relay.server(refusal) == refusal


def test_a_refusal_for_size_counts_from_the_first_packet() -> None:
    # Both servers answer 1153 with sequence id 1, however many packets the command had.
    relay = Relay()
    relay.client(command(c.COM_PING, b"x" * FULL))
    refusal = packet(err_payload(1153), 1)
    assert relay.server(refusal) == refusal
    assert relay.tracker.at_boundary()


def test_sequence_ids_wrap() -> None:
    relay = Relay()
    relay.ask(query("select 1"), relay.speech.result(rows=600))
    assert relay.tracker.at_boundary()


# --- LOAD DATA LOCAL ------------------------------------------------------------------------------------------------


def test_a_file_is_relayed_where_the_client_sends_files() -> None:
    relay = Relay(more=c.CLIENT_LOCAL_FILES)
    relay.client(query("load data local infile 'f' into table t"))
    relay.answer([b"\xfbf"])
    assert not relay.tracker.is_idle()
    parts = packet(b"a\n" * 50_000, 2) + packet(b"b\n", 3) + packet(b"", 4)
    assert relay.client(parts) == parts
    assert not relay.tracker.is_idle()
    relay.answer([ok_payload()], first=5)
    assert relay.tracker.at_boundary()


def test_a_file_that_ends_with_a_full_packet_is_followed() -> None:
    relay = Relay(more=c.CLIENT_LOCAL_FILES)
    relay.client(query("load data local infile 'f' into table t"))
    relay.answer([b"\xfbf"])
    parts = packet(b"x" * FULL, 2) + packet(b"", 4)
    assert relay.client(parts) == parts
    relay.answer([ok_payload()], first=5)
    assert relay.tracker.at_boundary()


def test_a_server_may_not_ask_for_a_file_the_client_never_offered() -> None:
    """field-notes: LOCAL INFILE (0xFB)"""
    relay = Relay()
    relay.client(query("select 1"))
    with pytest.raises(ProtocolViolation, match="server"):
        relay.answer([b"\xfb/etc/passwd"])


def test_a_server_may_not_ask_for_a_file_without_a_query() -> None:
    """field-notes: LOCAL INFILE (0xFB)"""
    relay = Relay(more=c.CLIENT_LOCAL_FILES)
    relay.ask(prepare("do 1"), relay.speech.prepared(1))
    relay.client(execute(1))
    with pytest.raises(ProtocolViolation, match="server"):
        relay.answer([b"\xfb/etc/passwd"])


def test_a_command_may_not_be_pipelined_behind_a_file() -> None:
    relay = Relay(more=c.CLIENT_LOCAL_FILES)
    relay.client(query("load data local infile 'f' into table t") + PING)
    with pytest.raises(ProtocolViolation, match="client"):
        relay.answer([b"\xfbf"])


# --- the gate -------------------------------------------------------------------------------------------------------


def test_nothing_begins_at_a_closed_gate_and_what_has_begun_goes_on() -> None:
    relay = Relay()
    text = query("insert into t values('" + "x" * 100_000 + "')")
    relay.client(text[:50_000])
    relay.tracker.gate = GATE_CLOSED
    assert relay.client(text[50_000:] + PING) == text[50_000:]
    assert relay.kept == PING
    relay.answer([ok_payload()])
    assert relay.tracker.at_boundary()
    relay.tracker.gate = GATE_OPEN
    assert relay.go_on() == PING


def test_draining_stops_at_the_first_boundary_of_a_pipelining_client() -> None:
    relay = Relay()
    begun(relay)
    relay.tracker.gate = GATE_DRAIN
    update, commit, more = query("update t set a=1"), query("commit"), query("select 2")
    assert relay.client(update + commit + more) == update
    relay.to_server.clear()
    relay.answer([ok_payload(IN_TRANS)])
    assert relay.to_server == commit
    relay.answer([ok_payload()])
    assert relay.to_server == commit
    assert relay.kept == more
    assert relay.tracker.at_boundary()


def test_draining_waits_for_the_last_byte_of_an_answer() -> None:
    relay = Relay()
    begun(relay)
    relay.tracker.gate = GATE_DRAIN
    relay.client(query("commit") + PING)
    answer = numbered([ok_payload(info=b"text of some length" * 3)])
    relay.server(answer[:-5])
    assert relay.kept == PING
    relay.server(answer[-5:])
    assert relay.kept == PING
    assert relay.tracker.at_boundary()


def test_without_a_backend_the_client_waits() -> None:
    relay = Relay(is_linked=False)
    assert relay.client(PING) == b""
    assert relay.kept == PING
    relay.link()
    assert relay.go_on() == PING


def test_a_backend_is_not_exchanged_in_the_middle_of_a_request() -> None:
    relay = Relay()
    relay.client(PING)
    with pytest.raises(IllegalUse):
        relay.link()


# --- prepared statements ----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("columns", "parameters"), [(0, 0), (2, 0), (0, 2), (2, 3)])
def test_a_prepared_statement_is_kept_with_its_text(columns: int, parameters: int, deprecates_eof: bool) -> None:
    relay = Relay(deprecates_eof=deprecates_eof)
    relay.ask(prepare("select ?"), relay.speech.prepared(5, columns=columns, parameters=parameters))
    assert relay.tracker.at_boundary()
    statement = relay.ledger.statements[5]
    assert (statement.client_id, statement.text, statement.parameters) == (5, b"select ?", parameters)
    assert statement.database == b"app"
    assert not relay.ledger.is_empty


def test_a_refused_prepare_is_not_kept() -> None:
    relay = Relay()
    relay.ask(prepare("selekt"), [err_payload()])
    relay.ask(prepare("select 1"), relay.speech.prepared(2, columns=1))
    assert {k: v.text for k, v in relay.ledger.statements.items()} == {2: b"select 1"}


def test_executes_pass_untouched_while_the_ids_are_the_backends() -> None:
    relay = Relay()
    relay.ask(prepare("select ?"), relay.speech.prepared(1, columns=1, parameters=1))
    fetched = relay.fetches
    relay.ask(execute(1, parameters=1, types=b"\x08\0", values=b"x" * 8), relay.speech.result())
    relay.ask(execute(1, parameters=1, values=b"x" * 8), relay.speech.result())
    relay.ask(on_statement(c.COM_STMT_RESET, 1), [ok_payload()])
    relay.client(on_statement(c.COM_STMT_CLOSE, 1))
    assert relay.fetches == fetched
    assert relay.ledger.statements == {}
    assert relay.tracker.at_boundary()


def switched(relay: Relay, ids: dict[int, int]) -> None:
    """To another backend, on which the statements were prepared again under other ids."""
    assert relay.tracker.at_boundary()
    relay.unlink()
    due = {client_id for client_id in ids if relay.ledger.statements[client_id].parameters}
    relay.link(notes={"statement_ids": dict(ids), "types_due": due})


def test_after_a_switch_ids_are_those_of_the_new_backend() -> None:
    """field-notes: PS ids are per server"""
    relay = Relay()
    for number in (1, 2):
        relay.ask(prepare(f"select {number}"), relay.speech.prepared(number, columns=1))
    switched(relay, {1: 7, 2: 1})
    assert relay.client(execute(1)) == execute(7)
    relay.answer(relay.speech.result())
    assert relay.client(execute(2)) == execute(1)
    relay.answer(relay.speech.result())
    assert relay.client(on_statement(c.COM_STMT_RESET, 1)) == on_statement(c.COM_STMT_RESET, 7)
    relay.answer([ok_payload()])
    long = on_statement(c.COM_STMT_SEND_LONG_DATA, 2, b"\0\0" + b"y" * 100_000)
    assert relay.client(long) == on_statement(c.COM_STMT_SEND_LONG_DATA, 1, b"\0\0" + b"y" * 100_000)
    assert relay.client(fetch_rows(1)) == fetch_rows(7)
    relay.answer([err_payload()])
    assert relay.client(on_statement(c.COM_STMT_CLOSE, 1)) == on_statement(c.COM_STMT_CLOSE, 7)


def test_a_new_statement_after_a_switch_gets_an_id_the_client_does_not_have() -> None:
    relay = Relay()
    for number in (1, 2):
        relay.ask(prepare(f"select {number}"), relay.speech.prepared(number, columns=1))
    relay.client(on_statement(c.COM_STMT_CLOSE, 1))
    switched(relay, {2: 1})
    relay.client(prepare("select 3"))
    answer = relay.answer(relay.speech.prepared(2, columns=1))
    assert int.from_bytes(answer[5:9], "little") == 3
    assert relay.client(execute(3)) == execute(2)
    relay.answer(relay.speech.result())
    assert relay.client(execute(2)) == execute(1)


def test_a_statement_the_backend_lacks_becomes_one_that_no_server_has() -> None:
    relay = Relay()
    relay.ask(prepare("select 1"), relay.speech.prepared(1, columns=1))
    switched(relay, {})
    assert relay.client(execute(1)) == execute(c.STATEMENT_NONE)


def test_where_ids_are_equal_after_a_switch_nothing_is_touched() -> None:
    relay = Relay()
    relay.ask(prepare("select 1"), relay.speech.prepared(1, columns=1))
    switched(relay, {1: 1})
    fetched = relay.fetches
    relay.ask(execute(1), relay.speech.result())
    assert relay.fetches == fetched


TYPES = b"\x08\0\xfd\0\x05\x80"


@pytest.mark.parametrize("server_id", [1, 9])
def test_the_first_execute_on_a_new_backend_carries_the_types(server_id: int) -> None:
    """field-notes: COM_STMT_EXECUTE new-params-bound=0"""
    relay = Relay()
    relay.ask(prepare("select ?,?,?"), relay.speech.prepared(1, columns=3, parameters=3))
    relay.ask(execute(1, parameters=3, types=TYPES, values=b"v" * 20), relay.speech.result())
    relay.ask(execute(1, parameters=3, values=b"w" * 20), relay.speech.result())
    switched(relay, {1: server_id})
    with_types = execute(server_id, parameters=3, types=TYPES, values=b"w" * 20)
    assert relay.client(execute(1, parameters=3, values=b"w" * 20)) == with_types
    relay.answer(relay.speech.result())
    again = execute(server_id, parameters=3, values=b"w" * 20)
    assert relay.client(execute(1, parameters=3, values=b"w" * 20)) == again


def test_types_the_client_sends_itself_are_not_sent_twice() -> None:
    relay = Relay()
    relay.ask(prepare("select ?,?,?"), relay.speech.prepared(1, columns=3, parameters=3))
    relay.ask(execute(1, parameters=3, types=TYPES, values=b"v" * 20), relay.speech.result())
    switched(relay, {1: 1})
    others = b"\x08\0\x08\0\x08\0"
    relay.ask(execute(1, parameters=3, types=others, values=b"v" * 24), relay.speech.result())
    assert relay.ledger.statements[1].types == others
    fetched = relay.fetches
    relay.ask(execute(1, parameters=3, values=b"v" * 24), relay.speech.result())
    assert relay.fetches == fetched


def test_types_are_found_in_an_execute_that_comes_in_pieces() -> None:
    relay = Relay()
    count = 300
    types = b"".join(bytes([number % 7, 0]) for number in range(count))
    relay.ask(prepare("select ?"), relay.speech.prepared(1, columns=1, parameters=count))
    request = execute(1, parameters=count, types=types, values=b"v" * 5000)
    sent = relay.client(request[:100], request[100:700], request[700:])
    assert sent == request
    assert relay.ledger.statements[1].types == types


def test_an_execute_over_16_mb_is_rewritten_at_its_head_only() -> None:
    """field-notes: Params > 2^24, null bitmap, unsupported buffer types"""
    relay = Relay()
    relay.ask(prepare("insert into t values(?)"), relay.speech.prepared(1, parameters=1))
    relay.ask(execute(1, parameters=1, types=b"\xfc\0", values=b"\1x"), [ok_payload()])
    switched(relay, {1: 3})
    large = b"v" * (FULL + 10)
    sent = relay.client(execute(1, parameters=1, types=b"\xfc\0", values=large))
    assert sent == execute(3, parameters=1, types=b"\xfc\0", values=large)
    relay.answer([ok_payload()], first=2)
    assert relay.tracker.at_boundary()


def test_types_that_do_not_fit_are_an_error_and_no_guess() -> None:
    relay = Relay()
    relay.ask(prepare("insert into t values(?)"), relay.speech.prepared(1, parameters=1))
    relay.ask(execute(1, parameters=1, types=b"\xfc\0", values=b"\1x"), [ok_payload()])
    switched(relay, {1: 3})
    relay.to_client.clear()
    assert relay.client(execute(1, parameters=1, values=b"v" * (FULL + 10))) == b""
    (answer,) = split(bytes(relay.to_client))
    assert parse_err(answer[4:], "server").code == c.ER_NEED_REPREPARE
    relay.ask(PING, [ok_payload()])
    assert relay.tracker.at_boundary()


def test_reset_connection_forgets_the_statements() -> None:
    """field-notes: COM_RESET_CONNECTION"""
    relay = Relay()
    relay.ask(prepare("select 1"), relay.speech.prepared(1, columns=1))
    relay.ask(RESET, [err_payload(1047)])
    assert relay.ledger.statements
    relay.ask(RESET, [ok_payload()])
    assert relay.ledger.statements == {}
    assert relay.ledger.is_dirty


def test_mariadbs_last_prepared_statement_passes() -> None:
    relay = Relay(facts=MARIADB_FACTS)
    request = execute(c.STATEMENT_LAST_PREPARED)
    relay.client(prepare("do 1") + request)
    relay.answer(relay.speech.prepared(1))
    relay.answer([ok_payload()])
    assert relay.tracker.at_boundary()


@pytest.mark.parametrize("called", [c.STATEMENT_LAST_PREPARED, 0x8000_0001])
def test_a_statement_with_the_upper_bit_set_is_found(called: int) -> None:
    relay = Relay()
    prepared = 0x8000_0001
    relay.ask(prepare("set @a = ?"), relay.speech.prepared(prepared, parameters=1))
    relay.ask(execute(called, parameters=1, types=b"\x08\0", values=b"v" * 8), [ok_payload()])
    assert relay.ledger.is_dirty
    assert relay.ledger.statements[prepared].types == b"\x08\0"


def test_executing_a_marked_text_marks_the_ledger_each_time() -> None:
    relay = Relay()
    relay.ask(prepare("set @a = ?"), relay.speech.prepared(1, parameters=1))
    assert not relay.ledger.is_dirty
    relay.ask(execute(1, parameters=1, types=b"\x08\0", values=b"v" * 8), [ok_payload()])
    assert relay.ledger.is_dirty


# --- what marks the ledger ------------------------------------------------------------------------------------------


def test_the_ledger_is_told_when_the_statement_is_done() -> None:
    relay = Relay()
    relay.client(query("set @a = 1"))
    assert not relay.ledger.is_dirty
    relay.answer([ok_payload()])
    assert relay.ledger.is_dirty


def test_a_text_in_pieces_is_read_whole() -> None:
    relay = Relay()
    request = query("select 1, 'some text', @a := 5")
    relay.client(request[:9], request[9:20], request[20:])
    relay.answer(relay.speech.result())
    assert relay.ledger.is_dirty


def test_a_long_text_in_pieces_is_read_in_passing() -> None:
    relay = Relay()
    request = query("select '" + "x" * 100_000 + "', @a := 5")
    relay.client(*[request[start : start + 30_000] for start in range(0, len(request), 30_000)])
    relay.answer(relay.speech.result())
    assert relay.fetches == 0
    assert relay.ledger.is_dirty
    assert relay.ledger.pins == ["statement too long to read"]


def test_a_server_that_knows_no_reset_serves_nobody_else() -> None:
    """field-notes: COM_CHANGE_USER / COM_RESET_CONNECTION unsupported by some backends"""
    exchange = WIRE.reset(startup(), FACTS)
    answers = [err_payload(1047), *[ok_payload()] * (len(split(exchange.request)) - 1)]
    assert exchange.receive(b"".join(packet(one, 1) for one in answers))
    assert exchange.errors == ["reset: no (1047)"]


# --- what the last statement left ------------------------------------------------------------------------------------

ROW_COUNT = "select row_count()"


def give(number: int) -> bytes:
    return query(f"SET last_insert_id = {number}")


def inserted(number: int) -> bytes:
    return b"\0\1" + lenenc(number) + AUTOCOMMIT.to_bytes(2, "little") + b"\0\0"


@pytest.mark.parametrize("number", [1, 250, 251, 70_000, 1 << 24, (1 << 64) - 1])
def test_a_backend_that_lacks_the_insert_id_is_given_it_first(number: int) -> None:
    """field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS"""
    relay = Relay()
    relay.ask(query("insert into t values (null)"), [inserted(number)])
    relay.ask(query("select last_insert_id()"), relay.speech.result())
    relay.unlink()
    relay.link()
    relay.ask(query("select 'last_insert_id'"), relay.speech.result())
    asked = query("select last_insert_id()")
    assert relay.client(asked) == give(number) + asked
    answer = numbered(relay.speech.result())
    for one in packet(ok_payload(), 1):
        assert not relay.tracker.at_boundary()
        assert relay.server(bytes([one])) == b""
    assert relay.server(answer) == answer
    assert relay.tracker.at_boundary()
    assert not relay.ledger.is_dirty
    relay.ask(asked, relay.speech.result())


def test_a_prepared_statement_gets_the_insert_id_as_well() -> None:
    relay = Relay()
    relay.ask(prepare("select last_insert_id() + ?"), relay.speech.prepared(1, parameters=1))
    relay.ask(query("insert into t values (null)"), [inserted(7)])
    relay.unlink()
    relay.link(notes={"statement_ids": {1: 1}})
    request = execute(1, parameters=1, types=b"\x08\0", values=b"v" * 8)
    assert relay.client(request) == give(7) + request
    assert relay.server(packet(ok_payload(), 1)) == b""
    answer = numbered(relay.speech.result())
    assert relay.server(answer) == answer


def test_a_lost_backend_owes_no_answer_for_what_was_ours() -> None:
    relay = Relay(shares=True)
    relay.client(query("select last_insert_id()"))
    assert bytes(relay.to_server) == give(0) + query("select last_insert_id()")
    error = ErrorReply("gone", "08006", 2013, "HY000")
    assert relay.tracker.lose(error, error) == error_packet(error, 1)


def test_in_transaction_mode_another_s_row_count_is_never_shown() -> None:
    """field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS"""
    relay = Relay(shares=True)
    relay.ask(query("update t set a = 1"), [ok_payload(affected=3)])
    assert relay.ledger.is_empty
    relay.unlink()
    relay.link()
    assert relay.client(query(ROW_COUNT)) == b""
    assert parse_err(split(bytes(relay.to_client))[-1][4:], "server").code == 1105
    relay.ask(query("update t set a = 1"), [ok_payload(affected=3)])
    assert (relay.ledger.ties, relay.ledger.is_empty) == (["row counts"], False)
    relay.ask(query(ROW_COUNT), relay.speech.result())
    assert (relay.ledger.ties, relay.ledger.is_empty) == ([], True)


def test_counted_rows_keep_the_backend_until_the_next_statement() -> None:
    relay = Relay(shares=True)
    relay.ask(query("select sql_calc_found_rows 1 from t limit 1"), relay.speech.result())
    assert relay.ledger.ties == ["row counts"]
    relay.ask(query("select found_rows()"), relay.speech.result())
    assert relay.ledger.ties == []


@pytest.mark.parametrize(
    "text", ["update t set a = 1; select row_count()", "create function f() returns int return row_count()"]
)
def test_a_count_within_the_same_text_is_the_server_s(text: str) -> None:
    relay = Relay(shares=True)
    assert relay.client(query(text)) == query(text)


# --- session tracking -----------------------------------------------------------------------------------------------

CHANGED = (c.TRACK_STATE_CHANGE, b"1")
SCHEMA = (c.TRACK_SCHEMA, lenenc_bytes(b"other"))
CHANGED_INSIDE = (c.TRACK_STATE_CHANGE, b"\x011")


def characteristics(text: bytes) -> tuple[int, bytes]:
    return (c.TRACK_TRANSACTION_CHARACTERISTICS, lenenc_bytes(text))


def state(text: bytes) -> tuple[int, bytes]:
    return (c.TRACK_TRANSACTION_STATE, lenenc_bytes(text))


def variable(name: bytes, value: bytes) -> tuple[int, bytes]:
    return (c.TRACK_SYSTEM_VARIABLES, lenenc_bytes(name) + lenenc_bytes(value))


def told(relay: Relay, payload: bytes, shown: bytes) -> None:
    """The server says `payload` to a query, and the client sees `shown`, in any cut."""
    for size in (1, 7, 1000):
        relay.client(query("select f()"))
        before = len(relay.to_client)
        answer = packet(payload, 1)
        for at in range(0, len(answer), size):
            relay.server(answer[at : at + size])
        assert relay.to_client[before:] == packet(shown, 1)
        assert relay.tracker.is_idle()


@pytest.mark.parametrize("info", [b"", b"Rows matched: 1"])
@pytest.mark.parametrize("header", [c.OK, c.EOF])
@pytest.mark.parametrize("entry", [CHANGED, CHANGED_INSIDE])
def test_what_a_server_tells_of_changes_is_for_the_proxy(info: bytes, header: int, entry: tuple[int, bytes]) -> None:
    """field-notes: Session tracking"""
    relay = Relay(deprecates_eof=True, facts=TRACKING_FACTS)
    payload = told_payload(entry, header=header, info=info)
    shown = ok_payload(header=header, info=lenenc_bytes(info) if info else b"")
    if header == c.OK:
        told(relay, payload, shown)
    else:
        relay.client(query("select f()"))
        answer = [lenenc(1), column_payload(), row_payload(b"x")]
        assert relay.answer([*answer, payload]) == numbered([*answer, shown])
    assert relay.ledger.is_dirty


def test_the_database_is_known_from_the_server() -> None:
    relay = Relay(facts=TRACKING_FACTS)
    told(relay, told_payload(SCHEMA), ok_payload())
    assert relay.ledger.database == b"other"


def test_a_client_that_asked_for_tracking_is_shown_what_it_would_be_told() -> None:
    """field-notes: Session tracking"""
    relay = Relay(facts=TRACKING_FACTS, more=c.CLIENT_SESSION_TRACK)
    mode, unknown = variable(b"sql_mode", b"ANSI"), (99, b"what is this")
    entries = [mode, SCHEMA, CHANGED, state(b"________"), characteristics(b""), unknown]
    told(relay, told_payload(*entries), told_payload(mode, SCHEMA, unknown))
    told(relay, told_payload(CHANGED), ok_payload())
    relay.ask(query("set session_track_state_change = on, session_track_transaction_info = 'STATE'"), [ok_payload()])
    told(relay, told_payload(*entries), told_payload(*entries))


@pytest.mark.parametrize("entry", [variable(b"statement_id", b"7"), variable(b"last_gtid", b"0-1-77")])
def test_variables_that_change_by_themselves_cost_nothing(entry: tuple[int, bytes]) -> None:
    """What comes with every statement is not even copied."""
    relay = Relay(facts=TRACKING_FACTS, more=c.CLIENT_SESSION_TRACK)
    edited = relay.tracker.edited_size
    relay.ask(query("select f()"), [told_payload(entry)])
    assert (relay.fetches, relay.tracker.edited_size, relay.ledger.is_dirty) == (0, edited, False)


def test_the_server_says_how_long_set_transaction_is_in_force() -> None:
    """field-notes: SESSION_TRACK_TRANSACTION_STATE / CHARACTERISTICS"""
    relay = Relay(facts=TRACKING_FACTS, deprecates_eof=True)
    once = characteristics(b"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;")
    told(relay, told_payload(once), ok_payload())
    assert not relay.tracker.at_boundary()
    relay.ask(query("select 1"), relay.speech.result())
    assert not relay.tracker.at_boundary(), "a statement without a table begins no transaction"
    told(relay, told_payload(characteristics(b"")), ok_payload())
    assert relay.tracker.at_boundary()
    assert not relay.ledger.is_dirty


def test_locked_tables_are_known_from_the_server() -> None:
    """field-notes: SESSION_TRACK_TRANSACTION_STATE / CHARACTERISTICS"""
    relay = Relay(facts=TRACKING_FACTS)
    told(relay, told_payload(state(b"_______L")), ok_payload())
    assert relay.ledger.pins == ["locked tables"]
    told(relay, told_payload(state(b"________")), ok_payload())
    assert relay.ledger.pins == []


def test_a_classic_eof_does_not_show_that_there_is_news() -> None:
    relay = Relay(facts=TRACKING_FACTS)
    relay.client(query("select f()"))
    rows = [lenenc(1), column_payload(), eof_payload(), row_payload(b"x"), eof_payload()]
    news = [
        lenenc(1),
        column_payload(),
        eof_payload(AUTOCOMMIT | NEWS),
        row_payload(b"x"),
        eof_payload(AUTOCOMMIT | NEWS),
    ]
    assert relay.answer(news) == numbered(rows)
    assert relay.ledger.is_dirty


def test_news_within_a_transaction_do_not_mark_the_ledger() -> None:
    relay = Relay(facts=TRACKING_FACTS)
    begun(relay)
    relay.client(query("select a from t"))
    relay.answer([lenenc(1), column_payload(), eof_payload(IN_TRANS | NEWS), eof_payload(IN_TRANS | NEWS)])
    told(relay, told_payload(state(b"T_R_____"), status=IN_TRANS), ok_payload(IN_TRANS))
    assert not relay.ledger.is_dirty


@pytest.mark.parametrize("payload", [
    ok_payload(AUTOCOMMIT | c.SERVER_SESSION_STATE_CHANGED, info=b"\xfc"),
    ok_payload(AUTOCOMMIT | c.SERVER_SESSION_STATE_CHANGED, info=b"\0\5\0\\9"),
    ok_payload(AUTOCOMMIT | c.SERVER_SESSION_STATE_CHANGED, info=b"\0\4\1\2\\9x"),
])  # fmt: skip
def test_news_that_cannot_be_read_are_the_server_s_violation(payload: bytes) -> None:
    relay = Relay(facts=TRACKING_FACTS)
    relay.client(query("select f()"))
    with pytest.raises(ProtocolViolation, match="server"):
        relay.answer([payload])


def test_init_db_changes_the_database_if_the_server_agrees() -> None:
    relay = Relay()
    relay.ask(command(c.COM_INIT_DB, b"other"), [err_payload(1049)])
    assert relay.ledger.database == b"app"
    relay.ask(command(c.COM_INIT_DB, b"other"), [ok_payload()])
    assert relay.ledger.database == b"other"
    relay.ask(query("use `app`"), [ok_payload()])
    assert relay.ledger.database == b"app"


# --- violations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        packet(b"\3select 1", 1),
        packet(b"", 0),
        packet(b"\x17\1\0\0\0", 0),
        packet(b"\x19\1", 0),
        packet(b"\x1b\1", 0),
        packet(b"\1" + bytes(100), 0),
        packet(b"\2" + bytes(5000), 0),
        b"\xff\xff\xff\0\x55",
        b"\xff\xff\xff\0\x11",
    ],
)
def test_what_no_client_may_send_ends_the_session(data: bytes) -> None:
    relay = Relay()
    with pytest.raises(ProtocolViolation) as caught:
        relay.client(data)
    assert caught.value.peer == "client"


def test_a_continued_packet_has_the_next_sequence_id() -> None:
    relay = Relay()
    request = command(c.COM_PING, b"x" * FULL)
    wrong = bytearray(request)
    wrong[4 + FULL + 3] = 7
    with pytest.raises(ProtocolViolation, match="client"):
        relay.client(bytes(wrong))


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"", numbered([ok_payload()])),
        (query("select 1"), packet(ok_payload(), 2)),
        (query("select 1"), packet(b"", 1)),
        (query("select 1"), packet(b"\0", 1)),
        (query("select 1"), packet(b"\0\xfe\1\2", 1)),
        (query("select 1"), packet(b"\0\xff\0\0\0", 1)),
        (query("select 1"), packet(b"\xfe\0\0\2\0", 1)),
        (query("select 1"), packet(b"\xfc\0\0", 1)),
        (query("select 1"), packet(b"\2\2", 1)),
        (query("select 1"), packet(b"\xfd\0\0\1", 1)),
        (query("select 1"), packet(b"\1", 1) + packet(eof_payload(), 2)),
        (query("select 1"), packet(b"\1", 1) + packet(column_payload(), 2) + packet(row_payload(b"a"), 3)),
        (query("select 1"), packet(b"\1", 1) + packet(column_payload(), 2) + packet(b"\xfe\0\0", 3)),
        (query("select 1"), packet(b"\xfb", 1)),
        (PING, packet(b"\1", 1)),
        (prepare("select 1"), packet(b"\0\1\0\0\0", 1)),
        (prepare("select 1"), packet(b"\1" + bytes(11), 1)),
        (prepare("select 1"), packet(b"\0\xff\xff\xff\xff" + bytes(7), 1)),
        (command(c.COM_FIELD_LIST, b"t\0"), packet(ok_payload(), 1)),
        (PING, b"\xff\xff\xff\1\0\0\0\2\0\0\0"),
    ],
)  # fmt: skip
def test_what_no_server_may_send_ends_the_session(request_: bytes, answer: bytes) -> None:
    relay = Relay()
    relay.client(request_)
    with pytest.raises(ProtocolViolation) as caught:
        relay.server(answer + bytes(64))
    assert caught.value.peer == "server"


def test_why_a_server_ends_an_idle_session_is_held_back() -> None:
    """It may mean this session or every one; who finds out decides what the client is told."""
    relay = Relay()
    farewell = packet(err_payload(4031), 0)
    assert relay.server(farewell[:7]) == b""
    assert not relay.tracker.has_last_words
    assert relay.server(farewell[7:]) == b""
    assert relay.tracker.has_last_words
    assert relay.tracker.take_last_words() == farewell
    assert not relay.tracker.has_last_words
    assert relay.tracker.errors == 0


def test_a_backend_is_not_given_back_while_it_says_why_it_ends() -> None:
    """The rest of it would be taken for the next session's answer."""
    relay = Relay()
    farewell = packet(err_payload(4031), 0)
    assert relay.tracker.at_boundary()
    relay.server(farewell[:7])
    assert not relay.tracker.at_boundary()
    assert not relay.tracker.is_idle()
    relay.server(farewell[7:])
    assert relay.tracker.at_boundary()


# --- a backend that is lost ---------------------------------------------------------------------------------------

ABORTED = ErrorReply(message="aborted", sqlstate="40001", mysql_code=1213, mysql_sqlstate="40001", is_fatal=False)
UNKNOWN = ErrorReply(message="unknown", sqlstate="08007", mysql_code=2013, mysql_sqlstate="HY000", is_fatal=False)


def lost(relay: Relay) -> bytes | None:
    """The backend is gone; what the client has to be told."""
    told = relay.tracker.lose(ABORTED, UNKNOWN)
    relay.is_linked = False
    relay.tracker.gate = GATE_CLOSED
    return told


def test_why_a_server_ends_a_session_may_come_while_the_client_begins_to_ask() -> None:
    relay = Relay()
    farewell = packet(err_payload(4031), 0)
    assert relay.server(farewell[:7]) == b""
    assert relay.client(PING) == PING
    assert relay.server(farewell[7:]) == b""
    assert relay.tracker.take_last_words() == farewell
    told = lost(relay)
    assert told is not None
    assert told.endswith(b"#HY000unknown")


def open_transaction(relay: Relay) -> None:
    relay.ask(query("begin"), [ok_payload(IN_TRANS)])


def test_an_idle_session_is_told_nothing_of_its_lost_backend() -> None:
    relay = Relay()
    relay.ask(query("select 1"), relay.speech.result())
    assert lost(relay) == b""
    relay.link()
    relay.ask(query("select 1"), relay.speech.result())


@pytest.mark.parametrize("text", ["insert into t values (1)", "select 1", "commit"])
def test_outside_of_a_transaction_a_lost_statement_may_have_been_executed(text: str) -> None:
    relay = Relay()
    relay.client(query(text))
    assert lost(relay) == error_packet(UNKNOWN, 1)
    relay.link()
    relay.ask(query("select 1"), relay.speech.result())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("select 1", ABORTED),
        ("insert into t values (1)", ABORTED),
        ("commit", UNKNOWN),
        ("drop table t", UNKNOWN),
        ("set autocommit = 1", UNKNOWN),
        ("call p()", UNKNOWN),
        ("/*! commit */", UNKNOWN),
        ("select 1; commit", UNKNOWN),
    ],
)
def test_in_a_transaction_only_what_may_commit_leaves_a_doubt(text: str, told: ErrorReply) -> None:
    """field-notes: Implicit commits by DDL"""
    relay = Relay()
    open_transaction(relay)
    relay.client(query(text))
    assert lost(relay) == error_packet(told, 1)
    assert relay.tracker.at_boundary()


@pytest.mark.parametrize(("text", "told"), [("insert into t values (?)", ABORTED), ("commit", UNKNOWN)])
def test_the_same_holds_for_prepared_statements(text: str, told: ErrorReply) -> None:
    relay = Relay()
    relay.ask(prepare(text), relay.speech.prepared(1))
    open_transaction(relay)
    relay.client(execute(1))
    assert lost(relay) == error_packet(told, 1)


@pytest.mark.parametrize("text", ["rollback", "ROLLBACK WORK;", "/* ours */ rollback -- now", " Rollback ; "])
def test_a_rollback_needs_no_server(text: str) -> None:
    relay = Relay()
    open_transaction(relay)
    relay.client(query(text))
    assert relay.tracker.rolled_back_answer() == packet(ok_payload(), 1)
    relay.unlink()
    assert relay.tracker.errors == 0
    relay.link()
    relay.ask(query("select 1"), relay.speech.result())


@pytest.mark.parametrize(
    "requests",
    [
        query("rollback to savepoint a"),
        query("rollback to work"),
        query("rollback and chain"),
        query("rollback release"),
        query("rollback /*! release */"),
        query("rollback; select 1"),
        query("select 1; rollback"),
        query("commit"),
        query("select 1") + query("rollback"),
        query("rollback") + query("select 1"),
        query("rollback")[:-2],
        PING,
    ],
)
def test_any_other_request_gets_its_error(requests: bytes) -> None:
    relay = Relay()
    open_transaction(relay)
    relay.client(requests)
    assert relay.tracker.rolled_back_answer() == b""


def test_a_rollback_that_was_answered_is_not_answered_again() -> None:
    relay = Relay()
    open_transaction(relay)
    relay.ask(query("rollback"), [ok_payload()])
    assert relay.tracker.rolled_back_answer() == b""
    relay.client(query("select 1"))
    assert relay.tracker.rolled_back_answer() == b""


def test_a_lost_transaction_is_told_with_the_next_statement() -> None:
    relay = Relay()
    open_transaction(relay)
    assert lost(relay) == b""
    assert relay.client(query("insert into t values (1)")) == b""
    assert relay.kept, "it waits for a backend"
    relay.to_client.clear()
    relay.link()
    assert relay.go_on() == b"", "it reaches no server"
    assert relay.to_client == error_packet(ABORTED, 1)
    relay.ask(query("select 1"), relay.speech.result())


@pytest.mark.parametrize("size", [100, 0xFF_FF_FF])
def test_a_lost_transaction_is_told_to_a_statement_of_any_size(size: int) -> None:
    relay = Relay()
    open_transaction(relay)
    lost(relay)
    relay.link()
    relay.to_client.clear()
    assert relay.client(query("/" * (size - 1))) == b""
    assert relay.to_client == error_packet(ABORTED, 1)
    relay.ask(PING, [ok_payload()])


@pytest.mark.parametrize("text", ["ROLLBACK", "rollback;", " Rollback Work "])
def test_a_rollback_is_what_a_lost_transaction_needs(text: str) -> None:
    relay = Relay()
    open_transaction(relay)
    lost(relay)
    relay.link()
    relay.ask(query(text), [ok_payload()])
    relay.ask(query("select 1"), relay.speech.result())


def test_set_transaction_is_lost_with_its_backend() -> None:
    relay = Relay()
    relay.ask(query("set transaction isolation level serializable"), [ok_payload()])
    assert not relay.tracker.at_boundary()
    lost(relay)
    relay.link()
    relay.to_client.clear()
    assert relay.client(query("begin")) == b""
    assert relay.to_client == error_packet(ABORTED, 1)


def test_each_pipelined_command_has_its_error() -> None:
    relay = Relay()
    relay.client(query("select 1"), PING, query("select 2"))
    relay.server(numbered(relay.speech.result())[:12])
    assert lost(relay) is None, "half a packet has gone out"
    relay = Relay()
    relay.client(query("select 1"), PING, query("select 2"))
    relay.server(numbered([lenenc(1)]))
    assert lost(relay) == error_packet(UNKNOWN, 2) + error_packet(UNKNOWN, 1) * 2


def test_the_rest_of_a_command_that_was_half_sent_is_dropped() -> None:
    relay = Relay()
    long = query("insert into t values ('" + "x" * 70_000 + "')")
    assert relay.client(long[:1000]) == long[:1000]
    assert lost(relay) == error_packet(UNKNOWN, 1)
    assert relay.tracker.message_size == len(long) - 1000


def test_what_cannot_be_told_ends_the_session() -> None:
    relay = Relay(more=c.CLIENT_LOCAL_FILES)
    relay.client(query("load data local infile 'f' into table t"))
    relay.server(numbered([b"\xfbf"]))
    assert lost(relay) is None, "the client is sending a file"
    relay = Relay()
    relay.ask(prepare("insert into t values (?)"), relay.speech.prepared(1, parameters=1))
    relay.client(on_statement(c.COM_STMT_SEND_LONG_DATA, 1, b"\0\0part"))
    assert lost(relay) is None, "the next execute would go without it"
    relay = Relay()
    big = packet(b"\x03" + b"/" * (0xFF_FF_FF - 1), 0)
    relay.client(big[:-4])
    assert lost(relay) is None, "the command goes on in another packet"


@pytest.mark.parametrize(
    ("payload", "is_quiet"),
    [
        (ok_payload(), True),
        (ok_payload(affected=3), False),
        (ok_payload()[:-2] + b"\1\0", False),
        (err_payload(), False),
    ],
)
def test_the_server_may_be_asked_where_nothing_can_be_read_of_the_last_statement(
    payload: bytes, is_quiet: bool
) -> None:
    """field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS"""
    relay = Relay()
    relay.ask(query("select 1"), relay.speech.result())
    assert not relay.tracker.asks_quietly()
    relay.ask(query("set names utf8mb4"), [payload])
    assert relay.tracker.asks_quietly() == is_quiet


@pytest.mark.skipif(IS_READABLE, reason="the compiled tracker's promise")
def test_a_scan_in_the_steady_state_creates_no_object() -> None:
    relay = Relay(facts=TRACKING_FACTS)
    tracker = relay.tracker
    told(relay, told_payload(state(b"________")), ok_payload())
    relay.ask(prepare("select c from t where id = ?"), relay.speech.prepared(1, columns=1, parameters=1))
    types = b"\x08\0"
    relay.ask(execute(1, parameters=1, types=types, values=b"v" * 8), relay.speech.result())
    answer = numbered(relay.speech.result(rows=20))
    turns = [
        (query("select c from t where id = 123456"), answer),
        (execute(1, parameters=1, values=b"v" * 8), answer),
        (execute(1, parameters=1, types=types, values=b"v" * 8), answer),
        (query("begin"), numbered([ok_payload(IN_TRANS)])),
        (query("update t set c = 'x@y; z' where id = 1"), numbered([ok_payload(IN_TRANS, affected=1)])),
        (query("commit"), numbered([told_payload(characteristics(b""), state(b"________"))])),
    ]

    def peak_of(turns: list[tuple[bytes, int, bytes, int]]) -> int:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for request, request_size, reply, reply_size in turns:
            tracker.scan_client(request, 0, request_size)
            tracker.scan_server(reply, 0, reply_size)
        return tracemalloc.get_traced_memory()[1] - before

    sizes = [(request, len(request), reply, len(reply)) for request, reply in turns]
    tracemalloc.start()
    try:
        peak_of(sizes)
        # The measuring itself needs a little.
        assert peak_of(sizes * 10) == peak_of([])
    finally:
        tracemalloc.stop()
    assert tracker.at_boundary()


@BOTH
def test_warnings_keep_their_backend_until_the_next_statement(deprecates_eof: bool) -> None:
    """field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS"""
    relay = Relay(deprecates_eof=deprecates_eof, shares=True)
    warned = ok_payload()[:-2] + b"\2\0"
    relay.ask(query("select 1"), relay.speech.result())
    assert relay.ledger.is_empty
    relay.ask(query("insert into t values ('too long')"), [warned])
    assert relay.ledger.ties == ["warnings"]
    assert not relay.ledger.is_empty
    relay.ask(query("select 1"), relay.speech.result())
    assert relay.ledger.is_empty
    rows = relay.speech.result()
    rows[-1] = rows[-1][:-2] + b"\1\0" if deprecates_eof else b"\xfe\1\0" + rows[-1][3:]
    relay.ask(query("select cast('12x' as signed)"), rows)
    assert relay.ledger.ties == ["warnings"]
    relay.client(query("select nonsense"))
    relay.server(numbered([err_payload()]))
    assert relay.ledger.is_empty


# --- what may be read elsewhere ---------------------------------------------------------------------------------------


def test_one_query_is_a_lone_statement_and_nothing_else_is() -> None:
    relay = Relay(shares=True)
    assert relay.tracker.lone_statement(query("select 1")) == b"select 1"
    assert relay.tracker.lone_statement(PING) == b""
    for work in (
        b"",
        query("select 1") * 2,
        query("select 1") + PING,
        query("select 1")[:-1],
        query("select 1")[:4],
        prepare("select 1"),
        execute(1),
        RESET,
    ):
        assert relay.tracker.lone_statement(work) is None


def test_no_statement_is_lone_where_its_server_could_be_told_by_what_follows() -> None:
    """field-notes: autocommit=0"""
    relay = Relay(shares=True)
    relay.ask(query("set autocommit = 0"), [ok_payload(0)])
    assert relay.tracker.lone_statement(query("select 1")) is None
    relay.ask(query("set autocommit = 1"), [ok_payload()])
    assert relay.tracker.lone_statement(query("select 1")) == b"select 1"
    counting = Relay(shares=True)
    counting.client(query("select found_rows()"))
    assert counting.tracker.lone_statement(query("select 1")) is None


def test_a_statement_s_attributes_are_no_text_of_it() -> None:
    relay = Relay(shares=True, more=c.CLIENT_QUERY_ATTRIBUTES)
    assert relay.tracker.lone_statement(command(c.COM_QUERY, b"\0\1select 1")) == b"select 1"
    assert relay.tracker.lone_statement(command(c.COM_QUERY, b"\1\1select 1")) is None


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        (b"show warnings", True),
        (b" SHOW COUNT(*) WARNINGS", True),
        (b"show errors limit 1", True),
        (b"show warning", False),
        (b"select 1", False),
    ],
)
def test_who_asks_for_warnings_is_known(text: bytes, asks: bool) -> None:
    assert WIRE.asks_for_warnings(text) is asks


@pytest.mark.parametrize("text", ["drop table x", "use app", "handler", "xa", "prepare", "unlock", "deallocate"])
def test_a_row_of_comments_has_one_reading(text: str) -> None:
    """Patterns over it take a time that grows with its length: read in each possible way, this would never end."""
    relay = Relay()
    relay.ask(query("/*a*/" * 2_000 + text), [ok_payload()])
