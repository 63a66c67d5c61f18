"""What all that is shown has in common: the console, tables, and how times, sizes and counts are written."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import IO, Any, Final, Literal

from rich.console import Console
from rich.table import Table

Json = Mapping[str, Any]

PIPE_WIDTH: Final = 160
"""Columns where the output is no terminal and COLUMNS does not say."""


def console(stream: IO[str] | None = None) -> Console:
    """A console on stdout or `stream` that takes every string as it is: names of users may look like markup."""
    stream = stream or sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width, soft_wrap=False)


def new_table(*columns: str, right: Iterable[str] = (), whole: Iterable[str] = ()) -> Table:
    """`right`: columns of numbers; `whole`: those that others make room for, so that they stay on one line."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    return table


def moment(seconds: float | None) -> str:
    """A point in time as local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def span(seconds: float) -> str:
    """12 s, 3 min, 5 h, 2 d."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def amount(size: float | None) -> str:
    """512 B, 3.4 MB."""
    if size is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1_000
    return f"{size:.1f} TB"


def counted(number: int, thing: str) -> str:
    """1 session, 2,000 sessions."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def ms(value: float | None) -> str:
    """Milliseconds with one decimal."""
    return "-" if value is None else f"{value:.1f}"
