from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hba import HbaError, decide, expand, parse_hba

TYPICAL = """
# TYPE  DATABASE        USER            ADDRESS                 METHOD
local   all             all                                     peer
host    all             admin           127.0.0.1/32            trust
host    all             admin           0.0.0.0/0               reject   # from nowhere else
host    sameuser        all             ::1/128                 md5
hostssl "all",shop      "all",app       10.0.0.0 255.0.0.0      scram-sha-256
hostssl shop            robot           all                     cert clientname=CN
hostnossl replication   replica         10.1.2.3/16             password
hostssl all             +nobody_quoted  192.168.0.0/24          md5 \\
  clientcert=verify-full
""".replace("+nobody", '"+nobody"')


def method(text: str, user: str, database: str, host: str, tls: bool = False, replication: bool = False) -> str:
    rule = decide(
        parse_hba(text), user=user, database=database, host=host, is_encrypted=tls, is_replication=replication
    )
    return rule.method if rule is not None else "none"


@pytest.mark.parametrize(
    ("user", "database", "host", "tls", "decided"),
    [
        ("admin", "shop", "127.0.0.1", False, "trust"),
        ("admin", "shop", "::ffff:127.0.0.1", False, "trust"),
        ("admin", "shop", "127.0.0.2", False, "reject"),
        ("app", "app", "::1", False, "md5"),
        ("app", "app", "[::1]", True, "md5"),
        ("app", "app", "fe80::1%eth0", True, "none"),
        ("app", "shop", "::1", False, "none"),
        ("app", "shop", "10.255.0.1", True, "scram-sha-256"),
        ("app", "shop", "10.255.0.1", False, "none"),
        ("all", "all", "10.255.0.1", True, "scram-sha-256"),
        ("app", "other", "10.255.0.1", True, "none"),
        ("robot", "shop", "1.2.3.4", True, "cert"),
        ("robot", "shop", "1.2.3.4", False, "none"),
        ("robot", "shop", "not an address", True, "cert"),
        ('"+nobody"_quoted', "x", "192.168.0.9", True, "none"),
        ("+nobody_quoted", "x", "192.168.0.9", True, "md5"),
    ],
)
def test_the_first_rule_that_matches_decides(user: str, database: str, host: str, tls: bool, decided: str) -> None:
    assert method(TYPICAL, user, database, host, tls) == decided


def test_replication_is_no_database() -> None:
    assert method(TYPICAL, "replica", "", "10.1.9.9", replication=True) == "password"
    assert method(TYPICAL, "replica", "replication", "10.1.9.9") == "none"
    assert method("host all all all trust", "a", "", "1.1.1.1", replication=True) == "none"


def test_a_rule_may_ask_for_a_certificate_besides() -> None:
    rule = decide(parse_hba(TYPICAL), user="+nobody_quoted", database="x", host="192.168.0.9", is_encrypted=True)
    assert rule is not None
    assert rule.client_certificate == "verify-full"
    assert rule.line == 10


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("hosts all all all trust", 'not with "hosts"'),
        ("host,local all all all trust", "is one word"),
        ("host all all", "too short; behind host stand: database, user, address, method"),
        ("local all all", "too short; behind local stand: database, user, method"),
        ("host all all 10.0.0.0/8", "too short"),
        ("host all all 10.0.0.0 255.0.0.0", "the method is missing"),
        ("host all all 10.0.0.0 trust", 'needs a length .10.0.0.0/32. or a mask; "trust" is neither'),
        ("host all all 10.0.0.0 255.0.255.0 trust", "no mask"),
        ("host all all 10.0.0.0 ffff:: trust", "no mask"),
        ("host all all 10.0.0.0/33 trust", "from 0 to 32"),
        ("host all all ::/x trust", "from 0 to 128"),
        ("host all all example.com trust", "names are not looked up"),
        ("host all all .example.com trust", "names are not looked up"),
        ("host all all samenet trust", "not supported; write the network"),
        ("host all all samehost trust", "not supported; write the network"),
        ("host samerole all all trust", "name the databases"),
        ("host /^a all all trust", "name the databases"),
        ("host all +group all trust", "name the users"),
        ("host all /^a all trust", "name the users"),
        ("host all all all ldap", 'method "ldap" is not supported; here may stand: trust, reject'),
        ("host all all all plain", 'is called "password"'),
        ("host all all all cert", "write hostssl"),
        ("host all all all trust,md5", "is one word"),
        ("hostssl all all all cert map=x", 'option "map" is not supported'),
        ("hostssl all all all cert clientname=DN", "clientname=DN"),
        ("host all all all md5 clientcert=verify-ca", "clientcert=verify-ca"),
        ("host all all all md5 nonsense", 'option "nonsense"'),
        ('host "all all all trust', "not closed"),
        ('host all "" all trust', "a user name is empty"),
        ("include other.conf", "write the rules into this file"),
        ("host all @names all trust", "where none can be"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line_and_what_to_do(line: str, says: str) -> None:
    with pytest.raises(HbaError, match=says) as error:
        parse_hba(f"# a comment\n\n{line}\nhost all all all trust\n")
    assert error.value.line == 3


FILES = {
    "admins": 'anna, "bert b"\n# nobody\nclara\n',
    "all": "@admins\n@more",
    "more": '"@dora"',
    "loop": "@loop",
    "empty": "# nobody\n",
    "bad": '\n"open',
}


def read(name: str) -> str:
    if name not in FILES:
        raise FileNotFoundError(2, "No such file or directory")
    return FILES[name]


def test_a_list_may_stand_in_a_file() -> None:
    text = expand('host all eve,@all,"@me" all trust\nhost all all all reject', read)
    for user in ("eve", "anna", "bert b", "clara", "@dora", "@me"):
        assert method(text, user, "x", "1.1.1.1") == "trust", user
    assert method(text, "bert", "x", "1.1.1.1") == "reject"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("loop", "includes itself"),
        ("nowhere", "cannot be read: No such file"),
        ("empty", "names nobody"),
        ("bad", "@bad, line 2: a double quote is not closed"),
    ],
)
def test_an_include_that_does_not_work_is_told_with_the_line_that_asks_for_it(name: str, says: str) -> None:
    with pytest.raises(HbaError, match=says) as error:
        expand(f"\nhost all @{name} all trust", read)
    assert error.value.line == 2


def test_includes_are_bounded() -> None:
    with pytest.raises(HbaError, match="more than 100 files"):
        expand("\n".join("host all @admins all trust" for _ in range(101)), read)


@given(st.text(alphabet='host al,"@+/#\\0123456789.:\n\ttrusmd5', max_size=120))
def test_any_text_is_rules_or_an_error_with_a_line(text: str) -> None:
    try:
        rules = parse_hba(expand(text, read))
    except HbaError as error:
        line = error.line
    else:
        line = max([1, *(rule.line for rule in rules)])
        decide(rules, user="a", database="b", host="127.0.0.1", is_encrypted=False)
    assert 1 <= line <= text.count("\n") + 1
