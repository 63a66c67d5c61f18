"""What watching costs the queries: p99 with a scrape each second, ten dashboards open and schemathesis running, and without.

    python -m bench.control [--clients 100] [--rate 0] [--rounds 30] [--seconds 4] [--json]

One Turnout and one server. The load of `bench.tail` runs all the time: each client asks as soon as it is answered, or
so many questions a second are asked. In each round all watch for a while, and are stopped for a while (SIGSTOP), in
turns. The figure is p99 of all questions of one state, divided by that of the other; beside it stands the median of the
ratios within rounds.

Who watches stands for programs on other machines: what is measured is Turnout's part, and not what a browser costs the
processor that it runs on. So the load, the server and Turnout's worker have one processor, those who watch have the
others, and Turnout's supervisor, which answers them, may use all. There it comes first: those who watch are in a
control group that is idle as a whole, where one can be made. (SCHED_IDLE alone does not do that: it counts among the
processes of one session, see autogroup in sched(7), and the supervisor has a session of its own.) They still share
caches, memory and the host's clock rates with the load; that counts.

At a fixed rate far below what the processor can do, p99 may say more about the machine than about Turnout: where the
kernel or the host takes the processor for 4 ms three times a second, that is what 1.2 % of the questions meet, with and
without a proxy.

Schemathesis sends what it makes of the API's description, as fast as it is answered, and shows a viewer's token: an
admin's would switch, and change the log's level.
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
from bisect import bisect_left
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import chain
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
from proxy.tasks import spawn

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

STATES: Final = ("alone", "watched")

LIMIT: Final = 1.05
"""What p99 may be, divided by that without anybody who watches."""


async def ask(load: Path, port: int, clients: int, rate: int, seconds: float) -> list[tuple[int, int]]:
    """Microseconds of the monotonic clock at which each question was due, and those that it took; in order. Raises
    ServerFailed."""
    process = await asyncio.create_subprocess_exec(
        *(str(load), str(port), str(clients), str(rate), f"{seconds:g}", SUPERUSER, DATABASE),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    said = dict(zip(err.split()[::2], err.split()[1::2], strict=False))
    if process.returncode != 0 or int(said[b"dropped"]):
        raise ServerFailed(f"the load failed, or was too much: {err.decode()[-500:]}")
    told, began_us = array.array("I", out), int(said[b"began"])
    return sorted((began_us + due, took) for due, took in zip(told[::2], told[1::2], strict=True))


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
async def watchers(
    turnout: Turnout, dashboards: int, folder: Path, group: Path | None, processors: Collection[int]
) -> AsyncIterator[Watchers]:
    """All of them, once they have begun; in that control group, on these processors."""
    there = ("taskset", "--cpu-list", ",".join(map(str, processors)))
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
                await asyncio.create_subprocess_exec(*there, *watching, stdout=asyncio.subprocess.PIPE, stderr=log)
            )
            processes.append(
                await asyncio.create_subprocess_exec(
                    *(*there, "chrt", "--idle", "0", *generator),
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


def use_processors(pid: int, processors: Collection[int]) -> None:
    """All threads of a process; what it starts later has them, too."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), processors)


async def run(args: argparse.Namespace) -> results.Record:
    """One record. Raises ServerFailed."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        raise ServerFailed("those who watch need a processor of their own, and there is only one")
    # The load, the server and the worker have this from us.
    os.sched_setaffinity(0, processors[:1])
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
        use_processors(supervisor, processors)
        group = stack.enter_context(idle_group())
        if group is None:
            print(
                "control: no idle control group can be made: the supervisor waits for those who watch", file=sys.stderr
            )
        watch = await stack.enter_async_context(
            watchers(turnout, args.dashboards, turnout.folder, group, processors[1:])
        )
        # One load from beginning to end: a login costs more than a question, and what a new session holds is asked for.
        asked_s = WARM_S + SETTLE_S + len(STATES) * args.rounds * (args.seconds + SETTLE_S)
        asking = spawn(ask(load, turnout.port, args.clients, args.rate, asked_s), name="load")
        await asyncio.sleep(WARM_S)
        watch.tell(signal.SIGSTOP)
        times_us: dict[str, list[tuple[int, int]]] = {state: [] for state in STATES}
        spent_ns = dict.fromkeys(STATES, 0)
        refused_before = await _asked(turnout)
        for number in range(args.rounds):
            for state in STATES if number % 2 == 0 else reversed(STATES):
                if state == "watched":
                    watch.tell(signal.SIGCONT)
                await asyncio.sleep(SETTLE_S)
                print(f"control: round {number + 1}, {state}", file=sys.stderr)
                before_ns, from_us = relays.cpu_ns(supervisor), time.monotonic_ns() // 1000
                await asyncio.sleep(args.seconds)
                times_us[state].append((from_us, time.monotonic_ns() // 1000))
                spent_ns[state] += relays.cpu_ns(supervisor) - before_ns
                if asking.done():
                    break
                if state == "watched":
                    watch.tell(signal.SIGSTOP)
        refused = await _asked(turnout) - refused_before
        answers = await asking
        scrape_supervisor_us, scrape_worker_us = await scrape_us(turnout, args.clients)
    due = [at_us for at_us, _ in answers]
    seen = {
        state: [
            sorted(took for _, took in answers[bisect_left(due, from_us) : bisect_left(due, until_us)])
            for from_us, until_us in parts
        ]
        for state, parts in times_us.items()
    }
    record: results.Record = {
        "clients": args.clients,
        "rate": args.rate,
        "dashboards": args.dashboards,
        "rounds": args.rounds,
        "seconds": args.seconds,
    }
    for name, share in FIGURES.items():
        whole = {state: part(sorted(chain.from_iterable(rounds)), share) for state, rounds in seen.items()}
        record |= {f"{name}_{state}": round(figure) for state, figure in whole.items()}
        record[f"{name}_ratio"] = ratio(whole["watched"], whole["alone"])
        record[f"{name}_ratios"] = [
            ratio(part(watched, share), part(alone, share)) or 0.0
            for watched, alone in zip(seen["watched"], seen["alone"], strict=True)
        ]
    for state, spent in spent_ns.items():
        record[f"supervisor_cpu_percent_{state}"] = round(spent / 1e7 / args.rounds / args.seconds, 1)
    record["refused_per_s"] = round(refused / args.rounds / (args.seconds + SETTLE_S), 1)
    record |= {"scrape_us_supervisor": round(scrape_supervisor_us), "scrape_us_worker": round(scrape_worker_us)}
    return record


def print_table(record: results.Record) -> None:
    """For people."""
    asked = f"{record['rate']:,} questions a second in all" if record["rate"] else "each asks as fast as it is answered"
    table = Table(
        title=f"{record['clients']} clients, {asked}, {record['rounds']} rounds of"
        f" {record['seconds']:g} s; watched: a scrape each second, {record['dashboards']} dashboards, schemathesis"
    )
    for title in ("", "alone µs", "watched µs", "watched ÷ alone", "within rounds", "middle half"):
        table.add_column(title, justify="left" if not title else "right")
    for name in FIGURES:
        low, middle, high = statistics.quantiles(record[f"{name}_ratios"], n=4)
        table.add_row(
            name.removesuffix("_us"),
            *(f"{record[f'{name}_{state}']:,}" for state in STATES),
            f"{record[f'{name}_ratio']:.3f}",
            f"{middle:.3f}",
            f"{low:.2f} to {high:.2f}",
        )
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
    parser.add_argument(
        "--rate",
        type=int,
        default=0,
        help="questions a second, of all clients; 0: as fast as they are answered (default)",
    )
    parser.add_argument("--dashboards", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=30, help="at least 2")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each state in a round (default 4)")
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
