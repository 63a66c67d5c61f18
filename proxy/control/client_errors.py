"""Where the command line looks for a control port, and what it is told when that does not go well. Apart from the client
itself, so that `turnout --help` needs no HTTP."""

from __future__ import annotations

from typing import Any, Final

DEFAULT_URL: Final = "http://127.0.0.1:7432"


class ClientError(Exception):
    """A request did not do what was asked. `text` says why, `remedy` what to do, in one line each."""

    def __init__(self, text: str, remedy: str = "", *, status: int = 0, problem: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.remedy = remedy
        self.status = status
        """HTTP status; 0: there was no answer."""
        self.problem = problem
        """The answer, if it was problem+json."""


class NotRunning(ClientError):
    """Nobody answers at the control port's address. Nothing was sent."""
