"""Looking: changes nothing."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from litestar import Request, Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, QueryParameter
from litestar.response import Stream

from proxy import ipc
from proxy.control.audit import AuditEntry
from proxy.control.rest.bodies import LogSetting
from proxy.control.rest.common import Door, EngineName, Offset, OneService, ServiceName, SessionId, Who, page_of
from proxy.control.rest.problems import OR_UNKNOWN, PROBLEMS
from proxy.control.views import AUDIT_MAX, EngineRow, PoolRow, SessionFilter, Status
from proxy.engines.figures import EngineFigures
from proxy.switch.views import Event, ServiceView

SESSIONS_PAGE: Final = 1_000
"""Sessions of one answer, if the caller does not say how many."""

SESSIONS_PAGE_MAX: Final = 10_000


@get("/v1/status", tags=["looking"], responses=PROBLEMS)
async def status(door: Door, who: Who) -> Status:
    """Services with active engine and running switch, workers, totals."""
    return await door.status(who)


@get("/v1/services", tags=["looking"], responses=PROBLEMS)
async def services(door: Door, who: Who) -> list[ServiceView]:
    """Every service with its engines and the switch under way."""
    return door.services(who)


@get("/v1/services/{service:str}", tags=["looking"], responses=OR_UNKNOWN)
async def service_detail(door: Door, who: Who, service: ServiceName) -> ServiceView:
    """One service."""
    return door.service(who, service)


@get("/v1/engines", tags=["looking"], responses=OR_UNKNOWN)
async def engines(door: Door, who: Who, one_service: OneService = None) -> list[EngineRow]:
    """Every engine as the last probe saw it."""
    return door.engines(who, one_service)


@get("/v1/pools", tags=["looking"], responses=OR_UNKNOWN)
async def pools(door: Door, who: Who, one_service: OneService = None) -> list[PoolRow]:
    """Every pool of backends, summed over the workers."""
    return await door.pools(who, one_service)


@get("/v1/sessions", tags=["looking"], responses=OR_UNKNOWN)
async def sessions(
    request: Request[Any, Any, Any],
    door: Door,
    who: Who,
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
    page = await door.find_sessions(who, wanted, offset, limit)
    after = offset + len(page.sessions)
    more = {"offset": after} if after < page.total and page.sessions else {}
    return page_of(request, page.sessions, total=page.total, **more)


@get("/v1/sessions/{session_id:int}", tags=["looking"], responses=OR_UNKNOWN)
async def session_detail(door: Door, who: Who, session_id: SessionId) -> ipc.Session:
    """One client connection."""
    return await door.session(who, session_id)


@get("/v1/config", tags=["looking"], responses=PROBLEMS)
async def config(door: Door, who: Who) -> dict[str, Any]:
    """The config in force, each value with its origin. Secrets are shown as `***`."""
    return door.config(who)


@get(
    "/v1/events",
    tags=["looking"],
    opt={"stays": True},
    media_type="text/event-stream",
    responses=OR_UNKNOWN
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
    door: Door,
    who: Who,
    one_service: OneService = None,
    last_event_id: Annotated[
        str | None,
        HeaderParameter(name="Last-Event-ID", max_length=100, description="Id of the last event that was seen."),
    ] = None,
    with_status: Annotated[
        bool,
        QueryParameter(
            name="status",
            description="In between, every two seconds, the status: an event `status` without an id, whose data is what"
            " `GET /v1/status` answers.",
        ),
    ] = False,
) -> Stream:
    """What happens, as it happens: phases of switches, states of engines, decisions of policies, alerts. With
    `Last-Event-ID` from the one after that; if it is not known any more, the stream begins with `events.missed`."""
    stream = door.follow(who, last_event_id, one_service, with_status=with_status)
    return Stream(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@get("/v1/audit", tags=["looking"], responses=PROBLEMS)
async def audit(
    request: Request[Any, Any, Any],
    door: Door,
    who: Who,
    limit: Annotated[int, QueryParameter(ge=1, le=AUDIT_MAX, description="Most entries of the answer.")] = 100,
    before: Annotated[int | None, QueryParameter(ge=1, le=2**62, description="Only entries with a smaller id.")] = None,
    action: Annotated[
        str | None, QueryParameter(max_length=100, description="Only of this action: switch, cancel, enter, …")
    ] = None,
    outcome: Annotated[Literal["done", "refused", "failed"] | None, QueryParameter(description="Only these.")] = None,
) -> Response[list[AuditEntry]]:
    """Who did what, and who was refused, newest first. Needs the role admin."""
    entries = door.audit_entries(who, limit, before=before, action=action, outcome=outcome)
    more = {"before": entries[-1].id} if len(entries) == limit and entries[-1].id > 1 else {}
    return page_of(request, entries, **more)


@get("/v1/log", tags=["looking"], responses=PROBLEMS)
async def log_setting(door: Door, who: Who) -> LogSetting:
    """The lowest level that is logged."""
    return LogSetting(level=door.log_level(who))


@get("/v1/services/{service:str}/engines/{engine:str}/metrics", tags=["looking"], responses=OR_UNKNOWN)
async def engine_metrics(door: Door, who: Who, service: ServiceName, engine: EngineName) -> EngineFigures:
    """The figures of one engine; what is not known is null."""
    return door.engine_metrics(who, service, engine)


HANDLERS: Final = [
    status,
    services,
    service_detail,
    engines,
    pools,
    sessions,
    session_detail,
    config,
    events,
    audit,
    log_setting,
    engine_metrics,
]
