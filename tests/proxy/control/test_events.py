"""What happens, as a listener is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from proxy.control import events as module
from proxy.control.events import MISSED, EventLog
from proxy.switch.views import Event


def event(kind: str, service: str = "shop") -> Event:
    return Event(kind=kind, at=1.0, service=service, data={"id": "x"})


class Listener:
    """Reads a stream as a browser does."""

    def __init__(
        self, log: EventLog, last_id: str | None = None, service: str | None = None, *, with_status: bool = False
    ) -> None:
        self._stream = log.follow(last_id, service, with_status=with_status)
        self.last_id = last_id

    async def next(self) -> dict[str, Any]:
        """The next event; comments and `retry` are passed over."""
        async with asyncio.timeout(2):
            while True:
                lines = (await anext(self._stream)).decode().splitlines()
                fields = dict(line.split(": ", 1) for line in lines if line and not line.startswith(":"))
                if "data" in fields:
                    self.last_id = fields.get("id", self.last_id)
                    data: dict[str, Any] = json.loads(fields["data"])
                    if fields["event"] == "status":
                        assert "id" not in fields, "who comes back with it would have missed nothing"
                        return {"kind": "status", **data}
                    assert data["kind"] == fields["event"]
                    return data

    async def begin(self) -> None:
        """Until it is told how soon to come back; it listens from then on."""
        lines = (await anext(self._stream)).decode().splitlines()
        assert lines[0].startswith("retry: ")
        assert lines[1].startswith("id: ")
        self.last_id = lines[1].removeprefix("id: ")


async def test_a_listener_is_told_what_happens_from_now_on_in_order() -> None:
    log = EventLog("a")
    log.add(event("before"))
    listener = Listener(log)
    await listener.begin()
    log.add(event("one"))
    log.add(event("two"))
    assert [(await listener.next())["kind"] for _ in range(2)] == ["one", "two"]
    waiting = asyncio.ensure_future(listener.next())
    await asyncio.sleep(0)
    log.add(event("three"))
    assert (await waiting)["kind"] == "three"


async def test_who_comes_back_gets_what_it_has_not_seen() -> None:
    log = EventLog("a")
    first = Listener(log)
    await first.begin()
    for kind in ("one", "two", "three"):
        log.add(event(kind))
    await first.next()
    again = Listener(log, first.last_id)
    assert [(await again.next())["kind"] for _ in range(2)] == ["two", "three"]


async def test_an_event_is_spelled_once_for_all_who_listen() -> None:
    log = EventLog("a")
    streams = [log.follow(None) for _ in range(2)]
    for stream in streams:
        await anext(stream)
    log.add(event("one"))
    first, second = [await anext(stream) for stream in streams]
    assert first is second


@pytest.mark.parametrize("last_id", ["b-1", "a-0", "a-99", "a-x", "", "a-", "a-9999999999999999999999"])
async def test_what_cannot_be_given_any_more_is_told(last_id: str) -> None:
    log = EventLog("a", ring=2)
    for kind in ("one", "two", "three"):
        log.add(event(kind))
    listener = Listener(log, last_id)
    assert (await listener.next())["kind"] == MISSED
    log.add(event("four"))
    assert (await listener.next())["kind"] == "four"
    again = Listener(log, listener.last_id)
    log.add(event("five"))
    assert (await again.next())["kind"] == "five"


async def test_a_slow_listener_misses_some_and_is_told() -> None:
    log = EventLog("a", ring=3)
    listener = Listener(log)
    await listener.begin()
    for number in range(10):
        log.add(event(f"n{number}"))
    assert [(await listener.next())["kind"] for _ in range(4)] == [MISSED, "n7", "n8", "n9"]


async def test_a_listener_of_one_service_hears_of_no_other() -> None:
    log = EventLog("a")
    listener = Listener(log, service="shop")
    await listener.begin()
    log.add(event("other", service="blog"))
    log.add(event("all", service=""))
    log.add(event("mine"))
    assert [(await listener.next())["kind"] for _ in range(2)] == ["all", "mine"]


async def test_a_status_is_shown_between_events_to_those_who_want_it() -> None:
    log = EventLog("a")
    log.show(b'{"n":1}')
    wants, does_not = Listener(log, with_status=True), Listener(log)
    for one in (wants, does_not):
        await one.begin()
    log.show(b'{"n":2}')
    log.show(b'{"n":3}')
    log.add(event("one"))
    assert [(await wants.next())["kind"], await wants.next()] == ["one", {"kind": "status", "n": 3}], "the newest only"
    assert wants.last_id == "a-1"
    log.add(event("two"))
    assert [(await one.next())["kind"] for one in (wants, does_not, does_not)] == ["two", "one", "two"]


async def test_a_quiet_stream_says_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    stream = EventLog("a").follow(None)
    await anext(stream)
    assert (await anext(stream)).startswith(b":")


@pytest.mark.parametrize("heard", [0, 1])
async def test_a_stream_ends_after_a_while_and_who_comes_back_misses_nothing(
    monkeypatch: pytest.MonkeyPatch, heard: int
) -> None:
    """By then a token may have run out."""
    monkeypatch.setattr(module, "STREAM_S", 0.05)
    log = EventLog("a")
    log.add(event("before"))
    listener = Listener(log)
    await listener.begin()
    for _ in range(heard):
        log.add(event("one"))
        assert (await listener.next())["kind"] == "one"
    with pytest.raises(StopAsyncIteration):
        await listener.next()
    log.add(event("two"))
    again = Listener(log, listener.last_id)
    await again.begin()
    assert again.last_id == listener.last_id
    assert (await again.next())["kind"] == "two"


async def test_closing_ends_every_stream() -> None:
    log = EventLog("a")
    stream = log.follow(None)
    await anext(stream)
    ending = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    log.close()
    with pytest.raises(StopAsyncIteration):
        await ending
