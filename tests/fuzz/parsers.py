"""The parsers' targets: what needs no socket. Each case is made from a seed and a number and gives an outcome.

A case is a list of steps, as they happen at a relay: bytes of the client, bytes of the server, another backend, a
closing gate. It is made while it runs, for what a server answers depends on what reaches it; then it is run again from
its steps with the bytes cut otherwise, which must come to the same. Refusing what a stranger sends is right, blaming the
other side for it is not, and anything else that is raised is a bug.

The outcome's digest is the same in the compiled and in the readable form; `python -m tests.fuzz.parsers` is the child
that computes it: it reads `FROM TO` from stdin and answers one JSON line.
"""

from __future__ import annotations

import abc
import hashlib
import itertools
import json
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import protocols.mysql
import protocols.postgres
from protocols import wire
from protocols.codes import GATE_CLOSED, GATE_DRAIN, GATE_OPEN
from protocols.errors import ProtocolViolation
from protocols.mysql import constants as c
from protocols.mysql.ledger import MysqlLedger
from protocols.mysql.messages import (
    Greeting,
    Response,
    build_err,
    build_greeting,
    build_ok,
    build_response,
    build_tls_request,
    packet,
)
from protocols.postgres import statements
from protocols.postgres.ledger import PostgresLedger
from protocols.postgres.messages import build
from tests.corpus.postgres import conversations
from tests.fuzz.mutation import Mutator, split_mysql, split_postgres
from tests.protocols.mysql import relay as mysql
from tests.protocols.mysql.test_any_cut import turns
from tests.protocols.postgres import relay as postgres
from tests.protocols.postgres.fake_server import FakeServer

KEPT: Final = Path(__file__).resolve().parents[1] / "corpus" / "fuzz"
"""Inputs that showed something new, one file for each target; they run with the tests."""

KEPT_BYTES_MAX: Final = 600
"""Longest input that is kept."""

CASE_S_MAX: Final = 10.0
"""Longest time one case may take in the readable form on a busy machine; a hang is longer."""

_TAGS: Final = frozenset(b"QPBDECSHFdcfXZTIREKNAG123nstV")

Step = tuple[str, bytes]
"""`c` bytes of the client, `s` of the server, `l` another backend if the session is at a boundary, `g` the gate."""


@dataclass(slots=True)
class Outcome:
    """What a case came to."""

    digest: str
    features: set[str] = field(default_factory=set)
    """What was seen on the way; a case that adds to them is worth keeping."""


class Finding(AssertionError):
    """A rule was broken, and the steps that break it."""

    def __init__(self, text: str, steps: Sequence[Step]) -> None:
        super().__init__(text)
        self.steps = list(steps)


def write_steps(steps: Iterable[Step]) -> str:
    """One line of text."""
    return " ".join(f"{kind}{data.hex()}" for kind, data in steps)


def read_steps(line: str) -> list[Step]:
    """The opposite. Raises ValueError."""
    return [(word[0], bytes.fromhex(word[1:])) for word in line.split()]


def kept(target: str) -> list[list[Step]]:
    """Inputs of tests/corpus/fuzz."""
    path = KEPT / f"{target}.txt"
    if not path.exists():
        return []
    return [read_steps(line) for line in path.read_text().splitlines() if line and not line.startswith("#")]


# --- trackers -----------------------------------------------------------------------------------------------------


class TrackerTarget(abc.ABC):
    """A session's tracker between a client and a server that both misbehave."""

    def __init__(self, name: str, donors: Sequence[bytes], split: Callable[[bytes], list[bytes]]) -> None:
        self.name = name
        self._donors = donors
        self._split = split

    @abc.abstractmethod
    def make_relay(self, shares: bool) -> Any: ...

    @abc.abstractmethod
    def link(self, relay: Any, notes: dict[str, Any]) -> None: ...

    @abc.abstractmethod
    def answers(self, rng: random.Random, server: Any, reached: bytes) -> bytes:
        """What a server says to `reached`; lawful as far as it understands it."""

    @abc.abstractmethod
    def make_server(self) -> Any: ...

    @abc.abstractmethod
    def state(self, relay: Any) -> tuple[object, ...]: ...

    def case(self, rng: random.Random, old: Sequence[Sequence[Step]]) -> tuple[list[Step], Outcome]:
        """Make one while it runs; then again in other cuts. Raises Finding."""
        mutator = Mutator(rng, self._split, self._donors)
        shares = rng.random() < 0.5
        server_misbehaves = rng.random() < 0.5
        steps: list[Step] = [("m", bytes([shares]))]
        run = _Run(self, shares)
        if old and rng.random() < 0.2:
            stream = b"".join(data for kind, data in rng.choice(old) if kind == "c")
            plan = mutator.cuts(mutator.mutate(stream))
        else:
            plan = []
            for _ in range(rng.randint(1, 4)):
                stream = rng.choice(self._donors)
                plan += mutator.cuts(mutator.mutate(stream) if rng.random() < 0.7 else stream)
        server = self.make_server()

        def do(kind: str, data: bytes) -> bytes:
            steps.append((kind, data))
            return run.step(kind, data)

        try:
            for chunk in plan:
                reached = do("c", chunk)
                for _ in range(20):
                    if not reached or run.is_over:
                        break
                    answer = self.answers(rng, server, reached)
                    if server_misbehaves and rng.random() < 0.2:
                        answer = mutator.mutate(answer)
                    before = run.sent_to_server
                    for piece in mutator.cuts(answer):
                        do("s", piece)
                    reached = bytes(run.relay.to_server[before:]) if not run.is_over else b""
                if run.is_over:
                    break
                if rng.random() < 0.1:
                    do("l", b"")
                if rng.random() < 0.1:
                    do("g", bytes([rng.choice((GATE_OPEN, GATE_DRAIN, GATE_CLOSED))]))
        except Exception as error:
            raise Finding(f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}", steps) from error
        self._again(rng, steps, run)
        return steps, Outcome(run.digest(), run.features)

    def replay(self, steps: Sequence[Step]) -> Outcome:
        """A kept case. Raises Finding."""
        run = _Run(self, bool(steps[0][1][0]))
        try:
            for kind, data in steps[1:]:
                run.step(kind, data)
        except Exception as error:
            raise Finding(f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}", steps) from error
        self._again(random.Random(1), steps, run)
        return Outcome(run.digest(), run.features)

    def _again(self, rng: random.Random, steps: Sequence[Step], first: _Run) -> None:
        """The same bytes in other cuts come to the same, unless one side was stopped in the middle of them."""
        mutator = Mutator(rng, self._split, self._donors)
        second = _Run(self, first.shares)
        try:
            for kind, data in steps[1:]:
                for piece in mutator.cuts(data) if kind in "cs" and len(data) < 5_000 else (data,):
                    second.step(kind, piece)
        except Exception as error:
            raise Finding(f"in other cuts: {type(error).__name__}: {error}", steps) from error
        if first.relay.tracker.client_left or second.relay.tracker.client_left:
            # What follows a goodbye is scanned or not, as the cut has it; nobody reads what comes of it.
            return
        if first.is_inside_a_message or second.is_inside_a_message:
            # A message whose end never comes may be awaited or passed on in parts, as the cut has it.
            return
        if first.violation == second.violation and (first.violation or first.digest() == second.digest()):
            return
        if self._is_overtaken(steps) and first.told() == second.told():
            # The server's answer came while a message of the client was half there: what it means (which statement a name
            # stands for) was decided before or after that answer, as the cut has it. What the client is told is the same.
            return
        if (first.violation.startswith("server: ") or second.violation.startswith("server: ")) and (
            first.was_answered_early or second.was_answered_early
        ):
            # The client's next message waits at the gate until an answer is complete. A server that goes on unasked in the
            # same chunk is caught; in a later one its words are taken for the answer to that message, and it may be caught
            # by what it says then.
            return
        raise Finding(
            f"in other cuts it comes to something else: {first.violation or self.state(first.relay)}"
            f" and {second.violation or self.state(second.relay)}",
            steps,
        )

    def _is_overtaken(self, steps: Sequence[Step]) -> bool:
        """Something else happened while a message of the client was half there."""
        sent = b""
        for kind, data in steps[1:]:
            if kind == "c":
                sent += data
            elif sent:
                last = self._split(sent)[-1]
                # Two of a whole message are two whole messages.
                if self._split(last * 2) != [last, last]:
                    return True
                sent = last
        return False


class _Run:
    """One way through a case."""

    def __init__(self, target: TrackerTarget, shares: bool) -> None:
        _forget_statements()
        self.target = target
        self.shares = shares
        self.relay = target.make_relay(shares)
        self.violation = ""
        self.features: set[str] = set()
        self.was_answered_early = False
        """The server spoke on while a message of the client waited at the gate for the end of an answer."""
        self._last = ("", "")

    @property
    def is_over(self) -> bool:
        return bool(self.violation) or self.relay.tracker.client_left

    @property
    def is_inside_a_message(self) -> bool:
        """One that has to be understood has begun and is not complete."""
        return bool(self.relay._client.fetch or self.relay._server.fetch)

    @property
    def sent_to_server(self) -> int:
        return len(self.relay.to_server)

    def step(self, kind: str, data: bytes) -> bytes:
        """Returns what reached the server because of it. Nothing happens after the end."""
        relay = self.relay
        if self.is_over:
            return b""
        before = len(relay.to_server)
        try:
            if kind == "c":
                relay.client(data)
            elif kind == "s":
                self.was_answered_early = self.was_answered_early or (
                    bool(relay.kept) and relay.tracker.gate == GATE_DRAIN
                )
                relay.server(data)
            elif kind == "g":
                if relay.is_linked:
                    relay.tracker.gate = data[0]
                    if data[0] == GATE_OPEN:
                        relay.go_on()
            elif kind == "l" and relay.is_linked and relay.tracker.at_boundary() and not relay.kept:
                relay.unlink()
                self.target.link(relay, {})
        except ProtocolViolation as error:
            expected = "client" if kind in "cg" else "server"
            # Bytes that waited at the gate are scanned when the server's answer opens it.
            if error.peer != expected and not (kind in "sl" and error.peer == "client"):
                raise
            self.violation = f"{error.peer}: {error.text}"
            self.features.add(f"violation {error.peer} {''.join(ch for ch in error.text if not ch.isdigit())[:60]}")
        self._note(kind, data)
        return bytes(relay.to_server[before:])

    def _note(self, kind: str, data: bytes) -> None:
        """Two steps in a row, by what they begin with and what the session then is: coverage for little money."""
        tracker = self.relay.tracker
        now = (
            kind + (chr(data[0]) if data and data[0] < 128 else "?"),
            f"{tracker.at_boundary():d}{tracker.is_idle():d}",
        )
        self.features.add(f"{self._last[0]}{self._last[1]} {now[0]}{now[1]} {self.shares:d}")
        self._last = now

    def told(self) -> tuple[object, ...]:
        """What the client knows of it."""
        tracker = self.relay.tracker
        return self.violation, bytes(self.relay.to_client), tracker.requests, tracker.transactions, tracker.errors

    def digest(self) -> str:
        relay = self.relay
        held = () if self.violation else (*self.target.state(relay), bytes(relay.to_server), bytes(relay.to_client))
        return hashlib.sha256(repr((self.violation, held)).encode()).hexdigest()[:16]


def _forget_statements() -> None:
    """Names of shared statements are counted in the whole process; a case must not depend on those before it."""
    statements._numbers = itertools.count(1)
    statements._by_body.clear()
    statements._recent.clear()
    statements._recent_bytes = 0


class PostgresTarget(TrackerTarget):
    """See TrackerTarget."""

    def __init__(self) -> None:
        donors = [one.sent for one in conversations() if len(one.sent) < 20_000]
        donors += [
            postgres.parse("a", "select 1") + postgres.bind("a") + postgres.execute() + postgres.SYNC,
            postgres.query("copy") + postgres.COPY_DATA + postgres.COPY_DONE,
            postgres.query("begin") + postgres.query("fail") + postgres.query("rollback"),
            postgres.query("deallocate all") + postgres.parse("b", "set x") + postgres.bind("b") + postgres.SYNC,
            postgres.parse("", "copy") + postgres.bind("") + postgres.execute() + postgres.SYNC + postgres.COPY_FAIL,
        ]
        super().__init__("postgres-tracker", donors, split_postgres)

    def make_relay(self, shares: bool) -> Any:
        return postgres.Relay(shares=shares)

    def link(self, relay: Any, notes: dict[str, Any]) -> None:
        relay.link(postgres.FACTS, notes)

    def make_server(self) -> Any:
        return FakeServer()

    def answers(self, rng: random.Random, server: Any, reached: bytes) -> bytes:
        try:
            lawful: bytes = server.receive(reached)
        except (AssertionError, KeyError, ValueError, IndexError, RecursionError):
            # It does not understand what the client made of it; it knows some words.
            lawful = b"".join(rng.choice(_POSTGRES_ANSWERS) for _ in range(rng.randrange(5)))
        return lawful

    def state(self, relay: Any) -> tuple[object, ...]:
        tracker, ledger = relay.tracker, relay.ledger
        return (
            tracker.requests, tracker.transactions, tracker.errors, tracker.at_boundary(), tracker.is_idle(), tracker.gate,
            ledger.is_dirty, ledger.version, ledger.pins, sorted(ledger.statements.items()),
        )  # fmt: skip


_POSTGRES_ANSWERS: Final = (
    postgres.PARSED, postgres.BOUND, postgres.CLOSED, postgres.NO_DATA, postgres.EMPTY_QUERY, postgres.SUSPENDED,
    postgres.ROW_DESCRIPTION, postgres.PARAMETER_DESCRIPTION, postgres.ROW, postgres.COPY_IN, postgres.COPY_OUT,
    postgres.COPY_DATA, postgres.COPY_DONE, postgres.NOTICE, postgres.NOTIFICATION, postgres.CALLED, postgres.ready("I"),
    postgres.ready("T"), postgres.ready("E"), postgres.done("SELECT 1"), postgres.done("DISCARD ALL"), postgres.failed(),
    postgres.parameter("TimeZone", "UTC"), postgres.parameter("application_name", "x"), build(b"W", b"\0\0\0"),
)  # fmt: skip


class MysqlTarget(TrackerTarget):
    """See TrackerTarget. The server answers a request it knows as it should, and others at random."""

    def __init__(self) -> None:
        known = [turn for flag in (False, True) for turn in turns(mysql.Speech(deprecates_eof=flag))]
        self._known = {turn.request: turn.answer for turn in known if len(turn.request) < 6_000}
        self._some = [turn.answer for turn in known]
        super().__init__("mysql-tracker", list(self._known), split_mysql)

    def make_relay(self, shares: bool) -> Any:
        return mysql.Relay(deprecates_eof=shares, shares=shares)

    def link(self, relay: Any, notes: dict[str, Any]) -> None:
        relay.link(mysql.TRACKING_FACTS, notes)

    def make_server(self) -> Any:
        return None

    def answers(self, rng: random.Random, server: Any, reached: bytes) -> bytes:
        known = self._known.get(reached)
        return known if known is not None else rng.choice(self._some)

    def state(self, relay: Any) -> tuple[object, ...]:
        tracker, ledger = relay.tracker, relay.ledger
        return (
            tracker.requests, tracker.transactions, tracker.errors, tracker.at_boundary(), tracker.is_idle(),
            tracker.gate, ledger.is_dirty, ledger.version, ledger.pins, ledger.database,
            [(one.client_id, one.text, one.types) for one in ledger.statements.values()],
        )  # fmt: skip


# --- logins and exchanges -----------------------------------------------------------------------------------------


class StreamTarget:
    """Something that takes one peer's bytes: a login on either side, or an exchange."""

    def __init__(
        self,
        name: str,
        peer: str,
        donors: Sequence[bytes],
        split: Callable[[bytes], list[bytes]],
        make: Callable[[int], Callable[[bytes], str]],
        variants: int,
    ) -> None:
        self.name = name
        self._peer = peer
        self._donors = donors
        self._split = split
        self._make = make
        self._variants = variants

    def case(self, rng: random.Random, old: Sequence[Sequence[Step]]) -> tuple[list[Step], Outcome]:
        mutator = Mutator(rng, self._split, self._donors)
        if old and rng.random() < 0.2:
            stream = b"".join(data for kind, data in rng.choice(old) if kind == "c")
        else:
            stream = rng.choice(self._donors)
        steps: list[Step] = [("m", bytes([rng.randrange(self._variants)]))]
        steps += [("c", piece) for piece in mutator.cuts(mutator.mutate(stream))]
        return steps, self.replay(steps)

    def replay(self, steps: Sequence[Step]) -> Outcome:
        """Raises Finding. Nonces are random, so only what is raised and what is told counts."""
        seen: list[str] = []
        try:
            take = self._make(steps[0][1][0])
            for _, data in steps[1:]:
                seen.append(take(data))
        except ProtocolViolation as error:
            if error.peer != self._peer:
                raise Finding(f"{self._peer}'s bytes, and the {error.peer} is blamed: {error.text}", steps) from error
            seen.append("violation " + "".join(ch for ch in error.text if not ch.isdigit())[:60])
        except Exception as error:
            raise Finding(f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}", steps) from error
        told = [one for one in seen if one]
        return Outcome("", {f"{steps[0][1][0]} {' '.join(told[-3:])}"})


_VERIFIER: Final = (
    "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="
    ":MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="
)


def _login_driver(login: wire.ClientLogin, secret: str) -> Callable[[bytes], str]:
    """As a session drives it."""

    def take(data: bytes) -> str:
        told = []
        facts = list(login.receive(data))
        while facts:
            fact = facts.pop(0)
            told.append(type(fact).__name__)
            if isinstance(fact, wire.CredentialWanted):
                facts += login.give_credential(secret)
            elif isinstance(fact, wire.LoginProven):
                key = b"k" * login.secret_bytes
                login.accept(mysql.FACTS if secret == "my" else replace(postgres.FACTS, secret=key))
                login.take_unread()
        login.take_output()
        return " ".join(told)

    return take


def _postgres_login(variant: int) -> Callable[[bytes], str]:
    method = ("trust", "password", "md5", "scram-sha-256")[variant]
    login = protocols.postgres.WIRE.client_login(method=method, facts=None, connection_id=1, databases=())
    return _login_driver(login, _VERIFIER if method == "scram-sha-256" else "secret")


def _mysql_login(variant: int) -> Callable[[bytes], str]:
    method = (
        "trust",
        "mysql_native_password",
        "caching_sha2_password",
        "sha256_password",
        "client_ed25519",
        "mysql_clear_password",
    )[variant]
    login = protocols.mysql.WIRE.client_login(
        method=method, facts=mysql.FACTS, connection_id=1, databases=("app",), offers_tls=variant > 2
    )
    login.take_output()
    return _login_driver(login, "my")


def _facts_of(login: wire.ServerLogin) -> Callable[[bytes], str]:
    login.take_output()

    def take(data: bytes) -> str:
        facts = list(login.receive(data))
        told = " ".join(type(fact).__name__ for fact in facts)
        if facts and isinstance(facts[-1], wire.TlsWanted | wire.TlsRefused):
            login.go_on(is_encrypted=isinstance(facts[-1], wire.TlsWanted))
        login.take_output()
        return told

    return take


def _postgres_server_login(variant: int) -> Callable[[bytes], str]:
    return _facts_of(protocols.postgres.WIRE.server_login(postgres.STARTUP, (None, "secret")[variant]))


def _mysql_server_login(variant: int) -> Callable[[bytes], str]:
    password = None if variant == 0 else "secret"
    return _facts_of(protocols.mysql.WIRE.server_login(mysql.startup(), password, wants_tls=variant == 2))


def _exchange(exchange: wire.Exchange) -> Callable[[bytes], str]:
    def take(data: bytes) -> str:
        return f"{exchange.receive(data):d}{len(exchange.errors)}"

    return take


def _postgres_exchange(variant: int) -> Callable[[bytes], str]:
    ledger = PostgresLedger(postgres.STARTUP)
    if variant == 0:
        return _exchange(ledger.inspection())
    ledger.settings = {b"search_path": b"a", b"statement_timeout": b"1s"}
    ledger.channels = [b"a"]
    replay = ledger.replay(is_late=variant == 2)
    assert replay is not None
    return _exchange(replay)


def _mysql_exchange(variant: int) -> Callable[[bytes], str]:
    return _exchange(MysqlLedger(mysql.startup(deprecates_eof=bool(variant))).inspection())


def _startup(*pairs: str, version: int = 196_608) -> bytes:
    body = version.to_bytes(4, "big") + b"".join(pair.encode() + b"\0" for pair in pairs) + b"\0"
    return (len(body) + 4).to_bytes(4, "big") + body


def _postgres_logins() -> list[bytes]:
    plain = _startup("user", "app", "database", "app", "options", "-c search_path=a", "application_name", "x")
    first = b"n,,n=,r=abc"
    sasl = build(b"p", b"SCRAM-SHA-256\0" + len(first).to_bytes(4, "big") + first)
    return [
        plain,
        _startup("user", "app", version=196_610) + build(b"p", b"secret\0"),
        plain + build(b"p", b"md5" + b"0" * 32 + b"\0"),
        plain + sasl + build(b"p", b"c=biws,r=abcdef,p=" + b"A" * 43 + b"="),
        b"\0\0\0\x08\x04\xd2\x16\x2f" + plain,
        b"\0\0\0\x08\x04\xd2\x16\x30" + b"\0\0\0\x08\x04\xd2\x16\x2f" + plain,
        b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\7abcd",
        plain + b"".join(one.sent for one in conversations()[:3]),
        _startup("user", "app", "replication", "database"),
        _startup("user", "app", "_pq_.test_protocol_negotiation", "", version=0x0003270F),
    ]


def _postgres_server_logins() -> list[bytes]:
    auth = [build(b"R", code.to_bytes(4, "big") + rest) for code, rest in (
        (0, b""), (3, b""), (5, b"salt"), (10, b"SCRAM-SHA-256\0\0"), (10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
        (11, b"r=abc,s=c2FsdA==,i=4096"), (12, b"v=" + b"A" * 43 + b"="), (7, b""), (9, b""),
    )]  # fmt: skip
    ready = build(b"S", b"server_version\x0015.1\0") + build(b"K", b"\0\0\0\7abcd") + postgres.ready()
    wrong = build(b"v", b"\0\x03\0\0\0\0\0\0")
    return [
        auth[0] + ready,
        *(one + auth[0] + ready for one in auth[1:]),
        b"".join(auth) + ready,
        postgres.failed(),
        wrong + ready,
    ]


def _rows(*rows: Sequence[bytes]) -> bytes:
    def row(values: Sequence[bytes]) -> bytes:
        body = b"".join(len(value).to_bytes(4, "big") + value for value in values)
        return build(b"D", len(values).to_bytes(2, "big") + body)

    return postgres.ROW_DESCRIPTION + b"".join(map(row, rows)) + postgres.done()


def _postgres_answers() -> list[bytes]:
    found = _rows(
        (b"setting", b"search_path", b"a, b"), (b"role", b"", b"none"), (b"user", b"", b"app"), (b"channel", b"a", b""),
        (b"prepared", b"p", b"prepare p as select 1"), (b"lock", b"", b""), (b"temp", b"t", b""), (b"cursor", b"c", b""),
    )  # fmt: skip
    group = postgres.PARSED + postgres.BOUND + postgres.done("SET") + postgres.ready()
    return [
        found + postgres.ready(),
        postgres.failed() + postgres.ready(),
        group * 4,
        postgres.done("LISTEN") + postgres.ready(),
        postgres.parameter("TimeZone", "UTC") + postgres.NOTIFICATION + postgres.NOTICE + found + postgres.ready("T"),
    ]


def _mysql_logins() -> list[bytes]:
    def response(plugin: str, auth: bytes, database: str = "app") -> bytes:
        one = Response(c.OFFERED_CAPABILITIES, 45, "app", auth, database, plugin)
        return packet(build_response(one, (("a", "b"),)), 1)

    return [
        response("mysql_native_password", b"x" * 20),
        response("caching_sha2_password", b"y" * 32) + packet(b"\2", 3) + packet(b"z" * 256, 5),
        response("caching_sha2_password", b"", "") + packet(b"x" * 20, 3) + mysql.PING,
        packet(build_tls_request(c.CLIENT_PROTOCOL_41 | c.CLIENT_SSL, 45), 1),
        response("client_ed25519", b"x" * 64) + packet(b"y" * 64, 3),
        response("sha256_password", b"\1") + packet(b"z" * 256, 3),
        response("mysql_clear_password", b"secret\0") + packet(b"secret\0", 3),
    ]


def _mysql_server_logins() -> list[bytes]:
    hello = packet(
        build_greeting(Greeting("8.0.40", 7, b"s" * 20, c.OFFERED_CAPABILITIES, 45, 2, "caching_sha2_password")), 0
    )
    switch = packet(b"\xfemysql_native_password\0" + b"t" * 20 + b"\0", 2)
    ok = build_ok(2)
    speech = mysql.Speech(deprecates_eof=False)
    told = mysql.numbered(speech.charsets(*mysql.CHARSETS)) + packet(ok, 1)
    return [
        hello + packet(ok, 2) + told,
        hello + packet(ok, 2),
        hello + switch + packet(ok, 4),
        hello + packet(b"\1\3", 2) + packet(ok, 3),
        hello + packet(b"\1\4", 2),
        hello,
        hello + packet(b"\xfeclient_ed25519\0" + b"n" * 32, 2) + packet(ok, 4),
        hello + packet(b"\xfesha256_password\0" + b"n" * 20 + b"\0", 2) + packet(b"\1key", 4),
        hello + packet(build_err(1045, "28000", "no"), 2),
        packet(build_err(1040, "08004", "too many"), 0),
    ]


def _mysql_answers() -> list[bytes]:
    found = []
    for flag in (False, True):
        speech = mysql.Speech(deprecates_eof=flag)
        found += [mysql.numbered(speech.result(rows=3, columns=3)) * 6, mysql.numbered([mysql.err_payload()]) * 6]
    return found


def targets() -> list[TrackerTarget | StreamTarget]:
    """All of them. A case is of the target whose turn it is."""
    return [
        PostgresTarget(),
        MysqlTarget(),
        StreamTarget("postgres-login", "client", _postgres_logins(), split_postgres, _postgres_login, 4),
        StreamTarget(
            "postgres-server-login", "server", _postgres_server_logins(), split_postgres, _postgres_server_login, 2
        ),
        StreamTarget("postgres-exchange", "server", _postgres_answers(), split_postgres, _postgres_exchange, 3),
        StreamTarget("mysql-login", "client", _mysql_logins(), split_mysql, _mysql_login, 6),
        StreamTarget("mysql-server-login", "server", _mysql_server_logins(), split_mysql, _mysql_server_login, 3),
        StreamTarget("mysql-exchange", "server", _mysql_answers(), split_mysql, _mysql_exchange, 2),
    ]


# --- the child ----------------------------------------------------------------------------------------------------


def main() -> None:
    """`python -m tests.fuzz.parsers SEED`: see the module."""
    seed = int(sys.argv[1])
    all_targets = targets()
    # The trackers have the most to lose.
    turn = [0, 0, 0, 1, 1, *range(2, len(all_targets))]
    old = {target.name: kept(target.name) for target in all_targets}
    seen: dict[str, set[str]] = {target.name: set() for target in all_targets}
    for target in all_targets:
        for steps in old[target.name]:
            seen[target.name] |= target.replay(steps).features
    for line in sys.stdin:
        begin, end = map(int, line.split())
        digest = hashlib.sha256()
        digests: list[str] = []
        new: list[tuple[str, str]] = []
        found: dict[str, Any] | None = None
        for number in range(begin, end):
            target = all_targets[turn[number % len(turn)]]
            rng = random.Random(f"{seed}/{number}")
            began = time.monotonic()
            try:
                steps, outcome = target.case(rng, old[target.name])
            except Finding as error:
                found = {"case": number, "target": target.name, "text": str(error), "steps": write_steps(error.steps)}
                break
            took = time.monotonic() - began
            if took > CASE_S_MAX:
                found = {
                    "case": number,
                    "target": target.name,
                    "text": f"took {took:.1f} s",
                    "steps": write_steps(steps),
                }
                break
            digest.update(outcome.digest.encode())
            digests.append(outcome.digest)
            fresh = outcome.features - seen[target.name]
            if fresh:
                seen[target.name] |= fresh
                if sum(len(data) for _, data in steps) <= KEPT_BYTES_MAX:
                    new.append((target.name, write_steps(steps)))
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = {"digest": digest.hexdigest(), "digests": digests, "new": new, "found": found, "rss_kib": rss}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
