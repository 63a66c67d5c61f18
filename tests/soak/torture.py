"""One run: writers, a seeded schedule of faults, and the judgement."""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from proxy.embedded import ServerFailed
from tests.soak import schema
from tests.soak.faults import FAULTS
from tests.soak.history import Outcome
from tests.soak.world import World
from tests.soak.writers import Writers


@dataclass(slots=True)
class Verdict:
    """What came of a run."""

    seed: int
    complaints: list[str] = field(default_factory=list)
    thrown: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, int] = field(default_factory=dict)
    """Transactions by outcome."""
    errors: Counter[str] = field(default_factory=Counter)
    """What clients were told, by code."""


def schedule(names: Sequence[str], rng: random.Random) -> list[str]:
    """Every fault once, in an order that the seed decides; the next round has another."""
    ordered = list(names)
    rng.shuffle(ordered)
    return ordered


async def torture(
    world: World,
    *,
    seed: int,
    seconds: float,
    faults: Sequence[str] = (),
    writers: int = 8,
    say: Callable[[str], None] = lambda line: None,
) -> Verdict:
    """`faults` are names; empty: all that this world can heal. For `seconds`, and to the end of the fault that is being thrown
    then. What breaks the run itself (a writer that gets nowhere, a switch that does not end) is a complaint, too."""
    faults = faults or [name for name, fault in FAULTS.items() if fault.needs <= world.abilities]
    rng, verdict = random.Random(seed), Verdict(seed)
    load = Writers(world.client, writers, seed)
    began, name = time.monotonic(), "at the beginning"
    load.begin()
    try:
        await load.are_served()
        due: list[str] = []
        while time.monotonic() - began < seconds and not verdict.complaints:
            due = due or schedule(faults, rng)
            fault = FAULTS[due.pop(0)]
            name = fault.name
            before = load.errors.copy()
            what = await fault.act(world, rng)
            verdict.thrown[fault.name] += 1
            await world.settle()
            await load.are_served()
            new = load.errors - before
            say(f"{time.monotonic() - began:7.1f} s  {fault.name}: {what}  {dict(new) or ''}")
            if fault.is_unseen and new:
                verdict.complaints.append(f"{fault.name} was seen by clients: {dict(new)}")
            verdict.complaints += world.two_writers
            if world.watch is not None and world.watch.done():
                verdict.complaints.append("nobody looks any more at who takes writes")
    except (AssertionError, ServerFailed) as error:
        verdict.complaints.append(f"{name}: {error}")
    except Exception as error:  # noqa: BLE001  (of the harness itself, say; what was written must be judged all the same)
        verdict.complaints.append(f"{name}: {''.join(traceback.format_exception(error))}")
    finally:
        verdict.complaints += await load.end()
    verdict.complaints += load.history.judge(await world.found(), schema.MONEY)
    verdict.outcomes = {outcome.value: load.history.count(outcome) for outcome in Outcome}
    verdict.errors = load.errors
    return verdict
