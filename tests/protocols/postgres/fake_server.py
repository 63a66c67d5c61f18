"""A PostgreSQL server's conversation without a database: what it answers, skips and ignores, as postgres.c does.

Texts mean: `fail…` fails, `begin`, `commit`, `rollback`; `copy` asks for data, which fail if they hold `bad`; `set…` and
`deallocate all` do so; anything else returns one row with the text itself.
"""

from __future__ import annotations

from protocols.postgres.messages import build
from tests.protocols.postgres.relay import (
    BOUND,
    CLOSED,
    COPY_IN,
    NO_DATA,
    PARAMETER_DESCRIPTION,
    PARSED,
    ROW_DESCRIPTION,
    done,
    failed,
    ready,
)


class FakeServer:
    """One backend. `receive` any cut of what a client sends; returns the answers."""

    def __init__(self) -> None:
        self.statements: dict[bytes, bytes] = {}
        self.portals: dict[bytes, bytes] = {}
        self._buffer = b""
        self._tx = "I"
        self._skips = False
        self._copies = False
        self._is_extended = False

    def receive(self, data: bytes) -> bytes:
        self._buffer += data
        out = b""
        while len(self._buffer) >= 5:
            size = int.from_bytes(self._buffer[1:5], "big") + 1
            if len(self._buffer) < size:
                break
            message, self._buffer = self._buffer[:size], self._buffer[size:]
            out += self._take(chr(message[0]), message[5:])
        return out

    def _take(self, tag: str, body: bytes) -> bytes:
        if self._copies:
            return self._take_copy(tag, body)
        if tag == "S":
            self._skips = False
            return self._ready()
        if tag in "dcfH" or self._skips:
            return b""
        self._is_extended = tag in "PBDEC"
        try:
            return {"Q": self._query, "P": self._parse, "B": self._bind, "D": self._describe, "E": self._execute,
                    "C": self._close, "F": self._call}[tag](body)  # fmt: skip
        except _Failed as error:
            return self._fail(error.sent)

    def _take_copy(self, tag: str, body: bytes) -> bytes:
        if tag in "SH":
            return b""
        assert tag in "dcf", "anything else loses the connection"
        if tag == "d" and b"bad" not in body:
            return b""
        self._copies = False
        if tag == "c":
            return done("COPY 1") + (b"" if self._is_extended else self._ready())
        return self._fail(b"")

    def _fail(self, sent: bytes) -> bytes:
        self._tx = "I" if self._tx == "I" else "E"
        self.portals.clear()
        if self._is_extended:
            self._skips = True
            return sent + failed()
        return sent + failed() + self._ready()

    def _ready(self) -> bytes:
        if self._tx == "I":
            self.portals.clear()
        return ready(self._tx)

    def _run(self, text: bytes) -> bytes:
        """Of a Query or an Execute; without ReadyForQuery."""
        if self._tx == "E" and text not in (b"rollback", b"commit"):
            raise _Failed
        if text.startswith(b"fail"):
            raise _Failed
        if text == b"begin":
            self._tx = "T"
            return done("BEGIN")
        if text in (b"commit", b"rollback"):
            tag = "ROLLBACK" if self._tx == "E" else text.decode().upper()
            self._tx = "I"
            return done(tag)
        if text == b"copy":
            self._copies = True
            return COPY_IN
        if text == b"deallocate all":
            unnamed = self.statements.get(b"")
            self.statements = {} if unnamed is None else {b"": unnamed}
            return done("DEALLOCATE ALL")
        if text.startswith(b"set"):
            return done("SET")
        return build(b"D", b"\0\1" + len(text).to_bytes(4, "big") + text) + done()

    def _query(self, body: bytes) -> bytes:
        self.statements.pop(b"", None)
        sent = b""
        for text in body[:-1].split(b";"):
            try:
                sent += ROW_DESCRIPTION + self._run(text) if text.startswith(b"select") else self._run(text)
            except _Failed as error:
                raise _Failed(sent) from error
        return sent if self._copies else sent + self._ready()

    def _parse(self, body: bytes) -> bytes:
        name, text, _ = body.split(b"\0", 2)
        if not name:
            self.statements.pop(b"", None)
        if name in self.statements or text.startswith(b"fail parse") or self._tx == "E":
            raise _Failed
        self.statements[name] = text
        return PARSED

    def _bind(self, body: bytes) -> bytes:
        portal, name, _ = body.split(b"\0", 2)
        if name not in self.statements or self._tx == "E":
            raise _Failed
        self.portals[portal] = self.statements[name]
        return BOUND

    def _describe(self, body: bytes) -> bytes:
        kind, name = body[:1], body[1:-1]
        held = self.statements if kind == b"S" else self.portals
        if name not in held or self._tx == "E":
            raise _Failed
        answer = ROW_DESCRIPTION if held[name].startswith(b"select") else NO_DATA
        return PARAMETER_DESCRIPTION + answer if kind == b"S" else answer

    def _execute(self, body: bytes) -> bytes:
        portal = body.split(b"\0", 1)[0]
        if portal not in self.portals:
            raise _Failed
        return self._run(self.portals[portal])

    def _close(self, body: bytes) -> bytes:
        (self.statements if body[:1] == b"S" else self.portals).pop(body[1:-1], None)
        return CLOSED

    def _call(self, body: bytes) -> bytes:
        if self._tx == "E":
            raise _Failed
        return build(b"V", b"\xff\xff\xff\xff") + self._ready()


class _Failed(Exception):
    def __init__(self, sent: bytes = b"") -> None:
        super().__init__()
        self.sent = sent
