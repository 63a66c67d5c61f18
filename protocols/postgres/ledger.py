"""What of a PostgreSQL session has to be repeated on another backend, and how.

Protocol-level prepared statements of session mode are kept from the wire. Everything else is what the backend itself
says when it is asked (`inspection`): settings made by SET or set_config, role, SQL-level prepared statements, LISTEN
channels, and the reasons why the session cannot move. In transaction mode prepared statements are not here: the tracker
sends them to each backend that needs them.

Facts that shaped this, from PostgreSQL 13 to 18:

* `pg_settings` does not list custom settings (`app.tenant`). They are asked for by name, and names come from the texts
  that may have set them. After `SET LOCAL` such a setting stays with an empty value, so empty is as good as never set.
* `pg_prepared_statements.statement` is the whole text of the Query that held the PREPARE, with everything before and
  after it. Replaying that would run the rest again; only the PREPARE is cut out.
* `pg_settings.setting` is in the unit `set_config` takes, and lists are quoted as it wants them.
* Operators are found by search_path too, so the inspection names the schema of each.

Values are bytes of the session's client_encoding; they are never decoded except to be shown, and client_encoding is the
first thing that is replayed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from protocols.errors import ProtocolViolation
from protocols.postgres.constants import CHANNEL_BYTES_MAX
from protocols.postgres.exchange import Group, PostgresExchange
from protocols.postgres.messages import (
    build_bind,
    build_close,
    build_execute,
    build_parse,
    build_query,
    build_sync,
    decode,
    encode,
    parse_error,
    readable,
)
from protocols.postgres.temp import DEFINITIONS, Dump, TempTables, creations
from protocols.postgres.text import split_statements
from protocols.wire import BackendRefused, Exchange, Startup

LOCKS_MAX: Final = 1000
"""Most advisory locks of one session that are carried."""

CREATIONS_MAX: Final = 1000
"""Most names of temporary tables remembered with their ON COMMIT."""

STATEMENT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Most bytes of prepared statements kept for one session; with more it is pinned."""

CUSTOM_NAMES_MAX: Final = 1000
"""Most names that are asked for as custom settings in one inspection; with more the session is pinned."""

PIN_TEMP_TABLE: Final = "temp table"
PIN_MANY_LOCKS: Final = "too many advisory locks"
PIN_HELD_CURSOR: Final = "with hold cursor"
PIN_LARGE_STATEMENT: Final = "statement too large"
PIN_MANY_STATEMENTS: Final = "too many prepared statements"
PIN_CUSTOM_NAMES: Final = "too many custom settings"
PIN_BATCHED_PREPARE: Final = "prepared statement in a batch"
PIN_REPLICATION: Final = "replication connection"
TIE_LISTEN: Final = "listen"
TIE_PREPARED: Final = "prepared statement in SQL"
PIN_UNKNOWN: Final = "inspection failed"

_INSPECTION: Final = rb"""
SELECT 'setting'::pg_catalog.text AS kind, name, setting AS value FROM pg_catalog.pg_settings
 WHERE source OPERATOR(pg_catalog.=) 'session'::pg_catalog.text AND NOT (name OPERATOR(pg_catalog.=) ANY (ARRAY[
 'transaction_isolation', 'transaction_read_only', 'transaction_deferrable', 'seed', 'role', 'session_authorization',
 'is_superuser', 'in_hot_standby']::pg_catalog.text[]))
UNION ALL SELECT 'role', '', pg_catalog.current_setting('role')
UNION ALL SELECT 'user', '', pg_catalog.current_setting('session_authorization')
UNION ALL SELECT 'prepared', name, statement FROM pg_catalog.pg_prepared_statements WHERE from_sql
UNION ALL SELECT 'parsed', name, '' FROM pg_catalog.pg_prepared_statements WHERE NOT from_sql
UNION ALL SELECT 'channel', channel, '' FROM pg_catalog.pg_listening_channels() AS channel
UNION ALL SELECT 'cursor', name, '' FROM pg_catalog.pg_cursors WHERE is_holdable
UNION ALL SELECT 'lock', pg_catalog.concat_ws(','::pg_catalog.text, classid, objid, objsubid), mode
 FROM pg_catalog.pg_locks
 WHERE locktype OPERATOR(pg_catalog.=) 'advisory'::pg_catalog.text
 AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
UNION ALL SELECT 'temp', relname::pg_catalog.text, '' FROM pg_catalog.pg_class
 WHERE relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()
"""

_CUSTOM: Final = rb"""UNION ALL SELECT 'custom', name, pg_catalog.current_setting(name, true)
 FROM pg_catalog.unnest(ARRAY[%s]::pg_catalog.text[]) AS name
"""

DUPLICATE_PREPARED_STATEMENT: Final = "42P05"

_SETTER: Final = b"turnout_set_config"
_SET_CONFIG: Final = b"SELECT pg_catalog.set_config($1, $2, false)"

_LOCK_NAME: Final = re.compile(rb"([0-9]{1,10}),([0-9]{1,10}),([12])")
_PREPARE: Final = re.compile(rb'prepare\s+(?:"((?:[^"]|"")+)"|([^\s("]+))', re.IGNORECASE)


_NOTHING: Final[dict[bytes, bytes]] = {}
_NO_CHANNELS: Final[list[bytes]] = []
# In the place of what a session does not have, as most have next to nothing: one for all, so nothing may write to it.


class PostgresLedger:
    """See `wire.Ledger`."""

    __slots__ = (
        "_creations",
        "_custom_names",
        "_found_pins",
        "_lasting_pins",
        "_lock_counts",
        "_locks",
        "_replayed",
        "_shares",
        "_startup",
        "_statement_bytes",
        "_temp",
        "_worn",
        "absent",
        "channels",
        "is_dirty",
        "prepared",
        "role",
        "session_user",
        "settings",
        "statements",
        "version",
    )

    has_warnings: bool = False
    """PostgreSQL sends them along."""

    def __init__(self, startup: Startup, *, shares_backends: bool = False) -> None:
        self.version = 0
        self.is_dirty = False
        self.settings: dict[bytes, bytes] = _NOTHING
        """Made by the session, custom ones included."""
        self.role: bytes | None = None
        self.session_user: bytes | None = None
        """Set if SET SESSION AUTHORIZATION made it another than the login's."""
        self.prepared: dict[bytes, bytes] = _NOTHING
        """Texts of SQL's PREPARE by name."""
        self.channels: list[bytes] = _NO_CHANNELS
        self.statements: dict[bytes, bytes] = _NOTHING
        """Whole Parse messages by name (session mode)."""
        self.absent: set[bytes] | None = None
        """Those of them that the session's backend refused when they were replayed: their table did not exist at that
        moment, say. The tracker sends them again right before they are used."""
        self._startup = startup
        self._shares = shares_backends
        """Transaction mode: settings move from backend to backend (`wanted`) and do not tie the session to one."""
        self._worn: dict[bytes, bytes] = _NOTHING
        """Settings its backend had when it was asked last (transaction mode)."""
        self._statement_bytes = 0
        # Tuples and a frozenset: empty in most sessions, and then the same objects in all of them.
        self._found_pins: tuple[str, ...] = ()
        self._lasting_pins: tuple[str, ...] = (PIN_REPLICATION,) if startup.is_replication else ()
        self._custom_names: frozenset[bytes] = frozenset()
        self._replayed: _Replay | None = None
        self._locks: tuple[AdvisoryLock, ...] = ()
        self._lock_counts: list[int] | None = None
        self._temp: TempTables | None = None
        self._creations: dict[bytes, bool | None] | None = None

    # --- what is asked of it --------------------------------------------------------------------------------------

    @property
    def pins(self) -> list[str]:
        """Reasons for grade D by name; empty if there are none."""
        return [*self._found_pins, *self._lasting_pins]

    @property
    def is_empty(self) -> bool:
        """A fresh backend of the same Startup would do as it is. Not so while `is_dirty`."""
        # Asked at every boundary in transaction mode: no tuple is built.
        return not (
            self.is_dirty
            or self.statements
            or self._found_pins
            or self._lasting_pins
            or (not self._shares and (self.settings or self.role or self.session_user))
            or self.prepared
            or self.channels
            or self._locks
            or self._temp is not None
        )

    @property
    def has_locks(self) -> bool:
        """Something that must be given up on the old backend and taken on the new one while all sessions are held."""
        return bool(self._locks)

    @property
    def has_tables(self) -> bool:
        """Temporary tables, which have to be read on the old backend when the session is held."""
        return self._temp is not None

    def carried(self) -> dict[str, int]:
        """What a move repeats, for people: counts by name; without those that are 0."""
        counts = {
            "settings": len(self.settings),
            "role": (self.role is not None) + (self.session_user is not None),
            "prepared statements": len(self.statements) + len(self.prepared),
            "channels": len(self.channels),
            "advisory locks": len(self._locks),
            "temp tables": len(self._temp) if self._temp is not None else 0,
            "temp sequences": len(self._temp.sequences) if self._temp is not None else 0,
        }
        return {name: count for name, count in counts.items() if count}

    @property
    def idle_limit_s(self) -> float:
        """See `wire.Ledger`. The server tells the setting in milliseconds."""
        return int(self.settings.get(b"idle_session_timeout") or 0) / 1000

    @property
    def wanted(self) -> tuple[tuple[str, str], ...]:
        """Transaction mode: the settings a backend has to have for this session, as parameters of a Startup."""
        return _as_parameters(self._all_settings(self.settings))

    @property
    def worn(self) -> tuple[tuple[str, str], ...]:
        """The settings the backend had when it was asked last."""
        return _as_parameters(self._worn)

    def _all_settings(self, settings: dict[bytes, bytes]) -> dict[bytes, bytes]:
        found = dict(settings)
        if self.session_user is not None:
            found[b"session_authorization"] = self.session_user
        if self.role is not None:
            found[b"role"] = self.role
        return found

    @property
    def ties(self) -> list[str]:
        """Why the session keeps its backend in transaction mode, besides its pins."""
        ties = []
        if self.channels:
            ties.append(TIE_LISTEN)
        if self.prepared:
            ties.append(TIE_PREPARED)
        return [*ties, *self.bound]

    @property
    def bound(self) -> list[str]:
        """What dies with the server, by name: a switch can carry it, a crash cannot."""
        return ["advisory lock"] * self.has_locks + ["temp table"] * self.has_tables

    def _found(self) -> tuple[object, ...]:
        return (self.settings, self.role, self.session_user, self.prepared, self.channels)

    # --- filled by the tracker ------------------------------------------------------------------------------------

    def suspect(self, names: set[bytes]) -> None:
        """These may be names of custom settings."""
        new = names - self._custom_names
        if len(self._custom_names) + len(new) > CUSTOM_NAMES_MAX:
            self._pin(PIN_CUSTOM_NAMES)
        else:
            self._custom_names |= new

    def note_creations(self, text: bytes) -> None:
        """A text that may make temporary tables passed by: how they behave at a commit is in no catalog."""
        found = creations(text)
        if not found:
            return
        known = self._creations = self._creations or {}
        for name, deletes_rows in found.items():
            if len(known) < CREATIONS_MAX or name in known:
                # Two meanings: either may have been rolled back.
                known[name] = deletes_rows if known.get(name, deletes_rows) is deletes_rows else None

    def note_statement(self, name: bytes, message: bytes) -> None:
        """The server accepted this Parse."""
        self.forget_statement(name)
        if self._statement_bytes + len(message) > STATEMENT_BYTES_MAX:
            self._pin(PIN_MANY_STATEMENTS)
            return
        if self.statements is _NOTHING:
            self.statements = {}
        self.statements[name] = message
        self._statement_bytes += len(message)
        self.version += 1

    def forget_statement(self, name: bytes) -> None:
        message = self.statements.pop(name, None)
        self.note_present(name)
        if message is not None:
            self._statement_bytes -= len(message)
            self.version += 1

    def note_present(self, name: bytes) -> None:
        """No statement of this name is missing on the session's backend any more."""
        if self.absent is not None:
            self.absent.discard(name)

    def note_absent(self, name: bytes) -> None:
        """The session's backend refused it once more."""
        if self.absent is not None and name in self.statements:
            self.absent.add(name)

    def forget_statements(self) -> None:
        """DEALLOCATE ALL or DISCARD ALL was executed."""
        for name in list(self.statements):
            self.forget_statement(name)

    def pin_large_statement(self) -> None:
        self._pin(PIN_LARGE_STATEMENT)

    def _pin(self, reason: str) -> None:
        if reason not in self._lasting_pins:
            self._lasting_pins += (reason,)

    # --- exchanges ------------------------------------------------------------------------------------------------

    def inspection(self) -> Exchange:
        """Ask the session's backend what it holds."""
        text = _INSPECTION
        if self._custom_names:
            text += _CUSTOM % b", ".join(b"'" + name + b"'" for name in sorted(self._custom_names))
        return Inspection(self, text, asks_tables=self._temp is not None)

    def replay(self, *, is_late: bool) -> Exchange | None:
        """Make a fresh backend of the same Startup like the session's; the late part is LISTEN."""
        if is_late:
            late = self._late_groups()
            return PostgresExchange(late) if late else None
        groups = self._early_groups()
        self._replayed = _Replay(groups) if groups else None
        return self._replayed

    def release_locks(self) -> Exchange | None:
        """Give the advisory locks up on the session's old backend, where nobody needs them any more, and learn how often
        each was taken: no view tells."""
        return _ReleaseLocks(self, self._locks) if self._locks else None

    def on_released(self, counts: list[int]) -> None:
        """How often each lock was taken."""
        self._lock_counts = counts

    def take_locks(self) -> Exchange | None:
        """Take them as often on the new backend. What another session has there is an error."""
        counts, self._lock_counts = self._lock_counts or [1] * len(self._locks), None
        return _TakeLocks(self._locks, counts) if self._locks else None

    def read_tables(self, bytes_max: int) -> Exchange | None:
        """Read the temporary tables. Right before the session is held, and after an inspection; may add pins."""
        if self._temp is None:
            return None
        if bytes_max == 0:
            self._find_pin(PIN_TEMP_TABLE)
            return None
        return _ReadTables(self, self._temp, bytes_max, self._creations or {})

    def on_read(self, temp: TempTables) -> None:
        """`read_tables` is complete."""
        for reason in temp.pins:
            self._find_pin(reason)

    def make_tables(self) -> Exchange | None:
        """Make the temporary tables again, on a primary. None: they were never read."""
        if self._temp is None or not self._temp.is_dumped:
            return None
        return PostgresExchange([self._temp.restoring(self._creations or {})])

    def adopt(self, notes: dict[str, Any]) -> dict[str, Any]:
        """The notes of the backend that the early replay ran on: what it said of its parameters meanwhile, and which
        statements it does not have."""
        if self._replayed is not None:
            if self._replayed.parameters:
                notes.setdefault("parameters", {}).update(self._replayed.parameters)
            notes.pop("absent", None)
            if self._replayed.absent:
                notes["absent"] = self._replayed.absent
        return notes

    def _early_groups(self) -> list[Group]:
        # Settings that only a superuser may change come before the role that takes the right away; timeouts come
        # last, for they apply to what follows.
        settings = sorted(self.settings.items(), key=lambda setting: (_rank(setting[0]), setting[0]))
        first = [setting for setting in settings if _rank(setting[0]) < 2]
        last = [setting for setting in settings if _rank(setting[0]) == 2]
        if self.session_user is not None:
            first.append((b"session_authorization", self.session_user))
        if self.role is not None:
            first.append((b"role", self.role))
        groups = [_set(name, value) for name, value in first]
        groups += [
            Group(f"prepared statement {readable(name)}", build_query(text)) for name, text in self.prepared.items()
        ]
        groups += [
            _Parsing(f"prepared statement {readable(name)}", message + build_sync(), name=name)
            for name, message in self.statements.items()
        ]
        groups += [_set(name, value) for name, value in last]
        if first or last:
            # By a name, for the session's unnamed statement may be among those that are replayed.
            groups.insert(0, Group("settings", build_parse(_SETTER, _SET_CONFIG) + build_sync()))
            groups.append(Group("settings", build_close(b"S", _SETTER) + build_sync()))
        return groups

    def _late_groups(self) -> list[Group]:
        return [
            Group(f"LISTEN {readable(name)}", build_query(b'LISTEN "' + name.replace(b'"', b'""') + b'"'))
            for name in self.channels
        ]

    def on_inspected(self, rows: list[list[bytes | None]], errors: list[str], *, asked_tables: bool) -> None:
        """The answer to an inspection is complete."""
        before = self._found()
        self.is_dirty = False
        self._found_pins = ()
        if errors:
            self._found_pins = (PIN_UNKNOWN,)
            return
        self.settings, self.role, self.session_user, self.prepared, self.channels = {}, None, None, {}, []
        parsed: set[bytes] = set()
        locks: list[AdvisoryLock] = []
        has_temp, temp = False, TempTables()
        for kind, name, value in rows:
            if kind is not None and kind.startswith(b"t:"):
                temp.take(kind, name or b"", value)
            elif kind == b"lock":
                locks.append(AdvisoryLock.told(name or b"", value or b""))
            elif kind == b"temp":
                has_temp = True
            else:
                self._take_row(kind or b"", name or b"", value, parsed)
        self._locks, self._lock_counts = tuple(locks[:LOCKS_MAX]), None
        if len(locks) > LOCKS_MAX:
            self._find_pin(PIN_MANY_LOCKS)
        self._temp = temp if has_temp else None
        for reason in temp.pins:
            self._find_pin(reason)
        if has_temp and not asked_tables:
            # What they are made of is the next question.
            self.is_dirty = True
        if self._shares:
            self._worn = self._all_settings(self.settings)
            known = {name.lower() for name in self.settings}
            for startup_name, startup_value in self._startup.parameters:
                # RESET gives back what the client asked for at its login, and not what the server has.
                if startup_name.lower().encode() not in known:
                    self.settings[encode(startup_name)] = encode(startup_value)
        if self._found() != before:
            self.version += 1
        self.settings, self.prepared = self.settings or _NOTHING, self.prepared or _NOTHING
        self.channels = self.channels or _NO_CHANNELS
        for name in [name for name in self.statements if name not in parsed and name not in (self.absent or ())]:
            # SQL's DEALLOCATE knows these names too.
            self.forget_statement(name)

    def _take_row(self, kind: bytes, name: bytes, value: bytes | None, parsed: set[bytes]) -> None:
        if kind == b"setting":
            self.settings[name] = value or b""
        elif kind == b"custom":
            if value:
                self.settings[name] = value
        elif kind == b"role":
            self.role = value if value != b"none" else None
        elif kind == b"user":
            self.session_user = value if value and readable(value) != self._startup.user else None
        elif kind == b"prepared":
            text = own_prepare(value or b"", name)
            if text is None:
                self._find_pin(PIN_BATCHED_PREPARE)
            else:
                self.prepared[name] = text
        elif kind == b"parsed":
            parsed.add(name)
        elif kind == b"channel":
            self.channels.append(name[:CHANNEL_BYTES_MAX])
        elif kind == b"cursor":
            self._find_pin(PIN_HELD_CURSOR)

    def _find_pin(self, reason: str) -> None:
        if reason not in self._found_pins:
            self._found_pins += (reason,)


@dataclass(frozen=True, slots=True)
class _Parsing(Group):
    """Replays a statement of the extended protocol."""

    name: bytes = field(kw_only=True)


class _Replay(PostgresExchange):
    """The early replay.

    What a server has prepared it keeps, whatever becomes of the tables: without them the statement fails, and works
    again when they are back. So a Parse that is refused now is no loss; it is tried again when the client uses it.
    """

    def __init__(self, groups: list[Group]) -> None:
        super().__init__(groups)
        self.absent: set[bytes] = set()
        """Names of the statements that were refused."""

    def _note_error(self, message: bytes) -> None:
        group = self._groups[self._answered] if self._answered < len(self._groups) else None
        if not isinstance(group, _Parsing):
            super()._note_error(message)
            return
        fields = parse_error(message)
        if fields.sqlstate == DUPLICATE_PREPARED_STATEMENT:
            # A replay that is repeated: it is there.
            return
        self.absent.add(group.name)
        self.postponed.append(f"{group.label}: {fields.message} ({fields.sqlstate})")


class Inspection(PostgresExchange):
    """Asks the session's backend what it holds; once complete, the ledger knows."""

    def __init__(self, ledger: PostgresLedger, text: bytes, *, asks_tables: bool) -> None:
        groups = [Group("inspection", build_query(text), columns=3)]
        if asks_tables:
            groups.append(Group("inspection of temporary tables", build_query(DEFINITIONS), columns=3))
        super().__init__(groups)
        self._ledger = ledger
        self._asks_tables = asks_tables

    def _on_complete(self) -> None:
        self._ledger.on_inspected(self.rows, self.errors, asked_tables=self._asks_tables)


@dataclass(frozen=True, slots=True)
class AdvisoryLock:
    """A session-level lock, as functions take it."""

    key: bytes
    """One bigint or two integers, with a comma."""
    is_shared: bool

    @classmethod
    def told(cls, name: bytes, mode: bytes) -> AdvisoryLock:
        """From pg_locks: classid, objid and objsubid; the latter is 1 for one bigint, 2 for two integers. Raises
        ProtocolViolation if the server's answer is none of that."""
        match = _LOCK_NAME.fullmatch(name)
        if match is None:
            raise ProtocolViolation("server", "an advisory lock whose key is no number")
        # No more than 32 bits each, whatever the server says: they become part of a statement.
        high, low = int(match[1]) & 0xFFFFFFFF, int(match[2]) & 0xFFFFFFFF
        if match[3] == b"1":
            key = b"%d" % _signed(high << 32 | low, 64)
        else:
            key = b"%d, %d" % (_signed(high, 32), _signed(low, 32))
        return cls(key, mode == b"ShareLock")

    @property
    def suffix(self) -> bytes:
        return b"_shared" if self.is_shared else b""


def _count(row: list[bytes | None]) -> int:
    """The number that a row is. Raises ProtocolViolation."""
    value = row[0] if row else None
    if value is None or not value.isdigit() or len(value) > 9:
        raise ProtocolViolation("server", "a count of locks that is no number, or too large")
    return int(value)


def _check_rows(rows: list[list[bytes | None]], locks: tuple[AdvisoryLock, ...]) -> None:
    """One row for each lock. Raises ProtocolViolation."""
    if len(rows) != len(locks):
        raise ProtocolViolation("server", f"{len(rows)} answers about {len(locks)} locks")


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) else number


class _ReleaseLocks(PostgresExchange):
    """Unlocks until the server says that there is nothing left to unlock (which it also warns of)."""

    def __init__(self, ledger: PostgresLedger, locks: tuple[AdvisoryLock, ...]) -> None:
        super().__init__(
            [
                Group(
                    "advisory lock",
                    build_query(
                        b"WITH RECURSIVE released(ok) AS (SELECT pg_catalog.pg_advisory_unlock%s(%s) UNION ALL"
                        b" SELECT pg_catalog.pg_advisory_unlock%s(%s) FROM released WHERE ok)"
                        b" SELECT pg_catalog.count(*) FROM released" % (lock.suffix, lock.key, lock.suffix, lock.key)
                    ),
                    columns=1,
                )
                for lock in locks
            ]
        )
        self._ledger = ledger
        self._locks = locks

    def _on_complete(self) -> None:
        if not self.errors:
            _check_rows(self.rows, self._locks)
            self._ledger.on_released([_count(row) - 1 for row in self.rows])


class _TakeLocks(PostgresExchange):
    def __init__(self, locks: tuple[AdvisoryLock, ...], counts: list[int]) -> None:
        super().__init__(
            [
                Group(
                    f"advisory lock ({readable(lock.key)})",
                    build_query(
                        b"SELECT pg_catalog.bool_and(pg_catalog.pg_try_advisory_lock%s(%s))"
                        b" FROM pg_catalog.generate_series(1, %d)" % (lock.suffix, lock.key, max(count, 1))
                    ),
                    columns=1,
                )
                for lock, count in zip(locks, counts, strict=True)
            ]
        )
        self._locks = locks

    def _on_complete(self) -> None:
        if not self.errors:
            _check_rows(self.rows, self._locks)
            self.errors += [
                f"advisory lock ({readable(lock.key)}): another session has it on the target"
                for lock, row in zip(self._locks, self.rows, strict=True)
                if row[0] != b"t"
            ]


class _ReadTables(Dump):
    def __init__(
        self, ledger: PostgresLedger, temp: TempTables, bytes_max: int, deletes_rows: Mapping[bytes, bool | None]
    ) -> None:
        super().__init__(temp, bytes_max, deletes_rows)
        self._ledger = ledger

    def _on_complete(self) -> None:
        super()._on_complete()
        self._ledger.on_read(self._temp)


def _rank(name: bytes) -> int:
    """Order of replay: client_encoding, then the others, then timeouts."""
    if name == b"client_encoding":
        return 0
    return 2 if name.endswith(b"_timeout") else 1


def _set(name: bytes, value: bytes) -> Group:
    return Group(
        f"setting {readable(name)}", build_bind(b"", _SETTER, [name, value]) + build_execute(b"") + build_sync()
    )


def _as_parameters(settings: dict[bytes, bytes]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((decode(name), decode(value)) for name, value in settings.items()))


class Redress(PostgresExchange):
    """Makes a shared backend that has the settings `worn` have the settings `wanted`, and no others.

    One implicit transaction: all of it, or nothing. client_encoding goes first and by itself, because a text is read in
    the encoding that was in force when it came.
    """

    def __init__(self, worn: dict[bytes, bytes], wanted: dict[bytes, bytes]) -> None:
        # What may be set depends on the role: it is taken off first and put on last.
        roles: tuple[bytes, ...] = (b"session_authorization", b"role")
        resets: list[bytes] = [name for name in (b"role", b"session_authorization") if name in worn]
        resets += sorted(name for name in worn if name not in wanted and name not in roles)
        changes = [(name, value) for name, value in wanted.items() if worn.get(name) != value and name not in roles]
        changes.sort(key=lambda change: (_rank(change[0]), change[0]))
        changes += [(name, wanted[name]) for name in roles if name in wanted]
        statements = [b"RESET " + _quoted_name(name) for name in resets]
        encoding = [change for change in changes if change[0].lower() == b"client_encoding"]
        groups = [Group("settings", build_query(_set_all(encoding)))] if encoding else []
        rest = [change for change in changes if change[0].lower() != b"client_encoding"]
        if rest:
            statements.append(_set_all(rest))
        if statements:
            groups.append(Group("settings", build_query(b"; ".join(statements))))
        super().__init__(groups or [Group("settings", build_query(b""))])
        self.refused: BackendRefused | None = None
        """The server's first error."""

    def _note_error(self, message: bytes) -> None:
        super()._note_error(message)
        if self.refused is None:
            fields = parse_error(message)
            self.refused = BackendRefused(fields.sqlstate, fields.sqlstate, fields.message)


def redress(worn: Startup, wanted: Startup) -> Redress:
    """See `Redress`; the settings are the parameters of the two."""
    return Redress(
        {encode(name): encode(value) for name, value in worn.parameters},
        {encode(name): encode(value) for name, value in wanted.parameters},
    )


def _set_all(settings: list[tuple[bytes, bytes]]) -> bytes:
    calls = (b"pg_catalog.set_config(%s, %s, false)" % (_literal(name), _literal(value)) for name, value in settings)
    # One statement for each: the order of what stands in one target list is not promised.
    return b"; ".join(b"SELECT " + call for call in calls)


def _literal(text: bytes) -> bytes:
    """Read alike whatever standard_conforming_strings says."""
    return b"E'" + text.replace(b"\\", b"\\\\").replace(b"'", b"''") + b"'"


def _quoted_name(name: bytes) -> bytes:
    return b".".join(b'"' + part.replace(b'"', b'""') + b'"' for part in name.split(b"."))


def own_prepare(text: bytes, name: bytes) -> bytes | None:
    """The PREPARE of `name` alone, out of the text of the Query that held it. None if that cannot be told."""
    found = []
    for statement in split_statements(text):
        match = _PREPARE.match(statement)
        if match is not None:
            quoted, bare = match.groups()
            if (quoted.replace(b'""', b'"') if quoted is not None else bare.lower()) == name:
                found.append(statement)
    return found[0] if len(found) == 1 else None


def reset(query: str = "") -> PostgresExchange:
    """Make a used backend like a fresh one of the same Startup."""
    return PostgresExchange([Group("reset", build_query(query.encode() or b"DISCARD ALL"))])
