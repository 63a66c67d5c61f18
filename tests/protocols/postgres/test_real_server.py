"""Logins, inspection, replay and prepared statements against real servers, over plain blocking sockets."""

from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from protocols.postgres import WIRE
from protocols.postgres.ledger import PostgresLedger
from protocols.postgres.messages import build_query, build_ssl_request, parse_data_row
from protocols.wire import BackendFacts, BackendReady, BackendRefused, Exchange, LoginFact, Startup
from proxy.embedded import BinaryMissing, PostgresServer, Workspace
from proxy.embedded.postgres import debian_bin, wheel_bin
from tests.protocols.postgres.relay import (
    COPY_DATA,
    COPY_DONE,
    FLUSH,
    SYNC,
    Relay,
    bind,
    close,
    describe,
    execute,
    parse,
    query,
    split,
    tags,
)

pytestmark = pytest.mark.postgresql

TIMEOUT_S = 20.0
PASSWORD = "sëcret\N{NO-BREAK SPACE}1"
HBA = "\n".join(
    f"host all {user} 127.0.0.1/32 {method}"
    for user, method in {"anna": "trust", "berta": "password", "carla": "md5", "dora": "scram-sha-256"}.items()
)


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["debian", "wheel"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[PostgresServer]:
    try:
        bin_dir: Path = debian_bin() if request.param == "debian" else wheel_bin(18)
    except BinaryMissing as missing:
        pytest.skip(str(missing))
    with Workspace("turnout-wire-", niceness=10) as workspace:
        made = await PostgresServer.create(workspace, "one", bin_dir=bin_dir, fsync=False)
        hba = made.data / "pg_hba.conf"
        hba.write_text(HBA + "\n" + hba.read_text())
        await made.start()
        try:
            await made.execute("CREATE ROLE anna SUPERUSER LOGIN")
            await made.execute("CREATE ROLE poor")
            await made.execute("CREATE TABLE t (a text)")
            for user in ("berta", "dora"):
                await made.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'")
            await made.execute(f"SET password_encryption = md5; CREATE ROLE carla LOGIN PASSWORD '{PASSWORD}'")
            yield made
        finally:
            await made.stop("immediate")


class Backend:
    """A connection that is logged in."""

    def __init__(self, server: PostgresServer, startup: Startup, password: str | None = None) -> None:
        self.socket = socket.create_connection((server.host, server.port), TIMEOUT_S)
        self.startup = startup
        login = WIRE.server_login(startup, password)
        facts: list[LoginFact] = []
        while not facts:
            self.socket.sendall(login.take_output())
            data = self.socket.recv(65536)
            assert data, "the server closed the connection"
            facts = list(login.receive(data))
        self.fact = facts[0]
        assert login.take_unread() == b""

    @property
    def facts(self) -> BackendFacts:
        assert isinstance(self.fact, BackendReady), self.fact
        return self.fact.facts

    def run(self, exchange: Exchange) -> list[str]:
        self.socket.sendall(exchange.request)
        while not exchange.receive(self.receive()):
            pass
        return exchange.errors

    def receive(self) -> bytes:
        data = self.socket.recv(65536)
        assert data, "the server closed the connection"
        return data


class Session:
    """A client whose session goes through the reference relay to a real backend."""

    def __init__(self, backend: Backend, *, shares: bool = False) -> None:
        self.ledger = PostgresLedger(backend.startup)
        self.relay = Relay(shares=shares, is_linked=False, ledger=self.ledger)
        self.notes_of: dict[int, dict[str, object]] = {}
        self.use(backend)

    def use(self, backend: Backend) -> bytes:
        self.backend = backend
        notes = self.notes_of.setdefault(id(backend), {})
        return self.relay.link(backend.facts, notes)

    def say(self, *requests: bytes, until: str = "") -> bytes:
        """Send, wait until all is answered (or until the answer ends with the tags `until`), return what the client
        got."""
        self.relay.take_client()
        for request in requests:
            self.backend.socket.sendall(self.relay.client(request))
        if until:
            while not self.relay.to_client or not tags(bytes(self.relay.to_client)).endswith(until):
                self.relay.server(self.backend.receive())
            return self.relay.take_client()
        while not self.relay.tracker.is_idle():
            self.relay.server(self.backend.receive())
        assert not select.select([self.backend.socket], [], [], 0)[0], "more came than was expected"
        return self.relay.take_client()

    def ask(self, sql: str) -> list[str | None]:
        answer = self.say(query(sql))
        rows = [parse_data_row(message) for message in split(answer) if message[:1] == b"D"]
        assert b"E"[0] not in [message[0] for message in split(answer)], answer
        return [None if row[0] is None else row[0].decode() for row in rows]

    def inspect(self) -> PostgresLedger:
        assert self.relay.tracker.at_boundary()
        for _ in range(2):
            # The first answer may tell what has to be asked next.
            assert self.backend.run(self.ledger.inspection()) == []
            if not self.ledger.is_dirty:
                break
        assert not self.ledger.is_dirty
        return self.ledger

    def move_to(self, backend: Backend) -> list[str]:
        self.inspect()
        errors: list[str] = []
        for is_late in (False, True):
            exchange = self.ledger.replay(is_late=is_late)
            if exchange is not None:
                errors += backend.run(exchange)
        self.relay.unlink()
        self.notes_of[id(backend)] = self.ledger.adopt({})
        self.use(backend)
        return errors


ANNA = Startup("anna", "postgres")


@contextmanager
def opened(server: PostgresServer, count: int = 1, startup: Startup = ANNA) -> Iterator[list[Backend]]:
    backends = [Backend(server, startup) for _ in range(count)]
    try:
        yield backends
    finally:
        for backend in backends:
            backend.socket.close()


@pytest.fixture
def backends(server: PostgresServer) -> Iterator[list[Backend]]:
    with opened(server, 2) as pair:
        yield pair


# --- logins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["anna", "berta", "carla", "dora"])
def test_a_login_by_any_method_ends_with_facts(server: PostgresServer, user: str) -> None:
    with (backend := Backend(server, Startup(user, "postgres"), PASSWORD)).socket:
        facts = backend.facts
    assert facts.server_version.split(".")[0].isdigit()
    assert facts.process_id > 0
    # Protocol 3.2 came with PostgreSQL 18; older ones negotiate it down.
    assert len(facts.secret) == (32 if int(facts.server_version.split(".")[0]) >= 18 else 4)
    assert facts.parameters["client_encoding"] == "UTF8"


@pytest.mark.parametrize("user", ["berta", "carla", "dora"])
def test_a_wrong_password_is_refused_with_its_sqlstate(server: PostgresServer, user: str) -> None:
    with (backend := Backend(server, Startup(user, "postgres"), "wrong")).socket:
        assert isinstance(backend.fact, BackendRefused)
        assert backend.fact.sqlstate == "28P01"


def test_a_missing_password_is_refused_by_name(server: PostgresServer) -> None:
    with (backend := Backend(server, Startup("dora", "postgres"))).socket:
        assert isinstance(backend.fact, BackendRefused)
        assert "dora" in backend.fact.message


def test_an_unknown_database_is_refused_with_its_sqlstate(server: PostgresServer) -> None:
    with (backend := Backend(server, Startup("anna", "nowhere"))).socket:
        assert isinstance(backend.fact, BackendRefused)
        assert backend.fact.sqlstate == "3D000"


def test_startup_parameters_reach_the_server(server: PostgresServer) -> None:
    parameters = (("application_name", "äpp"), ("options", "-c work_mem=123kB"), ("DateStyle", "German"))
    with opened(server, 1, replace(ANNA, parameters=parameters)) as (backend,):
        assert backend.facts.parameters["DateStyle"] == "German, DMY"
        assert Session(backend).ask("SHOW work_mem") == ["123kB"]


def test_a_cancel_request_reaches_its_query(server: PostgresServer) -> None:
    with opened(server) as (backend,):
        backend.socket.sendall(query("select pg_sleep(60)"))
        # The request must not come before the query: the server shows when it runs.
        with opened(server) as (other,):
            watcher = Session(other)
            while watcher.ask(f"SELECT state FROM pg_stat_activity WHERE pid = {backend.facts.process_id}") != [
                "active"
            ]:
                pass
        with socket.create_connection((server.host, server.port), TIMEOUT_S) as cancel:
            cancel.sendall(WIRE.cancel_request(backend.facts))
            assert cancel.recv(1) == b""
        answer = b""
        while not answer.endswith(b"Z\0\0\0\5I"):
            answer += backend.receive()
        assert b"57014" in answer


def test_a_server_without_tls_answers_n(server: PostgresServer) -> None:
    with socket.create_connection((server.host, server.port), TIMEOUT_S) as plain:
        plain.sendall(build_ssl_request())
        assert plain.recv(1) == b"N"


# --- inspection and replay ----------------------------------------------------------------------------------------


def test_a_fresh_session_has_nothing_to_carry(backends: list[Backend]) -> None:
    ledger = Session(backends[0]).inspect()
    assert ledger.is_empty
    assert ledger.replay(is_late=False) is None
    assert ledger.replay(is_late=True) is None


def test_settings_move(backends: list[Backend]) -> None:
    session = Session(backends[0])
    wanted = {
        "search_path": '"a,b", "q""uote", pg_catalog',
        "work_mem": "321kB",
        "TimeZone": "Asia/Tokyo",
        "application_name": "it's \\ ü",
        "standard_conforming_strings": "off",
        "statement_timeout": "20s",
        "enable_seqscan": "off",
        "app.tenant": "a 'tenant'",
    }
    for name, value in wanted.items():
        session.say(query("SELECT set_config('" + name + "', '" + value.replace("'", "''") + "', false)"))
    before = {name: session.ask(f"SHOW {name}") for name in wanted}
    assert session.move_to(backends[1]) == []
    assert {name: session.ask(f"SHOW {name}") for name in wanted} == before
    assert session.ledger.pins == []
    version = session.ledger.version
    session.inspect()
    assert session.ledger.version == version, "nothing changed"


def test_the_client_sees_no_parameter_twice(backends: list[Backend]) -> None:
    session = Session(backends[0])
    told = session.say(query("SET TimeZone = 'Asia/Tokyo'"))
    assert tags(told) == "CSZ"
    session.move_to(backends[1])
    assert session.relay.take_client() == b"", "the new backend has what the client was told"
    assert tags(session.say(query("SET TimeZone = 'Asia/Tokyo'"))) == "CZ"


def test_a_setting_in_the_clients_encoding_moves_as_it_is(backends: list[Backend]) -> None:
    session = Session(backends[0])
    session.say(query("SET client_encoding = latin1"))
    session.say(build_query(b"SET my.name = '\xe4\xf6\xfc'"))
    assert session.move_to(backends[1]) == []
    assert b"\xe4\xf6\xfc" in session.say(query("SHOW my.name"))


def test_a_setting_of_a_rolled_back_transaction_does_not_move(backends: list[Backend]) -> None:
    session = Session(backends[0])
    for sql in ("BEGIN", "SET work_mem = '99MB'", "ROLLBACK"):
        session.say(query(sql))
    assert session.ledger.is_dirty
    assert session.inspect().is_empty


def test_a_local_setting_leaves_nothing(backends: list[Backend]) -> None:
    session = Session(backends[0])
    session.say(query("BEGIN; SET LOCAL work_mem = '99MB'; SET LOCAL app.tenant = 'x'; COMMIT"))
    assert not session.ledger.is_dirty
    session.say(query("SELECT set_config('app.other', 'x', true)"))
    assert not session.ledger.is_dirty
    session.ledger.suspect({b"app.tenant", b"app.other"})
    assert session.inspect().is_empty


def test_the_name_of_a_custom_setting_may_be_a_parameter(backends: list[Backend]) -> None:
    session = Session(backends[0])
    session.say(parse("", "SELECT set_config($1, $2, false)") + bind("", "", b"my.own", b"v") + execute() + SYNC)
    assert session.ledger.is_dirty
    assert session.move_to(backends[1]) == []
    assert session.ask("SHOW my.own") == ["v"]


def test_role_and_session_authorization_move(backends: list[Backend]) -> None:
    session = Session(backends[0])
    session.say(query("SET SESSION AUTHORIZATION dora; SET ROLE dora"))
    session.say(query("SET SESSION AUTHORIZATION anna; SET ROLE poor"))
    assert session.move_to(backends[1]) == []
    assert session.ask("SELECT current_user || session_user") == ["pooranna"]
    session.say(query("RESET ROLE; SET SESSION AUTHORIZATION dora"))
    other = Backend.__new__(Backend)
    other.socket, other.startup, other.fact = backends[0].socket, backends[0].startup, backends[0].fact
    assert backends[0].run(WIRE.reset(backends[0].startup, backends[0].facts)) == []
    assert session.move_to(other) == []
    assert session.ask("SELECT current_user || session_user") == ["doradora"]


def test_an_inspection_works_with_few_rights_and_a_broken_search_path(backends: list[Backend]) -> None:
    session = Session(backends[0])
    session.say(query("CREATE SCHEMA IF NOT EXISTS evil"))
    session.say(query("CREATE OR REPLACE FUNCTION evil.lies(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false'"))
    session.say(
        query(
            "DO $$ BEGIN CREATE OPERATOR evil.= (FUNCTION = evil.lies, LEFTARG = text, RIGHTARG = text);"
            " EXCEPTION WHEN OTHERS THEN NULL; END $$"
        )
    )
    session.say(query("GRANT USAGE ON SCHEMA evil TO poor; SET search_path = evil, pg_catalog; SET ROLE poor"))
    ledger = session.inspect()
    assert ledger.settings == {b"search_path": b"evil, pg_catalog"}
    assert ledger.role == b"poor"


def test_prepared_statements_of_sql_move(backends: list[Backend]) -> None:
    session = Session(backends[0])
    session.say(query('PREPARE "A b" (int) AS SELECT $1 + 1'))
    session.say(query("BEGIN; INSERT INTO t VALUES ('once;'); /* ; */ PREPARE c AS SELECT 'x;y' || $q$;$q$; COMMIT"))
    count = session.ask("SELECT count(*) FROM t")
    assert session.move_to(backends[1]) == []
    assert session.ask('EXECUTE "A b" (4)') == ["5"]
    assert session.ask("EXECUTE c") == ["x;y;"]
    assert session.ask("SELECT count(*) FROM t") == count, "only the PREPARE was repeated"


def test_prepared_statements_of_the_protocol_move(backends: list[Backend]) -> None:
    session = Session(backends[0])
    session.say(parse("a", "select $1::text || '!'") + parse("b") + SYNC + close("b") + SYNC)
    session.say(query("DEALLOCATE a"), parse("a", "select $1::text || '?'") + parse("gone") + SYNC)
    session.say(query("DEALLOCATE gone"))
    assert session.move_to(backends[1]) == []
    answer = session.say(bind("a", "", b"x") + execute() + SYNC)
    assert tags(answer) == "2DCZ"
    assert b"x?" in answer
    assert tags(session.say(bind("gone") + SYNC)) == "EZ"


def test_channels_move_and_notifications_arrive(backends: list[Backend]) -> None:
    session = Session(backends[0])
    session.say(query('LISTEN "Ch an""nel"; LISTEN other'))
    assert session.move_to(backends[1]) == []
    assert session.ledger.channels == [b'Ch an"nel', b"other"]
    assert "A" in tags(session.say(query("""SELECT pg_notify('Ch an"nel', 'x')""")))


def test_what_comes_during_an_inspection_is_for_the_client(backends: list[Backend]) -> None:
    session = Session(backends[0])
    session.say(query("LISTEN news"))
    inspection = session.ledger.inspection()
    Session(backends[1]).say(query("NOTIFY news, 'hello'"))
    session.backend.run(inspection)
    assert b"hello" in inspection.unasked
    assert tags(session.relay.server(inspection.unasked)) == "A"


@pytest.mark.parametrize(
    ("make", "pin", "drop"),
    [
        ("CREATE TEMP VIEW x AS SELECT 1", "temp view", "DROP VIEW x"),
        ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", "with hold cursor", "CLOSE ALL; DISCARD PLANS"),
    ],
)
def test_what_cannot_move_is_a_pin(backends: list[Backend], make: str, pin: str, drop: str) -> None:
    session = Session(backends[0])
    session.say(query(make))
    assert session.ledger.is_dirty
    assert session.inspect().pins == [pin]
    session.say(query(drop))
    assert session.ledger.is_dirty
    assert session.inspect().is_empty


def test_what_fails_in_a_replay_does_not_stop_the_rest(backends: list[Backend]) -> None:
    session = Session(backends[0])
    session.say(query("SET work_mem = '77MB'"), query("PREPARE a AS SELECT 1"))
    session.inspect()
    session.ledger.settings[b"no_such_setting"] = b"x"
    session.ledger.settings[b"zero_damaged_pages"] = b"on"
    session.ledger.prepared[b"0"] = b"PREPARE nonsense"
    exchange = session.ledger.replay(is_late=False)
    assert exchange is not None
    errors = backends[1].run(exchange)
    assert [error.split(":")[0] for error in errors] == ["setting no_such_setting", "prepared statement 0"]
    fresh = Session(backends[1])
    assert fresh.ask("SHOW work_mem") == ["77MB"]
    assert fresh.ask("EXECUTE a") == ["1"]


def test_a_reset_backend_is_like_a_fresh_one(backends: list[Backend]) -> None:
    session = Session(backends[0])
    session.say(query("SET work_mem = '1MB'; CREATE TEMP TABLE y (a int); LISTEN x; SET ROLE poor"), parse("z") + SYNC)
    assert backends[0].run(WIRE.reset(backends[0].startup, backends[0].facts)) == []
    assert Session(backends[0]).inspect().is_empty


# --- sessions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [False, True])
def test_real_conversations_leave_nothing_in_flight(backends: list[Backend], shares: bool) -> None:
    session = Session(backends[0], shares=shares)
    extended = parse("") + describe("") + bind("") + describe("", "P") + execute() + SYNC
    assert tags(session.say(extended * 3)) == "1tT2TDCZ" * 3
    assert tags(session.say(parse("x", "selec") + bind("x") + execute() + SYNC + extended)) == "EZ1tT2TDCZ"
    assert tags(session.say(query("select 1; selec; select 2"))) == "EZ"
    assert tags(session.say(parse("", "copy t from stdin") + bind("") + execute() + SYNC + COPY_DONE + SYNC)) == "12GCZ"
    assert tags(session.say(query("copy t from stdin"), COPY_DATA * 2, COPY_DONE)) == "GEZ"
    assert tags(session.say(COPY_DATA + COPY_DONE + query("copy (select 1) to stdout"))) == "HdcCZ"
    copy_in = parse("", "copy t from stdin") + bind("") + execute() + SYNC
    assert tags(session.say(copy_in, COPY_DATA + COPY_DATA, until="E")) == "12GE"
    assert tags(session.say(COPY_DATA + COPY_DONE + SYNC)) == "Z"
    assert tags(session.say(parse("") + bind("") + FLUSH)) == "12"
    assert not session.relay.tracker.at_boundary()
    assert tags(session.say(execute() + SYNC)) == "DCZ"
    assert session.relay.tracker.at_boundary()


def test_statements_of_shared_backends_follow_the_session(backends: list[Backend]) -> None:
    one, two = Session(backends[0], shares=True), Session(backends[1], shares=True)
    two.notes_of = one.notes_of
    two.notes_of[id(backends[1])] = two.relay.notes
    for session, text in ((one, "select 'one'"), (two, "select 'two'")):
        assert tags(session.say(parse("s", text) + describe("s") + SYNC)) == "1tTZ"
    for _ in range(2):
        for session, word in ((one, b"one"), (two, b"two")):
            answer = session.say(bind("s") + execute() + SYNC)
            assert tags(answer) == "2DCZ"
            assert word in answer
        first, second = one.backend, two.backend
        one.relay.unlink()
        two.relay.unlink()
        one.use(second)
        two.use(first)
    assert tags(one.say(parse("s", "select 3") + SYNC)) == "EZ", "the name is taken"
    assert tags(one.say(close("s") + parse("s", "select 'two'") + bind("s") + execute() + SYNC)) == "312DCZ"
    assert tags(one.say(query("DISCARD ALL"))) == "CZ"
    assert tags(one.say(bind("s") + execute() + SYNC)) == "EZ"
    assert tags(one.say(parse("s", "select 'two'") + bind("s") + execute() + SYNC)) == "12DCZ"
