"""One failover, sans I/O: what a switch is without a source.

Theory of operation
-------------------
The conversation of `SwitchRun`, with what the source would have to do left out: nobody drains (what is in flight there is
lost), nothing is fenced or caught up with. Three rules take their place:

1. Two phases over the workers, as in a switch: every worker has let go of the source for ever (`Abandon`, `AllHeld`)
   before the target is promoted, so that no client of Turnout's can write to both; a worker that does not say so within
   `LET_GO_TIMEOUT_S` is ended. And every worker has retargeted before any is released.
2. Until the target says that it is a primary, the failover can be given up: sessions then wait for the source, as they
   did before. No client was on the target, so nothing acknowledged is lost. A target that was asked to promote itself and
   does not say whether it did is *doubtful*: it is fenced, should it be seen as a primary.
3. Once it has said so there is only forward, as in a switch.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from proxy import ipc
from proxy.engines.engine import EngineState, Role
from proxy.switch.readiness import Check, failures
from proxy.switch.run import SwitchRun, Verdict
from proxy.switch.state import ENDED, Event, Phase
from proxy.switch.terms import (
    Examine,
    Fact,
    Looked,
    Order,
    Promote,
    Promoted,
    ReplaceWorker,
    StartTimer,
    StopTimer,
    Timer,
)

FAILOVER: Final = "failover"
"""Strategy in the record of a failover. Nobody can ask for it in a plan."""

LET_GO_TIMEOUT_S: Final = 1.0
"""Workers wait for nothing when they let go; one that takes longer is ended."""

GIVE_UP_FACTOR: Final = 2.0
"""A target is given up after this many times `promote_timeout_s`."""


def decide(phase: Phase, source: EngineState, target: EngineState) -> Verdict:
    """What becomes of a failover whose supervisor is gone, by its last journaled phase and what the engines say now."""
    assert phase not in ENDED
    if phase in (Phase.CUTTING_OVER, Phase.RELEASING, Phase.VERIFYING):
        return Verdict.FINISH
    if phase not in (Phase.HOLDING, Phase.PROMOTING):
        return Verdict.UNDO
    if target.role is Role.PRIMARY and phase is Phase.PROMOTING:
        return Verdict.PROMOTE
    source_takes_writes = source.is_reachable and source.role is Role.PRIMARY and source.is_writable
    if source_takes_writes or (not target.is_reachable and phase is Phase.HOLDING):
        return Verdict.UNDO
    return Verdict.PROMOTE


class FailoverRun(SwitchRun):
    """See the module."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.is_target_doubtful = False
        """It was asked to promote itself, and the failover was given up."""
        self._in_doubt: set[str] = set()
        self._outcomes: dict[str, str] = {}

    def begin(self) -> list[Order]:
        return [*self._enter(Event.VALIDATION_BEGAN), Examine()]

    def resume(self, verdict: Verdict) -> list[Order]:
        if verdict is Verdict.PROMOTE:
            # The workers are asked once more: who has let go says so again.
            self.phase = Phase.HOLDING
            return self._let_source_go()
        self.is_target_doubtful = self.phase is Phase.PROMOTING
        return super().resume(verdict)

    # --- the source --------------------------------------------------------------------------------------------------

    def _examined(self, checks: list[Check]) -> list[Order]:
        if self.phase is not Phase.VALIDATING:
            return []
        failed = failures(checks, force=self.plan.force)
        if failed:
            self.error = "; ".join(f"check {check.name} failed: {check.found}" for check in failed)
            self.remedy = "; ".join(check.remedy for check in failed if check.remedy)
            return self._enter(Event.CHECKS_FAILED)
        return [*self._enter(Event.SOURCE_LOST), *self._let_source_go()]

    def _let_source_go(self) -> list[Order]:
        return [*self._hold_all(), StartTimer(Timer.DRAIN, LET_GO_TIMEOUT_S), *self._when_all_held()]

    def _hold(self) -> ipc.Order:
        return ipc.Abandon(switch=self.id, service=self.plan.service, reason=self.plan.reason)

    def _worker_said(self, worker: int, said: ipc.Fact) -> list[Order]:
        if isinstance(said, ipc.Draining | ipc.Expired):
            # Nobody drains. And who was refused because it took too long does not stop it.
            return []
        return super()._worker_said(worker, said)

    def _when_all_held(self) -> list[Order]:
        if not self._crew <= self._answered:
            return []
        return [
            *self._enter(Event.LET_GO),
            StopTimer(Timer.DRAIN),
            self._promote(),
            StartTimer(Timer.HOLD, GIVE_UP_FACTOR * self._promote_timeout_s),
        ]

    def _promote(self) -> Promote:
        return Promote(self._promote_timeout_s, frozenset(self._in_doubt))

    def _all_held(self, worker: int, said: ipc.AllHeld) -> list[Order]:
        self._in_doubt.update(said.in_doubt)
        return super()._all_held(worker, said)

    def _engine_said(self, fact: Fact) -> list[Order]:
        if isinstance(fact, Promoted):
            self._outcomes = dict(fact.outcomes)
        return super()._engine_said(fact)

    def _retarget(self) -> ipc.Retarget:
        return msgspec.structs.replace(super()._retarget(), outcomes=self._outcomes)

    def _drain_expired(self, missing: list[int]) -> list[Order]:
        why = f"it did not let go of {self.plan.source} within {LET_GO_TIMEOUT_S:g} s"
        return [ReplaceWorker(worker, why) for worker in missing]

    def _worker_lost(self, worker: int) -> list[Order]:
        if self.phase is not Phase.HOLDING or worker not in self._crew:
            return super()._worker_lost(worker)
        # It has let go for certain.
        for those in (self._crew, self._answered, self._held):
            those.discard(worker)
        return self._when_all_held()

    # --- the target --------------------------------------------------------------------------------------------------

    def _looked(self, fact: Looked) -> list[Order]:
        if fact.target.role is Role.PRIMARY:
            return [self._promote()]
        if fact.target.is_reachable:
            return self._not_promoted("")
        return self._target_silent(fact.target.why or "it cannot be reached")

    def _timer_rang(self, timer: Timer) -> list[Order]:
        if timer is Timer.HOLD and self.phase is Phase.PROMOTING:
            self.error = self.error or f"{self.plan.target} was not promoted in time"
            self.is_target_doubtful = True
            return [*self._enter(Event.GIVEN_UP), *self._undo()]
        return super()._timer_rang(timer)

    def _not_promoted(self, why: str) -> list[Order]:
        # It may do late what it was asked for.
        self.is_target_doubtful = True
        return super()._not_promoted(why)

    def _target_silent(self, why: str) -> list[Order]:
        orders = super()._target_silent(why)
        self.remedy = f"it is given up after {GIVE_UP_FACTOR * self._promote_timeout_s:g} s in all"
        return orders

    def _undo(self) -> list[Order]:
        self.remedy = (
            f"start {self.plan.source}, or find out why {self.plan.target} could not take over: sessions wait for"
            f" {self.plan.source}; then `turnout failover on`"
        )
        return [*self._let_go(), *(StopTimer(timer) for timer in (Timer.DRAIN, Timer.HOLD, Timer.LOOK_AGAIN))]

    def _done_following(self, why: str = "") -> list[Order]:
        self._must_follow = False
        if why:
            self._note(why)
        return self._when_verified()
