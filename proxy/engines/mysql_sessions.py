"""Who is on a MySQL or MariaDB server: sessions of clients, those of them that have written, prepared transactions.

All of it runs in a link's thread.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

from proxy.engines.mysql_link import Link

_MONITORED: Final = re.compile(r"^---TRANSACTION [^\n]*\bACTIVE\b.*?(?=^---|\Z)", re.MULTILINE | re.DOTALL)
"""A transaction that is not over, in the text of SHOW ENGINE INNODB STATUS."""
_MONITORED_THREAD: Final = re.compile(r"^(?:MySQL|MariaDB) thread id (\d+)", re.MULTILINE)
_MONITORED_CHANGES: Final = re.compile(r"\bundo log entries \d")

_SERVER_USERS: Final = frozenset({"system user", "event_scheduler", "unauthenticated user"})
_SERVER_COMMANDS: Final = frozenset({"Binlog Dump", "Binlog Dump GTID", "Daemon"})
_CLIENTS: Final = "user not in ({}) and command not in ({})".format(
    *(", ".join(f"'{name}'" for name in sorted(names)) for names in (_SERVER_USERS, _SERVER_COMMANDS))
)
"""Sessions of clients, in the server's list of its processes."""


def client_ids(link: Link) -> set[int]:
    """The server's ids of all client sessions, ours among them. Not by SHOW PROCESSLIST, and not in rows: a thousand of them
    take PyMySQL longer than all else that a fence does. (performance_schema's table of the same name is empty where that
    schema is switched off, and has no threads that it does not watch.)"""
    ids = link.value(f"select group_concat(id) from information_schema.processlist where {_CLIENTS}")
    return {int(one) for one in str(ids).split(",")} if ids else set()


def outsiders(link: Link, own: Collection[int]) -> list[dict[str, Any]]:
    """Client sessions but for `own`, as the server describes them."""
    ids = ", ".join(str(one) for one in sorted(client_ids(link).difference(own)))
    if not ids:
        return []
    return link.ask(
        "select id as Id, user as User, host as Host, db, command as Command, time as Time, state as State"
        f" from information_schema.processlist where id in ({ids}) and {_CLIENTS}"
    )


def listed_writers(link: Link) -> list[str] | None:
    """Connections with a transaction that has changed something, when InnoDB last made its list. None: it has made none
    since the transaction of `link` began."""
    rows = link.ask(
        "select trx_mysql_thread_id as id, trx_rows_modified > 0 as is_writing from information_schema.innodb_trx"
        " where trx_rows_modified > 0 and trx_mysql_thread_id <> 0 or trx_mysql_thread_id = connection_id()"
    )
    if link.thread_id not in (row["id"] for row in rows):
        return None
    return [str(row["id"]) for row in rows if row["is_writing"]]


def monitored_writers(text: str) -> list[str]:
    """Connections with a transaction that has changed something, as InnoDB's monitor tells at this moment."""
    found = [block.group() for block in _MONITORED.finditer(text)]
    return [
        thread.group(1)
        for block in found
        if _MONITORED_CHANGES.search(block) and (thread := _MONITORED_THREAD.search(block)) is not None
    ]


def in_doubt(link: Link) -> list[str]:
    """Names of prepared transactions."""
    names = [row["data"] for row in link.ask("xa recover")]
    # MariaDB gives bytes.
    return [name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name) for name in names]


def xids(link: Link) -> list[str]:
    """Prepared transactions as XA COMMIT wants them: `X'gtrid',X'bqual',format`."""
    if link.is_maria:
        return [str(row["data"]) for row in link.ask("xa recover format = 'sql'")]
    found = []
    for row in link.ask("xa recover convert xid"):
        data = str(row["data"]).removeprefix("0x")
        cut = 2 * int(row["gtrid_length"])
        found.append(f"X'{data[:cut]}',X'{data[cut:]}',{int(row['formatID'])}")
    return found
