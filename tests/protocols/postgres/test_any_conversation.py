"""Any conversation, in any cut, with backends exchanged at any boundary: the client gets what a server alone gives it.

The client below is lawful but hasty: it pipelines whatever it likes, except that it answers a COPY before it goes on.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.codes import GATE_CLOSED, GATE_DRAIN, GATE_OPEN
from protocols.postgres import statements
from protocols.postgres.messages import build
from tests.protocols.postgres.fake_server import FakeServer
from tests.protocols.postgres.relay import (
    CALL,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    FACTS,
    FLUSH,
    NOTICE,
    SYNC,
    Relay,
    bind,
    close,
    describe,
    execute,
    may_violate,
    parse,
    query,
    split,
)

names = st.sampled_from(["", "", "a", "b", "c"])
texts = st.sampled_from(
    ["select 1", "select 2", "select 3", "fail run", "fail parse", "begin", "commit", "set x", "deallocate all"]
)
portals = st.sampled_from(["", "p"])
kinds = st.sampled_from(["S", "P"])
# Nobody executes a COPY again by mistake: the unnamed statement and portal get another meaning behind it.
AWAY = parse("", "select 4") + bind("") + SYNC
copies = st.sampled_from(
    [
        query("copy") + COPY_DATA + COPY_DONE,
        query("select 1;copy") + COPY_DATA + SYNC + COPY_FAIL,
        query("copy") + build(b"d", b"bad") + COPY_DATA + COPY_DONE,
        parse("", "copy") + bind("") + execute() + SYNC + COPY_DATA + COPY_DONE + SYNC + AWAY,
        parse("", "copy") + bind("") + execute() + FLUSH + COPY_DATA + SYNC + COPY_FAIL + SYNC + AWAY,
        parse("", "copy")
        + bind("")
        + execute()
        + COPY_DATA
        + build(b"d", b"bad")
        + COPY_DATA
        + COPY_DONE
        + SYNC
        + AWAY,
        COPY_DATA + COPY_DONE,
    ]
)
requests = st.one_of(
    st.builds(lambda text: query(text), texts),
    st.builds(parse, names, texts),
    st.builds(bind, names, portals),
    st.builds(describe, names, kinds),
    st.builds(execute, portals),
    st.builds(close, names, kinds),
    st.builds(lambda name, text: parse(name, text) + describe(name) + bind(name) + execute() + SYNC, names, texts),
    st.builds(lambda name: bind(name) + execute() + SYNC, names),
    st.just(SYNC),
    st.just(SYNC),
    st.just(FLUSH),
    st.just(CALL),
    copies,
)


@dataclasses.dataclass
class Plan:
    """What happens in one run: requests in groups that are sent at once, cuts, and what happens between groups."""

    groups: list[bytes]
    cuts: list[int]
    moves: list[int]


plans = st.builds(
    Plan,
    st.lists(st.lists(requests, min_size=1, max_size=8).map(b"".join), min_size=1, max_size=8),
    st.lists(st.integers(1, 40), min_size=1, max_size=10),
    st.lists(st.integers(0, 2), min_size=1, max_size=8),
)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return pieces


GONE = -1


def groups_of(plan: Plan, *, renames: bool, at_once: bool = False) -> list[bytes]:
    """The groups, each with a Sync at its end, so that data of a COPY are not taken for requests.

    Where statements are renamed, a client that does not wait is treated more kindly than by a server alone in some
    cases, which are left out here: a second Parse or a Close of a name whose first meaning is not settled; the use,
    behind a Sync, of a name whose Parse, Close or (unnamed) Query could be skipped; the use of a name behind
    DEALLOCATE ALL, and a second Parse of it behind that, behind a SET, or behind what could be one.
    """
    groups: list[bytes] = []
    # Names that a Parse or Close was sent for and that are not settled: the unit of those that could be skipped.
    unsettled: dict[bytes, int | None] = {}
    unit, is_first, is_lasting = 0, True, False
    for group in plan.groups:
        if not at_once:
            unsettled.clear()
            is_lasting = False
        kept = b""
        for message in split(group):
            tag, name = message[:1], _name_in(message)
            if renames and tag == b"P" and (b"deallocate all" in message or b"set x" in message):
                continue
            if renames and name is not None:
                if tag in b"PC":
                    if name and (is_lasting if name not in unsettled else unsettled[name] != GONE):
                        continue
                    unsettled[name] = None if is_first and tag == b"P" else unit
                elif unsettled.get(name) not in (None, unit):
                    continue
            if renames and tag == b"Q" and not is_first:
                unsettled[b""] = unit
            if renames and tag == b"Q" and (b"set x" in message or b"fail" in message):
                is_lasting = True
            if renames and b"deallocate all" in message:
                if not is_first:
                    continue
                unsettled.update(dict.fromkeys((b"a", b"b", b"c"), GONE))
            kept += message
            is_first = tag == b"S"
            unit += is_first
        groups.append(kept + SYNC)
        unit, is_first = unit + 1, True
    return groups


def _name_in(message: bytes) -> bytes | None:
    """Of the statement a message is about."""
    if message[:1] == b"P":
        return message[5:].split(b"\0")[0]
    if message[:1] == b"B":
        return message[5:].split(b"\0")[1]
    return message[6:-1] if message[:1] in b"CD" and message[5:6] == b"S" else None


@pytest.mark.parametrize("shares", [False, True])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=plans)
def test_the_client_cannot_tell(shares: bool, plan: Plan) -> None:
    alone = FakeServer()
    servers = [FakeServer() for _ in range(3)] if shares else [FakeServer()]
    notes: list[dict[str, Any]] = [{} for _ in servers]
    relay = Relay(shares=shares, is_linked=False)
    relay.link(FACTS, notes[0])
    current = 0
    for turn, group in enumerate(groups_of(plan, renames=shares)):
        expected = alone.receive(group)
        relay.take_client()
        for chunk in chunks(group, plan.cuts):
            reached = relay.client(chunk)
            for answer in chunks(servers[current].receive(reached), plan.cuts):
                relay.server(answer)
        assert split(relay.take_client()) == split(expected)
        assert relay.tracker.is_idle()
        if relay.tracker.at_boundary() and shares:
            current = plan.moves[turn % len(plan.moves)]
            relay.unlink()
            relay.link(FACTS, notes[current])
    if shares:
        for server, note in zip(servers, notes, strict=True):
            own = {name for name in server.statements if name.startswith(statements.OWN_PREFIX)}
            held = note.get("statements")
            assert own == ({name for name in own if name in held} if held is not None else set())
            assert held is None or len(held) == len(own), "the notes are what the backend has"


@settings(max_examples=100, deadline=None)
@given(plan=plans)
def test_any_cut_gives_the_same(plan: Plan) -> None:
    outcomes = []
    for cuts in ([10**9], [1], plan.cuts):
        server, relay = FakeServer(), Relay()
        for group in groups_of(plan, renames=False):
            answer = b""
            for chunk in chunks(group, cuts):
                answer += server.receive(relay.client(chunk))
            # Notices amid everything move no count.
            for chunk in chunks(NOTICE + answer + NOTICE, cuts):
                relay.server(chunk)
        tracker = relay.tracker
        outcomes.append(
            (bytes(relay.to_server), bytes(relay.to_client), tracker.requests, tracker.transactions, tracker.errors,
             tracker.at_boundary(), relay.ledger.is_dirty, relay.ledger.statements, relay.ledger.version)
        )  # fmt: skip
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("shares", [False, True])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=plans)
def test_a_drain_reaches_the_first_boundary_and_loses_nothing(shares: bool, plan: Plan) -> None:
    """The server is slow: it looks at nothing before the whole group was sent. Held bytes go to another backend."""
    alone, servers = FakeServer(), [FakeServer(), FakeServer()]
    relay = Relay(shares=shares)
    stream = b"".join(groups_of(plan, renames=shares, at_once=True)) + query("rollback") + SYNC
    cut = plan.cuts[0] * 10 % len(stream)
    reached = relay.client(stream[:cut])
    relay.tracker.gate = GATE_DRAIN
    reached += relay.client(stream[cut:])
    for _ in range(len(stream)):
        before = len(relay.to_server)
        relay.server(servers[0].receive(reached))
        reached = bytes(relay.to_server[before:])
        if not reached:
            break
    assert relay.tracker.at_boundary()
    relay.tracker.gate = GATE_CLOSED
    if shares:
        relay.unlink()
        relay.link()
        target = servers[1]
    else:
        target = servers[0]
    relay.tracker.gate = GATE_OPEN
    reached = relay.go_on()
    relay.server(target.receive(reached))
    assert split(relay.take_client()) == split(alone.receive(stream))


@given(st.lists(st.binary(max_size=40), max_size=10), st.booleans())
def test_garbage_of_a_client_is_at_worst_a_violation(garbage: list[bytes], shares: bool) -> None:
    relay = Relay(shares=shares)
    with may_violate("client"):
        relay.client(*garbage)


tagged = st.builds(
    lambda tag, body, wrong: tag.encode() + (len(body) + 4 + wrong).to_bytes(4, "big") + body,
    st.sampled_from(list("PBDECQSFHdcfX")),
    st.one_of(st.binary(max_size=30), st.sampled_from([b"\0", b"\0\0", b"S\0", b"P\0", b"Sa\0", b"a\0b\0\0\0"])),
    st.sampled_from([0, 0, 0, 0, 1, -1]),
)


@given(st.lists(tagged, max_size=10), st.booleans(), st.sampled_from([GATE_OPEN, GATE_DRAIN, GATE_CLOSED]))
def test_malformed_requests_are_at_worst_a_violation(messages: list[bytes], shares: bool, gate: int) -> None:
    relay = Relay(shares=shares)
    relay.tracker.gate = gate
    with may_violate("client"):
        for message in messages:
            if relay.tracker.client_left:
                break
            relay.client(message)


answers = st.builds(
    lambda tag, body: build(tag.encode(), body),
    st.sampled_from(list("123CDEGHINSTVZdcnstARKWv")),
    st.one_of(st.sampled_from([b"", b"I", b"T", b"SELECT 1\0", b"a\0b\0"]), st.binary(max_size=20)),
)


@given(st.lists(requests, max_size=5), st.lists(st.one_of(answers, st.binary(max_size=10)), max_size=20), st.booleans())
def test_garbage_of_a_server_is_at_worst_a_violation(sent: list[bytes], garbage: list[bytes], shares: bool) -> None:
    relay = Relay(shares=shares)
    relay.client(*sent)
    with may_violate("server"):
        relay.server(*garbage)
