"""Draws docs/figures/*.svg from bench/results/*.json: grouped bars, readable on a light and on a dark page.

    python -m bench.charts [--to docs/figures]

A chart is drawn if its figures were measured, and left as it is if not. Written by hand rather than by a library: the
pages need four charts of one kind, as text of a few kilobytes that a diff can show, and with colours that follow the
reader's theme, which a picture drawn beforehand cannot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from bench import results
from bench.results import Record

FIGURES: Final = Path(__file__).resolve().parents[1] / "docs" / "figures"

WIDTH: Final = 760
LABELS: Final = 190
"""Width of the column of names, in pixels."""
VALUES: Final = 120
BAR: Final = 18
GAP: Final = 5
GROUP: Final = 16
TOP: Final = 62

_STYLE: Final = """\
text { font: 13px -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-size: 16px; font-weight: 600; }
.note, .value { fill: #59636e; }
.note { font-size: 12px; }
.ours { font-weight: 600; }
.bar { fill: #afb8c1; }
.turnout { fill: #0969da; }
.line { stroke: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .note, .value { fill: #9198a1; }
  .bar { fill: #59636e; }
  .turnout { fill: #4493f8; }
  .line { stroke: #3d444d; }
}
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One way, and its figure."""

    name: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Group:
    """Bars that are to be compared with each other."""

    title: str
    bars: Sequence[Bar]


def draw(title: str, note: str, groups: Sequence[Group]) -> str:
    """A chart as SVG. Each group has a scale of its own if its title says another unit; here all share one."""
    longest = max(bar.value for group in groups for bar in group.bars)
    room = WIDTH - LABELS - VALUES
    rows: list[str] = []
    y = TOP
    for group in groups:
        rows.append(f'<text x="0" y="{y + 13}">{escape(group.title)}</text>')
        y += 22
        top = y
        for bar in group.bars:
            ours = bar.name == "Turnout"
            width = max(1.0, room * bar.value / longest)
            rows.append(
                f'<text x="{LABELS - 10}" y="{y + 13}" text-anchor="end"{" class=" + chr(34) + "ours" + chr(34) if ours else ""}>'
                f"{escape(bar.name)}</text>"
                f'<rect class="{"turnout" if ours else "bar"}" x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
                f'<text class="value" x="{LABELS + width + 8:.1f}" y="{y + 13}">{escape(bar.text)}</text>'
            )
            y += BAR + GAP
        rows.append(f'<line class="line" x1="{LABELS - 0.5}" x2="{LABELS - 0.5}" y1="{top - 3}" y2="{y - GAP + 3}"/>')
        y += GROUP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n"
        f'<text class="title" x="0" y="18">{escape(title)}</text>\n'
        f'<text class="note" x="0" y="40">{escape(note)}</text>\n' + "\n".join(rows) + "\n</svg>\n"
    )


def _machine(loaded: Record) -> str:
    about = loaded["machine"]
    return f"{about['processors']} × {about['processor']}, {about.get('pgbouncer', '')}".strip(", ")


def relay(loaded: Record) -> str | None:
    """Processor time per query."""
    groups = []
    for pool_mode, query_mode, tls in (
        ("session", "simple", False),
        ("session", "prepared", False),
        ("transaction", "simple", False),
        ("transaction", "prepared", False),
        ("session", "simple", True),
    ):
        key = (pool_mode, query_mode, tls, 16)
        bars = [
            Bar(one["relay"], one["us_per_query"], f"{one['us_per_query']:.1f} µs")
            for one in loaded["records"]
            if (one["pool_mode"], one["query_mode"], one["tls"], one["clients"]) == key and one["relay"] != "direct"
        ]
        if bars:
            bars = [Bar("bare C" if bar.name == "floor" else bar.name, bar.value, bar.text) for bar in bars]
            groups.append(Group(f"{pool_mode} mode, {query_mode} queries{', over TLS' if tls else ''}", bars))
    title = "Processor time of the proxy for one query"
    return draw(title, f"pgbench -S, 16 clients, less is better. {_machine(loaded)}", groups) if groups else None


def idle(loaded: Record) -> str | None:
    """Memory of an idle client."""
    groups = []
    for mode, what in (("transaction", "transaction mode"), ("session", "session mode, a client and its backend")):
        bars = [
            Bar(one["relay"], one["bytes_per_client"], f"{one['bytes_per_client'] / 1024:.1f} KiB")
            for one in loaded["records"]
            if one["figure"] == "memory" and one["pool_mode"] == mode
        ]
        if bars:
            groups.append(Group(what, bars))
    return draw("Memory of one idle client", f"Less is better. {_machine(loaded)}", groups) if groups else None


def tail(loaded: Record) -> str | None:
    """Slow answers."""
    groups = []
    for mode in ("session", "transaction"):
        for figure, name in (("p50_us", "median"), ("p99_us", "99 %"), ("p99.9_us", "99.9 %")):
            bars = [
                Bar("bare C" if one["relay"] == "floor" else one["relay"], one[figure], f"{one[figure] / 1000:.2f} ms")
                for one in loaded["records"]
                if one["pool_mode"] == mode
            ]
            if bars:
                groups.append(Group(f"{mode} mode, {name}", bars))
    if not groups:
        return None
    one = loaded["records"][0]
    note = f"{one['clients']:,} clients, {one['rate']:,} queries a second, less is better. {_machine(loaded)}"
    return draw("Time to the answer", note, groups)


CHARTS: Final[dict[str, Callable[[Record], str | None]]] = {"relay": relay, "idle": idle, "tail": tail}


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="bench.charts", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--to", type=Path, default=FIGURES)
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    for name, chart in CHARTS.items():
        loaded = results.load(name)
        drawn = chart(loaded) if loaded is not None else None
        if drawn is None:
            print(f"charts: {name} was not measured", file=sys.stderr)
            continue
        (args.to / f"{name}.svg").write_text(drawn)
        print(f"charts: {args.to / name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
