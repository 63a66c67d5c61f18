"""What the supervisor orders its workers to do in a switch, in the order in which it comes.

Each carries the switch's id and may be repeated: a worker that has already done it answers with the same fact again. This
is what lets a restarted supervisor go on where the old one stopped.
"""

from __future__ import annotations

from proxy.ipc.message import Message


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
