"""Connections on which the engines are asked for users (`auth_query`): the proxy's own, never a session's.

One for each database that is asked in, opened when it is needed, at most `LINES_MAX`; the one not used for longest makes
room. Questions of one connection are asked one after the other. Those who come for the same user while theirs is not
asked yet share it: a crowd costs two questions at a time, and nobody is judged by an answer older than its own coming.
Nothing that a client sends has a part in how such a connection is opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from protocols.wire import Startup, Wire
from proxy.dataplane.backend import Backend
from proxy.errors import EngineLost, EngineRefused, LookupFailed, ProxyError

_log = structlog.get_logger("turnout.lookups")

LINES_MAX: Final = 8
"""Databases that users are looked up in at the same time."""

ANSWER_TIMEOUT_S: Final = 5.0
"""Longest time an engine may take to tell who a user is."""


Answer = str | ProxyError | None
"""What came of a question."""


class _Line:
    """One connection, and whose turn it is."""

    __slots__ = ("backend", "lock", "questions", "waiting")

    def __init__(self) -> None:
        self.backend: Backend | None = None
        self.lock = asyncio.Lock()
        self.questions: dict[tuple[str, str], asyncio.Future[Answer]] = {}
        """Not asked yet, by query and user."""
        self.waiting = 0


class Lookups:
    """See the module. `open_one` opens a backend at an engine: the engine's name, and what it is opened with."""

    def __init__(self, service: str, wire: Wire, open_one: Callable[[str, Startup], Awaitable[Backend]]) -> None:
        self._service = service
        self._wire = wire
        self._open_one = open_one
        self._lines: dict[tuple[str, Startup], _Line] = {}

    def process_ids(self, engine: str) -> list[int]:
        """Of its connections to `engine`: a fence leaves them alone."""
        return [
            line.backend.facts.process_id
            for (name, _), line in self._lines.items()
            if name == engine and line.backend is not None
        ]

    async def secret_of(self, engine: str, startup: Startup, query: str, user: str) -> str | None:
        """What `engine` keeps of `user`'s password; None if the user may not log in by one. Raises ProxyError."""
        line = self._line(engine, startup)
        line.waiting += 1
        try:
            asked = line.questions.get((query, user))
            answer = await (
                asyncio.shield(asked) if asked is not None else self._in_turn(line, engine, startup, query, user)
            )
        finally:
            line.waiting -= 1
        if isinstance(answer, ProxyError):
            raise answer
        return answer

    async def _in_turn(self, line: _Line, engine: str, startup: Startup, query: str, user: str) -> Answer:
        """Ask once those before have their answers, for all who have come until then."""
        asked: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        line.questions[query, user] = asked
        answer: Answer = LookupFailed("the proxy is going down")
        try:
            async with line.lock:
                del line.questions[query, user]
                answer = await self._ask(line, engine, startup, query, user)
        except ProxyError as error:
            answer = error
        finally:
            # Cancelled, too: nobody waits for it in vain.
            if line.questions.get((query, user)) is asked:
                del line.questions[query, user]
            asked.set_result(answer)
        return answer

    async def _ask(self, line: _Line, engine: str, startup: Startup, query: str, user: str) -> str | None:
        while True:
            is_used = line.backend is not None and not line.backend.is_lost
            try:
                if not is_used:
                    line.backend = await self._open_one(engine, startup)
                assert line.backend is not None
                inquiry = self._wire.user_inquiry(query, user)
                if inquiry is None:
                    return None
                await line.backend.run(inquiry, ANSWER_TIMEOUT_S)
            except EngineLost:
                if is_used:
                    # It may have been idle for long, and ended by a fence or a restart: asking twice does no harm.
                    continue
                raise
            except EngineRefused as error:
                raise self._failed(error, error.text) from error
            if inquiry.errors:
                raise self._failed(None, "; ".join(inquiry.errors))
            if inquiry.secret is None:
                _log.info("user not let in", service=self._service, engine=engine, user=user, why=inquiry.why)
            return inquiry.secret

    def _failed(self, error: EngineRefused | None, why: str) -> LookupFailed | EngineRefused:
        _log.warning("users cannot be looked up", service=self._service, why=why)
        if error is not None and error.sqlstate == "3D000":
            # The client's own database: it would be told the same without a proxy.
            return error
        return LookupFailed("the proxy could not look the user up", hint="Its log says why.")

    def _line(self, engine: str, startup: Startup) -> _Line:
        key = (engine, startup)
        line = self._lines.pop(key, None) or _Line()
        self._lines[key] = line
        for other in [other for other, it in self._lines.items() if not it.waiting and it is not line]:
            if len(self._lines) <= LINES_MAX:
                break
            self._drop(other)
        return line

    def _drop(self, key: tuple[str, Startup]) -> None:
        backend = self._lines.pop(key).backend
        if backend is not None:
            backend.close(says_goodbye=True)

    def count_in(self, is_meant: Callable[[str], bool]) -> int:
        """Its connections in the databases that are meant."""
        return sum(line.backend is not None for (_, one), line in self._lines.items() if is_meant(one.database))

    def close_in(self, is_meant: Callable[[str], bool]) -> None:
        """Close what nobody is waiting for, in the databases that are meant."""
        for key in [key for key, line in self._lines.items() if is_meant(key[1].database) and not line.waiting]:
            self._drop(key)

    def close(self, engine: str | None = None) -> None:
        """Close what nobody is waiting for: to `engine`, or all."""
        for key in [key for key, line in self._lines.items() if engine in (None, key[0]) and not line.waiting]:
            self._drop(key)
