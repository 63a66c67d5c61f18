"""How a password is proven: mysql_native_password and caching_sha2_password, from both sides.

Towards engines also sha256_password, which is the full form of the latter. mysql_clear_password and the plugins that need TLS or other parties are not offered and not answered.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import secrets
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from protocols.errors import ProtocolViolation

NATIVE: Final = "mysql_native_password"
SHA2: Final = "caching_sha2_password"
PLUGINS: Final = frozenset({NATIVE, SHA2})
SHA256: Final = "sha256_password"
"""Towards engines only. MySQL also names it at random to users it does not have, before it refuses them."""

SCRAMBLE_BYTES: Final = 20
PASSWORD_BYTES_MAX: Final = 4_096
"""Longest password in a full authentication; an RSA key of 2048 bits takes less than 256 in any case."""


def new_scramble() -> bytes:
    """20 random bytes as MySQL makes them: printable range, without NUL and '$'."""
    alphabet = bytes(byte for byte in range(0x21, 0x7F) if byte != 0x24)
    return bytes(secrets.choice(alphabet) for _ in range(SCRAMBLE_BYTES))


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def native_proof(password: bytes, scramble: bytes) -> bytes:
    """SHA1(password) xor SHA1(scramble + SHA1(SHA1(password))); empty for no password."""
    if not password:
        return b""
    inner = hashlib.sha1(password).digest()
    return _xor(inner, hashlib.sha1(scramble[:SCRAMBLE_BYTES] + hashlib.sha1(inner).digest()).digest())


def sha2_proof(password: bytes, scramble: bytes) -> bytes:
    """SHA256(password) xor SHA256(SHA256(SHA256(password)) + scramble); empty for no password."""
    if not password:
        return b""
    inner = hashlib.sha256(password).digest()
    outer = hashlib.sha256(hashlib.sha256(inner).digest() + scramble[:SCRAMBLE_BYTES]).digest()
    return _xor(inner, outer)


def proof(plugin: str, password: bytes, scramble: bytes) -> bytes:
    """What a client sends first with one of PLUGINS."""
    return native_proof(password, scramble) if plugin == NATIVE else sha2_proof(password, scramble)


def is_proof(plugin: str, password: bytes | None, scramble: bytes, given: bytes) -> bool:
    """Does `given` prove `password`? None (no such user) takes as long as a wrong one, and never does."""
    known = secrets.token_bytes(16) if password is None else password
    is_equal = hmac.compare_digest(proof(plugin, known, scramble), given)
    return is_equal and password is not None


# --- caching_sha2_password, full authentication without TLS: the password under the server's RSA key ---------------

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
