"""Policies, and what they decided."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

from proxy.cli.show.terminal import Json, moment, new_table

_CODE_STYLE: Final = {"fired": "bold", "switched": "green", "refused": "bold red", "undone": "yellow"}


def show_policies(out: Console, views: list[Json]) -> None:
    """One line for each policy; what was decided last stands below them."""
    if not views:
        out.print("no policies: Turnout switches when it is told to")
        return
    table = new_table("policy", "service", "trigger", "target", "priority", "", right=("priority",), whole=("trigger",))
    remarks = []
    for view in views:
        policy, last = view["policy"], view["last"]
        state = Text("on", "green") if policy["enabled"] else Text("off", "yellow")
        said = last["text"] if last is not None and last["code"] not in ("waits", "disabled") else ""
        if view["next_time"] is not None:
            said = f"next at {moment(view['next_time'])}" + (f"; {said}" if said else "")
        origin = "" if policy["origin"] == "command" else " (config)"
        table.add_row(
            policy["name"] + origin,
            policy["service"],
            policy["trigger"],
            policy["target_engine"],
            str(policy["priority"]),
            state,
        )
        if said:
            remarks.append(f"{policy['name']}: {said}")
    out.print(table)
    for remark in remarks:
        out.print(remark)


def show_decisions(out: Console, decisions: list[Json]) -> None:
    """What was decided and why."""
    if not decisions:
        out.print("nothing was decided yet")
        return
    table = new_table("at", "policy", "what, and why", whole=("at",))
    for one in decisions:
        code = (one["code"].replace("_", " "), _CODE_STYLE.get(one["code"], "dim"))
        switch = f" (switch {one['switch']})" if one["switch"] else ""
        table.add_row(moment(one["at"]), one["policy"], Text.assemble(code, f": {one['text']}{switch}"))
    out.print(table)
