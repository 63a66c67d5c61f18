"""What workers tell besides a switch: of themselves, of what their clients want from other workers or from the console, of
engines, of traces.
"""

from __future__ import annotations

import msgspec

from proxy.ipc.message import Message, Standstill


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker stands in a switch, for a supervisor that comes back."""

    switch: str
    service: str
    phase: str
    """sharing, preparing, holding, retargeted"""
    target: str | None = None


class Hello(Message, tag=True, frozen=True, kw_only=True):
    """First message of a worker on every connection."""

    version: int
    index: int
    pid: int
    epochs: dict[str, int]
    """Epoch of each service as this worker serves it; empty in a new worker."""
    active: dict[str, str]
    runs: list[RunState] = []
    standstills: dict[str, Standstill] = {}
    """What it was told is stopped: an operator's word outlives a supervisor."""


class Configured(Message, tag=True, frozen=True, kw_only=True):
    """The listeners are open. `failed` names what could not be done, in one line each (a port that is taken)."""

    failed: list[str] = []


class EngineLost(Message, tag=True, frozen=True, kw_only=True):
    """The data plane saw an engine fail: connections refused or ended."""

    service: str
    engine: str
    why: str
    at_ns: int


class Witnessed(Message, tag=True, frozen=True, kw_only=True):
    """The answer to a Witness. A worker that serves by another epoch does not answer."""

    request: int
    worker: int
    is_alive: bool
    how: str
    """One line."""


class SessionEnded(Message, tag=True, frozen=True, kw_only=True):
    """An EndSession has been dealt with."""

    request: int
    is_found: bool
    """It was a session of this worker."""


class CancelWanted(Message, tag=True, frozen=True, kw_only=True):
    """A PostgreSQL CancelRequest whose session is not in this worker."""

    request: int
    process_id: int
    secret: bytes


class CancelTaken(Message, tag=True, frozen=True, kw_only=True):
    """A CancelQuery has been dealt with: the engine has taken it, or the session is not here, or runs nothing."""

    request: int


class KillWanted(Message, tag=True, frozen=True, kw_only=True):
    """A KILL whose connection is not one of this worker's sessions; see KillSession."""

    request: int
    service: str
    user: str
    connection_id: int
    is_query: bool


class KillTaken(Message, tag=True, frozen=True, kw_only=True):
    """A KillSession has been dealt with."""

    request: int
    is_found: bool
    """The session is here."""
    code: int = 0
    """Error number for the client; 0: done."""
    sqlstate: str = ""
    text: str = ""


class IdsWanted(Message, tag=True, frozen=True, kw_only=True):
    """A client asks for ids of connections at `engine` (MySQL); the other workers' are needed. See ListIds."""

    request: int
    service: str
    engine: str


class IdList(Message, tag=True, frozen=True, kw_only=True):
    """Those of this worker, see ListIds."""

    request: int
    ids: dict[int, int]
    """By the server's id of a connection the one that its client knows."""


class ConsoleAsked(Message, tag=True, frozen=True, kw_only=True):
    """A client of the console, who proved to be `user`, wants to have something done. Answered by ConsoleAnswer."""

    session: int
    question: int
    """Raised with each one of a session."""
    user: str
    client: str
    """address:port"""
    text: str


class ConsoleStopped(Message, tag=True, frozen=True, kw_only=True):
    """Nobody waits for the answer any more: the client has left, or asks to cancel what it has asked for."""

    session: int
    question: int
    has_left: bool


class QuerySpan(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is part of a trace, and has been answered."""

    service: str
    engine: str
    database: str
    session: int
    parent: str
    """The caller's `traceparent`, well-formed and sampled."""
    text: bytes
    """What the client asked for, with its values: for the supervisor, which tells nobody but its fingerprint."""
    is_whole: bool
    """It is not cut."""
    began_ns: int
    ended_ns: int
    errors: int
    """Errors in its answer."""


class QuerySpans(Message, tag=True, frozen=True, kw_only=True):
    """Requests of the last tick that are part of traces."""

    spans: list[QuerySpan]
    dropped: int
    """How many there were besides."""
