"""Which texts may change what a session holds on the server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.mysql.state import TEXT_DIRTY, TEXT_HOLDS, TEXT_NAMES, TEXT_OPAQUE, TEXT_SEVERAL
from protocols.mysql.tracker import TextScan, scan_text

PLAIN = [
    "select 1", "  \n\t(select 1) union (select 2)", "INSERT INTO t VALUES ('a@b.c; set x', \"it's @x\")",
    "update t set a = 'x\\'; set @a=1 -- ' where b = 1", "delete from t", "replace into t values (1)", "begin",
    "start transaction with consistent snapshot", "commit", "rollback", "ROLLBACK TO SAVEPOINT a", "savepoint a",
    "release savepoint a", "show tables", "with a as (select 1) select * from a", "explain select 1", "desc t",
    "describe t", "values row(1)", "table t", "truncate t", "/* set */ select 1", "-- set\nselect 1", "# set\nselect 1",
    "select @@version, @@session.sql_mode", "select 1;", "select 1; select 2;", ";;", "", "select 5--3",
    "select `set @a` from `t;`", "select a /* @x; set */ from t -- @y", "select 'a\\\\' , 'b'", "select * from locks",
    "select a from t lock in share mode", "select temporary_name from t", "select /*+ max_execution_time(1) */ 1",
]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_plain_texts_change_nothing(text: str) -> None:
    assert scan_text(text.encode()) & ~TEXT_SEVERAL == 0


MARKED = [
    ("set names utf8", TEXT_DIRTY), ("SET autocommit=0", TEXT_DIRTY), ("use app", TEXT_DIRTY),
    ("create table t(a int)", TEXT_DIRTY), ("alter table t add b int", TEXT_DIRTY),
    ("select @a := 1", TEXT_DIRTY | TEXT_NAMES), ("select 1 into @a", TEXT_DIRTY | TEXT_NAMES),
    ("select @`a b`", TEXT_DIRTY | TEXT_NAMES), ("select @", TEXT_DIRTY), ("select @@a, @b", TEXT_DIRTY | TEXT_NAMES),
    ("select get_lock('a', 1)", TEXT_DIRTY | TEXT_HOLDS), ("do release_lock('a')", TEXT_DIRTY | TEXT_HOLDS),
    ("select RELEASE_ALL_LOCKS()", TEXT_DIRTY | TEXT_HOLDS), ("create temporary table t(a int)", TEXT_DIRTY | TEXT_HOLDS),
    ("drop table t", TEXT_DIRTY | TEXT_HOLDS), ("lock tables t write", TEXT_DIRTY | TEXT_HOLDS),
    ("unlock tables", TEXT_DIRTY | TEXT_HOLDS), ("handler t open", TEXT_DIRTY | TEXT_HOLDS),
    ("xa start 'a'", TEXT_DIRTY | TEXT_HOLDS), ("flush tables with read lock", TEXT_DIRTY | TEXT_HOLDS),
    ("prepare s from 'select 1'", TEXT_DIRTY | TEXT_HOLDS), ("deallocate prepare s", TEXT_DIRTY | TEXT_HOLDS),
    ("call p()", TEXT_DIRTY | TEXT_OPAQUE), ("execute s", TEXT_DIRTY | TEXT_OPAQUE),
    ("begin not atomic set session sql_mode=''; end", TEXT_DIRTY | TEXT_OPAQUE),
    ("select 1 /*!50000 , @a:=1 */", TEXT_DIRTY), ("/*M! set x=1 */", TEXT_DIRTY), ("/*m!100000 set x=1*/", TEXT_DIRTY),
    ("select 1; set names utf8", TEXT_DIRTY | TEXT_SEVERAL), ("select 'abc", TEXT_DIRTY), ("'a' set", TEXT_DIRTY),
    ("select 'a\\'; set x = 1", TEXT_DIRTY), ("{fn set}", TEXT_DIRTY), ("select/**/@a", TEXT_NAMES),
    ("/* a */ -- b\n # c\n set x = 1", TEXT_DIRTY), ("selec 1", TEXT_DIRTY), ("selects 1", TEXT_DIRTY),
]  # fmt: skip


@pytest.mark.parametrize(("text", "found"), MARKED)
def test_texts_that_may_change_something_are_marked(text: str, found: int) -> None:
    assert scan_text(text.encode()) & found == found


def test_without_backslash_escapes_a_string_ends_earlier() -> None:
    text = rb"select 'a\', @a:=1, 'b'"
    assert scan_text(text) & TEXT_NAMES == 0
    assert scan_text(text, has_escapes=False) & TEXT_NAMES


def test_a_backslash_that_may_be_half_a_character_is_marked() -> None:
    assert scan_text(b"select '\x95\\', @a:=1, '") & TEXT_DIRTY


@given(
    text=st.text(alphabet="select@a;set'\"`\\/*!-# \n()LOCK_GTEMPORYx", max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
def test_any_cut_finds_the_same(text: str, cuts: list[int]) -> None:
    data = text.encode()
    scan = TextScan()
    scan.begin(True)
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in zip(edges, edges[1:], strict=False):  # noqa: RUF007
        scan.feed(data, start, end)
    assert scan.finish() == scan_text(data)
