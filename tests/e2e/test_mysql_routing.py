"""Reads that go to a replica of MariaDB's or MySQL's, and everything else that does not.

What both protocols share is in test_routing.py; here stands what GTIDs, status flags and warnings have to do with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pymysql
import pytest
import pytest_asyncio

from proxy.embedded import MariaDBPair, MySQLPair, Setup, Turnout
from proxy.tasks import spawn
from tests.e2e.doors import Door
from tests.e2e.mysql_rules import ask, connect
from tests.kit.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

Pair = MariaDBPair | MySQLPair

WHERE = "select in_standby()"
"""Tells which server answers; a rule says that the function only reads."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("mariadb_pair", marks=pytest.mark.mariadb, id="mariadb"),
        pytest.param("mysql_pair", marks=pytest.mark.mysql, id="mysql"),
    ],
)
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(request.param)
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnout(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Turnout]:
    await pair.primary.execute(
        "drop function if exists in_standby",
        f"create function in_standby() returns int reads sql data return @@global.server_id = {pair.standby.number}",
        "drop table if exists routed, routed_ids",
        "create table routed (n int)",
        "create table routed_ids (id int auto_increment primary key, n int)",
        database="app",
    )
    rule = {"to": [pair.standby.name], "functions": ["in_standby"], "lag_ms_max": 60_000, "applications": ["reports"]}
    setup = Setup(
        protocol="mysql",
        engines={server.name: server.address for server in pair.servers()},
        admin_user="turnout",
        admin_password="secret",
        users={"app": "secret"},
        auth_method="caching_sha2_password" if isinstance(pair, MySQLPair) else "mysql_native_password",
        pool_mode="transaction",
        service={"route": [rule], "pool_size": 4},
    )
    started = Turnout(setup, tmp_path_factory.mktemp("routing"))
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


class Client:
    """PyMySQL blocks."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    @classmethod
    async def connect(cls, turnout: Turnout, **options: Any) -> Client:
        door = Door(name="transaction", port=turnout.port)
        return cls(await asyncio.to_thread(connect, door, **{"program_name": "reports", **options}))

    async def ask(self, sql: str) -> Any:
        """All rows."""
        return await asyncio.to_thread(ask, self.connection, sql)

    async def is_elsewhere(self) -> bool:
        return bool((await self.ask(WHERE))[0][0])

    async def until_routed(self) -> None:
        await until(self.is_elsewhere, "a read goes to the replica")

    def close(self) -> None:
        self.connection.close()


@pytest_asyncio.fixture(loop_scope="module")
async def client(turnout: Turnout) -> AsyncIterator[Client]:
    """Whose reads go to the replica."""
    one = await Client.connect(turnout)
    await one.until_routed()
    yield one
    one.close()


async def test_reads_go_to_the_replica_and_writes_and_transactions_do_not(client: Client) -> None:
    await client.ask("begin")
    assert not await client.is_elsewhere()
    await client.ask("commit")
    await client.ask("delete from routed")
    await client.ask("insert into routed values (1), (2), (3)")
    await client.until_routed()
    assert await client.ask("select count(*), in_standby() from routed group by 2") == ((3, 1),)


async def test_what_is_not_surely_a_read_stays(client: Client) -> None:
    for text in (
        "select in_standby() for update",
        "select in_standby() lock in share mode",
        "select in_standby(), @mine",
        "select in_standby(), connection_id()",
        "select in_standby(), last_insert_id()",
        "select in_standby(), is_free_lock('routed')",
        "select sql_calc_found_rows in_standby()",
        "select in_standby() /*! + 0 */",
    ):
        assert (await client.ask(text))[0][0] == 0, text
        # What ties it to a backend, as counts do, is over with the next statement.
        await client.ask("do 0")


async def test_a_rule_names_programs_by_their_connection_attribute(turnout: Turnout, client: Client) -> None:
    other = await Client.connect(turnout, program_name="web")
    assert [await other.is_elsewhere() for _ in range(3)] == [False] * 3
    assert await client.is_elsewhere()
    other.close()


async def test_outside_of_autocommit_a_read_begins_a_transaction_and_stays(turnout: Turnout, client: Client) -> None:
    other = await Client.connect(turnout, autocommit=False)
    for _ in range(3):
        assert not await other.is_elsewhere()
        await other.ask("rollback")
    assert await client.is_elsewhere()
    other.close()


async def test_each_session_reads_what_it_has_written(client: Client) -> None:
    """Over and over, so that the replica would be caught behind if it were asked too early."""
    await client.ask("delete from routed")
    for number in range(1, 60):
        await client.ask(f"insert into routed values ({number})")
        assert await client.ask("select count(*) from routed") == ((number,),)
        if number % 20 == 0:
            await client.until_routed()
            assert await client.ask("select count(*), in_standby() from routed group by 2") == ((number, 1),)


async def test_a_replica_that_does_not_apply_is_passed_over(client: Client, pair: Pair) -> None:
    await pair.standby.execute("stop replica sql_thread")
    try:
        await client.ask("delete from routed")
        await client.ask("insert into routed values (1)")
        for _ in range(20):
            assert await client.ask("select count(*), in_standby() from routed group by 2") == ((1, 0),)
    finally:
        await pair.standby.execute("start replica sql_thread")
    await client.until_routed()
    assert await client.ask("select count(*) from routed") == ((1,),)


async def test_a_replica_that_takes_writes_is_not_read_from(client: Client, pair: Pair) -> None:
    """What a hidden write (of a view's function, say) would do there, nobody would undo."""
    await pair.standby.execute("set global read_only = 0")
    try:

        async def stays() -> bool:
            return not await client.is_elsewhere()

        await until(stays, "the replica is left alone")
    finally:
        await pair.standby.execute("set global read_only = 1")
    await client.until_routed()


async def test_warnings_of_a_read_are_told_by_the_replica_that_has_them(client: Client) -> None:
    """And what comes then goes where it belongs.

    field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS
    """
    for _ in range(3):
        assert await client.ask("select in_standby(), 'routed' + 1") == ((1, 1.0),)
        assert [row[1] for row in await client.ask("show warnings")] == [1292]
    assert await client.ask("select in_standby(), 'routed' + 1") == ((1, 1.0),)
    await client.ask("insert into routed values (2)")
    # On the engine that serves as well: it is just behind a write.
    assert await client.ask("select in_standby(), 'routed' + 1") == ((0, 1.0),)
    assert [row[1] for row in await client.ask("show warnings")] == [1292]
    await client.until_routed()


async def test_a_session_has_its_insert_id_and_its_settings_wherever_it_reads(client: Client) -> None:
    """field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS"""
    await client.ask("set time_zone = '+05:00'")
    await client.ask("insert into routed_ids (n) values (1)")
    written = client.connection.insert_id()
    await client.until_routed()
    assert await client.ask("select in_standby(), hour(from_unixtime(0))") == ((1, 5),)
    assert await client.ask("select last_insert_id()") == ((written,),)


async def test_a_session_that_asks_for_counts_reads_where_they_are_counted(turnout: Turnout) -> None:
    """field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS"""
    counting = await Client.connect(turnout)
    await counting.until_routed()
    with pytest.raises(pymysql.err.MySQLError):
        # Of the read just before, which another server has counted.
        await counting.ask("select found_rows()")
    assert await counting.ask("select n, in_standby() from (select 1 as n union all select 2) x") == ((1, 0), (2, 0))
    assert await counting.ask("select found_rows()") == ((2,),)
    counting.close()


async def test_a_session_with_a_temporary_table_reads_it_where_it_is(client: Client) -> None:
    """field-notes: TEMPORARY TABLE + read split"""
    await client.ask("create temporary table routed_temp as select 1 as n union all select 2")
    for _ in range(3):
        assert await client.ask("select count(*), in_standby() from routed_temp") == ((2, 0),)
    await client.ask("drop temporary table routed_temp")
    await client.until_routed()


async def test_a_switch_to_the_replica_that_is_read_from_loses_nothing_and_mixes_nothing_up(
    turnout: Turnout, pair: Pair
) -> None:
    """There and back, while clients read, ask for warnings, and write."""
    ending = asyncio.Event()

    async def work(name: int) -> None:
        client = await Client.connect(turnout)
        written = 0
        while not ending.is_set():
            await client.ask(f"insert into routed values ({name})")
            written += 1
            for _ in range(4):
                assert await client.ask(f"select count(*), 'a' + 1 from routed where n = {name}") == ((written, 1.0),)
                if written % 2:
                    await client.ask("show warnings")
        client.close()

    async def is_ready() -> bool:
        return bool((await turnout.get(f"/v1/services/app/ready/{pair.standby.name}"))["is_ready"])

    workers = [spawn(work(1000 + name), name=f"client {name}") for name in range(3)]
    try:
        for _ in range(2):
            await until(is_ready, "the replica is ready", timeout_s=20.0)
            ended = await turnout.switch(pair.standby.name)
            assert ended["phase"] == "completed", ended
            assert ended["figures"]["errors_visible"] == 0
            await pair.swap()
    finally:
        ending.set()
        await asyncio.gather(*workers)
