"""An orchestrator on a pair of real servers, with workers that are scripted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from proxy.clock import SystemClock
from proxy.config import AdminConfig, AuthConfig, EngineConfig, Secret, ServiceConfig, SwitchConfig
from proxy.embedded import MariaDBPair, MySQLPair
from proxy.engines import engine_for
from proxy.engines.engine import Engine, Role
from proxy.switch.journal import Journal, Standing
from proxy.switch.orchestrator import Orchestrator, _boot_id
from proxy.switch.plan import SwitchPlan, SwitchRecord
from proxy.switch.state import Phase
from proxy.switch.views import Event
from tests.proxy.switch.scripted import ScriptedCrew

END_S = 20.0


class AnyPair(Protocol):
    """Of whatever servers."""

    @property
    def primary(self) -> Any: ...
    @property
    def standby(self) -> Any: ...
    def servers(self) -> tuple[Any, Any]: ...


class Stage:
    """An orchestrator on a pair; `again()` is a supervisor that comes after this one."""

    def __init__(
        self,
        pair: AnyPair,
        folder: Path,
        workers: int = 2,
        service: Mapping[str, Any] | None = None,
        more: Sequence[Any] = (),
        **switch: Any,
    ) -> None:
        """`service` are more keys of the service, `more` further servers, `switch` keys of its limits."""
        self.pair = pair
        self.folder = folder
        self.events: list[Event] = []
        protocol: Literal["postgresql", "mysql"] = (
            "mysql" if isinstance(pair, MariaDBPair | MySQLPair) else "postgresql"
        )
        self.config = ServiceConfig(
            protocol=protocol,
            active=pair.primary.name,
            admin=AdminConfig(
                user="postgres" if protocol == "postgresql" else "turnout", password=Secret(value="secret")
            ),
            auth=AuthConfig(method="trust"),
            engine={server.name: EngineConfig(address=server.address) for server in (*pair.servers(), *more)},
            switch=SwitchConfig(**switch),
            **(service or {}),
        )
        self.crew = ScriptedCrew(workers)
        self.engines: dict[str, Engine] = {name: engine_for(self.config, name) for name in self.config.engine}
        self.journal = Journal(folder / "state.sqlite")
        self.orchestrator = Orchestrator(
            {"app": self.config},
            {"app": self.engines},
            self.journal,
            self.crew,
            SystemClock(),
            self.events.append,
            workers,
        )
        self.crew.orchestrator = self.orchestrator

    @property
    def source(self) -> Engine:
        return self.engines[self.pair.primary.name]

    @property
    def target(self) -> Engine:
        return self.engines[self.pair.standby.name]

    def plan(self, **changes: object) -> SwitchPlan:
        return SwitchPlan(service="app", **{"target": self.target.name, **changes})  # type: ignore[arg-type]

    async def switch(self, **changes: object) -> SwitchRecord:
        record = self.orchestrator.begin(self.plan(**changes))
        return await self.orchestrator.wait(record.id, END_S)

    def leave(self, phase: Phase, strategy: str = "graceful") -> SwitchRecord:
        """What a supervisor leaves in the journal when it is killed in `phase`."""
        plan = self.plan(source=self.source.name, drain_timeout_s=1.0, on_drain_expired="abort")
        record = SwitchRecord(
            id="left", service="app", source=self.source.name, target=self.target.name, strategy=strategy, plan=plan,
            phase=phase, boot=_boot_id(), began_at=1.0, began_ns=1, epoch=self.orchestrator.standing("app").epoch + 1,
        )  # fmt: skip
        self.journal.begin(record)
        if phase in (Phase.CUTTING_OVER, Phase.RELEASING, Phase.VERIFYING):
            self.journal.stand("app", Standing(record.target, record.epoch))
            self.orchestrator._standings["app"] = Standing(record.target, record.epoch)
        return record

    async def writable(self) -> list[str]:
        states = [await engine.probe() for engine in self.engines.values()]
        return [state.name for state in states if state.role is Role.PRIMARY and state.is_writable]

    async def close(self) -> None:
        await self.orchestrator.stop()
        for engine in self.engines.values():
            await engine.close()
        self.journal.close()
