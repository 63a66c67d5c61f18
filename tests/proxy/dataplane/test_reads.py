"""Which texts surely only read."""

from __future__ import annotations

import pytest
from sqlglot import exp

from proxy.dataplane import reads
from proxy.dataplane.reads import PARSES_PER_S_MAX, Reads
from proxy.dataplane.vocabulary import VOCABULARIES

S = 10**9


@pytest.fixture(scope="module")
def judge() -> Reads:
    return Reads("postgresql", ["price_of", "shop.price_of"])


READS = """
select 1
(select 1)
values (1), (2)
table orders
select * from orders where id = $1 and note like '%x%' order by id desc nulls last limit 5 offset 2
select o.*, u.name from orders o left join users u on u.id = o.user_id where u.name ilike 'a' or o.id in (1, 2)
with recursive r as (select 1 union all select n + 1 from r where n < 5) select * from r
select (select max(x) from t) as m, case when a then 1 else 2 end, a::text, a is null, not b from t
select now(), lower(a), coalesce(a, b), date_trunc('day', c), extract(year from c), a ->> 'k', a @> b from t
select id, row_number() over (partition by a order by b) from t
select to_tsvector(a) @@ to_tsquery('x') from t
select 'delete from t; for update' as "nextval('s')"
select e'it\\'s', $$ begin; $$ from t /* nextval('s') */ -- delete
select price_of(3), shop.price_of(4)
""".strip().splitlines()

STAYS = """
insert into t values (1)
update t set a = 1
delete from t
with w as (delete from t returning *) select * from w
select * from t for update
select * from t for no key update skip locked
select * from t for share
select * into u from t
create table u as select 1
select 1; delete from t
select nextval('s')
select setval('s', 1)
select my_function(1)
select other.price_of(1)
select set_config('a.b', 'c', false)
select current_setting('a.b')
select pg_sleep(1)
select pg_advisory_lock(1)
select txid_current()
select lo_unlink(1)
select dblink_exec('x')
select query_to_xml('delete from t', true, false, '')
select * from my_function(1)
select * from pg_stat_activity
select * from pg_catalog.pg_class
select * from information_schema.tables
select inet_server_addr()
explain select 1
explain analyze delete from t
show all
set a.b to c
begin
commit
fetch 1 from c
copy t to stdout
call p()
do $$ begin end $$
listen c
lock table t
refresh materialized view v
truncate t
execute s
this is no sql
""".strip().splitlines()


@pytest.mark.parametrize("text", READS)
def test_what_surely_only_reads_is_known(judge: Reads, text: str) -> None:
    assert judge.judge(text.encode(), 0).is_read


@pytest.mark.parametrize("text", [*STAYS, "", ";", "select '", "\xff"])
def test_whatever_is_not_surely_a_read_stays(judge: Reads, text: str) -> None:
    assert not Reads("postgresql", ["price_of", "shop.price_of"]).judge(text.encode("latin-1"), 0).is_read


@pytest.mark.parametrize(
    ("text", "is_aggregate"),
    [
        ("select count(*) from t", True),
        ("select a from t group by a", True),
        ("select distinct a from t", True),
        ("select a from t where id = 1", False),
        ("select lower(a) from t", False),
    ],
)
def test_what_adds_up_rows_is_known(judge: Reads, text: str, is_aggregate: bool) -> None:
    assert judge.judge(text.encode(), 0).is_aggregate is is_aggregate


def test_only_so_many_new_texts_are_read_in_a_second_and_known_ones_at_any_time() -> None:
    fresh = Reads("postgresql")
    assert fresh.judge(b"select 0", 0).is_read
    found = [fresh.judge(b"select %d" % number, 0).is_read for number in range(PARSES_PER_S_MAX + 10)]
    assert found.count(True) == PARSES_PER_S_MAX
    assert fresh.judge(b"select 0", 0).is_read
    assert not fresh.judge(b"select 'new'", S - 1).is_read
    assert fresh.judge(b"select 'new'", S).is_read


def test_judgements_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "KEPT", 5)
    fresh = Reads("postgresql")
    for number in range(20):
        fresh.judge(b"select %d" % number, number * S)
    assert len(fresh._kept) == 5


def test_what_the_list_names_is_what_sqlglot_has() -> None:
    for words in VOCABULARIES.values():
        for name in words.nodes:
            assert issubclass(getattr(exp, name), exp.Expr), name


MYSQL_READS = """
select 1
select * from orders where id = 5 and note like '%x%' escape '|' order by id desc limit 5, 10
select o.*, u.`name` from shop.orders as o straight_join users u using (id) where u.name regexp 'a' or o.id in (1, 2)
with recursive r as (select 1 as n union all select n + 1 from r where n < 5) select * from r
select count(*), max(a), group_concat(distinct a order by b separator ','), std(a) from t group by a with rollup having 1
select now(), lower(a), ifnull(a, b), if(a, 1, 2), date_format(c, '%Y'), c + interval 1 day, a div 2, a <=> b, !a from t
select cast(a as unsigned), convert(a using utf8mb4), a collate utf8mb4_bin, substring(a from 1 for 2), trim(a) from t
select row_number() over (partition by a order by b), lag(a) over w from t window w as (order by b)
select a->'$.b', json_extract(a, '$.c'), match(a) against ('x' in boolean mode), exists (select 1) from t
select 'delete from t; for update' as "nextval(s)", "it's" 'two' from t /* get_lock('a', 1) */ -- delete
select * from t use index (i) where a = 1 # for update
select distinct sql_no_cache a from t
select 5--1 from t
(select 1) union all (select 2) order by 1
table orders
values row(1, 2), row(3, 4)
select price_of(3), shop.price_of(4)
""".strip().splitlines()

MYSQL_STAYS = r"""
insert into t values (1)
replace into t values (1)
select * from t for update
select * from t for share skip locked
select * from t lock in share mode
select 1 into @a
select a into outfile '/tmp/x' from t
select a into dumpfile '/tmp/x' from t
select @a
select @a := 1
select @@version
select @@session.time_zone
select last_insert_id()
select found_rows()
select row_count()
select sql_calc_found_rows * from t
select connection_id()
select version()
select user()
select current_user
select get_lock('a', 1)
select release_lock('a')
select is_free_lock('a')
select sleep(1)
select benchmark(1000, md5('a'))
select load_file('/etc/passwd')
select master_pos_wait('a', 1)
select uuid_short()
select nextval(s)
select lastval(s)
select next value for s
select s.nextval
select explode(a) from t
select array_agg(a) from t
select shop.count(1)
select other.price_of(1)
select my_function(1)
select now from t procedure analyse()
select /*+ set_var(sort_buffer_size = 1) */ 1
select 1 /*! for update */
select 1 /*!50000 for update */ from t
select 1 /*M! for update */ from t
select 'a' from t for update -- '
select * from mysql.user
select * from information_schema.tables
select * from performance_schema.threads
select 1; select 2
select * from t where a = ?
begin
set @a = 1
show tables
show warnings
explain select 1
desc t
do 1
call p()
handler t read first
execute s
use shop
lock tables t read
kill 5
xa recover
""".strip().splitlines()


@pytest.fixture(scope="module")
def mysql() -> Reads:
    return Reads("mysql", ["price_of", "shop.price_of"])


@pytest.mark.parametrize("text", MYSQL_READS)
def test_what_surely_only_reads_in_mysql_is_known(mysql: Reads, text: str) -> None:
    assert mysql.judge(text.encode(), 0).is_read


@pytest.mark.parametrize("text", [*MYSQL_STAYS, "", ";", "select '"])
def test_whatever_is_not_surely_a_read_in_mysql_stays(text: str) -> None:
    assert not Reads("mysql", ["price_of", "shop.price_of"]).judge(text.encode(), 0).is_read


@pytest.mark.parametrize(
    ("text", "is_aggregate"),
    [
        ("select count(*) from t", True),
        ("select group_concat(a) from t", True),
        ("select json_arrayagg(a) from t", True),
        ("select a from t group by a", True),
        ("select distinct a from t", True),
        ("select lower(a) from t where id = 1", False),
        ("select row_number() over (order by a) from t", False),
    ],
)
def test_what_adds_up_rows_in_mysql_is_known(mysql: Reads, text: str, is_aggregate: bool) -> None:
    assert mysql.judge(text.encode(), 0).is_aggregate is is_aggregate
