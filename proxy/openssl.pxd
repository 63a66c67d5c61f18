# cython: language_level=3
"""What the data plane uses per chunk of `proxy/openssl.pyx`; the words are explained there."""

cdef extern from "openssl/ssl.h" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass

# How an operation ended that moved no bytes.
cdef enum:
    ENDED = 0         # the peer said that no more comes
    WANTS_BYTES = -1  # of the peer: feed more
    WANTS_ROOM = -2   # take what is sealed, and call again
    FAILED = -3       # `why` tells; the connection is of no use
    RAISED = -4       # a Python exception is under way


cdef struct Pipe:
    # What came from the peer and OpenSSL has not taken.
    const unsigned char* unopened
    Py_ssize_t unopened_size
    # What OpenSSL wants to have sent, in a buffer that all connections share.
    Py_ssize_t sealed_size


cdef class Context:
    cdef:
        SSL_CTX* _context
        readonly bint is_server
        bint _checks_name
        bint _is_key_encrypted
        bytes _alpn


cdef class Connection:
    cdef:
        Context _context
        SSL* _ssl
        Pipe pipe
        const unsigned char* sealed
        readonly str why
        str _hostname

    cdef void feed(self, const unsigned char* data, Py_ssize_t size) noexcept
    cdef int shake_hands(self) except RAISED
    cdef Py_ssize_t read(self, unsigned char* into, Py_ssize_t room) except RAISED
    cdef Py_ssize_t write(self, const unsigned char* data, Py_ssize_t size) except RAISED
    cdef void say_end(self) noexcept
    cdef int _name_server(self) except -1
    cdef int _ended(self, int result) except RAISED
    cdef str _told(self)
