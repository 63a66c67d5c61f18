"""`turnout check`: reach every engine of a config, without a running Turnout."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from proxy.config import Config, ServiceConfig
from proxy.engines import MissingRight, engine_for
from proxy.errors import EngineError


async def reach_all(config: Config) -> list[dict[str, Any]]:
    """One row for each engine: its state, the rights its admin account lacks, and its problems, in a line each."""
    return await asyncio.gather(
        *(_reach(name, service, engine) for name, service in config.service.items() for engine in service.engine)
    )


async def _reach(service_name: str, service: ServiceConfig, name: str) -> dict[str, Any]:
    engine = engine_for(service, name)
    missing: list[MissingRight] = []
    problems: list[str] = []
    try:
        state = await engine.probe(5.0)
        if not state.is_reachable:
            problems.append(state.why)
        else:
            try:
                missing = await engine.permissions()
            except EngineError as error:
                problems.append(error.text)
            problems += [f"the admin account may not {one.right}; to give it: {one.grant}" for one in missing]
            if state.replication_error:
                problems.append(f"replication does not run: {state.replication_error}")
    finally:
        await engine.close()
    return {
        "service": service_name,
        "engine": name,
        "address": service.engine[name].address,
        "state": msgspec.to_builtins(state),
        "missing_rights": msgspec.to_builtins(missing),
        "problems": problems,
    }
