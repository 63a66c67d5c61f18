"""Time as an argument. Cores are told `now`; shells own a `Clock`, and tests turn one by hand.

Deadlines are points on the monotonic clock, which all processes of one host share, so that a worker's and the
supervisor's stamps can be subtracted.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_ns(self) -> int:
        """Monotonic time in nanoseconds; the same zero for all processes of this host."""

    def wall(self) -> float:
        """Seconds since 1970, for people only."""


class SystemClock:
    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wall(self) -> float:
        return time.time()
