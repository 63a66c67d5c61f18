"""What a config file's text itself tells: on which line a key stands, and who the users are.

Knows TOML's lexical shape and PgBouncer's userlist.txt, and nothing of what the keys mean. Pure.
"""

from __future__ import annotations

import re
from typing import Final

KeyPath = tuple[str | int, ...]
"""Keys from the root down; an integer is the index in an array."""

USER_NAME_BYTES_MAX: Final = 128
"""PgBouncer MAX_USERNAME; longer than PostgreSQL's 63 and MySQL's 32 characters."""
PASSWORD_BYTES_MAX: Final = 65_530
"""What fits into a PasswordMessage of PostgreSQL (PG_MAX_AUTH_TOKEN_LENGTH). Tokens of cloud services are long."""

_BARE_END: Final = re.compile(r"[,\]}\n#]")
_KEY_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES: Final = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, on which each key and each table of `text` stands.

    `text` must be valid TOML (tomllib has read it before); of anything else the result says nothing useful. A table
    that is opened by a header has its header's line, one that a dotted key or a deeper header implies has the line of
    the first of them.
    """
    return _Scanner(text.replace("\r\n", "\n")).scan()


def spell(path: KeyPath) -> str:
    """`service.shop.engine.blue`, `listener[0].protocol`: a path as people read it."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            shown = part if _KEY_BARE.fullmatch(part) else '"' + part.replace('"', '\\"') + '"'
            out += f".{shown}" if out else shown
    return out


class _Scanner:
    """One pass over valid TOML. `pos` only grows; `line` is counted as newlines are passed."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._pos = 0
        self._counted_to = 0
        self._line = 1
        self._lines: dict[KeyPath, int] = {}
        self._last_index: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        prefix: KeyPath = ()
        while self._skip_blank():
            line = self._line_here()
            if self._text.startswith("[[", self._pos):
                self._pos += 2
                parts = self._key()
                self._pos = self._text.index("]]", self._pos) + 2
                above = self._resolve(parts[:-1])
                array = (*above, parts[-1])
                index = self._last_index.get(array, -1) + 1
                self._last_index[array] = index
                prefix = (*array, index)
                self._note_parents(prefix, line)
                self._lines[prefix] = line
            elif self._text[self._pos] == "[":
                self._pos += 1
                parts = self._key()
                self._pos = self._text.index("]", self._pos) + 1
                prefix = self._resolve(parts)
                self._note_parents(prefix, line)
                self._lines[prefix] = line
            else:
                self._pair(prefix)
        return self._lines

    def _pair(self, prefix: KeyPath) -> None:
        line = self._line_here()
        path = (*prefix, *self._key())
        self._note_parents(path, line)
        self._pos = self._text.index("=", self._pos) + 1
        self._value(path)

    def _note_parents(self, path: KeyPath, line: int) -> None:
        for size in range(1, len(path) + 1):
            self._lines.setdefault(path[:size], line)

    def _resolve(self, parts: list[str]) -> KeyPath:
        """A header names an array of tables by its key alone; it means the last table of it."""
        path: KeyPath = ()
        for part in parts:
            path = (*path, part)
            if path in self._last_index:
                path = (*path, self._last_index[path])
        return path

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted_to, self._pos)
        self._counted_to = self._pos
        return self._line

    def _skip_blank(self) -> bool:
        """Go on to the next character that is neither blank nor comment; False at the end."""
        while self._pos < len(self._text):
            char = self._text[self._pos]
            if char in " \t\n":
                self._pos += 1
            elif char == "#":
                end = self._text.find("\n", self._pos)
                self._pos = len(self._text) if end < 0 else end
            else:
                return True
        return False

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._skip_blank()
            if self._text[self._pos] in "\"'":
                parts.append(self._string())
            else:
                match = _KEY_BARE.match(self._text, self._pos)
                assert match is not None, "key_lines is given valid TOML only"
                parts.append(match.group())
                self._pos = match.end()
            self._skip_blank()
            if self._text[self._pos] != ".":
                return parts
            self._pos += 1

    def _string(self) -> str:
        """Skip one string of any of the four kinds; what it says is right for keys, near enough for the rest."""
        quote = self._text[self._pos]
        if self._text.startswith(quote * 3, self._pos):
            end = self._pos + 3
            while not self._text.startswith(quote * 3, end):
                end += 2 if quote == '"' and self._text[end] == "\\" else 1
            end += 3
            while end < len(self._text) and self._text[end] == quote:  # up to two quotes may precede the closing three
                end += 1
            body = self._text[self._pos + 3 : end - 3]
            self._pos = end
            return body
        self._pos += 1
        out = []
        while (char := self._text[self._pos]) != quote:
            if quote == '"' and char == "\\":
                escape = self._text[self._pos + 1]
                if escape in "uU":
                    width = 4 if escape == "u" else 8
                    out.append(chr(int(self._text[self._pos + 2 : self._pos + 2 + width], 16)))
                    self._pos += 2 + width
                else:
                    out.append(_ESCAPES[escape])
                    self._pos += 2
            else:
                out.append(char)
                self._pos += 1
        self._pos += 1
        return "".join(out)

    def _value(self, path: KeyPath) -> None:
        self._skip_blank()
        match self._text[self._pos]:
            case '"' | "'":
                self._string()
            case "[":
                self._pos += 1
                index = 0
                while self._skip_blank() and self._text[self._pos] != "]":
                    if self._text[self._pos] == ",":
                        self._pos += 1
                        index += 1
                        continue
                    self._lines.setdefault((*path, index), self._line_here())
                    self._value((*path, index))
                self._pos += 1
            case "{":
                self._pos += 1
                while self._skip_blank() and self._text[self._pos] != "}":
                    if self._text[self._pos] == ",":
                        self._pos += 1
                        continue
                    self._pair(path)
                self._pos += 1
            case _:
                found = _BARE_END.search(self._text, self._pos)
                self._pos = found.start() if found else len(self._text)


class UsersError(ValueError):
    """A users file that cannot be read. `line` is counted from 1; the text never quotes the file."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


def parse_users(text: str) -> dict[str, str]:
    """Users and secrets of a file in PgBouncer's userlist.txt form.

    One user a line: `"name" "secret"`, both in double quotes, a double quote in either written twice; the rest of a
    line is ignored, and so are blank lines and lines that begin with `;`. A name that comes twice is refused (PgBouncer
    takes one of them, and does not say which). A secret is plain text, `md5…` or a `SCRAM-SHA-256$…` verifier.

    Raises UsersError.
    """
    users: dict[str, str] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        rest = line.strip()
        if not rest or rest.startswith(";"):
            continue
        name, rest = _quoted(rest, number, "a user name")
        if not rest[:1].isspace():
            raise UsersError(number, 'expected a space between "user" and "password"')
        secret, _ignored = _quoted(rest.lstrip(), number, "a password")
        if not name:
            raise UsersError(number, "the user name is empty")
        if len(name.encode()) > USER_NAME_BYTES_MAX:
            raise UsersError(number, f"the user name is longer than {USER_NAME_BYTES_MAX} bytes")
        if len(secret.encode()) > PASSWORD_BYTES_MAX:
            raise UsersError(number, f"the password is longer than {PASSWORD_BYTES_MAX} bytes")
        if name in users:
            raise UsersError(number, f'user "{name}" stands in the file twice')
        users[name] = secret
    return users


def _quoted(text: str, line: int, what: str) -> tuple[str, str]:
    """One field in double quotes at the start of `text`, and what follows it."""
    if not text.startswith('"'):
        raise UsersError(line, f'expected {what} in double quotes; a line is: "user" "password"')
    at = 1
    while True:
        end = text.find('"', at)
        if end < 0:
            raise UsersError(line, f"{what} has no closing double quote (a double quote inside is written twice)")
        if text[end + 1 : end + 2] != '"':
            return text[1:end].replace('""', '"'), text[end + 1 :]
        at = end + 2
