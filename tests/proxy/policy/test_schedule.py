"""Times of cron expressions, at changes of the clock too."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from proxy.policy.schedule import next_time

BERLIN = ZoneInfo("Europe/Berlin")


def after(text: str, expression: str, zone: str = "Europe/Berlin") -> str:
    found = next_time(expression, zone, datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp())
    assert found is not None
    return datetime.fromtimestamp(found, ZoneInfo(zone)).isoformat()


@pytest.mark.parametrize(
    ("began", "expression", "comes"),
    [
        ("2026-11-21T12:00:00", "30 2 * * *", "2026-11-22T02:30:00+01:00"),
        ("2026-11-21T12:00:00", "0 12 * * *", "2026-11-22T12:00:00+01:00"),
        ("2026-11-21T12:00:00", "*/15 * * * *", "2026-11-21T12:15:00+01:00"),
        ("2026-11-21T12:00:00", "0 4 * * MON", "2026-11-23T04:00:00+01:00"),
        # The night in which 02:00 to 03:00 is left out, and the one in which it comes twice.
        ("2027-03-28T00:00:00", "30 2 * * *", "2027-03-28T03:00:00+02:00"),
        ("2026-10-25T00:00:00", "30 2 * * *", "2026-10-25T02:30:00+02:00"),
    ],
)
def test_a_time_is_that_of_the_zone(began: str, expression: str, comes: str) -> None:
    assert after(began, expression) == comes


def test_a_time_that_comes_twice_fires_once() -> None:
    first = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN).timestamp()
    following = next_time("30 2 * * *", "Europe/Berlin", first)
    assert following == datetime(2026, 10, 26, 2, 30, tzinfo=BERLIN).timestamp()
