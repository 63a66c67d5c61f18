"""Who is let in, as whom, and what is kept of it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sqlite3
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from litestar import Litestar
from litestar.testing import TestClient

from proxy.config import CallerConfig, Config, ControlConfig, JwtConfig, Secret, hash_token
from proxy.control.audit import FIELD_LENGTH_MAX, TEXT_LENGTH_MAX, AuditLog
from proxy.control.oidc import RETRY_S, BadToken, Oidc
from proxy.control.rest import build_app
from proxy.control.roles import Caller, Role
from proxy.control.service import ControlService
from proxy.errors import NotAllowed
from tests.proxy.control.scripted import ScriptedSupervisor, make_config
from tests.proxy.control.test_rest import SWITCH, problem

TOKENS = {"alice": "alice-token-0123456789", "bob": "bob-token-0123456789", "carol": "carol-token-0123456789"}
ROLES = {"alice": "viewer", "bob": "operator", "carol": "admin"}


def config_with(**control: Any) -> Config:
    """Without a share of the processor: on a busy machine the first requests of a process cost more than a caller's."""
    control = {"processor_share": 1.0, **control}
    return msgspec.structs.replace(make_config(), control=ControlConfig(**control))


def named_callers() -> dict[str, CallerConfig]:
    """Their tokens as hashes, as the config loader makes them."""
    return {
        name: CallerConfig(role=ROLES[name], token=Secret(env="X", value=hash_token(token)))  # type: ignore[arg-type]
        for name, token in TOKENS.items()
    }


@pytest.fixture
def supervisor() -> ScriptedSupervisor:
    return ScriptedSupervisor(config_with(caller=named_callers()))


@pytest.fixture
def client(supervisor: ScriptedSupervisor) -> Iterator[TestClient[Litestar]]:
    app = build_app(ControlService(supervisor), supervisor.config)
    with TestClient(app, base_url="https://turnout.example") as one:
        yield one


def shows(name: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[name]}"} | more


# --- roles --------------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[str, str, Any, str]] = {
    "switch": ("POST", SWITCH, {"target_engine": "green"}, "operator"),
    "a forced switch": ("POST", SWITCH, {"target_engine": "green", "force": True}, "admin"),
    "cancel": ("POST", "/v1/switches/x/cancel", {}, "operator"),
    "add an engine": ("PUT", "/v1/services/shop/engines/white", {"address": "db9:5432"}, "admin"),
    "remove an engine": ("DELETE", "/v1/services/shop/engines/white", None, "admin"),
    "end a session": ("DELETE", "/v1/sessions/1", None, "admin"),
    "reload": ("POST", "/v1/config/reload", {}, "admin"),
    "log level": ("PUT", "/v1/log", {"level": "debug"}, "admin"),
    "read the audit log": ("GET", "/v1/audit", None, "admin"),
    "pause": ("POST", "/v1/databases/pause", {}, "operator"),
    "resume": ("POST", "/v1/databases/resume", {}, "operator"),
    "reconnect": ("POST", "/v1/databases/reconnect", {"database": "shop"}, "operator"),
    "kill": ("POST", "/v1/databases/kill", {}, "admin"),
    "disable": ("POST", "/v1/databases/disable", {"database": "shop"}, "admin"),
    "enable": ("POST", "/v1/databases/enable", {"database": "shop"}, "admin"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_role_may_do_what_it_says_and_no_more(client: TestClient[Litestar], what: str) -> None:
    method, path, body, needed = CHANGES[what]
    for name, role in ROLES.items():
        answer = client.request(method, path, json=body, headers=shows(name))
        if Role[role.upper()] < Role[needed.upper()]:
            assert "needs the role" in problem(answer, 403)["remedy"]
        else:
            assert answer.status_code != 403, answer.text


def test_a_viewer_sees_and_rehearses(client: TestClient[Litestar]) -> None:
    for path in ("/v1/status", "/v1/services", "/v1/engines", "/v1/pools", "/v1/sessions", "/v1/config", "/metrics"):
        assert client.get(path, headers=shows("alice")).status_code == 200
    answer = client.post(SWITCH, json={"target_engine": "green", "dry_run": True}, headers=shows("alice"))
    assert answer.json().get("is_ready"), answer.text


def test_a_record_names_who_asked(client: TestClient[Litestar]) -> None:
    answer = client.post(SWITCH, json={"target_engine": "green"}, headers=shows("bob"))
    assert answer.json()["plan"]["requested_by"].startswith("bob at ")


def test_the_hash_of_a_token_lets_nobody_in(client: TestClient[Litestar]) -> None:
    for shown in (hash_token(TOKENS["carol"]), hash_token(TOKENS["carol"]).removeprefix("sha256:")):
        problem(client.get("/v1/status", headers={"authorization": f"Bearer {shown}"}), 401)


def test_callers_of_a_reloaded_config_count_at_once(
    client: TestClient[Litestar], supervisor: ScriptedSupervisor
) -> None:
    left = {name: caller for name, caller in named_callers().items() if name != "bob"}
    assert client.get("/v1/status", headers=shows("bob")).status_code == 200
    supervisor.config = config_with(caller=left)
    assert client.post("/v1/config/reload", headers=shows("carol")).json()["needs_restart"] == ["workers: 1 -> 2"]
    problem(client.get("/v1/status", headers=shows("bob")), 401)


# --- the audit log ------------------------------------------------------------------------------------------------


def entries(client: TestClient[Litestar], **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/v1/audit", params=query, headers=shows("carol"))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def test_every_change_and_every_refusal_is_kept_with_its_caller(client: TestClient[Litestar]) -> None:
    client.get("/v1/status", headers={"authorization": "Bearer wrong"})
    for method, path, body, _needed in CHANGES.values():
        for name in ("alice", "carol"):
            client.request(method, path, json=body, headers=shows(name))
    found = entries(client)
    assert all(one["caller"].startswith(("alice at ", "carol at ", "testclient")) for one in found)
    kept = {(one["caller"].partition(" ")[0], one["action"], one["outcome"]) for one in found}
    for action in ("switch", "add_engine", "remove_engine", "end_session", "reload", "set_log_level"):
        assert ("alice", action, "refused") in kept
        assert ("carol", action, "done") in kept
    assert ("carol", "cancel", "refused") in kept, "there is no switch x"
    [stranger] = [one for one in found if one["action"] == "enter"]
    assert (stranger["role"], stranger["target"], stranger["outcome"]) == ("", "GET /v1/status", "refused")
    switch = next(one for one in found if one["action"] == "switch" and one["outcome"] == "done")
    assert (switch["role"], switch["target"], switch["detail"]["target"]) == ("admin", "shop to green", "green")
    assert not any(token in json.dumps(found) for token in TOKENS.values())


def test_the_audit_log_is_paged_and_filtered(client: TestClient[Litestar]) -> None:
    for level in ("debug", "info", "warning"):
        client.put("/v1/log", json={"level": level}, headers=shows("carol"))
    first = client.get("/v1/audit?limit=2&action=set_log_level", headers=shows("carol"))
    assert [one["target"] for one in first.json()] == ["warning", "info"]
    following = first.links["next"]["url"]
    assert [one["target"] for one in client.get(following, headers=shows("carol")).json()] == ["debug"]
    assert entries(client, outcome="refused") == []


def test_nobody_can_change_or_delete_an_entry(client: TestClient[Litestar], supervisor: ScriptedSupervisor) -> None:
    client.put("/v1/log", json={"level": "debug"}, headers=shows("carol"))
    for statement in ("update audit set caller = 'x'", "delete from audit"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            supervisor.database.execute(statement)
    assert len(entries(client)) == 1


def test_of_what_a_caller_sends_the_log_keeps_the_beginning(supervisor: ScriptedSupervisor) -> None:
    """It is never cut: what goes in has a bound."""
    log = AuditLog(supervisor.database)
    who = Caller(name="agent", role=Role.VIEWER)
    log.record(who, "mcp", "t" * 9_999, "refused", {"arguments": {"x": "y" * 1_000_000}, "why": "no"})
    [entry] = log.entries(1)
    assert len(entry.target) == TEXT_LENGTH_MAX
    assert entry.detail["why"] == "no"
    assert entry.detail["arguments"].startswith('{"x":"yyy')
    assert len(entry.detail["arguments"]) <= FIELD_LENGTH_MAX + 1


def test_a_flood_of_strangers_does_not_fill_the_log(client: TestClient[Litestar]) -> None:
    for _ in range(60):
        client.get("/v1/status", headers={"authorization": "Bearer wrong"})
    assert len(entries(client)) < 40


# --- limits -------------------------------------------------------------------------------------------------------


def test_who_asks_too_often_is_told_when_to_come_back() -> None:
    supervisor = ScriptedSupervisor(config_with(caller=named_callers(), requests_per_s=0.5))
    with TestClient(build_app(ControlService(supervisor), supervisor.config)) as client:
        assert client.get("/v1/status", headers=shows("alice")).status_code == 200
        refused = client.get("/v1/status", headers=shows("alice"))
        problem(refused, 429)
        assert 1 <= int(refused.headers["retry-after"]) <= 2
        assert client.get("/v1/status", headers=shows("bob")).status_code == 200, "each caller has a rate of its own"


def test_an_address_that_guesses_tokens_is_slowed_down_and_locks_nobody_out() -> None:
    supervisor = ScriptedSupervisor(config_with(caller=named_callers(), requests_per_s=10))
    with TestClient(build_app(ControlService(supervisor), supervisor.config)) as client:
        found = [client.get("/v1/status", headers={"authorization": f"Bearer {one}"}).status_code for one in range(6)]
        assert found == [401, 401, 429, 429, 429, 429]
        assert client.get("/v1/status", headers=shows("alice")).status_code == 200


# --- idempotency --------------------------------------------------------------------------------------------------


def test_a_request_with_a_key_is_done_once(client: TestClient[Litestar], supervisor: ScriptedSupervisor) -> None:
    headers = shows("bob", **{"Idempotency-Key": '"8e03978e-40d5"'})
    first = client.post(SWITCH, json={"target_engine": "green"}, headers=headers)
    again = client.post(SWITCH, json={"target_engine": "green"}, headers=headers)
    assert (again.status_code, again.json(), again.headers["location"]) == (
        202,
        first.json(),
        first.headers["location"],
    )
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-frame-options"] == "DENY"
    assert len(supervisor.records) == 1


def test_a_key_is_of_one_request_and_one_caller(client: TestClient[Litestar], supervisor: ScriptedSupervisor) -> None:
    key = {"Idempotency-Key": "k"}
    client.post(SWITCH, json={"target_engine": "green"}, headers=shows("bob", **key))
    found = problem(client.post(SWITCH, json={"target_engine": "blue"}, headers=shows("bob", **key)), 422)
    assert "new key" in found["remedy"]
    assert client.post(SWITCH, json={"target_engine": "blue"}, headers=shows("carol", **key)).status_code == 202
    assert len(supervisor.records) == 2


def test_what_was_refused_may_be_tried_again_with_its_key(
    client: TestClient[Litestar], supervisor: ScriptedSupervisor
) -> None:
    headers = shows("bob", **{"Idempotency-Key": "k"})
    problem(client.post(SWITCH, json={"target_engine": "blue"}, headers=headers), 409)
    supervisor.active["shop"] = "green"
    assert client.post(SWITCH, json={"target_engine": "blue"}, headers=headers).status_code == 202


@pytest.mark.parametrize("key", ["", " ", '""', "x" * 256, "é"])
def test_a_key_that_is_none_is_refused(client: TestClient[Litestar], key: str) -> None:
    headers = [(b"authorization", shows("bob")["authorization"].encode()), (b"idempotency-key", key.encode())]
    problem(client.post(SWITCH, json={"target_engine": "green"}, headers=headers), 400)


def test_nobody_knows_what_became_of_a_request_whose_supervisor_died(
    client: TestClient[Litestar], supervisor: ScriptedSupervisor
) -> None:
    headers = shows("bob", **{"Idempotency-Key": "k"})
    client.post(SWITCH, json={"target_engine": "green"}, headers=headers)
    supervisor.database.execute("update answers set status = null")
    found = problem(client.post(SWITCH, json={"target_engine": "green"}, headers=headers), 409)
    assert "restarted" in found["detail"]


# --- OpenID Connect -----------------------------------------------------------------------------------------------

ISSUER = "https://login.example/realm"


class Issuer:
    """Makes keys and signs with them."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[Any, str]] = {
            "rsa": (rsa.generate_private_key(public_exponent=65_537, key_size=2_048), "RS256"),
            "ec": (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        }

    def published(self) -> dict[str, Any]:
        makers: dict[str, Any] = {"RS256": jwt.algorithms.RSAAlgorithm, "ES256": jwt.algorithms.ECAlgorithm}
        return {
            "keys": [
                json.loads(makers[algorithm].to_jwk(key.public_key())) | {"kid": kid, "alg": algorithm, "use": "sig"}
                for kid, (key, algorithm) in self.keys.items()
            ]
        }

    def sign(self, kid: str = "rsa", *, shown_kid: str | None = None, **changes: Any) -> str:
        claims = {"iss": ISSUER, "aud": "turnout", "sub": "dana", "exp": time.time() + 60} | changes
        claims.setdefault("realm_access", {"roles": ["x", "turnout-operator"]})
        key, algorithm = self.keys[kid]
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, key, algorithm=algorithm, headers={"kid": shown_kid or kid})


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def oidc(issuer: Issuer, tmp_path: Path) -> Oidc:
    (tmp_path / "keys.json").write_text(json.dumps(issuer.published()))
    return Oidc(jwt_config(jwks_file=str(tmp_path / "keys.json")))


def jwt_config(**changes: Any) -> JwtConfig:
    return JwtConfig(**({"issuer": ISSUER, "audience": "turnout", "role_claim": "realm_access.roles"} | changes))


@pytest.mark.parametrize("kid", ["rsa", "ec"])
async def test_a_token_of_the_issuer_gives_name_and_role(oidc: Oidc, issuer: Issuer, kid: str) -> None:
    assert await oidc.verify(issuer.sign(kid)) == ("dana", Role.OPERATOR)
    every = {"roles": ["turnout-viewer", "turnout-admin"]}
    assert await oidc.verify(issuer.sign(kid, realm_access=every)) == ("dana", Role.ADMIN), "the highest counts"
    assert (await oidc.verify(issuer.sign(kid, realm_access={"roles": "turnout-viewer"})))[1] is Role.VIEWER


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1}, {"exp": None}, {"aud": "other"}, {"aud": None}, {"iss": "https://evil.example"}, {"iss": None},
        {"sub": None}, {"sub": ""}, {"nbf": 4e9}, {"shown_kid": "unknown"}, {"shown_kid": "ec"},
    ],
    ids=str,
)  # fmt: skip
async def test_a_token_that_is_not_for_us_now_is_refused(oidc: Oidc, issuer: Issuer, changes: dict[str, Any]) -> None:
    with pytest.raises(BadToken):
        await oidc.verify(issuer.sign(**changes))


async def test_nobody_makes_a_token_out_of_what_is_published(oidc: Oidc, issuer: Issuer) -> None:
    """The public key as the secret of an HMAC, and no signature at all: the two classic mistakes of verifiers."""
    public = issuer.keys["rsa"][0].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def part(value: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    claims = part({"iss": ISSUER, "aud": "turnout", "sub": "eve", "exp": time.time() + 60, "roles": ["turnout-admin"]})
    signed = part({"alg": "HS256", "kid": "rsa"}) + b"." + claims
    forged = signed + b"." + base64.urlsafe_b64encode(hmac.digest(pem, signed, hashlib.sha256)).rstrip(b"=")
    for token in (forged, part({"alg": "none"}) + b"." + claims + b".", forged[:-4], b"a.b.c", b"x"):
        with pytest.raises(BadToken):
            await oidc.verify(token.decode())


async def test_a_good_token_without_a_role_is_told_which_claim_counts(oidc: Oidc, issuer: Issuer) -> None:
    without: list[Any] = [
        {"roles": []},
        {"roles": ["other"]},
        {},
        "text",
        {"roles": 7},
        {"roles": {"turnout-admin": 1}},
    ]
    for found in without:
        with pytest.raises(NotAllowed) as caught:
            await oidc.verify(issuer.sign(realm_access=found))
        assert "realm_access.roles" in caught.value.hint


class Provider(ThreadingHTTPServer):
    """The addresses of an OpenID Connect provider on this machine."""

    def __init__(self, documents: dict[str, Any]) -> None:
        self.documents = documents
        self.asked: list[str] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked.append(self.path)
                found = provider.documents.get(self.path)
                body = json.dumps(found).encode()
                self.send_response(200 if found is not None else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Not of interest."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def provider() -> Iterator[Provider]:
    server = Provider({})
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


async def test_keys_are_found_by_discovery_and_asked_for_again_when_the_issuer_changes_them(provider: Provider) -> None:
    now = 1_000.0
    old, new = Issuer(), Issuer()
    new.keys = {"next": new.keys["rsa"]}
    provider.documents = {
        "/.well-known/openid-configuration": {"issuer": provider.url, "jwks_uri": provider.url + "/keys"},
        "/keys": old.published(),
    }
    oidc = Oidc(jwt_config(issuer=provider.url), clock=lambda: now)
    assert (await oidc.verify(old.sign(iss=provider.url)))[0] == "dana"
    assert (await oidc.verify(old.sign("ec", iss=provider.url)))[0] == "dana"
    assert len(provider.asked) == 2, "keys are kept"
    provider.documents["/keys"] = new.published()
    with pytest.raises(BadToken):
        await oidc.verify(new.sign("next", iss=provider.url))
    assert len(provider.asked) == 2, "unknown keys do not make us ask all the time"
    now += RETRY_S
    assert (await oidc.verify(new.sign("next", iss=provider.url)))[0] == "dana"
    with pytest.raises(BadToken):
        await oidc.verify(old.sign(iss=provider.url))


async def test_an_issuer_that_names_another_one_is_not_believed(provider: Provider, issuer: Issuer) -> None:
    provider.documents = {
        "/.well-known/openid-configuration": {"issuer": ISSUER, "jwks_uri": provider.url + "/keys"},
        "/keys": issuer.published(),
    }
    with pytest.raises(Exception, match="cannot be had"):
        await Oidc(jwt_config(issuer=provider.url)).verify(issuer.sign(iss=provider.url))


def test_without_the_issuers_keys_the_answer_is_that_it_is_not_possible_now(issuer: Issuer, tmp_path: Path) -> None:
    config = config_with(jwt=jwt_config(jwks_file=str(tmp_path / "nothing")), caller=named_callers())
    supervisor = ScriptedSupervisor(config)
    with TestClient(build_app(ControlService(supervisor), config)) as client:
        problem(client.get("/v1/status", headers={"authorization": f"Bearer {issuer.sign()}"}), 503)
        assert client.get("/v1/status", headers=shows("alice")).status_code == 200


def test_a_caller_by_openid_connect_is_known_by_name(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(json.dumps(issuer.published()))
    config = config_with(jwt=jwt_config(jwks_file=str(tmp_path / "keys")))
    supervisor = ScriptedSupervisor(config)
    with TestClient(build_app(ControlService(supervisor), config)) as client:
        headers = {"authorization": f"Bearer {issuer.sign()}"}
        answer = client.post(SWITCH, json={"target_engine": "green"}, headers=headers)
        assert answer.json()["plan"]["requested_by"].startswith("dana at ")
        problem(client.post(SWITCH, json={"target_engine": "blue", "force": True}, headers=headers), 403)
