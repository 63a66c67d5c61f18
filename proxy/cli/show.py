"""What the command line shows: JSON of the control port in, tables for people out. Eighty columns, colour optional."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import IO, Any, Final, Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]

PIPE_WIDTH: Final = 160
"""Columns where the output is no terminal and COLUMNS does not say."""

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


def console(stream: IO[str] | None = None) -> Console:
    """A console on stdout or `stream` that takes every string as it is: names of users may look like markup."""
    stream = stream or sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width, soft_wrap=False)


def _table(*columns: str, right: Iterable[str] = (), whole: Iterable[str] = ()) -> Table:
    """`right`: columns of numbers; `whole`: those that others make room for, so that they stay on one line."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    return table


# --- small things -------------------------------------------------------------------------------------------------


def moment(seconds: float | None) -> str:
    """A point in time as local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def span(seconds: float) -> str:
    """12 s, 3 min, 5 h, 2 d."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def amount(size: float | None) -> str:
    """512 B, 3.4 MB."""
    if size is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1_000
    return f"{size:.1f} TB"


def counted(number: int, thing: str) -> str:
    """1 session, 2,000 sessions."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def ms(value: float | None) -> str:
    """Milliseconds with one decimal."""
    return "-" if value is None else f"{value:.1f}"


# --- looking ------------------------------------------------------------------------------------------------------


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
        out.print(Text(f"  switch {one['id']} to {one['target']}: {_when(one)}", "yellow"))
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
    table = _table(*(["service"] if with_service else []), *columns, right=("lag", "answers"))
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
            cells += [_role(state), state["version"], _lag(state), f"{state['response_time_ms']:.1f} ms"]
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


def _role(state: Json) -> Text:
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


def show_sessions(out: Console, rows: list[Json]) -> None:
    """One line for each client connection, and why it has its grade."""
    table = _table("id", "user@database", "engine", "standing", "tx", "grade", "idle", right=("id", "idle"))
    table.add_column("why", overflow="fold")
    for row in sorted(rows, key=lambda one: (one["service"], one["worker"], one["id"])):
        table.add_row(
            str(row["id"]),
            f"{row['user']}@{row['database']}",
            row["engine"] or "-",
            row["standing"],
            "open" if row["in_transaction"] else "",
            Text(row["portability"], "yellow" if row["portability"] == "D" else ""),
            span(row["idle_s"]),
            Text(", ".join(_why(row)), "yellow" if row["pins"] else ""),
        )
    out.print(table)
    out.print(
        Text(
            f"{counted(len(rows), 'session')}. Grades: A nothing to carry, B carried, C at a boundary, D pinned", "dim"
        )
    )


def _why(row: Json) -> list[str]:
    """Pins, or else what is carried with counts."""
    carried = row.get("carried", {}).items()
    return [*row["pins"]] or [f"{count} {name.removesuffix('s') if count == 1 else name}" for name, count in carried]


# --- switching ----------------------------------------------------------------------------------------------------


def show_checks(out: Console, checks: list[Json]) -> None:
    """The checks of a readiness report; what to do stands below those that did not pass."""
    table = _table("", "check", "found")
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
    table = _table("figure", "ms", "", right=("ms",))
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


def _when(record: Json) -> str:
    """What a switch waits for."""
    return f"begins {moment(record['due_at'])}" if record["due_at"] is not None else "begins after the one before it"


def show_waiting(out: Console, record: Json) -> None:
    """A switch that has not begun."""
    out.print(f"switch {record['id']} to {record['target']} {_when(record)}")
    out.print(f"drop it with: turnout cancel {record['id']}")


def progress(check: Json) -> str:
    """How far a data check has come."""
    done = sum(one["is_done"] for one in check["tables"])
    rows = sum(one["rows"] for one in check["tables"])
    return f"{done} of {counted(len(check['tables']), 'table')}, {counted(rows, 'row')} compared"


def show_datacheck(out: Console, check: Json) -> None:
    """What a comparison has found: tables that are not equal, and sums."""
    out.print(Text.assemble(("data check ", ""), (check["id"], "bold"), f": {check['source']} and {check['target']}"))
    rows = sum(one["rows"] for one in check["tables"])
    out.print(f"{check['state']}: {counted(rows, 'row')} of {counted(len(check['tables']), 'table')} compared")
    for one in check["tables"]:
        if not (one["different"] or one["unsettled"] or one["note"]):
            continue
        what = [f"{counted(one['different'], 'row')} not alike"] if one["different"] else []
        what += [f"{counted(one['unsettled'], 'row')} changed all the time"] if one["unsettled"] else []
        what += [one["note"]] if one["note"] else []
        out.print(f"  {one['database']} {one['name']}: {'; '.join(what)}")
        for line in one["differences"]:
            out.print(Text(f"    {line}"))
    if check["error"]:
        out.print(check["error"])


def show_datachecks(out: Console, checks: list[Json]) -> None:
    """One line for each, newest first."""
    table = _table("id", "service", "engines", "state", "tables", "rows", right=("tables", "rows"), whole=("id",))
    for check in checks:
        table.add_row(
            check["id"], check["service"], f"{check['source']}, {check['target']}", check["state"],
            str(len(check["tables"])), f"{sum(one['rows'] for one in check['tables']):,}",
        )  # fmt: skip
    out.print(table)


def show_history(out: Console, records: list[Json]) -> None:
    """One line for each switch, newest first."""
    numbers = ("cutover", "hold max")
    table = _table("id", "service", "from > to", "phase", *numbers, right=numbers, whole=("id", *numbers))
    for record in records:
        figures = record["figures"] or {}
        waits = figures.get("hold_ms") or {}
        is_done = record["phase"] == "completed"
        is_pending = record["phase"] == "pending" and (record["due_at"] is not None or record["is_queued"])
        table.add_row(
            record["id"],
            record["service"],
            f"{record['source']} > {record['target']}",
            Text(_when(record) if is_pending else record["phase"], _PHASE_STYLE.get(record["phase"], "")),
            f"{ms(figures.get('cutover_ms'))} ms" if is_done else "-",
            f"{ms(waits.get('max'))} ms" if is_done else "-",
        )
    out.print(table)
    if not records:
        out.print("no switch yet")


def show_report(out: Console, report: Json) -> None:
    """An evidence report for people; `--json` has all of it."""
    plan = report["plan"]
    out.print(Text.assemble(("switch ", ""), (report["id"], "bold")))
    out.print(
        f"{report['service']}: {report['source']} > {report['target']}, {report['strategy']}, "
        f"began {moment(report['began_at'])}, asked for by {plan.get('requested_by') or 'nobody'}"
    )
    if plan.get("reason"):
        out.print(f"reason: {plan['reason']}")
    show_outcome(out, report)
    out.print()
    show_steps(out, report["phases_us"])
    if report["phase"] == "completed":
        out.print()
        show_figures(out, report["figures"])
        _show_waits(out, report["waits"])
        out.print(f"{counted(report['sessions'], 'session')} moved, epoch {report['epoch']}")
    for name, opinion in report.get("opinions", {}).items():
        out.print(f"{name}: {opinion['finding'].replace('_', ' ')}: {opinion['why']}")
    _show_proof(out, report)
    if report["interrupted_count"]:
        out.print(Text(f"{report['interrupted_count']} sessions did not come through:", "bold"))
        for one in report["interrupted"][:20]:
            out.print(f"  s{one['session']} {one['user']}: {one['reason']} (told {one['code_sent']})")
    unfit = [check for check in report["checks"] if check["verdict"] != "pass"]
    if unfit:
        out.print()
        show_checks(out, unfit)


def show_steps(out: Console, steps: list[Json]) -> None:
    """Phases with when they began and how long they took."""
    table = _table("phase", "began", "took", right=("began", "took"))
    for index, step in enumerate(steps):
        follows = steps[index + 1]["at_us"] if index + 1 < len(steps) else None
        took = f"{(follows - step['at_us']) / 1e3:.1f} ms" if follows is not None else ""
        table.add_row(step["phase"], f"{step['at_us'] / 1e3:.1f} ms", took)
    out.print(table)


def _show_waits(out: Console, waits: Json) -> None:
    """The histogram as bars."""
    top = max((bucket["count"] for bucket in waits["histogram"]), default=0)
    if not top:
        return
    table = _table("waits under", "requests", "", right=("waits under", "requests"))
    for bucket in waits["histogram"]:
        bar = "#" * max(1, round(30 * bucket["count"] / top))
        table.add_row(f"{bucket['under_us'] / 1e3:g} ms", str(bucket["count"]), bar)
    out.print(table)


def _show_proof(out: Console, report: Json) -> None:
    positions, fence = report["positions"], report["fence"]
    if fence is not None:
        refused = f", a write was refused with {fence['refused_with']}" if fence["refused_with"] else ""
        out.print(
            f"fence on {fence['engine']}: {fence['how']}{refused}, {fence['sessions_ended']} outside sessions ended, "
            f"{fence['writers_left']} writers left"
        )
    if positions["source"]:
        out.print(f"source stood at {positions['source']}, target reached {positions['target'] or 'nothing'}")
    for hook in report.get("hooks", []):
        out.print(
            Text.assemble(
                f"hook {hook['at']}: {hook['what']}: ",
                (hook["outcome"], "" if hook["is_good"] else "bold red"),
                f", {hook['took_ms']:.0f} ms",
            )
        )
    if report.get("replicas"):
        out.print(f"these had it before the promotion: {', '.join(report['replicas'])}")
    if report.get("in_doubt_resolved"):
        out.print(f"prepared transactions ended by rule: {', '.join(report['in_doubt_resolved'])}")
    if (compared := report.get("rows_at_fence")) is not None:
        _rows_at_fence(out, compared)
    if report.get("way_back"):
        out.print(f"the way back: {report['source']} {report['way_back']}")


def _rows_at_fence(out: Console, compared: Json) -> None:
    said = f"{counted(compared['tables'], 'table')} with {counted(compared['rows'], 'row')} in {compared['ms']:.1f} ms"
    in_part = f", {compared['in_part']} in part" if compared["in_part"] else ""
    out.print(f"compared at the fence: {said}{in_part}, {compared['left_out']} left out")
    for line in compared["different"]:
        out.print(Text(f"  {line}", "bold red"))


# --- check --------------------------------------------------------------------------------------------------------


def show_reached(out: Console, rows: list[Json]) -> None:
    """What `turnout check` found at each engine."""
    table = _table("service", "engine", "address", "answers", "rights")
    for row in rows:
        state = row["state"]
        if not state["is_reachable"]:
            table.add_row(row["service"], row["engine"], row["address"], Text("no", "bold red"), "")
            continue
        missing = row["missing_rights"]
        rights = Text(f"{len(missing)} missing", "bold red") if missing else Text("all", "green")
        answer = Text.assemble(f"{state['version']}, ", _role(state))
        table.add_row(row["service"], row["engine"], row["address"], answer, rights)
    out.print(table)
    for row in rows:
        for problem in row["problems"]:
            out.print(Text.assemble((f"{row['service']}.{row['engine']}: ", "bold"), problem))


# --- for whoever runs it ------------------------------------------------------------------------------------------


def show_pools(out: Console, rows: list[Json]) -> None:
    """One line for each pool of backends."""
    numbers = ("idle", "in use", "waiting")
    table = _table("service", "engine", "database", "user", *numbers, right=numbers)
    for row in rows:
        waiting = Text(str(row["waiting"]), "yellow" if row["waiting"] else "")
        counts = (str(row["idle"]), str(row["in_use"]))
        table.add_row(row["service"], row["engine"], row["database"], row["user"], *counts, waiting)
    out.print(table)
    if not rows:
        out.print("no pool yet")


def show_standstills(out: Console, rows: list[Json]) -> None:
    """One line for each service: what is paused and disabled."""
    table = _table("service", "paused", "disabled", "backends left", right=("backends left",))
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
    table = _table("when", "outcome", "what, and by whom", whole=("when", "outcome"))
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
    for line in reloaded["applied"]:
        out.print(Text.assemble(("applied  ", "green"), line))
    for line in reloaded["needs_restart"]:
        out.print(Text.assemble(("needs a restart  ", "yellow"), line))
    if not reloaded["applied"] and not reloaded["needs_restart"]:
        out.print("nothing has changed")


# --- policies -----------------------------------------------------------------------------------------------------

_CODE_STYLE: Final = {"fired": "bold", "switched": "green", "refused": "bold red", "undone": "yellow"}


def show_policies(out: Console, views: list[Json]) -> None:
    """One line for each policy; what was decided last stands below them."""
    if not views:
        out.print("no policies: Turnout switches when it is told to")
        return
    table = _table("policy", "service", "trigger", "target", "priority", "", right=("priority",), whole=("trigger",))
    remarks = []
    for view in views:
        policy, last = view["policy"], view["last"]
        state = Text("on", "green") if policy["enabled"] else Text("off", "yellow")
        said = last["text"] if last is not None else ""
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
    table = _table("at", "policy", "what, and why", whole=("at",))
    for one in decisions:
        code = (one["code"].replace("_", " "), _CODE_STYLE.get(one["code"], "dim"))
        switch = f" (switch {one['switch']})" if one["switch"] else ""
        table.add_row(moment(one["at"]), one["policy"], Text.assemble(code, f": {one['text']}{switch}"))
    out.print(table)
