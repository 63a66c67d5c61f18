"""What the demo is told, and what it answers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class DemoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The command line's options."""

    protocol: Literal["postgresql", "mysql"] = "postgresql"
    clients: int = 50
    seconds: float = 20.0
    """How long the load runs at least."""
    switches: int = 3
    pool_mode: Literal["session", "transaction"] = "session"
    workers: int = 1
    cutover_limit_ms: float = 50.0


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds."""

    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class SwitchResult(msgspec.Struct, kw_only=True):
    """One switch, by the names of the evidence report."""

    number: int
    id: str
    source: str
    target: str
    phase: str
    began_ns: int
    ended_ns: int = 0
    hold_ms: Waits = msgspec.field(default_factory=Waits)
    drain_ms: float = 0.0
    fence_ms: float = 0.0
    catchup_ms: float = 0.0
    promote_ms: float = 0.0
    cutover_ms: float = 0.0
    blackout_ms: float = 0.0
    measured_by: str = ""
    errors_visible: int = 0
    acked_lost: int = 0
    error: str = ""
    rejoined_by: str = ""
    """How the former primary came back: rewind, base backup, gtid; empty after the last switch."""
    rejoin_s: float = 0.0


class DemoResult(msgspec.Struct, kw_only=True):
    """The object of `--json`."""

    protocol: str
    engines: str
    """Version of the servers."""
    clients: int
    pool_mode: str
    workers: int
    seconds: float = 0.0
    switches: list[SwitchResult] = []
    errors_visible: int = 0
    acked_lost: int = 0
    transactions: int = 0
    reads: int = 0
    max_latency_ms: float = 0.0
    """Longest whole operation any client saw; a transfer is five round trips."""
    trouble: list[str] = []
    """Why the exit code is 1, one line each; empty if it is 0."""

    def to_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = msgspec.to_builtins(self)
        for switch in shown["switches"]:
            del switch["began_ns"], switch["ended_ns"]
        return shown
