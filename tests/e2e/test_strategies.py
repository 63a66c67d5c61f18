"""Strategies in which two engines serve, the window after a cutover, and switches that wait: on real servers, under load.

The engines are addresses of one server. One of them, `two`, is a forwarder that answers late.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
import pymysql
import pytest
import pytest_asyncio

from proxy.embedded import MariaDBPair, PostgresPair, ServerFailed, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.e2e.doors import Door
from tests.e2e.mysql_rules import connect
from tests.kit.forwarder import Forwarder
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

SLOW_S = 0.01


def _setup(engines: dict[str, str], *, pool_mode: Any = "session", workers: int = 1, **switch: object) -> Setup:
    return Setup(
        protocol="postgresql",
        engines=engines,
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        pool_mode=pool_mode,
        workers=workers,
        service={"replication": "none"},
        switch={"requests_min": 100, **switch},
    )


@dataclass(frozen=True, slots=True)
class Scene:
    """A Turnout that several tests use, each from `one` on."""

    turnout: Turnout
    slow: Forwarder
    """Engine `two`; it listens when the test says so."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared_scene(postgres_pair: PostgresPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """Engine `three` is as good as `one`."""
    slow = Forwarder(postgres_pair.primary.port, SLOW_S)
    port = postgres_pair.primary.port
    engines = {"one": postgres_pair.primary.address, "two": slow.address, "three": f"localhost:{port}"}
    setup = _setup(engines, workers=2, latency_ratio_max=4.0)
    turnout = Turnout(setup, tmp_path_factory.mktemp("turnout-strategies"))
    await turnout.start()
    try:
        yield Scene(turnout, slow)
    finally:
        await turnout.stop()


@pytest_asyncio.fixture
async def scene(shared_scene: Scene) -> Scene:
    turnout = shared_scene.turnout
    if (running := (await turnout.get("/v1/status"))["services"][0]["view"]["running"]) is not None:
        # Of a test that failed.
        await _post(turnout, f"/v1/switches/{running['id']}/cancel")
        await _ended(turnout, running["id"])
    if (await turnout.get("/v1/status"))["services"][0]["view"]["active"] != "one":
        await turnout.switch("one")
    return shared_scene


class Client(Protocol):
    async def execute(self, query: Any) -> Any: ...


class MysqlClient:
    """PyMySQL from a thread."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def execute(self, query: str) -> None:
        await asyncio.to_thread(self._connection.query, query)


@asynccontextmanager
async def _load(clients: Sequence[Client]) -> AsyncIterator[None]:
    """Each client asks one thing after the other; an error of any of them fails the test."""
    is_over = asyncio.Event()

    async def ask(client: Client) -> None:
        while not is_over.is_set():
            await client.execute("select 1")
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(ask(client))
        try:
            yield
        finally:
            is_over.set()


@asynccontextmanager
async def _clients(turnout: Turnout, count: int) -> AsyncIterator[list[psycopg.AsyncConnection[Any]]]:
    async with AsyncExitStack() as stack:
        dsn = Door(name="session", port=turnout.port).dsn()
        yield [
            await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn, autocommit=True))
            for _ in range(count)
        ]


async def _engines(turnout: Turnout) -> Counter[str]:
    """Sessions by engine; without a backend in transaction mode they are on none."""
    return Counter(one["engine"] for one in await turnout.get("/v1/sessions"))


async def _is_comparable(turnout: Turnout, target: str) -> bool:
    """Enough was seen to tell after a cutover whether the service became worse."""
    checks = (await turnout.get(f"/v1/services/app/ready/{target}"))["checks"]
    return [one["verdict"] for one in checks if one["name"] == "window"] == ["pass"]


async def _post(turnout: Turnout, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
    async with turnout.control() as client:
        answer = await client.post(path, json=body or {})
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


async def _begin(turnout: Turnout, target: str, **body: object) -> str:
    begun = await _post(turnout, "/v1/services/app/switch", {"target_engine": target, **body})
    return str(begun["id"])


async def _ended(turnout: Turnout, switch_id: str) -> dict[str, Any]:
    async def has_ended() -> bool:
        return (await turnout.get(f"/v1/switches/{switch_id}"))["phase"] in (
            "completed", "aborted", "rolled_back", "failed",
        )  # fmt: skip

    await until(has_ended, "the switch has ended", 40)
    found: dict[str, Any] = await turnout.get(f"/v1/switches/{switch_id}")
    return found


async def test_a_canary_that_is_slow_is_left_without_an_operator(scene: Scene) -> None:
    """And long before its time is over, without an error for anybody."""
    async with scene.slow.listening(), _clients(scene.turnout, 6) as clients:
        async with _load(clients):
            ended = await scene.turnout.switch(
                "two", strategy="canary", traffic_percentage=40, validation_duration_seconds=60, timeout_s=60
            )
        assert ended["phase"] == "aborted", ended
        assert "times as long" in ended["error"]
        opinion = ended["report"]["opinions"]["canary"]
        assert opinion["finding"] == "worse"
        assert opinion["latency_ratio"] > 4
        assert ended["figures"]["errors_visible"] == 0
        assert await _engines(scene.turnout) == {"one": 6}
        assert (await scene.turnout.get("/v1/status"))["services"][0]["view"]["active"] == "one"


async def test_a_good_canary_is_taken(scene: Scene) -> None:
    """Clients that come while both serve begin on both."""
    turnout = scene.turnout
    async with _clients(turnout, 6) as clients, _load(clients):
        switch_id = await _begin(
            turnout, "three", strategy="canary", traffic_percentage=50, validation_duration_seconds=2
        )

        async def has_moved() -> bool:
            return (await _engines(turnout))["three"] == 3

        await until(has_moved, "half of the sessions are on three")
        async with _clients(turnout, 8):
            found = await _engines(turnout)
            # Half of those that come to each of the two workers, which may be an odd number.
            assert found["three"] in (6, 7), found
            assert found.total() == 14
        ended = await _ended(turnout, switch_id)
        assert ended["phase"] == "completed", ended
        assert ended["report"]["opinions"]["canary"]["finding"] == "good"
        assert await _engines(turnout) == {"three": 6}
        assert [one["phase"] for one in ended["report"]["phases_us"]][1:4] == ["validating", "sharing", "preparing"]


async def test_a_canary_without_enough_requests_shows_nothing_and_is_left(scene: Scene) -> None:
    turnout = scene.turnout
    async with _clients(turnout, 2):
        ended = await turnout.switch("three", strategy="canary", validation_duration_seconds=1)
        assert ended["phase"] == "aborted"
        assert "was not shown to be as good" in ended["error"]
        assert await _engines(turnout) == {"one": 2}


async def test_a_canary_that_fails_is_left(scene: Scene) -> None:
    """The server behind it is gone: its sessions go on where they were."""
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(AsyncExitStack())
        await target.enter_async_context(scene.slow.listening())
        clients = await stack.enter_async_context(_clients(scene.turnout, 4))
        switch_id = await _begin(
            scene.turnout, "two", strategy="canary", traffic_percentage=50, validation_duration_seconds=60
        )

        async def has_moved() -> bool:
            return (await _engines(scene.turnout))["two"] == 2

        await until(has_moved, "half of the sessions are on two")
        await target.aclose()
        ended = await _ended(scene.turnout, switch_id)
        assert ended["phase"] == "aborted"
        assert "two was lost" in ended["error"]
        for client in clients:
            await client.execute("select 1")
        assert await _engines(scene.turnout) == {"one": 4}


async def test_a_rolling_switch_moves_batch_after_batch_while_both_serve(scene: Scene) -> None:
    """With what they had set, and what only moves while all are held comes last."""
    turnout = scene.turnout
    async with _clients(turnout, 9) as clients:
        for number, client in enumerate(clients):
            await client.execute(f"set application_name to 'n{number}'")
        await clients[0].execute("select pg_advisory_lock(4711)")
        async with _load(clients[:4]):
            switch_id = await _begin(turnout, "three", strategy="rolling", batch_size=3, interval_seconds=0.4)
            seen = {0}

            async def has_ended() -> bool:
                found = await _engines(turnout)
                if found["one"]:
                    seen.add(found["three"])
                return bool((await turnout.get(f"/v1/switches/{switch_id}"))["phase"] == "completed")

            await until(has_ended, "the switch is complete")
        steps = sorted(seen)
        assert len(steps) > 2, "batch after batch"
        assert steps[-1] == 8, "the session with the lock stays until all are held"
        assert await _engines(turnout) == {"three": 9}
        for number, client in enumerate(clients):
            cursor = await client.execute("show application_name")
            assert await cursor.fetchone() == (f"n{number}",)
        cursor = await clients[0].execute("select pg_advisory_unlock(4711)")
        assert await cursor.fetchone() == (True,)


async def test_a_rolling_switch_that_is_cancelled_brings_everybody_back(scene: Scene) -> None:
    """Whoever is in a transaction there comes back when it is over."""
    turnout = scene.turnout
    async with _clients(turnout, 4) as clients:
        switch_id = await _begin(turnout, "three", strategy="rolling", batch_size=3, interval_seconds=60)

        async def has_moved() -> bool:
            return (await _engines(turnout))["three"] == 3

        await until(has_moved, "a batch is on three")
        for client in clients:
            await client.execute("begin")
        await _post(turnout, f"/v1/switches/{switch_id}/cancel")
        ended = await _ended(turnout, switch_id)
        assert ended["phase"] == "aborted"
        assert ended["figures"]["errors_visible"] == 0
        assert (await _engines(turnout))["three"] == 3
        for client in clients:
            await client.execute("commit")

        async def is_home() -> bool:
            return await _engines(turnout) == {"one": 4}

        await until(is_home, "everybody is on one")


async def test_two_servers_that_both_take_writes_never_serve_together(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """Replication runs one way: reads may be forced onto the standby, a writable one would diverge."""
    engines = {"one": postgres_pair.primary.address, "two": postgres_pair.standby.address}
    setup = _setup(engines)
    setup.service = {}
    turnout = await start_turnout(setup)
    with pytest.raises(ServerFailed, match="both_serve"):
        await turnout.switch("two", strategy="rolling")
    readiness = await _post(
        turnout, "/v1/services/app/switch",
        {"target_engine": "two", "strategy": "rolling", "force": True, "dry_run": True},
    )  # fmt: skip
    (check,) = [one for one in readiness["checks"] if one["name"] == "both_serve"]
    assert check["is_overridable"], "the standby refuses writes by itself"


@pytest.mark.mariadb
async def test_strategies_in_which_both_serve_on_mariadb(
    start_turnout: StartTurnout, mariadb_pair: MariaDBPair
) -> None:
    """A slow canary is left, then a rolling switch takes everybody."""
    slow = Forwarder(mariadb_pair.primary.port, SLOW_S)
    async with slow.listening():
        turnout = await start_turnout(
            Setup(
                protocol="mysql",
                engines={"one": mariadb_pair.primary.address, "two": slow.address},
                admin_user="turnout",
                admin_password="secret",
                users={"app": "secret"},
                auth_method="mysql_native_password",
                service={"replication": "none"},
                switch={"requests_min": 100},
            )
        )
        door = Door(name="session", port=turnout.port)
        connections: list[pymysql.Connection[Any]] = [await asyncio.to_thread(connect, door) for _ in range(4)]
        try:
            await asyncio.to_thread(connections[0].query, "set @mine = 42")
            async with _load([MysqlClient(one) for one in connections]):
                ended = await turnout.switch(
                    "two", strategy="canary", traffic_percentage=50, validation_duration_seconds=60, timeout_s=60
                )
                assert ended["phase"] == "aborted", ended
                assert ended["report"]["opinions"]["canary"]["finding"] == "worse"
                assert await _engines(turnout) == {"one": 4}
                ended = await turnout.switch("two", strategy="rolling", batch_size=2, interval_seconds=0.05)
                assert ended["phase"] == "completed", ended
            assert await _engines(turnout) == {"two": 4}
            with connections[0].cursor() as cursor:
                await asyncio.to_thread(cursor.execute, "select @mine")
                assert cursor.fetchone() == (42,)
        finally:
            for one in connections:
                one.close()


@pytest.mark.mariadb
async def test_a_service_goes_back_to_a_source_that_has_followed_and_misses_nothing(
    start_turnout: StartTurnout, mariadb_pair: MariaDBPair
) -> None:
    """The way back is a switch like any other: with fence, catch-up and promotion."""
    slow = Forwarder(mariadb_pair.standby.port, SLOW_S)
    async with slow.listening():
        turnout = await start_turnout(
            Setup(
                protocol="mysql",
                engines={"blue": mariadb_pair.primary.address, "green": slow.address},
                admin_user="turnout",
                admin_password="secret",
                users={"app": "secret"},
                auth_method="mysql_native_password",
                databases=["app"],
                service={
                    "reverse_replication": True,
                    "replication_login": {"user": "repl", "password": {"file": "admin.txt"}},
                },
                switch={"requests_min": 100, "verify_window_s": 30.0},
            )
        )
        door = Door(name="session", port=turnout.port)
        connections: list[pymysql.Connection[Any]] = [await asyncio.to_thread(connect, door) for _ in range(4)]
        try:
            await asyncio.to_thread(
                connections[0].query, "create table app.came_along (n int auto_increment primary key)"
            )
            acknowledged = 0

            async def write() -> None:
                nonlocal acknowledged
                await asyncio.to_thread(connections[0].query, "insert into app.came_along values ()")
                acknowledged += 1

            async with _load([MysqlClient(one) for one in connections[1:]]):

                async def was_seen() -> bool:
                    await write()
                    return await _is_comparable(turnout, "green")

                await until(was_seen, "there is something to compare with", 30)
                switch_id = await _begin(turnout, "green")

                async def has_ended() -> bool:
                    await write()
                    return (await turnout.get(f"/v1/switches/{switch_id}"))["phase"] in (
                        "rolled_back",
                        "failed",
                        "aborted",
                    )

                await until(has_ended, "the switch has ended", 40)
            ended = await turnout.get(f"/v1/switches/{switch_id}")
            assert ended["phase"] == "rolled_back", ended
            (back, *_) = await turnout.get("/v1/switches")
            assert (back["goes_back_from"], back["phase"], back["target"]) == (switch_id, "completed", "blue")
            report = await turnout.get(f"/v1/switches/{back['id']}/report")
            assert report["fence"] is not None
            assert report["figures"]["acked_lost"] == 0
            (row,) = await mariadb_pair.primary.fetch("select count(*) as n from app.came_along")
            assert row["n"] == acknowledged
        finally:
            for one in connections:
                one.close()
            await mariadb_pair.primary.execute("drop table app.came_along")


async def test_a_service_that_is_worse_after_the_cutover_goes_back_by_itself(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """With a record of its own for the way back, and counted."""
    slow = Forwarder(postgres_pair.primary.port, SLOW_S)
    async with slow.listening():
        engines = {"one": postgres_pair.primary.address, "two": slow.address}
        turnout = await start_turnout(_setup(engines, pool_mode="transaction", verify_window_s=20.0))
        async with _clients(turnout, 4) as clients, _load(clients):
            await until(lambda: _is_comparable(turnout, "two"), "there is something to compare with", 30)
            ended = await turnout.switch("two")
            assert ended["phase"] == "rolled_back", ended["report"]["opinions"]
            assert "worse than before" in ended["error"]
            # The canary in this mode, too: a session has no backend of its own.
            ended_again = await turnout.switch(
                "two", strategy="canary", traffic_percentage=50, validation_duration_seconds=60, timeout_s=60
            )
            assert ended_again["phase"] == "aborted"
            assert ended_again["report"]["opinions"]["canary"]["finding"] == "worse"
            assert "two" not in await _engines(turnout)
        (_, back, first, *_) = await turnout.get("/v1/switches")
        assert (first["id"], back["goes_back_from"], back["phase"]) == (ended["id"], ended["id"], "completed")
        view = (await turnout.get("/v1/status"))["services"][0]["view"]
        assert view["active"] == "one"
        assert view["tally"] == {"completed": 0, "aborted": 1, "rolled_back": 1, "failed": 0}
        assert ended["figures"]["rollback_count"] == 1


async def test_switches_wait_for_their_turn_and_their_time_also_over_a_restart(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    engines = {"one": postgres_pair.primary.address, "two": f"localhost:{postgres_pair.primary.port}"}
    turnout = await start_turnout(_setup(engines, drain_timeout_s=60.0, hold_ms_max=20_000, schedule_grace_s=0.0))
    async with _clients(turnout, 1) as (client,):
        await client.execute("begin")
        first = await _begin(turnout, "two", reason="first")
        second = await _begin(turnout, "one", when_busy="queue")
        third = await _begin(turnout, "two", when_busy="queue")
        with pytest.raises(ServerFailed, match="is under way"):
            await turnout.switch("two")
        records = {one["id"]: one for one in await turnout.get("/v1/switches")}
        assert [records[one]["phase"] for one in (second, third)] == ["pending", "pending"]
        waiting = (await turnout.get("/v1/status"))["services"][0]["view"]["waiting"]
        assert [one["id"] for one in waiting] == [second, third]
        assert (await _post(turnout, f"/v1/switches/{third}/cancel"))["phase"] == "aborted"
        await client.execute("commit")
        assert (await _ended(turnout, first))["phase"] == "completed"
        assert (await _ended(turnout, second))["phase"] == "completed"
        assert (await turnout.get("/v1/status"))["services"][0]["view"]["active"] == "one"
    soon = await _begin(turnout, "two", in_seconds=0.4)
    assert (await _ended(turnout, soon))["phase"] == "completed"
    later = await _begin(turnout, "one", in_seconds=3_600)
    missed = await _begin(turnout, "one", in_seconds=1)
    due = time.time() + 1
    with pytest.raises(ServerFailed, match="has no zone"):
        await turnout.switch("one", at="2030-01-31T02:00:00")
    turnout.processes()[0].send_signal(signal.SIGTERM)
    await turnout.stop()
    await until(lambda: time.time() > due, "its time has passed")
    await turnout.start()
    assert (await turnout.get(f"/v1/switches/{later}"))["phase"] == "pending"
    gone = await turnout.get(f"/v1/switches/{missed}")
    assert (gone["phase"], gone["error"][:6]) == ("aborted", "missed")
    assert (await _post(turnout, f"/v1/switches/{later}/cancel"))["error"].startswith("cancelled")


async def test_a_supervisor_killed_while_both_engines_serve_brings_everybody_home(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    engines = {"one": postgres_pair.primary.address, "two": f"localhost:{postgres_pair.primary.port}"}
    turnout = await start_turnout(_setup(engines, workers=2))
    async with _clients(turnout, 6) as clients, _load(clients):
        switch_id = await _begin(turnout, "two", strategy="rolling", batch_size=1, interval_seconds=0.2)

        async def are_apart() -> bool:
            return (await _engines(turnout))["two"] > 0

        await until(are_apart, "both engines serve")
        assert turnout.pid is not None
        os.kill(turnout.pid, signal.SIGKILL)
        await until(lambda: turnout.exit_code is not None, "the supervisor is gone")
        await turnout.start()
        ended = await _ended(turnout, switch_id)
        assert (ended["phase"], ended["recovered"]) == ("aborted", True), ended

        async def are_home() -> bool:
            return await _engines(turnout) == {"one": 6}

        await until(are_home, "everybody is back")


@pytest.mark.soak  # it waits for a window to break its limits, and for a restart
async def test_a_supervisor_killed_on_the_way_back_says_that_it_did_not_go_back(
    start_turnout: StartTurnout, postgres_pair: PostgresPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody notices, and the engine that is worse serves on until a person switches."""
    slow = Forwarder(postgres_pair.primary.port, SLOW_S)
    async with slow.listening():
        monkeypatch.setenv("TURNOUT_TEST_STOP_AT", "rolling_back")
        engines = {"one": postgres_pair.primary.address, "two": slow.address}
        turnout = await start_turnout(_setup(engines, pool_mode="transaction", verify_window_s=10.0))
        monkeypatch.delenv("TURNOUT_TEST_STOP_AT")
        async with _clients(turnout, 4) as clients, _load(clients):
            await until(lambda: _is_comparable(turnout, "two"), "there is something to compare with", 30)
            switch_id = await _begin(turnout, "two")
            await until(lambda: turnout.exit_code is not None, "it goes back, and the supervisor is killed", 30)
            await turnout.start()
            ended = await _ended(turnout, switch_id)
            assert ended["phase"] == "failed", ended
            assert "could not go back: the supervisor was restarted before it began" in ended["error"]
            assert (await turnout.switch("one"))["phase"] == "completed"
