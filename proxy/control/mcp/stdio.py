"""`turnout mcp`: MCP over standard input and output, for programs that start their servers themselves.

It has no tools of its own. What is asked is asked of the running Turnout's `/mcp`, with this command's token or certificate;
so tools, roles and audit log are the same, whichever way an agent comes.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

import httpx2
import mcp_types as types
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.stdio import stdio_server

from proxy.control.mcp.server import named_server
from proxy.control.mcp.tools import SWITCH_WAIT_S

TIMEOUT_S: Final = SWITCH_WAIT_S + 30.0
"""Of one call; a switch is waited for."""


async def serve_stdio(url: str, token: str | None, tls: ssl.SSLContext | None) -> None:
    """Answer until standard input ends."""
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    verify: Any = tls if tls is not None else True
    async with httpx2.AsyncClient(headers=headers, verify=verify, timeout=TIMEOUT_S, trust_env=False) as http:
        async with Client(streamable_http_client(f"{url.rstrip('/')}/mcp", http_client=http), cache=None) as there:
            server = _bridge(there)
            async with stdio_server() as (read, write):
                await server.run(read, write, server.create_initialization_options())


def _bridge(there: Client) -> Server[Any]:
    async def list_tools(_ctx: ServerRequestContext[Any], _params: Any) -> types.ListToolsResult:
        return await there.list_tools()

    async def call_tool(_ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        return await there.call_tool(params.name, params.arguments)

    async def list_resources(_ctx: ServerRequestContext[Any], _params: Any) -> types.ListResourcesResult:
        return await there.list_resources()

    async def list_templates(_ctx: ServerRequestContext[Any], _params: Any) -> types.ListResourceTemplatesResult:
        return await there.list_resource_templates()

    async def read_resource(
        _ctx: ServerRequestContext[Any], params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        return await there.read_resource(params.uri)

    async def list_prompts(_ctx: ServerRequestContext[Any], _params: Any) -> types.ListPromptsResult:
        return await there.list_prompts()

    async def get_prompt(
        _ctx: ServerRequestContext[Any], params: types.GetPromptRequestParams
    ) -> types.GetPromptResult:
        return await there.get_prompt(params.name, params.arguments)

    return named_server(
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
    )
