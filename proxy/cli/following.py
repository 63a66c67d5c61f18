"""A switch from the moment it is asked for: refused, waiting, or seen through to its end."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, NoReturn

from proxy.cli.common import POLL_S, REFUSED, WRONG_USE, fail, present, print_json, segment
from proxy.control.client_errors import ClientError

if TYPE_CHECKING:
    from rich.console import Console

    from proxy.control.client import ControlClient

GONE_S_MAX: Final = 30.0
"""How long a control port that stopped answering in the middle of a switch is waited for: a supervisor restarts."""


def exit_unless_ready(readiness: dict[str, Any]) -> None:
    """Fail with the checks that did, if any did."""
    if readiness["is_ready"]:
        return
    for one in readiness["checks"]:
        if one["verdict"] == "fail":
            sys.stderr.write(f"turnout: {one['name']}: {one['found']}; {one['remedy']}\n")
    sys.exit(REFUSED)


def see_through(client: ControlClient, begun: dict[str, Any], as_json: bool) -> None:
    """Wait for the end of a switch, show it, and fail if it did not complete. One that waits for its time is only shown."""
    from proxy.cli.show.switches import show_figures, show_outcome, show_waiting
    from proxy.cli.show.terminal import console

    if begun["phase"] == "pending" and (begun["due_at"] is not None or begun["is_queued"]):
        present(begun, as_json, show_waiting)
        return
    switch_id = begun["id"]
    try:
        ended = follow(client, switch_id, None if as_json else console())
    except KeyboardInterrupt:
        fail(f"the switch goes on; `turnout cancel {switch_id}` undoes it, as long as it may be undone")
    if as_json:
        print_json(ended)
    else:
        out = console()
        show_outcome(out, ended)
        if ended["phase"] == "completed":
            show_figures(out, ended["figures"])
        out.print(f"more: turnout report {ended['id']}")
    if ended["phase"] != "completed":
        fail(f"switch {ended['id']} {ended['phase'].replace('_', ' ')}: {ended['error']}", ended["remedy"])


def tell_refused(error: ClientError, as_json: bool) -> NoReturn:
    """The switch did not begin: which checks failed, and what to do."""
    problem = error.problem or {}
    if as_json and problem:
        print_json(problem)
    failed = [one for one in problem.get("checks", []) if one["verdict"] == "fail"]
    for one in failed:
        sys.stderr.write(f"turnout: refused by check {one['name']}: {one['found']}; {one['remedy']}\n")
    if failed:
        sys.exit(REFUSED)
    if error.status == 400:
        fail(error.text, error.remedy, code=WRONG_USE)
    fail(error.text, error.remedy)


def follow(client: ControlClient, switch_id: str, out: Console | None) -> dict[str, Any]:
    """Wait for the end of a switch; on `out`, if it is a console, a line for each phase as it is entered."""
    from proxy.cli.show.switches import ENDED, show_phase

    seen: set[str] = set()
    answered, is_alone = time.monotonic(), False
    with out.status(f"switch {switch_id}") if out is not None else nullcontext():
        while True:
            try:
                record: dict[str, Any] = client.get(f"/v1/switches/{segment(switch_id)}")
                answered = time.monotonic()
            except ClientError as error:
                # The supervisor may be restarting: it finishes or undoes the switch when it is back.
                if error.status:
                    raise
                if time.monotonic() - answered > GONE_S_MAX:
                    remedy = "a supervisor that starts finishes or undoes the switch: look at it with `turnout history`"
                    raise ClientError(f"switch {switch_id}: {error.text}", remedy) from error
                if out is not None and not is_alone:
                    out.print(f"no answer; waiting up to {GONE_S_MAX:g} s for the supervisor to come back")
                is_alone = True
                time.sleep(POLL_S)
                continue
            is_alone = False
            if out is not None:
                for phase, at_us in sorted(record["stamps"].items(), key=lambda stamp: stamp[1]):
                    if phase not in seen:
                        seen.add(phase)
                        show_phase(out, phase, at_us)
            if record["phase"] in ENDED:
                return record
            time.sleep(POLL_S)
