"""What a table of ratios is asked for on the command line: rows and relays, by name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from bench.relays import PoolMode


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what is asked of every relay that can do it."""

    pool_mode: PoolMode
    query_mode: str
    clients: int
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.pool_mode}/{self.query_mode}/{self.clients}{'/tls' if self.tls else ''}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What may be asked for. Its methods are types for argparse and raise ArgumentTypeError."""

    query_modes: Sequence[str]
    relays: Sequence[str]
    clients_max: int
    takes_tls: bool = False

    def rows(self, text: str) -> list[Row]:
        """`session/simple/16,session/prepared/100/tls`."""
        return [self._row(part) for part in text.split(",") if part]

    def _row(self, text: str) -> Row:
        match text.split("/"):
            case [pool_mode, query_mode, clients, *tls] if tls == [] or (tls == ["tls"] and self.takes_tls):
                known = pool_mode in get_args(PoolMode) and query_mode in self.query_modes
                if known and clients.isdecimal() and 1 <= int(clients) <= self.clients_max:
                    mode: Any = pool_mode
                    return Row(mode, query_mode, int(clients), bool(tls))
        form = (
            f"{'|'.join(get_args(PoolMode))}/{'|'.join(self.query_modes)}/CLIENTS{'[/tls]' if self.takes_tls else ''}"
        )
        raise argparse.ArgumentTypeError(f"{text!r} is no row: {form}, at most {self.clients_max:,} clients")

    def names(self, text: str) -> list[str]:
        """Relays, in the order in which they are shown."""
        wanted = {part for part in text.split(",") if part}
        if unknown := sorted(wanted.difference(self.relays)):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: the relays are {', '.join(self.relays)}")
        return [name for name in self.relays if name in wanted]
