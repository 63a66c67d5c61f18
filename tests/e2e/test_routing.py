"""Reads that go to a standby, and everything else that does not: on a primary with a standby, through rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import pytest_asyncio

from protocols.postgres.messages import build_query, parse_data_row
from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from proxy.tasks import spawn
from tests.e2e.doors import Door
from tests.e2e.talker import Talker
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

WHERE = "select in_standby()"
"""Tells which server answers; a rule says that the function only reads."""

Connection = psycopg.AsyncConnection[Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnout(postgres_pair: PostgresPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Turnout]:
    await _create(postgres_pair)
    started = Turnout(_setup(postgres_pair), tmp_path_factory.mktemp("routing"))
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


async def _create(pair: PostgresPair) -> None:
    direct = await psycopg.AsyncConnection.connect(_direct(pair), autocommit=True)
    await direct.execute(
        "create or replace function in_standby() returns boolean stable language sql as 'select pg_is_in_recovery()'"
    )
    await direct.execute(
        "create or replace function an_advisory_lock() returns void language sql as 'select pg_advisory_lock(77)'"
    )
    await direct.execute("create table if not exists routed (n int)")
    await direct.execute("create sequence if not exists routed_numbers")
    await direct.close()


def _setup(pair: PostgresPair) -> Setup:
    return Setup(
        protocol="postgresql",
        engines={server.name: server.address for server in pair.servers()},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        pool_mode="transaction",
        service={
            "route": [
                {"to": [pair.standby.name], "functions": ["in_standby", "an_advisory_lock"], "lag_ms_max": 60_000}
            ]
        },
    )


def _direct(pair: PostgresPair, user: str = "app") -> str:
    return Door(name="direct", port=pair.primary.port, user=user).dsn()


@pytest_asyncio.fixture(loop_scope="module")
async def client(turnout: Turnout) -> AsyncIterator[Connection]:
    """Whose reads go to the standby."""
    connection = await psycopg.AsyncConnection.connect(_dsn(turnout), autocommit=True)
    await _until_routed(connection)
    yield connection
    await connection.close()


def _dsn(turnout: Turnout) -> str:
    return Door(name="transaction", port=turnout.port).dsn()


async def _one(connection: Connection, text: str) -> Any:
    cursor = await connection.execute(text)
    row = await cursor.fetchone()
    assert row is not None
    return row[0]


async def _until_routed(connection: Connection) -> None:
    async def is_standby() -> bool:
        return bool(await _one(connection, WHERE))

    await until(is_standby, "a read goes to the standby")


async def test_reads_go_to_the_standby_and_writes_and_transactions_do_not(client: Connection) -> None:
    await client.execute("begin")
    assert await _one(client, WHERE) is False
    await client.execute("commit")
    await client.execute("delete from routed")
    await client.execute("insert into routed select generate_series(1, 3)")
    await _until_routed(client)
    assert await _one(client, "select count(*) from routed") == 3


@pytest.mark.parametrize(
    "text",
    [
        "select in_standby() from (select 1 as n for update) x",
        "with w as (insert into routed values (9) returning n) select in_standby() from w",
        "select in_standby(), nextval('routed_numbers')",
        "select in_standby(); select 1",
        "select in_standby(), pg_backend_pid()",
    ],
)
async def test_what_is_not_surely_a_read_stays(client: Connection, text: str) -> None:
    cursor = await client.execute(text)
    row = await cursor.fetchone()
    assert row is not None
    assert row[0] is False


async def test_each_session_reads_what_it_has_written(turnout: Turnout) -> None:
    """Over and over, so that the standby would be caught behind if it were asked too early."""
    async with await psycopg.AsyncConnection.connect(_dsn(turnout), autocommit=True) as connection:
        await connection.execute("delete from routed")
        number = 0

        async def is_read_elsewhere() -> bool:
            cursor = await connection.execute("select count(*), bool_or(in_standby()) from routed")
            row = await cursor.fetchone()
            assert row is not None
            assert row[0] == number
            return bool(row[1])

        for number in range(1, 200):
            await connection.execute("insert into routed values (%s)", [number])
            await is_read_elsewhere()
            if number % 20 == 0:
                await until(is_read_elsewhere, "the standby has it, and is asked")


async def test_what_the_client_sends_while_it_is_read_elsewhere_does_not_follow(
    client: Connection, turnout: Turnout, postgres_pair: PostgresPair
) -> None:
    """A write comes in while the standby works on the read before it."""
    standby = await psycopg.AsyncConnection.connect(
        Door(name="standby", port=postgres_pair.standby.port, user=SUPERUSER).dsn(), autocommit=True
    )
    talker = await Talker.connect(Door(name="transaction", port=turnout.port))
    try:

        async def is_at_work() -> bool:
            text = "select count(*) from pg_stat_activity where state = 'active' and query like '%series%400001%'"
            return int(await _one(standby, text)) > 1  # this very query is one of them

        await talker.send(build_query(b"select count(*) filter (where in_standby()) from generate_series(1, 400001)"))
        await until(is_at_work, "the standby works on it")
        await talker.send(build_query(b"insert into routed values (7) returning in_standby()"))
        while sum(message[:1] == b"Z" for message in talker.messages) < 2:
            await talker.read_until("Z")
        rows = [parse_data_row(message) for message in talker.messages if message[:1] == b"D"]
        assert rows == [[b"400001"], [b"f"]]
    finally:
        await talker.close()
        await standby.close()


async def test_prepared_statements_are_read_from_the_standby_too(turnout: Turnout) -> None:
    connection = await asyncpg.connect(_dsn(turnout))
    try:
        statement = await connection.prepare("select in_standby() where $1 = 1")

        async def is_standby() -> bool:
            return bool(await statement.fetchval(1))

        await until(is_standby, "a prepared read goes to the standby")
        assert await connection.fetchval("insert into routed values ($1) returning in_standby()", 1) is False
        await until(is_standby, "and does so again after a write")
    finally:
        await connection.close()


async def test_a_session_with_a_setting_reads_with_it_on_the_standby(client: Connection) -> None:
    await client.execute("set datestyle to 'German'")

    async def is_german() -> bool:
        cursor = await client.execute("select in_standby(), cast(make_date(2026, 11, 21) as text)")
        row = await cursor.fetchone()
        assert row is not None
        assert row[1] == "21.11.2026"
        return bool(row[0])

    await until(is_german, "the standby is asked with the session's settings")


async def test_a_standby_that_does_not_follow_is_passed_over(
    client: Connection, turnout: Turnout, postgres_pair: PostgresPair
) -> None:
    """It stops applying: what a session has written is not there, and is read where it is."""
    standby = await psycopg.AsyncConnection.connect(
        Door(name="standby", port=postgres_pair.standby.port, user=SUPERUSER).dsn(), autocommit=True
    )
    await standby.execute("select pg_wal_replay_pause()")
    try:
        await client.execute("delete from routed")
        await client.execute("insert into routed values (1)")
        for _ in range(20):
            assert await _one(client, "select count(*) from routed") == 1
            assert await _one(client, WHERE) is False
            await asyncio.sleep(0)
    finally:
        await standby.execute("select pg_wal_replay_resume()")
        await standby.close()
    await _until_routed(client)
    assert await _one(client, "select count(*) from routed") == 1


async def test_a_function_that_is_called_harmless_and_is_not_ends_its_session_and_no_other(
    client: Connection, turnout: Turnout
) -> None:
    """It locks. Nobody could say later on which server. libpq gives the error as a notice if it comes between queries."""
    said: list[str] = []
    async with await psycopg.AsyncConnection.connect(_dsn(turnout), autocommit=True) as liar:
        liar.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
        await _until_routed(liar)
        with pytest.raises(psycopg.OperationalError) as raised:
            for _ in range(3):
                await liar.execute("select an_advisory_lock(), in_standby()")
    assert "has left something there: advisory lock" in " ".join([*said, str(raised.value)])
    assert await _one(client, "select 1") == 1


async def test_a_session_with_a_temporary_table_reads_it_where_it_is(client: Connection) -> None:
    """Reads of the table, and all others of the session, until it is gone.

    field-notes: TEMPORARY TABLE + read split
    """
    await client.execute("create temporary table routed_temp as select generate_series(1, 3) as n")
    for _ in range(3):
        assert await _one(client, "select count(*) from routed_temp") == 3
        assert await _one(client, WHERE) is False
    await client.execute("drop table routed_temp")
    await _until_routed(client)


async def test_reads_go_to_the_standby_though_a_transaction_that_writes_is_idle(
    client: Connection, postgres_pair: PostgresPair
) -> None:
    """A standby gets WAL once it was flushed, and of such a transaction's nobody flushes the last."""
    async with await psycopg.AsyncConnection.connect(_direct(postgres_pair)) as writer:
        await writer.execute("insert into routed values (8)")
        await client.execute("select pg_backend_pid()")
        await _until_routed(client)
        await writer.rollback()


async def test_reads_go_to_the_standby_though_the_wal_ends_with_a_page(
    client: Connection, postgres_pair: PostgresPair
) -> None:
    """The position for the next record is behind the header of a page that nobody has written yet."""
    async with await psycopg.AsyncConnection.connect(_direct(postgres_pair, SUPERUSER), autocommit=True) as direct:
        await until(partial(_fill_page, direct), "a page was filled")
        await client.execute("select pg_backend_pid()")
        await _until_routed(client)


async def _fill_page(direct: Connection) -> bool:
    """Write WAL up to the end of a page. False: somebody else wrote some meanwhile."""
    left = "select 8192 - (pg_current_wal_insert_lsn() - '0/0') % 8192"
    overhead = 24 + 5 + 24 + 2  # of a record with a message by the name of `t`
    room = int(await _one(direct, left))
    if room < 2 * overhead + 256:
        room += 8192 - 24
    await direct.execute("select pg_logical_emit_message(false, 't', repeat('x', %s))", [room - overhead])
    return int(await _one(direct, left)) == 8192 - 24


async def test_many_clients_read_and_write_and_each_sees_its_own(turnout: Turnout) -> None:
    async def work(name: int) -> None:
        async with await psycopg.AsyncConnection.connect(_dsn(turnout), autocommit=True) as connection:
            written = 0

            async def is_read_elsewhere() -> bool:
                cursor = await connection.execute(
                    "select count(*), count(*) filter (where in_standby()) from routed where n = %s", [1000 + name]
                )
                row = await cursor.fetchone()
                assert row is not None
                assert row[0] == written
                return bool(row[1] > 0)

            for step in range(60):
                if step % 10 == 0:
                    await connection.execute("insert into routed values (%s)", [1000 + name])
                    written += 1
                await is_read_elsewhere()
            await until(is_read_elsewhere, "a read goes to the standby, which has what was written")

    await asyncio.gather(*(work(name) for name in range(8)))


async def test_a_switch_to_the_standby_that_is_read_from_loses_nothing(
    fresh_postgres_pair: PostgresPair, tmp_path: Path
) -> None:
    """Everybody works on; afterwards all reads are the new primary's, for the old one follows nobody."""
    pair = fresh_postgres_pair
    turnout = Turnout(_setup(pair), tmp_path)
    await _create(pair)
    await turnout.start()
    ending = asyncio.Event()
    # Afterwards nobody is read from any more.
    all_are_routed = asyncio.Barrier(5)

    async def work(name: int) -> int:
        written = 0
        async with await psycopg.AsyncConnection.connect(_dsn(turnout), autocommit=True) as connection:
            await _until_routed(connection)
            await all_are_routed.wait()
            while not ending.is_set():
                await connection.execute("insert into routed values (%s)", [name])
                written += 1
                for _ in range(5):
                    cursor = await connection.execute("select count(*) from routed where n = %s", [name])
                    assert await cursor.fetchone() == (written,)
            assert await _one(connection, WHERE) is False
        return written

    try:
        workers = [spawn(work(name), name=f"client {name}") for name in range(4)]
        async with asyncio.timeout(30):
            await all_are_routed.wait()
        ended = await turnout.switch(pair.standby.name)
        assert ended["phase"] == "completed", ended
        assert ended["figures"]["errors_visible"] == 0
        ending.set()
        written = await asyncio.gather(*workers)
        async with await psycopg.AsyncConnection.connect(_dsn(turnout), autocommit=True) as connection:
            assert await _one(connection, "select count(*) from routed") == sum(written)
    finally:
        ending.set()
        await turnout.stop()
