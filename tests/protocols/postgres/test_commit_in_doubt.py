"""A COMMIT whose transaction's id is learnt before it is passed on, and what its client is told when the server is lost."""

from __future__ import annotations

import pytest

from protocols.errors import ProtocolViolation
from protocols.postgres.messages import build
from protocols.postgres.text import is_commit
from protocols.wire import ErrorReply
from tests.protocols.postgres.relay import (
    BOUND,
    NO_DATA,
    NOTICE,
    PARSED,
    ROW_DESCRIPTION,
    SYNC,
    Relay,
    bind,
    describe,
    done,
    execute,
    failed,
    parse,
    query,
    ready,
    tags,
)

ASKED = query("SELECT pg_catalog.pg_current_xact_id_if_assigned()")
ID = build(b"D", b"\0\1\0\0\0\x03" + b"742")
NO_ID = build(b"D", b"\0\1\xff\xff\xff\xff")
TOLD = ROW_DESCRIPTION + ID + done() + ready("T")
EXTENDED = parse("", "COMMIT") + bind("") + describe("", "P") + execute() + SYNC

ABORTED = ErrorReply(message="aborted", sqlstate="40001", mysql_code=0, mysql_sqlstate="", is_fatal=False)
UNKNOWN = ErrorReply(message="unknown", sqlstate="08007", mysql_code=0, mysql_sqlstate="", is_fatal=False)


def in_transaction(*, resolves: bool = True) -> Relay:
    relay = Relay()
    relay.tracker.resolves_commits = resolves
    relay.client(query("begin"))
    relay.server(done("BEGIN") + ready("T"))
    return relay


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (b"COMMIT", True), (b"commit;", True), (b" end transaction ; ", True), (b"Commit Work\n", True),
        (b"commit and no chain", True), (b"commit and chain", False), (b"commit prepared 'x'", False),
        (b"commit; begin", False), (b"endless", False), (b"rollback", False), (b"commit" + b" " * 300, False),
    ],
)  # fmt: skip
def test_a_commit_is_known_by_its_whole_text(text: bytes, is_one: bool) -> None:
    assert is_commit(text) is is_one


@pytest.mark.parametrize("commit", [query("COMMIT"), EXTENDED], ids=["simple", "extended"])
def test_the_id_is_asked_for_in_the_packet_of_the_commit_and_nobody_sees_the_answer(commit: bytes) -> None:
    relay = in_transaction()
    assert relay.client(commit) == ASKED + commit
    assert relay.server(TOLD) == b""
    assert relay.tracker.commit_in_doubt() == "742"
    answer = done("COMMIT") + ready() if commit != EXTENDED else PARSED + BOUND + NO_DATA + done("COMMIT") + ready()
    assert relay.server(answer) == answer
    assert relay.tracker.at_boundary()
    assert relay.tracker.commit_in_doubt() == ""
    assert relay.tracker.transactions == 1


def test_what_the_server_says_besides_still_passes() -> None:
    relay = in_transaction()
    relay.client(query("COMMIT"))
    assert relay.server(NOTICE + ROW_DESCRIPTION + ID + NOTICE + done() + ready("T")) == NOTICE + NOTICE
    with pytest.raises(ProtocolViolation):
        again = in_transaction()
        again.client(query("COMMIT"))
        again.server(build(b"G", b"\0\0\0"))


def test_a_transaction_without_an_id_has_written_nothing() -> None:
    relay = in_transaction()
    relay.client(query("COMMIT"))
    relay.server(ROW_DESCRIPTION + NO_ID + done() + ready("T"))
    assert relay.tracker.commit_in_doubt() == "0"


def test_an_id_that_is_refused_is_not_known_and_the_commit_has_its_own_answer() -> None:
    relay = in_transaction()
    relay.client(query("COMMIT"))
    assert relay.server(failed("57014") + ready("E")) == b""
    assert relay.tracker.commit_in_doubt() == ""
    rolled_back = done("ROLLBACK") + ready()
    assert relay.server(rolled_back) == rolled_back
    assert relay.tracker.at_boundary()


def test_nothing_is_asked_where_it_is_not_wanted_or_the_commit_does_not_stand_alone() -> None:
    relay = in_transaction(resolves=False)
    assert relay.client(query("COMMIT")) == query("COMMIT")
    relay = in_transaction()
    both = query("select 1") + query("COMMIT")
    assert relay.client(both) == both, "something is in flight"
    relay = in_transaction()
    relay.client(query("nonsense"))
    relay.server(failed() + ready("E"))
    assert relay.client(query("COMMIT")) == query("COMMIT"), "the transaction has failed"
    relay = in_transaction()
    unsynced = parse("", "select 1") + query("COMMIT")
    assert relay.client(unsynced) == unsynced, "an error before it would skip it"
    relay = Relay()
    relay.tracker.resolves_commits = True
    assert relay.client(query("COMMIT")) == query("COMMIT"), "there is no transaction"


@pytest.mark.parametrize("told", [b"", ROW_DESCRIPTION + ID, ROW_DESCRIPTION + ID + done()])
def test_as_long_as_the_answer_is_not_whole_nothing_is_known(told: bytes) -> None:
    relay = in_transaction()
    relay.client(query("COMMIT"))
    relay.server(told)
    assert relay.tracker.commit_in_doubt() == ""
    answer = relay.tracker.lose(ABORTED, UNKNOWN)
    assert answer is not None
    assert tags(answer) == "EZ"
    assert b"08007" in answer


def test_a_request_behind_the_commit_leaves_its_outcome_unknown() -> None:
    relay = in_transaction()
    relay.client(query("COMMIT") + query("begin"))
    relay.server(TOLD)
    assert relay.tracker.commit_in_doubt() == ""


def test_a_client_whose_commit_was_lost_is_outside_of_a_transaction() -> None:
    relay = in_transaction()
    relay.client(query("COMMIT"))
    relay.server(TOLD)
    answer = relay.tracker.lose(ABORTED, UNKNOWN)
    assert answer is not None
    assert answer.endswith(ready("I"))
    assert relay.tracker.wreckage() is None


@pytest.mark.parametrize(
    ("commit", "begun", "answer"),
    [
        (query("COMMIT"), b"", done("COMMIT") + ready()),
        (EXTENDED, b"", PARSED + BOUND + NO_DATA + done("COMMIT") + ready()),
        (EXTENDED, PARSED + BOUND, NO_DATA + done("COMMIT") + ready()),
    ],
)
def test_a_client_whose_commit_took_place_gets_the_rest_of_the_servers_answer(
    commit: bytes, begun: bytes, answer: bytes
) -> None:
    relay = in_transaction()
    relay.client(commit)
    assert relay.server(TOLD + begun) == begun
    assert relay.tracker.commit_in_doubt() == "742"
    assert relay.tracker.committed_answer() == answer
    relay.tracker.unlink()
    assert relay.tracker.is_idle()
