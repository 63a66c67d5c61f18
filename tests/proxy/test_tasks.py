"""What `spawn` promises about the tasks it starts."""

from __future__ import annotations

import asyncio

from proxy.tasks import again, cancel_and_wait, in_haste, spawn


async def test_a_task_is_in_haste_until_it_ends_unless_it_stays() -> None:
    go = asyncio.Event()

    async def wait() -> None:
        await go.wait()

    passing = spawn(wait(), name="passing")
    staying = spawn(wait(), name="staying", stays=True)
    assert passing in in_haste
    assert staying not in in_haste
    go.set()
    await passing
    await asyncio.sleep(0)  # its callback runs in the next turn
    assert passing not in in_haste
    await staying


async def test_a_cancelled_task_is_in_haste_no_more() -> None:
    task = spawn(asyncio.sleep(3600), name="sleeper")
    await cancel_and_wait(task)
    await asyncio.sleep(0)
    assert task not in in_haste


async def test_a_step_that_goes_wrong_is_not_the_last_one() -> None:
    went_on = asyncio.Event()
    steps = 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 1:
            raise ValueError("the first")
        went_on.set()

    task = spawn(again(step, 0.0), name="steps", stays=True)
    async with asyncio.timeout(10):
        await went_on.wait()
    await cancel_and_wait(task)
