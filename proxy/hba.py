"""Who may come from where, and how they prove it: rules in the form of PostgreSQL's pg_hba.conf, as PgBouncer reads it.

The first rule that matches a login decides; none means refused. Pure: a file that a rule includes (`@name`) is read by
whoever calls. Understood: `local` (never matches: clients come by TCP), `host`, `hostssl`, `hostnossl`; database lists
with `all`, `sameuser`, `replication`; user lists with `all`; addresses as CIDR, with a mask beside it, or `all`; the
methods below. A keyword in double quotes is a name. Refused by name, because they would need the engine's catalogue or
a name server at each login, or are not there: `samerole`, `+group`, `/regex`, host names, `samehost`, `samenet`, `map=`,
`include`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

METHODS: Final = ("trust", "reject", "md5", "password", "scram-sha-256", "cert")
"""What may stand as a method."""

INCLUDES_MAX: Final = 100
"""Most files that the rules of one file may include, all depths together."""
RULES_MAX: Final = 10_000
"""Most rules: every login walks through them."""
NAMES_MAX: Final = 100_000
"""Most names in all lists together."""

_KINDS: Final = ("local", "host", "hostssl", "hostnossl")
_FOREIGN_METHODS: Final = frozenset({"peer", "ident", "gss", "sspi", "pam", "ldap", "radius", "bsd", "oauth"})
_INCLUDES: Final = frozenset({"include", "include_if_exists", "include_dir"})

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class HbaError(ValueError):
    """A rule that cannot be read. `line` is counted from 1; the text says what is wrong and what to do."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


@dataclass(frozen=True, slots=True)
class Names:
    """A list of databases or users."""

    names: frozenset[str]
    is_all: bool = False
    is_same_user: bool = False
    is_replication: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One line."""

    line: int
    kind: str
    """local, host, hostssl or hostnossl."""
    databases: Names
    users: Names
    network: _Network | None
    """None: every address."""
    method: str
    """One of METHODS."""
    client_certificate: Literal["", "verify-ca", "verify-full"] = ""
    """What the client's certificate must show besides: that a CA vouches for it, and that it names the user."""

    def matches(
        self, *, user: str, database: str, address: _Address | None, is_encrypted: bool, is_replication: bool
    ) -> bool:
        """`address` None: unknown, which only rules for every address match. `is_replication`: physical replication,
        which has no database."""
        if self.kind == "local" or (self.kind == "hostssl" and not is_encrypted):
            return False
        if self.kind == "hostnossl" and is_encrypted:
            return False
        if self.network is not None and (address is None or address not in self.network):
            return False
        if not (self.users.is_all or user in self.users.names):
            return False
        if is_replication:
            return self.databases.is_replication
        return (
            self.databases.is_all
            or database in self.databases.names
            or (self.databases.is_same_user and user == database)
        )


def decide(
    rules: list[Rule], *, user: str, database: str, host: str, is_encrypted: bool, is_replication: bool = False
) -> Rule | None:
    """The first rule that matches, or None. `host` is the client's address as text."""
    address = parse_host(host)
    for rule in rules:
        if rule.matches(
            user=user, database=database, address=address, is_encrypted=is_encrypted, is_replication=is_replication
        ):
            return rule
    return None


def parse_host(host: str) -> _Address | None:
    """An address as text, without brackets and scope; an IPv4 one that came in by an IPv6 socket is an IPv4 one."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    is_quoted: bool
    """It began with a double quote: no keyword."""
    ends_list: bool
    """No comma follows."""


_LEXEME: Final = re.compile(r'[ \t\r\f\v]+|(?P<comma>,)|(?P<comment>#.*)|(?P<word>(?:"(?:[^"\n]|"")*"|[^\s,"#])+)')


def _words(text: str, line: int) -> Iterator[_Word]:
    """The words of one line."""
    found: list[tuple[str, bool]] = []
    at = 0
    is_open = False
    while at < len(text):
        lexeme = _LEXEME.match(text, at)
        if lexeme is None:
            raise HbaError(line, "a double quote is not closed (a double quote inside of a name is written twice)")
        at = lexeme.end()
        if lexeme["comma"]:
            is_open = True
        elif lexeme["word"]:
            if found and not is_open:
                yield _Word(*found[-1], ends_list=True)
            elif found:
                yield _Word(*found[-1], ends_list=False)
            is_open = False
            raw = lexeme["word"]
            found.append((re.sub(r'"((?:[^"]|"")*)"', lambda m: m[1].replace('""', '"'), raw), raw.startswith('"')))
    if found:
        yield _Word(*found[-1], ends_list=True)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; a backslash at the end joins the next one."""
    number, held, first = 0, "", 1
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.removesuffix("\r").endswith("\\"):
            held += line.removesuffix("\r")[:-1]
            continue
        yield first, held + line
        held, first = "", number + 1
    if held:
        yield first, held


def expand(text: str, read: Callable[[str], str]) -> str:
    """The same rules without includes: each `@name` is replaced by what `read(name)` returns, so that nobody else has to
    read files. `read` raises OSError. Line numbers stay as they are. Raises HbaError.
    """
    left = [INCLUDES_MAX]
    return "\n".join(_expand_line(line, number, read, left) for number, line in enumerate(text.split("\n"), 1))


def _expand_line(text: str, line: int, read: Callable[[str], str], left: list[int]) -> str:
    if "@" not in text:
        return text
    fields: list[str] = []
    for word in _words(text.removesuffix("\r").removesuffix("\\"), line):
        shown = _included(word, line, read, left, ()) if _is_include(word) else [_spell(word)]
        fields.append(",".join(shown) + (" " if word.ends_list else ","))
    return "".join(fields).rstrip() + ("\\" if text.removesuffix("\r").endswith("\\") else "")


def _is_include(word: _Word) -> bool:
    return not word.is_quoted and len(word.text) > 1 and word.text.startswith("@")


def _included(
    word: _Word, line: int, read: Callable[[str], str], left: list[int], inside_of: tuple[str, ...]
) -> list[str]:
    name = word.text[1:]
    left[0] -= 1
    if left[0] < 0 or name in inside_of:
        raise HbaError(line, f"@{name}: includes itself, or more than {INCLUDES_MAX} files are included")
    try:
        text = read(name)
    except OSError as error:
        raise HbaError(line, f"@{name} cannot be read: {error.strerror}; its path is relative to this file") from error
    names: list[str] = []
    for number, one in _lines(text):
        try:
            for inner in _words(one, number):
                if _is_include(inner):
                    names += _included(inner, line, read, left, (*inside_of, name))
                else:
                    names.append(_spell(inner))
        except HbaError as error:
            if error.line == line and inside_of:
                raise
            raise HbaError(line, f"@{name}, line {error.line}: {error.text}") from error
    if not names:
        raise HbaError(line, f"@{name} names nobody")
    return names


def _spell(word: _Word) -> str:
    """The word as it may stand in a rule."""
    if word.is_quoted or re.search(r'[\s,"#]', word.text) or not word.text:
        return '"' + word.text.replace('"', '""') + '"'
    return word.text


def parse_hba(text: str) -> list[Rule]:
    """The rules of a text that `expand` made. Raises HbaError with the first one that cannot be read."""
    rules: list[Rule] = []
    names = 0
    for number, line in _lines(text):
        fields = _fields(line, number)
        if not fields:
            continue
        rule = _rule(fields, number)
        names += len(rule.databases.names) + len(rule.users.names)
        rules.append(rule)
        if len(rules) > RULES_MAX or names > NAMES_MAX:
            raise HbaError(number, f"more than {RULES_MAX} rules or {NAMES_MAX} names")
    return rules


def _fields(line: str, number: int) -> list[list[_Word]]:
    fields: list[list[_Word]] = []
    is_new = True
    for word in _words(line, number):
        if is_new:
            fields.append([])
        fields[-1].append(word)
        is_new = word.ends_list
    return fields


def _rule(fields: list[list[_Word]], line: int) -> Rule:
    kind = _single(fields[0], line, "the type of a rule")
    if kind in _INCLUDES:
        raise HbaError(line, f'"{kind}" is not supported; write the rules into this file')
    if kind not in _KINDS:
        raise HbaError(line, f'a rule begins with {", ".join(_KINDS[:-1])} or {_KINDS[-1]}, not with "{kind}"')
    shape = "database, user, method" if kind == "local" else "database, user, address, method"
    if len(fields) < (4 if kind == "local" else 5):
        raise HbaError(line, f"the rule is too short; behind {kind} stand: {shape}")
    databases, users = _databases(fields[1], line), _users(fields[2], line)
    network: _Network | None = None
    rest = fields[3:]
    if kind != "local":
        network, rest = _address(rest, line)
    if not rest:
        raise HbaError(line, f"the method is missing; behind {kind} stand: {shape}")
    method = _method(_single(rest[0], line, "a method"), kind, line)
    return Rule(line, kind, databases, users, network, method, _options(rest[1:], kind, method, line))


def _single(words: list[_Word], line: int, what: str) -> str:
    if len(words) != 1:
        raise HbaError(line, f"{what} is one word, not a list")
    return words[0].text


def _databases(words: list[_Word], line: int) -> Names:
    names: set[str] = set()
    found: set[str] = set()
    for word in words:
        if not word.is_quoted and word.text in ("all", "sameuser", "replication"):
            found.add(word.text)
        elif not word.is_quoted and (word.text in ("samerole", "samegroup") or word.text.startswith("/")):
            raise HbaError(line, f'database "{word.text}": groups and patterns are not supported; name the databases')
        else:
            names.add(_name(word, line, "database"))
    return Names(frozenset(names), "all" in found, "sameuser" in found, "replication" in found)


def _users(words: list[_Word], line: int) -> Names:
    names: set[str] = set()
    is_all = False
    for word in words:
        if not word.is_quoted and word.text == "all":
            is_all = True
        elif not word.is_quoted and word.text[:1] in ("+", "/"):
            raise HbaError(line, f'user "{word.text}": groups and patterns are not supported; name the users')
        else:
            names.add(_name(word, line, "user"))
    return Names(frozenset(names), is_all)


def _name(word: _Word, line: int, what: str) -> str:
    if not word.text:
        raise HbaError(line, f"a {what} name is empty")
    if _is_include(word):
        raise HbaError(line, f"{word.text}: a file is included where none can be")
    return word.text


def _address(fields: list[list[_Word]], line: int) -> tuple[_Network | None, list[list[_Word]]]:
    """The address, which takes one field or two, and what follows it."""
    text = _single(fields[0], line, "an address")
    if text == "all" and not fields[0][0].is_quoted:
        return None, fields[1:]
    if text in ("samehost", "samenet"):
        raise HbaError(line, f'"{text}" is not supported; write the network as address/length')
    base, slash, length = text.partition("/")
    try:
        address = ipaddress.ip_address(base)
    except ValueError:
        raise HbaError(line, f'"{text}" is no address; write address/length or all (names are not looked up)') from None
    if slash:
        if not (length.isascii() and length.isdigit() and int(length) <= address.max_prefixlen):
            raise HbaError(line, f'"{text}": the length is a number from 0 to {address.max_prefixlen}')
        return ipaddress.ip_network(f"{base}/{int(length)}", strict=False), fields[1:]
    if len(fields) < 2:
        raise HbaError(line, f'"{text}" has no length; a single address is written {base}/{address.max_prefixlen}')
    mask = _single(fields[1], line, "a mask")
    return ipaddress.ip_network(f"{base}/{_length(mask, address, line)}", strict=False), fields[2:]


def _length(mask: str, address: _Address, line: int) -> int:
    """Length of a network from its mask."""
    try:
        bits = ipaddress.ip_address(mask)
    except ValueError:
        raise HbaError(
            line, f'an address needs a length ({address}/{address.max_prefixlen}) or a mask; "{mask}" is neither'
        ) from None
    host_bits = int(bits) ^ ((1 << address.max_prefixlen) - 1)
    if bits.version != address.version or host_bits & (host_bits + 1):
        raise HbaError(line, f'"{mask}" is no mask of {address}')
    return address.max_prefixlen - host_bits.bit_length()


def _method(method: str, kind: str, line: int) -> str:
    if method in METHODS:
        if method == "cert" and kind != "hostssl":
            raise HbaError(line, 'method "cert" needs TLS; write hostssl')
        return method
    if method in _FOREIGN_METHODS and kind == "local":
        # Every pg_hba.conf has such a line for the server's own socket. Nobody comes by one here.
        return "reject"
    if method == "plain":
        raise HbaError(line, 'method "plain" is called "password"')
    raise HbaError(line, f'method "{method}" is not supported; here may stand: {", ".join(METHODS)}')


def _options(fields: list[list[_Word]], kind: str, method: str, line: int) -> Literal["", "verify-ca", "verify-full"]:
    demanded: Literal["", "verify-ca", "verify-full"] = ""
    for field in fields:
        name, equals, value = _single(field, line, "an option").partition("=")
        if kind == "local":
            continue
        if name == "clientcert" and kind == "hostssl" and value in ("verify-ca", "verify-full"):
            demanded = "verify-ca" if value == "verify-ca" else "verify-full"
        elif name == "clientname" and method == "cert" and value == "CN":
            continue
        elif not equals or name not in ("clientcert", "clientname"):
            raise HbaError(line, f'option "{name}" is not supported; take it out')
        else:
            raise HbaError(line, f'option "{name}={value}" is not supported in a rule of {kind} with method {method}')
    return demanded
