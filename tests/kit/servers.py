"""Fixtures: real servers. A pair lives as long as the test session (starting one takes seconds); a test that changes
roles gives the pair back as it was, or takes one of its own (`fresh_postgres_pair`).

Server objects keep no connection, so tests of any event loop may use them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
import pytest_asyncio

from proxy.embedded import BinaryMissing, MariaDBPair, MySQLPair, PostgresPair, PostgresServer, Workspace, free_port
from proxy.embedded.fetch_mysql import fetch
from proxy.embedded.postgres import wheel_bin

Pair = TypeVar("Pair", PostgresPair, MariaDBPair, MySQLPair)

NICENESS = 10
"""Servers of tests leave the processor to what is tested."""


@asynccontextmanager
async def _closing(pair: Pair) -> AsyncIterator[Pair]:
    try:
        yield pair
    finally:
        await pair.close()


@asynccontextmanager
async def postgres_pair_alone() -> AsyncIterator[PostgresPair]:
    """Primary and standby, account app/secret with database app; superuser postgres/secret."""
    async with _closing(await PostgresPair.create(fsync=False, niceness=NICENESS)) as pair:
        yield pair


@asynccontextmanager
async def mariadb_pair_alone() -> AsyncIterator[MariaDBPair]:
    """Primary and GTID replica: root, turnout (admin), app with database app, all with password secret."""
    async with _closing(await MariaDBPair.create(durable=False, niceness=NICENESS)) as pair:
        yield pair


async def have_mysql() -> None:
    """Real MySQL is there. Skips, loudly, only if its packages cannot be fetched on this machine."""
    try:
        await asyncio.to_thread(fetch)
    except BinaryMissing as error:
        if sys.__stderr__ is not None:
            # Past pytest's capturing: a run without MySQL should not look like one with it.
            sys.__stderr__.write(f"\n*** no test runs against real MySQL: {error.text}\n")
        pytest.skip(f"no real MySQL: {error.text}")


@asynccontextmanager
async def mysql_pair_alone() -> AsyncIterator[MySQLPair]:
    """The same with real MySQL."""
    await have_mysql()
    async with _closing(await MySQLPair.create(durable=False, niceness=NICENESS)) as pair:
        yield pair


class LogicalPair:
    """Two PostgreSQL servers of different versions, kept equal by logical replication: the first publishes, the second
    subscribes."""

    def __init__(self, workspace: Workspace, primary: PostgresServer, standby: PostgresServer) -> None:
        self.workspace = workspace
        self.primary = primary
        self.standby = standby

    def servers(self) -> tuple[PostgresServer, PostgresServer]:
        return self.primary, self.standby


LOGICAL_SCHEMA = """
create table orders (id bigint generated always as identity primary key, note text);
create sequence tickets increment 10;
grant all on orders to app;
"""


@asynccontextmanager
async def logical_pair_alone() -> AsyncIterator[LogicalPair]:
    """PostgreSQL 16 and 18, both with `LOGICAL_SCHEMA` in database app; account app/secret, superuser postgres/secret."""
    with Workspace("turnout-logical-", niceness=NICENESS) as place:
        blue, green = await asyncio.gather(
            PostgresServer.create(place, "blue", bin_dir=wheel_bin(16), fsync=False),
            PostgresServer.create(place, "green", fsync=False),
        )
        try:
            await asyncio.gather(blue.start(), green.start())
            for server in (blue, green):
                await server.execute("create role app login password 'secret'")
                await server.execute("create database app owner app")
                await server.execute(LOGICAL_SCHEMA, database="app")
            await blue.execute("create publication everything for all tables", database="app")
            await green.execute(
                f"create subscription from_blue connection 'host=127.0.0.1 port={blue.port} user=postgres "
                "password=secret dbname=app' publication everything",
                database="app",
            )
            yield LogicalPair(place, blue, green)
        finally:
            await asyncio.gather(blue.stop("immediate"), green.stop("immediate"))


@pytest.fixture
def unused_port() -> int:
    return free_port()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_pair() -> AsyncIterator[PostgresPair]:
    """Shared: see above."""
    async with postgres_pair_alone() as pair:
        yield pair


@pytest_asyncio.fixture
async def fresh_postgres_pair() -> AsyncIterator[PostgresPair]:
    """A pair for one test, which may do anything to it."""
    async with postgres_pair_alone() as pair:
        yield pair


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server(postgres_pair: PostgresPair) -> PostgresServer:
    """The primary of the shared pair at the time of the first use; for tests that only need one server."""
    return postgres_pair.primary


@pytest_asyncio.fixture
async def workspace() -> AsyncIterator[Workspace]:
    """A temporary folder for servers and for a Turnout."""
    with Workspace("turnout-test-", niceness=NICENESS) as place:
        yield place


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mariadb_pair() -> AsyncIterator[MariaDBPair]:
    """Shared."""
    async with mariadb_pair_alone() as pair:
        yield pair


@pytest_asyncio.fixture
async def fresh_mariadb_pair() -> AsyncIterator[MariaDBPair]:
    """A pair for one test, which may do anything to it."""
    async with mariadb_pair_alone() as pair:
        yield pair


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mysql_pair() -> AsyncIterator[MySQLPair]:
    """Shared."""
    async with mysql_pair_alone() as pair:
        yield pair
