from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import IllegalUse, ProtocolViolation
from protocols.postgres import WIRE
from protocols.postgres.auth import MECHANISM, ScramClient, ScramServer, build_verifier
from protocols.postgres.constants import PROTOCOL_3_0, PROTOCOL_3_2, STARTUP_BYTES_MAX
from protocols.postgres.handshake import PostgresClientLogin, PostgresServerLogin
from protocols.postgres.messages import (
    build,
    build_authentication,
    build_backend_key,
    build_cancel_request,
    build_error,
    build_gssenc_request,
    build_negotiate_protocol_version,
    build_parameter_status,
    build_ready,
    build_sasl_initial,
    build_sasl_response,
    build_ssl_request,
    build_startup,
    build_untagged,
    parse_error,
    parse_negotiate_protocol_version,
)
from protocols.wire import (
    BackendFacts,
    BackendReady,
    BackendRefused,
    CancelRequested,
    ClientLogin,
    CredentialWanted,
    ErrorReply,
    LoginFact,
    LoginProven,
    LoginRefused,
    Startup,
    TlsRefused,
    TlsWanted,
)
from tests.protocols.postgres.relay import may_violate, query, split, tags

FACTS = BackendFacts("15.1", process_id=2**32 - 1, secret=b"abcd", parameters={"server_version": "15.1", "a": "ü"})


def startup_packet(version: int = PROTOCOL_3_0, **parameters: str) -> bytes:
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items())
    return build_untagged(version, body + b"\0")


def login(method: str = "trust") -> ClientLogin:
    return WIRE.client_login(method=method, facts=None, connection_id=1, databases=[])


def refusal(output: bytes) -> tuple[str, str]:
    last = split(output)[-1]
    assert last[:1] == b"E"
    fields = parse_error(last)
    assert fields.severity == "FATAL"
    return fields.sqlstate, fields.message


# --- first packets ------------------------------------------------------------------------------------------------


def test_a_client_that_names_itself_is_looked_up() -> None:
    client = login()
    assert client.receive(build_startup("ann", "shop", [("options", "-c a=b")])) == [CredentialWanted("ann", "shop")]
    assert client.give_credential("") == [LoginProven(Startup("ann", "shop", (("options", "-c a=b"),)))]
    assert client.take_output() == b""


def test_the_database_is_the_users_by_default() -> None:
    assert login().receive(startup_packet(user="ann")) == [CredentialWanted("ann", "ann")]
    assert login().receive(startup_packet(user="ann", database="")) == [CredentialWanted("ann", "ann")]


def test_all_startup_parameters_are_kept_and_sorted() -> None:
    client = login()
    client.receive(startup_packet(user="u", timezone="UTC", DateStyle="ISO", application_name="ü", options="-c x=y"))
    assert client.give_credential("") == [
        LoginProven(
            Startup(
                "u", "u", (("DateStyle", "ISO"), ("application_name", "ü"), ("options", "-c x=y"), ("timezone", "UTC"))
            )
        )
    ]


def test_startup_bytes_that_are_no_utf8_reach_the_backend_unchanged() -> None:
    client = login()
    packet = build_untagged(PROTOCOL_3_0, b"user\0\xff\xfe\0database\0\xe4\0application_name\0\xfc\0\0")
    client.receive(packet)
    (fact,) = client.give_credential("")
    assert isinstance(fact, LoginProven)
    assert WIRE.server_login(fact.startup, None, oldest=True).take_output() == packet


@pytest.mark.parametrize("order", [[0], [1], [0, 1], [1, 0], []])
def test_encryption_is_refused_once_each_and_the_login_goes_on(order: list[int]) -> None:
    client = login()
    for index in order:
        assert client.receive([build_ssl_request(), build_gssenc_request()][index]) == []
        assert client.take_output() == b"N"
    assert client.receive(startup_packet(user="a")) == [CredentialWanted("a", "a")]
    assert client.take_output() == b""


@pytest.mark.parametrize("first", [build_ssl_request(), build_gssenc_request()])
@pytest.mark.parametrize("behind", [b"\0", startup_packet(user="a"), b"\x16\x03\x01"])
def test_bytes_behind_a_request_for_encryption_are_a_violation(first: bytes, behind: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="before its answer"):
        login().receive(first + behind)


def test_encryption_is_not_asked_for_twice() -> None:
    client = login()
    client.receive(build_ssl_request())
    with pytest.raises(ProtocolViolation, match="after its answer"):
        client.receive(build_ssl_request())


@pytest.mark.parametrize("secret", [b"abcd", bytes(256)])
def test_a_cancel_request_is_a_fact_and_gets_no_answer(secret: bytes) -> None:
    """field-notes: BackendKeyData length"""
    client = login()
    client.receive(build_ssl_request())
    client.take_output()
    assert client.receive(build_cancel_request(2**32 - 1, secret)) == [CancelRequested(2**32 - 1, secret)]
    assert client.take_output() == b""


@pytest.mark.parametrize("secret", [b"", b"abc", bytes(257)])
def test_a_cancel_key_has_4_to_256_bytes(secret: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="CancelRequest"):
        login().receive(build_cancel_request(1, secret))


@pytest.mark.parametrize(
    ("version", "options", "minor", "negotiated"),
    [
        (PROTOCOL_3_0, [], 0, False),
        (PROTOCOL_3_0, ["_pq_.a", "_pq_.b"], 0, True),
        (0x0003_0001, [], 1, False),
        (PROTOCOL_3_2, [], 2, False),
        (PROTOCOL_3_2, ["_pq_.a"], 2, True),
        (0x0003_0003, [], 2, True),
        (3 << 16 | 9999, ["_pq_.test_protocol_negotiation"], 2, True),
    ],
)
def test_newer_versions_are_negotiated_down_once(
    version: int, options: list[str], minor: int, negotiated: bool
) -> None:
    """field-notes: NegotiateProtocolVersion"""
    client = login()
    packet = startup_packet(version, user="a", **dict.fromkeys(options, "x"))
    assert client.receive(packet) == [CredentialWanted("a", "a")]
    output = client.take_output()
    assert bool(output) == negotiated
    if negotiated:
        assert tags(output) == "v"
        assert int.from_bytes(output[5:9], "big") == 3 << 16 | minor, "the whole number, as PostgreSQL sends it"
        assert parse_negotiate_protocol_version(output) == (minor, options)
    (fact,) = client.give_credential("")
    assert fact == LoginProven(Startup("a", "a")), "options of the protocol are not the backend's"
    size = 32 if minor == 2 else 4
    assert client.secret_bytes == size
    accepted = client.accept(replace(FACTS, secret=bytes(size)))
    assert tags(accepted).count("v") == 0, "it is negotiated once"
    assert build_backend_key(FACTS.process_id, bytes(size)) in accepted


@pytest.mark.parametrize("version", [0, 0x0002_0000, 0x0004_0000, 1234 << 16 | 1])
def test_other_versions_are_refused(version: int) -> None:
    client = login()
    (fact,) = client.receive(startup_packet(version, user="a"))
    assert isinstance(fact, LoginRefused)
    assert refusal(client.take_output())[0] == "0A000"


@pytest.mark.parametrize("value", ["true", "1", "on", "yes"])
def test_physical_replication_is_of_no_database(value: str) -> None:
    client = login()
    client.receive(startup_packet(user="a", database="b", replication=value))
    (fact,) = client.give_credential("")
    assert fact == LoginProven(Startup("a", "", (("replication", value),)))
    assert b"database" not in WIRE.server_login(fact.startup, None).take_output()


def test_logical_replication_is_of_its_database() -> None:
    client = login()
    assert client.receive(startup_packet(user="a", database="b", replication="database")) == [
        CredentialWanted("a", "b")
    ]
    (fact,) = client.give_credential("")
    assert isinstance(fact, LoginProven)
    assert fact.startup == Startup("a", "b", (("replication", "database"),))
    assert fact.startup.is_replication


def test_no_replication_is_an_ordinary_session() -> None:
    client = login()
    assert client.receive(startup_packet(user="a", replication="off")) == [CredentialWanted("a", "a")]
    (fact,) = client.give_credential("")
    assert fact == LoginProven(Startup("a", "a"))


def test_replication_that_is_neither_is_refused() -> None:
    client = login()
    (fact,) = client.receive(startup_packet(user="a", replication="maybe"))
    assert isinstance(fact, LoginRefused)
    assert refusal(client.take_output())[0] == "22023"


# --- TLS ----------------------------------------------------------------------------------------------------------


def tls_login() -> PostgresClientLogin:
    return PostgresClientLogin(method="trust", offers_tls=True)


@pytest.mark.parametrize("asks_gss_first", [False, True])
def test_tls_is_answered_s_and_everything_else_comes_within_it(asks_gss_first: bool) -> None:
    """field-notes: SSLRequest / GSSENCRequest"""
    client = tls_login()
    if asks_gss_first:
        assert client.receive(build_gssenc_request()) == []
        assert client.take_output() == b"N"
    assert client.receive(build_ssl_request()) == [TlsWanted()]
    assert client.take_output() == b"S"
    assert client.receive(startup_packet(user="a")) == [CredentialWanted("a", "a")]
    assert client.take_output() == b""


@pytest.mark.parametrize("again", [build_ssl_request(), build_gssenc_request()])
def test_within_tls_no_encryption_is_asked_for(again: bytes) -> None:
    client = tls_login()
    client.receive(build_ssl_request())
    with pytest.raises(ProtocolViolation, match="after its answer"):
        client.receive(again)


@pytest.mark.parametrize("behind", [b"\0", startup_packet(user="a"), b"\x16\x03\x01"])
def test_what_came_in_clear_is_never_used_within_tls(behind: bytes) -> None:
    """field-notes: SSLRequest / GSSENCRequest"""
    with pytest.raises(ProtocolViolation, match="before its answer"):
        tls_login().receive(build_ssl_request() + behind)


def test_a_connection_may_begin_with_tls_and_then_must_agree_on_the_protocol() -> None:
    """field-notes: Direct TLS"""
    client = tls_login()
    hello = b"\x16\x03\x01\x00\x05hello"
    assert client.receive(hello) == [TlsWanted(received=hello, alpn="postgresql")]
    assert client.take_output() == b""
    with pytest.raises(ProtocolViolation, match="after its answer"):
        client.receive(build_ssl_request())


def test_direct_tls_is_the_beginning_or_nothing() -> None:
    client = tls_login()
    client.receive(build_gssenc_request())
    with pytest.raises(ProtocolViolation):
        client.receive(b"\x16\x03\x01\x00\x05hello")


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        (b"S", TlsWanted()),
        (b"N", TlsRefused()),
        (b"E....", TlsRefused(is_over=True)),
    ],
)
def test_an_engine_answers_a_request_for_tls_with_one_byte(answer: bytes, fact: object) -> None:
    request = WIRE.tls_request()
    assert request is not None
    assert request.take_output() == build_ssl_request()
    assert request.receive(answer) == [fact]
    assert request.take_output() == b""


@pytest.mark.parametrize("answer", [b"SR\0\0\0\x08\0\0\0\0", b"NN", b"R"])
def test_bytes_behind_an_engines_answer_are_never_used(answer: bytes) -> None:
    """The mirror image of CVE-2021-23214: CVE-2021-23222.

    field-notes: SSLRequest / GSSENCRequest"""
    request = WIRE.tls_request()
    assert request is not None
    with pytest.raises(ProtocolViolation):
        request.receive(answer)


def test_a_user_is_required() -> None:
    client = login()
    (fact,) = client.receive(startup_packet(database="a"))
    assert isinstance(fact, LoginRefused)
    assert refusal(client.take_output())[0] == "28000"


@pytest.mark.parametrize("size", [0, 4, 7, STARTUP_BYTES_MAX + 5, 2**31, 2**32 - 1])
def test_the_first_packet_is_bounded(size: int) -> None:
    with pytest.raises(ProtocolViolation, match="invalid length"):
        login().receive(size.to_bytes(4, "big"))


def test_the_longest_first_packet_is_taken() -> None:
    fixed = len(startup_packet(user="a", options=""))
    packet = startup_packet(user="a", options="x" * (STARTUP_BYTES_MAX + 4 - fixed))
    assert len(packet) == STARTUP_BYTES_MAX + 4
    assert login().receive(packet)
    with pytest.raises(ProtocolViolation):
        login().receive(startup_packet(user="a", options="x" * (STARTUP_BYTES_MAX + 5 - fixed)))


@pytest.mark.parametrize(
    "body", [b"", b"user\0", b"user\0\0", b"user\0a", b"user\0a\0", b"user\0a\0\0x", b"user\0a\0\0\0\0"]
)
def test_a_cut_startup_packet_is_a_violation(body: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="StartupMessage"):
        login().receive(build_untagged(PROTOCOL_3_0, body))


# --- proofs -------------------------------------------------------------------------------------------------------


def prove(client: ClientLogin, password: str) -> Sequence[LoginFact]:
    """The client's part of SCRAM."""
    question = client.take_output()
    assert question == build_authentication(10, MECHANISM.encode() + b"\0\0")
    scram = ScramClient(password)
    assert client.receive(build_sasl_initial(MECHANISM, scram.first())) == []
    facts = client.receive(build_sasl_response(scram.last(client.take_output()[9:])))
    if facts and isinstance(facts[0], LoginProven):
        scram.check(client.take_output()[9:])
    return facts


@pytest.mark.parametrize("password", ["secret", "p\N{NO-BREAK SPACE}w"])
def test_the_right_password_is_proven(password: str) -> None:
    client = login("scram-sha-256")
    client.receive(startup_packet(user="a"))
    assert client.give_credential(password) == []
    (fact,) = prove(client, password)
    assert isinstance(fact, LoginProven)
    assert fact.startup == Startup("a", "a")
    output = client.accept(FACTS)
    assert tags(output) == "RSSKZ"
    assert output.startswith(build_authentication(0))


def test_the_end_of_a_proof_and_of_the_login_go_out_together() -> None:
    """Or are refused together: what is still in the output comes first."""
    error = ErrorReply("no room", "53300", 1040, "08004")
    for is_accepted in (True, False):
        client, scram = login("scram-sha-256"), ScramClient("secret")
        client.receive(startup_packet(user="a"))
        client.give_credential("secret")
        client.receive(build_sasl_initial(MECHANISM, scram.first()))
        client.receive(build_sasl_response(scram.last(split(client.take_output())[-1][9:])))
        output = client.accept(FACTS) if is_accepted else client.refuse(error)
        assert tags(output) == ("RRSSKZ" if is_accepted else "RE")
        scram.check(split(output)[0][9:])
        assert client.take_output() == b""


@pytest.mark.parametrize("password", ["wrong", None, ""])
def test_wrong_unknown_and_empty_are_refused_alike(password: str | None) -> None:
    client = login("scram-sha-256")
    client.receive(startup_packet(user="a"))
    assert client.give_credential(password) == []
    (fact,) = prove(client, "secret" if password else "")
    assert isinstance(fact, LoginRefused)
    assert refusal(client.take_output()) == ("28P01", 'password authentication failed for user "a"')
    assert client.receive(build_ready()) == []


def test_an_unknown_user_of_a_trusting_service_is_refused() -> None:
    client = login("trust")
    client.receive(startup_packet(user="a"))
    (fact,) = client.give_credential(None)
    assert isinstance(fact, LoginRefused)
    assert refusal(client.take_output())[0] == "28000"


@pytest.mark.parametrize(
    "message",
    [
        query("select 1"),
        build(b"p"),
        build(b"p", b"SCRAM-SHA-256-PLUS\0\0\0\0\0"),
        build_sasl_initial(MECHANISM, b"p=tls-server-end-point,,n=,r=x"),
        build(b"p", MECHANISM.encode() + b"\0\x7f\xff\xff\xff"),
        build(b"p", MECHANISM.encode() + b"\0\xff\xff\xff\xff"),
        build(b"p", b"no end"),
    ],
)
def test_a_malformed_proof_ends_the_login(message: bytes) -> None:
    client = login("scram-sha-256")
    client.receive(startup_packet(user="a"))
    client.give_credential("secret")
    client.take_output()
    (fact,) = client.receive(message)
    assert isinstance(fact, LoginRefused)
    assert refusal(client.take_output())[0] == "08P01"


@pytest.mark.parametrize(("method", "longest"), [("scram-sha-256", 1024), ("md5", 65_535), ("password", 65_535)])
@pytest.mark.parametrize("excess", [1, 2**24, 2**31 - 65_535, 2**32 - 1 - 65_535])
def test_a_long_proof_is_refused_before_it_is_there(method: str, longest: int, excess: int) -> None:
    """field-notes: Oversized/partial startup packet, long password, missing SQLSTATE, length overflow"""
    client = login(method)
    client.receive(startup_packet(user="a"))
    client.give_credential("secret")
    client.take_output()
    assert client.receive(b"p" + longest.to_bytes(4, "big")) == []
    client = login(method)
    client.receive(startup_packet(user="a"))
    client.give_credential("secret")
    client.take_output()
    (fact,) = client.receive(b"p" + (longest + excess).to_bytes(4, "big"))
    assert isinstance(fact, LoginRefused)
    sqlstate, text = refusal(client.take_output())
    assert sqlstate == "08P01"
    assert "invalid length" in text


def test_what_a_client_pipelines_behind_its_login_is_the_sessions() -> None:
    client = login()
    client.receive(startup_packet(user="a") + query("select 1"))
    client.give_credential("")
    client.accept(FACTS)
    assert client.take_unread() == query("select 1")


def test_a_key_of_another_length_is_our_own_mistake() -> None:
    client = login()
    client.receive(startup_packet(user="a"))
    client.give_credential("")
    with pytest.raises(IllegalUse):
        client.accept(replace(FACTS, secret=b"abcde"))


def test_steps_out_of_order_are_our_own_mistakes() -> None:
    with pytest.raises(IllegalUse):
        login().give_credential("")
    with pytest.raises(IllegalUse):
        login().accept(FACTS)
    with pytest.raises(IllegalUse):
        login("caching_sha2_password")


def test_a_login_can_be_refused_in_any_phase() -> None:
    error = ErrorReply("no room", "53300", 1040, "08004", hint="come back")
    for packets in ([], [startup_packet(user="a")]):
        client = login()
        for packet in packets:
            client.receive(packet)
        assert refusal(client.refuse(error)) == ("53300", "no room")


@settings(max_examples=50)
@given(st.lists(st.integers(1, 30), max_size=30))
def test_any_cut_of_a_login_gives_the_same_facts(sizes: list[int]) -> None:
    client = PostgresClientLogin(method="trust")
    stream = startup_packet(0x0003_0003, user="a", database="b", DateStyle="ISO") + query("select 1")
    facts: list[LoginFact] = []
    for size in [*sizes, len(stream)]:
        facts += client.receive(stream[:size])
        stream = stream[size:]
    assert facts == [CredentialWanted("a", "b")]
    assert tags(client.take_output()) == "v"
    client.give_credential("")
    client.accept(replace(FACTS, secret=bytes(32)))
    assert client.take_unread() == query("select 1")


@given(st.binary(max_size=100))
def test_garbage_is_at_worst_a_violation(garbage: bytes) -> None:
    for method in ("trust", "scram-sha-256"):
        for start in (b"", startup_packet(user="a")):
            client = login(method)
            if client.receive(start) and client.give_credential("x"):
                continue
            with may_violate("client"):
                client.receive(garbage)


# --- at an engine -------------------------------------------------------------------------------------------------

GREETING = [
    build_authentication(0),
    build_parameter_status("server_version", "15.1"),
    build(b"N", b"SNOTICE\0\0"),
    build_backend_key(2**32 - 1, b"abcd"),
    build_parameter_status("TimeZone", "UTC"),
    build_ready(),
]
READY = BackendReady(BackendFacts("15.1", 2**32 - 1, b"abcd", {"server_version": "15.1", "TimeZone": "UTC"}))


def engine_login(password: str | None = "secret") -> PostgresServerLogin:
    made = PostgresServerLogin(Startup("a", "b"), password)
    assert made.take_output() == build_startup("a", "b", minor=2)
    return made


def test_a_login_yields_what_the_engine_told() -> None:
    for size in (1, 3, 1000):
        made = engine_login()
        stream = b"".join(GREETING) + b"N...."
        facts = [fact for at in range(0, len(stream), size) for fact in made.receive(stream[at : at + size])]
        assert facts == [READY]
        assert made.take_unread() == b"N...."


def test_a_key_of_any_lawful_length_is_kept() -> None:
    """field-notes: BackendKeyData length"""
    made = engine_login()
    (fact,) = made.receive(build_authentication(0) + build_backend_key(1, bytes(256)) + build_ready())
    assert isinstance(fact, BackendReady)
    assert len(fact.facts.secret) == 256


def test_a_negotiated_version_is_no_answer_yet() -> None:
    made = engine_login()
    assert made.receive(build_negotiate_protocol_version(PROTOCOL_3_0, [])) == []
    assert made.receive(b"".join(GREETING)) == [READY]


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (b"", build_negotiate_protocol_version(PROTOCOL_3_0, ["_pq_.x"])),
        (b"", build_negotiate_protocol_version(0x0003_0003, [])),
        (build_negotiate_protocol_version(PROTOCOL_3_0, []), build_negotiate_protocol_version(PROTOCOL_3_0, [])),
        (build_authentication(0), build_negotiate_protocol_version(PROTOCOL_3_0, [])),
    ],
    ids=["an option nobody asked for", "a newer version", "twice", "too late"],
)
def test_an_engine_negotiates_what_was_asked_for_and_once(first: bytes, message: bytes) -> None:
    """field-notes: NegotiateProtocolVersion"""
    made = engine_login()
    made.receive(first)
    with pytest.raises(ProtocolViolation):
        made.receive(message)


@pytest.mark.parametrize("sqlstate", ["0A000", "08P01"])
def test_an_engine_that_cannot_negotiate_is_asked_for_the_oldest_version(sqlstate: str) -> None:
    refused = build_error(severity="FATAL", sqlstate=sqlstate, message="unsupported frontend protocol 3.2")
    (fact,) = engine_login().receive(refused)
    assert isinstance(fact, BackendRefused)
    assert fact.is_too_new
    oldest = WIRE.server_login(Startup("a", "b"), None, oldest=True)
    assert oldest.take_output() == build_startup("a", "b")
    (fact,) = oldest.receive(refused)
    assert isinstance(fact, BackendRefused)
    assert not fact.is_too_new, "there is none older"


@pytest.mark.parametrize("kind", [3, 5, 10])
def test_a_verifier_cannot_prove_anything_to_an_engine(kind: int) -> None:
    key = "A" * 43 + "="
    for password in (None, f"SCRAM-SHA-256$4096:AAAA${key}:{key}"):
        made = engine_login(password)
        (fact,) = made.receive(build_authentication(kind, b"SCRAM-SHA-256\0\0" if kind == 10 else b"salt"))
        assert isinstance(fact, BackendRefused)
        assert fact.sqlstate == "28P01"
        assert made.take_output() == b""


@pytest.mark.parametrize(("kind", "data"), [(2, b""), (7, b""), (9, b""), (10, b"OTHER\0\0"), (99, b"")])
def test_an_unknown_authentication_is_refused_by_its_number(kind: int, data: bytes) -> None:
    (fact,) = engine_login().receive(build_authentication(kind, data))
    assert isinstance(fact, BackendRefused)
    assert fact.sqlstate == "28000"


def test_an_engines_refusal_keeps_its_sqlstate() -> None:
    made = engine_login()
    refused = build_error(severity="FATAL", sqlstate="57P03", message="the database system is starting up")
    text = "the database system is starting up"
    assert made.receive(refused) == [BackendRefused("57P03", "57P03", text, is_before_proof=True)]
    made = engine_login()
    made.receive(build_authentication(0))
    assert made.receive(build(b"E", b"\0")) == [BackendRefused("XX000", "XX000", "no message")]


def test_an_engine_must_prove_itself_too() -> None:
    made = engine_login()
    made.receive(build_authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"))
    first = made.take_output()
    scram = ScramServer(build_verifier("secret"))
    made.receive(build_authentication(11, scram.respond_first(first[5 + len(MECHANISM) + 1 + 4 :])))
    made.take_output()
    with pytest.raises(ProtocolViolation, match="did not prove"):
        made.receive(build_authentication(0))


@pytest.mark.parametrize(
    "message",
    [
        build_ready(),
        build(b"D", b"\0\0"),
        build_backend_key(1, b"abcd"),
        build_authentication(11, b"r=x"),
        build_authentication(12, b"v=x"),
        build(b"R", b"\0"),
        build_authentication(0) + build_authentication(0),
        build_authentication(0) + build_backend_key(1, b"abc"),
        build_authentication(0) + build(b"Z", b"T"),
        build_authentication(5, b"sal"),
        build(b"E", b"S"),
        build(b"v", b"\0\0\0\0\x7f\xff\xff\xff"),
        b"R" + (2**24).to_bytes(4, "big"),
        b"R\0\0\0\3",
    ],
)
def test_an_engine_that_breaks_the_rules_is_a_violation(message: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="server"):
        engine_login().receive(message)


@given(st.binary(max_size=60), st.booleans())
def test_garbage_of_an_engine_is_at_worst_a_violation(garbage: bytes, is_authenticated: bool) -> None:
    made = engine_login()
    with may_violate("server"):
        made.receive((build_authentication(0) if is_authenticated else b"") + garbage)
