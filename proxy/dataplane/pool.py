"""Backends of one (engine, database, user): idle ones, how many there may be, and who waits for one.

A shelf holds the idle backends of one Startup; only those fit a session without a change. Waiters are served in their
order. The pool never awaits on behalf of a session: it calls `granted` or `refused`, perhaps at once.

How many there may be is counted for the whole service (`seats`), so a waiter may find the pool full although this
worker has few: then the pool says so there, tries again at each `tick`, and workers (and pools) with idle backends that
stand in the way close one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final
from weakref import WeakValueDictionary

from protocols.wire import Exchange, Ledger, Startup
from proxy.dataplane.backend import Backend
from proxy.dataplane.relay import Lending
from proxy.dataplane.seats import Key, Seats
from proxy.errors import (
    ConnectFailed,
    EngineError,
    EngineLost,
    EngineRefused,
    PauseExpired,
    ProxyError,
    TooManyConnections,
)
from proxy.latency import Lengths
from proxy.tasks import spawn

STARTING_UP: Final = "57P03"
"""SQLSTATE of a server that starts, recovers or shuts down: who waits is told nothing yet."""

REDRESS_IDLE_S: Final = 0.01
"""A backend of another Startup is used, while there is room to open one, when it has been idle for so long: one that its
own sessions use all the time would only be taken to and fro."""

STARTING_RETRY_S: Final = 0.1
"""Pause between tries while it does."""

SUSPECT_PAUSE_NS: Final = 10_000_000
"""After a loss the idle backends are asked whether they live; a loss that follows so soon is part of the same, in
nanoseconds."""

SUSPECT_WAIT_NS: Final = 50_000_000
"""While they are asked no others are opened in their place, for so long, in nanoseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRules:
    """What the config says about the pools of one service; spans in seconds, 0 for never where that makes sense."""

    size: int = 200
    """Most backends of one pool in the whole service."""
    size_min: int = 0
    reserve_size: int = 0
    """More of them for waiters that have waited `reserve_after_s`."""
    reserve_after_s: float = 5.0
    wait_timeout_s: float = 10.0
    login_retry_s: float = 0.0
    """After a failed login nobody tries again for so long; waiters get the same error at once."""
    lifetime_s: float = 0.0
    idle_timeout_s: float = 0.0
    check_after_s: float = 0.0
    """An idle backend is asked whether it still answers when it was not for so long."""
    of_database: int = 0
    """Most backends of one (engine, database); 0: no limit."""
    of_user: int = 0
    """The same of one (engine, user)."""
    reset_query: str = ""
    """In place of DISCARD ALL."""


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
    since_ns: int = field(default_factory=time.monotonic_ns)
    is_over: bool = False


class Pool:
    """See the module. `name` is engine, database, user; `service` goes before it where counts are shared."""

    def __init__(
        self,
        name: tuple[str, str, str],
        *,
        rules: PoolRules,
        seats: Seats,
        open_one: Callable[[Startup], Awaitable[Backend]],
        service: str = "",
        redress: Callable[[Backend, Startup], Awaitable[None]] | None = None,
        check: Callable[[Backend], Exchange | None] | None = None,
        ping: Callable[[Backend], Exchange | None] | None = None,
        on_loss: Callable[[str], None] | None = None,
        reset_timeout_s: float = 10.0,
        waits: Lengths | None = None,
    ) -> None:
        """`redress` makes an idle backend of one Startup like a fresh one of another (raises EngineError); None where
        the protocol cannot. `check` gives what to ask an idle backend to see that it answers, now and then; `ping` the same
        after a loss. `on_loss` is told the engine of an idle backend that was lost. `waits` counts how long clients waited that
        were not served at once."""
        self.name = name
        self.rules = rules
        self._seats = seats
        self._open_one = open_one
        self._redress = redress
        self._check = check
        self._ping = ping
        self._on_loss = on_loss
        self._suspects: set[Backend] = set()
        """Idle ones that are being asked because another was lost."""
        self._suspected_ns = 0
        self._reset_timeout_s = reset_timeout_s
        self._waits = waits if waits is not None else Lengths()
        engine, database, user = name
        self.key: Key = ("pool", service, *name)
        self._keys: tuple[Key, Key] = (("database", service, engine, database), ("user", service, engine, user))
        self._shelves: WeakValueDictionary[Startup, Shelf] = WeakValueDictionary()
        self._lent: set[Backend] = set()
        self._parked: set[Backend] = set()
        """Given back while a cancel request was under way."""
        self._opening = 0
        self._busy: set[Backend] = set()
        """Idle ones that are being checked or made like another Startup's."""
        self._may_open = True
        self._stops = 0
        """Times opening was stopped: a backend whose login one of them met may have logged in under the fence."""
        self._waiting: deque[Waiter] = deque()
        self._published = 0
        """Waiters that the other workers were told of."""
        self._last_startup: Startup | None = None
        self._failure: ProxyError | None = None
        """Why the last login failed, if that is the engine's fault and no client's."""
        self._starting: ProxyError | None = None
        """The engine said that it is starting up."""
        self._pause_ns = 0
        """No login is tried before."""
        self._is_closed = False
        self._is_paused = False
        """An operator wants no backend to be here."""
        self._lost = self._on_lost  # one bound method for all backends
        self._give = self._give_seats

    # --- figures ---

    @property
    def idle(self) -> int:
        return sum(len(shelf.idle) for shelf in self._shelves.values())

    @property
    def in_use(self) -> int:
        return len(self._lent)

    @property
    def cancelling(self) -> int:
        """Of these, with a cancel request under way."""
        return sum(backend.cancels > 0 for backend in self._lent)

    @property
    def waiting(self) -> int:
        return sum(not waiter.is_over for waiter in self._waiting)

    @property
    def opening(self) -> int:
        """Being connected and logged in, or idle ones being given another Startup's settings."""
        return self._opening

    @property
    def checking(self) -> int:
        return len(self._busy)

    @property
    def size(self) -> int:
        """In this worker."""
        return self.idle + self.in_use + self._opening + len(self._busy)

    @property
    def retired(self) -> int:
        """Of these, the ones that will be closed when they are free."""
        return sum(backend.is_doubtful for backend in (*self._lent, *self._busy))

    def backends(self) -> Iterator[tuple[Backend, str]]:
        """Each, with what it does: `idle`, `active`, `tested`, `being_canceled`."""
        for shelf in list(self._shelves.values()):
            for backend in shelf.idle:
                yield backend, "idle"
        for backend in self._lent:
            yield backend, "being_canceled" if backend.cancels else "active"
        for backend in self._busy:
            yield backend, "tested"

    def is_unused(self, now_ns: int) -> bool:
        """Nothing would be lost with it."""
        keeps_some = bool(self.rules.size_min) and self._last_startup is not None
        return not (self.size or self._waiting or self._published or keeps_some or now_ns < self._pause_ns)

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
        backend = self.look_at(shelf)
        if backend is not None:
            shelf.idle.pop()
            self._lent.add(backend)
        return backend

    def look_at(self, shelf: Shelf) -> Backend | None:
        """The one that `take_from` would take; it stays where it is."""
        while shelf.idle:
            backend = shelf.idle[-1]
            if backend.is_fresh:
                return backend
            shelf.idle.pop().close()
        return None

    # --- seats ---

    def _take_seats(self) -> bool:
        """Room for one more backend under every limit; what is taken is given back by `on_closed`."""
        rules, seats = self.rules, self._seats
        bound = rules.size
        if rules.reserve_size and self._waiting and self._has_waited(rules.reserve_after_s):
            bound += rules.reserve_size
        if not seats.take(self.key, bound):
            return False
        for taken, (key, limit) in enumerate(zip(self._keys, (rules.of_database, rules.of_user), strict=True)):
            if not seats.take(key, limit):
                for earlier in (self.key, *self._keys[:taken]):
                    seats.give(earlier)
                return False
        return True

    def _has_waited(self, span_s: float) -> bool:
        waiter = next((waiter for waiter in self._waiting if not waiter.is_over), None)
        return waiter is not None and time.monotonic_ns() - waiter.since_ns >= span_s * 1e9

    def _give_seats(self) -> None:
        for key in (self.key, *self._keys):
            self._seats.give(key)

    def _count(self, backend: Backend) -> None:
        """A backend that was opened outside, for a switch: it is there, whatever the limits say."""
        if backend.on_closed is None:
            for key in (self.key, *self._keys):
                self._seats.take(key, 0)
            backend.on_closed = self._give

    def _publish(self) -> None:
        """Tell the others how many wait here for a seat."""
        waiting = max(0, self.waiting - self._opening)
        if waiting != self._published:
            for key in (self.key, *self._keys):
                self._seats.want(key, waiting - self._published)
            self._published = waiting

    def _stands_in_the_way(self) -> bool:
        """Somebody else waits for a seat that an idle backend of this pool takes."""
        rules, seats = self.rules, self._seats
        for key, limit in zip((self.key, *self._keys), (rules.size, rules.of_database, rules.of_user), strict=True):
            if limit and seats.wanted(key) > self._published and seats.taken(key) >= limit:
                return True
        return False

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
        if self._failure is not None and time.monotonic_ns() < self._pause_ns:
            waiter.is_over = True
            waiter.refused(self._failure)
            return
        self._waiting.append(waiter)
        self._open_for_waiters()

    def _ends(self, waiter: Waiter) -> None:
        """A wait in the queue is over, one way or the other."""
        waiter.is_over = True
        self._waits.note(time.monotonic_ns() - waiter.since_ns)

    def _open_for_waiters(self) -> bool:
        """Open as many backends as there are waiters nobody opens one for, within the bounds. True if all are seen
        to."""
        wanted = self.waiting - self._opening
        if self._suspects and time.monotonic_ns() - self._suspected_ns < SUSPECT_WAIT_NS:
            # They come back in a moment, or else this is asked again.
            wanted -= len(self._suspects)
        if wanted <= 0:
            return True
        if not self._may_open or self._is_paused:
            return False
        if self._pause_ns and time.monotonic_ns() < self._pause_ns:
            return False
        for waiter in list(self._waiting):
            if wanted <= 0:
                return True
            if waiter.is_over:
                continue
            if self._redress_for(waiter.startup, REDRESS_IDLE_S):
                wanted -= 1
                continue
            if not self._take_seats():
                if self._redress_for(waiter.startup, 0.0):
                    wanted -= 1
                    continue
                if not self._make_room(waiter.startup):
                    return False
            wanted -= 1
            self._opening += 1
            spawn(self._open(waiter.startup, self._stops), name=f"open {'/'.join(self.name)}")
        return True

    def _redress_for(self, startup: Startup, idle_s: float) -> bool:
        """Begin to make a backend of another Startup, that has been idle for `idle_s`, like one of this. Only settings can
        be exchanged: what else a client says at its login (MySQL: capabilities, character set) a backend keeps."""
        if self._redress is None:
            return False
        plain = replace(startup, parameters=())
        since_ns = time.monotonic_ns() - int(idle_s * 1e9)
        for other, shelf in list(self._shelves.items()):
            if other == startup or replace(other, parameters=()) != plain:
                continue
            # The longest idle one stands first.
            while shelf.idle and shelf.idle[0].idle_since_ns <= since_ns:
                backend = shelf.idle.pop(0)
                if not backend.is_fresh:
                    backend.close()
                    continue
                self._opening += 1
                self._busy.add(backend)
                spawn(self._redress_one(backend, startup), name=f"redress {'/'.join(self.name)}")
                return True
        return False

    def _make_room(self, startup: Startup) -> bool:
        """Close idle backends of other Startups until there is a seat."""
        for other, shelf in list(self._shelves.items()):
            while other != startup and shelf.idle:
                shelf.idle.pop(0).close(says_goodbye=True)
                if self._take_seats():
                    return True
        return False

    async def _redress_one(self, backend: Backend, startup: Startup) -> None:
        assert self._redress is not None
        try:
            await self._redress(backend, startup)
        except EngineError as error:
            self._opening -= 1
            self._busy.discard(backend)
            backend.close()
            if isinstance(error, EngineRefused):
                self._refuse_one(startup, error)
            self._open_for_waiters()
            return
        self._opening -= 1
        self._busy.discard(backend)
        self._lent.add(backend)
        self.give_back(backend)

    async def _open(self, startup: Startup, stops: int) -> None:
        """`stops` is what it was when this was decided on: opening may have been stopped before the first line of this."""
        try:
            backend = await self._open_one(startup)
        except ProxyError as error:
            self._opening -= 1
            self._give_seats()
            self._note_failure(startup, error)
            return
        except BaseException:
            self._opening -= 1
            self._give_seats()
            raise
        self._opening -= 1
        backend.on_closed = self._give
        self._failure = self._starting = None
        self._last_startup = startup
        if stops != self._stops:
            backend.close(says_goodbye=True)
            self._open_for_waiters()
            return
        self._lent.add(backend)
        self.give_back(backend)

    def _note_failure(self, startup: Startup, error: ProxyError) -> None:
        """A login failed. A server that is starting up is waited for; else one waiter is told, and while the engine
        as a whole refuses, so is who comes in the next `login_retry_s`."""
        now_ns = time.monotonic_ns()
        if error.sqlstate == STARTING_UP and isinstance(error, EngineRefused):
            self._starting, self._pause_ns = error, now_ns + int(STARTING_RETRY_S * 1e9)
            return
        if isinstance(error, ConnectFailed) or error.sqlstate.startswith("28") or error.sqlstate == "53300":
            self._failure, self._pause_ns = error, now_ns + int(self.rules.login_retry_s * 1e9)
        self._refuse_one(startup, error)

    def forgive(self) -> None:
        """Try again at once: a switch may have changed what is there."""
        self._failure, self._pause_ns = None, 0

    def _refuse_one(self, startup: Startup, error: ProxyError) -> None:
        for waiter in self._waiting:
            if not waiter.is_over and waiter.startup == startup:
                self._waiting.remove(waiter)
                self._ends(waiter)
                waiter.refused(error)
                return

    def tick(self, now_ns: int) -> None:
        """Refuse who has waited too long, try again for the others, and make room for who waits elsewhere. Called a few
        times a second."""
        while self._waiting and (self._waiting[0].is_over or now_ns >= self._waiting[0].deadline_ns):
            waiter = self._waiting.popleft()
            if not waiter.is_over:
                self._ends(waiter)
                waiter.refused(self._starting or self._full())
        if self._waiting:
            self._open_for_waiters()
        self._publish()
        if not self._waiting and self.idle and self._stands_in_the_way():
            self._close_one_idle()

    def _full(self) -> TooManyConnections | PauseExpired:
        rules, seats = self.rules, self._seats
        engine, database, user = self.name
        if self._is_paused:
            return PauseExpired(
                f'database "{database}" is paused, for longer than this client may wait ({rules.wait_timeout_s:g} s)',
                hint="Connect again when it is resumed.",
            )
        names = ("pool_size", "max_db_connections", "max_user_connections")
        bounds = (rules.size + rules.reserve_size, rules.of_database, rules.of_user)
        what = (f"pool {'/'.join(self.name)}", f"database {database} on {engine}", f"user {user} on {engine}")
        for key, name, bound, of in zip((self.key, *self._keys), names, bounds, what, strict=True):
            if bound and seats.taken(key) >= bound:
                return TooManyConnections(
                    f"no backend of pool {'/'.join(self.name)} became free within {rules.wait_timeout_s:g} s",
                    hint=f"All {bound} of {of} are in use; raise {name} or lower the load.",
                )
        return TooManyConnections(
            f"no backend of pool {'/'.join(self.name)} became free within {rules.wait_timeout_s:g} s",
            hint="Others were opened and taken meanwhile; raise pool_size or query_wait_timeout_s.",
        )

    def _close_one_idle(self) -> None:
        for shelf in self._shelves.values():
            if shelf.idle:
                shelf.idle.pop(0).close(says_goodbye=True)
                return

    def keep(self, now_ns: int) -> None:
        """House-keeping of idle backends, once a second: too old, idle for too long, not asked for long, too few."""
        rules = self.rules
        for shelf in list(self._shelves.values()):
            for backend in list(shelf.idle):
                if rules.lifetime_s and now_ns - backend.opened_ns > rules.lifetime_s * 1e9:
                    is_over = True
                else:
                    is_over = bool(rules.idle_timeout_s) and now_ns - backend.idle_since_ns > rules.idle_timeout_s * 1e9
                    if is_over and rules.size_min and self._seats.taken(self.key) <= rules.size_min:
                        is_over = False
                if is_over:
                    shelf.idle.remove(backend)
                    backend.close(says_goodbye=True)
                elif self._check is not None and self._is_unchecked(backend, now_ns):
                    self._begin_check(shelf, backend, self._check(backend))
        if (
            rules.size_min
            and self._last_startup is not None
            and not self._opening
            and not self._is_closed
            and not self._is_paused
            and now_ns >= self._pause_ns
            and self._seats.taken(self.key) < rules.size_min
            and self._take_seats()
        ):
            self._opening += 1
            spawn(self._open(self._last_startup, self._stops), name=f"fill {'/'.join(self.name)}")

    def _is_unchecked(self, backend: Backend, now_ns: int) -> bool:
        since = max(backend.idle_since_ns, backend.checked_ns)
        return self.rules.check_after_s > 0 and now_ns - since > self.rules.check_after_s * 1e9

    def suspect(self) -> None:
        """A backend of the same engine was lost, or nobody is let in there: when a server goes its connections end one after
        another. Those that are idle are lent again when they have said that they live."""
        now_ns = time.monotonic_ns()
        if self._ping is None or now_ns - self._suspected_ns < SUSPECT_PAUSE_NS:
            return
        self._suspected_ns = now_ns
        for shelf in list(self._shelves.values()):
            for backend in list(shelf.idle):
                self._suspects.add(backend)
                self._begin_check(shelf, backend, self._ping(backend))

    def _begin_check(self, shelf: Shelf, backend: Backend, exchange: Exchange | None) -> None:
        """Ask an idle backend whether it answers. Before a client wants it, not when: nobody waits for the answer."""
        if exchange is None:
            self._suspects.discard(backend)
            return
        shelf.idle.remove(backend)
        self._busy.add(backend)
        spawn(self._check_one(backend, exchange), name=f"check {'/'.join(self.name)}")

    async def _check_one(self, backend: Backend, exchange: Exchange) -> None:
        try:
            await backend.run(exchange, self._reset_timeout_s)
        except EngineError:
            # It is closed, and counted no more.
            self._end_check(backend)
            self._open_for_waiters()
            return
        self._end_check(backend)
        if exchange.errors:
            backend.close()
            self._open_for_waiters()
            return
        idle_since_ns, backend.checked_ns = backend.idle_since_ns, time.monotonic_ns()
        self._lent.add(backend)
        self.give_back(backend)
        backend.idle_since_ns = idle_since_ns

    def _end_check(self, backend: Backend) -> None:
        self._busy.discard(backend)
        self._suspects.discard(backend)

    def stop_opening(self) -> None:
        """Before a hold: open nothing, and throw away what is being opened. Who waits may still be lent another's."""
        self._may_open = False
        self._stops += 1

    def go_on(self) -> None:
        """After a switch, which may have changed why the last login failed."""
        self.forgive()
        self._may_open = True
        self._open_for_waiters()

    # --- standing still -----------------------------------------------------------------------------------------------

    def retire(self) -> None:
        """Its backends serve nobody else: idle ones are closed now, the others when they come back. New ones may be opened in
        their place."""
        self._stops += 1
        for shelf in self._shelves.values():
            for backend in shelf.idle:
                backend.close(says_goodbye=True)
            shelf.idle.clear()
        for backend in (*self._lent, *self._busy):
            backend.is_doubtful = True
        self._open_for_waiters()

    def pause(self) -> None:
        """The same, and nothing is opened or lent until `unpause`: who wants a backend waits."""
        self._is_paused = True
        self.retire()

    def unpause(self) -> None:
        self._is_paused = False
        self._open_for_waiters()

    @property
    def is_paused(self) -> bool:
        return self._is_paused

    def withdraw_all(self) -> None:
        """A hold: forget all waiters, whose sessions will ask again."""
        for waiter in self._waiting:
            waiter.is_over = True
        self._waiting.clear()

    def adopt(self, backend: Backend) -> None:
        """Count a backend that was opened outside, for a switch, as lent by this pool."""
        self._count(backend)
        self._lent.add(backend)

    # --- giving back ---

    def give_back(self, backend: Backend) -> None:
        """A lent backend that is at a boundary and needs no reset."""
        self._lent.discard(backend)
        if self._is_closed or self._is_paused or backend.is_lost or backend.is_doubtful:
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
                self._ends(waiter)
                waiter.granted(backend)
                return
            # Of another Startup: it cannot serve this waiter as it is, but it, or its room, can.
            self._waiting.appendleft(waiter)
            self.shelve(backend)
            self._open_for_waiters()
            return
        self.shelve(backend)

    def shelve(self, backend: Backend) -> None:
        """Put an idle backend on its shelf."""
        if self._is_paused:
            # A switch has prepared it; it is opened anew when it is wanted.
            backend.close(says_goodbye=True)
            return
        self._count(backend)
        backend.rest(self._lost, time.monotonic_ns())
        if backend.shelf is None:
            backend.shelf = self.shelf(backend.startup)
        backend.shelf.idle.append(backend)

    def lending(self, shelf: Shelf, ledger: Ledger) -> Lending:
        """The short way of a relay to this pool's `shelf`, for a session with `ledger`."""
        return Lending(shelf, self._lent, self._waiting, self._lost, ledger)

    async def give_back_used(self, backend: Backend) -> None:
        """A lent backend that holds a session's state: make it like new, or close it."""
        if self._is_paused or backend.is_doubtful:
            self.discard(backend, says_goodbye=True)
            return
        exchange = backend.wire.reset(backend.startup, backend.facts, self.rules.reset_query)
        try:
            await backend.run(exchange, self._reset_timeout_s)
        except EngineError:
            self.discard(backend)
            return
        if exchange.errors:
            self.discard(backend)
            return
        backend.notes.clear()
        backend.hide()
        if self._redress is not None:
            # Like one that was opened just now: without anybody's settings.
            backend.become(replace(backend.startup, parameters=()))
        self.give_back(backend)

    def cancel_done(self, backend: Backend) -> None:
        """A cancel request to `backend` has ended; if the backend was given back meanwhile, it is free now."""
        if backend.cancels == 0 and backend in self._parked:
            self._parked.remove(backend)
            self.give_back(backend)

    def discard(self, backend: Backend, *, says_goodbye: bool = False) -> None:
        """A lent backend that is not to be used any more."""
        self._lent.discard(backend)
        backend.close(says_goodbye=says_goodbye)
        self._open_for_waiters()

    def _on_lost(self, backend: Backend) -> None:
        if backend.shelf is not None and backend in backend.shelf.idle:
            backend.shelf.idle.remove(backend)
        if self._on_loss is not None:
            self._on_loss(self.name[0])

    def close(self) -> None:
        """The engine serves no more: idle backends are closed now, lent ones when they come back."""
        self._is_closed = True
        self.withdraw_all()
        self._publish()
        for shelf in self._shelves.values():
            for backend in shelf.idle:
                backend.close(says_goodbye=True)
            shelf.idle.clear()
