# cython: wraparound=True
"""Messages of the PostgreSQL protocol, one by one: `build_<message>` and `parse_<message>` mirror each other. Compiled, with
messages.pxd.

A parser is given a whole message with its header and trusts nothing in it; `peer` says who is blamed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from protocols.errors import Peer, ProtocolViolation
from protocols.postgres.constants import (
    CANCEL_KEY_BYTES_MAX,
    CANCEL_REQUEST_CODE,
    GSSENC_REQUEST_CODE,
    PROTOCOL_3_0,
    SSL_REQUEST_CODE,
)


def build(tag: bytes, body: bytes = b"") -> bytes:
    """One message with its header."""
    return tag + (len(body) + 4).to_bytes(4, "big") + body


def build_untagged(code: int, body: bytes = b"") -> bytes:
    """The first packet of a connection, which has no tag."""
    return struct.pack(">II", len(body) + 8, code) + body


class Reader:
    """Walks through a message's body; everything that does not fit is a violation by `peer`."""

    def __init__(self, peer: Peer, kind: str, body: bytes) -> None:
        self._peer: Peer = peer
        self._kind = kind
        self._body = body
        self._position = 0

    def fail(self, why: str) -> ProtocolViolation:
        return ProtocolViolation(self._peer, f"{self._kind}: {why}")

    def take(self, size: int) -> bytes:
        if size < 0 or len(self._body) - self._position < size:
            raise self.fail("shorter than it says")
        taken = self._body[self._position : self._position + size]
        self._position += size
        return taken

    def int16(self) -> int:
        word = self.take(2)
        number = (word[0] << 8) | word[1]
        return number - 0x1_0000 if number > 0x7FFF else number

    def int32(self) -> int:
        word = self.take(4)
        high = (word[0] << 8) | word[1]
        return ((high - 0x1_0000 if high > 0x7FFF else high) << 16) | (word[2] << 8) | word[3]

    def text(self) -> bytes:
        """A zero-terminated text."""
        end = self._body.find(0, self._position)
        if end < 0:
            raise self.fail("a text does not end")
        taken = self._body[self._position : end]
        self._position = end + 1
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._body) - self._position)

    @property
    def left(self) -> int:
        return len(self._body) - self._position

    def finish(self) -> None:
        left = len(self._body) - self._position
        if left:
            raise self.fail(f"{left} bytes too long")


def decode(text: bytes) -> str:
    """Text of unknown encoding; `encode` gives the same bytes back."""
    return text.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Bytes of a text that `decode` made."""
    return text.encode("utf-8", "surrogateescape")


def readable(text: bytes) -> str:
    """For people and logs only."""
    return text.decode("utf-8", "replace")


# --- first packets ------------------------------------------------------------------------------------------------


def build_startup(user: str, database: str, parameters: Iterable[tuple[str, str]] = (), minor: int = 0) -> bytes:
    """StartupMessage of protocol 3.`minor`. No database: a connection for physical replication."""
    pairs = [("user", user), *([("database", database)] if database else []), *parameters]
    body = b"".join(encode(name) + b"\0" + encode(value) + b"\0" for name, value in pairs)
    return build_untagged(PROTOCOL_3_0 | minor, body + b"\0")


def parse_startup_parameters(body: bytes) -> dict[str, str]:
    """Names and values of a StartupMessage, from behind its version."""
    texts = decode(body).split("\0")
    # Every text ends with a zero byte, and so does the list; an empty name would be its end.
    if len(texts) % 2 or texts[-2:] != ["", ""]:
        raise ProtocolViolation("client", "StartupMessage: a text does not end")
    parameters = dict(zip(texts[:-2:2], texts[1:-2:2], strict=True))
    if "" in parameters:
        raise ProtocolViolation("client", "StartupMessage: longer than it says")
    return parameters


def build_cancel_request(process_id: int, secret: bytes) -> bytes:
    """The first packet of a connection that asks to cancel."""
    return build_untagged(CANCEL_REQUEST_CODE, struct.pack(">I", process_id & 0xFFFF_FFFF) + secret)


def parse_cancel_request(body: bytes) -> tuple[int, bytes]:
    """Process id and secret, from behind the request's code."""
    reader = Reader("client", "CancelRequest", body)
    process_id = reader.int32() & 0xFFFF_FFFF
    secret = reader.rest()
    if not 4 <= len(secret) <= CANCEL_KEY_BYTES_MAX:
        raise reader.fail(f"a key of {len(secret)} bytes")
    return process_id, secret


def build_ssl_request() -> bytes:
    """SSLRequest."""
    return build_untagged(SSL_REQUEST_CODE)


def build_gssenc_request() -> bytes:
    """GSSENCRequest."""
    return build_untagged(GSSENC_REQUEST_CODE)


# --- login --------------------------------------------------------------------------------------------------------


def build_authentication(code: int, data: bytes = b"") -> bytes:
    """Any Authentication message; `code` is its kind."""
    return b"R" + (len(data) + 8).to_bytes(4, "big") + code.to_bytes(4, "big") + data


def parse_authentication(message: bytes) -> tuple[int, bytes]:
    """The kind of authentication asked for, and its data."""
    reader = Reader("server", "Authentication", message[5:])
    return reader.int32(), reader.rest()


def build_password(password: bytes) -> bytes:
    """PasswordMessage."""
    return build(b"p", password + b"\0")


def parse_password(message: bytes) -> bytes:
    """PasswordMessage: one text, and nothing behind it."""
    reader = Reader("client", "PasswordMessage", message[5:])
    password = reader.text()
    reader.finish()
    return password


def build_sasl_initial(mechanism: str, data: bytes) -> bytes:
    """SASLInitialResponse."""
    return build(b"p", mechanism.encode() + b"\0" + struct.pack(">i", len(data)) + data)


def parse_sasl_initial(message: bytes) -> tuple[str, bytes]:
    """Mechanism and data."""
    reader = Reader("client", "SASLInitialResponse", message[5:])
    mechanism = readable(reader.text())
    size = reader.int32()
    data = b"" if size == -1 else reader.take(size)
    reader.finish()
    return mechanism, data


def build_sasl_response(data: bytes) -> bytes:
    """SASLResponse."""
    return build(b"p", data)


def build_parameter_status(name: str, value: str) -> bytes:
    """ParameterStatus."""
    return build(b"S", encode(name) + b"\0" + encode(value) + b"\0")


def parse_parameter_status(message: bytes) -> tuple[str, str]:
    """Name and value."""
    reader = Reader("server", "ParameterStatus", message[5:])
    name, value = decode(reader.text()), decode(reader.text())
    reader.finish()
    return name, value


def build_backend_key(process_id: int, secret: bytes) -> bytes:
    """BackendKeyData."""
    return build(b"K", (process_id & 0xFFFF_FFFF).to_bytes(4, "big") + secret)


def parse_backend_key(message: bytes) -> tuple[int, bytes]:
    """Process id and cancel key."""
    reader = Reader("server", "BackendKeyData", message[5:])
    process_id = reader.int32() & 0xFFFF_FFFF
    secret = reader.rest()
    if not 4 <= len(secret) <= CANCEL_KEY_BYTES_MAX:
        raise reader.fail(f"a key of {len(secret)} bytes")
    return process_id, secret


def build_negotiate_protocol_version(newest: int, unknown: Sequence[str]) -> bytes:
    """`newest` is a whole version number, as PostgreSQL sends it."""
    names = b"".join(encode(name) + b"\0" for name in unknown)
    return build(b"v", struct.pack(">II", newest, len(unknown)) + names)


def parse_negotiate_protocol_version(message: bytes) -> tuple[int, list[str]]:
    """The newest minor version the server speaks, and the options it does not know.

    PostgreSQL 17 and older send the minor version only, later ones the whole version number.
    """
    reader = Reader("server", "NegotiateProtocolVersion", message[5:])
    version, count = reader.int32(), reader.int32()
    unknown = [decode(reader.text()) for _ in range(count)]
    reader.finish()
    return version & 0xFFFF, unknown


def build_ready(status: bytes = b"I") -> bytes:
    """ReadyForQuery; `status` is I, T or E."""
    return build(b"Z", status)


# --- session ------------------------------------------------------------------------------------------------------


def build_query(text: bytes) -> bytes:
    """Query."""
    return build(b"Q", text + b"\0")


def build_parse(name: bytes, text: bytes, types: Sequence[int] = ()) -> bytes:
    """Parse, with the types of the first parameters."""
    oids = b"".join(struct.pack(">I", oid) for oid in types)
    return build(b"P", name + b"\0" + text + b"\0" + struct.pack(">h", len(types)) + oids)


def build_bind(portal: bytes, name: bytes, values: Sequence[bytes | None] = ()) -> bytes:
    """All parameters and results in text format."""
    body = [portal, b"\0", name, b"\0", struct.pack(">hh", 0, len(values))]
    for value in values:
        body.append(struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value)
    body.append(struct.pack(">h", 0))
    return build(b"B", b"".join(body))


def build_describe(kind: bytes, name: bytes) -> bytes:
    """`kind`: S for a statement, P for a portal."""
    return build(b"D", kind + name + b"\0")


def build_close(kind: bytes, name: bytes) -> bytes:
    """`kind`: S for a statement, P for a portal."""
    return build(b"C", kind + name + b"\0")


def build_execute(portal: bytes, rows_max: int = 0) -> bytes:
    """Execute; 0 rows: all."""
    return build(b"E", portal + b"\0" + struct.pack(">i", rows_max))


def build_sync() -> bytes:
    """Sync."""
    return build(b"S")


def build_flush() -> bytes:
    """Flush."""
    return build(b"H")


def build_terminate() -> bytes:
    """Terminate."""
    return build(b"X")


def parse_data_row(message: bytes) -> list[bytes | None]:
    """Values in their order; None is NULL."""
    reader = Reader("server", "DataRow", message[5:])
    row: list[bytes | None] = []
    for _ in range(reader.int16()):
        size = reader.int32()
        row.append(None if size == -1 else reader.take(size))
    reader.finish()
    return row


_SQLSTATE: Final = re.compile(r"[0-9A-Z]{5}")


@dataclass(frozen=True, slots=True)
class ErrorFields:
    """ErrorResponse or NoticeResponse. Fields by their letter, as bytes of the session's encoding."""

    fields: Mapping[str, bytes]

    @property
    def severity(self) -> str:
        """Not translated, if the server tells it so (9.6 and later)."""
        return readable(self.fields.get("V", self.fields.get("S", b"ERROR")))

    @property
    def sqlstate(self) -> str:
        """XX000 where the server told none, or something that is none."""
        said = readable(self.fields.get("C", b""))
        return said if _SQLSTATE.fullmatch(said) else "XX000"

    @property
    def message(self) -> str:
        return readable(self.fields.get("M", b"no message"))


def build_error(
    *, severity: str, sqlstate: str, message: str, detail: str = "", hint: str = "", tag: bytes = b"E"
) -> bytes:
    """ErrorResponse, or NoticeResponse with tag N. Empty fields are left out."""
    fields = [("S", severity), ("V", severity), ("C", sqlstate), ("M", message), ("D", detail), ("H", hint)]
    body = b"".join(letter.encode() + encode(value).replace(b"\0", b"") + b"\0" for letter, value in fields if value)
    return build(tag, body + b"\0")


def parse_error(message: bytes) -> ErrorFields:
    """Fields of an ErrorResponse or NoticeResponse."""
    reader = Reader("server", "ErrorResponse", message[5:])
    fields: dict[str, bytes] = {}
    while letter := reader.take(1).strip(b"\0"):
        fields[letter.decode("latin-1")] = reader.text()
    reader.finish()
    return ErrorFields(fields)
