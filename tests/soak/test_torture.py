"""The soak in short: some seconds of each server, with the faults that are quickly over. `make soak` has the rest."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from proxy.embedded import MariaDBPair, PostgresPair
from tests.soak.gap import Gap
from tests.soak.torture import torture
from tests.soak.world import World

SECONDS = 4.0
QUICK = (
    "switch", "killed worker", "killed supervisor", "reset", "cut", "swallowed", "frozen source", "cut in a switch",
)  # fmt: skip


@pytest.mark.postgresql
@pytest.mark.slow
async def test_postgresql_loses_and_doubles_nothing(fresh_postgres_pair: PostgresPair, tmp_path: Path) -> None:
    async with World.open("postgresql", fresh_postgres_pair, tmp_path) as world:
        verdict = await torture(world, seed=secrets.randbelow(10_000), seconds=SECONDS, faults=QUICK)
    assert verdict.complaints == [], f"seed {verdict.seed}"
    assert verdict.outcomes["acknowledged"] > 0


@pytest.mark.mariadb
@pytest.mark.slow
async def test_mariadb_loses_and_doubles_nothing(fresh_mariadb_pair: MariaDBPair, tmp_path: Path) -> None:
    async with World.open("mariadb", fresh_mariadb_pair, tmp_path, pool_mode="transaction") as world:
        verdict = await torture(world, seed=secrets.randbelow(10_000), seconds=SECONDS, faults=QUICK)
    assert verdict.complaints == [], f"seed {verdict.seed}"
    assert verdict.outcomes["acknowledged"] > 0


async def test_a_gap_cuts_at_the_byte_it_is_told() -> None:
    """The injector's own test: what came before the cut arrives, and nothing after it."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    gap = Gap("127.0.0.1", server.sockets[0].getsockname()[1])
    await gap.open()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", gap.port)
        writer.write(b"12345")
        assert await reader.readexactly(5) == b"12345"
        gap.swallow()
        writer.write(b"67")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(10), 0.1)
        gap.heal()
        assert await reader.readexactly(2) == b"67"
        gap.cut_after(1)
        writer.write(b"89")
        assert await _rest(reader) in (b"", b"8")
        writer.close()
    finally:
        await gap.close()
        server.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends, in whatever way."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
