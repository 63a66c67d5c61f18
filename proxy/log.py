"""Logging: one line per event on stderr, for people or for machines. Every line says who.

Names of fields are the words of the design: `service`, `engine`, `session`, `switch`, `worker`. A secret is masked here,
whoever logged it: fields that are called like one, the words that the config keeps secret (`hide`) wherever they stand,
tracebacks too, and what looks like a password in the text of somebody else's error. The code that logs does not put one in.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any, Final

import structlog

from proxy.config import LogConfig

SECRET_FIELDS: Final = frozenset(
    {"password", "passphrase", "secret", "token", "authorization", "cookie", "credential", "verifier", "private_key"}
)
"""Fields that are shown as `***`."""

MASK: Final = "***"

HIDDEN_CHARS_MIN: Final = 8
"""Shorter secrets are not looked for in texts: they would hide half of every line."""

HIDDEN_CHARS_MAX: Final = 1_000
"""Longer ones are whole files, of which no line stands for all."""

_LOOKS_SECRET: Final = (
    (
        # PGPASSWORD=…, access_token = …, "password": "…"
        re.compile(
            r"(?i)(password|passwd|pwd|secret|token|api_?key)(\s*=\s*|[\"']\s*:\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&)'\"]+)"
        ),
        r"\1\2***",
    ),
    (re.compile(r"(?i)\b(password|identified by)(\s+)'[^']*'"), r"\1\2'***'"),
    (re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{8,}"), r"\1\2***"),
    (re.compile(r"(://[^/\s:@]*:)[^/\s]+@"), r"\1***@"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL), "***"),
)
"""What a password looks like in a connection string, a statement, a header, an address, a file."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_QUOTED: Final = frozenset(" \t=\r\n\"'")

_TRACEBACKS: Final = ("exception", "stack")

_hidden: tuple[str, ...] = ()

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_WHO: Final = ("worker", "service", "switch", "session", "engine")
"""Fields that say who; they stand first in a text line, in this order."""


def set_up(config: LogConfig, *, who: str = "") -> None:
    """Log as `config` says from now on; may be called again at a reload. `who` is this process: `supervisor`, `worker 0`.

    What libraries log through the standard library's logging comes out in the same form.
    """
    level = _LEVELS[config.level]
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _Named(who),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Before the mask, which has to see the text of tracebacks.
        structlog.processors.format_exc_info,
        _mask,
    ]
    render: list[structlog.typing.Processor]
    if config.format == "json":
        render = [structlog.processors.JSONRenderer()]
    else:
        colours = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        # Plain tracebacks: the pretty ones show local variables, and those may hold secrets.
        plain = structlog.dev.plain_traceback
        console = structlog.dev.ConsoleRenderer(
            colors=colours, sort_keys=False, pad_event_to=0, exception_formatter=plain
        )
        render = [_printable, _who_first, console]
    structlog.configure(
        processors=[*before, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()  # noqa: TID251  (the one place that sets the standard library's logging up)
    root.handlers[:] = [handler]
    # Libraries are of interest when something is wrong; their progress is not ours.
    root.setLevel(max(level, logging.WARNING))


class _Named:
    """Says which process a line is of."""

    def __init__(self, who: str) -> None:
        self._who = who

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if self._who:
            event.setdefault("who", self._who)
        return event


def hide(words: Iterable[str]) -> None:
    """From now on these are masked in every line of this process, in place of those that were before."""
    global _hidden
    fitting = {word for word in words if HIDDEN_CHARS_MIN <= len(word) <= HIDDEN_CHARS_MAX}
    # The longest first: one may be a part of another.
    _hidden = tuple(sorted(fitting, key=lambda word: (-len(word), word)))


def without_secrets(text: str) -> str:
    """A text as it may be logged."""
    for word in _hidden:
        if word in text:
            text = text.replace(word, MASK)
    for pattern, instead in _LOOKS_SECRET:
        text = pattern.sub(instead, text)
    return text


def _mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        # What begins with an underscore is structlog's own and is not shown.
        if not key.startswith("_"):
            event[key] = _masked(key, value)
    return event


def _masked(key: object, value: object) -> object:
    match value:
        case _ if isinstance(key, str) and key.lower() in SECRET_FIELDS:
            return MASK
        case None | bool() | int() | float():
            return value
        case str():
            return without_secrets(value)
        case dict():
            return {name: _masked(name, one) for name, one in value.items()}
        case list() | tuple():
            return [_masked("", one) for one in value]
        case _:
            shown = repr(value)
            return value if (clean := without_secrets(shown)) == shown else clean


def _printable(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What clients have said, names of users above all, moves no cursor and begins no line of a text log."""
    for key, value in event.items():
        if key.startswith("_") or not isinstance(value, str) or _CONTROL.search(value) is None:
            continue
        # Fields with one of these are quoted by structlog.
        if key == "event" or not _QUOTED & set(value):
            event[key] = _CONTROL.sub(_escape, value)
        elif key in _TRACEBACKS:
            event[key] = _CONTROL.sub(lambda found: found[0] if found[0] in "\n\t" else _escape(found), value)
    return event


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _who_first(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """`supervisor s42 shop: what happened`: a text line begins with who, and the fields are not repeated after it."""
    who = [str(event.pop("who"))] if "who" in event else []
    who += [f"{key} {event.pop(key)}" for key in _WHO if key in event]
    if who:
        event["event"] = f"{', '.join(who)}: {event['event']}"
    return event
