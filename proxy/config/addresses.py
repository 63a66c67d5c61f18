"""Addresses as the config file has them: `host:port`, and who can reach one. Pure; no name is looked up."""

from __future__ import annotations

import ipaddress
import re


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 address stands in brackets. Raises ValueError with what is wrong."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise ValueError("expected [address]:port")
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            raise ValueError("between the brackets must be an IPv6 address") from None
        port = rest[1:]
    else:
        host, colon, port = text.rpartition(":")
        if not colon:
            raise ValueError("expected host:port, and the port is missing")
        if ":" in host:
            raise ValueError("an IPv6 address must stand in brackets: [::1]:5432")
        if not host:
            raise ValueError("expected host:port, and the host is missing; 0.0.0.0 means every address")
        if re.search(r"[\s/@]", host):
            raise ValueError("the host has a character that no host name has")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise ValueError("the port must be a number from 1 to 65535")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Only this machine can reach it. A name other than `localhost` is not looked up, and counts as not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
