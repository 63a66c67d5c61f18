"""Alerts, and who is told of them."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from litestar import delete, get, post
from litestar.params import JSONBody, QueryParameter

from proxy.control.alerts.model import AlertView, Delivery, ReceiverView, RuleView, Silence
from proxy.control.rest.bodies import SilenceRequest
from proxy.control.rest.common import Change, Door, ReceiverName, SilenceNumber, Who
from proxy.control.rest.problems import CHANGE, PROBLEMS
from proxy.control.views import DELIVERIES_MAX


@get("/v1/alerts", tags=["alerts"], responses=PROBLEMS)
async def alerts(door: Door, who: Who) -> list[AlertView]:
    """Alerts that are pending, fire, or were over within a day; the worst first."""
    return door.alerts_now(who)


@get("/v1/alerts/rules", tags=["alerts"], responses=PROBLEMS)
async def alert_rules(door: Door, who: Who) -> list[RuleView]:
    """Every rule that alerts come from, Turnout's own and those of the config."""
    return door.alert_rules(who)


@get("/v1/alerts/receivers", tags=["alerts"], responses=PROBLEMS)
async def receivers(door: Door, who: Who) -> list[ReceiverView]:
    """Who is told of alerts, and what became of that."""
    return door.receivers(who)


@post(
    "/v1/alerts/receivers/{receiver:str}/test",
    tags=["alerts"],
    status_code=200,
    responses=CHANGE,
    operation_class=Change,
)
async def test_receiver(door: Door, who: Who, receiver: ReceiverName) -> Delivery:
    """Send a test message, once. The answer says what became of it: `delivered` or `failed`. Needs the role operator."""
    return await door.test_receiver(who, receiver)


@get("/v1/alerts/deliveries", tags=["alerts"], responses=PROBLEMS)
async def deliveries(
    door: Door,
    who: Who,
    limit: Annotated[int, QueryParameter(ge=1, le=DELIVERIES_MAX, description="Most messages of the answer.")] = 50,
) -> list[Delivery]:
    """Messages about alerts, newest first, with what became of each."""
    return door.deliveries(who, limit)


@get("/v1/alerts/silences", tags=["alerts"], responses=PROBLEMS)
async def silences(door: Door, who: Who) -> list[Silence]:
    """What keeps messages back now."""
    return door.silences(who)


@post("/v1/alerts/silences", tags=["alerts"], status_code=201, responses=CHANGE, operation_class=Change)
async def silence(door: Door, who: Who, data: JSONBody[SilenceRequest]) -> Silence:
    """Keep messages about these alerts back for a time; what still fires then is told. Needs the role operator."""
    return door.silence(who, **msgspec.structs.asdict(data))


@delete("/v1/alerts/silences/{number:int}", tags=["alerts"], status_code=200, responses=CHANGE, operation_class=Change)
async def unsilence(door: Door, who: Who, number: SilenceNumber) -> Silence:
    """End a silence before its time. Needs the role operator."""
    return door.unsilence(who, number)


HANDLERS: Final = [alerts, alert_rules, receivers, test_receiver, deliveries, silences, silence, unsilence]
