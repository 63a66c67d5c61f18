"""What workers count, added up."""

from __future__ import annotations

import msgspec

from proxy import ipc
from proxy.control.sums import Sums
from tests.proxy.control.scripted import figures


def told(worker: int, pid: int, **more: object) -> ipc.WorkerFigures:
    service = msgspec.structs.replace(figures(), **more)
    return ipc.WorkerFigures(request=1, worker=worker, pid=pid, cpu_s=0.0, rss_bytes=0, services=[service])


def test_counters_outlive_the_worker_that_counted_and_gauges_do_not() -> None:
    sums = Sums()
    sums.take([told(0, 10, requests_total=1_000), told(1, 11, requests_total=500)], {0: 10, 1: 11})
    [found] = sums.take([told(0, 12, requests_total=3, sessions=1), told(1, 11, requests_total=600)], {0: 12, 1: 11})
    assert found.requests_total == 1_000 + 3 + 600
    assert found.sessions == 1 + 5
    assert found.grades == {"A": 6, "D": 4}
    [engine] = found.engines
    assert sum(engine.latency) == engine.requests_total == 3_000
    [pool] = found.pools
    assert pool.in_use == 12


def test_a_worker_that_does_not_answer_counts_as_it_was_last_seen() -> None:
    sums = Sums()
    sums.take([told(0, 10), told(1, 11)], {0: 10, 1: 11})
    [found] = sums.take([told(0, 10)], {0: 10, 1: 11})
    assert (found.requests_total, found.sessions) == (2_000, 10)


def test_a_worker_that_is_gone_leaves_its_counters_at_once() -> None:
    sums = Sums()
    sums.take([told(0, 10), told(1, 11)], {0: 10, 1: 11})
    [found] = sums.take([told(0, 10)], {0: 10})
    assert (found.requests_total, found.sessions) == (2_000, 5)
    [again] = sums.take([told(0, 10)], {0: 10})
    assert again == found
