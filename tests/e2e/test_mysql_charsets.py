"""A session's charsets and collations are those that it has without Turnout: with collations whose number does not fit into a
login, and of servers that do not hear what a login says of charsets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import pymysql
import pytest
import pytest_asyncio
from pymysql import _auth
from pymysql.charset import Charset
from pymysql.constants import COMMAND

from proxy.embedded import MariaDBServer, MySQLServer, Setup, Turnout, Workspace
from proxy.embedded.mysql import PASSWORD, MySqlFamilyServer
from tests.kit.servers import NICENESS, have_mysql

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

IGNORES_LOGINS: Final = (
    "--skip-character-set-client-handshake", "--character-set-server=latin2", "--collation-server=latin2_croatian_ci"
)  # fmt: skip

QUESTION: Final = (
    "select @@character_set_client, @@character_set_results, @@character_set_connection, @@collation_connection"
)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        pytest.param((MariaDBServer, ()), marks=pytest.mark.mariadb, id="mariadb"),
        pytest.param((MariaDBServer, IGNORES_LOGINS), marks=pytest.mark.mariadb, id="mariadb-ignores-logins"),
        pytest.param((MySQLServer, ()), marks=pytest.mark.mysql, id="mysql"),
    ],
)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[MySqlFamilyServer]:
    """One that these tests restart."""
    kind, options = request.param
    if kind is MySQLServer:
        await have_mysql()
    with Workspace("turnout-test-", niceness=NICENESS) as workspace:
        server = await kind.create(workspace, durable=False)
        server.options = options
        await server.start()
        try:
            yield server
        finally:
            await server.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["session", "transaction"])
async def turnout(
    request: pytest.FixtureRequest, server: MySqlFamilyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Turnout]:
    """Two engines that are two addresses of the server."""
    setup = Setup(
        protocol="mysql",
        engines={"one": server.address, "two": f"localhost:{server.port}"},
        admin_user="turnout",
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        auth_method="caching_sha2_password" if isinstance(server, MySQLServer) else "mysql_native_password",
        pool_mode=request.param,
        service={"replication": "none", "server_login_retry_s": 0.2},
    )
    one = Turnout(setup, tmp_path_factory.mktemp("charsets"))
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


class Connection(pymysql.connections.Connection):  # type: ignore[misc]  # it has no types
    """PyMySQL as a client that sets nothing by itself."""

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        """Its login has said it."""

    def change_user(self, collation: int) -> None:
        """COM_CHANGE_USER, to the same user and database."""
        plugin = self._auth_plugin_name
        scramble = _auth.scramble_native_password if "native" in plugin else _auth.scramble_caching_sha2
        proof = scramble(PASSWORD.encode(), self.salt)
        body = b"app\0" + bytes([len(proof)]) + proof + b"app\0" + collation.to_bytes(2, "little")
        self._execute_command(COMMAND.COM_CHANGE_USER, body + plugin.encode() + b"\0\0")
        answer = self._read_packet()
        if answer.is_auth_switch_request():
            answer.read_uint8()
            self._process_auth(answer.read_string(), answer)
        elif answer.is_extra_auth_data():
            _auth.caching_sha2_password_auth(self, answer)

    def look(self) -> object:
        with self.cursor() as cursor:
            cursor.execute(QUESTION)
            return cursor.fetchone()


@dataclass(frozen=True)
class Client:
    """How a client comes by its charsets."""

    login: int
    changed: tuple[int, ...] = ()
    """Collations of COM_CHANGE_USER, one after the other."""
    says: str = ""

    def connect(self, port: int, monkeypatch: pytest.MonkeyPatch) -> Connection:
        login = Charset(self.login, "utf8mb4", "the login's")
        with monkeypatch.context() as patch:
            patch.setattr(pymysql.connections, "charset_by_name", lambda _: login)
            connection = Connection(
                host="127.0.0.1", port=port, user="app", password=PASSWORD, database="app", autocommit=None
            )
        for number in self.changed:
            connection.change_user(number)
        if self.says:
            with connection.cursor() as cursor:
                cursor.execute(self.says)
        return connection


def clients(server: MySqlFamilyServer) -> list[Client]:
    mysql = isinstance(server, MySQLServer)
    high = "utf8mb4_ja_0900_as_cs" if mysql else "utf8mb4_uca1400_as_cs"
    plain = [Client(number) for number in (0, 8, 45, 46, 224, 255, 254)]
    # Known to MySQL, to MariaDB, and to nobody.
    changed = [Client(46, numbers) for numbers in ((303,), (2304,), (60_000,), (0,), (8,), (303, 46), (46, 2308))]
    said = [
        Client(45, says=says)
        for says in (
            f"set names utf8mb4 collate {high}", f"set collation_connection = {high}", "set names latin1",
            "set names utf8mb4", "set character_set_results = null", "set names utf8mb4 collate utf8mb4_general_ci",
        )
    ]  # fmt: skip
    more = [Client(46, (number,), "set lock_wait_timeout = 77") for number in (303, 2304)]
    more += [Client(46, (number,), "set names utf8mb4 collate utf8mb4_bin") for number in (303, 2304)]
    return plain + changed + said + more


async def test_charsets_are_those_of_a_client_without_turnout(
    server: MySqlFamilyServer, turnout: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the login, on a backend that served others, on the next engine, and after a crash."""
    kinds = clients(server)
    expected: dict[Client, object] = {}

    def direct() -> None:
        for client in kinds:
            connection = client.connect(server.port, monkeypatch)
            expected[client] = connection.look()
            connection.close()

    def enter() -> dict[Client, Connection]:
        return {client: client.connect(turnout.port, monkeypatch) for client in kinds}

    def leave(connections: dict[Client, Connection]) -> None:
        for connection in connections.values():
            connection.close()

    def look(connections: dict[Client, Connection]) -> Callable[[], dict[Client, object]]:
        # Twice, since in transaction mode others had the backends in between.
        return lambda: {client: (one.look(), one.look())[1] for client, one in connections.items()}

    await asyncio.to_thread(direct)
    for _ in range(2):
        # The second time their backends come from the pool.
        connections = await asyncio.to_thread(enter)
        assert await asyncio.to_thread(look(connections)) == expected
        await asyncio.to_thread(leave, connections)
    connections = await asyncio.to_thread(enter)
    for target in ("two", "one"):
        assert (await turnout.switch(target))["phase"] == "completed"
        assert await asyncio.to_thread(look(connections)) == expected
        assert await asyncio.to_thread(look(connections)) == expected
    await server.kill()
    await server.start()
    assert await asyncio.to_thread(look(connections)) == expected
    await asyncio.to_thread(leave, connections)
