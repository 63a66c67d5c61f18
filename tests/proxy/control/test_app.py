from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest

from proxy.config import Config, ControlConfig
from proxy.control.app import ControlServer, serve_control
from proxy.control.service import ControlService
from proxy.embedded import free_port
from proxy.errors import ConfigError
from tests.proxy.control.scripted import ScriptedSupervisor, make_config


def config_on(port: int, host: str = "127.0.0.1") -> Config:
    return msgspec.structs.replace(make_config(), control=ControlConfig(listen=f"{host}:{port}"))


@pytest.fixture
async def server() -> AsyncIterator[ControlServer]:
    one = await serve_control(ControlService(ScriptedSupervisor()), config_on(free_port()))
    yield one
    await one.close()


async def test_it_answers_as_soon_as_it_is_open(server: ControlServer) -> None:
    async with httpx.AsyncClient(base_url=f"http://{server.addresses[0]}") as client:
        answer = await client.get("/healthz")
    assert answer.status_code == 200
    assert "server" not in answer.headers


async def test_a_taken_port_is_one_line_that_says_what_to_do(server: ControlServer) -> None:
    port = int(server.addresses[0].rpartition(":")[2])
    with pytest.raises(ConfigError) as caught:
        await serve_control(ControlService(ScriptedSupervisor()), config_on(port))
    assert caught.value.text == (
        f"control port 127.0.0.1:{port}: the port is taken; is another Turnout running? "
        "Stop it, or let [control] listen name another port"
    )


async def test_an_address_of_another_machine_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen there: .*; let \[control\] listen name an address of this"):
        await serve_control(ControlService(ScriptedSupervisor()), config_on(free_port(), "192.0.2.1"))


async def test_closing_frees_the_port_at_once() -> None:
    port = free_port()
    for _ in range(2):
        server = await serve_control(ControlService(ScriptedSupervisor()), config_on(port))
        async with httpx.AsyncClient() as client:
            await client.get(f"http://127.0.0.1:{port}/healthz")
        await server.close()
        await server.close()


async def test_signals_stay_with_the_supervisor(server: ControlServer) -> None:
    import signal

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_client_that_never_finishes_its_request_disturbs_nobody(server: ControlServer) -> None:
    host, _, port = server.addresses[0].rpartition(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"GET /v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        async with asyncio.timeout(5), httpx.AsyncClient() as client:
            assert (await client.get(f"http://{server.addresses[0]}/healthz")).status_code == 200


async def test_endless_headers_end_the_connection(server: ControlServer) -> None:
    host, _, port = server.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 200_000)
    async with asyncio.timeout(5):
        assert b" 400 " in await reader.readline()
    writer.close()
