"""The figures of a switch, computed from times one can check by hand."""

from __future__ import annotations

import pytest

from proxy import ipc
from proxy.engines.engine import CommitSample
from proxy.switch.evidence import Audit, Evidence, Figures, Span
from tests.proxy.switch.test_journal import a_record

MS = 1_000_000


def _all_held(worker: int, began_ms: int, last_ms: int) -> tuple[int, ipc.AllHeld]:
    return worker, ipc.AllHeld(
        switch="s", service="app", held=1, hold_began_ns=began_ms * MS, last_boundary_ns=last_ms * MS
    )


def _released(
    worker: int, first_ms: int, *waits_us: int, interrupted: list[ipc.Interrupted] | None = None
) -> tuple[int, ipc.Released]:
    return worker, ipc.Released(
        switch="s", service="app", sessions=1, first_request_ns=first_ms * MS, waits_us=list(waits_us),
        interrupted=interrupted or [],
    )  # fmt: skip


def _first_row(worker: int, at_ms: int) -> tuple[int, ipc.FirstRow]:
    return worker, ipc.FirstRow(switch="s", service="app", at_ns=at_ms * MS)


def _of(*facts: tuple[int, ipc.Fact], released_ms: int = 150) -> Evidence:
    """A switch: held at 100, fenced 110 to 115, caught up 115 to 120, promoted 120 to 140, released at 150 ms."""
    evidence = Evidence()
    evidence.fence = Span(110 * MS, 115 * MS)
    evidence.catchup = Span(115 * MS, 120 * MS)
    evidence.promotion = Span(120 * MS, 140 * MS)
    evidence.cut_over()
    for worker, fact in facts:
        evidence.sees(worker, fact, released_ms * MS)
    return evidence


def _figures(evidence: Evidence) -> Figures:
    return evidence.figures(50 * MS, 200 * MS)


def test_the_cutover_is_the_blackout_less_drain_catch_up_and_promotion() -> None:
    figures = _figures(_of(_all_held(0, 100, 110), _released(0, 101, 49_000), _first_row(0, 152)))
    assert figures.measured_by == "first_request_to_first_row"
    assert figures.blackout_ms == 51
    assert (figures.drain_ms, figures.fence_ms, figures.catchup_ms, figures.promote_ms) == (10, 5, 5, 20)
    # 51 less 9 of the drain (101 to 110), 5 and 20: the fence stays in.
    assert figures.cutover_ms == 17
    assert figures.downtime_ms == figures.blackout_ms


def test_parts_before_the_first_request_are_not_taken_off_the_blackout() -> None:
    figures = _figures(_of(_all_held(0, 100, 110), _released(0, 130, 20_000), _first_row(0, 155)))
    assert figures.blackout_ms == 25
    assert figures.cutover_ms == 15  # only 130 to 140 of the promotion lies within


def test_the_blackout_is_over_all_workers() -> None:
    figures = _figures(
        _of(
            _all_held(0, 100, 104), _all_held(1, 101, 108), _released(0, 106, 44_000), _released(1, 102, 48_000),
            _first_row(1, 153), _first_row(0, 151),
        )
    )  # fmt: skip
    assert figures.drain_ms == 8
    assert figures.blackout_ms == 49  # 102 to 151


def test_without_waiting_requests_the_blackout_is_nothing_and_the_window_is_named() -> None:
    figures = _figures(_of(_all_held(0, 100, 100), _released(0, 0)))
    assert figures.measured_by == "hold_to_release"
    assert figures.blackout_ms == 0
    assert figures.cutover_ms == 25  # 100 to 150 less 5 and 20
    assert figures.hold_ms.max == 0


def test_requests_that_got_no_answer_in_the_window_are_measured_to_their_release() -> None:
    figures = _figures(_of(_all_held(0, 100, 100), _released(0, 110, 40_000)))
    assert figures.measured_by == "first_request_to_release"
    assert figures.blackout_ms == 40


def test_a_switch_that_was_undone_has_no_cutover() -> None:
    evidence = Evidence()
    for worker, fact in (_all_held(0, 100, 110), _released(0, 101, 9_000)):
        evidence.sees(worker, fact, 120 * MS)
    figures = _figures(evidence)
    assert figures.measured_by == "not_cut_over"
    assert figures.cutover_ms == figures.blackout_ms == 0
    assert figures.hold_ms.max == 9
    assert figures.affected_transactions == 1


def test_percentiles_are_nearest_ranks() -> None:
    waits = [1000 * number for number in range(1, 101)]
    figures = _figures(_of(_released(0, 100, *waits[:50]), _released(1, 100, *waits[50:])))
    assert (figures.hold_ms.p50, figures.hold_ms.p99, figures.hold_ms.max) == (50, 99, 100)
    assert figures.affected_transactions == 100


@pytest.mark.parametrize("told_twice", [False, True])
def test_an_interrupted_session_counts_once(told_twice: bool) -> None:
    gone = ipc.Interrupted(session=1, user="app", reason="deadline", code_sent="57P01")
    evidence = _of(
        (0, ipc.Retargeted(switch="s", service="app", epoch=2, sessions=3, interrupted=[gone])),
        _released(0, 0, interrupted=[gone] if told_twice else []),
    )
    assert _figures(evidence).errors_visible == 1
    report = evidence.report(a_record("s"), _figures(evidence), [])
    assert report["interrupted_count"] == 1
    assert report["interrupted"][0]["code_sent"] == "57P01"


def test_a_refused_request_is_a_visible_error() -> None:
    evidence = _of((0, ipc.Expired(switch="s", service="app", refused=2)))
    evidence.sees(0, ipc.Expired(switch="s", service="app", refused=3), 1)
    evidence.sees(1, ipc.Expired(switch="s", service="app", refused=1), 1)
    assert _figures(evidence).errors_visible == 4


def test_the_histogram_counts_every_wait_once() -> None:
    evidence = _of(_released(0, 100, 0, 1, 2, 3, 1000, 1023, 1024))
    waits = evidence.report(a_record("s"), _figures(evidence), [])["waits"]
    assert waits["count"] == sum(bucket["count"] for bucket in waits["histogram"]) == 7
    assert waits["longest_us"] == [1024, 1023, 1000, 3, 2, 1, 0]
    assert {bucket["under_us"]: bucket["count"] for bucket in waits["histogram"]} == {
        1: 1,
        2: 1,
        4: 2,
        1024: 2,
        2048: 1,
    }


def test_a_report_says_what_was_planned_and_when_each_phase_began() -> None:
    evidence = _of()
    report = evidence.report(a_record("s"), _figures(evidence), [(1_000, "pending"), (5_000_000, "validating")])
    assert report["plan"]["target"] == "green"
    assert report["phases_us"] == [{"phase": "pending", "at_us": 0}, {"phase": "validating", "at_us": 4_999}]
    assert report["figures"]["acked_lost"] is None


def test_an_audit_counts_all_that_is_missing_and_names_the_first() -> None:
    names = [f"{number}" for number in range(700, 800)]
    evidence = _of()
    evidence.audit = Audit.of(CommitSample(by="xid", names=names), names[10:60])
    figures = _figures(evidence)
    assert figures.acked_lost == 50
    assert evidence.report(a_record("s"), figures, [])["audit"] == {
        "by": "xid", "checked": 100, "oldest": "700", "newest": "799", "lost": 50, "missing": names[10:30], "why": "",
    }  # fmt: skip
