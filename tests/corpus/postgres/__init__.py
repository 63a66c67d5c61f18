"""Conversations with a PostgreSQL server, written down as the messages a client sends.

The `*.txt` files beside this module hold them, by topic. A conversation begins with `== its name`; each further line is
one step, or one fact about the conversation:

    == a pipeline of two
    modes session transaction           where a client may expect the server's own answers; default: both
    field-notes: Sync counting …        pitfalls it was written for, one a line
    Parse "name" "select $1" 23         message, texts as JSON strings, then what the message has besides
    Bind "" "name" "1" null             portal, statement, values (text format)
    Describe S "name"                   S or P
    Execute "" 0                        portal, most rows
    Sync
    Await ReadyForQuery 1               read on until so many more of these messages have come
    Other "notify c, 'x'"               another client does this directly, and has its answer before the next step
    Raw "5300000004"                    bytes in hexadecimal

What follows is sent without waiting for anything until an Await stands. `#` begins a comment line.

The tables that conversations use are in `SETUP`; a driver restores them before each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from protocols.postgres.messages import build

SETUP: Final = (
    "set client_min_messages to warning; create table if not exists corpus (id int primary key, v text);"
    " delete from corpus where id not between 1 and 20 or v <> 'row ' || id;"
    " insert into corpus select n, 'row ' || n from generate_series(1, 20) n on conflict do nothing"
)
"""One simple query that makes the tables as they should be before a conversation."""

MODES: Final = ("session", "transaction")

ANSWERS: Final = {
    "ReadyForQuery": "Z",
    "ErrorResponse": "E",
    "CommandComplete": "C",
    "CopyInResponse": "G",
    "CopyOutResponse": "H",
    "CopyBothResponse": "W",
    "DataRow": "D",
    "RowDescription": "T",
    "NoData": "n",
    "ParameterDescription": "t",
    "ParseComplete": "1",
    "BindComplete": "2",
    "CloseComplete": "3",
    "PortalSuspended": "s",
    "NotificationResponse": "A",
    "NoticeResponse": "N",
    "ParameterStatus": "S",
    "FunctionCallResponse": "V",
}
"""Messages of the server that an Await may name, and their type bytes."""


@dataclass(frozen=True, slots=True)
class Send:
    """The client sends this message."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Await:
    """Read until `count` more messages of this type have come since the last Await of it."""

    tag: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Other:
    """Another client does this, directly at the server."""

    sql: str


Step = Send | Await | Other


@dataclass(slots=True)
class Conversation:
    """One of them. `str()` names it by file and title."""

    file: str
    title: str
    modes: tuple[str, ...] = MODES
    notes: list[str] = field(default_factory=list)
    """Rows of the list of pitfalls that it covers."""
    steps: list[Step] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.file}: {self.title}"

    @property
    def sent(self) -> bytes:
        """Everything the client sends, for those who do not wait (a fuzzer)."""
        return b"".join(step.message for step in self.steps if isinstance(step, Send))


class CorpusError(Exception):
    """A line that cannot be read; with file and number."""


def conversations(mode: str | None = None) -> list[Conversation]:
    """All of them, or those of one pool mode. Raises CorpusError."""
    found = [one for path in sorted(Path(__file__).parent.glob("*.txt")) for one in _read(path)]
    return [one for one in found if mode is None or mode in one.modes]


def _read(path: Path) -> Iterator[Conversation]:
    current: Conversation | None = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("== "):
            if current is not None:
                yield current
            current = Conversation(path.stem, text[3:])
            continue
        try:
            if current is None:
                raise ValueError("a step before the first title")
            _add(current, text)
        except (ValueError, IndexError, TypeError) as error:
            raise CorpusError(f"{path.name}:{number}: {error}: {text}") from error
    if current is not None:
        yield current


def _add(to: Conversation, text: str) -> None:
    if text.startswith("field-notes: "):
        to.notes.append(text.removeprefix("field-notes: "))
        return
    name, *words = _words(text)
    if name == "modes":
        to.modes = tuple(str(word) for word in words)
        if not set(to.modes) <= set(MODES):
            raise ValueError("no such mode")
    elif name == "Await":
        to.steps.append(Await(ANSWERS[str(words[0])], _number(words[1]) if len(words) > 1 else 1))
    elif name == "Other":
        to.steps.append(Other(_text(words[0])))
    else:
        to.steps.append(Send(message_of(str(name), words)))


class _Quoted(str):
    """A JSON string, to be told from a bare word."""

    __slots__ = ()


_Word = str | None


def _words(text: str) -> list[_Word]:
    """Bare words, JSON strings and null."""
    decoder = json.JSONDecoder()
    words: list[_Word] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
        elif text[position] == '"':
            value, position = decoder.raw_decode(text, position)
            words.append(_Quoted(value))
        else:
            end = position
            while end < len(text) and not text[end].isspace():
                end += 1
            words.append(None if text[position:end] == "null" else text[position:end])
            position = end
    return words


def _text(word: _Word) -> str:
    if not isinstance(word, _Quoted):
        raise TypeError("expected a text in quotation marks")
    return str(word)


def _zero(word: _Word) -> bytes:
    return _text(word).encode() + b"\0"


def _number(word: _Word) -> int:
    if word is None or isinstance(word, _Quoted):
        raise TypeError("expected a number")
    return int(word)


def message_of(name: str, words: list[_Word]) -> bytes:
    """The message of a line. Raises ValueError, TypeError, IndexError."""
    match name:
        case "Query":
            return build(b"Q", _zero(words[0]))
        case "Parse":
            types = [_number(word).to_bytes(4, "big") for word in words[2:]]
            return build(b"P", _zero(words[0]) + _zero(words[1]) + len(types).to_bytes(2, "big") + b"".join(types))
        case "Bind":
            values = [b"\xff\xff\xff\xff" if word is None else _counted(_text(word).encode()) for word in words[2:]]
            count = len(values).to_bytes(2, "big")
            return build(b"B", _zero(words[0]) + _zero(words[1]) + b"\0\0" + count + b"".join(values) + b"\0\0")
        case "Describe" | "Close":
            kind = str(words[0]).encode()
            return build(b"D" if name == "Describe" else b"C", kind + _zero(words[1]))
        case "Execute":
            rows = _number(words[1]) if len(words) > 1 else 0
            return build(b"E", _zero(words[0]) + rows.to_bytes(4, "big"))
        case "CopyData":
            return build(b"d", _text(words[0]).encode())
        case "CopyFail":
            return build(b"f", _zero(words[0]))
        case "CopyDone" | "Sync" | "Flush" | "Terminate":
            return build({"CopyDone": b"c", "Sync": b"S", "Flush": b"H", "Terminate": b"X"}[name])
        case "FunctionCall":
            # Arguments and result in text format.
            values = [b"\xff\xff\xff\xff" if word is None else _counted(_text(word).encode()) for word in words[1:]]
            count = len(values).to_bytes(2, "big")
            return build(b"F", _number(words[0]).to_bytes(4, "big") + b"\0\0" + count + b"".join(values) + b"\0\0")
        case "Raw":
            return bytes.fromhex(_text(words[0]))
        case _:
            raise ValueError(f"no such step as {name}")


def _counted(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value
