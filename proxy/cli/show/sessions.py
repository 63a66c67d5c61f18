"""Client connections and the pools of backends."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from proxy.cli.show.terminal import Json, counted, new_table, span


def show_sessions(out: Console, rows: list[Json]) -> None:
    """One line for each client connection, and why it has its grade."""
    table = new_table("id", "user@database", "engine", "standing", "tx", "grade", "idle", right=("id", "idle"))
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


def show_pools(out: Console, rows: list[Json]) -> None:
    """One line for each pool of backends."""
    numbers = ("idle", "in use", "waiting")
    table = new_table("service", "engine", "database", "user", *numbers, right=numbers)
    for row in rows:
        waiting = Text(str(row["waiting"]), "yellow" if row["waiting"] else "")
        counts = (str(row["idle"]), str(row["in_use"]))
        table.add_row(row["service"], row["engine"], row["database"], row["user"], *counts, waiting)
    out.print(table)
    if not rows:
        out.print("no pool yet")
