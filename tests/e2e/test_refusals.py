"""Who is refused is told so with the protocol's own code and a text that helps; nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest
import pytest_asyncio

from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.e2e.doors import HOST, Door
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]


def _setup(address: str, **service: object) -> Setup:
    return Setup(
        protocol="postgresql",
        engines={"blue": address},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD, "stranger": PASSWORD},
        databases=["app", "nowhere"],
        service=service,
    )


async def _refusal(port: int, **changes: str) -> tuple[str | None, str]:
    """SQLSTATE and message that a client which cannot log in is told."""
    words = {"host": HOST, "user": "app", "password": PASSWORD, "dbname": "app", "sslmode": "disable", **changes}
    try:
        connection = await psycopg.AsyncConnection.connect(port=port, connect_timeout=20, **words)  # type: ignore[arg-type]  # words are all str
    except psycopg.OperationalError as error:
        # libpq has no SQLSTATE of a refused login but in the text that `verbosity` shows; psycopg keeps the message.
        return error.sqlstate, str(error)
    await connection.close()
    raise AssertionError("the login succeeded")


async def _raw_refusal(port: int, user: str, database: str) -> dict[str, str]:
    """Fields of the ErrorResponse that answers a startup packet."""
    reader, writer = await asyncio.open_connection(HOST, port)
    body = b"\x00\x03\x00\x00" + f"user\0{user}\0database\0{database}\0\0".encode()
    writer.write((len(body) + 4).to_bytes(4, "big") + body)
    try:
        async with asyncio.timeout(20):
            while True:
                tag = await reader.readexactly(1)
                content = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big") - 4)
                if tag == b"E":
                    return {part[:1].decode(): part[1:].decode() for part in content.split(b"\0") if part}
                assert tag == b"R", tag
    finally:
        writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnout(postgres_pair: PostgresPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Turnout]:
    one = Turnout(_setup(postgres_pair.primary.address), tmp_path_factory.mktemp("refusals"))
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


async def test_a_wrong_password_and_an_unknown_user_are_told_the_same(turnout: Turnout) -> None:
    _, wrong = await _refusal(turnout.port, password="wrong")
    _, unknown = await _refusal(turnout.port, user="nobody")
    assert 'password authentication failed for user "app"' in wrong
    assert 'password authentication failed for user "nobody"' in unknown


async def test_an_unknown_database_is_3d000(turnout: Turnout) -> None:
    fields = await _raw_refusal(turnout.port, "app", "elsewhere")
    assert fields["C"] == "3D000"
    assert fields["S"] == "FATAL"
    assert "elsewhere" in fields["M"]


async def test_pools_that_nobody_uses_are_forgotten(turnout: Turnout) -> None:
    """Clients may come with any number of names."""
    async with httpx.AsyncClient(base_url=turnout.control_url) as control:

        async def pools() -> list[str]:
            text = (await control.get("/metrics")).text
            return [line for line in text.splitlines() if line.startswith("turnout_pool_backends{")]

        async def is_counted() -> bool:
            return any(
                'database="app"' in line and 'state="in_use"' in line and line[-4:] == " 1.0" for line in await pools()
            )

        async def is_forgotten() -> bool:
            return not any('database="nowhere"' in line for line in await pools())

        await _refusal(turnout.port, dbname="nowhere")
        async with await psycopg.AsyncConnection.connect(Door(name="session", port=turnout.port).dsn()):
            await until(is_counted, "a pool that was made later is known")
            await until(is_forgotten, "nobody uses the other")
            assert await is_counted(), "one that has backends stays"


async def test_a_database_the_engine_does_not_have_is_told_as_the_engine_tells_it(turnout: Turnout) -> None:
    _, text = await _refusal(turnout.port, dbname="nowhere")
    assert 'database "nowhere" does not exist' in text


async def test_a_user_the_engine_does_not_have_is_refused(turnout: Turnout) -> None:
    _, text = await _refusal(turnout.port, user="stranger")
    assert "stranger" in text


async def test_refused_clients_leave_the_others_alone(turnout: Turnout) -> None:
    door = Door(name="session", port=turnout.port)
    async with await psycopg.AsyncConnection.connect(door.dsn(), autocommit=True) as connection:
        for _ in range(20):
            await _refusal(turnout.port, password="wrong")
            cursor = await connection.execute("select 1")
            assert await cursor.fetchone() == (1,)


async def test_an_engine_that_is_down_is_57p03(start_turnout: StartTurnout, unused_port: int) -> None:
    setup = _setup(f"{HOST}:{unused_port}", server_connect_timeout_s=2.0, query_wait_timeout_s=2.0)
    setup.auth_method = "trust"
    setup.users = {}
    turnout = await start_turnout(setup)
    fields = await _raw_refusal(turnout.port, "app", "app")
    assert fields["C"] == "57P03"
    assert fields["M"]


async def test_a_full_pool_is_53300_after_the_wait(postgres_pair: PostgresPair, start_turnout: StartTurnout) -> None:
    turnout = await start_turnout(_setup(postgres_pair.primary.address, pool_size=1, query_wait_timeout_s=0.5))
    door = Door(name="session", port=turnout.port)
    async with await psycopg.AsyncConnection.connect(door.dsn()) as first:
        await first.execute("select 1")
        with pytest.raises(psycopg.OperationalError) as refused:
            async with await psycopg.AsyncConnection.connect(door.dsn(), connect_timeout=20) as second:
                await second.execute("select 1")
        assert refused.value.sqlstate in ("53300", None)
        assert "pool" in str(refused.value)
        await first.execute("select 1")
    # The place is free again.
    async with await psycopg.AsyncConnection.connect(door.dsn(), connect_timeout=20) as third:
        await third.execute("select 1")


async def test_more_clients_than_allowed_are_53300(postgres_pair: PostgresPair, start_turnout: StartTurnout) -> None:
    setup = _setup(postgres_pair.primary.address)
    setup.top = {"max_client_conn": 2}
    turnout = await start_turnout(setup)
    door = Door(name="session", port=turnout.port)
    async with (
        await psycopg.AsyncConnection.connect(door.dsn()) as first,
        await psycopg.AsyncConnection.connect(door.dsn()),
    ):
        fields = await _raw_refusal(turnout.port, "app", "app")
        assert fields["C"] == "53300"
        await first.execute("select 1")


async def test_limits_hold_for_all_workers_together(postgres_pair: PostgresPair, start_turnout: StartTurnout) -> None:
    setup = _setup(postgres_pair.primary.address, pool_size=2, query_wait_timeout_s=0.5, client_idle_timeout_s=0.5)
    setup.workers = 2
    setup.top = {"max_client_conn": 3}
    turnout = await start_turnout(setup)
    door = Door(name="session", port=turnout.port)
    connections = [await psycopg.AsyncConnection.connect(door.dsn()) for _ in range(2)]
    for connection in connections:
        # In a transaction they may be idle for as long as they like.
        await connection.execute("select 1")

    async def has_left() -> bool:
        return len(await turnout.get("/v1/sessions")) == 2

    for _ in range(4):
        # Whichever worker it reaches.
        with pytest.raises(psycopg.OperationalError, match="pool"):
            await psycopg.AsyncConnection.connect(door.dsn(), connect_timeout=20)
        await until(has_left, "the one that was refused is counted no more")
    await connections[0].commit()
    with pytest.raises(psycopg.errors.IdleSessionTimeout):
        async with asyncio.timeout(20):
            while True:
                await asyncio.sleep(2)
                await connections[0].execute("select 1")
    await connections[1].execute("select 1")
    for connection in connections:
        await connection.close()


async def test_in_transaction_mode_a_full_pool_makes_clients_wait_their_turn(
    postgres_pair: PostgresPair, start_turnout: StartTurnout
) -> None:
    setup = _setup(postgres_pair.primary.address, pool_size=2)
    setup.pool_mode = "transaction"
    turnout = await start_turnout(setup)
    door = Door(name="transaction", port=turnout.port)

    async def one(number: int) -> None:
        async with await psycopg.AsyncConnection.connect(door.dsn(), connect_timeout=20) as connection:
            for _ in range(10):
                cursor = await connection.execute("select %s::int", (number,))
                assert await cursor.fetchone() == (number,)
                await connection.commit()

    await asyncio.gather(*(one(number) for number in range(12)))
    count = await postgres_pair.primary.fetchval("select count(*) from pg_stat_activity where usename = 'app'")
    assert count >= 1
