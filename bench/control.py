"""What watching costs the queries: p99 with a scrape each second, ten dashboards open and schemathesis running, and without.

    python -m bench.control [--clients 100] [--rate 3000] [--rounds 24] [--seconds 2.5] [--json]

One Turnout and one server. In each round the load of `bench.tail` runs once while all watch, and once while they are
stopped (SIGSTOP), in turns; ratios are taken within a round. Who watches gets what the processors have left over, for it
stands for other machines: what is measured is Turnout's part. SCHED_IDLE alone does not do that: it counts among the
processes of one session (sched(7), autogroup), and workers and servers have sessions of their own. So the watchers are in
a control group that is idle as a whole, where one can be made. Schemathesis sends what it makes of the API's
description, as fast as it is answered, and shows a viewer's token: an admin's would switch, and change the log's level.

Even so they are programs on this machine, and cost it caches, bandwidth of its memory and changes of tasks, which on other
machines they would not. That is measured, too: once in each round the same watchers watch another Turnout, one that serves
nobody and is in the idle group with them ("elsewhere"). Watched, divided by that, is what Turnout's own answering costs
the queries.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import asyncpg
import psutil
from rich.table import Table

from bench import relays, results
from bench.programs import compile_c
from bench.relay import DATABASE, PgBench
from bench.results import ratio
from bench.tail import FIGURES
from proxy.config import ControlConfig
from proxy.embedded import ServerFailed, Setup, Turnout, Workspace
from proxy.embedded.postgres import PASSWORD, SUPERUSER

VIEWER: Final = "a-viewers-token-of-the-bench"
ADMIN: Final = "an-admins-token-of-the-bench"

SCHEMATHESIS: Final = """
[parameters]
"path.service" = "app"
"""

SCRAPES: Final = 100
"""For the processor time of one."""

WARM_S: Final = 5.0
"""Load before the first round."""

READY_TIMEOUT_S: Final = 60.0

SETTLE_S: Final = 0.5
"""Between a change of who watches and the load."""

LIMIT: Final = 1.05
"""What p99 may be, divided by that without anybody who watches."""


async def measure(load: Path, port: int, clients: int, rate: int, seconds: float) -> list[int]:
    """Microseconds of every question, in order of length. Raises ServerFailed."""
    process = await asyncio.create_subprocess_exec(
        *(str(load), str(port), str(clients), str(rate), f"{seconds:g}", SUPERUSER, DATABASE),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode != 0 or int(err.split()[-1]):
        raise ServerFailed(f"the load failed, or was too much: {err.decode()[-500:]}")
    return sorted(array.array("I", out))


def part(took: list[int], share: float) -> float:
    """The time that so many of the questions did not exceed."""
    return float(took[min(len(took) - 1, int(len(took) * share))])


def _make_idle_group() -> Path | None:
    for parent in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
        group = parent / f"turnout-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:  # there is no such kind, or it is not for this account
            continue
        try:
            (group / "cpu.idle").write_text("1")
        except OSError:  # a kernel before 5.15, or a group without a share of the processors
            group.rmdir()
            continue
        return group
    return None


@contextmanager
def idle_group() -> Iterator[Path | None]:
    """A control group whose processes run while nobody else wants to; None: none can be made, by this account or kernel."""
    group = _make_idle_group()
    try:
        yield group
    finally:
        if group is not None:
            group.rmdir()


class Watchers:
    """Processes that watch, and can be stopped for a while."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    def tell(self, number: int) -> None:
        """SIGSTOP or SIGCONT to all of them and what they have started."""
        for process in self._processes:
            if process.returncode is not None:
                raise ServerFailed(f"who watches has ended with code {process.returncode}")
            found = psutil.Process(process.pid)
            for one in (found, *found.children(recursive=True)):
                one.send_signal(number)


@asynccontextmanager
async def watchers(turnout: Turnout, dashboards: int, folder: Path, group: Path | None) -> AsyncIterator[Watchers]:
    """All of them, once they have begun; in that control group."""
    (folder / "schemathesis.toml").write_text(SCHEMATHESIS)
    generator = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(folder / "schemathesis.toml"), "run"),
        *(f"{turnout.control_url}/docs/openapi.json", "--header", f"Authorization: Bearer {VIEWER}"),
        *("--exclude-path", "/v1/events", "--phases", "fuzzing", "--max-examples", "1000000"),
        *("--generation-database", "none", "--continue-on-failure", "--suppress-health-check", "all", "--no-color"),
        *("--checks", "not_a_server_error"),
    ]
    watching = [sys.executable, "-m", "bench.watchers", turnout.control_url, str(dashboards), VIEWER]
    processes: list[asyncio.subprocess.Process] = []
    try:
        with (folder / "schemathesis.log").open("wb") as log:
            processes.append(
                await asyncio.create_subprocess_exec(*watching, stdout=asyncio.subprocess.PIPE, stderr=log)
            )
            processes.append(
                await asyncio.create_subprocess_exec(
                    *("chrt", "--idle", "0", *generator),
                    cwd=folder,
                    env={**os.environ, "COLUMNS": "200"},
                    stdout=log,
                    stderr=log,
                )
            )
        if group is not None:
            for process in processes:
                (group / "cgroup.procs").write_text(str(process.pid))
        assert processes[0].stdout is not None
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                if await processes[0].stdout.readline() != b"ready\n":
                    raise ServerFailed(f"nobody watches: {(folder / 'schemathesis.log').read_text()[-500:]}")
                before = await _asked(turnout)
                while await _asked(turnout) < before + 100:  # noqa: ASYNC110  it is another process that asks
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise ServerFailed(
                f"who watches has not begun within {READY_TIMEOUT_S:.0f} s; it gets what other processes leave over:"
                " is this machine busy with something else?"
            ) from error
        yield Watchers(processes)
    finally:
        for process in processes:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                await process.wait()


async def scrape_us(turnout: Turnout, clients: int) -> tuple[float, float]:
    """Processor time of one scrape in microseconds, with so many sessions, on average: the supervisor's, and that of a
    worker, whose loop serves nobody meanwhile."""
    supervisor, *workers = (one.pid for one in turnout.processes())

    def look() -> list[int]:
        return [relays.cpu_ns(supervisor), sum(map(relays.cpu_ns, workers))]

    spent: dict[bool, list[float]] = {}
    scrapes_per_s = 0.0
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(turnout.control())
        for _ in range(clients):
            session = await asyncpg.connect(
                host=turnout.host, port=turnout.port, user=SUPERUSER, database=DATABASE, ssl=False
            )
            stack.push_async_callback(session.close)
        # Without a scrape last: just after their logins sessions are asked what they hold.
        for is_scraped in (True, False):
            before, began = look(), time.monotonic()
            for _ in range(SCRAPES):
                if is_scraped:
                    (await client.get("/metrics")).raise_for_status()
                await asyncio.sleep(0.02)
            # By the second: a scrape may wait for its share of the processor, and what goes on all the time goes on meanwhile.
            elapsed_s = time.monotonic() - began
            spent[is_scraped] = [(after - so_far) / elapsed_s for after, so_far in zip(look(), before, strict=True)]
            if is_scraped:
                scrapes_per_s = SCRAPES / elapsed_s
    mine, theirs = (
        (scraped - idle) / 1e3 / scrapes_per_s for scraped, idle in zip(spent[True], spent[False], strict=True)
    )
    return mine, theirs / len(workers)


def _made(setup: Setup, folder: Path) -> Turnout:
    folder.mkdir()
    (folder / "viewer.token").write_text(VIEWER)
    (folder / "admin.token").write_text(ADMIN)
    return Turnout(setup, folder)


async def _asked(turnout: Turnout) -> int:
    """Refusals of the viewer so far: what schemathesis has tried to change."""
    async with turnout.control() as client:
        found = (await client.get("/v1/audit?outcome=refused&limit=1")).json()
    return int(found[0]["id"]) if found else 0


async def run(args: argparse.Namespace) -> results.Record:
    """One record."""
    async with AsyncExitStack() as stack:
        workspace = stack.enter_context(Workspace("turnout-bench-"))
        load = compile_c("load", workspace)
        engine = await stack.enter_async_context(relays.server(workspace, 100 + 3 * args.clients))
        await engine.execute(f"create database {DATABASE}")
        await PgBench(engine.bin_dir / "pgbench", workspace.path).initialize(engine.port)
        callers = {role: {"role": role, "token": {"file": f"{role}.token"}} for role in ("viewer", "admin")}
        setup = Setup(
            protocol="postgresql",
            engines={"only": engine.address},
            admin_user=SUPERUSER,
            admin_password=PASSWORD,
            users={},
            auth_method="trust",
            service={"pool_size": 5_000},
            control={"caller": callers, "processor_share": ControlConfig().processor_share},
            control_token=ADMIN,
            log_level="warning",
        )
        turnout = _made(setup, workspace.path / "turnout")
        await turnout.start()
        stack.push_async_callback(turnout.stop)
        supervisor = turnout.processes()[0].pid
        who: dict[str, Watchers | None] = {"alone": None}
        group = stack.enter_context(idle_group())
        if group is None:
            print("control: no idle control group can be made: the watchers' own time counts, too", file=sys.stderr)
        else:
            other = _made(setup, workspace.path / "elsewhere")
            await other.start()
            stack.push_async_callback(other.stop)
            for one in other.processes():
                (group / "cgroup.procs").write_text(str(one.pid))
            away = await stack.enter_async_context(watchers(other, args.dashboards, other.folder, group))
            # Not counted, here and below: all are still reading their programs, and p99 is several times that of later rounds.
            await measure(load, turnout.port, args.clients, args.rate, WARM_S)
            away.tell(signal.SIGSTOP)
            who["elsewhere"] = away
        here = await stack.enter_async_context(watchers(turnout, args.dashboards, turnout.folder, group))
        await measure(load, turnout.port, args.clients, args.rate, WARM_S)
        here.tell(signal.SIGSTOP)
        who["watched"] = here
        seen: dict[str, list[list[int]]] = {state: [] for state in who}
        spent_ns = dict.fromkeys(who, 0)
        refused_before = await _asked(turnout)
        for number in range(args.rounds):
            states = list(who)
            first = number % len(states)
            for state in states[first:] + states[:first]:
                watch = who[state]
                if watch is not None:
                    watch.tell(signal.SIGCONT)
                await asyncio.sleep(SETTLE_S)
                print(f"control: round {number + 1}, {state}", file=sys.stderr)
                before_ns = relays.cpu_ns(supervisor)
                seen[state].append(await measure(load, turnout.port, args.clients, args.rate, args.seconds))
                spent_ns[state] += relays.cpu_ns(supervisor) - before_ns
                if watch is not None:
                    watch.tell(signal.SIGSTOP)
        refused = await _asked(turnout) - refused_before
        scrape_supervisor_us, scrape_worker_us = await scrape_us(turnout, args.clients)
    record: results.Record = {
        "clients": args.clients,
        "rate": args.rate,
        "dashboards": args.dashboards,
        "rounds": args.rounds,
        "seconds": args.seconds,
    }
    for name, share in FIGURES.items():
        figures = {state: [part(one, share) for one in rounds] for state, rounds in seen.items()}
        record |= {f"{name}_{state}": round(statistics.median(found)) for state, found in figures.items()}
        for state in (one for one in seen if one != "watched"):
            ratios = [ratio(a, b) or 0.0 for a, b in zip(figures["watched"], figures[state], strict=True)]
            record[f"{name}_ratio_{state}"] = round(statistics.median(ratios), 3)
            record[f"{name}_ratios_{state}"] = ratios
    for state, spent in spent_ns.items():
        record[f"supervisor_cpu_percent_{state}"] = round(spent / 1e7 / args.rounds / args.seconds, 1)
    record["refused_per_s"] = round(refused / args.rounds / (args.seconds + SETTLE_S), 1)
    record |= {"scrape_us_supervisor": round(scrape_supervisor_us), "scrape_us_worker": round(scrape_worker_us)}
    return record


def print_table(record: results.Record) -> None:
    """For people."""
    table = Table(
        title=f"{record['clients']} clients, {record['rate']:,} questions a second in all, medians of {record['rounds']} rounds;"
        f" watched: a scrape each second, {record['dashboards']} dashboards, schemathesis"
    )
    states = [state for state in ("alone", "elsewhere") if f"p99_us_{state}" in record]
    for title in ("", *(f"{state} µs" for state in states), "watched µs"):
        table.add_column(title, justify="left" if not title else "right")
    for state in states:
        table.add_column(f"watched ÷ {state}", justify="right")
        table.add_column("middle half", justify="right")
    for name in FIGURES:
        row = [f"{record[f'{name}_{state}']:,}" for state in (*states, "watched")]
        for state in states:
            low, _, high = statistics.quantiles(record[f"{name}_ratios_{state}"], n=4)
            row += [f"{record[f'{name}_ratio_{state}']:.3f}", f"{low:.2f} to {high:.2f}"]
        table.add_row(name.removesuffix("_us"), *row)
    results.show(table)
    print(f"{LIMIT} is asked of p99")
    print(
        f"processor time of the supervisor: {record['supervisor_cpu_percent_alone']} % alone,"
        f" {record['supervisor_cpu_percent_watched']} % watched; changes that schemathesis tried, and was refused:"
        f" {record['refused_per_s']} a second"
    )
    print(
        f"processor time of one scrape, with {record['clients']} sessions: {record['scrape_us_supervisor']} µs of the supervisor's,"
        f" {record['scrape_us_worker']} µs of a worker's, which serves nobody meanwhile (1,000 asked)"
    )


def main() -> int:
    """The program. Exit code 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="bench.control", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rate", type=int, default=3_000, help="questions a second, of all clients (default 3000)")
    parser.add_argument("--dashboards", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=24, help="at least 2")
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds: at least 2")
    relays.allow_many_descriptors()
    try:
        record = asyncio.run(run(args))
    except ServerFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    results.save("control", [record], keys=("clients", "rate"), versions={})
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        print_table(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
