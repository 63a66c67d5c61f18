"""The evidence report of a switch, for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from proxy.cli.show.switches import show_checks, show_figures, show_outcome
from proxy.cli.show.terminal import Json, counted, moment, new_table


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
    table = new_table("phase", "began", "took", right=("began", "took"))
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
    table = new_table("waits under", "requests", "", right=("waits under", "requests"))
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
