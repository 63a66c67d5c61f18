"""What REST takes and gives that the door has no type for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from proxy.config import LogLevel, PolicyConfig, StrategyName
from proxy.control.views import SILENCE_S_MAX
from proxy.switch.agenda import AHEAD_S_MAX
from proxy.switch.plan import DRAIN_TIMEOUT_S_MAX, SwitchRecord


class SwitchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a switch is asked to do. Only the target has to be said."""

    target_engine: Annotated[str, Meta(min_length=1, max_length=63, description="Name of the engine to go to.")]
    strategy: Annotated[
        StrategyName,
        Meta(
            description="`graceful`: hold, drain, move; `immediate`: what is open is ended; `rolling`: sessions move in "
            "batches; `canary`: a share of them is compared with the rest, then all or none. The last two need engines "
            "that cannot diverge."
        ),
    ] = "graceful"
    drain_timeout_seconds: (
        Annotated[
            float,
            Meta(
                ge=0, le=DRAIN_TIMEOUT_S_MAX, description="How long open transactions may go on; default: the config's."
            ),
        ]
        | None
    ) = None
    on_drain_expired: (
        Annotated[
            Literal["abort", "terminate", "leave"],
            Meta(
                description="`abort` undoes the switch, `terminate` rolls the transactions that are left back, "
                "`leave` lets them keep their backends (one server with two addresses only)."
            ),
        ]
        | None
    ) = None
    max_pending_transactions: (
        Annotated[
            int,
            Meta(ge=0, le=1_000_000, description="Do not begin with more sessions in a transaction; 0: no limit."),
        ]
        | None
    ) = None
    force_transaction_abort: Annotated[
        bool, Meta(description="Of an immediate switch: end open transactions; false: do it at once or not at all.")
    ] = True
    batch_size: Annotated[int, Meta(ge=1, le=100_000, description="Rolling: sessions that move at a time.")] | None = (
        None
    )
    interval_seconds: (
        Annotated[float, Meta(ge=0, le=3_600, description="Rolling: pause between two batches.")] | None
    ) = None
    traffic_percentage: (
        Annotated[float, Meta(ge=0.01, le=99, description="Canary: share of the sessions that tries the target.")]
        | None
    ) = None
    validation_duration_seconds: (
        Annotated[float, Meta(ge=1, le=86_400, description="Canary: how long it is compared with the rest.")] | None
    ) = None
    at: Annotated[
        str,
        Meta(
            max_length=40,
            description="Begin at that time, as of RFC 3339 with its zone: `2030-01-31T02:00:00+01:00`; empty: now.",
        ),
    ] = ""
    in_seconds: (
        Annotated[float, Meta(ge=0, le=AHEAD_S_MAX, description="Begin so long from now, in place of `at`.")] | None
    ) = None
    when_busy: (
        Annotated[
            Literal["refuse", "queue"],
            Meta(description="While another switch of the service runs; default: the config's."),
        ]
        | None
    ) = None
    force: Annotated[bool, Meta(description="Go on although a check failed, unless the check keeps data safe.")] = False
    dry_run: Annotated[bool, Meta(description="Only run the checks.")] = False
    reason: Annotated[str, Meta(max_length=500, description="Kept in the record.")] = ""


class AutomationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What shall happen when the active engine fails."""

    automatic: Annotated[bool, Meta(description="Another engine takes over by itself.")]


class FailoverOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who takes over from an active engine that is gone."""

    target_engine: Annotated[str, Meta(min_length=1, max_length=63)] | None = msgspec.field(default=None)
    """Null: the one that has most."""
    force: bool = False
    """Take one that may lack more than `lag_tolerance_ms` allows. Needs the role admin."""
    reason: Annotated[str, Meta(max_length=500)] = ""


class PolicyRequest(PolicyConfig, frozen=True, kw_only=True):
    """A policy: the keys of `[service.NAME.policy.NAME]` in the config, and its service."""

    service: Annotated[str, Meta(min_length=1, max_length=63, description="Name of a service in the config.")]


class DatabasesRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which databases of the PostgreSQL services are meant."""

    database: Annotated[
        str, Meta(max_length=63, description="The name that clients connect to; empty: all of them.")
    ] = ""


class DatabaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which database of a PostgreSQL service is meant."""

    database: Annotated[str, Meta(min_length=1, max_length=63, description="The name that clients connect to.")]


class SilenceRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which alerts nobody shall be told of for a time. Empty: any."""

    duration_s: Annotated[float, Meta(ge=1, le=SILENCE_S_MAX, description="For how long, in seconds.")]
    alert: Annotated[str, Meta(max_length=63, description="Name of a rule.")] = ""
    service: Annotated[str, Meta(max_length=63, description="Name of a service.")] = ""
    engine: Annotated[str, Meta(max_length=63, description="Name of an engine.")] = ""
    reason: Annotated[str, Meta(max_length=500, description="Kept with it.")] = ""


class DataCheckRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be compared."""

    target_engine: Annotated[
        str, Meta(min_length=1, max_length=63, description="Engine to compare the active one with.")
    ]
    tables: Annotated[
        list[str], Meta(max_length=1_000, description="Only these, as `schema.table` or `database.table`; empty: all.")
    ] = []
    chunk_rows: Annotated[int, Meta(ge=10, le=100_000, description="Rows of one checksum.")] = 5_000
    rows_per_second: Annotated[
        float, Meta(ge=0, le=1e9, description="Most rows read in a second; 0: it only rests as long as it works.")
    ] = 0.0


class SwitchDetail(SwitchRecord, kw_only=True):
    """A switch, and its evidence report once it has ended."""

    report: dict[str, Any] | None = None


class LogSetting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The lowest level that is logged."""

    level: LogLevel
