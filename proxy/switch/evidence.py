"""What a switch leaves behind: one JSON report, and the figures by the design's names.

How the figures are made
------------------------
All times are of the host's monotonic clock, which workers and supervisor share.

hold_ms        p50, p99 and max of the waits of single requests: from arrival at the worker to forwarding. Requests that
               did not wait are not in it.
blackout_ms    from the arrival of the first request that had to wait to the first bytes of an answer from the target,
               over all workers. 0 if no request waited.
drain_ms       from the order to hold to the last session's boundary: the workload's part.
catchup_ms     from the reading of the source's position to the target having applied it: replication's part.
promote_ms     from the order to promote to the target proving that it takes writes: the server's part.
fence_ms       from the order to fence to the proof. Part of `cutover_ms`.
cutover_ms     Turnout's own part: the blackout, less what of drain, catch-up and promotion lies within it; of a failover
               less its detection, too. A comparison of rows at the fence is part of it. `measured_by` says which window it is:
                 first_request_to_first_row   the blackout, as above
                 first_request_to_release     requests waited, but no answer came in the window of the verification
                 hold_to_release              no request waited: from the order to hold to the last worker's release
errors_visible sessions that did not come through, and requests that were refused after `hold_ms_max`.
acked_lost     commits of the audit's sample that the target does not have; null where there was no audit.

The audit of acknowledged commits
---------------------------------
Once clients work on the target, the fenced source is asked for its newest commits by name, at most AUDIT_COMMITS, and the
target is asked which of them it does not have. What any client was told is committed, through Turnout or past it, was
committed on the source before its fence, so it is among what the source names, or older; and nothing can be added there
any more. It is asked for after the release: the data path and the hold know nothing of it.

What it proves, by `by`:
    xid       PostgreSQL, physical replication: each transaction has the status "committed" on the target too.
    gtid      MySQL: each transaction is in the target's set of executed ones.
    position  MariaDB names no single older commits: the target is as far as the source in each domain, and what replicates
              by GTID has no gaps in a domain.
It does not look at rows, nor at commits older than the sample: these the catch-up is responsible for, which waits until
the target has all of the source's log. With logical replication commits have other names on the other server, and there
is no audit; nor is there one between two addresses of one server.
affected_transactions  requests that waited.
downtime_ms    the blackout: what a client may call down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from proxy import ipc
from proxy.engines.engine import CommitSample, FenceProof, Position
from proxy.switch.fencecheck import RowsAtFence
from proxy.switch.hooks import HookResult
from proxy.switch.plan import SwitchRecord
from proxy.switch.readiness import Check
from proxy.switch.significance import Opinion

WAITS_SHOWN_MAX: Final = 2_000
"""Waits of single requests in a report, the longest ones; all are counted."""

INTERRUPTED_SHOWN_MAX: Final = 1_000
"""Sessions a report lists; the count is always whole."""

AUDIT_COMMITS: Final = 1_000
"""Newest commits of the source that the target is asked for: the last ones before the fence are those in danger."""

MISSING_SHOWN_MAX: Final = 20
"""Of those it does not have, how many a report names."""

Window = Literal["first_request_to_first_row", "first_request_to_release", "hold_to_release", "not_cut_over"]


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds; all 0 if no request waited."""

    p50: float
    p99: float
    max: float


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's docstring."""

    by: str = ""
    checked: int = 0
    oldest: str = ""
    newest: str = ""
    """Ends of the sample, as the source names them."""
    lost: int | None = None
    """Of those checked; null where it could not be made."""
    missing: list[str] = []
    """Their names, the first MISSING_SHOWN_MAX."""
    why: str = ""
    """Why there is none."""

    @classmethod
    def of(cls, sample: CommitSample, lacking: list[str]) -> Audit:
        names = sample.names
        return cls(
            by=sample.by,
            checked=len(names),
            oldest=names[0] if names else "",
            newest=names[-1] if names else "",
            lost=len(lacking),
            missing=lacking[:MISSING_SHOWN_MAX],
        )


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's docstring. Milliseconds."""

    hold_ms: Waits
    blackout_ms: float
    drain_ms: float
    fence_ms: float
    catchup_ms: float
    promote_ms: float
    cutover_ms: float
    measured_by: Window
    errors_visible: int
    acked_lost: int | None
    switch_duration_ms: float
    affected_transactions: int
    downtime_ms: float
    data_transfer_mb: float | None = None
    """Turnout moves sessions, not data: null where the engines replicate by themselves."""


class Span(msgspec.Struct):
    """From, to: nanoseconds; 0 is unknown."""

    began_ns: int = 0
    ended_ns: int = 0

    @property
    def ms(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e6 if self.began_ns and self.ended_ns else 0.0

    def within(self, window: Span) -> int:
        """Nanoseconds of this span that lie in `window`."""
        if not (self.began_ns and self.ended_ns):
            return 0
        return max(0, min(self.ended_ns, window.ended_ns) - max(self.began_ns, window.began_ns))


class Evidence:
    """Collects while a switch runs; the shell tells it what happens and when."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.detection = Span()
        """Of a failover: from the first probe that failed to the decision."""
        self.drain = Span()
        self.fence = Span()
        self.catchup = Span()
        self.promotion = Span()
        self.proof: FenceProof | None = None
        self.source_position: Position | None = None
        self.target_position: Position | None = None
        self.hooks: list[HookResult] = []
        self.resolved: list[str] = []
        """Prepared transactions that were ended by rule."""
        self.replicas: list[str] = []
        """With a semi-synchronous gate: who has the fenced position."""
        self.rows_at_fence: RowsAtFence | None = None
        """With `compare_at_fence_ms`: what was compared there."""
        self.way_back = ""
        """How the source follows the target afterwards; empty: it does not, and was not to."""
        self.audit: Audit | None = None
        self.failure: dict[str, Any] = {}
        """Of a failover: what was seen, who could have taken over, what may be missing."""
        self.in_doubt: dict[str, int] = {}
        """Of a failover: COMMITs that were under way, counted by what became of them."""
        self.followers: list[str] = []
        """Of a failover: what became of the other standbys, a line each."""
        self.opinions: dict[str, Opinion | None] = {}
        """What was thought of the target: by the canary, and by the window after the cutover."""
        self.waiting_for: list[str] = []
        """What the sessions that were not at a boundary waited for, as last heard."""
        self._sessions: dict[int, int] = {}
        # What a worker says of these is the whole up to then, so the last word of each worker counts.
        self._refused: dict[int, int] = {}
        self._interrupted: dict[int, list[ipc.Interrupted]] = {}
        self._waits_us: list[int] = []
        self._first_request_ns = 0
        self._first_row_ns = 0
        self._released_ns = 0
        self._has_cut_over = False

    def sees(self, worker: int, fact: ipc.Fact, now_ns: int) -> None:
        """A worker told something about this switch."""
        match fact:
            case ipc.Draining():
                self.waiting_for = list(fact.waiting_for)
            case ipc.AllHeld():
                if not self.drain.began_ns or fact.hold_began_ns < self.drain.began_ns:
                    self.drain.began_ns = fact.hold_began_ns
                self.drain.ended_ns = max(self.drain.ended_ns, fact.last_boundary_ns, fact.hold_began_ns)
                if fact.interrupted:
                    self._interrupted[worker] = fact.interrupted
            case ipc.Retargeted():
                self._sessions[worker] = fact.sessions
                self._interrupted[worker] = fact.interrupted
            case ipc.Released():
                self._released(worker, fact, now_ns)
            case ipc.FirstRow():
                self._first_row_ns = min(self._first_row_ns or fact.at_ns, fact.at_ns)
            case ipc.Expired():
                self._refused[worker] = fact.refused
            case _:
                pass

    def _released(self, worker: int, fact: ipc.Released, now_ns: int) -> None:
        self._waits_us += fact.waits_us
        if fact.interrupted:
            self._interrupted[worker] = fact.interrupted
        self._released_ns = max(self._released_ns, now_ns)
        if fact.first_request_ns:
            self._first_request_ns = min(self._first_request_ns or fact.first_request_ns, fact.first_request_ns)

    def cut_over(self) -> None:
        """The epoch was raised."""
        self._has_cut_over = True

    def figures(self, began_ns: int, ended_ns: int) -> Figures:
        """By the names and formulas of the module's docstring."""
        window, measured_by = self._window()
        own_ns = window.ended_ns - window.began_ns if measured_by != "not_cut_over" else 0
        for span in (self.detection, self.drain, self.catchup, self.promotion):
            own_ns -= span.within(window)
        waits = sorted(self._waits_us)
        blackout_ms = window.ms if measured_by.startswith("first_request") else 0.0
        return Figures(
            hold_ms=Waits(p50=_percentile(waits, 0.5), p99=_percentile(waits, 0.99), max=_percentile(waits, 1.0)),
            blackout_ms=_round(blackout_ms),
            drain_ms=_round(self.drain.ms),
            fence_ms=_round(self.fence.ms),
            catchup_ms=_round(self.catchup.ms),
            promote_ms=_round(self.promotion.ms),
            cutover_ms=_round(max(0, own_ns) / 1e6),
            measured_by=measured_by,
            errors_visible=self._errors_visible(),
            acked_lost=self.audit.lost if self.audit is not None else None,
            switch_duration_ms=_round((ended_ns - began_ns) / 1e6),
            affected_transactions=len(waits),
            downtime_ms=_round(blackout_ms),
        )

    def _errors_visible(self) -> int:
        # Who was refused after `hold_ms_max` is among the interrupted, once a worker has listed them.
        workers = self._refused.keys() | self._interrupted.keys()
        return sum(max(self._refused.get(worker, 0), len(self._interrupted.get(worker, []))) for worker in workers)

    def _window(self) -> tuple[Span, Window]:
        if not self._has_cut_over:
            return Span(), "not_cut_over"
        if self._first_request_ns and self._first_row_ns > self._first_request_ns:
            return Span(self._first_request_ns, self._first_row_ns), "first_request_to_first_row"
        if self._first_request_ns and self._released_ns:
            return Span(self._first_request_ns, self._released_ns), "first_request_to_release"
        return Span(self.drain.began_ns, self._released_ns), "hold_to_release"

    def report(self, record: SwitchRecord, figures: Figures, steps: Iterable[tuple[int, str]]) -> dict[str, Any]:
        """The whole report, ready for JSON."""
        interrupted = [one for worker in sorted(self._interrupted) for one in self._interrupted[worker]]
        return {
            "id": record.id,
            "service": record.service,
            "source": record.source,
            "target": record.target,
            "strategy": record.strategy,
            "phase": record.phase.value,
            "error": record.error,
            "remedy": record.remedy,
            "recovered": record.recovered,
            "epoch": record.epoch,
            "plan": msgspec.to_builtins(record.plan),
            "began_at": record.began_at,
            "ended_at": record.ended_at,
            "phases_us": [{"phase": phase, "at_us": (at_ns - record.began_ns) // 1000} for at_ns, phase in steps],
            "checks": msgspec.to_builtins(self.checks),
            "figures": msgspec.to_builtins(figures),
            "waits": {
                "count": len(self._waits_us),
                "unit": "us",
                "histogram": _histogram(self._waits_us),
                "longest_us": sorted(self._waits_us, reverse=True)[:WAITS_SHOWN_MAX],
            },
            "sessions": sum(self._sessions.values()),
            "interrupted": msgspec.to_builtins(interrupted[:INTERRUPTED_SHOWN_MAX]),
            "interrupted_count": len(interrupted),
            "refused_after_hold_ms_max": sum(self._refused.values()),
            "waiting_for": self.waiting_for,
            "positions": {
                "source": str(self.source_position) if self.source_position else None,
                "target": str(self.target_position) if self.target_position else None,
            },
            "fence": msgspec.to_builtins(self.proof) if self.proof else None,
            "hooks": msgspec.to_builtins(self.hooks),
            "in_doubt_resolved": self.resolved,
            "replicas": self.replicas,
            "rows_at_fence": msgspec.to_builtins(self.rows_at_fence) if self.rows_at_fence is not None else None,
            "way_back": self.way_back or None,
            "failure": self.failure or None,
            "commits_in_doubt": self.in_doubt or None,
            "followers": self.followers,
            "goes_back_from": record.goes_back_from or None,
            "opinions": msgspec.to_builtins(self.opinions),
            "audit": msgspec.to_builtins(self.audit) if self.audit is not None else None,
        }


def _percentile(ordered_us: list[int], share: float) -> float:
    """Nearest rank, in milliseconds; 0 of nothing."""
    if not ordered_us:
        return 0.0
    return _round(ordered_us[max(0, math.ceil(share * len(ordered_us)) - 1)] / 1e3)


def _histogram(waits_us: list[int]) -> list[dict[str, int]]:
    """Waits by powers of two: those under `under_us` and not under the half of it."""
    counts: dict[int, int] = {}
    for wait in waits_us:
        bucket = max(0, wait).bit_length()
        counts[bucket] = counts.get(bucket, 0) + 1
    return [{"under_us": 1 << bucket, "count": counts[bucket]} for bucket in sorted(counts)]


def _round(ms: float) -> float:
    return round(ms, 3)
