"""A server that goes away takes no client with it: idle sessions go on, a transaction gets one error, a session that was
meant is ended as the server ends it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import asyncpg
import psutil
import psycopg
import pytest
import pytest_asyncio

from protocols.postgres.messages import build_query, build_ssl_request, parse_data_row
from proxy.embedded import PostgresServer, Setup, Turnout, Workspace
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.e2e.doors import HOST, Door
from tests.e2e.talker import Talker
from tests.kit.processes import suspended
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[PostgresServer]:
    """One that these tests restart."""
    with Workspace("turnout-test-") as workspace:
        server = await PostgresServer.create(workspace, fsync=False)
        await server.start()
        try:
            yield server
        finally:
            await server.stop("immediate")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["session", "transaction"])
async def turnout(
    request: pytest.FixtureRequest, server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Turnout]:
    setup = Setup(
        protocol="postgresql",
        engines={"blue": server.address},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={SUPERUSER: PASSWORD},
        pool_mode=request.param,
        service={"server_login_retry_s": 0.2},
    )
    one = Turnout(setup, tmp_path_factory.mktemp(f"lost-{request.param}"))
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


@pytest.fixture
def door(turnout: Turnout) -> Door:
    return Door(name=turnout.setup.pool_mode, port=turnout.port, user=SUPERUSER, database="postgres")


async def _connect(door: Door, **options: Any) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(door.dsn(), connect_timeout=20, **options)


async def _value(connection: psycopg.AsyncConnection[Any], query: str, *parameters: object, **options: Any) -> Any:
    cursor = await connection.execute(query.encode(), parameters or None, **options)
    return (await cursor.fetchone() or (None,))[0]


async def _crash(server: PostgresServer) -> None:
    """As `kill -9` of a server process: all connections end without a word, or with 57P02."""
    await server.stop("immediate")
    await server.start()


async def _restart(server: PostgresServer) -> None:
    """Everybody is told 57P01."""
    await server.stop("fast")
    await server.start()


async def _look(server: PostgresServer, query: str, what: str) -> None:
    async def holds() -> bool:
        return bool(await server.fetchval(query))

    await until(holds, what)


@pytest.mark.parametrize("leave", [_crash, _restart], ids=["crash", "restart"])
async def test_an_idle_session_does_not_notice_that_its_server_was_restarted(
    server: PostgresServer, door: Door, leave: Any
) -> None:
    """field-notes: 57P01/57P02/57P03, 25006, 08006 as switch signals"""
    async with await _connect(door, autocommit=True, prepare_threshold=0) as connection:
        assert await _value(connection, "select %s::int + 1", 1) == 2
        await connection.execute("set work_mem = '77MB'")
        # Asked what it holds when it has been idle for a moment.
        await _look(
            server,
            "select count(*) from pg_stat_activity where query like '%pg_listening_channels%' and state = 'idle'",
            "the session's backend was asked what it holds",
        )
        await leave(server)
        assert await _value(connection, "select %s::int + 1", 2) == 3
        assert await _value(connection, "show work_mem") == "77MB"


async def test_a_transaction_gets_one_error_and_goes_on_after_rollback(server: PostgresServer, door: Door) -> None:
    """field-notes: ReadyForQuery 'E'"""
    async with await _connect(door) as connection:
        assert await _value(connection, "select 1") == 1
        await _crash(server)
        with pytest.raises(psycopg.errors.SerializationFailure):
            await connection.execute("select 2")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await connection.execute("select 3")
        await connection.rollback()
        assert await _value(connection, "select 4") == 4


@pytest.mark.parametrize("threshold", [None, 0], ids=["simple", "prepared"])
async def test_a_commit_of_what_was_lost_meanwhile_is_an_error(
    server: PostgresServer, door: Door, threshold: int | None
) -> None:
    """The server would answer ROLLBACK, without an error, which drivers take for a commit. A rollback is none. What follows in
    the same Query is run after a rollback only."""
    await server.execute("create table if not exists seen (i int); truncate seen")
    more = "; insert into seen values (1)" if threshold is None else ""
    for last in ("rollback", "commit"):
        async with await _connect(door, autocommit=True, prepare_threshold=threshold) as connection:
            await connection.execute("begin")
            await _value(connection, "select 1")
            await _crash(server)
            if last == "commit":
                with pytest.raises(psycopg.errors.SerializationFailure):
                    await connection.execute((last + more).encode(), prepare=threshold == 0)
            else:
                await connection.execute((last + more).encode())
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            assert await _value(connection, "select count(*) from seen") == (1 if more else 0)
            assert await _value(connection, "select 4") == 4
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.execute("select 1 / 0")


async def test_what_follows_such_a_commit_in_its_batch_is_not_run(server: PostgresServer, door: Door) -> None:
    await server.execute("create table if not exists seen (i int); truncate seen")
    async with await _connect(door, autocommit=True) as connection:
        await connection.execute("begin")
        await _value(connection, "select 1")
        await _crash(server)
        with pytest.raises(psycopg.errors.SerializationFailure):
            async with connection.pipeline():
                await connection.execute("commit")
                await connection.execute("insert into seen values (1)")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert await _value(connection, "select count(*) from seen") == 0


async def _ask_too_late(
    server: PostgresServer,
    turnout: Turnout,
    connections: list[psycopg.AsyncConnection[Any]],
    questions: list[Coroutine[Any, Any, Any]],
) -> list[Any]:
    """What becomes of a question on each connection that the worker finds only when the server has ended."""
    with suspended(turnout.processes()[1]):
        asked = [asyncio.create_task(one) for one in questions]
        active = psycopg.pq.TransactionStatus.ACTIVE
        await until(lambda: all(one.info.transaction_status == active for one in connections), "all have asked")
        await server.stop("immediate")
    await server.start()
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_a_request_that_came_too_late_for_its_server_is_run_once_by_the_next(
    server: PostgresServer, turnout: Turnout, door: Door
) -> None:
    """The worker gets no processor while the server ends: of what it finds then the requests come first, more of them than it
    takes from the kernel at once, and are sent to servers that are gone. Nothing of them was run, and nobody is told."""
    await server.execute("create table if not exists seen (i int); truncate seen")
    connections = await asyncio.gather(*[_connect(door, autocommit=True) for _ in range(80)])
    await asyncio.gather(*[one.execute("select pg_sleep(0.1)") for one in connections])
    questions = [
        one.execute(b"insert into seen values (%s)", (i,), prepare=i % 2 == 0) for i, one in enumerate(connections)
    ]
    outcomes = await _ask_too_late(server, turnout, connections, questions)
    assert [one for one in outcomes if isinstance(one, Exception)] == []
    assert await server.fetchval("select array_agg(i order by i) from seen") == list(range(80))
    for one in connections:
        await one.close()


async def test_a_request_in_flight_is_not_sent_again_and_its_client_is_told(server: PostgresServer, door: Door) -> None:
    await server.execute("create table if not exists seen (i int); truncate seen")
    async with await _connect(door, autocommit=True) as connection:
        working = asyncio.create_task(connection.execute("insert into seen select 1 from pg_sleep(64)"))
        await _look(server, "select 1 from pg_stat_activity where query like 'insert into seen%'", "it runs")
        await _crash(server)
        with pytest.raises(psycopg.errors.TransactionResolutionUnknown):
            await asyncio.wait_for(working, 20)
        assert await _value(connection, "select count(*) from seen") == 0


async def test_a_statement_in_a_transaction_in_flight_is_40001(server: PostgresServer, door: Door) -> None:
    async with await _connect(door) as connection:
        await connection.execute("select 1")
        working = asyncio.create_task(connection.execute("select pg_sleep(65)"))
        await _look(server, "select 1 from pg_stat_activity where query like '%pg_sleep(65)'", "it runs")
        await _crash(server)
        with pytest.raises(psycopg.errors.SerializationFailure):
            await asyncio.wait_for(working, 20)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        await connection.rollback()
        assert await _value(connection, "select 4") == 4


async def _make_slow(server: PostgresServer) -> None:
    """A COMMIT of what is written to `slow` takes its time."""
    await server.execute(
        "create table if not exists slow (i int); create or replace function slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(66); return null; end $$; drop trigger if exists slow on slow;"
        " create constraint trigger slow after insert on slow deferrable initially deferred for each row"
        " execute function slow()"
    )


_COMMITS = "select 1 from pg_stat_activity where query ilike 'commit%' and state = 'active'"


@pytest.mark.parametrize("way", ["simple", "prepared"])
async def test_an_interrupted_commit_is_08007_and_ends_the_transaction(
    server: PostgresServer, door: Door, way: str
) -> None:
    """field-notes: BEGIN/COMMIT tags"""
    await _make_slow(server)
    async with await _connect(door) as connection:
        for _ in range(2):
            # A prepared COMMIT is bound by its name the second time.
            await connection.execute("insert into slow values (1)")
            commit = connection.commit() if way == "simple" else connection.execute("commit", prepare=True)
            working = asyncio.create_task(commit)
            await _look(server, _COMMITS, "it runs")
            await _crash(server)
            with pytest.raises(psycopg.errors.TransactionResolutionUnknown):
                await asyncio.wait_for(working, 20)
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert await _value(connection, "select count(*) from slow") == 0


async def test_a_drivers_block_whose_commit_is_interrupted_can_be_tried_again(
    server: PostgresServer, door: Door
) -> None:
    """Neither driver rolls back what it could not commit: with a server, a COMMIT that fails has ended the transaction."""
    await _make_slow(server)
    theirs = await asyncpg.connect(
        host=HOST, port=door.port, user=door.user, password=door.password, database=door.database, ssl=False, timeout=20
    )
    async with await _connect(door, autocommit=True) as ours:

        async def with_psycopg() -> None:
            async with ours.transaction():
                await ours.execute("insert into slow values (1)")

        async def with_asyncpg() -> None:
            async with theirs.transaction():
                await theirs.execute("insert into slow values (1)")

        try:
            working = [asyncio.create_task(with_psycopg()), asyncio.create_task(with_asyncpg())]
            await _look(server, f"select count(*) = 2 from ({_COMMITS}) as them", "both run")
            await _crash(server)
            outcomes = await asyncio.wait_for(asyncio.gather(*working, return_exceptions=True), 20)
            assert [getattr(one, "sqlstate", one) for one in outcomes] == ["08007", "08007"]
            async with ours.transaction(), theirs.transaction():
                assert await _value(ours, "select count(*) from slow") == 0
                assert await theirs.fetchval("select count(*) from slow") == 0
        finally:
            await theirs.close()


@pytest.mark.parametrize("end", ["rollback", "commit"])
async def test_the_end_of_a_transaction_that_came_too_late_for_its_server_leaves_none_open(
    server: PostgresServer, turnout: Turnout, door: Door, end: str
) -> None:
    """A ROLLBACK is done: the loss of its server does what it asks for. A COMMIT that was surely not read gets 40001."""
    connections = await asyncio.gather(*[_connect(door) for _ in range(40)])
    await asyncio.gather(*[one.execute("select 1") for one in connections])
    ends = [one.rollback() if end == "rollback" else one.commit() for one in connections]
    outcomes = await _ask_too_late(server, turnout, connections, ends)
    codes = {getattr(one, "sqlstate", one) for one in outcomes}
    assert codes == ({None} if end == "rollback" else {"40001"})
    for one in connections:
        assert one.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert await _value(one, "select 4") == 4
        await one.close()


async def test_a_pipeline_gets_one_error_for_each_of_its_batches(server: PostgresServer, door: Door) -> None:
    """field-notes: Two ErrorResponses in one batch
    field-notes: Errors skip until Sync"""
    async with await _connect(door, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.TransactionResolutionUnknown):
            async with connection.pipeline() as pipeline:
                await connection.execute("select pg_sleep(67)")
                await connection.execute("select 1")

                async def crash() -> None:
                    await _look(server, "select 1 from pg_stat_activity where query like '%(67)'", "it runs")
                    await _crash(server)

                crashing = asyncio.create_task(crash())
                await pipeline.sync()
        await crashing
        assert await _value(connection, "select 3") == 3


async def test_the_extended_protocol_goes_on_after_the_loss(server: PostgresServer, door: Door) -> None:
    connection = await asyncpg.connect(
        host=HOST, port=door.port, user=door.user, password=door.password, database=door.database, ssl=False, timeout=20
    )
    try:
        assert await connection.fetchval("select $1::int", 5) == 5
        transaction = connection.transaction()
        await transaction.start()
        assert await connection.fetchval("select $1::int", 6) == 6
        await _crash(server)
        with pytest.raises(asyncpg.SerializationError):
            await connection.fetchval("select $1::int", 7)
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await connection.fetchval("select $1::int + 1", 7)
        await transaction.rollback()
        assert await connection.fetchval("select $1::int", 8) == 8
    finally:
        await connection.close()


async def test_a_session_that_an_operator_ends_is_told_so(server: PostgresServer, door: Door) -> None:
    """field-notes: AdminShutdown (`57P01`) from `pg_terminate_backend`"""
    connection = await _connect(door)
    pid = await _value(connection, "select pg_backend_pid()")
    assert await server.fetchval("select pg_terminate_backend($1, 5000)", pid)
    with pytest.raises(psycopg.errors.AdminShutdown):
        await connection.execute("select 1")
    assert connection.broken
    await connection.close()


async def test_after_a_crash_other_sessions_send_nothing_to_servers_that_are_about_to_end(
    server: PostgresServer, turnout: Turnout, door: Door
) -> None:
    """PostgreSQL ends all processes when one has crashed, one after another; here the second one takes longer. A request that
    it would never read waits, for nobody could tell afterwards."""
    await server.execute("create table if not exists seen (i int); truncate seen")
    connections = [await _connect(door, autocommit=True) for _ in range(2)]
    asked = [asyncio.create_task(_value(one, "select pg_backend_pid() from pg_sleep(0.3)")) for one in connections]
    crashing, slow = await asyncio.gather(*asked)
    with suspended(turnout.processes()[1]):
        os.kill(slow, signal.SIGSTOP)
        os.kill(crashing, signal.SIGKILL)
        await until(lambda: _has_ended(crashing), "the first one has ended")
        late = asyncio.create_task(connections[1].execute("insert into seen values (1)"))
        active = psycopg.pq.TransactionStatus.ACTIVE
        await until(lambda: connections[1].info.transaction_status == active, "it has asked")
    # Within the moment for which it is held back.
    os.kill(slow, signal.SIGKILL)
    await asyncio.wait_for(late, 20)
    assert await _value(connections[0], "select count(*) from seen") == 1
    for one in connections:
        await one.close()


def _has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_backend_that_ends_right_behind_an_answer_was_nobodys_in_transaction_mode(
    server: PostgresServer, turnout: Turnout, door: Door
) -> None:
    """The answer, the server's last words and the end of the connection are there at once. In transaction mode the client is
    not told, and nobody is lent what has ended."""
    connections = [await _connect(door, autocommit=True) for _ in range(2)]
    # libpq takes an error that has come between two questions for a notice.
    words: list[str | None] = []
    connections[0].add_notice_handler(lambda notice: words.append(notice.sqlstate))
    asked = asyncio.create_task(_value(connections[0], "select 7 from pg_sleep(0.3)"))
    asking = "select pid from pg_stat_activity where query like 'select 7 %' and state = "
    await _look(server, f"{asking} 'active'", "it runs")
    with suspended(turnout.processes()[1]):
        await _look(server, f"{asking} 'idle'", "it has been answered")
        pid = await server.fetchval(f"{asking} 'idle'")
        assert await server.fetchval("select pg_terminate_backend($1, 5000)", pid)
    assert await asyncio.wait_for(asked, 20) == 7
    if door.name == "session":
        with pytest.raises(psycopg.OperationalError) as error:
            await asyncio.wait_for(connections[0].execute("select 1"), 20)
        assert [*words, error.value.sqlstate][0] == "57P01"
    else:
        assert [await asyncio.wait_for(_value(one, "select 1"), 20) for one in connections] == [1] * 2
    for one in connections:
        await one.close()


@pytest.mark.parametrize("size", [50_000, 2_000_000], ids=["assembled", "passed on in parts"])
async def test_an_operator_may_end_a_session_in_the_middle_of_its_message(
    server: PostgresServer, door: Door, size: int
) -> None:
    """More of the message comes while the engine is asked whether it was meant as a whole, which takes a while here."""
    talker = await Talker.connect(door)
    await talker.send(build_query(b"begin; select pg_backend_pid()"))
    await talker.read_until("Z")
    pid = next(int(parse_data_row(message)[0] or 0) for message in talker.messages if message[:1] == b"D")
    whole = build_query(b"set app.x = '" + b"x" * size + b"'")
    operator = await server.connect()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        await talker.send(whole[:1000])
        await operator.execute("select pg_terminate_backend($1)", pid)
        await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", "its end")
        await talker.send(whole[1000:])
        # Whatever the proxy does about these bytes, it does before it answers another client.
        reader, writer = await asyncio.open_connection(HOST, door.port)
        writer.write(build_ssl_request())
        assert await reader.readexactly(1) == b"N"
        writer.close()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    said = await talker.read_to_end()
    assert [message[:1] for message in said] == [b"E"]
    assert b"C57P01\0" in said[0]
    await operator.close()
    await talker.close()


async def test_a_session_that_held_a_temp_table_ends_with_its_server(server: PostgresServer, door: Door) -> None:
    """field-notes: Temp namespace"""
    connection = await _connect(door, autocommit=True)
    await connection.execute("create temp table held (i int)")
    await _crash(server)
    with pytest.raises(psycopg.OperationalError, match="cannot be restored"):
        await connection.execute("select 1")
    await connection.close()


async def test_a_listener_hears_again_without_asking_for_anything(server: PostgresServer, door: Door) -> None:
    heard: list[str] = []
    connection = await _connect(door, autocommit=True)
    connection.add_notify_handler(lambda note: heard.append(note.payload))
    await connection.execute("listen news")
    await _look(
        server, "select 1 from pg_stat_activity where query like '%pg_listening_channels%' and state = 'idle'", "asked"
    )
    await _crash(server)
    await _look(server, "select 1 from pg_stat_activity where query = 'LISTEN \"news\"'", "it listens again")
    await server.execute("select pg_notify('news', 'one')")
    assert await _value(connection, "select 1") == 1
    assert heard == ["one"]
    await connection.close()


async def test_idle_backends_of_a_pool_that_an_operator_ended_harm_nobody(server: PostgresServer, door: Door) -> None:
    if door.name == "session":
        return  # there a backend is its session's
    connections = [await _connect(door, autocommit=True) for _ in range(3)]
    for _ in range(20):
        assert [await _value(one, "select 1") for one in connections] == [1] * 3
        await server.fetchval(
            "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity"
            " where backend_type = 'client backend' and pid <> pg_backend_pid() and state = 'idle'"
        )
    assert [await _value(one, "select 1") for one in connections] == [1] * 3
    for one in connections:
        await one.close()
