"""Comparing what two engines have."""

from __future__ import annotations

from typing import Final

from litestar import get, post
from litestar.params import JSONBody

from proxy.control.rest.bodies import DataCheckRequest
from proxy.control.rest.common import Change, CheckId, Door, ServiceName, Who
from proxy.control.rest.problems import CHANGE, OR_UNKNOWN, PROBLEMS
from proxy.switch.datacheck import DataCheck


@get("/v1/datachecks", tags=["data"], responses=PROBLEMS)
async def datachecks(door: Door, who: Who) -> list[DataCheck]:
    """Comparisons of what two engines have, newest first."""
    return door.data_checks(who)


@get("/v1/datachecks/{check_id:str}", tags=["data"], responses=OR_UNKNOWN)
async def datacheck(door: Door, who: Who, check_id: CheckId) -> DataCheck:
    """One comparison, as far as it has come."""
    return door.data_check(who, check_id)


@post(
    "/v1/services/{service:str}/datacheck",
    tags=["data"],
    status_code=202,
    responses=CHANGE,
    operation_class=Change,
)
async def start_datacheck(door: Door, who: Who, service: ServiceName, data: JSONBody[DataCheckRequest]) -> DataCheck:
    """Compare the rows of the active engine with those of another one, while clients work. Needs the role operator."""
    check = DataCheck(
        id="",
        service=service,
        source="",
        target=data.target_engine,
        chunk_rows=data.chunk_rows,
        rows_per_second=data.rows_per_second,
        only=data.tables,
    )
    return door.start_data_check(who, check)


@post(
    "/v1/datachecks/{check_id:str}/resume",
    tags=["data"],
    status_code=202,
    responses=CHANGE,
    operation_class=Change,
)
async def resume_datacheck(door: Door, who: Who, check_id: CheckId) -> DataCheck:
    """Go on with a comparison that was cancelled or has failed, where it stopped. Needs the role operator."""
    return door.resume_data_check(who, check_id)


@post(
    "/v1/datachecks/{check_id:str}/cancel",
    tags=["data"],
    status_code=202,
    responses=CHANGE,
    operation_class=Change,
)
async def cancel_datacheck(door: Door, who: Who, check_id: CheckId) -> DataCheck:
    """End a comparison. Needs the role operator."""
    return await door.cancel_data_check(who, check_id)


HANDLERS: Final = [datachecks, datacheck, start_datacheck, resume_datacheck, cancel_datacheck]
