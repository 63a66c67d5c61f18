"""What a session holds is there after a switch: on real servers, with real drivers, in both pool modes."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import psycopg
import pymysql
import pytest

from proxy.embedded import MariaDBPair, MySQLPair, PostgresPair, Setup, Turnout
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until

PoolMode = Literal["session", "transaction"]
both_pool_modes = pytest.mark.parametrize("pool_mode", ["session", "transaction"])


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


class Postgres:
    """A pair behind a Turnout, and switches back and forth."""

    def __init__(self, pair: PostgresPair, turnout: Turnout) -> None:
        self.pair = pair
        self.turnout = turnout

    async def connect(self, **options: Any) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(
            f"host=127.0.0.1 port={self.turnout.setup.client_port} dbname=app user=app password=secret",
            autocommit=True,
            **options,
        )

    async def switch(self) -> dict[str, Any]:
        ended = await self.turnout.switch(self.pair.standby.name)
        assert ended["phase"] == "completed", ended
        await self.pair.swap()
        return ended


@pytest.fixture
async def postgres(pool_mode: PoolMode, postgres_pair: PostgresPair, start_turnout: StartTurnout) -> Postgres:
    engines = {server.name: server.address for server in postgres_pair.servers()}
    setup = Setup(
        protocol="postgresql",
        engines=engines,
        admin_user="postgres",
        admin_password="secret",
        users={"app": "secret"},
        pool_mode=pool_mode,
        workers=2,
    )
    return Postgres(postgres_pair, await start_turnout(setup))


@pytest.fixture
async def postgres_pair_session(postgres_pair: PostgresPair, start_turnout: StartTurnout) -> Postgres:
    """In session mode only."""
    setup = Setup(
        protocol="postgresql",
        engines={server.name: server.address for server in postgres_pair.servers()},
        admin_user="postgres",
        admin_password="secret",
        users={"app": "secret"},
    )
    return Postgres(postgres_pair, await start_turnout(setup))


async def one(connection: psycopg.AsyncConnection[Any], query: str) -> Any:
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return row[0]


@both_pool_modes
async def test_settings_of_every_kind_are_carried(postgres: Postgres) -> None:
    connection = await postgres.connect(options="-c statement_timeout=77s")
    await connection.execute("set search_path to pg_catalog, public")
    await connection.execute("set timezone to 'Asia/Tokyo'")
    await connection.execute("select set_config('app.tenant', 'O''Brien; \"x\"', false)")
    await connection.execute("set application_name to 'carried'")
    await connection.execute("set session characteristics as transaction isolation level serializable")
    await connection.execute("begin; set local work_mem = '7MB'; set lock_timeout = '9s'; commit")
    await connection.execute("begin; set enable_seqscan = off; rollback")
    await postgres.switch()
    assert await one(connection, "show search_path") == "pg_catalog, public"
    assert await one(connection, "show timezone") == "Asia/Tokyo"
    assert await one(connection, "show app.tenant") == 'O\'Brien; "x"'
    assert await one(connection, "show application_name") == "carried"
    assert await one(connection, "show transaction_isolation") == "serializable"
    assert await one(connection, "show statement_timeout") == "77s"
    assert await one(connection, "show lock_timeout") == "9s"
    assert await one(connection, "show work_mem") == "4MB", "SET LOCAL ended with its transaction"
    assert await one(connection, "show enable_seqscan") == "on", "a SET that was rolled back is none"
    assert connection.info.parameter_status("TimeZone") == "Asia/Tokyo"
    await connection.close()


@both_pool_modes
async def test_a_setting_that_was_reset_stays_reset(postgres: Postgres) -> None:
    connection = await postgres.connect()
    await connection.execute("set work_mem = '9MB'")
    await postgres.switch()
    assert await one(connection, "show work_mem") == "9MB"
    await connection.execute("reset all")
    await postgres.switch()
    assert await one(connection, "show work_mem") == "4MB"
    await connection.close()


@both_pool_modes
async def test_prepared_statements_of_both_kinds_are_carried(postgres: Postgres) -> None:
    connection = await postgres.connect()
    connection.prepare_threshold = 0
    await connection.execute("prepare by_name (int) as select $1 + 1")
    assert (await (await connection.execute("select %s::int * 2", [21])).fetchone()) == (42,)
    await postgres.switch()
    assert await one(connection, "execute by_name (41)") == 42
    assert (await (await connection.execute("select %s::int * 2", [21])).fetchone()) == (42,)
    await postgres.switch()
    assert await one(connection, "execute by_name (1)") == 2
    await connection.execute("deallocate by_name")
    with pytest.raises(psycopg.errors.InvalidSqlStatementName):
        await connection.execute("execute by_name (1)")
    await connection.close()


@both_pool_modes
async def test_a_listener_hears_what_is_notified_after_the_switch(postgres: Postgres) -> None:
    """field-notes: NotificationResponse 'A'"""
    listener = await postgres.connect()
    await listener.execute('listen "Mixed Case"')
    await postgres.switch()
    sender = await postgres.connect()
    await sender.execute("select pg_notify('Mixed Case', 'moved')")
    async with asyncio.timeout(10):
        async for notice in listener.notifies():
            assert (notice.channel, notice.payload) == ("Mixed Case", "moved")
            break
    await sender.close()
    await listener.close()


@both_pool_modes
async def test_an_open_transaction_is_never_cut(postgres: Postgres) -> None:
    connection = await postgres.connect()
    await connection.execute("create table if not exists kept (id int)")
    await connection.execute("begin")
    await connection.execute("insert into kept values (1)")
    started = asyncio.create_task(postgres.switch())
    await until(lambda: _is_waiting_for_drain(postgres.turnout), "the switch waits for the transaction")
    assert not started.done()
    await connection.execute("insert into kept values (2)")
    await connection.execute("commit")
    ended = await started
    assert ended["figures"]["errors_visible"] == 0
    assert await one(connection, "select count(*) from kept") == 2
    await connection.execute("drop table kept")
    await connection.close()


async def _is_waiting_for_drain(turnout: Turnout) -> bool:
    newest = (await turnout.get("/v1/switches"))[:1]
    return bool(newest) and newest[0]["phase"] == "draining"


@both_pool_modes
async def test_a_client_that_comes_during_the_switch_waits_and_is_served(postgres: Postgres) -> None:
    holder = await postgres.connect()
    await holder.execute("begin")
    await holder.execute("select 1")
    started = asyncio.create_task(postgres.switch())
    await until(lambda: _is_waiting_for_drain(postgres.turnout), "the switch waits for the transaction")
    arriving = asyncio.create_task(postgres.connect())
    await asyncio.wait([arriving], timeout=0.2)
    assert not arriving.done()
    await holder.execute("commit")
    await started
    late = await arriving
    assert await one(late, "select pg_is_in_recovery()") is False
    await late.close()
    await holder.close()


@both_pool_modes
async def test_the_role_is_carried(postgres: Postgres) -> None:
    await postgres.pair.primary.execute("drop role if exists reader")
    await postgres.pair.primary.execute("create role reader")
    await postgres.pair.primary.execute("grant reader to app")
    connection = await postgres.connect()
    await connection.execute("set role reader")
    await postgres.switch()
    assert await one(connection, "select current_user") == "reader"
    await connection.close()


@both_pool_modes
async def test_a_session_with_everything_is_moved_there_and_back_and_cannot_tell(postgres: Postgres) -> None:
    """field-notes: Temp namespace
    field-notes: SET search_path poison
    field-notes: ParameterStatus async & at odd times
    """
    # One for each mode: temporary tables of a backend that has gone own it until autovacuum finds them.
    role = f"carrier_{postgres.turnout.setup.pool_mode}"
    await postgres.pair.primary.execute(f"create role {role}")
    await postgres.pair.primary.execute(f"grant {role} to app")
    connection = await postgres.connect()
    connection.prepare_threshold = 0
    for statement in (
        f"set role {role}",
        "set search_path to pg_catalog, public",
        "set default_transaction_read_only = on",
        "listen news",
        "select pg_advisory_lock(42), pg_advisory_lock(42), pg_advisory_lock_shared(-7), pg_advisory_lock(1, -2)",
        "begin read write",
        (
            "create temp table notes (id serial primary key, text text collate \"C\" not null default 'none' check (text <> ''),"
            " size int generated always as (length(text)) stored, other int generated by default as identity)"
        ),
        'create index "By Size" on notes (size) where size > 1',
        "insert into notes (text) select 'note ' || i from generate_series(1, 500) i",
        "alter table notes alter text set default 'later'",
        "create temp table passing (id int) on commit delete rows",
        'create temp table "Mixed Case" ("a b" int[], "T" timestamptz)',
        "insert into \"Mixed Case\" values ('{1,null}', 'epoch'), (null, null)",
        "create temp sequence counter start 5 increment 5",
        "select nextval('counter'), nextval('counter')",
        "commit",
        # Last: psycopg sends DEALLOCATE ALL after an ALTER.
        "prepare by_name (int) as select $1 + 1",
    ):
        await connection.execute(statement)
    await connection.execute("select set_config(%s, %s, false)", ["app.tenant", "bound"])
    assert (await (await connection.execute("select %s::int * 2", [21])).fetchone()) == (42,)
    [shown] = [one for one in await postgres.turnout.get("/v1/sessions") if one["requests"] > 10]
    assert shown["portability"] == "B" or postgres.turnout.setup.pool_mode == "session"
    # The temporary schemas of former backends came by replication, until autovacuum finds them.
    indexes = (
        "select array_agg(indexdef order by indexdef) from pg_indexes"
        " where tablename = 'notes' and schemaname = pg_my_temp_schema()::regnamespace::text"
    )

    async def held() -> list[Any]:
        return [
            await one(connection, question)
            for question in (
                "select current_user",
                "show search_path",
                "show app.tenant",
                "show default_transaction_read_only",
                "execute by_name (41)",
                "select array_agg(channel) from pg_listening_channels() channel",
                (
                    "select array_agg((classid, objid, objsubid, mode)::text order by classid, objid, mode) from pg_locks"
                    " where locktype = 'advisory' and pid = pg_backend_pid()"
                ),
                "select count(*) || min(text) || max(text) || sum(size) || sum(other) || sum(id) from notes",
                'select array_agg(m::text) from "Mixed Case" m',
                f"select regexp_replace(({indexes})::text, 'pg_temp_[0-9]+', 'pg_temp', 'g')",
                (
                    "select array_agg(conname || pg_get_constraintdef(oid) order by conname) from pg_constraint"
                    " where conrelid = 'notes'::regclass and contype <> 'n'"
                ),
                (
                    "select array_agg((column_name, data_type, column_default, is_nullable)::text order by ordinal_position)"
                    " from information_schema.columns where table_name = 'notes'"
                    " and table_schema = pg_my_temp_schema()::regnamespace::text"
                ),
            )
        ]

    before = await held()
    for _ in range(2):
        await postgres.switch()
        assert await held() == before
        told = connection.info.parameter_status
        # Its backend was opened on a standby, under the fence that replication brought there.
        assert (told("in_hot_standby"), told("default_transaction_read_only")) == ("off", "on")
    await connection.execute("begin read write")
    assert await one(connection, "insert into notes default values returning id || text || other") == "501later501"
    assert await one(connection, "select nextval('counter')") == 15
    await connection.execute("insert into passing values (1)")
    await connection.execute("commit")
    assert await one(connection, "select count(*) from passing") == 0, "ON COMMIT DELETE ROWS came along"
    await connection.execute("begin read write")
    with pytest.raises(psycopg.errors.CheckViolation):
        await connection.execute("insert into notes (text) values ('')")
    await connection.execute("rollback")
    # psycopg has sent DEALLOCATE ALL after the ROLLBACK.
    assert [await one(connection, "select pg_advisory_unlock(42)") for _ in range(3)] == [True, True, False]
    assert await one(connection, "select pg_advisory_unlock_shared(-7) and pg_advisory_unlock(1, -2)") is True
    await connection.close()


async def test_advisory_locks_keep_others_out_across_a_switch(postgres_pair_session: Postgres) -> None:
    postgres = postgres_pair_session
    holder, other = await postgres.connect(), await postgres.connect()
    await holder.execute("select pg_advisory_lock(1)")
    assert await one(other, "select pg_try_advisory_lock(1)") is False
    await postgres.switch()
    assert await one(other, "select pg_try_advisory_lock(1)") is False
    await holder.execute("select pg_advisory_unlock(1)")
    assert await one(other, "select pg_try_advisory_lock(1)") is True
    await other.close()
    await holder.close()


@pytest.mark.parametrize(
    ("made", "pin"),
    [
        ("create temp view looks as select 1", "temp view"),
        ("create temp table many as select repeat('x', 1000) from generate_series(1, 2000)", "temp tables too large"),
        (
            "do $$ begin execute 'create te' || 'mp table hidden (i int)'; end $$",
            "empty temp table of unknown ON COMMIT",
        ),
        ("begin; declare held cursor with hold for select 1; commit", "with hold cursor"),
    ],
)
async def test_what_cannot_be_carried_is_named_and_the_switch_is_undone(
    postgres_pair_session: Postgres, made: str, pin: str
) -> None:
    postgres = postgres_pair_session
    connection = await postgres.connect()
    await connection.execute(made)
    ended = await postgres.turnout.switch(postgres.pair.standby.name, drain_timeout_seconds=1)
    assert ended["phase"] == "aborted", ended
    assert pin in str(ended["report"]["waiting_for"])
    await connection.execute("create table if not exists writable (id int); drop table writable")
    await connection.close()


@both_pool_modes
async def test_a_session_that_lets_go_of_its_pin_during_the_drain_is_moved(postgres: Postgres) -> None:
    connection = await postgres.connect()
    await connection.execute("create temp view looks as select 1 as one")
    started = asyncio.create_task(postgres.switch())
    await until(lambda: _is_waiting_for_drain(postgres.turnout), "the switch waits for the pinned session")
    assert await one(connection, "select one from looks") == 1, "a pinned session works on"
    await connection.execute("drop view looks")
    await started
    assert await one(connection, "select to_regclass('pg_temp.looks')") is None
    await connection.close()


async def test_a_session_is_not_read_only_because_its_prepared_backend_was_lost(
    postgres_pair_session: Postgres,
) -> None:
    """Another one would log in while the source's fence, which replication brings to the target, binds newcomers."""
    postgres = postgres_pair_session
    standby = postgres.pair.standby
    moves, waits = await postgres.connect(), await postgres.connect()
    await moves.execute("create table if not exists written (i int)")
    await waits.execute("begin")
    started = asyncio.create_task(postgres.switch())

    async def prepared() -> int:
        return int(await standby.fetchval("select count(*) from pg_stat_activity where usename = 'app'"))

    async def is_prepared() -> bool:
        return await prepared() == 1

    await until(is_prepared, "the one that is at a boundary has a backend on the target")
    # While the other one is still waited for.
    await moves.execute("begin")
    await until(lambda: _is_waiting_for_drain(postgres.turnout), "the switch waits for both")

    async def is_fenced() -> bool:
        return bool(await standby.fetchval("select exists (select from pg_db_role_setting)"))

    async def is_lost() -> bool:
        return await prepared() == 0

    await until(is_fenced, "the fence has come to the target")
    await standby.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")
    await until(is_lost, "the prepared backend is gone")
    for connection in (moves, waits):
        await connection.execute("commit")
    await started
    for connection in (moves, waits):
        await connection.execute("insert into written values (1)")
        await connection.close()


@both_pool_modes
async def test_a_pinned_session_may_be_ended_by_the_plan(postgres: Postgres) -> None:
    pinned = await postgres.connect()
    other = await postgres.connect()
    await pinned.execute("create temp view looks as select 1")
    ended = await postgres.turnout.switch(
        postgres.pair.standby.name, drain_timeout_seconds=1, on_drain_expired="terminate"
    )
    assert ended["phase"] == "completed", ended
    await postgres.pair.swap()
    with pytest.raises(psycopg.OperationalError) as raised:
        await pinned.execute("select 1")
    assert raised.value.sqlstate in ("57P01", None)
    assert await one(other, "select 1") == 1
    assert [i["code_sent"] for i in ended["report"]["interrupted"]] == ["57P01"]
    await other.close()
    await pinned.close()


# --- MySQL and MariaDB --------------------------------------------------------------------------------------------


class MySQL:
    """The same for MySQL and MariaDB; PyMySQL blocks, so its calls run in a thread."""

    def __init__(self, pair: MariaDBPair | MySQLPair, turnout: Turnout) -> None:
        self.pair = pair
        self.turnout = turnout

    def connect(self, **options: Any) -> pymysql.Connection[Any]:
        return pymysql.connect(
            host="127.0.0.1",
            port=self.turnout.setup.client_port,
            user="app",
            password="secret",
            database="app",
            autocommit=True,
            **options,
        )

    async def switch(self) -> dict[str, Any]:
        ended = await self.turnout.switch(self.pair.standby.name)
        assert ended["phase"] == "completed", ended
        await self.pair.swap()
        return ended


@pytest.fixture(params=["mariadb", "mysql"])
def mysql_servers(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_pair")


@pytest.fixture
async def mysql(pool_mode: PoolMode, mysql_servers: MariaDBPair | MySQLPair, start_turnout: StartTurnout) -> MySQL:
    is_mariadb = isinstance(mysql_servers, MariaDBPair) and not isinstance(mysql_servers, MySQLPair)
    setup = Setup(
        protocol="mysql",
        engines={server.name: server.address for server in mysql_servers.servers()},
        admin_user="turnout",
        admin_password="secret",
        users={"app": "secret"},
        auth_method="mysql_native_password" if is_mariadb else "caching_sha2_password",
        pool_mode=pool_mode,
    )
    return MySQL(mysql_servers, await start_turnout(setup))


def ask(connection: pymysql.Connection[Any], query: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
        return row[0] if row else None


@both_pool_modes
async def test_variables_database_and_charset_are_carried(mysql: MySQL) -> None:
    connection = await asyncio.to_thread(mysql.connect, charset="utf8mb4")
    for statement in (
        "set @number = 42, @word = 'O\\'Brien', @nothing = null, @exact = 1.50",
        "set session sql_mode = 'ANSI_QUOTES'",
        "set session group_concat_max_len = 4321",
        "set time_zone = '+09:00'",
        "set names latin1",
    ):
        await asyncio.to_thread(ask, connection, statement)
    await mysql.switch()
    assert await asyncio.to_thread(ask, connection, "select @number") == 42
    assert await asyncio.to_thread(ask, connection, "select @word") == "O'Brien"
    assert await asyncio.to_thread(ask, connection, "select @nothing") is None
    assert str(await asyncio.to_thread(ask, connection, "select @exact")) == "1.50"
    assert await asyncio.to_thread(ask, connection, "select @@sql_mode") == "ANSI_QUOTES"
    assert await asyncio.to_thread(ask, connection, "select @@group_concat_max_len") == 4321
    assert await asyncio.to_thread(ask, connection, "select @@time_zone") == "+09:00"
    assert await asyncio.to_thread(ask, connection, "select @@character_set_client") == "latin1"
    assert await asyncio.to_thread(ask, connection, "select database()") == "app"
    connection.close()


@pytest.mark.parametrize("mysql_servers", ["mysql"], indirect=True)
@both_pool_modes
async def test_a_target_that_remembers_no_password_is_logged_in_to_all_the_same(mysql: MySQL) -> None:
    """caching_sha2_password asks for the password itself, not for a proof, until it has seen it once.

    field-notes: caching_sha2 fast vs full auth
    """
    connections = [await asyncio.to_thread(mysql.connect) for _ in range(5)]
    for number, connection in enumerate(connections):
        await asyncio.to_thread(ask, connection, f"set @number = {number}")
    await mysql.pair.standby.execute("flush privileges")
    ended = await mysql.switch()
    assert ended["figures"]["errors_visible"] == 0
    for number, connection in enumerate(connections):
        assert await asyncio.to_thread(ask, connection, "select @number") == number
        connection.close()


@both_pool_modes
async def test_sql_prepared_statements_are_carried(mysql: MySQL) -> None:
    connection = await asyncio.to_thread(mysql.connect)
    await asyncio.to_thread(ask, connection, "prepare doubled from 'select 2 * ?'")
    await asyncio.to_thread(ask, connection, "set @n = 21")
    assert await asyncio.to_thread(ask, connection, "execute doubled using @n") == 42
    await mysql.switch()
    assert await asyncio.to_thread(ask, connection, "execute doubled using @n") == 42
    connection.close()


@both_pool_modes
async def test_user_locks_and_temporary_tables_are_carried(mysql: MySQL) -> None:
    """field-notes: TEMPORARY TABLE + read split"""
    connection = await asyncio.to_thread(mysql.connect)
    for statement in (
        "create temporary table mine (i int auto_increment primary key, word varchar(9))",
        "insert into mine (word) values ('kept'), ('too')",
        "select get_lock('carried', 1)",
        "select get_lock('carried', 1)",
    ):
        await asyncio.to_thread(ask, connection, statement)
    ended = await mysql.switch()
    assert ended["figures"]["errors_visible"] == 0
    rows = "select group_concat(i, word order by i) from mine"
    assert await asyncio.to_thread(ask, connection, rows) == "1kept,2too"
    assert await asyncio.to_thread(ask, connection, "select is_used_lock('carried') = connection_id()") == 1
    (row,) = await mysql.turnout.get("/v1/sessions")
    assert row["portability"] == "B"
    assert {"user locks": 1, "temporary tables": 1}.items() <= row["carried"].items()
    is_tied = mysql.turnout.setup.pool_mode == "transaction"
    assert ({"user locks", "temporary tables"} <= set(row["pins"])) == is_tied
    await asyncio.to_thread(ask, connection, "drop temporary table mine")
    for freed in (1, 1, None):
        assert await asyncio.to_thread(ask, connection, "select release_lock('carried')") == freed
    connection.close()


@pytest.mark.parametrize("pool_mode", ["transaction"])
async def test_no_write_is_refused_because_of_a_switch(mysql: MySQL) -> None:
    """field-notes: ERR 1290/1792/1836, 1053, 2013"""
    connection = await asyncio.to_thread(mysql.connect)
    await asyncio.to_thread(ask, connection, "create table if not exists written (i int auto_increment primary key)")
    switched = asyncio.create_task(mysql.switch())
    written = 0
    while not switched.done():
        await asyncio.to_thread(ask, connection, "insert into written values (null)")
        written += 1
    await switched
    assert await asyncio.to_thread(ask, connection, "select count(*) from written") == written
    await asyncio.to_thread(ask, connection, "drop table written")
    connection.close()


@both_pool_modes
async def test_an_open_mysql_transaction_is_never_cut(mysql: MySQL) -> None:
    connection = await asyncio.to_thread(mysql.connect)
    await asyncio.to_thread(ask, connection, "create table if not exists kept (id int)")
    await asyncio.to_thread(ask, connection, "begin")
    await asyncio.to_thread(ask, connection, "insert into kept values (1)")
    started = asyncio.create_task(mysql.switch())
    await until(lambda: _is_waiting_for_drain(mysql.turnout), "the switch waits for the transaction")
    await asyncio.to_thread(ask, connection, "insert into kept values (2)")
    await asyncio.to_thread(ask, connection, "commit")
    ended = await started
    assert ended["figures"]["errors_visible"] == 0
    assert await asyncio.to_thread(ask, connection, "select count(*) from kept") == 2
    await asyncio.to_thread(ask, connection, "drop table kept")
    connection.close()
