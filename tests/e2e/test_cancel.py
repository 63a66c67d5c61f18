"""Cancel requests at any moment: they hit the query they were meant for, or nothing."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest

from protocols.postgres.messages import build_cancel_request
from proxy.embedded import PostgresPair, Setup
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.e2e.doors import HOST, Door
from tests.kit.turnouts import StartTurnout

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]


async def test_a_cancel_never_hits_another_session_nor_what_the_proxy_asks(
    postgres_pair: PostgresPair, start_turnout: StartTurnout
) -> None:
    """Two sessions share one backend. After each statement of the first the proxy asks the backend what it changed,
    and then the second has its turn; cancels for the first come all the time.

    field-notes: CancelRequest races
    field-notes: Cancel while proxy is setting GUCs
    """
    setup = Setup(
        protocol="postgresql",
        engines={"blue": postgres_pair.primary.address},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        databases=["app"],
        pool_mode="transaction",
        service={"pool_size": 1},
    )
    turnout = await start_turnout(setup)
    door = Door(name="transaction", port=turnout.port)
    target = await asyncpg.connect(door.dsn(), statement_cache_size=0)
    other = await asyncpg.connect(door.dsn(), statement_cache_size=0)
    key = build_cancel_request(target.get_server_pid(), target._protocol.backend_secret.to_bytes(4, "big", signed=True))
    ends = time.monotonic() + 1.5
    cancelled = finished = answered = 0

    async def cancel() -> None:
        while time.monotonic() < ends:
            reader, writer = await asyncio.open_connection(HOST, turnout.port)
            writer.write(key)
            assert await reader.read() == b""
            writer.transport.abort()

    async def work() -> None:
        nonlocal cancelled, finished
        while time.monotonic() < ends:
            try:
                await target.execute("select set_config('app.told', '1', true), pg_sleep(0.002)")
                finished += 1
            except asyncpg.QueryCanceledError:
                cancelled += 1

    async def work_of_another() -> None:
        nonlocal answered
        while time.monotonic() < ends:
            # A QueryCanceledError here is what must not be.
            assert await other.fetchval("select 1 from pg_sleep(0.002)") == 1
            answered += 1

    await asyncio.gather(cancel(), work(), work_of_another())
    assert cancelled > 0
    assert finished > 0
    assert answered > 0
    assert await target.fetchval("select 1") == 1
    await target.close()
    await other.close()


async def test_the_process_id_a_client_is_told_is_that_of_its_backend(
    postgres_pair: PostgresPair, postgres_door: Door
) -> None:
    """In session mode; in transaction mode there is no such thing, and the number only serves to cancel.

    field-notes: Process id in BackendKeyData
    """
    connection = await asyncpg.connect(postgres_door.dsn())
    told = connection.get_server_pid()
    assert told > 0
    if postgres_door.name == "session":
        assert told == await connection.fetchval("select pg_backend_pid()")
    await connection.close()
