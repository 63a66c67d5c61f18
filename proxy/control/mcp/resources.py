"""What agents can read without calling a tool: `turnout://…`, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import mcp_types as types

from proxy.control.roles import Caller
from proxy.control.service import ControlService
from proxy.errors import NotFound
from proxy.switch.state import ENDED

MIME_TYPE: Final = "application/json"

REPORT_URI: Final = "turnout://reports/"

REPORTS_LISTED: Final = 20
"""The newest switches whose reports are listed; any other can be read by its id."""

RESOURCES: Final[Mapping[str, tuple[str, str]]] = {
    "turnout://status": ("Status", "Services with active engine and running switch, workers, totals."),
    "turnout://history": ("History", "The newest 50 switches."),
    "turnout://datachecks": (
        "Data checks",
        "Comparisons of the rows of two engines, newest first: what differs, and where.",
    ),
    "turnout://config": ("Config", "The config in force, each value with its origin; secrets are shown as ***."),
}

REPORT_TEMPLATE: Final = types.ResourceTemplate(
    uri_template=REPORT_URI + "{switch_id}",
    name="report",
    title="Report of a switch",
    description="The evidence report of a switch that has ended.",
    mime_type=MIME_TYPE,
)


def listed(door: ControlService, who: Caller) -> list[types.Resource]:
    """`RESOURCES`, and the reports of the newest switches."""
    found = [
        types.Resource(uri=uri, name=uri.rpartition("/")[2], title=title, description=text, mime_type=MIME_TYPE)
        for uri, (title, text) in RESOURCES.items()
    ]
    for record in door.switches(who, REPORTS_LISTED):
        if record.phase in ENDED:
            what = f"{record.service}: {record.source} to {record.target}, {record.phase.value}"
            found.append(types.Resource(uri=REPORT_URI + record.id, name=record.id, title=what, mime_type=MIME_TYPE))
    return found


async def read(door: ControlService, who: Caller, uri: str) -> Any:
    """What a resource holds, as JSON values. Raises NotFound."""
    match uri:
        case "turnout://status":
            return await door.status(who)
        case "turnout://history":
            return door.switches(who, 50)
        case "turnout://datachecks":
            return door.data_checks(who)
        case "turnout://config":
            return door.config(who)
        case _ if uri.startswith(REPORT_URI):
            return door.report(who, uri.removeprefix(REPORT_URI))
        case _:
            raise NotFound(
                f"there is no resource {uri[:200]}", hint=f"there are: {', '.join(RESOURCES)}, {REPORT_URI}ID"
            )
