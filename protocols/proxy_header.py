"""The PROXY protocol, versions 1 and 2, as a load balancer sends it ahead of a connection: who its client really is.

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt. It belongs to no database protocol and is read before either. Who
may send one is the caller's decision; here it must come, whole and well-formed. TLVs are skipped: nothing in them is
used.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from protocols.errors import ProtocolViolation

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""Version 2."""
LINE_BYTES_MAX: Final = 107
"""Version 1, with its end (section 2.1)."""
BODY_BYTES_MAX: Final = 4_096
"""Version 2: addresses and TLVs, among which may be a certificate's name; the field allows 64 KiB."""

_LOCAL: Final = 0
_PROXY: Final = 1
_TCP4: Final = 0x11
_TCP6: Final = 0x21


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a header said."""

    source: str
    """`address:port` of the client, IPv6 in brackets; empty: the balancer speaks for itself, or does not know."""


class ProxyHeaderReader:
    """Reads one header. Any cut of the stream gives the same."""

    def __init__(self) -> None:
        self._buffer = b""

    def receive(self, data: bytes) -> ProxyHeader | None:
        """Take bytes of the client; the header once it is complete. Raises ProtocolViolation."""
        self._buffer += data
        if self._buffer[:12] == SIGNATURE[: len(self._buffer)]:
            return self._version_2()
        return self._version_1()

    def take_unread(self) -> bytes:
        """What came behind the header."""
        rest, self._buffer = self._buffer, b""
        return rest

    def _version_1(self) -> ProxyHeader | None:
        line, end, rest = self._buffer.partition(b"\r\n")
        if b"PROXY "[: len(line)] != line[:6]:
            raise ProtocolViolation("client", "no header of the PROXY protocol, which must come first on this port")
        if len(line) + 2 > LINE_BYTES_MAX:
            raise ProtocolViolation("client", "a line of the PROXY protocol that is too long")
        if not end:
            return None
        self._buffer = rest
        words = line.decode("ascii", "replace").split(" ")
        if words[1:2] == ["UNKNOWN"]:
            return ProxyHeader("")
        if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
            raise ProtocolViolation("client", "a line of the PROXY protocol that cannot be read")
        version = 4 if words[1] == "TCP4" else 6
        _address(words[3], version)
        _port(words[5])
        return ProxyHeader(_spelled(_address(words[2], version), _port(words[4])))

    def _version_2(self) -> ProxyHeader | None:
        if len(self._buffer) < 16:
            return None
        command, family = self._buffer[12], self._buffer[13]
        size = int.from_bytes(self._buffer[14:16], "big")
        if command >> 4 != 2 or command & 0x0F not in (_LOCAL, _PROXY):
            raise ProtocolViolation("client", "a header of the PROXY protocol of an unknown version or command")
        if size > BODY_BYTES_MAX:
            raise ProtocolViolation("client", f"a header of the PROXY protocol of more than {BODY_BYTES_MAX} bytes")
        if len(self._buffer) < 16 + size:
            return None
        body, self._buffer = self._buffer[16 : 16 + size], self._buffer[16 + size :]
        if command & 0x0F == _LOCAL or family not in (_TCP4, _TCP6):
            return ProxyHeader("")
        width = 4 if family == _TCP4 else 16
        if size < 2 * width + 4:
            raise ProtocolViolation("client", "a header of the PROXY protocol that is too short for its addresses")
        return ProxyHeader(
            _spelled(ipaddress.ip_address(body[:width]), int.from_bytes(body[2 * width : 2 * width + 2], "big"))
        )


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(word: str, version: int) -> _Address:
    try:
        found = ipaddress.ip_address(word)
    except ValueError:
        found = None
    if found is None or found.version != version or "%" in word:
        raise ProtocolViolation("client", "a line of the PROXY protocol with an impossible address")
    return found


def _port(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 5 and int(word) <= 65_535):
        raise ProtocolViolation("client", "a line of the PROXY protocol with an impossible port")
    return int(word)


def _spelled(address: _Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
