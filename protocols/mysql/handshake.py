"""Logins: of a client at the proxy, of the proxy at an engine, and a client's second one (COM_CHANGE_USER).

Sans-IO: bytes come in by `receive`, bytes go out by `take_output`, what was learned comes back as facts. Each login is
a table of phases; a packet in a phase that does not expect one is the peer's violation.

What the greeting offers is what Turnout can relay and the active engine has (`constants.OFFERED_CAPABILITIES`). The
flags of `MATCHED_CAPABILITIES` that the client then sets go into `Startup.capabilities`, and its backends are opened
with exactly these: so a stream can be relayed without being translated.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Sequence
from typing import Final

from protocols.errors import IllegalUse, ProtocolViolation
from protocols.mysql import auth
from protocols.mysql import constants as c
from protocols.mysql.framing import PacketReader
from protocols.mysql.messages import (
    Greeting,
    Response,
    build_auth_switch,
    build_greeting,
    build_ok,
    build_response,
    packet,
    parse_auth_switch,
    parse_change_user,
    parse_err,
    parse_greeting,
    parse_response,
    raw,
)
from protocols.mysql.replies import error_packet
from protocols.wire import (
    CLEAR,
    BackendFacts,
    BackendReady,
    BackendRefused,
    Channel,
    CredentialWanted,
    ErrorReply,
    LoginFact,
    LoginProven,
    LoginRefused,
    Startup,
)

METHODS: Final = frozenset({"trust", auth.NATIVE, auth.SHA2})

NEUTRAL_FACTS: Final = BackendFacts(
    server_version="8.0.40",
    capabilities=c.OFFERED_CAPABILITIES & ~c.CLIENT_SESSION_TRACK,
    character_set=c.CHARSET_UTF8MB4,
    auth_plugin=auth.SHA2,
)
"""What the greeting says while no engine has been reached yet."""

_REQUIRED: Final = c.CLIENT_PROTOCOL_41 | c.CLIENT_SECURE_CONNECTION | c.CLIENT_PLUGIN_AUTH
"""Flags an engine must have; every one since MySQL 5.5 and MariaDB 5.2 has."""


class ClientPhase(enum.Enum):
    RESPONSE = "awaiting the handshake response"
    CREDENTIAL = "awaiting the credential"
    SWITCHED = "awaiting the answer to AuthSwitchRequest"
    FULL = "awaiting the password or the request for the public key"
    PASSWORD = "awaiting the encrypted password"
    PROVEN = "awaiting accept or refuse"
    ENDED = "ended"


class _ClientAuth(abc.ABC):
    """What a login and COM_CHANGE_USER have in common: from the credential on."""

    secret_bytes = 4
    """MySQL's clients are told no cancel key."""

    def __init__(self, *, method: str, facts: BackendFacts | None, databases: Sequence[str]) -> None:
        if method not in METHODS:
            raise IllegalUse(f"authentication method {method!r} is not one of MySQL")
        self._method = method
        self._facts = NEUTRAL_FACTS if facts is None else facts
        self._databases = frozenset(databases)
        self._plugin = method if method in auth.PLUGINS else self._engine_plugin()
        self._scramble = auth.new_scramble()
        self._out = bytearray()
        self._phase = ClientPhase.RESPONSE
        self._password: bytes | None = None
        self._response: Response | None = None
        self._startup: Startup | None = None
        self._packets: PacketReader

    def _engine_plugin(self) -> str:
        return self._facts.auth_plugin if self._facts.auth_plugin in auth.PLUGINS else auth.NATIVE

    # --- Login ---

    def receive(self, data: bytes) -> Sequence[LoginFact]:
        """Take bytes of the client. Raises ProtocolViolation."""
        self._packets.feed(data)
        return self._go_on()

    def _go_on(self) -> list[LoginFact]:
        facts: list[LoginFact] = []
        while self._phase in _AWAITS_PACKET and (payload := self._packets.next()) is not None:
            facts += self._packet(payload)
        return facts

    def take_output(self) -> bytes:
        output = bytes(self._out)
        self._out.clear()
        return output

    def take_unread(self) -> bytes:
        return self._packets.take_rest()

    def give_credential(
        self, password: str | None, secret: str | None = None, *, method: str = "", channel: Channel = CLEAR
    ) -> Sequence[LoginFact]:
        """Answer to CredentialWanted. `secret` is PostgreSQL's and must be None or is taken as no such user; so are
        `method` and `channel`, which change nothing here."""
        if self._phase is not ClientPhase.CREDENTIAL:
            raise IllegalUse(f"a credential was given while {self._phase.value}")
        assert self._response is not None
        self._password = None if password is None else raw(password)
        return self._begin_proof(self._response) + self._go_on()

    def accept(self, backend: BackendFacts) -> bytes:
        """OK. What `backend` is does not matter to a MySQL client any more: the greeting has told it."""
        if self._phase is not ClientPhase.PROVEN:
            raise IllegalUse(f"a login was accepted while {self._phase.value}")
        self._phase = ClientPhase.ENDED
        return self.take_output() + packet(build_ok(c.SERVER_STATUS_AUTOCOMMIT), self._packets.sequence)

    def refuse(self, error: ErrorReply) -> bytes:
        self._phase = ClientPhase.ENDED
        return self.take_output() + error_packet(error, self._packets.sequence)

    # --- the proof ---

    def _packet(self, payload: bytes) -> list[LoginFact]:
        if self._phase is ClientPhase.SWITCHED:
            return self._check_first(payload)
        if self._phase is ClientPhase.FULL:
            return self._full(payload)
        assert self._phase is ClientPhase.PASSWORD
        return self._check_encrypted(payload)

    def _send(self, payload: bytes) -> None:
        self._out += packet(payload, self._packets.sequence)
        self._packets.sequence = (self._packets.sequence + 1) & 0xFF

    @abc.abstractmethod
    def _begin_proof(self, response: Response) -> list[LoginFact]: ...

    def _switch(self, scramble: bytes) -> list[LoginFact]:
        """Ask the client to use our plugin (again) with `scramble`."""
        self._scramble = scramble
        self._phase = ClientPhase.SWITCHED
        self._send(build_auth_switch(self._plugin, scramble))
        return []

    def _trusted(self, plugin: str, given: bytes) -> list[LoginFact]:
        # A caching_sha2_password client that sent a proof waits for the word that it sufficed before the OK.
        if plugin == auth.SHA2 and given not in (b"", b"\0"):
            self._send(bytes([c.MORE_AUTH_DATA, c.FAST_AUTH_OK]))
        return self._proven()

    def _check_first(self, given: bytes) -> list[LoginFact]:
        """The proof by scramble; caching_sha2_password sends one NUL for an empty password in a switch."""
        if self._method == "trust":
            return self._trusted(self._plugin, given)
        if self._plugin == auth.SHA2:
            if given == b"\0":
                given = b""
            if len(given) not in (0, 32):
                self._send(bytes([c.MORE_AUTH_DATA, c.FULL_AUTH_WANTED]))
                self._phase = ClientPhase.FULL
                return []
        if not auth.is_proof(self._plugin, self._password, self._scramble, given):
            return self._wrong(bool(given))
        if self._plugin == auth.SHA2 and given:
            self._send(bytes([c.MORE_AUTH_DATA, c.FAST_AUTH_OK]))
        return self._proven()

    def _full(self, payload: bytes) -> list[LoginFact]:
        if payload == bytes([c.PUBLIC_KEY_WANTED]):
            self._send(bytes([c.MORE_AUTH_DATA]) + auth.own_public_key())
            self._phase = ClientPhase.PASSWORD
            return []
        # A client that knows the key already sends the password at once.
        return self._check_encrypted(payload)

    def _check_encrypted(self, payload: bytes) -> list[LoginFact]:
        given = auth.decrypt_password(payload, self._scramble)
        # Compared by proof, so that the time taken does not depend on where they differ.
        proof = b"-" if given is None else auth.sha2_proof(given, self._scramble)
        if not auth.is_proof(auth.SHA2, self._password, self._scramble, proof):
            return self._wrong(True)
        return self._proven()

    def _wrong(self, is_password_given: bool) -> list[LoginFact]:
        assert self._response is not None
        user = self._response.user
        used = "YES" if is_password_given else "NO"
        return self._refused(
            ErrorReply(
                message=f"Access denied for user '{user}' (using password: {used})",
                sqlstate="28P01",
                mysql_code=c.ER_ACCESS_DENIED,
                mysql_sqlstate="28000",
            )
        )

    def _proven(self) -> list[LoginFact]:
        assert self._startup is not None
        if self._startup.database and self._databases and self._startup.database not in self._databases:
            return self._refused(
                ErrorReply(
                    message=f"Unknown database '{self._startup.database}'",
                    sqlstate="3D000",
                    mysql_code=c.ER_BAD_DB,
                    mysql_sqlstate="42000",
                )
            )
        self._phase = ClientPhase.PROVEN
        return [LoginProven(self._startup)]

    def _refused(self, error: ErrorReply) -> list[LoginFact]:
        self._out += self.refuse(error)
        return [LoginRefused(error.message)]


_AWAITS_PACKET: Final = frozenset({ClientPhase.RESPONSE, ClientPhase.SWITCHED, ClientPhase.FULL, ClientPhase.PASSWORD})


class MysqlClientLogin(_ClientAuth):
    """A client's login at the proxy. The greeting is in the output from the start."""

    def __init__(
        self, *, method: str, facts: BackendFacts | None, connection_id: int, databases: Sequence[str]
    ) -> None:
        super().__init__(method=method, facts=facts, databases=databases)
        self._offered = c.AUTH_CAPABILITIES | (self._facts.capabilities & c.OFFERED_CAPABILITIES)
        self._offered |= c.CLIENT_CONNECT_WITH_DB
        self._packets = PacketReader("client", sequence=1, payload_max=c.LOGIN_BYTES_MAX)
        self._out += packet(
            build_greeting(
                Greeting(
                    server_version=self._facts.server_version,
                    connection_id=connection_id,
                    scramble=self._scramble,
                    capabilities=self._offered,
                    character_set=self._facts.character_set or c.CHARSET_UTF8MB4,
                    status=c.SERVER_STATUS_AUTOCOMMIT,
                    auth_plugin=self._plugin,
                )
            ),
            0,
        )

    def _packet(self, payload: bytes) -> list[LoginFact]:
        if self._phase is not ClientPhase.RESPONSE:
            return super()._packet(payload)
        response = parse_response(payload, self._offered)
        self._response = response
        self._startup = Startup(
            user=response.user,
            database=response.database,
            capabilities=response.capabilities & c.MATCHED_CAPABILITIES,
            character_set=response.character_set,
        )
        self._phase = ClientPhase.CREDENTIAL
        return [CredentialWanted(response.user, response.database)]

    def _begin_proof(self, response: Response) -> list[LoginFact]:
        # Clients without CLIENT_PLUGIN_AUTH know the native method only.
        plugin = response.auth_plugin or auth.NATIVE
        if self._method == "trust":
            return self._trusted(plugin, response.auth)
        if plugin == self._plugin:
            return self._check_first(response.auth)
        if not response.capabilities & c.CLIENT_PLUGIN_AUTH:
            return self._wrong(bool(response.auth))
        return self._switch(auth.new_scramble())


class ChangeUserLogin(_ClientAuth):
    """COM_CHANGE_USER: the client logs in again in its session, as the user and to the database the packet names.

    The proof in the packet was made with the greeting's scramble, which is not kept for the life of a session: the
    client is asked for a new one by AuthSwitchRequest, as MySQL itself does. `startup` is that of the session so far:
    capabilities stay as they are.

    The first `receive`, which may be of no bytes, gives CredentialWanted; then it is used as a login. The session closes
    its backend, takes one of the new Startup with an empty ledger, and sends what `accept` returns.
    """

    def __init__(
        self,
        message: bytes,
        *,
        startup: Startup,
        method: str,
        facts: BackendFacts | None,
        connection_id: int,
        databases: Sequence[str],
    ) -> None:
        super().__init__(method=method, facts=facts, databases=databases)
        if len(message) < 5 or message[4] != c.COM_CHANGE_USER:
            raise IllegalUse("not a COM_CHANGE_USER")
        self._connection_id = connection_id
        self._packets = PacketReader("client", sequence=1, payload_max=c.LOGIN_BYTES_MAX)
        response = parse_change_user(message[4:])
        self._response = response
        self._startup = Startup(
            user=response.user,
            database=response.database,
            capabilities=startup.capabilities,
            character_set=response.character_set or startup.character_set,
        )
        self._phase = ClientPhase.CREDENTIAL
        self._facts_due: list[LoginFact] = [CredentialWanted(response.user, response.database)]

    def receive(self, data: bytes) -> Sequence[LoginFact]:
        """Take bytes of the client. Raises ProtocolViolation."""
        facts, self._facts_due = self._facts_due, []
        return [*facts, *super().receive(data)]

    def _begin_proof(self, response: Response) -> list[LoginFact]:
        if self._method == "trust":
            return self._proven()
        return self._switch(auth.new_scramble())


# --- at an engine -------------------------------------------------------------------------------------------------


class ServerPhase(enum.Enum):
    GREETING = "awaiting the greeting"
    PROOF = "awaiting the verdict on the proof"
    KEY = "awaiting the public key"
    VERDICT = "awaiting OK"
    ENDED = "ended"


class MysqlServerLogin:
    """The proxy's login at an engine, with exactly the capabilities of `startup` (and those of a login)."""

    def __init__(self, startup: Startup, password: str | None) -> None:
        self._startup = startup
        self._password = raw(password or "")
        self._packets = PacketReader("server", sequence=0, payload_max=c.LOGIN_BYTES_MAX)
        self._out = bytearray()
        self._phase = ServerPhase.GREETING
        self._greeting: Greeting | None = None
        self._plugin = auth.NATIVE
        self._scramble = b""

    def receive(self, data: bytes) -> Sequence[LoginFact]:
        """Take bytes of the engine. Raises ProtocolViolation."""
        self._packets.feed(data)
        facts: list[LoginFact] = []
        while self._phase is not ServerPhase.ENDED and (payload := self._packets.next()) is not None:
            facts += self._packet(payload)
        return facts

    def take_output(self) -> bytes:
        output = bytes(self._out)
        self._out.clear()
        return output

    def take_unread(self) -> bytes:
        return self._packets.take_rest()

    def _send(self, payload: bytes) -> None:
        self._out += packet(payload, self._packets.sequence)
        self._packets.sequence = (self._packets.sequence + 1) & 0xFF

    def _packet(self, payload: bytes) -> list[LoginFact]:
        if not payload:
            raise ProtocolViolation("server", f"an empty packet while {self._phase.value}")
        if payload[0] == c.ERR:
            error = parse_err(payload, "server")
            return self._refused(str(error.code), error.sqlstate, error.message)
        if self._phase is ServerPhase.GREETING:
            return self._greet(parse_greeting(payload))
        if payload[0] == c.OK:
            return self._ready()
        if self._phase is ServerPhase.PROOF and payload[0] == c.EOF:
            return self._switched(*parse_auth_switch(payload))
        if payload[0] == c.MORE_AUTH_DATA and self._plugin != auth.NATIVE:
            return self._more(payload[1:])
        raise ProtocolViolation("server", f"an unexpected packet (0x{payload[0]:02x}) while {self._phase.value}")

    def _greet(self, greeting: Greeting) -> list[LoginFact]:
        self._greeting = greeting
        wanted = self._startup.capabilities & c.MATCHED_CAPABILITIES
        missing = (_REQUIRED | wanted) & ~greeting.capabilities
        if missing:
            names = ", ".join(name for flag, name in c.CAPABILITY_NAMES.items() if missing & flag)
            return self._refused(
                str(c.ER_HANDSHAKE), "08S01", f"the server ({greeting.server_version}) lacks {names or hex(missing)}"
            )
        self._scramble = greeting.scramble
        if greeting.auth_plugin in auth.PLUGINS:
            self._plugin = greeting.auth_plugin
        flags = wanted | (c.AUTH_CAPABILITIES & greeting.capabilities) | c.CLIENT_LONG_PASSWORD
        if self._startup.database:
            flags |= c.CLIENT_CONNECT_WITH_DB
        self._send(
            build_response(
                Response(
                    capabilities=flags,
                    character_set=self._startup.character_set or greeting.character_set,
                    user=self._startup.user,
                    auth=auth.proof(self._plugin, self._password, self._scramble),
                    database=self._startup.database,
                    auth_plugin=self._plugin,
                ),
                (("_client_name", "turnout"),),
            )
        )
        self._phase = ServerPhase.PROOF
        return []

    def _switched(self, plugin: str, scramble: bytes) -> list[LoginFact]:
        if plugin not in auth.PLUGINS and plugin != auth.SHA256:
            return self._refused(
                "2059",
                "HY000",
                f"the server wants user '{self._startup.user}' to log in by {plugin}, which Turnout does not speak; "
                f"give the user {auth.SHA2} or {auth.NATIVE}",
            )
        if len(scramble) < auth.SCRAMBLE_BYTES:
            raise ProtocolViolation("server", "a scramble of less than 20 bytes")
        self._plugin, self._scramble = plugin, scramble
        if plugin == auth.SHA256 and self._password:
            self._send(b"\1")
            self._phase = ServerPhase.KEY
            return []
        # An empty password is one NUL here for the SHA-256 methods, and an empty packet for the native one.
        first = auth.proof(plugin, self._password, scramble) if self._password else b""
        self._send(first or (b"" if plugin == auth.NATIVE else b"\0"))
        return []

    def _more(self, data: bytes) -> list[LoginFact]:
        if self._phase is ServerPhase.PROOF and data == bytes([c.FAST_AUTH_OK]):
            self._phase = ServerPhase.VERDICT
        elif self._phase is ServerPhase.PROOF and data == bytes([c.FULL_AUTH_WANTED]):
            # The link is not encrypted, so the password goes under the server's key.
            self._send(bytes([c.PUBLIC_KEY_WANTED]))
            self._phase = ServerPhase.KEY
        elif self._phase is ServerPhase.KEY:
            self._send(auth.encrypt_password(self._password, self._scramble, data))
            self._phase = ServerPhase.VERDICT
        else:
            raise ProtocolViolation("server", f"authentication data that fit nothing, while {self._phase.value}")
        return []

    def _ready(self) -> list[LoginFact]:
        if self._phase not in (ServerPhase.PROOF, ServerPhase.VERDICT):
            raise ProtocolViolation("server", f"OK while {self._phase.value}")
        assert self._greeting is not None
        self._phase = ServerPhase.ENDED
        return [
            BackendReady(
                BackendFacts(
                    server_version=self._greeting.server_version,
                    process_id=self._greeting.connection_id,
                    capabilities=self._greeting.capabilities,
                    character_set=self._greeting.character_set,
                    auth_plugin=self._greeting.auth_plugin,
                )
            )
        ]

    def _refused(self, code: str, sqlstate: str, message: str) -> list[LoginFact]:
        self._phase = ServerPhase.ENDED
        return [BackendRefused(code, sqlstate, message)]
