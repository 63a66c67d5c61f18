"""After a switch the engine that was left follows the new one: the way back is one command, with nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import EngineLogin, HookConfig, Secret
from proxy.embedded import MariaDBPair, MySQLPair
from proxy.engines.engine import Role
from proxy.switch.datacheck import DataCheckStore
from proxy.switch.state import Phase
from tests.proxy.switch.stage import Stage

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

LOGIN = EngineLogin(user="repl", password=Secret(value="secret"))
READABLE = "grant select on app.* to turnout@'%'"
UNREADABLE = "revoke select on app.* from turnout@'%'"
BACK = {"reverse_replication": True, "replication_login": LOGIN}


@pytest.fixture(
    params=[
        pytest.param("mariadb_pair", marks=pytest.mark.mariadb, id="mariadb"),
        pytest.param("mysql_pair", marks=pytest.mark.mysql, id="mysql"),
    ]
)
def pair(request: pytest.FixtureRequest) -> MariaDBPair | MySQLPair:
    """Shared: there and back again leaves the roles as they were."""
    found: MariaDBPair | MySQLPair = request.getfixturevalue(request.param)
    return found


async def test_there_and_back_by_two_commands(pair: MariaDBPair | MySQLPair, tmp_path: Path) -> None:
    hook = HookConfig(at="after_release", command=["sh", "-c", "echo $TURNOUT_TARGET serves"])
    stage = Stage(pair, tmp_path, service={**BACK, "hook": [hook], "databases": ["app"]}, compare_at_fence_ms=2_000)
    blue, green = pair.primary, pair.standby
    try:
        await blue.execute("create table app.turns (who varchar(9))", "insert into app.turns values ('blue')", READABLE)
        there = await stage.switch(target=green.name)
        assert (there.phase, there.error, there.remedy) == (Phase.COMPLETED, "", "")
        report = stage.journal.report(there.id)
        assert report["figures"]["acked_lost"] == 0
        assert report["audit"]["checked"] > 0
        assert report["way_back"] == f"replicates from {green.name} by GTID"
        assert [(one["at"], one["output"]) for one in report["hooks"]] == [("after_release", f"{green.name} serves")]
        compared = report["rows_at_fence"]
        # Tests before this one may have left some.
        (known,) = await blue.fetch("select count(*) as n from information_schema.tables where table_schema = 'app'")
        assert (compared["tables"], compared["different"]) == (known["n"], [])
        assert compared["rows"] >= 1
        state = await stage.engines[blue.name].probe()
        assert (state.role, state.is_writable, state.upstream) == (Role.STANDBY, False, green.address)
        await green.execute("insert into app.turns values ('green')")

        back = await stage.switch(target=blue.name)
        assert (back.phase, back.error, back.remedy) == (Phase.COMPLETED, "", "")
        assert await stage.writable() == [blue.name]
        assert await blue.fetch("select who from app.turns") == [{"who": "blue"}, {"who": "green"}]
        checks = {check["name"]: check for check in stage.journal.report(back.id)["checks"]}
        assert {name for name, check in checks.items() if check["verdict"] == "fail"} == set()
        assert checks["schema"]["verdict"] == "pass", checks["schema"]
    finally:
        await stage.close()
        await blue.execute("drop table app.turns", UNREADABLE)
        await green.wait_caught_up(blue)


async def test_rows_that_differ_are_found_at_the_fence_and_the_source_is_given_back(
    pair: MariaDBPair | MySQLPair, tmp_path: Path
) -> None:
    stage = Stage(pair, tmp_path, service={"databases": ["app"]}, compare_at_fence_ms=2_000)
    blue, green = pair.primary, pair.standby
    astray = "set sql_log_bin = 0", "set global read_only = 0"
    try:
        await blue.execute(
            "create table app.turns (id int primary key, who varchar(9))",
            "insert into app.turns values (1, 'blue'), (2, 'blue')", READABLE,
        )  # fmt: skip
        await green.wait_caught_up(blue)
        await green.execute(*astray, "update app.turns set who = 'green' where id = 2", "set global read_only = 1")
        record = await stage.switch()
        assert record.phase is Phase.ABORTED
        assert record.error == f"rows on {green.name} are not those of {blue.name}: app.turns: (2): not alike"
        assert record.stamps["aborted"] - record.stamps["aborting"] < 1_000_000
        assert await stage.writable() == [blue.name]
        await blue.execute("insert into app.turns values (3, 'blue')")
        (kept,) = DataCheckStore(stage.journal.database).all()
        assert (kept.id, kept.state, kept.asked_by) == (f"fence-{record.id}", "different", f"switch {record.id}")
    finally:
        await stage.close()
        await blue.execute("drop table app.turns", UNREADABLE)
        await green.wait_caught_up(blue)


async def test_a_wrong_replication_account_is_told_and_the_switch_holds(
    fresh_mariadb_pair: MariaDBPair, tmp_path: Path
) -> None:
    login = EngineLogin(user="repl", password=Secret(value="wrong"))
    stage = Stage(fresh_mariadb_pair, tmp_path, service={**BACK, "replication_login": login})
    try:
        record = await stage.switch()
        assert (record.phase, record.error) == (Phase.COMPLETED, "")
        assert "blue does not follow green" in record.remedy
        assert "wrong" not in record.remedy
        assert stage.journal.report(record.id)["way_back"].startswith("failed: engine blue does not follow green")
    finally:
        await stage.close()
