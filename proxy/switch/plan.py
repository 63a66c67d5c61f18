"""What a switch is asked to do, and what is remembered of it.

`SwitchPlan` comes from an operator, a policy or a program; `accept` turns it into a plan that can be run or refuses it
in one line. `SwitchRecord` is what the control port shows and what the journal keeps.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

import msgspec

from proxy.config import ServiceConfig, SwitchConfig
from proxy.errors import PlanRefused
from proxy.switch.state import Phase

STRATEGIES: Final = ("graceful", "immediate", "rolling", "canary")
"""All there are."""

SHARING_STRATEGIES: Final = ("rolling", "canary")
"""Those that let both engines serve for a while."""

DRAIN_TIMEOUT_S_MAX: Final = 3_600.0

IMMEDIATE_DRAIN_S: Final = 0.05
"""The drain of an immediate switch: what is answered by then is not ended."""

DRAIN_RESERVE_S: Final = 0.5
"""Part of `hold_ms_max` (at most a quarter of it) that the drain leaves to fence, catch-up and promotion."""


class SwitchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One wish. What is None is taken from the service's config by `accept`."""

    service: str
    target: str
    source: str | None = None
    """Engine that must be active now; None: whichever is."""
    strategy: str = "graceful"
    drain_timeout_s: float | None = None
    """How long open transactions may go on, in seconds, 0 to 3600."""
    on_drain_expired: str | None = None
    """`abort`, `terminate` or `leave`."""
    max_pending_transactions: int | None = None
    """Do not begin with more sessions in a transaction than that; 0: no limit."""
    force_transaction_abort: bool = True
    """Of an immediate switch: end the sessions that are not at a boundary; false: do it at once or not at all."""
    batch_size: int | None = None
    """Of a rolling switch: sessions that move at a time, 1 to 100000."""
    interval_s: float | None = None
    """Of a rolling switch: pause between two batches, in seconds, 0 to 3600."""
    traffic_percentage: float | None = None
    """Of a canary switch: share of the sessions that tries the target, above 0 and below 100."""
    validation_duration_s: float | None = None
    """Of a canary switch: how long that share is compared with the rest, in seconds, 1 to 86400."""
    force: bool = False
    """Go on although a check that may be overridden failed. Never overrides what keeps data safe."""
    dry_run: bool = False
    """Check only."""
    at: float | None = None
    """Begin at that time, seconds since 1970; None: now."""
    when_busy: str | None = None
    """While another switch of the service runs: `refuse` or `queue`."""
    requested_by: str = ""
    reason: str = ""


class SwitchRecord(msgspec.Struct, kw_only=True):
    """One switch as it is remembered. Times of phases are microseconds since `began_at`."""

    id: str
    service: str
    source: str
    target: str
    strategy: str
    plan: SwitchPlan
    phase: Phase = Phase.PENDING
    began_at: float = 0.0
    """Seconds since 1970."""
    began_ns: int = 0
    """The same moment on the host's monotonic clock."""
    ended_at: float | None = None
    stamps: dict[str, int] = msgspec.field(default_factory=dict)
    """When each phase was entered, in µs since the beginning."""
    epoch: int = 0
    """Epoch that this switch gives to the service when it cuts over."""
    figures: dict[str, Any] = msgspec.field(default_factory=dict)
    """The measured figures, by the names of `switch.evidence.Figures`; empty until the end."""
    error: str = ""
    """Why it did not complete, in one line."""
    remedy: str = ""
    """What to do about it."""
    boot: str = ""
    """Boot of the host in which it began; see `decide` in `switch.run`."""
    recovered: bool = False
    """A supervisor that started later finished or undid it."""
    due_at: float | None = None
    """When it is to begin, seconds since 1970; None: as soon as it may."""
    is_queued: bool = False
    """It begins when the switches before it have ended."""
    goes_back_from: str = ""
    """The switch that this one takes back, because the service was worse afterwards."""

    @property
    def was_tried(self) -> bool:
        """Its checks passed, and it began."""
        return Phase.PREPARING in self.stamps or Phase.SHARING in self.stamps

    @property
    def is_waiting(self) -> bool:
        """For its time or for its turn: nothing has been done."""
        return self.phase is Phase.PENDING and (self.due_at is not None or self.is_queued)


def accept(plan: SwitchPlan, service: ServiceConfig, active: str) -> SwitchPlan:
    """The plan with every default filled in. Raises PlanRefused with a line that says what to change."""
    if plan.strategy not in STRATEGIES:
        raise PlanRefused(f"there is no strategy {plan.strategy!r}", hint=f"this version has: {', '.join(STRATEGIES)}")
    if plan.target not in service.engine:
        raise PlanRefused(
            f"service {plan.service!r} has no engine {plan.target!r}",
            hint=f"its engines are: {', '.join(sorted(service.engine))}",
        )
    if plan.target == active:
        raise PlanRefused(
            f"engine {plan.target!r} is the active one already", hint="name the engine to go to, not the one in use"
        )
    if plan.source is not None and plan.source != active:
        raise PlanRefused(
            f"the plan leaves engine {plan.source!r}, but {active!r} is active",
            hint="leave `source` out, or look at `turnout status` and plan again",
        )
    if plan.when_busy not in (None, "refuse", "queue"):
        raise PlanRefused(f"when_busy cannot be {plan.when_busy!r}", hint="refuse or queue")
    drain_timeout_s = service.switch.drain_timeout_s if plan.drain_timeout_s is None else plan.drain_timeout_s
    if not 0 <= drain_timeout_s <= DRAIN_TIMEOUT_S_MAX:
        raise PlanRefused(
            f"drain_timeout of {drain_timeout_s} s is out of range", hint=f"0 to {DRAIN_TIMEOUT_S_MAX:.0f} seconds"
        )
    if plan.max_pending_transactions is not None and plan.max_pending_transactions < 0:
        raise PlanRefused(
            f"max_pending_transactions cannot be {plan.max_pending_transactions}", hint="0 for no limit, or more"
        )
    on_drain_expired = plan.on_drain_expired or service.switch.on_drain_expired
    if plan.strategy == "immediate":
        drain_timeout_s = IMMEDIATE_DRAIN_S
        on_drain_expired = "terminate" if plan.force_transaction_abort else "abort"
    if on_drain_expired not in ("abort", "terminate", "leave"):
        raise PlanRefused(f"on_drain_expired cannot be {on_drain_expired!r}", hint="abort, terminate or leave")
    if on_drain_expired == "leave" and service.replication != "none":
        raise PlanRefused(
            f"on_drain_expired cannot be 'leave': the engines of {plan.service!r} are not one server",
            hint="abort or terminate; see `replication`",
        )
    plan = _with_sharing(plan, service.switch)
    return msgspec.structs.replace(
        plan, source=active, drain_timeout_s=drain_timeout_s, on_drain_expired=on_drain_expired
    )


_RANGES: Final = {
    "batch_size": ("rolling", 1, 100_000),
    "interval_s": ("rolling", 0, 3_600),
    "traffic_percentage": ("canary", 0.01, 99),
    "validation_duration_s": ("canary", 1, 86_400),
}
"""Fields of the strategies that let both engines serve: which one, lowest and highest value. The config has them by the
same names."""


def _with_sharing(plan: SwitchPlan, limits: SwitchConfig) -> SwitchPlan:
    """The fields of its strategy filled in. Raises PlanRefused: out of range, or of another strategy."""
    filled: dict[str, float] = {}
    for name, (strategy, lowest, highest) in _RANGES.items():
        value = getattr(plan, name)
        if strategy != plan.strategy:
            if value is not None:
                raise PlanRefused(f"{name} is for strategy {strategy!r}", hint=f"leave it out with {plan.strategy!r}")
            continue
        if value is None:
            value = getattr(limits, name)
        if not lowest <= value <= highest:
            raise PlanRefused(f"{name} of {value:g} is out of range", hint=f"{lowest:g} to {highest:g}")
        filled[name] = value
    return msgspec.structs.replace(plan, **filled)


def drain_in_force(drain_timeout_s: float, hold_ms_max: int) -> float:
    """The drain deadline, in seconds: the one asked for, or what `hold_ms_max` leaves of it."""
    hold_s = hold_ms_max / 1e3
    return min(drain_timeout_s, hold_s - min(DRAIN_RESERVE_S, hold_s / 4))


def limits_of(plan: SwitchPlan, limits: SwitchConfig) -> SwitchConfig:
    """The service's limits as the plan narrows them; for the readiness checks."""
    asked = {
        name: value
        for name in ("drain_timeout_s", "on_drain_expired", "max_pending_transactions")
        if (value := getattr(plan, name)) is not None
    }
    return msgspec.structs.replace(limits, **asked)


def new_id() -> str:
    """Name of a new switch: sorts by time, fits into a path and an argument."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
