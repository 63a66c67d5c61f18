"""Questions to the workers that many may have at the same time: a worker answers in the loop that serves the clients.

A question that was not asked much lately goes out at once. Who asks more often than the workers can afford waits until
it goes out the next time, a quarter of a second at most, and all who wait share the answer. So an answer is never older
than the question, and workers that are watched by hundreds have no more to say than those that are watched by ten.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

from proxy.tasks import spawn

T = TypeVar("T")

AT_ONCE: Final = 8
"""How often the same may be asked in a row, by whom it was not asked lately."""

EVERY_S: Final = 0.25
"""Between two askings of the same in the long run, in seconds."""

KINDS_MAX: Final = 1_000
"""Most questions that are remembered at a time; the one not asked for longest is forgotten, and begins anew."""


class _Question(Generic[T]):
    """One kind of question, and how often it was asked lately."""

    def __init__(self, ask: Callable[[], Awaitable[T]], now_s: float) -> None:
        self._ask = ask
        self._spare_s = now_s - AT_ONCE * EVERY_S
        """When it would have been asked last, had it been asked at an even pace."""
        self._next: asyncio.Task[T] | None = None
        """It waits to go out, and takes more who ask."""

    async def __call__(self) -> T:
        """The answer to a question that goes out from now on."""
        if self._next is None:
            wait_s = self._turn_s(time.monotonic())
            if not wait_s:
                return await self._ask()
            self._next = spawn(self._ask_later(wait_s), name="ask the workers later", stays=True)
        # Who leaves does not take the answer away from the others.
        return await asyncio.shield(self._next)

    def _turn_s(self, now_s: float) -> float:
        self._spare_s = max(self._spare_s, now_s - AT_ONCE * EVERY_S) + EVERY_S
        return max(0.0, self._spare_s - now_s)

    async def _ask_later(self, wait_s: float) -> T:
        await asyncio.sleep(wait_s)
        self._next = None
        return await self._ask()


class Asking:
    """One for the life of a supervisor."""

    def __init__(self) -> None:
        self._questions: dict[object, _Question[Any]] = {}

    async def ask(self, kind: object, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` answers, now or in a moment; those who ask the same `kind` may get one answer. Raises what it raises."""
        found = self._questions.pop(kind, None)
        if found is None:
            found = _Question(ask, time.monotonic())
            if len(self._questions) >= KINDS_MAX:
                del self._questions[next(iter(self._questions))]
        self._questions[kind] = found  # the last one is the one asked last
        answer: T = await found()
        return answer
