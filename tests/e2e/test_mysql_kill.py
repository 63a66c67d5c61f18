"""KILL by the id that a client was told: it hits the one that is meant, wherever that runs, and nobody else."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from typing import Any

import pymysql
import pytest

from proxy.embedded import MariaDBPair, MySQLPair, Setup, Turnout
from proxy.embedded.mysql import PASSWORD
from tests.e2e.conftest import PoolMode
from tests.e2e.doors import Door, run
from tests.e2e.mysql_rules import ask, asleep, connect
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until

pytestmark = pytest.mark.slow


class KillRules:
    """Each test is given `door`, the way through Turnout."""

    def test_a_statement_is_killed_and_its_session_goes_on(self, door: Door) -> None:
        """field-notes: KILL [QUERY] id, CONNECTION_ID()"""
        with closing(connect(door)) as one, closing(connect(door)) as other:
            for form in ("kill query %d", "/* now */ KILL QUERY %d ;"):
                with asleep(one, other) as came:
                    ask(other, form % one.thread_id())
                assert came in ([1317], [((1, "marked"),)]), "interrupted: an error, or sleep() says 1"
                assert ask(one, "select 1") == ((1,),)
                assert ask(other, "select 2") == ((2,),)
            ask(other, f"kill query {one.thread_id()}")
            assert ask(one, "select 1") == ((1,),), "who runs nothing is not hit later"

    def test_a_connection_that_is_killed_is_not_brought_back(self, door: Door) -> None:
        """field-notes: KILL [QUERY] id, CONNECTION_ID()"""
        with closing(connect(door)) as other:
            with closing(connect(door)) as one:
                with asleep(one, other) as came:
                    other.kill(one.thread_id())
                assert came in ([2013], [1317], [1927]), came
                with pytest.raises(pymysql.err.MySQLError):
                    ask(one, "select 1")
            with closing(connect(door)) as idle:
                ask(other, f"kill connection {idle.thread_id()}")
                with pytest.raises(pymysql.err.MySQLError):
                    ask(idle, "select 1")
            assert ask(other, "select 2") == ((2,),)

    def test_a_connection_may_kill_itself(self, door: Door) -> None:
        with closing(connect(door)) as one:
            with pytest.raises(pymysql.err.MySQLError) as refused:
                ask(one, f"kill {one.thread_id()}")
            assert refused.value.args[0] == 1317
            with pytest.raises(pymysql.err.MySQLError):
                ask(one, "select 1")

    def test_an_id_that_nobody_has_is_unknown(self, door: Door) -> None:
        with closing(connect(door)) as one:
            for number in (one.thread_id() + 1_000, 99_999_999):
                with pytest.raises(pymysql.err.MySQLError) as refused:
                    ask(one, f"kill query {number}")
                assert refused.value.args[0] == 1094
            assert ask(one, "select 1") == ((1,),)

    @pytest.mark.parametrize("text", ["show processlist", "show full processlist"])
    def test_the_process_list_has_the_ids_that_clients_know(self, door: Door, text: str) -> None:
        """field-notes: KILL [QUERY] id, CONNECTION_ID()"""
        with closing(connect(door)) as one, closing(connect(door)) as other:
            with asleep(one, other) as came:
                ids = {row[7]: row[0] for row in ask(other, text)}
                assert ids[text] == other.thread_id()
                assert ids["select sleep(50), 'marked'"] == one.thread_id()
                ask(other, f"kill query {one.thread_id()}")
            assert came in ([1317], [((1, "marked"),)])

    def test_a_connection_s_own_id_is_the_one_of_its_greeting(self, door: Door) -> None:
        """field-notes: KILL [QUERY] id, CONNECTION_ID()"""
        with closing(connect(door)) as one:
            assert ask(one, "select connection_id()") == ((one.thread_id(),),)
            ask(one, "begin")
            assert ask(one, "SELECT CONNECTION_ID() AS `it`;") == ((one.thread_id(),),)
            ask(one, "rollback")
            assert ask(one, "select 7") == ((7,),), "no other number is replaced"


@pytest.mark.mariadb
class TestMariaDB(KillRules):
    @pytest.fixture
    def door(self, mariadb_door: Door) -> Door:
        return mariadb_door


@pytest.mark.mysql
class TestMySQL(KillRules):
    @pytest.fixture
    def door(self, mysql_door: Door) -> Door:
        return mysql_door


async def _kills_an_idle_one(turnout: Turnout) -> None:
    door = Door(name=turnout.setup.pool_mode, port=turnout.port)

    def talk() -> None:
        with (
            closing(connect(door)) as idle,
            closing(connect(replace(door, user="passerby"))) as passerby,
            closing(connect(replace(door, user="warden"))) as warden,
        ):
            for form in ("kill %d", "kill query %d"):
                with pytest.raises(pymysql.err.MySQLError) as refused:
                    ask(passerby, form % idle.thread_id())
                assert refused.value.args[0] == 1095
            assert ask(idle, "select 1") == ((1,),)
            ask(warden, f"kill {idle.thread_id()}")
            with pytest.raises(pymysql.err.MySQLError):
                ask(idle, "select 1")
            assert ask(warden, "select 2") == ((2,),)

    await asyncio.to_thread(talk)


async def _setup_with_a_warden(pair: MariaDBPair | MySQLPair, auth_method: str, pool_mode: PoolMode) -> Setup:
    for user in ("passerby", "warden"):
        await pair.primary.execute(
            f"create user if not exists {user}@'%' identified by '{PASSWORD}'", f"grant select on app.* to {user}@'%'"
        )
    right = "connection admin" if isinstance(pair, MariaDBPair) else "connection_admin"
    await pair.primary.execute(f"grant {right} on *.* to warden@'%'")
    return Setup(
        protocol="mysql",
        engines={"blue": pair.primary.address},
        admin_user="turnout",
        admin_password=PASSWORD,
        users=dict.fromkeys(("app", "passerby", "warden"), PASSWORD),
        auth_method=auth_method,
        databases=["app"],
        pool_mode=pool_mode,
    )


@pytest.mark.mariadb
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
async def test_who_may_kill_others_kills_one_that_is_idle_in_mariadb(
    pool_mode: PoolMode, mariadb_pair: MariaDBPair, start_turnout: StartTurnout
) -> None:
    """In transaction mode it has no backend whose engine could judge."""
    await _kills_an_idle_one(
        await start_turnout(await _setup_with_a_warden(mariadb_pair, "mysql_native_password", pool_mode))
    )


@pytest.mark.mysql
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
async def test_who_may_kill_others_kills_one_that_is_idle_in_mysql(
    pool_mode: PoolMode, mysql_pair: MySQLPair, start_turnout: StartTurnout
) -> None:
    await _kills_an_idle_one(
        await start_turnout(await _setup_with_a_warden(mysql_pair, "caching_sha2_password", pool_mode))
    )


@pytest.mark.mariadb
async def test_ctrl_c_of_the_mariadb_client_works(mariadb_door: Door, mariadb_pair: MariaDBPair) -> None:
    """field-notes: KILL [QUERY] id, CONNECTION_ID()"""
    running = "select count(*) from information_schema.processlist where info like 'select sleep(41)%'"

    async def runs() -> bool:
        return bool(await mariadb_pair.primary.fetchval(running))

    async def is_running() -> None:
        await until(runs, "the client's statement runs")

    ran = await run(
        ["mariadb", *mariadb_door.mysql(), "--batch", "-e", "select sleep(41)", mariadb_door.database],
        interrupt_when=is_running,
        timeout_s=20,
    )
    assert "interrupted" in ran.err or ran.out.split() == ["sleep(41)", "1"], ran
    assert await mariadb_pair.primary.fetchval(running) == 0


@pytest.mark.mariadb
async def test_a_session_of_another_worker_is_found(mariadb_pair: MariaDBPair, start_turnout: StartTurnout) -> None:
    turnout = await start_turnout(
        Setup(
            protocol="mysql",
            engines={"blue": mariadb_pair.primary.address},
            admin_user="turnout",
            admin_password=PASSWORD,
            users={"app": PASSWORD},
            auth_method="mysql_native_password",
            databases=["app"],
            workers=2,
        )
    )
    door = Door(name="session", port=turnout.port)

    def talk() -> None:
        by_worker: dict[int, Any] = {}
        many = []
        try:
            while len(by_worker) < 2:
                many.append(connect(door))
                by_worker[many[-1].thread_id() >> 24] = many[-1]
                assert len(many) < 64
            one, other = by_worker.values()
            with asleep(one, other) as came:
                assert one.thread_id() in {row[0] for row in ask(other, "show processlist")}
                ask(other, f"kill query {one.thread_id()}")
            assert came in ([1317], [((1, "marked"),)])
            assert ask(one, "select 1") == ((1,),)
            other.kill(one.thread_id())
            with pytest.raises(pymysql.err.MySQLError):
                ask(one, "select 1")
        finally:
            for connection in many:
                connection.close()

    await asyncio.to_thread(talk)
