"""What tools, resources and prompts have in common."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from proxy.control.roles import Caller
from proxy.control.service import ControlService
from proxy.errors import NotFound


def the_service(door: ControlService, who: Caller, named: str | None) -> str:
    """The one that is meant: the one named, or the only one. Raises NotFound."""
    names = [view.name for view in door.services(who)]
    if named is not None or len(names) == 1:
        return named if named is not None else names[0]
    raise NotFound("there are several services", hint=f"say which in `service`: {', '.join(names)}")


def as_json(value: Any) -> str:
    """For an agent to read."""
    return json.dumps(msgspec.to_builtins(value), indent=1, ensure_ascii=False)
