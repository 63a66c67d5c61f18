"""Numbers and names of the PostgreSQL protocol, versions 3.0 and 3.2, and the bounds this code sets on top of them.

Source, where not said otherwise: PostgreSQL manual, "Frontend/Backend Protocol" (55.7 Message Formats).
"""

from __future__ import annotations

from typing import Final

# --- versions and request codes of the first packet ---------------------------------------------------------------

PROTOCOL_3_0: Final = 0x0003_0000
PROTOCOL_3_2: Final = 0x0003_0002
TLS_HANDSHAKE: Final = 0x16
"""First byte of a connection that begins with TLS (RFC 8446 section 5.1): as a length it would be far too long."""
ALPN: Final = "postgresql"
"""The application protocol of such a connection."""
CANCEL_REQUEST_CODE: Final = 80877102
SSL_REQUEST_CODE: Final = 80877103
GSSENC_REQUEST_CODE: Final = 80877104

# --- bounds -------------------------------------------------------------------------------------------------------

STARTUP_BYTES_MAX: Final = 10_000
"""Longest first packet, its length word not counted: MAX_STARTUP_PACKET_LENGTH in libpq/pqcomm.h."""

AUTH_MESSAGE_BYTES_MAX: Final = 65_535
"""Longest message of a client in an authentication: PG_MAX_AUTH_TOKEN_LENGTH in libpq/auth.h."""

SASL_MESSAGE_BYTES_MAX: Final = 1024
"""Longest SASL message of a client: PG_MAX_SASL_MESSAGE_LENGTH in libpq/sasl.h."""

LOGIN_MESSAGE_BYTES_MAX: Final = 1024 * 1024
"""Longest message of a server in a login. ErrorResponse and ParameterStatus are far shorter; ours."""

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest message of a server in an exchange of the proxy's own; ours."""

CANCEL_KEY_BYTES_MAX: Final = 256
"""Longest cancel key of protocol 3.2."""

CANCEL_KEY_BYTES_3_0: Final = 4
CANCEL_KEY_BYTES_3_2: Final = 32
"""What we give to clients; PostgreSQL 18 gives as much."""

CHANNEL_BYTES_MAX: Final = 63
"""Longest name of an object: NAMEDATALEN - 1."""

NAME_BYTES_MAX: Final = 1024
"""Longest name of a user that an engine is asked for. PostgreSQL's own have 63; users of a table may have more."""

# --- SQLSTATE -----------------------------------------------------------------------------------------------------

SQLSTATE_PROTOCOL_VIOLATION: Final = "08P01"
SQLSTATE_FEATURE_NOT_SUPPORTED: Final = "0A000"
SQLSTATE_INVALID_AUTHORIZATION: Final = "28000"
SQLSTATE_INVALID_PASSWORD: Final = "28P01"
SQLSTATE_INVALID_PARAMETER_VALUE: Final = "22023"

# --- numbers shared with tracker.pxd; a test compares the two -------------------------------------------------------

# Longest value of a length word, itself included, from either peer: MaxAllocSize and the word (utils/memutils.h).
LENGTH_MAX = 0x3FFF_FFFF + 4
# Longest Parse that is kept for a replay.
PARSE_BYTES_MAX = 16 * 1024 * 1024
# Longest Query whose text is looked at; longer ones count as if they changed session state.
QUERY_BYTES_MAX = 1024 * 1024
# Where the names in a Bind have to end.
BIND_NAMES_BYTES_MAX = 4096
# Longest ParameterStatus and Close and Describe.
SMALL_BYTES_MAX = 1024 * 1024
# Longest CommandComplete whose tag is looked at.
COMMAND_TAG_BYTES_MAX = 1024
# Longest ErrorResponse that is looked at.
ERROR_BYTES_MAX = 64 * 1024
# Most requests in flight in one session.
IN_FLIGHT_MAX = 2**24
# Longest beginning of a message that is edited in place; a longer one is fetched.
EDITED_BYTES_MAX = 256

# What is expected: the low bits of an entry of the ring. 0: nothing is expected.
PARSE = 1
BIND = 2
DESCRIBE = 3
EXECUTE = 4
CLOSE = 5
SYNC = 6
QUERY = 7
CALL = 8
COPY_END = 9
KIND = 15
# What becomes of the answer; neither: it is forwarded.
SWALLOWED = 16
INVENTED = 32
# Something in Python waits for the answer, in the deque beside the ring.
WATCHED = 64
# The request may change state that outlives its transaction.
LASTING = 128

# How a statement ends the transaction it stands in; neither: it does not, or does more than that.
COMMIT = 1
ROLLBACK = 2

# What has come of such a statement by the extended protocol, while its Sync has not.
PREPARED = 1
BOUND = 2
EXECUTED = 3

# What a client's message does, besides the kinds above, which are also pushed.
CLIENT_REFUSE = 0
CLIENT_PASS = 10
CLIENT_LEAVE = 11

# What a server's message does.
MOVE_REFUSE = 0
MOVE_PASS = 1
MOVE_ANSWER = 2
MOVE_READY = 3
MOVE_FAIL = 4
MOVE_COPY_IN = 5
MOVE_NOTE = 6
MOVE_COMPLETE = 7
