from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from protocols.postgres.messages import build_error
from proxy.embedded import PostgresPair, PostgresServer, free_port
from proxy.engines import PostgresEngine, Role
from proxy.errors import AuthRefused, ConnectFailed, EngineError
from proxy.switch import parity
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]


def engine_of(server: PostgresServer, user: str = "postgres", password: str = "secret") -> PostgresEngine:
    return PostgresEngine(server.name, server.address, user=user, password=password)


@pytest_asyncio.fixture
async def source(postgres_pair: PostgresPair) -> AsyncIterator[PostgresEngine]:
    engine = engine_of(postgres_pair.primary)
    try:
        yield engine
        await engine.unfence()
    finally:
        await engine.close()


@pytest_asyncio.fixture
async def target(postgres_pair: PostgresPair) -> AsyncIterator[PostgresEngine]:
    engine = engine_of(postgres_pair.standby)
    yield engine
    await engine.close()


async def test_a_probe_tells_primary_from_standby(
    postgres_pair: PostgresPair, source: PostgresEngine, target: PostgresEngine
) -> None:
    primary, standby = await source.probe(), await target.probe()
    assert (primary.role, primary.is_writable, primary.is_fenced) == (Role.PRIMARY, True, False)
    assert (standby.role, standby.is_writable, standby.is_replicating) == (Role.STANDBY, False, True)
    assert standby.upstream == postgres_pair.primary.address
    assert primary.server_id == standby.server_id
    assert primary.version.startswith("PostgreSQL 1")
    assert standby.lag_bytes is not None


async def test_a_probe_of_a_closed_port_says_so_and_does_not_raise() -> None:
    engine = PostgresEngine("gone", f"127.0.0.1:{free_port()}", user="postgres", password="secret")
    state = await engine.probe()
    assert not state.is_reachable
    assert state.why.startswith("engine gone at ")
    assert state.why.endswith(" cannot be reached: Connection refused")
    with pytest.raises(ConnectFailed):
        await engine.connections()
    await engine.close()


@pytest.mark.parametrize(
    "words",
    [b"", build_error(severity="FATAL", sqlstate="08006", message="the server is not there")],
    ids=["nothing", "a connection exception"],
)
async def test_what_a_go_between_says_for_a_server_that_is_gone_is_no_answer(words: bytes) -> None:
    """It takes the connection and ends it: no word of the server's."""

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if words:
            await reader.read(1_000)
            writer.write(words)
        writer.close()

    server = await asyncio.start_server(end, "127.0.0.1", free_port())
    engine = PostgresEngine("gone", f"127.0.0.1:{server.sockets[0].getsockname()[1]}", user="postgres", password="x")
    try:
        state = await engine.probe()
        assert (state.is_reachable, state.failure) == (False, "silent")
    finally:
        await engine.close()
        server.close()


async def test_a_probe_of_a_silent_port_ends_at_its_deadline() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as silent:
        engine = PostgresEngine("mute", f"127.0.0.1:{silent.getsockname()[1]}", user="postgres", password="x")
        began = time.monotonic()
        assert not (await engine.probe(timeout_s=0.2)).is_reachable
        assert time.monotonic() - began < 2
        await engine.close()


async def test_a_wrong_password_is_refused_by_name_and_never_shown(postgres_pair: PostgresPair) -> None:
    engine = engine_of(postgres_pair.primary, password="hunter2")
    with pytest.raises(AuthRefused) as caught:
        await engine.connect()
    assert "blue" in caught.value.text
    assert "hunter2" not in caught.value.text
    await engine.close()


async def test_a_fence_refuses_real_writes_and_can_be_taken_back_within_a_second(
    postgres_pair: PostgresPair, source: PostgresEngine
) -> None:
    await postgres_pair.primary.execute("create table if not exists fenced (i int)", database="app")
    await postgres_pair.primary.execute("grant all on fenced to app", database="app")
    await source.prepare()
    own = await postgres_pair.primary.connect("app", "app")
    other = await postgres_pair.primary.connect("app", "app")
    transaction = other.transaction()
    await transaction.start()
    await other.execute("insert into fenced values (1)")

    proof = await source.fence([own.get_server_pid()])

    assert (proof.refused_with, proof.writers_left, proof.sessions_ended) == ("25006", 0, 1)
    assert (await source.probe()).is_fenced
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
        await other.execute("insert into fenced values (2)")
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await postgres_pair.primary.execute("insert into fenced values (4)", database="app")

    began = time.monotonic()
    await source.unfence()
    assert time.monotonic() - began < 1
    await own.execute("insert into fenced values (5)")
    assert await own.fetch("select i from fenced") == [(5,)]
    await own.execute("truncate fenced")
    await own.close()


async def test_a_fence_and_its_undoing_may_be_repeated(source: PostgresEngine) -> None:
    await source.fence()
    assert (await source.fence()).refused_with == "25006"
    await source.unfence()
    await source.unfence()
    assert (await source.probe()).is_writable


async def test_an_armed_fence_binds_sessions_to_come_and_none_there_is(
    postgres_pair: PostgresPair, source: PostgresEngine
) -> None:
    await source.prepare()
    other = await postgres_pair.primary.connect("app", "app")
    await source.arm()
    assert (await source.probe()).is_fenced
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await postgres_pair.primary.execute("create table armed (i int)")
    await other.execute("create temp table armed (i int)")
    proof = await source.fence()
    assert (proof.refused_with, proof.sessions_ended) == ("25006", 1)
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        await other.execute("select 1")
    await source.unfence()
    await source.arm()
    await source.unfence()
    assert (await source.probe()).is_writable
    await postgres_pair.primary.execute("create table armed (i int); drop table armed")


async def test_a_fence_survives_a_restart_and_is_taken_away_on_the_promoted_standby(
    fresh_postgres_pair: PostgresPair,
) -> None:
    pair = fresh_postgres_pair
    source, target = engine_of(pair.primary), engine_of(pair.standby)
    await asyncio.gather(source.prepare(), target.prepare())
    await source.arm()
    await source.fence()
    assert await target.wait_reached(await source.position(), 5.0)
    # Logs in under the fence that came by replication.
    late = engine_of(pair.standby)
    await late.prepare()
    await late.promote()
    await pair.standby.execute("create table written (i int)", database="app")
    assert (await target.probe()).is_writable
    await pair.primary.stop()
    await pair.primary.start()
    assert (await source.probe()).is_fenced
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await pair.primary.execute("create table lost (i int)", database="app")
    for engine in (source, target, late):
        await engine.close()


async def test_a_fence_holds_although_somebody_took_back_what_arming_did(
    postgres_pair: PostgresPair, source: PostgresEngine
) -> None:
    await source.arm()
    other = await postgres_pair.primary.connect(server_settings={"default_transaction_read_only": "off"})
    await other.execute("alter role all reset default_transaction_read_only")
    await other.close()
    assert (await source.fence()).refused_with == "25006"


async def test_who_came_after_arming_and_writes_all_the_same_is_ended(
    postgres_pair: PostgresPair, source: PostgresEngine
) -> None:
    await source.arm()
    sly = await postgres_pair.primary.connect("app", server_settings={"default_transaction_read_only": "off"})
    await sly.execute("begin; select txid_current()")
    assert (await source.fence()).sessions_ended == 1
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        await sly.execute("commit")


async def test_an_armed_fence_fails_if_a_session_of_our_own_still_writes(
    postgres_pair: PostgresPair, source: PostgresEngine
) -> None:
    own = await postgres_pair.primary.connect("app", "app")
    await source.arm()
    async with own.transaction():
        await own.fetchval("select txid_current()")
        with pytest.raises(EngineError, match=r"writing transaction open: app \(process \d+\)"):
            await source.fence([own.get_server_pid()])
        await source.unfence()
    await own.close()


async def test_a_fence_fails_if_a_session_of_our_own_still_writes(
    postgres_pair: PostgresPair, source: PostgresEngine
) -> None:
    own = await postgres_pair.primary.connect("app", "app")
    async with own.transaction():
        await own.fetchval("select txid_current()")
        with pytest.raises(EngineError, match=r"writing transaction open: app \(process \d+\)"):
            await source.fence([own.get_server_pid()])
        await source.unfence()
    await own.close()


async def test_a_default_of_a_role_that_defeats_the_fence_is_named(
    postgres_pair: PostgresPair, source: PostgresEngine
) -> None:
    await postgres_pair.primary.execute("alter role app set default_transaction_read_only = off")
    try:
        assert (await source.fence()).exempt == ["role app"]
    finally:
        await source.unfence()
        await postgres_pair.primary.execute("alter role app reset all")


async def test_prepared_transactions_in_doubt_are_named(postgres_pair: PostgresPair, source: PostgresEngine) -> None:
    await postgres_pair.primary.execute("begin; select txid_current(); prepare transaction 'order 7'", database="app")
    try:
        assert await source.prepared_in_doubt() == ["order 7"]
        assert (await source.fence()).prepared_in_doubt == ["order 7"]
    finally:
        await source.unfence()
        await postgres_pair.primary.execute("rollback prepared 'order 7'", database="app")


async def test_the_position_covers_commits_that_were_acknowledged_before_they_were_flushed(
    postgres_pair: PostgresPair, source: PostgresEngine, target: PostgresEngine
) -> None:
    await postgres_pair.primary.execute("create table if not exists lazy (i int)", database="app")
    client = await postgres_pair.primary.connect("app")
    await client.execute("set synchronous_commit = off")
    await asyncio.gather(source.prepare(), target.prepare())
    before = await postgres_pair.standby.fetchval("select count(*) from lazy", database="app")
    for number in range(20):
        await client.execute("insert into lazy values ($1)", number)
    await source.fence([client.get_server_pid()])
    position = await source.position()
    assert await target.wait_reached(position, 5.0)
    assert await target.reached(position)
    assert await postgres_pair.standby.fetchval("select count(*) from lazy", database="app") == before + 20
    await client.close()


async def test_commits_that_the_standby_lacks_are_named(
    postgres_pair: PostgresPair, source: PostgresEngine, target: PostgresEngine
) -> None:
    primary, standby = postgres_pair.primary, postgres_pair.standby
    await asyncio.gather(source.prepare(), target.prepare())
    await primary.execute("create table if not exists audited (i int)", database="app")
    assert await target.wait_reached(await source.position(), 5.0)
    client = await primary.connect("app")
    await standby.execute("select pg_wal_replay_pause()")
    try:
        added = [
            str(await client.fetchval("insert into audited values (1) returning pg_current_xact_id()::text"))
            for _ in range(3)
        ]
        rolled_back = client.transaction()
        await rolled_back.start()
        no_commit = await client.fetchval("insert into audited values (2) returning pg_current_xact_id()::text")
        await rolled_back.rollback()
        position = await source.position()
        late = await client.fetchval("insert into audited values (1) returning pg_current_xact_id()::text")
        sample = await source.recent_commits(1_000)
        assert sample.names[-3:] == added
        assert not {no_commit, late} & set(sample.names)
        assert await target.lacking(sample) == added
        assert (await source.recent_commits(2)).names == added[-1:]
    finally:
        await standby.execute("select pg_wal_replay_resume()")
        await client.close()
    assert await target.wait_reached(position, 5.0)
    assert await target.lacking(sample) == []


async def test_the_position_at_the_start_of_a_wal_segment_can_be_reached(
    postgres_pair: PostgresPair, source: PostgresEngine, target: PostgresEngine
) -> None:
    await asyncio.gather(source.prepare(), target.prepare())
    await postgres_pair.primary.fetchval("select pg_switch_wal()")
    # What pg_current_wal_insert_lsn() answers now: behind the header of a page that holds nothing.
    assert source._settled("0/3000028") == "0/3000000"
    assert source._settled("0/3002018") == "0/3002000"
    assert source._settled("0/3002028") == "0/3002028"
    assert await target.wait_reached(await source.position(), 5.0)


async def test_a_position_not_reached_is_false_at_the_deadline(source: PostgresEngine, target: PostgresEngine) -> None:
    position = await source.position()
    far = type(position)("lsn", "FFFF/0")
    assert not await target.wait_reached(far, 0.05)
    assert not await target.reached(far)


async def test_a_promoted_standby_is_writable_although_it_inherited_a_fence(fresh_postgres_pair: PostgresPair) -> None:
    pair = fresh_postgres_pair
    # As a base backup of a fenced server would bring it.
    await pair.standby.execute("alter system set default_transaction_read_only = on")
    await pair.standby.fetchval("select pg_reload_conf()")
    source, target = engine_of(pair.primary), engine_of(pair.standby)
    await asyncio.gather(source.prepare(), target.prepare())
    await source.fence()
    assert await target.wait_reached(await source.position(), 5.0)
    await target.promote()
    await target.promote()
    await pair.standby.execute("create table written (i int)", database="app")
    state = await target.probe()
    assert (state.role, state.is_writable) == (Role.PRIMARY, True)
    assert (await source.probe()).is_fenced
    await source.close()
    await target.close()


async def test_a_standby_cannot_be_fenced_or_unfenced(target: PostgresEngine) -> None:
    with pytest.raises(EngineError, match="standby"):
        await target.fence()
    with pytest.raises(EngineError, match="standby"):
        await target.unfence()


async def test_a_login_that_does_not_end_keeps_no_server_from_being_writable_again(
    source: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await source.prepare()
    await source.fence()
    monkeypatch.setattr(source, "_refused_with", asyncio.Event().wait)
    await source.unfence()
    monkeypatch.undo()
    assert (await source.probe()).is_writable


async def test_missing_rights_are_named_with_the_statement_that_grants_them(
    fresh_postgres_pair: PostgresPair,
) -> None:
    primary = fresh_postgres_pair.primary
    await primary.execute("create role lowly login password 'secret'")
    engine = engine_of(primary, user="lowly")
    try:
        missing = await engine.permissions()
        assert any("ALTER SYSTEM" in one.right for one in missing)
        for one in missing:
            await primary.execute(one.grant)
        assert await engine.permissions() == []
        # The grants are enough for the real thing, but do not let it end a superuser's session. The process of the one that
        # has just given the last of them may not be gone yet.
        await engine.prepare()

        async def is_alone() -> bool:
            return not await engine.sessions_outside([])

        await until(is_alone, "the superuser's sessions are gone")
        superuser, other = await primary.connect(), await primary.connect("app", "app")
        try:
            found = {one.pid: one.is_out_of_reach for one in await engine.sessions_outside([])}
            assert found == {superuser.get_server_pid(): True, other.get_server_pid(): False}
            with pytest.raises(
                EngineError, match=r"lowly may not end the session of a superuser: \w+@127\.0\.0\.1:\d+ \(p"
            ):
                await engine.fence()
            assert await other.fetchval("select 1") == 1, "nobody was ended in vain"
        finally:
            await engine.unfence()
            await superuser.close()
            await other.close()
        await until(is_alone, "they are gone")
        assert (await engine.fence()).refused_with == "25006"
        await engine.position()
        await engine.unfence()
        # An engine waits for what begins now no longer than `NEWCOMERS_S`: this one may be refused for a moment yet.
        try:
            await until(lambda: new_sessions_may_write(primary), "sessions that begin now may write")
        except AssertionError as error:
            why = await primary.fetch(WHY_READ_ONLY)
            raise AssertionError(f"{error}: {why}; {primary.log.read_text()[-3000:]}") from None
    finally:
        await engine.close()


WHY_READ_ONLY = """
select name, setting, source, sourcefile, pg_is_in_recovery() from pg_settings where name like '%transaction_read_only'
"""


async def new_sessions_may_write(server: PostgresServer) -> bool:
    return bool(await server.fetchval("select current_setting('transaction_read_only') = 'off'"))


async def test_sessions_outside_are_those_that_are_not_ours(
    postgres_pair: PostgresPair, source: PostgresEngine
) -> None:
    await source.prepare()
    own = await postgres_pair.primary.connect("app", "app")
    other = await postgres_pair.primary.connect("app", "app", server_settings={"application_name": "psql"})
    [session] = await source.sessions_outside([own.get_server_pid()])
    assert (session.pid, session.user, session.application) == (other.get_server_pid(), "app", "psql")
    assert (await source.capacity()).free > 500
    await own.close()
    await other.close()


async def test_the_engine_is_found_again_after_a_restart(fresh_postgres_pair: PostgresPair) -> None:
    server = fresh_postgres_pair.primary
    engine = engine_of(server)
    assert (await engine.probe()).is_reachable
    await server.stop()
    assert not (await engine.probe()).is_reachable
    with pytest.raises(ConnectFailed):
        await engine.position()
    await server.start()

    async def is_back() -> bool:
        return (await engine.probe()).is_reachable

    await until(is_back, "the engine answers again")
    await engine.close()


async def test_an_inventory_tells_which_object_changed_and_how(
    postgres_pair: PostgresPair, source: PostgresEngine
) -> None:
    """One object of every kind. What an extension or the server brings is left out."""
    primary = postgres_pair.primary
    await primary.execute(
        """
        create schema stock;
        create type stock.mood as enum ('good', 'bad');
        create table stock.orders (id int primary key, total numeric(10,2) default 0, mood stock.mood);
        create table stock."odd name" (id bigint generated always as identity);
        create sequence stock.numbers increment 5;
        create view stock.shown as select id from stock.orders;
        create function stock.twice(n int) returns int language sql as 'select n * 2';
        create trigger noted before update on stock.orders
          for each row execute function suppress_redundant_updates_trigger();
        """,
        database="app",
    )
    try:
        before = await source.inventory(["app"], with_schema=True, timeout_s=5.0)
        # What the apps of other tests left in this database is theirs.
        mine = [label for label in before.objects if " app.stock." in label]
        assert {label.partition(" app.")[0] for label in mine} == {
            "table", "sequence", "index", "constraint", "function", "trigger", "enum", "grants on",
        }  # fmt: skip
        assert "table app.stock.odd name" in mine
        assert set(before.types) >= {"app.stock.mood"}
        assert "app.stock.orders" not in before.types
        assert before.settings["server_encoding"] == "UTF8"
        assert before.extensions["app.plpgsql"]
        assert before.unavailable == []
        assert before.collations["app"].startswith("C.UTF-8")
        assert [one.name for one in before.followers] == [postgres_pair.standby.name]
        await primary.execute(
            """
            alter table stock.orders alter total type integer;
            alter type stock.mood add value 'odd';
            drop view stock.shown;
            create or replace function stock.twice(n int) returns int language sql as 'select n + n';
            """,
            database="app",
        )
        after = await source.inventory(["app"], with_schema=True, timeout_s=5.0)
        lacking, extra = parity.compare(before, after)
        assert sorted(lacking) == [
            "enum app.stock.mood", "function app.stock.twice(n integer)", "grants on app.stock.shown",
            "table app.stock.orders", "table app.stock.shown",
        ]  # fmt: skip
        assert extra == []
        assert await source.explain(lacking, 5.0) == {
            "enum app.stock.mood": ["good", "bad", "odd"],
            "function app.stock.twice(n integer)": ["integer", "select n + n"],
            "table app.stock.orders": ["id integer not null", "total integer default 0", "mood stock.mood"],
        }
    finally:
        await primary.execute("drop schema stock cascade", database="app")


async def test_a_standby_has_the_inventory_of_its_primary(
    postgres_pair: PostgresPair, source: PostgresEngine, target: PostgresEngine
) -> None:
    ours = await source.inventory([], with_schema=True, timeout_s=5.0)
    await postgres_pair.standby.wait_streaming(postgres_pair.primary)
    theirs = await target.inventory([], with_schema=True, timeout_s=5.0)
    assert parity.compare(ours, theirs) == ([], [])
    assert (ours.settings, ours.handshake, ours.collations) == (theirs.settings, theirs.handshake, theirs.collations)
    assert (ours.types, ours.accounts, ours.extensions) == (theirs.types, theirs.accounts, theirs.extensions)
    assert theirs.followers == []


async def test_an_inventory_that_takes_too_long_is_given_up_by_the_server_too(
    postgres_pair: PostgresPair, source: PostgresEngine
) -> None:
    locker = await postgres_pair.primary.connect("app")
    async with locker.transaction():
        await locker.execute("lock table pg_catalog.pg_extension in access exclusive mode")
        with pytest.raises(EngineError):
            await source.inventory(["app"], with_schema=False, timeout_s=0.2)
    await locker.close()
    gone = "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_extension%' and pid <> pg_backend_pid()"

    async def is_over() -> bool:
        return bool(await postgres_pair.primary.fetchval(gone) == 0)

    await until(is_over, "nobody waits for the catalog any more")


async def test_open_transactions_are_told_the_oldest_first(postgres_pair: PostgresPair, source: PostgresEngine) -> None:
    clients = [await postgres_pair.primary.connect("app", "app") for _ in range(2)]
    for client in clients:
        await client.execute("begin; select 1")
    pids = [client.get_server_pid() for client in clients]
    found = [one for one in await source.transactions() if one.pid in pids]
    assert [one.pid for one in found] == pids
    assert all(one.is_idle and one.age_s >= 0 and (one.user, one.database) == ("app", "app") for one in found)
    for client in clients:
        await client.close()
