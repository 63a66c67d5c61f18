"""Engines from the admin side. `engine_for` makes the right one; `engine.py` says what every one can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.config import ServiceConfig
from proxy.engines.engine import (
    Capacity,
    Engine,
    EngineState,
    FenceProof,
    MissingRight,
    OutsideSession,
    Position,
    Role,
)
from proxy.engines.mysql import MySqlEngine
from proxy.engines.postgres import PostgresEngine
from proxy.engines.postgres_logical import LogicalPostgresEngine
from proxy.tls import LibraryTls, library_tls

__all__ = [
    "Capacity",
    "Engine",
    "EngineState",
    "FenceProof",
    "LogicalPostgresEngine",
    "MissingRight",
    "MySqlEngine",
    "OutsideSession",
    "Position",
    "PostgresEngine",
    "Role",
    "engine_for",
    "reconfigure",
]


def engine_for(service: ServiceConfig, name: str) -> Engine:
    """The engine `name` of a service, not connected. Secrets must be resolved."""
    admin, engine = service.admin, service.engine[name]
    given: dict[str, Any] = {
        "user": admin.user,
        "password": admin.password.value if admin.password is not None else None,
        "database": admin.database,
        "tls": _tls_of(service, name),
    }
    if service.protocol == "mysql":
        return MySqlEngine(name, engine.address, **given)
    if service.replication == "logical":
        return LogicalPostgresEngine(
            name,
            engine.address,
            databases=service.databases,
            sequence_margin=service.switch.sequence_margin,
            keeps_way_back=service.reverse_replication,
            **given,
        )
    return PostgresEngine(name, engine.address, **given)


def reconfigure(engine: Engine, service: ServiceConfig) -> None:
    """After a reload: what it applies of an engine's settings is its TLS. From the next connection on."""
    engine.use_tls(_tls_of(service, engine.name))


def _tls_of(service: ServiceConfig, name: str) -> Callable[[], LibraryTls]:
    return lambda: library_tls(service.engine[name], service.protocol)
