"""Switches that wait: none is looked for that cannot begin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest_asyncio

from proxy.clock import SystemClock
from proxy.switch.journal import Journal
from proxy.switch.plan import SwitchRecord
from proxy.switch.state import Phase
from proxy.switch.waiting import Waiting
from tests.kit.waiting import until
from tests.proxy.switch.playbook import a_plan
from tests.proxy.switch.scripted import ScriptedCrew


class Begun:
    """What waits, and what of it has begun."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder / "state.sqlite")
        self.crew = ScriptedCrew()
        self.running: dict[str, Any] = {}
        self.begun: list[str] = []
        self.waiting = Waiting(
            self.journal, SystemClock(), self.crew, self.running, begin=self._begin, tell=lambda record: None
        )

    def _begin(self, record: SwitchRecord) -> None:
        self.waiting.remove(record)
        self.begun.append(record.id)
        self.running[record.service] = SimpleNamespace(record=record)

    def add(self, name: str, *, due_in_s: float, is_queued: bool) -> SwitchRecord:
        now = SystemClock().wall()
        record = SwitchRecord(
            id=name, service="app", source="blue", target="green", strategy="graceful", plan=a_plan(), began_at=now,
            due_at=now + due_in_s, is_queued=is_queued,
        )  # fmt: skip
        self.waiting.add(record)
        return record


@pytest_asyncio.fixture
async def begun(tmp_path: Path) -> AsyncIterator[Begun]:
    begun = Begun(tmp_path)
    try:
        yield begun
    finally:
        begun.waiting.stop()
        begun.journal.close()


async def test_what_is_due_and_waits_for_its_turn_is_not_looked_for_again_and_again(begun: Begun) -> None:
    begun.add("first", due_in_s=0.02, is_queued=True)
    begun.add("second", due_in_s=0.03, is_queued=True)
    await until(lambda: bool(begun.begun), "the first has begun")
    await until(lambda: begun.waiting._alarm is None, "the second is due, and there is nothing to wake up for")
    assert begun.begun == ["first"]
    begun.running.clear()
    begun.waiting.begin_due()
    assert begun.begun == ["first", "second"]


async def test_of_two_that_are_due_at_once_the_one_that_does_not_queue_is_turned_away(begun: Begun) -> None:
    begun.crew.indexes.clear()
    first = begun.add("first", due_in_s=0.0, is_queued=False)
    second = begun.add("second", due_in_s=0.001, is_queued=False)
    # Workers that come late are waited for, by one alarm at a time.
    begun.waiting.begin_due()
    begun.waiting.begin_due()
    begun.crew.indexes.append(0)
    await until(lambda: bool(begun.begun), "the first has begun")
    assert (first.phase, second.phase) == (Phase.PENDING, Phase.ABORTED)
    assert "is under way" in second.error
    assert begun.waiting.of("app") == []
