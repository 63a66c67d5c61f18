"""The command line: `turnout`, or `python -m proxy`.

Exit codes: 0 done, 1 refused or failed (why on stderr), 2 wrong use. Every command has `--json`. Commands that talk to a
running Turnout do so through its control port. Heavy modules are imported by the commands that need them, so that
`turnout --help` is quick.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import typer

from proxy import VERSION
from proxy.control.client import DEFAULT_URL, ClientError, ControlClient
from proxy.demo import demo

if TYPE_CHECKING:
    import ssl

REFUSED: Final = 1
WRONG_USE: Final = 2

POLL_S: Final = 0.1
"""Pause between two looks at a running switch. Its phases are stamped, so none is missed."""

GONE_S_MAX: Final = 30.0
"""How long a control port that stopped answering in the middle of a switch is waited for: a supervisor restarts."""

app = typer.Typer(
    name="turnout",
    help="A database proxy that moves running sessions from one server to another.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Url = Annotated[
    str | None, typer.Option("--url", help=f"Control port of the Turnout, or TURNOUT_URL.  [default: {DEFAULT_URL}]")
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File whose first line is the control port's token, or TURNOUT_TOKEN."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Service = Annotated[str | None, typer.Option("--service", "-s", help="Service; needed if there are several.")]
ConfigPath = Annotated[Path, typer.Argument(help="The config file, TOML.", metavar="CONFIG")]
Target = Annotated[str, typer.Argument(help="Engine to switch to.", metavar="TARGET")]
Strategy = Literal["graceful", "immediate", "rolling", "canary"]
SwitchId = Annotated[str, typer.Argument(help="Id of the switch, as `turnout history` shows it.", metavar="ID")]


class _Globals:
    """Options before the command; the same option after the command wins."""

    url: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


@app.callback()
def _root(
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: Annotated[
        Path | None,
        typer.Option("--ca-file", envvar="TURNOUT_CA_FILE", help="CA that vouches for the control port (https://)."),
    ] = None,
    cert_file: Annotated[
        Path | None,
        typer.Option("--cert-file", envvar="TURNOUT_CERT_FILE", help="Certificate to show to the control port."),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", envvar="TURNOUT_KEY_FILE", help="Its private key, if in another file.")
    ] = None,
) -> None:
    _Globals.url = url
    _Globals.token_file = token_file
    _Globals.ca_file, _Globals.cert_file, _Globals.key_file = ca_file, cert_file, key_file


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `turnout`; `arguments` are those of the process by default. Ends with SystemExit."""
    try:
        app(arguments)
    except ClientError as error:
        _fail(error.text, error.remedy)
    except BrokenPipeError:  # `turnout sessions | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(REFUSED)
    raise AssertionError("typer ends with SystemExit")


# --- around a command ---------------------------------------------------------------------------------------------


def _fail(text: str, remedy: str = "", *, code: int = REFUSED) -> NoReturn:
    """Say why on stderr, and leave."""
    sys.stderr.write(f"turnout: {text}{f'; {remedy}' if remedy else ''}\n")
    sys.exit(code)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _where(url: str | None, token_file: Path | None) -> tuple[str, str | None]:
    """Address and token of the control port that is meant."""
    url = url or _Globals.url or os.environ.get("TURNOUT_URL") or DEFAULT_URL
    token_file = token_file or _Globals.token_file
    token = os.environ.get("TURNOUT_TOKEN") or None
    if token_file is not None:
        try:
            token = token_file.read_text().partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            _fail(f"--token-file {token_file} cannot be read: {getattr(error, 'strerror', error)}", code=WRONG_USE)
    return url, token


def _tls() -> ssl.SSLContext | None:
    """What the options about certificates ask for; None: the system's CAs, and no certificate."""
    if _Globals.ca_file is None and _Globals.cert_file is None:
        return None
    import ssl

    try:
        context = ssl.create_default_context(cafile=_Globals.ca_file)
        if _Globals.cert_file is not None:
            context.load_cert_chain(_Globals.cert_file, _Globals.key_file, password="")
    except (OSError, ValueError) as error:
        _fail(f"the files of --ca-file, --cert-file or --key-file cannot be used: {error}", code=WRONG_USE)
    return context


def _client(url: str | None, token_file: Path | None) -> ControlClient:
    address, token = _where(url, token_file)
    try:
        return ControlClient(address, token=token, tls=_tls())
    except ValueError as error:
        _fail(str(error), code=WRONG_USE)


def _service(client: ControlClient, named: str | None) -> str:
    """The service that is meant: the one named, or the only one."""
    if named is not None:
        return named
    names = [service["view"]["name"] for service in client.get("/v1/status")["services"]]
    if len(names) != 1:
        _fail(f"there are several services ({', '.join(names)}); name one with --service", code=WRONG_USE)
    return str(names[0])


def _segment(name: str) -> str:
    """A name as part of a path."""
    from urllib.parse import quote

    return quote(name, safe="")


def _show(answer: Any, as_json: bool, show: Callable[..., None], *args: Any, **options: Any) -> None:
    """`answer` as JSON, or shown for people by a function of proxy.cli.show."""
    if as_json:
        _print_json(answer)
        return
    from proxy.cli.show import console

    show(console(), answer, *args, **options)


# --- here, without a running Turnout ------------------------------------------------------------------------------

app.command()(demo)


@app.command()
def serve(config: ConfigPath) -> None:
    """Run Turnout until SIGTERM. SIGHUP reads the config again."""
    from proxy.serving import serve as run

    raise typer.Exit(run(config))


@app.command()
def check(config: ConfigPath, as_json: AsJson = False) -> None:
    """Check the config file, and reach every engine that it names. Shows version and role, and what the admin account may not
    do."""
    import asyncio

    from proxy.cli.check import reach_all
    from proxy.cli.show import show_reached
    from proxy.serving import read

    loaded = read(config)
    rows = asyncio.run(reach_all(loaded))
    is_good = all(not row["problems"] for row in rows)
    _show({"is_good": is_good, "engines": rows} if as_json else rows, as_json, show_reached)
    if not is_good:
        failed = [f"{row['service']}.{row['engine']}" for row in rows if row["problems"]]
        _fail(f"{config}: not fit for a switch: {', '.join(failed)}")
    if not as_json:
        sys.stdout.write(f"{config}: good\n")


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    if as_json:
        _print_json({"version": VERSION})
    else:
        sys.stdout.write(f"turnout {VERSION}\n")


# --- looking at a running Turnout ---------------------------------------------------------------------------------


@app.command()
def status(url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Services, who is active, the switch that runs."""
    from proxy.cli.show import show_status

    _show(_client(url, token_file).get("/v1/status"), as_json, show_status)


@app.command()
def engines(service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Every engine as the last probe saw it."""
    from proxy.cli.show import show_engines

    rows = _client(url, token_file).get("/v1/engines", service=service)
    _show(rows, as_json, show_engines, with_service=True)


@app.command()
def sessions(service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Every client connection, and what it would take to move it."""
    from proxy.cli.show import show_sessions

    _show(_client(url, token_file).pages("/v1/sessions", service=service), as_json, show_sessions)


@app.command()
def history(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000, help="Most lines.")] = 20,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """The switches so far, newest first."""
    from proxy.cli.show import show_history

    _show(_client(url, token_file).get("/v1/switches", limit=limit), as_json, show_history)


@app.command()
def report(switch_id: SwitchId, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """The evidence report of a switch that has ended."""
    from proxy.cli.show import show_report

    _show(_client(url, token_file).get(f"/v1/switches/{_segment(switch_id)}/report"), as_json, show_report)


# --- switching ----------------------------------------------------------------------------------------------------


@app.command()
def ready(
    target: Target, service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """The checks of a switch, with what to do about those that fail. Changes nothing."""
    from proxy.cli.show import show_readiness

    client = _client(url, token_file)
    readiness = client.get(f"/v1/services/{_segment(_service(client, service))}/ready/{_segment(target)}")
    _show(readiness, as_json, show_readiness)
    _exit_unless_ready(readiness)


def _exit_unless_ready(readiness: dict[str, Any]) -> None:
    if readiness["is_ready"]:
        return
    for one in readiness["checks"]:
        if one["verdict"] == "fail":
            sys.stderr.write(f"turnout: {one['name']}: {one['found']}; {one['remedy']}\n")
    sys.exit(REFUSED)


@app.command()
def switch(
    target: Target,
    service: Service = None,
    strategy: Annotated[
        Strategy,
        typer.Option("--strategy", help="`immediate`: no drain; `rolling`: in batches; `canary`: a share first."),
    ] = "graceful",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, metavar="N", help="Rolling: sessions that move at a time.")
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option("--interval", min=0, max=3_600, metavar="S", help="Rolling: seconds between two batches."),
    ] = None,
    traffic_percentage: Annotated[
        float | None,
        typer.Option("--traffic-percentage", min=0.01, max=99, metavar="P", help="Canary: share that tries TARGET."),
    ] = None,
    validation_duration: Annotated[
        float | None,
        typer.Option(
            "--validation-duration", min=1, max=86_400, metavar="S", help="Canary: seconds of the comparison."
        ),
    ] = None,
    at: Annotated[
        str, typer.Option("--at", metavar="TIME", help="Begin then: 2030-01-31T02:00+01:00, with its zone.")
    ] = "",
    in_seconds: Annotated[
        float | None, typer.Option("--in", min=0, metavar="S", help="Begin so many seconds from now.")
    ] = None,
    queue: Annotated[
        bool | None,
        typer.Option("--queue/--no-queue", help="Wait for the end of another switch of the service, or be refused."),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            "--drain-timeout", min=0, max=3_600, metavar="S", help="Seconds that open transactions may go on."
        ),
    ] = None,
    max_pending: Annotated[
        int | None,
        typer.Option(
            "--max-pending-transactions", min=0, metavar="N", help="Do not begin with more open than that; 0: no limit."
        ),
    ] = None,
    transaction_abort: Annotated[
        bool,
        typer.Option(
            "--force-transaction-abort/--no-force-transaction-abort",
            help="Of an immediate switch: end open transactions, or do it at once or not at all.",
        ),
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although a check failed, unless it keeps data safe.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only run the checks.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Kept in the record.")] = "",
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Move a service to TARGET, and wait until it is done."""
    from proxy.cli import show

    client = _client(url, token_file)
    name = _service(client, service)
    asked = {
        "target_engine": target,
        "strategy": strategy,
        "drain_timeout_seconds": drain_timeout,
        "max_pending_transactions": max_pending,
        "force_transaction_abort": transaction_abort,
        "batch_size": batch_size,
        "interval_seconds": interval,
        "traffic_percentage": traffic_percentage,
        "validation_duration_seconds": validation_duration,
        "at": at,
        "in_seconds": in_seconds,
        "when_busy": None if queue is None else "queue" if queue else "refuse",
        "force": force,
        "dry_run": dry_run,
        "reason": reason,
    }
    try:
        begun = client.post(f"/v1/services/{_segment(name)}/switch", asked)
    except ClientError as error:
        _refused(error, as_json)
    if dry_run:
        _show(begun, as_json, show.show_readiness)
        _exit_unless_ready(begun)
        return
    _see_through(client, begun, as_json)


def _see_through(client: ControlClient, begun: dict[str, Any], as_json: bool) -> None:
    """Wait for the end of a switch, show it, and fail if it did not complete. One that waits for its time is only shown."""
    from proxy.cli import show

    if begun["phase"] == "pending" and (begun["due_at"] is not None or begun["is_queued"]):
        _show(begun, as_json, show.show_waiting)
        return
    switch_id = begun["id"]
    try:
        ended = _follow(client, switch_id, None if as_json else show.console())
    except KeyboardInterrupt:
        _fail(f"the switch goes on; `turnout cancel {switch_id}` undoes it, as long as it may be undone")
    if as_json:
        _print_json(ended)
    else:
        out = show.console()
        show.show_outcome(out, ended)
        if ended["phase"] == "completed":
            show.show_figures(out, ended["figures"])
        out.print(f"more: turnout report {ended['id']}")
    if ended["phase"] != "completed":
        _fail(f"switch {ended['id']} {ended['phase'].replace('_', ' ')}: {ended['error']}", ended["remedy"])


def _refused(error: ClientError, as_json: bool) -> NoReturn:
    """The switch did not begin: which checks failed, and what to do."""
    problem = error.problem or {}
    if as_json and problem:
        _print_json(problem)
    failed = [one for one in problem.get("checks", []) if one["verdict"] == "fail"]
    for one in failed:
        sys.stderr.write(f"turnout: refused by check {one['name']}: {one['found']}; {one['remedy']}\n")
    if failed:
        sys.exit(REFUSED)
    if error.status == 400:
        _fail(error.text, error.remedy, code=WRONG_USE)
    _fail(error.text, error.remedy)


def _follow(client: ControlClient, switch_id: str, out: Any) -> dict[str, Any]:
    """Wait for the end of a switch; on `out`, if it is a console, a line for each phase as it is entered."""
    from proxy.cli.show import ENDED, show_phase

    seen: set[str] = set()
    answered, is_alone = time.monotonic(), False
    with out.status(f"switch {switch_id}") if out is not None else nullcontext():
        while True:
            try:
                record: dict[str, Any] = client.get(f"/v1/switches/{_segment(switch_id)}")
                answered = time.monotonic()
            except ClientError as error:
                # The supervisor may be restarting: it finishes or undoes the switch when it is back.
                if error.status:
                    raise
                if time.monotonic() - answered > GONE_S_MAX:
                    remedy = "a supervisor that starts finishes or undoes the switch: look at it with `turnout history`"
                    raise ClientError(f"switch {switch_id}: {error.text}", remedy) from error
                if out is not None and not is_alone:
                    out.print(f"no answer; waiting up to {GONE_S_MAX:g} s for the supervisor to come back")
                is_alone = True
                time.sleep(POLL_S)
                continue
            is_alone = False
            if out is not None:
                for phase, at_us in sorted(record["stamps"].items(), key=lambda stamp: stamp[1]):
                    if phase not in seen:
                        seen.add(phase)
                        show_phase(out, phase, at_us)
            if record["phase"] in ENDED:
                return record
            time.sleep(POLL_S)


@app.command()
def datacheck(
    target: Annotated[str, typer.Argument(help="Engine to compare the active one with.", metavar="[TARGET]")] = "",
    service: Service = None,
    tables: Annotated[
        str, typer.Option("--tables", metavar="NAMES", help="Only these, with commas: schema.table or database.table.")
    ] = "",
    chunk_rows: Annotated[
        int | None, typer.Option("--chunk-rows", min=10, metavar="N", help="Rows of one checksum; 5000.")
    ] = None,
    rows_per_second: Annotated[
        float | None, typer.Option("--rows-per-second", min=0, metavar="N", help="Most rows read in a second.")
    ] = None,
    resume: Annotated[
        str, typer.Option("--resume", metavar="ID", help="Go on with one that was cancelled or has failed.")
    ] = "",
    stop: Annotated[str, typer.Option("--cancel", metavar="ID", help="End one that runs.")] = "",
    history: Annotated[bool, typer.Option("--history", help="Show those there were.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the end, and show how far it has come.")
    ] = True,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare the rows of two engines while clients work. Those of the active one with those of TARGET; changes nothing."""
    from proxy.cli import show

    client = _client(url, token_file)
    if history:
        _show(client.get("/v1/datachecks"), as_json, show.show_datachecks)
        return
    if bool(target) + bool(resume) + bool(stop) != 1:
        raise typer.BadParameter("give an engine to compare with, or --resume, or --cancel, or --history")
    if stop:
        _show(client.post(f"/v1/datachecks/{_segment(stop)}/cancel"), as_json, show.show_datacheck)
        return
    if resume:
        check = client.post(f"/v1/datachecks/{_segment(resume)}/resume")
    else:
        body: dict[str, Any] = {"target_engine": target, "tables": [one for one in tables.split(",") if one]}
        body |= {"chunk_rows": chunk_rows} if chunk_rows is not None else {}
        body |= {"rows_per_second": rows_per_second} if rows_per_second is not None else {}
        check = client.post(f"/v1/services/{_segment(_service(client, service))}/datacheck", body)
    with nullcontext() if as_json else show.console().status(show.progress(check)) as line:
        while wait and check["state"] == "running":
            time.sleep(POLL_S)
            check = client.get(f"/v1/datachecks/{_segment(check['id'])}")
            if line is not None:
                line.update(show.progress(check))
    _show(check, as_json, show.show_datacheck)
    if check["state"] not in ("running", "equal"):
        _fail(f"data check {check['id']}: {check['state']}{': ' + check['error'] if check['error'] else ''}")


@app.command()
def failover(
    order: Annotated[
        Literal["on", "off", "start"],
        typer.Argument(help="`on` or `off`: by itself or not; a failover that failed switches it off. `start`: now."),
    ],
    target: Annotated[
        str | None, typer.Argument(help="With `start`: who takes over; else the one that has most.")
    ] = None,
    force: Annotated[
        bool, typer.Option(help="With `start`: one that may lack more than lag_tolerance_ms allows.")
    ] = False,
    reason: Annotated[str, typer.Option(help="With `start`: kept in the report.")] = "",
    service: Service = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Switch the automatic failover on or off, or order one. An order is for an active engine that is gone."""
    from proxy.cli.show import show_failover

    if order != "start" and (target is not None or force or reason):
        _fail(f"nothing else belongs to `turnout failover {order}`", code=WRONG_USE)
    client = _client(url, token_file)
    path = f"/v1/services/{_segment(_service(client, service))}/failover"
    if order == "start":
        begun = client.post(f"{path}/start", {"target_engine": target, "force": force, "reason": reason})
        _see_through(client, begun, as_json)
        return
    view = client.post(path, {"automatic": order == "on"})
    _show(view, as_json, show_failover)
    if order == "on" and not view["is_automatic"]:
        _fail(f"no engine takes over by itself: {view['why_not']}", "change the config")


@app.command()
def cancel(switch_id: SwitchId, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Undo a switch that may be undone, or drop one that waits."""
    from proxy.cli.show import show_outcome

    client = _client(url, token_file)
    client.post(f"/v1/switches/{_segment(switch_id)}/cancel")
    ended = _follow(client, switch_id, None)
    _show(ended, as_json, show_outcome)
    if ended["phase"] not in ("aborted", "rolled_back"):
        _fail(f"switch {switch_id} {ended['phase']}: it could not be undone", ended["remedy"])


# The commands that change settings, engines and sessions and those for policies stand in modules of their own, and use what stands above.
from proxy.cli import admin, alert, database, policy  # noqa: E402

admin.register(app)
database.register(app)
policy.register(app)
alert.register(app)
