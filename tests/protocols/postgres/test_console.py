"""What clients of the console say, and what they are answered."""

from __future__ import annotations

import pytest

from protocols.errors import ProtocolViolation
from protocols.postgres import console
from protocols.postgres.messages import (
    build_bind,
    build_execute,
    build_flush,
    build_parse,
    build_query,
    build_ready,
    build_sync,
    build_terminate,
    parse_data_row,
)

CONVERSATION = (
    build_query(b"show pools")
    + build_parse(b"", b"show pools")
    + build_bind(b"", b"")
    + build_execute(b"")
    + build_flush()
    + build_sync()
    + build_query(b"pause \xff")
    + build_terminate()
)


def hear(pieces: list[bytes]) -> tuple[list[str], bytes, bool]:
    client = console.ConsoleClient()
    questions: list[str] = []
    output = b""
    for piece in pieces:
        client.receive(piece)
        while (text := client.next_question()) is not None:
            questions.append(text)
        output += client.take_output()
    return questions, output, client.has_left


def test_any_cut_of_the_stream_gives_the_same_questions() -> None:
    whole = hear([CONVERSATION])
    assert whole[0] == ["show pools", "pause \ufffd"]
    assert whole[2]
    assert hear([CONVERSATION[i : i + 1] for i in range(len(CONVERSATION))]) == whole


def test_the_extended_protocol_is_refused_once_and_the_client_goes_on_after_its_sync() -> None:
    _, output, _ = hear([CONVERSATION])
    assert output.count(b"extended query protocol not supported by admin console") == 1
    assert b"C0A000\0" in output
    assert output.endswith(build_ready())


def test_what_is_sent_between_the_refusal_and_sync_does_not_count() -> None:
    pieces = [build_parse(b"", b"x") + build_query(b"kill app") + build_sync() + build_query(b"show state")]
    assert hear(pieces)[0] == ["show state"]


def test_a_question_longer_than_any_command_ends_the_connection() -> None:
    with pytest.raises(ProtocolViolation):
        hear([build_query(b"x" * console.QUESTION_BYTES_MAX)])


@pytest.mark.parametrize(
    "message", [b"d\0\0\0\x04", b"p\0\0\0\x05\0", b"F\0\0\0\x04", b"Q\0\0\0\x05x", b"Q\0\0\0\x06\0x"]
)
def test_what_no_client_of_the_console_sends_is_a_violation(message: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        hear([message])


def test_a_row_has_numbers_text_and_nulls_and_never_a_zero_byte() -> None:
    row = console.build_data_row([1, "a\0b", None, -5, "é"])
    assert parse_data_row(row) == [b"1", b"ab", None, b"-5", "é".encode()]


def test_columns_have_postgresqls_types() -> None:
    described = console.build_row_description([("a", "s"), ("b", "N")])
    assert described[5:7] == b"\0\x02"
    assert described[7:9] == b"a\0"
    assert int.from_bytes(described[15:19], "big") == 25
    assert described[-18 + 6 : -18 + 10] == (1700).to_bytes(4, "big")
