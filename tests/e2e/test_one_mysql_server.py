"""The same as test_one_server.py, for MariaDB: two engines that are two addresses of one server."""

from __future__ import annotations

import asyncio
import select
import threading
import time
from typing import Any

import pymysql
import pytest

from proxy.dataplane.moving import WARNINGS_GRACE_S
from proxy.embedded import MariaDBPair, Setup
from tests.e2e.doors import Door
from tests.e2e.mysql_rules import ask, asleep, connect
from tests.kit.turnouts import StartTurnout

pytestmark = [pytest.mark.mariadb, pytest.mark.slow]


def two_addresses(pair: MariaDBPair, **service: Any) -> Setup:
    """Two engines that are one server: a switch takes a few milliseconds."""
    return Setup(
        protocol="mysql",
        engines={"one": pair.primary.address, "two": f"localhost:{pair.primary.port}"},
        admin_user="turnout",
        admin_password="secret",
        users={"app": "secret"},
        auth_method="mysql_native_password",
        service={"replication": "none", "server_lifetime_s": 0.0, **service},
        switch={"on_drain_expired": "leave", "drain_timeout_s": 0.05},
    )


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
async def test_a_client_that_asks_for_warnings_at_once_finds_them(
    start_turnout: StartTurnout, mariadb_pair: MariaDBPair, pool_mode: str
) -> None:
    """A switch asks the backend what it has and then exchanges it, and neither comes between statement and question.

    field-notes: LAST_INSERT_ID, FOUND_ROWS(), ROW_COUNT, SHOW WARNINGS
    """
    turnout = await start_turnout(two_addresses(mariadb_pair, pool_mode=pool_mode))
    is_over = threading.Event()

    def ask() -> int:
        """How often the two took less than the grace together, so that the question came in time for certain."""
        connection = connect(Door(name="session", port=turnout.port))
        asked = 0
        try:
            with connection.cursor() as cursor:
                while not is_over.is_set():
                    began = time.monotonic()
                    cursor.execute("drop table if exists app.no_such_table")
                    cursor.execute("show warnings")
                    if time.monotonic() - began < WARNINGS_GRACE_S:
                        assert len(cursor.fetchall()) == 1, f"question {asked}"
                        asked += 1
        finally:
            connection.close()
        return asked

    asking = [asyncio.create_task(asyncio.to_thread(ask)) for _ in range(4)]
    try:
        for target in ("two", "one") * 6:
            assert (await turnout.switch(target))["phase"] == "completed"
    finally:
        is_over.set()
        asked = await asyncio.gather(*asking)
    # On a busy machine hardly any question comes in time.
    assert any(asked)


async def test_a_sessions_own_idle_timeout_holds_however_often_it_is_moved(
    start_turnout: StartTurnout, mariadb_pair: MariaDBPair
) -> None:
    """Each backend it is given counts its idleness from the beginning, and none comes to the end."""
    turnout = await start_turnout(two_addresses(mariadb_pair))
    idle = await asyncio.to_thread(connect, Door(name="session", port=turnout.port))
    try:
        await asyncio.to_thread(idle.query, "set wait_timeout = 1")
        for target in ("two", "one") * 20:
            # A tenth of a second for its end, between two switches.
            if (await asyncio.to_thread(select.select, [idle._sock], [], [], 0.1))[0]:
                break
            assert (await turnout.switch(target))["phase"] == "completed"
        with pytest.raises(pymysql.err.OperationalError) as lost:
            await asyncio.to_thread(idle.query, "select 1")
        assert lost.value.args[0] in (2006, 2013), "the server says nothing either"
    finally:
        idle.close()


async def test_a_connection_s_id_stays_through_a_switch(start_turnout: StartTurnout, mariadb_pair: MariaDBPair) -> None:
    """field-notes: KILL [QUERY] id, CONNECTION_ID()"""
    turnout = await start_turnout(two_addresses(mariadb_pair))
    door = Door(name="session", port=turnout.port)
    connection = await asyncio.to_thread(connect, door)
    try:
        before = await asyncio.to_thread(ask, connection, "select connection_id() + 0")
        assert (await turnout.switch("two"))["phase"] == "completed"
        assert before != await asyncio.to_thread(ask, connection, "select connection_id() + 0")
        assert await asyncio.to_thread(ask, connection, "select connection_id()") == ((connection.thread_id(),),)
        listed = {row[7]: row[0] for row in await asyncio.to_thread(ask, connection, "show processlist")}
        assert listed["show processlist"] == connection.thread_id()
    finally:
        connection.close()


async def test_who_was_left_on_an_engine_that_was_removed_since_is_killed_there(
    start_turnout: StartTurnout, mariadb_pair: MariaDBPair
) -> None:
    """field-notes: KILL [QUERY] id, CONNECTION_ID()"""
    turnout = await start_turnout(two_addresses(mariadb_pair))
    door = Door(name="session", port=turnout.port)
    left = await asyncio.to_thread(connect, door)
    other = await asyncio.to_thread(connect, door)

    def kill() -> None:
        with asleep(left, other) as came:
            ask(other, f"kill query {left.thread_id()}")
        assert came in ([1317], [((1, "marked"),)]), came
        assert ask(left, "select 1") == ((1,),)
        with asleep(left, other) as came:
            other.kill(left.thread_id())
        assert came in ([2013], [1317], [1927]), came
        with pytest.raises(pymysql.err.MySQLError):
            ask(left, "select 1")
        assert ask(other, "select 2") == ((2,),)

    try:
        await asyncio.to_thread(ask, left, "begin")
        assert (await turnout.switch("two"))["phase"] == "completed"
        async with turnout.control() as client:
            (await client.delete("/v1/services/app/engines/one")).raise_for_status()
        await asyncio.to_thread(kill)
    finally:
        left.close()
        other.close()
    assert "Traceback" not in turnout.text_of_log()
