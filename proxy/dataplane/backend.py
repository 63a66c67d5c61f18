"""One server-side connection: opened and logged in here, lent by a pool, attached to a session's relay.

Knows how to talk to an idle backend (an `Exchange`). Refuses to know who needs it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from protocols.errors import ProtocolViolation
from protocols.wire import (
    BackendFacts,
    BackendReady,
    BackendRefused,
    Credential,
    Exchange,
    PackingBegins,
    Startup,
    TlsRefused,
    TlsWanted,
    Wire,
)
from proxy.dataplane.reach import Reach
from proxy.dataplane.relay import Lendable, Link
from proxy.dataplane.tls import TlsFailed, ask_for_tls, converse, settle_tls
from proxy.errors import ConnectFailed, EngineError, EngineLost, EngineRefused, EngineSilent
from proxy.packing import Packing

UNREAD_BYTES_MAX: Final = 64 * 1024
"""What an idle backend may say unasked; one that says more is closed."""


class Backend(Lendable):
    """A logged-in connection to `engine`. Its link belongs to a relay while it is attached, else to this object."""

    __slots__ = (
        "_is_uncancelled",
        "_waiting",
        "checked_ns",
        "engine",
        "on_closed",
        "opened_ns",
        "reach",
        "shown_ids",
        "startup",
        "wire",
    )

    def __init__(
        self,
        wire: Wire,
        reach: Reach,
        startup: Startup,
        link: Link,
        facts: BackendFacts,
    ) -> None:
        self.wire = wire
        self.reach = reach
        """What opened it."""
        self.engine = reach.engine
        self.startup = startup
        self.link = link
        self.facts = facts
        self.notes = {}
        """The tracker's memory of this backend (its prepared statements)."""
        self.shelf = None
        """Where its pool puts it while it is idle; set by the pool."""
        self.cancels = 0
        """Cancel requests on their way to it; it is not lent again before they are done."""
        self.is_doubtful = False
        """A cancel request may still reach it, nobody knows when, or its pool was told to close it: it serves nobody else."""
        self._is_uncancelled: asyncio.Future[None] | None = None
        self.opened_ns = self.idle_since_ns = self.checked_ns = time.monotonic_ns()
        """`checked_ns`: when its pool last asked whether it still answers."""
        self.on_closed: Callable[[], None] | None = None
        """Told once when it is closed, by whomever: its pool counts it no more."""
        self.shown_ids: dict[int, int] | None = None
        """Where its process id stands until it is closed, if its client was told another one."""
        self.on_lost = None
        """Told once when the connection ends while no relay has it."""
        self._heard = self._received
        self._unread = []
        self._waiting: tuple[Exchange, asyncio.Future[None]] | None = None
        self._lost = False
        self.listen()

    def __repr__(self) -> str:
        return f"<backend {self.engine} {self.startup.database}/{self.startup.user} pid={self.facts.process_id}>"

    @property
    def is_fresh(self) -> bool:
        """Connected, and silent since it became idle: it may be lent."""
        return not self._lost and not self._unread and not self.is_doubtful

    @property
    def is_lost(self) -> bool:
        return self._lost or not self.link.is_open

    def become(self, startup: Startup) -> None:
        """It is like a fresh one of `startup` now, and stands on that one's shelf when it is idle."""
        if startup != self.startup:
            self.startup = startup
            self.shelf = None

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

    def hear(self, data: bytes) -> None:
        """What the server said behind the end of its login."""
        self._received(data)

    def cancel_ended(self, *, is_sure: bool = True) -> None:
        """One of `cancels` is done."""
        self.cancels -= 1
        self.is_doubtful = self.is_doubtful or not is_sure
        if self.cancels == 0 and self._is_uncancelled is not None:
            self._is_uncancelled.set_result(None)
            self._is_uncancelled = None

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
            async with asyncio.timeout(timeout_s):
                if self.cancels:
                    # A late cancel would hit what the proxy asks.
                    self._is_uncancelled = asyncio.get_running_loop().create_future()
                    await self._is_uncancelled
                self.link.send(exchange.request)
                await done
            if exchange.parameters:
                told = {**self.facts.parameters, **exchange.parameters}
                self.facts = replace(self.facts, parameters=told)
        except TimeoutError as error:
            self.close()
            raise EngineSilent(f"engine {self.engine} did not answer within {timeout_s:g} s") from error
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiting = None

    def give_up(self) -> None:
        """As if the connection had ended now: who waits for an answer is told."""
        self._end()

    def close(self, *, says_goodbye: bool = False) -> None:
        """Close at once, without telling `on_lost`. `says_goodbye` only where nothing is in flight."""
        self._lost = True
        self.on_lost = None
        if says_goodbye:
            self.link.send(self.wire.goodbye())
        self.link.close()
        self._closed()

    def show_as(self, process_id: int, shown_ids: dict[int, int]) -> None:
        """Its client knows it by `process_id`. `shown_ids` is told until it is closed."""
        if process_id != self.facts.process_id:
            shown_ids[self.facts.process_id] = process_id
            self.shown_ids = shown_ids
        else:
            self.hide()

    def hide(self) -> None:
        """No client knows it by another process id any more."""
        if self.shown_ids is not None:
            self.shown_ids.pop(self.facts.process_id, None)
            self.shown_ids = None

    def _closed(self) -> None:
        self.hide()
        told, self.on_closed = self.on_closed, None
        if told is not None:
            told()


def split_address(address: str) -> tuple[str, int]:
    """`host:port` with IPv6 in brackets. The config loader has checked it."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


async def reach(sock: socket.socket, target: tuple[object, ...]) -> None:
    """Connect to somebody else. Raises OSError: a dead port in the ephemeral range can connect to itself.

    uvloop's `sock_connect` lets a thread find out what a numeric address means, and the kernel counts references to a
    descriptor at each call of a process that has threads.
    """
    failed = sock.connect_ex(target)
    if failed == errno.EINPROGRESS:
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[None] = loop.create_future()

        def is_settled() -> None:
            if not settled.done():
                settled.set_result(None)

        loop.add_writer(sock.fileno(), is_settled)
        try:
            await settled
        finally:
            loop.remove_writer(sock.fileno())
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise OSError(failed, os.strerror(failed))
    if sock.getsockname() == sock.getpeername():
        raise ConnectionRefusedError("nobody listens there")


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
            await reach(sock, target)
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


async def open_backend(wire: Wire, reach: Reach, startup: Startup, password: Credential, timeout_s: float) -> Backend:
    """Connect and log in. Raises ConnectFailed (a retry is safe), EngineRefused, EngineLost.

    Like libpq, `allow` and `prefer` try the other way, with or without TLS, on another connection if the engine does not
    want this one, which it says before it asks for any proof.
    """
    try:
        async with asyncio.timeout(timeout_s):
            *others, last = reach.tls.attempts()
            for is_encrypted in others:
                try:
                    return await _open(wire, reach, startup, password, wants_tls=is_encrypted)
                except TlsFailed:
                    continue
                except EngineRefused as error:
                    if not (error.is_before_proof and error.sqlstate.startswith(_UNWANTED)):
                        raise
            return await _open(wire, reach, startup, password, wants_tls=last)
    except TimeoutError as error:
        raise ConnectFailed(
            f"engine {reach.engine} at {reach.address} did not let us in within {timeout_s:g} s"
        ) from error


_UNWANTED: Final = "28"
"""SQLSTATE class of a host-based rule that does not fit."""


async def _open(wire: Wire, reach: Reach, startup: Startup, password: Credential, *, wants_tls: bool) -> Backend:
    try:
        return await _open_once(wire, reach, startup, password, wants_tls=wants_tls, oldest=False)
    except EngineRefused as error:
        if not error.is_too_new:
            raise
    return await _open_once(wire, reach, startup, password, wants_tls=wants_tls, oldest=True)


async def _open_once(
    wire: Wire, reach: Reach, startup: Startup, password: Credential, *, wants_tls: bool, oldest: bool
) -> Backend:
    engine, tls = reach.engine, reach.tls
    sock = await connect(reach.address, engine)
    link = Link(asyncio.get_running_loop(), sock.detach())
    try:
        if wants_tls and wire.tls_request() is not None:
            await ask_for_tls(wire, engine, link, tls)
        login = wire.server_login(
            startup, password, binding=link.channel_binding, oldest=oldest, wants_tls=wants_tls, packing=reach.packing
        )
        fact = await converse(engine, link, login)
        if isinstance(fact, TlsWanted | TlsRefused):
            login.go_on(is_encrypted=await settle_tls(engine, link, tls, fact))
            fact = await converse(engine, link, login)
        if isinstance(fact, PackingBegins):
            how = fact.packing
            link.start_packing(Packing(how.algorithm, how.level, is_to_server=True), fact.received)
            facts = login.receive(b"")
            fact = facts[0] if facts else await converse(engine, link, login)
        if isinstance(fact, BackendRefused):
            raise EngineRefused(engine, fact)
        assert isinstance(fact, BackendReady)
        backend = Backend(wire, reach, startup, link, fact.facts)
        if unread := login.take_unread():
            backend.hear(unread)
        return backend
    except BaseException:
        link.close()
        raise


async def send_cancel(wire: Wire, backend: Backend, reach: Reach, timeout_s: float) -> bool:
    """Ask the engine to cancel what `backend` runs now, and wait until the engine has taken the request, which it says
    by closing the connection. `reach`: of the backend's server. With TLS where the backend's own connection has it, if
    there is to be any.

    True: nothing is under way any more. A cancel is a wish: what fails is told to nobody.
    """
    link: Link | None = None
    is_sent = False
    try:
        async with asyncio.timeout(timeout_s):
            sock = await connect(reach.address, reach.engine)
            link = Link(asyncio.get_running_loop(), sock.detach())
            if backend.link.is_encrypted and reach.tls.context is not None:
                await ask_for_tls(wire, reach.engine, link, reach.tls)
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def received(data: bytes) -> None:
                if not data and not ended.done():
                    ended.set_result(None)

            link.sink = received
            is_sent = True
            link.send(wire.cancel_request(backend.facts))
            await ended
            return True
    except (TimeoutError, EngineError):
        return not is_sent
    finally:
        if link is not None:
            link.close()
