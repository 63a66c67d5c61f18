"""Processor and memory of a server, from each of the sources a config may name; unknown where nobody tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from proxy.config import EngineConfig, LoadConfig
from proxy.embedded import PostgresPair, PostgresServer, free_port
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from proxy.engines import PostgresEngine
from proxy.engines.load import EXPORTER_BYTES_MAX, UNKNOWN, Load, LoadSource, load_source

pytestmark = pytest.mark.postgresql


@pytest.fixture
def server(postgres_pair: PostgresPair) -> PostgresServer:
    return postgres_pair.primary


def _source(server: PostgresServer, address: str = "", **load: object) -> LoadSource:
    engine = PostgresEngine("one", server.address, user=SUPERUSER, password=PASSWORD)
    config = EngineConfig(address=address or server.address, load=LoadConfig(**load))  # type: ignore[arg-type]
    return load_source(config, engine)


@pytest.mark.parametrize("is_by_file", [True, False], ids=["pid file", "port"])
async def test_a_server_of_this_host_is_its_processes(server: PostgresServer, is_by_file: bool) -> None:
    pid_file = str(server.data / "postmaster.pid") if is_by_file else ""
    source = _source(server, source="process", pid_file=pid_file)
    first = await source.read()
    assert first.cpu_percent is None, "there is nothing to compare with yet"
    assert first.memory_percent is not None
    assert 0 < first.memory_percent < 100
    connection = await server.connect()
    try:
        await connection.execute("select count(*) from generate_series(1, 500000)")
        busy = await source.read()
    finally:
        await connection.close()
    assert busy.cpu_percent is not None
    assert 0 < busy.cpu_percent <= 100


async def test_who_listens_on_a_port_of_another_host_is_not_asked(server: PostgresServer) -> None:
    """192.0.2.1 is nobody's (RFC 5737); here somebody listens on the same port."""
    assert await _source(server, f"192.0.2.1:{server.port}", source="process").read() == UNKNOWN


async def test_a_process_that_is_gone_is_unknown(server: PostgresServer, tmp_path: Path) -> None:
    gone = next(pid for pid in range(2**22 - 1, 1, -1) if not psutil.pid_exists(pid))
    (tmp_path / "gone.pid").write_text(f"{gone}\n")
    (tmp_path / "words.pid").write_text("none\n")
    for name in ("gone.pid", "words.pid", "nothing.pid"):
        assert await _source(server, source="process", pid_file=str(tmp_path / name)).read() == UNKNOWN


PAGE = """\
# HELP node_cpu_seconds_total Seconds the CPUs spent in each mode.
node_cpu_seconds_total{{cpu="0",mode="idle"}} {idle}
node_cpu_seconds_total{{cpu="0",mode="iowait"}} 10
node_cpu_seconds_total{{cpu="0",mode="user"}} {user}
node_cpu_seconds_total{{cpu="1",mode="system"}} 1e+02
node_memory_MemAvailable_bytes 2.5e+09
node_memory_MemTotal_bytes 1e+10
"""


@asynccontextmanager
async def _exporter(pages: list[bytes]) -> AsyncIterator[str]:
    """Answers with one page after the other, and then with the last one for ever."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        page = pages.pop(0) if len(pages) > 1 else pages[0]
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(page) + page)
        writer.close()

    port = free_port()
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.close()


async def test_a_node_exporter_tells_of_its_whole_host(server: PostgresServer) -> None:
    pages = [PAGE.format(idle=idle, user=user).encode() for idle, user in ((100, 50), (130, 60))]
    async with _exporter(pages) as address:
        source = _source(server, source="node_exporter", node_exporter=address)
        assert await source.read() == Load(None, 75.0)
        assert await source.read() == Load(25.0, 75.0), "10 of 40 seconds more were not idle"
        assert await source.read() == Load(None, 75.0), "the counters did not move"
    assert await source.read() == UNKNOWN
    await source.close()


@pytest.mark.parametrize("page", [b"", b"nonsense\xff", b"node_cpu_seconds_total{", b"#" * (EXPORTER_BYTES_MAX + 1)])
async def test_a_page_that_tells_nothing_is_unknown(server: PostgresServer, page: bytes) -> None:
    async with _exporter([page]) as address:
        source = _source(server, source="node_exporter", node_exporter=address)
        assert await source.read() == UNKNOWN
        await source.close()


@pytest.mark.parametrize(
    ("cpu", "memory", "expected"),
    [
        ("select 12.5", "select 50", Load(12.5, 50.0)),
        ("select 12.5", "", Load(12.5, None)),
        ("select 101", "select -1", UNKNOWN),
        ("select null", "select 1 where false", UNKNOWN),
        ("select 'much'", "select no_such_column", UNKNOWN),
        ("select pg_sleep(60)", "select 7", Load(None, 7.0)),
    ],
)
async def test_a_query_tells_what_it_answers_and_nothing_else(
    server: PostgresServer, cpu: str, memory: str, expected: Load
) -> None:
    engine = PostgresEngine("one", server.address, user=SUPERUSER, password=PASSWORD)
    load = LoadConfig(source="query", cpu_query=cpu, memory_query=memory)
    source = load_source(EngineConfig(address=server.address, load=load), engine)
    try:
        assert await source.read() == expected
        state = await engine.probe()
        assert state.is_reachable, "probes have a connection of their own"
    finally:
        await engine.close()


async def test_nothing_is_known_where_nothing_is_named(server: PostgresServer) -> None:
    assert await _source(server).read() == UNKNOWN
