"""Who may log in, by which method, and what then opens the backends: real clients, one Turnout with a service for each
way, before one real server."""

from __future__ import annotations

import base64
import datetime as dt
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import psycopg
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocols.postgres.auth import MECHANISM, ScramClient, build_verifier, is_verifier, md5_secret
from protocols.postgres.messages import (
    build_ready,
    build_sasl_initial,
    build_sasl_response,
    build_startup,
    build_terminate,
)
from proxy.embedded import PostgresServer, Setup, Turnout, Workspace
from proxy.embedded.certificate import write_certificate
from proxy.embedded.postgres import PASSWORD, SUPERUSER, debian_bin
from tests.e2e.doors import HOST, run
from tests.kit.waiting import until
from tests.protocols.postgres.relay import tags

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

NONE: Final = "/nonexistent"
"""libpq shows no certificate then."""

LONG: Final = "long" * 3000
"""A token of a cloud service may have some thousand characters."""

SERVICES: Final = """
[service.plain]
auth = { method = "scram-sha-256", users = { file = "plain.txt" } }
[service.verifier]
auth = { method = "scram-sha-256", users = { file = "verifiers.txt" } }
[service.lent]
auth = { method = "scram-sha-256", users = { file = "verifiers.txt" } }
pool_mode = "transaction"
[service.hash]
auth = { method = "md5", users = { file = "hashes.txt" } }
[service.cleartext]
auth = { method = "password", password_in_clear = true, users = { file = "mixed.txt" } }
[service.tlsonly]
auth = { method = "password", users = { file = "plain.txt" } }
[service.asked]
auth = { method = "scram-sha-256", auth_query = "select * from finder.user_lookup($1)", auth_user = "finder", \
auth_dbname = "asked", users = { file = "finder.txt" } }
[service.catalogue]
auth = { method = "scram-sha-256", auth_query = "select usename, passwd from pg_shadow where usename = $1" }
[service.broken]
auth = { method = "scram-sha-256", auth_query = "select rolname from nowhere where rolname = $1" }
[service.ruled]
auth = { method = "hba", hba = { file = "hba.conf" }, users = { file = "plain.txt" } }
[service.certified]
auth = { method = "cert" }
[service.rotated]
auth = { method = "scram-sha-256", users = { file = "rotated.txt" } }
"""

PROVEN: Final = ["plain", "verifier", "lent", "hash", "cleartext", "asked", "catalogue", "ruled"]
"""Services that `app` can log in to with its password."""

RULES: Final = """
host    ruled  app       127.0.0.1/32  scram-sha-256
host    ruled  by_md5    all           md5
host    ruled  trusted   all           trust
host    ruled  banned    all           reject
hostssl all    tls_only  all           scram-sha-256
"""

ROLES: Final = """
create role app login password 'secret';
create role other login password 'secret';
create role rotated login password 'before';
create role expired login password 'secret' valid until '2020-01-01';
create role later login password 'secret' valid until '2999-01-01';
create role nologin nologin password 'secret';
create role nopassword login;
create role trusted login;
create role by_password login password 'secret';
create role tls_only login password 'secret';
create role long login password '{long}';
set password_encryption = 'md5';
create role by_md5 login password 'secret';
set password_encryption = 'scram-sha-256';
create role finder login password 'finds';
"""

FINDER: Final = """
create schema finder authorization finder;
create function finder.user_lookup(in i text, out name text, out secret text) language sql security definer
  set search_path = pg_catalog
  as 'select rolname::text, rolpassword from pg_authid where rolname = i and not rolsuper';
revoke all on function finder.user_lookup(text) from public;
grant execute on function finder.user_lookup(text) to finder;
"""

SERVER_RULES: Final = """
host all trusted     127.0.0.1/32 trust
host all by_password 127.0.0.1/32 password
host all by_md5      127.0.0.1/32 md5
host all all         127.0.0.1/32 scram-sha-256
"""


def verifier(password: str, salt: bytes) -> str:
    made = build_verifier(password, salt)
    parts = [base64.b64encode(part).decode() for part in (made.salt, made.stored_key, made.server_key)]
    return f"SCRAM-SHA-256$4096:{parts[0]}${parts[1]}:{parts[2]}"


@dataclass(kw_only=True)
class Services(Setup):
    """The first service is Setup's own; the others stand in SERVICES."""

    secrets: dict[str, str]
    """rolpassword of the engine's roles."""

    def write(self, folder: Path) -> Path:
        path = super().write(folder)
        names = [line[9:-1] for line in SERVICES.splitlines() if line.startswith("[service.")]
        text = SERVICES
        for name in names:
            text = text.replace(
                f"[service.{name}]\n",
                f"""
[service.{name}.engine.blue]
address = "{self.engines["blue"]}"
[service.{name}]
protocol = "postgresql"
databases = ["{name}"]
active = "blue"
admin = {{ user = "{SUPERUSER}", password = {{ file = "admin.txt" }} }}
""",
            )
        path.write_text(path.read_text() + text)
        plain = {
            "app": PASSWORD, "by_md5": PASSWORD, "by_password": PASSWORD, "trusted": "x", "banned": "x",
            "tls_only": PASSWORD, "long": LONG,
        }  # fmt: skip
        self.users_file(folder / "plain.txt", plain)
        verifiers = {user: secret for user, secret in self.secrets.items() if is_verifier(secret)}
        self.users_file(folder / "verifiers.txt", {**verifiers, "other": verifier(PASSWORD, b"another salt....")})
        self.users_file(folder / "mixed.txt", self.secrets)
        hashes = {"app": md5_secret("app", PASSWORD), "by_md5": md5_secret("by_md5", PASSWORD)}
        self.users_file(
            folder / "hashes.txt", {**hashes, "app": PASSWORD, "long": LONG, "other": self.secrets["other"]}
        )
        self.users_file(folder / "finder.txt", {"finder": "finds"})
        self.users_file(folder / "rotated.txt", {"rotated": "before", "app": PASSWORD})
        (folder / "hba.conf").write_text(RULES)
        return path

    @staticmethod
    def users_file(path: Path, users: dict[str, str]) -> None:
        new = path.with_suffix(".new")
        new.write_text("".join(f'"{user}" "{secret}"\n' for user, secret in users.items()))
        new.rename(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[PostgresServer]:
    with Workspace("turnout-test-", niceness=10) as workspace:
        made = await PostgresServer.create(workspace, bin_dir=debian_bin(), tls=True, fsync=False, max_connections=100)
        rules = made.data / "pg_hba.conf"
        rules.write_text(SERVER_RULES + rules.read_text())
        await made.start()
        try:
            superuser = await made.connect()
            for statement in ROLES.format(long=LONG).strip().split(";\n"):
                await superuser.execute(statement)
            for name in [line[9:-1] for line in SERVICES.splitlines() if line.startswith("[service.")]:
                await superuser.execute(f"create database {name}")
            await superuser.close()
            for statement in FINDER.strip().split(";\n"):
                await made.execute(statement, database="asked")
            yield made
        finally:
            await made.stop("immediate")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnout(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Turnout]:
    connection = await server.connect()
    rows = await connection.fetch("select rolname, rolpassword from pg_authid where rolpassword is not null")
    await connection.close()
    setup = Services(
        protocol="postgresql",
        engines={"blue": server.address},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        databases=["postgres"],
        secrets={row["rolname"]: row["rolpassword"] for row in rows},
    )
    folder = tmp_path_factory.mktemp("logins")
    key, certificate = write_certificate(folder)
    clients = [client_certificate(folder, name) for name in ("trusted", "app")]
    (folder / "clients.crt").write_text("".join(one.read_text() for one in clients))
    setup.listener = {
        "client_tls_sslmode": "allow",
        "client_tls_cert_file": str(certificate),
        "client_tls_key_file": str(key),
        "client_tls_ca_file": "clients.crt",
    }
    one = Turnout(setup, folder)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


def client_certificate(folder: Path, name: str) -> Path:
    """`NAME.key` and `NAME.crt`, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.crt"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = folder / f"{name}.key"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    private.chmod(0o600)
    return path


async def connect(
    turnout: Turnout, service: str, user: str = "app", password: str = PASSWORD, **more: Any
) -> psycopg.AsyncConnection[Any]:
    words = {"host": HOST, "port": turnout.port, "user": user, "password": password, "dbname": service}
    return await psycopg.AsyncConnection.connect(
        **{**words, "sslmode": "disable", "connect_timeout": 20, "autocommit": True, **more}
    )


async def who(turnout: Turnout, service: str, user: str = "app", password: str = PASSWORD, **more: Any) -> str:
    """Log in and ask the server whom it sees."""
    async with await connect(turnout, service, user, password, **more) as connection:
        cursor = await connection.execute("select current_user::text")
        row = await cursor.fetchone()
        assert row is not None
        return str(row[0])


async def refusal(turnout: Turnout, service: str, user: str = "app", password: str = PASSWORD, **more: Any) -> str:
    with pytest.raises(psycopg.OperationalError) as refused:
        await connect(turnout, service, user, password, **more)
    return str(refused.value)


async def opens_freshly(server: PostgresServer, database: str, user: str) -> None:
    """End the pool's idle backends, so that the next client needs a new one."""
    await server.execute(
        f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '{database}' and usename = '{user}'"
    )


# --- methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", PROVEN)
@pytest.mark.parametrize("client", ["psycopg", "asyncpg", "psql"])
async def test_every_client_gets_in_by_every_method(turnout: Turnout, service: str, client: str) -> None:
    """field-notes: Auth"""
    if client == "psycopg":
        assert await who(turnout, service) == "app"
    elif client == "asyncpg":
        connection = await asyncpg.connect(
            host=HOST, port=turnout.port, user="app", password=PASSWORD, database=service, ssl=False, timeout=20
        )
        assert await connection.fetchval("select current_user::text") == "app"
        await connection.close()
    else:
        env = {"PGHOST": HOST, "PGPORT": str(turnout.port), "PGUSER": "app", "PGPASSWORD": PASSWORD}
        ran = await run(["psql", "-XAtc", "select current_user", service], env={**env, "PGSSLMODE": "disable"})
        assert (ran.out.strip(), ran.err) == ("app", "")


@pytest.mark.parametrize("service", PROVEN)
async def test_a_wrong_password_and_an_unknown_user_are_told_the_same(turnout: Turnout, service: str) -> None:
    wrong = await refusal(turnout, service, password="wrong")
    assert 'password authentication failed for user "app"' in wrong
    if service != "ruled":
        unknown = await refusal(turnout, service, user="nobody", password="wrong")
        assert unknown.replace("nobody", "app") == wrong


@pytest.mark.parametrize("user", ["trusted", "by_password", "by_md5", "app"])
async def test_engines_are_logged_in_to_by_whatever_they_ask_for(turnout: Turnout, user: str) -> None:
    """A password in plain text opens them all."""
    password = {"trusted": "x"}.get(user, PASSWORD)
    assert await who(turnout, "plain", user, password) == user


async def test_a_login_ends_in_one_piece_where_a_backend_is_idle(turnout: Turnout) -> None:
    """What ends the proof and what ends the login are sent together: two pieces are two packets and two wake-ups."""
    raw_login(turnout.port, "lent")  # opens the backend
    piece = raw_login(turnout.port, "lent")
    assert tags(piece)[:2] == "RR"
    assert tags(piece)[-2:] == "KZ"


def raw_login(port: int, database: str) -> bytes:
    """Log in by SCRAM and leave; returns the first bytes that come behind the proof."""
    scram = ScramClient(PASSWORD)
    with socket.create_connection((HOST, port), timeout=20) as client:
        client.sendall(build_startup("app", database))
        client.recv(65536)
        client.sendall(build_sasl_initial(MECHANISM, scram.first()))
        client.sendall(build_sasl_response(scram.last(client.recv(65536)[9:])))
        first = received = client.recv(65536)
        while not received.endswith(build_ready()):
            received += client.recv(65536)
        client.sendall(build_terminate())
        return first


async def test_an_md5_hash_is_enough_where_the_engine_asks_for_md5(turnout: Turnout) -> None:
    assert await who(turnout, "hash", "by_md5") == "by_md5"


async def test_a_verifier_in_the_file_makes_method_md5_ask_for_scram(turnout: Turnout) -> None:
    """As PgBouncer does. psycopg is told to refuse md5."""
    assert await who(turnout, "hash", "other", require_auth="scram-sha-256") == "other"


async def test_a_password_in_clear_text_is_not_asked_for_without_tls(turnout: Turnout) -> None:
    text = await refusal(turnout, "tlsonly")
    assert "passwords in clear text over TLS only" in text
    assert "password_in_clear" in text


@pytest.mark.parametrize("service", ["plain", "cleartext", "hash"])
async def test_a_long_password_is_a_password(turnout: Turnout, service: str) -> None:
    """field-notes: Oversized/partial startup packet, long password, missing SQLSTATE, length overflow"""
    assert await who(turnout, service, "long", LONG) == "long"
    assert "password authentication failed" in await refusal(turnout, service, "long", LONG[:-1])


# --- over TLS -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["plain", "verifier", "lent", "asked", "ruled"])
@pytest.mark.parametrize("binding", ["require", "disable"])
async def test_a_proof_is_bound_to_its_connection_if_the_client_wants_it(
    turnout: Turnout, service: str, binding: str
) -> None:
    """field-notes: Auth"""
    assert await who(turnout, service, sslmode="require", sslcert=NONE, channel_binding=binding) == "app"
    text = await refusal(turnout, service, password="wrong", sslmode="require", sslcert=NONE, channel_binding=binding)
    assert "password authentication failed" in text


async def test_psql_and_asyncpg_get_in_over_tls(turnout: Turnout) -> None:
    env = {"PGHOST": HOST, "PGPORT": str(turnout.port), "PGUSER": "app", "PGPASSWORD": PASSWORD}
    env |= {"PGSSLMODE": "require", "PGCHANNELBINDING": "require"}
    ran = await run(["psql", "-XAtc", "select current_user", "verifier"], env=env)
    assert (ran.out.strip(), ran.err) == ("app", "")
    connection = await asyncpg.connect(
        host=HOST, port=turnout.port, user="app", password=PASSWORD, database="verifier", ssl="require", timeout=20
    )
    assert await connection.fetchval("select current_user::text") == "app"
    await connection.close()


async def test_a_password_in_clear_text_is_taken_over_tls(turnout: Turnout) -> None:
    assert await who(turnout, "tlsonly", sslmode="require", sslcert=NONE, require_auth="password") == "app"


async def test_a_rule_for_tls_lets_clients_with_tls_in(turnout: Turnout) -> None:
    assert await who(turnout, "ruled", "tls_only", sslmode="require", sslcert=NONE) == "tls_only"


async def test_a_certificate_lets_the_user_in_whom_it_names(turnout: Turnout) -> None:
    def shown(name: str) -> dict[str, str]:
        folder = turnout.folder
        return {"sslmode": "require", "sslcert": str(folder / f"{name}.crt"), "sslkey": str(folder / f"{name}.key")}

    assert await who(turnout, "certified", "trusted", "", **shown("trusted")) == "trusted"
    text = await refusal(turnout, "certified", "trusted", "", **shown("app"))
    assert 'certificate authentication failed for user "trusted"' in text
    for without in ({"sslmode": "disable"}, {"sslmode": "require", "sslcert": NONE}):
        text = await refusal(turnout, "certified", "trusted", "", **without)
        assert "requires a valid client certificate" in text


# --- pass-through -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["verifier", "lent", "asked"])
async def test_the_clients_own_proof_opens_its_backends(turnout: Turnout, server: PostgresServer, service: str) -> None:
    """field-notes: Auth

    No password is stored anywhere: the file, or the engine's answer, has a verifier only."""
    for _ in range(2):
        await opens_freshly(server, service, "app")
        assert await who(turnout, service) == "app"


async def test_what_a_client_sent_in_clear_text_opens_its_backends(turnout: Turnout, server: PostgresServer) -> None:
    await opens_freshly(server, "cleartext", "by_md5")
    assert await who(turnout, "cleartext", "by_md5") == "by_md5"


async def test_a_verifier_that_is_not_the_engines_proves_and_opens_nothing_and_that_is_said(turnout: Turnout) -> None:
    text = await refusal(turnout, "verifier", "other")
    assert "is not the one of this server" in text
    assert "rolpassword" in text


# --- users of the engine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["asked", "catalogue"])
@pytest.mark.parametrize(
    "user", ["expired", "nologin", "nopassword", "nobody", "", "a" * 70, "' or ''='", 'x"; --', "ü$1"]
)
async def test_whom_the_engine_would_not_let_in_is_not_let_in(turnout: Turnout, service: str, user: str) -> None:
    """VALID UNTIL ignored, and names that try to be SQL. Neither query says a word of rolvaliduntil or rolcanlogin."""
    text = await refusal(turnout, service, user or "''")
    assert "password authentication failed" in text


@pytest.mark.parametrize("service", ["asked", "catalogue"])
async def test_a_password_that_is_valid_until_later_is_valid(turnout: Turnout, service: str) -> None:
    assert await who(turnout, service, "later") == "later"


async def test_a_password_that_expires_lets_nobody_in_although_backends_are_idle(
    turnout: Turnout, server: PostgresServer
) -> None:
    await server.execute("alter role later valid until '2999-01-01'")
    assert await who(turnout, "asked", "later") == "later"
    await server.execute("alter role later valid until '2001-01-01'")

    async def is_refused() -> bool:
        try:
            await who(turnout, "asked", "later")
        except psycopg.OperationalError as error:
            return "password authentication failed" in str(error)
        return False

    try:
        await until(is_refused, "what the engine told is asked anew")
    finally:
        await server.execute("alter role later valid until '2999-01-01'")


@pytest.mark.parametrize(
    "asks", [{"options": "-c search_path=evil"}, {"options": "-csearch_path=evil,pg_catalog"}, {}], ids=str
)
async def test_a_clients_search_path_does_not_reach_the_question_who_it_is(
    turnout: Turnout, server: PostgresServer, asks: dict[str, str]
) -> None:
    """field-notes: Startup `options`, PGOPTIONS, unknown params

    CVE-2025-12819: the query names pg_shadow without a schema, and somebody made another one."""
    connection = await server.connect("catalogue")
    try:
        await connection.execute("create schema if not exists evil")
        await connection.execute(
            "create table if not exists evil.pg_shadow as select 'postgres'::text usename, ''::text passwd"
        )
        await connection.execute("update evil.pg_shadow set passwd = $1", verifier("stolen", b"a salt of 16 b.."))
        await connection.execute("alter role all set search_path = evil")
        assert "password authentication failed" in await refusal(turnout, "catalogue", SUPERUSER, "stolen", **asks)
        assert await who(turnout, "catalogue", "app", **asks) == "app"
    finally:
        await connection.execute("alter role all reset search_path")
        await connection.close()


async def test_a_changed_password_of_the_engine_is_good_at_once(turnout: Turnout, server: PostgresServer) -> None:
    """field-notes: Auth"""
    await server.execute("alter role rotated password 'one'")
    async with await connect(turnout, "asked", "rotated", "one") as old:
        await server.execute("alter role rotated password 'two'")
        assert await who(turnout, "asked", "rotated", "two") == "rotated"
        assert "password authentication failed" in await refusal(turnout, "asked", "rotated", "one")
        cursor = await old.execute("select current_user::text")
        assert await cursor.fetchone() == ("rotated",), "who is there stays, as at a server"


async def test_an_auth_query_that_does_not_work_is_the_operators_to_read(turnout: Turnout) -> None:
    text = await refusal(turnout, "broken")
    assert "could not look the user up" in text
    assert "nowhere" not in text
    assert 'relation "nowhere" does not exist' in turnout.text_of_log()


async def test_the_question_survives_the_loss_of_its_connection(turnout: Turnout, server: PostgresServer) -> None:
    assert await who(turnout, "asked") == "app"
    await opens_freshly(server, "asked", "finder")
    assert "password authentication failed" in await refusal(turnout, "asked", "unheard_of")
    assert await who(turnout, "asked", "later") == "later"


# --- rules --------------------------------------------------------------------------------------------------------


async def test_rules_decide_who_comes_in_and_how(turnout: Turnout) -> None:
    assert await who(turnout, "ruled", "app", require_auth="scram-sha-256") == "app"
    assert await who(turnout, "ruled", "by_md5", require_auth="md5") == "by_md5"
    assert await who(turnout, "ruled", "trusted", "", require_auth="none") == "trusted"
    rejected = await refusal(turnout, "ruled", "banned")
    assert f'pg_hba.conf rejects connection for host "{HOST}", user "banned", database "ruled"' in rejected
    for user in ("other", "tls_only"):
        text = await refusal(turnout, "ruled", user)
        assert f'no pg_hba.conf entry for host "{HOST}", user "{user}", database "ruled", no encryption' in text
        assert "`hba` in its config" in text


async def test_changed_rules_are_read_at_sighup(turnout: Turnout) -> None:
    async def is_refused() -> bool:
        try:
            await who(turnout, "ruled")
        except psycopg.OperationalError:
            return True
        return False

    assert turnout.pid is not None
    rules = turnout.folder / "hba.conf"
    try:
        rules.write_text("host ruled app all reject\n")
        os.kill(turnout.pid, signal.SIGHUP)
        await until(is_refused, "the new rule holds")
        rules.write_text("host ruled app all\n")
        os.kill(turnout.pid, signal.SIGHUP)
        await until(lambda: "hba.conf:1: the rule is too short" in turnout.text_of_log(), "the log says what is wrong")
        assert await is_refused(), "the rules that were good stay"
    finally:
        rules.write_text(RULES)
        os.kill(turnout.pid, signal.SIGHUP)
        await until(lambda: _not(is_refused), "the first rules hold again")


async def _not(holds: Any) -> bool:
    return not await holds()


# --- rotation in the file -----------------------------------------------------------------------------------------


async def test_a_changed_users_file_is_good_at_once(turnout: Turnout, server: PostgresServer) -> None:
    """field-notes: Auth"""
    await server.execute("alter role rotated password 'before'")
    path = turnout.folder / "rotated.txt"
    assert await who(turnout, "rotated", "rotated", "before") == "rotated"
    async with await connect(turnout, "rotated", "rotated", "before") as old:
        await server.execute("alter role rotated password 'after'")
        Services.users_file(path, {"rotated": "after"})
        assert await who(turnout, "rotated", "rotated", "after") == "rotated"
        await opens_freshly(server, "rotated", "nobody")
        assert "password authentication failed" in await refusal(turnout, "rotated", "rotated", "before")
        assert "password authentication failed" in await refusal(turnout, "rotated", "app")
        async with await connect(turnout, "rotated", "rotated", "after") as second:
            # Two at once need two backends: one of them is opened with the new password.
            await second.execute("select 1")
        await old.execute("select 1")
    path.write_text('"rotated" "aft')

    async def is_told() -> bool:
        assert await who(turnout, "rotated", "rotated", "after") == "rotated", "half a file changes nothing"
        return "users file cannot be read" in turnout.text_of_log()

    # A backend may have been opened a moment before, and the file is not looked at again for 5 ms.
    await until(is_told, "the log tells that half a file cannot be read")
    assert "aft" not in turnout.text_of_log().replace("after", "")
    Services.users_file(path, {"rotated": "before", "app": PASSWORD})
    await server.execute("alter role rotated password 'before'")
    assert await who(turnout, "rotated", "rotated", "before") == "rotated"


async def test_no_secret_is_in_the_log(turnout: Turnout) -> None:
    """Runs last: what all the others left there."""
    text = turnout.text_of_log()
    for secret in (LONG, "stolen", "SCRAM-SHA-256$", md5_secret("app", PASSWORD)):
        assert secret not in text
