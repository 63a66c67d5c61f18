"""No secret leaves Turnout: each kind is a word that stands nowhere else, and everything that can be read is searched for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import asyncpg
import httpx
import httpx2
import pymysql
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from proxy.embedded import MariaDBPair, PostgresPair, Setup, Turnout, free_port
from proxy.embedded.certificate import write_certificate
from proxy.embedded.postgres import SUPERUSER
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until
from tests.proxy.control.alerts.receiving import Mail, Web, mail, web

pytestmark = [pytest.mark.slow]

CANARIES: Final = {
    what: f"canary-{what}-7f3a91c2d4"
    for what in (
        "admin-password",
        "user-password",
        "wrong-password",
        "token",
        "wrong-token",
        "hook-token",
        "hook-path",
        "chat-path",
        "alert-token",
        "literal",
        "value",
        "slow",
        "environment",
    )
} | {"smtp-password": Mail.PASSWORD}

WHAT_CAN_BE_READ: Final = (
    "/v1/status", "/v1/services", "/v1/engines", "/v1/sessions", "/v1/pools", "/v1/config", "/v1/switches", "/v1/policies",
    "/v1/policy-history", "/v1/audit?limit=1000", "/v1/log", "/v1/alerts", "/v1/alerts/rules", "/v1/alerts/receivers",
    "/v1/alerts/deliveries", "/v1/alerts/silences", "/metrics", "/docs", "/docs/openapi.json", "/", "/v1/nothing",
)  # fmt: skip

WHAT_AGENTS_READ: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("list_available_engines", {}),
    ("get_engine_metrics", {}),
    ("get_switch_history", {"limit": 10}),
    ("switch_database_engine", {"target_engine": CANARIES["value"] + "-not-an-engine"}),
)

Family = Literal["postgresql", "mysql"]


@pytest.mark.postgresql
async def test_no_log_answer_title_or_state_has_a_secret_with_postgres(
    postgres_pair: PostgresPair, start_turnout: StartTurnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = {"canary_admin": ("superuser", "admin-password"), "canary_user": ("", "user-password")}
    direct = await asyncpg.connect(postgres_pair.primary.dsn("postgres", SUPERUSER))
    for role, (kind, word) in roles.items():
        await direct.execute(f"create role {role} login {kind} password '{CANARIES[word]}'")
    try:
        addresses = {server.name: server.address for server in postgres_pair.servers()}
        await _nothing_is_found("postgresql", addresses, start_turnout, tmp_path, monkeypatch)
    finally:
        for role in roles:
            await direct.execute(f"drop role {role}")
        await direct.close()


@pytest.mark.mariadb
async def test_no_log_answer_title_or_state_has_a_secret_with_mariadb(
    mariadb_pair: MariaDBPair, start_turnout: StartTurnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = mariadb_pair.primary
    admin, user = CANARIES["admin-password"], CANARIES["user-password"]
    await primary.execute(f"create user canary_admin identified by '{admin}'")
    await primary.execute("grant all on *.* to canary_admin with grant option")
    await primary.execute(f"create user canary_user identified by '{user}'")
    await primary.execute("grant all on app.* to canary_user")
    try:
        addresses = {server.name: server.address for server in mariadb_pair.servers()}
        await _nothing_is_found("mysql", addresses, start_turnout, tmp_path, monkeypatch)
    finally:
        await primary.execute("drop user canary_admin")
        await primary.execute("drop user canary_user")


async def _nothing_is_found(
    family: Family,
    addresses: dict[str, str],
    start_turnout: StartTurnout,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CANARY_ALERT_TOKEN", CANARIES["environment"])
    async with web() as server, mail(folder / "mail") as mailbox:
        server.status, server.said = 503, f"what is /{CANARIES['hook-path']}, and {CANARIES['alert-token']}?"
        mailbox.refuses = "554 no"
        turnout = await start_turnout(_setup(family, addresses, folder, server, mailbox))
        try:
            texts = await _everything_happens(family, turnout)
            texts |= await _what_commands_say(turnout)
            assert server.requests, "the receivers were asked"
            for process in turnout.processes():
                texts[f"title of {process.pid}"] = " ".join(process.cmdline())
            for path in turnout.folder.glob("turnout.sqlite*"):
                texts[path.name] = path.read_bytes().decode("latin-1")
        finally:
            await turnout.stop()
        texts["log"] = turnout.text_of_log()
    for happened in ("All connection attempts failed", "slow query", "message not delivered", "alert fires"):
        assert happened in texts["log"], happened
    key = (folder / "tls" / "server.key").read_text().splitlines()[1]
    hidden = (
        CANARIES | {"private-key": key} | {f"{what} in base64": _in_base64(word) for what, word in CANARIES.items()}
    )
    found = [(where, what) for where, text in texts.items() for what, word in hidden.items() if word in text]
    # What an agent asks for is told in its audit log, for it is no secret of ours.
    asked = {
        ("value", "mcp"),
        ("value", "/v1/audit?limit=1000"),
        ("value", "turnout.sqlite"),
        ("value", "turnout.sqlite-wal"),
    }
    assert [(where, what) for where, what in found if (what, where.split(" ")[0]) not in asked] == []


def _in_base64(word: str) -> str:
    """As it would be seen in the middle of something longer, whatever stands before: two thirds of it do."""
    return base64.b64encode(word.encode()).decode()[4:24]


def _setup(family: Family, addresses: dict[str, str], folder: Path, server: Web, mailbox: Mail) -> Setup:
    def kept(name: str, text: str) -> dict[str, str]:
        (folder / name).write_text(text)
        return {"file": str(folder / name)}

    (folder / "tls").mkdir()
    key, certificate = write_certificate(folder / "tls")
    hook = {
        "at": "before_fence", "url": "http://127.0.0.1:1/", "token": kept("hook", CANARIES["hook-token"]),
    }  # fmt: skip
    receivers: dict[str, dict[str, Any]] = {
        "hook": {
            "kind": "webhook", "url": kept("hook-url", f"{server.url}/{CANARIES['hook-path']}?key={CANARIES['hook-path']}"),
            "token": kept("alert-token", CANARIES["alert-token"]),
        },
        "closed": {
            "kind": "slack", "url": kept("chat-url", f"http://127.0.0.1:{free_port()}/{CANARIES['chat-path']}"),
            "token": {"env": "CANARY_ALERT_TOKEN"},
        },
        "mail": {
            "kind": "email", "server": f"127.0.0.1:{mailbox.port}", "ca_file": str(mailbox.certificate),
            "user": mailbox.USER, "password": kept("smtp", mailbox.PASSWORD), "sender": "turnout@example.org",
            "to": ["dba@example.org"],
        },
    }  # fmt: skip
    for receiver in receivers.values():
        receiver["retry_for_s"] = 0
    rules = {"always": {"when": "sessions", "above": -1, "severity": "info"}}
    keys = {"issuer": "https://login.example", "audience": "turnout", "jwks_file": str(folder / "jwks.json")}
    (folder / "jwks.json").write_text('{"keys": []}')
    return Setup(
        protocol=family,
        engines=addresses,
        admin_user="canary_admin",
        admin_password=CANARIES["admin-password"],
        users={"canary_user": CANARIES["user-password"]},
        auth_method="scram-sha-256" if family == "postgresql" else "mysql_native_password",
        databases=["app"],
        control={"token": kept("token", CANARIES["token"]), "jwt": keys},
        control_token=CANARIES["token"],
        service={"hook": [hook], "slow_query_ms": 100},
        listener={
            "client_tls_sslmode": "prefer", "client_tls_cert_file": str(certificate), "client_tls_key_file": str(key),
        },
        top={"alerts": {"defaults": False, "rule": rules, "receiver": receivers}},
        log_level="debug",
    )  # fmt: skip


async def _everything_happens(family: Family, turnout: Turnout) -> dict[str, str]:
    """Logins, queries, errors, requests that are refused, a switch that a hook undoes, messages that do not arrive; what
    was answered, by path."""
    answers: dict[str, str] = {}
    async with turnout.control() as client, _events(client, answers):

        async def ask(method: str, path: str, **more: Any) -> httpx.Response:
            answer = await client.request(method, path, **more)
            answers[f"{path} {method} {len(answers)}"] = f"{answer.headers} {answer.text}"
            return answer

        await (_postgres_clients if family == "postgresql" else _mysql_clients)(turnout)
        claims = base64.urlsafe_b64encode(json.dumps({"alg": "RS256", "kid": "x"}).encode()).decode().rstrip("=")
        for wrong in (CANARIES["wrong-token"], f"{claims}.{claims}.{CANARIES['wrong-token']}"):
            await ask("GET", "/v1/status", headers={"Authorization": f"Bearer {wrong}"})
        await ask("POST", "/v1/config/reload")
        target = next(reversed(list(turnout.setup.engines)))
        begun = await ask("POST", "/v1/services/app/switch", json={"target_engine": target})
        switch = begun.json().get("id") or begun.json()["switch"]

        async def has_ended() -> bool:
            return bool((await client.get(f"/v1/switches/{switch}")).json()["report"])

        await until(has_ended, "the hook has undone the switch")
        assert (await ask("GET", f"/v1/switches/{switch}")).json()["phase"] == "aborted"
        await ask("GET", f"/v1/switches/{switch}/report")
        for receiver in ("hook", "closed", "mail"):
            sent = await ask("POST", f"/v1/alerts/receivers/{receiver}/test")
            assert sent.json()["state"] == "failed"
        await _agents(turnout, answers)
        for path in WHAT_CAN_BE_READ:
            await ask("GET", path)
    return answers


@asynccontextmanager
async def _events(client: httpx.AsyncClient, answers: dict[str, str]) -> AsyncIterator[None]:
    """The stream of events for as long as things happen."""
    seen: list[str] = []

    async def follow() -> None:
        async with client.stream("GET", "/v1/events", timeout=None) as stream:
            async for line in stream.aiter_lines():
                seen.append(line)

    task = asyncio.create_task(follow())
    try:
        await until(lambda: bool(seen), "the stream of events has begun")
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        answers["events"] = "\n".join(seen)
        assert "alert.delivery_failed" in answers["events"]


async def _postgres_clients(turnout: Turnout) -> None:
    where: dict[str, Any] = {"host": turnout.host, "port": turnout.port, "user": "canary_user", "database": "app"}
    with contextlib.suppress(asyncpg.PostgresError):
        await asyncpg.connect(**where, password=CANARIES["wrong-password"])
    session = await asyncpg.connect(**where, password=CANARIES["user-password"])
    await session.fetchval("select $1::text", CANARIES["value"])
    await session.execute(f"select pg_sleep(0.15), '{CANARIES['slow']}'")
    with contextlib.suppress(asyncpg.PostgresError):
        await session.execute(f"select '{CANARIES['literal']}'::int")
    await session.close()


async def _mysql_clients(turnout: Turnout) -> None:
    def work() -> None:
        where: dict[str, Any] = {"host": turnout.host, "port": turnout.port, "user": "canary_user", "database": "app"}
        with contextlib.suppress(pymysql.MySQLError):
            pymysql.connect(**where, password=CANARIES["wrong-password"])
        session = pymysql.connect(**where, password=CANARIES["user-password"])
        with session, session.cursor() as cursor:
            cursor.execute("select %s", (CANARIES["value"],))
            cursor.execute(f"select sleep(0.15), '{CANARIES['slow']}'")
            with contextlib.suppress(pymysql.MySQLError):
                cursor.execute(f"select nothing_like_this('{CANARIES['literal']}')")

    await asyncio.to_thread(work)


async def _agents(turnout: Turnout, answers: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {CANARIES['token']}"}
    async with httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False) as http:
        async with Client(streamable_http_client(f"{turnout.control_url}/mcp", http_client=http)) as client:
            for tool, arguments in WHAT_AGENTS_READ:
                answers[f"mcp {tool}"] = repr(await client.call_tool(tool, dict(arguments)))
            for resource in (await client.list_resources()).resources:
                answers[f"mcp-resource {resource.uri}"] = repr(await client.read_resource(resource.uri))


async def _what_commands_say(turnout: Turnout) -> dict[str, str]:
    """The config checked, as it is and with secrets that cannot be; and what commands show."""
    said: dict[str, str] = {}
    broken = turnout.folder / "broken.toml"
    (turnout.folder / "not-a-url").write_text(CANARIES["chat-path"])
    text = turnout.config.read_text()
    for name in ("hook-url", "chat-url"):
        text = text.replace(str(turnout.folder.parent / name), str(turnout.folder / "not-a-url"))
    broken.write_text(text)
    token = ["--url", turnout.control_url, "--token-file", str(turnout.folder.parent / "token")]

    async def run(*words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        said[" ".join(("turnout", *words[:2]))] = output.decode()
        return output.decode()

    checks: list[Callable[[], Awaitable[str]]] = [
        lambda: run("check", str(turnout.config)),
        lambda: run("check", str(broken)),
        lambda: run(*token, "alert", "receivers"),
    ]
    _good, bad, receivers = await asyncio.gather(*(one() for one in checks))
    assert "does not hold an address" in bad
    assert "127.0.0.1" in receivers
    return said
