from __future__ import annotations

import pymysql
import pytest

from proxy.embedded import MariaDBPair, MySQLPair
from proxy.embedded.mysql import MySqlFamilyServer

pytestmark = pytest.mark.slow


async def _there_and_back(pair: MariaDBPair | MySQLPair, fence: str, promote: tuple[str, ...]) -> None:
    await pair.primary.execute("create table if not exists app.written (written_by varchar(9))")
    for _ in range(2):
        await pair.primary.execute(fence)
        await pair.standby.wait_caught_up(pair.primary)
        await pair.standby.execute(*promote)
        await pair.standby.execute(f"insert into app.written values ('{pair.standby.name}')")
        assert await pair.swap() == "gtid"
        with pytest.raises(pymysql.err.OperationalError, match="read-only"):
            _write_as_app(pair.standby)
    assert await pair.standby.fetchval("select count(*) from app.written") == 2
    await pair.primary.execute("drop table app.written")


def _write_as_app(server: MySqlFamilyServer) -> None:
    connection = server.connect_blocking("app", user="app")
    try:
        connection.cursor().execute("insert into written values ('app')")
    finally:
        connection.close()


@pytest.mark.mariadb
async def test_a_mariadb_that_was_the_primary_comes_back_as_a_replica(mariadb_pair: MariaDBPair) -> None:
    await _there_and_back(
        mariadb_pair,
        "set global read_only = 1",
        ("stop slave", "reset slave all", "set global read_only = 0"),
    )


@pytest.mark.mysql
async def test_a_mysql_that_was_the_primary_comes_back_as_a_replica(mysql_pair: MySQLPair) -> None:
    await _there_and_back(
        mysql_pair,
        "set global super_read_only = 1",
        ("stop replica", "reset replica all", "set global super_read_only = 0", "set global read_only = 0"),
    )
