# cython: wraparound=True
"""Proofs of identity, both sides: SCRAM-SHA-256 and -PLUS (RFC 5802, 5929, 7677), md5, clear text, certificate names.

What is kept of a user, a *secret*, has one of three forms: plain text, `md5` and 32 hexadecimal digits of
md5(password + user), or a `SCRAM-SHA-256$…` verifier. Which proves what:

| secret   | proves by password | by md5 | by SCRAM | opens an engine that asks for         |
|----------|--------------------|--------|----------|---------------------------------------|
| plain    | yes                | yes    | yes      | anything                              |
| md5      | yes                | yes    | no       | md5                                   |
| verifier | yes                | no     | yes      | SCRAM, once the client has proven it  |

The last cell is SCRAM pass-through: a client's proof is ClientKey xor an HMAC under StoredKey, and the verifier has
StoredKey, so the right client hands us its ClientKey. ServerKey is in the verifier. The two are what a SCRAM client
needs (`ScramKeys`), at every engine that keeps the same verifier (same salt, same iterations); no password is involved.

Channel binding is `tls-server-end-point` (RFC 5929): the hash of the certificate that the server's end showed. The
client's flag says `p` (it binds), `y` (it could, and thinks that the server cannot) or `n` (it cannot). `y` towards a
server that offered it means that somebody in between took the offer away: refused.

Each SCRAM object lives for one attempt. Compiled (auth.pxd) for the many logins of clients that come and go.
"""

from __future__ import annotations

import functools
import hmac
import re
import stringprep
import unicodedata
from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import md5, pbkdf2_hmac, sha256
from hmac import compare_digest
from os import urandom
from typing import Any, Final

from protocols.errors import Peer, ProtocolViolation
from protocols.wire import ScramKeys

MECHANISM: Final = "SCRAM-SHA-256"
MECHANISM_PLUS: Final = "SCRAM-SHA-256-PLUS"
BINDING_TYPE: Final = "tls-server-end-point"
ITERATIONS: Final = 4096
"""PostgreSQL's SCRAM_SHA_256_DEFAULT_ITERATIONS."""
ITERATIONS_MAX: Final = 1_000_000
"""A server may ask for no more: about a second of processor time. Ours."""
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 18
KEY_BYTES: Final = 32
"""SHA-256."""
BLOCK_BYTES: Final = 64
"""SHA-256."""

_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
# The paddings of HMAC, as tables of `bytes.translate`.

_VERIFIER: Final = re.compile(r"SCRAM-SHA-256\$([0-9]{1,7}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")
_MD5: Final = re.compile(r"md5[0-9a-f]{32}")
_SERVER_FIRST: Final = re.compile(rb"r=([^,]+),s=([^,]+),i=([0-9]{1,9})(?:,.*)?", re.DOTALL)


class _Salts:
    """Where the salts of users without a verifier come from. Unknown users get one that is always the same for the same
    name, as if they had a verifier: a client cannot tell them from known ones (PostgreSQL's mock authentication). All
    workers need the same `key`, or a user would be known by having one salt everywhere.
    """

    key = urandom(32)


def set_salt_key(key: bytes) -> None:
    """The key of salts for users without a verifier; 32 bytes that stay the same over workers and restarts."""
    assert len(key) == KEY_BYTES
    _Salts.key = key
    _known_verifier.cache_clear()
    mock_verifier.cache_clear()


class WrongPassword(Exception):
    """The proof did not match. Expected; the login turns it into its refusal."""


class KeyedHash:
    """HMAC-SHA-256 (RFC 2104) under one key, many times. The key's part of it is done once, and `hmac.digest` looks its
    algorithm up in OpenSSL at each call: half the time is saved."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        """`key` has at most 64 bytes, a block of SHA-256."""
        assert len(key) <= BLOCK_BYTES
        block = key.ljust(BLOCK_BYTES, b"\0")
        self._inner = sha256(block.translate(_INNER))
        self._outer = sha256(block.translate(_OUTER))

    def __call__(self, data: bytes) -> bytes:
        inner = self._inner.copy()
        inner.update(data)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


@dataclass(frozen=True, slots=True)
class Verifier:
    """What a server keeps of a password."""

    iterations: int
    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    by_stored_key: KeyedHash = field(init=False, repr=False, compare=False)
    by_server_key: KeyedHash = field(init=False, repr=False, compare=False)
    shown: bytes = field(init=False, repr=False, compare=False)
    """Salt and iterations, as the server's first message ends with them."""

    def __post_init__(self) -> None:
        # Made once for all logins: those who need a verifier again and again keep it (`verifier_of`).
        object.__setattr__(self, "by_stored_key", KeyedHash(self.stored_key))
        object.__setattr__(self, "by_server_key", KeyedHash(self.server_key))
        object.__setattr__(self, "shown", b",s=%b,i=%d" % (_b64(self.salt), self.iterations))


def is_verifier(password: str) -> bool:
    """`SCRAM-SHA-256$…` in place of a plain password. A malformed one is none, as PostgreSQL sees it."""
    if not password.startswith("SCRAM-SHA-256$"):
        return False
    try:
        parse_verifier(password)
    except ValueError:
        return False
    return True


def is_md5(secret: str) -> bool:
    """`md5…` in place of a plain password."""
    return _MD5.fullmatch(secret) is not None


def is_plain(secret: str) -> bool:
    """Neither a verifier nor an md5 hash."""
    return not is_verifier(secret) and not is_md5(secret)


@functools.lru_cache(maxsize=1024)
def parse_verifier(text: str) -> Verifier:
    """Raises ValueError."""
    match = _VERIFIER.fullmatch(text)
    if match is None:
        raise ValueError("not a SCRAM-SHA-256 verifier")
    iterations, salt, stored_key, server_key = match.groups()
    try:
        verifier = Verifier(
            max(1, int(iterations)),
            a2b_base64(salt, strict_mode=True),
            a2b_base64(stored_key, strict_mode=True),
            a2b_base64(server_key, strict_mode=True),
        )
    except NotBase64 as error:
        raise ValueError("not a SCRAM-SHA-256 verifier") from error
    if len(verifier.stored_key) != KEY_BYTES or len(verifier.server_key) != KEY_BYTES:
        raise ValueError("not a SCRAM-SHA-256 verifier")
    return verifier


def build_verifier(password: str, salt: bytes | None = None, iterations: int = ITERATIONS) -> Verifier:
    """What a server keeps of `password`; a new salt if none is given."""
    salt = urandom(SALT_BYTES) if salt is None else salt
    salted = _salted(_bytes(saslprep(password)), salt, iterations)
    return Verifier(iterations, salt, sha256(_mac(salted, b"Client Key")).digest(), _mac(salted, b"Server Key"))


@functools.lru_cache(maxsize=1024)
def mock_verifier(user: str) -> Verifier:
    """For a user that does not exist: no password matches it. Kept like those of users that do, so that it takes the same
    time."""
    salt = _mac(_Salts.key, b"user " + _bytes(user))[:SALT_BYTES]
    return Verifier(ITERATIONS, salt, urandom(KEY_BYTES), urandom(KEY_BYTES))


def verifier_of(user: str, secret: str | None) -> Verifier:
    """Of a verifier, of a plain password, or one that nothing matches."""
    if secret and is_verifier(secret):
        return parse_verifier(secret)
    if not secret or is_md5(secret):
        # An empty password would let anybody in who leaves it out; PostgreSQL does not accept it either.
        return mock_verifier(user)
    return _known_verifier(user, secret)


@functools.lru_cache(maxsize=1024)
def _known_verifier(user: str, password: str) -> Verifier:
    """The same salt at each attempt, as if a verifier were kept, and one that changes with the password. Anybody may
    see it, so that it must tell nothing of the password: hence the secret key."""
    digest = sha256(_bytes(password)).digest()
    return build_verifier(password, _mac(_Salts.key, b"password " + digest + _bytes(user))[:SALT_BYTES])


def md5_secret(user: str, secret: str) -> str:
    """The md5 form of a plain password; an md5 secret as it is."""
    return secret if is_md5(secret) else "md5" + md5(_bytes(secret) + _bytes(user)).hexdigest()


def md5_response(user: str, secret: str, salt: bytes) -> bytes:
    """Answer to AuthenticationMD5Password. `secret` is plain or md5."""
    return b"md5" + md5(md5_secret(user, secret)[3:].encode() + salt).hexdigest().encode()


def is_password(user: str, secret: str | None, given: str) -> bool:
    """Does `given`, in plain text, prove `secret` of any form? An unknown user (None) and an empty password never do.

    With a verifier it takes the processor time of its iterations, once for each password that is given.
    """
    if not secret or not given:
        return False
    if is_verifier(secret):
        verifier = parse_verifier(secret)
        if verifier.iterations > ITERATIONS_MAX:
            return False
        of_given = build_verifier(given, verifier.salt, verifier.iterations)
        return compare_digest(of_given.stored_key, verifier.stored_key)
    if is_md5(secret):
        return compare_digest(md5_secret(user, given) if not is_md5(given) else "", secret)
    return compare_digest(_bytes(given), _bytes(secret))


def common_name(certificate: Mapping[str, Any] | None) -> str:
    """Common name of a client's certificate in the form of `ssl.SSLSocket.getpeercert()`; empty if it has none, or
    several, which no rule says how to read."""
    names = [value for part in (certificate or {}).get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 else ""


class ScramServer:
    """The verifying side. `respond` to the client's first and last message, in this order.

    `binding` is the tls-server-end-point hash of the certificate shown to this client; empty: no TLS, or none that can
    be bound to.
    """

    def __init__(self, verifier: Verifier, binding: bytes = b"") -> None:
        self._verifier = verifier
        self._binding = binding
        self._first_bare = b""
        self._server_first = b""
        self._channel = b""
        """What the client has to repeat, in base64."""
        self._nonce = b""
        self.mechanisms: tuple[str, ...] = _BOUND if binding else _UNBOUND
        """What is offered, the best first."""
        self.keys: ScramKeys | None = None
        """Won when the proof was right."""

    def respond_first(self, data: bytes, mechanism: str = MECHANISM) -> bytes:
        """SASLInitialResponse's data to SASLContinue's."""
        if mechanism not in self.mechanisms:
            raise ProtocolViolation("client", "a SASL mechanism that was not offered")
        _check_utf8("client", data)
        flag, _, rest = data.partition(b",")
        if flag.startswith(b"p="):
            if mechanism != MECHANISM_PLUS:
                raise ProtocolViolation("client", "SCRAM: binds a channel with a mechanism that does not")
            if flag[2:] != BINDING_TYPE.encode():
                raise ProtocolViolation("client", "SCRAM: a type of channel binding that was not offered")
        elif flag not in (b"n", b"y"):
            raise ProtocolViolation("client", "SCRAM: malformed first message")
        elif mechanism == MECHANISM_PLUS:
            raise ProtocolViolation("client", "SCRAM: chose channel binding and did not bind")
        elif flag == b"y" and self._binding:
            # It did not see our offer: somebody in between removed it (RFC 5802, section 6).
            raise ProtocolViolation("client", "SCRAM: thinks that channel binding was not offered, but it was")
        authzid, comma, bare = rest.partition(b",")
        if not comma or authzid:
            raise ProtocolViolation("client", "SCRAM: an authorization identity is not supported")
        self._channel = _b64(flag + b",," + (self._binding if mechanism == MECHANISM_PLUS else b""))
        attributes = bare.split(b",")
        if len(attributes) < 2 or attributes[0][:2] != b"n=" or attributes[1][:2] != b"r=" or len(attributes[1]) < 3:
            raise ProtocolViolation("client", "SCRAM: malformed first message")
        # The user's name is that of the startup packet; the one here is ignored, as the manual says.
        self._first_bare = bare
        self._nonce = attributes[1][2:] + _b64(urandom(NONCE_BYTES))
        self._server_first = b"r=" + self._nonce + self._verifier.shown
        return self._server_first

    def respond_last(self, data: bytes) -> bytes:
        """SASLResponse's data to SASLFinal's. Raises WrongPassword."""
        _check_utf8("client", data)
        without_proof, comma, proof_text = data.rpartition(b",p=")
        attributes = without_proof.split(b",")
        if not comma or len(attributes) < 2 or attributes[0][:2] != b"c=" or attributes[1][:2] != b"r=":
            raise ProtocolViolation("client", "SCRAM: malformed last message")
        if not compare_digest(attributes[0][2:], self._channel):
            raise ProtocolViolation("client", "SCRAM: channel binding does not match")
        if not compare_digest(attributes[1][2:], self._nonce):
            raise ProtocolViolation("client", "SCRAM: nonce does not match")
        proof = _unb64("client", proof_text)
        verifier = self._verifier
        message = self._first_bare + b"," + self._server_first + b"," + without_proof
        signature = verifier.by_stored_key(message)
        if len(proof) != len(signature):
            raise ProtocolViolation("client", "SCRAM: malformed proof")
        client_key = _xor(proof, signature)
        if not compare_digest(sha256(client_key).digest(), verifier.stored_key):
            raise WrongPassword
        self.keys = ScramKeys(client_key, verifier.server_key, verifier.salt, verifier.iterations)
        return b"v=" + _b64(verifier.by_server_key(message))


_UNBOUND: Final = (MECHANISM,)
_BOUND: Final = (MECHANISM_PLUS, MECHANISM)


class OtherVerifier(Exception):
    """The server keeps another verifier than the one the keys were won with. Expected; the login says what to do."""


class ScramClient:
    """The proving side, by plain password or by keys.

    `offered` are the server's mechanisms, `binding` the tls-server-end-point hash of its certificate (empty: no TLS, or
    none that can be bound to).
    """

    def __init__(self, secret: str | ScramKeys, offered: tuple[str, ...] = (MECHANISM,), binding: bytes = b"") -> None:
        self._secret = secret
        self._nonce = _b64(urandom(NONCE_BYTES))
        self._first_bare = b"n=,r=" + self._nonce
        self._server_signature = b""
        if binding and MECHANISM_PLUS in offered:
            self.mechanism = MECHANISM_PLUS
            self._gs2_header = b"p=%b,," % BINDING_TYPE.encode()
            self._channel = self._gs2_header + binding
        else:
            self.mechanism = MECHANISM
            self._gs2_header = b"y,," if binding else b"n,,"
            self._channel = self._gs2_header

    def first(self) -> bytes:
        return self._gs2_header + self._first_bare

    def last(self, data: bytes) -> bytes:
        """SASLContinue's data to SASLResponse's. Raises OtherVerifier if the keys do not fit."""
        _check_utf8("server", data)
        match = _SERVER_FIRST.fullmatch(data)
        if match is None:
            raise ProtocolViolation("server", "SCRAM: malformed first message")
        nonce, salt, iterations = match[1], _unb64("server", match[2]), int(match[3])
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise ProtocolViolation("server", "SCRAM: nonce does not match")
        if not 1 <= iterations <= ITERATIONS_MAX:
            raise ProtocolViolation("server", "SCRAM: iteration count out of range")
        client_key, server_key = self._keys(salt, iterations)
        without_proof = b"c=%b,r=%b" % (_b64(self._channel), nonce)
        message = b"%b,%b,%b" % (self._first_bare, data, without_proof)
        signature = _mac(sha256(client_key).digest(), message)
        self._server_signature = _mac(server_key, message)
        return b"%b,p=%b" % (without_proof, _b64(_xor(client_key, signature)))

    def _keys(self, salt: bytes, iterations: int) -> tuple[bytes, bytes]:
        """ClientKey and ServerKey."""
        if isinstance(self._secret, ScramKeys):
            if self._secret.salt != salt or self._secret.iterations != iterations:
                raise OtherVerifier
            return self._secret.client_key, self._secret.server_key
        salted = _salted(_bytes(saslprep(self._secret)), salt, iterations)
        return _mac(salted, b"Client Key"), _mac(salted, b"Server Key")

    def check(self, data: bytes) -> None:
        """SASLFinal's data: the server knows the password too. Raises ProtocolViolation."""
        _check_utf8("server", data)
        if not data.startswith(b"v="):
            raise ProtocolViolation("server", "SCRAM: malformed final message")
        if not self._server_signature or not compare_digest(_unb64("server", data[2:]), self._server_signature):
            raise ProtocolViolation("server", "SCRAM: the server does not know the password")


@functools.lru_cache(maxsize=1024)
def _salted(password: bytes, salt: bytes, iterations: int) -> bytes:
    """Milliseconds of processor time each, and the same for all backends of a user: the salt is the server's."""
    return pbkdf2_hmac("sha256", password, salt, iterations)


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


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _b64(data: bytes) -> bytes:
    return b2a_base64(data, newline=False)


def _unb64(peer: Peer, text: bytes) -> bytes:
    try:
        return a2b_base64(text, strict_mode=True)
    except ValueError:
        raise ProtocolViolation(peer, "SCRAM: malformed base64") from None


def _check_utf8(peer: Peer, data: bytes) -> int:
    """User names and nonces may hold any UTF-8; what does not decode is malformed."""
    if not data.isascii():
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            raise ProtocolViolation(peer, "SCRAM: message is not UTF-8") from None
    return 0
