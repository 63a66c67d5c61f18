"""What is counted of sessions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from protocols.wire import Grade
from proxy.dataplane.census import FEW, Census
from proxy.dataplane.registry import Registry


class Client:
    """As much of a session as is counted."""

    standing: Any = None

    def __init__(self, grade: Grade, carried: dict[str, int], pins: list[str]) -> None:
        self._grade, self._pins = grade, pins
        self.ledger = SimpleNamespace(carried=lambda: carried)

    def portability(self) -> tuple[Grade, list[str]]:
        return self._grade, self._pins


@pytest.mark.parametrize("times", [1, FEW], ids=["few", "many"])
def test_statements_of_all_who_carry_some_are_counted_however_many_sessions_there_are(times: int) -> None:
    registry = Registry()
    for _ in range(times):
        for one in (
            Client(Grade.A, {}, []),
            Client(Grade.B, {"prepared statements": 2, "settings": 1}, []),
            Client(Grade.C, {"prepared statements": 3}, []),
            Client(Grade.D, {"prepared statements": 4}, ["advisory lock"]),
        ):
            registry.add(one)  # type: ignore[arg-type]
    census = Census(registry)
    while not (found := census.look()).grades:
        census.tick(now_ns=0)
    assert found.prepared == 9 * times
    assert found.grades == {"A": times, "B": times, "C": times, "D": times}
    assert found.pinned == {"advisory lock": times}


def test_many_are_counted_once_a_second_however_often_somebody_looks() -> None:
    """To ask a session takes time in which nobody is served."""
    registry, asked = Registry(), []

    class Asked(Client):
        def portability(self) -> tuple[Grade, list[str]]:
            asked.append(self)
            return super().portability()

    for _ in range(FEW + 1):
        registry.add(Asked(Grade.A, {}, []))  # type: ignore[arg-type]
    census = Census(registry)
    for tick in range(20):
        census.tick(tick * 100_000_000)
        assert census.look().grades == {"A": FEW + 1}
    assert len(asked) == 2 * (FEW + 1)
