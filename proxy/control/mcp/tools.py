"""The eight tools: what each does through the door, and what agents are told of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from proxy.control.mcp.common import the_service
from proxy.control.mcp.schemas import (
    CancelWanted,
    EngineMetrics,
    Engines,
    History,
    HistoryWanted,
    Metrics,
    MetricsWanted,
    PolicyWanted,
    ReadyWanted,
    ServiceWanted,
    SwitchAnswer,
    SwitchWanted,
    TriggerWanted,
)
from proxy.control.roles import Caller
from proxy.control.service import ControlService
from proxy.control.views import SWITCHES_MAX, Readiness
from proxy.errors import NotFound
from proxy.policy.model import PolicyView
from proxy.switch.plan import SwitchPlan, SwitchRecord
from proxy.switch.state import ENDED

SWITCH_WAIT_S: Final = 30.0
"""How long a call that began a switch waits for its end before it answers how far it has come."""

POLL_S: Final = 0.05


async def _switch(door: ControlService, who: Caller, wanted: SwitchWanted) -> SwitchAnswer:
    plan = SwitchPlan(
        service=the_service(door, who, wanted.service),
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
    return door.set_policy(who, the_service(door, who, wanted.service), wanted.name, wanted)


async def _trigger(door: ControlService, who: Caller, wanted: TriggerWanted) -> SwitchAnswer:
    if wanted.dry_run:
        policy = door.policy(who, wanted.policy).policy
        plan = SwitchPlan(service=policy.service, target=policy.target_engine, strategy=policy.strategy)
        return await _rehearsed(door, who, plan)
    return await _as_answer(door, who, await door.run_policy(who, wanted.policy))


async def _history(door: ControlService, who: Caller, wanted: HistoryWanted) -> History:
    if wanted.service is not None:
        door.service(who, wanted.service)
    found = door.switches(who, SWITCHES_MAX if wanted.service is not None else wanted.limit)
    fitting = [one for one in found if wanted.service in (None, one.service)]
    return History(switches=fitting[: wanted.limit])


async def _cancel(door: ControlService, who: Caller, wanted: CancelWanted) -> SwitchAnswer:
    return await _as_answer(door, who, await door.cancel(who, wanted.switch_id))


async def _ready(door: ControlService, who: Caller, wanted: ReadyWanted) -> Readiness:
    plan = SwitchPlan(
        service=the_service(door, who, wanted.service),
        target=wanted.target_engine,
        strategy=wanted.strategy,
        drain_timeout_s=wanted.drain_timeout_seconds,
    )
    return await door.rehearse(who, plan)


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
