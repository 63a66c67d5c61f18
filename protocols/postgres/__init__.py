"""PostgreSQL's wire protocol, versions 3.0 and 3.2. `WIRE` is what the rest of Turnout knows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from protocols.errors import IllegalUse
from protocols.postgres import ledger as _ledger
from protocols.postgres import lookup, replies, units
from protocols.postgres.exchange import Group, PostgresExchange
from protocols.postgres.handshake import NEWEST_MINOR, PostgresClientLogin, PostgresServerLogin, PostgresTlsRequest
from protocols.postgres.ledger import PostgresLedger
from protocols.postgres.messages import build_query, build_sync
from protocols.postgres.startup import RefusedOption, as_settings, without
from protocols.postgres.statements import PER_BACKEND_MAX
from protocols.postgres.tracker import PostgresTracker
from protocols.wire import (
    BackendFacts,
    BackendRefused,
    ClientLogin,
    Credential,
    ErrorReply,
    Exchange,
    Ledger,
    Login,
    Meant,
    PackingName,
    ProtocolName,
    ServerLogin,
    Startup,
    Tracker,
    UserInquiry,
    Wire,
)


class PostgresWire:
    """See `wire.Wire`."""

    name: ProtocolName = "postgresql"
    redresses = True
    resets_all = True
    """By DISCARD ALL."""

    def meant_by(self, words: bytes) -> Meant:
        """57P01 is said to a session that an operator ends and to each one when the server shuts down."""
        return Meant.EITHER if b"C57P01" in words else Meant.SERVER

    def client_login(
        self,
        *,
        method: str,
        facts: BackendFacts | None,
        connection_id: int,
        databases: Sequence[str],
        offers_tls: bool = False,
        packings: Sequence[PackingName] = (),
    ) -> ClientLogin:
        """PostgreSQL servers say nothing before the client does: only `method` and `offers_tls` matter."""
        return PostgresClientLogin(method=method, offers_tls=offers_tls)

    def change_user_login(
        self,
        message: bytes,
        *,
        startup: Startup,
        method: str,
        facts: BackendFacts | None,
        connection_id: int,
        databases: Sequence[str],
    ) -> ClientLogin:
        raise IllegalUse("PostgreSQL has no login in the middle of a session")

    def lone_statement(self, work: bytes, tracker: Tracker) -> bytes | None:
        assert isinstance(tracker, PostgresTracker)
        return units.lone_statement(work, tracker.text_of)

    def asks_for_warnings(self, text: bytes) -> bool:
        return False

    def tls_request(self) -> Login | None:
        return PostgresTlsRequest()

    def server_login(
        self,
        startup: Startup,
        password: Credential,
        *,
        binding: bytes = b"",
        oldest: bool = False,
        wants_tls: bool = False,
        packing: PackingName | None = None,
    ) -> ServerLogin:
        return PostgresServerLogin(startup, password, binding=binding, minor=0 if oldest else NEWEST_MINOR)

    def ledger(self, startup: Startup, *, shares_backends: bool = False) -> Ledger:
        return PostgresLedger(startup, shares_backends=shares_backends)

    def client_startup(
        self, startup: Startup, *, shares_backends: bool, ignored: Sequence[str]
    ) -> Startup | ErrorReply:
        try:
            startup = without(startup, ignored)
            return as_settings(startup) if shares_backends else startup
        except RefusedOption as refused:
            hint = "List its name in ignore_startup_parameters to go on without it."
            return ErrorReply(refused.text, refused.sqlstate, 1105, "HY000", hint)

    def redress(
        self, worn: Startup, wanted: Startup, facts: BackendFacts
    ) -> tuple[Exchange, Callable[[], BackendRefused | None]]:
        exchange = _ledger.redress(worn, wanted)
        return exchange, lambda: exchange.refused

    def tracker(self, ledger: Ledger, *, shares_backends: bool, statements_max: int = PER_BACKEND_MAX) -> Tracker:
        assert isinstance(ledger, PostgresLedger)
        return PostgresTracker(ledger, shares_backends, statements_max)

    def reset(self, startup: Startup, facts: BackendFacts, query: str = "") -> Exchange:
        return _ledger.reset(query)

    def check(self, startup: Startup, query: str) -> Exchange | None:
        return PostgresExchange([Group("check", build_query(query.encode()) if query else build_sync())])

    def error(self, error: ErrorReply, tracker: Tracker | None) -> bytes:
        if isinstance(tracker, PostgresTracker) and tracker.is_within_answer:
            # Half a message has gone out: whatever follows would be taken for its rest.
            return b""
        return replies.error(error)

    inquiry_parameters = lookup.PARAMETERS

    def user_inquiry(self, query: str, user: str) -> UserInquiry | None:
        return lookup.UserInquiry(query, user) if lookup.may_be_a_name(user) else None

    def goodbye(self) -> bytes:
        return replies.goodbye()

    def kill(self, connection_id: int, *, is_query: bool) -> tuple[Exchange, Callable[[], BackendRefused | None]]:
        raise IllegalUse("PostgreSQL has cancel requests")

    def answer_to_kill(self, error: ErrorReply | None) -> bytes:
        raise IllegalUse("PostgreSQL has cancel requests")

    def cancel_request(self, facts: BackendFacts) -> bytes:
        return replies.cancel_request(facts)


WIRE: Final[Wire] = PostgresWire()
