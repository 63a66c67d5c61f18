"""The states of a switch, as one table. Nothing else moves a switch from one phase to another.

Theory of operation
-------------------
A switch has one point of no return: the order to promote. Until the journal says `promoting`, the source is the engine
that is right, everything can be undone, and undoing means: take the fence away, release the sessions where they are.
From `promoting` on nobody but the target itself knows whether it has become a primary. If it says that it has not, the
switch is undone. If it cannot be asked, the switch stays in `promoting`, the sessions stay held (workers refuse their
requests after `hold_ms_max`), and the target is asked again and again; a person who knows that it is gone for good may
cancel, which gives the source back: no client was released on the target, so nothing acknowledged can be missing. Once
the target is known to be a primary (`cutting_over`) there is only forward: the source misses what the target accepts.

An undo that cannot reach the source stays in `aborting` and tries again, for the same reason: a state that nobody
leaves by himself must be rare. `failed` is for a person: two primaries at once, or an undo that somebody gave up.

Where source and target are addresses of one server (`replication = "none"`) there is nothing to fence, to catch up with
or to promote: from `holding` or `draining` straight to `cutting_over`.

A failover (`switch.failover_run`) has no source to drain, to fence or to catch up with: from `validating` to `holding`,
where the workers let go of the source for ever, and on to `promoting`. There a target that cannot be asked is given up
after a while: clients are on neither, and it is fenced should it come back.

`sharing` is where the strategies rolling and canary let both engines serve; it comes before the preparation for the rest,
for its length is that of an experiment. Nothing has been fenced, and whatever happens there leads back.

`rolling_back` is a switch of its own in the other direction, with a record and a report of its own: it has all guarantees of
one, and this switch only waits for its end. It begins when the window after a cutover finds the service worse than before and
the way back loses nothing. When that switch is undone, the target serves on and a person is asked (`failed`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class Phase(enum.StrEnum):
    """Where a switch stands."""

    PENDING = "pending"
    """Asked for, nothing done."""
    VALIDATING = "validating"
    """The readiness checks run."""
    SHARING = "sharing"
    """Both engines serve: sessions move in batches, or a share of them is compared with the rest."""
    PREPARING = "preparing"
    """Target backends are opened and replayed, admin connections too; then the source's fence is set up for sessions to
    come. Traffic goes on."""
    HOLDING = "holding"
    """Sessions at a boundary are held; no worker has told yet how many are not."""
    DRAINING = "draining"
    """Some sessions finish their transactions."""
    FENCING = "fencing"
    """Everything is held; the source is made to refuse writes."""
    CATCHING_UP = "catching_up"
    """The target replays up to the fenced position."""
    PROMOTING = "promoting"
    """The target is made a primary. From here on it alone knows who is right."""
    CUTTING_OVER = "cutting_over"
    """The target is the primary; the sessions get their backends there."""
    RELEASING = "releasing"
    """Workers read on, on the target."""
    VERIFYING = "verifying"
    """First answers from the target are waited for."""
    COMPLETED = "completed"
    """The target serves."""
    ABORTING = "aborting"
    """The source gets its writes back."""
    ABORTED = "aborted"
    """The source serves; as if nothing was."""
    ROLLING_BACK = "rolling_back"
    """The service is worse than before the cutover; another switch takes it back to the source."""
    ROLLED_BACK = "rolled_back"
    """The source serves again, after a cutover."""
    FAILED = "failed"
    """A person is needed; the record says for what."""


class Event(enum.StrEnum):
    """Why a switch moves."""

    VALIDATION_BEGAN = "validation_began"
    CHECKS_PASSED = "checks_passed"
    SHARING_BEGAN = "sharing_began"
    """The checks passed, and the strategy lets both engines serve first."""
    SHARING_DONE = "sharing_done"
    """The target may have all sessions."""
    CHECKS_FAILED = "checks_failed"
    DRY_RUN_DONE = "dry_run_done"
    PREPARED = "prepared"
    """Workers and engines are ready to hold."""
    STILL_DRAINING = "still_draining"
    """A worker told of a session that is not at a boundary."""
    ALL_HELD = "all_held"
    """Every worker holds every session."""
    SOURCE_LOST = "source_lost"
    """A failover has chosen its target: the source is given up without a drain or a fence."""
    LET_GO = "let_go"
    """No worker uses the lost source any more, nor ever will."""
    NOTHING_TO_MOVE = "nothing_to_move"
    """Every worker holds every session, and source and target are one server (`replication = "none"`)."""
    FENCED = "fenced"
    """The source refuses writes, proven."""
    CAUGHT_UP = "caught_up"
    """The target has everything the source ever acknowledged."""
    PROMOTED = "promoted"
    """The target is a primary, it said so itself."""
    NOT_PROMOTED = "not_promoted"
    """The target is no primary, it said so itself, and the promotion is over."""
    GIVEN_UP = "given_up"
    """A person says not to wait any longer."""
    TWO_PRIMARIES = "two_primaries"
    """Source and target both take writes."""
    RETARGETED = "retargeted"
    """Every worker gave every session its new backend."""
    RELEASED = "released"
    VERIFIED = "verified"
    TROUBLE = "trouble"
    """A deadline, a refusal, a lost worker or engine, or somebody who cancels."""
    SOURCE_RESTORED = "source_restored"
    """The source takes writes and every worker has let go."""
    ROLLBACK_WANTED = "rollback_wanted"
    """The service is worse than before, by the limits of the window."""


_P, _E = Phase, Event

NEXT: Final[Mapping[tuple[Phase, Event], Phase]] = {
    (_P.PENDING, _E.VALIDATION_BEGAN): _P.VALIDATING,
    (_P.PENDING, _E.TROUBLE): _P.ABORTED,
    (_P.VALIDATING, _E.CHECKS_PASSED): _P.PREPARING,
    (_P.VALIDATING, _E.SHARING_BEGAN): _P.SHARING,
    (_P.VALIDATING, _E.CHECKS_FAILED): _P.ABORTED,
    (_P.VALIDATING, _E.DRY_RUN_DONE): _P.COMPLETED,
    (_P.VALIDATING, _E.TROUBLE): _P.ABORTED,
    (_P.VALIDATING, _E.SOURCE_LOST): _P.HOLDING,
    (_P.SHARING, _E.SHARING_DONE): _P.PREPARING,
    (_P.SHARING, _E.TROUBLE): _P.ABORTING,
    (_P.PREPARING, _E.PREPARED): _P.HOLDING,
    (_P.PREPARING, _E.TROUBLE): _P.ABORTING,
    (_P.HOLDING, _E.STILL_DRAINING): _P.DRAINING,
    (_P.HOLDING, _E.ALL_HELD): _P.FENCING,
    (_P.HOLDING, _E.LET_GO): _P.PROMOTING,
    (_P.HOLDING, _E.NOTHING_TO_MOVE): _P.CUTTING_OVER,
    (_P.HOLDING, _E.TROUBLE): _P.ABORTING,
    (_P.DRAINING, _E.ALL_HELD): _P.FENCING,
    (_P.DRAINING, _E.NOTHING_TO_MOVE): _P.CUTTING_OVER,
    (_P.DRAINING, _E.TROUBLE): _P.ABORTING,
    (_P.FENCING, _E.FENCED): _P.CATCHING_UP,
    (_P.FENCING, _E.TROUBLE): _P.ABORTING,
    (_P.CATCHING_UP, _E.CAUGHT_UP): _P.PROMOTING,
    (_P.CATCHING_UP, _E.TROUBLE): _P.ABORTING,
    (_P.PROMOTING, _E.PROMOTED): _P.CUTTING_OVER,
    (_P.PROMOTING, _E.NOT_PROMOTED): _P.ABORTING,
    (_P.PROMOTING, _E.GIVEN_UP): _P.ABORTING,
    (_P.PROMOTING, _E.TWO_PRIMARIES): _P.FAILED,
    (_P.CUTTING_OVER, _E.RETARGETED): _P.RELEASING,
    (_P.RELEASING, _E.RELEASED): _P.VERIFYING,
    (_P.VERIFYING, _E.VERIFIED): _P.COMPLETED,
    (_P.VERIFYING, _E.ROLLBACK_WANTED): _P.ROLLING_BACK,
    (_P.ABORTING, _E.SOURCE_RESTORED): _P.ABORTED,
    (_P.ABORTING, _E.GIVEN_UP): _P.FAILED,
    (_P.ROLLING_BACK, _E.SOURCE_RESTORED): _P.ROLLED_BACK,
    (_P.ROLLING_BACK, _E.GIVEN_UP): _P.FAILED,
}
"""Every legal move. A pair that is absent is our bug."""

ENDED: Final = frozenset({_P.COMPLETED, _P.ABORTED, _P.ROLLED_BACK, _P.FAILED})
"""Nothing follows."""

ABORTABLE: Final = frozenset(
    {
        _P.PENDING,
        _P.VALIDATING,
        _P.SHARING,
        _P.PREPARING,
        _P.HOLDING,
        _P.DRAINING,
        _P.FENCING,
        _P.CATCHING_UP,
    }
)
"""Before the order to promote: a cancel, a deadline or any trouble leads back to the source."""

HELD: Final = frozenset(
    {_P.HOLDING, _P.DRAINING, _P.FENCING, _P.CATCHING_UP, _P.PROMOTING, _P.CUTTING_OVER, _P.RELEASING, _P.ABORTING}
)
"""Clients may be waiting because of the switch."""


def after(phase: Phase, event: Event) -> Phase:
    """The phase that follows. A pair that is not in the table raises ValueError: a bug of ours, seen at once."""
    try:
        return NEXT[(phase, event)]
    except KeyError:
        raise ValueError(f"a switch that is {phase} cannot take {event}") from None
