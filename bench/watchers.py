"""Those who watch a Turnout while `bench.control` measures it: a scrape each second, and dashboards that are open.

    python -m bench.watchers URL DASHBOARDS TOKEN

A dashboard does what the script of the real one does: it listens to the events, with which the status comes every two seconds;
every second one shows the pools, and asks for them then. Once all have had an answer, a line `ready` goes to stdout. Until it is
ended.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

import httpx

SCRAPE_S: Final = 1.0


async def _get(client: httpx.AsyncClient, path: str) -> bool:
    """False: too many ask. As the page does: it shows what it has, and asks again the next time."""
    answer = await client.get(path)
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        return False
    answer.raise_for_status()
    return True


async def _scrape(client: httpx.AsyncClient, begun: asyncio.Event) -> None:
    while True:
        if await _get(client, "/metrics"):
            begun.set()
        await asyncio.sleep(SCRAPE_S)


async def _watch(client: httpx.AsyncClient, *, with_pools: bool, begun: asyncio.Event) -> None:
    await _get(client, "/v1/status")
    async with client.stream("GET", "/v1/events?status=true", timeout=None) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line == "event: status":
                begun.set()
                if with_pools:
                    await _get(client, "/v1/pools")


async def watch(url: str, dashboards: int, token: str) -> None:
    """For ever. Raises httpx.HTTPError."""
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, trust_env=False, timeout=60.0) as client:
        begun = [asyncio.Event() for _ in range(dashboards + 1)]
        async with asyncio.TaskGroup() as group:
            group.create_task(_scrape(client, begun[-1]))
            for number in range(dashboards):
                group.create_task(_watch(client, with_pools=number % 2 == 1, begun=begun[number]))
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
