# See messages.py. Every login builds and reads some; what is typed here is used by all of them.

import cython


cpdef bytes build(bytes tag, bytes body=*)
cpdef bytes build_authentication(unsigned int code, bytes data=*)
cpdef str decode(bytes text)
cpdef bytes encode(str text)


cdef class Reader:
    cdef:
        # Who is blamed for what does not fit, and in what.
        str _peer
        str _kind
        bytes _body
        Py_ssize_t _position

    cpdef object fail(self, str why)
    cpdef bytes take(self, Py_ssize_t size)
    @cython.locals(word=bytes, number=int)
    cpdef int int16(self)
    @cython.locals(word=bytes, high=long)
    cpdef long int32(self)
    cpdef bytes text(self)
    cpdef bytes rest(self)
    @cython.locals(left=Py_ssize_t)
    cpdef finish(self)
