"""Asks both engines and the workers what a readiness report needs to know. The judging is `readiness`'s."""

from __future__ import annotations

import asyncio

from proxy import ipc
from proxy.engines.engine import Engine
from proxy.errors import EngineError
from proxy.switch.readiness import Findings

PROBE_TIMEOUT_S = 3.0


async def inquire(
    service: str,
    source: Engine,
    target: Engine,
    *,
    figures: list[ipc.WorkerFigures],
    sessions: list[ipc.Session],
    workers_wanted: int,
    moves_data: bool = True,
) -> Findings:
    """Everything `readiness.judge` wants to know; less where source and target are to be one server. Changes nothing; engines that are down are a finding, not an error.

    The engines' switch connections are used: not while a switch runs on them.
    """
    source_state, target_state = await asyncio.gather(source.probe(PROBE_TIMEOUT_S), target.probe(PROBE_TIMEOUT_S))
    findings = Findings(
        source=source_state,
        target=target_state,
        source_address=source.address,
        workers=len(figures),
        workers_wanted=workers_wanted,
    )
    own = [one for worker in figures for one in worker.services if one.service == service]
    findings.backends = sum(pool.idle + pool.in_use for one in own for pool in one.pools if pool.engine == source.name)
    for one in own:
        for pin, count in one.pinned.items():
            findings.pinned[pin] = findings.pinned.get(pin, 0) + count
    if source_state.is_reachable and target_state.is_reachable:
        questions = [_ask_target(findings, target)]
        if moves_data:
            questions.append(_ask_source(findings, source, own, sessions))
        troubles = await asyncio.gather(*questions)
        findings.unanswered = "; ".join(filter(None, troubles))
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


async def _ask_target(findings: Findings, target: Engine) -> str:
    try:
        findings.target_rights = await target.permissions()
        findings.target_capacity = await target.capacity()
    except EngineError as error:
        return f"{target.name}: {error}"
    return ""
