"""Startup parameters and options, taken apart as the server does."""

from __future__ import annotations

import pytest

from protocols.postgres import WIRE
from protocols.postgres.ledger import redress
from protocols.postgres.startup import RefusedOption, as_settings, build_options, parse_options, split_options, without
from protocols.wire import ErrorReply, Startup


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("-c a=1 -c b=2", [("a", "1"), ("b", "2")]),
        ("-ca=1 --b=2", [("a", "1"), ("b", "2")]),
        ("--work-mem=4MB", [("work_mem", "4MB")]),
        (r"-c search_path=a,\ b", [("search_path", "a, b")]),
        (r"-c app.x=\\\'y", [("app.x", r"\'y")]),
        ("  -c\ta=b=c\n", [("a", "b=c")]),
        ("-c a=", [("a", "")]),
        ("", []),
    ],
)
def test_options_are_read_as_the_server_reads_them(text: str, settings: list[tuple[str, str]]) -> None:
    """field-notes: Startup `options`, PGOPTIONS, unknown params"""
    assert parse_options(text) == settings
    assert parse_options(build_options(settings)) == settings


def test_a_backslash_at_the_end_takes_nothing() -> None:
    assert split_options("a\\") == ["a"]


@pytest.mark.parametrize("text", ["-B 10", "-F", "word", "-c", "-c a", "--", "-c a;b=1", "--=1"])
def test_what_cannot_be_applied_is_refused_by_name(text: str) -> None:
    """field-notes: Startup parameters and `options`"""
    with pytest.raises(RefusedOption):
        parse_options(text)
    refused = WIRE.client_startup(Startup("u", "d", (("options", text),)), shares_backends=True, ignored=())
    assert isinstance(refused, ErrorReply)


def test_a_parameter_of_its_own_wins_over_options() -> None:
    startup = Startup("u", "d", (("TimeZone", "UTC"), ("options", "-c timezone=CET -c work_mem=1MB")))
    assert as_settings(startup).parameters == (("TimeZone", "UTC"), ("work_mem", "1MB"))


def test_an_ignored_parameter_goes_wherever_it_stands() -> None:
    startup = Startup("u", "d", (("extra_float_digits", "2"), ("options", "-c Extra-Float-Digits=3 -c work_mem=1MB")))
    assert without(startup, ["extra_float_digits"]).parameters == (("options", "-c work_mem=1MB"),)
    assert without(startup, ["options"]).parameters == (("extra_float_digits", "2"),)
    assert without(startup, ["other"]) == startup


def test_only_the_difference_is_set() -> None:
    worn = Startup("u", "d", (("a", "1"), ("b", "2"), ("role", "r")))
    wanted = Startup("u", "d", (("a", "1"), ("c", "it's"), ("client_encoding", "LATIN1"), ("role", "s")))
    request = redress(worn, wanted).request
    assert b'RESET "role"; RESET "b"' in request
    assert b'RESET "a"' not in request
    assert b"E'a'" not in request
    assert b"E'it''s'" in request
    assert request.index(b"client_encoding") < request.index(b"RESET")
    assert request.index(b"E'role'") > request.index(b"E'c'")
