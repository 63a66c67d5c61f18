"""The judge of soaks: it must see what it is there to see."""

from __future__ import annotations

from tests.soak.history import Found, History, Outcome, found_in

MONEY = 100


def _history(**outcomes: Outcome) -> History:
    """Transactions `t1`, `t2`, …, each in list 7 and in the journal."""
    history = History()
    for name, outcome in outcomes.items():
        history.begins(int(name[1:]), list_number=7, is_in_journal=True)
        history.ended(int(name[1:]), outcome)
    return history


def _judge(history: History, journal: list[int], items: str, money: int = MONEY) -> list[str]:
    return history.judge(found_in(journal, {7: items}, money), MONEY)


YES, NO, PERHAPS = Outcome.ACKNOWLEDGED, Outcome.REFUSED, Outcome.UNKNOWN


def test_what_was_acknowledged_and_what_may_have_been_done_may_be_there() -> None:
    history = _history(t1=YES, t2=NO, t3=PERHAPS, t4=PERHAPS)
    assert _judge(history, [1, 4], ",1,4") == []


def test_what_was_acknowledged_must_be_there_whole() -> None:
    history = _history(t1=YES, t2=YES)
    assert _judge(history, [1], ",1") == ["lost: 2"]
    assert _judge(history, [1, 2], ",1") == ["lost: 2", "torn: 2"]
    assert history.lost(Found()) == [1, 2]


def test_nothing_may_be_there_twice_or_unasked() -> None:
    assert _judge(_history(t1=YES), [1, 1], ",1") == ["doubled: 1"]
    assert _judge(_history(t1=YES), [1], ",1,1") == ["doubled: 1"]
    assert _judge(_history(t1=NO), [1], ",1") == ["phantom: 1"]
    assert _judge(_history(), [5], "") == ["phantom: 5"]


def test_half_a_transaction_of_which_nothing_was_told_is_torn() -> None:
    assert _judge(_history(t1=PERHAPS), [1], "") == ["torn: 1"]


def test_a_read_is_a_beginning_of_what_there_is_in_the_end() -> None:
    history = _history(t1=PERHAPS, t2=PERHAPS)
    history.read(7, [1], frozenset())
    assert _judge(history, [1, 2], ",1,2") == []
    assert "reordered" in _judge(history, [2, 1], ",2,1")[0]


def test_two_reads_agree_on_the_order() -> None:
    history = _history(t1=YES, t2=YES, t3=YES)
    history.read(7, [1, 2, 3], frozenset())
    history.read(7, [1, 3], frozenset())
    assert [one.partition(":")[0] for one in _judge(history, [1, 2, 3], ",1,2,3")] == ["reordered"]


def test_a_read_has_what_was_acknowledged_before_it_began() -> None:
    history = _history(t1=YES)
    known = history.known_of(7)
    history.begins(2, list_number=7, is_in_journal=True)
    history.ended(2, YES)
    history.read(7, [1], known)
    assert _judge(history, [1, 2], ",1,2") == []
    history.read(7, [], known)
    assert _judge(history, [1, 2], ",1,2") == ["stale: list 7 was read without 1"]


def test_transfers_make_no_money() -> None:
    assert _judge(_history(), [], "", money=101) == ["money: there is 101, there was 100"]
