"""Stopping and letting go on: PAUSE, RESUME, RECONNECT, KILL, DISABLE and ENABLE of the console, for programs.

PgBouncer's words and rules (`proxy.control.standstill`), and PostgreSQL services only, as there. What `PAUSE` answers when it is
done is asked for here: a pause is done when no backend is left.
"""

from __future__ import annotations

from typing import Final

from litestar import get, post
from litestar.params import JSONBody

from proxy.control.rest.bodies import DatabaseRequest, DatabasesRequest
from proxy.control.rest.common import Change, Door, Who
from proxy.control.rest.problems import CHANGE, PROBLEMS
from proxy.control.views import StandstillRow


@get("/v1/databases/standstills", tags=["databases"], responses=PROBLEMS)
async def standstills(door: Door, who: Who) -> list[StandstillRow]:
    """What is paused and disabled of each PostgreSQL service, and how many backends a pause still waits for."""
    return await door.standstills(who)


@post("/v1/databases/pause", tags=["databases"], status_code=200, responses=CHANGE, operation_class=Change)
async def pause(door: Door, who: Who, data: JSONBody[DatabasesRequest]) -> list[StandstillRow]:
    """Let nobody have a backend: those that are free are closed now, the others as they are given back. Who needs one waits,
    `query_wait_timeout_s` at most. It is done when `backends_left` is 0. Needs the role operator."""
    door.pause(who, data.database)
    return await door.standstills(who)


@post("/v1/databases/resume", tags=["databases"], status_code=200, responses=CHANGE, operation_class=Change)
async def resume(door: Door, who: Who, data: JSONBody[DatabasesRequest]) -> list[StandstillRow]:
    """Undo a pause or a kill of the same name. Needs the role operator."""
    door.resume(who, data.database)
    return await door.standstills(who)


@post("/v1/databases/reconnect", tags=["databases"], status_code=200, responses=CHANGE, operation_class=Change)
async def reconnect(door: Door, who: Who, data: JSONBody[DatabasesRequest]) -> list[StandstillRow]:
    """Have the backends that are there now closed when they are free; new ones are opened as they are needed. Needs the role
    operator."""
    door.reconnect(who, data.database)
    return await door.standstills(who)


@post("/v1/databases/kill", tags=["databases"], status_code=200, responses=CHANGE, operation_class=Change)
async def kill(door: Door, who: Who, data: JSONBody[DatabasesRequest]) -> list[StandstillRow]:
    """End every session at once, with what it has open, and pause: newcomers wait for a resume. Needs the role admin."""
    door.kill(who, data.database)
    return await door.standstills(who)


@post("/v1/databases/disable", tags=["databases"], status_code=200, responses=CHANGE, operation_class=Change)
async def disable(door: Door, who: Who, data: JSONBody[DatabaseRequest]) -> list[StandstillRow]:
    """Let nobody log in to a database; who is there stays. Needs the role admin."""
    door.disable(who, data.database, is_off=True)
    return await door.standstills(who)


@post("/v1/databases/enable", tags=["databases"], status_code=200, responses=CHANGE, operation_class=Change)
async def enable(door: Door, who: Who, data: JSONBody[DatabaseRequest]) -> list[StandstillRow]:
    """Let clients log in to a database again. Needs the role admin."""
    door.disable(who, data.database, is_off=False)
    return await door.standstills(who)


HANDLERS: Final = [standstills, pause, resume, reconnect, kill, disable, enable]
