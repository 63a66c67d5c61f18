"""A server that breaks the protocol harms the session it serves, and nobody else; that session's client is told why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import pytest
import pytest_asyncio

from protocols.postgres.messages import build, build_query
from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.e2e.doors import Door
from tests.kit.between import Between, said
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

READY = build(b"Z", b"I")
UNCODED = build(b"E", b"SERROR\0Mno code\0\0")
ENDLESS = build(b"E", b"SERROR\0Mno end")
OWN_FAILURES = ("session failed", "sink failed", "link failed", "task failed", "Traceback")
"""Lines of the log that are never a stranger's fault."""

NONSENSE = {
    "an unknown message": build(b"\x01", b"what"),
    "a length below four": b"C\0\0\0\3",
    "a negative length": b"D\xff\xff\xff\xff",
    "a length no server sends": b"D\x7f\xff\xff\xff",
    "a ReadyForQuery without a status": build(b"Z"),
    "an unknown transaction status": build(b"Z", b"x"),
    "a client's message": build_query(b"select 1"),
    "a login in the middle": build(b"R", b"\0\0\0\0"),
    "an answer to what nobody asked": build(b"1"),
    "two ends of one answer": READY + READY,
    "a parameter without a value": build(b"S", b"TimeZone\0"),
    "a parameter of 16 MiB": b"S\x01\0\0\0x",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def between(postgres_pair: PostgresPair) -> AsyncIterator[Between]:
    made = Between(postgres_pair.primary.port)
    async with made.listening():
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["session", "transaction"])
async def turnout(
    request: pytest.FixtureRequest, between: Between, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Turnout]:
    setup = Setup(
        protocol="postgresql",
        engines={"blue": between.address},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD, SUPERUSER: PASSWORD},
        databases=["app", "postgres"],
        pool_mode=request.param,
        # Each session's backend goes with it in session mode: the next one begins with a login at the server.
        service={
            "server_lifetime_s": 0.0 if request.param == "session" else 3600.0,
            "server_connect_timeout_s": 1.0,
            "server_login_retry_s": 0.0,
        },
    )
    one = Turnout(setup, tmp_path_factory.mktemp(f"nonsense-{request.param}"))
    await one.start()
    try:
        yield one
    finally:
        await one.stop()
    assert not any(words in one.text_of_log() for words in OWN_FAILURES), one.text_of_log()


@pytest.fixture
def door(turnout: Turnout) -> Door:
    return Door(name=turnout.setup.pool_mode, port=turnout.port)


@pytest_asyncio.fixture(loop_scope="module")
async def bystander(turnout: Turnout) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Goes on whatever others are told. In session mode with the backend it had."""
    door = Door(name="bystander", port=turnout.port, user=SUPERUSER, database="postgres")
    async with _within_reason(), await _connect(door) as connection:
        pid = await _value(connection, "select pg_backend_pid()")
        yield connection
        now = await _value(connection, "select pg_backend_pid()")
        assert turnout.setup.pool_mode == "transaction" or now == pid


def _within_reason() -> asyncio.Timeout:
    """Nonsense must not make anybody wait."""
    return asyncio.timeout(20)


async def _connect(door: Door) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(door.dsn(), autocommit=True)


async def _value(connection: psycopg.AsyncConnection[Any], query: str) -> Any:
    return (await (await connection.execute(query.encode())).fetchone() or (None,))[0]


@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_ends_the_session_that_asked_with_08p01(
    door: Door, bystander: psycopg.AsyncConnection[Any], what: str
) -> None:
    async with _within_reason(), await _connect(door) as connection:
        with pytest.raises(psycopg.errors.ProtocolViolation, match="protocol violation by the server"):
            await connection.execute(said(NONSENSE[what]).encode())
        assert connection.broken
    async with _within_reason(), await _connect(door) as connection:
        assert await _value(connection, "select 1") == 1


async def test_what_a_server_says_unasked_may_come_in_pieces(
    door: Door, between: Between, bystander: psycopg.AsyncConnection[Any]
) -> None:
    """In transaction mode the proxy is about to ask what the statement has set, and waits for the end of it."""
    notice = build(b"N", b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0")
    heard: list[str | None] = []
    async with _within_reason(), await _connect(door) as connection:
        connection.add_notice_handler(lambda said: heard.append(said.message_primary))
        answer = build(b"C", b"SET\0") + READY + notice[:9]
        await connection.execute(f"set application_name to 'x' -- {said(answer)}".encode())
        between.say(notice[9:])
        assert await _value(connection, "select 1") == 1
    assert heard == ["hello"]


@pytest.mark.parametrize("error", [UNCODED, ENDLESS], ids=["no code", "no end"])
async def test_a_malformed_error_is_an_error_like_others(
    door: Door, bystander: psycopg.AsyncConnection[Any], error: bytes
) -> None:
    """field-notes: Oversized/partial startup packet, long password, missing SQLSTATE, length overflow"""
    async with _within_reason(), await _connect(door) as connection:
        with pytest.raises(psycopg.Error):
            await connection.execute(said(error + READY).encode())
        assert await _value(connection, "select 1") == 1


async def test_half_a_row_is_never_completed_by_words_of_the_proxy(
    door: Door, bystander: psycopg.AsyncConnection[Any]
) -> None:
    """The server ends in the middle of a value. What followed would be taken for the rest of it."""
    columns = build(b"T", b"\0\1v\0" + bytes(6) + b"\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0")
    half = build(b"D", b"\0\1\0\0\0\x14" + b"v" * 20)[:-15]
    async with _within_reason(), await _connect(door) as connection:
        with pytest.raises(psycopg.OperationalError, match="closed the connection unexpectedly"):
            await connection.execute(said(columns + half, then_end=True).encode())


LOGINS = {
    "an error without a SQLSTATE": (UNCODED, "no code"),
    "nonsense": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol"),
    "a length no server sends": (b"R\x7f\xff\xff\xff\0\0\0\0", "protocol"),
    "an authentication nobody knows": (build(b"R", b"\0\0\0\x63"), "99"),
    "silence": (b"", "within 1 s"),
    "no ReadyForQuery": (build(b"R", b"\0\0\0\0"), "within 1 s"),
}


@pytest.mark.parametrize("what", LOGINS)
@pytest.mark.parametrize("turnout", ["session"], indirect=True)
async def test_nonsense_during_a_servers_login_is_told_to_who_waits_for_it(
    door: Door, between: Between, bystander: psycopg.AsyncConnection[Any], what: str
) -> None:
    between.login_answer, words = LOGINS[what]
    try:
        with pytest.raises(asyncpg.PostgresError, match=words) as refused:
            await asyncpg.connect(door.dsn(), timeout=20)
        assert len(refused.value.sqlstate) == 5
        assert refused.value.sqlstate != "00000"
    finally:
        between.login_answer = None
    async with _within_reason(), await _connect(door) as connection:
        assert await _value(connection, "select 1") == 1


async def test_nonsense_behind_a_servers_login_ends_the_session_quietly(
    door: Door, between: Between, bystander: psycopg.AsyncConnection[Any]
) -> None:
    """It comes with the backend and is seen when that is handed over. The module's log must know of no failure."""
    between.behind_login = build(b"\x01")
    connections = []
    try:
        # As many as need a backend of their own, so that one is opened in either mode.
        with pytest.raises(psycopg.OperationalError):
            for _ in range(3):
                connections.append(await psycopg.AsyncConnection.connect(door.dsn()))
                await connections[-1].execute("select 1")
    finally:
        between.behind_login = b""
        for connection in connections:
            await connection.close()
    async with _within_reason(), await _connect(door) as connection:
        assert await _value(connection, "select 1") == 1


async def test_an_idle_backend_that_says_nonsense_serves_nobody(
    door: Door, between: Between, bystander: psycopg.AsyncConnection[Any]
) -> None:
    """In session mode its session ends; in transaction mode, where it is nobody's, no session notices."""
    async with _within_reason(), await _connect(door) as connection:
        await connection.execute("select 1")
        between.say(build(b"\x01"))
        if door.name == "transaction":
            assert await _value(connection, "select 2") == 2
        else:
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("select 2")


async def test_a_notice_reaches_an_idle_client_and_nobody_else(
    door: Door, between: Between, bystander: psycopg.AsyncConnection[Any]
) -> None:
    """In transaction mode an idle client has no server that could tell it anything.

    field-notes: NoticeResponse flood/`WARNING` ordering
    """
    heard: list[str | None] = []
    async with _within_reason(), await _connect(door) as connection:
        connection.add_notice_handler(lambda notice: heard.append(notice.message_primary))
        await connection.execute("select 1")
        between.say(build(b"N", b"SWARNING\0C01000\0Mfrom nowhere\0\0") * 3)
        if door.name == "session":
            # libpq reads what has come when it next reads at all.
            async def has_heard() -> bool:
                await connection.execute("select 1")
                return len(heard) == 3

            await until(has_heard, "the notices")
        assert await _value(connection, "select 2") == 2
    assert heard == ["from nowhere"] * (3 if door.name == "session" else 0)
