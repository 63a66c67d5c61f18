"""One server-side connection: opened and logged in here, lent by a pool, attached to a session's relay.

Knows how to talk to an idle backend (an `Exchange`). Refuses to know who needs it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from protocols.errors import ProtocolViolation
from protocols.wire import BackendFacts, BackendReady, BackendRefused, Credential, Exchange, Startup, Wire
from proxy.dataplane.relay import Link
from proxy.errors import ConnectFailed, EngineLost, EngineRefused

if TYPE_CHECKING:
    from proxy.dataplane.pool import Shelf

UNREAD_BYTES_MAX: Final = 64 * 1024
"""What an idle backend may say unasked; one that says more is closed."""


class Backend:
    """A logged-in connection to `engine`. Its link belongs to a relay while it is attached, else to this object."""

    __slots__ = (
        "_heard",
        "_lost",
        "_unread",
        "_waiting",
        "address",
        "cancels",
        "checked_ns",
        "engine",
        "facts",
        "idle_since_ns",
        "link",
        "notes",
        "on_closed",
        "on_lost",
        "opened_ns",
        "shelf",
        "startup",
        "wire",
    )

    def __init__(
        self, wire: Wire, engine: str, address: str, startup: Startup, link: Link, facts: BackendFacts
    ) -> None:
        self.wire = wire
        self.engine = engine
        self.address = address
        self.startup = startup
        self.link = link
        self.facts = facts
        self.notes: dict[str, Any] = {}
        """The tracker's memory of this backend (its prepared statements)."""
        self.shelf: Shelf | None = None
        """Where its pool puts it while it is idle; set by the pool."""
        self.cancels = 0
        """Cancel requests on their way to it; it is not lent again before they are done."""
        self.opened_ns = self.idle_since_ns = self.checked_ns = time.monotonic_ns()
        """`checked_ns`: when its pool last asked whether it still answers."""
        self.on_closed: Callable[[], None] | None = None
        """Told once when it is closed, by whomever: its pool counts it no more."""
        self.on_lost: Callable[[Backend], None] | None = None
        """Told once when the connection ends while no relay has it."""
        self._heard = self._received  # one bound method, not one for each transaction
        self._unread: list[bytes] = []
        self._waiting: tuple[Exchange, asyncio.Future[None]] | None = None
        self._lost = False
        self.listen()

    def __repr__(self) -> str:
        return f"<backend {self.engine} {self.startup.database}/{self.startup.user} pid={self.facts.process_id}>"

    @property
    def is_fresh(self) -> bool:
        """Connected, and silent since it became idle: it may be lent."""
        return not self._lost and not self._unread

    @property
    def is_lost(self) -> bool:
        return self._lost or not self.link.is_open

    def listen(self) -> None:
        """The link is no relay's (any more): hear what the server says and when it ends."""
        self.link.sink = self._heard

    def rest(self, on_lost: Callable[[Backend], None], now_ns: int) -> None:
        """Idle in a pool from now on, which is told if the connection ends."""
        self.idle_since_ns = now_ns
        self.on_lost = on_lost
        self.link.sink = self._heard

    def take_unread(self) -> bytes:
        """What the server said unasked since the backend was idle."""
        data = b"".join(self._unread)
        self._unread.clear()
        return data

    @property
    def has_unread(self) -> bool:
        return bool(self._unread)

    def _received(self, data: bytes) -> None:
        if not data:
            self._end()
            return
        if self._waiting is None:
            self._unread.append(data)
            if sum(map(len, self._unread)) > UNREAD_BYTES_MAX:
                self._end()
            return
        exchange, done = self._waiting
        try:
            if exchange.receive(data) and not done.done():
                done.set_result(None)
        except ProtocolViolation as error:
            if not done.done():
                done.set_exception(EngineLost(f"engine {self.engine} broke the protocol: {error.text}"))
            self._end()

    def _end(self) -> None:
        if self._lost:
            return
        self._lost = True
        why = self.link.lost or "it closed the connection"
        self.link.close()
        self._closed()
        if self._waiting is not None and not self._waiting[1].done():
            self._waiting[1].set_exception(EngineLost(f"engine {self.engine} was lost: {why}"))
        if self.on_lost is not None:
            self.on_lost(self)

    async def run(self, exchange: Exchange, timeout_s: float) -> None:
        """Send `exchange.request` and wait for its whole answer; refusals are in `exchange.errors`.

        The link must be no relay's. Raises EngineLost; after it, and after a cancellation, the backend is closed,
        because nobody knows what is still to come on it.
        """
        assert self._waiting is None, "one exchange at a time"
        if self.is_lost:
            raise EngineLost(f"engine {self.engine} was lost: {self.link.lost or 'it closed the connection'}")
        self.listen()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = (exchange, done)
        try:
            self.link.send(exchange.request)
            async with asyncio.timeout(timeout_s):
                await done
            if exchange.parameters:
                told = {**self.facts.parameters, **exchange.parameters}
                self.facts = replace(self.facts, parameters=told)
        except TimeoutError as error:
            self.close()
            raise EngineLost(f"engine {self.engine} did not answer within {timeout_s:g} s") from error
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiting = None

    def close(self, *, says_goodbye: bool = False) -> None:
        """Close at once, without telling `on_lost`. `says_goodbye` only where nothing is in flight."""
        self._lost = True
        self.on_lost = None
        if says_goodbye:
            self.link.send(self.wire.goodbye())
        self.link.close()
        self._closed()

    def _closed(self) -> None:
        told, self.on_closed = self.on_closed, None
        if told is not None:
            told()


def split_address(address: str) -> tuple[str, int]:
    """`host:port` with IPv6 in brackets. The config loader has checked it."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


async def connect(address: str, engine: str) -> socket.socket:
    """A connected, non-blocking TCP socket without delay. Raises ConnectFailed."""
    loop = asyncio.get_running_loop()
    host, port = split_address(address)
    last: OSError | None = None
    try:
        candidates = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectFailed(f"engine {engine}: the name {host} cannot be resolved: {error}") from error
    for family, kind, number, _, target in candidates:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, number)
        try:
            await loop.sock_connect(sock, target)
            if sock.getsockname() == sock.getpeername():
                # A dead port in the ephemeral range can connect to itself.
                raise ConnectionRefusedError("nobody listens there")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return sock
        except OSError as error:
            last = error
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise ConnectFailed(
        f"engine {engine} at {address} cannot be reached: {last.strerror if last and last.strerror else last}"
    ) from last


async def open_backend(
    wire: Wire, engine: str, address: str, startup: Startup, password: Credential, timeout_s: float
) -> Backend:
    """Connect and log in. Raises ConnectFailed (a retry is safe), EngineRefused, EngineLost."""
    loop = asyncio.get_running_loop()
    link: Link | None = None
    try:
        async with asyncio.timeout(timeout_s):
            sock = await connect(address, engine)
            link = Link(loop, sock.detach())
            ready = await _log_in(wire, engine, link, startup, password)
            return Backend(wire, engine, address, startup, link, ready.facts)
    except TimeoutError as error:
        if link is not None:
            link.close()
        raise ConnectFailed(f"engine {engine} at {address} did not let us in within {timeout_s:g} s") from error
    except BaseException:
        if link is not None:
            link.close()
        raise


async def _log_in(wire: Wire, engine: str, link: Link, startup: Startup, password: Credential) -> BackendReady:
    login = wire.server_login(startup, password, binding=link.channel_binding)
    outcome: asyncio.Future[BackendReady] = asyncio.get_running_loop().create_future()

    def received(data: bytes) -> None:
        if outcome.done():
            return
        if not data:
            outcome.set_exception(
                ConnectFailed(f"engine {engine} ended the login: {link.lost or 'it closed the connection'}")
            )
            return
        try:
            facts = login.receive(data)
        except ProtocolViolation as error:
            outcome.set_exception(EngineLost(f"engine {engine} broke the protocol at login: {error.text}"))
            return
        link.send(login.take_output())
        for fact in facts:
            if isinstance(fact, BackendReady):
                outcome.set_result(fact)
            elif isinstance(fact, BackendRefused):
                outcome.set_exception(EngineRefused(engine, fact))

    link.sink = received
    link.send(login.take_output())
    return await outcome


async def send_cancel(wire: Wire, backend: Backend, timeout_s: float) -> None:
    """Ask the engine to cancel what `backend` runs now, and wait until the engine has taken the request."""
    sock = await connect(backend.address, backend.engine)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_sendall(sock, wire.cancel_request(backend.facts))
            while await loop.sock_recv(sock, 256):
                pass
    except (TimeoutError, OSError):
        # A cancel is a wish: the query goes on, and the client's own timeout decides.
        pass
    finally:
        sock.close()
