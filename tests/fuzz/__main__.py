"""`make fuzz`: the parsers and, in both protocols, the live proxy side by side, for as long as asked.

    make fuzz                                   30 minutes
    make fuzz ARGS="--minutes 1"
    make fuzz ARGS="--seed 7 --only parsers"    the same cases again
    python -m tests.fuzz --replay postgres-tracker 'm00 c51…'

Ends with code 1 at the first finding and prints what shows it again; what a finding needs to become a test is in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.fuzz import Found, live, parsers
from tests.fuzz.sides import SIDES

ROOT: Final = Path(__file__).resolve().parents[2]
BATCH: Final = 500
"""Cases that are compared at a time."""
WARM_UP_CASES: Final = 5_000
"""Before these, the children may grow."""
GROWTH_KIB_MAX: Final = 64 * 1024
"""A child may grow by, after its warm-up."""
KEPT_MAX: Final = 40
"""Inputs kept for each target, oldest first: enough to begin with, and quick to run in tests."""
BATCH_S_MAX: Final = 300.0
"""Longest time a batch may take; a case of its own has a shorter bound."""


class Child:
    """One form of the parsers."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    @classmethod
    async def start(cls, name: str, seed: int, **environment: str) -> Child:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.fuzz.parsers", str(seed)),
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**26,
        )
        return cls(name, process)

    async def run(self, begin: int, end: int) -> dict[str, Any]:
        """Cases from `begin` to before `end`. Raises Found if the process ends or hangs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{begin} {end}\n".encode())
        try:
            async with asyncio.timeout(BATCH_S_MAX):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise Found(f"{self.name}: a hang between the cases {begin} and {end}") from None
        if not line:
            code = await self._process.wait()
            raise Found(f"{self.name}: the process ended with code {code} between the cases {begin} and {end}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


async def fuzz_parsers(seed: int, until: float, keeps: bool) -> str:
    """Compiled and readable form, case by case alike. Returns what was done; raises Found."""
    children = [
        await Child.start("compiled", seed, TURNOUT_READABLE=""),
        await Child.start("readable", seed, TURNOUT_READABLE="1"),
    ]
    number = 0
    warm: list[int] | None = None
    grown = [0, 0]
    new: dict[str, list[str]] = {}
    try:
        while time.monotonic() < until:
            answers = await asyncio.gather(*(child.run(number, number + BATCH) for child in children))
            for child, answer in zip(children, answers, strict=True):
                if answer["found"] is not None:
                    one = answer["found"]
                    raise Found(
                        f"{child.name}, case {one['case']}: {one['text']}\n"
                        f"again: python -m tests.fuzz --replay {one['target']} '{one['steps']}'"
                    )
            if answers[0]["digest"] != answers[1]["digest"]:
                pairs = zip(answers[0]["digests"], answers[1]["digests"], strict=True)
                case = number + next(index for index, (mine, theirs) in enumerate(pairs) if mine != theirs)
                raise Found(f"case {case}: the compiled and the readable form come to different outcomes")
            for target, steps in answers[0]["new"]:
                new.setdefault(target, []).append(steps)
            number += BATCH
            sizes = [answer["rss_kib"] for answer in answers]
            if number >= WARM_UP_CASES:
                warm = warm or sizes
                grown = [now - then for now, then in zip(sizes, warm, strict=True)]
                if max(grown) > GROWTH_KIB_MAX:
                    raise Found(f"the parsers' processes have grown by {grown} KiB since case {WARM_UP_CASES}")
    finally:
        for child in children:
            await child.stop()
        if keeps:
            keep(new)
    return f"parsers: {number:,} cases in both forms; grown by {grown[0]:,} and {grown[1]:,} KiB since the warm-up"


def keep(new: dict[str, list[str]]) -> None:
    """Add to tests/corpus/fuzz what is new, up to the bound."""
    parsers.KEPT.mkdir(exist_ok=True)
    for target, inputs in new.items():
        path = parsers.KEPT / f"{target}.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        lines += [line for line in inputs if line not in lines]
        path.write_text("\n".join(lines[:KEPT_MAX]) + "\n")


def replay(target: str, line: str) -> None:
    """One input again. Raises Finding."""
    for one in parsers.targets():
        if one.name == target:
            outcome = one.replay(parsers.read_steps(line))
            sys.stdout.write(f"nothing is wrong: {outcome}\n")
            return
    raise SystemExit(f"targets: {', '.join(one.name for one in parsers.targets())}")


async def run(args: argparse.Namespace) -> None:
    """All of it until the time is over. Raises Found."""
    until = time.monotonic() + args.minutes * 60
    async with asyncio.TaskGroup() as group:
        halves = []
        if args.only in (None, "parsers"):
            halves.append(group.create_task(fuzz_parsers(args.seed, until, args.keep)))
        for protocol in SIDES:
            if args.only in (None, "live", protocol):
                halves.append(group.create_task(live.fuzz(protocol, args.seed, until)))
    for half in halves:
        sys.stdout.write(half.result() + "\n")


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", choices=("parsers", "live", *SIDES))
    parser.add_argument("--keep", action="store_true", help="add inputs that show something new to tests/corpus/fuzz")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "STEPS"))
    args = parser.parse_args()
    if args.replay:
        replay(*args.replay)
        return 0
    sys.stdout.write(f"seed {args.seed}, {args.minutes:g} minutes\n")
    sys.stdout.flush()
    try:
        asyncio.run(run(args))
    except ExceptionGroup as group:
        found, rest = group.split(Found)
        if rest is not None or found is None:
            raise
        for error in found.exceptions:
            sys.stdout.write(f"FOUND with seed {args.seed}: {error}\n")
        return 1
    sys.stdout.write("nothing was found\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
