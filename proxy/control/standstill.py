"""What operators have stopped: paused and disabled databases of the PostgreSQL services.

The rules are PgBouncer's, and so are the words of what is refused, because scripts read them. `PAUSE` without a name stops
every service and is undone by `RESUME` without one; `PAUSE name` and `RESUME name` are a pair of their own.

A standstill lives as long as the workers do, like PgBouncer's: they are told, they keep it while no supervisor is there,
and tell it to the next one. A restart of the whole Turnout, which ends the workers, forgets it.

A switch may run in a pause (PAUSE, SWITCH, RESUME is how PgBouncer's users move); a pause may not begin in a switch: both close and
open the same backends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from proxy import ipc
from proxy.config import CONSOLE_DATABASE, ServiceConfig
from proxy.errors import Conflict, NotFound

NOTHING = ipc.Standstill()


class NoSuchDatabase(NotFound):
    """No PostgreSQL service has it."""


class Place(NamedTuple):
    """What a command is about."""

    service: str
    database: str | None
    """None: all of its databases."""


class Standstills:
    """See the module. `services` gives the config in force, `tell` reaches every worker."""

    def __init__(
        self, services: Callable[[], Mapping[str, ServiceConfig]], tell: Callable[[ipc.StandStill], None]
    ) -> None:
        self._services = services
        self._tell = tell
        self._of: dict[str, ipc.Standstill] = {}

    def adopt(self, told: Iterable[Mapping[str, ipc.Standstill]]) -> None:
        """What workers of an earlier supervisor say is stopped."""
        for standstills in told:
            for service, one in standstills.items():
                before = self.of(service)
                self._of[service] = ipc.Standstill(
                    is_paused=one.is_paused or before.is_paused,
                    paused=sorted({*one.paused, *before.paused}),
                    disabled=sorted({*one.disabled, *before.disabled}),
                )

    @property
    def is_paused(self) -> bool:
        """By PAUSE without a name, which pauses every service."""
        return any(one.is_paused for one in self._of.values())

    def of(self, service: str) -> ipc.Standstill:
        """What is stopped of one service."""
        return self._of.get(service, NOTHING)

    def all(self) -> dict[str, ipc.Standstill]:
        """By service."""
        return dict(self._of)

    # --- who is meant ---------------------------------------------------------------------------------------------

    def find(self, database: str, doing: str) -> Place:
        """The place of one database. Raises NotFound, Conflict: it is the console's own."""
        rest: str | None = None
        for name, service in self._services().items():
            if service.protocol != "postgresql":
                continue
            if database in service.databases:
                return Place(name, database)
            if not service.databases:
                rest = name
        if database == CONSOLE_DATABASE:
            raise Conflict(f"cannot {doing} admin db: {database}")
        if rest is None:
            raise NoSuchDatabase(f"no such database: {database}", hint="`turnout status` and SHOW DATABASES list them")
        return Place(rest, database)

    def places(self, database: str, doing: str) -> list[Place]:
        """Of a command with a name; of one without, every PostgreSQL service."""
        if database:
            return [self.find(database, doing)]
        return [Place(name, None) for name, one in self._services().items() if one.protocol == "postgresql"]

    # --- changes --------------------------------------------------------------------------------------------------

    def check_goes_on(self) -> None:
        """Raises Conflict: all is paused already. Asked first, whatever is meant, as in PgBouncer."""
        if self.is_paused:
            raise Conflict("already suspended/paused")

    def pause(self, database: str) -> None:
        """Raises NotFound, Conflict."""
        self.check_goes_on()
        places = self.places(database, "pause")
        for place in places:
            if place.database is None:
                self._change(place.service, is_paused=True)
            else:
                self._change(place.service, paused=sorted({*self.of(place.service).paused, place.database}))

    def resume(self, database: str) -> None:
        """Raises NotFound, Conflict."""
        if not database:
            if not self.is_paused:
                raise Conflict("pooler is not paused/suspended")
            for service in list(self._of):
                self._change(service, is_paused=False)
            return
        place = self.find(database, "resume")
        paused = self.of(place.service).paused
        if database not in paused:
            raise Conflict(f"database {database} is not paused")
        self._change(place.service, paused=[name for name in paused if name != database])

    def disable(self, database: str, *, is_off: bool) -> None:
        """Let nobody log in, or let clients in again. Raises NotFound, Conflict."""
        place = self.find(database, "disable" if is_off else "enable")
        disabled = {*self.of(place.service).disabled, database}
        if not is_off:
            disabled.discard(database)
        self._change(place.service, disabled=sorted(disabled))

    def _change(self, service: str, **changes: object) -> None:
        """The one place where a standstill changes."""
        changed = self._of[service] = msgspec.structs.replace(self.of(service), **changes)
        self._tell(ipc.StandStill(service=service, standstill=changed))

    def is_still(self, places: Iterable[Place]) -> bool:
        """All of that is paused."""
        for place in places:
            one = self.of(place.service)
            if not (one.is_paused if place.database is None else one.pauses(place.database)):
                return False
        return True
