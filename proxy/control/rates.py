"""How many requests who may make: token buckets that are filled by time. Pure: told the time, holds nothing else."""

from __future__ import annotations

from typing import Final

BUCKETS_MAX: Final = 10_000
"""Most callers that are counted at a time; the one not seen for longest is forgotten, and begins with a full bucket."""


class Bucket:
    """Lets `rate` through in a second on average, and `burst` at once."""

    __slots__ = ("burst", "level", "rate", "seen_s")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.level = burst
        self.seen_s = 0.0
        """When it was looked at last; of the first look, whatever clock it is."""

    def take(self, now_s: float) -> bool:
        """One more, if it may."""
        self.level = min(self.burst, self.level + max(0.0, now_s - self.seen_s) * self.rate)
        self.seen_s = now_s
        if self.level < 1.0:
            return False
        self.level -= 1.0
        return True

    def wait_s(self) -> float:
        """Until the next one may."""
        return max(0.0, (1.0 - self.level) / self.rate)


class Rates:
    """A bucket for each name."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._buckets: dict[str, Bucket] = {}

    def take(self, name: str, now_s: float) -> float:
        """Count one of `name`. 0: it may; else how long to wait, in seconds."""
        bucket = self._buckets.pop(name, None)
        if bucket is None or bucket.rate != self.rate:
            bucket = Bucket(self.rate, burst=max(1.0, 2 * self.rate))
            if len(self._buckets) >= BUCKETS_MAX:
                del self._buckets[next(iter(self._buckets))]
        self._buckets[name] = bucket  # the last one is the one seen last
        return 0.0 if bucket.take(now_s) else bucket.wait_s()
