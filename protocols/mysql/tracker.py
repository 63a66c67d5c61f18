"""Follows one MySQL session in both directions: which packets pass, what is in flight, when the backend may go.

Theory of operation (the words are those of `protocols/wire.py`)
----------------------------------------------------------------
A packet is three bytes of length, one of sequence id, and a payload; a packet of 0xFFFFFF bytes is continued in the
next. Each side is counted down packet by packet. Commands that are answered go into a queue; the answer to its head is
followed by the phases of `state.py`. Header and first byte decide; of OK and EOF the status flags are read as well (at
most 25 bytes: a header that is cut stays with the relay).

The transaction is what the status flags say, never what the text says. An ERR carries no flags: after one that may have
left a transaction open (autocommit off, CALL) the session counts as in a transaction until the next flags.

What the server holds for the session is known from the wire (prepared statements) or only by the server. Of a COM_QUERY
the text is scanned for what *might* change it: a first word that is not a plain one, a user variable, a lock word, an
executable comment. Strings and comments are skipped. The ledger is told when the statement is done, and asks the
server itself later. Over-marking costs a question, under-marking loses state. What stored functions and triggers do
inside of plain statements is not seen here; a planned switch asks every session anyway.

Statement ids. The client's ids are our own. As long as they are equal to the backend's, commands pass untouched; after a
switch they may differ, and then the head of each such packet is FETCHed and rewritten: command and id (9 bytes), or for
an execute as far as its parameter types reach; the rest of the packet is counted down as usual. So no size of packet
costs memory.

Parameter types. An execute with new-params-bound 0 uses the types of the last one that had 1. They are remembered (a
block that repeats itself is compared, not copied), and put into the first execute on another backend. There is one
case in which that cannot be done: the execute fills a packet to 16 MB, so that the types do not fit; the client then
gets error 1615 and prepares again.

LAST_INSERT_ID() goes with the session: it is in each OK, and a backend that does not have it is given it before the first
statement that may ask for it. (`SELECT LAST_INSERT_ID(n)` sets it without an OK, and is not known here; an OK has the value
of an AUTO_INCREMENT column also where the statement named it, and LAST_INSERT_ID() has not.) Nothing can give a
backend FOUND_ROWS() and ROW_COUNT(). In transaction mode a session that says SQL_CALC_FOUND_ROWS keeps its backend until
the next statement. One that asks for them otherwise, on a backend that is not that of its last statement, gets an error
rather than another's number, and from then on keeps its backend behind every statement until the next one.

In transaction mode a session whose last statement left warnings keeps its backend until the next one: only that backend
can show them. A session with open prepared statements keeps its backend: its ledger is not empty. Renaming them by
text as for PostgreSQL would need the id of a fresh COM_STMT_PREPARE before the client's own execute can be sent.

COM_CHANGE_USER is not relayed: `take_change_user` has it, and the session logs the client in again. Commands that
Turnout does not know are dropped and answered here with error 1047, in order.

COM_STMT_BULK_EXECUTE (MariaDB) is an execute whose types stand before its rows, in the same memory.

A dump of the binlog is an answer that ends when the server ends it: the session is pinned, and never at a boundary. With
semi-synchronous replication the replica says meanwhile how far it is, which no gate keeps back, because commits of other
sessions wait for it; after each such word the numbers of the dump's packets begin anew.

On a compressed leg the ids of these packets are not those that the other leg expects: servers and clients set them to
the ids of the compressed packets now and then. There the ids that come are not checked (those of the compressed packets
are, by who unpacks them), and where one is another than is due, the header is replaced.

KILL, in text, prepared or as COM_PROCESS_KILL, with a number: clients know the proxy's ids, so the session has to say which
connection of which server that is. The gate closes before it, `wants_kill` has it, and `answer_kill` tells what the client
is answered, or that the server may have it as it is; then the gate opens and it is judged again. One that came in pieces and
is too long to wait before the gate waits behind it. Earlier commands go on meanwhile, later ones wait.

So do the statements whose answers name connections (`connection_ids`): `answer_ids` tells by which ids their clients know them,
the server is asked, and where such an id begins a row it is replaced in passing.

With CLIENT_QUERY_ATTRIBUTES parameters stand before the text of a COM_QUERY; most have none, which two bytes say. With
parameters the text is looked for, up to TEXT_FETCH_BYTES_MAX; where it is not found, the statement may have changed
anything. In an execute each type has a name behind it, which is not kept: no statement's own parameter has one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import cython

from protocols.errors import IllegalUse, ProtocolViolation
from protocols.mysql.connection_ids import parse_ids_wanted
from protocols.mysql.constants import STATEMENT_LAST_PREPARED, STATEMENT_NONE, STATEMENTS_MAX
from protocols.mysql.kill import parse_kill
from protocols.mysql.messages import NO_ATTRIBUTES, build_ok, packet, text_of_query
from protocols.mysql.replies import (
    counts_gone_payload,
    error_packet,
    too_large_execute_packet,
    unknown_command_packet,
    unknown_thread_payload,
)
from protocols.mysql.tracking import TRANSACTION_INFO, put_together, read, shown, take_apart
from protocols.wire import IdsWanted, KillWanted

if not cython.compiled:
    from protocols.codes import (
        EDIT,
        FETCH,
        FORWARD,
        GATE,
        GATE_CLOSED,
        GATE_DRAIN,
        GATE_OPEN,
        INVENT,
        LEDGER_TOUCHED,
        SWALLOW,
    )
    from protocols.mysql.constants import (
        BULK_TYPES,
        CLIENT_DEPRECATE_EOF,
        CLIENT_LOCAL_FILES,
        CLIENT_QUERY_ATTRIBUTES,
        CLIENT_SESSION_TRACK,
        COM_BINLOG_DUMP,
        COM_BINLOG_DUMP_GTID,
        COM_CHANGE_USER,
        COM_CREATE_DB,
        COM_DEBUG,
        COM_DROP_DB,
        COM_FIELD_LIST,
        COM_INIT_DB,
        COM_INVENTED,
        COM_PING,
        COM_PROCESS_INFO,
        COM_PROCESS_KILL,
        COM_QUERY,
        COM_QUIT,
        COM_REFRESH,
        COM_REGISTER_SLAVE,
        COM_RESET_CONNECTION,
        COM_SET_OPTION,
        COM_STATISTICS,
        COM_STMT_BULK_EXECUTE,
        COM_STMT_CLOSE,
        COM_STMT_EXECUTE,
        COM_STMT_FETCH,
        COM_STMT_PREPARE,
        COM_STMT_RESET,
        COM_STMT_SEND_LONG_DATA,
        EOF,
        ERR,
        ERROR_BYTES_MAX,
        LOCAL_INFILE,
        LOGIN_BYTES_MAX,
        MARIADB_CLIENT_PROGRESS,
        MARIADB_CLIENT_STMT_BULK_OPERATIONS,
        OK,
        PAYLOAD_BYTES_MAX,
        SEMI_SYNC_ACK,
        SEMI_SYNC_ACK_BYTES_MAX,
        SERVER_MORE_RESULTS_EXISTS,
        SERVER_SESSION_STATE_CHANGED,
        SERVER_STATUS_AUTOCOMMIT,
        SERVER_STATUS_CURSOR_EXISTS,
        SERVER_STATUS_IN_TRANS,
        SERVER_STATUS_LAST_ROW_SENT,
        SERVER_STATUS_NO_BACKSLASH_ESCAPES,
        TRACK_SCHEMA,
        TRACK_STATE_CHANGE,
        TRACK_TRANSACTION_CHARACTERISTICS,
        TRACK_TRANSACTION_STATE,
    )
    from protocols.mysql.state import (
        ENTRY_ANSWER,
        ENTRY_COMMITS,
        ENTRY_COUNTED,
        ENTRY_NOTED,
        ENTRY_OPAQUE,
        ENTRY_OWN,
        ENTRY_REPREPARE,
        ENTRY_UNTOLD,
        HEAD_BYTES_MAX,
        ID_BYTES_MAX,
        LEX_BLOCK,
        LEX_BLOCK_M,
        LEX_BLOCK_START,
        LEX_ESCAPE,
        LEX_LINE,
        LEX_PLAIN,
        LEX_QUOTE,
        P_COLUMNS,
        P_COLUMNS_END,
        P_DUMP,
        P_FIELDS,
        P_FIELDS_END,
        P_FILE,
        P_FILE_END,
        P_IDLE,
        P_LIST,
        P_PARAMETERS,
        P_PARAMETERS_END,
        P_PREPARED,
        P_RESULT,
        P_ROWS,
        P_SIMPLE,
        P_STATISTICS,
        QUEUE_MAX,
        T_ANSWERED,
        T_FETCH,
        T_GATE,
        T_MORE,
        T_TAKEN,
        TEXT_CARRY_BYTES_MAX,
        TEXT_COUNTED,
        TEXT_COUNTS,
        TEXT_DEFINES,
        TEXT_DIRTY,
        TEXT_FETCH_BYTES_MAX,
        TEXT_HOLDS,
        TEXT_INSERT_ID,
        TEXT_KILL,
        TEXT_NAMES,
        TEXT_OPAQUE,
        TEXT_READS,
        TEXT_SEVERAL,
        TEXT_UNREAD,
    )
    from protocols.wire import Tracker

if TYPE_CHECKING:
    from protocols.mysql.ledger import MysqlLedger
    from protocols.wire import BackendFacts, ErrorReply

_ALL_IDS: Final = IdsWanted(is_list=True)

_EDITED: Final = bytearray(529)
"""What EDIT puts in a packet's place. The longest is an OK that was stripped: header (4), what stands before its info (23 at
most), an info and entries whose lengths take one byte each (1 + 250, twice)."""


class Statement:
    """A prepared statement of the client."""

    def __init__(self, client_id: int, text: bytes | None, parameters: int, flags: int, commits: bool) -> None:
        self.client_id = client_id
        self.text = text
        self.parameters = parameters
        self.types: bytes | None = None
        self.database = b""
        self.flags = flags
        self.commits = commits


class TextScan:
    """Looks for words in a statement's text that may change what the session holds on the server.

    Feed it the text in any pieces between `begin` and `finish`. See the module's theory of operation.
    """

    def __init__(self) -> None:
        self.begin(True)

    def begin(self, has_escapes: bool) -> None:
        """A new text. `has_escapes`: a backslash escapes (sql_mode without NO_BACKSLASH_ESCAPES)."""
        self.found = 0
        self.may_tell_ids = False
        self.commits = False
        self.rolls_back = False
        self._lex = LEX_PLAIN
        self._quote = 0
        self._has_escapes = has_escapes
        self._is_lead = True
        self._has_ended = False
        self._previous = 0
        self._at = 0
        self._word_a = 0
        self._word_b = 0
        self._word_size = 0

    def feed(self, data: bytes, start: int, end: int) -> None:
        """The next piece of the text: `data[start:end]`."""
        lex = self._lex
        at = self._at
        size = self._word_size
        a = self._word_a
        b = self._word_b
        previous = self._previous
        quote = self._quote
        position = start
        while position < end:
            character = data[position]
            position += 1
            if lex == LEX_PLAIN:
                if (
                    97 <= character <= 122
                    or 65 <= character <= 90
                    or 48 <= character <= 57
                    or character == 95
                    or character == 36
                    or character >= 128
                ):
                    if size == 0:
                        previous = 0
                        if at != 0:
                            if at == 1:
                                self.found |= TEXT_NAMES | TEXT_DIRTY
                            at = 0
                    if 97 <= character <= 122:
                        character -= 32
                    if size < 4:
                        a = (a << 8) | character
                    elif size < 8:
                        b = (b << 8) | character
                    if size < 64:
                        size += 1
                    continue
                if size:
                    self._word_a = a
                    self._word_b = b
                    self._word_size = size
                    self._on_word()
                    a = 0
                    b = 0
                    size = 0
                if character == 64:  # @
                    at = 2 if at == 1 else 1
                    continue
                if at == 1:
                    self.found |= TEXT_NAMES | TEXT_DIRTY
                at = 0
                if character <= 32:
                    if previous == 45 and quote == 45:  # "--" and a space
                        lex = LEX_LINE
                        quote = 0
                    previous = 0
                    continue
                if character == 45:  # the second "-" in a row is noted in _quote
                    quote = 45 if previous == 45 else 0
                    previous = 45
                    continue
                if character == 39 or character == 34 or character == 96:  # ' " `
                    if self._is_lead:
                        self.found |= TEXT_DIRTY | TEXT_OPAQUE
                        self._is_lead = False
                    lex = LEX_QUOTE
                    quote = character
                    previous = 0
                    continue
                if character == 35:  # #
                    lex = LEX_LINE
                elif character == 42 and previous == 47:  # /*
                    lex = LEX_BLOCK_START
                    previous = 0
                    continue
                elif character == 59:  # ;
                    if not self._is_lead:
                        self._has_ended = True
                    self._is_lead = True
                elif character != 40 and character != 47 and self._is_lead:  # not ( nor /
                    self.found |= TEXT_DIRTY | TEXT_OPAQUE
                    self._is_lead = False
                previous = character
            elif lex == LEX_QUOTE:
                while character != quote and character != 92 and position < end:
                    previous = character
                    character = data[position]
                    position += 1
                if character == quote:
                    lex = LEX_PLAIN
                    character = 0
                elif character == 92 and quote != 96 and self._has_escapes:  # backslash
                    if previous >= 128:
                        # In some charsets this backslash is half of a character: both readings have to be safe.
                        self.found |= TEXT_DIRTY
                    lex = LEX_ESCAPE
                previous = character
            elif lex == LEX_ESCAPE:
                lex = LEX_QUOTE
                previous = 0
            elif lex == LEX_LINE:
                if character == 10:
                    lex = LEX_PLAIN
                    previous = 0
            elif lex == LEX_BLOCK_START:
                if character == 33:  # /*! is executed
                    self.found |= TEXT_DIRTY | TEXT_OPAQUE
                    self._is_lead = False
                lex = LEX_BLOCK_M if character == 77 or character == 109 else LEX_BLOCK
                previous = character
            elif lex == LEX_BLOCK_M:
                if character == 33:  # /*M! is executed by MariaDB
                    self.found |= TEXT_DIRTY | TEXT_OPAQUE
                    self._is_lead = False
                lex = LEX_PLAIN if previous == 42 and character == 47 else LEX_BLOCK
                previous = character
            else:
                if previous == 42 and character == 47:  # */
                    lex = LEX_PLAIN
                    character = 0
                previous = character
        self._lex = lex
        self._quote = quote
        self._at = at
        self._word_a = a
        self._word_b = b
        self._word_size = size
        self._previous = previous

    def _on_word(self) -> int:
        """A word is complete."""
        a = self._word_a
        b = self._word_b
        size = self._word_size
        if self._is_lead:
            self._is_lead = False
            if self._has_ended:
                self.found |= TEXT_SEVERAL
            self.found |= self._first_word(a, b, size)
            self.may_tell_ids = self.may_tell_ids or (a == 0x53484F57 and size == 4)  # SHOW
            self.rolls_back = a == 0x524F4C4C and b == 0x4241434B and size == 8 and not self._has_ended  # ROLLBACK
            return 0
        if a != 0x574F524B or size != 4:  # WORK
            self.rolls_back = False
        if size == 8 and a == 0x4745545F and b == 0x4C4F434B:  # GET_LOCK
            self.found |= TEXT_DIRTY | TEXT_HOLDS
        elif size >= 12 and a == 0x52454C45 and b == 0x4153455F:  # RELEASE_LOCK, RELEASE_ALL_LOCKS
            self.found |= TEXT_DIRTY | TEXT_HOLDS
        elif size == 9 and a == 0x54454D50 and b == 0x4F524152:  # TEMPORARY
            self.found |= TEXT_DIRTY | TEXT_HOLDS
        elif size == 13 and a == 0x434F4E4E and b == 0x45435449:  # CONNECTION_ID
            self.may_tell_ids = True
        elif size == 14 and a == 0x4C415354 and b == 0x5F494E53:  # LAST_INSERT_ID
            self.found |= TEXT_INSERT_ID
        elif size == 8 and a == 0x4944454E and b == 0x54495459:  # identity
            self.found |= TEXT_INSERT_ID
        elif (size == 10 and a == 0x464F554E and b == 0x445F524F) or (  # FOUND_ROWS
            size == 9 and a == 0x524F575F and b == 0x434F554E  # ROW_COUNT
        ):
            self.found |= TEXT_COUNTS
        elif size == 19 and a == 0x53514C5F and b == 0x43414C43:  # SQL_CALC_FOUND_ROWS
            self.found |= TEXT_COUNTED
        elif size == 6 and a == 0x41544F4D and b == 0x4943:  # BEGIN NOT ATOMIC
            self.found |= TEXT_DIRTY | TEXT_OPAQUE
        return 0

    def _first_word(self, a: int, b: int, size: int) -> int:
        """What a statement that begins with this word may do; plain ones nothing."""
        if (
            (a == 0x53454C45 and b == 0x4354 and size == 6)  # SELECT
            or (a == 0x494E5345 and b == 0x5254 and size == 6)  # INSERT
            or (a == 0x55504441 and b == 0x5445 and size == 6)  # UPDATE
            or (a == 0x44454C45 and b == 0x5445 and size == 6)  # DELETE
            or (a == 0x5245504C and b == 0x414345 and size == 7)  # REPLACE
            or (a == 0x53484F57 and size == 4)  # SHOW
            or (a == 0x57495448 and size == 4)  # WITH
            or (a == 0x4558504C and b == 0x41494E and size == 7)  # EXPLAIN
            or (a == 0x56414C55 and b == 0x4553 and size == 6)  # VALUES
            or (a == 0x5441424C and b == 0x45 and size == 5)  # TABLE
            or (a == 0x44455343 and size == 4)  # DESC
            or (a == 0x44455343 and b == 0x52494245 and size == 8)  # DESCRIBE
            or (a == 0x53415645 and b == 0x504F494E and size == 9)  # SAVEPOINT
            or (a == 0x52454C45 and b == 0x415345 and size == 7)  # RELEASE
        ):
            return 0
        if a == 0x4B494C4C and size == 4:  # KILL
            return TEXT_KILL
        self.commits = True
        if (
            (a == 0x434F4D4D and b == 0x4954 and size == 6)  # COMMIT
            or (a == 0x42454749 and b == 0x4E and size == 5)  # BEGIN
            or (a == 0x53544152 and b == 0x54 and size == 5)  # START
            or (a == 0x524F4C4C and b == 0x4241434B and size == 8)  # ROLLBACK
            or (a == 0x5452554E and b == 0x43415445 and size == 8)  # TRUNCATE
        ):
            return 0
        if (
            (a == 0x4C4F434B and size == 4)  # LOCK
            or (a == 0x554E4C4F and b == 0x434B and size == 6)  # UNLOCK
            or (a == 0x48414E44 and b == 0x4C4552 and size == 7)  # HANDLER
            or (a == 0x5841 and size == 2)  # XA
            or (a == 0x464C5553 and b == 0x48 and size == 5)  # FLUSH
            or (a == 0x50524550 and b == 0x415245 and size == 7)  # PREPARE
            or (a == 0x4445414C and b == 0x4C4F4341 and size == 10)  # DEALLOCATE
            or (a == 0x44524F50 and size == 4)  # DROP
        ):
            return TEXT_DIRTY | TEXT_HOLDS
        if (
            (a == 0x534554 and size == 3)  # SET
            or (a == 0x555345 and size == 3)  # USE
        ):
            return TEXT_DIRTY
        if (
            (a == 0x43524541 and b == 0x5445 and size == 6)  # CREATE
            or (a == 0x414C5445 and b == 0x52 and size == 5)  # ALTER
        ):
            return TEXT_DIRTY | TEXT_DEFINES
        return TEXT_DIRTY | TEXT_OPAQUE

    def finish(self) -> int:
        """The text is complete: TEXT_… bits of what was found."""
        if self._word_size:
            self._on_word()
            self._word_size = 0
        if self._at == 1 or self._lex == LEX_QUOTE or self._lex == LEX_ESCAPE:
            # A string that does not end was perhaps read wrongly.
            self.found |= TEXT_DIRTY
        return self.found


def _is_clients_own(first: int, second: int) -> bool:
    """A class of SQLSTATE, as two digits, is one of `wire.CLIENTS_OWN`."""
    if first == 0x32:
        return second == 0x32 or second == 0x33  # 22, 23
    return first == 0x34 and (second == 0x32 or second == 0x35)  # 42, 45


def scan_text(text: bytes, *, has_escapes: bool = True) -> int:
    """TEXT_… bits of a whole text."""
    scan = TextScan()
    scan.begin(has_escapes)
    scan.feed(text, 0, len(text))
    return scan.finish()


class MysqlTracker(Tracker):
    """See the module's theory of operation."""

    def __init__(self, ledger: MysqlLedger, *, shares_backends: bool) -> None:
        Tracker.__init__(self)
        self.ledger = ledger
        self.ledger_news = LEDGER_TOUCHED
        self._change_user = b""
        self._kill_wanted: KillWanted | None = None
        self._is_kill_taken = False
        self._is_kill_answered = False
        self._kill_answer: bytes | None = None
        self._ids_wanted: IdsWanted | None = None
        self._are_ids_known = False
        self._ids: dict[int, int] = {}
        self._renames = False
        self._own_answers: deque[bytes] = deque()
        self._capabilities = ledger.startup.capabilities
        self._deprecates_eof = (self._capabilities & CLIENT_DEPRECATE_EOF) != 0
        self._has_attributes = (self._capabilities & CLIENT_QUERY_ATTRIBUTES) != 0
        self._has_progress = (self._capabilities & MARIADB_CLIENT_PROGRESS) != 0
        self._types_at = 0
        self._mark = 0
        self._is_linked = False
        self._client_left = 0
        self._client_continued = False
        self._client_sequence = 0
        self._client_is_tail = False
        self._client_drops = False
        self._scans_text = False
        self._text = TextScan()
        self._is_server_packed = False
        self.edited = _EDITED
        self._ring = bytearray(8 * 16)
        self._head = 0
        self._count = 0
        self._capacity = 16
        self._server_left = 0
        self._server_continued = False
        self._server_sequence = 0
        self._phase = P_IDLE
        self._definitions_left = 0
        self._fields_after = 0
        self._status = SERVER_STATUS_AUTOCOMMIT
        self._is_transaction_unknown = False
        self._statements = ledger.statements
        self._server_ids: dict[int, int] = {}
        self._types_due: set[int] = set()
        self._has_types_due = False
        self._ids_match = True
        self._recent: Statement | None = None
        self._newest: Statement | None = None
        self._preparing: deque[bytes | None] = deque()
        self._selecting: deque[bytes] = deque()
        self._is_one_shot = False
        self._noted: deque[tuple[int, bytes | None]] = deque()
        self._cursors: set[int] = set()
        self._has_cursors = False
        self._long_data: set[int] = set()
        self._has_long_data = False
        self._last_words = b""
        self._is_ending = False
        self._untold: ErrorReply | None = None
        self._has_untold = False
        self._rolls_back = False
        self._is_quiet = True
        self._server_version = ""
        self._is_tracked = False
        self._is_told_of = False
        self._is_info_own = False
        self._is_shown = self._capabilities & CLIENT_SESSION_TRACK != 0
        self._info_at = 0
        self._has_told = False
        self._is_told = False
        self._is_unlocked = False
        self._ok_insert_id = 0
        self._insert_id = 0
        self._is_insert_id_elsewhere = False
        self._are_counts_elsewhere = False
        self._reads_counts = False
        self._has_counts = False
        self._shares = shares_backends
        self._warnings = 0

    # --- from the client ------------------------------------------------------------------------------------------

    def scan_client(self, data: bytes, start: int, end: int) -> int:
        position = start
        while True:
            if self._client_left:
                if self._client_drops:
                    self.stop = position
                    self.message_size = self._client_left
                    self._client_left = 0
                    return SWALLOW
                taken = end - position
                if taken > self._client_left:
                    taken = self._client_left
                if self._scans_text:
                    self._text.feed(data, position, position + taken)
                position += taken
                self._client_left -= taken
                if self._client_left:
                    self.stop = position
                    return FORWARD
            if self._scans_text and not self._client_continued:
                self._scans_text = False
                self._note_tail(self._text.finish(), None)
            if end - position < 4:
                self.stop = position
                return FORWARD
            size = data[position] | data[position + 1] << 8 | data[position + 2] << 16
            sequence = data[position + 3]
            if self._client_continued:
                is_off = sequence != self._client_sequence
                if is_off and not self.is_client_packed:
                    raise ProtocolViolation("client", "packet out of order")
                sequence = self._client_sequence
                self._client_sequence = (sequence + 1) & 0xFF
                self._client_continued = size == PAYLOAD_BYTES_MAX
                if self._client_is_tail:
                    self._set_tail_sequence(self._client_sequence)
                elif self._phase == P_FILE:
                    self._server_sequence = self._client_sequence
                if self._client_drops:
                    self.stop = position
                    self.message_size = 4 + size
                    return SWALLOW
                self._client_left = size
                if is_off:
                    return self._renumber(position, size, sequence)
                position += 4
                continue
            self._client_drops = False
            if self._phase == P_FILE:
                is_off = sequence != self._server_sequence
                if is_off and not self.is_client_packed:
                    raise ProtocolViolation("client", "packet of a file out of order")
                sequence = self._server_sequence
                self._client_sequence = (sequence + 1) & 0xFF
                self._server_sequence = self._client_sequence
                self._client_is_tail = False
                if size == 0:
                    self._phase = P_FILE_END
                self._client_left = size
                self._client_continued = size == PAYLOAD_BYTES_MAX
                if is_off:
                    return self._renumber(position, size, sequence)
                position += 4
                continue

            # A command begins.
            if sequence != 0:
                raise ProtocolViolation("client", "a command whose sequence id is not 0")
            if size == 0:
                raise ProtocolViolation("client", "an empty packet where a command is due")
            if end - position < 5:
                self.stop = position
                return FORWARD
            command = data[position + 4]
            if command == COM_QUIT:
                if size > 64:
                    raise ProtocolViolation("client", "a COM_QUIT of more than 64 bytes")
                self.stop = position
                self.message_size = 4 + size
                return FETCH
            if self._phase == P_DUMP and command == SEMI_SYNC_ACK and self._count == 1:
                if size > SEMI_SYNC_ACK_BYTES_MAX:
                    raise ProtocolViolation("client", "a replica's word of more than 1 KiB")
                self._client_is_tail = False
                self._client_left = size
                position += 4
                continue
            if self.gate == GATE_CLOSED:
                self.stop = position
                return GATE
            if command == COM_CHANGE_USER:
                if size > LOGIN_BYTES_MAX:
                    raise ProtocolViolation("client", "a COM_CHANGE_USER of more than 64 KiB")
                if not self.is_idle():
                    raise ProtocolViolation("client", "a COM_CHANGE_USER before the answer to the last command")
                self.stop = position
                self.message_size = 4 + size
                return FETCH if self.gate == GATE_OPEN else GATE
            if not self._is_linked:
                self.stop = position
                return GATE
            if self.gate == GATE_DRAIN and (not self.is_idle() or self.at_boundary()):
                self.stop = position
                return GATE

            if self._has_untold and (
                command == COM_QUERY or command == COM_STMT_EXECUTE or command == COM_STMT_BULK_EXECUTE
            ):
                self.stop = position
                self.message_size = 4 + size
                if command == COM_QUERY and size <= 64:
                    # Perhaps a plain ROLLBACK, which is just what is left to do.
                    return FETCH
                self._refuse_untold()
                self._client_continued = size == PAYLOAD_BYTES_MAX
                self._client_sequence = 1
                self._client_drops = True
                return SWALLOW

            if command == COM_QUERY:
                is_whole = size <= end - position - 4 and size < PAYLOAD_BYTES_MAX
                if is_whole:
                    begin = position + 5
                    if self._has_attributes:
                        if size > 2 and data[position + 5] == 0 and data[position + 6] == 1:
                            begin += 2
                        else:
                            # No more of it than where it comes in pieces.
                            begin = TEXT_FETCH_BYTES_MAX if size > TEXT_FETCH_BYTES_MAX - 4 else 4 + size
                            begin = self._find_text(bytes(data[position + 5 : position + begin]))
                            if begin < 0:
                                self._enqueue(COM_QUERY, 0, ENTRY_COMMITS)
                                self._note_tail(TEXT_UNREAD, None)
                                position += 4 + size
                                continue
                            begin += position + 5
                    self._text.begin((self._status & SERVER_STATUS_NO_BACKSLASH_ESCAPES) == 0)
                    self._text.feed(data, begin, position + 4 + size)
                    found = self._text.finish()
                    if found & TEXT_KILL:
                        verdict = self._judge_kill(parse_kill(bytes(data[begin : position + 4 + size])))
                        if verdict != T_TAKEN:
                            self.stop = position
                            self.message_size = 4 + size
                            return GATE if verdict == T_GATE else SWALLOW
                    if found & (TEXT_READS | TEXT_OPAQUE):
                        verdict = self._judge_reads(found)
                        if verdict != T_TAKEN:
                            self.stop = position
                            self.message_size = 4 + size
                            return FETCH if verdict == T_FETCH else SWALLOW
                    renames = 0
                    if self._text.may_tell_ids:
                        wanted = parse_ids_wanted(bytes(data[begin : position + 4 + size]))
                        if wanted is not None:
                            if self._judge_ids(wanted) != T_TAKEN:
                                self.stop = position
                                return GATE
                            renames = 1
                    self._enqueue(COM_QUERY, renames, self._query_flags(found))
                    self._rolls_back = self._count == 1 and self._text.rolls_back and not found & TEXT_OPAQUE
                    if found & ~TEXT_READS:
                        # A longer text is not kept however it comes, so that the cut makes no difference.
                        self._note_tail(
                            found, bytes(data[begin : position + 4 + size]) if size <= TEXT_FETCH_BYTES_MAX else None
                        )
                    position += 4 + size
                    continue
                if size <= TEXT_CARRY_BYTES_MAX:
                    # It may be a KILL, which has to wait as a whole.
                    self.stop = position
                    return FORWARD
                if size <= TEXT_FETCH_BYTES_MAX:
                    self.stop = position
                    self.message_size = 4 + size
                    return FETCH
                begin = 5
                if self._has_attributes:
                    begin = 7
                    if end - position < 7:
                        self.stop = position
                        return FORWARD
                    if data[position + 5] != 0 or data[position + 6] != 1:
                        self.stop = position
                        self.message_size = TEXT_FETCH_BYTES_MAX
                        return FETCH
                self._text.begin((self._status & SERVER_STATUS_NO_BACKSLASH_ESCAPES) == 0)
                self._scans_text = True
                self._enqueue(COM_QUERY, 0, ENTRY_COMMITS)
                self._begin_client(size)
                # The command byte is not text.
                position += begin
                self._client_left -= begin - 4
                continue
            if command == COM_STMT_EXECUTE:
                verdict = self._scan_execute(data, position, end, size)
            elif command == COM_STMT_BULK_EXECUTE and self._capabilities & MARIADB_CLIENT_STMT_BULK_OPERATIONS:
                verdict = self._scan_execute(data, position, end, size)
            elif (
                command == COM_STMT_CLOSE
                or command == COM_STMT_SEND_LONG_DATA
                or command == COM_STMT_RESET
                or command == COM_STMT_FETCH
            ):
                verdict = self._scan_statement(data, position, end, size, command)
            elif command == COM_STMT_PREPARE:
                if size == PAYLOAD_BYTES_MAX:
                    self._preparing.append(None)
                    self._enqueue(COM_STMT_PREPARE, 0, 0)
                    self._begin_client(size)
                    verdict = T_TAKEN
                else:
                    self.message_size = 4 + size
                    verdict = T_FETCH
            elif command == COM_SET_OPTION or command == COM_INIT_DB:
                if size > 1_024 or (command == COM_SET_OPTION and size != 3):
                    raise ProtocolViolation("client", "a COM_SET_OPTION or COM_INIT_DB of a wrong length")
                self.message_size = 4 + size
                verdict = T_FETCH
            elif command == COM_PROCESS_KILL:
                verdict = T_TAKEN
                if size == 5:
                    if end - position < 9:
                        self.stop = position
                        return FORWARD
                    verdict = self._judge_kill(
                        KillWanted(int.from_bytes(bytes(data[position + 5 : position + 9]), "little"), False)
                    )
                if verdict == T_TAKEN:
                    self._enqueue(command, 0, 0)
                    self._begin_client(size)
            elif command == COM_PROCESS_INFO:
                verdict = self._judge_ids(_ALL_IDS)
                if verdict == T_TAKEN:
                    self._enqueue(command, 1, 0)
                    self._begin_client(size)
            elif (
                command == COM_PING
                or command == COM_FIELD_LIST
                or command == COM_CREATE_DB
                or command == COM_DROP_DB
                or command == COM_REFRESH
                or command == COM_STATISTICS
                or command == COM_DEBUG
                or command == COM_RESET_CONNECTION
                or command == COM_REGISTER_SLAVE
                or command == COM_BINLOG_DUMP
                or command == COM_BINLOG_DUMP_GTID
            ):
                if command == COM_REGISTER_SLAVE or command == COM_BINLOG_DUMP or command == COM_BINLOG_DUMP_GTID:
                    self.ledger.note_dump()
                    self.ledger_news = LEDGER_TOUCHED
                self._enqueue(command, 0, ENTRY_COMMITS if command < COM_STATISTICS else 0)
                self._begin_client(size)
                verdict = T_TAKEN
            else:
                if size == PAYLOAD_BYTES_MAX:
                    # No answer can be invented to it before all of it has come.
                    raise ProtocolViolation("client", "an unknown command of more than 16 MB")
                self._enqueue(COM_INVENTED, 0, 0)
                self._find_invented()
                self.stop = position
                self.message_size = 4 + size
                return SWALLOW
            if verdict == T_TAKEN:
                position += 4
                continue
            self.stop = position
            if verdict == T_GATE:
                return GATE
            if verdict == T_ANSWERED:
                self.message_size = 4 + size
                return SWALLOW
            return FORWARD if verdict == T_MORE else FETCH

    def _renumber(self, position: int, size: int, sequence: int) -> int:
        """The header at `position` gets another sequence id; it has been judged, and its packet's body passes."""
        self.edited[0] = size & 0xFF
        self.edited[1] = (size >> 8) & 0xFF
        self.edited[2] = (size >> 16) & 0xFF
        self.edited[3] = sequence
        self.edited_size = 4
        self.message_size = 4
        self.stop = position
        return EDIT

    def _judge_kill(self, wanted: KillWanted | None) -> int:
        """A KILL: T_TAKEN where it is for the server as it is, T_GATE until the session has answered, then T_ANSWERED."""
        if wanted is None:
            return T_TAKEN
        if not self._is_kill_answered:
            self._kill_wanted = wanted
            self.gate = GATE_CLOSED
            return T_GATE
        self._is_kill_answered = False
        if self._kill_answer is None:
            return T_TAKEN
        self._answer_itself(self._kill_answer)
        return T_ANSWERED

    def _judge_ids(self, wanted: IdsWanted) -> int:
        """What is asked for ids of connections: T_GATE until the session has told those that clients know, then T_TAKEN."""
        if not self._are_ids_known:
            self._ids_wanted = wanted
            self.gate = GATE_CLOSED
            return T_GATE
        self._are_ids_known = False
        return T_TAKEN

    def wants_ids(self) -> IdsWanted | None:
        return self._ids_wanted

    def answer_ids(self, ids: dict[int, int]) -> None:
        """See `wire.Tracker`."""
        if self._ids_wanted is None:
            raise IllegalUse("nobody asks for ids")
        self._ids_wanted = None
        self._are_ids_known = True
        self._ids = ids

    def _answer_itself(self, payload: bytes) -> None:
        """The command that begins now, or was taken, is answered by the proxy."""
        self._own_answers.append(payload)
        self._enqueue(COM_INVENTED, 0, ENTRY_ANSWER)
        self._find_invented()

    def wants_kill(self) -> KillWanted | None:
        return self._kill_wanted

    def answer_kill(self, payload: bytes | None) -> None:
        """See `wire.Tracker`. Answers may be due then (`has_invented`)."""
        wanted = self._kill_wanted
        if wanted is None:
            raise IllegalUse("nobody wants anything killed")
        self._kill_wanted = None
        if self._is_kill_taken:
            # Its id can be no server's.
            self._is_kill_taken = False
            self._answer_itself(unknown_thread_payload(wanted.connection_id) if payload is None else payload)
            return
        self._is_kill_answered = True
        self._kill_answer = payload

    def take_change_user(self) -> bytes:
        message, self._change_user = self._change_user, b""
        return message

    def first_statement(self, work: bytes) -> tuple[bytes, bool] | None:
        if len(work) < 5:
            return None
        size, command = int.from_bytes(work[:3], "little"), work[4]
        body, is_whole = work[5 : 4 + size], 4 + size <= len(work)
        if command in (COM_STMT_EXECUTE, COM_STMT_BULK_EXECUTE) and len(body) >= 4:
            statement = self._find(int.from_bytes(body[:4], "little"))
            return None if statement is None or statement.text is None else (statement.text, True)
        if command not in (COM_QUERY, COM_STMT_PREPARE):
            return None
        begin = self._find_text(body) if command == COM_QUERY and self._has_attributes else 0
        return None if begin < 0 else (body[begin:], is_whole)

    def lone_statement(self, work: bytes) -> bytes | None:
        """See `wire.Wire`. Not where an answer from another server would be felt afterwards: outside of autocommit it begins
        a transaction, and who asks for FOUND_ROWS() asks the server that counted."""
        if len(work) < 5 or len(work) != 4 + int.from_bytes(work[:3], "little"):
            return None
        if work[4] == COM_PING:
            return b""
        is_felt = self._status & SERVER_STATUS_AUTOCOMMIT == 0 or self._reads_counts or self._has_untold
        if work[4] != COM_QUERY or is_felt:
            return None
        body = work[5:]
        begin = self._find_text(body) if self._has_attributes else 0
        return None if begin < 0 else body[begin:]

    def _find_text(self, body: bytes) -> int:
        """Where the text begins behind the attributes of a COM_QUERY; -1 where that cannot be told."""
        begin = text_of_query(body)
        return -1 if begin is None else begin

    def _scan_execute(self, data: bytes, position: int, end: int, size: int) -> int:
        """A COM_STMT_EXECUTE: command, id (4), flags (1), iterations (4), null bitmap, new-params-bound (1), types. Or a
        COM_STMT_BULK_EXECUTE: command, id (4), flags (2), types."""
        least = 7 if data[position + 4] == COM_STMT_BULK_EXECUTE else 10
        if size < least:
            raise ProtocolViolation("client", "an execute that is too short")
        if end - position < 4 + least:
            return T_MORE
        identifier = (
            data[position + 5]
            | data[position + 6] << 8
            | data[position + 7] << 16
            | cython.cast(cython.ulong, data[position + 8]) << 24
        )
        statement = self._recent
        if statement is None or statement.client_id != identifier:
            statement = self._find(identifier)
            self._recent = statement
        if statement is not None and statement.flags & TEXT_KILL and size < PAYLOAD_BYTES_MAX:
            verdict = self._judge_kill(parse_kill(statement.text))
            if verdict != T_TAKEN:
                return verdict
        need = 4 + least
        if statement is not None and statement.parameters:
            need = self._types_end(data, position, end, size, statement)
        if need == 0 or position + need > end:
            # The relay keeps no more than 64 bytes by itself.
            if end - position <= 64:
                return T_MORE
            if need == 0:
                need = 4 + (size if size < HEAD_BYTES_MAX else HEAD_BYTES_MAX)
            self.message_size = need
            return T_FETCH
        if (
            not self._ids_match
            or (self._has_types_due and identifier in self._types_due)
            or (
                self._is_insert_id_elsewhere
                and statement is not None
                and statement.flags & (TEXT_INSERT_ID | TEXT_OPAQUE)
            )
        ):
            self.message_size = need
            return T_FETCH
        if self._types_at and statement is not None and not self._has_types(data, position, statement):
            statement.types = self._types_of(data, position, statement)
        self._begin_execute(data[position + 4], identifier, statement)
        self._begin_client(size)
        return T_TAKEN

    def _types_end(self, data: bytes, position: int, end: int, size: int, statement: Statement) -> int:
        """How far the head of an execute reaches, from its packet's beginning at `position` to the end of its types; that
        may be behind `end`. 0: it cannot be told yet.

        `_mark` is then where the byte stands that says whether there are types (0: the packet is too short for it),
        `_types_at` where they begin (0: there are none, or not all of them yet)."""
        left = end - position
        last = 4 + size
        count = statement.parameters
        self._types_at = 0
        self._mark = 9
        at = 11
        if data[position + 4] != COM_STMT_BULK_EXECUTE:
            self._mark = 0
            at = 14
            if self._has_attributes:
                if left < (last if last < 17 else 17):
                    return 0
                count = data[position + 14] if last > 14 else 0
                at = 15
                if count == 0xFC and last >= 17:
                    count = data[position + 15] | data[position + 16] << 8
                    at = 17
                if count < statement.parameters:
                    # Malformed, here and below: the server says so.
                    return 14
            at += (count + 7) // 8
            if at >= last:
                return 14
            self._mark = at
            at += 1
            if at <= left and data[position + at - 1] != 1:
                return at
        elif data[position + 9] & BULK_TYPES == 0:
            return at
        if self._has_attributes:
            return self._names_end(data, position, left if left < last else last, left >= last, count, at)
        if at + 2 * count > last:
            return last
        if at + 2 * count <= left:
            self._types_at = at
        return at + 2 * count

    def _names_end(self, data: bytes, position: int, end: int, is_whole: bool, count: int, at: int) -> int:
        """`_types_end` where each of `count` types that begin at `at` has a name behind it."""
        begin = at
        while count > 0 and at + 3 <= end and data[position + at + 2] < 0xFB:
            at += 3 + data[position + at + 2]
            count -= 1
        if count == 0 and at <= end:
            self._types_at = begin
            return at
        # A name of more than 250 bytes is nobody's.
        return 14 if is_whole else 0

    def _has_types(self, data: bytes, position: int, statement: Statement) -> bool:
        """The types at `_types_at` are those that are remembered."""
        types = statement.types
        if types is None:
            return False
        at = position + self._types_at
        index = 0
        while index < 2 * statement.parameters:
            if data[at] != types[index] or data[at + 1] != types[index + 1]:
                return False
            at += 3 + data[at + 2] if self._has_attributes else 2
            index += 2
        return True

    def _types_of(self, data: bytes, position: int, statement: Statement) -> bytes:
        """The types at `_types_at`, two bytes each."""
        types = bytearray()
        at = position + self._types_at
        while len(types) < 2 * statement.parameters:
            types.append(data[at])
            types.append(data[at + 1])
            at += 3 + data[at + 2] if self._has_attributes else 2
        return bytes(types)

    def _scan_statement(self, data: bytes, position: int, end: int, size: int, command: int) -> int:
        """A command that names a statement in the bytes 1 to 4 of its payload."""
        if size < 5:
            raise ProtocolViolation("client", "a command of a prepared statement without its id")
        if not self._ids_match:
            self.message_size = 9
            return T_FETCH
        if end - position < 9:
            return T_MORE
        identifier = (
            data[position + 5]
            | data[position + 6] << 8
            | data[position + 7] << 16
            | cython.cast(cython.ulong, data[position + 8]) << 24
        )
        self._note_statement_command(command, identifier)
        self._begin_client(size)
        return T_TAKEN

    def _begin_client(self, size: int) -> None:
        """A command's packet of `size` bytes begins to pass; it has been put into the queue if it is answered."""
        self._client_left = size
        self._client_continued = size == PAYLOAD_BYTES_MAX
        self._client_sequence = 1

    def _find(self, identifier: int) -> Statement | None:
        # STATEMENT_LAST_PREPARED, compared without a Python object.
        if identifier & 0xFFFF == 0xFFFF and identifier >> 16 == 0xFFFF:
            return self._newest
        return self._statements.get(identifier)

    def _begin_execute(self, command: int, identifier: int, statement: Statement | None) -> None:
        if self._has_long_data:
            self._long_data.discard(identifier)
            self._has_long_data = bool(self._long_data)
        self._enqueue(command, identifier, ENTRY_COMMITS if statement is not None and statement.commits else 0)
        if statement is not None and statement.flags & ~TEXT_READS:
            self._note_tail(statement.flags, statement.text)

    def _note_statement_command(self, command: int, identifier: int) -> None:
        if command == COM_STMT_CLOSE:
            self._client_is_tail = False
            self._end_statement(identifier)
        elif command == COM_STMT_SEND_LONG_DATA:
            self._client_is_tail = False
            if identifier in self._statements:
                self._long_data.add(identifier)
                self._has_long_data = True
        else:
            self._enqueue(command, identifier, 0)

    def _end_statement(self, identifier: int) -> int:
        """COM_STMT_CLOSE: the statement is gone on both sides."""
        if self._statements.pop(identifier, None) is None:
            return 0
        self.ledger.version += 1
        self.ledger_news = LEDGER_TOUCHED
        self._recent = None
        self._server_ids.pop(identifier, None)
        self._types_due.discard(identifier)
        self._cursors.discard(identifier)
        self._long_data.discard(identifier)
        if not self._statements:
            self._ids_match = True
        self._has_types_due = bool(self._types_due)
        self._has_cursors = bool(self._cursors)
        self._has_long_data = bool(self._long_data)
        return 0

    def take_client(self, message: bytes) -> bytes:
        command = message[4]
        size = int.from_bytes(message[:3], "little")
        if command == COM_QUIT:
            self.client_left = True
            return b""
        if command == COM_CHANGE_USER:
            self._change_user = message
            return b""
        if command == COM_QUERY:
            begin: int | None = 5
            if self._has_attributes:
                begin = text_of_query(message[5:])
                begin = None if begin is None else 5 + begin
            if self._has_untold:
                if begin is None or message[begin:].strip(b" \t\r\n;").lower() not in _ROLLBACKS:
                    self._refuse_untold()
                    return b""
                self._untold = None
                self._has_untold = False
            if begin is None:
                self._enqueue(COM_QUERY, 0, ENTRY_COMMITS)
                self._note_tail(TEXT_UNREAD, None)
                self._pass_rest(message, size)
                return message
            self._text.begin((self._status & SERVER_STATUS_NO_BACKSLASH_ESCAPES) == 0)
            self._text.feed(message, begin, len(message))
            if len(message) < 4 + size:
                # The attributes and a part of the text.
                self._scans_text = True
                self._enqueue(COM_QUERY, 0, ENTRY_COMMITS)
                self._pass_rest(message, size)
                return message
            found = self._text.finish()
            wanted = parse_kill(message[begin:]) if found & TEXT_KILL else None
            if wanted is not None and wanted.is_own_id:
                self._kill_wanted = wanted
                self._is_kill_taken = True
                self.gate = GATE_CLOSED
                return b""
            own = b""
            if found & (TEXT_READS | TEXT_OPAQUE):
                verdict = self._judge_reads(found)
                if verdict == T_ANSWERED:
                    return b""
                if verdict == T_FETCH:
                    own = self._give_insert_id()
            self._enqueue(COM_QUERY, 0, self._query_flags(found))
            self._rolls_back = self._count == 1 and self._text.rolls_back and not found & TEXT_OPAQUE
            if found & ~TEXT_READS:
                self._note_tail(found, message[begin:])
            return own + message if own else message
        if command == COM_STMT_PREPARE:
            self._preparing.append(message[5:])
            self._enqueue(COM_STMT_PREPARE, 0, 0)
            return message
        if command == COM_SET_OPTION:
            self._enqueue(COM_SET_OPTION, int.from_bytes(message[5:7], "little"), 0)
            return message
        if command == COM_INIT_DB:
            self._selecting.append(message[5:])
            self._enqueue(COM_INIT_DB, 0, 0)
            return message
        identifier = int.from_bytes(message[5:9], "little")
        if command == COM_STMT_EXECUTE or command == COM_STMT_BULK_EXECUTE:
            return self._take_execute(message, size, identifier)
        server_id = self._server_id(identifier)
        self._note_statement_command(command, identifier)
        self._pass_rest(message, size)
        return message[:5] + server_id.to_bytes(4, "little") + message[9:]

    def _server_id(self, identifier: int) -> int:
        """The backend's id of the client's statement; one that no server has, if it does not have it."""
        if identifier == STATEMENT_LAST_PREPARED:
            return identifier
        server_id: int = self._server_ids.get(identifier, STATEMENT_NONE)
        return server_id

    def _pass_rest(self, message: bytes, size: int) -> None:
        """What follows the fetched head of a packet of `size` bytes passes as it is."""
        self._begin_client(size)
        self._client_left = 4 + size - len(message)

    def _take_execute(self, message: bytes, size: int, identifier: int) -> bytes:
        """The head of an execute, up to its types: put in the backend's id, and the types if the backend lacks them."""
        statement = self._find(identifier)
        server_id = self._server_id(identifier).to_bytes(4, "little")
        added = b""
        if statement is not None and statement.parameters:
            self._types_end(message, 0, len(message), size, statement)
            if self._types_at:
                if not self._has_types(message, 0, statement):
                    statement.types = self._types_of(message, 0, statement)
            elif identifier in self._types_due and statement.types is not None and self._lacks_types(message):
                added = self._types_to_add(statement.types)
        if added and size + len(added) >= PAYLOAD_BYTES_MAX:
            self._enqueue(COM_INVENTED, 0, ENTRY_REPREPARE)
            self._find_invented()
            self._pass_rest(message, size)
            self._client_drops = True
            return b""
        self._types_due.discard(identifier)
        self._has_types_due = bool(self._types_due)
        own = b""
        if self._is_insert_id_elsewhere and statement is not None and statement.flags & (TEXT_INSERT_ID | TEXT_OPAQUE):
            own = self._give_insert_id()
        self._begin_execute(message[4], identifier, statement)
        self._pass_rest(message, size)
        head = own + (size + len(added)).to_bytes(3, "little") + message[3:5] + server_id
        if not added:
            return head + message[9:]
        if message[4] == COM_STMT_BULK_EXECUTE:
            return head + bytes([message[9] | BULK_TYPES]) + message[10:11] + added + message[11:]
        return head + message[9 : self._mark] + b"\x01" + added + message[self._mark + 1 :]

    def _lacks_types(self, message: bytes) -> bool:
        """The head of an execute says that its types are those of the last one."""
        if message[4] == COM_STMT_BULK_EXECUTE:
            return message[9] & BULK_TYPES == 0
        return self._mark != 0 and len(message) > self._mark and message[self._mark] == 0

    def _types_to_add(self, types: bytes) -> bytes:
        """As they stand in an execute; with CLIENT_QUERY_ATTRIBUTES each has a name, which here is empty."""
        if not self._has_attributes:
            return types
        return b"".join(types[at : at + 2] + b"\0" for at in range(0, len(types), 2))

    def _query_flags(self, found: int) -> int:
        """ENTRY_… bits of a COM_QUERY whose text was just scanned."""
        flags = ENTRY_COMMITS if self._text.commits or found & TEXT_OPAQUE else 0
        if found & TEXT_COUNTED or (self._reads_counts and not found & TEXT_COUNTS):
            flags |= ENTRY_COUNTED
        return flags

    def _judge_reads(self, found: int) -> int:
        """A text that may ask for what the last statement left: T_TAKEN where the present backend has it, T_FETCH where it
        has to be given the insert id first, T_ANSWERED where the client is told that its counts are gone."""
        # Behind other statements, or in a definition, they are not those of the last statement.
        is_theirs = found & (TEXT_SEVERAL | TEXT_DEFINES) != 0 or self._count != 0
        if found & TEXT_COUNTS and self._are_counts_elsewhere and not is_theirs:
            self._reads_counts = True
            self._answer_itself(counts_gone_payload())
            return T_ANSWERED
        if found & (TEXT_INSERT_ID | TEXT_OPAQUE) and self._is_insert_id_elsewhere:
            return T_FETCH
        return T_TAKEN

    def _give_insert_id(self) -> bytes:
        """What gives the present backend the session's LAST_INSERT_ID(), before a statement that may ask for it."""
        self._is_insert_id_elsewhere = False
        self._enqueue(COM_QUERY, 0, ENTRY_OWN)
        text = b"SET last_insert_id = %d" % self._insert_id
        return packet(bytes([COM_QUERY]) + (NO_ATTRIBUTES + text if self._has_attributes else text), 0)

    def _refuse_untold(self) -> None:
        """The statement that begins now is answered by what was still to be told."""
        self._enqueue(COM_INVENTED, 0, ENTRY_UNTOLD)
        self._has_untold = False
        self._find_invented()

    # --- the queue ------------------------------------------------------------------------------------------------

    def _enqueue(self, command: int, argument: int, flags: int) -> int:
        """A command that will be answered begins."""
        if self._count == self._capacity:
            self._grow()
        entry = 8 * ((self._head + self._count) % self._capacity)
        self._rolls_back = False
        self._ring[entry] = command
        self._ring[entry + 1] = 1
        self._ring[entry + 2] = flags
        self._ring[entry + 4] = argument & 0xFF
        self._ring[entry + 5] = (argument >> 8) & 0xFF
        self._ring[entry + 6] = (argument >> 16) & 0xFF
        self._ring[entry + 7] = (argument >> 24) & 0xFF
        self._count += 1
        self._client_is_tail = True
        if self._phase == P_FILE:
            raise IllegalUse("a command was taken while a file is due")
        if self._count == 1:
            self._begin_head()
        return 0

    def _grow(self) -> int:
        if self._capacity >= QUEUE_MAX:
            raise ProtocolViolation("client", f"more than {QUEUE_MAX} commands await their answers")
        first = self._ring[8 * self._head :]
        self._ring = first + self._ring[: 8 * self._head] + bytes(8 * self._capacity)
        self._head = 0
        self._capacity *= 2
        return 0

    def _begin_head(self) -> int:
        """The command at the queue's head is answered from now on."""
        command = self._ring[8 * self._head]
        self._server_sequence = self._ring[8 * self._head + 1]
        if (
            command == COM_QUERY
            or command == COM_STMT_EXECUTE
            or command == COM_PROCESS_INFO
            or command == COM_STMT_BULK_EXECUTE
        ):
            self._phase = P_RESULT
        elif command == COM_STMT_PREPARE:
            self._phase = P_PREPARED
        elif command == COM_STMT_FETCH:
            self._phase = P_ROWS
        elif command == COM_FIELD_LIST:
            self._phase = P_LIST
        elif command == COM_STATISTICS:
            self._phase = P_STATISTICS
        elif command == COM_BINLOG_DUMP or command == COM_BINLOG_DUMP_GTID:
            self._phase = P_DUMP
        else:
            self._phase = P_SIMPLE
        return 0

    def _set_tail_sequence(self, sequence: int) -> None:
        """The command at the tail goes on in another packet: its answer's sequence ids begin later."""
        self._ring[8 * ((self._head + self._count - 1) % self._capacity) + 1] = sequence
        if self._count == 1:
            self._server_sequence = sequence

    def _note_tail(self, found: int, text: bytes | None) -> None:
        """The ledger is told of the command at the tail when it is done."""
        if not found & ~TEXT_READS:
            return
        if not self._client_is_tail:
            # It was refused before its text was complete.
            self.ledger.note_text(found, text, True)
            self._is_unlocked = False
            self.ledger_news = LEDGER_TOUCHED
            return
        entry = 8 * ((self._head + self._count - 1) % self._capacity) + 2
        self._ring[entry] |= ENTRY_NOTED | (ENTRY_OPAQUE if found & TEXT_OPAQUE else 0)
        self._noted.append((found, text))

    def _pop(self) -> int:
        self._head = (self._head + 1) % self._capacity
        self._count -= 1
        if self._count:
            self._begin_head()
        else:
            self._phase = P_IDLE
            self._client_is_tail = False
        return 0

    def _set_status(self, status: int) -> int:
        self._status = status
        self._is_transaction_unknown = False
        if status & SERVER_SESSION_STATE_CHANGED and not (self._is_tracked or status & SERVER_STATUS_IN_TRANS):
            # Only a server that was not asked to track would say so and not what it was.
            self.ledger.is_dirty = True
            self.ledger_news = LEDGER_TOUCHED
        return 0

    def _finish(self, is_error: bool) -> int:
        """The answer to the head of the queue is complete."""
        entry = 8 * self._head
        command = self._ring[entry]
        had_counts = self._has_counts
        if self._ring[entry + 2] & ENTRY_NOTED:
            found, text = self._noted.popleft()
            is_one_shot = self.ledger.note_text(
                found, text, is_error, in_transaction=self._status & SERVER_STATUS_IN_TRANS != 0
            )
            self._is_unlocked = False
            self.ledger_news = LEDGER_TOUCHED
            if self.ledger.own_tracking:
                self._note_own_tracking()
            if not self._is_told_of:
                self._is_one_shot = is_one_shot
        elif (
            self._is_one_shot
            and (not self._is_told_of or (self._phase == P_ROWS and not self._deprecates_eof))
            and (command == COM_QUERY or command == COM_STMT_EXECUTE or command == COM_STMT_BULK_EXECUTE)
        ):
            self._is_one_shot = False
        if command == COM_STMT_EXECUTE or command == COM_STMT_FETCH or command == COM_STMT_RESET:
            if self._has_cursors or self._has_long_data or self._status & SERVER_STATUS_CURSOR_EXISTS:
                identifier = (
                    self._ring[entry + 4]
                    | self._ring[entry + 5] << 8
                    | self._ring[entry + 6] << 16
                    | cython.cast(cython.ulong, self._ring[entry + 7]) << 24
                )
                self._note_cursor(command, identifier, is_error)
        elif command == COM_INIT_DB:
            database = self._selecting.popleft()
            if not is_error:
                self.ledger.note_database(database)
                self.ledger_news = LEDGER_TOUCHED
        elif command == COM_RESET_CONNECTION and not is_error:
            self._forget_statements()
            self.ledger.note_reset()
            self.ledger_news = LEDGER_TOUCHED
            # Until the ledger asks, which turns tracking on again.
            self._is_told_of = False
            self._is_info_own = False
            self._is_one_shot = False
            self._insert_id = 0
            self._is_insert_id_elsewhere = False
        elif command == COM_SET_OPTION and not is_error:
            self.ledger_news = LEDGER_TOUCHED
            self.ledger.note_option(self._ring[entry + 4] | self._ring[entry + 5] << 8)
        elif command == COM_STMT_PREPARE and is_error and self._phase == P_PREPARED:
            self._preparing.popleft()
        self.requests += 1
        if not (self._status & SERVER_STATUS_IN_TRANS):
            self.transactions += 1
        if command == COM_QUERY or command == COM_STMT_EXECUTE or command == COM_STMT_BULK_EXECUTE:
            self._are_counts_elsewhere = False
            self._has_counts = self._ring[entry + 2] & ENTRY_COUNTED != 0 and not is_error
        if (self._warnings != 0) != self.has_warnings or self._has_counts != had_counts:
            self._tell_pending()
        self._pop()
        return 0

    def _tell_pending(self) -> int:
        """The client may ask for warnings and counts, of the backend that has them."""
        self.has_warnings = self._warnings != 0
        if self._shares:
            self.ledger.note_pending(warnings=self.has_warnings, counts=self._has_counts)
            self.ledger_news = LEDGER_TOUCHED
        return 0

    def _fail(self) -> int:
        """ERR ends the answer to the head of the queue."""
        self.errors += 1
        self._is_quiet = False
        self._warnings = 0
        if not (self._status & SERVER_STATUS_AUTOCOMMIT) or self._ring[8 * self._head + 2] & ENTRY_OPAQUE:
            self._is_transaction_unknown = True
        self._finish(True)
        return 0

    def _note_cursor(self, command: int, identifier: int, is_error: bool) -> None:
        if command == COM_STMT_RESET:
            self._cursors.discard(identifier)
            self._long_data.discard(identifier)
        elif command == COM_STMT_EXECUTE:
            if self._status & SERVER_STATUS_CURSOR_EXISTS and not is_error:
                self._cursors.add(identifier)
            else:
                self._cursors.discard(identifier)
        elif is_error or self._status & SERVER_STATUS_LAST_ROW_SENT:
            self._cursors.discard(identifier)
        self._has_cursors = bool(self._cursors)
        self._has_long_data = bool(self._long_data)

    def _forget_statements(self) -> None:
        """The backend has none any more (COM_RESET_CONNECTION)."""
        self._statements.clear()
        self._server_ids.clear()
        self._types_due.clear()
        self._cursors.clear()
        self._long_data.clear()
        self._has_types_due = False
        self._has_cursors = False
        self._has_long_data = False
        self._ids_match = True
        self._recent = None
        self._newest = None

    # --- from the server ------------------------------------------------------------------------------------------

    def scan_server(self, data: bytes, start: int, end: int) -> int:
        position = start
        while True:
            if self._server_left:
                taken = end - position
                if taken > self._server_left:
                    taken = self._server_left
                position += taken
                self._server_left -= taken
                if self._server_left:
                    self.stop = position
                    return FORWARD
            if self._count and not self._server_continued and self._ring[8 * self._head] == COM_INVENTED:
                # All answers before it are complete. Nothing of the server is due for it.
                self.has_invented = True
                self.stop = position
                return INVENT
            if end - position < 4:
                self.stop = position
                return FORWARD
            size = data[position] | data[position + 1] << 8 | data[position + 2] << 16
            sequence = data[position + 3]
            if sequence == 1 and self._phase == P_DUMP and not self._server_continued:
                # What the replica said meanwhile has begun a new exchange.
                self._server_sequence = 1
            is_off = self._is_server_packed and sequence != self._server_sequence and self._phase != P_IDLE
            if is_off:
                sequence = self._server_sequence
            if self._server_continued:
                if sequence != self._server_sequence:
                    raise ProtocolViolation("server", "packet out of order")
                self._server_sequence = (sequence + 1) & 0xFF
                self._server_continued = size == PAYLOAD_BYTES_MAX
                self._server_left = size
                if is_off:
                    return self._renumber(position, size, sequence)
                position += 4
                continue
            if size == 0:
                raise ProtocolViolation("server", "an empty packet")
            if end - position < 5:
                self.stop = position
                return FORWARD
            first = data[position + 4]
            phase = self._phase
            if sequence != self._server_sequence or phase == P_IDLE:
                # An error is allowed at two more moments: nothing is in flight (the server ends the connection), or
                # the command is too large (1153), which servers say after its first header, with sequence id 1.
                if first != ERR or not (phase == P_IDLE or self._head_is_large()):
                    raise ProtocolViolation("server", "a packet that nobody asked for, or out of order")
                if phase == P_IDLE:
                    # Whoever finds out who was meant decides what the client is told.
                    if size > ERROR_BYTES_MAX:
                        raise ProtocolViolation("server", "an ERR of more than 64 KiB")
                    self._is_ending = True
                    self.stop = position
                    self.message_size = 4 + size
                    return FETCH
            if phase == P_ROWS and first < EOF and size < PAYLOAD_BYTES_MAX:
                # A row that is no more than that: what most packets are.
                if self._renames:
                    if end - position < 4 + (size if size < ID_BYTES_MAX else ID_BYTES_MAX):
                        self.stop = position
                        return FORWARD
                    if self._rename(data, position, size, sequence):
                        self.stop = position
                        return EDIT
                self._server_sequence = (sequence + 1) & 0xFF
                if is_off:
                    self._server_left = size
                    return self._renumber(position, size, sequence)
                if size <= end - position - 4:
                    position += 4 + size
                else:
                    self._server_left = size
                    position += 4
                continue
            if size == PAYLOAD_BYTES_MAX and ((phase != P_ROWS and phase != P_DUMP) or first == ERR):
                raise ProtocolViolation("server", "a packet of 16 MB that is not a row")

            if phase == P_RESULT and self._ring[8 * self._head + 2] & ENTRY_OWN:
                if size > ERROR_BYTES_MAX or (first != OK and first != ERR):
                    raise ProtocolViolation("server", "neither OK nor ERR to a SET")
                self._pop()
                self.stop = position
                self.message_size = 4 + size
                return SWALLOW

            is_end = first == EOF and (size < PAYLOAD_BYTES_MAX if self._deprecates_eof else size < 9)
            if (
                first == ERR
                or phase == P_COLUMNS
                or phase == P_PARAMETERS
                or phase == P_FIELDS
                or phase == P_STATISTICS
                or ((phase == P_ROWS or phase == P_LIST) and not is_end)
                or (phase == P_DUMP and first == OK)
            ):
                need = 5
                if first == ERR:
                    # As far as the class of its SQLSTATE: 0xFF, code (2), '#', state (5).
                    need = 4 + (size if size < 6 else 6)
            else:
                need = 4 + (size if size < 21 else 21)
            if end - position < need:
                self.stop = position
                return FORWARD
            if phase == P_PREPARED and first != ERR:
                if first != OK or size < 12 or size > 64:
                    raise ProtocolViolation("server", "neither a prepared statement nor ERR")
                self.stop = position
                self.message_size = 4 + size
                return FETCH

            # The packet is judged now; where it ends the answer, the next answer's sequence takes the place of this.
            self._server_sequence = (sequence + 1) & 0xFF
            self._server_left = size
            self._server_continued = size == PAYLOAD_BYTES_MAX
            if first == ERR:
                if not (self._has_progress and size > 2 and data[position + 5] == 0xFF and data[position + 6] == 0xFF):
                    has_state = size > 5 and data[position + 7] == 0x23
                    if not (has_state and _is_clients_own(data[position + 8], data[position + 9])):
                        self.faults += 1
                    self.note_error(data[position + 8 : position + 10] if has_state else b"")
                    self._fail()
                # Else it is a report of progress (constants.PROGRESS_REPORT), and the answer goes on.
            elif phase == P_ROWS:
                if is_end:
                    status = self._end_status(data, position, size)
                    if status & SERVER_SESSION_STATE_CHANGED and self._wants_told(data, position, size, end):
                        return self._judge_told(data, position, size, end, sequence)
                    self._set_status(status)
                    if status & SERVER_MORE_RESULTS_EXISTS:
                        self._phase = P_RESULT
                    else:
                        self._finish(False)
            elif phase == P_COLUMNS or phase == P_PARAMETERS or phase == P_FIELDS:
                # A definition begins with its catalog, the string "def"; OK and EOF may not come here.
                if first == OK or first == EOF or first == LOCAL_INFILE:
                    raise ProtocolViolation("server", "fewer column definitions than announced")
                self._definitions_left -= 1
                if self._definitions_left == 0:
                    self._end_definitions()
            elif phase == P_RESULT or phase == P_FILE_END:
                if first == OK:
                    status = self._ok_status(data, position, size)
                    if status & SERVER_SESSION_STATE_CHANGED and self._wants_told(data, position, size, end):
                        return self._judge_told(data, position, size, end, sequence)
                    self._set_status(status)
                    if self._ok_insert_id != 0:
                        self._insert_id = self._ok_insert_id
                        self._is_insert_id_elsewhere = False
                    self._is_quiet = (
                        size >= 7
                        and (data[position + 5] | data[position + 6] | data[position + 9] | data[position + 10]) == 0
                    )
                    if status & SERVER_MORE_RESULTS_EXISTS:
                        self._phase = P_RESULT
                    else:
                        self._finish(False)
                elif phase == P_FILE_END:
                    raise ProtocolViolation("server", "neither OK nor ERR after a file")
                elif first == LOCAL_INFILE:
                    self._begin_file()
                else:
                    self._definitions_left = self._column_count(data, position, size)
                    self._phase = P_COLUMNS
                    self._is_quiet = False
                    self._renames = self._tells_ids()
            elif phase == P_SIMPLE:
                if first == OK:
                    status = self._ok_status(data, position, size)
                    if status & SERVER_SESSION_STATE_CHANGED and self._wants_told(data, position, size, end):
                        return self._judge_told(data, position, size, end, sequence)
                elif is_end:
                    status = self._end_status(data, position, size)
                    if status & SERVER_SESSION_STATE_CHANGED and self._wants_told(data, position, size, end):
                        return self._judge_told(data, position, size, end, sequence)
                else:
                    raise ProtocolViolation("server", "neither OK nor ERR")
                self._set_status(status)
                self._finish(False)
            elif phase == P_COLUMNS_END or phase == P_PARAMETERS_END or phase == P_FIELDS_END:
                if not is_end:
                    raise ProtocolViolation("server", "no EOF after the column definitions")
                status = self._eof_status(data, position, size)
                if status & SERVER_SESSION_STATE_CHANGED and self._wants_told(data, position, size, end):
                    return self._judge_told(data, position, size, end, sequence)
                self._set_status(status)
                if phase == P_COLUMNS_END and not (status & SERVER_STATUS_CURSOR_EXISTS):
                    self._phase = P_ROWS
                elif phase == P_PARAMETERS_END and self._fields_after:
                    self._definitions_left = self._fields_after
                    self._phase = P_FIELDS
                else:
                    self._finish(False)
            elif phase == P_LIST:
                if is_end:
                    status = self._end_status(data, position, size)
                    if status & SERVER_SESSION_STATE_CHANGED and self._wants_told(data, position, size, end):
                        return self._judge_told(data, position, size, end, sequence)
                    self._set_status(status)
                    self._finish(False)
                elif first == OK or first == LOCAL_INFILE or first == EOF:
                    raise ProtocolViolation("server", "not a list of fields")
            elif phase == P_STATISTICS:
                self._finish(False)
            elif phase == P_DUMP:
                if first != OK:
                    # Servers say EOF, or OK in its place, for the connection's flags or as they like.
                    if first != EOF or size < 5:
                        raise ProtocolViolation("server", "neither an event of the binlog nor its end")
                    if size == 5:
                        self._set_status(self._eof_status(data, position, size))
                    else:
                        self._set_status(self._ok_status(data, position, size))
                    self._finish(False)
            else:
                raise ProtocolViolation("server", "speaks while the client sends a file")
            if is_off:
                return self._renumber(position, size, sequence)
            position += 4

    def _tells_ids(self) -> bool:
        """The rows that come begin with ids of connections."""
        entry = 8 * self._head
        command = self._ring[entry]
        return (command == COM_QUERY or command == COM_PROCESS_INFO) and self._ring[entry + 4] != 0

    def _rename(self, data: bytes, position: int, size: int, sequence: int) -> bool:
        """Put the head of a row into `edited`, as far as the id it begins with, which is the one that clients know instead of
        the server's. False: they know no other."""
        count = data[position + 4]
        if count == 0 or count >= ID_BYTES_MAX or count >= size:
            return False
        number = 0
        index = 0
        while index < count:
            digit = data[position + 5 + index]
            if digit < 48 or digit > 57:
                return False
            number = 10 * number + digit - 48
            index += 1
        known = self._ids.get(number)
        if known is None:
            return False
        text = b"%d" % known
        length = size - count + len(text)
        if length >= PAYLOAD_BYTES_MAX:
            return False
        edited = self.edited
        edited[0] = length & 0xFF
        edited[1] = (length >> 8) & 0xFF
        edited[2] = (length >> 16) & 0xFF
        edited[3] = sequence
        edited[4] = len(text)
        stop = 5
        for digit in text:
            edited[stop] = digit
            stop += 1
        self.edited_size = stop
        self.message_size = 5 + count
        self._server_sequence = (sequence + 1) & 0xFF
        self._server_left = size - 1 - count
        return True

    def _wants_told(self, data: bytes, position: int, size: int, end: int) -> bool:
        """The OK or EOF that was just read tells of changes that have not been taken from it yet. Not so, for a client
        that is shown them, of those that are of no use to the ledger."""
        if not self._is_tracked or self._is_told:
            return False
        if not self._is_shown:
            return True
        if not self._deprecates_eof and data[position + 4] == EOF:
            return False
        return not self._is_small_talk(data, position, size, end)

    def _is_small_talk(self, data: bytes, position: int, size: int, end: int) -> bool:
        """An OK that tells of one variable only, `statement_id` (MySQL) or `last_gtid` (MariaDB), which change by
        themselves, and stands in `data` as a whole. Every length in it is of one byte, or it is not taken for that."""
        at = position + self._info_at
        last = position + 4 + size
        if last > end or at + 4 > last or data[at] >= 0xFB:
            return False
        at += 1 + data[at]
        # Length of all, kind, length of the entry, length of the name.
        if at + 5 > last or at + 1 + data[at] != last or data[at + 1] != 0 or at + 3 + data[at + 2] != last:
            return False
        if data[at + 3] == 12:
            return data[at + 4] == 115 and data[at + 5] == 116 and data[at + 14] == 105  # statement_id
        return data[at + 3] == 9 and data[at + 4] == 108 and data[at + 9] == 103  # last_gtid

    def _judge_told(self, data: bytes, position: int, size: int, end: int, sequence: int) -> int:
        """Take the packet's judgement back: it is judged without what it tells, if that is nothing new, or fetched first."""
        self._server_left = 0
        self._server_sequence = sequence
        is_plain = self._strip_told(data, position, size, end, sequence)
        if is_plain:
            edited = self.edited
            self._is_told = True
            self.scan_server(edited, 0, self.edited_size)  # type: ignore[arg-type]  # compiled it is a pointer
            self._is_told = False
        self._has_told = not is_plain
        self.stop = position
        self.message_size = 4 + size
        return EDIT if is_plain else FETCH

    def _strip_told(self, data: bytes, position: int, size: int, end: int, sequence: int) -> bool:
        """Put an OK that tells of changes, or an EOF that says that there are some, into `edited` without what the client
        is not shown, as `_take_told` would. Not so where the ledger has to be told or the client has set a variable of
        session tracking itself, and not of an OK that does not stand in `data` as a whole or has a length of more than one
        byte behind its flags."""
        if self._is_shown and self.ledger.own_tracking:
            return False
        stop = 9
        flags = 8
        at = 0
        last = 0
        if data[position + 4] == EOF and not self._deprecates_eof:
            if not data[position + 7] & SERVER_STATUS_IN_TRANS:
                return False
        else:
            at = position + self._info_at
            last = position + 4 + size
            if last > end or at >= last or data[at] >= 0xFB:
                return False
            stop = self._info_at
            flags = stop - 3
            if data[at]:
                stop += 1 + data[at]
            at += 1 + data[at]
            if at >= last or data[at] >= 0xFB or at + 1 + data[at] != last or not self._note_plain(data, at + 1, last):
                return False
        edited = self.edited
        index = 4
        while index < stop:
            edited[index] = data[position + index]
            index += 1
        # An EOF that says so is passed on to those that are shown it (`_wants_told`): this is an OK.
        kept = self._keep_shown(data, at + 1, last, edited, stop) if self._is_shown else 0
        if kept:
            stop = kept
        else:
            # Bits 8 to 15 of the status, where it is set.
            edited[flags] ^= SERVER_SESSION_STATE_CHANGED >> 8
        edited[0] = (stop - 4) & 0xFF
        edited[1] = (stop - 4) >> 8
        edited[2] = 0
        edited[3] = sequence
        self.edited_size = stop
        return True

    def _keep_shown(self, data: bytes, at: int, last: int, edited: bytearray, stop: int) -> int:
        """Put those of the entries in `data[at:last]` that the client is shown behind the OK in `edited[:stop]`; returns
        where they end, or 0 if there are none. Their lengths have been looked at."""
        # An info without text was left out.
        begin = stop + 1 if stop > self._info_at else stop + 2
        index = begin
        while at < last:
            kind = data[at]
            size = 2 + data[at + 1]
            if not (
                kind == TRACK_STATE_CHANGE
                or kind == TRACK_TRANSACTION_CHARACTERISTICS
                or kind == TRACK_TRANSACTION_STATE
            ):
                body = 0
                while body < size:
                    edited[index] = data[at + body]
                    index += 1
                    body += 1
            at += size
        if index == begin:
            return 0
        edited[stop] = 0
        edited[begin - 1] = index - begin
        return index

    def _note_plain(self, data: bytes, at: int, last: int) -> bool:
        """Note what the entries in `data[at:last]` tell, as `_take_told` would, if the ledger need not hear of any. False:
        it must, or a length is of more than one byte or wrong, and nothing was noted."""
        special = -1
        while at < last:
            kind = data[at]
            body = at + 2
            if body > last or data[at + 1] >= 0xFB:
                return False
            at = body + data[at + 1]
            if at > last:
                return False
            if kind == TRACK_TRANSACTION_CHARACTERISTICS or kind == TRACK_TRANSACTION_STATE:
                if body == at or data[body] >= 0xFB or body + 1 + data[body] > at:
                    return False
                if kind == TRACK_TRANSACTION_CHARACTERISTICS:
                    special = data[body]
                elif not self._is_unlocked or (data[body] > 7 and data[body + 8] == 0x4C):  # L
                    return False
            elif kind == TRACK_SCHEMA or (kind == TRACK_STATE_CHANGE and at > body and data[at - 1] == 0x31):  # 1
                return False
        if self._is_told_of and special >= 0:
            self._is_one_shot = special > 0
        return True

    def _take_told(self, message: bytes) -> bytes:
        """An OK that tells of changes, or an EOF that says that there are some: note them, judge it, and return it as the
        client shall see it."""
        self._has_told = False
        if self._is_server_packed:
            message = message[:3] + bytes([self._server_sequence]) + message[4:]
        if message[4] == EOF and not self._deprecates_eof:
            status = message[7] | message[8] << 8
            if not status & SERVER_STATUS_IN_TRANS:
                # In a transaction the next OK tells in time.
                self.ledger.is_dirty = True
                self.ledger_news = LEDGER_TOUCHED
            message = message[:7] + (status & ~SERVER_SESSION_STATE_CHANGED).to_bytes(2, "little")
        else:
            head, info, entries = take_apart(message[4:])
            told = read(entries)
            if told.has_locked_tables is not None:
                self._is_unlocked = not told.has_locked_tables
            if self.ledger.note_told(told):
                self.ledger_news = LEDGER_TOUCHED
            if self._is_told_of and told.characteristics is not None:
                self._is_one_shot = told.characteristics != b""
            entries = shown(entries, self.ledger.own_tracking) if self._is_shown else []
            message = packet(put_together(head, info, entries), message[3])
        self._is_told = True
        self.scan_server(message, 0, len(message))
        self._is_told = False
        return message

    def _note_own_tracking(self) -> None:
        """The client has set some of the variables of session tracking itself."""
        self._is_info_own = TRANSACTION_INFO in self.ledger.own_tracking
        if self._is_info_own:
            self._is_told_of = False

    def _head_is_large(self) -> bool:
        """The command that is being answered has more than one packet, or is not complete."""
        return self._ring[8 * self._head + 1] != 1 or (self._client_is_tail and self._client_is_on_its_way())

    def _client_is_on_its_way(self) -> bool:
        return self._client_left != 0 or self._client_continued

    def _end_status(self, data: bytes, position: int, size: int) -> int:
        """Status flags of an EOF, or of the OK in its place."""
        if self._deprecates_eof:
            return self._ok_status(data, position, size)
        return self._eof_status(data, position, size)

    def _eof_status(self, data: bytes, position: int, size: int) -> int:
        if size != 5:
            raise ProtocolViolation("server", "an EOF that is not 5 bytes long")
        self._warnings = data[position + 5] | data[position + 6] << 8
        return data[position + 7] | data[position + 8] << 8

    def _ok_status(self, data: bytes, position: int, size: int) -> int:
        """Status flags of an OK: after two length-encoded integers. The first 21 bytes of the payload are in `data`."""
        at = position + 5
        last = position + 4 + (size if size < 21 else 21)
        turn = 0
        value = 0
        while turn < 2:
            first = data[at] if at < last else 0xFF
            width = 0
            value = first
            if first == 0xFC:
                width = 2
            elif first == 0xFD:
                width = 3
            elif first == 0xFE:
                width = 8
            elif first >= 0xFB:
                raise ProtocolViolation("server", "an OK that cannot be read")
            if width != 0 and at + width < last:
                value = 0
                index = at + width
                while index > at:
                    value = value << 8 | data[index]
                    index -= 1
            at += 1 + width
            turn += 1
        self._ok_insert_id = value
        if at + 2 > last:
            raise ProtocolViolation("server", "an OK without status flags")
        self._warnings = data[at + 2] | data[at + 3] << 8 if at + 4 <= last else 0
        self._info_at = at + 4 - position
        return data[at] | data[at + 1] << 8

    def _column_count(self, data: bytes, position: int, size: int) -> int:
        """A length-encoded integer that fills the packet: 1 to 65535."""
        first = data[position + 4]
        count = 0
        if first < 0xFB and size == 1:
            count = first
        elif first == 0xFC and size == 3:
            count = data[position + 5] | data[position + 6] << 8
        if count == 0:
            raise ProtocolViolation("server", "neither OK, ERR nor a number of columns")
        return count

    def _begin_file(self) -> None:
        """LOAD DATA LOCAL: the server may ask for a file only where the client said it might, for its own query."""
        if not self._capabilities & CLIENT_LOCAL_FILES:
            raise ProtocolViolation("server", "asks for a file although the client does not send any")
        if self._ring[8 * self._head] != COM_QUERY:
            raise ProtocolViolation("server", "asks for a file without a query")
        if self._count > 1 or self._client_is_on_its_way():
            raise ProtocolViolation("client", "sent on where the server asks for a file")
        self._phase = P_FILE

    def _end_definitions(self) -> int:
        """The last of the announced definitions is judged."""
        if self._phase == P_COLUMNS:
            self._phase = P_ROWS if self._deprecates_eof else P_COLUMNS_END
        elif not self._deprecates_eof:
            self._phase = P_PARAMETERS_END if self._phase == P_PARAMETERS else P_FIELDS_END
        elif self._phase == P_PARAMETERS and self._fields_after:
            self._definitions_left = self._fields_after
            self._phase = P_FIELDS
        else:
            self._finish(False)
        return 0

    def _free_id(self) -> int:
        """A client id that no statement has; never one with a meaning of its own."""
        client_id = max(self._statements) + 1
        if client_id < STATEMENT_NONE:
            return client_id
        client_id = 1
        while client_id in self._statements:
            client_id += 1
        return client_id

    def take_server(self, message: bytes) -> bytes:
        """The answer to COM_STMT_PREPARE: OK, id (4), columns (2), parameters (2), filler, warnings (2). Or, while nothing
        is in flight, an ERR: the server says why it ends the connection."""
        if self._is_ending:
            # The client may have sent a command while it was on its way.
            self._is_ending = False
            self._last_words = message
            self.has_last_words = True
            return b""
        if self._has_told:
            return self._take_told(message)
        if self._phase != P_PREPARED or len(message) < 16:
            raise IllegalUse("a message was fetched that the tracker did not ask for")
        if self._is_server_packed:
            message = message[:3] + bytes([self._server_sequence]) + message[4:]
        server_id = int.from_bytes(message[5:9], "little")
        columns = int.from_bytes(message[9:11], "little")
        parameters = int.from_bytes(message[11:13], "little")
        text = self._preparing.popleft()
        found = TEXT_DIRTY | TEXT_OPAQUE
        commits = True
        if text is not None:
            self._text.begin((self._status & SERVER_STATUS_NO_BACKSLASH_ESCAPES) == 0)
            self._text.feed(text, 0, len(text))
            found = self._text.finish()
            commits = self._text.commits or found & TEXT_OPAQUE != 0
        client_id = server_id
        if server_id >= STATEMENT_NONE or len(self._statements) >= STATEMENTS_MAX:
            raise ProtocolViolation("server", "more prepared statements than are possible")
        if client_id in self._statements:
            # The id is taken by a statement that was prepared on another backend.
            client_id = self._free_id()
            self._ids_match = False
        statement = Statement(client_id, text, parameters, found, commits)
        self._statements[client_id] = statement
        self._server_ids[client_id] = server_id
        self._newest = statement
        self._recent = None
        self.ledger.note_statement(statement)
        self.ledger_news = LEDGER_TOUCHED
        self._server_sequence = (message[3] + 1) & 0xFF
        self._fields_after = columns
        if parameters:
            self._definitions_left = parameters
            self._phase = P_PARAMETERS
        elif columns:
            self._definitions_left = columns
            self._phase = P_FIELDS
        else:
            self._finish(False)
            self._find_invented()
        return message if client_id == server_id else message[:5] + client_id.to_bytes(4, "little") + message[9:]

    # --- for the relay and the session ----------------------------------------------------------------------------

    def at_boundary(self) -> bool:
        return (
            self.is_idle()
            and not (self._status & SERVER_STATUS_IN_TRANS)
            and not self._is_transaction_unknown
            and not self._is_one_shot
            and not self._has_cursors
            and not self._has_long_data
        )

    def is_idle(self) -> bool:
        return (
            self._count == 0
            and self._client_left == 0
            and not self._client_continued
            and self._server_left == 0
            and not self._server_continued
            and not self._is_ending
        )

    def _find_invented(self) -> None:
        """Our own answer is due now if its turn has come and no message to the client is half sent."""
        self.has_invented = (
            self._count != 0
            and self._ring[8 * self._head] == COM_INVENTED
            and self._server_left == 0
            and not self._server_continued
        )

    def take_invented(self) -> bytes:
        """The answers to commands at the queue's head that no server is asked to answer."""
        answers = b""
        while self._count and self._ring[8 * self._head] == COM_INVENTED:
            sequence = self._ring[8 * self._head + 1]
            flags = self._ring[8 * self._head + 2]
            if flags & ENTRY_ANSWER:
                answer = packet(self._own_answers.popleft(), sequence)
            elif flags & ENTRY_UNTOLD and self._untold is not None:
                answer = error_packet(self._untold, sequence)
                self._untold = None
            elif flags & ENTRY_REPREPARE:
                answer = too_large_execute_packet(sequence)
            else:
                answer = unknown_command_packet(sequence)
            answers += answer
            if answer[4] == ERR:
                self.errors += 1
                self.note_error(answer[8:10] if answer[7:8] == b"#" else b"")
            self.requests += 1
            self._pop()
        self.has_invented = False
        return answers

    def is_within_packet(self) -> bool:
        """Half a packet has gone to the client."""
        return self._server_left != 0 or self._server_continued

    def next_sequence(self) -> int:
        """Sequence id that the next packet to the client must have: of the answer in flight, or 1."""
        return self._server_sequence if self._count else 1

    def link(self, backend: BackendFacts, notes: dict[str, Any]) -> bytes:
        """`notes`: `statement_ids` (client id -> this backend's id) and `types_due` (client ids), kept up to date here."""
        if not self.is_idle():
            raise IllegalUse("a backend was linked in the middle of a request")
        if backend.server_version != self._server_version:
            self._server_version = backend.server_version
            self.ledger.note_backend(backend)
        self._is_tracked = backend.capabilities & CLIENT_SESSION_TRACK != 0
        self._is_told_of = self._is_tracked and not self._is_info_own
        # A backend that others have used has the insert id of one of them.
        self._is_insert_id_elsewhere = self._shares or self._insert_id != 0
        self._are_counts_elsewhere = self._shares
        # They were another backend's.
        self._are_ids_known = False
        self._is_server_packed = backend.packing is not None
        self._server_ids = notes.setdefault("statement_ids", {})
        self._types_due = notes.setdefault("types_due", set())
        self._has_types_due = bool(self._types_due)
        self._ids_match = True
        for client_id in self._statements:
            if self._server_ids.get(client_id) != client_id:
                self._ids_match = False
                break
        self._recent = None
        self._status &= ~SERVER_STATUS_IN_TRANS
        self._is_transaction_unknown = False
        self._is_linked = True
        return b""

    def unlink(self) -> int:
        self._is_linked = False
        self._server_ids = {}
        self._types_due = set()
        self._has_types_due = False
        self._head = 0
        self._count = 0
        self._phase = P_IDLE
        self._server_left = 0
        self._server_continued = False
        self._is_ending = False
        self._has_told = False
        self._client_is_tail = False
        self._preparing.clear()
        self._own_answers.clear()
        self._selecting.clear()
        self._is_one_shot = False
        self._noted.clear()
        self._cursors.clear()
        self._has_cursors = False
        self._long_data.clear()
        self._has_long_data = False
        self._warnings = 0
        if self.has_warnings or self._has_counts:
            self._has_counts = False
            self._tell_pending()
        self._status &= ~SERVER_STATUS_IN_TRANS
        self._is_transaction_unknown = False
        return 0

    def disturbed(self) -> None:
        """An inspection has turned tracking on."""
        self._is_told_of = self._is_tracked and not self._is_info_own

    def take_last_words(self) -> bytes:
        words, self._last_words = self._last_words, b""
        self.has_last_words = False
        return words

    def lose(self, aborted: ErrorReply, unknown: ErrorReply) -> bytes | None:
        """See `wire.Tracker`. Each command in flight is answered by an error. A transaction that was open while nothing was
        in flight is told in the place of the next statement's answer, unless that is a ROLLBACK; MySQL knows no
        failed transaction: after error 1213 the client is outside of any."""
        if (
            self._server_left != 0
            or self._server_continued
            or self._client_continued
            or self._phase == P_FILE
            or self._has_long_data
        ):
            return None
        was_open = self._status & SERVER_STATUS_IN_TRANS != 0 or self._is_transaction_unknown or self._is_one_shot
        entries = [(self._head + index) % self._capacity for index in range(self._count)]
        may_commit = any(self._ring[8 * entry + 2] & ENTRY_COMMITS for entry in entries)
        error = aborted if was_open and not may_commit else unknown
        answer = b""
        for index, entry in enumerate(entries):
            if self._ring[8 * entry + 2] & ENTRY_OWN:
                continue
            sequence = self._ring[8 * entry + 1] if index else self._server_sequence
            if self._ring[8 * entry + 2] & ENTRY_ANSWER:
                answer += packet(self._own_answers.popleft(), sequence)
            elif self._ring[8 * entry] == COM_INVENTED and self._ring[8 * entry + 2] & ENTRY_UNTOLD == 0:
                answer += unknown_command_packet(sequence)
            else:
                answer += error_packet(error, sequence)
        if was_open and not entries:
            self._untold = aborted
            self._has_untold = True
        self.errors += self._count
        self.faults += self._count
        if self._count:
            self.note_error(error.mysql_sqlstate.encode(), self._count)
        self.requests += self._count
        self.message_size = self._client_left
        self._client_left = 0
        self._scans_text = False
        self.has_invented = False
        self.unlink()
        return answer

    def rolled_back_answer(self) -> bytes:
        """See `wire.Tracker`."""
        is_begun = self._server_left != 0 or self._server_continued or self._client_left != 0 or self._client_continued
        if not self._rolls_back or self._count != 1 or is_begun or self._has_long_data:
            return b""
        kept = SERVER_STATUS_AUTOCOMMIT | SERVER_STATUS_NO_BACKSLASH_ESCAPES
        return packet(build_ok(self._status & kept), self._server_sequence)

    def take_back(self) -> bool:
        """See `wire.Tracker`."""
        if self._server_left != 0 or self._server_continued or self._phase == P_FILE or self._has_untold:
            return False
        for index in range(self._count):
            if self._ring[8 * ((self._head + index) % self._capacity)] == COM_INVENTED:
                # Some of these are made of what is said once.
                return False
        self._client_left = 0
        self._client_continued = False
        self._scans_text = False
        self.has_invented = False
        self.unlink()
        return True

    def asks_quietly(self) -> bool:
        """An inspection would end in OK without counts and warnings, and so did the last answer: ROW_COUNT() and SHOW
        WARNINGS say the same afterwards. (FOUND_ROWS() belongs to the statement just before; LAST_INSERT_ID() stays.)"""
        return self._is_quiet


_ROLLBACKS = frozenset({b"rollback", b"rollback work"})
