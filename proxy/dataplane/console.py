"""The admin console as far as a worker goes: who comes in, and the words both ways.

Whoever connects to the database `pgbouncer` of a PostgreSQL port talks to the supervisor. A worker decides nothing, so all it
does is the login, by the lists of `[console]`, and handing each question on; what the supervisor answers are messages of
the protocol, which pass as they are. While a question is open nothing more is read from that client: what it sends waits
in its socket. Without a supervisor it is told so, and stays.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from protocols.errors import ProtocolViolation
from protocols.postgres import console as words
from protocols.wire import BackendFacts, ClientLogin, Startup
from proxy import ipc
from proxy.config import CONSOLE_DATABASE, ConsoleConfig
from proxy.dataplane.users import Users
from proxy.errors import LoginRejected, TooManyConnections

if TYPE_CHECKING:
    from proxy.dataplane.session import Session
    from proxy.worker import Worker

_log = structlog.get_logger("turnout.console")

CLIENTS_MAX: Final = 100
"""Most clients of the console in one worker. They are not counted by `max_client_conn`: an operator has to get in."""

DRAIN_LOOK_S: Final = 0.02
"""How often a client that has not read its last answer is looked at; until it has, it is not asked for another question."""

FACTS: Final = BackendFacts(
    f"{words.SPEAKS_AS}/bouncer",
    parameters={
        "server_version": f"{words.SPEAKS_AS}/bouncer",
        "client_encoding": "UTF8",
        "server_encoding": "UTF8",
        "DateStyle": "ISO",
        "TimeZone": "GMT",
        "standard_conforming_strings": "on",
        "is_superuser": "on",
    },
)
"""What a client is told at its login, as PgBouncer tells it."""

_AWAY: Final = words.refusal(
    "the supervisor of this proxy is away, and whether it has done this is not known",
    "57P03",
    hint="Look with SHOW STATE and SHOW DATABASES, and try again.",
)


class ConsoleDesk:
    """The console of one worker: who may enter, and who is in."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.config = ConsoleConfig()
        self.users: Users | None = None
        """Who may log in, and how; None: the config lets nobody in."""
        self.clients: dict[int, Console] = {}
        """By number of their sessions."""

    def reconfigure(self, config: ConsoleConfig) -> None:
        """The config was read (again). Who is in stays in; whether it still may, the supervisor says at each question."""
        self.config = config
        service = config.as_service()
        if service is None:
            self.users = None
        elif self.users is None:
            self.users = Users("console", service, _nobody_is_asked)
        else:
            self.users.reconfigure(service)

    def is_meant(self, protocol: str, database: str) -> bool:
        """A client that asks for this database wants the console. A service with a database of that name has precedence."""
        if protocol != "postgresql" or database != CONSOLE_DATABASE or self.users is None:
            return False
        return not any(
            database in one.config.databases for one in self.worker.runtimes.values() if one.wire.name == protocol
        )

    def answer(self, order: ipc.ConsoleAnswer) -> None:
        """The supervisor has answered."""
        client = self.clients.get(order.session)
        if client is not None:
            client.answered(order.question, order.data)

    def lose_supervisor(self) -> None:
        """Nobody will answer what is open."""
        for client in list(self.clients.values()):
            client.answered(client.question, _AWAY)


async def _nobody_is_asked(_user: str, _database: str) -> str | None:
    raise AssertionError("the console's users are in a file")


class Console:
    """One client of it."""

    __slots__ = ("_desk", "_is_open", "_session", "_user", "_words", "question")

    def __init__(self, desk: ConsoleDesk, session: Session) -> None:
        self._desk = desk
        self._session = session
        self._words = words.ConsoleClient()
        self._user = ""
        self.question = 0
        """The one asked last."""
        self._is_open = False
        """It has no answer yet."""

    def proven(self, login: ClientLogin, startup: Startup) -> bytes | None:
        """The end of the login, if there is a place for this client; None: it was refused."""
        session, desk = self._session, self._desk
        if desk.config.role_of(startup.user) is None:
            # In PgBouncer's words.
            session.refuse_login(LoginRejected("not allowed", hint="The user is in none of the lists of [console]."))
            return None
        if len(desk.clients) >= CLIENTS_MAX:
            session.refuse_login(TooManyConnections(f"the console has {CLIENTS_MAX} clients already"))
            return None
        self._user = startup.user
        desk.clients[session.id] = self
        _log.info("console entered", session=session.id, user=startup.user, client=session.client)
        assert session.cancel_key is not None
        return login.accept(FACTS.shown_as(*session.cancel_key))

    def received(self, data: bytes) -> None:
        """Bytes of the client."""
        if not data:
            self._session.on_client_end()
            return
        self._words.receive(data)
        if self._is_open and self._words.has_unread:
            # It does not wait for its answer. What else it sends waits in its socket.
            self._session.link.pause()
        self._go_on()

    def _go_on(self) -> None:
        """Hand on the next question, once the client has what it was told."""
        session, link = self._session, self._session.link
        while not self._is_open and session.id in self._desk.clients:
            if link.unsent_bytes:
                link.pause()
                asyncio.get_running_loop().call_later(DRAIN_LOOK_S, self._go_on)
                return
            try:
                text = self._words.next_question()
            except ProtocolViolation as error:
                session.on_violation(error)
                return
            link.send(self._words.take_output())
            if self._words.has_left:
                session.on_client_left()
            elif text is None:
                link.resume()
                return
            else:
                self._ask(text)

    def _ask(self, text: str) -> None:
        link = self._session.link
        self.question += 1
        if not self._desk.worker.has_supervisor:
            link.send(_AWAY)
            return
        self._is_open = True
        # Its socket is read on, to hear that it leaves.
        link.resume()
        self._desk.worker.emit(
            ipc.ConsoleAsked(
                session=self._session.id,
                question=self.question,
                user=self._user,
                client=self._session.client,
                text=text,
            )
        )

    def answered(self, question: int, data: bytes) -> None:
        """To the question asked last; an answer to an earlier one is dropped."""
        if not self._is_open or question != self.question:
            return
        self._is_open = False
        self._session.link.send(data)
        self._go_on()

    def cancel(self) -> None:
        """Its client asks, on another connection, to cancel what it has asked for."""
        self._stop(has_left=False)

    def ended(self) -> None:
        """The session has ended."""
        if self._desk.clients.pop(self._session.id, None) is not None:
            self._stop(has_left=True)

    def _stop(self, *, has_left: bool) -> None:
        if self._is_open:
            stopped = ipc.ConsoleStopped(session=self._session.id, question=self.question, has_left=has_left)
            self._desk.worker.emit(stopped)
