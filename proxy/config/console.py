"""The table of PgBouncer's admin console."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from proxy.config.control import RoleName
from proxy.config.engines import AdminConfig
from proxy.config.service import AuthConfig, ServiceConfig
from proxy.config.table import RELOADABLE, Table

CONSOLE_DATABASE: Final = "pgbouncer"
"""Whoever asks a PostgreSQL port for this database wants the admin console."""


class ConsoleConfig(Table, frozen=True, kw_only=True):
    """PgBouncer's admin console: the database `pgbouncer` of every PostgreSQL port. A service that has a database of that name
    keeps it. With none of the three lists there is no console."""

    admin_users: Annotated[list[str], Meta(extra=RELOADABLE)] = []
    """Users who may do everything there: the role admin of the control port."""
    operator_users: Annotated[list[str], Meta(extra=RELOADABLE)] = []
    """Users who may also PAUSE, RESUME, RECONNECT, WAIT_CLOSE, SWITCH and CANCEL: the role operator. PgBouncer has no such list."""
    stats_users: Annotated[list[str], Meta(extra=RELOADABLE)] = []
    """Users who may look: the role viewer."""
    auth: Annotated[AuthConfig | None, Meta(extra=RELOADABLE)] = None
    """How they log in, in the form of a service's `auth`: methods of PostgreSQL, and users in a file. No engine is asked."""

    @property
    def is_on(self) -> bool:
        """Somebody may come in."""
        return bool(self.admin_users or self.operator_users or self.stats_users)

    def role_of(self, user: str) -> RoleName | None:
        """What a user may do there; None: nothing, not even come in."""
        if user in self.admin_users:
            return "admin"
        if user in self.operator_users:
            return "operator"
        return "viewer" if user in self.stats_users else None

    def as_service(self) -> ServiceConfig | None:
        """A service without engines, by whose rules the console's clients log in; None: there is no console."""
        if not self.is_on or self.auth is None:
            return None
        return ServiceConfig(protocol="postgresql", active="", admin=AdminConfig(user=""), auth=self.auth, engine={})
