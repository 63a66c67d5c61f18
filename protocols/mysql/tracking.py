"""Session tracking: what a server tells of a session's changes behind an OK, and what of it the client is shown.

Turnout turns it on for itself on every backend (`turn_on`), so that the ledger learns of what no statement's text tells:
settings made in procedures, the default database, LOCK TABLES, what SET TRANSACTION has set for the next one. A client that
did not ask for it (CLIENT_SESSION_TRACK) gets the same OK without it; one that did ask is shown what it would be told
without Turnout.

That anything changed is told by `session_track_state_change`, and the server is then asked for values. The list of
variables is left empty: both servers' defaults have names in it that change by themselves, `last_gtid` with every write on
MariaDB 10.11, `statement_id` with every statement on MySQL 9.7, and each OK that tells of one has to be taken apart. For
clients that asked for tracking the list is the server's, as they expect.

What every transaction that writes tells three times, its state and its characteristics, does not come here: the tracker
takes it off in passing where the ledger has it so (`_strip_told`), by the same rules, also for clients that asked for
tracking: most that are built on MySQL's or MariaDB's own library do.

The variables `session_track_…` are the session's, so Turnout's values can be read there. A client that sets one of them
gets what it asked for, and keeps it when it moves; Turnout then goes on with what it is still told, and with the
statements' texts.

A result that ends in a classic EOF tells nothing; its news come behind the next OK (MariaDB sets the flag there already).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from protocols.mysql import constants as c
from protocols.mysql.messages import Reader, lenenc, lenenc_bytes

VARIABLES: Final = "session_track_system_variables"
STATE_CHANGE: Final = "session_track_state_change"
TRANSACTION_INFO: Final = "session_track_transaction_info"

_WANTED: Final = {VARIABLES: b"''", STATE_CHANGE: b"ON", TRANSACTION_INFO: b"'CHARACTERISTICS'"}

Entries = list[tuple[int, bytes]]
"""Kind and body of each thing that is told."""


def turn_on(capabilities: int, own: Collection[str] = ()) -> bytes:
    """The statement that turns tracking on for a client with `capabilities`, but for the variables `own` that it has set
    itself; empty if none is left."""
    wanted = [
        b"%s = %s" % (name.encode(), value)
        for name, value in _WANTED.items()
        if name not in own and not (name == VARIABLES and capabilities & c.CLIENT_SESSION_TRACK)
    ]
    return b"SET SESSION " + b", ".join(wanted) if wanted else b""


def is_ours(name: str) -> bool:
    """A variable that Turnout sets on each backend."""
    return name in _WANTED


@dataclass(slots=True)
class Told:
    """What came behind an OK."""

    database: bytes | None = None
    """The default database, if it was set; empty for none."""
    is_changed: bool = False
    """Something of the session changed: a setting, the database, a user variable, a temporary table, a statement of SQL
    PREPARE."""
    characteristics: bytes | None = None
    """Statements that would begin the present or the next transaction as it is; empty: nothing is special about it."""
    has_locked_tables: bool | None = None
    """LOCK TABLES is in force; None: nothing was said about it."""


def take_apart(payload: bytes) -> tuple[bytes, bytes, Entries]:
    """An OK with SERVER_SESSION_STATE_CHANGED: what stands before its info, its info, and its entries."""
    reader = Reader(payload, "server", 1)
    reader.lenenc()
    reader.lenenc()
    reader.take(4)
    head = payload[: reader.position]
    info = reader.lenenc_bytes() or b""
    inner = Reader(reader.lenenc_bytes() or b"", "server")
    entries = []
    while inner.left:
        kind = inner.integer(1)
        entries.append((kind, inner.lenenc_bytes() or b""))
    return head, info, entries


def read(entries: Entries) -> Told:
    """What the entries tell; kinds that are not known here are skipped. Of variables only the server knows what is so by
    default."""
    told = Told()
    for kind, body in entries:
        if kind == c.TRACK_SCHEMA:
            told.database = Reader(body, "server").lenenc_bytes() or b""
        elif kind == c.TRACK_STATE_CHANGE:
            told.is_changed = body.endswith(b"1")
        elif kind == c.TRACK_TRANSACTION_CHARACTERISTICS:
            told.characteristics = Reader(body, "server").lenenc_bytes() or b""
        elif kind == c.TRACK_TRANSACTION_STATE:
            # Eight characters: kind of the transaction, what it has read and written, and the locks.
            told.has_locked_tables = (Reader(body, "server").lenenc_bytes() or b"")[7:8] == b"L"
    return told


def put_together(head: bytes, info: bytes, entries: Entries) -> bytes:
    """An OK with these entries; without any it has no SERVER_SESSION_STATE_CHANGED."""
    if not entries:
        status = int.from_bytes(head[-4:-2], "little") & ~c.SERVER_SESSION_STATE_CHANGED
        head = head[:-4] + status.to_bytes(2, "little") + head[-2:]
        return head + lenenc_bytes(info) if info else head
    told = b"".join(bytes([kind]) + lenenc_bytes(body) for kind, body in entries)
    return head + lenenc_bytes(info) + lenenc(len(told)) + told


def shown(entries: Entries, own: Collection[str]) -> Entries:
    """Of the entries what a client that asked for tracking is shown; `own` are the variables it has set itself."""
    hidden = set()
    if STATE_CHANGE not in own:
        hidden.add(c.TRACK_STATE_CHANGE)
    if TRANSACTION_INFO not in own:
        hidden |= {c.TRACK_TRANSACTION_CHARACTERISTICS, c.TRACK_TRANSACTION_STATE}
    return [(kind, body) for kind, body in entries if kind not in hidden]
