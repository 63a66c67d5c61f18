"""REST: the door's verbs over HTTP, under `/v1`, with `/metrics`, `/healthz`, `/readyz` and the API's own page.

Bodies are JSON both ways. Errors are problem+json (RFC 9457) whose `remedy` says what to do. This module knows HTTP and
the door, and nothing of what is behind it.
"""

from __future__ import annotations

import math
import sqlite3
import time
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode

import msgspec
import structlog
from litestar import Litestar, Request, Response, asgi, delete, get, post, put
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Components, OpenAPIType, Operation, Parameter, Schema, SecurityScheme
from litestar.params import HeaderParameter, JSONBody, PathParameter, QueryParameter
from litestar.response import Stream
from litestar.types import Message, Scope
from msgspec import Meta

from proxy import VERSION, ipc
from proxy.config import Config, LogLevel, PolicyConfig
from proxy.control import pages
from proxy.control.access import Access
from proxy.control.alerts.model import AlertView, Delivery, ReceiverView, RuleView, Silence
from proxy.control.answers import KEY_LENGTH_MAX, Answers
from proxy.control.api_page import ApiPage
from proxy.control.audit import AuditEntry
from proxy.control.gate import Gate, TooMany
from proxy.control.mcp_mount import McpMount
from proxy.control.metrics import Metrics
from proxy.control.roles import Caller
from proxy.control.service import (
    AUDIT_MAX,
    DECISIONS_MAX,
    DELIVERIES_MAX,
    SILENCE_S_MAX,
    SWITCHES_MAX,
    ControlService,
    EngineRow,
    EngineSpec,
    PoolRow,
    Readiness,
    Reloaded,
    SessionFilter,
    Status,
    SwitchRefused,
)
from proxy.engines.figures import EngineFigures
from proxy.errors import ConfigError, ControlError, NotFound, PlanRefused, ProxyError
from proxy.policy.model import Decision, Policy, PolicyView
from proxy.switch.agenda import AHEAD_S_MAX, begins_at
from proxy.switch.datacheck import DataCheck
from proxy.switch.plan import DRAIN_TIMEOUT_S_MAX, SwitchPlan, SwitchRecord
from proxy.switch.readiness import Check
from proxy.switch.state import ENDED
from proxy.switch.views import Event, FailoverView, ServiceView

_log = structlog.get_logger("turnout.control")

SESSIONS_PAGE: Final = 1_000
"""Sessions of one answer, if the caller does not say how many."""

SESSIONS_PAGE_MAX: Final = 10_000

OFFSET_MAX: Final = 10_000_000

PROBLEM_TYPE: Final = "application/problem+json"


class SwitchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a switch is asked to do. Only the target has to be said."""

    target_engine: Annotated[str, Meta(min_length=1, max_length=63, description="Name of the engine to go to.")]
    strategy: Annotated[
        Literal["graceful", "immediate", "rolling", "canary"],
        Meta(
            description="`graceful`: hold, drain, move; `immediate`: what is open is ended; `rolling`: sessions move in "
            "batches; `canary`: a share of them is compared with the rest, then all or none. The last two need engines "
            "that cannot diverge."
        ),
    ] = "graceful"
    drain_timeout_seconds: (
        Annotated[
            float,
            Meta(
                ge=0, le=DRAIN_TIMEOUT_S_MAX, description="How long open transactions may go on; default: the config's."
            ),
        ]
        | None
    ) = None
    on_drain_expired: (
        Annotated[
            Literal["abort", "terminate", "leave"],
            Meta(
                description="`abort` undoes the switch, `terminate` rolls the transactions that are left back, "
                "`leave` lets them keep their backends (one server with two addresses only)."
            ),
        ]
        | None
    ) = None
    max_pending_transactions: (
        Annotated[
            int,
            Meta(ge=0, le=1_000_000, description="Do not begin with more sessions in a transaction; 0: no limit."),
        ]
        | None
    ) = None
    force_transaction_abort: Annotated[
        bool, Meta(description="Of an immediate switch: end open transactions; false: do it at once or not at all.")
    ] = True
    batch_size: Annotated[int, Meta(ge=1, le=100_000, description="Rolling: sessions that move at a time.")] | None = (
        None
    )
    interval_seconds: (
        Annotated[float, Meta(ge=0, le=3_600, description="Rolling: pause between two batches.")] | None
    ) = None
    traffic_percentage: (
        Annotated[float, Meta(ge=0.01, le=99, description="Canary: share of the sessions that tries the target.")]
        | None
    ) = None
    validation_duration_seconds: (
        Annotated[float, Meta(ge=1, le=86_400, description="Canary: how long it is compared with the rest.")] | None
    ) = None
    at: Annotated[
        str,
        Meta(
            max_length=40,
            description="Begin at that time, as of RFC 3339 with its zone: `2030-01-31T02:00:00+01:00`; empty: now.",
        ),
    ] = ""
    in_seconds: (
        Annotated[float, Meta(ge=0, le=AHEAD_S_MAX, description="Begin so long from now, in place of `at`.")] | None
    ) = None
    when_busy: (
        Annotated[
            Literal["refuse", "queue"],
            Meta(description="While another switch of the service runs; default: the config's."),
        ]
        | None
    ) = None
    force: Annotated[bool, Meta(description="Go on although a check failed, unless the check keeps data safe.")] = False
    dry_run: Annotated[bool, Meta(description="Only run the checks.")] = False
    reason: Annotated[str, Meta(max_length=500, description="Kept in the record.")] = ""


class AutomationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What shall happen when the active engine fails."""

    automatic: Annotated[bool, Meta(description="Another engine takes over by itself.")]


class FailoverOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who takes over from an active engine that is gone."""

    target_engine: Annotated[str, Meta(min_length=1, max_length=63)] | None = msgspec.field(default=None)
    """Null: the one that has most."""
    force: bool = False
    """Take one that may lack more than `lag_tolerance_ms` allows. Needs the role admin."""
    reason: Annotated[str, Meta(max_length=500)] = ""


class PolicyRequest(PolicyConfig, frozen=True, kw_only=True):
    """A policy: the keys of `[service.NAME.policy.NAME]` in the config, and its service."""

    service: Annotated[str, Meta(min_length=1, max_length=63, description="Name of a service in the config.")]


class SilenceRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which alerts nobody shall be told of for a time. Empty: any."""

    duration_s: Annotated[float, Meta(ge=1, le=SILENCE_S_MAX, description="For how long, in seconds.")]
    alert: Annotated[str, Meta(max_length=63, description="Name of a rule.")] = ""
    service: Annotated[str, Meta(max_length=63, description="Name of a service.")] = ""
    engine: Annotated[str, Meta(max_length=63, description="Name of an engine.")] = ""
    reason: Annotated[str, Meta(max_length=500, description="Kept with it.")] = ""


class DataCheckRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be compared."""

    target_engine: Annotated[
        str, Meta(min_length=1, max_length=63, description="Engine to compare the active one with.")
    ]
    tables: Annotated[
        list[str], Meta(max_length=1_000, description="Only these, as `schema.table` or `database.table`; empty: all.")
    ] = []
    chunk_rows: Annotated[int, Meta(ge=10, le=100_000, description="Rows of one checksum.")] = 5_000
    rows_per_second: Annotated[
        float, Meta(ge=0, le=1e9, description="Most rows read in a second; 0: it only rests as long as it works.")
    ] = 0.0


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error, RFC 9457. Media type application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    remedy: str = ""
    """What to do about it."""
    switch: str = ""
    """Id of the switch that was refused."""
    checks: list[Check] = []
    """All checks of a refused switch; those with verdict `fail` are why."""
    errors: list[str] = []
    """One line for each field of the request that is wrong."""


class SwitchDetail(SwitchRecord, kw_only=True):
    """A switch, and its evidence report once it has ended."""

    report: dict[str, Any] | None = None


class LogSetting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The lowest level that is logged."""

    level: LogLevel


def _spec(description: str) -> ResponseSpec:
    return ResponseSpec(Problem, generate_examples=False, description=description, media_type=PROBLEM_TYPE)


_PROBLEMS: Final = {
    400: _spec("The request is wrong; `errors` says where."),
    401: _spec("The token is missing or wrong."),
    403: _spec("The caller may not do this."),
    429: _spec("The caller asks too often; `Retry-After` says when to come back."),
    500: _spec("A mistake of Turnout's."),
    503: _spec("Not possible now."),
}
_OR_UNKNOWN: Final = _PROBLEMS | {404: _spec("There is no such service, engine, session or switch.")}
_CHANGE: Final = _OR_UNKNOWN | {
    409: _spec("Refused: a check failed, it cannot be, or something else is under way."),
    413: _spec("The body is too long."),
    415: _spec("The body is not JSON, or does not say so."),
    422: _spec("The Idempotency-Key came with another request before."),
}


class Change(Operation):
    """An operation that changes something: it takes an idempotency key, which the gate looks at."""

    def __post_init__(self) -> None:
        self.parameters = [
            *(self.parameters or []),
            Parameter(
                name="Idempotency-Key",
                param_in="header",
                description="Done once, however often it is sent with the same key (a UUID, say) within a day: the later "
                "ones get the first one's answer, with `Idempotency-Replayed: true`.",
                required=False,
                schema=Schema(
                    type=OpenAPIType.STRING, min_length=1, max_length=KEY_LENGTH_MAX, pattern="^[!#-~]([ -~]*[!#-~])?$"
                ),
            ),
        ]


ServiceName = Annotated[str, PathParameter(description="Name of a service in the config.")]
EngineName = Annotated[str, PathParameter(description="Name of an engine of the service.")]
SwitchId = Annotated[str, PathParameter(description="Id of a switch, as its start answered it.")]
PolicyName = Annotated[str, PathParameter(description="Name of a policy, of whatever service.")]
ReceiverName = Annotated[str, PathParameter(description="Name of a receiver in the config.")]
SilenceNumber = Annotated[int, PathParameter(description="Number of a silence, as the list has it.", ge=0, le=2**53)]
DecisionLimit = Annotated[int, QueryParameter(ge=1, le=DECISIONS_MAX, description="Most decisions of the answer.")]
SessionId = Annotated[int, PathParameter(description="Number of a session, as the list has it.", ge=0, le=2**48)]
CheckId = Annotated[str, PathParameter(description="Id of a data check, as its start answered it.")]
OneService = Annotated[str | None, QueryParameter(name="service", description="Only of this service.")]
Offset = Annotated[int, QueryParameter(ge=0, le=OFFSET_MAX, description="How many to pass over.")]


def _door(state: State) -> ControlService:
    door = state["door"]
    assert isinstance(door, ControlService)
    return door


def _caller(request: Request[Any, Any, Any]) -> Caller:
    caller = request.scope["state"]["caller"]
    assert isinstance(caller, Caller), "the guard lets nobody pass without"
    return caller


def _page(request: Request[Any, Any, Any], items: Any, *, total: int | None = None, **next_page: int) -> Response[Any]:
    """A part of a list; `next_page` are the query parameters of what follows, if anything does (RFC 8288)."""
    headers = {} if total is None else {"Total-Count": str(total)}
    if next_page:
        query = {name: value for name, value in request.query_params.items() if name not in next_page}
        follows = urlencode([*query.items(), *next_page.items()])
        headers["Link"] = f'<{request.url.path}?{follows}>; rel="next"'
    return Response(items, headers=headers)


# --- looking ------------------------------------------------------------------------------------------------------


@get("/v1/status", tags=["looking"], responses=_PROBLEMS)
async def status(request: Request[Any, Any, Any], state: State) -> Status:
    """Services with active engine and running switch, workers, totals."""
    return await _door(state).status(_caller(request))


@get("/v1/services", tags=["looking"], responses=_PROBLEMS)
async def services(request: Request[Any, Any, Any], state: State) -> list[ServiceView]:
    """Every service with its engines and the switch under way."""
    return _door(state).services(_caller(request))


@get("/v1/services/{service:str}", tags=["looking"], responses=_OR_UNKNOWN)
async def service_detail(request: Request[Any, Any, Any], state: State, service: ServiceName) -> ServiceView:
    """One service."""
    return _door(state).service(_caller(request), service)


@get("/v1/engines", tags=["looking"], responses=_OR_UNKNOWN)
async def engines(request: Request[Any, Any, Any], state: State, one_service: OneService = None) -> list[EngineRow]:
    """Every engine as the last probe saw it."""
    return _door(state).engines(_caller(request), one_service)


@get("/v1/pools", tags=["looking"], responses=_OR_UNKNOWN)
async def pools(request: Request[Any, Any, Any], state: State, one_service: OneService = None) -> list[PoolRow]:
    """Every pool of backends, summed over the workers."""
    return await _door(state).pools(_caller(request), one_service)


@get("/v1/sessions", tags=["looking"], responses=_OR_UNKNOWN)
async def sessions(
    request: Request[Any, Any, Any],
    state: State,
    one_service: OneService = None,
    user: Annotated[str | None, QueryParameter(description="Only of this user.")] = None,
    database: Annotated[str | None, QueryParameter(description="Only of this database.")] = None,
    engine: Annotated[str | None, QueryParameter(description="Only those with a backend on this engine.")] = None,
    portability: Annotated[
        Literal["A", "B", "C", "D"] | None, QueryParameter(description="Only of this grade.")
    ] = None,
    standing: Annotated[
        Literal["arriving", "serving", "draining", "held"] | None, QueryParameter(description="Only of this standing.")
    ] = None,
    in_transaction: Annotated[
        bool | None, QueryParameter(description="Only those with a transaction open, or without.")
    ] = None,
    limit: Annotated[
        int, QueryParameter(ge=1, le=SESSIONS_PAGE_MAX, description="Most sessions of the answer.")
    ] = SESSIONS_PAGE,
    offset: Offset = 0,
) -> Response[list[ipc.Session]]:
    """Client connections, with what it would take to move each. `Total-Count` says how many fit, `Link` where the next
    page is."""
    wanted = SessionFilter(
        service=one_service,
        user=user,
        database=database,
        engine=engine,
        portability=portability,
        standing=standing,
        in_transaction=in_transaction,
    )
    page = await _door(state).find_sessions(_caller(request), wanted, offset, limit)
    after = offset + len(page.sessions)
    more = {"offset": after} if after < page.total and page.sessions else {}
    return _page(request, page.sessions, total=page.total, **more)


@get("/v1/sessions/{session_id:int}", tags=["looking"], responses=_OR_UNKNOWN)
async def session_detail(request: Request[Any, Any, Any], state: State, session_id: SessionId) -> ipc.Session:
    """One client connection."""
    return await _door(state).session(_caller(request), session_id)


@get("/v1/services/{service:str}/ready/{target:str}", tags=["switching"], responses=_OR_UNKNOWN | {409: _CHANGE[409]})
async def ready(request: Request[Any, Any, Any], state: State, service: ServiceName, target: EngineName) -> Readiness:
    """The readiness report: every check of a switch to `target`, with what to do about those that fail."""
    return await _door(state).ready(_caller(request), service, target)


@get("/v1/config", tags=["looking"], responses=_PROBLEMS)
async def config(request: Request[Any, Any, Any], state: State) -> dict[str, Any]:
    """The config in force, each value with its origin. Secrets are shown as `***`."""
    return _door(state).config(_caller(request))


@get(
    "/v1/events",
    tags=["looking"],
    opt={"stays": True},
    media_type="text/event-stream",
    responses=_OR_UNKNOWN
    | {
        200: ResponseSpec(
            Event,
            generate_examples=False,
            media_type="text/event-stream",
            description="Server-sent events; the data of each is one of these, as JSON.",
        )
    },
)
async def events(
    request: Request[Any, Any, Any],
    state: State,
    one_service: OneService = None,
    last_event_id: Annotated[
        str | None,
        HeaderParameter(name="Last-Event-ID", max_length=100, description="Id of the last event that was seen."),
    ] = None,
) -> Stream:
    """What happens, as it happens: phases of switches, states of engines, decisions of policies, alerts. With
    `Last-Event-ID` from the one after that; if it is not known any more, the stream begins with `events.missed`."""
    stream = _door(state).follow(_caller(request), last_event_id, one_service)
    return Stream(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@get("/v1/audit", tags=["looking"], responses=_PROBLEMS)
async def audit(
    request: Request[Any, Any, Any],
    state: State,
    limit: Annotated[int, QueryParameter(ge=1, le=AUDIT_MAX, description="Most entries of the answer.")] = 100,
    before: Annotated[int | None, QueryParameter(ge=1, le=2**62, description="Only entries with a smaller id.")] = None,
    action: Annotated[
        str | None, QueryParameter(max_length=100, description="Only of this action: switch, cancel, enter, …")
    ] = None,
    outcome: Annotated[Literal["done", "refused", "failed"] | None, QueryParameter(description="Only these.")] = None,
) -> Response[list[AuditEntry]]:
    """Who did what, and who was refused, newest first. Needs the role admin."""
    entries = _door(state).audit_entries(_caller(request), limit, before=before, action=action, outcome=outcome)
    more = {"before": entries[-1].id} if len(entries) == limit and entries[-1].id > 1 else {}
    return _page(request, entries, **more)


# --- changing -----------------------------------------------------------------------------------------------------


@put(
    "/v1/services/{service:str}/engines/{engine:str}",
    tags=["changing"],
    status_code=201,
    responses=_CHANGE,
    operation_class=Change,
)
async def add_engine(
    request: Request[Any, Any, Any], state: State, service: ServiceName, engine: EngineName, data: JSONBody[EngineSpec]
) -> EngineRow:
    """Add an engine to a service; kept over restarts. Nothing is switched. Needs the role admin."""
    return _door(state).add_engine(_caller(request), service, engine, data)


@delete(
    "/v1/services/{service:str}/engines/{engine:str}",
    tags=["changing"],
    responses=_CHANGE,
    operation_class=Change,
)
async def remove_engine(
    request: Request[Any, Any, Any], state: State, service: ServiceName, engine: EngineName
) -> None:
    """Take an engine that does not serve from its service; kept over restarts. Needs the role admin."""
    await _door(state).remove_engine(_caller(request), service, engine)


@delete("/v1/sessions/{session_id:int}", tags=["changing"], status_code=200, responses=_CHANGE, operation_class=Change)
async def end_session(
    request: Request[Any, Any, Any],
    state: State,
    session_id: SessionId,
    reason: Annotated[str, QueryParameter(max_length=200, description="Told to the client.")] = "",
) -> ipc.Session:
    """End one client's session; its transaction is rolled back. Answers the session as it was. Needs the role admin."""
    return await _door(state).end_session(_caller(request), session_id, reason)


@post("/v1/config/reload", tags=["changing"], status_code=200, responses=_CHANGE, operation_class=Change)
async def reload(request: Request[Any, Any, Any], state: State) -> Reloaded:
    """Read the config file again, as SIGHUP does. Needs the role admin."""
    return _door(state).reload(_caller(request))


@get("/v1/log", tags=["looking"], responses=_PROBLEMS)
async def log_setting(request: Request[Any, Any, Any], state: State) -> LogSetting:
    """The lowest level that is logged."""
    return LogSetting(level=_door(state).log_level(_caller(request)))


@put("/v1/log", tags=["changing"], responses=_CHANGE, operation_class=Change)
async def set_log(request: Request[Any, Any, Any], state: State, data: JSONBody[LogSetting]) -> LogSetting:
    """Log from this level up, until a reload or a restart says otherwise. Needs the role admin."""
    _door(state).set_log_level(_caller(request), data.level)
    return data


# --- switching ----------------------------------------------------------------------------------------------------


@post(
    "/v1/services/{service:str}/switch",
    tags=["switching"],
    status_code=202,
    operation_class=Change,
    responses=_CHANGE
    | {
        200: ResponseSpec(Readiness, generate_examples=False, description="A dry run's readiness report."),
        202: ResponseSpec(
            SwitchRecord, generate_examples=False, description="The checks passed and it runs, or it waits: `pending`."
        ),
    },
)
async def switch(
    request: Request[Any, Any, Any], state: State, service: ServiceName, data: JSONBody[SwitchRequest]
) -> Response[Any]:
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
        requested_by=_caller(request).name,
    )
    if data.dry_run:
        return Response(await _door(state).rehearse(_caller(request), plan), status_code=200)
    record = await _door(state).switch(_caller(request), plan)
    return Response(record, status_code=202, headers={"Location": f"/v1/switches/{record.id}"})


@get("/v1/switches", tags=["switching"], responses=_PROBLEMS)
async def switches(
    request: Request[Any, Any, Any],
    state: State,
    limit: Annotated[int, QueryParameter(ge=1, le=SWITCHES_MAX, description="Most records of the answer.")] = 50,
    offset: Offset = 0,
) -> Response[list[SwitchRecord]]:
    """The newest switches, newest first. `Link` says where the next page is."""
    records = _door(state).switches(_caller(request), limit, offset)
    more = {"offset": offset + limit} if len(records) == limit else {}
    return _page(request, records, **more)


@get("/v1/switches/{switch_id:str}", tags=["switching"], responses=_OR_UNKNOWN)
async def switch_detail(request: Request[Any, Any, Any], state: State, switch_id: SwitchId) -> SwitchDetail:
    """One switch: phase and times while it runs, its evidence report once it has ended."""
    door, caller = _door(state), _caller(request)
    record = door.switch_record(caller, switch_id)
    try:
        report = door.report(caller, switch_id) if record.phase in ENDED else None
    except NotFound:  # it has just ended, and the report is being written
        report = None
    return SwitchDetail(**msgspec.structs.asdict(record), report=report)


@get("/v1/datachecks", tags=["data"], responses=_PROBLEMS)
async def datachecks(request: Request[Any, Any, Any], state: State) -> list[DataCheck]:
    """Comparisons of what two engines have, newest first."""
    return _door(state).data_checks(_caller(request))


@get("/v1/datachecks/{check_id:str}", tags=["data"], responses=_OR_UNKNOWN)
async def datacheck(request: Request[Any, Any, Any], state: State, check_id: CheckId) -> DataCheck:
    """One comparison, as far as it has come."""
    return _door(state).data_check(_caller(request), check_id)


@post(
    "/v1/services/{service:str}/datacheck",
    tags=["data"],
    status_code=202,
    responses=_CHANGE,
    operation_class=Change,
)
async def start_datacheck(
    request: Request[Any, Any, Any], state: State, service: ServiceName, data: JSONBody[DataCheckRequest]
) -> DataCheck:
    """Compare the rows of the active engine with those of another one, while clients work. Needs the role operator."""
    check = DataCheck(
        id="",
        service=service,
        source="",
        target=data.target_engine,
        chunk_rows=data.chunk_rows,
        rows_per_second=data.rows_per_second,
        only=data.tables,
    )
    return _door(state).start_data_check(_caller(request), check)


@post(
    "/v1/datachecks/{check_id:str}/resume",
    tags=["data"],
    status_code=202,
    responses=_CHANGE,
    operation_class=Change,
)
async def resume_datacheck(request: Request[Any, Any, Any], state: State, check_id: CheckId) -> DataCheck:
    """Go on with a comparison that was cancelled or has failed, where it stopped. Needs the role operator."""
    return _door(state).resume_data_check(_caller(request), check_id)


@post(
    "/v1/datachecks/{check_id:str}/cancel",
    tags=["data"],
    status_code=202,
    responses=_CHANGE,
    operation_class=Change,
)
async def cancel_datacheck(request: Request[Any, Any, Any], state: State, check_id: CheckId) -> DataCheck:
    """End a comparison. Needs the role operator."""
    return await _door(state).cancel_data_check(_caller(request), check_id)


@get("/v1/switches/{switch_id:str}/report", tags=["switching"], responses=_OR_UNKNOWN)
async def report(request: Request[Any, Any, Any], state: State, switch_id: SwitchId) -> dict[str, Any]:
    """The evidence report of a switch that has ended."""
    return _door(state).report(_caller(request), switch_id)


@post(
    "/v1/switches/{switch_id:str}/cancel",
    tags=["switching"],
    status_code=202,
    responses=_CHANGE,
    operation_class=Change,
)
async def cancel(request: Request[Any, Any, Any], state: State, switch_id: SwitchId) -> SwitchRecord:
    """Undo a switch that has not begun to promote, or drop one that waits. The answer comes once the undoing has begun. Needs
    the role operator."""
    return await _door(state).cancel(_caller(request), switch_id)


@post(
    "/v1/services/{service:str}/failover",
    tags=["switching"],
    status_code=200,
    responses=_CHANGE,
    operation_class=Change,
)
async def failover(
    request: Request[Any, Any, Any], state: State, service: ServiceName, data: JSONBody[AutomationRequest]
) -> FailoverView:
    """Let another engine take over by itself when the active one fails, or not. Switched on again after a failover that
    failed, what was is forgotten. Needs the role operator."""
    return _door(state).switch_automation(_caller(request), service, is_on=data.automatic)


@post(
    "/v1/services/{service:str}/failover/start",
    tags=["switching"],
    status_code=202,
    operation_class=Change,
    responses=_CHANGE | {202: ResponseSpec(SwitchRecord, generate_examples=False, description="It has begun.")},
)
async def start_failover(
    request: Request[Any, Any, Any], state: State, service: ServiceName, data: JSONBody[FailoverOrder]
) -> Response[SwitchRecord]:
    """Have another engine take over from the active one, which is gone, whether or not that would happen by itself. Follow it
    with `GET /v1/switches/{id}`. Refused while the active engine answers. Needs the role operator, and with `force`
    admin."""
    record = await _door(state).start_failover(
        _caller(request), service, data.target_engine, force=data.force, reason=data.reason
    )
    return Response(record, status_code=202, headers={"Location": f"/v1/switches/{record.id}"})


# --- policies -----------------------------------------------------------------------------------------------------


@get("/v1/services/{service:str}/engines/{engine:str}/metrics", tags=["looking"], responses=_OR_UNKNOWN)
async def engine_metrics(
    request: Request[Any, Any, Any], state: State, service: ServiceName, engine: EngineName
) -> EngineFigures:
    """The figures of one engine; what is not known is null."""
    return _door(state).engine_metrics(_caller(request), service, engine)


@get("/v1/policies", tags=["policies"], responses=_OR_UNKNOWN)
async def policies(request: Request[Any, Any, Any], state: State, one_service: OneService = None) -> list[PolicyView]:
    """Every policy, and what was decided last."""
    return _door(state).policies(_caller(request), one_service)


@get("/v1/policies/{policy:str}", tags=["policies"], responses=_OR_UNKNOWN)
async def policy_detail(request: Request[Any, Any, Any], state: State, policy: PolicyName) -> PolicyView:
    """One policy."""
    return _door(state).policy(_caller(request), policy)


@put("/v1/policies/{policy:str}", tags=["policies"], responses=_CHANGE, operation_class=Change)
async def set_policy(
    request: Request[Any, Any, Any], state: State, policy: PolicyName, data: JSONBody[PolicyRequest]
) -> PolicyView:
    """Set a policy, or replace it as a whole; kept over restarts. Needs the role operator."""
    return _door(state).set_policy(_caller(request), data.service, policy, data)


@delete("/v1/policies/{policy:str}", tags=["policies"], status_code=200, responses=_CHANGE, operation_class=Change)
async def remove_policy(request: Request[Any, Any, Any], state: State, policy: PolicyName) -> Policy:
    """Forget a policy that was set by command; one of the config file is changed there. Needs the role operator."""
    return _door(state).remove_policy(_caller(request), policy)


@post("/v1/policies/{policy:str}/enable", tags=["policies"], status_code=200, responses=_CHANGE, operation_class=Change)
async def enable_policy(request: Request[Any, Any, Any], state: State, policy: PolicyName) -> PolicyView:
    """Let a policy fire again, also one of the config file. Needs the role operator."""
    return _door(state).enable_policy(_caller(request), policy, is_enabled=True)


@post(
    "/v1/policies/{policy:str}/disable", tags=["policies"], status_code=200, responses=_CHANGE, operation_class=Change
)
async def disable_policy(request: Request[Any, Any, Any], state: State, policy: PolicyName) -> PolicyView:
    """Keep a policy from firing, also one of the config file, until it is enabled again. Needs the role operator."""
    return _door(state).enable_policy(_caller(request), policy, is_enabled=False)


@post("/v1/policies/{policy:str}/run", tags=["policies"], status_code=202, responses=_CHANGE, operation_class=Change)
async def run_policy(request: Request[Any, Any, Any], state: State, policy: PolicyName) -> Response[SwitchRecord]:
    """Let a policy fire now, whatever its trigger. The answer comes once the checks of its switch have passed. Needs the role
    operator."""
    record = await _door(state).run_policy(_caller(request), policy)
    return Response(record, status_code=202, headers={"Location": f"/v1/switches/{record.id}"})


@get("/v1/policies/{policy:str}/history", tags=["policies"], responses=_OR_UNKNOWN)
async def history_of_policy(
    request: Request[Any, Any, Any], state: State, policy: PolicyName, limit: DecisionLimit = 50
) -> list[Decision]:
    """What was decided of one policy and why, newest first; only what changed."""
    return _door(state).policy_history(_caller(request), limit, policy)


@get("/v1/policy-history", tags=["policies"], responses=_PROBLEMS)
async def policy_history(request: Request[Any, Any, Any], state: State, limit: DecisionLimit = 50) -> list[Decision]:
    """What was decided of all policies and why, newest first; only what changed."""
    return _door(state).policy_history(_caller(request), limit)


# --- alerts -------------------------------------------------------------------------------------------------------


@get("/v1/alerts", tags=["alerts"], responses=_PROBLEMS)
async def alerts(request: Request[Any, Any, Any], state: State) -> list[AlertView]:
    """Alerts that are pending, fire, or were over within a day; the worst first."""
    return _door(state).alerts_now(_caller(request))


@get("/v1/alerts/rules", tags=["alerts"], responses=_PROBLEMS)
async def alert_rules(request: Request[Any, Any, Any], state: State) -> list[RuleView]:
    """Every rule that alerts come from, Turnout's own and those of the config."""
    return _door(state).alert_rules(_caller(request))


@get("/v1/alerts/receivers", tags=["alerts"], responses=_PROBLEMS)
async def receivers(request: Request[Any, Any, Any], state: State) -> list[ReceiverView]:
    """Who is told of alerts, and what became of that."""
    return _door(state).receivers(_caller(request))


@post(
    "/v1/alerts/receivers/{receiver:str}/test",
    tags=["alerts"],
    status_code=200,
    responses=_CHANGE,
    operation_class=Change,
)
async def test_receiver(request: Request[Any, Any, Any], state: State, receiver: ReceiverName) -> Delivery:
    """Send a test message, once. The answer says what became of it: `delivered` or `failed`. Needs the role operator."""
    return await _door(state).test_receiver(_caller(request), receiver)


@get("/v1/alerts/deliveries", tags=["alerts"], responses=_PROBLEMS)
async def deliveries(
    request: Request[Any, Any, Any],
    state: State,
    limit: Annotated[int, QueryParameter(ge=1, le=DELIVERIES_MAX, description="Most messages of the answer.")] = 50,
) -> list[Delivery]:
    """Messages about alerts, newest first, with what became of each."""
    return _door(state).deliveries(_caller(request), limit)


@get("/v1/alerts/silences", tags=["alerts"], responses=_PROBLEMS)
async def silences(request: Request[Any, Any, Any], state: State) -> list[Silence]:
    """What keeps messages back now."""
    return _door(state).silences(_caller(request))


@post("/v1/alerts/silences", tags=["alerts"], status_code=201, responses=_CHANGE, operation_class=Change)
async def silence(request: Request[Any, Any, Any], state: State, data: JSONBody[SilenceRequest]) -> Silence:
    """Keep messages about these alerts back for a time; what still fires then is told. Needs the role operator."""
    return _door(state).silence(_caller(request), **msgspec.structs.asdict(data))


@delete("/v1/alerts/silences/{number:int}", tags=["alerts"], status_code=200, responses=_CHANGE, operation_class=Change)
async def unsilence(request: Request[Any, Any, Any], state: State, number: SilenceNumber) -> Silence:
    """End a silence before its time. Needs the role operator."""
    return _door(state).unsilence(_caller(request), number)


# --- for machines -------------------------------------------------------------------------------------------------


@get("/healthz", tags=["machines"], opt={"is_open": True}, media_type="text/plain")
async def healthz() -> str:
    """The control port answers. Needs no token."""
    return "ok\n"


@get(
    "/readyz",
    tags=["machines"],
    opt={"is_open": True},
    media_type="text/plain",
    responses={503: ResponseSpec(str, generate_examples=False, description="Not ready yet.", media_type="text/plain")},
)
async def readyz(state: State) -> Response[str]:
    """Every worker has its config and listens: 200, else 503. Needs no token."""
    if _door(state).is_ready():
        return Response("ready\n")
    return Response("not ready: workers are being configured\n", status_code=503)


@get("/metrics", tags=["machines"], media_type="text/plain", responses=_PROBLEMS)
async def metrics(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """Figures for Prometheus."""
    text, content_type = await state["metrics"].scrape(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})


# --- what goes wrong ----------------------------------------------------------------------------------------------


def _problem(
    status_code: int, kind: str, title: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any
) -> Response[Problem]:
    problem = Problem(type=f"urn:turnout:problem:{kind}", title=title, status=status_code, detail=detail, **more)
    return Response(problem, status_code=status_code, media_type=PROBLEM_TYPE, headers=headers)


def _on_state_error(_request: Request[Any, Any, Any], error: sqlite3.Error) -> Response[Problem]:
    _log.error("the state file failed", exc_info=error)
    return _problem(
        503, "unavailable", "Not possible now", f"the state file: {error}", remedy="make room on its disk; see the log"
    )


def _words(status_code: int) -> tuple[str, str]:
    """End of the problem's type, and its title."""
    title = HTTPStatus(status_code).phrase
    return title.lower().replace(" ", "-"), title


def _on_proxy_error(_request: Request[Any, Any, Any], error: ProxyError) -> Response[Problem]:
    match error:
        case SwitchRefused():
            return _problem(
                409,
                "switch-refused",
                "A check failed",
                error.text,
                remedy=error.hint,
                switch=error.switch,
                checks=error.checks,
            )
        case PlanRefused():
            return _problem(409, "plan-refused", "The switch cannot be done as asked", error.text, remedy=error.hint)
        case ControlError():
            kind, title = _words(error.status)
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            if isinstance(error, TooMany):
                headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
            return _problem(error.status, kind, title, error.text, remedy=error.hint, headers=headers)
        case ConfigError():
            return _problem(409, "config", "The config is wrong", error.text, remedy=error.hint)
        case _:
            return _problem(503, "unavailable", "Not possible now", error.text, remedy=error.hint)


def _on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """What Litestar itself finds: unknown paths, wrong methods, bodies that do not fit."""
    status_code = error.status_code
    kind, title = _words(status_code)
    if isinstance(error, ValidationException):
        lines = [_field_error(one) for one in error.extra] if isinstance(error.extra, list) else []
        return _problem(
            400,
            "wrong-request",
            "The request is wrong",
            "; ".join(lines) or error.detail,
            errors=lines,
            remedy="see /docs for what this path takes",
        )
    detail, remedy = error.detail, "see /docs for what this path takes"
    if status_code in (404, 405):
        detail, remedy = (
            f"{request.method} {request.url.path} is nothing this API has",
            "see /docs for what there is",
        )
    elif status_code == 413:
        detail, remedy = "the body is too long", "see `body_bytes_max`; no request of this API needs more"
    elif status_code == 415:
        detail, remedy = "the body must be JSON, and say so", "send `Content-Type: application/json`"
    return _problem(status_code, kind, title, detail, remedy=remedy, headers=dict(error.headers or {}))


def _field_error(found: Any) -> str:
    """One of Litestar's entries: a dict with message and, mostly, key."""
    if not isinstance(found, dict):
        return str(found)
    return f"{found['key']}: {found['message']}" if found.get("key") else str(found.get("message"))


def _on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """Ours. The caller learns that, the log learns the rest."""
    _log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
    return _problem(500, "bug", "Turnout made a mistake", "the log has the details", remedy="please report it")


# --- the application ----------------------------------------------------------------------------------------------


_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""No answer is kept, guessed at, framed, or of use to a page of another site."""

_CONTENT_POLICY: Final = b"default-src 'none'; style-src 'unsafe-inline'"
"""No answer but the dashboard's pages is allowed to load anything."""


async def _harden(message: Message, scope: Scope) -> None:
    """Add `_HEADERS` to every answer, errors among them."""
    if message["type"] == "http.response.start":
        handler = scope.get("route_handler")
        policy = pages.CONTENT_POLICY if handler is not None and handler.opt.get("is_page") else _CONTENT_POLICY
        message["headers"] = [*message["headers"], *_HEADERS, (b"content-security-policy", policy)]


HANDLERS: Final = [
    status, services, service_detail, engines, pools, sessions, session_detail, ready, config, events, audit,
    add_engine, remove_engine, end_session, reload, log_setting, set_log,
    switch, switches, switch_detail, report, cancel, failover, start_failover,
    datachecks, datacheck, start_datacheck, resume_datacheck, cancel_datacheck,
    engine_metrics, policies, policy_detail, set_policy, remove_policy, enable_policy, disable_policy, run_policy,
    history_of_policy, policy_history,
    alerts, alert_rules, receivers, test_receiver, deliveries, silences, silence, unsilence,
    healthz, readyz, metrics,
    pages.index, pages.file,
]  # fmt: skip


def build_app(door: ControlService, config_in_force: Config) -> Litestar:
    """The ASGI application. Does nothing until it is served."""
    control = config_in_force.control
    gate = Gate(control, Access(control), door.audit, Answers(door.supervisor.database))

    def reconfigure(event: Event) -> None:
        if event.kind == "config.reloaded":
            gate.reconfigure(door.supervisor.config.control)

    door.supervisor.subscribe(reconfigure)
    mount = McpMount(door, control.body_bytes_max)
    return Litestar(
        route_handlers=[*HANDLERS, asgi("/mcp", is_mount=True, copy_scope=True, opt={"has_own_body": True})(mount)],
        on_shutdown=[mount.close],
        middleware=[gate.wrap],
        state=State({"door": door, "metrics": Metrics(door.supervisor, door.alerts)}),
        exception_handlers={
            ProxyError: _on_proxy_error,
            HTTPException: _on_http_error,
            sqlite3.Error: _on_state_error,
            Exception: _on_bug,
        },
        request_max_body_size=control.body_bytes_max,
        before_send=[_harden],
        openapi_config=OpenAPIConfig(
            title="Turnout",
            version=VERSION,
            description="The control port of a running Turnout.",
            path="/docs",
            render_plugins=[ApiPage(path="/")],
            use_handler_docstrings=True,
            components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
            security=[{"token": []}],
        ),
        logging_config=None,
        debug=False,
    )
