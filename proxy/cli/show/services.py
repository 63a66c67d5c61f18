"""A Turnout, its services and their engines."""

from __future__ import annotations

import time

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from proxy.cli.show.switches import when
from proxy.cli.show.terminal import Json, amount, counted, new_table, span


def show_status(out: Console, status: Json) -> None:
    """The whole Turnout: a line for itself, a block for each service."""
    workers = status["workers"]
    good = sum(1 for worker in workers if worker["is_configured"])
    state = Text("ready", "green") if status["is_ready"] else Text("not ready", "bold red")
    up = span(max(0.0, time.time() - status["started_at"]))
    out.print(
        Text.assemble(
            f"Turnout {status['version']}: ", state, f", up {up}, {good} of {counted(len(workers), 'worker')}"
        )
    )
    for service in status["services"]:
        show_service(out, service)


def show_service(out: Console, service: Json) -> None:
    """One service with its engines and the switch that runs."""
    view = service["view"]
    names = ", ".join(view["databases"]) or "every other"
    out.print()
    out.print(
        Text.assemble((view["name"], "bold"), f": {view['protocol']}, {view['pool_mode']} mode, database {names}")
    )
    held = f" ({service['held']} held)" if service["held"] else ""
    out.print(
        f"  {counted(service['sessions'], 'session')}{held}, {counted(service['requests_total'], 'request')}, "
        f"{counted(service['transactions_total'], 'transaction')}, {counted(service['errors_total'], 'error')}, "
        f"epoch {view['epoch']}"
    )
    running = view["running"]
    if running is not None:
        out.print(Text(f"  switch {running['id']} to {running['target']}: {running['phase']}", "yellow"))
    failover = view["failover"]
    if failover is not None and (not failover["is_automatic"] or failover["health"] not in ("answering", "unseen")):
        show_failover(out, failover, indent=2)
    for one in view["waiting"]:
        out.print(Text(f"  switch {one['id']} to {one['target']}: {when(one)}", "yellow"))
    stopped = {"paused": ["all databases"] if view["is_paused"] else view["paused"], "disabled": view["disabled"]}
    for word, databases in stopped.items():
        if databases:
            out.print(Text(f"  {word} by an operator: {', '.join(databases)}", "yellow"))
    if view["success_rate"] is not None:
        rolled_back = view["tally"]["rolled_back"]
        out.print(f"  {100 * view['success_rate']:g} % of its switches completed, {rolled_back} rolled back")
    show_engines(out, [{"service": view["name"], "engine": engine} for engine in view["engines"]], with_service=False)


def show_failover(out: Console, view: Json, *, indent: int = 0) -> None:
    """What happens when the active engine fails, or is failing."""
    lines = []
    if not view["is_automatic"]:
        lines.append(("automatic failover is off" + (f": {view['why_not']}" if view["why_not"] else ""), "yellow"))
    elif not indent:
        lines.append(("automatic failover is on", ""))
    if view["health"] not in ("answering", "unseen"):
        lines.append((f"active engine {view['health']}: {view['why']}", "red"))
    for text, style in lines:
        out.print(Padding.indent(Text(text, style), indent))


def show_engines(out: Console, rows: list[Json], *, with_service: bool) -> None:
    """One line for each engine."""
    columns = ["engine", "", "address", "role", "version", "lag", "answers"]
    table = new_table(*(["service"] if with_service else []), *columns, right=("lag", "answers"))
    remarks = []
    for row in rows:
        engine = row["engine"]
        state = engine["state"]
        cells: list[Text | str] = [row["service"]] if with_service else []
        cells += [engine["name"], Text("active", "green") if engine["is_active"] else "", engine["address"]]
        if state is None:
            cells += [Text("not probed yet", "dim"), "", "", ""]
        elif not state["is_reachable"]:
            cells += [Text("down", "bold red"), "", "", ""]
            remarks.append(f"{engine['name']}: {state['why']}")
        else:
            cells += [role_of(state), state["version"], _lag(state), f"{state['response_time_ms']:.1f} ms"]
            if state["role"] == "standby" and not state["is_replicating"]:
                remarks.append(
                    f"{engine['name']} does not replicate: {state['replication_error'] or 'no reason given'}"
                )
        if engine["deposed"] is not None:
            why = f" since switch {engine['deposed']['switch']}" if engine["deposed"]["switch"] else ""
            remarks.append(
                f"{engine['name']} must not take writes{why}: it is fenced whenever it does; make it a standby of the active"
                " engine"
            )
        table.add_row(*cells)
    out.print(Padding.indent(table, 0 if with_service else 2))
    for remark in remarks:
        out.print(Text(remark, "red"))


def role_of(state: Json) -> Text:
    """One word; what is wrong with a standby stands below the table."""
    if state["role"] == "standby":
        return Text("standby", "" if state["is_replicating"] else "yellow")
    if state["is_writable"]:
        return Text("primary")
    return Text("fenced" if state["is_fenced"] else "read-only", "yellow")


def _lag(state: Json) -> str:
    if state["role"] != "standby":
        return "-"
    if state["lag_bytes"] is not None:
        return amount(state["lag_bytes"])
    return "-" if state["lag_ms"] is None else f"{state['lag_ms']:.0f} ms"
