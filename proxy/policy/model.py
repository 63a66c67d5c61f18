"""What a policy is, and what is remembered and shown of it. The keys themselves are in `proxy.config.PolicyConfig`."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from proxy.config import PolicyConfig


class Policy(PolicyConfig, frozen=True, kw_only=True):
    """A policy of a service."""

    name: str
    service: str
    origin: Literal["config", "command"]
    """`config`: it stands in the config file and is changed there; only `enabled` may differ from what the file says."""

    @property
    def requested_by(self) -> str:
        """Who asks for its switches, as their records have it."""
        return f"{REQUESTED_BY}{self.name}"


REQUESTED_BY = "policy "
"""How the records of switches begin that a policy has asked for."""


class Code(enum.Enum):
    """Why a policy fired, or did not."""

    FIRED = "fired"
    REFUSED = "refused"
    """It fired, and the switch did not begin."""
    SWITCHED = "switched"
    """The switch that it began has completed."""
    UNDONE = "undone"
    """The switch that it began has ended in another way."""
    DISABLED = "disabled"
    NO_ENGINE = "no_engine"
    """The service has no engine of the name it goes to: it was removed, and the policy stands in the config file."""
    NO_SERVICE = "no_service"
    """It was set by command, and the config has its service no more."""
    WAITS = "waits"
    """For an operator, a failure, or its time."""
    TARGET_SERVES = "target_serves"
    TOO_LITTLE_EVIDENCE = "too_little_evidence"
    UNKNOWN = "unknown"
    """The figure is not known."""
    NOT_ABOVE = "not_above"
    """The figure is not above the threshold."""
    ENGINE_FAILED = "engine_failed"
    """The engine that serves does not answer: a failover decides, not a figure."""
    RESTS = "rests"
    """It has fired, and the figure has not been below the threshold by `hysteresis` since."""
    SWITCH_RUNS = "switch_runs"
    COOLS_DOWN = "cools_down"
    CAPPED = "capped"
    LOWER_PRIORITY = "lower_priority"
    PASSED_OVER = "passed_over"
    """An engine failed, and another one than the policy's took over."""
    MISSED = "missed"
    """Its time has passed without it."""


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """One policy at one moment, explained."""

    policy: str
    code: Code
    text: str
    """One line: `fired because …`, `did not fire because …`."""
    is_resting: bool = False
    """From now on."""

    @property
    def fires(self) -> bool:
        return self.code is Code.FIRED


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the history."""

    at: float
    """Seconds since 1970."""
    service: str
    policy: str
    code: Code
    text: str
    switch: str = ""
    """Id of the switch, if one was begun."""


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """A policy as it is shown."""

    policy: Policy
    last: Decision | None
    """What was decided last; None: not looked at yet."""
    is_resting: bool
    next_time: float | None
    """When a scheduled one fires next, seconds since 1970; None: no schedule, or not enabled."""
