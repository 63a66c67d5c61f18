"""What is thrown at a world, and when it is over. Each fault heals itself; `World.settle` sees to the rest.

A fault that is unseen must not be noticed by any client: no error, nothing but waiting.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import psutil

from tests.kit.waiting import until
from tests.soak.world import World

Act = Callable[[World, random.Random], Awaitable[str]]
"""Returns what happened, in a few words."""


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    act: Act
    is_unseen: bool
    needs_failover: bool = False


async def _switch(world: World, rng: random.Random) -> str:
    return await _switched(world)


async def _switch_at_once(world: World, rng: random.Random) -> str:
    return await _switched(world, strategy="immediate")


async def _switched(world: World, **body: object) -> str:
    switch = await world.begin_switch(world.pair.standby.name, **body)
    assert switch, "the switch was refused"
    ended = await world.ended(switch)
    assert ended["phase"] == "completed", ended["error"]
    assert ended["figures"]["acked_lost"] == 0, ended["report"]["audit"]
    return f"cutover {ended['figures']['cutover_ms']} ms"


async def _two_switches(world: World, rng: random.Random) -> str:
    """The second one second after the first, when the way back may not be open."""
    first = await world.begin_switch(world.pair.standby.name)
    await asyncio.sleep(1.0)
    second = await world.begin_switch(world.pair.primary.name)
    phases = [(await world.ended(one))["phase"] for one in (first, second) if one]
    assert phases[0] == "completed"
    return " and ".join(phases) + ("" if second else ", the second refused")


async def _stuck_standby(world: World, rng: random.Random) -> str:
    """It stops applying: the switch is undone, and the source writable again."""
    await world.pause_replication()
    try:
        switch = await world.begin_switch(world.pair.standby.name)
        if not switch:
            return "refused"
        ended = await world.ended(switch)
        assert ended["phase"] == "aborted", ended
        return str(ended["error"])
    finally:
        await world.resume_replication()


async def _frozen_target(world: World, rng: random.Random) -> str:
    """The target answers nobody from some moment of the switch on, the promotion perhaps, for a second or two."""
    target = world.pair.standby
    switch = await world.begin_switch(target.name)
    await asyncio.sleep(rng.uniform(0.0, 0.5))
    target.freeze()
    try:
        await asyncio.sleep(rng.uniform(0.5, 2.0))
    finally:
        target.thaw()
    return str((await world.ended(switch))["phase"]) if switch else "refused"


async def _frozen_source(world: World, rng: random.Random) -> str:
    server = world.pair.primary
    server.freeze()
    try:
        await asyncio.sleep(rng.uniform(0.1, 1.0))
    finally:
        server.thaw()
    return "thawed"


async def _killed_source(world: World, rng: random.Random) -> str:
    """A crash; the server comes back as it was, before anybody takes over."""
    server = world.pair.primary
    gap = world.gaps[server.name]
    gap.refuse()
    await server.kill()
    await server.start()
    await gap.open()
    return "started again"


async def _killed_standby(world: World, rng: random.Random) -> str:
    server = world.pair.standby
    if not world.is_postgres:
        # Started again it would take writes, as its configuration has it: what replicas are, `SET GLOBAL` made them.
        return "left alone"
    await server.kill()
    await server.start()
    return "started again"


async def _killed_worker(world: World, rng: random.Random) -> str:
    workers = world.workers()
    victim = rng.choice(sorted(workers, key=lambda one: one.pid))
    victim.kill()
    await until(
        lambda: len({one.pid for one in world.workers()} - {victim.pid}) >= len(workers), "the worker is replaced",
        timeout_s=30.0,
    )  # fmt: skip
    return f"one of {len(workers)}"


async def _killed_supervisor(world: World, rng: random.Random) -> str:
    """While workers go on; in the middle of a switch, or outside of one."""
    is_in_switch = rng.random() < 0.7
    switch = await world.begin_switch(world.pair.standby.name) if is_in_switch else ""
    await asyncio.sleep(rng.uniform(0.0, 0.4) if is_in_switch else 0.0)
    supervisor = psutil.Process(world.turnout.pid)
    supervisor.kill()
    await until(lambda: world.turnout.pid is None, "the supervisor is gone")
    await world.turnout.start()
    return f"in a switch that was {(await world.ended(switch))['phase']}" if switch else "outside of a switch"


async def _lost_source(world: World, rng: random.Random) -> str:
    """A crash for good, it seems: the standby takes over. Then the old primary comes back as it was."""
    server = world.pair.primary
    gap = world.gaps[server.name]
    world.stale = server.name
    gap.refuse()
    await server.kill()

    async def come_back() -> None:
        await server.start()
        await gap.open()

    return await _taken_over(world, come_back)


async def _mute_source(world: World, rng: random.Random) -> str:
    """It answers nobody for so long that the standby takes over, and then goes on where it was."""
    server = world.pair.primary
    world.stale = server.name

    async def thaw() -> None:
        server.thaw()

    server.freeze()
    return await _taken_over(world, thaw)


async def _taken_over(world: World, return_to_life: Callable[[], Awaitable[None]]) -> str:
    old = world.pair.primary
    began = time.monotonic()
    try:

        async def has_moved() -> bool:
            return await world.active() != old.name

        await until(has_moved, "the standby has taken over", timeout_s=30.0)
    finally:
        await return_to_life()
    taken_s = time.monotonic() - began

    async def is_fenced() -> bool:
        return old.is_running and not await world.takes_writes(old)

    await until(is_fenced, "the old primary is fenced", timeout_s=30.0)
    world.stale = ""
    return f"taken over after {taken_s:.1f} s, and the old primary fenced"


async def _reset(world: World, rng: random.Random) -> str:
    world.gaps[world.pair.primary.name].reset()
    return "all connections to the source"


async def _cut(world: World, rng: random.Random) -> str:
    """Connections end in the middle of whatever they carry."""
    gap = world.gaps[world.pair.primary.name]
    for _ in range(5):
        gap.cut_after(rng.randrange(20_000))
        await asyncio.sleep(0.1)
    return "up to five connections"


async def _swallowed(world: World, rng: random.Random) -> str:
    gap = world.gaps[world.pair.primary.name]
    gap.swallow()
    await asyncio.sleep(rng.uniform(0.1, 1.5))
    if rng.random() < 0.5:
        gap.reset()
    gap.heal()
    return "for a while"


async def _cut_in_switch(world: World, rng: random.Random) -> str:
    """Connections to either engine end while a switch runs, Turnout's own among them."""
    gap = world.gaps[rng.choice(sorted(world.gaps))]
    switch = await world.begin_switch(world.pair.standby.name)
    await asyncio.sleep(rng.uniform(0.0, 0.5))
    gap.reset()
    return str((await world.ended(switch))["phase"]) if switch else "refused"


FAULTS: Final = {
    fault.name: fault
    for fault in (
        Fault("switch", _switch, is_unseen=True),
        Fault("immediate switch", _switch_at_once, is_unseen=False),
        Fault("two switches", _two_switches, is_unseen=True),
        Fault("stuck standby", _stuck_standby, is_unseen=True),
        Fault("frozen target", _frozen_target, is_unseen=False),
        Fault("frozen source", _frozen_source, is_unseen=True),
        Fault("killed source", _killed_source, is_unseen=False),
        Fault("killed standby", _killed_standby, is_unseen=True),
        Fault("killed worker", _killed_worker, is_unseen=False),
        Fault("killed supervisor", _killed_supervisor, is_unseen=True),
        Fault("reset", _reset, is_unseen=False),
        Fault("cut", _cut, is_unseen=False),
        Fault("swallowed", _swallowed, is_unseen=False),
        Fault("cut in a switch", _cut_in_switch, is_unseen=False),
        Fault("lost source", _lost_source, is_unseen=False, needs_failover=True),
        Fault("mute source", _mute_source, is_unseen=False, needs_failover=True),
    )
}
