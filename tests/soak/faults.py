"""What is thrown at a world, and when it is over. Each fault heals itself; `World.settle` sees to the rest.

A fault that is unseen must not be noticed by any client: no error, nothing but waiting.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import psutil

from tests.kit.waiting import until
from tests.soak.clients import FAILURES
from tests.soak.world import World

FILLER_BYTES: Final = 4_096
"""A page of a disk in memory: less than one is left."""

Act = Callable[[World, random.Random], Awaitable[str]]
"""Returns what happened, in a few words."""


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    act: Act
    is_unseen: bool
    needs: frozenset[str] = frozenset()
    """Abilities of a world."""


async def _switch(world: World, rng: random.Random) -> str:
    return await _switched(world)


async def _switch_at_once(world: World, rng: random.Random) -> str:
    return await _switched(world, strategy="immediate")


async def _rolling_switch(world: World, rng: random.Random) -> str:
    return await _switched(world, strategy="rolling", batch_size=rng.randint(1, 5), interval_seconds=0.1)


async def _switched(world: World, **body: object) -> str:
    switch = await world.begin_switch(world.target, **body)
    assert switch, world.refusal
    ended = await world.ended(switch)
    assert ended["phase"] == "completed", ended["error"]
    assert not ended["figures"]["acked_lost"], ended["report"]["audit"]
    return f"cutover {ended['figures']['cutover_ms']} ms"


async def _canary_switch(world: World, rng: random.Random) -> str:
    """Both addresses are of one server; a finding to the contrary is chance, and everybody is brought back."""
    share = {"traffic_percentage": rng.choice((10, 30, 60)), "validation_duration_seconds": 2}
    switch = await world.begin_switch(world.target, strategy="canary", **share)
    assert switch, world.refusal
    ended = await world.ended(switch)
    assert ended["phase"] in ("completed", "aborted"), ended
    return " ".join(filter(None, (ended["phase"], ended["error"])))


async def _two_switches(world: World, rng: random.Random) -> str:
    """The second one second after the first, when the way back may not be open."""
    first = await world.begin_switch(world.target)
    await asyncio.sleep(1.0)
    second = await world.begin_switch(world.source)
    phases = [(await world.ended(one))["phase"] for one in (first, second) if one]
    assert phases[0] == "completed"
    return " and ".join(phases) + ("" if second else ", the second refused")


async def _stuck_standby(world: World, rng: random.Random) -> str:
    """It stops applying, before the switch or in the middle of it: the switch is undone, and the source writable again;
    or the target has what it needs already."""
    is_before = rng.random() < 0.5
    if is_before:
        await world.pause_replication()
    try:
        switch = await world.begin_switch(world.target)
        if not is_before:
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            await world.pause_replication()
        if not switch:
            return "refused"
        ended = await world.ended(switch)
        assert ended["phase"] == "aborted" or not is_before, ended
        return str(ended["error"] or ended["phase"])
    finally:
        await world.resume_replication()


async def _refused_promotion(world: World, rng: random.Random) -> str:
    """The standby cannot be promoted, and says so: the switch is undone. (pg_promote makes a file of that name.)"""
    obstacle = world.pair.standby.data / "promote"
    obstacle.mkdir()
    try:
        switch = await world.begin_switch(world.target)
        if not switch:
            return "refused"
        ended = await world.ended(switch)
        assert ended["phase"] == "aborted", ended
        return str(ended["error"])
    finally:
        obstacle.rmdir()


async def _hung_promotion(world: World, rng: random.Random) -> str:
    """The standby takes longer for its promotion than anybody waits, and ends it when the source serves again. It is fenced
    then."""
    standby = world.pair.standby
    await _make_slow(world, standby)
    switch = await world.begin_switch(world.target)
    assert switch, world.refusal
    ended = await world.ended(switch)
    assert ended["phase"] == "aborted", ended
    await _promoted_late(standby)
    return f"{ended['error']}, and {await _fenced(world, standby)}"


async def _hung_failover(world: World, rng: random.Random) -> str:
    """The same when the primary is lost: the failover fails, is the last one, and says so. An operator has the old primary
    started again, or the standby take over when its promotion has come to an end; and switches the automation on."""
    old, standby = world.pair.primary, world.pair.standby
    gap = world.gaps[old.name]
    await _make_slow(world, standby)
    gap.refuse()
    await old.kill()
    why = ""

    async def is_given_up() -> bool:
        nonlocal why
        found = await world.automation()
        why = str(found["why_not"])
        return not found["is_automatic"]

    await until(is_given_up, "the failover fails, and is the last one", timeout_s=30.0)
    assert "could not be promoted" in why, why
    if rng.random() < 0.5:
        await old.start()
        await gap.open()
        await _promoted_late(standby)
        done = f"{old.name} was started again, and {await _fenced(world, standby)}"
    else:
        await _promoted_late(standby)
        switch = await world.order_failover(standby.name)
        assert switch, world.refusal
        ended = await world.ended(switch)
        assert ended["phase"] == "completed", ended
        world.stale = old.name
        await old.start()
        await gap.open()
        done = f"{standby.name} was told to take over, and {await _fenced(world, old)}"
    await world.automate()
    return f"{why}; {done}"


async def _make_slow(world: World, standby: Any) -> None:
    """Its promotion will take longer than Turnout waits."""
    await standby.execute(f"alter system set recovery_end_command = 'sleep {world.promote_timeout_s + 2:g}'")
    await standby.execute("select pg_reload_conf()")
    world.stale = standby.name


async def _promoted_late(standby: Any) -> None:
    """Once it is a primary after all; the next promotion is quick again, on whatever server its settings are copied to."""

    async def is_promoted() -> bool:
        try:
            if await standby.fetchval("select pg_is_in_recovery()"):
                return False
            await standby.execute("alter system reset recovery_end_command")
        except FAILURES:
            # A fence ends the sessions of strangers.
            return False
        return True

    await until(is_promoted, "its promotion ends after all", timeout_s=30.0)


async def _full_disk(world: World, rng: random.Random) -> str:
    """The state file cannot be written: no switch begins, or it is undone, and nobody notices."""
    filler = world.disk / "filler"

    def fill() -> None:
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(FILLER_BYTES))
            except OSError:
                # It is full.
                return

    await asyncio.to_thread(fill)
    try:
        switch = await world.begin_switch(world.target)
        assert await world.active() == world.source, "nothing was switched"
    finally:
        filler.unlink()
    return "undone" if switch else "refused"


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
    """A crash; the server comes back as it was, before anybody takes over, or a moment after that."""
    server = world.pair.primary
    gaps = [gap for name, gap in world.gaps.items() if world.is_one_server or name == server.name]
    if world.fails_over:
        world.stale = server.name
    for gap in gaps:
        gap.refuse()
    await server.kill()
    await server.start()
    for gap in gaps:
        await gap.open()
    if not world.fails_over:
        return "started again"
    serving = ""

    async def is_decided() -> bool:
        nonlocal serving
        serving, health = await world.health()
        return health == "answering"

    await until(is_decided, "one of both serves", timeout_s=30.0)
    if serving == server.name:
        world.stale = ""
        return "started again"
    return f"the other one has taken over, and {await _fenced(world, server)}"


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
    body: dict[str, object] = {}
    if world.is_one_server and rng.random() < 0.5:
        body = {"strategy": "rolling", "batch_size": 1, "interval_seconds": 0.1}
    switch = await world.begin_switch(world.target, **body) if is_in_switch else ""
    await asyncio.sleep(rng.uniform(0.0, 0.4) if is_in_switch else 0.0)
    supervisor = psutil.Process(world.turnout.pid)
    supervisor.kill()
    await until(lambda: world.turnout.pid is None, "the supervisor is gone")
    await world.turnout.start()
    return f"in a switch that was {(await world.ended(switch))['phase']}" if switch else "outside of a switch"


async def _lost_source(world: World, rng: random.Random) -> str:
    """A crash for good, it seems: the standby takes over. Then the old primary comes back as it was. A go-between may have
    taken connections for it meanwhile."""
    server = world.pair.primary
    gap = world.gaps[server.name]
    world.stale = server.name
    if rng.random() < 0.5:
        gap.refuse()
    else:
        gap.hang_up()
    await server.kill()

    async def come_back() -> None:
        await server.start()
        gap.heal()
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
    return f"taken over after {taken_s:.1f} s, and {await _fenced(world, old)}"


async def _fenced(world: World, server: Any) -> str:
    """Until Turnout has taken the writes from a server that should not have them."""

    async def is_fenced() -> bool:
        # In so many words: one that was frozen may be too slow to answer a stranger, and take writes all the same.
        return await world.takes_writes(server) is False

    await until(is_fenced, f"{server.name} is fenced", timeout_s=30.0)
    world.stale = ""
    return f"{server.name} fenced"


async def _reset(world: World, rng: random.Random) -> str:
    world.gaps[world.source].reset()
    return "all connections to the source"


async def _cut(world: World, rng: random.Random) -> str:
    """Connections end in the middle of whatever they carry."""
    gap = world.gaps[world.source]
    for _ in range(5):
        gap.cut_after(rng.randrange(20_000))
        await asyncio.sleep(0.1)
    return "up to five connections"


async def _swallowed(world: World, rng: random.Random) -> str:
    gap = world.gaps[world.source]
    gap.swallow()
    await asyncio.sleep(rng.uniform(0.1, 1.5))
    if rng.random() < 0.5:
        gap.reset()
    gap.heal()
    return "for a while"


async def _cut_in_switch(world: World, rng: random.Random) -> str:
    """Connections to either engine end while a switch runs, Turnout's own among them."""
    gap = world.gaps[rng.choice(sorted(world.gaps))]
    switch = await world.begin_switch(world.target)
    await asyncio.sleep(rng.uniform(0.0, 0.5))
    gap.reset()
    return str((await world.ended(switch))["phase"]) if switch else "refused"


_PAIR: Final = frozenset({"pair"})
_ONE_SERVER: Final = frozenset({"one server"})
_PROMOTED: Final = frozenset({"pair", "postgresql"})
_FAILOVER: Final = frozenset({"pair", "failover"})

FAULTS: Final = {
    fault.name: fault
    for fault in (
        Fault("switch", _switch, is_unseen=True),
        Fault("immediate switch", _switch_at_once, is_unseen=False),
        Fault("rolling switch", _rolling_switch, is_unseen=True, needs=_ONE_SERVER),
        Fault("canary switch", _canary_switch, is_unseen=True, needs=_ONE_SERVER),
        Fault("two switches", _two_switches, is_unseen=True),
        Fault("stuck standby", _stuck_standby, is_unseen=True, needs=_PAIR),
        Fault("refused promotion", _refused_promotion, is_unseen=True, needs=_PROMOTED),
        Fault("hung promotion", _hung_promotion, is_unseen=True, needs=_PROMOTED),
        Fault("full disk", _full_disk, is_unseen=True, needs=frozenset({"small disk"})),
        Fault("frozen target", _frozen_target, is_unseen=False, needs=_PAIR),
        Fault("frozen source", _frozen_source, is_unseen=True),
        Fault("killed source", _killed_source, is_unseen=False),
        Fault("killed standby", _killed_standby, is_unseen=True, needs=_PAIR),
        Fault("killed worker", _killed_worker, is_unseen=False),
        Fault("killed supervisor", _killed_supervisor, is_unseen=True),
        Fault("reset", _reset, is_unseen=False),
        Fault("cut", _cut, is_unseen=False),
        Fault("swallowed", _swallowed, is_unseen=False),
        Fault("cut in a switch", _cut_in_switch, is_unseen=False),
        Fault("hung failover", _hung_failover, is_unseen=False, needs=_PROMOTED | _FAILOVER),
        Fault("lost source", _lost_source, is_unseen=False, needs=_FAILOVER),
        Fault("mute source", _mute_source, is_unseen=False, needs=_FAILOVER),
    )
}
