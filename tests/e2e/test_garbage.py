"""What is not the protocol ends its own connection, at once and without harm to others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio

from proxy.embedded import PostgresServer, Setup, Turnout, Workspace
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.e2e.doors import HOST, Door, client_sockets
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

STARTUP = b"\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00"


def packet(body: bytes) -> bytes:
    return (len(body) + 4).to_bytes(4, "big") + body


def message(tag: bytes, body: bytes) -> bytes:
    return tag + packet(body)


BEFORE_LOGIN = {
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(192),
    "a length of zero": b"\x00\x00\x00\x00",
    "a length of three": b"\x00\x00\x00\x03\x00\x03\x00\x00",
    "a negative length": b"\xff\xff\xff\xff\x00\x03\x00\x00",
    "a length of 2 GiB": b"\x7f\xff\xff\xff\x00\x03\x00\x00",
    "a startup packet over its bound": packet(b"\x00\x03\x00\x00" + b"user\x00" + b"a" * 20_000 + b"\x00\x00"),
    "an unknown protocol version": packet(b"\x00\x09\x00\x00user\x00app\x00\x00"),
    "no terminator": packet(b"\x00\x03\x00\x00user\x00app"),
    "no user": packet(b"\x00\x03\x00\x00database\x00app\x00\x00"),
    "a MySQL login": bytes.fromhex("2000000185a6ff0900000001210000") + bytes(40),
    "bytes behind an SSLRequest": packet(b"\x04\xd2\x16\x2f") + packet(b"\x04\xd2\x16\x2f") * 50,
    "a query before login": message(b"Q", b"select 1\x00"),
    "a cancel key nobody has": packet(b"\x04\xd2\x16\x2e" + b"\x00\x00\x00\x01" + b"\x00\x00\x00\x02"),
}

AFTER_LOGIN = {
    "an unknown tag": message(b"\x01", b""),
    "a length below four": b"Q\x00\x00\x00\x03",
    "a negative length": b"Q\xff\xff\xff\xff",
    "a second startup": packet(STARTUP),
    "a server's message": message(b"Z", b"I"),
    "a Parse without its end": message(b"P", b"name"),
    "a Bind that lies about its counts": message(b"B", b"\x00\x00\xff\xff\xff\xff"),
    "a Close of nothing known": message(b"C", b"X\x00"),
    "random bytes": random.Random(7).randbytes(5_000),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnout(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Turnout]:
    """Everybody is trusted, here and at the server, so that raw bytes reach a session without a password's proof."""
    with Workspace("turnout-test-") as workspace:
        hba = workspace.path / "hba.conf"
        hba.write_text("host all all 127.0.0.1/32 trust\n")
        workspace.give(hba)
        server = await PostgresServer.create(workspace, fsync=False, settings={"hba_file": str(hba)})
        await server.start()
        setup = Setup(
            protocol="postgresql",
            engines={"blue": server.address},
            admin_user=SUPERUSER,
            admin_password=PASSWORD,
            users={},
            auth_method="trust",
        )
        one = Turnout(setup, tmp_path_factory.mktemp("garbage"))
        try:
            await one.start()
            yield one
        finally:
            await one.stop()
            await server.stop("immediate")


@pytest_asyncio.fixture
async def bystander(turnout: Turnout) -> AsyncIterator[psycopg.AsyncConnection[tuple[int]]]:
    """A client that works on whatever others send."""
    door = Door(name="session", port=turnout.port, user="postgres", database="postgres")
    async with await psycopg.AsyncConnection.connect(door.dsn(), autocommit=True) as connection:
        await connection.execute("select 1")
        yield connection
        cursor = await connection.execute("select 42")
        assert await cursor.fetchone() == (42,)


async def _answer(turnout: Turnout, data: bytes, *, logs_in: bool, sends_end: bool = True) -> bytes:
    """All that is answered until the connection ends; a connection that does not end fails the test."""
    reader, writer = await asyncio.open_connection(HOST, turnout.port)
    try:
        async with asyncio.timeout(20):
            if logs_in:
                writer.write(packet(STARTUP))
                while await _tag(reader) != b"Z":
                    pass
            writer.write(data)
            if sends_end:
                writer.write_eof()
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def _tag(reader: asyncio.StreamReader) -> bytes:
    tag = await reader.readexactly(1)
    await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big") - 4)
    return tag


@pytest.mark.parametrize("what", BEFORE_LOGIN)
async def test_garbage_before_the_login_ends_its_connection_only(
    turnout: Turnout, bystander: psycopg.AsyncConnection[tuple[int]], what: str
) -> None:
    answer = await _answer(turnout, BEFORE_LOGIN[what], logs_in=False)
    assert len(answer) < 2_000


@pytest.mark.parametrize("what", AFTER_LOGIN)
async def test_garbage_after_the_login_ends_its_connection_only(
    turnout: Turnout, bystander: psycopg.AsyncConnection[tuple[int]], what: str
) -> None:
    await _answer(turnout, AFTER_LOGIN[what], logs_in=True)


@pytest.mark.parametrize("what", ["a length below four", "a negative length", "an unknown tag", "a server's message"])
async def test_a_broken_rule_is_answered_with_08p01(
    turnout: Turnout, bystander: psycopg.AsyncConnection[tuple[int]], what: str
) -> None:
    answer = await _answer(turnout, AFTER_LOGIN[what], logs_in=True, sends_end=False)
    assert b"C08P01\x00" in answer


async def test_connections_that_break_off_anywhere_leave_nothing_behind(
    turnout: Turnout, bystander: psycopg.AsyncConnection[tuple[int]]
) -> None:
    whole = packet(STARTUP) + message(b"Q", b"select 1\x00")

    async def cut(at: int) -> None:
        _, writer = await asyncio.open_connection(HOST, turnout.port)
        writer.write(whole[:at])
        writer.close()
        await writer.wait_closed()

    for _ in range(5):
        for at in range(len(whole)):
            await cut(at)
    await until(lambda: client_sockets(turnout) == 1, "only the bystander's socket is open", timeout_s=20)


async def test_a_message_announced_and_never_sent_costs_no_memory(
    turnout: Turnout, bystander: psycopg.AsyncConnection[tuple[int]]
) -> None:
    worker = turnout.processes()[1]
    before = worker.memory_info().rss
    writers = []
    for _ in range(20):
        reader, writer = await asyncio.open_connection(HOST, turnout.port)
        writer.write(packet(STARTUP))
        while await _tag(reader) != b"Z":
            pass
        # A Parse of 1 GB: it has to be understood, but nothing of it has come.
        writer.write(b"P" + (1_000_000_000).to_bytes(4, "big") + b"name\x00select")
        await writer.drain()
        writers.append(writer)
    cursor = await bystander.execute("select 1")
    assert await cursor.fetchone() == (1,)
    assert worker.memory_info().rss - before < 50_000_000
    for writer in writers:
        writer.close()
