# See handshake.py. What each login of a client goes through is typed; the rest needs no haste.

from protocols.postgres.framing cimport Framer
from protocols.postgres.proof cimport ClientProof


cdef class PostgresClientLogin:
    cdef:
        # How a client proves who it is, unless the shell says otherwise.
        str _method
        Framer _framer
        # For the client.
        bytes _output
        # A `Phase`.
        object _phase
        bint _offers_tls
        # Bytes have come.
        bint _is_begun
        # Codes of the requests for encryption that had their answer.
        frozenset _answered_requests
        # Minor version of the protocol that is spoken.
        int _minor
        object _startup
        # None before the credential is there.
        ClientProof _proof

    cpdef object receive(self, bytes data)
    cpdef bytes take_output(self)
    cpdef bytes take_unread(self)
    cpdef bytes accept(self, object backend)
    cpdef bytes refuse(self, object error)
    cdef object _take_packet(self, bytes packet)
    cdef object _take_startup(self, int minor, object first)
    cdef object _next_proof(self)
    cdef object _proven(self)
    cdef object _refuse(self, str severity, str sqlstate, str text)
