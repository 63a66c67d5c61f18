"""`turnout demo`: two real servers, a Turnout before them, clients at work, and switches they do not notice.

This module has the command only; what is heavy is imported when it runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from proxy.demo.options import DemoOptions

_LOG_LINES: Final = "--- the end of Turnout's log ---"


class DemoProtocol(StrEnum):
    """Protocols the demo has servers for."""

    POSTGRESQL = "postgresql"
    MYSQL = "mysql"


class DemoPoolMode(StrEnum):
    """See `pool_mode` in the config."""

    SESSION = "session"
    TRANSACTION = "transaction"


def demo(
    protocol: Annotated[
        DemoProtocol, typer.Option(help="Two PostgreSQL servers, or two MariaDB (or MySQL) servers.")
    ] = DemoProtocol.POSTGRESQL,
    clients: Annotated[int, typer.Option(min=1, max=5_000, metavar="N", help="Client connections.")] = 50,
    seconds: Annotated[
        float, typer.Option(min=1, max=86_400, metavar="S", help="How long the load runs at least.")
    ] = 20.0,
    switches: Annotated[int, typer.Option(min=0, max=1_000, metavar="N", help="Switches, there and back.")] = 3,
    pool_mode: Annotated[DemoPoolMode, typer.Option(help="How Turnout pools.")] = DemoPoolMode.SESSION,
    workers: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Worker processes of Turnout.")] = 1,
    cutover_limit: Annotated[
        float, typer.Option(min=0.001, metavar="MS", help="Exit with 1 if a cutover_ms reaches this.")
    ] = 50.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")] = False,
) -> None:
    """Two servers, clients at work through Turnout, and switches.

    The servers replicate, and it is switched while the clients work. At the end every acknowledged transfer is read back
    from the last primary. Exit code 1 if a client saw an error, a commit was lost, or a cutover reached the limit. Leaves
    no process and no file behind.
    """
    import asyncio

    from proxy.demo.options import DemoOptions

    options = DemoOptions(
        protocol=protocol.value,
        clients=clients,
        seconds=seconds,
        switches=switches,
        pool_mode=pool_mode.value,
        workers=workers,
        cutover_limit_ms=cutover_limit,
    )
    sys.exit(asyncio.run(_run(options, as_json)))


async def _run(options: DemoOptions, as_json: bool) -> int:
    import asyncio

    from proxy.demo.run import Demo
    from proxy.demo.view import LiveView, PlainView, View, print_table
    from proxy.errors import ProxyError

    # What is drawn and asked here can wait; what the servers do cannot.
    os.nice(5)
    view: View = LiveView(options) if sys.stdout.isatty() and sys.stderr.isatty() and not as_json else PlainView()
    run = Demo(options, view)
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    ended_by: list[signal.Signals] = []

    def end(by: signal.Signals) -> None:
        # Once: a second Ctrl-C does not interrupt the cleaning up, which has deadlines.
        if not ended_by:
            ended_by.append(by)
            task.cancel()

    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(one, end, one)
    try:
        with view:
            result = await run.run()
    except asyncio.CancelledError:
        sys.stderr.write("turnout: demo ended before its time; everything is cleaned up\n")
        return 128 + (ended_by[0] if ended_by else signal.SIGINT)
    except ProxyError as error:
        sys.stderr.write(f"turnout: {error.text}\n")
        if run.log_tail:
            sys.stderr.write(f"{_LOG_LINES}\n{run.log_tail}\n")
        return 1
    if as_json:
        sys.stdout.write(json.dumps(result.to_json()) + "\n")
    else:
        print_table(result, options.cutover_limit_ms)
    for line in result.trouble:
        sys.stderr.write(f"turnout: {line}\n")
    if result.trouble and run.log_tail:
        sys.stderr.write(f"{_LOG_LINES}\n{run.log_tail}\n")
    return 1 if result.trouble else 0
