"""Watches over the active engines: brings probes and workers' words to `failover`, and carries out what it decides.

The supervisor probes; each answer comes here, and those of engines that do not serve go on to `bystanders`. What is
remembered over restarts stands in the journal: whether the automation is on, and where the active engine was when it
was last seen, so that a Turnout that begins while it is gone knows how much the others may lack. A failover itself is a
run of the orchestrator's; a person may order one.
"""

from __future__ import annotations

import asyncio
import collections
import math
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec
import structlog

from proxy.clock import Clock
from proxy.config import ServiceConfig
from proxy.engines.engine import Engine, EngineState
from proxy.errors import Conflict, NotFound, PlanRefused, ProxyError
from proxy.switch.bystanders import Bystanders
from proxy.switch.failover import SAMPLES_MAX, Automation, Choice, Detector, Health, Lost, Sample, WorkersWord, choose
from proxy.switch.failover_run import FAILOVER
from proxy.switch.journal import Deposed, Journal, Sighting
from proxy.switch.orchestrator import Orchestrator
from proxy.switch.plan import SwitchRecord
from proxy.switch.readiness import Check
from proxy.switch.state import Phase
from proxy.switch.views import Event, FailoverView
from proxy.tasks import cancel_and_wait, spawn

_log = structlog.get_logger("turnout.failover")

KEEP_INTERVAL_S: Final = 2.0
"""How often it is written down where the active engine is."""


class Witnesses(Protocol):
    """The workers, as far as they know of engines."""

    async def witness(
        self, service: str, engine: str, epoch: int, since_ns: int, timeout_s: float
    ) -> list[WorkersWord]:
        """What each worker knows of an engine that does not answer probes."""


class _Watch:
    """One service in one epoch."""

    def __init__(self, epoch: int, config: ServiceConfig, began_ns: int, known: EngineState | None) -> None:
        """`known` is what was found of the engine before it was watched as the active one of this epoch."""
        self.epoch = epoch
        self.began_ns = began_ns
        self.detector = Detector(config.failover.failures, config.failover.starting_s)
        self.samples: collections.deque[Sample] = collections.deque(maxlen=SAMPLES_MAX)
        self.last: EngineState | None = None
        """Last answer of the active engine."""
        self.task: asyncio.Task[None] | None = None
        """The workers are asked, or a failover is decided on."""
        self.said = ""
        """Why nobody takes over, as it was told last."""
        self.kept_ns = 0
        """When it was written down last."""
        if known is not None:
            self.note(known)

    def note(self, state: EngineState) -> None:
        """The active engine answered."""
        self.last = state
        position = state.received or state.position
        if position is not None:
            self.samples.append(Sample(state.at_ns, position))

    def lost(self, engine: str, now_ns: int) -> Lost:
        """What is known of the engine that is gone."""
        last = self.last or EngineState(name=engine, is_reachable=False, at_ns=now_ns)
        return Lost(engine, self.detector.since_ns or now_ns, last, list(self.samples))


class Guard:
    """All services. See the module."""

    def __init__(
        self,
        services: Mapping[str, ServiceConfig],
        engines: Mapping[str, Mapping[str, Engine]],
        orchestrator: Orchestrator,
        journal: Journal,
        witnesses: Witnesses,
        clock: Clock,
        publish: Callable[[Event], None],
    ) -> None:
        self.preferred: Callable[[str], str | None] | None = None
        """Which engine of a service shall take over, if it is as good as any."""
        self._services = dict(services)
        self._engines = engines
        self._orchestrator = orchestrator
        self._journal = journal
        self._witnesses = witnesses
        self._clock = clock
        self._publish = publish
        self._watches = {
            name: _Watch(orchestrator.standing(name).epoch, config, 0, self._remembered(name))
            for name, config in services.items()
        }
        self._seen: dict[tuple[str, str], EngineState] = {}
        """The last answer of each engine."""
        self._automation = {name: journal.automation(name) for name in services}
        self._bystanders = Bystanders(services, engines, orchestrator, journal, clock, publish)
        self._wakes: collections.defaultdict[tuple[str, str], asyncio.Event] = collections.defaultdict(asyncio.Event)
        orchestrator.on_ended = self._ended

    # --- for the supervisor ------------------------------------------------------------------------------------------

    async def pause(self, service: str, engine: str) -> None:
        """Between two probes of an engine: cut short when a worker lost its connections to it."""
        wake = self._wakes[(service, engine)]
        try:
            await asyncio.wait_for(wake.wait(), self._services[service].failover.probe_interval_s)
        except TimeoutError:
            return
        wake.clear()

    def timeout_s(self, service: str) -> float:
        """Of a probe."""
        return self._services[service].failover.probe_timeout_s

    def reconfigure(self, services: Mapping[str, ServiceConfig]) -> None:
        """Limits of a reloaded config."""
        self._services = dict(services)
        self._bystanders.reconfigure(services)
        for name, watch in self._watches.items():
            limits = self._services[name].failover
            watch.detector.reconfigure(limits.failures, limits.starting_s)

    async def stop(self) -> None:
        """Decide nothing any more."""
        await cancel_and_wait(*(watch.task for watch in self._watches.values()))
        await self._bystanders.stop()

    def view(self, service: str) -> FailoverView:
        """For those who look."""
        watch, automation = self._watches[service], self._automation[service]
        limits = self._services[service].failover
        why_not = "" if limits.automatic else "`automatic` is false in the config"
        may_begin_at = automation.may_begin_at(limits.pause_s)
        return FailoverView(
            is_automatic=automation.is_on and not why_not,
            why_not=automation.why_off or why_not,
            health=watch.detector.health,
            why=watch.said or watch.detector.why,
            may_begin_at=may_begin_at if may_begin_at > self._clock.wall() else 0.0,
        )

    def deposed(self, service: str, engine: str) -> Deposed | None:
        """It must not take writes: see `bystanders`."""
        return self._bystanders.deposed(service, engine)

    def switch_automation(self, service: str, is_on: bool, by: str) -> None:
        """A person's word. Raises sqlite3.Error."""
        self._automate(service, Automation().switched(is_on, by, self._clock.wall()))
        self._watches[service].said = ""

    # --- what is seen ------------------------------------------------------------------------------------------------

    def engine_lost(self, service: str, engine: str, at_ns: int) -> None:
        """A worker told of connections that ended, or that are not to be had."""
        watch = self._watch(service)
        if engine != self._orchestrator.standing(service).active or at_ns < watch.began_ns:
            return
        watch.detector.broke()
        if watch.detector.health in (Health.UNSEEN, Health.ANSWERING):
            self._wakes[(service, engine)].set()

    def probed(self, service: str, engine: str, state: EngineState) -> None:
        """An engine answered a probe, or did not."""
        watch = self._watch(service)
        if state.is_reachable and state.at_ns >= watch.began_ns:
            self._seen[service, engine] = state
        if engine != self._orchestrator.standing(service).active:
            if state.at_ns >= watch.began_ns:
                serving = watch.last if watch.detector.health is Health.ANSWERING else None
                self._bystanders.probed(service, engine, state, serving)
            return
        if state.at_ns < watch.began_ns:
            return
        before = watch.detector.health
        health = watch.detector.probed(state.failure if not state.is_reachable else None, state.why, state.at_ns)
        if state.is_reachable:
            watch.said = ""
            watch.note(state)
            self._keep(service, engine, watch, state)
        self._tell_health(service, engine, before, watch.detector)
        if health is Health.SILENT and _is_free(watch):
            watch.task = spawn(self._ask_workers(service, watch), name=f"witnesses of {service}")
        elif health is Health.LOST:
            self._is_lost(service, watch)

    def _watch(self, service: str) -> _Watch:
        """Of the present epoch: what was seen before counts for nothing."""
        watch, epoch = self._watches[service], self._orchestrator.standing(service).epoch
        if watch.epoch != epoch:
            known = self._seen.get((service, self._orchestrator.standing(service).active))
            watch = self._watches[service] = _Watch(epoch, self._services[service], self._clock.now_ns(), known)
            self._bystanders.read_again(service)
        return watch

    def _remembered(self, service: str) -> EngineState | None:
        """What an earlier supervisor saw last of the engine that is active."""
        standing, found = self._orchestrator.standing(service), self._journal.sighting(service)
        if found is None or (found.engine, found.epoch) != (standing.active, standing.epoch):
            return None
        ago_s = self._clock.wall() - found.at
        if ago_s < 0:
            # Somebody has set the clock: nobody knows how long ago it was.
            return None
        return msgspec.structs.replace(found.state, at_ns=self._clock.now_ns() - int(ago_s * 1e9))

    def _keep(self, service: str, engine: str, watch: _Watch, state: EngineState) -> None:
        """Write down where it is, for a supervisor that begins while it is gone."""
        is_early = state.at_ns - watch.kept_ns < KEEP_INTERVAL_S * 1e9
        if is_early or len(self._engines[service]) == 1 or self._orchestrator.running(service) is not None:
            return
        watch.kept_ns = state.at_ns
        ago_s = (self._clock.now_ns() - state.at_ns) / 1e9
        found = Sighting(engine=engine, epoch=watch.epoch, at=self._clock.wall() - ago_s, state=state)
        try:
            self._journal.see(service, found)
        except sqlite3.Error as error:
            _log.warning("the state file cannot be written", service=service, error=str(error))

    def _tell_health(self, service: str, engine: str, before: Health, detector: Detector) -> None:
        if before is detector.health:
            return
        log = _log.warning if detector.health is not Health.ANSWERING else _log.info
        log("active engine", service=service, engine=engine, health=detector.health.value, why=detector.why)
        data = {"engine": engine, "health": detector.health.value, "why": detector.why}
        self._publish(Event(kind="engine.health", at=self._clock.wall(), service=service, data=data))

    async def _ask_workers(self, service: str, watch: _Watch) -> None:
        detector, active = watch.detector, self._orchestrator.standing(service).active
        said = await self._witnesses.witness(
            service, active, watch.epoch, detector.since_ns, self._services[service].failover.probe_timeout_s
        )
        if self._watch(service) is not watch:
            return
        before = detector.health
        detector.testified(said)
        words = {one.worker: one.how for one in said}
        _log.info("workers were asked", service=service, engine=active, answers=words)
        self._tell_health(service, active, before, detector)
        if detector.health is Health.LOST:
            watch.task = None
            self._is_lost(service, watch)

    # --- a failover --------------------------------------------------------------------------------------------------

    def _is_lost(self, service: str, watch: _Watch) -> None:
        """Called with each probe that finds it lost."""
        view, running = self.view(service), self._orchestrator.running(service)
        if not _is_free(watch):
            return
        if not view.is_automatic:
            self._say(service, watch, f"no failover by itself: {view.why_not}")
        elif running is not None:
            self._orchestrator.give_way(service, "failure detection: the active engine is lost")
        elif view.may_begin_at:
            wait_s = view.may_begin_at - self._clock.wall()
            self._say(service, watch, f"there was a failover a moment ago: none begins for {wait_s:.0f} s", key="pause")
        else:
            watch.task = spawn(self._fail_over(service, watch), name=f"failover of {service}")

    async def _fail_over(self, service: str, watch: _Watch) -> None:
        """Look at all engines once more, decide, begin."""
        config, active = self._services[service], self._orchestrator.standing(service).active
        states = await self._look_at_all(service)
        if self._watch(service) is not watch or self._orchestrator.running(service) is not None:
            return
        if states[active].is_reachable or states[active].failure == "told":
            watch.task = None
            self.probed(service, active, states[active])
            return
        lost = watch.lost(active, self._clock.now_ns())
        choice = choose(
            lost, states, replication=config.replication, lag_tolerance_ms=config.failover.lag_tolerance_ms,
            preferred=self.preferred(service) if self.preferred is not None else None,
            has_answered=watch.detector.answered_ns > 0,
        )  # fmt: skip
        if not choice.target:
            self._say(service, watch, choice.why)
            return
        await self._bystanders.settled(service, choice.target)
        if self._watch(service) is not watch or watch.detector.health is not Health.LOST:
            return
        try:
            self._begin(service, watch, lost, choice, f"{active} failed: {watch.detector.why}", "failure detection")
        except (ProxyError, sqlite3.Error) as error:
            self._say(service, watch, f"the failover to {choice.target} could not begin: {error}")

    async def start(self, service: str, target: str | None, *, force: bool, by: str, reason: str) -> SwitchRecord:
        """A person's order: another engine takes over, `target` if one is named, whatever the automation says. The active
        engine has to be gone all the same: it does not answer us, and no worker has an answer from it. With `force` it does
        not matter what the next one may lack.

        Raises NotFound; Conflict: the active engine lives, or a switch is under way; PlanRefused: nobody can take over;
        sqlite3.Error.
        """
        config, active = self._services[service], self._orchestrator.standing(service).active
        if target is not None and (target not in config.engine or target == active):
            others = ", ".join(sorted(config.engine.keys() - {active})) or "none"
            raise NotFound(f"{target!r} cannot take over from {active!r}", hint=f"other engines: {others}")
        began_ns = self._clock.now_ns()
        watch = self._watch(service)
        states = await self._look_at_all(service)
        seen = states[active]
        if seen.is_reachable or seen.failure in ("told", "starting"):
            raise Conflict(
                f"the active engine {active!r} answers", hint="nothing has failed: switch with `turnout switch`"
            )
        said = await self._witnesses.witness(service, active, watch.epoch, began_ns, config.failover.probe_timeout_s)
        alive = [f"worker {one.worker}: {one.how}" for one in said if one.is_alive]
        if alive:
            raise Conflict(
                f"the active engine {active!r} does not answer the supervisor, but {'; '.join(alive)}",
                hint="mend the way from the supervisor to it, or switch with `turnout switch`",
            )
        if self._watch(service) is not watch:
            raise Conflict(f"another engine than {active!r} serves meanwhile", hint="look at `turnout status`")
        watch.detector.why = watch.detector.why or seen.why
        watch.detector.testimony = said
        lost = watch.lost(active, began_ns)
        choice = choose(
            lost, states, replication=config.replication,
            lag_tolerance_ms=math.inf if force else config.failover.lag_tolerance_ms,
            preferred=target, takes_unknown=force, takes_fenced=target is not None,
        )  # fmt: skip
        if not choice.target or choice.target != (target or choice.target):
            raise PlanRefused(choice.why, hint="look at `turnout engines`; `--force` takes one that may lack commits")
        await self._bystanders.settled(service, choice.target)
        if self._watch(service) is not watch:
            raise Conflict(f"another engine than {active!r} serves meanwhile", hint="look at `turnout status`")
        return self._begin(service, watch, lost, choice, reason or f"{active} failed: {seen.why}", by)

    async def _look_at_all(self, service: str) -> dict[str, EngineState]:
        engines = self._engines[service]
        timeout_s = self._services[service].failover.probe_timeout_s
        looks = await asyncio.gather(*(one.probe(timeout_s) for one in engines.values()))
        return dict(zip(engines, looks, strict=True))

    def _begin(self, service: str, watch: _Watch, lost: Lost, choice: Choice, reason: str, by: str) -> SwitchRecord:
        """Raises Conflict, sqlite3.Error."""
        return self._orchestrator.fail_over(
            service, choice.target, reason, since_ns=lost.since_ns, by=by,
            failure=_evidence(watch.detector, lost, choice, self._clock.now_ns()),
            checks=_checks(watch.detector, lost, choice),
        )  # fmt: skip

    def _say(self, service: str, watch: _Watch, why: str, *, key: str = "") -> None:
        """Why nobody takes over, once for each reason."""
        if watch.said == why or (key and key in watch.said and watch.said):
            return
        watch.said = why
        engine = self._orchestrator.standing(service).active
        _log.error("nobody takes over", service=service, engine=engine, why=why)
        self._publish(
            Event(
                kind="failover.impossible", at=self._clock.wall(), service=service, data={"engine": engine, "why": why}
            )
        )

    def _ended(self, record: SwitchRecord) -> None:
        """A switch has ended, perhaps one that an earlier supervisor began."""
        self._bystanders.read_again(record.service)
        if record.strategy != FAILOVER:
            return
        service, now = record.service, self._clock.wall()
        before = self._automation[service]
        if record.phase is Phase.COMPLETED:
            self._automate(service, before.succeeded(now), is_told=False)
        elif not record.recovered:
            self._automate(service, before.failed(f"failover {record.id} failed: {record.error}", now))

    def _automate(self, service: str, automation: Automation, *, is_told: bool = True) -> None:
        self._automation[service] = automation
        try:
            self._journal.automate(service, automation)
        except sqlite3.Error as error:
            _log.error("the state file cannot be written", service=service, error=str(error))
        if not is_told:
            return
        log = _log.info if automation.is_on else _log.error
        log("automatic failover", service=service, is_on=automation.is_on, why=automation.why_off)
        self._publish(
            Event(
                kind="failover.automation", at=self._clock.wall(), service=service,
                data={"is_on": automation.is_on, "why": automation.why_off},
            )
        )  # fmt: skip


def _is_free(watch: _Watch) -> bool:
    return watch.task is None or watch.task.done() or watch.task is asyncio.current_task()


def _evidence(detector: Detector, lost: Lost, choice: Choice, now_ns: int) -> dict[str, Any]:
    """For the report: what was seen on both sides, who could have taken over, and what may be missing."""
    chosen = choice.chosen
    bound = (
        "unknown" if chosen.may_lack_ms is None else f"commits of the last {chosen.may_lack_ms:.0f} ms before it failed"
    )
    return {
        "gate": "asynchronous",
        "engine": lost.name,
        "why": detector.why,
        "probes_failed": detector.failed,
        "losses_told_by_workers": detector.lost_by_workers,
        "workers": msgspec.to_builtins(detector.testimony),
        "last_answer_ms_before": round((lost.since_ns - lost.last.at_ns) / 1e6, 3),
        "decided_after_ms": round((now_ns - lost.since_ns) / 1e6, 3),
        "chosen_because": choice.why,
        "candidates": msgspec.to_builtins(choice.candidates),
        "may_be_missing": bound,
        "may_lack_ms": chosen.may_lack_ms,
        "may_lack_bytes": chosen.may_lack_bytes,
    }


def _checks(detector: Detector, lost: Lost, choice: Choice) -> list[Check]:
    """The decision as checks, for the report's list."""
    chosen = choice.chosen
    lack = (
        "commits, nobody knows how many"
        if chosen.may_lack_ms is None
        else (f"commits of the last {chosen.may_lack_ms:.0f} ms before the failure")
    )
    return [
        Check(
            name="source_lost", verdict="pass", found=f"{lost.name}: {detector.why}",
            limit=f"{detector.failed} probes in a row failed", remedy="",
        ),
        Check(name="target_most_advanced", verdict="pass", found=choice.why, limit="", remedy=""),
        Check(
            name="lag", verdict="pass", found=f"{choice.target} may lack {lack}",
            limit="lag_tolerance_ms", remedy="",
        ),
    ]  # fmt: skip
