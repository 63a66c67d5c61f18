"""MariaDB's own client and sysbench through Turnout: what they do directly they do here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.embedded import MariaDBPair
from tests.e2e.doors import HOST, Door, Ran, run

pytestmark = [pytest.mark.mariadb, pytest.mark.slow]


CONVERSATION = r"""
select 1 as one, null as nothing, '' as empty, 'tœxt' as text;
create table told (i int primary key auto_increment, t varchar(100), b blob);
describe told;
insert into told (t, b) values ('a', x'00ff'), ('b', repeat('y', 70000));
select i, t, length(b), md5(b) from told order by i;
select nonsense;
select * from no_such_table;
insert into told values (1, 'again', null);
begin; insert into told values (99, 'gone', null); select count(*) from told; rollback;
select count(*) from told;
set autocommit = 0; insert into told values (98, 'gone too', null); rollback; set autocommit = 1;
select count(*) from told;
set @answer = 42; select @answer, @never_set;
prepare statement from 'select ? + ? as sum'; set @a = 20, @b = 22; execute statement using @a, @b;
deallocate prepare statement;
create temporary table passing (i int); insert into passing values (1), (2); select sum(i) from passing;
drop temporary table passing;
delimiter //
create procedure several() begin select 1; select 2, 3; insert into told (t) values ('p'); select count(*) from told; end//
delimiter ;
call several();
select 'after the call';
drop procedure several;
set names latin1; select @@character_set_client; set names utf8mb4;
use information_schema; select database(); use app; select database();
show variables like 'lower_case_table_names';
explain select * from told where i = 1;
select repeat('wide', 500000) = repeat('wide', 500000), length(repeat('w', 17000000));
kill query 0;
help no_such_topic;
drop table told;
"""


async def _client(door: Door, script: str, *more: str) -> Ran:
    return await run(
        ["mariadb", *door.mysql(), "--batch", "--force", "-vv", "--comments", *more, door.database], feed=script
    )


async def test_the_client_prints_the_same_as_directly(mariadb_door: Door, mariadb_direct: Door) -> None:
    expected = await _client(mariadb_direct, CONVERSATION)
    seen = await _client(mariadb_door, CONVERSATION)
    assert "42" in expected.out
    assert seen.out == expected.out
    assert seen.err == expected.err
    assert seen.code == expected.code


async def test_a_file_is_loaded_from_the_client(mariadb_door: Door, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("".join(f"{number}\trow {number}\n" for number in range(20_000)))
    script = (
        "drop table if exists loaded; create table loaded (i int primary key, t varchar(30));\n"
        f"load data local infile '{file}' into table loaded;\n"
        "load data local infile '/nonexistent' into table loaded;\n"
        "select count(*), max(t) from loaded; drop table loaded;\n"
    )
    ran = await _client(mariadb_door, script, "--local-infile=1")
    assert "20000\trow 9999" in ran.out
    assert "nonexistent" in ran.err


@pytest.mark.parametrize("what", ["dump", "dump of one transaction"])
async def test_mariadb_dump_gives_the_same_as_directly(mariadb_door: Door, mariadb_direct: Door, what: str) -> None:
    await _client(
        mariadb_direct,
        "drop table if exists dumped; create table dumped (i int primary key, t text, b longblob);"
        "insert into dumped select seq, md5(seq), repeat(unhex('00ff'), seq) from seq_1_to_2000;",
    )
    options = ["--skip-dump-date", "--skip-comments", *(["--single-transaction"] if "one" in what else [])]

    async def dump(door: Door) -> Ran:
        return await run(["mariadb-dump", *door.mysql(), *options, door.database, "dumped"])

    expected = await dump(mariadb_direct)
    seen = await dump(mariadb_door)
    assert seen.code == 0, seen.err
    assert seen.out == expected.out
    await _client(mariadb_direct, "drop table dumped;")


# --- sysbench -----------------------------------------------------------------------------------------------------

TABLES = ["--tables=2", "--table-size=2000"]


def _sysbench(door: Door, *more: str) -> list[str | Path]:
    return [
        "sysbench",
        "oltp_read_write",
        "--db-driver=mysql",
        f"--mysql-host={HOST}",
        f"--mysql-port={door.port}",
        f"--mysql-user={door.user}",
        f"--mysql-password={door.password}",
        f"--mysql-db={door.database}",
        *TABLES,
        *more,
    ]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sysbench_tables(mariadb_pair: MariaDBPair) -> None:
    direct = Door(name="direct", port=mariadb_pair.primary.port)
    made = await run(_sysbench(direct, "prepare"))
    assert made.code == 0, made.out + made.err


async def _read_write(door: Door, seconds: int, ps_mode: str) -> None:
    argv = _sysbench(door, "--threads=16", f"--time={seconds}", f"--db-ps-mode={ps_mode}", "run")
    ran = await run(argv, timeout_s=seconds + 60)
    assert ran.code == 0, ran.out + ran.err
    # Deadlocks between its own threads are sysbench's business: it counts them and tries again.
    assert re.search(r"reconnects:\s+0 ", ran.out), ran.out
    queries = re.search(r"queries:\s+(\d+)", ran.out)
    assert queries is not None
    assert int(queries[1]) > 1_000


@pytest.mark.usefixtures("sysbench_tables")
@pytest.mark.parametrize("ps_mode", ["auto", "disable"])
async def test_sysbench_sees_no_error(mariadb_door: Door, ps_mode: str) -> None:
    await _read_write(mariadb_door, 2, ps_mode)


@pytest.mark.soak
@pytest.mark.usefixtures("sysbench_tables")
@pytest.mark.parametrize("ps_mode", ["auto", "disable"])
async def test_sysbench_sees_no_error_for_half_a_minute(mariadb_door: Door, ps_mode: str) -> None:
    await _read_write(mariadb_door, 30, ps_mode)
