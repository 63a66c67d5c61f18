"""The PROXY protocol: what a balancer says is believed, anything else is refused, any cut gives the same."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ProtocolViolation
from protocols.proxy_header import BODY_BYTES_MAX, SIGNATURE, ProxyHeader, ProxyHeaderReader


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack(">H", len(body)) + body


def tcp4(tail: bytes = b"") -> bytes:
    return v2(1, 0x11, bytes([203, 0, 113, 9, 10, 0, 0, 1]) + struct.pack(">HH", 4711, 6033) + tail)


TOLD = {
    b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 6033\r\n": "203.0.113.9:4711",
    b"PROXY TCP6 2001:db8::9 ::1 4711 6033\r\n": "[2001:db8::9]:4711",
    b"PROXY UNKNOWN\r\n": "",
    b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n": "",
    tcp4(): "203.0.113.9:4711",
    tcp4(b"\x03\0\4abcd"): "203.0.113.9:4711",
    v2(1, 0x21, ipaddress.ip_address("2001:db8::9").packed + bytes(16) + struct.pack(">HH", 7, 8)): "[2001:db8::9]:7",
    v2(0, 0x00, b""): "",
    v2(0, 0x11, bytes(12)): "",
    v2(1, 0x31, bytes(216)): "",
}


@pytest.mark.parametrize("header", TOLD)
def test_a_header_is_read_in_any_cut_and_what_follows_is_kept(header: bytes) -> None:
    """field-notes: Connection attributes, SSLRequest half-packet, PROXY protocol"""
    for cut in range(len(header)):
        reader = ProxyHeaderReader()
        found = [one for one in (reader.receive(header[:cut]), reader.receive(header[cut:] + b"rest")) if one]
        assert found[0] == ProxyHeader(TOLD[header])
        assert reader.take_unread().endswith(b"rest")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n", b"\x00\x00\x00\x08", b"PROXY TCP4 a b 1 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 70000 2\r\n", b"PROXY " + b"x" * 200,
        b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", b"PROXY SCTP 1.2.3.4 1.2.3.4 1 2\r\n", v2(2, 0x11, bytes(12)),
        v2(1, 0x11, bytes(11)), v2(1, 0x11, bytes(BODY_BYTES_MAX + 1)), SIGNATURE + b"\x11\x11\0\0", b"\r\n\r\n\0\r\nQUIX\n",
    ],
)  # fmt: skip
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="client"):
        ProxyHeaderReader().receive(data)


@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]), st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_violation_or_too_few(head: bytes, data: bytes) -> None:
    try:
        whole = ProxyHeaderReader().receive(head + data)
    except ProtocolViolation:
        return
    reader = ProxyHeaderReader()
    for byte in head + data:
        found = reader.receive(bytes([byte]))
        if found is not None:
            assert found == whole
            return
    assert whole is None
