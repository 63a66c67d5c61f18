"""PostgreSQL servers of their own, kept equal by logical replication, from 16 to 18 and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.config import EngineLogin, Secret
from proxy.engines.engine import Position, Role
from proxy.errors import EngineError
from proxy.switch.state import Phase
from tests.kit.servers import LogicalPair, logical_pair_alone
from tests.kit.waiting import until
from tests.proxy.switch.stage import Stage

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair() -> AsyncIterator[LogicalPair]:
    async with logical_pair_alone() as one:
        yield one


def stage_of(pair: LogicalPair, folder: Path, compare_at_fence_ms: int = 0, **service: object) -> Stage:
    login = EngineLogin(user="postgres", password=Secret(value="secret"))
    given = {
        "replication": "logical", "databases": ["app"], "reverse_replication": True, "replication_login": login,
        **service,
    }  # fmt: skip
    return Stage(pair, folder, service=given, sequence_margin=100, compare_at_fence_ms=compare_at_fence_ms)


async def replicates(stage: Stage, name: str) -> None:
    async def holds() -> bool:
        state = await stage.engines[name].probe()
        return state.role is Role.STANDBY and state.is_replicating and state.position is not None

    await until(holds, f"{name} replicates")


async def test_there_and_back_with_nothing_lost_and_no_number_handed_out_twice(
    pair: LogicalPair, tmp_path: Path
) -> None:
    blue, green = pair.primary, pair.standby
    stage = stage_of(pair, tmp_path, compare_at_fence_ms=2_000)
    try:
        await replicates(stage, "green")
        for _ in range(3):
            await blue.execute("insert into orders (note) values ('from blue')", database="app")
            await blue.fetchval("select nextval('tickets')", database="app")
        there = await stage.switch(target="green")
        assert (there.phase, there.error, there.remedy) == (Phase.COMPLETED, "", "")
        assert await stage.writable() == ["green"]
        assert await green.fetchval("select count(*) from orders", database="app") == 3
        assert await green.fetchval("select nextval('tickets')", database="app") == 21 + 100 * 10 + 10
        order = await green.fetchval("insert into orders (note) values ('from green') returning id", database="app")
        assert order == 3 + 100 + 1
        report = stage.journal.report(there.id)
        assert report["figures"]["acked_lost"] is None
        assert "replicates logically" in report["audit"]["why"]
        assert report["way_back"] == "follows green by subscription turnout_from_green"
        compared = report["rows_at_fence"]
        assert (compared["tables"], compared["rows"], compared["different"]) == (1, 3, [])
        assert report["positions"]["source"] == report["positions"]["target"]
        verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
        assert {name for name, verdict in verdicts.items() if verdict == "fail"} == set()
        assert {"replicated", "accounts", "type_oids", "sequences", "schema"} <= set(verdicts)

        # The old primary is read-only for everybody but its subscription, and has no slot left that holds back WAL.
        with pytest.raises(Exception, match="read-only"):
            await blue.execute("insert into orders (note) values ('astray')", database="app")

        async def has_followed() -> bool:
            return bool(
                await blue.fetchval("select count(*) from orders where note = 'from green'", database="app") == 1
            )

        await until(has_followed, "blue has what green wrote")
        assert await blue.fetchval("select count(*) from pg_replication_slots") == 0
        assert await green.fetchval("select count(*) from pg_subscription") == 0

        back = await stage.switch(target="blue")
        assert (back.phase, back.error, back.remedy) == (Phase.COMPLETED, "", "")
        assert await stage.writable() == ["blue"]
        assert await blue.fetchval("select count(*) from orders", database="app") == 4
        assert await blue.fetchval("insert into orders (note) values ('blue') returning id", database="app") > order
        await replicates(stage, "green")
    finally:
        await stage.close()


async def test_what_is_undone_leaves_no_slot_and_the_target_following(pair: LogicalPair, tmp_path: Path) -> None:
    blue, green = pair.primary, pair.standby
    stage = stage_of(pair, tmp_path)

    reached = stage.engines["green"].wait_reached

    async def late(position: Position, timeout_s: float) -> bool:
        """Close behind until the fence, and stuck from then on."""
        return not (await stage.engines["blue"].probe()).is_fenced and await reached(position, timeout_s)

    stage.engines["green"].wait_reached = late  # type: ignore[method-assign]
    try:
        await replicates(stage, "green")
        record = await stage.switch(target="green")
        assert (record.phase, await stage.writable()) == (Phase.ABORTED, ["blue"])
        assert record.stamps["aborted"] - record.stamps["aborting"] < 1_000_000

        async def is_clean() -> bool:
            return bool(await green.fetchval("select count(*) from pg_replication_slots") == 0)

        await until(is_clean, "no slot of ours holds back WAL")
        await blue.execute("insert into orders (note) values ('after')", database="app")
        await replicates(stage, "green")
    finally:
        await stage.close()


async def test_rows_that_differ_are_found_at_the_fence(pair: LogicalPair, tmp_path: Path) -> None:
    blue, green = pair.primary, pair.standby
    stage = stage_of(pair, tmp_path, compare_at_fence_ms=2_000)
    try:
        await replicates(stage, "green")
        row = await blue.fetchval("insert into orders (note) values ('right') returning id", database="app")

        async def has_it() -> bool:
            return bool(await green.fetchval(f"select count(*) from orders where id = {row}", database="app"))

        await until(has_it, "green has the row")
        # It has its fence still, of the switch that left it.
        wrong = f"begin read write; update orders set note = 'wrong' where id = {row}; commit"
        await green.execute(wrong, database="app")
        record = await stage.switch(target="green")
        assert (record.phase, await stage.writable()) == (Phase.ABORTED, ["blue"])
        assert record.error == f"rows on green are not those of blue: app.public.orders: ({row}): not alike"
        assert record.stamps["aborted"] - record.stamps["aborting"] < 1_000_000
        await blue.execute(f"delete from orders where id = {row}", database="app")
        await replicates(stage, "green")
    finally:
        await stage.close()


async def test_a_promotion_that_fails_leaves_a_standby_that_follows(pair: LogicalPair, tmp_path: Path) -> None:
    stage = stage_of(pair, tmp_path)
    green = stage.engines["green"]

    async def breaks(second: object) -> None:
        raise EngineError("the disk is full")

    green._prove_writable = breaks  # type: ignore[attr-defined]
    try:
        await replicates(stage, "green")
        record = await stage.switch(target="green")
        assert record.phase is Phase.ABORTED
        assert "the disk is full" in record.error
        assert await stage.writable() == ["blue"]
        await replicates(stage, "green")
    finally:
        await stage.close()


async def test_what_is_not_alike_or_not_replicated_is_named(pair: LogicalPair, tmp_path: Path) -> None:
    blue, green = pair.primary, pair.standby
    stage = stage_of(pair, tmp_path)
    await blue.execute("create table forgotten (id int); alter table orders add extra int", database="app")
    await blue.execute("create role newcomer")
    try:
        checks = {check.name: check for check in await stage.orchestrator.examine("app", "green")}
        assert checks["schema"].verdict == "fail"
        assert 'table app.public.orders: lacks "extra integer"' in checks["schema"].found
        assert "table app.public.forgotten: missing" in checks["schema"].found
        assert (checks["replicated"].verdict, checks["replicated"].is_overridable) == ("fail", False)
        assert "app.public.forgotten" in checks["replicated"].found
        assert (checks["accounts"].verdict, checks["accounts"].found) == ("fail", "no such role on green: newcomer")
        assert checks["handshake"].verdict == "warn"
    finally:
        await stage.close()
        await blue.execute("drop table forgotten; alter table orders drop extra", database="app")
        await blue.execute("drop role newcomer")
        del green
