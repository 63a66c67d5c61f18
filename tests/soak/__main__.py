"""`make soak`: faults of every kind thrown at a Turnout under load, for as long as asked.

    python -m tests.soak --minutes 60
    python -m tests.soak --server mariadb --pool-mode transaction --seed 7
    python -m tests.soak --faults "killed source,reset"
    python -m tests.soak --failover                      primaries that are lost for good, and come back as they were

Ends with code 1 and the complaints if anything was lost, doubled, or should not have been seen.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from typing import get_args

from tests.soak.faults import FAULTS
from tests.soak.switches import open_pair
from tests.soak.torture import Verdict, torture
from tests.soak.world import PoolMode, Server, World


async def _run(options: argparse.Namespace) -> Verdict:
    pair = await open_pair(options.server)
    try:
        folder = pair.workspace.folder("turnout")
        async with World.open(
            options.server,
            pair,
            folder,
            pool_mode=options.pool_mode,
            workers=options.workers,
            fails_over=options.failover,
        ) as world:
            return await torture(
                world,
                seed=options.seed,
                seconds=options.minutes * 60,
                faults=options.faults,
                writers=options.writers,
                say=_say,
            )
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
    parser.add_argument("--server", choices=get_args(Server), default="postgresql")
    parser.add_argument("--pool-mode", choices=get_args(PoolMode), default="session")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=None, help="decides the order and the moments of the faults")
    parser.add_argument(
        "--failover", action="store_true", help="PostgreSQL: the standby takes over when the primary fails"
    )
    parser.add_argument("--faults", type=_faults, default=[], help=f"some of: {', '.join(FAULTS)}")
    options = parser.parse_args()
    if options.failover and options.server != "postgresql":
        parser.error("--failover is for PostgreSQL only")
    if not options.failover and any(FAULTS[name].needs_failover for name in options.faults):
        parser.error("these faults need --failover")
    if options.seed is None:
        options.seed = secrets.randbelow(1_000_000)
    _say(f"{options.server}, {options.pool_mode} mode, seed {options.seed}")
    verdict = asyncio.run(_run(options))
    _say(f"thrown: {dict(verdict.thrown)}")
    _say(f"transactions: {verdict.outcomes}; what clients were told: {dict(verdict.errors)}")
    for complaint in verdict.complaints:
        sys.stderr.write(f"seed {verdict.seed}: {complaint}" + "\n")
    return 1 if verdict.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
