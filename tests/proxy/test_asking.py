"""Questions to the workers that many have at the same time."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.asking import AT_ONCE, EVERY_S, KINDS_MAX, Asking


class Workers:
    """Count how often they are asked, and answer with that number."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def ask(self) -> int:
        self.asked.append(time.monotonic())
        number = len(self.asked)
        await asyncio.sleep(0)
        return number


async def test_a_question_that_nobody_asked_lately_goes_out_at_once() -> None:
    asking, workers = Asking(), Workers()
    began = time.monotonic()
    assert [await asking.ask("figures", workers.ask) for _ in range(AT_ONCE)] == [*range(1, AT_ONCE + 1)]
    assert time.monotonic() - began < EVERY_S


async def test_who_asks_too_often_waits_and_shares_the_answer() -> None:
    asking, workers = Asking(), Workers()
    for _ in range(AT_ONCE):
        await asking.ask("figures", workers.ask)
    began = time.monotonic()
    answers = await asyncio.gather(*(asking.ask("figures", workers.ask) for _ in range(100)))
    assert set(answers) == {AT_ONCE + 1}
    assert 0 < workers.asked[-1] - began <= EVERY_S * 1.5


async def test_an_answer_is_never_older_than_the_question() -> None:
    asking, workers = Asking(), Workers()

    async def watch() -> None:
        for _ in range(5):
            began = time.monotonic()
            number = await asking.ask("figures", workers.ask)
            assert workers.asked[number - 1] >= began

    await asyncio.gather(*(watch() for _ in range(20)))
    assert len(workers.asked) < 20


async def test_a_question_that_is_being_answered_takes_nobody_more() -> None:
    asking = Asking()
    asked: list[asyncio.Future[int]] = []

    async def ask() -> int:
        asked.append(asyncio.get_running_loop().create_future())
        return await asked[-1]

    first = asyncio.create_task(asking.ask("figures", ask))
    await asyncio.sleep(0)
    second = asyncio.create_task(asking.ask("figures", ask))
    await asyncio.sleep(0)
    assert len(asked) == 2
    asked[0].set_result(1)
    asked[1].set_result(2)
    assert (await first, await second) == (1, 2)


async def test_other_questions_do_not_wait() -> None:
    asking, workers = Asking(), Workers()
    for _ in range(AT_ONCE):
        await asking.ask("figures", workers.ask)
    late = asyncio.create_task(asking.ask("figures", workers.ask))
    await asyncio.sleep(0)
    assert await asking.ask("backends", workers.ask) == AT_ONCE + 1
    assert not late.done()
    assert await late == AT_ONCE + 2


async def test_who_leaves_does_not_take_the_answer_away_from_the_others() -> None:
    asking, workers = Asking(), Workers()
    for _ in range(AT_ONCE):
        await asking.ask("figures", workers.ask)
    waiting = [asyncio.create_task(asking.ask("figures", workers.ask)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert await asyncio.gather(*waiting[1:]) == [AT_ONCE + 1] * 2


async def test_what_goes_wrong_is_told_to_all_who_asked() -> None:
    asking = Asking()

    async def fail() -> int:
        raise OSError("no workers")

    for _ in range(AT_ONCE + 2):
        with pytest.raises(OSError, match="no workers"):
            await asking.ask("figures", fail)


async def test_as_many_questions_as_one_likes_are_not_all_remembered() -> None:
    asking, workers = Asking(), Workers()
    for number in range(KINDS_MAX + 10):
        await asking.ask(("session", number), workers.ask)
        if not number % (KINDS_MAX // 4):
            await asking.ask("figures", workers.ask)
    assert len(asking._questions) == KINDS_MAX
    assert "figures" in asking._questions
