"""Do two engines have the same rows? On demand, while clients work; a record that can be taken up again.

Theory of operation
-------------------
Table by table, in chunks of the primary key: the source says where a chunk ends, both servers make a checksum of what lies
between (see `proxy.engines.rows`). Where these differ, the rows of that chunk are compared one by one.

Clients write meanwhile, and the target is behind. So a row counts as different only if the source has the same before and after the
target was read, `TRIES` times over more and more seconds, in which a target that follows would have caught up. A row that
changes all the time is counted as `unsettled`: nothing was shown about it.

A comparison goes slowly on purpose: after each chunk it rests as long as the chunk took, and longer where a rate is given. It rests
while a switch of the service runs, and ends if that has taken the source away. After each chunk the record is saved; a supervisor
that starts goes on behind the last one, and so does somebody who resumes what was cancelled or has failed.

A library was looked at: reladiff compares by checksums and bisection across many kinds of servers. It brings blocking drivers of its
own to a process that has drivers, knows no writes that go on meanwhile, no throttle and no resumption, which are most of the
work here; the checksums are the smaller part.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

import msgspec
import structlog

from proxy.clock import Clock
from proxy.config import ServiceConfig
from proxy.engines.engine import Engine
from proxy.engines.rows import Key, RowReader, Table
from proxy.errors import Conflict, EngineError, NotFound, ProxyError
from proxy.switch.findings import RowsCompared
from proxy.switch.journal import transaction
from proxy.switch.plan import SwitchRecord, new_id
from proxy.switch.views import Event
from proxy.tasks import cancel_and_wait, spawn

_log = structlog.get_logger("turnout.datacheck")

TRIES: Final = 5
FIRST_PAUSE_S: Final = 0.2
"""Before the second look at a difference; doubled before each further one: three seconds in all."""

DIFFERENCES_SHOWN_MAX: Final = 20
"""Keys that are named of each table; all are counted."""

WHOLE_ROWS_MAX: Final = 1_000_000
"""A table without a key that has more is not compared."""

NAMED_ROWS_MAX: Final = 200_000
"""Rows of a chunk that are read one by one. Only an engine that has many more than the other comes here: behind the last key
of the source there is no bound."""

CHECKS_KEPT: Final = 100

AT_FENCE: Final = "fence-"
"""Begin of the names of comparisons that a switch made (see `proxy.switch.fencecheck`)."""

CHECKS_TOLD_MAX: Final = 10
"""So many of the newest of a pair are looked at for a readiness report."""

REST_S_MAX: Final = 60.0
SWITCH_PAUSE_S: Final = 0.5

State = Literal["running", "equal", "different", "cancelled", "failed"]


class TableCheck(msgspec.Struct, kw_only=True):
    """How far one table has come."""

    database: str
    name: str
    rows_estimated: int = 0
    rows: int = 0
    """Compared so far."""
    chunks: int = 0
    after: Key | None = None
    """Key behind which it goes on."""
    is_done: bool = False
    different: int = 0
    """Rows that are not alike, or that only one engine has."""
    unsettled: int = 0
    """Rows that changed all the time."""
    differences: list[str] = []
    """The first of them: key and what is wrong."""
    note: str = ""
    """Why it was not compared, or not as others."""

    @property
    def full_name(self) -> str:
        return f"{self.database}.{self.name}"


class DataCheck(msgspec.Struct, kw_only=True):
    """One comparison. Times are seconds since 1970."""

    id: str
    service: str
    source: str
    target: str
    state: State = "running"
    began_at: float = 0.0
    ended_at: float | None = None
    asked_by: str = ""
    chunk_rows: int = 5_000
    rows_per_second: float = 0.0
    """Most rows of the source that are read in a second; 0: no limit but the rests."""
    only: list[str] = []
    """Tables to compare, as `schema.table` or `database.table`; empty: all."""
    tables: list[TableCheck] = []
    error: str = ""

    @property
    def verdict(self) -> State:
        """Of all tables, once they are done."""
        return "different" if any(one.different for one in self.tables) else "equal"


class DataCheckStore:
    """The records in the state file. Raises sqlite3.Error."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    def save(self, check: DataCheck) -> None:
        """Of those that were asked for, and of those that switches made, the newest are kept."""
        kind = "like" if check.id.startswith(AT_FENCE) else "not like"
        with transaction(self._db):
            self._db.execute(
                "insert or replace into datachecks values (?, ?, ?)",
                (check.id, check.began_at, msgspec.json.encode(check)),
            )
            self._db.execute(
                "delete from datachecks where id in (select id from datachecks"
                f" where id {kind} '{AT_FENCE}%' order by began_at desc limit -1 offset ?)", (CHECKS_KEPT,),
            )  # fmt: skip

    def all(self) -> list[DataCheck]:
        """Newest first."""
        rows = self._db.execute("select record from datachecks order by began_at desc")
        return [msgspec.json.decode(row[0], type=DataCheck) for row in rows]

    def get(self, check_id: str) -> DataCheck:
        """Raises NotFound."""
        row = self._db.execute("select record from datachecks where id = ?", (check_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no data check {check_id!r}", hint="`turnout datacheck --history` lists them")
        return msgspec.json.decode(row[0], type=DataCheck)

    def found(self, service: str, source: str, target: str, now: float) -> RowsCompared | None:
        """Of each table that is done the newest result; None: nothing was compared, or no check has ended."""
        pair = (service, source, target)
        ended = [
            check
            for check in self.all()
            if (check.service, check.source, check.target) == pair and check.ended_at is not None
        ][:CHECKS_TOLD_MAX]
        tables: dict[str, TableCheck] = {}
        for check in ended:
            for table in check.tables:
                if table.is_done:
                    tables.setdefault(table.full_name, table)
        if not tables:
            return None
        return RowsCompared(
            tables=len(tables),
            rows=sum(table.rows for table in tables.values()),
            different=sorted(name for name, table in tables.items() if table.different),
            unsettled=sorted(name for name, table in tables.items() if table.unsettled),
            age_s=max(0.0, now - max(check.ended_at or 0.0 for check in ended)),
        )

    def looked_at(self, service: str, one: str, other: str) -> dict[str, float]:
        """When each table of these two engines was looked at last, whichever of them was the source; seconds since 1970."""
        seen: dict[str, float] = {}
        for check in self.all():
            if check.service == service and {check.source, check.target} == {one, other} and check.ended_at is not None:
                for table in check.tables:
                    seen.setdefault(table.full_name, check.ended_at)
        return seen


class DataChecks:
    """All comparisons; one of a service at a time."""

    def __init__(
        self,
        services: Mapping[str, ServiceConfig],
        engines: Mapping[str, Mapping[str, Engine]],
        store: DataCheckStore,
        clock: Clock,
        publish: Callable[[Event], None],
        active: Callable[[str], str],
        is_switching: Callable[[str], bool],
    ) -> None:
        self._services = services
        self._engines = engines
        self._store = store
        self._clock = clock
        self._publish = publish
        self._active = active
        self._is_switching = is_switching
        self._running: dict[str, tuple[DataCheck, asyncio.Task[None]]] = {}

    # --- verbs -------------------------------------------------------------------------------------------------------

    def take_up(self) -> None:
        """Go on with what an earlier supervisor left."""
        for check in self._store.all():
            if check.state == "running" and check.service in self._services and check.service not in self._running:
                self._set_going(check)

    def start(self, check: DataCheck) -> DataCheck:
        """`id`, `source` and times are filled in. Raises NotFound, Conflict, sqlite3.Error."""
        engines = self._engines[check.service]
        source = self._active(check.service)
        if check.target not in engines:
            raise NotFound(
                f"service {check.service!r} has no engine {check.target!r}",
                hint=f"its engines are: {', '.join(sorted(engines))}",
            )
        if check.target == source:
            raise Conflict(f"{source} is the active engine", hint="name another one, to be compared with it")
        self._must_be_free(check.service)
        check = msgspec.structs.replace(check, id=new_id(), source=source, began_at=self._clock.wall(), state="running")
        self._store.save(check)
        self._set_going(check)
        return check

    def resume(self, check_id: str) -> DataCheck:
        """Go on where it was cancelled or has failed. Raises NotFound, Conflict."""
        check = self.get(check_id)
        if check.state not in ("cancelled", "failed"):
            raise Conflict(f"data check {check_id} is {check.state}", hint="start a new one")
        self._must_be_free(check.service)
        check.state, check.error, check.ended_at = "running", "", None
        self._store.save(check)
        self._set_going(check)
        return check

    async def cancel(self, check_id: str) -> DataCheck:
        """Raises NotFound, Conflict."""
        check = self.get(check_id)
        if check.state != "running":
            raise Conflict(f"data check {check_id} has ended: it is {check.state}", hint="")
        running, task = self._running.get(check.service, (None, None))
        if running is check:
            await cancel_and_wait(task)
            if check.state != "running":
                raise Conflict(f"data check {check_id} has just ended: it is {check.state}", hint="")
        # If it does not run, it was left when the state file could not be written.
        self._end(check, "cancelled")
        return check

    def get(self, check_id: str) -> DataCheck:
        """Raises NotFound."""
        for check, _ in self._running.values():
            if check.id == check_id:
                return check
        return self._store.get(check_id)

    def all(self) -> list[DataCheck]:
        """Newest first."""
        return [self.get(check.id) for check in self._store.all()]

    async def stop(self) -> None:
        """What runs is left to the next supervisor."""
        await cancel_and_wait(*(task for _, task in self._running.values()))

    # --- running -----------------------------------------------------------------------------------------------------

    def _must_be_free(self, service: str) -> None:
        if service in self._running:
            raise Conflict(
                f"data check {self._running[service][0].id} of service {service!r} runs",
                hint="wait for it, or cancel it",
            )

    def _set_going(self, check: DataCheck) -> None:
        task = spawn(self._run(check), name=f"data check {check.id}", stays=True)
        self._running[check.service] = (check, task)

    def _end(self, check: DataCheck, state: State, error: str = "") -> None:
        check.state, check.error, check.ended_at = state, error, self._clock.wall()
        self._forget(check)
        self._store.save(check)
        log = _log.info if state == "equal" else _log.warning
        log("data check ended", check=check.id, service=check.service, target=check.target, state=state, error=error)
        self._publish(ended_event(check, self._clock.wall()))

    def _forget(self, check: DataCheck) -> None:
        if check.service in self._running and self._running[check.service][0] is check:
            del self._running[check.service]

    async def _run(self, check: DataCheck) -> None:
        engines = self._engines[check.service]
        try:
            if check.source not in engines or check.target not in engines:
                raise EngineError("an engine of this comparison is not in the config any more")
            source, target = engines[check.source].row_reader(), engines[check.target].row_reader()
            try:
                await self._compare(check, source, target)
            finally:
                await asyncio.gather(source.close(), target.close())
            self._end(check, check.verdict)
        except ProxyError as error:
            self._end(check, "failed", error.text)
        except sqlite3.Error as error:
            self._forget(check)
            _log.error("the state file cannot be written", check=check.id, error=str(error))
        except Exception as error:  # noqa: BLE001  (a bug of ours; the next comparison must not wait for this one for ever)
            _log.exception("a data check failed", check=check.id)
            self._end(check, "failed", f"internal error: {error!r}")

    async def _compare(self, check: DataCheck, source: RowReader, target: RowReader) -> None:
        databases = list(self._services[check.service].databases)
        ours, theirs = await asyncio.gather(source.tables(databases), target.tables(databases))
        if check.only:
            ours = [one for one in ours if f"{one.database}.{one.name}" in check.only or one.name in check.only]
            missing = set(check.only) - {name for one in ours for name in (one.name, f"{one.database}.{one.name}")}
            if missing:
                raise EngineError(f"{check.source} has no table {', '.join(sorted(missing))}")
        there = {(one.database, one.name): one for one in theirs}
        known = {(one.database, one.name): one for one in check.tables}
        check.tables = [
            known.get((one.database, one.name))
            or TableCheck(database=one.database, name=one.name, rows_estimated=one.rows)
            for one in ours
        ]
        for table, done in zip(ours, check.tables, strict=True):
            if done.is_done:
                continue
            if (table.database, table.name) not in there:
                done.different, done.is_done, done.note = 1, True, f"{check.target} has no such table"
            elif not table.key and table.rows > WHOLE_ROWS_MAX:
                done.is_done, done.note = True, f"not compared: no primary key, and over {WHOLE_ROWS_MAX:,} rows"
            else:
                await self._compare_table(check, table, done, source, target)
            self._store.save(check)

    async def _compare_table(
        self, check: DataCheck, table: Table, done: TableCheck, source: RowReader, target: RowReader
    ) -> None:
        if not table.key:
            done.note = "no primary key that can be used: compared as a whole"
        while not done.is_done:
            await self._wait_for_switches(check)
            began_ns = self._clock.now_ns()
            upto = await source.bound(table, done.after, check.chunk_rows) if table.key else None
            rows = await self._compare_chunk(table, done, upto, source, target)
            done.rows += rows
            done.chunks += 1
            done.after, done.is_done = upto, upto is None
            self._store.save(check)
            took_s = (self._clock.now_ns() - began_ns) / 1e9
            rest_s = rows / check.rows_per_second - took_s if check.rows_per_second else 0.0
            await asyncio.sleep(min(max(took_s, rest_s), REST_S_MAX))

    async def _wait_for_switches(self, check: DataCheck) -> None:
        while True:
            if not self._is_switching(check.service):
                break
            await asyncio.sleep(SWITCH_PAUSE_S)
        if self._active(check.service) != check.source:
            raise EngineError(
                f"{check.source} is not the active engine any more: what is compared runs the other way now"
            )

    @staticmethod
    async def _compare_chunk(
        table: Table, done: TableCheck, upto: Key | None, source: RowReader, target: RowReader
    ) -> int:
        ours, theirs = await asyncio.gather(
            source.digest(table, done.after, upto), target.digest(table, done.after, upto)
        )
        if ours == theirs:
            return ours.rows
        if not table.key or max(ours.rows, theirs.rows) > NAMED_ROWS_MAX:
            await _compare_whole(table, done, upto, source, target)
            return ours.rows
        suspects: set[str] | None = None
        settled: set[str] = set()
        pause_s = FIRST_PAUSE_S
        for number in range(TRIES):
            if number:
                await asyncio.sleep(pause_s)
                pause_s *= 2
            before = await source.rows(table, done.after, upto)
            there = await target.rows(table, done.after, upto)
            after = await source.rows(table, done.after, upto)
            found = {key for key in before.keys() | there.keys() | after.keys() if after.get(key) != there.get(key)}
            settled = {key for key in found if before.get(key) == after.get(key)}
            # Who was alike once follows.
            suspects = found if suspects is None else suspects & found
            if not suspects:
                return ours.rows
        wrong = sorted((suspects or set()) & settled)
        done.unsettled += len(suspects or ()) - len(wrong)
        done.different += len(wrong)
        named = named_differences(wrong[: DIFFERENCES_SHOWN_MAX - len(done.differences)], after, there)
        done.differences = [*done.differences, *named]
        return ours.rows


def named_differences(keys: Iterable[str], ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """What is wrong with each of these rows, by the checksums of the source's and of the target's."""
    return [
        f"{key}: {'missing' if key not in theirs else 'not in the source' if key not in ours else 'not alike'}"
        for key in keys
    ]


def made_at_fence(switch: SwitchRecord, tables: list[TableCheck], at: float) -> DataCheck:
    """The comparison that a switch made, as a record of its own."""
    check = DataCheck(
        id=f"{AT_FENCE}{switch.id}", service=switch.service, source=switch.source, target=switch.target, began_at=at,
        ended_at=at, asked_by=f"switch {switch.id}", tables=tables,
    )  # fmt: skip
    check.state = check.verdict
    return check


def ended_event(check: DataCheck, at: float) -> Event:
    """That it has ended."""
    return Event(
        kind="datacheck.ended", at=at, service=check.service,
        data={
            "id": check.id, "source": check.source, "target": check.target, "state": check.state, "error": check.error,
        },
    )  # fmt: skip


async def _compare_whole(
    table: Table, done: TableCheck, upto: Key | None, source: RowReader, target: RowReader
) -> None:
    """Of a chunk whose rows are not named: the table has no key, or they are too many."""
    pause_s = FIRST_PAUSE_S
    for _ in range(TRIES - 1):
        await asyncio.sleep(pause_s)
        pause_s *= 2
        before = await source.digest(table, done.after, upto)
        there = await target.digest(table, done.after, upto)
        after = await source.digest(table, done.after, upto)
        if there == after:
            return
    if before == after:
        done.different += max(1, abs(after.rows - there.rows))
        said = f"{after.rows} rows, and {there.rows} on the other engine, or not alike"
        done.differences = [*done.differences, said][:DIFFERENCES_SHOWN_MAX]
    else:
        done.unsettled += 1
