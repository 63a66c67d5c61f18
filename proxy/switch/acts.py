"""What a switch asks of its engines: each order of a run as a call that comes back with a fact. The shell makes the calls.

A call raises EngineError; what follows from that is the run's to say, not decided here. What a call learns on its way
goes into the evidence.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Final

import structlog

from proxy import ipc
from proxy.clock import Clock
from proxy.config import ServiceConfig, parse_address
from proxy.engines.engine import Engine, Leader, Position, Role
from proxy.errors import EngineError, EngineLost
from proxy.hidden import secrets_of
from proxy.switch import hooks
from proxy.switch import run as core
from proxy.switch.datacheck import DataCheckStore
from proxy.switch.evidence import AUDIT_COMMITS, Audit, Evidence, Span
from proxy.switch.failover_run import FAILOVER
from proxy.switch.fencecheck import FenceCheck
from proxy.switch.findings import Comparison
from proxy.switch.inquiry import inquire
from proxy.switch.plan import SHARING_STRATEGIES, SwitchPlan, SwitchRecord, limits_of
from proxy.switch.readiness import Check, judge
from proxy.switch.run import Act
from proxy.switch.running import Crew, Running
from proxy.switch.significance import NOTHING, History, samples_of
from proxy.tasks import cancel_and_wait, spawn
from proxy.tls import library_tls

_log = structlog.get_logger("turnout.switch")

FENCE_TIMEOUT_S: Final = 5.0
UNFENCE_TIMEOUT_S: Final = 0.8
"""Together with what precedes it below the second in which an aborted switch gives the source back."""
ENGINE_PREPARE_TIMEOUT_S: Final = 5.0

APPROACH_TIMEOUT_S: Final = 5.0
"""Longest time that the hold is put off because the target is behind."""

NEAR_S: Final = 0.02
"""A target that reaches the source's position of just now within this time follows closely."""

LOOK_TIMEOUT_S: Final = 1.0

COMPARISON_FRESH_S: Final = 5.0
"""A comparison of schemas that is not older is used again, so that `ready` and the switch after it ask once."""

Work = Callable[[], Awaitable[core.Fact]]


class Acts:
    """The calls of all switches."""

    def __init__(
        self,
        engines: Mapping[str, Mapping[str, Engine]],
        crew: Crew,
        clock: Clock,
        workers_wanted: int,
        data_checks: DataCheckStore,
        history: Mapping[str, History],
    ) -> None:
        self._engines = engines
        self._crew = crew
        self._clock = clock
        self._workers_wanted = workers_wanted
        self._data_checks = data_checks
        self._history = history
        self._asking: dict[str, asyncio.Lock] = {name: asyncio.Lock() for name in engines}
        self._compared: dict[tuple[str, str, str], Comparison] = {}

    def work_of(self, running: Running, order: core.Order) -> tuple[Act | None, Work]:
        """The call that an order wants, and as what it is known to the run."""
        source, target, evidence = running.source, running.target, running.evidence
        now_ns = self._clock.now_ns()
        match order:
            case core.Examine():
                return None, partial(self._examined, running)
            case core.Weigh():
                return None, partial(self._weighed, running)
            case core.PrepareEngines():
                return Act.PREPARE, partial(self._prepared, running)
            case core.Approach():
                return Act.APPROACH, partial(self._approached, source, target)
            case core.ArmFence():
                return Act.ARM_FENCE, partial(self._fence_armed, source)
            case core.Fence(pids):
                evidence.fence = Span(now_ns)
                return Act.FENCE, partial(self._fenced, running, pids)
            case core.ReadPosition():
                evidence.catchup = Span(self._clock.now_ns())
                return Act.READ_POSITION, partial(self._position_read, source, evidence)
            case core.AwaitPosition(position, timeout_s):
                return Act.AWAIT_POSITION, partial(self._position_awaited, running, position, timeout_s)
            case core.CompareRows():
                return Act.COMPARE_ROWS, partial(self._rows_compared, running)
            case core.Promote(timeout_s, in_doubt):
                evidence.promotion = Span(now_ns)
                return Act.PROMOTE, partial(self._promoted, running, timeout_s, in_doubt)
            case core.Look():
                return None, partial(self._looked, source, target)
            case core.Unfence():
                # What is being asked of the source must be over before the fence is taken away.
                pending = list(running.calls)
                return Act.UNFENCE, partial(self._unfenced, source, pending)
            case core.RunHooks(stage):
                return Act.HOOKS, partial(self._hooks_ran, running, stage)
            case core.Audit():
                return Act.AUDIT, partial(self._audited, running)
            case core.Follow():
                return Act.FOLLOW, partial(self._followed, running)
            case _:
                raise AssertionError(f"no such order: {order}")

    # --- before the switch ---------------------------------------------------------------------------------------------

    async def examine(
        self, service: str, source: Engine, target: Engine, config: ServiceConfig, plan: SwitchPlan | None
    ) -> list[Check]:
        """The readiness report, by the limits of `plan` if there is one."""
        limits = limits_of(plan, config.switch) if plan is not None else config.switch
        async with self._asking[service]:
            figures, sessions = await asyncio.gather(self._crew.figures(), self._crew.sessions(service))
            pair = (service, source.name, target.name)
            known = self._compared.get(pair)
            if known is not None and self._clock.now_ns() - known.asked_ns > COMPARISON_FRESH_S * 1e9:
                known = None
            findings = await inquire(
                service, source, target, figures=figures, sessions=sessions, workers_wanted=self._workers_wanted,
                kind=config.replication, kept_equal_by=config.kept_equal_by,
                are_both_to_serve=plan is not None and plan.strategy in SHARING_STRATEGIES, databases=config.databases, known=known,
                others=[one for name, one in self._engines[service].items() if name not in (source.name, target.name)],
            )  # fmt: skip
            if findings.comparison is not None:
                self._compared[pair] = findings.comparison
        findings.requests_before = self._history[service].of(source.name).requests
        findings.rows_compared = self._data_checks.found(service, source.name, target.name, self._clock.wall())
        return judge(findings, limits)

    async def _examined(self, running: Running) -> core.Fact:
        if running.record.strategy == FAILOVER:
            # They were made when it was decided on.
            return core.Examined(running.evidence.checks)
        try:
            record = running.record
            checks = await self.examine(record.service, running.source, running.target, running.config, record.plan)
        except Exception as error:  # noqa: BLE001  (a check that cannot be made is a check that fails)
            _log.exception("the readiness checks failed", switch=running.record.id)
            checks = [Check(name="questions", verdict="fail", found=str(error), remedy="see the log")]
        running.evidence.checks = checks
        return core.Examined(checks)

    async def _weighed(self, running: Running) -> core.Fact:
        found = samples_of(of_service(await self._crew.figures(), running.record.service))
        record = running.record
        return core.Weighed(found.get(record.source, NOTHING), found.get(record.target, NOTHING), running.before)

    # --- the acts -------------------------------------------------------------------------------------------------------

    async def _prepared(self, running: Running) -> core.Fact:
        source, target, record = running.source, running.target, running.record
        await asyncio.gather(source.prepare(ENGINE_PREPARE_TIMEOUT_S), target.prepare(ENGINE_PREPARE_TIMEOUT_S))
        budget_s = running.config.switch.compare_at_fence_ms / 1e3
        if budget_s:
            running.fence_check = FenceCheck(source, target)
            seen = self._data_checks.looked_at(record.service, record.source, record.target)
            await running.fence_check.open(running.config.databases, seen, budget_s)
        return core.EnginesPrepared()

    @staticmethod
    async def _approached(source: Engine, target: Engine) -> core.Fact:
        loop = asyncio.get_running_loop()
        over = loop.time() + APPROACH_TIMEOUT_S
        while (began := loop.time()) < over:
            is_there = await target.wait_reached(await source.position(), over - began)
            if is_there and loop.time() - began < NEAR_S:
                break
        return core.Approached()

    @staticmethod
    async def _fence_armed(source: Engine) -> core.Fact:
        await source.arm(ENGINE_PREPARE_TIMEOUT_S)
        return core.FenceArmed()

    async def _fenced(self, running: Running, pids: Iterable[int]) -> core.Fact:
        source, evidence, rule = running.source, running.evidence, running.config.switch.in_doubt
        if rule != "block":
            # While it may: a fence binds XA COMMIT on MySQL. Nobody of ours can prepare another one.
            evidence.resolved = [f"{rule} {name}" for name in await source.resolve_in_doubt(rule, FENCE_TIMEOUT_S)]
        proof = await source.fence(frozenset(pids), FENCE_TIMEOUT_S)
        evidence.fence.ended_ns = self._clock.now_ns()
        evidence.proof = proof
        return core.Fenced(proof)

    async def _position_read(self, source: Engine, evidence: Evidence) -> core.Fact:
        position = await source.position()
        evidence.source_position = position
        return core.PositionRead(position)

    async def _position_awaited(self, running: Running, position: Position, timeout_s: float) -> core.Fact:
        evidence, limits = running.evidence, running.config.switch
        reached = await running.target.wait_reached(position, timeout_s)
        lacking = ""
        if reached and limits.sync == "semi_synchronous" and limits.min_replicas > 1:
            others = self.others(running.record)
            evidence.replicas = [
                running.target.name,
                *await _have(others, position, limits.min_replicas - 1, timeout_s),
            ]
            reached = len(evidence.replicas) >= limits.min_replicas
            lacking = f"{limits.min_replicas - len(evidence.replicas)} more of {limits.min_replicas} replicas"
        evidence.catchup.ended_ns = self._clock.now_ns()
        if reached:
            evidence.target_position = position
        return core.PositionAwaited(reached, "" if reached else lacking)

    @staticmethod
    async def _rows_compared(running: Running) -> core.Fact:
        assert running.fence_check is not None, "it was opened when the engines were prepared"
        found = await running.fence_check.compare(running.config.switch.compare_at_fence_ms / 1e3)
        running.evidence.rows_at_fence = found
        return core.RowsCompared(found.different)

    async def _promoted(self, running: Running, timeout_s: float, in_doubt: frozenset[str]) -> core.Fact:
        known = await _seen_by(running.target, in_doubt)
        by_hook = any(hook.at == "promote" for hook in running.config.hook)
        if by_hook and (failed := await self._run_hooks(running, "promote")):
            raise EngineError(f"a hook failed: {failed}")
        try:
            await running.target.promote(timeout_s, is_asked=by_hook)
        except EngineLost:
            # A failover has prepared nothing: a connection from before a restart says nothing about the server as it is now. And
            # what was done before this one ended is not done twice.
            await running.target.promote(timeout_s, is_asked=by_hook)
        running.evidence.promotion.ended_ns = self._clock.now_ns()
        if not in_doubt:
            return core.Promoted()
        outcomes = await _outcomes_on(running.target, in_doubt, known)
        counts = Counter(outcomes.get(one, "unknown") for one in in_doubt)
        running.evidence.in_doubt = dict(counts)
        _log.info("commits in doubt", switch=running.record.id, **counts)
        return core.Promoted(outcomes)

    async def _hooks_ran(self, running: Running, stage: core.Stage) -> core.Fact:
        return core.HooksRan(stage, await self._run_hooks(running, stage))

    async def _run_hooks(self, running: Running, at: str) -> str:
        """Those of a moment, one after the other. What failed and may not be ignored; nothing runs after it."""
        record, config = running.record, running.config
        told = hooks.facts(
            record.id, record.service,
            (record.source, running.source.address), (record.target, running.target.address),
        )  # fmt: skip
        secrets = secrets_of(config)
        for hook in config.hook:
            if hook.at != at:
                continue
            result = await hooks.run_hook(hook, told, secrets)
            running.evidence.hooks.append(result)
            log = _log.info if result.is_good else _log.warning
            log("hook ran", switch=record.id, at=at, what=result.what, outcome=result.outcome)
            if not result.is_good and hook.on_failure == "abort":
                return f"{result.what}: {result.outcome}"
        return ""

    @staticmethod
    async def _looked(source: Engine, target: Engine) -> core.Fact:
        source_state, target_state = await asyncio.gather(source.probe(LOOK_TIMEOUT_S), target.probe(LOOK_TIMEOUT_S))
        return core.Looked(source_state, target_state)

    @staticmethod
    async def _unfenced(source: Engine, pending: list[asyncio.Task[None]]) -> core.Fact:
        await cancel_and_wait(*pending)
        await source.unfence(UNFENCE_TIMEOUT_S)
        return core.Unfenced()

    async def _audited(self, running: Running) -> core.Fact:
        try:
            sample = await running.source.recent_commits(AUDIT_COMMITS)
            lacking = await running.target.lacking(sample)
        except EngineError as error:
            running.evidence.audit = Audit(why=error.text)
            raise
        running.evidence.audit = audit = Audit.of(sample, lacking)
        if lacking:
            _log.error(
                "commits of the source are not on the target", switch=running.record.id, by=audit.by, lost=audit.lost,
                missing=audit.missing,
            )  # fmt: skip
        return core.Audited(len(lacking))

    # --- replicas of the new primary --------------------------------------------------------------------------------------

    def others(self, record: SwitchRecord) -> list[Engine]:
        """Engines of the service that a switch neither leaves nor goes to."""
        engines = self._engines[record.service]
        return [engine for name, engine in engines.items() if name not in (record.source, record.target)]

    async def _others_followed(self, running: Running) -> core.Fact:
        """After a failover: the standbys that are left replicate from the new primary. Each by itself."""
        record, config = running.record, running.config

        async def follow(engine: Engine) -> str:
            state = await engine.probe(LOOK_TIMEOUT_S)
            if state.role is not Role.STANDBY:
                return f"{engine.name} is left alone: it is no standby that can be reached"
            try:
                slot = await engine.slot_used()
                if slot:
                    await running.target.make_slot(slot)
                how = await engine.follow(_leader(record.target, config), core.FOLLOW_TIMEOUT_S)
            except EngineError as error:
                return f"{engine.name} does not follow {record.target}: {error.text}"
            return f"{engine.name}: {how}"

        said = await asyncio.gather(*(follow(engine) for engine in self.others(record)))
        running.evidence.followers = list(said)
        for line in said:
            _log.info("standby after a failover", switch=record.id, outcome=line)
        return core.Followed()

    async def _followed(self, running: Running) -> core.Fact:
        if running.record.strategy == FAILOVER:
            return await self._others_followed(running)
        leader = _leader(running.record.target, running.config)
        try:
            running.evidence.way_back = await running.source.follow(leader, core.FOLLOW_TIMEOUT_S)
            await running.source.drop_slots(await running.target.forget_source())
        except EngineError as error:
            running.evidence.way_back = f"failed: {error.text}"
            raise
        return core.Followed()


def of_service(figures: list[ipc.WorkerFigures], service: str) -> list[ipc.ServiceFigures]:
    """What each worker counted of one service."""
    return [one for worker in figures for one in worker.services if one.service == service]


def _leader(name: str, config: ServiceConfig) -> Leader:
    """The engine `name` as another one replicates from it. Without a `replication_login` the account is empty: the other
    one may have one already."""
    login, engine = config.replication_login, config.engine[name]
    host, port = parse_address(engine.address)
    password = login.password.value if login is not None and login.password is not None else None
    return Leader(
        name=name,
        host=host,
        port=port,
        user=login.user if login is not None else "",
        password=password or "",
        is_encrypted=library_tls(engine, config.protocol).is_required,
    )


async def _have(engines: Iterable[Engine], position: Position, wanted: int, timeout_s: float) -> list[str]:
    """Names of the first `wanted` engines that have the position; fewer at the deadline."""

    async def has(engine: Engine) -> str:
        try:
            return engine.name if await engine.wait_reached(position, timeout_s) else ""
        except EngineError as error:
            _log.warning("a replica cannot be asked", engine=engine.name, why=error.text)
            return ""

    waiting = [spawn(has(engine), name=f"position of {engine.name}") for engine in engines]
    found: list[str] = []
    try:
        for one in asyncio.as_completed(waiting):
            found += filter(None, [await one])
            if len(found) >= wanted:
                break
    finally:
        await cancel_and_wait(*waiting)
    return found


async def _seen_by(engine: Engine, in_doubt: frozenset[str]) -> frozenset[str]:
    """Of these transactions of a lost source, those that its standby knows of; none if that cannot be found out."""
    if not in_doubt:
        return frozenset()
    try:
        return await engine.known_transactions(in_doubt)
    except EngineError as error:
        _log.warning("commits in doubt stay unknown", engine=engine.name, why=error.text)
        return frozenset()


async def _outcomes_on(engine: Engine, in_doubt: frozenset[str], known: frozenset[str]) -> Mapping[str, str]:
    """What became of them; none if that cannot be found out."""
    try:
        return await engine.outcomes(in_doubt, known)
    except EngineError as error:
        _log.warning("commits in doubt stay unknown", engine=engine.name, why=error.text)
        return {}
