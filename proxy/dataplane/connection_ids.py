"""By which ids clients know the connections of a MySQL engine: those that they were told at their logins.

A client that asks for the process list gets these ids from the server's rows (`protocols.mysql.connection_ids`): of the sessions
of all workers, so the others are asked, by way of the supervisor. Connections that have no session keep the server's id: idle
ones of pools, the proxy's own, and those of others.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from protocols.wire import IdsWanted
from proxy import ipc

if TYPE_CHECKING:
    from proxy.dataplane.session import Session
    from proxy.worker import Worker

TIMEOUT_S: Final = 3.0
"""Longest time the other workers may take; what they know is left out then. The supervisor gives each of them less."""


class ConnectionIds:
    """Of one worker; see the module."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._asked: dict[int, asyncio.Future[dict[int, int]]] = {}
        """What other workers were asked for, by number."""
        self._number = 0

    async def of(self, asker: Session, wanted: IdsWanted) -> dict[int, int]:
        """By the server's id of a connection the one that its client knows, for what a client of this worker asks."""
        backend, runtime = asker.backend, asker.runtime
        assert backend is not None
        assert runtime is not None
        if not wanted.is_list:
            return {backend.facts.process_id: asker.connection_id}
        others = await self._ask_others(runtime.name, backend.engine)
        return others | self.known(runtime.name, backend.engine)

    def known(self, service: str, engine: str) -> dict[int, int]:
        """Of this worker's sessions."""
        return {
            session.backend.facts.process_id: session.connection_id
            for session in self._worker.sessions.values()
            if session.backend is not None
            and session.backend.engine == engine
            and session.runtime is not None
            and session.runtime.name == service
        }

    def told(self, order: ipc.IdsTold) -> None:
        """What the other workers know."""
        asked = self._asked.get(order.request)
        if asked is not None and not asked.done():
            asked.set_result(order.ids)

    async def _ask_others(self, service: str, engine: str) -> dict[int, int]:
        if self._worker.config.workers == 1:
            return {}
        self._number += 1
        request = self._number
        asked: asyncio.Future[dict[int, int]] = asyncio.get_running_loop().create_future()
        self._asked[request] = asked
        self._worker.emit(ipc.IdsWanted(request=request, service=service, engine=engine))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await asked
        except TimeoutError:
            return {}
        finally:
            del self._asked[request]
