"""MySQL's KILL: finds the session that is meant, in whichever worker, and has its engine kill what runs for it now.

The engine decides whether the user may: the KILL is sent to it on a fresh connection of the user who asked, with the id that
the session's backend has there. Where one account opens the backends of all clients, it could not tell them apart, so a
client may then kill its own user's sessions only.

A session that was killed ends; it is not given another backend.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from protocols.wire import BackendRefused, ErrorReply, KillWanted, Startup, Wire
from proxy import ipc
from proxy.errors import EngineRefused, KillRefused, ProxyError

if TYPE_CHECKING:
    from proxy.dataplane.backend import Backend
    from proxy.dataplane.session import Session
    from proxy.worker import Worker

_log = structlog.get_logger("turnout.kills")

KILL_TIMEOUT_S: Final = 5.0
"""Longest time an engine may take to let us in and to take a KILL."""


# MySQL's numbers; PostgreSQL has no KILL.
_NO_SUCH_THREAD: Final = 1094
_DENIED: Final = 1095
_INTERRUPTED: Final = 1317


class NobodyHasIt(Exception):
    """The id is no session's: the engine may know it."""


class Kills:
    """Of one worker; see the module."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._asked: dict[int, asyncio.Future[ipc.KillDone]] = {}
        """What other workers were asked about, by number."""
        self._number = 0

    async def kill(self, asker: Session, wanted: KillWanted) -> ErrorReply | None:
        """Do what a client of this worker wants. Returns the error it is told, None: it is done. Raises NobodyHasIt."""
        assert asker.runtime is not None
        assert asker.startup is not None
        if wanted.connection_id == asker.connection_id:
            if not wanted.is_query:
                asker.is_killed = True
            return KillRefused("Query execution was interrupted", _INTERRUPTED, "70100").reply()
        service, user = asker.runtime.name, asker.startup.user
        found = self._session_called(service, wanted.connection_id)
        if found is not None:
            return await self._kill_here(found, user, wanted)
        done = await self._ask_others(service, user, wanted)
        if done is not None and done.is_found:
            return KillRefused(done.text, done.code, done.sqlstate).reply() if done.code else None
        if not wanted.is_own_id:
            raise NobodyHasIt
        return KillRefused(f"Unknown thread id: {wanted.connection_id}", _NO_SUCH_THREAD).reply()

    async def kill_for_another(self, order: ipc.KillSession) -> None:
        """The same for a client of another worker."""
        found = self._session_called(order.service, order.connection_id)
        taken = ipc.KillTaken(request=order.request, is_found=found is not None)
        if found is not None:
            refused = await self._kill_here(found, order.user, KillWanted(order.connection_id, order.is_query))
            if refused is not None:
                taken = ipc.KillTaken(
                    request=order.request,
                    is_found=True,
                    code=refused.mysql_code,
                    sqlstate=refused.mysql_sqlstate,
                    text=refused.message,
                )
        self._worker.emit(taken)

    def done(self, order: ipc.KillDone) -> None:
        """What the other workers did about one of ours."""
        asked = self._asked.get(order.request)
        if asked is not None and not asked.done():
            asked.set_result(order)

    async def _ask_others(self, service: str, user: str, wanted: KillWanted) -> ipc.KillDone | None:
        if self._worker.config.workers == 1:
            return None
        self._number += 1
        request = self._number
        asked: asyncio.Future[ipc.KillDone] = asyncio.get_running_loop().create_future()
        self._asked[request] = asked
        self._worker.emit(
            ipc.KillWanted(
                request=request,
                service=service,
                user=user,
                connection_id=wanted.connection_id,
                is_query=wanted.is_query,
            )
        )
        try:
            async with asyncio.timeout(2 * KILL_TIMEOUT_S):
                return await asked
        except TimeoutError:
            return None
        finally:
            del self._asked[request]

    def _session_called(self, service: str, connection_id: int) -> Session | None:
        """The one whose client was told this id, or whose backend has it."""
        for session in self._worker.sessions.values():
            if session.runtime is not None and session.runtime.name == service and session.startup is not None:
                backend = session.backend
                if connection_id == session.connection_id or (
                    backend is not None and connection_id == backend.facts.process_id
                ):
                    return session
        return None

    async def _kill_here(self, target: Session, user: str, wanted: KillWanted) -> ErrorReply | None:
        runtime, backend = target.runtime, target.backend
        assert runtime is not None
        assert target.startup is not None
        engine = backend.engine if backend is not None else runtime.active
        is_other = user != target.startup.user
        opens_as_one = backend.reach.login is not None if backend is not None else runtime.opens_as_one(engine)
        if is_other and opens_as_one:
            return KillRefused(f"You are not owner of thread {wanted.connection_id}", _DENIED).reply()
        try:
            if is_other and _runs_nothing(target) and (backend is None or wanted.is_query):
                await self._have_stand_in_killed(target, user, wanted)
            if _runs_nothing(target) and wanted.is_query:
                return None
            if target.backend is not None:
                await self._have_killed(target, user, wanted)
        except EngineRefused as error:
            target.is_killed = False
            return error.reply()
        except ProxyError as error:
            target.is_killed = False
            _log.info("a KILL did not reach the engine", session=target.id, engine=engine, why=error.text)
            return error.reply()
        if not wanted.is_query:
            target.end_killed()
        return None

    async def _have_killed(self, target: Session, user: str, wanted: KillWanted) -> None:
        """Raises EngineError."""
        runtime, backend = target.runtime, target.backend
        assert runtime is not None
        assert backend is not None
        pool = runtime.pool_of(backend)
        # From now on it is lent to nobody else, and its loss is no accident.
        backend.cancels += 1
        target.is_killed = not wanted.is_query
        is_sure = True
        try:
            messenger = await runtime.open_beside(backend, Startup(user, ""))
            is_sure = False
            refused = await self._order(messenger, runtime.wire, backend, wanted)
            is_sure = True
            if refused is not None:
                raise EngineRefused(backend.engine, refused)
        finally:
            backend.cancel_ended(is_sure=is_sure)
            if pool is not None:
                pool.cancel_done(backend)

    async def _have_stand_in_killed(self, target: Session, user: str, wanted: KillWanted) -> None:
        """The session has no backend that could be killed, or must not be: one like it is opened, so that the engine judges.
        Raises EngineError."""
        runtime, startup, backend = target.runtime, target.startup, target.backend
        assert runtime is not None
        assert startup is not None
        if backend is not None:
            stand_in = await runtime.open_beside(backend, startup)
        else:
            stand_in = await runtime.open(runtime.active, startup)
        try:
            messenger = await runtime.open_beside(stand_in, Startup(user, ""))
            refused = await self._order(messenger, runtime.wire, stand_in, wanted)
            if refused is not None:
                raise EngineRefused(stand_in.engine, refused)
        finally:
            stand_in.close()

    async def _order(
        self, messenger: Backend, wire: Wire, victim: Backend, wanted: KillWanted
    ) -> BackendRefused | None:
        """Have the engine kill `victim`, or its statement; `messenger` is closed then. Returns what the engine has against it.
        Raises EngineLost."""
        exchange, refusal = wire.kill(victim.facts.process_id, is_query=wanted.is_query)
        is_sure = False
        try:
            await messenger.run(exchange, KILL_TIMEOUT_S)
            is_sure = True
        finally:
            messenger.close(says_goodbye=is_sure)
        return refusal()


def _runs_nothing(session: Session) -> bool:
    tracker = session.tracker
    return session.backend is None or session.is_asking or tracker is None or tracker.is_idle()
