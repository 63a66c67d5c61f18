"""The admin account's connections to a MySQL or MariaDB server, by PyMySQL.

PyMySQL blocks, so each connection has a thread of its own. What belongs together runs as one function in that thread: few
changes of thread, and nothing comes between two statements.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import pymysql
import pymysql.cursors
from pymysql.constants import CR

from proxy.engines.engine import Flavour
from proxy.errors import AuthRefused, ConnectFailed, EngineError, EngineLost
from proxy.tls import LibraryTls, TlsProblem

T = TypeVar("T")

CLIENT_CODES: Final = 2000
"""From here to 2999 error numbers are PyMySQL's own."""

_REFUSED_LOGIN: Final = frozenset({1044, 1045, 1130, 1251, 1524, 1698, 1862, 4151})

_WHOLE_LISTS: Final = "set session group_concat_max_len = 16777216"
"""For the admin connections. In bytes; MySQL's own length is 1,024, and what is longer is cut off."""


class _NoTls(ConnectFailed):
    """TLS was asked for and is not to be had."""


class Server:
    """Where a server is, and how the admin account gets in."""

    def __init__(
        self,
        name: str,
        address: str,
        *,
        user: str,
        password: str | None,
        database: str,
        tls: Callable[[], LibraryTls],
    ) -> None:
        self.name = name
        self.address = address
        self.flavour: Flavour = "mysql"
        """Learnt at the first connection."""
        host, _, port = address.rpartition(":")
        self._host = host.strip("[]")
        self._port = int(port)
        self._user = user
        self._password = password
        self._database = database
        self.tls = tls
        """Asked before each connection."""

    def open_blocking(self, timeout_s: float) -> Any:
        """A connection, with TLS as the config says; blocks. Raises ConnectFailed and AuthRefused."""
        try:
            tls = self.tls()
        except TlsProblem as problem:
            raise ConnectFailed(f"engine {self.name}: server_tls_{problem.key}: {problem.text}") from problem
        *others, last = tls.attempts()
        for is_encrypted in others:
            try:
                return self._open_once(tls.context if is_encrypted else None, timeout_s)
            except _NoTls:
                continue
        return self._open_once(tls.context if last else None, timeout_s)

    def _open_once(self, context: ssl.SSLContext | None, timeout_s: float) -> Any:
        where = f"engine {self.name} at {self.address}"
        try:
            sock = socket.create_connection((self._host, self._port), timeout=timeout_s)
        except OSError as error:
            why = error.strerror or str(error)
            is_refused = isinstance(error, ConnectionRefusedError)
            raise ConnectFailed(
                f"{where} cannot be reached: {why}", failure="refused" if is_refused else "silent"
            ) from error
        if sock.getsockname() == sock.getpeername():
            # A closed port inside the ephemeral range, and TCP's simultaneous open: we talk to ourselves.
            sock.close()
            raise ConnectFailed(f"{where} cannot be reached: connection refused", failure="refused")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = pymysql.connect(
            host=self._host,
            port=self._port,
            user=self._user,
            password=self._password or "",
            database=self._database or None,
            autocommit=True,
            connect_timeout=max(1, int(timeout_s)),
            read_timeout=timeout_s,
            write_timeout=timeout_s,
            program_name="turnout",
            init_command=_WHOLE_LISTS,
            cursorclass=pymysql.cursors.DictCursor,
            defer_connect=True,
            ssl=context,
            ssl_disabled=context is None,
        )
        try:
            sock.settimeout(timeout_s)
            connection.connect(sock)
        except (pymysql.err.MySQLError, OSError) as error:
            sock.close()
            code, text = code_and_text(error)
            if code in _REFUSED_LOGIN:
                raise AuthRefused(f"{where} refuses the admin account: {text} ({code})") from error
            if code == CR.CR_SSL_CONNECTION_ERROR or isinstance(
                getattr(error, "original_exception", None), ssl.SSLError
            ):
                raise _NoTls(f"{where}: no TLS with it: {text}") from error
            # With a number that is none of PyMySQL's own the server has spoken.
            has_spoken = code > 0 and code // 1000 != CLIENT_CODES // 1000
            raise ConnectFailed(
                f"{where} takes no connection: {text}", failure="told" if has_spoken else "silent"
            ) from error
        self.flavour = "mariadb" if "mariadb" in connection.get_server_info().lower() else "mysql"
        return connection


class Link:
    """One connection and the thread that uses it. Functions given to `run` get the link and may call `ask`."""

    def __init__(self, server: Server, purpose: str) -> None:
        self._server = server
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"{server.name}-{purpose}")
        self._connection: Any = None
        self._deadline = 0.0
        self._lock = asyncio.Lock()
        self.instance = ""
        """Which running server the connection leads to, once asked."""

    @property
    def name(self) -> str:
        """The engine's."""
        return self._server.name

    @property
    def is_maria(self) -> bool:
        """Known once it is connected."""
        return self._server.flavour == "mariadb"

    async def run(self, work: Callable[[Link], T], timeout_s: float) -> T:
        """Run `work` in the thread. Raises EngineError and its subclasses."""
        async with self._lock:
            loop = asyncio.get_running_loop()
            try:
                future = loop.run_in_executor(self._executor, self._run, work, time.monotonic() + timeout_s)
            except RuntimeError as error:
                raise EngineError(f"the connection to engine {self.name} was closed") from error
            try:
                # Each read has the deadline too; this one is for what does not look at it.
                async with asyncio.timeout(timeout_s + 0.5):
                    return await future
            except TimeoutError as error:
                self.drop()
                raise EngineError(f"engine {self.name} did not answer within {timeout_s:g} s") from error
            except asyncio.CancelledError:
                self.drop()
                raise

    def _run(self, work: Callable[[Link], T], deadline: float) -> T:
        """In the thread: connect if needed, work, and make our own errors."""
        name = self.name
        self._deadline = deadline
        if self._connection is None:
            self._connection = self._server.open_blocking(self._left())
            self.instance = ""
        try:
            return work(self)
        except TimeoutError as error:
            self.drop()
            raise EngineError(f"engine {name} did not answer in time") from error
        except (pymysql.err.InterfaceError, OSError) as error:
            self.drop()
            raise EngineLost(f"the connection to engine {name} ended: {error}") from error
        except pymysql.err.MySQLError as error:
            code, text = code_and_text(error)
            if code // 1000 == CLIENT_CODES // 1000:
                # PyMySQL's own codes: lost, timed out, malformed.
                self.drop()
                raise EngineLost(f"the connection to engine {name} ended: {text}") from error
            raise EngineError(f"engine {name}: {text} ({code})") from error

    def _left(self, least: float = 0.0) -> float:
        left = self._deadline - time.monotonic()
        if left <= least:
            raise EngineError(f"engine {self.name} did not answer in time")
        return left

    def ask(self, sql: str, *args: object) -> list[dict[str, Any]]:
        """In the thread: the rows of one statement."""
        # PyMySQL has no way to change it per statement.
        self._connection._read_timeout = self._left()
        with self._connection.cursor() as cursor:
            cursor.execute(sql, args or None)
            return list(cursor.fetchall())

    def value(self, sql: str, *args: object) -> Any:
        """In the thread: first column of the first row."""
        rows = self.ask(sql, *args)
        return next(iter(rows[0].values())) if rows else None

    def pause(self, seconds: float, *, for_look_s: float = 0.0) -> None:
        """In the thread, between two looks; raises where the deadline leaves no time for the second one, which may take
        `for_look_s`: a statement that the deadline cuts off costs the connection."""
        self._left(seconds + for_look_s)
        time.sleep(seconds)

    def allow(self, seconds: float) -> None:
        """In the thread: so much from now on, whatever the deadline was. For what must be put back; under 0.5 s."""
        self._deadline = max(self._deadline, time.monotonic() + seconds)

    @property
    def thread_id(self) -> int | None:
        """The server's id of the connection."""
        return self._connection.thread_id() if self._connection is not None else None

    def drop(self) -> None:
        """From any thread: end the connection without a word; a read that waits on it returns."""
        connection, self._connection = self._connection, None
        if connection is not None and connection._sock is not None:
            try:
                connection._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended already
            connection._force_close()

    def close(self) -> None:
        self.drop()
        self._executor.shutdown(wait=False)


def version_number(version: str) -> int:
    """101119 for `10.11.19-MariaDB-0+deb12u1`, 90704 for `9.7.4-2`; 0 if it is none."""
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        return 0
    major, minor, patch = map(int, found.groups())
    return major * 10000 + minor * 100 + patch


def code_and_text(error: BaseException) -> tuple[int, str]:
    """Number and text of a PyMySQL or OS error."""
    arguments = error.args
    code = arguments[0] if arguments and isinstance(arguments[0], int) else 0
    text = str(arguments[1]) if len(arguments) > 1 else str(error) or type(error).__name__
    return code, text
