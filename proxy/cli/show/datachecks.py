"""Comparisons of the rows of two engines."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from proxy.cli.show.terminal import Json, counted, new_table


def progress(check: Json) -> str:
    """How far a data check has come."""
    done = sum(one["is_done"] for one in check["tables"])
    rows = sum(one["rows"] for one in check["tables"])
    return f"{done} of {counted(len(check['tables']), 'table')}, {counted(rows, 'row')} compared"


def show_datacheck(out: Console, check: Json) -> None:
    """What a comparison has found: tables that are not equal, and sums."""
    out.print(Text.assemble(("data check ", ""), (check["id"], "bold"), f": {check['source']} and {check['target']}"))
    if check["state"] == "equal" and not check["tables"]:
        out.print("equal: neither has a table")
    else:
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
    table = new_table("id", "service", "engines", "state", "tables", "rows", right=("tables", "rows"), whole=("id",))
    for check in checks:
        table.add_row(
            check["id"], check["service"], f"{check['source']}, {check['target']}", check["state"],
            str(len(check["tables"])), f"{sum(one['rows'] for one in check['tables']):,}",
        )  # fmt: skip
    out.print(table)
