# What every protocol's tracker offers to the relay. The words are explained in wire.py.

cdef enum:
    # Verdicts of a scan.
    FORWARD = 0
    FETCH = 1
    SWALLOW = 2
    GATE = 3
    INVENT = 4
    EDIT = 5

cdef enum:
    # Values of Tracker.ledger_news.
    LEDGER_AS_SEEN = 0
    LEDGER_TOUCHED = 1
    LEDGER_UNWATCHED = 2

cdef enum:
    # Positions of the gate.
    GATE_OPEN = 0
    GATE_DRAIN = 1
    GATE_CLOSED = 2


cdef class Tracker:
    # What every chunk touches stands first: the fewer cache lines, the fewer waits for memory.
    cdef:
        # Offset of the first byte the last scan's verdict does not let pass.
        readonly Py_ssize_t stop
        # GATE_OPEN, GATE_DRAIN or GATE_CLOSED. Opened by the relay and its owner only; closed by them, and by the
        # tracker itself before a message that the session has to decide on (MySQL's KILL).
        public int gate
        # Bytes are ready in take_invented() although no server message is due before them.
        readonly bint has_invented
        # The server said that it ends the connection, in words that are held back: take_last_words().
        readonly bint has_last_words
        # MySQL: the last answer counted warnings, and the client may ask its backend for them next.
        readonly bint has_warnings
        # The client said goodbye (Terminate, COM_QUIT).
        readonly bint client_left
        # Error messages the server sent to the client, since the session began.
        readonly unsigned long long errors
        # Those of them that are not the client's own doing: see `CLIENTS_OWN` in wire.py.
        readonly unsigned long long faults
        # Requests whose answer is complete, since the session began.
        readonly unsigned long long requests
        # Transactions that ended, since the session began.
        readonly unsigned long long transactions
        # Whole size in bytes, header included, of the message a FETCH or SWALLOW verdict speaks of; with EDIT the count
        # of bytes that are replaced.
        readonly Py_ssize_t message_size
        # What EDIT puts in their place: the first `edited_size` bytes of a buffer that trackers share.
        readonly bytearray edited
        readonly Py_ssize_t edited_size
        # Whether the ledger may have changed since somebody saw that it is empty. LEDGER_AS_SEEN: no; LEDGER_TOUCHED:
        # yes; LEDGER_UNWATCHED: this protocol's tracker does not tell.
        public int ledger_news
        # PostgreSQL: the transaction's id is learnt before a COMMIT is passed on.
        public bint resolves_commits
        # Process ids of backends, and what their clients were told instead.
        public dict shown_ids
        # MySQL: the client's leg is compressed. Its sequence ids begin right and then are what they like.
        public bint is_client_packed
        # Errors by class of SQLSTATE, counted by `note_error`.
        public dict error_classes

    cpdef int scan_client(self, const unsigned char* data, Py_ssize_t start, Py_ssize_t end) except -1
    cpdef int scan_server(self, const unsigned char* data, Py_ssize_t start, Py_ssize_t end) except -1
    cpdef bint at_boundary(self) noexcept
    cpdef bint is_idle(self) noexcept
    cpdef bytes link(self, object backend, dict notes)
    cpdef int unlink(self) except -1


cdef class BackendFacts:
    cdef:
        readonly str server_version
        readonly long long process_id
        readonly bytes secret
        readonly object parameters
        readonly unsigned long long capabilities
        readonly int character_set
        readonly str auth_plugin
        readonly object packing
        readonly tuple charsets


cdef class Startup:
    cdef:
        readonly str user
        readonly str database
        readonly tuple parameters
        readonly unsigned long long capabilities
        readonly int character_set


cdef class ScramKeys:
    cdef:
        readonly bytes client_key
        readonly bytes server_key
        readonly bytes salt
        readonly long iterations


cdef class CredentialWanted:
    cdef:
        readonly str user
        readonly str database
        readonly bint is_replication


cdef class LoginProven:
    cdef:
        readonly Startup startup
        readonly object credential
