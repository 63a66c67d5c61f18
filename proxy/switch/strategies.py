"""Rolling and canary: the part of a switch in which both engines serve. Answers in, steps out; pure.

`SwitchRun` asks a strategy what to do next and turns its steps into orders. A strategy knows workers by number and sessions
by count; which session moves is chosen where the sessions are. It ends with `Done` (what is left is held and moved at once,
like in a graceful switch, and the target is active) or with `Leave` (everything goes back to the source).

Every step is numbered. The first one moves nobody: its answers tell how many sessions each worker has.

Rolling moves `batch_size` sessions each `interval_s`. It is done when nobody is left, or when a step has moved nobody: those
that are left are in long transactions, or can only be moved while all are held.

Canary moves `traffic_percentage` of the sessions, lets as many of the newcomers begin on the target, and then weighs every
second what the engines did (see `significance`). Clearly worse ends it at once; at the end of `validation_duration_s` worse
ends it too, and so does too small a sample, for then nothing was shown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from proxy.switch.plan import SwitchPlan
from proxy.switch.significance import Limits, Opinion, Sample, weigh

LOOK_INTERVAL_S: Final = 1.0
"""Pause between two looks at what the engines did."""


@dataclass(frozen=True, slots=True)
class Move:
    """Give so many further sessions of each worker a backend on the target; all workers answer."""

    step: int
    moves: Mapping[int, int]
    percent: float
    """Share of the newcomers that begins on the target."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Ask again after so many seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Look:
    """Find out what the engines did so far."""


@dataclass(frozen=True, slots=True)
class Done:
    """The target may have everybody."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Everybody goes back to the source."""

    error: str
    remedy: str


Step = Move | Pause | Look | Done | Leave


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker says of a step."""

    moved: int
    on_target: int
    left: int


class Strategy(Protocol):
    """How both engines serve."""

    percent: float
    """Share of the newcomers that begins on the target now."""
    opinion: Opinion | None
    """What was thought last of the target; None: nothing."""

    def begin(self, workers: Collection[int]) -> Step: ...
    def moved(self, answers: Mapping[int, Answer]) -> Step:
        """All workers have answered the last `Move`."""
        ...

    def rang(self, answers: Mapping[int, Answer]) -> Step:
        """A `Pause` is over."""
        ...

    def looked(self, source: Sample, target: Sample) -> Step:
        """The answer to a `Look`: all that was counted since the workers began."""
        ...

    def recount(self) -> None:
        """A worker was replaced, and its counters with it."""
        ...


class Rolling:
    """See the module."""

    def __init__(self, batch_size: int, interval_s: float) -> None:
        self.percent = 0.0
        self.opinion: Opinion | None = None
        self._batch_size = batch_size
        self._interval_s = interval_s
        self._step = 0

    def begin(self, workers: Collection[int]) -> Step:
        return self._move(dict.fromkeys(workers, 0))

    def _move(self, moves: Mapping[int, int]) -> Step:
        self._step += 1
        return Move(self._step, moves, self.percent)

    def moved(self, answers: Mapping[int, Answer]) -> Step:
        left = sum(answer.left for answer in answers.values())
        on_target = sum(answer.on_target for answer in answers.values())
        # Whoever comes now begins where most of the others are: else a service with short connections never moves.
        self.percent = 100 * on_target / (on_target + left) if on_target else 0.0
        if left == 0 or (self._step > 1 and not any(answer.moved for answer in answers.values())):
            return Done()
        if self._step == 1:
            return self.rang(answers)
        return Pause(self._interval_s)

    def rang(self, answers: Mapping[int, Answer]) -> Step:
        return self._move(spread(self._batch_size, {worker: answer.left for worker, answer in answers.items()}))

    def looked(self, source: Sample, target: Sample) -> Step:
        del source, target
        raise AssertionError("rolling compares nothing")

    def recount(self) -> None:
        """Nothing is counted."""


class Canary:
    """See the module."""

    def __init__(self, percent: float, duration_s: float, limits: Limits) -> None:
        self.percent = 0.0
        self.opinion: Opinion | None = None
        self._wanted_percent = percent
        self._limits = limits
        self._looks_left = max(1, math.ceil(duration_s / LOOK_INTERVAL_S))
        self._interval_s = duration_s / self._looks_left
        self._step = 0
        # What each engine had done when the share had moved.
        self._before: tuple[Sample, Sample] | None = None

    def begin(self, workers: Collection[int]) -> Step:
        self._step = 1
        return Move(1, dict.fromkeys(workers, 0), 0.0)

    def moved(self, answers: Mapping[int, Answer]) -> Step:
        if self._step > 1:
            return Look()
        self._step = 2
        self.percent = self._wanted_percent
        left = {worker: answer.left for worker, answer in answers.items()}
        # At least one, if there is one: a service with few sessions is to be tried, too.
        wanted = math.ceil(self._wanted_percent / 100 * sum(left.values()))
        return Move(2, spread(wanted, left), self.percent)

    def rang(self, answers: Mapping[int, Answer]) -> Step:
        del answers
        return Look()

    def looked(self, source: Sample, target: Sample) -> Step:
        if self._before is None:
            self._before = (source, target)
            return Pause(self._interval_s)
        self._looks_left -= 1
        is_early = self._looks_left > 0
        self.opinion = weigh(
            source.since(self._before[0]), target.since(self._before[1]), self._limits, is_early=is_early
        )
        if self.opinion.finding == "worse":
            return Leave(f"the target is worse: {self.opinion.why}", "see `opinion` in the report for the figures")
        if is_early:
            return Pause(self._interval_s)
        if self.opinion.finding == "too_few":
            return Leave(
                f"the target was not shown to be as good: {self.opinion.why}",
                "give it a larger share or more time, or lower `requests_min`",
            )
        return Done()

    def recount(self) -> None:
        self._before = None


class Window:
    """The time after a cutover in which the service is compared with what it was before. `Done` ends it well (or without
    enough requests to tell, see `opinion`), `Leave` says that the service is worse."""

    def __init__(self, duration_s: float, limits: Limits) -> None:
        self.opinion: Opinion | None = None
        self._limits = limits
        self._looks_left = max(1, math.ceil(duration_s / LOOK_INTERVAL_S))
        self._interval_s = duration_s / self._looks_left
        self._at_cutover: Sample | None = None

    def looked(self, before: Sample, target: Sample) -> Step:
        """`before`: what the source did in the time before the switch; `target`: all that the target did so far."""
        if self._at_cutover is None:
            self._at_cutover = target
            return Pause(self._interval_s)
        self._looks_left -= 1
        is_early = self._looks_left > 0
        self.opinion = weigh(before, target.since(self._at_cutover), self._limits, is_early=is_early)
        if self.opinion.finding == "worse":
            return Leave(f"the service is worse than before: {self.opinion.why}", "see `opinion` in the report")
        return Pause(self._interval_s) if is_early else Done()

    def recount(self) -> None:
        """A worker was replaced, and its counters with it."""
        self._at_cutover = None


def spread(wanted: int, left: Mapping[int, int]) -> dict[int, int]:
    """Share `wanted` sessions out among workers that have `left` each, in proportion; all of them if there are fewer."""
    total = sum(left.values())
    if wanted >= total:
        return dict(left)
    shares = {worker: wanted * count // total for worker, count in left.items()}
    rest = wanted - sum(shares.values())
    # The largest remainders first; the lower number of two that are equal.
    for worker in sorted(left, key=lambda one: (-(wanted * left[one] % total), one))[:rest]:
        shares[worker] += 1
    return shares


def strategy_of(plan: SwitchPlan, limits: Limits) -> Strategy | None:
    """What a plan asks for; None: both engines never serve at once."""
    if plan.strategy == "rolling":
        assert plan.batch_size is not None, "accepted"
        assert plan.interval_s is not None, "accepted"
        return Rolling(plan.batch_size, plan.interval_s)
    if plan.strategy == "canary":
        assert plan.traffic_percentage is not None, "accepted"
        assert plan.validation_duration_s is not None, "accepted"
        return Canary(plan.traffic_percentage, plan.validation_duration_s, limits)
    return None
