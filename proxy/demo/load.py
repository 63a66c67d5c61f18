"""The demo's applications: clients that move money between accounts and look at their balances, through the proxy.

A process of its own, a little nicer than the rest, so that it neither shares an interpreter with the view nor keeps the
proxy from the processor. It is started as `python -m proxy.demo.load`, and talks in lines of JSON:

in    a `LoadSetup`, then nothing; the end of its stdin ends it, so it cannot outlive the demo
out   `{"ready": clients}` once, then every 100 ms a `Sample`, at the end `{"done": Outcome}` after the result file is
      written

Each transfer writes one journal row with an id that nobody else uses. The id is noted as acknowledged when the answer to
COMMIT has come, with the time. Clients know nothing of switches: an exception is an error a client saw.
"""

from __future__ import annotations

import abc
import array
import asyncio
import json
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec
import pymysql
import uvloop

from proxy.tasks import cancel_and_wait, spawn

SAMPLE_S: Final = 0.1

TRANSFER_SHARE: Final = 0.75
"""Of the operations; the others read."""

IDS_PER_CLIENT: Final = 1_000_000_000

START_BALANCE: Final = 1_000

ACCOUNTS_PER_CLIENT: Final = 20
"""Accounts are drawn from all, so that two clients rarely want the same row, but can."""


class LoadSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo tells its load."""

    protocol: str
    host: str
    port: int
    user: str
    password: str
    database: str
    clients: int
    operations_per_s: float
    """Of all clients together; each thinks in between."""
    result: str
    """File for the acknowledged ids: pairs of int64, id and nanoseconds of the monotonic clock."""
    niceness: int = 5


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in the last tenth of a second."""

    at_ns: int
    transactions: int
    reads: int
    errors: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    """Of whole operations: a transfer is five round trips."""
    last_error: str = ""


class Mishap(msgspec.Struct, frozen=True):
    """An error a client saw."""

    at_ns: int
    text: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The load's last word."""

    transactions: int
    reads: int
    mishaps: list[Mishap]


class Tally:
    """What all clients count. Threads only append, which needs no lock; the sampler takes what is there."""

    def __init__(self) -> None:
        self.acknowledged = array.array("q")
        self.mishaps: list[Mishap] = []
        self.transactions = 0
        self.reads = 0
        self._latencies_ms: list[float] = []
        self._before = (0, 0, 0)
        self._lock = threading.Lock()

    def transferred(self, journal_id: int, began_ns: int) -> None:
        now_ns = time.monotonic_ns()
        with self._lock:
            self.acknowledged.append(journal_id)
            self.acknowledged.append(now_ns)
            self.transactions += 1
            self._latencies_ms.append((now_ns - began_ns) / 1e6)

    def read(self, began_ns: int) -> None:
        with self._lock:
            self.reads += 1
            self._latencies_ms.append((time.monotonic_ns() - began_ns) / 1e6)

    def failed(self, error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        with self._lock:
            self.mishaps.append(Mishap(time.monotonic_ns(), text))

    def sample(self) -> Sample:
        with self._lock:
            latencies, self._latencies_ms = sorted(self._latencies_ms), []
            now = (self.transactions, self.reads, len(self.mishaps))
        before, self._before = self._before, now
        return Sample(
            at_ns=time.monotonic_ns(),
            transactions=now[0] - before[0],
            reads=now[1] - before[1],
            errors=now[2] - before[2],
            p50_ms=round(_part(latencies, 0.5), 2),
            p99_ms=round(_part(latencies, 0.99), 2),
            max_ms=round(latencies[-1], 2) if latencies else 0.0,
            last_error=self.mishaps[-1].text if self.mishaps and now[2] > before[2] else "",
        )


class Work:
    """The next thing a client does, and how long it thinks before."""

    def __init__(self, setup: LoadSetup, number: int) -> None:
        self._random = random.Random(number)
        self._accounts = setup.clients * ACCOUNTS_PER_CLIENT
        self._think_s = setup.clients / setup.operations_per_s
        self._next_id = number * IDS_PER_CLIENT

    def think_s(self) -> float:
        """Even, not exponential: few surprises in the strip that are not the switch's."""
        return self._random.uniform(0.5, 1.5) * self._think_s

    def is_transfer(self) -> bool:
        return self._random.random() < TRANSFER_SHARE

    def account(self) -> int:
        return self._random.randrange(self._accounts)

    def transfer(self) -> tuple[int, int, int, int]:
        """Journal id, two accounts in ascending order (so that no two clients wait for each other), amount."""
        low, high = sorted(self._random.sample(range(self._accounts), 2))
        self._next_id += 1
        return self._next_id, low, high, self._random.randint(-50, 50)


class Load(abc.ABC):
    """All clients of one protocol."""

    def __init__(self, setup: LoadSetup, tally: Tally) -> None:
        self.setup = setup
        self.tally = tally

    @abc.abstractmethod
    async def start(self) -> None:
        """Connect all clients, then let them work."""

    @abc.abstractmethod
    async def stop(self) -> None:
        """Let each finish what it does, and disconnect."""


class PostgresLoad(Load):
    """Coroutines on asyncpg."""

    async def start(self) -> None:
        self._is_over = asyncio.Event()
        doors = asyncio.Semaphore(16)

        async def connect() -> Any:
            async with doors:
                return await self._connect()

        connections = await asyncio.gather(*(connect() for _ in range(self.setup.clients)))
        self._tasks = [
            spawn(self._client(number, connection), name=f"client {number}")
            for number, connection in enumerate(connections)
        ]

    async def stop(self) -> None:
        self._is_over.set()
        await asyncio.wait(self._tasks, timeout=10)
        await cancel_and_wait(*self._tasks)

    async def _connect(self) -> Any:
        setup = self.setup
        return await asyncpg.connect(
            host=setup.host,
            port=setup.port,
            user=setup.user,
            password=setup.password,
            database=setup.database,
            ssl=False,
            timeout=30,
            command_timeout=30,
        )

    async def _client(self, number: int, connection: Any) -> None:
        work = Work(self.setup, number)
        while not self._is_over.is_set():
            try:
                # The end of the thinking time is a timeout, its interruption the end of the load.
                await asyncio.wait_for(self._is_over.wait(), work.think_s())
                break
            except TimeoutError:
                pass
            try:
                if connection is None:
                    connection = await self._connect()
                await self._operate(connection, work)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                self.tally.failed(error)
                if connection is not None:
                    connection.terminate()
                connection = None
        if connection is not None:
            try:
                await connection.close(timeout=5)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                self.tally.failed(error)

    async def _operate(self, connection: Any, work: Work) -> None:
        began_ns = time.monotonic_ns()
        if not work.is_transfer():
            await connection.fetchval("select balance from account where id = $1", work.account())
            self.tally.read(began_ns)
            return
        journal_id, low, high, amount = work.transfer()
        await connection.execute("begin")
        await connection.execute("update account set balance = balance - $1 where id = $2", amount, low)
        await connection.execute("update account set balance = balance + $1 where id = $2", amount, high)
        await connection.execute("insert into journal values ($1, $2, $3, $4)", journal_id, low, high, amount)
        answer = await connection.execute("commit")
        if answer != "COMMIT":
            # A COMMIT of a failed transaction is answered ROLLBACK.
            raise asyncpg.InterfaceError(f"commit was answered {answer}")
        self.tally.transferred(journal_id, began_ns)


class MySqlLoad(Load):
    """Threads on PyMySQL, which knows no asyncio."""

    async def start(self) -> None:
        self._is_over = threading.Event()
        # A thread that wakes up with an answer should not wait 5 ms for another's turn to end.
        sys.setswitchinterval(0.0005)
        # A login at MariaDB takes two delayed acknowledgements, 80 ms: not one after the other.
        with ThreadPoolExecutor(16) as doors:
            loop = asyncio.get_running_loop()
            logins = [loop.run_in_executor(doors, self._connect) for _ in range(self.setup.clients)]
            connections = await asyncio.gather(*logins)
        self._threads = [
            threading.Thread(target=self._client, args=(number, connection), name=f"client {number}", daemon=True)
            for number, connection in enumerate(connections)
        ]
        for thread in self._threads:
            thread.start()

    async def stop(self) -> None:
        self._is_over.set()
        deadline = time.monotonic() + 10
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, deadline - time.monotonic()))

    def _connect(self) -> Any:
        setup = self.setup
        return pymysql.connect(
            host=setup.host,
            port=setup.port,
            user=setup.user,
            password=setup.password,
            database=setup.database,
            autocommit=True,
            connect_timeout=30,
            read_timeout=30,
            write_timeout=30,
        )

    def _client(self, number: int, connection: Any) -> None:
        work = Work(self.setup, number)
        while not self._is_over.wait(work.think_s()):
            try:
                if connection is None:
                    connection = self._connect()
                self._operate(connection, work)
            except (pymysql.err.MySQLError, OSError) as error:
                self.tally.failed(error)
                if connection is not None:
                    connection._force_close()
                connection = None
        if connection is not None:
            connection.close()

    def _operate(self, connection: Any, work: Work) -> None:
        began_ns = time.monotonic_ns()
        with connection.cursor() as cursor:
            if not work.is_transfer():
                cursor.execute("select balance from account where id = %s", (work.account(),))
                cursor.fetchall()
                self.tally.read(began_ns)
                return
            journal_id, low, high, amount = work.transfer()
            cursor.execute("begin")
            cursor.execute("update account set balance = balance - %s where id = %s", (amount, low))
            cursor.execute("update account set balance = balance + %s where id = %s", (amount, high))
            cursor.execute("insert into journal values (%s, %s, %s, %s)", (journal_id, low, high, amount))
            cursor.execute("commit")
        self.tally.transferred(journal_id, began_ns)


def _part(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


async def run() -> None:
    """Until stdin ends or SIGTERM comes."""
    # Ctrl-C goes to the whole foreground group; the demo decides when the load ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    told = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    setup = msgspec.json.decode(await told.readline(), type=LoadSetup)
    os.nice(setup.niceness)

    async def until_stdin_ends() -> None:
        await told.read()
        stop.set()

    watcher = spawn(until_stdin_ends(), name="stdin")
    tally = Tally()
    load = PostgresLoad(setup, tally) if setup.protocol == "postgresql" else MySqlLoad(setup, tally)
    await load.start()
    _say(json.dumps({"ready": setup.clients}).encode())
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), SAMPLE_S)
        except TimeoutError:
            _say(msgspec.json.encode(tally.sample()))
    await load.stop()
    await cancel_and_wait(watcher)
    await asyncio.to_thread(Path(setup.result).write_bytes, tally.acknowledged.tobytes())
    outcome = Outcome(transactions=tally.transactions, reads=tally.reads, mishaps=tally.mishaps)
    _say(b'{"done":' + msgspec.json.encode(outcome) + b"}")


if __name__ == "__main__":
    uvloop.run(run())
