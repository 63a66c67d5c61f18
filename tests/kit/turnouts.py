"""Fixture: a Turnout as users run it, `python -m proxy serve CONFIG`, with its control port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest_asyncio

from proxy.embedded import Setup, Turnout

StartTurnout = Callable[[Setup], Awaitable[Turnout]]


@pytest_asyncio.fixture
async def start_turnout(tmp_path: Path) -> AsyncIterator[StartTurnout]:
    """Start Turnouts, each in a folder of its own. At the end of the test each gets SIGTERM; the test fails if a
    process is left afterwards."""
    started: list[Turnout] = []

    async def start(setup: Setup) -> Turnout:
        folder = tmp_path / f"turnout{len(started)}"
        folder.mkdir()
        turnout = Turnout(setup, folder)
        started.append(turnout)
        await turnout.start()
        return turnout

    try:
        yield start
    finally:
        for turnout in started:
            await turnout.stop()
