"""Ed25519 as MariaDB's `client_ed25519` has it: RFC 8032, but the seed is the password itself, of any length.

The `cryptography` package takes seeds of 32 bytes only, so the two multiplications that a password needs are done here, with
plain integers: some milliseconds each, and not in constant time. Whoever could time them sits on this machine. Verifying
a signature needs no password and is left to the package.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

_P: Final = 2**255 - 19
_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, _P - 2, _P) % _P

_Point = tuple[int, int, int, int]
"""Extended coordinates X, Y, Z, T with x = X/Z, y = Y/Z, xy = T/Z."""

_BASE_X: Final = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_BASE_Y: Final = 46316835694926478169428394003475163141307993866256225615783033603165251855960
_BASE: Final[_Point] = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)


def _add(left: _Point, right: _Point) -> _Point:
    """RFC 8032 section 5.1.4."""
    a = (left[1] - left[0]) * (right[1] - right[0]) % _P
    b = (left[1] + left[0]) * (right[1] + right[0]) % _P
    c = 2 * left[3] * right[3] * _D % _P
    d = 2 * left[2] * right[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times_base(scalar: int) -> bytes:
    """The base point so often, as RFC 8032 writes a point."""
    total: _Point = (0, 1, 1, 0)
    point = _BASE
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point = _add(point, point)
        scalar >>= 1
    inverse = pow(total[2], _P - 2, _P)
    x, y = total[0] * inverse % _P, total[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _expand(password: bytes) -> tuple[int, bytes]:
    """The secret scalar and the prefix."""
    digest = hashlib.sha512(password).digest()
    scalar = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | 1 << 254
    return scalar, digest[32:]


@functools.lru_cache(maxsize=256)
def public_key(password: bytes) -> bytes:
    """What MariaDB keeps of the password."""
    return _times_base(_expand(password)[0])


def sign(password: bytes, message: bytes) -> bytes:
    """The signature of `message` by `password`."""
    scalar, prefix = _expand(password)
    key = public_key(password)
    nonce = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % _ORDER
    point = _times_base(nonce)
    challenge = int.from_bytes(hashlib.sha512(point + key + message).digest(), "little") % _ORDER
    return point + ((nonce + challenge * scalar) % _ORDER).to_bytes(32, "little")


def is_signed(key: bytes, message: bytes, signature: bytes) -> bool:
    """Is `signature` of `message` by the password whose public key this is?"""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
