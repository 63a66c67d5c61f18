"""How far a MySQL or MariaDB server is, by GTIDs, and what it says of itself as a replica.

All that takes a link runs in its thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.engines.engine import Position
from proxy.engines.mysql_link import Link
from proxy.engines.positions import covers
from proxy.errors import EngineError


def replica_state(link: Link) -> dict[str, Any]:
    """The replica's state by one set of names; empty if the server is no replica."""
    rows: Sequence[dict[str, Any]] = link.ask("show replica status")
    if not rows:
        return {}
    row = rows[0]

    def either(new: str, old: str) -> Any:
        return row[new] if new in row else row.get(old)

    return {
        "io": either("Replica_IO_Running", "Slave_IO_Running"),
        "sql": either("Replica_SQL_Running", "Slave_SQL_Running"),
        "host": either("Source_Host", "Master_Host"),
        "port": either("Source_Port", "Master_Port"),
        "lag_s": either("Seconds_Behind_Source", "Seconds_Behind_Master"),
        "received": str(either("Retrieved_Gtid_Set", "Gtid_IO_Pos") or "").replace("\n", ""),
        "error": row.get("Last_SQL_Error") or row.get("Last_IO_Error") or "",
    }


def position_of(link: Link) -> Position:
    """Everything that is applied."""
    if link.is_maria:
        # On a replica what is applied, on a primary what is in its own log; the former alone would be enough for
        # MASTER_GTID_WAIT, which knows only that.
        text = link.value("select @@global.gtid_current_pos") or ""
        return Position("mariadb-gtid", str(text))
    return Position("mysql-gtid", str(link.value("select @@global.gtid_executed") or "").replace("\n", ""))


def written(link: Link) -> Position:
    """The same of a server that takes writes. Raises EngineError where GTIDs do not tell what was written."""
    is_maria = link.is_maria
    row = link.ask(
        "select @@global.log_bin as logs,"
        + (" @@global.gtid_current_pos as gtids" if is_maria else " @@global.gtid_executed as gtids,")
        + ("" if is_maria else " @@global.gtid_mode = 'ON' as counts")
    )[0]
    if not row["logs"] or not row.get("counts", 1) or not row["gtids"]:
        raise EngineError(f"engine {link.name} cannot be compared with others: it gives its transactions no GTIDs")
    return Position("mariadb-gtid" if is_maria else "mysql-gtid", str(row["gtids"]).replace("\n", ""))


def with_received(applied: Position, received: str) -> Position:
    """What a replica has applied, together with what it has in its relay log."""
    if not received or covers(applied.kind, applied.text, received):
        return applied
    if applied.kind == "mysql-gtid":
        return Position(applied.kind, f"{applied.text},{received}".lstrip(","))
    return Position(applied.kind, received)


def wait_reached(link: Link, position: Position, timeout_s: float) -> bool:
    """Whether everything up to there is applied, within that time; 0: whether it is now."""
    if link.is_maria:
        if timeout_s and link.value("select master_gtid_wait(%s, %s)", position.text, timeout_s) == 0:
            return True
        # It counts only what came by replication; a server that is a primary already has written it itself.
        return covers("mariadb-gtid", position_of(link).text, position.text)
    if timeout_s:
        return bool(link.value("select wait_for_executed_gtid_set(%s, %s) = 0", position.text, timeout_s))
    return bool(link.value("select gtid_subset(%s, @@global.gtid_executed)", position.text))


def newest(gtids: str, most: int) -> list[str]:
    """Single transactions out of MySQL's set of them (`uuid:1-5:9,uuid:tag:1-3`; tags came with 8.3): at most `most`,
    shared out among its sources, of each the ones with the highest numbers, which stand last."""
    sources: list[tuple[str, list[tuple[int, int]]]] = []
    for part in filter(None, gtids.replace(" ", "").split(",")):
        uuid, *pieces = part.split(":")
        prefix = uuid
        for piece in pieces:
            first, _, last = piece.partition("-")
            if not first.isdigit():
                prefix = f"{uuid}:{piece}"
                continue
            if not sources or sources[-1][0] != prefix:
                sources.append((prefix, []))
            sources[-1][1].append((int(first), int(last or first)))
    names: list[str] = []
    for number, (prefix, intervals) in enumerate(sources):
        left = (most - len(names)) // (len(sources) - number)
        found: list[str] = []
        for lowest, highest in reversed(intervals):
            numbers = range(max(lowest, highest + 1 - (left - len(found))), highest + 1)
            found = [*(f"{prefix}:{one}" for one in numbers), *found]
        names += found
    return names
