"""The legal moves of an answer, as data. Nothing outside these tables moves a session's answer state.

An answer belongs to the command at the head of the queue. `ANSWERS` says in which phase the answer to a command begins,
`NEXT` where each packet leads; a pair that is absent is the server's violation (in FILE: the client's). IDLE means: the
answer is complete, and the next command of the queue, if there is one, begins its own.

The compiled tracker mirrors these tables; `tests/protocols/mysql/test_state.py` holds them together pair by pair.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from protocols.mysql import constants as c


class Phase(enum.IntEnum):
    IDLE = 0
    """Nothing in flight."""
    SIMPLE = 1
    """OK, ERR or EOF is due, and no more."""
    RESULT = 2
    """The first packet of a result is due."""
    COLUMNS = 3
    """Column definitions are due, as many as the count said."""
    COLUMNS_END = 4
    """The EOF after the columns is due. Not with CLIENT_DEPRECATE_EOF."""
    ROWS = 5
    """Rows until EOF."""
    FILE = 6
    """LOAD DATA LOCAL: the client sends the file, up to an empty packet."""
    FILE_END = 7
    """The verdict on the file is due."""
    PREPARED = 8
    """The answer to COM_STMT_PREPARE is due."""
    PARAMETERS = 9
    """Definitions of a statement's parameters are due."""
    PARAMETERS_END = 10
    FIELDS = 11
    """Definitions of a statement's columns are due."""
    FIELDS_END = 12
    LIST = 13
    """COM_FIELD_LIST: definitions until EOF."""
    STATISTICS = 14
    """One packet of plain text is due."""
    DUMP = 15
    """Events of the binlog until EOF."""


class Seen(enum.Enum):
    OK = "OK, or EOF where no row may come"
    OK_MORE = "OK with SERVER_MORE_RESULTS_EXISTS"
    ERR = "ERR"
    COUNT = "a column count"
    LOCAL_INFILE = "a request for a file"
    DEFINITION = "a column definition, not the last"
    DEFINITION_LAST = "the last column definition"
    EOF = "EOF"
    EOF_CURSOR = "EOF with SERVER_STATUS_CURSOR_EXISTS"
    EOF_MORE = "EOF with SERVER_MORE_RESULTS_EXISTS"
    ROW = "a row"
    FILE_DATA = "a part of the file"
    FILE_DONE = "the empty packet after the file"
    PREPARED = "a statement without parameters and columns"
    PREPARED_PARAMETERS = "a statement with parameters and no columns"
    PREPARED_COLUMNS = "a statement with columns and no parameters"
    PREPARED_BOTH = "a statement with parameters and columns"
    TEXT = "plain text"
    EVENT = "an event of the binlog"


ANSWERS: Final[Mapping[int, Phase]] = {
    c.COM_INIT_DB: Phase.SIMPLE,
    c.COM_QUERY: Phase.RESULT,
    c.COM_FIELD_LIST: Phase.LIST,
    c.COM_CREATE_DB: Phase.SIMPLE,
    c.COM_DROP_DB: Phase.SIMPLE,
    c.COM_REFRESH: Phase.SIMPLE,
    c.COM_STATISTICS: Phase.STATISTICS,
    c.COM_PROCESS_INFO: Phase.RESULT,
    c.COM_PROCESS_KILL: Phase.SIMPLE,
    c.COM_DEBUG: Phase.SIMPLE,
    c.COM_PING: Phase.SIMPLE,
    c.COM_STMT_PREPARE: Phase.PREPARED,
    c.COM_STMT_EXECUTE: Phase.RESULT,
    c.COM_STMT_RESET: Phase.SIMPLE,
    c.COM_SET_OPTION: Phase.SIMPLE,
    c.COM_STMT_FETCH: Phase.ROWS,
    c.COM_RESET_CONNECTION: Phase.SIMPLE,
    c.COM_REGISTER_SLAVE: Phase.SIMPLE,
    c.COM_BINLOG_DUMP: Phase.DUMP,
    c.COM_BINLOG_DUMP_GTID: Phase.DUMP,
    c.COM_STMT_BULK_EXECUTE: Phase.RESULT,
}
"""Commands that are relayed and answered."""

SILENT: Final = frozenset({c.COM_STMT_SEND_LONG_DATA, c.COM_STMT_CLOSE})
"""Commands that are relayed and never answered."""

OWN: Final = frozenset({c.COM_QUIT, c.COM_CHANGE_USER})
"""Commands that the proxy takes itself. Every other one gets error 1047 from the proxy."""

NEXT: Final[Mapping[tuple[Phase, Seen], Phase]] = {
    (Phase.SIMPLE, Seen.OK): Phase.IDLE,
    (Phase.SIMPLE, Seen.OK_MORE): Phase.IDLE,
    (Phase.SIMPLE, Seen.ERR): Phase.IDLE,
    (Phase.SIMPLE, Seen.EOF): Phase.IDLE,
    (Phase.SIMPLE, Seen.EOF_CURSOR): Phase.IDLE,
    (Phase.SIMPLE, Seen.EOF_MORE): Phase.IDLE,
    (Phase.RESULT, Seen.OK): Phase.IDLE,
    (Phase.RESULT, Seen.OK_MORE): Phase.RESULT,
    (Phase.RESULT, Seen.ERR): Phase.IDLE,
    (Phase.RESULT, Seen.COUNT): Phase.COLUMNS,
    (Phase.RESULT, Seen.LOCAL_INFILE): Phase.FILE,
    (Phase.COLUMNS, Seen.DEFINITION): Phase.COLUMNS,
    (Phase.COLUMNS, Seen.DEFINITION_LAST): Phase.COLUMNS_END,
    (Phase.COLUMNS, Seen.ERR): Phase.IDLE,
    (Phase.COLUMNS_END, Seen.EOF): Phase.ROWS,
    (Phase.COLUMNS_END, Seen.EOF_MORE): Phase.ROWS,
    (Phase.COLUMNS_END, Seen.EOF_CURSOR): Phase.IDLE,
    (Phase.COLUMNS_END, Seen.ERR): Phase.IDLE,
    (Phase.ROWS, Seen.ROW): Phase.ROWS,
    (Phase.ROWS, Seen.EOF): Phase.IDLE,
    (Phase.ROWS, Seen.EOF_CURSOR): Phase.IDLE,
    (Phase.ROWS, Seen.EOF_MORE): Phase.RESULT,
    (Phase.ROWS, Seen.ERR): Phase.IDLE,
    (Phase.FILE, Seen.FILE_DATA): Phase.FILE,
    (Phase.FILE, Seen.FILE_DONE): Phase.FILE_END,
    (Phase.FILE, Seen.ERR): Phase.IDLE,
    (Phase.FILE_END, Seen.OK): Phase.IDLE,
    (Phase.FILE_END, Seen.OK_MORE): Phase.RESULT,
    (Phase.FILE_END, Seen.ERR): Phase.IDLE,
    (Phase.PREPARED, Seen.PREPARED): Phase.IDLE,
    (Phase.PREPARED, Seen.PREPARED_PARAMETERS): Phase.PARAMETERS,
    (Phase.PREPARED, Seen.PREPARED_COLUMNS): Phase.FIELDS,
    (Phase.PREPARED, Seen.PREPARED_BOTH): Phase.PARAMETERS,
    (Phase.PREPARED, Seen.ERR): Phase.IDLE,
    (Phase.PARAMETERS, Seen.DEFINITION): Phase.PARAMETERS,
    (Phase.PARAMETERS, Seen.DEFINITION_LAST): Phase.PARAMETERS_END,
    (Phase.PARAMETERS, Seen.ERR): Phase.IDLE,
    (Phase.PARAMETERS_END, Seen.EOF): Phase.FIELDS,
    (Phase.PARAMETERS_END, Seen.EOF_CURSOR): Phase.FIELDS,
    (Phase.PARAMETERS_END, Seen.EOF_MORE): Phase.FIELDS,
    (Phase.PARAMETERS_END, Seen.ERR): Phase.IDLE,
    (Phase.FIELDS, Seen.DEFINITION): Phase.FIELDS,
    (Phase.FIELDS, Seen.DEFINITION_LAST): Phase.FIELDS_END,
    (Phase.FIELDS, Seen.ERR): Phase.IDLE,
    (Phase.FIELDS_END, Seen.EOF): Phase.IDLE,
    (Phase.FIELDS_END, Seen.EOF_CURSOR): Phase.IDLE,
    (Phase.FIELDS_END, Seen.EOF_MORE): Phase.IDLE,
    (Phase.FIELDS_END, Seen.ERR): Phase.IDLE,
    (Phase.LIST, Seen.DEFINITION): Phase.LIST,
    (Phase.LIST, Seen.EOF): Phase.IDLE,
    (Phase.LIST, Seen.EOF_CURSOR): Phase.IDLE,
    (Phase.LIST, Seen.EOF_MORE): Phase.IDLE,
    (Phase.LIST, Seen.ERR): Phase.IDLE,
    (Phase.STATISTICS, Seen.TEXT): Phase.IDLE,
    (Phase.STATISTICS, Seen.ERR): Phase.IDLE,
    (Phase.DUMP, Seen.EVENT): Phase.DUMP,
    (Phase.DUMP, Seen.EOF): Phase.IDLE,
    (Phase.DUMP, Seen.EOF_CURSOR): Phase.IDLE,
    (Phase.DUMP, Seen.EOF_MORE): Phase.IDLE,
    (Phase.DUMP, Seen.ERR): Phase.IDLE,
}
"""The statement of PARAMETERS_END has columns; without any it goes to IDLE, as LAST_OF_ALL says."""

WITHOUT_EOF: Final[Mapping[Phase, Phase]] = {
    Phase.COLUMNS_END: Phase.ROWS,
    Phase.PARAMETERS_END: Phase.FIELDS,
    Phase.FIELDS_END: Phase.IDLE,
}
"""With CLIENT_DEPRECATE_EOF these phases do not exist: what leads to one leads here."""

LAST_OF_ALL: Final = frozenset({Phase.FIELDS})
"""Phases that are skipped (to IDLE) when the prepared statement has no columns."""


def next_phase(phase: Phase, seen: Seen, *, deprecates_eof: bool, has_columns: bool = True) -> Phase | None:
    """Where `seen` leads from `phase`; None for a violation."""
    if deprecates_eof and phase in WITHOUT_EOF:
        return None
    to = NEXT.get((phase, seen))
    if to is not None and deprecates_eof:
        to = WITHOUT_EOF.get(to, to)
    if to in LAST_OF_ALL and phase in (Phase.PARAMETERS, Phase.PARAMETERS_END) and not has_columns:
        return Phase.IDLE
    return to


# --- the same numbers as plain names, for the readable run of the tracker; tracker.pxd has them for the compiled one ---

P_IDLE: Final = int(Phase.IDLE)
P_SIMPLE: Final = int(Phase.SIMPLE)
P_RESULT: Final = int(Phase.RESULT)
P_COLUMNS: Final = int(Phase.COLUMNS)
P_COLUMNS_END: Final = int(Phase.COLUMNS_END)
P_ROWS: Final = int(Phase.ROWS)
P_FILE: Final = int(Phase.FILE)
P_FILE_END: Final = int(Phase.FILE_END)
P_PREPARED: Final = int(Phase.PREPARED)
P_PARAMETERS: Final = int(Phase.PARAMETERS)
P_PARAMETERS_END: Final = int(Phase.PARAMETERS_END)
P_FIELDS: Final = int(Phase.FIELDS)
P_FIELDS_END: Final = int(Phase.FIELDS_END)
P_LIST: Final = int(Phase.LIST)
P_STATISTICS: Final = int(Phase.STATISTICS)
P_DUMP: Final = int(Phase.DUMP)

TEXT_DIRTY: Final = 1
"""The statement may change what the session holds on the server."""
TEXT_OPAQUE: Final = 2
"""If it fails, a transaction may be open nevertheless (CALL and the like)."""
TEXT_NAMES: Final = 4
"""A user variable is named."""
TEXT_HOLDS: Final = 8
"""Words of locks, temporary tables, HANDLER, XA or SQL PREPARE: the ledger reads the text."""
TEXT_SEVERAL: Final = 16
"""More than one statement."""
TEXT_KILL: Final = 32
"""A statement begins with KILL: the id it names may be one of the proxy's own."""
TEXT_INSERT_ID: Final = 64
"""LAST_INSERT_ID or identity is named."""
TEXT_COUNTS: Final = 128
"""FOUND_ROWS or ROW_COUNT is named."""
TEXT_COUNTED: Final = 256
"""SQL_CALC_FOUND_ROWS: FOUND_ROWS() will follow."""
TEXT_READS: Final = TEXT_INSERT_ID | TEXT_COUNTS | TEXT_COUNTED
"""What is of no interest to the ledger."""
TEXT_DEFINES: Final = 512
"""CREATE or ALTER: what is named in it may be named in a body."""
TEXT_UNREAD: Final = TEXT_DIRTY | TEXT_OPAQUE | TEXT_NAMES | TEXT_HOLDS
"""What a text has to be taken for that could not be read."""

ENTRY_OPAQUE: Final = 1
"""As TEXT_OPAQUE, for the command in the queue."""
ENTRY_NOTED: Final = 2
"""The ledger is told when it is done."""
ENTRY_REPREPARE: Final = 4
"""The proxy answers it: the statement's parameter types cannot be repeated."""
ENTRY_COMMITS: Final = 8
"""It may end a transaction, by name or, like DDL, on the way."""
ENTRY_UNTOLD: Final = 16
"""The proxy answers it: the transaction it belongs to was lost with its server."""
ENTRY_ANSWER: Final = 32
"""The proxy answers it, with what the session has said."""
ENTRY_OWN: Final = 64
"""The proxy asks it: the answer is dropped."""
ENTRY_COUNTED: Final = 128
"""Transaction mode: its client may ask for its counts next."""

T_TAKEN: Final = 0
"""A command that names a statement: its header was judged, the rest of its packet passes."""
T_MORE: Final = 1
"""More of it has to come first."""
T_FETCH: Final = 2
"""Its head is fetched."""
T_GATE: Final = 3
"""The session has to decide first."""
T_ANSWERED: Final = 4
"""The session has decided: the proxy answers it."""

LEX_PLAIN: Final = 0
LEX_QUOTE: Final = 1
LEX_ESCAPE: Final = 2
LEX_LINE: Final = 3
LEX_BLOCK_START: Final = 4
LEX_BLOCK_M: Final = 5
LEX_BLOCK: Final = 6

TEXT_CARRY_BYTES_MAX: Final = 59
"""A COM_QUERY up to this size that comes in pieces waits with its header for the rest (`wire.CARRY_BYTES_MAX`)."""

TEXT_FETCH_BYTES_MAX: Final = 65_536
"""A COM_QUERY up to this size that comes in pieces is assembled, so that its text can be looked at; longer ones are
looked at in passing."""

HEAD_BYTES_MAX: Final = 262_144
"""As much of a COM_STMT_EXECUTE is assembled at most to find its types: 65,535 of them, with empty names."""

ID_BYTES_MAX: Final = 19
"""No id of a connection that begins a row is longer, with the byte of its length: 18 digits fit into eight bytes."""

QUEUE_MAX: Final = 65_536
"""Most commands of one client that may await their answers."""
