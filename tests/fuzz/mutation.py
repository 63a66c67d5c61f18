"""Makes a conversation worse: message by message, where bytes can be read as messages, and byte by byte."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Final

SIZE_MAX: Final = 64 * 1024
"""Most bytes of a mutated conversation."""

_NUMBERS: Final = (
    0,
    1,
    2,
    3,
    4,
    5,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0xFFFF,
    0x1_0000,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
)
_TOKENS: Final = (
    b"\0", b"\0\0\0\0", b"\xff\xff\xff\xff", b"begin\0", b"commit\0", b"rollback\0", b"discard all\0", b"deallocate all\0",
    b"set x to 1\0", b"listen a\0", b"copy c from stdin\0", b"'", b"\\", b"$$", b"/*", b"--", b";", b"\xc3\x28", b"%s%n", b"a" * 300,
)  # fmt: skip


def split_postgres(stream: bytes) -> list[bytes]:
    """Messages with a tag; what is no whole message stays as it is at the end."""
    return _split(stream, lambda data, at: 1 + int.from_bytes(data[at + 1 : at + 5], "big"), 5)


def split_mysql(stream: bytes) -> list[bytes]:
    """Packets; what is no whole packet stays as it is at the end."""
    return _split(stream, lambda data, at: 4 + int.from_bytes(data[at : at + 3], "little"), 4)


def _split(stream: bytes, size_at: Callable[[bytes, int], int], header: int) -> list[bytes]:
    messages, at = [], 0
    while len(stream) - at >= header:
        size = size_at(stream, at)
        if size < header or at + size > len(stream):
            break
        messages.append(stream[at : at + size])
        at += size
    return [*messages, stream[at:]] if at < len(stream) else messages


class Mutator:
    """All of its choices come from `rng`."""

    def __init__(self, rng: random.Random, split: Callable[[bytes], list[bytes]], donors: Sequence[bytes]) -> None:
        self._rng = rng
        self._split = split
        self._donors = donors
        """Streams that messages are taken from."""

    def mutate(self, stream: bytes) -> bytes:
        """Worse by one to six steps; now and then not at all."""
        rng = self._rng
        if rng.random() < 0.05:
            return stream
        messages = self._split(stream)
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
            messages = self._of_messages(messages) if messages and rng.random() < 0.6 else self._of_bytes(messages)
        return b"".join(messages)[:SIZE_MAX]

    def cuts(self, data: bytes) -> list[bytes]:
        """`data` in pieces."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.3 or len(data) < 2:
            return [data]
        if kind < 0.4 and len(data) < 2_000:
            return [data[at : at + 1] for at in range(len(data))]
        edges = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(rng.randint(1, 8)))})
        return [data[begin:end] for begin, end in itertools.pairwise(edges)]

    def _of_messages(self, messages: list[bytes]) -> list[bytes]:
        rng = self._rng
        at = rng.randrange(len(messages))
        match rng.randrange(8):
            case 0:
                return messages[:at] + messages[at + 1 :]
            case 1:
                return [*messages[:at], messages[at], *messages[at:]]
            case 2:
                other = rng.randrange(len(messages))
                messages = list(messages)
                messages[at], messages[other] = messages[other], messages[at]
                return messages
            case 3:
                return messages[:at]
            case 4:
                donor = self._split(rng.choice(self._donors))
                return [*messages[:at], rng.choice(donor), *messages[at:]] if donor else messages
            case 5:
                donor = self._split(rng.choice(self._donors))
                return messages[:at] + donor[rng.randrange(len(donor) + 1) :]
            case 6:
                # The same again and again: what is counted must have a bound.
                return messages[:at] + [messages[at]] * rng.choice((3, 20, 300)) + messages[at:]
            case _:
                return [*messages[:at], self._worse(messages[at]), *messages[at + 1 :]]

    def _of_bytes(self, messages: list[bytes]) -> list[bytes]:
        if not messages:
            return [self._rng.randbytes(self._rng.randrange(40))]
        at = self._rng.randrange(len(messages))
        return [*messages[:at], self._worse(messages[at]), *messages[at + 1 :]]

    def _worse(self, data: bytes) -> bytes:
        rng = self._rng
        if not data:
            return rng.randbytes(rng.randrange(8))
        at = rng.randrange(len(data))
        match rng.randrange(9):
            case 0:
                return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
            case 1:
                return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 2:
                return data[:at]
            case 3:
                return data[:at] + data[at + rng.randint(1, 8) :]
            case 4:
                return data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:]
            case 5:
                return data[:at] + rng.choice(_TOKENS) + data[at:]
            case 6:
                size = rng.choice((1, 2, 3, 4))
                number = rng.choice(_NUMBERS) & ((1 << 8 * size) - 1)
                return data[:at] + number.to_bytes(size, rng.choice(("big", "little"))) + data[at + size :]
            case 7 if len(data) >= 5:
                # The length field itself, whichever protocol it is.
                wrong = rng.choice((*_NUMBERS, len(data), len(data) - 2, len(data) + 1)) & 0xFFFF_FFFF
                return data[:1] + wrong.to_bytes(4, "big") + data[5:]
            case 7:
                return bytes([rng.randrange(256)]) + data[1:]
            case _:
                # Another tag on the same body.
                return bytes([rng.choice(b"QPBDECSHFdcfXpZTIREKNAGW123nstV\0")]) + data[1:]
