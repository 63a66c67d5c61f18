from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from protocols.postgres.ledger import PostgresLedger
from protocols.wire import Startup
from proxy.dataplane.registry import Standing
from proxy.dataplane.session import Session


async def test_a_session_that_ends_before_its_backend_is_asked_is_not_a_failure() -> None:
    # The client's end and the boundary may come in one look at the descriptors: the task that asks begins after both.
    ended: Any = SimpleNamespace(
        ledger=PostgresLedger(Startup("app", "app")), has_ended=True, standing=Standing.ENDED, backend=None
    )
    await Session._settle_later(cast("Session", ended))
