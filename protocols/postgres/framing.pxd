# See framing.py.

import cython


cdef class Framer:
    cdef:
        # Who is blamed for what does not fit.
        str _peer
        # Longest message, its tag not counted.
        Py_ssize_t _bytes_max
        # What came and was not taken yet.
        bytearray _buffer

    cpdef receive(self, bytes data)
    @cython.locals(size=Py_ssize_t)
    cpdef bytes next_message(self, object bytes_max=*)
    @cython.locals(size=Py_ssize_t)
    cpdef bytes next_packet(self, Py_ssize_t bytes_max)
    cdef bytes _take(self, Py_ssize_t start, Py_ssize_t end)
    cpdef bytes take_unread(self)


@cython.locals(high=Py_ssize_t)
cdef Py_ssize_t _word(bytearray buffer, Py_ssize_t at) noexcept
