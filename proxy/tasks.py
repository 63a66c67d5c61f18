"""Every task has a name, an owner that keeps it, and a fate that is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import structlog

T = TypeVar("T")

_log = structlog.get_logger("turnout.tasks")
_running: set[asyncio.Task[Any]] = set()

in_haste: Final[set[object]] = set()
"""What takes many turns of the event loop and shall not wait between them: tasks, but for those that stay, and moves of
sessions. While it is empty the relay may keep the loop waiting for up to 20 milliseconds."""


def spawn(work: Coroutine[Any, Any, T], *, name: str, stays: bool = False) -> asyncio.Task[T]:
    """Start `work`. The reference is kept until it ends; an exception nobody awaits is logged with its traceback. `stays`:
    it lives as long as the process, and is not in haste."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    _running.add(task)
    if not stays:
        in_haste.add(task)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    in_haste.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        _log.error("task failed", task=task.get_name(), exc_info=error)


async def again(step: Callable[[], Awaitable[None]], every_s: float) -> None:
    """`step` each `every_s` seconds, for ever. What goes wrong in one is logged, and the next one comes all the same."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await step()
        except Exception:  # noqa: BLE001  who watches must not stop because of one thing that it saw
            _log.exception("a step failed, the next one follows", step=step.__qualname__)


async def cancel_and_wait(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel and wait until all have ended; their outcomes are dropped (failures were logged)."""
    alive = [task for task in tasks if task is not None and not task.done()]
    for task in alive:
        task.cancel()
    if alive:
        await asyncio.wait(alive)
