"""One worker process: listeners, sessions, and the connection to the supervisor. `python -m proxy.worker`.

Decides nothing about engines: it does what the supervisor orders and says what happened. Without a supervisor it goes
on serving and keeps trying to reach one; in the middle of a switch it holds, and refuses work that has waited longer
than `hold_ms_max`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import ipaddress
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog
import uvloop

from protocols import mysql, postgres
from protocols.postgres.auth import set_salt_key
from protocols.wire import PackingName, ProtocolName, Wire
from proxy import ipc
from proxy.config import Config, ServiceConfig, decode_effective
from proxy.dataplane.backend import send_cancel
from proxy.dataplane.connection_ids import ConnectionIds
from proxy.dataplane.console import ConsoleDesk
from proxy.dataplane.kills import Kills
from proxy.dataplane.listener import Listener
from proxy.dataplane.moving import Move
from proxy.dataplane.numbers import Numbers
from proxy.dataplane.registry import Standing
from proxy.dataplane.relay import Link, leave_for
from proxy.dataplane.runtime import Runtime
from proxy.dataplane.seats import WORKERS_MAX, Seats
from proxy.dataplane.session import Session
from proxy.dataplane.slow import SlowLog
from proxy.dataplane.told import backend_rows, session_row, worker_figures
from proxy.errors import Aborted, TooManyConnections
from proxy.hidden import hidden_words
from proxy.latency import Lengths
from proxy.log import hide
from proxy.log import set_up as set_up_log
from proxy.tasks import in_haste, spawn
from proxy.tls import ListenerTls, TlsProblem, listener_tls

T = TypeVar("T")

_log = structlog.get_logger("turnout.worker")

WIRES: Final[dict[ProtocolName, Wire]] = {"postgresql": postgres.WIRE, "mysql": mysql.WIRE}

TICK_S: Final = 0.1
"""How often deadlines that are not on the critical path are looked at."""

TICK_NS: Final = int(TICK_S * 1e9)

RECONNECT_S: Final = 0.1
"""Pause between tries to reach the supervisor."""

ORPHAN_S: Final = 10.0
"""A worker that was never configured ends after this time without a supervisor."""

CANCEL_TIMEOUT_S: Final = 5.0

LIST_STEP_NS: Final = 300_000
"""Time for a part of a list, in nanoseconds; whoever has asked something is served before the next."""

KEEP_S: Final = 1.0
"""How often backends and sessions are looked at for being idle too long."""

CLIENTS: Final = ("clients",)
"""What `max_client_conn` counts."""

STRANGERS_MAX: Final = 1000
"""Clients of this worker that have not said who they are, or have been refused and do not go, above `max_client_conn`;
more are not answered."""


class Worker:
    """See the module."""

    def __init__(self, index: int, socket_path: Path) -> None:
        self.index = index
        self.socket_path = socket_path
        self.config: Config = None  # type: ignore[assignment]  # set by the first Configure; nothing runs before it
        self.sessions: dict[int, Session] = {}
        """Every client connection, logged in or not, by number."""
        self.strangers: dict[int, Session] = {}
        """Those of them that have not logged in, the oldest first."""
        self._leaving: set[Link] = set()
        """Connections of sessions that have ended, whose clients are given the time to read why."""
        self.sessions_by_key: dict[tuple[int, bytes], Session] = {}
        self.runtimes: dict[str, Runtime] = {}
        self.seats = Seats(socket_path.with_name("seats"), index, WORKERS_MAX)
        """What is counted over all workers."""
        self._listeners: dict[tuple[ProtocolName, str], Listener] = {}
        self._tls: dict[tuple[ProtocolName, str], ListenerTls] = {}
        self._packings: dict[tuple[ProtocolName, str], Sequence[PackingName]] = {}
        self._balancers: dict[tuple[ProtocolName, str], list[ipaddress.IPv4Network | ipaddress.IPv6Network]] = {}
        """Who has to say by the PROXY protocol for whom it speaks."""
        self._cancels: dict[int, asyncio.Future[None]] = {}
        """Cancel requests that other workers were asked about."""
        self._cancel_number = 0
        self.kills = Kills(self)
        self.connection_ids = ConnectionIds(self)
        self.console = ConsoleDesk(self)
        self.slow_log = SlowLog()
        self._numbers = Numbers(index)
        self._writer: asyncio.StreamWriter | None = None
        self._listing = asyncio.Lock()
        self._ended = asyncio.Event()
        self._quitting = False
        self._lags = Lengths()
        """How much later than asked for the tick came."""

    # --- the supervisor's side ---

    async def run(self) -> None:
        """Serve until told to quit."""
        loop = asyncio.get_running_loop()
        # Ctrl-C goes to the whole foreground group; the supervisor decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._on_quit, 0.0)
        talk = spawn(self._talk(), name="talk to the supervisor", stays=True)
        tick = spawn(self._tick(), name="tick", stays=True)
        await self._ended.wait()
        talk.cancel()
        tick.cancel()

    async def _talk(self) -> None:
        """Connect, say hello, do what is ordered; again for ever."""
        alone_since = time.monotonic()
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self.socket_path))
            except OSError:
                if self.config is None and time.monotonic() - alone_since > ORPHAN_S:
                    self._ended.set()
                    return
                await asyncio.sleep(RECONNECT_S)
                continue
            self._writer = writer
            leave_for(asyncio.get_running_loop(), writer.get_extra_info("socket").fileno())
            self.emit(self._hello())
            try:
                async for body in ipc.frames(reader):
                    order = ipc.decode_order(body)
                    try:
                        self._obey(order)
                    except Exception as error:  # noqa: BLE001  a bug in one order must not cut the worker off
                        _log.error("order failed", order=type(order).__name__, exc_info=error)
            except ValueError as error:
                _log.error("the supervisor sent what this worker does not understand", error=str(error))
            finally:
                self._writer = None
                writer.close()
                self.console.lose_supervisor()
            alone_since = time.monotonic()

    def _hello(self) -> ipc.Hello:
        return ipc.Hello(
            version=ipc.PROTOCOL_VERSION,
            index=self.index,
            pid=os.getpid(),
            epochs={name: runtime.epoch for name, runtime in self.runtimes.items()},
            active={name: runtime.active for name, runtime in self.runtimes.items()},
            runs=[
                ipc.RunState(switch=r.move.switch, service=name, phase=r.move.phase, target=r.move.target)
                for name, r in self.runtimes.items()
                if r.move is not None
            ],
            standstills={name: runtime.standstill for name, runtime in self.runtimes.items()},
        )

    @property
    def has_supervisor(self) -> bool:
        """What is emitted now will be heard."""
        return self._writer is not None

    def emit(self, fact: ipc.Fact) -> None:
        """Tell the supervisor; without one the fact is dropped, because a new one asks again."""
        if self._writer is not None:
            self._writer.write(ipc.encode(fact))

    def _obey(self, order: ipc.Order) -> None:
        match order:
            case ipc.Configure():
                self._configure(order)
            case ipc.StandStill():
                self.runtimes[order.service].stand(order.standstill)
            case ipc.Retire():
                self._retire(order)
            case ipc.CountBackends():
                left, retired = self.runtimes[order.service].count_backends(order.database)
                self.emit(ipc.BackendsCounted(request=order.request, left=left, retired=retired))
            case ipc.ListBackends():
                spawn(self._tell_backends(order), name="list backends")
            case ipc.ConsoleAnswer():
                self.console.answer(order)
            case ipc.Share():
                self._move(order.service, order.switch).share(order)
            case ipc.Prepare():
                self._move(order.service, order.switch).prepare(order.target)
            case ipc.StopOpening():
                self._move(order.service, order.switch).stop_opening()
            case ipc.Hold():
                self._move(order.service, order.switch).hold(may_stay=order.may_stay)
            case ipc.Abandon():
                self._move(order.service, order.switch).abandon(order.reason)
            case ipc.Witness():
                spawn(self._witness(order), name=f"witness of {order.engine}")
            case ipc.Leave():
                self._move(order.service, order.switch).leave()
            case ipc.Terminate():
                self._move(order.service, order.switch).terminate(order.reason)
            case ipc.Retarget():
                self._move(order.service, order.switch).retarget(order.target, order.epoch, order.outcomes)
            case ipc.Release():
                self._release(order)
            case ipc.ListSessions():
                spawn(self._tell_sessions(order), name="list sessions")
            case ipc.CollectFigures():
                self.emit(worker_figures(order.request, self.index, self.runtimes.values(), self._lags))
            case ipc.CancelQuery():
                spawn(self._cancel_for(order), name="cancel for another worker")
            case ipc.CancelDone():
                done = self._cancels.get(order.request)
                if done is not None and not done.done():
                    done.set_result(None)
            case ipc.KillSession():
                spawn(self.kills.kill_for_another(order), name="kill for another worker")
            case ipc.KillDone():
                self.kills.done(order)
            case ipc.ListIds():
                self.emit(ipc.IdList(request=order.request, ids=self.connection_ids.known(order.service, order.engine)))
            case ipc.IdsTold():
                self.connection_ids.told(order)
            case ipc.Fresh():
                router = self.runtimes[order.service].router
                if router is not None:
                    router.hear(order.until_ns)
            case ipc.EndSession():
                self._end_session(order)
            case ipc.Quit():
                self._on_quit(order.drain_s)

    async def _witness(self, order: ipc.Witness) -> None:
        runtime = self.runtimes[order.service]
        if runtime.epoch != order.epoch or runtime.active != order.engine:
            return
        is_alive, how = await runtime.testify(order.since_ns, order.timeout_s)
        self.emit(ipc.Witnessed(request=order.request, worker=self.index, is_alive=is_alive, how=how))

    def _move(self, service: str, switch: str) -> Move:
        runtime = self.runtimes[service]
        if runtime.move is None or runtime.move.switch != switch:
            if runtime.move is not None:
                in_haste.discard(runtime.move)
            runtime.move = Move(runtime, switch, self.emit)
            in_haste.add(runtime.move)
        return runtime.move

    def _release(self, order: ipc.Release) -> None:
        runtime = self.runtimes[order.service]
        if runtime.move is None or runtime.move.switch != order.switch:
            # Released before, or never held: nothing waits.
            self.emit(
                ipc.Released(switch=order.switch, service=order.service, sessions=0, first_request_ns=0, waits_us=[])
            )
            return
        runtime.move.release(order.epoch)

    # --- config ---

    def _configure(self, order: ipc.Configure) -> None:
        config = decode_effective(order.config)
        is_first = self.config is None
        self.config = config
        self.seats.workers = config.workers
        if order.salt_key:
            set_salt_key(order.salt_key)
        hide(hidden_words(config))
        set_up_log(config.log, who=f"worker {self.index}")
        failed: list[str] = []
        for name, service in config.service.items():
            try:
                self._configure_service(name, service, order)
            except TlsProblem as problem:
                self._trouble(failed, is_first, f"server_tls_{problem.key} of service {name}: {problem.text}")
        for listener_config in config.listener:
            try:
                key = (listener_config.protocol, listener_config.listen)
                self._tls[key] = listener_tls(listener_config)
                self._packings[key] = listener_config.packings
                self._balancers[key] = [ipaddress.ip_network(one) for one in listener_config.proxy_protocol]
            except TlsProblem as problem:
                self._trouble(failed, is_first, f"client_tls_{problem.key} of {listener_config.listen}: {problem.text}")
        wanted: set[tuple[ProtocolName, str]] = {(listener.protocol, listener.listen) for listener in config.listener}
        for key in wanted - self._listeners.keys():
            protocol, address = key
            listener = Listener(address, partial(self._accepted, WIRES[protocol], key))
            try:
                listener.open()
            except OSError as error:
                failed.append(str(error))
                continue
            self._listeners[key] = listener
        for key in self._listeners.keys() - wanted:
            self._listeners.pop(key).close()
        if is_first:
            # What was made so far lives as long as the process: no collection has to look at it again.
            gc.collect()
            gc.freeze()
        self.console.reconfigure(config.console)
        for name, runtime in self.runtimes.items():
            runtime.stand(order.standstills.get(name, ipc.Standstill()))
        self.emit(ipc.Configured(failed=failed))

    def _configure_service(self, name: str, service: ServiceConfig, order: ipc.Configure) -> None:
        runtime = self.runtimes.get(name)
        if runtime is None:
            self.runtimes[name] = Runtime(
                name,
                service,
                WIRES[service.protocol],
                order.active.get(name, service.active),
                order.epochs.get(name, 0),
                self._engine_lost,
                self.seats,
            )
        else:
            runtime.reconfigure(service)

    @staticmethod
    def _trouble(failed: list[str], is_first: bool, text: str) -> None:
        """Something of the config cannot be done: at the start nothing is served, later what was there stays."""
        if is_first:
            failed.append(text)
        else:
            _log.error("the reload was not applied everywhere", why=text)

    def _engine_lost(self, service: str, engine: str, why: str) -> None:
        self.emit(ipc.EngineLost(service=service, engine=engine, why=why, at_ns=time.monotonic_ns()))

    # --- clients ---

    def _accepted(self, wire: Wire, key: tuple[ProtocolName, str], fd: int, client: str) -> None:
        if self._is_crowded():
            # Nobody knows who they are, and what an answer costs is what a flood wants.
            os.close(fd)
            return
        link = Link(asyncio.get_running_loop(), fd)
        session = Session(
            self, wire, self._numbers.take(self.sessions), link, client, self._tls[key], self._packings[key]
        )
        self.sessions[session.id] = self.strangers[session.id] = session
        balancers = self._balancers[key]
        if balancers and any(ipaddress.ip_address(client.rpartition(":")[0].strip("[]")) in one for one in balancers):
            session.await_header(partial(self._welcome, session))
        else:
            self._welcome(session, b"")

    def _welcome(self, session: Session, unread: bytes) -> None:
        """Begin the login. `unread`: what the client has sent already."""
        wire, link = session.wire, session.link
        runtime = self._first_runtime(wire.name)
        if runtime is None:
            session.refuse_unserved()
            return
        if wire.name == "mysql" and runtime.known_greeting() is None:
            link.pause()
            spawn(self._greet_later(session, runtime, unread), name=f"session {session.id} greets")
        else:
            self._greet(session, runtime, unread)

    def _is_crowded(self) -> bool:
        limit = self.config.max_client_conn + STRANGERS_MAX
        if len(self.sessions) + len(self._leaving) >= limit:
            self._leaving = {link for link in self._leaving if link.is_open}
        return len(self.sessions) + len(self._leaving) >= limit

    def see_off(self, link: Link, timeout_s: float) -> None:
        """Close once its client has read the last words and closed its side, or after that time."""
        link.finish()
        self._leaving.add(link)
        asyncio.get_running_loop().call_later(timeout_s, self._seen_off, link)

    def _seen_off(self, link: Link) -> None:
        self._leaving.discard(link)
        link.close()

    async def _greet_later(self, session: Session, runtime: Runtime, unread: bytes) -> None:
        await runtime.greeting()
        if session.id in self.sessions:
            session.link.resume()
            self._greet(session, runtime, unread)

    def _greet(self, session: Session, runtime: Runtime, unread: bytes) -> None:
        session.begin(runtime.config.auth.method, runtime.known_greeting(), runtime.config.databases, unread)

    def seat(self, session: Session) -> TooManyConnections | None:
        """Count a client that said who it is, until `forget`; the error for one too many, or None."""
        if session.has_seat:
            return None
        if not self.seats.take(CLIENTS, self.config.max_client_conn):
            return TooManyConnections(
                "sorry, too many clients already",
                hint=f"This proxy takes {self.config.max_client_conn} clients; see `max_client_conn`.",
            )
        session.has_seat = True
        return None

    def _first_runtime(self, protocol: ProtocolName) -> Runtime | None:
        for runtime in self.runtimes.values():
            if runtime.wire.name == protocol:
                return runtime
        return None

    def service_of(self, protocol: ProtocolName, database: str) -> Runtime | None:
        """The service that serves `database`: by name, else the one that takes every name."""
        rest: Runtime | None = None
        for runtime in self.runtimes.values():
            if runtime.wire.name != protocol:
                continue
            if database in runtime.config.databases:
                return runtime
            if not runtime.config.databases or (not database and protocol == "mysql"):
                rest = rest or runtime
        return rest

    def only_service_of(self, protocol: ProtocolName) -> Runtime | None:
        """The service of that protocol, if there is one only."""
        found = [runtime for runtime in self.runtimes.values() if runtime.wire.name == protocol]
        return found[0] if len(found) == 1 else None

    def forget(self, session: Session) -> bool:
        """Drop a session from every index; False if that was done before."""
        self.strangers.pop(session.id, None)
        if session.cancel_key is not None:
            self.sessions_by_key.pop(session.cancel_key, None)
        if session.has_seat:
            session.has_seat = False
            self.seats.give(CLIENTS)
        return self.sessions.pop(session.id, None) is not None

    async def cancel(self, process_id: int, secret: bytes) -> None:
        """A CancelRequest: to the backend that runs the session's query now, in whichever worker. Returns once no engine
        will do anything about it any more."""
        if await self._cancel_here(process_id, secret) or self.config.workers == 1 or self._writer is None:
            return
        self._cancel_number += 1
        request = self._cancel_number
        done = self._cancels[request] = asyncio.get_running_loop().create_future()
        self.emit(ipc.CancelWanted(request=request, process_id=process_id, secret=secret))
        await asyncio.wait([done], timeout=2 * CANCEL_TIMEOUT_S)
        del self._cancels[request]

    async def _cancel_for(self, order: ipc.CancelQuery) -> None:
        await self._cancel_here(order.process_id, order.secret)
        self.emit(ipc.CancelTaken(request=order.request))

    async def _cancel_here(self, process_id: int, secret: bytes) -> bool:
        """True if the session is one of this worker, whether anything was to be cancelled or not."""
        session = self.sessions_by_key.get((process_id, secret))
        if session is None:
            return False
        if session.console is not None:
            session.console.cancel()
            return True
        backend, runtime = session.backend, session.runtime
        if backend is None or runtime is None or session.is_asking:
            # Nothing of this client runs; what the proxy asks itself must not be cancelled.
            return True
        if session.relay is None or session.relay.at_boundary():
            return True
        pool = runtime.pool_of(backend)
        backend.cancels += 1
        is_sure = False
        try:
            is_sure = await send_cancel(runtime.wire, backend, runtime.reach_of(backend), CANCEL_TIMEOUT_S)
        finally:
            backend.cancel_ended(is_sure=is_sure)
            if pool is not None:
                pool.cancel_done(backend)
        if not is_sure:
            _log.info("nobody knows whether a cancel request was heard", session=session.id, engine=backend.engine)
        return True

    def _end_session(self, order: ipc.EndSession) -> None:
        session = self.sessions.get(order.session)
        # One that has not logged in is in no list that an operator sees.
        is_found = session is not None and session.id not in self.strangers
        if session is not None and is_found:
            _log.info("session is ended", session=session.id, why=order.reason)
            session.end_with(Aborted(f"terminating connection due to administrator command: {order.reason}"))
        self.emit(ipc.SessionEnded(request=order.request, is_found=is_found))

    def _retire(self, order: ipc.Retire) -> None:
        runtime = self.runtimes[order.service]
        if order.ends_sessions:
            error = Aborted("terminating connection due to administrator command: KILL at the console")
            for session in runtime.registry:
                if session.startup is not None and order.database in (None, session.startup.database):
                    session.end_with(error)
        runtime.retire(order.database)

    # --- what is told ---

    async def _tell_sessions(self, order: ipc.ListSessions) -> None:
        wanted = [
            (runtime, session)
            for runtime in self.runtimes.values()
            if order.service in (None, runtime.name)
            for session in runtime.registry
            if order.session in (None, session.id)
        ]
        rows = (
            session_row(self.index, runtime, session, time.monotonic_ns(), with_sockets=order.with_sockets)
            for runtime, session in wanted
            if session.standing is not Standing.ENDED
        )
        await self._tell_in_parts(
            rows, lambda part, is_last: ipc.SessionList(request=order.request, sessions=part, is_last=is_last)
        )

    async def _tell_backends(self, order: ipc.ListBackends) -> None:
        await self._tell_in_parts(
            backend_rows(list(self.runtimes.values())),
            lambda part, is_last: ipc.BackendList(request=order.request, backends=part, is_last=is_last),
        )

    async def _tell_in_parts(self, rows: Iterator[T], told: Callable[[list[T], bool], ipc.Fact]) -> None:
        """A part at a time, for to look at one costs some ten microseconds, and there may be thousands."""
        part: list[T] = []
        # However many ask, one list is made at a time.
        async with self._listing:
            until_ns = time.monotonic_ns() + LIST_STEP_NS
            for row in rows:
                part.append(row)
                if time.monotonic_ns() >= until_ns:
                    self.emit(told(part, False))
                    part = []
                    await asyncio.sleep(0)
                    until_ns = time.monotonic_ns() + LIST_STEP_NS
        self.emit(told(part, True))

    # --- time and the end ---

    def _end_strangers(self, now_ns: int) -> None:
        """End the logins that take too long. All have the same time, so only the oldest has to be looked at; a timer for
        each would be made and cancelled at every login."""
        while self.strangers:
            oldest = next(iter(self.strangers.values()))
            if now_ns - oldest.opened_ns < self.config.client_login_timeout_s * 1e9:
                return
            oldest.login_expired()

    async def _tick(self) -> None:
        kept = time.monotonic_ns()
        while True:
            began = time.monotonic_ns()
            await asyncio.sleep(TICK_S)
            now = time.monotonic_ns()
            self._lags.note(now - began - TICK_NS)
            self._end_strangers(now)
            for runtime in self.runtimes.values():
                runtime.tick(now)
            self._tell_traced()
            if now - kept > KEEP_S * 1e9:
                kept = now
                for runtime in self.runtimes.values():
                    runtime.keep(now)

    def _tell_traced(self) -> None:
        """What is part of traces. Without a supervisor it is dropped, and not counted."""
        spans: list[ipc.QuerySpan] = []
        dropped = 0
        for runtime in self.runtimes.values():
            spans += runtime.traced
            dropped += runtime.untold
            runtime.traced, runtime.untold = [], 0
        if spans:
            self.emit(ipc.QuerySpans(spans=spans, dropped=dropped))

    def _on_quit(self, drain_s: float) -> None:
        if self._quitting:
            return
        self._quitting = True
        spawn(self._quit(drain_s), name="quit")

    async def _quit(self, drain_s: float) -> None:
        """Sessions end at their boundary, or when the time is over, with the code for a shutdown."""
        for listener in self._listeners.values():
            listener.close()
        deadline = time.monotonic() + drain_s
        error = Aborted("terminating connection because the proxy is shutting down", hint="Connect again.")
        while self.sessions:
            is_late = time.monotonic() >= deadline
            for session in list(self.sessions.values()):
                if is_late or session.relay is None or session.relay.at_boundary():
                    session.end_with(error)
            if self.sessions:
                await asyncio.sleep(0.02)
        for runtime in self.runtimes.values():
            for pool in runtime.pools():
                pool.close()
        # Last words are in the sockets; the kernel delivers them.
        await asyncio.sleep(0)
        self._ended.set()


def main(argv: list[str] | None = None) -> int:
    """Entry of the process. Started by the supervisor, never by hand."""
    parser = argparse.ArgumentParser(prog="python -m proxy.worker", description="A worker of Turnout.")
    parser.add_argument("--socket", type=Path, required=True, help="the supervisor's unix socket")
    parser.add_argument("--index", type=int, required=True, help="number of this worker, from 0")
    arguments = parser.parse_args(argv)
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Worker(arguments.index, arguments.socket).run())
    return 0


def _raise_descriptor_limit() -> None:
    """Two descriptors a session: take what the hard limit gives."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
