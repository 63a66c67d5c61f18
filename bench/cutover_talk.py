"""What a session of `bench.cutover` says, in either protocol: a login, some state, a transaction, questions about the state.

The load asks for bytes and gives bytes; it knows no protocol. All that is sent often is built once.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pymysql
from pymysql.constants import COMMAND

_PROTOCOL_3_0: Final = 196_608


@dataclass(kw_only=True)
class Setup:
    """What the bench tells its load."""

    protocol: str
    port: int
    user: str
    password: str = field(default="", repr=False)
    """Empty: nobody is asked for one."""
    database: str
    sessions: int
    busy: int
    """How many of them work."""
    pause_ms: float
    """Mean pause of a busy session between two transactions; 0: none."""
    with_state: bool
    """Settings and prepared statements; else plain queries only, for a pooler in transaction mode that knows neither."""


@dataclass(frozen=True, slots=True)
class Answer:
    """All that came on one request."""

    error: str = ""
    rows: tuple[bytes, ...] = ()
    """First columns."""


_DONE: Final = Answer()


class Talk(Protocol):
    """One protocol."""

    begin: bytes
    commit: bytes

    def open(self, number: int) -> socket.socket:
        """A session that is logged in and has its state. Blocks. Raises OSError."""

    def work(self, number: int, row: int) -> bytes:
        """Change a row."""

    def questions(self, number: int) -> list[bytes]:
        """Requests about the session's state."""

    def expected(self, number: int) -> bytes:
        """First columns of all their answers in a row, if the state is what it was."""

    def read(self, data: bytes) -> Answer | None:
        """The answer to one request; None while it is not complete."""


def talk_of(setup: Setup) -> Talk:
    """The one of the setup's protocol."""
    return PostgresTalk(setup) if setup.protocol == "postgresql" else MysqlTalk(setup)


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


def message(tag: bytes, body: bytes) -> bytes:
    """One protocol message."""
    return tag + struct.pack("!i", len(body) + 4) + body


def startup(user: str, database: str) -> bytes:
    """The first message of a session."""
    body = struct.pack("!i", _PROTOCOL_3_0) + f"user\0{user}\0database\0{database}\0\0".encode()
    return struct.pack("!i", len(body) + 4) + body


def query(text: str) -> bytes:
    """A Query."""
    return message(b"Q", text.encode() + b"\0")


def parse(name: str, text: str) -> bytes:
    """A Parse, without types."""
    return message(b"P", f"{name}\0{text}\0".encode() + struct.pack("!h", 0))


def execute(name: str, *values: str) -> bytes:
    """Bind, Execute and Sync of a prepared statement with text parameters."""
    body = b"\0" + name.encode() + b"\0" + struct.pack("!hh", 0, len(values))
    for value in values:
        body += struct.pack("!i", len(value)) + value.encode()
    return message(b"B", body + struct.pack("!h", 0)) + message(b"E", b"\0" + struct.pack("!i", 0)) + _SYNC


_SYNC: Final = message(b"S", b"")


class PostgresTalk:
    """Settings (a custom one among them), two prepared statements of the protocol and one of SQL."""

    begin = query("begin")
    commit = query("commit")

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def open(self, number: int) -> socket.socket:
        """See Talk."""
        setup = self._setup
        sock = socket.create_connection(("127.0.0.1", setup.port), timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in [startup(setup.user, setup.database), *(self._state(number) if setup.with_state else [])]:
            sock.sendall(request)
            data = b""
            while (answer := self.read(data)) is None:
                chunk = sock.recv(65_536)
                if not chunk:
                    raise OSError(f"refused: {data!r}")
                data += chunk
            if answer.error:
                raise OSError(f"refused: {answer.error}")
        return sock

    @staticmethod
    def _state(number: int) -> list[bytes]:
        return [
            query(f"select set_config('app.number', '{number}', false)"),
            query(f"set work_mem = '{4096 + number}kB'"),
            query("set search_path = public"),
            query("prepare by_name (int) as select 'named' || $1"),
            parse("work", "update counter set value = value + 1 where id = $1::int")
            + parse("answer", f"select 'answer {number} ' || $1::int")
            + _SYNC,
        ]

    def work(self, number: int, row: int) -> bytes:  # noqa: ARG002  all call it by the same name
        """See Talk."""
        if self._setup.with_state:
            return execute("work", str(row))
        return query(f"update counter set value = value + 1 where id = {row}")

    def questions(self, number: int) -> list[bytes]:  # noqa: ARG002  the same
        """See Talk."""
        if not self._setup.with_state:
            return [query("select 'here'")]
        return [
            query("select current_setting('app.number') || current_setting('work_mem')"),
            query("execute by_name(1)"),
            execute("work", "-1"),
            execute("answer", "1"),
        ]

    def expected(self, number: int) -> bytes:
        """See Talk."""
        if not self._setup.with_state:
            return b"here"
        memory = 4096 + number
        shown = f"{memory // 1024}MB" if memory % 1024 == 0 else f"{memory}kB"
        return f"{number}{shown}named1answer {number} 1".encode()

    def read(self, data: bytes) -> Answer | None:
        """See Talk."""
        rows: list[bytes] = []
        error, position, end = "", 0, len(data)
        while end - position >= 5:
            following = position + 1 + int.from_bytes(data[position + 1 : position + 5], "big")
            if following > end:
                return None
            tag = data[position]
            if tag == 0x5A:  # Z
                return Answer(error, tuple(rows)) if error or rows else _DONE
            if tag == 0x44:  # D
                size = int.from_bytes(data[position + 7 : position + 11], "big")
                rows.append(data[position + 11 : position + 11 + size])
            elif tag == 0x45:  # E
                error = data[position + 5 : following].replace(b"\0", b" ").decode(errors="replace")
                if b"VFATAL" in data[position:following]:
                    # Nothing follows.
                    return Answer(error)
            position = following
        return None


# --- MySQL --------------------------------------------------------------------------------------------------------


def packet(command: int, body: bytes) -> bytes:
    """One command."""
    return struct.pack("<IB", len(body) + 1, command) + body


class MysqlTalk:
    """Session variables, a user variable, two prepared statements of the protocol and one of SQL."""

    begin = packet(COMMAND.COM_QUERY, b"begin")
    commit = packet(COMMAND.COM_QUERY, b"commit")

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._connections: list[Any] = []
        """PyMySQL closes the socket of a connection that nobody keeps."""
        self._work: dict[int, int] = {}
        self._answer: dict[int, int] = {}

    def open(self, number: int) -> socket.socket:
        """See Talk. PyMySQL logs in; the rest of the session is ours."""
        setup = self._setup
        connection: Any = pymysql.connect(
            host="127.0.0.1",
            port=setup.port,
            user=setup.user,
            password=setup.password,
            database=setup.database,
            autocommit=None,
            connect_timeout=30,
            read_timeout=30,
        )
        self._connections.append(connection)
        with connection.cursor() as cursor:
            cursor.execute(f"set @number = '{number}'")
            cursor.execute(f"set session group_concat_max_len = {2048 + number}, session time_zone = '+02:00'")
            cursor.execute("prepare by_name from 'select concat(''named'', ?)'")
        self._work[number] = self._prepare(connection, "update counter set value = value + 1 where id = ?")
        self._answer[number] = self._prepare(connection, f"select concat('answer {number} ', ?)")
        sock: socket.socket = connection._sock
        sock.settimeout(30)
        for statement in (self._work[number], self._answer[number]):
            # With its type, which is not sent again.
            sock.sendall(self._execute(statement, -1, with_type=True))
            data = b""
            while (answer := self.read(data)) is None:
                data += sock.recv(65_536)
            if answer.error:
                raise OSError(answer.error)
        return sock

    @staticmethod
    def _prepare(connection: Any, text: str) -> int:
        """The statement's id."""
        connection._execute_command(COMMAND.COM_STMT_PREPARE, text)
        told = connection._read_packet().get_all_data()
        columns, parameters = struct.unpack_from("<HH", told, 5)
        for _ in range((columns and columns + 1) + (parameters and parameters + 1)):
            connection._read_packet()
        return int.from_bytes(told[1:5], "little")

    @staticmethod
    def _execute(statement: int, value: int, *, with_type: bool = False) -> bytes:
        """COM_STMT_EXECUTE with one BIGINT."""
        types = b"\x01\x08\x00" if with_type else b"\x00"
        return packet(
            COMMAND.COM_STMT_EXECUTE, struct.pack("<IBIB", statement, 0, 1, 0) + types + struct.pack("<q", value)
        )

    def work(self, number: int, row: int) -> bytes:
        """See Talk."""
        return self._execute(self._work[number], row)

    def questions(self, number: int) -> list[bytes]:
        """See Talk."""
        return [
            packet(COMMAND.COM_QUERY, b"select concat(@number, @@session.group_concat_max_len, @@session.time_zone)"),
            packet(COMMAND.COM_QUERY, b"execute by_name using @number"),
            self._execute(self._work[number], -1),
            self._execute(self._answer[number], 1),
        ]

    def expected(self, number: int) -> bytes:
        """See Talk."""
        return f"{number}{2048 + number}+02:00named{number}answer {number} 1".encode()

    def read(self, data: bytes) -> Answer | None:
        """See Talk. Answers here are short: no length of theirs needs more than a byte."""
        rows: list[bytes] = []
        ends, position, end, is_first = 0, 0, len(data), True
        while end - position >= 4:
            following = position + 4 + int.from_bytes(data[position : position + 3], "little")
            if following > end:
                return None
            body = data[position + 4 : following]
            position = following
            if body[0] == 0xFF:
                return Answer(body[3:].decode(errors="replace"))
            if is_first and body[0] == 0x00:
                return _DONE
            is_first = False
            if body[0] == 0xFE and len(body) < 9:
                ends += 1
                if ends == 2:
                    return Answer(rows=tuple(rows))
            elif ends == 1:
                start = 2 if body[0] == 0 else 0  # a binary row has a header and a map of NULLs
                rows.append(body[start + 1 : start + 1 + body[start]])
        return None
