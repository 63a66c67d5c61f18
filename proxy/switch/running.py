"""A switch under way, with what its shell keeps for it; and the workers, as a switch sees them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from proxy import ipc
from proxy.config import ServiceConfig
from proxy.engines.engine import Engine
from proxy.switch import strategies
from proxy.switch.evidence import Evidence
from proxy.switch.fencecheck import FenceCheck
from proxy.switch.plan import SwitchRecord
from proxy.switch.run import SwitchRun, Timer
from proxy.switch.significance import NOTHING, Sample


class Crew(Protocol):
    """The workers, as a switch sees them."""

    def workers(self) -> list[int]:
        """Indexes of those that are connected."""

    def tell(self, worker: int, order: ipc.Order) -> None:
        """Write, do not wait. An order to a worker that is gone is dropped: its loss is told anyway."""

    def replace(self, worker: int, why: str) -> None:
        """End the process; its loss is told when it is gone."""

    async def figures(self) -> list[ipc.WorkerFigures]:
        """Of all workers that answer in time."""

    async def sessions(self, service: str | None = None) -> list[ipc.Session]:
        """Of all workers that answer in time."""


@dataclass(slots=True)
class Running:
    """A run and what the shell keeps for it."""

    record: SwitchRecord
    run: SwitchRun
    source: Engine
    target: Engine
    config: ServiceConfig
    strategy: strategies.Strategy | None = None
    window: strategies.Window | None = None
    before: Sample = NOTHING
    """What the source did in the time before the hold, where a window compares with that."""
    fence_check: FenceCheck | None = None
    """What compares rows at the fence, once it is open."""
    evidence: Evidence = field(default_factory=Evidence)
    timers: dict[Timer, asyncio.TimerHandle] = field(default_factory=dict)
    calls: set[asyncio.Task[None]] = field(default_factory=set)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
