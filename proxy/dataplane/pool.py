"""Backends of one (engine, database, user): idle ones, how many there may be, and who waits for one.

A shelf holds the idle backends of one Startup; only those fit a session without a change. Waiters are served in their
order. The pool never awaits on behalf of a session: it calls `granted` or `refused`, perhaps at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from protocols.wire import Ledger, Startup
from proxy.dataplane.backend import Backend
from proxy.dataplane.relay import Lending
from proxy.errors import EngineError, EngineLost, ProxyError, TooManyConnections
from proxy.tasks import spawn


class Shelf:
    """The idle backends of one Startup. Lives as long as a session or a backend refers to it: clients may come with any
    number of different Startups."""

    __slots__ = ("__weakref__", "idle")

    def __init__(self) -> None:
        self.idle: list[Backend] = []
        """The one given back last is at the end, and is lent first."""


@dataclass(slots=True, eq=False)
class Waiter:
    """Somebody who needs a backend of `startup`. `is_over` once answered or withdrawn."""

    startup: Startup
    granted: Callable[[Backend], None]
    refused: Callable[[ProxyError], None]
    deadline_ns: int
    is_over: bool = False


class Pool:
    """See the module. `name` is engine, database, user."""

    def __init__(
        self,
        name: tuple[str, str, str],
        *,
        size_max: int,
        wait_timeout_s: float,
        open_one: Callable[[Startup], Awaitable[Backend]],
        reset_timeout_s: float = 10.0,
    ) -> None:
        self.name = name
        self.size_max = size_max
        self.wait_timeout_s = wait_timeout_s
        self._open_one = open_one
        self._reset_timeout_s = reset_timeout_s
        self._shelves: WeakValueDictionary[Startup, Shelf] = WeakValueDictionary()
        self._lent: set[Backend] = set()
        self._parked: set[Backend] = set()
        """Given back while a cancel request was under way."""
        self._opening = 0
        self._waiting: deque[Waiter] = deque()
        self._is_closed = False
        self._lost = self._on_lost  # one bound method for all backends

    # --- figures ---

    @property
    def idle(self) -> int:
        return sum(len(shelf.idle) for shelf in self._shelves.values())

    @property
    def in_use(self) -> int:
        return len(self._lent)

    @property
    def waiting(self) -> int:
        return sum(not waiter.is_over for waiter in self._waiting)

    @property
    def size(self) -> int:
        return self.idle + self.in_use + self._opening

    def demand(self) -> dict[Startup, int]:
        """Backends by Startup, lent and idle: what another engine's pool has to have ready."""
        wanted: dict[Startup, int] = {
            startup: len(shelf.idle) for startup, shelf in self._shelves.items() if shelf.idle
        }
        for backend in self._lent:
            wanted[backend.startup] = wanted.get(backend.startup, 0) + 1
        return wanted

    def process_ids(self) -> list[int]:
        """Process ids (connection ids) of all its backends."""
        return [b.facts.process_id for shelf in self._shelves.values() for b in shelf.idle] + [
            b.facts.process_id for b in self._lent
        ]

    # --- taking ---

    def shelf(self, startup: Startup) -> Shelf:
        """The idle backends of `startup`; the same object for whoever keeps it."""
        shelf = self._shelves.get(startup)
        if shelf is None:
            shelf = self._shelves[startup] = Shelf()
        return shelf

    def take_from(self, shelf: Shelf) -> Backend | None:
        """An idle backend of that shelf of this pool, or None."""
        while shelf.idle:
            backend = shelf.idle.pop()
            if backend.is_fresh:
                self._lent.add(backend)
                return backend
            backend.close()
        return None

    def request(self, waiter: Waiter) -> None:
        """Serve `waiter` now, when a backend is opened, or when one is given back."""
        if self._is_closed:
            waiter.is_over = True
            waiter.refused(EngineLost(f"engine {self.name[0]} serves no more"))
            return
        backend = self.take_from(self.shelf(waiter.startup))
        if backend is not None:
            waiter.is_over = True
            waiter.granted(backend)
            return
        self._waiting.append(waiter)
        self._open_for_waiters()

    def _open_for_waiters(self) -> None:
        """Open as many backends as there are waiters nobody opens one for, within the bound."""
        wanted = self.waiting - self._opening
        for waiter in list(self._waiting):
            if wanted <= 0:
                return
            if waiter.is_over:
                continue
            if self.size >= self.size_max and not self._evict(waiter.startup):
                return
            wanted -= 1
            self._opening += 1
            spawn(self._open(waiter.startup), name=f"open {'/'.join(self.name)}")

    def _evict(self, startup: Startup) -> bool:
        """Close an idle backend of another Startup to make room."""
        for other, shelf in self._shelves.items():
            if other != startup and shelf.idle:
                shelf.idle.pop(0).close(says_goodbye=True)
                return True
        return False

    async def _open(self, startup: Startup) -> None:
        try:
            backend = await self._open_one(startup)
        except ProxyError as error:
            self._opening -= 1
            self._refuse_one(startup, error)
            return
        except BaseException:
            self._opening -= 1
            raise
        self._opening -= 1
        self._lent.add(backend)
        self.give_back(backend)

    def _refuse_one(self, startup: Startup, error: ProxyError) -> None:
        for waiter in self._waiting:
            if not waiter.is_over and waiter.startup == startup:
                self._waiting.remove(waiter)
                waiter.is_over = True
                waiter.refused(error)
                return

    def expire(self, now_ns: int) -> None:
        """Refuse who has waited too long. Called a few times a second."""
        while self._waiting and (self._waiting[0].is_over or now_ns >= self._waiting[0].deadline_ns):
            waiter = self._waiting.popleft()
            if not waiter.is_over:
                waiter.is_over = True
                waiter.refused(
                    TooManyConnections(
                        f"no backend of pool {'/'.join(self.name)} became free within {self.wait_timeout_s:g} s",
                        hint=f"All {self.size_max} are in use; raise pool_size or lower the load.",
                    )
                )

    def withdraw_all(self) -> None:
        """Forget all waiters: their sessions are held and will ask again."""
        for waiter in self._waiting:
            waiter.is_over = True
        self._waiting.clear()

    def adopt(self, backend: Backend) -> None:
        """Count a backend that was opened outside, for a switch, as lent by this pool."""
        self._lent.add(backend)

    # --- giving back ---

    def give_back(self, backend: Backend) -> None:
        """A lent backend that is at a boundary and needs no reset."""
        self._lent.discard(backend)
        if self._is_closed or backend.is_lost:
            backend.close(says_goodbye=not backend.is_lost)
            self._open_for_waiters()
            return
        if backend.cancels:
            # A late cancel must not hit the next session's query.
            self._lent.add(backend)
            self._parked.add(backend)
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if waiter.is_over:
                continue
            if waiter.startup == backend.startup:
                self._lent.add(backend)
                waiter.is_over = True
                waiter.granted(backend)
                return
            # Of another Startup: it cannot serve this waiter, but its room can.
            self._waiting.appendleft(waiter)
            if self.size + 2 > self.size_max:
                backend.close(says_goodbye=True)
                self._open_for_waiters()
                return
            self._open_for_waiters()
            break
        self.shelve(backend)

    def shelve(self, backend: Backend) -> None:
        """Put an idle backend on its shelf."""
        backend.rest(self._lost, time.monotonic_ns())
        if backend.shelf is None:
            backend.shelf = self.shelf(backend.startup)
        backend.shelf.idle.append(backend)

    def lending(self, shelf: Shelf, ledger: Ledger) -> Lending:
        """The short way of a relay to this pool's `shelf`, for a session with `ledger`."""
        return Lending(shelf, self._lent, self._waiting, self._lost, ledger)

    async def give_back_used(self, backend: Backend) -> None:
        """A lent backend that holds a session's state: make it like new, or close it."""
        exchange = backend.wire.reset(backend.startup)
        try:
            await backend.run(exchange, self._reset_timeout_s)
        except EngineError:
            self.discard(backend)
            return
        if exchange.errors:
            self.discard(backend)
            return
        backend.notes.clear()
        self.give_back(backend)

    def cancel_done(self, backend: Backend) -> None:
        """A cancel request to `backend` has ended; if the backend was given back meanwhile, it is free now."""
        backend.cancels -= 1
        if backend.cancels == 0 and backend in self._parked:
            self._parked.remove(backend)
            self.give_back(backend)

    def discard(self, backend: Backend) -> None:
        """A lent backend that is not usable any more."""
        self._lent.discard(backend)
        backend.close()
        self._open_for_waiters()

    def _on_lost(self, backend: Backend) -> None:
        if backend.shelf is not None and backend in backend.shelf.idle:
            backend.shelf.idle.remove(backend)

    def close_idle(self, older_than_ns: int) -> None:
        """Close what has been idle since before `older_than_ns`."""
        for shelf in self._shelves.values():
            # The longest idle ones stand first: the last one given back is the first one lent.
            while shelf.idle and shelf.idle[0].idle_since_ns < older_than_ns:
                shelf.idle.pop(0).close(says_goodbye=True)

    def close(self) -> None:
        """The engine serves no more: idle backends are closed now, lent ones when they come back."""
        self._is_closed = True
        self.withdraw_all()
        for shelf in self._shelves.values():
            for backend in shelf.idle:
                backend.close(says_goodbye=True)
            shelf.idle.clear()
