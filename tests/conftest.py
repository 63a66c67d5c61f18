from __future__ import annotations

pytest_plugins = ["tests.kit.servers", "tests.kit.turnouts"]
