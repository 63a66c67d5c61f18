# cython: language_level=3
"""MySQL's compressed protocol, called from C: packets around the ordinary stream, packed by zlib or by zstd.

A compressed packet has a header of seven bytes (three of its size, one of sequence id, three of the size it has
unpacked, 0 where it is not packed) and stands for any part of the ordinary stream. Each is packed by itself, so
nothing is kept between them: packing is done in memory that all connections of the process share, and a stream for
unpacking is lent for as long as a packet is under way. An idle connection keeps neither.

Knows nothing of descriptors: who has a Packing feeds it what came from the peer, unpacks as much as it has room for,
and sends what was packed. That is what bounds a packet that becomes a thousand times larger: nobody unpacks what
nobody takes.

Sequence ids. They begin at 0 with each command and count on in both directions; the ordinary packets within have ids of
their own, which servers and clients set to these ones now and then, and do not check. Towards a server it therefore
matters where a command begins: at an ordinary packet with id 0 (which a long file of LOAD DATA LOCAL has, too, behind
255).
"""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

cdef extern from "zlib.h":
    ctypedef struct z_stream:
        unsigned char* next_in
        unsigned int avail_in
        unsigned char* next_out
        unsigned int avail_out
    int inflateInit(z_stream* stream)
    int inflateReset(z_stream* stream)
    int inflate(z_stream* stream, int flush)
    int inflateEnd(z_stream* stream)
    int deflateInit(z_stream* stream, int level)
    int deflateReset(z_stream* stream)
    int deflate(z_stream* stream, int flush)
    int Z_OK
    int Z_STREAM_END
    int Z_BUF_ERROR
    int Z_NO_FLUSH
    int Z_FINISH
    int Z_DEFAULT_COMPRESSION

cdef extern from "zstd.h":
    ctypedef struct ZSTD_CCtx:
        pass
    ctypedef struct ZSTD_DCtx:
        pass
    ctypedef struct ZSTD_inBuffer:
        const void* src
        size_t size
        size_t pos
    ctypedef struct ZSTD_outBuffer:
        void* dst
        size_t size
        size_t pos
    ctypedef enum ZSTD_dParameter:
        ZSTD_d_windowLogMax
    ctypedef enum ZSTD_ResetDirective:
        ZSTD_reset_session_only
    ZSTD_CCtx* ZSTD_createCCtx()
    size_t ZSTD_compressCCtx(
        ZSTD_CCtx* context, void* into, size_t room, const void* data, size_t size, int level
    )
    ZSTD_DCtx* ZSTD_createDCtx()
    size_t ZSTD_freeDCtx(ZSTD_DCtx* context)
    size_t ZSTD_DCtx_setParameter(ZSTD_DCtx* context, ZSTD_dParameter parameter, int value)
    size_t ZSTD_DCtx_reset(ZSTD_DCtx* context, ZSTD_ResetDirective what)
    size_t ZSTD_decompressStream(ZSTD_DCtx* context, ZSTD_outBuffer* into, ZSTD_inBuffer* data)
    unsigned int ZSTD_isError(size_t code)

cdef enum:
    HEADER_BYTES = 7
    INNER_HEADER_BYTES = 4
    INNER_BYTES_MAX = 16777215
    # Smaller ones are sent as they are (MIN_COMPRESS_LENGTH of MySQL's my_sys.h).
    LEAST_BYTES = 50
    # What unpacking by zstd may use, as a power of two: a packet's size has 24 bits.
    WINDOW_LOG_MAX = 24
    # Not compressed.
    STORED = -1

ZSTD_LEVEL_MAX = 22

# Larger by the header than the piece that is packed: what does not become smaller is sent as it is.
cdef unsigned char PACKED[HEADER_BYTES + PIECE_BYTES]

# Made when they are first needed, and then kept: a worker has one thread.
cdef z_stream* _deflating = NULL
cdef ZSTD_CCtx* _zstd_packing = NULL
# One stream of each kind that nobody needs now; NULL for none.
cdef void* _spare_inflate = NULL
cdef void* _spare_zstd = NULL


cdef void* _take_stream(bint is_zstd) except NULL:
    global _spare_inflate, _spare_zstd
    cdef void* stream
    cdef z_stream* inflating
    if is_zstd:
        stream = _spare_zstd
        _spare_zstd = NULL
        if stream == NULL:
            stream = ZSTD_createDCtx()
            if stream == NULL:
                raise MemoryError()
            ZSTD_DCtx_setParameter(<ZSTD_DCtx*> stream, ZSTD_d_windowLogMax, WINDOW_LOG_MAX)
        return stream
    stream = _spare_inflate
    _spare_inflate = NULL
    if stream == NULL:
        inflating = <z_stream*> malloc(sizeof(z_stream))
        if inflating == NULL:
            raise MemoryError()
        _clear(inflating)
        if inflateInit(inflating) != Z_OK:
            free(inflating)
            raise MemoryError()
        stream = inflating
    return stream


cdef void _give_stream(void* stream, bint is_zstd) noexcept:
    global _spare_inflate, _spare_zstd
    if is_zstd:
        if _spare_zstd == NULL:
            ZSTD_DCtx_reset(<ZSTD_DCtx*> stream, ZSTD_reset_session_only)
            _spare_zstd = stream
        else:
            ZSTD_freeDCtx(<ZSTD_DCtx*> stream)
    elif _spare_inflate == NULL:
        inflateReset(<z_stream*> stream)
        _spare_inflate = stream
    else:
        inflateEnd(<z_stream*> stream)
        free(stream)


cdef void _clear(z_stream* stream) noexcept:
    # With its allocators, which zlib then chooses itself.
    cdef unsigned char* at = <unsigned char*> stream
    cdef size_t index
    for index in range(sizeof(z_stream)):
        at[index] = 0


cdef class Packing:
    """One connection's compression: what came and is not unpacked, and what waits to be packed."""

    def __cinit__(self):
        self._in = self._kept = self._plain = NULL
        self._stream = NULL
        self.why = ""

    def __init__(self, str algorithm, int level, *, bint is_to_server):
        """`algorithm`: zlib or zstd; `level`: of zstd, 1 to 22."""
        assert algorithm in ("zlib", "zstd")
        self._is_zstd = algorithm == "zstd"
        self._level = min(max(level, 1), 22)
        self._is_to_server = is_to_server
        self._has_heard = True

    def __dealloc__(self):
        free(self._kept)
        free(self._plain)
        if self._stream != NULL:
            _give_stream(self._stream, self._is_zstd)

    # --- reading ---

    cdef void feed(self, const unsigned char* data, Py_ssize_t size) noexcept:
        """What came from the peer; unpacked from where it lies. Only where there is no rest."""
        self._in = data
        self._in_left = size

    cdef bint has_rest(self) noexcept:
        return self._in_left > 0 or self._is_full

    cdef int keep_rest(self) except -1:
        """The memory that was fed is somebody else's again: keep what is left of it, or give back what was kept."""
        cdef unsigned char* kept
        if self._in_left == 0:
            self._in = NULL
            free(self._kept)
            self._kept = NULL
            return 0
        if self._kept != NULL:
            # It is what is being unpacked: `_in` points into it.
            return 0
        kept = <unsigned char*> malloc(self._in_left)
        if kept == NULL:
            raise MemoryError()
        memcpy(kept, self._in, self._in_left)
        self._kept = kept
        self._in = kept
        return 0

    cdef Py_ssize_t unpack(self, unsigned char* into, Py_ssize_t room) except -2:
        """As much of the ordinary stream as there is, at most `room` bytes; 0 where more has to come first,
        PACKING_FAILED where it is malformed."""
        cdef Py_ssize_t have = 0
        cdef Py_ssize_t take
        cdef Py_ssize_t made
        while have < room and (self._in_left > 0 or self._is_full):
            if self._header_have < HEADER_BYTES:
                take = min(HEADER_BYTES - self._header_have, self._in_left)
                memcpy(self._header + self._header_have, self._in, take)
                self._header_have += <int> take
                self._in += take
                self._in_left -= take
                if self._header_have == HEADER_BYTES and self._begin_packet() < 0:
                    return PACKING_FAILED
                continue
            if self._plain_left == STORED:
                take = min(min(self._packed_left, self._in_left), room - have)
                memcpy(into + have, self._in, take)
                self._in += take
                self._in_left -= take
                self._packed_left -= take
                have += take
                if self._packed_left == 0:
                    self._header_have = 0
                continue
            made = 0
            if self._inflate(into + have, room - have, &made) < 0:
                return PACKING_FAILED
            have += made
        return have

    cdef int _begin_packet(self) except -2:
        """Its header is complete. PACKING_FAILED: it is malformed."""
        cdef unsigned char* header = self._header
        cdef int sequence = header[3]
        self._packed_left = header[0] | header[1] << 8 | header[2] << 16
        self._plain_left = header[4] | header[5] << 8 | header[6] << 16
        if self._packed_left == 0:
            return self._fail("an empty compressed packet")
        if self._is_to_server:
            if not self._has_heard:
                self._in_sequence = self._out_sequence
            if sequence != self._in_sequence and not self._is_pipelined:
                return self._fail("a compressed packet out of order")
            self._in_sequence = (sequence + 1) & 0xFF
        else:
            if sequence != 0 and sequence != self._out_sequence:
                return self._fail("a compressed packet out of order")
            self._out_sequence = (sequence + 1) & 0xFF
        self._has_heard = True
        if self._plain_left == 0:
            self._plain_left = STORED
        elif self._stream == NULL:
            self._stream = _take_stream(self._is_zstd)
        return 0

    cdef int _inflate(self, unsigned char* into, Py_ssize_t room, Py_ssize_t* made) except -2:
        """Unpack some of the present packet's body. PACKING_FAILED: it is malformed."""
        cdef Py_ssize_t size = min(self._packed_left, self._in_left)
        cdef Py_ssize_t wanted = min(room, self._plain_left)
        cdef Py_ssize_t used
        cdef bint has_ended
        cdef z_stream* inflating
        cdef ZSTD_inBuffer data
        cdef ZSTD_outBuffer output
        cdef size_t result
        cdef int code
        if self._is_zstd:
            data.src = self._in
            data.size = size
            data.pos = 0
            output.dst = into
            output.size = wanted
            output.pos = 0
            result = ZSTD_decompressStream(<ZSTD_DCtx*> self._stream, &output, &data)
            if ZSTD_isError(result):
                return self._fail("a packet that zstd cannot unpack")
            used = data.pos
            made[0] = output.pos
            has_ended = result == 0
        else:
            inflating = <z_stream*> self._stream
            inflating.next_in = <unsigned char*> self._in
            inflating.avail_in = <unsigned int> size
            inflating.next_out = into
            inflating.avail_out = <unsigned int> wanted
            code = inflate(inflating, Z_NO_FLUSH)
            if code != Z_OK and code != Z_STREAM_END and code != Z_BUF_ERROR:
                return self._fail("a packet that zlib cannot unpack")
            used = size - inflating.avail_in
            made[0] = wanted - inflating.avail_out
            has_ended = code == Z_STREAM_END
        self._in += used
        self._in_left -= used
        self._packed_left -= used
        self._plain_left -= made[0]
        # It may have more to give, although it has taken all there is.
        self._is_full = not has_ended and made[0] == wanted and made[0] > 0 and self._plain_left > 0
        if has_ended:
            if self._packed_left != 0 or self._plain_left != 0:
                return self._fail("a compressed packet of another size than it says")
            _give_stream(self._stream, self._is_zstd)
            self._stream = NULL
            self._header_have = 0
        elif self._packed_left == 0 and (self._plain_left == 0 or made[0] < wanted):
            return self._fail("a compressed packet that does not end")
        elif used == 0 and made[0] == 0 and size > 0:
            return self._fail("a compressed packet of another size than it says")
        return 0

    cdef int _fail(self, str why) except -2:
        self.why = why
        self._in_left = 0
        self._is_full = False
        return PACKING_FAILED

    # --- sending ---

    cdef Py_ssize_t span(self, const unsigned char* data, Py_ssize_t size) except -1:
        """How many of the bytes belong to what went before. 0: a command begins here, which `begin` has to be told."""
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t take
        cdef int sequence
        if not self._is_to_server:
            return size
        while at < size:
            if self._inner_left > 0:
                take = min(self._inner_left, size - at)
                self._inner_left -= take
                at += take
                continue
            assert size - at >= INNER_HEADER_BYTES, "headers are sent whole"
            sequence = data[at + 3]
            if self._is_begun:
                self._is_begun = False
            elif sequence == 0 and not self._inner_is_full and (self._inner_sequence != 255 or self._has_heard):
                return at
            elif not self._inner_is_full and self._has_heard:
                # A file that the server has asked for: its packets go on where the server's question stood.
                self._out_sequence = self._in_sequence
                self._has_heard = False
            self._inner_left = data[at] | data[at + 1] << 8 | data[at + 2] << 16
            self._inner_is_full = self._inner_left == INNER_BYTES_MAX
            self._inner_sequence = sequence
            at += INNER_HEADER_BYTES
        return at

    cdef void begin(self) noexcept:
        """A command begins with the next byte. What was noted has been packed."""
        self._is_begun = True
        self._out_sequence = 0
        if not self._has_heard:
            self._is_pipelined = True
        self._has_heard = False

    cdef int note(self, const unsigned char* data, Py_ssize_t size) except -1:
        """Keep plain bytes; there is room for them in a piece."""
        cdef Py_ssize_t capacity
        cdef unsigned char* grown
        if self.plain_size + size > self._plain_capacity:
            capacity = min(max(self.plain_size + size, 2 * self._plain_capacity), PIECE_BYTES)
            grown = <unsigned char*> realloc(self._plain, capacity)
            if grown == NULL:
                raise MemoryError()
            self._plain = grown
            self._plain_capacity = capacity
        memcpy(self._plain + self.plain_size, data, size)
        self.plain_size += size
        return 0

    cdef int pack_noted(self) except -1:
        try:
            return self.pack(self._plain, self.plain_size)
        finally:
            free(self._plain)
            self._plain = NULL
            self.plain_size = self._plain_capacity = 0

    cdef int pack(self, const unsigned char* data, Py_ssize_t size) except -1:
        """Make a compressed packet of at most a piece; it stands in `packed` until the next one of any connection."""
        global _deflating, _zstd_packing
        cdef Py_ssize_t made = 0
        cdef size_t result
        assert 0 < size <= PIECE_BYTES, "one piece at a time"
        if size >= LEAST_BYTES:
            if self._is_zstd:
                if _zstd_packing == NULL:
                    _zstd_packing = ZSTD_createCCtx()
                    if _zstd_packing == NULL:
                        raise MemoryError()
                result = ZSTD_compressCCtx(
                    _zstd_packing, PACKED + HEADER_BYTES, size - 1, data, size, self._level
                )
                made = 0 if ZSTD_isError(result) else <Py_ssize_t> result
            else:
                if _deflating == NULL:
                    _deflating = <z_stream*> malloc(sizeof(z_stream))
                    if _deflating == NULL:
                        raise MemoryError()
                    _clear(_deflating)
                    if deflateInit(_deflating, Z_DEFAULT_COMPRESSION) != Z_OK:
                        free(_deflating)
                        _deflating = NULL
                        raise MemoryError()
                _deflating.next_in = <unsigned char*> data
                _deflating.avail_in = <unsigned int> size
                _deflating.next_out = PACKED + HEADER_BYTES
                _deflating.avail_out = <unsigned int> (size - 1)
                if deflate(_deflating, Z_FINISH) == Z_STREAM_END:
                    made = size - 1 - _deflating.avail_out
                deflateReset(_deflating)
        # Neither smaller nor large enough: as it is.
        PACKED[4] = (size & 0xFF) if made else 0
        PACKED[5] = ((size >> 8) & 0xFF) if made else 0
        PACKED[6] = ((size >> 16) & 0xFF) if made else 0
        if made == 0:
            memcpy(PACKED + HEADER_BYTES, data, size)
            made = size
        PACKED[0] = made & 0xFF
        PACKED[1] = (made >> 8) & 0xFF
        PACKED[2] = (made >> 16) & 0xFF
        PACKED[3] = self._out_sequence
        self._out_sequence = (self._out_sequence + 1) & 0xFF
        self.packed = PACKED
        self.packed_size = HEADER_BYTES + made
        return 0
