"""Every trigger of a policy fires on its real cause, on a whole Turnout with real servers, and not without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psutil
import psycopg
import pytest
import pytest_asyncio

from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from proxy.tasks import cancel_and_wait, spawn
from tests.e2e.doors import Door
from tests.kit.between import Between
from tests.kit.turned_clock import TurnedClock
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

CALM = {
    "service": "app", "target_engine": "two", "window_duration": 2, "min_evidence": 5, "cool_down": 0,
    "max_switches_per_hour": 100,
}  # fmt: skip


class Stage:
    """A Turnout before two addresses of one server, of which the first one may be made slow."""

    def __init__(self, turnout: Turnout, between: Between, clock: TurnedClock) -> None:
        self.turnout = turnout
        self.between = between
        self.clock = clock
        self.dsn = Door(name="session", port=turnout.port).dsn()

    async def put(self, name: str, **keys: object) -> dict[str, Any]:
        async with self.turnout.control() as client:
            answer = await client.put(f"/v1/policies/{name}", json={**CALM, **keys})
            answer.raise_for_status()
            view: dict[str, Any] = answer.json()
            return view

    async def last(self, name: str) -> dict[str, Any]:
        """The last decision; empty: there was none."""
        return (await self.turnout.get(f"/v1/policies/{name}"))["last"] or {}

    async def code(self, name: str) -> str:
        """Of the last decision."""
        code: str = (await self.last(name)).get("code", "")
        return code

    async def until_code(self, name: str, code: str) -> None:
        async def is_it() -> bool:
            return await self.code(name) == code

        try:
            await until(is_it, f"policy {name} says {code}", 30)
        except AssertionError as error:
            error.add_note(f"its last decision: {await self.last(name)}")
            raise

    async def history(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.turnout.get(f"/v1/policies/{name}/history")
        return found

    async def figures(self, engine: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.turnout.get(f"/v1/services/app/engines/{engine}/metrics")
        return found

    async def end(self) -> None:
        """As it was before."""
        self.between.delay_s = 0.0
        self.clock.turn_to(time.time())
        async with self.turnout.control() as client:
            for view in (await client.get("/v1/policies")).json():
                (await client.delete(f"/v1/policies/{view['policy']['name']}")).raise_for_status()
        [service] = (await self.turnout.get("/v1/status"))["services"]
        if service["view"]["active"] != "one":
            assert (await self.turnout.switch("one"))["phase"] == "completed"

    @asynccontextmanager
    async def work(self, ask: Callable[[psycopg.AsyncConnection[Any]], Awaitable[None]]) -> AsyncIterator[None]:
        """Somebody asks the same over and over."""
        connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)

        async def go_on() -> None:
            while True:
                await ask(connection)

        task = spawn(go_on(), name="a client's work")
        try:
            yield
        finally:
            await cancel_and_wait(task)
            await connection.close()

    async def assert_fired(self, name: str, because: str) -> None:
        """It moved the service, and all of that is told."""
        fired = [one for one in await self.history(name) if one["code"] == "fired"]
        assert len(fired) == 1
        assert fired[0]["text"].startswith(f"fired because {because}"), fired
        record = await self.turnout.get(f"/v1/switches/{fired[0]['switch']}")
        assert (record["phase"], record["target"], record["plan"]["requested_by"]) == (
            "completed", "two", f"policy {name}",
        )  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module")
async def stage(everlasting: Stage) -> AsyncIterator[Stage]:
    """The first address serves, and there is no policy."""
    yield everlasting
    await everlasting.end()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everlasting(postgres_pair: PostgresPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    between = Between(postgres_pair.primary.port)
    clock = TurnedClock(tmp_path_factory.mktemp("clock"))
    async with between.listening():
        turnout = Turnout(
            Setup(
                protocol="postgresql",
                engines={"one": between.address, "two": postgres_pair.primary.address},
                admin_user=SUPERUSER,
                admin_password=PASSWORD,
                users={"app": PASSWORD},
                service={"replication": "none"},
                switch={"drain_timeout_s": 3.0},
                engine={"load": {"source": "process", "pid_file": str(postgres_pair.primary.data / "postmaster.pid")}},
                env=clock.env,
            ),
            tmp_path_factory.mktemp("policies"),
        )
        await turnout.start()
        try:
            yield Stage(turnout, between, clock)
        finally:
            await turnout.stop()


async def test_a_slow_engine_is_left_and_a_quick_one_is_not(stage: Stage) -> None:
    async def ask(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("select 1")

    async with stage.work(ask):
        await stage.put("slow", trigger="performance_degradation", response_time_threshold_ms=40)
        await stage.until_code("slow", "not_above")
        figures = await stage.figures("one")
        assert 0 < figures["response_time_ms"] < 40
        assert figures["query_rate_per_second"] > 0
        assert figures["availability_percent"] == 100.0
        assert (await stage.figures("two"))["response_time_ms"] is None
        stage.between.delay_s = 0.1
        await stage.until_code("slow", "switched")
        await stage.assert_fired("slow", "the mean response time of one was ")
        await stage.until_code("slow", "target_serves")


async def test_errors_of_the_server_move_the_service_and_those_of_the_client_do_not(stage: Stage) -> None:
    async with stage.work(_is_wrong):
        await stage.put("errors", trigger="error_rate", error_rate_threshold=10)
        await stage.until_code("errors", "not_above")
        assert (await stage.figures("one"))["error_rate_percent"] == 0.0
    async with stage.work(_times_out):
        await stage.until_code("errors", "switched")
    await stage.assert_fired("errors", "the error rate of one was ")


async def _is_wrong(connection: psycopg.AsyncConnection[Any]) -> None:
    """42703, undefined_column: the client's own fault."""
    with pytest.raises(psycopg.errors.UndefinedColumn):
        await connection.execute("select no_such_column")


async def _times_out(connection: psycopg.AsyncConnection[Any]) -> None:
    """57014, query_canceled: nothing the client got wrong."""
    with pytest.raises(psycopg.errors.QueryCanceled):  # on a busy machine the SET, too
        await connection.execute("set statement_timeout = 5")
        await connection.execute("select pg_sleep(1)")


async def test_too_many_connections_move_the_service(stage: Stage, postgres_pair: PostgresPair) -> None:
    async def known() -> bool:
        return (await stage.figures("one"))["active_connections"] is not None

    await until(known, "connections are counted")
    limit = (await stage.figures("one"))["active_connections"] + 10
    await stage.put("crowd", trigger="load_threshold", connection_threshold=limit)
    await stage.until_code("crowd", "not_above")
    crowd = [await psycopg.AsyncConnection.connect(_direct(postgres_pair)) for _ in range(15)]
    try:
        await stage.until_code("crowd", "switched")
    finally:
        for one in crowd:
            await one.close()
    await stage.assert_fired("crowd", "active_connections of one was ")


async def test_a_busy_processor_moves_the_service(stage: Stage, postgres_pair: PostgresPair) -> None:
    async def known() -> bool:
        return (await stage.figures("one"))["cpu_usage_percent"] is not None

    await until(known, "the server's process is seen")
    assert 0 < (await stage.figures("one"))["memory_usage_percent"] < 100

    async def burn(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("select count(*) from generate_series(1, 2000000)")

    # The server is nice to other tests, and gets what they leave it: a little of one processor is much here.
    await stage.put("busy", trigger="load_threshold", cpu_threshold=5 / (psutil.cpu_count() or 1))
    await stage.until_code("busy", "not_above")
    async with stage.work(burn), stage.work(burn), stage.work(burn), stage.work(burn):
        await stage.until_code("busy", "switched")
    await stage.assert_fired("busy", "cpu_usage_percent of one was ")


async def test_a_schedule_moves_the_service_at_its_hour_in_its_zone(stage: Stage) -> None:
    rules = {"trigger": "scheduled", "time_zone": "Europe/Berlin"}
    await stage.put("early", **rules, cron_expression="30 4 * * *")
    await stage.put("late", **rules, cron_expression="40 4 * * *")
    for name in ("early", "late"):
        await stage.until_code(name, "waits")
    at: float = (await stage.turnout.get("/v1/policies/early"))["next_time"]
    assert at > time.time()
    assert f"{datetime.fromtimestamp(at, ZoneInfo('Europe/Berlin')):%H:%M:%S}" == "04:30:00"
    stage.clock.turn_to(at)
    await stage.until_code("early", "switched")
    await stage.assert_fired("early", "its time has come (30 4 * * * Europe/Berlin)")
    assert await stage.code("late") == "waits"


async def test_a_policy_is_run_by_hand_and_survives_a_restart(stage: Stage) -> None:
    await stage.put("byhand", trigger="manual")
    await stage.until_code("byhand", "waits")
    async with stage.turnout.control() as client:
        answer = await client.post("/v1/policies/byhand/run")
        assert answer.status_code == 202, answer.text
    await stage.until_code("byhand", "switched")
    await stage.turnout.stop()
    await stage.turnout.start()
    listed = {one["policy"]["name"]: one for one in await stage.turnout.get("/v1/policies")}
    assert listed["byhand"]["policy"]["trigger"] == "manual"
    codes = [one["code"] for one in await stage.history("byhand")]
    assert [code for code in codes if code in ("fired", "switched")] == ["switched", "fired"]


def _direct(pair: PostgresPair) -> str:
    return Door(name="direct", port=pair.primary.port).dsn()


async def test_two_that_could_fire_together_are_decided_by_priority(stage: Stage) -> None:
    async def ask(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("select 1")
        await asyncio.sleep(0)

    rules = {"trigger": "performance_degradation", "response_time_threshold_ms": 40}
    await stage.put("second", **rules, priority=10)
    await stage.put("first", **rules, priority=200)
    async with stage.work(ask):
        stage.between.delay_s = 0.1
        await stage.until_code("first", "switched")
    assert "lower_priority" in [one["code"] for one in await stage.history("second")]


async def test_a_failed_primary_is_replaced_by_the_standby_that_the_policy_names(
    fresh_postgres_pair: PostgresPair, tmp_path: Path
) -> None:
    """Of two that have all it wrote; without the policy the first by name would be taken."""
    pair = fresh_postgres_pair
    last = await pair.primary.clone_to("zebra")
    assert last.name > pair.standby.name
    policy = {"trigger": "failure", "target_engine": last.name}
    turnout = Turnout(
        Setup(
            protocol="postgresql",
            engines={server.name: server.address for server in (pair.primary, pair.standby, last)},
            admin_user=SUPERUSER,
            admin_password=PASSWORD,
            users={"app": PASSWORD},
            service={"failover": {"probe_interval_s": 0.1, "probe_timeout_s": 0.5}, "policy": {"heir": policy}},
        ),
        tmp_path,
    )
    await turnout.start()
    try:

        async def is_watched() -> bool:
            [service] = (await turnout.get("/v1/status"))["services"]
            view = service["view"]
            return view["failover"]["health"] == "answering" and all(one["probed_at"] for one in view["engines"])

        async def are_even() -> bool:
            behind = await pair.primary.fetchval(
                # Not the place of the next record, which is behind the header of a page when the last one ended with a page.
                "select count(*) from pg_stat_replication where flush_lsn is distinct from pg_current_wal_flush_lsn()"
            )
            return bool(behind == 0)

        await until(is_watched, "all engines were probed")
        await until(are_even, "both standbys have all of it")
        await pair.primary.kill()

        async def has_fired() -> bool:
            decisions = await turnout.get("/v1/policies/heir/history")
            return any(one["code"] == "fired" for one in decisions)

        await until(has_fired, "the policy has named who takes over", timeout_s=20.0)
        [fired] = [one for one in await turnout.get("/v1/policies/heir/history") if one["code"] == "fired"]
        assert fired["text"] == f"fired because {pair.primary.name} failed: {last.name} took over"
        [service] = (await turnout.get("/v1/status"))["services"]
        assert service["view"]["active"] == last.name
        connection = await psycopg.AsyncConnection.connect(Door(name="session", port=turnout.port).dsn())
        await connection.execute("create temporary table it_is_writable (n int)")
        await connection.close()
    finally:
        await turnout.stop()
        await last.stop("immediate")
