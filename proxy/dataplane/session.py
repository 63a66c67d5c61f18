"""One client connection's whole life in the proxy: login, work, moves, end.

After the login a session is no task: it is a relay and a handful of callbacks. Tasks exist only while something is
asked of a backend (an inspection, a replay) or a login waits for one.

Responsible for when a backend is wanted, given back, or kept. Refuses to know how bytes are judged (tracker), how a
switch goes (moving), or which engine is active (runtime).
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from protocols.codes import GATE_CLOSED, GATE_DRAIN, GATE_OPEN, LEDGER_TOUCHED
from protocols.errors import ProtocolViolation
from protocols.proxy_header import ProxyHeaderReader
from protocols.wire import (
    CLEAR,
    OWN_ID,
    BackendFacts,
    CancelRequested,
    Channel,
    ClientLogin,
    CredentialWanted,
    ErrorReply,
    Exchange,
    Grade,
    IdsWanted,
    KillWanted,
    Ledger,
    LoginFact,
    LoginProven,
    LoginRefused,
    Meant,
    PackingName,
    Startup,
    TlsWanted,
    Tracker,
    Wire,
)
from proxy.dataplane.backend import Backend
from proxy.dataplane.console import Console
from proxy.dataplane.kills import NobodyHasIt
from proxy.dataplane.pool import Waiter
from proxy.dataplane.registry import Standing
from proxy.dataplane.relay import Link, Owner, Relay
from proxy.dataplane.tls import accept_tls
from proxy.errors import (
    ConnectFailed,
    EngineError,
    EngineLost,
    HoldExpired,
    IdleInTransaction,
    IdleTooLong,
    NotEntering,
    OutcomeUnknown,
    ProxyError,
    TlsRequired,
    TransactionLost,
    UnknownDatabase,
)
from proxy.packing import Packing
from proxy.tasks import spawn
from proxy.tls import NO_LISTENER_TLS, ListenerTls

if TYPE_CHECKING:
    from proxy.dataplane.moving import Move
    from proxy.dataplane.pool import Pool, Shelf
    from proxy.dataplane.routing import Router
    from proxy.dataplane.runtime import Runtime
    from proxy.dataplane.users import Users
    from proxy.worker import Worker

_log = structlog.get_logger("turnout.session")

EXCHANGE_TIMEOUT_S: Final = 10.0
"""Longest time a backend may take to answer an inspection, a replay or a reset."""

INSPECTIONS_MAX: Final = 3
"""Questions in a row to find out what a session holds; what is dirty after them is asked again at the next boundary."""

LOOK_AFTER_S: Final = 0.5
"""How long a session has to be idle before its backend is asked for what may have changed."""

UNASKED_PAUSE_S: Final = 0.001
"""Between looks whether the server has ended what it says unasked."""

LAST_WORDS_S: Final = 0.2
"""How long the end of a connection may take that a server has announced, in seconds."""

RESTORE_PAUSE_S: Final = 0.1
"""Between tries to get another backend for a session that has lost its own."""

READER_WAIT_NS: Final = 500_000_000
"""Longest wait of a read for a backend of the engine that the rules name, in nanoseconds; then the engine that serves does
it."""

FAREWELL_TIMEOUT_S: Final = 10.0
"""Longest time a client may take to read the last error."""


_ENDED_BY_PEER: Final = frozenset({"", os.strerror(errno.ECONNRESET)})
"""How a server ends a connection itself (MariaDB resets one that was idle for too long); other losses are the network's."""


class Doubt(NamedTuple):
    """A COMMIT that was in flight when the backend was lost, of a client that waits to hear what became of it."""

    transaction: str
    since_ns: int
    engine: str
    why: str


class Session(Owner):
    """See the module. The relay's owner; every `on_…` is called by the relay."""

    __slots__ = (
        "_application",
        "_aside",
        "_asks_soon",
        "_doubt",
        "_idle_mark",
        "_is_asking",
        "_is_finding_out",
        "_is_reading",
        "_is_restoring",
        "_judged",
        "_login",
        "_looks_soon",
        "_pool",
        "_pool_epoch",
        "_shelf",
        "_waiter",
        "_wrote_ns",
        "cancel_key",
        "client",
        "console",
        "dress",
        "has_seat",
        "id",
        "is_killed",
        "ledger",
        "link",
        "move_notes",
        "must_restore",
        "opened_ns",
        "packings",
        "placed_on",
        "relay",
        "runtime",
        "standing",
        "startup",
        "tls",
        "tracker",
        "wire",
        "worker",
    )

    def __init__(
        self,
        worker: Worker,
        wire: Wire,
        number: int,
        link: Link,
        client: str,
        tls: ListenerTls = NO_LISTENER_TLS,
        packings: Sequence[PackingName] = (),
    ) -> None:
        self.worker = worker
        self.wire = wire
        self.id = number
        self.link = link
        self.tls = tls
        """What its port offers."""
        self.packings = packings
        """What its port lets MySQL's clients compress by."""
        self.client = client
        """address:port of the client."""
        self.opened_ns = time.monotonic_ns()
        self.standing = Standing.ENDED
        """Ended until the registry knows it: a login in progress is in no index."""
        self.runtime: Runtime | None = None
        self.startup: Startup | None = None
        """As the client logged in."""
        self.dress: Startup | None = None
        """What its backends have to be like: `startup`, but in transaction mode with the settings it has now."""
        self.backend = None
        self.relay: Relay | None = None
        self.tracker: Tracker | None = None
        self.ledger: Ledger | None = None
        self.cancel_key: tuple[int, bytes] | None = None
        self.console: Console | None = None
        """It has come for the admin console, and has no backend, ever."""
        self.move_notes: object | None = None
        """What a switch under way keeps with this session; only `moving` touches it."""
        self._login: ClientLogin | None = None
        self.has_seat = False
        """Counted as a client of the service; only the worker touches it."""
        self._idle_mark = (-1, 0)
        """Requests answered, and when that was first seen with the client idle in a transaction."""
        self.must_restore = False
        """It has lost its backend: the next one has to be made like it."""
        self._is_restoring = False
        self._looks_soon = False
        """Its backend is asked what it holds at the next boundary: the client is never idle."""
        self._doubt: Doubt | None = None
        self._judged: Backend | None = None
        """Its backend, while its engine is asked who was meant by its end."""
        self._waiter: Waiter | None = None
        self._is_asking = False
        self._asks_soon = False
        self._is_finding_out = False
        """What its client asks for waits at the gate until others have told what they know: a KILL, ids of connections."""
        self.is_killed = False
        """Somebody has it killed: it ends with its backend."""
        self.placed_on: str | None = None
        """The engine it belongs on while two serve; None: the active one. See `place`."""
        # Transaction mode: where this session's backends come from, looked up once an epoch.
        self._pool: Pool | None = None
        self._pool_epoch = -1
        self._shelf: Shelf | None = None
        # Services with rules about reads: when it last ended something that may have written, and whether what it does
        # now surely only reads.
        self._wrote_ns = 0
        self._is_reading = False
        self._application = ""
        """What its client called itself at the login."""
        self._aside: Backend | None = None
        """It was read from and has warnings, which the next statement may ask for."""

    @property
    def connection_id(self) -> int:
        """What a MySQL client is told as its own, and names in a KILL."""
        return OWN_ID | self.id & (OWN_ID - 1)

    @property
    def has_ended(self) -> bool:
        """Ended, or not in the registry yet. A property, so that it is read anew after every wait."""
        return self.standing is Standing.ENDED

    @property
    def is_draining(self) -> bool:
        return self.standing is Standing.DRAINING

    def __repr__(self) -> str:
        service = self.runtime.name if self.runtime is not None else "-"
        return f"<session {self.id} {service} {self.client} {self.standing}>"

    # --- login ---

    def await_header(self, then: Callable[[bytes], None]) -> None:
        """The client is a load balancer, which says first for whom it speaks. `then` is told what came behind that."""
        reader = ProxyHeaderReader()

        def received(data: bytes) -> None:
            if not data:
                self._end("client left before it had said who it is")
                return
            try:
                header = reader.receive(data)
            except ProtocolViolation as error:
                self._end(f"PROXY protocol: {error.text}")
                return
            if header is not None:
                self.client = header.source or self.client
                then(reader.take_unread())

        self.link.sink = received

    def begin(self, method: str, greeting: BackendFacts | None, databases: Sequence[str], unread: bytes = b"") -> None:
        """Start the login. MySQL greets first, hence `greeting`. `unread`: what the client has sent already."""
        if method == "hba":
            # Which method it is, the rules say once the client has told who it is.
            method = "scram-sha-256"
        self._login = self.wire.client_login(
            method=method,
            facts=greeting,
            connection_id=self.connection_id,
            databases=databases,
            offers_tls=self.tls.context is not None,
            packings=self.packings,
        )
        self.link.sink = self._login_received
        self.link.is_quiet = True
        self.link.send(self._login.take_output())
        if unread:
            self._login_received(unread)

    def login_expired(self) -> None:
        """It has been a stranger for longer than `client_login_timeout_s`."""
        self._end("login took too long")

    def _login_received(self, data: bytes) -> None:
        login = self._login
        if login is None:
            return
        if not data:
            self._end("client left during login")
            return
        try:
            facts = login.receive(data)
            self._login_facts(login, facts)
        except ProtocolViolation as error:
            self.link.send(login.take_output())
            self._end(f"login: {error.text}")
        except Exception as error:  # noqa: BLE001  as in `_guard`: a bug in one login ends that one
            self.on_failure(error)

    def _login_facts(self, login: ClientLogin, facts: Sequence[LoginFact]) -> None:
        for fact in facts:
            if isinstance(fact, CredentialWanted):
                self._look_up(login, fact)
                return
            if isinstance(fact, LoginProven):
                # What the login has to say of the proof goes out with its end, or before a wait.
                if self.console is not None:
                    self._enter_console(self.console, login, fact.startup)
                    return
                assert self.runtime is not None, "the credential look-up has set it"
                self.runtime.proven(fact.startup.user, fact.credential)
                self._proven(fact.startup)
                return
            if isinstance(fact, TlsWanted):
                self.link.send(login.take_output())
                accept_tls(self.link, self.tls, fact, self._tls_ended)
                return
            if isinstance(fact, CancelRequested):
                spawn(self._guard(self._cancel(fact)), name=f"cancel request {self.id}")
                return
            if isinstance(fact, LoginRefused):
                self.link.send(login.take_output())
                self._count_failure()
                self._end(fact.text)
                return
        self.link.send(login.take_output())

    def _tls_ended(self, why: str) -> None:
        if why:
            self._end(f"no TLS: {why}")

    async def _cancel(self, wanted: CancelRequested) -> None:
        """Pass a CancelRequest on. Nothing is ever answered; the client's connection ends when the engine has taken the
        request, so that a client that waits for it knows that its next query is safe."""
        self._login = None
        self.link.sink = self._left_before_cancelled
        await self.worker.cancel(wanted.process_id, wanted.secret)
        self._end("")

    def _left_before_cancelled(self, data: bytes) -> None:
        if not data:
            self._end("")

    def _count_failure(self) -> None:
        if self.runtime is not None:
            self.runtime.login_failures += 1

    def _look_up(self, login: ClientLogin, wanted: CredentialWanted) -> None:
        if self.tls.is_required and not self.link.is_encrypted:
            self.refuse_login(
                TlsRequired(
                    "this port takes no client without TLS",
                    hint=f"Connect with {'--ssl-mode=REQUIRED' if self.wire.name == 'mysql' else 'sslmode=require'} or above.",
                )
            )
            return
        desk = self.worker.console
        if desk.is_meant(self.wire.name, wanted.database) and desk.users is not None and not wanted.is_replication:
            self.console = Console(desk, self)
            self._look_up_in(desk.users, login, wanted)
            return
        runtime = self.worker.service_of(self.wire.name, wanted.database)
        if runtime is None and wanted.is_replication:
            runtime = self.worker.only_service_of(self.wire.name)
        if runtime is None:
            self.refuse_login(
                UnknownDatabase(
                    f'database "{wanted.database}" does not exist',
                    hint="No service of this proxy serves it; see `databases` in its config.",
                )
            )
            return
        self.runtime = runtime
        if wanted.database in runtime.standstill.disabled:
            # In PgBouncer's words.
            self.refuse_login(
                NotEntering(f'database "{wanted.database}" is disabled', hint="ENABLE at the console lets clients in.")
            )
            return
        full = self.worker.seat(self)
        if full is not None:
            self.refuse_login(full)
            return
        self._look_up_in(runtime.users, login, wanted)

    def _look_up_in(self, users: Users, login: ClientLogin, wanted: CredentialWanted) -> None:
        """Go on with the login by the rules and the secrets of a service, or of the console."""
        link = self.link
        channel = CLEAR
        if link.is_encrypted:
            channel = Channel(is_encrypted=True, binding=link.channel_binding, certificate=link.peer_certificate)
        try:
            method = users.method_for(wanted, self.client.rpartition(":")[0], channel)
        except ProxyError as error:
            self.refuse_login(error)
            return
        if method == "trust" or (method == "cert" and users.is_open):
            # Who they are is not asked, or has been proven by the connection, and nobody keeps a list.
            self._login_facts(login, login.give_credential("", method=method, channel=channel))
            return
        secret = users.known(wanted.user)
        if secret is None and users.needs_asking(wanted.user):
            # What else the client sends has to wait in its socket.
            link.pause()
            spawn(self._guard(self._ask_for(login, wanted, method, channel)), name=f"session {self.id} is looked up")
            return
        self._login_facts(login, login.give_credential(secret, method=method, channel=channel))

    def _enter_console(self, console: Console, login: ClientLogin, startup: Startup) -> None:
        """From here on its words are for the supervisor."""
        self.cancel_key = self._draw_cancel_key(login.secret_bytes, 0)
        accepted = console.proven(login, startup)
        if accepted is None:
            return
        self.startup = startup
        self.worker.strangers.pop(self.id, None)
        self.worker.sessions_by_key[self.cancel_key] = self
        self._login = None
        self.link.is_quiet = False
        self.link.sink = console.received
        self.link.send(accepted)
        if unread := login.take_unread():
            console.received(unread)

    async def _ask_for(self, login: ClientLogin, wanted: CredentialWanted, method: str, channel: Channel) -> None:
        """Go on with the login once the engine has told who the user is."""
        assert self.runtime is not None
        try:
            secret = await self.runtime.users.find(wanted)
        except ProxyError as error:
            if self._login is login:
                self.refuse_login(error)
            return
        if self._login is not login:
            # The client left, or its time was over.
            return
        self.link.resume()
        self._login_facts(login, login.give_credential(secret, method=method, channel=channel))

    def refuse_unserved(self) -> None:
        """No service speaks this protocol."""
        self.begin("trust", None, ())
        self.refuse_login(UnknownDatabase("no service of this proxy speaks this protocol"))

    def refuse_login(self, error: ProxyError) -> None:
        """End a login with an error."""
        self._count_failure()
        if self._login is not None:
            self.link.send(self._login.refuse(error.reply()))
        self._end(error.text)

    def _proven(self, startup: Startup) -> None:
        runtime = self.runtime
        assert runtime is not None, "the credential look-up has set it"
        able = self.wire.client_startup(
            startup, shares_backends=runtime.shares_backends, ignored=runtime.config.ignore_startup_parameters
        )
        if isinstance(able, ErrorReply):
            self._count_failure()
            if self._login is not None:
                self.link.send(self._login.refuse(able))
            self._end(able.message)
            return
        self.startup = self.dress = able
        if runtime.router is not None:
            self._application = dict(startup.parameters).get("program_name", "")
        self.worker.strangers.pop(self.id, None)
        if self.standing is Standing.ENDED:
            runtime.registry.add(self)
        if not able.is_replication:
            self.placed_on = runtime.place()
        engine = runtime.engine_of(self)
        backend = runtime.take_idle(engine, able) if self._keeps_backend else runtime.look_at_idle(engine, able)
        if backend is not None:
            self._hear_rest(self._welcome(backend))
            return
        assert self._login is not None
        self.link.send(self._login.take_output())
        self.link.pause()
        spawn(self._guard(self._arrive()), name=f"session {self.id} arrives")

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """A bug in a session's task ends that session, which nobody would go on with."""
        try:
            await work
        except Exception as error:  # noqa: BLE001  told to the client and logged with its traceback
            self.on_failure(error)

    async def _arrive(self) -> None:
        """Wait for the first backend. A client that comes during a switch waits here."""
        assert self.runtime is not None
        try:
            try:
                backend = await self._take_backend()
            except ProxyError:
                if self.placed_on is None:
                    raise
                # The other engine of two that serve.
                self.place(None)
                backend = await self._take_backend()
        except ProxyError as error:
            self.refuse_login(error)
            return
        if self.standing is not Standing.ARRIVING:
            self.runtime.give_back(backend)
            return
        unread = self._welcome(backend)
        if not self._keeps_backend:
            self.runtime.give_back(backend)
        self.link.resume()
        self._hear_rest(unread)

    @property
    def _keeps_backend(self) -> bool:
        """Its login ends with a backend of its own. Else one is only looked at, for what it said at its own login."""
        assert self.runtime is not None
        assert self.startup is not None
        return not self.runtime.shares_backends or self.startup.is_replication

    def _welcome(self, backend: Backend) -> bytes:
        """End the login: the session begins, with `backend` as its first if it keeps one. Returns what its client has sent
        behind the login."""
        runtime, startup, login = self.runtime, self.startup, self._login
        assert runtime is not None
        assert startup is not None
        assert login is not None
        if backend.startup == startup:
            # One object for all that share backends, or for session and backend; clients come with a copy each.
            self.startup = self.dress = startup = backend.startup
        shares = runtime.shares_backends
        self.ledger = self.wire.ledger(backend.reach.own_of(startup), shares_backends=shares)
        self.tracker = self.wire.tracker(
            self.ledger, shares_backends=shares, statements_max=runtime.config.max_prepared_statements
        )
        self.tracker.shown_ids = runtime.shown_ids
        self.tracker.error_classes = runtime.error_classes
        self.tracker.resolves_commits = runtime.config.failover.commit_outcome == "resolve"
        self.cancel_key = self._draw_cancel_key(login.secret_bytes, 0 if shares else backend.facts.process_id)
        self.worker.sessions_by_key[self.cancel_key] = self
        accepted = login.accept(backend.facts.shown_as(*self.cancel_key))
        unread = login.take_unread()
        self._login = None
        self.link.send(accepted)
        if login.packing is not None:
            # From here on; what came behind the login is compressed already.
            self.tracker.is_client_packed = True
            self.link.start_packing(Packing(login.packing.algorithm, login.packing.level, is_to_server=False), unread)
            unread = b""
        meter = backend.meter or runtime.meter_of(backend.engine, startup.database)
        self.relay = Relay(self, self.link, self.tracker, meter)
        self.relay.notifies = shares
        self.relay.memo = runtime.memo()
        self.relay.is_routed = runtime.router is not None and shares and not startup.is_replication
        if self._keeps_backend:
            self._lend(backend)
            if self.has_ended:
                # What the backend had said unasked broke the protocol.
                return b""
            runtime.registry.move(self, Standing.SERVING)
            self.relay.set_gate(GATE_OPEN)
        else:
            self.link.send(self.tracker.link(backend.facts, backend.notes))
            self.tracker.unlink()
            self.tracker.gate = GATE_CLOSED
            runtime.registry.move(self, Standing.SERVING)
        return unread

    def _hear_rest(self, unread: bytes) -> None:
        """What came behind the login. Last of all: a COM_CHANGE_USER in it begins the next one at once, or is none and ends
        the session."""
        if unread and self.relay is not None:
            self.relay.feed_client(unread)

    def _draw_cancel_key(self, size: int, process_id: int) -> tuple[int, bytes]:
        """What this client's cancel requests will show: a process id, drawn if 0 is given, and `size` random bytes.
        Nobody else's: another client's backend may have had the same process id, on another engine or before a move."""
        while True:
            drawn = secrets.token_bytes(4 + size)
            key = (process_id or int.from_bytes(drawn[:4], "big") % (2**31 - 1) + 1, drawn[4:])
            if key not in self.worker.sessions_by_key:
                return key

    async def _take_backend(self) -> Backend:
        """A backend of the engine that is active when it is handed over."""
        runtime, startup = self.runtime, self.dress
        assert runtime is not None
        assert startup is not None
        while True:
            await runtime.may_serve()
            taken: asyncio.Future[Backend] = asyncio.get_running_loop().create_future()

            def granted(backend: Backend, taken: asyncio.Future[Backend] = taken) -> None:
                if taken.done():
                    runtime.give_back(backend)
                else:
                    taken.set_result(backend)

            def refused(error: ProxyError, taken: asyncio.Future[Backend] = taken) -> None:
                if not taken.done():
                    taken.set_exception(error)

            waiter = runtime.request(runtime.engine_of(self), startup, granted, refused)
            while not taken.done():
                # A hold withdraws all waiters; this one asks again after the release, which may be over by now.
                await asyncio.wait([taken], timeout=0.05)
                if (runtime.is_holding or waiter.is_over) and not taken.done():
                    waiter.is_over = True
                    taken.cancel()
            if taken.cancelled():
                continue
            backend = taken.result()
            if runtime.is_holding or backend.engine != runtime.engine_of(self):
                runtime.give_back(backend)
                continue
            return backend

    # --- backends ---

    def _lend(self, backend: Backend) -> None:
        """Attach `backend`; what it said while idle goes to the client first."""
        assert self.relay is not None
        assert self.tracker is not None
        self.backend = backend
        backend.on_lost = None
        unread = backend.take_unread() if backend.has_unread else b""
        if not self._shares_backend:
            self._show(backend)
        told = self.tracker.link(backend.facts, backend.notes)
        self.relay.attach(backend.link)
        if backend.meter is not None:
            self.relay.meter = meter = backend.meter
            meter.assignments += 1
            if self.relay.waiting_since_ns:
                meter.wait_ns += time.monotonic_ns() - self.relay.waiting_since_ns
        if told:
            self.link.send(told)
        if unread:
            self.relay.feed_server(unread)

    def take_away(self) -> Backend | None:
        """Detach the backend at a boundary and hand it to the caller. The gate closes."""
        assert self.relay is not None
        assert self.tracker is not None
        backend, self.backend = self.backend, None
        if backend is None:
            return None
        self.tracker.gate = GATE_CLOSED
        self.tracker.unlink()
        self.relay.detach()
        backend.listen()
        if self.runtime is not None and self.runtime.shares_backends:
            # It may have been this session's own for a while.
            backend.hide()
        return backend

    @property
    def _shares_backend(self) -> bool:
        """Its backend is another's with the next transaction."""
        return (
            self.runtime is not None
            and self.runtime.shares_backends
            and self.ledger is not None
            and self.ledger.is_empty
        )

    def _show(self, backend: Backend) -> None:
        """`backend` is this session's own, and its client calls it by the process id of its login."""
        if self.cancel_key is not None and self.runtime is not None:
            backend.show_as(self.cancel_key[0], self.runtime.shown_ids)

    def drop_lost_backend(self) -> None:
        """The backend is gone and nothing was under way on it."""
        backend = self.take_away()
        if backend is not None:
            self._forget(backend)

    def place(self, engine: str | None) -> None:
        """From its next backend on it belongs on `engine`; None: on the active one."""
        if engine == self.placed_on:
            return
        self.placed_on = engine
        self._pool = None
        if self.relay is not None:
            self.relay.lending = None

    def give(self, backend: Backend) -> None:
        """Attach another backend at a boundary; the gate stays as it is (moving opens it)."""
        assert self.backend is None, "one backend at a time"
        self.must_restore = False
        if self.runtime is not None and self.runtime.redresses and self.dress is not None:
            # It was made like the one before: the settings are on it, too, when nothing ties the session to it any more.
            backend.become(replace(backend.startup, parameters=self.dress.parameters))
        self._lend(backend)

    def _return_backend(self) -> None:
        """At a boundary in transaction mode: the backend is free for others."""
        backend = self.take_away()
        if backend is None:
            return
        if self._pool is not None and backend.engine == self._pool.name[0]:
            self._pool.give_back(backend)
        else:
            assert self.runtime is not None
            self.runtime.give_back(backend)

    def want_backend(self) -> None:
        """The client has work and there is no backend."""
        runtime, startup = self.runtime, self.dress
        assert runtime is not None
        assert startup is not None
        if runtime.is_holding and runtime.move is not None and self.standing is Standing.SERVING:
            runtime.move.hold_late(self)
            return
        if runtime.is_holding or (self._waiter is not None and not self._waiter.is_over):
            return
        if runtime.router is not None and self._read_elsewhere(runtime.router):
            return
        self._want_active()

    def _want_active(self) -> None:
        """A backend of the engine that serves."""
        runtime, startup = self.runtime, self.dress
        assert runtime is not None
        assert startup is not None
        if self._pool is None or self._pool_epoch != runtime.epoch:
            engine = runtime.engine_of(self)
            self._pool = runtime.pool(engine, startup)
            self._shelf = self._pool.shelf(runtime.login_of(engine, startup))
            self._pool_epoch = runtime.epoch
        assert self._shelf is not None
        assert self.relay is not None
        assert self.ledger is not None
        if self.relay.lending is None and not self.relay.is_routed:
            self.relay.lending = self._pool.lending(self._shelf, self.ledger)
        backend = self._pool.take_from(self._shelf)
        if backend is not None:
            self._granted(backend)
        else:
            self._waiter = runtime.request(self._pool.name[0], startup, self._granted, self._refused)

    def _read_elsewhere(self, router: Router) -> bool:
        """Send what waits at the gate to another engine, if the rules say so. False: it is for the engine that serves."""
        runtime, startup, relay, tracker = self.runtime, self.dress, self.relay, self.tracker
        assert runtime is not None
        assert startup is not None
        assert relay is not None
        assert tracker is not None
        text = self.wire.lone_statement(relay.peek_work(), tracker)
        now_ns = time.monotonic_ns()
        aside = self._take_aside()
        if aside is not None:
            if text is not None and self.wire.asks_for_warnings(text) and not aside.is_lost:
                self._is_reading = True
                self._granted_to_read(aside)
                return True
            runtime.give_back(aside)
        self._is_reading = text is not None and (not text or router.is_read(text, now_ns))
        if not text or not self._is_reading:
            return False
        active = runtime.engine_of(self)
        engine = router.choose(text, startup, self._application, active, self._wrote_ns, now_ns)
        if engine is None:
            return False
        pool = runtime.pool(engine, startup)
        backend = pool.take_from(pool.shelf(runtime.login_of(engine, startup)))
        if backend is not None:
            self._granted_to_read(backend)
            return True
        deadline_ns = now_ns + READER_WAIT_NS
        waiter = Waiter(
            runtime.login_of(engine, startup), self._granted_to_read, self._not_granted_to_read, deadline_ns
        )
        self._waiter = waiter
        pool.request(waiter)
        return True

    def _granted_to_read(self, backend: Backend) -> None:
        """A backend for the one statement that waits."""
        runtime, relay = self.runtime, self.relay
        assert runtime is not None
        is_late = (
            self.standing is not Standing.SERVING or runtime.is_holding or backend.engine == runtime.engine_of(self)
        )
        if is_late or self.backend is not None or relay is None:
            runtime.give_back(backend)
            if self.standing is Standing.SERVING and self.backend is None:
                self.want_backend()
            return
        assert runtime.router is not None
        runtime.router.routed += 1
        self._lend(backend)
        if not self.has_ended:
            self._pass_one()

    def _take_aside(self) -> Backend | None:
        aside, self._aside = self._aside, None
        return aside

    def _not_granted_to_read(self, error: ProxyError) -> None:
        """That engine has no room, or is away: the one that serves does it."""
        _log.debug("a read goes to the engine that serves", session=self.id, why=error.text)
        if self.standing is Standing.SERVING and self.backend is None and self.runtime is not None:
            if self.runtime.is_holding:
                self.want_backend()
            else:
                self._want_active()

    def _granted(self, backend: Backend) -> None:
        if self.standing is Standing.ENDED or self.backend is not None or self.standing is Standing.HELD:
            assert self.runtime is not None
            self.runtime.give_back(backend)
            return
        assert self.relay is not None
        self._lend(backend)
        if self.has_ended:
            return
        if self.standing is Standing.DRAINING:
            self._is_reading = False
            self.relay.set_gate(GATE_DRAIN)
        elif self._is_reading:
            self._pass_one()
        else:
            self.relay.set_gate(GATE_OPEN)

    def _pass_one(self) -> None:
        """Send the one statement that waits. Whatever the client sends behind it waits for the next decision."""
        relay, backend = self.relay, self.backend
        assert relay is not None
        relay.set_gate(GATE_OPEN)
        if self.backend is backend and not self.has_ended:
            relay.tracker.gate = GATE_CLOSED

    def _refused(self, error: ProxyError) -> None:
        if self.standing is Standing.ENDED:
            return
        if isinstance(error, ConnectFailed | EngineLost):
            # The engine is away: like a session that has lost its backend, this one waits a while for its return.
            self.restore()
        else:
            self.end_with(error)

    # --- asking the backend ---

    @property
    def is_asking(self) -> bool:
        """An exchange of the proxy's own is under way on the session's backend, or about to begin."""
        return self._is_asking or self._asks_soon

    def ask_soon(self, work: Callable[[], Awaitable[None]], *, name: str) -> asyncio.Task[None]:
        """Begin `work`, which asks the backend in its first step. The session counts as asking from now on: what happens
        before that step must neither open the gate nor take the backend's state for known."""

        async def begin() -> None:
            self._asks_soon = False
            await work()

        self._asks_soon = True
        return spawn(begin(), name=name)

    async def ask(self, exchange: Exchange) -> None:
        """Run `exchange` on the session's own backend, at a boundary. The gate is closed meanwhile and stays closed.

        Raises EngineLost; the session is over then.
        """
        relay, backend = self.relay, self.backend
        assert relay is not None
        assert backend is not None
        assert not self._is_asking
        self._is_asking = True
        relay.tracker.gate = GATE_CLOSED
        try:
            await self._hear_out(relay, backend)
            relay.detach()
            await backend.run(exchange, EXCHANGE_TIMEOUT_S)
        finally:
            self._is_asking = False
            if self.standing is not Standing.ENDED and not backend.is_lost:
                relay.tracker.disturbed()
                relay.attach(backend.link)
                if exchange.unasked:
                    relay.feed_server(exchange.unasked)
            elif self.standing is Standing.ENDED:
                # `_let_backend_go` left it to us.
                self._forget(backend)

    async def _hear_out(self, relay: Relay, backend: Backend) -> None:
        """Since the boundary the server may have begun to say something unasked. Raises EngineLost if it does not come to
        an end of it."""
        deadline = time.monotonic() + EXCHANGE_TIMEOUT_S
        while not relay.at_boundary():
            if time.monotonic() > deadline:
                backend.close()
            if self.has_ended or self.backend is not backend or backend.is_lost:
                raise EngineLost(f"engine {backend.engine} did not end what it said unasked")
            await asyncio.sleep(UNASKED_PAUSE_S)

    async def inspect(self) -> None:
        """Ask the session's backend what it holds until the ledger knows; see `ask`.

        One answer may name things whose values have to be asked for in the next.
        """
        assert self.ledger is not None
        for _ in range(INSPECTIONS_MAX):
            if self.backend is None:
                # Lost since; whoever holds the session gives it another one.
                return
            await self.ask(self.ledger.inspection())
            if self.tracker is not None:
                self.tracker.ledger_news = LEDGER_TOUCHED
            if not self.ledger.is_dirty or self.has_ended:
                break
        self._note_dress()

    def _leave_reader(self) -> bool:
        """A read has left something on a backend that the session only reads from. Warnings: the backend is put aside, for
        the client may ask for them. Else a rule calls a function harmless that is not: nobody can go on from there, and the
        session ends. False: it is not so, and the session keeps its backend."""
        runtime, ledger, backend = self.runtime, self.ledger, self.backend
        if runtime is None or ledger is None or backend is None or runtime.router is None:
            return False
        if backend.engine == runtime.engine_of(self):
            return False
        if ledger.has_warnings and not (ledger.pins or ledger.bound or ledger.is_dirty):
            self._aside = self.take_away()
            if self.standing is Standing.SERVING:
                self._serve_rest()
            elif self.standing is Standing.DRAINING:
                self.tell_move()
            return True
        if self.standing is not Standing.SERVING:
            return False
        held = ", ".join([*ledger.pins, *ledger.bound, *ledger.ties]) or "settings"
        self.end_with(
            EngineLost(
                f"a statement that was read from engine {backend.engine} has left something there: {held}",
                hint="It calls a function that does not only read; see `functions` in the rules.",
            )
        )
        return True

    def hold_back(self, engine: str) -> bool:
        """Send nothing to `engine` until `reopen`, if that does not cut anything. True if it is so."""
        relay, backend = self.relay, self.backend
        if relay is None or backend is None or backend.engine != engine or self.is_asking or self._is_finding_out:
            return False
        if not relay.at_boundary():
            return False
        relay.set_gate(GATE_CLOSED)
        return True

    def reopen(self) -> None:
        """After `ask`, or `hold_back`: the gate as the standing wants it."""
        if self.relay is None or self.is_asking or self._is_finding_out:
            return
        if self.standing is Standing.SERVING and self.backend is not None:
            self.relay.set_gate(GATE_OPEN)
        elif self.standing is Standing.DRAINING:
            self.relay.set_gate(GATE_DRAIN)

    async def _settle_later(self) -> None:
        """Transaction mode: the statement may have changed the session; ask before the backend is lent to others."""
        ledger = self.ledger
        assert ledger is not None
        # Between the boundary and this task's first step it may have ended, lost its backend, or come to a second boundary,
        # behind something the server said unasked.
        if self.has_ended or self._is_asking:
            return
        if self.backend is None:
            if self.standing is Standing.DRAINING:
                self.tell_move()
            return
        try:
            await self.inspect()
        except EngineError as error:
            if not self.has_ended and self.backend is not None:
                self.lose_backend(error.text)
            return
        if self.has_ended:
            return
        if ledger.is_empty:
            self._return_backend()
            if self.standing is Standing.SERVING:
                self._serve_rest()
        elif not self._leave_reader():
            if self.backend is not None:
                self._show(self.backend)
            self.reopen()
        if self.standing is Standing.DRAINING:
            self.tell_move()

    def _note_dress(self) -> None:
        """Transaction mode: the backend was asked what settings it has; the session's next one has to have them, too."""
        runtime, ledger, backend, startup = self.runtime, self.ledger, self.backend, self.startup
        assert runtime is not None
        assert ledger is not None
        assert startup is not None
        if not runtime.redresses or backend is None:
            return
        backend.become(replace(backend.startup, parameters=ledger.worn))
        if self.dress is None or self.dress.parameters != ledger.wanted:
            self.dress = replace(startup, parameters=ledger.wanted)
            self._pool = None
            if self.relay is not None:
                self.relay.lending = None

    def _serve_rest(self) -> None:
        assert self.relay is not None
        if self.relay.has_work:
            self.want_backend()

    def tell_move(self) -> None:
        """To the switch under way: this session may be at a boundary."""
        move = self.move
        if move is not None and self.relay is not None and (self.backend is None or self.relay.at_boundary()):
            move.reached(self)

    @property
    def move(self) -> Move | None:
        return self.runtime.move if self.runtime is not None else None

    def keep(self, now_ns: int, *, may_look: bool) -> bool:
        """Looked at once a second: end what is idle for longer than the config allows. An idle session whose ledger is
        not up to date has its backend asked (if `may_look`), so that it can go on should that backend be lost. True if
        it was."""
        runtime, relay, tracker, ledger = self.runtime, self.relay, self.tracker, self.ledger
        if runtime is None or relay is None or tracker is None or ledger is None or self.has_ended:
            return False
        config = runtime.config
        if self.is_asking:
            return False
        is_busy = not tracker.is_idle() or relay.has_work or now_ns - relay.last_request_ns <= LOOK_AFTER_S * 1e9
        if is_busy and ledger.is_dirty and may_look and not runtime.shares_backends:
            # Should its backend be lost now, it could not be given another one.
            self._looks_soon = relay.notifies = True
            return True
        if not tracker.is_idle() or relay.has_work:
            return False
        if tracker.at_boundary():
            if (
                ledger.is_dirty
                and may_look
                and self.backend is not None
                and tracker.asks_quietly()
                and relay.at_boundary()
                and now_ns - relay.last_request_ns > LOOK_AFTER_S * 1e9
            ):
                relay.set_gate(GATE_CLOSED)
                self.ask_soon(lambda: self._guard(self._look()), name=f"look at session {self.id}")
                return True
            if config.client_idle_timeout_s and now_ns - relay.last_request_ns > config.client_idle_timeout_s * 1e9:
                self.end_with(IdleTooLong("terminating connection due to client_idle_timeout_s of the proxy"))
            else:
                self.end_if_idle(now_ns)
        elif config.idle_transaction_timeout_s:
            if self._idle_mark[0] != tracker.requests or relay.last_request_ns > self._idle_mark[1]:
                self._idle_mark = (tracker.requests, now_ns)
            elif now_ns - self._idle_mark[1] > config.idle_transaction_timeout_s * 1e9:
                text = "terminating connection due to idle_transaction_timeout_s of the proxy"
                self.end_with(IdleInTransaction(text))
        return False

    def end_if_idle(self, now_ns: int) -> bool:
        """End it if its own `wait_timeout` or `idle_session_timeout` is over. That is the server's to do, but a backend
        which the session was given while idle counts anew, and in transaction mode none is its own. True if it has
        ended."""
        relay, backend, ledger = self.relay, self.backend, self.ledger
        if relay is None or ledger is None or self._is_asking or relay.has_work:
            return False
        if self._keeps_backend if backend is None else backend.opened_ns < relay.last_request_ns:
            return False
        limit_s = ledger.idle_limit_s
        if not limit_s or not relay.at_boundary() or now_ns - relay.last_request_ns < limit_s * 1e9:
            return False
        why = "terminating connection due to the session's own idle timeout"
        if self.wire.name == "mysql":
            # Without a word, as MariaDB does it: clients expect none.
            self._end(why)
        else:
            self.end_with(IdleTooLong(why))
        return True

    async def _look(self) -> None:
        try:
            await self.inspect()
        except EngineError as error:
            if not self.has_ended:
                self.lose_backend(error.text)
            return
        if not self.has_ended:
            self.reopen()
            if self.standing is Standing.DRAINING:
                self.tell_move()

    # --- the relay's callbacks ---

    def on_gate(self) -> None:
        tracker = self.tracker
        kill = tracker.wants_kill() if tracker is not None else None
        ids = tracker.wants_ids() if tracker is not None else None
        if (kill is not None or ids is not None) and self.backend is not None:
            if not self._is_finding_out:
                self._is_finding_out = True
                if kill is not None:
                    spawn(self._guard(self._kill(kill)), name=f"kill for session {self.id}")
                elif ids is not None:
                    spawn(self._guard(self._find_ids(ids)), name=f"ids for session {self.id}")
        elif self.backend is None and not self._is_asking and self.standing is Standing.SERVING:
            if self.must_restore:
                self.restore()
            else:
                self.want_backend()

    async def _kill(self, wanted: KillWanted) -> None:
        """Its client wants a connection killed and waits at the gate; see `kills`."""
        tracker = self.tracker
        try:
            refused = await self.worker.kills.kill(self, wanted)
            answer: bytes | None = self.wire.answer_to_kill(refused)
        except NobodyHasIt:
            answer = None
        finally:
            self._is_finding_out = False
        if self.has_ended or tracker is None or self.tracker is not tracker:
            return
        tracker.answer_kill(answer)
        if tracker.has_invented:
            self.link.send(tracker.take_invented())
        if self.backend is None:
            self.on_gate()
            return
        self.reopen()
        if self.is_killed and answer is not None:
            self.end_killed()
        elif self.standing is not Standing.HELD and self.relay is not None and self.relay.at_boundary():
            # Nothing came from a server that would tell of the boundary.
            self.on_boundary()

    async def _find_ids(self, wanted: IdsWanted) -> None:
        """Its client asks for ids of connections and waits at the gate; see `connection_ids`."""
        tracker = self.tracker
        assert tracker is not None
        ids: dict[int, int] = {}
        try:
            if self.backend is not None:
                ids = await self.worker.connection_ids.of(self, wanted)
        finally:
            self._is_finding_out = False
        if self.has_ended or self.tracker is not tracker:
            return
        tracker.answer_ids(ids)
        if self.backend is None:
            self.on_gate()
        else:
            self.reopen()

    def end_killed(self) -> None:
        """Somebody had it killed, and may."""
        self._end("killed")

    def on_boundary(self) -> None:
        runtime, ledger, relay = self.runtime, self.ledger, self.relay
        assert runtime is not None
        assert ledger is not None
        assert relay is not None
        was_reading, self._is_reading = self._is_reading, False
        if runtime.router is not None and not was_reading:
            # Whatever was not surely a read has written. Later than its commit, so that no read is too early.
            self._wrote_ns = time.monotonic_ns()
        if runtime.shares_backends:
            if ledger.is_dirty and not ledger.has_warnings:
                # In this very step: the client may send its next statement before anything else runs.
                relay.set_gate(GATE_CLOSED)
                self.ask_soon(lambda: self._guard(self._settle_later()), name=f"session {self.id} settles")
                return
            if ledger.is_empty:
                self._return_backend()
                if self.standing is Standing.SERVING:
                    self._serve_rest()
            elif self._leave_reader():
                return
            elif was_reading:
                # `_pass_one` has closed the gate behind a read that left warnings on the engine that serves.
                self.reopen()
        if self.standing is Standing.DRAINING:
            self.tell_move()
        elif runtime.move is not None and self.standing is Standing.SERVING:
            runtime.move.paused(self)
        elif self._looks_soon and self.standing is Standing.SERVING:
            self._look_now(ledger, relay)

    def _look_now(self, ledger: Ledger, relay: Relay) -> None:
        """At a boundary of a client that is never idle."""
        assert self.tracker is not None
        if ledger.is_dirty and (self.backend is None or self.is_asking or not self.tracker.asks_quietly()):
            return
        self._looks_soon = relay.notifies = False
        if ledger.is_dirty:
            # In this very step: the client may send its next statement before anything else runs.
            relay.set_gate(GATE_CLOSED)
            self.ask_soon(lambda: self._guard(self._look()), name=f"look at session {self.id}")

    def on_fetched(self) -> None:
        assert self.tracker is not None
        message = self.tracker.take_change_user()
        if message:
            self._change_user(message)
        elif self.tracker.wants_kill() is not None:
            self.on_gate()

    def _change_user(self, message: bytes) -> None:
        """COM_CHANGE_USER: a second login on the same socket. The old backend goes, the session arrives anew."""
        runtime = self.runtime
        assert runtime is not None
        startup = self.startup
        assert self.relay is not None
        assert startup is not None
        self._let_backend_go()
        self.relay.settle()
        self.relay.close()
        self.relay = None
        self.tracker = self.ledger = self.startup = self._pool = None
        if self.cancel_key is not None:
            self.worker.sessions_by_key.pop(self.cancel_key, None)
            self.cancel_key = None
        runtime.registry.move(self, Standing.ARRIVING)
        if runtime.move is not None:
            runtime.move.ended(self)
        self._login = self.wire.change_user_login(
            message,
            startup=startup,
            method=runtime.config.auth.method,
            facts=runtime.known_greeting(),
            connection_id=self.connection_id,
            databases=runtime.config.databases,
        )
        self.link.sink = self._login_received
        try:
            self._login_facts(self._login, self._login.receive(b""))
        except ProtocolViolation as error:
            self._end(f"change of user: {error.text}")

    def on_client_end(self) -> None:
        self._end("")

    def on_client_left(self) -> None:
        self._end("")

    def on_server_end(self) -> None:
        """The backend is gone, or has said that it goes.

        What its client sees is what tells a proxy from a server, so it depends on who was meant:
        - this session: an operator called pg_terminate_backend (57P01) or KILL (in MySQL 1927, or no word at all), or the
          server ended it for a reason it told (a timeout, an error of class FATAL). The client gets the server's own words
          and the end, as it would there;
        - the whole server: it was shut down (57P01, 1927 …), crashed (57P02, or no word at all), or the network broke.
          The client keeps its connection, see `lose_backend`. Where one thing says both, the engine itself tells, by
          whether it takes new connections;
        - nobody: a switch ended it. The session goes on.
        """
        relay, backend, runtime, tracker = self.relay, self.backend, self.runtime, self.tracker
        assert relay is not None
        assert backend is not None
        assert runtime is not None
        assert tracker is not None
        words = tracker.take_last_words()
        if self.is_killed:
            self.end_killed()
            return
        if self.standing in (Standing.HELD, Standing.DRAINING) and relay.at_boundary():
            # Nothing was under way: the switch gives this session another backend in any case.
            self.drop_lost_backend()
            if self.standing is Standing.DRAINING:
                self.tell_move()
            return
        if relay.ended_with_error and not words:
            # The server said why (25P03, 57P05, 1053 …); the client has it and is not told twice.
            self._end(f"engine {backend.engine} ended the session")
            return
        if self._shares_backend and (relay.at_boundary() or relay.may_take_back(backend.link)):
            # Whoever ended it did not mean the one that has just had it, or was to have it next.
            self.lose_backend(backend.link.lost or "it closed the connection")
            return
        is_moving = runtime.move is not None and runtime.move.may_end_backends
        if not is_moving and backend.link.lost in _ENDED_BY_PEER:
            meant = self.wire.meant_by(words)
            if meant is Meant.SESSION:
                self.link.send(words)
                self._end(f"engine {backend.engine} ended the session")
                return
            if meant is Meant.EITHER:
                self._is_asking = True
                self._judged = backend
                tracker.gate = GATE_CLOSED
                relay.detach()
                # The gate keeps back what begins; the rest of a message that has begun waits in the socket.
                self.link.pause()
                spawn(self._guard(self._ask_who_was_meant(backend, words)), name=f"end of {self.id}")
                return
        self.lose_backend(backend.link.lost or ("the server is going down" if words else "it closed the connection"))

    async def _ask_who_was_meant(self, backend: Backend, words: bytes) -> None:
        assert self.runtime is not None
        is_up = await self.runtime.is_up(self.runtime.reach_of(backend))
        is_own = not self._shares_backend or not await self._turns_out_untaken(backend)
        if self._judged is not backend:
            # Its engine was given up meanwhile.
            return
        self._judged = None
        self._is_asking = False
        if self.has_ended or self.backend is not backend:
            self._forget(backend)
        elif is_up and is_own:
            # Nobody has heard its end since it was detached: it must not be given back.
            self.backend = None
            self._forget(backend)
            self.link.send(words)
            self._end(f"engine {backend.engine} ended the session")
        else:
            self.link.resume()
            self.lose_backend("the server is going down" if not is_up else "it closed the connection")

    async def _turns_out_untaken(self, backend: Backend) -> bool:
        """The server's last words came to a session that was just lent its backend, and perhaps the end that follows them
        tells that they were said before it had anything of that session's."""
        assert self.relay is not None
        deadline = time.monotonic() + LAST_WORDS_S
        while not backend.link.peek_end():
            if time.monotonic() > deadline or self.has_ended or self._judged is not backend:
                return False
            await asyncio.sleep(UNASKED_PAUSE_S)
        return self.relay is not None and self.relay.may_take_back(backend.link)

    def abandon(self, why: str) -> None:
        """Its engine has failed, by the supervisor's word: its backend is lost, whatever is heard from it later."""
        backend = self.backend
        if self.has_ended or backend is None:
            return
        if self._judged is not None:
            self._judged = None
            self._is_asking = False
            self.link.resume()
            self.lose_backend(why)
        elif self._is_asking:
            # Who asks goes on with `lose_backend`.
            backend.give_up()
        else:
            self.lose_backend(why)

    def _tell_loss(self, engine: str, error: ProxyError) -> None:
        if self.runtime is not None:
            self.runtime.note_loss(engine, self.id, self.startup.user if self.startup is not None else "", error)

    def lose_backend(self, why: str) -> None:
        """The backend is gone and the session was not meant: it goes on with another one.

        At a boundary nobody is told anything, nor of a request that surely did not reach the server: it is sent to the next
        one. Any other request in flight may have been executed and is never sent again: its client gets one error. In a transaction that is over then, too, and the client has to roll it back. What another
        backend cannot be given (a temp table, an advisory lock, or state nobody has asked for yet) ends the session, as
        the loss of a server would.
        """
        relay, backend, runtime, ledger = self.relay, self.backend, self.runtime, self.ledger
        assert relay is not None
        assert backend is not None
        assert runtime is not None
        assert ledger is not None
        engine = backend.engine
        self._is_reading = False
        runtime.suspect(engine)
        runtime.hold_back(engine)
        runtime.report_lost(engine, why)
        if self.placed_on == engine:
            self.place(None)
        text = f"the connection to the database server was lost: {why}"
        # Only a switch can carry these two, from a backend that lives.
        lost = ledger.bound
        if ledger.pins or lost or ledger.is_dirty:
            what = ", ".join([*ledger.pins, *lost]) or "settings made just now"
            gone = EngineLost(f"{text}; the session held what cannot be restored ({what})")
            self._tell_loss(engine, gone)
            self.end_with(gone)
            return
        if relay.at_boundary() or relay.take_back(backend.link):
            # Nothing was under way, or it comes again: the server surely has nothing of it.
            self.drop_lost_backend()
        elif not relay.is_untaken(backend.link) and (transaction := relay.tracker.commit_in_doubt()):
            self._doubt_commit(backend, Doubt(transaction, time.monotonic_ns(), engine, why))
            return
        elif not self.cut_rollback():
            error = self._lose_work(backend, text)
            if error is None:
                gone = EngineLost(text)
                self._tell_loss(engine, gone)
                self.end_with(gone)
                return
            self._tell_loss(engine, error)
        self.go_on_without(engine, why)

    @property
    def _is_replaceable(self) -> bool:
        """Its backend may be given up, and another one can be given what it holds."""
        ledger = self.ledger
        if self.backend is None or ledger is None or self._is_asking:
            return False
        return not (ledger.pins or ledger.bound or ledger.is_dirty)

    def cut_rollback(self) -> bool:
        """A ROLLBACK may be all that is under way: to lose the backend does what it asks for, and its client is told that it is
        done. The caller goes on with `go_on_without`. False: it is not, or the session has to end."""
        assert self.relay is not None
        if not self._is_replaceable or not (answer := self.relay.tracker.rolled_back_answer()):
            return False
        self.link.send(answer)
        self.drop_lost_backend()
        return True

    def _lose_work(self, backend: Backend, text: str) -> EngineError | None:
        """Tell the client what became of what is under way on a backend that it has no more. None: in the midst of an
        answer, or of a message, there is no way to tell."""
        relay = self.relay
        assert relay is not None
        aborted = TransactionLost(f"{text}; the transaction was rolled back", hint="Roll back and try again.")
        unknown: EngineError = OutcomeUnknown(
            f"{text}; whether what it worked on was committed is not known", hint="Look before you try again."
        )
        if relay.is_untaken(backend.link):
            # Too long to be kept, or in a transaction. A COMMIT is none, either.
            unknown = TransactionLost(f"{text}; nothing of this was executed", hint="Try again.")
        told = relay.lose(aborted.reply(is_fatal=False), unknown.reply(is_fatal=False))
        self.backend = None
        self._forget(backend)
        if told is None:
            return None
        self.link.send(told)
        # What nobody waits for now is told later, and then it is a transaction that is over.
        return unknown if unknown.text.encode() in told else aborted

    def abort_transaction(self, why: str) -> EngineError | None:
        """A switch waits no longer for what is open here: it is given up together with its backend, which rolls it
        back, and the client keeps its connection. Returns what the client was told; the caller goes on with
        `go_on_without`. None: the session has to end, because another backend cannot be given what it holds, or because
        the client cannot be told now.
        """
        if not self._is_replaceable:
            return None
        assert self.backend is not None
        return self._lose_work(self.backend, why)

    def go_on_without(self, engine: str, why: str) -> None:
        """The backend is gone and the client has been told what it had to be told: the session gets another one."""
        relay, runtime, ledger = self.relay, self.runtime, self.ledger
        assert relay is not None
        assert runtime is not None
        assert ledger is not None
        _log.info("backend lost", session=self.id, client=self.client, engine=engine, why=why)
        assert self.tracker is not None
        self.must_restore = not runtime.shares_backends or not ledger.is_empty or self.tracker.wreckage() is not None
        if self.must_restore:
            # The short way would give it one that is not like its own.
            relay.lending = None
        if self.standing is Standing.DRAINING:
            self.tell_move()
        elif relay.has_work or ledger.replay(is_late=True) is not None:
            # Who listens must not wait for its next request.
            self.on_gate()

    def _doubt_commit(self, backend: Backend, doubt: Doubt) -> None:
        """Its COMMIT was in flight: the client waits until somebody knows what became of it, see `resolve`."""
        assert self.relay is not None
        assert self.runtime is not None
        self._doubt = doubt
        # Nothing is asked, but nothing else may be done with the session either.
        self._is_asking = True
        self.relay.tracker.gate = GATE_CLOSED
        self.relay.detach()
        self.backend = None
        self._forget(backend)
        self.runtime.doubts.add(self)

    @property
    def transaction_in_doubt(self) -> str:
        """The id of the transaction whose COMMIT was in flight when the backend was lost; empty: there is none."""
        return self._doubt.transaction if self._doubt is not None else ""

    def is_in_doubt_since(self, now_ns: int, span_ms: float) -> bool:
        """For so long already."""
        return self._doubt is not None and now_ns - self._doubt.since_ns > span_ms * 1e6

    def resolve(self, outcome: str | None) -> None:
        """What became of the COMMIT in doubt: `committed`, `aborted`, or None if nobody knows; its client is told."""
        doubt, self._doubt = self._doubt, None
        relay, runtime, tracker = self.relay, self.runtime, self.tracker
        if doubt is None or self.has_ended or relay is None or runtime is None or tracker is None:
            return
        runtime.doubts.discard(self)
        self._is_asking = False
        text = f"the connection to the database server was lost: {doubt.why}"
        if outcome == "committed":
            told: bytes | None = tracker.committed_answer()
            tracker.unlink()
            relay.lending = None
        else:
            error: EngineError = OutcomeUnknown(
                f"{text}; whether the transaction was committed is not known", hint="Look before you try again."
            )
            if outcome == "aborted":
                error = TransactionLost(f"{text}; the transaction was rolled back", hint="Try again.")
            self._tell_loss(doubt.engine, error)
            told = relay.lose(error.reply(is_fatal=False), error.reply(is_fatal=False))
        assert told is not None, "half an answer is no doubt"
        self.link.send(told)
        self.go_on_without(doubt.engine, doubt.why)

    def restore(self) -> None:
        """Get another backend and make it like the lost one, while the client waits or does nothing."""
        self._is_reading = False
        if not self._is_restoring:
            assert self.runtime is not None
            self._is_restoring = True
            self.runtime.restoring += 1
            spawn(self._guard(self._restore()), name=f"restore session {self.id}")

    async def _restore(self) -> None:
        runtime, relay = self.runtime, self.relay
        assert runtime is not None
        assert relay is not None
        began_ns = time.monotonic_ns()
        limit = runtime.config.switch.held_requests_max
        try:
            if relay.has_work and runtime.restoring > limit:
                text = (
                    f"the server of service {runtime.name} is away, and {limit} requests wait for it already; nothing of"
                    " this one was executed"
                )
                self.end_with(HoldExpired(text, hint="Reconnect and send it again."))
                return
            while self.standing is not Standing.ENDED and self.backend is None:
                try:
                    backend = await self._take_backend()
                    if await self._furnish(backend):
                        return
                except ProxyError as error:
                    waited_s = (time.monotonic_ns() - began_ns) / 1e9
                    if self.has_ended:
                        return
                    if relay.has_work and waited_s > runtime.config.query_wait_timeout_s:
                        self.end_with(error)
                        return
                    await asyncio.sleep(RESTORE_PAUSE_S)
        finally:
            self._is_restoring = False
            runtime.restoring -= 1

    async def _furnish(self, backend: Backend) -> bool:
        """Make a fresh backend like the lost one. False if it is not wanted any more, or not on this engine."""
        runtime, ledger, tracker = self.runtime, self.ledger, self.tracker
        assert runtime is not None
        assert ledger is not None
        assert tracker is not None
        try:
            for exchange in (ledger.replay(is_late=False), ledger.replay(is_late=True), tracker.wreckage()):
                if exchange is not None and self.standing is Standing.SERVING:
                    await backend.run(exchange, EXCHANGE_TIMEOUT_S)
                    refused = [*exchange.errors, *exchange.postponed]
                    if refused:
                        _log.warning("replay refused in part", session=self.id, errors=refused[:5])
        except EngineError:
            self._forget(backend)
            raise
        is_late = runtime.is_holding or backend.engine != runtime.engine_of(self)
        if self.standing is not Standing.SERVING or self.backend is not None or is_late:
            self._forget(backend)
            return False
        backend.notes = ledger.adopt(backend.notes)
        self.give(backend)
        self.reopen()
        return True

    def on_first_answer(self, at_ns: int) -> None:
        if self.runtime is not None:
            move = self.runtime.move or self.runtime.last_move
            if move is not None:
                move.first_answer(at_ns)

    def on_violation(self, error: ProtocolViolation) -> None:
        _log.warning("protocol violation", session=self.id, peer=error.peer, rule=error.text)
        reply = ErrorReply(
            message=f"protocol violation by the {error.peer}: {error.text}",
            sqlstate="08P01",
            mysql_code=1835,
            mysql_sqlstate="HY000",
        )
        self._farewell(reply, f"{error.peer} broke the protocol: {error.text}")

    def on_answered(self, asked: bytes, parent: bytes, began_ns: int, ended_ns: int, errors: int) -> None:
        """A request that the relay's memo wants to be told was answered."""
        if self.runtime is None:
            return
        if self.runtime.slow_ns and ended_ns - began_ns > self.runtime.slow_ns:
            self.worker.slow_log.note(self, ended_ns - began_ns, asked)
        if parent:
            self.runtime.note_traced(self, asked, parent, began_ns, ended_ns, errors)

    def on_failure(self, error: Exception) -> None:
        _log.error("session failed", session=self.id, exc_info=error)
        reply = ErrorReply(
            message="internal error of the proxy; its log says more",
            sqlstate="XX000",
            mysql_code=1105,
            mysql_sqlstate="HY000",
        )
        self._farewell(reply, "internal error")

    # --- the end ---

    def end_with(self, error: ProxyError) -> None:
        """End the session with an error the client is told."""
        self._farewell(error.reply(), error.text)

    def _farewell(self, reply: ErrorReply, why: str) -> None:
        if self._login is not None:
            self.link.send(self._login.refuse(reply))
        elif self.link.is_open:
            self.link.send(self.wire.error(reply, self.tracker))
        self._end(why)

    def _forget(self, backend: Backend) -> None:
        """A backend that is of no use to anybody any more."""
        assert self.runtime is not None
        pool = self.runtime.pool_of(backend)
        if pool is not None:
            pool.discard(backend)
        else:
            backend.close()

    def _end(self, why: str) -> None:
        """The one end of every session. Idempotent."""
        self._login = None
        if not self.worker.forget(self):
            return
        if why:
            _log.info("session ended", session=self.id, client=self.client, why=why)
        if self._waiter is not None:
            self._waiter.is_over = True
        if self.console is not None:
            self.console.ended()
        runtime = self.runtime
        if runtime is not None:
            runtime.doubts.discard(self)
        if runtime is not None and self.standing is not Standing.ENDED:
            runtime.registry.move(self, Standing.ENDED)
            if runtime.move is not None:
                runtime.move.ended(self)
        self._let_backend_go()
        if self.relay is not None:
            self.relay.settle()
            self.relay.close()
        if why:
            # The client may still be sending: the socket is not torn down before it has read why.
            self.worker.see_off(self.link, FAREWELL_TIMEOUT_S)
        else:
            self.link.close()

    def _let_backend_go(self) -> None:
        """Give the backend to others if it is clean or can be made so; else close it."""
        relay, backend, runtime, ledger = self.relay, self.backend, self.runtime, self.ledger
        aside = self._take_aside()
        if aside is not None and runtime is not None:
            runtime.give_back(aside)
        if backend is None or runtime is None or relay is None or self._is_asking:
            # While it is being asked, `ask` closes it.
            return
        is_clean = relay.at_boundary()
        self.backend = None
        relay.detach()
        backend.listen()
        pool = runtime.pool_of(backend)
        is_usable = is_clean and not backend.is_lost and not backend.startup.is_replication
        if is_usable and not runtime.shares_backends and runtime.config.server_lifetime_s == 0:
            if pool is not None:
                pool.discard(backend, says_goodbye=True)
            else:
                backend.close(says_goodbye=True)
        elif not is_usable or pool is None or backend.engine != runtime.engine_of(self):
            self._forget(backend)
        elif ledger is not None and runtime.shares_backends and ledger.is_empty and not ledger.is_dirty:
            pool.give_back(backend)
        elif not self.wire.resets_all and (ledger is None or not ledger.is_empty or ledger.is_dirty):
            self._forget(backend)
        else:
            spawn(pool.give_back_used(backend), name=f"reset after session {self.id}")

    # --- figures ---

    @property
    def in_transaction(self) -> bool:
        return self.tracker is not None and self.backend is not None and not self.tracker.at_boundary()

    def portability(self) -> tuple[Grade, list[str]]:
        """Grade and pins as they are known now; a dirty ledger may still gain some."""
        if self.ledger is None:
            return Grade.A, []
        # In transaction mode what ties a session to its backend is worth knowing, too: it saves nothing then.
        ties = self.ledger.ties if self.runtime is not None and self.runtime.shares_backends else []
        if self.ledger.pins:
            return Grade.D, [*self.ledger.pins, *ties]
        if self.in_transaction:
            return Grade.C, ties
        if self.ledger.is_empty and not self.ledger.is_dirty and self.dress is self.startup:
            return Grade.A, ties
        return Grade.B, ties
