"""Logins: of a client at the proxy, of the proxy at an engine, and a client's second one (COM_CHANGE_USER).

Sans-IO: bytes come in by `receive`, bytes go out by `take_output`, what was learned comes back as facts. Each login is
a table of phases; a packet in a phase that does not expect one is the peer's violation.

What the greeting offers is what Turnout can relay and the active engine has (`constants.OFFERED_CAPABILITIES`). The
flags of `MATCHED_CAPABILITIES` that the client then sets go into `Startup.capabilities`, and its backends are opened
with exactly these: so a stream can be relayed without being translated.

TLS begins in the middle of a login: the first half of the client's first packet asks for it, the whole of it follows
within. Nothing that came in clear is kept: not from a client before its TLS, not from an engine behind its greeting.

Which method a user has to prove itself by, is said by what is kept of the user (`auth`), else by the config. A client
that began with another one is asked to switch, once; an engine may ask us once.
"""

from __future__ import annotations

import abc
import enum
import re
from collections.abc import Sequence
from typing import Final

from protocols.errors import IllegalUse, ProtocolViolation
from protocols.mysql import auth, ed25519, tracking
from protocols.mysql import constants as c
from protocols.mysql.exchange import Exchange, Question
from protocols.mysql.framing import PacketReader
from protocols.mysql.messages import (
    Greeting,
    Response,
    build_auth_switch,
    build_change_user,
    build_greeting,
    build_ok,
    build_response,
    build_tls_request,
    command,
    is_tls_request,
    packet,
    parse_auth_switch,
    parse_change_user,
    parse_err,
    parse_greeting,
    parse_response,
    raw,
    text,
)
from protocols.mysql.replies import error_packet
from protocols.wire import (
    CLEAR,
    BackendFacts,
    BackendReady,
    BackendRefused,
    Channel,
    Credential,
    CredentialWanted,
    ErrorReply,
    LoginFact,
    LoginProven,
    LoginRefused,
    NativeKey,
    Packing,
    PackingBegins,
    PackingName,
    Startup,
    TlsRefused,
    TlsWanted,
)

METHODS: Final = frozenset({"trust", *auth.PLUGINS})

OF_ONE_PROCESS: Final = frozenset({"_pid", "_thread", "_source_host", "_runtime_pid"})
"""Connection attributes that no other connection has alike: a backend with them could serve nobody else."""

OWN_ATTRIBUTES: Final = (("_proxy_name", "turnout"),)
"""Added to every client's."""

NEUTRAL_FACTS: Final = BackendFacts(
    server_version="8.0.40",
    capabilities=c.OFFERED_CAPABILITIES
    & ~(c.CLIENT_SESSION_TRACK | c.CLIENT_QUERY_ATTRIBUTES | c.MARIADB_CAPABILITIES),
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

    packing: Packing | None = None
    """See `wire.ClientLogin`."""

    def __init__(self, *, method: str, facts: BackendFacts | None, databases: Sequence[str]) -> None:
        if method not in METHODS:
            raise IllegalUse(f"authentication method {method!r} is not one of MySQL")
        self._method = method
        self._facts = NEUTRAL_FACTS if facts is None else facts
        self._databases = frozenset(databases)
        self._plugin = self._greeted_plugin()
        self._scramble = auth.new_scramble()
        self._out = bytearray()
        self._phase = ClientPhase.RESPONSE
        self._is_encrypted = False
        self._account = auth.Account()
        self._won: Credential = None
        self._response: Response | None = None
        self._startup: Startup | None = None
        self._packets: PacketReader

    def _greeted_plugin(self) -> str:
        """What the greeting names: the method, the engine's own one where any will do, or one that a greeting can name."""
        named = self._facts.auth_plugin if self._method == "trust" else self._method
        return named if named in auth.GREETED else auth.NATIVE

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
        """Answer to CredentialWanted. `password` is plain text or a verifier (see `auth`); `secret` is PostgreSQL's."""
        if self._phase is not ClientPhase.CREDENTIAL:
            raise IllegalUse(f"a credential was given while {self._phase.value}")
        if method and method not in METHODS:
            raise IllegalUse(f"authentication method {method!r} is not one of MySQL")
        assert self._response is not None
        self._method = method or self._method
        self._is_encrypted = channel.is_encrypted
        self._account = auth.account_of(password)
        if self._account.verifier is not None and self._method != auth.CLEAR:
            self._plugin = self._account.verifier.plugin
        else:
            self._plugin = self._greeted_plugin() if self._method == "trust" else self._method
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

    def _switch(self) -> list[LoginFact]:
        """Ask the client to use the user's plugin, or to use it again, with a new scramble."""
        size = auth.NONCE_BYTES if self._plugin == auth.ED25519 else auth.SCRAMBLE_BYTES
        self._scramble = b"" if self._plugin == auth.CLEAR else auth.new_scramble(size)
        self._phase = ClientPhase.SWITCHED
        self._send(build_auth_switch(self._plugin, self._scramble))
        return []

    def _trusted(self, plugin: str, given: bytes) -> list[LoginFact]:
        # A caching_sha2_password client that sent a proof waits for the word that it sufficed before the OK.
        if plugin == auth.SHA2 and given not in (b"", b"\0"):
            self._send(bytes([c.MORE_AUTH_DATA, c.FAST_AUTH_OK]))
        return self._proven()

    def _check_first(self, given: bytes) -> list[LoginFact]:
        """What a client sends first; the SHA-256 methods send one NUL for an empty password in a switch."""
        if self._method == "trust":
            return self._trusted(self._plugin, given)
        if given == b"\0" and self._plugin != auth.NATIVE:
            given = b""
        if not given:
            return self._proven() if self._account.password == b"" else self._wrong(False)
        if self._plugin == auth.NATIVE:
            return self._check_native(given)
        if self._plugin == auth.SHA2:
            return self._check_fast(given)
        if self._plugin == auth.SHA256:
            return self._full(b"\2" if given == b"\1" else given)
        if self._plugin == auth.ED25519:
            return self._proven() if auth.is_signature(self._account, self._scramble, given) else self._wrong(True)
        return self._check_password(given)

    def _check_native(self, given: bytes) -> list[LoginFact]:
        key = auth.native_key_of(self._account, self._scramble, given)
        if key is None:
            return self._wrong(True)
        if self._account.verifier is not None:
            self._won = NativeKey(key)
        return self._proven()

    def _check_fast(self, given: bytes) -> list[LoginFact]:
        """A fast proof that does not do leads to the full form whatever the reason is, as MySQL has it: a password not
        known yet, one that has been changed, a wrong one, and a user nobody knows look the same."""
        if not auth.is_sha2_proof(self._account, self._scramble, given):
            self._send(bytes([c.MORE_AUTH_DATA, c.FULL_AUTH_WANTED]))
            self._phase = ClientPhase.FULL
            return []
        self._send(bytes([c.MORE_AUTH_DATA, c.FAST_AUTH_OK]))
        if self._account.verifier is not None and self._account.password is not None:
            # The one that a full authentication left.
            self._won = text(self._account.password)
        return self._proven()

    def _full(self, payload: bytes) -> list[LoginFact]:
        """The password, in clear within TLS, under our key without; or the request for the key."""
        if payload == bytes([c.PUBLIC_KEY_WANTED]):
            self._send(bytes([c.MORE_AUTH_DATA]) + auth.own_public_key())
            self._phase = ClientPhase.PASSWORD
            return []
        if self._is_encrypted:
            return self._check_password(payload)
        # A client that knows the key already sends the password at once.
        return self._check_encrypted(payload)

    def _check_encrypted(self, payload: bytes) -> list[LoginFact]:
        password = auth.decrypt_password(payload, self._scramble)
        return self._wrong(True) if password is None else self._check_password(password + b"\0")

    def _check_password(self, payload: bytes) -> list[LoginFact]:
        """The password itself, with a NUL behind it."""
        password = payload.removesuffix(b"\0")
        if not auth.is_password(self._account, password):
            return self._wrong(bool(password))
        if self._account.verifier is not None:
            self._won = text(password)
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
        return [LoginProven(self._startup, self._won)]

    def _refused(self, error: ErrorReply) -> list[LoginFact]:
        self._out += self.refuse(error)
        return [LoginRefused(error.message)]


_AWAITS_PACKET: Final = frozenset({ClientPhase.RESPONSE, ClientPhase.SWITCHED, ClientPhase.FULL, ClientPhase.PASSWORD})


class MysqlClientLogin(_ClientAuth):
    """A client's login at the proxy. The greeting is in the output from the start."""

    def __init__(
        self,
        *,
        method: str,
        facts: BackendFacts | None,
        connection_id: int,
        databases: Sequence[str],
        offers_tls: bool = False,
        packings: Sequence[PackingName] = (),
    ) -> None:
        super().__init__(method=method, facts=facts, databases=databases)
        self._offered = c.AUTH_CAPABILITIES | (self._facts.capabilities & c.OFFERED_CAPABILITIES)
        self._offered |= c.CLIENT_CONNECT_WITH_DB
        if self._offered & c.MARIADB_CAPABILITIES:
            # Else nobody looks for them.
            self._offered &= ~c.CLIENT_LONG_PASSWORD
        self._offers_tls = offers_tls
        self._has_tls = False
        if offers_tls:
            self._offered |= c.CLIENT_SSL
        for name in packings:
            self._offered |= c.PACKINGS[name]
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
        if self._offers_tls and not self._has_tls and is_tls_request(payload):
            self._has_tls = True
            return [TlsWanted(received=self._packets.take_rest())]
        response = parse_response(payload, self._offered)
        if response.capabilities & c.CLIENT_SSL and not self._has_tls:
            raise ProtocolViolation("client", "says that it uses TLS, and does not")
        self._response = response
        if response.capabilities & c.CLIENT_COMPRESS:
            self.packing = Packing("zlib")
        elif response.capabilities & c.CLIENT_ZSTD_COMPRESSION_ALGORITHM:
            self.packing = Packing("zstd", response.zstd_level)
        self._startup = Startup(
            user=response.user,
            database=response.database,
            parameters=_shown(response.attributes),
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
        if plugin == self._plugin and plugin in auth.GREETED:
            return self._check_first(response.auth)
        if not response.capabilities & c.CLIENT_PLUGIN_AUTH:
            return self._wrong(bool(response.auth))
        return self._switch()


def _shown(attributes: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Those of a client's connection attributes that its backends have, too: what may be alike in other clients, as much
    as fits."""
    shown: list[tuple[str, str]] = []
    left = c.ATTRIBUTES_BYTES_MAX
    for key, value in sorted(set(attributes)):
        left -= len(raw(key)) + len(raw(value))
        if left < 0:
            break
        if key not in OF_ONE_PROCESS:
            shown.append((key, value))
    return tuple(shown)


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
        response = parse_change_user(message[4:], startup.character_set)
        self._response = response
        self._startup = Startup(
            user=response.user,
            database=response.database,
            parameters=startup.parameters,
            capabilities=startup.capabilities,
            character_set=response.character_set,
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
        return self._switch()


# --- at an engine -------------------------------------------------------------------------------------------------


class ServerPhase(enum.Enum):
    GREETING = "awaiting the greeting"
    TLS = "awaiting TLS"
    PROOF = "awaiting the verdict on the proof"
    KEY = "awaiting the public key"
    VERDICT = "awaiting OK"
    PACKING = "awaiting compression"
    ASKING = "awaiting the charsets and OK for session tracking"
    ENDED = "ended"


_CHARSETS: Final = (
    b"SELECT @@character_set_client, @@character_set_results, @@character_set_connection, "
    b"@@collation_connection LIMIT 1"
)
_CHARSET_NAME: Final = re.compile(rb"\w*", re.ASCII)

_AWAITS_NOTHING: Final = frozenset({ServerPhase.TLS, ServerPhase.PACKING, ServerPhase.ENDED})
"""Phases in which the engine is not heard."""


class MysqlServerLogin:
    """The proxy's login at an engine, with exactly the capabilities of `startup` (and those of a login).

    Besides, session tracking is asked for and turned on wherever the engine has it (see `tracking`), and the charsets are
    asked for: what a login gives depends on more than the collation's number that it names. Both servers have the global
    values where they do not know the number, where it is that of the global character_set_client, and with
    --skip-character-set-client-handshake; init_connect may set others.

    A number above 255 does not fit into a login. Clients name one by COM_CHANGE_USER, and so do we once logged in.
    """

    def __init__(
        self,
        startup: Startup,
        credential: Credential,
        *,
        wants_tls: bool = False,
        packing: PackingName | None = None,
    ) -> None:
        self._startup = startup
        self._key = credential.digest if isinstance(credential, NativeKey) else None
        """All that is known of the password, if it is not known itself."""
        self._password = raw(credential) if isinstance(credential, str) and auth.is_plain(credential) else b""
        self._wants_tls = wants_tls
        self._packing = None if packing is None else Packing(packing, c.ZSTD_LEVEL if packing == "zstd" else 0)
        self._is_encrypted = False
        self._is_packed = False
        self._is_switched = False
        self._packets = PacketReader("server", sequence=0, payload_max=c.LOGIN_BYTES_MAX)
        self._out = bytearray()
        self._phase = ServerPhase.GREETING
        self._greeting: Greeting | None = None
        self._plugin = auth.NATIVE
        self._scramble = b""
        self._names_collation_later = startup.character_set > c.LOGIN_COLLATION_MAX
        self._exchange: Exchange | None = None

    def go_on(self, *, is_encrypted: bool) -> None:
        """See `wire.ServerLogin`."""
        if self._phase is not ServerPhase.TLS:
            raise IllegalUse(f"a login at an engine was told of TLS while {self._phase.value}")
        self._is_encrypted = is_encrypted
        self._respond()

    def receive(self, data: bytes) -> Sequence[LoginFact]:
        """Take bytes of the engine. Raises ProtocolViolation."""
        self._packets.feed(data)
        facts: list[LoginFact] = []
        if self._phase is ServerPhase.PACKING:
            self._logged_in()
        if self._phase is ServerPhase.ASKING:
            return self._asked()
        while self._phase not in _AWAITS_NOTHING and (payload := self._packets.next()) is not None:
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
            return self._let_in()
        if self._phase is ServerPhase.PROOF and payload[0] == c.EOF:
            return self._switched(*parse_auth_switch(payload))
        if payload[0] == c.MORE_AUTH_DATA and self._plugin in (auth.SHA2, auth.SHA256):
            return self._more(payload[1:])
        raise ProtocolViolation("server", f"an unexpected packet (0x{payload[0]:02x}) while {self._phase.value}")

    def _greet(self, greeting: Greeting) -> list[LoginFact]:
        self._greeting = greeting
        wanted = self._startup.capabilities & c.MATCHED_CAPABILITIES
        if self._packing is not None:
            wanted |= c.PACKINGS[self._packing.algorithm]
        missing = (_REQUIRED | wanted) & ~greeting.capabilities
        if missing:
            names = ", ".join(name for flag, name in c.CAPABILITY_NAMES.items() if missing & flag)
            return self._refused(
                str(c.ER_HANDSHAKE), "08S01", f"the server ({greeting.server_version}) lacks {names or hex(missing)}"
            )
        self._scramble = greeting.scramble
        if greeting.auth_plugin in auth.GREETED and self._key is None:
            self._plugin = greeting.auth_plugin
        if not self._wants_tls:
            self._respond()
            return []
        self._phase = ServerPhase.TLS
        if not greeting.capabilities & c.CLIENT_SSL:
            return [TlsRefused()]
        if self._packets.has_rest:
            raise ProtocolViolation("server", "sent on in clear behind its greeting, where TLS begins")
        self._send(build_tls_request(self._flags() | c.CLIENT_SSL, self._character_set()))
        return [TlsWanted()]

    def _flags(self) -> int:
        assert self._greeting is not None
        flags = self._startup.capabilities & c.MATCHED_CAPABILITIES | c.CLIENT_LONG_PASSWORD
        flags |= (c.AUTH_CAPABILITIES | c.CLIENT_SESSION_TRACK) & self._greeting.capabilities
        if self._startup.database:
            flags |= c.CLIENT_CONNECT_WITH_DB
        if self._packing is not None:
            flags |= c.PACKINGS[self._packing.algorithm]
        if flags & c.MARIADB_CAPABILITIES:
            flags &= ~c.CLIENT_LONG_PASSWORD
        return flags | c.CLIENT_SSL if self._is_encrypted else flags

    def _character_set(self) -> int:
        """0, which is no collation's number, for the server's own: one above 255 follows."""
        return 0 if self._names_collation_later else self._startup.character_set

    def _respond(self) -> None:
        self._send(build_response(self._response(self._character_set()), self._attributes))
        self._phase = ServerPhase.PROOF

    def _response(self, character_set: int) -> Response:
        return Response(
            capabilities=self._flags(),
            character_set=character_set,
            user=self._startup.user,
            auth=self._first(self._plugin),
            database=self._startup.database,
            auth_plugin=self._plugin,
            zstd_level=0 if self._packing is None else self._packing.level,
        )

    @property
    def _attributes(self) -> tuple[tuple[str, str], ...]:
        return (*self._startup.parameters, *OWN_ATTRIBUTES)

    def _first(self, plugin: str) -> bytes:
        """What a client sends first by `plugin`; empty for no password."""
        if self._key is not None:
            return auth.native_proof(self._key, self._scramble)
        if not self._password:
            return b""
        if plugin == auth.SHA256:
            return self._password + b"\0" if self._is_encrypted else b"\1"
        if plugin == auth.CLEAR:
            return self._password + b"\0"
        if plugin == auth.ED25519:
            return ed25519.sign(self._password, self._scramble)
        return auth.proof(plugin, self._password, self._scramble)

    def _switched(self, plugin: str, scramble: bytes) -> list[LoginFact]:
        if self._is_switched:
            raise ProtocolViolation("server", "asks for a second switch of the method")
        self._is_switched = True
        wanted = f"the server wants user '{self._startup.user}' to log in by {plugin}"
        why = ""
        if plugin not in auth.PLUGINS:
            why = f"{wanted}, which Turnout does not speak; give the user {auth.SHA2} or {auth.NATIVE}"
        elif plugin == auth.CLEAR and not self._is_encrypted:
            why = f"{wanted}, which Turnout does over TLS only; see server_tls_sslmode"
        elif plugin != auth.NATIVE and self._key is not None:
            why = f"{wanted}, but of the password only what {auth.NATIVE} needs is known; see `users` in the proxy's config"
        if why:
            return self._refused(str(c.CR_AUTH_PLUGIN_CANNOT_LOAD), "HY000", why)
        size = {auth.CLEAR: 0, auth.ED25519: auth.NONCE_BYTES}.get(plugin, auth.SCRAMBLE_BYTES)
        if len(scramble) < size:
            raise ProtocolViolation("server", f"a scramble of less than {size} bytes")
        self._plugin, self._scramble = plugin, scramble[:size]
        # An empty password is one NUL here for the SHA-256 methods, and an empty packet for the native one.
        first = self._first(plugin)
        self._send(first or (b"" if plugin in (auth.NATIVE, auth.ED25519) else b"\0"))
        return []

    def _more(self, data: bytes) -> list[LoginFact]:
        is_proof = self._phase is ServerPhase.PROOF
        if is_proof and self._plugin == auth.SHA2 and data == bytes([c.FAST_AUTH_OK]):
            self._phase = ServerPhase.VERDICT
        elif is_proof and self._plugin == auth.SHA2 and data == bytes([c.FULL_AUTH_WANTED]):
            # The server does not know the password yet, or any more: after a restart, a FLUSH, or on another engine.
            if self._is_encrypted:
                self._send(self._password + b"\0")
                self._phase = ServerPhase.VERDICT
            else:
                self._send(bytes([c.PUBLIC_KEY_WANTED]))
                self._phase = ServerPhase.KEY
        elif self._phase is ServerPhase.KEY or (is_proof and self._plugin == auth.SHA256 and not self._is_encrypted):
            self._send(auth.encrypt_password(self._password, self._scramble, data))
            self._phase = ServerPhase.VERDICT
        else:
            raise ProtocolViolation("server", f"authentication data that fit nothing, while {self._phase.value}")
        return []

    def _let_in(self) -> list[LoginFact]:
        if self._phase not in (ServerPhase.PROOF, ServerPhase.VERDICT):
            raise ProtocolViolation("server", f"OK while {self._phase.value}")
        if self._packing is not None and not self._is_packed:
            self._is_packed = True
            self._phase = ServerPhase.PACKING
            return [PackingBegins(self._packing, received=self._packets.take_rest())]
        self._logged_in()
        return []

    def _logged_in(self) -> None:
        if self._names_collation_later:
            self._names_collation_later = False
            self._change_user()
        else:
            self._ask()

    def _change_user(self) -> None:
        self._out += build_change_user(self._response(self._startup.character_set), self._attributes)
        self._packets.sequence = 1
        self._is_switched = False
        self._phase = ServerPhase.PROOF

    def _ask(self) -> None:
        assert self._greeting is not None
        questions = [Question(command(c.COM_QUERY, _CHARSETS), "charsets")]
        if self._greeting.capabilities & c.CLIENT_SESSION_TRACK:
            # An engine that does not know all of it (before MySQL 5.7.8, MariaDB 10.2) serves as well without.
            tracked = command(c.COM_QUERY, tracking.turn_on(self._startup.capabilities))
            questions.append(Question(tracked, "session tracking", is_optional=True))
        self._exchange = Exchange(questions, capabilities=self._startup.capabilities)
        self._out += self._exchange.request
        self._phase = ServerPhase.ASKING

    def _asked(self) -> list[LoginFact]:
        assert self._exchange is not None
        if not self._exchange.receive(self._packets.take_rest()):
            return []
        # A user whose password has expired may change it and ask nothing.
        rows = self._exchange.answers[0].rows
        charsets = tuple(value or b"" for value in rows[0]) if rows else ()
        if not all(map(_CHARSET_NAME.fullmatch, charsets)):
            # They are in a charset that no client can read (UTF-16, of the global character_set_results).
            charsets = ()
        return self._ready(charsets)

    def _ready(self, charsets: tuple[bytes, ...]) -> list[LoginFact]:
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
                    packing=self._packing,
                    charsets=charsets,
                )
            )
        ]

    def _refused(self, code: str, sqlstate: str, message: str) -> list[LoginFact]:
        self._phase = ServerPhase.ENDED
        return [BackendRefused(code, sqlstate, message)]
