"""What workers tell of a switch: each the answer to an order of `switch_orders`, or its progress."""

from __future__ import annotations

import msgspec

from proxy.ipc.message import Message


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
    """What came of a Prepare."""

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
    """Every held session has its backend on the target, but for those that were interrupted."""

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
