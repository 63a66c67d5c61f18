"""What the tools take and give, and how that is told to agents: JSON Schema made of the types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from proxy.config import PolicyConfig, StrategyName
from proxy.control.views import EngineRow, Readiness
from proxy.engines.figures import EngineFigures
from proxy.switch.agenda import AHEAD_S_MAX
from proxy.switch.plan import DRAIN_TIMEOUT_S_MAX, SwitchRecord

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


def schema_of(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """JSON Schema with an object at the root, as MCP wants it."""
    (root,), parts = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    top = dict(parts.pop(root["$ref"].rpartition("/")[2]))
    top.pop("title", None)
    return top | ({"$defs": parts} if parts else {})
