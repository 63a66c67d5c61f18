"""Logging: one line per event on stderr, for people or for machines. Every line says who.

Names of fields are the words of the design: `service`, `engine`, `session`, `switch`, `worker`. A field that may hold
a secret is masked here, whoever logged it; the code that logs does not put one in.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from proxy.config import LogConfig

SECRET_FIELDS: Final = frozenset({"password", "secret", "token", "authorization", "credential", "verifier"})
"""Fields that are shown as `***`."""

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
        _mask,
    ]
    render: list[structlog.typing.Processor]
    if config.format == "json":
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        colours = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        # Plain tracebacks: the pretty ones show local variables, and those may hold secrets.
        plain = structlog.dev.plain_traceback
        console = structlog.dev.ConsoleRenderer(
            colors=colours, sort_keys=False, pad_event_to=0, exception_formatter=plain
        )
        render = [_who_first, console]
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


def _mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in event:
        if key.lower() in SECRET_FIELDS:
            event[key] = "***"
    return event


def _who_first(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """`supervisor s42 shop: what happened`: a text line begins with who, and the fields are not repeated after it."""
    who = [str(event.pop("who"))] if "who" in event else []
    who += [f"{key} {event.pop(key)}" for key in _WHO if key in event]
    if who:
        event["event"] = f"{', '.join(who)}: {event['event']}"
    return event
