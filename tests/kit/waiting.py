"""Wait for a condition, not for a second."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable


async def until(holds: Callable[[], bool | Awaitable[bool]], what: str, timeout_s: float = 10.0) -> None:
    """Return once `holds()` is true; fail the test with `what` at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = holds()
        if (await answer) if inspect.isawaitable(answer) else answer:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(0.01)
