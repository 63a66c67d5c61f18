"""Wait for a condition, not for a second."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Final

TURN_S_MAX: Final = 1.0
"""What one look, and the pause behind it, count for at most: while the machine stands still, nobody is late."""


async def until(holds: Callable[[], bool | Awaitable[bool]], what: str, timeout_s: float = 10.0) -> None:
    """Return once `holds()` is true; fail the test with `what` after so long."""
    waited_s = 0.0
    while True:
        began = time.monotonic()
        answer = holds()
        if (await answer) if inspect.isawaitable(answer) else answer:
            return
        if waited_s > timeout_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(0.01)
        waited_s += min(time.monotonic() - began, TURN_S_MAX)
