from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from proxy.config import LogConfig, load
from proxy.hidden import hidden_words, secret_variables
from proxy.log import hide, set_up, without_secrets


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_a_line_says_who_first(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(LogConfig(), who="worker 1")
    structlog.get_logger().info("session ended", session=42, service="shop", why="client left")
    assert "[info     ] worker 1, service shop, session 42: session ended why='client left'" in capsys.readouterr().err


def test_what_a_client_says_moves_no_cursor_and_begins_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(LogConfig())
    log = structlog.get_logger()
    log.warning("no \x1b[2J such\nforged line", user="ev\x1b]0;title\x07il", database="a\x9bb c", engine="e\nf")
    try:
        raise ValueError("told \x1b[2J\nthis")
    except ValueError:
        log.exception("failed")
    err = capsys.readouterr().err
    assert not set("\x1b\x07\x9b") & set(err)
    assert r"no \x1b[2J such\nforged line" in err
    assert r"user=ev\x1b]0;title\x07il database='a\x9bb c'" in err
    assert "ValueError: told \\x1b[2J\nthis\n" in err, "tracebacks keep their lines"


def test_json_is_one_object_a_line_with_the_same_fields(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(LogConfig(format="json"), who="supervisor")
    structlog.get_logger().warning("engine down", engine="blue")
    line = json.loads(capsys.readouterr().err)
    assert (line["who"], line["engine"], line["event"], line["level"]) == (
        "supervisor",
        "blue",
        "engine down",
        "warning",
    )


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_is_logged_whoever_passes_it(capsys: pytest.CaptureFixture[str], form: str) -> None:
    set_up(LogConfig(format=form))  # type: ignore[arg-type]
    password = "hunter2"
    structlog.get_logger().info("login", password=password, Token=password, user="app")
    try:
        raise ValueError("no reason")
    except ValueError:
        structlog.get_logger().exception("a traceback shows no local variables")
    err = capsys.readouterr().err
    assert err.count("***") == 2
    assert "no reason" in err
    assert password not in err.replace('password = "hunter2"', "")


def test_what_is_below_the_level_is_not_logged_and_a_reload_changes_it(capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger()
    set_up(LogConfig(level="warning"))
    log.info("quiet")
    set_up(LogConfig(level="debug"))
    log.debug("loud")
    err = capsys.readouterr().err
    assert "quiet" not in err
    assert "loud" in err


def test_libraries_are_heard_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(LogConfig(), who="supervisor")
    library = logging.getLogger("some.library")
    library.info("progress")
    library.warning("trouble in %s", "paradise")
    err = capsys.readouterr().err
    assert "progress" not in err
    assert "supervisor: trouble in paradise" in err


SECRET = "canary-7f3a91c2d4"


@pytest.fixture
def hidden() -> Iterator[None]:
    hide([SECRET, "short"])
    yield
    hide([])


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.usefixtures("hidden")
def test_what_the_config_keeps_secret_is_masked_wherever_it_stands(
    capsys: pytest.CaptureFixture[str], form: str
) -> None:
    set_up(LogConfig(format=form), who="supervisor")  # type: ignore[arg-type]
    log = structlog.get_logger()
    log.info("%s in the event", SECRET, why=f"at the end {SECRET}", several=[f"a {SECRET}", {"b": SECRET}])
    log.info("an object", error=ValueError(f"with {SECRET}"), code=5, short="short")
    try:
        raise ValueError(f"no reason but {SECRET}")
    except ValueError:
        log.exception("failed")
        logging.getLogger("library").exception("failed with %s", SECRET)
    err = capsys.readouterr().err
    assert SECRET not in err.replace('f"no reason but {SECRET}"', "")
    assert err.count("***") >= 8
    assert "no reason but ***" in err
    # Words of less than eight characters would hide half of every line.
    assert "short" in err


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("host=db password=hunter2 user=app", "host=db password=*** user=app"),
        ("password = 'hunter 2', x", "password = ***, x"),
        ("postgresql://app:hunter2@db:5432/app", "postgresql://app:***@db:5432/app"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer ***"),
        ("alter role x password 'hunter2'", "alter role x password '***'"),
        ("create user x IDENTIFIED BY 'hunter2'", "create user x IDENTIFIED BY '***'"),
        ("-----BEGIN PRIVATE KEY-----\nMIG\n-----END PRIVATE KEY----- x", "*** x"),
        ("password authentication failed for user app", "password authentication failed for user app"),
        ("http://db:5432/x at 10:30", "http://db:5432/x at 10:30"),
        ("mysql://app:hunt@er2@db/app", "mysql://app:***@db/app"),
        ("PGPASSWORD=hunter2 psql", "PGPASSWORD=*** psql"),
        ("access_token=hunter2&x=1", "access_token=***&x=1"),
        ('{"password": "hunter 2", "user": "app"}', '{"password": ***, "user": "app"}'),
    ],
)
def test_what_looks_like_a_password_in_somebody_elses_text_is_masked(said: str, shown: str) -> None:
    assert without_secrets(said) == shown


def test_a_config_knows_all_that_must_not_be_seen(tmp_path: Path) -> None:
    (tmp_path / "turnout.toml").write_text(
        """
        [[listener]]
        protocol = "postgresql"
        listen = "127.0.0.1:6432"
        [control]
        token = { env = "TOKEN" }
        [service.shop]
        protocol = "postgresql"
        active = "blue"
        admin = { user = "a", password = { env = "ADMIN" } }
        auth = { method = "scram-sha-256", users = { file = "users.txt" } }
        hook = [{ at = "promote", url = "http://x", token = { env = "HOOK" } }]
        [service.shop.engine.blue]
        address = "db:5432"
        [alerts.receiver.ops]
        kind = "slack"
        url = { env = "SLACK" }
        """
    )
    (tmp_path / "users.txt").write_text('"app" "of-the-user"\n')
    environ = {
        "TOKEN": "t" * 16,
        "ADMIN": "of-the-admin",
        "HOOK": "of-the-hook",
        "SLACK": "https://chat/services/of-the-chat",
    }
    config = load(tmp_path / "turnout.toml", environ=environ)
    words = hidden_words(config)
    assert words >= {"of-the-user", "of-the-admin", "of-the-hook", "https://chat/services/of-the-chat", "of-the-chat"}
    assert "t" * 16 not in words, "of a token only its hash is known"
    assert secret_variables(config) == environ.keys(), "workers do not inherit these"
