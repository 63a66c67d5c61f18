"""Clients and backends one by one: the answers to ListSessions, ListBackends and CountBackends."""

from __future__ import annotations

import msgspec

from proxy.ipc.message import Message


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
    """A part of the answer; a worker goes on serving between two."""

    request: int
    backends: list[Backend]
    is_last: bool = True


class BackendsCounted(Message, tag=True, frozen=True, kw_only=True):
    request: int
    left: int
    """All that are there, those being opened among them."""
    retired: int
    """Those of them that will be closed when they are free."""
