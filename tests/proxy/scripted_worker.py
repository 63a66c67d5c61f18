"""A worker process that speaks `proxy.ipc` and serves nobody. Options in the environment:

SCRIPTED_FAILS   what Configured.failed says
SCRIPTED_EXIT    end with this code at once
SCRIPTED_MUTE    connect, say hello, never read
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from typing import Any

from proxy import ipc

SESSION: dict[str, Any] = {
    "service": "app", "protocol": "postgresql", "user": "ann", "database": "app", "client": "127.0.0.1:5000",
    "engine": "blue", "backend_pid": 1, "standing": "serving", "in_transaction": False, "portability": "A",
    "pins": [], "requests": 1, "age_s": 1.0, "idle_s": 1.0,
}  # fmt: skip


async def talk(path: str, index: int) -> None:
    """Connect again and again, until told to quit or alone for ten seconds."""
    epochs: dict[str, int] = {}
    last_part: ipc.SessionList | None = None
    alone_since = time.monotonic()
    while time.monotonic() - alone_since < 10.0:
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        hello = ipc.Hello(version=ipc.PROTOCOL_VERSION, index=index, pid=os.getpid(), epochs=epochs, active={})
        writer.write(ipc.encode(hello))
        if os.environ.get("SCRIPTED_MUTE"):
            await asyncio.sleep(60)
        async for body in ipc.frames(reader):
            order = ipc.decode_order(body)
            match order:
                case ipc.Configure():
                    epochs = order.epochs
                    fails = os.environ.get("SCRIPTED_FAILS", "")
                    writer.write(ipc.encode(ipc.Configured(failed=[fails] if fails else [])))
                case ipc.CollectFigures():
                    figures = ipc.WorkerFigures(request=order.request, cpu_s=0.0, rss_bytes=index, services=[])
                    writer.write(ipc.encode(figures))
                    if last_part is not None:
                        writer.write(ipc.encode(last_part))
                        last_part = None
                case ipc.ListSessions():
                    # In two parts, as a worker with many tells them; the last one once something else is asked.
                    one, two = (
                        ipc.Session(**SESSION | {"id": (index << 24) + number, "worker": index}) for number in (1, 2)
                    )
                    writer.write(ipc.encode(ipc.SessionList(request=order.request, sessions=[one], is_last=False)))
                    last_part = ipc.SessionList(request=order.request, sessions=[two])
                case ipc.CancelQuery():
                    writer.write(ipc.encode(ipc.CancelTaken(request=order.request)))
                case ipc.Quit():
                    return
                case _:
                    pass
        writer.close()
        alone_since = time.monotonic()


def main() -> int:
    """Entry of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--index", type=int, required=True)
    arguments = parser.parse_args()
    if code := os.environ.get("SCRIPTED_EXIT"):
        return int(code)
    asyncio.run(talk(arguments.socket, arguments.index))
    return 0


if __name__ == "__main__":
    sys.exit(main())
