"""Packets out of bytes, for logins and for the proxy's own exchanges. Sessions do not come through here: their packets
are not assembled, the tracker reads the headers in passing.
"""

from __future__ import annotations

from collections.abc import Iterator

from protocols.errors import Peer, ProtocolViolation
from protocols.mysql import constants as c


class PacketReader:
    """Whole payloads, continued packets joined, with their sequence ids checked. Any cut gives the same payloads.

    `payload_max` bounds what is kept in memory; a longer payload is the peer's violation.
    """

    def __init__(self, peer: Peer, *, sequence: int, payload_max: int) -> None:
        self._peer: Peer = peer
        self._max = payload_max
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self.sequence = sequence
        """Sequence id the next packet must have."""
        self.takes_any = False
        """The next packet may have any: how many packets a large question took, the connection's compression decides."""

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def payloads(self) -> Iterator[bytes]:
        """Every payload that is complete. Stop iterating early and the rest stays unread."""
        while (payload := self.next()) is not None:
            yield payload

    def next(self) -> bytes | None:
        while len(self._buffer) >= c.HEADER_BYTES:
            size = int.from_bytes(self._buffer[:3], "little")
            if self._parts_bytes + size > self._max:
                raise ProtocolViolation(self._peer, f"a packet of more than {self._max} bytes")
            if self.takes_any:
                self.sequence = self._buffer[3]
            if self._buffer[3] != self.sequence:
                raise ProtocolViolation(self._peer, f"packet out of order: {self._buffer[3]}, not {self.sequence}")
            if len(self._buffer) < c.HEADER_BYTES + size:
                return None
            self.takes_any = False
            self._parts.append(bytes(self._buffer[c.HEADER_BYTES : c.HEADER_BYTES + size]))
            self._parts_bytes += size
            del self._buffer[: c.HEADER_BYTES + size]
            self.sequence = (self.sequence + 1) & 0xFF
            if size < c.PAYLOAD_BYTES_MAX:
                payload = b"".join(self._parts)
                self._parts.clear()
                self._parts_bytes = 0
                return payload
        return None

    def take_rest(self) -> bytes:
        """Bytes that were fed and not read, each only once."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    @property
    def has_rest(self) -> bool:
        return bool(self._buffer or self._parts)
