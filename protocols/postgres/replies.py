"""What the proxy itself says in a session: errors, notices, goodbye."""

from __future__ import annotations

from protocols.postgres.messages import build_cancel_request, build_error, build_ready, build_terminate
from protocols.wire import BackendFacts, ErrorReply


def error(reply: ErrorReply) -> bytes:
    """An error for a client outside of a login. If it is not fatal it ends a Query: with ReadyForQuery."""
    message = build_error(
        severity="FATAL" if reply.is_fatal else "ERROR",
        sqlstate=reply.sqlstate,
        message=reply.message,
        hint=reply.hint,
    )
    return message if reply.is_fatal else message + build_ready()


def goodbye() -> bytes:
    """Terminate."""
    return build_terminate()


def cancel_request(facts: BackendFacts) -> bytes:
    """The packet to send on a fresh connection."""
    return build_cancel_request(facts.process_id, facts.secret)
