"""Processor time per query and throughput before a MySQL or MariaDB server, in interleaved rounds.

    python -m bench.mysql                               MariaDB, 16 threads, about 5 minutes
    python -m bench.mysql --server mysql --rows session/text/16 --relays floor,Turnout

Direct, a floor in C, Turnout, HAProxy and MySQL Router under sysbench's `oltp_point_select`: one row by primary key, as
text or by a prepared statement. What is measured, and how a ratio is taken, is the same as in `bench.relay`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, get_args

from rich.table import Table

from bench import relays, results
from bench.programs import haproxy_version, program
from bench.relay import Done, Run, measured_run, median, ratios
from bench.relays import PoolMode, Relay
from bench.rows import Choice, Row
from proxy.embedded import MariaDBServer, MySQLServer, ServerFailed, Setup, Workspace
from proxy.embedded.mysql import PASSWORD

TABLE_ROWS: Final = 100_000
USER: Final = "app"
DATABASE: Final = "app"

QUERY_MODES: Final = ("text", "prepared")
RELAYS: Final = ("direct", "floor", "Turnout", "HAProxy", "MySQL Router")
CHOICE: Final = Choice(QUERY_MODES, RELAYS, clients_max=500)

ROWS: Final = tuple(Row(pool_mode, mode, 16) for pool_mode in get_args(PoolMode) for mode in QUERY_MODES)


class Sysbench:
    """The load."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder

    async def prepare(self, port: int) -> None:
        await self._run(port, "prepare")

    async def select(self, port: int, row: Row, *limit: str) -> Done:
        """`limit` is `--time=S` or `--events=N`. Raises ServerFailed if a query failed."""
        ps_mode = "auto" if row.query_mode == "prepared" else "disable"
        text = await self._run(port, "run", f"--threads={row.clients}", f"--db-ps-mode={ps_mode}", *limit)
        transactions = re.search(r"transactions:\s+(\d+)\s+\(([\d.]+) per sec", text)
        ignored = re.search(r"ignored errors:\s+(\d+)", text)
        if transactions is None or ignored is None or ignored[1] != "0":
            raise ServerFailed(f"sysbench says: {text}")
        return Done(transactions=int(transactions[1]), tps=float(transactions[2]))

    async def _run(self, port: int, command: str, *more: str) -> str:
        process = await asyncio.create_subprocess_exec(
            self._program,
            *("oltp_point_select", "--db-driver=mysql", "--mysql-host=127.0.0.1", f"--mysql-port={port}"),
            *(f"--mysql-user={USER}", f"--mysql-password={PASSWORD}", f"--mysql-db={DATABASE}"),
            *("--tables=1", f"--table-size={TABLE_ROWS}", "--mysql-ssl=off", *more, command),
            cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if process.returncode != 0:
            raise ServerFailed(
                f"sysbench {command} ended with code {process.returncode}: {(out + err).decode()[-800:]}"
            )
        return out.decode()


def turnout_setup(server: MariaDBServer | MySQLServer, pool_mode: PoolMode) -> Setup:
    """The config of Turnout before `server`."""
    return Setup(
        protocol="mysql",
        engines={"only": server.address},
        admin_user="turnout",
        admin_password=PASSWORD,
        users={USER: PASSWORD},
        auth_method="mysql_native_password" if isinstance(server, MariaDBServer) else "caching_sha2_password",
        pool_mode=pool_mode,
        databases=[DATABASE],
        log_level="warning",
    )


def summarize(measured: dict[Row, list[dict[str, Run]]], flavour: str) -> list[results.Record]:
    """One record for each row and relay."""
    return [
        {
            "server": flavour,
            "pool_mode": row.pool_mode,
            "query_mode": row.query_mode,
            "threads": row.clients,
            "relay": relay,
            "rounds": len(rounds),
            "us_per_query": round(statistics.median(one[relay].us_per_query for one in rounds), 2),
            "tps": round(statistics.median(one[relay].tps for one in rounds)),
            **{
                f"cpu_to_{name}": median(ratios(rounds, relay, other, "us_per_query"))
                for name, other in (("floor", "floor"), ("haproxy", "HAProxy"), ("router", "MySQL Router"))
            },
            "tps_to_direct": median(ratios(rounds, relay, "direct", "tps")),
        }
        for row, rounds in measured.items()
        for relay in rounds[0]
    ]


def print_table(records: list[results.Record], versions: results.Record) -> None:
    """For people."""
    table = Table(
        title="sysbench oltp_point_select: processor time of the relay per query, medians\n"
        + ", ".join(map(str, versions.values()))
    )
    for title in ("pool mode", "queries", "threads", "relay"):
        table.add_column(title, no_wrap=True)
    for title in ("µs/query", "÷ floor", "÷ HAProxy", "÷ Router", "tps", "÷ direct"):
        table.add_column(title, justify="right")
    last = None
    for one in records:
        key = (one["pool_mode"], one["query_mode"], one["threads"])
        if last not in (None, key):
            table.add_section()
        costs = one["relay"] != "direct"
        table.add_row(
            *(("", "", "") if key == last else (str(part) for part in key)),
            str(one["relay"]),
            f"{one['us_per_query']:.1f}" if costs else "",
            *(
                f"{one[name]:.2f}" if costs and one[name] is not None else ""
                for name in ("cpu_to_floor", "cpu_to_haproxy", "cpu_to_router")
            ),
            f"{one['tps']:,}",
            f"{one['tps_to_direct']:.2f}" if one["tps_to_direct"] is not None else "",
        )
        last = key
    results.show(table)


async def run(
    rows: Sequence[Row], names: Sequence[str], kind: type[MariaDBServer | MySQLServer], rounds: int, seconds: float
) -> list[results.Record]:
    """Start everything, measure, stop everything. The relays that have no pool run in every row."""
    measured: dict[Row, list[dict[str, Run]]] = {row: [] for row in rows}
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        workspace = stack.enter_context(Workspace("turnout-bench-"))
        server = await kind.create(workspace, "server", durable=False)
        await server.start()
        stack.push_async_callback(server.kill)
        load = Sysbench(program("sysbench", "sysbench"), workspace.path)
        await load.prepare(server.port)
        others: list[Relay] = []
        if "direct" in names:
            others.append(Relay(name="direct", port=server.port))
        if "floor" in names:
            others.append(await enter(relays.floor(workspace, server.port)))
        if "HAProxy" in names:
            others.append(await enter(relays.haproxy(workspace, server.port)))
        if "MySQL Router" in names:
            others.append(await enter(relays.mysql_router(workspace, server.port)))
        for pool_mode in dict.fromkeys(row.pool_mode for row in rows):
            async with AsyncExitStack() as group:
                running = list(others)
                if "Turnout" in names:
                    setup = turnout_setup(server, pool_mode)
                    running.append(await group.enter_async_context(relays.turnout_of(setup, workspace)))
                for number in range(rounds):
                    for row in (row for row in rows if row.pool_mode == pool_mode):
                        print(f"round {number + 1} of {rounds}: {row}", file=sys.stderr)
                        if number == 0:
                            for relay in running:
                                await load.select(relay.port, row, f"--events={row.clients}", "--time=60")
                        turn = number % len(running)
                        order = running[turn:] + running[:turn]
                        runs = {
                            relay.name: await measured_run(
                                relay,
                                row.clients,
                                lambda relay=relay, row=row: load.select(  # type: ignore[misc]
                                    relay.port, row, f"--events={row.clients}", "--time=60"
                                ),
                                lambda relay=relay, row=row: load.select(  # type: ignore[misc]
                                    relay.port, row, "--events=0", f"--time={seconds:g}"
                                ),
                            )
                            for relay in order
                        }
                        measured[row].append({name: runs[name] for name in RELAYS if name in runs})
    return summarize(measured, server.flavour)


def main() -> int:
    """The program. Exit code 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="bench.mysql", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--server", choices=("mariadb", "mysql"), default="mariadb")
    parser.add_argument("--rows", type=CHOICE.rows, default=list(ROWS))
    parser.add_argument("--relays", type=CHOICE.names, default=list(RELAYS), help=f"these only, of {','.join(RELAYS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="length of each run")
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of the table")
    args = parser.parse_args()
    relays.allow_many_descriptors()
    try:
        versions = {"server": args.server}
        if "HAProxy" in args.relays:
            versions["haproxy"] = haproxy_version(program("haproxy", "haproxy"))
        kind = MariaDBServer if args.server == "mariadb" else MySQLServer
        records = asyncio.run(run(args.rows, args.relays, kind, args.rounds, args.seconds))
    except ServerFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    results.save("mysql", records, keys=("server", "pool_mode", "query_mode", "threads", "relay"), versions=versions)
    if args.json:
        print(json.dumps(records, indent=2))
    else:
        print_table(records, versions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
