"""SIGKILL of the supervisor in each phase of a switch, in the middle of load, and a restart.

What must hold each time: one writable primary, and Turnout serves from it; every client goes on without having seen an
error; every acknowledged row is there. The moment is chosen by `TURNOUT_TEST_STOP_AT`, see `proxy.switch.orchestrator`.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import httpx
import psutil
import pymysql
import pytest
import pytest_asyncio

from proxy.embedded import MariaDBPair, PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.kit.servers import NICENESS
from tests.kit.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

CLIENTS = 6
STOP_AT = "TURNOUT_TEST_STOP_AT"


class Client(Protocol):
    """One connection through Turnout that writes numbers, each in a transaction of its own."""

    async def begin(self, number: int) -> None: ...
    async def commit(self) -> None: ...
    def terminate(self) -> None:
        """Without a goodbye: a held session's is not read before the release."""


class PostgresClient:
    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, turnout: Turnout) -> PostgresClient:
        return cls(
            await asyncpg.connect(
                host=turnout.host, port=turnout.port, user="app", password=PASSWORD, database="app", timeout=30
            )
        )

    async def begin(self, number: int) -> None:
        self._transaction = self._connection.transaction()
        await self._transaction.start()
        await self._connection.execute("insert into acked values ($1)", number)

    async def commit(self) -> None:
        await self._transaction.commit()

    def terminate(self) -> None:
        self._connection.terminate()


class MySQLClient:
    """PyMySQL blocks, so each client has a thread of its own: all but one of them may be held."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._connection: Any = None

    @classmethod
    async def open(cls, turnout: Turnout) -> MySQLClient:
        client = cls()
        await client._run(client._connect, turnout)
        return client

    def _connect(self, turnout: Turnout) -> None:
        self._connection = pymysql.connect(
            host=turnout.host, port=turnout.port, user="app", password=PASSWORD, database="app", autocommit=False
        )

    async def _run(self, work: Callable[..., object], *args: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def begin(self, number: int) -> None:
        await self._run(self._connection.query, f"insert into acked values ({number})")

    async def commit(self) -> None:
        await self._run(self._connection.commit)

    def terminate(self) -> None:
        self._connection._force_close()
        self._thread.shutdown(wait=False)


class Load:
    """Clients that write rows with numbers nobody else uses, and remember which were acknowledged."""

    def __init__(self, open_client: Callable[[], Awaitable[Client]]) -> None:
        self._open_client = open_client
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False
        self.acknowledged: list[int] = []
        self.by_client = [0] * CLIENTS
        self.errors: list[str] = []

    def begin(self) -> None:
        for client in range(CLIENTS):
            self._tasks.append(asyncio.create_task(self._run(client)))

    async def end(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def everybody_goes_on(self, times: int = 2) -> None:
        before = list(self.by_client)
        await until(
            lambda: (
                bool(self.errors) or all(now >= then + times for now, then in zip(self.by_client, before, strict=True))
            ),
            f"every client commits {times} times more; since {before} they have {self.by_client}",
            timeout_s=30.0,
        )
        assert self.errors == []

    @contextlib.asynccontextmanager
    async def open_transaction(self) -> AsyncIterator[None]:
        """One that does not end before the body does."""
        client, number = await self._open_client(), next(self._numbers)
        await client.begin(number)
        yield
        await client.commit()
        self.acknowledged.append(number)
        client.terminate()

    async def _run(self, number_of_client: int) -> None:
        client: Client | None = None
        try:
            client = await self._open_client()
            while not self._is_over:
                number = next(self._numbers)
                await client.begin(number)
                await client.commit()
                self.acknowledged.append(number)
                self.by_client[number_of_client] += 1
                await asyncio.sleep(0.005)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, pymysql.MySQLError, OSError) as error:
            self.errors.append(f"client {number_of_client}: {error!r}")
        finally:
            if client is not None:
                client.terminate()


class Pair(Protocol):
    """What both kinds of pair have."""

    primary: Any
    standby: Any

    def servers(self) -> tuple[Any, Any]: ...
    async def swap(self) -> str: ...
    async def close(self) -> None: ...


class Kind(abc.ABC):
    """What differs between the protocols."""

    def __init__(self, pair: Pair, turnout: Turnout) -> None:
        self.pair = pair
        self.turnout = turnout

    @abc.abstractmethod
    def load(self) -> Load: ...

    @abc.abstractmethod
    async def writable(self) -> list[str]:
        """Names of the servers that take writes."""

    @abc.abstractmethod
    async def rows(self, server: str) -> set[int]:
        """The numbers that are there."""


class OnPostgres(Kind):
    def load(self) -> Load:
        return Load(lambda: PostgresClient.open(self.turnout))

    async def writable(self) -> list[str]:
        found = []
        for server in self.pair.servers():
            is_standby = await server.fetchval("select pg_is_in_recovery()")
            if not is_standby and await server.fetchval("show default_transaction_read_only") == "off":
                found.append(server.name)
        return found

    async def rows(self, server: str) -> set[int]:
        (found,) = [one for one in self.pair.servers() if one.name == server]
        return set(await found.fetchval("select array_agg(n) from acked", database="app"))


class OnMariaDB(Kind):
    def load(self) -> Load:
        return Load(lambda: MySQLClient.open(self.turnout))

    async def writable(self) -> list[str]:
        return [server.name for server in self.pair.servers() if not await server.fetchval("select @@global.read_only")]

    async def rows(self, server: str) -> set[int]:
        (found,) = [one for one in self.pair.servers() if one.name == server]
        return {row["n"] for row in await found.fetch("select n from acked", database="app")}


def _turnout(pair: Pair, folder: Path, **changes: Any) -> Turnout:
    return Turnout(
        Setup(
            engines={server.name: server.address for server in (pair.primary, pair.standby)},
            admin_password=PASSWORD,
            users={"app": PASSWORD},
            databases=["app"],
            workers=2,
            # The machine that runs this test may take its time to start a Python.
            switch={"hold_ms_max": 30_000},
            **changes,
        ),
        folder,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def postgres() -> AsyncIterator[PostgresPair]:
    """One for this module: its tests change the roles."""
    pair = await PostgresPair.create(fsync=False, niceness=NICENESS)
    try:
        await pair.primary.execute("create table acked (n int primary key); grant all on acked to app", database="app")
        yield pair
    finally:
        await pair.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mariadb() -> AsyncIterator[MariaDBPair]:
    """One for this module: its tests change the roles."""
    pair = await MariaDBPair.create(durable=False, niceness=NICENESS)
    try:
        await pair.primary.execute("create table acked (n int primary key)", database="app")
        yield pair
    finally:
        await pair.close()


@pytest_asyncio.fixture(loop_scope="session")
async def on_postgres(postgres: PostgresPair, tmp_path: Path) -> AsyncIterator[OnPostgres]:
    """Its Turnout is not started. Leaves one writable primary and one standby behind, and no process."""
    turnout = _turnout(postgres, tmp_path, protocol="postgresql", admin_user=SUPERUSER)
    try:
        yield OnPostgres(postgres, turnout)
    finally:
        await turnout.stop()
        if not await postgres.standby.fetchval("select pg_is_in_recovery()"):
            await postgres.swap()
        await postgres.primary.execute("truncate acked", database="app")


@pytest_asyncio.fixture(loop_scope="session")
async def on_mariadb(mariadb: MariaDBPair, tmp_path: Path) -> AsyncIterator[OnMariaDB]:
    """The same for MariaDB."""
    turnout = _turnout(mariadb, tmp_path, protocol="mysql", admin_user="turnout", auth_method="mysql_native_password")
    try:
        yield OnMariaDB(mariadb, turnout)
    finally:
        await turnout.stop()
        if not await mariadb.standby.fetch("show all slaves status"):
            await mariadb.swap()
        await mariadb.primary.execute("truncate acked", database="app")


async def _ask_for_a_switch(turnout: Turnout, target: str, **body: object) -> None:
    """The supervisor may be killed before it answers."""
    async with turnout.control() as client:
        try:
            await client.post("/v1/services/app/switch", json={"target_engine": target, "strategy": "graceful", **body})
        except httpx.TransportError:
            return


def _workers(turnout: Turnout) -> list[int]:
    """Whoever was started with the socket of this Turnout, whosever child it is now."""
    socket = str(turnout.folder / "run" / "supervisor.sock")
    return sorted(p.pid for p in psutil.process_iter(["cmdline"]) if socket in (p.info["cmdline"] or []))


OUTCOMES = {
    "validating": "aborted",
    "preparing": "aborted",
    "holding": "aborted",
    "draining": "aborted",
    "fencing": "aborted",
    "fenced": "aborted",
    "catching_up": "aborted",
    "promoting": "completed",
    "promoted": "completed",
    "cutting_over": "completed",
    "releasing": "completed",
    "verifying": "completed",
    "aborting": "aborted",
}
"""What becomes of a switch whose supervisor is killed at this phase, or when an engine has answered."""


@pytest.mark.postgresql
@pytest.mark.parametrize("moment", OUTCOMES)
async def test_a_supervisor_killed_in_a_switch_of_postgresql_loses_nothing(
    on_postgres: OnPostgres, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    await _kill_and_restart(on_postgres, monkeypatch, moment)


@pytest.mark.mariadb
@pytest.mark.parametrize("moment", ["draining", "fenced", "promoting", "promoted", "releasing"])
async def test_a_supervisor_killed_in_a_switch_of_mariadb_loses_nothing(
    on_mariadb: OnMariaDB, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    await _kill_and_restart(on_mariadb, monkeypatch, moment)


async def _kill_and_restart(kind: Kind, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    turnout, outcome = kind.turnout, OUTCOMES[moment]
    source, target = kind.pair.primary.name, kind.pair.standby.name
    monkeypatch.setenv(STOP_AT, moment)
    await turnout.start()
    monkeypatch.delenv(STOP_AT)
    workers = _workers(turnout)
    load = kind.load()
    load.begin()
    await load.everybody_goes_on()

    needs_drain = moment in ("draining", "aborting")
    # A drain without patience is undone at once.
    body: dict[str, object] = {"drain_timeout_seconds": 0} if moment == "aborting" else {}
    async with load.open_transaction() if needs_drain else contextlib.nullcontext():
        await _ask_for_a_switch(turnout, target, **body)
        await until(lambda: turnout.exit_code is not None, f"the supervisor is killed at {moment}", timeout_s=20.0)
    assert turnout.exit_code == -9
    assert _workers(turnout) == workers, "workers go on without a supervisor"
    if moment in ("validating", "preparing"):
        await load.everybody_goes_on()

    await turnout.start()
    (switch,) = await turnout.get("/v1/switches")

    async def has_ended() -> bool:
        return bool((await turnout.get(f"/v1/switches/{switch['id']}"))["phase"] == outcome)

    await until(has_ended, f"the switch ends as {outcome}", timeout_s=20.0)
    await load.everybody_goes_on()
    await load.end()

    assert load.errors == []
    active = target if outcome == "completed" else source
    assert await kind.writable() == [active]
    (service,) = (await turnout.get("/v1/status"))["services"]
    assert service["view"]["active"] == active
    assert _workers(turnout) == workers, "the workers were adopted"
    assert set(load.acknowledged) <= await kind.rows(active)
    assert (await turnout.get(f"/v1/switches/{switch['id']}"))["recovered"]
