"""The one process that decides: it owns the workers, the state file, the admin connections and the control port.

Order of a start: lock and folder, state file, the workers of an earlier supervisor, what it left unfinished, missing
workers, control port. Nothing is served by a new worker before the question who is active has been answered.

Order of an end: the control port, the switch under way (undone if that is still possible), the workers with time to
drain, the admin connections, the state file, the lock.

What it has beside it: `serving` (signals, the control port, what else is put around it), `folder` (the lock), `watching` (what
is found of the engines), `hearing` (what the workers tell).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from proxy import ipc
from proxy.asking import Asking
from proxy.clock import SystemClock
from proxy.config import (
    AlertsConfig,
    Config,
    EngineConfig,
    LogLevel,
    ServiceConfig,
    encode_effective,
    going_nowhere,
    plan_reload,
    spell,
    with_commanded,
)
from proxy.control.standstill import Standstills
from proxy.control.views import Reloaded
from proxy.engines import engine_for
from proxy.engines import reconfigure as reconfigure_engine
from proxy.engines.engine import Engine
from proxy.errors import Conflict, NotFound, PlanRefused
from proxy.folder import RuntimeFolder
from proxy.hearing import Hearing
from proxy.hidden import hidden_words, secret_variables
from proxy.log import hide
from proxy.log import set_up as set_up_log
from proxy.policy.keeper import PolicyKeeper
from proxy.policy.store import PolicyStore
from proxy.scheduling import ask_for_turns
from proxy.switch.datacheck import DataChecks, DataCheckStore
from proxy.switch.guard import Guard
from proxy.switch.journal import Journal
from proxy.switch.orchestrator import Orchestrator
from proxy.switch.plan import SwitchPlan, SwitchRecord
from proxy.switch.readiness import Check
from proxy.switch.roster import Roster
from proxy.switch.views import Event, FailoverView, ServiceView, WorkerView
from proxy.tasks import cancel_and_wait, spawn
from proxy.watching import Watching
from proxy.workers import Workers

_log = structlog.get_logger("turnout.supervisor")

TURN_NS: Final = 20_000_000
"""A turn of this process on a processor while no switch runs, in nanoseconds. Longer than anybody else's (the kernel's own are
up to 3 ms long): workers and servers that have something to do do not wait for the end of a scrape."""


class Supervisor:
    """See the module. The control door (`proxy.control.service`) calls its public methods, in its loop."""

    def __init__(self, config: Config, *, base: Path, reload: Callable[[], Config] | None = None) -> None:
        """`base` is the folder of the config file; `reload` reads it again and may raise ConfigError."""
        self.config = config
        self.started_at = time.time()
        self._reload = reload
        self._clock = SystemClock()
        self._state_file = base / config.state_file
        self._folder = RuntimeFolder(base / config.runtime_dir)
        self._engines: dict[str, dict[str, Engine]] = {}
        self._subscribers: list[Callable[[Event], None]] = []
        self._journal: Journal | None = None
        self._salt_key = b""
        self._orchestrator: Orchestrator | None = None
        self._data_checks: DataChecks | None = None
        self._workers: Workers | None = None
        self._asking = Asking()
        self._policies: PolicyKeeper | None = None
        self._roster: Roster | None = None
        self._guard: Guard | None = None
        self._watching: Watching | None = None
        self._hearing: Hearing | None = None
        self.standstills = Standstills(lambda: self.config.service, self._stand)
        """What operators have stopped."""
        self.end: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM)
        """Stop, as SIGTERM does."""

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Until every worker serves. Raises ProxyError, in one line: locked, state file unreadable, port taken."""
        try:
            await self._start()
        except BaseException:
            await self.stop(drain_s=0.0)
            raise

    async def _start(self) -> None:
        self._folder.take()
        journal = self._journal = Journal(self._state_file)
        self._salt_key = journal.key("salts")
        self._roster = Roster(journal.database)
        file, commanded = self.config, self._roster.commanded()
        self.config = with_commanded(file, commanded)
        for one in going_nowhere(file, self.config, commanded):
            # Unlike a reload a start may not refuse this: clients wait for it.
            _log.warning(
                "the config names an engine that is not there, which does nothing",
                key=one.key,
                engine=one.engine,
                why=one.why,
            )
        hide(hidden_words(self.config))
        services, engines, clock = self.config.service, self._engines, self._clock
        engines.update(
            (name, {engine: engine_for(service, engine) for engine in service.engine})
            for name, service in services.items()
        )
        workers = self._workers = Workers(
            self._folder.path / "supervisor.sock", self.config.workers, withheld=secret_variables(self.config)
        )
        switches = self._orchestrator = Orchestrator(
            services, engines, journal, workers, clock, self.publish, self.config.workers
        )
        guard = self._guard = Guard(services, engines, switches, journal, workers, clock, self.publish)
        self._hearing = Hearing(workers, switches, guard, self._configuration, self.publish)
        await workers.listen(self._hearing)
        hellos = await workers.adopt()
        self.standstills.adopt(hello.standstills for hello in hellos.values())
        if any(one.is_paused or one.paused or one.disabled for one in self.standstills.all().values()):
            _log.warning("an operator's pause goes on; RESUME or ENABLE ends it", stopped=self.standstills.all())
        await self._settle(hellos)
        watching = self._watching = Watching(services, engines, switches, guard, workers, clock, self.publish)
        keeper = self._policies = PolicyKeeper(
            services, PolicyStore(journal.database), watching.stream, switches, clock, self.publish
        )
        guard.preferred = keeper.after_failure
        self.subscribe(keeper.hear)
        self._data_checks = DataChecks(
            services,
            engines,
            DataCheckStore(journal.database),
            clock,
            self.publish,
            active=lambda service: switches.standing(service).active,
            is_switching=lambda service: switches.running(service) is not None,
        )
        workers.configure_adopted()
        workers.fill()
        switches.watch()
        self._data_checks.take_up()
        watching.begin(keeper.tick)
        await workers.wait_configured()
        self.subscribe(self._give_way)
        ask_for_turns(TURN_NS)
        _log.info("serving", workers=self.config.workers, services=sorted(services))

    async def _settle(self, hellos: dict[int, ipc.Hello]) -> None:
        """Who is active, of each service: ask the journal, then the engines."""
        switches = self._switches
        await switches.recover({index: (hello.epochs, hello.runs) for index, hello in hellos.items()})
        await asyncio.gather(*(switches.agree(service) for service in self.config.service))

    async def stop(self, *, drain_s: float) -> None:
        """Undo or finish what is under way, drain the workers, close everything. May be called after a failed start."""
        if self._watching is not None:
            await self._watching.stop()
        if self._data_checks is not None:
            await self._data_checks.stop()
        if self._guard is not None:
            await self._guard.stop()
        if self._orchestrator is not None:
            await self._orchestrator.stop()
        if self._workers is not None:
            await self._workers.stop(drain_s)
        await asyncio.gather(*(engine.close() for engines in self._engines.values() for engine in engines.values()))
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._folder.release()

    def hurry(self) -> None:
        """Stop without waiting for clients."""
        if self._workers is not None:
            self._workers.hurry()

    # --- what the control door needs ---------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Every worker is configured, and its listeners are open."""
        return self._workers is not None and self._workers.is_ready()

    def services(self) -> list[ServiceView]:
        """Every service with what the last probes of its engines found."""
        return [self._view(name) for name in self.config.service]

    def _view(self, name: str) -> ServiceView:
        config, standing = self.config.service[name], self._switches.standing(name)
        return ServiceView(
            name=name,
            protocol=config.protocol,
            pool_mode=config.pool_mode,
            databases=list(config.databases),
            active=standing.active,
            epoch=standing.epoch,
            engines=self._watched.views(name),
            running=self._switches.running(name),
            failover=self._guards.view(name),
            waiting=self._switches.waiting(name),
            tally=msgspec.structs.asdict(tally := self._switches.tally(name)),
            success_rate=tally.success_rate,
            **msgspec.structs.asdict(self.standstills.of(name)),
        )

    @property
    def hearing(self) -> Hearing:
        """What the workers tell, and who is told of it."""
        assert self._hearing is not None, "started"
        return self._hearing

    @property
    def policies(self) -> PolicyKeeper:
        """The policies, of all services."""
        assert self._policies is not None, "started"
        return self._policies

    def workers(self) -> list[WorkerView]:
        """One for each worker process."""
        return self._crew.views()

    async def figures(self) -> list[ipc.WorkerFigures]:
        """What each worker counts; one that does not answer within a second is left out."""
        return await self._asking.ask("figures", self._crew.figures)

    def span_counts(self) -> dict[str, int]:
        """Spans by what became of them; empty without traces."""
        tracing = self.hearing.tracing
        return tracing.counts() if tracing is not None else {}

    async def sessions(
        self, service: str | None = None, *, session: int | None = None, with_sockets: bool = False
    ) -> list[ipc.Session]:
        """Every client connection, or those of one service, or the one of that number."""
        return await self._asking.ask(
            ("sessions", service, session, with_sockets),
            lambda: self._crew.sessions(service, session=session, with_sockets=with_sockets),
        )

    async def backends(self) -> list[ipc.Backend]:
        """Every connection to an engine that is in a pool."""
        return await self._asking.ask("backends", self._crew.backends)

    async def count_backends(self, service: str, database: str | None) -> ipc.BackendsCounted | None:
        """Of one service, or of one of its databases; None: a worker did not answer."""
        return await self._crew.count_backends(service, database)

    def retire_backends(self, service: str, database: str | None, *, ends_sessions: bool) -> None:
        """Have backends closed when they are free, or at once with the sessions that have them."""
        self._crew.tell_all(ipc.Retire(service=service, database=database, ends_sessions=ends_sessions))

    async def ready(self, service: str, target: str, plan: SwitchPlan | None = None) -> list[Check]:
        """The readiness report, by the limits of `plan` if there is one. Raises NotFound; Conflict while a switch of the
        service is under way."""
        self._known(service)
        return await self._switches.examine(service, target, plan)

    async def start_switch(self, plan: SwitchPlan) -> SwitchRecord:
        """Begin. Returns when the plan is journaled and the checks have begun.

        Raises NotFound (service), PlanRefused (plan), Conflict (one is under way). A failed check ends the switch in
        `aborted`, with `error` and `remedy`.
        """
        self._known(plan.service)
        with self._written():
            return self._switches.begin(plan)

    async def wait_switch(self, switch_id: str, timeout: float) -> SwitchRecord:
        """The record once it has ended, or as it is after `timeout` seconds. Raises NotFound."""
        return await self._switches.wait(switch_id, timeout)

    def switches(self, limit: int = 50) -> list[SwitchRecord]:
        """Newest first."""
        return self._switches.records(limit)

    def switch(self, switch_id: str) -> SwitchRecord:
        """Raises NotFound."""
        return self._switches.record(switch_id)

    def report(self, switch_id: str) -> dict[str, Any]:
        """Raises NotFound: unknown, or not ended yet."""
        assert self._journal is not None
        return self._journal.report(switch_id)

    @property
    def data_checks(self) -> DataChecks:
        """Comparisons of what two engines have."""
        assert self._data_checks is not None, "started"
        return self._data_checks

    async def cancel(self, switch_id: str, by: str = "") -> SwitchRecord:
        """Begin to undo. Raises NotFound, Conflict (past the cutover, or ended)."""
        return self._switches.cancel(switch_id, by)

    async def end_session(self, session: int, reason: str) -> bool:
        """End one client's session; `reason` is told to it. False: there is none of that number."""
        return await self._crew.end_session(session, reason)

    @property
    def database(self) -> sqlite3.Connection:
        """The open state file."""
        assert self._journal is not None, "started"
        return self._journal.database

    def tell_worker(self, worker: int, order: ipc.Order) -> None:
        """Write, do not wait."""
        self._crew.tell(worker, order)

    # --- engines that come and go ------------------------------------------------------------------------------------

    def add_engine(self, service: str, name: str, engine: EngineConfig) -> None:
        """From now on `service` has this engine; kept over restarts. The config is good and the name is free: the door
        has looked. Raises NotFound; PlanRefused: the state file cannot be written."""
        self._known(service)
        self._change_roster(lambda roster: roster.add(service, name, engine))
        self._put_engines(service, {**self.config.service[service].engine, name: engine})
        self._take_in(engine_for(self.config.service[service], name), service)

    async def remove_engine(self, service: str, name: str) -> None:
        """Forget an engine that does not serve; kept over restarts. Raises NotFound; Conflict: it serves, it takes part in
        the switch under way or one that waits, or it is the last one; PlanRefused: the state file cannot be written."""
        self._known(service)
        engines = dict(self.config.service[service].engine)
        if name not in engines:
            raise NotFound(f"service {service!r} has no engine {name!r}", hint=f"it has: {', '.join(sorted(engines))}")
        self._check_goes(self.config.service, service, name)
        self._change_roster(lambda roster: roster.remove(service, name))
        del engines[name]
        self._put_engines(service, engines)
        await self._take_out(service, name)

    def _check_goes(self, services: Mapping[str, ServiceConfig], service: str, name: str) -> None:
        """Raises Conflict: something needs this engine. Policies and routes are those of `services`."""
        running = self._switches.running(service)
        if running is not None and name in (running.source, running.target):
            raise Conflict(f"engine {name!r} takes part in switch {running.id}", hint="wait until it has ended")
        if name == self._switches.standing(service).active:
            raise Conflict(f"engine {name!r} serves {service!r}", hint="switch to another engine first")
        for waiting in self._switches.waiting(service):
            if waiting.target == name:
                raise Conflict(
                    f"switch {waiting.id} to engine {name!r} waits for its turn", hint="cancel that switch first"
                )
        for policy in self.policies.policies(service, services):
            if policy.target_engine == name:
                raise Conflict(f"policy {policy.name!r} goes to engine {name!r}", hint="remove that policy first")
        for rule in services[service].route:
            if name in rule.to:
                raise Conflict(
                    f"a [[service.{service}.route]] sends reads to {name!r}",
                    hint="take it out of the config, which needs a restart",
                )

    def _take_in(self, engine: Engine, service: str) -> None:
        """`config` has it already."""
        self._engines[service][engine.name] = engine
        self._watched.add(service, engine)
        self.publish(Event(kind="engine.added", at=self._clock.wall(), service=service, data={"engine": engine.name}))

    def _take_out(self, service: str, name: str) -> asyncio.Task[None]:
        """`config` has it no more. Out of every index when this returns, for one of the same name may be added; what it
        does ends in the task."""
        engine, probe = self._engines[service].pop(name), self._watched.remove(service, name)

        async def end() -> None:
            await cancel_and_wait(probe)
            await engine.close()
            self.publish(Event(kind="engine.removed", at=self._clock.wall(), service=service, data={"engine": name}))

        return spawn(end(), name=f"end of engine {service}.{name}")

    def _change_roster(self, change: Callable[[Roster], None]) -> None:
        assert self._roster is not None, "started"
        with self._written():
            change(self._roster)

    def _put_engines(self, service: str, engines: dict[str, EngineConfig]) -> None:
        replace = msgspec.structs.replace
        changed = replace(self.config.service[service], engine=engines)
        self.config = replace(self.config, service={**self.config.service, service: changed})
        self._reconfigure()

    # --- settings ----------------------------------------------------------------------------------------------------

    def set_log_level(self, level: LogLevel) -> None:
        """Of this process and of the workers, until a reload or a restart says otherwise."""
        self.config = msgspec.structs.replace(self.config, log=msgspec.structs.replace(self.config.log, level=level))
        set_up_log(self.config.log, who="supervisor")
        self._crew.tell_all(self._configuration())

    def switch_automation(self, service: str, is_on: bool, by: str = "") -> FailoverView:
        """Let another engine take over by itself when the active one fails, or not. Raises NotFound."""
        self._known(service)
        self._guards.switch_automation(service, is_on, by)
        return self._guards.view(service)

    async def start_failover(
        self, service: str, target: str | None, *, force: bool = False, by: str = "", reason: str = ""
    ) -> SwitchRecord:
        """Have another engine take over from the active one, which is gone. Returns when the decision is journaled.

        Raises NotFound, Conflict (it lives, or a switch is under way), PlanRefused (nobody can take over).
        """
        self._known(service)
        with self._written():
            return await self._guards.start(service, target, force=force, by=by, reason=reason)

    def reload(self) -> Reloaded:
        """Read the config again and apply what may be applied, engines that come and go among it. They are not kept in the
        state file: the config file has them, or has them no more.

        Raises ConfigError; then nothing is changed.
        """
        if self._reload is None:
            return Reloaded(added=[], removed=[], applied=[], kept=[], needs_restart=[])
        assert self._roster is not None, "started"
        plan = plan_reload(self.config, self._reload(), self._roster.commanded(), self._why_stays)
        added = [(service, engine_for(plan.config.service[service], name)) for service, name in plan.added]
        # From here on nothing can be refused, and nothing is waited for: who looks sees all of it or nothing.
        self.config = plan.config
        hide(hidden_words(self.config))
        set_up_log(self.config.log, who="supervisor")
        self._reconfigure()
        for service, name in plan.removed:
            self._take_out(service, name)
        for service, engine in added:
            self._take_in(engine, service)
        for service, engines in self._engines.items():
            for one in engines.values():
                reconfigure_engine(one, self.config.service[service])
        reloaded = Reloaded(
            added=[spell(("service", service, "engine", name)) for service, name in plan.added],
            removed=[spell(("service", service, "engine", name)) for service, name in plan.removed],
            applied=plan.applied,
            kept=plan.kept,
            needs_restart=plan.needs_restart,
        )
        _log.info("config reloaded", **msgspec.structs.asdict(reloaded))
        self.publish(Event(kind="config.reloaded", at=self._clock.wall(), data=msgspec.structs.asdict(reloaded)))
        return reloaded

    def _why_stays(self, services: Mapping[str, ServiceConfig], service: str, engine: str) -> str:
        try:
            self._check_goes(services, service, engine)
        except Conflict as error:
            return f"{error.text}; {error.hint}"
        return ""

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call `callback` for every event, in this loop, where it must not block. Returns what takes it back."""
        self._subscribers.append(callback)

        def take_back() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return take_back

    def publish(self, event: Event) -> None:
        """Tell every subscriber. A mistake of one is logged: it must not end the switch or the probe that tells."""
        for callback in list(self._subscribers):
            try:
                callback(event)
            except Exception:  # noqa: BLE001  see above
                _log.exception("a subscriber failed", event_kind=event.kind)

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def _switches(self) -> Orchestrator:
        assert self._orchestrator is not None, "started"
        return self._orchestrator

    @property
    def _guards(self) -> Guard:
        assert self._guard is not None, "started"
        return self._guard

    @property
    def _crew(self) -> Workers:
        assert self._workers is not None, "started"
        return self._workers

    @property
    def _watched(self) -> Watching:
        assert self._watching is not None, "started"
        return self._watching

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """What is done in it writes to the state file. Raises PlanRefused: it cannot be written."""
        try:
            yield
        except sqlite3.Error as error:
            raise PlanRefused(
                f"the state file cannot be written: {error}", hint=f"make room for {self._state_file}"
            ) from error

    def _reconfigure(self) -> None:
        """Tell everybody of `config`, which is another one now."""
        self._switches.reconfigure(self.config.service)
        self.policies.reconfigure(self.config.service)
        self._guards.reconfigure(self.config.service)
        self._watched.reconfigure(self.config.service)
        self._crew.tell_all(self._configuration())

    def _give_way(self, event: Event) -> None:
        """To those whom clients wait for. While a switch runs, that is this process."""
        if event.kind in ("switch.phase", "switch.ended"):
            is_switching = any(self._switches.running(name) is not None for name in self.config.service)
            ask_for_turns(0 if is_switching else TURN_NS)

    def _stand(self, order: ipc.StandStill) -> None:
        """What an operator has stopped has changed."""
        self._crew.tell_all(order)
        still = msgspec.to_builtins(order.standstill)
        self.publish(Event(kind="service.stood", at=self._clock.wall(), service=order.service, data=still))

    def _known(self, service: str) -> None:
        if service not in self.config.service:
            raise NotFound(
                f"there is no service {service!r}", hint=f"services are: {', '.join(sorted(self.config.service))}"
            )

    def _configuration(self) -> ipc.Configure:
        standings = {name: self._switches.standing(name) for name in self.config.service}
        # Workers tell nobody of alerts: they need not know the receivers' secrets.
        theirs = msgspec.structs.replace(self.config, alerts=AlertsConfig())
        return ipc.Configure(
            config=encode_effective(theirs),
            active={name: standing.active for name, standing in standings.items()},
            epochs={name: standing.epoch for name, standing in standings.items()},
            salt_key=self._salt_key,
            standstills=self.standstills.all(),
        )
