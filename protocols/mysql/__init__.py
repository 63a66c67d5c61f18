"""The MySQL protocol and its MariaDB flavour. `WIRE` is what the data plane uses of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from protocols.mysql import constants as c
from protocols.mysql import lookup
from protocols.mysql.exchange import Exchange
from protocols.mysql.handshake import ChangeUserLogin, MysqlClientLogin, MysqlServerLogin
from protocols.mysql.kill import KillExchange
from protocols.mysql.ledger import MysqlLedger, Redress, check, reset
from protocols.mysql.messages import build_err, build_ok
from protocols.mysql.replies import error_packet, quit_packet
from protocols.mysql.tracker import MysqlTracker
from protocols.wire import (
    BackendFacts,
    BackendRefused,
    Credential,
    ErrorReply,
    Ledger,
    Meant,
    PackingName,
    ProtocolName,
    Startup,
    Tracker,
    UserInquiry,
    Wire,
)

_ASKS_FOR_WARNINGS: Final = re.compile(rb"\s*SHOW\s+(?:COUNT\s*\(\s*\*\s*\)\s*)?(?:WARNINGS|ERRORS)\b", re.IGNORECASE)

_ENDS: Final = frozenset({c.ER_SERVER_SHUTDOWN, c.ER_CONNECTION_KILLED, c.ER_SESSION_WAS_KILLED})


class MysqlWire:
    """See `protocols.wire.Wire`."""

    name: ProtocolName = "mysql"
    redresses = True
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
        packings: Sequence[PackingName] = (),
    ) -> MysqlClientLogin:
        return MysqlClientLogin(
            method=method,
            facts=facts,
            connection_id=connection_id,
            databases=databases,
            offers_tls=offers_tls,
            packings=packings,
        )

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

    def lone_statement(self, work: bytes, tracker: Tracker) -> bytes | None:
        assert isinstance(tracker, MysqlTracker)
        return tracker.lone_statement(work)

    def asks_for_warnings(self, text: bytes) -> bool:
        return _ASKS_FOR_WARNINGS.match(text) is not None

    def tls_request(self) -> None:
        """MySQL asks for TLS in the login."""

    def server_login(
        self,
        startup: Startup,
        password: Credential,
        *,
        binding: bytes = b"",
        oldest: bool = False,
        wants_tls: bool = False,
        packing: PackingName | None = None,
    ) -> MysqlServerLogin:
        """MySQL binds to no channel, and knows one version only."""
        return MysqlServerLogin(startup, password, wants_tls=wants_tls, packing=packing)

    def ledger(self, startup: Startup, *, shares_backends: bool = False) -> MysqlLedger:
        return MysqlLedger(startup, shares_backends=shares_backends)

    def client_startup(
        self, startup: Startup, *, shares_backends: bool, ignored: Sequence[str]
    ) -> Startup | ErrorReply:
        """MySQL's first packet holds no settings; its connection attributes say nothing of a backend that many share."""
        return replace(startup, parameters=()) if shares_backends else startup

    def redress(
        self, worn: Startup, wanted: Startup, facts: BackendFacts
    ) -> tuple[Exchange, Callable[[], BackendRefused | None]]:
        exchange = Redress(worn, wanted, facts)
        return exchange, exchange.refusal

    def tracker(self, ledger: Ledger, *, shares_backends: bool, statements_max: int = 200) -> Tracker:
        assert isinstance(ledger, MysqlLedger)
        return MysqlTracker(ledger, shares_backends=shares_backends)

    def reset(self, startup: Startup, facts: BackendFacts, query: str = "") -> Exchange:
        """See `ledger.reset`; `query` is PostgreSQL's."""
        return reset(startup, facts)

    def check(self, startup: Startup, query: str) -> Exchange | None:
        """See `ledger.check`."""
        return check(startup, query)

    def error(self, error: ErrorReply, tracker: Tracker | None) -> bytes:
        if not isinstance(tracker, MysqlTracker):
            return error_packet(error, 1)
        return b"" if tracker.is_within_packet() else error_packet(error, tracker.next_sequence())

    inquiry_parameters: tuple[tuple[str, str], ...] = ()

    def user_inquiry(self, query: str, user: str) -> UserInquiry | None:
        return lookup.UserInquiry(query, user) if lookup.may_be_a_name(user) else None

    def goodbye(self) -> bytes:
        return quit_packet()

    def kill(self, connection_id: int, *, is_query: bool) -> tuple[Exchange, Callable[[], BackendRefused | None]]:
        exchange = KillExchange(connection_id, is_query=is_query)
        return exchange, exchange.refusal

    def answer_to_kill(self, error: ErrorReply | None) -> bytes:
        if error is None:
            return build_ok(c.SERVER_STATUS_AUTOCOMMIT)
        return build_err(error.mysql_code, error.mysql_sqlstate, error.message)

    def cancel_request(self, facts: BackendFacts) -> bytes:
        return b""


WIRE: Wire = MysqlWire()

__all__ = ["WIRE", "MysqlWire"]
