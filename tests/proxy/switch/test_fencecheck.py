"""Which tables are compared at the fence, and how long."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proxy.engines.rows import Digest, Key, Table
from proxy.switch import datacheck
from proxy.switch.datacheck import AT_FENCE, DataCheck, DataCheckStore, TableCheck
from proxy.switch.fencecheck import CHUNK_ROWS, FenceCheck
from proxy.switch.journal import Journal


class Scripted:
    """An engine and its reader: rows by table; each question about one of `slow` is never answered."""

    name = "green"

    def __init__(
        self, rows: Mapping[str, Sequence[str]], *, keyless: Sequence[str] = (), slow: Sequence[str] = ()
    ) -> None:
        self._rows = rows
        self._keyless = keyless
        self._slow = slow
        self.limits: list[tuple[str, float]] = []
        self.is_closed = False

    def row_reader(self) -> Any:
        return self

    async def tables(self, databases: list[str]) -> list[Table]:
        return [
            Table(database=name[0], name=name[1:], key=[] if name in self._keyless else ["id"], rows=len(rows))
            for name, rows in self._rows.items()
        ]

    async def limit(self, database: str, timeout_s: float) -> None:
        self.limits.append((database, timeout_s))

    async def bound(self, table: Table, after: Key | None, rows: int) -> Key | None:
        start = int(after[0]) if after else 0
        return [str(start + rows)] if len(self._rows[table.database + table.name]) >= start + rows else None

    def _of(self, table: Table, after: Key | None, upto: Key | None) -> Sequence[str]:
        return self._rows[table.database + table.name][int(after[0]) if after else 0 : int(upto[0]) if upto else None]

    async def digest(self, table: Table, after: Key | None, upto: Key | None) -> Digest:
        if table.database + table.name in self._slow:
            await asyncio.Event().wait()
        rows = self._of(table, after, upto)
        return Digest(rows=len(rows), sum=",".join(rows))

    async def rows(self, table: Table, after: Key | None, upto: Key | None) -> dict[str, str]:
        return {f"({number})": row for number, row in enumerate(self._of(table, after, upto))}

    async def close(self) -> None:
        self.is_closed = True


async def _compared(source: Scripted, target: Scripted, seen: Mapping[str, float], budget_s: float = 5.0) -> Any:
    check = FenceCheck(source, target)  # type: ignore[arg-type]
    await check.open([], seen, budget_s)
    said = await check.compare(budget_s)
    assert source.is_closed
    assert target.is_closed
    return [one.full_name for one in check.looked_at], said


async def test_what_was_looked_at_longest_ago_comes_first_and_the_small_before_the_large() -> None:
    engine = Scripted({"xold": "ab", "xlarge": "abcd", "xsmall": "a", "yother": "ab"})
    names, said = await _compared(engine, engine, {"x.old": 5.0, "y.other": 1.0})
    # One database, that of the first table.
    assert names == ["x.small", "x.large", "x.old"]
    assert (said.tables, said.rows, said.left_out, said.different) == (3, 7, 1, [])
    assert engine.limits == [("x", 5.1), ("x", 5.1)]


async def test_it_takes_the_time_that_it_was_given_and_no_more() -> None:
    """What it was at counts as looked at, so that it does not keep all others from their turn the next time."""
    rows = {"xfirst": "a", "xslow": "ab", "xthird": "abc"}
    names, said = await _compared(Scripted(rows), Scripted(rows, slow=["xslow"]), {}, budget_s=0.05)
    assert names == ["x.first", "x.slow"]
    assert (said.tables, said.rows, said.in_part, said.left_out) == (1, 1, "x.slow", 2)
    assert said.ms >= 50


async def test_one_table_that_differs_is_enough() -> None:
    source = Scripted({"xa": "abc", "xb": "abcd", "xc": "abcde"})
    target = Scripted({"xa": "abc", "xb": "abXde", "xc": "abcde"})
    names, said = await _compared(source, target, {})
    assert names == ["x.a", "x.b"]
    assert said.different == ["x.b: (2): not alike", "x.b: (4): not in the source"]
    _, said = await _compared(source, Scripted({"xb": "abcd", "xc": "abcde"}), {})
    assert said.different == ["x.a: green has no such table"]


async def test_large_tables_are_compared_in_chunks_and_not_at_all_without_a_key() -> None:
    rows = {"xlarge": "a" * (2 * CHUNK_ROWS + 1), "xkeyless": "b" * (CHUNK_ROWS + 1), "xlittle": "c"}
    engine = Scripted(rows, keyless=["xkeyless", "xlittle"])
    names, said = await _compared(engine, engine, {})
    assert names == ["x.little", "x.keyless", "x.large"]
    assert (said.tables, said.rows, said.left_out) == (2, 2 * CHUNK_ROWS + 2, 1)


def test_comparisons_at_fences_do_not_push_out_those_that_were_asked_for(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(datacheck, "CHECKS_KEPT", 3)
    journal = Journal(tmp_path / "state.sqlite")
    try:
        store = DataCheckStore(journal.database)
        tables = [TableCheck(database="x", name="t", rows=7, is_done=True)]
        asked = DataCheck(id="asked", service="app", source="blue", target="green", state="equal", tables=tables)
        asked.began_at = asked.ended_at = 1.0
        store.save(asked)
        for number in range(5):
            at = 10.0 + number
            store.save(
                DataCheck(
                    id=f"{AT_FENCE}{number}", service="app", source="green", target="blue", began_at=at, ended_at=at,
                    tables=[TableCheck(database="x", name=f"t{number}", rows=1)],
                )
            )  # fmt: skip
        assert [one.id for one in store.all()] == ["fence-4", "fence-3", "fence-2", "asked"]
        assert store.looked_at("app", "blue", "green") == {"x.t": 1.0, "x.t2": 12.0, "x.t3": 13.0, "x.t4": 14.0}
        found = store.found("app", "blue", "green", now=5.0)
        assert found is not None
        assert (found.tables, found.rows, found.age_s) == (1, 7, 4.0)
    finally:
        journal.close()
