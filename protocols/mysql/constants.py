"""Numbers and names of the MySQL protocol, as in MySQL's `include/mysql_com.h`, `my_command.h` and MariaDB's manual.

What the tracker needs in C stands again in `tracker.pxd`; a test holds the two together.

What Turnout never offers, because it could not be relayed right, is told at `OFFERED_CAPABILITIES`.
"""

from __future__ import annotations

from typing import Final

from protocols.wire import PackingName

# --- packets ------------------------------------------------------------------------------------------------------

HEADER_BYTES: Final = 4
"""Three bytes of payload length, little endian, and one byte of sequence id."""

PAYLOAD_BYTES_MAX: Final = 0xFF_FF_FF
"""A packet this long is continued in the next one, which may be empty."""

TLS_REQUEST_BYTES: Final = 32
"""An SSLRequest is a HandshakeResponse41 that ends before the user's name."""

ATTRIBUTES_BYTES_MAX: Final = 1_024
"""Most bytes of a client's connection attributes that its backends are given; a server keeps 512 by default
(`performance_schema_session_connect_attrs_size`)."""

LOGIN_BYTES_MAX: Final = 65_536 + 4_096
"""Longest packet in a login. MySQL allows 64 KiB of connection attributes (`performance_schema_session_connect_attrs`)."""

ERROR_BYTES_MAX: Final = 65_536
"""Longest ERR that a server may send unasked; real ones have less than 1 KiB."""

EXCHANGE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Longest row of an answer to a question of the proxy's own; user variables may be large."""

# --- capability flags ---------------------------------------------------------------------------------------------

CLIENT_LONG_PASSWORD: Final = 1 << 0
"""MariaDB calls it CLIENT_MYSQL: where it is set, MariaDB's extended capabilities are not in use."""
CLIENT_FOUND_ROWS: Final = 1 << 1
CLIENT_LONG_FLAG: Final = 1 << 2
CLIENT_CONNECT_WITH_DB: Final = 1 << 3
CLIENT_NO_SCHEMA: Final = 1 << 4
CLIENT_COMPRESS: Final = 1 << 5
CLIENT_ODBC: Final = 1 << 6
CLIENT_LOCAL_FILES: Final = 1 << 7
CLIENT_IGNORE_SPACE: Final = 1 << 8
CLIENT_PROTOCOL_41: Final = 1 << 9
CLIENT_INTERACTIVE: Final = 1 << 10
CLIENT_SSL: Final = 1 << 11
CLIENT_IGNORE_SIGPIPE: Final = 1 << 12
CLIENT_TRANSACTIONS: Final = 1 << 13
CLIENT_RESERVED: Final = 1 << 14
CLIENT_SECURE_CONNECTION: Final = 1 << 15
CLIENT_MULTI_STATEMENTS: Final = 1 << 16
CLIENT_MULTI_RESULTS: Final = 1 << 17
CLIENT_PS_MULTI_RESULTS: Final = 1 << 18
CLIENT_PLUGIN_AUTH: Final = 1 << 19
CLIENT_CONNECT_ATTRS: Final = 1 << 20
CLIENT_PLUGIN_AUTH_LENENC: Final = 1 << 21
CLIENT_SESSION_TRACK: Final = 1 << 23
CLIENT_DEPRECATE_EOF: Final = 1 << 24
CLIENT_ZSTD_COMPRESSION_ALGORITHM: Final = 1 << 26
CLIENT_QUERY_ATTRIBUTES: Final = 1 << 27
"""MySQL: parameters with names before the text of a COM_QUERY and among those of a COM_STMT_EXECUTE."""

# MariaDB's extended capabilities: 32 more bits, at the end of the filler of greeting and response.
MARIADB_CLIENT_PROGRESS: Final = 1 << 32
"""An ERR with number 0xFFFF tells how far a statement is; its answer goes on."""
MARIADB_CLIENT_STMT_BULK_OPERATIONS: Final = 1 << 34
"""COM_STMT_BULK_EXECUTE: one statement with many rows of parameters."""
MARIADB_CLIENT_EXTENDED_METADATA: Final = 1 << 35
"""A column definition tells more of its type (json, uuid, point)."""
MARIADB_CLIENT_BULK_UNIT_RESULTS: Final = 1 << 37
"""COM_STMT_BULK_EXECUTE may answer with a result set: one row for each row of parameters."""

EXTENDED_SHIFT: Final = 32
"""Bits of the capabilities that everybody knows; MariaDB's extended ones stand above them."""

MARIADB_CAPABILITIES: Final = (
    MARIADB_CLIENT_PROGRESS
    | MARIADB_CLIENT_STMT_BULK_OPERATIONS
    | MARIADB_CLIENT_EXTENDED_METADATA
    | MARIADB_CLIENT_BULK_UNIT_RESULTS
)

MATCHED_CAPABILITIES: Final = (
    CLIENT_FOUND_ROWS
    | CLIENT_NO_SCHEMA
    | CLIENT_LOCAL_FILES
    | CLIENT_IGNORE_SPACE
    | CLIENT_INTERACTIVE
    | CLIENT_MULTI_STATEMENTS
    | CLIENT_MULTI_RESULTS
    | CLIENT_PS_MULTI_RESULTS
    | CLIENT_SESSION_TRACK
    | CLIENT_DEPRECATE_EOF
    | CLIENT_QUERY_ATTRIBUTES
    | MARIADB_CAPABILITIES
)
"""Flags that change the stream or the meaning of statements: both legs of a session must have them alike.

They are part of the Startup, and so of the key by which pools keep backends: each backend is opened with just those that
its client has, on whatever engine. Translating instead (say, of EOF into OK) would make every packet of every row's
stream one that has to be rewritten, numbered and counted anew, on the path that copies bytes today, to save backends only
where clients of both kinds share a pool. Every MariaDB from 10.2 and MySQL from 5.7.5 on speaks with and without
CLIENT_DEPRECATE_EOF. An engine that lacks a flag which a session has cannot take it: the login there is refused by the
flag's name, before a switch has begun to hold anybody.
"""

AUTH_CAPABILITIES: Final = (
    CLIENT_LONG_PASSWORD
    | CLIENT_LONG_FLAG
    | CLIENT_PROTOCOL_41
    | CLIENT_TRANSACTIONS
    | CLIENT_RESERVED
    | CLIENT_SECURE_CONNECTION
    | CLIENT_PLUGIN_AUTH
    | CLIENT_CONNECT_ATTRS
    | CLIENT_PLUGIN_AUTH_LENENC
)
"""Flags each leg has on its own; they shape the login only (CLIENT_TRANSACTIONS: status flags in every answer)."""

OFFERED_CAPABILITIES: Final = MATCHED_CAPABILITIES | AUTH_CAPABILITIES | CLIENT_CONNECT_WITH_DB
"""Everything Turnout can relay. What an engine does not have is taken away from the greeting.

Never offered:
- CLIENT_OPTIONAL_RESULTSET_METADATA and MARIADB_CLIENT_CACHE_METADATA: the server leaves out column definitions which the
  client is meant to remember. They are those of the server that prepared the statement; after a move the client would
  read rows of another server by them.
- MARIADB_CLIENT_COM_MULTI: no server has it any more.
- CLIENT_CAN_HANDLE_EXPIRED_PASSWORDS, MULTI_FACTOR_AUTHENTICATION: of the login at the engine, which is Turnout's own.
"""

PACKINGS: Final[dict[PackingName, int]] = {"zlib": CLIENT_COMPRESS, "zstd": CLIENT_ZSTD_COMPRESSION_ALGORITHM}
"""Flags of compression, which each leg has for itself. Where a client sets both, zlib is meant."""

ZSTD_LEVEL: Final = 3
"""What we ask servers for: MySQL's own default."""

CAPABILITY_NAMES: Final = {
    CLIENT_FOUND_ROWS: "CLIENT_FOUND_ROWS",
    CLIENT_NO_SCHEMA: "CLIENT_NO_SCHEMA",
    CLIENT_LOCAL_FILES: "CLIENT_LOCAL_FILES",
    CLIENT_IGNORE_SPACE: "CLIENT_IGNORE_SPACE",
    CLIENT_PROTOCOL_41: "CLIENT_PROTOCOL_41",
    CLIENT_INTERACTIVE: "CLIENT_INTERACTIVE",
    CLIENT_SECURE_CONNECTION: "CLIENT_SECURE_CONNECTION",
    CLIENT_MULTI_STATEMENTS: "CLIENT_MULTI_STATEMENTS",
    CLIENT_MULTI_RESULTS: "CLIENT_MULTI_RESULTS",
    CLIENT_PS_MULTI_RESULTS: "CLIENT_PS_MULTI_RESULTS",
    CLIENT_PLUGIN_AUTH: "CLIENT_PLUGIN_AUTH",
    CLIENT_SESSION_TRACK: "CLIENT_SESSION_TRACK",
    CLIENT_DEPRECATE_EOF: "CLIENT_DEPRECATE_EOF",
    CLIENT_QUERY_ATTRIBUTES: "CLIENT_QUERY_ATTRIBUTES",
    CLIENT_COMPRESS: "CLIENT_COMPRESS",
    CLIENT_ZSTD_COMPRESSION_ALGORITHM: "CLIENT_ZSTD_COMPRESSION_ALGORITHM",
    MARIADB_CLIENT_PROGRESS: "MARIADB_CLIENT_PROGRESS",
    MARIADB_CLIENT_STMT_BULK_OPERATIONS: "MARIADB_CLIENT_STMT_BULK_OPERATIONS",
    MARIADB_CLIENT_EXTENDED_METADATA: "MARIADB_CLIENT_EXTENDED_METADATA",
    MARIADB_CLIENT_BULK_UNIT_RESULTS: "MARIADB_CLIENT_BULK_UNIT_RESULTS",
}

# --- status flags of OK and EOF packets ---------------------------------------------------------------------------

SERVER_STATUS_IN_TRANS: Final = 0x0001
SERVER_STATUS_AUTOCOMMIT: Final = 0x0002
SERVER_MORE_RESULTS_EXISTS: Final = 0x0008
SERVER_STATUS_CURSOR_EXISTS: Final = 0x0040
SERVER_STATUS_LAST_ROW_SENT: Final = 0x0080
SERVER_STATUS_NO_BACKSLASH_ESCAPES: Final = 0x0200
SERVER_STATUS_IN_TRANS_READONLY: Final = 0x2000
SERVER_SESSION_STATE_CHANGED: Final = 0x4000

# --- what comes behind an OK with SERVER_SESSION_STATE_CHANGED (`enum_session_state_type`) ------------------------------

TRACK_SYSTEM_VARIABLES: Final = 0
TRACK_SCHEMA: Final = 1
TRACK_STATE_CHANGE: Final = 2
TRACK_GTIDS: Final = 3
TRACK_TRANSACTION_CHARACTERISTICS: Final = 4
TRACK_TRANSACTION_STATE: Final = 5

# --- commands -----------------------------------------------------------------------------------------------------

COM_QUIT: Final = 0x01
COM_INIT_DB: Final = 0x02
COM_QUERY: Final = 0x03
COM_FIELD_LIST: Final = 0x04
COM_CREATE_DB: Final = 0x05
COM_DROP_DB: Final = 0x06
COM_REFRESH: Final = 0x07
COM_STATISTICS: Final = 0x09
COM_PROCESS_INFO: Final = 0x0A
COM_PROCESS_KILL: Final = 0x0C
COM_DEBUG: Final = 0x0D
COM_PING: Final = 0x0E
COM_CHANGE_USER: Final = 0x11
COM_BINLOG_DUMP: Final = 0x12
COM_REGISTER_SLAVE: Final = 0x15
COM_STMT_PREPARE: Final = 0x16
COM_STMT_EXECUTE: Final = 0x17
COM_STMT_SEND_LONG_DATA: Final = 0x18
COM_STMT_CLOSE: Final = 0x19
COM_STMT_RESET: Final = 0x1A
COM_SET_OPTION: Final = 0x1B
COM_STMT_FETCH: Final = 0x1C
COM_BINLOG_DUMP_GTID: Final = 0x1E
COM_RESET_CONNECTION: Final = 0x1F
COM_STMT_BULK_EXECUTE: Final = 0xFA
"""MariaDB."""

SEMI_SYNC_ACK: Final = 0xEF
"""Not a command: how a replica begins what it says while a dump of the binlog goes on, if replication is semi-synchronous."""
SEMI_SYNC_ACK_BYTES_MAX: Final = 1_024
"""A position (8 bytes) and the name of a file (512 at most, FN_REFLEN)."""

BULK_TYPES: Final = 0x80
"""Flag of COM_STMT_BULK_EXECUTE: the types of the parameters are in it."""
PARAMETER_COUNT_AVAILABLE: Final = 0x08
"""Flag of COM_STMT_EXECUTE with CLIENT_QUERY_ATTRIBUTES: the number of parameters is in it even where the statement has none."""
PROGRESS_REPORT: Final = 0xFFFF
"""Error number of what is no error; see MARIADB_CLIENT_PROGRESS."""

COM_INVENTED: Final = 0xFF
"""Not on the wire: in the queue of commands it stands for one that the proxy itself answers."""

# --- first bytes of answers ---------------------------------------------------------------------------------------

OK: Final = 0x00
MORE_AUTH_DATA: Final = 0x01
LOCAL_INFILE: Final = 0xFB
EOF: Final = 0xFE
"""Also AuthSwitchRequest, and OK in the place of EOF under CLIENT_DEPRECATE_EOF."""
ERR: Final = 0xFF

FAST_AUTH_OK: Final = 0x03
FULL_AUTH_WANTED: Final = 0x04
PUBLIC_KEY_WANTED: Final = 0x02

# --- column types (`enum_field_types`) ----------------------------------------------------------------------------

TYPE_DECIMAL: Final = 0x00
TYPE_LONGLONG: Final = 0x08
TYPE_NEWDECIMAL: Final = 0xF6
NUMERIC_TYPES: Final = frozenset({0x00, 0x01, 0x02, 0x03, 0x08, 0x09, 0x0D, 0xF6})
FLOAT_TYPES: Final = frozenset({0x04, 0x05})

CHARSET_BINARY: Final = 63
CHARSET_UTF8MB4: Final = 45
"""utf8mb4_general_ci, known to MySQL 5.5 and later and to every MariaDB."""

LOGIN_COLLATION_MAX: Final = 0xFF
"""The largest number of a collation that a login can name: HandshakeResponse41 has one byte for it, COM_CHANGE_USER two."""

# --- statement ids ------------------------------------------------------------------------------------------------

STATEMENT_LAST_PREPARED: Final = 0xFFFF_FFFF
"""MariaDB: the statement prepared last."""
STATEMENT_NONE: Final = 0xFFFF_FFFE
"""No server gives this id: what a client's command becomes whose statement the backend does not have (error 1243)."""

STATEMENTS_MAX: Final = 1 << 20
"""Most prepared statements of one session: the greatest `max_prepared_stmt_count` (of a whole server) in MariaDB, a
fourth of MySQL's."""

# --- error numbers we send ourselves ------------------------------------------------------------------------------

ER_CON_COUNT: Final = 1040
ER_HANDSHAKE: Final = 1043
ER_ACCESS_DENIED: Final = 1045
ER_UNKNOWN_COM: Final = 1047
CR_AUTH_PLUGIN_CANNOT_LOAD: Final = 2059
ER_NO_SUCH_THREAD: Final = 1094
ER_BAD_DB: Final = 1049
ER_UNKNOWN_ERROR: Final = 1105
ER_NEED_REPREPARE: Final = 1615

# --- error numbers by which a server ends a connection -------------------------------------------------------------

ER_SERVER_SHUTDOWN: Final = 1053
ER_CONNECTION_KILLED: Final = 1927
"""MariaDB."""
ER_SESSION_WAS_KILLED: Final = 3169
"""MySQL."""
