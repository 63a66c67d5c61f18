"""A supervisor that does what a test tells it, and polices how the door uses it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any

import msgspec

from proxy import ipc
from proxy.clock import SystemClock
from proxy.config import (
    AdminConfig,
    AuthConfig,
    Config,
    ControlConfig,
    EngineConfig,
    ListenerConfig,
    LogLevel,
    Secret,
    ServiceConfig,
)
from proxy.control.standstill import Standstills
from proxy.control.views import Reloaded
from proxy.engines.engine import EngineState, Role
from proxy.engines.figures import Stream
from proxy.errors import Conflict, NotFound
from proxy.latency import BUCKETS, bucket_of
from proxy.policy.keeper import PolicyKeeper
from proxy.policy.store import PolicyStore
from proxy.switch.datacheck import DataChecks, DataCheckStore
from proxy.switch.journal import Standing, upgrade
from proxy.switch.plan import SwitchPlan, SwitchRecord, accept, new_id
from proxy.switch.readiness import Check
from proxy.switch.state import ENDED, Phase
from proxy.switch.views import EngineView, Event, FailoverView, ServiceView, WorkerView

PATH = (
    Phase.PENDING, Phase.VALIDATING, Phase.PREPARING, Phase.HOLDING, Phase.FENCING, Phase.CATCHING_UP,
    Phase.PROMOTING, Phase.CUTTING_OVER, Phase.RELEASING, Phase.VERIFYING, Phase.COMPLETED,
)  # fmt: skip

LAG = Check(
    name="lag", verdict="fail", found="9 GB behind", limit="64 MB", remedy="wait for green", is_overridable=True
)
PASSED = Check(name="target_reachable", verdict="pass", found="green: PostgreSQL 18.4, 0.4 ms")
WARNED = Check(name="portability", verdict="warn", found="1 × lock", remedy="they are waited for")

FIGURES = {
    "hold_ms": {"p50": 20.5, "p99": 70.1, "max": 80.0},
    "blackout_ms": 90.0,
    "drain_ms": 12.0,
    "fence_ms": 3.0,
    "catchup_ms": 2.0,
    "promote_ms": 35.0,
    "cutover_ms": 12.5,
    "measured_by": "first_request_to_first_row",
    "errors_visible": 0,
    "acked_lost": None,
    "affected_transactions": 49,
}


def make_config(token: str | None = None, services: tuple[str, ...] = ("shop",)) -> Config:
    def service(name: str) -> ServiceConfig:
        return ServiceConfig(
            protocol="postgresql",
            databases=[name],
            active="blue",
            admin=AdminConfig(user="turnout", password=Secret(env="A", value="opensesame")),
            auth=AuthConfig(method="trust"),
            engine={
                "blue": EngineConfig(address="db1:5432"),
                "green": EngineConfig(address="db2:5432", role="standby"),
            },
        )

    secret = Secret(env="T", value=token) if token is not None else None
    return Config(
        control=ControlConfig(token=secret, requests_per_s=10_000, processor_share=1.0),
        listener=[ListenerConfig(protocol="postgresql", listen="127.0.0.1:6432")],
        service={name: service(name) for name in services},
    )


class ScriptedSupervisor:
    """A switch steps on when `step` or `run` says so; `checks` are what validation finds."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or make_config()
        self.started_at = time.time() - 100
        self.checks = [PASSED]
        self.is_listening = True
        self.active = dict.fromkeys(self.config.service, "blue")
        self.records: dict[str, SwitchRecord] = {}
        self.active_answers = True
        self.runs_by_itself = True
        self.cancelled_by = ""
        self.breaks = False
        self.database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        upgrade(self.database)
        self.ended_sessions: list[tuple[int, str]] = []
        self.told: list[ipc.StandStill] = []
        """What the workers are told about standing still."""
        self.standstills = Standstills(lambda: self.config.service, self.told.append)
        self.retired: list[tuple[str, str | None, bool]] = []
        self.backends_left: int | None = 0
        self.counted = 0
        self.ends = 0
        self.subscribers: list[Callable[[Event], None]] = []
        self.policies = PolicyKeeper(
            self.config.service,
            PolicyStore(self.database),
            Stream(),
            _Switches(self),
            SystemClock(),
            lambda event: None,
        )
        self.data_checks = DataChecks(
            self.config.service,
            {name: {} for name in self.config.service},
            DataCheckStore(self.database),
            SystemClock(),
            lambda event: None,
            active=lambda service: self.active[service],
            is_switching=lambda service: False,
        )

    # --- what the door needs --------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        return self.is_listening

    def services(self) -> list[ServiceView]:
        if self.breaks:
            raise RuntimeError("a bug, with opensesame in its text")
        return [self._view(name, service) for name, service in self.config.service.items()]

    def workers(self) -> list[WorkerView]:
        return [
            WorkerView(index=i, pid=100 + i, is_connected=True, is_configured=True, started_at=1.0, restarts=i)
            for i in range(2)
        ]

    async def figures(self) -> list[ipc.WorkerFigures]:
        return [
            ipc.WorkerFigures(
                request=1, worker=i, pid=100 + i, cpu_s=1.5, rss_bytes=1_000, services=[figures()],
                loop_lag=figures().engines[0].latency, loop_lag_us_total=1_000,
            )
            for i in range(2)
        ]  # fmt: skip

    def end(self) -> None:
        self.ends += 1

    async def backends(self) -> list[ipc.Backend]:
        return []

    async def count_backends(self, service: str, database: str | None) -> ipc.BackendsCounted | None:
        self.counted += 1
        left = self.backends_left
        return None if left is None else ipc.BackendsCounted(request=1, left=left, retired=left)

    def retire_backends(self, service: str, database: str | None, *, ends_sessions: bool) -> None:
        self.retired.append((service, database, ends_sessions))

    async def sessions(
        self, service: str | None = None, *, session: int | None = None, with_sockets: bool = False
    ) -> list[ipc.Session]:
        return [
            ipc.Session(
                id=i, worker=0, service="shop", protocol="postgresql", user="[red]app", database="shop",
                client=f"10.0.0.{i}:5000", engine="blue", backend_pid=4_000 + i, standing="active",
                in_transaction=i == 1, portability="D" if i == 2 else "A", pins=["advisory lock"] if i == 2 else [],
                requests=3, age_s=100.0, idle_s=0.5,
            )
            for i in range(3)
            if session in (None, i)
        ]  # fmt: skip

    def span_counts(self) -> dict[str, int]:
        return {"sent": 7, "failed": 0, "dropped": 0}

    async def ready(self, service: str, target: str, plan: SwitchPlan | None = None) -> list[Check]:
        return self.checks

    async def start_switch(self, plan: SwitchPlan) -> SwitchRecord:
        if any(record.phase not in ENDED and record.service == plan.service for record in self.records.values()):
            raise Conflict(f"service {plan.service!r} is being switched", hint="wait for it, or cancel it")
        plan = accept(plan, self.config.service[plan.service], self.active[plan.service])
        record = SwitchRecord(
            id=new_id(), service=plan.service, source=self.active[plan.service], target=plan.target,
            strategy=plan.strategy, plan=plan, began_at=time.time(), began_ns=SystemClock().now_ns(),
        )  # fmt: skip
        self.records[record.id] = record
        self._enter(record, Phase.VALIDATING)
        if self.runs_by_itself:
            self.run(record.id)
        return record

    def switches(self, limit: int = 50) -> list[SwitchRecord]:
        return list(reversed(self.records.values()))[:limit]

    def switch(self, switch_id: str) -> SwitchRecord:
        if switch_id not in self.records:
            raise NotFound(f"there is no switch {switch_id!r}", hint="`turnout history` lists them")
        return self.records[switch_id]

    def report(self, switch_id: str) -> dict[str, Any]:
        record = self.switch(switch_id)
        if record.phase not in ENDED:
            raise NotFound(f"switch {switch_id!r} has not ended yet", hint="ask again when it has")
        return {
            "id": record.id, "service": record.service, "source": record.source, "target": record.target,
            "strategy": record.strategy, "phase": record.phase.value, "error": record.error, "remedy": record.remedy,
            "recovered": False, "epoch": 2, "plan": msgspec.to_builtins(record.plan), "began_at": record.began_at,
            "ended_at": record.ended_at,
            "phases_us": [{"phase": phase, "at_us": at} for phase, at in record.stamps.items()],
            "checks": msgspec.to_builtins(self.checks), "figures": FIGURES,
            "waits": {"count": 49, "unit": "us", "histogram": [{"under_us": 32_768, "count": 40}]},
            "sessions": 50, "interrupted": [], "interrupted_count": 0, "refused_after_hold_ms_max": 0,
            "waiting_for": [], "positions": {"source": "0/3000060", "target": "0/3000060"},
            "fence": {
                "engine": "blue", "how": "default_transaction_read_only = on", "refused_with": "25006",
                "sessions_ended": 0, "writers_left": 0,
            },
            "audit": None,
        }  # fmt: skip

    async def cancel(self, switch_id: str, by: str = "") -> SwitchRecord:
        record = self.switch(switch_id)
        if record.phase in ENDED:
            raise Conflict(f"switch {switch_id!r} has ended: {record.phase}", hint="plan another to go back")
        self.cancelled_by = by
        record.error = f"cancelled by {by}"
        self._end(record, Phase.ABORTED)
        return record

    async def end_session(self, session: int, reason: str) -> bool:
        self.ended_sessions.append((session, reason))
        return True

    def add_engine(self, service: str, name: str, engine: EngineConfig) -> None:
        engines = {**self.config.service[service].engine, name: engine}
        self._put_engines(service, engines)

    async def remove_engine(self, service: str, name: str) -> None:
        if name == self.active[service]:
            raise Conflict(f"engine {name!r} serves {service!r}", hint="switch to another engine first")
        engines = {key: one for key, one in self.config.service[service].engine.items() if key != name}
        self._put_engines(service, engines)

    def _put_engines(self, service: str, engines: dict[str, EngineConfig]) -> None:
        changed = msgspec.structs.replace(self.config.service[service], engine=engines)
        self.config = msgspec.structs.replace(self.config, service={**self.config.service, service: changed})

    def reload(self) -> Reloaded:
        self.tell(Event(kind="config.reloaded", at=time.time()))
        return Reloaded(
            added=[], removed=[], applied=["max_client_conn: 10 -> 20"], kept=[], needs_restart=["workers: 1 -> 2"]
        )

    def set_log_level(self, level: LogLevel) -> None:
        log = msgspec.structs.replace(self.config.log, level=level)
        self.config = msgspec.structs.replace(self.config, log=log)

    def publish(self, event: Event) -> None:
        self.tell(event)

    def tell(self, event: Event) -> None:
        for callback in list(self.subscribers):
            callback(event)

    def switch_automation(self, service: str, is_on: bool, by: str = "") -> FailoverView:
        self.failover = FailoverView(is_automatic=is_on, why_not="" if is_on else f"switched off by {by}")
        return self.failover

    async def start_failover(
        self, service: str, target: str | None, *, force: bool = False, by: str = "", reason: str = ""
    ) -> SwitchRecord:
        if self.active_answers:
            raise Conflict(f"the active engine {self.active[service]!r} answers", hint="nothing has failed")
        plan = SwitchPlan(service=service, target=target or "green", requested_by=by, reason=reason, force=force)
        return await self.start_switch(plan)

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        self.subscribers.append(callback)
        return lambda: self.subscribers.remove(callback)

    # --- what a test tells it -------------------------------------------------------------------------------------

    def run(self, switch_id: str, until: Phase = Phase.COMPLETED) -> None:
        """Go on to `until`, or to the refusal that `checks` ask for."""
        record = self.records[switch_id]
        failed = [check for check in self.checks if check.verdict == "fail" and not record.plan.force]
        if failed:
            record.error = f"check {failed[0].name} failed: {failed[0].found}"
            record.remedy = failed[0].remedy
            self._end(record, Phase.ABORTED)
            return
        for phase in PATH[PATH.index(record.phase) + 1 : PATH.index(until) + 1]:
            if phase is Phase.COMPLETED:
                record.figures = dict(FIGURES)
                self.active[record.service] = record.target
                self._end(record, phase)
            else:
                self._enter(record, phase)

    def _enter(self, record: SwitchRecord, phase: Phase) -> None:
        record.phase = phase
        record.stamps[phase.value] = len(record.stamps) * 1_000
        self._tell("switch.ended" if phase in ENDED else "switch.phase", record)

    def _end(self, record: SwitchRecord, phase: Phase) -> None:
        record.ended_at = time.time()
        self._enter(record, phase)

    def _tell(self, kind: str, record: SwitchRecord) -> None:
        data = {"id": record.id, "phase": record.phase.value}
        self.tell(Event(kind=kind, at=time.time(), service=record.service, data=data))

    def _view(self, name: str, service: ServiceConfig) -> ServiceView:
        running = [one for one in self.records.values() if one.service == name and one.phase not in ENDED]
        return ServiceView(
            name=name, protocol=service.protocol, pool_mode=service.pool_mode, databases=service.databases,
            active=self.active[name], epoch=1, running=running[0] if running else None,
            engines=[
                EngineView(
                    name="blue", address="db1:5432", is_active=self.active[name] == "blue", probed_at=time.time(),
                    state=EngineState(
                        name="blue", is_reachable=True, version="PostgreSQL 18.4", role=Role.PRIMARY, is_writable=True,
                        response_time_ms=0.4,
                    ),
                ),
                EngineView(
                    name="green", address="db2:5432", is_active=self.active[name] == "green", probed_at=time.time(),
                    state=EngineState(
                        name="green", is_reachable=True, version="PostgreSQL 18.4", role=Role.STANDBY,
                        is_replicating=True, lag_bytes=512, lag_ms=1.5, response_time_ms=0.5,
                    ),
                ),
                EngineView(
                    name="red", address="db3:5432", is_active=False, probed_at=time.time(),
                    state=EngineState(name="red", is_reachable=False, why="connection refused"),
                ),
                *(
                    EngineView(name=one, address=engine.address, is_active=False, state=None, probed_at=0.0)
                    for one, engine in service.engine.items()
                    if one not in ("blue", "green")
                ),
            ],
        )  # fmt: skip


class _Switches:
    """What policies ask of switches."""

    def __init__(self, supervisor: ScriptedSupervisor) -> None:
        self._supervisor = supervisor

    def standing(self, service: str) -> Standing:
        return Standing(self._supervisor.active[service], 1)

    def running(self, service: str) -> SwitchRecord | None:
        found = self._supervisor.records.values()
        return next((one for one in found if one.service == service and one.phase not in ENDED), None)

    def record(self, switch_id: str) -> SwitchRecord:
        return self._supervisor.switch(switch_id)

    def records(self, limit: int) -> list[SwitchRecord]:
        return self._supervisor.switches(limit)


def figures() -> ipc.ServiceFigures:
    """What one worker counts of service `shop`."""
    pool = ipc.PoolFigures(service="shop", engine="blue", database="shop", user="app", idle=2, in_use=3, waiting=1)
    latency = [0] * BUCKETS
    latency[bucket_of(1)], latency[bucket_of(3)], latency[-1] = 900, 90, 10
    engine = ipc.EngineFigures(
        engine="blue", requests_total=1_000, errors_total=3, faults_total=1, request_us_total=2_000_000, latency=latency,
        transactions_total=400, transaction_us_total=4_000_000, transaction_latency=latency,
        wait_us_total=500_000, waits=latency,
    )  # fmt: skip
    return ipc.ServiceFigures(
        service="shop", engines=[engine], grades={"A": 3, "D": 2}, prepared_statements=7, errors_by_class={"42": 2, "40": 1}, sessions=5, sessions_total=50, requests_total=1_000, transactions_total=400, errors_total=3,
        login_failures_total=2, bytes_in_total=10_000, bytes_out_total=20_000, request_us_total=2_000_000,
        held=1, pools=[pool, pool], pinned={"advisory lock": 1},
    )  # fmt: skip
