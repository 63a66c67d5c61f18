"""What the clients of a soak do: transfers, appends, batches and reads, without an end."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

from proxy.tasks import spawn
from tests.kit.waiting import until
from tests.soak.clients import Client, Told
from tests.soak.history import History, Outcome

ACCOUNTS: Final = 50
START_BALANCE: Final = 1_000
LISTS: Final = 8
"""Lists that are appended to at a time."""
ITEMS_OF_A_TURN: Final = 1_000
"""Transactions until other lists take their place, so that none grows without end."""
PAUSE_S_MAX: Final = 0.02
LONG_S: Final = 0.3
"""How long a long transaction is open."""
BATCH: Final = 20
PROGRESS: Final = 3
"""Transactions that each writer has to have acknowledged to count as served."""


class Writers:
    """All clients of one run."""

    def __init__(self, open_client: Callable[[], Client], count: int, seed: int) -> None:
        self.history = History()
        self.errors: Counter[str] = Counter()
        """What clients were told, by code."""
        self.done = [0] * count
        """Acknowledged transactions by writer."""
        self._open_client = open_client
        self._random = [random.Random(f"{seed} {number}") for number in range(count)]
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False

    def begin(self) -> None:
        self._tasks = [spawn(self._run(number), name=f"writer {number}") for number in range(len(self.done))]

    async def end(self) -> list[str]:
        """Each ends what it is at. Returns what writers could not go on from."""
        self._is_over = True
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        return [f"a writer ended: {error!r}" for error in ended if error is not None]

    async def are_served(self, timeout_s: float = 60.0) -> None:
        """Until every writer has got some more done, or one has ended. Raises AssertionError."""
        before = list(self.done)
        await until(
            lambda: (
                any(task.done() for task in self._tasks)
                or all(now >= then + PROGRESS for now, then in zip(self.done, before, strict=True))
            ),
            f"every writer goes on; since {before} they have done {self.done}",
            timeout_s=timeout_s,
        )
        assert not any(task.done() for task in self._tasks), "every writer goes on"

    async def _run(self, number: int) -> None:
        client, rng = self._open_client(), self._random[number]
        try:
            while not self._is_over:
                await asyncio.sleep(rng.uniform(0, PAUSE_S_MAX))
                try:
                    await self._act(client, rng)
                except Told as told:
                    self.errors[told.code] += 1
                else:
                    self.done[number] += 1
        finally:
            await client.close()

    async def _act(self, client: Client, rng: random.Random) -> None:
        number, history = next(self._numbers), self.history
        list_number = number // ITEMS_OF_A_TURN * LISTS + rng.randrange(LISTS)
        draw = rng.random()
        if draw < 0.2:
            known = history.known_of(list_number)
            history.read(list_number, await client.read(list_number), known)
            return
        if draw < 0.3:
            numbers = [number, *itertools.islice(self._numbers, BATCH - 1)]
            for one in numbers:
                history.begins(one, list_number=None, is_in_journal=True)
            await self._try(client.write(numbers, by_copy=draw < 0.25), numbers)
            return
        is_single = draw < 0.55
        history.begins(number, list_number=list_number, is_in_journal=not is_single)
        if is_single:
            await self._try(client.append(number, list_number), [number])
            return
        low, high = sorted(rng.sample(range(ACCOUNTS), 2))
        pause_s = LONG_S if draw < 0.58 else 0.0
        await self._try(client.transfer(number, list_number, low, high, rng.randint(-50, 50), pause_s), [number])

    async def _try(self, act: Coroutine[Any, Any, None], numbers: list[int]) -> None:
        outcome = Outcome.UNKNOWN
        try:
            await act
            outcome = Outcome.ACKNOWLEDGED
        except Told as told:
            outcome = Outcome.REFUSED if told.is_refused else Outcome.UNKNOWN
            raise
        finally:
            for number in numbers:
                self.history.ended(number, outcome)
