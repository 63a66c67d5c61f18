"""What a switch is told and what it orders: the words between `SwitchRun` (pure) and the orchestrator (the shell).

Facts are in the past tense, orders imperative. Messages to and from workers (`proxy.ipc`) travel inside of `WorkerSaid`
and `Tell`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy import ipc
from proxy.engines.engine import EngineState, FenceProof, Position
from proxy.switch.readiness import Check
from proxy.switch.significance import NOTHING, Sample
from proxy.switch.state import Phase

# --- facts --------------------------------------------------------------------------------------------------------


class Act(enum.StrEnum):
    """What is asked of an engine."""

    PREPARE = "prepare"
    APPROACH = "approach"
    ARM_FENCE = "arm_fence"
    FENCE = "fence"
    READ_POSITION = "read_position"
    AWAIT_POSITION = "await_position"
    COMPARE_ROWS = "compare_rows"
    PROMOTE = "promote"
    UNFENCE = "unfence"
    AUDIT = "audit"
    FOLLOW = "follow"
    HOOKS = "hooks"


class Stage(enum.StrEnum):
    """Moments at which hooks of the operator run besides. (Those in place of the promotion are the shell's affair.)"""

    BEFORE_FENCE = "before_fence"
    AFTER_RELEASE = "after_release"


class Timer(enum.StrEnum):
    """Deadlines of a run."""

    STEP = "step"
    SHARE = "share"
    WINDOW = "window"
    PREPARE = "prepare"
    DRAIN = "drain"
    HOLD = "hold"
    RETARGET = "retarget"
    RELEASE = "release"
    VERIFY = "verify"
    AFTERWARDS = "afterwards"
    LOOK_AGAIN = "look_again"
    UNFENCE_AGAIN = "unfence_again"


@dataclass(frozen=True, slots=True)
class Examined:
    """The readiness checks are done."""

    checks: list[Check]


@dataclass(frozen=True, slots=True)
class WorkerSaid:
    """A worker of the crew told something about this switch."""

    worker: int
    fact: ipc.Fact


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker connected: one that came back, or a new one, configured with what the state file knows now."""

    worker: int
    is_in_switch: bool
    """It says that it stands in this switch already."""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker's process is gone, and its clients' sockets with it."""

    worker: int


@dataclass(frozen=True, slots=True)
class Weighed:
    """What source and target did for clients since the workers began."""

    source: Sample
    target: Sample
    before: Sample = NOTHING
    """What the source did in the time before this switch held anybody; empty where nobody looked."""


@dataclass(frozen=True, slots=True)
class TargetLost:
    """The data plane cannot reach the target."""

    why: str


@dataclass(frozen=True, slots=True)
class EnginesPrepared:
    """Admin connections to both engines are open and warm."""


@dataclass(frozen=True, slots=True)
class Approached:
    """The target follows the source closely, or will not do so soon: then the deadline of the catch-up decides."""


@dataclass(frozen=True, slots=True)
class FenceArmed:
    """What of the fence binds no session there is, is done."""


@dataclass(frozen=True, slots=True)
class Fenced:
    proof: FenceProof


@dataclass(frozen=True, slots=True)
class PositionRead:
    position: Position


@dataclass(frozen=True, slots=True)
class PositionAwaited:
    """`reached` is false when the deadline came first; `lacking` says who has not, where it is not the target."""

    reached: bool
    lacking: str = ""


@dataclass(frozen=True, slots=True)
class RowsCompared:
    """Both engines stood still; what is `different` comes first by table and key. Empty: nothing was found."""

    different: list[str]


@dataclass(frozen=True, slots=True)
class Promoted:
    """The target is a writable primary, proven. `outcomes`: what became of transactions in doubt, by id."""

    outcomes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unfenced:
    """The source is writable, proven."""


@dataclass(frozen=True, slots=True)
class Audited:
    """The target was asked for the source's newest commits; `lost` are those it does not have."""

    lost: int


@dataclass(frozen=True, slots=True)
class Followed:
    """The source replicates from the target."""


@dataclass(frozen=True, slots=True)
class HooksRan:
    """`failed` says which one failed and may not be ignored; empty: all went well."""

    stage: Stage
    failed: str = ""


@dataclass(frozen=True, slots=True)
class ActFailed:
    act: Act
    why: str


@dataclass(frozen=True, slots=True)
class Looked:
    """Both engines were asked what they are."""

    source: EngineState
    target: EngineState


@dataclass(frozen=True, slots=True)
class TimerRang:
    timer: Timer


@dataclass(frozen=True, slots=True)
class WentBack:
    """The switch in the other direction has ended. `why` it did not complete; empty: it did."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class CancelAsked:
    by: str


@dataclass(frozen=True, slots=True)
class JournalRefused:
    """A phase could not be written down; its orders were not carried out."""

    phase: Phase
    why: str


Fact = (
    Examined
    | WorkerSaid
    | WorkerJoined
    | WorkerLost
    | Weighed
    | TargetLost
    | EnginesPrepared
    | Approached
    | FenceArmed
    | Fenced
    | PositionRead
    | PositionAwaited
    | RowsCompared
    | Promoted
    | Unfenced
    | Audited
    | Followed
    | HooksRan
    | ActFailed
    | Looked
    | TimerRang
    | WentBack
    | CancelAsked
    | JournalRefused
)

# --- orders -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Enter:
    """Write the phase down, then tell everybody. Comes before the acts of that phase."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class Examine:
    """Run the readiness checks."""


@dataclass(frozen=True, slots=True)
class Weigh:
    """Find out what both engines did for clients."""


@dataclass(frozen=True, slots=True)
class PrepareEngines:
    """Open and warm the admin connections to both engines."""


@dataclass(frozen=True, slots=True)
class Approach:
    """Wait for a while until the target is no longer far behind: what it lacks when the hold begins, clients wait for. A
    preparation that kept the processors busy may have left it behind."""


@dataclass(frozen=True, slots=True)
class Tell:
    worker: int
    order: ipc.Order


@dataclass(frozen=True, slots=True)
class ArmFence:
    """Do what of the fence binds no session there is, before the sessions are held. Must be undone like a fence."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Make the source refuse writes."""

    own_backend_pids: frozenset[int]


@dataclass(frozen=True, slots=True)
class ReadPosition:
    """The source's, after the fence."""


@dataclass(frozen=True, slots=True)
class AwaitPosition:
    """The target must have it."""

    position: Position
    timeout_s: float


@dataclass(frozen=True, slots=True)
class CompareRows:
    """Of some tables of both engines, in the time that the config gives; clients wait."""


@dataclass(frozen=True, slots=True)
class Promote:
    """The target. `in_doubt`: transactions of the lost source whose outcome is to be found out."""

    timeout_s: float
    in_doubt: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Look:
    """Ask both engines what they are."""


@dataclass(frozen=True, slots=True)
class Unfence:
    """The source. Whatever is asked of the engines at this moment is given up first."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Ask the target for the source's newest commits, while clients work there and the source is still as the fence left
    it."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Make the source a replica of the target, while clients work there."""


@dataclass(frozen=True, slots=True)
class RunHooks:
    """Those of the operator's that belong to this moment, one after the other."""

    stage: Stage


@dataclass(frozen=True, slots=True)
class GoBack:
    """Begin a switch in the other direction."""

    why: str


@dataclass(frozen=True, slots=True)
class StartTimer:
    timer: Timer
    after_s: float


@dataclass(frozen=True, slots=True)
class StopTimer:
    timer: Timer


@dataclass(frozen=True, slots=True)
class ReplaceWorker:
    """End the process; what it would have done is undecidable otherwise."""

    worker: int
    why: str


Order = (
    Enter
    | Examine
    | Weigh
    | PrepareEngines
    | Approach
    | Tell
    | ArmFence
    | Fence
    | ReadPosition
    | AwaitPosition
    | CompareRows
    | Promote
    | Look
    | Unfence
    | Audit
    | Follow
    | RunHooks
    | GoBack
    | StartTimer
    | StopTimer
    | ReplaceWorker
)
