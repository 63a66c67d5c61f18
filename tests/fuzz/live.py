"""The live proxy between hostile clients and a hostile server, beside a witness on the same worker.

The engine Turnout knows is a go-between of ours before a real server (what differs between the protocols is in `sides`). It
passes everybody's bytes on as they are, but what the server answers to the account `hostile` it makes worse now and then, or ends, or keeps back. Clients of
that account send mutated logins and conversations, in pieces, leave in the middle, or do not read. The witness asks its
question over and over on one connection and must have the right answer from the same backend within a deadline.

Afterwards: the same worker process, nothing in the log that is our own failure, descriptors back to where they were, and
no more memory than after the warm-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, get_args

import psutil

from proxy.embedded import Setup, Turnout, Workspace, free_port
from proxy.tasks import cancel_and_wait, spawn
from tests.fuzz import Found
from tests.fuzz.mutation import Mutator
from tests.fuzz.sides import HOSTILE, SIDES, PoolMode, Refused, Side

AT_ONCE: Final = 8
"""Hostile clients at any time."""
WITNESS_S: Final = 20.0
"""Longest time the witness waits for an answer; the machine is busy, and a hang is for ever."""
CLIENT_S: Final = 1.0
"""Longest time a hostile client waits for what may never come."""
WARM_UP: Final = 600
"""Hostile clients before memory is compared."""
GROWTH_MAX: Final = 32 * 2**20
"""Bytes the worker may grow by after its warm-up."""
OWN_FAILURES: Final = ("session failed", "sink failed", "order failed", "task failed", "Traceback", "internal error")
"""Lines of the log that are never a stranger's fault."""

_LOGIN_S: Final = 0.3

# --- the hostile server -------------------------------------------------------------------------------------------


class GoBetween:
    """Stands for the engine: passes on, and makes worse what is `hostile`'s."""

    def __init__(self, rng: random.Random, side: Side) -> None:
        self._rng = rng
        self._side = side
        self._mutator = Mutator(rng, side.split, side.answered)
        self.port = free_port()
        self.worse = 0
        """Answers made worse so far."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        # asyncio's own tasks for coroutines would outlive the server.
        serving: set[asyncio.Task[None]] = set()

        def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = spawn(self._serve(reader, writer), name="between a client and its server")
            serving.add(task)
            task.add_done_callback(serving.discard)

        server = await asyncio.start_server(come, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()
            await cancel_and_wait(*serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind_reader, behind, is_hostile = await self._side.open_between(reader, writer)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            self._pass(reader, behind, worsens=False),
            # A backend that breaks at once teaches little: half of them are let in.
            self._pass(behind_reader, writer, worsens=is_hostile, lawful=self._rng.choice((0, 0, 2, 3))),
        )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, worsens: bool, lawful: int = 0
    ) -> None:
        rng = self._rng
        try:
            while data := await reader.read(65536):
                lawful -= 1
                if worsens and lawful < 0 and rng.random() < 0.3:
                    self.worse += 1
                    kind = rng.random()
                    if kind < 0.1:
                        break
                    if kind < 0.2:
                        await asyncio.sleep(rng.random() * 0.3)
                    if kind < 0.9:
                        data = self._mutator.mutate(data)
                    for piece in self._mutator.cuts(data)[:50]:
                        if writer.transport.is_closing():
                            return
                        writer.write(piece)
                        await asyncio.sleep(0)
                else:
                    writer.write(data)
                await writer.drain()
        except OSError:
            # Whoever left: so does the other.
            pass
        finally:
            writer.close()


# --- the hostile client -------------------------------------------------------------------------------------------


async def hostile_client(rng: random.Random, port: int, side: Side) -> None:
    """One of them, from connect to its end."""
    mutator = Mutator(rng, side.split, side.said)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return
    reads = rng.random() < 0.9
    try:
        first = side.login(HOSTILE, rng)
        if rng.random() < 0.2:
            await _send(rng, writer, mutator.cuts(mutator.mutate(first)))
        else:
            writer.write(first)
        await _read(reader, _LOGIN_S if rng.random() < 0.8 else 0.0, until=side.login_end)
        for _ in range(rng.randint(1, 3)):
            stream = rng.choice(side.said)
            await _send(rng, writer, mutator.cuts(mutator.mutate(stream) if rng.random() < 0.75 else stream))
            if reads:
                await _read(reader, rng.choice((0.0, 0.02, 0.1)))
        match rng.randrange(4):
            case 0:
                # A reset in the place of an end.
                sock = writer.get_extra_info("socket")
                sock.setsockopt(*_LINGER)
            case 1 if reads:
                writer.write_eof()
                await _read(reader, CLIENT_S)
            case 2:
                writer.write(side.goodbye)
            case _:
                pass
    except OSError:
        # The proxy ended it: that is its right.
        pass
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


_LINGER: Final = (1, 13, struct.pack("ii", 1, 0))
"""SOL_SOCKET, SO_LINGER: on, 0 seconds."""


async def _send(rng: random.Random, writer: asyncio.StreamWriter, pieces: list[bytes]) -> None:
    for piece in pieces[:100]:
        if writer.transport.is_closing():
            return
        writer.write(piece)
        await asyncio.sleep(rng.choice((0, 0, 0, 0.001)))


async def _read(reader: asyncio.StreamReader, seconds: float, until: bytes = b"") -> None:
    """Whatever comes, up to the time, the end, or `until`."""
    came = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while data := await reader.read(65536):
                came = came[-8:] + data
                if until and until in came:
                    return


# --- the witness --------------------------------------------------------------------------------------------------


class Witness:
    """Asks on one connection for as long as it lives."""

    def __init__(self, side: Side, mode: PoolMode, port: int) -> None:
        self._side = side
        self._mode = mode
        self._name = f"{side.name}, {mode}"
        self._port = port
        self._backend = b""
        self._crashes = 0
        self.asked = 0
        self.slowest_ms = 0.0

    async def come(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        await self._side.enter(self._reader, self._writer)

    async def ask_on(self) -> None:
        """Until cancelled. Raises Found."""
        while True:
            self.asked += 1
            began = time.monotonic()
            try:
                async with asyncio.timeout(WITNESS_S):
                    rows = await self._side.ask(self._reader, self._writer, self.asked)
            except TimeoutError:
                raise Found(f"{self._name}: the witness has no answer after {WITNESS_S:g} s") from None
            except (OSError, asyncio.IncompleteReadError, Refused) as error:
                if not await self._is_after_a_crash():
                    what = "was refused" if isinstance(error, Refused) else "lost its connection"
                    raise Found(f"{self._name}: the witness {what}: {error}") from error
                await self._come_again()
                continue
            self.slowest_ms = max(self.slowest_ms, (time.monotonic() - began) * 1_000)
            if len(rows) != 1 or rows[0][0] != str(self.asked).encode():
                raise Found(f"{self._name}: the witness asked for {self.asked} and got {rows}")
            has_moved = self._mode == "session" and self._backend not in (b"", rows[0][1])
            if has_moved and not await self._is_after_a_crash():
                raise Found(f"{self._name}: the witness' backend changed from {self._backend!r} to {rows[0][1]!r}")
            self._backend = rows[0][1]
            await asyncio.sleep(0.02)

    async def _is_after_a_crash(self) -> bool:
        """The server itself has crashed, and this is the first that is seen of it; its log may come a moment later."""
        for _ in range(10):
            count = len(self._side.crashes())
            if count > self._crashes:
                self._crashes = count
                return True
            await asyncio.sleep(0.1)
        return False

    async def _come_again(self) -> None:
        """After a crash of the server itself, as soon as it is back. Raises Found."""
        self._writer.close()
        deadline = time.monotonic() + WITNESS_S
        while True:
            try:
                await self.come()
                break
            except (OSError, asyncio.IncompleteReadError, Refused) as error:
                if time.monotonic() > deadline:
                    raise Found(f"{self._name}: after a crash of the server nobody is let in: {error}") from error
                await asyncio.sleep(0.1)
        self._backend = b""


# --- the whole ----------------------------------------------------------------------------------------------------


class Field:
    """One Turnout in one pool mode, with its witness."""

    def __init__(self, mode: str, turnout: Turnout, witness: Witness) -> None:
        self.mode = mode
        self.turnout = turnout
        self.witness = witness
        self.worker = turnout.processes()[1]
        self.own_descriptors = 0
        """Neither a client's nor a backend's, at the beginning."""
        self.warm = 0
        self._log_read = 0

    @classmethod
    async def open(cls, mode: str, turnout: Turnout, witness: Witness) -> Field:
        field = cls(mode, turnout, witness)
        field.own_descriptors = await field.count_own_descriptors()
        return field

    async def count_own_descriptors(self) -> int:
        """Those that are neither of a session nor of a backend. A mutated login may name a database of its own, which has a
        pool of its own: how many backends there may be is not known beforehand."""
        pools = await self.turnout.get("/v1/pools")
        sessions = await self.turnout.get("/v1/sessions")
        known: int = len(sessions) + sum(pool["idle"] + pool["in_use"] for pool in pools)
        open_now: int = self.worker.num_fds()
        return open_now - known

    def check(self) -> None:
        """Raises Found."""
        if not self.worker.is_running() or self.worker.status() == psutil.STATUS_ZOMBIE:
            raise Found(f"{self.mode}: the worker died: {self.turnout.text_of_log()[-3000:]}")
        text = self.turnout.text_of_log()
        for line in OWN_FAILURES:
            at = text.find(line, self._log_read)
            if at >= 0:
                raise Found(f"{self.mode}: the log has {line!r}: {text[max(0, at - 300) : at + 3000]}")
        self._log_read = len(text)

    def remember_memory(self) -> None:
        self.warm = self.worker.memory_info().rss

    def check_memory(self) -> int:
        """Bytes grown since the warm-up. Raises Found."""
        grown: int = self.worker.memory_info().rss - self.warm
        if self.warm and grown > GROWTH_MAX:
            raise Found(f"{self.mode}: the worker has grown by {grown:,} bytes since its warm-up")
        return grown

    async def check_descriptors(self) -> None:
        """All of them come back within a while after the last hostile client. Raises Found."""
        deadline = time.monotonic() + 40
        while (now := await self.count_own_descriptors()) > self.own_descriptors:
            if time.monotonic() > deadline:
                raise Found(
                    f"{self.mode}: {now} descriptors are nobody's, {self.own_descriptors} were at the beginning:"
                    f" {self.worker.net_connections()}"
                )
            await asyncio.sleep(0.5)


@asynccontextmanager
async def _turnout(setup: Setup, folder: Path) -> AsyncIterator[Turnout]:
    one = Turnout(setup, folder)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


async def fuzz(protocol: str, seed: int, until: float) -> str:
    """Until the time `until` of the monotonic clock. Returns what was done; raises Found."""
    side = SIDES[protocol]()
    rng = random.Random(f"{seed}/live/{protocol}")
    async with AsyncExitStack() as stack:
        workspace = stack.enter_context(Workspace("turnout-fuzz-", niceness=10))
        stack.push_async_callback(await side.start(workspace))
        between = GoBetween(random.Random(f"{seed}/server/{protocol}"), side)
        await stack.enter_async_context(between.listening())
        fields = []
        modes: tuple[PoolMode, ...] = get_args(PoolMode)
        for mode in modes:
            folder = workspace.path / mode
            folder.mkdir()
            one = await stack.enter_async_context(_turnout(side.setup(mode, between.port), folder))
            asking = Witness(side, mode, one.port)
            await asking.come()
            fields.append(await Field.open(f"{protocol}, {mode}", one, asking))
        witnesses = [spawn(field.witness.ask_on(), name=f"witness {field.mode}") for field in fields]
        number = 0
        under_way: set[asyncio.Task[None]] = set()
        try:
            while time.monotonic() < until:
                while len(under_way) < AT_ONCE:
                    field = fields[number % 2]
                    client = hostile_client(random.Random(rng.random()), field.turnout.port, side)
                    under_way.add(spawn(client, name=f"hostile client {number}"))
                    number += 1
                    if number == WARM_UP:
                        for one_field in fields:
                            one_field.remember_memory()
                    if number % 100 == 0:
                        for one_field in fields:
                            one_field.check()
                            one_field.check_memory()
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED, timeout=30)
                for task in [*done, *(witness for witness in witnesses if witness.done())]:
                    task.result()
                if not done:
                    raise Found("hostile clients do not come to an end")
            if under_way:
                await asyncio.wait(under_way, timeout=30)
            for field in fields:
                await field.check_descriptors()
                field.check()
            for witness in witnesses:
                if witness.done():
                    witness.result()
            if number > WARM_UP and not between.worse:
                raise Found("no answer was made worse: the go-between does not know the hostile account any more")
        finally:
            for task in [*under_way, *witnesses]:
                task.cancel()
        grown = ", ".join(f"{field.mode} {field.check_memory() if field.warm else 0:,}" for field in fields)
        slowest = max(field.witness.slowest_ms for field in fields)
        asked = sum(field.witness.asked for field in fields)
        crashed = "".join(f"\n  the server itself crashed: {one}" for one in side.crashes())
        return (
            f"live, {protocol}: {number:,} hostile clients, {between.worse:,} answers made worse; bytes grown since the warm-up: "
            f"{grown}; the witnesses asked {asked:,} times and waited {slowest:.0f} ms at most{crashed}"
        )
