"""What answering a caller may cost: a share of a processor in the long run, and some of it at once.

A caller who asks faster waits for its turn, so that who sends the next request when the last one is answered is slowed down,
and neither it nor the queries notice more than that. What a request will cost is not known before: it takes what the
caller's requests cost lately, and settles the difference when it has been answered.

A caller is whoever shows a token at an address: an open dashboard and a script in a loop may well be one. Of its
requests that wait, the next turn is that of the connection that has cost least lately, so that who asks now and then does
not wait for who asks all the time. Pure: told the time.
"""

from __future__ import annotations

import bisect
import math
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

HALF_LIFE_S: Final = 10.0
"""After this time what was spent for a connection counts half."""

SPENT_S_MIN: Final = 1e-9
"""Below the resolution of any clock."""


class Use:
    """Processor time that was spent for a connection lately."""

    __slots__ = ("weight",)

    def __init__(self) -> None:
        self.weight = -math.inf
        """Binary logarithm of the time that would have to be spent at the beginning of the clock to count as much. As time
        passes it stays as it is, so that those who wait stay in order. Minus infinity: nothing was answered yet."""

    def add(self, spent_s: float, now_s: float) -> None:
        """So much more was spent, in seconds."""
        before_s = 2.0 ** (self.weight - now_s / HALF_LIFE_S)
        self.weight = math.log2(max(before_s + spent_s, SPENT_S_MIN)) + now_s / HALF_LIFE_S


class Turn:
    """A request that waits."""

    __slots__ = ("_come", "given_s", "is_over")

    def __init__(self, come: Callable[[bool], None]) -> None:
        """`come` is called once: with True when its turn has come, with False when it is refused; not if it has left."""
        self._come = come
        self.is_over = False
        self.given_s = 0.0
        """Processor time that it was given."""

    def leave(self) -> None:
        """Who asked does not wait any more."""
        self.is_over = True

    def end(self, *, has_come: bool) -> None:
        """Tell who waits."""
        self.is_over = True
        self._come(has_come)


class Allowance:
    """What one caller may take. `take`, or `stand` in line until the turn comes; then `settle`; exactly once each."""

    __slots__ = ("_guess_s", "_heaviest", "_left_s", "_line", "_number", "_seen_s", "is_watched")

    def __init__(self, now_s: float) -> None:
        self._left_s = AT_ONCE_S
        """Processor time; below zero: it has to wait until that is made up for."""
        self._guess_s = FIRST_GUESS_S
        self._seen_s = now_s
        self._line: list[tuple[float, int, Turn]] = []
        """In order: who has cost least lately, and then who came first."""
        self._number = 0
        self._heaviest = -math.inf
        """Weight of the connection that cost most."""
        self.is_watched = False
        """Somebody calls `next_s` when it is time."""

    def take(self, now_s: float, share: float) -> float | None:
        """One more request: the processor time it was given, in seconds; None: it has to wait."""
        self._look(now_s, share)
        if self._left_s < 0 or any(not turn.is_over for _, _, turn in self._line):
            return None
        return self._give()

    def stand(self, turn: Turn, use: Use, share: float) -> float | None:
        """Wait where one's connection belongs in the line. None: it does. Else its turn would not come in WAIT_MAX_S, or the
        line is full: returned is how long it would take, in seconds. The last in a line that is full makes room."""
        self._number += 1
        place = (self._weight(use), self._number, turn)
        line = [one for one in self._line if not one[2].is_over]
        before = bisect.bisect(line, place[:2], key=lambda one: one[:2])
        wait_s = max(0.0, before * self._guess_s - self._left_s) / share
        if wait_s > WAIT_MAX_S or before >= WAITING_MAX:
            return wait_s
        line.insert(before, place)
        self._line = line[:WAITING_MAX]
        for _, _, last in line[WAITING_MAX:]:
            last.end(has_come=False)
        return None

    def next_s(self, now_s: float, share: float) -> float | None:
        """Let those go on whose turn has come. Returns the seconds until the next one's; None: nobody waits."""
        self._look(now_s, share)
        while self._line:
            turn = self._line[0][2]
            if not turn.is_over and self._left_s < 0:
                return -self._left_s / share
            del self._line[0]
            if not turn.is_over:
                turn.given_s = self._give()
                turn.end(has_come=True)
        return None

    def settle(self, given_s: float, spent_s: float | None) -> None:
        """It was answered and took so much; None: nothing was done for it."""
        self._left_s += given_s - (spent_s or 0.0)
        if spent_s is not None:
            self._guess_s += (spent_s - self._guess_s) * NEWEST_WEIGHT

    def note(self, use: Use, spent_s: float, now_s: float) -> None:
        """So much was spent for a connection."""
        use.weight = self._weight(use)
        use.add(spent_s, now_s)
        self._heaviest = max(self._heaviest, use.weight)

    def _look(self, now_s: float, share: float) -> None:
        self._left_s = min(AT_ONCE_S, self._left_s + max(0.0, now_s - self._seen_s) * share)
        self._seen_s = now_s

    def _give(self) -> float:
        self._left_s -= self._guess_s
        return self._guess_s

    def _weight(self, use: Use) -> float:
        """One that is new counts as much as the one that cost most: who makes a connection for each request would else always
        come first."""
        return self._heaviest if use.weight == -math.inf else use.weight


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

    __slots__ = ("_allowance", "_began_s", "_given_s", "_meter", "_spent_s", "_use")

    def __init__(self, meter: Meter) -> None:
        """It is under way from now on."""
        self._meter = meter
        self._began_s: float | None = meter.start()
        self._spent_s = 0.0
        self._allowance: Allowance | None = None
        self._use = Use()
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

    def charge(self, allowance: Allowance, given_s: float, use: Use) -> None:
        """That caller pays, who has given so much already, for a request on that connection."""
        self._allowance, self._given_s, self._use = allowance, given_s, use

    def close(self, now_s: float) -> None:
        """It has been answered, or given up."""
        self.pause()
        if self._allowance is not None:
            self._allowance.settle(self._given_s, self._spent_s)
            self._allowance.note(self._use, self._spent_s, now_s)
            self._allowance = None
