"""The console's clients in a worker: who is meant, and one question at a time, over real socket pairs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from protocols import mysql, postgres
from protocols.errors import ProtocolViolation
from protocols.postgres.console import done
from protocols.postgres.messages import build_query, build_terminate
from proxy import ipc
from proxy.config import AuthConfig, ConsoleConfig, ServiceConfig
from proxy.dataplane.console import Console, ConsoleDesk
from proxy.dataplane.relay import Link
from tests.kit.waiting import until
from tests.proxy.control.scripted import make_config

USERS = ConsoleConfig(admin_users=["ops"], auth=AuthConfig(method="trust"))


class Worker:
    """As much of one as a desk needs."""

    def __init__(self, *services: ServiceConfig) -> None:
        wires = {"postgresql": postgres.WIRE, "mysql": mysql.WIRE}
        self.runtimes = {
            str(number): SimpleNamespace(config=service, wire=wires[service.protocol])
            for number, service in enumerate(services)
        }
        self.has_supervisor = True
        self.told: list[ipc.Fact] = []

    def emit(self, fact: ipc.Fact) -> None:
        assert self.has_supervisor
        self.told.append(fact)


class Scene:
    """One client that is in, and the far end of its connection."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.desk = ConsoleDesk(self.worker)  # type: ignore[arg-type]  # as much of a worker as it needs
        near, self.far = socket.socketpair()
        for end in (near, self.far):
            end.setblocking(False)
        self.link = Link(asyncio.get_running_loop(), near.detach())
        self.broken: list[ProtocolViolation] = []
        self.left = 0
        self.id, self.client = 7, "10.0.0.1:5000"
        self.console = Console(self.desk, self)  # type: ignore[arg-type]  # as much of a session as it needs
        self.desk.clients[self.id] = self.console
        self.link.sink = self.console.received

    def on_client_end(self) -> None:
        self.left += 1
        self.console.ended()

    on_client_left = on_client_end

    def on_violation(self, error: ProtocolViolation) -> None:
        self.broken.append(error)
        self.console.ended()

    @property
    def asked(self) -> list[str]:
        return [fact.text for fact in self.worker.told if isinstance(fact, ipc.ConsoleAsked)]

    def answer(self, question: int, data: bytes = done("SHOW")) -> None:
        self.desk.answer(ipc.ConsoleAnswer(session=self.id, question=question, data=data))

    def heard(self) -> bytes:
        try:
            return self.far.recv(1 << 20)
        except BlockingIOError:
            return b""


@pytest.fixture
async def scene() -> Any:
    one = Scene()
    yield one
    one.link.close()
    one.far.close()


def service(protocol: str = "postgresql", *databases: str) -> ServiceConfig:
    plain = make_config().service["shop"]
    return msgspec.structs.replace(plain, protocol=protocol, databases=list(databases))


def meant(*services: ServiceConfig, config: ConsoleConfig = USERS) -> Iterator[bool]:
    desk = ConsoleDesk(Worker(*services))  # type: ignore[arg-type]  # as much of a worker as it needs
    desk.reconfigure(config)
    for protocol, database in (("postgresql", "pgbouncer"), ("postgresql", "shop"), ("mysql", "pgbouncer")):
        yield desk.is_meant(protocol, database)


async def test_the_console_is_a_database_of_postgresql_ports_unless_a_service_has_it() -> None:
    assert list(meant(service("postgresql", "shop"))) == [True, False, False]
    assert list(meant(service("postgresql"))) == [True, False, False], "one that takes every name does not get this one"
    assert list(meant(service("postgresql", "pgbouncer"))) == [False, False, False]
    assert list(meant(service("mysql", "pgbouncer"), service("postgresql", "shop"))) == [True, False, False]


async def test_without_a_user_there_is_no_console() -> None:
    assert list(meant(service("postgresql", "shop"), config=ConsoleConfig())) == [False, False, False]


async def test_a_client_asks_one_thing_at_a_time(scene: Scene) -> None:
    scene.far.send(build_query(b"pause") + build_query(b"show pools"))
    await until(lambda: bool(scene.asked), "the first question")
    scene.answer(7)  # to a question of somebody before it
    assert scene.asked == ["pause"]
    assert scene.heard() == b""
    scene.answer(1)
    assert scene.asked == ["pause", "show pools"]
    scene.answer(2)
    await until(lambda: scene.heard() == 2 * done("SHOW"), "both answers")
    scene.answer(2)
    assert scene.heard() == b""


async def test_who_leaves_or_cancels_while_it_waits_is_told_of_once(scene: Scene) -> None:
    scene.far.send(build_query(b"pause"))
    await until(lambda: bool(scene.asked), "the question")
    scene.console.cancel()
    assert scene.worker.told[-1] == ipc.ConsoleStopped(session=7, question=1, has_left=False)
    scene.far.close()
    await until(lambda: scene.left == 1, "it has left")
    assert scene.worker.told[-1] == ipc.ConsoleStopped(session=7, question=1, has_left=True)
    assert len(scene.worker.told) == 3
    scene.answer(1)


async def test_a_goodbye_ends_it(scene: Scene) -> None:
    scene.far.send(build_terminate())
    await until(lambda: scene.left == 1, "it has left")
    assert scene.worker.told == []


async def test_without_a_supervisor_it_is_told_so_however_much_it_asks(scene: Scene) -> None:
    scene.worker.has_supervisor = False
    scene.far.send(600 * build_query(b"x"))
    told = bytearray()

    def is_told() -> bool:
        told.extend(scene.heard())
        return told.count(b"the supervisor of this proxy is away") == 600

    await until(is_told, "600 answers")
    scene.worker.has_supervisor = True
    scene.far.send(build_query(b"show state"))
    await until(lambda: scene.asked == ["show state"], "it may go on")
    scene.desk.lose_supervisor()
    await until(lambda: b"is away" in scene.heard(), "what was open is answered, too")


async def test_who_does_not_read_its_answer_is_asked_for_nothing_more(scene: Scene) -> None:
    scene.far.send(build_query(b"show clients") + build_query(b"show clients"))
    await until(lambda: bool(scene.asked), "the first question")
    scene.answer(1, bytes(8 << 20))
    assert scene.link.unsent_bytes > 0
    assert len(scene.asked) == 1
    read = 0

    def is_read() -> bool:
        nonlocal read
        read += len(scene.heard())
        return read == 8 << 20

    await until(is_read, "the answer is read")
    await until(lambda: len(scene.asked) == 2, "the next question")


async def test_nonsense_ends_it(scene: Scene) -> None:
    scene.far.send(b"?\0\0\0\x04")
    await until(lambda: bool(scene.broken), "a violation")
