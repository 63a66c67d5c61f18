"""The rows of one server, for a comparison with another: tables with their keys, bounds of chunks, checksums.

Checksums are made by the server: for each row a hash of its values as text, normalised so that two servers of one protocol
write the same value alike whatever their settings; for a range of keys the sum of these, which does not depend on an order. The
sum has 60 bits of each row: enough to find what an accident has changed, no proof against a forger.

Keys travel as text and are turned into the column's type by the server that compares, so that its index is used.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

TABLES_MAX: Final = 10_000
"""Tables of one comparison."""

ASK_TIMEOUT_S: Final = 60.0
"""For one question; a chunk that takes longer is too large, or its key has no index."""

Key = list[str]
"""Values of a key's columns, as text."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table as it is asked about."""

    database: str
    name: str
    """With its schema, for people."""
    key: list[str] = []
    """Columns of its primary key; empty: it has none that can be used, and is compared as a whole."""
    rows: int = 0
    """As the server estimates."""


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """A range of rows."""

    rows: int
    sum: str


class RowReader(Protocol):
    """Connections of its own to one server, which can write nothing. Every call raises EngineError."""

    async def tables(self, databases: list[str]) -> list[Table]:
        """All base tables that the account can see, at most `TABLES_MAX`; of every database if none is named."""
        ...

    async def limit(self, database: str, timeout_s: float) -> None:
        """From now on ask about tables of `database` only, and have the server give up each question after `timeout_s`."""
        ...

    async def bound(self, table: Table, after: Key | None, rows: int) -> Key | None:
        """The key of the row number `rows` behind `after`; None: there are not so many."""
        ...

    async def digest(self, table: Table, after: Key | None, upto: Key | None) -> Digest:
        """Of the rows behind `after` up to and with `upto`; None: no bound."""
        ...

    async def rows(self, table: Table, after: Key | None, upto: Key | None) -> dict[str, str]:
        """The same row by row: key, as text for people, and checksum."""
        ...

    async def close(self) -> None: ...
