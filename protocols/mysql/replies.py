"""Whole packets the proxy itself sends: errors to clients, commands to engines."""

from __future__ import annotations

from protocols.mysql import constants as c
from protocols.mysql.messages import build_err, command, packet
from protocols.wire import ErrorReply


def error_packet(error: ErrorReply, sequence: int) -> bytes:
    """`error` as the packet with this sequence id. The hint is part of the text: MySQL has no field for it."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return packet(build_err(error.mysql_code, error.mysql_sqlstate, message), sequence)


def unknown_command_packet(sequence: int) -> bytes:
    """What MySQL itself says to a command it does not know."""
    return packet(build_err(c.ER_UNKNOWN_COM, "08S01", "Unknown command, or one that Turnout does not relay"), sequence)


def too_large_execute_packet(sequence: int) -> bytes:
    """The one execute that cannot be repeated on another backend; see `tracker.py`, parameter types."""
    message = "Prepared statement needs to be re-prepared: its parameter types were lost with the former server"
    return packet(build_err(c.ER_NEED_REPREPARE, "HY000", message), sequence)


def unknown_thread_payload(connection_id: int) -> bytes:
    """What MySQL itself says to a KILL of a connection that is not there."""
    return build_err(c.ER_NO_SUCH_THREAD, "HY000", f"Unknown thread id: {connection_id}")


def counts_gone_payload() -> bytes:
    """FOUND_ROWS() or ROW_COUNT() of a statement whose backend others use now."""
    message = (
        "FOUND_ROWS() and ROW_COUNT() of the last statement are gone: its server connection serves others now "
        "(pool_mode transaction); from now on it is kept for this, so repeat both, or use one transaction"
    )
    return build_err(c.ER_UNKNOWN_ERROR, "HY000", message)


def quit_packet() -> bytes:
    """COM_QUIT."""
    return command(c.COM_QUIT)
