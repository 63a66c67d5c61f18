"""The one door to a running Turnout. Every face (REST, metrics, later MCP and dashboard) calls these verbs.

A verb checks the caller's role, does one thing, and its docstring is what an operator may rely on. It knows nothing of
HTTP. What goes wrong is a ControlError or a PlanRefused, whose `hint` says what to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
import structlog

from proxy import VERSION, ipc
from proxy.clock import Clock, SystemClock
from proxy.config import Config, masked
from proxy.control.access import Caller, Role
from proxy.errors import ControlError, NotAllowed, NotFound
from proxy.switch.plan import SwitchPlan, SwitchRecord, accept
from proxy.switch.readiness import Check, failures
from proxy.switch.state import Phase
from proxy.switch.views import EngineView, Event, ServiceView, WorkerView

_log = structlog.get_logger("turnout.control")

VALIDATION_WAIT_S: Final = 8.0
"""How long a request for a switch waits for the checks' outcome before it answers that the switch has begun."""

SWITCHES_MAX: Final = 1_000
"""Most records of one listing."""


class Supervisor(Protocol):
    """What the door needs of `proxy.supervisor.Supervisor`, which stands above it."""

    config: Config
    started_at: float

    def is_ready(self) -> bool: ...
    def services(self) -> list[ServiceView]: ...
    def workers(self) -> list[WorkerView]: ...
    async def figures(self) -> list[ipc.WorkerFigures]: ...
    async def sessions(self, service: str | None = None) -> list[ipc.Session]: ...
    async def ready(self, service: str, target: str, plan: SwitchPlan | None = None) -> list[Check]: ...
    async def start_switch(self, plan: SwitchPlan) -> SwitchRecord: ...
    def switches(self, limit: int = 50) -> list[SwitchRecord]: ...
    def switch(self, switch_id: str) -> SwitchRecord: ...
    def report(self, switch_id: str) -> dict[str, Any]: ...
    async def cancel(self, switch_id: str, by: str = "") -> SwitchRecord: ...
    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]: ...


class SwitchRefused(ControlError):
    """A switch was refused by a check. `checks` has all of them, the failed ones among them."""

    status = 409

    def __init__(self, text: str, *, hint: str, switch: str, checks: list[Check]) -> None:
        super().__init__(text, hint=hint)
        self.switch = switch
        self.checks = checks


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service with the sums of what its workers count."""

    view: ServiceView
    sessions: int
    """Client connections now."""
    held: int
    """Of these, held by a switch."""
    requests_total: int
    """Since the workers began; so are the other totals."""
    transactions_total: int
    errors_total: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole Turnout at a glance."""

    version: str
    started_at: float
    """Seconds since 1970."""
    is_ready: bool
    """Every worker has its config and its listeners are open."""
    services: list[ServiceStatus]
    workers: list[WorkerView]


class EngineRow(msgspec.Struct, frozen=True, kw_only=True):
    """One engine, with the service it belongs to."""

    service: str
    engine: EngineView


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The readiness report: may a switch to `target` begin?"""

    service: str
    target: str
    is_ready: bool
    """No check refuses the switch. Warnings do not hold it up."""
    checks: list[Check]


class ControlService:
    """The door. One for the life of a supervisor; all verbs may be called concurrently."""

    def __init__(self, supervisor: Supervisor, *, clock: Clock | None = None) -> None:
        self.supervisor = supervisor
        self._clock = clock or SystemClock()

    # --- looking --------------------------------------------------------------------------------------------------

    async def status(self, who: Caller) -> Status:
        """Services with active engine and running switch, workers, and sums of what they count. Changes nothing."""
        _require(who, Role.OBSERVER)
        sums = sum_figures(await self.supervisor.figures())
        empty = ServiceSums()
        return Status(
            version=VERSION,
            started_at=self.supervisor.started_at,
            is_ready=self.supervisor.is_ready(),
            services=[
                ServiceStatus(
                    view=view,
                    sessions=(found := sums.get(view.name, empty)).sessions,
                    held=found.held,
                    requests_total=found.requests_total,
                    transactions_total=found.transactions_total,
                    errors_total=found.errors_total,
                )
                for view in self.supervisor.services()
            ],
            workers=self.supervisor.workers(),
        )

    def engines(self, who: Caller, service: str | None = None) -> list[EngineRow]:
        """Every engine as the last probe saw it, or those of one service. Raises NotFound."""
        _require(who, Role.OBSERVER)
        views = self.supervisor.services() if service is None else [self._service(service)]
        return [EngineRow(service=view.name, engine=engine) for view in views for engine in view.engines]

    async def sessions(self, who: Caller, service: str | None = None) -> list[ipc.Session]:
        """Every client connection, or those of one service, as each worker sees them now. Raises NotFound."""
        _require(who, Role.OBSERVER)
        if service is not None:
            self._service(service)
        return await self.supervisor.sessions(service)

    async def ready(self, who: Caller, service: str, target: str, *, plan: SwitchPlan | None = None) -> Readiness:
        """Run the checks of a switch to `target` and nothing else: no client notices, nothing is changed.

        With a `plan` its limits hold, and failed checks that it forces are passed over. Raises NotFound.
        """
        _require(who, Role.OBSERVER)
        view = self._service(service)
        if target not in {engine.name for engine in view.engines}:
            names = ", ".join(sorted(engine.name for engine in view.engines))
            raise NotFound(f"service {service!r} has no engine {target!r}", hint=f"its engines are: {names}")
        checks = await self.supervisor.ready(service, target, plan)
        is_ready = not failures(checks, force=plan is not None and plan.force)
        return Readiness(service=service, target=target, is_ready=is_ready, checks=checks)

    def switches(self, who: Caller, limit: int = 50) -> list[SwitchRecord]:
        """The newest `limit` switches, newest first, running ones among them."""
        _require(who, Role.OBSERVER)
        return self.supervisor.switches(min(max(limit, 1), SWITCHES_MAX))

    def switch_record(self, who: Caller, switch_id: str) -> SwitchRecord:
        """One switch, as far as it has come. Raises NotFound."""
        _require(who, Role.OBSERVER)
        return self.supervisor.switch(switch_id)

    def report(self, who: Caller, switch_id: str) -> dict[str, Any]:
        """The evidence report of a switch that has ended. Raises NotFound: unknown, or not ended yet."""
        _require(who, Role.OBSERVER)
        return self.supervisor.report(switch_id)

    def config(self, who: Caller) -> dict[str, Any]:
        """The config in force, each value with its origin; secrets are never shown."""
        _require(who, Role.OBSERVER)
        return masked(self.supervisor.config)

    def is_ready(self) -> bool:
        """Every worker has its config and its listeners are open. Anybody may ask."""
        return self.supervisor.is_ready()

    # --- doing ----------------------------------------------------------------------------------------------------

    async def switch(self, who: Caller, plan: SwitchPlan) -> SwitchRecord:
        """Begin the switch that `plan` asks for, and return once its checks have passed and it is under way.

        The switch goes on whether the caller stays or not. Until its phase is `promoting` it can be cancelled, and
        any trouble gives the source back writable; from then on it goes to its end. One switch of a service at a time.

        Raises NotFound (no such service), PlanRefused (the plan cannot be, whatever the engines' state), Conflict (one
        is running), SwitchRefused (a check failed; nothing was changed). Checks that take longer than
        `VALIDATION_WAIT_S` are not waited for: the record then says `validating`.
        """
        _require(who, Role.OPERATOR)
        self._service(plan.service)
        plan = msgspec.structs.replace(plan, requested_by=plan.requested_by or who.name)
        moved = asyncio.Event()
        unsubscribe = self.supervisor.subscribe(lambda event: moved.set() if event.service == plan.service else None)
        try:
            record = await self.supervisor.start_switch(plan)
            _log.info("switch asked for", service=plan.service, switch=record.id, target=plan.target, by=who.name)
            record = await self._past_checks(record, moved)
        finally:
            unsubscribe()
        if record.phase is Phase.ABORTED and Phase.PREPARING not in record.stamps:
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
        _require(who, Role.OBSERVER)
        view = self._service(plan.service)
        plan = accept(plan, self.supervisor.config.service[plan.service], view.active)
        return await self.ready(who, plan.service, plan.target, plan=plan)

    async def cancel(self, who: Caller, switch_id: str) -> SwitchRecord:
        """Undo a switch that has not begun to promote: the source is writable again and every session goes on there.

        Returns once the undoing has begun. Raises NotFound, Conflict (too late, or ended already).
        """
        _require(who, Role.OPERATOR)
        record = await self.supervisor.cancel(switch_id, who.name)
        _log.info("switch cancelled", service=record.service, switch=switch_id, by=who.name)
        return record

    # --- inside ---------------------------------------------------------------------------------------------------

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


def _require(who: Caller, role: Role) -> None:
    if who.role < role:
        raise NotAllowed(f"{who.name} may not do this", hint=f"it needs the role {role.name.lower()}")


# --- sums over the workers ----------------------------------------------------------------------------------------


class ServiceSums(msgspec.Struct, kw_only=True):
    """What all workers count of one service, as far as `Status` shows it."""

    sessions: int = 0
    held: int = 0
    requests_total: int = 0
    transactions_total: int = 0
    errors_total: int = 0


def sum_figures(workers: list[ipc.WorkerFigures]) -> dict[str, ServiceSums]:
    """What all workers count, by service."""
    sums: dict[str, ServiceSums] = {}
    for worker in workers:
        for figures in worker.services:
            found = sums.setdefault(figures.service, ServiceSums())
            for name in ServiceSums.__struct_fields__:
                setattr(found, name, getattr(found, name) + getattr(figures, name))
    return sums
