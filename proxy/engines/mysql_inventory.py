"""What a MySQL or MariaDB server has that another one should have alike. Runs in a link's thread.

Definitions are read from `information_schema`, which shows an account only what it has some right on; for tables `REFERENCES` is
enough and lets nobody read a row, triggers need TRIGGER. The server itself ends a statement that takes too long.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from proxy.engines.engine import OBJECTS_MAX, Follower, Inventory

Ask = Callable[..., list[dict[str, Any]]]

SETTINGS: Final = (
    "auto_increment_increment",
    "auto_increment_offset",
    "autocommit",
    "binlog_format",
    "character_set_server",
    "collation_server",
    "default_storage_engine",
    "default_week_format",
    "div_precision_increment",
    "enforce_gtid_consistency",
    "event_scheduler",
    "explicit_defaults_for_timestamp",
    "foreign_key_checks",
    "group_concat_max_len",
    "gtid_mode",
    "init_connect",
    "innodb_autoinc_lock_mode",
    "innodb_flush_log_at_trx_commit",
    "innodb_lock_wait_timeout",
    "innodb_rollback_on_timeout",
    "local_infile",
    "log_bin",
    "log_replica_updates",
    "log_slave_updates",
    "lower_case_table_names",
    "max_allowed_packet",
    "require_secure_transport",
    "sql_mode",
    "sync_binlog",
    "system_time_zone",
    "time_zone",
    "transaction_isolation",
    "tx_isolation",
    "wait_timeout",
)
"""What changes results, errors or durability of statements that the client writes, or the way back."""

HANDSHAKE: Final = ("version", "character_set_server", "collation_server", "default_authentication_plugin")
"""What a server tells a client in its greeting, and what drivers branch on."""

_SYSTEM: Final = ("information_schema", "performance_schema", "mysql", "sys")

# MariaDB and MySQL differ in what they call it; what is not there, is not there.
_SEMI_SYNC: Final = (
    "show global status where variable_name in ('Rpl_semi_sync_master_status', 'Rpl_semi_sync_source_status')"
)

_KINDS: Final = {
    "table": (
        "table_schema, table_name",
        "columns",
        """concat_ws(' ', column_name, column_type, if(is_nullable = 'NO', 'not null', null), collation_name,
        if(column_default is null, null, concat('default ', column_default)), nullif(extra, ''))""",
        "ordinal_position",
    ),
    "index": (
        "table_schema, table_name, index_name",
        "statistics",
        "concat_ws(' ', column_name, sub_part, if(non_unique, null, 'unique'))",
        "seq_in_index",
    ),
    "foreign key": (
        "table_schema, table_name, constraint_name",
        "key_column_usage",
        """concat_ws(' ', column_name, 'references', referenced_table_schema, referenced_table_name,
        referenced_column_name)""",
        "ordinal_position",
    ),
    "trigger": ("trigger_schema, trigger_name", "triggers", "action_statement", "action_order"),
    "routine": ("routine_schema, routine_name", "routines", "coalesce(routine_definition, '')", "routine_type"),
    "view": ("table_schema, table_name", "views", "view_definition", "table_name"),
}
"""By kind of object: its name, where it is described, the text of one line, and the order of its lines."""


def of_server(
    ask: Ask, databases: Collection[str], *, is_maria: bool, with_schema: bool, timeout_s: float
) -> Inventory:
    """The whole. `ask` runs one statement."""
    _begin(ask, is_maria=is_maria, timeout_s=timeout_s)
    found = Inventory()
    names = sorted({*SETTINGS, *HANDSHAKE})
    rows = ask(f"show global variables where variable_name in ({', '.join(['%s'] * len(names))})", *names)
    known = {row["Variable_name"]: str(row["Value"]) for row in rows}
    found.settings = {name: known[name] for name in SETTINGS if name in known}
    found.handshake = {name: known[name] for name in HANDSHAKE if name in known}
    plugins = (
        "select plugin_name as name, plugin_type as kind from information_schema.plugins where plugin_status = 'ACTIVE'"
    )
    found.extensions = {row["name"]: row["kind"] for row in ask(plugins)}
    found.followers = [
        Follower(name=row["name"], client=str(row["client"]).rpartition(":")[0] or str(row["client"]))
        for row in ask(
            "select user as name, host as client from information_schema.processlist where command like 'Binlog Dump%'"
            " limit 1000",
        )
    ]
    found.semi_sync = ", ".join(str(row["Value"]).lower() for row in ask(_SEMI_SYNC))
    if with_schema:
        _objects(ask, databases, found)
    return found


def _begin(ask: Ask, *, is_maria: bool, timeout_s: float) -> None:
    if is_maria:
        ask(f"set session max_statement_time = {max(0.1, timeout_s):.3f}")
    else:
        ask(f"set session max_execution_time = {max(100, int(timeout_s * 1000))}")
    # Lines of one object are put together by the server; 1 kB would be a few columns.
    ask("set session group_concat_max_len = 1048576")


def _objects(ask: Ask, databases: Collection[str], found: Inventory) -> None:
    for kind in _KINDS:
        where, wanted = _in(databases)
        rows = ask(f"{_objects_of(kind, where, as_digest=True)} order by name limit %s", *wanted, OBJECTS_MAX + 1)
        for row in rows[:OBJECTS_MAX]:
            found.objects[f"{kind} {row['name']}"] = str(row["text"])
        if len(rows) > OBJECTS_MAX:
            found.blind = f"more than {OBJECTS_MAX:,} objects of kind {kind}; only the first ones were compared"
    if any(label.startswith("table ") for label in found.objects):
        return
    # Nothing is either nothing, or nothing that this account may see.
    if ask("select privilege_type from information_schema.user_privileges where privilege_type in"
           " ('SELECT', 'REFERENCES') and grantee = concat('''', replace(current_user(), '@', '''@'''), '''')"):  # fmt: skip
        return
    account = str(ask("select current_user() as name")[0]["name"])
    user, _, host = account.rpartition("@")
    found.blind = (
        f"the admin account sees no table: GRANT REFERENCES, SHOW VIEW ON *.* TO '{user}'@'{host}' (which shows no row)"
    )


def _objects_of(kind: str, where: str, *, as_digest: bool = False) -> str:
    """Name and text of every object of a kind, or the text's digest. (Not MD5: newest servers of MySQL have none.)"""
    name, table, line, order = _KINDS[kind]
    schema = name.partition(",")[0]
    text = f"group_concat({line} order by {order} separator '\n')"
    if as_digest:
        text = f"sha2({text}, 224)"
    return (
        f"select concat_ws('.', {name}) as name, {text} as text from information_schema.{table} where {schema} {where}"
        + (" and referenced_table_name is not null" if kind == "foreign key" else "")
        + f" group by {name}"
    )


def _in(databases: Collection[str]) -> tuple[str, list[str]]:
    names = list(databases) or list(_SYSTEM)
    return f"{'in' if databases else 'not in'} ({', '.join(['%s'] * len(names))})", names


def definitions(ask: Ask, labels: Iterable[str], *, is_maria: bool, timeout_s: float) -> dict[str, list[str]]:
    """Lines of a few definitions by label (`table shop.orders`)."""
    _begin(ask, is_maria=is_maria, timeout_s=timeout_s)
    found = {}
    for label in labels:
        kind = next(kind for kind in _KINDS if label.startswith(f"{kind} "))
        name = label[len(kind) + 1 :]
        where, wanted = _in([name.partition(".")[0]])
        rows = ask(f"{_objects_of(kind, where)} having name = %s", *wanted, name)
        if rows and rows[0]["text"] is not None:
            found[label] = str(rows[0]["text"]).split("\n")
    return found
