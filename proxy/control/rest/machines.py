"""For machines: health, readiness, figures."""

from __future__ import annotations

from typing import Any, Final

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec

from proxy.control.rest.common import Door
from proxy.control.rest.problems import PROBLEMS


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
async def readyz(door: Door) -> Response[str]:
    """Every worker has its config and listens: 200, else 503. Needs no token."""
    if door.is_ready():
        return Response("ready\n")
    return Response("not ready: workers are being configured\n", status_code=503)


@get("/metrics", tags=["machines"], opt={"at_once": True}, media_type="text/plain", responses=PROBLEMS)
async def metrics(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """Figures for Prometheus."""
    text, content_type = await state["metrics"].scrape(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})


HANDLERS: Final = [healthz, readyz, metrics]
