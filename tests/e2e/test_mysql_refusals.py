"""MySQL: who is refused is told so with the right number, and garbage ends its own connection only."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Literal

import pymysql
import pytest

from protocols.mysql import constants as c
from protocols.mysql.messages import Response, build_response, command, packet
from proxy.embedded import MariaDBPair, Setup, Turnout
from proxy.embedded.mysql import PASSWORD
from tests.e2e.doors import HOST, Door, client_sockets
from tests.e2e.mysql_rules import ask, connect, refusal
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until

pytestmark = [pytest.mark.mariadb, pytest.mark.slow]


def _setup(address: str, **service: object) -> Setup:
    return Setup(
        protocol="mysql",
        engines={"blue": address},
        admin_user="turnout",
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        auth_method="mysql_native_password",
        databases=["app"],
        service=service,
    )


async def test_a_full_pool_is_1040_after_the_wait(mariadb_pair: MariaDBPair, start_turnout: StartTurnout) -> None:
    turnout = await start_turnout(_setup(mariadb_pair.primary.address, pool_size=1, query_wait_timeout_s=0.5))
    door = Door(name="session", port=turnout.port)

    def crowd() -> None:
        with closing(connect(door)) as first:
            ask(first, "select 1")
            with pytest.raises(pymysql.err.MySQLError) as refused, closing(connect(door)) as second:
                ask(second, "select 1")
            assert refused.value.args[0] == 1040
            assert "pool" in refused.value.args[1]
            assert ask(first, "select 1") == ((1,),)
        with closing(connect(door)) as third:
            assert ask(third, "select 1") == ((1,),)

    await asyncio.to_thread(crowd)


async def test_more_clients_than_allowed_are_1040(mariadb_pair: MariaDBPair, start_turnout: StartTurnout) -> None:
    setup = _setup(mariadb_pair.primary.address)
    setup.top = {"max_client_conn": 1}
    turnout = await start_turnout(setup)
    door = Door(name="session", port=turnout.port)

    def crowd() -> None:
        with closing(connect(door)) as first:
            assert refusal(door)[0] == 1040
            assert ask(first, "select 1") == ((1,),)

    await asyncio.to_thread(crowd)


async def test_an_engine_that_is_down_is_told_as_such(start_turnout: StartTurnout, unused_port: int) -> None:
    setup = _setup(f"{HOST}:{unused_port}", server_connect_timeout_s=1.0, query_wait_timeout_s=1.0)
    turnout = await start_turnout(setup)
    code, text = await asyncio.to_thread(refusal, Door(name="session", port=turnout.port))
    assert code == 2003
    assert "blue" in text or str(unused_port) in text


def header(size: int, sequence: int) -> bytes:
    return size.to_bytes(3, "little") + bytes([sequence])


BEFORE_LOGIN = {
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a PostgreSQL startup": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "an empty packet": header(0, 1),
    "a wrong sequence number": header(40, 7) + bytes(40),
    "a length of 16 MB": header(0xFF_FF_FF, 1) + bytes(5_000),
    "a login cut short": header(36, 1) + bytes.fromhex("85a6ff09") + bytes(32),
    "a login of ones": header(200, 1) + b"\xff" * 200,
    "a request for TLS nobody offered": header(32, 1) + bytes.fromhex("85aeff0900000001 2d") + bytes(23),
    "random bytes": random.Random(7).randbytes(5_000),
}

AFTER_LOGIN = {
    "an unknown command": header(1, 0) + b"\xee",
    "an empty command": header(0, 0),
    "a wrong sequence number": header(9, 5) + b"\x03select 1",
    "an Execute of nothing prepared": header(10, 0) + b"\x17\xff\xff\xff\x7f\x00\x01\x00\x00\x00",
    "an Execute cut short": header(3, 0) + b"\x17\x01\x00",
    "a Close cut short": header(2, 0) + b"\x19\x01",
    "a change of user cut short": header(4, 0) + b"\x11app",
    "a dump of the binary log": header(11, 0) + b"\x12\x04\x00\x00\x00\x00\x00\x01\x00\x00\x00",
    "random bytes": random.Random(8).randbytes(5_000),
}


@pytest.fixture
def bystander(mariadb_door: Door) -> Iterator[Any]:
    """A client that works on whatever others send."""
    with closing(connect(mariadb_door)) as connection:
        assert ask(connection, "select 1") == ((1,),)
        yield connection
        assert ask(connection, "select 42") == ((42,),)


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("what", BEFORE_LOGIN)
async def test_garbage_before_the_login_ends_its_connection_only(mariadb_door: Door, what: str) -> None:
    reader, writer = await asyncio.open_connection(HOST, mariadb_door.port)
    try:
        async with asyncio.timeout(20):
            await reader.readexactly(40)  # the greeting begins
            writer.write(BEFORE_LOGIN[what])
            writer.write_eof()
            assert len(await reader.read()) < 2_000
    except ConnectionResetError:
        pass  # it ended, with our bytes unread
    finally:
        writer.close()


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("what", AFTER_LOGIN)
def test_garbage_after_the_login_ends_its_connection_at_most(mariadb_door: Door, what: str) -> None:
    connection = connect(mariadb_door)
    raw = connection._sock
    try:
        raw.settimeout(20)
        raw.sendall(AFTER_LOGIN[what])
        raw.shutdown(1)  # no more from us: what is answered ends, too
        while raw.recv(65_536):
            pass
    except ConnectionError:
        pass  # it ended, with our bytes unread
    finally:
        raw.close()
        connection._sock = None


async def test_connections_that_break_off_anywhere_leave_nothing_behind(mariadb_turnout: Turnout) -> None:
    login = header(0x28, 1) + bytes.fromhex("85a60f0000000001 2d") + bytes(23) + b"app\0" + b"\0" + b"app\0"

    async def cut(at: int) -> None:
        _, writer = await asyncio.open_connection(HOST, mariadb_turnout.port)
        writer.write(login[:at])
        writer.close()
        await writer.wait_closed()

    for _ in range(5):
        for at in range(len(login)):
            await cut(at)
    await until(lambda: client_sockets(mariadb_turnout) == 0, "no client's socket is open", timeout_s=20)


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "cut"])
async def test_a_change_of_user_that_comes_with_the_login(
    mariadb_pair: MariaDBPair, start_turnout: StartTurnout, pool_mode: Literal["session", "transaction"], is_whole: bool
) -> None:
    """In one piece with it, while the session still waits for its first backend. It is the next login, or ends the session."""
    await mariadb_pair.primary.execute(
        "create user if not exists trusting@'%' identified by ''", "grant select on app.* to trusting@'%'"
    )
    setup = _setup(mariadb_pair.primary.address)
    setup.users, setup.auth_method, setup.pool_mode = {}, "trust", pool_mode
    turnout = await start_turnout(setup)
    reader, writer = await asyncio.open_connection(HOST, turnout.port)
    try:
        await _packet(reader)
        flags = (
            c.CLIENT_LONG_PASSWORD
            | c.CLIENT_PROTOCOL_41
            | c.CLIENT_TRANSACTIONS
            | c.CLIENT_SECURE_CONNECTION
            | c.CLIENT_CONNECT_WITH_DB
            | c.CLIENT_PLUGIN_AUTH
        )
        login = packet(build_response(Response(flags, 45, "trusting", b"", "app", "mysql_native_password"), ()), 1)
        change = b"trusting\0\0app\0\x2d\0mysql_native_password\0"
        writer.write(login + command(c.COM_CHANGE_USER, change if is_whole else b"trusting"))
        assert (await _packet(reader))[0] == c.OK
        if is_whole:
            assert (await _packet(reader))[0] == c.OK
            writer.write(command(c.COM_QUERY, b"select 7"))
            assert [(await _packet(reader)) for _ in range(5)][3] == b"\x017"
        else:
            assert (await reader.read()).endswith(b"a packet ends in the middle of a value")
    finally:
        writer.close()
    assert "session failed" not in turnout.text_of_log()
    with closing(
        await asyncio.to_thread(connect, Door("session", turnout.port, user="trusting", password=""))
    ) as other:
        assert await asyncio.to_thread(ask, other, "select 1") == ((1,),)


async def _packet(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        header = await reader.readexactly(4)
        return await reader.readexactly(int.from_bytes(header[:3], "little"))
