"""Proofs of identity, both sides: SCRAM-SHA-256 (RFC 5802, 7677), md5 and clear text.

Each SCRAM object lives for one attempt. No channel binding: the flag `n` (client cannot) and `y` (client could, server
does not offer it) are accepted, `p` is refused.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata
from dataclasses import dataclass
from typing import Final

from protocols.errors import Peer, ProtocolViolation

MECHANISM: Final = "SCRAM-SHA-256"
ITERATIONS: Final = 4096
"""PostgreSQL's SCRAM_SHA_256_DEFAULT_ITERATIONS."""
ITERATIONS_MAX: Final = 1_000_000
"""A server may ask for no more: about a second of processor time. Ours."""
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 18

_VERIFIER: Final = re.compile(r"SCRAM-SHA-256\$(\d{1,7}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")

# Unknown users get a salt that is always the same for the same name, as if they had a verifier: a client cannot tell
# them from known ones (PostgreSQL's mock authentication).
_MOCK_SECRET: Final = secrets.token_bytes(32)


class WrongPassword(Exception):
    """The proof did not match. Expected; the login turns it into its refusal."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """What a server keeps of a password."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes


def is_verifier(password: str) -> bool:
    """`SCRAM-SHA-256$…` in place of a plain password."""
    return _VERIFIER.fullmatch(password) is not None


def parse_verifier(text: str) -> Verifier:
    """Raises ValueError."""
    match = _VERIFIER.fullmatch(text)
    if match is None:
        raise ValueError("not a SCRAM-SHA-256 verifier")
    iterations, salt, stored_key, server_key = match.groups()
    try:
        return Verifier(
            max(1, int(iterations)),
            base64.b64decode(salt, validate=True),
            base64.b64decode(stored_key, validate=True),
            base64.b64decode(server_key, validate=True),
        )
    except binascii.Error as error:
        raise ValueError("not a SCRAM-SHA-256 verifier") from error


def build_verifier(password: str, salt: bytes | None = None, iterations: int = ITERATIONS) -> Verifier:
    """What a server keeps of `password`; a new salt if none is given."""
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    salted = _salted(saslprep(password).encode("utf-8", "surrogateescape"), salt, iterations)
    return Verifier(iterations, salt, hashlib.sha256(_mac(salted, b"Client Key")).digest(), _mac(salted, b"Server Key"))


def mock_verifier(user: str) -> Verifier:
    """For a user that does not exist: no password matches it."""
    salt = _mac(_MOCK_SECRET, user.encode("utf-8", "surrogateescape"))[:SALT_BYTES]
    return Verifier(ITERATIONS, salt, secrets.token_bytes(32), secrets.token_bytes(32))


def md5_response(user: str, password: str, salt: bytes) -> bytes:
    """Answer to AuthenticationMD5Password."""
    inner = hashlib.md5(_bytes(password) + _bytes(user)).hexdigest()
    return b"md5" + hashlib.md5(inner.encode() + salt).hexdigest().encode()


class ScramServer:
    """The verifying side. `respond` to the client's first and last message, in this order."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._first_bare = ""
        self._server_first = ""
        self._gs2_header = ""
        self._nonce = ""

    def respond_first(self, data: bytes) -> bytes:
        """SASLInitialResponse's data to SASLContinue's."""
        text = _utf8("client", data)
        flag, _, rest = text.partition(",")
        if flag.startswith("p="):
            raise ProtocolViolation("client", "SCRAM: channel binding was not offered")
        if flag not in ("n", "y"):
            raise ProtocolViolation("client", "SCRAM: malformed first message")
        authzid, comma, bare = rest.partition(",")
        if not comma or authzid:
            raise ProtocolViolation("client", "SCRAM: an authorization identity is not supported")
        self._gs2_header = f"{flag},{authzid},"
        attributes = bare.split(",")
        if len(attributes) < 2 or attributes[0][:2] != "n=" or attributes[1][:2] != "r=" or len(attributes[1]) < 3:
            raise ProtocolViolation("client", "SCRAM: malformed first message")
        # The user's name is that of the startup packet; the one here is ignored, as the manual says.
        self._first_bare = bare
        self._nonce = attributes[1][2:] + _b64(secrets.token_bytes(NONCE_BYTES))
        self._server_first = f"r={self._nonce},s={_b64(self._verifier.salt)},i={self._verifier.iterations}"
        return self._server_first.encode()

    def respond_last(self, data: bytes) -> bytes:
        """SASLResponse's data to SASLFinal's. Raises WrongPassword."""
        text = _utf8("client", data)
        without_proof, comma, proof_text = text.rpartition(",p=")
        attributes = without_proof.split(",")
        if not comma or len(attributes) < 2 or attributes[0][:2] != "c=" or attributes[1][:2] != "r=":
            raise ProtocolViolation("client", "SCRAM: malformed last message")
        if attributes[0][2:] != _b64(self._gs2_header.encode()):
            raise ProtocolViolation("client", "SCRAM: channel binding does not match")
        if not hmac.compare_digest(attributes[1][2:], self._nonce):
            raise ProtocolViolation("client", "SCRAM: nonce does not match")
        proof = _unb64("client", proof_text)
        message = f"{self._first_bare},{self._server_first},{without_proof}".encode()
        signature = _mac(self._verifier.stored_key, message)
        if len(proof) != len(signature):
            raise ProtocolViolation("client", "SCRAM: malformed proof")
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        if not hmac.compare_digest(hashlib.sha256(client_key).digest(), self._verifier.stored_key):
            raise WrongPassword
        return b"v=" + _b64(_mac(self._verifier.server_key, message)).encode()


class ScramClient:
    """The proving side."""

    def __init__(self, password: str) -> None:
        self._password = saslprep(password).encode("utf-8", "surrogateescape")
        self._nonce = _b64(secrets.token_bytes(NONCE_BYTES))
        self._first_bare = f"n=,r={self._nonce}"
        self._server_signature = b""

    def first(self) -> bytes:
        return f"n,,{self._first_bare}".encode()

    def last(self, data: bytes) -> bytes:
        """SASLContinue's data to SASLResponse's."""
        text = _utf8("server", data)
        parts = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
        nonce, salt, iterations = parts.get("r", ""), parts.get("s", ""), parts.get("i", "")
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise ProtocolViolation("server", "SCRAM: nonce does not match")
        if not iterations.isdigit() or len(iterations) > 9 or not 1 <= int(iterations) <= ITERATIONS_MAX:
            raise ProtocolViolation("server", "SCRAM: iteration count out of range")
        salted = _salted(self._password, _unb64("server", salt), int(iterations))
        client_key = _mac(salted, b"Client Key")
        without_proof = f"c={_b64(b'n,,')},r={nonce}"
        message = f"{self._first_bare},{text},{without_proof}".encode()
        signature = _mac(hashlib.sha256(client_key).digest(), message)
        self._server_signature = _mac(_mac(salted, b"Server Key"), message)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        return f"{without_proof},p={_b64(proof)}".encode()

    def check(self, data: bytes) -> None:
        """SASLFinal's data: the server knows the password too. Raises ProtocolViolation."""
        text = _utf8("server", data)
        if not text.startswith("v="):
            raise ProtocolViolation("server", "SCRAM: malformed final message")
        if not self._server_signature or not hmac.compare_digest(_unb64("server", text[2:]), self._server_signature):
            raise ProtocolViolation("server", "SCRAM: the server does not know the password")


@functools.lru_cache(maxsize=1024)
def _salted(password: bytes, salt: bytes, iterations: int) -> bytes:
    """Milliseconds of processor time each, and the same for all backends of a user: the salt is the server's."""
    return hashlib.pbkdf2_hmac("sha256", password, salt, iterations)


def saslprep(password: str) -> str:
    """RFC 4013, as PostgreSQL applies it: a password it forbids is used as it is."""
    if password.isascii():
        # Nothing to map; control characters are forbidden, which leaves the password as it is.
        return password
    mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    normal = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if not normal or any(_is_prohibited(c) for c in normal):
        return password
    if any(stringprep.in_table_d1(c) for c in normal):
        # Right-to-left text: RFC 3454 section 6.
        if any(stringprep.in_table_d2(c) for c in normal):
            return password
        if not (stringprep.in_table_d1(normal[0]) and stringprep.in_table_d1(normal[-1])):
            return password
    return normal


def _is_prohibited(c: str) -> bool:
    return (
        stringprep.in_table_a1(c)
        or stringprep.in_table_c12(c)
        or stringprep.in_table_c21_c22(c)
        or stringprep.in_table_c3(c)
        or stringprep.in_table_c4(c)
        or stringprep.in_table_c5(c)
        or stringprep.in_table_c6(c)
        or stringprep.in_table_c7(c)
        or stringprep.in_table_c8(c)
        or stringprep.in_table_c9(c)
    )


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(peer: Peer, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolViolation(peer, "SCRAM: malformed base64") from None


def _utf8(peer: Peer, data: bytes) -> str:
    """User names and nonces may hold any UTF-8; what does not decode is malformed."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolViolation(peer, "SCRAM: message is not UTF-8") from None
