"""What the supervisor orders its workers to do besides a switch, and what it asks them."""

from __future__ import annotations

from proxy.ipc.message import Message, Standstill


class Configure(Message, tag=True, frozen=True, kw_only=True):
    """The whole effective config, secrets resolved, as msgspec-encoded JSON of `config.Config`, and what the state
    file knows: the active engine and the epoch of each service. Sent first, and again at every reload."""

    config: bytes
    active: dict[str, str]
    epochs: dict[str, int]
    salt_key: bytes = b""
    """32 bytes, the same for all workers and over restarts: the salts of users who have none come from it. Empty: each
    worker makes its own."""
    standstills: dict[str, Standstill] = {}
    """By service; those that are not here have none."""


class StandStill(Message, tag=True, frozen=True, kw_only=True):
    """From now on this is stopped of `service`, and nothing else."""

    service: str
    standstill: Standstill


class Retire(Message, tag=True, frozen=True, kw_only=True):
    """Close the backends of `service` when they are free; others may be opened in their place at once."""

    service: str
    database: str | None = None
    """None: of all its databases."""
    ends_sessions: bool = False
    """Do not wait for that: end the clients, with an error of class 57P01 / 1053."""


class Fresh(Message, tag=True, frozen=True, kw_only=True):
    """How fresh the engines are that reads of `service` may be sent to; ten times a second, for services with rules."""

    service: str
    until_ns: dict[str, int]
    """By engine: the moment up to which it has everything that was committed on the engine that serves. An engine that
    is not here cannot be read from."""


class Quit(Message, tag=True, frozen=True, kw_only=True):
    """Accept nobody any more, wait `drain_s` seconds at most for sessions to reach a boundary, end."""

    drain_s: float


class CountBackends(Message, tag=True, frozen=True, kw_only=True):
    """How many backends of `service` are there? Answered by BackendsCounted."""

    request: int
    service: str
    database: str | None = None
    """None: of all its databases."""


class ListBackends(Message, tag=True, frozen=True, kw_only=True):
    """Answered by BackendList, in one part or more."""

    request: int


class ListSessions(Message, tag=True, frozen=True, kw_only=True):
    """Answered by SessionList, in one part or more."""

    request: int
    service: str | None = None
    session: int | None = None
    """Only the one of that number."""
    with_sockets: bool = False
    """With what the kernel has to be asked for: both ends of each connection."""


class CollectFigures(Message, tag=True, frozen=True, kw_only=True):
    """Answered by WorkerFigures."""

    request: int


class Witness(Message, tag=True, frozen=True, kw_only=True):
    """The probes of `engine`, the active one of `service`, fail since `since_ns`: has this worker had an answer from it
    since then, or can it log in there within `timeout_s`?"""

    request: int
    service: str
    engine: str
    epoch: int
    since_ns: int
    timeout_s: float


class EndSession(Message, tag=True, frozen=True, kw_only=True):
    """End the session of this number, with an error of class 57P01 / 1053 that gives `reason`."""

    request: int
    session: int
    reason: str


class CancelQuery(Message, tag=True, frozen=True, kw_only=True):
    """A PostgreSQL CancelRequest that reached another worker."""

    request: int
    process_id: int
    secret: bytes


class CancelDone(Message, tag=True, frozen=True, kw_only=True):
    """The other workers have done what they could about the worker's CancelWanted of this number."""

    request: int


class KillSession(Message, tag=True, frozen=True, kw_only=True):
    """A KILL that reached another worker: `user` of `service` wants the connection of this id to end, or its statement."""

    request: int
    service: str
    user: str
    connection_id: int
    is_query: bool


class KillDone(Message, tag=True, frozen=True, kw_only=True):
    """What came of the worker's KillWanted of this number in the others."""

    request: int
    is_found: bool
    code: int
    sqlstate: str
    text: str


class ListIds(Message, tag=True, frozen=True, kw_only=True):
    """By which ids do clients know the connections of `service` at `engine`? Answered by IdList."""

    request: int
    service: str
    engine: str


class IdsTold(Message, tag=True, frozen=True, kw_only=True):
    """What the other workers have to the worker's IdsWanted of this number."""

    request: int
    ids: dict[int, int]


class ConsoleAnswer(Message, tag=True, frozen=True, kw_only=True):
    """What a client of the console gets, as messages of its protocol."""

    session: int
    question: int
    """The one that this answers."""
    data: bytes
