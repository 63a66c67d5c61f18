"""Comparisons of rows on real servers: what differs is found and named, what is only behind is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy.clock import SystemClock
from proxy.embedded import MariaDBPair, MySQLPair, PostgresPair
from proxy.engines.rows import Digest, Table
from proxy.errors import Conflict, NotFound
from proxy.switch import datacheck
from proxy.switch.datacheck import DataCheck, DataChecks, DataCheckStore
from proxy.switch.views import Event
from tests.kit.waiting import until
from tests.proxy.switch.stage import Stage

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


class Bench:
    """Comparisons on a stage's engines, without a supervisor."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.events: list[Event] = []
        self.checks = self.begin_again()

    def begin_again(self) -> DataChecks:
        """As a supervisor that starts."""
        stage = self.stage
        return DataChecks(
            {"app": stage.config},
            {"app": stage.engines},
            DataCheckStore(stage.journal.database),
            SystemClock(),
            self.events.append,
            active=lambda service: stage.orchestrator.standing(service).active,
            is_switching=lambda service: stage.orchestrator.running(service) is not None,
        )

    def ask(self, **changes: Any) -> DataCheck:
        given = {
            "service": "app",
            "target": self.stage.target.name,
            "id": "",
            "source": "",
            "only": ["app.rows_compared"],
        }
        return DataCheck(**{**given, **changes})

    async def ended(self, check: DataCheck) -> DataCheck:
        await until(lambda: self.checks.get(check.id).state != "running", "the comparison has ended", 30)
        return self.checks.get(check.id)


@pytest.fixture(
    params=[
        pytest.param("mariadb_pair", marks=pytest.mark.mariadb, id="mariadb"),
        pytest.param("mysql_pair", marks=pytest.mark.mysql, id="mysql"),
    ]
)
def pair(request: pytest.FixtureRequest) -> MariaDBPair | MySQLPair:
    found: MariaDBPair | MySQLPair = request.getfixturevalue(request.param)
    return found


@pytest_asyncio.fixture(loop_scope="session")
async def mysql_bench(
    pair: MariaDBPair | MySQLPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(datacheck, "FIRST_PAUSE_S", 0.03)
    stage = Stage(pair, tmp_path, service={"databases": ["app"]})
    try:
        await pair.primary.execute(
            "create table app.rows_compared (a int, b varchar(9), c varbinary(9), d double,"
            " e datetime(6), primary key (a, b))"
        )
        for first in range(0, 300, 100):
            values = ", ".join(
                f"({n // 3}, 'k{n}%', x'00ff', {n} / 3, '2026-01-02 03:04:05')" for n in range(first, first + 100)
            )
            await pair.primary.execute(f"insert into app.rows_compared values {values}")
        await pair.primary.execute("grant select on app.* to turnout@'%'")
        await pair.standby.wait_caught_up(pair.primary)
        yield Bench(stage)
    finally:
        await stage.close()
        await pair.primary.execute("revoke select on app.* from turnout@'%'", "drop table app.rows_compared")
        await pair.standby.wait_caught_up(pair.primary)


async def test_rows_that_differ_are_named_on_mysql(mysql_bench: Bench) -> None:
    """A row that is missing, one too many, one changed; after that they are equal again."""
    bench, standby = mysql_bench, mysql_bench.stage.pair.standby
    equal = await bench.ended(bench.checks.start(bench.ask(chunk_rows=40)))
    assert equal.state == "equal", equal
    (table,) = equal.tables
    assert (table.rows, table.chunks) == (300, 8)

    await standby.execute("set global read_only = 0")
    for statement in (
        "delete from app.rows_compared where b = 'k7%'",
        "insert into app.rows_compared values (5, 'more', null, null, null)",
        "update app.rows_compared set d = null where b = 'k100%'",
    ):
        await standby.execute("set sql_log_bin = 0", statement)
    found = await bench.ended(bench.checks.start(bench.ask(chunk_rows=1_000)))
    assert found.state == "different", found
    assert found.tables[0].differences == ["(2,k7%): missing", "(33,k100%): not alike", "(5,more): not in the source"]
    for statement in (
        "insert into app.rows_compared values (2, 'k7%', x'00ff', 7 / 3, '2026-01-02 03:04:05')",
        "delete from app.rows_compared where b = 'more'",
        "update app.rows_compared set d = 100 / 3 where b = 'k100%'",
    ):
        await standby.execute("set sql_log_bin = 0", statement)
    await standby.execute("set global read_only = 1")
    assert (await bench.ended(bench.checks.start(bench.ask()))).state == "equal"


@pytest_asyncio.fixture(loop_scope="session")
async def bench(postgres_pair: PostgresPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A physical standby cannot be made to differ but by standing still."""
    monkeypatch.setattr(datacheck, "FIRST_PAUSE_S", 0.05)
    stage = Stage(postgres_pair, tmp_path, service={"databases": ["app"]})
    await postgres_pair.primary.execute("create schema app", database="app")
    await postgres_pair.primary.execute(
        'create table app.rows_compared (a int, "b c" text, d jsonb, e float8, f timestamptz, primary key ("b c", a))',
        database="app",
    )
    await postgres_pair.primary.execute(
        "insert into app.rows_compared select n % 7, 'k' || n, jsonb_build_object('n', n), n / 3.0, now()"
        " from generate_series(1, 300) n", database="app",
    )  # fmt: skip
    written = await postgres_pair.primary.fetchval("select pg_current_wal_lsn()::text")

    async def has_it() -> bool:
        there = await postgres_pair.standby.fetchval("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", written)
        return bool(there)

    await until(has_it, "the standby has it")
    try:
        yield Bench(stage)
    finally:
        await stage.close()
        await postgres_pair.primary.execute("drop schema app cascade", database="app")


@pytest.mark.postgresql
async def test_a_standby_that_is_behind_is_not_different(bench: Bench, postgres_pair: PostgresPair) -> None:
    """Its difference is looked at again, and gone."""
    await postgres_pair.standby.execute("select pg_wal_replay_pause()")
    await postgres_pair.primary.execute("update app.rows_compared set e = -e where a = 3", database="app")
    check = bench.checks.start(bench.ask(chunk_rows=50))

    async def has_looked_closer() -> bool:
        asked = "select count(*) from pg_stat_activity where query like 'select row(%rows_compared%' and pid <> pg_backend_pid()"
        return bool(await postgres_pair.standby.fetchval(asked))

    await until(has_looked_closer, "the rows of the chunk were asked for, and one is not alike")
    assert check.state == "running"
    await postgres_pair.standby.execute("select pg_wal_replay_resume()")
    ended = await bench.ended(check)
    assert ended.state == "equal", ended
    (table,) = ended.tables
    assert (table.rows, table.chunks, table.different, table.unsettled) == (300, 7, 0, 0)


@pytest.mark.postgresql
async def test_rows_that_differ_are_named_on_postgresql(bench: Bench, postgres_pair: PostgresPair) -> None:
    """And a table that changes all the time is told from one that differs: here the standby stands still."""
    await postgres_pair.standby.execute("select pg_wal_replay_pause()")
    try:
        await postgres_pair.primary.execute(
            """update app.rows_compared set d = '{}' where "b c" = 'k7'""", database="app"
        )
        await postgres_pair.primary.execute("""delete from app.rows_compared where "b c" = 'k8'""", database="app")
        ended = await bench.ended(bench.checks.start(bench.ask()))
        assert ended.state == "different", ended
        assert ended.tables[0].differences == ["(k7,0): not alike", "(k8,1): not in the source"]
        assert [event.kind for event in bench.events] == ["datacheck.ended"]
        store, now = DataCheckStore(bench.stage.journal.database), SystemClock().wall()
        said = store.found("app", bench.stage.source.name, bench.stage.target.name, now)
        assert said is not None
        assert (said.tables, said.rows, said.different) == (1, 299, ["app.app.rows_compared"])
        assert store.found("app", bench.stage.target.name, bench.stage.source.name, now) is None
    finally:
        await postgres_pair.standby.execute("select pg_wal_replay_resume()")


@pytest.mark.postgresql
async def test_a_comparison_goes_on_where_it_stopped(bench: Bench, postgres_pair: PostgresPair) -> None:
    """After a cancel, and after the supervisor was gone; one of a service at a time."""
    check = bench.checks.start(bench.ask(chunk_rows=50, rows_per_second=100))
    with pytest.raises(Conflict):
        bench.checks.start(bench.ask())
    await until(lambda: bool(check.tables) and check.tables[0].chunks == 1, "a chunk was compared")
    assert (await bench.checks.cancel(check.id)).state == "cancelled"
    resumed = bench.checks.resume(check.id)
    assert resumed.tables[0].rows == 50
    await until(lambda: bool(resumed.tables) and resumed.tables[0].chunks == 2, "another one was compared")
    await bench.checks.stop()
    bench.checks = bench.begin_again()
    bench.checks.take_up()
    last = bench.checks.get(check.id)
    assert last.tables[0].rows == 100
    last.rows_per_second = 0.0
    ended = await bench.ended(last)
    assert (ended.state, ended.tables[0].rows) == ("equal", 300)
    with pytest.raises(Conflict):
        bench.checks.resume(check.id)
    for wrong in ("nowhere", bench.stage.source.name):
        with pytest.raises((NotFound, Conflict)):
            bench.checks.start(bench.ask(target=wrong))


@pytest.mark.postgresql
async def test_rows_that_change_all_the_time_are_not_called_different(bench: Bench) -> None:
    """Nothing was shown about them."""
    answers = iter(range(1_000))

    class Restless:
        async def rows(self, *_: object) -> dict[str, str]:
            return {"(1)": str(next(answers)), "(2)": "same"}

        async def digest(self, *_: object) -> object:
            return Digest(rows=2, sum=str(next(answers)))

    table = Table(database="app", name="t", key=["a"])
    done = datacheck.TableCheck(database="app", name="t")
    await DataChecks._compare_chunk(table, done, None, Restless(), Restless())  # type: ignore[arg-type]
    assert (done.different, done.unsettled) == (0, 1)


@pytest.mark.postgresql
async def test_more_rows_than_can_be_named_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the last key of the source, the other engine may have any number; they are not fetched."""
    monkeypatch.setattr(datacheck, "FIRST_PAUSE_S", 0.0)

    class Full:
        def __init__(self, rows: int) -> None:
            self.count = rows

        async def rows(self, *_: object) -> dict[str, str]:
            raise AssertionError("too many")

        async def digest(self, *_: object) -> object:
            return Digest(rows=self.count, sum=str(self.count))

    table = Table(database="app", name="t", key=["a"])
    done = datacheck.TableCheck(database="app", name="t")
    await DataChecks._compare_chunk(table, done, None, Full(3), Full(50_000_003))  # type: ignore[arg-type]
    assert (done.different, done.differences) == (
        50_000_000, ["3 rows, and 50000003 on the other engine, or not alike"],
    )  # fmt: skip


@pytest.mark.postgresql
async def test_one_that_was_left_running_is_cancelled_by_itself(bench: Bench) -> None:
    """The state file could not be written, say: it does not run, and another one does."""
    left = bench.checks.start(bench.ask(chunk_rows=50, rows_per_second=100))
    await bench.checks.stop()
    bench.checks = bench.begin_again()
    other = bench.checks.start(bench.ask(chunk_rows=50, rows_per_second=100))
    assert (await bench.checks.cancel(left.id)).state == "cancelled"
    assert bench.checks.get(other.id).state == "running"
    assert (await bench.checks.cancel(other.id)).state == "cancelled"


@pytest.mark.postgresql
async def test_a_bug_ends_one_comparison_and_blocks_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(DataChecks, "_compare_table", broken)
        ended = await bench.ended(bench.checks.start(bench.ask()))
    assert (ended.state, ended.error) == ("failed", "internal error: KeyError('a bug')")
    assert (await bench.ended(bench.checks.resume(ended.id))).state == "equal"
