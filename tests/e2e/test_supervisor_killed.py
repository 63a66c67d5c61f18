"""SIGKILL of the supervisor in each phase of a switch, in the middle of load, and a restart.

What must hold each time: one writable primary, and Turnout serves from it; every client goes on without having seen an
error; every acknowledged row is there. The moment is chosen by `TURNOUT_TEST_STOP_AT`, see `proxy.switch.orchestrator`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest
import pytest_asyncio

from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.kit.servers import NICENESS
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

CLIENTS = 6
STOP_AT = "TURNOUT_TEST_STOP_AT"


class Load:
    """Clients that write rows with numbers nobody else uses, and remember which were acknowledged."""

    def __init__(self, turnout: Turnout) -> None:
        self._turnout = turnout
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
            lambda: all(now >= then + times for now, then in zip(self.by_client, before, strict=True)),
            f"every client commits {times} times more; since {before} they have {self.by_client}, {self.errors}",
            timeout_s=30.0,
        )

    async def connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(
            host=self._turnout.host, port=self._turnout.port, user="app", password=PASSWORD, database="app"
        )

    @contextlib.asynccontextmanager
    async def open_transaction(self) -> AsyncIterator[None]:
        """One that does not end before the body does."""
        connection, number = await self.connect(), next(self._numbers)
        async with connection.transaction():
            await connection.execute("insert into acked values ($1)", number)
            yield
        self.acknowledged.append(number)
        # Not close(): the session is held now, and its goodbye is not read before the release.
        connection.terminate()

    async def _run(self, client: int) -> None:
        try:
            connection = await self.connect()
            while not self._is_over:
                number = next(self._numbers)
                async with connection.transaction():
                    await connection.execute("insert into acked values ($1)", number)
                self.acknowledged.append(number)
                self.by_client[client] += 1
                await asyncio.sleep(0.005)
            await connection.close()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            self.errors.append(f"client {client}: {error!r}")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair() -> AsyncIterator[PostgresPair]:
    """One for this module: its tests change the roles."""
    pair = await PostgresPair.create(fsync=False, niceness=NICENESS)
    try:
        await pair.primary.execute("create table acked (n int primary key); grant all on acked to app", database="app")
        yield pair
    finally:
        await pair.close()


@pytest_asyncio.fixture(loop_scope="session")
async def turnout(pair: PostgresPair, tmp_path: Path) -> AsyncIterator[Turnout]:
    """Not started. Leaves one writable primary and one standby behind, and no process."""
    turnout = Turnout(
        Setup(
            protocol="postgresql",
            engines={server.name: server.address for server in (pair.primary, pair.standby)},
            admin_user=SUPERUSER,
            admin_password=PASSWORD,
            users={"app": PASSWORD},
            databases=["app"],
            workers=2,
            # The machine that runs this test may take its time to start a Python.
            switch={"hold_ms_max": 30_000},
        ),
        tmp_path,
    )
    try:
        yield turnout
    finally:
        await turnout.stop()
        if not await pair.standby.fetchval("select pg_is_in_recovery()"):
            await pair.swap()
        await pair.primary.execute("truncate acked", database="app")


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


async def _writable(pair: PostgresPair) -> list[str]:
    found = []
    for server in pair.servers():
        is_standby = await server.fetchval("select pg_is_in_recovery()")
        if not is_standby and await server.fetchval("select current_setting('default_transaction_read_only')") == "off":
            found.append(server.name)
    return found


@pytest.mark.parametrize(
    ("moment", "outcome"),
    [
        ("validating", "aborted"),
        ("preparing", "aborted"),
        ("holding", "aborted"),
        ("draining", "aborted"),
        ("fencing", "aborted"),
        ("fenced", "aborted"),
        ("catching_up", "aborted"),
        ("promoting", "completed"),
        ("promoted", "completed"),
        ("cutting_over", "completed"),
        ("releasing", "completed"),
        ("verifying", "completed"),
        ("aborting", "aborted"),
    ],
)
async def test_a_supervisor_that_is_killed_in_the_middle_of_a_switch_loses_nothing(
    turnout: Turnout, pair: PostgresPair, monkeypatch: pytest.MonkeyPatch, moment: str, outcome: str
) -> None:
    source, target = pair.primary.name, pair.standby.name
    monkeypatch.setenv(STOP_AT, moment)
    await turnout.start()
    monkeypatch.delenv(STOP_AT)
    workers = _workers(turnout)
    load = Load(turnout)
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
    assert await _writable(pair) == [active]
    (service,) = (await turnout.get("/v1/status"))["services"]
    assert service["view"]["active"] == active
    assert _workers(turnout) == workers, "the workers were adopted"
    rows = await pair.by_name(active).fetchval("select array_agg(n) from acked", database="app")
    assert set(load.acknowledged) <= set(rows)
    report = await turnout.get(f"/v1/switches/{switch['id']}")
    assert report["recovered"]
