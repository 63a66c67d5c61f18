"""One connection through Turnout. Every act either ends well or raises `Told`, which says what is known of its outcome."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import asyncpg
import pymysql

from proxy.embedded import Turnout
from proxy.embedded.postgres import PASSWORD
from tests.soak.history import items_of

T = TypeVar("T")

USER: Final = "app"
DATABASE: Final = "app"
PATIENCE_S: Final = 60.0
"""For one answer."""

ROLLED_BACK: Final = frozenset({"40001", "40P01", "25006"})
"""SQLSTATEs that say that nothing was done, whenever they come."""
ROLLED_BACK_MYSQL: Final = frozenset({1213, 1290, 1792})


FAILURES: Final[tuple[type[Exception], ...]] = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # Its answer to a server that ends an idle session with an error.
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""Of a connection of asyncpg's."""


class Told(Exception):
    """An act did not end well. `code` is an SQLSTATE, MySQL's number, or what became of the connection."""

    def __init__(self, code: str, *, is_refused: bool) -> None:
        super().__init__(code)
        self.code = code
        self.is_refused = is_refused
        """It was certainly not done."""


class Client(abc.ABC):
    """See the module. An act after a `Told` works again, if need be on a new connection."""

    def __init__(self, turnout: Turnout) -> None:
        self.turnout = turnout
        self._may_be_done = False
        """What is asked for now may have been done if there is no answer."""

    @abc.abstractmethod
    async def transfer(
        self, number: int, list_number: int, low: int, high: int, amount: int, pause_s: float = 0.0
    ) -> None:
        """Move money between two accounts, append to a list, write to the journal; `pause_s` before COMMIT."""

    @abc.abstractmethod
    async def append(self, number: int, list_number: int) -> None:
        """One statement, one transaction."""

    @abc.abstractmethod
    async def write(self, numbers: Sequence[int], *, by_copy: bool) -> None:
        """Numbers into the journal: all or none. PostgreSQL: by COPY, or in one pipeline."""

    @abc.abstractmethod
    async def read(self, list_number: int) -> list[int]: ...

    @abc.abstractmethod
    async def close(self) -> None: ...


class PostgresClient(Client):
    """By asyncpg, which prepares what it runs."""

    def __init__(self, turnout: Turnout) -> None:
        super().__init__(turnout)
        self._connection: Any = None

    async def transfer(
        self, number: int, list_number: int, low: int, high: int, amount: int, pause_s: float = 0.0
    ) -> None:
        async def work(connection: Any) -> None:
            await connection.execute("begin")
            await connection.execute("update account set balance = balance - $1 where id = $2", amount, low)
            await connection.execute("update account set balance = balance + $1 where id = $2", amount, high)
            await connection.execute(_APPEND, list_number, f",{number}")
            await connection.execute("insert into journal values ($1)", number)
            await asyncio.sleep(pause_s)
            self._may_be_done = True
            if (answer := await connection.execute("commit")) != "COMMIT":
                raise Told(answer, is_refused=True)

        await self._do(work)

    async def append(self, number: int, list_number: int) -> None:
        async def work(connection: Any) -> None:
            self._may_be_done = True
            await connection.execute(_APPEND, list_number, f",{number}")

        await self._do(work)

    async def write(self, numbers: Sequence[int], *, by_copy: bool) -> None:
        async def work(connection: Any) -> None:
            self._may_be_done = True
            rows = [(number,) for number in numbers]
            if by_copy:
                await connection.copy_records_to_table("journal", records=rows)
            else:
                await connection.executemany("insert into journal values ($1)", rows)

        await self._do(work)

    async def read(self, list_number: int) -> list[int]:
        async def work(connection: Any) -> list[int]:
            return items_of(await connection.fetchval("select items from appended where list = $1", list_number) or "")

        items: list[int] = await self._do(work)
        return items

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _do(self, work: Callable[[Any], Any]) -> Any:
        self._may_be_done = False
        try:
            if self._connection is None:
                self._connection = await asyncpg.connect(
                    host=self.turnout.host,
                    port=self.turnout.port,
                    user=USER,
                    password=PASSWORD,
                    database=DATABASE,
                    ssl=False,
                    timeout=PATIENCE_S,
                    command_timeout=PATIENCE_S,
                )
            return await work(self._connection)
        except Told:
            await self._recover()
            raise
        except FAILURES as error:
            code = getattr(error, "sqlstate", None) or type(error).__name__
            await self._recover()
            raise Told(code, is_refused=not self._may_be_done or code in ROLLED_BACK) from error

    async def _recover(self) -> None:
        """After an error a session that is still there goes on once it has rolled back."""
        connection = self._connection
        if connection is None:
            return
        try:
            await connection.execute("rollback")
        except FAILURES:
            await self.close()


_APPEND: Final = (
    "insert into appended values ($1, $2) on conflict (list) do update set items = appended.items || excluded.items"
)


class MySqlClient(Client):
    """By PyMySQL, which blocks: each client has a thread of its own."""

    def __init__(self, turnout: Turnout) -> None:
        super().__init__(turnout)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="client")
        self._connection: Any = None

    async def transfer(
        self, number: int, list_number: int, low: int, high: int, amount: int, pause_s: float = 0.0
    ) -> None:
        await self._run(
            "begin",
            f"update account set balance = balance - {amount} where id = {low}",
            f"update account set balance = balance + {amount} where id = {high}",
            _append(number, list_number),
            f"insert into journal values ({number})",
        )
        await asyncio.sleep(pause_s)
        await self._run("commit", may_be_done=True)

    async def append(self, number: int, list_number: int) -> None:
        await self._run(_append(number, list_number), may_be_done=True)

    async def write(self, numbers: Sequence[int], *, by_copy: bool) -> None:
        del by_copy
        values = ", ".join(f"({number})" for number in numbers)
        await self._run(f"insert into journal values {values}", may_be_done=True)

    async def read(self, list_number: int) -> list[int]:
        row = await self._run(f"select items from appended where list = {list_number}")
        return items_of(row[0]) if row else []

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown()

    async def _run(self, *statements: str, may_be_done: bool = False) -> Any:
        """First row of the last one."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, statements)
        except (pymysql.MySQLError, OSError) as error:
            code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
            is_refused = not may_be_done or code in ROLLED_BACK_MYSQL
            raise Told(str(code or type(error).__name__), is_refused=is_refused) from error

    def _ask(self, statements: Sequence[str]) -> Any:
        try:
            if self._connection is None:
                self._connection = pymysql.connect(
                    host=self.turnout.host,
                    port=self.turnout.port,
                    user=USER,
                    password=PASSWORD,
                    database=DATABASE,
                    autocommit=True,
                    connect_timeout=int(PATIENCE_S),
                    read_timeout=PATIENCE_S,
                    write_timeout=PATIENCE_S,
                )
            with self._connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return cursor.fetchone()
        except (pymysql.MySQLError, OSError):
            self._recover()
            raise

    def _recover(self) -> None:
        try:
            if self._connection is not None:
                self._connection.rollback()
        except (pymysql.MySQLError, OSError):
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection._force_close()
            self._connection = None


def _append(number: int, list_number: int) -> str:
    return (
        f"insert into appended values ({list_number}, ',{number}')"
        f" on duplicate key update items = concat(items, ',{number}')"
    )
