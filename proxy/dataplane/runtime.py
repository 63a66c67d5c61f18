"""One service as a worker serves it: who is active, under which epoch, its pools, its users, its sessions.

Decides which engine a new backend is opened on; nothing else in the data plane does.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakValueDictionary

from protocols.wire import BackendFacts, Credential, Exchange, Startup, Wire
from proxy import ipc
from proxy.config import ServiceConfig
from proxy.dataplane.backend import Backend, open_backend
from proxy.dataplane.census import Census
from proxy.dataplane.lookups import Lookups
from proxy.dataplane.pool import STARTING_UP, Pool, PoolRules, Shelf, Waiter
from proxy.dataplane.reach import Reach, reaches_of
from proxy.dataplane.registry import Registry, Standing
from proxy.dataplane.relay import Memo, Meter
from proxy.dataplane.seats import Seats
from proxy.dataplane.users import Users
from proxy.errors import ConnectFailed, EngineError, EngineRefused, HoldExpired, PauseExpired, ProxyError
from proxy.latency import Lengths

if TYPE_CHECKING:
    from proxy.dataplane.moving import Move
    from proxy.dataplane.routing import Router
    from proxy.dataplane.session import Session


REDRESS_TIMEOUT_S: Final = 10.0
"""Longest time a backend may take to change its settings."""

ACCESS_DENIED: Final = 1045
"""MySQL's ER_ACCESS_DENIED_ERROR: a wrong password."""

CLIENT_THOUSAND: Final = 2
"""MySQL's errors from 2000 to 2999 are made by clients of a server, never by a server."""

PARAMETERS_MAX: Final = 1024
"""Sets of ParameterStatus values that are kept to be shared."""

LOOKS_MAX: Final = 50
"""Sessions in a second whose backend is asked what it holds, so that the session could go on without it."""


LOSSES_MAX: Final = 1_000

TRACED_MAX: Final = 500
"""Requests of a service that are told of as part of traces, from one tick to the next."""

HALF_ID_MAX: Final = 2**64 - 1

HELD_BACK_S: Final = 0.05
"""How long sessions send nothing to an engine that one of them has lost, in seconds: PostgreSQL's processes end within some 20 ms
of one that crashed."""

LOSSES_KEPT_NS: Final = 120_000_000_000
"""Losses that are older have nothing to do with a failover of now."""


class Loss(NamedTuple):
    """A session was told that its backend was lost."""

    at_ns: int
    engine: str
    session: int
    user: str
    reason: str
    code: str


class Runtime:
    """See the module. `engine_lost` is told of engines that cannot be reached, at most once a second each."""

    def __init__(
        self,
        name: str,
        config: ServiceConfig,
        wire: Wire,
        active: str,
        epoch: int,
        engine_lost: Callable[[str, str, str], None],
        seats: Seats,
    ) -> None:
        self.name = name
        self.config = config
        self.wire = wire
        self.users = Users(name, config, self._find_user)
        self.lookups = Lookups(name, wire, self._open_for_lookups)
        self.active = active
        self.epoch = epoch
        self.registry = Registry()
        self.shown_ids: dict[int, int] = {}
        """Session mode: process ids of backends whose client was told another one, the first backend's, at its login;
        notifications name their sender by it."""
        self.meters: dict[tuple[str, str], Meter] = {}
        """What is counted, by engine and database, of those that a backend was opened in."""
        self.move: Move | None = None
        """The switch under way, if any."""
        self.last_move: Move | None = None
        """The switch that ended last: the first answers after it are its."""
        self.login_failures = 0
        self.error_classes: dict[str, int] = {}
        """Errors that clients were sent, by class of SQLSTATE; all its trackers count here."""
        self.waits: dict[str, Lengths] = {}
        """How long clients waited for a backend of each engine, where they were not given one at once."""
        self.census = Census(self.registry)
        self.traced: list[ipc.QuerySpan] = []
        """Requests that are part of traces, since the worker took them last."""
        self.untold = 0
        """How many there were besides, more than `TRACED_MAX`."""
        self.answered_ns = 0
        """Bytes of the active engine have come since then; looked for some times a second."""
        self._bytes_out = self._looked_ns = 0
        self.doubts: set[Session] = set()
        """Those whose COMMIT was in flight when their backend was lost, and whose client has not been told."""
        self.restoring = 0
        """Sessions that wait for another backend in the place of one that was lost."""
        self.losses: deque[Loss] = deque(maxlen=LOSSES_MAX)
        """Sessions that were told that their backend was lost."""
        self._held_back: list[Session] = []
        """See `hold_back`."""
        self._engine_lost = engine_lost
        self._seats = seats
        self._reaches = reaches_of(config)
        self._rules = rules_of(config)
        self._engine_lost_ns: dict[str, int] = {}
        self._pools: dict[tuple[str, str, str], Pool] = {}
        self._unused_pools: WeakValueDictionary[tuple[str, str, str], Pool] = WeakValueDictionary()
        """Sessions may still refer to one, and it is the one then that is used again. Clients may come with any number of
        names, and each makes a pool."""
        self._greetings: dict[str, BackendFacts] = {}
        self._parameters: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}
        self.placing: Callable[[], str | None] | None = None
        """While two engines serve: where the next client belongs, if not on the active one."""
        self._may_serve = asyncio.Event()
        self._may_serve.set()
        self._may_open = True
        self.standstill = ipc.Standstill()
        """What an operator has stopped; only `stand` changes it."""
        self._stood = asyncio.Event()
        """Set, and replaced, when that changes."""
        self.router = _router(config)
        """The rules about reads; None: there are none."""

    @property
    def slow_ns(self) -> int:
        """Requests that take as long are logged, in nanoseconds; 0: none."""
        return int(self.config.slow_query_ms * 1e6)

    @property
    def shares_backends(self) -> bool:
        """Transaction mode: a backend is lent for a transaction, not for a session."""
        return self.config.pool_mode == "transaction"

    def reconfigure(self, config: ServiceConfig) -> None:
        """A reload: settings and users change, sessions and pools stay."""
        # First, for it may fail: a file of a certificate may be another one now. Raises TlsProblem.
        self._reaches = reaches_of(config)
        self.config = config
        self.users.reconfigure(config)
        self.lookups.close()
        self._rules = rules_of(config)
        for pool in self._pools.values():
            pool.rules = self._rules
        for session in self.registry:
            if session.relay is not None:
                session.relay.memo = self.memo()

    # --- what the owner of a relay wants to be told of ---

    def memo(self) -> Memo | None:
        """For a relay of a session; None: nothing is to be told."""
        if not self.config.trace_ratio and not self.slow_ns:
            return None
        memo = Memo()
        memo.slow_ns = self.slow_ns
        # A trace is followed or not by its id, so that it is the same for all of its requests, here and elsewhere.
        memo.traced_up_to = min(int(self.config.trace_ratio * 2**64), HALF_ID_MAX)
        return memo

    def note_traced(
        self, session: Session, asked: bytes, parent: bytes, began_ns: int, ended_ns: int, errors: int
    ) -> None:
        """A request with a sampled traceparent was answered."""
        found = session.tracker.first_statement(asked) if session.tracker is not None else None
        if found is None or (found[1] and parent not in found[0]):
            # What looked like one stood in a value.
            return
        if len(self.traced) >= TRACED_MAX:
            self.untold += 1
            return
        self.traced.append(
            ipc.QuerySpan(
                service=self.name,
                engine=session.backend.engine if session.backend is not None else self.active,
                database=session.startup.database if session.startup is not None else "",
                session=session.id,
                parent=parent.decode("ascii"),
                text=found[0],
                is_whole=found[1],
                began_ns=began_ns,
                ended_ns=ended_ns,
                errors=errors,
            )
        )

    # --- hold ---

    @property
    def is_holding(self) -> bool:
        return not self._may_serve.is_set()

    def stop_opening(self) -> None:
        """No backend is opened for a session until `go_on`; those there are serve on."""
        self._may_open = False
        for pool in self._pools.values():
            pool.stop_opening()

    def hold(self) -> None:
        """No backend of this service is taken or opened for a session until `go_on`."""
        self.stop_opening()
        self._may_serve.clear()
        for pool in self._pools.values():
            pool.withdraw_all()

    def go_on(self) -> None:
        self._may_open = True
        self._may_serve.set()
        for pool in self._pools.values():
            pool.go_on()

    async def may_serve(self) -> None:
        """Wait until the service is not held. Raises HoldExpired after `hold_ms_max`."""
        try:
            async with asyncio.timeout(self.config.switch.hold_ms_max / 1000):
                await self._may_serve.wait()
        except TimeoutError as error:
            raise HoldExpired(
                f"a switch of service {self.name} takes longer than {self.config.switch.hold_ms_max} ms",
                hint="Connect again.",
            ) from error

    # --- standing still ---

    def stand(self, standstill: ipc.Standstill) -> None:
        """Stop what an operator wants stopped, and let the rest go on. In a pause the backends go as they become free: in
        session mode with their clients, in transaction mode with their transactions."""
        self.standstill = standstill
        for pool in self._pools.values():
            self._align(pool)
        self.lookups.close_in(standstill.pauses)
        stood, self._stood = self._stood, asyncio.Event()
        stood.set()

    def _align(self, pool: Pool) -> None:
        is_paused = self.standstill.pauses(pool.name[1])
        if is_paused and not pool.is_paused:
            pool.pause()
        elif pool.is_paused and not is_paused:
            pool.unpause()

    async def _may_reach(self, database: str) -> None:
        """Wait until this database is not paused. Raises PauseExpired."""
        try:
            async with asyncio.timeout(self.config.query_wait_timeout_s):
                while self.standstill.pauses(database):
                    await self._stood.wait()
        except TimeoutError as error:
            raise PauseExpired(
                f'database "{database}" is paused, for longer than this client may wait', hint="Connect again later."
            ) from error

    def retire(self, database: str | None) -> None:
        """Backends that are there now serve nobody else, see `Pool.retire`; None: in all databases."""
        for pool in self._pools.values():
            if database in (None, pool.name[1]):
                pool.retire()
        self.lookups.close_in(lambda name: database in (None, name))

    def count_backends(self, database: str | None) -> tuple[int, int]:
        """Those that are there, and those of them that will be closed when they are free."""
        if self.standstill.is_paused or self.standstill.paused:
            # Those that were asked something when the pause began.
            self.lookups.close_in(self.standstill.pauses)
        pools = [pool for pool in self._pools.values() if database in (None, pool.name[1])]
        asking = self.lookups.count_in(lambda name: database in (None, name))
        return sum(pool.size for pool in pools) + asking, sum(pool.retired for pool in pools)

    # --- engines ---

    def login_of(self, engine: str, startup: Startup) -> Startup:
        """What a backend for a client's `startup` is opened with."""
        return self._reaches[engine].own_of(startup)

    def opens_as_one(self, engine: str) -> bool:
        """One account opens the backends of all clients at `engine`: the engine cannot tell them apart."""
        return self._reaches[engine].login is not None

    def reach_of(self, backend: Backend) -> Reach:
        """How the server of a backend is reached: by the settings of now, for a reload may have brought another CA, or by
        those that opened it if its engine was removed since."""
        now = self._reaches.get(backend.engine)
        return now if now is not None and now.address == backend.reach.address else backend.reach

    def _credential_of(self, reach: Reach, own: Startup) -> Credential:
        """What opens a backend of `own` now; it may be another at the next."""
        if reach.login is not None:
            return reach.login.password.value if reach.login.password is not None else None
        return self.users.credential_of(own.user)

    async def open(self, engine: str, startup: Startup) -> Backend:
        """A fresh backend, in no pool. `startup` is the client's. Raises EngineError."""
        return await self.open_as(engine, self.login_of(engine, startup))

    async def open_beside(self, backend: Backend, startup: Startup) -> Backend:
        """The same on the server that has this one. Raises EngineError."""
        reach = self.reach_of(backend)
        return await self._open_own(reach, reach.own_of(startup))

    async def open_as(self, engine: str, own: Startup) -> Backend:
        """A fresh backend for a pool: `own` is what the pool's backends are opened with. Raises EngineError."""
        return await self._open_own(self._reaches[engine], own)

    async def _open_own(self, reach: Reach, own: Startup) -> Backend:
        plain = replace(own, parameters=()) if self.redresses else own
        try:
            backend = await self._open(reach, plain, self._credential_of(reach, own))
        except EngineRefused as error:
            is_proof = error.sqlstate == "28P01" or error.mysql_code == ACCESS_DENIED
            if is_proof and reach.login is None:
                self.users.refused(own.user)
            raise
        try:
            if plain is not own:
                await self.redress(backend, own)
        except BaseException:
            backend.close()
            raise
        backend.meter = self.meter_of(reach.engine, own.database)
        return backend

    async def _open(self, reach: Reach, startup: Startup, password: Credential) -> Backend:
        try:
            backend = await open_backend(self.wire, reach, startup, password, self.config.server_connect_timeout_s)
        except ConnectFailed as error:
            self.report_lost(reach.engine, error.text)
            raise
        backend.facts = replace(backend.facts, parameters=self._shared(backend.facts.parameters))
        self._greetings[reach.engine] = backend.facts
        return backend

    def _shared(self, parameters: Mapping[str, str]) -> Mapping[str, str]:
        """One mapping for all backends that said the same: less memory, and a tracker sees at a glance that an exchange
        of backends changes nothing for its client. What clients may choose (`application_name`) is in it."""
        if len(self._parameters) >= PARAMETERS_MAX:
            self._parameters.clear()
        return self._parameters.setdefault(tuple(sorted(parameters.items())), parameters)

    async def is_up(self, reach: Reach) -> bool:
        """The engine takes connections: what ended a backend was meant for that backend. Asked with our own account."""
        admin = self.config.admin
        password = admin.password.value if admin.password is not None else None
        database = admin.database or ("postgres" if self.wire.name == "postgresql" else "")
        try:
            backend = await self._open(reach, Startup(admin.user, database), password)
        except EngineRefused as error:
            return error.sqlstate != STARTING_UP and not self._is_by_another(error)
        except EngineError:
            return False
        backend.close(says_goodbye=True)
        return True

    def _is_by_another(self, error: EngineRefused) -> bool:
        """Said by who stands before a server that is gone: a connection exception, a number of MySQL's client library."""
        if self.wire.name == "postgresql":
            return error.sqlstate.startswith("08")
        return error.mysql_code // 1000 == CLIENT_THOUSAND

    @property
    def redresses(self) -> bool:
        """Backends are opened plain and given the settings of the session they are lent to."""
        return self.shares_backends and self.wire.redresses

    async def redress(self, backend: Backend, wanted: Startup) -> None:
        """Make an idle backend like a fresh one of `wanted`. Raises EngineError; EngineRefused if a setting is not to
        be had. The backend is of no use then."""
        if backend.startup == wanted:
            return
        exchange, refusal = self.wire.redress(backend.startup, wanted, backend.facts)
        await backend.run(exchange, REDRESS_TIMEOUT_S)
        refused = refusal()
        if refused is not None:
            raise EngineRefused(backend.engine, refused)
        backend.become(wanted)
        # What it said of its parameters is all known here, so that a tracker need not compare.
        told = {**backend.facts.parameters, **backend.notes.pop("parameters", {}), **exchange.parameters}
        backend.facts = replace(backend.facts, parameters=self._shared(told))

    def meter_of(self, engine: str, database: str) -> Meter:
        """What counts the requests that an engine answers in a database; asked for where a backend was opened, so that
        names which clients make up have none."""
        meter = self.meters.get((engine, database))
        if meter is None:
            meter = self.meters[engine, database] = Meter()
        return meter

    def meters_of(self, engine: str) -> list[Meter]:
        """Those of all its databases."""
        return [meter for (name, _), meter in self.meters.items() if name == engine]

    async def testify(self, since_ns: int, timeout_s: float) -> tuple[bool, str]:
        """Whether the active engine lives, as far as this worker can tell, and how it knows. Bytes that came since then say
        so; where there are none it is asked for a login."""
        reach = self._reaches[self.active]
        self._look_for_bytes(time.monotonic_ns())
        if self.answered_ns > since_ns:
            return True, "it answered clients meanwhile"
        try:
            async with asyncio.timeout(timeout_s):
                is_up = await self.is_up(reach)
        except TimeoutError:
            is_up = False
        self._look_for_bytes(time.monotonic_ns())
        if self.answered_ns > since_ns:
            return True, "it answered clients meanwhile"
        return is_up, "it lets us log in" if is_up else "it answers nobody and lets nobody in"

    def _look_for_bytes(self, now_ns: int) -> None:
        bytes_out = sum(meter.bytes_out for meter in self.meters_of(self.active))
        if bytes_out != self._bytes_out:
            # At some time since the last look.
            self._bytes_out, self.answered_ns = bytes_out, self._looked_ns
        self._looked_ns = now_ns

    def note_loss(self, engine: str, session: int, user: str, error: ProxyError) -> None:
        """A session was told of the loss of its backend."""
        code = error.sqlstate if self.wire.name == "postgresql" else str(error.mysql_code)
        self.losses.append(Loss(time.monotonic_ns(), engine, session, user, error.text, code))

    def take_losses(self, engine: str) -> list[Loss]:
        """What sessions were told of the loss of this engine just now; each is given out once."""
        since_ns = time.monotonic_ns() - LOSSES_KEPT_NS
        taken = [loss for loss in self.losses if loss.engine == engine and loss.at_ns > since_ns]
        self.losses.clear()
        return taken

    def suspect(self, engine: str) -> None:
        """One of its backends was lost, or it lets nobody in: its idle ones may be next. Not in a switch, which ends
        backends itself, and counts them."""
        if self.move is None or self.move.phase == "sharing":
            for pool in self.pools(engine):
                pool.suspect()

    def hold_back(self, engine: str) -> None:
        """Session mode: a session has lost its backend, and was not meant. When a server goes its connections end one after
        another, so the other sessions send nothing to that engine for a moment: what has been sent to a server that is
        about to end cannot be sent again."""
        if self.shares_backends or self.move is not None or self._held_back:
            return
        self._held_back = [one for one in self.registry.members(Standing.SERVING) if one.hold_back(engine)]
        if self._held_back:
            asyncio.get_running_loop().call_later(HELD_BACK_S, self._let_go_on)

    def _let_go_on(self) -> None:
        held_back, self._held_back = self._held_back, []
        for session in held_back:
            session.reopen()

    def report_lost(self, engine: str, why: str) -> None:
        """The data plane saw an engine fail: tell the supervisor, and be careful with what else comes from there."""
        now = time.monotonic_ns()
        if now - self._engine_lost_ns.get(engine, 0) > 1_000_000_000:
            self._engine_lost_ns[engine] = now
            self.suspect(engine)
            self._engine_lost(self.name, engine, why)

    def known_greeting(self) -> BackendFacts | None:
        """What the active engine said of itself last."""
        return self._greetings.get(self.active)

    async def greeting(self) -> BackendFacts | None:
        """What the active engine says of itself before a login (MySQL); None if it cannot be asked."""
        facts = self._greetings.get(self.active)
        if facts is None and self.wire.name == "mysql":
            admin = self.config.admin
            password = admin.password.value if admin.password is not None else None
            try:
                backend = await self._open(self._reaches[self.active], Startup(admin.user, admin.database), password)
            except EngineError:
                return None
            facts = backend.facts
            backend.close(says_goodbye=True)
        return facts

    # --- users ---

    async def _find_user(self, user: str, database: str) -> str | None:
        """Ask the active engine. Raises ProxyError."""
        await self.may_serve()
        await self._may_reach(database)
        auth = self.config.auth
        startup = Startup(auth.auth_user or self.config.admin.user, database, self.wire.inquiry_parameters)
        query = auth.auth_query if self.wire.name == "mysql" else auth.query
        return await self.lookups.secret_of(self.active, startup, query, user)

    async def _open_for_lookups(self, engine: str, startup: Startup) -> Backend:
        reach = self._reaches[engine]
        if self.config.auth.auth_user:
            return await self._open(reach, startup, self.users.known(startup.user))
        admin = self.config.admin.password
        return await self._open(reach, startup, admin.value if admin is not None else None)

    def proven(self, user: str, credential: Credential) -> None:
        """A client's login proved to be `user`; see `Users.won`."""
        if self.users.won(user, credential):
            # What was refused before may have been refused for want of this.
            for name, pool in self._pools.items():
                if name[2] == user:
                    pool.forgive()

    # --- pools ---

    def pool(self, engine: str, startup: Startup) -> Pool:
        """The pool on `engine` for a client's `startup`."""
        own = self.login_of(engine, startup)
        name = (engine, own.database, own.user)
        pool = self._pools.get(name)
        if pool is None and (pool := self._unused_pools.pop(name, None)) is not None:
            pool.rules = self._rules
            self._pools[name] = pool
            self._align(pool)
        if pool is None:

            async def open_one(wanted: Startup) -> Backend:
                return await self.open_as(engine, wanted)

            pool = self._pools[name] = Pool(
                name,
                rules=self._rules,
                seats=self._seats,
                open_one=open_one,
                service=self.name,
                waits=self.waits.setdefault(engine, Lengths()),
                redress=self.redress if self.redresses else None,
                check=self._check,
                ping=self._ping,
                on_loss=self.suspect,
            )
            if not self._may_open:
                pool.stop_opening()
            self._align(pool)
        return pool

    def pools(self, engine: str | None = None) -> list[Pool]:
        return [pool for name, pool in self._pools.items() if engine is None or name[0] == engine]

    def engine_of(self, session: Session) -> str:
        """Where a session's next backend is to be: on the active engine, but for some while two engines serve."""
        return session.placed_on or self.active

    def place(self) -> str | None:
        """Where a client that comes now belongs, if not on the active engine."""
        return self.placing() if self.placing is not None else None

    def request(
        self, engine: str, startup: Startup, granted: Callable[[Backend], None], refused: Callable[[ProxyError], None]
    ) -> Waiter:
        """Ask for a backend on an engine. Only while the service is not held."""
        assert not self.is_holding, "a held service lends nothing"
        own = self.login_of(engine, startup)
        deadline_ns = time.monotonic_ns() + int(self.config.query_wait_timeout_s * 1e9)
        waiter = Waiter(own, granted, refused, deadline_ns)
        self.pool(engine, startup).request(waiter)
        return waiter

    def take_idle(self, engine: str, startup: Startup) -> Backend | None:
        """An idle backend of an engine, at once and without a place in the queue; None: there is none, or the service is
        held."""
        found = self._idle_of(engine, startup)
        return None if found is None else found[0].take_from(found[1])

    def look_at_idle(self, engine: str, startup: Startup) -> Backend | None:
        """The same, but it stays idle: for what it said at its login."""
        found = self._idle_of(engine, startup)
        return None if found is None else found[0].look_at(found[1])

    def _idle_of(self, engine: str, startup: Startup) -> tuple[Pool, Shelf] | None:
        if self.is_holding:
            return None
        own = self.login_of(engine, startup)
        pool = self._pools.get((engine, own.database, own.user))
        return None if pool is None else (pool, pool.shelf(own))

    def give_back(self, backend: Backend) -> None:
        """Return a backend to its pool; one of an engine that is not active any more is closed there."""
        pool = self._pools.get((backend.engine, backend.startup.database, backend.startup.user))
        if pool is None:
            backend.close(says_goodbye=True)
        else:
            pool.give_back(backend)

    def pool_of(self, backend: Backend) -> Pool | None:
        return self._pools.get((backend.engine, backend.startup.database, backend.startup.user))

    def retarget(self, target: str, epoch: int) -> None:
        """The cutover, as far as this worker goes: from now on new work belongs to `target`."""
        assert epoch > self.epoch, "a cutover raises the epoch"
        self.active = target
        self.epoch = epoch

    def close_pools(self, engine: str) -> None:
        """Close the pools of an engine that serves no more."""
        for name in [name for name in self._pools if name[0] == engine]:
            self._pools.pop(name).close()
        for name in [name for name in self._unused_pools if name[0] == engine]:
            self._unused_pools.pop(name).close()
        self.lookups.close(engine)

    def _check(self, backend: Backend) -> Exchange | None:
        return self.wire.check(backend.startup, self.config.server_check_query)

    def _ping(self, backend: Backend) -> Exchange | None:
        return self.wire.check(backend.startup, "")

    def tick(self, now_ns: int) -> None:
        """Expire waits; called a few times a second."""
        for session in [one for one in self.doubts if one.is_in_doubt_since(now_ns, self.config.switch.hold_ms_max)]:
            session.resolve(None)
        self._look_for_bytes(now_ns)
        for pool in self._pools.values():
            pool.tick(now_ns)
        if self.move is not None:
            self.move.tick(now_ns)
        self.census.tick(now_ns)

    def keep(self, now_ns: int) -> None:
        """House-keeping that nobody waits for; called once a second. A switch keeps what it has prepared."""
        if self.move is not None and self.move.phase != "sharing":
            return
        served = {self.active} if self.move is None else {self.active, self.move.target}
        for name, pool in list(self._pools.items()):
            if name[0] in served or (self.router is not None and name[0] in self.router.engines):
                pool.keep(now_ns)
            if pool.is_unused(now_ns):
                self._unused_pools[name] = self._pools.pop(name)
        looks = LOOKS_MAX
        for session in self.registry.members(Standing.SERVING):
            if session.keep(now_ns, may_look=looks > 0):
                looks -= 1


def _router(config: ServiceConfig) -> Router | None:
    if not config.route:
        return None
    # Half a second and some 30 MB, for services with rules only.
    from proxy.dataplane.routing import Router

    return Router(config)


def rules_of(config: ServiceConfig) -> PoolRules:
    """What the config says about pools."""
    return PoolRules(
        size=config.pool_size,
        size_min=config.min_pool_size,
        reserve_size=config.reserve_pool_size,
        reserve_after_s=config.reserve_pool_timeout_s,
        wait_timeout_s=config.query_wait_timeout_s,
        login_retry_s=config.server_login_retry_s,
        lifetime_s=config.server_lifetime_s,
        idle_timeout_s=config.server_idle_timeout_s,
        check_after_s=config.server_check_delay_s if config.server_check_query else 0.0,
        of_database=config.max_db_connections,
        of_user=config.max_user_connections,
        reset_query=config.server_reset_query,
    )
