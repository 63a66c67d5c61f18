"""AI agents at a running Turnout, by the SDK's own client: the eight tools, and who may use which."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx2
import mcp_types as types
import msgspec
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.server import Server
from mcp.shared.exceptions import MCPError

from proxy.control.app import serve_control
from proxy.control.mcp import server
from proxy.control.mcp.server import build_server
from proxy.control.mcp.tools import TOOLS
from proxy.control.roles import Caller, Role
from proxy.control.service import ControlService
from proxy.embedded import PostgresPair, Turnout, free_port
from proxy.embedded.postgres import PASSWORD
from tests.e2e.test_control import TOKENS, setup_for
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until
from tests.proxy.control.scripted import ScriptedSupervisor
from tests.proxy.control.test_app import config_on

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

INPUTS: Final = {
    "switch_database_engine": {"target_engine", "strategy", "force", "drain_timeout_seconds", "dry_run"},
    "list_available_engines": set(),
    "get_engine_metrics": {"engine"},
    "configure_switch_policy": {
        "name",
        "trigger",
        "target_engine",
        "strategy",
        "priority",
        "enabled",
        "window_duration",
    },
    "trigger_manual_switch": {"policy", "dry_run"},
    "get_switch_history": {"limit"},
    "cancel_pending_switch": {"switch_id"},
    "validate_switch_readiness": {"target_engine", "strategy"},
}
LOOKING: Final = {
    "list_available_engines", "get_engine_metrics", "get_switch_history", "validate_switch_readiness",
}  # fmt: skip


SWITCH_INPUT: Final = {
    "target_engine": {"type": "string", "minLength": 1, "maxLength": 63},
    "strategy": {"enum": ["canary", "graceful", "immediate", "rolling"], "default": "graceful"},
    "force": {"type": "boolean", "default": False},
    "drain_timeout_seconds": {
        "anyOf": [{"type": "number", "minimum": 0, "maximum": 3600}, {"type": "null"}], "default": None,
    },
}  # fmt: skip
"""What the design promises."""


def _without_words(schema: Any) -> Any:
    """A schema without its descriptions."""
    if isinstance(schema, dict):
        return {key: _without_words(value) for key, value in schema.items() if key != "description"}
    return [_without_words(one) for one in schema] if isinstance(schema, list) else schema


@asynccontextmanager
async def agent(turnout: Turnout, role: str) -> AsyncIterator[Client]:
    """An agent with the token of a role, over streamable HTTP."""
    headers = {"Authorization": f"Bearer {TOKENS[role]}"}
    async with httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http:
        async with Client(streamable_http_client(f"{turnout.control_url}/mcp", http_client=http)) as client:
            yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """What a tool gives; the client has compared it with the tool's schema."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert isinstance(result.structured_content, dict)
    return result.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """What a tool says that did nothing."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    [content] = result.content
    assert isinstance(content, types.TextContent)
    return content.text


async def test_an_agent_looks_rehearses_switches_and_cancels_within_its_role(
    fresh_postgres_pair: PostgresPair, start_turnout: StartTurnout, tmp_path: Path
) -> None:
    (tmp_path / "tokens").mkdir()
    turnout = await start_turnout(setup_for(fresh_postgres_pair, tmp_path / "tokens"))
    source, target = fresh_postgres_pair.primary.name, fresh_postgres_pair.standby.name
    session = await asyncpg.connect(host=turnout.host, port=turnout.port, user="app", password=PASSWORD, database="app")
    before = await session.fetchval("select inet_server_port()")

    async with agent(turnout, "viewer") as viewer:
        tools = {tool.name: tool for tool in (await viewer.list_tools()).tools}
        assert tools.keys() == INPUTS.keys()
        for name, tool in tools.items():
            assert INPUTS[name] <= tool.input_schema["properties"].keys()
            assert tool.input_schema["additionalProperties"] is False
            assert tool.output_schema is not None
            assert tool.output_schema["type"] == tool.input_schema["type"] == "object"
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint is (name in LOOKING)
        schema = tools["switch_database_engine"].input_schema
        assert schema["required"] == ["target_engine"]
        promised = {name: _without_words(schema["properties"][name]) for name in SWITCH_INPUT}
        assert promised == SWITCH_INPUT
        engines = (await call(viewer, "list_available_engines"))["engines"]
        assert {row["engine"]["name"]: row["engine"]["is_active"] for row in engines} == {source: True, target: False}
        [figures] = (await call(viewer, "get_engine_metrics", engine=source))["engines"]
        assert figures["is_active"]
        assert (await call(viewer, "validate_switch_readiness", target_engine=target))["is_ready"]
        rehearsed = await call(viewer, "switch_database_engine", target_engine=target, dry_run=True)
        assert (rehearsed["outcome"], rehearsed["readiness"]["is_ready"]) == ("dry_run", True)
        assert "needs the role operator" in await refused(viewer, "switch_database_engine", target_engine=target)
        policy = {"name": "home", "trigger": "manual", "target_engine": source}
        assert "needs the role operator" in await refused(viewer, "configure_switch_policy", **policy)
        assert "needs the role operator" in await refused(viewer, "trigger_manual_switch", policy="home")
        assert "needs the role operator" in await refused(viewer, "cancel_pending_switch", switch_id="any")
        assert "unknown" in await refused(viewer, "switch_database_engine", target_engine=target, now=True)
        assert "3600" in await refused(
            viewer, "switch_database_engine", target_engine=target, drain_timeout_seconds=3_601
        )
        with pytest.raises(MCPError, match="there is no tool"):
            await viewer.call_tool("drop_database", {})
        assert (await call(viewer, "get_switch_history"))["switches"] == []
        assert "no service 'shops'" in await refused(viewer, "get_switch_history", service="shops")

    async with agent(turnout, "operator") as operator:
        assert "needs the role admin" in await refused(
            operator, "switch_database_engine", target_engine=target, force=True
        )
        assert "active" in await refused(operator, "switch_database_engine", target_engine=source)
        pending = await call(operator, "switch_database_engine", target_engine=target, in_seconds=3_600)
        assert pending["outcome"] == "pending"
        cancelled = await call(operator, "cancel_pending_switch", switch_id=pending["switch"]["id"])
        assert cancelled["outcome"] == "aborted"
        assert cancelled["text"].partition(": ")[2].startswith("cancelled by the-operator at ")
        assert not cancelled["text"].endswith("; ")
        switched = await call(
            operator, "switch_database_engine", target_engine=target, strategy="graceful", drain_timeout_seconds=5
        )
        assert switched["outcome"] == "completed", switched["text"]
        assert await session.fetchval("select inet_server_port()") != before
        set_up = await call(operator, "configure_switch_policy", **policy)
        assert (set_up["policy"]["name"], set_up["policy"]["target_engine"]) == ("home", source)
        await fresh_postgres_pair.swap()

        async def may_go_home() -> bool:
            rehearsed = await call(operator, "trigger_manual_switch", policy="home", dry_run=True)
            return bool(rehearsed["readiness"]["is_ready"])

        await until(may_go_home, "the former primary follows")
        back = await call(operator, "trigger_manual_switch", policy="home")
        assert (back["outcome"], back["switch"]["target"]) == ("completed", source), back["text"]
        assert await session.fetchval("select inet_server_port()") == before
        history = (await call(operator, "get_switch_history"))["switches"]
        assert [one["phase"] for one in history] == ["completed", "completed", "aborted"]

        uris = {str(one.uri) for one in (await operator.list_resources()).resources}
        report_uri = f"turnout://reports/{switched['switch']['id']}"
        assert {"turnout://status", "turnout://history", "turnout://datachecks", "turnout://config", report_uri} <= uris
        [compared] = (await operator.read_resource("turnout://datachecks")).contents
        assert isinstance(compared, types.TextResourceContents)
        assert json.loads(compared.text) == []
        [report] = (await operator.read_resource(report_uri)).contents
        assert isinstance(report, types.TextResourceContents)
        assert json.loads(report.text)["phase"] == "completed"
        [config] = (await operator.read_resource("turnout://config")).contents
        assert isinstance(config, types.TextResourceContents)
        assert not any(secret in config.text for secret in (PASSWORD + '"', *TOKENS.values()))
        with pytest.raises(MCPError, match="there is no resource"):
            await operator.read_resource("turnout://nothing")
        prompts = {one.name for one in (await operator.list_prompts()).prompts}
        assert prompts == {"plan_maintenance_switch", "why_did_it_switch"}
        [why] = (await operator.get_prompt("why_did_it_switch")).messages
        assert isinstance(why.content, types.TextContent)
        assert "policy home" in why.content.text

    async with turnout.control() as control:
        entries = (await control.get("/v1/audit?action=mcp&limit=1000")).json()
    kept = {(one["caller"].partition(" ")[0], one["target"], one["outcome"]) for one in entries}
    assert ("the-viewer", "list_available_engines", "done") in kept
    assert ("the-viewer", "switch_database_engine", "refused") in kept
    assert ("the-operator", "switch_database_engine", "done") in kept

    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "proxy", "mcp"],
        env={**os.environ, "TURNOUT_URL": turnout.control_url, "TURNOUT_TOKEN": TOKENS["viewer"]},
    )
    async with Client(server) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == INPUTS.keys()
        assert len((await call(client, "get_switch_history"))["switches"]) == 3
        assert "needs the role operator" in await refused(client, "switch_database_engine", target_engine=target)
        assert len((await client.get_prompt("plan_maintenance_switch", {"target_engine": target})).messages) == 1
    await session.close()


async def test_a_call_that_ends_by_a_mistake_is_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    door = ControlService(ScriptedSupervisor())
    who = Caller(name="agent", role=Role.OPERATOR)

    async def mistaken(*_: object) -> msgspec.Struct:
        raise ZeroDivisionError

    monkeypatch.setitem(TOOLS, "list_available_engines", TOOLS["list_available_engines"]._replace(run=mistaken))
    with pytest.raises(ZeroDivisionError):
        await server.call(door, who, "list_available_engines", {"service": None})
    [entry] = door.audit.entries(1)
    assert (entry.action, entry.target, entry.outcome) == ("mcp", "list_available_engines", "failed")
    assert entry.detail == {"arguments": {"service": None}, "why": "ZeroDivisionError"}


async def test_who_comes_after_a_start_that_failed_has_it_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [OSError("no room for it"), None]

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        yield

    def build(door: ControlService) -> Server[Any]:
        made = build_server(door)
        made.lifespan = lifespan
        return made

    monkeypatch.setattr(server, "build_server", build)
    control = await serve_control(ControlService(ScriptedSupervisor()), config_on(free_port()))
    try:
        async with asyncio.timeout(20), httpx2.AsyncClient(trust_env=False) as http:
            url = f"http://{control.addresses[0]}/mcp"
            answer = await http.post(url, json={}, headers={"Accept": "application/json"})
            assert answer.status_code == 503, answer.text
            async with Client(streamable_http_client(url, http_client=http)) as client:
                assert {tool.name for tool in (await client.list_tools()).tools} == INPUTS.keys()
    finally:
        await control.close()
    assert outcomes == []
