"""What every message is, and what both directions speak of."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, tag_field="t", frozen=True, kw_only=True):
    """An order or a fact; told apart by the name of its class."""


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
