"""Cron expressions in a time zone. Debian's rules: a time that a clock change leaves out comes right after it, and one that
comes twice fires once (unless it is an interval such as `*/10`)."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim

GRACE_S: Final = 60.0
"""How late a time may be kept: Turnout was busy with another switch, or is just starting."""


def next_time(expression: str, zone: str, after: float) -> float | None:
    """The first time after `after` (both in seconds since 1970); None: never. The expression has been checked."""
    began = datetime.fromtimestamp(after, ZoneInfo(zone))
    try:
        return next(CronSim(expression, began)).timestamp()
    except StopIteration:
        return None
