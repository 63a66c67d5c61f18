"""TLS on both legs, with real clients and Debian's PostgreSQL: what is asked for is what is had, or a clear refusal."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import psycopg
import pytest
import pytest_asyncio

from protocols.postgres.messages import (
    build_cancel_request,
    build_gssenc_request,
    build_ssl_request,
    build_startup,
)
from proxy.embedded import PostgresServer, Setup, Turnout, Workspace
from proxy.embedded.certificate import write_certificate
from proxy.embedded.postgres import PASSWORD, SUPERUSER, debian_bin
from tests.e2e.doors import HOST, Door, run
from tests.kit.servers import NICENESS
from tests.kit.turnouts import StartTurnout
from tests.kit.waiting import until

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/usr/lib/postgresql").exists(), reason="Debian's PostgreSQL is not installed"),
]


@dataclass(frozen=True)
class Scene:
    """A server that lets in who comes with TLS only, and a Turnout that demands TLS of its engine and offers it."""

    server: PostgresServer
    turnout: Turnout
    certificate: Path
    """Of the Turnout; its own CA."""

    @property
    def port(self) -> int:
        return self.turnout.port

    def dsn(self, **options: str) -> str:
        return Door(name="session", port=self.port).dsn(**{"sslmode": "require", **options})

    def context(self, alpn: str = "postgresql") -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(self.certificate))
        if alpn:
            made.set_alpn_protocols([alpn])
        return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[PostgresServer]:
    with Workspace("turnout-tls-", niceness=NICENESS) as workspace:
        made = await PostgresServer.create(
            workspace, bin_dir=debian_bin(), tls=True, fsync=False, settings={"wal_level": "logical"}
        )
        rules = made.data / "pg_hba.conf"
        rules.write_text(
            f"hostnossl all {SUPERUSER} 127.0.0.1/32 scram-sha-256\n"
            "hostnossl all all 127.0.0.1/32 reject\n"
            "hostssl all all 127.0.0.1/32 scram-sha-256\n"
            "hostssl replication all 127.0.0.1/32 scram-sha-256\n"
        )
        await made.start()
        try:
            connection = await made.connect(ssl="require")
            await connection.execute(f"create role app login replication password '{PASSWORD}'")
            await connection.execute("create database app owner app")
            await connection.close()
            yield made
        finally:
            await made.stop("immediate")


def setup_of(server: PostgresServer, folder: Path, **changes: object) -> Setup:
    """Files of certificates are in `folder`."""
    return Setup(
        protocol="postgresql",
        engines={"blue": server.address},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        databases=["app"],
        listener={
            "client_tls_sslmode": "prefer",
            "client_tls_cert_file": str(folder / "server.crt"),
            "client_tls_key_file": str(folder / "server.key"),
        },
        engine={
            "server_tls_sslmode": "verify-full",
            "server_tls_ca_file": str(server.data / "server.crt"),
        },
        **changes,  # type: ignore[arg-type]  # any field of it
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("tls")
    _key, certificate = write_certificate(folder)
    turnout = Turnout(setup_of(server, folder), folder)
    await turnout.start()
    try:
        yield Scene(server, turnout, certificate)
    finally:
        await turnout.stop()


ENCRYPTED = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"


# --- clients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"sslmode": "disable"}, {"sslmode": "require"}, {"sslmode": "verify-full"}])
async def test_psycopg_gets_the_tls_it_asks_for(scene: Scene, options: dict[str, str]) -> None:
    if options["sslmode"] == "verify-full":
        options = {**options, "sslrootcert": str(scene.certificate)}
    async with await psycopg.AsyncConnection.connect(scene.dsn(**options)) as connection:
        assert connection.pgconn.ssl_in_use == (options["sslmode"] != "disable")
        cursor = await connection.execute(ENCRYPTED)
        assert await cursor.fetchone() == (True,), "whatever the client does, the engine's leg has TLS"


async def test_direct_tls_and_a_long_result(scene: Scene) -> None:
    """field-notes: Direct TLS"""
    connection = await asyncpg.connect(
        Door(name="session", port=scene.port).dsn(), ssl=scene.context(), direct_tls=True, server_settings={}
    )
    try:
        size = 3_000_000
        assert len(await connection.fetchval("select repeat('x', $1)", size)) == size
        assert await connection.fetchval("select length($1::text)", "y" * size) == size
        rows = await connection.fetch("select i, repeat('z', 100) from generate_series(1, 20000) i")
        assert len(rows) == 20_000
    finally:
        await connection.close()


@pytest.mark.parametrize("alpn", ["", "http/1.1"])
async def test_direct_tls_for_another_protocol_is_refused(scene: Scene, alpn: str) -> None:
    """field-notes: Direct TLS"""
    reader, writer = await asyncio.open_connection(HOST, scene.port, ssl=scene.context(alpn))
    try:
        writer.write(build_startup("app", "app"))
        assert await reader.read() == b""
    finally:
        writer.transport.abort()


async def test_gss_then_tls_then_a_login(scene: Scene) -> None:
    """field-notes: SSLRequest / GSSENCRequest"""
    reader, writer = await asyncio.open_connection(HOST, scene.port)
    try:
        writer.write(build_gssenc_request())
        assert await reader.readexactly(1) == b"N"
        writer.write(build_ssl_request())
        assert await reader.readexactly(1) == b"S"
        await writer.start_tls(scene.context(), server_hostname="localhost")
        writer.write(build_startup("app", "app"))
        assert await reader.readexactly(1) == b"R"
    finally:
        writer.transport.abort()


async def test_what_came_in_clear_before_tls_is_never_used(scene: Scene) -> None:
    """field-notes: SSLRequest / GSSENCRequest"""
    reader, writer = await asyncio.open_connection(HOST, scene.port)
    try:
        writer.write(build_ssl_request() + build_startup("app", "app"))
        assert b"S" not in await reader.read(1)
    finally:
        writer.transport.abort()


async def test_psql_and_pgbench_work_through_tls(scene: Scene) -> None:
    env = {
        **Door(name="session", port=scene.port).libpq(),
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": str(scene.certificate),
        "PGHOST": "localhost",
        "PGHOSTADDR": HOST,
    }
    ran = await run(["psql", "-XAtc", "select 1 + 1", "-c", "\\conninfo"], env=env)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("2\n")
    assert "SSL connection" in ran.out
    ran = await run(["pgbench", "-n", "-c", "4", "-t", "50", "-M", "prepared", "-f", "-"], env=env, feed="select 1;\n")
    assert ran.code == 0, ran.err
    assert "number of failed transactions: 0" in ran.out


# --- what a port demands ------------------------------------------------------------------------------------------


async def test_a_port_that_wants_client_certificates_takes_none_without(
    server: PostgresServer, start_turnout: StartTurnout, tmp_path: Path
) -> None:
    key, certificate = write_certificate(tmp_path)
    setup = setup_of(server, tmp_path)
    setup.listener = {
        **setup.listener,
        "client_tls_sslmode": "verify-full",
        "client_tls_ca_file": str(certificate),
    }
    turnout = await start_turnout(setup)
    door = Door(name="session", port=turnout.port)
    with pytest.raises(psycopg.OperationalError, match="takes no client without TLS"):
        await psycopg.AsyncConnection.connect(door.dsn())
    with pytest.raises(psycopg.OperationalError):
        await psycopg.AsyncConnection.connect(door.dsn(sslmode="require", sslcert="/nonexistent"))
    shown = {"sslmode": "require", "sslcert": str(certificate), "sslkey": str(key)}
    async with await psycopg.AsyncConnection.connect(door.dsn(**shown)) as connection:
        await connection.execute("select 1")

    # Another certificate takes the first one's place, and the next client sees it; who is there stays.
    async with await psycopg.AsyncConnection.connect(door.dsn(**shown)) as before:
        before_der = certificate_of(turnout.port, key, certificate)
        elsewhere = tmp_path / "new"
        elsewhere.mkdir()
        new_key, new_certificate = write_certificate(elsewhere)
        keep = certificate.read_bytes()
        (tmp_path / "shown.crt").write_bytes(keep)
        (tmp_path / "shown.key").write_bytes(key.read_bytes())
        (tmp_path / "shown.key").chmod(0o600)
        new_key.replace(key)
        certificate.write_bytes(new_certificate.read_bytes() + keep)
        assert turnout.pid is not None
        os.kill(turnout.pid, signal.SIGHUP)

        def is_new() -> bool:
            return certificate_of(turnout.port, tmp_path / "shown.key", tmp_path / "shown.crt") != before_der

        await until(lambda: asyncio.to_thread(is_new), "the new certificate")
        await before.execute("select 1")


def certificate_of(port: int, key: Path, certificate: Path) -> bytes | None:
    """What the port shows to a client that shows `certificate`."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["postgresql"])
    context.load_cert_chain(certificate, key)
    with socket.create_connection((HOST, port)) as plain, context.wrap_socket(plain) as wrapped:
        return wrapped.getpeercert(binary_form=True)


# --- the engine's leg ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
async def test_without_demands_the_engine_decides(
    server: PostgresServer, start_turnout: StartTurnout, tmp_path: Path, mode: str
) -> None:
    """This one lets nobody in without TLS: `allow` and `prefer` find that out, `disable` is refused."""
    write_certificate(tmp_path)
    setup = setup_of(server, tmp_path)
    setup.engine = {"server_tls_sslmode": mode}
    turnout = await start_turnout(setup)
    door = Door(name="session", port=turnout.port)
    if mode == "disable":
        with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf"):
            await psycopg.AsyncConnection.connect(door.dsn())
        return
    async with await psycopg.AsyncConnection.connect(door.dsn()) as connection:
        cursor = await connection.execute(ENCRYPTED)
        assert await cursor.fetchone() == (True,)


async def test_turnouts_own_connections_have_the_tls_of_their_engine(scene: Scene) -> None:
    connection = await scene.server.connect()
    try:
        rows = await connection.fetch(
            "select application_name, ssl from pg_stat_ssl join pg_stat_activity using (pid) where application_name = $1",
            "turnout",
        )
        assert rows
        assert all(row["ssl"] for row in rows)
    finally:
        await connection.close()


END = "select pid, pg_terminate_backend(pid) from pg_stat_activity where usename = 'either'"


async def test_a_reload_brings_turnouts_own_connections_other_tls(
    server: PostgresServer, start_turnout: StartTurnout, tmp_path: Path
) -> None:
    """Its account is let in with and without."""
    write_certificate(tmp_path)
    setup = setup_of(server, tmp_path)
    demanding, setup.engine = setup.engine, {"server_tls_sslmode": "disable"}
    setup.admin_user = "either"
    control = await server.connect(ssl="require")
    await control.execute(f"create role either superuser login password '{PASSWORD}'")
    rules = server.data / "pg_hba.conf"
    rules.write_text("host all either 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
    await control.execute("select pg_reload_conf()")
    turnout = await start_turnout(setup)

    async def anew() -> list[bool]:
        """Whether each of its connections that are made anew has TLS."""
        ended = [row["pid"] for row in await control.fetch(END)]
        ask = (
            "select ssl from pg_stat_ssl join pg_stat_activity using (pid) "
            "where usename = 'either' and pid <> all($1::int[])"
        )
        found: list[bool] = []

        async def is_back() -> bool:
            found[:] = [row["ssl"] for row in await control.fetch(ask, ended)]
            return bool(found)

        await until(is_back, "it comes again")
        return found

    async def is_reachable() -> bool:
        [row] = await turnout.get("/v1/engines?service=app")
        return bool(row["engine"]["state"]) and bool(row["engine"]["state"]["is_reachable"])

    async def reload(engine: Mapping[str, object]) -> None:
        replace(setup, engine=engine).write(turnout.folder)
        async with turnout.control() as client:
            (await client.post("/v1/config/reload")).raise_for_status()

    try:
        await until(is_reachable, "it is looked at")
        assert not any(await anew())
        await reload(demanding)
        assert all(await anew())
        await until(is_reachable, "it is looked at again")

        # Of another server.
        await reload({**demanding, "server_tls_ca_file": str(tmp_path / "server.crt")})
        await control.execute(END)

        async def is_doubted() -> bool:
            return not await is_reachable()

        await until(is_doubted, "its certificate is refused")
        await reload(demanding)
        await until(is_reachable, "with the right CA it is taken again")
    finally:
        await control.close()


# --- cancel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["clear", "tls", "direct"])
async def test_a_cancel_reaches_its_query_however_it_comes_and_is_not_answered(scene: Scene, way: str) -> None:
    """field-notes: Cancel answered with RFQ / forwarded by TCP LB to other node"""
    connection = await asyncpg.connect(Door(name="session", port=scene.port).dsn(), ssl=scene.context())
    try:
        pid, secret = connection.get_server_pid(), connection._protocol.backend_secret
        assert pid == await connection.fetchval("select pg_backend_pid()")
        running = asyncio.create_task(connection.execute("select pg_sleep(60)"))
        await until(lambda: sleeps(scene.server, pid), "the query runs")
        reader, writer = await asyncio.open_connection(
            HOST, scene.port, ssl=scene.context() if way == "direct" else None
        )
        if way == "tls":
            writer.write(build_ssl_request())
            assert await reader.readexactly(1) == b"S"
            await writer.start_tls(scene.context(), server_hostname="localhost")
        writer.write(build_cancel_request(pid, secret.to_bytes(4, "big", signed=True)))
        assert await reader.read() == b""
        writer.transport.abort()
        with pytest.raises(asyncpg.QueryCanceledError):
            await running
        assert await connection.fetchval("select 1") == 1, "it was over when the cancel connection ended"
    finally:
        await connection.close()


async def sleeps(server: PostgresServer, pid: int) -> bool:
    connection = await server.connect(ssl="require")
    try:
        sql = "select count(*) from pg_stat_activity where pid = $1 and query ~ 'pg_sleep' and state = 'active'"
        return bool(await connection.fetchval(sql, pid))
    finally:
        await connection.close()


# --- replication --------------------------------------------------------------------------------------------------


async def test_replication_is_relayed_and_pins_its_session(scene: Scene, tmp_path: Path) -> None:
    """field-notes: CopyBoth / replication=…"""
    env = {**Door(name="session", port=scene.port).libpq(), "PGSSLMODE": "require"}
    ran = await run(["psql", "-XAt", "replication=database", "-c", "IDENTIFY_SYSTEM"], env=env)
    assert ran.code == 0, ran.err
    assert "|app" in ran.out
    bin_dir = scene.server.bin_dir
    ran = await run([bin_dir / "pg_basebackup", "-D", tmp_path / "base", "-X", "stream", "-c", "fast"], env=env)
    assert ran.code == 0, ran.err
    assert (tmp_path / "base" / "PG_VERSION").exists()

    slot = ["-S", "turnout", "-d", "app"]
    ran = await run([bin_dir / "pg_recvlogical", *slot, "--create-slot", "-P", "test_decoding"], env=env)
    assert ran.code == 0, ran.err
    out = tmp_path / "changes"

    async def streamed() -> None:
        await until(lambda: pinned(scene), "the pinned session is shown")
        connection = await scene.server.connect("app", ssl="require")
        await connection.execute("create table if not exists told (a int)")
        await connection.execute("insert into told values (4711)")
        await connection.close()
        await until(lambda: out.exists() and "4711" in out.read_text(), "the change was streamed")

    stream: list[str | Path] = [bin_dir / "pg_recvlogical", *slot, "--start", "-f", out, "-F", "0", "-s", "1"]
    ran = await run(stream, env=env, interrupt_when=streamed)
    assert "4711" in out.read_text(), ran.err
    ran = await run([bin_dir / "pg_recvlogical", *slot, "--drop-slot"], env=env)
    assert ran.code == 0, ran.err


async def pinned(scene: Scene) -> bool:
    sessions = await scene.turnout.get("/v1/sessions")
    return any("replication connection" in session["pins"] for session in sessions)
