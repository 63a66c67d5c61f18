"""The whole way: `turnout` commands against `turnout serve` before two real servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from typing import Any

import asyncpg
import pytest

from proxy.embedded import PostgresPair, Setup, Turnout
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]


async def run(*arguments: str, url: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", *arguments,
        env={**os.environ, "TURNOUT_URL": url, "COLUMNS": "80"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def setup_for(pair: PostgresPair) -> Setup:
    return Setup(
        protocol="postgresql",
        engines={"blue": pair.primary.address, "green": pair.standby.address},
        admin_user="postgres",
        admin_password="secret",
        users={"app": "secret"},
        databases=["app"],
        workers=2,
    )


async def log_in(turnout: Turnout) -> Any:
    return await asyncpg.connect(host=turnout.host, port=turnout.port, user="app", password="secret", database="app")


async def test_an_operator_looks_switches_and_reads_the_report(
    fresh_postgres_pair: PostgresPair, start_turnout: StartTurnout
) -> None:
    turnout = await start_turnout(setup_for(fresh_postgres_pair))
    url = turnout.control_url
    client = await log_in(turnout)
    source = await client.fetchval("select inet_server_port()")

    code, out, err = await run("check", str(turnout.config), url=url)
    assert (code, err) == (0, "")
    assert out.count(" all") == 2

    code, out, err = await run("status", url=url)
    assert (code, err) == (0, "")
    assert "ready, up" in out
    assert "2 of 2 workers" in out

    code, out, err = await run("sessions", "--json", url=url)
    [session] = json.loads(out)
    assert (session["user"], session["database"], session["engine"]) == ("app", "app", "blue")

    code, out, err = await run("switch", "blue", url=url)
    assert code == 1
    assert "active" in err

    code, out, err = await run("ready", "green", url=url)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    verdicts = {
        line.split()[1]: line.split()[0] for line in out.splitlines() if line.startswith(("pass", "warn", "fail"))
    }
    assert set(verdicts.values()) == {"pass"}, out
    assert {"settings", "collations", "extensions", "schema", "drain", "pending_transactions", "lag"} <= set(verdicts)
    await client.execute("create table compared as select n from generate_series(1, 100) n")
    code, out, err = await run("datacheck", "green", url=url)
    assert (code, err) == (0, "")
    assert "equal: 100 rows of 1 table compared" in out
    assert "compared as a whole" in out
    code, out, err = await run("ready", "green", "--json", url=url)
    [rows] = [check for check in json.loads(out)["checks"] if check["name"] == "rows"]
    assert (rows["verdict"], rows["found"]) == ("pass", "100 rows of 1 table were alike")
    other = await log_in(turnout)
    await other.execute("begin")
    code, out, err = await run("switch", "green", "--max-pending-transactions", "1", "--dry-run", url=url)
    assert code == 0
    await client.execute("begin")
    code, out, err = await run("switch", "green", "--max-pending-transactions", "1", url=url)
    assert code == 1
    assert "refused by check pending_transactions: 2 sessions in a transaction" in err
    await client.execute("commit")
    await other.close()

    code, out, err = await run("switch", "green", "--dry-run", url=url)
    assert (code, err) == (0, "")
    assert await client.fetchval("select inet_server_port()") == source

    code, out, err = await run("switch", "green", "--reason", "a test", url=url)
    assert (code, err) == (0, ""), turnout.text_of_log()
    assert "completed: green serves app" in out
    assert await client.fetchval("select inet_server_port()") != source

    code, out, err = await run("history", "--json", url=url)
    record, refused = json.loads(out)
    assert (record["phase"], record["plan"]["reason"]) == ("completed", "a test")
    assert refused["phase"] == "aborted"

    code, out, err = await run("report", record["id"], url=url)
    assert (code, err) == (0, "")
    assert "a write was refused with" in " ".join(out.split())

    async with turnout.control() as control:
        text = (await control.get("/metrics")).text
    assert 'turnout_engine_active{engine="green",service="app"} 1.0' in text
    for line in (
        'turnout_switches_total{outcome="aborted",service="app",strategy="graceful"} 1.0',
        'turnout_switches_total{outcome="completed",service="app",strategy="graceful"} 1.0',
        'turnout_switch_cutover_seconds_count{service="app"} 1.0',
    ):
        assert line in text.splitlines()
    assert re.search(r'turnout_transaction_duration_seconds_count{engine="green",service="app"} [1-9]', text)
    code, out, err = await run("switch", "blue", "--in", "3600", "--json", url=url)
    assert (code, json.loads(out)["phase"]) == (0, "pending")
    code, out, err = await run("cancel", json.loads(out)["id"], url=url)
    assert (code, err) == (0, "")
    await client.close()


async def test_a_standby_that_does_not_follow_is_refused_and_nothing_happens(
    fresh_postgres_pair: PostgresPair, start_turnout: StartTurnout
) -> None:
    turnout = await start_turnout(setup_for(fresh_postgres_pair))
    client = await log_in(turnout)
    await client.execute("create table t (a int)")
    await fresh_postgres_pair.standby.stop()

    code, _, err = await run("switch", "green", url=turnout.control_url)
    assert code == 1
    assert err.startswith("turnout: refused by check target_reachable: green: ")
    assert "start green" in err
    await client.execute("insert into t values (1)")
    await client.close()


async def test_a_reload_applies_what_may_be_applied_and_says_what_may_not(
    postgres_pair: PostgresPair, start_turnout: StartTurnout
) -> None:
    turnout = await start_turnout(setup_for(postgres_pair))
    text = turnout.config.read_text()
    turnout.config.write_text(text.replace("workers = 2", "workers = 3\nmax_client_conn = 1"))
    assert turnout.pid is not None
    os.kill(turnout.pid, signal.SIGHUP)
    await until(lambda: "config reloaded" in turnout.text_of_log(), "the reload is logged")
    [line] = [line for line in turnout.text_of_log().splitlines() if "config reloaded" in line]
    assert "max_client_conn: 10000 -> 1" in line.partition("needs_restart")[0]
    assert "workers: 2 -> 3" in line.partition("needs_restart")[2]

    shown = await turnout.get("/v1/config")
    assert shown["max_client_conn"] == {"value": 1, "origin": "file"}
    assert shown["workers"]["value"] == 2

    turnout.config.write_text(text + "nonsense = 1\n")
    os.kill(turnout.pid, signal.SIGHUP)
    await until(lambda: "was not reloaded" in turnout.text_of_log(), "the refusal is logged")
    assert "nonsense: unknown key" in turnout.text_of_log()
    assert (await turnout.get("/v1/config"))["max_client_conn"]["value"] == 1


async def test_a_new_user_can_log_in_after_a_reload(postgres_pair: PostgresPair, start_turnout: StartTurnout) -> None:
    setup = setup_for(postgres_pair)
    turnout = await start_turnout(Setup(**{**vars(setup), "users": {"other": "x"}}))
    with pytest.raises(asyncpg.InvalidPasswordError):
        await log_in(turnout)
    (turnout.config.parent / "users.txt").write_text('"app" "secret"\n')
    assert turnout.pid is not None
    os.kill(turnout.pid, signal.SIGHUP)

    async def gets_in() -> bool:
        try:
            client = await log_in(turnout)
        except asyncpg.InvalidPasswordError:
            return False
        await client.close()
        return True

    await until(gets_in, "the new user is known")
