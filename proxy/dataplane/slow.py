"""The slow-query log: one line for each request that took longer than its service's `slow_query_ms`.

The relay measures anyway; with the log on it keeps the first bytes that a client sent when nothing was in flight, and calls
here when the answer came late. So off it costs a comparison per request, and on a copy of at most 2 kB. Lines are bounded:
`LINES_PER_S` of one worker; the next one says how many were left out. No value is ever logged, see `fingerprint`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import structlog

from proxy.fingerprint import fingerprint

if TYPE_CHECKING:
    from proxy.dataplane.session import Session

_log = structlog.get_logger("turnout.slow")

LINES_PER_S: Final = 20
"""Most lines of one worker in a second."""


class SlowLog:
    """Of one worker."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = 0
        self._left_out = 0

    def note(self, session: Session, span_ns: int, head: bytes) -> None:
        """A session's request took `span_ns`; the client's bytes began with `head`."""
        second = time.monotonic_ns() // 1_000_000_000
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines >= LINES_PER_S:
            self._left_out += 1
            return
        self._lines += 1
        left_out, self._left_out = self._left_out, 0
        runtime, startup, tracker = session.runtime, session.startup, session.tracker
        assert runtime is not None, "it has logged in"
        assert startup is not None
        assert tracker is not None
        found = tracker.first_statement(head)
        more: dict[str, object] = {"left_out_before": left_out} if left_out else {}
        if found is not None:
            text, is_whole = found
            shown = fingerprint(
                text.decode("utf-8", "replace"), is_mysql=session.wire.name == "mysql", is_whole=is_whole
            )
            more |= {"kind": shown.kind, "fingerprint": shown.digest, "query": shown.text}
        _log.warning(
            "slow query",
            service=runtime.name,
            engine=session.backend.engine if session.backend is not None else "",
            session=session.id,
            user=startup.user,
            database=startup.database,
            duration_ms=round(span_ns / 1e6, 3),
            **more,
        )
