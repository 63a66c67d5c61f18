"""What a session in transaction mode sets goes with it from backend to backend; what cannot ties it to one, and is shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import pytest
import pytest_asyncio

from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.e2e.doors import HOST, Door
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnout(postgres_pair: PostgresPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Turnout]:
    """Two backends for everybody."""
    setup = Setup(
        protocol="postgresql",
        engines={"blue": postgres_pair.primary.address},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        pool_mode="transaction",
        databases=["app"],
        service={"pool_size": 2, "ignore_startup_parameters": ["geqo_seed"]},
    )
    one = Turnout(setup, tmp_path_factory.mktemp("transaction"))
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


@pytest.fixture
def door(turnout: Turnout) -> Door:
    return Door(name="transaction", port=turnout.port)


async def _connect(door: Door, **options: Any) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(door.dsn(), connect_timeout=20, autocommit=True, **options)


async def _show(connection: psycopg.AsyncConnection[Any], name: str) -> str:
    row = await (await connection.execute(f"show {name}".encode())).fetchone()
    assert row is not None
    return str(row[0])


async def test_sessions_with_other_settings_share_backends_and_keep_their_settings(
    turnout: Turnout, door: Door
) -> None:
    """field-notes: SET search_path poison"""
    connections = [
        await _connect(door, application_name=f"app {number}", options=f"-c work_mem={number + 1}MB -c app.n={number}")
        for number in range(6)
    ]
    await connections[5].execute("set search_path = ''")
    for _ in range(3):
        for number, connection in enumerate(connections):
            assert await _show(connection, "application_name") == f"app {number}"
            assert await _show(connection, "work_mem") == f"{number + 1}MB"
            assert await _show(connection, "app.n") == str(number)
            assert await _show(connection, "search_path") == ('""' if number == 5 else '"$user", public')

    async def one(number: int) -> None:
        for _ in range(10):
            assert await _show(connections[number], "work_mem") == f"{number + 1}MB"

    await asyncio.gather(*(one(number) for number in range(6)))
    sessions = await turnout.get("/v1/sessions")
    assert [one["pins"] for one in sessions] == [[]] * 6
    for connection in connections:
        await connection.close()


async def test_a_transaction_begins_when_and_as_the_client_begins_it(door: Door) -> None:
    """field-notes: Deferred BEGIN"""
    async with await _connect(door) as connection:
        await connection.execute("begin isolation level serializable read only")
        await connection.execute("savepoint first")
        assert await _show(connection, "transaction_isolation") == "serializable"
        assert await _show(connection, "transaction_read_only") == "on"
        await connection.execute("commit")
        assert await _show(connection, "transaction_isolation") == "read committed"


async def test_reset_gives_back_what_the_client_asked_for_at_its_login(door: Door) -> None:
    async with await _connect(door, options="-c work_mem=5MB") as connection:
        await connection.execute("set work_mem = '9MB'")
        assert await _show(connection, "work_mem") == "9MB"
        await connection.execute("discard all")
        assert await _show(connection, "work_mem") == "5MB"
    async with await _connect(door) as connection:
        assert await _show(connection, "work_mem") == "4MB"


async def test_what_cannot_be_applied_is_refused_by_name(door: Door) -> None:
    """field-notes: Startup parameters and `options`"""
    for options, name in (("-c nonsense=1", "nonsense"), ("-B 10", "-B"), ("-c log_connections=on", "log_connections")):
        with pytest.raises(psycopg.OperationalError, match=name):
            await _connect(door, options=options)
    async with await _connect(door, options="-c geqo_seed=0.5 -c work_mem=6MB") as connection:
        assert await _show(connection, "geqo_seed") == "0"
        assert await _show(connection, "work_mem") == "6MB"


async def test_what_ties_a_session_to_its_backend_is_counted_and_shown(turnout: Turnout, door: Door) -> None:
    """field-notes: SQL-level PREPARE duplicates"""
    connection = await _connect(door)
    await connection.execute("listen news")

    async def pins() -> list[str]:
        sessions = await turnout.get("/v1/sessions")
        return list(sessions[-1]["pins"])

    await until(lambda: _is(pins(), ["listen"]), "listen is shown")
    await connection.execute("unlisten *")
    await connection.execute("prepare one as select 1")
    await until(lambda: _is(pins(), ["prepared statement in SQL"]), "prepare is shown")
    with pytest.raises(psycopg.errors.DuplicatePreparedStatement):
        await connection.execute("prepare one as select 2")
    await connection.execute("deallocate all")
    await until(lambda: _is(pins(), []), "the session is free again")
    await connection.close()


async def _is(pins: Any, expected: list[str]) -> bool:
    return bool(await pins == expected)


async def test_a_client_that_prepares_again_after_ddl_gets_the_new_columns(door: Door) -> None:
    """Asyncpg is told once, and then gets a statement that fits.

    field-notes: "cached plan must not change result type"
    """
    connections = [
        await asyncpg.connect(
            host=HOST, port=door.port, user=door.user, password=door.password, database=door.database, ssl=False
        )
        for _ in range(3)
    ]
    try:
        await connections[0].execute("drop table if exists changing; create table changing (a int)")
        for connection in connections:
            assert list(await connection.fetch("select * from changing")) == []
        await connections[0].execute("alter table changing add b int; insert into changing values (1, 2)")
        for connection in connections:
            # asyncpg prepares anew when it is told that its statement is out of date.
            assert tuple((await connection.fetch("select * from changing"))[0]) == (1, 2)
    finally:
        for connection in connections:
            await connection.close()


async def test_who_prepares_after_ddl_is_told_the_types_of_the_new_table(door: Door) -> None:
    """The backends have the text already, as it was understood for the former table."""
    kept, other = [
        await asyncpg.connect(
            host=HOST, port=door.port, user=door.user, password=door.password, database=door.database, ssl=False
        )
        for _ in range(2)
    ]
    try:
        for kind in ("int4", "text", "date"):
            await kept.execute(f"drop table if exists remade; create table remade (v {kind})")
            for connection in (kept, other):
                async with connection.transaction():
                    statement = await connection.prepare("insert into remade values ($1)")
                    assert [one.name for one in statement.get_parameters()] == [kind]
                    statement = await connection.prepare("select v from remade")
                    assert [one.type.name for one in statement.get_attributes()] == [kind]
    finally:
        await kept.close()
        await other.close()


async def test_a_notification_names_its_sender_as_a_tied_client_knows_it(door: Door) -> None:
    """field-notes: Process id in BackendKeyData"""
    connection = await _connect(door)
    heard: list[psycopg.Notify] = []
    connection.add_notify_handler(heard.append)
    await connection.execute("listen mine")
    await connection.execute("notify mine, 'mine'")
    assert [one.pid for one in heard] == [connection.info.backend_pid]
    await connection.close()
    other = await _connect(door)
    other.add_notify_handler(heard.append)
    await other.execute("listen mine")
    await other.execute("notify mine, 'mine'")
    assert heard[1].pid == other.info.backend_pid
    await other.close()
