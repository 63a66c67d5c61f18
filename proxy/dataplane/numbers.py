"""Numbers of sessions: those of one worker are no other's, for as long as it lives. Pure.

Operators end sessions by them, MySQL's clients kill by them, and PgBouncer's console shows them in columns of 31 bits. So
the worker's index is in the bits above NUMBER_BITS, and who has had sixteen million clients begins again from one, past the
numbers that are still in use.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

NUMBER_BITS: Final = 24
"""With 64 workers (`workers`) the highest number has 30 bits."""


class Numbers:
    """Of one worker."""

    def __init__(self, index: int, *, last: int = 0) -> None:
        """`last`: the one that was given before, without the index."""
        self._base = index << NUMBER_BITS
        self._last = last

    def take(self, used: Container[int]) -> int:
        """The next one that is not in `used`, which has far less than 2 ** NUMBER_BITS. Never 0, which means nobody."""
        while True:
            self._last = self._last % ((1 << NUMBER_BITS) - 1) + 1
            if self._base + self._last not in used:
                return self._base + self._last
