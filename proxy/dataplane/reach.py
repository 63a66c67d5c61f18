"""How an engine's server is reached: all that opens a connection to it, but for the client's own name and password.

A backend keeps the one that opened it, for its engine may be removed while a session still has it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from protocols.wire import PackingName, Startup
from proxy.config import EngineConfig, EngineLogin, ServiceConfig
from proxy.tls import NO_ENGINE_TLS, EngineTls, engine_tls


class Reach(NamedTuple):
    """Of one engine, by the settings of one time."""

    engine: str
    """Its name."""
    address: str
    """host:port."""
    tls: EngineTls = NO_ENGINE_TLS
    packing: PackingName | None = None
    """Compression of the connection; None: none."""
    login: EngineLogin | None = None
    """One account for all clients' backends; None: each client's own."""

    def own_of(self, startup: Startup) -> Startup:
        """What a backend for a client's `startup` is opened with."""
        return startup if self.login is None else replace(startup, user=self.login.user)


def reaches_of(config: ServiceConfig) -> dict[str, Reach]:
    """Of every engine of a service, by name. Raises TlsProblem: a file of a certificate cannot be used."""
    return {name: _reach_of(name, engine, config.protocol) for name, engine in config.engine.items()}


def _reach_of(name: str, config: EngineConfig, protocol: str) -> Reach:
    return Reach(
        engine=name,
        address=config.address,
        tls=engine_tls(config, protocol),
        packing=None if config.server_compression == "none" else config.server_compression,
        login=config.login,
    )
