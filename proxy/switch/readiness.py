"""May this switch begin? Findings in, checks out; no I/O (`inquiry` collects the findings).

Each check says what was found, what the limit is and what to do. A failed check refuses the switch. `force` overrides
those that only cost time or clients (`is_overridable`), never those that keep data safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from proxy.config import SwitchConfig
from proxy.engines.engine import Capacity, EngineState, MissingRight, OutsideSession, Role

NAMES_SHOWN_MAX: Final = 5
"""A check names this many sessions or transactions, and counts the rest."""

Verdict = Literal["pass", "warn", "fail"]


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


class Findings(msgspec.Struct, kw_only=True):
    """What was asked of both engines and of the workers. Lists are empty where an engine is not reachable."""

    source: EngineState
    target: EngineState
    source_address: str
    source_rights: list[MissingRight] = []
    target_rights: list[MissingRight] = []
    target_capacity: Capacity | None = None
    """None: the target could not say."""
    in_doubt: list[str] = []
    outside: list[OutsideSession] = []
    backends: int = 0
    """Backends of the service on the source, of all workers: as many will be opened on the target."""
    pinned: dict[str, int] = {}
    """Sessions by pin."""
    workers: int = 0
    """Workers that answered."""
    workers_wanted: int = 1
    unanswered: str = ""
    """Why a question could not be asked, in one line; empty: all were answered."""


def failures(checks: list[Check], *, force: bool) -> list[Check]:
    """The checks that refuse the switch."""
    return [check for check in checks if check.verdict == "fail" and not (force and check.is_overridable)]


def judge(findings: Findings, limits: SwitchConfig, *, moves_data: bool = True) -> list[Check]:
    """The whole report, in the order an operator reads it. `moves_data` is false where source and target are to be
    one server (`replication = "none"`)."""
    asked = _worth_asking(findings, limits) if moves_data else _of_one_server(findings, limits)
    return [*_reachable(findings), *asked, _workers(findings)]


def _of_one_server(findings: Findings, limits: SwitchConfig) -> Iterator[Check]:
    if not findings.source.is_reachable or not findings.target.is_reachable:
        return
    yield _source_role(findings)
    yield _same_server(findings)
    yield _capacity(findings)
    yield _pins(findings, stay=limits.on_drain_expired == "leave")
    if findings.unanswered:
        yield _questions(findings)


def _same_server(findings: Findings) -> Check:
    """Two servers that both take writes and are not kept equal would lose what one of them accepts."""
    source, target = findings.source, findings.target
    limit = f"another address of {source.name}: replication is none"
    if source.instance and source.instance == target.instance:
        return Check(name="same_server", verdict="pass", found=f"{source.name} and {target.name} are one server")
    return Check(
        name="same_server",
        verdict="fail",
        found=f"{source.name} is {source.instance or 'unknown'}, {target.name} is {target.instance or 'unknown'}",
        limit=limit,
        remedy=f"give {target.name} an address of the server of {source.name}, or set up replication between them",
    )


def _worth_asking(findings: Findings, limits: SwitchConfig) -> Iterator[Check]:
    if not findings.source.is_reachable or not findings.target.is_reachable:
        return
    yield _source_role(findings)
    yield _target_role(findings)
    yield _version(findings)
    if findings.target.role is Role.STANDBY:
        yield _lag(findings, limits)
    yield _rights(findings)
    yield _capacity(findings)
    yield _in_doubt(findings)
    yield _outside(findings)
    yield _pins(findings)
    if findings.unanswered:
        yield _questions(findings)


def _questions(findings: Findings) -> Check:
    return Check(
        name="questions",
        verdict="warn",
        found=findings.unanswered,
        remedy="see what the server's log says about it",
    )


def _reachable(findings: Findings) -> Iterator[Check]:
    for side, state in (("source", findings.source), ("target", findings.target)):
        if state.is_reachable:
            yield Check(
                name=f"{side}_reachable",
                verdict="pass",
                found=f"{state.name}: {state.version}, {state.response_time_ms:.1f} ms",
            )
        else:
            yield Check(
                name=f"{side}_reachable",
                verdict="fail",
                found=f"{state.name}: {state.why or 'not reachable'}",
                remedy=f"start {state.name}, or mend its address or the admin account in the config",
            )


def _source_role(findings: Findings) -> Check:
    state = findings.source
    if state.role is Role.PRIMARY and state.is_writable:
        return Check(name="source_role", verdict="pass", found=f"{state.name} is a writable primary")
    if state.role is Role.PRIMARY:
        remedy = f"make {state.name} writable first"
        found = f"{state.name} is a primary that refuses writes"
    else:
        found = f"{state.name} is a {state.role.value if state.role else 'server of unknown role'}"
        remedy = f"{state.name} is the active engine but not a primary: see `turnout status`"
    return Check(name="source_role", verdict="fail", found=found, limit="a writable primary", remedy=remedy)


def _target_role(findings: Findings) -> Check:
    source, target = findings.source, findings.target
    limit = f"a standby of {source.name} whose replication runs"
    if target.role is not Role.STANDBY:
        return Check(
            name="target_role",
            verdict="fail",
            found=f"{target.name} follows nobody",
            limit=limit,
            remedy=f"make {target.name} a standby of {source.name}; what it has of its own would be taken for the truth",
        )
    # PostgreSQL: a physical standby has its primary's system identifier. In MySQL every server has its own.
    if target.flavour == "postgresql" and target.server_id != source.server_id:
        return Check(
            name="target_role",
            verdict="fail",
            found=f"{target.name} is a standby of another cluster (system identifier {target.server_id}, not {source.server_id})",
            limit=limit,
            remedy=f"build {target.name} from a base backup of {source.name}",
        )
    if not target.is_replicating:
        return Check(
            name="target_role",
            verdict="fail",
            found=f"{target.name} does not replicate{': ' + target.replication_error if target.replication_error else ''}",
            limit=limit,
            remedy=f"mend the replication from {source.name} to {target.name}",
        )
    if target.upstream and not _same_address(target.upstream, findings.source_address):
        return Check(
            name="target_role",
            verdict="warn",
            found=f"{target.name} replicates from {target.upstream}, the source is {findings.source_address}",
            limit=limit,
            remedy="fine if this is another name of the same server; a cascade is caught up with through the one between",
        )
    return Check(name="target_role", verdict="pass", found=f"{target.name} replicates from {source.name}")


def _same_address(a: str, b: str) -> bool:
    local = {"localhost": "127.0.0.1", "::1": "127.0.0.1", "[::1]": "127.0.0.1"}
    host_a, _, port_a = a.rpartition(":")
    host_b, _, port_b = b.rpartition(":")
    return port_a == port_b and local.get(host_a, host_a) == local.get(host_b, host_b)


def _version(findings: Findings) -> Check:
    source, target = findings.source, findings.target
    found = f"{source.version} to {target.version}"
    limit = f"{source.version} or later"
    if (source.flavour == "postgresql") != (target.flavour == "postgresql"):
        return Check(
            name="version", verdict="fail", found=found, limit=limit, remedy="both engines must speak one protocol"
        )
    if source.flavour != target.flavour:
        return Check(
            name="version",
            verdict="fail",
            found=found,
            limit=limit,
            remedy="GTIDs of MySQL and MariaDB cannot be compared: use engines of one flavour",
        )
    if _major(target) < _major(source):
        return Check(
            name="version",
            verdict="fail",
            found=found,
            limit=limit,
            remedy=f"upgrade {target.name}: an older server cannot be trusted with what a newer one has written",
            is_overridable=False,
        )
    return Check(name="version", verdict="pass", found=found)


def _major(state: EngineState) -> int:
    """180004 is 18; 101114 is 10.11; 90701 is 9.7: the part whose change changes formats."""
    return state.version_num // (10_000 if state.flavour == "postgresql" else 100)


def _lag(findings: Findings, limits: SwitchConfig) -> Check:
    state = findings.target
    if state.lag_bytes is not None and state.flavour == "postgresql":
        limit_bytes, found = limits.lag_bytes_max, f"{state.lag_bytes} bytes"
        too_far = state.lag_bytes > limit_bytes
        limit = f"{limit_bytes} bytes"
    elif state.lag_ms is not None:
        found, limit = f"{state.lag_ms / 1e3:g} s", f"{limits.lag_s_max:g} s"
        too_far = state.lag_ms > limits.lag_s_max * 1e3
    else:
        return Check(
            name="lag", verdict="warn", found=f"{state.name} does not tell", remedy="the catch-up deadline decides"
        )
    if too_far:
        return Check(
            name="lag",
            verdict="fail",
            found=found,
            limit=limit,
            remedy=f"wait until {state.name} has caught up",
            is_overridable=True,
        )
    return Check(name="lag", verdict="pass", found=found, limit=limit)


def _rights(findings: Findings) -> Check:
    missing = [
        (side.name, right)
        for side, rights in ((findings.source, findings.source_rights), (findings.target, findings.target_rights))
        for right in rights
    ]
    if not missing:
        return Check(name="rights", verdict="pass", found="the admin account may do all that a switch needs")
    return Check(
        name="rights",
        verdict="fail",
        found="; ".join(f"{name}: {right.right}" for name, right in missing),
        limit="nothing missing",
        remedy="; ".join(dict.fromkeys(right.grant for _, right in missing)),
    )


def _capacity(findings: Findings) -> Check:
    capacity, needed = findings.target_capacity, findings.backends
    name = findings.target.name
    if capacity is None:
        return Check(name="capacity", verdict="warn", found=f"{name} does not tell", remedy="")
    found = f"{capacity.free} of {capacity.limit} connections free on {name}"
    if capacity.free < needed:
        return Check(
            name="capacity",
            verdict="fail",
            found=found,
            limit=f"{needed}, one for each backend on {findings.source.name}",
            remedy=f"raise max_connections on {name} to at least {capacity.used + needed}, or lower pool_size",
            is_overridable=True,
        )
    return Check(name="capacity", verdict="pass", found=found, limit=str(needed))


def _in_doubt(findings: Findings) -> Check:
    doubt = findings.in_doubt
    if not doubt:
        return Check(name="prepared_transactions", verdict="pass", found="none in doubt")
    return Check(
        name="prepared_transactions",
        verdict="fail",
        found=f"{len(doubt)} in doubt: {_some(doubt)}",
        limit="none",
        remedy=f"commit or roll them back on {findings.source.name}: a fence does not bind them",
        is_overridable=True,
    )


def _outside(findings: Findings) -> Check:
    outside = findings.outside
    if not outside:
        return Check(name="clients_outside", verdict="pass", found="no client bypasses Turnout")
    names = [f"{s.user}@{s.client or 'local'} ({s.application or s.pid})" for s in outside]
    return Check(
        name="clients_outside",
        verdict="warn",
        found=f"{len(outside)} sessions on {findings.source.name} that did not come through Turnout: {_some(names)}",
        limit="none",
        remedy="the fence ends them; let them connect through Turnout",
    )


def _pins(findings: Findings, *, stay: bool = False) -> Check:
    pinned = {pin: count for pin, count in findings.pinned.items() if count}
    if not pinned:
        return Check(name="portability", verdict="pass", found="every session can be carried")
    return Check(
        name="portability",
        verdict="warn",
        found="sessions that hold something that is not carried: "
        + ", ".join(f"{count} × {pin}" for pin, count in sorted(pinned.items())),
        remedy="they are waited for until the drain deadline; then "
        + ("they keep the backend they have" if stay else "on_drain_expired decides"),
    )


def _workers(findings: Findings) -> Check:
    found = f"{findings.workers} of {findings.workers_wanted} workers answer"
    if findings.workers < findings.workers_wanted:
        return Check(
            name="workers",
            verdict="fail",
            found=found,
            limit=str(findings.workers_wanted),
            remedy="wait until the missing ones are replaced; the log says why they ended",
        )
    return Check(name="workers", verdict="pass", found=found)


def _some(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join(names[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
