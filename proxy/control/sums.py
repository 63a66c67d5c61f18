"""What all workers count, as one: counters that never go down although workers come and go.

A worker that is replaced begins at zero. What its predecessor had counted, as far as somebody has asked it, is kept and added
from then on; what it counted after that is lost with it. A worker that does not answer in time is counted as it was last seen.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from proxy import ipc

_GAUGES = ("sessions", "held", "pools", "pinned", "grades", "prepared_statements")
"""What goes with the worker."""

T = TypeVar("T", bound=msgspec.Struct)


class Sums:
    """One for the life of a supervisor."""

    def __init__(self) -> None:
        self._seen: dict[int, ipc.WorkerFigures] = {}
        self._gone: dict[str, ipc.ServiceFigures] = {}
        """Counters of processes that are no more, by service."""

    def take(self, answers: Iterable[ipc.WorkerFigures], alive: Mapping[int, int]) -> list[ipc.ServiceFigures]:
        """The sums by service, with these answers. `alive` are the worker processes there are: process id by index."""
        for answer in answers:
            self._leave(answer.worker, answer.pid)
            self._seen[answer.worker] = answer
        for index in list(self._seen):
            self._leave(index, alive.get(index, 0))
        sums = dict(self._gone)
        for worker in self._seen.values():
            for figures in worker.services:
                sums[figures.service] = added(sums.get(figures.service), figures)
        return list(sums.values())

    def _leave(self, index: int, pid: int) -> None:
        """If the process last seen with that index is another one: it is gone, and its counters are kept."""
        before = self._seen.get(index)
        if before is None or before.pid == pid:
            return
        del self._seen[index]
        for figures in before.services:
            empty = {name: type(getattr(figures, name))() for name in _GAUGES}
            kept = msgspec.structs.replace(figures, **empty)
            self._gone[figures.service] = added(self._gone.get(figures.service), kept)


def added(one: T | None, other: T) -> T:
    """Two structs of one kind, field by field: numbers add up, lists of numbers and dicts place by place, engines and pools
    by name; of texts the first counts."""
    if one is None:
        return other
    sums = {name: _sum(getattr(one, name), getattr(other, name)) for name in one.__struct_fields__}
    return msgspec.structs.replace(one, **sums)


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, int | float):
        return one + other
    if isinstance(one, str):
        return one
    if isinstance(one, dict):
        return one | {name: one.get(name, 0) + count for name, count in other.items()}
    if not one or not other:
        return one or other
    if isinstance(one[0], int):
        return [a + b for a, b in zip(one, other, strict=True)]
    named: dict[tuple[str, ...], Any] = {}
    for part in (*one, *other):
        named[_name(part)] = added(named.get(_name(part)), part)
    return list(named.values())


def _name(part: ipc.EngineFigures | ipc.DatabaseFigures | ipc.PoolFigures) -> tuple[str, ...]:
    if isinstance(part, ipc.EngineFigures):
        return (part.engine,)
    if isinstance(part, ipc.DatabaseFigures):
        return (part.database,)
    return (part.engine, part.database, part.user)


def sum_figures(workers: list[ipc.WorkerFigures]) -> dict[str, ipc.ServiceFigures]:
    """What all workers count, by service."""
    sums: dict[str, ipc.ServiceFigures] = {}
    for worker in workers:
        for figures in worker.services:
            sums[figures.service] = added(sums.get(figures.service), figures)
    return sums
