"""Logins as conversations: ours at a client, ours at an engine, and one against the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import IllegalUse, ProtocolViolation
from protocols.mysql import WIRE, auth, tracking
from protocols.mysql import constants as c
from protocols.mysql.handshake import ChangeUserLogin, MysqlClientLogin, MysqlServerLogin
from protocols.mysql.messages import (
    Greeting,
    Response,
    build_auth_switch,
    build_err,
    build_greeting,
    build_ok,
    build_response,
    command,
    packet,
    parse_auth_switch,
    parse_change_user,
    parse_err,
    parse_greeting,
)
from protocols.wire import (
    BackendFacts,
    BackendReady,
    BackendRefused,
    CredentialWanted,
    ErrorReply,
    LoginFact,
    LoginProven,
    LoginRefused,
    Startup,
)
from tests.protocols.mysql.relay import (
    CHARSETS,
    FACTS,
    MARIADB_FACTS,
    TRACKING_FACTS,
    Speech,
    err_payload,
    numbered,
    query,
    split,
)

SCRAMBLE = b"abcdefghijklmnopqrst"
SECRET = b"secret"
FLAGS = c.CLIENT_DEPRECATE_EOF | c.CLIENT_MULTI_RESULTS | c.CLIENT_MULTI_STATEMENTS
TOLD = numbered(Speech(deprecates_eof=True).charsets(*CHARSETS))
"""What an engine answers to a login's question for its charsets."""
FULL_BOOK = ErrorReply("the pool is full", "53300", 1040, "08004")


class Client:
    """A scripted client: reads what the proxy's login says, answers as it is told."""

    def __init__(self, method: str, *, facts: BackendFacts | None = FACTS, databases: Sequence[str] = ()) -> None:
        self.login = MysqlClientLogin(method=method, facts=facts, connection_id=77, databases=databases)
        (greeting,) = self.read()
        assert greeting[3] == 0
        self.greeting = parse_greeting(greeting[4:])
        self.sequence = 1

    def read(self) -> list[bytes]:
        return split(self.login.take_output())

    def send(self, payload: bytes) -> list[LoginFact]:
        facts = list(self.login.receive(packet(payload, self.sequence)))
        self.sequence += 2
        return facts

    def respond(
        self, plugin: str, auth_data: bytes, *, user: str = "app", database: str = "shop", flags: int = FLAGS
    ) -> list[LoginFact]:
        flags |= c.CLIENT_PLUGIN_AUTH | c.CLIENT_CONNECT_WITH_DB | c.CLIENT_PROTOCOL_41 | c.CLIENT_SECURE_CONNECTION
        return self.send(build_response(Response(flags, 45, user, auth_data, database, plugin), ()))

    def prove(self, plugin: str, password: bytes, **options: str) -> list[LoginFact]:
        return self.respond(plugin, auth.proof(plugin, password, self.greeting.scramble), **options)  # type: ignore[arg-type]


METHODS = pytest.mark.parametrize("method", [auth.NATIVE, auth.SHA2])


# --- clients --------------------------------------------------------------------------------------------------------


def test_the_greeting_says_what_the_engine_is() -> None:
    """field-notes: Server version string / default collation id"""
    client = Client(auth.NATIVE, facts=dataclasses.replace(MARIADB_FACTS, character_set=8))
    greeting = client.greeting
    assert greeting.character_set == 8
    assert greeting.server_version == "5.5.5-10.11.6-MariaDB"
    assert greeting.connection_id == 77
    assert len(greeting.scramble) == 20
    assert b"\0" not in greeting.scramble
    assert greeting.auth_plugin == auth.NATIVE


def test_nothing_is_offered_that_the_engine_lacks_or_turnout_does_not_relay() -> None:
    every_flag = dataclasses.replace(FACTS, capabilities=(1 << 64) - 1)
    offered = Client("trust", facts=every_flag).greeting.capabilities
    for flag in (c.CLIENT_SSL, c.CLIENT_COMPRESS, 1 << 25, 1 << 26, 1 << 28, 1 << 29, 1 << 33, 1 << 36, 1 << 38):
        assert not offered & flag
    assert not offered & c.CLIENT_LONG_PASSWORD, "MariaDB's own flags are looked for where this one is off"
    few = dataclasses.replace(FACTS, capabilities=c.AUTH_CAPABILITIES)
    assert not Client("trust", facts=few).greeting.capabilities & c.MATCHED_CAPABILITIES


def test_a_greeting_without_an_engine_is_neutral() -> None:
    greeting = Client("trust", facts=None).greeting
    assert greeting.server_version.startswith("8.0")
    assert not greeting.capabilities & c.CLIENT_SESSION_TRACK


@METHODS
def test_a_proven_login_is_accepted_with_ok(method: str) -> None:
    client = Client(method)
    (wanted,) = client.prove(method, SECRET)
    assert wanted == CredentialWanted("app", "shop")
    (proven,) = client.login.give_credential("secret")
    assert proven == LoginProven(Startup("app", "shop", capabilities=FLAGS, character_set=45))
    packets = split(client.login.accept(FACTS))
    if method == auth.SHA2:
        assert packets.pop(0) == packet(b"\1\3", 2)
    assert packets == [packet(build_ok(c.SERVER_STATUS_AUTOCOMMIT), 2 if method == auth.NATIVE else 3)]


@METHODS
@pytest.mark.parametrize("known", ["another", None])
def test_a_wrong_password_and_an_unknown_user_look_alike(method: str, known: str | None) -> None:
    client = Client(method)
    client.prove(method, SECRET)
    facts = client.login.give_credential(known)
    if method == auth.SHA2:
        # As MySQL does it: a fast proof that does not do leads to the full form, whatever the reason.
        assert facts == []
        assert client.read() == [packet(b"\1\4", 2)]
        client.send(b"\2")
        (key,) = client.read()
        facts = client.send(auth.encrypt_password(SECRET, client.greeting.scramble, key[5:]))
    (refused,) = facts
    assert isinstance(refused, LoginRefused)
    (answer,) = client.read()
    assert answer[3] == (2 if method == auth.NATIVE else 6)
    error = parse_err(answer[4:], "server")
    assert (error.code, error.sqlstate) == (1045, "28000")
    assert error.message == "Access denied for user 'app' (using password: YES)"


@METHODS
def test_an_empty_password_is_a_password(method: str) -> None:
    client = Client(method)
    client.respond(method, b"")
    assert isinstance(client.login.give_credential("")[0], LoginProven)
    other = Client(method)
    other.respond(method, b"")
    assert isinstance(other.login.give_credential("secret")[0], LoginRefused)


@METHODS
def test_a_client_with_another_plugin_is_asked_to_switch(method: str) -> None:
    client = Client(method)
    client.respond("dialog", b"x" * 64)
    assert client.login.give_credential("secret") == []
    (switch,) = client.read()
    plugin, scramble = parse_auth_switch(switch[4:])
    assert plugin == method
    assert scramble != client.greeting.scramble
    (proven,) = client.send(auth.proof(method, SECRET, scramble))
    assert isinstance(proven, LoginProven)
    assert split(client.login.accept(FACTS))[-1][3] == (4 if method == auth.NATIVE else 5)


def test_a_client_without_plugins_cannot_switch() -> None:
    client = Client(auth.SHA2)
    flags = c.CLIENT_PROTOCOL_41 | c.CLIENT_SECURE_CONNECTION
    client.send(build_response(Response(flags, 8, "app", b"x" * 20, "", ""), ()))
    assert isinstance(client.login.give_credential("secret")[0], LoginRefused)


def test_full_authentication_takes_the_password_under_our_key() -> None:
    client = Client(auth.SHA2)
    client.respond(auth.SHA2, b"?")
    assert client.login.give_credential("secret") == []
    assert client.read() == [packet(b"\1\4", 2)]
    client.send(b"\2")
    (key,) = client.read()
    encrypted = auth.encrypt_password(SECRET, client.greeting.scramble, key[5:])
    (proven,) = client.send(encrypted)
    assert isinstance(proven, LoginProven)


@pytest.mark.parametrize("password", [b"wrong", None])
def test_full_authentication_refuses_what_is_wrong(password: bytes | None) -> None:
    client = Client(auth.SHA2)
    client.respond(auth.SHA2, b"?")
    client.login.give_credential("secret")
    client.send(b"\2")
    key = client.read()[-1][5:]
    sent = b"no cipher" if password is None else auth.encrypt_password(password, client.greeting.scramble, key)
    assert isinstance(client.send(sent)[0], LoginRefused)


@pytest.mark.parametrize("plugin", [auth.NATIVE, auth.SHA2, "client_ed25519"])
def test_trust_takes_everything(plugin: str) -> None:
    client = Client("trust")
    client.respond(plugin, b"whatever")
    assert isinstance(client.login.give_credential("")[0], LoginProven)
    packets = split(client.login.accept(FACTS))
    # A caching_sha2_password client waits for this word before OK.
    assert len(packets) == (2 if plugin == auth.SHA2 else 1)


def test_an_unknown_database_is_refused_after_the_proof() -> None:
    client = Client(auth.NATIVE, databases=["other"])
    client.prove(auth.NATIVE, SECRET)
    (refused,) = client.login.give_credential("secret")
    assert isinstance(refused, LoginRefused)
    assert parse_err(client.read()[0][4:], "server").code == 1049


def test_a_refusal_has_the_right_sequence_id_in_each_phase() -> None:
    fresh = Client(auth.NATIVE)
    assert fresh.login.refuse(FULL_BOOK)[3] == 1
    proven = Client(auth.NATIVE)
    proven.prove(auth.NATIVE, SECRET)
    proven.login.give_credential("secret")
    answer = proven.login.refuse(FULL_BOOK)
    assert answer[3] == 2
    assert parse_err(answer[4:], "server").code == 1040


def test_only_flags_that_shape_the_stream_are_matched() -> None:
    client = Client("trust", facts=TRACKING_FACTS)
    client.respond(
        auth.NATIVE,
        b"",
        flags=(1 << 64) - 1
        & ~(
            c.CLIENT_LONG_PASSWORD
            | c.CLIENT_SSL
            | c.CLIENT_COMPRESS
            | c.CLIENT_ZSTD_COMPRESSION_ALGORITHM
            | c.CLIENT_PLUGIN_AUTH_LENENC
            | c.CLIENT_CONNECT_ATTRS
        ),
    )
    (proven,) = client.login.give_credential("")
    assert isinstance(proven, LoginProven)
    assert proven.startup.capabilities == c.MATCHED_CAPABILITIES


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\0\0\0\0", b"\0\2\0\0" + bytes(28), (c.CLIENT_PROTOCOL_41 | c.CLIENT_SSL).to_bytes(4, "little") + bytes(28),
        (c.CLIENT_PROTOCOL_41 | c.CLIENT_SECURE_CONNECTION).to_bytes(4, "little") + bytes(28) + b"app\0\xff",
        (c.CLIENT_PROTOCOL_41 | c.CLIENT_PLUGIN_AUTH_LENENC).to_bytes(4, "little") + bytes(28) + b"app\0\xfe" + b"\xff" * 8,
        b"x" * 80_000,
    ],
)  # fmt: skip
def test_a_response_that_cannot_be_is_the_clients_violation(payload: bytes) -> None:
    client = Client(auth.NATIVE)
    if payload == b"\0\2\0\0" + bytes(28):
        assert isinstance(client.send(payload)[0], CredentialWanted)
        return
    with pytest.raises(ProtocolViolation, match="client"):
        client.send(payload)


def test_a_response_out_of_order_is_a_violation() -> None:
    client = Client(auth.NATIVE)
    client.sequence = 3
    with pytest.raises(ProtocolViolation, match="client"):
        client.respond(auth.NATIVE, b"")


def test_a_method_of_the_other_protocol_is_our_mistake() -> None:
    with pytest.raises(IllegalUse):
        WIRE.client_login(method="scram-sha-256", facts=None, connection_id=1, databases=[])


# --- COM_CHANGE_USER ------------------------------------------------------------------------------------------------

SESSION = Startup("app", "shop", capabilities=FLAGS, character_set=45)


def change(
    method: str, body: bytes = b"bob\0\x14" + b"x" * 20 + b"books\0\x21\0mysql_native_password\0"
) -> ChangeUserLogin:
    login = ChangeUserLogin(
        command(c.COM_CHANGE_USER, body), startup=SESSION, method=method, facts=FACTS, connection_id=7, databases=[]
    )
    assert login.receive(b"") == [CredentialWanted("bob", "books")]
    return login


@METHODS
def test_a_changed_user_proves_itself_anew(method: str) -> None:
    login = change(method)
    assert login.give_credential("secret") == []
    (switch,) = split(login.take_output())
    assert switch[3] == 1
    plugin, scramble = parse_auth_switch(switch[4:])
    assert plugin == method
    (proven,) = login.receive(packet(auth.proof(method, SECRET, scramble), 2))
    assert proven == LoginProven(Startup("bob", "books", capabilities=FLAGS, character_set=0x21))
    assert split(login.accept(FACTS))[-1][4:] == build_ok(c.SERVER_STATUS_AUTOCOMMIT)


def test_a_changed_user_with_a_wrong_password_is_refused() -> None:
    login = change(auth.NATIVE)
    login.give_credential("secret")
    login.take_output()
    (refused,) = login.receive(packet(b"x" * 20, 2))
    assert isinstance(refused, LoginRefused)


def test_a_short_change_of_user_keeps_the_charset() -> None:
    login = change("trust", b"bob\0\0books\0")
    (proven,) = login.give_credential("")
    assert isinstance(proven, LoginProven)
    assert proven.startup.character_set == 45


@pytest.mark.parametrize("number", [0, 303])
def test_a_changed_user_s_collation_has_two_bytes(number: int) -> None:
    """0 is no collation's number: the server's own."""
    login = change("trust", b"bob\0\0books\0" + number.to_bytes(2, "little") + b"mysql_native_password\0")
    (proven,) = login.give_credential("")
    assert isinstance(proven, LoginProven)
    assert proven.startup.character_set == number


# --- engines --------------------------------------------------------------------------------------------------------


def greeting_of(plugin: str, flags: int = c.OFFERED_CAPABILITIES) -> bytes:
    return packet(build_greeting(Greeting("8.0.40", 9, SCRAMBLE, flags, 255, 2, plugin)), 0)


STARTUP = Startup("app", "shop", capabilities=FLAGS, character_set=45)


@METHODS
@pytest.mark.parametrize("tracked", [build_ok(2), build_err(1193, "HY000", "Unknown system variable")])
def test_an_engine_gets_exactly_the_clients_flags_and_is_asked_to_track(method: str, tracked: bytes) -> None:
    login = MysqlServerLogin(STARTUP, "secret")
    assert login.receive(greeting_of(method)) == []
    (answer,) = split(login.take_output())
    flags = int.from_bytes(answer[4:8], "little")
    assert flags & c.MATCHED_CAPABILITIES == FLAGS | c.CLIENT_SESSION_TRACK
    assert not flags & (c.CLIENT_SSL | c.CLIENT_COMPRESS)
    assert answer[12] == 45
    assert auth.proof(method, SECRET, SCRAMBLE) in answer
    assert b"shop\0" in answer
    assert login.receive(packet(build_ok(2), 2)) == []
    asked, tracking_on = split(login.take_output())
    assert asked == query(
        "SELECT @@character_set_client, @@character_set_results, @@character_set_connection, @@collation_connection LIMIT 1"
    )
    assert tracking_on == command(c.COM_QUERY, tracking.turn_on(FLAGS))
    (ready,) = login.receive(TOLD + packet(tracked, 1))
    assert ready == BackendReady(
        BackendFacts(
            "8.0.40",
            process_id=9,
            capabilities=c.OFFERED_CAPABILITIES & 0xFFFF_FFFF,
            character_set=255,
            auth_plugin=method,
            charsets=CHARSETS,
        )
    )


@METHODS
def test_a_collation_that_does_not_fit_into_a_login_is_named_after_it(method: str) -> None:
    """field-notes: AuthSwitchRequest / COM_CHANGE_USER"""
    login = MysqlServerLogin(dataclasses.replace(STARTUP, character_set=303), "secret")
    login.receive(greeting_of(method))
    (response,) = split(login.take_output())
    assert response[12] == 0
    assert login.receive(packet(build_auth_switch(method, SCRAMBLE[::-1]), 2)) == []
    login.take_output()
    assert login.receive(packet(build_ok(2), 4)) == []
    (change,) = split(login.take_output())
    again = parse_change_user(change[4:], 0)
    assert (again.character_set, again.user, again.database, again.auth_plugin) == (303, "app", "shop", method)
    assert again.auth == auth.proof(method, SECRET, SCRAMBLE[::-1])
    assert login.receive(packet(build_auth_switch(method, SCRAMBLE), 1)) == []
    assert login.take_output() == packet(auth.proof(method, SECRET, SCRAMBLE), 2)
    assert login.receive(packet(build_ok(2), 3)) == []
    (ready,) = login.receive(TOLD + packet(build_ok(2), 1))
    assert isinstance(ready, BackendReady)


def test_an_engine_may_refuse_the_collation_that_follows_a_login() -> None:
    login = MysqlServerLogin(dataclasses.replace(STARTUP, character_set=303), "secret")
    login.receive(greeting_of(auth.NATIVE))
    login.receive(packet(build_ok(2), 2))
    login.take_output()
    (refused,) = login.receive(packet(build_err(1231, "42000", "Variable 'character_set_client' can't be set"), 1))
    assert isinstance(refused, BackendRefused)
    assert refused.code == "1231"


@pytest.mark.parametrize(
    "answer",
    [
        [err_payload(1820)],
        Speech(deprecates_eof=True).charsets(b"utf8mb4", b"\0u\0t\0f", b"utf8mb4", b"utf8mb4_bin"),
        Speech(deprecates_eof=True).charsets(b"utf8mb4", b"utf8mb4", b"utf8mb4", b"x'; drop"),
    ],
    ids=["password expired", "utf-16", "no name"],
)
def test_charsets_that_cannot_be_read_are_told_to_be_unknown(answer: list[bytes]) -> None:
    """What such a session has is not known, so it stays where it is."""
    login = MysqlServerLogin(STARTUP, "secret")
    login.receive(greeting_of(auth.NATIVE))
    login.receive(packet(build_ok(2), 2))
    (ready,) = login.receive(numbered(answer) + packet(build_ok(2), 1))
    assert isinstance(ready, BackendReady)
    assert ready.facts.charsets == ()
    ledger = WIRE.ledger(STARTUP)
    assert ledger.pins == []
    tracker = WIRE.tracker(ledger, shares_backends=False)
    tracker.link(ready.facts, {})
    assert ledger.pins == ["session state cannot be read"]


def test_the_server_s_own_charsets_may_be_several() -> None:
    login = MysqlServerLogin(STARTUP, "secret")
    login.receive(greeting_of(auth.NATIVE))
    login.receive(packet(build_ok(2), 2))
    told = numbered(Speech(deprecates_eof=True).charsets(b"cp1251", None, b"koi8r", b"koi8r_bin"))
    (ready,) = login.receive(told + packet(build_ok(2), 1))
    assert isinstance(ready, BackendReady)
    sent = split(WIRE.reset(STARTUP, ready.facts).request)
    assert [one[5:] for one in sent if b"charset" in one or b"character_set" in one or b"collation" in one] == [
        b"SET SESSION character_set_client = 'cp1251'",
        b"SET SESSION character_set_connection = 'koi8r'",
        b"SET SESSION character_set_results = NULL",
        b"SET SESSION collation_connection = 'koi8r_bin'",
    ]


def test_an_engine_that_lacks_a_flag_is_refused_by_its_name() -> None:
    login = MysqlServerLogin(STARTUP, "secret")
    (refused,) = login.receive(greeting_of(auth.SHA2, c.OFFERED_CAPABILITIES & ~c.CLIENT_DEPRECATE_EOF))
    assert isinstance(refused, BackendRefused)
    assert "CLIENT_DEPRECATE_EOF" in refused.message


def test_an_engine_may_refuse_in_place_of_its_greeting() -> None:
    login = MysqlServerLogin(STARTUP, "secret")
    (refused,) = login.receive(packet(b"\xff" + (1040).to_bytes(2, "little") + b"Too many connections", 0))
    assert refused == BackendRefused("1040", "HY000", "Too many connections")


@METHODS
def test_an_engine_may_ask_to_switch(method: str) -> None:
    login = MysqlServerLogin(STARTUP, "secret")
    login.receive(greeting_of("client_ed25519"))
    login.take_output()
    assert login.receive(packet(build_auth_switch(method, SCRAMBLE[::-1]), 2)) == []
    assert login.take_output() == packet(auth.proof(method, SECRET, SCRAMBLE[::-1]), 3)


def test_an_engine_may_want_sha256_password() -> None:
    login = MysqlServerLogin(STARTUP, "secret")
    login.receive(greeting_of(auth.SHA2))
    login.take_output()
    login.receive(packet(build_auth_switch(auth.SHA256, SCRAMBLE[::-1]), 2))
    assert login.take_output() == packet(b"\1", 3)
    login.receive(packet(b"\1" + auth.own_public_key(), 4))
    (answer,) = split(login.take_output())
    assert auth.decrypt_password(answer[4:], SCRAMBLE[::-1]) == SECRET
    assert login.receive(packet(build_ok(2), 6)) == []
    assert isinstance(login.receive(TOLD + packet(build_ok(2), 1))[0], BackendReady)


def test_a_plugin_turnout_does_not_speak_is_named() -> None:
    login = MysqlServerLogin(STARTUP, "secret")
    login.receive(greeting_of(auth.NATIVE))
    (refused,) = login.receive(packet(build_auth_switch("dialog", b""), 2))
    assert isinstance(refused, BackendRefused)
    assert "dialog" in refused.message


def test_an_engines_error_is_passed_on() -> None:
    login = MysqlServerLogin(STARTUP, "secret")
    login.receive(greeting_of(auth.NATIVE))
    (refused,) = login.receive(packet(build_err(1045, "28000", "Access denied"), 2))
    assert refused == BackendRefused("1045", "28000", "Access denied")


@pytest.mark.parametrize(
    "answer",
    [
        packet(b"", 2), packet(b"\7", 2), packet(b"\1\5", 2), packet(build_auth_switch(auth.SHA2, b"short"), 2),
        packet(build_ok(2), 1), packet(b"\1\4", 2) + packet(b"\1no key", 4),
    ],
)  # fmt: skip
def test_what_no_engine_may_say_is_its_violation(answer: bytes) -> None:
    login = MysqlServerLogin(STARTUP, "secret")
    login.receive(greeting_of(auth.SHA2))
    with pytest.raises(ProtocolViolation, match="server"):
        login.receive(answer)


# --- one against the other ------------------------------------------------------------------------------------------


@given(
    cuts=st.lists(st.integers(0, 200), max_size=6),
    method=st.sampled_from([auth.NATIVE, auth.SHA2, "trust"]),
    password=st.sampled_from(["secret", "", "päss wörd"]),
)
@settings(max_examples=60, deadline=None)
def test_both_logins_understand_each_other_in_any_cut(cuts: list[int], method: str, password: str) -> None:
    ours = MysqlClientLogin(method=method, facts=FACTS, connection_id=7, databases=[])
    theirs = MysqlServerLogin(STARTUP, password)
    facts: list[LoginFact] = []
    for _ in range(8):
        facts += fed(theirs, ours.take_output(), cuts)
        for fact in fed(ours, theirs.take_output(), cuts):
            if isinstance(fact, CredentialWanted):
                facts += ours.give_credential(password)
            else:
                facts.append(fact)
        if facts and isinstance(facts[-1], LoginProven):
            facts += theirs.receive(ours.accept(FACTS))
            facts += fed(theirs, TOLD, cuts)
            break
    assert facts[0] == LoginProven(dataclasses.replace(STARTUP, parameters=(("_proxy_name", "turnout"),)))
    assert isinstance(facts[1], BackendReady)


def fed(login: MysqlClientLogin | MysqlServerLogin, data: bytes, cuts: list[int]) -> list[LoginFact]:
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    facts: list[LoginFact] = []
    for start, end in zip(edges, edges[1:], strict=False):  # noqa: RUF007
        facts += login.receive(data[start:end])
    return facts


@given(
    chunks=st.lists(
        st.one_of(st.binary(max_size=60), st.builds(packet, st.binary(max_size=80), st.integers(0, 3))), max_size=5
    )
)
@settings(max_examples=200, deadline=None)
def test_garbage_gives_a_violation_and_nothing_else(chunks: list[bytes]) -> None:
    for login in (
        MysqlClientLogin(method=auth.SHA2, facts=None, connection_id=1, databases=[]),
        MysqlServerLogin(STARTUP, "secret"),
    ):
        try:
            for chunk in chunks:
                for fact in login.receive(chunk):
                    if isinstance(fact, CredentialWanted):
                        assert isinstance(login, MysqlClientLogin)
                        login.give_credential("secret")
        except ProtocolViolation:
            continue
