# See auth.py. What each login of a client goes through is typed; the rest needs no haste.


cdef class KeyedHash:
    cdef:
        # SHA-256 that has taken the key's block already.
        object _inner
        object _outer


cdef class ScramServer:
    cdef:
        object _verifier
        bytes _binding
        # Of the messages of this attempt, as they went. These four are visible for a test with a known exchange.
        public bytes _first_bare
        public bytes _server_first
        # What the client has to repeat: the channel, in base64, and both nonces.
        public bytes _channel
        public bytes _nonce
        readonly tuple mechanisms
        readonly object keys

    cpdef bytes respond_first(self, bytes data, str mechanism=*)
    cpdef bytes respond_last(self, bytes data)


cdef bytes _xor(bytes left, bytes right)
cdef bytes _b64(bytes data)
cdef bytes _unb64(str peer, bytes text)
cdef int _check_utf8(str peer, bytes data) except -1
