from __future__ import annotations

import shutil
from typing import Final

import pytest

pytest_plugins = ["tests.kit.servers", "tests.kit.turnouts"]

CHROMIUM: Final = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


def pytest_report_header() -> str:
    if CHROMIUM is None:
        return "browser: no Chromium here, so the dashboard is not tested; `apt-get install chromium` changes that"
    return f"browser: {CHROMIUM}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A browser is large, and not to be had everywhere: its tests are for where there is one."""
    if CHROMIUM is not None:
        return
    left_out = [item for item in items if item.get_closest_marker("browser") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
