"""PostgreSQL's own programs through Turnout: what they do directly they do here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.embedded import PostgresPair
from tests.e2e.doors import Door, run
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

PGBENCH_CLIENTS = 32


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pgbench(postgres_pair: PostgresPair) -> Path:
    """The program, its tables made."""
    program = postgres_pair.primary.bin_dir / "pgbench"
    direct = Door(name="direct", port=postgres_pair.primary.port)
    made = await run([program, "-i", "-q", "-s", "4"], env=direct.libpq())
    assert made.code == 0, made.err
    return program


async def _pgbench(program: Path, door: Door, script: str, mode: str, *limit: str) -> str:
    args = [] if script == "tpcb" else ["-S"]
    ran = await run(
        [program, "-n", "-M", mode, "-c", str(PGBENCH_CLIENTS), "-j", "2", *args, *limit],
        env=door.libpq(),
        timeout_s=300,
    )
    assert ran.code == 0, ran.err
    assert "number of failed transactions: 0 " in ran.out
    return ran.out


@pytest.mark.parametrize("script", ["select", "tpcb"])
@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
async def test_pgbench_sees_no_error(pgbench: Path, postgres_door: Door, script: str, mode: str) -> None:
    each = 30
    out = await _pgbench(pgbench, postgres_door, script, mode, "-t", str(each))
    total = each * PGBENCH_CLIENTS
    assert f"number of transactions actually processed: {total}/{total}" in out


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize("script", ["select", "tpcb"])
@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
async def test_pgbench_sees_no_error_for_half_a_minute(
    pgbench: Path, postgres_door: Door, script: str, mode: str
) -> None:
    await _pgbench(pgbench, postgres_door, script, mode, "-T", "30")


async def test_pgbench_reconnecting_for_each_transaction_sees_no_error(pgbench: Path, postgres_door: Door) -> None:
    ran = await run([pgbench, "-n", "-S", "-C", "-c", "8", "-j", "2", "-t", "15"], env=postgres_door.libpq())
    assert ran.code == 0, ran.err
    assert "number of transactions actually processed: 120/120" in ran.out


async def test_pgbench_pipelines(pgbench: Path, postgres_door: Door, tmp_path: Path) -> None:
    script = tmp_path / "pipeline.sql"
    script.write_text(
        "\\startpipeline\n"
        "begin;\nselect 1;\nselect abalance from pgbench_accounts where aid = 1;\nselect 2;\ncommit;\n"
        "\\endpipeline\n"
    )
    for mode in ("extended", "prepared"):
        ran = await run(
            [pgbench, "-n", "-M", mode, "-f", script, "-c", "8", "-j", "2", "-t", "30"], env=postgres_door.libpq()
        )
        assert ran.code == 0, ran.err
        assert "number of transactions actually processed: 240/240" in ran.out


CONVERSATION = r"""
\set ON_ERROR_STOP off
\pset format unaligned
create table psql_{name} (i int primary key, t text not null default 'x');
\d psql_{name}
\copy psql_{name} from stdin
1	one
2	two
3	\N
\.
\copy psql_{name} from stdin
1	one
2	tw\to
\.
\copy psql_{name} to stdout
copy (select generate_series(1, 1000)) to stdout;
insert into psql_{name} select n, repeat('y', n) from generate_series(10, 60) n returning i;
select 1; select 2 \; select 3 \; select 1/0 \; select 4;
select 'after';
begin; insert into psql_{name} values (99, 'gone'); select nonsense; select 'in a failed block'; rollback;
select count(*) from psql_{name} where i = 99;
do $$ begin raise notice 'a notice'; raise warning 'a warning'; end $$;
select $1::int + $2::int \bind 20 22 \g
set application_name = 'renamed'; show application_name;
select current_setting('server_version_num')::int > 0, current_user, current_database();
\encoding latin1
select U&'\00e9' as e, pg_client_encoding();
\encoding utf8
select repeat('wide', 100000) = repeat('wide', 100000), length(repeat('wide', 300000));
values (1, null), (2, '');
\gdesc
select 1 as one, 'b' as two \gset
\echo :one :two
explain (costs off) select * from psql_{name} where i = 1;
drop table psql_{name};
\crosstabview
select;
;
"""


async def test_psql_prints_the_same_as_directly(
    postgres_pair: PostgresPair, postgres_door: Door, postgres_direct: Door
) -> None:
    psql: list[str | Path] = [_psql(postgres_pair), "-X", "-a", "-q"]
    script = CONVERSATION.replace("{name}", "same")
    expected = await run(psql, env=postgres_direct.libpq(), feed=script)
    assert expected.code == 0
    assert "division by zero" in expected.err
    seen = await run(psql, env=postgres_door.libpq(), feed=script)
    assert seen.out == expected.out
    assert seen.err == expected.err
    assert seen.code == expected.code


async def test_psql_hears_what_another_session_notifies(postgres_pair: PostgresPair, postgres_door: Door) -> None:
    program = _psql(postgres_pair)
    listener = await asyncio.create_subprocess_exec(
        *(program, "-X", "-q", "-At"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=postgres_door.libpq(),
    )
    assert listener.stdin is not None
    assert listener.stdout is not None
    listener.stdin.write(b"listen news;\nselect 'listening';\n")
    assert (await asyncio.wait_for(listener.stdout.readline(), 20)).strip() == b"listening"
    told = await run([program, "-X", "-q", "-c", "notify news, 'hello'"], env=postgres_door.libpq())
    assert told.code == 0, told.err
    # psql looks for notifications after each command.
    listener.stdin.write(b"select 'again';\n\\q\n")
    out, _ = await asyncio.wait_for(listener.communicate(), 20)
    assert b'Asynchronous notification "news" with payload "hello"' in out


async def test_ctrl_c_cancels_the_query_and_the_session_goes_on(
    postgres_pair: PostgresPair, postgres_door: Door
) -> None:
    async def sleeping() -> None:
        await until(
            lambda: _is_active(postgres_pair, "select pg_sleep(61)%"), "the query runs at the server", timeout_s=20
        )

    ran = await run(
        [_psql(postgres_pair), "-X", "-q", "-At", "-f", "-"],
        env=postgres_door.libpq(),
        feed="select pg_sleep(61);\nselect 'goes on';\n",
        interrupt_when=sleeping,
        timeout_s=30,
    )
    assert "canceling statement due to user request" in ran.err
    assert not await _is_active(postgres_pair, "select pg_sleep(61)%")


async def test_pg_dump_and_restore_give_the_same_table(
    postgres_pair: PostgresPair, postgres_door: Door, postgres_direct: Door
) -> None:
    program = postgres_pair.primary.bin_dir
    server = postgres_pair.primary
    await server.execute("drop table if exists dumped", database="app")
    await server.execute(
        "create table dumped as select n, md5(n::text) as t from generate_series(1, 5000) n", database="app"
    )
    await server.execute("alter table dumped owner to app", database="app")
    dump = await run([program / "pg_dump", "-t", "dumped"], env=postgres_door.libpq())
    assert dump.code == 0, dump.err
    digest = "select md5(string_agg(dumped::text, ',' order by n)) from dumped"
    before = await server.fetchval(digest, database="app")
    await server.execute("drop table dumped", database="app")
    # pg_dump empties search_path for its session; the next client of a pool must not see that.
    restored = await run([_psql(postgres_pair), "-X", "-q", "-1"], env=postgres_door.libpq(), feed=dump.out)
    assert restored.code == 0, restored.err
    assert restored.err == ""
    after = await run([_psql(postgres_pair), "-X", "-At", "-c", digest], env=postgres_door.libpq())
    assert after.out.strip() == before
    await server.execute("drop table dumped", database="app")


def _psql(pair: PostgresPair) -> Path:
    """Debian's, if the wheel's binaries have none."""
    own = pair.primary.bin_dir / "psql"
    return own if own.exists() else Path("/usr/bin/psql")


async def _is_active(pair: PostgresPair, query: str) -> bool:
    found = await pair.primary.fetchval(
        "select count(*) from pg_stat_activity where state = 'active' and query like $1 and pid <> pg_backend_pid()",
        query,
    )
    return bool(found)
