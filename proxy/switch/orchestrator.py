"""Carries out what a `SwitchRun` orders; with `acts`, which asks the engines, the only part of a switch that does I/O.

It owns, for each service, who is active and the epoch (`Standing`, kept in the journal), the run that is under way and
its timers and engine calls. Workers are reached through a `Crew`, which the supervisor is.

Speed
-----
Between hold and release nothing is opened, resolved or logged in: admin connections are opened while preparing. Orders
of one fact are carried out in one go without going back to the loop; worker orders are written, not awaited; a journal
entry is one write without an fsync (see `journal`). What is left is the engines' own round trips.

Fault injection
---------------
`TURNOUT_TEST_STOP_AT` in the environment makes the supervisor kill itself with SIGKILL: at `<phase>`, right after that
phase was journaled and before anything else of it is done; at `<event>` (`fenced`, `promoted`, `unfenced`), when the
engine has answered and before anybody took notice. For the tests of recovery; read here and nowhere else.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from proxy import ipc
from proxy.clock import Clock
from proxy.config import ServiceConfig, SwitchConfig
from proxy.engines.engine import Engine, EngineState, Role
from proxy.errors import Conflict, EngineError, NotFound, PlanRefused
from proxy.switch import failover_run, strategies
from proxy.switch import run as core
from proxy.switch.acts import LOOK_TIMEOUT_S, Acts, Work, of_service
from proxy.switch.agenda import judge_time
from proxy.switch.datacheck import DataCheckStore, ended_event, made_at_fence
from proxy.switch.evidence import Span
from proxy.switch.failover_run import FAILOVER, FailoverRun
from proxy.switch.journal import SWITCHES_KEPT, Deposed, Journal, Standing, Tally
from proxy.switch.plan import SwitchPlan, SwitchRecord, accept, new_id
from proxy.switch.readiness import Check
from proxy.switch.run import Act, SwitchRun, Timer, Verdict
from proxy.switch.running import Crew, Running
from proxy.switch.significance import NOTHING, History, Limits, samples_of
from proxy.switch.state import ENDED, Phase
from proxy.switch.views import Event
from proxy.switch.waiting import Waiting, busy
from proxy.tasks import cancel_and_wait, spawn

_log = structlog.get_logger("turnout.switch")

STOP_AT_VARIABLE: Final = "TURNOUT_TEST_STOP_AT"

WATCH_INTERVAL_S: Final = 1.0
"""How often it is noted what a service does that is compared with before after a switch."""

BEFORE_S_MIN: Final = 30.0
"""The time before a switch that is compared with, if the window after it is shorter."""


class Orchestrator:
    """All switches of all services; one at a time of each."""

    def __init__(
        self,
        services: Mapping[str, ServiceConfig],
        engines: Mapping[str, Mapping[str, Engine]],
        journal: Journal,
        crew: Crew,
        clock: Clock,
        publish: Callable[[Event], None],
        workers_wanted: int,
    ) -> None:
        self._services = dict(services)
        self._engines = engines
        self._journal = journal
        self._crew = crew
        self._clock = clock
        self._publish = publish
        self._data_checks = DataCheckStore(journal.database)
        self._history: dict[str, History] = {name: History() for name in services}
        self._acts = Acts(engines, crew, clock, workers_wanted, self._data_checks, self._history)
        self._running: dict[str, Running] = {}
        # Switches that are being taken back, by the id of the one that does it.
        self._returning: dict[str, Running] = {}
        self._waiting = Waiting(journal, clock, crew, self._running, begin=self._begin_waiting, tell=self._tell_phase)
        self._watch: asyncio.Task[None] | None = None
        self._standings: dict[str, Standing] = {}
        # Workers that took part in a switch that `recover` resumed before they were configured.
        self._resumed: set[tuple[int, str]] = set()
        self._given_up: set[asyncio.Task[None]] = set()
        self.on_ended: Callable[[SwitchRecord], None] | None = None
        self._is_stopping = False
        self._stop_at = os.environ.get(STOP_AT_VARIABLE, "")
        for name, service in services.items():
            known = journal.standing(name)
            if known is None or known.active not in service.engine:
                if known is not None:
                    _log.warning(
                        "the state file names an engine that the config has no more",
                        service=name, engine=known.active, active=service.active,
                    )  # fmt: skip
                known = Standing(service.active, known.epoch + 1 if known else 1)
                journal.stand(name, known)
            self._standings[name] = known

    # --- what is -----------------------------------------------------------------------------------------------------

    def standing(self, service: str) -> Standing:
        """Who is active, and the epoch."""
        return self._standings[service]

    def running(self, service: str) -> SwitchRecord | None:
        """The switch under way."""
        found = self._running.get(service)
        return found.record if found else None

    def waiting(self, service: str) -> list[SwitchRecord]:
        """Switches that wait for their time or their turn."""
        return self._waiting.of(service)

    def tally(self, service: str) -> Tally:
        """How the switches of a service ended."""
        return self._journal.tally(service)

    def reconfigure(self, services: Mapping[str, ServiceConfig]) -> None:
        """Limits of a reloaded config; running switches keep theirs."""
        self._services = dict(services)

    def _under_way(self) -> list[Running]:
        return [*self._running.values(), *self._returning.values()]

    def record(self, switch_id: str) -> SwitchRecord:
        """Raises NotFound."""
        for running in self._under_way():
            if running.record.id == switch_id:
                return running.record
        waiting = self._waiting.find(switch_id)
        if waiting is not None:
            return waiting
        return self._journal.switch(switch_id)

    def records(self, limit: int) -> list[SwitchRecord]:
        """Newest first."""
        return [self.record(record.id) for record in self._journal.switches(limit)]

    async def wait(self, switch_id: str, timeout_s: float) -> SwitchRecord:
        """The record once the switch has ended, or as it is at the deadline. Raises NotFound."""
        for running in self._under_way():
            if running.record.id == switch_id:
                try:
                    await asyncio.wait_for(running.ended.wait(), timeout_s)
                except TimeoutError:
                    pass
                return running.record
        return self._journal.switch(switch_id)

    async def examine(self, service: str, target: str, plan: SwitchPlan | None = None) -> list[Check]:
        """The readiness report, by the limits of `plan` if there is one. Raises NotFound; Conflict while a switch uses
        the engines."""
        config, engines = self._services[service], self._engines[service]
        if target not in engines:
            raise NotFound(
                f"service {service!r} has no engine {target!r}", hint=f"its engines are: {', '.join(sorted(engines))}"
            )
        active = self._standings[service].active
        if target == active:
            return [
                Check(
                    name="target_not_active", verdict="fail", found=f"{target} is the active engine",
                    limit="another engine", remedy="name the engine to go to",
                )
            ]  # fmt: skip
        if service in self._running:
            raise Conflict(f"switch {self._running[service].record.id} is under way", hint="wait for it, or cancel it")
        return await self._acts.examine(service, engines[active], engines[target], config, plan)

    # --- a switch ----------------------------------------------------------------------------------------------------

    def begin(self, plan: SwitchPlan) -> SwitchRecord:
        """Journal the plan and begin, or have it wait for its time or its turn. Raises PlanRefused, Conflict,
        sqlite3.Error."""
        if plan.at is not None:
            judge_time(plan.at, self._clock.wall())
            return self._put_off(plan)
        if plan.service in self._running:
            if self._waits_when_busy(plan):
                return self._put_off(plan)
            raise busy(self._running[plan.service].record)
        record = self._record_of(accept(plan, self._services[plan.service], self._standings[plan.service].active))
        self._journal.begin(record)
        self._set_going(record)
        return record

    def _record_of(self, plan: SwitchPlan, *, goes_back_from: str = "") -> SwitchRecord:
        standing = self._standings[plan.service]
        return SwitchRecord(
            id=new_id(),
            service=plan.service,
            source=standing.active,
            target=plan.target,
            strategy=plan.strategy,
            plan=plan,
            began_at=self._clock.wall(),
            began_ns=self._clock.now_ns(),
            stamps={Phase.PENDING: 0},
            boot=_boot_id(),
            epoch=standing.epoch + 1,
            goes_back_from=goes_back_from,
        )

    def fail_over(
        self,
        service: str,
        target: str,
        reason: str,
        *,
        since_ns: int,
        by: str,
        failure: dict[str, Any],
        checks: list[Check],
    ) -> SwitchRecord:
        """Journal the decision (`by` whom) that `target` takes over from the active engine, which has failed since then, and
        begin. `failure` goes into the report. Raises Conflict, sqlite3.Error."""
        config, standing = self._services[service], self._standings[service]
        if service in self._running:
            raise Conflict(f"switch {self._running[service].record.id} of service {service!r} is under way", hint="")
        plan = SwitchPlan(
            service=service, source=standing.active, target=target, strategy=FAILOVER, drain_timeout_s=0.0,
            on_drain_expired="terminate", requested_by=by, reason=reason,
        )  # fmt: skip
        record = self._record_of(plan)
        self._journal.begin(record)
        running = self._make(record, self._crew.workers(), config)
        self._running[service] = running
        running.evidence.failure, running.evidence.checks = failure, checks
        running.evidence.detection = Span(since_ns, record.began_ns)
        self._carry_out(running, running.run.begin())
        return record

    def _set_going(self, record: SwitchRecord) -> None:
        running = self._make(record, self._crew.workers(), self._services[record.service])
        self._running[record.service] = running
        self._carry_out(running, running.run.begin())

    def _waits_when_busy(self, plan: SwitchPlan) -> bool:
        return (plan.when_busy or self._services[plan.service].switch.when_busy) == "queue"

    def _put_off(self, plan: SwitchPlan) -> SwitchRecord:
        # Who is active at its time is not known now; all else that is wrong with it is.
        accept(msgspec.structs.replace(plan, source=None), self._services[plan.service], active="")
        record = self._record_of(plan)
        record.due_at, record.is_queued = plan.at, self._waits_when_busy(plan)
        self._waiting.add(record)
        return record

    def _begin_waiting(self, record: SwitchRecord) -> None:
        config, standing = self._services[record.service], self._standings[record.service]
        try:
            plan = accept(record.plan, config, standing.active)
        except PlanRefused as error:
            self._waiting.close(record, error.text, error.hint)
            return
        self._waiting.remove(record)
        record.plan, record.source, record.epoch = plan, standing.active, standing.epoch + 1
        record.began_at, record.began_ns, record.boot = self._clock.wall(), self._clock.now_ns(), _boot_id()
        record.due_at, record.is_queued = None, False
        self._set_going(record)

    # --- a switch is taken back --------------------------------------------------------------------------------------

    def _begin_way_back(self, outer: Running, why: str) -> None:
        """Another switch, in the other direction; this one waits for its end."""
        record = outer.record
        plan = SwitchPlan(
            service=record.service,
            target=record.source,
            source=record.target,
            drain_timeout_s=record.plan.drain_timeout_s,
            on_drain_expired=record.plan.on_drain_expired if record.strategy != "immediate" else None,
            requested_by=f"verification of switch {record.id}",
            reason=why,
        )
        try:
            accepted = accept(plan, self._services[record.service], self._standings[record.service].active)
            inner = self._record_of(accepted, goes_back_from=record.id)
            self._journal.begin(inner)
        except (PlanRefused, sqlite3.Error) as error:
            _log.error("a switch cannot be taken back", switch=record.id, error=str(error))
            # Not now: the orders that this one came with are still being carried out.
            asyncio.get_running_loop().call_soon(self._feed, outer, core.WentBack(str(error)))
            return
        self._returning[inner.id] = outer
        self._set_going(inner)

    def _went_back(self, inner: SwitchRecord) -> None:
        outer = self._returning.pop(inner.id, None)
        if outer is not None:
            self._feed(outer, core.WentBack(_why_not_back(inner)))

    def _recover_way_back(self, record: SwitchRecord) -> None:
        """After a restart: the switch that takes this one back goes on, has ended, or never began."""
        if record.source not in self._engines[record.service] or record.target not in self._engines[record.service]:
            return
        record.recovered = True
        outer = self._make(record, (), self._services[record.service])
        for running in self._running.values():
            if running.record.goes_back_from == record.id:
                self._returning[running.record.id] = outer
                return
        ways = [one for one in self._journal.switches(SWITCHES_KEPT) if one.goes_back_from == record.id]
        why = _why_not_back(ways[0]) if ways else "the supervisor was restarted before it began"
        self._feed(outer, core.WentBack(why))

    # --- what was before ---------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Workers are there: begin the switches that wait, and note what the services do, for the comparison after a
        cutover."""
        self._watch = spawn(self._keep_watching(), name="what the services do", stays=True)
        self._waiting.begin_due()

    async def _keep_watching(self) -> None:
        while True:
            watched = [name for name, service in self._services.items() if service.switch.verify_window_s > 0]
            figures = await self._crew.figures() if watched else []
            now_s = self._clock.now_ns() / 1e9
            for name in watched:
                if name not in self._running:
                    kept_s = max(BEFORE_S_MIN, self._services[name].switch.verify_window_s)
                    self._history[name].note(now_s, samples_of(of_service(figures, name)), kept_s)
            await asyncio.sleep(WATCH_INTERVAL_S)

    # --- running -----------------------------------------------------------------------------------------------------

    def _make(self, record: SwitchRecord, crew: Iterable[int], config: ServiceConfig) -> Running:
        engines = self._engines[record.service]
        is_failover = record.strategy == FAILOVER
        limits = _limits_of_comparison(config.switch)
        strategy = strategies.strategy_of(record.plan, limits)
        window = None
        if config.switch.verify_window_s > 0 and not record.recovered and not record.goes_back_from and not is_failover:
            window = strategies.Window(config.switch.verify_window_s, limits)
        run = (FailoverRun if is_failover else SwitchRun)(
            record.id,
            record.plan,
            epoch=record.epoch - 1,
            crew=list(crew),
            hold_ms_max=config.switch.hold_ms_max,
            catchup_timeout_s=config.switch.catchup_timeout_s,
            promote_timeout_s=config.switch.promote_timeout_s,
            phase=record.phase,
            moves_data=config.replication != "none",
            compares=config.switch.compare_at_fence_ms > 0 and not is_failover,
            audits=not is_failover,
            reverses=bool(self._acts.others(record)) if is_failover else config.reverse_replication,
            hooks={hook.at for hook in config.hook},
            strategy=strategy,
            window=window,
        )
        before = self._history[record.service].of(record.source) if window is not None else NOTHING
        return Running(record, run, engines[record.source], engines[record.target], config, strategy, window, before)

    def cancel(self, switch_id: str, by: str) -> SwitchRecord:
        """Begin to undo. Raises NotFound, Conflict."""
        record = self.record(switch_id)
        if self._waiting.find(switch_id) is not None:
            self._waiting.close(record, f"cancelled by {by}" if by else "cancelled", "")
            return record
        running = next((one for one in self._under_way() if one.record.id == switch_id), None)
        if running is None:
            raise Conflict(f"switch {switch_id} has ended: it is {record.phase}", hint="")
        if not running.run.is_cancellable:
            raise Conflict(
                f"switch {switch_id} cannot be undone any more: it is {record.phase}",
                hint=f"when it has completed, switch back to {record.source}",
            )
        self._feed(running, core.CancelAsked(by))
        return record

    def give_way(self, service: str, to: str) -> None:
        """Undo the switch under way, if that is possible, because the source has failed. A failover goes on."""
        running = self._running.get(service)
        if running is not None and running.record.strategy != FAILOVER and running.run.is_cancellable:
            self._feed(running, core.CancelAsked(to))

    async def stop(self) -> None:
        """Undo what can be undone, wait for the rest as long as it takes to be decided (bounded by its own deadlines,
        and by five seconds), let go of everything. What waits is in the journal, for the next supervisor."""
        self._waiting.stop()
        await cancel_and_wait(self._watch)
        self._is_stopping = True
        for running in list(self._running.values()):
            if running.run.is_cancellable:
                self._feed(running, core.CancelAsked("the supervisor, which stops"))
        waiting = [
            spawn(running.ended.wait(), name=f"end of switch {running.record.id}") for running in self._running.values()
        ]
        if waiting:
            await asyncio.wait(waiting, timeout=5.0)
            await cancel_and_wait(*waiting)
        for running in list(self._running.values()):
            await self._let_go(running)
        await cancel_and_wait(*self._given_up)

    async def _let_go(self, running: Running) -> None:
        for timer in running.timers.values():
            timer.cancel()
        running.timers.clear()
        await cancel_and_wait(*running.calls)

    # --- what workers do ---------------------------------------------------------------------------------------------

    def worker_said(self, worker: int, fact: ipc.Fact) -> None:
        """A fact that carries a switch's id."""
        running = self._running.get(getattr(fact, "service", ""))
        if running is None or getattr(fact, "switch", None) != running.record.id:
            return
        running.evidence.sees(worker, fact, self._clock.now_ns())
        self._feed(running, core.WorkerSaid(worker, fact))
        match fact:
            case ipc.Draining(held=held, draining=draining, waiting_for=waiting_for):
                self._tell_progress(fact, worker, held, draining, waiting_for)
            case ipc.AllHeld(held=held):
                self._tell_progress(fact, worker, held, 0, [])
            case _:
                pass

    def _tell_progress(
        self, fact: ipc.Draining | ipc.AllHeld, worker: int, held: int, draining: int, waiting_for: list[str]
    ) -> None:
        self._publish(
            Event(
                kind="switch.progress", at=self._clock.wall(), service=fact.service,
                data={
                    "id": fact.switch, "worker": worker, "held": held, "draining": draining,
                    "waiting_for": waiting_for,
                },
            )
        )  # fmt: skip

    def worker_joined(self, worker: int, runs: list[ipc.RunState], epochs: Mapping[str, int]) -> None:
        """A worker was configured; `runs` and `epochs` are what it said of itself before that."""
        stands = {state.switch for state in runs}
        for running in list(self._running.values()):
            # `recover` has given its orders already to those that were there.
            if (worker, running.record.id) not in self._resumed:
                self._feed(running, core.WorkerJoined(worker, running.record.id in stands))
            self._resumed.discard((worker, running.record.id))
        for state in runs:
            if state.service in self._standings and not self._is_running(state.switch):
                self._bring_home(worker, state, epochs.get(state.service, 0))
        left = {state.service for state in runs} | self._running.keys()
        for service, standing in self._standings.items():
            # A new worker has no epochs: it serves with what it was configured with.
            if service in epochs and epochs[service] < standing.epoch and service not in left:
                self._crew.replace(worker, f"it serves {service} with epoch {epochs[service]}, not {standing.epoch}")

    def _is_running(self, switch_id: str) -> bool:
        return any(running.record.id == switch_id for running in self._running.values())

    def _bring_home(self, worker: int, state: ipc.RunState, epoch: int) -> None:
        """A worker stands in a switch that has ended. If it is where the switch ended, it only has to go on."""
        standing = self._standings[state.service]
        if epoch == standing.epoch:
            self._crew.tell(worker, ipc.Release(switch=state.switch, service=state.service, epoch=standing.epoch))
        else:
            self._crew.replace(worker, f"it missed the end of switch {state.switch}")

    def engine_lost(self, service: str, engine: str, why: str) -> None:
        """The data plane cannot reach an engine."""
        running = self._running.get(service)
        if running is not None and running.record.target == engine:
            self._feed(running, core.TargetLost(why))

    def worker_lost(self, worker: int) -> None:
        """Its process is gone."""
        for running in list(self._running.values()):
            self._feed(running, core.WorkerLost(worker))

    # --- after a restart ---------------------------------------------------------------------------------------------

    async def recover(self, stands: Mapping[int, tuple[Mapping[str, int], list[ipc.RunState]]]) -> None:
        """Take up every switch that an earlier supervisor left, as journal and engines say, and set them going.

        `stands` is what each adopted worker said: the epochs it serves with, and the switches it stands in. Returns
        when every one of them is decided, not when it has ended.
        """
        records = [record for record in self._journal.unfinished() if record.service in self._services]
        begun = [record for record in records if not record.is_waiting]
        await asyncio.gather(*(self._recover(one, stands) for one in begun if one.phase is not Phase.ROLLING_BACK))
        for record in begun:
            if record.phase is Phase.ROLLING_BACK:
                self._recover_way_back(record)
        grace_s = {name: service.switch.schedule_grace_s for name, service in self._services.items()}
        self._waiting.take_up([record for record in records if record.is_waiting], grace_s)

    async def _recover(
        self, record: SwitchRecord, stands: Mapping[int, tuple[Mapping[str, int], list[ipc.RunState]]]
    ) -> None:
        config, engines = self._services[record.service], self._engines[record.service]
        if record.source not in engines or record.target not in engines:
            record.phase, record.error = Phase.FAILED, "an engine of this switch is not in the config any more"
            record.remedy = "see which engine takes writes, and set `active` to it"
            self._journal.enter(record, self._clock.now_ns())
            return
        crew = [
            worker
            for worker, (epochs, runs) in stands.items()
            if epochs.get(record.service, 0) < record.epoch or any(state.switch == record.id for state in runs)
        ]
        source, target = engines[record.source], engines[record.target]
        record.recovered = True
        self._resumed.update((worker, record.id) for worker in stands)
        running = self._make(record, crew, config)
        self._running[record.service] = running
        looks = await asyncio.gather(
            source.probe(LOOK_TIMEOUT_S), target.probe(LOOK_TIMEOUT_S), _quietly(source), _quietly(target)
        )
        is_journal_whole = record.boot == _boot_id()
        if record.strategy == FAILOVER:
            verdict = failover_run.decide(record.phase, looks[0], looks[1])
        else:
            verdict = core.decide(
                record.phase, looks[0], looks[1],
                is_journal_whole=is_journal_whole, moves_data=config.replication != "none",
            )  # fmt: skip
        _log.warning(
            "an unfinished switch was found",
            switch=record.id, service=record.service, phase=record.phase.value, verdict=verdict.value,
            source=_spell(looks[0]), target=_spell(looks[1]),
        )  # fmt: skip
        if record.phase in (Phase.CUTTING_OVER, Phase.RELEASING, Phase.VERIFYING):
            running.evidence.cut_over()
        if verdict in (Verdict.PROMOTE, Verdict.WAIT):
            running.evidence.promotion.began_ns = self._clock.now_ns()
        orders = running.run.resume(verdict)
        record.phase = running.run.phase
        self._carry_out(running, orders)

    async def agree(self, service: str) -> None:
        """At start, without an unfinished switch: is the active engine the writable one?

        The state file is corrected only where it is certain: the active engine answers and does not take writes, and
        exactly one other engine does. An engine that does not answer is not overruled (that would be a failover).
        """
        if service in self._running:
            return
        standing, engines = self._standings[service], self._engines[service]
        states = dict(
            zip(engines, await asyncio.gather(*(e.probe(LOOK_TIMEOUT_S) for e in engines.values())), strict=True)
        )
        active = states[standing.active]
        deposed = self._journal.deposed(service)
        writable = [
            name
            for name, state in states.items()
            if state.role is Role.PRIMARY and state.is_writable and name not in deposed
        ]
        if active.is_reachable and standing.active in writable:
            if len(writable) > 1 and self._services[service].replication != "none":
                _log.warning("more than one engine takes writes", service=service, engines=writable, active=active.name)
            return
        if not active.is_reachable:
            _log.error("the active engine cannot be reached", service=service, engine=active.name, why=active.why)
            return
        if len(writable) != 1:
            _log.error(
                "the active engine does not take writes, and no single other one does",
                service=service, engine=active.name, found=_spell(active), writable=writable,
            )  # fmt: skip
            return
        _log.warning(
            "the state file is corrected: another engine is the primary now",
            service=service, was=active.name, now=writable[0],
        )  # fmt: skip
        self._stand(service, Standing(writable[0], standing.epoch + 1))

    def _stand(self, service: str, standing: Standing) -> None:
        self._journal.stand(service, standing)
        self._standings[service] = standing

    # --- carrying out ------------------------------------------------------------------------------------------------

    def _feed(self, running: Running, fact: core.Fact) -> None:
        self._carry_out(running, running.run.sees(fact))

    def _carry_out(self, running: Running, orders: list[core.Order]) -> None:
        for order in orders:
            match order:
                case core.Tell(worker, message):
                    self._crew.tell(worker, message)
                case core.Enter(phase):
                    if not self._enter(running, phase):
                        return
                case core.StartTimer(timer, after_s):
                    self._start_timer(running, timer, after_s)
                case core.StopTimer(timer):
                    handle = running.timers.pop(timer, None)
                    if handle:
                        handle.cancel()
                case core.ReplaceWorker(worker, why):
                    self._crew.replace(worker, why)
                case _:
                    self._call(running, order)
        running.record.error, running.record.remedy = running.run.error, running.run.remedy

    def _enter(self, running: Running, phase: Phase) -> bool:
        """Write it down, then make it known. False: it could not be written, and the rest must not be done."""
        record, now_ns = running.record, self._clock.now_ns()
        standing = deposed = None
        if phase is Phase.CUTTING_OVER:
            standing = Standing(record.target, running.run.epoch)
        if running.config.replication != "none":
            deposed = self._deposed_by(running, phase)
        record.phase = phase
        record.stamps[phase] = (now_ns - record.began_ns) // 1000
        record.error, record.remedy = running.run.error, running.run.remedy
        if phase in ENDED:
            record.ended_at = self._clock.wall()
        try:
            self._journal.enter(record, now_ns, standing=standing, deposed=deposed)
        except sqlite3.Error as error:
            _log.error("the journal cannot be written", switch=record.id, phase=phase.value, error=str(error))
            orders = running.run.sees(core.JournalRefused(phase, str(error)))
            if orders:
                self._carry_out(running, orders)
                return False
        if self._stop_at == phase:
            os.kill(os.getpid(), signal.SIGKILL)
        if standing is not None:
            self._standings[record.service] = standing
            running.evidence.cut_over()
        self._tell_phase(record)
        if phase in ENDED:
            self._end(running)
        return True

    def _deposed_by(self, running: Running, phase: Phase) -> Deposed | None:
        """Who must not take writes any more once a switch is in that phase."""
        record, run = running.record, running.run
        if not isinstance(run, FailoverRun):
            # A promotion that is given up may still take place. (A subscriber takes writes all the time.)
            is_given_up = phase is Phase.ABORTING and record.phase is Phase.PROMOTING
            is_doubtful = is_given_up and running.config.replication == "stream"
        elif phase is Phase.CUTTING_OVER:
            return Deposed(engine=record.source, switch=record.id, epoch=run.epoch, at=self._clock.wall())
        else:
            is_doubtful = phase is Phase.ABORTING and run.is_target_doubtful
        if not is_doubtful:
            return None
        return Deposed(engine=record.target, switch=record.id, epoch=run.epoch - 1, at=self._clock.wall())

    def _tell_phase(self, record: SwitchRecord) -> None:
        # Told after the orders of the phase, not before.
        asyncio.get_running_loop().call_soon(
            self._publish,
            Event(
                kind="switch.ended" if record.phase in ENDED else "switch.phase",
                at=self._clock.wall(),
                service=record.service,
                data={
                    "id": record.id, "phase": record.phase.value, "source": record.source, "target": record.target,
                    "error": record.error, "remedy": record.remedy,
                },
            )
        )  # fmt: skip

    def _end(self, running: Running) -> None:
        record = running.record
        figures = running.evidence.figures(record.began_ns, self._clock.now_ns())
        running.evidence.opinions = {
            name: one.opinion
            for name, one in (("canary", running.strategy), ("window", running.window))
            if one is not None and one.opinion is not None
        }
        try:
            tally = self._journal.count(record)
            record.figures = {
                **msgspec.to_builtins(figures),
                "success_rate": tally.success_rate,
                "rollback_count": tally.rolled_back,
            }
            self._journal.end(record, running.evidence.report(record, figures, self._journal.steps(record.id)))
            self._keep_comparison(running)
        except sqlite3.Error as error:
            _log.error("the report cannot be written", switch=record.id, error=str(error))
        if self._running.get(record.service) is running:
            del self._running[record.service]
        if running.fence_check is not None:
            spawn(running.fence_check.close(), name=f"end of the comparison of switch {record.id}")
        if record.phase is Phase.ABORTED and Phase.PREPARING in record.stamps:
            spawn(_abandoned(running.target), name=f"abandon {record.target}")
        for timer in running.timers.values():
            timer.cancel()
        running.timers.clear()
        # Nobody waits for what is still asked of the engines (an undo does not wait for the end of a preparation).
        for call in running.calls:
            call.cancel()
            self._given_up.add(call)
            call.add_done_callback(self._given_up.discard)
        running.ended.set()
        if self.on_ended is not None:
            self.on_ended(record)
        self._history[record.service].forget()
        self._went_back(record)
        if not self._is_stopping:
            # Whose turn it is begins on the next turn of the loop: who waited for this end is told first.
            asyncio.get_running_loop().call_soon(self._waiting.begin_due)
        log = _log.info if record.phase is Phase.COMPLETED else _log.warning
        log(
            "switch ended",
            switch=record.id, service=record.service, phase=record.phase.value, source=record.source,
            target=record.target, error=record.error, remedy=record.remedy, cutover_ms=figures.cutover_ms,
            hold_ms_max=figures.hold_ms.max,
        )  # fmt: skip

    def _keep_comparison(self, running: Running) -> None:
        """Of rows at the fence: with the data checks, for the next switch. Raises sqlite3.Error."""
        if running.fence_check is not None and running.fence_check.looked_at:
            check = made_at_fence(running.record, running.fence_check.looked_at, self._clock.wall())
            self._data_checks.save(check)
            self._publish(ended_event(check, self._clock.wall()))

    def _start_timer(self, running: Running, timer: Timer, after_s: float) -> None:
        old = running.timers.pop(timer, None)
        if old:
            old.cancel()

        def ring() -> None:
            running.timers.pop(timer, None)
            self._feed(running, core.TimerRang(timer))

        running.timers[timer] = asyncio.get_running_loop().call_later(after_s, ring)

    # --- asking the engines ------------------------------------------------------------------------------------------

    def _call(self, running: Running, order: core.Order) -> None:
        match order:
            case core.GoBack(why):
                self._begin_way_back(running, why)
            case _:
                act, work = self._acts.work_of(running, order)
                self._ask(running, act, work)

    def _ask(self, running: Running, act: Act | None, work: Work) -> None:
        task = spawn(self._answer(running, act, work), name=f"switch {running.record.id} {act or 'look'}")
        running.calls.add(task)
        task.add_done_callback(running.calls.discard)

    async def _answer(self, running: Running, act: Act | None, work: Work) -> None:
        fact: core.Fact
        try:
            fact = await work()
        except EngineError as error:
            fact = _failed(act, f"{error.text}; {error.hint}" if error.hint else error.text)
        except Exception as error:  # noqa: BLE001  (a bug of ours; the clients that are held must not pay for it)
            _log.exception("an engine call failed", switch=running.record.id, act=act)
            fact = _failed(act, f"internal error: {error!r}")
        if self._stop_at and self._stop_at == type(fact).__name__.lower():
            os.kill(os.getpid(), signal.SIGKILL)
        # The call is over, whatever follows from its answer (an Unfence gives up the calls that are under way).
        task = asyncio.current_task()
        if task is not None:
            running.calls.discard(task)
        self._feed(running, fact)


def _why_not_back(inner: SwitchRecord) -> str:
    """Empty: it did go back."""
    if inner.phase is Phase.COMPLETED:
        return ""
    return f"switch {inner.id} {inner.phase.value}: {inner.error or 'see its report'}"


def _limits_of_comparison(limits: SwitchConfig) -> Limits:
    return Limits(
        latency_ratio_max=limits.latency_ratio_max,
        error_percent_more_max=limits.error_percent_more_max,
        requests_min=limits.requests_min,
    )


def _failed(act: Act | None, why: str) -> core.Fact:
    if act is None:
        silent = EngineState(name="", is_reachable=False, why=why)
        return core.Looked(silent, silent)
    return core.ActFailed(act, why)


async def _abandoned(engine: Engine) -> None:
    """What a switch that was undone made on its target; if that is down, the next one finds it."""
    try:
        await engine.abandon()
    except EngineError as error:
        _log.warning("a switch that was undone left something behind", engine=engine.name, why=error.text)


async def _quietly(engine: Engine) -> None:
    """Warm connections for what may come; an engine that is down now is found out by the probe."""
    try:
        await engine.prepare(LOOK_TIMEOUT_S)
    except EngineError as error:
        _log.info("engine not prepared", engine=engine.name, why=error.text)


def _boot_id() -> str:
    """Changes with every boot of this host (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _spell(state: EngineState) -> str:
    if not state.is_reachable:
        return f"unreachable ({state.why})"
    role = state.role.value if state.role else "of unknown role"
    return f"{role}, {'writable' if state.is_writable else 'fenced' if state.is_fenced else 'read-only'}"
