"""Rows of a MySQL or MariaDB server; see `proxy.engines.rows`.

A row's text is that of its values, each by QUOTE(), which tells NULL from 'NULL'. Bytes are written as hexadecimal digits, text in
utf8mb4, times in UTC; floating point as the server writes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, Final

import pymysql

from proxy.engines.rows import ASK_TIMEOUT_S, TABLES_MAX, Digest, Key, Table
from proxy.errors import EngineError, EngineLost

_TABLES: Final = """
select t.table_schema as db, t.table_name as name, coalesce(t.table_rows, 0) as num,
       c.column_name as col, c.data_type as kind, coalesce(k.ordinal_position, 0) as place
  from information_schema.tables t
  join information_schema.columns c on c.table_schema = t.table_schema and c.table_name = t.table_name
  left join information_schema.key_column_usage k on k.table_schema = t.table_schema and k.table_name = t.table_name
       and k.constraint_name = 'PRIMARY' and k.column_name = c.column_name
 where t.table_type = 'BASE TABLE'
   and t.table_schema not in ('information_schema', 'performance_schema', 'mysql', 'sys')
 order by t.table_schema, t.table_name, c.column_name
"""

_SESSION: Final = (
    "set session transaction read only",
    "set time_zone = '+00:00', sql_mode = '', sql_quote_show_create = 1, group_concat_max_len = 1048576",
    "set names utf8mb4",
)

_BYTES: Final = frozenset(
    [
        "binary",
        "varbinary",
        "tinyblob",
        "blob",
        "mediumblob",
        "longblob",
        "bit",
        "geometry",
        "point",
        "linestring",
        "polygon",
        "multipoint",
        "multilinestring",
        "multipolygon",
        "geometrycollection",
        "geomcollection",
    ]
)
_NUMBERS: Final = frozenset(["tinyint", "smallint", "mediumint", "int", "bigint", "year"])
_TEXTS: Final = frozenset(["char", "varchar", "tinytext", "text", "mediumtext", "longtext"])
_TIMES: Final = frozenset(["date", "datetime", "timestamp", "time"])
_KEY_BYTES: Final = frozenset(("binary", "varbinary"))
_KEYS: Final = _NUMBERS | _TEXTS | _TIMES | _KEY_BYTES | {"decimal"}
"""Types of keys whose order is that of a comparison with a value. (Enumerations sort by number and compare by text.)"""


CLIENT_CODES: Final = 2_000
"""Numbers from here to 2999 are the client library's own: lost, timed out, malformed. Servers begin again at 3000, with what
says nothing about a connection either; those are rare, and opened anew."""


class MySqlRows:
    """See the module. `open_blocking` opens a connection; it raises EngineError."""

    def __init__(self, name: str, open_blocking: Callable[[float], Any]) -> None:
        self._name = name
        self._open = open_blocking
        self._connection: Any = None
        self._limit_s = ASK_TIMEOUT_S
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-rows")
        self._columns: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self._kinds: dict[tuple[str, str], list[str]] = {}

    @property
    def thread_id(self) -> int | None:
        """The server's number of its connection; None: it has none now."""
        connection = self._connection
        return connection.thread_id() if connection is not None and connection.open else None

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection._force_close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, sql: str, *args: object) -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._ask_blocking, sql, args)

    def _ask_blocking(self, sql: str, args: tuple[object, ...]) -> list[dict[str, Any]]:
        try:
            if self._connection is None:
                self._connection = self._open(ASK_TIMEOUT_S)
                for statement in (*_SESSION, self._limit()):
                    with self._connection.cursor() as cursor:
                        cursor.execute(statement)
            with self._connection.cursor() as cursor:
                # With arguments, if none: two percent signs stand for one then, too.
                cursor.execute(sql, args)
                return list(cursor.fetchall())
        except pymysql.err.MySQLError as error:
            code, text = (*error.args, "")[:2] if error.args else (0, str(error))
            if isinstance(code, int) and 0 < code < CLIENT_CODES:
                raise EngineError(f"engine {self._name}: {text} ({code})") from error
            self._drop()
            raise EngineLost(f"the connection to engine {self._name} ended: {error}") from error
        except OSError as error:
            self._drop()
            raise EngineLost(f"the connection to engine {self._name} ended: {error}") from error

    def _limit(self) -> str:
        """The statement that has the server give up a question that takes too long."""
        if "MariaDB" in self._connection.get_server_info():
            return f"set session max_statement_time = {self._limit_s:g}"
        return f"set session max_execution_time = {int(1000 * self._limit_s)}"

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection._force_close()

    async def tables(self, databases: list[str]) -> list[Table]:
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in await self._ask(_TABLES):
            if not databases or row["db"] in databases:
                found.setdefault((row["db"], row["name"]), []).append(row)
        tables: list[Table] = []
        for place, columns in list(found.items())[:TABLES_MAX]:
            self._columns[place] = [(_quoted(one["col"]), one["kind"].lower()) for one in columns]
            key = sorted((one for one in columns if one["place"]), key=lambda one: int(one["place"]))
            kinds = [one["kind"].lower() for one in key]
            if not _KEYS.issuperset(kinds):
                key, kinds = [], []
            self._kinds[place] = kinds
            tables.append(
                Table(
                    database=place[0], name=place[1], key=[_quoted(one["col"]) for one in key],
                    rows=int(columns[0]["num"]),
                )
            )  # fmt: skip
        return tables

    async def limit(self, database: str, timeout_s: float) -> None:
        # A connection reaches all of them.
        del database
        self._limit_s = timeout_s
        self._drop()
        await self._ask("select 1")

    async def bound(self, table: Table, after: Key | None, rows: int) -> Key | None:
        where, args = self._range(table, after, None)
        texts = ", ".join(f"{one} as k{number}" for number, one in enumerate(self._key_texts(table)))
        order = ", ".join(table.key)
        sql = f"select {texts} from {_full(table)} {where} order by {order} limit 1 offset {rows - 1}"
        found = await self._ask(sql, *args)
        return [str(value) for value in found[0].values()] if found else None

    async def digest(self, table: Table, after: Key | None, upto: Key | None) -> Digest:
        where, args = self._range(table, after, upto)
        number = f"cast(conv(left({self._hash(table)}, 15), 16, 10) as unsigned)"
        sql = f"select count(*) as n, cast(coalesce(sum({number}), 0) as char) as total from {_full(table)} {where}"
        (row,) = await self._ask(sql, *args)
        return Digest(rows=int(row["n"]), sum=str(row["total"]))

    async def rows(self, table: Table, after: Key | None, upto: Key | None) -> dict[str, str]:
        where, args = self._range(table, after, upto)
        key = f"concat_ws(',', {', '.join(self._key_texts(table))})"
        sql = f"select {key} as k, {self._hash(table)} as d from {_full(table)} {where}"
        return {f"({row['k']})": row["d"] for row in await self._ask(sql, *args)}

    def _key_texts(self, table: Table) -> list[str]:
        kinds = self._kinds[(table.database, table.name)]
        return [
            f"hex({name})" if kind in _KEY_BYTES else f"cast({name} as char)"
            for name, kind in zip(table.key, kinds, strict=True)
        ]

    def _hash(self, table: Table) -> str:
        values = [
            f"quote(hex({name}))" if kind in _BYTES else f"quote(convert({name} using utf8mb4))"
            for name, kind in self._columns[(table.database, table.name)]
        ]
        # Not MD5(): MySQL 9.6 has it no more.
        return f"sha2(concat_ws('#', {', '.join(values)}), 256)"

    def _range(self, table: Table, after: Key | None, upto: Key | None) -> tuple[str, list[object]]:
        """As comparisons of single columns: the servers use an index for these, and none for a row of them."""
        kinds = self._kinds[(table.database, table.name)]
        conditions: list[str] = []
        args: list[object] = []
        for sign, key in ((">", after), ("<", upto)):
            if key is None:
                continue
            values = [_typed(value, kind) for value, kind in zip(key, kinds, strict=True)]
            alternatives: list[str] = []
            for place, name in enumerate(table.key):
                is_last_of_upto = sign == "<" and place == len(table.key) - 1
                equal = [f"{other} = %s" for other in table.key[:place]]
                alternatives.append(" and ".join([*equal, f"{name} {'<=' if is_last_of_upto else sign} %s"]))
                args += values[: place + 1]
            conditions.append("(" + " or ".join(f"({one})" for one in alternatives) + ")")
        return ("where " + " and ".join(conditions) if conditions else ""), args


def _typed(value: str, kind: str) -> object:
    """As the driver writes it into a statement: a number in quotes would be compared as floating point."""
    if kind in _NUMBERS:
        return int(value)
    if kind == "decimal":
        return Decimal(value)
    if kind in _KEY_BYTES:
        return bytes.fromhex(value)
    return value


def _quoted(name: str) -> str:
    # A percent sign is the driver's.
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"


def _full(table: Table) -> str:
    return f"{_quoted(table.database)}.{_quoted(table.name)}"
