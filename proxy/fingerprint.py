"""A statement's text without its values, for the slow-query log. Pure; no parser that could give up half-way.

The rule is that nothing is shown but what is known to be no value: words, quoted names, operators. Every string and number
becomes `?`, comments go away. Where it cannot be told where a string ends (a backslash before its quote, which the server's
`sql_mode` or `standard_conforming_strings` gives the one meaning or the other), and where the text was cut, all that
follows is left out. What is no query (SET, ALTER USER, …) is shown up to its first value, for values may stand there as words.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

TEXT_CHARS_MAX: Final = 1_000
"""Of the text that is shown."""

TOKENS_MAX: Final = 2_000

CUT: Final = "…"

QUERIES: Final = frozenset(
    [
        "select",
        "insert",
        "update",
        "delete",
        "merge",
        "replace",
        "with",
        "values",
        "table",
        "call",
        "do",
        "execute",
        "fetch",
        "explain",
        "analyze",
        "lock",
        "truncate",
        "begin",
        "start",
        "commit",
        "rollback",
        "end",
        "savepoint",
        "release",
        "declare",
        "close",
        "move",
        "refresh",
        "vacuum",
        "reindex",
        "cluster",
    ]
)
"""Statements in which a bare word is a name. In others it may be a value: `set application_name to hunter2`."""

_SPACED: Final = frozenset(
    [
        "values",
        "in",
        "and",
        "or",
        "not",
        "on",
        "using",
        "exists",
        "all",
        "any",
        "some",
        "where",
        "as",
        "over",
        "from",
        "select",
        "by",
        "when",
        "then",
    ]
)
"""Words with a space before a bracket; others are taken for functions."""

_WORD: Final = re.compile(r"[^\W\d][\w$]*")
_NUMBER: Final = re.compile(r"(?:0[xX][0-9A-Fa-f_]+|0[bBoO][0-7_]+|(?:\d[\d_]*)?\.?\d[\d_]*\.?(?:[eE][+-]?\d+)?)\w*")
_PLACEHOLDER: Final = re.compile(r"\$\d+")
_DOLLAR_TAG: Final = re.compile(r"\$(?:[^\W\d]\w*)?\$")
_OPERATOR: Final = re.compile(r"::|:=|<=>|[<>!]=|<>|\|\||&&|->>?|#>>?|@>|<@|[-+*/%=<>!~^&|,;.()\[\]{}:@]")
_LIST: Final = re.compile(r"\?(?:, \?)+")
_ROWS: Final = re.compile(r"(\((?:\?|\?, …)\))(?:, \1)+")


class Fingerprint(NamedTuple):
    """What may be logged of a statement."""

    kind: str
    """Its first word, in small letters; empty where there is none."""
    text: str
    digest: str
    """16 hex digits; the same for statements that differ in values, spaces, comments and letters' case only."""


class _Cut(Exception):
    """From here on nothing can be told."""


def fingerprint(text: str, *, is_mysql: bool, is_whole: bool = True) -> Fingerprint:
    """Of one statement's text, or of several; `is_whole`: it goes on behind its end. Never raises."""
    out: list[str] = []
    try:
        _read(text, out, is_mysql=is_mysql)
        if not is_whole:
            # The last word may be the beginning of anything.
            if out and text[-1:] and (text[-1].isalnum() or text[-1] == "_"):
                out.pop()
            out.append(CUT)
    except _Cut:
        out.append(CUT)
    kind = out[0].lower() if out and out[0] not in ("?", CUT) and out[0][0].isalpha() else ""
    if kind not in QUERIES:
        out = _up_to_first_value(out)
    shown = _join(out)
    if len(shown) > TEXT_CHARS_MAX:
        shown = shown[:TEXT_CHARS_MAX] + CUT
    digest = hashlib.sha256(_join(out).encode()).hexdigest()[:16]
    return Fingerprint(kind, shown, digest)


def _read(text: str, out: list[str], *, is_mysql: bool) -> None:
    at, size = 0, len(text)
    while at < size:
        if len(out) >= TOKENS_MAX:
            raise _Cut
        one = text[at]
        if one.isspace() or one == "\0":
            at += 1
        elif text.startswith("--", at) or (one == "#" and is_mysql):
            end = text.find("\n", at)
            at = size if end < 0 else end
        elif text.startswith("/*", at):
            at = _comment_end(text, at, nests=not is_mysql)
        elif one == "'" or (one == '"' and is_mysql):
            out.append("?")
            at = _string_end(text, at, escapes=None)
        elif one == '"' or (one == "`" and is_mysql):
            end = _name_end(text, at, one)
            out.append(text[at:end])
            at = end
        elif one == "$" and not is_mysql:
            at = _dollar_end(text, at, out)
        elif one == "?":
            out.append("?")
            at += 1
        elif found := _WORD.match(text, at):
            at = _word_end(text, found, out, is_mysql=is_mysql)
        elif one.isdigit() or (one == "." and text[at + 1 : at + 2].isdigit()):
            number = _NUMBER.match(text, at)
            out.append("?")
            at = number.end() if number is not None and number.end() > at else at + 1
        elif operator := _OPERATOR.match(text, at):
            out.append(operator[0])
            at = operator.end()
        else:
            # Nothing that a statement is made of outside of strings.
            raise _Cut


def _word_end(text: str, found: re.Match[str], out: list[str], *, is_mysql: bool) -> int:
    """Behind a word; a short one before a quote is the string's kind: `E'…'`, `x'…'`, `N'…'`, `_utf8mb4'…'`."""
    word, at = found[0].lower(), found.end()
    quote = text[at : at + 1]
    is_unicode = not is_mysql and word == "u" and text.startswith("&", at) and text[at + 1 : at + 2] in ("'", '"')
    if is_unicode:
        out.append("?")
        return _string_end(text, at + 1, escapes=False)
    if quote == "'" and (word in ("e", "x", "b", "n") or (is_mysql and word.startswith("_"))):
        out.append("?")
        return _string_end(text, at, escapes=True if word == "e" and not is_mysql else None)
    out.append(word)
    return at


def _string_end(text: str, at: int, *, escapes: bool | None) -> int:
    """Behind the string that begins with the quote at `at`. `escapes`: whether a backslash takes the quote's meaning away;
    None: that depends on a setting. Raises _Cut where it does not end, or it cannot be told where."""
    quote, at = text[at], at + 1
    while True:
        end = text.find(quote, at)
        if end < 0:
            raise _Cut
        before = end
        while before > at and text[before - 1] == "\\":
            before -= 1
        if (end - before) % 2 and escapes is not False:
            if escapes is None:
                raise _Cut
            at = end + 1
        elif text.startswith(quote, end + 1):  # doubled: it stands for itself
            at = end + 2
        else:
            return end + 1


def _name_end(text: str, at: int, quote: str) -> int:
    while True:
        at = text.find(quote, at + 1)
        if at < 0:
            raise _Cut
        if not text.startswith(quote, at + 1):
            return at + 1
        at += 1


def _dollar_end(text: str, at: int, out: list[str]) -> int:
    if placeholder := _PLACEHOLDER.match(text, at):
        out.append("?")
        return placeholder.end()
    tag = _DOLLAR_TAG.match(text, at)
    if tag is None:
        raise _Cut
    out.append("?")
    end = text.find(tag[0], tag.end())
    if end < 0:
        raise _Cut
    return end + len(tag[0])


def _comment_end(text: str, at: int, *, nests: bool) -> int:
    depth, at = 1, at + 2
    while depth:
        end = text.find("*/", at)
        if end < 0:
            raise _Cut
        inner = text.find("/*", at, end) if nests else -1
        if inner >= 0:
            depth, at = depth + 1, inner + 2
        else:
            depth, at = depth - 1, end + 2
    return at


def _up_to_first_value(out: list[str]) -> list[str]:
    """`set x`, `alter user app`: the first words, up to what sets something, and never more than three."""
    kept: list[str] = []
    for token in out:
        if token in ("=", ":=", "to", "?", "password", "identified", "by", "as", "(", ",", ";", CUT) or len(kept) == 4:
            return [*kept, CUT]
        kept.append(token)
    # A bare statement of a word or two (`show tables`) has no value; of more, the last might be one.
    return kept if len(kept) <= 2 else [*kept[:-1], CUT]


def _join(out: list[str]) -> str:
    """With spaces as people write them; lists of values as one, however long."""
    text = before = ""
    for token in out:
        is_tight = token in (",", ")", "]", ";", ".", "::", ":") or text.endswith(("(", "[", ".", "::", ":", "@"))
        if token == "[" or (token == "(" and text[-1:].isalnum() and before not in _SPACED):
            is_tight = True
        text += token if is_tight or not text else f" {token}"
        before = token
    text = _LIST.sub("?, …", text)
    return _ROWS.sub(r"\1, …", text)
