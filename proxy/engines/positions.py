"""Places in a stream of changes, compared without a server: which of two standbys has more, and since when one is behind.

A position covers another if whoever has the one has all of the other. PostgreSQL: an LSN is a number. MariaDB: the last
number of each domain (`0-1-42,1-2-7`: domain, server, number). MySQL: sets of numbers of each source and tag
(`uuid:1-5:7,uuid:tag:1-3`).
"""

from __future__ import annotations

import re
from typing import Final, Literal

PositionKind = Literal["lsn", "mysql-gtid", "mariadb-gtid"]

_MARIADB: Final = re.compile(r"(\d+)-(\d+)-(\d+)")
_INTERVAL: Final = re.compile(r"(\d+)(?:-(\d+))?")


def covers(kind: PositionKind, have: str, wanted: str) -> bool:
    """Whether who is at `have` has everything up to `wanted`."""
    if kind == "lsn":
        return lsn(have) >= lsn(wanted)
    if kind == "mariadb-gtid":
        reached = {domain: int(number) for domain, _, number in _MARIADB.findall(have)}
        return all(reached.get(domain, 0) >= int(number) for domain, _, number in _MARIADB.findall(wanted))
    there = _sets(have)
    return all(
        any(low >= first and high <= last for first, last in there.get(source, ()))
        for source, intervals in _sets(wanted).items()
        for low, high in intervals
    )


def lsn(text: str) -> int:
    """`16/B374D848` as a number."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) | int(low, 16)


def _sets(text: str) -> dict[str, list[tuple[int, int]]]:
    """Numbers of each source (and tag) as intervals that neither touch nor overlap."""
    found: dict[str, list[tuple[int, int]]] = {}
    for part in text.replace("\n", "").replace(" ", "").lower().split(","):
        source, *rest = part.split(":")
        key = source
        for one in rest:
            interval = _INTERVAL.fullmatch(one)
            if interval is None:
                key = f"{source}:{one}"
                continue
            low = int(interval[1])
            found.setdefault(key, []).append((low, int(interval[2] or low)))
    return {key: _joined(intervals) for key, intervals in found.items()}


def _joined(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined
