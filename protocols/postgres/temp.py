"""Temporary tables of a PostgreSQL session: what they are made of, their rows, and how to make them again.

Three steps. `DEFINITIONS` asks the session's backend for statements that make its tables (and names what cannot be made
again). `Dump` reads rows and sequences, at a boundary at which the session stays. `restoring` makes everything on another
backend in one Query: all of it or nothing.

Facts that shaped this:

* search_path is pg_catalog while we ask, so that types, functions and operators come with their schemas; what is
  temporary is found first all the same, and printed without a schema.
* ON COMMIT is remembered by the backend alone. At a boundary a table with ON COMMIT DELETE ROWS is empty, so one that has
  rows has none; for one that has no rows the text that made it must have been seen (`creations`).
* Owner, privileges, comments, statistics: a table that was not made by the current role or has privileges pins, the
  others are lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from protocols.postgres.exchange import Group, PostgresExchange
from protocols.postgres.messages import build_query, readable

PIN_TEMP_TABLES_LARGE: Final = "temp tables too large"
PIN_TEMP_ORIGIN: Final = "empty temp table of unknown ON COMMIT"

_CREATE: Final = re.compile(
    rb"""\bcreate\s+(?:(?:local|global)\s+)?(?:temp(?:orary)?\s+table\s+|(?:unlogged\s+)?table\s+(?=(?:if\s+not\s+exists\s+)?pg_temp\s*\.))
         (?:if\s+not\s+exists\s+)?(?:pg_temp\s*\.\s*)?("(?:[^"]|"")+"|[\w$\x80-\xff]+)
       | \binto\s+(?:(?:local|global)\s+)?temp(?:orary)?\s+(?:table\s+)?("(?:[^"]|"")+"|[\w$\x80-\xff]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_DELETE_ROWS: Final = re.compile(rb"\bon\s+commit\s+delete\s+rows\b", re.IGNORECASE)

_CREATION_BYTES_MAX: Final = 64 * 1024
"""Longest text that is searched."""

DEFINITIONS: Final = rb"""SET LOCAL search_path TO pg_catalog; SET LOCAL quote_all_identifiers TO off;
WITH home AS (SELECT pg_my_temp_schema() AS id),
 tables AS (SELECT c.*, quote_ident(c.relname) AS called FROM pg_class c, home
  WHERE c.relnamespace = home.id AND c.relkind = 'r'),
 sequences AS (SELECT c.oid, quote_ident(c.relname) AS called, d.deptype, d.refobjid, d.refobjsubid,
   ' INCREMENT BY ' || s.seqincrement || ' MINVALUE ' || s.seqmin || ' MAXVALUE ' || s.seqmax || ' START WITH '
   || s.seqstart || ' CACHE ' || s.seqcache || CASE WHEN s.seqcycle THEN ' CYCLE' ELSE ' NO CYCLE' END AS how,
   format_type(s.seqtypid, NULL) AS type
  FROM home JOIN pg_class c ON c.relnamespace = home.id AND c.relkind = 'S' JOIN pg_sequence s ON s.seqrelid = c.oid
  LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
   AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')),
 columns AS (SELECT a.attrelid, a.attnum, quote_ident(a.attname) AS called, a.attgenerated,
   quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod)
   || CASE WHEN a.attcollation <> t.typcollation AND a.attcollation <> 0 THEN ' COLLATE ' ||
     (SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname) FROM pg_collation l JOIN pg_namespace n
       ON n.oid = l.collnamespace WHERE l.oid = a.attcollation) ELSE '' END
   || CASE WHEN a.attgenerated <> '' THEN ' GENERATED ALWAYS AS (' || pg_get_expr(d.adbin, d.adrelid) || ')'
       || CASE a.attgenerated WHEN 's' THEN ' STORED' ELSE ' VIRTUAL' END
      WHEN a.attidentity <> '' THEN ' GENERATED ' || CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END
       || ' AS IDENTITY (' || (SELECT 'SEQUENCE NAME ' || s.called || s.how FROM sequences s
         WHERE s.deptype = 'i' AND s.refobjid = a.attrelid AND s.refobjsubid = a.attnum) || ')'
      WHEN d.adbin IS NOT NULL THEN ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) ELSE '' END
   || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END AS made
  FROM pg_attribute a JOIN tables ON tables.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE a.attnum > 0 AND NOT a.attisdropped)
SELECT 't:sequence' AS kind, called AS name,
  CASE WHEN deptype = 'i' THEN NULL ELSE 'CREATE TEMP SEQUENCE ' || called || ' AS ' || type || how END AS value
  FROM sequences
UNION ALL SELECT 't:table', called, 'CREATE TEMP TABLE ' || called || ' (' ||
  (SELECT string_agg(made, ', ' ORDER BY attnum) FROM columns WHERE attrelid = tables.oid) || ')'
  || coalesce(' WITH (' || array_to_string(reloptions, ', ') || ')', '') FROM tables
UNION ALL SELECT 't:owned', s.called, 'ALTER SEQUENCE ' || s.called || ' OWNED BY ' || tables.called || '.' || c.called
  FROM sequences s JOIN tables ON tables.oid = s.refobjid JOIN columns c ON c.attrelid = s.refobjid
  AND c.attnum = s.refobjsubid WHERE s.deptype = 'a'
UNION ALL SELECT 't:columns', tables.called, (SELECT string_agg(called, ', ' ORDER BY attnum) FROM columns
  WHERE attrelid = tables.oid AND attgenerated = '') FROM tables
UNION ALL SELECT 't:constraint', tables.called, 'ALTER TABLE ' || tables.called || ' ADD CONSTRAINT '
  || quote_ident(conname) || ' ' || pg_get_constraintdef(o.oid) FROM pg_constraint o JOIN tables ON tables.oid = o.conrelid
  WHERE o.contype IN ('c', 'p', 'u', 'x')
UNION ALL SELECT 't:index', tables.called, replace(pg_get_indexdef(i.indexrelid),
  ' ON ' || quote_ident((SELECT nspname FROM pg_namespace, home WHERE oid = home.id)) || '.', ' ON pg_temp.')
  FROM pg_index i JOIN tables ON tables.oid = i.indrelid
  WHERE NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = i.indexrelid AND o.conrelid = i.indrelid)
UNION ALL SELECT 't:pin', 'temp ' || CASE relkind WHEN 'v' THEN 'view' WHEN 'p' THEN 'partitioned table'
   WHEN 'c' THEN 'type' ELSE 'object' END, NULL FROM pg_class, home
  WHERE relnamespace = home.id AND relkind NOT IN ('r', 'i', 'S', 't')
UNION ALL SELECT 't:pin', 'temp function', NULL FROM pg_proc, home WHERE pronamespace = home.id
UNION ALL SELECT 't:pin', 'temp type', NULL FROM pg_type, home WHERE typnamespace = home.id AND typrelid = 0
  AND typcategory <> 'A'
UNION ALL SELECT 't:pin', 'temp table without columns', NULL FROM tables
  WHERE NOT EXISTS (SELECT FROM columns WHERE attrelid = tables.oid AND attgenerated = '')
UNION ALL SELECT 't:pin', 'temp table that is a partition or inherits', NULL FROM tables
  JOIN pg_inherits h ON h.inhrelid = tables.oid OR h.inhparent = tables.oid
UNION ALL SELECT 't:pin', 'temp table with a trigger', NULL FROM tables JOIN pg_trigger g ON g.tgrelid = tables.oid
  WHERE NOT tgisinternal
UNION ALL SELECT 't:pin', 'temp table with a foreign key', NULL FROM tables JOIN pg_constraint o
  ON tables.oid IN (o.conrelid, o.confrelid) WHERE o.contype = 'f'
UNION ALL SELECT 't:pin', 'temp table with a rule', NULL FROM tables WHERE relhasrules
UNION ALL SELECT 't:pin', 'temp table with row security', NULL FROM tables
  WHERE relrowsecurity OR relforcerowsecurity OR EXISTS (SELECT FROM pg_policy WHERE polrelid = tables.oid)
UNION ALL SELECT 't:pin', 'temp table with privileges', NULL FROM tables WHERE relacl IS NOT NULL
UNION ALL SELECT 't:pin', 'temp table of another role', NULL FROM tables
  WHERE relowner <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
UNION ALL SELECT 't:pin', 'temp table with extended statistics', NULL FROM tables JOIN pg_statistic_ext e
  ON e.stxrelid = tables.oid
UNION ALL SELECT 't:pin', 'temp table of a type, tablespace or access method', NULL FROM tables
  WHERE reloftype <> 0 OR reltablespace <> 0 OR relam <> (SELECT oid FROM pg_am WHERE amname = 'heap')"""


def creations(text: bytes) -> dict[bytes, bool]:
    """Temporary tables that `text` makes, by name: whether ON COMMIT deletes their rows."""
    found: dict[bytes, bool] = {}
    if len(text) > _CREATION_BYTES_MAX:
        return found
    for match in _CREATE.finditer(text):
        called = match.group(1) or match.group(2)
        name = called[1:-1].replace(b'""', b'"') if called.startswith(b'"') else called.lower()
        end = text.find(b";", match.end())
        statement = text[match.end() : end if end >= 0 else len(text)]
        found[name] = _DELETE_ROWS.search(statement) is not None
    return found


class TempTables:
    """What a session's backend said of its temporary tables; valid until its next statement."""

    def __init__(self) -> None:
        self.pins: list[str] = []
        self.columns: dict[bytes, bytes] = {}
        """Columns that have rows' values, by table, both as they are written in SQL."""
        self.sequences: list[bytes] = []
        """As they are written in SQL."""
        self._tables: dict[bytes, bytes] = {}
        self._statements: dict[bytes, list[bytes]] = {}
        self._rows: dict[bytes, bytes] = {}
        self._has_rows: dict[bytes, bool] = {}
        self._values: dict[bytes, bytes] = {}
        self.is_dumped = False

    def __len__(self) -> int:
        return len(self._tables)

    def take(self, kind: bytes, name: bytes, value: bytes | None) -> None:
        """A row of the answer to DEFINITIONS."""
        if kind == b"t:pin":
            reason = readable(name)
            if reason not in self.pins:
                self.pins.append(reason)
        elif kind == b"t:columns":
            self.columns[name] = value or b""
        elif kind == b"t:sequence":
            self.sequences.append(name)
            if value is not None:
                self._statements.setdefault(kind, []).append(value)
        elif kind == b"t:table":
            self._tables[name] = value or b""
        elif value is not None:
            self._statements.setdefault(kind, []).append(value)

    def dump(self, bytes_max: int, deletes_rows: Mapping[bytes, bool | None]) -> Dump:
        """Read rows and sequences; then `restoring` is possible, unless `pins` say otherwise."""
        return Dump(self, bytes_max, deletes_rows)

    def dumped(self, rows: dict[bytes, bytes], counts: dict[bytes, int], values: dict[bytes, bytes]) -> None:
        """What `Dump` has read."""
        self._rows, self._values, self.is_dumped = rows, values, True
        self._has_rows = {table: count > 0 for table, count in counts.items()}

    def unknown_origin(self, deletes_rows: Mapping[bytes, bool | None]) -> bool:
        """There is an empty table whose ON COMMIT nobody knows."""
        return any(not has_rows and deletes_rows.get(_raw(table)) is None for table, has_rows in self._has_rows.items())

    def restoring(self, deletes_rows: Mapping[bytes, bool | None]) -> Group:
        """Make everything again. Only after `dump`."""
        assert self.is_dumped
        statements = [
            # Whatever the session's own defaults are.
            b"SET TRANSACTION READ WRITE; SET LOCAL search_path TO pg_catalog; SET LOCAL statement_timeout TO 0",
            *self._statements.get(b"t:sequence", []),
        ]
        for table, made in self._tables.items():
            deletes = deletes_rows.get(_raw(table)) and not self._has_rows[table]
            statements.append(made + (b" ON COMMIT DELETE ROWS" if deletes else b""))
        statements += self._statements.get(b"t:owned", [])
        copied: list[bytes] = []
        for table, rows in self._rows.items():
            if self._has_rows[table]:
                statements.append(b"COPY pg_temp.%s (%s) FROM STDIN (FORMAT binary)" % (table, self.columns[table]))
                copied.append(_copy_data(rows))
        for kind in (b"t:constraint", b"t:index"):
            statements += self._statements.get(kind, [])
        statements += self._values.values()
        return Group("temporary tables", build_query(b";\n".join(statements)) + b"".join(copied))


class Dump(PostgresExchange):
    """Rows of all tables and values of all sequences of a session."""

    def __init__(self, temp: TempTables, bytes_max: int, deletes_rows: Mapping[bytes, bool | None]) -> None:
        groups = [
            Group(
                f"rows of temporary table {readable(table)}",
                build_query(b"COPY (SELECT %s FROM ONLY pg_temp.%s) TO STDOUT (FORMAT binary)" % (columns, table)),
                columns=0,
            )
            for table, columns in temp.columns.items()
        ]
        groups += [
            Group(
                f"temporary sequence {readable(name)}",
                build_query(b"SELECT last_value, is_called FROM pg_temp.%s" % name),
                columns=2,
            )
            for name in temp.sequences
        ]
        super().__init__(groups)
        self._temp = temp
        self._bytes_left = bytes_max
        self._deletes_rows = deletes_rows
        self._names = [*temp.columns]
        self._data: dict[bytes, list[bytes]] = {name: [] for name in self._names}
        self._is_too_large = False

    def _on_copy_data(self, data: bytes) -> None:
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            # The rest is read, for the connection must come to an end of this, but not kept.
            self._is_too_large = True
            self._data.clear()
        elif not self._is_too_large:
            self._data[self._names[self._answered]].append(data)

    def _on_complete(self) -> None:
        temp = self._temp
        if self._is_too_large:
            temp.pins.append(PIN_TEMP_TABLES_LARGE)
            return
        if self.errors or len(self.rows) != len(temp.sequences):
            temp.pins.append(f"temp tables that cannot be read ({'; '.join(self.errors[:1])})")
            return
        values = {
            name: b"SELECT setval('pg_temp.%s'::regclass, %s, %s)"
            % (name.replace(b"'", b"''"), last or b"", b"true" if is_called == b"t" else b"false")
            for name, (last, is_called) in zip(temp.sequences, self.rows, strict=True)
        }
        # A binary COPY is a header, a message for each row, a trailer; which may come in any cut.
        rows = {name: b"".join(parts) for name, parts in self._data.items()}
        counts = {name: 0 if len(data) <= _EMPTY_COPY_BYTES else 1 for name, data in rows.items()}
        temp.dumped(rows, counts, values)
        if temp.unknown_origin(self._deletes_rows):
            temp.pins.append(PIN_TEMP_ORIGIN)


_EMPTY_COPY_BYTES: Final = 11 + 4 + 4 + 2
"""Signature, flags, length of the header's extension, trailer."""

_COPY_DATA_BYTES: Final = 64 * 1024


def _copy_data(rows: bytes) -> bytes:
    """CopyData messages and CopyDone."""
    messages = []
    for start in range(0, len(rows), _COPY_DATA_BYTES):
        part = rows[start : start + _COPY_DATA_BYTES]
        messages.append(b"d" + (len(part) + 4).to_bytes(4, "big") + part)
    return b"".join(messages) + b"c\x00\x00\x00\x04"


def _raw(called: bytes) -> bytes:
    """The name that SQL writes as `called`."""
    return called[1:-1].replace(b'""', b'"') if called.startswith(b'"') else called
