"""Rows of a PostgreSQL server; see `proxy.engines.rows`.

A row's text is that of a record of its values as text, which quotes what has to be quoted and tells null from empty. The session
says how dates, intervals, floats and bytes are written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from proxy.engines.rows import ASK_TIMEOUT_S, TABLES_MAX, Digest, Key, Table
from proxy.errors import EngineError, EngineLost

SETTINGS: Final = {
    "default_transaction_read_only": "on",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "search_path": "pg_catalog",
}
"""Of the session. One that a row's text depends on and that is not here would show equal rows as different, never the other
way."""

_DATABASES: Final = """
select datname from pg_database where datallowconn and not datistemplate
   and (datname = any($1::text[]) or (cardinality($1::text[]) = 0 and datname <> 'postgres'))
   and has_database_privilege(oid, 'connect') order by datname collate "C"
"""

_TABLES: Final = """
select format('%I.%I', n.nspname, c.relname) as name, greatest(c.reltuples, 0)::bigint as rows,
       array(select quote_ident(a.attname) || ' ' || format_type(a.atttypid, null)
               from pg_index i, unnest(i.indkey::int2[]) with ordinality as k(attnum, place)
               join pg_attribute a on a.attnum = k.attnum
              where i.indrelid = c.oid and i.indisprimary and a.attrelid = c.oid order by k.place) as key,
       array(select quote_ident(a.attname) from pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attname) as columns
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence = 'p'
   and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and has_table_privilege(c.oid, 'select')
 order by n.nspname collate "C", c.relname collate "C" limit $1
"""


class PostgresRows:
    """See the module. `open_database` opens a connection with settings; it raises EngineError."""

    def __init__(self, name: str, open_database: Callable[..., Awaitable[Any]]) -> None:
        self._name = name
        self._open = open_database
        # One connection: databases are compared one after the other.
        self._connection: Any = None
        self._database = ""
        self._limit_s = ASK_TIMEOUT_S
        self._columns: dict[tuple[str, str], list[str]] = {}
        self._keys: dict[tuple[str, str], list[tuple[str, str]]] = {}

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _ask(self, database: str, sql: str, *args: object) -> list[Any]:
        try:
            if self._connection is None or self._connection.is_closed() or self._database != database:
                await self.close()
                limit = {"statement_timeout": str(int(1000 * self._limit_s))}
                self._connection = await self._open(ASK_TIMEOUT_S, database, **SETTINGS, **limit)
                self._database = database
            return list(await self._connection.fetch(sql, *args, timeout=self._limit_s + 5))
        except (asyncpg.InterfaceError, asyncpg.PostgresConnectionError, OSError, TimeoutError) as error:
            await self.close()
            raise EngineLost(f"the connection to engine {self._name} ended: {error}") from error
        except asyncpg.PostgresError as error:
            raise EngineError(f"engine {self._name}: {error} ({error.sqlstate})") from error

    async def tables(self, databases: list[str]) -> list[Table]:
        found: list[Table] = []
        for (database,) in await self._ask("", _DATABASES, databases):
            for row in await self._ask(database, _TABLES, TABLES_MAX - len(found)):
                place = (database, row["name"])
                # A quoted name may have spaces; a type may, too, behind it.
                self._keys[place] = [_split(one) for one in row["key"]]
                self._columns[place] = row["columns"]
                key = [name for name, _ in self._keys[place]]
                found.append(Table(database=database, name=row["name"], key=key, rows=row["rows"]))
        return found

    async def limit(self, database: str, timeout_s: float) -> None:
        await self.close()
        self._limit_s = timeout_s
        await self._ask(database, "select")

    async def bound(self, table: Table, after: Key | None, rows: int) -> Key | None:
        where, args = self._range(table, after, None)
        keys = ", ".join(table.key)
        texts = ", ".join(f"{name}::text" for name in table.key)
        sql = f"select {texts} from {table.name} {where} order by {keys} offset {rows - 1} limit 1"
        found = await self._ask(table.database, sql, *args)
        return list(found[0]) if found else None

    async def digest(self, table: Table, after: Key | None, upto: Key | None) -> Digest:
        where, args = self._range(table, after, upto)
        number = f"('x' || left({self._md5(table)}, 15))::bit(60)::bigint"
        sql = f"select count(*) as rows, coalesce(sum({number}), 0)::text as sum from {table.name} {where}"
        (row,) = await self._ask(table.database, sql, *args)
        return Digest(rows=row["rows"], sum=row["sum"])

    async def rows(self, table: Table, after: Key | None, upto: Key | None) -> dict[str, str]:
        where, args = self._range(table, after, upto)
        keys = f"row({', '.join(f'{name}::text' for name in table.key)})::text"
        sql = f"select {keys} as key, {self._md5(table)} as md5 from {table.name} {where}"
        return {row["key"]: row["md5"] for row in await self._ask(table.database, sql, *args)}

    def _md5(self, table: Table) -> str:
        values = ", ".join(f"{name}::text" for name in self._columns[(table.database, table.name)])
        return f"md5(row({values})::text)"

    def _range(self, table: Table, after: Key | None, upto: Key | None) -> tuple[str, list[object]]:
        """What names stand for comes from the catalog, quoted by the server; values are parameters."""
        conditions: list[str] = []
        args: list[object] = []
        for sign, key in ((">", after), ("<=", upto)):
            if key is not None:
                args.append(key)
                types = [kind for _, kind in self._keys[(table.database, table.name)]]
                values = ", ".join(f"(${len(args)}::text[])[{place}]::{kind}" for place, kind in enumerate(types, 1))
                conditions.append(f"({', '.join(table.key)}) {sign} ({values})")
        return ("where " + " and ".join(conditions) if conditions else ""), args


def _split(text: str) -> tuple[str, str]:
    """Column and type, of `quote_ident(column) || ' ' || type`."""
    if text.startswith('"'):
        end = 1
        while text[end] != '"' or text[end : end + 2] == '""':
            end += 2 if text[end : end + 2] == '""' else 1
        return text[: end + 1], text[end + 2 :]
    name, _, kind = text.partition(" ")
    return name, kind
