"""Who reads the binlog through Turnout: real replicas, and the programs that do as if they were one."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy.embedded import MariaDBPair, MySQLPair, Setup, Turnout
from proxy.embedded.fetch_mysql import tool
from proxy.embedded.mysql import PASSWORD
from tests.e2e.doors import Door
from tests.kit.waiting import until

pytestmark = pytest.mark.slow

PIN = "binlog dump"


class Scene:
    def __init__(self, pair: MariaDBPair | MySQLPair, turnout: Turnout) -> None:
        self.pair = pair
        self.turnout = turnout
        self.is_mariadb = isinstance(pair, MariaDBPair)

    async def follow(self, port: int) -> None:
        """The standby reads from whom is at `port`."""
        if self.is_mariadb:
            statements = ["stop slave", f"change master to master_port = {port}", "start slave"]
        else:
            # This Turnout has no TLS.
            tls = int(port == self.pair.primary.port)
            change = f"change replication source to source_port = {port}, source_ssl = {tls}"
            statements = ["stop replica", change, "start replica"]
        await self.pair.standby.execute(*statements)

    async def is_pinned(self) -> bool:
        """A session is, by the dump's name; user variables may pin it too."""
        return any(PIN in session["pins"] for session in await self.turnout.get("/v1/sessions"))


@pytest.fixture(
    scope="module",
    params=[pytest.param("mariadb", marks=pytest.mark.mariadb), pytest.param("mysql", marks=pytest.mark.mysql)],
)
def pair(request: pytest.FixtureRequest) -> MariaDBPair | MySQLPair:
    found: MariaDBPair | MySQLPair = request.getfixturevalue(f"{request.param}_pair")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(pair: MariaDBPair | MySQLPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """In transaction mode, where a session has a backend of its own only for a reason."""
    is_mariadb = isinstance(pair, MariaDBPair)
    setup = Setup(
        protocol="mysql",
        engines={"blue": pair.primary.address},
        admin_user="turnout",
        admin_password=PASSWORD,
        users={"app": PASSWORD, "repl": PASSWORD},
        auth_method="mysql_native_password" if is_mariadb else "caching_sha2_password",
        pool_mode="transaction",
        databases=["app"],
    )
    turnout = Turnout(setup, tmp_path_factory.mktemp("turnout-binlog"))
    await turnout.start()
    try:
        yield Scene(pair, turnout)
    finally:
        await turnout.stop()


async def test_a_replica_replicates_through_turnout(scene: Scene) -> None:
    primary, standby = scene.pair.primary, scene.pair.standby
    if scene.is_mariadb:
        # The replica says how far it is, and commits wait for that.
        await standby.execute("set global rpl_semi_sync_slave_enabled = 1")
        await primary.execute(
            "set global rpl_semi_sync_master_timeout = 60000", "set global rpl_semi_sync_master_enabled = 1"
        )
    await scene.follow(scene.turnout.port)
    try:
        await until(scene.is_pinned, "the replica is a session of Turnout's, pinned by name")
        await primary.execute("create table app.through (i int primary key, b longblob)")
        for number in range(20):
            await primary.execute(f"insert into app.through values ({number}, repeat('x', {number * 50_000}))")
        await standby.wait_caught_up(primary)
        assert await standby.fetchval("select sum(length(b)) from app.through") == 190 * 50_000
        if scene.is_mariadb:
            said = await primary.fetch("show status like 'Rpl_semi_sync_master_yes_tx'")
            assert int(said[0]["Value"]) >= 20, "each commit was waited for"
    finally:
        if scene.is_mariadb:
            await primary.execute("set global rpl_semi_sync_master_enabled = 0")
            await standby.execute("set global rpl_semi_sync_slave_enabled = 0")
        await scene.follow(primary.port)
        await primary.execute("drop table if exists app.through")


async def test_the_binlog_is_read_from_afar_and_without_an_end(scene: Scene, tmp_path: Path) -> None:
    primary = scene.pair.primary
    door = Door(name="transaction", port=scene.turnout.port, user="repl")
    program: list[Any] = [shutil.which("mariadb-binlog")] if scene.is_mariadb else tool("mysqlbinlog")
    (row,) = await primary.fetch("show master status" if scene.is_mariadb else "show binary log status")
    name = row["File"]
    options = ["--read-from-remote-server", f"--result-file={tmp_path}/seen."]
    await primary.execute("create table app.marked (i int)")
    # To the end of what there is.
    ended = await asyncio.create_subprocess_exec(*program, *door.mysql(), *options, name)
    assert await asyncio.wait_for(ended.wait(), 30) == 0
    assert "app.marked" in (tmp_path / "seen.").read_text()
    # And for ever.
    endless = await asyncio.create_subprocess_exec(*program, *door.mysql(), *options, "--raw", "--stop-never", name)
    try:
        await until(scene.is_pinned, "a session that reads the binlog, pinned by name")
        await primary.execute("drop table app.marked", "create table app.later (i int)", "drop table app.later")

        def is_seen() -> bool:
            return b"create table app.later" in (tmp_path / f"seen.{name}").read_bytes()

        await until(is_seen, "an event that came later")
    finally:
        endless.terminate()
        await endless.wait()
