"""What every protocol offers, and the facts it yields.

A protocol is one `Wire`: a set of factories for the objects that live as long as a login, a session or one exchange
with a backend. The session code in `proxy/dataplane` knows only the names in this module; neither protocol knows the
other.

Theory of operation of a `Tracker`
----------------------------------
The relay owns the descriptors and copies bytes; the tracker reads message headers and says what may pass. For each
chunk from the client the relay calls `scan_client(data, start, end)`, for each from the server `scan_server`. The
verdict holds for the bytes `data[start:stop]`, which may pass as they are, and then says what happens at `stop`:

FORWARD  All of the chunk was looked at. `stop < end` means that the last few bytes are a header that is not complete:
         the relay keeps them (never more than `CARRY_BYTES_MAX`) and puts them before the next chunk.
FETCH    The message at `stop`, `message_size` bytes with its header, has to be understood. The relay assembles it
         (it may be wholly in the chunk or not) and gives it to `take_client` or `take_server`, which return what to
         send in its place: the same object, other bytes, or nothing.
SWALLOW  The message at `stop`, `message_size` bytes, is dropped: nobody but the proxy asked for it.
GATE     (client only) Nothing from `stop` on may reach a server now: no backend is linked, or the gate is closing
         for a switch. The relay keeps the rest, stops reading, and scans it again when the gate may have opened.
EDIT     The `message_size` bytes at `stop`, all of them in the chunk, are replaced by the first `edited_size` bytes of
         `edited`, which hold until the next scan. For what is common: no object is made.
INVENT   (server only) Before going on at `stop`, `take_invented()` goes to the client: the answer to something that
         the proxy did not pass on. `has_invented` says the same behind a message that was FETCHed or EDITed.

After a scan the tracker's state stands at `stop`. Scanning the same bytes in other cuts gives the same messages and the
same state. A message that began in one chunk and goes on in the next is counted down inside; its bytes are FORWARD.

The gate. OPEN: everything passes. CLOSED: no message may begin (one that has begun may go on). DRAIN: a message may
begin only if the session is not at a boundary, and only one unit of work whose end the server announces (a PostgreSQL
Query or Sync, a MySQL command) is in flight at a time, so that the first boundary is not missed by a client that
pipelines.

`at_boundary()`: nothing in flight, no transaction open, no message begun in either direction: the backend may be
exchanged. `is_idle()`: the same without regard to the transaction.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import cython

if not cython.compiled:
    from protocols.codes import (  # noqa: F401  (the readable run's names of the numbers in wire.pxd)
        EDIT,
        FETCH,
        FORWARD,
        GATE,
        GATE_CLOSED,
        GATE_DRAIN,
        GATE_OPEN,
        INVENT,
        SWALLOW,
    )

CLIENTS_OWN: Final = frozenset({b"22", b"23", b"42", b"P0", b"45"})
"""Classes of SQLSTATE that say nothing about the server's health: data, constraints, syntax and access, and what the
application itself raises (PL/pgSQL's RAISE, MySQL's SIGNAL). PostgreSQL's 25P02, which repeats that an earlier error
failed the transaction, counts with them."""

OTHER_CLASS: Final = "other"
"""Of an error whose SQLSTATE is none, or stands where nobody looks."""

CARRY_BYTES_MAX: Final = 64
"""The longest incomplete header a tracker may leave at the end of a chunk."""

ProtocolName = Literal["postgresql", "mysql"]

OWN_ID: Final = 1 << 30
"""MySQL: set in every connection id that the proxy gives a client. No server comes there by counting, so that the two cannot
be mistaken for each other. Bit 31 stays clear, because some drivers take the id for a signed number."""

PackingName = Literal["zlib", "zstd"]


class Tracker:
    """Follows one session in both directions. Base class; see the module's theory of operation."""

    def __init__(self) -> None:
        self.stop = 0
        self.message_size = 0
        self.edited = bytearray()
        self.edited_size = 0
        self.gate = 0
        self.ledger_news = 2  # LEDGER_UNWATCHED
        self.requests = 0
        self.transactions = 0
        self.errors = 0
        self.faults = 0
        self.client_left = False
        self.has_invented = False
        self.has_last_words = False
        self.has_warnings = False
        self.is_client_packed = False
        self.resolves_commits = False
        """PostgreSQL: learn the transaction's id before a COMMIT is passed on, so that its outcome can be asked for."""
        self.shown_ids: dict[int, int] = {}
        """PostgreSQL: process ids of backends, and what the clients that have them were told at their logins, where the
        two differ. Shared by the sessions of a service, and kept by the shell."""
        self.error_classes: dict[str, int] = {}
        """Errors by class: the first two characters of the SQLSTATE, or `OTHER_CLASS`. Shared by the sessions of a service,
        and kept by the shell."""

    def note_error(self, sqlstate: bytes, count: int = 1) -> None:
        """Count errors that the client is sent, by their class. Goes with each step of `errors`."""
        first, second = sqlstate[:1], sqlstate[1:2]
        # There are 1,296 of them: a server can invent no more.
        is_one = (first.isdigit() or first.isupper()) and (second.isdigit() or second.isupper())
        name = sqlstate[:2].decode("ascii") if is_one else OTHER_CLASS
        self.error_classes[name] = self.error_classes.get(name, 0) + count

    def scan_client(self, data: bytes, start: int, end: int) -> int:
        """Judge `data[start:end]` from the client. Raises ProtocolViolation."""
        raise AssertionError("a protocol's tracker overrides this")

    def scan_server(self, data: bytes, start: int, end: int) -> int:
        """Judge `data[start:end]` from the server. Raises ProtocolViolation."""
        raise AssertionError("a protocol's tracker overrides this")

    def at_boundary(self) -> bool:
        """Nothing in flight, nothing begun, no transaction open."""
        raise AssertionError("a protocol's tracker overrides this")

    def is_idle(self) -> bool:
        """Nothing in flight and nothing begun; a transaction may be open."""
        raise AssertionError("a protocol's tracker overrides this")

    def take_client(self, message: bytes) -> bytes:
        """A fetched message of the client: note it, and return what the server gets in its place."""
        raise AssertionError("a protocol's tracker overrides this")

    def take_server(self, message: bytes) -> bytes:
        """A fetched message of the server: note it, and return what the client gets in its place."""
        raise AssertionError("a protocol's tracker overrides this")

    def take_invented(self) -> bytes:
        """Answers that are due to the client now and that no server sends."""
        raise AssertionError("a protocol's tracker overrides this")

    def link(self, backend: BackendFacts, notes: dict[str, Any]) -> bytes:
        """From now on the server side is `backend`; `notes` is the tracker's own memory that stays with that backend
        (its prepared statements, say). Returns what the client has to be told first (PostgreSQL: ParameterStatus
        of values that differ from what the client saw). Call only where `is_idle()`.
        """
        raise AssertionError("a protocol's tracker overrides this")

    def unlink(self) -> int:
        """No backend from now on. Call only where `is_idle()` or when the backend is lost. Returns 0."""
        raise AssertionError("a protocol's tracker overrides this")

    def lose(self, aborted: ErrorReply, unknown: ErrorReply) -> bytes | None:
        """The backend is gone, at whatever moment; in place of `unlink`. Returns what the client has to be told: for
        what is in flight `aborted`, where a transaction was open and cannot have been committed, else `unknown`.
        `message_size` is then the rest of a client's message that nobody needs any more. None: the session cannot go
        on, because this protocol does not know how, or because half an answer has gone out.

        Whatever replaces the backend has to be given `wreckage()` first, if there is any.
        """
        return None

    def take_back(self) -> bool:
        """The backend is gone, and nothing of what is in flight has reached it: forget that it was sent, since it will
        be judged again from its first byte. Call only where nothing was in flight and no transaction open before; in
        place of `unlink`. False: some of it cannot be unsaid, and nothing was changed."""
        return False

    def commit_in_doubt(self) -> str:
        """With `resolves_commits`, when the backend is gone: the id of the transaction whose COMMIT is all that is in
        flight, as the server writes it; "0" if it has none, and so has written nothing. Empty: nothing of the kind."""
        return ""

    def committed_answer(self) -> bytes:
        """What a client gets whose COMMIT was in doubt and has taken place; in place of `lose`, before `unlink`."""
        raise AssertionError("a protocol's tracker overrides this")

    def rolled_back_answer(self) -> bytes:
        """When the backend is gone and a ROLLBACK is all that is in flight, which needs no server any more: what its
        client gets; in place of `lose`, before `unlink`. Empty: nothing of the kind, and nothing was changed."""
        return b""

    def wreckage(self) -> Exchange | None:
        """What makes a fresh backend stand where the client thinks that the lost one stands (PostgreSQL: in a failed
        transaction); None if that is a boundary."""
        return None

    def take_last_words(self) -> bytes:
        """Why the server ends the connection, in its own words, held back from the client: see `has_last_words`."""
        return b""

    def asks_quietly(self) -> bool:
        """An inspection now would change nothing that a client could see afterwards (MySQL: ROW_COUNT(), SHOW WARNINGS)."""
        return True

    def disturbed(self) -> None:
        """The proxy has asked something of its own on the linked backend (PostgreSQL: the unnamed statement is
        gone)."""

    def first_statement(self, work: bytes) -> tuple[bytes, bool] | None:
        """The text of the first statement that a client's `work`, which began at a moment with nothing in flight, executes or
        prepares, and whether it is all of it: `work` may be cut anywhere. None: it has none, or it is not known here."""
        return None

    def take_change_user(self) -> bytes:
        """MySQL: a COM_CHANGE_USER that the client has sent, complete, for the session to take; else nothing."""
        return b""

    def wants_kill(self) -> KillWanted | None:
        """MySQL: what the client wants to be killed. It waits at the gate for `answer_kill`."""
        return None

    def answer_kill(self, payload: bytes | None) -> None:
        """The session has dealt with what the client wants to be killed: what the client is answered (see
        `Wire.answer_to_kill`), or None: the server shall have it as it is. The gate has to be opened then."""
        raise AssertionError("only of a tracker that wants something killed")

    def wants_ids(self) -> IdsWanted | None:
        """MySQL: what the client asks for waits at the gate for `answer_ids`."""
        return None

    def answer_ids(self, ids: dict[int, int]) -> None:
        """By the server's id of a connection the one that its client knows. The gate has to be opened then; the server answers,
        and these ids take the place of its own."""
        raise AssertionError("only of a tracker whose client asks for ids")


# --- facts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Packing:
    """How a connection is compressed."""

    algorithm: PackingName
    level: int = 0
    """Of zstd, 1 to 22."""


# Those that each login makes are extension types (wire.pxd), which need no `slots`: a third of the time.


@dataclass(frozen=True)
class BackendFacts:
    """What an engine told at a login. Lives as long as the backend."""

    server_version: str
    process_id: int = 0
    """PostgreSQL process id, MySQL connection id."""
    secret: bytes = field(default=b"", repr=False)
    """PostgreSQL cancel key, 4 to 256 bytes; empty in MySQL."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """PostgreSQL ParameterStatus values at login."""
    capabilities: int = 0
    """MySQL capability flags that the engine offers; 0 in PostgreSQL. What is in force is the Startup's."""
    character_set: int = 0
    """MySQL default collation id of the greeting; 0 in PostgreSQL."""
    auth_plugin: str = ""
    """MySQL default authentication plugin of the greeting."""
    packing: Packing | None = None
    """MySQL: how the connection is compressed from the end of its login on."""
    charsets: tuple[bytes, ...] = ()
    """MySQL: character_set_client, character_set_results (b"" for NULL), character_set_connection and collation_connection
    as the login has set them; empty if the server did not tell them, and in PostgreSQL."""

    def shown_as(self, process_id: int, secret: bytes) -> BackendFacts:
        """What a client is told: another process id and cancel key. `dataclasses.replace` takes three times as long, and
        this is asked for at each login."""
        return BackendFacts(
            self.server_version,
            process_id,
            secret,
            self.parameters,
            self.capabilities,
            self.character_set,
            self.auth_plugin,
            self.packing,
            self.charsets,
        )


@dataclass(frozen=True)
class Startup:
    """What a client asked for at its login and what therefore each of its backends is opened with.

    Equal values mean: a backend opened for one client may serve the other. Hashable, part of the pool's key.
    """

    user: str
    database: str
    parameters: tuple[tuple[str, str], ...] = ()
    """PostgreSQL startup parameters besides user and database, sorted; MySQL: those connection attributes that say what
    program the client is, not which process of it."""
    capabilities: int = 0
    """MySQL capability flags that both legs must have alike."""
    character_set: int = 0
    """MySQL collation id the client asked for."""

    @property
    def is_replication(self) -> bool:
        """PostgreSQL: a walsender. What it holds (slots) no reset takes away, so it serves one session only."""
        return any(name == "replication" for name, _ in self.parameters)


@dataclass(frozen=True)
class ScramKeys:
    """What a SCRAM-SHA-256 client needs in place of a password, at servers that keep the same verifier."""

    client_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    salt: bytes = field(repr=False)
    iterations: int


@dataclass(frozen=True, slots=True)
class NativeKey:
    """What a mysql_native_password client needs in place of a password: SHA1(password)."""

    digest: bytes = field(repr=False)


Credential = str | ScramKeys | NativeKey | None
"""What opens a backend: plain text, PostgreSQL's `md5…`, keys, or nothing (trust)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What the connection under a client's login proves by itself."""

    is_encrypted: bool = False
    binding: bytes = b""
    """tls-server-end-point (RFC 5929): the hash of the certificate shown to the client; empty: none."""
    certificate: Mapping[str, Any] | None = None
    """The client's certificate as `ssl.SSLSocket.getpeercert()` tells it, its chain verified; None: none was shown."""


CLEAR: Final = Channel()
"""A connection without TLS."""


@dataclass(frozen=True)
class CredentialWanted:
    """The client named itself; the shell looks the user up and calls `give_credential`."""

    user: str
    database: str
    is_replication: bool = False
    """PostgreSQL's physical replication: no database is meant, and `database` may name none."""


@dataclass(frozen=True)
class LoginProven:
    """The client proved who it is. The shell finds it a backend and calls `accept`, or `refuse`."""

    startup: Startup
    credential: Credential = field(default=None, repr=False)
    """Won from the proof: opens backends in the client's name. None: the proof left nothing to use."""


@dataclass(frozen=True, slots=True)
class LoginRefused:
    """The login failed; the reason is in the output, after which the connection ends. `text` is for the log."""

    text: str


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """PostgreSQL CancelRequest: nothing is ever answered on this connection."""

    process_id: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class KillWanted:
    """MySQL: a client wants a connection, or only its statement, to end."""

    connection_id: int
    is_query: bool

    @property
    def is_own_id(self) -> bool:
        """It can be no server's."""
        return bool(self.connection_id & OWN_ID)


@dataclass(frozen=True, slots=True)
class IdsWanted:
    """MySQL: the answer to what a client asks names connections in its first column, by the server's ids."""

    is_list: bool
    """All of them may be in it; else its own only."""


@dataclass(frozen=True, slots=True)
class BackendReady:
    """A login at an engine succeeded and the backend is idle."""

    facts: BackendFacts


@dataclass(frozen=True, slots=True)
class BackendRefused:
    """A login at an engine failed.

    `code` is PostgreSQL's SQLSTATE or MySQL's error number as text; `sqlstate` the SQLSTATE in both.
    """

    code: str
    sqlstate: str
    message: str
    is_too_new: bool = False
    """Perhaps because of the protocol version we asked for: a login with `oldest` may do."""
    is_before_proof: bool = False
    """The engine had not asked for a proof: who we are and how we came (with TLS or without) was the reason."""


@dataclass(frozen=True, slots=True)
class TlsWanted:
    """From here on the peer speaks TLS: what is in the output goes out clear, the rest of the connection does not.

    The shell does the handshake and then goes on with the decrypted bytes, or ends the connection.
    """

    received: bytes = b""
    """What came already and belongs to the handshake."""
    alpn: str = ""
    """The application protocol (RFC 7301) that must come out of the handshake; empty: any, or none."""


@dataclass(frozen=True, slots=True)
class TlsRefused:
    """The engine goes on without TLS, or wants to be asked anew on another connection (`is_over`)."""

    is_over: bool = False


@dataclass(frozen=True, slots=True)
class PackingBegins:
    """At an engine: from here on the connection is compressed, in both directions. The shell sees to it and calls
    `receive` again, perhaps with no bytes, for the rest of the login."""

    packing: Packing
    received: bytes = b""
    """What came already and is compressed."""


LoginFact = (
    TlsWanted
    | TlsRefused
    | PackingBegins
    | CredentialWanted
    | LoginProven
    | LoginRefused
    | CancelRequested
    | BackendReady
    | BackendRefused
)


# --- portability --------------------------------------------------------------------------------------------------


class Grade(enum.StrEnum):
    """Portability of a session (design: words)."""

    A = "A"
    """Nothing to carry."""
    B = "B"
    """The ledger carries it."""
    C = "C"
    """Must first reach a boundary."""
    D = "D"
    """Holds something that cannot be carried: pinned."""


class Meant(enum.Enum):
    """Who has to go, where a server ends a connection."""

    SESSION = "this session"
    SERVER = "every session"
    EITHER = "one of both"


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """One error as a client of either protocol is told of it."""

    message: str
    sqlstate: str
    """PostgreSQL SQLSTATE, five characters."""
    mysql_code: int
    mysql_sqlstate: str
    hint: str = ""
    is_fatal: bool = True
    """The connection ends after it (PostgreSQL severity FATAL instead of ERROR)."""


# --- objects ------------------------------------------------------------------------------------------------------


class Login(Protocol):
    """One login, at the proxy (`Wire.client_login`) or at an engine (`Wire.server_login`)."""

    def receive(self, data: bytes) -> Sequence[LoginFact]:
        """Take bytes of the peer. Raises ProtocolViolation. Any cut of the stream gives the same facts."""

    def take_output(self) -> bytes:
        """Bytes for the peer, each only once."""

    def take_unread(self) -> bytes:
        """Bytes that came after the login's end and belong to the session."""


class ServerLogin(Login, Protocol):
    """The client's part of a login, spoken to an engine."""

    def go_on(self, *, is_encrypted: bool) -> None:
        """After TlsWanted: the connection has TLS now. After TlsRefused: it goes on without. More is in the output.
        Only for `wants_tls`."""


class ClientLogin(Login, Protocol):
    """The server's part of a login, spoken to a client. In MySQL the greeting is in the output from the start."""

    @property
    def packing(self) -> Packing | None:
        """How the connection is compressed once the login has ended well; None: not at all, or as it was before."""

    @property
    def secret_bytes(self) -> int:
        """Size of the cancel key that `accept` wants: 4, or 32 in PostgreSQL's protocol 3.2. Final once proven."""

    def give_credential(
        self, password: str | None, secret: str | None = None, *, method: str = "", channel: Channel = CLEAR
    ) -> Sequence[LoginFact]:
        """Answer to CredentialWanted. `password` is plain text, in PostgreSQL an `md5…` or `SCRAM-SHA-256$…` secret, in
        MySQL a verifier as `protocols.mysql.auth` has them; None for both means: no such user, and the client is told the same as for a wrong password.
        `password=""` with method trust needs no proof. `method` takes the place of the one the login was made with;
        `channel` is what the connection proves. Returns facts (trust gives LoginProven at once)."""

    def accept(self, backend: BackendFacts) -> bytes:
        """The bytes that end a proven login well, behind what is still in the output. PostgreSQL: AuthenticationOk, ParameterStatus, BackendKeyData with
        `backend.process_id` and `backend.secret`, ReadyForQuery. MySQL: OK."""

    def refuse(self, error: ErrorReply) -> bytes:
        """The bytes that end the login with an error, in whatever phase it is, behind what is still in the output."""


class Exchange(Protocol):
    """Something the proxy itself asks an idle backend: one request, one complete answer, nothing left over."""

    request: bytes
    """Everything to send; the backend may be sent it at once."""
    errors: list[str]
    """What the backend refused, for people; empty when all went well. Filled while receiving."""
    postponed: list[str]
    """A replay: what was refused and is tried again right before the client uses it, for people. Not in `errors`."""
    unasked: bytes
    """Messages that came meanwhile and belong to the session (PostgreSQL: NotificationResponse, NoticeResponse,
    ParameterStatus); the session passes them on."""
    parameters: dict[str, str]
    """PostgreSQL ParameterStatus values that came with the answer: from now on true of the backend."""

    def receive(self, data: bytes) -> bool:
        """Take bytes of the backend; True once the answer is complete. Raises ProtocolViolation."""


class UserInquiry(Exchange, Protocol):
    """Asks an engine who a user is."""

    secret: str | None
    """What is kept of the user's password; None: nobody may log in by it."""
    why: str
    """Why there is no secret, for the log; empty if there is one, or if something was refused (`errors`)."""


class Ledger(Protocol):
    """What has to be repeated on another backend so that the session does not notice.

    Filled by the tracker with what passes by, and by `inspection()` with what only the backend knows.
    """

    version: int
    """Raised by every change that a replay would have to repeat."""
    has_warnings: bool
    """MySQL in transaction mode: the backend has warnings that its client may ask for next, and an inspection would take
    them away."""
    is_dirty: bool
    """The backend may hold state that the ledger does not know: run an inspection at the next idle moment."""

    @property
    def is_empty(self) -> bool:
        """A fresh backend of the same Startup would do as it is."""

    @property
    def pins(self) -> list[str]:
        """Reasons for grade D by name; empty if there are none."""

    @property
    def ties(self) -> list[str]:
        """Transaction mode: why the session keeps its backend, besides its pins."""

    @property
    def bound(self) -> list[str]:
        """What dies with the server, by name: a switch can carry it, a crash cannot."""

    @property
    def wanted(self) -> tuple[tuple[str, str], ...]:
        """Transaction mode: parameters of the Startup that a backend for this session has to be like."""

    @property
    def worn(self) -> tuple[tuple[str, str], ...]:
        """The same of the backend that was asked last, as it was found."""

    @property
    def idle_limit_s(self) -> float:
        """After how many idle seconds the server ends the session, where the session has set that itself; 0: it has not.
        A backend that is new to the session counts from the beginning."""

    def inspection(self) -> Exchange:
        """Ask the session's backend what it holds. Once complete, `is_dirty` is False and settings, statements,
        channels and pins are those of the backend. Only at a boundary."""

    def replay(self, *, is_late: bool) -> Exchange | None:
        """Make a fresh backend of the same Startup like the session's. The early part (`is_late=False`) works on a
        standby in recovery, the late part (LISTEN, say) only after its promotion. None: nothing to do."""

    def carried(self) -> dict[str, int]:
        """What a move repeats, for people: counts by name, none of them 0."""

    @property
    def has_locks(self) -> bool:
        """Locks of the session's own, which are given up on the old backend and taken on the new one after the
        promotion and before anybody is released."""

    def release_locks(self) -> Exchange | None:
        """On the old backend: give the locks up, and learn how often each was taken."""

    def take_locks(self) -> Exchange | None:
        """On the new backend; a lock that another session has there is an error of the exchange."""

    @property
    def has_tables(self) -> bool:
        """Temporary tables, which change without a word: inspected and read when the session is held, made again on the
        new backend after the promotion."""

    def read_tables(self, bytes_max: int) -> Exchange | None:
        """On the old backend, after an inspection at the same boundary. May add pins; None: nothing to read."""

    def make_tables(self) -> Exchange | None:
        """On the new backend, after the early replay."""

    def adopt(self, notes: dict[str, Any]) -> dict[str, Any]:
        """The notes for `Tracker.link` of the backend that the early replay ran on (MySQL: statement ids)."""


class Wire(Protocol):
    """One protocol."""

    name: ProtocolName
    resets_all: bool
    """`reset` makes any used backend like a fresh one; else only one whose session's ledger is empty."""

    def meant_by(self, words: bytes) -> Meant:
        """Whom a server means that ends a connection: `words` are a tracker's last words, or none (its orderly end)."""

    def client_login(
        self,
        *,
        method: str,
        facts: BackendFacts | None,
        connection_id: int,
        databases: Sequence[str],
        offers_tls: bool = False,
        packings: Sequence[PackingName] = (),
    ) -> ClientLogin:
        """`method`: trust, password, md5, scram-sha-256, cert; trust, or a plugin of `protocols.mysql.auth`. `facts`: of the active engine, for MySQL's greeting. `offers_tls`: the shell can do what TlsWanted asks for. `packings`: what MySQL's clients may compress by."""

    def change_user_login(
        self,
        message: bytes,
        *,
        startup: Startup,
        method: str,
        facts: BackendFacts | None,
        connection_id: int,
        databases: Sequence[str],
    ) -> ClientLogin:
        """MySQL's COM_CHANGE_USER: a login in the middle of a session of `startup`, that begins with `message`. Its
        first facts come from `receive(b"")`. IllegalUse in PostgreSQL, which has no such thing."""

    def lone_statement(self, work: bytes, tracker: Tracker) -> bytes | None:
        """The text of the statement that a client's `work` executes at a boundary; b"" if it executes nothing; None if it is
        not surely one complete unit and nothing else, or may be told by its answer which server it came from."""

    def asks_for_warnings(self, text: bytes) -> bool:
        """It asks what the statement before it has warned of (MySQL), of the server that did."""

    def tls_request(self) -> Login | None:
        """What begins a connection to an engine that shall have TLS: yields TlsWanted or TlsRefused, after which a
        login or a cancel request follows. None: this protocol does not begin so."""

    def server_login(
        self,
        startup: Startup,
        password: Credential,
        *,
        binding: bytes = b"",
        oldest: bool = False,
        wants_tls: bool = False,
        packing: PackingName | None = None,
    ) -> ServerLogin:
        """A login at an engine. `password` is None where none is known (trust). `binding`: tls-server-end-point of
        the engine's certificate, if the connection has TLS; PostgreSQL logins bind to it. `oldest`: ask for the
        protocol's oldest version, for an engine that refuses to negotiate. `wants_tls`: where there is no `tls_request`,
        the login itself yields TlsWanted or TlsRefused before it tells who we are, and waits for `go_on`. `packing`: how a MySQL
        connection has to be compressed; the facts at its end say so."""

    def ledger(self, startup: Startup, *, shares_backends: bool = False) -> Ledger: ...

    def client_startup(
        self, startup: Startup, *, shares_backends: bool, ignored: Sequence[str]
    ) -> Startup | ErrorReply:
        """A client's `startup` less the parameters that the config ignores, and in transaction mode in the form in
        which `redress` can apply it; or why it cannot be served."""

    redresses: bool
    """Shared backends are opened without parameters and get those of the session they are lent to: PostgreSQL as
    settings, MySQL as session variables."""

    def redress(
        self, worn: Startup, wanted: Startup, facts: BackendFacts
    ) -> tuple[Exchange, Callable[[], BackendRefused | None]]:
        """Make an idle shared backend like a fresh one of `wanted`; `worn` is what it is like now, and differs in its
        parameters only; `facts` are of its login. The second tells, once the exchange is complete, what the server
        refused."""

    def tracker(self, ledger: Ledger, *, shares_backends: bool, statements_max: int = 200) -> Tracker:
        """`shares_backends`: transaction mode; prepared statements are renamed and shared by text, and PostgreSQL keeps
        at most `statements_max` of them on one backend."""

    def reset(self, startup: Startup, facts: BackendFacts, query: str = "") -> Exchange:
        """Make a used backend of `startup`, whose login told `facts`, like a fresh one of it. `query`: in place of
        PostgreSQL's DISCARD ALL."""

    def check(self, startup: Startup, query: str) -> Exchange | None:
        """Ask an idle backend something it can only answer if it is well. An empty query: the least there is, Sync or
        COM_PING. None: this protocol has no such thing."""

    def error(self, error: ErrorReply, tracker: Tracker | None) -> bytes:
        """An error message for a client outside of a login, complete (PostgreSQL non-fatal: with ReadyForQuery).
        `tracker` is the session's: in MySQL an error in the middle of an answer goes on with its sequence ids. Nothing where
        half a message has gone out: what followed would be taken for its rest."""

    def user_inquiry(self, query: str, user: str) -> UserInquiry | None:
        """Ask an engine for `user` by PgBouncer's auth_query. Runs on a backend that was opened with
        `inquiry_parameters` only. None: no engine can know a user of this name. An empty `query` is MySQL's own one."""

    inquiry_parameters: tuple[tuple[str, str], ...]
    """Startup parameters of a backend for `user_inquiry`."""

    def goodbye(self) -> bytes:
        """What a client sends last (Terminate, COM_QUIT)."""

    def kill(self, connection_id: int, *, is_query: bool) -> tuple[Exchange, Callable[[], BackendRefused | None]]:
        """MySQL: end a connection of the engine, or only its statement, in the name of the user of the backend that this
        runs on. The second tells, once the exchange is complete, what the server refused. IllegalUse in PostgreSQL."""

    def answer_to_kill(self, error: ErrorReply | None) -> bytes:
        """MySQL: what `Tracker.answer_kill` takes: an OK, or the error. IllegalUse in PostgreSQL."""

    def cancel_request(self, facts: BackendFacts) -> bytes:
        """PostgreSQL: the packet to send on a fresh connection. Empty in MySQL."""
