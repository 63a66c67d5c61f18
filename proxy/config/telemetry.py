"""The tables of the log and of traces."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from proxy.config.table import RELOADABLE, Secret, Table

LogLevel = Literal["debug", "info", "warning", "error"]


class LogConfig(Table, frozen=True, kw_only=True):
    """What is written to stderr."""

    level: Annotated[LogLevel, Meta(extra=RELOADABLE)] = "info"
    """Lowest level that is logged."""
    format: Literal["text", "json"] = "text"
    """One line per event, for people or for machines."""


class TelemetryConfig(Table, frozen=True, kw_only=True):
    """Where traces go, by OpenTelemetry's protocol (OTLP) over HTTP. See docs/tracing.md."""

    endpoint: str = ""
    """URL that takes spans, as a collector has it: `http://collector:4318/v1/traces`. Empty: there are no traces."""
    headers: Secret | None = None
    """Headers of each request, `name=value` with commas between them, as OTEL_EXPORTER_OTLP_HEADERS has them."""
    ca_file: str = ""
    """CA certificates that vouch for an https:// endpoint, relative to the config file; empty: those that Python's certifi
    has."""
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 10.0
    """Longest time for a request, in seconds, repeated tries included."""
    service_name: str = "turnout"
    """What traces call this Turnout: `service.name`."""
