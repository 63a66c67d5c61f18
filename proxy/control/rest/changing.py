"""Changing what runs: engines, sessions, settings."""

from __future__ import annotations

from typing import Annotated, Final

from litestar import delete, post, put
from litestar.params import JSONBody, QueryParameter

from proxy import ipc
from proxy.control.rest.bodies import LogSetting
from proxy.control.rest.common import Change, Door, EngineName, ServiceName, SessionId, Who
from proxy.control.rest.problems import CHANGE
from proxy.control.views import EngineRow, EngineSpec, Reloaded


@put(
    "/v1/services/{service:str}/engines/{engine:str}",
    tags=["changing"],
    status_code=201,
    responses=CHANGE,
    operation_class=Change,
)
async def add_engine(
    door: Door, who: Who, service: ServiceName, engine: EngineName, data: JSONBody[EngineSpec]
) -> EngineRow:
    """Add an engine to a service; kept over restarts. Nothing is switched. Needs the role admin."""
    return door.add_engine(who, service, engine, data)


@delete(
    "/v1/services/{service:str}/engines/{engine:str}",
    tags=["changing"],
    responses=CHANGE,
    operation_class=Change,
)
async def remove_engine(door: Door, who: Who, service: ServiceName, engine: EngineName) -> None:
    """Take an engine that does not serve from its service; kept over restarts. Needs the role admin."""
    await door.remove_engine(who, service, engine)


@delete("/v1/sessions/{session_id:int}", tags=["changing"], status_code=200, responses=CHANGE, operation_class=Change)
async def end_session(
    door: Door,
    who: Who,
    session_id: SessionId,
    reason: Annotated[str, QueryParameter(max_length=200, description="Told to the client.")] = "",
) -> ipc.Session:
    """End one client's session; its transaction is rolled back. Answers the session as it was. Needs the role admin."""
    return await door.end_session(who, session_id, reason)


@post("/v1/config/reload", tags=["changing"], status_code=200, responses=CHANGE, operation_class=Change)
async def reload(door: Door, who: Who) -> Reloaded:
    """Read the config file again, as SIGHUP does; engines come and go with it. A file that cannot be applied is refused as a
    whole. Needs the role admin."""
    return door.reload(who)


@put("/v1/log", tags=["changing"], responses=CHANGE, operation_class=Change)
async def set_log(door: Door, who: Who, data: JSONBody[LogSetting]) -> LogSetting:
    """Log from this level up, until a reload or a restart says otherwise. Needs the role admin."""
    door.set_log_level(who, data.level)
    return data


HANDLERS: Final = [add_engine, remove_engine, end_session, reload, set_log]
