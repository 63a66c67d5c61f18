"""The tables of alerts: of what people are told, who, and how."""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

from msgspec import Meta

from proxy.config.table import RELOADABLE, Secret, Table

AlertEngineFigure = Literal[
    "response_time_ms",
    "cpu_usage_percent",
    "memory_usage_percent",
    "active_connections",
    "query_rate_per_second",
    "error_rate_percent",
    "availability_percent",
]
AlertLag = Literal["replication_lag_ms", "replication_lag_bytes"]
AlertServiceFigure = Literal["sessions", "sessions_held", "clients_waiting", "running_switch_s"]
AlertEngineState = Literal["engine_down", "replication_broken", "former_primary_writes"]
AlertState = Literal["service_takes_no_writes", "automation_off", "worker_down"]
AlertEvent = Literal[
    "switch_failed", "switch_undone", "failover", "failover_impossible", "policy_refused", "data_differs"
]
AlertWhen = Literal[AlertEngineFigure, AlertLag, AlertServiceFigure, AlertEngineState, AlertState, AlertEvent]
"""What an alert is about: `proxy.control.alerts.watched` has each."""

ALERT_FIGURES: Final = frozenset(get_args(AlertEngineFigure) + get_args(AlertLag) + get_args(AlertServiceFigure))
"""Those that are numbers, and need `above` or `below`."""

ALERT_EVENTS: Final = frozenset(get_args(AlertEvent))
"""Those that happen and are over."""

ALERTS_OF_ENGINES: Final = frozenset(get_args(AlertEngineFigure) + get_args(AlertLag) + get_args(AlertEngineState))
"""Those that there is one of for each engine."""

Severity = Literal["info", "warning", "critical"]


class AlertRuleConfig(Table, frozen=True, kw_only=True):
    """Something that people are to be told of. Its name is the key; one that is called like a rule of Turnout's own takes
    its place. See docs/alerts.md."""

    when: AlertWhen
    """A figure (with `above` or `below`), a state that holds or not, or an event. docs/alerts.md has the table."""
    above: float | None = None
    """Of a figure: alert while it is above."""
    below: float | None = None
    """Of a figure: alert while it is below."""
    for_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """How long that must hold before the alert fires, in seconds; until then it is pending. An event fires at once."""
    keep_firing_for_s: Annotated[float, Meta(ge=0, le=604_800)] | None = None
    """How long it goes on firing when that does not hold any more, in seconds, so that what comes and goes is one alert.
    Default: 0, and of an event 3600."""
    severity: Severity = "warning"
    """How bad it is."""
    enabled: bool = True
    """False: it is never looked at; so is a rule of Turnout's own switched off."""
    services: list[str] = []
    """Only of these services; empty: of all."""
    engines: list[str] = []
    """Only of these engines; empty: of all."""
    of: Literal["all", "active", "others"] = "all"
    """Which engines of a service: all, the one that serves, or the others."""
    receivers: list[str] = []
    """Who is told; empty: every receiver."""


class ReceiverConfig(Table, frozen=True, kw_only=True):
    """Somebody who is told of alerts. Its name is the key."""

    kind: Literal["webhook", "slack", "email", "command"]
    """`webhook`: an HTTP POST with JSON as Prometheus' Alertmanager sends it. `slack`: one in the form of Slack's incoming
    webhooks, which Mattermost, Rocket.Chat and Discord (`/slack`) take, too. `email`: by SMTP. `command`: a program that
    gets the JSON of `webhook` on its stdin."""
    url: Secret | None = None
    """Of `webhook` and `slack`: the http:// or https:// address. It is a secret: whoever has it can write there."""
    token: Secret | None = None
    """Of `webhook`: sent as `Authorization: Bearer`."""
    server: str = ""
    """Of `email`: host:port of the mail server."""
    tls: Literal["starttls", "tls", "none"] = "starttls"
    """Of `email`: `starttls` (port 587 mostly, or 25), `tls` from the first byte on (465), or none at all."""
    ca_file: str = ""
    """CA certificates that vouch for the receiver's server, in PEM form; relative to the config file. Empty: those that
    are known to everybody."""
    user: str = ""
    """Of `email`: account at the mail server; empty: no login."""
    password: Secret | None = None
    """Of `email`: its password."""
    sender: str = ""
    """Of `email`: address that the mail comes from."""
    to: list[str] = []
    """Of `email`: addresses that it goes to."""
    command: list[str] = []
    """Of `command`: program and arguments, without a shell."""
    severities: list[Severity] = []
    """Only these; empty: all."""
    send_resolved: bool = True
    """Tell when an alert is over, too."""
    timeout_s: Annotated[float, Meta(gt=0, le=120)] = 10.0
    """How long one try may take, in seconds."""
    retry_for_s: Annotated[float, Meta(ge=0, le=86_400)] = 900.0
    """A message that cannot be delivered is tried again after a second, then after twice as long each time up to a minute,
    for so long, in seconds; then it has failed, which is shown. 0: one try."""


class AlertsConfig(Table, frozen=True, kw_only=True):
    """Of what, and how, people are told; a reload applies all of it. See docs/alerts.md."""

    defaults: Annotated[bool, Meta(extra=RELOADABLE)] = True
    """Watch for what goes wrong by Turnout's own rules, too; docs/alerts.md lists them. They are shown whether there is a
    receiver or not."""
    repeat_interval_s: Annotated[float, Meta(ge=60, le=604_800, extra=RELOADABLE)] = 14_400.0
    """An alert that goes on firing is told again after so long, in seconds."""
    rule: Annotated[dict[str, AlertRuleConfig], Meta(extra=RELOADABLE)] = {}
    """Rules of your own."""
    receiver: Annotated[dict[str, ReceiverConfig], Meta(extra=RELOADABLE)] = {}
    """Who is told, by name."""
