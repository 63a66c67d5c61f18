"""The policies of a running Turnout: kept, judged each second, and let have their switches.

The shell around `evaluation`. It is the only one who asks for the switches of policies, and asks at the door like everybody
else, so that they are checked, recorded and reported like an operator's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog

from proxy.clock import Clock
from proxy.config import NAME, ServiceConfig, policy_faults
from proxy.engines.figures import Stream
from proxy.errors import Conflict, NotFound, ProxyError
from proxy.policy.evaluation import HOUR_S, Moment, Standing, choose, choose_after_failure, is_dealt_with, judge
from proxy.policy.model import REQUESTED_BY, Code, Decision, Judgement, Policy, PolicyView
from proxy.policy.schedule import next_time
from proxy.policy.store import PolicyStore, Standings
from proxy.switch.failover_run import FAILOVER
from proxy.switch.journal import Standing as Serves
from proxy.switch.plan import SwitchPlan, SwitchRecord
from proxy.switch.state import Phase
from proxy.switch.views import Event
from proxy.tasks import spawn

_log = structlog.get_logger("turnout.policy")

POLICIES_MAX: Final = 1_000
"""Policies of all services together that can be set by command."""

RECORDS_LOOKED_AT: Final = 200
"""Switches of the past that a start looks at for cool-downs and caps."""

CLOCK_STEP_S: Final = 60.0
"""A host's clock that was set back by more makes schedules be looked at anew."""

Start = Callable[[SwitchPlan], Awaitable[SwitchRecord]]
"""The door's verb. Returns when the checks have passed; raises ProxyError with the reason why not."""


class PolicyRefused(Conflict):
    """A policy cannot be set or removed like this, or not be run now."""


class Switches(Protocol):
    """What the keeper has to know of switches; `proxy.switch.orchestrator.Orchestrator` tells."""

    def standing(self, service: str) -> Serves: ...
    def running(self, service: str) -> SwitchRecord | None: ...
    def record(self, switch_id: str) -> SwitchRecord: ...
    def records(self, limit: int) -> list[SwitchRecord]: ...


class _Due(NamedTuple):
    """Of a schedule."""

    rule: tuple[str, str]
    """Expression and zone."""
    looked_at: float
    at: float | None
    """The next time, as of `looked_at`."""


class PolicyKeeper:
    """See the module. `tick` is called each second, after the stream has got its newest second."""

    def __init__(
        self,
        services: Mapping[str, ServiceConfig],
        store: PolicyStore,
        stream: Stream,
        switches: Switches,
        clock: Clock,
        publish: Callable[[Event], None],
    ) -> None:
        self._services = services
        self._store = store
        self._stream = stream
        self._switches = switches
        self._clock = clock
        self._publish = publish
        self._start: Start | None = None
        self._set = {policy.name: policy for policy in store.policies()}
        self._standings = store.standings()
        self._due: dict[str, _Due] = {}
        self._last: dict[str, Decision] = {}
        self._begun: dict[str, list[float]] = {}
        """When policies asked for switches of a service, within the last hour."""
        self._ended: dict[str, float] = {}
        """When the last switch of a service ended, or one was refused to a policy."""
        self._starting: set[str] = set()
        """Services for which the door has been asked and has not answered."""
        self._fired: dict[str, str] = {}
        """Policies by the switch they began, while it runs."""
        self._remember()

    def _remember(self) -> None:
        """What earlier supervisors did counts for cool-downs and caps."""
        now = self._clock.wall()
        for record in reversed(self._switches.records(RECORDS_LOOKED_AT)):
            if record.plan.requested_by.startswith(REQUESTED_BY) and record.began_at > now - HOUR_S:
                self._begun.setdefault(record.service, []).append(record.began_at)
            if record.ended_at is not None:
                self._ended[record.service] = max(record.ended_at, self._ended.get(record.service, 0.0))
        for decision in reversed(self._store.history(RECORDS_LOOKED_AT)):
            self._last[decision.policy] = decision

    def start_with(self, start: Start) -> None:
        """From now on switches can be asked for, by `start`. Before, nothing fires."""
        self._start = start

    def reconfigure(self, services: Mapping[str, ServiceConfig]) -> None:
        """The config was read again."""
        self._services = services

    # --- looking ------------------------------------------------------------------------------------------------------

    def policies(self, service: str | None = None, services: Mapping[str, ServiceConfig] | None = None) -> list[Policy]:
        """Those of all services or of one, by name; with `services` as they would be if the file had said that. One that
        was set by command and whose name the file took since is hidden by it; one whose service is gone does not fire."""
        found = dict(self._set)
        for name, config in (self._services if services is None else services).items():
            for policy_name, rules in config.policy.items():
                found[policy_name] = Policy(
                    name=policy_name, service=name, origin="config", **msgspec.structs.asdict(rules)
                )
        return [
            self._as_switched(policy)
            for _, policy in sorted(found.items())
            if service is None or policy.service == service
        ]

    def _as_switched(self, policy: Policy) -> Policy:
        said = self._standing(policy.name).is_enabled
        return policy if said is None else msgspec.structs.replace(policy, enabled=said)

    def policy(self, name: str) -> Policy:
        """Raises NotFound."""
        for policy in self.policies():
            if policy.name == name:
                return policy
        raise NotFound(f"there is no policy {name!r}", hint="`turnout policy list` shows them")

    def view(self, policy: Policy) -> PolicyView:
        """As it is shown."""
        due = self._due.get(policy.name)
        return PolicyView(
            policy=policy,
            last=self._last.get(policy.name),
            is_resting=self._standing(policy.name).is_resting,
            next_time=due.at if due is not None and policy.enabled and self._has_target(policy) else None,
        )

    def history(self, limit: int, policy: str | None = None) -> list[Decision]:
        """What was decided, newest first; only what changed."""
        return self._store.history(limit, policy)

    def after_failure(self, service: str) -> str | None:
        """The engine that a policy wants to take over when the active one has failed."""
        chosen = self._chosen_after(service, self._switches.standing(service).active)
        return chosen.target_engine if chosen is not None else None

    def _chosen_after(self, service: str, failed: str) -> Policy | None:
        able = [policy for policy in self.policies(service) if self._has_target(policy)]
        return choose_after_failure(able, failed)

    def _has_target(self, policy: Policy) -> bool:
        config = self._services.get(policy.service)
        return config is not None and policy.target_engine in config.engine

    # --- changing -----------------------------------------------------------------------------------------------------

    def put(self, policy: Policy) -> Policy:
        """Set or replace. Raises PolicyRefused, in one line that says what to change."""
        if not NAME.fullmatch(policy.name):
            raise PolicyRefused(
                f"a policy cannot be called {policy.name[:80]!r}",
                hint="a name has letters, digits, _ . - only, at most 63, a letter or digit first",
            )
        self._not_of_the_file(policy.name)
        service = self._services.get(policy.service)
        if service is None:
            raise NotFound(
                f"there is no service {policy.service!r}", hint=f"services are: {', '.join(sorted(self._services))}"
            )
        for key, text in policy_faults(policy, service):
            raise PolicyRefused(f"policy {policy.name}: {f'{key}: ' if key else ''}{text}", hint="see docs/policies.md")
        if policy.name not in self._set and len(self._set) >= POLICIES_MAX:
            raise PolicyRefused(f"there are {POLICIES_MAX} policies already", hint="remove some")
        self._store.put(policy)
        self._set[policy.name] = policy
        self._forget(policy.name)
        _log.info("policy set", policy=policy.name, service=policy.service, trigger=policy.trigger)
        return policy

    def remove(self, name: str) -> Policy:
        """Raises NotFound; PolicyRefused for one of the config file."""
        policy = self.policy(name)
        self._not_of_the_file(name)
        self._store.drop(name)
        del self._set[name]
        self._forget(name)
        _log.info("policy removed", policy=name, service=policy.service)
        return policy

    def enable(self, name: str, *, is_enabled: bool) -> Policy:
        """Switch on or off, also one of the config file; it stays so over restarts and reloads. Raises NotFound."""
        self.policy(name)
        self._stand(name, msgspec.structs.replace(self._standing(name), is_enabled=is_enabled))
        self._due.pop(name, None)
        _log.info("policy switched", policy=name, is_enabled=is_enabled)
        return self.policy(name)

    def _not_of_the_file(self, name: str) -> None:
        for service, config in self._services.items():
            if name in config.policy:
                raise PolicyRefused(
                    f"policy {name!r} stands in the config file",
                    hint=f"change [service.{service}.policy.{name}] there and reload; "
                    f"`turnout policy disable {name}` switches it off at once",
                )

    def _forget(self, name: str) -> None:
        self._standings.pop(name, None)
        self._due.pop(name, None)
        self._last.pop(name, None)

    def _standing(self, name: str) -> Standings:
        return self._standings.get(name, Standings())

    def _stand(self, name: str, standings: Standings) -> None:
        if self._standing(name) == standings:
            return
        self._standings[name] = standings
        self._keep(lambda: self._store.stand(name, standings), f"how policy {name} stands")

    def _keep(self, write: Callable[[], None], what: str) -> None:
        """What a policy does must not depend on whether it can be written down: the disk is full, say."""
        try:
            write()
        except sqlite3.Error as error:
            _log.error("the state file cannot be written", what=what, error=str(error))

    # --- judging ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Judge all policies now. At most one of each service fires."""
        by_service: dict[str, list[Policy]] = {}
        for policy in self.policies():
            if policy.service in self._services:
                by_service.setdefault(policy.service, []).append(policy)
            else:
                self._pass_over(policy)
        for service, policies in by_service.items():
            moment = self._moment(service)
            judged = choose((policy, judge(policy, moment, self._memory(policy, moment))) for policy in policies)
            for policy, judgement in judged:
                self._take(policy, judgement, moment)

    def _pass_over(self, policy: Policy) -> None:
        last = self._last.get(policy.name)
        if last is None or last.code is not Code.NO_SERVICE:
            text = f"did not fire because the config has no service {policy.service}"
            _log.warning("policy without a service", policy=policy.name, service=policy.service)
            self._decide(policy, Code.NO_SERVICE, text)

    def _moment(self, service: str) -> Moment:
        now, active = self._clock.wall(), self._switches.standing(service).active
        running = self._switches.running(service)
        # What is still to come was before the clock was set back: no cool-down and no cap gets longer by that.
        begun = self._begun[service] = [min(at, now) for at in self._begun.get(service, []) if at > now - HOUR_S]
        if service in self._ended:
            self._ended[service] = min(self._ended[service], now)
        return Moment(
            now=now,
            active=active,
            engines=self._services[service].engine,
            running=running.id if running is not None else "begins" if service in self._starting else None,
            last_ended=self._ended.get(service),
            is_answering=self._stream.is_answering((service, active)),
            begun_by_policies=len(begun),
            window=lambda span_s: self._stream.window((service, active), self._clock.now_ns(), span_s),
            slower_percent=lambda span_s, threshold_ms: self._stream.slower_percent(
                (service, active), self._clock.now_ns(), span_s, threshold_ms
            ),
        )

    def _memory(self, policy: Policy, moment: Moment) -> Standing:
        if policy.trigger != "scheduled":
            return Standing(is_resting=self._standing(policy.name).is_resting)
        due = self._due.get(policy.name)
        if (
            due is None
            or due.rule != (policy.cron_expression, policy.time_zone)
            or moment.now < due.looked_at - CLOCK_STEP_S
        ):
            due = self._plan(policy, moment.now)
        return Standing(due=due.at)

    def _plan(self, policy: Policy, now: float) -> _Due:
        rule = (policy.cron_expression, policy.time_zone)
        due = self._due[policy.name] = _Due(rule, now, next_time(*rule, now))
        return due

    def _take(self, policy: Policy, judgement: Judgement, moment: Moment) -> None:
        if judgement.fires and self._start is None:
            return
        last = self._last.get(policy.name)
        is_news = last is None or last.code is not judgement.code
        number = self._decide(policy, judgement.code, judgement.text) if is_news or judgement.fires else 0
        if policy.trigger == "scheduled" and is_dealt_with(judgement):
            self._plan(policy, moment.now)
        self._stand(policy.name, msgspec.structs.replace(self._standing(policy.name), is_resting=judgement.is_resting))
        if judgement.fires:
            self._starting.add(policy.service)
            spawn(self._fire(policy, judgement.text, number), name=f"policy {policy.name} fires")

    def _decide(self, policy: Policy, code: Code, text: str, switch: str = "") -> int:
        decision = Decision(
            at=self._clock.wall(), service=policy.service, policy=policy.name, code=code, text=text, switch=switch
        )
        self._last[policy.name] = decision
        self._publish(
            Event(
                kind="policy.decided",
                at=decision.at,
                service=policy.service,
                data={"policy": policy.name, "code": code.value, "text": text, "switch": switch},
            )
        )
        numbers: list[int] = []
        self._keep(lambda: numbers.append(self._store.add(decision)), f"policy {policy.name} {text}")
        return numbers[0] if numbers else 0

    # --- firing -------------------------------------------------------------------------------------------------------

    async def run(self, name: str, by: str) -> SwitchRecord:
        """Let a policy fire because `by` says so, whatever its trigger. Raises NotFound; PolicyRefused if it is disabled;
        and what the door says of the switch."""
        policy = self.policy(name)
        if not policy.enabled:
            raise PolicyRefused(f"policy {name!r} is disabled", hint=f"turnout policy enable {name}")
        if self._start is None:
            raise PolicyRefused("Turnout is just starting", hint="try again")
        text = f"fired because {by} said so"
        number = self._decide(policy, Code.FIRED, text)
        self._starting.add(policy.service)
        return await self._begin(policy, text, number)

    async def _fire(self, policy: Policy, text: str, number: int) -> None:
        _log.warning("policy fired", policy=policy.name, service=policy.service, why=text)
        try:
            await self._begin(policy, text, number)
        except ProxyError as error:
            _log.warning("the switch of a policy was refused", policy=policy.name, error=error.text)

    async def _begin(self, policy: Policy, text: str, number: int) -> SwitchRecord:
        assert self._start is not None
        service = policy.service
        self._begun.setdefault(service, []).append(self._clock.wall())
        plan = SwitchPlan(
            service=service,
            target=policy.target_engine,
            strategy=policy.strategy,
            requested_by=policy.requested_by,
            reason=text,
        )
        try:
            record = await self._start(plan)
        except ProxyError as error:
            self._ended[service] = self._clock.wall()
            hint = f"; {error.hint}" if error.hint else ""
            self._decide(policy, Code.REFUSED, f"the switch was refused: {error.text}{hint}")
            self._wake(policy)
            raise
        finally:
            self._starting.discard(service)
        if number:
            decision = Decision(
                at=record.began_at, service=service, policy=policy.name, code=Code.FIRED, text=text, switch=record.id
            )
            self._keep(lambda: self._store.replace(number, decision), f"policy {policy.name} {text}")
        self._fired[record.id] = policy.name
        if record.ended_at is not None:
            self._follow(record)
        return record

    def _wake(self, policy: Policy) -> None:
        """What it wanted did not come about; it may try again after the cool-down."""
        self._stand(policy.name, msgspec.structs.replace(self._standing(policy.name), is_resting=False))

    def hear(self, event: Event) -> None:
        """An event of the supervisor: switches that end start the cool-down, and a policy's is followed to its end."""
        if event.kind != "switch.ended":
            return
        self._ended[event.service] = event.at
        try:
            record = self._switches.record(str(event.data["id"]))
        except NotFound:
            _log.debug("a switch is forgotten already", switch=event.data["id"])
            return
        if record.strategy == FAILOVER:
            self._tell_of_failover(record)
        else:
            self._follow(record)

    def _tell_of_failover(self, record: SwitchRecord) -> None:
        """The policy that was asked who takes over gets its line in the history."""
        policy = self._chosen_after(record.service, record.source)
        if policy is None:
            return
        if policy.target_engine == record.target:
            code, text = Code.FIRED, f"fired because {record.source} failed: {record.target} took over"
        else:
            code, text = Code.PASSED_OVER, f"did not fire although {record.source} failed: {record.plan.reason}"
        if record.phase is not Phase.COMPLETED:
            text += f"; the failover ended as {record.phase.value.replace('_', ' ')}: {record.error}"
        self._decide(policy, code, text, record.id)

    def _follow(self, record: SwitchRecord) -> None:
        name = self._fired.pop(record.id, None)
        policy = next((policy for policy in self.policies() if policy.name == name), None)
        if policy is None:
            return
        if record.phase is Phase.COMPLETED:
            self._decide(policy, Code.SWITCHED, f"switch to {record.target} completed", record.id)
            return
        phase = record.phase.value.replace("_", " ")
        self._decide(policy, Code.UNDONE, f"switch to {record.target} {phase}: {record.error}", record.id)
        if record.phase is Phase.ABORTED:
            self._wake(policy)
