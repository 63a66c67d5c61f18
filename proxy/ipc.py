"""What supervisor and workers say to each other, and how it is framed.

Orders go down (imperative), facts come up (past tense). A frame is four bytes of length, big endian, then one msgpack
object with its type in `t`. Both ends are ours, but the length is bounded all the same: a frame over
`FRAME_BYTES_MAX` ends the connection. Times are nanoseconds of the host's monotonic clock.

Every order of a switch carries the switch's id and may be repeated: a worker that has already done it answers with the
same fact again. This is what lets a restarted supervisor go on where the old one stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
"""Room for a list of 100,000 sessions."""

PROTOCOL_VERSION: Final = 13
"""Raised when a message changes; a worker of another version is replaced, not talked to."""


class Message(msgspec.Struct, tag_field="t", frozen=True, kw_only=True):
    pass


class Standstill(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator has stopped of one service, until told otherwise."""

    is_paused: bool = False
    """The whole service: its backends are closed as they become free, and no other is opened or lent."""
    paused: list[str] = []
    """The same of single databases."""
    disabled: list[str] = []
    """Databases that let no client log in; those that are there stay."""

    def pauses(self, database: str) -> bool:
        """No backend may be had in this database."""
        return self.is_paused or database in self.paused


# --- orders: supervisor -> worker ---------------------------------------------------------------------------------


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


class CountBackends(Message, tag=True, frozen=True, kw_only=True):
    """How many backends of `service` are there? Answered by BackendsCounted."""

    request: int
    service: str
    database: str | None = None
    """None: of all its databases."""


class ListBackends(Message, tag=True, frozen=True, kw_only=True):
    """Answered by BackendList."""

    request: int


class ConsoleAnswer(Message, tag=True, frozen=True, kw_only=True):
    """What a client of the console gets, as messages of its protocol."""

    session: int
    question: int
    """The one that this answers."""
    data: bytes


class Share(Message, tag=True, frozen=True, kw_only=True):
    """Both engines serve `service`: give `moves` further sessions a backend on `target`, each at a boundary of its own,
    while all others go on. Ended by a Prepare, or by a Release, which takes them back."""

    switch: str
    service: str
    target: str
    step: int
    """Raised with each; one that was done already is answered again."""
    moves: int
    percent: float
    """Of the clients that come from now on, so many begin on the target, 0 to 100."""


class Prepare(Message, tag=True, frozen=True, kw_only=True):
    """Open, authenticate and replay on `target` one backend for each session of `service` that has one."""

    switch: str
    service: str
    target: str


class StopOpening(Message, tag=True, frozen=True, kw_only=True):
    """Open no backend of `service` for clients until a Release. Traffic goes on over those there are; who needs another
    one waits."""

    switch: str
    service: str


class Hold(Message, tag=True, frozen=True, kw_only=True):
    """Stop reading new work of `service`; report when all sessions are at a boundary. New clients wait."""

    switch: str
    service: str
    may_stay: bool = False
    """A session that cannot be moved keeps its backend: source and target are one server, and the plan says so."""


class Abandon(Message, tag=True, frozen=True, kw_only=True):
    """The engine that `service` uses has failed and another one takes its place: give up every connection to it, whatever
    is in flight there, and hold, as with Hold. A session at a boundary notices nothing; a transaction, or a request that
    may have been executed, gets its error. Answered by AllHeld."""

    switch: str
    service: str
    reason: str


class Terminate(Message, tag=True, frozen=True, kw_only=True):
    """Wait no longer for the sessions of `service` that are not held yet: roll back what they have open, with an error of
    class 40001 / 1213, or end them, with one of class 57P01 / 1053. It gives `reason`."""

    switch: str
    service: str
    reason: str


class Leave(Message, tag=True, frozen=True, kw_only=True):
    """The sessions of `service` that are not held yet go on with the backend they have, and keep it: source and target
    are one server. The others are all held then."""

    switch: str
    service: str


class Retarget(Message, tag=True, frozen=True, kw_only=True):
    """Give every held session the backend that was prepared on `target`; late replay included. Nothing is released."""

    switch: str
    service: str
    target: str
    epoch: int
    outcomes: dict[str, str] = {}
    """After an Abandon: `committed` or `aborted` by the id of a transaction whose COMMIT was in doubt. What is not in it
    stays unknown."""


class Release(Message, tag=True, frozen=True, kw_only=True):
    """Read on. After a Retarget: on the target; without one (an aborted switch): on the source, as if nothing was.
    What was prepared and is not used is closed."""

    switch: str
    service: str
    epoch: int


class Witness(Message, tag=True, frozen=True, kw_only=True):
    """The probes of `engine`, the active one of `service`, fail since `since_ns`: has this worker had an answer from it
    since then, or can it log in there within `timeout_s`?"""

    request: int
    service: str
    engine: str
    epoch: int
    since_ns: int
    timeout_s: float


class ListSessions(Message, tag=True, frozen=True, kw_only=True):
    request: int
    service: str | None = None
    session: int | None = None
    """Only the one of that number."""
    with_sockets: bool = False
    """With what the kernel has to be asked for: both ends of each connection."""


class CollectFigures(Message, tag=True, frozen=True, kw_only=True):
    request: int


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


class Fresh(Message, tag=True, frozen=True, kw_only=True):
    """How fresh the engines are that reads of `service` may be sent to; ten times a second, for services with rules."""

    service: str
    until_ns: dict[str, int]
    """By engine: the moment up to which it has everything that was committed on the engine that serves. An engine that
    is not here cannot be read from."""


class EndSession(Message, tag=True, frozen=True, kw_only=True):
    """End the session of this number, with an error of class 57P01 / 1053 that gives `reason`."""

    request: int
    session: int
    reason: str


class Quit(Message, tag=True, frozen=True, kw_only=True):
    """Accept nobody any more, wait `drain_s` seconds at most for sessions to reach a boundary, end."""

    drain_s: float


Order = (
    Configure
    | StandStill
    | Retire
    | CountBackends
    | ListBackends
    | ConsoleAnswer
    | Share
    | Prepare
    | StopOpening
    | Hold
    | Abandon
    | Terminate
    | Leave
    | Retarget
    | Release
    | Witness
    | ListSessions
    | CollectFigures
    | CancelQuery
    | CancelDone
    | KillSession
    | KillDone
    | Fresh
    | EndSession
    | Quit
)

# --- facts: worker -> supervisor ----------------------------------------------------------------------------------


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


class Shared(Message, tag=True, frozen=True, kw_only=True):
    """A Share has been done, as far as it could be: a session in a long transaction is left for the next one, what only
    moves while all are held for the end."""

    switch: str
    service: str
    step: int
    moved: int
    """Sessions that this step moved."""
    on_target: int
    """Sessions that belong on the target now."""
    left: int
    """All others."""
    failed: list[str] = []
    """One line for each backend that could not be had on the target."""


class Prepared(Message, tag=True, frozen=True, kw_only=True):
    switch: str
    service: str
    sessions: int
    """Sessions that have a target backend now."""
    backend_pids: list[int] = []
    """Process ids (MySQL: connection ids) of Turnout's own backends on the source: the fence leaves them alone."""
    failed: list[str] = []
    """One line for each session that could not be prepared; empty means ready."""


class OpeningStopped(Message, tag=True, frozen=True, kw_only=True):
    """No backend is opened for a client from now on."""

    switch: str
    service: str


class Draining(Message, tag=True, frozen=True, kw_only=True):
    """Progress while holding; sent at most every 50 ms and not after AllHeld."""

    switch: str
    service: str
    held: int
    draining: int
    waiting_for: list[str] = []
    """Up to ten sessions that are not at a boundary yet, with what they wait for."""


class Interrupted(msgspec.Struct, frozen=True, kw_only=True):
    """A session that did not come through, or was told of an interruption."""

    session: int
    user: str
    reason: str
    code_sent: str


class AllHeld(Message, tag=True, frozen=True, kw_only=True):
    """Every session is at a boundary, and nothing will be sent to the source until a Release. After an Abandon: nothing
    will ever be sent to it again."""

    switch: str
    service: str
    held: int
    hold_began_ns: int
    last_boundary_ns: int
    backend_pids: list[int] = []
    interrupted: list[Interrupted] = []
    """After an Abandon: sessions that were told of the loss, the ones that heard of it before included."""
    in_doubt: list[str] = []
    """After an Abandon: ids of transactions whose COMMIT was in flight."""


class Retargeted(Message, tag=True, frozen=True, kw_only=True):
    switch: str
    service: str
    epoch: int
    sessions: int
    interrupted: list[Interrupted] = []


class Released(Message, tag=True, frozen=True, kw_only=True):
    """All sessions read on. Sent when the ramp is done."""

    switch: str
    service: str
    sessions: int
    first_request_ns: int
    """When the first request that had to wait came in; 0 if none waited."""
    waits_us: list[int]
    """One number for each request that waited: from its arrival to its forwarding."""
    interrupted: list[Interrupted] = []


class FirstRow(Message, tag=True, frozen=True, kw_only=True):
    """First bytes of an answer from the target to a client, once per worker and switch."""

    switch: str
    service: str
    at_ns: int


class Expired(Message, tag=True, frozen=True, kw_only=True):
    """`hold_ms_max` passed without a decision: held requests were refused, nothing was sent to any engine."""

    switch: str
    service: str
    refused: int


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `turnout sessions`."""

    id: int
    worker: int
    service: str
    protocol: str
    user: str
    database: str
    client: str
    """address:port"""
    engine: str
    backend_pid: int
    standing: str
    in_transaction: bool
    portability: str
    """Grade A to D."""
    pins: list[str]
    carried: dict[str, int] = {}
    """What a switch would carry, counts by name, as far as it is known now."""
    requests: int
    age_s: float
    idle_s: float
    waiting_s: float = 0.0
    """How long its login or its request has waited for a backend; 0: it does not wait."""
    replication: str = "none"
    """none, logical, physical"""
    application: str = ""
    """`application_name` of its login."""
    statements: int = 0
    """Prepared statements that it has."""
    local: str = ""
    """address:port that its client has connected to; like `tls`, only in an answer with sockets."""
    tls: str = ""
    """Version and cipher; empty: without TLS."""


class SessionList(Message, tag=True, frozen=True, kw_only=True):
    """A part of the answer; a worker goes on serving between two."""

    request: int
    sessions: list[Session]
    is_last: bool = True


class PoolFigures(msgspec.Struct, frozen=True, kw_only=True):
    service: str
    engine: str
    database: str
    user: str
    idle: int
    in_use: int
    waiting: int
    opening: int = 0
    """Being connected and logged in."""
    checking: int = 0
    """Idle ones that are asked whether they answer, or being given another session's settings."""
    cancelling: int = 0
    """Lent ones that a cancel request is on its way to."""


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """One connection to an engine, in a pool."""

    service: str
    engine: str
    address: str
    """host:port of the engine."""
    database: str
    user: str
    state: str
    """active: lent to a session; idle; tested: see `PoolFigures.checking`; being_canceled"""
    session: int
    """The one that has it; 0: none."""
    process_id: int
    age_s: float
    idle_s: float
    """Since it was idle last; while it is lent: since its session sent something."""
    is_retired: bool
    """It will be closed when it is free."""
    local: str
    """address:port of our end."""
    tls: str
    """Version and cipher; empty: without TLS."""
    application: str
    statements: int
    """Prepared statements that Turnout keeps on it."""


class BackendList(Message, tag=True, frozen=True, kw_only=True):
    request: int
    backends: list[Backend]


class BackendsCounted(Message, tag=True, frozen=True, kw_only=True):
    request: int
    left: int
    """All that are there, those being opened among them."""
    retired: int
    """Those of them that will be closed when they are free."""


class DatabaseFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What clients of one database did, since the worker began."""

    database: str
    requests_total: int
    transactions_total: int
    bytes_in_total: int
    bytes_out_total: int
    request_us_total: int
    transaction_us_total: int
    assignments_total: int
    """Times a session was given a backend."""
    wait_us_total: int
    """Time that requests waited for a backend, summed."""


class EngineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine of a service did for clients, since the worker began."""

    engine: str
    requests_total: int
    """Spans with at least one request in flight that have ended: requests, where nobody pipelines."""
    errors_total: int
    """Errors that clients were sent."""
    faults_total: int
    """Those of them that are not the clients' own: not of the classes in `protocols.wire.CLIENTS_OWN`."""
    request_us_total: int
    """Length of these spans, summed."""
    latency: list[int]
    """Spans by length, in the buckets of `proxy.latency`."""
    transactions_total: int = 0
    transaction_us_total: int = 0
    """Length of the transactions that ended, summed: from the request that began one to the end of the answer that ended it."""
    transaction_latency: list[int] = []
    """Transactions by length, in the same buckets."""
    wait_us_total: int = 0
    """Waits of clients for a backend, where they were not given one at once; summed."""
    waits: list[int] = []
    """These waits by length, in the same buckets."""


class ServiceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the worker began; the supervisor subtracts and adds up."""

    service: str
    sessions: int
    sessions_total: int
    requests_total: int
    transactions_total: int
    errors_total: int
    login_failures_total: int
    bytes_in_total: int
    bytes_out_total: int
    request_us_total: int
    """Time with a request in flight, summed; divided by requests: the mean response time."""
    held: int
    engines: list[EngineFigures] = []
    """Those that served something."""
    pools: list[PoolFigures]
    pinned: dict[str, int]
    """Sessions by pin; this, `grades` and `prepared_statements` of many sessions as they were a moment ago."""
    grades: dict[str, int] = {}
    """Sessions by portability, A to D."""
    prepared_statements: int = 0
    """That sessions have."""
    errors_by_class: dict[str, int] = {}
    """`errors_total` by class of SQLSTATE."""
    databases: list[DatabaseFigures] = []
    """Those that a backend was opened in."""


class WorkerFigures(Message, tag=True, frozen=True, kw_only=True):
    request: int
    worker: int = 0
    """Its index; counters of a worker that was replaced begin anew."""
    pid: int = 0
    loop_lag: list[int] = []
    """How much later than asked for its timer came, by length in the buckets of `proxy.latency`; ten times a second."""
    loop_lag_us_total: int = 0
    cpu_s: float
    rss_bytes: int
    services: list[ServiceFigures]


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


class SessionEnded(Message, tag=True, frozen=True, kw_only=True):
    """An EndSession has been dealt with."""

    request: int
    is_found: bool
    """It was a session of this worker."""


class Witnessed(Message, tag=True, frozen=True, kw_only=True):
    """The answer to a Witness. A worker that serves by another epoch does not answer."""

    request: int
    worker: int
    is_alive: bool
    how: str
    """One line."""


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


class EngineLost(Message, tag=True, frozen=True, kw_only=True):
    """The data plane saw an engine fail: connections refused or ended."""

    service: str
    engine: str
    why: str
    at_ns: int


Fact = (
    Hello
    | Configured
    | Shared
    | Prepared
    | OpeningStopped
    | Draining
    | AllHeld
    | Retargeted
    | Released
    | FirstRow
    | Expired
    | SessionList
    | WorkerFigures
    | CancelWanted
    | CancelTaken
    | KillWanted
    | KillTaken
    | BackendList
    | BackendsCounted
    | ConsoleAsked
    | ConsoleStopped
    | SessionEnded
    | Witnessed
    | QuerySpans
    | EngineLost
)

_encoder = msgspec.msgpack.Encoder()
_order_decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_fact_decoder: msgspec.msgpack.Decoder[Fact] = msgspec.msgpack.Decoder(Fact)


def encode(message: Order | Fact) -> bytes:
    """One frame. Names that clients and servers give in bytes that are no UTF-8 travel in a readable form (`\\xb4`)."""
    try:
        body = _encoder.encode(message)
    except UnicodeEncodeError:
        body = _encoder.encode(_readable(msgspec.to_builtins(message, builtin_types=(bytes,))))
    assert len(body) <= FRAME_BYTES_MAX, f"{type(message).__name__} of {len(body)} bytes"
    return len(body).to_bytes(4, "big") + body


def _readable(value: Any) -> Any:
    """The same without lone surrogates, in which the protocols keep bytes that are no UTF-8."""
    match value:
        case str():
            return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        case list():
            return [_readable(one) for one in value]
        case dict():
            return {_readable(name): _readable(one) for name, one in value.items()}
        case _:
            return value


def decode_order(body: bytes) -> Order:
    """Raises msgspec.DecodeError."""
    return _order_decoder.decode(body)


def decode_fact(body: bytes) -> Fact:
    """Raises msgspec.DecodeError."""
    return _fact_decoder.decode(body)


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The bodies of the frames of one connection, until it ends. A frame over the bound raises ValueError."""
    while True:
        try:
            size = int.from_bytes(await reader.readexactly(4), "big")
            if size > FRAME_BYTES_MAX:
                raise ValueError(f"frame of {size} bytes; the bound is {FRAME_BYTES_MAX}")
            body = await reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        yield body
