"""The file as a whole: the root of all tables."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from proxy.config.alerts import AlertsConfig
from proxy.config.console import ConsoleConfig
from proxy.config.control import ControlConfig
from proxy.config.listener import ListenerConfig
from proxy.config.service import ServiceConfig
from proxy.config.table import RELOADABLE, Table
from proxy.config.telemetry import LogConfig, TelemetryConfig


class Config(Table, frozen=True, kw_only=True):
    """The whole file."""

    control: ControlConfig = ControlConfig()
    """The control port."""
    console: ConsoleConfig = ConsoleConfig()
    """PgBouncer's admin console."""
    listener: list[ListenerConfig]
    """Ports for clients."""
    service: dict[str, ServiceConfig]
    """Services by name."""
    log: LogConfig = LogConfig()
    """The log."""
    alerts: AlertsConfig = AlertsConfig()
    """Of what, and how, people are told."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """Traces."""
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Worker processes; each takes its share of the clients."""
    state_file: str = "turnout.sqlite"
    """Who is active, the journal and the reports; relative to the config file."""
    runtime_dir: str = ""
    """Folder of the unix socket; empty: `turnout` below XDG_RUNTIME_DIR, or beside the state file."""
    max_client_conn: Annotated[int, Meta(ge=1, le=1_000_000, extra=RELOADABLE)] = 10_000
    """Most clients in all workers together."""
    client_login_timeout_s: Annotated[float, Meta(gt=0, le=600, extra=RELOADABLE)] = 60.0
    """Longest time a client may take to log in, in seconds."""
