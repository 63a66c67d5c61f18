"""MCP: the door's verbs as tools for AI agents, with resources to read and prompts to begin with.

Served by the official SDK over streamable HTTP at `/mcp` (`mcp_mount`), without sessions: each request shows who it is, and
any of them can be answered after a restart. Names and inputs of the eight tools are a promise (design, section 7). Every
call leaves an entry in the audit log, the looking ones too: an agent's reasons are worth more when one sees what it looked at.

Importing this module takes the SDK with it, which is slow; only `mcp_mount` and the command do, when they are used.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import mcp_types as types
import msgspec
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from msgspec import Meta

from proxy import VERSION
from proxy.config import PolicyConfig, StrategyName
from proxy.control.roles import Caller
from proxy.control.service import ControlService
from proxy.control.views import SWITCHES_MAX, EngineRow, Readiness, SwitchRefused
from proxy.engines.figures import EngineFigures
from proxy.errors import ControlError, NotFound, ProxyError
from proxy.policy.model import PolicyView
from proxy.switch.agenda import AHEAD_S_MAX
from proxy.switch.plan import DRAIN_TIMEOUT_S_MAX, SwitchPlan, SwitchRecord
from proxy.switch.state import ENDED

SWITCH_WAIT_S: Final = 30.0
"""How long a call that began a switch waits for its end before it answers how far it has come."""

POLL_S: Final = 0.05

REPORTS_LISTED: Final = 20

INSTRUCTIONS: Final = """\
Turnout is a database proxy: a service is what clients reach, its engines are the database servers, one of them active. A
switch moves every running session to another engine without dropping a connection. Before a switch, call
validate_switch_readiness (or switch_database_engine with dry_run) and mend what fails; `force` needs the role admin and
never overrides what keeps data safe. Nothing is asked twice: a refused call changed nothing and says what to do."""

# --- what goes in and comes out -----------------------------------------------------------------------------------

ServiceName = (
    Annotated[str, Meta(max_length=63, description="Which service; may be left out if there is only one.")] | None
)
Strategy = Annotated[
    StrategyName,
    Meta(
        description="`graceful` waits for open transactions, `immediate` ends them, `rolling` moves sessions in batches, "
        "`canary` moves a share first."
    ),
]
DrainTimeout = (
    Annotated[
        float,
        Meta(
            ge=0,
            le=DRAIN_TIMEOUT_S_MAX,
            description="How long open transactions may go on, in seconds, 0 to 3600; left out: the service's own setting.",
        ),
    ]
    | None
)
DryRun = Annotated[bool, Meta(description="Only run the checks, and answer the readiness report.")]
TargetEngine = Annotated[str, Meta(min_length=1, max_length=63, description="Name of the engine to go to.")]


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Input of a tool."""


class SwitchWanted(Wanted, frozen=True, kw_only=True):
    target_engine: TargetEngine
    strategy: Strategy = "graceful"
    force: Annotated[
        bool, Meta(description="Go on although a check failed, unless the check keeps data safe. Needs the role admin.")
    ] = False
    drain_timeout_seconds: DrainTimeout = None
    dry_run: DryRun = False
    in_seconds: (
        Annotated[
            float,
            Meta(
                ge=0,
                le=AHEAD_S_MAX,
                description="Begin so long from now; it is pending until then and can be cancelled.",
            ),
        ]
        | None
    ) = None
    when_busy: (
        Annotated[
            Literal["refuse", "queue"],
            Meta(description="While another switch of the service runs; left out: the service's own setting."),
        ]
        | None
    ) = None
    service: ServiceName = None
    reason: Annotated[str, Meta(max_length=500, description="Kept in the record of the switch.")] = ""


class ServiceWanted(Wanted, frozen=True, kw_only=True):
    service: ServiceName = None


class HistoryWanted(Wanted, frozen=True, kw_only=True):
    service: ServiceName = None
    limit: Annotated[int, Meta(ge=1, le=200, description="Most switches of the answer.")] = 20


class CancelWanted(Wanted, frozen=True, kw_only=True):
    switch_id: Annotated[
        str, Meta(min_length=1, max_length=100, description="Id of the switch, as its start or the history has it.")
    ]


class ReadyWanted(Wanted, frozen=True, kw_only=True):
    target_engine: TargetEngine
    strategy: Strategy = "graceful"
    drain_timeout_seconds: DrainTimeout = None
    service: ServiceName = None


class MetricsWanted(Wanted, frozen=True, kw_only=True):
    engine: Annotated[str, Meta(max_length=63, description="Only this engine; left out: all of them.")] | None = None
    service: ServiceName = None


class PolicyWanted(PolicyConfig, frozen=True, kw_only=True):
    """A policy as it shall be from now on; one of this name is replaced as a whole."""

    name: Annotated[str, Meta(min_length=1, max_length=63, description="Its name; no two services have the same.")]
    service: ServiceName = None


class TriggerWanted(Wanted, frozen=True, kw_only=True):
    policy: Annotated[str, Meta(min_length=1, max_length=63, description="Name of the policy that shall fire now.")]
    dry_run: DryRun = False


class SwitchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: the readiness report of a dry run, or the switch."""

    outcome: Literal["dry_run", "pending", "under_way", "completed", "aborted", "rolled_back", "failed"]
    text: str
    """The same in one line."""
    readiness: Readiness | None = None
    switch: SwitchRecord | None = None


class Engines(msgspec.Struct, frozen=True, kw_only=True):
    """Every engine as the last probe saw it."""

    engines: list[EngineRow]


class EngineMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One engine's figures over the last ten seconds."""

    service: str
    engine: str
    is_active: bool
    figures: EngineFigures | None
    """None: not looked at yet."""


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of engines; null: not known."""

    engines: list[EngineMetrics]


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Switches, newest first, running ones among them."""

    switches: list[SwitchRecord]


# --- the tools ----------------------------------------------------------------------------------------------------


async def _switch(door: ControlService, who: Caller, wanted: SwitchWanted) -> SwitchAnswer:
    plan = SwitchPlan(
        service=_service(door, who, wanted.service),
        target=wanted.target_engine,
        strategy=wanted.strategy,
        drain_timeout_s=wanted.drain_timeout_seconds,
        force=wanted.force,
        at=None if wanted.in_seconds is None else time.time() + wanted.in_seconds,
        when_busy=wanted.when_busy,
        requested_by=who.name,
        reason=wanted.reason,
    )
    if wanted.dry_run:
        return await _rehearsed(door, who, plan)
    return await _as_answer(door, who, await door.switch(who, plan))


async def _rehearsed(door: ControlService, who: Caller, plan: SwitchPlan) -> SwitchAnswer:
    readiness = await door.rehearse(who, plan)
    text = "ready: the switch may begin" if readiness.is_ready else "not ready: the switch would be refused"
    return SwitchAnswer(outcome="dry_run", text=text, readiness=readiness)


async def _as_answer(door: ControlService, who: Caller, record: SwitchRecord) -> SwitchAnswer:
    """The switch once it has ended, or as it is after `SWITCH_WAIT_S`."""
    if record.is_waiting:
        text = f"switch {record.id} is pending; cancel_pending_switch drops it"
        return SwitchAnswer(outcome="pending", text=text, switch=record)
    deadline = asyncio.get_running_loop().time() + SWITCH_WAIT_S
    while record.phase not in ENDED and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(POLL_S)
        record = door.switch_record(who, record.id)
    if record.phase not in ENDED:
        text = f"switch {record.id} is {record.phase.value}; look again with get_switch_history"
        return SwitchAnswer(outcome="under_way", text=text, switch=record)
    outcome: Any = record.phase.value
    ending = "; ".join(filter(None, (record.error, record.remedy))) or f"{record.target} serves {record.service}"
    text = f"switch {record.id} {outcome.replace('_', ' ')}: {ending}"
    return SwitchAnswer(outcome=outcome, text=text, switch=record)


async def _engines(door: ControlService, who: Caller, wanted: ServiceWanted) -> Engines:
    return Engines(engines=door.engines(who, wanted.service))


async def _metrics(door: ControlService, who: Caller, wanted: MetricsWanted) -> Metrics:
    rows = [row for row in door.engines(who, wanted.service) if wanted.engine in (None, row.engine.name)]
    if not rows:
        raise NotFound(f"there is no engine {wanted.engine!r}", hint="list_available_engines names them")
    return Metrics(
        engines=[
            EngineMetrics(
                service=row.service,
                engine=row.engine.name,
                is_active=row.engine.is_active,
                figures=row.engine.figures,
            )
            for row in rows
        ]
    )


async def _configure(door: ControlService, who: Caller, wanted: PolicyWanted) -> PolicyView:
    return door.set_policy(who, _service(door, who, wanted.service), wanted.name, wanted)


async def _trigger(door: ControlService, who: Caller, wanted: TriggerWanted) -> SwitchAnswer:
    if wanted.dry_run:
        policy = door.policy(who, wanted.policy).policy
        plan = SwitchPlan(service=policy.service, target=policy.target_engine, strategy=policy.strategy)
        return await _rehearsed(door, who, plan)
    return await _as_answer(door, who, await door.run_policy(who, wanted.policy))


async def _history(door: ControlService, who: Caller, wanted: HistoryWanted) -> History:
    found = door.switches(who, SWITCHES_MAX if wanted.service is not None else wanted.limit)
    fitting = [one for one in found if wanted.service in (None, one.service)]
    return History(switches=fitting[: wanted.limit])


async def _cancel(door: ControlService, who: Caller, wanted: CancelWanted) -> SwitchAnswer:
    return await _as_answer(door, who, await door.cancel(who, wanted.switch_id))


async def _ready(door: ControlService, who: Caller, wanted: ReadyWanted) -> Readiness:
    plan = SwitchPlan(
        service=_service(door, who, wanted.service),
        target=wanted.target_engine,
        strategy=wanted.strategy,
        drain_timeout_s=wanted.drain_timeout_seconds,
    )
    return await door.rehearse(who, plan)


def _service(door: ControlService, who: Caller, named: str | None) -> str:
    """The one that is meant: the one named, or the only one. Raises NotFound."""
    names = [view.name for view in door.services(who)]
    if named is not None or len(names) == 1:
        return named if named is not None else names[0]
    raise NotFound("there are several services", hint=f"say which in `service`: {', '.join(names)}")


class Tool(NamedTuple):
    """One of the eight."""

    title: str
    description: str
    takes: type[msgspec.Struct]
    gives: type[msgspec.Struct]
    run: Callable[[ControlService, Caller, Any], Awaitable[msgspec.Struct]]
    is_read_only: bool
    is_destructive: bool = False
    """It may end sessions or transactions."""
    is_idempotent: bool = True
    """The same call again changes nothing more."""


TOOLS: Final[Mapping[str, Tool]] = {
    "switch_database_engine": Tool(
        "Switch to another engine",
        "Move every running session of a service to another engine. With dry_run the readiness report comes back and "
        "nothing is changed. Without it the checks run first; if one fails, the switch is refused and says why. Waits up to "
        "30 seconds for the end. Needs the role operator; force needs admin.",
        SwitchWanted,
        SwitchAnswer,
        _switch,
        is_read_only=False,
        is_destructive=True,
        is_idempotent=False,
    ),
    "list_available_engines": Tool(
        "List engines",
        "Every engine of every service: address, whether it serves, version, role, replication lag, as the last probe saw "
        "it.",
        ServiceWanted,
        Engines,
        _engines,
        is_read_only=True,
    ),
    "get_engine_metrics": Tool(
        "Figures of engines",
        "response_time_ms, cpu_usage_percent, memory_usage_percent, active_connections, query_rate_per_second, "
        "error_rate_percent and availability_percent of each engine, over the last ten seconds; null: not known.",
        MetricsWanted,
        Metrics,
        _metrics,
        is_read_only=True,
    ),
    "configure_switch_policy": Tool(
        "Set a policy",
        "Set a policy that switches by itself, or replace the one of this name as a whole. trigger says when: "
        "performance_degradation (response_time_threshold_ms over window_duration seconds), load_threshold (cpu_threshold, "
        "memory_threshold in percent, connection_threshold), error_rate (error_rate_threshold in percent), failure, manual, "
        "scheduled (cron_expression, time_zone). It may fire at once if it is enabled and its figures are above their "
        "thresholds. Needs the role operator.",
        PolicyWanted,
        PolicyView,
        _configure,
        is_read_only=False,
    ),
    "trigger_manual_switch": Tool(
        "Let a policy fire now",
        "Do the switch of a policy now, whatever its trigger and its brakes. With dry_run the readiness report comes back "
        "and nothing is changed. Waits up to 30 seconds for the end. Needs the role operator.",
        TriggerWanted,
        SwitchAnswer,
        _trigger,
        is_read_only=False,
        is_destructive=True,
        is_idempotent=False,
    ),
    "get_switch_history": Tool(
        "History of switches",
        "The newest switches with phase, times, figures and why one did not complete; those under way or pending too.",
        HistoryWanted,
        History,
        _history,
        is_read_only=True,
    ),
    "cancel_pending_switch": Tool(
        "Cancel a switch",
        "Cancel a switch that waits for its time or has not begun to promote: the source is writable again and every "
        "session goes on there. Needs the role operator.",
        CancelWanted,
        SwitchAnswer,
        _cancel,
        is_read_only=False,
    ),
    "validate_switch_readiness": Tool(
        "Is a switch possible?",
        "Run every check of a switch and change nothing. Each check: pass, warn or fail, what was found, and what to do "
        "about it.",
        ReadyWanted,
        Readiness,
        _ready,
        is_read_only=True,
    ),
}


def _schema(of: type[msgspec.Struct]) -> dict[str, Any]:
    """JSON Schema with an object at the root, as MCP wants it."""
    (root,), parts = msgspec.json.schema_components([of], ref_template="#/$defs/{name}")
    top = dict(parts.pop(root["$ref"].rpartition("/")[2]))
    top.pop("title", None)
    return top | ({"$defs": parts} if parts else {})


def describe_tools() -> list[types.Tool]:
    """The tools as clients see them."""
    return [
        types.Tool(
            name=name,
            title=tool.title,
            description=tool.description,
            input_schema=_schema(tool.takes),
            output_schema=_schema(tool.gives),
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


# --- resources ----------------------------------------------------------------------------------------------------

REPORT_URI: Final = "turnout://reports/"

_RESOURCES: Final[Mapping[str, tuple[str, str]]] = {
    "turnout://status": ("Status", "Services with active engine and running switch, workers, totals."),
    "turnout://history": ("History", "The newest 50 switches."),
    "turnout://datachecks": (
        "Data checks",
        "Comparisons of the rows of two engines, newest first: what differs, and where.",
    ),
    "turnout://config": ("Config", "The config in force, each value with its origin; secrets are shown as ***."),
}


async def _read(door: ControlService, who: Caller, uri: str) -> Any:
    """What a resource holds, as JSON values. Raises NotFound."""
    match uri:
        case "turnout://status":
            return await door.status(who)
        case "turnout://history":
            return door.switches(who, 50)
        case "turnout://datachecks":
            return door.data_checks(who)
        case "turnout://config":
            return door.config(who)
        case _ if uri.startswith(REPORT_URI):
            return door.report(who, uri.removeprefix(REPORT_URI))
        case _:
            raise NotFound(
                f"there is no resource {uri[:200]}", hint=f"there are: {', '.join(_RESOURCES)}, {REPORT_URI}ID"
            )


# --- prompts ------------------------------------------------------------------------------------------------------

PROMPTS: Final[Mapping[str, types.Prompt]] = {
    "plan_maintenance_switch": types.Prompt(
        name="plan_maintenance_switch",
        title="Plan a maintenance switch",
        description="A plan to take the active engine out of service: what is ready, what is not, and the steps.",
        arguments=[
            types.PromptArgument(
                name="target_engine", description="Engine to go to; left out: the best one is chosen."
            ),
            types.PromptArgument(name="service", description="Which service, if there are several."),
        ],
    ),
    "why_did_it_switch": types.Prompt(
        name="why_did_it_switch",
        title="Why did it switch?",
        description="What made the last switch happen, or the one named, and how it went.",
        arguments=[types.PromptArgument(name="switch_id", description="Id of the switch; left out: the last one.")],
    ),
}


async def _prompt(door: ControlService, who: Caller, name: str, arguments: Mapping[str, str]) -> str:
    """Text of a prompt, with the facts in it. Raises ProxyError."""
    if name == "why_did_it_switch":
        switch_id = arguments.get("switch_id")
        if not switch_id:
            newest = door.switches(who, 1)
            if not newest:
                raise NotFound("there was no switch yet")
            switch_id = newest[0].id
        record = door.switch_record(who, switch_id)
        facts: dict[str, Any] = {"switch": record, "before_and_after": door.switches(who, 5)}
        report = door.report_of(who, record)
        if report is not None:
            facts["report"] = report
        return (
            f"Explain to an operator why service {record.service} was switched from {record.source} to {record.target} "
            "(who or what asked for it, and on which figures), how it went (phases, waits, clients that saw an error) and "
            f"whether anything should be done now. Use only these facts:\n\n{_json(facts)}"
        )
    service = _service(door, who, arguments.get("service") or None)
    view = door.service(who, service)
    target = arguments.get("target_engine") or ""
    facts = {"service": view}
    if target:
        facts["readiness"] = await door.ready(who, service, target)
    return (
        f"Plan the maintenance of engine {view.active} of service {service}: its sessions shall move to "
        f"{target or 'the engine that fits best'} with nobody noticing. Say which engine and strategy you would take and why, "
        "what has to be mended before (each failed or warning check with its remedy), the steps in order with the tool for "
        "each (validate_switch_readiness, then switch_database_engine with dry_run, then without), what to watch meanwhile, "
        f"and how to come back. Do not switch before a person has agreed. The facts now:\n\n{_json(facts)}"
    )


def _json(value: Any) -> str:
    return json.dumps(msgspec.to_builtins(value), indent=1, ensure_ascii=False)


# --- the server ---------------------------------------------------------------------------------------------------

_T = TypeVar("_T")


def named_server(**answers: Any) -> Server[Any]:
    """A server that shows itself as Turnout's; `answers` are the SDK's `on_…`."""
    return Server("turnout", version=VERSION, title="Turnout", instructions=INSTRUCTIONS, **answers)


def build_server(door: ControlService) -> Server[Any]:
    """What answers at `/mcp`. The gate has put the caller into the scope's state."""

    async def list_tools(_ctx: ServerRequestContext[Any], _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=describe_tools())

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        return await _call(door, _caller(ctx), params.name, params.arguments or {})

    async def list_resources(ctx: ServerRequestContext[Any], _params: Any) -> types.ListResourcesResult:
        found = [
            types.Resource(
                uri=uri, name=uri.rpartition("/")[2], title=title, description=text, mime_type="application/json"
            )
            for uri, (title, text) in _RESOURCES.items()
        ]
        for record in door.switches(_caller(ctx), REPORTS_LISTED):
            if record.phase in ENDED:
                what = f"{record.service}: {record.source} to {record.target}, {record.phase.value}"
                uri = REPORT_URI + record.id
                found.append(types.Resource(uri=uri, name=record.id, title=what, mime_type="application/json"))
        return types.ListResourcesResult(resources=found)

    async def list_templates(_ctx: ServerRequestContext[Any], _params: Any) -> types.ListResourceTemplatesResult:
        report = types.ResourceTemplate(
            uri_template=REPORT_URI + "{switch_id}",
            name="report",
            title="Report of a switch",
            description="The evidence report of a switch that has ended.",
            mime_type="application/json",
        )
        return types.ListResourceTemplatesResult(resource_templates=[report])

    async def read_resource(
        ctx: ServerRequestContext[Any], params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        text = _json(await _or_error(_read(door, _caller(ctx), params.uri)))
        contents = types.TextResourceContents(uri=params.uri, mime_type="application/json", text=text)
        return types.ReadResourceResult(contents=[contents])

    async def list_prompts(_ctx: ServerRequestContext[Any], _params: Any) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=list(PROMPTS.values()))

    async def get_prompt(ctx: ServerRequestContext[Any], params: types.GetPromptRequestParams) -> types.GetPromptResult:
        if params.name not in PROMPTS:
            raise MCPError(types.INVALID_PARAMS, f"there is no prompt {params.name[:100]!r}")
        text = await _or_error(_prompt(door, _caller(ctx), params.name, params.arguments or {}))
        message = types.PromptMessage(role="user", content=types.TextContent(text=text))
        return types.GetPromptResult(description=PROMPTS[params.name].description, messages=[message])

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


async def _call(door: ControlService, who: Caller, name: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
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
    return types.CallToolResult(content=[types.TextContent(text=_json(given))], structured_content=content)


def _wanted(tool: Tool, arguments: Mapping[str, Any]) -> msgspec.Struct:
    """Raises ControlError: they are not what the tool takes."""
    try:
        return msgspec.convert(arguments, tool.takes)
    except msgspec.ValidationError as error:
        raise ControlError(f"the input is wrong: {error}") from None


def _failed(text: str, hint: str) -> types.CallToolResult:
    said = f"{text}\nWhat to do: {hint}" if hint else text
    return types.CallToolResult(content=[types.TextContent(text=said)], is_error=True)
