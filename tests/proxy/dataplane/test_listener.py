from __future__ import annotations

import asyncio
import os
import socket

import pytest

from proxy.dataplane.accept import accept_client
from proxy.dataplane.listener import ACCEPTS_AT_ONCE, Listener
from tests.kit.waiting import until


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_a_client_is_handed_over_as_its_relay_needs_it(host: str) -> None:
    """Non-blocking, without delay, with keep-alive, closed when another program is started; named as `host:port`."""
    came: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
    with socket.socket(socket.AF_INET6 if host == "[::1]" else socket.AF_INET) as probe:
        probe.bind((host.strip("[]"), 0))
        port = probe.getsockname()[1]
    listener = Listener(f"{host}:{port}", lambda fd, client: came.set_result((fd, client)))
    listener.open()
    try:
        with socket.create_connection((host.strip("[]"), port)) as client:
            fd, name = await asyncio.wait_for(came, 20)
            with socket.socket(fileno=fd) as taken:
                assert name == f"{host}:{client.getsockname()[1]}"
                assert taken.getpeername() == client.getsockname()
                assert not os.get_blocking(fd)
                assert not os.get_inheritable(fd)
                assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    finally:
        listener.close()


async def test_clients_that_were_not_taken_at_once_are_taken_next() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    came: list[int] = []
    listener = Listener(f"127.0.0.1:{port}", lambda fd, client: came.append(fd))
    listener.open()
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(ACCEPTS_AT_ONCE + 1)]
    try:
        await until(lambda: len(came) == len(clients), "len(came) == len(clients)")
    finally:
        listener.close()
        for fd in came:
            os.close(fd)
        for client in clients:
            client.close()


def test_nobody_waiting_is_no_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        assert accept_client(listening.fileno()) is None


def test_a_descriptor_that_is_none_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        accept_client(-1)
