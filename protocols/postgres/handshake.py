# cython: wraparound=True
"""Logins: the server's part, spoken to clients, and the client's part, spoken to engines.

Protocol versions: 3.0 to 3.2 are spoken to clients. One that asks for a newer 3.x (the grease 3.9999 of libpq 19) or with
`_pq_.` options is told so once, by NegotiateProtocolVersion, before anything else, and goes on in what it asked for, 3.2
at most; one that asks for another major version is refused. Cancel keys towards clients have four bytes before 3.2. What
an engine is asked for does not depend on that: 3.2, and whatever it negotiates; one that refuses to negotiate is asked
again for 3.0 (`BackendRefused.is_too_new`). The versions differ in nothing but the cancel key.

GSS encryption is answered with `N`, and so is TLS where it is not offered. Bytes that a client sent behind such a request
without waiting for the answer would be taken from the plain connection into the encrypted one (CVE-2021-23214): a
violation whatever the answer is. The same holds for bytes behind an engine's answer (CVE-2021-23222). A connection that
begins with a TLS handshake (direct TLS) needs no request, and must agree on `postgresql` by ALPN: otherwise the bytes of
another protocol's client could be led here.

A proxy's clients come and go, and many of them with the same first packet: what one says is kept (`_read_first_packet`), and
the client's login is compiled (handshake.pxd).
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from protocols.errors import IllegalUse, ProtocolViolation
from protocols.postgres.constants import (
    ALPN,
    AUTH_MESSAGE_BYTES_MAX,
    CANCEL_KEY_BYTES_3_0,
    CANCEL_KEY_BYTES_3_2,
    CANCEL_REQUEST_CODE,
    GSSENC_REQUEST_CODE,
    LOGIN_MESSAGE_BYTES_MAX,
    PROTOCOL_3_0,
    PROTOCOL_3_2,
    SQLSTATE_FEATURE_NOT_SUPPORTED,
    SQLSTATE_INVALID_AUTHORIZATION,
    SQLSTATE_INVALID_PARAMETER_VALUE,
    SQLSTATE_PROTOCOL_VIOLATION,
    SSL_REQUEST_CODE,
    STARTUP_BYTES_MAX,
    TLS_HANDSHAKE,
)
from protocols.postgres.framing import Framer
from protocols.postgres.messages import (
    build_authentication,
    build_backend_key,
    build_error,
    build_negotiate_protocol_version,
    build_parameter_status,
    build_ready,
    build_ssl_request,
    build_startup,
    parse_authentication,
    parse_backend_key,
    parse_cancel_request,
    parse_error,
    parse_negotiate_protocol_version,
    parse_parameter_status,
    parse_startup_parameters,
)
from protocols.postgres.proof import AUTH_OK, METHODS, ClientProof, Refused, ServerProof
from protocols.wire import (
    CLEAR,
    BackendFacts,
    BackendReady,
    BackendRefused,
    CancelRequested,
    Channel,
    Credential,
    CredentialWanted,
    ErrorReply,
    LoginFact,
    LoginProven,
    LoginRefused,
    Startup,
    TlsRefused,
    TlsWanted,
)

NEWEST_MINOR: Final = PROTOCOL_3_2 & 0xFFFF
"""The newest 3.x that is spoken here."""

# As PostgreSQL's parse_bool takes them.
_OFF: Final = frozenset({"off", "false", "no", "0", "f", "fa", "fal", "fals", "n", "of"})
_ON: Final = frozenset({"on", "true", "yes", "1", "t", "tr", "tru", "y", "ye"})


class Phase(enum.Enum):
    """Where a client's login stands."""

    START = "start"
    """Its first packet, or the next one after a refused encryption, is awaited."""
    CREDENTIAL = "credential"
    """The shell looks the user up."""
    PROOF = "proof"
    """The client has been asked to prove who it is."""
    PROVEN = "proven"
    """The shell looks for a backend."""
    ENDED = "ended"
    """Accepted, refused, or a cancel request."""


_START, _CREDENTIAL, _PROOF, _PROVEN, _ENDED = Phase
# A member looked up by its name takes a tenth of a microsecond.


class PostgresClientLogin:
    """See `wire.ClientLogin`."""

    packing = None
    """PostgreSQL has no compression."""

    def __init__(self, *, method: str, offers_tls: bool = False) -> None:
        if method not in METHODS:
            raise IllegalUse(f"PostgreSQL clients cannot log in by {method}")
        self._method = method
        self._framer = Framer("client", AUTH_MESSAGE_BYTES_MAX)
        self._output = b""
        self._phase = _START
        self._offers_tls = offers_tls
        self._is_begun = False
        self._answered_requests: frozenset[int] = frozenset()
        self._minor = 0
        self._startup: Startup | None = None
        self._proof: ClientProof | None = None

    def receive(self, data: bytes) -> Sequence[LoginFact]:
        """Take bytes of the client. Raises ProtocolViolation. Any cut of the stream gives the same facts."""
        if data and not self._is_begun:
            self._is_begun = True
            if data[0] == TLS_HANDSHAKE and self._offers_tls:
                self._answered_requests = frozenset({SSL_REQUEST_CODE, GSSENC_REQUEST_CODE})
                return [TlsWanted(received=data, alpn=ALPN)]
        self._framer.receive(data)
        facts: list[LoginFact] = []
        while True:
            if self._phase is _START:
                packet = self._framer.next_packet(STARTUP_BYTES_MAX)
                if packet is None:
                    break
                facts += self._take_packet(packet)
            elif self._phase is _PROOF:
                more = self._next_proof()
                if more is None:
                    break
                facts += more
            else:
                # What comes now waits in the framer: it is the session's, or nobody's.
                break
        return facts

    def take_output(self) -> bytes:
        """Bytes for the client, each only once."""
        output, self._output = self._output, b""
        return output

    def take_unread(self) -> bytes:
        """Bytes that came after the login's end and belong to the session."""
        return self._framer.take_unread()

    def give_credential(
        self, password: str | None, secret: str | None = None, *, method: str = "", channel: Channel = CLEAR
    ) -> Sequence[LoginFact]:
        """See `wire.ClientLogin`. `secret` is the password's other name and is used if `password` is None."""
        if self._phase is not _CREDENTIAL or self._startup is None:
            raise IllegalUse("give_credential without CredentialWanted")
        known = password if password is not None else secret
        self._proof = ClientProof(self._startup.user, method or self._method, known, channel)
        try:
            self._output += self._proof.begin()
        except Refused as refused:
            return self._refuse("FATAL", refused.sqlstate, refused.text)
        if self._proof.is_complete:
            return self._proven()
        self._phase = _PROOF
        # A client that did not wait for the question has nothing to prove with.
        return self.receive(b"")

    @property
    def secret_bytes(self) -> int:
        """See `wire.ClientLogin`."""
        return CANCEL_KEY_BYTES_3_2 if self._minor >= NEWEST_MINOR else CANCEL_KEY_BYTES_3_0

    def accept(self, backend: BackendFacts) -> bytes:
        """See `wire.ClientLogin`."""
        if self._phase is not _PROVEN:
            raise IllegalUse("accept without LoginProven")
        if len(backend.secret) != self.secret_bytes:
            raise IllegalUse(f"this client's cancel key has {self.secret_bytes} bytes")
        self._phase = _ENDED
        parameters = _parameter_statuses(backend.parameters)
        key = build_backend_key(backend.process_id, backend.secret)
        return b"".join((self.take_output(), _AUTHENTICATION_OK, parameters, key, _READY))

    def refuse(self, error: ErrorReply) -> bytes:
        """The bytes that end the login with an error, in whatever phase it is."""
        self._phase = _ENDED
        refusal = build_error(severity="FATAL", sqlstate=error.sqlstate, message=error.message, hint=error.hint)
        return self.take_output() + refusal

    # --- first packets --------------------------------------------------------------------------------------------

    def _take_packet(self, packet: bytes) -> Sequence[LoginFact]:
        code, body = int.from_bytes(packet[:4], "big"), packet[4:]
        if code in (SSL_REQUEST_CODE, GSSENC_REQUEST_CODE):
            if body:
                raise ProtocolViolation("client", "a request for encryption with a body")
            if not self._framer.is_empty:
                raise ProtocolViolation("client", "bytes behind a request for encryption, before its answer")
            if code in self._answered_requests:
                raise ProtocolViolation("client", "a request for encryption after its answer")
            self._answered_requests |= {code}
            if code == SSL_REQUEST_CODE and self._offers_tls:
                # Within TLS there is nothing more to ask for.
                self._answered_requests |= {GSSENC_REQUEST_CODE}
                self._output += b"S"
                return [TlsWanted()]
            self._output += b"N"
            return []
        if code == CANCEL_REQUEST_CODE:
            self._phase = _ENDED
            return [CancelRequested(*parse_cancel_request(body))]
        if code >> 16 != PROTOCOL_3_0 >> 16:
            text = (
                f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: server supports 3.0 to 3.{NEWEST_MINOR}"
            )
            return self._refuse("FATAL", SQLSTATE_FEATURE_NOT_SUPPORTED, text)
        first = _known_first_packet(body) if len(body) <= FIRST_PACKET_BYTES_KEPT else _read_first_packet(body)
        return self._take_startup(code & 0xFFFF, first)

    def _take_startup(self, minor: int, first: _FirstPacket) -> Sequence[LoginFact]:
        self._minor = min(minor, NEWEST_MINOR)
        if minor > NEWEST_MINOR or first.unknown:
            self._output += build_negotiate_protocol_version(PROTOCOL_3_0 | self._minor, first.unknown)
        if first.wanted is None:
            return self._refuse("FATAL", first.sqlstate, first.refusal)
        self._startup = first.startup
        self._phase = _CREDENTIAL
        return [first.wanted]

    # --- proofs ---------------------------------------------------------------------------------------------------

    def _next_proof(self) -> Sequence[LoginFact] | None:
        """Take the client's next message; None until it is there."""
        assert self._proof is not None
        try:
            message = self._framer.next_message(self._proof.bytes_max)
            if message is None:
                return None
            self._output += self._proof.take(message)
        except ProtocolViolation as violation:
            return self._refuse("FATAL", SQLSTATE_PROTOCOL_VIOLATION, violation.text)
        except Refused as refused:
            return self._refuse("FATAL", refused.sqlstate, refused.text)
        return self._proven() if self._proof.is_complete else ()

    def _proven(self) -> Sequence[LoginFact]:
        assert self._startup is not None
        assert self._proof is not None
        self._phase = _PROVEN
        return [LoginProven(self._startup, self._proof.credential)]

    def _refuse(self, severity: str, sqlstate: str, text: str) -> Sequence[LoginFact]:
        self._phase = _ENDED
        self._output += build_error(severity=severity, sqlstate=sqlstate, message=text)
        return [LoginRefused(text)]


@dataclass(frozen=True, slots=True)
class _FirstPacket:
    """What a StartupMessage says, its version aside."""

    unknown: tuple[str, ...]
    """Protocol options; we know none."""
    startup: Startup | None = None
    wanted: CredentialWanted | None = None
    """None: refused."""
    sqlstate: str = ""
    refusal: str = ""


def _read_first_packet(body: bytes) -> _FirstPacket:
    """`body` comes behind the version. Raises ProtocolViolation."""
    parameters = parse_startup_parameters(body)
    unknown = tuple(name for name in parameters if name.startswith("_pq_."))
    for name in unknown:
        del parameters[name]
    user = parameters.pop("user", "")
    database = parameters.pop("database", "") or user
    if not user:
        text = "no PostgreSQL user name specified in startup packet"
        return _FirstPacket(unknown, sqlstate=SQLSTATE_INVALID_AUTHORIZATION, refusal=text)
    replication = parameters.pop("replication", "off")
    if replication == "database" or replication.lower() in _ON:
        parameters["replication"] = replication
    elif replication.lower() not in _OFF:
        text = f'invalid value for parameter "replication": "{replication}"'
        return _FirstPacket(unknown, sqlstate=SQLSTATE_INVALID_PARAMETER_VALUE, refusal=text)
    # Physical replication is of the whole server: the name, if there is one, only tells which service is meant.
    own = "" if "replication" in parameters and replication != "database" else database
    startup = Startup(user, own, tuple(sorted(parameters.items())))
    return _FirstPacket(unknown, startup, CredentialWanted(user, database, is_replication=not own))


FIRST_PACKET_BYTES_KEPT: Final = 512
"""Longest first packet whose meaning is kept; the clients that come and go have far shorter ones."""

_known_first_packet: Final = functools.lru_cache(maxsize=1024)(_read_first_packet)

_AUTHENTICATION_OK: Final = build_authentication(AUTH_OK)
_READY: Final = build_ready()

_statuses: dict[int, tuple[Mapping[str, str], bytes]] = {}
# By id of the mapping, which is kept beside it so that no other can have the id.


def _parameter_statuses(parameters: Mapping[str, str]) -> bytes:
    """ParameterStatus messages, built once and not at each login: the data plane keeps one mapping for all backends that
    told the same, and never changes one."""
    kept = _statuses.get(id(parameters))
    if kept is not None:
        return kept[1]
    made = b"".join(build_parameter_status(name, value) for name, value in parameters.items())
    if len(_statuses) >= STATUSES_MAX:
        _statuses.clear()
    _statuses[id(parameters)] = (parameters, made)
    return made


STATUSES_MAX: Final = 64
"""Mappings whose messages are kept."""

_UNKNOWN_VERSION: Final = frozenset({SQLSTATE_FEATURE_NOT_SUPPORTED, SQLSTATE_PROTOCOL_VIOLATION})
"""How servers refuse a version without negotiating: PostgreSQL before 9.3, and other poolers."""


class PostgresTlsRequest:
    """SSLRequest to an engine and its answer: `wire.Login`. The request is in the output from the start."""

    def __init__(self) -> None:
        self._output = build_ssl_request()

    def receive(self, data: bytes) -> Sequence[LoginFact]:
        """Take the engine's answer. Raises ProtocolViolation."""
        if data[:1] == b"E":
            # An ErrorResponse of a server that cannot even fork: not to be shown, for anybody in between may have sent
            # it (CVE-2024-10977).
            return [TlsRefused(is_over=True)]
        if len(data) > 1:
            raise ProtocolViolation("server", "bytes behind the answer to a request for encryption")
        if data == b"S":
            return [TlsWanted()]
        if data == b"N":
            return [TlsRefused()]
        raise ProtocolViolation("server", f"answer {data!r} to a request for encryption")

    def take_output(self) -> bytes:
        """Bytes for the engine, each only once."""
        output, self._output = self._output, b""
        return output

    def take_unread(self) -> bytes:
        """Nothing: what comes behind the answer is a violation."""
        return b""


class PostgresServerLogin:
    """A login at an engine: `wire.Login`. The first packet is in the output from the start."""

    def __init__(
        self, startup: Startup, password: Credential, *, binding: bytes = b"", minor: int = NEWEST_MINOR
    ) -> None:
        self._proof = ServerProof(startup.user, password, binding)
        self._framer = Framer("server", LOGIN_MESSAGE_BYTES_MAX)
        self._output = bytearray(build_startup(startup.user, startup.database, startup.parameters, minor))
        self._minor = minor
        self._is_negotiated = False
        self._is_asked = False
        self._is_authenticated = False
        self._is_ended = False
        self._parameters: dict[str, str] = {}
        self._process_id = 0
        self._secret = b""

    def go_on(self, *, is_encrypted: bool) -> None:
        raise IllegalUse("PostgreSQL speaks of TLS before the login")

    def receive(self, data: bytes) -> Sequence[LoginFact]:
        """Take bytes of the engine. Raises ProtocolViolation. Any cut of the stream gives the same facts."""
        self._framer.receive(data)
        while not self._is_ended:
            message = self._framer.next_message()
            if message is None:
                break
            fact = self._take(message)
            if fact is not None:
                self._is_ended = True
                return [fact]
        return []

    def take_output(self) -> bytes:
        """Bytes for the engine, each only once."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def take_unread(self) -> bytes:
        """Bytes that came after the login's end."""
        return self._framer.take_unread()

    def _take(self, message: bytes) -> LoginFact | None:
        tag = message[:1]
        if tag == b"E":
            fields = parse_error(message)
            return BackendRefused(
                fields.sqlstate,
                fields.sqlstate,
                fields.message,
                is_too_new=self._minor > 0 and not self._is_asked and fields.sqlstate in _UNKNOWN_VERSION,
                is_before_proof=not self._is_asked,
            )
        if tag == b"N":
            return None
        if tag == b"v":
            minor, unknown = parse_negotiate_protocol_version(message)
            if self._is_negotiated or self._is_asked or minor > self._minor or unknown:
                raise ProtocolViolation("server", "it negotiates what was not asked for")
            self._is_negotiated = True
            return None
        if not self._is_authenticated:
            if tag == b"R":
                self._is_asked = True
                return self._take_authentication(message)
        elif tag == b"S":
            name, value = parse_parameter_status(message)
            self._parameters[name] = value
            return None
        elif tag == b"K":
            self._process_id, self._secret = parse_backend_key(message)
            return None
        elif tag == b"Z":
            if message[5:] != b"I":
                raise ProtocolViolation("server", "a login that ends inside of a transaction")
            return BackendReady(
                BackendFacts(
                    server_version=self._parameters.get("server_version", ""),
                    process_id=self._process_id,
                    secret=self._secret,
                    parameters=dict(self._parameters),
                )
            )
        raise ProtocolViolation("server", f"unexpected message type 0x{message[0]:02x} in a login")

    def _take_authentication(self, message: bytes) -> LoginFact | None:
        kind, data = parse_authentication(message)
        if kind == AUTH_OK:
            self._proof.check_end()
            self._is_authenticated = True
            return None
        try:
            self._output += self._proof.take(kind, data)
        except Refused as refused:
            return BackendRefused(refused.sqlstate, refused.sqlstate, refused.text)
        return None
