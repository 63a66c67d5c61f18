"""The admin console of a running Turnout, held against a real PgBouncer before the same server.

Each scenario that both can do is played on both, and has to look the same from outside.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal

import asyncpg
import psycopg
import pytest
import pytest_asyncio
from psycopg.rows import dict_row

from proxy.embedded import PostgresPair, Setup, Turnout, Workspace
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.kit import pgbouncer
from tests.kit.pgbouncer import PgBouncer
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

WORDS = {"admin": "admin-word", "operator": "operator-word", "stats": "stats-word"}

Mode = Literal["session", "transaction"]


@dataclass
class Stage:
    """A Turnout and a PgBouncer before the same server, in the same pool mode."""

    mode: Mode
    turnout: Turnout
    bouncer: PgBouncer

    @property
    def places(self) -> list[Place]:
        return [Place("PgBouncer", self.bouncer.port), Place("Turnout", self.turnout.port)]


@dataclass
class Place:
    """One of them."""

    name: str
    port: int

    async def console(self, user: str = "admin") -> psycopg.AsyncConnection[Any]:
        return await self._connect("pgbouncer", user, WORDS[user])

    async def client(self, **more: Any) -> psycopg.AsyncConnection[Any]:
        return await self._connect("app", "app", PASSWORD, **more)

    async def _connect(self, database: str, user: str, password: str, **more: Any) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(
            host="127.0.0.1", port=self.port, user=user, password=password, dbname=database, autocommit=True,
            prepare_threshold=None, connect_timeout=10, **more,
        )  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["session", "transaction"])
async def stage(
    request: pytest.FixtureRequest, postgres_pair: PostgresPair, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    mode: Mode = request.param
    folder = tmp_path_factory.mktemp(f"console-{mode}")
    (folder / "console.txt").write_text("".join(f'"{user}" "{word}"\n' for user, word in WORDS.items()))
    server = postgres_pair.primary
    console = {
        "admin_users": ["admin"],
        "operator_users": ["operator"],
        "stats_users": ["stats"],
        "auth": {"method": "scram-sha-256", "users": {"file": "console.txt"}},
    }
    turnout = Turnout(
        Setup(
            protocol="postgresql",
            engines={"blue": server.address, "green": f"localhost:{server.port}"},
            admin_user=SUPERUSER,
            admin_password=PASSWORD,
            users={"app": PASSWORD},
            pool_mode=mode,
            workers=2,
            databases=["app", "postgres"],
            service={"replication": "none", "query_wait_timeout_s": 60.0},
            top={"console": console},
        ),
        folder,
    )
    users = {name: word for name, word in WORDS.items() if name != "operator"} | {"app": PASSWORD}
    async with AsyncExitStack() as stack:
        workspace = stack.enter_context(Workspace())
        bouncer = await stack.enter_async_context(
            pgbouncer.running(workspace, server_port=server.port, pool_mode=mode, users=users)
        )
        await turnout.start()
        stack.push_async_callback(turnout.stop)
        yield Stage(mode, turnout, bouncer)


async def rows(console: psycopg.AsyncConnection[Any], command: str) -> list[dict[str, Any]]:
    async with console.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(command)
        return await cursor.fetchall()


async def tag(console: psycopg.AsyncConnection[Any], command: str) -> str | None:
    return (await console.execute(command)).statusmessage


async def error_of(what: Awaitable[object]) -> str:
    """Its message, without what PgBouncer and libpq put before it."""
    try:
        await what
    except psycopg.Error as error:
        return (error.diag.message_primary or str(error).split("FATAL:  ")[-1].strip()).strip()
    return "no error"


# --- SHOW ---------------------------------------------------------------------------------------------------------

SHOWS = [
    "clients", "servers", "sockets", "active_sockets", "databases", "pools", "users", "lists", "config", "state",
    "version", "mem", "dns_hosts", "dns_zones", "peers", "peer_pools", "stats", "stats_totals", "stats_averages", "totals",
]  # fmt: skip

RENAMED = {("databases", "reserve_pool"): "reserve_pool_size"}
"""By PgBouncer, before 1.24."""


def is_part(part: list[Any], whole: list[Any]) -> bool:
    """In its order, perhaps with others between."""
    rest = iter(whole)
    return all(one in rest for one in part)


async def test_each_show_has_pgbouncers_columns_in_its_order_and_of_its_types(stage: Stage) -> None:
    """Those of 1.24. Another version of PgBouncer has fewer or more, in the same order."""
    theirs, ours = stage.places
    async with await theirs.console() as a, await ours.console() as b, await theirs.client() as c:
        await c.execute("select 1")
        for show in SHOWS:
            try:
                described = (await a.execute(f"show {show}")).description
            except psycopg.errors.ProtocolViolation:
                assert stage.bouncer.version < (1, 24), show
                continue
            wanted = [(RENAMED.get((show, one.name), one.name), one.type_code) for one in described or ()]
            found = [(one.name, one.type_code) for one in (await b.execute(f"show {show}")).description or ()]
            assert wanted, show
            if stage.bouncer.version[:2] == (1, 24):
                assert found == wanted, show
            elif stage.bouncer.version < (1, 24):
                assert is_part(wanted, found), show
            else:
                assert is_part(found, wanted), show


async def test_the_lists_have_pgbouncers_names(stage: Stage) -> None:
    theirs, ours = stage.places
    async with await theirs.console() as a, await ours.console("stats") as b:
        for show, column in (("lists", "list"), ("totals", "name")):
            wanted = [one[column] for one in await rows(a, f"show {show}")]
            found = [one[column] for one in await rows(b, f"show {show}")]
            assert is_part(wanted, found) or is_part(found, wanted), show
        if stage.bouncer.version >= (1, 24):
            assert await rows(a, "show state") == await rows(b, "show state")
        assert await rows(a, "show client_encoding") in ([{"client_encoding": "UTF8"}], [{"client_encoding": "UTF-8"}])
        assert await rows(b, "show client_encoding") == [{"client_encoding": "UTF8"}]


async def test_what_a_client_does_is_seen_alike(stage: Stage) -> None:
    """An open transaction, an idle client, and a backend that is free: the rows that monitoring reads."""
    seen = []
    for place in stage.places:
        async with await place.console("stats") as console:
            before = {one["database"]: one for one in await rows(console, "show stats")}.get("app")
            busy = await place.client(application_name="busy")
            quiet = await place.client(application_name="quiet")
            try:
                await quiet.execute("select 1")
                await busy.execute("begin")
                await busy.execute("select 1")
                [pool] = [one for one in await rows(console, "show pools") if one["database"] == "app"]
                [database] = [one for one in await rows(console, "show databases") if one["name"] == "app"]
                clients = {
                    one["application_name"]: one
                    for one in await rows(console, "show clients")
                    if one["application_name"] in ("busy", "quiet")
                }
                servers = [one for one in await rows(console, "show servers") if one["database"] == "app"]
                linked = [one for one in servers if one["ptr"] == clients["busy"]["link"]]
                assert [one["link"] for one in linked] == [clients["busy"]["ptr"]]
                assert [one["remote_pid"] for one in linked] == [await backend_of(busy)]
                await busy.execute("commit")
                stats = {one["database"]: one for one in await rows(console, "show stats")}["app"]
                counted = ("total_query_count", "total_xact_count")
                done = {name: stats[name] - (before[name] if before else 0) for name in counted}
                seen.append(
                    (
                        [
                            pool[name]
                            for name in ("cl_active", "cl_waiting", "sv_active", "sv_login", "maxwait", "pool_mode")
                        ],
                        [database[name] for name in ("database", "paused", "disabled", "port")],
                        {
                            name: [one[key] for key in ("type", "user", "addr", "close_needed")]
                            for name, one in clients.items()
                        },
                        [one["local_port"] == place.port for one in clients.values()],
                        sorted(one["state"] for one in servers if one["state"] != "idle"),
                        done,
                        stats["total_received"] > 0,
                        stats["total_sent"] > 0,
                    )
                )
            finally:
                await busy.close()
                await quiet.close()
                await until_free(console)
    assert seen[1] == seen[0]


async def until_free(console: psycopg.AsyncConnection[Any]) -> None:
    """No client of app is left, so that a scenario begins alike everywhere."""

    async def is_free() -> bool:
        return not [one for one in await rows(console, "show clients") if one["database"] == "app"]

    await until(is_free, "the clients are gone")


# --- PAUSE, RESUME ------------------------------------------------------------------------------------------------


async def pool_of(console: psycopg.AsyncConnection[Any]) -> dict[str, int]:
    for one in await rows(console, "show pools"):
        if one["database"] == "app":
            return {name: one[name] for name in ("cl_waiting", "sv_active", "sv_idle")}
    return {"cl_waiting": 0, "sv_active": 0, "sv_idle": 0}


async def select(connection: psycopg.AsyncConnection[Any], number: int) -> int:
    row = await (await connection.execute(f"select {number}")).fetchone()
    assert row is not None
    return int(row[0])


async def newcomer(place: Place) -> int:
    async with await place.client() as connection:
        return await select(connection, 3)


async def play_pause(place: Place, mode: Mode, name: str) -> list[Any]:
    """PAUSE while somebody works: what is seen, step by step."""
    seen: list[Any] = []
    async with await place.console() as console, await place.console() as other:
        await until_free(other)
        busy, second = await place.client(), await place.client()
        await select(busy, 1)
        await select(second, 1)
        if mode == "transaction":
            await busy.execute("begin")
            await select(busy, 1)
        pausing = asyncio.ensure_future(tag(console, f"pause {name}"))

        async def is_paused() -> bool:
            if not name:
                return await error_of(tag(other, "kill nosuch")) == "already suspended/paused"
            databases = {one["name"]: one["paused"] for one in await rows(other, "show databases")}
            return bool(databases["app"] == 1)

        await until(is_paused, "the pause began")
        held = [asyncio.ensure_future(newcomer(place))]
        if mode == "transaction":
            held.append(asyncio.ensure_future(select(second, 2)))

        async def all_wait() -> bool:
            return (await pool_of(other))["cl_waiting"] == len(held)

        await until(all_wait, f"{len(held)} clients wait")
        # Who has a server goes on with it.
        seen.append(("works on", await select(busy, 4), pausing.done()))
        seen.append((await pool_of(other))["sv_active"])
        if mode == "transaction":
            await busy.execute("commit")
        else:
            await busy.close()
            await second.close()
        seen.append(await asyncio.wait_for(pausing, 10))
        seen.append((await pool_of(other), [one.done() for one in held]))
        if not name:
            # A pause of one database does not keep PgBouncer from one of all.
            seen.append(await error_of(tag(other, "pause")))
        seen.append(await tag(other, f"resume {name}"))
        seen.append(sorted(await asyncio.wait_for(asyncio.gather(*held), 10)))
        seen.append(await error_of(tag(other, f"resume {name}")))
        await busy.close()
        await second.close()
        await until_free(other)
    return seen


@pytest.mark.parametrize("name", ["", "app"])
async def test_pause_waits_for_the_servers_holds_who_comes_and_resume_lets_them_go(stage: Stage, name: str) -> None:
    theirs, ours = [await play_pause(place, stage.mode, name) for place in stage.places]
    assert ours == theirs


async def test_ctrl_c_undoes_a_pause_that_waits(stage: Stage) -> None:
    ours = stage.places[1]
    async with await ours.console() as console, await ours.client() as busy:
        await busy.execute("begin")
        pausing = asyncio.ensure_future(error_of(tag(console, "pause")))
        await until(lambda: console.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE, "it waits")
        async with await ours.console() as other:
            await until_state(other, "paused")
            await console.cancel_safe()
            assert await pausing == "canceling statement due to user request"
            await until_state(other, "active")
        assert await tag(console, "show version") == "SHOW"
        await busy.execute("commit")


async def until_state(console: psycopg.AsyncConnection[Any], wanted: str) -> None:
    async def holds() -> bool:
        return bool({one["key"]: one["value"] for one in await rows(console, "show state")}[wanted] == "yes")

    await until(holds, wanted)


async def test_a_pause_outlives_the_supervisor_and_its_successor_can_end_it(stage: Stage) -> None:
    ours = stage.places[1]
    turnout = stage.turnout
    async with await ours.console() as console:
        assert await tag(console, "pause app") == "PAUSE"
        assert turnout.pid is not None
        os.kill(turnout.pid, signal.SIGKILL)

        async def is_told() -> bool:
            return "the supervisor of this proxy is away" in await error_of(tag(console, "show state"))

        await until(is_told, "the worker says that the supervisor is away")
        await until(lambda: turnout.exit_code is not None, "the supervisor is gone")
        held = asyncio.ensure_future(newcomer(ours))
        await turnout.start()
        [database] = [one for one in await rows(console, "show databases") if one["name"] == "app"]
        assert database["paused"] == 1
        [service] = await turnout.get("/v1/services")
        assert (service["is_paused"], service["paused"], service["disabled"]) == (False, ["app"], [])
        assert not held.done()
        assert await tag(console, "resume app") == "RESUME"
        assert await asyncio.wait_for(held, 10) == 3
    assert "an operator's pause goes on" in turnout.text_of_log()


async def test_a_switch_may_run_in_a_pause(stage: Stage) -> None:
    """PAUSE, SWITCH, RESUME: how PgBouncer's users move, with the switch in place of a change of its config."""
    ours = stage.places[1]
    async with await ours.console("operator") as console, await ours.client() as early:
        await select(early, 1)
        if stage.mode == "session":
            await early.close()
        assert await tag(console, "pause app") == "PAUSE"
        held = asyncio.ensure_future(newcomer(ours))
        [switch] = await rows(console, "switch target green")
        assert (switch["phase"], switch["source"], switch["target"]) == ("completed", "blue", "green")
        [database] = [one for one in await rows(console, "show databases") if one["name"] == "app"]
        assert (database["paused"], database["host"]) == (1, "localhost")
        assert (await pool_of(console))["sv_idle"] == 0
        assert not held.done()
        assert await tag(console, "resume app") == "RESUME"
        assert await asyncio.wait_for(held, 10) == 3
        if stage.mode == "transaction":
            assert await select(early, 5) == 5
        [active] = [one for one in await rows(console, "show engines") if one["active"] == "yes"]
        assert active["engine"] == "green"
        [newest, *_] = await rows(console, "show switches")
        assert newest["id"] == switch["id"]
        [back] = await rows(console, "switch target blue")
        assert back["phase"] == "completed"


# --- the other commands -------------------------------------------------------------------------------------------


async def backend_of(connection: psycopg.AsyncConnection[Any]) -> int:
    row = await (await connection.execute("select pg_backend_pid()")).fetchone()
    assert row is not None
    return int(row[0])


async def play_reconnect(place: Place, mode: Mode) -> list[Any]:
    """RECONNECT with an open transaction: WAIT_CLOSE waits for it."""
    seen: list[Any] = []
    async with await place.console() as console, await place.console() as other, await place.client() as busy:
        await busy.execute("begin")
        before = await backend_of(busy)
        seen.append(await tag(console, "reconnect app"))
        closing = asyncio.ensure_future(tag(console, "wait_close app"))

        async def is_marked() -> bool:
            return [
                one["close_needed"] for one in await rows(other, "show servers") if one["remote_pid"] == before
            ] == [1]

        await until(is_marked, "the server is to be closed")
        async with await place.client() as another:
            seen.append((await backend_of(another) != before, closing.done()))
        await busy.execute("commit")
        if mode == "session":
            await busy.close()
        seen.append(await asyncio.wait_for(closing, 10))
        if mode == "transaction":
            seen.append(await backend_of(busy) != before)
    return seen


async def test_reconnect_closes_servers_as_they_become_free_and_wait_close_waits_for_it(stage: Stage) -> None:
    theirs, ours = [await play_reconnect(place, stage.mode) for place in stage.places]
    assert ours == theirs


async def play_disable(place: Place) -> list[Any]:
    seen: list[Any] = []
    async with await place.console() as console, await place.client() as early:
        await select(early, 1)
        seen.append(await tag(console, "disable app"))
        seen.append(await error_of(newcomer(place)) != "no error")
        seen.append(await select(early, 1))
        seen.append([one["disabled"] for one in await rows(console, "show databases") if one["name"] == "app"])
        seen.append(await tag(console, "enable app"))
        seen.append(await newcomer(place))
    return seen


async def test_a_disabled_database_takes_no_newcomer_and_keeps_who_is_there(stage: Stage) -> None:
    theirs, ours = [await play_disable(place) for place in stage.places]
    assert ours == theirs


async def play_kill(place: Place) -> list[Any]:
    seen: list[Any] = []
    async with await place.console() as console:
        victim = await place.client()
        await select(victim, 1)
        seen.append(await tag(console, "kill app"))
        seen.append(await error_of(select(victim, 1)) != "no error")
        held = asyncio.ensure_future(newcomer(place))

        async def waits() -> bool:
            return (await pool_of(console))["cl_waiting"] == 1

        await until(waits, "a newcomer waits after KILL")
        seen.append(await pool_of(console))
        seen.append(await tag(console, "resume app"))
        seen.append(await asyncio.wait_for(held, 10))
        await victim.close()
    return seen


async def test_kill_ends_clients_and_lets_newcomers_wait_for_resume(stage: Stage) -> None:
    theirs, ours = [await play_kill(place) for place in stage.places]
    assert ours == theirs


async def test_kill_client_ends_one_client(stage: Stage) -> None:
    ours = stage.places[1]
    async with await ours.console() as console, await ours.client(application_name="other") as other:
        victim = await ours.client(application_name="victim")
        numbers = {one["application_name"]: one["id"] for one in await rows(console, "show clients")}
        assert await tag(console, f"kill_client {numbers['victim']}") == "KILL_CLIENT"
        assert "KILL_CLIENT at the console" in await error_of(select(victim, 1))
        assert await select(other, 1) == 1
        await victim.close()


WRONG = [
    "pause nosuch", "resume", "resume app", "resume nosuch", "reconnect nosuch", "wait_close nosuch", "disable", "enable",
    "disable nosuch", "kill nosuch", "kill_client me", "kill_client 123456789", "show nonsense", "nonsense", "select 1",
    "begin", "pause pgbouncer", "kill pgbouncer", "reconnect pgbouncer", "disable pgbouncer", "reload now",
    f"show {'x' * 70}", "set nonsense = 5", "show pools; show pools", "shutdown now", "suspend now",
]  # fmt: skip


async def test_what_is_wrong_is_refused_in_pgbouncers_words(stage: Stage) -> None:
    theirs, ours = stage.places
    async with await theirs.console() as a, await ours.console() as b:
        for command in WRONG:
            if command.startswith("kill_client") and stage.bouncer.version < (1, 24):
                continue
            assert await error_of(b.execute(command)) == await error_of(a.execute(command)), command


async def test_stats_users_get_pgbouncers_refusal(stage: Stage) -> None:
    theirs, ours = stage.places
    async with await theirs.console("stats") as a, await ours.console("stats") as b:
        for command in (
            "pause",
            "resume",
            "reload",
            "kill app",
            "disable app",
            "reconnect",
            "set max_client_conn = 5",
            "shutdown",
        ):
            assert await error_of(b.execute(command)) == await error_of(a.execute(command)) == "admin access needed"


# --- who comes in -------------------------------------------------------------------------------------------------


async def test_only_the_consoles_users_come_in(stage: Stage) -> None:
    ours = stage.places[1]
    assert "password authentication failed" in await error_of(ours._connect("pgbouncer", "app", PASSWORD))
    assert "password authentication failed" in await error_of(ours._connect("pgbouncer", "admin", "wrong"))
    assert "password authentication failed" in await error_of(ours._connect("app", "admin", WORDS["admin"]))


async def test_drivers_and_tools_that_pgbouncers_users_have_work(stage: Stage) -> None:
    ours = stage.places[1]
    connection = await asyncpg.connect(
        host="127.0.0.1", port=ours.port, user="stats", password=WORDS["stats"], database="pgbouncer"
    )
    try:
        assert await connection.execute("SHOW VERSION") == "SHOW"
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="extended query protocol"):
            await connection.fetch("SHOW VERSION")
        assert await connection.execute("SHOW STATE") == "SHOW"
    finally:
        await connection.close()
    environ = {**os.environ, "PGPASSWORD": WORDS["stats"], "PGCONNECT_TIMEOUT": "10"}
    address = f"host=127.0.0.1 port={ours.port} user=stats dbname=pgbouncer"
    for words, expected in (
        (("-Atc", "show version"), "PgBouncer 1.24.1"),
        (("-Atc", "show help"), ""),
        (("-xc", "show stats_totals"), "query_count"),
    ):
        psql = await asyncio.create_subprocess_exec(
            "psql", "-X", *words, address, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await psql.communicate()
        assert psql.returncode == 0, err.decode()
        assert expected in out.decode()
