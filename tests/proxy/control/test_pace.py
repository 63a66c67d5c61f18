"""What answering a caller may cost, with a clock that the tests turn."""

from __future__ import annotations

import pytest

from proxy.control.pace import AT_ONCE_S, FIRST_GUESS_S, Allowance, Allowances, Bill, Meter

SHARE = 0.05


def ask(allowance: Allowance, now_s: float, cost_s: float) -> float:
    """One request that is answered when its turn has come: how long that took."""
    wait_s, given_s = allowance.take(now_s, SHARE)
    allowance.settle(given_s, cost_s)
    return wait_s


def test_who_asks_now_and_then_never_waits() -> None:
    allowance = Allowance(now_s=100.0)
    assert [ask(allowance, 100.0 + number, 0.04) for number in range(1_000)] == [0.0] * 1_000


def test_a_page_that_opens_is_answered_at_once() -> None:
    allowance = Allowance(now_s=100.0)
    assert [allowance.take(100.0, SHARE)[0] for _ in range(int(AT_ONCE_S / FIRST_GUESS_S))] == pytest.approx(
        [0.0] * 250
    )


@pytest.mark.parametrize("cost_s", [0.0002, 0.003, 0.1])
def test_whoever_asks_as_soon_as_it_is_answered_gets_its_share_of_a_processor_and_no_more(cost_s: float) -> None:
    allowance = Allowance(now_s=0.0)
    now_s = spent_s = 0.0
    while now_s < 600.0:
        now_s += ask(allowance, now_s, cost_s) + cost_s
        spent_s += cost_s
    assert spent_s == pytest.approx(600.0 * SHARE + AT_ONCE_S, abs=2 * cost_s + 0.01)


def test_the_turns_of_requests_that_come_together_come_one_after_another() -> None:
    allowance = Allowance(now_s=0.0)
    ask(allowance, 0.0, AT_ONCE_S)
    waits_s = [allowance.take(0.0, SHARE)[0] for _ in range(4)]
    first_s = waits_s[0]
    apart_s = allowance.guess_s / SHARE
    assert waits_s == pytest.approx([first_s, first_s + apart_s, first_s + 2 * apart_s, first_s + 3 * apart_s])


def test_who_leaves_before_its_turn_has_taken_nothing() -> None:
    allowance = Allowance(now_s=0.0)
    ask(allowance, 0.0, 2 * AT_ONCE_S)
    wait_s, given_s = allowance.take(0.0, SHARE)
    allowance.settle(given_s, None)
    assert allowance.take(0.0, SHARE) == (wait_s, given_s)


def test_callers_do_not_wait_for_each_other() -> None:
    allowances = Allowances(SHARE)
    ask(allowances.of("greedy", 0.0), 0.0, 10 * AT_ONCE_S)
    assert ask(allowances.of("greedy", 0.0), 0.0, 0.001) > 1.0
    assert ask(allowances.of("modest", 0.0), 0.0, 0.001) == 0.0


class Processor:
    """Its time, which a test spends."""

    def __init__(self) -> None:
        self.spent_s = 7.0

    def read(self) -> float:
        return self.spent_s


def test_time_is_shared_out_among_the_requests_it_was_spent_during_and_no_others() -> None:
    processor, allowances = Processor(), Allowances(SHARE)
    meter = Meter(processor.read)
    processor.spent_s += 100.0  # nobody asks
    first = Bill(meter)
    processor.spent_s += 0.010
    second = Bill(meter)
    processor.spent_s += 0.020  # of both
    first.pause()
    processor.spent_s += 0.040  # the first waits
    first.resume()
    first.charge(allowances.of("first", 0.0), 0.0)
    second.charge(allowances.of("second", 0.0), 0.0)
    second.close()
    processor.spent_s += 0.080
    first.close()
    processor.spent_s += 100.0
    paid_s = {name: AT_ONCE_S - allowances.of(name, 0.0).left_s for name in ("first", "second")}
    assert paid_s == pytest.approx({"first": 0.010 + 0.010 + 0.080, "second": 0.010 + 0.040})
