"""What has to be repeated on another backend so that a MySQL session does not notice.

From the wire it keeps prepared statements (text, database, parameter types), the database and COM_SET_OPTION. All else
the server is asked for (`inspection`), when text or flags said that it may have changed (`is_dirty`): database, session
variables that differ from what a fresh backend of the same Startup has, user variables, user locks, temporary tables.

Both servers are asked what an ordinary account may ask. MariaDB lists a session's user variables to everybody; MySQL
only to accounts that may read `performance_schema`, so there the names seen in the session's texts are asked for as well. What
neither server tells is kept from the texts, and counts as held until it is given back: HANDLER, XA, SQL PREPARE from a variable, locks and temporary
tables whose names were not literal. In transaction mode session variables are given to whatever backend the session is
lent next (`Redress`); all else ties it to the one it has. Locks and temporary tables whose names are known are carried while the session is
held (`locks`, `temp`).

LAST_INSERT_ID() is the tracker's. Not carried, on purpose: FOUND_ROWS(), ROW_COUNT(), the warnings of the last statement (an
inspection resets them as any statement does: they belong to the statement just before), the values of `timestamp`, `rand_seed…`
and `insert_id` that are meant for one statement. A stored function or trigger that changes the session inside of a plain statement is not
seen until the next inspection; a planned switch asks every session.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from protocols.mysql import constants as c
from protocols.mysql import temp, tracking
from protocols.mysql.exchange import Answer, Exchange, Question
from protocols.mysql.locks import Releasing, Taking
from protocols.mysql.messages import command, raw, text
from protocols.mysql.state import TEXT_HOLDS, TEXT_NAMES, TEXT_SEVERAL
from protocols.mysql.tracker import Statement
from protocols.mysql.tracking import Told
from protocols.wire import BackendFacts, BackendRefused, Startup

GAPS_MAX: Final = 256
"""Most statement ids that are used up on a fresh backend so that its ids become those of the client."""

PIN_LOCKED_TABLES: Final = "locked tables"

CHARSET_VARIABLES: Final = (
    "character_set_client", "character_set_results", "character_set_connection", "collation_connection"
)  # fmt: skip
"""What a login sets, in the order of `BackendFacts.charsets`."""

PIN_UNREADABLE: Final = "session state cannot be read"

NOT_CARRIED: Final = frozenset({
    # For one statement, or about the last one.
    "timestamp", "insert_id", "last_insert_id", "identity", "lastval", "rand_seed1", "rand_seed2", "error_count",
    "warning_count", "in_transaction", "last_gtid", "gtid_next", "gtid_owned", "gtid_executed", "gtid_seq_no",
    "original_commit_timestamp", "immediate_server_version", "original_server_version", "statement_id",
    # Who one is.
    "pseudo_thread_id", "pseudo_slave_mode", "pseudo_replica_mode", "proxy_user", "external_user",
    # Taken from the global value at the login; read-only in a session.
    "max_allowed_packet", "net_buffer_length", "max_user_connections",
    # They follow the database.
    "character_set_database", "collation_database",
})  # fmt: skip

# Possessive and atomic, as `kill.SPACE`: a row of comments has one reading.
_SPACE: Final = rb"(?>\s|/\*.*?\*/|--\s[^\n]*\n|#[^\n]*\n)*+"
_NAME: Final = rb"(`(?:[^`]|``)+`|[\w$\x80-\xff]+)"
_TABLE: Final = rb"((?:`(?:[^`]|``)+`|[\w$\x80-\xff]+)(?:\s*\.\s*(?:`(?:[^`]|``)+`|[\w$\x80-\xff]+))?)"
_FLAGS: Final = re.IGNORECASE | re.DOTALL

_USE = re.compile(rb"^" + _SPACE + rb"USE\s+" + _NAME + rb"\s*;?\s*$", _FLAGS)
_ONE_SHOT = re.compile(rb"\bSET\s+TRANSACTION\b", _FLAGS)
_GET_LOCK = re.compile(rb"\bGET_LOCK\s*\(\s*(?:('(?:[^'\\]|'')*'|\"(?:[^\"\\]|\"\")*\")\s*,)?", _FLAGS)
_RELEASE_ALL = re.compile(rb"\bRELEASE_ALL_LOCKS\b", _FLAGS)
_TEMPORARY = re.compile(rb"\bTEMPORARY\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?" + _TABLE, _FLAGS)
_SEQUENCE = re.compile(rb"\bTEMPORARY\s+SEQUENCE\b", _FLAGS)
_LOCK = re.compile(rb"(?:^|;)" + _SPACE + rb"(?:LOCK\b|FLUSH\b.*\b(?:LOCK|EXPORT)\b)", _FLAGS)
_UNLOCK = re.compile(rb"^" + _SPACE + rb"UNLOCK\b", _FLAGS)
_HANDLER = re.compile(
    rb"(?:^|;)" + _SPACE + rb"HANDLER\s+" + _TABLE + rb"\s+(OPEN|CLOSE)\b(?:\s+(?:AS\s+)?" + _NAME + rb")?", _FLAGS
)
_XA = re.compile(rb"(?:^|;)" + _SPACE + rb"XA\s+(START|BEGIN|END|PREPARE|COMMIT|ROLLBACK)\b", _FLAGS)
_XA_STATES: Final = {
    b"START": "active", b"BEGIN": "active", b"END": "idle", b"PREPARE": "prepared", b"COMMIT": "", b"ROLLBACK": "",
}  # fmt: skip
"""Where each statement leads that succeeds. In all of them but the last a transaction is open, as the status flags say."""
_PREPARE = re.compile(rb"(?:^|;)" + _SPACE + rb"PREPARE\s+" + _NAME + rb"\s+FROM\s*(['\"])?", _FLAGS)
_DEALLOCATE = re.compile(rb"^" + _SPACE + rb"(?:DEALLOCATE|DROP)\s+PREPARE\s+" + _NAME, _FLAGS)
_TRACKING = re.compile(rb"\bsession_track_\w+(?=\s*:?=)", _FLAGS)
_USER_VARIABLE = re.compile(rb"(?<!@)@(`(?:[^`]|``)+`|'[^'\\]+'|\"[^\"\\]+\"|[\w.$\x80-\xff]+)")
_CREATES = re.compile(rb"\bCREATE\b", _FLAGS)


def _bare(name: bytes) -> bytes:
    """A name without its quotes, as MySQL compares it."""
    if name[:1] in (b"`", b"'", b'"'):
        quote = name[:1]
        name = name[1:-1].replace(quote * 2, quote)
    return name.lower()


def _quoted(name: bytes) -> bytes:
    return b"`" + name.replace(b"`", b"``") + b"`"


def _query(sql: bytes, name: str, *, is_optional: bool = False) -> Question:
    return Question(command(c.COM_QUERY, sql), name, is_optional)


def _unhex(value: bytes | None) -> bytes:
    return bytes.fromhex((value or b"").decode("ascii"))


def _variable_literal(name: str, value: bytes | None) -> bytes:
    """A session variable's value as SET takes it: numbers bare, for they are refused as strings."""
    if value is None or (not value and name in CHARSET_VARIABLES):
        return b"NULL"
    if re.fullmatch(rb"-?\d+(\.\d+)?", value):
        return value
    if value.isascii() and not re.search(rb"['\\\0]", value):
        return b"'" + value + b"'"
    return b"_utf8mb4 x'" + value.hex().encode() + b"'"


# Every query has a LIMIT, for without one the session's sql_select_limit applies; names and values come as HEX, so that
# the session's charsets do not matter.
_ALWAYS: Final = (
    b"('character_set_client','character_set_connection','character_set_results','collation_connection',"
    b"'interactive_timeout','wait_timeout','sql_mode')"
)
_MARIADB_VARIABLES: Final = (
    b"SELECT HEX(VARIABLE_NAME), HEX(SESSION_VALUE), HEX(GLOBAL_VALUE) FROM information_schema.SYSTEM_VARIABLES "
    b"WHERE VARIABLE_SCOPE = 'SESSION' AND (NOT (SESSION_VALUE <=> GLOBAL_VALUE) OR VARIABLE_NAME IN "
    + _ALWAYS
    + b") LIMIT 10000"
)
# The "index" of global_variables is a walk through all of them for each session variable: 3.5 ms of processor time (9.7).
# Without it MySQL makes both lists once and joins them by a hash: 1.7 ms, of which 1.3 are the lists. The hint is for
# sessions with block_nested_loop=off, where it would make one list for each row of the other.
_MYSQL_VARIABLES: Final = (
    b"SELECT /*+ BNL(s, g) */ HEX(s.VARIABLE_NAME), HEX(s.VARIABLE_VALUE), HEX(g.VARIABLE_VALUE) "
    b"FROM performance_schema.session_variables s IGNORE INDEX (PRIMARY) "
    b"JOIN performance_schema.global_variables g IGNORE INDEX (PRIMARY) ON s.VARIABLE_NAME = g.VARIABLE_NAME "
    b"WHERE NOT (s.VARIABLE_VALUE <=> g.VARIABLE_VALUE) OR s.VARIABLE_NAME IN " + _ALWAYS + b" LIMIT 10000"
)
_MARIADB_USER_VARIABLES: Final = b"SELECT HEX(VARIABLE_NAME) FROM information_schema.USER_VARIABLES LIMIT 100000"
_MYSQL_THREAD: Final = b"(SELECT THREAD_ID FROM performance_schema.threads WHERE PROCESSLIST_ID = CONNECTION_ID())"
_MYSQL_USER_VARIABLES: Final = (
    b"SELECT HEX(VARIABLE_NAME) FROM performance_schema.user_variables_by_thread WHERE VARIABLE_VALUE IS NOT NULL "
    b"AND THREAD_ID = " + _MYSQL_THREAD + b" LIMIT 100000"
)
_MYSQL_USER_LOCKS: Final = (
    b"SELECT HEX(OBJECT_NAME) FROM performance_schema.metadata_locks WHERE OBJECT_TYPE = 'USER LEVEL LOCK' "
    b"AND LOCK_STATUS = 'GRANTED' AND OWNER_THREAD_ID = " + _MYSQL_THREAD + b" LIMIT 10000"
)


@dataclass(slots=True)
class _Held:
    """What the texts said the session holds."""

    user_variables: set[bytes] = field(default_factory=set)
    """Names seen, bare; whether they have a value the server says."""
    locks: set[bytes] = field(default_factory=set)
    """GET_LOCK names, as SQL literals."""
    temporary_tables: set[bytes] = field(default_factory=set)
    """Qualified and quoted."""
    handlers: set[bytes] = field(default_factory=set)
    sql_statements: dict[bytes, bytes] = field(default_factory=dict)
    """SQL PREPARE from a literal: name -> the whole text."""
    unknown: set[str] = field(default_factory=set)
    """Pins that nothing but a reset takes away."""
    pins: set[str] = field(default_factory=set)
    """Pins that a later statement takes away."""
    xa: str = ""
    """State of the session's XA transaction, as MySQL's manual names it: active, idle, prepared; empty for none."""


class MysqlLedger:
    """See `protocols.wire.Ledger`."""

    def __init__(self, startup: Startup, *, shares_backends: bool = False) -> None:
        self.startup = startup
        self._shares = shares_backends
        """Transaction mode: session variables move from backend to backend (`wanted`) and do not tie the session to one."""
        self.version = 0
        self.is_dirty = False
        self.database: bytes = raw(startup.database)
        self.variables: dict[str, bytes | None] = {}
        """Session variables that a fresh backend does not have so: name -> value."""
        self.user_variables: dict[bytes, bytes] = {}
        """Name -> SQL expression of its value."""
        self.statements: dict[int, Statement] = {}
        """Prepared statements by the client's id. The tracker fills it."""
        self.has_warnings = False
        """Transaction mode: the backend has something of the last statement that the client may ask for."""
        self._pending: tuple[str, ...] = ()
        """What that is."""
        self.option: int | None = None
        """Last COM_SET_OPTION; None if there was none."""
        self._held = _Held()
        self.own_tracking: set[str] = set()
        """Variables of session tracking that the client has set itself."""
        self._told: list[str] = []
        """Pins the last inspection found."""
        self._released: dict[bytes, int] = {}
        """Locks that were given up on the old backend: how often each was taken."""
        self._tables: list[temp.TempTable] = []
        """Temporary tables as the last inspection found them."""
        self._are_tables_read = False
        self._sql_mode = b""
        """As the last inspection found it."""
        self._is_legible = True
        """Texts of the server are in the charset in which it wants those of the session."""
        self._is_mariadb = False
        self._charsets: tuple[bytes, ...] | None = None
        """Of the backend's login; None before the first backend."""
        self._adopted: dict[int, int] = {}

    # --- told by the tracker --------------------------------------------------------------------------------------

    def note_backend(self, backend: BackendFacts) -> None:
        self._is_mariadb = "mariadb" in backend.server_version.lower()
        self._charsets = backend.charsets

    def note_database(self, database: bytes) -> None:
        """COM_INIT_DB or USE went well."""
        self.is_dirty = True
        if database != self.database:
            self.database = database
            self.version += 1

    def note_statement(self, statement: Statement) -> None:
        """COM_STMT_PREPARE went well; the tracker has put it into `statements`."""
        self.version += 1
        statement.database = self.database
        if statement.text is None:
            self._held.unknown.add("prepared statement over 16 MB")

    def note_option(self, option: int) -> None:
        self.option = option
        self.version += 1

    def note_dump(self) -> None:
        """The client is a replica, or reads the binlog like one: the server knows this connection as such from now on."""
        self._held.unknown.add("binlog dump")

    def note_pending(self, *, warnings: bool, counts: bool) -> None:
        """Transaction mode: what of the last statement the client may ask for, of the backend that has it."""
        self.has_warnings = warnings or counts
        self._pending = ("warnings",) * warnings + ("row counts",) * counts

    def note_reset(self) -> None:
        """COM_RESET_CONNECTION went well: everything is gone but the database."""
        self._held = _Held()
        self._told = []
        self.variables = {}
        self.user_variables = {}
        self.option = None
        self.own_tracking = set()
        self.is_dirty = True
        self.version += 1

    def note_told(self, told: Told) -> bool:
        """What the server has told of changes. True if the ledger did not have it so."""
        pins = self._held.pins
        is_news = told.is_changed or told.database is not None
        if told.database is not None:
            self.note_database(told.database)
        if told.is_changed:
            self.is_dirty = True
        if told.has_locked_tables is not None and told.has_locked_tables != (PIN_LOCKED_TABLES in pins):
            is_news = True
            if told.has_locked_tables:
                pins.add(PIN_LOCKED_TABLES)
            else:
                pins.discard(PIN_LOCKED_TABLES)
        return is_news

    def note_text(self, found: int, sql: bytes | None, is_error: bool, *, in_transaction: bool = False) -> bool:
        """A statement is done whose text has `found` (TEXT_… bits); `sql` is None where it was too long to keep.
        `in_transaction`: the status flags say so.
        True: it set something for the next transaction only."""
        self.is_dirty = True
        if sql is None:
            if found & (TEXT_HOLDS | TEXT_NAMES):
                self._held.unknown.add("statement too long to read")
            return False
        is_several = bool(found & TEXT_SEVERAL)
        if found & TEXT_NAMES:
            self._held.user_variables.update(_bare(name) for name in _USER_VARIABLE.findall(sql))
        if is_error and not is_several:
            return False
        self.own_tracking.update(
            name for name in map(text, map(bytes.lower, _TRACKING.findall(sql))) if tracking.is_ours(name)
        )
        if (match := _USE.match(sql)) is not None:
            name = match[1]
            self.note_database(name[1:-1].replace(b"``", b"`") if name[:1] == b"`" else name)
        if found & TEXT_HOLDS:
            self._note_holds(sql, is_several, in_transaction)
        return _ONE_SHOT.search(sql) is not None

    def _note_holds(self, sql: bytes, is_several: bool, in_transaction: bool) -> None:
        held = self._held
        for match in _GET_LOCK.finditer(sql):
            if match[1]:
                held.locks.add(match[1])
            else:
                held.unknown.add("user lock")
        if _CREATES.search(sql):
            self._note_temporary(sql)
        if _LOCK.search(sql):
            held.pins.add(PIN_LOCKED_TABLES)
        for match in _HANDLER.finditer(sql):
            if match[2].upper() == b"OPEN":
                held.handlers.add(_bare(match[3] or match[1].rpartition(b".")[2].strip()))
            elif not is_several:
                held.handlers.discard(_bare(match[1]))
        for match in _XA.finditer(sql):
            held.xa = _XA_STATES[match[1].upper()]
        if held.xa == "prepared" and not in_transaction:
            # MySQL since 8.0.29 takes it from the session then: any other may end it.
            held.xa = ""
        for match in _PREPARE.finditer(sql):
            if match[2] and not is_several:
                held.sql_statements[_bare(match[1])] = sql
            else:
                held.unknown.add("SQL prepared statement")
        if is_several:
            return
        # What gives something back is believed only where it is the whole text.
        if _UNLOCK.match(sql):
            held.pins.discard(PIN_LOCKED_TABLES)
        if _RELEASE_ALL.search(sql):
            held.unknown.discard("user lock")
        if (deallocated := _DEALLOCATE.match(sql)) is not None:
            held.sql_statements.pop(_bare(deallocated[1]), None)

    def _note_temporary(self, sql: bytes) -> None:
        tables = _TEMPORARY.findall(sql)
        if not tables or _SEQUENCE.search(sql):
            # In a procedure's body, perhaps; or of another kind.
            self._held.unknown.add("temporary table")
        for table in tables:
            if b"." in table:
                self._held.temporary_tables.add(table)
            elif self.database:
                self._held.temporary_tables.add(_quoted(self.database) + b"." + table)
            else:
                self._held.unknown.add("temporary table")

    # --- what a session holds -------------------------------------------------------------------------------------

    @property
    def ties(self) -> list[str]:
        """All of it keeps the backend but session variables, which go from one to the next."""
        return [*(name for name in self.carried() if name != "variables"), *self._pending]

    @property
    def bound(self) -> list[str]:
        """See `wire.Ledger`."""
        return ["user lock"] * self.has_locks + ["temporary table"] * self.has_tables

    @property
    def wanted(self) -> tuple[tuple[str, str], ...]:
        """See `wire.Ledger`: session variables, each with its value as SQL, in ASCII."""
        return tuple(
            sorted((name, _variable_literal(name, value).decode("ascii")) for name, value in self.variables.items())
        )

    @property
    def worn(self) -> tuple[tuple[str, str], ...]:
        """The same: a login sets no variables that a reset would not give back."""
        return self.wanted

    @property
    def pins(self) -> list[str]:
        """Reasons for grade D by name."""
        held = self._held
        pins = {*self._told, *held.pins, *held.unknown}
        if held.handlers:
            pins.add("handler")
        if held.xa == "prepared":
            pins.add("xa prepared")
        if self._charsets == ():
            pins.add(PIN_UNREADABLE)
        return sorted(pins)

    @property
    def is_empty(self) -> bool:
        return not (
            self.is_dirty
            or (self.variables and not self._shares)
            or self.user_variables
            or self.statements
            or self._held.sql_statements
            or self._held.locks
            or self._held.temporary_tables
            or self.option is not None
            or self.has_warnings
            or self.pins
            or self.database != raw(self.startup.database)
        )

    @property
    def idle_limit_s(self) -> float:
        """See `wire.Ledger`."""
        return float(self.variables.get("wait_timeout") or 0)

    # --- asking the backend ---------------------------------------------------------------------------------------

    def inspection(self) -> Exchange:
        """Ask the session's backend what it holds. Names of user variables that only the server knew are asked for
        by the next inspection: `is_dirty` stays True until all values are known."""
        names = sorted(self._held.user_variables)
        locks = sorted(self._held.locks)
        tables = sorted(self._held.temporary_tables)
        questions = [
            _query(b"SELECT HEX(DATABASE()), @@SESSION.sql_log_bin", "database"),
            _query(_MARIADB_VARIABLES if self._is_mariadb else _MYSQL_VARIABLES, "session variables"),
            _query(
                _MARIADB_USER_VARIABLES if self._is_mariadb else _MYSQL_USER_VARIABLES,
                "names of user variables",
                is_optional=not self._is_mariadb,
            ),
        ]
        questions += [
            _query(b"SELECT COLLATION(@%s), CHARSET(@%s), HEX(@%s), @%s" % ((_quoted(name),) * 4), f"@{text(name)}")
            for name in names
        ]
        questions += [
            _query(b"SELECT IS_USED_LOCK(%s) = CONNECTION_ID()" % lock, "user lock", is_optional=True) for lock in locks
        ]
        for table in tables:
            questions += temp.questions(table)
        if not self._is_mariadb:
            questions.append(_query(_MYSQL_USER_LOCKS, "user locks", is_optional=True))
        if (tracked := tracking.turn_on(self.startup.capabilities, self.own_tracking)) != b"":
            # A COM_RESET_CONNECTION has turned it off.
            questions.append(_query(tracked, "session tracking", is_optional=True))
        # With autocommit off the questions have begun a transaction, whose snapshot would be the client's next one.
        questions.append(_query(b"ROLLBACK AND NO CHAIN NO RELEASE", "end of the inspection"))
        return Exchange(
            questions,
            capabilities=self.startup.capabilities,
            on_complete=lambda answers: self._learn(answers, names, locks, tables),
        )

    def _learn(self, answers: list[Answer], names: list[bytes], locks: list[bytes], tables: list[bytes]) -> None:
        try:
            self._learn_all(answers, names, locks, tables)
        except (ValueError, IndexError):
            # character_set_results may be one in which not even digits are what they are in ASCII (utf16, utf32).
            self.is_dirty = False
            self._told.append(PIN_UNREADABLE)

    def _learn_all(self, answers: list[Answer], names: list[bytes], locks: list[bytes], tables: list[bytes]) -> None:
        before = (self.database, self.variables, self.user_variables, self.pins)
        rest = iter(answers)
        basics, variables, name_list = next(rest), next(rest), next(rest)
        self._told = []
        if basics.error is not None or variables.error is not None:
            self._told.append(PIN_UNREADABLE)
        else:
            self.database = _unhex(basics.rows[0][0])
            self._learn_variables(variables)
            if basics.rows[0][1] == b"0":
                self.variables["sql_log_bin"] = b"0"
        self.is_dirty = self._learn_user_variables(name_list, [next(rest) for _ in names], names)
        for lock in locks:
            if next(rest).rows != [[b"1"]]:
                self._held.locks.discard(lock)
        self._learn_tables([(name, next(rest), next(rest)) for name in tables])
        for answer in rest:
            if answer.question.name == "user locks" and answer.error is None:
                # The server knows its locks better than the texts.
                self._held.unknown.discard("user lock")
                self._held.locks = {b"_utf8mb4 x'%s'" % (row[0] or b"") for row in answer.rows}
        if before != (self.database, self.variables, self.user_variables, self.pins):
            self.version += 1

    def _learn_tables(self, answers: list[tuple[bytes, Answer, Answer]]) -> None:
        self._tables = []
        self._are_tables_read = False
        for name, made, columns in answers:
            found = temp.table(name, made, columns, is_legible=self._is_legible)
            if found is None:
                self._held.temporary_tables.discard(name)
            elif isinstance(found, str):
                self._told.append(found)
            else:
                self._tables.append(found)

    def _learn_variables(self, answer: Answer) -> None:
        fresh: dict[str, bytes | None] = {
            _unhex(name).decode("utf-8", "replace").lower(): None if value is None else _unhex(value)
            for name, _, value in answer.rows
        }
        if self._charsets:
            fresh.update(zip(CHARSET_VARIABLES, self._charsets, strict=True))
        if self.startup.capabilities & c.CLIENT_INTERACTIVE and "interactive_timeout" in fresh:
            fresh["wait_timeout"] = fresh["interactive_timeout"]
        variables: dict[str, bytes | None] = {}
        for hex_name, value, _ in answer.rows:
            name = _unhex(hex_name).decode("utf-8", "replace").lower()
            now = None if value is None and name not in CHARSET_VARIABLES else _unhex(value)
            if name == "sql_mode":
                self._sql_mode = now or b""
            if name == "sql_mode" and self.startup.capabilities & c.CLIENT_IGNORE_SPACE and now is not None:
                # The flag adds it at the login.
                now_modes, fresh_modes = set(now.split(b",")), set((fresh[name] or b"").split(b","))
                if now_modes == (fresh_modes | {b"IGNORE_SPACE"}) - {b""}:
                    continue
            if tracking.is_ours(name) and name not in self.own_tracking:
                continue
            if now != fresh[name] and name not in NOT_CARRIED and not name.startswith("wsrep_"):
                variables[name] = now
        everything = {_unhex(n).decode("utf-8", "replace").lower(): v for n, v, _ in answer.rows}
        self._is_legible = everything.get("character_set_client") == everything.get("character_set_results")
        if variables.get("character_set_client") is not None or "collation_connection" in variables:
            # SET of one of them changes another: all or none.
            for name in CHARSET_VARIABLES:
                value = everything.get(name)
                variables[name] = None if value is None else _unhex(value)
        self.variables = variables

    def _learn_user_variables(self, name_list: Answer, answers: list[Answer], names: list[bytes]) -> bool:
        """True if there are names whose values have not been asked for."""
        values: dict[bytes, bytes] = {}
        for name, answer in zip(names, answers, strict=True):
            if answer.error is not None:
                self._told.append("user variable")
                continue
            collation, charset, hex_value, plain = answer.rows[0]
            if plain is None:
                continue
            kind = answer.types[3]
            if kind in c.NUMERIC_TYPES:
                values[name] = plain
            elif kind in c.FLOAT_TYPES:
                values[name] = plain if b"e" in plain.lower() else plain + b"e0"
            elif charset == b"binary" or charset is None or collation is None:
                values[name] = b"x'" + (hex_value or b"") + b"'"
            else:
                values[name] = b"_" + charset + b" x'" + (hex_value or b"") + b"' COLLATE " + collation
        self.user_variables = values
        if name_list.error is not None:
            return False
        told = {_unhex(row[0]).lower() for row in name_list.rows}
        self._held.user_variables &= told
        if any(not name.isascii() for name in told):
            # They would have to be sent in the session's charset of the moment.
            self._told.append("user variable whose name is not ASCII")
            told = {name for name in told if name.isascii()}
        new = told - set(names)
        self._held.user_variables |= new
        return bool(new)

    # --- repeating it on another backend --------------------------------------------------------------------------

    def replay(self, *, is_late: bool) -> Exchange | None:
        """All of it is early: settings and prepared statements work on a read-only replica as well."""
        if is_late:
            return None
        self._adopted = {}
        questions = self._replay_settings()
        statements = self._replay_statements()
        database = raw(self.startup.database)
        # A statement is bound to the database it was prepared in.
        for wanted, question in statements:
            if wanted and wanted != database:
                questions.append(Question(command(c.COM_INIT_DB, wanted), "database"))
                database = wanted
            questions.append(question)
        if self.database and self.database != database:
            questions.append(Question(command(c.COM_INIT_DB, self.database), "database"))
        questions += [
            _query(sql, f"SQL prepared statement {text(name)}")
            for name, sql in sorted(self._held.sql_statements.items())
        ]
        if (autocommit := self.variables.get("autocommit")) is not None:
            # The last, so that nothing of ours begins a transaction.
            questions.append(_query(b"SET SESSION autocommit = " + autocommit, "autocommit"))
        if not questions:
            return None
        return _Replay(self, questions)

    def _replay_settings(self) -> list[Question]:
        questions = []
        if self.option is not None:
            questions.append(
                Question(command(c.COM_SET_OPTION, self.option.to_bytes(2, "little")), "multi-statement option")
            )
        questions += [
            _query(b"SET @%s = %s" % (_quoted(name), value), f"@{text(name)}")
            for name, value in sorted(self.user_variables.items())
        ]
        questions += _set_variables(
            {name: _variable_literal(name, value) for name, value in self.variables.items() if name != "autocommit"}
        )
        return questions

    def _replay_statements(self) -> list[tuple[bytes, Question]]:
        """(database, question): prepares, with fillers so that the fresh backend's ids become the client's.

        A connection counts its statements, those of SQL PREPARE too (`statement_id_counter` in both servers), so a
        statement the client has closed meanwhile is replaced by a PREPARE of nothing. MySQL counts from 1; MariaDB goes
        on from where the thread's former connection stopped (seen in 10.11), and then the ids have to be mapped.
        """
        questions: list[tuple[bytes, Question]] = []
        following, fillers = 1, 0
        for client_id in sorted(self.statements):
            statement = self.statements[client_id]
            if statement.text is None:
                continue
            gap = client_id - following
            if 0 < gap <= GAPS_MAX - fillers:
                filler = _query(b"PREPARE turnout_filler FROM 'DO 0'", "statement id", is_optional=True)
                questions += [(b"", filler)] * gap
                fillers += gap
                following += gap
            prepare = Question(
                command(c.COM_STMT_PREPARE, statement.text),
                f"prepared statement {client_id}",
                # It may be about a temporary table, which is not there yet.
                is_optional=self.has_tables,
                statement=client_id,
            )
            questions.append((statement.database, prepare))
            following += 1
        if fillers:
            questions.append((b"", _query(b"DEALLOCATE PREPARE turnout_filler", "statement id", is_optional=True)))
        return questions

    def note_replayed(self, answers: list[Answer]) -> None:
        """The early replay is done."""
        self._adopted = {
            answer.question.statement: answer.statement_id
            for answer in answers
            if answer.question.statement is not None and answer.error is None
        }

    def carried(self) -> dict[str, int]:
        """What a move repeats, for people."""
        counts = {
            "database": int(self.database != raw(self.startup.database)),
            "variables": len(self.variables),
            "user variables": len(self.user_variables),
            "prepared statements": len(self.statements) + len(self._held.sql_statements),
            "multi-statement option": int(self.option is not None),
            "user locks": len(self._held.locks),
            "temporary tables": len(self._held.temporary_tables),
        }
        return {name: count for name, count in counts.items() if count}

    @property
    def has_locks(self) -> bool:
        """See `wire.Ledger`: GET_LOCK."""
        return bool(self._held.locks)

    def release_locks(self) -> Exchange | None:
        """See `wire.Ledger`."""
        self._released = {}
        if not self._held.locks:
            return None
        return Releasing(sorted(self._held.locks), self._note_released, capabilities=self.startup.capabilities)

    def _note_released(self, counts: dict[bytes, int]) -> None:
        self._released = {lock: count for lock, count in counts.items() if count}

    def take_locks(self) -> Exchange | None:
        """See `wire.Ledger`."""
        return Taking(self._released, capabilities=self.startup.capabilities) if self._released else None

    @property
    def has_tables(self) -> bool:
        """See `wire.Ledger`."""
        return bool(self._held.temporary_tables)

    def read_tables(self, bytes_max: int) -> Exchange | None:
        """See `wire.Ledger`."""
        if not self._tables:
            return None
        return temp.Dump(self._tables, bytes_max, capabilities=self.startup.capabilities, on_read=self._note_read)

    def _note_read(self, pin: str) -> None:
        self._are_tables_read = not pin
        if pin:
            self._told.append(pin)

    def make_tables(self) -> Exchange | None:
        """See `wire.Ledger`."""
        if not self._are_tables_read:
            return None
        return temp.making(self._tables, self._sql_mode, capabilities=self.startup.capabilities)

    def adopt(self, notes: dict[str, Any]) -> dict[str, Any]:
        """Ids of the last early replay, and which statements must carry their parameter types in the next execute."""
        notes["statement_ids"] = dict(self._adopted)
        notes["types_due"] = {
            client_id
            for client_id in self._adopted
            if client_id in self.statements and self.statements[client_id].parameters
        }
        return notes


class _Replay(Exchange):
    """The early replay. What it could not prepare for want of a table is postponed."""

    def __init__(self, ledger: MysqlLedger, questions: list[Question]) -> None:
        super().__init__(questions, capabilities=ledger.startup.capabilities, on_complete=self._done_with)
        self._ledger = ledger

    def _done_with(self, answers: list[Answer]) -> None:
        self._ledger.note_replayed(answers)
        self.postponed += [
            f"{answer.question.name}: {answer.error.message} ({answer.error.code})"
            for answer in answers
            if answer.error is not None and answer.question.statement is not None and answer.question.is_optional
        ]


def _set_variables(values: Mapping[str, bytes]) -> list[Question]:
    """One SET for each, `values` being SQL. collation_connection comes after character_set_connection, which sets it;
    autocommit last, so that nothing of ours begins a transaction.

    One charset for everything comes from a login or from SET NAMES as a rule, which both give character_set_results the
    collation, too: its number stands in the metadata of results. It is set by SET NAMES.
    """
    questions: list[Question] = []
    charsets = [values.get(name) for name in CHARSET_VARIABLES]
    if None not in charsets and len(set(charsets[:3])) == 1:
        questions.append(_query(b"SET NAMES %s COLLATE %s" % (charsets[0], charsets[3]), "charset"))
        values = {name: value for name, value in values.items() if name not in CHARSET_VARIABLES}
    ordered = sorted(values.items(), key=lambda item: (item[0] == "autocommit", item[0].startswith("coll"), item[0]))
    return questions + [_query(b"SET SESSION %s = %s" % (name.encode(), value), name) for name, value in ordered]


class Redress(Exchange):
    """Makes a shared backend that has the session variables of `worn` have those of `wanted`, and no others.

    One to be taken off is not set to DEFAULT: that is the server's value, and of some a login made its own.
    """

    def __init__(self, worn: Startup, wanted: Startup, facts: BackendFacts) -> None:
        old, new = dict(worn.parameters), dict(wanted.parameters)
        questions: list[Question] = []
        if not old.keys() <= new.keys():
            questions, old = _reset_questions(worn, facts), {}
        changes = {name: value.encode("ascii") for name, value in new.items() if old.get(name) != value}
        questions += _set_variables(changes)
        super().__init__(questions, capabilities=wanted.capabilities)

    def refusal(self) -> BackendRefused | None:
        """The server's first error, once complete."""
        for answer in self.answers:
            error = answer.error
            if error is not None and not answer.question.is_optional:
                return BackendRefused(str(error.code), error.sqlstate, f"{answer.question.name}: {error.message}")
        return None


def reset(startup: Startup, facts: BackendFacts) -> Exchange:
    """Make a used backend of `startup`, whose login told `facts`, like a fresh one.

    COM_RESET_CONNECTION leaves the default database as it is. What the login had set it forgets: the charsets, and both what
    CLIENT_IGNORE_SPACE and CLIENT_INTERACTIVE mean. These are set again. MariaDB (10.11) gives back the charset of a login
    whose collation it knows, and for an unknown one that of a connection that had the thread before.
    """
    return Exchange(_reset_questions(startup, facts), capabilities=startup.capabilities)


def _charset(charsets: tuple[bytes, ...]) -> list[Question]:
    """Give a backend the `charsets` of its login back, if they are known."""
    return _set_variables(
        {name: _variable_literal(name, value) for name, value in zip(CHARSET_VARIABLES, charsets, strict=False)}
    )


def _reset_questions(startup: Startup, facts: BackendFacts) -> list[Question]:
    questions = [Question(command(c.COM_RESET_CONNECTION), "reset"), *_charset(facts.charsets)]
    if startup.capabilities & c.CLIENT_IGNORE_SPACE:
        questions.append(_query(b"SET SESSION sql_mode = CONCAT(@@sql_mode, ',IGNORE_SPACE')", "sql_mode"))
    if startup.capabilities & c.CLIENT_INTERACTIVE:
        questions.append(_query(b"SET SESSION wait_timeout = @@GLOBAL.interactive_timeout", "wait_timeout"))
    if startup.database:
        questions.append(Question(command(c.COM_INIT_DB, raw(startup.database)), "database"))
    questions.append(_query(tracking.turn_on(startup.capabilities), "session tracking", is_optional=True))
    return questions


def check(startup: Startup, query: str) -> Exchange:
    """Ask an idle backend whether it answers: by a query, or by COM_PING if that is empty."""
    question = _query(query.encode(), "check") if query else Question(command(c.COM_PING), "check")
    return Exchange([question], capabilities=startup.capabilities)
