"""MySQL's logins with a real client and real servers: TLS on both legs, users of the engine, cold caches, balancers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import pytest
import pytest_asyncio

from proxy.embedded import MariaDBPair, MySQLPair, Setup, Turnout
from proxy.embedded.certificate import write_certificate
from proxy.embedded.mysql import PASSWORD, MySqlFamilyServer
from tests.e2e.doors import HOST, Door
from tests.e2e.mysql_rules import ask, connect, refusal
from tests.kit.turnouts import StartTurnout

pytestmark = pytest.mark.slow


def setup_of(address: str, method: str, folder: Path, **changes: Any) -> Setup:
    """Users are those of the engine; each session opens a backend of its own. Files of certificates are in `folder`."""
    return Setup(
        **{
            "protocol": "mysql",
            "engines": {"blue": address},
            "admin_user": "turnout",
            "admin_password": PASSWORD,
            "users": {},
            "auth_method": method,
            "databases": ["app"],
            "service": {"auth": {"method": method}, "server_lifetime_s": 0},
            "listener": {
                "client_tls_sslmode": "PREFERRED",
                "client_tls_cert_file": str(folder / "server.crt"),
                "client_tls_key_file": str(folder / "server.key"),
            },
            **changes,
        }
    )


@dataclass(frozen=True)
class Scene:
    server: MySqlFamilyServer
    door: Door
    certificate: Path

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


# --- real MySQL -----------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(mysql_pair: MySQLPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """A Turnout that demands TLS of its engine and offers it to clients."""
    folder = tmp_path_factory.mktemp("mysql-tls")
    _key, certificate = write_certificate(folder)
    server = mysql_pair.primary
    setup = setup_of(
        server.address,
        "caching_sha2_password",
        folder,
        engine={
            "server_tls_sslmode": "VERIFY_CA",
            "server_tls_ca_file": str(server.data / "ca.pem"),
        },
    )
    turnout = Turnout(setup, folder)
    await turnout.start()
    try:
        yield Scene(server, Door(name="session", port=turnout.port), certificate)
    finally:
        await turnout.stop()


@pytest.mark.mysql
@pytest.mark.parametrize("client_tls", [False, True])
async def test_the_engine_s_leg_has_tls_whatever_the_client_does(scene: Scene, client_tls: bool) -> None:
    options: dict[str, Any] = {"ssl": scene.tls()} if client_tls else {"ssl_disabled": True}

    def look() -> None:
        with closing(connect(scene.door, **options)) as connection:
            assert isinstance(connection._sock, ssl.SSLSocket) == client_tls
            assert ask(connection, "show session status like 'Ssl_cipher'")[0][1]
            assert ask(connection, "select repeat('x', 3000000)")[0][0] == "x" * 3_000_000

    await asyncio.to_thread(look)


@pytest.mark.mysql
@pytest.mark.parametrize("client_tls", [False, True])
async def test_a_cold_cache_of_the_engine_does_not_surface(scene: Scene, client_tls: bool) -> None:
    """The engine forgets all passwords; who has logged in at Turnout before does so again, by the fast form.

    field-notes: caching_sha2 fast vs full auth
    """
    options: dict[str, Any] = {"ssl": scene.tls()} if client_tls else {"ssl_disabled": True}

    def log_in() -> None:
        with closing(connect(scene.door, **options)) as connection:
            assert ask(connection, "select substring_index(current_user(), '@', 1)") == (("app",),)

    await asyncio.to_thread(log_in)
    await scene.server.execute("flush privileges")
    await asyncio.to_thread(log_in)


@pytest.mark.mysql
async def test_a_wrong_password_and_a_stranger_look_the_same(scene: Scene) -> None:
    for options in ({"ssl": scene.tls()}, {"ssl_disabled": True}):
        code, text = await asyncio.to_thread(refusal, scene.door, password="wrong", **options)
        stranger = await asyncio.to_thread(refusal, scene.door, user="nobody", **options)
        assert (code, text.replace("app", "nobody")) == (1045, stranger[1])


@pytest.mark.mysql
async def test_a_changed_password_takes_effect_without_a_restart(scene: Scene) -> None:
    await scene.server.execute("create user changing@'%' identified by 'old'", "grant all on app.* to changing@'%'")
    try:

        def log_in(password: str) -> None:
            connect(scene.door, user="changing", password=password).close()

        await asyncio.to_thread(log_in, "old")
        await scene.server.execute("alter user changing@'%' identified by 'new'")
        await asyncio.to_thread(log_in, "new")
        assert (await asyncio.to_thread(refusal, scene.door, user="changing", password="old"))[0] == 1045
        await scene.server.execute("alter user changing@'%' account lock")
        assert (await asyncio.to_thread(refusal, scene.door, user="changing", password="old"))[0] == 1045
    finally:
        await scene.server.execute("drop user changing@'%'")


@pytest.mark.mysql
async def test_passwords_in_clear_text_are_taken_within_tls_only(
    mysql_pair: MySQLPair, scene: Scene, start_turnout: StartTurnout
) -> None:
    setup = setup_of(mysql_pair.primary.address, "mysql_clear_password", scene.certificate.parent)
    turnout = await start_turnout(setup)
    door = Door(name="session", port=turnout.port)

    def talk() -> None:
        with closing(connect(door, ssl=scene.tls())) as connection:
            assert ask(connection, "select 1") == ((1,),)
        code, text = refusal(door, ssl_disabled=True)
        assert code == 1045
        assert "--ssl-mode=REQUIRED" in text

    await asyncio.to_thread(talk)


# --- MariaDB --------------------------------------------------------------------------------------------------------


@pytest.mark.mariadb
async def test_a_port_may_demand_tls_and_a_native_proof_opens_backends(
    mariadb_pair: MariaDBPair, start_turnout: StartTurnout, tmp_path: Path
) -> None:
    """MariaDB keeps SHA1(SHA1(password)); the client's proof yields SHA1(password), which opens backends there."""
    _key, certificate = write_certificate(tmp_path)
    setup = setup_of(mariadb_pair.primary.address, "mysql_native_password", tmp_path)
    setup.listener = {**setup.listener, "client_tls_sslmode": "REQUIRED"}
    turnout = await start_turnout(setup)
    door = Door(name="session", port=turnout.port)

    def talk() -> None:
        context = ssl.create_default_context(cafile=str(certificate))
        with closing(connect(door, ssl=context)) as connection:
            assert ask(connection, "select substring_index(current_user(), '@', 1)") == (("app",),)
            seen = dict(
                ask(
                    connection,
                    "select variable_name, variable_value from information_schema.session_status "
                    "where variable_name = 'Ssl_cipher'",
                )
            )
            assert seen == {"SSL_CIPHER": ""}, "this MariaDB has no TLS, and PREFERRED goes without"
        assert refusal(door, ssl=context, password="wrong")[0] == 1045
        code, text = refusal(door, ssl_disabled=True)
        assert code == 3159
        assert "TLS" in text

    await asyncio.to_thread(talk)


@pytest.mark.mariadb
async def test_a_balancer_says_for_whom_it_speaks(
    mariadb_pair: MariaDBPair, start_turnout: StartTurnout, tmp_path: Path
) -> None:
    """field-notes: Connection attributes, SSLRequest half-packet, PROXY protocol"""
    setup = setup_of(mariadb_pair.primary.address, "mysql_native_password", tmp_path)
    setup.listener = {"proxy_protocol": ["127.0.0.0/8"]}
    turnout = await start_turnout(setup)

    async def begin(header: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, turnout.port)
        try:
            writer.write(header)
            return await asyncio.wait_for(reader.read(5), 20)
        finally:
            writer.close()

    assert (await begin(b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 6033\r\n"))[4:] == b"\x0a", "the greeting"
    assert await begin(b"GET / HTTP/1.1\r\n\r\n") == b""

    def talk() -> pymysql.connections.Connection[Any]:
        sock = socket.create_connection((HOST, turnout.port), 20)
        sock.sendall(b"PROXY TCP6 2001:db8::9 ::1 4711 6033\r\n")
        connection = pymysql.connect(
            user="app", password=PASSWORD, database="app", ssl_disabled=True, defer_connect=True
        )
        connection.connect(sock)
        assert ask(connection, "select 1") == ((1,),)
        return connection

    with closing(await asyncio.to_thread(talk)):
        (session,) = await turnout.get("/v1/sessions")
        assert session["client"] == "[2001:db8::9]:4711"
