"""Every method of proving a password, and TLS, as conversations: our side towards clients against our side towards engines."""

from __future__ import annotations

import base64
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import IllegalUse, ProtocolViolation
from protocols.mysql import auth, ed25519
from protocols.mysql import constants as c
from protocols.mysql.handshake import MysqlClientLogin, MysqlServerLogin
from protocols.mysql.lookup import UserInquiry
from protocols.mysql.messages import build_auth_switch, build_tls_request, lenenc, packet, parse_greeting
from protocols.wire import (
    BackendReady,
    BackendRefused,
    Channel,
    CredentialWanted,
    LoginProven,
    LoginRefused,
    NativeKey,
    Startup,
    TlsRefused,
    TlsWanted,
)
from tests.protocols.mysql.relay import (
    CHARSETS,
    FACTS,
    Speech,
    column_payload,
    eof_payload,
    err_payload,
    numbered,
    row_payload,
    split,
)

STARTUP = Startup("app", "shop", parameters=(("program_name", "test"),), capabilities=c.CLIENT_DEPRECATE_EOF)
SALT = bytes(range(1, 21))
SHA2_VERIFIER = "0x" + (b"$A$005$" + SALT + auth.sha256_crypt(b"secret", SALT, 5_000)).hex()
SHA256_VERIFIER = "0x" + (b"$5$" + SALT + b"$" + auth.sha256_crypt(b"secret", SALT, 5_000)).hex()
NATIVE_VERIFIER = "*14E65567ABDB5135D0CFD9A70B3032C179A49EE7"
ED25519_VERIFIER = "ed25519:" + base64.b64encode(ed25519.public_key(b"secret")).decode().rstrip("=")
ALL = [auth.NATIVE, auth.SHA2, auth.SHA256, auth.ED25519, auth.CLEAR]


class Pair:
    """A client's login at the proxy, spoken to by a login at an engine, without or within TLS."""

    def __init__(self, method: str, password: str | NativeKey | None, *, tls: bool = False) -> None:
        self.client = MysqlServerLogin(STARTUP, password, wants_tls=tls)
        self.proxy = MysqlClientLogin(method=method, facts=FACTS, connection_id=1, databases=[], offers_tls=tls)
        self.tls = tls
        self.refused: LoginRefused | BackendRefused | None = None
        self.proven: LoginProven | None = None
        self.switches = 0

    def run(self, secret: str | None) -> Pair:
        for _ in range(12):
            said = self.proxy.take_output()
            self.switches += sum(one[4:5] == b"\xfe" for one in split(said))
            for fact in self.client.receive(said):
                if isinstance(fact, TlsWanted):
                    (wanted,) = self.proxy.receive(self.client.take_output())
                    assert wanted == TlsWanted()
                    self.client.go_on(is_encrypted=True)
                elif isinstance(fact, BackendRefused):
                    self.refused = self.refused or fact
                    return self
                else:
                    assert isinstance(fact, BackendReady)
                    return self
            for fact in self.proxy.receive(self.client.take_output()):
                self._hear(fact)
                if isinstance(fact, CredentialWanted):
                    for more in self.proxy.give_credential(secret, channel=Channel(is_encrypted=self.tls)):
                        self._hear(more)
            if self.proven is not None:
                assert self.client.receive(self.proxy.accept(FACTS)) == []
                (ready,) = self.client.receive(numbered(Speech(deprecates_eof=True).charsets(*CHARSETS)))
                assert isinstance(ready, BackendReady)
                return self
        raise AssertionError("the two do not come to an end")

    def _hear(self, fact: object) -> None:
        if isinstance(fact, LoginProven):
            self.proven = fact
        elif isinstance(fact, LoginRefused):
            self.refused = fact


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("method", ALL)
def test_each_method_tells_the_right_password_from_a_wrong_one(method: str, tls: bool) -> None:
    if method == auth.CLEAR and not tls:
        refused = Pair(method, "secret").run("secret").refused
        assert isinstance(refused, BackendRefused), "our client sends no password in clear text without TLS"
        return
    assert Pair(method, "secret", tls=tls).run("secret").proven is not None
    assert Pair(method, "wrong", tls=tls).run("secret").refused is not None
    assert Pair(method, "wrong", tls=tls).run(None).refused is not None
    assert Pair(method, "", tls=tls).run("secret").refused is not None


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    ("verifier", "plugin"),
    [
        (NATIVE_VERIFIER, auth.NATIVE),
        (SHA2_VERIFIER, auth.SHA2),
        (SHA256_VERIFIER, auth.SHA256),
        (ED25519_VERIFIER, auth.ED25519),
    ],
)
def test_a_verifier_says_by_which_method_its_user_is_proven(verifier: str, plugin: str, tls: bool) -> None:
    found = auth.verifier_of(verifier)
    assert found is not None
    assert found.plugin == plugin
    for method in (auth.NATIVE, auth.SHA2):
        pair = Pair(method, "secret", tls=tls).run(verifier)
        assert pair.proven is not None
        assert pair.switches == (method != plugin), "one switch at most"
        assert Pair(method, "wrong", tls=tls).run(verifier).refused is not None


def test_what_a_login_leaves_is_what_opens_backends() -> None:
    """field-notes: caching_sha2 fast vs full auth"""
    auth._proven.clear()
    full = Pair(auth.SHA2, "secret").run(SHA2_VERIFIER)
    fast = Pair(auth.SHA2, "secret").run(SHA2_VERIFIER)
    for pair in (full, fast):
        assert pair.proven is not None
        assert pair.proven.credential == "secret", "the fast form by itself opens nothing where a cache is cold"
    native = Pair(auth.NATIVE, "secret").run(NATIVE_VERIFIER).proven
    assert native is not None
    assert native.credential == NativeKey(auth.native_key(b"secret"))
    assert "secret" not in repr(native)
    again = Pair(auth.NATIVE, native.credential).run(NATIVE_VERIFIER)
    assert again.proven is not None
    refused = Pair(auth.SHA2, native.credential).run("secret").refused
    assert isinstance(refused, BackendRefused)
    assert "only what mysql_native_password needs" in refused.message
    plain = Pair(auth.NATIVE, "secret").run("secret").proven
    assert plain is not None
    assert plain.credential is None


def test_the_full_form_knows_what_mysql_keeps() -> None:
    """The first is what crypt(3) says."""
    assert auth.sha256_crypt(b"Hello world!", b"saltstring", 5_000) == b"5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"
    assert auth.is_password(auth.account_of(SHA2_VERIFIER), b"secret")
    assert not auth.is_password(auth.account_of(SHA2_VERIFIER), b"secret2")
    assert not auth.is_password(auth.account_of("secret"), b"s" * 300)
    assert auth.is_password(auth.account_of(NATIVE_VERIFIER), b"secret")
    assert auth.is_password(auth.account_of(ED25519_VERIFIER), b"secret")


def test_ed25519_is_mariadb_s() -> None:
    """The key is the one in MariaDB's manual for the password `secret`."""
    assert ED25519_VERIFIER == "ed25519:ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY"
    signature = ed25519.sign(b"secret", b"n" * 32)
    assert ed25519.is_signed(ed25519.public_key(b"secret"), b"n" * 32, signature)
    assert not ed25519.is_signed(ed25519.public_key(b"secret"), b"m" * 32, signature)
    assert not ed25519.is_signed(bytes(31), b"m" * 32, b"")


@pytest.mark.parametrize(
    "secret", ["*14E6", "$A$005$short", "$5$x", "0x2441", "ed25519:short", "", "0x", "*" + "G" * 40]
)
def test_what_is_no_whole_verifier_is_plain_text(secret: str) -> None:
    assert auth.is_plain(secret)


@given(st.text(max_size=80))
def test_any_secret_is_read_without_a_fault(secret: str) -> None:
    auth.unfit(secret)
    assert auth.is_plain(secret) == (auth.verifier_of(secret) is None)


def test_a_verifier_that_would_take_too_long_is_refused() -> None:
    assert "rounds" in auth.unfit("0x" + (b"$A$FFF$" + SALT + b"a" * 43).hex())
    assert auth.unfit(SHA2_VERIFIER) == ""


# --- TLS ------------------------------------------------------------------------------------------------------------


def tls_login() -> tuple[MysqlClientLogin, int]:
    login = MysqlClientLogin(method=auth.NATIVE, facts=FACTS, connection_id=1, databases=[], offers_tls=True)
    return login, parse_greeting(login.take_output()[4:]).capabilities


REQUEST = packet(build_tls_request(c.CLIENT_PROTOCOL_41 | c.CLIENT_SSL, 45), 1)


def test_half_a_request_for_tls_waits_and_what_came_behind_it_belongs_to_the_handshake() -> None:
    """field-notes: Connection attributes, SSLRequest half-packet, PROXY protocol"""
    for cut in range(1, len(REQUEST)):
        login, flags = tls_login()
        assert flags & c.CLIENT_SSL
        assert login.receive(REQUEST[:cut]) == []
        (wanted,) = login.receive(REQUEST[cut:] + b"\x16\x03\x01")
        assert wanted == TlsWanted(received=b"\x16\x03\x01")
        assert login.take_output() == b""


def test_a_client_that_claims_tls_without_having_it_is_refused() -> None:
    login, _ = tls_login()
    payload = (c.CLIENT_PROTOCOL_41 | c.CLIENT_SSL | c.CLIENT_SECURE_CONNECTION).to_bytes(4, "little") + bytes(28)
    with pytest.raises(ProtocolViolation, match="TLS"):
        login.receive(packet(payload + b"app\0\0", 1))


def test_sequence_ids_go_on_over_tls() -> None:
    """field-notes: Connection attributes, SSLRequest half-packet, PROXY protocol"""
    login, _ = tls_login()
    login.receive(REQUEST)
    payload = (c.CLIENT_PROTOCOL_41 | c.CLIENT_SSL | c.CLIENT_SECURE_CONNECTION).to_bytes(4, "little") + bytes(28)
    with pytest.raises(ProtocolViolation, match="order"):
        login.receive(packet(payload + b"app\0\0", 1))


def test_an_engine_without_tls_is_told_of_before_it_learns_who_we_are() -> None:
    client = MysqlServerLogin(STARTUP, "secret", wants_tls=True)
    proxy = MysqlClientLogin(method=auth.NATIVE, facts=FACTS, connection_id=1, databases=[])
    assert client.receive(proxy.take_output()) == [TlsRefused()]
    assert client.take_output() == b""
    client.go_on(is_encrypted=False)
    assert isinstance(proxy.receive(client.take_output())[0], CredentialWanted)
    with pytest.raises(IllegalUse):
        client.go_on(is_encrypted=False)


def test_an_engine_that_sends_on_in_clear_where_tls_begins_is_refused() -> None:
    client = MysqlServerLogin(STARTUP, "secret", wants_tls=True)
    proxy = MysqlClientLogin(method=auth.NATIVE, facts=FACTS, connection_id=1, databases=[], offers_tls=True)
    with pytest.raises(ProtocolViolation, match="clear"):
        client.receive(proxy.take_output() + packet(b"\0\0\0\2\0\0\0", 2))


def test_a_second_switch_of_the_method_is_refused() -> None:
    """field-notes: AuthSwitchRequest / COM_CHANGE_USER"""
    client = MysqlServerLogin(STARTUP, "secret")
    proxy = MysqlClientLogin(method=auth.NATIVE, facts=FACTS, connection_id=1, databases=[])
    client.receive(proxy.take_output())
    client.receive(packet(build_auth_switch(auth.SHA2, b"x" * 20), 2))
    with pytest.raises(ProtocolViolation, match="second switch"):
        client.receive(packet(build_auth_switch(auth.NATIVE, b"x" * 20), 4))


def test_attributes_pass_but_those_of_one_process_with_the_proxy_s_own_added() -> None:
    """field-notes: Connection attributes, SSLRequest half-packet, PROXY protocol"""
    attributes = (("_pid", "4711"), ("program_name", "mysqldump"), ("_os", "Linux"), ("z", "x" * 5_000))
    client = MysqlServerLogin(Startup("app", "", parameters=attributes), "secret")
    proxy = MysqlClientLogin(method="trust", facts=FACTS, connection_id=1, databases=[])
    client.receive(proxy.take_output())
    proxy.receive(client.take_output())
    (proven,) = proxy.give_credential("")
    assert isinstance(proven, LoginProven)
    assert proven.startup.parameters == (("_os", "Linux"), ("_proxy_name", "turnout"), ("program_name", "mysqldump"))


# --- users of the engine --------------------------------------------------------------------------------------------


def rows(*values: bytes) -> bytes:
    columns = [column_payload()] * len(values)
    return numbered([lenenc(len(values)), *columns, eof_payload(), row_payload(*values), eof_payload()])


NO_TABLE = numbered([err_payload(1146)])


def test_an_engine_tells_what_it_keeps_of_a_user() -> None:
    inquiry = UserInquiry("", "app'; drop table x")
    assert b"drop" not in inquiry.request
    inquiry = UserInquiry("", "app")
    assert inquiry.receive(rows(b"app", b"caching_sha2_password", bytes.fromhex(SHA2_VERIFIER[2:]), b"N") + NO_TABLE)
    assert (inquiry.secret, inquiry.errors) == (SHA2_VERIFIER, [])
    inquiry = UserInquiry("", "app")
    assert inquiry.receive(NO_TABLE + rows(b"app", b"ed25519", ED25519_VERIFIER[8:].encode(), b"N"))
    assert inquiry.secret == ED25519_VERIFIER


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ((b"app", b"caching_sha2_password", b"$A$005$", b"N"), "proves nothing"),
        ((b"app", b"auth_socket", b"x", b"N"), "proves nothing"),
        ((b"app", b"mysql_native_password", NATIVE_VERIFIER.encode(), b"Y"), "locked"),
        ((b"App", b"mysql_native_password", NATIVE_VERIFIER.encode(), b"N"), "another"),
    ],
)
def test_users_that_may_not_log_in_are_not_let_in(row: tuple[bytes, ...], why: str) -> None:
    inquiry = UserInquiry("", "app")
    assert inquiry.receive(rows(*row) + NO_TABLE)
    assert inquiry.secret is None
    assert why in inquiry.why


def test_an_engine_that_may_not_be_asked_is_an_error() -> None:
    inquiry = UserInquiry("", "app")
    assert inquiry.receive(numbered([err_payload(1142)]) + NO_TABLE)
    assert inquiry.errors == ["mysql.user: no (1142)"]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
@settings(max_examples=60)
def test_any_bytes_within_a_login_are_a_violation_at_worst(data: bytes, cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(data)]
    for method in (auth.SHA2, auth.CLEAR):
        login = MysqlClientLogin(method=method, facts=FACTS, connection_id=1, databases=[], offers_tls=True)
        login.take_output()
        try:
            for begin, end in itertools.pairwise(ends):
                for fact in login.receive(packet(data[begin:end], 1 + ends.index(begin))):
                    if isinstance(fact, CredentialWanted):
                        login.give_credential("secret")
        except (ProtocolViolation, IllegalUse):
            pass
