"""Ports for clients: one listening socket per worker on each, the kernel spreads the clients (SO_REUSEPORT)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import structlog

from proxy.dataplane.accept import accept_client
from proxy.dataplane.backend import split_address
from proxy.dataplane.relay import Port

_log = structlog.get_logger("turnout.listener")

ACCEPTS_AT_ONCE: Final = 64
"""Clients taken before running sessions are looked at again."""

BACKLOG: Final = 4096


class Listener:
    """Accepts on `address` and hands each connected, non-blocking descriptor, with the client's address, to `accepted`,
    which owns it from then on."""

    def __init__(self, address: str, accepted: Callable[[int, str], None]) -> None:
        self.address = address
        self._accepted = accepted
        self._port: Port | None = None

    def open(self) -> None:
        """Raises OSError with a text that says what to do."""
        host, port = split_address(self.address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Linux gives these to each accepted socket: two calls saved for every client.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.bind((host or "0.0.0.0", port))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise OSError(
                f"cannot listen on {self.address}: {error.strerror}; "
                "stop what uses it, or change `listen` of this [[listener]]"
            ) from error
        self._port = Port(asyncio.get_running_loop(), sock.detach())
        self._port.accept = self._accept

    def _accept(self) -> None:
        assert self._port is not None, "a port that is closed is not watched"
        listening = self._port.fd
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                client = accept_client(listening)
            except OSError as error:
                # Out of descriptors: the next event tries again.
                _log.warning("accept failed", address=self.address, error=str(error))
                return
            if client is None:
                return
            self._accepted(*client)

    def close(self) -> None:
        """Accept nobody any more. Idempotent."""
        if self._port is not None:
            self._port.close()
            self._port = None
