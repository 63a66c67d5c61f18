"""Two servers with a gap before each, a Turnout before the gaps, and a look from outside at who takes writes. Or one server
with two gaps before it: two addresses, both of which may serve at a time."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import psutil
import pymysql

from proxy.embedded import MariaDBPair, MySQLPair, PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from proxy.embedded.turnout import ENDED
from proxy.tasks import cancel_and_wait, spawn
from tests.kit.waiting import until
from tests.soak import schema
from tests.soak.clients import FAILURES, Client, MySqlClient, PostgresClient
from tests.soak.gap import Gap
from tests.soak.history import Found

Server = Literal["postgresql", "mariadb", "mysql"]
PoolMode = Literal["session", "transaction"]
Pair = PostgresPair | MariaDBPair | MySQLPair

LOOK_S: Final = 0.05
"""Pause between two looks at who takes writes."""
SETTLED_S_MAX: Final = 60.0


NAMES: Final = ("blue", "green")
"""Of the engines."""
DISK_KB: Final = 32_768
"""Room for the state file, where its disk may become full."""


def abilities(server: str, *, is_one_server: bool, fails_over: bool, mounts: bool) -> frozenset[str]:
    """What a world of that kind has, as `Fault.needs` names it."""
    found = {"one server" if is_one_server else "pair"}
    if fails_over:
        found.add("failover")
    if server == "postgresql":
        found.add("postgresql")
    if mounts:
        found.add("small disk")
    return frozenset(found)


class World:
    """See the module. `pair` has the roles that the servers had when it was last settled."""

    promote_timeout_s = 5.0

    def __init__(
        self,
        server: Server,
        pair: Pair,
        folder: Path,
        *,
        pool_mode: PoolMode,
        workers: int,
        fails_over: bool,
        is_one_server: bool,
        mounts: bool,
    ) -> None:
        self.server = server
        self.pair = pair
        self.folder = folder
        self.is_one_server = is_one_server
        """Of the pair only the primary is used, by two addresses."""
        behind = dict.fromkeys(NAMES, pair.primary) if is_one_server else {one.name: one for one in pair.servers()}
        self.gaps = {name: Gap(one.host, one.port) for name, one in behind.items()}
        self.source, self.target = NAMES if is_one_server else (pair.primary.name, pair.standby.name)
        """Names of the engines: who served when it was last settled, and the other one."""
        self.fails_over = fails_over
        """Turnout promotes the standby when the primary is lost. So that nothing acknowledged may be missing there, the primary
        waits for its standby with each commit."""
        self.abilities = abilities(server, is_one_server=is_one_server, fails_over=fails_over, mounts=mounts)
        self._stale, self._stale_changes = "", 0
        self.refusal = ""
        """Why the last switch that was asked for did not begin."""
        self.watch: asyncio.Task[None] | None = None
        """The look from outside at who takes writes."""
        self.two_writers: list[str] = []
        """What the look from outside found that must not be."""
        self.is_postgres = is_postgres = server == "postgresql"
        service: dict[str, object] = {"failover": {"automatic": fails_over, "pause_s": 0, "probe_interval_s": 0.2}}
        if is_one_server:
            service["replication"] = "none"
        self.turnout = Turnout(
            Setup(
                protocol="postgresql" if is_postgres else "mysql",
                engines={name: self.gaps[name].address for name in (self.source, self.target)},
                admin_user=SUPERUSER if is_postgres else "turnout",
                admin_password=PASSWORD,
                users={"app": PASSWORD},
                databases=["app"],
                auth_method={"postgresql": "scram-sha-256", "mariadb": "mysql_native_password"}.get(
                    server, "caching_sha2_password"
                ),
                pool_mode=pool_mode,
                workers=workers,
                service=service,
                switch={
                    "catchup_timeout_s": 2.0,
                    "promote_timeout_s": self.promote_timeout_s,
                    "hold_ms_max": 10_000,
                    "requests_min": 100,
                },
                top={"state_file": str(self.disk / "turnout.sqlite")},
            ),
            folder,
        )

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        server: Server,
        pair: Pair,
        folder: Path,
        *,
        pool_mode: PoolMode = "session",
        workers: int = 2,
        fails_over: bool = False,
        is_one_server: bool = False,
        mounts: bool = False,
    ) -> AsyncIterator[World]:
        """No process of Turnout is left behind, and no disk. `mounts`: the state file is on one of its own, which only root
        may mount."""
        world = cls(
            server,
            pair,
            folder,
            pool_mode=pool_mode,
            workers=workers,
            fails_over=fails_over,
            is_one_server=is_one_server,
            mounts=mounts,
        )
        async with AsyncExitStack() as stack:
            world.disk.mkdir()
            if mounts:
                size = f"size={DISK_KB}k"
                await world._tool("mount", "-t", "tmpfs", "-o", size, "turnout-soak", str(world.disk))
                stack.push_async_callback(world._tool, "umount", "--lazy", str(world.disk))
            statements = [schema.DROP, *schema.creation(is_postgres=world.is_postgres), schema.FILL]
            await schema.run(pair.primary, *statements, is_postgres=world.is_postgres)
            await world._synchronise()
            for gap in world.gaps.values():
                await gap.open()
                stack.push_async_callback(gap.close)
            stack.push_async_callback(world.turnout.stop)
            await world.turnout.start()
            if not is_one_server:
                world.watch = spawn(world._watch(), name="who takes writes")
                stack.push_async_callback(cancel_and_wait, world.watch)
            yield world

    @property
    def disk(self) -> Path:
        """Where the state file is."""
        return self.folder / "disk"

    async def _tool(self, *command: str) -> None:
        process = await asyncio.create_subprocess_exec(*command)
        assert await process.wait() == 0, command

    def client(self) -> Client:
        return PostgresClient(self.turnout) if self.is_postgres else MySqlClient(self.turnout)

    # --- what is asked of the servers themselves ---

    async def _synchronise(self) -> None:
        """The primary alone waits for a standby: one that is promoted has none at first."""
        if not self.fails_over or self.is_one_server:
            return
        primary, standby = self.pair.primary, self.pair.standby
        if self.is_postgres:
            await standby.execute("alter system reset synchronous_standby_names")
            await primary.execute("alter system set synchronous_standby_names = '*'")
            for server in self.pair.servers():
                await server.execute("select pg_reload_conf()")
            return
        waits = self._waits
        await standby.execute(f"set global {waits}_enabled = 0")
        await primary.execute(f"set global {waits}_timeout = 3600000", f"set global {waits}_enabled = 1")

        async def is_waiting() -> bool:
            rows = await primary.fetch(f"show global status like '{waits}_%'")
            found = {row["Variable_name"].lower(): row["Value"] for row in rows}
            return found[f"{waits}_status"] == "ON" and int(found[f"{waits}_clients"]) > 0

        await until(is_waiting, f"{primary.name} waits for its replica with each commit", timeout_s=SETTLED_S_MAX)

    @property
    def _waits(self) -> str:
        """Begin of the names of what makes a primary of MySQL or MariaDB wait for its replica."""
        return "rpl_semi_sync_master" if self.server == "mariadb" else "rpl_semi_sync_source"

    async def found(self) -> Found:
        """What is on the server that serves now, which a world that was not settled does not call the primary."""
        server = self.pair.primary if self.is_one_server else self.pair.by_name(await self.active())
        return await schema.found_on(server, is_postgres=self.is_postgres)

    async def pause_replication(self) -> None:
        """The standby receives and does not apply."""
        standby = self.pair.standby
        if self.is_postgres:
            await standby.execute("select pg_wal_replay_pause()")
        else:
            await standby.execute("stop replica sql_thread")

    async def resume_replication(self) -> None:
        standby = self.pair.standby
        if self.is_postgres:
            if await standby.fetchval("select pg_is_in_recovery()"):
                await standby.execute("select pg_wal_replay_resume()")
        elif await standby.fetchval("show replica status"):
            await standby.execute("start replica sql_thread")

    @property
    def stale(self) -> str:
        """Name of a server that may take writes besides the right one until Turnout has seen it: an old primary that comes
        back as it was, a standby whose promotion was given up."""
        return self._stale

    @stale.setter
    def stale(self, name: str) -> None:
        self._stale = name
        self._stale_changes += 1

    async def takes_writes(self, server: Any) -> bool | None:
        """Whether a new session of an ordinary account could write there now. None if nobody answers: it is down, frozen,
        too busy, or ends strangers just now."""
        if not server.is_running:
            return None
        try:
            if self.is_postgres:
                connection = await server.connect("app", "app", timeout_s=1.0)
                try:
                    return bool(await connection.fetchval("show transaction_read_only", timeout=1.0) == "off")
                finally:
                    connection.terminate()
            return not await asyncio.to_thread(_is_read_only, server)
        except (*FAILURES, pymysql.MySQLError):
            return None

    async def _watch(self) -> None:
        """Look again and again; a server counts as taking writes if it did before and after the other one was asked. It does
        not if one of both began or ceased to be stale meanwhile: one that is frozen answers when it is thawed."""
        while True:
            one, other = self.pair.servers()
            changes = self._stale_changes
            if (
                not self.stale
                and await self.takes_writes(one)
                and await self.takes_writes(other)
                and await self.takes_writes(one)
                and changes == self._stale_changes
            ):
                self.two_writers.append(f"{one.name} and {other.name} both take writes")
            await asyncio.sleep(LOOK_S)

    # --- what is asked of Turnout ---

    def workers(self) -> list[psutil.Process]:
        socket = str(self.turnout.folder / "run" / "supervisor.sock")
        return [one for one in psutil.process_iter(["cmdline"]) if socket in (one.info["cmdline"] or [])]

    async def begin_switch(self, target: str, **body: object) -> str:
        """Ask for a switch; returns its id, or nothing if it was refused or nobody answered."""
        return await self._begin("switch", {"target_engine": target, "strategy": "graceful", **body})

    async def order_failover(self, target: str) -> str:
        """As an operator does; returns the switch's id, or nothing if it was refused or nobody answered."""
        return await self._begin("failover/start", {"target_engine": target})

    async def _begin(self, what: str, body: dict[str, object]) -> str:
        async with self.turnout.control() as control:
            try:
                answer = await control.post(f"/v1/services/app/{what}", json=body)
            except httpx.TransportError:
                return ""
            self.refusal = "" if answer.is_success else f"the {what} was refused: {answer.text}"
            return str(answer.json()["id"]) if answer.is_success else ""

    async def automate(self) -> None:
        """An operator's word after a failover that failed: the next one may come by itself."""
        async with self.turnout.control() as control:
            (await control.post("/v1/services/app/failover", json={"automatic": True})).raise_for_status()

    async def automation(self) -> dict[str, Any]:
        """Whether another engine takes over by itself, and why not."""
        (service,) = (await self.turnout.get("/v1/status"))["services"]
        found: dict[str, Any] = service["view"]["failover"]
        return found

    async def ended(self, switch: str) -> dict[str, Any]:
        """The switch with its report, once it has ended."""
        found: dict[str, Any] = {}

        async def has_ended() -> bool:
            nonlocal found
            found = await self.turnout.get(f"/v1/switches/{switch}")
            return found["phase"] in ENDED and found["figures"] is not None

        await until(has_ended, f"switch {switch} ends", timeout_s=SETTLED_S_MAX)
        return found

    async def active(self) -> str:
        """The engine that serves, once no switch is under way."""
        name = ""

        async def stands_still() -> bool:
            nonlocal name
            try:
                (service,) = (await self.turnout.get("/v1/status"))["services"]
            except (httpx.TransportError, httpx.HTTPStatusError):
                return False
            name = service["view"]["active"]
            return service["view"]["running"] is None

        await until(stands_still, "no switch is under way", timeout_s=SETTLED_S_MAX)
        return name

    async def health(self) -> tuple[str, str]:
        """The engine that serves, and what is thought of it, once no switch is under way."""
        name = await self.active()
        (service,) = (await self.turnout.get("/v1/status"))["services"]
        return name, service["view"]["failover"]["health"]

    async def settle(self) -> None:
        """After a fault: the servers run, the active one is the primary and the other follows it."""
        for gap in self.gaps.values():
            gap.heal()
            await gap.open()
        for server in self.pair.servers():
            if not server.is_running:
                await server.start()
        active = await self.active()
        if self.is_one_server:
            self.source, self.target = active, next(name for name in NAMES if name != active)
        else:
            await self._follow(active)
        target = self.target

        async def is_ready() -> bool:
            try:
                return bool((await self.turnout.get(f"/v1/services/app/ready/{target}"))["is_ready"])
            except (httpx.TransportError, httpx.HTTPStatusError):
                return False

        try:
            await until(is_ready, f"{target} is ready for the next switch", timeout_s=SETTLED_S_MAX)
        except AssertionError as error:
            report = await self.turnout.get(f"/v1/services/app/ready/{target}")
            wrong = [one for one in report["checks"] if one["verdict"] == "fail"]
            raise AssertionError(f"{error}: {wrong}") from error

    async def _follow(self, active: str) -> None:
        """The server of another name than `active` becomes a standby of that one, if it is not."""
        pair: Any = self.pair
        if active != pair.primary.name and self.is_postgres:
            await pair.swap()
        elif active != pair.primary.name:
            if self.fails_over:
                # As a replica it would wait for one of its own with each commit that it applies.
                await pair.primary.execute(f"set global {self._waits}_enabled = 0")
            if await self._was_failover():
                pair.primary, pair.standby = pair.standby, pair.primary
                await self._build_anew()
            else:
                await pair.swap()
        elif self.is_postgres and not await pair.standby.fetchval("select pg_is_in_recovery()"):
            # Its promotion came late.
            await pair.standby.rejoin(pair.primary)
        self.source, self.target = pair.primary.name, pair.standby.name
        await self._synchronise()

    async def _was_failover(self) -> bool:
        """The last move was one: the old primary may have what was never acknowledged."""
        for record in await self.turnout.get("/v1/switches"):
            if record["phase"] == "completed":
                return bool(record["strategy"] == "failover")
        return False

    async def _build_anew(self) -> None:
        """MySQL and MariaDB: the replica becomes a copy of its primary. That one stands still meanwhile, so that the copy is
        what a crash would have left."""
        old: Any = self.pair.standby
        new: Any = self.pair.primary
        await old.kill()
        # What is copied should be little.
        await new.execute("flush binary logs", "purge binary logs before date_add(now(), interval 1 day)")

        def copy() -> None:
            shutil.rmtree(old.data)
            new.freeze()
            try:
                shutil.copytree(new.data, old.data)
            finally:
                new.thaw()
            (old.data / "auto.cnf").unlink(missing_ok=True)
            index = old.data / "bin.index"
            index.write_text(index.read_text().replace(str(new.data), str(old.data)))
            for path in (old.data, *old.data.rglob("*")):
                self.pair.workspace.give(path)

        await asyncio.to_thread(copy)
        await old.start(more=["--read-only=1"])
        if self.server == "mariadb":
            # What the other server wrote counts as applied here.
            await old.execute("set global gtid_slave_pos = @@global.gtid_binlog_pos")
        await old.follow(new)


def _is_read_only(server: Any) -> bool:
    connection = server.connect_blocking(connect_timeout=1, read_timeout=1.0)
    try:
        with connection.cursor() as cursor:
            cursor.execute("select @@global.read_only as is_on")
            return bool(cursor.fetchone()["is_on"])
    finally:
        connection.close()
