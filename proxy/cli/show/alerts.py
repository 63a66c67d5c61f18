"""Alerts and their receivers, as a terminal shows them."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

from proxy.cli.show.terminal import Json, moment, new_table

_STYLE: Final = {
    "firing": "bold red",
    "pending": "yellow",
    "resolved": "green",
    "delivered": "green",
    "failed": "bold red",
    "dropped": "bold red",
    "waiting": "yellow",
}


def show_alerts(out: Console, alerts: list[Json]) -> None:
    """One line for each alert, the worst first."""
    if not alerts:
        out.print("no alert fires, and none did within a day")
        return
    table = new_table("", "severity", "alert", "since", "what", whole=("since",))
    for one in alerts:
        state = one["state"] + (" (silenced)" if one["silenced_by"] is not None else "")
        since = one["resolved_at"] if one["state"] == "resolved" else one["fired_at"] or one["since"]
        table.add_row(Text(state, _STYLE[one["state"]]), one["severity"], one["name"], moment(since), Text(one["text"]))
    out.print(table)


def show_rules(out: Console, rules: list[Json]) -> None:
    """One line for each rule."""
    of_some = any(rule["receivers"] for rule in rules)
    columns = ("rule", "when", "for", "severity", "", *(("receivers",) if of_some else ()))
    table = new_table(*columns, whole=("" if of_some else "rule",))
    for rule in rules:
        limit = next((f" {word} {rule[word]:g}" for word in ("above", "below") if rule[word] is not None), "")
        of = "" if rule["of"] == "all" else f" ({rule['of']})"
        origin = " (config)" if rule["origin"] == "config" else ""
        state = Text("off", "dim") if not rule["enabled"] else Text(rule["state"], _STYLE.get(rule["state"], "dim"))
        table.add_row(
            rule["name"] + origin,
            f"{rule['when']}{of}{limit}",
            f"{rule['for_s']:g} s",
            rule["severity"],
            state,
            *((", ".join(rule["receivers"]) or "all",) if of_some else ()),
        )
    out.print(table)


def show_receivers(out: Console, receivers: list[Json]) -> None:
    """One line for each receiver; what became of its last message stands below them."""
    if not receivers:
        out.print("nobody is told of alerts: the config has no [alerts.receiver.NAME]")
        return
    numbers = ("waiting", "delivered", "failed")
    table = new_table("receiver", "kind", "where", *numbers, right=numbers)
    for one in receivers:
        counts = (one["waiting"], one["delivered"], one["failed"] + one["dropped"])
        table.add_row(one["name"], one["kind"], Text(one["where"]), *map(str, counts))
    out.print(table)
    for one in receivers:
        if one["last"] is not None:
            out.print(Text(f"{one['name']}: {one['last']['state']}: {one['last']['outcome']}"))


def show_deliveries(out: Console, deliveries: list[Json]) -> None:
    """One line for each message; why it was not delivered stands below it."""
    if not deliveries:
        out.print("no message was sent yet")
        return
    table = new_table("at", "receiver", "", "tries", "alert", right=("tries",), whole=("at", ""))
    for one in deliveries:
        alert = Text(f"{one['alert']['name']} {one['what']}")
        if one["state"] != "delivered" and one["outcome"]:
            alert.append(f"\n{one['outcome']}")
        table.add_row(
            moment(one["at"]),
            one["receiver"],
            Text(one["state"], _STYLE[one["state"]]),
            str(one["tries"]),
            alert,
        )
    out.print(table)


def show_silences(out: Console, silences: list[Json]) -> None:
    """One line for each silence."""
    if not silences:
        out.print("nothing is silenced")
        return
    table = new_table("number", "alerts", "until", "by", "reason", right=("number",), whole=("until",))
    for one in silences:
        what = one["alert"] or "all"
        where = "/".join(filter(None, (one["service"], one["engine"])))
        about = f"{what} of {where}" if where else what
        table.add_row(str(one["number"]), about, moment(one["until"]), Text(one["by"]), Text(one["reason"]))
    out.print(table)
