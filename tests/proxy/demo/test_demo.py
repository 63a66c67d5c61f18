from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from proxy.demo.load import LoadSetup, Tally, Work

ROOT = Path(__file__).parents[3]

FIGURES = {
    "hold_ms",
    "drain_ms",
    "catchup_ms",
    "promote_ms",
    "cutover_ms",
    "blackout_ms",
    "errors_visible",
    "acked_lost",
}


def demo(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Its temporary files below `folder`, so that what is left can be seen."""
    return subprocess.Popen(
        [sys.executable, "-m", "proxy.demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """Servers do not run as root: they must be able to enter it. Not below pytest's own folder, which every other run of
    pytest closes again."""
    with tempfile.TemporaryDirectory(prefix="turnout-demo-test-") as path:
        os.chmod(path, 0o711)
        yield Path(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mysql", marks=pytest.mark.mariadb),
    ],
)
def test_a_short_demo_shows_no_client_an_error_and_loses_nothing(protocol: str, folder: Path) -> None:
    # The limits are the demo's own matter; a machine that runs tests is busy.
    process = demo(
        *("--protocol", protocol, "--clients", "8", "--seconds", "3", "--switches", "2", "--json"),
        *("--cutover-limit", "5000"),
        folder=folder,
    )
    out, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    [line] = out.splitlines()
    result = json.loads(line)
    assert (result["errors_visible"], result["acked_lost"], result["trouble"]) == (0, 0, [])
    assert result["transactions"] > 100
    first, second = result["switches"]
    assert first.keys() >= FIGURES
    assert set(first["hold_ms"]) == {"p50", "p99", "max"}
    assert (first["target"], second["target"]) == ("green", "blue")
    assert first["rejoined_by"] in ("rewind", "gtid")
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.postgresql
def test_a_cutover_at_the_limit_is_exit_code_1(folder: Path) -> None:
    process = demo("--clients", "4", "--seconds", "2", "--switches", "1", "--cutover-limit", "0.01", folder=folder)
    out, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "cutover took" in errors
    assert "acknowledged" in out


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_demo_is_ended_from_outside(by: signal.Signals, folder: Path) -> None:
    process = demo("--clients", "8", "--seconds", "60", folder=folder)
    assert process.stderr is not None
    for line in process.stderr:
        if "clients work" in line:
            break
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) > 10
    process.send_signal(by)
    process.communicate(timeout=60)
    if by != signal.SIGKILL:
        assert process.returncode == 128 + by
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    assert list(folder.iterdir()) == []


def test_wrong_use_is_exit_code_2(folder: Path) -> None:
    process = demo("--protocol", "oracle", folder=folder)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert re.search("oracle", errors)


def test_journal_ids_are_nobody_elses_and_accounts_are_taken_in_order() -> None:
    setup = LoadSetup(
        protocol="postgresql",
        host="",
        port=0,
        user="",
        password="",
        database="",
        clients=3,
        operations_per_s=100.0,
        result="",
    )
    transfers = [work.transfer() for work in (Work(setup, number) for number in range(3)) for _ in range(100)]
    assert len({journal_id for journal_id, *_ in transfers}) == 300
    assert all(low < high for _, low, high, _ in transfers)


def test_a_sample_counts_what_happened_since_the_one_before() -> None:
    tally = Tally()
    began = time.monotonic_ns()
    tally.transferred(1, began)
    tally.read(began)
    tally.failed(ValueError("first\nsecond line"))
    sample = tally.sample()
    assert (sample.transactions, sample.reads, sample.errors) == (1, 1, 1)
    assert sample.last_error == "ValueError: first"
    assert tally.sample().transactions == 0
    assert tally.acknowledged[0] == 1
