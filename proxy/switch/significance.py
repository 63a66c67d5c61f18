"""Is one engine worse than another, or than a service was before? Samples in, an opinion out; pure.

Used by the canary strategy and by the window after a cutover. Two questions, each with a limit below which a difference
does not matter, and a test that tells whether it is more than chance:

Errors. A request that ended in a fault (an error that is not the client's own, see `protocols.wire.CLIENTS_OWN`) or did
not. Fisher's exact test, one-sided (R. A. Fisher, The Design of Experiments, 1935, chapter 2): faults are rare, and the usual
test of two proportions by a normal deviate is not to be trusted with fewer than five in a cell.

Latency. Welch's t test, one-sided, of the logarithms (B. L. Welch, Biometrika 34, 1947): response times spread by factors,
not by differences, and their logarithms are near enough to normal for means of a hundred; the two sides need not spread
alike. What is tested is not "is it slower" (with 100,000 requests three per cent are certain, and nobody minds) but "is it more than
`latency_ratio_max` times as slow", that is: the difference of the means against the logarithm of the limit. With at least
100 requests a side Student's distribution is the normal one to two digits, and that is used.

Requests of one session are not quite independent of each other, so the level of significance is low (1 %), and lower
still (0.01 %) for a look before the time is over: looking every second is many tests.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final, Literal

import msgspec

from proxy.ipc import ServiceFigures
from proxy.latency import BUCKETS, middle_us

LEVEL: Final = 0.01
"""Chance of calling an equal engine worse, at the end."""

EARLY_LEVEL: Final = 0.0001
"""The same at a look before the end."""

_BUCKET_VARIANCE: Final = math.log(9 / 8) ** 2 / 12
"""Of the logarithm of a length within its bucket: nobody knows it better than that."""

_LOGS: Final = [math.log(middle_us(bucket)) for bucket in range(BUCKETS)]

Finding = Literal["good", "worse", "too_few"]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted on one side."""

    requests: int = 0
    faults: int = 0
    latency: list[int] = []
    """Requests by length, in the buckets of `proxy.latency`."""

    def since(self, before: Sample) -> Sample:
        """What came after `before`. Counters that went back (a worker was replaced) count as nothing new."""
        earlier = [*before.latency, *[0] * (len(self.latency) - len(before.latency))]
        latency = [max(0, now - then) for now, then in zip(self.latency, earlier, strict=True)]
        return Sample(
            requests=max(0, self.requests - before.requests),
            faults=max(0, self.faults - before.faults),
            latency=latency,
        )

    def plus(self, other: Sample) -> Sample:
        """Both together."""
        size = max(len(self.latency), len(other.latency))
        mine, its = ([*one.latency, *[0] * (size - len(one.latency))] for one in (self, other))
        return Sample(
            requests=self.requests + other.requests,
            faults=self.faults + other.faults,
            latency=[a + b for a, b in zip(mine, its, strict=True)],
        )


NOTHING: Final = Sample()
"""Of an engine that did nothing."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What does not matter, and what is not enough."""

    latency_ratio_max: float
    """The candidate may take that many times as long, by the geometric mean."""
    error_percent_more_max: float
    """And fail so many more requests of a hundred."""
    requests_min: int
    """Requests there must be on either side."""


class Opinion(msgspec.Struct, frozen=True, kw_only=True):
    """What is thought of a candidate, and by which figures."""

    finding: Finding
    why: str
    """In one line."""
    reference_requests: int = 0
    candidate_requests: int = 0
    reference_error_percent: float = 0.0
    candidate_error_percent: float = 0.0
    error_p: float | None = None
    """Chance of as many faults, were the two alike; None: not tested."""
    reference_us: float = 0.0
    """Geometric mean of the response time, microseconds."""
    candidate_us: float = 0.0
    latency_ratio: float | None = None
    latency_p: float | None = None
    """Chance of such a ratio, were the true one the limit; None: not tested."""


class History:
    """What a service's engines had done at some moments of the last while."""

    def __init__(self) -> None:
        self._moments: list[tuple[float, dict[str, Sample]]] = []

    def note(self, now_s: float, samples: dict[str, Sample], kept_s: float) -> None:
        """Another moment. Those that are older than `kept_s` are forgotten, but for one that is just older."""
        self._moments.append((now_s, samples))
        while len(self._moments) > 2 and now_s - self._moments[1][0] >= kept_s:
            del self._moments[0]

    def of(self, engine: str) -> Sample:
        """What the engine did in the time that is kept."""
        if len(self._moments) < 2:
            return NOTHING
        return self._moments[-1][1].get(engine, NOTHING).since(self._moments[0][1].get(engine, NOTHING))

    def forget(self) -> None:
        """A switch has taken place: nothing of before says anything about now."""
        self._moments.clear()


def samples_of(figures: list[ServiceFigures]) -> dict[str, Sample]:
    """What all workers counted of one service, by engine."""
    found: dict[str, Sample] = {}
    for one in figures:
        for engine in one.engines:
            sample = Sample(requests=engine.requests_total, faults=engine.faults_total, latency=engine.latency)
            known = found.get(engine.engine)
            found[engine.engine] = sample if known is None else known.plus(sample)
    return found


def weigh(reference: Sample, candidate: Sample, limits: Limits, *, is_early: bool = False) -> Opinion:
    """Is the candidate worse than the reference by more than the limits?"""
    level = EARLY_LEVEL if is_early else LEVEL
    fewest = min(reference.requests, candidate.requests)
    if fewest < limits.requests_min:
        return Opinion(
            finding="too_few",
            why=f"{reference.requests} and {candidate.requests} requests; {limits.requests_min} of each are needed",
            reference_requests=reference.requests,
            candidate_requests=candidate.requests,
        )
    # A pipeline is one request here and may fail more than once.
    faults = [min(one.faults, one.requests) for one in (reference, candidate)]
    shares = [100 * count / one.requests for count, one in zip(faults, (reference, candidate), strict=True)]
    error_p = fisher(faults[1], candidate.requests, faults[0], reference.requests)
    means = [_mean_and_variance(one.latency) for one in (reference, candidate)]
    difference = means[1][0] - means[0][0]
    spread = math.sqrt(means[0][1] / reference.requests + means[1][1] / candidate.requests)
    latency_p = 1.0 - NormalDist().cdf((difference - math.log(limits.latency_ratio_max)) / spread)
    ratio = math.exp(difference)
    reasons = []
    if shares[1] - shares[0] > limits.error_percent_more_max and error_p < level:
        reasons.append(f"{shares[1]:.2f} % of requests failed, {shares[0]:.2f} % of those compared with")
    if latency_p < level:
        reasons.append(f"requests took {ratio:.2f} times as long; {limits.latency_ratio_max:g} is the limit")
    return Opinion(
        finding="worse" if reasons else "good",
        why="; ".join(reasons) or f"requests took {ratio:.2f} times as long, and {shares[1]:.2f} % failed",
        reference_requests=reference.requests,
        candidate_requests=candidate.requests,
        reference_error_percent=round(shares[0], 4),
        candidate_error_percent=round(shares[1], 4),
        error_p=error_p,
        reference_us=round(math.exp(means[0][0]), 1),
        candidate_us=round(math.exp(means[1][0]), 1),
        latency_ratio=round(ratio, 4),
        latency_p=latency_p,
    )


def fisher(failed: int, of: int, other_failed: int, other_of: int) -> float:
    """Chance that, of all faults there were, at least `failed` fell on these `of` requests, were all requests alike."""
    faults, total = failed + other_failed, of + other_of
    if failed == 0:
        return 1.0
    whole = _log_choose(total, faults)
    likely = 0.0
    for count in range(failed, min(faults, of) + 1):
        if faults - count > other_of:
            continue
        term = math.exp(_log_choose(of, count) + _log_choose(other_of, faults - count) - whole)
        likely += term
        if count > faults * of / total and term < likely * 1e-12:
            break
    return min(1.0, likely)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _mean_and_variance(latency: list[int]) -> tuple[float, float]:
    """Of the logarithms."""
    total = sum(latency)
    if not total:
        return 0.0, _BUCKET_VARIANCE
    mean = sum(count * _LOGS[bucket] for bucket, count in enumerate(latency)) / total
    variance = sum(count * (_LOGS[bucket] - mean) ** 2 for bucket, count in enumerate(latency)) / max(1, total - 1)
    return mean, variance + _BUCKET_VARIANCE
