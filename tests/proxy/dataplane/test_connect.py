from __future__ import annotations

import socket

import pytest

from proxy.dataplane.backend import connect, reach
from proxy.embedded import free_port
from proxy.errors import ConnectFailed


async def test_a_port_that_connects_to_itself_is_nobody() -> None:
    """The kernel may choose the very port that is connected to, if it is a free one of the ephemeral range; here it has
    no choice.

    field-notes: Self-connect
    """
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError, match="nobody listens"):
            await reach(sock, sock.getsockname())


async def test_a_dead_port_is_named_with_its_engine() -> None:
    port = free_port()
    with pytest.raises(ConnectFailed, match=f"engine blue at 127.0.0.1:{port} cannot be reached"):
        await connect(f"127.0.0.1:{port}", "blue")
