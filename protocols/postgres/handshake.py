"""Logins: the server's part, spoken to clients, and the client's part, spoken to engines.

Protocol versions: 3.0 is spoken to both. A client that asks for a newer 3.x (3.2 of libpq 18, the grease 3.9999 of
libpq 19) or with `_pq_.` options is told so once, by NegotiateProtocolVersion, before anything else, and goes on in 3.0;
one that asks for another major version is refused. Cancel keys towards clients therefore have four bytes.

TLS and GSS encryption are answered with `N`. Bytes that a client sent behind such a request without waiting for the
answer would be taken from the plain connection into the encrypted one (CVE-2021-23214): a violation even though both are
refused, so that it does not depend on the answer.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from protocols.errors import IllegalUse, ProtocolViolation
from protocols.postgres.auth import (
    MECHANISM,
    ScramClient,
    ScramServer,
    Verifier,
    WrongPassword,
    build_verifier,
    is_verifier,
    md5_response,
    mock_verifier,
    parse_verifier,
)
from protocols.postgres.constants import (
    AUTH_MESSAGE_BYTES_MAX,
    CANCEL_REQUEST_CODE,
    GSSENC_REQUEST_CODE,
    LOGIN_MESSAGE_BYTES_MAX,
    PROTOCOL_3_0,
    SQLSTATE_FEATURE_NOT_SUPPORTED,
    SQLSTATE_INVALID_AUTHORIZATION,
    SQLSTATE_INVALID_PASSWORD,
    SQLSTATE_PROTOCOL_VIOLATION,
    SSL_REQUEST_CODE,
    STARTUP_BYTES_MAX,
)
from protocols.postgres.framing import Framer
from protocols.postgres.messages import (
    build_authentication,
    build_backend_key,
    build_error,
    build_negotiate_protocol_version,
    build_parameter_status,
    build_password,
    build_ready,
    build_sasl_initial,
    build_sasl_response,
    build_startup,
    parse_authentication,
    parse_backend_key,
    parse_cancel_request,
    parse_error,
    parse_negotiate_protocol_version,
    parse_parameter_status,
    parse_sasl_initial,
    parse_startup_parameters,
)
from protocols.wire import (
    BackendFacts,
    BackendReady,
    BackendRefused,
    CancelRequested,
    CredentialWanted,
    ErrorReply,
    LoginFact,
    LoginProven,
    LoginRefused,
    Startup,
)

# Kinds of Authentication messages.
AUTH_OK: Final = 0
AUTH_CLEARTEXT: Final = 3
AUTH_MD5: Final = 5
AUTH_SASL: Final = 10
AUTH_SASL_CONTINUE: Final = 11
AUTH_SASL_FINAL: Final = 12

METHODS: Final = frozenset({"trust", "scram-sha-256"})

_OFF: Final = frozenset({"off", "false", "no", "0", "f", "fa", "fal", "fals", "n", "of"})


class Phase(enum.Enum):
    """Where a client's login stands."""

    START = "start"
    """Its first packet, or the next one after a refused encryption, is awaited."""
    CREDENTIAL = "credential"
    """The shell looks the user up."""
    FIRST_PROOF = "first proof"
    LAST_PROOF = "last proof"
    PROVEN = "proven"
    """The shell looks for a backend."""
    ENDED = "ended"
    """Accepted, refused, or a cancel request."""


class PostgresClientLogin:
    """See `wire.ClientLogin`."""

    def __init__(self, *, method: str) -> None:
        if method not in METHODS:
            raise IllegalUse(f"PostgreSQL clients cannot log in by {method}")
        self._method = method
        self._framer = Framer("client", AUTH_MESSAGE_BYTES_MAX)
        self._output = bytearray()
        self._phase = Phase.START
        self._refused_encryptions: set[int] = set()
        self._startup: Startup | None = None
        self._scram: ScramServer | None = None

    def receive(self, data: bytes) -> Sequence[LoginFact]:
        """Take bytes of the client. Raises ProtocolViolation. Any cut of the stream gives the same facts."""
        self._framer.receive(data)
        facts: list[LoginFact] = []
        while True:
            if self._phase is Phase.START:
                packet = self._framer.next_packet(STARTUP_BYTES_MAX)
                if packet is None:
                    break
                facts += self._take_packet(packet)
            elif self._phase in (Phase.FIRST_PROOF, Phase.LAST_PROOF):
                message = self._framer.next_message()
                if message is None:
                    break
                facts += self._take_proof(message)
            else:
                # What comes now waits in the framer: it is the session's, or nobody's.
                break
        return facts

    def take_output(self) -> bytes:
        """Bytes for the client, each only once."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def take_unread(self) -> bytes:
        """Bytes that came after the login's end and belong to the session."""
        return self._framer.take_unread()

    def give_credential(self, password: str | None, secret: str | None = None) -> Sequence[LoginFact]:
        """See `wire.ClientLogin`. `secret` is the password's other name and is used if `password` is None."""
        if self._phase is not Phase.CREDENTIAL or self._startup is None:
            raise IllegalUse("give_credential without CredentialWanted")
        known = password if password is not None else secret
        if self._method == "trust":
            if known is None:
                text = f'user "{self._startup.user}" is not known here'
                return self._refuse("FATAL", SQLSTATE_INVALID_AUTHORIZATION, text)
            self._phase = Phase.PROVEN
            return [LoginProven(self._startup)]
        self._scram = ScramServer(_verifier(self._startup.user, known))
        self._output += build_authentication(AUTH_SASL, MECHANISM.encode() + b"\0\0")
        self._phase = Phase.FIRST_PROOF
        # A client that did not wait for the question has nothing to prove with.
        return self.receive(b"")

    def accept(self, backend: BackendFacts) -> bytes:
        """See `wire.ClientLogin`."""
        if self._phase is not Phase.PROVEN:
            raise IllegalUse("accept without LoginProven")
        if len(backend.secret) != 4:
            raise IllegalUse("protocol 3.0 has cancel keys of four bytes")
        self._phase = Phase.ENDED
        parameters = b"".join(build_parameter_status(name, value) for name, value in backend.parameters.items())
        key = build_backend_key(backend.process_id, backend.secret)
        return build_authentication(AUTH_OK) + parameters + key + build_ready()

    def refuse(self, error: ErrorReply) -> bytes:
        """The bytes that end the login with an error, in whatever phase it is."""
        self._phase = Phase.ENDED
        return build_error(severity="FATAL", sqlstate=error.sqlstate, message=error.message, hint=error.hint)

    # --- first packets --------------------------------------------------------------------------------------------

    def _take_packet(self, packet: bytes) -> Sequence[LoginFact]:
        code, body = int.from_bytes(packet[:4], "big"), packet[4:]
        if code in (SSL_REQUEST_CODE, GSSENC_REQUEST_CODE):
            if body:
                raise ProtocolViolation("client", "a request for encryption with a body")
            if not self._framer.is_empty:
                raise ProtocolViolation("client", "bytes behind a request for encryption, before its answer")
            if code in self._refused_encryptions:
                raise ProtocolViolation("client", "the same request for encryption twice")
            self._refused_encryptions.add(code)
            self._output += b"N"
            return []
        if code == CANCEL_REQUEST_CODE:
            self._phase = Phase.ENDED
            return [CancelRequested(*parse_cancel_request(body))]
        if code >> 16 != PROTOCOL_3_0 >> 16:
            text = f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: server supports 3.0 to 3.0"
            return self._refuse("FATAL", SQLSTATE_FEATURE_NOT_SUPPORTED, text)
        return self._take_startup(code & 0xFFFF, parse_startup_parameters(body))

    def _take_startup(self, minor: int, parameters: dict[str, str]) -> Sequence[LoginFact]:
        unknown = [name for name in parameters if name.startswith("_pq_.")]
        for name in unknown:
            del parameters[name]
        if minor > 0 or unknown:
            self._output += build_negotiate_protocol_version(PROTOCOL_3_0, unknown)
        user = parameters.pop("user", "")
        database = parameters.pop("database", "") or user
        if not user:
            text = "no PostgreSQL user name specified in startup packet"
            return self._refuse("FATAL", SQLSTATE_INVALID_AUTHORIZATION, text)
        replication = parameters.pop("replication", "off")
        if replication.lower() not in _OFF:
            text = "replication connections do not go through Turnout; connect to the server itself"
            return self._refuse("FATAL", SQLSTATE_FEATURE_NOT_SUPPORTED, text)
        self._startup = Startup(user, database, tuple(sorted(parameters.items())))
        self._phase = Phase.CREDENTIAL
        return [CredentialWanted(user, database)]

    # --- proofs ---------------------------------------------------------------------------------------------------

    def _take_proof(self, message: bytes) -> Sequence[LoginFact]:
        assert self._scram is not None
        assert self._startup is not None
        if message[:1] != b"p":
            text = f"expected SASL response, got message type 0x{message[0]:02x}"
            return self._refuse("FATAL", SQLSTATE_PROTOCOL_VIOLATION, text)
        try:
            if self._phase is Phase.FIRST_PROOF:
                mechanism, data = parse_sasl_initial(message)
                if mechanism != MECHANISM:
                    raise ProtocolViolation("client", "a SASL mechanism that was not offered")
                self._output += build_authentication(AUTH_SASL_CONTINUE, self._scram.respond_first(data))
                self._phase = Phase.LAST_PROOF
                return []
            self._output += build_authentication(AUTH_SASL_FINAL, self._scram.respond_last(message[5:]))
        except WrongPassword:
            text = f'password authentication failed for user "{self._startup.user}"'
            return self._refuse("FATAL", SQLSTATE_INVALID_PASSWORD, text)
        except ProtocolViolation as violation:
            return self._refuse("FATAL", SQLSTATE_PROTOCOL_VIOLATION, violation.text)
        self._phase = Phase.PROVEN
        return [LoginProven(self._startup)]

    def _refuse(self, severity: str, sqlstate: str, text: str) -> Sequence[LoginFact]:
        self._phase = Phase.ENDED
        self._output += build_error(severity=severity, sqlstate=sqlstate, message=text)
        return [LoginRefused(text)]


def _verifier(user: str, password: str | None) -> Verifier:
    """Of a verifier, of a plain password, or one that nothing matches."""
    if not password:
        # An empty password would let anybody in who leaves it out; PostgreSQL does not accept it either.
        return mock_verifier(user)
    if is_verifier(password):
        return parse_verifier(password)
    # The same salt at each attempt, as if a verifier were kept. Its processor time is that of one login.
    salt = hmac.digest(hashlib.sha256(password.encode("utf-8", "surrogateescape")).digest(), user.encode(), "sha256")
    return build_verifier(password, salt[:16])


class PostgresServerLogin:
    """A login at an engine: `wire.Login`. The first packet is in the output from the start."""

    def __init__(self, startup: Startup, password: str | None) -> None:
        self._startup = startup
        self._password = password
        self._framer = Framer("server", LOGIN_MESSAGE_BYTES_MAX)
        self._output = bytearray(build_startup(startup.user, startup.database, startup.parameters))
        self._scram: ScramClient | None = None
        self._is_scram_checked = False
        self._is_authenticated = False
        self._is_ended = False
        self._parameters: dict[str, str] = {}
        self._process_id = 0
        self._secret = b""

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
            return BackendRefused(fields.sqlstate, fields.sqlstate, fields.message)
        if tag == b"N":
            return None
        if tag == b"v":
            # We ask for 3.0 without options: nothing to negotiate, but a server may say so.
            parse_negotiate_protocol_version(message)
            return None
        if not self._is_authenticated:
            if tag == b"R":
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
            if self._scram is not None and not self._is_scram_checked:
                raise ProtocolViolation("server", "SCRAM: the server did not prove that it knows the password")
            self._is_authenticated = True
            return None
        if kind in (AUTH_SASL_CONTINUE, AUTH_SASL_FINAL):
            if self._scram is None:
                raise ProtocolViolation("server", "SCRAM: a continuation without a beginning")
            if kind == AUTH_SASL_CONTINUE:
                self._output += build_sasl_response(self._scram.last(data))
            else:
                self._scram.check(data)
                self._is_scram_checked = True
            return None
        if kind not in (AUTH_CLEARTEXT, AUTH_MD5, AUTH_SASL):
            text = f"the server asks for an authentication (kind {kind}) that Turnout does not know"
            return BackendRefused(SQLSTATE_INVALID_AUTHORIZATION, SQLSTATE_INVALID_AUTHORIZATION, text)
        if self._password is None or is_verifier(self._password):
            text = f'the server asks for the password of user "{self._startup.user}", and Turnout does not have it'
            return BackendRefused(SQLSTATE_INVALID_PASSWORD, SQLSTATE_INVALID_PASSWORD, text)
        if kind == AUTH_SASL:
            if MECHANISM.encode() not in data.split(b"\0"):
                text = "the server offers no SASL mechanism that Turnout knows"
                return BackendRefused(SQLSTATE_INVALID_AUTHORIZATION, SQLSTATE_INVALID_AUTHORIZATION, text)
            self._scram = ScramClient(self._password)
            self._output += build_sasl_initial(MECHANISM, self._scram.first())
        elif kind == AUTH_MD5:
            if len(data) != 4:
                raise ProtocolViolation("server", "AuthenticationMD5Password without a salt of four bytes")
            self._output += build_password(md5_response(self._startup.user, self._password, data))
        else:
            self._output += build_password(self._password.encode("utf-8", "surrogateescape"))
        return None
