# See text.py.

import cython

# The same numbers as in constants.py.
cdef enum:
    COMMIT = 1
    ROLLBACK = 2


@cython.locals(position=Py_ssize_t, c=cython.uchar, begins=bint)
cpdef bint is_plain(const unsigned char* data, Py_ssize_t start, Py_ssize_t end) noexcept

@cython.locals(position=Py_ssize_t, first=cython.uchar, second=cython.uchar, third=cython.uchar)
cpdef bint may_commit(const unsigned char* data, Py_ssize_t start, Py_ssize_t end) noexcept

@cython.locals(position=Py_ssize_t, ending=int)
cpdef int ending_of(const unsigned char* data, Py_ssize_t start, Py_ssize_t end) noexcept

@cython.locals(depth=int, c=cython.uchar)
cdef Py_ssize_t _skip_blank(const unsigned char* data, Py_ssize_t start, Py_ssize_t end) noexcept

@cython.locals(position=Py_ssize_t, c=cython.uchar, packed=cython.uint, more=cython.uint, size=Py_ssize_t)
cdef bint _begins_plainly(const unsigned char* data, Py_ssize_t start, Py_ssize_t end) noexcept

@cython.locals(c=cython.uchar)
cdef bint _is_word_byte(unsigned char c) noexcept

cdef bint _is_at_state(const unsigned char* data, Py_ssize_t start, Py_ssize_t position, Py_ssize_t end) noexcept

cdef bint _sets_for_transaction(const unsigned char* data, Py_ssize_t start, Py_ssize_t end)

@cython.locals(size=Py_ssize_t, index=Py_ssize_t)
cdef bint _is_word(const unsigned char* data, Py_ssize_t start, Py_ssize_t end, bytes word) noexcept
