"""Two engines that are two addresses of one server: sessions move between them as often as one likes."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest

from protocols.postgres.messages import (
    build_bind,
    build_execute,
    build_flush,
    build_parse,
    build_sync,
    parse_data_row,
)
from proxy.embedded import PostgresPair, ServerFailed, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from proxy.scheduling import turn_ns
from tests.e2e.doors import Door
from tests.e2e.talker import Talker
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]


async def _start(start_turnout: StartTurnout, engines: dict[str, str], **switch: object) -> Turnout:
    return await start_turnout(
        Setup(
            protocol="postgresql",
            engines=engines,
            admin_user=SUPERUSER,
            admin_password=PASSWORD,
            users={"app": PASSWORD},
            service={"replication": "none", "server_lifetime_s": 0.0},
            switch={"on_drain_expired": "leave", "drain_timeout_s": 0.05, **switch},
        )
    )


def _two_addresses(pair: PostgresPair) -> dict[str, str]:
    return {"one": pair.primary.address, "two": f"localhost:{pair.primary.port}"}


async def _pid(connection: psycopg.AsyncConnection[Any]) -> int:
    cursor = await connection.execute("select pg_backend_pid()")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_sessions_move_and_those_that_cannot_stay(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """A busy, a pinned and an idle session, through four switches: no error, and only who can moves."""
    turnout = await _start(start_turnout, _two_addresses(postgres_pair))
    dsn = Door(name="session", port=turnout.port).dsn()
    idle = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    busy = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    pinned = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    try:
        await idle.execute("set application_name to 'moves'")
        await pinned.execute("begin")
        await pinned.execute("declare corpus_held cursor with hold for select generate_series(1, 10)")
        await pinned.execute("commit")
        await busy.execute("begin")
        pids = [await _pid(one) for one in (idle, busy, pinned)]
        for target in ("two", "one", "two", "one"):
            ended = await turnout.switch(target)
            assert ended["phase"] == "completed", ended
            assert ended["figures"]["errors_visible"] == 0
            cursor = await idle.execute("show application_name")
            assert await cursor.fetchone() == ("moves",)
            cursor = await pinned.execute("fetch 1 from corpus_held")
            assert await cursor.fetchone() is not None
        now = [await _pid(one) for one in (idle, busy, pinned)]
        assert now[0] != pids[0]
        assert now[1:] == pids[1:]
        await busy.execute("commit")
        await turnout.switch("two")
        assert await _pid(busy) != pids[1], "it moves once it can"
    finally:
        for one in (idle, busy, pinned):
            await one.close()


async def test_an_immediate_switch_rolls_open_transactions_back_and_their_clients_stay(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    turnout = await _start(start_turnout, _two_addresses(postgres_pair))
    dsn = Door(name="session", port=turnout.port).dsn()
    idle = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    busy = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    silent = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    ending = await psycopg.AsyncConnection.connect(dsn)
    stopped = await _pid(ending)
    try:
        before = await _pid(idle)
        await silent.execute("begin")
        await busy.execute("begin")
        # A ROLLBACK that its server does not get to: what the switch does is what it asks for.
        os.kill(stopped, signal.SIGSTOP)
        rolled_back = asyncio.create_task(ending.rollback())
        active = psycopg.pq.TransactionStatus.ACTIVE
        await until(lambda: ending.info.transaction_status == active, "it has asked")
        with pytest.raises(psycopg.errors.SerializationFailure, match="moving to another server"):
            ended, _ = await asyncio.gather(
                turnout.switch("two", strategy="immediate"), busy.execute("select pg_sleep(20)")
            )
        (record, *_) = await turnout.get("/v1/switches")
        assert record["strategy"] == "immediate"

        async def is_over() -> bool:
            return bool((await turnout.get("/v1/switches"))[0]["phase"] == "completed")

        await until(is_over, "the switch is complete")
        assert await _pid(idle) != before
        report = await turnout.get(f"/v1/switches/{record['id']}/report")
        assert [one["code_sent"] for one in report["interrupted"]] == ["40001", "40001"]
        await asyncio.wait_for(rolled_back, 20)
        assert ending.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert await _pid(ending) not in (0, stopped)
        await ending.rollback()
        # Its transaction has failed, as far as the client knows, and nothing may run outside of it.
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await busy.execute("select 1")
        # Who did not ask is told at its next request.
        with pytest.raises(psycopg.errors.SerializationFailure, match="moving to another server"):
            await silent.execute("select 1")
        for one in (busy, silent):
            await one.execute("rollback")
            assert await _pid(one) > 0
        # At once or not at all: the one that works on is not touched.
        await idle.execute("begin")
        ended = await turnout.switch("one", strategy="immediate", force_transaction_abort=False)
        assert ended["phase"] == "aborted"
        await idle.execute("commit")
    finally:
        os.kill(stopped, signal.SIGCONT)
        for one in (idle, busy, silent, ending):
            await one.close()


async def test_a_portal_that_is_not_read_to_its_end_keeps_its_session_where_it_is(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """field-notes: PortalSuspended (row-limited Execute)"""
    turnout = await _start(start_turnout, _two_addresses(postgres_pair))
    talker = await Talker.connect(Door(name="session", port=turnout.port))
    begun = build_parse(b"", b"select generate_series(1, 3)") + build_bind(b"", b"") + build_execute(b"", 1)
    await talker.send(begun + build_flush())
    await talker.read_until("s")
    assert [(one["portability"], one["engine"]) for one in await turnout.get("/v1/sessions")] == [("C", "one")]
    ended = await turnout.switch("two")
    assert ended["phase"] == "completed"
    assert [(one["portability"], one["engine"]) for one in await turnout.get("/v1/sessions")] == [("C", "one")]
    await talker.send(build_execute(b"", 0) + build_sync())
    await talker.read_until("Z")
    rows = [parse_data_row(message) for message in talker.messages if message[:1] == b"D"]
    assert rows == [[b"1"], [b"2"], [b"3"]]

    async def has_moved() -> bool:
        sessions = await turnout.get("/v1/sessions")
        return [(one["portability"], one["engine"]) for one in sessions] == [("A", "two")]

    await turnout.switch("one")
    await turnout.switch("two")
    await until(has_moved, "it moves once it can")
    await talker.close()


async def test_a_cancel_during_a_switch_reaches_the_query_and_nobody_elses(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """The switch waits for the query; the client gives up on it. Afterwards its key means its new backend.

    field-notes: CancelRequest races
    """
    turnout = await _start(start_turnout, _two_addresses(postgres_pair), drain_timeout_s=20.0)
    dsn = Door(name="session", port=turnout.port).dsn()
    waiting = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    others = [await psycopg.AsyncConnection.connect(dsn, autocommit=True) for _ in range(3)]
    stops = asyncio.Event()

    async def work(connection: psycopg.AsyncConnection[Any]) -> int:
        done = 0
        while not stops.is_set():
            # A QueryCanceled here is what must not be.
            await connection.execute("select pg_sleep(0.005)")
            done += 1
        return done

    working = [asyncio.create_task(work(one)) for one in others]
    try:
        before = await _pid(waiting)
        sleeping = asyncio.create_task(waiting.execute("select pg_sleep(60)"))
        await _runs(postgres_pair, before)
        switching = asyncio.create_task(turnout.switch("two"))
        await until(lambda: _is_draining(turnout), "the switch waits for the query")
        await waiting.cancel_safe(timeout=20)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await sleeping
        assert (await switching)["phase"] == "completed"
        after = await _pid(waiting)
        assert after != before
        sleeping = asyncio.create_task(waiting.execute("select pg_sleep(60)"))
        await _runs(postgres_pair, after)
        await waiting.cancel_safe(timeout=20)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await sleeping
    finally:
        stops.set()
    assert all(done > 0 for done in await asyncio.gather(*working))
    for one in (waiting, *others):
        await one.close()


async def _runs(pair: PostgresPair, pid: int) -> None:
    async def holds() -> bool:
        query = f"select count(*) from pg_stat_activity where pid = {pid} and wait_event = 'PgSleep'"
        return bool(await pair.primary.fetchval(query))

    await until(holds, "the query runs")


async def _is_draining(turnout: Turnout) -> bool:
    newest = (await turnout.get("/v1/switches"))[:1]
    return bool(newest) and newest[0]["phase"] == "draining"


async def test_a_notification_names_its_sender_as_the_client_knows_it(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """field-notes: Process id in BackendKeyData"""
    turnout = await _start(start_turnout, _two_addresses(postgres_pair))
    dsn = Door(name="session", port=turnout.port).dsn()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        heard: list[psycopg.Notify] = []
        connection.add_notify_handler(heard.append)
        await connection.execute("listen corpus_one_server")
        await turnout.switch("two")
        await connection.execute("notify corpus_one_server, 'mine'")
        assert [one.pid for one in heard] == [connection.info.backend_pid]


async def test_each_backend_serves_one_session_where_its_lifetime_is_zero(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """As without a proxy: a new connection is a new process, and the old one goes with its client."""
    turnout = await _start(start_turnout, _two_addresses(postgres_pair))
    dsn = Door(name="session", port=turnout.port).dsn()
    pids = []
    for _ in range(3):
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            pids.append(await _pid(connection))
    assert len(set(pids)) == 3
    direct = Door(name="direct", port=postgres_pair.primary.port).dsn()
    async with await psycopg.AsyncConnection.connect(direct, autocommit=True) as connection:

        async def all_gone() -> bool:
            cursor = await connection.execute("select count(*) from pg_stat_activity where pid = any(%s)", [pids])
            return await cursor.fetchone() == (0,)

        await until(all_gone, "the processes of clients that left have ended")


async def test_a_statement_whose_table_is_away_at_the_move_works_once_it_is_back(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """As on one server: it fails while there is no table, in the server's words, and works again with the next one."""
    turnout = await _start(start_turnout, _two_addresses(postgres_pair))
    dsn = Door(name="session", port=turnout.port).dsn()
    table, insert = "create table corpus_away (id int)", "insert into corpus_away values (%s)"
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other,
    ):
        await other.execute(table)
        await connection.execute(insert, [1], prepare=True)
        pid = await _pid(connection)
        await other.execute("drop table corpus_away")
        assert (await turnout.switch("two"))["phase"] == "completed"
        assert await _pid(connection) != pid, "it moved all the same"
        with pytest.raises(psycopg.errors.UndefinedTable):
            await connection.execute(insert, [2], prepare=True)
        await other.execute(table)
        await other.execute("drop table corpus_away")
        await turnout.switch("one")
        await other.execute(table)
        async with connection.pipeline():
            for number in (3, 4):
                await connection.execute(insert, [number], prepare=True)
        cursor = await connection.execute("select count(*) from corpus_away")
        assert await cursor.fetchone() == (2,)
        await other.execute("drop table corpus_away")


async def test_a_sessions_own_idle_timeout_holds_however_often_it_is_moved(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """Each backend it is given counts its idleness from the beginning, and none comes to the end."""
    turnout = await _start(start_turnout, _two_addresses(postgres_pair))
    dsn = Door(name="session", port=turnout.port).dsn()
    idle = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    try:
        await idle.execute("set idle_session_timeout to '1s'")
        for target in ("two", "one") * 20:
            # A tenth of a second for its end, between two switches.
            if (await asyncio.to_thread(select.select, [idle.fileno()], [], [], 0.1))[0]:
                break
            assert (await turnout.switch(target))["phase"] == "completed"
        with pytest.raises(psycopg.errors.IdleSessionTimeout):
            await idle.execute("select 1")
    finally:
        await idle.close()


async def test_an_operators_word_is_heard_while_a_switch_waits(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """Nothing of such a switch ends a backend, so that whoever ended it meant this session. (The supervisor lets itself be
    interrupted by its workers, but not while it switches. Kernels before 6.12 know nothing of that: all is 0.)"""
    turnout = await _start(start_turnout, _two_addresses(postgres_pair), drain_timeout_s=8.0)
    supervisor, *workers = (process.pid for process in turnout.processes())
    of_all, of_others = turn_ns(supervisor), {turn_ns(worker) for worker in workers}
    assert of_all > max(of_others) or {of_all} == of_others == {0}
    dsn = Door(name="session", port=turnout.port).dsn()
    direct = Door(name="direct", port=postgres_pair.primary.port).dsn()
    async with await psycopg.AsyncConnection.connect(direct, autocommit=True) as operator:
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        await connection.execute("set work_mem = '5MB'")
        pid = await _pid(connection)
        running = asyncio.create_task(connection.execute("select pg_sleep(30)"))

        async def runs() -> bool:
            found = "select state from pg_stat_activity where pid = %s and query like '%%pg_sleep%%'"
            return await (await operator.execute(found, [pid])).fetchone() == ("active",)

        await until(runs, "the statement runs")
        switching = asyncio.create_task(turnout.switch("two"))

        async def waits() -> bool:
            newest = (await turnout.get("/v1/switches"))[:1]
            return bool(newest) and newest[0]["phase"] == "draining"

        await until(waits, "the switch waits for the statement")
        assert {turn_ns(supervisor)} == of_others
        await operator.execute("select pg_terminate_backend(%s)", [pid])
        with pytest.raises(psycopg.errors.AdminShutdown):
            await running
        assert connection.closed
        assert (await switching)["phase"] == "completed"
        await until(lambda: turn_ns(supervisor) == of_all, "the supervisor gives way again")


async def test_an_engine_that_is_another_server_is_refused(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """Even with force."""
    engines = {"one": postgres_pair.primary.address, "other": postgres_pair.standby.address}
    turnout = await _start(start_turnout, engines)
    with pytest.raises(ServerFailed, match="same_server"):
        await turnout.switch("other", force=True)


LATE_TASKS = """
import sys
if "proxy.worker" in sys.orig_argv:
    import asyncio
    from proxy import tasks

    spawn = tasks.spawn

    def spawn_late(work, *, name, stays=False):
        async def late():
            await asyncio.sleep(0.02)
            return await work
        is_question = name.startswith(("inspect session", "ask session", "look at session")) or name.endswith(("settles", "catches up"))
        return spawn(late() if is_question else work, name=name, stays=stays)

    tasks.spawn = spawn_late
"""
"""The first step of a task comes a turn of the loop after it was spawned; here 20 ms, for what asks a backend."""


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
async def test_what_comes_between_the_decision_to_ask_a_backend_and_the_question(
    pool_mode: Literal["session", "transaction"],
    start_turnout: StartTurnout,
    postgres_pair: PostgresPair,
    tmp_path: Path,
) -> None:
    """Holds, boundaries, and switches that let a session go on where it is: none of them opens its gate for a client's
    request, or takes it for one that has been asked."""
    late = tmp_path / "late"
    late.mkdir()
    (late / "sitecustomize.py").write_text(LATE_TASKS)
    turnout = await start_turnout(
        Setup(
            protocol="postgresql",
            engines=_two_addresses(postgres_pair),
            admin_user=SUPERUSER,
            admin_password=PASSWORD,
            users={"app": PASSWORD},
            pool_mode=pool_mode,
            service={"replication": "none"},
            switch={"on_drain_expired": "leave", "drain_timeout_s": 0.02},
            env={"PYTHONPATH": str(late)},
        )
    )
    is_over = asyncio.Event()

    async def work(number: int) -> float:
        """The longest transaction, in seconds."""
        longest_s = 0.0
        async with await psycopg.AsyncConnection.connect(
            Door(name=pool_mode, port=turnout.port).dsn(), autocommit=True
        ) as client:
            while not is_over.is_set():
                began = time.monotonic()
                async with client.transaction():
                    await client.execute("select set_config('app.tenant', %s, false)", (str(number),))
                    await asyncio.sleep(0.008 * (number % 5))
                    await client.execute(f"declare corpus_{number} cursor with hold for select generate_series(1, 3)")
                await client.execute(f"fetch 1 from corpus_{number}")
                await client.execute(f"close corpus_{number}")
                row = await (await client.execute("select current_setting('app.tenant')")).fetchone()
                assert row == (str(number),)
                longest_s = max(longest_s, time.monotonic() - began)
        return longest_s

    async def switch() -> None:
        try:
            for number in range(24):
                ended = await turnout.switch("one" if number % 2 else "two")
                assert (ended["phase"], ended["figures"]["errors_visible"]) == ("completed", 0), ended
        finally:
            is_over.set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        working = [group.create_task(work(number)) for number in range(12)]
        await switch()
    assert max(one.result() for one in working) < 3.0
    assert "Traceback" not in turnout.text_of_log()


async def test_who_was_left_on_an_engine_that_was_removed_since_is_cancelled_and_ended_there(
    start_turnout: StartTurnout, postgres_pair: PostgresPair
) -> None:
    """Who ends a backend of it meant that session: its server takes connections, which is asked there."""
    turnout = await _start(start_turnout, _two_addresses(postgres_pair))
    left = await psycopg.AsyncConnection.connect(Door(name="session", port=turnout.port).dsn(), autocommit=True)
    running = "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(41)'"

    async def runs() -> bool:
        return bool(await postgres_pair.primary.fetchval(running))

    try:
        await left.execute("begin")
        pid = await _pid(left)
        assert (await turnout.switch("two"))["phase"] == "completed"
        async with turnout.control() as client:
            (await client.delete("/v1/services/app/engines/one")).raise_for_status()

        sleeping = asyncio.create_task(left.execute("select pg_sleep(41)"))
        await until(runs, "its statement runs")
        await left.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await sleeping
        await left.execute("rollback")
        await left.execute("begin")
        assert await _pid(left) == pid, "nothing has moved it"

        sleeping = asyncio.create_task(left.execute("select pg_sleep(41)"))
        await until(runs, "its statement runs again")
        await postgres_pair.primary.execute(f"select pg_terminate_backend({pid})")
        with pytest.raises(psycopg.errors.AdminShutdown):
            await sleeping
    finally:
        await left.close()
    assert "Traceback" not in turnout.text_of_log()
