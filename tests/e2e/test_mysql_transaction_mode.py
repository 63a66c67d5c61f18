"""What a MySQL or MariaDB session in transaction mode sets goes with it from backend to backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pymysql
import pytest
import pytest_asyncio
from pymysql.charset import Charset

from proxy.embedded import MariaDBPair, MySQLPair, Setup, Turnout
from tests.kit.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

CLIENTS = 6


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("mariadb_pair", marks=pytest.mark.mariadb, id="mariadb"),
        pytest.param("mysql_pair", marks=pytest.mark.mysql, id="mysql"),
    ],
)
def pair(request: pytest.FixtureRequest) -> MariaDBPair | MySQLPair:
    found: MariaDBPair | MySQLPair = request.getfixturevalue(request.param)
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnout(pair: MariaDBPair | MySQLPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Turnout]:
    """Two backends for everybody."""
    setup = Setup(
        protocol="mysql",
        engines={server.name: server.address for server in pair.servers()},
        admin_user="turnout",
        admin_password="secret",
        users={"app": "secret"},
        auth_method="caching_sha2_password" if isinstance(pair, MySQLPair) else "mysql_native_password",
        pool_mode="transaction",
        service={"pool_size": 2},
    )
    one = Turnout(setup, tmp_path_factory.mktemp("transaction"))
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


class Client:
    """PyMySQL blocks, so each has a thread of its own. It sets four variables at its login on MySQL: SET NAMES."""

    def __init__(self, turnout: Turnout, number: int) -> None:
        self.number = number
        self._thread = ThreadPoolExecutor(1)
        self._options = {"host": turnout.host, "port": turnout.port, "user": "app", "password": "secret"}
        self._connection: Any = None

    async def run(self, *statements: str) -> Any:
        """First row of the last."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, statements)

    def _run(self, statements: tuple[str, ...]) -> Any:
        if self._connection is None:
            self._connection = pymysql.connect(**self._options, database="app", autocommit=True)
        with self._connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchone()

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()


async def test_sessions_with_other_settings_share_backends_and_keep_their_settings(turnout: Turnout) -> None:
    clients = [Client(turnout, number) for number in range(CLIENTS)]
    asked = "select @@group_concat_max_len, @@time_zone, @@collation_connection, @@autocommit"
    await clients[5].run("set names latin1")
    collation = {5: "latin1_swedish_ci"}
    for client in clients:
        await client.run(
            f"set group_concat_max_len = {1000 + client.number}, time_zone = '+0{client.number}:00'",
            f"set autocommit = {client.number % 2}",
        )
    usual = (await clients[0].run("select @@collation_connection"))[0]

    async def works(client: Client) -> None:
        number = client.number
        expected = (1000 + number, f"+0{number}:00", collation.get(number, usual), number % 2)
        for _ in range(5):
            assert await client.run(asked) == expected

    for client in clients:
        await works(client)
    await asyncio.gather(*map(works, clients))
    sessions = await turnout.get("/v1/sessions")
    assert [one["pins"] for one in sessions] == [[]] * CLIENTS
    await asyncio.gather(*(client.close() for client in clients))


async def test_who_comes_later_finds_nobody_s_settings(turnout: Turnout) -> None:
    first, second = Client(turnout, 0), Client(turnout, 1)
    usual = await second.run("select @@sql_mode, @@time_zone")
    await first.run("set sql_mode = 'ANSI_QUOTES', time_zone = '+09:00'", "select 1")
    await first.close()
    third = Client(turnout, 2)
    for client in (second, third):
        assert await client.run("select @@sql_mode, @@time_zone") == usual
        await client.close()


@pytest.mark.parametrize("number", [45, 224, 255])
async def test_settings_are_taken_off_whatever_collation_a_login_names(
    turnout: Turnout, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """255 is that of MySQL's client 9.7, and unknown to MariaDB 10.11."""
    login = Charset(number, "utf8mb4", "the login's")
    monkeypatch.setattr(pymysql.connections, "charset_by_name", lambda _: login)
    first, second = Client(turnout, 0), Client(turnout, 1)
    usual = await first.run("select @@lock_wait_timeout, @@collation_connection")
    for _ in range(3):
        await first.run("set lock_wait_timeout = 7", "select 1")
        assert await second.run("select @@lock_wait_timeout, @@collation_connection") == usual
        await first.run("set lock_wait_timeout = default", "select 1")
    for client in (first, second):
        await client.close()


async def test_what_ties_a_session_to_its_backend_is_counted_and_shown(turnout: Turnout) -> None:
    client = Client(turnout, 0)
    await client.run("set time_zone = '+05:00'", "set @mine = 1")

    async def has_pins(pins: list[str]) -> bool:
        (session,) = await turnout.get("/v1/sessions")
        return bool(session["pins"] == pins)

    await until(lambda: has_pins(["user variables"]), "the tie is shown")
    await client.run("set @mine = null")
    await until(lambda: has_pins([]), "the session is free again")
    assert await client.run("select @@time_zone") == ("+05:00",)
    await client.close()
