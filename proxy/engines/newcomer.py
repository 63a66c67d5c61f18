"""A PostgreSQL session that is opened for one statement, spoken by the proxy's own wire code.

The fence is proven by a session that did not exist before it, while clients wait. A driver spends most of a login in
SCRAM's 4,096 rounds, on the loop's own time; here the salted password is remembered from `prepare`.
"""

from __future__ import annotations

import asyncio
from typing import Final

from protocols.errors import ProtocolViolation
from protocols.postgres import WIRE
from protocols.postgres.framing import Framer
from protocols.postgres.messages import build_query, parse_error
from protocols.wire import BackendReady, BackendRefused, Startup
from proxy.errors import AuthRefused, ConnectFailed

_CHUNK_BYTES: Final = 65_536
_ANSWER_BYTES_MAX: Final = 1_048_576


async def sqlstate_of(sql: str, *, host: str, port: int, user: str, password: str | None, database: str) -> str:
    """Run one statement in a session of its own: the SQLSTATE with which it is refused, or an empty string.

    The caller has a deadline around it. Raises ConnectFailed, and AuthRefused where the server wants more than a plain
    connection and a password (TLS, Kerberos).
    """
    where = f"{host}:{port}"
    login = WIRE.server_login(Startup(user, database, (("application_name", "turnout"),)), password)
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        raise ConnectFailed(f"{where} cannot be reached: {error.strerror or error}") from error
    try:
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


async def _some(reader: asyncio.StreamReader, where: str) -> bytes:
    data = await reader.read(_CHUNK_BYTES)
    if not data:
        raise ConnectFailed(f"{where} ends new sessions at once")
    return data
