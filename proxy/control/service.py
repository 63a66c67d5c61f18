"""The one door to a running Turnout. Every face (REST, MCP, dashboard, metrics) calls these verbs.

A verb checks the caller's role, does one thing, and its docstring is what an operator may rely on. It knows nothing of
HTTP. What goes wrong is a ControlError or a PlanRefused, whose `hint` says what to do. Whatever changes something, or is
refused while it tries to, leaves one entry in the audit log.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import structlog

from proxy import VERSION, ipc
from proxy.clock import Clock, SystemClock
from proxy.config import LogLevel, PolicyConfig, check_addition, masked
from proxy.control.alerts.keeper import Alerts
from proxy.control.alerts.model import AlertView, Delivery, ReceiverView, RuleView, Silence
from proxy.control.audit import AuditEntry, AuditLog
from proxy.control.beneath import Supervisor
from proxy.control.events import EventLog
from proxy.control.roles import Caller, Role, require
from proxy.control.standstill import Place
from proxy.control.statuses import Statuses
from proxy.control.sums import sum_figures
from proxy.control.views import (
    AUDIT_MAX,
    DECISIONS_MAX,
    DELIVERIES_MAX,
    SILENCE_S_MAX,
    SWITCHES_MAX,
    EngineRow,
    EngineSpec,
    PoolRow,
    Readiness,
    Reloaded,
    ServiceStatus,
    SessionFilter,
    SessionPage,
    StandstillRow,
    Status,
    SwitchRefused,
    engine_config,
)
from proxy.engines.figures import EngineFigures
from proxy.errors import Conflict, ControlError, NotFound, ProxyError
from proxy.policy.model import Decision, Policy, PolicyView
from proxy.switch.datacheck import DataCheck
from proxy.switch.plan import SwitchPlan, SwitchRecord, accept
from proxy.switch.readiness import Check, failures
from proxy.switch.state import ENDED, Phase
from proxy.switch.views import FailoverView, ServiceView

_log = structlog.get_logger("turnout.control")

VALIDATION_WAIT_S: Final = 8.0
"""How long a request for a switch waits for the checks' outcome before it answers that the switch has begun."""

LOOK_S: Final = 0.05
"""Between two looks whether the backends that shall go are gone."""


class ControlService:
    """The door. One for the life of a supervisor; all verbs may be called concurrently."""

    def __init__(self, supervisor: Supervisor, *, clock: Clock | None = None) -> None:
        self.supervisor = supervisor
        self._clock = clock or SystemClock()
        self.audit = AuditLog(supervisor.database)
        self.events = EventLog(f"{int(supervisor.started_at * 1000):x}")
        self._statuses = Statuses(self._look, self.events)
        supervisor.subscribe(self.events.add)
        self.alerts = Alerts(supervisor, self._clock)
        """Looked at from their `start` on."""

    # --- looking --------------------------------------------------------------------------------------------------

    async def status(self, who: Caller) -> Status:
        """Services with active engine and running switch, workers, and sums of what they count. Changes nothing."""
        require(who, Role.VIEWER)
        return await self._look()

    async def _look(self) -> Status:
        sums = sum_figures(await self.supervisor.figures())
        return Status(
            version=VERSION,
            started_at=self.supervisor.started_at,
            is_ready=self.supervisor.is_ready(),
            services=[
                ServiceStatus(
                    view=view,
                    **{name: getattr(sums.get(view.name, _NOTHING), name) for name in _SUMMED},
                )
                for view in self.supervisor.services()
            ],
            workers=self.supervisor.workers(),
        )

    def engines(self, who: Caller, service: str | None = None) -> list[EngineRow]:
        """Every engine as the last probe saw it, or those of one service. Raises NotFound."""
        require(who, Role.VIEWER)
        views = self.supervisor.services() if service is None else [self._service(service)]
        return [EngineRow(service=view.name, engine=engine) for view in views for engine in view.engines]

    async def sessions(self, who: Caller, service: str | None = None) -> list[ipc.Session]:
        """Every client connection, or those of one service, as each worker sees them now. Raises NotFound."""
        require(who, Role.VIEWER)
        if service is not None:
            self._service(service)
        return await self.supervisor.sessions(service)

    async def find_sessions(self, who: Caller, wanted: SessionFilter, offset: int, limit: int) -> SessionPage:
        """The sessions that fit, by worker and number, `limit` of them from the `offset`th on. Raises NotFound."""
        found = [one for one in await self.sessions(who, wanted.service) if wanted.fits(one)]
        found.sort(key=lambda one: (one.worker, one.id))
        return SessionPage(total=len(found), sessions=found[offset : offset + limit])

    async def session(self, who: Caller, session_id: int) -> ipc.Session:
        """One client connection. Raises NotFound."""
        require(who, Role.VIEWER)
        for one in await self.supervisor.sessions(session=session_id):
            return one
        raise NotFound(f"there is no session {session_id}", hint="`turnout sessions` lists them; it may have ended")

    def services(self, who: Caller) -> list[ServiceView]:
        """Every service with its engines and the switch under way."""
        require(who, Role.VIEWER)
        return self.supervisor.services()

    def service(self, who: Caller, name: str) -> ServiceView:
        """One of them. Raises NotFound."""
        require(who, Role.VIEWER)
        return self._service(name)

    async def pools(self, who: Caller, service: str | None = None) -> list[PoolRow]:
        """Every pool of backends, summed over the workers. Raises NotFound."""
        require(who, Role.VIEWER)
        if service is not None:
            self._service(service)
        sums: dict[tuple[str, str, str, str], list[int]] = {}
        for worker in await self.supervisor.figures():
            for figures in worker.services:
                for pool in figures.pools:
                    key = (pool.service, pool.engine, pool.database, pool.user)
                    counts = sums.setdefault(key, [0, 0, 0])
                    for index, count in enumerate((pool.idle, pool.in_use, pool.waiting)):
                        counts[index] += count
        return [
            PoolRow(
                service=key[0], engine=key[1], database=key[2], user=key[3], idle=idle, in_use=in_use, waiting=waiting
            )
            for key, (idle, in_use, waiting) in sorted(sums.items())
            if service in (None, key[0])
        ]

    def follow(
        self, who: Caller, last_id: str | None = None, service: str | None = None, *, with_status: bool = False
    ) -> AsyncIterator[bytes]:
        """What happens, as server-sent events; see `proxy.control.events`. Raises NotFound."""
        require(who, Role.VIEWER)
        if service is not None:
            self._service(service)
        return (self._statuses if with_status else self.events).follow(last_id, service)

    def audit_entries(
        self,
        who: Caller,
        limit: int,
        *,
        before: int | None = None,
        action: str | None = None,
        outcome: str | None = None,
    ) -> list[AuditEntry]:
        """Who did what, or was refused: newest first."""
        require(who, Role.ADMIN, "read the audit log")
        try:
            return self.audit.entries(min(max(limit, 1), AUDIT_MAX), before=before, action=action, outcome=outcome)
        except sqlite3.Error as error:
            raise ControlError(f"the state file cannot be read: {error}") from error

    async def ready(self, who: Caller, service: str, target: str, *, plan: SwitchPlan | None = None) -> Readiness:
        """Run the checks of a switch to `target` and nothing else: no client notices, nothing is changed.

        With a `plan` its limits hold, and failed checks that it forces are passed over. Raises NotFound.
        """
        require(who, Role.VIEWER)
        view = self._service(service)
        if target not in {engine.name for engine in view.engines}:
            names = ", ".join(sorted(engine.name for engine in view.engines))
            raise NotFound(f"service {service!r} has no engine {target!r}", hint=f"its engines are: {names}")
        checks = await self.supervisor.ready(service, target, plan)
        is_ready = not failures(checks, force=plan is not None and plan.force)
        return Readiness(service=service, target=target, is_ready=is_ready, checks=checks)

    def switches(self, who: Caller, limit: int = 50, offset: int = 0) -> list[SwitchRecord]:
        """The newest `limit` switches but for the first `offset`, newest first, running ones among them."""
        require(who, Role.VIEWER)
        limit, offset = min(max(limit, 1), SWITCHES_MAX), max(offset, 0)
        return self.supervisor.switches(offset + limit)[offset:]

    def switch_record(self, who: Caller, switch_id: str) -> SwitchRecord:
        """One switch, as far as it has come. Raises NotFound."""
        require(who, Role.VIEWER)
        return self.supervisor.switch(switch_id)

    def report(self, who: Caller, switch_id: str) -> dict[str, Any]:
        """The evidence report of a switch that has ended. Raises NotFound: unknown, or not ended yet."""
        require(who, Role.VIEWER)
        return self.supervisor.report(switch_id)

    def report_of(self, who: Caller, record: SwitchRecord) -> dict[str, Any] | None:
        """The evidence report of this switch; None: it has not ended, or its report is still being written."""
        try:
            return self.report(who, record.id) if record.phase in ENDED else None
        except NotFound:
            return None

    def config(self, who: Caller) -> dict[str, Any]:
        """The config in force, each value with its origin; secrets are never shown."""
        require(who, Role.VIEWER)
        return masked(self.supervisor.config)

    @contextmanager
    def recorded_call(self, who: Caller, tool: str, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Keep in the audit log that an agent called a tool, whatever the tool does, and how it came out."""
        with self._recorded(who, "mcp", tool, {"arguments": dict(arguments)}):
            yield

    def log_level(self, who: Caller) -> LogLevel:
        """The lowest level that is logged."""
        require(who, Role.VIEWER)
        return self.supervisor.config.log.level

    def is_ready(self) -> bool:
        """Every worker has its config and its listeners are open. Anybody may ask."""
        return self.supervisor.is_ready()

    # --- doing ----------------------------------------------------------------------------------------------------

    async def switch(self, who: Caller, plan: SwitchPlan) -> SwitchRecord:
        """Begin the switch that `plan` asks for, and return once its checks have passed and it is under way. One with a
        time, or that queues behind another, is journaled and waits in phase `pending`: it is checked when it begins. To force
        it takes an admin.

        The switch goes on whether the caller stays or not. Until its phase is `promoting` it can be cancelled, and
        any trouble gives the source back writable; from then on it goes to its end. One switch of a service at a time.

        Raises NotFound (no such service), PlanRefused (the plan cannot be, whatever the engines' state), Conflict (one
        is running), SwitchRefused (a check failed; nothing was changed). Checks that take longer than
        `VALIDATION_WAIT_S` are not waited for: the record then says `validating`.
        """
        asked = {name: value for name, value in msgspec.structs.asdict(plan).items() if value not in (None, "", False)}
        with self._recorded(who, "switch", f"{plan.service} to {plan.target}", asked) as detail:
            require(who, Role.OPERATOR, "switch")
            if plan.force:
                require(who, Role.ADMIN, "force a switch")
            self._service(plan.service)
            plan = msgspec.structs.replace(plan, requested_by=plan.requested_by or who.name)
            moved = asyncio.Event()
            unsubscribe = self.supervisor.subscribe(
                lambda event: moved.set() if event.service == plan.service else None
            )
            try:
                record = await self.supervisor.start_switch(plan)
                detail["switch"] = record.id
                _log.info("switch asked for", service=plan.service, switch=record.id, target=plan.target, by=who.name)
                if not record.is_waiting:
                    record = await self._past_checks(record, moved)
            finally:
                unsubscribe()
            if record.phase is Phase.ABORTED and not record.was_tried:
                raise SwitchRefused(
                    record.error or "a check failed",
                    hint=record.remedy or f"look at it with: turnout ready {plan.target}",
                    switch=record.id,
                    checks=self._checks_of(record.id),
                )
        return record

    async def rehearse(self, who: Caller, plan: SwitchPlan) -> Readiness:
        """The dry run of a switch: the plan is judged and the checks run, nothing is changed or journaled.

        Raises NotFound, PlanRefused.
        """
        require(who, Role.VIEWER)
        view = self._service(plan.service)
        plan = accept(plan, self.supervisor.config.service[plan.service], view.active)
        return await self.ready(who, plan.service, plan.target, plan=plan)

    async def cancel(self, who: Caller, switch_id: str) -> SwitchRecord:
        """Undo a switch that has not begun to promote: the source is writable again and every session goes on there. One
        that waits is dropped.

        Returns once the undoing has begun. Raises NotFound, Conflict (too late, or ended already).
        """
        with self._recorded(who, "cancel", switch_id):
            require(who, Role.OPERATOR, "cancel a switch")
            record = await self.supervisor.cancel(switch_id, who.name)
        _log.info("switch cancelled", service=record.service, switch=switch_id, by=who.name)
        return record

    def data_checks(self, who: Caller) -> list[DataCheck]:
        """Comparisons of what two engines have, newest first."""
        require(who, Role.VIEWER)
        return self.supervisor.data_checks.all()

    def data_check(self, who: Caller, check_id: str) -> DataCheck:
        """One of them, as far as it has come. Raises NotFound."""
        require(who, Role.VIEWER)
        return self.supervisor.data_checks.get(check_id)

    def start_data_check(self, who: Caller, check: DataCheck) -> DataCheck:
        """Compare the rows of the active engine with those of `check.target`, while clients work. Reads both servers, slowly,
        and changes nothing. It survives a restart of Turnout. Raises NotFound, Conflict (one of the service runs)."""
        with self._recorded(who, "start_data_check", f"{check.service} with {check.target}"):
            require(who, Role.OPERATOR, "compare data")
            self._service(check.service)
            return self.supervisor.data_checks.start(msgspec.structs.replace(check, asked_by=who.name))

    def resume_data_check(self, who: Caller, check_id: str) -> DataCheck:
        """Go on with one that was cancelled or has failed, where it stopped. Raises NotFound, Conflict."""
        with self._recorded(who, "resume_data_check", check_id):
            require(who, Role.OPERATOR, "compare data")
            return self.supervisor.data_checks.resume(check_id)

    async def cancel_data_check(self, who: Caller, check_id: str) -> DataCheck:
        """End it; what it has found is kept. Raises NotFound, Conflict (it has ended)."""
        with self._recorded(who, "cancel_data_check", check_id):
            require(who, Role.OPERATOR, "compare data")
            return await self.supervisor.data_checks.cancel(check_id)

    async def end_session(self, who: Caller, session_id: int, reason: str = "") -> ipc.Session:
        """End one client's session: what it has open is rolled back by its engine, and the client is told so with 57P01
        (MySQL: 1053). Returns the session as it was. Raises NotFound."""
        with self._recorded(who, "end_session", str(session_id), {"reason": reason} if reason else {}) as detail:
            require(who, Role.ADMIN, "end a session")
            session = await self.session(who, session_id)
            detail |= {"user": session.user, "database": session.database, "client": session.client}
            if not await self.supervisor.end_session(session_id, reason or f"ended by {who.name}"):
                raise NotFound(f"session {session_id} has ended by itself")
        return session

    def add_engine(self, who: Caller, service: str, name: str, spec: EngineSpec) -> EngineRow:
        """Give a service one more engine, from now on and after a restart too. Nothing is switched, and the engine is not
        asked before: the next probe tells how it is. Raises NotFound; Conflict: the name or the address is taken;
        ControlError: the spec cannot be."""
        asked = msgspec.to_builtins(spec)
        with self._recorded(who, "add_engine", f"{service}.{name}", asked):
            require(who, Role.ADMIN, "add an engine")
            view = self._service(service)
            engine = engine_config(name, spec, view.protocol)
            check_addition(service, self.supervisor.config.service[service].engine, name, engine)
            self.supervisor.add_engine(service, name, engine)
        _log.info("engine added", service=service, engine=name, address=engine.address, by=who.name)
        return next(row for row in self.engines(who, service) if row.engine.name == name)

    async def remove_engine(self, who: Caller, service: str, name: str) -> None:
        """Take an engine from a service, also after a restart, whatever the config file says. The server itself is left
        alone. Raises NotFound; Conflict: it serves, or takes part in the switch under way."""
        with self._recorded(who, "remove_engine", f"{service}.{name}"):
            require(who, Role.ADMIN, "remove an engine")
            self._service(service)
            await self.supervisor.remove_engine(service, name)
        _log.info("engine removed", service=service, engine=name, by=who.name)

    def reload(self, who: Caller) -> Reloaded:
        """Read the config file again and apply what may be applied, as SIGHUP does; engines that it has no more are removed
        where `remove_engine` would do it, and those that are new are added. Raises ConfigError; then nothing is changed."""
        with self._recorded(who, "reload", "config") as detail:
            require(who, Role.ADMIN, "reload the config")
            reloaded = self.supervisor.reload()
            detail.update(msgspec.structs.asdict(reloaded))
        return reloaded

    def set_log_level(self, who: Caller, level: LogLevel) -> None:
        """Log from this level up, in every process, until a reload or a restart says otherwise."""
        with self._recorded(who, "set_log_level", level):
            require(who, Role.ADMIN, "set the log's level")
            self.supervisor.set_log_level(level)

    def switch_automation(self, who: Caller, service: str, *, is_on: bool) -> FailoverView:
        """Let another engine take over by itself when the active one fails, or not. Switched on, what failed before is
        forgotten. `automatic = false` in the config stays in force. Raises NotFound."""
        with self._recorded(who, "switch_automation", service, {"automatic": is_on}):
            require(who, Role.OPERATOR, "switch the automatic failover")
            self._service(service)
            view = self.supervisor.switch_automation(service, is_on, who.name)
        _log.info("automatic failover switched", service=service, is_on=is_on, by=who.name)
        return view

    async def start_failover(
        self, who: Caller, service: str, target: str | None = None, *, force: bool = False, reason: str = ""
    ) -> SwitchRecord:
        """Have another engine take over from the active one, which is gone, whether or not the automation is on: `target`, or
        the one that has most. With `force` (role admin) it may be one that lacks more than `lag_tolerance_ms` allows, or
        nobody knows how much. Returns once it has begun.

        Raises NotFound; Conflict: the active engine lives, or a switch is under way; PlanRefused: nobody can take over.
        """
        asked = {"target": target, "force": force, "reason": reason}
        asked = {name: value for name, value in asked.items() if value}
        with self._recorded(who, "start_failover", service, asked) as detail:
            require(who, Role.OPERATOR, "order a failover")
            if force:
                require(who, Role.ADMIN, "force a failover")
            self._service(service)
            record = await self.supervisor.start_failover(service, target, force=force, by=who.name, reason=reason)
            detail["switch"] = record.id
        _log.info("failover asked for", service=service, switch=record.id, target=record.target, by=who.name)
        return record

    # --- standing still -------------------------------------------------------------------------------------------

    async def standstills(self, who: Caller) -> list[StandstillRow]:
        """What is paused and disabled of each PostgreSQL service, and how many backends a pause still waits for."""
        require(who, Role.VIEWER)
        stopped = self.supervisor.standstills
        rows = []
        for place in stopped.places("", "look at"):
            one = stopped.of(place.service)
            paused: list[str | None] = [None] if one.is_paused else [*one.paused]
            counts = [await self.supervisor.count_backends(place.service, database) for database in paused]
            left = None if None in counts else sum(count.left for count in counts if count is not None)
            rows.append(
                StandstillRow(
                    service=place.service,
                    is_paused=one.is_paused,
                    paused=one.paused,
                    disabled=one.disabled,
                    backends_left=left,
                )
            )
        return rows

    async def backends(self, who: Caller) -> list[ipc.Backend]:
        """Every connection to an engine that is in a pool, as each worker sees it now."""
        require(who, Role.VIEWER)
        return await self.supervisor.backends()

    async def connections(self, who: Caller) -> list[ipc.Session]:
        """Every client connection with both of its ends; `sessions` costs the workers less."""
        require(who, Role.VIEWER)
        return await self.supervisor.sessions(with_sockets=True)

    async def figures(self, who: Caller) -> list[ipc.WorkerFigures]:
        """What each worker counts."""
        require(who, Role.VIEWER)
        return await self.supervisor.figures()

    def pause(self, who: Caller, database: str = "") -> list[Place]:
        """Let no PostgreSQL service have backends in `database`, or in any: those that are free are closed now, the others when
        they are given back (in session mode with their clients, in transaction mode with their transactions). Who needs one
        waits, `query_wait_timeout_s` at most. `released` waits until none is left. Raises NotFound; Conflict: it is paused
        already, or a switch is under way."""
        with self._recorded(who, "pause", database or "all databases"):
            require(who, Role.OPERATOR, "pause")
            self.supervisor.standstills.check_goes_on()
            places = self.supervisor.standstills.places(database, "pause")
            self._not_switching(places, "PAUSE")
            self.supervisor.standstills.pause(database)
        _log.info("paused", database=database or "all", by=who.name)
        return places

    def resume(self, who: Caller, database: str = "") -> None:
        """Undo a `pause` or a `kill` of the same name: who waits is served. Raises NotFound; Conflict: it is not paused."""
        with self._recorded(who, "resume", database or "all databases"):
            require(who, Role.OPERATOR, "resume")
            self.supervisor.standstills.resume(database)
        _log.info("resumed", database=database or "all", by=who.name)

    async def released(self, who: Caller, places: list[Place]) -> None:
        """Return once a pause has no backend left. Raises Conflict: it was undone meanwhile."""
        require(who, Role.OPERATOR, "wait for a pause")
        while await self._backends_left(places, is_retired=False):
            if not self.supervisor.standstills.is_still(places):
                raise Conflict("the pause was undone by RESUME before all servers were released")
            await asyncio.sleep(LOOK_S)

    def reconnect(self, who: Caller, database: str = "") -> list[Place]:
        """Have the backends that are there now closed when they are free; new ones are opened as they are needed.
        Raises NotFound."""
        with self._recorded(who, "reconnect", database or "all databases"):
            require(who, Role.OPERATOR, "reconnect")
            places = self.supervisor.standstills.places(database, "reconnect")
            for place in places:
                self.supervisor.retire_backends(place.service, place.database, ends_sessions=False)
        _log.info("reconnecting", database=database or "all", by=who.name)
        return places

    async def wait_close(self, who: Caller, database: str = "") -> None:
        """Return once none of the backends is left that a `reconnect` wants to be closed. Raises NotFound."""
        require(who, Role.OPERATOR, "wait for backends to be closed")
        places = self.supervisor.standstills.places(database, "wait in")
        while await self._backends_left(places, is_retired=True):  # noqa: ASYNC110  workers are asked, and tell nobody
            await asyncio.sleep(LOOK_S)

    def kill(self, who: Caller, database: str = "") -> None:
        """End every session of a database, or of all PostgreSQL services, at once and with what it has open, and pause it.
        Raises NotFound, Conflict, as `pause` does."""
        with self._recorded(who, "kill", database or "all databases"):
            require(who, Role.ADMIN, "kill")
            self.supervisor.standstills.check_goes_on()
            places = self.supervisor.standstills.places(database, "kill")
            self._not_switching(places, "KILL")
            if not self.supervisor.standstills.is_still(places):
                self.supervisor.standstills.pause(database)
            for place in places:
                self.supervisor.retire_backends(place.service, place.database, ends_sessions=True)
        _log.warning("killed", database=database or "all", by=who.name)

    def disable(self, who: Caller, database: str, *, is_off: bool) -> None:
        """Let nobody log in to a database, or let clients in again; who is there stays. Raises NotFound."""
        with self._recorded(who, "disable" if is_off else "enable", database):
            require(who, Role.ADMIN, "disable" if is_off else "enable")
            if not database:
                raise Conflict("a database is required")
            self.supervisor.standstills.disable(database, is_off=is_off)
        _log.info("database disabled" if is_off else "database enabled", database=database, by=who.name)

    def shut_down(self, who: Caller) -> None:
        """End this Turnout as SIGTERM does: sessions have ten seconds to reach a boundary."""
        with self._recorded(who, "shut_down", "turnout"):
            require(who, Role.ADMIN, "shut Turnout down")
        _log.warning("shutting down", by=who.name)
        self.supervisor.end()

    def refused(self, who: Caller, action: str, target: str, why: str) -> None:
        """Keep in the audit log that a face refused something that would have changed the state."""
        self.audit.record(who, action, target, "refused", {"why": why})

    async def _backends_left(self, places: list[Place], *, is_retired: bool) -> bool:
        """There are some, or nobody knows."""
        for place in places:
            counted = await self.supervisor.count_backends(place.service, place.database)
            if counted is None or (counted.retired if is_retired else counted.left):
                return True
        return False

    def _not_switching(self, places: list[Place], command: str) -> None:
        for place in places:
            running = self._service(place.service).running
            if running is not None:
                raise Conflict(
                    f"cannot {command} while switch {running.id} of service {place.service} is under way",
                    hint="wait until it has ended, or CANCEL it",
                )

    # --- policies -------------------------------------------------------------------------------------------------

    def policies(self, who: Caller, service: str | None = None) -> list[PolicyView]:
        """Every policy or those of one service, by name, each with what was decided last. Raises NotFound."""
        require(who, Role.VIEWER)
        if service is not None:
            self._service(service)
        keeper = self.supervisor.policies
        return [keeper.view(policy) for policy in keeper.policies(service)]

    def policy(self, who: Caller, name: str) -> PolicyView:
        """One of them. Raises NotFound."""
        require(who, Role.VIEWER)
        keeper = self.supervisor.policies
        return keeper.view(keeper.policy(name))

    def policy_history(self, who: Caller, limit: int = 50, policy: str | None = None) -> list[Decision]:
        """What was decided and why, of all policies or of one, newest first; only changes are kept. A policy that is gone
        has its history all the same."""
        require(who, Role.VIEWER)
        return self.supervisor.policies.history(min(max(limit, 1), DECISIONS_MAX), policy)

    def engine_metrics(self, who: Caller, service: str, engine: str) -> EngineFigures:
        """The figures of one engine, at most a second old. Raises NotFound: no such engine, or not looked at yet."""
        require(who, Role.VIEWER)
        for one in self._service(service).engines:
            if one.name == engine and one.figures is not None:
                return one.figures
            if one.name == engine:
                raise NotFound(f"engine {engine!r} was not looked at yet", hint="ask again in a second")
        raise NotFound(f"service {service!r} has no engine {engine!r}", hint="`turnout engines` lists them")

    def set_policy(self, who: Caller, service: str, name: str, rules: PolicyConfig) -> PolicyView:
        """Set a policy, or replace the one of this name as a whole; kept over restarts. It is judged from the next second
        on. Raises NotFound (service); Conflict: it cannot be, or stands in the config file."""
        asked = msgspec.to_builtins(rules)
        with self._recorded(who, "set_policy", name, {"service": service, **asked}):
            require(who, Role.OPERATOR, "set a policy")
            self._service(service)
            keeper = self.supervisor.policies
            fields = {field: getattr(rules, field) for field in PolicyConfig.__struct_fields__}
            keeper.put(Policy(name=name, service=service, origin="command", **fields))
            return keeper.view(keeper.policy(name))

    def remove_policy(self, who: Caller, name: str) -> Policy:
        """Forget a policy that was set by command; a switch that it has begun goes on. Raises NotFound; Conflict: it stands
        in the config file."""
        with self._recorded(who, "remove_policy", name):
            require(who, Role.OPERATOR, "remove a policy")
            return self.supervisor.policies.remove(name)

    def enable_policy(self, who: Caller, name: str, *, is_enabled: bool) -> PolicyView:
        """Switch a policy on or off, also one of the config file; it stays so over restarts and reloads. Raises NotFound."""
        with self._recorded(who, "enable_policy" if is_enabled else "disable_policy", name):
            require(who, Role.OPERATOR, "switch a policy on or off")
            keeper = self.supervisor.policies
            return keeper.view(keeper.enable(name, is_enabled=is_enabled))

    async def run_policy(self, who: Caller, name: str) -> SwitchRecord:
        """Let a policy fire now, whatever its trigger and its brakes; the switch that it asks for is checked like any.
        Raises NotFound, Conflict (it is disabled), and what `switch` raises."""
        with self._recorded(who, "run_policy", name) as detail:
            require(who, Role.OPERATOR, "run a policy")
            record = await self.supervisor.policies.run(name, who.name)
            detail["switch"] = record.id
            return record

    async def switch_of_policy(self, plan: SwitchPlan) -> SwitchRecord:
        """`switch`, asked for by a policy: `plan.requested_by` names it."""
        return await self.switch(Caller(name=plan.requested_by, role=Role.OPERATOR), plan)

    # --- alerts ---------------------------------------------------------------------------------------------------

    def alerts_now(self, who: Caller) -> list[AlertView]:
        """Alerts that are pending, fire, or were over within a day; the worst first."""
        require(who, Role.VIEWER)
        return self.alerts.views()

    def alert_rules(self, who: Caller) -> list[RuleView]:
        """Every rule that alerts come from, by name."""
        require(who, Role.VIEWER)
        return self.alerts.rules()

    def receivers(self, who: Caller) -> list[ReceiverView]:
        """Who is told of alerts, and what became of it; no secret is shown."""
        require(who, Role.VIEWER)
        return self.alerts.receivers()

    def deliveries(self, who: Caller, limit: int = 50) -> list[Delivery]:
        """Messages about alerts, newest first, with what became of each."""
        require(who, Role.VIEWER)
        return self.alerts.deliveries(min(max(limit, 1), DELIVERIES_MAX))

    async def test_receiver(self, who: Caller, receiver: str) -> Delivery:
        """Send a receiver a test message, once, and return what became of it; it may have failed. Raises NotFound."""
        with self._recorded(who, "test_receiver", receiver) as detail:
            require(who, Role.OPERATOR, "send a test message")
            delivery = await self.alerts.test(receiver, who.name)
            detail |= {"state": delivery.state, "outcome": delivery.outcome}
        return delivery

    def silences(self, who: Caller) -> list[Silence]:
        """What keeps messages back now."""
        require(who, Role.VIEWER)
        return self.alerts.silences()

    def silence(
        self, who: Caller, *, duration_s: float, alert: str = "", service: str = "", engine: str = "", reason: str = ""
    ) -> Silence:
        """Keep messages about these alerts back for a time; what still fires then is told. The alerts are shown all the same.
        Raises NotFound, Conflict."""
        asked = {"alert": alert, "service": service, "engine": engine, "duration_s": duration_s, "reason": reason}
        what = alert or "all alerts"
        with self._recorded(who, "silence", what, {name: value for name, value in asked.items() if value}) as detail:
            require(who, Role.OPERATOR, "silence alerts")
            until = self._clock.wall() + min(duration_s, SILENCE_S_MAX)
            silence = Silence(
                number=0, alert=alert, service=service, engine=engine, until=until, by=who.name, reason=reason
            )
            kept = self.alerts.silence(silence)
            detail["number"] = kept.number
        return kept

    def unsilence(self, who: Caller, number: int) -> Silence:
        """End a silence before its time. Raises NotFound."""
        with self._recorded(who, "unsilence", str(number)):
            require(who, Role.OPERATOR, "end a silence")
            return self.alerts.unsilence(number)

    # --- inside ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _recorded(
        self, who: Caller, action: str, target: str, detail: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """One entry of the audit log for what is done inside, with how it came out. What stands in `detail` is kept; more
        may be put into it."""
        detail = {} if detail is None else detail
        try:
            yield detail
        except ProxyError as error:
            self.audit.record(who, action, target, "refused", {**detail, "why": error.text})
            raise
        except BaseException as error:
            self.audit.record(who, action, target, "failed", {**detail, "why": type(error).__name__})
            raise
        self.audit.record(who, action, target, "done", detail)

    def _service(self, name: str) -> ServiceView:
        views = self.supervisor.services()
        for view in views:
            if view.name == name:
                return view
        raise NotFound(f"there is no service {name!r}", hint=f"services are: {', '.join(view.name for view in views)}")

    async def _past_checks(self, record: SwitchRecord, moved: asyncio.Event) -> SwitchRecord:
        deadline_ns = self._clock.now_ns() + int(VALIDATION_WAIT_S * 1e9)
        while record.phase in (Phase.PENDING, Phase.VALIDATING):
            left_s = (deadline_ns - self._clock.now_ns()) / 1e9
            try:
                await asyncio.wait_for(moved.wait(), max(left_s, 0.0))
            except TimeoutError:
                break
            moved.clear()
            record = self.supervisor.switch(record.id)
        return record

    def _checks_of(self, switch_id: str) -> list[Check]:
        """The checks as the report of a refused switch keeps them; the report may be a moment behind the record."""
        try:
            return msgspec.convert(self.supervisor.report(switch_id).get("checks", []), list[Check])
        except NotFound:
            return []


_SUMMED: Final = (
    "sessions", "held", "requests_total", "transactions_total", "errors_total", "grades", "pinned",
)  # fmt: skip
"""Fields of `ServiceStatus` that are sums."""

_NOTHING: Final = ipc.ServiceFigures(
    service="", sessions=0, sessions_total=0, requests_total=0, transactions_total=0, errors_total=0,
    login_failures_total=0, bytes_in_total=0, bytes_out_total=0, request_us_total=0, held=0, pools=[], pinned={},
)  # fmt: skip
