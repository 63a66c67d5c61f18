from __future__ import annotations

import string
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import (
    Commanded,
    Config,
    ConfigErrors,
    EngineConfig,
    ReloadPlan,
    ServiceConfig,
    decode_effective,
    encode_effective,
    hash_token,
    is_loopback,
    load,
    masked,
    parse_address,
    plan_reload,
    with_commanded,
)
from proxy.config.text import KeyPath, UsersError, key_lines, parse_users, spell

GOOD = """\
workers = 2

[control]
listen = "127.0.0.1:7432"

[[listener]]
protocol = "postgresql"
listen = "0.0.0.0:6432"

[service.shop]
protocol = "postgresql"
databases = ["shop"]
pool_mode = "session"
active = "blue"
admin = { user = "turnout", password = { env = "ADMIN_PASSWORD" } }
auth = { method = "scram-sha-256", users = { file = "users.txt" } }

[service.shop.engine.blue]
address = "10.0.0.11:5432"
[service.shop.engine.green]
address = "10.0.0.12:5432"
role = "standby"
"""

ENVIRON = {"ADMIN_PASSWORD": "opensesame"}
SECRETS = ("opensesame", "hunter2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "users.txt").write_text('"app" "hunter2"\n')
    return tmp_path


def read(folder: Path, text: str, environ: Mapping[str, str] = ENVIRON) -> Config:
    (folder / "turnout.toml").write_text(text)
    return load(folder / "turnout.toml", environ=environ)


def complaints(folder: Path, text: str, environ: Mapping[str, str] = ENVIRON) -> list[str]:
    """Each error as the operator sees it, without the folder."""
    with pytest.raises(ConfigErrors) as caught:
        read(folder, text, environ)
    assert str(caught.value) == "\n".join(error.text for error in caught.value.errors)
    return [error.text.replace(f"{folder}/", "") for error in caught.value.errors]


def change(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


# --- what is read -------------------------------------------------------------------------------------------------


def test_a_good_file_is_read_with_its_secrets(folder: Path) -> None:
    config = read(folder, GOOD)
    shop = config.service["shop"]
    assert config.workers == 2
    assert shop.admin.password is not None
    assert shop.admin.password.value == "opensesame"
    assert shop.auth.users is not None
    assert parse_users(shop.auth.users.value or "") == {"app": "hunter2"}
    assert shop.engine["green"].role == "standby"
    assert shop.switch.hold_ms_max == 5_000


def test_paths_are_relative_to_the_config_file(folder: Path) -> None:
    config = read(folder, 'state_file = "s/t.sqlite"\nruntime_dir = "run"\n' + GOOD)
    assert config.state_file == str(folder / "s/t.sqlite")
    assert config.runtime_dir == str(folder / "run")


def test_the_runtime_folder_is_below_xdg_runtime_dir_or_beside_the_state_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert read(folder, GOOD).runtime_dir == "/run/user/7/turnout"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert read(folder, GOOD).runtime_dir == str(folder / "turnout.run")


def test_a_password_file_gives_its_first_line_whatever_ends_it(folder: Path) -> None:
    (folder / "pw").write_bytes(b"two words \r\nand a comment\r\n")
    config = read(folder, change('{ env = "ADMIN_PASSWORD" }', '{ file = "pw" }'))
    password = config.service["shop"].admin.password
    assert password is not None
    assert password.value == "two words "


def test_workers_get_the_config_as_it_was_loaded(folder: Path) -> None:
    config = read(folder, GOOD)
    assert decode_effective(encode_effective(config)) == config


def test_no_secret_is_ever_shown(folder: Path) -> None:
    config = read(folder, GOOD)
    shown = repr(config) + str(masked(config)) + str(planned(config, config))
    assert not [secret for secret in SECRETS if secret in shown]
    assert masked(config)["service"]["shop"]["admin"]["password"] == {"value": "***", "origin": "env"}


def test_what_is_shown_says_where_a_value_comes_from(folder: Path) -> None:
    shown = masked(read(folder, GOOD))
    assert shown["workers"] == {"value": 2, "origin": "file"}
    assert shown["service"]["shop"]["pool_size"] == {"value": 200, "origin": "default"}


# --- what is refused ----------------------------------------------------------------------------------------------

REFUSED = {
    "an unknown key": (
        change("pool_mode", "pool_mod"),
        ['turnout.toml:13: service.shop.pool_mod: unknown key; did you mean "pool_mode"?'],
    ),
    "an unknown key in an inline table": (
        change('{ user = "turnout",', '{ usr = "turnout",'),
        [
            'turnout.toml:15: service.shop.admin.usr: unknown key; did you mean "user"?',
            'turnout.toml:15: service.shop.admin: the key "user" is missing',
        ],
    ),
    "an unknown key that is like no other": (
        change("workers = 2", "zzz = 2"),
        [
            ("turnout.toml:1: zzz: unknown key; here may stand: control, console, listener, service, log, alerts, telemetry, "
            "workers, state_file, runtime_dir, max_client_conn, client_login_timeout_s")
        ],
    ),
    "a wrong type": (change("workers = 2", 'workers = "2"'), [
        'turnout.toml:1: workers: expected a whole number from 1 to 64, got "2"'
    ]),
    "a boolean for a number": (change("workers = 2", "workers = true"), [
        "turnout.toml:1: workers: expected a whole number from 1 to 64, got true"
    ]),
    "a number out of range": (change("workers = 2", "workers = 65"), [
        "turnout.toml:1: workers: expected a whole number from 1 to 64, got 65"
    ]),
    "a number that is none": (
        GOOD + "[service.shop.switch]\ndrain_timeout_s = nan\n",
        ["turnout.toml:24: service.shop.switch.drain_timeout_s: expected a number from 0 to 3600, got nan"],
    ),
    "zero where it must be more": (
        GOOD + "[service.shop.switch]\ncatchup_timeout_s = 0\n",
        ["turnout.toml:24: service.shop.switch.catchup_timeout_s: expected a number above 0, at most 3600, got 0"],
    ),
    "an unknown protocol": (
        change('[[listener]]\nprotocol = "postgresql"', '[[listener]]\nprotocol = "postgres"'),
        [
            ('turnout.toml:7: listener[0].protocol: expected "mysql" or "postgresql", got "postgres"; '
            'did you mean "postgresql"?')
        ],
    ),
    "a table that is none": (change('[control]\nlisten = "127.0.0.1:7432"', "control = 7432"), [
        "turnout.toml:3: control: expected a table, got 7432"
    ]),
    "a key that is missing": (change('active = "blue"\n', ""), [
        'turnout.toml:10: service.shop: the key "active" is missing'
    ]),
    "no engine": (GOOD[: GOOD.index("[service.shop.engine")], [
        'turnout.toml:10: service.shop: the table "engine" is missing'
    ]),
    "no listener": ("listener = []\n" + GOOD.replace('[[listener]]\nprotocol = "postgresql"\nlisten = "0.0.0.0:6432"\n', ""), [
        "turnout.toml:1: listener: at least one [[listener]] is needed",
        'turnout.toml:9: service.shop.protocol: no [[listener]] has protocol = "postgresql": nobody can reach it',
    ]),
    "an active engine that is none": (change('active = "blue"', 'active = "bleu"'), [
        'turnout.toml:14: service.shop.active: no engine of this service is called "bleu"; did you mean "blue"?'
    ]),
    "a console whose users cannot log in": (GOOD + '[console]\nstats_users = ["prometheus"]\n', [
        ('turnout.toml:23: console: "auth" is missing: how do these users log in? '
        'auth = { method = "scram-sha-256", users = { file = "…" } }')
    ]),
    "a console with a method of MySQL": (
        GOOD + '[console]\nadmin_users = ["ops"]\nauth = { method = "client_ed25519", users = { file = "users.txt" } }\n',
        [
            ('turnout.toml:25: console.auth.method: "client_ed25519" is not for postgresql; expected "trust", "password", '
            '"md5", "scram-sha-256", "cert" or "hba"')
        ],
    ),
    "a console that asks an engine": (
        GOOD + '[console]\nadmin_users = ["ops"]\nauth = { method = "md5", auth_query = "select $1" }\n',
        ["turnout.toml:25: console.auth: the console's users are in a file; no engine is asked for them"],
    ),
    "an address without a port": (change("10.0.0.11:5432", "10.0.0.11"), [
        'turnout.toml:19: service.shop.engine.blue.address: "10.0.0.11": expected host:port, and the port is missing'
    ]),
    "two engines at one address": (change("10.0.0.12:5432", "10.0.0.11:5432"), [
        'turnout.toml:21: service.shop.engine.green.address: engine "blue" has the same address'
    ]),
    "a port that is used twice": (change("0.0.0.0:6432", "0.0.0.0:7432"), [
        "turnout.toml:8: listener[0].listen: port 7432 is used by control.listen already"
    ]),
    "a method of the other protocol": (change("scram-sha-256", "caching_sha2_password"), [
        ('turnout.toml:16: service.shop.auth.method: "caching_sha2_password" is not for postgresql; '
        'expected "trust", "password", "md5", "scram-sha-256", "cert" or "hba"')
    ]),
    "no users": (change(', users = { file = "users.txt" }', ""), [
        ('turnout.toml:16: service.shop.auth: "users" is missing; name a file, or let the engine be asked: auth_query, '
        "auth_user")
    ]),
    "rules without a file": (change('"scram-sha-256"', '"hba"'), [
        'turnout.toml:16: service.shop.auth: "hba" is missing; method "hba" needs a file with rules'
    ]),
    "a query for nobody": (change("users =", 'auth_query = "select 1, 2", users ='), [
        "turnout.toml:16: service.shop.auth.auth_query: has no $1, which stands for the user's name"
    ]),
    "a database for no query": (change("users =", 'auth_dbname = "postgres", users ='), [
        "turnout.toml:16: service.shop.auth.auth_dbname: is for auth_query, which is not set"
    ]),
    "a control port for everybody without a token": (change("127.0.0.1:7432", "0.0.0.0:7432"), [
        ('turnout.toml:3: control: "token" is missing, or a [control.caller.NAME]; without one, only a loopback address may '
        "be listened on, not 0.0.0.0"),
        ('turnout.toml:3: control: "tls_cert_file" is missing; without TLS, only a loopback address may be listened on, '
        'not 0.0.0.0, unless "allow_without_tls" says so'),
    ]),
    "a caller that nobody can be": (change("[[listener]]", '[control.caller.al]\nrole = "admin"\n[[listener]]'), [
        'turnout.toml:6: control.caller.al: has neither "token" nor "certificate": nobody could be it'
    ]),
    "a token that could be guessed": (change(
        "[[listener]]", '[control.caller.al]\nrole = "admin"\ntoken = { env = "ADMIN_PASSWORD" }\n[[listener]]'
    ), [
        ("turnout.toml:8: control.caller.al.token: the environment variable ADMIN_PASSWORD is shorter than 16 characters; "
        "`turnout token` makes one that is not")
    ]),
    "keys that come over an open line": (change(
        "[[listener]]", '[control.jwt]\nissuer = "http://login.example"\naudience = "turnout"\n[[listener]]'
    ), [
        "turnout.toml:7: control.jwt.issuer: expected an address that begins with https://: the keys come from there"
    ]),
    "a certificate that is not asked for": (change(
        "[[listener]]", '[control.caller.al]\nrole = "admin"\ncertificate = "al"\n[[listener]]'
    ), [
        'turnout.toml:8: control.caller.al.certificate: needs tls_client_cert = "optional" or "required"'
    ]),
    "one certificate for two callers": (change(
        "[[listener]]",
        '[control.caller.al]\nrole = "viewer"\ncertificate = "x"\n[control.caller.bo]\nrole = "admin"\ncertificate = "x"\n'
        "[[listener]]",
    ), [
        'turnout.toml:8: control.caller.al.certificate: needs tls_client_cert = "optional" or "required"',
        "turnout.toml:11: control.caller.bo.certificate: is the same as that of control.caller.al",
        'turnout.toml:11: control.caller.bo.certificate: needs tls_client_cert = "optional" or "required"',
    ]),
    "a secret in the file": (change('{ env = "ADMIN_PASSWORD" }', '{ value = "x" }'), [
        ("turnout.toml:15: service.shop.admin.password.value: a secret does not stand in the config file; "
        "name a variable (env) or a file (file)")
    ]),
    "a secret with two origins": (change('{ env = "ADMIN_PASSWORD" }', '{ env = "A", file = "b" }'), [
        'turnout.toml:15: service.shop.admin.password: expected exactly one of "env" and "file"'
    ]),
    "a variable that is not set": (change("ADMIN_PASSWORD", "OTHER"), [
        "turnout.toml:15: service.shop.admin.password: the environment variable OTHER is not set"
    ]),
    "a file that is not there": (change("users.txt", "nobody.txt"), [
        "turnout.toml:16: service.shop.auth.users: nobody.txt cannot be read: No such file or directory"
    ]),
    "a name that cannot stand in a URL": (change("engine.green", 'engine."gr een"'), [
        ('turnout.toml:20: service.shop.engine."gr een": a name has letters, digits, _ . - only, at most 63, '
        "a letter or digit first")
    ]),
    "broken TOML": (change('active = "blue"', "active = blue"), [
        "turnout.toml:14: not TOML: Invalid value (column 10)"
    ]),
    "the way back without an account": (change('active = "blue"', 'active = "blue"\nreverse_replication = true'), [
        'turnout.toml:15: service.shop.reverse_replication: needs "replication_login": the account that replicates',
        ('turnout.toml:15: service.shop.reverse_replication: needs replication = "logical"; a physical standby is made '
        "by pg_rewind or a base backup"),
    ]),
    "policies that cannot be": (
        GOOD
        + """
[service.shop.policy.slow]
trigger = "performance_degradation"
target_engine = "red"
[service.shop.policy.nightly]
trigger = "scheduled"
target_engine = "green"
cron_expression = "61 * * * *"
time_zone = "Mars"
[service.shop.policy.busy]
trigger = "load_treshold"
target_engine = "green"
priority = 256
""",
        [
            ('turnout.toml:33: service.shop.policy.busy.trigger: expected "error_rate", "failure", "load_threshold", "manual", '
            '"performance_degradation" or "scheduled", got "load_treshold"; did you mean "load_threshold"?'),
            "turnout.toml:35: service.shop.policy.busy.priority: expected a whole number from 0 to 255, got 256",
        ],
    ),
    "policies that fit nothing": (
        GOOD
        + """
[service.shop.policy.slow]
trigger = "performance_degradation"
target_engine = "red"
[service.shop.policy.nightly]
trigger = "scheduled"
target_engine = "green"
cron_expression = "61 * * * *"
time_zone = "Mars"
[service.shop.policy.busy]
trigger = "load_threshold"
target_engine = "green"
""",
        [
            ("turnout.toml:24: service.shop.policy.slow.response_time_threshold_ms: is missing; the trigger needs a time "
            "above 0 milliseconds"),
            ('turnout.toml:26: service.shop.policy.slow.target_engine: no engine of this service is called "red"; there '
            "are: blue, green"),
            'turnout.toml:30: service.shop.policy.nightly.cron_expression: "61 * * * *": bad minute',
            ('turnout.toml:31: service.shop.policy.nightly.time_zone: "Mars" is no time zone; expected a name like '
            '"Europe/Berlin"'),
            ("turnout.toml:32: service.shop.policy.busy: the trigger needs cpu_threshold, memory_threshold or "
            "connection_threshold"),
        ],
    ),
    "rules about reads that cannot be": (
        GOOD
        + """
[[service.shop.route]]
to = ["red"]
pattern = "("
[[service.shop.route]]
to = []
""",
        [
            ('turnout.toml:24: service.shop.route[0]: needs pool_mode = "transaction": in session mode a client keeps its '
            "backend"),
            ('turnout.toml:25: service.shop.route[0].to[0]: no engine of this service is called "red"; there are: blue, '
            "green"),
            ("turnout.toml:26: service.shop.route[0].pattern: is no regular expression: missing ), unterminated subpattern "
            "at position 0"),
            ('turnout.toml:27: service.shop.route[1]: needs pool_mode = "transaction": in session mode a client keeps its '
            "backend"),
            "turnout.toml:28: service.shop.route[1].to: is empty; it needs an engine to read from",
        ],
    ),
    "a load that is nowhere": (
        change('role = "standby"', 'role = "standby"\nload = { source = "node_exporter", node_exporter = "10.0.0.12" }'),
        [('turnout.toml:23: service.shop.engine.green.load.node_exporter: "10.0.0.12": expected host:port, and the port is '
         "missing")],
    ),
    "a hook that is nothing": (change('active = "blue"', 'active = "blue"\nhook = [{ at = "promote" }]'), [
        'turnout.toml:15: service.shop.hook[0]: expected exactly one of "command" and "url"'
    ]),
    "a hook that may fail to promote": (
        change('active = "blue"', 'active = "blue"\nhook = [{ at = "promote", command = ["x"], on_failure = "ignore" }]'),
        ["turnout.toml:15: service.shop.hook[0].on_failure: what promotes the target cannot be ignored"],
    ),
    "a hook that calls nowhere": (
        change('active = "blue"', 'active = "blue"\nhook = [{ at = "after_release", url = "10.0.0.1/x" }]'),
        ["turnout.toml:15: service.shop.hook[0].url: expected an address that begins with http:// or https://"],
    ),
    "rules of alerts that cannot be": (
        change("workers = 2", """workers = 2
[alerts.rule]
a = { when = "replication_lag_ms" }
b = { when = "engine_down", above = 1 }
c = { when = "switch_failed", for_s = 3, of = "active" }
d = { when = "engine_down", services = ["shp"], receivers = ["ops"] }
"""),
        [
            'turnout.toml:3: alerts.rule.a: "replication_lag_ms" is a figure: expected exactly one of "above" and "below"',
            'turnout.toml:4: alerts.rule.b.above: "engine_down" is no figure: nothing is above or below',
            'turnout.toml:5: alerts.rule.c.for_s: "switch_failed" is an event: it fires at once',
            'turnout.toml:5: alerts.rule.c.of: "switch_failed" is not about engines',
            'turnout.toml:6: alerts.rule.d.services[0]: "shp" is unknown; there are: shop',
            'turnout.toml:6: alerts.rule.d.receivers[0]: "ops" is unknown; there are none',
        ],
    ),
    "receivers that cannot be": (
        change("workers = 2", """workers = 2
[alerts.receiver]
a = { kind = "slack" }
b = { kind = "email", server = "mail", sender = "me", to = ["a@b"], user = "u" }
c = { kind = "email", server = "mail:25", sender = "a@b", to = ["a@b"], tls = "none", user = "u", password = { env = "P" } }
"""),
        [
            'turnout.toml:3: alerts.receiver.a: "url" is missing; kind "slack" needs it',
            'turnout.toml:4: alerts.receiver.b.server: "mail": expected host:port, and the port is missing',
            'turnout.toml:4: alerts.receiver.b: "user" and "password" go together',
            'turnout.toml:4: alerts.receiver.b.sender: "me" is no address of the form name@host',
            ('turnout.toml:5: alerts.receiver.c.tls: "none" with a password: everybody on the way could read it; set '
             '"starttls" or "tls"'),
        ],
    ),
    "TOML that ends too early": ("workers =", ["turnout.toml:1: not TOML: Invalid value"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), REFUSED.values(), ids=list(REFUSED))
def test_an_error_names_file_line_key_and_what_would_do(folder: Path, text: str, expected: list[str]) -> None:
    assert sorted(complaints(folder, text)) == sorted(expected)


def test_all_errors_are_told_at_once_in_the_order_of_the_file(folder: Path) -> None:
    text = change("workers = 2", "workers = 0").replace("pool_mode", "pol_mode").replace('"standby"', '"slave"')
    lines = [int(line.split(":")[1]) for line in complaints(folder, text)]
    assert lines == [1, 13, 22]


def test_two_services_cannot_claim_one_database(folder: Path) -> None:
    second = GOOD[GOOD.index("[service.shop]") :].replace("shop]", "store]").replace("shop.", "store.")
    [line] = complaints(folder, GOOD + second)
    assert line.endswith('service.store.databases[0]: service "shop" has "shop" already')


def test_only_one_service_takes_the_databases_nobody_names(folder: Path) -> None:
    one = GOOD.replace('databases = ["shop"]\n', "")
    second = one[one.index("[service.shop]") :].replace("shop]", "store]").replace("shop.", "store.")
    [line] = complaints(folder, one + second)
    assert line.endswith('service "shop" takes every other postgresql database already; name some here')


@pytest.mark.parametrize(
    ("users", "complaint"),
    [
        ('"app" hunter2\n', "users.txt:1: expected a password in double quotes"),
        ('; ours\n\n"app" "hunter2\n', "users.txt:3: a password has no closing double quote"),
        ('"app" "a"\n"app" "b"\n', 'users.txt:2: user "app" stands in the file twice'),
        ('"app" "md55d41402abc4b2a76b9719d911017c592"', 'users.txt: user "app" has an md5 hash'),
        ("; nobody\n", "turnout.toml:16: service.shop.auth.users: users.txt names no user"),
    ],
)
def test_an_error_in_the_users_file_names_its_line_and_no_secret(folder: Path, users: str, complaint: str) -> None:
    (folder / "users.txt").write_text(users)
    [line] = complaints(folder, GOOD)
    assert line.startswith(complaint)
    assert "hunter2" not in line


def test_an_md5_hash_is_of_use_to_the_methods_that_can_use_it(folder: Path) -> None:
    (folder / "users.txt").write_text('"app" "md55d41402abc4b2a76b9719d911017c592"\n')
    for method in ("md5", "password"):
        users = read(folder, change('"scram-sha-256"', f'"{method}"')).service["shop"].auth.users
        assert users is not None
        assert users.file == str(folder / "users.txt"), "workers look there whether it has changed"


def test_users_may_come_from_the_engine_alone(folder: Path) -> None:
    auth = read(folder, change('users = { file = "users.txt" }', 'auth_user = "app"')).service["shop"].auth
    assert "pg_authid" in auth.query
    auth = read(folder, change("users =", 'auth_query = "select * from f($1)", users =')).service["shop"].auth
    assert auth.query == "select * from f($1)"
    assert read(folder, GOOD).service["shop"].auth.query == ""


RULED = change('method = "scram-sha-256", users =', 'method = "hba", hba = { file = "hba.conf" }, users =')


def test_rules_are_read_with_what_they_include(folder: Path) -> None:
    (folder / "admins").write_text("anna\nbert\n")
    (folder / "hba.conf").write_text("# ours\nhost all @admins all md5\n")
    rules = read(folder, RULED).service["shop"].auth.hba
    assert rules is not None
    assert rules.value == "# ours\nhost all anna,bert all md5\n"


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ("\nhost all all all peer\n", 'hba.conf:2: method "peer" is not supported; here may stand: trust, reject'),
        ("host all @nobody all md5\n", "hba.conf:1: @nobody cannot be read: No such file or directory"),
        ("# nothing\n", "turnout.toml:16: service.shop.auth.hba: hba.conf has no rule: nobody could log in"),
    ],
)
def test_an_error_in_the_rules_names_their_line(folder: Path, rules: str, complaint: str) -> None:
    (folder / "hba.conf").write_text(rules)
    [line] = complaints(folder, RULED)
    assert line.startswith(complaint)


def test_no_rule_is_read_from_a_part_of_an_included_file(folder: Path) -> None:
    (folder / "admins").write_text("anna\n" * 300_000)
    (folder / "hba.conf").write_text("host all @admins all reject\nhost all all all md5\n")
    [line] = complaints(folder, RULED)
    assert line.startswith("hba.conf:1: @admins cannot be read: it is longer than 1048576 bytes")


def test_rules_that_ask_for_passwords_need_users(folder: Path) -> None:
    (folder / "hba.conf").write_text("host all admin all trust\nhost all all all md5\n")
    [line] = complaints(folder, RULED.replace(', users = { file = "users.txt" }', ""))
    assert line.endswith('line 2 of hba.conf asks for passwords: "users" is missing, or auth_query')


def test_half_a_verifier_is_no_password(folder: Path) -> None:
    (folder / "users.txt").write_text('"app" "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"\n')
    [line] = complaints(folder, GOOD)
    assert line.startswith('users.txt: user "app" has a SCRAM-SHA-256 verifier that is not complete')


def test_a_scram_verifier_is_no_use_to_mysql(folder: Path) -> None:
    (folder / "users.txt").write_text('"app" "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"\n')
    text = GOOD.replace("postgresql", "mysql").replace("scram-sha-256", "caching_sha2_password")
    [line] = complaints(folder, text)
    assert (
        line == 'users.txt: user "app" has a SCRAM-SHA-256 verifier, which MySQL\'s methods cannot use; use plain text'
    )


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"no\.toml: cannot be read: No such file or directory$"):
        load(tmp_path / "no.toml")


def test_a_file_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"a = 1\n\xff\xfe")
    with pytest.raises(ConfigErrors, match=r"x\.toml:2: is not UTF-8"):
        load(tmp_path / "x.toml")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("db:5432", "db", 5432),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%2]:80", "fe80::1%2", 80),
    ],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", "db", ":5432", "db:", "db:0", "db:65536", "db:x", "db:٣", "::1:5432", "[::1]", "[::1]5432", "[db]:1", "a b:1", "u@h:1"]
)  # fmt: skip
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_only_this_machine_is_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "")))


# --- reload -------------------------------------------------------------------------------------------------------


def planned(old: Config, file: Config, commanded: Commanded | None = None, **stays: str) -> ReloadPlan:
    """`stays`: why an engine cannot be removed, by its name."""

    def why_stays(services: Mapping[str, ServiceConfig], service: str, engine: str) -> str:
        assert engine in services[service].engine
        return stays.get(engine, "")

    return plan_reload(old, file, commanded or {}, why_stays)


def refusals(old: Config, file: Config, commanded: Commanded | None = None, **stays: str) -> list[str]:
    """Each line of a reload that is refused."""
    with pytest.raises(ConfigErrors) as caught:
        planned(old, file, commanded, **stays)
    return [error.text for error in caught.value.errors]


RED = """\
[service.shop.engine.red]
address = "10.0.0.13:5432"
"""
NIGHTLY = """\
[service.shop.policy.nightly]
trigger = "manual"
target_engine = "{}"
"""
WITHOUT_GREEN = GOOD[: GOOD.index("[service.shop.engine.green]")]


def test_a_reload_says_what_is_applied_and_what_needs_a_restart(folder: Path) -> None:
    old = read(folder, GOOD)
    new = read(folder, GOOD.replace("workers = 2", "workers = 3").replace('pool_mode = "session"', "pool_size = 7"))
    plan = planned(old, new)
    assert plan.applied == ["service.shop.pool_size: 200 -> 7"]
    assert plan.needs_restart == ["workers: 2 -> 3"]


def test_a_reload_applies_what_it_says_and_nothing_else(folder: Path) -> None:
    old = read(folder, GOOD)
    new = read(
        folder,
        GOOD.replace("workers = 2", "workers = 3\nmax_client_conn = 5")
        .replace('pool_mode = "session"', "pool_size = 7")
        .replace('address = "10.0.0.11:5432"', 'address = "10.0.0.14:5432"\nserver_tls_sslmode = "disable"')
        .replace("[service.shop.engine.green]", "[service.shop.engine.red]")
        .replace('active = "blue"', 'active = "blue"\nswitch = { hold_ms_max = 700 }')
        + NIGHTLY.format("red"),
    )
    plan = planned(old, new)
    assert plan.needs_restart == [
        'service.shop.engine.blue.address: "10.0.0.11:5432" -> "10.0.0.14:5432"',
        "workers: 2 -> 3",
    ]
    shop = plan.config.service["shop"]
    assert list(shop.engine) == ["blue", "red"]
    assert shop.engine["blue"].address == "10.0.0.11:5432"
    assert shop.engine["blue"].server_tls_sslmode == "disable"
    assert shop.policy["nightly"].target_engine == "red"
    assert shop.switch.hold_ms_max == 700
    assert plan.config.workers == 2
    again = planned(plan.config, new)
    assert (again.added, again.removed, again.applied, again.kept) == ([], [], [], [])
    assert again.needs_restart == plan.needs_restart
    assert again.config == plan.config


def test_a_changed_secret_is_told_by_its_key_only(folder: Path) -> None:
    plan = planned(read(folder, GOOD), read(folder, GOOD, {"ADMIN_PASSWORD": "changed"}))
    assert (plan.applied, plan.needs_restart) == ([], ["service.shop.admin.password"])


def test_nothing_changed_is_nothing_to_say(folder: Path) -> None:
    config = read(folder, GOOD)
    nothing = ReloadPlan(config=config, added=[], removed=[], applied=[], kept=[], needs_restart=[])
    assert planned(config, read(folder, GOOD)) == nothing


# --- engines of a reload ------------------------------------------------------------------------------------------


def test_engines_come_and_go_with_a_reload(folder: Path) -> None:
    """Also one in place of another at the same address."""
    old = read(folder, GOOD)
    plan = planned(old, read(folder, GOOD + RED))
    assert (plan.added, plan.removed, plan.applied, plan.needs_restart) == ([("shop", "red")], [], [], [])
    assert list(plan.config.service["shop"].engine) == ["blue", "green", "red"]
    plan = planned(old, read(folder, WITHOUT_GREEN))
    assert (plan.added, plan.removed, plan.applied, plan.needs_restart) == ([], [("shop", "green")], [], [])
    assert list(plan.config.service["shop"].engine) == ["blue"]
    plan = planned(old, read(folder, change("engine.green", "engine.verde")))
    assert (plan.added, plan.removed) == ([("shop", "verde")], [("shop", "green")])


def test_an_engine_that_cannot_go_stays_as_it_was_and_the_rest_is_applied(folder: Path) -> None:
    old = read(folder, GOOD)
    file = read(folder, WITHOUT_GREEN.replace('pool_mode = "session"', "pool_size = 7") + RED)
    plan = planned(old, file, green="it serves; switch first")
    assert plan.kept == ["service.shop.engine.green: it serves; switch first"]
    assert (plan.added, plan.removed) == ([("shop", "red")], [])
    assert plan.applied == ["service.shop.pool_size: 200 -> 7"]
    assert plan.needs_restart == []
    assert plan.config.service["shop"].engine["green"] == old.service["shop"].engine["green"]
    assert planned(plan.config, file).removed == [("shop", "green")], "the next reload, once it may go"


def test_whether_an_engine_may_go_is_asked_with_the_policies_of_the_new_file(folder: Path) -> None:
    old = read(folder, GOOD + NIGHTLY.format("green"))
    asked = []

    def why_stays(services: Mapping[str, ServiceConfig], service: str, engine: str) -> str:
        asked.append((service, engine, services[service].policy["nightly"].target_engine))
        return ""

    plan = plan_reload(old, read(folder, WITHOUT_GREEN + NIGHTLY.format("blue")), {}, why_stays)
    assert asked == [("shop", "green", "blue")]
    assert plan.removed == [("shop", "green")]
    assert plan.applied == ['service.shop.policy.nightly.target_engine: "green" -> "blue"']


def test_an_address_that_is_taken_refuses_the_reload_as_it_refuses_the_command(folder: Path) -> None:
    old = read(folder, GOOD)
    renamed = read(folder, change('active = "blue"', 'active = "azure"').replace("engine.blue", "engine.azure"))
    assert refusals(old, renamed, blue="engine 'blue' serves 'shop'; switch to another engine first") == [
        (
            "service.shop.engine.azure: engine 'blue' has the address 10.0.0.11:5432 already; "
            "it cannot be removed now: engine 'blue' serves 'shop'; switch to another engine first"
        )
    ]
    moved = read(folder, change("10.0.0.12:5432", "10.0.0.19:5432") + RED.replace("10.0.0.13", "10.0.0.12"))
    assert refusals(old, moved) == [
        "service.shop.engine.red: engine 'green' has the address 10.0.0.12:5432 already; its new address needs a restart"
    ]
    by_command = {("shop", "pink"): EngineConfig(address="10.0.0.13:5432")}
    assert refusals(with_commanded(old, by_command), read(folder, GOOD + RED), by_command) == [
        "service.shop.engine.red: engine 'pink' has the address 10.0.0.13:5432 already; add it once only"
    ]


def test_what_was_said_by_command_about_engines_outlives_a_reload_and_is_told(folder: Path) -> None:
    pink = EngineConfig(address="10.0.0.14:5432")
    by_command: Commanded = {("shop", "pink"): pink, ("shop", "green"): None, ("gone", "x"): None}
    file = read(folder, GOOD)
    old = with_commanded(file, by_command)
    assert list(old.service["shop"].engine) == ["blue", "pink"]
    plan = planned(old, file, by_command)
    assert (plan.added, plan.removed, plan.applied, plan.needs_restart) == ([], [], [], [])
    assert plan.config == old
    assert plan.kept == [
        "service.shop.engine.pink: it was added while Turnout ran; `turnout engine remove pink` takes it out",
        (
            "service.shop.engine.green: it was removed while Turnout ran, and stays so whatever the file says; "
            "`turnout engine add green 10.0.0.12:5432` brings it back"
        ),
    ]
    assert planned(old, read(folder, WITHOUT_GREEN), by_command).kept == plan.kept[:1]
    other = read(folder, WITHOUT_GREEN + '[service.shop.engine.pink]\naddress = "10.0.0.15:5432"\nrole = "secondary"\n')
    plan = planned(old, other, by_command)
    assert plan.kept == [
        "service.shop.engine.pink: it was added while Turnout ran, and stays so whatever the file says of address, role"
    ]
    assert plan.config.service["shop"].engine["pink"] == pink
    same = read(folder, WITHOUT_GREEN + '[service.shop.engine.pink]\naddress = "10.0.0.14:5432"\n')
    assert planned(old, same, by_command).kept == []


def test_what_was_said_by_command_counts_as_a_whole(folder: Path) -> None:
    """An engine that was removed does not come back because the one in its place was added later."""
    commanded: Commanded = {("shop", "blue"): None, ("shop", "pink"): EngineConfig(address="10.0.0.14:5432")}
    assert list(with_commanded(read(folder, WITHOUT_GREEN), commanded).service["shop"].engine) == ["pink"]
    assert list(with_commanded(read(folder, WITHOUT_GREEN), {("shop", "blue"): None}).service["shop"].engine) == [
        "blue"
    ]


def test_a_reload_that_names_an_engine_which_was_removed_is_refused(folder: Path) -> None:
    """Whatever names it: a policy, a route, an alert. `active` counts at the first start only."""
    by_command: Commanded = {("shop", "green"): None}
    old = with_commanded(read(folder, GOOD), by_command)
    why = (
        "it was removed while Turnout ran, and stays so whatever the file says; "
        "`turnout engine add green 10.0.0.12:5432` brings it back, or take this out of the file"
    )
    file = read(
        folder,
        change('pool_mode = "session"', 'pool_mode = "transaction"').replace('active = "blue"', 'active = "green"')
        + NIGHTLY.format("green")
        + '[[service.shop.route]]\nto = ["blue", "green"]\n'
        + '[alerts.rule.down]\nwhen = "engine_down"\nengines = ["green"]\n',
    )
    assert refusals(old, file, by_command) == [
        f'service.shop.policy.nightly.target_engine: service "shop" would have no engine "green": {why}',
        f'service.shop.route[0].to[1]: service "shop" would have no engine "green": {why}',
        f'alerts.rule.down.engines[0]: no service would have an engine "green": {why}',
    ]
    first = read(folder, change('active = "blue"', 'active = "green"'))
    assert planned(old, first, by_command).config.service["shop"].active == "blue"


def test_what_names_an_engine_that_comes_with_a_restart_is_refused_till_then(folder: Path) -> None:
    old = read(folder, GOOD)
    new = GOOD[GOOD.index("[service.shop]") :].replace("service.shop", "service.new").replace('["shop"]', '["new"]')
    new = new.replace("engine.green", "engine.white").replace("10.0.0.1", "10.0.1.1")
    alert = '[alerts.rule.down]\nwhen = "engine_down"\nengines = ["white"]\n'
    plan = planned(
        old, read(folder, GOOD + new + '[service.new.policy.x]\ntrigger = "manual"\ntarget_engine = "white"\n')
    )
    assert plan.needs_restart == ["service.new: absent -> present"]
    assert refusals(old, read(folder, GOOD + new + alert)) == [
        (
            'alerts.rule.down.engines[0]: no service would have an engine "white": the file\'s engines of service "new" '
            "come with a restart; restart Turnout, or take this out of the file until then"
        )
    ]


def test_engines_of_another_protocol_wait_for_the_restart_that_it_needs(folder: Path) -> None:
    old = read(folder, GOOD)
    file = (GOOD + RED).replace('"postgresql"', '"mysql"').replace("scram-sha-256", "mysql_native_password")
    plan = planned(old, read(folder, file))
    assert (plan.added, plan.kept) == ([], [])
    assert "service.shop.engine.red: absent -> present" in plan.needs_restart
    assert list(plan.config.service["shop"].engine) == ["blue", "green"]
    [line] = refusals(old, read(folder, file + NIGHTLY.format("red")))
    assert line.startswith('service.shop.policy.nightly.target_engine: service "shop" would have no engine "red": ')


# --- users file ---------------------------------------------------------------------------------------------------

_plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff"), max_size=30)


@given(st.dictionaries(_plain.filter(bool), _plain, max_size=5))
def test_what_is_written_with_doubled_quotes_is_read_back(users: dict[str, str]) -> None:
    lines = []
    for name, secret in users.items():
        quoted = ['"' + word.replace('"', '""') + '"' for word in (name, secret)]
        lines.append(" ".join(quoted) + ' "the rest" is ignored')
    assert parse_users("\n".join(lines)) == users


@given(st.text(max_size=60))
def test_no_text_breaks_the_users_parser(text: str) -> None:
    try:
        users = parse_users(text)
    except UsersError as error:
        line = error.line
    else:
        line = 1
        assert all(name and isinstance(secret, str) for name, secret in users.items())
    assert 1 <= line <= text.count("\n") + 1


# --- lines of keys ------------------------------------------------------------------------------------------------

_keys = st.one_of(
    st.text(string.ascii_lowercase, min_size=1, max_size=3),
    st.text("ab.\"'#=[ ]é", min_size=1, max_size=4),
)
_scalars: st.SearchStrategy[Any] = st.one_of(
    st.integers(-9, 99), st.booleans(), st.text("ab\"\\#[]{}'=\n ", max_size=8), st.floats(allow_nan=False)
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_keys, inner, max_size=3)),
    max_leaves=8,
)


def _string(text: str) -> str:
    return '"' + "".join(f"\\u{ord(c):04x}" if c in '"\\\n' else c for c in text) + '"'


def _inline(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return _string(value)
        case list():
            return "[" + ',\n # a comment with ] and "\n '.join(map(_inline, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{_string(key)} = {_inline(one)}" for key, one in value.items()) + "}"
        case _:
            return repr(value)


@given(st.dictionaries(_keys, st.dictionaries(_keys, _values, max_size=3), max_size=4), st.sampled_from(["\n", "\r\n"]))
def test_every_key_is_found_on_the_line_it_was_written_on(document: dict[str, dict[str, Any]], newline: str) -> None:
    lines: list[str] = []
    expected: dict[KeyPath, int] = {}

    def write(text: str) -> int:
        lines.extend(text.split("\n"))
        return len(lines) - text.count("\n")

    for table, pairs in document.items():
        expected[table,] = write(f"[ {_string(table)} ]  # [not.this]")
        write('\'~\' = """\n[no]\nno = 1\n"""\n')
        for key, value in pairs.items():
            expected[table, key] = write(f'{_string(key)} = {_inline(value)} # key = "no"')
    text = newline.join(lines)
    tomllib.loads(text)
    found = key_lines(text)
    assert {path: found.get(path) for path in expected} == expected


def test_lines_of_every_way_to_write_a_table() -> None:
    text = '''\
a.b = 1
[[list]]
x = """
[no.table]
\\"""" # quotes
y = ''\'don't''\'
[list.sub]
z = [
  1,
  { deep = 2 },
]
[[list]]
x = 07:32:00
[list."sub"]
"z.z" = 1979-05-27 07:32:00
[c.d.e]
[c]
f = 'C:\\'
'''
    tomllib.loads(text)
    lines = key_lines(text)
    assert lines["a",] == lines["a", "b"] == 1
    assert lines["list", 0] == 2
    assert lines["list", 0, "y"] == 6
    assert lines["list", 0, "sub", "z", 1, "deep"] == 10
    assert lines["list", 1] == 12
    assert lines["list", 1, "sub", "z.z"] == 15
    assert lines["c", "d"] == 16
    assert lines["c",] == 17
    assert lines["c", "f"] == 18


def test_a_path_is_spelled_as_people_write_it() -> None:
    assert spell(("service", "a b", "databases", 2)) == 'service."a b".databases[2]'


def test_the_structs_forbid_unknown_fields_too() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"listener": [], "service": {}, "nope": 1}, Config)


def test_tokens_are_kept_as_hashes_whatever_the_file_has(folder: Path) -> None:
    token = "a-token-of-some-length"
    (folder / "clear").write_text(token + "\n")
    (folder / "hashed").write_text(hash_token("another") + "\n")
    callers = "".join(
        f'[control.caller.{one}]\nrole = "viewer"\ntoken = {{ file = "{one}" }}\n' for one in ("clear", "hashed")
    )
    text = GOOD.replace("[[listener]]", callers + "[[listener]]")
    config = read(folder, text)
    kept = {name: caller.token.value for name, caller in config.control.caller.items() if caller.token is not None}
    assert kept == {"clear": hash_token(token), "hashed": hash_token("another")}
    assert token not in encode_effective(config).decode()
    (folder / "hashed").write_text(token)
    assert "is the same as that of control.caller.clear" in complaints(folder, text)[0]
    (folder / "hashed").write_text("sha256:12")
    assert "is no SHA-256 in hex" in complaints(folder, text)[0]


def test_a_control_port_for_everybody_may_be_had_in_so_many_words(folder: Path) -> None:
    words = 'listen = "0.0.0.0:7432"\nallow_without_tls = true\nallow_without_access_control = true'
    assert not read(folder, GOOD.replace('listen = "127.0.0.1:7432"', words)).control.has_access_control
