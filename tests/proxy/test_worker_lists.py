"""Lists that a worker makes while its clients are served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocols.wire import Grade
from proxy import ipc
from proxy.dataplane.registry import Registry, Standing
from proxy.worker import LIST_STEP_NS, Worker


class Client:
    """As much of a session as a list needs. To look at it takes a fifth of a part's time."""

    startup = backend = ledger = tracker = relay = link = None
    client, opened_ns, in_transaction, standing = "127.0.0.1:5000", 0, False, Standing.ARRIVING

    def __init__(self, number: int) -> None:
        self.id = number
        self.looks = 0

    def portability(self) -> tuple[Grade, list[str]]:
        self.looks += 1
        until_ns = time.monotonic_ns() + LIST_STEP_NS // 5
        while time.monotonic_ns() < until_ns:
            pass
        return Grade.A, []


class Connection:
    """As much of a backend as a list needs. To look at it takes a fifth of a part's time."""

    engine, opened_ns, idle_since_ns, is_doubtful = "blue", 0, 0, False
    startup = SimpleNamespace(database="shop", user="app", parameters=())
    link = SimpleNamespace(ssl=None, is_open=False)
    notes: dict[str, Any] = {}  # noqa: RUF012  nobody writes to it

    def __init__(self, number: int) -> None:
        self.facts = SimpleNamespace(process_id=number)

    @property
    def reach(self) -> SimpleNamespace:
        until_ns = time.monotonic_ns() + LIST_STEP_NS // 5
        while time.monotonic_ns() < until_ns:
            pass
        return SimpleNamespace(address="127.0.0.1:5432")


class Scene:
    """A worker with so many clients, and what it tells."""

    def __init__(self, folder: Path, count: int) -> None:
        self.worker = Worker(0, folder / "supervisor.sock")
        self.told: list[Any] = []
        self.worker.emit = self._hear  # type: ignore[method-assign,assignment]
        self.lists: asyncio.Queue[int] = asyncio.Queue()
        """Requests whose last part was told."""
        self.at_first_part: Callable[[], None] = lambda: None
        self.clients: list[Any] = [Client(number) for number in range(count)]
        registry = Registry()
        for client in self.clients:
            registry.add(client)
        wire: Any = SimpleNamespace(name="postgresql")
        self.connections = [(Connection(number), "idle") for number in range(count)]
        pool = SimpleNamespace(backends=lambda: iter(self.connections))
        self.worker.runtimes["shop"] = SimpleNamespace(  # type: ignore[assignment]
            name="shop", wire=wire, registry=registry, pools=lambda: [pool]
        )
        self.registry = registry

    def _hear(self, part: ipc.SessionList | ipc.BackendList) -> None:
        self.told.append(part)
        if len(self.told) == 1:
            self.at_first_part()
        if part.is_last:
            self.lists.put_nowait(part.request)

    async def ask(self, **which: Any) -> list[int]:
        """Numbers of the sessions that are told, once all are."""
        self.worker._obey(ipc.ListSessions(request=1, **which))
        async with asyncio.timeout(5):
            await self.lists.get()
        return [one.id for part in self.told for one in part.sessions]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, 40)


async def test_others_have_their_turn_between_two_parts_of_a_list(scene: Scene) -> None:
    turns: list[int] = []

    async def serve() -> None:
        while not (scene.told and scene.told[-1].is_last):
            turns.append(sum(len(part.sessions) for part in scene.told))
            await asyncio.sleep(0)

    found, _ = await asyncio.gather(scene.ask(), serve())
    assert found == list(range(40))
    assert len(scene.told) >= 5
    assert max(len(part.sessions) for part in scene.told) <= 5
    assert set(turns) >= {sum(len(part.sessions) for part in scene.told[:some]) for some in range(len(scene.told))}


async def test_a_list_of_backends_is_made_in_parts_and_tells_each_once(scene: Scene) -> None:
    turns: list[int] = []

    async def serve() -> None:
        while not (scene.told and scene.told[-1].is_last):
            turns.append(len(scene.told))
            await asyncio.sleep(0)

    # One that is lent meanwhile stands elsewhere in its pool.
    scene.at_first_part = lambda: scene.connections.append(scene.connections.pop(0))

    async def ask() -> None:
        scene.worker._obey(ipc.ListBackends(request=1))
        await scene.lists.get()

    async with asyncio.timeout(5):
        await asyncio.gather(ask(), serve())
    assert [one.process_id for part in scene.told for one in part.backends] == list(range(40))
    assert max(len(part.backends) for part in scene.told) <= 5
    assert set(turns) >= set(range(len(scene.told)))


async def test_who_leaves_while_a_list_is_made_is_not_in_it(scene: Scene) -> None:
    scene.at_first_part = lambda: scene.registry.move(scene.clients[-1], Standing.ENDED)
    assert await scene.ask() == list(range(39))


async def test_of_one_session_no_other_is_looked_at(scene: Scene) -> None:
    assert await scene.ask(session=7) == [7]
    assert [one.id for one in scene.clients if one.looks] == [7]
    scene.told.clear()
    assert await scene.ask(session=99) == []


async def test_lists_that_many_ask_for_are_made_one_after_the_other(scene: Scene) -> None:
    for number in (1, 2, 3):
        scene.worker._obey(ipc.ListSessions(request=number))
    async with asyncio.timeout(5):
        assert [await scene.lists.get() for _ in range(3)] == [1, 2, 3]
    in_order = [part.request for part in scene.told]
    assert in_order == sorted(in_order)
