"""Prepared statements of sessions that share backends: who calls what by which name, and which backend has it.

A session's statement name stands for a `Statement`, which has one name of ours in the whole process and thus on every
backend. The tracker sends names and remembers what it expects; when the server's answer comes, or when an error makes
the server skip the request, `on_done` or `on_dropped` of the objects below is called, in the order of the requests.
Names are given out when the request is sent, so that a client that pipelines finds them, and taken back if it is
dropped.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from typing import Final, Protocol

from protocols.postgres.text import changes_nothing

OWN_PREFIX: Final = b"turnout_"
"""Begins the names of shared statements on the backends."""

NOWHERE: Final = b"turnout_none"
"""A name no backend has: what a client's Bind to a statement it does not have is turned into."""

PER_BACKEND_MAX: Final = 200
"""Most statements kept on one backend; the one not used for longest is closed then."""

RECENT_MAX: Final = 2000
"""Most statements the process remembers although no session has a name for them."""

RECENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Most bytes of those."""

PER_SESSION_MAX: Final = 10_000
"""Most names of one session in transaction mode."""

PER_SESSION_BYTES_MAX: Final = 64 * 1024 * 1024
"""Most bytes of statements one session in transaction mode may have names for."""

PARSE_COMPLETE: Final = b"1\x00\x00\x00\x04"
CLOSE_COMPLETE: Final = b"3\x00\x00\x00\x04"


class Statement:
    """Text and parameter types under one name for the whole process."""

    __slots__ = ("__weakref__", "body", "is_lasting", "name")

    def __init__(self, name: bytes, body: bytes) -> None:
        self.name = name
        self.body = body
        """Of the Parse message, from behind the statement's name to the end."""
        text = body[: body.index(0)]
        self.is_lasting = not changes_nothing(text)
        """Executing it may change state that outlives the transaction."""

    def parse_message(self) -> bytes:
        return b"P" + (4 + len(self.name) + 1 + len(self.body)).to_bytes(4, "big") + self.name + b"\0" + self.body


_numbers = itertools.count(1)
_by_body: weakref.WeakValueDictionary[bytes, Statement] = weakref.WeakValueDictionary()
_recent: OrderedDict[bytes, Statement] = OrderedDict()
_recent_bytes = 0


def shared(body: bytes) -> Statement:
    """The process's statement with this body. It lives as long as a session has a name for it, and a while longer: a
    client that prepares and closes over and over shall find it on the backends."""
    global _recent_bytes
    statement = _by_body.get(body)
    if statement is None:
        statement = unshared(body)
        _by_body[body] = statement
    if body not in _recent:
        _recent[body] = statement
        _recent_bytes += len(body)
    _recent.move_to_end(body)
    while len(_recent) > RECENT_MAX or _recent_bytes > RECENT_BYTES_MAX:
        oldest, _ = _recent.popitem(last=False)
        _recent_bytes -= len(oldest)
    return statement


def unshared(body: bytes) -> Statement:
    """A statement with a name of its own: on no backend yet, whatever the backends hold."""
    return Statement(OWN_PREFIX + b"%d" % next(_numbers), body)


def outdate(statement: Statement) -> None:
    """Whoever prepares this text from now on gets a statement of another name: on no backend yet."""
    global _recent_bytes
    if _by_body.get(statement.body) is statement:
        del _by_body[statement.body]
    if _recent.get(statement.body) is statement:
        del _recent[statement.body]
        _recent_bytes -= len(statement.body)


def outdate_all() -> None:
    """Tables or types have changed. What a backend holds was made for the former ones: whoever prepares a text from now on
    gets a statement that the server reads anew, as it would without a proxy."""
    global _recent_bytes
    _by_body.clear()
    _recent.clear()
    _recent_bytes = 0


class Naming:
    """A session's name for a statement. Restores the former one if the request turns out to be skipped."""

    __slots__ = ("is_own", "is_settled", "is_void", "previous", "statement")

    def __init__(self, statement: Statement | None, previous: Naming | None) -> None:
        self.statement = statement
        """None: the name was closed."""
        self.previous = previous
        self.is_settled = False
        """The server agreed."""
        self.is_void = False
        """The server refused or skipped it."""
        self.is_own = False
        """Its Parse went to the backend: if it is not settled, neither is the statement there, and for the same
        reason."""


class Names:
    """All names of one session."""

    __slots__ = ("_bytes_at_most", "_namings")

    def __init__(self) -> None:
        self._namings: dict[bytes, Naming] = {}
        self._bytes_at_most = 0

    def __len__(self) -> int:
        return len(self._namings)

    def has_room(self, size: int) -> bool:
        """For one more statement of `size` bytes."""
        if self._bytes_at_most + size > PER_SESSION_BYTES_MAX:
            held = [naming.statement for naming in self._namings.values() if naming.statement is not None]
            self._bytes_at_most = sum(len(statement.body) for statement in held)
        return self._bytes_at_most + size <= PER_SESSION_BYTES_MAX and len(self) < PER_SESSION_MAX

    def find(self, name: bytes) -> Statement | None:
        naming = self._namings.get(name)
        return None if naming is None else naming.statement

    def naming(self, name: bytes) -> Naming | None:
        """What the name stands for now, be it settled or not."""
        return self._namings.get(name)

    def give(self, name: bytes, statement: Statement | None) -> Naming:
        naming = Naming(statement, self._namings.get(name))
        self._namings[name] = naming
        if statement is not None:
            self._bytes_at_most += len(statement.body)
        return naming

    def settle(self, name: bytes, naming: Naming) -> None:
        naming.is_settled = True
        naming.previous = None
        if naming.statement is None and self._namings.get(name) is naming:
            del self._namings[name]

    def take_back(self, name: bytes, naming: Naming) -> None:
        naming.is_void = True
        current = self._namings.get(name)
        while current is not None and current.is_void:
            current = current.previous
        if current is None:
            self._namings.pop(name, None)
        else:
            self._namings[name] = current

    def outdate(self) -> None:
        """One of this session's statements does not fit its tables any more. Which one does not matter: the others are
        prepared once more, too, when somebody wants them."""
        for naming in self._namings.values():
            if naming.statement is not None:
                outdate(naming.statement)

    def forget_settled(self) -> None:
        """DEALLOCATE ALL was executed: what was named before it is gone, what was sent after it is not."""
        self._namings = {name: naming for name, naming in self._namings.items() if not naming.is_settled}
        for naming in self._namings.values():
            # Nothing settled is left to be restored, should this be dropped.
            oldest = naming
            while oldest.previous is not None and not oldest.previous.is_settled:
                oldest = oldest.previous
            oldest.previous = None


class _Holding:
    """One statement on one backend."""

    __slots__ = ("is_there", "pending", "sync", "will_be")

    def __init__(self) -> None:
        self.is_there = False
        """The server said so."""
        self.will_be = False
        """It is there once the requests under way went well."""
        self.pending = 0
        """Parse and Close requests under way."""
        self.sync = 0
        """Number of Syncs the session had sent before the last of them."""


class OnBackend:
    """Statements one backend holds; lives in the backend's notes.

    A request may rely on one that is under way only if no Sync is between them: then an error that drops the first
    drops the second too.
    """

    def __init__(self) -> None:
        self._holdings: OrderedDict[bytes, _Holding] = OrderedDict()
        self._newest: bytes | None = None

    def __len__(self) -> int:
        return len(self._holdings)

    def __contains__(self, name: bytes) -> bool:
        holding = self._holdings.get(name)
        return holding is not None and holding.will_be

    def has(self, name: bytes, sync: int) -> bool | None:
        """Whether a request sent behind `sync` Syncs will find it. None: that depends on what is under way."""
        holding = self._holdings.get(name)
        if holding is None:
            return False
        if holding.pending and holding.sync != sync:
            return None
        self._holdings.move_to_end(name)
        self._newest = name
        return holding.will_be

    def holds(self, name: bytes) -> bool:
        """It is there, and nothing is under way that could change that."""
        holding = self._holdings.get(name)
        if holding is None or holding.pending > 0:
            return False
        if name is not self._newest:
            self._holdings.move_to_end(name)
            self._newest = name
        return holding.is_there

    def plan(self, name: bytes, will_be: bool, sync: int) -> None:
        """A Parse or Close is on its way."""
        self._newest = None
        holding = self._holdings.setdefault(name, _Holding())
        holding.will_be = will_be
        holding.pending += 1
        holding.sync = sync

    def settle(self, name: bytes, is_there: bool) -> None:
        """The server did it."""
        holding = self._holdings[name]
        holding.is_there = is_there
        self._end_one(name, holding)

    def drop(self, name: bytes) -> None:
        """The server refused or skipped it."""
        holding = self._holdings[name]
        holding.will_be = holding.is_there
        self._end_one(name, holding)

    def _end_one(self, name: bytes, holding: _Holding) -> None:
        holding.pending -= 1
        if not holding.pending and not holding.is_there:
            del self._holdings[name]

    def oldest_beyond(self, bound: int) -> bytes | None:
        """The name to close before one more is added; None while there is room."""
        if len(self._holdings) < bound:
            return None
        return next((name for name, holding in self._holdings.items() if not holding.pending), None)

    def forget_settled(self) -> None:
        """DEALLOCATE ALL was executed: what was there is gone, what is under way was sent after it."""
        for name, holding in list(self._holdings.items()):
            holding.is_there = False
            if not holding.pending:
                del self._holdings[name]


class Watched(Protocol):
    """Something that waits for the answer to one request."""

    answer: bytes
    """What the client gets if the request was not passed on."""

    def on_done(self) -> None: ...

    def on_dropped(self, is_refused: bool) -> None:
        """The server refused it, or skipped it because of an earlier error."""


class SentToBackend:
    """A Parse of ours, or a client's under our name, is on its way to a backend."""

    answer = PARSE_COMPLETE

    def __init__(self, backend: OnBackend, name: bytes, sync: int) -> None:
        backend.plan(name, True, sync)
        self._backend = backend
        self._name = name

    def on_done(self) -> None:
        self._backend.settle(self._name, True)

    def on_dropped(self, is_refused: bool) -> None:
        self._backend.drop(self._name)


class Evicted:
    """A Close of ours is on its way to a backend."""

    answer = CLOSE_COMPLETE

    def __init__(self, backend: OnBackend, name: bytes, sync: int) -> None:
        backend.plan(name, False, sync)
        self._backend = backend
        self._name = name

    def on_done(self) -> None:
        self._backend.settle(self._name, False)

    def on_dropped(self, is_refused: bool) -> None:
        self._backend.drop(self._name)


class Named:
    """A client's Parse or Close gave a name a meaning. `sent` is set if a Parse went to the backend."""

    def __init__(self, names: Names, name: bytes, naming: Naming, sent: SentToBackend | None) -> None:
        self.answer = CLOSE_COMPLETE if naming.statement is None else PARSE_COMPLETE
        self._names = names
        self._name = name
        self._naming = naming
        self._sent = sent

    def on_done(self) -> None:
        self._names.settle(self._name, self._naming)
        if self._sent is not None:
            self._sent.on_done()

    def on_dropped(self, is_refused: bool) -> None:
        self._names.take_back(self._name, self._naming)
        if self._sent is not None:
            self._sent.on_dropped(is_refused)
