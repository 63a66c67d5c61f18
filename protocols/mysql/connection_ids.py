"""Answers that name connections by the server's ids: which statements have them.

Clients know the ids that the proxy has told them (`wire.OWN_ID`), and those stay through every move. So what a client finds in
the process list, or is told to be its own connection, has to be such an id, too, or it would be of no use a switch later:
another's connection may have it by then. Only the two plain statements that are asked for this are read; what is computed from
an id (`CONNECTION_ID() + 1`, IS_USED_LOCK) or selected from a server's own tables (information_schema.processlist) is told as the
server tells it, and KILL takes those ids as well.
"""

from __future__ import annotations

import re
from typing import Final

from protocols.mysql.kill import SPACE, SPACES
from protocols.wire import IdsWanted

_LIST: Final = re.compile(
    rb"^" + SPACE + rb"SHOW" + SPACES + rb"(?:FULL" + SPACES + rb")?PROCESSLIST" + SPACE + rb";?" + SPACE + rb"$",
    re.IGNORECASE | re.DOTALL,
)  # fmt: skip
_NAME: Final = rb"(?:[\w$]{1,64}|`[^`]{1,64}`|'[^'\\]{1,64}'|\"[^\"\\]{1,64}\")"
_OWN: Final = re.compile(
    rb"^" + SPACE + rb"SELECT" + SPACES + rb"CONNECTION_ID" + SPACE + rb"\(" + SPACE + rb"\)(?:" + SPACES
    + rb"AS" + SPACES + _NAME + rb")?" + SPACE + rb";?" + SPACE + rb"$",
    re.IGNORECASE | re.DOTALL,
)  # fmt: skip

TEXT_BYTES_MAX: Final = 1_024
"""No statement of these that is read is longer."""


def parse_ids_wanted(text: bytes) -> IdsWanted | None:
    """Whose ids stand in the first column of the answer; None: nobody's, or it cannot be told."""
    if len(text) > TEXT_BYTES_MAX:
        return None
    if _LIST.match(text) is not None:
        return IdsWanted(is_list=True)
    return IdsWanted(is_list=False) if _OWN.match(text) is not None else None
