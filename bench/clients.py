"""PostgreSQL clients with as little of a client as possible, so that the load costs less than what it measures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import selectors
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from proxy.embedded import ServerFailed

_PROTOCOL_3_0: Final = 196_608
_HEADER: Final = struct.Struct("!ci")
_TERMINATE: Final = b"X\0\0\0\4"
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


class Login:
    """One login as a state machine: bytes of the server in, bytes for it out."""

    def __init__(self, user: ScramUser, database: str) -> None:
        self._user = user
        self._database = database
        self._buffer = b""
        self._first_bare = ""
        self.is_done = False

    def begin(self) -> bytes:
        return startup(self._user.name, self._database)

    def receive(self, data: bytes) -> bytes:
        """What to send next. Raises ServerFailed if the server refuses."""
        buffer = self._buffer + data
        out = b""
        at = 0
        while len(buffer) - at >= 5:
            tag, size = _HEADER.unpack_from(buffer, at)
            if len(buffer) - at <= size:
                break
            body = buffer[at + 5 : at + 1 + size]
            at += 1 + size
            if tag == b"R":
                out += self._answer(body)
            elif tag == b"Z":
                self.is_done = True
            elif tag == b"E":
                raise ServerFailed(f"refused: {body.replace(bytes(1), b' ').decode(errors='replace')}")
        self._buffer = buffer[at:]
        return out

    def _answer(self, body: bytes) -> bytes:
        kind = int.from_bytes(body[:4], "big")
        if kind == 10:
            # The server's nonce makes the login unique; ours may be any text.
            self._first_bare = "n=,r=bench"
            data = b"n,," + self._first_bare.encode()
            payload = b"SCRAM-SHA-256\0" + struct.pack("!i", len(data)) + data
        elif kind == 11:
            server_first = body[4:].decode()
            without_proof = f"c=biws,{server_first.partition(',')[0]}"
            auth_message = f"{self._first_bare},{server_first},{without_proof}".encode()
            signature = hmac.digest(self._user.stored_key, auth_message, "sha256")
            proof = int.from_bytes(signature, "big") ^ int.from_bytes(self._user.client_key, "big")
            payload = f"{without_proof},p={base64.b64encode(proof.to_bytes(32, 'big')).decode()}".encode()
        else:
            return b""
        return b"p" + struct.pack("!i", len(payload) + 4) + payload


def logins(port: int, user: ScramUser, database: str, at_once: int, seconds: float) -> int:
    """Log in and leave, `at_once` clients at any time; returns how many logins ended well. Raises ServerFailed."""
    done = 0
    with selectors.DefaultSelector() as selector:

        def open_one() -> None:
            sock = socket.create_connection(("127.0.0.1", port))
            login = Login(user, database)
            sock.sendall(login.begin())
            selector.register(sock, selectors.EVENT_READ, login)

        deadline = time.monotonic() + seconds
        for _ in range(at_once):
            open_one()
        while selector.get_map():
            for key, _ in selector.select(10.0):
                sock, login = key.fileobj, key.data
                assert isinstance(sock, socket.socket)
                data = sock.recv(65536)
                if not data:
                    raise ServerFailed("the proxy ended a login")
                out = login.receive(data)
                if out:
                    sock.sendall(out)
                if login.is_done:
                    sock.sendall(_TERMINATE)
                    selector.unregister(sock)
                    sock.close()
                    done += 1
                    if time.monotonic() < deadline:
                        open_one()
    return done


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
