"""Two servers with a gap before each, a Turnout before the gaps, and a look from outside at who takes writes."""

from __future__ import annotations

import asyncio
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


class World:
    """See the module. `pair` has the roles that the servers had when it was last settled."""

    def __init__(
        self, server: Server, pair: Pair, folder: Path, *, pool_mode: PoolMode, workers: int, fails_over: bool
    ) -> None:
        self.server = server
        self.pair = pair
        self.gaps = {one.name: Gap(one.host, one.port) for one in pair.servers()}
        self.fails_over = fails_over
        """Turnout promotes the standby when the primary is lost. So that nothing acknowledged may be missing there, the primary
        waits for its standby with each commit. Of PostgreSQL only: an old primary of MySQL's, which may have what was never
        acknowledged, would have to be built anew."""
        self.stale = ""
        """Name of an old primary that a failover left and that may come back as it was: it may take writes until Turnout has
        seen it."""
        self.two_writers: list[str] = []
        """What the look from outside found that must not be."""
        self.is_postgres = is_postgres = server == "postgresql"
        self.turnout = Turnout(
            Setup(
                protocol="postgresql" if is_postgres else "mysql",
                engines={one.name: self.gaps[one.name].address for one in (pair.primary, pair.standby)},
                admin_user=SUPERUSER if is_postgres else "turnout",
                admin_password=PASSWORD,
                users={"app": PASSWORD},
                databases=["app"],
                auth_method={"postgresql": "scram-sha-256", "mariadb": "mysql_native_password"}.get(
                    server, "caching_sha2_password"
                ),
                pool_mode=pool_mode,
                workers=workers,
                service={"failover": {"automatic": fails_over, "pause_s": 0, "probe_interval_s": 0.2}},
                switch={"catchup_timeout_s": 2.0, "promote_timeout_s": 5.0, "hold_ms_max": 10_000},
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
    ) -> AsyncIterator[World]:
        """No process of Turnout is left behind."""
        assert not fails_over or server == "postgresql"
        world = cls(server, pair, folder, pool_mode=pool_mode, workers=workers, fails_over=fails_over)
        async with AsyncExitStack() as stack:
            statements = [schema.DROP, *schema.creation(is_postgres=world.is_postgres), schema.FILL]
            await schema.run(pair.primary, *statements, is_postgres=world.is_postgres)
            await world._synchronise()
            for gap in world.gaps.values():
                await gap.open()
                stack.push_async_callback(gap.close)
            stack.push_async_callback(world.turnout.stop)
            await world.turnout.start()
            watch = spawn(world._watch(), name="who takes writes")
            stack.push_async_callback(cancel_and_wait, watch)
            yield world

    def client(self) -> Client:
        return PostgresClient(self.turnout) if self.is_postgres else MySqlClient(self.turnout)

    # --- what is asked of the servers themselves ---

    async def _synchronise(self) -> None:
        """The primary alone waits for a standby: one that is promoted has none at first."""
        if self.fails_over:
            await self.pair.standby.execute("alter system reset synchronous_standby_names")
            await self.pair.primary.execute("alter system set synchronous_standby_names = '*'")
            for server in self.pair.servers():
                await server.execute("select pg_reload_conf()")

    async def found(self) -> Found:
        """What is on the primary now."""
        return await schema.found_on(self.pair.primary, is_postgres=self.is_postgres)

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

    async def takes_writes(self, server: Any) -> bool:
        """A new session of an ordinary account could write there now. False if nobody answers."""
        if not server.is_running:
            return False
        try:
            if self.is_postgres:
                connection = await server.connect("app", "app", timeout_s=1.0)
                try:
                    return bool(await connection.fetchval("show transaction_read_only", timeout=1.0) == "off")
                finally:
                    connection.terminate()
            return not await asyncio.to_thread(_is_read_only, server)
        except (*FAILURES, pymysql.MySQLError):
            # It is down, frozen, or ends strangers just now.
            return False

    async def _watch(self) -> None:
        """Look again and again; a server counts as taking writes if it did before and after the other one was asked."""
        while True:
            one, other = self.pair.servers()
            if self.stale:
                await asyncio.sleep(LOOK_S)
                continue
            if await self.takes_writes(one) and await self.takes_writes(other) and await self.takes_writes(one):
                self.two_writers.append(f"{one.name} and {other.name} both take writes")
            await asyncio.sleep(LOOK_S)

    # --- what is asked of Turnout ---

    def workers(self) -> list[psutil.Process]:
        socket = str(self.turnout.folder / "run" / "supervisor.sock")
        return [one for one in psutil.process_iter(["cmdline"]) if socket in (one.info["cmdline"] or [])]

    async def begin_switch(self, target: str, **body: object) -> str:
        """Ask for a switch; returns its id, or nothing if it was refused or nobody answered."""
        async with self.turnout.control() as control:
            try:
                answer = await control.post(
                    "/v1/services/app/switch", json={"target_engine": target, "strategy": "graceful", **body}
                )
            except httpx.TransportError:
                return ""
            return str(answer.json()["id"]) if answer.is_success else ""

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

    async def settle(self) -> None:
        """After a fault: both servers run, the active one is the primary and the other follows it."""
        for gap in self.gaps.values():
            gap.heal()
            await gap.open()
        for server in self.pair.servers():
            if not server.is_running:
                await server.start()
        if await self.active() != self.pair.primary.name:
            await self.pair.swap()
        await self._synchronise()
        target = self.pair.standby.name

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


def _is_read_only(server: Any) -> bool:
    connection = server.connect_blocking(connect_timeout=1, read_timeout=1.0)
    try:
        with connection.cursor() as cursor:
            cursor.execute("select @@global.read_only as is_on")
            return bool(cursor.fetchone()["is_on"])
    finally:
        connection.close()
