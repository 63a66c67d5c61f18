"""Switches between two servers under load: what clients feel of Turnout's and of PgBouncer's.

    .venv/bin/python -m bench.cutover [--server postgresql] [--sessions 1000] [--busy 200] [--switches 20] [--json]

A primary and its standby (PostgreSQL: streaming; MariaDB and MySQL: GTID), two processors' worth of everything on one
machine, and sessions of which some work: short transactions of three round trips with a pause in between. Turnout is in
session mode, every session has settings (a custom one, or a user variable, among them), two prepared statements of the
protocol and one of SQL; after each switch every session is asked for all of them. Then the former primary comes back as
a standby and the next switch goes the other way.

PgBouncer cannot pause sessions in session mode (PAUSE waits until they leave), so it runs in transaction mode, where no
session may have settings: the same transactions as plain queries, by the steps its users take: PAUSE, fence the old
primary, wait for the standby, promote, RELOAD with the new address, RESUME.

Columns: `hold` is the wait of a request because of the switch, as Turnout reports it; `cutover` Turnout's own part (see
docs/report.md); `client max` and `p99` the longest round trips the clients themselves saw around the switch, whichever
proxy they used: the p99 is that of the slowest round trip of each busy session.

With each proxy the last `--minutes` switches are watched for longer: half a minute before each, the minute that begins with
it, and half a minute once the former primary follows, so that the same is compared: a primary with a standby. Two of them go
there and back, so that each server is the one before and the one after. Response time (mean and median of the round trips)
must be the same before and after, taken over all of them; the minute's median must be no longer than that before, and the
minute must have the throughput that was before it.

Nothing is measured before the response time is steady (`_until_steady`): Turnout asks every new session once what it holds,
50 of them a second, which keeps a server busy for some time after a thousand logins; files have just been copied; and tables
and caches are new.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import asyncpg
from rich.table import Table

from bench import relays, results
from bench.cutover_load import ROWS
from bench.cutover_talk import Setup, query, startup
from bench.programs import find_pgbouncer
from proxy.embedded import (
    MariaDBPair,
    MySQLPair,
    PostgresPair,
    ServerFailed,
    Turnout,
    Workspace,
    free_port,
)
from proxy.embedded import Setup as TurnoutSetup
from proxy.embedded.postgres import PASSWORD, SUPERUSER

DATABASE: Final = "app"
USER: Final = "app"

Pair = PostgresPair | MariaDBPair | MySQLPair

HOLD_LIMIT_MS: Final = {"postgresql": 50.0, "mariadb": 100.0, "mysql": 100.0}
"""For the p99 of hold_ms."""

SETTLE_S: Final = 1.0
"""Load before a switch is asked for."""

MINUTE_S: Final = 60.0
BESIDE_MINUTE_S: Final = 30.0
"""What is compared of a minute with a switch: itself, and the times before and after it."""

SLICE_S: Final = 5.0
STEADY_SLICES: Final = 4
STEADY_SHARE: Final = 0.10
STEADY_WAIT_MAX_S: Final = 90.0
"""Response time is steady when the medians of so many slices in a row are alike but for this share. It is waited for so long, and
said if it was in vain."""

RESPONSE_SHARE_MAX: Final = 0.10
"""By so much may the response time after a switch differ from before, either way."""

THROUGHPUT_SHARE_MIN: Final = 0.95
"""Of the throughput before, in the minute of a switch."""

_HBA: Final = """\
host all app 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""

_PGBOUNCER_INI: Final = """\
[databases]
* = host=127.0.0.1 port={server_port} user=app
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 5000
admin_users = app
logfile = {folder}/pgbouncer.out
"""

_ROOT: Final = Path(__file__).resolve().parents[1]


class LoadProcess:
    """`python -m bench.cutover_load` as a child."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def start(cls, setup: Setup) -> AsyncIterator[LoadProcess]:
        """Until all sessions are connected. Raises ServerFailed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "bench.cutover_load"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=_ROOT,
            limit=1 << 20,
        )
        load = cls(process)
        try:
            await load._ask(json.dumps(asdict(setup)), timeout_s=120)
            yield load
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def mark(self) -> dict[str, Any]:
        """What was seen since the last mark."""
        return await self._ask("mark")

    async def check(self) -> int:
        """Sessions that lost some of their state."""
        return int((await self._ask("check", timeout_s=30))["lost_state"])

    async def _ask(self, words: str, timeout_s: float = 10.0) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(words.encode() + b"\n")
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        except TimeoutError as error:
            raise ServerFailed(f"the load did not answer {words[:20]!r} in time") from error
        if not line:
            raise ServerFailed("the load ended; its last words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


async def open_pair(stack: AsyncExitStack, sessions: int) -> PostgresPair:
    """Two PostgreSQL servers with a table to work on."""
    workspace = stack.enter_context(Workspace("turnout-bench-"))
    hba = workspace.path / "pg_hba.conf"
    hba.write_text(_HBA)
    workspace.give(hba)
    pair = await PostgresPair.create(max_connections=sessions + 60, settings={"hba_file": str(hba)})
    stack.push_async_callback(pair.close)
    connection = await pair.primary.connect(DATABASE, USER)
    try:
        await connection.execute(
            "create table counter (id int primary key, value bigint not null default 0) with (fillfactor = 50);"
            f"insert into counter select i from generate_series(0, {ROWS - 1}) i"
        )
    finally:
        await connection.close()
    return pair


async def open_mysql_pair(
    stack: AsyncExitStack, kind: type[MariaDBPair | MySQLPair], sessions: int
) -> MariaDBPair | MySQLPair:
    """The same of the other protocol."""
    # Four appliers that flush each commit cannot keep up with clients whose commits are flushed together.
    appliers = "--slave-parallel-threads=16" if kind is MariaDBPair else "--replica-parallel-workers=16"
    pair = await kind.create(options=[f"--max-connections={sessions + 60}", appliers])
    stack.push_async_callback(pair.close)
    await pair.primary.execute(
        "create table counter (id int primary key, value bigint not null default 0)",
        f"insert into counter (id) values {','.join(f'({number})' for number in range(ROWS))}",
        database=DATABASE,
    )
    return pair


# --- Turnout ------------------------------------------------------------------------------------------------------


async def open_turnout(stack: AsyncExitStack, server: str, sessions: int) -> tuple[Turnout, Pair]:
    """Turnout in session mode before a pair of its own."""
    is_postgres = server == "postgresql"
    pair: Pair
    if is_postgres:
        pair = await open_pair(stack, sessions)
    else:
        pair = await open_mysql_pair(stack, MariaDBPair if server == "mariadb" else MySQLPair, sessions)
    folder = pair.workspace.path / "turnout"
    folder.mkdir()
    turnout = Turnout(
        TurnoutSetup(
            protocol="postgresql" if is_postgres else "mysql",
            engines={one.name: one.address for one in pair.servers()},
            admin_user=SUPERUSER if is_postgres else "turnout",
            admin_password=PASSWORD,
            users={} if is_postgres else {USER: PASSWORD},
            auth_method={"postgresql": "trust", "mariadb": "mysql_native_password"}.get(
                server, "caching_sha2_password"
            ),
            service={"pool_size": sessions + 10},
            log_level="warning",
        ),
        folder,
    )
    stack.push_async_callback(turnout.stop)
    await turnout.start()
    return turnout, pair


async def bench_turnout(
    server: str, sessions: int, busy: int, pause_ms: float, switches: int, minutes: int
) -> list[dict[str, Any]]:
    """One record for each switch; the last `minutes` of them are watched for longer."""
    records: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        turnout, pair = await open_turnout(stack, server, sessions)
        setup = Setup(
            protocol=turnout.setup.protocol,
            port=turnout.port,
            user=USER,
            password=turnout.setup.users.get(USER, ""),
            database=DATABASE,
            sessions=sessions,
            busy=busy,
            pause_ms=pause_ms,
            with_state=True,
        )
        load = await stack.enter_async_context(LoadProcess.start(setup))
        await _until_steady(load)
        for number in range(1, switches + minutes + 1):
            is_minute = number > switches
            record = await _switch_turnout(turnout, pair, load, busy, is_minute=is_minute)
            records.append({"number": number, "server": server, "relay": "Turnout", **record})
            print(_line(records[-1]), file=sys.stderr)
            if record["phase"] != "completed":
                break
            if number < switches + minutes:
                # The former primary follows already where its minute was watched.
                if not is_minute:
                    await pair.swap()
                await _wait_ready(turnout, pair.standby.name)
    return records


async def _switch_turnout(
    turnout: Turnout, pair: Pair, load: LoadProcess, busy: int, *, is_minute: bool
) -> dict[str, Any]:
    watch = await Watch.begin(load, is_minute=is_minute)
    ended = await turnout.switch(pair.standby.name)
    around = await load.mark()
    seen = await watch.end(around, pair.swap)
    lost = await load.check() if ended["phase"] == "completed" else 0
    after = await load.mark()
    figures = ended["figures"] or {}
    return {
        "phase": ended["phase"],
        "error": ended["error"],
        "cutover_ms": figures.get("cutover_ms"),
        "hold_p99_ms": figures.get("hold_ms", {}).get("p99"),
        "hold_max_ms": figures.get("hold_ms", {}).get("max"),
        "waited": figures.get("affected_transactions"),
        **{name: figures.get(name) for name in ("drain_ms", "fence_ms", "catchup_ms", "promote_ms", "blackout_ms")},
        "phases_us": ended.get("report", {}).get("phases_us"),
        "lost_state": lost,
        **_clients([around, *watch.later, after], busy),
        **seen,
    }


class Watch:
    """Figures of the load before, during and after one switch."""

    def __init__(self, load: LoadProcess, before: dict[str, Any], warm_up_s: float, *, is_minute: bool) -> None:
        self._load = load
        self._before = before
        self._warm_up_s = warm_up_s
        self._is_minute = is_minute
        self.later: list[dict[str, Any]] = []
        """Marks of what was watched after the switch."""

    @classmethod
    async def begin(cls, load: LoadProcess, *, is_minute: bool) -> Watch:
        """When it returns, the switch is to begin."""
        warm_up_s = (await _until_steady(load))[0] if is_minute else 0.0
        await load.mark()
        await asyncio.sleep(BESIDE_MINUTE_S if is_minute else SETTLE_S)
        return cls(load, await load.mark(), warm_up_s, is_minute=is_minute)

    async def end(self, around: dict[str, Any], follow: Callable[[], Awaitable[object]]) -> dict[str, Any]:
        """Right after the switch, whose time `around` is of. Of a minute, `follow` makes the former primary a standby. Keys
        of the record."""
        told = {**_times("before", self._before), "before_tps": _tps(self._before)}
        if not self._is_minute:
            return told
        await asyncio.sleep(MINUTE_S - around["seconds"])
        rest = await self._load.mark()
        await follow()
        warm_up_s, between = await _until_steady(self._load)
        await asyncio.sleep(BESIDE_MINUTE_S)
        after = await self._load.mark()
        self.later = [rest, *between, after]
        return {
            **told,
            "warm_up_s": self._warm_up_s,
            "minute_s": around["seconds"] + rest["seconds"],
            "minute_tps": _tps(around, rest),
            # Without the switch itself, whose waits have figures of their own.
            **_times("minute", rest),
            "follow_warm_up_s": warm_up_s,
            **_times("after", after),
            "after_tps": _tps(after),
        }


def _times(when: str, mark: dict[str, Any]) -> dict[str, float]:
    return {f"{when}_{name}_ms": mark[f"{name}_ms"] for name in ("mean", "p50", "p99")}


async def _until_steady(load: LoadProcess) -> tuple[float, list[dict[str, Any]]]:
    """Wait until the response time is the same from slice to slice: how long it took, and the marks of that time."""
    # What has been written before (by whatever ran before the bench, by the base backup) must not be in a commit's way.
    await asyncio.to_thread(os.sync)
    marks = [await load.mark()]
    slices: list[float] = []
    while len(slices) * SLICE_S < STEADY_WAIT_MAX_S:
        await asyncio.sleep(SLICE_S)
        marks.append(await load.mark())
        slices.append(marks[-1]["p50_ms"])
        last = slices[-STEADY_SLICES:]
        if len(last) == STEADY_SLICES and max(last) <= min(last) * (1 + STEADY_SHARE):
            break
    return len(slices) * SLICE_S, marks


def _tps(*marks: dict[str, Any]) -> float:
    transactions, seconds = (sum(one[name] for one in marks) for name in ("transactions", "seconds"))
    return round(float(transactions / seconds), 1)


async def _wait_ready(turnout: Turnout, target: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (await turnout.get(f"/v1/services/app/ready/{target}"))["is_ready"]:
            return
        await asyncio.sleep(0.2)
    raise ServerFailed(f"{target} is not ready for the way back")


def _clients(marks: list[dict[str, Any]], busy: int) -> dict[str, Any]:
    """What the clients saw: the first of the marks is of the switch, the last one of the questions about their state."""
    around, after = marks[0], marks[-1]
    slowest = around["slowest_ms"][-busy:]
    return {
        "client_p99_ms": slowest[max(0, math.ceil(0.99 * len(slowest)) - 1)] if slowest else 0.0,
        "client_max_ms": around["max_ms"],
        "errors": sum(one["errors"] for one in marks),
        "first_error": next((one["first_error"] for one in marks if one["first_error"]), ""),
        "sessions": after["sessions"],
    }


# --- PgBouncer ----------------------------------------------------------------------------------------------------


class PgBouncerConsole:
    """PgBouncer's own console, which knows plain queries only."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> PgBouncerConsole:
        console = cls(*await asyncio.open_connection("127.0.0.1", port))
        console._writer.write(startup(USER, "pgbouncer"))
        await console._ready()
        return console

    async def do(self, command: str) -> None:
        """Raises ServerFailed."""
        self._writer.write(query(command))
        await self._ready()

    async def _ready(self) -> None:
        while True:
            head = await asyncio.wait_for(self._reader.readexactly(5), 30)
            body = await self._reader.readexactly(int.from_bytes(head[1:], "big") - 4)
            if head[:1] == b"E":
                raise ServerFailed(f"PgBouncer: {body.replace(bytes(1), b' ').decode(errors='replace')}")
            if head[:1] == b"Z":
                return

    def close(self) -> None:
        self._writer.close()


async def bench_pgbouncer(
    sessions: int, busy: int, pause_ms: float, switches: int, minutes: int
) -> list[dict[str, Any]]:
    """The same by the steps PgBouncer's users take."""
    records: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        pair = await open_pair(stack, busy)
        place = pair.workspace
        which = find_pgbouncer()
        config, port = place.path / "pgbouncer.ini", free_port()

        def write_config() -> None:
            config.write_text(
                _PGBOUNCER_INI.format(server_port=pair.primary.port, port=port, pool_size=busy, folder=place.path)
            )
            place.give(config)

        write_config()
        await stack.enter_async_context(relays.pgbouncer_from(config, place, port, which))
        setup = Setup(
            protocol="postgresql",
            port=port,
            user=USER,
            database=DATABASE,
            sessions=sessions,
            busy=busy,
            pause_ms=pause_ms,
            with_state=False,
        )
        load = await stack.enter_async_context(LoadProcess.start(setup))
        console = await PgBouncerConsole.open(port)
        stack.callback(console.close)
        for number in range(1, switches + minutes + 1):
            is_minute = number > switches
            record = await _switch_pgbouncer(console, pair, load, busy, write_config, is_minute=is_minute)
            records.append({"number": number, "server": "postgresql", "relay": str(which), **record})
            print(_line(records[-1]), file=sys.stderr)
            if number < switches + minutes and not is_minute:
                await pair.standby.rejoin(pair.primary)
    return records


async def _switch_pgbouncer(
    console: PgBouncerConsole,
    pair: PostgresPair,
    load: LoadProcess,
    busy: int,
    write_config: Callable[[], None],
    *,
    is_minute: bool,
) -> dict[str, Any]:
    source, target = await pair.primary.connect(), await pair.standby.connect()
    try:
        watch = await Watch.begin(load, is_minute=is_minute)
        await console.do("PAUSE")
        await source.execute("alter system set default_transaction_read_only = on")
        await source.execute("select pg_reload_conf()")
        position = await source.fetchval("select pg_current_wal_insert_lsn()::text")
        await _until(target, "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position)
        await target.execute("select pg_promote(false)")
        await _until(target, "select not pg_is_in_recovery()")
        pair.primary, pair.standby = pair.standby, pair.primary
        write_config()
        await console.do("RELOAD")
        await console.do("RESUME")
        await asyncio.sleep(SETTLE_S)
        around = await load.mark()
        seen = await watch.end(around, lambda: pair.standby.rejoin(pair.primary))
        await load.check()
        after = await load.mark()
    finally:
        source.terminate()
        target.terminate()
    clients = _clients([around, *watch.later, after], busy)
    return {"phase": "completed", "error": "", "lost_state": None, **clients, **seen}


async def _until(connection: asyncpg.Connection[asyncpg.Record], sql: str, *args: object) -> None:
    """Ask about every millisecond."""
    while True:
        if await connection.fetchval(sql, *args):
            return
        await asyncio.sleep(0.001)


# --- the account --------------------------------------------------------------------------------------------------

_FIGURES: Final = (
    *("cutover_ms", "hold_p99_ms", "hold_max_ms", "fence_ms", "catchup_ms", "promote_ms"),
    *("client_p99_ms", "client_max_ms"),
)


def _line(one: dict[str, Any]) -> str:
    figures = "  ".join(f"{name} {one[name]:.1f}" for name in _FIGURES if one.get(name) is not None)
    return f"{one['relay']} {one['number']}: {one['phase']} {one['error']} {figures}  errors {one['errors']}"


def verdict(records: list[dict[str, Any]], limits_ms: dict[str, float]) -> list[str]:
    """What is wrong with Turnout's switches; empty if nothing is."""
    trouble = []
    for one in records:
        where = f"switch {one['number']}"
        if one["phase"] != "completed":
            trouble.append(f"{where} ended {one['phase']}: {one['error']}")
            continue
        trouble += [
            f"{where}: {name} is {one[name]:.1f}, the limit is {limit_ms:g}"
            for name, limit_ms in limits_ms.items()
            if one[name] >= limit_ms
        ]
        if one["errors"] or one["lost_state"]:
            trouble.append(f"{where}: {one['errors']} errors, {one['lost_state']} lost state; {one['first_error']}")
    return [*trouble, *_trouble_of_minutes([one for one in records if "minute_tps" in one])]


def _trouble_of_minutes(minutes: list[dict[str, Any]]) -> list[str]:
    if not minutes:
        return []
    trouble = []
    for name in ("mean", "p50"):
        share = _share(minutes, f"after_{name}_ms", f"before_{name}_ms")
        if abs(share - 1) > RESPONSE_SHARE_MAX:
            trouble.append(
                f"{name} response time after is {share:.3f} of before; 1 ± {RESPONSE_SHARE_MAX:g} is the limit"
            )
    share = _share(minutes, "minute_p50_ms", "before_p50_ms")
    if share > 1 + RESPONSE_SHARE_MAX:
        trouble.append(
            f"p50 response time in the minute is {share:.3f} of before; {1 + RESPONSE_SHARE_MAX:g} is the limit"
        )
    for one in minutes:
        if max(one["warm_up_s"], one["follow_warm_up_s"]) >= STEADY_WAIT_MAX_S:
            trouble.append(f"switch {one['number']}: no steady response time within {STEADY_WAIT_MAX_S:g} s to compare")
        share = _share([one], "minute_tps", "before_tps")
        if share < THROUGHPUT_SHARE_MIN:
            trouble.append(
                f"switch {one['number']}: throughput in its minute is {share:.3f} of before; {THROUGHPUT_SHARE_MIN:g} is the limit"
            )
    return trouble


def _share(minutes: list[dict[str, Any]], name: str, of: str) -> float:
    """Geometric mean: a server that is faster than the other is so before one switch and after the next."""
    if not all(one[of] for one in minutes):
        return math.inf
    return float(statistics.geometric_mean(one[name] / one[of] for one in minutes))


def print_minutes(records: list[dict[str, Any]]) -> None:
    """The switches that were watched for longer, and of each relay all of them together."""
    table = Table(
        title="switches watched for longer; response time in milliseconds, throughput in transactions per second"
    )
    table.add_column("relay")
    for title in ("", "", "before", "minute", "share", "after", "share"):
        table.add_column(title, justify="right")
    for relay in dict.fromkeys(one["relay"] for one in records):
        mine = [one for one in records if one["relay"] == relay]
        for number, some in [*((str(one["number"]), [one]) for one in mine), ("all", mine)]:
            for figure, of in (("mean_ms", 2), ("p50_ms", 2), ("p99_ms", 2), ("tps", 0)):
                before, minute, after = (
                    f"{statistics.geometric_mean(one[f'{when}_{figure}'] for one in some):.{of}f}"
                    for when in ("before", "minute", "after")
                )
                shares = [f"{_share(some, f'{when}_{figure}', f'before_{figure}'):.3f}" for when in ("minute", "after")]
                style = "bold" if number == "all" else ""
                table.add_row(relay, number, figure, before, minute, shares[0], after, shares[1], style=style)
        table.add_section()
    results.show(table)


def print_table(records: list[dict[str, Any]]) -> None:
    """For people."""
    table = Table(title="switches under load; milliseconds")
    for title in ("relay", "", "cutover", "hold p99", "max", "fence", "catch-up", "promote", "client p99", "max"):
        table.add_column(title, justify="left" if title == "relay" else "right")
    table.add_column("errors", justify="right")
    for relay in dict.fromkeys(one["relay"] for one in records):
        mine = [one for one in records if one["relay"] == relay and one["phase"] == "completed"]
        for one in mine:
            cells = ["" if one.get(name) is None else f"{one[name]:.1f}" for name in _FIGURES]
            table.add_row(relay, str(one["number"]), *cells, str(one["errors"]))
        for name, pick in (("median", statistics.median), ("worst", max)):
            values = [[one[figure] for one in mine if one.get(figure) is not None] for figure in _FIGURES]
            cells = [f"{pick(one):.1f}" if one else "" for one in values]
            table.add_row(relay, name, *cells, str(sum(one["errors"] for one in mine)), style="bold")
        table.add_section()
    results.show(table)


def main() -> int:
    """The program. Exit code 1 if a switch of Turnout's was not as it should be."""
    parser = argparse.ArgumentParser(prog="bench.cutover", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--server", choices=tuple(HOLD_LIMIT_MS), default="postgresql")
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--busy", type=int, default=200, help="sessions that work (default 200)")
    parser.add_argument("--pause-ms", type=float, default=200, help="mean pause of those between transactions")
    parser.add_argument("--switches", type=int, default=20)
    parser.add_argument("--pgbouncer-switches", type=int, default=5, help="PostgreSQL only (default 5)")
    parser.add_argument(
        "--minutes",
        type=int,
        default=2,
        help="more switches, watched for some minutes each (default 2: there and back)",
    )
    parser.add_argument("--limit-ms", type=float, default=50, help="for cutover_ms (default 50)")
    parser.add_argument("--hold-limit-ms", type=float, help="for the p99 of hold_ms (default 50; MariaDB, MySQL: 100)")
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of the table")
    args = parser.parse_args()
    relays.allow_many_descriptors()
    records: list[dict[str, Any]] = []
    load = (args.sessions, args.busy, args.pause_ms)
    try:
        if args.switches or args.minutes:
            records += asyncio.run(bench_turnout(args.server, *load, args.switches, args.minutes))
        if args.pgbouncer_switches and args.server == "postgresql":
            records += asyncio.run(bench_pgbouncer(*load, args.pgbouncer_switches, args.minutes))
    except ServerFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    name = "cutover" if args.server == "postgresql" else f"cutover-{args.server}"
    results.save(name, records, keys=(), versions={})
    if args.json:
        print(json.dumps(records, indent=2))
    else:
        print_table(records)
        if minutes := [one for one in records if "minute_tps" in one]:
            print_minutes(minutes)
    hold_limit_ms = HOLD_LIMIT_MS[args.server] if args.hold_limit_ms is None else args.hold_limit_ms
    limits_ms = {"cutover_ms": args.limit_ms, "hold_p99_ms": hold_limit_ms}
    trouble = verdict([one for one in records if one["relay"] == "Turnout"], limits_ms)
    for line in trouble:
        print(f"bench: {line}", file=sys.stderr)
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
