"""Alerts of a scripted supervisor, with a clock turned by hand and a real HTTP server to be told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from proxy.config import AlertRuleConfig, AlertsConfig, Config, ReceiverConfig, Secret
from proxy.control.alerts.keeper import Alerts
from proxy.control.alerts.model import AlertView, Silence, State
from proxy.control.alerts.post import QUEUE_MAX, pause_s
from proxy.embedded import free_port
from proxy.errors import NotFound
from proxy.switch.views import Event
from tests.kit.waiting import until
from tests.proxy.control.alerts.receiving import Web
from tests.proxy.control.alerts.receiving import web as listening
from tests.proxy.control.scripted import ScriptedSupervisor, make_config

DOWN = AlertRuleConfig(when="engine_down", engines=["red"], for_s=5, severity="critical")
"""The scripted engine red never answers; `keeps_answering` makes the rule about blue, which does."""


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def wall(self) -> float:
        return self.now

    def now_ns(self) -> int:
        return int(self.now * 1e9)


class Stage:
    """A supervisor, its alerts and somebody who is told of them."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self.clock = Clock()
        self.supervisor = ScriptedSupervisor(self.config())
        self.events: list[Event] = []
        self.supervisor.subscribe(self.events.append)
        self.alerts = self.begin()

    def config(self, *, rule: AlertRuleConfig | None = DOWN, **alerts: Any) -> Config:
        url = Secret(env="URL", value=f"{self.web.url}/in")
        given: dict[str, Any] = {
            "defaults": False,
            "rule": {"red_down": rule} if rule is not None else {},
            "receiver": {"ops": ReceiverConfig(kind="webhook", url=url, timeout_s=5)},
        }
        return msgspec.structs.replace(make_config(), alerts=AlertsConfig(**{**given, **alerts}))

    def begin(self) -> Alerts:
        self.alerts = Alerts(self.supervisor, self.clock, pause=lambda tries: 0.01)
        self.alerts.take_up()
        return self.alerts

    async def again(self) -> None:
        """Another supervisor on the same state file."""
        await self.alerts.stop()
        self.supervisor.subscribers = [self.events.append]
        self.begin()

    def reload(self, **changes: Any) -> None:
        self.supervisor.config = self.config(**changes)
        self.supervisor.reload()

    def look(self, seconds: float = 0.0) -> list[AlertView]:
        self.clock.now += seconds
        self.alerts.look()
        return self.alerts.views()

    async def told(self, count: int) -> list[str]:
        """The states of that many messages."""
        await until(lambda: len(self.web.requests) >= count, f"{count} messages arrived")
        return [body["status"] for body in self.web.at("/in")]

    async def settled(self) -> None:
        await until(lambda: all(one.waiting == 0 for one in self.alerts.receivers()), "nothing waits")


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    async with listening() as web:
        found = Stage(web)
        yield found
        await found.alerts.stop()


async def test_one_firing_is_one_message_and_its_end_another(stage: Stage) -> None:
    assert [one.state for one in stage.look()] == [State.PENDING]
    [alert] = stage.look(5)
    assert (alert.state, alert.text) == (State.FIRING, "red of shop does not answer: connection refused")
    stage.look(1)
    stage.look(1)
    assert await stage.told(1) == ["firing"]
    stage.reload(rule=msgspec.structs.replace(DOWN, engines=["blue"]))
    assert [one.state for one in stage.look(1)] == [State.RESOLVED]
    assert await stage.told(2) == ["firing", "resolved"]
    assert [one.kind for one in stage.events if one.kind.startswith("alert")] == ["alert.firing", "alert.resolved"]


async def test_what_goes_on_is_told_again_after_the_interval(stage: Stage) -> None:
    stage.look()
    stage.look(5)
    await stage.told(1)
    stage.look(14_399)
    stage.look(1)
    assert await stage.told(2) == ["firing", "firing"]


async def test_what_fires_when_turnout_restarts_is_not_told_anew_and_its_end_is_told(stage: Stage) -> None:
    stage.look()
    stage.look(5)
    await stage.told(1)
    await stage.settled()
    await stage.again()
    assert [one.state for one in stage.look(1)] == [State.FIRING]
    stage.reload(rule=None)
    stage.look(1)
    assert await stage.told(2) == ["firing", "resolved"]


async def test_a_message_that_was_waiting_when_turnout_ended_is_sent_by_the_next_one(stage: Stage) -> None:
    stage.web.status = 503
    stage.look()
    stage.look(5)
    await stage.told(1)
    await until(lambda: stage.alerts.deliveries(10)[0].tries == 1, "the first try is noted")
    await stage.again()
    stage.web.status = 200
    await stage.settled()
    [delivery] = stage.alerts.deliveries(10)
    assert (delivery.state, delivery.outcome) == ("delivered", "HTTP 200")
    assert delivery.tries > 1


async def test_a_message_is_tried_for_its_time_and_then_shown_as_failed(stage: Stage) -> None:
    stage.web.status = 503
    stage.look()
    stage.look(5)
    await stage.told(3)
    assert stage.alerts.receivers()[0].waiting == 1
    stage.clock.now += 901
    await until(lambda: stage.alerts.receivers()[0].failed == 1, "it has failed")
    [event] = [one for one in stage.events if one.kind == "alert.delivery_failed"]
    assert (event.data["receiver"], event.data["why"]) == ("ops", "HTTP 503: thanks")
    view = stage.alerts.receivers()[0]
    assert view.last is not None
    assert (view.waiting, view.last.state) == (0, "failed")


async def test_what_is_refused_for_good_is_tried_once(stage: Stage) -> None:
    stage.web.status = 404
    stage.look()
    stage.look(5)
    await until(lambda: stage.alerts.receivers()[0].failed == 1, "it has failed")
    assert len(stage.web.requests) == 1


async def test_a_queue_is_bounded_and_what_it_drops_is_shown(stage: Stage) -> None:
    closed = Secret(env="URL", value=f"http://127.0.0.1:{free_port()}/in")
    stage.reload(receiver={"ops": ReceiverConfig(kind="webhook", url=closed)})
    stage.look()
    [alert] = stage.look(5)
    for _ in range(QUEUE_MAX + 4):
        stage.alerts._post.send("ops", "firing", alert)
    [view] = stage.alerts.receivers()
    assert (view.waiting, view.dropped) == (QUEUE_MAX, 5)
    stage.reload(receiver={})
    assert [one.state for one in stage.alerts.deliveries(1_000)] == ["dropped"] * (QUEUE_MAX + 5)


async def test_a_rule_and_a_receiver_say_who_is_told_of_what(stage: Stage) -> None:
    url = Secret(env="URL", value=f"{stage.web.url}/in")
    some = {
        "loud": ReceiverConfig(kind="webhook", url=url),
        "mild": ReceiverConfig(kind="webhook", url=url, severities=["warning"]),
        "short": ReceiverConfig(kind="webhook", url=url, send_resolved=False),
    }
    stage.reload(receiver=some)
    stage.look()
    stage.look(5)
    stage.reload(rule=None, receiver=some)
    stage.look(1)
    await stage.settled()
    told = sorted((one.receiver, one.what) for one in stage.alerts.deliveries(10))
    assert told == [("loud", "firing"), ("loud", "resolved"), ("short", "firing")]
    only = msgspec.structs.replace(DOWN, for_s=0, receivers=["mild", "loud"])
    stage.reload(rule=only, receiver=some)
    stage.look(1)
    await stage.settled()
    assert stage.alerts.deliveries(1)[0].receiver == "loud"


async def test_a_silence_keeps_messages_back_and_not_the_alert(stage: Stage) -> None:
    kept = stage.alerts.silence(Silence(number=0, alert="red_down", service="shop", until=1_100.0, by="alice"))
    stage.look()
    [alert] = stage.look(5)
    assert (alert.state, alert.silenced_by) == (State.FIRING, kept.number)
    assert stage.alerts.deliveries(10) == []
    await stage.again()
    assert stage.look(1)[0].silenced_by == kept.number
    stage.look(94)
    assert await stage.told(1) == ["firing"]
    assert stage.alerts.silences() == []


async def test_a_silence_is_about_what_there_is_and_can_be_ended(stage: Stage) -> None:
    for wrong in ({"alert": "nothing"}, {"service": "blog"}, {"engine": "black"}):
        with pytest.raises(NotFound):
            stage.alerts.silence(Silence(number=0, until=2_000.0, by="alice", **wrong))
    kept = stage.alerts.silence(Silence(number=0, engine="green", until=2_000.0, by="alice"))
    assert stage.alerts.unsilence(kept.number) == kept
    with pytest.raises(NotFound):
        stage.alerts.unsilence(kept.number)


async def test_a_test_message_is_sent_at_once_and_its_outcome_is_answered(stage: Stage) -> None:
    delivery = await stage.alerts.test("ops", "alice")
    assert (delivery.state, delivery.what, delivery.outcome) == ("delivered", "test", "HTTP 200")
    [body] = stage.web.at("/in")
    assert body["alerts"][0]["annotations"] == {
        "summary": "alice tests whether alerts reach the receiver ops", "test": "true",
    }  # fmt: skip
    stage.web.status = 500
    assert (await stage.alerts.test("ops", "alice")).state == "failed"
    with pytest.raises(NotFound, match="there is no receiver"):
        await stage.alerts.test("nobody", "alice")


async def test_an_event_fires_at_once_and_a_better_one_ends_it(stage: Stage) -> None:
    stage.reload(rule=AlertRuleConfig(when="data_differs", severity="critical"))
    data = {"id": "d1", "source": "blue", "target": "green", "state": "different"}
    stage.supervisor.tell(Event(kind="datacheck.ended", at=1.0, service="shop", data=data))
    [alert] = stage.look()
    assert (alert.state, alert.subject.engine) == (State.FIRING, "green")
    assert [one.state for one in stage.look(60)] == [State.FIRING]
    stage.supervisor.tell(Event(kind="datacheck.ended", at=1.0, service="shop", data={**data, "state": "equal"}))
    assert [one.state for one in stage.look(1)] == [State.RESOLVED]
    assert await stage.told(2) == ["firing", "resolved"]


async def test_rules_of_the_config_take_the_place_of_turnouts_own(stage: Stage) -> None:
    off = msgspec.structs.replace(DOWN, enabled=False)
    stage.supervisor.config = stage.config(defaults=True, rule=None)
    shown = {rule.name: rule for rule in stage.alerts.rules()}
    assert shown["engine_down"].origin == "default"
    config = msgspec.structs.replace(stage.supervisor.config.alerts, rule={"engine_down": off})
    stage.supervisor.config = msgspec.structs.replace(stage.supervisor.config, alerts=config)
    stage.supervisor.reload()
    shown = {rule.name: rule for rule in stage.alerts.rules()}
    assert (shown["engine_down"].origin, shown["engine_down"].enabled) == ("config", False)
    stage.look()
    assert "engine_down" not in {one.name for one in stage.look(60)}


async def test_alerts_go_on_when_the_state_file_cannot_be_written(stage: Stage) -> None:
    stage.supervisor.database.execute("pragma query_only = on")
    stage.look()
    assert [one.state for one in stage.look(5)] == [State.FIRING]
    assert await stage.told(1) == ["firing"]
    assert (await stage.alerts.test("ops", "alice")).state == "delivered"
    stage.supervisor.database.execute("pragma query_only = off")


async def test_an_alert_that_is_over_is_shown_for_a_day(stage: Stage) -> None:
    stage.look()
    stage.look(5)
    stage.reload(rule=None)
    stage.look(1)
    assert [one.state for one in stage.look(86_399)] == [State.RESOLVED]
    assert stage.look(2) == []
    await stage.again()
    assert stage.alerts.views() == []


def test_pauses_between_tries_double_up_to_a_minute() -> None:
    assert [pause_s(tries) for tries in (1, 2, 3, 6, 7, 8, 1_000)] == [1, 2, 4, 32, 60, 60, 60]
