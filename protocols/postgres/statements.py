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


def shared(body: bytes) -> Statement:
    """The process's statement with this body. It lives as long as a session has a name for it."""
    statement = _by_body.get(body)
    if statement is None:
        statement = unshared(body)
        _by_body[body] = statement
    return statement


def unshared(body: bytes) -> Statement:
    """A statement with a name of its own: on no backend yet, whatever the backends hold."""
    return Statement(OWN_PREFIX + b"%d" % next(_numbers), body)


class Naming:
    """A session's name for a statement. Restores the former one if the request turns out to be skipped."""

    __slots__ = ("is_settled", "is_void", "previous", "statement")

    def __init__(self, statement: Statement | None, previous: Naming | None) -> None:
        self.statement = statement
        """None: the name was closed."""
        self.previous = previous
        self.is_settled = False
        self.is_void = False


class Names:
    """All names of one session."""

    def __init__(self) -> None:
        self._namings: dict[bytes, Naming] = {}

    def __len__(self) -> int:
        return len(self._namings)

    def find(self, name: bytes) -> Statement | None:
        naming = self._namings.get(name)
        return None if naming is None else naming.statement

    def give(self, name: bytes, statement: Statement | None) -> Naming:
        naming = Naming(statement, self._namings.get(name))
        self._namings[name] = naming
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

    def forget_settled(self) -> None:
        """DEALLOCATE ALL was executed: what was named before it is gone, what was sent after it is not."""
        self._namings = {name: naming for name, naming in self._namings.items() if not naming.is_settled}


class OnBackend:
    """Statements one backend holds; lives in the backend's notes."""

    def __init__(self) -> None:
        self._used: OrderedDict[bytes, None] = OrderedDict()
        self._settled: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._used)

    def __contains__(self, name: bytes) -> bool:
        return name in self._used

    def use(self, name: bytes) -> bool:
        """True if the backend holds it."""
        if name not in self._used:
            return False
        self._used.move_to_end(name)
        return True

    def add(self, name: bytes) -> None:
        self._used[name] = None

    def settle(self, name: bytes) -> None:
        if name in self._used:
            self._settled.add(name)

    def remove(self, name: bytes) -> None:
        self._used.pop(name, None)
        self._settled.discard(name)

    def take_oldest_beyond(self, bound: int) -> bytes | None:
        """The name to close before one more is added; None while there is room."""
        if len(self._used) < bound:
            return None
        name, _ = self._used.popitem(last=False)
        self._settled.discard(name)
        return name

    def forget_settled(self) -> None:
        for name in self._settled:
            self._used.pop(name, None)
        self._settled.clear()


class Watched(Protocol):
    """Something that waits for the answer to one request."""

    answer: bytes
    """What the client gets if the request was not passed on."""

    def on_done(self) -> None: ...

    def on_dropped(self) -> None: ...


class SentToBackend:
    """A Parse of ours, or a client's under our name, is on its way to a backend."""

    answer = PARSE_COMPLETE

    def __init__(self, backend: OnBackend, statement: Statement) -> None:
        self._backend = backend
        self._statement = statement

    def on_done(self) -> None:
        self._backend.settle(self._statement.name)

    def on_dropped(self) -> None:
        self._backend.remove(self._statement.name)


class Evicted:
    """A Close of ours is on its way to a backend."""

    answer = CLOSE_COMPLETE

    def __init__(self, backend: OnBackend, name: bytes) -> None:
        self._backend = backend
        self._name = name

    def on_done(self) -> None:
        pass

    def on_dropped(self) -> None:
        self._backend.add(self._name)
        self._backend.settle(self._name)


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

    def on_dropped(self) -> None:
        self._names.take_back(self._name, self._naming)
        if self._sent is not None:
            self._sent.on_dropped()
