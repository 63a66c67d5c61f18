"""`make soak`: faults of every kind thrown at a Turnout under load, for as long as asked.

    python -m tests.soak --minutes 60                    a quarter of the time each of `LEGS`
    python -m tests.soak --server mariadb --pool-mode transaction --seed 7
    python -m tests.soak --server postgresql --faults "killed source,reset"
    python -m tests.soak --server mysql --failover       primaries that are lost for good, and come back as they were
    python -m tests.soak --server postgresql --one-server        two addresses: rolling and canary switches

Ends with code 1 and the complaints if anything was lost, doubled, or should not have been seen; Turnout's log is kept then.
A full disk is among the faults only for root, who may mount one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from tests.soak.faults import FAULTS
from tests.soak.switches import open_pair
from tests.soak.torture import Verdict, torture
from tests.soak.world import PoolMode, Server, World, abilities

MAY_MOUNT: Final = os.geteuid() == 0


@dataclass(frozen=True, slots=True)
class Leg:
    """A world of one kind, for a while."""

    server: Server
    pool_mode: PoolMode
    fails_over: bool
    is_one_server: bool

    def __str__(self) -> str:
        kind = "one server" if self.is_one_server else "failover" if self.fails_over else "pair"
        return f"{self.server}, {self.pool_mode} mode, {kind}"


LEGS: Final = (
    Leg("postgresql", "session", fails_over=True, is_one_server=False),
    Leg("mariadb", "transaction", fails_over=True, is_one_server=False),
    Leg("postgresql", "transaction", fails_over=False, is_one_server=True),
    Leg("mysql", "session", fails_over=True, is_one_server=False),
)
"""What is run if no server is asked for."""


async def _run(leg: Leg, options: argparse.Namespace, seed: int, seconds: float) -> Verdict:
    pair = await open_pair(leg.server, keeps_up=leg.fails_over)
    try:
        folder = pair.workspace.folder("turnout")
        async with World.open(
            leg.server,
            pair,
            folder,
            pool_mode=leg.pool_mode,
            workers=options.workers,
            fails_over=leg.fails_over,
            is_one_server=leg.is_one_server,
            mounts=MAY_MOUNT,
        ) as world:
            verdict = await torture(
                world,
                seed=seed,
                seconds=seconds,
                faults=options.faults,
                writers=options.writers,
                say=_say,
            )
            if verdict.complaints:
                words = str(leg).replace(",", "").replace(" ", "-")
                kept = Path(tempfile.gettempdir()) / f"turnout-soak-{words}-{seed}.log"
                shutil.copyfile(world.turnout.log, kept)
                _say(f"Turnout's log: {kept}")
            return verdict
    finally:
        await pair.close()


def _faults(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in FAULTS]:
        raise argparse.ArgumentTypeError(f"no such fault: {unknown[0]}; there are {', '.join(FAULTS)}")
    return names


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="throw faults at a Turnout under load")
    parser.add_argument(
        "--server", choices=get_args(Server), help="only this one; else one of each kind after the other"
    )
    parser.add_argument("--pool-mode", choices=get_args(PoolMode), default="session")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=None, help="decides the order and the moments of the faults")
    parser.add_argument("--failover", action="store_true", help="the standby takes over when the primary fails")
    parser.add_argument("--one-server", action="store_true", help="two addresses of one server")
    parser.add_argument("--faults", type=_faults, default=[], help=f"some of: {', '.join(FAULTS)}")
    options = parser.parse_args()
    legs = list(LEGS)
    if options.server is not None:
        legs = [Leg(options.server, options.pool_mode, options.failover, options.one_server)]
    elif options.failover or options.one_server or options.faults:
        parser.error("say which --server")
    if options.failover and options.one_server:
        parser.error("there is nobody to take over from one server")
    for leg in legs:
        has = abilities(leg.server, is_one_server=leg.is_one_server, fails_over=leg.fails_over, mounts=MAY_MOUNT)
        for name in options.faults:
            if lacking := FAULTS[name].needs - has:
                parser.error(f"{name} needs: {', '.join(sorted(lacking))}")
    if options.seed is None:
        options.seed = secrets.randbelow(1_000_000)
    thrown: Counter[str] = Counter()
    complaints: list[str] = []
    for leg in legs:
        over = time.monotonic() + options.minutes * 60 / len(legs)
        seed = options.seed
        while (left := over - time.monotonic()) > 0:
            # A world that was complained about is left, and the rest of the time is another one's.
            _say(f"{leg}, seed {seed}")
            verdict = asyncio.run(_run(leg, options, seed, left))
            _say(f"thrown: {dict(verdict.thrown)}")
            _say(f"transactions: {verdict.outcomes}; what clients were told: {dict(verdict.errors)}")
            for complaint in verdict.complaints:
                complaints.append(f"{leg}, seed {seed}: {complaint}")
                sys.stderr.write(complaints[-1] + "\n")
            thrown += verdict.thrown
            seed += 1
    _say(f"all thrown: {dict(sorted(thrown.items()))}")
    _say("\n".join([f"{len(complaints)} complaints", *complaints]))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
