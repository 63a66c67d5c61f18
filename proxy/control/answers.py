"""Idempotency keys: a request with a key is done once, however often it is sent; the later ones get the first one's answer.

Only answers of requests that were done (2xx) are kept, for a day, in the state file: a program that lost its connection to
a supervisor that was just killed may ask again. What was refused changed nothing and may be tried again with the same key.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Final

import msgspec

from proxy.errors import Conflict, ControlError

KEPT_S: Final = 86_400.0

KEPT_MAX: Final = 10_000
"""Most answers that are kept; the oldest goes."""

KEY_LENGTH_MAX: Final = 255

ANSWER_BYTES_MAX: Final = 1024 * 1024
"""Longer answers are not kept: a second request would be done again. No answer to a change comes near it."""


class KeyReused(ControlError):
    """The key came with another request before."""

    status = 422


class Answer(msgspec.Struct, frozen=True):
    """What was answered."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Answers:
    """The table. Not for threads; every call is short and blocks (tens of microseconds)."""

    def __init__(self, database: sqlite3.Connection, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._running: set[tuple[str, str]] = set()

    def begin(self, caller: str, key: str, fingerprint: bytes) -> Answer | None:
        """The answer of the first request with this key; None: this is the first, to be followed by `end` or `forget`.
        `fingerprint` is that of the whole request.

        Raises KeyReused; Conflict: it is being done now, or a supervisor ended in the middle of it.
        """
        now = self._clock()
        self._database.execute(
            "delete from answers where at < ? or rowid in (select rowid from answers order by at desc limit -1 offset ?)",
            (now - KEPT_S, KEPT_MAX),
        )
        row = self._database.execute(
            "select fingerprint, status, headers, body from answers where caller = ? and key = ?", (caller, key)
        ).fetchone()
        if row is None:
            self._database.execute(
                "insert into answers (caller, key, fingerprint, at) values (?, ?, ?, ?)",
                (caller, key, fingerprint, now),
            )
            self._running.add((caller, key))
            return None
        if bytes(row[0]) != fingerprint:
            raise KeyReused("this Idempotency-Key came with another request", hint="use a new key for a new request")
        if row[1] is None:
            if (caller, key) in self._running:
                raise Conflict("a request with this Idempotency-Key is being done", hint="ask again in a moment")
            raise Conflict(
                "Turnout was restarted while a request with this Idempotency-Key was being done",
                hint="look whether it was done (GET /v1/switches), then use a new key",
            )
        headers = msgspec.msgpack.decode(row[2], type=list[tuple[bytes, bytes]])
        return Answer(row[1], headers, bytes(row[3]))

    def end(self, caller: str, key: str, answer: Answer) -> None:
        """It was done, and this was answered."""
        self._running.discard((caller, key))
        self._database.execute(
            "update answers set status = ?, headers = ?, body = ? where caller = ? and key = ?",
            (answer.status, msgspec.msgpack.encode(answer.headers), answer.body, caller, key),
        )

    def forget(self, caller: str, key: str) -> None:
        """It was not done: the key may be used again."""
        self._running.discard((caller, key))
        self._database.execute("delete from answers where caller = ? and key = ?", (caller, key))
