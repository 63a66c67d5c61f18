"""Policies: when Turnout switches by itself."""

from __future__ import annotations

from typing import Final

from litestar import Response, delete, get, post, put
from litestar.params import JSONBody

from proxy.control.rest.bodies import PolicyRequest
from proxy.control.rest.common import Change, DecisionLimit, Door, OneService, PolicyName, Who
from proxy.control.rest.problems import CHANGE, OR_UNKNOWN, PROBLEMS
from proxy.policy.model import Decision, Policy, PolicyView
from proxy.switch.plan import SwitchRecord


@get("/v1/policies", tags=["policies"], responses=OR_UNKNOWN)
async def policies(door: Door, who: Who, one_service: OneService = None) -> list[PolicyView]:
    """Every policy, and what was decided last."""
    return door.policies(who, one_service)


@get("/v1/policies/{policy:str}", tags=["policies"], responses=OR_UNKNOWN)
async def policy_detail(door: Door, who: Who, policy: PolicyName) -> PolicyView:
    """One policy."""
    return door.policy(who, policy)


@put("/v1/policies/{policy:str}", tags=["policies"], responses=CHANGE, operation_class=Change)
async def set_policy(door: Door, who: Who, policy: PolicyName, data: JSONBody[PolicyRequest]) -> PolicyView:
    """Set a policy, or replace it as a whole; kept over restarts. Needs the role operator."""
    return door.set_policy(who, data.service, policy, data)


@delete("/v1/policies/{policy:str}", tags=["policies"], status_code=200, responses=CHANGE, operation_class=Change)
async def remove_policy(door: Door, who: Who, policy: PolicyName) -> Policy:
    """Forget a policy that was set by command; one of the config file is changed there. Needs the role operator."""
    return door.remove_policy(who, policy)


@post("/v1/policies/{policy:str}/enable", tags=["policies"], status_code=200, responses=CHANGE, operation_class=Change)
async def enable_policy(door: Door, who: Who, policy: PolicyName) -> PolicyView:
    """Let a policy fire again, also one of the config file. Needs the role operator."""
    return door.enable_policy(who, policy, is_enabled=True)


@post("/v1/policies/{policy:str}/disable", tags=["policies"], status_code=200, responses=CHANGE, operation_class=Change)
async def disable_policy(door: Door, who: Who, policy: PolicyName) -> PolicyView:
    """Keep a policy from firing, also one of the config file, until it is enabled again. Needs the role operator."""
    return door.enable_policy(who, policy, is_enabled=False)


@post("/v1/policies/{policy:str}/run", tags=["policies"], status_code=202, responses=CHANGE, operation_class=Change)
async def run_policy(door: Door, who: Who, policy: PolicyName) -> Response[SwitchRecord]:
    """Let a policy fire now, whatever its trigger. The answer comes once the checks of its switch have passed. Needs the role
    operator."""
    record = await door.run_policy(who, policy)
    return Response(record, status_code=202, headers={"Location": f"/v1/switches/{record.id}"})


@get("/v1/policies/{policy:str}/history", tags=["policies"], responses=OR_UNKNOWN)
async def history_of_policy(door: Door, who: Who, policy: PolicyName, limit: DecisionLimit = 50) -> list[Decision]:
    """What was decided of one policy and why, newest first; only what changed."""
    return door.policy_history(who, limit, policy)


@get("/v1/policy-history", tags=["policies"], responses=PROBLEMS)
async def policy_history(door: Door, who: Who, limit: DecisionLimit = 50) -> list[Decision]:
    """What was decided of all policies and why, newest first; only what changed."""
    return door.policy_history(who, limit)


HANDLERS: Final = [
    policies,
    policy_detail,
    set_policy,
    remove_policy,
    enable_policy,
    disable_policy,
    run_policy,
    history_of_policy,
    policy_history,
]
