"""Fixtures: a Turnout of each pool mode before the shared servers, for tests that only pass through it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import pytest
import pytest_asyncio

from proxy.embedded import MariaDBPair, MySQLPair, PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.e2e.doors import Door

PoolMode = Literal["session", "transaction"]


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["session", "transaction"])
async def postgres_turnout(
    request: pytest.FixtureRequest, postgres_pair: PostgresPair, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Turnout]:
    """In session and in transaction mode; one for all tests that do not switch."""
    mode: PoolMode = request.param
    turnout = Turnout(
        Setup(
            protocol="postgresql",
            engines={"blue": postgres_pair.primary.address},
            admin_user=SUPERUSER,
            admin_password=PASSWORD,
            users={"app": PASSWORD, SUPERUSER: PASSWORD},
            pool_mode=mode,
            databases=["app", "postgres"],
        ),
        tmp_path_factory.mktemp(f"turnout-{mode}"),
    )
    await turnout.start()
    try:
        yield turnout
    finally:
        await turnout.stop()


@pytest.fixture
def postgres_door(postgres_turnout: Turnout) -> Door:
    """Through Turnout, as app/secret to database app."""
    return Door(name=postgres_turnout.setup.pool_mode, port=postgres_turnout.port)


@pytest.fixture
def postgres_direct(postgres_pair: PostgresPair) -> Door:
    """Past Turnout, to the same server: what is seen here is right."""
    return Door(name="direct", port=postgres_pair.primary.port)


def _mysql_setup(pair: MariaDBPair | MySQLPair, auth_method: str, pool_mode: PoolMode) -> Setup:
    return Setup(
        protocol="mysql",
        engines={"blue": pair.primary.address},
        admin_user="turnout",
        admin_password=PASSWORD,
        users={"app": PASSWORD, "stranger": PASSWORD},
        auth_method=auth_method,
        pool_mode=pool_mode,
        databases=["app", "nowhere"],
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["session", "transaction"])
async def mariadb_turnout(
    request: pytest.FixtureRequest, mariadb_pair: MariaDBPair, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Turnout]:
    """Before MariaDB, in session and in transaction mode; one for all tests that do not switch."""
    setup = _mysql_setup(mariadb_pair, "mysql_native_password", request.param)
    turnout = Turnout(setup, tmp_path_factory.mktemp(f"turnout-mariadb-{request.param}"))
    await turnout.start()
    try:
        yield turnout
    finally:
        await turnout.stop()


@pytest.fixture
def mariadb_door(mariadb_turnout: Turnout) -> Door:
    """Through Turnout to MariaDB, as app/secret to database app."""
    return Door(name=mariadb_turnout.setup.pool_mode, port=mariadb_turnout.port)


@pytest.fixture
def mariadb_direct(mariadb_pair: MariaDBPair) -> Door:
    """Past Turnout, to the same server."""
    return Door(name="direct", port=mariadb_pair.primary.port)


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["session", "transaction"])
async def mysql_turnout(
    request: pytest.FixtureRequest, mysql_pair: MySQLPair, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Turnout]:
    """Before real MySQL, with its own way to log in."""
    setup = _mysql_setup(mysql_pair, "caching_sha2_password", request.param)
    turnout = Turnout(setup, tmp_path_factory.mktemp(f"turnout-mysql-{request.param}"))
    await turnout.start()
    try:
        yield turnout
    finally:
        await turnout.stop()


@pytest.fixture
def mysql_door(mysql_turnout: Turnout) -> Door:
    """Through Turnout to real MySQL, as app/secret to database app."""
    return Door(name=mysql_turnout.setup.pool_mode, port=mysql_turnout.port)


@pytest.fixture
def mysql_direct(mysql_pair: MySQLPair) -> Door:
    """Past Turnout, to the same server."""
    return Door(name="direct", port=mysql_pair.primary.port)
