"""Workers that answer at once, without processes or clients: for the orchestrator alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from proxy import ipc
from proxy.switch.orchestrator import Orchestrator


class ScriptedCrew:
    """Fulfils `Crew`. Answers each order on the next turn of the loop, unless its type is in `silent`."""

    def __init__(self, workers: int = 2) -> None:
        self.indexes = list(range(workers))
        self.orders: list[tuple[int, ipc.Order]] = []
        self.silent: set[type[ipc.Message]] = set()
        self.replaced: list[int] = []
        self.orchestrator: Orchestrator | None = None
        self.on_order: Callable[[int, ipc.Order], None] = lambda worker, order: None

    def workers(self) -> list[int]:
        return list(self.indexes)

    def told(self, kind: type[ipc.Message]) -> list[int]:
        """Workers that got an order of this type, in the order of telling."""
        return [worker for worker, order in self.orders if isinstance(order, kind)]

    def tell(self, worker: int, order: ipc.Order) -> None:
        self.orders.append((worker, order))
        self.on_order(worker, order)
        if type(order) not in self.silent:
            asyncio.get_running_loop().call_soon(self._answer, worker, order)

    def replace(self, worker: int, why: str) -> None:
        self.replaced.append(worker)
        self.indexes.remove(worker)
        assert self.orchestrator is not None
        asyncio.get_running_loop().call_soon(self.orchestrator.worker_lost, worker)

    async def figures(self) -> list[ipc.WorkerFigures]:
        return [ipc.WorkerFigures(request=0, cpu_s=0.0, rss_bytes=0, services=[]) for _ in self.indexes]

    async def sessions(self, service: str | None = None) -> list[ipc.Session]:
        return []

    def _answer(self, worker: int, order: ipc.Order) -> None:
        assert self.orchestrator is not None
        now = time.monotonic_ns()
        fact: ipc.Fact
        match order:
            case ipc.Prepare():
                fact = ipc.Prepared(switch=order.switch, service=order.service, sessions=1)
            case ipc.StopOpening():
                fact = ipc.OpeningStopped(switch=order.switch, service=order.service)
            case ipc.Hold() | ipc.Abandon():
                fact = ipc.AllHeld(
                    switch=order.switch, service=order.service, held=1, hold_began_ns=now, last_boundary_ns=now
                )
            case ipc.Retarget():
                fact = ipc.Retargeted(switch=order.switch, service=order.service, epoch=order.epoch, sessions=1)
            case ipc.Release():
                fact = ipc.Released(
                    switch=order.switch, service=order.service, sessions=1, first_request_ns=0, waits_us=[]
                )
            case _:
                return
        self.orchestrator.worker_said(worker, fact)
