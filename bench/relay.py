"""Processor time per query and throughput: direct, a floor in C, Turnout, PgBouncer, HAProxy; in interleaved rounds.

    python -m bench.relay --quick                                     16 clients only, about 2 minutes
    python -m bench.relay                                             all rows, about 25 minutes
    python -m bench.relay --rows session/simple/16,transaction/prepared/100 --relays Turnout,PgBouncer
    python -m bench.relay --rows session/simple/16/tls

`pgbench -S` (one row by primary key, scale 10) on one machine: load, relay and server share the processors, so
throughput says how much the relay takes from the others, and processor time per query is the figure that carries over
to other machines. It is user and system time of the relay's processes, read from /proc, divided by the queries that
passed; what the logins cost is measured apart and taken off. Each round runs every relay once in every row, in an order
that turns; a ratio is taken within a round, and the table shows the median over the rounds, with the lowest and highest.

The floor is `floor.c`: it moves the bytes and looks at none of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from rich.table import Table

from bench import relays, results
from bench.programs import PgBouncer, find_pgbouncer, haproxy_version, program
from bench.relays import PoolMode, Relay, Way, cpu_ns
from bench.rows import Choice, Row
from proxy.embedded import PostgresServer, ServerFailed, Workspace
from proxy.embedded.postgres import SUPERUSER, debian_bin

SCALE: Final = 10
DATABASE: Final = "bench"
MANY: Final = 1_000
"""Clients from which on rows have relays and backends of their own, so that the others do not carry theirs."""

QUERY_MODES: Final = ("simple", "extended", "prepared")
RELAYS: Final = ("direct", "floor", "Turnout", "PgBouncer", "HAProxy")
CHOICE: Final = Choice(QUERY_MODES, RELAYS, clients_max=1_500, takes_tls=True)


@dataclass(frozen=True, slots=True)
class Run:
    """One load through one relay."""

    relay: str
    tps: float
    us_per_query: float
    """Processor time of the relay; 0 on the direct way."""
    supervisor_us_per_query: float


@dataclass(frozen=True, slots=True)
class Done:
    """What the load said at its end."""

    transactions: int
    tps: float


class PgBench:
    """The load."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder

    async def initialize(self, port: int) -> None:
        await self._run(
            *("-i", "-q", "-s", str(SCALE), "-h", "127.0.0.1", "-p", str(port), "-U", SUPERUSER, DATABASE), tls=False
        )

    async def select(self, port: int, row: Row, *limit: str) -> Done:
        """`pgbench -S`; `limit` is -T SECONDS or -t TRANSACTIONS. Raises ServerFailed if a query failed."""
        text = await self._run(
            *("-S", "-n", "-M", row.query_mode, "-c", str(row.clients), "-j", "1", *limit),
            *("-h", "127.0.0.1", "-p", str(port), "-U", SUPERUSER, DATABASE),
            tls=row.tls,
        )
        transactions = re.search(r"^number of transactions actually processed: (\d+)", text, re.MULTILINE)
        failed = re.search(r"^number of failed transactions: (\d+)", text, re.MULTILINE)
        tps = re.search(r"^tps = ([\d.]+) \(without initial", text, re.MULTILINE)
        if transactions is None or tps is None or (failed is not None and failed[1] != "0"):
            raise ServerFailed(f"pgbench says: {text}")
        return Done(transactions=int(transactions[1]), tps=float(tps[1]))

    async def _run(self, *args: str, tls: bool) -> str:
        process = await asyncio.create_subprocess_exec(
            self._program,
            *args,
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PGSSLMODE": "require" if tls else "disable", "PGGSSENCMODE": "disable", "LC_ALL": "C"},
        )
        out, err = await process.communicate()
        if process.returncode != 0:
            raise ServerFailed(f"pgbench {' '.join(args)} ended with code {process.returncode}: {err.decode()[-800:]}")
        return out.decode()


async def measured_run(
    relay: Relay, clients: int, login: Callable[[], Awaitable[Done]], load: Callable[[], Awaitable[Done]]
) -> Run:
    """`load` through one relay; `login` is as many logins as it does, with one query each, which are taken off."""

    def spent() -> tuple[int, int]:
        return sum(map(cpu_ns, relay.pids)), cpu_ns(relay.supervisor) if relay.supervisor else 0

    before = spent()
    await login()
    after_logins = spent()
    done = await load()
    after = spent()
    logins, logins_supervisor = (now - then for now, then in zip(after_logins, before, strict=True))
    queries, queries_supervisor = (now - then for now, then in zip(after, after_logins, strict=True))
    count = done.transactions - clients
    return Run(
        relay=relay.name,
        tps=done.tps,
        us_per_query=(queries - logins) / count / 1_000,
        supervisor_us_per_query=max(0, queries_supervisor - logins_supervisor) / count / 1_000,
    )


async def measure(pgbench: PgBench, relay: Relay, row: Row, seconds: float) -> Run:
    """One row through one relay."""
    return await measured_run(
        relay,
        row.clients,
        lambda: pgbench.select(relay.port, row, "-t", "1"),
        lambda: pgbench.select(relay.port, row, "-T", f"{seconds:g}"),
    )


def plan(is_quick: bool) -> list[Row]:
    """The rows that are measured when none are named."""
    if is_quick:
        return [
            Row("session", "simple", 16),
            Row("session", "prepared", 16),
            Row("transaction", "simple", 16),
            Row("transaction", "prepared", 16),
            Row("session", "simple", 16, tls=True),
        ]
    return [
        *(
            Row(pool_mode, query_mode, clients)
            for pool_mode in get_args(PoolMode)
            for query_mode in QUERY_MODES
            for clients in (1, 16, 100, MANY)
        ),
        *(
            Row("session", query_mode, clients, tls=True)
            for query_mode in ("simple", "prepared")
            for clients in (16, 100)
        ),
        Row("transaction", "prepared", 16, tls=True),
    ]


def takes_part(relay: str, row: Row, which: PgBouncer) -> bool:
    """Whether a relay can do what the row asks. Floor and HAProxy have no pool; we give neither of them TLS."""
    if row.pool_mode == "session" and not row.tls:
        return True
    if relay == "PgBouncer" and row.pool_mode == "transaction" and row.query_mode == "prepared":
        return which.prepares_in_transactions
    return relay in ("Turnout", "PgBouncer") or (relay == "direct" and not row.tls)


def ratios(rounds: Sequence[dict[str, Run]], relay: str, to: str, figure: str) -> list[float]:
    """`relay`'s figure divided by that of `to` in the same round."""
    pairs = [(getattr(one[relay], figure), getattr(one[to], figure)) for one in rounds if relay in one and to in one]
    return [mine / theirs for mine, theirs in pairs if theirs > 0]


def median(figures: Sequence[float]) -> float | None:
    """Three digits are more than the noise leaves."""
    return round(statistics.median(figures), 3) if figures else None


def summarize(measured: dict[Row, list[dict[str, Run]]]) -> list[results.Record]:
    """One record for each row and relay."""
    records: list[results.Record] = []
    for row, rounds in measured.items():
        for relay in rounds[0]:
            runs = [one[relay] for one in rounds]
            to_pgbouncer = ratios(rounds, relay, "PgBouncer", "us_per_query")
            to_floor = ratios(rounds, relay, "floor", "us_per_query")
            records.append(
                {
                    "pool_mode": row.pool_mode,
                    "query_mode": row.query_mode,
                    "clients": row.clients,
                    "tls": row.tls,
                    "relay": relay,
                    "rounds": len(runs),
                    "us_per_query": round(statistics.median(run.us_per_query for run in runs), 2),
                    "us_per_query_min": round(min(run.us_per_query for run in runs), 2),
                    "us_per_query_max": round(max(run.us_per_query for run in runs), 2),
                    "supervisor_us_per_query": round(statistics.median(run.supervisor_us_per_query for run in runs), 2),
                    "tps": round(statistics.median(run.tps for run in runs)),
                    "cpu_to_pgbouncer": median(to_pgbouncer),
                    "cpu_to_pgbouncer_min": round(min(to_pgbouncer), 3) if to_pgbouncer else None,
                    "cpu_to_pgbouncer_max": round(max(to_pgbouncer), 3) if to_pgbouncer else None,
                    "cpu_to_floor": median(to_floor),
                    "tps_to_pgbouncer": median(ratios(rounds, relay, "PgBouncer", "tps")),
                    "tps_to_direct": median(ratios(rounds, relay, "direct", "tps")),
                }
            )
    return records


def print_table(records: list[results.Record], versions: results.Record) -> None:
    """For people."""
    table = Table(
        title="pgbench -S: processor time of the relay per query, medians\n" + ", ".join(map(str, versions.values()))
    )
    for title in ("pool mode", "queries", "clients", "relay"):
        table.add_column(title, no_wrap=True)
    for title in (
        "µs/query",
        "min–max",
        "÷ PgBouncer",
        "min–max",
        "÷ floor",
        "tps",
        "÷ PgBouncer",
        "÷ direct",
        "superv. µs",
    ):
        table.add_column(title, justify="right")
    last = None
    for one in records:
        key = (one["pool_mode"], one["query_mode"] + (" TLS" if one["tls"] else ""), one["clients"])
        if last not in (None, key):
            table.add_section()
        costs = one["relay"] != "direct"

        def figure(name: str, digits: int, one: results.Record = one, *, shown: bool = costs) -> str:
            return f"{one[name]:.{digits}f}" if shown and one[name] is not None else ""

        to_pgbouncer = costs and one["relay"] != "PgBouncer" and one["cpu_to_pgbouncer"] is not None
        table.add_row(
            *(("", "", "") if key == last else (str(part) for part in key)),
            str(one["relay"]),
            figure("us_per_query", 1),
            f"{one['us_per_query_min']:.1f}–{one['us_per_query_max']:.1f}" if costs else "",
            figure("cpu_to_pgbouncer", 2),
            f"{one['cpu_to_pgbouncer_min']:.2f}–{one['cpu_to_pgbouncer_max']:.2f}" if to_pgbouncer else "",
            figure("cpu_to_floor", 2),
            f"{one['tps']:,}",
            figure("tps_to_pgbouncer", 2, shown=True),
            figure("tps_to_direct", 2, shown=True),
            figure("supervisor_us_per_query", 1, shown=one["relay"] == "Turnout"),
        )
        last = key
    results.show(table)


class Lab:
    """Server, load and whatever relays a group of rows needs."""

    def __init__(self, workspace: Workspace, engine: PostgresServer, names: Sequence[str], which: PgBouncer) -> None:
        self._workspace = workspace
        self._engine = engine
        self._names = names
        self._which = which

    async def relays_for(self, stack: AsyncExitStack, way: Way) -> list[Relay]:
        """Those of the wanted relays that any row of this way has work for, running until `stack` is closed."""
        workspace, engine, enter = self._workspace, self._engine, stack.enter_async_context
        found: list[Relay] = []
        for name in self._names:
            if not any(takes_part(name, Row(way.pool_mode, mode, 1, way.tls), self._which) for mode in QUERY_MODES):
                continue
            match name:
                case "direct":
                    found.append(Relay(name="direct", port=engine.port))
                case "floor":
                    found.append(await enter(relays.floor(workspace, engine.port)))
                case "Turnout":
                    found.append(await enter(relays.turnout(workspace, engine, way)))
                case "PgBouncer":
                    found.append(await enter(relays.pgbouncer(workspace, engine, way, self._which)))
                case "HAProxy":
                    found.append(await enter(relays.haproxy(workspace, engine.port)))
                case _:
                    raise ValueError(f"no relay is called {name}")
        return found


async def run(
    rows: Sequence[Row], names: Sequence[str], which: PgBouncer, rounds: int, seconds: float
) -> list[results.Record]:
    """Start everything, measure, stop everything."""
    measured: dict[Row, list[dict[str, Run]]] = {row: [] for row in rows}
    groups: defaultdict[tuple[Way, bool], list[Row]] = defaultdict(list)
    for row in rows:
        groups[Way(row.pool_mode, row.tls), row.clients >= MANY].append(row)
    async with AsyncExitStack() as stack:
        workspace = stack.enter_context(Workspace("turnout-bench-"))
        # With many clients in session mode every pool keeps a backend for each.
        engine = await stack.enter_async_context(relays.server(workspace, 2_000 + 3 * max(row.clients for row in rows)))
        await engine.execute(f"create database {DATABASE}")
        pgbench = PgBench(engine.bin_dir / "pgbench", workspace.path)
        await pgbench.initialize(engine.port)
        if any(row.tls for row in rows):
            # The one beside the embedded server has no TLS.
            pgbench = PgBench(debian_bin() / "pgbench", workspace.path)
        lab = Lab(workspace, engine, names, which)
        for (way, _), members in groups.items():
            async with AsyncExitStack() as group:
                running = await lab.relays_for(group, way)
                for number in range(rounds):
                    for row in members:
                        print(f"round {number + 1} of {rounds}: {row}", file=sys.stderr)
                        taking_part = [relay for relay in running if takes_part(relay.name, row, which)]
                        if number == 0:
                            # Backends are opened now, so that the logins that are taken off cost what the others do.
                            for relay in taking_part:
                                await pgbench.select(relay.port, row, "-t", "1")
                        turn = number % len(taking_part)
                        order = taking_part[turn:] + taking_part[:turn]
                        runs = {relay.name: await measure(pgbench, relay, row, seconds) for relay in order}
                        measured[row].append({relay.name: runs[relay.name] for relay in taking_part})
    return summarize(measured)


def main() -> int:
    """The program. Exit code 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="bench.relay", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="16 clients, no HAProxy, nobody directly, short runs")
    parser.add_argument("--rows", type=CHOICE.rows, help="these only, e.g. session/simple/16,session/prepared/100/tls")
    parser.add_argument("--relays", type=CHOICE.names, help=f"these only, of {','.join(RELAYS)}")
    parser.add_argument("--rounds", type=int, default=0, help="rounds (default 3, quick 5)")
    parser.add_argument("--seconds", type=float, default=0, help="length of each run (default 3, quick 2)")
    parser.add_argument("--add", action="store_true", help="keep the other rows of the results file")
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of the table")
    args = parser.parse_args()
    relays.allow_many_descriptors()
    try:
        which = find_pgbouncer()
        names = args.relays or (("floor", "Turnout", "PgBouncer") if args.quick else RELAYS)
        versions = {"pgbouncer": str(which)}
        if "HAProxy" in names:
            versions["haproxy"] = haproxy_version(program("haproxy", "haproxy"))
        print(", ".join(versions.values()), file=sys.stderr)
        records = asyncio.run(
            run(
                args.rows or plan(args.quick),
                names,
                which,
                args.rounds or (5 if args.quick else 3),
                args.seconds or (2 if args.quick else 3),
            )
        )
    except ServerFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    results.save(
        "relay",
        records,
        keys=("pool_mode", "query_mode", "clients", "tls", "relay"),
        versions=versions,
        adds=args.add or args.quick,
    )
    if args.json:
        print(json.dumps(records, indent=2))
    else:
        print_table(records, versions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
