"""Whether a query's text can change state that outlives its transaction. Nothing else is read from SQL.

The answer is a hint in one direction only. "No" has to be right, because then nobody asks the server; "yes" costs one
inspection of about a millisecond, so in doubt the answer is yes. A function that sets something inside looks like any
other function: such state is found by the inspection that precedes every planned switch.

`is_plain` looks at each byte once and runs compiled for every Query of every session. It knows three things:

* Statements begin behind `;` only. Each that begins anywhere, even inside a literal or a comment, must begin with a word
  of a set (`PLAIN_WORDS`), of which none changes the session by itself. `SET LOCAL`, `SET TRANSACTION` and `SET
  CONSTRAINTS` are as good, since they end with the transaction.
* `set_config` and session-level advisory locks are the built-in functions that a SELECT can change the session with.
* Temporary tables are named by `TEMP`, `TEMPORARY` or `pg_temp`.

Left out on purpose: `currval()` of sequences, connections of dblink, `U&"..."` escapes in the name of a function.
"""

from __future__ import annotations

import re
from typing import Final

import cython

if not cython.compiled:
    from protocols.postgres.constants import COMMIT, ROLLBACK

PLAIN_WORDS: Final = (
    "select",
    "insert",
    "update",
    "delete",
    "begin",
    "start",
    "commit",
    "end",
    "abort",
    "rollback",
    "savepoint",
    "release",
    "values",
    "table",
    "with",
    "copy",
    "fetch",
    "move",
    "close",
    "merge",
    "vacuum",
    "analyze",
    "show",
    "lock",
    "truncate",
    "notify",
    "checkpoint",
)
"""First words of statements that change nothing beyond their transaction. The compiled form stands in
`_begins_plainly`, as packed letters; a test compares the two."""

NAMES_BYTES_MAX: Final = 1024 * 1024
"""Longest text that is searched for names of custom settings."""

THOROUGH_BYTES_MAX: Final = 4096
"""Longest text that is looked at a second time, with patterns whose time grows with the square of its length."""

_LOCAL_SET_CONFIG: Final = re.compile(rb"set_config\s*\([^()]*,\s*(?:true|'t'|'on')\s*\)", re.IGNORECASE)
_CURSOR: Final = re.compile(rb"\bdeclare\b(?![^;]*\bhold\b)", re.IGNORECASE)
_CUSTOM_NAME: Final = re.compile(rb"(?<![\w$.])[A-Za-z_][\w$]*+(?:\.[A-Za-z_][\w$]*+)++")
_TOKEN: Final = re.compile(
    rb"""--[^\n\r]*            # comment to the line's end
    | /\*                      # nested comment: its end is counted
    | [eE]'(?:[^'\\]|\\.|'')*' # text with escapes
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | \$(?P<tag>[A-Za-z_\x80-\xff]?[\w\x80-\xff]*)\$.*?\$(?P=tag)\$
    | ;
    | [\w$\x80-\xff]+          # keeps E and $ inside of words from being the beginning of something
    | .""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE: Final = re.compile(rb"/\*|\*/")


def changes_nothing(text: bytes) -> bool:
    """The thorough form of `is_plain`, for texts that are at hand: knows that `set_config(..., true)` ends with the
    transaction, and so does a cursor without HOLD."""
    if is_plain(text, 0, len(text)):
        return True
    if len(text) > THOROUGH_BYTES_MAX:
        return False
    reduced = _CURSOR.sub(b"select", _LOCAL_SET_CONFIG.sub(b"x", text))
    return is_plain(reduced, 0, len(reduced))


def custom_names(text: bytes) -> set[bytes]:
    """What may be names of custom settings (`app.tenant`), which no view lists. Most are names of other things. Time
    grows with the text's length only."""
    if len(text) > NAMES_BYTES_MAX:
        return set()
    return {name.lower() for name in _CUSTOM_NAME.findall(text.replace(b'"', b""))}


def is_plain(data: bytes, start: int, end: int) -> bool:
    """Nothing in the text `data[start:end]` can change what outlives the transaction."""
    position = start
    begins = True
    while True:
        if begins:
            position = _skip_blank(data, position, end)
            if not _begins_plainly(data, position, end):
                return False
            begins = False
        if position >= end:
            return True
        c = data[position]
        if c == 0x3B:  # ;
            begins = True
        elif (c == 0x5F or c == 0x6D or c == 0x4D) and _is_at_state(data, start, position, end):  # _ m M
            return False
        position += 1


def _skip_blank(data: bytes, start: int, end: int) -> int:
    """The first byte from `start` on that is no space, no bracket, no `;` and in no comment. Comments nest."""
    depth = 0
    while start < end:
        c = data[start]
        if c == 0x2F and start + 1 < end and data[start + 1] == 0x2A:  # /*
            depth += 1
            start += 2
        elif depth > 0:
            if c == 0x2A and start + 1 < end and data[start + 1] == 0x2F:  # */
                depth -= 1
                start += 1
            start += 1
        elif c == 0x2D and start + 1 < end and data[start + 1] == 0x2D:  # --
            while start < end and data[start] != 0x0A and data[start] != 0x0D:
                start += 1
        elif c == 0x20 or (c >= 0x09 and c <= 0x0D) or c == 0x28 or c == 0x3B or c == 0:
            start += 1
        else:
            break
    return start


def may_commit(data: bytes, start: int, end: int) -> bool:
    """The text may end an open transaction well: COMMIT, END, PREPARE TRANSACTION, or more than one statement."""
    position = _skip_blank(data, start, end)
    if end - position >= 3:
        first, second, third = data[position] | 0x20, data[position + 1] | 0x20, data[position + 2] | 0x20
        if (
            (first == 0x63 and second == 0x6F and third == 0x6D)  # com
            or (first == 0x65 and second == 0x6E and third == 0x64)  # end
            or (first == 0x70 and second == 0x72 and third == 0x65)  # pre
        ):
            return True
    while position < end:
        if data[position] == 0x3B:  # ;
            return _skip_blank(data, position, end) < end
        position += 1
    return False


def ending_of(data: bytes, start: int, end: int) -> int:
    """How the text ends the transaction it stands in: COMMIT, ROLLBACK, or 0 if it does not, or does more than that.

    After either the session is outside of any transaction, whatever becomes of it (PostgreSQL's manual, COMMIT and
    ROLLBACK); AND CHAIN, TO SAVEPOINT and PREPARED are something else."""
    position = _skip_blank(data, start, end)
    ending = 0
    if _is_word(data, position, end, b"commit"):
        ending, position = COMMIT, position + 6
    elif _is_word(data, position, end, b"end"):
        ending, position = COMMIT, position + 3
    elif _is_word(data, position, end, b"rollback"):
        ending, position = ROLLBACK, position + 8
    elif _is_word(data, position, end, b"abort"):
        ending, position = ROLLBACK, position + 5
    else:
        return 0
    position = _skip_blank(data, position, end)
    if _is_word(data, position, end, b"work"):
        position = _skip_blank(data, position + 4, end)
    elif _is_word(data, position, end, b"transaction"):
        position = _skip_blank(data, position + 11, end)
    if _is_word(data, position, end, b"and"):
        position = _skip_blank(data, position + 3, end)
        if not _is_word(data, position, end, b"no"):
            return 0
        position = _skip_blank(data, position + 2, end)
        if not _is_word(data, position, end, b"chain"):
            return 0
        position = _skip_blank(data, position + 5, end)
    return ending if position >= end else 0


def _is_word_byte(c: int) -> bool:
    return (c | 0x20 >= 0x61 and c | 0x20 <= 0x7A) or (c >= 0x30 and c <= 0x39) or c == 0x5F or c >= 0x80


def _begins_plainly(data: bytes, start: int, end: int) -> bool:
    """The word at `start` is one of the set, or there is none: the end, or the middle of a literal."""
    # Four letters each: a constant of more would make a Python object of what it is compared with.
    packed = more = 0
    position = start
    while position < end and _is_word_byte(data[position]):
        c = data[position] | 0x20
        if position - start < 4:
            packed = (packed << 8) | c
        elif position - start < 8:
            more = (more << 8) | c
        position += 1
    size = position - start
    if size == 0:
        # A statement begins with a letter. Anything else is a syntax error, or the inside of a literal.
        return True
    if size == 3:
        if packed == 0x73_65_74:  # set
            return _sets_for_transaction(data, _skip_blank(data, position, end), end)
        return packed == 0x65_6E_64  # end
    if size == 4:
        return (
            packed == 0x77_69_74_68  # with
            or packed == 0x63_6F_70_79  # copy
            or packed == 0x6D_6F_76_65  # move
            or packed == 0x73_68_6F_77  # show
            or packed == 0x6C_6F_63_6B  # lock
        )
    if size == 5:
        return (
            (packed == 0x62_65_67_69 and more == 0x6E)  # begin
            or (packed == 0x73_74_61_72 and more == 0x74)  # start
            or (packed == 0x61_62_6F_72 and more == 0x74)  # abort
            or (packed == 0x74_61_62_6C and more == 0x65)  # table
            or (packed == 0x66_65_74_63 and more == 0x68)  # fetch
            or (packed == 0x63_6C_6F_73 and more == 0x65)  # close
            or (packed == 0x6D_65_72_67 and more == 0x65)  # merge
        )
    if size == 6:
        return (
            (packed == 0x73_65_6C_65 and more == 0x63_74)  # select
            or (packed == 0x69_6E_73_65 and more == 0x72_74)  # insert
            or (packed == 0x75_70_64_61 and more == 0x74_65)  # update
            or (packed == 0x64_65_6C_65 and more == 0x74_65)  # delete
            or (packed == 0x63_6F_6D_6D and more == 0x69_74)  # commit
            or (packed == 0x76_61_6C_75 and more == 0x65_73)  # values
            or (packed == 0x76_61_63_75 and more == 0x75_6D)  # vacuum
            or (packed == 0x6E_6F_74_69 and more == 0x66_79)  # notify
        )
    if size == 7:
        return (packed == 0x72_65_6C_65 and more == 0x61_73_65) or (
            packed == 0x61_6E_61_6C and more == 0x79_7A_65
        )  # release, analyze
    if size == 8:
        return (packed == 0x72_6F_6C_6C and more == 0x62_61_63_6B) or (
            packed == 0x74_72_75_6E and more == 0x63_61_74_65
        )  # rollback, truncate
    if size == 9:
        return (packed == 0x73_61_76_65 and more == 0x70_6F_69_6E) and data[start + 8] | 0x20 == 0x74  # savepoint
    if size == 10:
        return (
            (packed == 0x63_68_65_63 and more == 0x6B_70_6F_69)  # checkpoint
            and data[start + 8] | 0x20 == 0x6E
            and data[start + 9] | 0x20 == 0x74
        )
    return False


def _sets_for_transaction(data: bytes, start: int, end: int) -> bool:
    """Behind SET: LOCAL, TRANSACTION or CONSTRAINTS."""
    return bool(
        _is_word(data, start, end, b"local")
        or _is_word(data, start, end, b"transaction")
        or _is_word(data, start, end, b"constraints")
    )


def _is_word(data: bytes, start: int, end: int, word: bytes) -> bool:
    size = len(word)
    if end - start < size or (end - start > size and _is_word_byte(data[start + size])):
        return False
    index = 0
    while index < size and data[start + index] | 0x20 == word[index]:
        index += 1
    return index == size


def _is_at_state(data: bytes, start: int, position: int, end: int) -> bool:
    """The `_` or `m` at `position` is that of set_config, of advisory_lock or advisory_unlock, of pg_temp, or of the
    word TEMP or TEMPORARY."""
    if data[position] != 0x5F:  # m
        return (
            position - start >= 2
            and data[position - 1] | 0x20 == 0x65  # e
            and data[position - 2] | 0x20 == 0x74  # t
            and end - position >= 2
            and data[position + 1] | 0x20 == 0x70  # p
            and (position - start == 2 or not _is_word_byte(data[position - 3]) or data[position - 3] == 0x5F)
            and (
                end - position == 2
                or not _is_word_byte(data[position + 2])
                or data[position + 2] == 0x5F
                or data[position + 2] | 0x20 == 0x6F  # o
            )
        )
    if position - start >= 3 and end - position >= 7 and data[position - 1] | 0x20 == 0x74:  # set_config
        return (
            data[position - 2] | 0x20 == 0x65
            and data[position - 3] | 0x20 == 0x73
            and data[position + 1] | 0x20 == 0x63
            and data[position + 2] | 0x20 == 0x6F
            and data[position + 3] | 0x20 == 0x6E
            and data[position + 4] | 0x20 == 0x66
            and data[position + 5] | 0x20 == 0x69
            and data[position + 6] | 0x20 == 0x67
        )
    if position - start >= 8 and end - position >= 2 and data[position - 1] | 0x20 == 0x79:  # advisory_, not _xact
        return (
            data[position - 2] | 0x20 == 0x72
            and data[position - 3] | 0x20 == 0x6F
            and data[position - 4] | 0x20 == 0x73
            and data[position - 5] | 0x20 == 0x69
            and data[position - 6] | 0x20 == 0x76
            and data[position - 7] | 0x20 == 0x64
            and data[position - 8] | 0x20 == 0x61
            and data[position + 1] | 0x20 != 0x78
        )
    return False


def split_statements(text: bytes) -> list[bytes]:
    """The statements of a Query's text, without comments between them and without the `;` at the end."""
    statements = []
    position, begin = 0, -1
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None, "the last alternative takes any byte"
        token = match.group()
        if token == b";":
            if begin >= 0:
                statements.append(text[begin:position].rstrip())
            begin = -1
            position += 1
            continue
        position = _comment_end(text, position) if token == b"/*" else match.end()
        if begin < 0 and not token.isspace() and not token.startswith((b"--", b"/*")):
            begin = match.start()
    if begin >= 0:
        statements.append(text[begin:].rstrip())
    return statements


def _comment_end(text: bytes, start: int) -> int:
    """Behind the comment that begins at `start`; comments nest."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(text, start):
        depth += 1 if edge.group() == b"/*" else -1
        if depth == 0:
            return edge.end()
    return len(text)
