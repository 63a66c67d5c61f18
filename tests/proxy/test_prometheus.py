"""The rules and the dashboard of conf/: promtool takes them, and they name metrics that there are."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path

import pytest

from docs.generate import ROOT
from proxy.control.metrics import Metrics
from proxy.switch.plan import SwitchPlan
from tests.proxy.control.scripted import ScriptedSupervisor

RULES = ROOT / "conf/prometheus-rules.yml"
BOARD = ROOT / "conf/grafana-dashboard.json"


async def _scrape() -> str:
    """With every family that a completed switch brings."""
    supervisor = ScriptedSupervisor()
    metrics = Metrics(supervisor)
    await supervisor.start_switch(SwitchPlan(service="shop", target="green"))
    text, _ = await metrics.scrape("")
    return text.decode()


def scraped() -> str:
    return asyncio.run(_scrape())


@pytest.mark.parametrize("path", [RULES, BOARD], ids=lambda path: path.name)
def test_every_metric_that_is_asked_for_is_one_that_there_is(path: Path) -> None:
    asked = set(re.findall(r"(?<![:\w])turnout_\w+", path.read_text()))
    shown = set(re.findall(r"^# TYPE (\S+)", scraped(), re.MULTILINE))
    families = {name.removesuffix("_bucket") for name in asked}
    assert len(families) > 8
    assert families - shown == set()


async def test_an_outcome_is_counted_from_0_on_so_that_its_first_time_is_an_increase() -> None:
    text, _ = await Metrics(ScriptedSupervisor()).scrape("")
    for outcome in ("failed", "aborted", "rolled_back"):
        assert f'turnout_switches_total{{outcome="{outcome}",service="shop",strategy="graceful"}} 0.0' in text.decode()
    assert 'turnout_failovers_total{outcome="failed",service="shop"} 0.0' in text.decode()


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    board = json.loads(BOARD.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(target["expr"] for panel in board["panels"] for target in panel["targets"])


@pytest.mark.promtool
def test_promtool_takes_the_rules_and_the_metrics() -> None:
    rules = subprocess.run(["promtool", "check", "rules", "--lint-fatal", str(RULES)], capture_output=True, check=False)
    assert rules.returncode == 0, rules.stderr.decode()
    metrics = subprocess.run(
        ["promtool", "check", "metrics"], input=(scraped()).encode(), capture_output=True, check=False
    )
    assert metrics.returncode == 0, metrics.stdout.decode() + metrics.stderr.decode()
