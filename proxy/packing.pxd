# cython: language_level=3
"""What the data plane uses per chunk of `proxy/packing.pyx`; the words are explained there."""

# How `unpack` ended that gave no bytes.
cdef enum:
    PACKING_FAILED = -1   # `why` tells; the connection is of no use

cdef enum:
    # Most plain bytes of one compressed packet that we make.
    PIECE_BYTES = 65536


cdef class Packing:
    cdef:
        # Told once something could not be read.
        readonly str why
        # What is sent is made of packets whose beginnings matter: the peer is a server.
        bint _is_to_server
        bint _is_zstd
        int _level

        # --- reading ---
        # What came from the peer and is not unpacked: in somebody else's memory, or in our own (_kept).
        const unsigned char* _in
        Py_ssize_t _in_left
        unsigned char* _kept
        # Header of the present packet, as far as it has come.
        unsigned char _header[7]
        int _header_have
        # Of its body: bytes still to come, and what they are still to become; the latter -1 where it is not compressed.
        Py_ssize_t _packed_left
        Py_ssize_t _plain_left
        # The stream that unpacks it; NULL where none is needed.
        void* _stream
        # That stream filled all the room it had the last time.
        bint _is_full
        # Something has come since we last began a command.
        bint _has_heard
        # A command was begun before the last one was answered: nobody can tell any more what number is due.
        bint _is_pipelined
        # Number of the packet that has to come, if the peer is a server.
        int _in_sequence

        # --- sending ---
        # Number of the next packet.
        int _out_sequence
        # Of the packet within (of the ordinary protocol) that is under way: bytes still to go.
        Py_ssize_t _inner_left
        bint _inner_is_full
        int _inner_sequence
        # The command that begins was announced by `begin`.
        bint _is_begun
        # Plain bytes that wait for more of them, at most a piece.
        unsigned char* _plain
        Py_ssize_t plain_size
        Py_ssize_t _plain_capacity
        # The last piece that was made, in memory that all share.
        const unsigned char* packed
        Py_ssize_t packed_size

    cdef void feed(self, const unsigned char* data, Py_ssize_t size) noexcept
    cdef bint has_rest(self) noexcept
    cdef int keep_rest(self) except -1
    cdef Py_ssize_t unpack(self, unsigned char* into, Py_ssize_t room) except -2
    cdef int _begin_packet(self) except -2
    cdef int _inflate(self, unsigned char* into, Py_ssize_t room, Py_ssize_t* made) except -2
    cdef int _fail(self, str why) except -2
    cdef Py_ssize_t span(self, const unsigned char* data, Py_ssize_t size) except -1
    cdef void begin(self) noexcept
    cdef int note(self, const unsigned char* data, Py_ssize_t size) except -1
    cdef int pack_noted(self) except -1
    cdef int pack(self, const unsigned char* data, Py_ssize_t size) except -1
