"""Lengths of requests, as workers count them: buckets fine enough to compare two engines. Pure.

Sixteen buckets of one microsecond, then eight for each power of two, so that a bucket is never wider than an eighth of
what it holds. The last one has all that is longer than 63 seconds. Workers count in `dataplane/relay.pyx` (`Meter`); a test
holds that against `bucket_of`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import add
from typing import Final

BUCKETS: Final = 192

OCTAVES: Final = 26
"""Of the coarse buckets, as Prometheus is shown them: the longest bound is 16.8 seconds."""


class Lengths:
    """Counts of spans by length, for what is counted in Python."""

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.us_total = 0

    def note(self, span_ns: int) -> None:
        """One more span, in nanoseconds."""
        us = max(0, span_ns) // 1_000
        self.counts[bucket_of(us)] += 1
        self.us_total += us


def bucket_of(us: int) -> int:
    """The bucket of a length in microseconds, 0 or more."""
    octave = max(0, us.bit_length() - 4)
    return min(octave * 8 + (us >> octave), BUCKETS - 1)


def lower_us(bucket: int) -> int:
    """The shortest length in a bucket, in microseconds."""
    if bucket < 16:
        return bucket
    octave = bucket // 8 - 1
    return (bucket - 8 * octave) << octave


def middle_us(bucket: int) -> float:
    """What stands for all lengths in a bucket, in microseconds; never 0."""
    return (lower_us(bucket) + lower_us(bucket + 1)) / 2


def percentile_us(counts: Sequence[int], share: float) -> float:
    """The length that `share` (0 to 1) of the requests did not exceed, to an eighth; 0.0 if there were none."""
    total = sum(counts)
    if not total:
        return 0.0
    wanted = max(1.0, share * total)
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= wanted:
            return middle_us(bucket)
    raise AssertionError("the counts add up to their total")


def by_octave(counts: Sequence[int]) -> list[int]:
    """The same in `OCTAVES` buckets: item i counts spans below 2**i microseconds that no item before it counts, the last one
    all longer ones."""
    found = [0] * OCTAVES
    for bucket, count in enumerate(counts):
        if count:
            found[min(lower_us(bucket).bit_length(), OCTAVES - 1)] += count
    return found


def added(many: Iterable[Sequence[int]]) -> list[int]:
    """Bucket by bucket; zeros of nothing."""
    total: list[int] | None = None
    for counts in many:
        total = list(counts) if total is None else list(map(add, total, counts))
    return total if total is not None else [0] * BUCKETS
