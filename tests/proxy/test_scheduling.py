"""Turns on a processor. What a thread asks for lasts as long as the thread: each test has its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from proxy.scheduling import ask_for_turns, turn_ns

T = TypeVar("T")

IS_NEW = tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 12)
"""The kernel knows of turns."""


def elsewhere(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_a_turn_is_as_long_as_asked_for_and_the_kernels_own_again_after_that() -> None:
    def work() -> tuple[int, bool, int, bool, int]:
        return turn_ns(), ask_for_turns(20_000_000), turn_ns(), ask_for_turns(0), turn_ns()

    own, is_done, asked, is_undone, after = elsewhere(work)
    assert (is_done, is_undone) == (IS_NEW, True)
    assert asked == (20_000_000 if IS_NEW else 0)
    assert after == own


def test_threads_and_processes_that_are_begun_have_the_kernels_own_turns() -> None:
    def work() -> tuple[int, int, int]:
        own = turn_ns()
        ask_for_turns(20_000_000)
        code = "from proxy.scheduling import turn_ns; print(turn_ns())"
        said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
        return own, elsewhere(turn_ns), int(said)

    own, of_thread, of_process = elsewhere(work)
    assert (of_thread, of_process) == (own, own)


def test_a_policy_that_somebody_has_chosen_is_left_alone() -> None:
    def work() -> tuple[bool, int]:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return ask_for_turns(20_000_000), os.sched_getscheduler(0)

    assert elsewhere(work) == (False, os.SCHED_IDLE)
