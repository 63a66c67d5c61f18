"""What is one complete statement and nothing else."""

from __future__ import annotations

import pytest

from protocols.postgres.messages import (
    build_bind,
    build_close,
    build_describe,
    build_execute,
    build_flush,
    build_parse,
    build_query,
    build_sync,
)
from protocols.postgres.units import UNIT_BYTES_MAX, lone_statement

TEXT = b"select 1"
BIND, EXECUTE, SYNC = build_bind(b"", b""), build_execute(b""), build_sync()
PARSE = build_parse(b"", TEXT)


def known(name: bytes) -> bytes | None:
    return {b"": b"select unnamed", b"s1": b"select named"}.get(name)


@pytest.mark.parametrize(
    ("work", "text"),
    [
        (build_query(TEXT), TEXT),
        (PARSE + BIND + EXECUTE + SYNC, TEXT),
        (PARSE + BIND + build_describe(b"P", b"") + EXECUTE + SYNC, TEXT),
        (build_parse(b"s9", TEXT) + build_bind(b"", b"s9") + EXECUTE + SYNC, TEXT),
        (build_bind(b"", b"s1") + EXECUTE + SYNC, b"select named"),
        (BIND + EXECUTE + SYNC, b"select unnamed"),
        (PARSE + BIND + build_execute(b"", 5) + SYNC, TEXT),
        (PARSE + build_bind(b"p", b"") + build_execute(b"p", 1) + SYNC, TEXT),
        (PARSE + build_describe(b"S", b"") + SYNC, b""),
        (build_close(b"S", b"s1") + SYNC, b""),
        (SYNC, b""),
    ],
)
def test_one_unit_is_found_in_each_of_its_forms(work: bytes, text: bytes) -> None:
    assert lone_statement(work, known) == text


@pytest.mark.parametrize(
    "work",
    [
        b"",
        build_query(TEXT) * 2,
        build_query(TEXT) + build_sync(),
        build_query(TEXT)[:-1],
        PARSE + BIND + EXECUTE,
        PARSE + BIND + EXECUTE + build_flush(),
        PARSE + BIND + EXECUTE + EXECUTE + SYNC,
        (PARSE + BIND + EXECUTE + SYNC) * 2,
        PARSE + BIND + build_execute(b"p") + SYNC,
        PARSE + build_close(b"S", b"") + BIND + EXECUTE + SYNC,
        PARSE + build_flush() + SYNC,
        build_parse(b"s9", TEXT) + BIND + EXECUTE + SYNC,
        build_bind(b"", b"gone") + EXECUTE + SYNC,
        build_query(b"x" * UNIT_BYTES_MAX),
        b"Q\x00\x00\x00\x03",
        b"Q\xff\xff\xff\xff",
    ],
)
def test_whatever_else_comes_is_not(work: bytes) -> None:
    assert lone_statement(work, known) is None
