"""Real clients, real servers, and Turnout between them."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.e2e.mysql_rules")
