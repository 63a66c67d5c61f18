"""Payloads of the packets that are built or read outside of the hot path: lenenc values, OK, ERR, greeting, response.

Each `parse_…` raises ProtocolViolation of the peer it was given, never IndexError; each `build_…` mirrors one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocols.errors import Peer, ProtocolViolation
from protocols.mysql import constants as c

NULL: Final = -1
"""What `Reader.lenenc` returns for 0xFB."""


class Reader:
    """Reads a payload from front to back; everything that is not there is the peer's violation."""

    __slots__ = ("data", "peer", "position")

    def __init__(self, data: bytes, peer: Peer, position: int = 0) -> None:
        self.data = data
        self.peer: Peer = peer
        self.position = position

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, size: int) -> bytes:
        if size < 0 or self.left < size:
            raise ProtocolViolation(self.peer, "a packet ends in the middle of a value")
        self.position += size
        return self.data[self.position - size : self.position]

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def lenenc(self) -> int:
        """A length-encoded integer, or NULL."""
        first = self.integer(1)
        if first < 0xFB:
            return first
        if first == 0xFB:
            return NULL
        if first == 0xFF:
            raise ProtocolViolation(self.peer, "0xFF is no length")
        return self.integer({0xFC: 2, 0xFD: 3, 0xFE: 8}[first])

    def lenenc_bytes(self) -> bytes | None:
        size = self.lenenc()
        return None if size == NULL else self.take(size)

    def until_nul(self) -> bytes:
        """Bytes up to a NUL, which is taken too; at the packet's end the NUL may be absent, as some peers do it."""
        end = self.data.find(b"\0", self.position)
        if end < 0:
            return self.rest()
        value = self.data[self.position : end]
        self.position = end + 1
        return value

    def rest(self) -> bytes:
        return self.take(self.left)


def lenenc(value: int) -> bytes:
    """A length-encoded integer."""
    if value < 0xFB:
        return value.to_bytes(1, "little")
    if value < 0x1_0000:
        return b"\xfc" + value.to_bytes(2, "little")
    if value < 0x100_0000:
        return b"\xfd" + value.to_bytes(3, "little")
    return b"\xfe" + value.to_bytes(8, "little")


def lenenc_bytes(value: bytes) -> bytes:
    """A length-encoded string."""
    return lenenc(len(value)) + value


def packet(payload: bytes, sequence: int) -> bytes:
    """`payload` with its header; longer ones are split as the protocol wants it."""
    if len(payload) < c.PAYLOAD_BYTES_MAX:
        return len(payload).to_bytes(3, "little") + (sequence & 0xFF).to_bytes(1, "little") + payload
    parts = []
    for start in range(0, len(payload) + 1, c.PAYLOAD_BYTES_MAX):
        part = payload[start : start + c.PAYLOAD_BYTES_MAX]
        parts.append(len(part).to_bytes(3, "little") + (sequence & 0xFF).to_bytes(1, "little") + part)
        sequence += 1
    return b"".join(parts)


def command(code: int, body: bytes = b"") -> bytes:
    """A command of a client, complete."""
    return packet(bytes([code]) + body, 0)


# --- OK and ERR ---------------------------------------------------------------------------------------------------


def build_ok(status: int) -> bytes:
    """Payload of an OK: nothing affected, no warnings."""
    return b"\x00\x00\x00" + status.to_bytes(2, "little") + b"\x00\x00"


def build_err(code: int, sqlstate: str, message: str) -> bytes:
    """Payload of an ERR. Messages are cut where MySQL cuts them (MYSQL_ERRMSG_SIZE, 512 bytes)."""
    state = sqlstate.encode("ascii", "replace")[:5].ljust(5, b"0")
    return b"\xff" + code.to_bytes(2, "little") + b"#" + state + message.encode("utf-8", "replace")[:511]


@dataclass(frozen=True, slots=True)
class Err:
    code: int
    sqlstate: str
    message: str


def parse_err(payload: bytes, peer: Peer) -> Err:
    """An ERR; before the login the SQLSTATE is absent."""
    reader = Reader(payload, peer, 1)
    code = reader.integer(2)
    text = reader.rest()
    sqlstate = "HY000"
    if text[:1] == b"#" and len(text) >= 6:
        sqlstate, text = text[1:6].decode("ascii", "replace"), text[6:]
    return Err(code, sqlstate, text.decode("utf-8", "replace"))


def parse_ok_status(payload: bytes, peer: Peer) -> int:
    """Status flags of an OK, or of an OK in the place of EOF."""
    reader = Reader(payload, peer, 1)
    reader.lenenc()
    reader.lenenc()
    return reader.integer(2)


# --- query attributes ---------------------------------------------------------------------------------------------

NO_ATTRIBUTES: Final = b"\x00\x01"
"""What stands before the text of a COM_QUERY with CLIENT_QUERY_ATTRIBUTES: no parameters, one set of them."""

_FIXED_BYTES: Final = {0x01: 1, 0x02: 2, 0x0D: 2, 0x03: 4, 0x09: 4, 0x04: 4, 0x08: 8, 0x05: 8, 0x06: 0}
"""Size of a value by its column type, where that is fixed; all others have their length before them."""


def text_of_query(body: bytes) -> int | None:
    """Where the text begins in `body`, what follows the command byte of a COM_QUERY with CLIENT_QUERY_ATTRIBUTES; None if
    that cannot be told: `body` ends before, or is malformed."""
    reader = Reader(body, "client")
    try:
        count = reader.lenenc()
        if reader.lenenc() != 1:
            return None
        if count > 0:
            _skip_attributes(reader, count)
    except ProtocolViolation:
        return None
    return reader.position


def _skip_attributes(reader: Reader, count: int) -> None:
    nulls = reader.take((count + 7) // 8)
    if reader.integer(1) != 1:
        raise ProtocolViolation(reader.peer, "query attributes without types")
    kinds = []
    for _ in range(count):
        kinds.append(reader.integer(1))
        reader.take(1)
        reader.lenenc_bytes()
    for index, kind in enumerate(kinds):
        if nulls[index // 8] >> index % 8 & 1:
            continue
        if (size := _FIXED_BYTES.get(kind)) is None:
            reader.lenenc_bytes()
        else:
            reader.take(size)


# --- login --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Greeting:
    server_version: str
    connection_id: int
    scramble: bytes
    capabilities: int
    character_set: int
    status: int
    auth_plugin: str


_BASIC: Final = (1 << c.EXTENDED_SHIFT) - 1


def build_greeting(greeting: Greeting) -> bytes:
    """Payload of Protocol::HandshakeV10."""
    assert len(greeting.scramble) == 20, "a scramble has 20 bytes"
    flags = (greeting.capabilities & _BASIC).to_bytes(4, "little")
    return b"".join(
        (
            b"\x0a",
            greeting.server_version.encode() + b"\0",
            (greeting.connection_id & 0xFFFF_FFFF).to_bytes(4, "little"),
            greeting.scramble[:8] + b"\0",
            flags[:2],
            (greeting.character_set & 0xFF).to_bytes(1, "little"),
            greeting.status.to_bytes(2, "little"),
            flags[2:],
            b"\x15",
            bytes(6),
            (greeting.capabilities >> c.EXTENDED_SHIFT).to_bytes(4, "little"),
            greeting.scramble[8:] + b"\0",
            greeting.auth_plugin.encode() + b"\0",
        )
    )


def parse_greeting(payload: bytes) -> Greeting:
    """Protocol::HandshakeV10. Servers without CLIENT_PLUGIN_AUTH are of before 2010 and refused by the caller."""
    reader = Reader(payload, "server")
    if reader.integer(1) != 10:
        raise ProtocolViolation("server", "the greeting is not of protocol version 10")
    version = reader.until_nul().decode("utf-8", "replace")
    connection_id = reader.integer(4)
    scramble = reader.take(8)
    reader.take(1)
    capabilities = reader.integer(2)
    character_set = reader.integer(1)
    status = reader.integer(2)
    capabilities |= reader.integer(2) << 16
    reader.take(7)
    extended = reader.integer(4)
    if not capabilities & c.CLIENT_LONG_PASSWORD:
        capabilities |= extended << c.EXTENDED_SHIFT
    scramble += reader.take(12)
    reader.take(1)
    plugin = reader.until_nul().decode("ascii", "replace") if capabilities & c.CLIENT_PLUGIN_AUTH else ""
    return Greeting(version, connection_id, scramble, capabilities, character_set, status, plugin)


@dataclass(frozen=True, slots=True)
class Response:
    """A client's answer to the greeting, or its COM_CHANGE_USER."""

    capabilities: int
    character_set: int
    user: str
    auth: bytes
    database: str
    auth_plugin: str
    attributes: tuple[tuple[str, str], ...] = ()
    """Connection attributes, in the client's order."""
    zstd_level: int = 0
    """With CLIENT_ZSTD_COMPRESSION_ALGORITHM; 1 to 22."""


def text(value: bytes) -> str:
    """Names are kept byte by byte, whatever their charset is."""
    return value.decode("utf-8", "surrogateescape")


def raw(value: str) -> bytes:
    """The bytes of a name as `text` has it."""
    return value.encode("utf-8", "surrogateescape")


def parse_response(payload: bytes, offered: int) -> Response:
    """Protocol::HandshakeResponse41; `capabilities` of the result are those that both sides have."""
    reader = Reader(payload, "client")
    flags = reader.integer(4)
    if not flags & c.CLIENT_PROTOCOL_41:
        raise ProtocolViolation("client", "speaks the protocol of before MySQL 4.1")
    if flags & c.CLIENT_SSL & ~offered:
        raise ProtocolViolation("client", "asks for TLS, which was not offered")
    if flags & (c.CLIENT_COMPRESS | c.CLIENT_ZSTD_COMPRESSION_ALGORITHM) & ~offered:
        raise ProtocolViolation("client", "asks for compression, which was not offered")
    reader.take(4)
    character_set = reader.integer(1)
    reader.take(19)
    extended = reader.integer(4)
    if not flags & c.CLIENT_LONG_PASSWORD:
        flags |= extended << c.EXTENDED_SHIFT
    user = text(reader.until_nul())
    if flags & c.CLIENT_PLUGIN_AUTH_LENENC:
        auth = reader.lenenc_bytes() or b""
    elif flags & c.CLIENT_SECURE_CONNECTION:
        auth = reader.take(reader.integer(1))
    else:
        auth = reader.until_nul()
    database = text(reader.until_nul()) if flags & c.CLIENT_CONNECT_WITH_DB else ""
    plugin = reader.until_nul().decode("ascii", "replace") if flags & c.CLIENT_PLUGIN_AUTH else ""
    attributes = parse_attributes(reader) if flags & c.CLIENT_CONNECT_ATTRS else ()
    level = 0
    if flags & offered & c.CLIENT_ZSTD_COMPRESSION_ALGORITHM:
        level = reader.integer(1)
        if not 0 < level < 23:
            raise ProtocolViolation("client", "a level of zstd that is not 1 to 22")
    return Response(flags & offered, character_set, user, auth, database, plugin, attributes, level)


def parse_attributes(reader: Reader) -> tuple[tuple[str, str], ...]:
    """Pairs of names and values; some clients set the flag and send none."""
    if not reader.left:
        return ()
    pairs = Reader(reader.lenenc_bytes() or b"", reader.peer)
    found = []
    while pairs.left:
        key, value = pairs.lenenc_bytes(), pairs.lenenc_bytes()
        found.append((text(key or b""), text(value or b"")))
    return tuple(found)


def _build_attributes(attributes: tuple[tuple[str, str], ...]) -> bytes:
    return lenenc_bytes(b"".join(lenenc_bytes(raw(key)) + lenenc_bytes(raw(value)) for key, value in attributes))


def is_tls_request(payload: bytes) -> bool:
    """Protocol::SSLRequest: the client's first packet is the beginning of one, and asks for TLS."""
    return len(payload) == c.TLS_REQUEST_BYTES and bool(int.from_bytes(payload[:4], "little") & c.CLIENT_SSL)


def _response_head(flags: int, character_set: int) -> bytes:
    assert character_set <= c.LOGIN_COLLATION_MAX, "a login has one byte for the collation's number"
    return b"".join(
        (
            (flags & _BASIC).to_bytes(4, "little"),
            (1 << 30).to_bytes(4, "little"),
            character_set.to_bytes(1, "little"),
            bytes(19),
            (flags >> c.EXTENDED_SHIFT).to_bytes(4, "little"),
        )
    )


def build_tls_request(flags: int, character_set: int) -> bytes:
    """Protocol::SSLRequest; `flags` are those of the response that will follow within TLS."""
    return _response_head(flags, character_set)


def build_response(response: Response, attributes: tuple[tuple[str, str], ...]) -> bytes:
    """Protocol::HandshakeResponse41 with what `response.capabilities` says."""
    flags = response.capabilities
    parts = [
        _response_head(flags, response.character_set),
        raw(response.user) + b"\0",
        lenenc_bytes(response.auth)
        if flags & c.CLIENT_PLUGIN_AUTH_LENENC
        else bytes([len(response.auth)]) + response.auth,
    ]
    if flags & c.CLIENT_CONNECT_WITH_DB:
        parts.append(raw(response.database) + b"\0")
    if flags & c.CLIENT_PLUGIN_AUTH:
        parts.append(response.auth_plugin.encode() + b"\0")
    if flags & c.CLIENT_CONNECT_ATTRS:
        parts.append(_build_attributes(attributes))
    if flags & c.CLIENT_ZSTD_COMPRESSION_ALGORITHM:
        parts.append(bytes([response.zstd_level]))
    return b"".join(parts)


def parse_change_user(payload: bytes, character_set: int) -> Response:
    """COM_CHANGE_USER. Its capabilities are those of the login, which the caller knows; `character_set` is that of the
    session so far, if the packet names none."""
    reader = Reader(payload, "client", 1)
    user = text(reader.until_nul())
    auth = reader.take(reader.integer(1))
    database = text(reader.until_nul())
    if reader.left >= 2:
        character_set = reader.integer(2)
    plugin = reader.until_nul().decode("ascii", "replace") if reader.left else ""
    return Response(0, character_set, user, auth, database, plugin)


def build_change_user(response: Response, attributes: tuple[tuple[str, str], ...]) -> bytes:
    """COM_CHANGE_USER, the packet complete, with what `response.capabilities` says. Unlike the login it has two bytes for
    the collation's number."""
    flags = response.capabilities
    parts = [
        raw(response.user) + b"\0",
        bytes([len(response.auth)]) + response.auth,
        raw(response.database) + b"\0",
        response.character_set.to_bytes(2, "little"),
    ]
    if flags & c.CLIENT_PLUGIN_AUTH:
        parts.append(response.auth_plugin.encode() + b"\0")
    if flags & c.CLIENT_CONNECT_ATTRS:
        parts.append(_build_attributes(attributes))
    return command(c.COM_CHANGE_USER, b"".join(parts))


def build_auth_switch(plugin: str, scramble: bytes) -> bytes:
    """Payload of an AuthSwitchRequest. Scrambles of 20 bytes have a NUL behind them, others (client_ed25519) have not."""
    return b"\xfe" + plugin.encode() + b"\0" + scramble + (b"\0" if len(scramble) == 20 else b"")


def parse_auth_switch(payload: bytes) -> tuple[str, bytes]:
    """Plugin and scramble. A lone 0xFE asks for the method of before MySQL 4.1."""
    reader = Reader(payload, "server", 1)
    if not reader.left:
        return "mysql_old_password", b""
    plugin = reader.until_nul().decode("ascii", "replace")
    scramble = reader.rest()
    return plugin, scramble[:-1] if len(scramble) == 21 and scramble.endswith(b"\0") else scramble
