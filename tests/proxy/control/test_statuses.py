"""The status for those who listen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from proxy.control import statuses as module
from proxy.control.events import EventLog
from proxy.control.statuses import Statuses
from proxy.control.views import Status
from proxy.errors import ProxyError
from tests.kit.waiting import until


class Scene:
    """What is looked at, and who looks."""

    def __init__(self) -> None:
        self.looks = 0
        self.fails_at = 0
        self.log = EventLog("a")
        self.statuses = Statuses(self.look, self.log)

    async def look(self) -> Status:
        self.looks += 1
        if self.looks == self.fails_at:
            raise ProxyError("no worker answers")
        return Status(version=str(self.looks), started_at=1.0, is_ready=True, services=[], workers=[])

    async def begin(self) -> AsyncIterator[bytes]:
        stream = self.statuses.follow(None, None)
        assert (await anext(stream)).startswith(b"retry: ")
        return stream


async def _version(stream: AsyncIterator[bytes]) -> str:
    async with asyncio.timeout(5):
        kind, data = (await anext(stream)).decode().rstrip().splitlines()
    assert kind == "event: status"
    return str(json.loads(data.removeprefix("data: "))["version"])


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(module, "EVERY_S", 0.02)
    return Scene()


async def test_one_look_is_for_all_who_listen(scene: Scene) -> None:
    streams = [await scene.begin() for _ in range(10)]
    seen = [await asyncio.gather(*[_version(one) for one in streams]) for _ in range(3)]
    assert [set(one) for one in seen] == [{"1"}, {"2"}, {"3"}]
    for one in streams:
        await one.aclose()  # type: ignore[attr-defined]


async def test_nobody_looks_where_nobody_listens(scene: Scene) -> None:
    stream = await scene.begin()
    assert await _version(stream) == "1"
    await stream.aclose()  # type: ignore[attr-defined]
    await until(lambda: scene.statuses._task is None, "it is over")
    looks = scene.looks
    again = await scene.begin()
    assert scene.looks == looks
    assert await _version(again) == str(looks + 1), "and begins anew"
    await again.aclose()  # type: ignore[attr-defined]


async def test_a_look_that_fails_is_left_out(scene: Scene) -> None:
    scene.fails_at = 2
    stream = await scene.begin()
    assert [await _version(stream) for _ in range(2)] == ["1", "3"]
    await stream.aclose()  # type: ignore[attr-defined]


async def test_the_end_of_the_log_ends_the_stream(scene: Scene) -> None:
    stream = await scene.begin()
    scene.log.close()
    assert [one async for one in stream] == []
