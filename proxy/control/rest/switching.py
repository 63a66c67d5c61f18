"""Switching: plans, records, reports, and failovers."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody, QueryParameter

from proxy.control.rest.bodies import AutomationRequest, FailoverOrder, SwitchDetail, SwitchRequest
from proxy.control.rest.common import Change, Door, EngineName, Offset, ServiceName, SwitchId, Who, page_of
from proxy.control.rest.problems import CHANGE, OR_UNKNOWN, PROBLEMS
from proxy.control.views import SWITCHES_MAX, Readiness
from proxy.switch.agenda import begins_at
from proxy.switch.plan import SwitchPlan, SwitchRecord
from proxy.switch.views import FailoverView


@get("/v1/services/{service:str}/ready/{target:str}", tags=["switching"], responses=OR_UNKNOWN | {409: CHANGE[409]})
async def ready(door: Door, who: Who, service: ServiceName, target: EngineName) -> Readiness:
    """The readiness report: every check of a switch to `target`, with what to do about those that fail."""
    return await door.ready(who, service, target)


@post(
    "/v1/services/{service:str}/switch",
    tags=["switching"],
    status_code=202,
    operation_class=Change,
    responses=CHANGE
    | {
        200: ResponseSpec(Readiness, generate_examples=False, description="A dry run's readiness report."),
        202: ResponseSpec(
            SwitchRecord, generate_examples=False, description="The checks passed and it runs, or it waits: `pending`."
        ),
    },
)
async def switch(door: Door, who: Who, service: ServiceName, data: JSONBody[SwitchRequest]) -> Response[Any]:
    """Begin a switch. The answer comes once its checks have passed; follow it with `GET /v1/switches/{id}`. Needs the role
    operator, and with `force` admin."""
    plan = SwitchPlan(
        service=service,
        target=data.target_engine,
        strategy=data.strategy,
        drain_timeout_s=data.drain_timeout_seconds,
        on_drain_expired=data.on_drain_expired,
        max_pending_transactions=data.max_pending_transactions,
        force_transaction_abort=data.force_transaction_abort,
        batch_size=data.batch_size,
        interval_s=data.interval_seconds,
        traffic_percentage=data.traffic_percentage,
        validation_duration_s=data.validation_duration_seconds,
        at=begins_at(data.at, data.in_seconds, time.time()),
        when_busy=data.when_busy,
        force=data.force,
        reason=data.reason,
        requested_by=who.name,
    )
    if data.dry_run:
        return Response(await door.rehearse(who, plan), status_code=200)
    record = await door.switch(who, plan)
    return Response(record, status_code=202, headers={"Location": f"/v1/switches/{record.id}"})


@get("/v1/switches", tags=["switching"], responses=PROBLEMS)
async def switches(
    request: Request[Any, Any, Any],
    door: Door,
    who: Who,
    limit: Annotated[int, QueryParameter(ge=1, le=SWITCHES_MAX, description="Most records of the answer.")] = 50,
    offset: Offset = 0,
) -> Response[list[SwitchRecord]]:
    """The newest switches, newest first. `Link` says where the next page is."""
    records = door.switches(who, limit, offset)
    more = {"offset": offset + limit} if len(records) == limit else {}
    return page_of(request, records, **more)


@get("/v1/switches/{switch_id:str}", tags=["switching"], responses=OR_UNKNOWN)
async def switch_detail(door: Door, who: Who, switch_id: SwitchId) -> SwitchDetail:
    """One switch: phase and times while it runs, its evidence report once it has ended."""
    record = door.switch_record(who, switch_id)
    return SwitchDetail(**msgspec.structs.asdict(record), report=door.report_of(who, record))


@get("/v1/switches/{switch_id:str}/report", tags=["switching"], responses=OR_UNKNOWN)
async def report(door: Door, who: Who, switch_id: SwitchId) -> dict[str, Any]:
    """The evidence report of a switch that has ended."""
    return door.report(who, switch_id)


@post(
    "/v1/switches/{switch_id:str}/cancel",
    tags=["switching"],
    status_code=202,
    responses=CHANGE,
    operation_class=Change,
)
async def cancel(door: Door, who: Who, switch_id: SwitchId) -> SwitchRecord:
    """Undo a switch that has not begun to promote, or drop one that waits. The answer comes once the undoing has begun. Needs
    the role operator."""
    return await door.cancel(who, switch_id)


@post(
    "/v1/services/{service:str}/failover",
    tags=["switching"],
    status_code=200,
    responses=CHANGE,
    operation_class=Change,
)
async def failover(door: Door, who: Who, service: ServiceName, data: JSONBody[AutomationRequest]) -> FailoverView:
    """Let another engine take over by itself when the active one fails, or not. Switched on again after a failover that
    failed, what was is forgotten. Needs the role operator."""
    return door.switch_automation(who, service, is_on=data.automatic)


@post(
    "/v1/services/{service:str}/failover/start",
    tags=["switching"],
    status_code=202,
    operation_class=Change,
    responses=CHANGE | {202: ResponseSpec(SwitchRecord, generate_examples=False, description="It has begun.")},
)
async def start_failover(
    door: Door, who: Who, service: ServiceName, data: JSONBody[FailoverOrder]
) -> Response[SwitchRecord]:
    """Have another engine take over from the active one, which is gone, whether or not that would happen by itself. Follow it
    with `GET /v1/switches/{id}`. Refused while the active engine answers. Needs the role operator, and with `force`
    admin."""
    record = await door.start_failover(who, service, data.target_engine, force=data.force, reason=data.reason)
    return Response(record, status_code=202, headers={"Location": f"/v1/switches/{record.id}"})


HANDLERS: Final = [ready, switch, switches, switch_detail, report, cancel, failover, start_failover]
