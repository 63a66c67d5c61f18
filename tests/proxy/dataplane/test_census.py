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
        census.tick()
    assert found.prepared == 9 * times
    assert found.grades == {"A": times, "B": times, "C": times, "D": times}
    assert found.pinned == {"advisory lock": times}
