"""Counts that hold for all workers together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.dataplane import seats as module
from proxy.dataplane.seats import Seats

KEY = ("pool", "shop", "blue", "app", "alice")
OTHER = ("pool", "shop", "blue", "app", "bob")


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Seats]]:
    """Three workers."""
    workers = [Seats(tmp_path / "seats", index, 3) for index in range(3)]
    yield workers
    for one in workers:
        one.close()


def test_a_limit_holds_for_all_workers_together(three: list[Seats]) -> None:
    first, second, third = three
    assert first.take(KEY, 3)
    assert first.take(KEY, 3)
    assert second.take(KEY, 3)
    assert not third.take(KEY, 3)
    assert third.taken(KEY) == 3
    assert third.take(OTHER, 3)
    first.give(KEY)
    assert third.take(KEY, 3)
    assert not first.take(KEY, 3)


def test_no_limit_is_counted_all_the_same(three: list[Seats]) -> None:
    assert all(one.take(KEY, 0) for one in three for _ in range(10))
    assert three[0].taken(KEY) == 30


def test_a_worker_that_begins_anew_holds_nothing(three: list[Seats], tmp_path: Path) -> None:
    for one in three:
        assert one.take(KEY, 0)
    again = Seats(tmp_path / "seats", 1, 3)
    assert three[0].taken(KEY) == 2
    again.close()


def test_workers_see_who_waits(three: list[Seats]) -> None:
    three[0].want(KEY, 2)
    three[1].want(KEY, 1)
    assert three[2].wanted(KEY) == 3
    three[0].want(KEY, -2)
    assert three[2].wanted(KEY) == 1


def test_a_row_that_counts_nothing_is_given_to_another_key(monkeypatch: pytest.MonkeyPatch, three: list[Seats]) -> None:
    first, second, _ = three
    # Fill every row, then free one: the next key gets it, and whoever used it before gets another.
    for number in range(module.ROWS):
        assert first.take(("fill", str(number)), 0)
    assert not second.take(KEY, 0)
    first.give(("fill", "7"))
    assert second.take(KEY, 0)
    assert not first.take(("fill", "7"), 0)
    assert first.taken(("fill", "7")) == 0
    assert first.taken(KEY) == 1
