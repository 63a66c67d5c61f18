"""How a password is proven: the methods of MySQL and MariaDB, from both sides, and what servers keep of passwords.

A user's secret is plain text, or a verifier as servers have it in `mysql.user` (MariaDB: `mysql.global_priv`), told by its
form:

`*` and 40 hex digits               mysql_native_password: SHA1(SHA1(password))
`$A$005$…`, or the same as 0x24…    caching_sha2_password: sha256-crypt, 5000 rounds, a salt of 20 bytes
`$5$…`, or the same as 0x24…        sha256_password: the same with another head
`ed25519:` and 43 characters        client_ed25519: the public key

What each leaves to open backends with: the password itself, if the client sent it (caching_sha2_password in full,
sha256_password, mysql_clear_password); SHA1(password), which is all that mysql_native_password needs at a server; nothing
from client_ed25519, and nothing from the fast form of caching_sha2_password, which cannot be used where the server's cache
is cold: so the password of the full form that came before it is kept.

A full authentication costs one sha256-crypt whoever the user is, known or not.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from protocols.errors import ProtocolViolation
from protocols.mysql import ed25519

NATIVE: Final = "mysql_native_password"
SHA2: Final = "caching_sha2_password"
SHA256: Final = "sha256_password"
"""MySQL also names it at random to users it does not have, before it refuses them."""
ED25519: Final = "client_ed25519"
CLEAR: Final = "mysql_clear_password"
PLUGINS: Final = frozenset({NATIVE, SHA2, SHA256, ED25519, CLEAR})

GREETED: Final = frozenset({NATIVE, SHA2, SHA256})
"""Methods that a greeting may name: its scramble is of 20 bytes, and the first answer is no password in clear text."""

SCRAMBLE_BYTES: Final = 20
NONCE_BYTES: Final = 32
"""Scramble of client_ed25519."""
PASSWORD_BYTES_MAX: Final = 256
"""Longest password in a full authentication (MySQL's MAX_PLAINTEXT_LENGTH)."""

ROUNDS_MAX: Final = 50_000
"""Most rounds of a verifier that we compute (about 40 ms); MySQL makes them with 5000 unless told otherwise
(`caching_sha2_password_digest_rounds`)."""

PROVEN_MAX: Final = 10_000
"""Passwords kept that were proven by a full authentication."""


def new_scramble(size: int = SCRAMBLE_BYTES) -> bytes:
    """Random bytes as MySQL makes them: printable range, without NUL and '$'."""
    alphabet = bytes(byte for byte in range(0x21, 0x7F) if byte != 0x24)
    return bytes(secrets.choice(alphabet) for _ in range(size))


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


# --- what servers keep --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verifier:
    """What is kept of a password."""

    plugin: str
    data: bytes = field(repr=False)
    """NATIVE: 20 bytes; ED25519: 32; the others: the whole text that the server has."""


@dataclass(frozen=True, slots=True)
class Account:
    """What is known of a user: a password, a verifier, both (one proven by the other), or neither: nobody is that."""

    password: bytes | None = field(default=None, repr=False)
    verifier: Verifier | None = None


_NATIVE_FORM: Final = re.compile(r"\*[0-9A-Fa-f]{40}")
_HEX_FORM: Final = re.compile(r"0x(?:[0-9A-Fa-f]{2})+")
_CRYPT_FORM: Final = re.compile(
    rb"\$(?:A\$(?P<rounds>[0-9A-F]{3})\$(?P<a>.{20})|5\$(?P<b>.{20})\$)[./0-9A-Za-z]{43}", re.DOTALL
)
_ED25519_HEAD: Final = "ed25519:"


def verifier_of(secret: str) -> Verifier | None:
    """A verifier in one of the forms of the module's head; None: the secret is plain text."""
    if _NATIVE_FORM.fullmatch(secret):
        return Verifier(NATIVE, bytes.fromhex(secret[1:]))
    if secret.startswith(_ED25519_HEAD):
        key = _ed25519_key(secret[len(_ED25519_HEAD) :].encode("utf-8", "replace"))
        return None if key is None else Verifier(ED25519, key)
    data = bytes.fromhex(secret[2:]) if _HEX_FORM.fullmatch(secret) else secret.encode("utf-8", "surrogateescape")
    found = _CRYPT_FORM.fullmatch(data)
    if found is None:
        return None
    return Verifier(SHA256 if found["b"] is not None else SHA2, data)


def _ed25519_key(text: bytes) -> bytes | None:
    try:
        key = base64.b64decode(text + b"=", validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == ed25519.KEY_BYTES else None


def is_plain(secret: str) -> bool:
    """The secret is the password itself."""
    return verifier_of(secret) is None


def unfit(secret: str) -> str:
    """Why a secret that looks like a verifier is none that can be used; empty if all is well."""
    verifier = verifier_of(secret)
    if verifier is None:
        if secret.startswith((_ED25519_HEAD, "$A$")):
            return "has a verifier that is not complete; copy authentication_string as a whole, or its hex() after 0x"
    elif verifier.plugin == SHA2 and _rounds_and_salt(verifier.data)[0] > ROUNDS_MAX:
        return f"has a verifier of more than {ROUNDS_MAX} rounds, which would take too long at each login"
    return ""


_KEPT_AS: Final = {"ed25519": ED25519, NATIVE: NATIVE, SHA2: SHA2, SHA256: SHA256, "": NATIVE}
"""Names of plugins in the servers' tables, and the client's side of them."""


def secret_of(plugin: str, kept: bytes) -> str | None:
    """The secret of a user from a server's own table (`plugin`, `authentication_string`); None: of no use to us."""
    method = _KEPT_AS.get(plugin)
    if method is None:
        return None
    if not kept:
        # No password: whoever proves an empty one is that user.
        return ""
    secret = _ED25519_HEAD + kept.decode("ascii", "replace") if method == ED25519 else kept.decode("latin-1")
    if method in (SHA2, SHA256):
        secret = "0x" + kept.hex()
    verifier = verifier_of(secret)
    return secret if verifier is not None and verifier.plugin == method and not unfit(secret) else None


# A password that a full authentication proved, by the verifier: what makes the next login fast. Bounded, oldest out first.
_proven: OrderedDict[Verifier, bytes] = OrderedDict()


def account_of(secret: str | None) -> Account:
    """What is known of a user whose secret this is; None: there is no such user."""
    if secret is None:
        return Account()
    verifier = verifier_of(secret)
    if verifier is None:
        return Account(password=secret.encode("utf-8", "surrogateescape"))
    return Account(password=_proven.get(verifier), verifier=verifier)


def _remember(verifier: Verifier, password: bytes) -> None:
    _proven[verifier] = password
    _proven.move_to_end(verifier)
    if len(_proven) > PROVEN_MAX:
        _proven.popitem(last=False)


# --- sha256-crypt (https://www.akkadia.org/drepper/SHA-crypt.txt), with MySQL's salt of 20 bytes in place of 16 ----

_BASE64: Final = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ORDER: Final = (
    (0, 10, 20), (21, 1, 11), (12, 22, 2), (3, 13, 23), (24, 4, 14), (15, 25, 5), (6, 16, 26), (27, 7, 17),
    (18, 28, 8), (9, 19, 29),
)  # fmt: skip


def sha256_crypt(password: bytes, salt: bytes, rounds: int) -> bytes:
    """The 43 characters at the end of a verifier."""
    sha256 = hashlib.sha256
    size = len(password)
    other = sha256(password + salt + password).digest()
    first = password + salt + (other * (size // 32 + 1))[:size]
    bits = size
    while bits:
        first += other if bits & 1 else password
        bits >>= 1
    digest = sha256(first).digest()
    mixed = (sha256(password * size).digest() * (size // 32 + 1))[:size]
    salted = sha256(salt * (16 + digest[0])).digest()[: len(salt)]
    # A round is given by its number modulo 42: what stands before and behind the digest of the one before.
    heads, tails = [], []
    for number in range(42):
        middle = (salted if number % 3 else b"") + (mixed if number % 7 else b"")
        heads.append(mixed + middle if number & 1 else b"")
        tails.append(b"" if number & 1 else middle + mixed)
    for number in range(rounds):
        turn = number % 42
        digest = sha256(heads[turn] + digest + tails[turn]).digest()
    text = bytearray()
    for a, b, c in _ORDER:
        value = digest[a] << 16 | digest[b] << 8 | digest[c]
        text += bytes(_BASE64[value >> shift & 63] for shift in (0, 6, 12, 18))
    value = digest[31] << 8 | digest[30]
    return bytes(text) + bytes(_BASE64[value >> shift & 63] for shift in (0, 6, 12))


def _rounds_and_salt(data: bytes) -> tuple[int, bytes]:
    found = _CRYPT_FORM.fullmatch(data)
    assert found is not None, "a verifier has been read by this very form"
    if found["b"] is not None:
        return 5_000, found["b"]
    return int(found["rounds"], 16) * 1_000, found["a"]


_DUMMY: Final = Verifier(SHA2, b"$A$005$" + b"x" * 20 + b"." * 43)


def is_password(account: Account, given: bytes) -> bool:
    """Full authentication: is this the user's password? Takes about as long for any user, known or not."""
    verifier = account.verifier
    crypted = verifier if verifier is not None and verifier.plugin in (SHA2, SHA256) else _DUMMY
    rounds, salt = _rounds_and_salt(crypted.data)
    is_crypt = hmac.compare_digest(sha256_crypt(given[:PASSWORD_BYTES_MAX], salt, rounds), crypted.data[-43:])
    if len(given) > PASSWORD_BYTES_MAX:
        return False
    if verifier is None:
        kept = b"" if account.password is None else account.password
        is_same = hmac.compare_digest(hashlib.sha256(kept).digest(), hashlib.sha256(given).digest())
        return is_same and account.password is not None
    if verifier.plugin == NATIVE:
        is_right = hmac.compare_digest(hashlib.sha1(hashlib.sha1(given).digest()).digest(), verifier.data)
    elif verifier.plugin == ED25519:
        is_right = hmac.compare_digest(ed25519.public_key(given), verifier.data)
    else:
        is_right = is_crypt
    if is_right:
        _remember(verifier, given)
    return is_right


# --- proofs by scramble -------------------------------------------------------------------------------------------


def native_key(password: bytes) -> bytes:
    """SHA1(password): what mysql_native_password needs of it."""
    return hashlib.sha1(password).digest()


def native_proof(key: bytes, scramble: bytes) -> bytes:
    """`key` xor SHA1(scramble + SHA1(key)), of a password that is not empty."""
    return _xor(key, hashlib.sha1(scramble[:SCRAMBLE_BYTES] + hashlib.sha1(key).digest()).digest())


def sha2_proof(password: bytes, scramble: bytes) -> bytes:
    """SHA256(password) xor SHA256(SHA256(SHA256(password)) + scramble), of a password that is not empty."""
    inner = hashlib.sha256(password).digest()
    outer = hashlib.sha256(hashlib.sha256(inner).digest() + scramble[:SCRAMBLE_BYTES]).digest()
    return _xor(inner, outer)


def proof(plugin: str, password: bytes, scramble: bytes) -> bytes:
    """What a client sends first with mysql_native_password or caching_sha2_password; empty for no password."""
    if not password:
        return b""
    return native_proof(native_key(password), scramble) if plugin == NATIVE else sha2_proof(password, scramble)


def native_key_of(account: Account, scramble: bytes, given: bytes) -> bytes | None:
    """SHA1(password) of a client that proved it by mysql_native_password; None if it did not."""
    if account.verifier is not None and account.verifier.plugin == NATIVE:
        stored = account.verifier.data
    else:
        known = secrets.token_bytes(16) if account.password is None else account.password
        stored = hashlib.sha1(native_key(known)).digest()
    if len(given) != 20:
        return None
    key = _xor(given, hashlib.sha1(scramble + stored).digest())
    is_equal = hmac.compare_digest(hashlib.sha1(key).digest(), stored)
    return key if is_equal and account != Account() else None


def is_sha2_proof(account: Account, scramble: bytes, given: bytes) -> bool:
    """The fast form: only of a user whose password is known. Takes as long for others."""
    known = secrets.token_bytes(16) if account.password is None else account.password
    return hmac.compare_digest(sha2_proof(known, scramble), given) and account.password is not None


def is_signature(account: Account, nonce: bytes, given: bytes) -> bool:
    """client_ed25519: signed by the key that the user's password is?"""
    if account.verifier is not None and account.verifier.plugin == ED25519:
        key = account.verifier.data
    else:
        key = ed25519.public_key(secrets.token_bytes(16) if account.password is None else account.password)
    return ed25519.is_signed(key, nonce, given) and account != Account()


# --- full authentication without TLS: the password under the server's RSA key ---------------------------------------

_OAEP: Final = padding.OAEP(mgf=padding.MGF1(algorithm=hashes.SHA1()), algorithm=hashes.SHA1(), label=None)


def _mask(data: bytes, scramble: bytes) -> bytes:
    return bytes(byte ^ scramble[index % SCRAMBLE_BYTES] for index, byte in enumerate(data))


@functools.cache
def _own_key() -> rsa.RSAPrivateKey:
    """This process's key for full authentication of clients; made when the first one asks for it (about 50 ms)."""
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


def own_public_key() -> bytes:
    """The public half of this process's key, in PEM."""
    return (
        _own_key()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def decrypt_password(encrypted: bytes, scramble: bytes) -> bytes | None:
    """The password a client sent under `own_public_key`; None if it is not one."""
    try:
        masked = _own_key().decrypt(encrypted, _OAEP)
    except ValueError:
        return None
    password = _mask(masked, scramble)
    return password[:-1] if password.endswith(b"\0") else None


def encrypt_password(password: bytes, scramble: bytes, public_key: bytes) -> bytes:
    """`password` for a server that sent `public_key` in PEM."""
    try:
        key = serialization.load_pem_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ProtocolViolation("server", "sent a public key that is none") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise ProtocolViolation("server", "sent a public key that is not RSA")
    try:
        return key.encrypt(_mask(password + b"\0", scramble), _OAEP)
    except ValueError as error:
        raise ProtocolViolation("server", "sent a public key too short for the password") from error
