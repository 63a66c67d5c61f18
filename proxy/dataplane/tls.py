"""The handshakes of links: with a client that asks for TLS, and with an engine that is asked for it.

Refuses to know protocols' messages (a login says when) and what certificates and ciphers are wanted (`proxy.tls`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from protocols.errors import ProtocolViolation
from protocols.wire import Login, LoginFact, TlsRefused, TlsWanted, Wire
from proxy.dataplane.relay import Link
from proxy.errors import ConnectFailed, EngineLost
from proxy.tls import EngineTls, ListenerTls, end_point_of, peer_certificate


class TlsFailed(ConnectFailed):
    """There is no TLS with this engine, and the connection is of no use: nothing was asked on it."""


def accept_tls(link: Link, tls: ListenerTls, wanted: TlsWanted, ended: Callable[[str], None]) -> None:
    """Become the server of a handshake. `ended` is told once why it failed; an empty text: the link is encrypted.

    It is told before anything that came within TLS reaches the link's sink.
    """
    assert tls.context is not None, "the login was told that TLS is offered"

    def done(why: str) -> None:
        found = link.ssl
        if not why and found is not None:
            if wanted.alpn and found.selected_alpn != wanted.alpn:
                why = f'the client did not name the protocol "{wanted.alpn}" (ALPN)'
            else:
                link.note_identity(tls.channel_binding, peer_certificate(found.peer_certificate))
        ended(why)

    link.start_tls(tls.context, hostname=None, received=wanted.received, done=done)


async def ask_for_tls(wire: Wire, engine: str, link: Link, tls: EngineTls) -> bool:
    """Encrypt a fresh link to an engine. False if the engine has no TLS and the connection may go on without.

    Raises TlsFailed, EngineLost. The caller bounds the time.
    """
    request = wire.tls_request()
    assert request is not None, "the config asks for TLS where the protocol has it"
    return await settle_tls(engine, link, tls, await converse(engine, link, request))


async def settle_tls(engine: str, link: Link, tls: EngineTls, answer: LoginFact) -> bool:
    """Do what an engine's TlsWanted or TlsRefused means. False: the connection may go on without. Raises TlsFailed."""
    if isinstance(answer, TlsRefused):
        if answer.is_over or tls.is_required:
            raise TlsFailed(
                f"engine {engine} has no TLS, but its server_tls_sslmode is {tls.mode}"
                if not answer.is_over
                else f"engine {engine} refused to speak about TLS"
            )
        return False
    assert isinstance(answer, TlsWanted)
    await shake_hands(engine, link, tls)
    return True


async def shake_hands(engine: str, link: Link, tls: EngineTls) -> None:
    """Become the client of a handshake. Raises TlsFailed."""
    assert tls.context is not None
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def done(why: str) -> None:
        if not ended.done():
            ended.set_result(why)

    link.sink = None
    link.start_tls(tls.context, hostname=tls.hostname, received=b"", done=done)
    why = await ended
    if why:
        raise TlsFailed(f"engine {engine}: no TLS with it: {why}")
    found = link.ssl
    assert found is not None, "the handshake is complete"
    link.note_identity(end_point_of(found.peer_certificate), None)


async def converse(engine: str, link: Link, login: Login) -> LoginFact:
    """Bring `login` and the engine together until the first fact. Raises ConnectFailed, EngineLost.

    From then on the link has no sink, and what comes is not lost but not read either: the caller goes on in this step.
    """
    outcome: asyncio.Future[LoginFact] = asyncio.get_running_loop().create_future()

    def received(data: bytes) -> None:
        if outcome.done():
            return
        if not data:
            outcome.set_exception(
                ConnectFailed(f"engine {engine} ended the login: {link.lost or 'it closed the connection'}")
            )
            return
        try:
            facts = login.receive(data)
        except ProtocolViolation as error:
            outcome.set_exception(EngineLost(f"engine {engine} broke the protocol at login: {error.text}"))
            return
        link.send(login.take_output())
        for fact in facts:
            link.pause()
            outcome.set_result(fact)
            return

    link.sink = received
    link.send(login.take_output())
    try:
        return await outcome
    finally:
        link.resume()
