from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from proxy.config import LogConfig
from proxy.log import set_up


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
