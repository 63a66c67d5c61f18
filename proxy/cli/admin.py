"""Commands for whoever runs a Turnout: tokens, audit log, events, pools, engines, sessions, settings."""

from __future__ import annotations

import os
import secrets
import sys
from typing import Annotated, Final, Literal

import typer

from proxy.cli import (
    WRONG_USE,
    AsJson,
    Service,
    TokenFile,
    Url,
    _client,
    _fail,
    _print_json,
    _segment,
    _service,
    _show,
    _tls,
    _where,
)

TOKEN_BYTES: Final = 32
"""Of randomness in a token: 43 characters."""

DUMB: Final = ("", "dumb", "unknown")
"""What TERM says of terminals that only print."""

Engine = Annotated[str, typer.Argument(help="Name of the engine.", metavar="ENGINE")]


def register(app: typer.Typer) -> None:
    """Put the commands of this module under `turnout`."""
    for command in (token, mcp, top, pools, audit, events, end, reload):
        app.command()(command)
    app.command(name="log-level")(log_level)
    engine = typer.Typer(help="Add and remove engines of a running Turnout.", no_args_is_help=True)
    engine.command(name="add")(add_engine)
    engine.command(name="remove")(remove_engine)
    app.add_typer(engine, name="engine")


def token(as_json: AsJson = False) -> None:
    """Make a token for the control port. The hash goes into the config, the token to whoever shall use it."""
    from proxy.config import hash_token

    made = secrets.token_urlsafe(TOKEN_BYTES)
    if as_json:
        _print_json({"token": made, "hash": hash_token(made)})
    else:
        sys.stdout.write(f"token  {made}\nhash   {hash_token(made)}\n")


def mcp(url: Url = None, token_file: TokenFile = None) -> None:
    """Speak MCP over standard input and output. For an agent that starts its servers itself."""
    import asyncio

    _client(url, token_file).get("/v1/status")  # says in one line what is wrong, if nobody answers or the token is bad
    from proxy.control.mcp.stdio import serve_stdio

    address, shown = _where(url, token_file)
    asyncio.run(serve_stdio(address, shown, _tls()))


def top(url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Engines, pools, sessions and the running switch, live. With --json one look. Keys: q, s (sort), p (pause), arrows, tab."""
    if not as_json and not (sys.stdin.isatty() and sys.stdout.isatty()):
        _fail("`turnout top` needs a terminal", "--json prints one look", code=WRONG_USE)
    if not as_json and os.environ.get("TERM", "dumb") in DUMB:
        _fail(
            "`turnout top` needs a terminal that can move its cursor; TERM says that this one cannot",
            "--json prints one look",
            code=WRONG_USE,
        )
    client = _client(url, token_file)
    client.get("/v1/status")  # says in one line what is wrong, if nobody answers or the token is bad
    from proxy.cli.top import Top, take

    if as_json:
        _print_json(take(client))
    else:
        Top(lambda: take(client)).run()


def pools(service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Backends of each engine, database and user. Those of all workers together."""
    from proxy.cli.show import show_pools

    _show(_client(url, token_file).get("/v1/pools", service=service), as_json, show_pools)


def audit(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000, help="Most lines.")] = 50,
    action: Annotated[str | None, typer.Option("--action", help="Only switch, cancel, enter, …")] = None,
    outcome: Annotated[str | None, typer.Option("--outcome", help="Only done, refused or failed.")] = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Who did what through the control port, and who was refused. Newest first."""
    from proxy.cli.show import show_audit

    entries = _client(url, token_file).get("/v1/audit", limit=limit, action=action, outcome=outcome)
    _show(entries, as_json, show_audit)


def events(service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """What happens, as it happens, until Ctrl-C. With --json one object a line."""
    from proxy.cli.show import console, show_event

    out = console()
    try:
        for event in _client(url, token_file).events(service=service):
            if as_json:
                import json

                sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
                sys.stdout.flush()
            else:
                show_event(out, event)
    except KeyboardInterrupt:
        return


def end(
    session: Annotated[int, typer.Argument(help="Number of the session, as `turnout sessions` shows it.")],
    reason: Annotated[str, typer.Option("--reason", help="Told to the client.")] = "",
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """End one client's session; its transaction is rolled back."""
    ended = _client(url, token_file).delete(f"/v1/sessions/{session}", reason=reason or None)
    if as_json:
        _print_json(ended)
    else:
        sys.stdout.write(f"ended: {ended['user']}@{ended['database']} from {ended['client']}\n")


def reload(url: Url = None, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Have the running Turnout read its config file again."""
    from proxy.cli.show import show_reloaded

    _show(_client(url, token_file).post("/v1/config/reload"), as_json, show_reloaded)


def log_level(
    level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, typer.Argument(help="From this level up; none: show it.")
    ] = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show or set what a running Turnout logs. Until a reload or a restart."""
    client = _client(url, token_file)
    setting = client.get("/v1/log") if level is None else client.put("/v1/log", {"level": level})
    if as_json:
        _print_json(setting)
    else:
        sys.stdout.write(f"{setting['level']}\n")


def add_engine(
    engine: Engine,
    address: Annotated[str, typer.Argument(help="host:port of the server.", metavar="ADDRESS")],
    service: Service = None,
    role: Annotated[Literal["primary", "standby", "secondary"], typer.Option("--role", help="What it is.")] = "standby",
    sslmode: Annotated[str, typer.Option("--sslmode", help="TLS with it; see server_tls_sslmode.")] = "prefer",
    ca_file: Annotated[str, typer.Option("--ca-file", help="CA that vouches for it; on Turnout's machine.")] = "",
    url: Url = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Add an engine to a service; kept over restarts. Nothing is switched."""
    from proxy.cli.show import show_engines

    client = _client(url, token_file)
    path = f"/v1/services/{_segment(_service(client, service))}/engines/{_segment(engine)}"
    spec = {"address": address, "role": role, "server_tls_sslmode": sslmode, "server_tls_ca_file": ca_file}
    row = client.put(path, spec)
    _show(row if as_json else [row], as_json, show_engines, with_service=True)


def remove_engine(
    engine: Engine, service: Service = None, url: Url = None, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Take an engine that does not serve from its service. Kept over restarts; the server itself is left alone."""
    client = _client(url, token_file)
    name = _service(client, service)
    client.delete(f"/v1/services/{_segment(name)}/engines/{_segment(engine)}")
    if as_json:
        _print_json({"service": name, "removed": engine})
    else:
        sys.stdout.write(f"removed: {engine} from {name}\n")
