"""One switch of one service, as far as a worker takes part in it: prepare, hold, retarget, release.

The supervisor orders, this answers with facts; every order may come twice. What a session needs on the target is
opened and replayed while traffic goes on (`prepare`); in the hold only what changed since is done again.

Cases, in the order of a session's life in a switch:
- prepared at an idle moment, nothing changed since: at its boundary it is held; its backend is swapped in the step that
  releases it, so that nobody waits for the swap of others.
- its ledger changed after the preparation: inspected and replayed again at its boundary, before it counts as held.
- without a backend (transaction mode, or still arriving): nothing to swap; it takes one of the target later.
- came after the preparation, or was in a transaction all the time: prepared in the hold (MySQL), or after the promotion
  (PostgreSQL), while the others work already.
- left: not at a boundary, or pinned, at the drain deadline of a switch between two addresses of one server. It goes on
  with its backend as if nothing was, and moves with a later switch if it can by then.
- pinned: it works on in spite of the hold, and is asked again whenever it may have let go of what cannot be carried;
  at the drain deadline the supervisor decides.
- its backend was lost while held: it gets a target backend like the others; after an abort, a fresh one of the source.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from protocols.codes import GATE_CLOSED, GATE_DRAIN, GATE_OPEN
from protocols.wire import Exchange
from proxy import ipc
from proxy.dataplane.backend import Backend
from proxy.dataplane.registry import Standing
from proxy.dataplane.runtime import Runtime
from proxy.dataplane.session import EXCHANGE_TIMEOUT_S, Session
from proxy.dataplane.sharing import Sharing
from proxy.errors import Aborted, EngineError, EngineLost, EngineSilent, HoldExpired
from proxy.tasks import cancel_and_wait, in_haste, spawn

_log = structlog.get_logger("turnout.moving")

CONCURRENT_PREPARES: Final = 8
"""Target backends opened at a time: more only queue up in the engine while it serves others."""

SETTLE_SHARE: Final = 0.1
SETTLE_MAX_S: Final = 0.25
"""Share of the time that the preparation took which passes before it is told to be over, and the most of it. Opening so many
backends keeps the engines and this worker busy, and requests queue up: were all held at once, the switch would wait for them."""

PAUSE_TIMEOUT_S: Final = 2.0
"""How long the preparation waits for a session's boundary before it leaves the session to the hold."""

PREPARE_REPLAY_TIMEOUT_S: Final = 2.0
"""How long a replay may take while traffic goes on, before it is left to the hold."""

STAY_TIMEOUT_S: Final = 0.25
"""The same in the hold, where the session may as well stay."""

RAMP_FIRST: Final = 4
"""Requests let through first: the target's caches are cold, and a crowd would only share its processors."""

RAMP_FIRST_WAIT_S: Final = 0.01
"""How long the first answer is waited for before the others follow."""

RAMP_PAUSE_S: Final = 0.001
"""Pause between batches, each twice as large as the one before."""

CLOSE_BATCH: Final = 8
CLOSE_PAUSE_S: Final = 0.005
"""Left-over backends closed at a time, and the pause between: a server process that ends costs processor time."""

_NO_OUTCOMES: Final[Mapping[str, str]] = {}

_NEVER: Final = -1
"""A version that no ledger has."""

PROGRESS_INTERVAL_NS: Final = 50_000_000

WARNINGS_GRACE_S: Final = 0.02
"""After an answer that counted warnings: how long the client may still ask its backend for them (MySQL's SHOW WARNINGS).
Drivers do so at once, some of them always; the next backend would say that there are none, and so would the old one
after an inspection."""


@dataclass(slots=True)
class Prepared:
    """A session's place on the target."""

    backend: Backend | None = None
    version: int | None = None
    """The ledger's version that was replayed on it; None: the backend is as fresh as opened."""
    paused: asyncio.Future[None] | None = None
    """Resolved at the session's next boundary, for the preparation."""
    is_refused_in_part: bool = False
    """The target refused some of the replay, perhaps because it is still in recovery (no serializable transactions
    there, say): it is done again after the promotion."""
    is_postponed_in_part: bool = False
    """Statements are made there when they are used, because their table was not there when they were replayed."""
    catching_up: asyncio.Task[None] | None = None
    """Preparing in the hold."""
    is_asked: bool = False
    """The session's own backend was asked what it holds."""
    has_late_part: bool = False
    """Locks and channels are on `backend`."""
    had_grace: bool = False
    """In the hold it was let read its warnings, or had the time to."""


@dataclass(slots=True)
class _Answer:
    """What was answered last, in case the order is repeated."""

    prepared: ipc.Prepared | None = None
    all_held: ipc.AllHeld | None = None
    retargeted: ipc.Retargeted | None = None
    interrupted: list[ipc.Interrupted] = field(default_factory=list)


def _waiting_since(session: Session) -> int:
    """When its waiting request came; of those that have none, later than any."""
    return (session.relay.waiting_since_ns if session.relay is not None else 0) or 1 << 63


def _what_it_waits_for(session: Session) -> str:
    if session.is_asking:
        return "a question of the proxy's own"
    if session.ledger is not None and session.ledger.pins:
        return "pinned by " + ", ".join(session.ledger.pins)
    return "its transaction or answer"


class Move:
    """See the module. Lives from Prepare (or Hold) to Release."""

    def __init__(self, runtime: Runtime, switch: str, emit: Callable[[ipc.Fact], None]) -> None:
        self.runtime = runtime
        self.switch = switch
        self.target: str | None = None
        self.phase = "preparing"
        """sharing, preparing, holding, retargeted, releasing; a Hello tells all but the last."""
        self.sharing: Sharing | None = None
        """Both engines serve, or did until the sessions that are left were held."""
        self._emit = emit
        self._answer = _Answer()
        self._task: asyncio.Task[None] | None = None
        self._hold_began_ns = 0
        self._last_boundary_ns = 0
        self._progress_ns = 0
        self._leftovers: list[Backend] = []
        """Source backends to close after the release, off the critical path."""
        self._answered = asyncio.Event()
        """A released session had its first answer from the target."""
        self._refused = 0
        # What the release tells.
        self._released = 0
        self._first_request_ns = 0
        self._waits_us: list[int] = []
        self._abandons = False
        """The source has failed: no session has a backend there any more, nor will it have one."""
        self._may_stay = False
        """A session whose new backend cannot be had keeps the one it has: source and target are one server."""
        self._leaves = False
        """Who serves in spite of the hold keeps the backend it has."""

    @property
    def may_end_backends(self) -> bool:
        """A backend that ends now may have been ended because of this switch: by the source's fence, or its promotion."""
        return self.phase not in ("sharing", "preparing") and not self._may_stay

    # --- share ---

    def share(self, order: ipc.Share) -> None:
        """Both engines serve: see `sharing`."""
        if self.sharing is None:
            self.target = order.target
            self.phase = "sharing"
            self.sharing = Sharing(self, order.target, self._emit)
        if self.phase == "sharing":
            # It may last for hours, and has a task while there is something to do.
            in_haste.discard(self)
            self.sharing.share(order)

    def _end_sharing(self) -> None:
        """What is left to move is moved by a hold."""
        if self.phase == "sharing":
            self.phase = "preparing"
            in_haste.add(self)
        if self.sharing is not None:
            self.sharing.stop()

    def _is_there(self, session: Session) -> bool:
        """It was moved while both engines served."""
        return self.sharing is not None and session.backend is not None and session.backend.engine == self.target

    # --- prepare ---

    def prepare(self, target: str) -> None:
        self._end_sharing()
        if self._answer.prepared is not None and self.target == target:
            self._emit(self._answer.prepared)
            return
        if self._task is not None and not self._task.done():
            return
        self.target = target
        self._task = spawn(self._prepare(target), name=f"prepare {self.switch}")

    async def _prepare(self, target: str) -> None:
        runtime = self.runtime
        failed: list[str] = []
        work: list[Callable[[], Awaitable[None]]] = []
        for session in runtime.registry:
            if self._is_there(session):
                continue
            if session.backend is not None and (not runtime.shares_backends or self._is_pinned(session)):
                work.append(lambda session=session: self._prepare_session(session))  # type: ignore[misc]
        if runtime.shares_backends:
            for pool in runtime.pools(runtime.active):
                for startup, count in pool.demand().items():
                    target_pool = runtime.pool(target, startup)
                    for _ in range(count):
                        work.append(lambda s=startup, p=target_pool: self._prepare_idle(s, p))  # type: ignore[misc]
        count = len(work)
        began = time.monotonic()
        await self._in_parallel(work, failed)
        await asyncio.sleep(min(SETTLE_SHARE * (time.monotonic() - began), SETTLE_MAX_S))
        self._answer.prepared = ipc.Prepared(
            switch=self.switch,
            service=runtime.name,
            sessions=count - len(failed),
            backend_pids=self._process_ids(),
            failed=failed[:20],
        )
        self._emit(self._answer.prepared)

    async def _in_parallel(self, work: Iterable[Callable[[], Awaitable[None]]], failed: list[str]) -> None:
        queue = iter(list(work))

        async def one_after_another() -> None:
            for step in queue:
                try:
                    await step()
                except EngineError as error:
                    failed.append(error.text)
                except Exception as error:  # noqa: BLE001  one session's bug must not leave the switch without an answer
                    _log.error("preparing failed", switch=self.switch, exc_info=error)
                    failed.append(f"internal error: {type(error).__name__}; the log of the worker says more")

        lanes = [spawn(one_after_another(), name=f"prepare lane {self.switch}") for _ in range(CONCURRENT_PREPARES)]
        try:
            await asyncio.gather(*lanes)
        finally:
            await cancel_and_wait(*lanes)

    @staticmethod
    def _is_pinned(session: Session) -> bool:
        return session.ledger is not None and not (session.ledger.is_empty and not session.ledger.pins)

    async def _prepare_idle(self, startup: Any, pool: Any) -> None:
        assert self.target is not None
        backend = await self.runtime.open_as(self.target, startup)
        pool.shelve(backend)

    def _notes(self, session: Session) -> Prepared:
        if not isinstance(session.move_notes, Prepared):
            session.move_notes = Prepared()
        return session.move_notes

    async def _prepare_session(self, session: Session) -> None:
        """Bring a serving session's ledger up to date at a boundary, then open and replay on the target."""
        ledger = session.ledger
        if ledger is None or session.has_ended:
            return
        notes = self._notes(session)
        if not await self._pause(session, notes):
            return
        await self._inspect_once(session, notes)
        if session.is_draining:
            self.reached(session)
            return
        if not ledger.pins:
            try:
                await self._replay(session, notes, PREPARE_REPLAY_TIMEOUT_S)
            except EngineSilent as error:
                # A statement that waits for a lock, say. The hold tries again.
                _log.info("session not prepared", session=session.id, why=error.text)

    async def _inspect_once(self, session: Session, notes: Prepared) -> None:
        """Everybody is asked once, because a function may have changed what no statement's text told."""
        assert session.ledger is not None
        session.ledger.is_dirty = True
        await self._inspect(session)
        notes.is_asked = True

    async def _inspect(self, session: Session) -> None:
        """Ask the session's own backend. An abort must not cut this short: the answer would stay in the way."""
        await asyncio.shield(
            session.ask_soon(lambda: self._ask(session, session.inspect), name=f"inspect session {session.id}")
        )

    async def _ask_for(self, session: Session, exchange: Exchange) -> None:
        """The same with an exchange of another kind."""
        await asyncio.shield(
            session.ask_soon(
                lambda: self._ask(session, lambda: session.ask(exchange)), name=f"ask session {session.id}"
            )
        )

    @staticmethod
    async def _ask(session: Session, question: Callable[[], Awaitable[None]]) -> None:
        try:
            await question()
        except EngineError as error:
            if session.standing in (Standing.SERVING, Standing.ARRIVING):
                session.lose_backend(error.text)
            elif session.backend is not None and session.standing is not Standing.ENDED:
                # Held or about to be: the switch gives it another backend.
                session.drop_lost_backend()
                session.tell_move()
            return
        if session.standing is Standing.SERVING:
            session.reopen()

    async def _pause(self, session: Session, notes: Prepared) -> bool:
        """Wait for the session's boundary; its gate is closed there. False, with the gate as it was, if it takes too
        long."""
        relay = session.relay
        if relay is None or session.is_asking or session.standing is not Standing.SERVING:
            return False
        notes.paused = asyncio.get_running_loop().create_future()
        try:
            relay.notifies = True
            # A second time for one who has its grace when it is asked, and says nothing any more.
            for timeout_s in (self._grace_left_s(session), PAUSE_TIMEOUT_S):
                if not notes.paused.done() and session.backend is not None and relay.at_boundary():
                    self.paused(session)
                if not notes.paused.done() and timeout_s > 0:
                    await asyncio.wait([notes.paused], timeout=timeout_s)
            if (
                notes.paused.done()
                and session.standing is Standing.SERVING
                and session.backend is not None
                and not session.is_asking
                and relay.at_boundary()
            ):
                return True
        except asyncio.CancelledError:
            session.reopen()
            raise
        finally:
            notes.paused = None
            relay.notifies = self.runtime.shares_backends or session.is_draining
        if not session.has_ended:
            session.reopen()
        return False

    async def pause(self, session: Session) -> bool:
        """The same for `sharing`."""
        return await self._pause(session, self._notes(session))

    def paused(self, session: Session) -> None:
        """The session reached a boundary while serving. If the preparation waits for that, the gate closes in this very
        step: the client may send its next statement before anything else runs."""
        notes = session.move_notes
        if isinstance(notes, Prepared) and notes.paused is not None and not notes.paused.done():
            assert session.relay is not None
            if self._grace_left_s(session) > 0:
                # The question would take the warnings away.
                return
            session.relay.set_gate(GATE_CLOSED)
            notes.paused.set_result(None)

    async def _replay(self, session: Session, notes: Prepared, timeout_s: float = EXCHANGE_TIMEOUT_S) -> None:
        """Make `notes.backend` a backend of the target that holds what the ledger says. Raises EngineError."""
        ledger, startup = session.ledger, session.startup
        if ledger is None or startup is None or self.target is None or session.has_ended:
            return
        if notes.backend is not None and notes.backend.is_lost:
            notes.backend = None
        if notes.backend is not None and notes.version == ledger.version:
            return
        if notes.backend is None:
            notes.backend = await self.runtime.open(self.target, startup)
        elif notes.version is not None:
            # The replay is not a difference but a whole: begin anew.
            reset = self.runtime.wire.reset(notes.backend.startup, notes.backend.facts)
            await notes.backend.run(reset, timeout_s)
            notes.backend.notes.clear()
        backend = notes.backend
        version = ledger.version
        replay = ledger.replay(is_late=False)
        if replay is not None:
            await backend.run(replay, timeout_s)
            notes.is_refused_in_part = bool(replay.errors)
            notes.is_postponed_in_part = bool(replay.postponed)
            if replay.postponed:
                _log.info("replay postponed in part", session=session.id, errors=replay.postponed[:5])
            if replay.errors:
                log = _log.warning if self.phase == "releasing" else _log.info
                log("replay refused in part", session=session.id, errors=replay.errors[:5])
        backend.notes = ledger.adopt(backend.notes)
        notes.version = version
        if session.has_ended:
            backend.close(says_goodbye=True)
            notes.backend = None

    async def _replay_whole(self, session: Session, notes: Prepared, timeout_s: float = EXCHANGE_TIMEOUT_S) -> None:
        """After the promotion: what a standby refused is done anew."""
        if notes.is_refused_in_part:
            # A version that no ledger has.
            notes.version = _NEVER
        await self._replay(session, notes, timeout_s)

    # --- hold ---

    def stop_opening(self) -> None:
        """Open no backends for clients; said again when asked again."""
        self.runtime.stop_opening()
        self._emit(ipc.OpeningStopped(switch=self.switch, service=self.runtime.name))

    def hold(self, *, may_stay: bool = False) -> None:
        """Hold every session at its next boundary. `may_stay`: one that cannot be moved keeps its backend."""
        self._end_sharing()
        if self.phase != "preparing":
            if self._answer.all_held is not None:
                self._emit(self._answer.all_held)
            return
        self.phase = "holding"
        self._may_stay = may_stay
        self._hold_began_ns = self._last_boundary_ns = time.monotonic_ns()
        self.runtime.hold()
        # On the next turn of the loop: the orders of one switch come together.
        asyncio.get_running_loop().call_soon(self._hold_all)

    def abandon(self, reason: str) -> None:
        """The engine that serves has failed: every session loses its backend there, and is held. See `ipc.Abandon`."""
        if self.phase != "preparing":
            if self._answer.all_held is not None:
                self._emit(self._answer.all_held)
            return
        self.phase = "holding"
        self._abandons = True
        self._hold_began_ns = self._last_boundary_ns = time.monotonic_ns()
        self.runtime.hold()
        registry = self.runtime.registry
        for session in registry.members(Standing.SERVING):
            # From here on whoever loses its backend, or gets one, says so here.
            registry.move(session, Standing.DRAINING)
        for session in registry.members(Standing.DRAINING):
            if session.backend is None and not session.is_asking:
                self.reached(session)
            else:
                session.abandon(reason)
            if session.transaction_in_doubt:
                self._held(session)
        self._check_all_held()

    def _hold_all(self) -> None:
        if self.phase != "holding":
            return
        now_ns = time.monotonic_ns()
        for session in self.runtime.registry.members(Standing.SERVING):
            if not session.end_if_idle(now_ns):
                self._hold_session(session)
        self._check_all_held()

    def _hold_session(self, session: Session) -> None:
        relay = session.relay
        assert relay is not None, "a serving session has a relay"
        self.runtime.registry.move(session, Standing.DRAINING)
        if session.is_asking:
            return
        if session.backend is None or relay.at_boundary():
            self.reached(session)
            return
        relay.notifies = True
        relay.set_gate(GATE_DRAIN)

    def reached(self, session: Session) -> None:
        """A draining session is at a boundary: hold it, or first catch up with what is not prepared."""
        if session.standing is not Standing.DRAINING or self.phase == "preparing":
            return
        relay, ledger = session.relay, session.ledger
        assert relay is not None
        assert ledger is not None
        notes = self._notes(session)
        if notes.catching_up is not None and not notes.catching_up.done():
            return
        if ledger.pins and not ledger.is_dirty and notes.is_asked and not self._is_there(session):
            self._let_work_on(session)
            return
        if not notes.had_grace and (left_s := self._grace_left_s(session)) > 0:
            notes.had_grace = True
            self._let_work_on(session)
            asyncio.get_running_loop().call_later(left_s, self._end_grace, session)
            return
        relay.set_gate(GATE_CLOSED)
        if self._needs_catching_up(session, notes):
            notes.catching_up = spawn(self._catch_up(session, notes), name=f"session {session.id} catches up")
            return
        self._held(session)

    @staticmethod
    def _grace_left_s(session: Session) -> float:
        """How long the client may still be about to ask for its last statement's warnings; see `WARNINGS_GRACE_S`."""
        relay = session.relay
        assert relay is not None
        if session.backend is None or not relay.tracker.has_warnings:
            return 0.0
        return WARNINGS_GRACE_S - (time.monotonic_ns() - relay.last_answer_ns) / 1e9

    def _end_grace(self, session: Session) -> None:
        """It is held now, or at its next boundary."""
        relay = session.relay
        if session.standing is not Standing.DRAINING or self.phase != "holding" or relay is None or session.is_asking:
            return
        if relay.at_boundary():
            self.reached(session)
        else:
            relay.set_gate(GATE_DRAIN)

    @staticmethod
    def _let_work_on(session: Session) -> None:
        """Only the client can change what holds it up, so it must not be stopped: it is pinned, or has its grace."""
        assert session.relay is not None
        session.relay.notifies = True
        session.relay.set_gate(GATE_OPEN)

    def _needs_catching_up(self, session: Session, notes: Prepared) -> bool:
        ledger = session.ledger
        assert ledger is not None
        if self.target is None or session.backend is None or self._is_there(session):
            return False
        if self.runtime.shares_backends and ledger.is_empty and not ledger.is_dirty and not ledger.pins:
            return False
        return (
            ledger.is_dirty
            or ledger.has_tables
            or notes.backend is None
            or notes.backend.is_lost
            or notes.version != ledger.version
        )

    async def _catch_up(self, session: Session, notes: Prepared) -> None:
        ledger = session.ledger
        assert ledger is not None
        if session.is_asking:
            # Since it reached its boundary somebody else has begun to; who asks tells the switch when it is done.
            notes.catching_up = None
            return
        try:
            # Tables change without a word.
            must_ask = ledger.is_dirty or ledger.has_tables or not notes.is_asked
            if must_ask and session.backend is not None:
                await self._inspect_once(session, notes)
                await self._read_tables(session)
            has_backend = notes.backend is not None and not notes.backend.is_lost
            if not ledger.pins and (has_backend or not self._fence_binds_newcomers):
                await self._replay(session, notes)
        except EngineError as error:
            # Tried again at the cutover; only then it is the session's fate.
            _log.warning("session not prepared", session=session.id, why=error.text)
        if session.standing is not Standing.DRAINING:
            return
        if ledger.pins and session.backend is not None:
            notes.catching_up = None
            self._let_work_on(session)
        else:
            self._held(session)

    async def _read_tables(self, session: Session) -> None:
        """After an inspection, at the boundary at which the session is held."""
        ledger = session.ledger
        assert ledger is not None
        if ledger.pins or session.backend is None or session.standing is not Standing.DRAINING:
            return
        reading = ledger.read_tables(self.runtime.config.switch.temp_tables_bytes_max)
        if reading is not None:
            await self._ask_for(session, reading)

    @property
    def _fence_binds_newcomers(self) -> bool:
        """A backend that logs in during the hold may find the source's fence on the target, where replication brought it
        (see `engines/postgres`): it is opened after the promotion."""
        return self.runtime.wire.name == "postgresql"

    def _held(self, session: Session) -> None:
        assert session.relay is not None
        session.relay.hold()
        self.runtime.registry.move(session, Standing.HELD)
        self._last_boundary_ns = time.monotonic_ns()
        self._check_all_held()

    def _check_all_held(self) -> None:
        registry = self.runtime.registry
        if self.phase != "holding" or self._answer.all_held is not None:
            return
        draining = registry.count(Standing.DRAINING)
        if draining or (registry.count(Standing.SERVING) and not self._leaves):
            return
        self._note_losses()
        self._answer.all_held = ipc.AllHeld(
            switch=self.switch,
            service=self.runtime.name,
            held=registry.count(Standing.HELD),
            hold_began_ns=self._hold_began_ns,
            last_boundary_ns=self._last_boundary_ns,
            backend_pids=[] if self._abandons else self._process_ids(),
            interrupted=list(self._answer.interrupted),
            in_doubt=[session.transaction_in_doubt for session in self.runtime.doubts],
        )
        self._emit(self._answer.all_held)

    def _note_losses(self) -> None:
        """What sessions were told of the loss of a source that failed."""
        if not self._abandons:
            return
        for loss in self.runtime.take_losses(self.runtime.active):
            self._answer.interrupted.append(
                ipc.Interrupted(session=loss.session, user=loss.user, reason=loss.reason, code_sent=loss.code)
            )

    def _process_ids(self) -> list[int]:
        runtime = self.runtime
        pooled = {pid for pool in runtime.pools(runtime.active) for pid in pool.process_ids()}
        return sorted(pooled.union(runtime.lookups.process_ids(runtime.active)))

    def ended(self, session: Session) -> None:
        """A session ended during the switch."""
        notes = session.move_notes
        if isinstance(notes, Prepared):
            if notes.paused is not None and not notes.paused.done():
                notes.paused.set_result(None)
            if notes.backend is not None:
                notes.backend.close(says_goodbye=True)
                notes.backend = None
        session.move_notes = None
        self._check_all_held()

    def terminate(self, reason: str) -> None:
        """Wait no longer for the sessions that are not held yet: their transactions are rolled back. Whoever holds what
        cannot be carried is ended."""
        for session in self.runtime.registry.members(Standing.DRAINING):
            if session.cut_rollback():
                session.go_on_without(self.runtime.active, reason)
                continue
            told = session.abort_transaction(reason)
            if told is None:
                self._interrupt(session, Aborted(f"the session was ended by a switch: {reason}"))
            else:
                self._note_interrupted(session, told)
                session.go_on_without(self.runtime.active, reason)

    def leave(self) -> None:
        """Let the sessions that are not held yet go on where they are: source and target are one server."""
        if self.phase != "holding":
            return
        self._leaves = True
        for session in self.runtime.registry.members(Standing.DRAINING):
            if session.backend is None and not session.is_asking:
                # It was lost, and there is nothing to leave it with.
                self._held(session)
            else:
                self._undo_drain(session)
        self._check_all_held()

    def hold_late(self, session: Session) -> None:
        """A session that was left wants a backend (transaction mode): it waits like the others."""
        assert session.relay is not None
        session.relay.hold()
        self.runtime.registry.move(session, Standing.HELD)

    def _interrupt(self, session: Session, error: Aborted | EngineError | HoldExpired) -> None:
        self._note_interrupted(session, error)
        session.end_with(error)

    def _note_interrupted(self, session: Session, error: Aborted | EngineError | HoldExpired) -> None:
        self._answer.interrupted.append(
            ipc.Interrupted(
                session=session.id,
                user=session.startup.user if session.startup is not None else "",
                reason=error.text,
                code_sent=error.sqlstate if self.runtime.wire.name == "postgresql" else str(error.mysql_code),
            )
        )

    # --- retarget ---

    def retarget(self, target: str, epoch: int, outcomes: Mapping[str, str] = _NO_OUTCOMES) -> None:
        """The cutover of this worker. Sessions stay held. `outcomes`: what became of transactions in doubt, by id."""
        if self._answer.retargeted is not None:
            self._emit(self._answer.retargeted)
            return
        if epoch <= self.runtime.epoch:
            _log.error("retarget with an old epoch refused", service=self.runtime.name, epoch=epoch)
            return
        if self.phase == "preparing":
            self.hold()
            self._hold_all()
        self.target = target
        if self._task is not None and not self._task.done():
            return
        for session in list(self.runtime.doubts):
            session.resolve(outcomes.get(session.transaction_in_doubt))
        self._note_losses()
        late = [session for session in self.runtime.registry.members(Standing.HELD) if self._has_late_part(session)]
        if late:
            self._task = spawn(self._retarget_late(late, epoch), name=f"retarget {self.switch}")
        else:
            self._retargeted(epoch)

    def _has_late_part(self, session: Session) -> bool:
        ledger = session.ledger
        return (
            ledger is not None
            and self._needs_backend(session)
            and (ledger.has_locks or ledger.replay(is_late=True) is not None)
        )

    async def _retarget_late(self, late: list[Session], epoch: int) -> None:
        """What others could come in between of, once they are released: locks first of all."""
        failed: list[str] = []
        await self._in_parallel([lambda s=s: self._carry_late(s) for s in late], failed)  # type: ignore[misc]
        self._retargeted(epoch)

    async def _carry_late(self, session: Session) -> None:
        notes, ledger = self._notes(session), session.ledger
        if ledger is None or session.standing is not Standing.HELD:
            return
        try:
            await self._replay_whole(session, notes)
            if notes.backend is None:
                return
            giving_up, listening = ledger.release_locks(), ledger.replay(is_late=True)
            if giving_up is not None:
                if session.backend is not None:
                    await self._ask_for(session, giving_up)
                await self._run_whole(notes.backend, ledger.take_locks())
            if listening is not None:
                await notes.backend.run(listening, EXCHANGE_TIMEOUT_S)
            notes.has_late_part = True
        except EngineError as error:
            if session.standing is Standing.HELD:
                self._interrupt(session, Aborted(f"the session could not be moved: {error.text}"))

    @staticmethod
    async def _run_whole(backend: Backend, exchange: Exchange | None) -> None:
        """Run what may not be refused in part. Raises EngineError."""
        if exchange is None:
            return
        await backend.run(exchange, EXCHANGE_TIMEOUT_S)
        if exchange.errors:
            raise EngineError("; ".join(exchange.errors[:3]))

    def _retargeted(self, epoch: int) -> None:
        assert self.target is not None
        runtime, source, target = self.runtime, self.runtime.active, self.target
        runtime.retarget(target, epoch)
        self.phase = "retargeted"
        self._answer.retargeted = ipc.Retargeted(
            switch=self.switch,
            service=runtime.name,
            epoch=epoch,
            sessions=runtime.registry.count(Standing.HELD),
            interrupted=list(self._answer.interrupted),
        )
        self._emit(self._answer.retargeted)
        _log.info("retargeted", service=runtime.name, source=source, target=target)

    def _needs_backend(self, session: Session) -> bool:
        if self._is_there(session):
            return False
        if session.backend is not None:
            return not (self.runtime.shares_backends and not self._is_pinned(session))
        # Lost while held; in transaction mode a session without state needs none.
        return not self.runtime.shares_backends or self._is_pinned(session) or session.must_restore

    def _is_ready(self, session: Session) -> bool:
        """Its target backend can be swapped in as it is; else a round trip is needed."""
        notes, ledger = self._notes(session), session.ledger
        assert ledger is not None
        backend = notes.backend
        if backend is None or backend.is_lost or ledger.has_tables:
            return False
        if session.must_restore and session.tracker is not None and session.tracker.wreckage() is not None:
            return False
        if notes.has_late_part:
            return True
        return notes.version == ledger.version and not notes.is_refused_in_part and not self._has_late_part(session)

    def _is_slow(self, session: Session) -> bool:
        return self._needs_backend(session) and not self._is_ready(session)

    async def _release_slowly(self, session: Session) -> None:
        """Make a session's backend on the target what it has to be, then release it; the others work already."""
        await self._swap_slowly(session)
        if session.standing is not Standing.HELD:
            return
        if session.backend is None or (session.backend.engine != self.runtime.active and not self._may_stay):
            self._interrupt(session, Aborted("the session could not be moved"))
            return
        self._release_session(session, is_moved=True)

    async def _swap_slowly(self, session: Session) -> None:
        notes, ledger = self._notes(session), session.ledger
        if ledger is None or session.standing is not Standing.HELD:
            return
        try:
            if not notes.has_late_part:
                await self._replay_whole(session, notes, STAY_TIMEOUT_S if self._may_stay else EXCHANGE_TIMEOUT_S)
            backend = notes.backend
            if backend is None:
                return
            is_lacking = not notes.has_late_part and (notes.is_refused_in_part or ledger.has_tables)
            if self._may_stay and session.backend is not None and is_lacking:
                # Settings that were refused, temporary tables: the old backend has them.
                _log.info("session stays where it is", session=session.id, why="not all of it can be had there")
                return
            if ledger.has_tables:
                tables = ledger.make_tables()
                if tables is None:
                    raise EngineLost("its temporary tables were lost with its server connection")
                await self._run_whole(backend, tables)
                is_partial = notes.is_refused_in_part or notes.is_postponed_in_part
                again = ledger.replay(is_late=False) if is_partial else None
                if again is not None:
                    # Statements about the tables; the others are there and are refused.
                    await backend.run(again, EXCHANGE_TIMEOUT_S)
                    backend.notes = ledger.adopt(backend.notes)
            wreckage = session.tracker.wreckage() if session.tracker is not None else None
            if wreckage is not None:
                await backend.run(wreckage, EXCHANGE_TIMEOUT_S)
        except EngineError as error:
            if session.standing is Standing.HELD and self._may_stay and session.backend is not None:
                _log.info("session stays where it is", session=session.id, why=error.text)
            elif session.standing is Standing.HELD:
                self._interrupt(session, Aborted(f"the session could not be moved: {error.text}"))
            return
        if session.standing is Standing.HELD:
            self._exchange_backend(session, backend)

    def _swap(self, session: Session) -> None:
        """Give a session what was prepared for it; without a backend if that was lost since the retarget."""
        if not self._needs_backend(session) or (
            session.backend is not None and session.backend.engine == self.runtime.active
        ):
            return
        backend = self._notes(session).backend
        if backend is not None and self._is_ready(session):
            self._exchange_backend(session, backend)
            return
        old = session.take_away()
        if old is not None:
            self._leftovers.append(old)

    def _exchange_backend(self, session: Session, backend: Backend) -> None:
        assert session.startup is not None
        assert self.target is not None
        old = session.take_away()
        if old is not None:
            self._leftovers.append(old)
        self._notes(session).backend = None
        self.runtime.pool(self.target, session.startup).adopt(backend)
        session.give(backend)

    # --- release ---

    def release(self, epoch: int) -> None:
        """Read on: on the target after a retarget, else on the source."""
        self._task, earlier = spawn(self._release(self._task), name=f"release {self.switch}"), self._task
        del earlier, epoch

    async def _release(self, earlier: asyncio.Task[None] | None) -> None:
        await cancel_and_wait(earlier)
        runtime, registry = self.runtime, self.runtime.registry
        is_moved = self.phase == "retargeted"
        self.phase = "releasing"
        if self._abandons:
            # Whom the retarget did not tell: nobody knows.
            for session in list(runtime.doubts):
                session.resolve(None)
        runtime.go_on()
        slow = {session for session in registry.members(Standing.HELD) if is_moved and self._is_slow(session)}
        batch = RAMP_FIRST
        while held := [session for session in registry.members(Standing.HELD) if session not in slow]:
            # Who waits longest goes first.
            held.sort(key=_waiting_since)
            for session in held[:batch]:
                if is_moved:
                    self._swap(session)
                self._release_session(session, is_moved)
            if batch < len(held):
                await self._ramp(is_first=batch == RAMP_FIRST and is_moved and bool(self._waits_us))
            batch *= 3
        if slow:
            failed: list[str] = []
            ordered = sorted(slow, key=_waiting_since)
            await self._in_parallel([lambda s=s: self._release_slowly(s) for s in ordered], failed)  # type: ignore[misc]
        for session in registry.members(Standing.DRAINING):
            self._undo_drain(session)
        if self.sharing is not None and not is_moved:
            await self.sharing.take_back()
        self._emit(
            ipc.Released(
                switch=self.switch,
                service=runtime.name,
                sessions=self._released,
                first_request_ns=self._first_request_ns,
                waits_us=self._waits_us,
                interrupted=list(self._answer.interrupted),
            )
        )
        in_haste.discard(self)
        if self.sharing is not None:
            # Somebody's transaction may still go on there, after an abort.
            await self.sharing.end()
        if runtime.move is self:
            runtime.move = None
            runtime.last_move = self
        await self._close_leftovers()

    async def _ramp(self, *, is_first: bool) -> None:
        """Let what was released get ahead; the first few as far as an answer."""
        if not is_first:
            await asyncio.sleep(RAMP_PAUSE_S)
            return
        try:
            async with asyncio.timeout(RAMP_FIRST_WAIT_S):
                await self._answered.wait()
        except TimeoutError:
            # A slow first answer holds nobody back any longer.
            return

    def _release_session(self, session: Session, is_moved: bool) -> None:
        relay = session.relay
        assert relay is not None
        since_ns = relay.waiting_since_ns
        waited_ns = self._open_gate(session, is_moved)
        self._released += 1
        if waited_ns >= 0:
            self._waits_us.append(waited_ns // 1000)
            self._first_request_ns = min(self._first_request_ns or since_ns, since_ns)

    def _open_gate(self, session: Session, is_moved: bool) -> int:
        """How long its request has waited, in nanoseconds; -1 if it has none."""
        relay, runtime = session.relay, self.runtime
        assert relay is not None
        notes = session.move_notes
        if isinstance(notes, Prepared) and notes.backend is not None:
            # An aborted switch: the place on the target is given up.
            self._leftovers.append(notes.backend)
        session.move_notes = None
        runtime.registry.move(session, Standing.SERVING)
        if is_moved:
            relay.stamp_first_answer()
        relay.notifies = runtime.shares_backends
        if session.backend is not None:
            return relay.release(GATE_OPEN)
        waited_ns = relay.release(GATE_CLOSED)
        if self._abandons:
            # Nobody took over: it waits for the return of the engine it had.
            if relay.has_work:
                session.on_gate()
            return waited_ns
        if not runtime.shares_backends or self._is_pinned(session):
            spawn(self._recover(session), name=f"session {session.id} recovers")
        elif relay.has_work:
            session.want_backend()
        return waited_ns

    async def _recover(self, session: Session) -> None:
        """The switch was undone and the session's backend is gone: make it another one on the source."""
        ledger, startup, runtime = session.ledger, session.startup, self.runtime
        assert ledger is not None
        assert startup is not None
        if ledger.has_tables or ledger.has_locks:
            session.end_with(
                EngineLost("the connection to the database server was lost, and the session's locks with it")
            )
            return
        try:
            backend = await runtime.open(runtime.active, startup)
            for replay in (ledger.replay(is_late=False), ledger.replay(is_late=True)):
                if replay is not None:
                    await backend.run(replay, EXCHANGE_TIMEOUT_S)
        except EngineError as error:
            if session.standing is not Standing.ENDED:
                session.end_with(error)
            return
        if session.standing is Standing.ENDED or session.backend is not None:
            backend.close(says_goodbye=True)
            return
        backend.notes = ledger.adopt(backend.notes)
        runtime.pool(runtime.active, startup).adopt(backend)
        session.give(backend)
        session.reopen()

    def _undo_drain(self, session: Session) -> None:
        """An abort found the session still in its transaction: nothing happened to it."""
        notes = session.move_notes
        if isinstance(notes, Prepared):
            if notes.catching_up is not None and not notes.catching_up.done():
                notes.catching_up.cancel()
            if notes.backend is not None:
                self._leftovers.append(notes.backend)
        session.move_notes = None
        self.runtime.registry.move(session, Standing.SERVING)
        relay = session.relay
        assert relay is not None
        relay.notifies = self.runtime.shares_backends
        if session.backend is None and not session.is_asking:
            if not self.runtime.shares_backends or self._is_pinned(session):
                spawn(self._recover(session), name=f"session {session.id} recovers")
            elif relay.has_work:
                session.want_backend()
        elif not session.is_asking:
            relay.set_gate(GATE_OPEN)

    async def _close_leftovers(self) -> None:
        """Close what the switch left over, a few at a time: the first answers are on their way through this loop."""
        for count, backend in enumerate(self._leftovers, 1):
            pool = self.runtime.pool_of(backend)
            if pool is not None:
                pool.discard(backend)
            else:
                backend.close(says_goodbye=True)
            if count % CLOSE_BATCH == 0:
                await asyncio.sleep(CLOSE_PAUSE_S)
        self._leftovers.clear()
        for engine in {pool.name[0] for pool in self.runtime.pools()} - {self.runtime.active}:
            self.runtime.close_pools(engine)
        for session in self.runtime.registry:
            # Prepared, but the switch ended before it was held.
            notes = session.move_notes
            if isinstance(notes, Prepared) and notes.backend is not None:
                notes.backend.close(says_goodbye=True)
            session.move_notes = None

    # --- time ---

    def tick(self, now_ns: int) -> None:
        """Report progress; refuse work that has waited longer than `hold_ms_max`."""
        if self.phase not in ("holding", "retargeted", "releasing"):
            return
        if self.phase == "holding" and self._answer.all_held is None:
            self._report_progress(now_ns)
        limits = self.runtime.config.switch
        bound_ns = limits.hold_ms_max * 1_000_000
        refused = 0
        waiting = [
            session
            for standing in (Standing.HELD, Standing.DRAINING)
            for session in self.runtime.registry.members(standing)
            if session.relay is not None and session.relay.waiting_since_ns
        ]
        waiting.sort(key=_waiting_since)
        for place, session in enumerate(waiting):
            if now_ns - _waiting_since(session) > bound_ns:
                why = f"a switch of service {self.runtime.name} took longer than {limits.hold_ms_max} ms"
            elif place - refused >= limits.held_requests_max:
                why = f"{limits.held_requests_max} requests wait for a switch of service {self.runtime.name} already"
            else:
                continue
            refused += 1
            error = HoldExpired(f"{why}; nothing of this request was executed", hint="Reconnect and send it again.")
            self._interrupt(session, error)
        if refused:
            self._refused += refused
            self._emit(ipc.Expired(switch=self.switch, service=self.runtime.name, refused=self._refused))

    def _report_progress(self, now_ns: int) -> None:
        if now_ns - self._progress_ns < PROGRESS_INTERVAL_NS:
            return
        self._progress_ns = now_ns
        registry = self.runtime.registry
        draining = registry.members(Standing.DRAINING)
        self._emit(
            ipc.Draining(
                switch=self.switch,
                service=self.runtime.name,
                held=registry.count(Standing.HELD),
                draining=len(draining),
                waiting_for=[
                    f"session {s.id} of {s.startup.user if s.startup else '?'} from {s.client}: "
                    + _what_it_waits_for(s)
                    for s in draining[:10]
                ],
            )
        )

    def first_answer(self, at_ns: int) -> None:
        """A released session got its first bytes from the target."""
        if not self._answered.is_set():
            self._answered.set()
            self._emit(ipc.FirstRow(switch=self.switch, service=self.runtime.name, at_ns=at_ns))
