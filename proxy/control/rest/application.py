"""All of it as one ASGI application, with what every answer carries."""

from __future__ import annotations

import sqlite3
import time
from typing import Any, Final

from litestar import Litestar, asgi
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin
from litestar.types import LifeSpanReceive, LifeSpanScope, LifeSpanSend, Message, Receive, Scope, Send

from proxy import VERSION
from proxy.config import Config
from proxy.control import pages
from proxy.control.access import Access
from proxy.control.answers import Answers
from proxy.control.api_page import ApiPage
from proxy.control.gate import Gate
from proxy.control.mcp.mount import McpMount
from proxy.control.metrics import Metrics
from proxy.control.pace import Bill, Meter
from proxy.control.rest import alerts, changing, comparing, looking, machines, policies, stopping, switching
from proxy.control.rest.common import the_caller, the_door
from proxy.control.rest.problems import on_bug, on_http_error, on_proxy_error, on_state_error
from proxy.control.service import ControlService
from proxy.errors import ProxyError
from proxy.switch.views import Event

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


async def harden(message: Message, scope: Scope) -> None:
    """Add `_HEADERS` to every answer, errors among them."""
    if message["type"] == "http.response.start":
        handler = scope.get("route_handler")
        policy = pages.CONTENT_POLICY if handler is not None and handler.opt.get("is_page") else _CONTENT_POLICY
        message["headers"] = [*message["headers"], *_HEADERS, (b"content-security-policy", policy)]


HANDLERS: Final = [
    *(handler for topic in (looking, changing, stopping, switching, comparing, policies, alerts, machines) for handler in topic.HANDLERS),
    pages.index, pages.file,
]  # fmt: skip


class _Application(Litestar):
    """Keeps a bill for each request. Without the plugins for pydantic and attrs, of which nothing here has to do with either:
    they would import both in every supervisor."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._meter = Meter()

    async def __call__(
        self, scope: Scope | LifeSpanScope, receive: Receive | LifeSpanReceive, send: Send | LifeSpanSend
    ) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return
        bill = Bill(self._meter)
        scope.setdefault("state", {})["bill"] = bill
        try:
            await super().__call__(scope, receive, send)
        finally:
            bill.close(time.monotonic())

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return [*plugins, MsgspecDIPlugin()]


def build_app(door: ControlService, config_in_force: Config) -> Litestar:
    """The ASGI application. Does nothing until it is served."""
    control = config_in_force.control
    gate = Gate(control, Access(control), door.audit, Answers(door.supervisor.database))

    def reconfigure(event: Event) -> None:
        if event.kind == "config.reloaded":
            gate.reconfigure(door.supervisor.config.control)

    door.supervisor.subscribe(reconfigure)
    mount = McpMount(door, control.body_bytes_max)
    return _Application(
        route_handlers=[*HANDLERS, asgi("/mcp", is_mount=True, copy_scope=True, opt={"has_own_body": True})(mount)],
        on_shutdown=[mount.close],
        middleware=[gate.wrap],
        dependencies={
            "door": Provide(the_door, sync_to_thread=False),
            "who": Provide(the_caller, sync_to_thread=False),
        },
        state=State({"door": door, "metrics": Metrics(door.supervisor, door.alerts)}),
        exception_handlers={
            ProxyError: on_proxy_error,
            HTTPException: on_http_error,
            sqlite3.Error: on_state_error,
            Exception: on_bug,
        },
        request_max_body_size=control.body_bytes_max,
        before_send=[harden],
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
