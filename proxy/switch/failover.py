"""The failure of an engine: is it gone, and which one takes its place. Pure: evidence in, decisions out.

Theory of operation
-------------------
**Is it gone?** Two sides look: Turnout's probes, and the workers, who serve clients over the engine. `Detector` counts
probes that failed in a row, since the engine last answered *as the active one*: what was seen before the present epoch
counts for nothing. Its table (`NEXT`) has one short way to `lost`: the process is gone for sure, since every one of these
probes was refused by the host of an address that answered before. Otherwise the workers have to agree (`silent`): one
that had an answer from the engine meanwhile, or can log in there, stops it. An engine that says that it is starting is
alive, and gets `starting_s`. One answer of the engine begins everything anew. An engine that has not answered in the
present epoch, or since Turnout began, may be starting without a word as everything else on its host is: it gets
`starting_s` too, it is never lost without the workers, and no standby may still replicate from it.

**Which one?** `choose` takes the standby that has most of what the lost engine wrote: on PostgreSQL by timeline and
received LSN, on MySQL and MariaDB by received GTIDs. What it may lack is bounded by the positions that the probes of the
lost engine noted while it lived: a standby that has the position of 300 ms before the loss lacks commits of the last 300
ms at most. A bound above `lag_tolerance_ms`, or none, and it is not taken without a person. An engine that somebody else
has promoted already, on a later timeline of the same lineage, is taken as it is.

**Again and again?** `Automation` is what a service remembers of its failovers: each one within `BACK_OFF_WINDOW_S`
doubles the pause before the next, and one that failed switches the automation off until a person switches it on.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from proxy.engines.engine import EngineState, Position, Role
from proxy.engines.positions import covers, lsn
from proxy.errors import Failure

BACK_OFF_WINDOW_S: Final = 3_600.0
"""Failovers that are longer ago do not lengthen the pause before the next one."""

BACK_OFF_S_MAX: Final = 3_600.0

SAMPLES_MAX: Final = 600
"""Positions of the active engine that are remembered."""


# --- is it gone? ----------------------------------------------------------------------------------------------------


class Health(enum.StrEnum):
    """What is thought of the active engine."""

    UNSEEN = "unseen"
    """It has not answered yet since it is the active one, or since Turnout began."""
    ANSWERING = "answering"
    SUSPECTED = "suspected"
    """A probe failed since the last answer."""
    SILENT = "silent"
    """Enough probes failed; the workers are asked."""
    LOST = "lost"
    """It is gone, by all that can be known."""


class Seen(enum.Enum):
    """What happened."""

    ANSWER = "answer"
    FAILURE = "failure"
    FAILURES = "failures"
    """A failed probe, and that makes enough of them."""
    GONE = "gone"
    """The same, and each of them was refused by its host."""
    ALIVE = "alive"
    """A worker had an answer from it."""
    DEAD = "dead"
    """No worker had one."""


_H, _S = Health, Seen

NEXT: Final[Mapping[tuple[Health, Seen], Health]] = {
    (_H.UNSEEN, _S.ANSWER): _H.ANSWERING,
    (_H.UNSEEN, _S.FAILURES): _H.SILENT,
    (_H.ANSWERING, _S.FAILURE): _H.SUSPECTED,
    (_H.ANSWERING, _S.FAILURES): _H.SILENT,
    (_H.ANSWERING, _S.GONE): _H.LOST,
    (_H.SUSPECTED, _S.ANSWER): _H.ANSWERING,
    (_H.SUSPECTED, _S.FAILURES): _H.SILENT,
    (_H.SUSPECTED, _S.GONE): _H.LOST,
    (_H.SILENT, _S.ANSWER): _H.ANSWERING,
    (_H.SILENT, _S.GONE): _H.LOST,
    (_H.SILENT, _S.ALIVE): _H.SUSPECTED,
    (_H.SILENT, _S.DEAD): _H.LOST,
    (_H.LOST, _S.ANSWER): _H.ANSWERING,
}
"""Every move; of a pair that is absent nothing comes."""


class WorkersWord(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker knows of an engine."""

    worker: int
    is_alive: bool
    how: str
    """One line."""


class Detector:
    """What is thought of the engine that is active in one epoch. See the module."""

    def __init__(self, failures: int, starting_s: float) -> None:
        """`failures` probes in a row make a failure; `starting_s`: how long an engine may say that it is starting."""
        self.health = Health.UNSEEN
        self.why = ""
        """What the last failed probe said."""
        self.since_ns = 0
        """When the first one of the row began; 0 while it answers."""
        self.answered_ns = 0
        self.failed = 0
        """Probes in a row."""
        self.testimony: list[WorkersWord] = []
        self.lost_by_workers = 0
        """Times a worker told of broken connections, since the last answer."""
        self._failures = failures
        self._starting_ns = int(starting_s * 1e9)
        self._refused = 0

    def reconfigure(self, failures: int, starting_s: float) -> None:
        """Limits of a reloaded config."""
        self._failures, self._starting_ns = failures, int(starting_s * 1e9)

    def probed(self, failure: Failure | None, why: str, at_ns: int) -> Health:
        """A probe that began at `at_ns` was answered (None) or failed."""
        if failure is None or failure == "told":
            self.since_ns = self.failed = self._refused = self.lost_by_workers = 0
            self.why = ""
            self.testimony = []
            self.answered_ns = at_ns
            return self._sees(Seen.ANSWER)
        self.why = why
        self.since_ns = self.since_ns or at_ns
        if failure == "starting" and at_ns - self.since_ns < self._starting_ns:
            # It lives, whatever was thought before; what was refused before it began to start counts no more.
            self.failed = self._refused = 0
            return self._sees(Seen.FAILURE)
        self.failed += 1
        if not self.answered_ns:
            is_due = self.failed >= self._failures and at_ns - self.since_ns >= self._starting_ns
            return self._sees(Seen.FAILURES if is_due else Seen.FAILURE)
        self._refused = self._refused + 1 if failure == "refused" else 0
        if self._refused >= self._failures:
            return self._sees(Seen.GONE)
        return self._sees(Seen.FAILURES if self.failed >= self._failures else Seen.FAILURE)

    def broke(self) -> None:
        """A worker told that its connections ended, or that none is to be had."""
        self.lost_by_workers += 1

    def testified(self, said: list[WorkersWord]) -> Health:
        """What the workers answered that were asked because of `SILENT`. Nobody answered: nothing is known."""
        if self.health is not Health.SILENT or not said:
            return self.health
        self.testimony = said
        if any(one.is_alive for one in said):
            # What was heard from it up to now proves nothing about what comes.
            self.failed = self._refused = self.since_ns = 0
            return self._sees(Seen.ALIVE)
        return self._sees(Seen.DEAD)

    def _sees(self, what: Seen) -> Health:
        """The only place where the health changes."""
        self.health = NEXT.get((self.health, what), self.health)
        return self.health


# --- which one takes its place? -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """Where the active engine stood, by a probe that began then."""

    at_ns: int
    position: Position


@dataclass(frozen=True, slots=True)
class Lost:
    """The engine that is gone."""

    name: str
    since_ns: int
    """When the first probe that failed began."""
    last: EngineState
    """The last answer."""
    samples: Sequence[Sample]
    """The oldest first."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that might take over, as the report shows it."""

    name: str
    why_not: str = ""
    """Empty: it may."""
    position: str = ""
    may_lack_ms: float | None = None
    """Commits of at most so many milliseconds before the loss; None: no bound is known."""
    may_lack_bytes: int | None = None
    """PostgreSQL: WAL it did not have of what the last probe of the lost engine saw."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`target` is empty where nobody can be promoted; `why` says why, or why this one."""

    target: str
    why: str
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def chosen(self) -> Candidate:
        return next(one for one in self.candidates if one.name == self.target)


def choose(
    lost: Lost,
    states: Mapping[str, EngineState],
    *,
    replication: str,
    lag_tolerance_ms: float,
    preferred: str | None = None,
    has_answered: bool = True,
    takes_unknown: bool = False,
    takes_fenced: bool = False,
) -> Choice:
    """Who takes over from `lost`, of the other engines as they answered just now. `preferred` is taken if nobody has more
    than it. `has_answered` is false of an engine that was not seen to live in this epoch: its standbys have to agree that
    it is gone. With `takes_unknown` one is taken of which nobody knows what it may lack. With `takes_fenced` the preferred one
    may be a primary that we have fenced, for its promotion was given up and came late: a person wants it."""
    candidates = {
        name: _judge(
            lost, name, state, replication, lag_tolerance_ms, takes_unknown, takes_fenced and name == preferred
        )
        for name, state in states.items()
        if name != lost.name
    }
    attached = [name for name, state in states.items() if state.is_reachable and state.is_replicating]
    if not has_answered and attached:
        why = f"nobody takes over from {lost.name}: {_names(attached)} still replicates, and it was not seen to live before"
        return Choice("", why, [candidates[name] for name in sorted(candidates)])
    listed = [candidates[name] for name in sorted(candidates)]
    eligible = [name for name in sorted(candidates) if not candidates[name].why_not]
    if not eligible:
        reasons = "; ".join(f"{one.name}: {one.why_not}" for one in listed) or "it is the only engine of its service"
        return Choice("", f"no engine can take over from {lost.name}: {reasons}", listed)
    best = [
        name
        for name in eligible
        if all(other == name or not _has_more(states[other], states[name]) for other in eligible)
    ]
    if not best or any(not _has_more(states[name], states[other]) and not _is_even(states[name], states[other])
                       for name in best for other in best):  # fmt: skip
        # Each has something that the other has not: two histories.
        names = ", ".join(best or eligible)
        return Choice("", f"no engine can take over from {lost.name}: {names} have diverged from each other", listed)
    target = preferred if preferred in best else best[0]
    why = f"{target} has most of what {lost.name} wrote"
    if preferred and target != preferred:
        not_preferred = (
            candidates[preferred].why_not if preferred in candidates else "it is not an engine of the service"
        )
        why += f" (preferred was {preferred}: {not_preferred or f'it has less than {target}'})"
    elif len(best) > 1:
        why += f", as {_names(name for name in best if name != target)} has"
    return Choice(target, why, listed)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def _judge(
    lost: Lost,
    name: str,
    state: EngineState,
    replication: str,
    tolerance_ms: float,
    takes_unknown: bool,
    takes_fenced: bool,
) -> Candidate:
    have = state.received or state.position
    if not state.is_reachable or have is None:
        return Candidate(
            name=name, why_not=f"it cannot be reached ({state.why})" if state.why else "it cannot be reached"
        )
    if replication == "logical":
        why_not = (
            "a subscriber of logical replication has no sequences of its source and may lack tables: switch by hand"
        )
        return Candidate(name=name, why_not=why_not, position=str(have))
    if replication == "none":
        is_same = bool(state.instance) and state.instance == lost.last.instance
        why_not = "" if is_same and state.is_writable else "it is not the same running server by another address"
        return Candidate(name=name, why_not=why_not, position=str(have), may_lack_ms=0.0 if not why_not else None)
    bound_ms, lacks = _may_lack(lost, have)
    why_not = _unfit(lost, state, takes_fenced)
    if not why_not and bound_ms is None and not takes_unknown:
        why_not = f"how far it was behind {lost.name} is not known"
    elif not why_not and bound_ms is not None and bound_ms > tolerance_ms:
        why_not = f"it may lack commits of the last {bound_ms:.0f} ms, and lag_tolerance_ms is {tolerance_ms:g}"
    return Candidate(name=name, why_not=why_not, position=str(have), may_lack_ms=bound_ms, may_lack_bytes=lacks)


def _unfit(lost: Lost, state: EngineState, takes_fenced: bool) -> str:
    """Why a server cannot be the next primary, whatever it has; empty: it can."""
    is_postgres = state.flavour == "postgresql"
    if is_postgres and lost.last.server_id and state.server_id != lost.last.server_id:
        return "it is of another cluster (its system identifier differs)"
    if state.role is Role.STANDBY:
        return ""
    is_ahead = not is_postgres or state.timeline > lost.last.timeline > 0
    if is_ahead and ((is_postgres and state.is_writable) or (takes_fenced and state.is_fenced)):
        return ""  # somebody else has promoted it, or we have, too late
    return "it is no standby"


def _may_lack(lost: Lost, have: Position) -> tuple[float | None, int | None]:
    """How long before the loss the newest commits are that a server with `have` may lack; and the bytes of WAL that the
    last sample was ahead of it."""
    comparable = [sample for sample in lost.samples if sample.position.kind == have.kind]
    if not comparable:
        return None, None
    lacks = None
    if have.kind == "lsn":
        lacks = max(0, lsn(comparable[-1].position.text) - lsn(have.text))
    for sample in reversed(comparable):
        if covers(have.kind, have.text, sample.position.text):
            return max(0.0, (lost.since_ns - sample.at_ns) / 1e6), lacks
    return None, lacks


def _has_more(one: EngineState, other: EngineState) -> bool:
    """Of two eligible ones: `one` has all that `other` has, and something besides."""
    return _covers(one, other) and not _covers(other, one)


def _is_even(one: EngineState, other: EngineState) -> bool:
    return _covers(one, other) and _covers(other, one)


def _covers(one: EngineState, other: EngineState) -> bool:
    if one.timeline != other.timeline:
        return one.timeline > other.timeline
    here, there = one.received or one.position, other.received or other.position
    assert here is not None, "judged"
    assert there is not None, "judged"
    return here.kind == there.kind and covers(here.kind, here.text, there.text)


# --- again and again? -----------------------------------------------------------------------------------------------


class Automation(msgspec.Struct, frozen=True, kw_only=True):
    """What a service remembers of its failovers, over restarts. Times are seconds since 1970."""

    is_on: bool = True
    """No failover has failed since a person switched it on. (Whether it is wanted at all, the config says.)"""
    why_off: str = ""
    since: float = 0.0
    """When it was switched on or off last; 0: never."""
    recent: list[float] = []
    """When failovers ended, the oldest first."""

    def may_begin_at(self, pause_s: float) -> float:
        """When the next failover may begin: each of the last hour doubles the pause."""
        if not self.recent or not pause_s:
            return 0.0
        last = self.recent[-1]
        number = sum(1 for one in self.recent if one > last - BACK_OFF_WINDOW_S)
        return last + min(BACK_OFF_S_MAX, pause_s * 2.0 ** min(number - 1, 32))

    def succeeded(self, at: float) -> Automation:
        """A failover ended well."""
        recent = [one for one in self.recent if one > at - BACK_OFF_WINDOW_S][-32:]
        return msgspec.structs.replace(self, recent=[*recent, at])

    def failed(self, why: str, at: float) -> Automation:
        """A failover failed: no other one without a person."""
        return msgspec.structs.replace(self, is_on=False, why_off=why, since=at)

    def switched(self, is_on: bool, by: str, at: float) -> Automation:
        """A person's word. Switched on, it has no past."""
        why_off = "" if is_on else f"switched off by {by}" if by else "switched off"
        return Automation(is_on=is_on, why_off=why_off, since=at)
