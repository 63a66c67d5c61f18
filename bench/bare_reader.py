"""What an idle connection costs at least on uvloop: a socket, a reader, and an object. A child of `bench.idle`.

python -m bench.bare_reader PORT
"""

from __future__ import annotations

import asyncio
import socket
import sys

import uvloop


class _Client:
    """The object a reader is for."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def readable(self) -> None:
        """Nobody says anything here."""


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    clients: list[_Client] = []
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(4096)
        listener.setblocking(False)
        while True:
            sock, _ = await loop.sock_accept(listener)
            client = _Client(sock.detach())
            clients.append(client)
            loop.add_reader(client.fd, client.readable)


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
