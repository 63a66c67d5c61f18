"""Where figures go: one JSON file for each measurement, with the machine they are of."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

_ROOT: Final = Path(__file__).resolve().parents[1]

FOLDER: Final = _ROOT / "bench" / "results"
"""Not under version control: figures are of a machine."""

Record = dict[str, Any]


def machine() -> Record:
    """What a figure cannot be read without."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    commit = subprocess.run(
        ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "turnout": commit or "unknown",
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processor": model,
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def save(name: str, records: Sequence[Record], *, keys: Sequence[str], versions: Record, adds: bool = False) -> Path:
    """Write `bench/results/NAME.json`. With `adds`, records of an earlier run stay whose `keys` no new one has."""
    path = FOLDER / f"{name}.json"
    FOLDER.mkdir(exist_ok=True)
    about = {**machine(), **versions}
    new = [{**one, "at": about["at"], "turnout": about["turnout"]} for one in records]
    if adds and path.exists():
        have = {tuple(one[key] for key in keys) for one in new}
        new = [
            one for one in json.loads(path.read_text())["records"] if tuple(one.get(key) for key in keys) not in have
        ] + new
    path.write_text(json.dumps({"machine": about, "records": new}, indent=1, ensure_ascii=False) + "\n")
    return path


def load(name: str) -> Record | None:
    """What `save` wrote; None if there is nothing."""
    path = FOLDER / f"{name}.json"
    loaded: Record | None = json.loads(path.read_text()) if path.exists() else None
    return loaded


def show(table: Table) -> None:
    """Print it; a pipe has no width: let no column be cut."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(table)


def ratio(mine: float | None, theirs: float | None) -> float | None:
    """None where one of them was not measured."""
    return round(mine / theirs, 3) if mine is not None and theirs else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
