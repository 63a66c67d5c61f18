"""Who may do what: three roles, and somebody who has one."""

from __future__ import annotations

import enum

import msgspec

from proxy.errors import NotAllowed


class Role(enum.IntEnum):
    """What a caller may do; each role may do all that a lower one may."""

    VIEWER = 1
    """Look."""
    OPERATOR = 2
    """Switch, cancel, set policies."""
    ADMIN = 3
    """Everything: force a switch, change engines, sessions and settings of the running Turnout, read the audit log."""

    @property
    def word(self) -> str:
        """As configs and records spell it."""
        return self.name.lower()


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody at the door."""

    name: str
    """For the log, the audit log and the record of a switch: who, and from where."""
    role: Role
    subject: str = ""
    """The same for all requests of one caller, from wherever they come: what rates and idempotency keys count by."""


def require(who: Caller, role: Role, what: str = "do this") -> None:
    """Raises NotAllowed."""
    if who.role < role:
        raise NotAllowed(
            f"{who.name} may not {what}", hint=f"it needs the role {role.word}, and this caller is {who.role.word}"
        )
