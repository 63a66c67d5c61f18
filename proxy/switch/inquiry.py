"""Asks both engines and the workers what a readiness report needs to know. The judging is `readiness`'s."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final

import msgspec

from proxy import ipc
from proxy.engines.engine import Engine, Role
from proxy.engines.postgres_logical import lsn_number
from proxy.errors import EngineError
from proxy.switch import parity
from proxy.switch.findings import Comparison, Findings, Kind, Reason

PROBE_TIMEOUT_S = 3.0
COMPARE_TIMEOUT_S: Final = 4.0
"""For the inventory of each server, and again for the definitions that differ. With it the whole report stays below
what a caller of the control port waits."""


async def inquire(
    service: str,
    source: Engine,
    target: Engine,
    *,
    figures: list[ipc.WorkerFigures],
    sessions: list[ipc.Session],
    workers_wanted: int,
    kind: Kind = "stream",
    kept_equal_by: Reason = "one_server",
    are_both_to_serve: bool = False,
    databases: Collection[str] = (),
    known: Comparison | None = None,
    others: Collection[Engine] = (),
) -> Findings:
    """Everything `readiness.judge` wants to know; less where source and target are to be one server. Changes nothing;
    engines that are down are a finding, not an error. `known` is a comparison of a moment ago, which is not made again.

    The engines' switch connections are used: not while a switch runs on them.
    """
    source_state, target_state, *more = await asyncio.gather(
        *(engine.probe(PROBE_TIMEOUT_S) for engine in (source, target, *others))
    )
    if kind == "logical" and source_state.position is not None and target_state.position is not None:
        # Both are places in the source's WAL; a subscriber alone cannot tell how far that goes.
        behind = lsn_number(source_state.position.text) - lsn_number(target_state.position.text)
        target_state = msgspec.structs.replace(target_state, lag_bytes=max(0, behind))
    findings = Findings(
        kind=kind,
        kept_equal_by=kept_equal_by,
        are_both_to_serve=are_both_to_serve,
        source=source_state,
        target=target_state,
        source_address=source.address,
        workers=len(figures),
        workers_wanted=workers_wanted,
        comparison=known,
        others=[state for state in more if state.role is Role.STANDBY and state.is_replicating],
    )
    own = [one for worker in figures for one in worker.services if one.service == service]
    findings.backends = sum(pool.idle + pool.in_use for one in own for pool in one.pools if pool.engine == source.name)
    for one in own:
        for pin, count in one.pinned.items():
            findings.pinned[pin] = findings.pinned.get(pin, 0) + count
    for session in sessions:
        findings.grades[session.portability] = findings.grades.get(session.portability, 0) + 1
        findings.pending += session.in_transaction
    if source_state.is_reachable and target_state.is_reachable:
        questions = [_ask_target(findings, target), _ask_drain(findings, source, sessions)]
        if kind != "none":
            questions.append(_ask_source(findings, source, own, sessions))
        troubles = await asyncio.gather(*questions)
        findings.unanswered = "; ".join(filter(None, troubles))
        if kind != "none":
            # Afterwards: its connections are no clients that bypass Turnout.
            await _compare(findings, source, target, databases)
    return findings


async def _ask_source(
    findings: Findings, source: Engine, own: list[ipc.ServiceFigures], sessions: list[ipc.Session]
) -> str:
    try:
        findings.source_rights = await source.permissions()
        findings.in_doubt = await source.prepared_in_doubt()
        outside = await source.sessions_outside({one.backend_pid for one in sessions if one.engine == source.name})
    except EngineError as error:
        return f"{source.name}: {error}"
    # Idle backends of the pools are Turnout's too, but only their number is known here, by user and database.
    pooled: dict[tuple[str, str], int] = {}
    for one in own:
        for pool in one.pools:
            if pool.engine == source.name:
                pooled[(pool.user, pool.database)] = pooled.get((pool.user, pool.database), 0) + pool.idle
    for session in outside:
        key = (session.user, session.database)
        if not session.is_writing and pooled.get(key, 0) > 0:
            pooled[key] -= 1
        else:
            findings.outside.append(session)
    return ""


async def _ask_drain(findings: Findings, source: Engine, sessions: list[ipc.Session]) -> str:
    own = {one.backend_pid for one in sessions if one.engine == source.name}
    try:
        findings.transactions = [one for one in await source.transactions() if one.pid in own]
    except EngineError as error:
        return f"{source.name}: {error}"
    return ""


async def _ask_target(findings: Findings, target: Engine) -> str:
    try:
        findings.target_rights = await target.permissions()
        findings.target_capacity = await target.capacity()
    except EngineError as error:
        return f"{target.name}: {error}"
    return ""


async def _compare(findings: Findings, source: Engine, target: Engine, databases: Collection[str]) -> None:
    """Both inventories, and the definitions that are not alike; kept short where `known` is fresh."""
    if findings.comparison is not None:
        findings.comparison_age_s = (time.monotonic_ns() - findings.comparison.asked_ns) / 1e9
        return
    # A physical standby of PostgreSQL has its primary's catalogs, block by block.
    with_schema = findings.kind == "logical" or findings.source.flavour != "postgresql"
    try:
        ours, theirs = await asyncio.gather(
            *(
                engine.inventory(databases, with_schema=with_schema, timeout_s=COMPARE_TIMEOUT_S)
                for engine in (source, target)
            )
        )
        lacking, extra = parity.compare(ours, theirs)
        found = Comparison(source=ours, target=theirs, extra=extra, is_whole=with_schema, asked_ns=time.monotonic_ns())
        explained = [label for label in lacking if label in theirs.objects][: parity.DIFFERENCES_EXPLAINED]
        texts: list[dict[str, list[str]]] = [{}, {}]
        if explained:
            texts = await asyncio.gather(*(engine.explain(explained, COMPARE_TIMEOUT_S) for engine in (source, target)))
        found.lacking = parity.differences(lacking, texts[0], texts[1], theirs)
        found.lacking_more = len(lacking) - len(found.lacking)
        findings.comparison = found
    except EngineError as error:
        findings.not_compared = str(error)
