"""The table of states, pair by pair."""

from __future__ import annotations

import itertools

import pytest

from proxy.switch.state import ABORTABLE, ENDED, HELD, NEXT, Event, Phase, after


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, Event)))
def test_every_pair_is_declared_or_refused(phase: Phase, event: Event) -> None:
    if (phase, event) in NEXT:
        assert after(phase, event) is NEXT[(phase, event)]
    else:
        with pytest.raises(ValueError, match="cannot take"):
            after(phase, event)


def test_nothing_follows_an_end() -> None:
    assert not [pair for pair in NEXT if pair[0] in ENDED]


def test_every_phase_that_has_not_ended_leads_to_an_end() -> None:
    reaches = set(ENDED)
    for _ in Phase:
        reaches |= {phase for (phase, _), to in NEXT.items() if to in reaches}
    assert reaches == set(Phase)


def test_every_phase_can_be_reached() -> None:
    reached = {Phase.PENDING}
    for _ in Phase:
        reached |= {to for (phase, _), to in NEXT.items() if phase in reached}
    assert reached == set(Phase)


def test_trouble_before_the_promotion_leads_back_to_the_source() -> None:
    for phase in ABORTABLE:
        assert NEXT[(phase, Event.TROUBLE)] in (Phase.ABORTING, Phase.ABORTED)


def test_there_is_no_way_back_once_the_target_is_a_primary() -> None:
    for phase in (Phase.CUTTING_OVER, Phase.RELEASING, Phase.VERIFYING):
        assert (phase, Event.TROUBLE) not in NEXT
        assert Phase.ABORTING not in [to for (found, _), to in NEXT.items() if found is phase]


def test_every_event_is_used() -> None:
    assert {event for _, event in NEXT} == set(Event)


def test_clients_wait_in_no_phase_that_has_ended() -> None:
    assert not HELD & ENDED
