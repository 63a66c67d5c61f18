from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.postgres.ledger import own_prepare
from protocols.postgres.text import PLAIN_WORDS, changes_nothing, custom_names, is_plain, split_statements


def plain(text: str) -> bool:
    data = text.encode()
    return bool(is_plain(data, 0, len(data)))


@pytest.mark.parametrize("word", PLAIN_WORDS)
def test_each_word_of_the_set_is_plain_in_any_case_and_no_other_is(word: str) -> None:
    assert plain(word)
    assert plain(f" \n\t(({word.upper()} 1); ;{word.title()} 2;")
    assert not plain(word + "x")
    assert not plain(word[:-1] + "é")
    assert not plain(word[:-1] + "_")
    assert not plain(word[:-1])
    assert not plain(f"select 1; {word}9")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ";;",
        "-- set x\nselect 1",
        "/* set x; /* nested */ set y */ select 1",
        "set local x = 1",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; set constraints all deferred",
        "select temperature, attempt, template, contemporary from t",
        "select pg_advisory_xact_lock(1)",
        "select 'a; select b' from t; /* c */ select 2 -- set",
        "insert into t values (';')",
        "begin; update t set a = 1; commit",
    ],
)
def test_what_ends_with_its_transaction_is_plain(text: str) -> None:
    assert plain(text)


@pytest.mark.parametrize(
    "text",
    [
        "set x = 1",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "set local_x = 1",
        "reset all",
        "select set_config('a', 'b', false)",
        "SELECT pg_catalog.SET_CONFIG('a', 'b', false)",
        "select pg_advisory_lock(1)",
        "select pg_try_advisory_lock_shared(1)",
        "select PG_ADVISORY_UNLOCK_ALL()",
        "select 1 into temp x",
        "select 1 into TEMPORARY x",
        "select * into pg_temp.x from y",
        "insert into pg_temp_3.x values (1)",
        "begin; set x = 1",
        "select 1;set x = 1",
        "select 1; -- select\n set x = 1",
        "select 1; /* ; select */ set x = 1",
        "select ';' ; /* /* ; */ */ set x = 1",
        "prepare x as select 1",
        "execute x",
        "deallocate x",
        "do $$ begin end $$",
        "call x()",
        "listen x",
        "unlisten x",
        "discard all",
        "declare c cursor with hold for select 1",
        "load 'x'",
        "create temp table x (a int)",
        "drop table x",
        "explain analyze execute x",
        "émile",
    ],
)
def test_what_may_outlive_its_transaction_is_not_plain(text: str) -> None:
    assert not plain(text)
    assert not changes_nothing(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "select set_config('app.tenant', $1, true)",
        "select set_config('a', 'b', true), set_config('c', 'd' , TRUE )",
        "declare c cursor for select 1",
        "begin; declare c no scroll cursor for select 1",
    ],
)
def test_what_only_the_thorough_look_passes(text: str) -> None:
    assert not plain(text)
    assert changes_nothing(text.encode())


def test_a_held_cursor_is_never_passed() -> None:
    assert not changes_nothing(b"declare a cursor for select 1; declare b cursor with hold for select 1")


@given(st.binary(max_size=200), st.integers(0, 20), st.integers(0, 20))
def test_only_the_text_itself_is_looked_at(text: bytes, before: int, behind: int) -> None:
    data = b"set_config "[:before] + text + b" temp; set x"[:behind]
    start = len(b"set_config "[:before])
    assert is_plain(data, start, start + len(text)) == is_plain(text, 0, len(text))


def test_names_of_custom_settings_are_found() -> None:
    text = b"SET app.Tenant = 'a.b'; SELECT set_config('\"x\".y.z', 't', false); SET work_mem = 1.5; SET a = 1a.b"
    assert custom_names(text) == {b"app.tenant", b"a.b", b"x.y.z"}


@pytest.mark.parametrize("unit", [b"a", b"a.", b"declare ", b"set_config(", b"set_config(a, ", b"declare hold;", b"/*"])
def test_hostile_texts_take_no_longer_than_others(unit: bytes) -> None:
    text = unit * (2**20 // len(unit))
    began = time.process_time()
    changes_nothing(text)
    custom_names(text)
    changes_nothing(text[:4096])
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("", []),
        (" ; -- a\n ;/* b; */", []),
        ("select 1", ["select 1"]),
        (" select 1 ; /* a */ select 2 -- b", ["select 1", "select 2 -- b"]),
        (
            "select ';', \";\", $$;$$, $a$;$$;$a$, E'\\';', ';''';x",
            ["select ';', \";\", $$;$$, $a$;$$;$a$, E'\\';', ';'''", "x"],
        ),
        ("a$b$ ; c$b$", ["a$b$", "c$b$"]),
        ("/* /* ; */ ; */ a", ["a"]),
        ("$1;b", ["$1", "b"]),
    ],
)
def test_statements_are_split_where_the_server_splits_them(text: str, statements: list[str]) -> None:
    assert split_statements(text.encode()) == [statement.encode() for statement in statements]


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("prepare a as select 1", "a", "prepare a as select 1"),
        ("begin; PREPARE A(int) as select $1; insert into t values (1)", "a", "PREPARE A(int) as select $1"),
        ('prepare "A ""b" as select 1;', 'A "b', 'prepare "A ""b" as select 1'),
        ("prepare a as select 1; deallocate a; prepare a as select 2", "a", None),
        ("select 'prepare a as select 1'", "a", None),
        ("prepare ab as select 1", "a", None),
    ],
)
def test_a_prepare_is_cut_out_of_its_batch_or_given_up(text: str, name: str, found: str | None) -> None:
    assert own_prepare(text.encode(), name.encode()) == (None if found is None else found.encode())
