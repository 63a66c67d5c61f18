from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import pytest

from proxy.embedded import Workspace
from proxy.embedded.made import MADE

pytest_plugins = ["tests.kit.servers", "tests.kit.turnouts"]

CHROMIUM: Final = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

NOT_EVERYWHERE: Final = {"browser": CHROMIUM, "promtool": shutil.which("promtool")}
"""Programs that are large and not to be had everywhere, by the mark of the tests that need them."""


MEMORY: Final = Path("/dev/shm")

MEMORY_BYTES_MIN: Final = 8 << 30
"""Free; a whole run takes less than half of it."""


def _keep_files_in_memory() -> None:
    """Servers are thousands of small files that nobody wants afterwards; memory takes them in a quarter of the time."""
    if "TMPDIR" in os.environ or not MEMORY.is_dir():
        return
    found = os.statvfs(MEMORY)
    if found.f_bavail * found.f_frsize >= MEMORY_BYTES_MIN and not found.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


def pytest_configure(config: pytest.Config) -> None:
    """Servers are made once for the whole run, whichever of the processes of pytest-xdist needs them first."""
    if not hasattr(config, "workerinput"):
        _keep_files_in_memory()
        made = Workspace("turnout-made-")
        os.environ[MADE] = str(made.path)
        config.add_cleanup(made.close)


def pytest_report_header() -> list[str]:
    debian = {"browser": "chromium", "promtool": "prometheus"}
    return [
        f"{mark}: {found or f'not here, so its tests are left out; `apt-get install {debian[mark]}` changes that'}"
        for mark, found in NOT_EVERYWHERE.items()
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = [mark for mark, found in NOT_EVERYWHERE.items() if found is None]
    left_out = [item for item in items if any(item.get_closest_marker(mark) is not None for mark in missing)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
