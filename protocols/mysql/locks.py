"""User locks (GET_LOCK) of a session that moves: given up on the old backend, taken on the new one, as often as they were.

Both servers count how often a session took a lock (MySQL since 5.7, MariaDB since 10.0.2), and neither tells it: so each is
released until the server says that there is nothing left to release.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from protocols.mysql import constants as c
from protocols.mysql.exchange import Answer, Exchange, Question
from protocols.mysql.messages import command

TIMES_MAX: Final = 32
"""Most times one lock may have been taken by a session that is moved."""


class Releasing(Exchange):
    """Give the locks up, whose names are SQL literals; `on_released` is told how often each was taken. One that was taken
    more than TIMES_MAX times is an error."""

    def __init__(
        self, locks: list[bytes], on_released: Callable[[dict[bytes, int]], None], *, capabilities: int
    ) -> None:
        asked = [_query(b"SELECT RELEASE_LOCK(%s) LIMIT 1" % lock) for lock in locks for _ in range(TIMES_MAX + 1)]
        super().__init__(asked, capabilities=capabilities, on_complete=self._count)
        self._locks = locks
        self._on_released = on_released

    def _count(self, answers: list[Answer]) -> None:
        counts = {}
        for index, lock in enumerate(self._locks):
            own = answers[index * (TIMES_MAX + 1) : (index + 1) * (TIMES_MAX + 1)]
            counts[lock] = sum(1 for one in own if one.rows == [[b"1"]])
            if counts[lock] > TIMES_MAX:
                self.errors.append(f"user lock: one was taken more than {TIMES_MAX} times")
        self._on_released(counts)


class Taking(Exchange):
    """Take locks, each so many times; one that another session has is an error."""

    def __init__(self, counts: dict[bytes, int], *, capabilities: int) -> None:
        asked = [
            _query(b"SELECT GET_LOCK(%s, 0) LIMIT 1" % lock)
            for lock, count in sorted(counts.items())
            for _ in range(count)
        ]
        super().__init__(asked, capabilities=capabilities, on_complete=self._check)

    def _check(self, answers: list[Answer]) -> None:
        refused = [one for one in answers if one.error is None and one.rows != [[b"1"]]]
        if refused:
            self.errors.append("user lock: another session has it on the target")


def _query(sql: bytes) -> Question:
    return Question(command(c.COM_QUERY, sql), "user lock")
