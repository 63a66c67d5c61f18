"""Which engine a client's next unit of work is for, in a service with rules (`[[service.….route]]`).

Theory of operation
-------------------
Transaction mode lends a backend for each unit of work, so there is a moment in which the work is known and the backend is
not: the client's bytes stand at the closed gate. In a service with rules the session asks here, at that moment, with those
bytes. The answer is another engine only if all of this holds; else it is the engine that serves:

- the bytes are one complete statement and nothing else (`lone_statement` of the protocol), and the session is at a boundary:
  no transaction is open, and nothing ties it to a backend;
- its text surely only reads (`reads`);
- the first rule that fits the user, the database, the application's name and the text names the engine;
- that engine is fresh: it has applied everything that was committed `lag_ms_max` ago, and everything this session has
  written (or may have written: whatever was not surely a read counts).

Freshness comes from the supervisor, which notes the position of the engine that serves again and again, each with the time
before it asked, and tells when a standby has reached it (`proxy.engines.freshness`). A standby that has reached the position
of a moment has all that any client was told to be committed before that moment, so comparing two times of one clock is
enough, and nobody waits for a standby: who would have to, reads from the engine that serves.

The unit runs with the gate closed behind it, so that nothing the client sends meanwhile follows it to that engine. In MySQL it
may have left warnings there: that backend is then put aside for the session, until its next statement, which may ask for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from protocols.wire import Startup
from proxy.config import RouteConfig, ServiceConfig
from proxy.dataplane.reads import Reads

_KEEPS: Final = frozenset({"default_transaction_isolation", "sql_log_bin"})
"""Settings of sessions that are served by the engine that serves alone: a standby knows no serializable transactions, and never
gets what is not in the binlog."""


class _Rule:
    """One rule, ready to be asked."""

    def __init__(self, config: RouteConfig) -> None:
        self.config = config
        self._pattern = re.compile(config.pattern, re.IGNORECASE) if config.pattern else None
        self._turn = 0

    def fits(self, startup: Startup, application: str, text: bytes, is_aggregate: bool) -> bool:
        config = self.config
        return (
            (not config.users or startup.user in config.users)
            and (not config.databases or startup.database in config.databases)
            and (not config.applications or application in config.applications)
            and (config.statements == "reads" or is_aggregate)
            and (self._pattern is None or self._pattern.search(text.decode(errors="replace")) is not None)
        )

    def pick(self, active: str, fresh: Mapping[str, int], since_ns: int, now_ns: int) -> str | None:
        """One of its engines that is fresh enough, in turn."""
        oldest_ns = max(since_ns, now_ns - self.config.lag_ms_max * 1_000_000)
        fitting = [name for name in self.config.to if name != active and fresh.get(name, 0) > oldest_ns]
        if not fitting:
            return None
        self._turn += 1
        return fitting[self._turn % len(fitting)]


class Router:
    """The rules of one service in one worker, and how fresh its engines are."""

    def __init__(self, config: ServiceConfig) -> None:
        self._rules = [_Rule(rule) for rule in config.route]
        functions = {name.lower() for rule in config.route for name in rule.functions}
        self._reads = Reads(config.protocol, functions)
        self._fresh: dict[str, int] = {}
        self.engines: Final = frozenset(name for rule in config.route for name in rule.to)
        """All that may be read from."""
        self.routed = 0
        """Units that went elsewhere."""

    def hear(self, fresh: dict[str, int]) -> None:
        """From the supervisor: by engine, the moment up to which it has everything; see `proxy.ipc.Fresh`."""
        self._fresh = fresh

    def choose(
        self, text: bytes, startup: Startup, application: str, active: str, wrote_ns: int, now_ns: int
    ) -> str | None:
        """Where the statement may go; None: to the engine that serves. `application`: what the client called itself at its
        login, unless a setting says so. `wrote_ns`: since when the session has written nothing."""
        if not self._fresh:
            return None
        judged = self._reads.judge(text, now_ns)
        if not judged.is_read:
            return None
        settings = {name.lower(): value for name, value in startup.parameters}
        if settings.keys() & _KEEPS:
            return None
        for rule in self._rules:
            if rule.fits(startup, settings.get("application_name", application), text, judged.is_aggregate):
                return rule.pick(active, self._fresh, wrote_ns, now_ns)
        return None

    def is_read(self, text: bytes, now_ns: int) -> bool:
        """Whether it surely only reads, wherever it goes."""
        return self._reads.judge(text, now_ns).is_read
