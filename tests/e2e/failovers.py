"""Waiting for failovers of a Turnout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from proxy.embedded import Turnout
from tests.kit.waiting import until

FAST: Final[Mapping[str, object]] = {"probe_interval_s": 0.1, "probe_timeout_s": 0.5, "pause_s": 0.0}
"""Keys of `[service.app.failover]`."""


async def view_of(turnout: Turnout) -> dict[str, Any]:
    """The service as the control port shows it."""
    view: dict[str, Any] = (await turnout.get("/v1/status"))["services"][0]["view"]
    return view


async def is_watched(turnout: Turnout) -> None:
    """Every engine was probed, and the active one answers."""

    async def sees() -> bool:
        view = await view_of(turnout)
        return view["failover"]["health"] == "answering" and all(one["probed_at"] for one in view["engines"])

    await until(sees, "both engines were probed")


async def ended_failover(turnout: Turnout) -> dict[str, Any]:
    """The newest failover with its report, once it has ended."""
    found: list[dict[str, Any]] = []

    async def has_ended() -> bool:
        for record in await turnout.get("/v1/switches"):
            if record["strategy"] == "failover" and record["ended_at"]:
                found.append(await turnout.get(f"/v1/switches/{record['id']}"))
                return True
        return False

    await until(has_ended, "a failover has ended", timeout_s=20.0)
    return found[0]
