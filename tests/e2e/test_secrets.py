"""No secret leaves Turnout: each kind is a word that stands nowhere else, and everything that can be read is searched for it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.postgres import SUPERUSER
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

CANARIES = {
    what: f"canary-{what}-7f3a91c2d4"
    for what in (
        "admin-password",
        "user-password",
        "wrong-password",
        "token",
        "wrong-token",
        "hook-token",
        "literal",
        "value",
    )
}

WHAT_CAN_BE_READ = (
    "/v1/status", "/v1/services", "/v1/engines", "/v1/sessions", "/v1/pools", "/v1/config", "/v1/switches", "/v1/policies",
    "/v1/policy-history", "/v1/audit?limit=1000", "/v1/log", "/metrics", "/docs", "/docs/openapi.json", "/", "/v1/nothing",
)  # fmt: skip


async def test_no_log_answer_title_or_state_has_a_secret(
    postgres_pair: PostgresPair, start_turnout: StartTurnout, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(CANARIES["token"])
    (tmp_path / "hook").write_text(CANARIES["hook-token"])
    roles = {"canary_admin": ("superuser", "admin-password"), "canary_user": ("", "user-password")}
    direct = await asyncpg.connect(postgres_pair.primary.dsn("postgres", SUPERUSER))
    for role, (kind, word) in roles.items():
        await direct.execute(f"create role {role} login {kind} password '{CANARIES[word]}'")
    try:
        turnout = await start_turnout(_setup(postgres_pair, tmp_path))
        answers = await _everything_happens(turnout)
        texts = {"log": turnout.text_of_log(), **answers}
        for process in turnout.processes():
            texts[f"title of {process.pid}"] = " ".join(process.cmdline())
        for path in turnout.folder.glob("turnout.sqlite*"):
            texts[path.name] = path.read_bytes().decode("latin-1")
        assert "All connection attempts failed" in texts["log"], "the hook was called"
        found = [(where, what) for where, text in texts.items() for what, word in CANARIES.items() if word in text]
        assert found == []
    finally:
        await turnout.stop()
        for role in roles:
            await direct.execute(f"drop role {role}")
        await direct.close()


def _setup(pair: PostgresPair, folder: Path) -> Setup:
    hook = {"at": "before_fence", "url": "http://127.0.0.1:1/", "token": {"file": str(folder / "hook")}}
    return Setup(
        protocol="postgresql",
        engines={server.name: server.address for server in (pair.primary, pair.standby)},
        admin_user="canary_admin",
        admin_password=CANARIES["admin-password"],
        users={"canary_user": CANARIES["user-password"]},
        databases=["app"],
        control={"token": {"file": str(folder / "token")}},
        control_token=CANARIES["token"],
        service={"hook": [hook]},
        log_level="debug",
    )


async def _everything_happens(turnout: Turnout) -> dict[str, str]:
    """Logins, queries, errors, requests that are refused, a switch that a hook undoes; what was answered, by path."""
    where: dict[str, Any] = {"host": turnout.host, "port": turnout.port, "user": "canary_user", "database": "app"}
    with contextlib.suppress(asyncpg.PostgresError):
        await asyncpg.connect(**where, password=CANARIES["wrong-password"])
    session = await asyncpg.connect(**where, password=CANARIES["user-password"])
    await session.fetchval("select $1::text", CANARIES["value"])
    with contextlib.suppress(asyncpg.PostgresError):
        await session.execute(f"select '{CANARIES['literal']}'::int")
    target = next(reversed(list(turnout.setup.engines)))
    answers: dict[str, str] = {}
    async with turnout.control() as client:

        async def ask(method: str, path: str, **more: Any) -> httpx.Response:
            answer = await client.request(method, path, **more)
            answers[f"{method} {path} {len(answers)}"] = f"{answer.headers} {answer.text}"
            return answer

        await ask("GET", "/v1/status", headers={"Authorization": f"Bearer {CANARIES['wrong-token']}"})
        await ask("POST", "/v1/config/reload")
        begun = await ask("POST", "/v1/services/app/switch", json={"target_engine": target})
        switch = begun.json().get("id") or begun.json()["switch"]

        async def has_ended() -> bool:
            return bool((await client.get(f"/v1/switches/{switch}")).json()["report"])

        await until(has_ended, "the hook has undone the switch")
        assert (await ask("GET", f"/v1/switches/{switch}")).json()["phase"] == "aborted"
        for path in WHAT_CAN_BE_READ:
            await ask("GET", path)
    await session.close()
    return answers
