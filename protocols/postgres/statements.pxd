# See statements.py. What every Bind looks up is typed; the rest needs no haste.

import cython


cdef class Statement:
    cdef:
        object __weakref__
        readonly bytes name
        readonly bytes body
        readonly bint is_lasting


cdef class Naming:
    cdef:
        public Statement statement
        public Naming previous
        public bint is_settled
        public bint is_void
        public bint is_own


cdef class Names:
    cdef:
        dict _namings
        Py_ssize_t _bytes_at_most

    cpdef Naming naming(self, bytes name)


cdef class _Holding:
    cdef:
        public bint is_there
        public bint will_be
        public Py_ssize_t pending
        public Py_ssize_t sync


cdef class OnBackend:
    cdef:
        object _holdings
        # The name used last.
        bytes _newest

    @cython.locals(holding=_Holding)
    cpdef bint holds(self, bytes name)
