"""`turnout serve CONFIG`, apart from the command line: what reads command lines takes a quarter of the time that it takes to
begin to serve, and memory for as long as Turnout runs."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from proxy.config import Config, ConfigErrors, load
from proxy.errors import ProxyError
from proxy.log import set_up


def read(path: Path) -> Config:
    """The config; ends the process with one line on stderr for each error in it."""
    try:
        return load(path)
    except ConfigErrors as errors:
        for error in errors.errors:
            _say(error)
        sys.exit(1)


def serve(path: Path) -> int:
    """Serve until SIGTERM, with the config in `path`. Returns the exit code."""
    config = read(path)
    # A wrong config is told at once, and `turnout check` reads one without it.
    from proxy import supervisor

    set_up(config.log, who="supervisor")
    try:
        return asyncio.run(supervisor.serve(config, base=path.absolute().parent, reload=lambda: load(path)))
    except ProxyError as error:
        _say(error)
        return 1


def _say(error: ProxyError) -> None:
    sys.stderr.write(f"turnout: {error.text}{f'; {error.hint}' if error.hint else ''}\n")
