# C types of tracker.py. The numbers mirror constants.py and state.py; test_state.py compares them.

cimport cython
from protocols.wire cimport (
    EDIT, FETCH, FORWARD, GATE, GATE_CLOSED, GATE_DRAIN, GATE_OPEN, INVENT, LEDGER_AS_SEEN, LEDGER_TOUCHED, SWALLOW,
    Tracker,
)

cdef enum:
    PAYLOAD_BYTES_MAX = 0xFFFFFF
    ERROR_BYTES_MAX = 65536
    SEMI_SYNC_ACK_BYTES_MAX = 1024
    HEAD_BYTES_MAX = 262144
    ID_BYTES_MAX = 19
    LOGIN_BYTES_MAX = 69632
    TEXT_CARRY_BYTES_MAX = 59
    TEXT_FETCH_BYTES_MAX = 65536
    QUEUE_MAX = 65536

cdef enum:
    CLIENT_LOCAL_FILES = 0x80
    CLIENT_SESSION_TRACK = 0x800000
    CLIENT_DEPRECATE_EOF = 0x1000000
    CLIENT_QUERY_ATTRIBUTES = 0x8000000

# Wider than what an enum of C is sure to hold.
cdef extern from *:
    """
    #define MARIADB_CLIENT_PROGRESS (1ULL << 32)
    #define MARIADB_CLIENT_STMT_BULK_OPERATIONS (1ULL << 34)
    """
    const unsigned long long MARIADB_CLIENT_PROGRESS
    const unsigned long long MARIADB_CLIENT_STMT_BULK_OPERATIONS

cdef enum:
    SERVER_STATUS_IN_TRANS = 0x0001
    SERVER_STATUS_AUTOCOMMIT = 0x0002
    SERVER_MORE_RESULTS_EXISTS = 0x0008
    SERVER_STATUS_CURSOR_EXISTS = 0x0040
    SERVER_STATUS_LAST_ROW_SENT = 0x0080
    SERVER_STATUS_NO_BACKSLASH_ESCAPES = 0x0200
    SERVER_SESSION_STATE_CHANGED = 0x4000

cdef enum:
    TRACK_SCHEMA = 1
    TRACK_STATE_CHANGE = 2
    TRACK_TRANSACTION_CHARACTERISTICS = 4
    TRACK_TRANSACTION_STATE = 5

cdef enum:
    COM_QUIT = 0x01
    COM_INIT_DB = 0x02
    COM_QUERY = 0x03
    COM_FIELD_LIST = 0x04
    COM_CREATE_DB = 0x05
    COM_DROP_DB = 0x06
    COM_REFRESH = 0x07
    COM_STATISTICS = 0x09
    COM_PROCESS_INFO = 0x0A
    COM_PROCESS_KILL = 0x0C
    COM_DEBUG = 0x0D
    COM_PING = 0x0E
    COM_CHANGE_USER = 0x11
    COM_BINLOG_DUMP = 0x12
    COM_REGISTER_SLAVE = 0x15
    COM_STMT_PREPARE = 0x16
    COM_STMT_EXECUTE = 0x17
    COM_STMT_SEND_LONG_DATA = 0x18
    COM_STMT_CLOSE = 0x19
    COM_STMT_RESET = 0x1A
    COM_SET_OPTION = 0x1B
    COM_STMT_FETCH = 0x1C
    COM_BINLOG_DUMP_GTID = 0x1E
    COM_RESET_CONNECTION = 0x1F
    COM_STMT_BULK_EXECUTE = 0xFA
    COM_INVENTED = 0xFF

cdef enum:
    BULK_TYPES = 0x80
    SEMI_SYNC_ACK = 0xEF

cdef enum:
    OK = 0x00
    LOCAL_INFILE = 0xFB
    EOF = 0xFE
    ERR = 0xFF

cdef enum:
    P_IDLE = 0
    P_SIMPLE = 1
    P_RESULT = 2
    P_COLUMNS = 3
    P_COLUMNS_END = 4
    P_ROWS = 5
    P_FILE = 6
    P_FILE_END = 7
    P_PREPARED = 8
    P_PARAMETERS = 9
    P_PARAMETERS_END = 10
    P_FIELDS = 11
    P_FIELDS_END = 12
    P_LIST = 13
    P_STATISTICS = 14
    P_DUMP = 15

cdef enum:
    TEXT_DIRTY = 1
    TEXT_OPAQUE = 2
    TEXT_NAMES = 4
    TEXT_HOLDS = 8
    TEXT_SEVERAL = 16
    TEXT_KILL = 32
    TEXT_INSERT_ID = 64
    TEXT_COUNTS = 128
    TEXT_COUNTED = 256
    TEXT_READS = 448
    TEXT_DEFINES = 512
    TEXT_UNREAD = 15

cdef enum:
    ENTRY_OPAQUE = 1
    ENTRY_NOTED = 2
    ENTRY_REPREPARE = 4
    ENTRY_COMMITS = 8
    ENTRY_UNTOLD = 16
    ENTRY_ANSWER = 32
    ENTRY_OWN = 64
    ENTRY_COUNTED = 128

cdef enum:
    T_TAKEN = 0
    T_MORE = 1
    T_FETCH = 2
    T_GATE = 3
    T_ANSWERED = 4

cdef enum:
    LEX_PLAIN = 0
    LEX_QUOTE = 1
    LEX_ESCAPE = 2
    LEX_LINE = 3
    LEX_BLOCK_START = 4
    LEX_BLOCK_M = 5
    LEX_BLOCK = 6


cdef class Statement:
    cdef:
        # Id the client knows the statement by.
        readonly unsigned long client_id
        # Text of the COM_STMT_PREPARE; None if it was too large to keep.
        readonly bytes text
        # Number of parameters.
        readonly Py_ssize_t parameters
        # Types block of the last execute that carried one, two bytes a parameter; None before.
        public bytes types
        # TEXT_… bits of its text.
        readonly int flags
        # It may end a transaction.
        readonly bint commits
        # Default database when it was prepared; empty for none.
        public bytes database


cdef class TextScan:
    cdef:
        # What was found so far, TEXT_… bits.
        int found
        # Its answer may name connections by their ids: it is a SHOW, or names CONNECTION_ID.
        readonly bint may_tell_ids
        # A statement of it may end a transaction.
        readonly bint commits
        # It is a ROLLBACK, and nothing else.
        readonly bint rolls_back
        # Where in the text we are: LEX_…
        int _lex
        # The quote that began the present string.
        unsigned char _quote
        # Backslash escapes are on.
        bint _has_escapes
        # The next word is the first of a statement.
        bint _is_lead
        # A statement has ended with ';'.
        bint _has_ended
        # The byte before this one, where it matters (comment marks, escapes); else 0.
        unsigned char _previous
        # 1 after '@', 2 after '@@', else 0.
        int _at
        # Bytes 1 to 4 and 5 to 8 of the present word in upper case, and its length.
        unsigned int _word_a
        unsigned int _word_b
        int _word_size

    cpdef begin(self, bint has_escapes)
    @cython.locals(
        position=Py_ssize_t, character="unsigned char", lex=int, at=int, size=int, a="unsigned int", b="unsigned int",
        previous="unsigned char", quote="unsigned char",
    )
    cpdef feed(self, const unsigned char* data, Py_ssize_t start, Py_ssize_t end)
    @cython.locals(a="unsigned int", b="unsigned int", size=int)
    cdef int _on_word(self) noexcept
    cdef int _first_word(self, unsigned int a, unsigned int b, int size) noexcept
    cpdef int finish(self)


cdef class MysqlTracker(Tracker):
    cdef:
        # The session's ledger (ledger.MysqlLedger).
        readonly object ledger
        # COM_CHANGE_USER as the client sent it, header included, for the session to take; empty otherwise.
        bytes _change_user
        # A KILL (wire.KillWanted) that waits at the gate for the session's `answer_kill`; None otherwise.
        object _kill_wanted
        # It does not wait in the relay: it was fetched.
        bint _is_kill_taken
        # The session has answered it, with a payload for the client, or with None: the server shall decide.
        bint _is_kill_answered
        object _kill_answer
        # What asks for ids of connections (wire.IdsWanted) and waits at the gate for `answer_ids`; or None.
        object _ids_wanted
        # The session has told them, and the statement has not gone to the server yet.
        bint _are_ids_known
        # By the server's id of a connection the one that its client knows.
        dict _ids
        # The rows that come begin with ids.
        bint _renames
        # Payloads of answers that the session gave, oldest first: of ENTRY_ANSWER.
        object _own_answers
        # Capabilities that both legs have.
        unsigned long long _capabilities
        bint _deprecates_eof
        # CLIENT_QUERY_ATTRIBUTES: parameters stand before a query's text.
        bint _has_attributes
        # MariaDB's reports of progress look like errors.
        bint _has_progress
        bint _is_linked

        # --- client side ---
        # Bytes of the client's present packet still to come.
        Py_ssize_t _client_left
        # The client's last packet was full: the next one belongs to the same payload.
        bint _client_continued
        # Sequence id the client's next packet must have where one is expected.
        int _client_sequence
        # The client's present payload is the command at the queue's tail.
        bint _client_is_tail
        # The rest of the client's present payload is dropped.
        bint _client_drops
        # The present payload is a COM_QUERY whose text is being scanned in passing.
        bint _scans_text
        # The last command that began is a ROLLBACK, and nothing was in flight before it.
        bint _rolls_back
        TextScan _text
        # The backend's leg is compressed.
        bint _is_server_packed
        # Of the execute looked at last; see _types_end.
        Py_ssize_t _types_at
        Py_ssize_t _mark

        # --- queue of commands that await their answer: a ring of entries of eight bytes ---
        # command, sequence id of the answer, ENTRY_… bits, unused, then four bytes: statement id or option.
        bytearray _ring
        Py_ssize_t _head
        Py_ssize_t _count
        Py_ssize_t _capacity

        # --- server side ---
        Py_ssize_t _server_left
        bint _server_continued
        int _server_sequence
        # P_… of state.py.
        readonly int _phase
        # Column definitions still to come in this phase.
        Py_ssize_t _definitions_left
        # Columns of the statement being prepared.
        Py_ssize_t _fields_after
        # Status flags of the last OK or EOF.
        int _status
        # An error may have left a transaction open; the next status flags will tell.
        bint _is_transaction_unknown

        # --- prepared statements ---
        # client id -> Statement: the ledger's own dict.
        dict _statements
        # client id -> the present backend's id: the backend's notes.
        dict _server_ids
        # client ids whose next execute on this backend must carry the parameter types.
        set _types_due
        bint _has_types_due
        # Every client id is the backend's id: nothing need be rewritten.
        bint _ids_match
        # The statement executed last, so that its repetition costs no look-up.
        Statement _recent
        # The statement prepared last (MariaDB's id 0xFFFFFFFF).
        Statement _newest
        # Texts of prepares in flight, oldest first; None for one too large to keep.
        object _preparing
        # Names of COM_INIT_DB in flight, oldest first.
        object _selecting
        # SET TRANSACTION was the last statement: the next one depends on it.
        bint _is_one_shot
        # (flags, text) of queries in flight that the ledger is told of when they are done, oldest first.
        object _noted
        # client ids with an open cursor, and with COM_STMT_SEND_LONG_DATA sent and not executed.
        set _cursors
        bint _has_cursors
        set _long_data
        bint _has_long_data

        # --- a backend that ends ---
        # Why the server ends the connection, in its own words, held back from the client.
        bytes _last_words
        # An ERR that nobody asked for was announced as a FETCH, and has not been given to take_server yet.
        bint _is_ending
        # What the client has to be told of its lost transaction in the place of the next statement's answer.
        object _untold
        # The next statement is answered so.
        bint _has_untold
        # The last answer was an OK that counted nothing and warned of nothing.
        bint _is_quiet

        # --- session tracking ---
        # Version of the server that was linked last.
        str _server_version
        # The client has set session_track_transaction_info itself.
        bint _is_info_own
        # The present backend may tell of changes behind an OK.
        bint _is_tracked
        # It does, of transactions too: their characteristics are known from it and not from the text.
        bint _is_told_of
        # Such an OK was announced as a FETCH, and has not been given to take_server yet.
        bint _has_told
        # It is being judged: what it tells has been noted.
        bint _is_told
        # The client asked for tracking itself.
        bint _is_shown
        # The ledger has it from the server that no table is locked, and from no text since that one may be.
        bint _is_unlocked
        # Where the info of the OK read last stands, from its packet's beginning.
        Py_ssize_t _info_at

        # --- what the last statement left, of which the next one may ask ---
        # Insert id in the OK that was read last; 0 for none.
        unsigned long long _ok_insert_id
        # The session's last one that was not 0: its LAST_INSERT_ID().
        unsigned long long _insert_id
        # The present backend does not have it.
        bint _is_insert_id_elsewhere
        # Transaction mode: no statement of the session has ended on the present backend: FOUND_ROWS() and ROW_COUNT()
        # are another's.
        bint _are_counts_elsewhere
        # The session has asked for them, so it may do so again.
        bint _reads_counts
        # The ledger knows that there are some.
        bint _has_counts

        # --- transaction mode ---
        bint _shares
        # Warnings that the last OK or EOF counted.
        int _warnings
        # The ledger knows that there are some.

    @cython.locals(
        position=Py_ssize_t, taken=Py_ssize_t, size=Py_ssize_t, sequence=int, command=int, found=int, is_whole=bint,
        verdict=int, begin=Py_ssize_t, is_off=bint,
    )
    cpdef int scan_client(self, const unsigned char* data, Py_ssize_t start, Py_ssize_t end) except -1
    cdef Py_ssize_t _find_text(self, bytes body) except -2
    @cython.locals(identifier="unsigned long", least=Py_ssize_t, need=Py_ssize_t, statement=Statement, verdict=int)
    cdef int _scan_execute(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t end, Py_ssize_t size
    ) except -1
    @cython.locals(left=Py_ssize_t, last=Py_ssize_t, count=Py_ssize_t, at=Py_ssize_t)
    cdef Py_ssize_t _types_end(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t end, Py_ssize_t size, Statement statement
    ) noexcept
    @cython.locals(begin=Py_ssize_t)
    cdef Py_ssize_t _names_end(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t end, bint is_whole, Py_ssize_t count,
        Py_ssize_t at
    ) noexcept
    @cython.locals(at=Py_ssize_t, index=Py_ssize_t, types=bytes)
    cdef bint _has_types(self, const unsigned char* data, Py_ssize_t position, Statement statement) noexcept
    @cython.locals(at=Py_ssize_t, types=bytearray)
    cdef bytes _types_of(self, const unsigned char* data, Py_ssize_t position, Statement statement)
    @cython.locals(identifier="unsigned long")
    cdef int _scan_statement(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t end, Py_ssize_t size, int command
    ) except -1
    @cython.locals(
        position=Py_ssize_t, taken=Py_ssize_t, size=Py_ssize_t, sequence=int, first=int, phase=int, status=int,
        need=Py_ssize_t, is_end=bint, is_off=bint,
    )
    cpdef int scan_server(self, const unsigned char* data, Py_ssize_t start, Py_ssize_t end) except -1
    @cython.locals(
        at=Py_ssize_t, last=Py_ssize_t, index=Py_ssize_t, turn=int, first=int, width=int, value="unsigned long long",
    )
    cdef int _ok_status(self, const unsigned char* data, Py_ssize_t position, Py_ssize_t size) except -1
    cdef int _tell_pending(self) except -1
    @cython.locals(is_theirs=bint)
    cdef int _judge_reads(self, int found) except -1
    cdef int _query_flags(self, int found) noexcept
    @cython.locals(entry=Py_ssize_t, command=int)
    cdef bint _tells_ids(self) noexcept
    @cython.locals(
        count=Py_ssize_t, number="unsigned long long", index=Py_ssize_t, digit=int, length=Py_ssize_t, text=bytes,
        edited=bytearray, stop=Py_ssize_t
    )
    cdef bint _rename(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t size, int sequence
    ) except -1
    cdef bint _wants_told(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t size, Py_ssize_t end
    ) noexcept
    @cython.locals(at=Py_ssize_t, last=Py_ssize_t)
    cdef bint _is_small_talk(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t size, Py_ssize_t end
    ) noexcept
    @cython.locals(is_plain=bint, edited=bytearray)
    cdef int _judge_told(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t size, Py_ssize_t end, int sequence
    ) except -1
    @cython.locals(
        stop=Py_ssize_t, flags=Py_ssize_t, at=Py_ssize_t, last=Py_ssize_t, index=Py_ssize_t, kept=Py_ssize_t,
        edited=bytearray
    )
    cdef bint _strip_told(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t size, Py_ssize_t end, int sequence
    ) except -1
    @cython.locals(begin=Py_ssize_t, index=Py_ssize_t, kind=int, size=Py_ssize_t, body=Py_ssize_t)
    cdef Py_ssize_t _keep_shown(
        self, const unsigned char* data, Py_ssize_t at, Py_ssize_t last, bytearray edited, Py_ssize_t stop
    ) except -1
    @cython.locals(special=int, kind=int, body=Py_ssize_t)
    cdef bint _note_plain(self, const unsigned char* data, Py_ssize_t at, Py_ssize_t last) noexcept
    cdef bint _head_is_large(self) noexcept
    cdef bint _client_is_on_its_way(self) noexcept
    cdef int _end_status(self, const unsigned char* data, Py_ssize_t position, Py_ssize_t size) except -1
    cdef int _eof_status(self, const unsigned char* data, Py_ssize_t position, Py_ssize_t size) except -1
    @cython.locals(first=int, count=Py_ssize_t)
    cdef Py_ssize_t _column_count(self, const unsigned char* data, Py_ssize_t position, Py_ssize_t size) except -1
    cpdef bint at_boundary(self) noexcept
    cpdef bint is_idle(self) noexcept
    cdef int _renumber(self, Py_ssize_t position, Py_ssize_t size, int sequence) except -1
    cdef int _judge_kill(self, object wanted) except -1
    cdef int _judge_ids(self, object wanted) except -1
    cdef _begin_client(self, Py_ssize_t size)
    cdef Statement _find(self, unsigned long identifier)
    cdef _begin_execute(self, int command, unsigned long identifier, Statement statement)
    cdef _note_statement_command(self, int command, unsigned long identifier)
    cdef _set_tail_sequence(self, int sequence)
    @cython.locals(entry=Py_ssize_t)
    cdef int _enqueue(self, int command, unsigned long argument, int flags) except -1
    cdef int _grow(self) except -1
    cdef int _begin_head(self) noexcept
    cdef int _pop(self) except -1
    cdef int _set_status(self, int status) except -1
    @cython.locals(entry=Py_ssize_t, command=int, identifier="unsigned long", had_counts=bint)
    cdef int _finish(self, bint is_error) except -1
    cdef int _fail(self) except -1
    cdef int _end_definitions(self) except -1
    cdef int _end_statement(self, unsigned long identifier) except -1


cdef bint _is_clients_own(int first, int second) noexcept
