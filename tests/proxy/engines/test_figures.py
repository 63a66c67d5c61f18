"""The stream of figures, by numbers one can check by hand."""

from __future__ import annotations

import pytest

from proxy import ipc, latency
from proxy.engines.figures import HISTORY_S, Second, Stream, WireCounts, WireDifferences

S = 10**9
BLUE = ("shop", "blue")


def counted(requests: int, us_each: int = 1_000, errors: int = 0) -> WireCounts:
    return WireCounts(requests, requests * us_each, errors, {latency.bucket_of(us_each): requests} if requests else {})


def told(worker: int, requests: int, us_each: int = 1_000, faults: int = 0) -> ipc.WorkerFigures:
    buckets = [0] * latency.BUCKETS
    buckets[latency.bucket_of(us_each)] = requests
    engine = ipc.EngineFigures(
        engine="blue", requests_total=requests, errors_total=faults + 7, faults_total=faults,
        request_us_total=requests * us_each, latency=buckets,
    )  # fmt: skip
    service = ipc.ServiceFigures(
        service="shop", sessions=1, sessions_total=1, requests_total=requests, transactions_total=0, errors_total=0,
        login_failures_total=0, bytes_in_total=0, bytes_out_total=0, request_us_total=0, held=0,
        engines=[engine], pools=[], pinned={},
    )  # fmt: skip
    return ipc.WorkerFigures(request=1, worker=worker, cpu_s=0.0, rss_bytes=0, services=[service])


def stream_of(*wires: WireCounts | None, **more: float) -> Stream:
    """One second each, ending at second number len(wires)."""
    stream = Stream()
    for number, wire in enumerate(wires, 1):
        stream.add(BLUE, Second(at_ns=number * S, wall=1_000.0 + number, wire=wire, **more))  # type: ignore[arg-type]
    return stream


def test_a_window_is_the_sum_of_its_seconds_and_of_no_others() -> None:
    stream = stream_of(counted(100, 50_000), counted(10, 2_000, errors=1), counted(30, 6_000))
    window = stream.window(BLUE, 3 * S, 2.0)
    assert (window.requests, window.server_errors, window.covered_s) == (40, 1, 2.0)
    assert window.response_time_ms == 5.0
    assert window.error_rate_percent == 2.5


def test_without_requests_time_and_errors_are_unknown_and_not_zero() -> None:
    window = stream_of(counted(0), counted(0)).window(BLUE, 2 * S, 10.0)
    assert (window.response_time_ms, window.error_rate_percent, window.cpu_percent) == (None, None, None)
    figures = stream_of(counted(0)).figures(BLUE)
    assert figures is not None
    assert (figures.response_time_ms, figures.error_rate_percent, figures.query_rate_per_second) == (None, None, 0.0)


def test_what_nobody_told_is_unknown() -> None:
    figures = stream_of(None, None).figures(BLUE)
    assert figures is not None
    assert figures.query_rate_per_second is None
    assert figures.availability_percent is None
    assert Stream().figures(BLUE) is None


def test_the_share_of_slow_requests_is_that_of_the_buckets_above_the_threshold() -> None:
    stream = stream_of(WireCounts(10, 0, 0, {latency.bucket_of(1_000): 7, latency.bucket_of(300_000): 3}))
    assert stream.slower_percent(BLUE, S, 1.0, 100.0) == pytest.approx(30.0)
    assert stream.slower_percent(BLUE, S, 1.0, 0.5) == pytest.approx(100.0)
    assert stream.slower_percent(BLUE, S, 1.0, 1_000.0) == 0.0
    assert stream.slower_percent(BLUE, 5 * S, 1.0, 0.5) == 0.0, "nothing of it is that new"


def test_a_load_that_is_known_for_less_than_half_of_the_window_is_unknown() -> None:
    stream = Stream()
    for number, cpu in enumerate((None, None, 80.0, 60.0), 1):
        stream.add(BLUE, Second(at_ns=number * S, wall=0.0, cpu_percent=cpu))
    assert stream.window(BLUE, 4 * S, 4.0).cpu_percent == 70.0
    assert stream.window(BLUE, 4 * S, 2.0).cpu_percent == 70.0
    stream.add(BLUE, Second(at_ns=5 * S, wall=0.0))
    assert stream.window(BLUE, 5 * S, 5.0).cpu_percent is None


def test_availability_is_the_share_of_looks_with_an_answered_probe() -> None:
    stream = Stream()
    for number, is_up in enumerate((True, True, True, False), 1):
        stream.add(BLUE, Second(at_ns=number * S, wall=5.0, is_available=is_up, connections=number))
    figures = stream.figures(BLUE)
    assert figures is not None
    assert (figures.availability_percent, figures.active_connections, figures.last_updated) == (75.0, 4, 5.0)


def test_the_stream_forgets_what_is_older_than_its_bound_and_engines_that_are_gone() -> None:
    stream = stream_of(*[counted(1)] * (HISTORY_S + 50))
    assert stream.window(BLUE, (HISTORY_S + 50) * S, 10_000.0).requests == HISTORY_S
    stream.keep([])
    assert stream.figures(BLUE) is None


def test_what_a_worker_counted_before_it_was_first_seen_is_left_out() -> None:
    differences = WireDifferences()
    assert differences.take([told(0, 1_000)]) == {}
    new = differences.take([told(0, 1_025, faults=2)])
    assert (new[BLUE].requests, new[BLUE].request_us, new[BLUE].server_errors) == (25, 25_000, 2)
    assert new[BLUE].latency == {latency.bucket_of(1_000): 25}


def test_a_worker_that_was_replaced_counts_from_zero() -> None:
    differences = WireDifferences()
    differences.take([told(0, 1_000), told(1, 500)])
    new = differences.take([told(0, 4), told(1, 510)])
    assert new[BLUE].requests == 14


def test_a_worker_that_did_not_answer_is_caught_up_with() -> None:
    differences = WireDifferences()
    differences.take([told(0, 10), told(1, 10)])
    assert differences.take([told(0, 20)])[BLUE].requests == 10
    assert differences.take([told(0, 20), told(1, 40)])[BLUE].requests == 30
