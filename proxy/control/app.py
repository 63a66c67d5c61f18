"""Serves the control port inside the supervisor's loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from typing import Final

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from proxy.config import Config, parse_address
from proxy.control.pace import Use
from proxy.control.rest import build_app
from proxy.control.service import ControlService
from proxy.errors import ConfigError
from proxy.switch.views import Event
from proxy.tasks import cancel_and_wait, spawn
from proxy.tls import TlsProblem, control_tls, load_control_files

_log = structlog.get_logger("turnout.control")

SPARE_CONNECTIONS: Final = 200
"""Above `requests_max`, before uvicorn itself answers 503: connections that stay open for events, or are idle."""


class _Protocol(H11Protocol):
    """uvicorn's, with what is known of the connection in the state of each request's scope: the client certificate; `ends`,
    which is done as soon as the client has left or the control port is closed; and `use`, what was spent for it lately."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._ends: asyncio.Future[None] = self.loop.create_future()
        self.app_state = {**self.app_state, "ends": self._ends, "use": Use()}
        certificate = transport.get_extra_info("peercert")
        if certificate:  # verified: without a CA file none is asked for
            self.app_state["certificate"] = certificate

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end()

    def shutdown(self) -> None:
        super().shutdown()
        self._end()

    def _end(self) -> None:
        if not self._ends.done():
            self._ends.set_result(None)


class _Server(uvicorn.Server):
    """uvicorn without signal handlers (signals are the supervisor's), and with an event that says that it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_serving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_serving.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ControlServer:
    """A control port that is open. `close` ends it."""

    def __init__(
        self, service: ControlService, server: _Server, task: asyncio.Task[None], addresses: list[str]
    ) -> None:
        self._service = service
        self._server = server
        self._task = task
        self.addresses = addresses
        """Where it listens, host:port each."""

    async def close(self) -> None:
        """Refuse new requests, end the streams of events, give running requests two seconds, close. May be called twice."""
        self._service.events.close()
        self._server.should_exit = True
        await asyncio.wait([self._task])


async def serve_control(service: ControlService, config: Config) -> ControlServer:
    """Open the control port of `config` and serve `service` there. Returns once it answers.

    Raises ConfigError, in one line, if it cannot listen.
    """
    context = control_tls(config.control)
    sockets = _listen(config.control.listen)
    addresses = [_spell(one.getsockname()) for one in sockets]
    server = _Server(
        uvicorn.Config(
            build_app(service, config),
            http=_Protocol,
            ssl_context_factory=(lambda _config, _default: context) if context is not None else None,
            log_config=None,
            access_log=False,
            lifespan="on",
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=config.control.requests_max + SPARE_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
        )
    )
    task = spawn(server.serve(sockets=sockets), name="control port")
    serving = spawn(server.is_serving.wait(), name="control port opens")
    await asyncio.wait([task, serving], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await cancel_and_wait(serving)
        task.result()
        raise ConfigError(config.control.listen, "the control port ended as it began")
    if context is not None:
        service.supervisor.subscribe(partial(_read_certificates, service, context))
    _log.info("control port is open", listen=", ".join(addresses), tls=context is not None)
    return ControlServer(service, server, task, addresses)


def _read_certificates(service: ControlService, context: ssl.SSLContext, event: Event) -> None:
    """At each reload; connections made from then on have the new ones."""
    if event.kind != "config.reloaded":
        return
    try:
        load_control_files(context, service.supervisor.config.control)
    except TlsProblem as problem:
        _log.error("the control port keeps its certificate", key=f"tls_{problem.key}", why=problem.text)


def _listen(address: str) -> list[socket.socket]:
    """Listening sockets on every address the host's name has; one that this machine lacks (::1, say) is left out."""
    host, port = parse_address(address)
    sockets: list[socket.socket] = []
    refused: list[OSError] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _cannot(address, error) from error
    for family, kind, protocol, _name, where in found:
        try:
            one = socket.socket(family, kind, protocol)
        except OSError as error:
            refused.append(error)
            continue
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(where)
            one.listen(128)
            one.setblocking(False)
        except OSError as error:
            one.close()
            refused.append(error)
        else:
            sockets.append(one)
    taken = [error for error in refused if error.errno == errno.EADDRINUSE]
    if taken or not sockets:
        for one in sockets:
            one.close()
        reason = (taken or refused)[0]
        raise _cannot(address, reason) from reason
    return sockets


def _cannot(address: str, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        text = "the port is taken; is another Turnout running? Stop it, or let [control] listen name another port"
    else:
        text = f"cannot listen there: {error.strerror}; let [control] listen name an address of this machine"
    return ConfigError(f"control port {address}", text)


def _spell(name: tuple[str, int] | tuple[str, int, int, int]) -> str:
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
