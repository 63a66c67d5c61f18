"""The state file: who is active, the journal of the switches, their reports, a key. SQLite, written by the supervisor
alone. Its tables are made and upgraded here, those of others too.

How much is synced to the disk, and why
---------------------------------------
The file is in WAL mode with `synchronous = NORMAL`: a commit is one write to the log, without an fsync. What a process
has written survives its own SIGKILL, so a supervisor that dies loses no step of a switch. A power loss or a crash of
the kernel may lose the last steps. That is why a switch is synced when it begins, when it prepares (which ends with the
source's fence being armed; nobody is held yet) and when it ends, and not in between, where an fsync of some milliseconds for each step would be waited for
by held clients (measured: 26 µs for a step, 9 to 20 ms for a synced one). After a power loss in the middle, the start finds
an earlier phase of the same switch, and sees by the host's boot id that steps may be missing; the engines' own answers
(who is in recovery, who refuses writes) then decide, see `switch.run.decide`.

Times: `at_ns` is the host's monotonic clock, which starts anew at a boot; it is for reading within one record only.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from proxy.engines.engine import EngineState
from proxy.errors import NotFound, ProxyError
from proxy.switch.failover import Automation
from proxy.switch.plan import SwitchRecord
from proxy.switch.state import ENDED, Phase

SWITCHES_KEPT: Final = 1_000
"""Older ones are dropped, with their steps and reports."""

SIGHTINGS_UNSYNCED_MAX: Final = 256
"""The log would grow without end while there is no switch; so many take some 2 MB."""

_STEPS: Final[tuple[str, ...]] = (
    # 1: services, switches with their steps and reports, keys
    """
create table services (name text primary key, active text not null, epoch integer not null);
create table switches (
    id text primary key, began_at real not null, service text not null, ended integer not null, record blob not null);
create index switches_by_time on switches (began_at);
create table steps (switch text not null, at_ns integer not null, phase text not null);
create index steps_by_switch on steps (switch);
create table reports (switch text primary key, report blob not null);
create table keys (name text primary key, key blob not null);
""",
    # 2: policies that were set by command, how all policies stand, what was decided
    """
create table policies (name text primary key, policy blob not null);
create table policy_standings (name text primary key, is_enabled integer, is_resting integer not null);
create table policy_decisions (
    number integer primary key autoincrement, at real not null, acts integer not null, policy text not null,
    decision blob not null);
create index policy_decisions_by_policy on policy_decisions (policy, number);
create index policy_decisions_by_kind on policy_decisions (acts, number);
""",
    # 3: who did what through the control port, and what was answered to requests that may be repeated; engines that were
    # added and removed while running
    """
create table audit (
    id integer primary key autoincrement, at real not null, caller text not null, role text not null,
    action text not null, target text not null, outcome text not null, detail blob not null);
create trigger audit_is_never_changed before update on audit
    begin select raise(abort, 'the audit log is append-only'); end;
create trigger audit_is_never_deleted before delete on audit
    begin select raise(abort, 'the audit log is append-only'); end;
create table answers (
    caller text not null, key text not null, fingerprint blob not null, at real not null, status integer,
    headers blob, body blob, primary key (caller, key));
create index answers_by_time on answers (at);
create table engines (service text not null, name text not null, config blob, primary key (service, name));
""",
    # 4: engines that a failover left, what a service remembers of its failovers
    """
create table deposed (
    service text not null, engine text not null, deposed blob not null, primary key (service, engine));
create table automation (service text primary key, automation blob not null);
""",
    # 5: how the switches of each service ended
    """
create table tallies (
    service text not null, outcome text not null, count integer not null, primary key (service, outcome));
""",
    # 6: comparisons of rows
    """
create table datachecks (id text primary key, began_at real not null, record blob not null);
""",
    # 7: where the active engine of each service was when it was last seen
    """
create table sightings (service text primary key, sighting blob not null);
""",
    # 8: alerts that fire, messages about them, what keeps messages back
    """
create table alerts (key blob primary key, alert blob not null);
create table alert_deliveries (
    number integer primary key autoincrement, receiver text not null, state text not null, delivery blob not null);
create index alert_deliveries_by_state on alert_deliveries (state, number);
create table alert_silences (
    number integer primary key autoincrement, until real not null, silence blob not null);
""",
)
"""What makes each layout out of the one before; the number of the last one stands in the file (`user_version`). A step
that was released is never changed: a new one is added."""

LAYOUT: Final = len(_STEPS)


def upgrade(database: sqlite3.Connection, layout: int = 0) -> None:
    """Make the newest layout out of `layout`; 0: an empty file."""
    for number in range(layout, LAYOUT):
        # One transaction each: whoever is killed in the middle finds the layout before it.
        database.executescript(f"begin immediate; {_STEPS[number]} pragma user_version = {number + 1}; commit;")


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    database.execute("begin immediate")
    try:
        yield
    except BaseException:
        database.execute("rollback")
        raise
    database.execute("commit")


class StateFileError(ProxyError):
    """The state file cannot be read or written; the text names it and says what to do."""


class Standing(msgspec.Struct, frozen=True):
    """What the state file knows of a service."""

    active: str
    epoch: int


class Deposed(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that must not take writes any more: a failover left it, a switch gave its promotion up, or somebody else
    has promoted it."""

    engine: str
    switch: str
    """Empty: no switch of ours."""
    epoch: int
    """Epoch of the service since then."""
    at: float
    """Seconds since 1970."""


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """The active engine, as a probe found it."""

    engine: str
    epoch: int
    at: float
    """Seconds since 1970 when the probe began."""
    state: EngineState


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """How the switches of a service ended, since its state file was made. Dry runs, switches that a check refused or that
    never began, and those that only took another one back are not counted."""

    completed: int = 0
    aborted: int = 0
    rolled_back: int = 0
    failed: int = 0

    @property
    def success_rate(self) -> float | None:
        """Share of them that completed, 0 to 1; None: there were none."""
        all_of_them = self.completed + self.aborted + self.rolled_back + self.failed
        return round(self.completed / all_of_them, 6) if all_of_them else None


class Journal:
    """The open state file. Not for threads; every call is short and blocks (tens of microseconds; `begin` and `end`
    wait for the disk)."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises StateFileError."""
        self.path = path
        self._sightings = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=1.0)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY:
                raise StateFileError(
                    f"state file {path} is locked", hint="another Turnout uses it: stop that one, or set state_file"
                ) from error
            raise StateFileError(
                f"state file {path} cannot be read: {error}",
                hint="restore it from a copy, or move it away: Turnout then begins with `active` of the config",
            ) from error

    def _open(self) -> None:
        # Ours alone: a second supervisor on the same file is told so. Readers may copy the file when we are gone.
        self._db.execute("pragma locking_mode = exclusive")
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = normal")
        # Checkpoints sync; they are made when a switch begins and ends, not when a page count says so.
        self._db.execute("pragma wal_autocheckpoint = 0")
        layout = self._db.execute("pragma user_version").fetchone()[0]
        if layout > LAYOUT:
            raise StateFileError(
                f"state file {self.path} has layout {layout}; this version reads up to {LAYOUT}",
                hint="use the Turnout that wrote it, or move the file away",
            )
        upgrade(self._db, layout)
        for (found,) in self._db.execute("pragma quick_check"):
            if found != "ok":
                raise sqlite3.DatabaseError(found)

    @property
    def database(self) -> sqlite3.Connection:
        """For what else is kept in the file (`proxy.control.audit`, for one), in tables of its own; autocommits."""
        return self._db

    def close(self) -> None:
        """Sync and close."""
        self._sync()
        self._db.close()

    # --- services ----------------------------------------------------------------------------------------------------

    def standing(self, service: str) -> Standing | None:
        """None: the service was never served."""
        row = self._db.execute("select active, epoch from services where name = ?", (service,)).fetchone()
        return Standing(*row) if row else None

    def stand(self, service: str, standing: Standing) -> None:
        """Remember who is active."""
        with transaction(self._db):
            self._stand(service, standing)

    def _stand(self, service: str, standing: Standing) -> None:
        self._db.execute(
            "insert into services values (?, ?, ?) on conflict (name) do update set active = excluded.active, "
            "epoch = excluded.epoch",
            (service, standing.active, standing.epoch),
        )

    def deposed(self, service: str) -> dict[str, Deposed]:
        """Engines that must not take writes, by name."""
        rows = self._db.execute("select deposed from deposed where service = ?", (service,))
        found = [msgspec.json.decode(row[0], type=Deposed) for row in rows]
        return {one.engine: one for one in found}

    def depose(self, service: str, deposed: Deposed) -> None:
        """It must not take writes any more."""
        with transaction(self._db):
            self._depose(service, deposed)

    def _depose(self, service: str, deposed: Deposed) -> None:
        self._db.execute(
            "insert or replace into deposed values (?, ?, ?)", (service, deposed.engine, msgspec.json.encode(deposed))
        )

    def reinstate(self, service: str, engine: str) -> None:
        """It is a standby again, or the active engine."""
        with transaction(self._db):
            self._reinstate(service, engine)

    def _reinstate(self, service: str, engine: str) -> None:
        self._db.execute("delete from deposed where service = ? and engine = ?", (service, engine))

    def automation(self, service: str) -> Automation:
        """What the service remembers of its failovers."""
        row = self._db.execute("select automation from automation where service = ?", (service,)).fetchone()
        return msgspec.json.decode(row[0], type=Automation) if row else Automation()

    def automate(self, service: str, automation: Automation) -> None:
        """Remember that."""
        with transaction(self._db):
            self._db.execute(
                "insert or replace into automation values (?, ?)", (service, msgspec.json.encode(automation))
            )

    def see(self, service: str, found: Sighting) -> None:
        """Remember where the active engine is. Raises sqlite3.Error."""
        with transaction(self._db):
            self._db.execute("insert or replace into sightings values (?, ?)", (service, msgspec.json.encode(found)))
        self._sightings += 1
        if self._sightings % SIGHTINGS_UNSYNCED_MAX == 0:
            self._sync()

    def sighting(self, service: str) -> Sighting | None:
        """Where it was last."""
        row = self._db.execute("select sighting from sightings where service = ?", (service,)).fetchone()
        return msgspec.json.decode(row[0], type=Sighting) if row else None

    def key(self, name: str) -> bytes:
        """32 random bytes that are the same for ever, made when they are asked for first."""
        with transaction(self._db):
            self._db.execute("insert or ignore into keys values (?, ?)", (name, secrets.token_bytes(32)))
        row = self._db.execute("select key from keys where name = ?", (name,)).fetchone()
        return bytes(row[0])

    # --- switches ----------------------------------------------------------------------------------------------------

    def begin(self, record: SwitchRecord) -> None:
        """A new switch; on the disk when this returns."""
        with transaction(self._db):
            self._db.execute(
                "insert into switches values (?, ?, ?, 0, ?)",
                (record.id, record.began_at, record.service, msgspec.json.encode(record)),
            )
            self._db.execute("insert into steps values (?, ?, ?)", (record.id, record.began_ns, record.phase))
            self._forget_old()
        self._sync()

    def enter(
        self,
        record: SwitchRecord,
        at_ns: int,
        *,
        standing: Standing | None = None,
        deposed: Deposed | None = None,
    ) -> None:
        """The record's new phase, before it is acted on. `standing` and `deposed` are set in the same transaction: who is
        active, who is not to be any more, and that the switch has cut over are one truth. Raises sqlite3.Error if it
        cannot be written."""
        with transaction(self._db):
            self._db.execute(
                "update switches set record = ?, ended = ? where id = ?",
                (msgspec.json.encode(record), record.phase in ENDED, record.id),
            )
            self._db.execute("insert into steps values (?, ?, ?)", (record.id, at_ns, record.phase))
            if standing is not None:
                self._stand(record.service, standing)
                self._reinstate(record.service, standing.active)
            if deposed is not None:
                self._depose(record.service, deposed)
        if record.phase is Phase.PREPARING:
            self._sync()

    def end(self, record: SwitchRecord, report: dict[str, Any]) -> None:
        """The report of a switch that has ended, and its figures; on the disk when this returns."""
        with transaction(self._db):
            self._db.execute(
                "update switches set record = ?, ended = 1 where id = ?", (msgspec.json.encode(record), record.id)
            )
            self._db.execute(
                "insert or replace into reports values (?, ?)", (record.id, msgspec.json.encode(report, order="sorted"))
            )
        self._sync()

    def count(self, record: SwitchRecord) -> Tally:
        """Add a switch that has ended to the tally of its service, and return it. Raises sqlite3.Error."""
        if record.was_tried and not record.goes_back_from and not record.plan.dry_run:
            with transaction(self._db):
                self._db.execute(
                    "insert into tallies values (?, ?, 1) on conflict (service, outcome) do update set count = count + 1",
                    (record.service, record.phase.value),
                )
        return self.tally(record.service)

    def tally(self, service: str) -> Tally:
        """How its switches ended."""
        rows = self._db.execute("select outcome, count from tallies where service = ?", (service,)).fetchall()
        return Tally(**dict(rows))

    def unfinished(self) -> list[SwitchRecord]:
        """Switches that an earlier supervisor did not end, oldest first."""
        rows = self._db.execute("select record from switches where ended = 0 order by began_at")
        return [msgspec.json.decode(row[0], type=SwitchRecord) for row in rows]

    def switches(self, limit: int) -> list[SwitchRecord]:
        """Newest first."""
        rows = self._db.execute("select record from switches order by began_at desc, rowid desc limit ?", (limit,))
        return [msgspec.json.decode(row[0], type=SwitchRecord) for row in rows]

    def switch(self, switch_id: str) -> SwitchRecord:
        """Raises NotFound."""
        row = self._db.execute("select record from switches where id = ?", (switch_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no switch {switch_id!r}", hint="`turnout history` lists them")
        return msgspec.json.decode(row[0], type=SwitchRecord)

    def steps(self, switch_id: str) -> list[tuple[int, Phase]]:
        """What was journaled, in the order of writing: (monotonic ns, phase)."""
        rows = self._db.execute("select at_ns, phase from steps where switch = ? order by rowid", (switch_id,))
        return [(at_ns, Phase(phase)) for at_ns, phase in rows]

    def report(self, switch_id: str) -> dict[str, Any]:
        """Raises NotFound: unknown, or not ended yet."""
        row = self._db.execute("select report from reports where switch = ?", (switch_id,)).fetchone()
        if row is None:
            phase = self.switch(switch_id).phase
            raise NotFound(
                f"switch {switch_id} has no report yet: it is {phase}", hint="a report is written at the end"
            )
        report: dict[str, Any] = msgspec.json.decode(row[0])
        return report

    # --- inside ------------------------------------------------------------------------------------------------------

    def _forget_old(self) -> None:
        old = [
            row[0]
            for row in self._db.execute(
                "select id from switches where ended = 1 order by began_at desc limit -1 offset ?", (SWITCHES_KEPT,)
            )
        ]
        for switch_id in old:
            self._db.execute("delete from switches where id = ?", (switch_id,))
            self._db.execute("delete from steps where switch = ?", (switch_id,))
            self._db.execute("delete from reports where switch = ?", (switch_id,))

    def _sync(self) -> None:
        self._db.execute("pragma wal_checkpoint(truncate)").fetchall()
