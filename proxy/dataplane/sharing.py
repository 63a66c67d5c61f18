"""Both engines serve one service: sessions go to the other engine one by one, each at a boundary of its own.

A part of a `Move`, for the strategies in which nobody is held for the sake of others: rolling and canary. Only sessions
that can be moved alone are: what holds locks, temporary tables, channels or pins stays until all are held (or for good, if
the switch is undone). A session in a long transaction is tried again with the next step. Taking back is the same in the
other direction.

In session mode a session moves with its backend: opened and replayed beside the old one while that still serves, brought up to
date in one short pause. In transaction mode it is told to take its next backend from the other engine.

Which engine a session belongs on is `session.placed_on`; None is the active one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from proxy import ipc
from proxy.dataplane.backend import Backend
from proxy.dataplane.registry import Standing
from proxy.dataplane.session import EXCHANGE_TIMEOUT_S, Session
from proxy.errors import EngineError
from proxy.tasks import spawn

if TYPE_CHECKING:
    from proxy.dataplane.moving import Move

_log = structlog.get_logger("turnout.sharing")

LANES: Final = 8
"""Sessions that are moved at a time."""

TRIES_MORE: Final = 8
"""A step of n sessions looks at no more than twice n and this many, so that those in long transactions do not hold it up."""

REPLAY_TIMEOUT_S: Final = 2.0
"""How long a replay may take; a statement that waits for a lock, say, leaves the session where it is."""

BACK_AGAIN_S: Final = 0.25
"""Pause between two rounds over the sessions that could not be taken back at once."""

FAILED_SHOWN_MAX: Final = 20


class Sharing:
    """See the module. One for each switch that shares."""

    def __init__(self, move: Move, target: str, emit: Callable[[ipc.Fact], None]) -> None:
        self._move = move
        self._runtime = move.runtime
        self._target = target
        self._emit = emit
        self._step = 0
        self._percent = 0.0
        # Share of a newcomer that the target is due.
        self._due = 0.0
        self._answer: ipc.Shared | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        self._chance = random.Random(move.switch)
        self._runtime.placing = self._place_newcomer

    # --- to the target ---

    def share(self, order: ipc.Share) -> None:
        """Do a step; said again when asked again."""
        self._percent = order.percent
        if order.step <= self._step:
            if self._answer is not None and self._answer.step == order.step:
                self._emit(self._answer)
            return
        self._step = order.step
        self._task = spawn(self._do(order.step, order.moves), name=f"step {order.step} of {order.switch}")

    def stop(self) -> None:
        """Nobody is moved to the target alone any more. Those that were stay there."""
        self._is_over = True
        if self._runtime.placing == self._place_newcomer:
            self._runtime.placing = None

    def _place_newcomer(self) -> str | None:
        self._due += self._percent / 100
        if self._due < 1.0:
            return None
        self._due -= 1.0
        return self._target

    async def _do(self, step: int, moves: int) -> None:
        failed: list[str] = []
        here = [one for one in self._runtime.registry.members(Standing.SERVING) if one.placed_on is None]
        self._chance.shuffle(here)
        moved = await self._transfer_some(here[: 2 * moves + TRIES_MORE], moves, self._target, failed)
        on_target = sum(one.placed_on == self._target for one in self._runtime.registry)
        self._answer = ipc.Shared(
            switch=self._move.switch,
            service=self._runtime.name,
            step=step,
            moved=moved,
            on_target=on_target,
            left=len(self._runtime.registry) - on_target,
            failed=failed[:FAILED_SHOWN_MAX],
        )
        self._emit(self._answer)

    # --- back ---

    async def take_back(self) -> None:
        """Once round: everybody that can be moved now belongs on the active engine again."""
        self.stop()
        if self._task is not None:
            await asyncio.wait([self._task])
        runtime = self._runtime
        away = [one for one in runtime.registry if self._is_away(one)]
        for session in away:
            session.place(None)
        failed: list[str] = []
        await self._transfer_some(away, len(away), runtime.active, failed)
        if failed:
            _log.warning(
                "sessions could not be taken back yet", switch=self._move.switch, why=failed[0], count=len(failed)
            )

    async def end(self) -> None:
        """The switch is over: take back who is still away, until nobody is or another switch moves them."""
        self.stop()
        for session in self._runtime.registry:
            session.place(None)
        while self._runtime.move is self._move and any(map(self._is_away, self._runtime.registry)):
            await asyncio.sleep(BACK_AGAIN_S)
            if self._runtime.move is self._move:
                away = [one for one in self._runtime.registry if self._is_away(one)]
                await self._transfer_some(away, len(away), self._runtime.active, [])

    def _is_away(self, session: Session) -> bool:
        runtime = self._runtime
        if session.placed_on is not None and session.placed_on != runtime.active:
            return True
        backend = session.backend
        if backend is None or backend.engine == runtime.active or session.ledger is None:
            return False
        # In transaction mode a backend that is only lent goes back by itself.
        return not runtime.shares_backends or not session.ledger.is_empty

    # --- one session ---

    async def _transfer_some(self, sessions: list[Session], wanted: int, engine: str, failed: list[str]) -> int:
        """Move up to `wanted` of them; how many were. Whoever cannot be moved makes room for another one."""
        moved = 0
        queue = iter(sessions)
        is_back = engine == self._runtime.active

        async def lane() -> None:
            nonlocal moved, wanted
            for session in queue:
                if wanted <= 0 or (self._is_over and not is_back):
                    return
                wanted -= 1
                is_moved = False
                try:
                    is_moved = await self._transfer(session, engine)
                except EngineError as error:
                    failed.append(error.text)
                except Exception as error:  # noqa: BLE001  one session's bug must not leave the switch without an answer
                    _log.error("moving a session failed", switch=self._move.switch, exc_info=error)
                    failed.append(f"internal error: {type(error).__name__}; the log of the worker says more")
                moved += is_moved
                wanted += not is_moved

        await asyncio.gather(*(spawn(lane(), name=f"lane of {self._move.switch}") for _ in range(LANES)))
        return moved

    async def _transfer(self, session: Session, engine: str) -> bool:
        """Give a serving session a backend of `engine`. False: it cannot be moved now, and nothing happened to it.

        Raises EngineError if there is no backend to be had.
        """
        runtime, ledger, startup = self._runtime, session.ledger, session.startup
        if ledger is None or startup is None or session.standing is not Standing.SERVING:
            return False
        if runtime.shares_backends:
            if ledger.pins or not ledger.is_empty:
                return False
            session.place(None if engine == runtime.active else engine)
            return True
        if session.backend is None or session.backend.engine == engine or not self._may_go_alone(session):
            return False
        backend = await runtime.open(engine, startup)
        try:
            version = await self._replay(session, backend)
            if version is None:
                return False
            # A function may have changed what no statement's text told.
            ledger.is_dirty = True
            if not await self._move.pause(session):
                return False
            try:
                if not await self._bring_up_to_date(session, backend, version):
                    return False
                self._exchange(session, backend, engine)
                return True
            finally:
                session.reopen()
        finally:
            if session.backend is not backend:
                backend.close(says_goodbye=True)

    @staticmethod
    def _may_go_alone(session: Session) -> bool:
        """Nothing of it is shared with other sessions, or takes its time."""
        ledger = session.ledger
        assert ledger is not None
        return not (ledger.pins or ledger.has_tables or ledger.has_locks or ledger.replay(is_late=True) is not None)

    async def _bring_up_to_date(self, session: Session, backend: Backend, version: int) -> bool:
        """At the pause. False: it turned out that it stays."""
        ledger, relay = session.ledger, session.relay
        assert ledger is not None
        try:
            await session.inspect()
        except EngineError as error:
            if not session.has_ended and session.backend is not None:
                session.lose_backend(error.text)
            return False
        if session.has_ended or session.ledger is not ledger or not self._may_go_alone(session):
            return False
        if ledger.version != version:
            await backend.run(self._runtime.wire.reset(backend.startup, backend.facts), REPLAY_TIMEOUT_S)
            backend.notes.clear()
            if await self._replay(session, backend) is None:
                return False
        return (
            not session.has_ended
            and session.standing is Standing.SERVING
            and session.backend is not None
            and not backend.is_lost
            and relay is not None
            and relay.at_boundary()
        )

    @staticmethod
    async def _replay(session: Session, backend: Backend) -> int | None:
        """Make it hold what the ledger says; the ledger's version that it holds, or None if it was refused in part."""
        ledger = session.ledger
        if ledger is None:
            return None
        version = ledger.version
        replay = ledger.replay(is_late=False)
        if replay is not None:
            await backend.run(replay, min(REPLAY_TIMEOUT_S, EXCHANGE_TIMEOUT_S))
            if replay.errors:
                _log.info("a session stays: its replay was refused", session=session.id, errors=replay.errors[:5])
                return None
        backend.notes = ledger.adopt(backend.notes)
        return version

    def _exchange(self, session: Session, backend: Backend, engine: str) -> None:
        assert session.startup is not None
        old = session.take_away()
        if old is not None:
            pool = self._runtime.pool_of(old)
            if pool is not None:
                pool.discard(old)
            else:
                old.close(says_goodbye=True)
        session.place(None if engine == self._runtime.active else engine)
        session.move_notes = None
        self._runtime.pool(engine, session.startup).adopt(backend)
        session.give(backend)
