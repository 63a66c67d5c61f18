"""Pairs of this package's own: its tests look at every session of a server, and fence it. The shared pairs may have the
Turnout of another test at work on them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from proxy.embedded import MariaDBPair, MySQLPair, PostgresPair
from tests.kit.servers import NICENESS, mysql_can_be_had


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def postgres_pair() -> AsyncIterator[PostgresPair]:
    pair = await PostgresPair.create(fsync=False, niceness=NICENESS)
    try:
        yield pair
    finally:
        await pair.close()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def mariadb_pair() -> AsyncIterator[MariaDBPair]:
    pair = await MariaDBPair.create(durable=False, niceness=NICENESS)
    try:
        yield pair
    finally:
        await pair.close()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def mysql_pair() -> AsyncIterator[MySQLPair]:
    await mysql_can_be_had()
    pair = await MySQLPair.create(durable=False, niceness=NICENESS)
    try:
        yield pair
    finally:
        await pair.close()
