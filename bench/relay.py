"""Processor time per query and throughput: direct, Turnout, PgBouncer, HAProxy; in interleaved rounds of one run.

    make bench                      the whole table, about 15 minutes
    make bench ARGS="--quick"       16 clients only, about 2 minutes
    make bench ARGS="--json"

`pgbench -S` (one row by primary key, scale 10) on one machine: load, relay and server share the processors, so
throughput says how much the relay takes from the others, and processor time per query is the figure that carries over
to other machines. It is user and system time of the relay's process, read from /proc, divided by the queries that
passed; what the logins cost is measured apart and taken off. Each round runs every relay once in every row, in an order that
turns; a ratio is taken within a round, and the table shows the median over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rich.console import Console
from rich.table import Table

from bench import relays
from bench.relays import PoolMode, Relay, cpu_ns
from proxy.embedded import ServerFailed, Workspace
from proxy.embedded.postgres import SUPERUSER

SCALE: Final = 10
DATABASE: Final = "bench"

QueryMode = Literal["simple", "prepared"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what is asked of every relay that can do it."""

    pool_mode: PoolMode
    query_mode: QueryMode
    clients: int


@dataclass(frozen=True, slots=True)
class Run:
    """One pgbench through one relay."""

    relay: str
    tps: float
    us_per_query: float
    """Processor time of the relay; 0 on the direct way."""
    supervisor_us_per_query: float


@dataclass(frozen=True, slots=True)
class Done:
    """What pgbench said at its end."""

    transactions: int
    tps: float


class PgBench:
    """The load."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder

    async def initialize(self, port: int) -> None:
        await self._run("-i", "-q", "-s", str(SCALE), "-h", "127.0.0.1", "-p", str(port), "-U", SUPERUSER, DATABASE)

    async def select(self, port: int, row: Row, *limit: str) -> Done:
        """`pgbench -S`; `limit` is -T SECONDS or -t TRANSACTIONS. Raises ServerFailed if a query failed."""
        text = await self._run(
            *("-S", "-n", "-M", row.query_mode, "-c", str(row.clients), "-j", "1", *limit),
            *("-h", "127.0.0.1", "-p", str(port), "-U", SUPERUSER, DATABASE),
        )
        transactions = re.search(r"^number of transactions actually processed: (\d+)", text, re.MULTILINE)
        failed = re.search(r"^number of failed transactions: (\d+)", text, re.MULTILINE)
        tps = re.search(r"^tps = ([\d.]+) \(without initial", text, re.MULTILINE)
        if transactions is None or tps is None or (failed is not None and failed[1] != "0"):
            raise ServerFailed(f"pgbench says: {text}")
        return Done(transactions=int(transactions[1]), tps=float(tps[1]))

    async def _run(self, *args: str) -> str:
        process = await asyncio.create_subprocess_exec(
            self._program,
            *args,
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PGSSLMODE": "disable", "PGGSSENCMODE": "disable", "LC_ALL": "C"},
        )
        out, err = await process.communicate()
        if process.returncode != 0:
            raise ServerFailed(f"pgbench {' '.join(args)} ended with code {process.returncode}: {err.decode()[-800:]}")
        return out.decode()


async def measure(pgbench: PgBench, relay: Relay, row: Row, seconds: float) -> Run:
    """One row through one relay."""

    def spent() -> tuple[int, int]:
        return sum(map(cpu_ns, relay.pids)), cpu_ns(relay.supervisor) if relay.supervisor else 0

    before = spent()
    await pgbench.select(relay.port, row, "-t", "1")
    after_logins = spent()
    done = await pgbench.select(relay.port, row, "-T", str(seconds))
    after = spent()
    # The run logged in as well: one login and one query for each client are taken off.
    logins, logins_supervisor = (now - then for now, then in zip(after_logins, before, strict=True))
    queries, queries_supervisor = (now - then for now, then in zip(after, after_logins, strict=True))
    count = done.transactions - row.clients
    return Run(
        relay=relay.name,
        tps=done.tps,
        us_per_query=(queries - logins) / count / 1_000,
        supervisor_us_per_query=max(0, queries_supervisor - logins_supervisor) / count / 1_000,
    )


def plan(is_quick: bool) -> list[Row]:
    """The rows; transaction mode as a side dish."""
    clients = (16,) if is_quick else (1, 16, 100)
    rows = [Row("session", mode, count) for mode in ("simple", "prepared") for count in clients]
    return [*rows, Row("transaction", "simple", 16), Row("transaction", "prepared", 16)]


def takes_part(relay: Relay, row: Row) -> bool:
    """Whether a relay can do what the row asks; HAProxy has no pool, Debian 12's PgBouncer no prepared ones in it."""
    if row.pool_mode == "session":
        return True
    if row.query_mode == "prepared":
        return relay.name in ("direct", "Turnout")
    return relay.name != "HAProxy"


def median_ratio(rounds: Sequence[dict[str, Run]], relay: str, to: str, figure: str) -> float | None:
    """The median over the rounds of `relay`'s figure divided by that of `to` in the same round."""
    pairs = [(getattr(one[relay], figure), getattr(one[to], figure)) for one in rounds if relay in one and to in one]
    ratios = [mine / theirs for mine, theirs in pairs if theirs > 0]
    return statistics.median(ratios) if ratios else None


def summarize(results: dict[Row, list[dict[str, Run]]]) -> list[dict[str, object]]:
    """One record for each row and relay."""
    records: list[dict[str, object]] = []
    for row, rounds in results.items():
        for relay in rounds[0]:
            runs = [one[relay] for one in rounds]
            records.append(
                {
                    "pool_mode": row.pool_mode,
                    "query_mode": row.query_mode,
                    "clients": row.clients,
                    "relay": relay,
                    "rounds": len(runs),
                    "us_per_query": round(statistics.median(run.us_per_query for run in runs), 2),
                    "us_per_query_min": round(min(run.us_per_query for run in runs), 2),
                    "us_per_query_max": round(max(run.us_per_query for run in runs), 2),
                    "supervisor_us_per_query": round(statistics.median(run.supervisor_us_per_query for run in runs), 2),
                    "tps": round(statistics.median(run.tps for run in runs)),
                    "cpu_to_pgbouncer": rounded(median_ratio(rounds, relay, "PgBouncer", "us_per_query")),
                    "tps_to_pgbouncer": rounded(median_ratio(rounds, relay, "PgBouncer", "tps")),
                    "tps_to_direct": rounded(median_ratio(rounds, relay, "direct", "tps")),
                }
            )
    return records


def rounded(ratio: float | None) -> float | None:
    """Three digits are more than the noise leaves."""
    return None if ratio is None else round(ratio, 3)


def print_table(records: list[dict[str, object]]) -> None:
    """For people."""
    table = Table(title="pgbench -S; processor time of the relay per query, medians")
    for title in ("pool mode", "queries", "clients", "relay"):
        table.add_column(title)
    for title in ("µs/query", "min–max", "÷ PgBouncer", "tps", "÷ PgBouncer", "÷ direct", "supervisor µs"):
        table.add_column(title, justify="right")
    last = None
    for one in records:
        key = (one["pool_mode"], one["query_mode"], one["clients"])
        if last not in (None, key):
            table.add_section()
        is_direct = one["relay"] == "direct"
        table.add_row(
            *(("", "", "") if key == last else (str(part) for part in key)),
            str(one["relay"]),
            "" if is_direct else f"{one['us_per_query']:.1f}",
            "" if is_direct else f"{one['us_per_query_min']:.1f}–{one['us_per_query_max']:.1f}",
            "" if is_direct or one["cpu_to_pgbouncer"] is None else f"{one['cpu_to_pgbouncer']:.2f}",
            f"{one['tps']:,}",
            "" if one["tps_to_pgbouncer"] is None else f"{one['tps_to_pgbouncer']:.2f}",
            f"{one['tps_to_direct']:.2f}",
            f"{one['supervisor_us_per_query']:.1f}" if one["relay"] == "Turnout" else "",
        )
        last = key
    # A pipe has no width: let no column be cut.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table)


async def run(rows: list[Row], rounds: int, seconds: float) -> list[dict[str, object]]:
    """Start everything, measure, stop everything."""
    results: dict[Row, list[dict[str, Run]]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        workspace = stack.enter_context(Workspace("turnout-bench-"))
        engine = await stack.enter_async_context(relays.server(workspace))
        await engine.execute(f"create database {DATABASE}")
        pgbench = PgBench(engine.bin_dir / "pgbench", workspace.path)
        await pgbench.initialize(engine.port)
        direct = Relay(name="direct", port=engine.port)
        haproxy = await stack.enter_async_context(relays.haproxy(workspace, engine))
        ways: dict[PoolMode, list[Relay]] = {}
        for mode in dict.fromkeys(row.pool_mode for row in rows):
            pgbouncer = await stack.enter_async_context(relays.pgbouncer(workspace, engine, mode))
            turnout = await stack.enter_async_context(relays.turnout(workspace, engine, mode))
            ways[mode] = [direct, turnout, pgbouncer, haproxy]
        for number in range(rounds):
            for row in rows:
                print(f"round {number + 1} of {rounds}: {row}", file=sys.stderr)
                taking_part = [relay for relay in ways[row.pool_mode] if takes_part(relay, row)]
                turn = number % len(taking_part)
                order = taking_part[turn:] + taking_part[:turn]
                runs = {relay.name: await measure(pgbench, relay, row, seconds) for relay in order}
                results[row].append({relay.name: runs[relay.name] for relay in taking_part})
    return summarize(results)


def main() -> int:
    """The program. Exit code 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="bench.relay", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="16 clients only, short runs")
    parser.add_argument("--rounds", type=int, help="rounds (default 5, quick 3)")
    parser.add_argument("--seconds", type=int, help="length of each run (default 5, quick 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of the table")
    args = parser.parse_args()
    relays.allow_many_descriptors()
    try:
        records = asyncio.run(
            run(plan(args.quick), args.rounds or (3 if args.quick else 5), args.seconds or (2 if args.quick else 5))
        )
    except ServerFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(records, indent=2))
    else:
        print_table(records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
