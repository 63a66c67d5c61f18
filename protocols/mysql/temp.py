"""Temporary tables of a MySQL or MariaDB session: what they are made of, their rows, and how to make them again.

Neither server lists them to its users, so their names are those that the session's texts told. Three steps: the ledger's
inspection asks for each table's definition and columns; `Dump` reads the rows, at a boundary at which the session stays;
`making` makes everything again on another backend.

Facts that shaped this:

* SHOW CREATE TABLE is printed as the session's sql_mode wants it, and read again under the same, less what would refuse
  values that the table has already (strictness, zero dates), and with NO_AUTO_VALUE_ON_ZERO.
* Values come as HEX or as digits, so that the session's charsets do not matter; text as utf8mb4, as mysqldump has it. A
  FLOAT is printed with six digits only, so it is read as the DOUBLE it is.
* Generated columns are not written; hidden ones are named.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from protocols.mysql import constants as c
from protocols.mysql.exchange import Answer, Exchange, Question
from protocols.mysql.messages import command, text

PIN_TABLE: Final = "temporary table"
"""One whose name, or whose definition, is not known."""
PIN_TABLES_LARGE: Final = "temporary tables too large"

INSERT_BYTES: Final = 512 * 1024
"""A statement with rows is ended when it is longer."""

ROW_BYTES_MAX: Final = 4 * 1024 * 1024
"""Longest row as SQL: a quarter of the smallest default of max_allowed_packet (MariaDB, 16 MiB)."""

_NUMBERS: Final = frozenset({
    b"tinyint", b"smallint", b"mediumint", b"int", b"bigint", b"decimal", b"double", b"year",
})  # fmt: skip
_TEXTS: Final = frozenset({
    b"char", b"varchar", b"tinytext", b"text", b"mediumtext", b"longtext", b"enum", b"set", b"json",
})  # fmt: skip
_BYTES: Final = frozenset({b"binary", b"varbinary", b"tinyblob", b"blob", b"mediumblob", b"longblob"})
_TIMES: Final = frozenset({b"date", b"time", b"datetime", b"timestamp", b"uuid", b"inet4", b"inet6"})
"""What CAST AS CHAR prints in ASCII and without quotes."""

_NUMBER: Final = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_PLAIN: Final = re.compile(rb"[\w:.\- ]*", re.ASCII)
_HEX: Final = re.compile(rb"(?:[0-9A-Fa-f]{2})*")
_MADE: Final = re.compile(rb"CREATE TEMPORARY TABLE (?:`(?:[^`]|``)+`|\"(?:[^\"]|\"\")+\")")
_GENERATED: Final = re.compile(rb"\b(?:VIRTUAL|STORED|PERSISTENT)\b", re.IGNORECASE)

_REFUSING_MODES: Final = frozenset({
    b"STRICT_TRANS_TABLES", b"STRICT_ALL_TABLES", b"NO_ZERO_DATE", b"NO_ZERO_IN_DATE", b"TRADITIONAL",
    b"ERROR_FOR_DIVISION_BY_ZERO",
})  # fmt: skip


@dataclass(slots=True)
class Column:
    """One that has values of its own."""

    name: bytes
    """Quoted."""
    kind: str
    """`number`, `text`, `bytes` or `time`."""
    expression: bytes
    """What it is read by."""


@dataclass(slots=True)
class TempTable:
    """A temporary table as it was when it was asked for."""

    name: bytes
    """Qualified and quoted."""
    definition: bytes
    """Makes it, without rows."""
    columns: list[Column]
    rows: list[bytes] = field(default_factory=list)
    """As they stand behind VALUES."""


def questions(name: bytes) -> list[Question]:
    """What an inspection asks of the table `name`."""
    return [
        Question(command(c.COM_QUERY, b"SHOW CREATE TABLE " + name), "temporary table", is_optional=True),
        Question(command(c.COM_QUERY, b"SHOW COLUMNS FROM " + name), "columns of a temporary table", is_optional=True),
    ]


def table(name: bytes, made: Answer, columns: Answer, *, is_legible: bool) -> TempTable | str | None:
    """What the answers to `questions` tell: a table, why it cannot be carried, or None if it is not there (any more).
    `is_legible`: the server reads texts in the charset in which it writes them."""
    if made.error is not None or not made.rows or len(made.rows[0]) < 2:
        return None
    definition = made.rows[0][1] or b""
    if not definition.startswith(b"CREATE TEMPORARY"):
        return None
    if columns.error is not None or _MADE.match(definition) is None or not (is_legible or definition.isascii()):
        return PIN_TABLE
    found = []
    for row in columns.rows:
        if len(row) < 6 or row[0] is None or row[1] is None:
            return PIN_TABLE
        if _GENERATED.search(row[5] or b""):
            continue
        column = _column(row[0], row[1])
        if column is None:
            return f"temporary table with a column of type {text(row[1])[:30]}"
        found.append(column)
    if not found:
        return PIN_TABLE
    return TempTable(name, _MADE.sub(lambda _: b"CREATE TEMPORARY TABLE " + name, definition, count=1), found)


def _column(name: bytes, declared: bytes) -> Column | None:
    """None for a type that is not known here."""
    quoted = b"`" + name.replace(b"`", b"``") + b"`"
    kind = re.split(rb"[ (]", declared.lower(), maxsplit=1)[0]
    if kind in _NUMBERS:
        return Column(quoted, "number", quoted)
    if kind == b"float":
        return Column(quoted, "number", quoted + b" * 1e0")
    if kind == b"bit":
        return Column(quoted, "number", quoted + b" + 0")
    if kind in _TEXTS:
        return Column(quoted, "text", b"HEX(CONVERT(%s USING utf8mb4))" % quoted)
    if kind in _BYTES:
        return Column(quoted, "bytes", b"HEX(%s)" % quoted)
    if kind in _TIMES:
        return Column(quoted, "time", b"CAST(%s AS CHAR)" % quoted)
    return None


class Dump(Exchange):
    """Rows of all tables; puts them into `tables`. `on_read` is told why that was not possible, or nothing."""

    def __init__(
        self, tables: list[TempTable], bytes_max: int, *, capabilities: int, on_read: Callable[[str], None]
    ) -> None:
        super().__init__(
            [
                Question(
                    command(
                        c.COM_QUERY,
                        # Without a LIMIT the session's sql_select_limit applies.
                        b"SELECT %s FROM %s LIMIT 18446744073709551615"
                        % (b", ".join(column.expression for column in one.columns), one.name),
                    ),
                    f"rows of temporary table {text(one.name)}",
                )
                for one in tables
            ],
            capabilities=capabilities,
            on_complete=lambda answers: on_read(self._read(answers)),
        )
        self._tables = tables
        self._bytes_left = bytes_max

    def _row_packet(self, payload: bytes) -> None:
        if not self._is_end(payload):
            self._bytes_left -= len(payload)
            if self._bytes_left < 0:
                # The rest is read, for the connection must come to an end of this, but not kept.
                self._current.rows.clear()
                return
        super()._row_packet(payload)

    def _read(self, answers: list[Answer]) -> str:
        if self._bytes_left < 0:
            return PIN_TABLES_LARGE
        if self.errors:
            return "temporary table that cannot be read"
        for one, answer in zip(self._tables, answers, strict=True):
            one.rows = []
            for values in answer.rows:
                literals = [_literal(column, value) for column, value in zip(one.columns, values, strict=True)]
                if None in literals:
                    return "temporary table with a value that cannot be read"
                one.rows.append(b"(" + b", ".join(literal or b"" for literal in literals) + b")")
                if len(one.rows[-1]) > ROW_BYTES_MAX:
                    return PIN_TABLES_LARGE
        return ""


def _literal(column: Column, value: bytes | None) -> bytes | None:
    """None for what is no value of its kind: it would become a part of a statement."""
    if value is None:
        return b"NULL"
    if column.kind == "number":
        return value if _NUMBER.fullmatch(value) else None
    if column.kind == "time":
        return b"'" + value + b"'" if _PLAIN.fullmatch(value) else None
    if _HEX.fullmatch(value) is None:
        return None
    return (b"_utf8mb4 x'" if column.kind == "text" else b"x'") + value + b"'"


def making(tables: list[TempTable], sql_mode: bytes, *, capabilities: int) -> Exchange:
    """Make the tables again, with their rows, on a backend that has the session's settings; `sql_mode` is one of them."""
    kept = [mode for mode in sql_mode.split(b",") if mode and mode not in _REFUSING_MODES]
    asked = [_query(b"SET SESSION sql_mode = '%s'" % b",".join([*kept, b"NO_AUTO_VALUE_ON_ZERO"]), "sql_mode")]
    for one in tables:
        asked.append(_query(one.definition, f"temporary table {text(one.name)}"))
        head = b"INSERT INTO %s (%s) VALUES " % (one.name, b", ".join(column.name for column in one.columns))
        batch: list[bytes] = []
        size = 0
        for row in one.rows:
            batch.append(row)
            size += len(row)
            if size > INSERT_BYTES:
                asked.append(_query(head + b", ".join(batch), f"rows of temporary table {text(one.name)}"))
                batch, size = [], 0
        if batch:
            asked.append(_query(head + b", ".join(batch), f"rows of temporary table {text(one.name)}"))
    # With autocommit off the rows have begun a transaction.
    asked.append(_query(b"COMMIT AND NO CHAIN NO RELEASE", "end of the temporary tables"))
    asked.append(_query(b"SET SESSION sql_mode = '%s'" % sql_mode, "sql_mode"))
    return Exchange(asked, capabilities=capabilities)


def _query(sql: bytes, name: str) -> Question:
    return Question(command(c.COM_QUERY, sql), name)
