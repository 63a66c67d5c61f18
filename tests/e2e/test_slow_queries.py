"""The slow-query log of a whole Turnout: who waited how long for which statement, and no value of it."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import httpx
import pymysql
import pytest

from proxy.embedded import MariaDBPair, PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until

SLOW = {"slow_query_ms": 100}
VALUE = "canary5d1c"


def lines(turnout: Turnout) -> list[dict[str, Any]]:
    """Of the slow-query log."""
    found = [json.loads(line) for line in turnout.text_of_log().splitlines() if line.startswith("{")]
    return [one for one in found if one["event"] == "slow query"]


async def logged(turnout: Turnout, count: int) -> list[dict[str, Any]]:
    await until(lambda: len(lines(turnout)) >= count, f"{count} lines of the slow-query log")
    return lines(turnout)


@pytest.mark.postgresql
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
async def test_a_slow_statement_of_postgres_is_logged_without_its_values(
    start_turnout: StartTurnout, postgres_pair: PostgresPair, pool_mode: Any
) -> None:
    turnout = await start_turnout(
        Setup(
            protocol="postgresql", engines={"blue": postgres_pair.primary.address}, admin_user=SUPERUSER,
            admin_password=PASSWORD, users={"app": PASSWORD}, databases=["app"], pool_mode=pool_mode, service=SLOW,
            log_format="json",
        )
    )  # fmt: skip
    session = await asyncpg.connect(host=turnout.host, port=turnout.port, user="app", password=PASSWORD, database="app")
    await session.execute(f"select 'quick', '{VALUE}'")
    await session.execute(f"select pg_sleep(0.15), '{VALUE}', 42")
    prepared = await session.prepare("select pg_sleep($1), $2::text")
    await prepared.fetch(0.15, VALUE)
    await prepared.fetch(0.0, VALUE)
    await prepared.fetch(0.15, VALUE)
    await session.close()
    first, second, third = await logged(turnout, 3)
    assert (first["engine"], first["user"], first["database"], first["kind"]) == ("blue", "app", "app", "select")
    assert first["query"] == "select pg_sleep(?), ?, …"
    assert 150 <= first["duration_ms"] < 5_000
    assert second["query"] == third["query"] == "select pg_sleep(?), ?::text"
    assert second["fingerprint"] == third["fingerprint"] != first["fingerprint"]
    assert len(lines(turnout)) == 3
    assert VALUE not in turnout.text_of_log()


@pytest.mark.mariadb
async def test_a_slow_statement_of_mariadb_is_logged_and_a_reload_ends_that(
    start_turnout: StartTurnout, mariadb_pair: MariaDBPair
) -> None:
    turnout = await start_turnout(
        Setup(
            protocol="mysql", engines={"blue": mariadb_pair.primary.address}, admin_user="turnout",
            admin_password="secret", users={"app": "secret"}, auth_method="mysql_native_password", databases=["app"],
            service=SLOW, log_format="json",
        )
    )  # fmt: skip
    session = pymysql.connect(
        host=turnout.host, port=turnout.port, user="app", password="secret", database="app", autocommit=True
    )
    with session, session.cursor() as cursor:
        cursor.execute(f'select sleep(0.15), "{VALUE}"')
        [line] = await logged(turnout, 1)
        text = turnout.config.read_text()
        turnout.config.write_text(text.replace("slow_query_ms = 100", "slow_query_ms = 0"))
        async with httpx.AsyncClient(base_url=turnout.control_url, trust_env=False) as client:
            assert (await client.post("/v1/config/reload")).json()["applied"] == [
                "service.app.slow_query_ms: 100.0 -> 0.0"
            ]
        await until(lambda: "config reloaded" in turnout.text_of_log(), "the config was reloaded")
        cursor.execute("select sleep(0.15)")
    assert line["query"] == "select sleep(?), ?"
    assert len(lines(turnout)) == 1
    assert VALUE not in turnout.text_of_log()
