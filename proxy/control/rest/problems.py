"""What goes wrong, as problem+json (RFC 9457) whose `remedy` says what to do; and which of it an operation may answer."""

from __future__ import annotations

import math
import sqlite3
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec

from proxy.control.gate import TooMany
from proxy.control.views import SwitchRefused
from proxy.errors import ConfigError, ControlError, PlanRefused, ProxyError
from proxy.switch.readiness import Check

_log = structlog.get_logger("turnout.control")

PROBLEM_TYPE: Final = "application/problem+json"


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


def _spec(description: str) -> ResponseSpec:
    return ResponseSpec(Problem, generate_examples=False, description=description, media_type=PROBLEM_TYPE)


PROBLEMS: Final = {
    400: _spec("The request is wrong; `errors` says where."),
    401: _spec("The token is missing or wrong."),
    403: _spec("The caller may not do this."),
    429: _spec("The caller asks too often; `Retry-After` says when to come back."),
    500: _spec("A mistake of Turnout's."),
    503: _spec("Not possible now."),
}

OR_UNKNOWN: Final = PROBLEMS | {404: _spec("There is no such service, engine, session or switch.")}

CHANGE: Final = OR_UNKNOWN | {
    409: _spec("Refused: a check failed, it cannot be, or something else is under way."),
    413: _spec("The body is too long."),
    415: _spec("The body is not JSON, or does not say so."),
    422: _spec("The Idempotency-Key came with another request before."),
}


def _problem(
    status_code: int, kind: str, title: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any
) -> Response[Problem]:
    problem = Problem(type=f"urn:turnout:problem:{kind}", title=title, status=status_code, detail=detail, **more)
    return Response(problem, status_code=status_code, media_type=PROBLEM_TYPE, headers=headers)


def on_state_error(_request: Request[Any, Any, Any], error: sqlite3.Error) -> Response[Problem]:
    """The disk is full, mostly."""
    _log.error("the state file failed", exc_info=error)
    return _problem(
        503, "unavailable", "Not possible now", f"the state file: {error}", remedy="make room on its disk; see the log"
    )


def _words(status_code: int) -> tuple[str, str]:
    """End of the problem's type, and its title."""
    title = HTTPStatus(status_code).phrase
    return title.lower().replace(" ", "-"), title


def on_proxy_error(_request: Request[Any, Any, Any], error: ProxyError) -> Response[Problem]:
    """What the door, the gate or the config says no with."""
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


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
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


def on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """Ours. The caller learns that, the log learns the rest."""
    _log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
    return _problem(500, "bug", "Turnout made a mistake", "the log has the details", remedy="please report it")
