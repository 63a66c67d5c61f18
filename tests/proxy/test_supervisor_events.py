"""Who follows a supervisor's events."""

from __future__ import annotations

from pathlib import Path

from proxy.supervisor import Supervisor
from proxy.switch.views import Event
from tests.proxy.control.scripted import make_config


def test_a_mistake_of_one_subscriber_keeps_nothing_from_the_others_and_not_from_who_tells(tmp_path: Path) -> None:
    supervisor = Supervisor(make_config(), base=tmp_path)
    heard: list[Event] = []

    def fail(event: Event) -> None:
        raise KeyError(event.kind)

    supervisor.subscribe(fail)
    supervisor.subscribe(heard.append)
    told = Event(kind="switch.ended", at=0.0, service="shop", data={})
    supervisor.publish(told)
    assert heard == [told]
