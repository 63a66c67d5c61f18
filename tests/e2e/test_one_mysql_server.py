"""The same as test_one_server.py, for MariaDB: two engines that are two addresses of one server."""

from __future__ import annotations

import asyncio
import select

import pymysql
import pytest

from proxy.embedded import MariaDBPair, Setup
from tests.e2e.doors import Door
from tests.e2e.mysql_rules import connect
from tests.kit.turnouts import StartTurnout

pytestmark = [pytest.mark.mariadb, pytest.mark.slow]


async def test_a_sessions_own_idle_timeout_holds_however_often_it_is_moved(
    start_turnout: StartTurnout, mariadb_pair: MariaDBPair
) -> None:
    """Each backend it is given counts its idleness from the beginning, and none comes to the end."""
    turnout = await start_turnout(
        Setup(
            protocol="mysql",
            engines={"one": mariadb_pair.primary.address, "two": f"localhost:{mariadb_pair.primary.port}"},
            admin_user="turnout",
            admin_password="secret",
            users={"app": "secret"},
            auth_method="mysql_native_password",
            service={"replication": "none", "server_lifetime_s": 0.0},
            switch={"on_drain_expired": "leave", "drain_timeout_s": 0.05},
        )
    )
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
