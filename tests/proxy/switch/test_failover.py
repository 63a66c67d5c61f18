"""When an engine is lost, who takes over, and how often: the decisions alone."""

from __future__ import annotations

import itertools

import pytest

from proxy.engines.engine import EngineState, Position, Role
from proxy.errors import Failure
from proxy.switch.failover import (
    NEXT,
    Automation,
    Detector,
    Health,
    Lost,
    Sample,
    Seen,
    WorkersWord,
    choose,
)

SECOND = 1_000_000_000


def _detector(failures: int = 3, starting_s: float = 10.0) -> Detector:
    """Of an engine that has answered."""
    detector = Detector(failures, starting_s)
    detector.probed(None, "", 1)
    return detector


def _fail(detector: Detector, *kinds: Failure, begin: int = 2) -> Health:
    for at, kind in enumerate(kinds, begin):
        detector.probed(kind, kind, at * SECOND)
    return detector.health


def _said(*alive: bool) -> list[WorkersWord]:
    return [WorkersWord(worker=number, is_alive=one, how="") for number, one in enumerate(alive)]


# --- is it gone? ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("health", "seen"), list(itertools.product(Health, Seen)))
def test_only_a_refusal_by_the_host_or_the_workers_make_an_engine_lost(health: Health, seen: Seen) -> None:
    after = NEXT.get((health, seen), health)
    if after is Health.LOST and health is not Health.LOST:
        assert seen is Seen.GONE or (health is Health.SILENT and seen is Seen.DEAD)
        assert health is not Health.UNSEEN
    if seen is Seen.ANSWER:
        assert after is Health.ANSWERING


def test_an_engine_that_its_host_refuses_often_enough_is_lost_without_a_question() -> None:
    detector = _detector()
    assert _fail(detector, "refused", "refused") is Health.SUSPECTED
    assert _fail(detector, "refused", begin=4) is Health.LOST


def test_a_silent_engine_is_lost_only_if_no_worker_had_an_answer() -> None:
    detector = _detector()
    assert _fail(detector, "silent", "silent", "silent") is Health.SILENT
    assert detector.testified(_said(False, True)) is Health.SUSPECTED
    assert _fail(detector, "silent", begin=5) is Health.SUSPECTED, "it counts anew"
    assert detector.since_ns == 5 * SECOND, "and what a worker heard before that proves nothing"
    assert _fail(detector, "silent", "silent", begin=6) is Health.SILENT
    assert detector.testified(_said(False, False)) is Health.LOST


def test_workers_that_say_nothing_prove_nothing() -> None:
    detector = _detector()
    _fail(detector, "silent", "silent", "silent")
    assert detector.testified([]) is Health.SILENT


def test_refusals_count_only_in_a_row() -> None:
    detector = _detector()
    assert _fail(detector, "refused", "refused", "silent") is Health.SILENT
    assert _fail(detector, "refused", "refused", begin=5) is Health.SILENT
    assert _fail(detector, "refused", begin=7) is Health.LOST


@pytest.mark.parametrize("answer", [None, "told"], ids=["an answer", "a refused login"])
def test_one_answer_begins_everything_anew(answer: Failure | None) -> None:
    detector = _detector()
    _fail(detector, "refused", "refused")
    assert detector.probed(answer, "", 9 * SECOND) is Health.ANSWERING
    assert detector.since_ns == 0
    assert _fail(detector, "refused", "refused", begin=10) is Health.SUSPECTED


def test_an_engine_that_starts_is_waited_for_so_long() -> None:
    detector = _detector(failures=1, starting_s=3.0)
    assert _fail(detector, "starting", "starting", "starting") is Health.SUSPECTED
    assert _fail(detector, "starting", begin=5) is Health.SILENT


def test_an_engine_that_never_answered_has_time_to_start_and_is_lost_by_the_workers_word_only() -> None:
    """Turnout has begun while it was gone, or on a host that begins with it."""
    detector = Detector(3, starting_s=10.0)
    assert _fail(detector, "refused", "refused", "refused", "refused") is Health.UNSEEN
    assert _fail(detector, "refused", begin=12) is Health.SILENT
    assert detector.testified(_said(False, False)) is Health.LOST


# --- which one takes its place? -------------------------------------------------------------------------------------

WALL = 100 * SECOND


def _standby(name: str, lsn: str, **changes: object) -> EngineState:
    found: dict[str, object] = {
        "name": name, "is_reachable": True, "server_id": "7", "role": Role.STANDBY, "timeline": 1,
        "position": Position("lsn", "0/1"), "received": Position("lsn", lsn), **changes,
    }  # fmt: skip
    return EngineState(**found)  # type: ignore[arg-type]


def _lost(*positions: str) -> Lost:
    """`positions` of its last seconds, a second apart; the last one just before it failed."""
    samples = [
        Sample(WALL - (len(positions) - place) * SECOND, Position("lsn", lsn)) for place, lsn in enumerate(positions)
    ]
    return Lost("blue", WALL, EngineState(name="blue", is_reachable=True, server_id="7", timeline=1), samples)


def _choose(lost: Lost, *states: EngineState, **changes: object) -> tuple[str, str]:
    options: dict[str, object] = {"replication": "stream", "lag_tolerance_ms": 10_000.0, **changes}
    choice = choose(lost, {state.name: state for state in states}, **options)  # type: ignore[arg-type]
    return choice.target, choice.why


def test_the_standby_that_received_most_takes_over_whatever_it_has_applied() -> None:
    lost = _lost("0/100", "0/200", "0/300")
    few, most = _standby("green", "0/250"), _standby("grey", "0/2F0")
    assert _choose(lost, few, most)[0] == "grey"
    assert _choose(lost, few, most, preferred="green")[0] == "grey"
    assert "preferred was green: it has less than grey" in _choose(lost, few, most, preferred="green")[1]


def test_a_preferred_engine_takes_over_if_nobody_has_more() -> None:
    lost = _lost("0/100")
    assert _choose(lost, _standby("green", "0/100"), _standby("grey", "0/100"))[0] == "green"
    assert _choose(lost, _standby("green", "0/100"), _standby("grey", "0/100"), preferred="grey")[0] == "grey"


def test_what_may_be_missing_is_bounded_by_when_the_lost_engine_stood_where_the_standby_is() -> None:
    lost = _lost("0/100", "0/200", "0/300")
    choice = choose(lost, {"green": _standby("green", "0/250")}, replication="stream", lag_tolerance_ms=10_000.0)
    assert choice.chosen.may_lack_ms == 2_000.0
    assert choice.chosen.may_lack_bytes == 0xB0


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (_standby("green", "0/100", is_reachable=False, why="refused"), "cannot be reached (refused)"),
        (_standby("green", "0/100", server_id="8"), "another cluster"),
        (_standby("green", "0/100", role=Role.PRIMARY, is_writable=True), "no standby"),
        (_standby("green", "0/40"), "how far it was behind blue is not known"),
        (_standby("green", "0/50"), "may lack commits of the last 3000 ms"),
    ],
)
def test_who_cannot_take_over_is_named_with_the_reason(state: EngineState, why: str) -> None:
    target, said = _choose(_lost("0/50", "0/200", "0/300"), state, lag_tolerance_ms=2_500.0)
    assert target == ""
    assert why in said


def test_of_an_engine_that_was_not_seen_to_live_every_standby_has_to_say_that_it_is_gone() -> None:
    lost, attached = _lost("0/300"), _standby("grey", "0/300", is_replicating=True)
    assert _choose(lost, _standby("green", "0/300"), attached)[0] == "green"
    target, why = _choose(lost, _standby("green", "0/300"), attached, has_answered=False)
    assert target == ""
    assert "grey still replicates" in why


def test_one_of_which_nobody_knows_what_it_lacks_is_taken_by_force_only() -> None:
    lost = Lost("blue", WALL, EngineState(name="blue", is_reachable=False), [])
    assert "is not known" in _choose(lost, _standby("green", "0/300"))[1]
    assert _choose(lost, _standby("green", "0/300"), takes_unknown=True)[0] == "green"


def test_who_was_promoted_by_somebody_else_is_taken_as_it_is() -> None:
    promoted = _standby("green", "0/300", role=Role.PRIMARY, is_writable=True, timeline=2)
    assert _choose(_lost("0/300"), promoted, _standby("grey", "0/310"))[0] == "green"


def test_who_was_promoted_too_late_and_fenced_takes_over_only_if_a_person_names_it() -> None:
    late = _standby("green", "0/300", role=Role.PRIMARY, is_fenced=True, timeline=2)
    assert "no standby" in _choose(_lost("0/300"), late)[1]
    assert "no standby" in _choose(_lost("0/300"), late, takes_fenced=True)[1]
    assert _choose(_lost("0/300"), late, takes_fenced=True, preferred="green")[0] == "green"
    stranger = _standby("green", "0/300", role=Role.PRIMARY, is_fenced=True, timeline=1)
    assert "no standby" in _choose(_lost("0/300"), stranger, takes_fenced=True, preferred="green")[1]


def test_standbys_with_two_histories_are_left_to_a_person() -> None:
    def replica(name: str, gtids: str) -> EngineState:
        return EngineState(
            name=name, is_reachable=True, flavour="mariadb", role=Role.STANDBY, position=Position("mariadb-gtid", gtids)
        )

    last = EngineState(name="blue", is_reachable=True, flavour="mariadb")
    lost = Lost("blue", WALL, last, [Sample(WALL - SECOND, Position("mariadb-gtid", "0-1-5"))])
    target, why = _choose(lost, replica("green", "0-1-9,1-2-1"), replica("grey", "0-1-8,1-2-2"))
    assert target == ""
    assert "diverged" in why
    assert _choose(lost, replica("green", "0-1-9,1-2-2"), replica("grey", "0-1-8,1-2-2"))[0] == "green"


@pytest.mark.parametrize(("replication", "is_taken"), [("logical", False), ("none", True)])
def test_another_address_of_the_same_server_may_take_over_a_subscriber_may_not(
    replication: str, is_taken: bool
) -> None:
    last = EngineState(name="blue", is_reachable=True, server_id="7", instance="one")
    other = _standby("green", "0/1", role=Role.PRIMARY, is_writable=True, instance="one")
    target, why = _choose(Lost("blue", WALL, last, []), other, replication=replication)
    assert bool(target) is is_taken
    assert is_taken or "by hand" in why


# --- again and again? -----------------------------------------------------------------------------------------------


def test_each_failover_of_an_hour_doubles_the_pause_before_the_next() -> None:
    automation = Automation()
    assert automation.may_begin_at(30.0) == 0.0
    automation = automation.succeeded(1_000.0)
    assert automation.may_begin_at(30.0) == 1_030.0
    automation = automation.succeeded(1_040.0).succeeded(1_200.0)
    assert automation.may_begin_at(30.0) == 1_200.0 + 120.0
    assert automation.succeeded(10_000.0).may_begin_at(30.0) == 10_030.0, "an hour later"
    assert automation.may_begin_at(0.0) == 0.0


def test_a_failed_failover_is_the_last_one_until_a_person_says_otherwise() -> None:
    failed = Automation().succeeded(1.0).failed("it was not promoted", 2.0)
    assert not failed.is_on
    assert failed.why_off == "it was not promoted"
    assert not failed.succeeded(3.0).is_on
    switched = failed.switched(True, "ops", 4.0)
    assert switched.is_on
    assert switched.may_begin_at(30.0) == 0.0
