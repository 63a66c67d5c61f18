"""The control port of a running Turnout: what its description promises, and who may change what."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio

from proxy.config import hash_token
from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

TOKENS = {role: f"{role}-token-0123456789" for role in ("viewer", "operator", "admin")}


def setup_for(pair: PostgresPair, folder: Path) -> Setup:
    for role, token in TOKENS.items():
        (folder / role).write_text(hash_token(token))
    callers = {f"the-{role}": {"role": role, "token": {"file": str(folder / role)}} for role in TOKENS}
    return Setup(
        protocol="postgresql",
        engines={server.name: server.address for server in (pair.primary, pair.standby)},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        databases=["app"],
        control={"caller": callers, "requests_per_s": 10_000},
        control_token=TOKENS["admin"],
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnout(postgres_pair: PostgresPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Turnout]:
    """With a caller of each role; nothing here switches."""
    folder = tmp_path_factory.mktemp("control")
    one = Turnout(setup_for(postgres_pair, folder), folder)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


async def log_in(turnout: Turnout) -> Any:
    return await asyncpg.connect(host=turnout.host, port=turnout.port, user="app", password=PASSWORD, database="app")


# --- what the description promises --------------------------------------------------------------------------------

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"

SCHEMATHESIS = """
[parameters]
"path.service" = "app"
"""
"""Else no generated request would find a service."""


async def generated_requests(turnout: Turnout, folder: Path, role: str, phases: str) -> str:
    """Send what schemathesis makes of the API's description; what it found, empty if nothing."""
    (folder / "schemathesis.toml").write_text(SCHEMATHESIS)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(folder / "schemathesis.toml"), "run",
        f"{turnout.control_url}/docs/openapi.json", "--header", f"Authorization: Bearer {TOKENS[role]}",
        "--checks", CHECKS, "--exclude-path", "/v1/events", "--phases", phases,
        "--max-examples", "5", "--seed", "1", "--generation-database", "none", "--continue-on-failure",
        "--suppress-health-check", "all", "--no-color",
        cwd=folder, env={**os.environ, "COLUMNS": "200"}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return "" if process.returncode == 0 else out.decode()[-12_000:]


async def test_no_generated_request_meets_a_server_error_or_an_undeclared_answer(
    turnout: Turnout, tmp_path: Path
) -> None:
    assert await generated_requests(turnout, tmp_path, "admin", "coverage,fuzzing") == ""
    assert "request failed" not in turnout.text_of_log()
    async with turnout.control() as client:
        for row in (await client.get("/v1/databases/standstills")).json():
            for database in ["" for _ in range(row["is_paused"])] + row["paused"]:
                await client.post("/v1/databases/resume", json={"database": database})
            for database in row["disabled"]:
                await client.post("/v1/databases/enable", json={"database": database})


async def state_of(turnout: Turnout) -> dict[str, Any]:
    """All that a caller of the control port could have changed."""
    async with turnout.control() as client:
        audit = (await client.get("/v1/audit?outcome=done&limit=1000")).json()
        return {
            "done": [one for one in audit if one["caller"].startswith("the-viewer")],
            "engines": [row["engine"]["name"] for row in (await client.get("/v1/engines")).json()],
            "switches": (await client.get("/v1/switches")).json(),
            "config": (await client.get("/v1/config")).json(),
            "log": (await client.get("/v1/log")).json(),
            "policies": [view["policy"] for view in (await client.get("/v1/policies")).json()],
            "datachecks": (await client.get("/v1/datachecks")).json(),
            "failover": (await client.get("/v1/services/app")).json()["failover"],
            "standstills": (await client.get("/v1/databases/standstills")).json(),
            "sessions": [row["id"] for row in (await client.get("/v1/sessions")).json()],
        }


async def test_whatever_a_viewer_sends_changes_nothing(turnout: Turnout, tmp_path: Path) -> None:
    session = await log_in(turnout)
    before = await state_of(turnout)
    assert await generated_requests(turnout, tmp_path, "viewer", "coverage") == ""
    assert await state_of(turnout) == before
    assert await session.fetchval("select 1") == 1
    await session.close()


# --- what an admin changes while it runs --------------------------------------------------------------------------


async def test_an_engine_that_was_added_or_removed_stays_so_over_a_restart(
    postgres_pair: PostgresPair, tmp_path: Path
) -> None:
    setup = setup_for(postgres_pair, tmp_path)
    standby = setup.engines[postgres_pair.standby.name]
    turnout = Turnout(setup, tmp_path)
    await turnout.start()
    base = "/v1/services/app/engines"
    try:
        session = await log_in(turnout)
        async with turnout.control() as client:
            planned = await client.post(
                "/v1/services/app/switch", json={"target_engine": postgres_pair.standby.name, "in_seconds": 3_600}
            )
            assert planned.status_code == 202, planned.text
            refused = await client.delete(f"{base}/{postgres_pair.standby.name}")
            assert (refused.status_code, "cancel that switch first" in refused.text) == (409, True)
            cancelled = await client.post(f"/v1/switches/{planned.json()['id']}/cancel")
            assert cancelled.is_success, cancelled.text
            removed = await client.delete(f"{base}/{postgres_pair.standby.name}")
            assert removed.status_code == 204, removed.text
            refused = await client.delete(f"{base}/{postgres_pair.primary.name}")
            assert (refused.status_code, "switch to another" in refused.text) == (409, True)
            added = await client.put(f"{base}/white", json={"address": standby})
            assert added.status_code == 201, added.text
            assert (await client.put(f"{base}/white", json={"address": "127.0.0.1:1"})).status_code == 409
            assert (await client.put(f"{base}/grey", json={"address": standby})).status_code == 409
            assert (await client.put(f"{base}/grey", json={"address": "nonsense"})).status_code == 400

            async def is_seen() -> bool:
                rows = (await client.get("/v1/engines")).json()
                return any(row["engine"]["name"] == "white" and row["engine"]["state"] for row in rows)

            await until(is_seen, "the new engine is probed")
            assert (await client.get("/v1/services/app/ready/white")).json()["is_ready"]
        assert await session.fetchval("select 1") == 1
        await session.close()
        await turnout.stop()
        await turnout.start()
        names = {row["engine"]["name"] async for row in _engines(turnout)}
        assert names == {postgres_pair.primary.name, "white"}
    finally:
        await turnout.stop()


async def _engines(turnout: Turnout) -> AsyncIterator[dict[str, Any]]:
    async with turnout.control() as client:
        for row in (await client.get("/v1/engines")).json():
            yield row


async def test_one_session_is_ended_and_told_why_and_the_others_go_on(turnout: Turnout) -> None:
    ended, other = await log_in(turnout), await log_in(turnout)
    await ended.execute("begin")
    async with turnout.control() as client:
        page = await client.get("/v1/sessions?in_transaction=true&limit=1")
        [row] = page.json()
        assert page.headers["total-count"] == "1"
        first = await client.get("/v1/sessions?limit=1")
        assert first.headers["total-count"] == "2"
        rest = await client.get(first.links["next"]["url"])
        assert {first.json()[0]["id"], rest.json()[0]["id"]} >= {row["id"]}
        assert "next" not in rest.links
        answer = await client.delete(f"/v1/sessions/{row['id']}?reason=maintenance")
        assert (answer.status_code, answer.json()["user"]) == (200, "app")
        # What asyncpg calls it depends on whether the end was told before it asked.
        ends = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
        with pytest.raises(ends):
            await ended.execute("select 1")
        assert (await client.get(f"/v1/sessions/{row['id']}")).status_code == 404
    assert await other.fetchval("select 1") == 1
    await other.close()
    assert "maintenance" in turnout.text_of_log()


async def test_what_happens_is_heard_as_it_happens_and_again_by_whoever_comes_back(turnout: Turnout) -> None:
    async def heard(client: httpx.AsyncClient, wanted: str, last_id: str | None = None) -> str:
        """Id of the first event of a kind."""
        headers = {"Last-Event-ID": last_id} if last_id is not None else {}
        async with asyncio.timeout(10), client.stream("GET", "/v1/events", headers=headers) as answer:
            listening.set()
            event_id = ""
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    event_id = line.removeprefix("id: ")
                elif line == f"event: {wanted}":
                    return event_id
        raise AssertionError("the stream ended")

    listening = asyncio.Event()
    async with turnout.control() as client:
        hearing = asyncio.ensure_future(heard(client, "config.reloaded"))
        await listening.wait()
        assert (await client.post("/v1/config/reload")).json()["needs_restart"] == []
        event_id = await hearing
        before = f"{event_id.rpartition('-')[0]}-{int(event_id.rpartition('-')[2]) - 1}"
        assert await heard(client, "config.reloaded", before) == event_id
        await heard(client, "events.missed", "of-another-life-1")


async def test_the_log_level_changes_while_it_runs(turnout: Turnout) -> None:
    async with turnout.control() as client:
        assert (await client.put("/v1/log", json={"level": "error"})).status_code == 200
        await client.post("/v1/config/reload")
        assert (await client.get("/v1/log")).json() == {"level": "info"}, "a reload says what the file says"
