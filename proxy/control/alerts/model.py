"""What an alert is, and what is remembered and shown of it. The keys of rules and receivers are in `proxy.config`.

The words are Prometheus' and Alertmanager's: a rule has a condition and a `for`, an alert is `inactive`, `pending`,
`firing` or resolved, a receiver gets notifications, a silence keeps them from it.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from proxy.config import AlertRuleConfig, Severity


class State(enum.StrEnum):
    """Where an alert stands."""

    INACTIVE = "inactive"
    PENDING = "pending"
    """Its condition holds, not yet as long as `for_s`."""
    FIRING = "firing"
    RESOLVED = "resolved"
    """It has fired, and is over."""


class Subject(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """What an alert is about; empty where it is not about such a thing."""

    service: str = ""
    engine: str = ""
    worker: str = ""

    def __str__(self) -> str:
        parts = [f"{self.service}/{self.engine}" if self.engine else self.service]
        return " ".join([*filter(None, parts), *([f"worker {self.worker}"] if self.worker else [])])


Told = Literal["", "firing", "resolved"]

AlertKey = tuple[str, Subject]
"""Name of the rule, and what it is about."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One rule about one thing."""

    name: str
    """Name of the rule."""
    subject: Subject
    severity: Severity
    state: State = State.INACTIVE
    text: str = ""
    """What was found, one line."""
    remedy: str = ""
    """What to do about it."""
    value: float | None = None
    """Of a figure: what it was when it was last above or below; None: no figure."""
    since: float = 0.0
    """When the condition began to hold; this and the other times are seconds since 1970."""
    held_at: float = 0.0
    """When it was last seen to hold."""
    fired_at: float = 0.0
    resolved_at: float = 0.0
    told: Told = ""
    """What receivers were told last."""
    told_at: float = 0.0

    @property
    def key(self) -> AlertKey:
        return (self.name, self.subject)


class AlertView(Alert, frozen=True, kw_only=True):
    """An alert as it is shown."""

    silenced_by: int | None = None
    """Number of the silence that keeps its messages back; None: none does."""


class RuleView(AlertRuleConfig, frozen=True, kw_only=True):
    """A rule as it is shown."""

    name: str
    origin: Literal["default", "config"]
    """`default`: Turnout's own; `config`: it stands in the config file."""
    state: State
    """The worst of its alerts."""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One message to one receiver."""

    number: int
    """Rises with each one."""
    at: float
    """When it was to be sent; seconds since 1970."""
    receiver: str
    what: Literal["firing", "resolved", "test"]
    alert: Alert
    """As it was then."""
    state: Literal["waiting", "delivered", "failed", "dropped"] = "waiting"
    """`failed`: it was tried until `retry_for_s`, or refused for good. `dropped`: too many waited, or the receiver is gone."""
    tries: int = 0
    outcome: str = ""
    """What the last try came to: `HTTP 200`."""
    ended_at: float = 0.0


class ReceiverView(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver as it is shown; nothing of it is a secret."""

    name: str
    kind: str
    where: str
    """Host of the address, mail addresses, or the program."""
    waiting: int
    """Messages that are still to be delivered."""
    delivered: int
    """Since the supervisor started; so are the others."""
    failed: int
    dropped: int
    last: Delivery | None
    """The last one that ended, however."""


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """Keeps messages back for a time; alerts are shown all the same. Empty: any."""

    number: int
    alert: str = ""
    """Name of a rule."""
    service: str = ""
    engine: str = ""
    until: float
    """Seconds since 1970."""
    by: str
    reason: str = ""

    def fits(self, alert: Alert, now: float) -> bool:
        """It keeps this alert's messages back."""
        return (
            now < self.until
            and self.alert in ("", alert.name)
            and self.service in ("", alert.subject.service)
            and self.engine in ("", alert.subject.engine)
        )
