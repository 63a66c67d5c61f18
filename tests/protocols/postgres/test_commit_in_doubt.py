"""A COMMIT whose transaction's id is learnt before it is passed on, and what its client is told when the server is lost."""

from __future__ import annotations

import pytest

from protocols.errors import ProtocolViolation
from protocols.postgres.constants import COMMIT, QUERY_BYTES_MAX, ROLLBACK
from protocols.postgres.messages import build
from protocols.postgres.text import ending_of
from protocols.wire import ErrorReply
from tests.protocols.postgres.relay import (
    BOUND,
    FLUSH,
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
NAMED = parse("S_1", "COMMIT") + bind("S_1") + execute() + SYNC
AGAIN = bind("S_1") + execute() + SYNC
STOP = parse("", "turnout_lost_the_server_of_this_batch")

ABORTED = ErrorReply(message="aborted", sqlstate="40001", mysql_code=0, mysql_sqlstate="", is_fatal=False)
UNKNOWN = ErrorReply(message="unknown", sqlstate="08007", mysql_code=0, mysql_sqlstate="", is_fatal=False)


def in_transaction(*, resolves: bool = True, names_commit: bool = False) -> Relay:
    """`names_commit`: the client has prepared COMMIT as S_1."""
    relay = Relay()
    relay.tracker.resolves_commits = resolves
    if names_commit:
        relay.client(parse("S_1", "COMMIT") + SYNC)
        relay.server(PARSED + ready())
    relay.client(query("begin"))
    relay.server(done("BEGIN") + ready("T"))
    return relay


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        (b"COMMIT", COMMIT), (b"commit;", COMMIT), (b" end transaction ; ", COMMIT), (b"Commit Work\n", COMMIT),
        (b"commit and no chain", COMMIT), (b"/* by us */ commit -- now", COMMIT), (b"commit and chain", 0),
        (b"commit prepared 'x'", 0), (b"commit; begin", 0), (b"endless", 0), (b"commit and", 0), (b"commit and no", 0),
        (b"comment on table t is ''", 0), (b"committed", 0), (b"commi", 0), (b"", 0), (b"select 1; commit", 0),
        (b"rollback", ROLLBACK), (b"ROLLBACK;", ROLLBACK), (b"Abort Work", ROLLBACK),
        (b"rollback transaction and no chain", ROLLBACK), (b"rollback to a", 0), (b"rollback to savepoint a", 0),
        (b"rollback work to a", 0), (b"rollback and chain", 0), (b"rollback prepared 'x'", 0), (b"rollback; begin", 0),
    ],
)  # fmt: skip
def test_the_end_of_a_transaction_is_known_by_its_whole_text(text: bytes, ending: int) -> None:
    assert ending_of(text, 0, len(text)) == ending
    assert ending_of(b"end" + text + b"k", 3, 3 + len(text)) == ending


@pytest.mark.parametrize(
    ("commit", "before"),
    [(query("COMMIT"), b""), (EXTENDED, PARSED + BOUND + NO_DATA), (NAMED, PARSED + BOUND), (AGAIN, BOUND)],
    ids=["simple", "extended", "named", "named before"],
)
def test_the_id_is_asked_for_in_the_packet_of_the_commit_and_nobody_sees_the_answer(
    commit: bytes, before: bytes
) -> None:
    relay = in_transaction(names_commit=commit == AGAIN)
    assert relay.client(commit) == ASKED + commit
    assert relay.server(TOLD) == b""
    assert relay.tracker.commit_in_doubt() == "742"
    answer = before + done("COMMIT") + ready()
    assert relay.server(answer) == answer
    assert relay.tracker.at_boundary()
    assert relay.tracker.commit_in_doubt() == ""
    assert relay.tracker.transactions == (2 if commit == AGAIN else 1)


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


@pytest.mark.parametrize(
    "requests",
    [
        query("COMMIT") + query("begin"),
        parse("", "COMMIT") + bind("") + execute() + parse("", "insert") + bind("") + execute() + SYNC,
        parse("", "COMMIT") + bind("") + execute() + bind("S_2") + execute() + SYNC,
    ],
)
def test_a_request_behind_the_commit_leaves_its_outcome_unknown(requests: bytes) -> None:
    relay = in_transaction()
    relay.client(requests)
    relay.server(TOLD)
    assert relay.tracker.commit_in_doubt() == ""


def test_the_question_before_a_commit_with_a_name_takes_no_statement_from_the_client() -> None:
    relay = in_transaction(names_commit=True)
    unnamed = parse("", "select 7")
    relay.client(unnamed + SYNC)
    relay.server(PARSED + ready("T"))
    assert relay.client(AGAIN) == ASKED + AGAIN
    relay.server(TOLD + BOUND + done("COMMIT") + ready())
    assert relay.client(bind("") + execute() + SYNC) == unnamed + bind("") + execute() + SYNC


def test_a_statement_of_a_commit_that_took_place_is_there_afterwards() -> None:
    relay = in_transaction()
    relay.client(NAMED)
    relay.server(TOLD)
    assert relay.tracker.committed_answer() == PARSED + BOUND + done("COMMIT") + ready()
    relay.tracker.unlink()
    assert list(relay.ledger.statements) == [b"S_1"]


def lost_while_idle(relay: Relay) -> None:
    """The client awaits nothing; the next server stands where it thinks that it is."""
    assert relay.tracker.lose(ABORTED, UNKNOWN) == b""
    relay.link()


@pytest.mark.parametrize(
    ("batch", "answer"),
    [
        (parse("", "COMMIT") + bind("") + execute(), PARSED + BOUND),
        (bind("S_1") + execute(), BOUND),
    ],
    ids=["unnamed", "named"],
)
@pytest.mark.parametrize("behind", [SYNC, FLUSH, parse("", "insert") + bind("") + execute()])
def test_a_commit_anywhere_in_a_batch_of_what_was_lost_is_an_error_and_nothing_behind_it_is_run(
    batch: bytes, answer: bytes, behind: bytes
) -> None:
    relay = in_transaction(resolves=False, names_commit=True)
    lost_while_idle(relay)
    assert relay.client(batch + behind) == batch + STOP + behind
    told = relay.server(answer + done("ROLLBACK") + failed())
    assert told.startswith(answer)
    assert tags(told[len(answer) :]) == "E"
    assert b"40001" in told
    # The server skips what follows, and so does the client.
    if behind != SYNC:
        assert relay.client(bind("") + execute() + SYNC) == bind("") + execute() + SYNC
    assert relay.server(ready()) == ready()
    assert relay.tracker.at_boundary()


def test_a_rollback_in_a_batch_of_what_was_lost_is_none() -> None:
    relay = in_transaction(resolves=False, names_commit=True)
    lost_while_idle(relay)
    rollback = parse("", "rollback") + bind("") + execute() + SYNC
    assert relay.client(rollback) == rollback
    answer = PARSED + BOUND + done("ROLLBACK") + ready()
    assert relay.server(answer) == answer


@pytest.mark.parametrize(
    ("text", "commit"),
    [
        ("COMMIT; insert", "COMMIT"),
        ("/* done */ end work ; select ';'; insert;", "end work"),
        ("commit and chain;insert", "commit and chain"),
        ("COMMIT; -- and no more", None),
    ],
)
def test_what_follows_a_commit_of_what_was_lost_in_its_query_is_not_run(text: str, commit: str | None) -> None:
    """As with a COMMIT that fails: the client is told, and the server runs nothing of the rest."""
    relay = in_transaction(resolves=False)
    lost_while_idle(relay)
    assert relay.client(query(text)) == query(commit if commit is not None else text)
    told = relay.server(done("ROLLBACK") + ready())
    assert tags(told) == "EZ"
    assert b"40001" in told
    assert relay.tracker.at_boundary()
    assert relay.client(query(text)) == query(text)


LONG = "insert into t values ('" + "x" * QUERY_BYTES_MAX + "')"


def test_what_follows_a_commit_of_what_was_lost_in_a_query_too_long_to_be_assembled_is_not_run() -> None:
    relay = in_transaction(resolves=False)
    lost_while_idle(relay)
    sent = query("commit; " + LONG)
    parts = [sent[i : i + 65_536] for i in range(0, len(sent), 65_536)]
    assert relay.client(*parts) == query("commit")
    assert tags(relay.server(done("ROLLBACK") + ready())) == "EZ"
    assert relay.tracker.at_boundary()
    assert relay.client(sent) == sent


def test_a_long_query_behind_a_commit_of_what_was_lost_is_one_of_its_own() -> None:
    """As behind a COMMIT that fails: the server runs the next Query. In the extended protocol it skips it."""
    relay = in_transaction(resolves=False)
    lost_while_idle(relay)
    sent = query("commit") + query(LONG)
    assert relay.client(sent) == sent
    told = relay.server(done("ROLLBACK") + ready() + done("INSERT 0 1") + ready())
    assert tags(told) == "EZCZ"
    assert b"40001" in told
    relay = in_transaction(resolves=False)
    lost_while_idle(relay)
    batch = parse("", "COMMIT") + bind("") + execute()
    assert relay.client(batch + query(LONG) + SYNC) == batch + STOP + query(LONG) + SYNC
    told = relay.server(PARSED + BOUND + done("ROLLBACK") + failed() + ready())
    assert tags(told) == "12EZ"
    assert b"40001" in told
    assert relay.tracker.at_boundary()


def test_a_long_query_that_rolls_back_what_was_lost_is_passed_on_whole() -> None:
    relay = in_transaction(resolves=False)
    lost_while_idle(relay)
    sent = query("rollback; " + LONG)
    assert relay.client(sent) == sent
    answer = done("ROLLBACK") + done("INSERT 0 1") + ready()
    assert relay.server(answer) == answer


@pytest.mark.parametrize("text", ["ROLLBACK; insert", "abort; begin; insert; commit"])
def test_what_follows_a_rollback_of_what_was_lost_is_run_without_an_error(text: str) -> None:
    relay = in_transaction(resolves=False)
    lost_while_idle(relay)
    assert relay.client(query(text)) == query(text)
    answer = done("ROLLBACK") + done("INSERT 0 1") + ready()
    assert relay.server(answer) == answer


def test_a_commit_behind_a_rollback_that_is_under_way_is_another_one() -> None:
    """The client did not wait; what it commits is what it has begun since."""
    relay = in_transaction(resolves=False)
    lost_while_idle(relay)
    sent = query("rollback") + query("begin; insert; commit; select 1")
    assert relay.client(sent) == sent
    answer = (
        done("ROLLBACK") + ready() + done("BEGIN") + done("INSERT 0 1") + done("COMMIT") + done("SELECT 1") + ready()
    )
    assert relay.server(answer) == answer


def test_a_commit_that_was_answered_before_its_batch_ended_is_not_said_to_be_rolled_back() -> None:
    relay = in_transaction(resolves=False)
    relay.client(parse("", "COMMIT") + bind("") + execute() + FLUSH)
    relay.server(PARSED + BOUND + done("COMMIT"))
    lost_while_idle(relay)
    relay.client(SYNC)
    relay.server(ready("E"))
    relay.client(query("select 1"))
    assert b"08007" in relay.server(failed("25P02") + ready("E"))


def test_a_batch_that_lost_what_it_had_run_does_not_end_without_a_word() -> None:
    """Outside of a transaction a batch is one."""
    relay = Relay()
    relay.client(parse("", "insert") + bind("") + execute() + FLUSH)
    relay.server(PARSED + BOUND + done("INSERT 0 1"))
    lost_while_idle(relay)
    relay.client(SYNC)
    told = relay.server(ready())
    assert tags(told) == "EZ"
    assert b"08007" in told
    assert relay.tracker.at_boundary()


def test_a_batch_that_had_run_nothing_goes_on_after_the_loss() -> None:
    relay = Relay()
    relay.client(parse("S_2") + FLUSH)
    relay.server(PARSED)
    lost_while_idle(relay)
    relay.client(SYNC)
    assert relay.server(ready()) == ready()


def test_a_sync_alone_that_is_lost_loses_nothing() -> None:
    relay = Relay()
    relay.client(SYNC)
    assert relay.tracker.lose(ABORTED, UNKNOWN) == ready()


def test_a_batch_that_is_lost_twice_has_one_error() -> None:
    """An idle backend of the server that has crashed may be found before it is known to be dead. libpq loses count of a
    pipeline that has two errors for one batch."""
    relay = Relay()
    relay.client(parse("", "insert") + bind("") + execute() + FLUSH)
    told = relay.tracker.lose(ABORTED, UNKNOWN)
    assert told is not None
    assert tags(told) == "E"
    relay.link()
    relay.client(SYNC)
    assert relay.tracker.lose(ABORTED, UNKNOWN) == ready()


def test_a_sync_that_is_lost_tells_what_its_client_was_not_told() -> None:
    relay = Relay()
    relay.client(parse("", "insert") + bind("") + execute() + FLUSH)
    relay.server(PARSED + BOUND + done("INSERT 0 1"))
    lost_while_idle(relay)
    relay.client(SYNC)
    told = relay.tracker.lose(ABORTED, UNKNOWN)
    assert told is not None
    assert tags(told) == "EZ"
    assert b"08007" in told
    relay.link()
    relay.client(SYNC)
    assert relay.server(ready()) == ready(), "once is enough"


def test_a_sync_that_is_lost_with_a_transaction_tells_it() -> None:
    relay = in_transaction(resolves=False)
    relay.client(SYNC)
    told = relay.tracker.lose(ABORTED, UNKNOWN)
    assert told is not None
    assert tags(told) == "EZ"
    assert b"40001" in told


@pytest.mark.parametrize("resolves", [True, False])
@pytest.mark.parametrize(
    "commit", [query("COMMIT"), EXTENDED, NAMED, AGAIN], ids=["simple", "extended", "named", "named before"]
)
def test_a_client_whose_commit_was_lost_is_outside_of_a_transaction(commit: bytes, resolves: bool) -> None:
    """As with a server that fails at a COMMIT. Who is told that a failed transaction is still open sends the next BEGIN into
    it: psycopg's and asyncpg's blocks do not roll back what they could not commit."""
    relay = in_transaction(resolves=resolves, names_commit=commit == AGAIN)
    relay.client(commit)
    if resolves:
        relay.server(TOLD)
    answer = relay.tracker.lose(ABORTED, UNKNOWN)
    assert answer is not None
    assert tags(answer) == "EZ"
    assert b"08007" in answer
    assert answer.endswith(ready("I"))
    assert relay.tracker.wreckage() is None


@pytest.mark.parametrize(
    "requests",
    [
        query("insert") + query("COMMIT"),
        query("insert; commit"),
        query("commit and chain"),
        query("COMMIT") + query("begin"),
        parse("S_2", "COMMIT") + bind("S_1") + execute() + SYNC,
        parse("", "COMMIT") + bind("S_1") + execute() + SYNC,
        parse("", "COMMIT") + parse("", "insert") + bind("") + execute() + SYNC,
        parse("", "COMMIT") + bind("") + execute() + bind("S_1") + execute() + SYNC,
        parse("", "insert") + bind("") + execute() + query("COMMIT"),
    ],
)
def test_a_commit_that_does_not_stand_alone_leaves_a_failed_transaction(requests: bytes) -> None:
    relay = in_transaction(resolves=False)
    relay.client(requests)
    answer = relay.tracker.lose(ABORTED, UNKNOWN)
    assert answer is not None
    assert answer.endswith(ready("E"))
    assert relay.tracker.rolled_back_answer() == b""


ROLLBACKS = [
    (query("ROLLBACK"), done("ROLLBACK") + ready()),
    (query("abort;"), done("ROLLBACK") + ready()),
    (
        parse("", "ROLLBACK") + bind("") + describe("", "P") + execute() + SYNC,
        PARSED + BOUND + NO_DATA + done("ROLLBACK") + ready(),
    ),
    (AGAIN, BOUND + done("ROLLBACK") + ready()),
]


@pytest.mark.parametrize("has_failed", [False, True])
@pytest.mark.parametrize(("rollback", "answer"), ROLLBACKS, ids=["simple", "abort", "extended", "named"])
def test_a_rollback_needs_no_server(rollback: bytes, answer: bytes, has_failed: bool) -> None:
    relay = Relay()
    if rollback == AGAIN:
        relay.client(parse("S_1", "ROLLBACK") + SYNC)
        relay.server(PARSED + ready())
    relay.client(query("begin"))
    relay.server(done("BEGIN") + ready("T"))
    if has_failed:
        relay.client(query("nonsense"))
        relay.server(failed() + ready("E"))
    assert relay.client(rollback) == rollback
    assert relay.tracker.commit_in_doubt() == ""
    assert relay.tracker.rolled_back_answer() == answer
    relay.tracker.unlink()
    assert relay.tracker.is_idle()
    assert relay.tracker.wreckage() is None
    errors = relay.tracker.errors
    assert errors == int(has_failed), "nobody was told anything new"


def test_a_rollback_whose_answer_has_begun_gets_the_rest_of_it() -> None:
    relay = in_transaction(resolves=False)
    relay.client(parse("", "ROLLBACK") + bind("") + execute() + SYNC)
    assert relay.server(PARSED + BOUND) == PARSED + BOUND
    assert relay.tracker.rolled_back_answer() == done("ROLLBACK") + ready()


@pytest.mark.parametrize(
    "requests",
    [
        query("rollback to a"),
        query("rollback; begin"),
        query("rollback and chain"),
        query("select 1") + query("rollback"),
        query("rollback") + query("select 1"),
        query("commit"),
        parse("", "rollback") + bind("") + execute(),
    ],
)
def test_any_other_request_gets_its_error(requests: bytes) -> None:
    relay = in_transaction(resolves=False)
    relay.client(requests)
    assert relay.tracker.rolled_back_answer() == b""
    answer = relay.tracker.lose(ABORTED, UNKNOWN)
    assert answer is not None
    assert b"E" in tags(answer).encode()


def test_a_commit_of_a_transaction_that_has_failed_is_a_rollback() -> None:
    relay = in_transaction(resolves=False)
    relay.client(query("nonsense"))
    relay.server(failed() + ready("E"))
    relay.client(query("COMMIT"))
    assert relay.tracker.rolled_back_answer() == done("ROLLBACK") + ready()


@pytest.mark.parametrize("commit", [query("COMMIT"), EXTENDED, NAMED], ids=["simple", "extended", "named"])
def test_a_commit_of_a_transaction_that_was_lost_is_told_so_although_it_is_lost_as_well(commit: bytes) -> None:
    relay = in_transaction(resolves=False)
    lost_while_idle(relay)
    relay.client(commit)
    assert relay.tracker.rolled_back_answer() == b""
    told = relay.tracker.lose(ABORTED, UNKNOWN)
    assert told is not None
    assert b"40001" in told
    assert told.endswith(ready("I"))
    relay.link()
    relay.client(query("select 1"))
    answer = ROW_DESCRIPTION + done() + ready()
    assert relay.server(answer) == answer, "once is enough"


def test_a_rollback_of_a_transaction_that_was_lost_is_no_error_although_it_is_lost_as_well() -> None:
    relay = in_transaction(resolves=False)
    lost_while_idle(relay)
    relay.client(query("rollback"))
    assert relay.tracker.rolled_back_answer() == done("ROLLBACK") + ready()
    relay.tracker.unlink()
    relay.link()
    relay.client(query("select 1"))
    answer = ROW_DESCRIPTION + done() + ready()
    assert relay.server(answer) == answer


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
