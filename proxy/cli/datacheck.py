"""`turnout datacheck`: compare the rows of two engines."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from proxy.cli.common import POLL_S, AsJson, Service, TokenFile, Url, client_of, fail, present, segment, the_service


def register(app: typer.Typer) -> None:
    """Put the command of this module under `turnout`."""
    app.command()(datacheck)


def datacheck(
    target: Annotated[str, typer.Argument(help="Engine to compare the active one with.", metavar="TARGET")] = "",
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
    from proxy.cli.show.datachecks import progress, show_datacheck, show_datachecks
    from proxy.cli.show.terminal import console

    client = client_of(url, token_file)
    if history:
        present(client.get("/v1/datachecks"), as_json, show_datachecks)
        return
    if bool(target) + bool(resume) + bool(stop) != 1:
        raise typer.BadParameter("give an engine to compare with, or --resume, or --cancel, or --history")
    if stop:
        present(client.post(f"/v1/datachecks/{segment(stop)}/cancel"), as_json, show_datacheck)
        return
    if resume:
        check = client.post(f"/v1/datachecks/{segment(resume)}/resume")
    else:
        body: dict[str, Any] = {"target_engine": target, "tables": [one for one in tables.split(",") if one]}
        body |= {"chunk_rows": chunk_rows} if chunk_rows is not None else {}
        body |= {"rows_per_second": rows_per_second} if rows_per_second is not None else {}
        check = client.post(f"/v1/services/{segment(the_service(client, service))}/datacheck", body)
    try:
        with nullcontext() if as_json else console().status(progress(check)) as line:
            while wait and check["state"] == "running":
                time.sleep(POLL_S)
                check = client.get(f"/v1/datachecks/{segment(check['id'])}")
                if line is not None:
                    line.update(progress(check))
    except KeyboardInterrupt:
        fail(f"the data check goes on; `turnout datacheck --cancel {check['id']}` ends it")
    present(check, as_json, show_datacheck)
    if check["state"] not in ("running", "equal"):
        fail(f"data check {check['id']}: {check['state']}{': ' + check['error'] if check['error'] else ''}")
