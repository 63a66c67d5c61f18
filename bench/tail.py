"""How long the slow answers take: p50, p99 and p99.9 with 1,000 clients at a fixed rate, in interleaved rounds.

    python -m bench.tail [--clients 1000] [--rate 5000] [--rounds 3] [--seconds 4] [--json]

The load is `load.c`: questions are due at times that do not depend on the answers, and an answer's time is counted from
when its question was due, so that a stall is seen by everything that was due meanwhile. The rate is far below what the
machine can do: what is shown is what each way adds and how unevenly, not where it saturates.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import json
import statistics
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from rich.table import Table

from bench import relays, results
from bench.programs import PgBouncer, compile_c, find_pgbouncer
from bench.relay import DATABASE, PgBench
from bench.relays import PoolMode, Relay, Way
from bench.results import ratio
from proxy.embedded import ServerFailed, Workspace
from proxy.embedded.postgres import SUPERUSER

FIGURES: Final = {"p50_us": 0.50, "p99_us": 0.99, "p99.9_us": 0.999}


async def measure(load: Path, relay: Relay, clients: int, rate: int, seconds: float) -> dict[str, float]:
    """Microseconds by figure. Raises ServerFailed."""
    process = await asyncio.create_subprocess_exec(
        *(str(load), str(relay.port), str(clients), str(rate), f"{seconds:g}", SUPERUSER, DATABASE),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        raise ServerFailed(f"the load through {relay.name} failed: {err.decode()[-500:]}")
    dropped = int(err.split()[-1])
    if dropped:
        raise ServerFailed(f"{relay.name} is too slow for {rate} questions a second: {dropped} had to be left out")
    took = sorted(array.array("I", out)[1::2])
    return {name: float(took[min(len(took) - 1, int(len(took) * part))]) for name, part in FIGURES.items()}


async def run(which: PgBouncer, clients: int, rate: int, rounds: int, seconds: float) -> list[results.Record]:
    """Both pool modes, one after the other."""
    records: list[results.Record] = []
    async with AsyncExitStack() as stack:
        workspace = stack.enter_context(Workspace("turnout-bench-"))
        load = compile_c("load", workspace)
        engine = await stack.enter_async_context(relays.server(workspace, 1_000 + 3 * clients))
        await engine.execute(f"create database {DATABASE}")
        await PgBench(engine.bin_dir / "pgbench", workspace.path).initialize(engine.port)
        modes: tuple[PoolMode, ...] = ("session", "transaction")
        for mode in modes:
            async with AsyncExitStack() as group:
                way = Way(mode)
                running = [Relay(name="direct", port=engine.port)]
                if mode == "session":
                    running.append(await group.enter_async_context(relays.floor(workspace, engine.port)))
                running.append(await group.enter_async_context(relays.turnout(workspace, engine, way)))
                running.append(await group.enter_async_context(relays.pgbouncer(workspace, engine, way, which)))
                seen: dict[str, list[dict[str, float]]] = {relay.name: [] for relay in running}
                for number in range(rounds):
                    turn = number % len(running)
                    for relay in running[turn:] + running[:turn]:
                        print(f"tail: {mode} mode, round {number + 1} of {rounds}: {relay.name}", file=sys.stderr)
                        seen[relay.name].append(await measure(load, relay, clients, rate, seconds))
            medians = {
                name: {figure: statistics.median(one[figure] for one in rounds_of) for figure in FIGURES}
                for name, rounds_of in seen.items()
            }
            for name, figures in medians.items():
                records.append(
                    {
                        "pool_mode": mode,
                        "clients": clients,
                        "rate": rate,
                        "relay": name,
                        "rounds": rounds,
                        **{figure: round(value) for figure, value in figures.items()},
                        **{f"{figure}_max": round(max(one[figure] for one in seen[name])) for figure in FIGURES},
                        **{
                            f"{figure}_to_pgbouncer": ratio(value, medians["PgBouncer"][figure])
                            for figure, value in figures.items()
                        },
                    }
                )
    return records


def print_table(records: list[results.Record], versions: results.Record) -> None:
    """For people."""
    one = records[0]
    table = Table(
        title=f"{one['clients']:,} clients, {one['rate']:,} questions a second in all, medians of {one['rounds']} rounds"
        f" ({', '.join(versions.values())})"
    )
    for title in ("pool mode", "way"):
        table.add_column(title, no_wrap=True)
    for name in FIGURES:
        table.add_column(name.replace("_us", " µs"), justify="right")
        table.add_column("÷ PgBouncer", justify="right")
    for one in records:
        cells = [(f"{one[name]:,}", f"{one[f'{name}_to_pgbouncer']:.2f}") for name in FIGURES]
        table.add_row(one["pool_mode"], one["relay"], *(text for cell in cells for text in cell))
    results.show(table)


def main() -> int:
    """The program. Exit code 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="bench.tail", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--rate", type=int, default=5_000, help="questions a second, of all clients (default 5000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of the table")
    args = parser.parse_args()
    relays.allow_many_descriptors()
    try:
        which = find_pgbouncer()
        records = asyncio.run(run(which, args.clients, args.rate, args.rounds, args.seconds))
    except ServerFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    versions = {"pgbouncer": str(which)}
    results.save("tail", records, keys=("pool_mode", "relay"), versions=versions)
    if args.json:
        print(json.dumps(records, indent=2))
    else:
        print_table(records, versions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
