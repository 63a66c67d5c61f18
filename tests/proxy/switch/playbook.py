"""Conversations with a `SwitchRun`: what it sees, what it does."""

from __future__ import annotations

from typing import Any

from proxy import ipc
from proxy.engines.engine import EngineState, FenceProof, Position, Role
from proxy.switch import run as core
from proxy.switch.plan import SwitchPlan
from proxy.switch.readiness import Check
from proxy.switch.run import SwitchRun
from proxy.switch.state import Phase
from proxy.switch.strategies import Strategy, Window

SWITCH = "s1"
POSITION = Position("lsn", "0/5000028")
PROOF = FenceProof(
    engine="blue", how="test", refused_with="25006", sessions_ended=0, writers_left=0, took_us=1, at_ns=1
)
PASSED = Check(name="all", verdict="pass", found="fine")


def a_plan(**changes: Any) -> SwitchPlan:
    """An accepted plan: blue to green."""
    given = {"source": "blue", "drain_timeout_s": 30.0, "on_drain_expired": "abort", **changes}
    return SwitchPlan(service="app", target="green", **given)


def a_run(
    *,
    crew: tuple[int, ...] = (0, 1),
    phase: Phase = Phase.PENDING,
    hold_ms_max: int = 5_000,
    moves_data: bool = True,
    compares: bool = False,
    audits: bool = False,
    reverses: bool = False,
    hooks: tuple[str, ...] = (),
    strategy: Strategy | None = None,
    window: Window | None = None,
    **plan: Any,
) -> SwitchRun:
    """Epoch 7 before, 8 after the cutover."""
    return SwitchRun(
        SWITCH,
        a_plan(**plan),
        epoch=7,
        crew=crew,
        hold_ms_max=hold_ms_max,
        catchup_timeout_s=4.0,
        promote_timeout_s=10.0,
        phase=phase,
        moves_data=moves_data,
        compares=compares,
        audits=audits,
        reverses=reverses,
        hooks=hooks,
        strategy=strategy,
        window=window,
    )


def engine(name: str, role: Role | None, *, writable: bool = False, reachable: bool = True) -> EngineState:
    """What a probe finds."""
    return EngineState(
        name=name,
        is_reachable=reachable,
        role=role if reachable else None,
        is_writable=writable,
        is_fenced=not writable,
    )


FENCED_SOURCE = engine("blue", Role.PRIMARY)
OPEN_SOURCE = engine("blue", Role.PRIMARY, writable=True)
STANDBY_TARGET = engine("green", Role.STANDBY)
PRIMARY_TARGET = engine("green", Role.PRIMARY, writable=True)
SILENT_TARGET = engine("green", None, reachable=False)

# --- facts of workers ---------------------------------------------------------------------------------------------


def prepared(worker: int, *failed: str) -> core.WorkerSaid:
    return core.WorkerSaid(
        worker,
        ipc.Prepared(switch=SWITCH, service="app", sessions=1, backend_pids=[100 + worker], failed=list(failed)),
    )


def opening_stopped(worker: int) -> core.WorkerSaid:
    return core.WorkerSaid(worker, ipc.OpeningStopped(switch=SWITCH, service="app"))


def draining(worker: int) -> core.WorkerSaid:
    return core.WorkerSaid(worker, ipc.Draining(switch=SWITCH, service="app", held=1, draining=1))


def all_held(worker: int, switch: str = SWITCH) -> core.WorkerSaid:
    return core.WorkerSaid(
        worker,
        ipc.AllHeld(
            switch=switch, service="app", held=2, hold_began_ns=10, last_boundary_ns=20, backend_pids=[200 + worker]
        ),
    )


def retargeted(worker: int, epoch: int = 8) -> core.WorkerSaid:
    return core.WorkerSaid(worker, ipc.Retargeted(switch=SWITCH, service="app", epoch=epoch, sessions=2))


def released(worker: int, *waits_us: int) -> core.WorkerSaid:
    return core.WorkerSaid(
        worker,
        ipc.Released(
            switch=SWITCH,
            service="app",
            sessions=2,
            first_request_ns=15 if waits_us else 0,
            waits_us=list(waits_us),
        ),
    )


def first_row(worker: int) -> core.WorkerSaid:
    return core.WorkerSaid(worker, ipc.FirstRow(switch=SWITCH, service="app", at_ns=99))


def expired(worker: int) -> core.WorkerSaid:
    return core.WorkerSaid(worker, ipc.Expired(switch=SWITCH, service="app", refused=1))


# --- orders to workers --------------------------------------------------------------------------------------------


def prepare(worker: int) -> core.Tell:
    return core.Tell(worker, ipc.Prepare(switch=SWITCH, service="app", target="green"))


def stop_opening(worker: int) -> core.Tell:
    return core.Tell(worker, ipc.StopOpening(switch=SWITCH, service="app"))


def hold(worker: int) -> core.Tell:
    return core.Tell(worker, ipc.Hold(switch=SWITCH, service="app"))


def retarget(worker: int) -> core.Tell:
    return core.Tell(worker, ipc.Retarget(switch=SWITCH, service="app", target="green", epoch=8))


def release(worker: int) -> core.Tell:
    return core.Tell(worker, ipc.Release(switch=SWITCH, service="app", epoch=8))


def release_on_source(worker: int) -> core.Tell:
    return core.Tell(worker, ipc.Release(switch=SWITCH, service="app", epoch=7))


class Playbook:
    """`play.sees(fact).does(order, …)`: exactly these, in this order. Timers are left out unless asked for."""

    def __init__(self, run: SwitchRun) -> None:
        self.run = run
        self.orders: list[core.Order] = []

    def begins(self) -> Playbook:
        self.orders = self.run.begin()
        return self

    def resumes(self, verdict: core.Verdict) -> Playbook:
        self.orders = self.run.resume(verdict)
        return self

    def sees(self, *facts: core.Fact) -> Playbook:
        """Several facts at once: what all of them together lead to."""
        self.orders = [order for fact in facts for order in self.run.sees(fact)]
        return self

    def does(self, *orders: core.Order) -> Playbook:
        acts = [order for order in self.orders if not isinstance(order, core.StartTimer | core.StopTimer)]
        assert acts == list(orders)
        return self

    def does_nothing(self) -> Playbook:
        assert self.orders == []
        return self

    def starts(self, timer: core.Timer) -> Playbook:
        assert timer in [order.timer for order in self.orders if isinstance(order, core.StartTimer)]
        return self

    def stands_in(self, phase: Phase) -> Playbook:
        assert self.run.phase is phase
        return self


TO_PHASE: dict[Phase, tuple[core.Fact, ...]] = {
    Phase.VALIDATING: (),
    Phase.PREPARING: (core.Examined([PASSED]), core.EnginesPrepared()),
    Phase.HOLDING: (
        prepared(0), prepared(1), core.Approached(), opening_stopped(0), opening_stopped(1), core.FenceArmed(),
    ),
    Phase.DRAINING: (draining(0),),
    Phase.FENCING: (all_held(0), all_held(1)),
    Phase.CATCHING_UP: (core.Fenced(PROOF),),
    Phase.PROMOTING: (core.PositionRead(POSITION), core.PositionAwaited(True)),
    Phase.CUTTING_OVER: (core.Promoted(),),
    Phase.RELEASING: (retargeted(0), retargeted(1)),
    Phase.VERIFYING: (released(0, 500), released(1)),
}  # fmt: skip
"""What brings a run of two workers from the phase before into this one."""


def play_to(phase: Phase, **options: Any) -> Playbook:
    """A run that stands in `phase`, reached the usual way."""
    play = Playbook(a_run(**options)).begins()
    for reached, facts in TO_PHASE.items():
        for fact in facts:
            play.sees(fact)
        if reached is phase:
            break
    return play.stands_in(phase)
