from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.fingerprint import CUT, TEXT_CHARS_MAX, fingerprint


def postgres(text: str, *, is_whole: bool = True) -> str:
    return fingerprint(text, is_mysql=False, is_whole=is_whole).text


def mysql(text: str, *, is_whole: bool = True) -> str:
    return fingerprint(text, is_mysql=True, is_whole=is_whole).text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("SELECT * FROM t WHERE a = 'x' AND b=12.5", "select * from t where a = ? and b = ?"),
        ("select 1e-5, .5, 0xFF, 1_000, -3", "select ?, …, - ?"),
        ("select 'it''s', E'it\\'s', $$it's$$, $x$ $$ $x$, U&'d\\0061t'", "select ?, …"),
        ("select $1, $2 -- 'secret'\n, x", "select ?, …, x"),
        ("select /* a /* 'b' */ c */ x", "select x"),
        ('select "A b", t1.c2 from "x""y".z', 'select "A b", t1.c2 from "x""y".z'),
        ("insert into t (a, b) values (1, 'x'), (2, 'y'), (3, 'z')", "insert into t(a, b) values (?, …), …"),
        ("update t set a = a + 1 where b in (1,2,3)", "update t set a = a + ? where b in (?, …)"),
        ("select a::int, b->>'k', c[1] from t", "select a::int, b ->> ?, c[?] from t"),
        ("select x'1F', b'01', n'a'", "select ?, …"),
        ("select t1 from t2; delete from t3", "select t1 from t2; delete from t3"),
    ],
)
def test_postgres_texts_have_no_values(text: str, shown: str) -> None:
    assert postgres(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("SELECT \"x\", 'y' FROM `a b` # 'secret'", "select ?, … from `a b`"),
        ("select _utf8mb4'x', x'00', ?", "select ?, …"),
        ("select @a := 5, @@sql_mode", "select @a := ?, @@sql_mode"),
        ("select 'a\\\\', 'b'", "select ?, …"),
        ("insert into t values (1,2),(3,4)", "insert into t values (?, …), …"),
    ],
)
def test_mysql_texts_have_no_values(text: str, shown: str) -> None:
    assert mysql(text) == shown


@pytest.mark.parametrize("shown", [postgres, mysql])
def test_where_it_cannot_be_told_where_a_string_ends_all_that_follows_is_left_out(shown: object) -> None:
    assert callable(shown)
    assert shown(r"select a, 'it\'s', 'secret'") == f"select a, ? {CUT}"
    assert shown("select a, 'secret") == f"select a, ? {CUT}"
    assert shown("select a /* secret") == f"select a {CUT}"
    assert shown("select a, \x01 secret") == f"select a, {CUT}"


def test_a_text_that_was_cut_shows_no_half_word() -> None:
    assert postgres("select a from secr", is_whole=False) == f"select a from {CUT}"
    assert postgres("select a from t ", is_whole=False) == f"select a from t {CUT}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("set application_name to hunter2", "set application_name …"),
        ("SET x.y = hunter2", "set x.y …"),
        ("alter user app password 'hunter2'", "alter user app …"),
        ("create user app identified by 'hunter2'", "create user app …"),
        ("alter role app set x to hunter2", "alter role app set …"),
        ("show tables", "show tables"),
        ("notify hunter2channel, 'payload'", "notify hunter2channel …"),
        ("grant x to y identified by z", "grant x …"),
    ],
)
def test_what_is_no_query_is_shown_up_to_its_first_value(text: str, shown: str) -> None:
    assert postgres(text) == shown
    assert "hunter2" not in mysql(text) or "hunter2channel" in text


def test_statements_that_differ_in_values_only_have_one_fingerprint() -> None:
    texts = ("select a from t where b = 1", "SELECT  a FROM t\nWHERE b='x' -- c", "select a from t where b = $1")
    found = {fingerprint(text, is_mysql=False) for text in texts}
    assert len(found) == 1
    assert found.pop().kind == "select"
    assert fingerprint("select a from u where b = 1", is_mysql=False).digest not in {one.digest for one in found}


def test_the_text_is_bounded() -> None:
    assert len(postgres("select " + ", ".join(f"column{n}" for n in range(10_000)))) == TEXT_CHARS_MAX + len(CUT)
    assert postgres("select " + "(" * 100_000).endswith(CUT)


WORDS = st.text(st.characters(codec="utf-8"), max_size=30)
SECRET = "Canary7f3a91c2"


@given(before=WORDS, inside=WORDS, after=WORDS, is_mysql=st.booleans())
@example(before="select '\\", inside="", after="", is_mysql=True)
@example(before="'", inside="' ", after="'", is_mysql=False)
@example(before="$a$ ", inside="", after="", is_mysql=False)
def test_a_string_is_never_shown_whatever_stands_around_it(
    before: str, inside: str, after: str, is_mysql: bool
) -> None:
    """What stands before is whole statements' worth of anything that opens no string, name or comment by itself."""
    opens = "'\"`$/-#\\*"
    clean = "".join(one for one in before if one not in opens)
    value = inside.replace("'", "''").replace("\\", "\\\\") + SECRET
    text = f"select {clean} '{value}' {after}"
    shown = fingerprint(text, is_mysql=is_mysql)
    assert SECRET.lower() not in shown.text.lower() or SECRET.lower() in after.lower()
    assert fingerprint(text, is_mysql=is_mysql) == shown
