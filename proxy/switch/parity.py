"""Checks that hold two servers against each other: settings, extensions, schemas, types, who else replicates.

Each takes the findings and yields at most one check. They are rows of the table in `readiness`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from proxy.config import SwitchConfig
from proxy.engines.engine import Follower, Inventory
from proxy.switch.findings import Check, Comparison, Difference, Findings, some

DIFFERENCES_EXPLAINED: Final = 5
"""Objects whose definitions are read and told apart."""
DIFFERENCES_LISTED_MAX: Final = 200

DECISIVE: Final = frozenset(
    {"server_encoding", "standard_conforming_strings", "backslash_quote", "sql_mode", "lower_case_table_names"}
)
"""Settings that make the same text another statement, or the same bytes another text."""

NOT_LESS: Final[Mapping[str, tuple[str, ...] | None]] = {
    "max_prepared_transactions": None,
    "max_allowed_packet": None,
    "group_concat_max_len": None,
    "wal_level": ("minimal", "replica", "logical"),
    "gtid_mode": ("OFF", "OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"),
    "log_bin": ("OFF", "ON"),
}
"""Settings of which the target may have more: numbers, or these values in this order."""


# --- comparing ----------------------------------------------------------------------------------------------------


def compare(source: Inventory, target: Inventory) -> tuple[list[str], list[str]]:
    """Labels of objects that the target has not or has otherwise, and of those that it alone has."""
    lacking = [label for label, digest in source.objects.items() if target.objects.get(label) != digest]
    extra = [label for label in target.objects if label not in source.objects]
    return lacking, extra


def differences(
    lacking: list[str], source: Mapping[str, list[str]], target: Mapping[str, list[str]], have: Inventory
) -> list[Difference]:
    """Say of each of the first few what is not alike; `source` and `target` are their definitions."""
    found = []
    for label in lacking[:DIFFERENCES_LISTED_MAX]:
        if label not in have.objects:
            what = "missing"
        elif label in source and label in target:
            what = _what_differs(source[label], target[label])
        else:
            what = "differs"
        found.append(Difference(label=label, what=what))
    return found


def _what_differs(source: list[str], target: list[str]) -> str:
    ours, theirs = [one for one in source if one not in target], [one for one in target if one not in source]
    if not ours and not theirs:
        return "the same parts in another order"
    parts = []
    if ours:
        parts.append(f"lacks {_short(ours)}")
    if theirs:
        parts.append(f"has {_short(theirs)}")
    return ", ".join(parts)


def _short(lines: list[str]) -> str:
    first = " ".join(lines[0].split())
    more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
    return f'"{first[:77]}..."{more}' if len(first) > 80 else f'"{first}"{more}'


# --- checks -------------------------------------------------------------------------------------------------------

Question = Callable[[Findings, SwitchConfig], Check | None]
About = Callable[[Findings, SwitchConfig, Comparison], Check | None]


def about(check: About) -> Question:
    """A check of the comparison, if there is one; says how old that is."""

    def ask(findings: Findings, limits: SwitchConfig) -> Check | None:
        if findings.comparison is None:
            return None
        found = check(findings, limits, findings.comparison)
        return found and msgspec.structs.replace(found, age_s=round(findings.comparison_age_s, 1))

    return ask


def not_compared(findings: Findings, _: SwitchConfig) -> Check | None:
    """The comparison itself did not come about."""
    if findings.comparison is not None:
        return None
    return Check(
        name="schema",
        verdict="warn",
        found=f"not compared: {findings.not_compared or 'not asked'}",
        remedy="compare the schemas by hand before the switch",
    )


def settings(findings: Findings, _: SwitchConfig, comparison: Comparison) -> Check | None:
    """What makes a statement mean something else."""
    source, target = comparison.source.settings, comparison.target.settings
    unlike = [name for name in source if name in target and not _is_fine(name, source[name], target[name])]
    if not unlike:
        return Check(name="settings", verdict="pass", found=f"{len(source)} settings that change behaviour are alike")
    unlike.sort(key=lambda name: name not in DECISIVE)
    is_decisive = unlike[0] in DECISIVE
    blue, green = findings.source.name, findings.target.name
    return Check(
        name="settings",
        verdict="fail" if is_decisive else "warn",
        found=some([f"{name}: {_value(source[name])} on {blue}, {_value(target[name])} on {green}" for name in unlike]),
        limit=f"as on {blue}",
        remedy=f"set them on {green} as on {blue}, in its configuration file",
        is_overridable=is_decisive,
    )


def _is_fine(name: str, source: str, target: str) -> bool:
    if source == target:
        return True
    if name not in NOT_LESS:
        return False
    order = NOT_LESS[name]
    if order is None:
        return source.isdigit() and target.isdigit() and int(target) >= int(source)
    return source in order and target in order and order.index(target) >= order.index(source)


def _value(text: str) -> str:
    return (text if len(text) <= 60 else text[:57] + "...") or "empty"


def handshake(findings: Findings, _: SwitchConfig, comparison: Comparison) -> Check | None:
    """Sessions that move were told the source's facts at their login."""
    source, target = comparison.source.handshake, comparison.target.handshake
    unlike = [f"{name} {_value(value)} to {_value(target.get(name, ''))}" for name, value in source.items()
              if target.get(name) != value]  # fmt: skip
    if not unlike:
        return Check(name="handshake", verdict="pass", found="clients are told the same at their login")
    return Check(
        name="handshake",
        verdict="warn",
        found="what clients were told at their login changes: " + some(unlike),
        limit=f"as on {findings.source.name}",
        remedy="drivers that branch on it do so by the old value until they reconnect",
    )


def collations(findings: Findings, _: SwitchConfig, comparison: Comparison) -> Check | None:
    """A physical standby with another sorting library has indexes in the wrong order."""
    source, target = comparison.source.collations, comparison.target.collations
    if not source:
        return None
    unlike = [
        f"{database}: {value} on {findings.source.name}, {target[database]} on {findings.target.name}"
        for database, value in source.items()
        if value != target.get(database, value)
    ]
    if not unlike:
        return Check(name="collations", verdict="pass", found="text is sorted alike")
    is_physical = findings.kind == "stream"
    return Check(
        name="collations",
        verdict="fail" if is_physical else "warn",
        found=some(unlike),
        limit="the same version of the library that sorts",
        remedy=(
            f"give the host of {findings.target.name} the same C library or ICU: its indexes on text would be out of order"
            if is_physical
            else "ORDER BY and unique indexes on text may go by another order"
        ),
        is_overridable=is_physical,
    )


def extensions(findings: Findings, _: SwitchConfig, comparison: Comparison) -> Check | None:
    """PostgreSQL's extensions, MySQL's plugins."""
    source, target = comparison.source.extensions, comparison.target.extensions
    missing = [name for name in source if name not in target]
    files = comparison.target.unavailable
    if missing or files:
        parts = []
        if missing:
            parts.append(f"missing on {findings.target.name}: {some(missing)}")
        if files:
            parts.append(f"created, but without their files on its host: {some(files)}")
        return Check(
            name="extensions",
            verdict="fail",
            found="; ".join(parts),
            limit=f"all that {findings.source.name} has",
            remedy=f"install them on {findings.target.name}",
            is_overridable=True,
        )
    unlike = [f"{name} {source[name]} to {target[name]}" for name in source if source[name] != target[name]]
    if unlike:
        return Check(
            name="extensions", verdict="warn", found=some(unlike), limit="the same versions",
            remedy="read what changed between these versions",
        )  # fmt: skip
    return Check(name="extensions", verdict="pass", found=f"{len(source)}, the same on both")


def schema(findings: Findings, _: SwitchConfig, comparison: Comparison) -> Check | None:
    """A diff of the catalogs that names what differs."""
    if not comparison.is_whole:
        return Check(name="schema", verdict="pass", found="a physical standby has the catalogs of its primary")
    blue, green = findings.source.name, findings.target.name
    blind = comparison.source.blind or comparison.target.blind
    if comparison.lacking:
        told = [f"{one.label}: {one.what}" for one in comparison.lacking]
        told += [""] * comparison.lacking_more
        return Check(
            name="schema",
            verdict="fail",
            found=f"on {green}: {some(told)}",
            limit=f"as on {blue}",
            remedy=f"make the schema of {green} that of {blue}, or --force if clients do not use what differs",
            is_overridable=True,
        )
    if blind:
        return Check(name="schema", verdict="warn", found=f"not compared as a whole: {blind}", limit=f"as on {blue}")
    if comparison.extra:
        return Check(
            name="schema",
            verdict="warn",
            found=f"{green} alone has {some(comparison.extra)}",
            limit=f"as on {blue}",
            remedy="fine if that is meant; clients do not know it",
        )
    return Check(name="schema", verdict="pass", found=f"{len(comparison.source.objects):,} objects, the same on both")


def types(findings: Findings, _: SwitchConfig, comparison: Comparison) -> Check | None:
    """Drivers remember the numbers of types, and read binary values by them."""
    source, target = comparison.source.types, comparison.target.types
    if not comparison.is_whole or findings.source.flavour != "postgresql":
        return None
    unlike = [
        f"{name} ({number} on {findings.source.name}, {target[name]} on {findings.target.name})"
        for name, number in source.items()
        if target.get(name, number) != number
    ]
    if not unlike:
        return Check(name="type_oids", verdict="pass", found=f"{len(source)} types of its own, with the same numbers")
    return Check(
        name="type_oids",
        verdict="fail",
        found=f"types with other numbers: {some(unlike)}",
        limit=f"the OIDs of {findings.source.name}",
        remedy="clients that know these types by number misread them until they reconnect: --force if none of them does",
        is_overridable=True,
    )


def accounts(findings: Findings, _: SwitchConfig, comparison: Comparison) -> Check | None:
    """Roles are not part of logical replication."""
    if findings.kind != "logical":
        return None
    missing = sorted(set(comparison.source.accounts) - set(comparison.target.accounts))
    if not missing:
        return Check(name="accounts", verdict="pass", found=f"{len(comparison.source.accounts)} roles, all there")
    return Check(
        name="accounts",
        verdict="fail",
        found=f"no such role on {findings.target.name}: {some(missing)}",
        limit=f"all roles of {findings.source.name}",
        remedy="pg_dumpall --roles-only has them",
        is_overridable=True,
    )


def sequences(findings: Findings, limits: SwitchConfig, comparison: Comparison) -> Check | None:
    """What hands out numbers must not hand them out twice."""
    if findings.source.flavour != "postgresql":
        steps = [name for name in ("auto_increment_increment", "auto_increment_offset")
                 if comparison.source.settings.get(name) != comparison.target.settings.get(name)]  # fmt: skip
        if steps:
            return Check(
                name="sequences",
                verdict="warn",
                found=f"{' and '.join(steps)} differ: new AUTO_INCREMENT values come in other steps",
                remedy="fine if that is meant",
            )
        return Check(name="sequences", verdict="pass", found="AUTO_INCREMENT goes with the rows, in the same steps")
    count = comparison.source.sequences
    if findings.kind == "logical":
        found = f"{count}, moved at the fence and {limits.sequence_margin} steps ahead"
        return Check(name="sequences", verdict="pass", found=found)
    return Check(name="sequences", verdict="pass", found=f"{count}, replicated with the WAL")


def replicated(findings: Findings, _: SwitchConfig, comparison: Comparison) -> Check | None:
    """Logical replication: every table is subscribed to and copied, and its changes can be replicated."""
    if findings.kind != "logical":
        return None
    source, subscribed = comparison.source, comparison.target.subscribed
    missing = [
        name for name, root in source.tables.items() if name not in subscribed and (root or name) not in subscribed
    ]
    copying = [name for name, state in subscribed.items() if state != "r"]
    blue, green = findings.source.name, findings.target.name
    if missing or copying:
        parts = [f"not replicated to {green}: {some(missing)}"] if missing else []
        parts += [f"not copied yet: {some(copying)}"] if copying else []
        return Check(
            name="replicated",
            verdict="fail",
            found="; ".join(parts),
            limit=f"every table of {blue}",
            remedy=f"add them to the publication on {blue}, then ALTER SUBSCRIPTION … REFRESH PUBLICATION on {green}",
        )
    doubts = []
    if source.keyless:
        doubts.append(f"without a key, so that UPDATE and DELETE fail: {some(source.keyless)}")
    if source.large_objects:
        doubts.append(f"large objects, which are not replicated, in {some(source.large_objects)}")
    if doubts:
        return Check(
            name="replicated",
            verdict="warn",
            found="; ".join(doubts),
            limit="keys for all tables, no large objects",
            remedy="ALTER TABLE … ADD PRIMARY KEY or REPLICA IDENTITY; copy large objects by hand",
        )
    return Check(name="replicated", verdict="pass", found=f"{len(source.tables)} tables, all replicated to {green}")


def unlogged(findings: Findings, _: SwitchConfig, comparison: Comparison) -> Check | None:
    """Tables that no kind of replication takes along."""
    names = comparison.source.unlogged
    if not names:
        return None
    return Check(
        name="unlogged_tables",
        verdict="warn",
        found=f"their rows stay on {findings.source.name}: {some(names)}",
        limit="none",
        remedy="ALTER TABLE … SET LOGGED, if they are needed afterwards",
    )


def followers(findings: Findings, _: SwitchConfig, comparison: Comparison) -> Check | None:
    """Others that replicate from the source have to be told of the new primary."""
    mine = comparison.target.subscriptions
    if findings.kind == "logical":
        others = [one for one in comparison.source.followers if one.name not in mine]
    else:
        others = without_target(comparison.source.followers, findings.target.name)
    if not others:
        return Check(name="followers", verdict="pass", found=f"nobody else replicates from {findings.source.name}")
    return Check(
        name="followers",
        verdict="warn",
        found=f"{len(others)} more replicate from {findings.source.name}: "
        + some([f"{one.name or 'unnamed'} at {one.client}" for one in others]),
        limit="the target alone",
        remedy=f"point them at {findings.target.name} after the switch",
    )


def without_target(found: list[Follower], target: str) -> list[Follower]:
    """All but one that is or may be the target."""
    known = next((one for one in found if one.name == target), found[0] if found else None)
    return [one for one in found if one is not known]


def slots(findings: Findings, _: SwitchConfig, comparison: Comparison) -> Check | None:
    """A consumer of changes loses its place if its slot stays behind."""
    there = {one.name for one in comparison.target.slots}
    there |= set(comparison.target.subscriptions.values())
    lost = [one.name for one in comparison.source.slots if one.is_logical and not one.follows and one.name not in there]
    if not comparison.source.slots:
        return None
    if not lost:
        return Check(name="slots", verdict="pass", found="no consumer of changes loses its place")
    return Check(
        name="slots",
        verdict="warn",
        found=f"logical slots that {findings.target.name} does not have: {some(lost)}",
        limit="slots with failover = true (PostgreSQL 17), or none",
        remedy=f"make them on {findings.target.name} after the switch; their consumers begin anew",
    )
