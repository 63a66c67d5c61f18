"""Every kind of secret with every method, both sides: who gets in, and what the proof leaves to open backends with."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ProtocolViolation
from protocols.postgres.auth import (
    BINDING_TYPE,
    MECHANISM,
    MECHANISM_PLUS,
    ScramClient,
    build_verifier,
    common_name,
    is_md5,
    is_password,
    is_plain,
    is_verifier,
    md5_response,
    md5_secret,
    mock_verifier,
    set_salt_key,
    verifier_of,
)
from protocols.postgres.messages import (
    build,
    build_error,
    build_password,
    build_sasl_initial,
    build_sasl_response,
    parse_error,
    parse_sasl_initial,
)
from protocols.postgres.proof import (
    AUTH_CLEARTEXT,
    AUTH_MD5,
    AUTH_SASL,
    AUTH_SASL_CONTINUE,
    AUTH_SASL_FINAL,
    ClientProof,
    Refused,
    ServerProof,
)
from protocols.wire import CLEAR, Channel, Credential, ScramKeys
from tests.protocols.postgres.relay import may_violate

USER = "app"
PASSWORD = "secret"
BINDING = bytes(range(32))
SECURE = Channel(is_encrypted=True, binding=BINDING)
CERTIFICATE = {"subject": ((("organizationName", "Acme"),), (("commonName", USER),))}


def verifier(password: str = PASSWORD, iterations: int = 4096) -> str:
    made = build_verifier(password, b"a salt of 16 b.", iterations)
    salt, stored, server = (base64.b64encode(x).decode() for x in (made.salt, made.stored_key, made.server_key))
    return f"SCRAM-SHA-256${iterations}:{salt}${stored}:{server}"


SECRETS = {"plain": PASSWORD, "md5": md5_secret(USER, PASSWORD), "verifier": verifier()}


def prove(method: str, secret: str | None, mine: Credential, channel: Channel = CLEAR) -> ClientProof:
    """A whole conversation between a client that has `mine` and a Turnout that keeps `secret`. Raises Refused."""
    theirs = ClientProof(USER, method, secret, channel)
    ours = ServerProof(USER, mine, channel.binding)
    asked = theirs.begin()
    while not theirs.is_complete:
        kind, data = int.from_bytes(asked[5:9], "big"), asked[9:]
        asked = theirs.take(ours.take(kind, data))
    if asked:
        ours.take(int.from_bytes(asked[5:9], "big"), asked[9:])
    ours.check_end()
    return theirs


WORKS = {
    ("password", "plain"), ("password", "md5"), ("password", "verifier"),
    ("md5", "plain"), ("md5", "md5"), ("md5", "verifier"),
    ("scram-sha-256", "plain"), ("scram-sha-256", "verifier"),
}  # fmt: skip
"""md5 with a verifier works because SCRAM is asked for in its place."""


@pytest.mark.parametrize("channel", [CLEAR, SECURE], ids=["clear", "tls"])
@pytest.mark.parametrize("kept", SECRETS)
@pytest.mark.parametrize("method", ["password", "md5", "scram-sha-256"])
def test_the_right_password_proves_what_its_secret_allows(method: str, kept: str, channel: Channel) -> None:
    """field-notes: Auth"""
    if (method, kept) in WORKS:
        proof = prove(method, SECRETS[kept], PASSWORD, channel)
        assert proof.is_complete
        assert proof.credential is not None, "every one of these leaves something to open backends with"
    else:
        with pytest.raises(Refused, match="password authentication failed"):
            prove(method, SECRETS[kept], PASSWORD, channel)


@pytest.mark.parametrize("given", ["wrong", SECRETS["md5"], SECRETS["verifier"]])
@pytest.mark.parametrize("kept", SECRETS)
@pytest.mark.parametrize("method", ["password", "md5", "scram-sha-256"])
def test_neither_a_wrong_password_nor_what_is_kept_of_the_right_one_gets_in(method: str, kept: str, given: str) -> None:
    """Whoever reads the users file must not get in with what stands there. The exception is md5's weakness: to that
    method the hash is as good as the password."""
    theirs = ClientProof(USER, method, SECRETS[kept], CLEAR)
    asked = theirs.begin()
    if asked[8] == AUTH_SASL:
        client = ScramClient(given)
        first = theirs.take(build_sasl_initial(MECHANISM, client.first()))
        message = build_sasl_response(client.last(first[9:]))
    elif asked[8] == AUTH_MD5:
        message = build_password(md5_response(USER, given, asked[9:]) if not is_verifier(given) else b"md5")
    else:
        message = build_password(given.encode())
    if asked[8] == AUTH_MD5 and is_md5(given):
        theirs.take(message)
        return
    with pytest.raises(Refused) as refused:
        theirs.take(message)
    assert refused.value.sqlstate == "28P01"


@pytest.mark.parametrize("secret", [None, ""])
@pytest.mark.parametrize("method", ["password", "md5", "scram-sha-256"])
def test_an_unknown_user_is_asked_and_refused_as_a_known_one_is(method: str, secret: str | None) -> None:
    assert len(ClientProof(USER, method, secret, CLEAR).begin()) == len(ClientProof(USER, method, "x", CLEAR).begin())
    with pytest.raises(Refused) as unknown:
        prove(method, secret, "x")
    with pytest.raises(Refused) as wrong:
        prove(method, "y", "x")
    assert (unknown.value.sqlstate, unknown.value.text) == (wrong.value.sqlstate, wrong.value.text)


@pytest.mark.parametrize("method", ["password", "md5"])
def test_an_empty_password_is_never_right(method: str) -> None:
    proof = ClientProof(USER, method, "", CLEAR)
    salt = proof.begin()[9:]
    with pytest.raises(Refused):
        proof.take(build_password(b"" if method == "password" else md5_response(USER, "", salt)))


def test_salts_of_users_without_a_verifier_are_the_same_in_every_process_with_the_same_key() -> None:
    """Else a stranger finds out who exists by logging in twice. And a salt, which anybody may see, tells nothing of the
    password: without the key it cannot be tried offline."""
    set_salt_key(bytes(32))
    known, unknown = verifier_of(USER, PASSWORD).salt, mock_verifier("nobody").salt
    set_salt_key(bytes([1] * 32))
    assert (verifier_of(USER, PASSWORD).salt, mock_verifier("nobody").salt) != (known, unknown)
    set_salt_key(bytes(32))
    assert (verifier_of(USER, PASSWORD).salt, mock_verifier("nobody").salt) == (known, unknown)
    assert verifier_of(USER, "another").salt != known


# --- channel binding ----------------------------------------------------------------------------------------------


def test_a_client_on_tls_binds_and_one_in_clear_is_not_offered_to() -> None:
    assert MECHANISM_PLUS.encode() in ClientProof(USER, "scram-sha-256", PASSWORD, SECURE).begin()
    assert MECHANISM_PLUS.encode() not in ClientProof(USER, "scram-sha-256", PASSWORD, CLEAR).begin()
    asked = ServerProof(USER, PASSWORD, BINDING).take(AUTH_SASL, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")
    mechanism, first = parse_sasl_initial(asked)
    assert mechanism == MECHANISM_PLUS
    assert first.startswith(b"p=tls-server-end-point,,")


@pytest.mark.parametrize(
    ("offered", "binding", "header"),
    [
        ((MECHANISM,), b"", b"n,,"),
        ((MECHANISM,), BINDING, b"y,,"),
        ((MECHANISM_PLUS, MECHANISM), b"", b"n,,"),
        ((MECHANISM_PLUS, MECHANISM), BINDING, b"p=tls-server-end-point,,"),
    ],
)
def test_our_flag_towards_engines_says_what_we_could_do(
    offered: tuple[str, ...], binding: bytes, header: bytes
) -> None:
    """RFC 5802, section 6."""
    assert ScramClient(PASSWORD, offered, binding).first().startswith(header)


@pytest.mark.parametrize(
    ("channel", "mechanism", "flag", "why"),
    [
        (SECURE, MECHANISM, "y", "was not offered, but it was"),
        (SECURE, MECHANISM, f"p={BINDING_TYPE}", "a mechanism that does not"),
        (SECURE, MECHANISM_PLUS, "n", "did not bind"),
        (SECURE, MECHANISM_PLUS, "y", "did not bind"),
        (SECURE, MECHANISM_PLUS, "p=tls-unique", "a type of channel binding"),
        (CLEAR, MECHANISM_PLUS, f"p={BINDING_TYPE}", "was not offered"),
        (CLEAR, MECHANISM, f"p={BINDING_TYPE}", "a mechanism that does not"),
        (CLEAR, "SCRAM-SHA-1", "n", "was not offered"),
    ],
)
def test_flags_and_mechanisms_that_contradict_each_other_are_refused(
    channel: Channel, mechanism: str, flag: str, why: str
) -> None:
    proof = ClientProof(USER, "scram-sha-256", PASSWORD, channel)
    proof.begin()
    with pytest.raises(Refused, match=why) as refused:
        proof.take(build_sasl_initial(mechanism, f"{flag},,n=,r=abc".encode()))
    assert refused.value.sqlstate == "08P01"


@pytest.mark.parametrize("flag", ["n", "y"])
def test_a_client_that_cannot_bind_gets_in_where_binding_is_not_offered(flag: str) -> None:
    proof = ClientProof(USER, "scram-sha-256", PASSWORD, CLEAR)
    proof.begin()
    assert proof.take(build_sasl_initial(MECHANISM, f"{flag},,n=,r=abc".encode()))[8] == AUTH_SASL_CONTINUE


def test_a_proof_bound_to_another_certificate_is_refused() -> None:
    """Somebody in between with a certificate of their own."""
    proof = ClientProof(USER, "scram-sha-256", PASSWORD, SECURE)
    proof.begin()
    client = ScramClient(PASSWORD, (MECHANISM_PLUS,), bytes(32))
    asked = proof.take(build_sasl_initial(MECHANISM_PLUS, client.first()))
    with pytest.raises(Refused, match="channel binding does not match"):
        proof.take(build_sasl_response(client.last(asked[9:])))


# --- pass-through -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", [CLEAR, SECURE], ids=["clear", "tls"])
def test_a_proof_with_a_verifier_wins_the_keys_that_open_an_engine_with_the_same_verifier(channel: Channel) -> None:
    won = prove("scram-sha-256", SECRETS["verifier"], PASSWORD).credential
    assert isinstance(won, ScramKeys)
    assert prove("scram-sha-256", SECRETS["verifier"], won, channel).is_complete


def test_keys_do_not_fit_another_verifier_and_that_is_said() -> None:
    won = prove("scram-sha-256", SECRETS["verifier"], PASSWORD).credential
    for other in (verifier(iterations=4097), PASSWORD):
        with pytest.raises(Refused, match="not the one of this server") as refused:
            prove("scram-sha-256", other, won)
        assert refused.value.sqlstate == "28P01"


def test_secrets_and_keys_are_not_shown() -> None:
    won = prove("scram-sha-256", SECRETS["verifier"], PASSWORD).credential
    assert isinstance(won, ScramKeys)
    shown = repr(won) + repr(build_verifier(PASSWORD)) + repr(prove("password", PASSWORD, PASSWORD))
    assert "key=" not in shown
    assert PASSWORD not in shown


@pytest.mark.parametrize(
    ("kind", "credential", "says"),
    [
        (AUTH_CLEARTEXT, None, "does not have it"),
        (AUTH_CLEARTEXT, SECRETS["md5"], "has only an md5 hash"),
        (AUTH_CLEARTEXT, ScramKeys(b"", b"", b"", 1), "has only the SCRAM keys"),
        (AUTH_MD5, ScramKeys(b"", b"", b"", 1), "has only the SCRAM keys"),
        (AUTH_MD5, SECRETS["verifier"], "does not have it"),
        (AUTH_SASL, SECRETS["md5"], "has only an md5 hash"),
        (AUTH_SASL, None, "does not have it"),
    ],
)
def test_what_an_engine_asks_for_and_is_not_to_be_had_is_named(kind: int, credential: Credential, says: str) -> None:
    data = {AUTH_CLEARTEXT: b"", AUTH_MD5: b"salt", AUTH_SASL: b"SCRAM-SHA-256\0\0"}[kind]
    with pytest.raises(Refused, match=says) as refused:
        ServerProof(USER, credential).take(kind, data)
    assert refused.value.sqlstate == "28P01"


@pytest.mark.parametrize("kind", [AUTH_SASL_CONTINUE, AUTH_SASL_FINAL])
def test_an_engine_cannot_begin_in_the_middle(kind: int) -> None:
    with pytest.raises(ProtocolViolation, match="without a beginning"):
        ServerProof(USER, PASSWORD).take(kind, b"v=AAAA")


def test_an_engine_that_lets_us_in_without_its_own_part_of_scram_is_found_out() -> None:
    ours = ServerProof(USER, PASSWORD)
    ours.take(AUTH_SASL, b"SCRAM-SHA-256\0\0")
    with pytest.raises(ProtocolViolation, match="did not prove"):
        ours.check_end()


# --- certificates -------------------------------------------------------------------------------------------------


def test_a_certificate_proves_its_common_name() -> None:
    channel = Channel(is_encrypted=True, certificate=CERTIFICATE)
    assert prove("cert", "", None, channel).is_complete
    with pytest.raises(Refused, match="certificate authentication failed"):
        ClientProof("postgres", "cert", "", channel).begin()
    with pytest.raises(Refused, match="certificate authentication failed"):
        ClientProof(USER, "cert", None, channel).begin()
    with pytest.raises(Refused, match="requires a valid client certificate"):
        ClientProof(USER, "cert", "", SECURE).begin()


@pytest.mark.parametrize(
    ("certificate", "name"),
    [
        (CERTIFICATE, USER),
        (None, ""),
        ({}, ""),
        ({"subject": ((("organizationName", "x"),),)}, ""),
        ({"subject": ((("commonName", "a"),), (("commonName", "b"),))}, ""),
    ],
)
def test_the_common_name_is_read_where_there_is_one(certificate: dict[str, Any] | None, name: str) -> None:
    assert common_name(certificate) == name


# --- strangers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        build(b"p"),
        build(b"p", b"secret"),
        build(b"p", b"secret\0more\0"),
        build(b"Q", b"secret\0"),
    ],
)
@pytest.mark.parametrize("method", ["password", "md5"])
def test_a_malformed_password_message_is_a_violation(method: str, message: bytes) -> None:
    proof = ClientProof(USER, method, PASSWORD, CLEAR)
    proof.begin()
    with pytest.raises(Refused) as refused:
        proof.take(message)
    assert refused.value.sqlstate == "08P01"


@pytest.mark.parametrize("size", [5, 2**31 - 1, 2**31, 2**32 - 2])
def test_a_length_inside_of_a_message_that_does_not_fit_is_a_violation(size: int) -> None:
    """field-notes: Oversized/partial startup packet, long password, missing SQLSTATE, length overflow"""
    proof = ClientProof(USER, "scram-sha-256", PASSWORD, CLEAR)
    proof.begin()
    with pytest.raises(Refused, match="shorter than it says"):
        proof.take(build(b"p", MECHANISM.encode() + b"\0" + size.to_bytes(4, "big") + b"n,,"))


@pytest.mark.parametrize(
    ("fields", "sqlstate"),
    [
        (b"SFATAL\0Mno code\0\0", "XX000"),
        (b"\0", "XX000"),
        (b"C\0\0", "XX000"),
        (b"C28P01 and more\0\0", "XX000"),
        (b"C2\xff\0\0", "XX000"),
        (b"C28P01\0\0", "28P01"),
    ],
)
def test_an_error_without_a_sqlstate_is_an_internal_one(fields: bytes, sqlstate: str) -> None:
    """field-notes: Oversized/partial startup packet, long password, missing SQLSTATE, length overflow"""
    assert parse_error(build(b"E", fields)).sqlstate == sqlstate
    assert parse_error(build_error(severity="FATAL", sqlstate=sqlstate, message="x")).sqlstate == sqlstate


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3), st.sampled_from(["password", "md5", "scram-sha-256"]))
def test_garbage_proves_nothing(bodies: list[bytes], method: str) -> None:
    proof = ClientProof(USER, method, PASSWORD, SECURE)
    proof.begin()
    try:
        for body in bodies:
            proof.take(build(b"p", body))
    except Refused:
        pass
    assert not proof.is_complete or bodies[-1] == b"secret\0"


@given(st.sampled_from([3, 5, 10, 11, 12]), st.binary(max_size=60))
def test_an_engines_garbage_is_at_worst_a_violation(kind: int, data: bytes) -> None:
    ours = ServerProof(USER, PASSWORD, BINDING)
    with may_violate("server"):
        try:
            ours.take(AUTH_SASL, b"SCRAM-SHA-256\0\0")
            ours.take(kind, data)
        except Refused:
            pass


@given(st.text(max_size=80))
def test_a_secret_has_exactly_one_form(text: str) -> None:
    assert is_verifier(text) + is_md5(text) + is_plain(text) == 1
    if text:
        assert is_password(USER, text, text) == is_plain(text)
