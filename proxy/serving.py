"""`turnout serve CONFIG`, apart from the command line: what reads command lines takes a quarter of the time that it takes to
begin to serve, and memory for as long as Turnout runs. The supervisor stands in the middle; signals, console, traces, alerts
and the control port are put around it here.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from proxy.config import Config, ConfigErrors, load
from proxy.errors import ConfigError, ProxyError
from proxy.log import set_up
from proxy.tasks import cancel_and_wait, spawn

if TYPE_CHECKING:
    from proxy.supervisor import Supervisor

_log = structlog.get_logger("turnout.supervisor")

DRAIN_S: Final = 10.0
"""Time that sessions get to reach a boundary when Turnout is told to end."""


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
    from proxy.supervisor import Supervisor

    set_up(config.log, who="supervisor")
    supervisor = Supervisor(config, base=path.absolute().parent, reload=lambda: load(path))
    try:
        return asyncio.run(_run(supervisor, config))
    except ProxyError as error:
        _say(error)
        return 1


async def _run(supervisor: Supervisor, config: Config) -> int:
    """Until SIGTERM or SIGINT; SIGHUP reloads. Returns the exit code. Raises ProxyError if it cannot begin."""
    from proxy.control.app import serve_control
    from proxy.control.console import AdminConsole
    from proxy.control.service import ControlService

    ending = asyncio.Event()

    def end() -> None:
        if ending.is_set():
            supervisor.hurry()
        ending.set()

    def read_again() -> None:
        try:
            supervisor.reload()
        except ConfigError as error:
            _log.error("the config was not reloaded", error=error.text)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    starting = spawn(_begin(supervisor), name="start")
    ended = spawn(ending.wait(), name="wait for a signal to end")
    await asyncio.wait([starting, ended], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        await cancel_and_wait(starting)
        return 0
    refused = starting.result()
    if refused is not None:
        await cancel_and_wait(ended)
        raise refused
    loop.add_signal_handler(signal.SIGHUP, read_again)
    control = tracing = door = None
    console: AdminConsole | None = None
    try:
        door = ControlService(supervisor)
        supervisor.end = end
        console = supervisor.hearing.console = AdminConsole(door, supervisor.tell_worker)
        if config.telemetry.endpoint:
            # A third of a second and some 15 MB, for those who want traces only.
            from proxy.control.tracing import Tracing

            tracing = supervisor.hearing.tracing = Tracing(supervisor, config)
        supervisor.policies.start_with(door.switch_of_policy)
        door.alerts.start()
        control = await serve_control(door, config)
        # What was made so far lives as long as the process: no collection has to look at it again.
        gc.collect()
        gc.freeze()
        await ending.wait()
        _log.info("stopping")
    finally:
        if control is not None:
            await control.close()
        if console is not None:
            await console.close()
        if door is not None:
            await door.alerts.stop()
        await supervisor.stop(drain_s=DRAIN_S if control is not None else 0.0)
        if tracing is not None:
            await tracing.close()
        await cancel_and_wait(ended)
    return 0


async def _begin(supervisor: Supervisor) -> ProxyError | None:
    """Start; what an operator has to be told is a value, not the failure of a task."""
    try:
        await supervisor.start()
    except ProxyError as error:
        return error
    return None


def _say(error: ProxyError) -> None:
    sys.stderr.write(f"turnout: {error.text}{f'; {error.hint}' if error.hint else ''}\n")
