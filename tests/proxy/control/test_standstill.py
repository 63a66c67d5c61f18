"""What operators have stopped: PgBouncer's rules, without any process."""

from __future__ import annotations

import pytest

from proxy import ipc
from proxy.control.standstill import Place, Standstills
from proxy.errors import Conflict, NotFound, ProxyError
from tests.proxy.control.scripted import make_config


class Scene:
    def __init__(self, *services: str) -> None:
        self.told: list[ipc.StandStill] = []
        config = make_config(services=services or ("shop", "blog"))
        self.of = Standstills(lambda: config.service, self.told.append)

    @property
    def paused(self) -> dict[str, tuple[bool, list[str]]]:
        return {name: (one.is_paused, one.paused) for name, one in self.of.all().items()}


def refusal_of(what: object, *arguments: object, **named: object) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        what(*arguments, **named)  # type: ignore[operator]
    return caught.value


def test_a_pause_without_a_name_stops_every_service_and_is_undone_as_a_whole() -> None:
    scene = Scene()
    scene.of.pause("")
    assert scene.paused == {"shop": (True, []), "blog": (True, [])}
    assert len(scene.told) == 2
    assert refusal_of(scene.of.pause, "").text == "already suspended/paused"
    assert refusal_of(scene.of.pause, "shop").text == "already suspended/paused"
    scene.of.resume("")
    assert scene.paused == {"shop": (False, []), "blog": (False, [])}
    assert refusal_of(scene.of.resume, "").text == "pooler is not paused/suspended"


def test_a_pause_of_one_database_is_undone_by_its_name_only() -> None:
    scene = Scene()
    scene.of.pause("shop")
    assert scene.paused == {"shop": (False, ["shop"])}
    assert scene.told == [ipc.StandStill(service="shop", standstill=ipc.Standstill(paused=["shop"]))]
    assert refusal_of(scene.of.resume, "").text == "pooler is not paused/suspended"
    assert refusal_of(scene.of.resume, "blog").text == "database blog is not paused"
    scene.of.pause("shop")  # again, as in PgBouncer
    scene.of.resume("shop")
    assert scene.paused == {"shop": (False, [])}


def test_a_database_that_nobody_serves_cannot_be_stopped() -> None:
    scene = Scene()
    error = refusal_of(scene.of.pause, "nosuch")
    assert isinstance(error, NotFound)
    assert error.text == "no such database: nosuch"
    error = refusal_of(scene.of.pause, "pgbouncer")
    assert isinstance(error, Conflict)
    assert error.text == "cannot pause admin db: pgbouncer"
    assert scene.told == []


def test_disabling_does_not_pause() -> None:
    scene = Scene()
    scene.of.disable("shop", is_off=True)
    assert scene.of.of("shop") == ipc.Standstill(disabled=["shop"])
    scene.of.disable("shop", is_off=False)
    scene.of.disable("shop", is_off=False)  # again, as in PgBouncer
    assert scene.of.of("shop") == ipc.Standstill()


def test_a_supervisor_that_comes_anew_takes_over_what_the_workers_were_told() -> None:
    scene = Scene()
    scene.of.adopt(
        [
            {"shop": ipc.Standstill(paused=["shop"])},
            {"shop": ipc.Standstill(disabled=["shop"]), "blog": ipc.Standstill(is_paused=True)},
            {},
        ]
    )
    assert scene.of.of("shop") == ipc.Standstill(paused=["shop"], disabled=["shop"])
    assert scene.of.is_paused
    assert scene.of.is_still([Place("shop", "shop")])
    assert not scene.of.is_still([Place("shop", None)])
