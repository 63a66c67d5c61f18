"""Those who watch a Turnout while `bench.control` measures it: a scrape each second, and dashboards that are open.

    python -m bench.watchers URL DASHBOARDS TOKEN

A dashboard does what the script of the real one does: it listens to the events and asks for the status every two seconds; every
second one shows the pools besides. Once all have had an answer, a line `ready` goes to stdout. Until it is ended.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

import httpx

POLL_S: Final = 2.0
SCRAPE_S: Final = 1.0


async def _listen(client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/v1/events", timeout=None) as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_lines():
            pass


async def _ask(
    client: httpx.AsyncClient, paths: list[str], every_s: float, offset_s: float, begun: asyncio.Event
) -> None:
    await asyncio.sleep(offset_s)
    while True:
        for path in paths:
            answer = await client.get(path)
            if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
                # As the page does: it shows what it has, and asks again the next time.
                continue
            answer.raise_for_status()
        begun.set()
        await asyncio.sleep(every_s)


async def watch(url: str, dashboards: int, token: str) -> None:
    """For ever. Raises httpx.HTTPError."""
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, trust_env=False, timeout=60.0) as client:
        begun = [asyncio.Event() for _ in range(dashboards + 1)]
        async with asyncio.TaskGroup() as group:
            group.create_task(_ask(client, ["/metrics"], SCRAPE_S, 0.0, begun[-1]))
            for number in range(dashboards):
                paths = ["/v1/status", "/v1/pools"] if number % 2 else ["/v1/status"]
                offset_s = POLL_S * number / dashboards
                group.create_task(_listen(client))
                group.create_task(_ask(client, paths, POLL_S, offset_s, begun[number]))
            for one in begun:
                await one.wait()
            print("ready", flush=True)


def main() -> int:
    """The program. They stand for other machines: they get what the processors have left over, and wait whenever one of
    those that are measured wants to run."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    asyncio.run(watch(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
