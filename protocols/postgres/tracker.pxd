# See tracker.py.

import cython

from protocols.wire cimport (
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
    Tracker,
)
from protocols.postgres.statements cimport Names, Naming, OnBackend, Statement
from protocols.postgres.text cimport ending_of, is_plain, may_commit

cdef enum:
    # The same numbers as in constants.py, where they are explained.
    LENGTH_MAX = 0x40000003
    PARSE_BYTES_MAX = 16777216
    QUERY_BYTES_MAX = 1048576
    BIND_NAMES_BYTES_MAX = 4096
    SMALL_BYTES_MAX = 1048576
    COMMAND_TAG_BYTES_MAX = 1024
    ERROR_BYTES_MAX = 65536
    IN_FLIGHT_MAX = 16777216
    EDITED_BYTES_MAX = 256

    PARSE = 1
    BIND = 2
    DESCRIBE = 3
    EXECUTE = 4
    CLOSE = 5
    SYNC = 6
    QUERY = 7
    CALL = 8
    COPY_END = 9
    KIND = 15
    SWALLOWED = 16
    INVENTED = 32
    WATCHED = 64
    LASTING = 128

    COMMIT = 1
    ROLLBACK = 2

    PREPARED = 1
    BOUND = 2
    EXECUTED = 3

    CLIENT_REFUSE = 0
    CLIENT_PASS = 10
    CLIENT_LEAVE = 11

    MOVE_REFUSE = 0
    MOVE_PASS = 1
    MOVE_ANSWER = 2
    MOVE_READY = 3
    MOVE_FAIL = 4
    MOVE_COPY_IN = 5
    MOVE_NOTE = 6
    MOVE_COMPLETE = 7


cdef class PostgresTracker(Tracker):
    # What every chunk touches stands first: the fewer cache lines, the fewer waits for memory.
    cdef:
        # Bytes of the client's current message still to pass.
        Py_ssize_t _client_left
        # Bytes of the server's current message still to pass.
        Py_ssize_t _server_left
        # A fetched message has been announced and not yet been given to take_client, take_server.
        bint _client_fetching
        bint _server_fetching
        # Answers that are due: a ring of bytes, its size less one, and the counts of entries ever taken and put.
        bytearray _ring
        Py_ssize_t _mask
        Py_ssize_t _head
        Py_ssize_t _tail
        # Entries of the ring that a ReadyForQuery answers.
        Py_ssize_t _units
        # Status byte of the last ReadyForQuery: I, T or E.
        int _tx
        # The request at the ring's head, or the batch up to its Sync, has been answered by an error.
        bint _unit_failed
        # 0: no COPY IN; 1: the client's data are awaited; 2: the client has ended its data.
        int _copying
        # The head of the ring has no answer from the server: take_invented is due.
        bint _invent_due
        # The server ignores everything up to the next Sync, which the client has not sent yet.
        bint _skipping
        # Messages of the extended protocol were sent since the last Sync.
        bint _unsynced
        # Legal moves: see state.py.
        bytearray _client_table
        bytearray _server_table
        # Syncs that a COPY IN took, as far as we know: the server may have failed before it read them.
        Py_ssize_t _syncs_in_copy
        # Syncs the client has sent that count.
        Py_ssize_t _syncs_sent
        # Entries of the ring with LASTING.
        Py_ssize_t _lasting_in_flight
        # Something that may outlive its transaction ran since the last ReadyForQuery with status I.
        bint _lasting_ran
        # Transaction mode: so did something that changes tables or types.
        bint _schema_changed
        # A Query sent in an open transaction may end it well; reset when nothing is in flight.
        bint _may_commit
        # The last statement that ended a transaction and was sent while nothing was in flight: COMMIT or ROLLBACK.
        int _ending
        # The ring's tail behind it; -1: none.
        Py_ssize_t _end_tail
        # Such a one, in the extended protocol, whose Sync has not come: PREPARED, BOUND or EXECUTED; 0: none.
        int _end_unsynced
        # The name it was prepared by.
        bytes _end_name
        # A COMMIT of the extended protocol has been answered, and its Sync has not.
        bint _has_committed
        # Something of the extended protocol has run, and its Sync has not been answered.
        bint _has_run
        # The portal last bound is of a COMMIT, in a transaction that was lost with its server.
        bint _bound_commits
        # Names of statements that may end a transaction, and how (see _ending; 0: they do more than that); None as long
        # as there is none.
        dict _end_names
        # What these names look like, a bit each; nothing is taken away.
        unsigned long long _end_marks
        # Error message the client is owed for a loss at a moment when it awaited nothing; None if none.
        object _untold
        # The last Parse of the unnamed statement that the server accepted, if the client may still use it.
        object _unnamed
        # Requests under way that make or end the unnamed statement.
        Py_ssize_t _unnamed_pending
        # Bind, and Describe of a statement, have to be seen for their names.
        bint _fetches_names
        # The portal last bound is of a statement that may change lasting state.
        bint _bound_lasting
        # Bytes that follow a fetched part of a client's message and pass as they are.
        Py_ssize_t _left_behind_fetched
        # They are not passed on.
        bint _drops_rest
        # Whole sizes of those messages, or of their fetched parts.
        Py_ssize_t _client_fetch_size
        Py_ssize_t _server_fetch_size
        # So may the unnamed statement, and some named one of this session (see _may_commit).
        bint _unnamed_commits
        bint _named_commits
        # The ring's tail behind the Execute of a COMMIT of what was lost; -1: none. And its error is not to be told.
        Py_ssize_t _stopped_tail
        bint _skips_error
        # The backend was lost: the next one is brought to where the client thinks it is (wreckage()).
        bint _is_lost
        # The backend's unnamed statement is this session's, or there is none.
        bint _unnamed_here
        # The Syncs sent before the last of those under way.
        Py_ssize_t _unnamed_sync
        # Sessions share backends: transaction mode.
        bint _shares
        # What the last of those under way makes it.
        object _unnamed_planned
        # The unnamed statement may change lasting state.
        bint _unnamed_lasting
        # Most statements kept on one backend (transaction mode).
        Py_ssize_t _statements_max
        # Names of the client's statements that may change lasting state (session mode); None as long as there is none.
        set _lasting_names
        # The client's names of statements (transaction mode).
        Names _names
        # Objects behind the ring's WATCHED entries, in their order; None while there is none.
        object _watched
        # Session mode: by name, the statements that are being made again: the Syncs sent before each of those requests.
        dict _making
        object _ledger
        # The backend's memory: see link().
        dict _notes
        # ParameterStatus values as the client knows them; None before the first link().
        object _client_view
        # The id the server gave for the transaction of that COMMIT: b"0" if it had none, None if it has not said yet.
        object _transaction
        # What the server said as it ended the connection.
        bytes _last_words
        # A mapping of parameters that the client's view agrees with; None if there is none.
        object _told_parameters

    @cython.locals(
        position=Py_ssize_t, left=Py_ssize_t, size=Py_ssize_t, tag=cython.uchar, sent=int, verdict=int, ending=int,
        minds_end=bint,
    )
    cpdef int scan_client(self, const unsigned char* data, Py_ssize_t start, Py_ssize_t end) except -1

    @cython.locals(
        position=Py_ssize_t, left=Py_ssize_t, size=Py_ssize_t, tag=cython.uchar, entry=int, move=int, status=int
    )
    cpdef int scan_server(self, const unsigned char* data, Py_ssize_t start, Py_ssize_t end) except -1

    cpdef bint at_boundary(self) noexcept
    cpdef bint is_idle(self) noexcept

    cdef int _at_gate(self, unsigned char tag) noexcept
    cdef int _fetch_client(self, Py_ssize_t position, Py_ssize_t size, Py_ssize_t whole=*) except -1
    cdef bint _has_shown_ids(self)
    cdef bint _may_end_alone(self) noexcept
    cdef bint _asks_before(self, int ending) noexcept
    cdef int _stands_alone(self, int ending) except -1
    @cython.locals(begin=Py_ssize_t)
    cdef bint _minds_end(self, const unsigned char* data, Py_ssize_t position, Py_ssize_t end) noexcept
    cdef bint _is_end_marked(self, Py_ssize_t size, unsigned char last) noexcept
    @cython.locals(mark=cython.ulonglong)
    cdef _note_end(self, bytes name, bytes text)
    @cython.locals(entry=int)
    cdef bytes _answer_end(self, bytes done)
    cdef int _fetch_server(self, Py_ssize_t position, Py_ssize_t size) except -1
    cdef int _push(self, int entry) except -1
    @cython.locals(entry=int)
    cdef int _pop(self) except -1
    @cython.locals(entry=int)
    cdef int _uncover(self) except -1
    @cython.locals(entry=int, is_refused=bint)
    cdef int _fail(self) except -1
    @cython.locals(dropped=Py_ssize_t, entry=int)
    cdef int _begin_copy_in(self) except -1
    cdef int _end_copy_in(self) except -1
    cdef int _settle_ready(self, int status) except -1
    @cython.locals(begin=Py_ssize_t, last=Py_ssize_t)
    cdef bint _edit_bind(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t end, Py_ssize_t size
    ) except -1
    @cython.locals(
        last=Py_ssize_t,
        behind=Py_ssize_t,
        length=Py_ssize_t,
        whole=Py_ssize_t,
        i=Py_ssize_t,
        naming=Naming,
        statement=Statement,
        called=bytes,
        edited=bytearray,
    )
    cdef bint _edit_name(
        self,
        const unsigned char* data,
        Py_ssize_t position,
        Py_ssize_t begin,
        Py_ssize_t end,
        Py_ssize_t size,
        int entry,
    ) except -1
    @cython.locals(held=OnBackend)
    cdef OnBackend _on_backend(self)
    cdef int _decide_fetching(self) except -1
    cpdef bytes link(self, object backend, dict notes)
    cpdef int unlink(self) except -1
    @cython.locals(entry=int)
    cdef int _drop_in_flight(self) except -1
