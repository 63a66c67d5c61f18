"""What the supervisor shows of itself: plain structs for the control faces, which must not import the supervisor."""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.engines.engine import EngineState
from proxy.engines.figures import EngineFigures
from proxy.switch.failover import Health
from proxy.switch.journal import Deposed
from proxy.switch.plan import SwitchRecord


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that subscribers are told."""

    kind: str
    """switch.phase, switch.progress, switch.ended, engine.changed, engine.health, engine.lost, engine.stray,
    engine.fenced, engine.unfenced, engine.reinstated, engine.added, engine.removed, service.stood, failover.impossible,
    failover.automation, worker.joined, worker.lost, config.reloaded, policy.decided, datacheck.ended,
    alert.firing, alert.resolved, alert.delivery_failed"""
    at: float
    """Seconds since 1970."""
    service: str = ""
    """Empty where no service is meant."""
    data: dict[str, Any] = {}


class EngineView(msgspec.Struct, frozen=True, kw_only=True):
    """One engine of a service, as the last probe saw it."""

    name: str
    address: str
    is_active: bool
    state: EngineState | None
    """Last probe; None: not probed yet."""
    probed_at: float
    """Seconds since 1970 of that probe; 0: never."""
    figures: EngineFigures | None = None
    """What is known of its load and health; None: not looked at yet."""
    deposed: Deposed | None = None
    """It must not take writes: it is fenced when it is seen to, until it is a standby again."""


class FailoverView(msgspec.Struct, frozen=True, kw_only=True):
    """What would happen, or happens, when the active engine of a service fails."""

    is_automatic: bool
    """Another engine would take over by itself."""
    why_not: str = ""
    """Why none would: switched off by whom, or what failed."""
    health: Health = Health.UNSEEN
    """What is thought of the active engine."""
    why: str = ""
    """What its last failed probe said; and why nobody has taken over, if it is lost."""
    may_begin_at: float = 0.0
    """After a failover the next one pauses; seconds since 1970. 0: no pause."""


class ServiceView(msgspec.Struct, frozen=True, kw_only=True):
    """One service."""

    name: str
    protocol: str
    pool_mode: str
    databases: list[str]
    active: str
    """Engine that serves."""
    epoch: int
    engines: list[EngineView]
    running: SwitchRecord | None
    """The switch under way."""
    failover: FailoverView | None = None
    waiting: list[SwitchRecord] = []
    """Switches that wait for their time or their turn, in the order in which they were asked for."""
    tally: dict[str, int] = {}
    """How its switches ended: numbers by `completed`, `aborted`, `rolled_back` and `failed`; see `switch.journal.Tally`."""
    success_rate: float | None = None
    """Share of those that completed, 0 to 1; None: there were none."""
    is_paused: bool = False
    """An operator has paused all of its databases; see `ipc.Standstill`."""
    paused: list[str] = []
    """Databases that were paused by their names."""
    disabled: list[str] = []
    """Databases that let nobody log in."""


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process."""

    index: int
    pid: int
    is_connected: bool
    is_configured: bool
    """It has the config, and its listeners are open."""
    started_at: float
    """Seconds since 1970 when this supervisor spawned or adopted it."""
    restarts: int
    """How often a worker of this index had to be replaced."""
