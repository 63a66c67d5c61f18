"""PyMySQL through Turnout to MariaDB and to real MySQL; the rules stand in mysql_rules.py."""

from __future__ import annotations

import pytest

from tests.e2e.doors import Door
from tests.e2e.mysql_rules import MySqlRules

pytestmark = pytest.mark.slow


@pytest.mark.mariadb
class TestMariaDB(MySqlRules):
    @pytest.fixture
    def door(self, mariadb_door: Door) -> Door:
        return mariadb_door


@pytest.mark.mysql
class TestMySQL(MySqlRules):
    @pytest.fixture
    def door(self, mysql_door: Door) -> Door:
        return mysql_door
