# cython: language_level=3
"""The per-chunk path: bytes from one descriptor to another, with a tracker looking at message headers.

Responsible for descriptors, partial sends, back-pressure, and for doing what a tracker's verdict says (the words are
explained in `protocols/wire.py`). Refuses to know what a message means, what a session is for, or which engine a
server side belongs to: its owner, the session, is told of the few events that matter.

A chunk that is forwarded whole touches no Python object: it is received into one buffer that all relays of the
process share, judged there, and sent from there. Only what could not be sent, or is held back by the gate, is copied.

Readiness comes from one epoll instance of our own, which the event loop watches as a single descriptor: one call from
the loop serves every link that is ready, and a link costs no handle of the loop. It is edge-triggered, which saves the
kernel a second look at every link that was served; `_receive`, `_look_again` and `_register` keep what that asks for.

Back-pressure: while a link has unsent bytes, the link that feeds it is not read. A link is read as long as no reason
to pause is set; each reason is a bit, so that they cannot undo each other.

TLS stands between a link and its descriptor, and nobody above sees it: what is received is opened at once and as a
whole, so that bytes to read are always in the kernel, where the reactor sees them; what is sent is sealed last, after
corking, so that pieces that leave together share a record.

Compression (MySQL's) stands between a link and its TLS. What is received is unpacked a chunk at a time, as what came
may be small and what it stands for large: a rest is kept, and the loop calls for it when everybody else had a turn,
unless the link is paused.
"""

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EPIPE, errno
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove
from libc.stdint cimport uint32_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from cpython.set cimport PySet_GET_SIZE
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from protocols.wire cimport (
    EDIT,
    FETCH,
    FORWARD,
    GATE,
    GATE_CLOSED,
    GATE_DRAIN,
    GATE_OPEN,
    INVENT,
    LEDGER_AS_SEEN,
    LEDGER_TOUCHED,
    SWALLOW,
    Tracker,
)
from proxy.packing cimport PACKING_FAILED, PIECE_BYTES, Packing
from proxy.openssl cimport FAILED, WANTS_BYTES, WANTS_ROOM, Connection, Context

import os

from protocols.errors import ProtocolViolation
from proxy.tasks import in_haste

cdef extern from "unistd.h" nogil:
    int c_close "close"(int fd)

cdef extern from "string.h" nogil:
    void* memmem(const void* haystack, size_t haystack_size, const void* needle, size_t needle_size)

cdef extern from *:
    """
    #include <errno.h>
    #include <linux/sockios.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <sys/epoll.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <sys/timerfd.h>
    #include <unistd.h>

    /* The three calls of the per-chunk path, without what libc puts around them: recv, send and epoll_wait are points
       at which a thread can be cancelled, which in a process of several threads costs two atomic exchanges a call. */
    static inline ssize_t chunk_recv(int fd, void *buffer, size_t size)
    {
    #ifdef SYS_recvfrom
        return syscall(SYS_recvfrom, fd, buffer, size, 0, NULL, NULL);
    #else
        return recv(fd, buffer, size, 0);
    #endif
    }

    static inline ssize_t chunk_send(int fd, const void *buffer, size_t size)
    {
    #ifdef SYS_sendto
        return syscall(SYS_sendto, fd, buffer, size, MSG_NOSIGNAL, NULL, 0);
    #else
        return send(fd, buffer, size, MSG_NOSIGNAL);
    #endif
    }

    /* Tells, once, that `span_ns` have passed. */
    static inline int timer_set(int fd, long span_ns)
    {
        struct itimerspec span = {.it_value = {.tv_sec = span_ns / 1000000000, .tv_nsec = span_ns % 1000000000}};
        return timerfd_settime(fd, 0, &span, NULL);
    }

    /* Objects are asked of memory before they are needed, a whole batch's at once, or while the kernel works: a session
       that waited for its answer has left the caches, and one miss after another takes longer than the work itself. */
    static inline void ask_for(const void *object, int size)
    {
    #if defined(__GNUC__)
        for (int at = 0; at < size; at += 64)
            __builtin_prefetch((const char *) object + at);
    #endif
    }

    static inline int bits_of(unsigned long long number)
    {
    #if defined(__GNUC__)
        return number ? 64 - __builtin_clzll(number) : 0;
    #else
        int bits = 0;
        while (number >> bits)
            bits++;
        return bits;
    #endif
    }

    /* How the peer has ended a connection: 1 by a FIN; -1 by a RST, and no FIN before it; 0: it has not, or this is no
       TCP. A RST behind a FIN is EPIPE, another ECONNRESET; the kernel tells it once. */
    static inline int end_of(int fd)
    {
        struct tcp_info info;
        socklen_t size = sizeof info;
        int error = 0;
        if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
            return 0;
        if (info.tcpi_state == TCP_CLOSE_WAIT)
            return 1;
        if (info.tcpi_state != TCP_CLOSE)
            return 0;
        size = sizeof error;
        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == EPIPE ? 1 : -1;
    }

    /* Bytes that were sent and that the peer has not acknowledged; -1 if nobody knows. */
    static inline long unacknowledged(int fd)
    {
        int size;
        return ioctl(fd, SIOCOUTQ, &size) == 0 ? size : -1;
    }

    static inline int events_wait(int epfd, struct epoll_event *events, int count, int timeout_ms)
    {
        return (int) syscall(SYS_epoll_pwait, epfd, events, count, timeout_ms, NULL, 8);
    }
    """
    ssize_t chunk_recv(int fd, void* buffer, size_t size) noexcept nogil
    ssize_t chunk_send(int fd, const void* buffer, size_t size) noexcept nogil
    void ask_for(const void* object, int size) noexcept nogil
    int bits_of(unsigned long long number) noexcept nogil
    int events_wait(int epfd, epoll_event* events, int count, int timeout_ms) noexcept nogil
    int timer_set(int fd, long span_ns) noexcept nogil
    int end_of(int fd) noexcept nogil
    long unacknowledged(int fd) noexcept nogil
    int timerfd_create(int clock, int flags) noexcept nogil
    enum:
        TFD_CLOEXEC
        TFD_NONBLOCK

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        void* ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CTL_DEL
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLLRDHUP
        EPOLLET

cdef extern from "sys/socket.h" nogil:
    ssize_t c_recv "recv"(int fd, void* buffer, size_t size, int flags)
    int c_shutdown "shutdown"(int fd, int how)
    int SHUT_RD
    int SHUT_WR
    int MSG_PEEK
    int MSG_DONTWAIT

cdef enum:
    # Bytes asked of the kernel at once. Larger chunks did not help on loopback; smaller ones cost more calls.
    CHUNK_BYTES = 65536
    # Bytes of clients' requests that are kept, in the order in which they came; those of the last one included.
    KEPT_BYTES = 262144
    # Longest incomplete header a tracker leaves (protocols.wire.CARRY_BYTES_MAX).
    CARRY_BYTES = 64
    # Of Link._receive: nothing to read now.
    NOTHING = -1
    # Latency buckets; proxy/latency.py has the bounds.
    FINE_BUCKETS = 192
    # Most bytes of a request that are kept for who wants to be told of it, and that are searched for a trace.
    MEMO_BYTES = 4096
    MEMO_SEARCHED_BYTES = 262144
    # `00-TRACE-PARENT-FLAGS`, as W3C's trace context has it.
    TRACEPARENT_BYTES = 55
    # One less than it has with what stands before it: so much of it may be cut off.
    SEAM_BYTES = 67
    # Longest content of a TLS record (RFC 8446 section 5.1), and the longest record as it is on the wire (5.2; TLS 1.2
    # allows 2048 more than the content, and a header).
    RECORD_BYTES = 16384
    SEALED_RECORD_BYTES = 18437
    # Most bytes a peer may send before its handshake is complete. OpenSSL bounds each message; this bounds their sum.
    HANDSHAKE_BYTES_MAX = 262144
    # Most bytes TLS itself answers (to updates of keys, to requests to negotiate again) while the peer reads nothing.
    UNREAD_ANSWERS_BYTES_MAX = 65536
    # Events taken from the kernel at once.
    EVENTS_AT_ONCE = 64
    # How long traffic is served, and waited for, before the event loop looks at its timers and other descriptors. What
    # must not wait that long is told with `leave_for`.
    STAY_NS = 20000000

cdef enum:
    # Of these objects, what every chunk touches: see `ask_for`.
    LINK_BYTES = 128
    RELAY_BYTES = 256
    TRACKER_BYTES = 320
    METER_BYTES = 128

cdef enum:
    # Reasons why a link is not read.
    PAUSED_BY_PEER = 1   # what it feeds has unsent bytes
    PAUSED_BY_GATE = 2   # the gate keeps its bytes back
    PAUSED_BY_HOLD = 4   # held for a switch, and work has already come in
    PAUSED_BY_OWNER = 8  # the session asks for it

FINE_BUCKET_COUNT = FINE_BUCKETS

cdef set _in_haste = in_haste

# One buffer for the whole process: a worker has one thread, and nothing below a receive receives again.
# Behind a chunk there is room for the record that the TLS of a link had begun before it.
cdef unsigned char SCRATCH[CARRY_BYTES + CHUNK_BYTES + SEALED_RECORD_BYTES]

# A chunk of a client is received behind those of others, in a ring: what was sent on may have to be sent again.
cdef unsigned char KEPT[KEPT_BYTES + CARRY_BYTES + CHUNK_BYTES + SEALED_RECORD_BYTES]
# Where the next one begins, counted from the first byte ever received there.
cdef unsigned long long kept_next = 0

# The same for TLS: a chunk as it comes from the kernel.
cdef unsigned char SEALED[CHUNK_BYTES]

# And for compression: a chunk as it comes from the kernel or from TLS.
cdef unsigned char PACKED[CHUNK_BYTES + SEALED_RECORD_BYTES]


cdef inline unsigned long long now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <unsigned long long> t.tv_sec * 1000000000ULL + <unsigned long long> t.tv_nsec


cdef inline int bucket_of(unsigned long long span_ns) noexcept nogil:
    """Sixteen single microseconds, then eight buckets for each power of two."""
    cdef unsigned long long us = span_ns // 1000
    cdef int octave = bits_of(us) - 4
    if octave <= 0:
        return <int> us
    if octave > FINE_BUCKETS // 8 - 2:
        return FINE_BUCKETS - 1
    return octave * 8 + <int> (us >> octave)


cdef class Meter:
    """Counters of one engine of a service in this worker. Plain integers; whoever wants figures reads them."""

    cdef:
        # Bytes from clients and to clients.
        readonly unsigned long long bytes_in
        readonly unsigned long long bytes_out
        # Nanoseconds with a request in flight, summed over the answers; from the batch of the one to that of the other.
        readonly unsigned long long request_ns
        # Spans with at least one request in flight that have ended.
        readonly unsigned long long spans
        # Errors that clients were sent, and those that are not the clients' own (CLIENTS_OWN in protocols.wire).
        readonly unsigned long long errors
        readonly unsigned long long faults
        # Requests whose answer is complete, and transactions that have ended, one-statement ones among them.
        readonly unsigned long long requests
        readonly unsigned long long transactions
        # Nanoseconds of transactions, summed: from the request that began one to the end of the answer that ended it.
        readonly unsigned long long transaction_ns
        # Times a session was given a backend, and nanoseconds that requests waited for one.
        public unsigned long long assignments
        public unsigned long long wait_ns
        unsigned long long _buckets[FINE_BUCKETS]
        unsigned long long _transaction_buckets[FINE_BUCKETS]

    def __cinit__(self):
        cdef int i
        for i in range(FINE_BUCKETS):
            self._buckets[i] = self._transaction_buckets[i] = 0

    cdef inline void add_span(self, unsigned long long span_ns) noexcept:
        self._buckets[bucket_of(span_ns)] += 1
        self.request_ns += span_ns
        self.spans += 1

    cdef inline void add_transactions(self, unsigned long long span_ns, unsigned long long count) noexcept:
        self._transaction_buckets[bucket_of(span_ns)] += count
        self.transaction_ns += span_ns * count
        self.transactions += count

    def note(self, unsigned long long span_ns):
        """A span that the relay did not see."""
        self.add_span(span_ns)

    @property
    def fine_buckets(self):
        """Spans by length: see `proxy.latency` for the bounds."""
        return [self._buckets[i] for i in range(FINE_BUCKETS)]

    @property
    def transaction_buckets(self):
        """Transactions by length, in the same buckets."""
        return [self._transaction_buckets[i] for i in range(FINE_BUCKETS)]


cdef class Memo:
    """The beginning of what a client has asked and was not answered yet, for an owner who wants to be told of requests
    that take long or that are part of a trace. A relay that has none keeps nothing.

    A trace is continued where the text of a statement has a comment of sqlcommenter's with a sampled `traceparent`,
    within the first MEMO_SEARCHED_BYTES of the request.
    """

    cdef:
        # Requests that take longer, in nanoseconds, are told of; 0: none for that.
        public unsigned long long slow_ns
        # Sampled traces are told of if the lower half of their id is not above that; 0: none.
        public unsigned long long traced_up_to
        unsigned char* _kept
        Py_ssize_t _size
        Py_ssize_t _capacity
        # Bytes of the request so far, and the last ones of them.
        Py_ssize_t _heard
        unsigned char _tail[SEAM_BYTES]
        bint _has_parent
        unsigned char _parent[TRACEPARENT_BYTES]
        # Errors the tracker had counted when the request came.
        unsigned long long _errors

    def __dealloc__(self):
        free(self._kept)

    cdef int hear(self, const unsigned char* data, Py_ssize_t size, bint begins, unsigned long long errors) except -1:
        """Bytes of the client."""
        cdef Py_ssize_t take, kept
        cdef unsigned char* grown
        cdef unsigned char seam[2 * SEAM_BYTES]
        if begins:
            self._size = self._heard = 0
            self._has_parent = False
            self._errors = errors
        take = min(size, MEMO_BYTES - self._size)
        if take > 0:
            if self._size + take > self._capacity:
                grown = <unsigned char*> realloc(self._kept, self._size + take)
                if grown == NULL:
                    raise MemoryError()
                self._kept = grown
                self._capacity = self._size + take
            memcpy(self._kept + self._size, data, take)
            self._size += take
        if take < size and self._heard < MEMO_SEARCHED_BYTES:
            # What is not kept is searched now, and the rest when the answer is complete.
            kept = min(self._heard, SEAM_BYTES)
            take = min(size, SEAM_BYTES)
            memcpy(seam, self._tail + SEAM_BYTES - kept, kept)
            memcpy(seam + kept, data, take)
            self._search(seam, kept + take)
            self._search(data, size)
        self._heard += size
        take = min(size, SEAM_BYTES)
        memmove(self._tail, self._tail + take, SEAM_BYTES - take)
        memcpy(self._tail + SEAM_BYTES - take, data + size - take, take)
        return 0

    cdef void _search(self, const unsigned char* data, Py_ssize_t size) noexcept:
        cdef const unsigned char* found
        if self._has_parent or self.traced_up_to == 0:
            return
        found = <const unsigned char*> memmem(data, size, b"traceparent='", 13)
        if found == NULL or found + 13 + TRACEPARENT_BYTES > data + size:
            return
        found += 13
        if is_sampled(found, self.traced_up_to):
            memcpy(self._parent, found, TRACEPARENT_BYTES)
            self._has_parent = True

    cdef bint is_wanted(self, unsigned long long span_ns) noexcept:
        """The owner is to be told of the request, which took so long."""
        self._search(self._kept, self._size)
        return self._has_parent or (self.slow_ns > 0 and span_ns > self.slow_ns)

    cdef bytes asked(self):
        return PyBytes_FromStringAndSize(<char*> self._kept, self._size)

    cdef bytes parent(self):
        if not self._has_parent:
            return b""
        return PyBytes_FromStringAndSize(<char*> self._parent, TRACEPARENT_BYTES)


cdef bint is_sampled(const unsigned char* text, unsigned long long up_to) noexcept nogil:
    """`text`, TRACEPARENT_BYTES of it, is a traceparent of version 00 that is sampled, and the lower half of its
    trace's id is not above `up_to`."""
    cdef unsigned long long half = 0
    cdef int i, digit
    if text[0] != c"0" or text[1] != c"0":
        return False
    for i in range(2, TRACEPARENT_BYTES):
        if i == 2 or i == 35 or i == 52:
            if text[i] != c"-":
                return False
            continue
        digit = digit_of(text[i])
        if digit < 0:
            return False
        if 19 <= i < 35:
            half = half << 4 | <unsigned long long> digit
    return (digit_of(text[54]) & 1) == 1 and half <= up_to


cdef inline int digit_of(unsigned char c) noexcept nogil:
    """Of a hexadecimal digit in lower case; -1 if it is none."""
    if c"0" <= c <= c"9":
        return c - c"0"
    if c"a" <= c <= c"f":
        return c - c"a" + 10
    return -1


cdef class Reactor:
    """The epoll instance of one event loop. Links register themselves; nobody else needs to know it."""

    cdef:
        object __weakref__
        object _loop
        int _epoll
        # Becomes readable when the reactor has stayed for STAY_NS.
        int _timer
        # When the batch that is served was ready, monotonic nanoseconds.
        unsigned long long _now_ns
        # Links that closed while a batch is walked: kept until its end, since events may still point to them.
        list _closed
        # Owners of relays that closed meanwhile: what went wrong may be found after that.
        dict _parted
        bint _is_walking
        # Python code was called that may have given the loop something to do.
        bint _is_due

    def __cinit__(self, loop):
        cdef epoll_event event
        self._timer = -1
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        if self._epoll >= 0:
            self._timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        # Edge-triggered: it is told once, and never read.
        event.events = EPOLLIN | EPOLLET
        event.data.ptr = NULL
        if self._timer < 0 or epoll_ctl(self._epoll, EPOLL_CTL_ADD, self._timer, &event) != 0:
            raise OSError(errno, os.strerror(errno))

    def __init__(self, loop):
        self._loop = loop
        self._closed = []
        self._parted = {}
        loop.add_reader(self._epoll, self._on_ready)

    def __dealloc__(self):
        if self._timer >= 0:
            c_close(self._timer)
        if self._epoll >= 0:
            c_close(self._epoll)

    def _on_ready(self):
        """Serve what is ready, and stay while more comes.

        An answer follows its request within a fraction of a millisecond. Waiting for it here, in our own epoll set,
        costs one call of the kernel; going back to the loop costs that call, another one on the set inside the loop's,
        and the loop's own work, some 15 microseconds of it with cold caches. The loop gets its turn after STAY_NS,
        whether anything comes or not, and at once when Python code was called that may have given it something to do,
        when one of the descriptors of `leave_for` has become readable, and while something is in haste. New clients and
        their logins are served here as well.

        One timer bounds the whole stay. A timeout of each wait would be a timer that the kernel sets and takes back
        with almost every query.
        """
        cdef:
            epoll_event events[EVENTS_AT_ONCE]
            int count
            bint is_staying = False
        self._is_due = False
        count = events_wait(self._epoll, events, EVENTS_AT_ONCE, 0)
        while count > 0:
            self._serve(events, count)
            if self._is_due or PySet_GET_SIZE(_in_haste) > 0:
                break
            if not is_staying:
                is_staying = True
                if timer_set(self._timer, STAY_NS) != 0:
                    raise OSError(errno, os.strerror(errno))
            # With the GIL: the few other threads of a worker look up names, and can wait as long as a timer does.
            count = events_wait(self._epoll, events, EVENTS_AT_ONCE, -1)

    cdef int _serve(self, epoll_event* events, int count) except -1:
        cdef:
            int i = 0
            uint32_t happened
            int ended = 0
            epoll_event event
            Link link = None
            Relay relay = None
        self._now_ns = now_ns()
        # Backends that have ended come first: a request of the same batch must not be sent to one of them.
        for i in range(count):
            ask_for(events[i].data.ptr, LINK_BYTES)
            if events[i].data.ptr == NULL:
                # Not a link, but the time, or a descriptor that the loop knows what to do with.
                self._is_due = True
            elif events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) and not (<Link> events[i].data.ptr)._is_client:
                event = events[ended]
                events[ended] = events[i]
                events[i] = event
                ended += 1
        for i in range(count):
            if events[i].data.ptr != NULL:
                ask_for(<void*> (<Link> events[i].data.ptr)._relay, RELAY_BYTES)
        i = 0
        self._is_walking = True
        try:
            while i < count:
                # One try for many links: entering it costs as much as reading some of them does.
                try:
                    while i < count:
                        i += 1
                        if events[i - 1].data.ptr == NULL:
                            continue
                        link = <Link> events[i - 1].data.ptr
                        happened = events[i - 1].events
                        relay = link._relay
                        if happened & ~EPOLLOUT and link.fd >= 0 and link._paused == 0:
                            link._readable()
                            if happened & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                                # The end may stand behind the bytes that were read: no event of its own tells of it.
                                link._look_again()
                        if happened & (EPOLLOUT | EPOLLHUP | EPOLLERR) and link._is_writing and link.fd >= 0:
                            link._writable()
                except Exception as error:
                    self._went_wrong(link, relay, error)
        finally:
            self._is_walking = False
            if self._closed:
                # No event of the next look points to them.
                self._closed = []
            if self._parted:
                self._parted = {}
        return 0

    cdef int _went_wrong(self, Link link, Relay relay, error) except -1:
        """One link's trouble must not become that of the others. `relay` is what it was part of when it was served."""
        cdef object owner = None if relay is None else self._parted.get(relay, relay.owner)
        self._is_due = True
        link._look_again()
        if owner is None:
            self._loop.call_exception_handler({"message": "a link failed", "exception": error})
        elif isinstance(error, ProtocolViolation):
            owner.on_violation(error)
        else:
            owner.on_failure(error)
        return 0


# A process has one event loop at a time; tests have one after another.
cdef Reactor _reactor = None


cdef Reactor reactor_of(loop):
    global _reactor
    if _reactor is None or _reactor._loop is not loop:
        _reactor = Reactor(loop)
    return _reactor


def leave_for(loop, int fd):
    """Let the loop have its turn as soon as `fd`, which it watches itself, becomes readable. Ends when `fd` is closed.

    Raises OSError.
    """
    cdef Reactor reactor = reactor_of(loop)
    cdef epoll_event event
    # Level-triggered: the relay leaves after each batch until the loop has seen to it.
    event.events = EPOLLIN
    event.data.ptr = NULL
    if epoll_ctl(reactor._epoll, EPOLL_CTL_ADD, fd, &event) != 0:
        raise OSError(errno, os.strerror(errno))


cdef class Tls:
    """The TLS of one link, on OpenSSL by way of `proxy/openssl.pyx`."""

    cdef:
        readonly Connection ssl
        bint _is_established
        # Unsealed bytes of a corked link: less than a record of them, in memory that only a corked link has.
        unsigned char* _plain
        Py_ssize_t _plain_size
        Py_ssize_t _plain_capacity
        # What TLS itself answered while the peer did not read, in bytes.
        Py_ssize_t _unread_answers
        Py_ssize_t _handshake_bytes
        # Told once how the handshake ended; None afterwards.
        object _done
        # `tls-server-end-point` of RFC 5929 (a hash of the certificate of the end that is the server), and what the
        # peer's verified certificate says; set by whoever starts TLS.
        bytes _channel_binding
        object _peer_certificate

    def __init__(self, Context context, hostname, done):
        self.ssl = Connection(context, hostname)
        self._done = done
        self._channel_binding = b""

    def __dealloc__(self):
        free(self._plain)

    cdef Py_ssize_t open_records(
        self, Link link, const unsigned char* sealed, Py_ssize_t size, unsigned char* into
    ) except -2:
        """Everything there is to read, like `Link._take`: its size, 0 at the end, NOTHING if it is no whole record.

        `into` has room for CHUNK_BYTES + SEALED_RECORD_BYTES: `size` is at most the one, and OpenSSL has kept less than
        the other of an earlier chunk. All of `sealed` is taken."""
        cdef Connection ssl = self.ssl
        cdef Py_ssize_t have = 0
        cdef Py_ssize_t got
        ssl.feed(sealed, size)
        while True:
            got = ssl.read(into + have, CHUNK_BYTES + SEALED_RECORD_BYTES - have)
            if ssl.pipe.sealed_size > 0 and not self._answer(link):
                got = FAILED
            if got > 0:
                have += got
                if ssl.pipe.unopened_size > 0:
                    continue
                return have
            if got == WANTS_ROOM:
                continue
            if got == WANTS_BYTES:
                return have if have > 0 else NOTHING
            # The end, said by the peer or by its mistake. What came before it counts; the kernel tells the rest.
            if got == FAILED:
                link.lost = f"TLS: {ssl.why}"
            if have > 0:
                c_shutdown(link.fd, SHUT_RD)
            return have

    cdef bint _answer(self, Link link) except -1:
        """Send what TLS itself says while it reads. False: too much of it was asked for, and is not read."""
        link._put(self.ssl.sealed, self.ssl.pipe.sealed_size)
        if not link._is_writing:
            self._unread_answers = 0
            return True
        self._unread_answers += self.ssl.pipe.sealed_size
        if self._unread_answers <= UNREAD_ANSWERS_BYTES_MAX:
            return True
        self.ssl.why = "the peer does not read what it asks for"
        return False

    cdef int note(self, const unsigned char* data, Py_ssize_t size) except -1:
        """Keep unsealed bytes; there is room for them in a record."""
        cdef Py_ssize_t capacity
        cdef unsigned char* grown
        if self._plain_size + size > self._plain_capacity:
            capacity = min(max(self._plain_size + size, 2 * self._plain_capacity), RECORD_BYTES)
            grown = <unsigned char*> realloc(self._plain, capacity)
            if grown == NULL:
                raise MemoryError()
            self._plain = grown
            self._plain_capacity = capacity
        memcpy(self._plain + self._plain_size, data, size)
        self._plain_size += size
        return 0

    cdef void forget_plain(self) noexcept:
        free(self._plain)
        self._plain = NULL
        self._plain_size = self._plain_capacity = 0


cdef class Link:
    """One connected, non-blocking descriptor: reading, sending, and the bytes that could not be sent yet.

    Owns the descriptor until `close`. What it reads goes to the relay it is part of, or else to `sink(data)`, which
    gets b"" once when the peer has closed or the connection is lost (`lost` then says why).
    """

    # What every chunk touches stands first: the fewer cache lines, the fewer waits for memory.
    cdef:
        # The descriptor; -1 when closed.
        readonly int fd
        # Reasons not to read.
        int _paused
        # Bytes wait for room at the peer.
        bint _is_writing
        bint _is_client
        # What is sent is kept until the cork is drawn.
        bint _is_corked
        bint _is_closing
        Relay _relay
        # None on a clear link.
        Tls _tls
        # There is a _tls or a _packing: what comes and goes is not what the relay sees.
        bint _is_layered
        # Bytes received and sent since the beginning; within TLS, its content received and its records sent.
        readonly unsigned long long bytes_in
        readonly unsigned long long bytes_out
        # Unsent bytes are _out[_out_start:_out_end].
        Py_ssize_t _out_start
        Py_ssize_t _out_end
        Py_ssize_t _out_capacity
        unsigned char* _out
        Reactor _reactor
        # What the reactor watches for: EPOLLIN, EPOLLOUT, both, or 0 (not registered at all).
        uint32_t _interest
        # The sink gives the loop nothing to do but tasks, which are in haste by themselves: the reactor stays.
        public bint is_quiet
        # None without compression.
        Packing _packing
        # The loop has been asked to unpack what was kept.
        bint _is_called_for
        # The peer has ended the connection in order before it refused what we sent (see `has_nothing_since`).
        bint _is_fin_first
        # Called with bytes while the link is part of no relay.
        public object sink
        # Why the connection was lost; empty while it is not, and after an orderly end.
        readonly str lost

    def __cinit__(self, loop, int fd):
        self.fd = fd
        self.lost = ""
        self._out = NULL

    def __init__(self, loop, int fd):
        self._reactor = reactor_of(loop)
        self._watch()

    def __dealloc__(self):
        if self.fd >= 0:
            # Dropped without a close, when the process ends: the kernel takes the descriptor out of the epoll set. The
            # reactor may be gone already.
            c_close(self.fd)
        free(self._out)

    # --- reading ---

    cdef int _watch(self) except -1:
        """Tell the reactor what is wanted now."""
        cdef uint32_t interest = (EPOLLIN if self._paused == 0 else 0) | (EPOLLOUT if self._is_writing else 0)
        cdef int act
        if interest == self._interest or self.fd < 0:
            return 0
        if interest == 0:
            act = EPOLL_CTL_DEL
        elif self._interest == 0:
            act = EPOLL_CTL_ADD
        else:
            act = EPOLL_CTL_MOD
        self._interest = interest
        return self._register(act)

    cdef int _register(self, int act) except -1:
        """Adding and changing make the kernel look: what is there already is reported, whenever it came."""
        cdef epoll_event event
        event.events = self._interest | EPOLLRDHUP | EPOLLET
        event.data.ptr = <void*> self
        if epoll_ctl(self._reactor._epoll, act, self.fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        return 0

    cdef int _look_again(self) except -1:
        """Have what is there reported again: not all of it was read, as far as we know."""
        if self.fd >= 0 and self._interest != 0:
            self._register(EPOLL_CTL_MOD)
        return 0

    cdef int _pause(self, int reason) except -1:
        self._paused |= reason
        return self._watch()

    cdef int _resume(self, int reason) except -1:
        self._paused &= ~reason
        if self._packing is not None and self._paused == 0 and self._packing.has_rest():
            self._call_for_rest()
        return self._watch()

    def pause(self):
        """Do not read until `resume`."""
        self._pause(PAUSED_BY_OWNER)

    def resume(self):
        self._resume(PAUSED_BY_OWNER)

    cdef int _readable(self) except -1:
        cdef Relay relay = self._relay
        cdef Py_ssize_t size
        if relay is not None:
            if self._is_client:
                relay._client_readable()
            else:
                relay._server_readable()
            return 0
        if self._tls is not None and not self._tls._is_established:
            return self._shake_hands()
        size = self._receive(SCRATCH)
        if size == NOTHING:
            return 0
        if size == 0:
            self._pause(PAUSED_BY_OWNER)
            self._give(b"")
            return 0
        self._give(PyBytes_FromStringAndSize(<char*> SCRATCH, size))
        return 0

    cdef inline Py_ssize_t _receive(self, unsigned char* into) except -2:
        """A chunk for whoever understands it; `into` has room for CHUNK_BYTES + SEALED_RECORD_BYTES.

        Returns its size, 0 at the end (`lost` says why, unless it is an orderly one), NOTHING if there is nothing now.
        """
        cdef Py_ssize_t size
        if not self._is_layered:
            size = self._take(into)
        elif self._packing is None:
            size = self._take_opened(into)
        else:
            size = self._take_unpacked(into)
        if size > 0:
            self.bytes_in += size
        return size

    cdef Py_ssize_t _take_opened(self, unsigned char* into) except -2:
        """`_take` of a link that has TLS, perhaps."""
        cdef Py_ssize_t size
        if self._tls is None:
            return self._take(into)
        size = self._take(SEALED)
        if size <= 0:
            return size
        return self._tls.open_records(self, SEALED, size, into)

    cdef Py_ssize_t _take_unpacked(self, unsigned char* into) except -2:
        """`_take` of a link with compression: first of all what was kept of an earlier chunk."""
        cdef Packing packing = self._packing
        cdef Py_ssize_t size
        cdef bint had_rest = packing.has_rest()
        if not had_rest:
            size = self._take_opened(PACKED)
            if size <= 0:
                return size
            packing.feed(PACKED, size)
        size = packing.unpack(into, CHUNK_BYTES)
        packing.keep_rest()
        if size == PACKING_FAILED:
            self.lost = f"compression: {packing.why}"
            c_shutdown(self.fd, SHUT_RD)
            return 0
        if packing.has_rest():
            self._call_for_rest()
        elif had_rest:
            # Perhaps the kernel told of more meanwhile, and nobody listened.
            self._look_again()
        return size if size > 0 else NOTHING

    cdef int _call_for_rest(self) except -1:
        if not self._is_called_for:
            self._is_called_for = True
            self._reactor._is_due = True
            self._reactor._loop.call_soon(self._unpack_rest)
        return 0

    def _unpack_rest(self):
        self._is_called_for = False
        if self.fd >= 0 and self._packing.has_rest():
            self.serve()

    def start_packing(self, Packing packing not None, bytes received):
        """Compress from now on; `received` came already and is compressed. What was sent before stays as it was."""
        assert self._packing is None
        self._packing = packing
        self._is_layered = True
        if received:
            packing.feed(<const unsigned char*> PyBytes_AS_STRING(received), PyBytes_GET_SIZE(received))
            packing.keep_rest()
            self._call_for_rest()

    cdef inline Py_ssize_t _take(self, unsigned char* into) except -2:
        """recv(2) of a chunk; returns what `_receive` returns.

        Readiness is reported once, when bytes arrive. Less than was asked for means that there was no more; a full
        chunk means that there may be.
        """
        cdef Py_ssize_t size = chunk_recv(self.fd, into, CHUNK_BYTES)
        if 0 < size < CHUNK_BYTES:
            return size
        if size > 0:
            self._look_again()
            return size
        if size < 0:
            if errno == EAGAIN:
                return NOTHING
            if errno == EINTR:
                self._look_again()
                return NOTHING
            self.lost = os.strerror(errno)
        return 0

    cdef int _give(self, bytes data) except -1:
        if self.sink is None:
            return 0
        if not self.is_quiet:
            self._reactor._is_due = True
        try:
            self.sink(data)
        except Exception as error:
            # Other links of the batch must not suffer; the loop's handler logs it.
            self._reactor._loop.call_exception_handler({"message": "a link's sink failed", "exception": error})
        return 0

    def serve(self):
        """Do what the reactor does when the link is readable."""
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.ptr = <void*> self
        self._reactor._serve(&event, 1)

    # --- TLS ---

    def start_tls(self, Context context not None, *, hostname, bytes received, done):
        """Speak TLS from now on; `received` came already and belongs to the handshake.

        `done(why)` is called once, perhaps at once: with an empty text when the handshake is complete, else with what
        went wrong, and the owner closes. What comes behind the handshake goes to the sink after that. Only while the
        link is part of no relay; what was sent before stays clear.
        """
        assert self._tls is None and self._relay is None
        self._tls = Tls(context, hostname, done)
        self._is_layered = True
        if received or not context.is_server:
            self._step_handshake(<const unsigned char*> PyBytes_AS_STRING(received), PyBytes_GET_SIZE(received))

    @property
    def is_encrypted(self):
        return self._tls is not None and self._tls._is_established

    @property
    def channel_binding(self):
        """Empty on a clear link, and where the certificate allows none."""
        return self._tls._channel_binding if self._tls is not None else b""

    @property
    def peer_certificate(self):
        return self._tls._peer_certificate if self._tls is not None else None

    def note_identity(self, bytes channel_binding, peer_certificate):
        """What the handshake proved; told by whoever started it."""
        self._tls._channel_binding = channel_binding
        self._tls._peer_certificate = peer_certificate

    @property
    def ssl(self):
        """The connection, for what it knows of the peer; None on a clear link."""
        return self._tls.ssl if self._tls is not None else None

    cdef int _shake_hands(self) except -1:
        """Bytes of a handshake."""
        cdef Py_ssize_t size = self._take(SEALED)
        if size == NOTHING:
            return 0
        if self._is_closing:
            # It failed; the peer is given the time to read why.
            if size == 0:
                self.close()
            return 0
        if size == 0:
            self._end_handshake(self.lost or "the peer left")
            return 0
        return self._step_handshake(SEALED, size)

    cdef int _step_handshake(self, const unsigned char* data, Py_ssize_t size) except -1:
        cdef Tls tls = self._tls
        cdef Connection ssl = tls.ssl
        cdef int how
        cdef bytes rest
        tls._handshake_bytes += size
        if tls._handshake_bytes > HANDSHAKE_BYTES_MAX:
            self._end_handshake("the handshake is too long")
            return 0
        ssl.feed(data, size)
        while True:
            how = ssl.shake_hands()
            # After a failure it may be an alert.
            self._put(ssl.sealed, ssl.pipe.sealed_size)
            if how != WANTS_ROOM:
                break
        if how == WANTS_BYTES:
            return 0
        if how == FAILED:
            self._end_handshake(ssl.why)
            return 0
        tls._is_established = True
        # What came behind the handshake is told after its end, and has to outlive whatever the owner does until then.
        rest = PyBytes_FromStringAndSize(<const char*> ssl.pipe.unopened, ssl.pipe.unopened_size)
        self._end_handshake("")
        if rest and self.fd >= 0:
            assert self._relay is None, "a session begins with bytes that have not come yet"
            size = tls.open_records(self, <const unsigned char*> PyBytes_AS_STRING(rest), len(rest), SCRATCH)
            if size == 0:
                self._pause(PAUSED_BY_OWNER)
            if size >= 0:
                self.bytes_in += size
                self._give(PyBytes_FromStringAndSize(<char*> SCRATCH, size))
        return 0

    cdef int _end_handshake(self, str why) except -1:
        done, self._tls._done = self._tls._done, None
        if why:
            self._pause(PAUSED_BY_OWNER)
        if done is not None:
            self._reactor._is_due = True
            try:
                done(why)
            except Exception as error:
                self._reactor._loop.call_exception_handler({"message": "a link's owner failed", "exception": error})
        return 0

    cdef int _seal(self, const unsigned char* data, Py_ssize_t size) except -1:
        """Make records of it and send them; while the link is corked, only note what is no whole record."""
        cdef Tls tls = self._tls
        cdef Py_ssize_t take
        if not self._is_corked:
            return self._put_records(data, size)
        while size > 0:
            if tls._plain_size == 0 and size >= RECORD_BYTES:
                take = size - size % RECORD_BYTES
                self._put_records(data, take)
            else:
                take = min(size, RECORD_BYTES - tls._plain_size)
                tls.note(data, take)
                if tls._plain_size == RECORD_BYTES:
                    self._seal_noted()
            data += take
            size -= take
        return 0

    cdef int _seal_noted(self) except -1:
        """What was noted while the link was corked, as one record."""
        cdef Tls tls = self._tls
        try:
            return self._put_records(tls._plain, tls._plain_size)
        finally:
            tls.forget_plain()

    cdef int _put_records(self, const unsigned char* data, Py_ssize_t size) except -1:
        cdef Connection ssl = self._tls.ssl
        cdef Py_ssize_t sealed
        while size > 0:
            sealed = ssl.write(data, size)
            if sealed == FAILED:
                self.lost = f"TLS: {ssl.why}"
                c_shutdown(self.fd, SHUT_RD)
                return 0
            data += sealed
            size -= sealed
            self._put(ssl.sealed, ssl.pipe.sealed_size)
        return 0

    cdef int _end_tls(self) except -1:
        """Say that no more comes, as far as the kernel takes it at once."""
        cdef Connection ssl = self._tls.ssl
        if not self._tls._is_established or self._out_end > self._out_start:
            return 0
        ssl.say_end()
        chunk_send(self.fd, ssl.sealed, ssl.pipe.sealed_size)
        return 0

    # --- sending ---

    cdef inline int _send(self, const unsigned char* data, Py_ssize_t size) except -1:
        """Send, keep what the kernel does not take. A broken connection shows when it is read."""
        if self.fd < 0 or size == 0:
            return 0
        if self._is_layered:
            return self._send_packed(data, size) if self._packing is not None else self._seal(data, size)
        return self._put(data, size)

    cdef int _send_packed(self, const unsigned char* data, Py_ssize_t size) except -1:
        """Make compressed packets of it; while the link is corked, only note what is no whole piece."""
        cdef Packing packing = self._packing
        cdef Py_ssize_t span
        cdef Py_ssize_t take
        while size > 0:
            span = packing.span(data, size)
            if span == 0:
                self._pack_noted()
                packing.begin()
                continue
            size -= span
            while span > 0:
                if packing.plain_size == 0 and (span >= PIECE_BYTES or not self._is_corked):
                    take = min(span, PIECE_BYTES)
                    packing.pack(data, take)
                    self._send_piece()
                else:
                    take = min(span, PIECE_BYTES - packing.plain_size)
                    packing.note(data, take)
                    if packing.plain_size == PIECE_BYTES:
                        self._pack_noted()
                data += take
                span -= take
        return 0

    cdef int _pack_noted(self) except -1:
        """What was noted while the link was corked, as one compressed packet."""
        if self._packing.plain_size > 0:
            self._packing.pack_noted()
            self._send_piece()
        return 0

    cdef int _send_piece(self) except -1:
        cdef Packing packing = self._packing
        if self._tls is not None:
            return self._seal(packing.packed, packing.packed_size)
        return self._put(packing.packed, packing.packed_size)

    cdef int _put(self, const unsigned char* data, Py_ssize_t size) except -1:
        """Bytes as they go to the kernel."""
        cdef Py_ssize_t sent = 0
        if self.fd < 0 or size == 0:
            return 0
        if self._out_end == self._out_start and not self._is_corked:
            sent = chunk_send(self.fd, data, size)
            if sent == size:
                self.bytes_out += size
                return 0
            if sent < 0:
                if not (errno == EAGAIN or errno == EINTR):
                    return self._note_refused()
                sent = 0
            self.bytes_out += sent
        self._keep(data + sent, size - sent)
        if not self._is_corked:
            self._await_room()
        return 0

    cdef int _keep(self, const unsigned char* data, Py_ssize_t size) except -1:
        cdef Py_ssize_t used = self._out_end - self._out_start
        cdef Py_ssize_t capacity
        cdef unsigned char* grown
        if self._out_end + size > self._out_capacity:
            if self._out_start > 0:
                memmove(self._out, self._out + self._out_start, used)
                self._out_start = 0
                self._out_end = used
            if used + size > self._out_capacity:
                capacity = max(used + size, 2 * self._out_capacity)
                grown = <unsigned char*> realloc(self._out, capacity)
                if grown == NULL:
                    raise MemoryError()
                self._out = grown
                self._out_capacity = capacity
        memcpy(self._out + self._out_end, data, size)
        self._out_end += size
        return 0

    cdef int _await_room(self) except -1:
        if not self._is_writing:
            self._is_writing = True
            self._watch()
        if self._relay is not None:
            self._relay._fed_too_fast(self)
        return 0

    cdef int _uncork(self) except -1:
        if self._packing is not None:
            self._pack_noted()
        # Behind bytes that were kept the last record is kept too, and leaves with them; alone it is sent at once.
        self._is_corked = self._out_end > self._out_start
        if self._tls is not None and self._tls._plain_size > 0:
            self._seal_noted()
        self._is_corked = False
        if self._out_end > self._out_start and not self._is_writing:
            self._flush()
            if self._out_end > self._out_start:
                self._await_room()
        return 0

    cdef int _flush(self) except -1:
        cdef Py_ssize_t sent
        sent = chunk_send(self.fd, self._out + self._out_start, self._out_end - self._out_start)
        if sent < 0:
            if errno == EAGAIN or errno == EINTR:
                return 0
            # Nobody will ever take these bytes; that the connection is gone shows when it is read.
            self._out_start = self._out_end = 0
            return self._note_refused()
        self.bytes_out += sent
        self._out_start += sent
        if self._out_start == self._out_end:
            self._out_start = self._out_end = 0
            if self._out_capacity > 4096:
                # An idle link keeps no memory from a busy time.
                free(self._out)
                self._out = NULL
                self._out_capacity = 0
        return 0

    cdef int _note_refused(self) except -1:
        """A send has failed, and its errno was the only sign of why: reading will show an end without a reason."""
        if not self.lost and not self._is_fin_first:
            if errno == EPIPE:
                self._is_fin_first = True
            else:
                self.lost = os.strerror(errno)
        return 0

    cdef bint has_nothing_since(self, unsigned long long mark) except -1:
        """The peer surely has nothing of what was sent since `bytes_out` was `mark`.

        Either none of it was sent, or the peer had ended the connection before: its FIN, like all that TCP sends, says
        how much has come, and that was not more than `mark`. Nobody reads on behind a FIN of a database server, whoever
        stands between it and us. A lone RST proves nothing: it may be a load balancer's, or of a host that was rebooted
        in the midst of its work.
        """
        cdef long unheard
        cdef int end
        if self.bytes_out == mark:
            return True
        if self.fd < 0 or self.lost:
            return False
        if not self._is_fin_first:
            end = end_of(self.fd)
            if end < 0:
                self.lost = os.strerror(ECONNRESET)
            if end <= 0:
                return False
            self._is_fin_first = True
        unheard = unacknowledged(self.fd)
        return unheard > 0 and self.bytes_out - mark <= <unsigned long long> unheard

    cdef int _writable(self) except -1:
        self._flush()
        if self._out_end == self._out_start:
            self._is_writing = False
            self._watch()
            if self._is_closing:
                self._shut_down()
            elif self._relay is not None:
                self._relay._has_room(self)
        return 0

    def send(self, bytes data):
        """Send now or as soon as the peer takes it. Never blocks."""
        self._send(<const unsigned char*> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    @property
    def unsent_bytes(self):
        return self._out_end - self._out_start

    @property
    def is_open(self):
        return self.fd >= 0

    def peek_end(self):
        """True if the peer has closed: nothing to read but the end."""
        cdef unsigned char one
        cdef Py_ssize_t size
        if self.fd < 0:
            return True
        size = c_recv(self.fd, &one, 1, MSG_PEEK | MSG_DONTWAIT)
        if size >= 0 or errno == EAGAIN or errno == EINTR:
            return size == 0
        # The kernel tells it once.
        if not self.lost:
            self.lost = os.strerror(errno)
        return True

    def finish(self):
        """Send what is left, say that no more comes, and read on to the peer's end before closing.

        A socket that is closed with unread bytes resets the connection, and the peer may never see our last words.
        The owner bounds how long that may take by calling `close`.
        """
        if self.fd < 0:
            return
        self._relay = None
        self.sink = self._discard
        self._paused = 0
        self._watch()
        self._is_closing = True
        if self._is_corked:
            self._uncork()
        if self._out_end == self._out_start:
            self._shut_down()

    def _discard(self, bytes data):
        if not data:
            self.close()

    cdef int _shut_down(self) except -1:
        if self._tls is not None:
            self._end_tls()
        c_shutdown(self.fd, SHUT_WR)
        return 0

    def close(self):
        """Close at once. Idempotent."""
        cdef int fd = self.fd
        if fd < 0:
            return
        self._paused |= PAUSED_BY_OWNER
        self._is_writing = False
        if self._tls is not None and not self._is_closing:
            self._end_tls()
        # Nobody else has the descriptor: closing takes it out of the epoll set.
        self._interest = 0
        self.fd = -1
        self._relay = None
        self.sink = None
        c_close(fd)
        if self._reactor._is_walking:
            self._reactor._closed.append(self)


cdef class Port(Link):
    """A listening socket. `accept()` is called while clients wait there, and need not take them all at once. Quiet, as
    `Link.is_quiet` tells."""

    cdef public object accept

    cdef int _register(self, int act) except -1:
        """Level-triggered: who was not taken is told of again."""
        cdef epoll_event event
        event.events = self._interest
        event.data.ptr = <void*> self
        if epoll_ctl(self._reactor._epoll, act, self.fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        return 0

    cdef int _readable(self) except -1:
        self.accept()
        return 0


cdef class Lendable:
    """The part of a backend that a relay's short way handles; `Backend` is the whole, and explains these."""

    cdef:
        public Link link
        public object facts
        public dict notes
        public object shelf
        public int cancels
        public bint is_doubtful
        public object on_lost
        public unsigned long long idle_since_ns
        # Counts what happens on it: its engine's. None until a service opens it.
        public Meter meter
        # The connection has ended.
        public bint _lost
        # What the server said since the backend was idle.
        public list _unread
        # The sink of an idle backend: one bound method, not one for each transaction.
        public object _heard


cdef class Owner:
    """Base of a relay's owner: what the short way needs of it. The methods the relay calls are told there."""

    cdef:
        # The backend it has, attached or not.
        public Lendable backend


cdef class Lending:
    """What a relay needs to take an idle backend and to give it back by itself: transaction mode's short way.

    Anything out of the ordinary (nobody idle, somebody waiting, a session that holds state, a switch) goes the long
    way, through the owner. The members are the pool's own, so the pool's figures stay right.
    """

    cdef:
        # The shelf, its idle backends, the pool's lent backends and its queue of waiters.
        object _shelf
        list _idle
        set _lent
        object _waiting
        # Told when an idle backend is lost.
        object _on_lost
        object _ledger

    def __init__(self, shelf, set lent, waiting, on_lost, ledger):
        self._shelf = shelf
        self._idle = shelf.idle
        self._lent = lent
        self._waiting = waiting
        self._on_lost = on_lost
        self._ledger = ledger


cdef class Relay:
    """One session's bytes: a client link, at times a server link, and the tracker that judges what passes.

    The owner is told: `on_gate()` the client has work and the gate is closed; `on_boundary()` a boundary was reached
    while `notifies` is set; `on_client_end()`; `on_server_end()`; `on_client_left()` it said goodbye;
    `on_first_answer(now_ns)` once after `stamp_first_answer()`; `on_violation(error)`; `on_failure(error)`; with a
    `memo` `on_answered(asked, parent, began_ns, ended_ns, errors)`, of a request that its memo wants to be told: its
    first bytes, the traceparent or b"", when it came and when its answer was complete, and the errors in that.
    """

    # What every chunk touches stands first, as in Link.
    cdef:
        readonly Link client
        readonly Link server
        readonly Tracker tracker
        # Of the engine it is attached to, or was last.
        public Meter meter
        readonly Owner owner
        # Held for a switch: nothing is read from the client.
        readonly bint is_held
        # The owner chooses the server by the work: it is asked when `peek_work` shows it, and `_borrow` is no way then.
        public bint is_routed
        # Tell the owner of boundaries.
        public bint notifies
        bint _stamps_first_answer
        # The last bytes from the server had an error message among them.
        readonly bint ended_with_error
        # When the last bytes came from the client, monotonic nanoseconds.
        readonly unsigned long long last_request_ns
        # When the last answer was complete, the same.
        readonly unsigned long long last_answer_ns
        unsigned long long _span_began_ns
        # When the request came that began the transaction; 0 between transactions.
        unsigned long long _unit_began_ns
        # What the meter knows of the tracker's counts.
        unsigned long long _requests
        unsigned long long _transactions
        # What the owner wants to be told of; None: of nothing.
        public Memo memo
        # Sizes of the incomplete headers at the end of the last chunk.
        Py_ssize_t _client_carried
        Py_ssize_t _server_carried
        # Bytes of a swallowed message still to come.
        Py_ssize_t _client_skip
        Py_ssize_t _server_skip
        # Messages being assembled: None, or bytes of the final size, of which `_have` are filled.
        object _client_message
        object _server_message
        Py_ssize_t _client_have
        Py_ssize_t _server_have
        # Client bytes the gate keeps back.
        bytes _stash
        # What the client has sent since the boundary, should it have to be sent again: in one chunk, of which KEPT has
        # `_kept_size` bytes from `_kept_at` on, or from the gate, and then `_sent_on` has it. Neither: nobody has it.
        unsigned long long _kept_at
        Py_ssize_t _kept_size
        bytes _sent_on
        # `bytes_out` of the server side when the request came that is in flight.
        unsigned long long _server_mark
        # The client has had an answer of ours since the boundary.
        bint _has_told
        # Transaction mode's short way; None where the owner has to be asked.
        public Lending lending
        # When the work that waits came in, monotonic nanoseconds; 0 if none waits.
        readonly unsigned long long waiting_since_ns
        unsigned char _client_carry[CARRY_BYTES]
        unsigned char _server_carry[CARRY_BYTES]

    def __init__(self, Owner owner not None, Link client, Tracker tracker, Meter meter):
        self.owner = owner
        self.client = client
        self.tracker = tracker
        self.meter = meter
        self._stash = b""
        self.last_request_ns = now_ns()
        client._relay = self
        client._is_client = True
        client.sink = None

    cdef inline Owner _told(self):
        """The owner, about to be told something: what it does may give the loop work."""
        self.client._reactor._is_due = True
        return self.owner

    # --- linking ---

    cpdef attach(self, Link server):
        """From now on the server side is `server`."""
        assert self.server is None, "one server at a time"
        self.server = server
        self._server_mark = server.bytes_out
        server._relay = self
        server._is_client = False
        server.sink = None
        if self.client._out_end > self.client._out_start:
            server._pause(PAUSED_BY_PEER)

    cpdef Link detach(self):
        """Take the server side away; it is a plain link again."""
        cdef Link server = self.server
        if server is None:
            return None
        self.server = None
        self._server_carried = 0
        self._server_message = None
        self._server_skip = 0
        self._span_began_ns = self._unit_began_ns = 0
        server._relay = None
        server._resume(PAUSED_BY_PEER)
        self.client._resume(PAUSED_BY_PEER)
        return server

    def lose(self, aborted, unknown):
        """The server side is gone in the midst of its work: see `Tracker.lose`. None: the session cannot go on. The
        gate closes; of a client's message that was half sent the rest is dropped, of another its beginning is kept.
        """
        cdef unsigned long long errors = self.tracker.errors
        cdef unsigned long long faults = self.tracker.faults
        cdef object told = self.tracker.lose(aborted, unknown)
        self.meter.errors += self.tracker.errors - errors
        self.meter.faults += self.tracker.faults - faults
        self.lending = None
        self._sent_on = None
        self._kept_size = 0
        self.tracker.gate = GATE_CLOSED
        self.detach()
        if told is None:
            return None
        self._client_skip += self.tracker.message_size
        if self._client_message is not None:
            self._stash = self._client_message[: self._client_have]
            self._client_message = None
            self.client._pause(PAUSED_BY_GATE)
        return told

    def is_untaken(self, Link server not None):
        """The request in flight surely has not reached `server`, which is or was the server side."""
        return server.has_nothing_since(self._server_mark)

    def may_take_back(self, Link server not None):
        """So it is, and `take_back` is likely to have it wait again."""
        return (self._sent_on is not None or self._is_kept()) and not self._has_told and self.is_untaken(server)

    cdef bint _is_kept(self) noexcept:
        """KEPT still has the chunk: a later one of any size has not come near it."""
        return self._kept_size > 0 and (
            kept_next - self._kept_at <= KEPT_BYTES - CARRY_BYTES - CHUNK_BYTES - SEALED_RECORD_BYTES
        )

    def take_back(self, Link server not None):
        """The server side is gone before it had anything of what the client has sent since the boundary: that waits at
        the gate, which closes, as if it had come just now. False: it may have been taken, or nobody has it any more, or
        it is part of something longer."""
        cdef unsigned long long began_ns = self._span_began_ns
        cdef bytes work = self._sent_on
        if not self.may_take_back(server) or not self.tracker.take_back():
            return False
        if work is None:
            work = PyBytes_FromStringAndSize(<char*> KEPT + self._kept_at % KEPT_BYTES, self._kept_size)
        self._sent_on = None
        self._kept_size = 0
        self.tracker.gate = GATE_CLOSED
        self.detach()
        # Its wait counts.
        self._span_began_ns = self._unit_began_ns = began_ns
        self._client_carried = self._client_skip = 0
        self._client_message = None
        self._stash = work
        if self.waiting_since_ns == 0:
            self.waiting_since_ns = now_ns()
        self.client._pause(PAUSED_BY_GATE)
        return True

    def settle(self):
        """Have the meter know of what was answered without a server as well."""
        self._count_requests()
        self.meter.transactions += self.tracker.transactions - self._transactions
        self._transactions = self.tracker.transactions

    cdef inline void _count_requests(self) noexcept:
        self.meter.requests += self.tracker.requests - self._requests
        self._requests = self.tracker.requests

    def close(self):
        """Break the circle with the owner. The links are the owner's to close."""
        self.detach()
        if self.client._reactor._is_walking and self.owner is not None:
            self.client._reactor._parted[self] = self.owner
        self.client._relay = None
        self.owner = None
        self.lending = None
        self._stash = b""
        self._sent_on = None
        self._client_message = None

    # --- transaction mode's short way ---

    cdef bint _borrow(self) except -1:
        """Attach an idle backend and open the gate; False where the owner has to see to it."""
        cdef Lending lending = self.lending
        cdef Lendable backend
        cdef bytes told
        if lending is None or not lending._idle or self.owner.backend is not None:
            # An owner that has a backend while no server is attached asks it something.
            return False
        backend = <Lendable?> lending._idle.pop()
        if backend._lost or backend._unread or backend.is_doubtful:
            backend.close()
            return False
        lending._lent.add(backend)
        backend.on_lost = None
        self.owner.backend = backend
        told = self.tracker.link(backend.facts, backend.notes)
        self.attach(backend.link)
        if backend.meter is not None:
            self.meter = backend.meter
            self.meter.assignments += 1
        if told:
            self.client.send(told)
        self.tracker.gate = GATE_OPEN
        return True

    cdef bint _give_back(self) except -1:
        """At a boundary: put the backend back on its shelf; False where the owner has to see to it."""
        cdef Lending lending = self.lending
        cdef Lendable backend
        if lending is None or self._stash or self.tracker.gate != GATE_OPEN or lending._waiting:
            return False
        if self.tracker.ledger_news != LEDGER_AS_SEEN:
            if not lending._ledger.is_empty:
                return False
            if self.tracker.ledger_news == LEDGER_TOUCHED:
                self.tracker.ledger_news = LEDGER_AS_SEEN
        backend = self.owner.backend
        if backend is None or backend.cancels or backend.is_doubtful or backend.shelf is not lending._shelf:
            return False
        self.owner.backend = None
        self.tracker.gate = GATE_CLOSED
        self.tracker.unlink()
        self.detach()
        backend.idle_since_ns = now_ns()
        backend.on_lost = lending._on_lost
        backend.link.sink = backend._heard
        lending._lent.discard(backend)
        lending._idle.append(backend)
        return True

    # --- the gate ---

    @property
    def is_between_messages(self):
        """No message of the client has been begun and not ended, neither here nor in the tracker's view."""
        return self._client_message is None and self._client_skip == 0 and self._client_carried == 0

    @property
    def has_work(self):
        """Client bytes are kept back by the gate."""
        return len(self._stash) > 0

    def peek_work(self):
        """What the gate keeps back."""
        return self._stash

    cpdef bint at_boundary(self) noexcept:
        """The backend may be exchanged: the tracker says so, and no half message is kept here."""
        return (
            self._client_message is None
            and self._server_message is None
            and self._client_skip == 0
            and self._server_skip == 0
            and self._server_carried == 0
            and self.tracker.at_boundary()
        )

    def set_gate(self, int gate):
        """GATE_OPEN, GATE_DRAIN or GATE_CLOSED. Opening sends what was kept back."""
        self.tracker.gate = gate
        if gate != GATE_CLOSED:
            self._go_on()

    def hold(self):
        """Held: at a boundary, and nothing is read from the client. The first readiness to read is stamped."""
        self.is_held = True
        self.tracker.gate = GATE_CLOSED
        if self._stash and self.waiting_since_ns == 0:
            self.waiting_since_ns = now_ns()

    def release(self, int gate):
        """Read on. Returns how long the work that waited did so, in nanoseconds, or -1 if none waited."""
        cdef long long waited = -1
        self.is_held = False
        self.lending = None
        if self.waiting_since_ns:
            waited = now_ns() - self.waiting_since_ns
            self.waiting_since_ns = 0
        self.tracker.gate = gate
        self.client._resume(PAUSED_BY_HOLD)
        if gate != GATE_CLOSED:
            self._go_on()
        return waited

    def stamp_first_answer(self):
        """Tell the owner once when the next bytes come from the server."""
        self._stamps_first_answer = True

    cdef int _go_on(self) except -1:
        """Scan again what the gate kept back."""
        cdef bytes stash
        if self._stash:
            stash = self._stash
            self._stash = b""
            if self.server is not None and self.at_boundary():
                self._sent_on = stash
                self._kept_size = 0
                self._server_mark = self.server.bytes_out
                self._has_told = False
            self._feed(stash, True)
        if not self._stash and self.owner is not None:
            if self.waiting_since_ns and not self.is_held:
                self.waiting_since_ns = 0
            self.client._resume(PAUSED_BY_GATE)
        return 0

    cdef int _feed(self, bytes data, bint is_client) except -1:
        """Bytes that do not come from a descriptor now. Whoever opens a gate is not the one to be told of a violation:
        the owner is."""
        cdef object owner = self.owner
        try:
            if is_client:
                self._feed_client(<unsigned char*> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            else:
                self._feed_server(<unsigned char*> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        except ProtocolViolation as error:
            self.client._reactor._is_due = True
            owner.on_violation(error)
        except Exception as error:
            self.client._reactor._is_due = True
            owner.on_failure(error)
        return 0

    def feed_client(self, bytes data):
        """Bytes of the client that came before the relay was there."""
        self._feed(data, True)

    def feed_server(self, bytes data):
        """Bytes of the server that came before it was attached."""
        self._feed(data, False)

    def go_on(self):
        """Scan again what the gate kept back, after something changed."""
        self._go_on()

    # --- back-pressure ---

    cdef int _fed_too_fast(self, Link link) except -1:
        if link is self.client:
            if self.server is not None:
                self.server._pause(PAUSED_BY_PEER)
        else:
            self.client._pause(PAUSED_BY_PEER)
        return 0

    cdef int _has_room(self, Link link) except -1:
        if link is self.client:
            if self.server is not None:
                self.server._resume(PAUSED_BY_PEER)
        else:
            self.client._resume(PAUSED_BY_PEER)
        return 0

    cdef inline void _ask_for(self, Link other) noexcept:
        """What judging a chunk needs is asked of memory first, and comes while the kernel copies the chunk."""
        ask_for(<void*> self.tracker, TRACKER_BYTES)
        ask_for(<void*> other, LINK_BYTES)
        ask_for(<void*> self.meter, METER_BYTES)

    # --- client to server ---

    cdef int _client_readable(self) except -1:
        global kept_next
        cdef Py_ssize_t size
        cdef Py_ssize_t carried = self._client_carried
        cdef Link client = self.client
        cdef unsigned char* chunk = KEPT + kept_next % KEPT_BYTES
        if self.is_held:
            if client.peek_end():
                self._told().on_client_end()
                return 0
            if self.waiting_since_ns == 0:
                self.waiting_since_ns = now_ns()
            client._pause(PAUSED_BY_HOLD)
            return 0
        self._ask_for(self.server)
        size = client._receive(chunk + carried)
        if size <= 0:
            if size == 0:
                self._told().on_client_end()
            return 0
        self.meter.bytes_in += size
        self.last_request_ns = client._reactor._now_ns
        if carried:
            memcpy(chunk, self._client_carry, carried)
            self._client_carried = 0
        if self.memo is not None:
            if self._span_began_ns == 0:
                # With what was carried of it.
                self.memo.hear(chunk, carried + size, True, self.tracker.errors)
            else:
                self.memo.hear(chunk + carried, size, False, self.tracker.errors)
        # More of a request, or another one behind it: not all of that is in one chunk.
        self._kept_size = 0
        self._sent_on = None
        if self._span_began_ns == 0:
            self._span_began_ns = self.last_request_ns
            self._has_told = False
            if self.server is not None:
                self._server_mark = self.server.bytes_out
            if self._unit_began_ns == 0:
                self._unit_began_ns = self.last_request_ns
                if self._client_skip == 0:
                    self._kept_at = kept_next
                    self._kept_size = carried + size
                    kept_next += <unsigned long long> (carried + size)
        self._feed_client(chunk, carried + size)
        if self.tracker.is_idle():
            # Nothing that is answered: the span ends unmeasured.
            self._span_began_ns = 0
            self._kept_size = 0
            if self.tracker.at_boundary():
                self._unit_began_ns = 0
        return 0

    cdef int _feed_client(self, unsigned char* data, Py_ssize_t size) except -1:
        cdef:
            Py_ssize_t at = 0        # scanned up to here
            Py_ssize_t sent = 0      # sent up to here
            Py_ssize_t stop, take
            int verdict
            Tracker tracker = self.tracker
            Link corked = None
            object message
        try:
            while at < size:
                if self._client_skip:
                    take = min(self._client_skip, size - at)
                    self._client_skip -= take
                    at += take
                    sent = at
                    continue
                if self._client_message is not None:
                    take = min(PyBytes_GET_SIZE(self._client_message) - self._client_have, size - at)
                    memcpy(PyBytes_AS_STRING(self._client_message) + self._client_have, data + at, take)
                    self._client_have += take
                    at += take
                    sent = at
                    if self._client_have < PyBytes_GET_SIZE(self._client_message):
                        continue
                    message = self._client_message
                    self._client_message = None
                    instead = tracker.take_client(message)
                    if corked is None and self.server is not None:
                        corked = self.server
                        corked._is_corked = True
                    self._to_server(instead)
                    if self._after_fetch():
                        return 0
                    continue
                verdict = tracker.scan_client(data, at, size)
                stop = tracker.stop
                if verdict == FORWARD:
                    at = stop
                    break
                if verdict == FETCH:
                    take = tracker.message_size
                    if stop + take <= size:
                        message = PyBytes_FromStringAndSize(<char*> data + stop, take)
                        instead = tracker.take_client(message)
                        if instead is message:
                            at = stop + take
                            if tracker.has_invented and self._after_fetch():
                                return 0
                            continue
                        if corked is None and self.server is not None:
                            corked = self.server
                            corked._is_corked = True
                        self._forward(data + sent, stop - sent)
                        self._to_server(instead)
                        at = sent = stop + take
                        if self._after_fetch():
                            return 0
                    else:
                        self._forward(data + sent, stop - sent)
                        self._client_message = PyBytes_FromStringAndSize(NULL, take)
                        self._client_have = 0
                        at = sent = stop
                elif verdict == EDIT:
                    if corked is None:
                        corked = self.server
                        corked._is_corked = True
                    self._forward(data + sent, stop - sent)
                    self._forward(<unsigned char*> PyByteArray_AS_STRING(tracker.edited), tracker.edited_size)
                    at = sent = stop + tracker.message_size
                elif verdict == SWALLOW:
                    self._forward(data + sent, stop - sent)
                    self._client_skip = tracker.message_size
                    at = sent = stop
                    if tracker.has_invented:
                        self._tell_invented()
                elif verdict == GATE:
                    self._forward(data + sent, stop - sent)
                    at = sent = stop
                    if corked is not None:
                        corked._uncork()
                        corked = None
                    if self.is_routed and self.server is None and not self.is_held:
                        self._stash = PyBytes_FromStringAndSize(<char*> data + stop, size - stop)
                        if self.waiting_since_ns == 0:
                            self.waiting_since_ns = now_ns()
                        self.client._pause(PAUSED_BY_GATE)
                        # It may open the gate, and have all of that sent, right here.
                        self._told().on_gate()
                        return 0
                    # The owner may link a server and open the gate right here.
                    if tracker.gate == GATE_CLOSED and not self.is_held and not self._borrow():
                        self._told().on_gate()
                    if tracker.gate == GATE_OPEN and self.owner is not None:
                        continue
                    if self.owner is None:
                        return 0
                    self._stash = PyBytes_FromStringAndSize(<char*> data + stop, size - stop)
                    if self.waiting_since_ns == 0:
                        self.waiting_since_ns = now_ns()
                    self.client._pause(PAUSED_BY_GATE)
                    return 0
                else:
                    raise AssertionError(f"verdict {verdict} for a client's bytes")
            self._forward(data + sent, at - sent)
        finally:
            if corked is not None:
                corked._uncork()
        if at < size:
            # An incomplete header waits for its rest.
            assert size - at <= CARRY_BYTES, "a header is short"
            memcpy(self._client_carry, data + at, size - at)
            self._client_carried = size - at
        return 0

    cdef inline int _forward(self, const unsigned char* data, Py_ssize_t size) except -1:
        if size > 0:
            assert self.server is not None, "the gate is closed while there is no server"
            self.server._send(data, size)
        return 0

    cdef int _to_server(self, bytes data) except -1:
        if PyBytes_GET_SIZE(data) > 0:
            self._forward(<const unsigned char*> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        return 0

    cdef int _tell_invented(self) except -1:
        """What no server says."""
        self._has_told = True
        self.client.send(self.tracker.take_invented())
        return 0

    cdef bint _after_fetch(self) except -1:
        """True if the session has ended."""
        if self.tracker.has_invented:
            self._tell_invented()
        if self.tracker.client_left:
            # Quietly: what is to be done with its backend is a task, and in haste.
            self.owner.on_client_left()
            return True
        self._told().on_fetched()
        return self.owner is None

    # --- server to client ---

    cdef int _server_readable(self) except -1:
        cdef Py_ssize_t size
        cdef Py_ssize_t carried = self._server_carried
        cdef Link server = self.server
        cdef unsigned long long errors = self.tracker.errors
        cdef unsigned long long faults = self.tracker.faults
        self._ask_for(self.client)
        size = server._receive(SCRATCH + carried)
        if size <= 0:
            if size == 0:
                self._told().on_server_end()
            return 0
        self.meter.bytes_out += size
        if carried:
            memcpy(SCRATCH, self._server_carry, carried)
            self._server_carried = 0
        self._feed_server(SCRATCH, carried + size)
        if self.tracker.has_last_words and self.owner is not None:
            self.owner.on_server_end()
            return 0
        self.ended_with_error = False
        if self.tracker.errors != errors:
            self.meter.errors += self.tracker.errors - errors
            self.meter.faults += self.tracker.faults - faults
            # An error whose answer is complete is no reason why a server would end the session afterwards.
            self.ended_with_error = self._span_began_ns == 0 or not self.tracker.is_idle()
        if self._stamps_first_answer:
            self._stamps_first_answer = False
            self._told().on_first_answer(now_ns())
        self._count_requests()
        if self.tracker.transactions != self._transactions:
            self._end_transactions(server._reactor._now_ns)
        if self._span_began_ns and self.tracker.is_idle():
            self.last_answer_ns = server._reactor._now_ns
            self.meter.add_span(self.last_answer_ns - self._span_began_ns)
            if self.memo is not None and self.memo.is_wanted(self.last_answer_ns - self._span_began_ns):
                self._tell_answered(self.memo, self._span_began_ns, self.last_answer_ns)
            self._span_began_ns = 0
            self._kept_size = 0
        if self._sent_on is not None and self.tracker.is_idle():
            self._sent_on = None
        if self._stash and self.tracker.gate == GATE_DRAIN:
            self._go_on()
        if self.notifies and self.owner is not None and self.at_boundary() and not self._give_back():
            self._told().on_boundary()
        return 0

    cdef inline void _end_transactions(self, unsigned long long now) noexcept:
        cdef unsigned long long ended = self.tracker.transactions - self._transactions
        self._transactions = self.tracker.transactions
        # A client that pipelines may end several at once: each has taken that long.
        self.meter.add_transactions(now - self._unit_began_ns if self._unit_began_ns else 0, ended)
        # What is in flight then is the next one.
        self._unit_began_ns = 0 if self.tracker.is_idle() else now

    cdef int _tell_answered(self, Memo memo, unsigned long long began_ns, unsigned long long ended_ns) except -1:
        if self.owner is not None:
            self._told().on_answered(
                memo.asked(), memo.parent(), began_ns, ended_ns, self.tracker.errors - memo._errors
            )
        return 0

    cdef int _feed_server(self, unsigned char* data, Py_ssize_t size) except -1:
        cdef:
            Py_ssize_t at = 0
            Py_ssize_t sent = 0
            Py_ssize_t stop, take
            int verdict
            Tracker tracker = self.tracker
            Link client = self.client
            bint is_corked = False
            object message
        try:
            while at < size:
                if self._server_skip:
                    take = min(self._server_skip, size - at)
                    self._server_skip -= take
                    at += take
                    sent = at
                    continue
                if self._server_message is not None:
                    take = min(PyBytes_GET_SIZE(self._server_message) - self._server_have, size - at)
                    memcpy(PyBytes_AS_STRING(self._server_message) + self._server_have, data + at, take)
                    self._server_have += take
                    at += take
                    sent = at
                    if self._server_have < PyBytes_GET_SIZE(self._server_message):
                        continue
                    message = self._server_message
                    self._server_message = None
                    client._is_corked = is_corked = True
                    client.send(tracker.take_server(message))
                    if tracker.has_invented:
                        self._tell_invented()
                    continue
                verdict = tracker.scan_server(data, at, size)
                stop = tracker.stop
                if verdict == FORWARD:
                    at = stop
                    break
                client._is_corked = is_corked = True
                client._send(data + sent, stop - sent)
                at = sent = stop
                if verdict == FETCH:
                    take = tracker.message_size
                    if stop + take <= size:
                        message = PyBytes_FromStringAndSize(<char*> data + stop, take)
                        client.send(tracker.take_server(message))
                        at = sent = stop + take
                        if tracker.has_invented:
                            self._tell_invented()
                    else:
                        self._server_message = PyBytes_FromStringAndSize(NULL, take)
                        self._server_have = 0
                elif verdict == EDIT:
                    client._send(
                        <const unsigned char*> PyByteArray_AS_STRING(tracker.edited), tracker.edited_size
                    )
                    at = sent = stop + tracker.message_size
                    if tracker.has_invented:
                        self._tell_invented()
                elif verdict == SWALLOW:
                    self._server_skip = tracker.message_size
                elif verdict == INVENT:
                    self._tell_invented()
                else:
                    raise AssertionError(f"verdict {verdict} for a server's bytes")
            client._send(data + sent, at - sent)
        finally:
            if is_corked:
                client._uncork()
        if at < size:
            assert size - at <= CARRY_BYTES, "a header is short"
            memcpy(self._server_carry, data + at, size - at)
            self._server_carried = size - at
        return 0
