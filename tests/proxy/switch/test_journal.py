"""The state file: what was written is there, whatever happened to the process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.errors import NotFound
from proxy.switch import journal as module
from proxy.switch.journal import Journal, Standing, StateFileError
from proxy.switch.plan import SwitchRecord
from proxy.switch.state import Phase
from tests.proxy.switch.playbook import a_plan


def a_record(name: str, began_at: float = 1.0, phase: Phase = Phase.PENDING) -> SwitchRecord:
    return SwitchRecord(
        id=name, service="app", source="blue", target="green", strategy="graceful", plan=a_plan(), phase=phase,
        began_at=began_at, began_ns=1_000, epoch=2,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "turnout.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    yield journal
    journal.close()


def test_a_service_that_was_never_served_has_no_standing(journal: Journal) -> None:
    assert journal.standing("app") is None
    journal.stand("app", Standing("blue", 1))
    journal.stand("app", Standing("green", 2))
    assert journal.standing("app") == Standing("green", 2)


def test_the_steps_of_a_switch_are_kept_in_order(journal: Journal) -> None:
    record = a_record("s1")
    journal.begin(record)
    for at_ns, phase in ((2_000, Phase.VALIDATING), (3_000, Phase.PREPARING), (4_000, Phase.ABORTED)):
        record.phase = phase
        journal.enter(record, at_ns)
    assert journal.steps("s1") == [
        (1_000, Phase.PENDING), (2_000, Phase.VALIDATING), (3_000, Phase.PREPARING), (4_000, Phase.ABORTED),
    ]  # fmt: skip
    assert journal.switch("s1").phase is Phase.ABORTED


def test_who_is_active_and_the_cutover_are_written_together(journal: Journal, path: Path) -> None:
    record = a_record("s1")
    journal.begin(record)
    journal.stand("app", Standing("blue", 1))
    record.phase = Phase.CUTTING_OVER
    journal.enter(record, 5, standing=Standing("green", 2))
    assert journal.standing("app") == Standing("green", 2)
    assert [one.phase for one in journal.unfinished()] == [Phase.CUTTING_OVER]


def test_only_switches_that_have_not_ended_are_unfinished(journal: Journal) -> None:
    for name, phase in (("a", Phase.COMPLETED), ("b", Phase.PROMOTING), ("c", Phase.FAILED), ("d", Phase.ABORTING)):
        record = a_record(name)
        journal.begin(record)
        record.phase = phase
        journal.enter(record, 2_000)
    assert [record.id for record in journal.unfinished()] == ["b", "d"]


def test_switches_are_listed_newest_first(journal: Journal) -> None:
    for number in range(5):
        journal.begin(a_record(f"s{number}", began_at=float(number)))
    assert [record.id for record in journal.switches(3)] == ["s4", "s3", "s2"]


def test_what_is_not_there_is_said(journal: Journal) -> None:
    with pytest.raises(NotFound):
        journal.switch("nothing")
    with pytest.raises(NotFound):
        journal.report("nothing")
    journal.begin(a_record("s1"))
    with pytest.raises(NotFound, match="pending"):
        journal.report("s1")


def test_a_report_is_kept_as_it_was(journal: Journal) -> None:
    record = a_record("s1")
    journal.begin(record)
    record.phase = Phase.COMPLETED
    journal.end(record, {"b": [1, 2.5], "a": None})
    assert journal.report("s1") == {"a": None, "b": [1, 2.5]}
    assert journal.unfinished() == []


def test_old_switches_are_forgotten_and_unfinished_ones_are_not(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWITCHES_KEPT", 3)
    journal.begin(a_record("unfinished", began_at=0.5))
    for number in range(6):
        record = a_record(f"s{number}", began_at=float(number + 1))
        journal.begin(record)
        record.phase = Phase.COMPLETED
        journal.end(record, {})
    journal.begin(a_record("last", began_at=99.0))
    assert [record.id for record in journal.switches(10)] == ["last", "s5", "s4", "s3", "unfinished"]


@pytest.mark.slow
def test_what_was_written_survives_a_sigkill(path: Path) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        from proxy.switch.journal import Journal, Standing
        from proxy.switch.state import Phase
        from tests.proxy.switch.test_journal import a_record
        journal = Journal(Path(sys.argv[1]))
        record = a_record("s1")
        journal.begin(record)
        for phase in (Phase.FENCING, Phase.PROMOTING):
            record.phase = phase
            journal.enter(record, 5)
        record.phase = Phase.CUTTING_OVER
        journal.enter(record, 6, standing=Standing("green", 2))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], check=False, env={**os.environ, "PYTHONPATH": "."}
    )
    assert ended.returncode == -signal.SIGKILL
    journal = Journal(path)
    assert [record.phase for record in journal.unfinished()] == [Phase.CUTTING_OVER]
    assert journal.standing("app") == Standing("green", 2)
    assert len(journal.steps("s1")) == 4
    journal.close()


def test_a_file_that_is_no_state_file_is_one_clear_line(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(StateFileError, match="cannot be read") as refused:
        Journal(path)
    assert str(path) in str(refused.value)
    assert "move it away" in refused.value.hint
    assert "\n" not in str(refused.value)


def test_a_damaged_file_is_one_clear_line(journal: Journal, path: Path, tmp_path: Path) -> None:
    for number in range(50):
        journal.begin(a_record(f"s{number}", began_at=float(number)))
    journal.close()
    data = bytearray(path.read_bytes())
    data[4096 : 3 * 4096] = os.urandom(2 * 4096)
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(data)
    with pytest.raises(StateFileError, match="cannot be read"):
        Journal(damaged)
    journal.__init__(path)  # type: ignore[misc]  # the fixture closes it


def test_a_file_of_another_layout_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 99")
    db.close()
    with pytest.raises(StateFileError, match="layout 99"):
        Journal(path)


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateFileError, match="cannot be read"):
        Journal(tmp_path / "file" / "state.sqlite")


def test_a_second_supervisor_does_not_get_the_file(journal: Journal, path: Path) -> None:
    journal.stand("app", Standing("blue", 1))
    with pytest.raises(StateFileError, match="locked") as refused:
        Journal(path)
    assert "another" in refused.value.hint


def test_a_key_stays_the_same_over_restarts(tmp_path: Path) -> None:
    """A stranger must not learn by a restart who exists: the salts that unknown users are shown come from it."""
    first = Journal(tmp_path / "state.sqlite")
    made, other = first.key("salts"), first.key("another")
    first.close()
    again = Journal(tmp_path / "state.sqlite")
    assert again.key("salts") == made != other
    assert len(made) == 32
    again.close()


def test_a_file_of_the_first_layout_is_brought_up_to_date_and_keeps_what_it_had(path: Path) -> None:
    path.parent.mkdir(parents=True)
    old = sqlite3.connect(path, isolation_level=None)
    old.executescript(module._STEPS[0])
    old.execute("pragma user_version = 1")
    old.execute("insert into services values ('app', 'green', 7)")
    old.close()
    journal = Journal(path)
    assert journal.standing("app") == Standing("green", 7)
    assert journal.database.execute("pragma user_version").fetchone() == (module.LAYOUT,)
    assert journal.database.execute("select count(*) from audit").fetchone() == (0,)
    journal.close()
