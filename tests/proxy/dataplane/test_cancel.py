"""Cancel requests on their way to an engine: nobody else's work is hit by one that is late."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from protocols import postgres
from protocols.postgres.messages import build_cancel_request
from protocols.wire import BackendFacts, Startup
from proxy.dataplane.backend import Backend, send_cancel
from proxy.dataplane.reach import Reach
from proxy.dataplane.relay import Link
from proxy.embedded import free_port
from tests.kit.waiting import until

STARTUP = Startup("app", "app")
FACTS = BackendFacts("18", process_id=4711, secret=b"k" * 32)


def backend_at(address: str) -> tuple[Backend, socket.socket]:
    """A backend and its server's end of the connection."""
    far, near = socket.socketpair()
    far.setblocking(False)
    near.setblocking(False)
    link = Link(asyncio.get_running_loop(), near.detach())
    return Backend(postgres.WIRE, Reach("blue", address), STARTUP, link, FACTS), far


@dataclass
class Postmaster:
    """Takes cancel requests, and closes their connections when it is told to."""

    address: str
    heard: list[bytes] = field(default_factory=list)
    may_close: asyncio.Event = field(default_factory=asyncio.Event)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append(await reader.readexactly(len(build_cancel_request(FACTS.process_id, FACTS.secret))))
        await self.may_close.wait()
        writer.close()


@pytest.fixture
async def postmaster() -> AsyncIterator[Postmaster]:
    port = free_port()
    made = Postmaster(f"127.0.0.1:{port}")
    server = await asyncio.start_server(made.accept, "127.0.0.1", port)
    yield made
    made.may_close.set()
    server.close()
    await server.wait_closed()


async def test_a_cancel_is_done_when_the_engine_has_closed_its_connection(postmaster: Postmaster) -> None:
    """field-notes: CancelRequest races"""
    backend, far = backend_at(postmaster.address)
    sending = asyncio.create_task(send_cancel(postgres.WIRE, backend, backend.reach, 10.0))
    await until(lambda: bool(postmaster.heard), "the request")
    assert postmaster.heard == [build_cancel_request(4711, b"k" * 32)]
    assert not sending.done()
    postmaster.may_close.set()
    assert await sending
    backend.close()
    far.close()


async def test_a_cancel_nobody_answers_leaves_its_backend_in_doubt(postmaster: Postmaster) -> None:
    """field-notes: CancelRequest races"""
    backend, far = backend_at(postmaster.address)
    backend.cancels += 1
    backend.cancel_ended(is_sure=await send_cancel(postgres.WIRE, backend, backend.reach, 0.1))
    assert not backend.is_fresh, "it may be hit at any time: nobody else gets it"
    backend.close()
    far.close()


async def test_a_cancel_that_never_left_leaves_no_doubt() -> None:
    backend, far = backend_at(f"127.0.0.1:{free_port()}")
    assert await send_cancel(postgres.WIRE, backend, backend.reach, 10.0)
    backend.close()
    far.close()


async def test_what_the_proxy_asks_waits_for_cancels_under_way() -> None:
    """field-notes: Cancel while proxy is setting GUCs"""
    backend, far = backend_at("127.0.0.1:1")
    backend.cancels += 1
    exchange = postgres.WIRE.reset(STARTUP, FACTS)
    asking = asyncio.create_task(backend.run(exchange, 10.0))
    for _ in range(5):
        await asyncio.sleep(0)
    with pytest.raises(BlockingIOError):
        far.recv(1)
    backend.cancel_ended()
    loop = asyncio.get_running_loop()
    assert await loop.sock_recv(far, 1000) == exchange.request
    await loop.sock_sendall(far, b"C\0\0\0\x10DISCARD ALL\0Z\0\0\0\x05I")
    await asking
    backend.close()
    far.close()
