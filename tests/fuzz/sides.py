"""What the live half of the fuzzer has to know of each protocol: its server, its logins, its messages."""

from __future__ import annotations

import abc
import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar, Final, Literal

from protocols.mysql import constants as c
from protocols.mysql.messages import Response, build_response, command, lenenc, packet
from proxy.embedded import MariaDBServer, PostgresServer, Setup, Workspace
from proxy.embedded.mysql import PASSWORD as MYSQL_PASSWORD
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.corpus.postgres import SETUP, conversations
from tests.fuzz.mutation import split_mysql, split_postgres
from tests.protocols.mysql.relay import QUIT, Speech, on_statement
from tests.protocols.mysql.test_any_cut import turns

HOSTILE: Final = "hostile"
WITNESS: Final = "witness"

POOL_SIZE: Final = 10

STREAM_BYTES_MAX: Final = 20_000
"""Longest conversation that others are made from."""

PoolMode = Literal["session", "transaction"]


class Refused(Exception):
    """The server's error, to somebody who did nothing wrong."""


class Side(abc.ABC):
    """One protocol. Its server has the accounts HOSTILE and WITNESS, which nobody asks for a password."""

    name: ClassVar[str]
    goodbye: ClassVar[bytes]
    login_end: ClassVar[bytes]
    """Bytes in what ends a login well."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        """What clients say: streams of messages."""
        self.answered: list[bytes] = []
        """What a server may be made to say."""
        self.port = 0

    @staticmethod
    @abc.abstractmethod
    def split(stream: bytes) -> list[bytes]:
        """Whole messages of a stream, and what is left."""

    @abc.abstractmethod
    async def start(self, workspace: Workspace) -> Callable[[], Awaitable[None]]:
        """Start the server; returns what ends it at once."""

    def crashes(self) -> list[str]:
        """How often the server itself has failed and gone on, each with its own words: what a hostile client sends may be too
        much for a server, too, and that is nobody else's fault."""
        return []

    @abc.abstractmethod
    def setup(self, mode: PoolMode, port: int) -> Setup:
        """Of a Turnout whose engine listens on `port`."""

    @abc.abstractmethod
    async def open_between(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        """Stand for the engine until it is known who comes: returns the connection to the server, and whether it is
        the hostile account's. Raises OSError."""

    @abc.abstractmethod
    def login(self, user: str, rng: random.Random | None = None) -> bytes:
        """A client's first packet, with more or less in it."""

    @abc.abstractmethod
    async def enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The witness logs in."""

    @abc.abstractmethod
    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> list[list[bytes]]:
        """The rows of a statement that selects `number` and the backend's id. Raises Refused."""


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


_WANTS_ENCRYPTION: Final = (b"\0\0\0\x08\x04\xd2\x16\x2f", b"\0\0\0\x08\x04\xd2\x16\x30")
"""SSLRequest, GSSENCRequest."""


def _message(body: bytes) -> bytes:
    return (len(body) + 4).to_bytes(4, "big") + body


class PostgresSide(Side):
    """See Side."""

    name = "postgresql"
    goodbye = b"X\0\0\0\4"
    login_end = b"Z\0\0\0\5"
    split = staticmethod(split_postgres)

    def __init__(self) -> None:
        super().__init__()
        self.said = [one.sent for one in conversations() if len(one.sent) < STREAM_BYTES_MAX]
        self.answered = [one.sent for one in conversations()]
        self._log: Path | None = None

    async def start(self, workspace: Workspace) -> Callable[[], Awaitable[None]]:
        hba = workspace.path / "hba.conf"
        hba.write_text("host all all 127.0.0.1/32 trust\n")
        workspace.give(hba)
        server = await PostgresServer.create(
            workspace,
            fsync=False,
            settings={"hba_file": str(hba), "statement_timeout": "2s", "deadlock_timeout": "100ms"},
        )
        await server.start()
        await server.execute(
            f"{SETUP}; create role {HOSTILE} login; create role {WITNESS} login; grant all on corpus to {HOSTILE}"
        )
        self.port = server.port
        self._log = server.log
        return lambda: server.stop("immediate")

    def crashes(self) -> list[str]:
        lines = self._log.read_text(errors="replace").splitlines() if self._log is not None else []
        return [
            f"{line} {lines[number + 1] if number + 1 < len(lines) else ''}"
            for number, line in enumerate(lines)
            if "was terminated by signal" in line
        ]

    def setup(self, mode: PoolMode, port: int) -> Setup:
        return Setup(
            protocol="postgresql",
            engines={"only": f"127.0.0.1:{port}"},
            admin_user=SUPERUSER,
            admin_password=PASSWORD,
            users={},
            auth_method="trust",
            pool_mode=mode,
            service={"pool_size": POOL_SIZE},
            top={"client_login_timeout_s": 3.0},
        )

    async def open_between(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        first = await reader.read(65536)
        while first in _WANTS_ENCRYPTION:
            writer.write(b"N")
            first = await reader.read(65536)
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self.port)
        behind.write(first)
        return behind_reader, behind, b"\0" + HOSTILE.encode() + b"\0" in first

    def login(self, user: str, rng: random.Random | None = None) -> bytes:
        more = (
            rng.choice(((), ("options", "-c search_path=public"), ("application_name", "x"))) if rng is not None else ()
        )
        words = ("user", user, "database", "postgres", *more)
        return _message((196_608).to_bytes(4, "big") + b"".join(word.encode() + b"\0" for word in words) + b"\0")

    async def enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.login(WITNESS))
        await self._until_ready(reader)

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> list[list[bytes]]:
        writer.write(b"Q" + _message(f"select {number}, pg_backend_pid()\0".encode()))
        return await self._until_ready(reader)

    @staticmethod
    async def _until_ready(reader: asyncio.StreamReader) -> list[list[bytes]]:
        rows: list[list[bytes]] = []
        while True:
            header = await reader.readexactly(5)
            body = await reader.readexactly(int.from_bytes(header[1:], "big") - 4)
            if header[:1] == b"E":
                raise Refused(repr(body))
            if header[:1] == b"D":
                values, at = [], 2
                for _ in range(int.from_bytes(body[:2], "big")):
                    size = int.from_bytes(body[at : at + 4], "big")
                    values.append(body[at + 4 : at + 4 + size])
                    at += 4 + size
                rows.append(values)
            if header[:1] == b"Z":
                return rows


# --- MySQL --------------------------------------------------------------------------------------------------------


_FLAGS: Final = (
    c.CLIENT_LONG_PASSWORD
    | c.CLIENT_PROTOCOL_41
    | c.CLIENT_TRANSACTIONS
    | c.CLIENT_SECURE_CONNECTION
    | c.CLIENT_CONNECT_WITH_DB
    | c.CLIENT_PLUGIN_AUTH
)
_MORE_FLAGS: Final = (
    0,
    c.CLIENT_MULTI_STATEMENTS | c.CLIENT_MULTI_RESULTS,
    c.CLIENT_DEPRECATE_EOF | c.CLIENT_MULTI_STATEMENTS | c.CLIENT_PS_MULTI_RESULTS | c.CLIENT_MULTI_RESULTS,
    c.CLIENT_LOCAL_FILES | c.CLIENT_FOUND_ROWS | c.CLIENT_CONNECT_ATTRS,
    c.CLIENT_IGNORE_SPACE | c.CLIENT_INTERACTIVE,
)
_PLUGIN: Final = "mysql_native_password"


class MysqlSide(Side):
    """See Side. The server is MariaDB, which every machine with the tests has."""

    name = "mysql"
    goodbye = QUIT
    split = staticmethod(split_mysql)
    login_end = b"\0\0\0\2\0\0\0"
    """An OK without anything but its status."""

    def __init__(self) -> None:
        super().__init__()
        rng = random.Random(1)
        for flag in (False, True):
            known = [one for one in turns(Speech(deprecates_eof=flag)) if len(one.request) < STREAM_BYTES_MAX]
            for _ in range(60):
                talk = rng.choices(known, k=rng.randint(2, 8))
                self.said.append(b"".join(one.request for one in talk))
                self.answered.append(b"".join(one.answer for one in talk))
        self.said += [
            command(c.COM_QUERY, b"load data local infile 'x' into table t"),
            command(c.COM_CHANGE_USER, HOSTILE.encode() + b"\0\0app\0\x2d\0" + _PLUGIN.encode() + b"\0"),
            command(c.COM_QUERY, b"kill query 1") + command(c.COM_PROCESS_KILL, b"\1\0\0\0"),
            command(c.COM_QUERY, b"show full processlist") + command(c.COM_QUERY, b"select connection_id()"),
            command(c.COM_QUERY, b"select get_lock('x', 0)")
            + command(c.COM_QUERY, b"create temporary table x (i int)"),
            command(c.COM_QUERY, b"xa start 'x'") + command(c.COM_QUERY, b"xa end 'x'"),
            on_statement(c.COM_STMT_FETCH, 1, b"\1\0\0\0") + command(0x12, b"\4\0\0\0\0\0\1\0\0\0"),
        ]

    async def start(self, workspace: Workspace) -> Callable[[], Awaitable[None]]:
        server = await MariaDBServer.create(
            workspace, "server", durable=False, options=["--max-statement-time=2", "--lock-wait-timeout=2"]
        )
        await server.start()
        await server.execute(
            *(f"create user {name}@'%' identified by ''" for name in (HOSTILE, WITNESS)),
            f"grant all on app.* to {HOSTILE}@'%'",
            f"grant select on app.* to {WITNESS}@'%'",
            "create table app.t (a varchar(250), b varchar(250))",
            "insert into app.t values ('x', null), ('y', 'z')",
            "create procedure app.p() select a, b from t",
        )
        self.port = server.port
        return server.kill

    def setup(self, mode: PoolMode, port: int) -> Setup:
        return Setup(
            protocol="mysql",
            engines={"only": f"127.0.0.1:{port}"},
            admin_user="turnout",
            admin_password=MYSQL_PASSWORD,
            users={},
            auth_method="trust",
            pool_mode=mode,
            service={"pool_size": POOL_SIZE},
            top={"client_login_timeout_s": 3.0},
        )

    async def open_between(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(await behind_reader.read(65536))
            first = await reader.read(65536)
        except OSError:
            behind.close()
            raise
        behind.write(first)
        return behind_reader, behind, HOSTILE.encode() + b"\0" in first

    def login(self, user: str, rng: random.Random | None = None) -> bytes:
        flags = _FLAGS | (rng.choice(_MORE_FLAGS) if rng is not None else 0)
        one = Response(flags, 45, user, b"", "app", _PLUGIN)
        return packet(build_response(one, (("program_name", "x"),)), 1)

    async def enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._packet(reader)
        writer.write(self.login(WITNESS))
        await self._packet(reader)

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> list[list[bytes]]:
        writer.write(command(c.COM_QUERY, f"select {number}, connection_id()".encode()))
        if await self._packet(reader) != lenenc(2):
            raise Refused("not two columns")
        rows: list[list[bytes]] = []
        ends = 0
        while ends < 2:
            body = await self._packet(reader)
            if body[0] == c.EOF and len(body) < 9:
                ends += 1
            elif ends:
                values, at = [], 0
                while at < len(body):
                    values.append(body[at + 1 : at + 1 + body[at]])
                    at += 1 + body[at]
                rows.append(values)
        return rows

    @staticmethod
    async def _packet(reader: asyncio.StreamReader) -> bytes:
        header = await reader.readexactly(4)
        body = await reader.readexactly(int.from_bytes(header[:3], "little"))
        if body[:1] == b"\xff":
            raise Refused(repr(body))
        return body


SIDES: Final[dict[str, type[Side]]] = {side.name: side for side in (PostgresSide, MysqlSide)}
