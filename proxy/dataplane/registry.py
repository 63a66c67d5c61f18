"""The sessions of one service by standing. The only mover: nothing else changes a session's standing."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.dataplane.session import Session


class Standing(enum.StrEnum):
    ARRIVING = "arriving"
    """Proven who it is, has no backend yet; while its service is held it waits here."""
    SERVING = "serving"
    """Reads and answers."""
    DRAINING = "draining"
    """A hold was ordered; not at a boundary yet."""
    HELD = "held"
    """At a boundary; nothing is read until the release."""
    ENDED = "ended"
    """Closed; in no index."""


_ARRIVING, _ENDED = Standing.ARRIVING, Standing.ENDED
# A member looked up by its name takes a tenth of a microsecond.


# A pair that is absent is a bug of ours.
MOVES: Final[Mapping[Standing, frozenset[Standing]]] = {
    Standing.ARRIVING: frozenset({Standing.SERVING, Standing.ENDED}),
    # Back to ARRIVING: COM_CHANGE_USER is a second login on the same socket.
    Standing.SERVING: frozenset({Standing.DRAINING, Standing.HELD, Standing.ARRIVING, Standing.ENDED}),
    Standing.DRAINING: frozenset({Standing.HELD, Standing.SERVING, Standing.ARRIVING, Standing.ENDED}),
    Standing.HELD: frozenset({Standing.SERVING, Standing.ENDED}),
    Standing.ENDED: frozenset(),
}


class Registry:
    """Every session of a service whose login is proven is in exactly one of its sets."""

    def __init__(self) -> None:
        # Dicts as ordered sets: the order of arrival is the order of release.
        self._members: dict[Standing, dict[Session, None]] = {standing: {} for standing in Standing}
        self.total = 0
        """Sessions ever added."""

    def add(self, session: Session) -> None:
        """A proven login begins as ARRIVING."""
        session.standing = _ARRIVING
        self._members[_ARRIVING][session] = None
        self.total += 1

    def move(self, session: Session, to: Standing) -> None:
        """The only place a session changes standing."""
        assert to in MOVES[session.standing], f"{session.standing} -> {to}"
        del self._members[session.standing][session]
        session.standing = to
        if to is not _ENDED:
            self._members[to][session] = None

    def count(self, standing: Standing) -> int:
        return len(self._members[standing])

    def members(self, standing: Standing) -> list[Session]:
        """A copy: moving while walking is safe."""
        return list(self._members[standing])

    def __len__(self) -> int:
        return sum(map(len, self._members.values()))

    def __iter__(self) -> Iterator[Session]:
        for members in self._members.values():
            yield from list(members)
