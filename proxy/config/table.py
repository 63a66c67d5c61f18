"""What every table of the config file is made of."""

from __future__ import annotations

from typing import Final

import msgspec

RELOADABLE: Final = {"reload": True}
"""`Meta(extra=RELOADABLE)`: a reload applies the key, and all that stands below it."""


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of them. The docstring below a field is its help, in the sample file and in the reference."""


class Secret(Table, frozen=True, kw_only=True):
    """A password that is not in this file: exactly one of the two."""

    env: str | None = None
    """Name of an environment variable."""
    file: str | None = None
    """Path of a file, relative to the config file; its first line, without the line's end (`users`, `hba`: the whole
    file)."""
    value: str | None = None
    """Filled when the file is loaded; not allowed in the file itself."""

    def __repr__(self) -> str:
        return "Secret(***)"
