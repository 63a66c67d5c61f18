"""The same as test_lost_backends.py, for MariaDB: a server that goes away takes no client with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import pymysql
import pytest
import pytest_asyncio
from pymysql.constants import COMMAND

from proxy.embedded import MariaDBServer, Setup, Turnout, Workspace
from tests.e2e.doors import Door
from tests.e2e.mysql_rules import ask, connect
from tests.kit.processes import suspended
from tests.kit.waiting import until

pytestmark = [pytest.mark.mariadb, pytest.mark.slow]

LOST: Final = 1213
"""The transaction was rolled back, as by a deadlock."""
UNKNOWN: Final = 2013


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[MariaDBServer]:
    """One that these tests restart."""
    with Workspace("turnout-test-") as workspace:
        server = await MariaDBServer.create(workspace, durable=False)
        await server.start()
        try:
            yield server
        finally:
            await server.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["session", "transaction"])
async def turnout(
    request: pytest.FixtureRequest, server: MariaDBServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Turnout]:
    setup = Setup(
        protocol="mysql",
        engines={"blue": server.address},
        admin_user="turnout",
        admin_password="secret",
        users={"app": "secret"},
        auth_method="mysql_native_password",
        pool_mode=request.param,
        service={"server_login_retry_s": 0.2},
    )
    one = Turnout(setup, tmp_path_factory.mktemp(f"lost-mysql-{request.param}"))
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


@pytest.fixture
def door(turnout: Turnout) -> Door:
    return Door(name=turnout.setup.pool_mode, port=turnout.port)


async def _value(connection: Any, query: str) -> Any:
    rows = await asyncio.to_thread(ask, connection, query)
    return rows[0][0] if rows else None


async def _crash(server: MariaDBServer) -> None:
    """All connections end without a word."""
    await server.kill()
    await server.start()


async def _restart(server: MariaDBServer) -> None:
    """Those that wait for a command are told 1927, or nothing."""
    await server.stop()
    await server.start()


async def _settled(connection: Any, turnout: Turnout) -> None:
    """The session's backend has been asked what it holds."""
    await asyncio.to_thread(ask, connection, "set @mine = 7, session group_concat_max_len = 4321")

    async def is_asked() -> bool:
        sessions = await turnout.get("/v1/sessions")
        return any(one["carried"].get("user variables") for one in sessions)

    await until(is_asked, "the session's backend was asked what it holds")


async def _are_asked(turnout: Turnout) -> None:
    """All sessions that have a backend were asked what they hold, after they set a user variable."""

    async def are() -> bool:
        sessions = await turnout.get("/v1/sessions")
        return all(one["carried"].get("user variables") or not one["engine"] for one in sessions)

    await until(are, "their backends were asked what they hold")


@pytest.mark.parametrize("leave", [_crash, _restart], ids=["crash", "restart"])
async def test_an_idle_session_does_not_notice_that_its_server_was_restarted(
    server: MariaDBServer, turnout: Turnout, door: Door, leave: Any
) -> None:
    """field-notes: ERR 1290/1792/1836, 1053, 2013"""
    connection = await asyncio.to_thread(connect, door)
    await _settled(connection, turnout)
    await leave(server)
    assert await _value(connection, "select @mine") == 7
    assert await _value(connection, "select @@group_concat_max_len") == 4321
    connection.close()


async def test_an_open_transaction_gets_one_error_and_is_over(
    server: MariaDBServer, turnout: Turnout, door: Door
) -> None:
    await server.execute("create or replace table app.seen (i int primary key)")
    connection = await asyncio.to_thread(connect, door)
    await _settled(connection, turnout)
    await asyncio.to_thread(ask, connection, "begin")
    await asyncio.to_thread(ask, connection, "insert into seen values (1)")
    await _crash(server)
    with pytest.raises(pymysql.err.OperationalError) as error:
        await _value(connection, "insert into seen values (2)")
    assert error.value.args[0] == LOST
    assert await _value(connection, "select count(*) from seen") == 0
    connection.close()


async def _ask_too_late(server: MariaDBServer, turnout: Turnout, connections: list[Any], questions: list[str]) -> None:
    """A question on each connection that the worker finds only when the server has ended, and its answer. Raises what
    PyMySQL makes of an error."""
    with suspended(turnout.processes()[1]):
        for one, question in zip(connections, questions, strict=True):
            one._execute_command(COMMAND.COM_QUERY, question)
        await server.kill()
    await server.start()
    for one in connections:
        await asyncio.to_thread(one._read_query_result)


async def test_a_statement_that_came_too_late_for_its_server_is_run_once_by_the_next(
    server: MariaDBServer, turnout: Turnout, door: Door
) -> None:
    """As in test_lost_backends.py."""
    await server.execute("create or replace table app.seen (i int)")
    connections = await asyncio.gather(*[asyncio.to_thread(connect, door) for _ in range(80)])
    await asyncio.gather(*[asyncio.to_thread(ask, one, "do sleep(0.1)") for one in connections])
    if door.name == "session":
        await asyncio.gather(*[asyncio.to_thread(ask, one, "set @mine = 7") for one in connections])
    await _are_asked(turnout)
    questions = [f"insert into seen values ({i})" for i in range(len(connections))]
    await _ask_too_late(server, turnout, connections, questions)
    rows = await server.fetchval("select group_concat(i order by i) from app.seen")
    assert rows == ",".join(map(str, range(80)))
    for one in connections:
        one.close()


async def test_a_rollback_that_came_too_late_for_its_server_is_done(
    server: MariaDBServer, turnout: Turnout, door: Door
) -> None:
    """As in test_lost_backends.py."""
    await server.execute("create or replace table app.seen (i int)")
    connections = await asyncio.gather(*[asyncio.to_thread(connect, door) for _ in range(80)])
    await asyncio.gather(*[asyncio.to_thread(ask, one, "set @mine = 7") for one in connections])
    await _are_asked(turnout)
    for text in ("begin", "insert into seen values (1)"):
        await asyncio.gather(*[asyncio.to_thread(ask, one, text) for one in connections])
    await _ask_too_late(server, turnout, connections, ["ROLLBACK"] * len(connections))
    assert await _value(connections[0], "select count(*) from seen") == 0
    for one in connections:
        one.close()


async def test_idle_backends_of_a_pool_that_an_operator_killed_harm_nobody(server: MariaDBServer, door: Door) -> None:
    if door.name == "session":
        return  # there a backend is its session's
    connections = [await asyncio.to_thread(connect, door) for _ in range(3)]

    async def are_gone() -> bool:
        return not await server.fetchval("select count(*) from information_schema.processlist where user = 'app'")

    for _ in range(20):
        assert [await _value(one, "select 1") for one in connections] == [1] * 3
        await server.execute("kill user app")
        await until(are_gone, "they are gone")
    assert [await _value(one, "select 1") for one in connections] == [1] * 3
    for one in connections:
        one.close()


async def _runs(server: MariaDBServer, what: str) -> None:
    async def holds() -> bool:
        query = f"select count(*) from information_schema.processlist where info like '{what}%'"
        return bool(await server.fetchval(query))

    await until(holds, f"{what} runs")


@pytest.mark.parametrize("is_open", [False, True], ids=["autocommit", "transaction"])
async def test_a_statement_in_flight_is_not_sent_again_and_its_client_is_told(
    server: MariaDBServer, turnout: Turnout, door: Door, is_open: bool
) -> None:
    await server.execute("create or replace table app.seen (i int)")
    connection = await asyncio.to_thread(connect, door)
    await _settled(connection, turnout)
    if is_open:
        await asyncio.to_thread(ask, connection, "begin")
        await _value(connection, "select 1")
    working = asyncio.create_task(_value(connection, "insert into seen select sleep(64)"))
    await _runs(server, "insert into seen")
    await _crash(server)
    with pytest.raises(pymysql.err.OperationalError) as error:
        await asyncio.wait_for(working, 20)
    assert error.value.args[0] == (LOST if is_open else UNKNOWN)
    assert await _value(connection, "select count(*) from seen") == 0
    connection.close()


@pytest.mark.parametrize("is_idle", [True, False], ids=["idle", "busy"])
async def test_a_session_that_an_operator_kills_is_not_raised_again(
    server: MariaDBServer, turnout: Turnout, door: Door, is_idle: bool
) -> None:
    """field-notes: KILL [QUERY] id, CONNECTION_ID()"""
    connection = await asyncio.to_thread(connect, door)
    await _settled(connection, turnout)
    number = await _value(connection, "select connection_id() + 0")  # the server's own
    if is_idle:
        await server.execute(f"kill {number}")
        with pytest.raises(pymysql.err.MySQLError):
            await _value(connection, "select 1")
    else:
        working = asyncio.create_task(_value(connection, "select sleep(64)"))
        await _runs(server, "select sleep(64)")
        await server.execute(f"kill {number}")
        with pytest.raises(pymysql.err.MySQLError):
            await asyncio.wait_for(working, 20)
        with pytest.raises(pymysql.err.MySQLError):
            await _value(connection, "select 2")


async def test_a_session_that_held_a_temporary_table_ends_with_its_server(
    server: MariaDBServer, turnout: Turnout, door: Door
) -> None:
    """field-notes: TEMPORARY TABLE + read split"""
    connection = await asyncio.to_thread(connect, door)
    await asyncio.to_thread(ask, connection, "create temporary table held (i int)")
    await _crash(server)
    with pytest.raises(pymysql.err.OperationalError, match="cannot be restored"):
        await _value(connection, "select 1")


async def test_a_session_that_the_server_timed_out_ends(server: MariaDBServer, turnout: Turnout, door: Door) -> None:
    connection = await asyncio.to_thread(connect, door)
    count = "select count(*) from information_schema.processlist where user = 'app'"
    await until(lambda: server.fetchval(count), "it is there")
    await asyncio.to_thread(ask, connection, "set session wait_timeout = 1")

    async def is_gone() -> bool:
        return int(await server.fetchval(count)) == 0

    async def has_no_session() -> bool:
        return not await turnout.get("/v1/sessions")

    await until(is_gone, "the server has ended it")
    await until(has_no_session, "so has Turnout, in transaction mode by its own clock")
    with pytest.raises(pymysql.err.OperationalError) as error:
        await _value(connection, "select 1")
    assert error.value.args[0] in (2006, 2013)
