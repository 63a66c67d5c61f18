"""Memory of an idle client: what a thousand of them add to the relay's own memory, Turnout and PgBouncer.

    .venv/bin/python -m bench.memory [--clients 1000] [--json]

Transaction mode, so that an idle client has no backend. Every client has logged in and asked one query. What is
counted is memory private to the process that moves the bytes (smaps_rollup), not the kernel's socket buffers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import sys
from contextlib import AsyncExitStack

from bench import relays
from bench.relays import Relay, resident_bytes
from proxy.embedded import ServerFailed, Workspace
from proxy.embedded.postgres import SUPERUSER

_PROTOCOL_3_0 = 196_608


class Client:
    """The least that is a PostgreSQL client: log in without a password, ask, stay."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def log_in(cls, port: int) -> Client:
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        body = struct.pack("!i", _PROTOCOL_3_0) + f"user\0{SUPERUSER}\0database\0postgres\0\0".encode()
        client._writer.write(struct.pack("!i", len(body) + 4) + body)
        await client._until_ready()
        return client

    async def ask(self) -> None:
        body = b"select 1\0"
        self._writer.write(b"Q" + struct.pack("!i", len(body) + 4) + body)
        await self._until_ready()

    async def _until_ready(self) -> None:
        """Read up to ReadyForQuery. Raises ServerFailed for an error."""
        while True:
            tag, size = struct.unpack("!ci", await self._reader.readexactly(5))
            body = await self._reader.readexactly(size - 4)
            if tag == b"E":
                raise ServerFailed(f"refused: {body.replace(bytes(1), b' ').decode(errors='replace')}")
            if tag == b"Z":
                return

    def close(self) -> None:
        self._writer.close()


async def measure(relay: Relay, clients: int) -> dict[str, object]:
    """Bytes that `clients` idle ones add, for each of them."""
    pid = relay.pids[0]
    # One before the count: what the first client makes once for all is not the clients' part.
    connected = [await Client.log_in(relay.port)]
    await connected[0].ask()
    before = resident_bytes(pid)
    for _ in range(clients):
        client = await Client.log_in(relay.port)
        await client.ask()
        connected.append(client)
    after = resident_bytes(pid)
    for client in connected:
        client.close()
    return {
        "relay": relay.name,
        "clients": clients,
        "bytes_per_client": round((after - before) / clients),
        "bytes_before": before,
    }


async def run(clients: int) -> list[dict[str, object]]:
    """Both relays, one after the other."""
    async with AsyncExitStack() as stack:
        workspace = stack.enter_context(Workspace("turnout-bench-"))
        engine = await stack.enter_async_context(relays.server(workspace))
        return [
            await measure(await stack.enter_async_context(start(workspace, engine, relays.Way("transaction"))), clients)
            for start in (relays.turnout, relays.pgbouncer)
        ]


def main() -> int:
    """The program. Exit code 1 if something could not be measured."""
    parser = argparse.ArgumentParser(prog="bench.memory", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    args = parser.parse_args()
    relays.allow_many_descriptors()
    try:
        records = asyncio.run(run(args.clients))
    except ServerFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(records, indent=2))
    else:
        for one in records:
            print(f"{one['relay']:<10} {one['bytes_per_client']:>8,} bytes for each of {one['clients']:,} idle clients")
    return 0


if __name__ == "__main__":
    sys.exit(main())
