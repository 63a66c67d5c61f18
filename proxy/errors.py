"""What can go wrong in the proxy, each class with the code a client of either protocol is told.

The wire code turns an `ErrorReply` into bytes; this module only decides which one. Expected outcomes (an engine is
down, a client left) are values where they are looked for; they are exceptions only on their way up.
"""

from __future__ import annotations

import os
from typing import Literal

from protocols.wire import BackendRefused, ErrorReply


class ProxyError(Exception):
    """Base. `text` is for people; subclasses add numbers as attributes."""

    sqlstate = "XX000"
    mysql_code = 1105
    mysql_sqlstate = "HY000"

    def __init__(self, text: str, *, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint

    def reply(self, *, is_fatal: bool = True) -> ErrorReply:
        """This error as a client is told of it."""
        return ErrorReply(
            message=self.text,
            sqlstate=self.sqlstate,
            mysql_code=self.mysql_code,
            mysql_sqlstate=self.mysql_sqlstate,
            hint=self.hint,
            is_fatal=is_fatal,
        )


class ConfigError(ProxyError):
    """The config file says something that cannot be. `where` is file, line and key."""

    def __init__(self, where: str, text: str, *, hint: str = "") -> None:
        super().__init__(f"{where}: {text}", hint=hint)
        self.where = where


Failure = Literal["refused", "starting", "told", "silent"]
"""How an engine fails to answer. `refused`: its host says that nobody listens there; `starting`: it says that it starts,
recovers or shuts down; `told`: it says something else, so it is there (a wrong password, too many connections);
`silent`: nothing, or nothing that can be understood."""


class EngineError(ProxyError):
    """An engine did not do what was asked of it."""

    sqlstate = "08006"
    mysql_code = 2013
    failure: Failure = "silent"


def unreachable(error: OSError) -> str:
    """Why nothing could be reached, in the system's words; asyncio's name the address once more."""
    why = error.strerror or str(error)
    return os.strerror(error.errno) if error.errno and why.startswith("Connect call failed") else why


class ConnectFailed(EngineError):
    """An engine cannot be reached, or refuses connections for now. Nothing was sent: a retry is safe."""

    sqlstate = "57P03"
    mysql_code = 2003

    def __init__(self, text: str, *, hint: str = "", failure: Failure = "silent") -> None:
        super().__init__(text, hint=hint)
        self.failure = failure


class AuthRefused(EngineError):
    """An engine refused a login. `code` is its own code; it is passed on to the client."""

    failure = "told"

    sqlstate = "28P01"
    mysql_code = 1045
    mysql_sqlstate = "28000"


class EngineRefused(EngineError):
    """An engine refused a client's backend with an error of its own; code and text are passed on."""

    def __init__(self, engine: str, refused: BackendRefused) -> None:
        super().__init__(refused.message)
        self.engine = engine
        self.sqlstate = refused.sqlstate
        self.mysql_code = int(refused.code) if refused.code.isdigit() else 1105
        self.mysql_sqlstate = refused.sqlstate
        self.is_too_new = refused.is_too_new
        self.is_before_proof = refused.is_before_proof


class EngineLost(EngineError):
    """A connection to an engine ended while it was in use."""

    sqlstate = "08006"
    mysql_code = 2013


class TransactionLost(EngineError):
    """A transaction was open when its backend was lost: it has certainly not been committed, and may be repeated."""

    sqlstate = "40001"
    mysql_code = 1213
    mysql_sqlstate = "40001"


class OutcomeUnknown(EngineError):
    """A backend was lost while it worked on something that may have been committed."""

    sqlstate = "08007"
    mysql_code = 2013


class EngineSilent(EngineLost):
    """The engine did not answer in time; the connection was given up."""


class LoginError(ProxyError):
    """A client's login is refused by the proxy itself."""

    sqlstate = "28P01"
    mysql_code = 1045
    mysql_sqlstate = "28000"


class LoginRejected(LoginError):
    """The rules do not let this client in, whatever it proves."""

    sqlstate = "28000"


class LookupFailed(LoginError):
    """Nobody knows who the client is, because the engine could not be asked."""

    sqlstate = "08006"
    mysql_code = 2013
    mysql_sqlstate = "HY000"


class TlsRequired(LoginError):
    """A client came without TLS to a port that wants it."""

    sqlstate = "28000"
    mysql_code = 3159
    mysql_sqlstate = "HY000"


class UnknownDatabase(LoginError):
    """No service has a database of this name."""

    sqlstate = "3D000"
    mysql_code = 1049
    mysql_sqlstate = "42000"


class TooManyConnections(LoginError):
    """A pool or the whole proxy is full."""

    sqlstate = "53300"
    mysql_code = 1040
    mysql_sqlstate = "08004"


class PauseExpired(ProxyError):
    """An operator has paused the database for longer than a client may wait for a backend."""

    sqlstate = "57P03"
    mysql_code = 1053
    mysql_sqlstate = "08S01"


class NotEntering(LoginError):
    """An operator lets nobody into the database now, or the user has no business at the console."""

    sqlstate = "55000"
    mysql_code = 1049
    mysql_sqlstate = "42000"


class IdleTooLong(ProxyError):
    """A client asked nothing for longer than the config allows."""

    sqlstate = "57P05"
    mysql_code = 4031
    mysql_sqlstate = "HY000"


class IdleInTransaction(ProxyError):
    """A client left its transaction open for longer than the config allows."""

    sqlstate = "25P03"
    mysql_code = 4031
    mysql_sqlstate = "HY000"


class KillRefused(ProxyError):
    """A KILL cannot be done: nobody has that id, or it is another user's."""

    sqlstate = "42501"

    def __init__(self, text: str, mysql_code: int, mysql_sqlstate: str = "HY000") -> None:
        super().__init__(text)
        self.mysql_code = mysql_code
        self.mysql_sqlstate = mysql_sqlstate


class SwitchError(ProxyError):
    """A switch did not go as asked."""

    sqlstate = "57P01"
    mysql_code = 1053
    mysql_sqlstate = "08S01"


class PlanRefused(SwitchError):
    """A switch was refused before it began; the text names the failed check and how to mend it."""


class HoldExpired(SwitchError):
    """A session was held longer than `hold_ms_max`."""


class DrainExpired(SwitchError):
    """Sessions did not reach a boundary before the drain deadline."""


class Aborted(SwitchError):
    """A session was ended, or a switch undone, because of the switch."""


class ControlError(ProxyError):
    """A caller of the control port asked for something that cannot be had. `status` is the HTTP status."""

    status = 400


class NotAllowed(ControlError):
    status = 403


class NotFound(ControlError):
    status = 404


class Conflict(ControlError):
    status = 409
