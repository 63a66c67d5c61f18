"""The clock on the wall of a child that is a Python program, turned by hand. Its monotonic clock goes on as it does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_SITE: Final = '''\
"""Read by Python itself when it starts."""
import pathlib, time
_ahead, _real = pathlib.Path(__file__).with_name("ahead_s"), time.time
time.time = lambda: _real() + float(_ahead.read_text())
'''


class TurnedClock:
    """For a program that is started with `env`. Until it is turned it shows the time as it is."""

    def __init__(self, folder: Path) -> None:
        self._ahead = folder / "ahead_s"
        self._ahead.write_text("0")
        (folder / "sitecustomize.py").write_text(_SITE)
        self.env: Mapping[str, str] = {"PYTHONPATH": str(folder)}

    def turn_to(self, at: float) -> None:
        """It is `at` now (seconds since 1970), and time goes on from there."""
        # In one go: a reader must not find half of it.
        new = self._ahead.with_name("new")
        new.write_text(repr(at - time.time()))
        new.replace(self._ahead)
