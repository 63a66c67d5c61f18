"""`turnout top`: engines, pools, sessions and the running switch, live in a terminal. Eighty columns, colour optional.

`take` asks the control port for all of it at once; the functions below it turn that into texts and know of no terminal; `Top` is
the Textual application around them. Textual is imported with this module, so nobody but the command imports it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Static

from proxy.cli.show.switches import ENDED
from proxy.cli.show.terminal import amount, counted, span
from proxy.control.client import ControlClient
from proxy.control.client_errors import ClientError

Json = Mapping[str, Any]

REFRESH_S: Final = 1.0

PINS_SHOWN: Final = 4

PHASES_SHOWN: Final = 6
"""The last ones of a switch."""


def take(client: ControlClient) -> dict[str, Any]:
    """What is shown, as one object. Raises ClientError."""
    status = client.get("/v1/status")
    newest = client.get("/v1/switches", limit=1)
    return {
        "at": time.time(),
        "status": status,
        "pools": client.get("/v1/pools"),
        "switch": newest[0] if newest else None,
        "alerts": client.get("/v1/alerts"),
    }


# --- texts --------------------------------------------------------------------------------------------------------


def headline(snapshot: Json, note: str = "") -> Text:
    """Turnout as a whole, in one line."""
    status = snapshot["status"]
    workers = status["workers"]
    good = sum(1 for worker in workers if worker["is_configured"])
    state = ("ready", "green") if status["is_ready"] else ("NOT READY", "bold red")
    up = span(max(0.0, snapshot["at"] - status["started_at"]))
    line = Text.assemble(
        (f"Turnout {status['version']} ", "bold"), state, f", up {up}, {good} of {counted(len(workers), 'worker')}  ",
        time.strftime("%H:%M:%S", time.localtime(snapshot["at"])),
    )  # fmt: skip
    return line.append(f"  {note}", "bold yellow") if note else line


ENGINE_COLUMNS: Final = ("service", "engine", "state", "lag", "ms", "req/s", "err %", "conns")

POOL_COLUMNS: Final = ("service", "engine", "database", "user", "idle", "in use", "waiting")

Row = tuple[list[Any], list[Text]]
"""Values to sort by, and cells."""


def engine_rows(snapshot: Json) -> list[Row]:
    """One for each engine."""
    rows: list[Row] = []
    for service in snapshot["status"]["services"]:
        for engine in service["view"]["engines"]:
            state, figures = engine["state"], engine["figures"] or {}
            word, style = _state(engine)
            lag = _lag(state)
            numbers = [
                figures.get(name)
                for name in ("response_time_ms", "query_rate_per_second", "error_rate_percent", "active_connections")
            ]
            values = [service["view"]["name"], engine["name"], word, _bytes_behind(state), *numbers]
            cells = [Text(values[0]), Text(values[1]), Text(word, style), Text(lag, justify="right")]
            cells += [Text(_number(number), justify="right") for number in numbers]
            rows.append((values, cells))
    return rows


def _state(engine: Json) -> tuple[str, str]:
    """One or two words, and how they look: without colour they have to say it all."""
    state = engine["state"]
    if state is None:
        return "not probed", "dim"
    if not state["is_reachable"]:
        return ("ACTIVE, DOWN" if engine["is_active"] else "down"), "bold red"
    if engine["is_active"]:
        return ("active", "bold green") if state["is_writable"] else ("active, read-only", "yellow")
    if state["role"] == "standby":
        return ("standby", "") if state["is_replicating"] else ("not replicating", "yellow")
    return ("primary", "yellow") if state["is_writable"] else ("read-only", "")


def _bytes_behind(state: Json | None) -> float | None:
    if state is None or state["role"] != "standby":
        return None
    behind: float | None = state["lag_bytes"] if state["lag_bytes"] is not None else state["lag_ms"]
    return behind


def _lag(state: Json | None) -> str:
    behind = _bytes_behind(state)
    if state is None or behind is None:
        return "-"
    return amount(behind) if state["lag_bytes"] is not None else f"{behind:.0f} ms"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def pool_rows(snapshot: Json) -> list[Row]:
    """One for each pool."""
    rows: list[Row] = []
    for pool in snapshot["pools"]:
        values = [pool[name] for name in ("service", "engine", "database", "user", "idle", "in_use", "waiting")]
        cells = [Text(str(value)) for value in values[:4]]
        cells += [Text(f"{value:,}", justify="right") for value in values[4:]]
        if pool["waiting"]:
            cells[-1].stylize("bold yellow")
        rows.append((values, cells))
    return rows


def sorted_rows(rows: list[Row], column: int) -> list[Row]:
    """Texts upwards, numbers downwards, what is not known last."""

    def key(row: Row) -> tuple[bool, float, str]:
        value = row[0][column]
        if value is None:
            return True, 0.0, ""
        return (False, 0.0, value) if isinstance(value, str) else (False, -float(value), "")

    return sorted(rows, key=key)


def sessions_text(snapshot: Json) -> Text:
    """A line for each service: sessions by grade, held ones, pins."""
    lines = []
    for service in snapshot["status"]["services"]:
        grades = service["grades"]
        line = Text.assemble((service["view"]["name"], "bold"), f": {counted(service['sessions'], 'session')}")
        line.append("".join(f", {grade} {grades[grade]:,}" for grade in sorted(grades)))
        if service["held"]:
            line.append(f", {service['held']:,} HELD", "bold yellow")
        pins = sorted(service["pinned"].items(), key=lambda pin: -pin[1])
        if pins:
            more = f" and {len(pins) - PINS_SHOWN} more" if len(pins) > PINS_SHOWN else ""
            line.append("; " + ", ".join(f"{count} {pin}" for pin, count in pins[:PINS_SHOWN]) + more, "yellow")
        lines.append(line)
    return Text("\n").join(lines)


def switch_text(snapshot: Json) -> Text:
    """The switches that run, with their phases; if none does, the last one in a line."""
    running = [service["view"]["running"] for service in snapshot["status"]["services"]]
    lines = [_running(record, snapshot["at"]) for record in running if record is not None]
    if lines:
        return Text("\n").join(lines)
    last = snapshot["switch"]
    if last is None:
        return Text("no switch yet", "dim")
    if last["phase"] not in ENDED:
        return Text(f"switch {last['id']} to {last['target']} waits: {last['phase']}", "yellow")
    figures = last["figures"] or {}
    cutover = f", cutover {figures['cutover_ms']:.1f} ms" if figures.get("cutover_ms") is not None else ""
    ago = span(max(0.0, snapshot["at"] - (last["ended_at"] or last["began_at"])))
    return Text(
        f"last switch: {last['source']} > {last['target']}, {last['phase'].replace('_', ' ')}{cutover}, {ago} ago"
    )


def _running(record: Json, now: float) -> Text:
    stamps = sorted(record["stamps"].items(), key=lambda stamp: stamp[1])
    now_us = (now - record["began_at"]) * 1e6
    ends = [at for _, at in stamps[1:]] + [max(now_us, stamps[-1][1] if stamps else 0.0)]
    phases = [f"{phase} {(end - at) / 1e3:,.0f} ms" for (phase, at), end in zip(stamps, ends, strict=True)]
    line = Text.assemble(
        ("SWITCH ", "bold yellow"),
        f"{record['source']} > {record['target']} ({record['strategy']}, {record['id']})\n  ",
    )
    return line.append(" · ".join(phases[-PHASES_SHOWN:]))


def alerts_text(snapshot: Json) -> Text:
    """A line for each alert that fires; nothing where none does."""
    lines = []
    for alert in snapshot["alerts"]:
        if alert.get("state", "firing") == "firing":
            lines.append(
                Text(f"ALERT {alert.get('severity', '')}: {alert.get('text') or alert.get('name', '')}", "bold red")
            )
    return Text("\n").join(lines)


# --- the application ----------------------------------------------------------------------------------------------


class Top(App[None]):
    """See the module. `take_one` gives a snapshot and may block; it raises ClientError."""

    TITLE = "turnout top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("s", "sort", "Sort"),
        Binding("p", "pause", "Pause"),
        Binding("tab", "app.focus_next", "Other table"),
    ]
    CSS = """
    Screen { layout: vertical; }
    Static { height: auto; padding: 0 1; }
    DataTable { height: auto; max-height: 40%; }
    #pools { max-height: 100%; height: 1fr; }
    #alerts { max-height: 4; }
    """

    def __init__(self, take_one: Callable[[], Json], *, refresh_s: float = REFRESH_S) -> None:
        super().__init__()
        self._take_one = take_one
        self._refresh_s = refresh_s
        self._snapshot: Json | None = None
        self._sort = {"engines": 0, "pools": 0}
        self.is_paused = False

    def compose(self) -> ComposeResult:
        """From the top down."""
        yield Static("asking…", id="head")
        yield Static(id="alerts")
        yield DataTable(id="engines", cursor_type="row")
        yield Static(id="switch")
        yield Static(id="sessions")
        yield DataTable(id="pools", cursor_type="row")
        yield Footer()

    async def on_mount(self) -> None:
        """Begin to ask."""
        self.run_worker(self._ask_on(), name="ask")

    async def _ask_on(self) -> None:
        while True:
            if not self.is_paused:
                await self.ask()
            await asyncio.sleep(self._refresh_s)

    async def ask(self) -> None:
        """One look; where nobody answers, what was there stays and the first line says so."""
        try:
            self._snapshot = await asyncio.to_thread(self._take_one)
            self._show()
        except ClientError as error:
            self._show(f"NO ANSWER: {error.text}")

    def _show(self, note: str = "") -> None:
        snapshot = self._snapshot
        if snapshot is None:
            self.query_one("#head", Static).update(note)
            return
        note = note or ("PAUSED" if self.is_paused else "")
        self.query_one("#head", Static).update(headline(snapshot, note))
        self._fill("engines", ENGINE_COLUMNS, engine_rows(snapshot))
        self._fill("pools", POOL_COLUMNS, pool_rows(snapshot))
        for name, text in (
            ("alerts", alerts_text(snapshot)), ("switch", switch_text(snapshot)), ("sessions", sessions_text(snapshot)),
        ):  # fmt: skip
            part = self.query_one(f"#{name}", Static)
            part.update(text)
            part.display = bool(text)

    def _fill(self, name: str, columns: tuple[str, ...], rows: list[Row]) -> None:
        table: DataTable[Text] = self.query_one(f"#{name}", DataTable)
        column = self._sort[name]
        at = table.cursor_row
        table.clear(columns=True)
        for number, title in enumerate(columns):
            table.add_column(f"{title}*" if number == column else title, key=title)
        for _values, cells in sorted_rows(rows, column):
            table.add_row(*cells)
        if table.row_count:
            table.move_cursor(row=min(at, table.row_count - 1), animate=False)

    def action_sort(self) -> None:
        """The table that has the keyboard is sorted by its next column, which has a star."""
        name = self.focused.id if isinstance(self.focused, DataTable) and self.focused.id else "engines"
        self._sort[name] = (self._sort[name] + 1) % len(ENGINE_COLUMNS if name == "engines" else POOL_COLUMNS)
        self._show()

    def action_pause(self) -> None:
        """Look no more, or again."""
        self.is_paused = not self.is_paused
        self._show()
