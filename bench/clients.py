"""PostgreSQL clients with as little of a client as possible, so that the load costs less than what it measures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from proxy.embedded import ServerFailed

_PROTOCOL_3_0: Final = 196_608
_HEADER: Final = struct.Struct("!ci")
_ITERATIONS: Final = 4_096


@dataclass(frozen=True, slots=True)
class ScramUser:
    """An account whose keys are derived once: a login then costs the client two hashes and not four thousand."""

    name: str
    salt: bytes
    client_key: bytes
    stored_key: bytes
    server_key: bytes

    @classmethod
    def make(cls, name: str, password: str) -> ScramUser:
        salt = os.urandom(16)
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        return cls(
            name=name,
            salt=salt,
            client_key=client_key,
            stored_key=hashlib.sha256(client_key).digest(),
            server_key=hmac.digest(salted, b"Server Key", "sha256"),
        )

    @property
    def verifier(self) -> str:
        """As in pg_authid, users.txt and userlist.txt."""
        salt, stored, server = (base64.b64encode(one).decode() for one in (self.salt, self.stored_key, self.server_key))
        return f"SCRAM-SHA-256${_ITERATIONS}:{salt}${stored}:{server}"


def startup(user: str, database: str) -> bytes:
    """StartupMessage of protocol 3.0."""
    body = struct.pack("!i", _PROTOCOL_3_0) + f"user\0{user}\0database\0{database}\0\0".encode()
    return struct.pack("!i", len(body) + 4) + body


class Client:
    """Log in without a password, ask, stay."""

    def __init__(self, port: int, user: str, database: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=30.0)
        self._buffer = b""
        self._sock.sendall(startup(user, database))
        self._until_ready()

    def ask(self, sql: str = "select 1") -> None:
        body = sql.encode() + b"\0"
        self._sock.sendall(b"Q" + struct.pack("!i", len(body) + 4) + body)
        self._until_ready()

    def close(self) -> None:
        self._sock.close()

    def _until_ready(self) -> None:
        buffer = b""
        while True:
            at = 0
            while len(buffer) - at >= 5:
                tag, size = _HEADER.unpack_from(buffer, at)
                if len(buffer) - at <= size:
                    break
                if tag == b"E":
                    text = buffer[at + 5 : at + 1 + size].replace(bytes(1), b" ")
                    raise ServerFailed(f"refused: {text.decode(errors='replace')}")
                at += 1 + size
                if tag == b"Z":
                    return
            data = self._sock.recv(65536)
            if not data:
                raise ServerFailed("the proxy closed the connection")
            buffer = buffer[at:] + data
