"""What answering a caller may cost, with a clock that the tests turn."""

from __future__ import annotations

import pytest

from proxy.control.pace import (
    AT_ONCE_S,
    FIRST_GUESS_S,
    HALF_LIFE_S,
    WAIT_MAX_S,
    WAITING_MAX,
    Allowance,
    Allowances,
    Bill,
    Meter,
    Turn,
    Use,
)

SHARE = 0.05


class Connection:
    """Asks one thing after another."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self.use = Use()

    def ask(self, now_s: float, cost_s: float) -> float:
        """One request, with nobody else in line, that is answered when its turn has come: how long that took."""
        given_s, wait_s = self.allowance.take(now_s, SHARE), 0.0
        if given_s is None:
            turn = Turn(lambda has_come: None)
            assert self.allowance.stand(turn, self.use, 1e9) is None
            while (later_s := self.allowance.next_s(now_s + wait_s, SHARE)) is not None:
                wait_s += max(later_s, 1e-6)
            given_s = turn.given_s
        self.answer(now_s + wait_s, given_s, cost_s)
        return wait_s

    def answer(self, now_s: float, given_s: float, cost_s: float) -> None:
        self.allowance.settle(given_s, cost_s)
        self.allowance.note(self.use, cost_s, now_s)


class Line:
    """Those who wait, by name, and those whose turn has come or who were refused."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self.come: list[str] = []
        self.refused: list[str] = []

    def stand(self, name: str, use: Use) -> tuple[Turn, float | None]:
        turn = Turn(lambda has_come: (self.come if has_come else self.refused).append(name))
        return turn, self.allowance.stand(turn, use, SHARE)

    def wait(self, now_s: float) -> list[float]:
        """Until nobody waits: when each one's turn came."""
        came: list[float] = []
        while (later_s := self.allowance.next_s(now_s, SHARE)) is not None:
            came += [now_s] * (len(self.come) - len(came))
            now_s += max(later_s, 1e-6)
        return came + [now_s] * (len(self.come) - len(came))


def overdrawn(by_s: float = 0.0) -> Allowance:
    """Of a caller who has taken all that it may take at once, and so much more (and a request's worth at most)."""
    allowance = Allowance(now_s=0.0)
    while allowance.take(0.0, SHARE) is not None:
        pass
    if by_s:
        allowance.settle(0.0, by_s)
    return allowance


def used(spent_s: float, now_s: float = 0.0) -> Use:
    use = Use()
    use.add(spent_s, now_s)
    return use


def test_who_asks_now_and_then_never_waits() -> None:
    connection = Connection(Allowance(now_s=100.0))
    assert [connection.ask(100.0 + number, 0.04) for number in range(1_000)] == [0.0] * 1_000


def test_a_page_that_opens_is_answered_at_once() -> None:
    allowance = Allowance(now_s=100.0)
    given_s = [allowance.take(100.0, SHARE) for _ in range(int(AT_ONCE_S / FIRST_GUESS_S))]
    assert given_s == [FIRST_GUESS_S] * 250


@pytest.mark.parametrize("cost_s", [0.0002, 0.003, 0.1])
def test_whoever_asks_as_soon_as_it_is_answered_gets_its_share_of_a_processor_and_no_more(cost_s: float) -> None:
    connection = Connection(Allowance(now_s=0.0))
    now_s = spent_s = 0.0
    while now_s < 600.0:
        now_s += connection.ask(now_s, cost_s) + cost_s
        spent_s += cost_s
    assert spent_s == pytest.approx(600.0 * SHARE + AT_ONCE_S, abs=2 * cost_s + 0.01)


def test_the_turns_of_requests_that_come_together_come_one_after_another() -> None:
    line, use = Line(overdrawn()), Use()
    for name in "abcd":
        assert line.stand(name, use)[1] is None
    came = line.wait(0.0)
    assert line.come == [*"abcd"]
    assert 0.0 < came[0] <= FIRST_GUESS_S / SHARE
    assert came == pytest.approx([came[0] + number * FIRST_GUESS_S / SHARE for number in range(4)], abs=1e-5)


def test_who_comes_while_somebody_waits_waits_too() -> None:
    allowance = overdrawn()
    Line(allowance).stand("first", Use())
    assert allowance.take(1.0, SHARE) is None


def test_the_next_turn_is_that_of_the_connection_that_has_cost_least_lately() -> None:
    line = Line(overdrawn())
    for name, spent_s in (("script", 0.5), ("page", 0.01), ("script, again", 0.5), ("other page", 0.02)):
        line.stand(name, used(spent_s))
    line.wait(0.0)
    assert line.come == ["page", "other page", "script", "script, again"]


def test_what_a_connection_has_cost_is_forgotten() -> None:
    line = Line(overdrawn())
    line.stand("lately", used(0.1, now_s=0.0))
    line.stand("long ago", used(0.5, now_s=-10 * HALF_LIFE_S))
    line.wait(0.0)
    assert line.come == ["long ago", "lately"]


def test_a_connection_for_each_request_does_not_come_first() -> None:
    allowance = overdrawn()
    script, page = Connection(allowance), Connection(allowance)
    allowance.note(page.use, 0.001, 0.0)
    allowance.note(script.use, 0.5, 0.0)
    line = Line(allowance)
    line.stand("a script's next connection", Use())
    line.stand("page", page.use)
    line.wait(0.0)
    assert line.come == ["page", "a script's next connection"]


def test_who_leaves_before_its_turn_has_taken_nothing() -> None:
    line = Line(overdrawn())
    turn, _ = line.stand("leaves", Use())
    line.stand("stays", Use())
    turn.leave()
    [came_s] = line.wait(0.0)
    assert came_s <= FIRST_GUESS_S / SHARE
    assert line.come == ["stays"]


def test_who_would_wait_too_long_is_told_how_long() -> None:
    line = Line(overdrawn(by_s=2 * WAIT_MAX_S * SHARE))
    assert line.stand("late", Use())[1] == pytest.approx(2 * WAIT_MAX_S, abs=FIRST_GUESS_S / SHARE)
    assert line.wait(0.0) == []


def test_of_a_line_that_is_full_the_last_one_makes_room() -> None:
    line = Line(overdrawn())
    for number in range(WAITING_MAX):
        assert line.stand(f"script {number}", used(0.5))[1] is None
    assert line.stand("one more", used(0.5))[1] is not None
    assert line.stand("page", used(0.1))[1] is None
    assert line.refused == [f"script {WAITING_MAX - 1}"]
    line.wait(0.0)
    assert line.come == ["page", *(f"script {number}" for number in range(WAITING_MAX - 1))]


def test_callers_do_not_wait_for_each_other() -> None:
    allowances = Allowances(SHARE)
    greedy, modest = (Connection(allowances.of(name, 0.0)) for name in ("greedy", "modest"))
    greedy.ask(0.0, AT_ONCE_S + 0.1)
    assert greedy.ask(0.0, 0.001) > 1.0
    assert modest.ask(0.0, 0.001) == 0.0


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
    uses = Use(), Use()
    first.charge(allowances.of("first", 0.0), 0.0, uses[0])
    second.charge(allowances.of("second", 0.0), 0.0, uses[1])
    second.close(0.0)
    processor.spent_s += 0.080
    first.close(0.0)
    processor.spent_s += 100.0
    spent_s = [2.0**use.weight for use in uses]
    assert spent_s == pytest.approx([0.010 + 0.010 + 0.080, 0.010 + 0.040])
