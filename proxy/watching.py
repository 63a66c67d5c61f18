"""Looks at the engines as long as Turnout serves: what they are (probes), how fresh, what they have to do (figures).

What was found last of each stands here; what follows from it is decided elsewhere: by the guard, the policies, the workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from proxy import ipc
from proxy.clock import Clock
from proxy.config import ServiceConfig
from proxy.engines.engine import Engine, EngineState
from proxy.engines.figures import EngineKey, Stream
from proxy.engines.freshness import Freshness
from proxy.engines.measuring import Measurer
from proxy.switch.guard import Guard
from proxy.switch.orchestrator import Orchestrator
from proxy.switch.views import EngineView, Event
from proxy.tasks import cancel_and_wait, spawn
from proxy.workers import Workers

FRESHNESS_INTERVAL_S: Final = 0.1
"""Between two looks at how fresh the engines are that reads may go to; services with rules only."""

MEASURE_INTERVAL_S: Final = 1.0
"""Between two seconds of the stream of figures, each of which the policies are judged by."""


class Watching:
    """All engines of all services."""

    def __init__(
        self,
        services: Mapping[str, ServiceConfig],
        engines: Mapping[str, Mapping[str, Engine]],
        switches: Orchestrator,
        guard: Guard,
        workers: Workers,
        clock: Clock,
        publish: Callable[[Event], None],
    ) -> None:
        """`engines` is the caller's, who adds and removes."""
        self.stream = Stream()
        """Figures of every engine."""
        self._services = services
        self._engines = engines
        self._switches = switches
        self._guard = guard
        self._workers = workers
        self._clock = clock
        self._publish = publish
        self._probed: dict[EngineKey, tuple[EngineState, float]] = {}
        self._probes: dict[EngineKey, asyncio.Task[None]] = {}
        self._others: list[asyncio.Task[None]] = []

    # --- life --------------------------------------------------------------------------------------------------------

    def begin(self, measured: Callable[[], None]) -> None:
        """Look from now on. `measured` is called after each second of figures."""
        for service, engines in self._engines.items():
            for engine in engines.values():
                self.add(service, engine)
        self._others = [spawn(self._measure(measured), name="measure engines")]
        self._others += [
            spawn(self._watch_freshness(name), name=f"freshness of {name}")
            for name, service in self._services.items()
            if service.route
        ]

    async def stop(self) -> None:
        """Look no more."""
        await cancel_and_wait(*self._probes.values(), *self._others)

    def reconfigure(self, services: Mapping[str, ServiceConfig]) -> None:
        """Of a reloaded config, or with other engines."""
        self._services = services

    def add(self, service: str, engine: Engine) -> None:
        """Probe an engine from now on."""
        self._probes[service, engine.name] = spawn(self._probe(service, engine), name=f"probe {service}.{engine.name}")

    def remove(self, service: str, name: str) -> asyncio.Task[None]:
        """Probe it no more, and forget it; one of the same name may be added at once. Returns the task that ends now."""
        probe = self._probes.pop((service, name))
        probe.cancel()
        self._probed.pop((service, name), None)
        return probe

    # --- what was found ----------------------------------------------------------------------------------------------

    def found(self, service: str, engine: str) -> EngineState | None:
        """By the last probe; None: there was none."""
        return self._probed.get((service, engine), (None, 0.0))[0]

    def views(self, service: str) -> list[EngineView]:
        """The engines of a service, for those who look."""
        active = self._switches.standing(service).active
        views = []
        for name, config in self._services[service].engine.items():
            state, probed_at = self._probed.get((service, name), (None, 0.0))
            views.append(
                EngineView(
                    name=name,
                    address=config.address,
                    is_active=name == active,
                    state=state,
                    probed_at=probed_at,
                    figures=self.stream.figures((service, name)),
                    deposed=self._guard.deposed(service, name),
                )
            )
        return views

    # --- looking, for ever -------------------------------------------------------------------------------------------

    async def _probe(self, service: str, engine: Engine) -> None:
        """What one engine is. The guard is told each time, and says when to look again."""
        while True:
            state = await engine.probe(self._guard.timeout_s(service))
            before = self.found(service, engine.name)
            self._probed[service, engine.name] = (state, self._clock.wall())
            if before is None or _essence(before) != _essence(state):
                self._publish(
                    Event(
                        kind="engine.changed",
                        at=self._clock.wall(),
                        service=service,
                        data={
                            "engine": engine.name,
                            "is_reachable": state.is_reachable,
                            "role": state.role.value if state.role else None,
                            "is_writable": state.is_writable,
                            "why": state.why,
                        },
                    )
                )
            self._guard.probed(service, engine.name, state)
            await self._guard.pause(service, engine.name)

    async def _watch_freshness(self, service: str) -> None:
        """Tell the workers how fresh the engines are that reads of a service may go to."""
        config = self._services[service]
        names = {name for rule in config.route for name in rule.to}
        freshness = Freshness(self._clock, is_one_server=config.replication == "none")
        while True:
            active = self._switches.standing(service).active
            engines = self._engines[service]
            readers = {name: (engines[name], self.found(service, name)) for name in names - {active} if name in engines}
            until_ns = await freshness.look(engines[active], readers, self.found(service, active))
            self._workers.tell_all(ipc.Fresh(service=service, until_ns=until_ns))
            await asyncio.sleep(FRESHNESS_INTERVAL_S)

    async def _measure(self, measured: Callable[[], None]) -> None:
        """A second of figures of all engines."""
        measurer = Measurer(self.stream, self._clock, self._workers.figures, self.found)
        try:
            while True:
                began_ns = self._clock.now_ns()
                await measurer.look(self._services, self._engines)
                measured()
                took_s = (self._clock.now_ns() - began_ns) / 1e9
                await asyncio.sleep(max(0.0, MEASURE_INTERVAL_S - took_s))
        finally:
            await measurer.close()


def _essence(state: EngineState) -> tuple[object, ...]:
    return (state.is_reachable, state.role, state.is_writable, state.is_replicating)
