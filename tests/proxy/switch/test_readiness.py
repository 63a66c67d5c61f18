"""One check at a time: what passes, what fails, what `force` may override."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proxy.config import SwitchConfig
from proxy.engines.engine import (
    Capacity,
    EngineState,
    Follower,
    Inventory,
    MissingRight,
    OpenTransaction,
    OutsideSession,
    Role,
    Slot,
)
from proxy.switch import parity
from proxy.switch.findings import Comparison, Difference, RowsCompared
from proxy.switch.readiness import CHECKS, Check, Findings, failures, judge

SOURCE = EngineState(
    name="blue", is_reachable=True, version="PostgreSQL 16.14", version_num=160014, server_id="77",
    role=Role.PRIMARY, is_writable=True,
)  # fmt: skip
TARGET = EngineState(
    name="green", is_reachable=True, version="PostgreSQL 16.14", version_num=160014, server_id="77",
    role=Role.STANDBY, is_replicating=True, upstream="10.0.0.11:5432", lag_bytes=0, lag_ms=0.0,
)  # fmt: skip


def _found(source: dict[str, Any] | None = None, target: dict[str, Any] | None = None, **changes: Any) -> Findings:
    given: dict[str, Any] = {
        "source": msgspec.structs.replace(SOURCE, **(source or {})),
        "target": msgspec.structs.replace(TARGET, **(target or {})),
        "source_address": "10.0.0.11:5432",
        "target_capacity": Capacity(100, 10),
        "backends": 20,
        "workers": 2,
        "workers_wanted": 2,
        "comparison": _compared(),
        **changes,
    }
    return Findings(**given)


HAS = {
    "settings": {"standard_conforming_strings": "on", "lc_time": "C", "max_prepared_transactions": "10"},
    "handshake": {"server_version": "16.14"},
    "collations": {"app": "C.UTF-8 2.36"},
    "extensions": {"app.plpgsql": "1.0"},
    "objects": {"table app.public.orders": "d1"},
    "types": {"app.public.mood": 16400},
    "accounts": ["app"],
    "followers": [Follower(name="green", client="10.0.0.12")],
}


def _compared(target: dict[str, Any] | None = None, source: dict[str, Any] | None = None, **changes: Any) -> Comparison:
    """Both sides have the same, but for what is said."""
    return Comparison(
        source=Inventory(**{**HAS, **(source or {})}),
        target=Inventory(**{**HAS, "followers": [], **(target or {})}),
        **{"is_whole": True, **changes},
    )


def _unlike(name: str, **changes: str) -> Comparison:
    return _compared({name: {**HAS[name], **changes}})  # type: ignore[dict-item]


OLD = OpenTransaction(pid=7, user="app", database="app", age_s=60.0, is_idle=True)


def _judged(findings: Findings) -> dict[str, Check]:
    return {check.name: check for check in judge(findings, SwitchConfig())}


def test_a_good_pair_passes_every_check() -> None:
    assert {check.verdict for check in _judged(_found()).values()} == {"pass"}


OUTSIDE = OutsideSession(
    pid=1,
    user="cron",
    database="app",
    client="10.9.9.9:1",
    application="psql",
    state="idle",
    is_writing=False,
    age_s=1.0,
)
MARIADB = {"flavour": "mariadb", "version": "MariaDB 10.11.14", "version_num": 101114, "lag_bytes": None}
MYSQL = {"flavour": "mysql", "version": "MySQL 9.7.1", "version_num": 90701, "lag_bytes": None}


@pytest.mark.parametrize(
    ("name", "findings", "verdict", "is_overridable"),
    [
        ("source_reachable", _found(source={"is_reachable": False, "why": "refused"}), "fail", False),
        ("target_reachable", _found(target={"is_reachable": False, "why": "refused"}), "fail", False),
        ("source_role", _found(source={"is_writable": False, "is_fenced": True}), "fail", False),
        ("source_role", _found(source={"role": Role.STANDBY, "is_writable": False}), "fail", False),
        ("target_role", _found(target={"role": Role.PRIMARY, "is_writable": True}), "fail", False),
        ("target_role", _found(target={"server_id": "88"}), "fail", False),
        ("target_role", _found(target={"is_replicating": False, "replication_error": "no WAL"}), "fail", False),
        ("target_role", _found(target={"upstream": "10.0.0.12:5432"}), "warn", False),
        ("version", _found(target={"version_num": 150010}), "fail", False),
        ("version", _found(target={"version_num": 180004}), "pass", False),
        ("version", _found(target={"version_num": 160001}), "pass", False),
        ("version", _found(source=MARIADB, target=MYSQL), "fail", False),
        ("version", _found(source=MARIADB, target={**MARIADB, "version_num": 101001}), "fail", False),
        ("version", _found(source=MARIADB, target={**MARIADB, "version_num": 110400}), "pass", False),
        ("version", _found(target=MYSQL), "fail", False),
        ("lag", _found(target={"lag_bytes": 1 << 30}), "fail", True),
        ("lag", _found(source=MARIADB, target={**MARIADB, "lag_ms": 6000.0}), "fail", True),
        ("lag", _found(source=MARIADB, target={**MARIADB, "lag_ms": 5000.0}), "pass", False),
        ("lag", _found(target={"lag_bytes": None, "lag_ms": None}), "warn", False),
        ("rights", _found(source_rights=[MissingRight("fence", "GRANT this TO that")]), "fail", False),
        ("rights", _found(target_rights=[MissingRight("promote", "GRANT this TO that")]), "fail", False),
        ("capacity", _found(backends=91), "fail", True),
        ("capacity", _found(backends=90), "pass", False),
        ("capacity", _found(target_capacity=None), "warn", False),
        ("prepared_transactions", _found(in_doubt=[f"tx{n}" for n in range(9)]), "fail", True),
        ("clients_outside", _found(outside=[OUTSIDE]), "warn", False),
        (
            "clients_outside",
            _found(outside=[OUTSIDE, msgspec.structs.replace(OUTSIDE, is_out_of_reach=True)]),
            "fail",
            True,
        ),
        ("portability", _found(pinned={"temp table": 2, "lock": 0}), "warn", False),
        ("workers", _found(workers=1), "fail", False),
        ("questions", _found(unanswered="blue: timeout"), "warn", False),
        ("settings", _found(comparison=_unlike("settings", standard_conforming_strings="off")), "fail", True),
        ("settings", _found(comparison=_unlike("settings", lc_time="de_DE")), "warn", False),
        ("settings", _found(comparison=_unlike("settings", max_prepared_transactions="5")), "warn", False),
        ("settings", _found(comparison=_unlike("settings", max_prepared_transactions="50")), "pass", False),
        ("handshake", _found(comparison=_unlike("handshake", server_version="18.4")), "warn", False),
        ("collations", _found(comparison=_unlike("collations", app="C.UTF-8 2.41")), "fail", True),
        ("collations", _found(comparison=_unlike("collations", app="de 2.41"), kind="logical"), "warn", False),
        ("extensions", _found(comparison=_compared({"extensions": {}})), "fail", True),
        ("extensions", _found(comparison=_compared({"unavailable": ["app.plpgsql"]})), "fail", True),
        ("extensions", _found(comparison=_unlike("extensions", **{"app.plpgsql": "1.1"})), "warn", False),
        ("schema", _found(comparison=_compared(lacking=[Difference(label="table a", what="missing")])), "fail", True),
        ("schema", _found(comparison=_compared(extra=["table b"])), "warn", False),
        ("schema", _found(comparison=_compared({"blind": "too many"})), "warn", False),
        ("schema", _found(comparison=_compared(is_whole=False)), "pass", False),
        ("schema", _found(comparison=None, not_compared="blue: timeout"), "warn", False),
        ("type_oids", _found(comparison=_compared({"types": {"app.public.mood": 16500}})), "fail", True),
        ("accounts", _found(comparison=_compared({"accounts": []}), kind="logical"), "fail", True),
        (
            "followers",
            _found(
                comparison=_compared(
                    source={
                        "followers": [
                            Follower(name="green", client="10.0.0.12"),
                            Follower(name="grey", client="10.0.0.13"),
                        ]
                    }
                )
            ),
            "warn",
            False,
        ),
        (
            "slots",
            _found(
                comparison=_compared(
                    source={"slots": [Slot(name="cdc", is_logical=True, is_active=True, follows=False)]}
                )
            ),
            "warn",
            False,
        ),
        (
            "slots",
            _found(
                comparison=_compared(
                    source={"slots": [Slot(name="cdc", is_logical=True, is_active=True, follows=True)]}
                )
            ),
            "pass",
            False,
        ),
        ("rows", _found(rows_compared=RowsCompared(tables=2, rows=300, age_s=9.0)), "pass", False),
        (
            "rows",
            _found(rows_compared=RowsCompared(tables=2, rows=300, unsettled=["app.public.hot"], age_s=9.0)),
            "warn",
            False,
        ),
        (
            "rows",
            _found(rows_compared=RowsCompared(tables=2, rows=300, different=["app.public.orders"], age_s=9.0)),
            "fail",
            True,
        ),
        ("drain", _found(transactions=[OLD]), "warn", False),
        ("drain", _found(transactions=[msgspec.structs.replace(OLD, age_s=1.0)]), "pass", False),
    ],
)
def test_each_check_says_what_was_found_and_what_to_do(
    name: str, findings: Findings, verdict: str, is_overridable: bool
) -> None:
    check = _judged(findings)[name]
    assert check.verdict == verdict
    assert check.found
    assert check.is_overridable is is_overridable
    if verdict == "fail":
        assert check.remedy


def test_an_address_of_this_machine_has_many_names() -> None:
    found = _found(target={"upstream": "localhost:5432"}, source_address="127.0.0.1:5432")
    assert _judged(found)["target_role"].verdict == "pass"


def test_nothing_more_is_asked_of_engines_that_are_down() -> None:
    checks = _judged(_found(target={"is_reachable": False, "role": None}))
    assert set(checks) == {"source_reachable", "target_reachable", "workers"}


def test_names_are_listed_up_to_a_few() -> None:
    found = _judged(_found(in_doubt=[f"tx{n}" for n in range(9)]))["prepared_transactions"].found
    assert found == "9 in doubt: tx0, tx1, tx2, tx3, tx4 and 4 more"


def test_no_more_open_transactions_than_the_limit_and_without_one_any_number() -> None:
    for limit, verdict in ((0, "pass"), (3, "pass"), (2, "fail")):
        checks = judge(_found(pending=3), SwitchConfig(max_pending_transactions=limit))
        (check,) = [one for one in checks if one.name == "pending_transactions"]
        assert check.verdict == verdict
        assert check.is_overridable is (verdict == "fail")


def test_a_rule_for_what_is_in_doubt_turns_the_refusal_into_a_warning() -> None:
    checks = judge(_found(in_doubt=["order 7"]), SwitchConfig(in_doubt="rollback"))
    (check,) = [one for one in checks if one.name == "prepared_transactions"]
    assert (check.verdict, check.found) == ("warn", "1 in doubt: order 7")
    assert "rolled back" in check.remedy


def test_a_semi_synchronous_gate_needs_so_many_replicas() -> None:
    grey = msgspec.structs.replace(TARGET, name="grey")
    for others, verdict in (([], "fail"), ([grey], "pass")):
        checks = judge(_found(others=others), SwitchConfig(sync="semi_synchronous", min_replicas=2))
        (check,) = [one for one in checks if one.name == "replicas"]
        assert (check.verdict, check.is_overridable) == (verdict, False)
    assert "replicas" not in _judged(_found())


def test_the_lag_is_told_in_bytes_and_in_milliseconds() -> None:
    assert _judged(_found(target={"lag_bytes": 1_048_576, "lag_ms": 12.0}))["lag"].found == "1,048,576 bytes, 12 ms"


def test_a_check_says_how_old_what_it_found_is() -> None:
    checks = _judged(_found(comparison_age_s=3.21))
    assert (checks["schema"].age_s, checks["settings"].age_s, checks["lag"].age_s) == (3.2, 3.2, 0.0)


def test_every_check_of_the_table_is_asked_with_some_kind_of_replication() -> None:
    assert all(row.kinds for row in CHECKS)
    assert len({row.question for row in CHECKS}) == len(CHECKS)


def test_what_differs_in_a_definition_is_named() -> None:
    blue = Inventory(objects={"table app.orders": "1", "table app.gone": "2", "index app.same": "3"})
    green = Inventory(objects={"table app.orders": "9", "index app.same": "3", "view app.new": "4"})
    lacking, extra = parity.compare(blue, green)
    assert (lacking, extra) == (["table app.orders", "table app.gone"], ["view app.new"])
    source = {"table app.orders": ["id integer", "total numeric(10,2)"]}
    target = {"table app.orders": ["id integer", "total integer", "note text"]}
    assert [(one.label, one.what) for one in parity.differences(lacking, source, target, green)] == [
        ("table app.orders", 'lacks "total numeric(10,2)", has "total integer" and 1 more'),
        ("table app.gone", "missing"),
    ]


def test_a_window_after_the_cutover_wants_something_to_compare_with() -> None:
    for requests, window_s, verdicts in ((199, 20, ["warn"]), (200, 20, ["pass"]), (0, 0, [])):
        checks = judge(_found(requests_before=requests), SwitchConfig(verify_window_s=window_s, requests_min=200))
        assert [check.verdict for check in checks if check.name == "window"] == verdicts


def test_force_overrides_only_what_may_be_overridden() -> None:
    checks = judge(_found(workers=1, backends=500), SwitchConfig())
    assert [check.name for check in failures(checks, force=False)] == ["capacity", "workers"]
    assert [check.name for check in failures(checks, force=True)] == ["workers"]
