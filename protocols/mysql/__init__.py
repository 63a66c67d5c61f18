"""The MySQL protocol and its MariaDB flavour. `WIRE` is what the data plane uses of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from protocols.errors import IllegalUse
from protocols.mysql import constants as c
from protocols.mysql.exchange import Exchange
from protocols.mysql.handshake import ChangeUserLogin, MysqlClientLogin, MysqlServerLogin
from protocols.mysql.ledger import MysqlLedger, check, reset
from protocols.mysql.replies import error_packet, quit_packet
from protocols.mysql.tracker import MysqlTracker
from protocols.wire import (
    BackendFacts,
    BackendRefused,
    Credential,
    ErrorReply,
    Ledger,
    Meant,
    ProtocolName,
    Startup,
    Tracker,
    UserInquiry,
    Wire,
)

_ENDS: Final = frozenset({c.ER_SERVER_SHUTDOWN, c.ER_CONNECTION_KILLED, c.ER_SESSION_WAS_KILLED})


class MysqlWire:
    """See `protocols.wire.Wire`."""

    name: ProtocolName = "mysql"
    redresses = False
    resets_all = False
    """A default database cannot be taken away from a connection that was opened without one."""

    def meant_by(self, words: bytes) -> Meant:
        """MariaDB says 1927 to a session that is killed and to each one when it shuts down, MySQL nothing at all; what else
        they say (4031: too long inactive) means the session."""
        return Meant.EITHER if not words or int.from_bytes(words[5:7], "little") in _ENDS else Meant.SESSION

    def client_login(
        self,
        *,
        method: str,
        facts: BackendFacts | None,
        connection_id: int,
        databases: Sequence[str],
        offers_tls: bool = False,
    ) -> MysqlClientLogin:
        return MysqlClientLogin(method=method, facts=facts, connection_id=connection_id, databases=databases)

    def change_user_login(
        self,
        message: bytes,
        *,
        startup: Startup,
        method: str,
        facts: BackendFacts | None,
        connection_id: int,
        databases: Sequence[str],
    ) -> ChangeUserLogin:
        """COM_CHANGE_USER as `MysqlTracker.change_user_wanted` has it, in a session of `startup`."""
        return ChangeUserLogin(
            message,
            startup=startup,
            method=method,
            facts=facts,
            connection_id=connection_id,
            databases=databases,
        )

    def tls_request(self) -> None:
        """MySQL asks for TLS in the login."""

    def server_login(
        self, startup: Startup, password: Credential, *, binding: bytes = b"", oldest: bool = False
    ) -> MysqlServerLogin:
        """MySQL has no keys in place of a password, binds to no channel, and knows one version only."""
        return MysqlServerLogin(startup, password if isinstance(password, str) else None)

    def ledger(self, startup: Startup, *, shares_backends: bool = False) -> MysqlLedger:
        return MysqlLedger(startup)

    def client_startup(
        self, startup: Startup, *, shares_backends: bool, ignored: Sequence[str]
    ) -> Startup | ErrorReply:
        """MySQL's first packet holds no settings."""
        return startup

    def redress(self, worn: Startup, wanted: Startup) -> tuple[Exchange, Callable[[], BackendRefused | None]]:
        raise IllegalUse("MySQL's backends are opened as their sessions need them")

    def tracker(self, ledger: Ledger, *, shares_backends: bool, statements_max: int = 200) -> Tracker:
        assert isinstance(ledger, MysqlLedger)
        return MysqlTracker(ledger, shares_backends=shares_backends)

    def reset(self, startup: Startup, query: str = "") -> Exchange:
        """See `ledger.reset`; `query` is PostgreSQL's."""
        return reset(startup)

    def check(self, startup: Startup, query: str) -> Exchange | None:
        """See `ledger.check`."""
        return check(startup, query)

    def error(self, error: ErrorReply, tracker: Tracker | None) -> bytes:
        return error_packet(error, tracker.next_sequence() if isinstance(tracker, MysqlTracker) else 1)

    inquiry_parameters: tuple[tuple[str, str], ...] = ()

    def user_inquiry(self, query: str, user: str) -> UserInquiry | None:
        raise IllegalUse("a MySQL server tells nobody what it keeps of a password")

    def goodbye(self) -> bytes:
        return quit_packet()

    def cancel_request(self, facts: BackendFacts) -> bytes:
        return b""


WIRE: Wire = MysqlWire()

__all__ = ["WIRE", "MysqlWire"]
