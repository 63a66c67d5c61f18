"""Engines from the admin side. `engine_for` makes the right one; `engine.py` says what every one can do."""

from __future__ import annotations
