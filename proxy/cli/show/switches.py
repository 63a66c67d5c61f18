"""A switch: its checks, its phases as they are entered, how it ended, and those there were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich.console import Console
from rich.text import Text

from proxy.cli.show.terminal import Json, counted, moment, ms, new_table

ENDED: Final = ("completed", "aborted", "rolled_back", "failed")

FIGURES: Final = {
    "cutover_ms": "Turnout's own part",
    "blackout_ms": "first request held to first row from the target",
    "drain_ms": "waiting for open transactions",
    "fence_ms": "making the source refuse writes (part of cutover_ms)",
    "catchup_ms": "the target's replication",
    "promote_ms": "the target's promotion",
}
"""Figures of one number, as the report names them, in the order in which they are shown."""

_VERDICT_STYLE: Final = {"pass": "green", "warn": "yellow", "fail": "bold red"}
_PHASE_STYLE: Final = {"completed": "green", "aborted": "yellow", "rolled_back": "yellow", "failed": "bold red"}


def show_checks(out: Console, checks: list[Json]) -> None:
    """The checks of a readiness report; what to do stands below those that did not pass."""
    table = new_table("", "check", "found")
    for check in checks:
        found = Text(str(check["found"]))
        if check["verdict"] != "pass":
            if check.get("limit"):
                found.append(f"\nwanted: {check['limit']}")
            if check.get("remedy"):
                found.append(f"\nto do: {check['remedy']}", "bold")
        if check.get("age_s", 0.0) >= 1.0:
            found.append(f" (asked {check['age_s']:.0f} s ago)", "dim")
        table.add_row(Text(check["verdict"], _VERDICT_STYLE[check["verdict"]]), check["name"], found)
    out.print(table)


def show_readiness(out: Console, readiness: Json) -> None:
    """The report and its verdict."""
    show_checks(out, readiness["checks"])
    what = f"switch of {readiness['service']} to {readiness['target']}"
    if readiness["is_ready"]:
        out.print(Text(f"ready: a {what} may begin", "green"))
    else:
        out.print(Text(f"not ready: a {what} would be refused", "bold red"))


def show_phase(out: Console, phase: str, at_us: int) -> None:
    """One line when a phase is entered."""
    out.print(Text.assemble((f"{at_us / 1e3:10.1f} ms  ", "dim"), (phase, _PHASE_STYLE.get(phase, ""))))


def show_figures(out: Console, figures: Json) -> None:
    """The measured figures of a switch."""
    table = new_table("figure", "ms", "", right=("ms",))
    for name, meaning in FIGURES.items():
        if name in figures:
            table.add_row(name, ms(figures[name]), Text(meaning, "dim"))
    waits = figures.get("hold_ms")
    if isinstance(waits, Mapping):
        meaning = f"longest wait of one request; p50 {ms(waits['p50'])}, p99 {ms(waits['p99'])}"
        table.add_row("hold_ms", ms(waits["max"]), Text(meaning, "dim"))
    out.print(table)
    out.print(
        f"{counted(figures.get('affected_transactions', 0), 'request')} waited, "
        f"{counted(figures.get('errors_visible', 0), 'error')} seen by clients"
    )


def show_outcome(out: Console, record: Json) -> None:
    """How a switch ended."""
    phase = str(record["phase"])
    line = {
        "completed": f"completed: {record['target']} serves {record['service']}",
        "aborted": f"aborted: {record['source']} goes on serving {record['service']}",
        "rolled_back": f"rolled back: {record['source']} serves {record['service']} again",
        "failed": "failed: a person is needed",
    }.get(phase, phase)
    by = " (by a supervisor that started later)" if record["recovered"] else ""
    out.print(Text(line + by, _PHASE_STYLE.get(phase, "")))
    if record["error"]:
        out.print(f"why: {record['error']}")
    if record["remedy"]:
        out.print(f"to do: {record['remedy']}")


def when(record: Json) -> str:
    """What a switch waits for."""
    return f"begins {moment(record['due_at'])}" if record["due_at"] is not None else "begins after the one before it"


def show_waiting(out: Console, record: Json) -> None:
    """A switch that has not begun."""
    out.print(f"switch {record['id']} to {record['target']} {when(record)}")
    out.print(f"drop it with: turnout cancel {record['id']}")


def show_history(out: Console, records: list[Json]) -> None:
    """One line for each switch, newest first."""
    numbers = ("cutover", "hold max")
    table = new_table("id", "service", "from > to", "phase", *numbers, right=numbers, whole=("id", *numbers))
    for record in records:
        figures = record["figures"] or {}
        waits = figures.get("hold_ms") or {}
        is_done = record["phase"] == "completed"
        is_pending = record["phase"] == "pending" and (record["due_at"] is not None or record["is_queued"])
        table.add_row(
            record["id"],
            record["service"],
            f"{record['source']} > {record['target']}",
            Text(when(record) if is_pending else record["phase"], _PHASE_STYLE.get(record["phase"], "")),
            f"{ms(figures.get('cutover_ms'))} ms" if is_done else "-",
            f"{ms(waits.get('max'))} ms" if is_done else "-",
        )
    out.print(table)
    if not records:
        out.print("no switch yet")
