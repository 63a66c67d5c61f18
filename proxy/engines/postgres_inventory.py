"""What a PostgreSQL server has that another one should have alike: one question per server and one round per database.

Only catalogs are read. Every list has a bound, every session a `statement_timeout`, so that a schema of a hundred
thousand tables costs seconds of one process and no more. Digests are made by the server; the few definitions that
differ are asked for again (`explain`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from proxy.engines.engine import DATABASES_MAX, OBJECTS_MAX, Follower, Inventory, Slot

SETTINGS: Final = (
    "array_nulls",
    "backslash_quote",
    "bytea_output",
    "default_text_search_config",
    "default_transaction_isolation",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "lock_timeout",
    "max_prepared_transactions",
    "quote_all_identifiers",
    "search_path",
    "server_encoding",
    "shared_preload_libraries",
    "standard_conforming_strings",
    "statement_timeout",
    "synchronous_commit",
    "transform_null_equals",
    "wal_level",
    "xmlbinary",
    "xmloption",
)
"""What changes results, errors or durability of statements that the client writes."""

HANDSHAKE: Final = ("server_version", "server_encoding", "DateStyle", "IntervalStyle", "TimeZone", "integer_datetimes")
"""What a server tells a client by itself (ParameterStatus) that an application may have remembered."""

_SETTINGS: Final = "select name, reset_val from pg_settings where name = any($1::text[])"

_ACCOUNTS: Final = "select rolname from pg_roles where rolname !~ '^pg_' order by rolname collate \"C\" limit $1"

_SLOTS: Final = "select slot_name::text as name, slot_type, active, {follows} as follows from pg_replication_slots"

_FOLLOWERS: Final = """
select coalesce(application_name, '') as name, coalesce(host(client_addr), 'local') as client
  from pg_stat_replication
"""

_DATABASES: Final = """
select datname from pg_database where datallowconn and not datistemplate
   and (datname = any($1::text[]) or (cardinality($1::text[]) = 0 and datname <> 'postgres'))
   and has_database_privilege(oid, 'connect') order by datname collate "C" limit $2
"""

_COLLATIONS: Final = """
select datname, concat_ws(' ', datcollate, pg_database_collation_actual_version(oid)) as sorts
  from pg_database where datname = any($1::text[])
"""
_COLLATIONS_BEFORE_15: Final = """
select datname, concat_ws(' ', datcollate,
       (select pg_collation_actual_version(c.oid) from pg_collation c
         where c.collprovider = 'c' and c.collcollate = datcollate order by c.oid limit 1)) as sorts
  from pg_database where datname = any($1::text[])
"""

_EXTENSIONS: Final = """
select e.extname, e.extversion, a.name is null as is_unavailable
  from pg_extension e left join pg_available_extensions a on a.name = e.extname
"""

_UNLOGGED: Final = """
select n.nspname || '.' || c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relpersistence = 'u' and c.relkind = 'r' order by 1 limit 1000
"""

# What an extension brings is compared by the extension's version. Views by their columns: versions print the text of a
# view in different ways.
_MINE: Final = """
  and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
  and not exists (select from pg_depend d where d.classid = {catalog}::regclass and d.objid = {oid} and d.deptype = 'e')
"""

_COLUMN: Final = """
concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), case when a.attnotnull then 'not null' end,
          nullif(a.attidentity::text, ''), nullif(a.attgenerated::text, ''),
          case when a.attcollation <> t.typcollation then 'collate ' || a.attcollation::regcollation end,
          'default ' || pg_get_expr(d.adbin, d.adrelid))
"""

_KINDS: Final = {
    "table": f"""
select n.nspname || '.' || c.relname as name,
       coalesce(string_agg({_COLUMN}, E'\\n' order by a.attnum), '') as text
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  left join pg_type t on t.oid = a.atttypid
  left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
 where c.relkind in ('r', 'p', 'v', 'm', 'f') {_MINE.format(catalog="'pg_class'", oid="c.oid")}
 group by n.nspname, c.relname
""",
    "sequence": f"""
select n.nspname || '.' || c.relname as name, format_type(s.seqtypid, null) || ' by ' || s.seqincrement as text
  from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_sequence s on s.seqrelid = c.oid
 where true {_MINE.format(catalog="'pg_class'", oid="c.oid")}
""",
    "index": f"""
select n.nspname || '.' || c.relname as name, pg_get_indexdef(c.oid) as text
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('i', 'I') {_MINE.format(catalog="'pg_class'", oid="c.oid")}
""",
    # NOT NULL is a constraint of its own from PostgreSQL 18 on; it is in the columns.
    "constraint": f"""
select n.nspname || '.' || r.relname || '.' || c.conname as name, pg_get_constraintdef(c.oid) as text
  from pg_constraint c join pg_class r on r.oid = c.conrelid join pg_namespace n on n.oid = r.relnamespace
 where c.contype in ('c', 'f', 'p', 'u', 'x') {_MINE.format(catalog="'pg_class'", oid="r.oid")}
""",
    "function": f"""
select n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' as name,
       concat_ws(E'\\n', pg_get_function_result(p.oid), p.prosrc, array_to_string(p.proconfig, ',')) as text
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
 where true {_MINE.format(catalog="'pg_proc'", oid="p.oid")}
""",
    "trigger": f"""
select n.nspname || '.' || r.relname || '.' || g.tgname as name, pg_get_triggerdef(g.oid) as text
  from pg_trigger g join pg_class r on r.oid = g.tgrelid join pg_namespace n on n.oid = r.relnamespace
 where not g.tgisinternal {_MINE.format(catalog="'pg_class'", oid="r.oid")}
""",
    "enum": f"""
select n.nspname || '.' || t.typname as name, string_agg(e.enumlabel, E'\\n' order by e.enumsortorder) as text
  from pg_enum e join pg_type t on t.oid = e.enumtypid join pg_namespace n on n.oid = t.typnamespace
 where true {_MINE.format(catalog="'pg_type'", oid="t.oid")}
 group by n.nspname, t.typname
""",
    # Without the owner's own, which grow with the versions (MAINTAIN).
    "grants on": f"""
select n.nspname || '.' || c.relname as name,
       (select string_agg(case one.grantee when 0 then 'public' else one.grantee::regrole::text end || ' '
                          || one.privilege_type || case when one.is_grantable then ' with grant option' else '' end,
                          E'\\n' order by one.grantee::text, one.privilege_type)
          from aclexplode(c.relacl) one where one.grantee <> c.relowner and one.privilege_type <> 'MAINTAIN') as text
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') {_MINE.format(catalog="'pg_class'", oid="c.oid")}
""",
}
"""Definitions by kind of object: name, and text of several lines. A change of one is a change for clients."""

_EACH: Final = "union all".join(
    f" select '{kind} ' || name as label, coalesce(md5(text), '') as digest from ({query}) as one "
    for kind, query in _KINDS.items()
)
_DIGESTS: Final = f'select label, digest from ({_EACH}) as each_of_them order by label collate "C" limit $1'

# Of tables the rows' own types are left out: who reads them takes them column by column.
_TYPES: Final = f"""
select n.nspname || '.' || t.typname as name, t.oid::int8 as number
  from pg_type t join pg_namespace n on n.oid = t.typnamespace left join pg_class c on c.oid = t.typrelid
 where (t.typtype in ('e', 'd', 'r', 'm', 'b') or (t.typtype = 'c' and c.relkind = 'c'))
   and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
   and not exists (select from pg_type element join pg_class r on r.oid = element.typrelid
                    where element.typarray = t.oid and r.relkind <> 'c')
 order by 1 limit {OBJECTS_MAX}
"""


async def of_server(connection: Any, databases: Collection[str], *, version_num: int) -> tuple[Inventory, list[str]]:
    """What belongs to the whole server, and the databases to look into."""
    found = Inventory()
    names = [*SETTINGS, *HANDSHAKE]
    known = {row["name"]: row["reset_val"] or "" for row in await connection.fetch(_SETTINGS, names)}
    found.settings = {name: known[name] for name in SETTINGS if name in known}
    found.handshake = {name: known[name] for name in HANDSHAKE if name in known}
    found.accounts = [row["rolname"] for row in await connection.fetch(_ACCOUNTS, OBJECTS_MAX)]
    follows = "failover" if version_num >= 170000 else "false"
    found.slots = [
        Slot(
            name=row["name"], is_logical=row["slot_type"] == "logical", is_active=row["active"], follows=row["follows"]
        )
        for row in await connection.fetch(_SLOTS.format(follows=follows))
    ]
    found.followers = [Follower(name=row["name"], client=row["client"]) for row in await connection.fetch(_FOLLOWERS)]
    rows = await connection.fetch(_DATABASES, list(databases), DATABASES_MAX)
    inside = [row["datname"] for row in rows]
    sorts = _COLLATIONS if version_num >= 150000 else _COLLATIONS_BEFORE_15
    found.collations = {row["datname"]: row["sorts"] for row in await connection.fetch(sorts, inside)}
    return found, inside


async def of_database(connection: Any, database: str, found: Inventory, *, with_schema: bool) -> None:
    """Add what belongs to one database."""
    for row in await connection.fetch(_EXTENSIONS):
        found.extensions[f"{database}.{row['extname']}"] = row["extversion"]
        if row["is_unavailable"]:
            found.unavailable.append(f"{database}.{row['extname']}")
    found.sequences += await connection.fetchval("select count(*) from pg_class where relkind = 'S'")
    found.unlogged += [f"{database}.{row['name']}" for row in await connection.fetch(_UNLOGGED)]
    if not with_schema:
        return
    rows = await connection.fetch(_DIGESTS, OBJECTS_MAX + 1)
    for row in rows[:OBJECTS_MAX]:
        kind, name = _kind_and_name(row["label"])
        found.objects[f"{kind} {database}.{name}"] = row["digest"]
    if len(rows) > OBJECTS_MAX:
        found.blind = f"{database} has more than {OBJECTS_MAX:,} objects; only the first ones were compared"
    for row in await connection.fetch(_TYPES):
        found.types[f"{database}.{row['name']}"] = row["number"]


def _kind_and_name(label: str) -> tuple[str, str]:
    """`grants on public.orders` is ("grants on", "public.orders"); names may have blanks in them."""
    kind = next(kind for kind in _KINDS if label.startswith(f"{kind} "))
    return kind, label[len(kind) + 1 :]


async def definitions(connection: Any, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Lines of the definition by kind and name, within one database."""
    found = {}
    for kind, name in wanted:
        text = await connection.fetchval(f"select text from ({_KINDS[kind]}) one where name = $1", name)
        if text is not None:
            found[(kind, name)] = text.split("\n")
    return found


def kind_and_place(label: str) -> tuple[str, str, str]:
    """`table shop.public.orders` is ("table", "shop", "public.orders"). Database names with a dot are not told apart."""
    kind, rest = _kind_and_name(label)
    database, _, name = rest.partition(".")
    return kind, database, name
