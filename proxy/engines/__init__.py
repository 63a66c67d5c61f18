"""Engines from the admin side. `engine_for` makes the right one; `engine.py` says what every one can do."""

from __future__ import annotations

from protocols.wire import ProtocolName
from proxy.config import AdminConfig, EngineConfig
from proxy.engines.engine import (
    Capacity,
    Engine,
    EngineFigures,
    EngineState,
    FenceProof,
    MissingRight,
    OutsideSession,
    Position,
    Role,
)
from proxy.engines.mysql import MySqlEngine
from proxy.engines.postgres import PostgresEngine
from proxy.tls import library_tls

__all__ = [
    "Capacity",
    "Engine",
    "EngineFigures",
    "EngineState",
    "FenceProof",
    "MissingRight",
    "MySqlEngine",
    "OutsideSession",
    "Position",
    "PostgresEngine",
    "Role",
    "engine_for",
]


def engine_for(protocol: ProtocolName, name: str, engine: EngineConfig, admin: AdminConfig) -> Engine:
    """The engine `name` of a service, not connected. Secrets must be resolved."""
    password = admin.password.value if admin.password is not None else None
    if protocol == "mysql":
        return MySqlEngine(
            name,
            engine.address,
            user=admin.user,
            password=password,
            database=admin.database,
            tls=lambda: library_tls(engine, protocol),
        )
    return PostgresEngine(
        name,
        engine.address,
        user=admin.user,
        password=password,
        database=admin.database,
        tls=lambda: library_tls(engine, protocol),
    )
