"""Processor and memory of an engine's server, from where its config says: `[service.….engine.….load]`.

Each source answers a `Load`, in which None means that it is not known now. Nothing raises for what does not answer: an
engine that cannot be looked into must not hold up the others, nor the probes.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

import httpx
import msgspec
import psutil
import structlog

from proxy.config import EngineConfig, LoadConfig, parse_address
from proxy.engines.engine import Engine
from proxy.errors import EngineError

_log = structlog.get_logger("turnout.figures")

TIMEOUT_S: Final = 1.0
"""Longest time one look may take."""

EXPORTER_BYTES_MAX: Final = 8 * 1024 * 1024
"""Most bytes that are read of a node exporter's page; some hundred kilobytes are usual."""

TICKS_PERCENT: Final = 10.0
"""Processor time is counted in ticks of 10 ms, so a share may seem to be above the whole by so much."""

SEARCH_PAUSE_S: Final = 10.0
"""Between searches for a server's process that was not found: a search reads a good part of /proc."""


class Load(msgspec.Struct, frozen=True):
    """Percent, 0 to 100; None: not known."""

    cpu_percent: float | None = None
    memory_percent: float | None = None


UNKNOWN: Final = Load()


class LoadSource(ABC):
    """Where the load of one engine is read."""

    @abstractmethod
    async def read(self) -> Load:
        """The load since the last call (processor) and now (memory). Never raises for what does not answer."""

    async def close(self) -> None:  # noqa: B027  (most hold nothing open)
        """Let go of what is open."""


def load_source(config: EngineConfig, engine: Engine) -> LoadSource:
    """What the config asks for."""
    load = config.load
    match load.source:
        case "process":
            return _OfProcess(*parse_address(config.address), load.pid_file)
        case "node_exporter":
            return _OfNodeExporter(load.node_exporter)
        case "query":
            return _OfQueries(load, engine)
        case "none":
            return _Nothing()


class _Nothing(LoadSource):
    async def read(self) -> Load:
        return UNKNOWN


class _Processor:
    """Share of a processor's time between two readings of counters that only grow."""

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None

    def share(self, used_s: float, whole_s: float) -> float | None:
        """Percent; None the first time, and when the counters moved as they cannot: they are not all read in one moment, and
        a process that ends meanwhile takes its whole life's time out of the sum, and brings it back with its parent's."""
        before, self._before = self._before, (used_s, whole_s)
        if before is None or whole_s <= before[1] or used_s < before[0]:
            return None
        percent = 100.0 * (used_s - before[0]) / (whole_s - before[1])
        return min(100.0, percent) if percent < 100.0 + TICKS_PERCENT else None


class _OfProcess(LoadSource):
    """The server's process and all below it, as part of this host's processors and memory.

    Memory is what the processes have for themselves, and once what they share: PostgreSQL's all map the same buffers."""

    def __init__(self, host: str, port: int, pid_file: str) -> None:
        self._host = host
        self._port = port
        self._pid_file = pid_file
        self._process: psutil.Process | None = None
        self._processor = _Processor()
        self._search_at = 0.0

    async def read(self) -> Load:
        # /proc is read by a thread: with thousands of processes it takes milliseconds.
        return await asyncio.to_thread(self._read)

    def _read(self) -> Load:
        try:
            if self._process is None or not self._process.is_running():
                self._process, self._processor = self._find(), _Processor()
            if self._process is None:
                return UNKNOWN
            return self._measure(self._process)
        except psutil.Error:
            # It ended while it was looked at; the next look finds its successor.
            self._process = None
            return UNKNOWN

    def _measure(self, server: psutil.Process) -> Load:
        times = server.cpu_times()
        # A child's time is added to its parent's `children_…` when it has ended, so nothing is lost or counted twice.
        used_s = times.user + times.system + times.children_user + times.children_system
        memory = server.memory_info()
        own, shared = memory.rss - memory.shared, memory.shared
        for child in server.children(recursive=True):
            try:
                times, memory = child.cpu_times(), child.memory_info()
            except psutil.Error:
                continue
            used_s += times.user + times.system + times.children_user + times.children_system
            own += memory.rss - memory.shared
            shared = max(shared, memory.shared)
        whole_s = time.monotonic() * (psutil.cpu_count() or 1)
        return Load(
            cpu_percent=self._processor.share(used_s, whole_s),
            memory_percent=min(100.0, 100.0 * (own + shared) / psutil.virtual_memory().total),
        )

    def _find(self) -> psutil.Process | None:
        if time.monotonic() < self._search_at:
            return None
        self._search_at = time.monotonic() + SEARCH_PAUSE_S
        try:
            pid = self._pid_of_file() if self._pid_file else self._pid_of_port()
            return psutil.Process(pid) if pid is not None else None
        except (OSError, ValueError, psutil.Error) as error:
            _log.debug("the process of an engine was not found", port=self._port, error=str(error))
            return None

    def _pid_of_file(self) -> int:
        with Path(self._pid_file).open() as file:
            return int(file.readline(32))

    def _pid_of_port(self) -> int | None:
        """Who listens on the engine's address, if that is one of this host's. A server's children have its socket, too."""
        ours = {one.address for all_of_one in psutil.net_if_addrs().values() for one in all_of_one}
        meant = {
            str(found[4][0]) for found in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        } & ours
        listening = {
            one.pid
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
            and one.pid is not None
            and one.laddr.port == self._port
            and (one.laddr.ip in meant or (meant and one.laddr.ip in ("0.0.0.0", "::")))
        }
        return next((pid for pid in sorted(listening) if psutil.Process(pid).ppid() not in listening), None)


_SAMPLE: Final = re.compile(rb"^(node_\w+)(?:\{([^}]*)\})? ([0-9.eE+-]+)", re.MULTILINE)


class _OfNodeExporter(LoadSource):
    """The whole host, as a Prometheus node exporter tells it."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/metrics"
        self._processor = _Processor()
        self._client: httpx.AsyncClient | None = None

    async def read(self) -> Load:
        if self._client is None:
            self._client = httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S)
        page = bytearray()
        try:
            async with asyncio.timeout(TIMEOUT_S), self._client.stream("GET", self._url) as answer:
                if not answer.is_success:
                    return UNKNOWN
                async for chunk in answer.aiter_bytes():
                    page += chunk
                    if len(page) > EXPORTER_BYTES_MAX:
                        return UNKNOWN
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL):
            return UNKNOWN
        return self._parse(bytes(page))

    def _parse(self, page: bytes) -> Load:
        busy_s = whole_s = 0.0
        memory: dict[bytes, float] = {}
        for name, labels, value in _SAMPLE.findall(page):
            if name == b"node_cpu_seconds_total":
                whole_s += float(value)
                if b'mode="idle"' not in labels and b'mode="iowait"' not in labels:
                    busy_s += float(value)
            elif name in (b"node_memory_MemTotal_bytes", b"node_memory_MemAvailable_bytes"):
                memory[name] = float(value)
        total, free = (memory.get(b"node_memory_" + one + b"_bytes") for one in (b"MemTotal", b"MemAvailable"))
        return Load(
            cpu_percent=self._processor.share(busy_s, whole_s) if whole_s else None,
            memory_percent=100.0 * (1 - free / total) if total and free is not None else None,
        )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None


class _OfQueries(LoadSource):
    """What the server answers to the operator's own SQL."""

    def __init__(self, config: LoadConfig, engine: Engine) -> None:
        self._config = config
        self._engine = engine

    async def read(self) -> Load:
        return Load(await self._ask(self._config.cpu_query), await self._ask(self._config.memory_query))

    async def _ask(self, sql: str) -> float | None:
        if not sql:
            return None
        try:
            value = await self._engine.ask_number(sql, TIMEOUT_S)
        except EngineError as error:
            _log.debug("a query for the load of an engine failed", engine=self._engine.name, error=error.text)
            return None
        return value if value is not None and 0 <= value <= 100 else None
