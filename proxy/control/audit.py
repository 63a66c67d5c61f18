"""The audit log: who did what through the control port, or was refused. Kept in the state file, which lets nobody change or
delete an entry (triggers refuse it); it grows by some 300 bytes an entry and is never cut.

Changes of state are recorded by the door, one entry each, with the outcome. Callers who are not let in are recorded by the
gate before it, at most `STRANGERS_PER_S`: a flood of them shall not fill the disk; the next entry says how many were left
out.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
import structlog

from proxy.control.rates import Bucket
from proxy.control.roles import Caller

_log = structlog.get_logger("turnout.audit")

STRANGERS_PER_S: Final = 2.0

TEXT_LENGTH_MAX: Final = 500
"""Longest name or target of an entry."""

FIELD_LENGTH_MAX: Final = 4_000
"""Longest field of an entry's detail, in bytes of JSON; of a longer one the beginning is kept. What callers send is in there, and
no entry is ever deleted."""

Outcome = Literal["done", "refused", "failed"]


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done, or asked for and refused."""

    id: int
    """Rises with each entry."""
    at: float
    """Seconds since 1970."""
    caller: str
    """Who, and from where."""
    role: str
    """viewer, operator, admin; empty: nobody knows who it was."""
    action: str
    """switch, cancel, add_engine, …; `enter`: a request that was not let in."""
    target: str
    """What it was done to: a service, a switch, an engine, a session."""
    outcome: Outcome
    """`refused`: a rule said no, and nothing was changed; `failed`: it went wrong."""
    detail: dict[str, Any] = {}
    """What was asked for, and why it was refused."""


class AuditLog:
    """The table. Not for threads; an entry takes tens of microseconds."""

    def __init__(self, database: sqlite3.Connection, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._strangers = Bucket(STRANGERS_PER_S, burst=20.0)
        self._left_out = 0

    def record(self, who: Caller, action: str, target: str, outcome: Outcome, detail: dict[str, Any]) -> None:
        """One entry. Where the state file cannot be written, the log gets it instead."""
        self._append(who.name, who.role.word, action, target, outcome, detail)

    def stranger(self, client: str, what: str, why: str) -> None:
        """A request that was not let in; `what` is its method and path."""
        if not self._strangers.take(time.monotonic()):
            self._left_out += 1
            return
        detail: dict[str, Any] = {"why": why}
        if self._left_out:
            detail["left_out_before"], self._left_out = self._left_out, 0
        self._append(client, "", "enter", what, "refused", detail)

    def entries(
        self, limit: int, *, before: int | None = None, action: str | None = None, outcome: str | None = None
    ) -> list[AuditEntry]:
        """Newest first; with `before` those with a smaller id."""
        rows = self._database.execute(
            "select id, at, caller, role, action, target, outcome, detail from audit "
            "where (?1 is null or id < ?1) and (?2 is null or action = ?2) and (?3 is null or outcome = ?3) "
            "order by id desc limit ?4",
            (before, action, outcome, limit),
        )
        return [
            AuditEntry(
                id=row[0],
                at=row[1],
                caller=row[2],
                role=row[3],
                action=row[4],
                target=row[5],
                outcome=row[6],
                detail=msgspec.json.decode(row[7], type=dict[str, Any]),
            )
            for row in rows
        ]

    def _append(
        self, caller: str, role: str, action: str, target: str, outcome: Outcome, detail: dict[str, Any]
    ) -> None:
        at = self._clock()
        row = (at, caller[:TEXT_LENGTH_MAX], role, action, target[:TEXT_LENGTH_MAX], outcome)
        try:
            self._database.execute(
                "insert into audit (at, caller, role, action, target, outcome, detail) values (?, ?, ?, ?, ?, ?, ?)",
                (*row, msgspec.json.encode({name: _bounded(value) for name, value in detail.items()})),
            )
        except sqlite3.Error as error:
            _log.error(
                "an entry of the audit log could not be written",
                caller=caller, role=role, action=action, target=target, outcome=outcome, detail=detail, error=str(error),
            )  # fmt: skip


def _bounded(value: Any) -> Any:
    """A field of an entry's detail: as it is, or the beginning of what is too long."""
    text = msgspec.json.encode(value)
    return value if len(text) <= FIELD_LENGTH_MAX else text[:FIELD_LENGTH_MAX].decode(errors="ignore") + "…"
