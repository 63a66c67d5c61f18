"""KILL: which connection a client means, and the proxy's own KILL at an engine.

Clients know the id of the greeting, which is the proxy's own (`wire.OWN_ID`): the same through every move. A client may as
well have learned a server's own id (from information_schema.processlist, see `connection_ids`).
"""

from __future__ import annotations

import re
from typing import Final

from protocols.mysql import constants as c
from protocols.mysql.exchange import Exchange, Question
from protocols.mysql.messages import command
from protocols.wire import BackendRefused, KillWanted

_GAP: Final = rb"(?>\s|/\*\*/|/\*[^!M].*?\*/|--\s[^\n]*\n|#[^\n]*\n)"
SPACE: Final = _GAP + rb"*+"
"""What may stand between two words: white space, and comments that are no more than that. Possessive, and each comment atomic:
what is read once is not read otherwise, or a row of comments would have as many readings as it has subsets."""
SPACES: Final = _GAP + rb"++"
"""The same where it has to."""

_KILL: Final = re.compile(
    rb"^" + SPACE + rb"KILL" + SPACES + rb"(?:(?:HARD|SOFT)" + SPACES + rb")?(?:(CONNECTION|QUERY)" + SPACES
    + rb")?(\d{1,10})" + SPACE + rb";?" + SPACE + rb"$",
    re.IGNORECASE | re.DOTALL,
)  # fmt: skip

KILL_TEXT_BYTES_MAX: Final = 1_024
"""No KILL that is read is longer."""


def parse_kill(text: bytes | None) -> KillWanted | None:
    """A KILL that names a connection by a number. All else (KILL USER, KILL QUERY ID, several statements) is the
    server's alone."""
    if text is None or len(text) > KILL_TEXT_BYTES_MAX:
        return None
    found = _KILL.match(text)
    if found is None or int(found[2]) > 0xFFFF_FFFF:
        return None
    return KillWanted(int(found[2]), is_query=(found[1] or b"").upper() == b"QUERY")


class KillExchange(Exchange):
    """The proxy's own KILL, on a connection of the user that asked for it."""

    def __init__(self, connection_id: int, *, is_query: bool) -> None:
        text = f"KILL {'QUERY' if is_query else 'CONNECTION'} {connection_id}"
        super().__init__([Question(command(c.COM_QUERY, text.encode()), "KILL")], capabilities=0)

    def refusal(self) -> BackendRefused | None:
        """Once complete: what the server had against it."""
        error = self.answers[0].error
        return None if error is None else BackendRefused(str(error.code), error.sqlstate, error.message)
