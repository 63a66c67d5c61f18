"""Clients that mean harm, or are only slow, cost a bounded amount of memory for a bounded time, and nobody else notices."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from protocols.postgres.messages import build_query, build_ssl_request, build_startup
from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.certificate import write_certificate
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from proxy.worker import STRANGERS_MAX
from tests.e2e.doors import HOST, Door, client_sockets
from tests.e2e.talker import Talker
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

LOGIN_TIMEOUT_S = 2.0
CLIENTS_MAX = 3
STARTUP = build_startup("app", "app")
HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(100)
"""Half of a ClientHello."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnout(postgres_pair: PostgresPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Turnout]:
    """Offers TLS."""
    folder = tmp_path_factory.mktemp("strangers")
    key, certificate = write_certificate(folder)
    setup = Setup(
        protocol="postgresql",
        engines={"blue": postgres_pair.primary.address},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        databases=["app"],
        listener={
            "client_tls_sslmode": "prefer",
            "client_tls_cert_file": str(certificate),
            "client_tls_key_file": str(key),
        },
        top={"client_login_timeout_s": LOGIN_TIMEOUT_S, "max_client_conn": CLIENTS_MAX},
    )
    one = Turnout(setup, folder)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


@pytest.fixture
def door(turnout: Turnout) -> Door:
    return Door(name="session", port=turnout.port)


@pytest_asyncio.fixture(loop_scope="module")
async def bystander(door: Door) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(door.dsn(), autocommit=True) as connection:
        yield connection
        await _is_served(connection)


async def _is_served(connection: psycopg.AsyncConnection[Any]) -> None:
    async with asyncio.timeout(10):
        cursor = await connection.execute("select 42")
        assert await cursor.fetchone() == (42,)


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process has more sockets open than usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


BEGINNINGS = {
    "nothing": b"",
    "half a length": STARTUP[:3],
    "half a startup packet": STARTUP[:-5],
    "one client too many": STARTUP,
    "a wish for TLS": build_ssl_request(),
    "half a TLS hello": build_ssl_request() + HELLO,
    "half a direct TLS hello": HELLO,
}


async def test_logins_that_do_not_end_are_bounded_in_number_in_memory_and_in_time(
    turnout: Turnout, bystander: psycopg.AsyncConnection[Any], many_files: None
) -> None:
    worker = turnout.processes()[1]
    before = worker.memory_info().rss
    began = time.monotonic()
    strangers: list[socket.socket] = []
    try:
        # The last of these are not even answered.
        for number in range(STRANGERS_MAX + CLIENTS_MAX + 10):
            sock = socket.create_connection((HOST, turnout.port))
            sock.setblocking(False)
            strangers.append(sock)
            sock.send(list(BEGINNINGS.values())[number % len(BEGINNINGS)])
            if number % 100 == 0:
                await _is_served(bystander)
        await until(lambda: client_sockets(turnout) >= STRANGERS_MAX, "the strangers are there")
        await _is_served(bystander)
        assert client_sockets(turnout) <= STRANGERS_MAX + CLIENTS_MAX
        assert worker.memory_info().rss - before < 100 * 2**20
        # Those are refused, and have a while to read why.
        for sock in strangers[list(BEGINNINGS).index("one client too many") :: len(BEGINNINGS)]:
            sock.close()
        await until(lambda: client_sockets(turnout) == 1, "only the bystander is left", timeout_s=LOGIN_TIMEOUT_S + 20)
        assert time.monotonic() - began >= LOGIN_TIMEOUT_S
    finally:
        for sock in strangers:
            sock.close()
    door = Door(name="session", port=turnout.port)
    async with await psycopg.AsyncConnection.connect(door.dsn(), autocommit=True) as connection:
        await _is_served(connection)


async def test_a_login_a_byte_at_a_time_gets_no_more_time(turnout: Turnout) -> None:
    reader, writer = await asyncio.open_connection(HOST, turnout.port)
    began = time.monotonic()
    packet = iter(build_startup("app", "app", [("application_name", "x" * 5_000)]))

    async def drip() -> None:
        for byte in packet:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(LOGIN_TIMEOUT_S + 20):
        assert await reader.read() == b""
    assert time.monotonic() - began < LOGIN_TIMEOUT_S + 15
    assert next(packet, None) is not None, "it was not done"
    dripping.cancel()
    await asyncio.wait([dripping])
    writer.close()


@pytest.mark.parametrize("what", ["one long answer", "many requests"])
async def test_a_client_that_never_reads_stops_its_server_and_nobody_else(
    turnout: Turnout, bystander: psycopg.AsyncConnection[Any], postgres_pair: PostgresPair, what: str
) -> None:
    worker = turnout.processes()[1]
    talker = await Talker.connect(Door(name="session", port=turnout.port))
    before = worker.memory_info().rss
    long = "select repeat('x', 1000) from generate_series(1, {})"
    if what == "one long answer":
        await talker.send(build_query(long.format(10_000_000).encode()))
    else:
        # More than all sockets on the way take: in the end nobody reads what this client writes, either.
        talker.send_later(build_query(long.format(100).encode()) * 1_000_000)

    async def server_waits() -> bool:
        return bool(
            await postgres_pair.primary.fetchval(
                "select count(*) from pg_stat_activity where usename = 'app' and wait_event = 'ClientWrite'"
            )
        )

    await until(server_waits, "the server waits for its client", timeout_s=30)
    await _is_served(bystander)
    if what == "many requests":
        assert talker.unsent_bytes > 0
    assert worker.memory_info().rss - before < 20 * 2**20
    await talker.abort()
    await until(lambda: client_sockets(turnout) == 1, "it is gone")
