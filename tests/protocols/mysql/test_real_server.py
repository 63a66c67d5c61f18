"""Logins, inspection, replay and prepared statements against real servers, over plain blocking sockets."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from protocols.codes import GATE_OPEN
from protocols.mysql import WIRE
from protocols.mysql import constants as c
from protocols.mysql.exchange import Answer, Exchange, Question
from protocols.mysql.ledger import MysqlLedger
from protocols.mysql.messages import command, packet
from protocols.wire import BackendFacts, BackendReady, BackendRefused, LoginFact, Startup
from protocols.wire import Exchange as AnyExchange
from tests.protocols.mysql.relay import RESET, Relay, execute, fetch_rows, on_statement, prepare, query, split

pytestmark = pytest.mark.mysql

TIMEOUT_S = 20.0
FLAGS = (
    c.CLIENT_MULTI_STATEMENTS | c.CLIENT_MULTI_RESULTS | c.CLIENT_PS_MULTI_RESULTS | c.CLIENT_LOCAL_FILES
    | c.CLIENT_DEPRECATE_EOF
)  # fmt: skip
APP = Startup("app", "app", capabilities=FLAGS, character_set=c.CHARSET_UTF8MB4)
LONGLONG = b"\x08\0"
VARCHAR = b"\xfd\0"


@pytest.fixture(scope="session", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_pair").primary


class Backend:
    """A connection that is logged in."""

    def __init__(self, server: Any, startup: Startup = APP, password: str | None = "secret") -> None:
        self.socket = socket.create_connection((server.host, server.port), TIMEOUT_S)
        self.startup = startup
        login = WIRE.server_login(startup, password)
        facts: list[LoginFact] = []
        while not facts:
            data = self.socket.recv(65536)
            assert data, "the server closed the connection"
            facts = list(login.receive(data))
            self.socket.sendall(login.take_output())
        self.fact = facts[0]
        assert login.take_unread() == b""

    @property
    def facts(self) -> BackendFacts:
        assert isinstance(self.fact, BackendReady), self.fact
        return self.fact.facts

    def run(self, exchange: AnyExchange) -> list[str]:
        self.socket.sendall(exchange.request)
        while not exchange.receive(self.receive()):
            pass
        return exchange.errors

    def receive(self) -> bytes:
        data = self.socket.recv(65536)
        assert data, "the server closed the connection"
        return data

    def ask(self, *texts: str) -> list[Answer]:
        """Past any tracker, as the server itself would be asked."""
        exchange = Exchange([Question(query(text), text) for text in texts], capabilities=self.startup.capabilities)
        self.run(exchange)
        return exchange.answers


class Session:
    """A client whose session goes through the reference relay to a real backend."""

    def __init__(self, backend: Backend, *, shares_backends: bool = False) -> None:
        self.ledger = MysqlLedger(backend.startup, shares_backends=shares_backends)
        self.relay = Relay(is_linked=False, ledger=self.ledger)
        self.use(backend, {})

    def use(self, backend: Backend, notes: dict[str, Any]) -> None:
        self.backend = backend
        self.relay.link(backend.facts, notes)

    def say(self, *requests: bytes, until: Callable[[], bool] | None = None) -> list[bytes]:
        """Send, wait until all is answered (or `until` says so); the packets the client got."""
        self.relay.to_client.clear()
        for request in requests:
            self.backend.socket.sendall(self.relay.client(request))
            if self.relay.tracker.wants_ids() is not None:
                self.relay.tracker.answer_ids({})
                self.relay.tracker.gate = GATE_OPEN
                self.backend.socket.sendall(self.relay.go_on())
        while not (self.relay.tracker.is_idle() if until is None else until()):
            self.relay.server(self.backend.receive())
        assert not select.select([self.backend.socket], [], [], 0)[0], "more came than was expected"
        return split(bytes(self.relay.to_client))

    def do(self, *texts: str) -> None:
        for text in texts:
            answer = self.say(query(text))
            assert answer[-1][4] != c.ERR, (text, answer)

    def rows(self, text: str) -> list[list[bytes | None]]:
        """The answer as a client library reads it."""
        exchange = Exchange([Question(query(text), text)], capabilities=self.backend.startup.capabilities)
        assert exchange.receive(b"".join(self.say(query(text))))
        assert exchange.errors == []
        return exchange.answers[0].rows

    def prepare(self, text: str) -> int:
        answer = self.say(prepare(text))
        assert answer[0][4] == c.OK, answer
        return int.from_bytes(answer[0][5:9], "little")

    def inspect(self) -> MysqlLedger:
        for _ in range(3):
            assert self.relay.tracker.at_boundary()
            assert self.backend.run(self.ledger.inspection()) == []
            if not self.ledger.is_dirty:
                return self.ledger
        raise AssertionError("the ledger stays dirty")

    def move_to(self, backend: Backend, *, bytes_max: int = 1_000_000) -> list[str]:
        """As a switch does it; what was refused."""
        ledger, old = self.inspect(), self.backend
        errors: list[str] = []

        def run(on: Backend, exchange: AnyExchange | None) -> bool:
            if exchange is None:
                return False
            errors.extend(on.run(exchange))
            return bool(exchange.postponed)

        run(old, ledger.read_tables(bytes_max))
        run(old, ledger.release_locks())
        is_postponed = run(backend, ledger.replay(is_late=False))
        run(backend, ledger.take_locks())
        run(backend, ledger.make_tables())
        if is_postponed:
            run(backend, ledger.replay(is_late=False))
        assert ledger.replay(is_late=True) is None
        self.relay.unlink()
        self.use(backend, ledger.adopt({}))
        return errors


@pytest.fixture
def opened(server: Any) -> Iterator[Callable[..., Backend]]:
    backends: list[Backend] = []

    def opened(startup: Startup = APP, password: str | None = "secret") -> Backend:
        backends.append(Backend(server, startup, password))
        return backends[-1]

    yield opened
    for backend in backends:
        backend.socket.close()


Opened = Callable[..., Backend]


@pytest.fixture
def session(opened: Opened) -> Session:
    return Session(opened())


def is_mariadb(session: Session) -> bool:
    return "MariaDB" in session.backend.facts.server_version


# --- logins ---------------------------------------------------------------------------------------------------------


def test_a_login_ends_with_facts(opened: Opened) -> None:
    backend = opened()
    (answer,) = backend.ask("select connection_id(), @@version")
    number, version = answer.rows[0]
    assert backend.facts.process_id == int(number or b"")
    assert (version or b"").decode() in backend.facts.server_version


def test_a_cold_and_a_warm_password_cache_are_the_same_to_us(opened: Opened) -> None:
    # caching_sha2_password: after FLUSH PRIVILEGES the password itself is wanted once, then its proof suffices.
    root = opened(Startup("root", "", capabilities=FLAGS, character_set=45))
    assert root.ask("flush privileges")[0].error is None
    for _ in range(2):
        assert isinstance(opened().fact, BackendReady)


@pytest.mark.parametrize(
    ("startup", "password", "code"),
    [
        (APP, "wrong", "1045"),
        (APP, None, "1045"),
        (replace(APP, user="nobody_of_this_name"), "secret", "1045"),
        (replace(APP, database="no_such_database"), "secret", "1044"),
    ],
)
def test_a_refused_login_has_the_servers_code(opened: Opened, startup: Startup, password: str, code: str) -> None:
    fact = opened(startup, password).fact
    assert isinstance(fact, BackendRefused)
    assert fact.code == code


def test_without_a_database_and_flags_a_login_works_too(opened: Opened) -> None:
    backend = opened(Startup("app", ""))
    (answer,) = backend.ask("select database()")
    assert answer.rows == [[None]]


# --- a fresh and a reset backend ------------------------------------------------------------------------------------

STARTUPS = [
    APP,
    Startup("app", "", capabilities=0, character_set=8),
    replace(APP, capabilities=FLAGS | c.CLIENT_INTERACTIVE | c.CLIENT_IGNORE_SPACE | c.CLIENT_SESSION_TRACK),
    replace(APP, character_set=33),
]


@pytest.mark.parametrize("startup", STARTUPS)
def test_a_fresh_session_holds_nothing(opened: Opened, startup: Startup) -> None:
    session = Session(opened(startup))
    session.relay.ledger.is_dirty = True
    ledger = session.inspect()
    assert (ledger.variables, ledger.user_variables, ledger.pins) == ({}, {}, [])
    assert ledger.is_empty
    assert ledger.replay(is_late=False) is None


@pytest.mark.parametrize("startup", STARTUPS)
def test_a_reset_backend_is_like_a_fresh_one(opened: Opened, startup: Startup) -> None:
    """field-notes: COM_RESET_CONNECTION"""
    if startup.database == "":
        startup = replace(startup, database="app")
    session = Session(opened(startup))
    session.do("set names latin1, sql_mode = '', wait_timeout = 77, @a = 1", "use information_schema")
    session.prepare("select 1")
    assert session.backend.run(WIRE.reset(startup, session.backend.facts)) == []
    again = Session(session.backend)
    ledger = again.inspect()
    assert (ledger.database, ledger.variables, ledger.user_variables, ledger.pins) == (b"app", {}, {}, [])


CHARSETS = "select @@character_set_client, @@character_set_results, @@character_set_connection, @@collation_connection"


@pytest.fixture
def other_global_charsets(opened: Opened) -> Iterator[None]:
    """A login whose number the server does not know gets these."""
    root = opened(Startup("root", "", capabilities=FLAGS, character_set=45))
    values = {"character_set_client": "cp1251", "character_set_results": "latin2", "collation_connection": "koi8r_bin"}
    for name, value in values.items():
        assert root.ask(f"set global {name} = {value}")[0].error is None
    yield
    for name in values:
        assert root.ask(f"set global {name} = default")[0].error is None


@pytest.mark.usefixtures("other_global_charsets")
@pytest.mark.parametrize("capabilities", [0, FLAGS])
@pytest.mark.parametrize("number", [0, 8, 33, 45, 46, 51, 224, 250, 254, 255, 303, 2304])
def test_after_a_reset_charsets_are_those_of_a_login(opened: Opened, number: int, capabilities: int) -> None:
    """MySQL's client 9.7 says 255, which MariaDB 10.11 does not know; MariaDB's JDBC driver says 224, which its SET of
    character_set_client does not take; 51 is the global one; nobody knows 254; MySQL knows 303 and MariaDB 2304, which do not fit
    into a login."""
    startup = replace(APP, character_set=number, capabilities=capabilities)
    dressed = replace(startup, parameters=(("lock_wait_timeout", "7"),))
    # The connection before, whose thread MariaDB gives to the next one.
    opened(replace(APP, character_set=83)).socket.close()
    backend = opened(startup)
    fresh = backend.ask(CHARSETS)[0].rows
    redressing, refusal = WIRE.redress(dressed, startup, backend.facts)
    for exchange in (WIRE.reset(startup, backend.facts), redressing):
        backend.ask("set names cp1251 collate cp1251_bin", "set character_set_results = null")
        assert backend.run(exchange) == []
        assert backend.ask(CHARSETS)[0].rows == fresh
        assert backend.ask("show warnings")[0].rows == []
    assert refusal() is None
    assert opened(startup).ask(CHARSETS)[0].rows == fresh


@pytest.mark.parametrize("number", [46, 254])
def test_a_reset_reads_no_mode_and_no_database_of_the_server(opened: Opened, number: int) -> None:
    root = opened(Startup("root", "", capabilities=FLAGS, character_set=45))
    mode = "ORACLE" if "MariaDB" in root.facts.server_version else "ANSI,NO_BACKSLASH_ESCAPES"
    startup = Startup("root", "app", capabilities=FLAGS, character_set=number)
    changes = ("create database wide character set ucs2", f"set global sql_mode = '{mode}'")
    try:
        assert [answer.error for answer in root.ask(*changes)] == [None, None]
        backend = opened(startup)
        fresh = backend.ask(CHARSETS)[0].rows
        assert backend.ask("use wide", "set names latin1")[0].error is None
        dressed = replace(startup, parameters=(("lock_wait_timeout", "7"),))
        exchange, refusal = WIRE.redress(dressed, startup, backend.facts)
        assert (backend.run(exchange), refusal()) == ([], None)
        assert backend.ask(CHARSETS, "select @@sql_mode = @@global.sql_mode")[1].rows == [[b"1"]]
        assert backend.ask(CHARSETS)[0].rows == fresh
    finally:
        root.ask("set global sql_mode = default", "drop database wide")


# --- what moves with a session --------------------------------------------------------------------------------------

STATES = [
    ("set names latin1", "select @@character_set_client, @@character_set_results, @@collation_connection"),
    ("set names utf8mb4 collate utf8mb4_bin", "select @@collation_connection, collation('a')"),
    ("set character_set_results = null", "select @@character_set_results"),
    ("set autocommit = 0", "select @@autocommit"),
    ("set session transaction isolation level read committed", "show variables like '%isolation'"),
    ("set session transaction read only", "show variables like '%\\_read\\_only'"),
    ("set sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'", 'select @@sql_mode, "sql_mode" from (select 1 sql_mode) a'),
    ("set sql_mode = ''", "select @@sql_mode"),
    ("set time_zone = '+05:30', foreign_key_checks = 0, unique_checks = 0", "select @@time_zone, @@foreign_key_checks, @@unique_checks"),
    ("set group_concat_max_len = 99999, wait_timeout = 1234, lock_wait_timeout = 5", "select @@group_concat_max_len, @@wait_timeout, @@lock_wait_timeout"),
    ("set sql_select_limit = 1", "select @@sql_select_limit"),
    ("set long_query_time = 1.5, div_precision_increment = 7", "select @@long_query_time, @@div_precision_increment"),
    ("set optimizer_switch = 'mrr=off,index_merge=off'", "select @@optimizer_switch"),
    ("set lc_time_names = 'de_DE'", "select @@lc_time_names, monthname('2020-03-01')"),
    ("use information_schema", "select database()"),
    ("set @a = 5, @b = -7, @c = 18446744073709551615, @d = 1.50, @e = 1e-5, @f = null", "select @a, @b, @c, @d, @e, @f, @a / 2"),
    ("set @s = 'it''s \\\\ \\0 \"x\"', @u = _utf8mb4 'äö€😀', @l = _latin1 x'e4', @x = x'00ff80'", "select hex(@s), hex(@u), charset(@u), hex(@l), charset(@l), hex(@x), charset(@x)"),
    ("set @`odd name` = 1, @'another' = 2, @Upper = 3", "select @`odd name`, @another, @upper"),
    ("prepare s from 'select ? + 1'", "execute s using @@autocommit"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "question"), STATES, ids=[change[:40] for change, _ in STATES])
def test_a_session_finds_its_state_on_the_next_backend(
    session: Session, opened: Opened, change: str, question: str
) -> None:
    """field-notes: @user variables"""
    if question.startswith("execute"):
        question = "set @one = 1; execute s using @one"
    session.do(change)
    before = session.rows(question)
    assert session.move_to(opened()) == []
    assert not session.ledger.is_empty
    assert session.rows(question) == before
    assert session.move_to(opened()) == []
    assert session.rows(question) == before


SETTINGS = [(change, question) for change, question in STATES if change.startswith("set ") and "@" not in change]


@pytest.mark.parametrize(("change", "question"), SETTINGS, ids=[change[:40] for change, _ in SETTINGS])
def test_in_transaction_mode_settings_are_put_on_any_backend_and_taken_off(
    opened: Opened, change: str, question: str
) -> None:
    session = Session(opened(), shares_backends=True)
    session.do(change)
    before, ledger = session.rows(question), session.inspect()
    assert (ledger.is_empty, ledger.ties) == (True, [])
    dressed = replace(APP, parameters=ledger.wanted)
    backend, fresh = opened(), Session(opened()).rows(question)
    for worn, wanted, expected in ((APP, dressed, before), (dressed, APP, fresh)):
        exchange, refusal = WIRE.redress(worn, wanted, backend.facts)
        assert (backend.run(exchange), refusal()) == ([], None)
        again = Session(backend, shares_backends=True)
        assert again.rows(question) == expected
        again.ledger.is_dirty = True
        assert again.inspect().wanted == wanted.parameters


def test_one_setting_more_is_put_on_without_a_reset(opened: Opened) -> None:
    backend = opened()
    few, more = (("time_zone", "'+01:00'"),), (("lock_wait_timeout", "7"), ("time_zone", "'+01:00'"))
    for worn, wanted in (((), few), (few, more)):
        few_worn, all_wanted = (replace(APP, parameters=one) for one in (worn, wanted))
        exchange, _ = WIRE.redress(few_worn, all_wanted, backend.facts)
        assert exchange.request.count(b"SET SESSION") == 1
        assert backend.run(exchange) == []
    assert backend.ask("select @@time_zone, @@lock_wait_timeout")[0].rows == [[b"+01:00", b"7"]]


def test_a_setting_that_a_backend_refuses_is_named(opened: Opened) -> None:
    backend = opened()
    dressed = replace(APP, parameters=(("sql_mode", "'NO_SUCH_MODE'"),))
    exchange, refusal = WIRE.redress(APP, dressed, backend.facts)
    backend.run(exchange)
    refused = refusal()
    assert refused is not None
    assert (refused.code, refused.message.partition(":")[0]) == ("1231", "sql_mode")


def test_a_server_reads_its_variables_once_for_an_inspection(session: Session) -> None:
    """MySQL: the index of a performance_schema table is a walk through all of it. MariaDB has one table for both values."""
    tables = (b"session_variables", b"SYSTEM_VARIABLES")
    (asked,) = (
        one[5:].decode() for one in split(session.ledger.inspection().request) if any(name in one for name in tables)
    )
    if is_mariadb(session):
        (plan,) = session.backend.ask(f"explain {asked}")
        assert len(plan.rows) == 1, plan
        return
    for switch in ("on", "off"):
        _, plan = session.backend.ask(
            f"set optimizer_switch = 'block_nested_loop={switch}'", f"explain format=tree {asked}"
        )
        assert b"Inner hash join" in (plan.rows[0][0] or b""), plan


def test_what_is_set_back_is_not_carried(session: Session) -> None:
    session.do("set sql_select_limit = 1, @a = 5", "use information_schema")
    assert not session.inspect().is_empty
    session.do("set sql_select_limit = default, @a = null", "use app")
    assert session.inspect().is_empty


def test_variables_set_inside_of_a_procedure_are_found(opened: Opened, server: Any) -> None:
    session = Session(opened(Startup("root", "app", capabilities=FLAGS, character_set=45)))
    session.do(
        "drop procedure if exists hidden", "create procedure hidden() begin set @hidden = 'here'; end", "call hidden()"
    )
    assert session.inspect().user_variables.keys() == {b"hidden"}
    assert session.move_to(opened(session.backend.startup)) == []
    assert session.rows("select @hidden") == [[b"here"]]


def test_an_inspection_begins_no_transaction(session: Session, opened: Opened) -> None:
    session.do("create table if not exists seen (a int)", "delete from seen", "set autocommit = 0")
    session.inspect()
    opened().ask("insert into seen values (1)")
    assert session.rows("select count(*) from seen") == [[b"1"]]
    session.do("commit")


def test_an_inspection_leaves_the_last_insert_id(session: Session) -> None:
    session.do(
        "create table if not exists numbered (a int auto_increment primary key)", "insert into numbered values (null)"
    )
    before = session.rows("select last_insert_id()")
    session.inspect()
    assert session.rows("select last_insert_id()") == before


# --- pins -----------------------------------------------------------------------------------------------------------

PINS = [
    ("select get_lock(concat('a ', 'lock'), 1)", "do release_all_locks()", "user lock"),
    ("create temporary table tmp (a point)", "drop temporary table tmp", "temporary table with a column of type point"),
    ("lock tables base write", "unlock tables", "locked tables"),
    ("handler base open as h", "handler h close", "handler"),
    ("set @t = 'select 1'; prepare p from @t", "", "SQL prepared statement"),
]  # fmt: skip


@pytest.mark.parametrize(("take", "release", "pin"), PINS, ids=[take[:40] for take, _, _ in PINS])
def test_what_cannot_be_carried_pins_until_it_is_given_back(
    session: Session, take: str, release: str, pin: str
) -> None:
    """field-notes: LOCK TABLES (also LOCK TABLE), FLUSH … WITH READ LOCK, GET_LOCK, XA, HANDLER"""
    session.do("create table if not exists base (a int)")
    session.do(take)
    assert session.inspect().pins == [pin]
    if release:
        session.do(release)
        assert session.inspect().pins == []
    session.say(RESET)
    assert session.inspect().pins == []


def test_locked_tables_of_a_procedure_s_session_are_seen(session: Session) -> None:
    """LOCK TABLES is told by the server, however it came about."""
    session.do("create table if not exists base (a int)", "/* x */ lock /* y */ tables base read")
    assert session.ledger.pins == ["locked tables"]
    session.do("start transaction", "commit")
    assert session.ledger.pins == [], "START TRANSACTION gives them back"


def test_user_locks_go_with_the_session_as_often_as_they_were_taken(session: Session, opened: Opened) -> None:
    """field-notes: LOCK TABLES (also LOCK TABLE), FLUSH … WITH READ LOCK, GET_LOCK, XA, HANDLER"""
    session.do("select get_lock('twice', 1), get_lock('once', 1)", "do get_lock('twice', 1)", "do get_lock('gone', 1)")
    session.do("do release_lock('gone')")
    assert session.inspect().carried()["user locks"] == 2
    assert session.ledger.pins == []
    assert session.move_to(opened()) == []
    held = (
        "select is_used_lock('twice') = connection_id(), is_used_lock('once') = connection_id(), is_used_lock('gone')"
    )
    assert session.rows(held) == [[b"1", b"1", None]]
    assert session.rows("select release_lock('twice'), release_lock('twice'), release_lock('twice')") == [
        [b"1", b"1", None]
    ]
    session.do("do release_all_locks()")
    assert session.inspect().is_empty


def test_a_lock_that_another_session_took_meanwhile_is_an_error(session: Session, opened: Opened) -> None:
    session.do("do get_lock('wanted', 1)")
    ledger, other = session.inspect(), opened()
    releasing = ledger.release_locks()
    assert releasing is not None
    assert session.backend.run(releasing) == []
    other.ask("select get_lock('wanted', 1)")
    taking = ledger.take_locks()
    assert taking is not None
    assert "another session" in opened().run(taking)[0]


COLUMNS = """
    id bigint unsigned auto_increment primary key, i tinyint, d decimal(20, 5), f float, g double, b bit(9),
    v varchar(40) character set utf8mb4, l char(5) character set latin1, t text, e enum('x', 'ä'), s set('p', 'q'),
    x varbinary(20), y blob, at datetime(6), ts timestamp(3) null, da date, ti time(2), ye year, j json,
    ge int generated always as (i + 1) stored, `odd ``name` int default 7, unique key (i), key (v)
"""


@pytest.mark.parametrize("mode", ["", "ANSI_QUOTES,NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES"])
def test_temporary_tables_go_with_the_session(session: Session, opened: Opened, mode: str) -> None:
    """field-notes: TEMPORARY TABLE + read split"""
    session.do(
        f"set sql_mode = '{mode}', time_zone = '+05:00', sql_select_limit = 1",
        f"create temporary table `ma ny` ({COLUMNS}) auto_increment = 70",
        """insert into `ma ny` (i, d, f, g, b, v, l, t, e, s, x, y, at, ts, da, ti, ye, j) values (-3, 123456789.12345,
        0.1, 1e-300, b'100000001', 'it''s ä €', 'ä', 'a\nb', 'ä', 'p,q', x'00ff27', x'', '2024-02-29 01:02:03.456789',
        '2024-02-29 01:02:03.456', '2024-02-29', '-12:34:56.78', 2024, '{"a": ["ä", 1]}')""",
        "insert into `ma ny` (i) values (null)",
        "create temporary table app.nothing (a int)",
        "set sql_select_limit = default",
    )
    number = session.prepare("select count(*) from `ma ny` where id > ?")
    asked = "select *, f * 1e0, hex(v), hex(l), hex(e), hex(x) from `ma ny` order by id"
    before, made = session.rows(asked), session.rows("show create table `ma ny`")
    assert session.inspect().carried()["temporary tables"] == 2
    assert session.ledger.pins == []
    assert session.move_to(opened()) == []
    assert session.rows(asked) == before
    assert session.rows("show create table `ma ny`") == made
    session.do("insert into `ma ny` (i) values (5)")
    assert session.rows("select max(id) from `ma ny`") == [[b"72"]]
    assert session.rows("select @@sql_mode") == [[mode.encode()]]
    assert session.rows("select count(*) from nothing") == [[b"0"]]
    session.say(execute(number, parameters=1, types=LONGLONG, values=bytes(8)))
    session.do("drop temporary table `ma ny`, nothing")
    assert not session.inspect().has_tables


def test_temporary_tables_over_the_limit_pin(session: Session) -> None:
    session.do("create temporary table large (a text)", "insert into large values (repeat('x', 5000))")
    reading = session.inspect().read_tables(4_000)
    assert reading is not None
    session.backend.run(reading)
    assert session.ledger.pins == ["temporary tables too large"]
    assert session.ledger.make_tables() is None
    session.do("delete from large")
    reading = session.inspect().read_tables(4_000)
    assert reading is not None
    session.backend.run(reading)
    assert session.ledger.pins == []


def test_rows_without_autocommit_begin_no_transaction_on_the_next_backend(session: Session, opened: Opened) -> None:
    session.do("set autocommit = 0", "create temporary table tmp (a int)", "insert into tmp values (1)", "commit")
    assert session.move_to(opened()) == []
    (answer,) = session.backend.ask("select 1")
    assert not answer.status & c.SERVER_STATUS_IN_TRANS
    assert session.rows("select a from tmp") == [[b"1"]]


# --- transactions ---------------------------------------------------------------------------------------------------


def test_a_session_in_xa_is_in_a_transaction_and_pinned_once_prepared(session: Session) -> None:
    """field-notes: LOCK TABLES (also LOCK TABLE), FLUSH … WITH READ LOCK, GET_LOCK, XA, HANDLER"""
    tracker = session.relay.tracker
    session.do("create table if not exists base (a int) engine = innodb")
    for end in ("xa rollback 'x'", "xa commit 'x'"):
        for step in ("xa start 'x'", "insert into base values (1)", "xa end 'x'"):
            session.do(step)
            assert not tracker.at_boundary()
            assert session.ledger.pins == []
        session.do("xa prepare 'x'")
        if is_mariadb(session):
            assert not tracker.at_boundary()
            assert session.ledger.pins == ["xa prepared"]
        else:
            # MySQL takes a prepared transaction from its session: any other may end it.
            assert tracker.at_boundary()
            assert session.ledger.pins == []
        session.do(end)
        assert tracker.at_boundary()
        assert session.inspect().pins == []
    session.do("xa start 'y'", "xa end 'y'", "xa commit 'y' one phase")
    assert tracker.at_boundary()


BOUNDARIES = [
    ("begin", False), ("commit and chain", False), ("rollback and chain", False), ("commit", True),
    ("start transaction read only", False), ("commit and chain", False), ("rollback", True),
    ("begin", False), ("create table if not exists implied (a int) engine = innodb", True),
    ("begin", False), ("begin", False), ("truncate table implied", True),
    ("set autocommit = 0", True), ("select 1", True), ("insert into implied values (1)", False), ("commit", True),
    ("select count(*) from implied", False), ("set autocommit = 1", True),
    ("set transaction isolation level serializable", False), ("select 1", False),
    ("begin", False), ("select * from implied", False), ("commit", True),
    ("set transaction isolation level serializable", False), ("select * from implied", True),
    ("set session transaction isolation level read committed", True), ("begin", False), ("rollback", True),
    ("savepoint a", True), ("begin", False), ("savepoint a", False), ("rollback to a", False), ("drop table implied", True),
]  # fmt: skip


@pytest.mark.parametrize("deprecates_eof", [False, True])
def test_the_boundary_is_where_the_server_says(opened: Opened, deprecates_eof: bool) -> None:
    """field-notes: Implicit commits by DDL"""
    session = Session(opened(replace(APP, capabilities=FLAGS if deprecates_eof else FLAGS & ~c.CLIENT_DEPRECATE_EOF)))
    for number, (text, is_boundary) in enumerate(BOUNDARIES):
        session.do(text)
        if text == "select 1" and not is_boundary and not deprecates_eof:
            # A classic EOF does not tell whether that was the transaction that SET TRANSACTION meant.
            continue
        assert session.relay.tracker.at_boundary() == is_boundary, f"{number}: {text}"


def test_a_procedure_that_opens_a_transaction_is_noticed(opened: Opened) -> None:
    """field-notes: autocommit=0"""
    session = Session(opened(Startup("root", "app", capabilities=FLAGS, character_set=45)))
    session.do(
        "drop procedure if exists opens",
        "create procedure opens() begin set autocommit = 0; start transaction; set time_zone = '+03:00'; end",
    )
    session.inspect()
    session.do("call opens()")
    assert not session.relay.tracker.at_boundary()
    session.do("commit")
    assert session.ledger.is_dirty
    assert {"autocommit", "time_zone"} <= session.inspect().variables.keys()


def test_the_last_insert_id_goes_with_the_session(session: Session, opened: Opened) -> None:
    """field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS"""
    session.do(
        "create table if not exists numbered (a int auto_increment primary key)", "insert into numbered values (null)"
    )
    before = session.rows("select last_insert_id()")
    assert before != [[b"0"]]
    assert session.move_to(opened()) == []
    assert session.rows("select 1") == [[b"1"]]
    assert session.rows("select last_insert_id(), @@identity") == [before[0] * 2]
    assert session.move_to(opened()) == []
    number = session.prepare("select last_insert_id()")
    (row,) = [one for one in session.say(execute(number)) if one[4:6] == b"\0\0"]
    assert int.from_bytes(row[6:14], "little") == int(before[0][0] or b"")
    session.say(RESET)
    assert session.rows("select last_insert_id()") == [[b"0"]]


# --- prepared statements --------------------------------------------------------------------------------------------


def test_prepared_statements_move_and_keep_their_ids(session: Session, opened: Opened) -> None:
    ids = [session.prepare(f"select ? + {number}") for number in range(6)]
    for closed in ids[1:4]:
        session.say(on_statement(c.COM_STMT_CLOSE, closed))
    kept = [ids[0], *ids[4:]]
    for one in kept:
        session.say(execute(one, parameters=1, types=LONGLONG, values=(40).to_bytes(8, "little")))
    assert session.move_to(opened()) == []
    # What was closed is made up for, so ids differ by where the server began to count: MySQL at 1, MariaDB where the
    # former user of the same thread stopped.
    ids_there = session.relay.notes["statement_ids"]
    offsets = {ids_there[one] - one for one in kept}
    assert len(offsets) == 1
    if not is_mariadb(session):
        assert offsets == {0}
    for one in kept:
        # new-params-bound is 0: the types are those of the execute on the former backend.
        answer = session.say(execute(one, parameters=1, values=(2).to_bytes(8, "little")))
        assert answer[0][4] == 1, answer
    fetched = session.relay.fetches
    session.say(execute(kept[0], parameters=1, values=(2).to_bytes(8, "little")))
    assert (session.relay.fetches == fetched) == (offsets == {0})


def test_a_used_backends_ids_are_mapped(session: Session, opened: Opened) -> None:
    one = session.prepare("select ?, 'one'")
    session.say(execute(one, parameters=1, types=VARCHAR, values=b"\5first"))
    other = Session(opened())
    for _ in range(3):
        other.say(on_statement(c.COM_STMT_CLOSE, other.prepare("select 1")))
    assert session.move_to(other.backend) == []
    assert session.relay.notes["statement_ids"][one] != one
    answer = session.say(execute(one, parameters=1, values=b"\6second"))
    assert any(b"second" in part and b"one" in part for part in answer)
    two = session.prepare("select 'two'")
    assert two != one
    assert any(b"two" in part for part in session.say(execute(two)))
    session.say(on_statement(c.COM_STMT_CLOSE, one))
    answer = session.say(execute(one, parameters=1, types=VARCHAR, values=b"\5again"))
    assert answer[0][4] == c.ERR


def test_a_statement_is_bound_to_the_database_it_was_prepared_in(session: Session, opened: Opened) -> None:
    session.do("create table if not exists bound (a int)", "delete from bound", "insert into bound values (7)")
    one = session.prepare("select a from bound")
    session.do("use information_schema")
    assert session.move_to(opened()) == []
    assert any(part[4] == 0 and part[-4:] == b"\7\0\0\0" for part in session.say(execute(one)))
    assert session.rows("select database()") == [[b"information_schema"]]


def test_a_statement_that_is_refused_there_fails_there(session: Session, opened: Opened) -> None:
    session.do("drop table if exists gone", "create table gone (a int)")
    one = session.prepare("select a from gone")
    session.inspect()
    session.do("drop table gone")
    errors = session.move_to(opened())
    assert len(errors) == 1
    assert "gone" in errors[0]
    assert session.say(execute(one))[0][4] == c.ERR


def test_an_open_cursor_is_no_boundary_until_its_last_row(session: Session) -> None:
    session.do("create table if not exists rows3 (a int)", "delete from rows3", "insert into rows3 values (1),(2),(3)")
    one = session.prepare("select a from rows3")
    session.say(execute(one, flags=1))
    assert session.relay.tracker.is_idle()
    assert not session.relay.tracker.at_boundary()
    session.say(fetch_rows(one, 2))
    assert not session.relay.tracker.at_boundary()
    session.say(fetch_rows(one, 2))
    session.say(fetch_rows(one, 2))
    assert session.relay.tracker.at_boundary()


def test_long_data_reaches_the_backend(session: Session) -> None:
    one = session.prepare("select length(?)")
    part = b"x" * 300_000
    session.say(on_statement(c.COM_STMT_SEND_LONG_DATA, one, b"\0\0" + part))
    session.say(on_statement(c.COM_STMT_SEND_LONG_DATA, one, b"\0\0" + part))
    assert not session.relay.tracker.at_boundary()
    answer = session.say(execute(one, parameters=1, types=b"\xfb\0"))
    assert any((600_000).to_bytes(4, "little") in part for part in answer)
    assert session.relay.tracker.at_boundary()


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deprecates_eof", [False, True], ids=["eof", "no-eof"])
def test_each_kind_of_answer_is_followed_to_its_end(opened: Opened, deprecates_eof: bool) -> None:
    flags = FLAGS if deprecates_eof else FLAGS & ~c.CLIENT_DEPRECATE_EOF
    session = Session(opened(replace(APP, capabilities=flags)))
    session.do(
        "drop procedure if exists several",
        "create procedure several() begin select 1; select 2, 3; do 1; end",
        "call several()",
        "select 1; select 2; do 1; select 3",
        "create table if not exists listed (a int, b text)",
        "insert into listed values (1, 'x')",
    )
    for request in (
        command(c.COM_PING),
        command(c.COM_INIT_DB, b"app"),
        command(c.COM_FIELD_LIST, b"listed\0"),
        command(c.COM_STATISTICS),
        command(c.COM_SET_OPTION, b"\0\0"),
        command(c.COM_SET_OPTION, b"\1\0"),
        command(c.COM_PROCESS_INFO),
        command(c.COM_INIT_DB, b"no_such_database"),
        query("select nonsense"),
        query("select a from listed where a = (select 1 union select 2)"),
        RESET,
    ):
        session.say(request)
        assert session.relay.tracker.at_boundary()
    session.say(command(c.COM_SET_OPTION, b"\1\0"))
    call = session.prepare("call several()")
    session.say(execute(call))
    assert session.relay.tracker.at_boundary()
    session.do("begin", "insert into listed values (2, 'y')")
    assert not session.relay.tracker.at_boundary()
    session.do("rollback")
    assert session.relay.tracker.at_boundary()


def test_pipelined_commands_are_answered_in_order(session: Session) -> None:
    requests = [query("select 'a'"), command(0x66), query("select 'b'"), command(c.COM_PING)]
    answer = session.say(b"".join(requests))
    assert [part[4] for part in answer if part[3] == 1] == [1, c.ERR, 1, c.OK]
    assert session.relay.tracker.requests == 4


@pytest.mark.parametrize("size", [c.PAYLOAD_BYTES_MAX - 25, c.PAYLOAD_BYTES_MAX + 100])
def test_packets_over_16_mb_pass_in_both_directions(opened: Opened, size: int) -> None:
    root = opened(Startup("root", "", capabilities=FLAGS, character_set=45))
    assert root.ask("set global max_allowed_packet = 67108864")[0].error is None
    session = Session(opened())
    answer = session.say(query(b"select '" + b"x" * size + b"'"))
    assert sum(len(part) for part in answer) > size
    assert session.relay.tracker.at_boundary()
    assert session.rows("select 1") == [[b"1"]]


def test_a_file_of_the_client_is_relayed(session: Session) -> None:
    """field-notes: LOCAL INFILE (0xFB)"""
    session.do("create table if not exists loaded (a int)", "delete from loaded")
    tracker = session.relay.tracker
    asked = session.say(
        query("load data local infile 'its name' into table loaded"), until=lambda: len(session.relay.to_client) > 4
    )
    assert asked[0][4:] == b"\xfbits name"
    assert not tracker.is_idle()
    session.say(packet(b"1\n2\n" * 1000, 2) + packet(b"3\n", 3) + packet(b"", 4))
    assert session.rows("select count(*), max(a) from loaded") == [[b"2001", b"3"]]


def test_an_ended_connection_says_why(session: Session, opened: Opened) -> None:
    session.do("set wait_timeout = 1")
    said = b""
    try:
        while data := session.backend.socket.recv(65536):
            said += data
    except ConnectionResetError:
        pass
    # MySQL says why (4031), MariaDB just closes.
    session.relay.server(said)
    assert session.relay.tracker.has_last_words == bool(said)
