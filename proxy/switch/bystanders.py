"""Watches over the engines that do not serve: none of them may take writes.

*Deposed* is an engine that must not: a failover left it, or it was asked to be promoted and the promotion was given up. No
worker goes there (its epoch is over, or never began), and whenever a probe sees it take writes it is fenced: strangers
may know its address, and a promotion that hung may still end. It is reinstated once it replicates as a standby; one that
only says that it is a standby may be about to be none.

A *stray* is any other engine that was a standby of this service and is seen to take writes, twice in a row, while the active
engine takes them too: it has a life of its own since somebody promoted it. It is deposed as well; but where another tool
promotes standbys (`automatic = false`) it is only told of.
"""

from __future__ import annotations

import asyncio
import collections
import sqlite3
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from proxy.clock import Clock
from proxy.config import ServiceConfig
from proxy.engines.engine import Engine, EngineState, Role
from proxy.errors import EngineError
from proxy.switch.journal import Deposed, Journal
from proxy.switch.orchestrator import Orchestrator
from proxy.switch.views import Event
from proxy.tasks import cancel_and_wait, spawn

_log = structlog.get_logger("turnout.failover")

FENCE_TIMEOUT_S: Final = 5.0
"""How long an engine that was deposed may take to be fenced."""

SIGHTS: Final = 2
"""Looks in a row that make a stray: one may have begun before a switch and ended after it."""


class Bystanders:
    """All services. See the module."""

    def __init__(
        self,
        services: Mapping[str, ServiceConfig],
        engines: Mapping[str, Mapping[str, Engine]],
        orchestrator: Orchestrator,
        journal: Journal,
        clock: Clock,
        publish: Callable[[Event], None],
    ) -> None:
        self._services = dict(services)
        self._engines = engines
        self._orchestrator = orchestrator
        self._journal = journal
        self._clock = clock
        self._publish = publish
        self._deposed = {name: journal.deposed(name) for name in services}
        self._fencing: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._not_fenced: dict[tuple[str, str], str] = {}
        self._standbys: set[tuple[str, str]] = set()
        """Seen as such since Turnout began."""
        self._sights: collections.Counter[tuple[str, str]] = collections.Counter()

    def reconfigure(self, services: Mapping[str, ServiceConfig]) -> None:
        """Limits of a reloaded config."""
        self._services = dict(services)

    async def stop(self) -> None:
        """Fence nobody any more."""
        await cancel_and_wait(*self._fencing.values())

    async def settled(self, service: str, engine: str) -> None:
        """Nobody fences it any more. Who then has it promoted at once is not overtaken by its fence: while a switch uses an
        engine, it is left alone."""
        fencing = self._fencing.get((service, engine))
        if fencing is not None and not fencing.done():
            await asyncio.wait([fencing])

    def deposed(self, service: str, engine: str) -> Deposed | None:
        """It must not take writes."""
        return self._deposed[service].get(engine)

    def read_again(self, service: str) -> None:
        """A switch has ended, or cut over: what it wrote about its engines is in the journal."""
        self._deposed[service] = self._journal.deposed(service)

    def probed(self, service: str, engine: str, state: EngineState, serving: EngineState | None) -> None:
        """What a probe found of an engine that does not serve. `serving`: the newest look at the one that does, if it
        answers."""
        key = (service, engine)
        running = self._orchestrator.running(service)
        if running is not None and engine in (running.source, running.target):
            self._sights.pop(key, None)
            return
        takes_writes = state.role is Role.PRIMARY and state.is_writable
        if self.deposed(service, engine) is None:
            self._look_for_stray(key, state, serving if takes_writes else None)
        elif state.role is Role.STANDBY and state.is_replicating:
            try:
                self._journal.reinstate(service, engine)
            except sqlite3.Error as error:
                # The next probe tries again.
                _log.error("the state file cannot be written", service=service, error=str(error))
                return
            del self._deposed[service][engine]
            self._not_fenced.pop(key, None)
            self._tell("engine.reinstated", service, engine, "it is a standby again")
        elif takes_writes and (key not in self._fencing or self._fencing[key].done()):
            self._fencing[key] = spawn(self._fence(service, engine), name=f"fence {engine}")

    def _look_for_stray(self, key: tuple[str, str], state: EngineState, serving: EngineState | None) -> None:
        """`serving` is None where there is nothing to look for."""
        service, engine = key
        config = self._services[service]
        if state.role is Role.STANDBY:
            self._standbys.add(key)
        is_split = (
            config.replication == "stream"
            and serving is not None
            and serving.role is Role.PRIMARY
            and serving.is_writable
            and (key in self._standbys or (state.flavour == "postgresql" and state.server_id == serving.server_id))
        )
        if not is_split:
            self._sights.pop(key, None)
            return
        self._sights[key] += 1
        if self._sights[key] != SIGHTS:
            return
        assert serving is not None
        why = f"it takes writes, and {serving.name} serves"
        if not config.failover.automatic:
            self._tell("engine.stray", service, engine, f"{why}; it is left alone: `automatic` is false in the config")
            return
        self._tell("engine.stray", service, engine, f"{why}; it is fenced")
        epoch = self._orchestrator.standing(service).epoch
        deposed = Deposed(engine=engine, switch="", epoch=epoch, at=self._clock.wall())
        try:
            self._journal.depose(service, deposed)
        except sqlite3.Error as error:
            _log.error("the state file cannot be written", service=service, error=str(error))
        self._deposed[service][engine] = deposed
        self._sights.pop(key)

    async def _fence(self, service: str, name: str) -> None:
        engine, key = self._engines[service][name], (service, name)
        try:
            proof = await engine.fence((), FENCE_TIMEOUT_S)
        except EngineError as error:
            if self._not_fenced.get(key) != error.text:
                self._not_fenced[key] = error.text
                _log.error("a former primary takes writes", service=service, engine=name, why=error.text)
                self._tell("engine.unfenced", service, name, error.text)
            return
        self._not_fenced.pop(key, None)
        self._tell("engine.fenced", service, name, f"{proof.how}; {proof.sessions_ended} sessions of others were ended")

    def _tell(self, kind: str, service: str, engine: str, why: str) -> None:
        _log.warning(kind.replace(".", " "), service=service, engine=engine, why=why)
        self._publish(Event(kind=kind, at=self._clock.wall(), service=service, data={"engine": engine, "why": why}))
