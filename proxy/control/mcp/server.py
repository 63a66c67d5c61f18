"""What answers at `/mcp`: tools, resources and prompts as the SDK wants them, and what an agent is told when it goes wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Final, TypeVar

import mcp_types as types
import msgspec
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from proxy import VERSION
from proxy.control.mcp import resources
from proxy.control.mcp.common import as_json
from proxy.control.mcp.prompts import PROMPTS
from proxy.control.mcp.schemas import schema_of
from proxy.control.mcp.tools import TOOLS, Tool
from proxy.control.roles import Caller
from proxy.control.service import ControlService
from proxy.control.views import SwitchRefused
from proxy.errors import ControlError, ProxyError

INSTRUCTIONS: Final = """\
Turnout is a database proxy: a service is what clients reach, its engines are the database servers, one of them active. A
switch moves every running session to another engine without dropping a connection. Before a switch, call
validate_switch_readiness (or switch_database_engine with dry_run) and mend what fails; `force` needs the role admin and
never overrides what keeps data safe. Nothing is asked twice: a refused call changed nothing and says what to do."""

_T = TypeVar("_T")


def named_server(**answers: Any) -> Server[Any]:
    """A server that shows itself as Turnout's; `answers` are the SDK's `on_…`."""
    return Server("turnout", version=VERSION, title="Turnout", instructions=INSTRUCTIONS, **answers)


def describe_tools() -> list[types.Tool]:
    """The tools as clients see them."""
    return [
        types.Tool(
            name=name,
            title=tool.title,
            description=tool.description,
            input_schema=schema_of(tool.takes),
            output_schema=schema_of(tool.gives),
            annotations=types.ToolAnnotations(
                title=tool.title,
                read_only_hint=tool.is_read_only,
                destructive_hint=tool.is_destructive,
                idempotent_hint=tool.is_idempotent,
                open_world_hint=False,
            ),
        )
        for name, tool in TOOLS.items()
    ]


def build_server(door: ControlService) -> Server[Any]:
    """What answers at `/mcp`. The gate has put the caller into the scope's state."""
    described = describe_tools()

    async def list_tools(_ctx: ServerRequestContext[Any], _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=described)

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        return await call(door, _caller(ctx), params.name, params.arguments or {})

    async def list_resources(ctx: ServerRequestContext[Any], _params: Any) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=resources.listed(door, _caller(ctx)))

    async def list_templates(_ctx: ServerRequestContext[Any], _params: Any) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resource_templates=[resources.REPORT_TEMPLATE])

    async def read_resource(
        ctx: ServerRequestContext[Any], params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        text = as_json(await _or_error(resources.read(door, _caller(ctx), params.uri)))
        contents = types.TextResourceContents(uri=params.uri, mime_type=resources.MIME_TYPE, text=text)
        return types.ReadResourceResult(contents=[contents])

    async def list_prompts(_ctx: ServerRequestContext[Any], _params: Any) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=[one.shown for one in PROMPTS.values()])

    async def get_prompt(ctx: ServerRequestContext[Any], params: types.GetPromptRequestParams) -> types.GetPromptResult:
        prompt = PROMPTS.get(params.name)
        if prompt is None:
            raise MCPError(types.INVALID_PARAMS, f"there is no prompt {params.name[:100]!r}")
        text = await _or_error(prompt.text(door, _caller(ctx), params.arguments or {}))
        message = types.PromptMessage(role="user", content=types.TextContent(text=text))
        return types.GetPromptResult(description=prompt.shown.description, messages=[message])

    return named_server(
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
    )


def _caller(ctx: ServerRequestContext[Any]) -> Caller:
    assert ctx.request is not None, "it came over HTTP"
    caller = ctx.request.scope["state"]["caller"]
    assert isinstance(caller, Caller), "the gate lets nobody pass without"
    return caller


async def _or_error(work: Awaitable[_T]) -> _T:
    """What goes wrong with a resource or a prompt is an error of the protocol. Raises MCPError."""
    try:
        return await work
    except ProxyError as error:
        code = types.INVALID_PARAMS if isinstance(error, ControlError) else types.INTERNAL_ERROR
        raise MCPError(code, f"{error.text}; {error.hint}" if error.hint else error.text) from None


async def call(door: ControlService, who: Caller, name: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
    """Run a tool. What goes wrong is a result that says so, which an agent can act upon."""
    tool = TOOLS.get(name)
    if tool is None:
        raise MCPError(types.INVALID_PARAMS, f"there is no tool {name[:100]!r}")
    try:
        with door.recorded_call(who, name, arguments):
            given = await tool.run(door, who, _wanted(tool, arguments))
    except SwitchRefused as error:
        failed = [f"- {one.name}: {one.found}; {one.remedy}" for one in error.checks if one.verdict == "fail"]
        return _failed("\n".join([error.text, *failed]), error.hint)
    except ProxyError as error:
        return _failed(error.text, error.hint)
    content = msgspec.to_builtins(given)
    return types.CallToolResult(content=[types.TextContent(text=as_json(given))], structured_content=content)


def _wanted(tool: Tool, arguments: Mapping[str, Any]) -> msgspec.Struct:
    """Raises ControlError: they are not what the tool takes."""
    try:
        return msgspec.convert(arguments, tool.takes)
    except msgspec.ValidationError as error:
        raise ControlError(f"the input is wrong: {error}") from None


def _failed(text: str, hint: str) -> types.CallToolResult:
    said = f"{text}\nWhat to do: {hint}" if hint else text
    return types.CallToolResult(content=[types.TextContent(text=said)], is_error=True)
