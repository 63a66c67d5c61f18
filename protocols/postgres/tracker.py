"""Follows a PostgreSQL session in both directions, message header by message header.

Theory of operation
-------------------
What the relay does with the verdicts is told in `protocols/wire.py`. Here is how they come about.

**The ring.** Each message of the client that the server will answer puts one byte into a ring: what is expected, and
what becomes of the answer (forwarded; swallowed, because the request was ours; invented, because the request was not
passed on). The server's next message is judged by its tag and the ring's head (`state.py`) and may take the head away.
In the steady state of a session this is all that happens: no Python object is made and no Python function called.

**Errors.** After an error in the extended protocol the server ignores everything, simple queries too, up to the next
Sync. So an ErrorResponse drops all entries before the next SYNC; if there is none yet the tracker is `skipping`, and
what the client sends before its next Sync is passed on without being expected. An error in a Query, in a FunctionCall or
at a Sync is followed by its ReadyForQuery. With an empty ring it is the server's own (57P01).

**COPY IN.** While the server reads COPY data it ignores Sync and Flush, and libpq does send one too early. Therefore
CopyInResponse takes away the SYNC entries that follow the head, and while the client streams, its Syncs are not
expected to be answered. CopyDone and CopyFail put a COPY_END into the ring: from there on Syncs count again. COPY_END
has no answer; it goes when it comes to the head. Outside of COPY the server ignores CopyData, CopyDone and CopyFail, so
what arrives late after an error does no harm.

**The boundary.** Nothing in the ring, not skipping, transaction status `I`, no message begun, and no message of the
extended protocol since the last Sync (`unsynced`): the server holds an implicit transaction open until then.

**State that outlives a transaction.** A Query that `text.is_plain` does not pass is fetched, and so is every Parse. Such
a request is LASTING: when its transaction has ended (a rollback takes settings back) the ledger is marked dirty, which
makes the session's owner ask the server. The CommandComplete of a LASTING request is fetched, for DEALLOCATE ALL and
DISCARD ALL drop the statements we know of.

**A lost backend.** `lose` pays what is owed to the client in errors and remembers how the client thinks that its server
stands: in a failed transaction, perhaps in a batch that is skipped up to its Sync. Nothing of that is imitated: the next
backend is brought to just that state (`Wreckage`: BEGIN and an error, a Parse that fails), so that from there on the
server itself answers 25P02 to everything but ROLLBACK and keeps the rules about Sync.

**Prepared statements.** In session mode a named Parse goes into the ledger when the server accepted it. In transaction
mode it gets a name of ours (`statements.py`): a Parse whose statement the backend has is not passed on and its
ParseComplete is invented, in its place among the real answers; a Bind or Describe whose statement is missing on the
backend has our own Parse put before it, whose answer is swallowed. If that fails, the error reaches the client in the
place of the Bind's. The unnamed statement is kept by the tracker in both modes and sent again, in the same way, when a
Bind on another backend needs it; in session mode so is a named one that the new backend refused when it was replayed
(`PostgresLedger.absent`). Of a Bind only the part with the names is fetched; its parameters pass as they come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import cython

from protocols.errors import IllegalUse, ProtocolViolation
from protocols.postgres import units
from protocols.postgres.exchange import Wreckage
from protocols.postgres.ledger import PostgresLedger
from protocols.postgres.messages import (
    build_close,
    build_error,
    build_parameter_status,
    build_parse,
    build_query,
    build_ready,
    parse_data_row,
    parse_parameter_status,
)
from protocols.postgres.state import client_table, server_table
from protocols.postgres.statements import (
    CLOSE_COMPLETE,
    NOWHERE,
    OWN_PREFIX,
    PARSE_COMPLETE,
    PER_BACKEND_MAX,
    Evicted,
    Named,
    Names,
    Naming,
    OnBackend,
    SentToBackend,
    Statement,
    Watched,
    outdate_all,
    shared,
    unshared,
)
from protocols.postgres.text import changes_nothing, custom_names, split_statements
from protocols.wire import CLIENTS_OWN, BackendFacts, ErrorReply, Exchange, Tracker

if not cython.compiled:
    from protocols.codes import EDIT, FETCH, FORWARD, GATE, GATE_CLOSED, GATE_OPEN, INVENT, LEDGER_TOUCHED, SWALLOW
    from protocols.postgres.constants import (
        BIND,
        BIND_NAMES_BYTES_MAX,
        BOUND,
        CALL,
        CLIENT_LEAVE,
        CLIENT_REFUSE,
        CLOSE,
        COMMAND_TAG_BYTES_MAX,
        COMMIT,
        COPY_END,
        DESCRIBE,
        EDITED_BYTES_MAX,
        ERROR_BYTES_MAX,
        EXECUTE,
        EXECUTED,
        IN_FLIGHT_MAX,
        INVENTED,
        KIND,
        LASTING,
        LENGTH_MAX,
        MOVE_ANSWER,
        MOVE_COMPLETE,
        MOVE_COPY_IN,
        MOVE_FAIL,
        MOVE_NOTE,
        MOVE_READY,
        MOVE_REFUSE,
        PARSE,
        PARSE_BYTES_MAX,
        PREPARED,
        QUERY,
        QUERY_BYTES_MAX,
        ROLLBACK,
        SMALL_BYTES_MAX,
        SWALLOWED,
        SYNC,
        WATCHED,
    )
    from protocols.postgres.text import ending_of, is_plain, may_commit

_EDITED: Final = bytearray(256)  # EDITED_BYTES_MAX

_CLIENT_TABLE: Final = client_table()
_SERVER_TABLE: Final = server_table()

UNNAMED_BYTES_MAX: Final = 1024 * 1024
"""Longest Parse of the unnamed statement that is kept to be sent to another backend."""

_TOLD_WHEN_OFF: Final = frozenset({"in_hot_standby", "default_transaction_read_only"})
"""Parameters of a backend that was opened on a standby, or on a fenced server, and that the server corrects with its
first answer after the promotion: never tell a client that they are on when a backend is exchanged."""


_ASK_TRANSACTION: Final = build_query(b"SELECT pg_catalog.pg_current_xact_id_if_assigned()")

END_NAMES_MAX: Final = 64
"""Statements that may end a transaction, that a client has prepared by names and that are remembered."""

_STOP: Final = build_parse(b"", b"turnout_lost_the_server_of_this_batch")
"""A syntax error: in a failed transaction it comes before 25P02."""

_ENDED: Final[Mapping[int, bytes]] = {
    PARSE: PARSE_COMPLETE,
    BIND: b"2\0\0\0\x04",
    DESCRIBE: b"n\0\0\0\x04",
    CLOSE: CLOSE_COMPLETE,
    SYNC: build_ready(b"I"),
}
"""How a server answers each part of a COMMIT or ROLLBACK that goes well, besides what says which it was."""

_COMMITTED: Final = b"C\0\0\0\x0bCOMMIT\0"
_ROLLED_BACK: Final = b"C\0\0\0\x0dROLLBACK\0"

_NO_NOTES: Final[dict[str, Any]] = {}
"""In the place of a backend's notes while there is no backend: one for all sessions, so nothing may write to it."""


class _Closed:
    """Session mode: the client closed a statement of the ledger."""

    answer = CLOSE_COMPLETE

    def __init__(self, ledger: PostgresLedger, lasting_names: set[bytes] | None, name: bytes) -> None:
        self._ledger = ledger
        self._lasting_names = lasting_names
        self._name = name

    def on_done(self) -> None:
        self._ledger.forget_statement(self._name)
        if self._lasting_names is not None:
            self._lasting_names.discard(self._name)

    def on_dropped(self, is_refused: bool) -> None:
        """The server did not look at it."""


class _Parsed:
    """Session mode: the client gave a name to a statement."""

    answer = PARSE_COMPLETE

    def __init__(self, ledger: PostgresLedger, name: bytes, message: bytes) -> None:
        self._ledger = ledger
        self._name = name
        self._message = message

    def on_done(self) -> None:
        self._ledger.note_statement(self._name, self._message)

    def on_dropped(self, is_refused: bool) -> None:
        """The server refused it or did not look at it."""


class _MadeAgain:
    """Session mode: a Parse of ours, of a statement that was refused when it was replayed on this backend."""

    answer = PARSE_COMPLETE

    def __init__(self, tracker: PostgresTracker, name: bytes) -> None:
        self._tracker = tracker
        self._name = name

    def on_done(self) -> None:
        self._tracker.settle_made_again(self._name, True)

    def on_dropped(self, is_refused: bool) -> None:
        # Refused: its like, which the Close before it took away, is gone as well.
        self._tracker.settle_made_again(self._name, False if is_refused else None)


class _UnnamedParsed:
    """A Parse of the unnamed statement, the client's or ours."""

    answer = PARSE_COMPLETE

    def __init__(self, tracker: PostgresTracker, message: bytes) -> None:
        self._tracker = tracker
        self._message = message if len(message) <= UNNAMED_BYTES_MAX else None

    def on_done(self) -> None:
        self._tracker.settle_unnamed(self._message)

    def on_dropped(self, is_refused: bool) -> None:
        self._tracker.drop_unnamed(is_refused)


class _UnnamedEnded:
    """A Close of the unnamed statement, or a Query, which ends it too."""

    answer = CLOSE_COMPLETE

    def __init__(self, tracker: PostgresTracker) -> None:
        self._tracker = tracker

    def on_done(self) -> None:
        self._tracker.settle_unnamed(None)

    def on_dropped(self, is_refused: bool) -> None:
        self._tracker.drop_unnamed(False)


class PostgresTracker(Tracker):
    """See the module's theory of operation."""

    def __init__(self, ledger: PostgresLedger, shares_backends: bool, statements_max: int = PER_BACKEND_MAX) -> None:
        super().__init__()
        self._statements_max = statements_max
        self.edited = _EDITED
        self.ledger_news = LEDGER_TOUCHED
        self._client_left = 0
        self._server_left = 0
        self._left_behind_fetched = 0
        self._client_fetching = False
        self._server_fetching = False
        self._client_fetch_size = 0
        self._server_fetch_size = 0
        self._ring = bytearray(32)
        self._mask = 31
        self._head = 0
        self._tail = 0
        self._units = 0
        self._syncs_sent = 0
        self._lasting_in_flight = 0
        self._tx = 0x49  # I
        self._unit_failed = False
        self._may_commit = False
        self._unnamed_commits = False
        self._named_commits = False
        self._is_lost = False
        self._drops_rest = False
        self._ending = 0
        self._end_tail = -1
        self._end_unsynced = 0
        self._end_name = b""
        self._end_names: dict[bytes, int] | None = None
        self._end_marks = 0
        self._bound_commits = False
        self._has_committed = False
        self._has_run = False
        self._stopped_tail = -1
        self._skips_error = False
        self._transaction: bytes | None = None
        self._untold: bytes | None = None
        self._last_words = b""
        self._skipping = False
        self._unsynced = False
        self._copying = 0
        self._syncs_in_copy = 0
        self._lasting_ran = False
        self._schema_changed = False
        self._fetches_names = shares_backends
        self._bound_lasting = False
        self._invent_due = False
        self._unnamed_here = False
        self._unnamed_pending = 0
        self._unnamed_sync = 0
        self._shares = shares_backends
        self._client_table = _CLIENT_TABLE
        self._server_table = _SERVER_TABLE
        self._unnamed: bytes | None = None
        self._unnamed_planned: bytes | None = None
        self._unnamed_lasting = False
        self._lasting_names: set[bytes] | None = None
        self._making: dict[bytes, list[int]] | None = None
        self._names = Names()
        self._watched: deque[Watched] | None = None
        self._ledger = ledger
        self._notes: dict[str, Any] = _NO_NOTES
        self._client_view: Mapping[str, str] | None = None
        self._told_parameters: Mapping[str, str] | None = None

    # --- the hot part ---------------------------------------------------------------------------------------------

    def scan_client(self, data: bytes, start: int, end: int) -> int:
        position = start
        while True:
            left = self._client_left
            if left > 0:
                if self._drops_rest:
                    self._drops_rest = False
                    self._client_left = 0
                    self.stop = position
                    self.message_size = left
                    return SWALLOW
                if end - position < left:
                    self._client_left = left - (end - position)
                    position = end
                    break
                position += left
                self._client_left = 0
            if end - position < 5:
                break
            tag = data[position]
            size = (
                (cython.cast(cython.Py_ssize_t, data[position + 1]) << 24)
                | (data[position + 2] << 16)
                | (data[position + 3] << 8)
                | data[position + 4]
            )
            sent = self._client_table[tag]
            if sent == CLIENT_REFUSE:
                raise ProtocolViolation("client", f"unknown message type 0x{tag:02x}")
            if size < 4 or size > LENGTH_MAX:
                raise ProtocolViolation("client", f"message of type 0x{tag:02x} with invalid length {size}")
            if self.gate != GATE_OPEN:
                verdict = self._at_gate(tag)
                if verdict != FORWARD:
                    self.stop = position
                    self.message_size = size + 1
                    if verdict == FETCH:
                        return self._fetch_client(position, size + 1)
                    return verdict
            if sent == EXECUTE:
                if self._bound_commits and self._untold is not None and size <= SMALL_BYTES_MAX:
                    return self._fetch_client(position, size + 1)
                self._unsynced = True
                if self._end_unsynced > 0:
                    self._end_unsynced = EXECUTED if self._end_unsynced == BOUND else 0
                if not self._skipping:
                    self._push(EXECUTE | LASTING if self._bound_lasting else EXECUTE)
            elif sent == SYNC:
                if self._copying == 1:
                    self._syncs_in_copy += 1
                else:
                    self._skipping = False
                    self._unsynced = False
                    self._syncs_sent += 1
                    self._push(SYNC)
                    if self._end_unsynced == EXECUTED:
                        self._end_tail = self._tail
                    self._end_unsynced = 0
            elif sent == QUERY:
                if size > QUERY_BYTES_MAX:
                    if self._may_be_commit_of_lost():
                        return self._fetch_client(position, QUERY_BYTES_MAX // 2, size + 1)
                    self._unnamed = None
                    self._may_commit = True
                    if not self._skipping:
                        self._unsynced = False
                        self._push(QUERY | LASTING)
                elif (
                    end - position <= size
                    or not is_plain(data, position + 5, position + size)
                    or self._unnamed_pending > 0
                    or (self._unsynced and self._unnamed is not None)
                ):
                    return self._fetch_client(position, size + 1)
                elif not self._skipping:
                    ending = ending_of(data, position + 5, position + size) if self._may_end_alone() else 0
                    if self._tx != 0x49 and may_commit(data, position + 5, position + size):  # I
                        if self._untold is not None or self._asks_before(ending):
                            return self._fetch_client(position, size + 1)
                        self._may_commit = True
                    self._unnamed = None
                    self._unsynced = False
                    self._push(QUERY)
                    if ending > 0:
                        self._stands_alone(ending)
            elif sent == BIND:
                minds_end = self._minds_end(data, position, end)
                if minds_end or self._fetches_names:
                    if not minds_end and self._edit_bind(data, position, end, size):
                        return EDIT
                    return self._fetch_client(position, min(size + 1, BIND_NAMES_BYTES_MAX), size + 1)
                self._unsynced = True
                if not self._skipping:
                    self._push(BIND)
            elif sent == DESCRIBE:
                if size > SMALL_BYTES_MAX:
                    raise ProtocolViolation("client", f"Describe of {size} bytes")
                if self._fetches_names and (end - position < 6 or data[position + 5] != 0x50):  # P
                    if end - position > 6 and self._edit_name(data, position, position + 6, end, size, DESCRIBE):
                        return EDIT
                    return self._fetch_client(position, size + 1)
                self._unsynced = True
                if not self._skipping:
                    self._push(DESCRIBE)
            elif sent == PARSE:
                if size <= PARSE_BYTES_MAX:
                    return self._fetch_client(position, size + 1)
                if end - position < 6:
                    break
                self._unsynced = True
                if not self._skipping:
                    self._push(PARSE | LASTING)
                    if data[position + 5] == 0:
                        self._unnamed = None
                        self._unnamed_here = True
                    else:
                        self.ledger_news = LEDGER_TOUCHED
                        self._ledger.pin_large_statement()
            elif sent == CLOSE:
                if size > SMALL_BYTES_MAX:
                    raise ProtocolViolation("client", f"Close of {size} bytes")
                return self._fetch_client(position, size + 1)
            elif sent == CALL:
                if not self._skipping:
                    self._unsynced = False
                    self._push(CALL)
            elif sent == COPY_END:
                if self._head != self._tail:
                    self._push(COPY_END)
                    if self._copying == 1:
                        self._copying = 2
            elif sent == CLIENT_LEAVE:
                if size != 4:
                    raise ProtocolViolation("client", f"Terminate of {size} bytes")
                return self._fetch_client(position, size + 1)
            position += 5
            self._client_left = size - 4
        self.stop = position
        return FORWARD

    def scan_server(self, data: bytes, start: int, end: int) -> int:
        position = start
        while True:
            left = self._server_left
            if left > 0:
                if end - position < left:
                    self._server_left = left - (end - position)
                    position = end
                    break
                position += left
                self._server_left = 0
            if self._invent_due:
                self.stop = position
                return INVENT
            if end - position < 5:
                break
            tag = data[position]
            size = (
                (cython.cast(cython.Py_ssize_t, data[position + 1]) << 24)
                | (data[position + 2] << 16)
                | (data[position + 3] << 8)
                | data[position + 4]
            )
            if size < 4 or size > LENGTH_MAX:
                raise ProtocolViolation("server", f"message of type 0x{tag:02x} with invalid length {size}")
            entry = self._ring[self._head & self._mask] if self._head != self._tail else 0
            if entry == QUERY | SWALLOWED and tag != 0x4E and tag != 0x53 and tag != 0x41:  # N S A
                if size > SMALL_BYTES_MAX:
                    raise ProtocolViolation("server", f"message of type 0x{tag:02x} with {size} bytes")
                return self._fetch_server(position, size + 1)
            move = self._server_table[(tag << 4) | (entry & KIND)]
            if move == MOVE_ANSWER:
                if entry & SWALLOWED:
                    if size != 4:
                        raise ProtocolViolation("server", f"message of type 0x{tag:02x} with a body")
                    self._pop()
                    self.has_invented = self._invent_due
                    self.stop = position
                    self.message_size = 5
                    return SWALLOW
                self._pop()
            elif move == MOVE_READY:
                if end - position < 6 and size == 5:
                    break
                # The byte behind a ReadyForQuery of another size is not its own, and may never come.
                status = data[position + 5] if size == 5 else 0
                if status != 0x49 and status != 0x54 and status != 0x45:  # I T E
                    raise ProtocolViolation("server", "ReadyForQuery without a transaction status")
                if status == 0x49 and self._untold is not None:
                    return self._fetch_server(position, size + 1)
                self._settle_ready(status)
            elif move == MOVE_COMPLETE:
                if (entry & LASTING or self._untold is not None) and size <= COMMAND_TAG_BYTES_MAX:
                    return self._fetch_server(position, size + 1)
                if size == 11 and entry & KIND == EXECUTE:
                    if end - position < 7:
                        break
                    # COMMIT and COPY n have tags of this length.
                    if data[position + 5] == 0x43 and data[position + 6] == 0x4F:  # C O
                        self._has_committed = True
                if self._copying != 0:
                    self._end_copy_in()
                if entry & KIND == EXECUTE:
                    self._pop()
            elif move == MOVE_FAIL:
                if size <= ERROR_BYTES_MAX:
                    return self._fetch_server(position, size + 1)
                # Too long to be looked at; such texts are an application's.
                self.errors += 1
                self.note_error(b"")
                self._fail()
            elif move == MOVE_NOTE:
                if tag == 0x53 or self._has_shown_ids():  # S
                    if size > SMALL_BYTES_MAX:
                        raise ProtocolViolation("server", f"message of type 0x{tag:02x} with {size} bytes")
                    return self._fetch_server(position, size + 1)
            elif move == MOVE_COPY_IN:
                self._begin_copy_in()
            elif move == MOVE_REFUSE:
                if tag == 0x5A and self._skipping and self._syncs_in_copy > 0:  # Z
                    # The COPY failed before the server read the Sync that we thought lost in it.
                    self._syncs_in_copy -= 1
                    self._skipping = False
                    self._unsynced = False
                    self._push(SYNC)
                    continue
                raise ProtocolViolation(
                    "server", f"unexpected message type 0x{tag:02x} while {entry & KIND} is awaited"
                )
            position += 5
            self._server_left = size - 4
        self.stop = position
        return FORWARD

    def _settle_ready(self, status: int) -> int:
        """A ReadyForQuery: a request, or a batch, is over."""
        self._pop()
        self._copying = 0
        self._syncs_in_copy = 0
        self._tx = status
        self._unit_failed = self._has_committed = self._has_run = False
        if self._head == self._tail:
            self._may_commit = False
            self._end_tail = -1
        self.requests += 1
        if status == 0x49:
            self.transactions += 1
        if self._lasting_ran:
            if self._schema_changed:
                # Others have prepared since, and the server read their texts by what was committed then.
                outdate_all()
                self._schema_changed = status != 0x49
            self.ledger_news = LEDGER_TOUCHED
            self._ledger.is_dirty = True
            self._lasting_ran = status != 0x49
        return 0

    def at_boundary(self) -> bool:
        return self.is_idle() and self._tx == 0x49 and not self._unsynced

    def is_idle(self) -> bool:
        return (
            self._head == self._tail
            and not self._skipping
            and self._client_left == 0
            and self._server_left == 0
            and not self._client_fetching
            and not self._server_fetching
        )

    def _at_gate(self, tag: int) -> int:
        """What becomes of a message of the client that begins while the gate is not open."""
        if tag == 0x58:  # X
            return FETCH
        if self.gate == GATE_CLOSED or self.at_boundary():
            # Late CopyData, CopyDone, CopyFail: the server would ignore them.
            return SWALLOW if tag == 0x64 or tag == 0x63 or tag == 0x66 else GATE
        if self._units > 0 and self._copying != 1 and tag != 0x64 and tag != 0x63 and tag != 0x66:
            return GATE
        return FORWARD

    def _fetch_client(self, position: int, size: int, whole: int = 0) -> int:
        """Announce the first `size` bytes of the message at `position`; the rest up to `whole` passes as it is."""
        self._client_fetching = True
        self._client_fetch_size = size
        self._left_behind_fetched = whole - size if whole > 0 else 0
        self.stop = position
        self.message_size = size
        return FETCH

    def _has_shown_ids(self) -> bool:
        return len(self.shown_ids) > 0

    def _edit_bind(self, data: bytes, position: int, end: int, size: int) -> bool:
        """Transaction mode: the Bind at `position` is of a statement that the backend holds, and is edited in place."""
        begin = position + 5
        last = min(end, position + 1 + size)
        while begin < last and data[begin] != 0:
            begin += 1
        return begin < last and self._edit_name(data, position, begin + 1, end, size, BIND)

    def _edit_name(self, data: bytes, position: int, begin: int, end: int, size: int, entry: int) -> bool:
        """The message at `position` names, at `begin`, a statement that the backend holds: have it called by our name.
        False where there is more to do than that; the message is fetched then."""
        if not self._shares or self._skipping:
            return False
        last = min(end, position + 1 + size)
        behind = begin
        while behind < last and data[behind] != 0:
            behind += 1
        if behind >= last or behind == begin:
            return False
        naming = self._names.naming(bytes(data[begin:behind]))
        if naming is None or not naming.is_settled:
            return False
        statement = naming.statement
        if statement is None or statement.is_lasting:
            return False
        called = statement.name
        length = len(called)
        if begin - position + length > EDITED_BYTES_MAX or size + length > LENGTH_MAX:
            return False
        if not self._on_backend().holds(called):
            return False
        edited = self.edited
        i = position
        while i < begin:
            edited[i - position] = data[i]
            i += 1
        whole = size + length - (behind - begin)
        edited[1] = (whole >> 24) & 255
        edited[2] = (whole >> 16) & 255
        edited[3] = (whole >> 8) & 255
        edited[4] = whole & 255
        i = 0
        while i < length:
            edited[begin - position + i] = called[i]
            i += 1
        self.edited_size = begin - position + length
        self.message_size = behind - position
        self.stop = position
        self._client_left = size + 1 - self.message_size
        self._unsynced = True
        if entry == BIND:
            self._bound_lasting = False
        self._push(entry)
        return True

    def _fetch_server(self, position: int, size: int) -> int:
        """Announce the message at `position`."""
        self._server_fetching = True
        self._server_fetch_size = size
        self.stop = position
        self.message_size = size
        return FETCH

    def _push(self, entry: int) -> int:
        """One more answer is expected."""
        if self._tail - self._head > self._mask:
            if self._mask + 1 >= IN_FLIGHT_MAX:
                raise ProtocolViolation("client", f"more than {IN_FLIGHT_MAX} requests in flight")
            count = self._tail - self._head
            self._end_tail = max(-1, self._end_tail - self._head)
            self._stopped_tail = max(-1, self._stopped_tail - self._head)
            self._ring = bytearray(
                [self._ring[(self._head + i) & self._mask] for i in range(count)] + [0] * (self._mask + 1)
            )
            self._mask = 2 * self._mask + 1
            self._head = 0
            self._tail = count
        self._ring[self._tail & self._mask] = entry
        self._tail += 1
        if entry & KIND == SYNC or entry & KIND == QUERY or entry & KIND == CALL:
            self._units += 1
        if entry & LASTING:
            self._lasting_in_flight += 1
        if entry & INVENTED and self._tail - self._head == 1:
            self._invent_due = True
        return 0

    def _pop(self) -> int:
        """The head is answered."""
        entry = self._ring[self._head & self._mask]
        self._head += 1
        if entry & KIND == SYNC or entry & KIND == QUERY or entry & KIND == CALL:
            self._units -= 1
        if entry & LASTING:
            self._lasting_in_flight -= 1
            self._lasting_ran = True
        if entry & KIND == EXECUTE:
            self._has_run = True
        if entry & WATCHED:
            self._take_watched().on_done()
        return self._uncover()

    def _watch(self, watched: Watched) -> None:
        """The entry that is pushed next is WATCHED: this is what waits for its answer."""
        if self._watched is None:
            self._watched = deque()
        self._watched.append(watched)

    def _take_watched(self) -> Watched:
        """What waited for the answer to the head. An empty deque takes 600 bytes: an idle session keeps none."""
        watched = self._watched
        assert watched is not None, "the ring has a WATCHED entry"
        first = watched.popleft()
        if not watched:
            self._watched = None
        return first

    def _uncover(self) -> int:
        """Look at the new head: nothing answers a COPY_END, and nobody but us an invented one."""
        while self._head != self._tail:
            entry = self._ring[self._head & self._mask]
            if entry != COPY_END:
                self._invent_due = entry & INVENTED != 0
                return 0
            self._head += 1
        self._invent_due = False
        return 0

    def _fail(self) -> int:
        """An ErrorResponse: the server skips what belongs to the extended protocol, up to the next Sync."""
        self._copying = 0
        if self._head == self._tail:
            return 0
        self._unit_failed = True
        entry = self._ring[self._head & self._mask]
        if entry & KIND >= SYNC:
            return 0
        is_refused = True
        while self._head != self._tail:
            entry = self._ring[self._head & self._mask]
            if entry & KIND == SYNC:
                return self._uncover()
            self._head += 1
            if entry & KIND == QUERY or entry & KIND == CALL:
                self._units -= 1
            if entry & LASTING:
                self._lasting_in_flight -= 1
                self._lasting_ran = True
            if entry & WATCHED:
                self._take_watched().on_dropped(is_refused)
            is_refused = False
        self._skipping = True
        self._unsynced = True
        return self._uncover()

    def _begin_copy_in(self) -> int:
        """CopyInResponse: the Syncs behind the head, up to the client's CopyDone, will be ignored."""
        dropped = 1
        while self._head + dropped != self._tail and self._ring[(self._head + dropped) & self._mask] & KIND == SYNC:
            dropped += 1
        dropped -= 1
        if dropped > 0:
            entry = self._ring[self._head & self._mask]
            self._syncs_in_copy += dropped
            self._head += dropped
            self._ring[self._head & self._mask] = entry
            self._units -= dropped
        if self._head + 1 != self._tail and self._ring[(self._head + 1) & self._mask] == COPY_END:
            self._copying = 2
        else:
            self._copying = 1
        if self._units == 0:
            self._unsynced = True
        return 0

    def _end_copy_in(self) -> int:
        """CommandComplete of a COPY IN: its COPY_END, behind the head, is used up."""
        if self._head + 1 != self._tail and self._ring[(self._head + 1) & self._mask] == COPY_END:
            entry = self._ring[self._head & self._mask]
            self._head += 1
            self._ring[self._head & self._mask] = entry
        self._copying = 0
        return 0

    # --- fetched messages of the client ---------------------------------------------------------------------------

    def take_client(self, message: bytes) -> bytes:
        if not self._client_fetching or len(message) != self._client_fetch_size:
            raise IllegalUse("take_client without a FETCH, or with something else than the message")
        self._client_fetching = False
        self._client_left = self._left_behind_fetched
        tag = message[0]
        if tag == 0x58:  # X
            self.client_left = True
            return b""
        if tag == 0x51 and self._client_left > 0:  # Q
            replacement = self._take_beginning(message)
        elif tag == 0x51:
            replacement = self._take_query(message)
        elif tag == 0x50:  # P
            replacement = self._take_parse(message)
        elif tag == 0x42:  # B
            replacement = self._take_bind(message)
        elif tag == 0x44:  # D
            replacement = self._take_describe(message)
        elif tag == 0x45:  # E
            replacement = self._take_execute(message)
        elif tag == 0x43:  # C
            replacement = self._take_close(message)
        else:
            raise IllegalUse(f"take_client was given a message of type 0x{tag:02x}")
        self._tell_invented()
        return replacement

    def _tell_invented(self) -> None:
        self.has_invented = self._invent_due and self._server_left == 0 and not self._server_fetching

    def _may_end_alone(self) -> bool:
        """The next message may end a transaction while nothing else is in flight."""
        return self._tx != 0x49 and self._head == self._tail and not self._unsynced and not self._skipping  # I

    def _asks_before(self, ending: int) -> bool:
        return ending == COMMIT and self.resolves_commits and self._tx == 0x54  # T

    def _stands_alone(self, ending: int) -> int:
        """What ends the transaction is all that is in flight."""
        self._transaction = None
        self._ending = ending
        self._end_tail = self._tail
        return 0

    def _minds_end(self, data: bytes, position: int, end: int) -> bool:
        """Whether the Bind that begins at `position` is of a statement that ends a transaction matters, and it may be of such a
        one."""
        if self._untold is not None or self._end_unsynced == PREPARED:
            return True
        if self._end_marks == 0 or not self._may_end_alone():
            return False
        position += 5
        while position < end and data[position] != 0:
            position += 1
        position += 1
        begin = position
        while position < end and data[position] != 0:
            position += 1
        # Not all of it may be here.
        return position >= end or (position > begin and self._is_end_marked(position - begin, data[position - 1]))

    def _is_end_marked(self, size: int, last: int) -> bool:
        """A statement that may end a transaction has a name like this one: so many bytes, of which this is the last."""
        return self._end_marks >> ((size + last) & 63) & 1 != 0

    def _note_end(self, name: bytes, text: bytes) -> None:
        """The client prepares `text` by this name."""
        ending = ending_of(text, 0, len(text))
        commits = may_commit(text, 0, len(text))
        if ending == 0 and not commits:
            if self._end_names is not None:
                self._end_names.pop(name, None)
            return
        if commits:
            self._named_commits = True
        if self._end_names is None:
            self._end_names = {}
        mark = 1
        self._end_marks |= mark << ((len(name) + name[len(name) - 1]) & 63)
        if len(self._end_names) < END_NAMES_MAX or name in self._end_names:
            self._end_names[name] = ending

    def _is_bound_to_commit(self, name: bytes) -> bool:
        """A Bind of this statement may be of a COMMIT."""
        if not name:
            return bool(self._unnamed_commits)
        names = self._end_names
        if names is None:
            return False
        return names.get(name, 0) != ROLLBACK if name in names else len(names) >= END_NAMES_MAX

    def _ask_transaction(self) -> bytes:
        """A Query of ours, whose answer comes before the server looks at the COMMIT behind it."""
        self._transaction = None
        self._end_tail = -1
        self._push(QUERY | SWALLOWED)
        return _ASK_TRANSACTION

    def _take_query(self, message: bytes) -> bytes:
        if self._skipping:
            return message
        is_commit_of_lost = False
        if self._may_be_commit_of_lost():
            message, is_commit_of_lost = self._commit_of_lost(message)
        text = message[5 : len(message) - 1]
        is_lasting = not changes_nothing(text)
        if is_lasting:
            self.ledger_news = LEDGER_TOUCHED
            self._ledger.suspect(custom_names(text))
            self._ledger.note_creations(text)
        self._may_commit = self._may_commit or (self._tx != 0x49 and may_commit(text, 0, len(text)))
        ending = ending_of(text, 0, len(text)) if self._may_end_alone() else 0
        before = self._ask_transaction() if self._asks_before(ending) else b""
        entry = QUERY | LASTING if is_lasting else QUERY
        if self._unnamed_pending > 0 or (self._unsynced and self._unnamed is not None):
            # It may be skipped, and then the unnamed statement lives on.
            self._watch_unnamed(_UnnamedEnded(self), None)
            entry |= WATCHED
        else:
            self._unnamed = None
        self._unsynced = False
        self._push(entry)
        if is_commit_of_lost:
            self._stopped_tail = self._tail
        if ending > 0:
            self._stands_alone(ending)
        return before + message

    def _has_work(self) -> bool:
        """Something is in flight that may end the transaction."""
        kinds = [self._ring[place & self._mask] & KIND for place in range(self._head, self._tail)]
        return QUERY in kinds or EXECUTE in kinds

    def _may_be_commit_of_lost(self) -> bool:
        """A Query that comes now may commit what was lost with its server, which its client has not been told."""
        return self._untold is not None and self._tx == 0x45 and not self._skipping and not self._has_work()  # E

    def _take_beginning(self, message: bytes) -> bytes:
        """The same where only the beginning of the Query has been assembled: if it commits, the rest is dropped."""
        self._unnamed = None
        self._may_commit = True
        self._unsynced = False
        self._push(QUERY | LASTING)
        statements = split_statements(message[5:])
        if len(statements) < 2:
            # The first one is as long as that: whatever it is, it has to be answered as it was sent.
            self._stopped_tail = self._tail
        elif may_commit(statements[0], 0, len(statements[0])):
            self._stopped_tail = self._tail
            self._drops_rest = True
            return build_query(statements[0])
        return message

    def _commit_of_lost(self, message: bytes) -> tuple[bytes, bool]:
        """A Query in a transaction that was lost with its server, which its client has not been told: whether it begins by
        committing that. The server will answer ROLLBACK, which is no error, and the client gets one; what follows in
        the same Query is not passed on, as after a COMMIT that fails."""
        statements = split_statements(message[5 : len(message) - 1])
        if not statements or not may_commit(statements[0], 0, len(statements[0])):
            return message, False
        return build_query(statements[0]) if len(statements) > 1 else message, True

    def _take_parse(self, message: bytes) -> bytes:
        may_end_alone = self._may_end_alone()
        self._unsynced = True
        if self._skipping:
            return message
        name = _text_at(message, 5, "Parse")
        text = _text_at(message, 6 + len(name), "Parse")
        asked = b""
        if may_end_alone and (ending := ending_of(text, 0, len(text))) > 0:
            asked = self._end_by(ending, PREPARED, name)
        elif self._end_unsynced == PREPARED and name == self._end_name:
            self._end_unsynced = 0
        is_lasting = not changes_nothing(text)
        if is_lasting:
            self.ledger_news = LEDGER_TOUCHED
            self._ledger.suspect(custom_names(text))
            self._ledger.note_creations(text)
        if name:
            self._note_end(name, text)
        else:
            self._unnamed_commits = bool(may_commit(text, 0, len(text)))
        if not name:
            self._unnamed_lasting = is_lasting
            self._push_unnamed(message, PARSE | WATCHED)
        elif self._shares:
            message = self._take_shared_parse(name, message[6 + len(name) :])
        else:
            if is_lasting:
                if self._lasting_names is None:
                    self._lasting_names = set()
                self._lasting_names.add(name)
            before = self._make_again(name)
            self._watch(_Parsed(self._ledger, name, message))
            self._push(PARSE | WATCHED)
            message = before + message
        self._decide_fetching()
        return asked + message

    def _end_by(self, ending: int, step: int, name: bytes) -> bytes:
        """A batch begins by ending the transaction, with the statement of this name."""
        asked = b""
        if self._asks_before(ending):
            asked = self._ask_transaction()
            if name:
                # Our Query ends the unnamed statement.
                self.disturbed()
        self._transaction = None
        self._ending = ending
        self._end_unsynced = step
        self._end_name = name
        return asked

    def _take_shared_parse(self, name: bytes, body: bytes) -> bytes:
        """A named Parse in transaction mode."""
        held = self._names.naming(name)
        if held is not None and held.is_settled and held.statement is not None and self._lasting_in_flight == 0:
            # The server refuses a second Parse of a name (42P05), and shall do so here too.
            before, called = self._provide(held.statement, held)
            self._push(PARSE)
            return before + _parse_message(called, body)
        if not self._names.has_room(len(body)):
            raise ProtocolViolation("client", "more prepared statements than one session may have")
        # While DEALLOCATE ALL may be on its way, what the backend holds now proves nothing. And while the name may
        # still be another's (the client did not wait), it gets a meaning that does not depend on how that ends; a
        # server alone would refuse it if the other Parse went well.
        # In a failed transaction, or in one that may have failed by then, the server has to say so itself (25P02).
        is_open = held is not None or self._lasting_in_flight > 0 or self._units > 0 or self._tx == 0x45
        statement = unshared(body) if is_open else shared(body)
        backend = self._on_backend()
        has = backend.has(statement.name, self._syncs_sent)
        if has is None:
            statement = unshared(body)
        naming = self._names.give(name, statement)
        if has:
            self._watch(Named(self._names, name, naming, None))
            self._push(PARSE | WATCHED | INVENTED)
            return b""
        before = self._make_room(backend)
        naming.is_own = True
        sent = SentToBackend(backend, statement.name, self._syncs_sent)
        self._watch(Named(self._names, name, naming, sent))
        self._push(PARSE | WATCHED)
        return before + statement.parse_message()

    def text_of(self, name: bytes) -> bytes | None:
        """Transaction mode, at a boundary: the text of the client's prepared statement of this name, b"" being the
        unnamed one; None if there is none."""
        if not name:
            return None if self._unnamed is None else self._unnamed[6 : self._unnamed.index(0, 6)]
        statement = self._names.find(name)
        return None if statement is None else statement.body[: statement.body.index(0)]

    def first_statement(self, work: bytes) -> tuple[bytes, bool] | None:
        return units.first_statement(work, self._text_known)

    def _text_known(self, name: bytes) -> bytes | None:
        """The text of a prepared statement in either mode."""
        message = self._ledger.statements.get(name) if name else None
        if message is None:
            return self.text_of(name)
        begin = message.index(b"\0", 5) + 1
        return message[begin : message.index(b"\0", begin)]

    def _take_bind(self, message: bytes) -> bytes:
        may_end_alone = self._may_end_alone()
        self._unsynced = True
        if self._skipping:
            return message
        portal = _text_at(message, 5, "Bind")
        begin = 6 + len(portal)
        name = _text_at(message, begin, "Bind")
        asked = b""
        if self._end_unsynced == PREPARED:
            self._end_unsynced = BOUND if name == self._end_name else 0
        elif may_end_alone and self._end_names is not None and (ending := self._end_names.get(name, 0)) > 0:
            asked = self._end_by(ending, BOUND, name)
        self._bound_commits = self._untold is not None and self._is_bound_to_commit(name)
        before, called, is_lasting = self._resolve(name)
        if is_lasting:
            # A setting's name may be among the parameters.
            self.ledger_news = LEDGER_TOUCHED
            self._ledger.suspect(custom_names(message[begin:]))
        self._bound_lasting = is_lasting
        self._push(BIND | LASTING if is_lasting else BIND)
        self._decide_fetching()
        if called == name:
            return asked + before + message
        return asked + before + _renamed(message, begin, name, called)

    def _take_execute(self, message: bytes) -> bytes:
        """A COMMIT in a transaction that was lost with its server, which its client has not been told. Here the server is
        in one that has failed and answers ROLLBACK, which is no error; the client gets one. That the server then
        skips the rest of the batch, as the client expects, needs an error of the server's own."""
        self._unsynced = True
        if self._skipping:
            return message
        self._push(EXECUTE | LASTING if self._bound_lasting else EXECUTE)
        self._end_unsynced = EXECUTED if self._end_unsynced == BOUND else 0
        self._stopped_tail = self._tail
        # Our Parse ends the unnamed statement.
        self.disturbed()
        return message + _STOP

    def _take_describe(self, message: bytes) -> bytes:
        self._unsynced = True
        if self._skipping:
            return message
        if len(message) < 7 or message[5] != 0x53:  # S
            self._push(DESCRIBE)
            return message
        name = _text_at(message, 6, "Describe")
        before, called, _ = self._resolve(name)
        self._push(DESCRIBE)
        self._decide_fetching()
        if called == name:
            return before + message
        return before + _renamed(message, 6, name, called)

    def _take_close(self, message: bytes) -> bytes:
        self._unsynced = True
        if self._skipping:
            return message
        if len(message) < 7 or message[5] != 0x53:  # S
            self._push(CLOSE)
            return message
        name = _text_at(message, 6, "Close")
        if not name:
            self._watch_unnamed(_UnnamedEnded(self), None)
            self._push(CLOSE | WATCHED)
        elif not self._shares:
            self._watch(_Closed(self._ledger, self._lasting_names, name))
            self._push(CLOSE | WATCHED)
        elif self._names.find(name) is not None:
            # The backend keeps it for others.
            self._watch(Named(self._names, name, self._names.give(name, None), None))
            self._push(CLOSE | WATCHED | INVENTED)
            return b""
        else:
            self._push(CLOSE)
            if name.startswith(OWN_PREFIX):
                return _renamed(message, 6, name, NOWHERE)
        return message

    def _resolve(self, name: bytes) -> tuple[bytes, bytes, bool]:
        """The statement a client calls `name`: what has to be sent first, its name on the backend, whether it may
        change lasting state."""
        if not name:
            before, called = self._provide_unnamed()
            return before, called, self._unnamed_lasting
        if not self._shares:
            return self._make_again(name), name, self._lasting_names is not None and name in self._lasting_names
        naming = self._names.naming(name)
        if naming is None or naming.statement is None:
            # Made by SQL's PREPARE, or a mistake. One of our names would reach another session's statement.
            return b"", NOWHERE if name.startswith(OWN_PREFIX) else name, False
        before, called = self._provide(naming.statement, naming)
        return before, called, naming.statement.is_lasting

    def _provide(self, statement: Statement, naming: Naming) -> tuple[bytes, bytes]:
        """What to send so that the backend has the statement that `naming` stands for, and its name there."""
        backend = self._on_backend()
        has = backend.has(statement.name, self._syncs_sent)
        if has or (has is None and naming.is_own and not naming.is_settled):
            return b"", statement.name
        if has is None:
            # Whether it is there depends on what is under way, so it comes again by another name.
            statement = unshared(statement.body)
        before = self._make_room(backend)
        self._watch(SentToBackend(backend, statement.name, self._syncs_sent))
        self._push(PARSE | WATCHED | SWALLOWED)
        return before + statement.parse_message(), statement.name

    def _make_again(self, name: bytes) -> bytes:
        """Session mode: what to send so that the backend has the statement, if it was refused when it was replayed."""
        absent = self._ledger.absent
        under_way = self._making.get(name) if self._making is not None else None
        if under_way is None and (absent is None or name not in absent):
            return b""
        if under_way is not None and under_way[len(under_way) - 1] == self._syncs_sent:
            # An error that drops that one drops this request, too.
            return b""
        message = self._ledger.statements.get(name)
        if message is None:
            return b""
        before = b""
        if under_way is not None:
            # Whether the one before it goes well is not known; a Close does no harm if it does not.
            self._push(CLOSE | SWALLOWED)
            before = build_close(b"S", name)
        if self._making is None:
            self._making = {}
        self._making.setdefault(name, []).append(self._syncs_sent)
        self._watch(_MadeAgain(self, name))
        self._push(PARSE | WATCHED | SWALLOWED)
        return before + message

    def settle_made_again(self, name: bytes, is_there: bool | None) -> None:
        """The oldest Parse of ours for this name was answered; None: it was skipped."""
        assert self._making is not None, "it was put there when it was sent"
        under_way = self._making[name]
        del under_way[0]
        if not under_way:
            del self._making[name]
            if not self._making:
                self._making = None
        if is_there:
            self._ledger.note_present(name)
        elif is_there is not None:
            self._ledger.note_absent(name)
        self._decide_fetching()

    def _provide_unnamed(self) -> tuple[bytes, bytes]:
        """The same for the unnamed statement."""
        if self._unnamed_here or (self._unnamed_pending > 0 and self._unnamed_sync == self._syncs_sent):
            return b"", b""
        message = self._unnamed_planned if self._unnamed_pending > 0 else self._unnamed
        if message is None:
            if not self._shares:
                return b"", b""
            # Whoever used the backend before may have left one. The server shall say in its words that there is none.
            self._push(CLOSE | SWALLOWED)
            return build_close(b"S", b""), b""
        self._push_unnamed(message, PARSE | WATCHED | SWALLOWED)
        return message, b""

    def _push_unnamed(self, message: bytes, entry: int) -> None:
        self._watch_unnamed(_UnnamedParsed(self, message), message if len(message) <= UNNAMED_BYTES_MAX else None)
        self._push(entry)

    def _watch_unnamed(self, watched: Watched, planned: bytes | None) -> None:
        """Something is under way that makes `planned` the unnamed statement."""
        self._watch(watched)
        self._unnamed_planned = planned
        self._unnamed_pending += 1
        self._unnamed_sync = self._syncs_sent

    def settle_unnamed(self, message: bytes | None) -> None:
        """The server did it: `message` made the unnamed statement; None: there is none, or it is too long to keep."""
        self._unnamed_here = True
        self._unnamed = message
        self._end_unnamed_request()

    def drop_unnamed(self, is_refused: bool) -> None:
        """The server refused a Parse, and forgot the former statement; or it skipped the request."""
        if is_refused:
            self._unnamed_here = True
            self._unnamed = None
        self._end_unnamed_request()

    def _end_unnamed_request(self) -> None:
        self._unnamed_pending -= 1
        if self._unnamed_pending == 0:
            self._unnamed_planned = None
        self._decide_fetching()

    def _make_room(self, backend: OnBackend) -> bytes:
        name = backend.oldest_beyond(self._statements_max)
        if name is None:
            return b""
        self._watch(Evicted(backend, name, self._syncs_sent))
        self._push(CLOSE | WATCHED | SWALLOWED)
        return build_close(b"S", name)

    def _on_backend(self) -> OnBackend:
        if self._notes is _NO_NOTES:
            raise IllegalUse("a statement is wanted of a backend before link()")
        held = self._notes.get("statements")
        if held is None:
            held = self._notes["statements"] = OnBackend()
        assert isinstance(held, OnBackend)
        return held

    def _decide_fetching(self) -> int:
        """Whether the names in Bind and Describe matter."""
        self._fetches_names = (
            self._shares
            or (self._lasting_names is not None and len(self._lasting_names) > 0)
            or self._unnamed_lasting
            or ((self._unnamed is not None or self._unnamed_pending > 0) and not self._unnamed_here)
            or self._making is not None
            or bool(self._ledger.absent)
        )
        if not self._fetches_names:
            self._bound_lasting = False
        return 0

    # --- fetched messages of the server ---------------------------------------------------------------------------

    def take_server(self, message: bytes) -> bytes:
        if not self._server_fetching or len(message) != self._server_fetch_size:
            raise IllegalUse("take_server without a FETCH, or with something else than the message")
        self._server_fetching = False
        if (
            self._head != self._tail
            and self._ring[self._head & self._mask] == QUERY | SWALLOWED
            and (
                message[0] != 0x53 and message[0] != 0x41  # S A
            )
        ):
            message = self._take_transaction(message)
        elif message[0] == 0x53:  # S
            message = self._take_parameter_status(message)
        elif message[0] == 0x45:  # E
            message = self._take_error(message)
        elif message[0] == 0x41:  # A
            message = self._take_notification(message)
        elif message[0] == 0x5A:  # Z
            message = self._take_ready(message)
        else:
            message = self._take_command_complete(message)
        self._tell_invented()
        return message

    def _take_transaction(self, message: bytes) -> bytes:
        """A part of the answer to `_ask_transaction`; nothing of it is the client's."""
        tag = message[0]
        if tag == 0x44:  # D
            self._transaction = parse_data_row(message)[0] or b"0"
        elif tag == 0x5A and len(message) == 6:  # Z
            self._tx = message[5]
            self._pop()
        elif tag == 0x45 and (b"VFATAL" in message or b"VPANIC" in message):  # E
            return self._take_error(message)
        elif tag != 0x54 and tag != 0x43 and tag != 0x45:  # T C E
            raise ProtocolViolation("server", f"unexpected message type 0x{tag:02x} in an answer to the proxy")
        return b""

    def _take_ready(self, message: bytes) -> bytes:
        """The client awaited nothing when its server was lost, in the middle of a batch that had run something. The batch
        ends well here, with less in it: the client is told before it takes it for done."""
        told, self._untold = self._untold, None
        assert told is not None, "it is not fetched without"
        self.errors += 1
        self.faults += 1
        self.note_error(_sqlstate(told[5:].split(b"\0")))
        self._settle_ready(message[5])
        return told + message

    def _take_parameter_status(self, message: bytes) -> bytes:
        name, value = parse_parameter_status(message)
        if self._notes is _NO_NOTES:
            raise IllegalUse("a server's message before link()")
        self._notes.setdefault("parameters", {})[name] = value
        if self._head != self._tail and name not in _TOLD_WHEN_OFF:
            # A function may have set it.
            self._lasting_ran = True
        assert self._client_view is not None, "link() sets it"
        if self._client_view.get(name) == value:
            return b""
        self._client_view = {**self._client_view, name: value}
        self._told_parameters = None
        return message

    def _take_error(self, message: bytes) -> bytes:
        fields = message[5:].split(b"\0")
        if (b"VFATAL" in fields or b"VPANIC" in fields) and (b"C57P01" in fields or b"C57P02" in fields):
            # An operator ended this session, or the server as a whole goes: whoever finds out which decides what the
            # client is told.
            self._last_words = message
            self.has_last_words = True
            return b""
        if self._skips_error:
            # The one that `_take_execute` has made.
            self._skips_error = False
            return b""
        sqlstate = _sqlstate(fields)
        self.errors += 1
        self.note_error(sqlstate)
        if _is_fault(sqlstate):
            self.faults += 1
        if self._shares and b"RRevalidateCachedQuery" in fields:
            # "cached plan must not change result type", in whatever language. The client has to hear it, because what it
            # knows of the columns is wrong now; when it then prepares the same text again, it must not be given the
            # statement that backends have.
            self._names.outdate()
        if self._untold is not None:
            message, self._untold = self._untold, None
        self._fail()
        return message

    def _take_notification(self, message: bytes) -> bytes:
        """The process id is the sender's; a client knows it as it was told at its login."""
        shown = self.shown_ids.get(int.from_bytes(message[5:9], "big"))
        return message if shown is None else message[:5] + shown.to_bytes(4, "big") + message[9:]

    def _take_command_complete(self, message: bytes) -> bytes:
        command = message[5 : len(message) - 1]
        if self._untold is not None and command == b"ROLLBACK":
            # The end of a transaction that was lost with its server while the client did nothing.
            told, self._untold = self._untold, None
            if self._is_commit():
                # Most drivers take what is no error for a commit.
                self.errors += 1
                self.faults += 1
                self._skips_error = self._ring[self._head & self._mask] & KIND == EXECUTE
                self._stopped_tail = -1
                self.note_error(_sqlstate(told[5:].split(b"\0")))
                self._fail()
                return told
        if command == b"COMMIT":
            self._has_committed = True
        if command == b"DEALLOCATE ALL" or command == b"DISCARD ALL":
            self._ledger.forget_statements()
            self._names.forget_settled()
            if self._shares:
                self._on_backend().forget_settled()
        elif self._shares and command.startswith((b"ALTER ", b"CREATE ", b"DROP ")):
            outdate_all()
            self._schema_changed = True
        if self._copying != 0:
            self._end_copy_in()
        if self._ring[self._head & self._mask] & KIND == EXECUTE:
            self._pop()
        return message

    def _is_commit(self) -> bool:
        """What is answered now is the COMMIT of a transaction that was lost."""
        return bool(self._head + 1 == self._stopped_tail)

    def take_invented(self) -> bytes:
        answers = []
        while self._invent_due:
            assert self._watched is not None, "an invented answer is watched"
            answers.append(self._watched[0].answer)
            self._pop()
        self.has_invented = False
        return b"".join(answers)

    # --- backends -------------------------------------------------------------------------------------------------

    def link(self, backend: BackendFacts, notes: dict[str, Any]) -> bytes:
        if not self.is_idle() and not self._is_lost:
            raise IllegalUse("link() with a request in flight")
        self._notes = notes
        self._ledger.absent = notes.get("absent") or None
        if not self._is_lost:
            self._tx = 0x49
        self._is_lost = False
        # A session's own first backend is fresh, or was reset by a Query: it has no unnamed statement.
        self._unnamed_here = self._client_view is None and not self._shares
        self._decide_fetching()
        changed = notes.get("parameters")
        if not changed and backend.parameters is self._told_parameters:
            # Backends of one pool share the mapping: nothing to compare.
            return b""
        if self._client_view is None:
            # The login told the client what the backend said at its own.
            self._client_view = backend.parameters
            if not changed:
                self._told_parameters = backend.parameters
                return b""
        view = self._client_view
        told = []
        for name, value in {**backend.parameters, **(changed or {})}.items():
            if view.get(name) != value and not (name in _TOLD_WHEN_OFF and value == "on"):
                # Never in place: most sessions share the mapping of their backends.
                view = {**view, name: value}
                told.append(build_parameter_status(name, value))
        self._client_view = view
        self._told_parameters = None if changed else backend.parameters
        return b"".join(told)

    def unlink(self) -> int:
        self._drop_in_flight()
        if self._is_lost:
            # Nothing was linked: what the client thinks stays as it is.
            return 0
        self._skipping = False
        self._unit_failed = False
        self._tx = 0x49
        self._untold = None
        return 0

    def _drop_in_flight(self) -> int:
        while self._head != self._tail:
            entry = self._ring[self._head & self._mask]
            self._head += 1
            if entry & WATCHED:
                self._take_watched().on_dropped(False)
        self._units = 0
        self._lasting_in_flight = 0
        self._end_tail = self._stopped_tail = -1
        self._end_unsynced = 0
        self._bound_commits = self._skips_error = self._drops_rest = False
        self._server_left = 0
        self._server_fetching = False
        self._invent_due = False
        self.has_invented = False
        self._copying = 0
        self._syncs_in_copy = 0
        self._unnamed_here = False
        self._notes = _NO_NOTES
        self._decide_fetching()
        return 0

    # --- a lost backend -------------------------------------------------------------------------------------------

    def lose(self, aborted: ErrorReply, unknown: ErrorReply) -> bytes | None:
        """See `wire.Tracker`. What was owed to the client is paid in errors: one for each Query, and one for each batch
        up to its Sync, with a ReadyForQuery at its end; a batch that had its error gets no second one (libpq loses
        count of its pipeline), and a Sync alone gets none unless a transaction was lost with it. A batch whose
        Sync has not come gets its error now, and the rest of it is skipped."""
        if self._server_left > 0:
            return None
        if self._is_end_alone():
            # Whatever became of it, the transaction is over. One that had failed was not committed.
            error, status = aborted if self._tx == 0x45 else unknown, b"I"  # E
        elif self._tx != 0x49:
            may_have = self._may_commit or self._unnamed_commits or self._named_commits
            is_known = not self._has_committed and (self._head == self._tail or not may_have)
            error, status = aborted if is_known else unknown, b"E"
        else:
            error, status = unknown, b"I"
        told = build_error(severity="ERROR", sqlstate=error.sqlstate, message=error.message, hint=error.hint)
        answer = []
        is_told = self._unit_failed
        has_open_batch = False
        # What was answered already of the first one is committed by its Sync.
        has_work = self._has_run
        is_harmless = self._tx != 0x54 and self._untold is None  # T
        for place in range(self._head, self._tail):
            kind = self._ring[place & self._mask] & KIND
            if kind == COPY_END or self._ring[place & self._mask] == QUERY | SWALLOWED:
                continue
            if kind == SYNC and is_harmless and not has_open_batch and not has_work:
                is_told = True
            has_open_batch = True
            has_work = False
            if kind == SYNC or kind == QUERY or kind == CALL:
                if not is_told:
                    answer.append(told)
                    self.errors += 1
                    self.faults += 1
                    self.note_error(error.sqlstate.encode())
                answer.append(build_ready(status))
                is_told = has_open_batch = False
        if has_open_batch:
            if not is_told:
                answer.append(told)
                self.errors += 1
                self.faults += 1
                self.note_error(error.sqlstate.encode())
            self._skipping = True
        elif (
            self._head == self._tail
            and not self._skipping
            and (self._tx == 0x54 or (self._unsynced and self._has_run))  # T
        ):
            # It awaits nothing now, so it is told in the place of the next error or of the answer to its COMMIT, or before
            # the batch ends.
            self._untold = told
        if told in answer:
            self._untold = None
        if self._copying == 1:
            # Its CopyData, CopyDone and CopyFail are still on their way; the next server ignores them.
            self._unsynced = self._skipping
        self.message_size = self._client_left
        self._client_left = 0
        self._client_fetching = False
        self._left_behind_fetched = 0
        self._drop_in_flight()
        self._lasting_ran = self._unit_failed = self._may_commit = self._schema_changed = False
        self._has_committed = self._has_run = False
        self._tx = 0x49 if status == b"I" else 0x45
        self._is_lost = True
        return b"".join(answer)

    def take_back(self) -> bool:
        """See `wire.Tracker`."""
        if self._tx != 0x49 or self._unit_failed or self._untold is not None or self._is_lost:  # I
            return False
        if self._server_left > 0 or self._server_fetching:
            return False
        self._client_left = 0
        self._client_fetching = False
        self._left_behind_fetched = 0
        self._unsynced = self._may_commit = False
        self.unlink()
        return True

    def _is_end_alone(self) -> bool:
        """The end of a transaction is all that is in flight, to its last message."""
        if self._end_tail < 0 or self._tail != self._end_tail or self._head == self._tail:
            return False
        if self._server_left > 0 or self._client_left > 0 or self._client_fetching or self._unit_failed:
            return False
        ends = 0
        for place in range(self._head, self._tail):
            entry = self._ring[place & self._mask]
            if entry & KIND == SYNC or (entry & KIND == QUERY and not entry & SWALLOWED):
                ends += 1
        return ends == 1

    def commit_in_doubt(self) -> str:
        if not self._is_end_alone() or self._ring[self._head & self._mask] == QUERY | SWALLOWED:
            # While our question is not answered whole, nobody knows the id, and perhaps the server never saw the COMMIT.
            return ""
        return self._transaction.decode() if self._transaction is not None else ""

    def committed_answer(self) -> bytes:
        return self._answer_end(_COMMITTED)

    def rolled_back_answer(self) -> bytes:
        # A COMMIT is one, too, in a transaction that has failed, unless its client has not been told of that.
        is_rollback = self._ending == ROLLBACK or (self._tx == 0x45 and self._untold is None)  # E
        if not is_rollback or not self._is_end_alone():
            return b""
        self._untold = None
        return self._answer_end(_ROLLED_BACK)

    def _answer_end(self, done: bytes) -> bytes:
        """What the server would have said to the end of a transaction that is all that is in flight."""
        answers = []
        while self._head != self._tail:
            entry = self._ring[self._head & self._mask]
            if entry & KIND == QUERY and not entry & SWALLOWED:
                answers.append(done + build_ready(b"I"))
            elif entry & KIND == EXECUTE:
                answers.append(done)
            elif not entry & SWALLOWED:
                answers.append(_ENDED.get(entry & KIND, b""))
            self._pop()
        self._invent_due = self.has_invented = False
        return b"".join(answers)

    @property
    def is_within_answer(self) -> bool:
        """A message of the server has gone out to the client in part."""
        return self._server_left > 0

    def wreckage(self) -> Exchange | None:
        if not self._is_lost or (self._tx == 0x49 and not self._skipping):
            return None
        return Wreckage(in_transaction=self._tx != 0x49, is_skipping=self._skipping)

    def take_last_words(self) -> bytes:
        words, self._last_words = self._last_words, b""
        self.has_last_words = False
        return words

    def disturbed(self) -> None:
        self._unnamed_here = False
        self._decide_fetching()


def _sqlstate(fields: list[bytes]) -> bytes:
    """Of an ErrorResponse, as its fields; empty if it has none."""
    for field in fields:
        if field[:1] == b"C":
            return field[1:]
    return b""


def _is_fault(sqlstate: bytes) -> bool:
    """It tells of something that is not the client's own doing."""
    return sqlstate[:2] not in CLIENTS_OWN and sqlstate != b"25P02"


def _text_at(message: bytes, begin: int, kind: str) -> bytes:
    """The zero-terminated text at `begin`."""
    end = message.find(0, begin)
    if end < 0:
        raise ProtocolViolation("client", f"{kind} with a name or text that does not end")
    return message[begin:end]


def _parse_message(name: bytes, body: bytes) -> bytes:
    """`body`: from behind the name to the end."""
    return b"P" + (5 + len(name) + len(body)).to_bytes(4, "big") + name + b"\0" + body


def _renamed(message: bytes, begin: int, name: bytes, called: bytes) -> bytes:
    """`message`, or its first part, with `called` in the place of `name` at `begin`."""
    size = int.from_bytes(message[1:5], "big") + len(called) - len(name)
    return message[:1] + size.to_bytes(4, "big") + message[5:begin] + called + message[begin + len(name) :]
