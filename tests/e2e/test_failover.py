"""The primary dies: another server takes over, idle clients notice nothing, and who wrote is told the truth."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import pytest_asyncio

from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER, PostgresServer
from tests.e2e.failovers import FAST, ended_failover, is_watched
from tests.kit.servers import NICENESS
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[PostgresPair]:
    pair = await PostgresPair.create(fsync=False, niceness=NICENESS)
    try:
        await pair.primary.execute("create table written (id bigint primary key, by_client int)", database="app")
        await pair.primary.execute("grant all on written to app", database="app")
        yield pair
    finally:
        await pair.close()


async def _turnout(pair: PostgresPair, folder: Path, failover: Mapping[str, object], **changes: Any) -> Turnout:
    service = {"failover": failover, "server_login_retry_s": 0.1, **changes.pop("service", {})}
    setup = Setup(
        protocol="postgresql",
        engines={server.name: server.address for server in (pair.primary, pair.standby)},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        databases=["app"],
        service=service,
        **{"workers": 2, **changes},
    )
    turnout = Turnout(setup, folder)
    await turnout.start()
    return turnout


async def _connect(turnout: Turnout, **options: Any) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(
        f"postgresql://app:{PASSWORD}@{turnout.host}:{turnout.port}/app?sslmode=disable", connect_timeout=20, **options
    )


_draws = itertools.count(10**9, 10**9)


class Writer:
    """Inserts one row after the other in transactions of its own, and remembers what was acknowledged."""

    def __init__(self, number: int, connection: psycopg.AsyncConnection[Any]) -> None:
        self.number = number
        self.connection = connection
        self.acknowledged: dict[int, tuple[str, float]] = {}
        """Server and time of each row."""
        self.unknown: set[int] = set()
        self.aborted: set[int] = set()
        self.is_over = False
        self.next = self.draw() + number

    @staticmethod
    def draw() -> int:
        """A number that no other row has, with room for those of a writer."""
        return next(_draws)

    async def run(self) -> None:
        while not self.is_over:
            self.next += 100
            row = self.next
            try:
                async with self.connection.transaction():
                    cursor = await self.connection.execute(
                        "insert into written values (%s, %s) returning current_setting('cluster_name')",
                        (row, self.number),
                        prepare=False,
                    )
                    (server,) = await cursor.fetchone() or ("",)
            except psycopg.errors.TransactionResolutionUnknown:
                self.unknown.add(row)
            except psycopg.errors.SerializationFailure:
                self.aborted.add(row)
            else:
                self.acknowledged[row] = (server, time.monotonic())


def _first_of(server: PostgresServer, writers: list[Writer]) -> float:
    """When it acknowledged its first write."""
    return min(at for writer in writers for name, at in writer.acknowledged.values() if name == server.name)


async def _are_looked_at(server: PostgresServer, count: int) -> None:
    """Idle sessions are asked what they hold a moment after their last statement."""
    asked = "select count(*) from pg_stat_activity where query like '%pg_listening_channels%' and state = 'idle'"

    async def are() -> bool:
        return bool(await server.fetchval(asked) >= count)

    await until(are, "idle sessions were asked what they hold")


@pytest.mark.parametrize("limit_s", [3.0, 1.0], ids=["defaults", "fast probes"])
async def test_a_killed_primary_is_replaced_in_time_and_idle_clients_notice_nothing(
    pair: PostgresPair, tmp_path: Path, limit_s: float
) -> None:
    old, new = pair.primary, pair.standby
    turnout = await _turnout(pair, tmp_path, FAST if limit_s == 1.0 else {})
    idle = [await _connect(turnout, autocommit=True) for _ in range(10)]
    for number, one in enumerate(idle):
        await one.execute(f"set application_name = 'idle{number}'")
    writers = [Writer(number, await _connect(turnout, autocommit=True)) for number in range(1, 9)]
    try:
        await is_watched(turnout)
        await _are_looked_at(old, len(idle))
        tasks = [asyncio.create_task(writer.run()) for writer in writers]
        await until(lambda: all(len(writer.acknowledged) > 20 for writer in writers), "all of them write")
        killed = time.monotonic()
        await old.kill()
        record = await ended_failover(turnout)
        assert record["phase"] == "completed", record
        for writer in writers:
            writer.is_over = True
        await asyncio.gather(*tasks)
        first = _first_of(new, writers)
        assert first - killed < limit_s
        for number, one in enumerate(idle):
            cursor = await one.execute("show application_name")
            assert await cursor.fetchone() == (f"idle{number}",)
        report = record["report"]
        assert report["failure"]["gate"] == "asynchronous"
        may_lack_s = report["failure"]["may_lack_ms"] / 1000
        found = {row for (row,) in await new.fetch("select id from written", database="app")}
        for writer in writers:
            assert not writer.aborted & found
            for row in writer.acknowledged.keys() - found:
                # Asynchronous replication: the report says how much may be missing at most.
                server, at = writer.acknowledged[row]
                assert server == old.name
                assert at > killed - may_lack_s
        assert report["interrupted_count"] >= sum(len(writer.unknown | writer.aborted) for writer in writers)
        view = (await turnout.get("/v1/status"))["services"][0]["view"]
        assert view["active"] == new.name
        assert [one["name"] for one in view["engines"] if one["deposed"]] == [old.name]
    finally:
        for one in [*idle, *(writer.connection for writer in writers)]:
            await one.close()
        await turnout.stop()
        if not await new.fetchval("select pg_is_in_recovery()"):
            await pair.swap()


@pytest.mark.parametrize("moment", ["holding", "promoted"])
async def test_a_supervisor_killed_in_a_failover_finishes_it_when_it_is_back(
    pair: PostgresPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    old, new = pair.primary, pair.standby
    monkeypatch.setenv("TURNOUT_TEST_STOP_AT", moment)
    turnout = await _turnout(pair, tmp_path, FAST, switch={"hold_ms_max": 30_000})
    monkeypatch.delenv("TURNOUT_TEST_STOP_AT")
    writers = [Writer(number, await _connect(turnout, autocommit=True)) for number in range(1, 5)]
    try:
        await is_watched(turnout)
        tasks = [asyncio.create_task(writer.run()) for writer in writers]
        await until(lambda: all(len(writer.acknowledged) > 20 for writer in writers), "all of them write")
        await old.kill()
        await until(lambda: turnout.exit_code is not None, f"the supervisor is killed at {moment}")
        assert turnout.exit_code == -signal.SIGKILL
        await turnout.start()
        record = await ended_failover(turnout)
        assert (record["phase"], record["recovered"]) == ("completed", True), record
        serving = [len(writer.acknowledged) for writer in writers]
        await until(
            lambda: all(len(one.acknowledged) > then for one, then in zip(writers, serving, strict=True)),
            "all of them go on",
        )
        for writer in writers:
            writer.is_over = True
        await asyncio.gather(*tasks)
        found = {row for (row,) in await new.fetch("select id from written", database="app")}
        for writer in writers:
            assert not writer.aborted & found
            assert {row for row, (server, _) in writer.acknowledged.items() if server == new.name} <= found
    finally:
        for writer in writers:
            await writer.connection.close()
        await turnout.stop()
        if not await new.fetchval("select pg_is_in_recovery()"):
            await pair.swap()


async def test_a_primary_that_answers_nobody_is_replaced_and_fenced_when_it_comes_back(
    pair: PostgresPair, tmp_path: Path
) -> None:
    old, new = pair.primary, pair.standby
    turnout = await _turnout(pair, tmp_path, FAST)
    idle = await _connect(turnout, autocommit=True)
    open_one, working = await _connect(turnout), await _connect(turnout, autocommit=True)
    try:
        await idle.execute("set application_name = 'idle'")
        await is_watched(turnout)
        await _are_looked_at(old, 1)
        await open_one.execute("select 1")
        writing = asyncio.create_task(working.execute("select pg_sleep(60)"))
        await until(partial(old.fetchval, "select 1 from pg_stat_activity where query like '%pg_sleep(60)'"), "it runs")
        old.freeze()
        record = await ended_failover(turnout)
        assert record["phase"] == "completed", record
        with pytest.raises(psycopg.errors.TransactionResolutionUnknown):
            await writing
        with pytest.raises(psycopg.errors.SerializationFailure):
            await open_one.execute("select 2")
        await open_one.rollback()
        for one in (idle, open_one, working):
            cursor = await one.execute("select setting from pg_settings where name = 'cluster_name'")
            assert await cursor.fetchone() == (new.name,)
        old.thaw()

        async def is_fenced() -> bool:
            engines = await turnout.get("/v1/engines")
            return any(
                one["engine"]["name"] == old.name and (one["engine"]["state"] or {}).get("is_fenced") for one in engines
            )

        await until(is_fenced, "the former primary is fenced")
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await old.execute("insert into written values (1, 1)", database="app")
        codes = {one["code_sent"] for one in record["report"]["interrupted"]}
        assert codes == {"08007", "40001"}
    finally:
        old.thaw()
        for one in (idle, open_one, working):
            await one.close()
        await turnout.stop()
        if not await new.fetchval("select pg_is_in_recovery()"):
            await pair.swap()


async def _commits_end(pair: PostgresPair) -> None:
    await pair.primary.execute("alter system reset synchronous_standby_names")
    await pair.primary.execute("select pg_reload_conf()")


async def _commits_in_doubt(pair: PostgresPair) -> None:
    """From now on a COMMIT is replicated and does not end, because nobody is the standby it waits for; one that wrote to
    `slow` does not even begin to."""
    await _commits_end(pair)  # a test that was ended by force has left it so
    await pair.primary.execute(
        "create table if not exists slow (id bigint);"
        " create or replace function slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(60); return null; end $$;"
        " drop trigger if exists slow on slow; create constraint trigger slow after insert on slow"
        " deferrable initially deferred for each row execute function slow(); grant all on slow to app",
        database="app",
    )
    await pair.primary.execute("alter system set synchronous_standby_names = 'nobody'")
    await pair.primary.execute("select pg_reload_conf()")


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
async def test_an_interrupted_commit_is_resolved_on_the_server_that_has_taken_over(
    pair: PostgresPair, tmp_path: Path, pool_mode: str
) -> None:
    old, new = pair.primary, pair.standby
    failover = {**FAST, "commit_outcome": "resolve"}
    turnout = await _turnout(pair, tmp_path, failover, pool_mode=pool_mode)
    simple, pipelined, named, slow = [await _connect(turnout) for _ in range(4)]
    rows = {name: Writer.draw() for name in ("simple", "pipelined", "named", "slow")}
    try:
        await is_watched(turnout)
        await _commits_in_doubt(pair)
        await simple.execute("insert into written values (%s, 1)", (rows["simple"],))
        await pipelined.execute("insert into written values (%s, 1)", (rows["pipelined"],))
        await named.execute("insert into written values (%s, 1)", (rows["named"],))
        await slow.execute("insert into slow values (%s)", (rows["slow"],))

        async def in_a_pipeline() -> None:
            # By the extended protocol.
            async with pipelined.pipeline():
                await pipelined.commit()

        async def by_name() -> None:
            # A prepared statement, as JDBC does it.
            await named.execute("commit", prepare=True)

        acts = (simple.commit(), in_a_pipeline(), by_name(), slow.commit())
        commits = [asyncio.create_task(one) for one in acts]
        waiting = "select count(*) = 3 from pg_stat_activity where wait_event = 'SyncRep'"
        await until(partial(old.fetchval, waiting), "three COMMITs wait for a standby that is not there")
        await until(partial(old.fetchval, "select 1 from pg_stat_activity where wait_event = 'PgSleep'"), "one is slow")
        arrived = "select count(*) = 3 from written where id = any($1)"
        await until(partial(new.fetchval, arrived, list(rows.values()), database="app"), "they were replicated")
        await old.kill()
        record = await ended_failover(turnout)
        outcomes = await asyncio.wait_for(asyncio.gather(*commits, return_exceptions=True), 10)
        assert record["report"]["commits_in_doubt"] == {"committed": 3, "aborted": 1}
        assert outcomes[:3] == [None, None, None]
        assert isinstance(outcomes[3], psycopg.errors.SerializationFailure)
        for one in (simple, pipelined, named, slow):
            assert one.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            cursor = await one.execute("select current_setting('cluster_name')")
            assert await cursor.fetchone() == (new.name,)
            await one.rollback()
    finally:
        for one in (simple, pipelined, named, slow):
            await one.close()
        await turnout.stop()
        if not await new.fetchval("select pg_is_in_recovery()"):
            await pair.swap()
        await _commits_end(pair)


async def test_without_anybody_who_takes_over_an_interrupted_commit_stays_unknown(
    pair: PostgresPair, tmp_path: Path
) -> None:
    """In time, and outside of a transaction."""
    failover = {**FAST, "commit_outcome": "resolve", "automatic": False}
    turnout = await _turnout(pair, tmp_path, failover, switch={"hold_ms_max": 1_000})
    client = await _connect(turnout)
    try:
        await _commits_in_doubt(pair)
        await client.execute("insert into slow values (1)")
        commit = asyncio.create_task(client.commit())
        sleeping = "select pid from pg_stat_activity where wait_event = 'PgSleep'"
        await until(partial(pair.primary.fetchval, sleeping), "it is slow")
        os.kill(await pair.primary.fetchval(sleeping), signal.SIGKILL)
        with pytest.raises(psycopg.errors.TransactionResolutionUnknown):
            await asyncio.wait_for(commit, 10)
        assert client.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        await client.execute("select 1")
    finally:
        await client.close()
        await turnout.stop()
        await _commits_end(pair)


async def test_no_more_requests_wait_for_a_lost_server_than_the_config_allows(
    pair: PostgresPair, tmp_path: Path
) -> None:
    old = pair.primary
    turnout = await _turnout(pair, tmp_path, {**FAST, "automatic": False}, workers=1, switch={"held_requests_max": 1})
    clients = [await _connect(turnout, autocommit=True) for _ in range(2)]
    try:
        for client in clients:
            await client.execute("select 1")
        await is_watched(turnout)
        await old.kill()
        asked = [asyncio.create_task(client.execute("select 2")) for client in clients]
        done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        [refused] = done
        with pytest.raises(
            psycopg.errors.AdminShutdown, match="1 requests wait for it already; nothing of this one was"
        ):
            await refused
        await old.start()
        [served] = waiting
        assert await (await asyncio.wait_for(served, 20)).fetchone() == (2,)
    finally:
        for client in clients:
            await client.close()
        await turnout.stop()
        if not old.is_running:
            await old.start()
        await pair.standby.wait_streaming(old)
