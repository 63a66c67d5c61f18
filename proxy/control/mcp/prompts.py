"""What people may have an agent begin with: a task in words, with the facts of the moment in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import mcp_types as types

from proxy.control.mcp.common import as_json, the_service
from proxy.control.roles import Caller
from proxy.control.service import ControlService
from proxy.errors import NotFound


async def _plan(door: ControlService, who: Caller, arguments: Mapping[str, str]) -> str:
    service = the_service(door, who, arguments.get("service") or None)
    view = door.service(who, service)
    target = arguments.get("target_engine") or ""
    facts: dict[str, Any] = {"service": view}
    if target:
        facts["readiness"] = await door.ready(who, service, target)
    return (
        f"Plan the maintenance of engine {view.active} of service {service}: its sessions shall move to "
        f"{target or 'the engine that fits best'} with nobody noticing. Say which engine and strategy you would take and why, "
        "what has to be mended before (each failed or warning check with its remedy), the steps in order with the tool for "
        "each (validate_switch_readiness, then switch_database_engine with dry_run, then without), what to watch meanwhile, "
        f"and how to come back. Do not switch before a person has agreed. The facts now:\n\n{as_json(facts)}"
    )


async def _why(door: ControlService, who: Caller, arguments: Mapping[str, str]) -> str:
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
        f"whether anything should be done now. Use only these facts:\n\n{as_json(facts)}"
    )


class Prompt(NamedTuple):
    """One of them."""

    shown: types.Prompt
    text: Callable[[ControlService, Caller, Mapping[str, str]], Awaitable[str]]
    """Makes it. Raises ProxyError."""


def _described(name: str, title: str, description: str, **arguments: str) -> types.Prompt:
    wanted = [types.PromptArgument(name=argument, description=text) for argument, text in arguments.items()]
    return types.Prompt(name=name, title=title, description=description, arguments=wanted)


PROMPTS: Final[Mapping[str, Prompt]] = {
    "plan_maintenance_switch": Prompt(
        _described(
            "plan_maintenance_switch",
            "Plan a maintenance switch",
            "A plan to take the active engine out of service: what is ready, what is not, and the steps.",
            target_engine="Engine to go to; left out: the best one is chosen.",
            service="Which service, if there are several.",
        ),
        _plan,
    ),
    "why_did_it_switch": Prompt(
        _described(
            "why_did_it_switch",
            "Why did it switch?",
            "What made the last switch happen, or the one named, and how it went.",
            switch_id="Id of the switch; left out: the last one.",
        ),
        _why,
    ),
}
