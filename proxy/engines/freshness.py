"""How fresh the engines are that reads may be sent to: up to which moment each has everything that was committed.

The position of the engine that serves is noted again and again, each with a time taken before it was asked for: whatever a
client was told to be committed before that time is at or before that position. When a standby has applied the position, it is
fresh up to that time. Only standbys that replicate from the serving engine's own history count; an old primary that has come
back writable is behind nobody, and ahead of everybody. (An LSN is a number in a history; a GTID names the transaction itself.)

A server may keep the last of what it has written to itself until somebody commits, and a position in it would be waited for
until then. Who waits for long has the server send it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.clock import Clock
from proxy.engines.engine import Engine, EngineState, Position, Role
from proxy.errors import EngineError

SEND_AFTER_NS: Final = 500_000_000
"""A standby that has not reached a position for so long may not have been sent it. Servers send by themselves what was
committed without being flushed, PostgreSQL after at most three times its `wal_writer_delay` of 0.2 s."""

REFUSED_NS: Final = 60_000_000_000
"""Pause after a server could not be told to send: it logs what the admin account may not do."""


class Freshness:
    """Of one service."""

    def __init__(self, clock: Clock, *, is_one_server: bool) -> None:
        """`is_one_server`: its engines are addresses of one server (`replication` none)."""
        self._clock = clock
        self._is_one_server = is_one_server
        self._active = ""
        self._mark: tuple[int, Position] | None = None
        self._awaited: dict[str, tuple[int, Position]] = {}
        self._fresh: dict[str, int] = {}
        self._sends_at_ns = 0
        """Not before this moment."""

    async def look(
        self, active: Engine, readers: dict[str, tuple[Engine, EngineState | None]], serving: EngineState | None
    ) -> dict[str, int]:
        """By name of those that can be read from: the moment, in nanoseconds of the host's clock, up to which they have
        everything. The others are left out."""
        if active.name != self._active:
            # Another history: what was reached in the former one says nothing.
            self._active, self._mark, self._awaited, self._fresh = active.name, None, {}, {}
            self._sends_at_ns = 0
        began_ns = self._clock.now_ns()
        try:
            self._mark = (began_ns, await active.written())
        except EngineError:
            return {}
        able = {name: engine for name, (engine, state) in readers.items() if self._is_able(state, serving)}
        await asyncio.gather(*(self._ask(name, engine) for name, engine in able.items()))
        await self._send(active, [self._awaited[name] for name in able if name in self._awaited])
        return {name: self._fresh[name] for name in able if name in self._fresh}

    def _is_able(self, state: EngineState | None, serving: EngineState | None) -> bool:
        if state is None or serving is None or not state.is_reachable or not serving.is_reachable:
            return False
        if self._is_one_server:
            return state.instance == serving.instance
        is_kin = state.flavour != "postgresql" or state.server_id == serving.server_id
        return state.role is Role.STANDBY and state.is_replicating and not state.is_writable and is_kin

    async def _ask(self, name: str, engine: Engine) -> None:
        assert self._mark is not None
        at_ns, position = self._awaited.setdefault(name, self._mark)
        try:
            if await engine.has_applied(position, is_standby=not self._is_one_server):
                self._fresh[name] = at_ns
                del self._awaited[name]
        except EngineError:
            self._awaited.pop(name, None)
            self._fresh.pop(name, None)

    async def _send(self, active: Engine, awaited: list[tuple[int, Position]]) -> None:
        now_ns = self._clock.now_ns()
        late = [mark for mark in awaited if now_ns - mark[0] > SEND_AFTER_NS]
        if not late or now_ns < self._sends_at_ns:
            return
        self._sends_at_ns = now_ns + SEND_AFTER_NS
        _, position = max(late, key=lambda mark: mark[0])
        try:
            await active.send_up_to(position)
        except EngineError:
            self._sends_at_ns = now_ns + REFUSED_NS
