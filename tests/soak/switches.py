"""Many graceful switches in a row under load: what every one of them cost, in one line of a table.

    python -m tests.soak.switches --track "two addresses" --count 1000
    python -m tests.soak.switches --track postgresql --count 50         the same for logical, mariadb, mysql

Tracks: `two addresses` (and `two addresses, mariadb`) are two engines that are one server, so that sessions move and
nothing else does; the others are pairs, with fence, catch-up and promotion each time, and the way back made ready in
between. Writers work all the time (see `writers`), and every transaction they were told of is looked for in the end. Some
of theirs are open for 300 ms, which a drain waits for and `hold_ms` shows.

Ends with code 1 unless at least 99.9 % completed, nothing was lost or seen by a client, and no `cutover_ms` reached 50.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from proxy.embedded import MariaDBPair, MySQLPair, PostgresPair, Setup, Turnout, Workspace
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.kit.servers import logical_pair_alone
from tests.kit.waiting import until
from tests.soak import schema
from tests.soak.clients import Client, MySqlClient, PostgresClient
from tests.soak.writers import Writers

CUTOVER_LIMIT_MS: Final = 50.0
SUCCESS_LIMIT: Final = 0.999
READY_S_MAX: Final = 60.0
_REPLICATION_PASSWORD: Final = "TURNOUT_SOAK_REPLICATION"


@dataclass(slots=True)
class Track:
    """What is switched to and fro. `names[0]` serves first."""

    turnout: Turnout
    names: tuple[str, str]
    primary: Callable[[], Any]
    """The server that takes writes now."""
    is_postgres: bool
    pair: PostgresPair | MariaDBPair | MySQLPair | None = None
    """Whose old primary has to be made a standby after each switch; None: nothing has to be done."""
    follower: Any = None
    """A logical subscriber, which needs tables of its own."""

    def tables(self) -> Iterator[tuple[list[str], Any]]:
        """What has to be said to which server before anything else."""
        creation = schema.creation(is_postgres=self.is_postgres)
        yield [*creation, schema.FILL], self.primary()
        if self.follower is not None:
            yield [*creation, "alter subscription from_blue refresh publication"], self.follower

    def client(self) -> Client:
        return PostgresClient(self.turnout) if self.is_postgres else MySqlClient(self.turnout)


@dataclass(slots=True)
class Tally:
    """All switches of one track."""

    cutovers_ms: list[float] = field(default_factory=list)
    holds_ms: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors_visible: int = 0
    audited: int = 0
    acked_lost: int = 0
    """Of the audits."""
    seen: Counter[str] = field(default_factory=Counter)
    """What clients were told, by code."""
    complaints: list[str] = field(default_factory=list)
    transactions: int = 0

    def add(self, ended: Mapping[str, Any]) -> None:
        figures = ended["figures"]
        if ended["phase"] != "completed":
            self.failed.append(ended["error"])
        else:
            self.cutovers_ms.append(figures["cutover_ms"])
            self.holds_ms.append(figures["hold_ms"]["max"])
        self.errors_visible += figures["errors_visible"]
        if figures["acked_lost"] is not None:
            self.audited += 1
            self.acked_lost += figures["acked_lost"]

    @property
    def is_good(self) -> bool:
        done, tried = len(self.cutovers_ms), len(self.cutovers_ms) + len(self.failed)
        return (
            done > 0
            and done >= SUCCESS_LIMIT * tried
            and max(self.cutovers_ms) < CUTOVER_LIMIT_MS
            and not (self.errors_visible or self.acked_lost or self.seen or self.complaints)
        )

    def line(self, name: str) -> str:
        cutovers, holds = sorted(self.cutovers_ms) or [0.0], sorted(self.holds_ms) or [0.0]
        cells = (
            name, len(self.cutovers_ms) + len(self.failed), len(self.cutovers_ms),
            f"{statistics.median(cutovers):.1f} / {_p99(cutovers):.1f} / {cutovers[-1]:.1f}",
            f"{statistics.median(holds):.1f} / {_p99(holds):.1f} / {holds[-1]:.1f}",
            self.errors_visible, sum(self.seen.values()), f"{self.acked_lost} of {self.audited} audits",
            self.transactions, "; ".join(self.complaints) or "nothing",
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


HEAD: Final = (
    "| track | switches | completed | cutover_ms median / p99 / max | hold_ms max of each: median / p99 / max "
    "| errors_visible | errors clients saw | acked_lost | transactions acknowledged | lost, doubled, phantom … |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def _p99(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def _setup(engines: Mapping[str, str], server: str, writers: int, **service: object) -> Setup:
    is_postgres = server == "postgresql"
    return Setup(
        protocol="postgresql" if is_postgres else "mysql",
        engines=engines,
        admin_user=SUPERUSER if is_postgres else "turnout",
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        databases=["app"],
        auth_method={"postgresql": "scram-sha-256", "mariadb": "mysql_native_password"}.get(
            server, "caching_sha2_password"
        ),
        service={"pool_size": writers + 10, **service},
        log_level="warning",
    )


async def open_pair(server: str, *, keeps_up: bool = False) -> PostgresPair | MariaDBPair | MySQLPair:
    """Four appliers that flush each commit cannot keep up with clients whose commits are flushed together. With `keeps_up`
    commits of MySQL and MariaDB can be made to wait for the replica."""
    if server == "mariadb":
        waiting = ["--rpl-semi-sync-slave-enabled=1", "--rpl-semi-sync-master-wait-point=AFTER_SYNC"]
        return await MariaDBPair.create(options=["--slave-parallel-threads=16", *(waiting if keeps_up else [])])
    if server == "mysql":
        # Loose: the plugins are not there yet when the data folder is made.
        waiting = [
            "--plugin-load-add=semisync_source.so;semisync_replica.so",
            "--loose-rpl-semi-sync-replica-enabled=1",
        ]
        return await MySQLPair.create(options=["--replica-parallel-workers=16", *(waiting if keeps_up else [])])
    return await PostgresPair.create()


@asynccontextmanager
async def _two_addresses(server: str, writers: int) -> AsyncIterator[Track]:
    pair = await (PostgresPair if server == "postgresql" else MariaDBPair).create()
    try:
        primary = pair.primary
        engines = {"one": primary.address, "two": f"localhost:{primary.port}"}
        setup = _setup(engines, server, writers, replication="none")
        yield Track(Turnout(setup, _folder(pair.workspace)), ("one", "two"), lambda: primary, server == "postgresql")
    finally:
        await pair.close()


@asynccontextmanager
async def _pair(server: str, writers: int) -> AsyncIterator[Track]:
    pair = await open_pair(server)
    try:
        setup = _setup({one.name: one.address for one in pair.servers()}, server, writers)
        yield Track(
            Turnout(setup, _folder(pair.workspace)),
            (pair.primary.name, pair.standby.name),
            lambda: pair.primary,
            server == "postgresql",
            pair,
        )
    finally:
        await pair.close()


@asynccontextmanager
async def _logical(writers: int) -> AsyncIterator[Track]:
    async with logical_pair_alone() as pair:
        os.environ[_REPLICATION_PASSWORD] = PASSWORD
        setup = _setup(
            {one.name: one.address for one in pair.servers()},
            "postgresql",
            writers,
            replication="logical",
            reverse_replication=True,
            replication_login={"user": SUPERUSER, "password": {"env": _REPLICATION_PASSWORD}},
        )
        turnout = Turnout(setup, _folder(pair.workspace))
        servers = {one.name: one for one in pair.servers()}
        track = Track(
            turnout,
            (pair.primary.name, pair.standby.name),
            lambda: servers[track.names[0]],
            True,
            follower=pair.standby,
        )
        yield track


def _folder(workspace: Workspace) -> Path:
    folder = workspace.path / "turnout"
    folder.mkdir()
    return folder


TRACKS: Final[Mapping[str, Callable[[int], Any]]] = {
    "two addresses": lambda writers: _two_addresses("postgresql", writers),
    "two addresses, mariadb": lambda writers: _two_addresses("mariadb", writers),
    "postgresql": lambda writers: _pair("postgresql", writers),
    "logical": _logical,
    "mariadb": lambda writers: _pair("mariadb", writers),
    "mysql": lambda writers: _pair("mysql", writers),
}


async def run(name: str, count: int, *, writers: int, seed: int, say: Callable[[str], None]) -> Tally:
    """`count` switches on one track."""
    tally = Tally()
    async with AsyncExitStack() as stack:
        track: Track = await stack.enter_async_context(TRACKS[name](writers))
        for statements, server in track.tables():
            await schema.run(server, *statements, is_postgres=track.is_postgres)
        stack.push_async_callback(track.turnout.stop)
        await track.turnout.start()
        load = Writers(track.client, writers, seed)
        load.begin()
        try:
            await load.are_served()
            for number in range(1, count + 1):
                await _wait_ready(track.turnout, track.names[1])
                ended = await track.turnout.switch(track.names[1])
                tally.add(ended)
                say(f"{number}: {ended['phase']} {ended['error']} cutover {ended['figures']['cutover_ms']} ms")
                if ended["phase"] == "completed":
                    track.names = (track.names[1], track.names[0])
                    if track.pair is not None:
                        await track.pair.swap()
                await load.are_served()
        finally:
            tally.complaints = await load.end()
        tally.seen = load.errors
        tally.transactions = sum(load.done)
        found = await schema.found_on(track.primary(), is_postgres=track.is_postgres)
        tally.complaints += load.history.judge(found, schema.MONEY)
    return tally


async def _wait_ready(turnout: Turnout, target: str) -> None:
    async def is_ready() -> bool:
        try:
            return bool((await turnout.get(f"/v1/services/app/ready/{target}"))["is_ready"])
        except httpx.HTTPStatusError:
            return False

    await until(is_ready, f"{target} is ready", timeout_s=READY_S_MAX)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.switches", description="many switches in a row")
    parser.add_argument("--track", choices=list(TRACKS), default="two addresses")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    tally = asyncio.run(
        run(
            options.track,
            options.count,
            writers=options.writers,
            seed=options.seed,
            say=_say,
        )
    )
    for why, times in Counter(tally.failed).items():
        sys.stderr.write(f"failed {times} times: {why}" + "\n")
    _say(f"{HEAD}\n{tally.line(options.track)}")
    return 0 if tally.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
