"""What a client has sent in one go, looked at as a whole, before anybody has decided which server it is for.

Only the question of routing is answered here: is it one statement, complete, with nothing behind it? Whatever is not surely
that is for the engine that serves. Nothing is judged by the rules of the protocol: that is the tracker's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

UNIT_BYTES_MAX: Final = 64 * 1024
"""Longer ones are not looked at: they come in several pieces anyway."""

_QUERY, _PARSE, _BIND, _DESCRIBE, _EXECUTE, _CLOSE, _SYNC = 0x51, 0x50, 0x42, 0x44, 0x45, 0x43, 0x53

_HARMLESS: Final = frozenset({_PARSE, _DESCRIBE, _CLOSE, _SYNC})
"""These execute nothing."""


def lone_statement(work: bytes, text_of: Callable[[bytes], bytes | None]) -> bytes | None:
    """The text of the statement that `work` executes; b"" if it executes nothing (it prepares, describes, closes); None if it
    is anything else than one complete Query, or one batch up to its Sync with at most one statement. `text_of` tells the text
    of a prepared one by its name."""
    if len(work) > UNIT_BYTES_MAX:
        return None
    messages = list(_messages(work))
    tags = [tag for tag, _ in messages]
    if tags == [_QUERY]:
        return messages[0][1].removesuffix(b"\0")
    if tags[-1:] != [_SYNC] or tags.count(_SYNC) != 1 or set(tags) - {_BIND, _EXECUTE} - _HARMLESS:
        return None
    steps = [tag for tag in tags if tag not in (_DESCRIBE, _SYNC)]
    if _BIND not in steps and _EXECUTE not in steps:
        return b""
    # A portal, by whatever name and how much of it was fetched, ends with the transaction, which ends with the Sync.
    if steps not in ([_PARSE, _BIND, _EXECUTE], [_BIND, _EXECUTE]):
        return None
    bodies = dict(messages)
    bound = bodies[_BIND].split(b"\0", 2)
    if len(bound) != 3 or bodies[_EXECUTE].partition(b"\0")[0] != bound[0]:
        return None
    if _PARSE not in bodies:
        return text_of(bound[1])
    parsed = bodies[_PARSE].split(b"\0", 2)
    return parsed[1] if len(parsed) == 3 and parsed[0] == bound[1] else None


def first_statement(work: bytes, text_of: Callable[[bytes], bytes | None]) -> tuple[bytes, bool] | None:
    """See `Tracker.first_statement`. `text_of` tells the text of a prepared one by its name."""
    parsed: dict[bytes, tuple[bytes, bool]] = {}
    at = 0
    while len(work) - at >= 5:
        tag, size = work[at], int.from_bytes(work[at + 1 : at + 5], "big")
        body, is_whole = work[at + 5 : at + 1 + size], at + 1 + size <= len(work)
        if tag == _QUERY:
            return body.partition(b"\0")[0], is_whole
        parts = body.split(b"\0", 2)
        if tag == _PARSE and len(parts) >= 2:
            parsed[parts[0]] = (parts[1], is_whole or len(parts) == 3)
        elif tag == _BIND and len(parts) == 3:
            if parts[1] in parsed:
                return parsed[parts[1]]
            text = text_of(parts[1])
            return None if text is None else (text, True)
        elif tag not in _HARMLESS or size < 4:
            break
        at += 1 + size
    return next(iter(parsed.values()), None)


def _messages(work: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each; one that is not complete has the type 0."""
    at = 0
    while at < len(work):
        size = int.from_bytes(work[at + 1 : at + 5], "big")
        if len(work) - at < 5 or size < 4 or at + 1 + size > len(work):
            yield 0, b""
            return
        yield work[at], work[at + 5 : at + 1 + size]
        at += 1 + size
