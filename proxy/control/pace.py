"""What answering a caller may cost: a share of a processor in the long run, and some of it at once.

A caller who asks faster waits for its turn, so that who sends the next request when the last one is answered is slowed down,
and neither it nor the queries notice more than that. What a request will cost is not known before: it takes what the
caller's requests cost lately, and settles the difference when it has been answered. Pure: told the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

AT_ONCE_S: Final = 0.25
"""Processor time that a caller who has not asked for a while may take at once: some hundred requests."""

WAIT_MAX_S: Final = 3.0
"""Longest wait for a turn; who would have to wait longer is refused."""

WAITING_MAX: Final = 32
"""Most requests of a caller that wait at a time."""

FIRST_GUESS_S: Final = 0.001
"""What a request may cost, before any of the caller's was answered."""

NEWEST_WEIGHT: Final = 1 / 8
"""Of the newest request in the mean that the next one is expected to cost."""

CALLERS_MAX: Final = 10_000
"""Most callers that are counted at a time; the one not seen for longest is forgotten, and begins anew."""


class Allowance:
    """What one caller may take. `take`, wait, then `settle`; exactly once each."""

    __slots__ = ("guess_s", "left_s", "seen_s", "waiting")

    def __init__(self, now_s: float) -> None:
        self.left_s = AT_ONCE_S
        """Processor time; below zero: it has to wait until that is made up for."""
        self.guess_s = FIRST_GUESS_S
        self.seen_s = now_s
        self.waiting = 0
        """Requests that wait for their turn."""

    def take(self, now_s: float, share: float) -> tuple[float, float]:
        """One more request: how long until its turn comes, and the processor time it was given, in seconds. The turns of
        requests that wait come one after another."""
        self.left_s = min(AT_ONCE_S, self.left_s + max(0.0, now_s - self.seen_s) * share)
        self.seen_s = now_s
        wait_s = max(0.0, -self.left_s) / share
        given_s = self.guess_s
        self.left_s -= given_s
        return wait_s, given_s

    def settle(self, given_s: float, spent_s: float | None) -> None:
        """It was answered and took so much; None: nothing was done for it."""
        self.left_s += given_s - (spent_s or 0.0)
        if spent_s is not None:
            self.guess_s += (spent_s - self.guess_s) * NEWEST_WEIGHT


class Allowances:
    """One for each caller, by name."""

    def __init__(self, share: float) -> None:
        self.share = share
        """Of one processor, in the long run; 1.0 and more: no limit, for one processor is all that answering can take."""
        self._by_name: dict[str, Allowance] = {}

    def of(self, name: str, now_s: float) -> Allowance:
        """That caller's."""
        found = self._by_name.pop(name, None)
        if found is None:
            found = Allowance(now_s)
            if len(self._by_name) >= CALLERS_MAX:
                del self._by_name[next(iter(self._by_name))]
        self._by_name[name] = found  # the last one is the one seen last
        return found


class Meter:
    """Processor time of a thread, shared out among the requests that were under way while it was spent."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        """`clock` tells the thread's processor time in seconds."""
        self._clock = clock
        self._read_s = 0.0
        self._running = 0
        self._each_s = 0.0
        """What a request would have got that has been under way all along."""

    def _read(self) -> float:
        now_s = self._clock()
        if self._running:
            self._each_s += (now_s - self._read_s) / self._running
        self._read_s = now_s
        return self._each_s

    def start(self) -> float:
        """One more is under way. What is returned goes to `stop`."""
        began_s = self._read()
        self._running += 1
        return began_s

    def stop(self, began_s: float) -> float:
        """It is not any more: the time spent for it, in seconds."""
        ended_s = self._read()
        self._running -= 1
        return ended_s - began_s


class Bill:
    """What is spent for one request, and who pays."""

    __slots__ = ("_allowance", "_began_s", "_given_s", "_meter", "_spent_s")

    def __init__(self, meter: Meter) -> None:
        """It is under way from now on."""
        self._meter = meter
        self._began_s: float | None = meter.start()
        self._spent_s = 0.0
        self._allowance: Allowance | None = None
        self._given_s = 0.0

    def pause(self) -> None:
        """Nothing is done for it from now on."""
        if self._began_s is not None:
            self._spent_s += self._meter.stop(self._began_s)
            self._began_s = None

    def resume(self) -> None:
        """Something is."""
        if self._began_s is None:
            self._began_s = self._meter.start()

    def charge(self, allowance: Allowance, given_s: float) -> None:
        """That caller pays, who has given so much already."""
        self._allowance, self._given_s = allowance, given_s

    def waive(self) -> None:
        """Nothing was done for it: the caller gets back what it has given."""
        if self._allowance is not None:
            self._allowance.settle(self._given_s, None)
            self._allowance = None

    def close(self) -> None:
        """It has been answered, or given up."""
        self.pause()
        if self._allowance is not None:
            self._allowance.settle(self._given_s, self._spent_s)
            self._allowance = None
