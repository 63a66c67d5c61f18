# See proof.py. What each login of a client goes through is typed; the rest needs no haste.

from protocols.postgres.auth cimport ScramServer
from protocols.postgres.messages cimport build_authentication


cdef class ClientProof:
    cdef:
        str _user
        str _method
        # The user's secret; None: no such user.
        object _secret
        object _channel
        bytes _salt
        # None before the SASL exchange.
        ScramServer _scram
        # An `Awaited`; what follows from it: `_await`.
        object _awaited
        readonly bint is_complete
        readonly Py_ssize_t bytes_max
        readonly object credential

    cdef object _await(self, object awaited)
    cpdef bytes begin(self)
    cpdef bytes take(self, bytes message)
    cdef bytes _take(self, bytes message)
    cdef object _take_password(self, str given)
    cdef object _take_md5(self, bytes given)
    cdef object _check_certificate(self)
    cdef object _complete(self, object credential)
    cdef object _wrong(self)
