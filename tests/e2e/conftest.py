"""Fixtures: a Turnout of each pool mode before the shared servers, for tests that only pass through it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import pytest
import pytest_asyncio

from proxy.embedded import PostgresPair, Setup, Turnout
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
