"""What the demo shows while it runs, and the table at its end.

On a terminal a live picture; elsewhere a line per event on stderr, so that a log of it reads like a log.
"""

from __future__ import annotations

import collections
import math
import sys
import time
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from proxy.demo.load import Sample
from proxy.demo.options import DemoOptions, DemoResult, SwitchResult

STRIP_COLUMNS_MAX: Final = 200
"""Of a tenth of a second each; as many as the terminal is wide."""

_BARS: Final = " ▁▂▃▄▅▆▇█"
_STRIP_ROWS: Final = 3
_LOWEST_MS: Final = 1.0
_HIGHEST_MS: Final = 200.0
"""The strip is logarithmic between the two."""

_IDLE: Final = "no switch runs"

_FRAMES_PER_S: Final = 4
"""Drawing costs processor time that the servers want as well."""


class View(Protocol):
    """What the running demo tells of itself."""

    def says(self, text: str) -> None:
        """Something happened."""

    def sampled(self, sample: Sample) -> None:
        """A tenth of a second of the load."""

    def moved(self, number: int, source: str, target: str, phase: str) -> None:
        """The running switch entered a phase; empty: none runs any more."""

    def switched(self, result: SwitchResult) -> None:
        """A switch has ended."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


class PlainView:
    """Lines on stderr."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._errors = 0

    def says(self, text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self._began:6.1f} s  {text}\n")
        sys.stderr.flush()

    def sampled(self, sample: Sample) -> None:
        if sample.last_error and self._errors < 10:
            self.says(f"a client saw: {sample.last_error}")
            self._errors += 1

    def moved(self, number: int, source: str, target: str, phase: str) -> None:
        """Phases last milliseconds: the line at the end has them all."""

    def switched(self, result: SwitchResult) -> None:
        self.says(_line(result))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return None


class LiveView:
    """A picture on the terminal, drawn anew a few times a second."""

    def __init__(self, options: DemoOptions) -> None:
        self._options = options
        self._samples: collections.deque[tuple[Sample, bool]] = collections.deque(maxlen=STRIP_COLUMNS_MAX)
        self._text = ""
        self._phase = Text(_IDLE, style="dim")
        self._is_switching = False
        self._switches: list[SwitchResult] = []
        self._transactions = self._errors = 0
        self._last_error = ""
        # On stderr, like the plain lines: stdout is for the result.
        self._console = Console(stderr=True)
        self._live = Live(
            console=self._console, refresh_per_second=_FRAMES_PER_S, get_renderable=self._draw, transient=True
        )

    def says(self, text: str) -> None:
        self._text = text

    def sampled(self, sample: Sample) -> None:
        self._samples.append((sample, self._is_switching))
        self._is_switching = self._is_switching and self._phase.plain != _IDLE
        self._transactions += sample.transactions
        self._errors += sample.errors
        self._last_error = sample.last_error or self._last_error

    def moved(self, number: int, source: str, target: str, phase: str) -> None:
        if phase:
            self._is_switching = True
            self._phase = Text(f"switch {number}  {source} → {target}  {phase}", style="bold yellow")
        else:
            self._phase = Text(_IDLE, style="dim")

    def switched(self, result: SwitchResult) -> None:
        self._switches.append(result)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def _draw(self) -> Panel:
        last = [sample for sample, _ in list(self._samples)[-10:]]
        seconds = max(0.1, len(last) / 10)
        rate = sum(one.transactions for one in last) / seconds
        reads = sum(one.reads for one in last) / seconds
        p50 = sorted(one.p50_ms for one in last)[len(last) // 2] if last else 0.0
        p99 = max((one.p99_ms for one in last), default=0.0)
        head = Table.grid(padding=(0, 3))
        head.add_row(
            f"[bold]{rate:,.0f}[/] transfers/s",
            f"[bold]{reads:,.0f}[/] reads/s",
            f"p50 [bold]{p50:.1f}[/] ms",
            f"p99 [bold]{p99:.1f}[/] ms",
            f"[bold]{self._transactions:,}[/] committed",
            f"[bold {'red' if self._errors else 'green'}]{self._errors}[/] errors",
        )
        parts: list[RenderableType] = [head, Text(), *self._strip(), Text(), self._phase, Text(self._text, style="dim")]
        if self._last_error:
            parts.append(Text(self._last_error, style="red"))
        parts += [Text(_line(one), style="cyan") for one in self._switches[-8:]]
        options = self._options
        title = (
            f"Turnout · {options.clients} clients · {options.protocol} · {options.pool_mode} pooling"
            f" · {options.workers} worker{'s' if options.workers > 1 else ''}"
        )
        return Panel(Group(*parts), title=title, title_align="left")

    def _strip(self) -> list[Text]:
        """Longest latency of each tenth of a second; yellow where a switch ran."""
        rows = [Text() for _ in range(_STRIP_ROWS)]
        steps = _STRIP_ROWS * (len(_BARS) - 1)
        columns = max(10, self._console.width - 4)
        for sample, is_switching in list(self._samples)[-columns:]:
            height = round(_height(sample.max_ms) * steps)
            style = "bold yellow" if is_switching else "green"
            for row, line in enumerate(rows):
                part = height - (_STRIP_ROWS - 1 - row) * (len(_BARS) - 1)
                line.append(_BARS[min(max(part, 0), len(_BARS) - 1)], style=style)
        rows.append(
            Text(f"longest latency of each 0.1 s, {_LOWEST_MS:g}–{_HIGHEST_MS:g} ms, logarithmic", style="dim italic")
        )
        return rows


def _height(ms: float) -> float:
    """0 to 1."""
    if ms <= _LOWEST_MS:
        return 0.0
    return min(1.0, math.log(ms / _LOWEST_MS) / math.log(_HIGHEST_MS / _LOWEST_MS))


def _line(result: SwitchResult) -> str:
    if result.error:
        return f"switch {result.number}: {result.source} -> {result.target}: {result.phase}: {result.error}"
    return (
        f"switch {result.number}: {result.source} -> {result.target}: {result.phase}, longest wait"
        f" {result.hold_ms.max:.1f} ms (drain {result.drain_ms:.1f}, catch-up {result.catchup_ms:.1f},"
        f" promotion {result.promote_ms:.1f}, Turnout's own part {result.cutover_ms:.1f})"
    )


def print_table(result: DemoResult, limit_ms: float) -> None:
    """The figures, on stdout."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(title=f"{result.engines}, {result.clients} clients, {result.pool_mode} pooling", title_justify="left")
    table.add_column("switch")
    names = ("hold p50", "p99", "max", "drain", "catch-up", "promote", "cutover", "blackout")
    for name in names:
        table.add_column(f"{name} ms" if name not in ("p99", "max") else name, justify="right")
    table.add_column("errors", justify="right")
    table.add_column("lost", justify="right")
    for one in result.switches:
        held = one.hold_ms
        numbers = (
            held.p50, held.p99, held.max, one.drain_ms, one.catchup_ms, one.promote_ms, one.cutover_ms, one.blackout_ms
        )  # fmt: skip
        shown = [f"{number:.1f}" for number in numbers]
        if one.cutover_ms >= limit_ms:
            shown[6] = f"[bold red]{shown[6]}[/]"
        table.add_row(
            f"{one.number} {one.source} → {one.target}" if one.phase == "completed" else f"{one.number} {one.phase}",
            *shown,
            str(one.errors_visible),
            str(one.acked_lost),
        )
    console.print(table)
    console.print(
        f"{result.transactions:,} transfers acknowledged and {result.reads:,} reads in {result.seconds:.0f} s;"
        f" errors seen by clients: {result.errors_visible}; acknowledged transfers missing on the last primary:"
        f" {result.acked_lost}; longest operation: {result.max_latency_ms:.0f} ms"
    )
