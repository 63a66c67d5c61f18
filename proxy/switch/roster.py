"""Engines that were added or removed while Turnout ran. Kept in the state file, so that they are still so after a restart.

The config file says which engines a service has; this says what an operator has changed about it since. An engine that was
removed stays removed although the file names it, until it is added again.
"""

from __future__ import annotations

import sqlite3

import msgspec

from proxy.config import Commanded, EngineConfig


class Roster:
    """The table. Not for threads."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def commanded(self) -> Commanded:
        """All that was changed, by service and engine."""
        rows = self._database.execute("select service, name, config from engines")
        return {
            (service, name): msgspec.json.decode(data, type=EngineConfig) if data is not None else None
            for service, name, data in rows
        }

    def add(self, service: str, name: str, engine: EngineConfig) -> None:
        """Raises sqlite3.Error."""
        self._put(service, name, msgspec.json.encode(engine))

    def remove(self, service: str, name: str) -> None:
        """Raises sqlite3.Error."""
        self._put(service, name, None)

    def _put(self, service: str, name: str, data: bytes | None) -> None:
        self._database.execute(
            "insert into engines values (?, ?, ?) on conflict (service, name) do update set config = excluded.config",
            (service, name, data),
        )
