"""What workers have counted: the answer to CollectFigures."""

from __future__ import annotations

import msgspec

from proxy.ipc.message import Message


class PoolFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Backends of one pool in this worker, by what they do, and the clients that wait for one."""

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
    """All that a worker counts."""

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
