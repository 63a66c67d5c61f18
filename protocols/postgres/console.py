"""The admin console's part of the protocol: what its clients say, and what they are answered.

A client of the console sends Query messages, one question each, as PgBouncer's clients do. The extended protocol is refused
as PgBouncer refuses it; but where PgBouncer ends the connection, its client is told so and may go on after its Sync.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from protocols.errors import ProtocolViolation
from protocols.postgres.constants import SQLSTATE_FEATURE_NOT_SUPPORTED
from protocols.postgres.framing import Framer
from protocols.postgres.messages import Reader, build, build_error, build_ready, readable

SPEAKS_AS: Final = "1.24.1"
"""Version of PgBouncer whose console this is; programs judge by it which columns there are."""

QUESTION_BYTES_MAX: Final = 16 * 1024
"""Longest message of a client. PgBouncer's bound is its `pkt_buf`, 4,096 by default."""

TYPES: Final = {"s": (25, -1), "i": (23, 4), "q": (20, 8), "N": (1700, -1), "b": (17, -1)}
"""PostgreSQL's type and size of a column by the letter PgBouncer's source calls it by: text, int4, int8, numeric, bytea."""

_EXTENDED: Final = frozenset(b"PBDEC")
_IGNORED: Final = frozenset(b"H")
_REFUSAL: Final = build_error(
    severity="ERROR",
    sqlstate=SQLSTATE_FEATURE_NOT_SUPPORTED,
    message="extended query protocol not supported by admin console",
    hint="Let the driver use the simple query protocol.",
)

Value = str | int | None
"""A value of a row: null, a number, or text."""


class ConsoleClient:
    """What one client says. The shell gives it bytes, takes one question after the other, and sends `take_output`."""

    def __init__(self) -> None:
        self._framer = Framer("client", QUESTION_BYTES_MAX)
        self._output = b""
        self._skips = False
        """An extended message was refused: nothing counts until Sync."""
        self.has_left = False
        """It has said goodbye."""

    def receive(self, data: bytes) -> None:
        """Take bytes of the client."""
        self._framer.receive(data)

    def next_question(self) -> str | None:
        """The next question; None until it is there, or if there will be none (`has_left`). Raises ProtocolViolation."""
        while not self.has_left:
            message = self._framer.next_message()
            if message is None:
                return None
            tag = message[0]
            if tag == 0x58:  # X
                self.has_left = True
            elif tag == 0x53:  # S
                self._skips = False
                self._output += build_ready()
            elif self._skips or tag in _IGNORED:
                continue
            elif tag in _EXTENDED:
                self._skips = True
                self._output += _REFUSAL
            elif tag == 0x51:  # Q
                reader = Reader("client", "Query", message[5:])
                text = reader.text()
                reader.finish()
                return readable(text)
            else:
                raise ProtocolViolation("client", f"message of type 0x{tag:02x} at the admin console")
        return None

    @property
    def has_unread(self) -> bool:
        """It has said more than was looked at."""
        return not self._framer.is_empty

    def take_output(self) -> bytes:
        """Bytes for the client, each only once."""
        output, self._output = self._output, b""
        return output


def build_row_description(columns: Sequence[tuple[str, str]]) -> bytes:
    """RowDescription: names, and letters of `TYPES`."""
    body = bytearray(len(columns).to_bytes(2, "big"))
    for name, letter in columns:
        oid, size = TYPES[letter]
        body += name.encode() + b"\0" + bytes(6) + oid.to_bytes(4, "big") + size.to_bytes(2, "big", signed=True)
        body += b"\xff\xff\xff\xff\0\0"
    return build(b"T", bytes(body))


def build_data_row(values: Sequence[Value]) -> bytes:
    """DataRow, as text."""
    body = bytearray(len(values).to_bytes(2, "big"))
    for value in values:
        if value is None:
            body += b"\xff\xff\xff\xff"
        else:
            text = str(value).replace("\0", "").encode("utf-8", "replace")
            body += len(text).to_bytes(4, "big") + text
    return build(b"D", bytes(body))


def done(tag: str) -> bytes:
    """The end of a command: its tag, and ReadyForQuery."""
    return build(b"C", tag.encode() + b"\0") + build_ready()


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Value]], tag: str = "SHOW") -> bytes:
    """A whole answer with rows."""
    return build_row_description(columns) + b"".join(map(build_data_row, rows)) + done(tag)


def notice(text: str, *, detail: str = "") -> bytes:
    """NoticeResponse."""
    return build_error(severity="NOTICE", sqlstate="00000", message=text, detail=detail, tag=b"N")


def refusal(text: str, sqlstate: str, *, hint: str = "") -> bytes:
    """ErrorResponse, and ReadyForQuery: the client may go on."""
    return build_error(severity="ERROR", sqlstate=sqlstate, message=text, hint=hint) + build_ready()
