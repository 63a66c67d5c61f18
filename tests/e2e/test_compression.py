"""MySQL's compression on both legs, with clients and servers that are not ours: what comes is what comes without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy.embedded import MariaDBPair, MySQLPair, Setup, Turnout
from proxy.embedded.fetch_mysql import CLIENT, program
from proxy.embedded.mysql import PASSWORD
from tests.e2e.doors import Door, Ran, run
from tests.e2e.test_mariadb_tools import CONVERSATION

pytestmark = pytest.mark.slow

ON_SOME_LEG = pytest.mark.parametrize(
    ("door", "compress"),
    [("none", "--compress"), ("zlib", "--compress"), ("zlib", "--skip-compress")],
    indirect=["door"],
    scope="module",
)
"""How the engine's leg is compressed, and how the client's."""


def setup_of(address: str, method: str, **changes: Any) -> Setup:
    return Setup(
        **{
            "protocol": "mysql",
            "engines": {"blue": address},
            "admin_user": "turnout",
            "admin_password": PASSWORD,
            "users": {"app": PASSWORD},
            "auth_method": method,
            "databases": ["app"],
            **changes,
        }
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(
    request: pytest.FixtureRequest, mariadb_pair: MariaDBPair, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    """Its server takes large packets."""
    largest = await mariadb_pair.primary.fetchval("select @@global.max_allowed_packet")
    await mariadb_pair.primary.execute(f"set global max_allowed_packet = {256 << 20}")
    setup = setup_of(
        mariadb_pair.primary.address, "mysql_native_password", engine={"server_compression": request.param}
    )
    turnout = Turnout(setup, tmp_path_factory.mktemp("turnout-compression"))
    await turnout.start()
    try:
        yield Door(name=request.param, port=turnout.port)
    finally:
        await turnout.stop()
        await mariadb_pair.primary.execute(f"set global max_allowed_packet = {largest}")


async def client(door: Door, script: str, *more: str) -> Ran:
    return await run(
        ["mariadb", *door.mysql(), "--batch", "--force", "-vv", "--comments", *more, door.database], feed=script
    )


@pytest.mark.mariadb
@ON_SOME_LEG
async def test_the_client_prints_the_same_as_directly(door: Door, mariadb_direct: Door, compress: str) -> None:
    """field-notes: Compression zlib/zstd"""
    expected = await client(mariadb_direct, CONVERSATION)
    seen = await client(door, CONVERSATION, compress)
    assert seen.err == expected.err
    assert seen.out == expected.out
    assert (seen.err, seen.code) == (expected.err, expected.code)


@pytest.mark.mariadb
@ON_SOME_LEG
async def test_what_is_larger_than_a_packet_and_files_pass(door: Door, compress: str, tmp_path: Path) -> None:
    """Here the numbers of the packets within are not those of a plain connection."""
    file = tmp_path / "rows.txt"
    file.write_text("".join(f"{number}\t{'row' * 300} {number}\n" for number in range(1_000_000, 1_006_000)))
    sizes = (45, 200_000, 0xFFFFFF - 60) if door.name == "none" else (45, 200_000, 17_000_000)
    script = (
        "show session status like 'Compression';"
        "create or replace table packed (i int primary key, b longblob);"
        + "".join(f"insert into packed values ({size}, '{'x' * size}');" for size in sizes)
        + "select i, length(b), md5(b) = md5(repeat('x', i)) from packed order by i;"
        "select repeat('y', 0xFFFFFF);"
        f"load data local infile '{file}' into table packed;"
        "select count(*) from packed; drop table packed;"
    )
    seen = await client(door, script, "--local-infile=1", compress, "--max-allowed-packet=256M", "--silent", "--silent")
    assert seen.code == 0, seen.err
    assert seen.err == ""
    assert f"Compression\t{'ON' if door.name == 'zlib' else 'OFF'}" in seen.out
    for size in sizes:
        assert f"\n{size}\t{size}\t1\n" in seen.out
    assert "y" * 0xFFFFFF + "\n" in seen.out
    assert "\n6003\n" in seen.out


# --- real MySQL, and its client -------------------------------------------------------------------------------------

MYSQL_SCRIPT = """
show session status like 'Compression_algorithm';
show session status like 'Compression_level';
create or replace view two as select 2 as two;
select two from two; drop view two;
select sha2(repeat('y', 3000000), 256), length(repeat('z', 17000000)), repeat('wide', 300000);
select nonsense;
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zstd_door(mysql_pair: MySQLPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    """Before real MySQL, which is spoken to by zstd."""
    setup = setup_of(mysql_pair.primary.address, "caching_sha2_password", engine={"server_compression": "zstd"})
    turnout = Turnout(setup, tmp_path_factory.mktemp("turnout-zstd"))
    await turnout.start()
    try:
        yield Door(name="zstd", port=turnout.port)
    finally:
        await turnout.stop()


@pytest.mark.mysql
@pytest.mark.parametrize(
    "how",
    [
        ["--compression-algorithms=zstd", "--zstd-compression-level=19"],
        ["--compression-algorithms=zlib"],
        ["--compression-algorithms=zstd,zlib"],
        ["--compression-algorithms=uncompressed"],
    ],
    ids=["zstd", "zlib", "both", "neither"],
)
async def test_mysqls_own_client_compresses_as_it_likes(zstd_door: Door, mysql_direct: Door, how: list[str]) -> None:
    """field-notes: Compression zlib/zstd"""

    async def ask(door: Door, *more: str) -> Ran:
        words = [
            *program(CLIENT),
            *door.mysql(),
            "--ssl-mode=DISABLED",
            "--get-server-public-key",
            "--force",
            "--named-commands",
        ]
        return await run([*words, "--batch", "--comments", *more, door.database], feed=MYSQL_SCRIPT)

    expected = await ask(mysql_direct)
    seen = await ask(zstd_door, *how)
    assert "Compression_algorithm\tzstd" in seen.out, "the leg to the server"
    assert "Compression_level\t3" in seen.out
    assert seen.out.splitlines()[4:] == expected.out.splitlines()[4:]
    assert (seen.err, seen.code) == (expected.err, expected.code)
