"""One switch, sans I/O: facts in, orders out. The graceful strategy is this conversation; the others vary it.

Theory of operation
-------------------
`SwitchRun.sees(fact)` returns what is to be done because of it, in the order in which it has to be done. The shell
(`orchestrator`) carries the orders out and brings back what came of them; time reaches the run as timers that ring.

Five rules carry everything else; a property test in tests/proxy/switch checks them against facts in any order:

1. Two phases over the workers: the fence begins when every worker holds every session (`AllHeld`), the release on the
   target begins when every worker has retargeted. A worker that dies in between takes its clients' sockets with it, so
   nobody is left to wait for.
2. `Enter` comes before the act it announces: what the journal says may have happened, never less.
3. Without replication between the engines (`moves_data` is false: they are addresses of one server) the release on the
   target follows the hold: no fence, no catch-up, no promotion. Sessions that do not come to a boundary may then be left
   where they are (`on_drain_expired = "leave"`).
4. Strategies that let both engines serve do so before anything is prepared for the rest (`sharing`, see `strategies`); an
   undo from there on also brings home who was moved.
5. Before the order to promote, trouble of any kind ends in `Unfence` (if a fence was ordered, successful or not) and
   then `Release` with the old epoch: in that order, since a session that is released into a fence sees errors.

Facts that belong to another switch, to a worker that is not in the crew, or to a phase that is over are dropped: a
worker may answer twice (orders are repeated when it reconnects), and an engine's answer may come after the abort.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from typing import Final

from proxy import ipc
from proxy.engines.engine import EngineState, Role
from proxy.switch import strategies
from proxy.switch.findings import some
from proxy.switch.plan import SwitchPlan, drain_in_force
from proxy.switch.readiness import Check, failures
from proxy.switch.state import ABORTABLE, ENDED, Event, Phase, after
from proxy.switch.terms import (
    Act,
    ActFailed,
    Approach,
    Approached,
    ArmFence,
    Audit,
    Audited,
    AwaitPosition,
    CancelAsked,
    CompareRows,
    EnginesPrepared,
    Enter,
    Examine,
    Examined,
    Fact,
    Fence,
    FenceArmed,
    Fenced,
    Follow,
    Followed,
    GoBack,
    HooksRan,
    JournalRefused,
    Look,
    Looked,
    Order,
    PositionAwaited,
    PositionRead,
    PrepareEngines,
    Promote,
    Promoted,
    ReadPosition,
    ReplaceWorker,
    RowsCompared,
    RunHooks,
    Stage,
    StartTimer,
    StopTimer,
    TargetLost,
    Tell,
    Timer,
    TimerRang,
    Unfence,
    Unfenced,
    Weigh,
    Weighed,
    WentBack,
    WorkerJoined,
    WorkerLost,
    WorkerSaid,
)

__all__ = [
    "Act",
    "ActFailed",
    "Approach",
    "Approached",
    "ArmFence",
    "Audit",
    "Audited",
    "AwaitPosition",
    "CancelAsked",
    "CompareRows",
    "EnginesPrepared",
    "Enter",
    "Examine",
    "Examined",
    "Fact",
    "Fence",
    "FenceArmed",
    "Fenced",
    "Follow",
    "Followed",
    "GoBack",
    "HooksRan",
    "JournalRefused",
    "Look",
    "Looked",
    "Order",
    "PositionAwaited",
    "PositionRead",
    "PrepareEngines",
    "Promote",
    "Promoted",
    "ReadPosition",
    "ReplaceWorker",
    "RowsCompared",
    "RunHooks",
    "Stage",
    "StartTimer",
    "StopTimer",
    "SwitchRun",
    "TargetLost",
    "Tell",
    "Timer",
    "TimerRang",
    "Unfence",
    "Unfenced",
    "Verdict",
    "Weigh",
    "Weighed",
    "WentBack",
    "WorkerJoined",
    "WorkerLost",
    "WorkerSaid",
    "decide",
]

SHARE_TIMEOUT_S: Final = 120.0
"""How long a batch of sessions may take while all others go on; then the switch is undone."""
PREPARE_TIMEOUT_S: Final = 60.0
"""Opening and replaying the target backends, while traffic goes on."""
RETARGET_TIMEOUT_S: Final = 10.0
"""After that a worker that has not retargeted is replaced: its clients reconnect, all others go on."""
RELEASE_TIMEOUT_S: Final = 30.0
"""After that the report is written without the figures of a worker that still ramps up."""
UNDO_TIMEOUT_S: Final = 5.0
"""The same for a release on the source."""
VERIFY_TIMEOUT_S: Final = 1.0
"""How long the first answer from the target is waited for."""
FOLLOW_TIMEOUT_S: Final = 20.0
"""How long the source may take to become a replica of the target; clients work meanwhile."""
AFTERWARDS_TIMEOUT_S: Final = 120.0
"""All that is done after the release, hooks of the operator among it; then the switch ends without."""
LOOK_AGAIN_S: Final = 0.1
"""Pause between two looks at a target that does not say whether it was promoted."""
UNFENCE_AGAIN_S: Final = 0.1
"""Pause between two tries to give the source its writes back."""
UNFENCE_TRIES_HELD: Final = 5
"""Tries after which the sessions are released although the source is not writable: an error beats silence."""
HOLD_RESERVE_S: Final = 0.25
"""A switch that is not promoting yet is undone this long before `hold_ms_max` (at most a tenth of it), so that nobody
is refused."""


class Verdict(enum.StrEnum):
    """What a supervisor that starts does with a switch it finds unfinished."""

    UNDO = "undo"
    PROMOTE = "promote"
    FINISH = "finish"
    WAIT = "wait"
    """The target cannot be asked now."""
    PERSON = "person"
    """Both engines take writes, or somebody else promoted the target."""


def decide(
    phase: Phase,
    source: EngineState,
    target: EngineState,
    *,
    is_journal_whole: bool = True,
    moves_data: bool = True,
) -> Verdict:
    """What becomes of a switch whose supervisor is gone, by its last journaled phase and what the engines say.

    `is_journal_whole` is false if the host was booted since: the last steps may not have reached the disk.
    """
    assert phase not in ENDED
    if phase in (Phase.CUTTING_OVER, Phase.RELEASING, Phase.VERIFYING):
        return Verdict.FINISH
    if not moves_data:
        # One server: whichever address is used, nothing is lost.
        return Verdict.UNDO
    source_takes_writes = source.is_reachable and source.role is Role.PRIMARY and source.is_writable
    if phase is not Phase.PROMOTING:
        # The target was a standby when the checks passed. If it is one no more, or cannot say, and steps may be
        # missing, the promotion may be among them.
        if phase in (Phase.PENDING, Phase.VALIDATING, Phase.ABORTING):
            return Verdict.UNDO
        if is_journal_whole:
            promoted_by_hand = target.role is Role.PRIMARY and not source_takes_writes
            return Verdict.PERSON if promoted_by_hand else Verdict.UNDO
        if target.role is Role.STANDBY:
            return Verdict.UNDO
    if not target.is_reachable:
        return Verdict.WAIT
    # The fence was proven and the target had caught up before `promoting` was written; an unreachable source stays
    # fenced by its own configuration.
    if target.role is Role.PRIMARY:
        return Verdict.PERSON if source_takes_writes else Verdict.PROMOTE
    return Verdict.UNDO if source_takes_writes else Verdict.PROMOTE


class SwitchRun:
    """One switch from plan to end. See the module's theory of operation.

    `phase` is where it stands, `error` and `remedy` why it did not complete (or waits for a person).
    """

    def __init__(
        self,
        switch_id: str,
        plan: SwitchPlan,
        *,
        epoch: int,
        crew: Collection[int],
        hold_ms_max: int,
        catchup_timeout_s: float,
        promote_timeout_s: float,
        phase: Phase = Phase.PENDING,
        moves_data: bool = True,
        compares: bool = False,
        audits: bool = False,
        reverses: bool = False,
        hooks: Collection[str] = (),
        strategy: strategies.Strategy | None = None,
        window: strategies.Window | None = None,
    ) -> None:
        """`plan` was accepted; `epoch` is the service's epoch before the switch; `crew` are the workers. `moves_data` is
        false where source and target are one server; with `compares` some rows of both are compared at the fence, with `audits` the target is asked for what the source has committed;
        with `reverses` the source follows the target afterwards. `hooks` are the stages that have some; `strategy` says how
        both engines serve for a while, `window` how the service is compared with what it was before."""
        assert plan.drain_timeout_s is not None
        self.id = switch_id
        self.plan = plan
        self.phase = phase
        self.error = ""
        self.remedy = ""
        hold_s = hold_ms_max / 1e3
        self.drain_s = drain_in_force(plan.drain_timeout_s, hold_ms_max)
        """The drain deadline in force: the plan's, or what `hold_ms_max` leaves of it, in seconds."""
        self._hold_s = hold_s - min(HOLD_RESERVE_S, hold_s / 10)
        self._catchup_timeout_s = catchup_timeout_s
        self._promote_timeout_s = promote_timeout_s
        self._epoch = epoch
        self._crew = set(crew)
        # Who has answered the order of the phase. Emptied when a phase begins that has its own answer.
        self._answered: set[int] = set()
        # Told to open no more backends; who has said that it does not.
        self._stops_opening = False
        self._stopped: set[int] = set()
        # Who has said AllHeld. A Retarget goes to nobody else.
        self._held: set[int] = set()
        self._moves_data = moves_data
        # With one server nothing is asked of the engines.
        self._engines_prepared = not moves_data
        self._approach_ordered = self._approached = not moves_data
        self._own_pids: dict[int, frozenset[int]] = {}
        # A fence was armed or ordered: an undo takes it away, successful or not.
        self._fence_ordered = False
        self._fence_armed = not moves_data
        self._unfence_tries = 0
        self._is_target_silent = False
        self._promotions_failed = 0
        self._someone_waited = False
        self._saw_first_row = False
        # Stages whose hooks have not run.
        self._hooks = {stage for stage in Stage if stage in hooks}
        # What is left to do while the first answers are waited for.
        self._compares = compares and moves_data
        self._must_audit = audits and moves_data
        self._must_follow = reverses and moves_data
        self._verify_expired = False
        self._strategy = strategy
        # The last order of a share to each worker, and its answer.
        self._shares: dict[int, ipc.Share] = {}
        self._share_answers: dict[int, strategies.Answer] = {}
        self._step = 0
        self._awaits_shares = False
        self._window = window
        self._is_window_open = False
        self._worse = ""
        # The source has what the target accepts.
        self._follows = not moves_data
        self._was_let_go = False
        self._may_stay = plan.on_drain_expired == "leave"
        # The drain is over, and who is left is ended.
        self._terminates = False
        # Workers were told to leave behind who does not come to a boundary. After a restart of the supervisor in
        # `cutting_over` nobody waits for these sessions again.
        self._leaves = self._may_stay and phase is Phase.CUTTING_OVER

    @property
    def is_cancellable(self) -> bool:
        """A cancel would lead somewhere now."""
        return (
            self.phase in ABORTABLE
            or (self.phase is Phase.PROMOTING and self._is_target_silent)
            or (self.phase is Phase.ABORTING and self._unfence_tries > UNFENCE_TRIES_HELD)
        )

    @property
    def epoch(self) -> int:
        """Epoch of the service when this switch has cut over."""
        return self._epoch + 1

    def begin(self) -> list[Order]:
        """First orders of a new switch."""
        return [*self._enter(Event.VALIDATION_BEGAN), Examine()]

    def resume(self, verdict: Verdict) -> list[Order]:
        """First orders of a switch that an earlier supervisor left in `phase`."""
        if verdict in (Verdict.PROMOTE, Verdict.WAIT, Verdict.PERSON):
            # Where steps of the journal are missing, these stand for the ones up to here.
            self.phase = Phase.PROMOTING
        match verdict:
            case Verdict.UNDO if self.phase in (Phase.PENDING, Phase.VALIDATING):
                return self._trouble("the supervisor was restarted", "plan the switch again")
            case Verdict.UNDO:
                # Taking away what is not there does no harm.
                self._fence_ordered = self._moves_data
                if self.phase is Phase.PROMOTING:
                    return self._not_promoted("the supervisor was restarted before the promotion took place")
                if self.phase is Phase.ABORTING:
                    self.error = self.error or "the supervisor was restarted while the switch was being undone"
                    return self._undo()
                return self._trouble("the supervisor was restarted", "plan the switch again")
            case Verdict.PROMOTE:
                return [*self._hold_all(), Promote(self._promote_timeout_s)]
            case Verdict.WAIT:
                return [*self._hold_all(), *self._target_silent("it cannot be reached")]
            case Verdict.PERSON:
                return self._two_primaries()
            case Verdict.FINISH:
                if self.phase is Phase.CUTTING_OVER:
                    return [*self._hold_all(), *self._retarget_all()]
                # From `releasing` on every worker has retargeted.
                if self.phase is Phase.RELEASING:
                    return [*self._release_all(), *self._when_all_released()]
                return [*self._tell_release(), *self._afterwards(), *self._when_verified()]

    def sees(self, fact: Fact) -> list[Order]:
        """What is to be done because of `fact`."""
        if self.phase in ENDED:
            return []
        match fact:
            case WorkerSaid(worker, said):
                return self._worker_said(worker, said) if worker in self._crew else []
            case WorkerJoined(worker, is_in_switch):
                return self._worker_joined(worker, is_in_switch)
            case WorkerLost(worker):
                return self._worker_lost(worker)
            case Examined(checks):
                return self._examined(checks)
            case TimerRang(timer):
                return self._timer_rang(timer)
            case CancelAsked(by):
                return self._cancel_asked(by)
            case JournalRefused(phase, why):
                return self._journal_refused(phase, why)
            case _:
                return self._engine_said(fact)

    # --- validating, preparing ---------------------------------------------------------------------------------------

    def _examined(self, checks: list[Check]) -> list[Order]:
        if self.phase is not Phase.VALIDATING:
            return []
        failed = failures(checks, force=self.plan.force)
        if failed:
            self.error = "; ".join(f"check {check.name} failed: {check.found}" for check in failed)
            self.remedy = "; ".join(check.remedy for check in failed if check.remedy)
            return self._enter(Event.CHECKS_FAILED)
        if self.plan.dry_run:
            return self._enter(Event.DRY_RUN_DONE)
        if self._strategy is not None:
            orders = self._enter(Event.SHARING_BEGAN)
            return [*orders, *self._take_step(self._strategy.begin(sorted(self._crew)))]
        return self._begin_preparing(Event.CHECKS_PASSED)

    def _begin_preparing(self, event: Event) -> list[Order]:
        orders: list[Order] = self._enter(event)
        # First the engines: a server that was left once still has its fence, and what logs in there before that is taken
        # away stays read-only.
        orders += [PrepareEngines()] if self._moves_data else self._prepare_all()
        if Stage.BEFORE_FENCE in self._hooks:
            orders.append(RunHooks(Stage.BEFORE_FENCE))
        return [*orders, StartTimer(Timer.PREPARE, PREPARE_TIMEOUT_S)]

    # --- sharing -----------------------------------------------------------------------------------------------------

    def _take_step(self, step: strategies.Step) -> list[Order]:
        match step:
            case strategies.Move(number, moves, percent):
                self._step = number
                self._awaits_shares = True
                self._share_answers.clear()
                for worker in self._crew:
                    self._shares[worker] = self._share(moves.get(worker, 0), percent)
                orders: list[Order] = [self._tell(worker, self._shares[worker]) for worker in sorted(self._crew)]
                return [*orders, StartTimer(Timer.SHARE, SHARE_TIMEOUT_S)]
            case strategies.Pause(after_s):
                return [StartTimer(Timer.STEP, after_s)]
            case strategies.Look():
                return [Weigh()]
            case strategies.Done():
                return [StopTimer(Timer.STEP), StopTimer(Timer.SHARE), *self._begin_preparing(Event.SHARING_DONE)]
            case strategies.Leave(error, remedy):
                return self._trouble(error, remedy)

    def _shared(self, worker: int, said: ipc.Shared) -> list[Order]:
        if self.phase is not Phase.SHARING or said.step != self._step or worker in self._share_answers:
            return []
        if said.failed:
            return self._trouble(
                f"sessions could not be moved to {self.plan.target}: {said.failed[0]}",
                f"let the accounts of these sessions work on {self.plan.target}",
            )
        self._share_answers[worker] = strategies.Answer(said.moved, said.on_target, said.left)
        return self._when_shared()

    def _when_shared(self) -> list[Order]:
        if not self._crew:
            return self._trouble("no worker is left", "see the log for why they ended")
        if not self._awaits_shares or not self._crew <= self._share_answers.keys():
            return []
        self._awaits_shares = False
        assert self._strategy is not None, "it shares"
        return [StopTimer(Timer.SHARE), *self._take_step(self._strategy.moved(self._share_answers))]

    def _weighed(self, fact: Weighed) -> list[Order]:
        if self.phase is Phase.SHARING and self._strategy is not None:
            return self._take_step(self._strategy.looked(fact.source, fact.target))
        if self.phase is Phase.VERIFYING and self._window is not None and self._is_window_open:
            return self._take_window(self._window.looked(fact.before, fact.target))
        return []

    def _prepared(self, worker: int, said: ipc.Prepared) -> list[Order]:
        if self.phase is not Phase.PREPARING:
            return []
        if said.failed and not self.plan.force and not self._may_stay:
            more = f" (and {len(said.failed) - 1} more)" if len(said.failed) > 1 else ""
            return self._trouble(
                f"a session could not be prepared on {self.plan.target}: {said.failed[0]}{more}",
                f"let the accounts and settings of these sessions work on {self.plan.target}, or plan with --force",
            )
        self._own_pids[worker] = frozenset(said.backend_pids)
        self._answered.add(worker)
        return self._when_prepared()

    def _when_prepared(self) -> list[Order]:
        if not self._engines_prepared or not self._crew <= self._answered or Stage.BEFORE_FENCE in self._hooks:
            return []
        if not self._approach_ordered:
            self._approach_ordered = True
            return [Approach()]
        if not self._approached:
            return []
        if self._moves_data and not self._stops_opening:
            self._stops_opening = True
            return [self._tell(worker, self._stop_opening()) for worker in sorted(self._crew)]
        return self._when_armed()

    def _opening_stopped(self, worker: int) -> list[Order]:
        """Once no worker opens backends, nothing of Turnout's can log in under the fence: what of it binds newcomers only
        is set while traffic still goes on."""
        self._stopped.add(worker)
        if self.phase is not Phase.PREPARING or not self._stops_opening or not self._crew <= self._stopped:
            return []
        if self._fence_ordered:
            return self._when_armed()
        self._fence_ordered = True
        return [ArmFence()]

    def _when_armed(self) -> list[Order]:
        if not self._fence_armed or not self._crew <= self._answered:
            return []
        if self._moves_data and not self._crew <= self._stopped:
            return []
        orders: list[Order] = [StopTimer(Timer.PREPARE), *self._enter(Event.PREPARED)]
        orders += [self._tell(worker, self._hold()) for worker in sorted(self._crew)]
        return [*orders, StartTimer(Timer.DRAIN, self.drain_s), StartTimer(Timer.HOLD, self._hold_s)]

    # --- holding, draining -------------------------------------------------------------------------------------------

    def _worker_said(self, worker: int, said: ipc.Fact) -> list[Order]:
        if getattr(said, "switch", self.id) != self.id:
            return []
        match said:
            case ipc.Shared():
                return self._shared(worker, said)
            case ipc.Prepared():
                return self._prepared(worker, said)
            case ipc.OpeningStopped():
                return self._opening_stopped(worker)
            case ipc.Draining() if self.phase in (Phase.HOLDING, Phase.DRAINING) and said.draining > 0:
                orders = self._enter(Event.STILL_DRAINING) if self.phase is Phase.HOLDING else []
                # Some may have begun to drain after the word went out: a short deadline overtakes the hold.
                return [*orders, *self._terminate([worker])] if self._terminates else orders
            case ipc.AllHeld():
                return self._all_held(worker, said)
            case ipc.Retargeted() if self.phase is Phase.CUTTING_OVER and said.epoch == self.epoch:
                self._answered.add(worker)
                return self._when_all_retargeted()
            case ipc.Released():
                return self._released(worker, said)
            case ipc.FirstRow():
                self._saw_first_row = True
                return self._when_verified() if self.phase is Phase.VERIFYING else []
            case ipc.Expired() if self.phase in ABORTABLE:
                return self._trouble(
                    f"worker {worker} held its clients for hold_ms_max", "raise hold_ms_max, or switch at a calmer time"
                )
        return []

    def _all_held(self, worker: int, said: ipc.AllHeld) -> list[Order]:
        is_news = worker not in self._held
        self._held.add(worker)
        # These alone: one that was closed since the preparation may still run its last statement, and is a stranger.
        self._own_pids[worker] = frozenset(said.backend_pids)
        if self.phase in (Phase.HOLDING, Phase.DRAINING):
            self._answered.add(worker)
            return self._when_all_held()
        if self.phase is Phase.CUTTING_OVER and is_news:
            return [self._tell(worker, self._retarget())]
        return []

    def _when_all_held(self) -> list[Order]:
        if not self._crew:
            return self._trouble("no worker is left", "see the log for why they ended")
        if not self._crew <= self._answered:
            return []
        if not self._moves_data:
            stop = [StopTimer(Timer.DRAIN), StopTimer(Timer.HOLD)]
            return [*self._enter(Event.NOTHING_TO_MOVE), *stop, *self._retarget_all()]
        pids = frozenset().union(*self._own_pids.values())
        return [*self._enter(Event.ALL_HELD), Fence(pids), StopTimer(Timer.DRAIN)]

    # --- fencing to promoting ----------------------------------------------------------------------------------------

    def _engine_said(self, fact: Fact) -> list[Order]:
        match fact:
            case Weighed():
                return self._weighed(fact)
            case TargetLost(why) if self.phase is Phase.SHARING:
                return self._trouble(
                    f"{self.plan.target} was lost while it served: {why}", f"see the log of {self.plan.target}"
                )
            case WentBack(why) if self.phase is Phase.ROLLING_BACK:
                return self._went_back(why)
            case EnginesPrepared() if self.phase is Phase.PREPARING:
                self._engines_prepared = True
                return self._prepare_all()
            case Approached() if self.phase is Phase.PREPARING:
                self._approached = True
                return self._when_prepared()
            case Fenced(proof) if self.phase is Phase.FENCING:
                if proof.prepared_in_doubt and not self.plan.force:
                    return self._trouble(
                        f"prepared transactions in doubt on {self.plan.source}: {some(proof.prepared_in_doubt)}",
                        f"commit or roll them back on {self.plan.source}, set `in_doubt`, or plan with --force",
                    )
                return [*self._enter(Event.FENCED), ReadPosition()]
            case PositionRead(position) if self.phase is Phase.CATCHING_UP:
                return [AwaitPosition(position, self._catchup_timeout_s)]
            case PositionAwaited(reached, lacking) if self.phase is Phase.CATCHING_UP:
                if not reached:
                    return self._trouble(
                        f"{lacking or self.plan.target} did not reach the position of {self.plan.source} "
                        f"within {self._catchup_timeout_s:g} s",
                        "look at its replication lag, or raise catchup_timeout_s",
                    )
                return [CompareRows()] if self._compares else self._promote_target()
            case RowsCompared(different) if self.phase is Phase.CATCHING_UP:
                if different and not self.plan.force:
                    return self._trouble(
                        f"rows on {self.plan.target} are not those of {self.plan.source}: {some(different)}",
                        f"mend them on {self.plan.target}, and compare: turnout datacheck {self.plan.target}",
                    )
                return self._promote_target()
            case Promoted() if self.phase is Phase.PROMOTING:
                self._is_target_silent = False
                self.error = self.remedy = ""
                return [*self._enter(Event.PROMOTED), *self._retarget_all()]
            case Looked() if self.phase is Phase.PROMOTING:
                return self._looked(fact)
            case FenceArmed() if self.phase is Phase.PREPARING and self._fence_ordered:
                self._fence_armed = True
                return self._when_armed()
            case Unfenced() if self.phase is Phase.ABORTING:
                return self._let_go()
            case Audited(lost) if self.phase is Phase.VERIFYING and self._must_audit:
                return self._done_auditing(lost)
            case Followed() if self.phase is Phase.VERIFYING and self._must_follow:
                return self._done_following()
            case HooksRan(stage, failed):
                return self._hooks_ran(stage, failed)
            case ActFailed(act, why):
                return self._act_failed(act, why)
            case _:
                return []

    def _act_failed(self, act: Act, why: str) -> list[Order]:
        match act:
            case Act.PREPARE if self.phase is Phase.PREPARING:
                return self._trouble(f"the engines could not be prepared: {why}", "run `turnout check` on the config")
            case Act.APPROACH if self.phase is Phase.PREPARING:
                return self._trouble(f"{self.plan.target} could not be followed: {why}", "")
            case Act.ARM_FENCE if self.phase is Phase.PREPARING:
                return self._trouble(f"the fence of {self.plan.source} could not be prepared: {why}", "")
            case Act.FENCE if self.phase is Phase.FENCING:
                return self._trouble(f"{self.plan.source} could not be fenced: {why}", "")
            case Act.READ_POSITION | Act.AWAIT_POSITION if self.phase is Phase.CATCHING_UP:
                return self._trouble(f"{self.plan.target} could not be brought up: {why}", "")
            case Act.COMPARE_ROWS if self.phase is Phase.CATCHING_UP:
                return self._trouble(f"rows could not be compared at the fence: {why}", "")
            case Act.PROMOTE if self.phase is Phase.PROMOTING:
                self.error = f"{self.plan.target} could not be promoted: {why}"
                self._promotions_failed += 1
                return [Look()] if self._promotions_failed == 1 else [StartTimer(Timer.LOOK_AGAIN, LOOK_AGAIN_S)]
            case Act.UNFENCE if self.phase is Phase.ABORTING:
                return self._unfence_failed(why)
            case Act.AUDIT if self.phase is Phase.VERIFYING and self._must_audit:
                # The report says so: a source that died since the fence cannot be asked.
                return self._done_auditing(0)
            case Act.FOLLOW if self.phase is Phase.VERIFYING and self._must_follow:
                return self._done_following(why)
            case Act.HOOKS if self.phase is Phase.PREPARING:
                return self._hooks_ran(Stage.BEFORE_FENCE, why)
            case Act.HOOKS if self.phase is Phase.VERIFYING:
                return self._hooks_ran(Stage.AFTER_RELEASE, why)
        return []

    def _promote_target(self) -> list[Order]:
        return [*self._enter(Event.CAUGHT_UP), Promote(self._promote_timeout_s), StopTimer(Timer.HOLD)]

    def _looked(self, fact: Looked) -> list[Order]:
        """The promotion failed, or its outcome is unknown; the engines were asked."""
        match decide(Phase.PROMOTING, fact.source, fact.target):
            case Verdict.WAIT:
                return self._target_silent(fact.target.why or "it cannot be reached")
            case Verdict.PERSON:
                return self._two_primaries()
            case Verdict.UNDO:
                return self._not_promoted("")
            case _ if fact.target.role is Role.PRIMARY or self._is_target_silent:
                # It is a primary after all, or it was away and has to be asked anew: promotion may be repeated.
                self._is_target_silent = False
                return [Promote(self._promote_timeout_s)]
            case _:
                return self._not_promoted("")

    def _target_silent(self, why: str) -> list[Order]:
        self._is_target_silent = True
        self.error = f"{self.plan.target} does not say whether it was promoted: {why}"
        self.remedy = (
            f"start {self.plan.target}: the switch then ends by itself. If it is gone for good: `turnout cancel "
            f"{self.id}` gives {self.plan.source} back, and {self.plan.target} must be built anew before it is used"
        )
        return [StartTimer(Timer.LOOK_AGAIN, LOOK_AGAIN_S)]

    def _not_promoted(self, why: str) -> list[Order]:
        self.error = why or self.error or f"{self.plan.target} was not promoted"
        self.remedy = self.remedy or f"see the log of {self.plan.target}"
        self._fence_ordered = True
        return [*self._enter(Event.NOT_PROMOTED), *self._undo()]

    def _two_primaries(self) -> list[Order]:
        self.error = (
            f"{self.plan.target} is a primary, and so is {self.plan.source}; Turnout cannot tell which is right"
        )
        self.remedy = (
            "compare what both have, stop one of them and build it anew as a standby of the other; make sure that the "
            "other one takes writes, then restart Turnout"
        )
        return self._enter(Event.TWO_PRIMARIES)

    # --- cutting over, releasing, verifying --------------------------------------------------------------------------

    def _retarget_all(self) -> list[Order]:
        self._answered.clear()
        # A worker that joined during the fence is told when it holds.
        orders: list[Order] = [self._tell(worker, self._retarget()) for worker in sorted(self._crew & self._held)]
        return [*orders, StartTimer(Timer.RETARGET, RETARGET_TIMEOUT_S), *self._when_all_retargeted()]

    def _when_all_retargeted(self) -> list[Order]:
        if not self._crew <= self._answered:
            return []
        # Without anybody left the cutover is complete all the same: new workers begin on the target.
        return [
            *self._enter(Event.RETARGETED),
            *self._release_all(),
            StopTimer(Timer.RETARGET),
            *self._when_all_released(),
        ]

    def _release_all(self) -> list[Order]:
        self._answered.clear()
        return [*self._tell_release(), StartTimer(Timer.RELEASE, RELEASE_TIMEOUT_S)]

    def _tell_release(self) -> list[Order]:
        return [self._tell(worker, self._release()) for worker in sorted(self._crew)]

    def _released(self, worker: int, said: ipc.Released) -> list[Order]:
        if self.phase is not Phase.RELEASING and not (self.phase is Phase.ABORTING and self._was_let_go):
            return []
        self._someone_waited = self._someone_waited or bool(said.waits_us)
        self._answered.add(worker)
        return self._when_all_released()

    def _when_all_released(self) -> list[Order]:
        if not self._crew <= self._answered:
            return []
        if self.phase is Phase.ABORTING:
            if self._unfence_tries:
                return []  # let go before the source was writable: it is still being asked to be
            return [*self._enter(Event.SOURCE_RESTORED), StopTimer(Timer.RELEASE)]
        return [
            *self._enter(Event.RELEASED),
            StopTimer(Timer.RELEASE),
            StartTimer(Timer.VERIFY, VERIFY_TIMEOUT_S),
            *self._afterwards(),
            *self._open_window(),
            *self._when_verified(),
        ]

    def _afterwards(self) -> list[Order]:
        """What is done behind the clients' backs. If it fails, the switch has gone well all the same."""
        orders: list[Order] = [Audit()] if self._must_audit else self._follow()
        if Stage.AFTER_RELEASE in self._hooks:
            orders.append(RunHooks(Stage.AFTER_RELEASE))
        return [*orders, StartTimer(Timer.AFTERWARDS, AFTERWARDS_TIMEOUT_S)] if orders else []

    def _follow(self) -> list[Order]:
        return [Follow()] if self._must_follow else []

    def _done_auditing(self, lost: int) -> list[Order]:
        self._must_audit = False
        if lost:
            self._note(
                f"{lost} of the newest commits of {self.plan.source} are not on {self.plan.target}: the report names them; "
                f"save what {self.plan.source} has before it is changed"
            )
            # It would be overwritten by the way back.
            self._must_follow = False
        return [*self._follow(), *self._when_verified()]

    def _when_verified(self) -> list[Order]:
        if self._must_audit or self._must_follow or Stage.AFTER_RELEASE in self._hooks:
            return []
        if self._worse:
            return self._go_back()
        if self._is_window_open:
            return []
        if self._someone_waited and not self._saw_first_row and self._crew and not self._verify_expired:
            return []
        return [*self._enter(Event.VERIFIED), StopTimer(Timer.VERIFY), StopTimer(Timer.AFTERWARDS)]

    def _open_window(self) -> list[Order]:
        if self._window is None:
            return []
        self._is_window_open = True
        return [Weigh()]

    def _take_window(self, step: strategies.Step) -> list[Order]:
        match step:
            case strategies.Pause(after_s):
                return [StartTimer(Timer.WINDOW, after_s)]
            case strategies.Leave(error, _):
                self._worse = error
            case _:
                # The time is over, and the service is no worse.
                pass
        self._is_window_open = False
        return self._when_verified()

    def _go_back(self) -> list[Order]:
        worse, self._worse = self._worse, ""
        if not self._follows:
            self._note(
                f"{worse}; {self.plan.source} does not follow {self.plan.target}, so that it cannot go back by itself"
            )
            return self._when_verified()
        self.error = worse
        stop = [StopTimer(timer) for timer in (Timer.VERIFY, Timer.AFTERWARDS, Timer.WINDOW)]
        return [*self._enter(Event.ROLLBACK_WANTED), *stop, GoBack(worse)]

    def _went_back(self, why: str) -> list[Order]:
        if not why:
            return self._enter(Event.SOURCE_RESTORED)
        self.error = f"{self.error}; it could not go back: {why}"
        self.remedy = f"{self.plan.target} serves: mend it, or switch to {self.plan.source} by hand"
        return self._enter(Event.GIVEN_UP)

    def _done_following(self, why: str = "") -> list[Order]:
        self._must_follow = False
        self._follows = not why
        if why:
            self._note(f"{self.plan.source} does not follow {self.plan.target} ({why}): make it a replica by hand")
        return self._when_verified()

    def _hooks_ran(self, stage: Stage, failed: str) -> list[Order]:
        if stage not in self._hooks:
            return []
        self._hooks.discard(stage)
        if stage is Stage.AFTER_RELEASE:
            if failed:
                self._note(f"a hook failed: {failed}: see the report, and do by hand what it should have done")
            return self._when_verified() if self.phase is Phase.VERIFYING else []
        if self.phase is not Phase.PREPARING:
            return []
        return (
            self._trouble(f"a hook failed: {failed}", "see its output in the report")
            if failed
            else self._when_prepared()
        )

    def _note(self, what: str) -> None:
        """Something is left to do although the switch has gone well."""
        self.remedy = f"{self.remedy}; {what}" if self.remedy else what

    # --- undoing -----------------------------------------------------------------------------------------------------

    def _trouble(self, error: str, remedy: str) -> list[Order]:
        """Give everything back. Only where the source is still the engine that is right."""
        assert self.phase in ABORTABLE
        self.error, self.remedy = error, remedy
        orders = self._enter(Event.TROUBLE)
        return orders if self.phase is Phase.ABORTED else [*orders, *self._undo()]

    def _undo(self) -> list[Order]:
        over = (Timer.STEP, Timer.SHARE, Timer.PREPARE, Timer.DRAIN, Timer.HOLD, Timer.LOOK_AGAIN)
        timers = [StopTimer(timer) for timer in over]
        if self._fence_ordered:
            return [Unfence(), *timers]
        return [*self._let_go(), *timers]

    def _let_go(self) -> list[Order]:
        """The source is writable, or was never fenced."""
        self._unfence_tries = 0
        orders = [] if self._was_let_go else self._tell_release_on_source()
        return [*orders, StartTimer(Timer.RELEASE, UNDO_TIMEOUT_S), *self._when_all_released()]

    def _tell_release_on_source(self) -> list[Order]:
        self._was_let_go = True
        self._answered.clear()
        return [self._tell(worker, self._release_on_source()) for worker in sorted(self._crew)]

    def _unfence_failed(self, why: str) -> list[Order]:
        self._unfence_tries += 1
        orders: list[Order] = [StartTimer(Timer.UNFENCE_AGAIN, UNFENCE_AGAIN_S)]
        if self._unfence_tries > UNFENCE_TRIES_HELD and not self._was_let_go:
            self.remedy = (
                f"{self.plan.source} does not take writes ({why}): start it or mend it; it is asked again and again"
            )
            orders += self._tell_release_on_source()
        return orders

    # --- trouble from outside ----------------------------------------------------------------------------------------

    def _cancel_asked(self, by: str) -> list[Order]:
        who = f"cancelled by {by}" if by else "cancelled"
        if self.phase in ABORTABLE:
            return self._trouble(who, "")
        if not self.is_cancellable:
            return []
        if self.phase is Phase.PROMOTING:
            self.error = f"{who}; {self.error}"
            self.remedy = f"{self.plan.target} may have been promoted: build it anew before it is used"
            self._fence_ordered = True
            return [*self._enter(Event.GIVEN_UP), *self._undo()]
        self.error = f"{who}; {self.error}"
        return [StopTimer(Timer.UNFENCE_AGAIN), *self._enter(Event.GIVEN_UP)]

    def _journal_refused(self, phase: Phase, why: str) -> list[Order]:
        """The journal could not be written, so the act was not begun."""
        if phase is not self.phase:
            return []
        error, remedy = f"the state file cannot be written: {why}", "make room for the state file, or let it be written"
        if phase is Phase.PROMOTING:
            self.remedy = remedy
            return self._not_promoted(error)
        if phase in ABORTABLE:
            return self._trouble(error, remedy)
        return []

    def _timer_rang(self, timer: Timer) -> list[Order]:
        missing = sorted(self._crew - self._answered)
        match timer:
            case Timer.STEP if self.phase is Phase.SHARING and self._strategy is not None:
                return self._take_step(self._strategy.rang(self._share_answers))
            case Timer.SHARE if self.phase is Phase.SHARING:
                return self._trouble(f"sessions were not moved within {SHARE_TIMEOUT_S:g} s", "see the log")
            case Timer.WINDOW if self.phase is Phase.VERIFYING and self._is_window_open:
                return [Weigh()]
            case Timer.PREPARE if self.phase is Phase.PREPARING:
                return self._trouble(f"the target backends were not ready after {PREPARE_TIMEOUT_S:g} s", "")
            case Timer.DRAIN if self.phase in (Phase.HOLDING, Phase.DRAINING):
                return self._drain_expired(missing)
            case Timer.HOLD if self.phase in ABORTABLE and self.phase not in (Phase.PENDING, Phase.VALIDATING):
                return self._trouble(
                    "the clients would have been held longer than hold_ms_max",
                    "raise hold_ms_max, or switch at a calmer time",
                )
            case Timer.RETARGET if self.phase is Phase.CUTTING_OVER:
                return [
                    ReplaceWorker(worker, f"it did not retarget within {RETARGET_TIMEOUT_S:g} s") for worker in missing
                ]
            case Timer.RELEASE if self.phase is Phase.RELEASING:
                self._answered |= self._crew
                return self._when_all_released()
            case Timer.RELEASE if self.phase is Phase.ABORTING and self._was_let_go:
                self._answered |= self._crew
                return self._when_all_released()
            case Timer.VERIFY if self.phase is Phase.VERIFYING:
                self._verify_expired = True
                return self._when_verified()
            case Timer.AFTERWARDS if self.phase is Phase.VERIFYING:
                self._hooks.clear()
                self._note(f"what follows a release was not done within {AFTERWARDS_TIMEOUT_S:g} s: see the report")
                self._must_audit = self._must_follow = False
                return self._when_verified()
            case Timer.LOOK_AGAIN if self.phase is Phase.PROMOTING:
                return [Look()]
            case Timer.UNFENCE_AGAIN if self.phase is Phase.ABORTING:
                return [Unfence()]
        return []

    def _drain_expired(self, missing: list[int]) -> list[Order]:
        if self.plan.on_drain_expired == "terminate":
            self._terminates = True
            return self._terminate(missing)
        if self._may_stay:
            self._leaves = True
            return [self._tell(worker, self._leave()) for worker in missing]
        is_cut = self.plan.drain_timeout_s is not None and self.drain_s < self.plan.drain_timeout_s
        return self._trouble(
            f"sessions did not end their transactions within {self.drain_s:g} s"
            + (", which is what hold_ms_max leaves of the drain timeout" if is_cut else ""),
            "see `waiting_for` in the report; give more time, or plan with on_drain_expired = terminate",
        )

    def _terminate(self, workers: Iterable[int]) -> list[Order]:
        reason = f"the connection is moving to another server and waited {self.drain_s:g} s for this transaction"
        return [
            self._tell(worker, ipc.Terminate(switch=self.id, service=self.plan.service, reason=reason))
            for worker in workers
        ]

    def _worker_joined(self, worker: int, is_in_switch: bool) -> list[Order]:
        """Repeat what this worker has to do now; one that has done it already says so again.

        A new worker takes part as long as the source is what it was configured with. From `cutting_over` on it was
        configured with the target and its epoch, and has nothing to catch up with.
        """
        if worker not in self._crew:
            if self.phase in (Phase.CUTTING_OVER, Phase.RELEASING, Phase.VERIFYING) and not is_in_switch:
                return []
            self._crew.add(worker)
        match self.phase:
            case Phase.SHARING:
                return self._share_again(worker)
            case Phase.PREPARING if self._stops_opening:
                return [self._tell(worker, self._stop_opening()), self._tell(worker, self._prepare())]
            case Phase.PREPARING if self._engines_prepared:
                return [self._tell(worker, self._prepare())]
            case Phase.HOLDING | Phase.DRAINING | Phase.FENCING | Phase.CATCHING_UP | Phase.PROMOTING:
                return self._tell_hold(worker)
            case Phase.CUTTING_OVER:
                self._held.discard(worker)
                return self._tell_hold(worker)
            case Phase.RELEASING | Phase.VERIFYING:
                return [self._tell(worker, self._release())]
            case Phase.ABORTING if self._was_let_go:
                return [self._tell(worker, self._release_on_source())]
            case Phase.ABORTING:
                return [self._tell(worker, self._hold())]
            case _:
                return []

    def _worker_lost(self, worker: int) -> list[Order]:
        if worker not in self._crew:
            return []
        self._crew.discard(worker)
        self._answered.discard(worker)
        self._stopped.discard(worker)
        self._held.discard(worker)
        self._own_pids.pop(worker, None)
        self._shares.pop(worker, None)
        self._share_answers.pop(worker, None)
        for counted in (self._strategy, self._window):
            if counted is not None:
                counted.recount()
        match self.phase:
            case Phase.SHARING:
                return self._when_shared()
            case Phase.PREPARING | Phase.HOLDING | Phase.DRAINING:
                return self._trouble(f"worker {worker} ended", "see the log for why it ended")
            case Phase.CUTTING_OVER:
                return self._when_all_retargeted()
            case Phase.RELEASING:
                return self._when_all_released()
            case Phase.ABORTING if self._was_let_go:
                return self._when_all_released()
            case Phase.VERIFYING:
                return self._when_verified()
            case _:
                return []

    # --- words -------------------------------------------------------------------------------------------------------

    def _enter(self, event: Event) -> list[Order]:
        """The only place where the phase changes."""
        self.phase = after(self.phase, event)
        if event in (Event.CHECKS_PASSED, Event.PREPARED):
            self._answered.clear()
        return [Enter(self.phase)]

    def _tell(self, worker: int, order: ipc.Order) -> Tell:
        return Tell(worker, order)

    def _hold_all(self) -> Iterable[Order]:
        return [order for worker in sorted(self._crew) for order in self._tell_hold(worker)]

    def _tell_hold(self, worker: int) -> list[Order]:
        orders: list[Order] = [self._tell(worker, self._hold())]
        return [*orders, self._tell(worker, self._leave())] if self._leaves else orders

    def _prepare_all(self) -> list[Order]:
        return [self._tell(worker, self._prepare()) for worker in sorted(self._crew)]

    def _prepare(self) -> ipc.Prepare:
        return ipc.Prepare(switch=self.id, service=self.plan.service, target=self.plan.target)

    def _share(self, moves: int, percent: float) -> ipc.Share:
        return ipc.Share(
            switch=self.id,
            service=self.plan.service,
            target=self.plan.target,
            step=self._step,
            moves=moves,
            percent=percent,
        )

    def _share_again(self, worker: int) -> list[Order]:
        """The worker came back, or is new: then it moves nobody in this step, but its newcomers belong on both."""
        assert self._strategy is not None, "it shares"
        if worker not in self._shares:
            self._shares[worker] = self._share(0, self._strategy.percent)
        return [self._tell(worker, self._shares[worker])]

    def _stop_opening(self) -> ipc.StopOpening:
        return ipc.StopOpening(switch=self.id, service=self.plan.service)

    def _hold(self) -> ipc.Order:
        return ipc.Hold(switch=self.id, service=self.plan.service, may_stay=self._may_stay)

    def _leave(self) -> ipc.Leave:
        return ipc.Leave(switch=self.id, service=self.plan.service)

    def _retarget(self) -> ipc.Retarget:
        return ipc.Retarget(switch=self.id, service=self.plan.service, target=self.plan.target, epoch=self.epoch)

    def _release(self) -> ipc.Release:
        return ipc.Release(switch=self.id, service=self.plan.service, epoch=self.epoch)

    def _release_on_source(self) -> ipc.Release:
        return ipc.Release(switch=self.id, service=self.plan.service, epoch=self._epoch)
