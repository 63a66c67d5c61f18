"""What only MySQL or only MariaDB has, against the real servers: what they take, and that it goes on on another backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from protocols.mysql import constants as c
from protocols.mysql.exchange import Exchange, Question
from protocols.mysql.messages import lenenc_bytes
from protocols.wire import Startup
from tests.protocols.mysql.relay import execute, query
from tests.protocols.mysql.test_extensions import LONGLONG, VARCHAR, asked, attributes, bound, bulk
from tests.protocols.mysql.test_real_server import APP, FLAGS, Backend, Opened, Session

ATTRIBUTED = replace(APP, capabilities=FLAGS | c.CLIENT_QUERY_ATTRIBUTES)
MARIADB = replace(APP, capabilities=FLAGS | c.MARIADB_CAPABILITIES & ~c.MARIADB_CLIENT_BULK_UNIT_RESULTS)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_pair").primary


@pytest.fixture
def opened(server: Any) -> Iterator[Opened]:
    backends: list[Backend] = []

    def opened(startup: Startup = APP, password: str | None = "secret") -> Backend:
        backends.append(Backend(server, startup, password))
        return backends[-1]

    yield opened
    for backend in backends:
        backend.socket.close()


on_mysql = pytest.mark.parametrize("server", [pytest.param("mysql", marks=pytest.mark.mysql)], indirect=True)
on_mariadb = pytest.mark.parametrize("server", [pytest.param("mariadb", marks=pytest.mark.mariadb)], indirect=True)


def rows_of(session: Session, packets: list[bytes]) -> list[list[bytes | None]]:
    exchange = Exchange([Question(query("select 1"))], capabilities=session.backend.startup.capabilities)
    assert exchange.receive(b"".join(packets))
    assert exchange.errors == []
    return exchange.answers[0].rows


@on_mysql
def test_mysql_takes_attributes_before_a_text_and_among_parameters(opened: Opened) -> None:
    session = Session(opened(ATTRIBUTED))
    trace = (VARCHAR, b"traceparent", lenenc_bytes(b"00-4bf9"))
    assert rows_of(session, session.say(asked(b"select 'seen'", attributes(trace)))) == [[b"seen"]]
    assert rows_of(session, session.say(asked(b"select 'plain'", attributes()))) == [[b"plain"]]
    statement = session.prepare("select concat(?, '/', ?)")
    text = (VARCHAR, b"", lenenc_bytes(b"v"))
    number = (LONGLONG, b"", (7).to_bytes(8, "little"))
    # Each of them is what libmysqlclient may send: with an attribute, without types, without the flag.
    for request in (
        bound(statement, text, number, trace),
        bound(statement, text, number, types=False),
        bound(statement, text, number, types=False, flags=0),
    ):
        answer = session.say(request)
        assert b"\x03v/7" in b"".join(answer), answer
    # On the next backend the first execute carries the types, with names that are empty.
    assert session.move_to(opened(ATTRIBUTED)) == []
    assert b"\x03v/7" in b"".join(session.say(bound(statement, text, number, types=False)))
    assert b"\x03v/7" in b"".join(session.say(bound(statement, text, number, types=False)))


@on_mysql
def test_an_attribute_reaches_who_asks_for_it(opened: Opened) -> None:
    root = opened(Startup("root", "", capabilities=FLAGS, character_set=45))
    assert root.ask("install component 'file://component_query_attributes'")[0].error is None
    try:
        session = Session(opened(ATTRIBUTED))
        text = b"select mysql_query_attribute_string('traceparent')"
        for value in (b"here", b"v" * 700):
            request = asked(text, attributes((VARCHAR, b"traceparent", lenenc_bytes(value))))
            assert rows_of(session, session.say(request)) == [[value]]
        assert rows_of(session, session.say(asked(text, attributes()))) == [[None]]
    finally:
        root.ask("uninstall component 'file://component_query_attributes'")


@on_mysql
def test_a_session_with_attributes_is_inspected_and_moved(opened: Opened) -> None:
    """What Turnout itself asks has to be in the form that this backend expects."""
    session = Session(opened(ATTRIBUTED))
    session.say(asked(b"set @a = 5, sql_mode = ''", attributes()))
    assert session.move_to(opened(ATTRIBUTED)) == []
    assert rows_of(session, session.say(asked(b"select @a, @@sql_mode", attributes()))) == [[b"5", b""]]


def bulk_rows(*numbers: int) -> bytes:
    return b"".join(
        b"\0" + number.to_bytes(8, "little") + b"\0" + lenenc_bytes(b"row %d" % number) for number in numbers
    )


@on_mariadb
def test_mariadbs_bulk_executes_go_on_on_the_next_backend(opened: Opened) -> None:
    session = Session(opened(MARIADB))
    session.do("create or replace table bulked (i int primary key, t varchar(30))")
    first = session.prepare("insert into bulked values (?, ?)")
    second = session.prepare("insert into bulked values (?, ?) returning i")
    assert session.say(bulk(first, bulk_rows(1, 2, 3), types=LONGLONG + VARCHAR))[-1][4] == c.OK
    assert session.say(bulk(first, bulk_rows(4)))[-1][4] == c.OK
    assert len(session.say(bulk(second, bulk_rows(5, 6), types=LONGLONG + VARCHAR))) > 4, "a result set"
    other = opened(MARIADB)
    # Its ids are other ones.
    for number in range(3):
        other.ask(f"prepare taken{number} from 'select 1'")
    assert session.move_to(other) == []
    assert session.say(bulk(first, bulk_rows(7, 8)))[-1][4] == c.OK
    assert len(session.say(bulk(second, bulk_rows(9)))) > 3
    # The plain form remembers the same types.
    assert session.move_to(opened(MARIADB)) == []
    values = (10).to_bytes(8, "little") + lenenc_bytes(b"row 10")
    assert session.say(execute(first, parameters=2, values=values))[-1][4] == c.OK
    expected = [[b"%d" % number, b"row %d" % number] for number in range(1, 11)]
    assert session.rows("select * from bulked order by i") == expected
    session.do("drop table bulked")


@on_mariadb
def test_mariadb_reports_progress_and_extended_types(opened: Opened) -> None:
    session = Session(opened(MARIADB))
    session.do(
        "create or replace table slow (i int, j json)",
        "insert into slow select seq, '{}' from seq_1_to_1000",
        "set progress_report_time = 1",
    )
    # Each row takes a while: the report of the first second comes before the end.
    packets = session.say(
        query("alter table slow add column k text default (sha2(repeat(i, 150000), 512)), algorithm=copy")
    )
    assert packets[-1][4] == c.OK, packets
    assert [packet[3] for packet in packets] == list(range(1, len(packets) + 1))
    assert packets[0][4:7] == b"\xff\xff\xff"
    assert session.relay.tracker.errors == 0
    answer = session.say(query("select j from slow limit 1"))
    assert b"\x01\x04json" in answer[1], "the extended type stands in the column's definition"
    assert rows_of(session, answer) == [[b"{}"]]
    session.do("drop table slow")
