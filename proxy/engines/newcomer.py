"""A PostgreSQL session that is opened for one statement, spoken by the proxy's own wire code.

The fence is proven by a session that did not exist before it, while clients wait. A driver spends most of a login in
SCRAM's 4,096 rounds, on the loop's own time; here the salted password is remembered from `prepare`.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from protocols.errors import ProtocolViolation
from protocols.postgres import WIRE
from protocols.postgres.framing import Framer
from protocols.postgres.messages import build_query, parse_error
from protocols.wire import BackendReady, BackendRefused, Startup, TlsRefused, TlsWanted
from proxy.errors import AuthRefused, ConnectFailed, unreachable
from proxy.tls import NO_ENGINE_TLS, LibraryTls, end_point_of

_CHUNK_BYTES: Final = 65_536
_ANSWER_BYTES_MAX: Final = 1_048_576


async def sqlstate_of(
    sql: str,
    *,
    host: str,
    port: int,
    user: str,
    password: str | None,
    database: str,
    tls: LibraryTls = NO_ENGINE_TLS,
) -> str:
    """Run one statement in a session of its own: the SQLSTATE with which it is refused, or an empty string.

    The caller has a deadline around it. Raises ConnectFailed, and AuthRefused where the server wants something else than
    the first kind of connection that `tls` tries, and a password.
    """
    where = f"{host}:{port}"
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        raise ConnectFailed(f"{where} cannot be reached: {unreachable(error)}") from error
    try:
        binding = await _encrypt(reader, writer, where, tls) if tls.attempts()[0] else b""
        startup = Startup(user, database, (("application_name", "turnout"),))
        login = WIRE.server_login(startup, password, binding=binding)
        is_ready = False
        while not is_ready:
            writer.write(login.take_output())
            for fact in login.receive(await _some(reader, where)):
                if isinstance(fact, BackendRefused):
                    raise AuthRefused(f"{where} refuses a new session: {fact.message} ({fact.sqlstate})")
                is_ready = isinstance(fact, BackendReady)
        writer.write(build_query(sql.encode()))
        framer = Framer("server", _ANSWER_BYTES_MAX)
        framer.receive(login.take_unread())
        sqlstate = ""
        while True:
            while (message := framer.next_message()) is not None:
                if message[:1] == b"E":
                    sqlstate = parse_error(message).sqlstate
                elif message[:1] == b"Z":
                    return sqlstate
            framer.receive(await _some(reader, where))
    except (ProtocolViolation, OSError) as error:
        raise ConnectFailed(f"{where} takes no new session: {error}") from error
    finally:
        writer.transport.abort()


async def _encrypt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str, tls: LibraryTls) -> bytes:
    """Ask for TLS and do the handshake; the channel binding. Without TLS an empty one, if that is allowed."""
    request = WIRE.tls_request()
    assert request is not None
    writer.write(request.take_output())
    (answer,) = request.receive(await _some(reader, where))
    if not isinstance(answer, TlsWanted):
        if tls.is_required or answer == TlsRefused(is_over=True):
            raise AuthRefused(f"{where} has no TLS")
        return b""
    assert tls.context is not None
    await writer.start_tls(tls.context, server_hostname=tls.hostname)
    found: ssl.SSLObject = writer.get_extra_info("ssl_object")
    return end_point_of(found.getpeercert(binary_form=True))


async def _some(reader: asyncio.StreamReader, where: str) -> bytes:
    data = await reader.read(_CHUNK_BYTES)
    if not data:
        raise ConnectFailed(f"{where} ends new sessions at once")
    return data
