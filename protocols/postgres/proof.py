# cython: wraparound=True
"""Proofs in a login, message by message: what a client is asked and has to show, what an engine asks and is shown.

`ClientProof` and `ServerProof` live for one login. The arithmetic is in `auth`; when a login asks for a proof, and what
comes before and after it, is in `handshake`. Compiled, as that is (proof.pxd).
"""

from __future__ import annotations

import enum
import functools
from hmac import compare_digest
from os import urandom
from typing import Final

from protocols.errors import IllegalUse, ProtocolViolation
from protocols.postgres.auth import (
    MECHANISM,
    MECHANISM_PLUS,
    OtherVerifier,
    ScramClient,
    ScramServer,
    WrongPassword,
    common_name,
    is_md5,
    is_password,
    is_verifier,
    md5_response,
    verifier_of,
)
from protocols.postgres.constants import (
    AUTH_MESSAGE_BYTES_MAX,
    SASL_MESSAGE_BYTES_MAX,
    SQLSTATE_INVALID_AUTHORIZATION,
    SQLSTATE_INVALID_PASSWORD,
    SQLSTATE_PROTOCOL_VIOLATION,
)
from protocols.postgres.messages import (
    build_authentication,
    build_password,
    build_sasl_initial,
    build_sasl_response,
    decode,
    encode,
    parse_password,
    parse_sasl_initial,
)
from protocols.wire import Channel, Credential, ScramKeys

# Kinds of Authentication messages.
AUTH_OK: Final = 0
AUTH_CLEARTEXT: Final = 3
AUTH_MD5: Final = 5
AUTH_SASL: Final = 10
AUTH_SASL_CONTINUE: Final = 11
AUTH_SASL_FINAL: Final = 12

METHODS: Final = frozenset({"trust", "password", "md5", "scram-sha-256", "cert"})
"""How a client may prove who it is; the words of pg_hba.conf."""


class Refused(Exception):
    """The proof failed, or cannot be had. Expected; the login turns it into its refusal."""

    def __init__(self, sqlstate: str, text: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate
        self.text = text


class Awaited(enum.Enum):
    """What the client has to send next."""

    PASSWORD = "a password"
    MD5 = "an md5 response"
    SASL_FIRST = "a SASL initial response"
    SASL_LAST = "a SASL response"
    NOTHING = "nothing: the proof is complete"


_PASSWORD, _MD5, _SASL_FIRST, _SASL_LAST, _NOTHING = Awaited
# A member looked up by its name takes a tenth of a microsecond.


class ClientProof:
    """A client's proof by `method` that it is `user`, of whom `secret` is kept (None: no such user).

    As PostgreSQL and PgBouncer do, method md5 asks for SCRAM where the secret is a verifier.
    """

    def __init__(self, user: str, method: str, secret: str | None, channel: Channel) -> None:
        if method not in METHODS:
            raise IllegalUse(f"PostgreSQL clients cannot log in by {method}")
        if method == "md5" and secret is not None and is_verifier(secret):
            method = "scram-sha-256"
        self._user = user
        self._method = method
        self._secret = secret
        self._channel = channel
        self._salt = b""
        self._scram: ScramServer | None = None
        self.credential: Credential = None
        """What the proof leaves to open backends with; valid once `is_complete`."""
        self.is_complete = False
        self.bytes_max = 0
        """Longest message that may come now."""
        self._await(_NOTHING)

    def _await(self, awaited: Awaited) -> None:
        self._awaited = awaited
        self.is_complete = awaited is _NOTHING
        is_sasl = awaited is _SASL_FIRST or awaited is _SASL_LAST
        self.bytes_max = SASL_MESSAGE_BYTES_MAX if is_sasl else AUTH_MESSAGE_BYTES_MAX

    def begin(self) -> bytes:
        """What the client is asked; empty if the proof is complete already. Raises Refused."""
        match self._method:
            case "trust":
                if self._secret is None:
                    raise Refused(SQLSTATE_INVALID_AUTHORIZATION, f'user "{self._user}" is not known here')
                return b""
            case "cert":
                self._check_certificate()
                return b""
            case "password":
                self._await(_PASSWORD)
                return build_authentication(AUTH_CLEARTEXT)
            case "md5":
                self._await(_MD5)
                self._salt = urandom(4)
                return build_authentication(AUTH_MD5, self._salt)
            case _:
                self._await(_SASL_FIRST)
                self._scram = ScramServer(verifier_of(self._user, self._secret), self._channel.binding)
                return _offer(self._scram.mechanisms)

    def take(self, message: bytes) -> bytes:
        """The client's next message; returns what it is told. Raises Refused."""
        if not message.startswith(b"p"):
            raise Refused(
                SQLSTATE_PROTOCOL_VIOLATION, f"expected {self._awaited.value}, got message type 0x{message[0]:02x}"
            )
        try:
            return self._take(message)
        except WrongPassword:
            raise self._wrong() from None
        except ProtocolViolation as violation:
            raise Refused(SQLSTATE_PROTOCOL_VIOLATION, violation.text) from None

    def _take(self, message: bytes) -> bytes:
        if self._awaited is _SASL_FIRST:
            assert self._scram is not None
            mechanism, data = parse_sasl_initial(message)
            self._await(_SASL_LAST)
            return build_authentication(AUTH_SASL_CONTINUE, self._scram.respond_first(data, mechanism))
        if self._awaited is _SASL_LAST:
            assert self._scram is not None
            last = self._scram.respond_last(message[5:])
            self._complete(self._scram.keys)
            return build_authentication(AUTH_SASL_FINAL, last)
        if self._awaited is _PASSWORD:
            self._take_password(decode(parse_password(message)))
            return b""
        if self._awaited is _MD5:
            self._take_md5(parse_password(message))
            return b""
        raise IllegalUse("a message for a proof that is complete")

    def _take_password(self, given: str) -> None:
        if not given:
            raise Refused(SQLSTATE_INVALID_PASSWORD, "empty password returned by client")
        if not is_password(self._user, self._secret, given):
            raise WrongPassword
        self._complete(given)

    def _take_md5(self, given: bytes) -> None:
        # For an unknown user, and for a secret that is not to be had by md5, nothing is right.
        known = self._secret or ""
        right = md5_response(self._user, known or urandom(8).hex(), self._salt)
        if not compare_digest(right, given) or not known:
            raise WrongPassword
        self._complete(known)

    def _check_certificate(self) -> None:
        if self._channel.certificate is None:
            raise Refused(SQLSTATE_INVALID_AUTHORIZATION, "connection requires a valid client certificate")
        if self._secret is None or common_name(self._channel.certificate) != self._user:
            raise Refused(SQLSTATE_INVALID_AUTHORIZATION, f'certificate authentication failed for user "{self._user}"')

    def _complete(self, credential: Credential) -> None:
        self._await(_NOTHING)
        self.credential = credential

    def _wrong(self) -> Refused:
        return Refused(SQLSTATE_INVALID_PASSWORD, f'password authentication failed for user "{self._user}"')


@functools.lru_cache
def _offer(mechanisms: tuple[str, ...]) -> bytes:
    """AuthenticationSASL."""
    return build_authentication(AUTH_SASL, b"".join(name.encode() + b"\0" for name in mechanisms) + b"\0")


class ServerProof:
    """Our proof at an engine that we are `user`, by what `credential` allows.

    `binding` is the tls-server-end-point hash of the engine's certificate; empty: no TLS.
    """

    def __init__(self, user: str, credential: Credential, binding: bytes = b"") -> None:
        self._user = user
        self._credential = credential
        self._binding = binding
        self._scram: ScramClient | None = None
        self._is_checked = False

    def take(self, kind: int, data: bytes) -> bytes:
        """An Authentication message other than AuthenticationOk; returns the answer. Raises Refused, and
        ProtocolViolation."""
        match kind:
            case _ if kind == AUTH_SASL:
                return self._begin_sasl(data)
            case _ if kind == AUTH_SASL_CONTINUE:
                return self._go_on(data)
            case _ if kind == AUTH_SASL_FINAL:
                if self._scram is None:
                    raise ProtocolViolation("server", "SCRAM: an end without a beginning")
                self._scram.check(data)
                self._is_checked = True
                return b""
            case _ if kind == AUTH_MD5:
                return self._md5(data)
            case _ if kind == AUTH_CLEARTEXT:
                return build_password(encode(self._plain("its password in clear text")))
            case _:
                raise Refused(
                    SQLSTATE_INVALID_AUTHORIZATION,
                    f"the server asks for an authentication (kind {kind}) that Turnout does not know",
                )

    def check_end(self) -> None:
        """AuthenticationOk came. Raises ProtocolViolation if the engine skipped its own part."""
        if self._scram is not None and not self._is_checked:
            raise ProtocolViolation("server", "SCRAM: the server did not prove that it knows the password")

    def _begin_sasl(self, data: bytes) -> bytes:
        if self._scram is not None:
            raise ProtocolViolation("server", "SCRAM: two beginnings")
        offered = tuple(name.decode("latin-1") for name in data.split(b"\0") if name)
        if MECHANISM not in offered and not (self._binding and MECHANISM_PLUS in offered):
            raise Refused(SQLSTATE_INVALID_AUTHORIZATION, "the server offers no SASL mechanism that Turnout knows")
        credential = self._credential
        if not isinstance(credential, ScramKeys):
            credential = self._plain("a SCRAM proof")
        self._scram = ScramClient(credential, offered, self._binding)
        return build_sasl_initial(self._scram.mechanism, self._scram.first())

    def _go_on(self, data: bytes) -> bytes:
        if self._scram is None:
            raise ProtocolViolation("server", "SCRAM: a continuation without a beginning")
        try:
            return build_sasl_response(self._scram.last(data))
        except OtherVerifier:
            raise Refused(
                SQLSTATE_INVALID_PASSWORD,
                f'the verifier of user "{self._user}" that Turnout has is not the one of this server: '
                "copy rolpassword of its pg_authid, or let auth_query read it",
            ) from None

    def _md5(self, salt: bytes) -> bytes:
        if len(salt) != 4:
            raise ProtocolViolation("server", "AuthenticationMD5Password without a salt of four bytes")
        if isinstance(self._credential, str) and is_md5(self._credential):
            return build_password(md5_response(self._user, self._credential, salt))
        return build_password(md5_response(self._user, self._plain("an md5 proof"), salt))

    def _plain(self, what: str) -> str:
        """The password in plain text. Raises Refused where something else, or nothing, is known."""
        credential = self._credential
        if isinstance(credential, str) and not is_md5(credential) and not is_verifier(credential):
            return credential
        has = (
            "does not have it"
            if credential is None or (isinstance(credential, str) and is_verifier(credential))
            else "has only an md5 hash of it"
            if isinstance(credential, str)
            else "has only the SCRAM keys that its client proved"
        )
        raise Refused(
            SQLSTATE_INVALID_PASSWORD,
            f'the server asks for {what}, of the password of user "{self._user}", and Turnout {has}',
        )
