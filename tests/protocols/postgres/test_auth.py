from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ProtocolViolation
from protocols.postgres.auth import (
    KeyedHash,
    ScramClient,
    ScramServer,
    Verifier,
    WrongPassword,
    build_verifier,
    is_verifier,
    md5_response,
    mock_verifier,
    parse_verifier,
    saslprep,
)

SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")


def text_of(verifier: Verifier) -> str:
    parts = (verifier.salt, verifier.stored_key, verifier.server_key)
    salt, stored, server = (base64.b64encode(part).decode() for part in parts)
    return f"SCRAM-SHA-256${verifier.iterations}:{salt}${stored}:{server}"


def talk(server: ScramServer, client: ScramClient) -> None:
    client.check(server.respond_last(client.last(server.respond_first(client.first()))))


@pytest.mark.parametrize(
    "password", ["secret", "", "p\N{LATIN SMALL LETTER A WITH DIAERESIS}ss", "I\N{SOFT HYPHEN}X", "\u0627"]
)
def test_both_sides_agree_on_the_right_password(password: str) -> None:
    talk(ScramServer(build_verifier(password)), ScramClient(password))
    talk(ScramServer(parse_verifier(text_of(build_verifier(password, SALT, 1)))), ScramClient(password))


@pytest.mark.parametrize("verifier", [build_verifier("secret"), mock_verifier("nobody")])
def test_a_wrong_password_and_an_unknown_user_look_the_same(verifier: Verifier) -> None:
    server, client = ScramServer(verifier), ScramClient("wrong")
    first = server.respond_first(client.first())
    assert first.endswith(b",i=4096")
    with pytest.raises(WrongPassword):
        server.respond_last(client.last(first))


@given(st.binary(max_size=64), st.binary(max_size=300))
def test_a_keyed_hash_is_hmac_each_time(key: bytes, data: bytes) -> None:
    keyed = KeyedHash(key)
    assert keyed(data) == keyed(data) == hmac.digest(key, data, "sha256")


def test_an_unknown_user_has_the_same_salt_each_time() -> None:
    assert mock_verifier("a").salt == mock_verifier("a").salt != mock_verifier("b").salt


def test_a_known_exchange_of_rfc_7677() -> None:
    """Section 3: user `user`, password `pencil`; our nonces are random, so the keys are compared."""
    verifier = build_verifier("pencil", SALT, 4096)
    server = ScramServer(verifier)
    server._first_bare = b"n=user,r=rOprNGfwEbeRWgbNEkqO"
    server._channel = b"biws"
    server._nonce = b"rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    server._server_first = b"r=%b,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096" % server._nonce
    last = b"c=biws,r=%b,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=" % server._nonce
    assert server.respond_last(last) == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_a_client_that_could_bind_the_channel_is_accepted_without() -> None:
    class CouldBind(ScramClient):
        def first(self) -> bytes:
            return b"y" + super().first()[1:]

    server, client = ScramServer(build_verifier("secret")), CouldBind("secret")
    first = server.respond_first(client.first())
    with pytest.raises(ProtocolViolation, match="channel binding"):
        server.respond_last(client.last(first))  # it says `n` now: somebody in between took the `y` away
    server = ScramServer(build_verifier("secret"))
    answer = server.respond_first(b"y,,n=,r=abc").decode()
    nonce = answer.split(",", maxsplit=1)[0][2:]
    with pytest.raises(WrongPassword):
        server.respond_last(f"c=eSws,r={nonce},p={base64.b64encode(bytes(32)).decode()}".encode())


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"p=tls-server-end-point,,n=,r=abc",
        b"x,,n=,r=abc",
        b"n,a=admin,n=,r=abc",
        b"n,n=,r=abc",
        b"n,,n=",
        b"n,,r=abc,n=",
        b"n,,n=,r=",
        b"n,,m=ext,n=,r=abc",
    ],
)
def test_malformed_first_messages_are_violations(message: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="client: SCRAM"):
        ScramServer(build_verifier("secret")).respond_first(message)


@pytest.mark.parametrize(
    "last", ["", "c=biws", "c=biws,r=abc,p=AAAA", "c=biws,r={nonce}", "c=biws,r={nonce},p=AAAA", "c=biws,r={nonce},p=é",
             "c=eSws,r={nonce},p=AAAA", "r={nonce},c=biws,p=AAAA", "c=biws,r={nonce},p=***"],
)  # fmt: skip
def test_malformed_last_messages_are_violations(last: str) -> None:
    server = ScramServer(build_verifier("secret"))
    nonce = server.respond_first(b"n,,n=,r=abc").decode().split(",")[0][2:]
    with pytest.raises(ProtocolViolation, match="client: SCRAM"):
        server.respond_last(last.replace("{nonce}", nonce).encode())


@pytest.mark.parametrize(
    "first",
    ["", "r=abc,s=AAAA,i=4096", "r={nonce},s=AAAA,i=4096", "r={nonce}x,s=AAAA,i=0", "r={nonce}x,s=AAAA,i=99999999999",
     "r={nonce}x,s=AAAA,i=2000000", "r={nonce}x,s=AAAA", "r={nonce}x,s=*,i=1", "r={nonce}x,i=1x,s=AAAA"],
)  # fmt: skip
def test_a_server_cannot_make_us_prove_anything_odd(first: str) -> None:
    client = ScramClient("secret")
    nonce = client.first().decode().split("r=")[1]
    with pytest.raises(ProtocolViolation, match="server: SCRAM"):
        client.last(first.replace("{nonce}", nonce).encode())


@pytest.mark.parametrize("final", [b"", b"e=other-error", b"v=", b"v=AAAA", b"v=*"])
def test_a_server_that_does_not_know_the_password_is_found_out(final: bytes) -> None:
    server, client = ScramServer(build_verifier("secret")), ScramClient("secret")
    client.last(server.respond_first(client.first()))
    with pytest.raises(ProtocolViolation, match="server: SCRAM"):
        client.check(final)


@pytest.mark.parametrize(
    "text", ["", "secret", "SCRAM-SHA-256$", "SCRAM-SHA-256$4096:AAAA$AAAA", "md5" + "0" * 32, "SCRAM-SHA-256$x:A$A:A"]
)
def test_what_is_no_verifier_is_a_password(text: str) -> None:
    assert not is_verifier(text)
    with pytest.raises(ValueError):
        parse_verifier(text)


def test_a_verifier_that_does_not_decode_is_refused() -> None:
    assert not is_verifier("SCRAM-SHA-256$4096:A$A:A")
    with pytest.raises(ValueError):
        parse_verifier("SCRAM-SHA-256$4096:A$A:A")


@pytest.mark.parametrize(
    ("password", "prepared"),
    [
        ("I\N{SOFT HYPHEN}X", "IX"),
        ("\N{FEMININE ORDINAL INDICATOR}", "a"),
        ("\N{ROMAN NUMERAL NINE}", "IX"),
        ("a\N{NO-BREAK SPACE}b", "a b"),
        ("\x07", "\x07"),
        ("ä\x07", "ä\x07"),
        ("\u06271", "\u06271"),
        ("\N{SOFT HYPHEN}", "\N{SOFT HYPHEN}"),
    ],
)
def test_passwords_are_prepared_as_rfc_4013_says_or_left_alone(password: str, prepared: str) -> None:
    assert saslprep(password) == prepared


@given(st.text())
def test_any_password_can_be_prepared(password: str) -> None:
    assert isinstance(saslprep(password), str)


def test_md5_is_that_of_the_manual() -> None:
    inner = hashlib.md5(b"secretuser").hexdigest().encode()
    assert md5_response("user", "secret", b"salt") == b"md5" + hashlib.md5(inner + b"salt").hexdigest().encode()
