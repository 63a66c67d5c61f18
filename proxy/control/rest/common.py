"""What handlers have in common: the door and the caller, names in paths and queries, parts of lists."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import urlencode

from litestar import Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.spec import OpenAPIType, Operation, Parameter, Schema
from litestar.params import PathParameter, QueryParameter, SkipValidation

from proxy.control.answers import KEY_LENGTH_MAX
from proxy.control.roles import Caller
from proxy.control.service import ControlService
from proxy.control.views import DECISIONS_MAX

OFFSET_MAX: Final = 10_000_000


class Change(Operation):
    """An operation that changes something: it takes an idempotency key, which the gate looks at."""

    def __post_init__(self) -> None:
        self.parameters = [
            *(self.parameters or []),
            Parameter(
                name="Idempotency-Key",
                param_in="header",
                description="Done once, however often it is sent with the same key (a UUID, say) within a day: the later "
                "ones get the first one's answer, with `Idempotency-Replayed: true`.",
                required=False,
                schema=Schema(
                    type=OpenAPIType.STRING, min_length=1, max_length=KEY_LENGTH_MAX, pattern="^[!#-~]([ -~]*[!#-~])?$"
                ),
            ),
        ]


ServiceName = Annotated[str, PathParameter(description="Name of a service in the config.")]

EngineName = Annotated[str, PathParameter(description="Name of an engine of the service.")]

SwitchId = Annotated[str, PathParameter(description="Id of a switch, as its start answered it.")]

PolicyName = Annotated[str, PathParameter(description="Name of a policy, of whatever service.")]

ReceiverName = Annotated[str, PathParameter(description="Name of a receiver in the config.")]

SilenceNumber = Annotated[int, PathParameter(description="Number of a silence, as the list has it.", ge=0, le=2**53)]

DecisionLimit = Annotated[int, QueryParameter(ge=1, le=DECISIONS_MAX, description="Most decisions of the answer.")]

SessionId = Annotated[int, PathParameter(description="Number of a session, as the list has it.", ge=0, le=2**48)]

CheckId = Annotated[str, PathParameter(description="Id of a data check, as its start answered it.")]

OneService = Annotated[str | None, QueryParameter(name="service", description="Only of this service.")]

Offset = Annotated[int, QueryParameter(ge=0, le=OFFSET_MAX, description="How many to pass over.")]


def the_door(state: State) -> ControlService:
    """Provided to handlers as `door`."""
    door = state["door"]
    assert isinstance(door, ControlService)
    return door


def the_caller(request: Request[Any, Any, Any]) -> Caller:
    """Provided to handlers as `who`."""
    caller = request.scope["state"]["caller"]
    assert isinstance(caller, Caller), "the gate lets nobody pass without"
    return caller


Door = NamedDependency[SkipValidation[ControlService]]
Who = NamedDependency[SkipValidation[Caller]]


def page_of(
    request: Request[Any, Any, Any], items: Any, *, total: int | None = None, **next_page: int
) -> Response[Any]:
    """A part of a list; `next_page` are the query parameters of what follows, if anything does (RFC 8288)."""
    headers = {} if total is None else {"Total-Count": str(total)}
    if next_page:
        query = {name: value for name, value in request.query_params.items() if name not in next_page}
        follows = urlencode([*query.items(), *next_page.items()])
        headers["Link"] = f'<{request.url.path}?{follows}>; rel="next"'
    return Response(items, headers=headers)
