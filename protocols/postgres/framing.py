"""Cuts a stream into whole messages, for logins and for the proxy's own exchanges. Sessions go through the tracker.

Bounded: a message over the given size is a violation as soon as its header is there, so what is kept never exceeds one
message and one read. Compiled (framing.pxd): each login cuts its messages here.
"""

from __future__ import annotations

from protocols.errors import Peer, ProtocolViolation


class Framer:
    """Whole messages of `peer`, header included."""

    def __init__(self, peer: Peer, bytes_max: int) -> None:
        self._peer: Peer = peer
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    def receive(self, data: bytes) -> None:
        self._buffer += data

    def next_message(self, bytes_max: int | None = None) -> bytes | None:
        """The next whole message; None until more bytes are there. `bytes_max` bounds this one only, instead of the
        framer's own bound. Raises ProtocolViolation."""
        if len(self._buffer) < 5:
            return None
        size = _word(self._buffer, 1)
        if size < 4 or size > (self._bytes_max if bytes_max is None else bytes_max):
            raise ProtocolViolation(
                self._peer, f"message of type 0x{self._buffer[0]:02x} with invalid length {size} in a login or exchange"
            )
        if len(self._buffer) <= size:
            return None
        return self._take(0, size + 1)

    def next_packet(self, bytes_max: int) -> bytes | None:
        """The next packet without a tag, as a connection begins with; its body, without the length word."""
        if len(self._buffer) < 4:
            return None
        size = _word(self._buffer, 0)
        if size < 8 or size - 4 > bytes_max:
            raise ProtocolViolation(self._peer, f"first packet with invalid length {size}")
        if len(self._buffer) < size:
            return None
        return self._take(4, size)

    def _take(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`; what came before is gone as well."""
        if len(self._buffer) == end:
            # All there is, as nearly always.
            return self.take_unread()[start:]
        taken = bytes(self._buffer[start:end])
        del self._buffer[:end]
        return taken

    @property
    def is_empty(self) -> bool:
        return not self._buffer

    def take_unread(self) -> bytes:
        """What came after the last message that was taken."""
        unread = bytes(self._buffer)
        self._buffer.clear()
        return unread


def _word(buffer: bytearray, at: int) -> int:
    """Four bytes, in the network's order."""
    high = (buffer[at] << 8) | buffer[at + 1]
    return (high << 16) | (buffer[at + 2] << 8) | buffer[at + 3]
