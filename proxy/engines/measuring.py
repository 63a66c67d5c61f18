"""Fills the stream of figures, once a second: asks the workers, the engines and their load sources, all at once.

The shell around `figures`. An engine that does not answer leaves holes in its own figures only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from proxy import ipc
from proxy.clock import Clock
from proxy.config import EngineConfig, ServiceConfig
from proxy.engines.engine import Engine, EngineState
from proxy.engines.figures import EngineKey, Second, Stream, WireCounts, WireDifferences
from proxy.engines.load import UNKNOWN, Load, LoadSource, load_source
from proxy.errors import EngineError


class Measurer:
    """One for the life of a supervisor."""

    def __init__(
        self,
        stream: Stream,
        clock: Clock,
        ask_workers: Callable[[], Awaitable[list[ipc.WorkerFigures]]],
        last_probe: Callable[[str, str], EngineState | None],
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._ask_workers = ask_workers
        self._last_probe = last_probe
        self._wire = WireDifferences()
        self._loads: dict[EngineKey, tuple[EngineConfig, LoadSource]] = {}
        self._looked_ns = clock.now_ns()

    async def look(self, services: Mapping[str, ServiceConfig], engines: Mapping[str, Mapping[str, Engine]]) -> None:
        """One second of every engine. Takes as long as the slowest answer, a second or so at most."""
        here = {
            (service, name): (services[service].engine[name], engine)
            for service, of_one in engines.items()
            for name, engine in of_one.items()
            if name in services[service].engine
        }
        await self._forget({key for key in self._loads if key not in here})
        asked = asyncio.gather(*(self._ask(key, config, engine) for key, (config, engine) in here.items()))
        answers, told = await asyncio.gather(self._ask_workers(), asked)
        now_ns, wall = self._clock.now_ns(), self._clock.wall()
        took_s, self._looked_ns = (now_ns - self._looked_ns) / 1e9, now_ns
        new = self._wire.take(answers)
        for key, (connections, load) in zip(here, told, strict=True):
            probed = self._last_probe(*key)
            self._stream.add(
                key,
                Second(
                    at_ns=now_ns,
                    wall=wall,
                    took_s=took_s,
                    wire=new.get(key, WireCounts()) if answers else None,
                    is_available=probed.is_reachable if probed is not None else None,
                    connections=connections,
                    cpu_percent=load.cpu_percent,
                    memory_percent=load.memory_percent,
                ),
            )
        self._stream.keep(here)

    async def _ask(self, key: EngineKey, config: EngineConfig, engine: Engine) -> tuple[int | None, Load]:
        probed = self._last_probe(*key)
        if probed is None or not probed.is_reachable:
            # Not asked in vain each second; its host may still tell of itself.
            return None, await self._load(key, config, engine) if config.load.source != "query" else UNKNOWN
        try:
            connections = await engine.connections()
        except EngineError:
            connections = None
        return connections, await self._load(key, config, engine)

    async def _load(self, key: EngineKey, config: EngineConfig, engine: Engine) -> Load:
        known = self._loads.get(key)
        if known is None or known[0] != config:
            if known is not None:
                await known[1].close()
            known = self._loads[key] = (config, load_source(config, engine))
        return await known[1].read()

    async def _forget(self, keys: set[EngineKey]) -> None:
        for key in keys:
            await self._loads.pop(key)[1].close()

    async def close(self) -> None:
        """Let go of what the load sources hold open."""
        await self._forget(set(self._loads))
