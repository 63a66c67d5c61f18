"""What a readiness report is made of: findings (what was asked) and checks (what is thought of it)."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from proxy.engines.engine import (
    Capacity,
    EngineState,
    Inventory,
    MissingRight,
    OpenTransaction,
    OutsideSession,
)

NAMES_SHOWN_MAX: Final = 5
"""A check names this many sessions, transactions or objects, and counts the rest."""

Verdict = Literal["pass", "warn", "fail"]
Kind = Literal["stream", "logical", "none"]
"""What keeps the engines equal; see `replication` in the config."""
Reason = Literal["one_server", "shared_storage", "multi_primary", "read_only"]
"""Why nothing can diverge without replication; see `kept_equal_by` in the config."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a readiness report."""

    name: str
    verdict: Verdict
    found: str
    limit: str = ""
    """What would pass; empty where the name says it."""
    remedy: str = ""
    """How to mend it; empty if it passed."""
    is_overridable: bool = False
    """`force` lets the switch begin all the same."""
    age_s: float = 0.0
    """How long ago the engines were asked, in seconds: comparisons of whole schemas are kept for a few."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """An object that the engines do not have alike."""

    label: str
    """Kind and full name: `table shop.public.orders`."""
    what: str
    """In one line."""


class Comparison(msgspec.Struct, kw_only=True):
    """What takes long to ask: both inventories, and where they differ."""

    source: Inventory
    target: Inventory
    lacking: list[Difference] = []
    """What the source has, and the target has not, or otherwise."""
    lacking_more: int = 0
    """How many more of these there are."""
    extra: list[str] = []
    """Labels of what the target alone has."""
    is_whole: bool = False
    """The schemas were compared. False: not asked, as a physical standby's cannot differ."""
    asked_ns: int = 0


class RowsCompared(msgspec.Struct, frozen=True, kw_only=True):
    """What the data checks of two engines have found, of each table the newest."""

    tables: int
    rows: int
    different: list[str] = []
    """Tables with rows that are not alike."""
    unsettled: list[str] = []
    """Tables with rows that changed all the time."""
    age_s: float
    """Of the newest, in seconds."""


class Findings(msgspec.Struct, kw_only=True):
    """What was asked of both engines and of the workers. Lists are empty where an engine is not reachable."""

    kind: Kind = "stream"
    kept_equal_by: Reason = "one_server"
    are_both_to_serve: bool = False
    """The strategy lets source and target serve at the same time."""
    source: EngineState
    target: EngineState
    source_address: str
    source_rights: list[MissingRight] = []
    target_rights: list[MissingRight] = []
    target_capacity: Capacity | None = None
    """None: the target could not say."""
    others: list[EngineState] = []
    """Further engines of the service that replicate."""
    in_doubt: list[str] = []
    outside: list[OutsideSession] = []
    transactions: list[OpenTransaction] = []
    """Open on the source, of Turnout's own clients."""
    pending: int = 0
    """Sessions in a transaction, as the workers say."""
    backends: int = 0
    """Backends of the service on the source, of all workers: as many will be opened on the target."""
    pinned: dict[str, int] = {}
    """Sessions by pin."""
    grades: dict[str, int] = {}
    """Sessions by portability."""
    workers: int = 0
    """Workers that answered."""
    workers_wanted: int = 1
    comparison: Comparison | None = None
    """None: it could not be made; `not_compared` says why."""
    not_compared: str = ""
    comparison_age_s: float = 0.0
    rows_compared: RowsCompared | None = None
    """None: these two were not compared by rows."""
    requests_before: int = 0
    """Requests of the source that a window after the cutover (`verify_window_s`) would be compared with."""
    unanswered: str = ""
    """Why a question could not be asked, in one line; empty: all were answered."""


def some(names: list[str]) -> str:
    """A few names, and how many more there are."""
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join(names[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
