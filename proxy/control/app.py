"""Serves the control port inside the supervisor's loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Final

import structlog
import uvicorn

from proxy.config import Config, parse_address
from proxy.control.rest import build_app
from proxy.control.service import ControlService
from proxy.errors import ConfigError
from proxy.tasks import cancel_and_wait, spawn

_log = structlog.get_logger("turnout.control")

REQUESTS_MAX: Final = 256
"""Requests at the same time; more are answered 503."""


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

    def __init__(self, server: _Server, task: asyncio.Task[None], addresses: list[str]) -> None:
        self._server = server
        self._task = task
        self.addresses = addresses
        """Where it listens, host:port each."""

    async def close(self) -> None:
        """Refuse new requests, give running ones two seconds, close. May be called twice."""
        self._server.should_exit = True
        await asyncio.wait([self._task])


async def serve_control(service: ControlService, config: Config) -> ControlServer:
    """Open the control port of `config` and serve `service` there. Returns once it answers.

    Raises ConfigError, in one line, if it cannot listen.
    """
    sockets = _listen(config.control.listen)
    addresses = [_spell(one.getsockname()) for one in sockets]
    server = _Server(
        uvicorn.Config(
            build_app(service, config),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=REQUESTS_MAX,
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
    _log.info("control port is open", listen=", ".join(addresses))
    return ControlServer(server, task, addresses)


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
