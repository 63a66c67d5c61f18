"""Which message is legal when, as tables. A pair that is absent is a protocol violation.

The tracker keeps a queue of what the server still owes (`Awaited`). The server's next message is judged by its tag and
the head of that queue; the client's by its tag alone, because a client may pipeline whatever it likes. COPY needs one
more thing, which the tracker's theory of operation explains.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from protocols.postgres import constants


class Awaited(enum.IntEnum):
    """The head of the queue."""

    NOTHING = 0
    PARSE = constants.PARSE
    BIND = constants.BIND
    DESCRIBE = constants.DESCRIBE
    EXECUTE = constants.EXECUTE
    CLOSE = constants.CLOSE
    SYNC = constants.SYNC
    QUERY = constants.QUERY
    CALL = constants.CALL


class Sent(enum.IntEnum):
    """What a client's message does. The first ones join the queue."""

    PARSE = constants.PARSE
    BIND = constants.BIND
    DESCRIBE = constants.DESCRIBE
    EXECUTE = constants.EXECUTE
    CLOSE = constants.CLOSE
    SYNC = constants.SYNC
    QUERY = constants.QUERY
    CALL = constants.CALL
    COPY_END = constants.COPY_END
    """Joins the queue too, but no answer is its own: it marks where the server listens to Sync again."""
    PASS = constants.CLIENT_PASS
    """Nothing is expected for it."""
    LEAVE = constants.CLIENT_LEAVE


class Move(enum.IntEnum):
    """What a server's message does to the queue."""

    PASS = constants.MOVE_PASS
    """Nothing."""
    ANSWER = constants.MOVE_ANSWER
    """The head is answered."""
    READY = constants.MOVE_READY
    """The head is answered, and the transaction's status is told."""
    FAIL = constants.MOVE_FAIL
    """Everything up to the next Sync is dropped if the head belongs to the extended protocol."""
    COPY_IN = constants.MOVE_COPY_IN
    """The client is asked for data."""
    NOTE = constants.MOVE_NOTE
    """A parameter's value: fetched."""
    COMPLETE = constants.MOVE_COMPLETE
    """An Execute is answered; a Query may go on."""


CLIENT: Final[Mapping[str, Sent]] = {
    "P": Sent.PARSE,
    "B": Sent.BIND,
    "D": Sent.DESCRIBE,
    "E": Sent.EXECUTE,
    "C": Sent.CLOSE,
    "S": Sent.SYNC,
    "Q": Sent.QUERY,
    "F": Sent.CALL,
    "H": Sent.PASS,
    "d": Sent.PASS,
    "c": Sent.COPY_END,
    "f": Sent.COPY_END,
    "X": Sent.LEAVE,
}
"""By tag. CopyData, CopyDone and CopyFail outside of COPY are ignored by the server, so they are always legal."""

SERVER: Final[Mapping[tuple[str, Awaited], Move]] = {
    # At any time.
    **{("N", awaited): Move.PASS for awaited in Awaited},
    **{("A", awaited): Move.NOTE for awaited in Awaited},
    **{("S", awaited): Move.NOTE for awaited in Awaited},
    **{("E", awaited): Move.FAIL for awaited in Awaited},
    # Extended protocol.
    ("1", Awaited.PARSE): Move.ANSWER,
    ("2", Awaited.BIND): Move.ANSWER,
    ("3", Awaited.CLOSE): Move.ANSWER,
    ("t", Awaited.DESCRIBE): Move.PASS,
    ("T", Awaited.DESCRIBE): Move.ANSWER,
    ("n", Awaited.DESCRIBE): Move.ANSWER,
    ("D", Awaited.EXECUTE): Move.PASS,
    ("C", Awaited.EXECUTE): Move.COMPLETE,
    ("I", Awaited.EXECUTE): Move.ANSWER,
    ("s", Awaited.EXECUTE): Move.ANSWER,
    ("G", Awaited.EXECUTE): Move.COPY_IN,
    ("H", Awaited.EXECUTE): Move.PASS,
    ("d", Awaited.EXECUTE): Move.PASS,
    ("c", Awaited.EXECUTE): Move.PASS,
    ("Z", Awaited.SYNC): Move.READY,
    # Simple protocol.
    ("T", Awaited.QUERY): Move.PASS,
    ("D", Awaited.QUERY): Move.PASS,
    ("C", Awaited.QUERY): Move.COMPLETE,
    ("I", Awaited.QUERY): Move.PASS,
    ("G", Awaited.QUERY): Move.COPY_IN,
    ("H", Awaited.QUERY): Move.PASS,
    # START_REPLICATION: from here on CopyData goes both ways, until both have sent CopyDone.
    ("W", Awaited.QUERY): Move.PASS,
    ("d", Awaited.QUERY): Move.PASS,
    ("c", Awaited.QUERY): Move.PASS,
    ("Z", Awaited.QUERY): Move.READY,
    # Function call.
    ("V", Awaited.CALL): Move.PASS,
    ("Z", Awaited.CALL): Move.READY,
    # Left out on purpose: authentication 'R', BackendKeyData 'K' and NegotiateProtocolVersion 'v' (part of the login).
}

UNIT_ENDS: Final = frozenset({Awaited.SYNC, Awaited.QUERY, Awaited.CALL})
"""What a ReadyForQuery answers."""


def client_table() -> bytearray:
    """`CLIENT` for the tracker: 256 bytes, by tag."""
    table = bytearray(256)
    for tag, sent in CLIENT.items():
        table[ord(tag)] = sent
    return table


def server_table() -> bytearray:
    """`SERVER` for the tracker: 4096 bytes, by tag and awaited kind."""
    table = bytearray(256 * 16)
    for (tag, awaited), move in SERVER.items():
        table[(ord(tag) << 4) | awaited] = move
    return table
