from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, Self

import pymysql
import pytest
import pytest_asyncio

from proxy.embedded import MariaDBPair, MySQLPair, free_port
from proxy.embedded.mysql import MySqlFamilyServer
from proxy.engines import MySqlEngine, Position, Role
from proxy.engines.mysql_link import Link, Server
from proxy.engines.mysql_replication import newest
from proxy.errors import AuthRefused, EngineError
from proxy.switch import parity
from proxy.tls import NO_ENGINE_TLS
from tests.kit.waiting import until

pytestmark = pytest.mark.slow

Pair = MariaDBPair | MySQLPair

WaitingCommit = Callable[["pymysql.Connection[Any]"], Awaitable[asyncio.Task[int]]]


def engine_of(server: MySqlFamilyServer, user: str = "turnout", password: str = "secret") -> MySqlEngine:
    return MySqlEngine(server.name, server.address, user=user, password=password)


@pytest.fixture(
    params=[
        pytest.param("mariadb_pair", marks=pytest.mark.mariadb, id="mariadb"),
        pytest.param("mysql_pair", marks=pytest.mark.mysql, id="mysql"),
    ]
)
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(request.param)
    return found


@pytest_asyncio.fixture
async def source(pair: Pair) -> AsyncIterator[MySqlEngine]:
    engine = engine_of(pair.primary)
    try:
        yield engine
        await engine.unfence()
    finally:
        await engine.close()


@pytest_asyncio.fixture
async def target(pair: Pair) -> AsyncIterator[MySqlEngine]:
    engine = engine_of(pair.standby)
    yield engine
    await engine.close()


async def test_a_probe_tells_primary_from_replica(pair: Pair, source: MySqlEngine, target: MySqlEngine) -> None:
    primary, standby = await source.probe(), await target.probe()
    assert (primary.role, primary.is_writable, primary.is_fenced) == (Role.PRIMARY, True, False)
    assert (standby.role, standby.is_writable, standby.is_replicating) == (Role.STANDBY, False, True)
    assert standby.upstream == pair.primary.address
    assert primary.server_id != standby.server_id
    assert primary.flavour == ("mariadb" if isinstance(pair, MariaDBPair) else "mysql")
    assert primary.version_num > 100000 - 20000


async def test_a_fence_refuses_real_writes_and_can_be_taken_back_within_a_second(
    pair: Pair, source: MySqlEngine
) -> None:
    await pair.primary.execute("create table if not exists app.fenced (i int)")
    await source.prepare()
    own = pair.primary.connect_blocking("app", "app")
    other = pair.primary.connect_blocking("app", "app")
    other.begin()
    other.cursor().execute("insert into fenced values (1)")

    proof = await source.fence([own.thread_id()])

    assert (proof.writers_left, proof.sessions_ended) == (0, 1)
    assert proof.refused_with == ("" if isinstance(pair, MariaDBPair) else "1290")
    assert (await source.probe()).is_fenced
    with pytest.raises(pymysql.err.OperationalError):
        other.cursor().execute("insert into fenced values (2)")
    with pytest.raises(pymysql.err.OperationalError, match="read-only"):
        own.cursor().execute("insert into fenced values (3)")

    began = time.monotonic()
    await source.unfence()
    assert time.monotonic() - began < 1
    own.cursor().execute("insert into fenced values (5)")
    assert await pair.primary.fetch("select i from app.fenced") == [{"i": 5}]
    await pair.primary.execute("drop table app.fenced")
    own.close()
    other.close()


async def test_a_table_lock_of_somebody_else_does_not_hold_the_fence_up(pair: Pair, source: MySqlEngine) -> None:
    """To be closed to writes the server waits for it, and ends nobody for that."""
    await pair.primary.execute("create table if not exists app.locked (i int)")
    other = pair.primary.connect_blocking("app", "app")
    try:
        other.cursor().execute("lock tables locked write")
        proof = await source.fence(timeout_s=2.0)
        assert (proof.sessions_ended, proof.writers_left) == (1, 0)
        assert (await source.probe()).is_fenced
    finally:
        await source.unfence()
        other.close()
        await pair.primary.execute("drop table app.locked")


async def test_a_session_that_we_may_not_end_does_not_keep_a_server_from_being_fenced(
    pair: Pair, source: MySqlEngine
) -> None:
    """MySQL's root has SYSTEM_USER, and our account has not. It cannot write either."""
    root = pair.primary.connect_blocking("app")
    try:
        await source.fence()
        with pytest.raises(pymysql.err.OperationalError):
            root.cursor().execute("create table not_here (i int)")
    finally:
        root.close()
        await source.unfence()


@pytest_asyncio.fixture
async def waiting_commit(pair: Pair) -> AsyncIterator[WaitingCommit]:
    """Begins a commit of a client that waits for the acknowledgement of a replica, which never comes."""
    is_maria = isinstance(pair, MariaDBPair)
    name = "rpl_semi_sync_master" if is_maria else "rpl_semi_sync_source"
    if not is_maria:
        await pair.primary.execute("install plugin rpl_semi_sync_source soname 'semisync_source.so'")
    await pair.primary.execute("create table app.lonely (i int)", f"set global {name}_timeout = 3600000")
    await pair.primary.execute(f"set global {name}_enabled = 1")
    begun: list[asyncio.Task[int]] = []

    async def begin(client: pymysql.Connection[Any]) -> asyncio.Task[int]:
        async def is_waiting() -> bool:
            """Commits wait in a row: one for the replica, the others for that one."""
            found = await pair.primary.fetch(f"show global status like '{name}_wait_sessions'")
            at_work = f"select 1 from information_schema.processlist where id = {number} and command = 'Query'"
            return int(found[0]["Value"]) == 1 and bool(await pair.primary.fetch(at_work))

        client.autocommit(True)
        number = client.thread_id()
        task = asyncio.create_task(asyncio.to_thread(client.cursor().execute, "insert into app.lonely values (1)"))
        begun.append(task)
        await until(is_waiting, "the commit waits for a replica")
        return task

    yield begin
    rows = await pair.primary.fetch(f"show global variables like '{name}_enabled'")
    await pair.primary.execute(f"set global {name}_enabled = 0")
    await asyncio.gather(*begun, return_exceptions=True)
    await pair.primary.execute("set global read_only = 0")
    await pair.primary.execute("drop table app.lonely", f"set global {name}_timeout = 10000")
    if not is_maria:
        await pair.primary.execute("uninstall plugin rpl_semi_sync_source")
    assert rows[0]["Value"] == "ON", "what an operator has set is put back"


async def test_a_commit_that_waits_for_a_replica_which_is_gone_does_not_keep_a_server_from_being_fenced(
    pair: Pair, waiting_commit: WaitingCommit, source: MySqlEngine
) -> None:
    """KILL does not end that wait on MySQL."""
    client = pair.primary.connect_blocking("app", "app")
    try:
        committing = await waiting_commit(client)
        proof = await source.fence()
        assert proof.sessions_ended == 1
        assert (await source.probe()).is_fenced
        with pytest.raises(pymysql.err.OperationalError):
            await committing
    finally:
        await source.unfence()
        client.close()


@pytest.mark.parametrize("pair", [pytest.param("mysql_pair", marks=pytest.mark.mysql)], indirect=True)
async def test_nobody_is_told_of_a_commit_that_no_replica_has(
    pair: Pair, waiting_commit: WaitingCommit, source: MySqlEngine
) -> None:
    """Root's session may not be ended by our account: it goes on waiting, and so does whoever was told to end."""
    clients = [pair.primary.connect_blocking("app"), pair.primary.connect_blocking("app", "app")]
    try:
        of_root, _ = [await waiting_commit(client) for client in clients]
        with pytest.raises(EngineError, match="may not be ended wait for a replica"):
            await source.fence()
        assert not of_root.done()
    finally:
        for client in clients:
            # Who is being answered is closed once the answer is there, or the read has timed out.
            if client._sock is not None:
                client._sock.shutdown(socket.SHUT_RDWR)
            client.close()


async def test_a_fence_and_its_undoing_may_be_repeated(source: MySqlEngine) -> None:
    await source.fence()
    await source.fence()
    await source.unfence()
    await source.unfence()
    assert (await source.probe()).is_writable


async def test_a_fence_fails_if_a_session_of_our_own_still_writes(pair: Pair, source: MySqlEngine) -> None:
    await pair.primary.execute("create table if not exists app.busy (i int)")
    own = pair.primary.connect_blocking("app", "app")
    own.begin()
    own.cursor().execute("insert into busy values (1)")
    try:
        with pytest.raises(EngineError, match="blue"):
            await source.fence([own.thread_id()], timeout_s=0.5)
    finally:
        own.rollback()
        own.close()
    await source.unfence()
    await pair.primary.execute("drop table app.busy")


class ListReader:
    """Somebody who reads InnoDB's list of transactions all the time: it shows its readers one and the same until none has come
    for 0.1 s."""

    def __init__(self, pair: Pair) -> None:
        self._connection = pair.primary.connect_blocking()
        self._is_over = threading.Event()
        self.id = self._connection.thread_id()
        self.shown: set[int] | None = None
        """Connections whose transactions have changed something, as it was told last."""

    async def __aenter__(self) -> Self:
        self._reading = asyncio.create_task(asyncio.to_thread(self._read))
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._is_over.set()
        await self._reading
        self._connection.close()

    def _read(self) -> None:
        with self._connection.cursor() as cursor:
            while not self._is_over.wait(0.01):
                cursor.execute(
                    "select trx_mysql_thread_id from information_schema.innodb_trx where trx_rows_modified > 0"
                )
                rows = cursor.fetchall()
                self.shown = {next(iter(row.values() if isinstance(row, dict) else row)) for row in rows}


async def test_a_transaction_that_is_over_does_not_hold_the_fence_up_for_as_long_as_somebody_reads_of_it(
    pair: Pair, source: MySqlEngine
) -> None:
    await pair.primary.execute("create table if not exists app.ending (i int)")
    own = pair.primary.connect_blocking("app", "app")
    own.begin()
    own.cursor().execute("insert into ending values (1)")
    try:
        async with ListReader(pair) as reader:
            await until(lambda: own.thread_id() in (reader.shown or ()), "its transaction is listed")
            own.commit()
            proof = await source.fence([own.thread_id(), reader.id], timeout_s=2.0)
            assert proof.writers_left == 0
    finally:
        await source.unfence()
        own.close()
        await pair.primary.execute("drop table app.ending")


async def test_a_transaction_that_is_not_listed_yet_fails_the_fence_however_often_somebody_reads_the_list(
    pair: Pair, source: MySqlEngine
) -> None:
    await pair.primary.execute("create table if not exists app.beginning (i int)")
    own = pair.primary.connect_blocking("app", "app")
    try:
        async with ListReader(pair) as reader:
            await until(lambda: reader.shown is not None, "the list was read")
            own.begin()
            own.cursor().execute("insert into beginning values (1)")
            with pytest.raises(EngineError, match=f"writing transaction open: {own.thread_id()}$"):
                await source.fence([own.thread_id(), reader.id], timeout_s=2.0)
            assert own.thread_id() not in (reader.shown or ()), "it has been kept out of the list"
    finally:
        own.rollback()
        own.close()
        await source.unfence()
        await pair.primary.execute("drop table app.beginning")


async def test_accounts_that_the_fence_does_not_bind_are_named(mariadb_pair: MariaDBPair) -> None:
    engine = engine_of(mariadb_pair.primary)
    exempt = (await engine.fence()).exempt
    await engine.unfence()
    await engine.close()
    assert "'root'@'127.0.0.1'" in exempt
    assert not any("app" in one for one in exempt)


async def test_the_replica_reaches_the_fenced_position(pair: Pair, source: MySqlEngine, target: MySqlEngine) -> None:
    await pair.primary.execute("create table if not exists app.kept (i int)")
    client = pair.primary.connect_blocking("app", "app")
    for number in range(20):
        client.cursor().execute("insert into kept values (%s)", (number,))
    await source.fence([client.thread_id()])
    position = await source.position()
    assert await target.wait_reached(position, 5.0)
    assert await target.reached(position)
    assert await pair.standby.fetchval("select count(*) from app.kept") == 20
    client.close()
    await source.unfence()
    await pair.primary.execute("drop table app.kept")


async def test_a_position_not_reached_is_false_at_the_deadline(
    pair: Pair, source: MySqlEngine, target: MySqlEngine
) -> None:
    position = await source.position()
    text = "0-1-999999999" if isinstance(pair, MariaDBPair) else "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5"
    far = Position(position.kind, text)
    assert not await target.wait_reached(far, 0.05)
    assert not await target.reached(far)


async def test_a_promoted_replica_is_a_writable_primary_and_the_way_back_is_the_same(pair: Pair) -> None:
    await pair.primary.execute("create table if not exists app.turns (who varchar(9))")
    for _ in range(2):
        source, target = engine_of(pair.primary), engine_of(pair.standby)
        await asyncio.gather(source.prepare(), target.prepare())
        await source.fence()
        assert await target.wait_reached(await source.position(), 5.0)
        await target.promote()
        await target.promote()
        state = await target.probe()
        assert (state.role, state.is_writable) == (Role.PRIMARY, True)
        assert (await source.probe()).is_fenced
        client = pair.standby.connect_blocking("app", "app")
        client.cursor().execute("insert into turns values ('x')")
        client.close()
        await source.close()
        await target.close()
        await pair.swap()
    assert await pair.standby.fetchval("select count(*) from app.turns") == 2
    await pair.primary.execute("drop table app.turns")


async def test_connections_that_were_lost_since_are_opened_anew_to_prepare(pair: Pair, source: MySqlEngine) -> None:
    await source.prepare()
    await pair.primary.execute(*(f"kill {number}" for number in source._admin_ids()))
    await source.prepare()
    assert (await source.position()).text


async def test_a_replica_cannot_be_fenced_or_unfenced(target: MySqlEngine) -> None:
    with pytest.raises(EngineError, match="replica"):
        await target.fence()
    with pytest.raises(EngineError, match="replica"):
        await target.unfence()


async def test_missing_rights_are_named_with_the_statement_that_grants_them(pair: Pair) -> None:
    await pair.primary.execute("create user lowly@'%' identified by 'secret'")
    engine = engine_of(pair.primary, user="lowly")
    try:
        missing = await engine.permissions()
        assert any("read_only" in one.right for one in missing)
        for one in missing:
            await pair.primary.execute(one.grant)
        assert await engine.permissions() == []
        # The grants are enough for the real thing. Rights given meanwhile hold for new sessions only.
        await engine.close()
        await engine.prepare()
        await engine.fence()
        await engine.position()
        await engine.unfence()
    finally:
        await engine.close()
        await pair.primary.execute("drop user lowly@'%'")


async def test_the_admin_account_of_the_throwaway_servers_lacks_nothing(source: MySqlEngine) -> None:
    assert await source.permissions() == []


async def test_sessions_outside_are_those_that_are_not_ours(pair: Pair, source: MySqlEngine) -> None:
    await source.prepare()
    own = pair.primary.connect_blocking("app", "app")
    other = pair.primary.connect_blocking("app", "app")
    outside = await source.sessions_outside([own.thread_id()])
    assert [(one.pid, one.user, one.database) for one in outside] == [(other.thread_id(), "app", "app")]
    assert (await source.capacity()).free > 500
    assert await source.connections() >= 4
    own.close()
    other.close()


async def test_an_operators_query_tells_a_number_or_says_that_it_does_not(source: MySqlEngine) -> None:
    assert await source.ask_number("select 12.5") == 12.5
    assert await source.ask_number("select count(*) from mysql.user where user like '%no such user%'") == 0
    assert await source.ask_number("select null") is None
    for wrong in ("select 'much'", "select no_such_column"):
        with pytest.raises(EngineError):
            await source.ask_number(wrong)
    assert (await source.probe()).is_reachable


async def test_a_probe_of_a_closed_or_silent_port_says_so_in_time() -> None:
    engine = MySqlEngine("gone", f"127.0.0.1:{free_port()}", user="turnout", password="secret")
    assert "cannot be reached" in (await engine.probe()).why
    await engine.close()
    with socket.create_server(("127.0.0.1", free_port())) as silent:
        engine = MySqlEngine("mute", f"127.0.0.1:{silent.getsockname()[1]}", user="turnout", password="x")
        began = time.monotonic()
        assert not (await engine.probe(timeout_s=0.2)).is_reachable
        assert time.monotonic() - began < 2
        await engine.close()


async def test_a_connection_that_was_closed_does_no_more_work_and_says_so() -> None:
    """Somebody may have an engine removed that is about to be fenced."""
    server = Server(
        "gone", f"127.0.0.1:{free_port()}", user="turnout", password=None, database="", tls=lambda: NO_ENGINE_TLS
    )
    link = Link(server, "acts")
    link.close()
    with pytest.raises(EngineError, match="to engine gone was closed"):
        await link.run(lambda link: link.ask("do 1"), 1.0)


async def test_a_wrong_password_is_refused_by_name_and_never_shown(pair: Pair) -> None:
    engine = engine_of(pair.primary, password="hunter2")
    with pytest.raises(AuthRefused) as caught:
        await engine.connect()
    assert "blue" in caught.value.text
    assert "hunter2" not in caught.value.text
    await engine.close()


async def test_commits_that_the_replica_lacks_are_named(pair: Pair, source: MySqlEngine, target: MySqlEngine) -> None:
    await pair.primary.execute("create table if not exists app.audited (i int)")
    assert await target.wait_reached(await source.position(), 5.0)
    before = await source.recent_commits(1_000)
    assert await target.lacking(before) == []
    await pair.standby.execute("stop replica sql_thread")
    try:
        await pair.primary.execute(*["insert into app.audited values (1)"] * 3)
        sample = await source.recent_commits(1_000)
        lacking = await target.lacking(sample)
        if sample.by == "gtid":
            assert lacking == [name for name in sample.names if name not in before.names]
            assert len(lacking) == 3
        else:
            assert lacking == sample.names
    finally:
        await pair.standby.execute("start replica")
    assert await target.wait_reached(await source.position(), 5.0)
    assert await target.lacking(sample) == []
    await pair.primary.execute("drop table app.audited")


def test_the_newest_transactions_of_a_gtid_set_are_shared_out_among_its_sources() -> None:
    one, two = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "3e11fa47-71ca-11e1-9e33-c80aa9429563"
    assert newest(f"{one}:1-100:105", 3) == [f"{one}:99", f"{one}:100", f"{one}:105"]
    assert newest(f"{one}:1-2,{two}:1-9", 6) == [f"{one}:1", f"{one}:2", *(f"{two}:{n}" for n in (6, 7, 8, 9))]
    assert newest(f"{one}:7:nightly:1-2", 9) == [f"{one}:7", f"{one}:nightly:1", f"{one}:nightly:2"]
    assert newest("", 9) == []


async def test_an_inventory_tells_which_object_changed_and_how(pair: Pair, source: MySqlEngine) -> None:
    """By an admin account that may read no row."""
    await pair.primary.execute(
        "create table app.orders (id int primary key auto_increment, total decimal(10,2) not null default 0,"
        " name varchar(20), key by_name (name))",
        "create table app.items (id int primary key, order_id int, foreign key (order_id) references app.orders (id))",
        "create view app.shown as select id from app.orders",
    )
    try:
        before = await source.inventory(["app"], with_schema=True, timeout_s=5.0)
        assert before.blind == ""
        assert {label.split(" app.")[0] for label in before.objects} >= {"table", "index", "foreign key", "view"}
        assert before.settings["sql_mode"]
        assert len(before.followers) == 1
        await pair.primary.execute("alter table app.orders modify total int not null", "drop view app.shown")
        after = await source.inventory(["app"], with_schema=True, timeout_s=5.0)
        lacking, extra = parity.compare(before, after)
        assert sorted(lacking) == ["table app.orders", "table app.shown", "view app.shown"]
        assert extra == []
        lines = (await source.explain(lacking, 5.0))["table app.orders"]
        assert [line.partition(" ")[0] for line in lines] == ["id", "total", "name"]
        assert lines[1].startswith("total int")
    finally:
        await pair.primary.execute("drop view if exists app.shown", "drop table app.items, app.orders")


async def test_an_account_that_sees_no_schema_is_told_how_it_could(pair: Pair) -> None:
    await pair.primary.execute("create user blind@'%' identified by 'secret'", "grant process on *.* to blind@'%'")
    engine = engine_of(pair.primary, user="blind")
    try:
        found = await engine.inventory(["app"], with_schema=True, timeout_s=5.0)
        assert "GRANT REFERENCES" in found.blind
        assert "'blind'@'%'" in found.blind
        await pair.primary.execute(found.blind.partition(": ")[2].partition(" (")[0])
        await pair.primary.execute("create table app.seen (id int)")
        assert "table app.seen" in (await engine.inventory(["app"], with_schema=True, timeout_s=5.0)).objects
    finally:
        await engine.close()
        await pair.primary.execute("drop user blind@'%'", "drop table if exists app.seen")


async def test_open_transactions_are_told(pair: Pair, source: MySqlEngine) -> None:
    client = pair.primary.connect_blocking("app", "app")
    client.cursor().execute("create table if not exists app.opened (i int)")
    client.begin()
    client.cursor().execute("insert into app.opened values (1)")
    (found,) = await source.transactions()
    assert (found.pid, found.user, found.database, found.is_idle) == (client.thread_id(), "app", "app", True)
    assert 0 <= found.age_s < 60
    client.rollback()
    client.cursor().execute("drop table app.opened")
    client.close()


@pytest.mark.parametrize("how", ["commit", "rollback"])
async def test_prepared_transactions_are_ended_by_rule(
    pair: Pair, source: MySqlEngine, how: Literal["commit", "rollback"]
) -> None:
    await pair.primary.execute("create table app.doubt (i int)")
    client = pair.primary.connect_blocking("app", "app")
    for sql in ("xa start 'it''s','7',3", "insert into doubt values (1)", "xa end 'it''s','7',3",
                "xa prepare 'it''s','7',3"):  # fmt: skip
        client.cursor().execute(sql)
    client.close()

    async def is_let_go() -> bool:
        return not await source.sessions_outside([])

    await until(is_let_go, "the session that prepared it has ended")
    assert await source.resolve_in_doubt(how) == ["it's7"]
    assert await source.prepared_in_doubt() == []
    assert await pair.primary.fetchval("select count(*) from app.doubt") == (1 if how == "commit" else 0)
    await pair.primary.execute("drop table app.doubt")
