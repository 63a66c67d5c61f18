"""The primary of MariaDB dies: its replica takes over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
import pytest_asyncio

from proxy.embedded import MariaDBPair, Setup, Turnout
from tests.e2e.doors import Door
from tests.e2e.failovers import FAST, ended_failover, is_watched, view_of
from tests.e2e.mysql_rules import ask, connect
from tests.kit.servers import mariadb_pair_alone
from tests.kit.waiting import until

pytestmark = [pytest.mark.mariadb, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def pair() -> AsyncIterator[MariaDBPair]:
    """One for each test: a primary that was killed may have what its replica lacks, and cannot come back as it is."""
    async with mariadb_pair_alone() as pair:
        await pair.primary.execute("create table app.written (id bigint auto_increment primary key, by_server int)")
        yield pair


@pytest_asyncio.fixture(loop_scope="module")
async def turnout(pair: MariaDBPair, tmp_path: Path) -> AsyncIterator[Turnout]:
    setup = Setup(
        protocol="mysql",
        engines={server.name: server.address for server in (pair.primary, pair.standby)},
        admin_user="turnout",
        admin_password="secret",
        users={"app": "secret"},
        auth_method="mysql_native_password",
        workers=2,
        service={"failover": FAST, "server_login_retry_s": 0.1},
    )
    one = Turnout(setup, tmp_path)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


async def _is_asked(turnout: Turnout, count: int) -> None:
    """So many sessions' backends have been asked what they hold, and it was a variable."""

    async def are() -> bool:
        sessions = await turnout.get("/v1/sessions")
        return sum(1 for one in sessions if one["carried"].get("user variables")) >= count

    await until(are, "the sessions' backends were asked what they hold")


async def _server_of(connection: Any) -> int:
    return int((await asyncio.to_thread(ask, connection, "select @@server_id"))[0][0])


async def test_a_killed_primary_is_replaced_within_a_second_and_idle_clients_notice_nothing(
    pair: MariaDBPair, turnout: Turnout
) -> None:
    old, new = pair.primary, pair.standby
    door = Door(name="session", port=turnout.port)
    idle, open_one, writer = [await asyncio.to_thread(connect, door) for _ in range(3)]
    try:
        for one in (idle, open_one, writer):
            await asyncio.to_thread(ask, one, "set @mine = 7")
        await is_watched(turnout)
        await _is_asked(turnout, 3)
        await asyncio.to_thread(ask, open_one, "begin")
        await asyncio.to_thread(ask, open_one, "insert into written (by_server) values (0)")
        acknowledged: list[tuple[int, float]] = []
        errors: list[int] = []
        is_over = False

        def write() -> None:
            while not is_over and writer.open:
                try:
                    ask(writer, "insert into written (by_server) values (@@server_id)")
                    acknowledged.append((int(ask(writer, "select @@server_id")[0][0]), time.monotonic()))
                except pymysql.err.MySQLError as error:
                    errors.append(error.args[0])

        writing = asyncio.create_task(asyncio.to_thread(write))
        await until(lambda: len(acknowledged) > 20, "it writes")
        killed = time.monotonic()
        await old.kill()
        record = await ended_failover(turnout)
        assert record["phase"] == "completed", record
        try:
            await until(lambda: acknowledged[-1][0] == new.number, "it writes again")
        finally:
            is_over = True
            await writing
        assert min(at for number, at in acknowledged if number == new.number) - killed < 1.0
        assert set(errors) <= {2013}
        assert await asyncio.to_thread(ask, idle, "select @mine, @@server_id") == ((7, new.number),)
        with pytest.raises(pymysql.err.OperationalError) as told:
            await asyncio.to_thread(ask, open_one, "select 1")
        assert told.value.args[0] == 1213
        assert await _server_of(open_one) == new.number
        assert record["report"]["failure"]["may_lack_ms"] is not None
    finally:
        for one in (idle, open_one, writer):
            one.close()


async def test_a_primary_that_answers_nobody_is_replaced_and_fenced_each_time_it_comes_back(
    pair: MariaDBPair, turnout: Turnout
) -> None:
    old, new = pair.primary, pair.standby
    client = await asyncio.to_thread(connect, Door(name="session", port=turnout.port))
    try:
        await asyncio.to_thread(ask, client, "set @mine = 7")
        await is_watched(turnout)
        await _is_asked(turnout, 1)
        old.freeze()
        record = await ended_failover(turnout)
        assert record["phase"] == "completed", record
        assert await _server_of(client) == new.number
        old.thaw()

        async def is_read_only() -> bool:
            try:
                return bool(await old.fetchval("select @@global.read_only"))
            except pymysql.err.OperationalError:
                # A fence ends the sessions of everybody: of who asks at that moment, too.
                return False

        await until(is_read_only, "the former primary is fenced")
        await old.stop()
        await old.start()
        await until(is_read_only, "it is fenced again")
        assert [one["name"] for one in (await view_of(turnout))["engines"] if one["deposed"]] == [old.name]
    finally:
        old.thaw()
        client.close()
        await old.kill()
