"""For whoever runs a Turnout: what `check` found, what stands still, who did what, what happens, what a reload changed."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from proxy.cli.show.services import role_of
from proxy.cli.show.terminal import Json, moment, new_table


def show_reached(out: Console, rows: list[Json]) -> None:
    """What `turnout check` found at each engine."""
    table = new_table("service", "engine", "address", "answers", "rights")
    for row in rows:
        state = row["state"]
        if not state["is_reachable"]:
            table.add_row(row["service"], row["engine"], row["address"], Text("no", "bold red"), "")
            continue
        missing = row["missing_rights"]
        rights = Text(f"{len(missing)} missing", "bold red") if missing else Text("all", "green")
        answer = Text.assemble(f"{state['version']}, ", role_of(state))
        table.add_row(row["service"], row["engine"], row["address"], answer, rights)
    out.print(table)
    for row in rows:
        for problem in row["problems"]:
            out.print(Text.assemble((f"{row['service']}.{row['engine']}: ", "bold"), problem))


def show_standstills(out: Console, rows: list[Json]) -> None:
    """One line for each service: what is paused and disabled."""
    table = new_table("service", "paused", "disabled", "backends left", right=("backends left",))
    for row in rows:
        paused = "all databases" if row["is_paused"] else ", ".join(row["paused"])
        left = "?" if row["backends_left"] is None else str(row["backends_left"])
        is_still = row["is_paused"] or bool(row["paused"])
        table.add_row(
            row["service"], Text(paused or "-", "yellow" if is_still else ""), ", ".join(row["disabled"]) or "-",
            left if is_still else "-",
        )  # fmt: skip
    out.print(table)


def show_audit(out: Console, entries: list[Json]) -> None:
    """What was done, and below it by whom, and why it was refused."""
    table = new_table("when", "outcome", "what, and by whom", whole=("when", "outcome"))
    for entry in entries:
        what = Text.assemble((entry["action"], "bold"), f" {entry['target']}\n{entry['caller']}")
        if entry["role"]:
            what.append(f" ({entry['role']})")
        if entry["outcome"] != "done":
            what.append(f": {entry['detail'].get('why', '')}", "yellow")
        table.add_row(moment(entry["at"]), Text(entry["outcome"], "" if entry["outcome"] == "done" else "yellow"), what)
    out.print(table)
    if not entries:
        out.print("no entry")


def show_event(out: Console, event: Json) -> None:
    """One line for each event."""
    data = ", ".join(
        f"{key} {value}" for key, value in event.get("data", {}).items() if not isinstance(value, dict | list)
    )
    about = f"{event['service']}: " if event.get("service") else ""
    out.print(Text.assemble((f"{moment(event.get('at'))}  ", "dim"), (event["kind"], "bold"), f"  {about}{data}"))


def show_reloaded(out: Console, reloaded: Json) -> None:
    """What a reload changed."""
    for key, word, style in (
        ("added", "added", "green"),
        ("removed", "removed", "green"),
        ("applied", "applied", "green"),
        ("kept", "not as the file says", "yellow"),
        ("needs_restart", "needs a restart", "yellow"),
    ):
        for line in reloaded[key]:
            out.print(Text.assemble((f"{word}  ", style), line))
    if not any(reloaded.values()):
        out.print("nothing has changed")
