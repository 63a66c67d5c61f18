"""What OKs tell is taken off without a fetch where the ledger has it so already, and then nothing else is different."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolViolation
from protocols.mysql import constants as c
from protocols.mysql.ledger import MysqlLedger
from protocols.mysql.messages import command, lenenc, lenenc_bytes, packet
from protocols.mysql.replies import unknown_command_packet
from protocols.mysql.tracking import Entries, put_together, read, take_apart
from protocols.wire import Packing
from tests.protocols.mysql.relay import (
    AUTOCOMMIT,
    IN_TRANS,
    TRACKING_FACTS,
    Relay,
    column_payload,
    eof_payload,
    numbered,
    ok_payload,
    query,
    row_payload,
    startup,
    told_payload,
)
from tests.protocols.mysql.test_any_cut import MARKS, cut, state

NEWS = c.SERVER_SESSION_STATE_CHANGED
UNKNOWN = command(0x66, b"abc")


def doing(text: bytes) -> tuple[int, bytes]:
    return (c.TRACK_TRANSACTION_STATE, lenenc_bytes(text))


def special(text: bytes) -> tuple[int, bytes]:
    return (c.TRACK_TRANSACTION_CHARACTERISTICS, lenenc_bytes(text))


def block(entries: Entries) -> bytes:
    """As they stand behind the info of an OK."""
    return lenenc_bytes(b"".join(bytes([kind]) + lenenc_bytes(body) for kind, body in entries))


IDLE = doing(b"________")

LONG = (c.TRACK_STATE_CHANGE, b"x" * 300)
"""It says that nothing changed, no client is shown it that has not set the variable, and its length is not of one byte: an
OK that has it is fetched."""

TRANSACTION = [
    ("begin", told_payload(special(b"START TRANSACTION;"), doing(b"T_______"), status=IN_TRANS), ok_payload(IN_TRANS)),
    (
        "insert into t values (1)",
        told_payload(doing(b"T___W___"), status=IN_TRANS, info=b"Records: 1"),
        ok_payload(IN_TRANS, info=lenenc_bytes(b"Records: 1")),
    ),
    ("commit", told_payload(special(b""), IDLE, (c.TRACK_GTIDS, b"\0\5a:1-7")), ok_payload()),
]


TO_ONE_WHO_ASKED = [
    (text, payload, told_payload((c.TRACK_GTIDS, b"\0\5a:1-7")) if text == "commit" else shown)
    for text, payload, shown in TRANSACTION
]


@pytest.mark.parametrize("is_shown", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("deprecates_eof", [False, True])
def test_what_each_transaction_tells_is_fetched_once(deprecates_eof: bool, is_packed: bool, is_shown: bool) -> None:
    facts = replace(TRACKING_FACTS, packing=Packing("zlib")) if is_packed else TRACKING_FACTS
    relay = Relay(deprecates_eof=deprecates_eof, facts=facts, more=c.CLIENT_SESSION_TRACK * is_shown)
    for turn in range(3):
        for text, payload, shown in TO_ONE_WHO_ASKED if is_shown else TRANSACTION:
            relay.client(query(text))
            # On a compressed leg the id may be any.
            assert relay.answer([payload], 77 if is_packed else 1) == packet(shown, 1)
            assert relay.tracker.at_boundary() == (text == "commit")
        assert relay.fetches == 1, turn
    assert not relay.ledger.is_dirty


def test_a_client_that_wants_to_be_told_of_transactions_is_until_it_resets_its_connection() -> None:
    relay = Relay(facts=TRACKING_FACTS, more=c.CLIENT_SESSION_TRACK)
    payload = told_payload(special(b""), IDLE)

    def answer() -> bytes:
        relay.client(query("select f()"))
        return relay.answer([payload])

    assert [answer(), answer()] == [packet(ok_payload(), 1)] * 2
    relay.ask(query("set session_track_transaction_info = 'CHARACTERISTICS'"), [ok_payload()])
    assert [answer(), answer()] == [packet(payload, 1)] * 2
    relay.ask(command(c.COM_RESET_CONNECTION), [ok_payload()])
    fetched = relay.fetches
    assert [answer(), answer()] == [packet(ok_payload(), 1)] * 2
    assert relay.fetches == fetched


def test_a_text_that_may_lock_tables_has_the_ledger_told_again() -> None:
    relay = Relay(facts=TRACKING_FACTS)
    relay.client(query("select f()") * 2)
    relay.answer([told_payload(IDLE)])
    relay.answer([told_payload(IDLE)])
    assert relay.fetches == 1
    relay.ask(query("lock tables t read"), [ok_payload()])
    assert relay.ledger.pins == ["locked tables"]
    relay.client(query("select f()"))
    relay.answer([told_payload(IDLE)])
    assert (relay.fetches, relay.ledger.pins) == (2, [])


@pytest.mark.parametrize(
    ("text", "is_locked"),
    [
        (b"_______L", True),
        (b"_______LL", True),
        (b"LLLLLLL_", False),
        (b"________L", False),
        (b"LLLLLLL", False),
        (b"", False),
    ],
)
def test_the_eighth_character_tells_of_locked_tables(text: bytes, is_locked: bool) -> None:
    relay = Relay(facts=TRACKING_FACTS)
    relay.client(query("select f()") * 2)
    relay.answer([told_payload(IDLE)])
    relay.answer([told_payload(doing(text))])
    assert relay.ledger.pins == ["locked tables"] * is_locked
    assert relay.fetches == 1 + is_locked


def test_a_result_within_a_transaction_is_never_fetched() -> None:
    relay = Relay(facts=TRACKING_FACTS)
    relay.client(query("select a from t"))
    told, shown = eof_payload(IN_TRANS | NEWS), eof_payload(IN_TRANS)
    rows = [lenenc(1), column_payload(), shown, row_payload(b"x"), shown]
    assert relay.answer([told if payload is shown else payload for payload in rows]) == numbered(rows)
    assert (relay.fetches, relay.ledger.is_dirty, relay.tracker.at_boundary()) == (0, False, False)


@pytest.mark.parametrize("info", [b"", b"i" * 30, b"i" * 250, b"i" * 251])
@pytest.mark.parametrize("affected", [0, 300, 1 << 40])
@pytest.mark.parametrize("kept", [[], [(c.TRACK_SYSTEM_VARIABLES, b"\1a\1b"), (77, b"i" * 200)]])
@pytest.mark.parametrize("is_shown", [False, True])
def test_every_cut_of_an_ok_gives_the_same(info: bytes, affected: int, kept: Entries, is_shown: bool) -> None:
    head = b"\0" + lenenc(affected) + lenenc(affected)
    flags = (IN_TRANS | NEWS).to_bytes(2, "little")
    told = head + flags + b"\0\0" + lenenc_bytes(info) + block([special(b"READ ONLY;"), *kept, IDLE])
    if is_shown and kept:
        shown = head + flags + b"\0\0" + lenenc_bytes(info) + block(kept)
    else:
        shown = head + IN_TRANS.to_bytes(2, "little") + b"\0\0" + (lenenc_bytes(info) if info else b"")
    # Behind it another answer, and one that no server gives.
    answer = packet(told, 1) + packet(ok_payload(), 1)
    expected = packet(shown, 1) + unknown_command_packet(1) + packet(ok_payload(), 1)
    for at in range(len(answer)):
        relay = Relay(facts=TRACKING_FACTS, more=c.CLIENT_SESSION_TRACK * is_shown)
        relay.client(query("select f()"))
        relay.answer([told_payload(IDLE)])
        relay.client(query("select f()") + UNKNOWN + query("commit"))
        before = len(relay.to_client)
        relay.server(answer[:at], answer[at:])
        assert relay.to_client[before:] == expected
        assert relay.fetches <= 2
        assert relay.tracker.requests == 4


# --- the two ways are one --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """A query and what its answer tells."""

    text: str
    entries: Entries
    info: bytes
    status: int
    numbers: tuple[int, int]
    """Affected rows and insert id."""
    warnings: int
    has_rows: bool
    is_followed: bool
    """By a command that is answered here."""

    def answer(self, relay: Relay, *more: tuple[int, bytes]) -> list[bytes]:
        entries = [*more, *self.entries]
        head = lenenc(self.numbers[0]) + lenenc(self.numbers[1])
        head += (self.status | NEWS).to_bytes(2, "little") + self.warnings.to_bytes(2, "little")
        ok = head + lenenc_bytes(self.info) + block(entries)
        if not self.has_rows:
            return [b"\0" + ok]
        last = b"\xfe" + ok if relay.speech.deprecates_eof else eof_payload(self.status | NEWS)
        return [lenenc(1), column_payload(), *relay.speech.between(self.status | NEWS), row_payload(b"x"), last]


ENTRIES = st.lists(
    st.one_of(
        st.builds(doing, st.sampled_from([b"________", b"T___W___", b"_______L", b"_______LL", b"_______", b"L", b""])),
        st.builds(special, st.sampled_from([b"", b"START TRANSACTION;", b"x" * 60])),
        st.builds(
            lambda entry, more: (entry[0], entry[1] + more),
            st.sampled_from([IDLE, special(b"")]),
            st.binary(max_size=2),
        ),
        st.sampled_from([
            (c.TRACK_STATE_CHANGE, b"\x011"), (c.TRACK_STATE_CHANGE, b"\x010"), (c.TRACK_STATE_CHANGE, b""),
            (c.TRACK_SCHEMA, b"\5other"), (c.TRACK_SYSTEM_VARIABLES, b"\1a\1b"), (c.TRACK_GTIDS, b""), (77, b"1"),
        ]),
        st.builds(lambda kind, body: (kind, body), st.sampled_from([4, 5]), st.binary(max_size=12)),
    ),
    max_size=4,
)  # fmt: skip
TURN = st.builds(
    Turn,
    text=st.one_of(
        st.sampled_from(["select f()", "begin"]),
        st.sampled_from(["set @a = 1", "lock tables t read", "unlock tables"]),
        st.sampled_from(["set session_track_system_variables = '*'", "set session_track_transaction_info = 'STATE'"]),
    ),
    entries=ENTRIES,
    info=st.sampled_from([b"", b"Records: 1", b"i" * 250, b"i" * 251]),
    status=st.sampled_from([AUTOCOMMIT, IN_TRANS]),
    numbers=st.tuples(*[st.sampled_from([0, 1, 300, 70_000, 1 << 40])] * 2),
    warnings=st.sampled_from([0, 2]),
    has_rows=st.booleans(),
    is_followed=st.booleans(),
)


def heard(relay: Relay) -> tuple[object, ...]:
    tracker = relay.tracker
    news, tracker.ledger_news = tracker.ledger_news, 0
    return (*state(relay), news, relay.ledger.is_empty, tracker.asks_quietly(), tracker.has_warnings, relay.to_client)


@given(
    groups=st.lists(st.tuples(st.lists(TURN, min_size=1, max_size=3), MARKS), min_size=1, max_size=5),
    deprecates_eof=st.booleans(),
    is_shown=st.booleans(),
    shares=st.booleans(),
    first=st.sampled_from([None, 1, 9]),
)
@settings(max_examples=300, deadline=None)
def test_an_ok_that_is_not_fetched_leaves_everything_as_one_that_is(
    groups: list[tuple[list[Turn], list[int]]], deprecates_eof: bool, is_shown: bool, shares: bool, first: int | None
) -> None:
    """`first`: of packets' ids on a compressed leg, where they may be any; None: it is not compressed."""
    facts = TRACKING_FACTS if first is None else replace(TRACKING_FACTS, packing=Packing("zlib"))
    more_asked = c.CLIENT_SESSION_TRACK * is_shown
    quick, slow = (Relay(deprecates_eof=deprecates_eof, facts=facts, shares=shares, more=more_asked) for _ in range(2))
    for relay in (quick, slow):
        relay.client(query("select f()"))
        relay.answer([told_payload(IDLE)])
    for turns, marks in groups:
        for relay in (quick, slow):
            relay.client(b"".join(query(turn.text) + UNKNOWN * turn.is_followed for turn in turns))
        refused = []
        for relay, more in ((quick, ()), (slow, (LONG,))):
            answers = b"".join(numbered(turn.answer(relay, *more), first or 1) for turn in turns)
            try:
                relay.server(*cut(answers, marks if relay is quick else []))
            except ProtocolViolation:
                refused.append(relay)
        if refused:
            assert refused == [quick, slow]
            return
        assert heard(quick) == heard(slow)
        assert quick.tracker.is_idle()


BODIES = [b"", b"\0", b"1", b"\x011", b"\x08________", b"\x08_______L", b"\xfb", b"\xfc\1\0a", b"\1", b"\xff"]
BLOCKS = st.lists(
    st.builds(
        lambda kind, size, body: bytes([kind, size]) + body,
        st.integers(0, 6),
        st.sampled_from([0, 1, 2, 9, 9, 0xFB, 0xFC, 0xFF]),
        st.sampled_from(BODIES),
    ),
    max_size=4,
).map(b"".join)


@given(
    block=st.one_of(st.binary(max_size=40), BLOCKS),
    prefix=st.sampled_from([None, None, b"", b"\1", b"\xfb", b"\xfc\4\0", b"\xff"]),
    suffix=st.sampled_from([b"", b"", b"\0", b"tail"]),
    info=st.sampled_from([b"\0", b"\4info", b"\xfb", b"\xfc\2\0in", b"\xfa", b""]),
)
@settings(max_examples=500, deadline=None)
def test_what_cannot_be_read_is_refused_and_all_else_is_taken_off(
    block: bytes, prefix: bytes | None, suffix: bytes, info: bytes
) -> None:
    """`prefix`: in place of the block's length."""
    relay = Relay(facts=TRACKING_FACTS)
    relay.client(query("select f()") * 2)
    relay.answer([told_payload(IDLE)])
    told_size = lenenc(len(block)) if prefix is None else prefix
    payload = ok_payload(AUTOCOMMIT | NEWS, info=info + told_size + block + suffix)
    ledger = MysqlLedger(startup())
    try:
        head, text, entries = take_apart(payload)
        told = read(entries)
    except ProtocolViolation:
        with pytest.raises(ProtocolViolation, match="server"):
            relay.answer([payload])
        return
    ledger.note_told(told)
    assert relay.answer([payload]) == packet(put_together(head, text, []), 1)
    for name in ("pins", "is_dirty", "database", "version"):
        assert getattr(relay.ledger, name) == getattr(ledger, name), name
    assert relay.tracker.at_boundary() == (not told.characteristics)
