from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import httpx
import msgspec
import pytest

from proxy.config import CallerConfig, Config, ControlConfig, Secret
from proxy.control.app import ControlServer, serve_control
from proxy.control.pace import WAIT_MAX_S, Meter
from proxy.control.service import ControlService
from proxy.embedded import free_port
from proxy.embedded.certificate import write_certificate
from proxy.errors import ConfigError
from proxy.switch.views import Event
from proxy.tasks import spawn
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


# --- turns --------------------------------------------------------------------------------------------------------

COST_S = 0.001
"""Processor time."""


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of a request, before and after its wait, takes the same, and nothing may be taken at once."""
    monkeypatch.setattr("proxy.control.pace.AT_ONCE_S", 0.0)
    monkeypatch.setattr(Meter, "stop", lambda _meter, _began_s: COST_S)


async def serve_with_turns(wait_s: float) -> tuple[ControlServer, httpx.AsyncClient]:
    """Its caller, an operator, waits so long after each request."""
    caller = {"ops": CallerConfig(role="operator", token=Secret(env="X", value="ops-token-0123456789"))}
    control = ControlConfig(listen=f"127.0.0.1:{free_port()}", caller=caller, processor_share=COST_S / wait_s)
    config = msgspec.structs.replace(make_config(), control=control)
    server = await serve_control(ControlService(ScriptedSupervisor(config)), config)
    headers = {"authorization": "Bearer ops-token-0123456789"}
    return server, httpx.AsyncClient(base_url=f"http://{server.addresses[0]}", headers=headers, trust_env=False)


@pytest.mark.usefixtures("priced")
async def test_a_caller_who_takes_more_than_its_share_waits_and_is_answered() -> None:
    server, client = await serve_with_turns(wait_s=0.05)
    async with client:
        began = time.monotonic()
        for _ in range(4):
            assert (await client.get("/v1/status")).status_code == 200
        assert time.monotonic() - began >= 3 * 0.05 - 0.01
    await server.close()


class Connection:
    """One that is kept, as a browser's is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def ask(self) -> None:
        self.writer.write(
            b"GET /v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ops-token-0123456789\r\n\r\n"
        )

    async def answer(self) -> float:
        """When it came."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        await self._reader.readexactly(int(length[1]))
        return time.monotonic()


@pytest.mark.usefixtures("priced")
async def test_who_asks_now_and_then_goes_before_who_asks_all_the_time() -> None:
    server, client = await serve_with_turns(wait_s=0.1)
    host, _, port = server.addresses[0].rpartition(":")
    page, script = [Connection(*await asyncio.open_connection(host, int(port))) for _ in range(2)]
    try:
        async with asyncio.timeout(5):
            page.ask()
            await page.answer()
            for _ in range(3):
                script.ask()
                await script.answer()
            script.ask()
            # Answered at once, and behind the script's request.
            assert (await client.get("/healthz")).status_code == 200
            page.ask()
            answered = await asyncio.gather(page.answer(), script.answer())
        assert answered[0] < answered[1]
    finally:
        page.writer.close()
        script.writer.close()
        await client.aclose()
        await server.close()


@pytest.mark.usefixtures("priced")
async def test_who_would_wait_too_long_is_refused_and_who_leaves_is_forgotten_and_some_do_not_wait() -> None:
    server, client = await serve_with_turns(wait_s=0.8 * WAIT_MAX_S)
    host, _, port = server.addresses[0].rpartition(":")
    async with client:
        assert (await client.get("/v1/status")).status_code == 200
        reader, leaves = await asyncio.open_connection(host, int(port))
        leaves.write(
            b"GET /v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ops-token-0123456789\r\n\r\n"
        )
        refused = await client.get("/v1/status")
        assert refused.status_code == 429
        assert WAIT_MAX_S < int(refused.headers["retry-after"]) <= 2 * WAIT_MAX_S
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        begun = await client.post("/v1/services/shop/switch", json={"target_engine": "green"})
        assert begun.status_code == 202
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await reader.read(1)
        leaves.close()
        waits = spawn(client.get("/v1/status"), name="the place of the one who left")
        for _ in range(100):
            if not (await asyncio.wait([waits], timeout=0.2))[0]:
                break
            waits = spawn(client.get("/v1/status"), name="its place, again")
        assert not waits.done()
        await server.close()
        assert (await waits).status_code == 503


# --- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    """Key and certificate, each signed by itself: of the server, of a client it knows, of one it does not know."""
    made = {}
    for name in ("server", "client", "stranger"):
        (tmp_path / name).mkdir()
        made[name] = write_certificate(tmp_path / name)
    return made


def config_with_tls(certificates: dict[str, tuple[Path, Path]], wanted: Literal["optional", "required"]) -> Config:
    control = ControlConfig(
        listen=f"127.0.0.1:{free_port()}",
        tls_key_file=str(certificates["server"][0]),
        tls_cert_file=str(certificates["server"][1]),
        tls_ca_file=str(certificates["client"][1]),
        tls_client_cert=wanted,
        caller={
            "ops": CallerConfig(role="operator", certificate="localhost"),
            "eve": CallerConfig(role="viewer", token=Secret(env="X", value="eve-token-0123456789")),
        },
    )
    return msgspec.structs.replace(make_config(), control=control)


def https(
    server: ControlServer, certificates: dict[str, tuple[Path, Path]], shows: str | None = None
) -> httpx.AsyncClient:
    context = ssl.create_default_context(cafile=str(certificates["server"][1]))
    if shows is not None:
        key, certificate = certificates[shows]
        context.load_cert_chain(certificate, key)
    return httpx.AsyncClient(base_url=f"https://{server.addresses[0]}", verify=context, trust_env=False)


async def test_a_caller_is_known_by_its_certificate_or_by_its_token(certificates: dict[str, tuple[Path, Path]]) -> None:
    config = config_with_tls(certificates, "optional")
    supervisor = ScriptedSupervisor(config)
    server = await serve_control(ControlService(supervisor), config)
    try:
        async with https(server, certificates, "client") as client:
            begun = await client.post("/v1/services/shop/switch", json={"target_engine": "green"})
            assert begun.json()["plan"]["requested_by"].startswith("ops at ")
            page = {"origin": "https://evil.example"}
            refused = await client.post("/v1/services/shop/switch", json={"target_engine": "blue"}, headers=page)
            assert refused.status_code == 403, "a browser shows its certificate whatever page asks"
        async with https(server, certificates) as client:
            assert (await client.get("/v1/status")).status_code == 401
            headers = {"authorization": "Bearer eve-token-0123456789"}
            assert (await client.get("/v1/status", headers=headers)).status_code == 200
        with pytest.raises(httpx.TransportError):
            async with https(server, certificates, "stranger") as client:
                await client.get("/healthz")
    finally:
        await server.close()


async def test_without_a_certificate_there_is_no_connection_where_one_is_required(
    certificates: dict[str, tuple[Path, Path]],
) -> None:
    config = config_with_tls(certificates, "required")
    server = await serve_control(ControlService(ScriptedSupervisor(config)), config)
    try:
        with pytest.raises(httpx.TransportError):
            async with https(server, certificates) as client:
                await client.get("/healthz")
        with pytest.raises(httpx.TransportError):
            async with httpx.AsyncClient(base_url=f"http://{server.addresses[0]}") as client:
                await client.get("/healthz")
    finally:
        await server.close()


async def test_a_reload_reads_the_certificate_again(certificates: dict[str, tuple[Path, Path]]) -> None:
    config = config_with_tls(certificates, "optional")
    supervisor = ScriptedSupervisor(config)
    server = await serve_control(ControlService(supervisor), config)
    try:
        write_certificate(certificates["server"][1].parent)
        async with https(server, certificates) as client:
            with pytest.raises(httpx.TransportError):  # the new CA does not vouch for the old certificate
                await client.get("/healthz")
        supervisor.reload()
        async with https(server, certificates) as client:
            assert (await client.get("/healthz")).status_code == 200
    finally:
        await server.close()


# --- closing ------------------------------------------------------------------------------------------------------


async def test_the_status_comes_with_the_events_to_who_asks_for_it() -> None:
    server = await serve_control(ControlService(ScriptedSupervisor()), config_on(free_port()))
    try:
        async with httpx.AsyncClient(base_url=f"http://{server.addresses[0]}", timeout=10) as client:
            async with client.stream("GET", "/v1/events?status=true") as answer:
                lines = answer.aiter_lines()
                assert (await anext(lines)).startswith("retry:")
                assert (await anext(lines)).startswith("id:")
                assert [await anext(lines) for _ in range(2)] == ["", "event: status"]
                told = json.loads((await anext(lines)).removeprefix("data: "))
            asked = (await client.get("/v1/status")).json()
            assert {**told, "services": len(told["services"])} == {**asked, "services": len(asked["services"])}
    finally:
        await server.close()


async def test_closing_ends_the_streams_of_events() -> None:
    config = config_on(free_port())
    supervisor = ScriptedSupervisor()
    server = await serve_control(ControlService(supervisor), config)
    async with httpx.AsyncClient(base_url=f"http://{server.addresses[0]}") as client:
        async with client.stream("GET", "/v1/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            assert (await anext(lines)).startswith("retry:")
            supervisor.tell(Event(kind="engine.changed", at=1.0, service="shop"))
            assert [await anext(lines) for _ in range(4)][3] == "event: engine.changed"
            async with asyncio.timeout(1.5):
                await server.close()
                left = [line async for line in lines]
                assert left[0].startswith("data: ")
