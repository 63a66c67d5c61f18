from __future__ import annotations

import shutil
from typing import Final

import pytest

pytest_plugins = ["tests.kit.servers", "tests.kit.turnouts"]

CHROMIUM: Final = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

NOT_EVERYWHERE: Final = {"browser": CHROMIUM, "promtool": shutil.which("promtool")}
"""Programs that are large and not to be had everywhere, by the mark of the tests that need them."""


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
