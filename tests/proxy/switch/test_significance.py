"""Worse, or not shown to be: by samples whose truth is known."""

from __future__ import annotations

import random

import pytest

from proxy.latency import BUCKETS, bucket_of
from proxy.switch.significance import History, Limits, Sample, fisher, weigh

LIMITS = Limits(latency_ratio_max=1.5, error_percent_more_max=0.5, requests_min=100)


def sample(count: int, *, times: float = 1.0, faults: int = 0, seed: int = 1) -> Sample:
    """Requests of about a millisecond, `times` as long, spread as response times are."""
    chance = random.Random(seed)
    latency = [0] * BUCKETS
    for _ in range(count):
        latency[bucket_of(int(chance.lognormvariate(6.9, 0.8) * times))] += 1
    return Sample(requests=count, faults=faults, latency=latency)


@pytest.mark.parametrize(
    ("candidate", "finding"),
    [
        (sample(300, seed=2), "good"),
        (sample(300, times=1.3, seed=2), "good"),
        (sample(300, times=3.0, seed=2), "worse"),
        (sample(100_000, times=1.2, seed=2), "good"),
        (sample(300, times=0.2, seed=2), "good"),
        (sample(300, faults=12, seed=2), "worse"),
        (sample(300, faults=1, seed=2), "good"),
        (sample(99, times=50, faults=99, seed=2), "too_few"),
    ],
)
def test_what_matters_is_found_and_what_does_not_is_let_pass(candidate: Sample, finding: str) -> None:
    assert weigh(sample(1_000), candidate, LIMITS).finding == finding


def test_an_equal_engine_is_rarely_called_worse() -> None:
    """At the edge of the limit, where it is hardest: the level is one in a hundred."""
    chances = [
        weigh(sample(200, seed=2 * seed), sample(200, times=1.5, seed=2 * seed + 1), LIMITS).finding == "worse"
        for seed in range(200)
    ]
    assert sum(chances) <= 8


def test_an_early_look_needs_more_to_say_worse() -> None:
    reference, candidate = sample(150), sample(150, times=1.7, seed=4)
    assert weigh(reference, candidate, LIMITS).finding == "worse"
    assert weigh(reference, candidate, LIMITS, is_early=True).finding == "good"


def test_fishers_test_agrees_with_the_tables() -> None:
    """The lady tasting tea: three of four right, and all of four."""
    assert fisher(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert fisher(4, 4, 0, 4) == pytest.approx(1 / 70)
    assert fisher(0, 10, 5, 10) == 1.0
    assert fisher(8, 9, 2, 11) == pytest.approx(0.002738747, rel=1e-6)


def test_counters_that_begin_anew_are_nothing_new() -> None:
    assert sample(10).since(sample(50)).requests == 0
    assert min(sample(10).since(sample(50)).latency) == 0


def test_a_history_keeps_the_time_that_is_asked_for() -> None:
    history = History()
    assert history.of("blue").requests == 0
    for second in range(100):
        history.note(float(second), {"blue": Sample(requests=10 * second)}, 30.0)
    assert history.of("blue").requests == 300
    assert history.of("green").requests == 0
    history.forget()
    assert history.of("blue").requests == 0
