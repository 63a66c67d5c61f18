"""A major version of PostgreSQL is left under load and gone back to, by logical replication, through a whole Turnout."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import asyncpg
import pytest

from proxy.embedded import Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from proxy.tasks import cancel_and_wait, spawn
from tests.kit.servers import logical_pair_alone
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

WRITERS = 5


class Writer:
    """A session with a setting of its own, which writes and remembers what was acknowledged."""

    def __init__(self, number: int) -> None:
        self.name = f"writer {number}"
        self.acknowledged: list[int] = []
        self.versions: set[int] = set()

    async def work(self, port: int) -> None:
        """Until cancelled; any error of a statement is raised."""
        connection = await asyncpg.connect(
            host="127.0.0.1", port=port, user="app", password="secret", database="app", ssl=False
        )
        try:
            await connection.execute(f"set app.writer = '{self.name}'")
            insert = await connection.prepare("insert into orders (note) values ($1) returning id")
            while True:
                self.acknowledged.append(await insert.fetchval(self.name))
                mine, version = await connection.fetchrow(
                    "select current_setting('app.writer'), current_setting('server_version_num')::int / 10000"
                )
                assert mine == self.name
                self.versions.add(version)
        finally:
            connection.terminate()


async def test_from_16_to_18_and_back_nobody_is_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    async with logical_pair_alone() as pair:
        turnout = Turnout(
            Setup(
                protocol="postgresql",
                engines={server.name: server.address for server in pair.servers()},
                admin_user=SUPERUSER,
                admin_password=PASSWORD,
                users={"app": "secret"},
                databases=["app"],
                service={
                    "replication": "logical",
                    "reverse_replication": True,
                    "replication_login": {"user": SUPERUSER, "password": {"env": "TURNOUT_TEST_REPLICATION"}},
                },
            ),
            tmp_path,
        )
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("TURNOUT_TEST_REPLICATION", PASSWORD)
            await turnout.start()
        writers = [Writer(number) for number in range(WRITERS)]
        work = [spawn(one.work(turnout.port), name=one.name) for one in writers]

        async def all_have_written(version: int) -> bool:
            for task in work:
                if task.done():
                    task.result()
            return all(version in one.versions for one in writers)

        async def is_ready(target: str) -> bool:
            return bool((await turnout.get(f"/v1/services/app/ready/{target}"))["is_ready"])

        try:
            await until(partial(all_have_written, 16), "all write on 16")
            for target, version in (("green", 18), ("blue", 16)):
                await until(partial(is_ready, target), f"{target} is ready", timeout_s=30.0)
                for one in writers:
                    one.versions.clear()
                ended = await turnout.switch(target)
                assert (ended["phase"], ended["error"]) == ("completed", "")
                assert ended["report"]["interrupted"] == []
                await until(partial(all_have_written, version), f"all write on {version}")
                assert all(one.versions <= {16, 18} for one in writers)
        finally:
            await cancel_and_wait(*work)
            await turnout.stop()
        acknowledged = [number for one in writers for number in one.acknowledged]
        assert len(set(acknowledged)) == len(acknowledged), "no number was handed out twice"
        assert set(acknowledged) <= await _numbers(pair.primary.port)


async def _numbers(port: int) -> set[int]:
    connection = await asyncpg.connect(
        host="127.0.0.1", port=port, user=SUPERUSER, password=PASSWORD, database="app", ssl=False
    )
    try:
        return {row["id"] for row in await connection.fetch("select id from orders")}
    finally:
        await connection.close()
