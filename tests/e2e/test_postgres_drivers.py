"""psycopg and asyncpg through Turnout: prepared statements, pipelines, COPY, cursors, notifications, cancel."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import asyncpg
import psycopg
import pytest

from proxy.embedded import PostgresPair
from tests.e2e.doors import HOST, Door
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]


async def _asyncpg(door: Door, **options: Any) -> Any:
    return await asyncpg.connect(
        host=HOST,
        port=door.port,
        user=door.user,
        password=door.password,
        database=door.database,
        ssl=False,
        timeout=20,
        **options,
    )


# --- asyncpg ------------------------------------------------------------------------------------------------------


async def test_asyncpg_gets_every_type_back_as_it_was_sent(postgres_door: Door) -> None:
    connection = await _asyncpg(postgres_door)
    try:
        now = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
        values = [1, 2.5, "tœxt", b"\x00\xff", True, now, None, [1, None, 3], "a"]
        row = await connection.fetchrow(
            "select $1::int, $2::float8, $3::text, $4::bytea, $5::bool, $6::timestamptz, $7::int, $8::int[], $9::text",
            *values,
        )
        assert list(row) == values
    finally:
        await connection.close()


async def test_asyncpg_keeps_its_prepared_statements(postgres_door: Door) -> None:
    connection = await _asyncpg(postgres_door)
    try:
        statements = [await connection.prepare(f"select $1::int + {number}") for number in range(30)]
        for turn in range(3):
            for number, statement in enumerate(statements):
                assert await statement.fetchval(turn) == turn + number
        # More texts than asyncpg's cache has places: it closes statements and prepares others.
        for number in range(150):
            assert await connection.fetchval(f"select {number} + $1::int", 1) == number + 1
    finally:
        await connection.close()


async def test_an_error_in_a_prepared_statement_leaves_the_session_usable(postgres_door: Door) -> None:
    connection = await _asyncpg(postgres_door)
    try:
        for _ in range(3):
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetchval("select 1 / $1::int", 0)
            with pytest.raises(asyncpg.UndefinedTableError):
                await connection.fetchval("select * from no_such_table where i = $1", 0)
            assert await connection.fetchval("select 1 / $1::int", 1) == 1
    finally:
        await connection.close()


async def test_a_failed_transaction_answers_25p02_until_rollback(postgres_door: Door) -> None:
    connection = await _asyncpg(postgres_door)
    try:
        transaction = connection.transaction()
        await transaction.start()
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetchval("select 1 / 0")
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await connection.fetchval("select 1")
        await transaction.rollback()
        assert await connection.fetchval("select 1") == 1
    finally:
        await connection.close()


async def test_asyncpg_copies_in_and_out(postgres_door: Door) -> None:
    connection = await _asyncpg(postgres_door)
    try:
        await connection.execute("drop table if exists copied; create table copied (i int, t text)")
        records = [(number, "x" * (number % 500)) for number in range(5000)]
        assert await connection.copy_records_to_table("copied", records=records) == "COPY 5000"
        chunks: list[bytes] = []

        async def keep(chunk: bytes) -> None:
            chunks.append(bytes(chunk))

        await connection.copy_from_query("select * from copied order by i", output=keep)
        assert b"".join(chunks).count(b"\n") == 5000
        # A COPY the server refuses half way.
        with pytest.raises(asyncpg.PostgresError):
            await connection.copy_records_to_table("copied", records=[("no", 1)] * 3, columns=["t", "i", "none"])
        assert await connection.fetchval("select count(*) from copied") == 5000
        await connection.execute("drop table copied")
    finally:
        await connection.close()


async def test_asyncpg_pipelines_executemany(postgres_door: Door) -> None:
    connection = await _asyncpg(postgres_door)
    try:
        await connection.execute("drop table if exists many; create table many (i int primary key)")
        await connection.executemany("insert into many values ($1)", [(number,) for number in range(3000)])
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.executemany("insert into many values ($1)", [(n,) for n in range(5000, 4999 - 3000, -1)])
        assert await connection.fetchval("select count(*) from many") == 3000
        await connection.execute("drop table many")
    finally:
        await connection.close()


async def test_asyncpg_reads_a_cursor_in_parts(postgres_door: Door) -> None:
    connection = await _asyncpg(postgres_door)
    try:
        async with connection.transaction():
            seen = [row[0] async for row in connection.cursor("select generate_series(1, 1000)", prefetch=37)]
        assert seen == list(range(1, 1001))
    finally:
        await connection.close()


async def test_a_listener_hears_a_notification(postgres_door: Door) -> None:
    listener = await _asyncpg(postgres_door)
    speaker = await _asyncpg(postgres_door)
    heard: list[str] = []
    try:
        await listener.add_listener("asyncpg_news", lambda *args: heard.append(args[-1]))
        await speaker.execute("select pg_notify('asyncpg_news', 'one')")
        await until(lambda: heard == ["one"], "the notification came")
        await speaker.execute("notify asyncpg_news, 'two'")
        await until(lambda: heard == ["one", "two"], "the second came, though the listener asked nothing")
        await listener.remove_listener("asyncpg_news", lambda *_: None)
    finally:
        await listener.close()
        await speaker.close()


async def test_a_timeout_cancels_the_query_at_the_server(postgres_pair: PostgresPair, postgres_door: Door) -> None:
    connection = await _asyncpg(postgres_door)
    try:
        with pytest.raises(TimeoutError):
            await connection.fetchval("select pg_sleep(62)", timeout=0.3)

        async def is_gone() -> bool:
            query = "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(62)'"
            return not await postgres_pair.primary.fetchval(query)

        await until(is_gone, "the server stopped the query")
        assert await connection.fetchval("select 1") == 1
    finally:
        await connection.close()


async def test_the_process_id_a_client_is_told_is_the_one_the_server_answers(postgres_door: Door) -> None:
    if postgres_door.name == "transaction":
        return  # each transaction may have another server process there
    connection = await _asyncpg(postgres_door)
    try:
        assert connection.get_server_pid() == await connection.fetchval("select pg_backend_pid()")
    finally:
        await connection.close()


async def test_startup_parameters_reach_the_server(postgres_door: Door) -> None:
    settings = {"application_name": "startup", "search_path": "pg_catalog", "statement_timeout": "12345"}
    connection = await _asyncpg(postgres_door, server_settings=settings)
    try:
        for name, value in {**settings, "statement_timeout": "12345ms"}.items():
            assert await connection.fetchval(f"show {name}") == value
    finally:
        await connection.close()


async def test_what_one_session_sets_no_other_session_sees(postgres_door: Door) -> None:
    first = await _asyncpg(postgres_door)
    second = await _asyncpg(postgres_door)
    try:
        before = await second.fetchval("show work_mem")
        await first.execute("set work_mem = '77MB'")
        for _ in range(5):
            assert await second.fetchval("show work_mem") == before
            assert await first.fetchval("show work_mem") == "77MB"
    finally:
        await first.close()
        await second.close()
    third = await _asyncpg(postgres_door)
    try:
        assert await third.fetchval("show work_mem") == before
    finally:
        await third.close()


async def test_a_large_value_passes_in_both_directions(postgres_door: Door) -> None:
    connection = await _asyncpg(postgres_door)
    value = bytes(range(256)) * 32 * 1024  # 8 MiB
    try:
        assert await connection.fetchval("select $1::bytea", value) == value
        assert len(await connection.fetchval("select repeat('x', 20000000)")) == 20_000_000
    finally:
        await connection.close()


# --- psycopg ------------------------------------------------------------------------------------------------------


async def _psycopg(door: Door, **options: Any) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(door.dsn(), connect_timeout=20, **options)


async def test_psycopg_pipelines_and_an_error_ends_only_its_part(postgres_door: Door) -> None:
    async with await _psycopg(postgres_door, autocommit=True, prepare_threshold=0) as connection:
        async with connection.pipeline() as pipeline:
            cursors = [await connection.execute("select %s::int", (number,)) for number in range(100)]
            await pipeline.sync()
            assert [(await cursor.fetchone()) for cursor in cursors] == [(number,) for number in range(100)]
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with connection.pipeline():
                await connection.execute("select 1")
                await connection.execute("select 1/0")
                await connection.execute("select 2")
        async with connection.pipeline():
            cursor = await connection.execute("select 3")
        assert await cursor.fetchone() == (3,)


async def test_psycopg_prepares_and_deallocates(postgres_door: Door) -> None:
    async with await _psycopg(postgres_door, autocommit=True, prepare_threshold=0) as connection:
        connection.prepared_max = 5
        for turn in range(3):
            for number in range(20):
                cursor = await connection.execute(f"select {number} + %s::int".encode(), (turn,))
                assert await cursor.fetchone() == (number + turn,)
        await connection.execute("deallocate all")
        cursor = await connection.execute("select 1 + %s::int", (1,), prepare=True)
        assert await cursor.fetchone() == (2,)


async def test_a_statement_prepared_in_sql_stays_with_its_session(postgres_door: Door) -> None:
    async with await _psycopg(postgres_door, autocommit=True) as connection:
        await connection.execute("prepare answer as select $1::int * 2")
        for number in range(5):
            cursor = await connection.execute(f"execute answer ({number})".encode())
            assert await cursor.fetchone() == (number * 2,)
        await connection.execute("deallocate answer")
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            await connection.execute("execute answer (1)")


async def test_psycopg_copies_in_both_directions(postgres_door: Door) -> None:
    async with await _psycopg(postgres_door, autocommit=True) as connection:
        await connection.execute("drop table if exists psycopg_copied")
        await connection.execute("create table psycopg_copied (i int, t text)")
        async with connection.cursor() as cursor:
            async with cursor.copy("copy psycopg_copied from stdin") as copy:
                for number in range(2000):
                    await copy.write_row((number, "y" * (number % 300)))
            async with cursor.copy("copy psycopg_copied to stdout") as copy:
                assert len([row async for row in copy.rows()]) == 2000
            with pytest.raises(ZeroDivisionError):
                async with cursor.copy("copy psycopg_copied from stdin") as copy:
                    await copy.write_row((1, "half"))
                    raise ZeroDivisionError
        cursor = await connection.execute("select count(*) from psycopg_copied")
        assert await cursor.fetchone() == (2000,)
        await connection.execute("drop table psycopg_copied")


async def test_psycopg_cancels(postgres_pair: PostgresPair, postgres_door: Door) -> None:
    async with await _psycopg(postgres_door, autocommit=True) as connection:
        sleeping = asyncio.create_task(connection.execute("select pg_sleep(63)"))

        async def runs() -> bool:
            query = "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(63)'"
            return bool(await postgres_pair.primary.fetchval(query))

        await until(runs, "the query runs at the server")
        await connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await asyncio.wait_for(sleeping, 10)
        cursor = await connection.execute("select 1")
        assert await cursor.fetchone() == (1,)


async def test_psycopg_reads_a_server_side_cursor(postgres_door: Door) -> None:
    async with await _psycopg(postgres_door) as connection, connection.cursor(name="named") as cursor:
        await cursor.execute("select generate_series(1, 500)")
        assert len(await cursor.fetchall()) == 500


async def test_a_notice_reaches_its_client(postgres_door: Door) -> None:
    notices: list[str | None] = []
    async with await _psycopg(postgres_door, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        await connection.execute("do $$ begin raise notice 'seen'; end $$")
    assert notices == ["seen"]


async def test_a_client_is_told_when_an_operator_ends_its_session_at_the_server(
    postgres_pair: PostgresPair, postgres_door: Door
) -> None:
    connection = await _psycopg(postgres_door)
    try:
        # In a transaction, so that the backend is this session's in both pool modes.
        pid = (await (await connection.execute("select pg_backend_pid()")).fetchone() or (0,))[0]
        assert await postgres_pair.primary.fetchval("select pg_terminate_backend($1, 5000)", pid)
        with pytest.raises(psycopg.errors.AdminShutdown):
            await connection.execute("select 1")
        assert connection.broken
    finally:
        await connection.close()


async def test_two_phase_commit_passes(postgres_door: Door) -> None:
    async with await _psycopg(postgres_door) as connection:
        xid = connection.xid(1, f"turnout-{postgres_door.name}", "branch")
        await connection.tpc_begin(xid)
        await connection.execute("select 1")
        await connection.tpc_prepare()
        await connection.tpc_rollback()


async def test_many_clients_at_once_each_get_their_own_answers(postgres_door: Door) -> None:
    async def one(number: int) -> None:
        async with await _psycopg(postgres_door, autocommit=True, prepare_threshold=0) as connection:
            for turn in range(20):
                cursor = await connection.execute("select %s::int, %s::int", (number, turn))
                assert await cursor.fetchone() == (number, turn)

    await asyncio.gather(*(one(number) for number in range(40)))
