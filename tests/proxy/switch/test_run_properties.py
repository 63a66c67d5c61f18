"""Facts in any order: the rules of `switch.run` hold all the same."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import ipc
from proxy.switch import run as core
from proxy.switch.run import Act, Timer
from proxy.switch.state import ENDED, Phase
from proxy.switch.strategies import Rolling
from tests.proxy.switch.playbook import (
    FENCED_SOURCE,
    OPEN_SOURCE,
    PASSED,
    POSITION,
    PRIMARY_TARGET,
    PROOF,
    SILENT_TARGET,
    STANDBY_TARGET,
    a_run,
    all_held,
    draining,
    expired,
    first_row,
    opening_stopped,
    prepared,
    released,
    retargeted,
)

WORKERS = (0, 1, 2)


def _shared(worker: int, step: int, moved: int, left: int, failed: tuple[str, ...] = ()) -> core.Fact:
    return core.WorkerSaid(
        worker,
        ipc.Shared(switch="s1", service="app", step=step, moved=moved, on_target=moved, left=left, failed=list(failed)),
    )


_of_workers: st.SearchStrategy[core.Fact] = st.sampled_from(WORKERS).flatmap(
    lambda worker: st.sampled_from(
        [
            prepared(worker), prepared(worker, "no"), opening_stopped(worker), draining(worker), all_held(worker), all_held(worker, "older"),
            retargeted(worker), retargeted(worker, 7), released(worker), released(worker, 5), first_row(worker),
            expired(worker), core.WorkerLost(worker), core.WorkerJoined(worker, False),
            core.WorkerJoined(worker, True),
        ]
    )
)  # fmt: skip
_of_engines: st.SearchStrategy[core.Fact] = st.sampled_from(
    [
        core.Examined([PASSED]), core.EnginesPrepared(), core.Approached(), core.FenceArmed(), core.Fenced(PROOF),
        core.PositionRead(POSITION),
        core.PositionAwaited(True), core.PositionAwaited(False), core.RowsCompared([]), core.RowsCompared(["t"]),
        core.Promoted(), core.Unfenced(),
        *[core.ActFailed(act, "no") for act in Act],
        *[core.Looked(source, target) for source in (FENCED_SOURCE, OPEN_SOURCE)
          for target in (STANDBY_TARGET, PRIMARY_TARGET, SILENT_TARGET)],
        *[core.TimerRang(timer) for timer in Timer], core.CancelAsked("ops"),
    ]
)  # fmt: skip
# The usual way, mixed with anything: otherwise few runs come far.
_usual: list[core.Fact] = [
    core.Examined([PASSED]), core.EnginesPrepared(), *map(prepared, WORKERS), core.Approached(),
    *map(opening_stopped, WORKERS), core.FenceArmed(), draining(1), *map(all_held, WORKERS),
    core.Fenced(PROOF), core.PositionRead(POSITION), core.PositionAwaited(True), core.RowsCompared([]), core.Promoted(),
    *map(retargeted, WORKERS), *map(released, WORKERS), first_row(0),
]  # fmt: skip


# The same while both engines serve, before all that.
_of_sharing: st.SearchStrategy[core.Fact] = st.one_of(
    st.builds(
        _shared,
        st.sampled_from(WORKERS),
        st.integers(1, 3),
        st.integers(0, 1),
        st.integers(0, 2),
        st.sampled_from([(), ("no",)]),
    ),
    st.sampled_from([core.TimerRang(core.Timer.STEP), core.TimerRang(core.Timer.SHARE), core.TargetLost("gone")]),
)
_usual_sharing: list[core.Fact] = [
    _usual[0],
    *[_shared(worker, 1, 0, 1) for worker in WORKERS],
    *[_shared(worker, 2, 1, 0) for worker in WORKERS],
    *_usual[1:],
]


@st.composite
def conversations(draw: st.DrawFn, *, is_shared: bool = False) -> list[core.Fact]:
    anything: st.SearchStrategy[core.Fact] = st.one_of(_of_workers, _of_engines)
    if is_shared:
        anything = st.one_of(anything, _of_sharing)
    facts: list[core.Fact] = []
    for usual in _usual_sharing if is_shared else _usual:
        facts += draw(st.lists(anything, max_size=2))
        if draw(st.integers(0, 19)):
            facts.append(usual)
    return facts + draw(st.lists(anything, max_size=6))


class World:
    """What the orders would have done."""

    def __init__(self) -> None:
        self.crew = set(WORKERS)
        self.told_hold: set[int] = set()
        self.stopped: set[int] = set()
        self.held: set[int] = set()
        self.retargeted: set[int] = set()
        self.fence_ordered = False
        self.unfenced_since_fence = False
        self.failed_unfences = 0
        self.phases: list[Phase] = []

    def happens(self, fact: core.Fact) -> None:
        match fact:
            case core.WorkerSaid(worker, ipc.OpeningStopped()) if worker in self.crew:
                self.stopped.add(worker)
            case core.WorkerSaid(worker, ipc.AllHeld(switch="s1")) if worker in self.crew:
                self.held.add(worker)
            case core.WorkerSaid(worker, ipc.Retargeted(epoch=8)) if self.phases[-1] is Phase.CUTTING_OVER:
                self.retargeted.add(worker)
            case core.WorkerLost(worker):
                self.crew.discard(worker)
                self.held.discard(worker)
                self.retargeted.discard(worker)
            case core.Unfenced():
                self.unfenced_since_fence = True
            case core.ActFailed(Act.UNFENCE):
                self.failed_unfences += 1
            case _:
                pass

    def done(self, order: core.Order, phase: Phase) -> None:
        match order:
            case core.Enter(entered):
                assert not self.phases or self.phases[-1] not in ENDED, "nothing follows an end"
                self.phases.append(entered)
                if entered is Phase.RELEASING:
                    assert self.crew <= self.retargeted, "the release begins when all have retargeted"
            case core.ArmFence():
                assert self.crew <= self.stopped, "no worker opens backends"
            case core.Fence():
                assert self.phases[-1] is Phase.FENCING, "journaled before it is begun"
                assert self.crew, "somebody is left to switch for"
                assert self.crew <= self.held, "the fence begins when all are held"
                self.fence_ordered, self.unfenced_since_fence = True, False
            case core.Promote():
                assert self.phases[-1] is Phase.PROMOTING, "journaled before it is begun"
                assert self.fence_ordered, "behind the fence"
            case core.Unfence():
                assert phase is Phase.ABORTING, "never in front of a primary target"
            case core.Tell(worker, ipc.Retarget()):
                assert self.phases[-1] is Phase.CUTTING_OVER
                assert worker in self.held, "only who holds is retargeted"
            case core.Tell(worker, ipc.Release(epoch=8)):
                assert self.phases[-1] in (Phase.RELEASING, Phase.VERIFYING), "released on the target after the cutover"
            case core.Tell(worker, ipc.Release(epoch=7)):
                assert self.phases[-1] is Phase.ABORTING
                assert (
                    not self.fence_ordered
                    or self.unfenced_since_fence
                    or self.failed_unfences > core.UNFENCE_TRIES_HELD
                ), "not released into a fence"
            case _:
                pass


@settings(deadline=None, max_examples=150)
@given(conversations(), st.booleans())
def test_the_rules_hold_whatever_comes(facts: list[core.Fact], compares: bool) -> None:
    _keeps_the_rules(a_run(crew=WORKERS, compares=compares), facts)


@settings(deadline=None, max_examples=100)
@given(conversations(is_shared=True))
def test_the_rules_hold_where_both_engines_served_before(facts: list[core.Fact]) -> None:
    _keeps_the_rules(a_run(crew=WORKERS, strategy=Rolling(3, 1.0)), facts)


def _keeps_the_rules(run: core.SwitchRun, facts: list[core.Fact]) -> None:
    world = World()
    for order in run.begin():
        world.done(order, run.phase)
    for fact in facts:
        if run.phase in ENDED:
            break
        world.happens(fact)
        orders = run.sees(fact)
        for order in orders:
            if isinstance(order, core.Tell):
                world.crew.add(order.worker)
            world.done(order, run.phase)
    if Phase.RELEASING in world.phases:
        assert Phase.ABORTING not in world.phases[world.phases.index(Phase.CUTTING_OVER) :]


@settings(deadline=None, max_examples=80)
@given(conversations())
def test_every_switch_can_be_brought_to_an_end(facts: list[core.Fact]) -> None:
    run = a_run(crew=WORKERS)
    run.begin()
    for fact in facts:
        run.sees(fact)
    # From here on engines do what they are asked, and workers answer or are lost.
    answers: list[core.Fact] = [
        core.CancelAsked("ops"), core.Unfenced(), core.ActFailed(Act.PROMOTE, "no"),
        core.Looked(FENCED_SOURCE, PRIMARY_TARGET), core.Promoted(), core.TimerRang(Timer.RETARGET),
        *[core.WorkerLost(worker) for worker in WORKERS], *[core.TimerRang(timer) for timer in Timer],
        core.Unfenced(), core.TimerRang(Timer.RELEASE),
    ]  # fmt: skip
    for fact in answers:
        run.sees(fact)
    assert run.phase in ENDED
