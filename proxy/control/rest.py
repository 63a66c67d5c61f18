"""REST: the door's verbs over HTTP, under `/v1`, with `/metrics`, `/healthz`, `/readyz` and the API's own page.

Bodies are JSON both ways. Errors are problem+json (RFC 9457) whose `remedy` says what to do. This module knows HTTP and
the door, and nothing of what is behind it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

import msgspec
import structlog
from litestar import Litestar, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.handlers.base import BaseRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Components, SecurityScheme
from litestar.params import JSONBody, PathParameter, QueryParameter
from litestar.types import Message, Scope
from msgspec import Meta

from proxy import VERSION, ipc
from proxy.config import Config
from proxy.control.access import Access, Caller, show_client
from proxy.control.api_page import ApiPage
from proxy.control.metrics import Metrics
from proxy.control.service import ControlService, EngineRow, Readiness, Status, SwitchRefused
from proxy.errors import ConfigError, ControlError, NotFound, PlanRefused, ProxyError
from proxy.switch.plan import DRAIN_TIMEOUT_S_MAX, SwitchPlan, SwitchRecord
from proxy.switch.readiness import Check
from proxy.switch.state import ENDED

_log = structlog.get_logger("turnout.control")

BODY_BYTES_MAX: Final = 64 * 1024
"""No request of this API comes near it."""

PROBLEM_TYPE: Final = "application/problem+json"


class SwitchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a switch is asked to do. Only the target has to be said."""

    target_engine: Annotated[str, Meta(min_length=1, max_length=63, description="Name of the engine to go to.")]
    strategy: Annotated[
        Literal["graceful", "immediate", "rolling", "canary"],
        Meta(description="This version has `graceful` and `immediate`."),
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
                description="`abort` undoes the switch, `terminate` ends the sessions that are left, "
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
    force: Annotated[bool, Meta(description="Go on although a check failed, unless the check keeps data safe.")] = False
    dry_run: Annotated[bool, Meta(description="Only run the checks.")] = False
    reason: Annotated[str, Meta(max_length=500, description="Kept in the record.")] = ""


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


_PROBLEMS: Final = {
    401: ResponseSpec(Problem, generate_examples=False, description="The token is missing or wrong."),
    403: ResponseSpec(Problem, generate_examples=False, description="The caller may not do this."),
}
_OR_WRONG: Final = _PROBLEMS | {
    400: ResponseSpec(Problem, generate_examples=False, description="The request is wrong; `errors` says where.")
}
_OR_UNKNOWN: Final = _OR_WRONG | {
    404: ResponseSpec(Problem, generate_examples=False, description="There is no such service, engine or switch.")
}
_OR_REFUSED: Final = _OR_UNKNOWN | {
    409: ResponseSpec(
        Problem,
        generate_examples=False,
        description="Refused: a check failed, the plan cannot be, or another switch is running.",
    )
}

ServiceName = Annotated[str, PathParameter(description="Name of a service in the config.")]
EngineName = Annotated[str, PathParameter(description="Name of an engine of the service.")]
SwitchId = Annotated[str, PathParameter(description="Id of a switch, as its start answered it.")]
OneService = Annotated[str | None, QueryParameter(name="service", description="Only of this service.")]


def _door(state: State) -> ControlService:
    door = state["door"]
    assert isinstance(door, ControlService)
    return door


def _caller(request: Request[Any, Any, Any]) -> Caller:
    caller = request.scope["state"]["caller"]
    assert isinstance(caller, Caller), "the guard lets nobody pass without"
    return caller


# --- looking ------------------------------------------------------------------------------------------------------


@get("/v1/status", tags=["looking"], responses=_PROBLEMS)
async def status(request: Request[Any, Any, Any], state: State) -> Status:
    """Services with active engine and running switch, workers, totals."""
    return await _door(state).status(_caller(request))


@get("/v1/engines", tags=["looking"], responses=_OR_UNKNOWN)
async def engines(request: Request[Any, Any, Any], state: State, one_service: OneService = None) -> list[EngineRow]:
    """Every engine as the last probe saw it."""
    return _door(state).engines(_caller(request), one_service)


@get("/v1/sessions", tags=["looking"], responses=_OR_UNKNOWN)
async def sessions(request: Request[Any, Any, Any], state: State, one_service: OneService = None) -> list[ipc.Session]:
    """Every client connection, with what it would take to move it."""
    return await _door(state).sessions(_caller(request), one_service)


@get("/v1/services/{service:str}/ready/{target:str}", tags=["switching"], responses=_OR_UNKNOWN)
async def ready(request: Request[Any, Any, Any], state: State, service: ServiceName, target: EngineName) -> Readiness:
    """The readiness report: every check of a switch to `target`, with what to do about those that fail."""
    return await _door(state).ready(_caller(request), service, target)


@get("/v1/config", tags=["looking"], responses=_PROBLEMS)
async def config(request: Request[Any, Any, Any], state: State) -> dict[str, Any]:
    """The config in force, each value with its origin. Secrets are shown as `***`."""
    return _door(state).config(_caller(request))


# --- switching ----------------------------------------------------------------------------------------------------


@post(
    "/v1/services/{service:str}/switch",
    tags=["switching"],
    status_code=202,
    responses=_OR_REFUSED
    | {
        200: ResponseSpec(Readiness, generate_examples=False, description="A dry run's readiness report."),
        202: ResponseSpec(SwitchRecord, generate_examples=False, description="The checks passed, the switch runs."),
    },
)
async def switch(
    request: Request[Any, Any, Any], state: State, service: ServiceName, data: JSONBody[SwitchRequest]
) -> Response[Any]:
    """Begin a switch. The answer comes once its checks have passed; follow it with `GET /v1/switches/{id}`."""
    plan = SwitchPlan(
        service=service,
        target=data.target_engine,
        strategy=data.strategy,
        drain_timeout_s=data.drain_timeout_seconds,
        on_drain_expired=data.on_drain_expired,
        max_pending_transactions=data.max_pending_transactions,
        force_transaction_abort=data.force_transaction_abort,
        force=data.force,
        reason=data.reason,
        requested_by=_caller(request).name,
    )
    if data.dry_run:
        return Response(await _door(state).rehearse(_caller(request), plan), status_code=200)
    record = await _door(state).switch(_caller(request), plan)
    return Response(record, status_code=202, headers={"Location": f"/v1/switches/{record.id}"})


@get("/v1/switches", tags=["switching"], responses=_OR_WRONG)
async def switches(
    request: Request[Any, Any, Any],
    state: State,
    limit: Annotated[int, QueryParameter(ge=1, le=1_000, description="Most records of the answer.")] = 50,
) -> list[SwitchRecord]:
    """The newest switches, newest first."""
    return _door(state).switches(_caller(request), limit)


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


@get("/v1/switches/{switch_id:str}/report", tags=["switching"], responses=_OR_UNKNOWN)
async def report(request: Request[Any, Any, Any], state: State, switch_id: SwitchId) -> dict[str, Any]:
    """The evidence report of a switch that has ended."""
    return _door(state).report(_caller(request), switch_id)


@post("/v1/switches/{switch_id:str}/cancel", tags=["switching"], status_code=202, responses=_OR_REFUSED)
async def cancel(request: Request[Any, Any, Any], state: State, switch_id: SwitchId) -> SwitchRecord:
    """Undo a switch that has not begun to promote. The answer comes once the undoing has begun."""
    return await _door(state).cancel(_caller(request), switch_id)


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
            title = HTTPStatus(error.status).phrase
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            kind = title.lower().replace(" ", "-")
            return _problem(error.status, kind, title, error.text, remedy=error.hint, headers=headers)
        case ConfigError():
            return _problem(409, "config", "The config is wrong", error.text, remedy=error.hint)
        case _:
            return _problem(503, "unavailable", "Not possible now", error.text, remedy=error.hint)


_EXPLAINED: Final = {
    413: (f"the body is longer than {BODY_BYTES_MAX} bytes", "no request of this API needs more"),
    415: ("the body must be JSON, and say so", "send `Content-Type: application/json`"),
}


def _on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """What Litestar itself finds: unknown paths, wrong methods, bodies that do not fit."""
    status_code = error.status_code
    phrase = HTTPStatus(status_code).phrase
    kind = phrase.lower().replace(" ", "-")
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
    if status_code in (404, 405):
        detail = f"{request.method} {request.url.path} is nothing this API has"
        return _problem(status_code, kind, phrase, detail, remedy="see /docs for what there is")
    detail, remedy = _EXPLAINED.get(status_code, (error.detail, ""))
    return _problem(status_code, kind, phrase, detail, remedy=remedy)


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


def _guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Runs before every handler, so that a new one cannot forget it."""
    if handler.opt.get("is_open"):
        return
    client = connection.client
    shown = show_client(client.host, client.port) if client is not None else "unknown"
    headers = {name.lower(): value for name, value in connection.headers.items()}
    connection.scope["state"]["caller"] = connection.app.state["access"].admit(headers, shown)
    is_write = connection.scope["method"] not in ("GET", "HEAD", "OPTIONS")  # type: ignore[typeddict-item]
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if is_write and kind != "application/json":
        # A page of another site can send a form or plain text without being asked, but not JSON.
        raise HTTPException(status_code=415)


_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
)
"""No answer is kept, guessed at, framed or allowed to load anything."""


async def _harden(message: Message, _scope: Scope) -> None:
    """Add `_HEADERS` to every answer, errors among them."""
    if message["type"] == "http.response.start":
        message["headers"] = [*message["headers"], *_HEADERS]


def build_app(door: ControlService, config_in_force: Config) -> Litestar:
    """The ASGI application. Does nothing until it is served."""
    return Litestar(
        route_handlers=[
            status,
            engines,
            sessions,
            ready,
            config,
            switch,
            switches,
            switch_detail,
            report,
            cancel,
            healthz,
            readyz,
            metrics,
        ],
        guards=[_guard],
        state=State({"door": door, "access": Access(config_in_force), "metrics": Metrics(door.supervisor)}),
        exception_handlers={
            ProxyError: _on_proxy_error,
            HTTPException: _on_http_error,
            Exception: _on_bug,
        },
        request_max_body_size=BODY_BYTES_MAX,
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
