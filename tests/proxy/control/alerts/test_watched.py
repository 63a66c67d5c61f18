"""What rules find in the views of a supervisor, and what its events mean."""

from __future__ import annotations

import re
import time
from typing import Any, get_args

import msgspec
import pytest

from docs.generate import ROOT
from proxy.config import (
    ALERT_EVENTS,
    ALERT_FIGURES,
    ALERTS_OF_ENGINES,
    AlertRuleConfig,
    AlertWhen,
    FailoverConfig,
)
from proxy.control.alerts.model import Subject
from proxy.control.alerts.state import Sample
from proxy.control.alerts.watched import (
    DEFAULT_RULES,
    REMEDIES,
    Happened,
    Picture,
    ServiceSums,
    happened,
    samples,
)
from proxy.engines.engine import EngineState, Role
from proxy.engines.figures import EngineFigures
from proxy.switch.journal import Deposed
from proxy.switch.plan import SwitchPlan, SwitchRecord
from proxy.switch.state import Phase
from proxy.switch.views import EngineView, Event, FailoverView, ServiceView, WorkerView
from tests.proxy.control.scripted import ScriptedSupervisor, make_config

replace = msgspec.structs.replace


def picture(*changes: tuple[str, dict[str, Any]], **more: Any) -> Picture:
    """Service shop with blue (active), green (standby) and red (down); `changes` are of an engine's state."""
    [view] = ScriptedSupervisor().services()
    for name, fields in changes:
        engines = [
            replace(one, state=replace(one.state, **fields)) if one.name == name and one.state else one
            for one in view.engines
        ]
        view = replace(view, engines=engines)
    return Picture(
        now=1_000.0,
        config=make_config().service,
        services=more.pop("services", [view]),
        workers=more.pop("workers", []),
        **more,
    )


def of(when: str, shown: Picture, **keys: Any) -> dict[str, Sample]:
    """Samples by engine, service or worker."""
    rule = AlertRuleConfig(when=when, **keys)  # type: ignore[arg-type]
    return {one.subject.engine or one.subject.service or one.subject.worker: one for one in samples(rule, shown)}


def holding(when: str, shown: Picture, **keys: Any) -> list[str]:
    return [name for name, one in of(when, shown, **keys).items() if one.holds]


def engine_of(shown: Picture, name: str) -> EngineView:
    return next(one for one in shown.services[0].engines if one.name == name)


def with_engine(shown: Picture, name: str, **fields: Any) -> Picture:
    view = shown.services[0]
    engines = [replace(one, **fields) if one.name == name else one for one in view.engines]
    return replace(shown, services=[replace(view, engines=engines)])


def test_an_engine_that_does_not_answer_is_down_and_one_never_probed_is_not_known() -> None:
    found = of("engine_down", picture())
    assert [name for name, one in found.items() if one.holds] == ["red"]
    assert found["red"].text == "red of shop does not answer: connection refused"
    assert of("engine_down", with_engine(picture(), "red", state=None))["red"].holds is None


def test_a_rule_may_be_about_the_active_engine_or_the_others_or_some_by_name() -> None:
    assert list(of("engine_down", picture(), of="active")) == ["blue"]
    assert list(of("engine_down", picture(), of="others")) == ["green", "red"]
    assert list(of("engine_down", picture(), engines=["red"])) == ["red"]
    assert list(of("engine_down", picture(), services=["blog"])) == []


def test_lag_is_that_of_standbys_and_unknown_while_they_do_not_answer() -> None:
    shown = picture(("green", {"lag_ms": 200.0}))
    found = of("replication_lag_ms", shown, above=100)
    assert (found["green"].holds, found["green"].value) == (True, 200.0)
    assert found["green"].text == "replication_lag_ms of shop/green is 200, above 100"
    assert found["blue"].holds is False
    assert found["red"].holds is None
    assert of("replication_lag_bytes", shown, above=511)["green"].holds is True
    assert of("replication_lag_bytes", shown, above=512)["green"].holds is False


def test_a_figure_is_compared_with_its_limit_and_unknown_where_nobody_knows_it() -> None:
    figures = EngineFigures(response_time_ms=12.5, error_rate_percent=None, last_updated=1.0)
    shown = with_engine(picture(), "blue", figures=figures)
    assert holding("response_time_ms", shown, above=12.4) == ["blue"]
    assert holding("response_time_ms", shown, below=12.5) == []
    assert of("error_rate_percent", shown, above=5)["blue"].holds is None
    assert of("error_rate_percent", shown, above=5)["green"].holds is None


def test_replication_is_broken_where_a_standby_follows_nobody_outside_of_a_switch() -> None:
    shown = picture(("green", {"is_replicating": False, "replication_error": "no route"}))
    assert of("replication_broken", shown)["green"].text == "green of shop follows nobody: no route"
    assert holding("replication_broken", shown) == ["green"]
    assert holding("replication_broken", picture()) == []


def test_a_former_primary_that_writes_is_told() -> None:
    deposed = Deposed(engine="green", switch="s1", epoch=3, at=1.0)
    writes = with_engine(picture(("green", {"role": Role.PRIMARY, "is_writable": True})), "green", deposed=deposed)
    assert holding("former_primary_writes", writes) == ["green"]
    assert holding("former_primary_writes", with_engine(picture(), "green", deposed=deposed)) == []


def test_a_service_whose_active_engine_refuses_writes_is_told() -> None:
    assert holding("service_takes_no_writes", picture(("blue", {"is_writable": False}))) == ["shop"]
    assert of("service_takes_no_writes", picture(("blue", {"is_reachable": False})))["shop"].holds is None


def test_automation_that_is_off_against_the_config_is_told() -> None:
    [view] = picture().services
    off = picture(services=[replace(view, failover=FailoverView(is_automatic=False, why_not="it failed"))])
    assert holding("automation_off", off) == ["shop"]
    unwanted = replace(off.config["shop"], failover=FailoverConfig(automatic=False))
    assert holding("automation_off", replace(off, config={"shop": unwanted})) == []


def test_what_workers_count_and_whether_they_are_there() -> None:
    worker = WorkerView(index=1, pid=1, is_connected=False, is_configured=False, started_at=0.0, restarts=0)
    sums = {"shop": ServiceSums(sessions=10, sessions_held=0, clients_waiting=3)}
    shown = picture(workers=[worker, replace(worker, index=0, is_connected=True)], sums=sums)
    assert holding("worker_down", shown) == ["1"]
    assert holding("clients_waiting", shown, above=2) == ["shop"]
    assert of("clients_waiting", picture(), above=2)["shop"].holds is None
    assert holding("running_switch_s", shown, above=-1) == ["shop"]


# --- events -------------------------------------------------------------------------------------------------------


def ended(phase: Phase, *, strategy: str = "graceful", was_tried: bool = True) -> list[Happened]:
    stamps = {"preparing": 1} if was_tried else {}
    record = SwitchRecord(
        id="s1", service="shop", source="blue", target="green", strategy=strategy,
        plan=SwitchPlan(service="shop", target="green", reason="blue failed"), began_at=time.time(), began_ns=0,
        phase=phase, error="the disk is full", stamps=stamps,
    )  # fmt: skip
    event = Event(kind="switch.ended", at=1.0, service="shop", data={"id": "s1"})
    return list(happened(event, lambda _id: record))


def test_a_switch_that_fails_or_is_undone_is_an_event_and_a_good_one_makes_up_for_it() -> None:
    [failed] = ended(Phase.FAILED)
    assert (failed.when, failed.is_over) == ("switch_failed", False)
    assert failed.text == "switch s1 of shop from blue to green failed: the disk is full"
    assert [one.when for one in ended(Phase.ABORTED)] == ["switch_undone"]
    assert [one.when for one in ended(Phase.ROLLED_BACK)] == ["switch_undone"]
    assert ended(Phase.ABORTED, was_tried=False) == []
    assert {(one.when, one.is_over) for one in ended(Phase.COMPLETED)} == {
        ("switch_failed", True),
        ("switch_undone", True),
        ("failover_impossible", True),
    }
    assert [one.when for one in ended(Phase.COMPLETED, strategy="failover") if not one.is_over] == ["failover"]


@pytest.mark.parametrize(
    ("kind", "data", "meant"),
    [
        ("failover.impossible", {"engine": "blue", "why": "no standby"}, ("failover_impossible", False)),
        ("engine.health", {"engine": "blue", "health": "answering", "why": ""}, ("failover_impossible", True)),
        ("engine.health", {"engine": "blue", "health": "lost", "why": ""}, None),
        ("policy.decided", {"policy": "p", "code": "refused", "text": "no"}, ("policy_refused", False)),
        ("policy.decided", {"policy": "p", "code": "switched", "text": ""}, ("policy_refused", True)),
        ("policy.decided", {"policy": "p", "code": "waits", "text": ""}, None),
        (
            "datacheck.ended",
            {"id": "d", "source": "blue", "target": "green", "state": "different"},
            ("data_differs", False),
        ),
        ("datacheck.ended", {"id": "d", "source": "blue", "target": "green", "state": "equal"}, ("data_differs", True)),
        ("datacheck.ended", {"id": "d", "source": "blue", "target": "green", "state": "failed"}, None),
        ("worker.joined", {"worker": 0, "pid": 1}, None),
    ],
)
def test_what_events_mean(kind: str, data: dict[str, Any], meant: tuple[str, bool] | None) -> None:
    def nobody(_id: str) -> SwitchRecord:
        raise AssertionError("no switch is asked for")

    found = list(happened(Event(kind=kind, at=1.0, service="shop", data=data), nobody))
    assert [(one.when, one.is_over) for one in found] == ([meant] if meant else [])
    assert all(one.subject.service == "shop" for one in found)


# --- everything there is ------------------------------------------------------------------------------------------


def test_everything_that_may_be_watched_is_found_and_in_the_docs() -> None:
    page = (ROOT / "docs/alerts.md").read_text()
    worker = WorkerView(index=1, pid=1, is_connected=True, is_configured=True, started_at=0.0, restarts=0)
    shown = picture(workers=[worker])
    for when in get_args(AlertWhen):
        assert f"| `{when}` |" in page, when
        limit = {"above": 1.0} if when in ALERT_FIGURES else {}
        subjects = of(when, shown, **limit)
        assert bool(subjects) is (when not in ALERT_EVENTS), when
        assert (when in ALERTS_OF_ENGINES) is ("green" in subjects), when


def test_turnouts_own_rules_are_in_the_docs_with_their_limits() -> None:
    page = (ROOT / "docs/alerts.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (`\w+`.*)\|$", page, re.MULTILINE))
    for name, rule in DEFAULT_RULES.items():
        limit = f" above {rule.above:g}" if rule.above is not None else ""
        of_whom = f" of {rule.of}" if rule.of != "all" else ""
        row = rows[name]
        assert row.startswith(f"`{rule.when}`{limit}{of_whom} |"), name
        assert f"| {rule.for_s:g} s |" in row or rule.when in ALERT_EVENTS, name
        assert rule.severity in row, name
        assert rule.when in REMEDIES, name


def test_a_subject_reads_like_a_place() -> None:
    assert str(Subject(service="shop", engine="blue")) == "shop/blue"
    assert str(Subject(service="shop")) == "shop"
    assert str(Subject(worker="1")) == "worker 1"


def test_views_of_engines_not_probed_yet_are_no_trouble() -> None:
    engine = EngineView(name="blue", address="db:1", is_active=True, state=None, probed_at=0.0)
    view = ServiceView(
        name="shop", protocol="mysql", pool_mode="session", databases=[], active="blue", epoch=0, engines=[engine],
        running=None,
    )  # fmt: skip
    for when in get_args(AlertWhen):
        limit = {"above": 1.0} if when in ALERT_FIGURES else {}
        assert holding(when, picture(services=[view]), **limit) == []


def test_an_unreachable_standby_says_nothing_of_its_replication() -> None:
    down = EngineState(name="green", is_reachable=False, why="gone")
    assert of("replication_broken", with_engine(picture(), "green", state=down))["green"].holds is None
