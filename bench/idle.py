"""What clients cost that do nothing but be there: memory of an idle one, and logins per second.

    python -m bench.idle [--clients 5000] [--memory | --logins] [--json]

Memory is what a number of clients add to the proxy's own: private pages of the processes that move bytes
(smaps_rollup), without the kernel's socket buffers. Each client has logged in, asked one query and waits. In transaction
mode it has no backend; in session mode it keeps one, so that the figure there is of a client *and* its backend, and there
are fewer of them (every one is a process of the server). `bare reader` is a socket, a uvloop reader and an object.

Logins are by SCRAM-SHA-256 against a stored verifier, in transaction mode, with the server's backends open already. The
load is `logins.c`: a client in Python costs more than PgBouncer does, which would then wait for its clients. `busy` is the
part of one processor that a relay took: where it is well under 1, the load was what bounded the rate, and not the relay.
One processor's worth of logins follows from the processor time of each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Final

from rich.table import Table

from bench import relays, results
from bench.clients import Client, ScramUser
from bench.programs import PgBouncer, compile_c, find_pgbouncer
from bench.relays import Relay, Way, cpu_ns
from bench.results import ratio
from proxy.embedded import PostgresServer, ServerFailed, Workspace
from proxy.embedded.postgres import SUPERUSER

SESSION_MODE_CLIENTS: Final = 500
"""At most, where each has a backend."""
WARM_UP: Final = 20
"""Clients before the count: what the first ones make once for all is not the others' part."""
LOGINS_AT_ONCE: Final = 16


async def measure_memory(relay: Relay, clients: int, *, speaks: bool = True) -> results.Record:
    """Bytes that `clients` idle ones add, for each of them."""

    def come(count: int) -> list[Client] | list[socket.socket]:
        if not speaks:
            return [socket.create_connection(("127.0.0.1", relay.port)) for _ in range(count)]
        came = []
        for _ in range(count):
            client = Client(relay.port, SUPERUSER, "postgres")
            client.ask()
            came.append(client)
        return came

    def now() -> relays.Memory:
        of = [relays.memory(pid) for pid in relay.pids]
        return relays.Memory(*(sum(getattr(one, name) for one in of) for name in ("private", "pss", "rss")))

    first = await asyncio.to_thread(come, WARM_UP)
    before = now()
    began = time.monotonic()
    rest = await asyncio.to_thread(come, clients)
    took = time.monotonic() - began
    await asyncio.sleep(1.0)  # what a relay puts off until it is idle belongs to the figure
    after = now()
    for one in [*first, *rest]:
        one.close()
    return {
        "relay": relay.name,
        "clients": clients,
        "bytes_per_client": round((after.private - before.private) / clients),
        "pss_per_client": round((after.pss - before.pss) / clients),
        "rss_per_client": round((after.rss - before.rss) / clients),
        "bytes_before": before.private,
        "seconds_to_come": round(took, 2),
    }


async def run_memory(
    workspace: Workspace, engine: PostgresServer, which: PgBouncer, clients: int
) -> list[results.Record]:
    """All relays, one after the other; memory has no noise that rounds would take out."""
    records: list[results.Record] = []
    for mode, count in (("transaction", clients), ("session", min(clients, SESSION_MODE_CLIENTS))):
        way = Way(mode)  # type: ignore[arg-type]  # the two literals above
        starts: list[AbstractAsyncContextManager[Relay]] = [
            relays.turnout(workspace, engine, way),
            relays.pgbouncer(workspace, engine, way, which),
        ]
        if mode == "transaction":
            starts.append(relays.bare_reader(workspace))
        for start in starts:
            async with start as relay:
                print(f"memory: {relay.name}, {mode} mode, {count:,} clients", file=sys.stderr)
                record = await measure_memory(relay, count, speaks=relay.name != "bare reader")
                records.append({"figure": "memory", "pool_mode": mode, **record})
    theirs = {one["pool_mode"]: one["bytes_per_client"] for one in records if one["relay"] == "PgBouncer"}
    return [{**one, "to_pgbouncer": ratio(one["bytes_per_client"], theirs[one["pool_mode"]])} for one in records]


async def log_in(load: Path, relay: Relay, user: ScramUser, seconds: float) -> tuple[int, float]:
    """Log in and leave, LOGINS_AT_ONCE clients at any time: how many did, in how many seconds. Raises ServerFailed."""
    process = await asyncio.create_subprocess_exec(
        *(str(load), str(relay.port), str(LOGINS_AT_ONCE), f"{seconds:g}", user.name, "postgres"),
        *(user.client_key.hex(), user.stored_key.hex()),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        raise ServerFailed(f"logins through {relay.name} failed: {err.decode(errors='replace')[-500:]}")
    done, took_us = map(int, out.split())
    return done, took_us / 1e6


async def run_logins(
    workspace: Workspace, engine: PostgresServer, which: PgBouncer, rounds: int, seconds: float
) -> list[results.Record]:
    """In interleaved rounds."""
    user = ScramUser.make("bench_login", "a password that nobody guesses")
    await engine.execute(f"create role {user.name} login")
    way = Way("transaction", user=user)
    seen: dict[str, list[tuple[float, float, float]]] = {}
    load = compile_c("logins", workspace)
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(relays.turnout(workspace, engine, way)),
            await stack.enter_async_context(relays.pgbouncer(workspace, engine, way, which)),
        ]

        async def measure(relay: Relay, length: float) -> tuple[float, float, float]:
            """Logins per second, processor microseconds of each, and the part of a processor that the relay took."""
            before = sum(map(cpu_ns, relay.pids))
            done, took = await log_in(load, relay, user, length)
            spent = (sum(map(cpu_ns, relay.pids)) - before) / 1e9
            return done / took, spent / done * 1e6, spent / took

        for relay in running:
            await measure(relay, 0.5)
        for number in range(rounds):
            print(f"logins: round {number + 1} of {rounds}", file=sys.stderr)
            for relay in running if number % 2 else running[::-1]:
                seen.setdefault(relay.name, []).append(await measure(relay, seconds))
    records: list[results.Record] = []
    for name, figures in seen.items():
        pairs = list(zip(figures, seen["PgBouncer"], strict=True))
        records.append(
            {
                "figure": "logins",
                "pool_mode": way.pool_mode,
                "relay": name,
                "rounds": rounds,
                "logins_per_s": round(statistics.median(rate for rate, _, _ in figures)),
                "busy": round(statistics.median(busy for _, _, busy in figures), 2),
                "us_per_login": round(statistics.median(us for _, us, _ in figures), 1),
                "us_per_login_min": round(min(us for _, us, _ in figures), 1),
                "us_per_login_max": round(max(us for _, us, _ in figures), 1),
                "logins_per_s_of_one_processor": round(1e6 / statistics.median(us for _, us, _ in figures)),
                "rate_to_pgbouncer": round(statistics.median(mine[0] / theirs[0] for mine, theirs in pairs), 3),
                "cpu_to_pgbouncer": round(statistics.median(mine[1] / theirs[1] for mine, theirs in pairs), 3),
            }
        )
    return sorted(records, key=lambda one: str(one["relay"]), reverse=True)


def print_tables(records: Sequence[results.Record], versions: results.Record) -> None:
    """For people."""
    of_memory = [one for one in records if one["figure"] == "memory"]
    if of_memory:
        table = Table(title=f"Memory of an idle client ({', '.join(versions.values())})")
        for title in ("pool mode", "relay"):
            table.add_column(title)
        for title in ("clients", "bytes each", "PSS", "RSS", "÷ PgBouncer", "before the first, MiB"):
            table.add_column(title, justify="right")
        for one in of_memory:
            what = " (with its backend)" if one["pool_mode"] == "session" else ""
            table.add_row(
                f"{one['pool_mode']}{what}",
                one["relay"],
                f"{one['clients']:,}",
                f"{one['bytes_per_client']:,}",
                f"{one['pss_per_client']:,}",
                f"{one['rss_per_client']:,}",
                f"{one['to_pgbouncer']:.2f}",
                f"{one['bytes_before'] / 2**20:.1f}",
            )
        results.show(table)
    of_logins = [one for one in records if one["figure"] == "logins"]
    if of_logins:
        table = Table(title=f"Logins by SCRAM-SHA-256, {LOGINS_AT_ONCE} at a time ({', '.join(versions.values())})")
        table.add_column("relay")
        for title in (
            "logins/s",
            "÷ PgBouncer",
            "busy",
            "µs each",
            "min–max",
            "÷ PgBouncer",
            "logins/s of one processor",
        ):
            table.add_column(title, justify="right")
        for one in of_logins:
            table.add_row(
                one["relay"],
                f"{one['logins_per_s']:,}",
                f"{one['rate_to_pgbouncer']:.2f}",
                f"{one['busy']:.2f}",
                f"{one['us_per_login']:.0f}",
                f"{one['us_per_login_min']:.0f}–{one['us_per_login_max']:.0f}",
                f"{one['cpu_to_pgbouncer']:.2f}",
                f"{one['logins_per_s_of_one_processor']:,}",
            )
        results.show(table)


async def run(
    what: Sequence[Callable[[Workspace, PostgresServer], Awaitable[list[results.Record]]]],
) -> list[results.Record]:
    """Start a server, measure, stop it."""
    async with AsyncExitStack() as stack:
        workspace = stack.enter_context(Workspace("turnout-bench-"))
        engine = await stack.enter_async_context(relays.server(workspace))
        return [record for one in what for record in await one(workspace, engine)]


def main() -> int:
    """The program. Exit code 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="bench.idle", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=5_000, help="idle clients (default 5000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of logins (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each round (default 2)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--memory", action="store_true", help="memory only")
    only.add_argument("--logins", action="store_true", help="logins only")
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of the tables")
    args = parser.parse_args()
    relays.allow_many_descriptors()
    try:
        which = find_pgbouncer()
        what: list[Callable[[Workspace, PostgresServer], Awaitable[list[results.Record]]]] = []
        if not args.logins:
            what.append(lambda workspace, engine: run_memory(workspace, engine, which, args.clients))
        if not args.memory:
            what.append(lambda workspace, engine: run_logins(workspace, engine, which, args.rounds, args.seconds))
        records = asyncio.run(run(what))
    except ServerFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    versions = {"pgbouncer": str(which)}
    results.save("idle", records, keys=("figure", "pool_mode", "relay"), versions=versions, adds=True)
    if args.json:
        print(json.dumps(records, indent=2))
    else:
        print_tables(records, versions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
