"""May this switch begin? Findings in, checks out; no I/O (`inquiry` collects the findings).

Each check says what was found, what the limit is and what to do. A failed check refuses the switch. `force` overrides
those that only cost time or clients (`is_overridable`), never those that keep data safe. `CHECKS` is the list, in the order
an operator reads it; a check is a small function that yields what it has to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from proxy.config import SwitchConfig
from proxy.engines.engine import EngineState, OutsideSession, Role
from proxy.switch import parity
from proxy.switch.findings import Check, Findings, Kind, some
from proxy.switch.parity import Question, about
from proxy.switch.plan import drain_in_force

__all__ = ["CHECKS", "Check", "Findings", "failures", "judge"]


def failures(checks: list[Check], *, force: bool) -> list[Check]:
    """The checks that refuse the switch."""
    return [check for check in checks if check.verdict == "fail" and not (force and check.is_overridable)]


def judge(findings: Findings, limits: SwitchConfig) -> list[Check]:
    """The whole report, in the order an operator reads it."""
    are_up = findings.source.is_reachable and findings.target.is_reachable
    return [
        check
        for row in CHECKS
        if findings.kind in row.kinds
        and (are_up or not row.needs_engines)
        and (check := row.question(findings, limits)) is not None
    ]


def _same_server(findings: Findings, _: SwitchConfig) -> Check:
    """Two servers that both take writes and are not kept equal would lose what one of them accepts."""
    source, target = findings.source, findings.target
    limit = f"another address of {source.name}: replication is none"
    if findings.kept_equal_by == "read_only":
        return _read_only(findings)
    if findings.kept_equal_by != "one_server":
        how = "share their storage" if findings.kept_equal_by == "shared_storage" else "hand their writes on"
        found = f"the config says that {source.name} and {target.name} {how}"
        return Check(name="same_server", verdict="pass", found=found)
    if source.instance and source.instance == target.instance:
        return Check(name="same_server", verdict="pass", found=f"{source.name} and {target.name} are one server")
    return Check(
        name="same_server",
        verdict="fail",
        found=f"{source.name} is {source.instance or 'unknown'}, {target.name} is {target.instance or 'unknown'}",
        limit=limit,
        remedy=f"give {target.name} an address of the server of {source.name}, or set up replication between them",
    )


def _read_only(findings: Findings) -> Check:
    """The config says that nobody writes. Where a write would be taken it may be, and the engines differ from then on."""
    limit = "engines that refuse writes: kept_equal_by is read_only"
    writable = [state.name for state in (findings.source, findings.target) if state.is_writable]
    if not writable:
        return Check(name="same_server", verdict="pass", found="neither engine takes writes")
    return Check(
        name="same_server",
        verdict="fail",
        found=f"{' and '.join(writable)} would take writes",
        limit=limit,
        remedy="make both read-only, or say in `kept_equal_by` what keeps them equal",
        is_overridable=len(writable) == 1,
    )


def _both_serve(findings: Findings, _: SwitchConfig) -> Check | None:
    """A standby refuses writes by itself, so that reads may be forced; nothing keeps two primaries equal."""
    source, target = findings.source, findings.target
    if not findings.are_both_to_serve:
        return None
    refuses = target.role is Role.STANDBY and not target.is_writable
    return Check(
        name="both_serve",
        verdict="fail",
        found=f"{source.name} and {target.name} are two servers"
        + (f"; writes that reach {target.name} are refused there" if refuses else " that would both take writes"),
        limit='engines that cannot diverge: replication = "none"',
        remedy="use strategy graceful"
        + ("; --force lets them both serve, for clients that only read" if refuses else ""),
        is_overridable=refuses,
    )


def _questions(findings: Findings, _: SwitchConfig) -> Check | None:
    if not findings.unanswered:
        return None
    return Check(
        name="questions",
        verdict="warn",
        found=findings.unanswered,
        remedy="see what the server's log says about it",
    )


def _source_reachable(findings: Findings, _: SwitchConfig) -> Check:
    return _reachable("source", findings.source)


def _target_reachable(findings: Findings, _: SwitchConfig) -> Check:
    return _reachable("target", findings.target)


def _reachable(side: str, state: EngineState) -> Check:
    if state.is_reachable:
        found = f"{state.name}: {state.version}, {state.response_time_ms:.1f} ms"
        return Check(name=f"{side}_reachable", verdict="pass", found=found)
    return Check(
        name=f"{side}_reachable",
        verdict="fail",
        found=f"{state.name}: {state.why or 'not reachable'}",
        remedy=f"start {state.name}, or mend its address or the admin account in the config",
    )


def _source_role(findings: Findings, _: SwitchConfig) -> Check:
    state = findings.source
    if findings.kind == "none" and findings.kept_equal_by == "read_only":
        return Check(name="source_role", verdict="pass", found=f"nobody writes to {state.name}")
    if state.role is Role.PRIMARY and state.is_writable:
        return Check(name="source_role", verdict="pass", found=f"{state.name} is a writable primary")
    if state.role is Role.PRIMARY:
        remedy = f"make {state.name} writable first"
        found = f"{state.name} is a primary that refuses writes"
    else:
        found = f"{state.name} is a {state.role.value if state.role else 'server of unknown role'}"
        remedy = f"{state.name} is the active engine but not a primary: see `turnout status`"
    return Check(name="source_role", verdict="fail", found=found, limit="a writable primary", remedy=remedy)


def _target_role(findings: Findings, _: SwitchConfig) -> Check:
    source, target = findings.source, findings.target
    is_logical = findings.kind == "logical"
    limit = f"a standby of {source.name} whose replication runs"
    if is_logical:
        limit = f"enabled subscriptions to {source.name}, with running workers"
    if target.role is not Role.STANDBY:
        return Check(
            name="target_role",
            verdict="fail",
            found=f"{target.name} follows nobody",
            limit=limit,
            remedy=f"make {target.name} a standby of {source.name}; what it has of its own would be taken for the truth",
        )
    # PostgreSQL: a physical standby has its primary's system identifier. In MySQL every server has its own.
    if target.flavour == "postgresql" and not is_logical and target.server_id != source.server_id:
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


def _version(findings: Findings, _: SwitchConfig) -> Check:
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
    if _major(target) < _major(source) and findings.kind == "logical":
        return Check(
            name="version",
            verdict="warn",
            found=found,
            limit=limit,
            remedy="clients lose what the newer version has; as a way back this is meant",
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


def _lag(findings: Findings, limits: SwitchConfig) -> Check | None:
    state = findings.target
    if state.role is not Role.STANDBY:
        return None
    told, wanted, too_far = [], [], False
    if state.lag_bytes is not None:
        told.append(f"{state.lag_bytes:,} bytes")
        wanted.append(f"{limits.lag_bytes_max:,} bytes")
        too_far = state.lag_bytes > limits.lag_bytes_max
    if state.lag_ms is not None:
        told.append(f"{state.lag_ms:,.0f} ms")
    if state.lag_ms is not None and state.lag_bytes is None:
        # PostgreSQL's time is that of the last transaction, which on a quiet server is long ago.
        wanted.append(f"{limits.lag_s_max:g} s")
        too_far = state.lag_ms > limits.lag_s_max * 1e3
    if not told:
        return Check(
            name="lag", verdict="warn", found=f"{state.name} does not tell", remedy="the catch-up deadline decides"
        )
    found, limit = ", ".join(told), ", ".join(wanted)
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


def _rights(findings: Findings, _: SwitchConfig) -> Check:
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


def _capacity(findings: Findings, _: SwitchConfig) -> Check:
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


def _gate(findings: Findings, limits: SwitchConfig) -> Check | None:
    if limits.sync != "semi_synchronous":
        return None
    replicas = [findings.target.name, *(one.name for one in findings.others)]
    found = f"{len(replicas)} of {limits.min_replicas} engines replicate: {some(replicas)}"
    if len(replicas) >= limits.min_replicas:
        return Check(name="replicas", verdict="pass", found=found, limit=str(limits.min_replicas))
    return Check(
        name="replicas",
        verdict="fail",
        found=found,
        limit=f"min_replicas: {limits.min_replicas}",
        remedy="let more engines of the service replicate, or lower min_replicas",
    )


def _in_doubt(findings: Findings, limits: SwitchConfig) -> Check:
    doubt = findings.in_doubt
    if not doubt:
        return Check(name="prepared_transactions", verdict="pass", found="none in doubt")
    found = f"{len(doubt)} in doubt: {some(doubt)}"
    if limits.in_doubt != "block":
        done = "committed" if limits.in_doubt == "commit" else "rolled back"
        return Check(
            name="prepared_transactions",
            verdict="warn",
            found=found,
            limit="none",
            remedy=f"those that are left at the fence are {done}, as in_doubt says",
        )
    return Check(
        name="prepared_transactions",
        verdict="fail",
        found=found,
        limit="none",
        remedy=f"commit or roll them back on {findings.source.name}: a fence does not bind them",
        is_overridable=True,
    )


def _names(sessions: list[OutsideSession]) -> list[str]:
    return [f"{one.user}@{one.client or 'local'} ({one.application or one.pid})" for one in sessions]


def _outside(findings: Findings, _: SwitchConfig) -> Check:
    outside = findings.outside
    if not outside:
        return Check(name="clients_outside", verdict="pass", found="no client bypasses Turnout")
    source = findings.source.name
    out_of_reach = [one for one in outside if one.is_out_of_reach]
    if out_of_reach:
        return Check(
            name="clients_outside",
            verdict="fail",
            found=f"sessions on {source} that Turnout's account may not end: {some(_names(out_of_reach))}",
            limit="none",
            remedy="end them, let them connect through Turnout, or make Turnout's account a superuser: as long as one of"
            " them is there, the fence fails and the switch is undone",
            is_overridable=True,
        )
    return Check(
        name="clients_outside",
        verdict="warn",
        found=f"{len(outside)} sessions on {source} that did not come through Turnout: {some(_names(outside))}",
        limit="none",
        remedy="the fence ends them; let them connect through Turnout",
    )


def _pending(findings: Findings, limits: SwitchConfig) -> Check:
    found = f"{findings.pending} sessions in a transaction"
    most = limits.max_pending_transactions
    if most and findings.pending > most:
        return Check(
            name="pending_transactions",
            verdict="fail",
            found=found,
            limit=f"max_pending_transactions: {most}",
            remedy="switch at a calmer time, or with a higher limit",
            is_overridable=True,
        )
    return Check(name="pending_transactions", verdict="pass", found=found, limit=str(most) if most else "")


def _drain(findings: Findings, limits: SwitchConfig) -> Check:
    """A transaction that has been open for some time is expected to go on for as long again: of durations that vary
    widely nothing better is known without knowing the work."""
    limit_s = drain_in_force(limits.drain_timeout_s, limits.hold_ms_max)
    limit = f"{limit_s:g} s, by drain_timeout_s and hold_ms_max"
    if not findings.transactions:
        return Check(name="drain", verdict="pass", found="no transaction is open: at once", limit=limit)
    oldest = findings.transactions[0]
    found = (
        f"some {max(oldest.age_s, 0.001):.3g} s: the oldest of {len(findings.transactions)} open transactions "
        f"({oldest.user}, process {oldest.pid}, {'waits for its client' if oldest.is_idle else 'working'}) is that old"
    )
    if oldest.age_s <= limit_s:
        return Check(name="drain", verdict="pass", found=found, limit=limit)
    return Check(
        name="drain",
        verdict="warn",
        found=found,
        limit=limit,
        remedy="let it end first, or give more time; what is open at the deadline is dealt with by on_drain_expired",
    )


def _pins(findings: Findings, limits: SwitchConfig) -> Check:
    grades = ", ".join(f"{count} {grade}" for grade, count in sorted(findings.grades.items()) if count)
    pinned = {pin: count for pin, count in findings.pinned.items() if count}
    if not pinned:
        found = "every session can be carried" + (f": {grades}" if grades else "")
        return Check(name="portability", verdict="pass", found=found)
    return Check(
        name="portability",
        verdict="warn",
        found="sessions that hold something that is not carried: "
        + ", ".join(f"{count} × {pin}" for pin, count in sorted(pinned.items())),
        remedy="they are waited for until the drain deadline; then "
        + ("they keep the backend they have" if limits.on_drain_expired == "leave" else "on_drain_expired decides"),
    )


def _rows(findings: Findings, _: SwitchConfig) -> Check | None:
    """What data checks have found; nobody has to make one."""
    compared, target = findings.rows_compared, findings.target.name
    if compared is None:
        return None
    if compared.different:
        return Check(
            name="rows",
            verdict="fail",
            found=f"rows of {some(compared.different)} are not alike",
            remedy=f"mend them on {target} and compare again: turnout datacheck {target}",
            is_overridable=True,
            age_s=compared.age_s,
        )
    if compared.unsettled:
        return Check(
            name="rows",
            verdict="warn",
            found=f"rows of {some(compared.unsettled)} changed all the time while they were compared",
            remedy=f"compare again when less is written: turnout datacheck {target}",
            age_s=compared.age_s,
        )
    found = f"{compared.rows:,} rows of {compared.tables:,} table{'s' if compared.tables != 1 else ''} were alike"
    return Check(name="rows", verdict="pass", found=found, age_s=compared.age_s)


def _window(findings: Findings, limits: SwitchConfig) -> Check | None:
    """Is enough known of before to tell afterwards whether the service became worse?"""
    if not limits.verify_window_s:
        return None
    name = findings.source.name
    found = f"{findings.requests_before} requests on {name} to compare the service with after the cutover"
    limit = f"requests_min: {limits.requests_min}"
    if findings.requests_before >= limits.requests_min:
        return Check(name="window", verdict="pass", found=found, limit=limit)
    return Check(
        name="window",
        verdict="warn",
        found=found,
        limit=limit,
        remedy="with fewer the service does not go back by itself: wait until it has served more, or lower `requests_min`",
    )


def _workers(findings: Findings, _: SwitchConfig) -> Check:
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


# --- the table ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    question: Question
    kinds: frozenset[Kind]
    """Kinds of replication with which it is asked."""
    needs_engines: bool = True
    """Not asked while one of them is down."""


_ALWAYS: Final[frozenset[Kind]] = frozenset(("stream", "logical", "none"))
_MOVES: Final[frozenset[Kind]] = frozenset(("stream", "logical"))
_ONE: Final[frozenset[Kind]] = frozenset(("none",))

CHECKS: Final = (
    _Row(_source_reachable, _ALWAYS, needs_engines=False),
    _Row(_target_reachable, _ALWAYS, needs_engines=False),
    _Row(_source_role, _ALWAYS),
    _Row(_same_server, _ONE),
    _Row(_both_serve, _MOVES),
    _Row(_target_role, _MOVES),
    _Row(_version, _MOVES),
    _Row(_lag, _MOVES),
    _Row(_gate, _MOVES),
    _Row(_rights, _MOVES),
    _Row(_capacity, _ALWAYS),
    _Row(about(parity.settings), _MOVES),
    _Row(about(parity.collations), _MOVES),
    _Row(about(parity.handshake), _MOVES),
    _Row(about(parity.extensions), _MOVES),
    _Row(about(parity.schema), _MOVES),
    _Row(about(parity.types), _MOVES),
    _Row(about(parity.accounts), _MOVES),
    _Row(about(parity.sequences), _MOVES),
    _Row(about(parity.replicated), _MOVES),
    _Row(about(parity.unlogged), _MOVES),
    _Row(about(parity.followers), _MOVES),
    _Row(about(parity.slots), _MOVES),
    _Row(parity.not_compared, _MOVES),
    _Row(_rows, _MOVES),
    _Row(_in_doubt, _MOVES),
    _Row(_outside, _MOVES),
    _Row(_pending, _ALWAYS),
    _Row(_drain, _ALWAYS),
    _Row(_pins, _ALWAYS),
    _Row(_window, _ALWAYS),
    _Row(_questions, _ALWAYS),
    _Row(_workers, _ALWAYS, needs_engines=False),
)
"""Every check there is."""
