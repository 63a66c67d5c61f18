"""Pairs of this package's own: its tests look at every session of a server, and fence it. The shared pairs may have the
Turnout of another test at work on them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from proxy.embedded import MariaDBPair, MySQLPair, PostgresPair
from tests.kit.servers import mariadb_pair_alone, mysql_pair_alone, postgres_pair_alone


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def postgres_pair() -> AsyncIterator[PostgresPair]:
    async with postgres_pair_alone() as pair:
        yield pair


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def mariadb_pair() -> AsyncIterator[MariaDBPair]:
    async with mariadb_pair_alone() as pair:
        yield pair


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def mysql_pair() -> AsyncIterator[MySQLPair]:
    async with mysql_pair_alone() as pair:
        yield pair
