"""What only one of the two families has: query attributes, bulk executes, reports of progress, extended capabilities; and
dumps of the binlog."""

from __future__ import annotations

import dataclasses

import pytest

from protocols.codes import GATE_DRAIN, GATE_OPEN
from protocols.errors import ProtocolViolation
from protocols.mysql import constants as c
from protocols.mysql.exchange import Exchange, Question
from protocols.mysql.handshake import MysqlServerLogin
from protocols.mysql.messages import (
    Greeting,
    Response,
    build_greeting,
    build_response,
    command,
    lenenc,
    lenenc_bytes,
    packet,
    parse_greeting,
    parse_response,
    text_of_query,
)
from protocols.wire import BackendRefused, ErrorReply, Startup
from tests.protocols.mysql.relay import (
    MARIADB_FACTS,
    PING,
    Relay,
    column_payload,
    err_payload,
    execute,
    numbered,
    ok_payload,
    prepare,
    query,
    row_payload,
)

LONGLONG = b"\x08\0"
VARCHAR = b"\xfd\0"
GREETING = Greeting("11.4", 7, b"s" * 20, 0, 45, 2, "mysql_native_password")
PROGRESS = b"\xff\xff\xff\x01\x01\x02" + (50_000).to_bytes(3, "little") + lenenc_bytes(b"copy to tmp table")


# --- capabilities ---------------------------------------------------------------------------------------------------


def test_mariadbs_extended_capabilities_stand_in_the_filler() -> None:
    """field-notes: MariaDB capability bits"""
    both = c.CLIENT_PROTOCOL_41 | c.CLIENT_PLUGIN_AUTH | c.CLIENT_SECURE_CONNECTION | c.MARIADB_CAPABILITIES
    greeting = dataclasses.replace(GREETING, capabilities=both)
    assert parse_greeting(build_greeting(greeting)).capabilities == both
    response = Response(both, 45, "app", b"", "", "mysql_native_password")
    assert parse_response(build_response(response, ()), both).capabilities == both
    # Where CLIENT_LONG_PASSWORD is set, these bytes mean nothing.
    flags = both | c.CLIENT_LONG_PASSWORD
    greeting = dataclasses.replace(GREETING, capabilities=flags)
    assert parse_greeting(build_greeting(greeting)).capabilities == flags & 0xFFFF_FFFF
    response = dataclasses.replace(response, capabilities=flags)
    assert parse_response(build_response(response, ()), flags).capabilities == flags & 0xFFFF_FFFF


def test_an_engine_that_lacks_what_the_client_has_is_refused_by_name() -> None:
    startup = Startup("app", "", capabilities=c.MARIADB_CLIENT_STMT_BULK_OPERATIONS | c.CLIENT_QUERY_ATTRIBUTES)
    login = MysqlServerLogin(startup, "secret")
    flags = c.OFFERED_CAPABILITIES & ~(startup.capabilities | c.CLIENT_LONG_PASSWORD)
    (refused,) = login.receive(packet(build_greeting(dataclasses.replace(GREETING, capabilities=flags)), 0))
    assert isinstance(refused, BackendRefused)
    assert "CLIENT_QUERY_ATTRIBUTES, MARIADB_CLIENT_STMT_BULK_OPERATIONS" in refused.message


# --- query attributes -----------------------------------------------------------------------------------------------


def attributes(*values: tuple[bytes, bytes, bytes | None], parameter_sets: int = 1) -> bytes:
    """(type, name, value as it stands on the wire or None) of each."""
    if not values:
        return b"\0\1"
    nulls = bytearray((len(values) + 7) // 8)
    for index, (_, _, value) in enumerate(values):
        if value is None:
            nulls[index // 8] |= 1 << index % 8
    kinds = b"".join(kind + lenenc_bytes(name) for kind, name, _ in values)
    return (
        lenenc(len(values)) + lenenc(parameter_sets) + nulls + b"\1" + kinds
        + b"".join(value for _, _, value in values if value is not None)
    )  # fmt: skip


SOME = attributes(
    (VARCHAR, b"traceparent", lenenc_bytes(b"00-4bf9")),
    (LONGLONG, b"number", (7).to_bytes(8, "little")),
    (VARCHAR, b"nothing", None),
    (b"\x01\0", b"", b"\5"),
    (b"\x0c\0", b"when", b"\4\xe8\x07\1\1"),
)


def asked(text: bytes, before: bytes = SOME) -> bytes:
    return command(c.COM_QUERY, before + text)


def with_attributes() -> Relay:
    return Relay(more=c.CLIENT_QUERY_ATTRIBUTES)


def cuts(request: bytes) -> list[list[bytes]]:
    return [
        [request],
        [request[:6], request[6:]],
        [request[start : start + 7_000] for start in range(0, len(request), 7_000)],
    ]


@pytest.mark.parametrize("size", [10, 2_000, 70_000])
@pytest.mark.parametrize("count", [0, 5, 300])
def test_the_text_behind_the_attributes_is_what_is_read(count: int, size: int) -> None:
    """field-notes: Query attributes (CLIENT_QUERY_ATTRIBUTES)"""
    before = {0: attributes(), 5: SOME}.get(count) or attributes(*[(VARCHAR, b"n", lenenc_bytes(b"value"))] * count)
    locking = asked(b"lock tables t write /* " + b"y" * size + b" */", before)
    plain = asked(b"select '" + b"y" * size + b"'", before)
    for chunks in cuts(locking):
        relay = with_attributes()
        assert relay.client(*chunks) == locking
        assert not relay.tracker.is_idle()
        relay.answer([ok_payload()])
        assert relay.ledger.pins == (["locked tables"] if size < 60_000 else ["statement too long to read"])
        assert relay.tracker.at_boundary()
    for chunks in cuts(plain):
        relay = with_attributes()
        assert relay.client(*chunks) == plain
        relay.answer(relay.speech.result())
        assert not relay.ledger.is_dirty


@pytest.mark.parametrize(
    "before",
    [b"\1", b"\0\2", b"\1\1\0\1\xfd", b"\1\1\0\0", b"\xff\1", attributes((VARCHAR, b"n" * 70_000, None))],
    ids=["nothing", "two sets", "cut", "no types", "no length", "very long"],
)
def test_a_text_that_is_not_found_may_have_changed_anything(before: bytes) -> None:
    request = asked(b"select 1" if len(before) > 9 else b"", before)
    for chunks in cuts(request):
        relay = with_attributes()
        assert relay.client(*chunks) == request
        relay.answer([ok_payload()])
        assert relay.ledger.is_dirty
        assert relay.ledger.pins == ["statement too long to read"]


def test_a_kill_and_a_rollback_are_found_behind_attributes() -> None:
    relay = with_attributes()
    assert relay.client(asked(b"kill query 7")) == b""
    assert relay.tracker.wants_kill() is not None
    relay = with_attributes()
    relay.ask(asked(b"begin"), [ok_payload(3)])
    aborted = ErrorReply("lost", "40001", 1213, "40001")
    assert relay.tracker.lose(aborted, aborted) == b""
    relay.is_linked = False
    relay.link()
    relay.ask(asked(b"rollback", attributes()), [ok_payload()])


def bound(statement: int, *parameters: tuple[bytes, bytes, bytes | None], types: bool = True, flags: int = 8) -> bytes:
    """A COM_STMT_EXECUTE of a connection with CLIENT_QUERY_ATTRIBUTES."""
    body = statement.to_bytes(4, "little") + bytes([flags]) + b"\1\0\0\0" + lenenc(len(parameters))
    if parameters:
        body += bytes((len(parameters) + 7) // 8) + (b"\1" if types else b"\0")
        if types:
            body += b"".join(kind + lenenc_bytes(name) for kind, name, _ in parameters)
        body += b"".join(value or b"" for _, _, value in parameters)
    return command(c.COM_STMT_EXECUTE, body)


OWN = ((VARCHAR, b"", lenenc_bytes(b"v" * 90)), (LONGLONG, b"", bytes(8)))
NAMED = (VARCHAR, b"traceparent", lenenc_bytes(b"00-4bf9"))


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("server_id", [1, 9])
def test_types_with_names_are_kept_for_the_next_backend(server_id: int, is_cut: bool) -> None:
    relay = with_attributes()
    relay.ask(prepare("select ?,?"), relay.speech.prepared(1, columns=2, parameters=2))
    first = bound(1, *OWN, NAMED)
    assert relay.client(*([first[:70], first[70:]] if is_cut else [first])) == first
    relay.answer(relay.speech.result())
    assert relay.ledger.statements[1].types == VARCHAR + LONGLONG
    fetched = relay.fetches
    relay.ask(bound(1, *OWN, types=False), relay.speech.result())
    relay.ask(bound(1, *OWN), relay.speech.result())
    assert relay.fetches == fetched
    relay.unlink()
    relay.link(notes={"statement_ids": {1: server_id}, "types_due": {1}})
    assert relay.client(bound(1, *OWN, types=False)) == bound(server_id, *OWN)
    relay.answer(relay.speech.result())
    assert relay.client(bound(1, *OWN, types=False)) == bound(server_id, *OWN, types=False)


def test_an_execute_without_parameters_may_have_attributes() -> None:
    relay = with_attributes()
    relay.ask(prepare("select 1"), relay.speech.prepared(1, columns=1))
    relay.ask(bound(1, NAMED), relay.speech.result())
    relay.ask(bound(1), relay.speech.result())
    relay.ask(execute(1), relay.speech.result())


def test_what_turnout_asks_has_no_attributes_and_says_so() -> None:
    for text in (b"select 1", b"x" * 20_000_000):
        plain = Exchange([Question(query(text)), Question(PING)], capabilities=0)
        attributed = Exchange([Question(query(text)), Question(PING)], capabilities=c.CLIENT_QUERY_ATTRIBUTES)
        assert plain.request == query(text) + PING
        assert attributed.request == asked(text, b"\0\1") + PING


# --- bulk executes ----------------------------------------------------------------------------------------------------


def bulk(statement: int, rows: bytes, *, types: bytes = b"", flags: int = 0) -> bytes:
    flags |= c.BULK_TYPES if types else 0
    return command(
        c.COM_STMT_BULK_EXECUTE, statement.to_bytes(4, "little") + flags.to_bytes(2, "little") + types + rows
    )


ROWS = b"".join(b"\0" + bytes(8) + b"\0" + lenenc_bytes(b"v" * 40) for _ in range(30))


@pytest.mark.parametrize("server_id", [1, 9])
def test_a_bulk_execute_has_its_id_mapped_and_its_types_kept(server_id: int) -> None:
    relay = Relay(more=c.MARIADB_CLIENT_STMT_BULK_OPERATIONS, facts=MARIADB_FACTS)
    relay.ask(prepare("insert into t values (?,?)"), relay.speech.prepared(1, parameters=2))
    relay.ask(bulk(1, ROWS, types=LONGLONG + VARCHAR), [ok_payload(affected=30)])
    relay.ask(bulk(1, ROWS), [ok_payload(affected=30)])
    # A statement with RETURNING, or a client that wants to be told of each row.
    relay.ask(bulk(1, ROWS, flags=0x40), relay.speech.result(rows=30))
    relay.unlink()
    relay.link(MARIADB_FACTS, {"statement_ids": {1: server_id}, "types_due": {1}})
    assert relay.client(bulk(1, ROWS)) == bulk(server_id, ROWS, types=LONGLONG + VARCHAR)
    relay.answer([ok_payload(affected=30)])
    assert relay.client(bulk(1, ROWS)[:20], bulk(1, ROWS)[20:]) == bulk(server_id, ROWS)
    relay.answer([ok_payload(affected=30)])
    # The plain form goes on with the same types, and the other way round.
    with_types = execute(server_id, parameters=2, values=b"v" * 20)
    assert relay.client(execute(1, parameters=2, values=b"v" * 20)) == with_types


def test_a_bulk_execute_that_was_not_agreed_on_is_no_command() -> None:
    relay = Relay()
    assert relay.client(bulk(1, ROWS)) == b""
    assert relay.to_client[4] == c.ERR


# --- reports of progress ----------------------------------------------------------------------------------------------


def test_a_report_of_progress_is_no_end_of_the_answer() -> None:
    relay = Relay(more=c.MARIADB_CLIENT_PROGRESS)
    relay.client(query("alter table t force"))
    answer = numbered([PROGRESS, PROGRESS, ok_payload()])
    for index in range(len(answer)):
        assert not relay.tracker.is_idle()
        relay.server(answer[index : index + 1])
    assert bytes(relay.to_client) == answer
    assert relay.tracker.at_boundary()
    assert relay.tracker.errors == 0
    # A client that did not ask for reports takes this for an error, and so do we.
    relay = Relay()
    relay.ask(query("alter table t force"), [PROGRESS])
    assert relay.tracker.errors == 1


def test_extended_metadata_is_read_over() -> None:
    column = column_payload()
    at = column.index(b"\x0c" + b"\x2d")
    extended = column[:at] + lenenc_bytes(b"\1\4json") + column[at:]
    exchange = Exchange([Question(query("select 1"))], capabilities=c.MARIADB_CLIENT_EXTENDED_METADATA)
    eof = b"\xfe\0\0\2\0"
    assert exchange.receive(numbered([lenenc(1), extended, eof, row_payload(b"x"), eof]))
    assert exchange.answers[0].types == [253]
    assert exchange.answers[0].rows == [[b"x"]]


# --- the binlog -------------------------------------------------------------------------------------------------------

EVENT = b"\0" + b"e" * 40
DUMP = command(c.COM_BINLOG_DUMP, b"\4\0\0\0\0\0\1\0\0\0binlog.000001")


@pytest.mark.parametrize("code", [c.COM_BINLOG_DUMP, c.COM_BINLOG_DUMP_GTID])
def test_a_dump_goes_on_until_the_server_ends_it_and_pins(code: int) -> None:
    relay = Relay()
    relay.ask(command(c.COM_REGISTER_SLAVE, bytes(17)), [ok_payload()])
    request = command(code, DUMP[5:])
    assert relay.client(request) == request
    stream = numbered([EVENT] * 300)
    assert relay.server(stream) == stream
    assert relay.ledger.pins == ["binlog dump"]
    assert not relay.tracker.at_boundary()
    large = packet(b"\0" + b"e" * 20_000_000, 301)
    assert relay.server(large) == large
    end = packet(b"\xfe\0\0\2\0", 303)
    assert relay.server(end) == end
    assert relay.tracker.is_idle()
    relay.ask(PING, [ok_payload()])
    assert relay.ledger.pins == ["binlog dump"]


@pytest.mark.parametrize("end", [ok_payload(header=0xFE), err_payload(1236)])
def test_a_dump_may_end_with_ok_in_place_of_eof_or_with_an_error(end: bytes) -> None:
    relay = Relay(deprecates_eof=True)
    relay.ask(DUMP, [EVENT, end])
    assert relay.tracker.is_idle()


def test_a_replicas_word_passes_while_others_drain() -> None:
    relay = Relay()
    relay.client(DUMP)
    relay.answer([EVENT, EVENT])
    relay.tracker.gate = GATE_DRAIN
    word = packet(b"\xef" + bytes(8) + b"binlog.000001", 0)
    assert relay.client(word) == word
    # The numbers of the dump begin anew then.
    assert relay.answer([EVENT, EVENT, EVENT]) == numbered([EVENT, EVENT, EVENT])
    relay.tracker.gate = GATE_OPEN
    with pytest.raises(ProtocolViolation, match="client"):
        relay.client(packet(b"\xef" + bytes(2_000), 0))


def test_a_dump_may_not_jump() -> None:
    relay = Relay()
    relay.client(DUMP)
    relay.answer([EVENT])
    with pytest.raises(ProtocolViolation, match="server"):
        relay.answer([EVENT], first=4)
    relay = Relay()
    relay.client(DUMP)
    with pytest.raises(ProtocolViolation, match="server"):
        relay.answer([b"\x01what"])


def test_where_a_text_begins_is_told_by_length_alone() -> None:
    for before in (attributes(), SOME):
        assert text_of_query(before + b"select 1") == len(before)
    for end in range(len(SOME)):
        assert text_of_query(SOME[:end]) is None
