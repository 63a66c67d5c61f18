"""Throwaway real servers on loopback, for the demo and for tests: PostgreSQL, MariaDB, MySQL, alone or as a replicating
pair, and a Turnout before them. Nothing of the proxy uses them.

A server object keeps no connection and belongs to no event loop; all its waiting is `await`, with a deadline.
"""

from __future__ import annotations

from proxy.embedded.mysql import MariaDBPair, MariaDBServer, MySQLPair, MySQLServer
from proxy.embedded.postgres import PostgresPair, PostgresServer
from proxy.embedded.process import BinaryMissing, ServerFailed, Workspace, free_port
from proxy.embedded.turnout import Setup, Turnout

__all__ = [
    "BinaryMissing",
    "MariaDBPair",
    "MariaDBServer",
    "MySQLPair",
    "MySQLServer",
    "PostgresPair",
    "PostgresServer",
    "ServerFailed",
    "Setup",
    "Turnout",
    "Workspace",
    "free_port",
]
