"""A look at rows at the fence: source and target both stand still, so that what is not alike then is different.

Clients wait meanwhile. So it takes the time that it was given and no more: tables in the order in which they were looked at
last, those never looked at before all others, the small before the large; each in chunks of its key from the first on. What
was not reached is left to the next switch, where it comes first. One difference is enough to end it.

The tables are those of one database, the one whose turn it is, for a PostgreSQL connection has one; it is opened, and the tables
are listed, before anybody is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from proxy.engines.engine import Engine
from proxy.engines.rows import Key, Table
from proxy.switch.datacheck import DIFFERENCES_SHOWN_MAX, TableCheck, named_differences

CHUNK_ROWS: Final = 1_000
"""A millisecond or a few: what can be asked for at a time. A table without a key that has more is not compared."""

LIMIT_MORE_S: Final = 0.1
"""The servers give up a question that takes that much longer than all of them may: nobody waits for it any more."""

NAMED_ROWS_MAX: Final = 2 * CHUNK_ROWS
"""Rows of a chunk that are read one by one. Behind the last key of the source the target may have any number."""


class RowsAtFence(msgspec.Struct, kw_only=True):
    """What a report says of it."""

    tables: int
    """Compared from the first row to the last."""
    rows: int
    ms: float
    different: list[str]
    """Of the table that is not alike, the first rows by their keys."""
    in_part: str = ""
    """The table that it was at when the time was over."""
    left_out: int
    """Tables that were not compared, or only in part; those of other databases among them."""


class FenceCheck:
    """One comparison of two engines: `open`, `compare`, and `close` whatever happens. The first two raise EngineError."""

    def __init__(self, source: Engine, target: Engine) -> None:
        self._target_name = target.name
        self._source = source.row_reader()
        self._target = target.row_reader()
        self._due: list[Table] = []
        self._there: set[str] = set()
        self._others = 0
        self.looked_at: list[TableCheck] = []
        """Tables that were compared or begun with."""

    async def open(self, databases: Collection[str], seen: Mapping[str, float], budget_s: float) -> None:
        """Before the sessions are held. `databases` empty: all; `seen`: when each table was looked at last, by its full
        name; `budget_s`: how long `compare` will have."""
        ours, theirs = await asyncio.gather(self._source.tables(list(databases)), self._target.tables(list(databases)))
        ours.sort(key=lambda table: (seen.get(_name(table), 0.0), table.rows))
        self._there = {_name(table) for table in theirs}
        if not ours:
            return
        database = ours[0].database
        self._due = [table for table in ours if table.database == database]
        self._others = len(ours) - len(self._due)
        limit_s = budget_s + LIMIT_MORE_S
        await asyncio.gather(self._source.limit(database, limit_s), self._target.limit(database, limit_s))

    async def compare(self, budget_s: float) -> RowsAtFence:
        """At the fence, the target caught up."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout_at(began + budget_s):
                for table in self._due:
                    done = TableCheck(database=table.database, name=table.name, rows_estimated=table.rows)
                    self.looked_at.append(done)
                    await self._compare_table(table, done)
                    if done.different:
                        break
        except TimeoutError:
            # What was reached counts.
            pass
        finally:
            await self.close()
        return self._said(1000 * (loop.time() - began))

    async def close(self) -> None:
        """Never raises."""
        await asyncio.gather(self._source.close(), self._target.close())

    async def _compare_table(self, table: Table, done: TableCheck) -> None:
        if _name(table) not in self._there:
            done.different, done.is_done, done.note = 1, True, f"{self._target_name} has no such table"
        elif not table.key and table.rows > CHUNK_ROWS:
            done.is_done, done.note = True, f"not compared: no primary key, and over {CHUNK_ROWS:,} rows"
        while not done.is_done:
            upto = await self._source.bound(table, done.after, CHUNK_ROWS) if table.key else None
            ours, theirs = await asyncio.gather(
                self._source.digest(table, done.after, upto), self._target.digest(table, done.after, upto)
            )
            done.rows += ours.rows
            done.chunks += 1
            done.is_done = upto is None or ours != theirs
            if ours != theirs:
                # The time may be over before they are named.
                done.different = max(1, abs(ours.rows - theirs.rows))
                if table.key and max(ours.rows, theirs.rows) <= NAMED_ROWS_MAX:
                    await self._name_rows(table, done, upto)
            done.after = upto

    async def _name_rows(self, table: Table, done: TableCheck, upto: Key | None) -> None:
        ours, theirs = await asyncio.gather(
            self._source.rows(table, done.after, upto), self._target.rows(table, done.after, upto)
        )
        wrong = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        done.different = max(1, len(wrong))
        done.differences = named_differences(wrong[:DIFFERENCES_SHOWN_MAX], ours, theirs)

    def _said(self, took_ms: float) -> RowsAtFence:
        whole = [one for one in self.looked_at if one.is_done and one.chunks]
        return RowsAtFence(
            tables=len(whole),
            rows=sum(one.rows for one in self.looked_at),
            ms=round(took_ms, 3),
            different=[
                f"{one.full_name}: {line}"
                for one in self.looked_at
                if one.different
                for line in one.differences or [one.note or "rows are not alike"]
            ],
            in_part=next((one.full_name for one in self.looked_at if not one.is_done), ""),
            left_out=self._others + len(self._due) - len(whole),
        )


def _name(table: Table) -> str:
    return f"{table.database}.{table.name}"
