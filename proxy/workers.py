"""The worker processes as the supervisor sees them: spawned, adopted, spoken to, replaced.

A worker outlives the supervisor: it runs in a session of its own, serves on when the connection ends, and comes back to
the socket when somebody listens there again. A supervisor that starts therefore first waits for the workers of the one
before it (`adopt`), and spawns only what is missing.

Whether a worker is lost is decided by its process alone, watched through a pidfd: as long as it lives its clients have
their sockets, and it may do anything. A worker whose connection ends gets `RECONNECT_GRACE_S` to come back and is then
killed, so that "lost" is certain.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec
import structlog

from proxy import ipc
from proxy.errors import ProxyError
from proxy.switch.failover import WorkersWord
from proxy.switch.views import WorkerView
from proxy.tasks import spawn

_log = structlog.get_logger("turnout.workers")

ADOPT_WAIT_S: Final = 1.0
"""How long a starting supervisor waits for the workers of an earlier one, who try every 100 ms."""
RECONNECT_GRACE_S: Final = 1.0
HELLO_TIMEOUT_S: Final = 15.0
"""From the start of the process to its first words; imports take time on a busy machine."""
ANSWER_TIMEOUT_S: Final = 1.0
"""For figures and session lists; who is later is left out."""
CANCEL_TIMEOUT_S: Final = 6.0
"""A worker waits five seconds for an engine to take a cancel request."""
BACKOFF_S: Final = (0.05, 0.2, 1.0, 5.0)
"""Pauses before a worker that keeps ending is started again; a life of `STEADY_S` starts over."""
STEADY_S: Final = 10.0
SURPLUS_DRAIN_S: Final = 30.0
"""For the clients of a worker that a config with fewer workers has no place for."""
SOCKET_PATH_BYTES_MAX: Final = 107
"""sockaddr_un.sun_path, less its final zero; see unix(7)."""

T = TypeVar("T")


class WorkerFailed(ProxyError):
    """A worker could not begin its work; the text is one line for the operator."""


class Ears(Protocol):
    """Who listens to the workers."""

    def configuration(self) -> ipc.Configure:
        """What a worker is told first."""

    def worker_joined(self, worker: int, hello: ipc.Hello) -> None:
        """It said hello and was sent its configuration."""

    def worker_said(self, worker: int, fact: ipc.Fact) -> None:
        """Anything but answers to `figures` and `sessions`."""

    def worker_lost(self, worker: int, why: str) -> None:
        """Its process is gone."""


@dataclass(slots=True, eq=False)
class _Worker:
    """One process."""

    index: int
    pid: int
    pidfd: int
    process: subprocess.Popen[bytes] | None
    """None: adopted, somebody else reaps it."""
    started_at: float
    started_ns: int
    writer: asyncio.StreamWriter | None = None
    hello: ipc.Hello | None = None
    is_configured: bool = False
    failed: list[str] = field(default_factory=list)
    deadline: asyncio.TimerHandle | None = None
    """It is killed unless it says hello by then."""
    why: str = ""
    """Why it is being ended."""


class Workers:
    """See the module. Fulfils `proxy.switch.running.Crew`."""

    def __init__(
        self,
        socket_path: Path,
        wanted: int,
        *,
        withheld: frozenset[str] = frozenset(),
        command: Sequence[str] = (sys.executable, "-m", "proxy.worker"),
    ) -> None:
        """`withheld` are environment variables that workers do not inherit: secrets reach them over the socket.
        `command` starts a worker; it gets `--socket PATH --index N`."""
        self._withheld = withheld
        self._command = list(command)
        self._path = socket_path
        self._wanted = wanted
        self._listener: Ears | None = None
        self._alive: dict[int, _Worker] = {}
        self._restarts: dict[int, int] = {}
        self._backoff: dict[int, int] = {}
        self._server: asyncio.Server | None = None
        self._requests: dict[int, tuple[set[int], list[Any], asyncio.Future[None]]] = {}
        self._request = 0
        self._changed = asyncio.Event()
        self._may_adopt = False
        self._is_adopting = True
        self._restarts_before = 0
        self._is_stopping = False
        self._connections: set[asyncio.StreamWriter] = set()

    # --- life --------------------------------------------------------------------------------------------------------

    async def listen(self, ears: Ears) -> None:
        """Open the socket; what comes is told to `ears`. Raises WorkerFailed."""
        self._listener = ears
        if len(os.fsencode(self._path)) > SOCKET_PATH_BYTES_MAX:
            raise WorkerFailed(
                f"the path {self._path} is too long for a unix socket",
                hint=f"set runtime_dir to a folder whose path is shorter ({SOCKET_PATH_BYTES_MAX} bytes with the name)",
            )
        # Whoever holds the lock owns the path; what lies there is of an earlier one.
        self._may_adopt = self._path.exists()
        self._path.unlink(missing_ok=True)
        try:
            self._server = await asyncio.start_unix_server(self._connected, self._path, limit=1 << 20)
        except OSError as error:
            raise WorkerFailed(f"cannot listen on {self._path}: {error.strerror}", hint="set runtime_dir") from error
        self._path.chmod(0o600)

    async def adopt(self) -> dict[int, ipc.Hello]:
        """Wait for the workers of an earlier supervisor; what each of them said. None is configured yet.

        One that ended in order left no socket behind, and no workers: then there is nobody to wait for.
        """
        deadline = time.monotonic() + (ADOPT_WAIT_S if self._may_adopt else 0.0)
        while len(self._alive) < self._wanted and (left := deadline - time.monotonic()) > 0:
            await self._change(left)
        return {worker.index: worker.hello for worker in self._alive.values() if worker.hello is not None}

    def configure_adopted(self) -> None:
        """Send the adopted ones their configuration; from then on they, and all that come later, take part."""
        self._is_adopting = False
        for worker in list(self._alive.values()):
            if worker.hello is not None and not worker.is_configured:
                self._configure(worker)

    def fill(self) -> None:
        """Spawn what is missing."""
        self._restarts_before = sum(self._restarts.values())
        for index in range(self._wanted):
            if index not in self._alive:
                self._spawn(index)

    async def wait_configured(self) -> None:
        """Until every worker has its listeners open. Raises WorkerFailed if one cannot."""
        while True:
            for worker in self._alive.values():
                if worker.failed:
                    raise WorkerFailed("; ".join(worker.failed), hint="stop the other program, or set another port")
            if sum(self._restarts.values()) > self._restarts_before:
                raise WorkerFailed("a worker ended as it began", hint="see its last words above")
            if self.is_ready():
                return
            await self._change(1.0)

    async def stop(self, drain_s: float) -> None:
        """Tell them to drain and end; kill who is left two seconds after that."""
        self._is_stopping = True
        for worker in self._alive.values():
            self._send(worker, ipc.Quit(drain_s=drain_s))
            if worker.writer is None:
                self._kill(worker, "the supervisor stops")
        deadline = time.monotonic() + drain_s + 2.0
        while self._alive and (left := deadline - time.monotonic()) > 0:
            await self._change(left)
        for worker in list(self._alive.values()):
            self._kill(worker, "it did not end in time")
        while self._alive:
            await self._change(1.0)
        if self._server is not None:
            self._server.close()
            for writer in list(self._connections):
                writer.close()
            self._path.unlink(missing_ok=True)

    def hurry(self) -> None:
        """End them now."""
        for worker in list(self._alive.values()):
            self._kill(worker, "the supervisor was told twice to stop")

    # --- looking -----------------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Every worker is connected and configured."""
        ready = [worker for worker in self._alive.values() if worker.is_configured and worker.writer is not None]
        return len(ready) == self._wanted

    def views(self) -> list[WorkerView]:
        """One for each process, by index."""
        return [
            WorkerView(
                index=index,
                pid=worker.pid,
                is_connected=worker.writer is not None,
                is_configured=worker.is_configured,
                started_at=worker.started_at,
                restarts=self._restarts.get(index, 0),
            )
            for index, worker in sorted(self._alive.items())
        ]

    # --- Crew --------------------------------------------------------------------------------------------------------

    def workers(self) -> list[int]:
        """Indexes of those that were configured and are alive. One that lost its connection just now is among them."""
        return sorted(index for index, worker in self._alive.items() if worker.is_configured)

    def tell(self, worker: int, order: ipc.Order) -> None:
        """Write, do not wait."""
        found = self._alive.get(worker)
        if found is not None:
            self._send(found, order)

    def tell_all(self, order: ipc.Order, *, but: int | None = None) -> None:
        """Every configured worker, or all `but` one."""
        for index in self.workers():
            if index != but:
                self.tell(index, order)

    def replace(self, worker: int, why: str) -> None:
        """End the process; another one takes its place."""
        found = self._alive.get(worker)
        if found is not None:
            self._kill(found, why)

    async def figures(self) -> list[ipc.WorkerFigures]:
        """Of all that answer in time."""
        return await self._ask(lambda request: ipc.CollectFigures(request=request), ipc.WorkerFigures)

    async def sessions(
        self, service: str | None = None, *, session: int | None = None, with_sockets: bool = False
    ) -> list[ipc.Session]:
        """Of all that answer in time."""
        lists = await self._ask(
            lambda request: ipc.ListSessions(
                request=request, service=service, session=session, with_sockets=with_sockets
            ),
            ipc.SessionList,
        )
        return [session for one in lists for session in one.sessions]

    async def backends(self) -> list[ipc.Backend]:
        """Every connection to an engine that is in a pool, of all that answer in time."""
        lists = await self._ask(lambda request: ipc.ListBackends(request=request), ipc.BackendList)
        return [backend for one in lists for backend in one.backends]

    async def count_backends(self, service: str, database: str | None) -> ipc.BackendsCounted | None:
        """In all workers together; None: one of them did not answer."""
        asked = len(self.workers())
        counts = await self._ask(
            lambda request: ipc.CountBackends(request=request, service=service, database=database), ipc.BackendsCounted
        )
        if len(counts) < asked:
            return None
        return ipc.BackendsCounted(
            request=0, left=sum(one.left for one in counts), retired=sum(one.retired for one in counts)
        )

    async def cancel(self, process_id: int, secret: bytes, *, but: int) -> None:
        """Have all workers but one look for the session of a CancelRequest; until they have done what they could."""
        await self._ask(
            lambda request: ipc.CancelQuery(request=request, process_id=process_id, secret=secret),
            ipc.CancelTaken,
            but=but,
            timeout_s=CANCEL_TIMEOUT_S,
        )

    async def kill(self, wanted: ipc.KillWanted, *, but: int) -> ipc.KillTaken | None:
        """Have all workers but one look for the session that a KILL means. None: it is nobody's."""
        answers = await self._ask(
            lambda request: ipc.KillSession(
                request=request,
                service=wanted.service,
                user=wanted.user,
                connection_id=wanted.connection_id,
                is_query=wanted.is_query,
            ),
            ipc.KillTaken,
            but=but,
            timeout_s=CANCEL_TIMEOUT_S,
        )
        return next((one for one in answers if one.is_found), None)

    async def connection_ids(self, wanted: ipc.IdsWanted, *, but: int) -> dict[int, int]:
        """By which ids clients of all workers but one know the connections of a MySQL engine."""
        answers = await self._ask(
            lambda request: ipc.ListIds(request=request, service=wanted.service, engine=wanted.engine),
            ipc.IdList,
            but=but,
        )
        return {server: client for one in answers for server, client in one.ids.items()}

    async def end_session(self, session: int, reason: str) -> bool:
        """Have the worker that has it end a session. False: none has it."""
        answers = await self._ask(
            lambda request: ipc.EndSession(request=request, session=session, reason=reason), ipc.SessionEnded
        )
        return any(one.is_found for one in answers)

    async def witness(
        self, service: str, engine: str, epoch: int, since_ns: int, timeout_s: float
    ) -> list[WorkersWord]:
        """What each worker knows of an engine that does not answer probes since then. A worker that does not say anything
        in time, or serves by another epoch, is left out."""
        answers = await self._ask(
            lambda request: ipc.Witness(
                request=request, service=service, engine=engine, epoch=epoch, since_ns=since_ns, timeout_s=timeout_s
            ),
            ipc.Witnessed,
            timeout_s=timeout_s + ANSWER_TIMEOUT_S,
        )
        return [WorkersWord(worker=one.worker, is_alive=one.is_alive, how=one.how) for one in answers]

    async def _ask(
        self,
        order: Callable[[int], ipc.Order],
        answer: type[T],
        *,
        but: int | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> list[T]:
        self._request += 1
        asked = {index for index in self.workers() if index != but and self._alive[index].writer is not None}
        if not asked:
            return []
        answers: list[Any] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request = self._request
        self._requests[request] = (asked, answers, done)
        try:
            for index in asked.copy():
                self.tell(index, order(request))
            await asyncio.wait([done], timeout=timeout_s)
        finally:
            del self._requests[request]
        return [one for one in answers if isinstance(one, answer)]

    def _answered(
        self,
        index: int,
        fact: ipc.SessionList
        | ipc.WorkerFigures
        | ipc.CancelTaken
        | ipc.KillTaken
        | ipc.IdList
        | ipc.BackendList
        | ipc.BackendsCounted
        | ipc.SessionEnded
        | ipc.Witnessed,
    ) -> None:
        waiting = self._requests.get(fact.request)
        if waiting is not None:
            waiting[1].append(fact)
            if not isinstance(fact, ipc.SessionList | ipc.BackendList) or fact.is_last:
                self._no_answer_from(index, fact.request)

    def _no_answer_from(self, index: int, request: int) -> None:
        asked, _, done = self._requests[request]
        asked.discard(index)
        if not asked and not done.done():
            done.set_result(None)

    # --- connections -------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        worker: _Worker | None = None
        self._connections.add(writer)
        try:
            async for body in ipc.frames(reader):
                fact = ipc.decode_fact(body)
                if worker is not None:
                    self._hear(worker, fact)
                    continue
                if not isinstance(fact, ipc.Hello):
                    _log.error("a connection did not begin with hello", said=type(fact).__name__)
                    return
                worker = self._greet(fact, writer)
                if worker is None:
                    return
        except (ValueError, msgspec.DecodeError) as error:
            _log.error("a worker sent what cannot be read", error=str(error))
        finally:
            self._connections.discard(writer)
            writer.close()
            if worker is not None and worker.writer is writer:
                self._disconnected(worker)

    def _greet(self, hello: ipc.Hello, writer: asyncio.StreamWriter) -> _Worker | None:
        """The process at the other end, if it belongs to us."""
        pid = _peer_pid(writer)
        known = self._alive.get(hello.index)
        if known is not None and known.pid != pid:
            _log.warning("a second worker with an index that is taken", worker=hello.index, pid=pid)
            os.kill(pid, signal.SIGKILL)
            return None
        if hello.index >= self._wanted and hello.version == ipc.PROTOCOL_VERSION:
            _log.warning("a worker too many drains and ends", worker=hello.index, pid=pid)
            writer.write(ipc.encode(ipc.Quit(drain_s=SURPLUS_DRAIN_S)))
            return None
        if hello.version != ipc.PROTOCOL_VERSION or self._is_stopping:
            _log.warning("a worker that does not belong here ends", worker=hello.index, pid=pid, version=hello.version)
            os.kill(pid, signal.SIGKILL)
            return None
        if known is None:
            known = self._watch(hello.index, pid, None)
            if known is None:
                return None
            _log.info("worker adopted", worker=hello.index, pid=pid)
        if known.deadline is not None:
            known.deadline.cancel()
            known.deadline = None
        known.writer, known.hello = writer, hello
        if not self._is_adopting:
            self._configure(known)
        self._notify()
        return known

    @property
    def _ears(self) -> Ears:
        assert self._listener is not None, "listening"
        return self._listener

    def _configure(self, worker: _Worker) -> None:
        assert worker.hello is not None
        self._send(worker, self._ears.configuration())
        worker.is_configured = worker.is_configured or bool(worker.hello.epochs)
        self._ears.worker_joined(worker.index, worker.hello)

    def _hear(self, worker: _Worker, fact: ipc.Fact) -> None:
        match fact:
            case ipc.Configured():
                worker.failed = fact.failed
                worker.is_configured = not fact.failed
                if fact.failed:
                    _log.error("worker could not open all ports", worker=worker.index, failed=fact.failed)
                    if self._restarts.get(worker.index):
                        self._kill(worker, "it could not open all ports")
                self._notify()
            case (
                ipc.SessionList()
                | ipc.WorkerFigures()
                | ipc.CancelTaken()
                | ipc.KillTaken()
                | ipc.IdList()
                | ipc.BackendList()
                | ipc.BackendsCounted()
                | ipc.SessionEnded()
                | ipc.Witnessed()
            ):
                self._answered(worker.index, fact)
            case _:
                self._ears.worker_said(worker.index, fact)

    def _disconnected(self, worker: _Worker) -> None:
        worker.writer = None
        for request in list(self._requests):
            self._no_answer_from(worker.index, request)
        if self._alive.get(worker.index) is worker and not self._is_stopping:
            self._expect_hello(worker, RECONNECT_GRACE_S, "it left the supervisor's socket")
        self._notify()

    def _send(self, worker: _Worker, order: ipc.Order) -> None:
        if worker.writer is not None:
            worker.writer.write(ipc.encode(order))

    # --- processes ---------------------------------------------------------------------------------------------------

    def _spawn(self, index: int) -> None:
        # A session of its own: neither Ctrl-C nor the supervisor's end reaches it.
        process = subprocess.Popen(
            [*self._command, "--socket", str(self._path), "--index", str(index)],
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name not in self._withheld},
            start_new_session=True,
        )
        worker = self._watch(index, process.pid, process)
        if worker is not None:
            self._expect_hello(worker, HELLO_TIMEOUT_S, "it did not say hello")

    def _watch(self, index: int, pid: int, process: subprocess.Popen[bytes] | None) -> _Worker | None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        worker = _Worker(index, pid, pidfd, process, time.time(), time.monotonic_ns())
        self._alive[index] = worker
        asyncio.get_running_loop().add_reader(pidfd, self._ended, worker)
        return worker

    def _expect_hello(self, worker: _Worker, within_s: float, otherwise: str) -> None:
        if worker.deadline is not None:
            worker.deadline.cancel()
        worker.deadline = asyncio.get_running_loop().call_later(within_s, self._kill, worker, otherwise)

    def _kill(self, worker: _Worker, why: str) -> None:
        if self._alive.get(worker.index) is not worker:
            return
        worker.why = why
        _log.warning("worker is ended", worker=worker.index, pid=worker.pid, why=why)
        # The pidfd names this very process, whoever has its number now.
        try:
            signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            _log.debug("it had ended by itself", worker=worker.index)

    def _ended(self, worker: _Worker) -> None:
        """The pidfd is readable: the process is gone."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        code = worker.process.wait() if worker.process is not None else None
        if worker.deadline is not None:
            worker.deadline.cancel()
        del self._alive[worker.index]
        for request in list(self._requests):
            self._no_answer_from(worker.index, request)
        why = worker.why or (f"exit code {code}" if code is not None else "its process ended")
        self._notify()
        if self._is_stopping:
            return
        _log.error("worker lost", worker=worker.index, pid=worker.pid, why=why)
        self._restarts[worker.index] = self._restarts.get(worker.index, 0) + 1
        self._ears.worker_lost(worker.index, why)
        if self._is_adopting:
            return
        lived_s = (time.monotonic_ns() - worker.started_ns) / 1e9
        step = 0 if lived_s >= STEADY_S else self._backoff.get(worker.index, 0)
        self._backoff[worker.index] = min(step + 1, len(BACKOFF_S) - 1)
        spawn(self._respawn(worker.index, BACKOFF_S[step]), name=f"respawn worker {worker.index}")

    async def _respawn(self, index: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if index not in self._alive and not self._is_stopping:
            self._spawn(index)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _notify(self) -> None:
        self._changed.set()

    async def _change(self, timeout_s: float) -> None:
        """Something about the workers changed, or the time is over."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return
        self._changed.clear()


def _peer_pid(writer: asyncio.StreamWriter) -> int:
    """Who is at the other end, as the kernel says."""
    sock: socket.socket = writer.get_extra_info("socket")
    pid, _uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    assert isinstance(pid, int)
    return pid
