"""The policies of a running Turnout: with a clock that is turned by hand, and switches that end as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy import latency
from proxy.config import AdminConfig, AuthConfig, EngineConfig, PolicyConfig, ServiceConfig
from proxy.engines.figures import Second, Stream, WireCounts
from proxy.errors import Conflict, NotFound, PlanRefused
from proxy.policy.keeper import PolicyKeeper, PolicyRefused
from proxy.policy.model import Code, Policy
from proxy.policy.store import PolicyStore
from proxy.switch.journal import Journal, Standing
from proxy.switch.plan import SwitchPlan, SwitchRecord
from proxy.switch.state import Phase
from proxy.switch.views import Event
from tests.kit.waiting import until

S = 10**9
NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC).timestamp()


class TurnedClock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.s = 0.0
        self.set_back_s = 0.0
        """By which somebody has set the clock on the wall back."""

    def now_ns(self) -> int:
        return int(self.s * S)

    def wall(self) -> float:
        return NOON + self.s - self.set_back_s


class Scene:
    """A keeper, and all it talks to."""

    def __init__(self, folder: Path, **policies: PolicyConfig) -> None:
        self.clock = TurnedClock()
        self.stream = Stream()
        self.journal = Journal(folder / "state.sqlite")
        self.active = "blue"
        self.asked: list[SwitchPlan] = []
        self.refuses: PlanRefused | None = None
        self.under_way: SwitchRecord | None = None
        self.known: dict[str, SwitchRecord] = {}
        self.events: list[Event] = []
        self.service = ServiceConfig(
            protocol="postgresql", active="blue", admin=AdminConfig(user="a"), auth=AuthConfig(method="trust"),
            engine={name: EngineConfig(address=f"{name}:5432") for name in ("blue", "green")}, policy=policies,
        )  # fmt: skip
        self.keeper = self.again()

    def again(self) -> PolicyKeeper:
        """The keeper of a supervisor that starts now."""
        self.keeper = PolicyKeeper(
            {"shop": self.service},
            PolicyStore(self.journal.database),
            self.stream,
            self,
            self.clock,
            self.events.append,
        )
        self.keeper.start_with(self.start)
        return self.keeper

    # --- what the keeper asks ------------------------------------------------------------------------------------

    def standing(self, service: str) -> Standing:
        assert service == "shop"
        return Standing(self.active, 1)

    def running(self, service: str) -> SwitchRecord | None:
        assert service == "shop"
        return self.under_way

    def record(self, switch_id: str) -> SwitchRecord:
        return self.known[switch_id]

    def records(self, limit: int) -> list[SwitchRecord]:
        return list(reversed(self.known.values()))[:limit]

    async def start(self, plan: SwitchPlan) -> SwitchRecord:
        self.asked.append(plan)
        await asyncio.sleep(0)
        if self.refuses is not None:
            raise self.refuses
        self.under_way = SwitchRecord(
            id=f"s{len(self.asked)}", service="shop", source=self.active, target=plan.target, strategy=plan.strategy,
            plan=plan, began_at=self.clock.wall(),
        )  # fmt: skip
        self.known[self.under_way.id] = self.under_way
        return self.under_way

    # --- what a test does ----------------------------------------------------------------------------------------

    def have(self, *engines: str) -> None:
        """The service has these engines from now on."""
        made = {name: EngineConfig(address=f"{name}:5432") for name in engines}
        self.service = msgspec.structs.replace(self.service, engine=made)
        self.keeper.reconfigure({"shop": self.service})

    def end(self, phase: Phase) -> None:
        record = self.under_way
        assert record is not None
        self.under_way = None
        record.phase, record.ended_at = phase, self.clock.wall()
        if phase is Phase.COMPLETED:
            self.active = record.target
        self.keeper.hear(Event(kind="switch.ended", at=self.clock.wall(), service="shop", data={"id": record.id}))

    def turn(self, seconds: int, ms: float | None = 1.0) -> None:
        """So many seconds go by, in each 10 requests of `ms` each on the engine that serves."""
        for _ in range(seconds):
            self.clock.s += 1
            us = int((ms or 0) * 1_000)
            wire = WireCounts(10, 10 * us, 0, {latency.bucket_of(us): 10}) if ms is not None else WireCounts()
            self.stream.add(("shop", self.active), Second(at_ns=self.clock.now_ns(), wall=self.clock.wall(), wire=wire))
            self.keeper.tick()

    async def asks(self, count: int) -> None:
        """Until the door has been asked so often, and has answered."""
        await until(lambda: len(self.asked) >= count and not self.keeper._starting, f"{count} switches asked for")
        assert len(self.asked) == count

    def codes(self, policy: str = "slow") -> list[Code]:
        """From the first to the last."""
        return [one.code for one in reversed(self.keeper.history(100, policy))]


SLOW = PolicyConfig(
    trigger="performance_degradation", target_engine="green", response_time_threshold_ms=100, window_duration=10
)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(**policies: PolicyConfig) -> Scene:
        made.append(Scene(tmp_path, **policies))
        return made[-1]

    yield make
    for one in made:
        one.journal.close()


async def test_a_policy_asks_at_the_door_once_and_is_followed_to_the_end(scene: Callable[..., Scene]) -> None:
    play = scene(slow=SLOW)
    play.turn(15)
    play.turn(15, ms=500.0)
    await play.asks(1)
    [plan] = play.asked
    assert (plan.target, plan.strategy, plan.requested_by) == ("green", "graceful", "policy slow")
    assert plan.reason.startswith("fired because the mean response time of blue was ")
    play.turn(1, ms=500.0)
    play.end(Phase.COMPLETED)
    play.turn(20)
    assert play.codes() == [
        Code.TOO_LITTLE_EVIDENCE, Code.NOT_ABOVE, Code.FIRED, Code.SWITCH_RUNS, Code.SWITCHED, Code.TOO_LITTLE_EVIDENCE,
        Code.TARGET_SERVES,
    ] or play.codes()[2:5] == [Code.FIRED, Code.RESTS, Code.SWITCHED]  # fmt: skip
    assert play.keeper.history(100, "slow")[-3].switch == "s1"
    assert not play.keeper.view(play.keeper.policy("slow")).is_resting


async def test_a_switch_that_was_rolled_back_is_not_asked_for_again_while_the_cause_lasts(
    scene: Callable[..., Scene],
) -> None:
    play = scene(slow=SLOW)
    play.turn(20, ms=500.0)
    await play.asks(1)
    play.end(Phase.ROLLED_BACK)
    play.turn(400, ms=500.0)
    await play.asks(1)
    assert play.codes()[-2:] == [Code.UNDONE, Code.RESTS]
    play.turn(15)
    play.turn(15, ms=500.0)
    await play.asks(2)


async def test_a_switch_that_was_refused_is_asked_for_again_after_the_cool_down(scene: Callable[..., Scene]) -> None:
    play = scene(slow=SLOW)
    play.refuses = PlanRefused("green is behind", hint="wait")
    play.turn(20, ms=500.0)
    await play.asks(1)
    assert play.codes()[-1] is Code.REFUSED
    assert play.keeper.history(1)[0].text == "the switch was refused: green is behind; wait"
    play.turn(280, ms=500.0)
    await play.asks(1)
    play.turn(30, ms=500.0)
    await play.asks(2)


async def test_a_clock_that_is_set_back_makes_no_cool_down_longer(scene: Callable[..., Scene]) -> None:
    play = scene(slow=SLOW)
    play.refuses = PlanRefused("green is behind", hint="wait")
    play.turn(20, ms=500.0)
    await play.asks(1)
    play.clock.set_back_s = 3_600.0
    play.turn(280, ms=500.0)
    await play.asks(1)
    play.turn(30, ms=500.0)
    await play.asks(2)


async def test_the_cap_counts_the_refused_ones_and_the_policies_before_a_restart(scene: Callable[..., Scene]) -> None:
    rules = {"trigger": "performance_degradation", "target_engine": "green", "response_time_threshold_ms": 100}
    play = scene(slow=PolicyConfig(**rules, window_duration=10, cool_down=0, max_switches_per_hour=2))  # type: ignore[arg-type]
    play.turn(20, ms=500.0)
    await play.asks(1)
    play.end(Phase.ABORTED)
    play.again()
    play.turn(1, ms=500.0)
    await play.asks(2)
    play.end(Phase.ABORTED)
    play.again()
    play.turn(60, ms=500.0)
    await play.asks(2)
    assert play.codes()[-1] is Code.CAPPED
    play.turn(3_600, ms=500.0)
    await until(lambda: len(play.asked) == 3, "the hour is over")


async def test_a_schedule_fires_at_its_time_and_once(scene: Callable[..., Scene]) -> None:
    nightly = PolicyConfig(trigger="scheduled", target_engine="green", cron_expression="30 12 * * *")
    play = scene(nightly=nightly)
    play.turn(1, ms=None)
    assert play.keeper.view(play.keeper.policy("nightly")).next_time == NOON + 1_800
    play.turn(1_798, ms=None)
    assert not play.asked
    play.turn(1, ms=None)
    await play.asks(1)
    play.end(Phase.ABORTED)
    play.turn(120, ms=None)
    await play.asks(1)
    assert play.keeper.view(play.keeper.policy("nightly")).next_time == NOON + 1_800 + 86_400


async def test_a_schedule_whose_time_came_while_nobody_looked_is_missed(scene: Callable[..., Scene]) -> None:
    play = scene(nightly=PolicyConfig(trigger="scheduled", target_engine="green", cron_expression="30 12 * * *"))
    play.turn(1, ms=None)
    play.clock.s = 1_900.0
    play.turn(1, ms=None)
    assert play.codes("nightly")[-1] is Code.MISSED
    assert not play.asked


async def test_a_schedule_follows_a_clock_that_is_set_back(scene: Callable[..., Scene]) -> None:
    play = scene(nightly=PolicyConfig(trigger="scheduled", target_engine="green", cron_expression="30 12 * * *"))
    play.clock.s = 3_600.0
    play.turn(1, ms=None)
    play.clock.s = 0.0
    play.turn(1, ms=None)
    assert play.keeper.view(play.keeper.policy("nightly")).next_time == NOON + 1_800


def a_policy(name: str = "mine", **keys: Any) -> Policy:
    keys = {"trigger": "manual", "target_engine": "green", **keys}
    return Policy(name=name, service="shop", origin="command", **keys)


async def test_what_was_set_survives_a_restart_and_so_does_who_was_switched_off(scene: Callable[..., Scene]) -> None:
    play = scene(slow=SLOW)
    play.keeper.put(a_policy())
    play.keeper.enable("slow", is_enabled=False)
    play.keeper.enable("mine", is_enabled=False)
    kept = {policy.name: (policy.origin, policy.enabled) for policy in play.again().policies()}
    assert kept == {"mine": ("command", False), "slow": ("config", False)}
    play.turn(20, ms=500.0)
    assert not play.asked
    play.keeper.enable("slow", is_enabled=True)
    play.turn(1, ms=500.0)
    await play.asks(1)
    assert play.again().view(play.keeper.policy("slow")).is_resting


async def test_the_config_file_wins_over_commands(scene: Callable[..., Scene]) -> None:
    play = scene(slow=SLOW)
    with pytest.raises(PolicyRefused, match="stands in the config file") as refused:
        play.keeper.put(a_policy("slow"))
    assert "[service.shop.policy.slow]" in refused.value.hint
    with pytest.raises(PolicyRefused, match="stands in the config file"):
        play.keeper.remove("slow")


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (a_policy("no spaces"), "cannot be called"),
        (a_policy(target_engine="red"), 'no engine of this service is called "red"'),
        (a_policy(trigger="error_rate"), "error_rate_threshold: is missing"),
        (a_policy(trigger="load_threshold"), "needs cpu_threshold, memory_threshold or connection_threshold"),
        (a_policy(trigger="scheduled", cron_expression="61 * * * *"), "bad minute"),
        (a_policy(trigger="scheduled", cron_expression="* * * * * *"), "expected five fields"),
        (a_policy(trigger="scheduled", cron_expression="0 0 31 2 *"), "cron_expression"),
        (a_policy(trigger="scheduled", cron_expression="0 0 * * *", time_zone="../etc"), "no time zone"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_what_to_change(
    scene: Callable[..., Scene], policy: Policy, says: str
) -> None:
    play = scene()
    with pytest.raises(PolicyRefused) as refused:
        play.keeper.put(policy)
    assert says in refused.value.text
    assert play.keeper.policies() == []


async def test_an_operator_lets_a_policy_fire_whatever_its_trigger(scene: Callable[..., Scene]) -> None:
    play = scene(slow=SLOW)
    record = await play.keeper.run("slow", "ann")
    assert record.plan.requested_by == "policy slow"
    assert play.keeper.history(1)[0].text == "fired because ann said so"
    play.end(Phase.ABORTED)
    play.keeper.enable("slow", is_enabled=False)
    with pytest.raises(Conflict, match="disabled"):
        await play.keeper.run("slow", "ann")
    with pytest.raises(NotFound, match="no policy 'gone'"):
        await play.keeper.run("gone", "ann")


async def test_a_policy_whose_engine_was_removed_is_kept_and_not_judged(scene: Callable[..., Scene]) -> None:
    play = scene()
    play.keeper.put(a_policy("slow", **{key: getattr(SLOW, key) for key in SLOW.__struct_fields__}))
    only_blue = {"blue": play.service.engine["blue"]}
    play.keeper.reconfigure({"shop": ServiceConfig(
        protocol="postgresql", active="blue", admin=AdminConfig(user="a"), auth=AuthConfig(method="trust"),
        engine=only_blue,
    )})  # fmt: skip
    play.turn(20, ms=500.0)
    assert not play.asked
    assert [policy.name for policy in play.keeper.policies()] == ["slow"]


async def test_a_policy_whose_service_is_gone_says_so_until_it_is_back(scene: Callable[..., Scene]) -> None:
    play = scene()
    play.keeper.put(a_policy("slow", **{key: getattr(SLOW, key) for key in SLOW.__struct_fields__}))
    play.keeper.reconfigure({"store": play.service})
    play.turn(12, ms=500.0)
    assert play.codes() == [Code.NO_SERVICE]
    [last] = play.keeper.history(1, "slow")
    assert last.text == "did not fire because the config has no service shop"
    assert not play.asked
    play.keeper.reconfigure({"shop": play.service})
    play.turn(1, ms=500.0)
    await play.asks(1)
    assert play.codes() == [Code.NO_SERVICE, Code.FIRED]


async def test_the_history_is_bounded_and_what_was_done_outlives_what_was_not(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    from proxy.policy import store

    monkeypatch.setattr(store, "KEPT", 5)
    play = scene(slow=SLOW)
    play.turn(20, ms=500.0)
    await play.asks(1)
    play.end(Phase.ABORTED)
    for _ in range(20):
        play.turn(12)
        play.turn(12, ms=None)
    assert len(play.keeper.history(1_000)) <= 10
    assert Code.FIRED in play.codes()


async def test_a_policy_whose_engine_is_not_there_says_so_until_it_comes(scene: Callable[..., Scene]) -> None:
    after = PolicyConfig(trigger="failure", target_engine="green", priority=200)
    play = scene(slow=SLOW, after=after, other=PolicyConfig(trigger="failure", target_engine="red"))
    play.have("blue", "red")
    play.turn(12, ms=500.0)
    assert play.codes() == [Code.NO_ENGINE]
    [last] = play.keeper.history(1, "slow")
    assert last.text == "did not fire because service shop has no engine green"
    assert play.keeper.after_failure("shop") == "red", "who has an engine is asked"
    assert not play.asked
    play.have("blue", "green")
    play.turn(1, ms=500.0)
    await play.asks(1)
    assert play.codes() == [Code.NO_ENGINE, Code.FIRED]
    assert play.keeper.after_failure("shop") == "green"
