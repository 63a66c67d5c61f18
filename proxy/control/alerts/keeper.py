"""The alerts of a running Turnout: looked at each second, kept, and told. The shell around `state` and `watched`; the one
place where alerts are judged."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec
import structlog

from proxy import ipc
from proxy.clock import Clock, SystemClock
from proxy.config import ALERT_EVENTS, AlertRuleConfig, Config
from proxy.control.alerts.model import (
    Alert,
    AlertKey,
    AlertView,
    Delivery,
    ReceiverView,
    RuleView,
    Silence,
    State,
    Subject,
)
from proxy.control.alerts.post import Post, pause_s
from proxy.control.alerts.state import Sample, due, step
from proxy.control.alerts.store import AlertStore
from proxy.control.alerts.watched import (
    DEFAULT_RULES,
    REMEDIES,
    Happened,
    Picture,
    ServiceSums,
    happened,
    needs_sums,
    samples,
)
from proxy.errors import Conflict, NotFound
from proxy.switch.plan import SwitchRecord
from proxy.switch.views import Event, ServiceView, WorkerView
from proxy.tasks import again, cancel_and_wait, spawn

_log = structlog.get_logger("turnout.alerts")

LOOK_INTERVAL_S: Final = 1.0
"""Between two looks at all rules; as often as the figures are taken."""

RESOLVED_SHOWN_S: Final = 86_400.0
"""How long an alert that is over is shown."""

RESOLVED_SHOWN_MAX: Final = 200
"""Most of them."""

SILENCES_MAX: Final = 100

_ORDER: Final = (State.INACTIVE, State.RESOLVED, State.PENDING, State.FIRING)
"""From the best to the worst."""


class Source(Protocol):
    """What alerts have to know of the supervisor."""

    config: Config

    @property
    def database(self) -> sqlite3.Connection: ...
    def services(self) -> list[ServiceView]: ...
    def workers(self) -> list[WorkerView]: ...
    async def figures(self) -> list[ipc.WorkerFigures]: ...
    def switch(self, switch_id: str) -> SwitchRecord: ...
    def publish(self, event: Event) -> None: ...
    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]: ...


class Alerts:
    """See the module. Lives in the supervisor's loop; does nothing before `start`."""

    def __init__(self, source: Source, clock: Clock | None = None, *, pause: Callable[[int], float] = pause_s) -> None:
        """`pause`: between two tries to deliver a message, in seconds."""
        self._source = source
        self._clock = clock or SystemClock()
        self._store = AlertStore(source.database)
        self._post = Post(self._store, self._clock, self._publish, pause)
        self._rules: dict[str, AlertRuleConfig] = {}
        self._alerts: dict[AlertKey, Alert] = {}
        self._news: dict[AlertKey, Happened] = {}
        """The newest of each since the last look."""
        self._silences: list[Silence] = []
        self._task: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """From now on rules are looked at, beginning where an earlier supervisor stopped."""
        self.take_up()
        self._task = spawn(again(self._look, LOOK_INTERVAL_S), name="alerts", stays=True)

    def take_up(self) -> None:
        """What an earlier supervisor left; in `start`."""
        self._alerts = {alert.key: alert for alert in self._store.alerts()}
        self._silences = self._store.silences(self._clock.wall())
        self._take_rules()
        self._post.start(self._source.config.alerts.receiver)
        self._source.subscribe(self._hear)

    async def stop(self) -> None:
        """End; what fires fires on with the next supervisor."""
        await cancel_and_wait(self._task)
        await self._post.stop()

    async def _look(self) -> None:
        self.look(await self._sums())

    def _take_rules(self) -> None:
        config = self._source.config.alerts
        rules = {**(DEFAULT_RULES if config.defaults else {}), **config.rule}
        self._rules = {name: rule for name, rule in rules.items() if rule.enabled}

    async def _sums(self) -> dict[str, ServiceSums] | None:
        """What workers count, if a rule wants to know; they are asked for it."""
        if not any(needs_sums(rule) for rule in self._rules.values()):
            return None
        found: dict[str, list[int]] = {name: [0, 0, 0] for name in self._source.config.service}
        for worker in await self._source.figures():
            for figures in worker.services:
                counts = found.setdefault(figures.service, [0, 0, 0])
                counts[0] += figures.sessions
                counts[1] += figures.held
                counts[2] += sum(pool.waiting for pool in figures.pools)
        return {
            name: ServiceSums(sessions=counts[0], sessions_held=counts[1], clients_waiting=counts[2])
            for name, counts in found.items()
        }

    def _publish(self, event: Event) -> None:
        self._source.publish(event)

    # --- judging ------------------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        """An event of the supervisor; it is judged with the next look."""
        if event.kind == "config.reloaded":
            self._take_rules()
            self._post.reconfigure(self._source.config.alerts.receiver)
            return
        try:
            for one in happened(event, self._source.switch):
                for name, rule in self._rules.items():
                    if rule.when == one.when and (not rule.services or one.subject.service in rule.services):
                        self._news[name, one.subject] = one
        except NotFound:
            _log.debug("a switch is forgotten already", switch=event.data.get("id"))

    def look(self, sums: dict[str, ServiceSums] | None = None) -> None:
        """Judge all rules now, and post what receivers have to be told."""
        now = self._clock.wall()
        picture = Picture(
            now=now,
            config=self._source.config.service,
            services=self._source.services(),
            workers=self._source.workers(),
            sums=sums,
        )
        seen: dict[AlertKey, Sample] = {}
        for name, rule in self._rules.items():
            seen |= {(name, sample.subject): sample for sample in samples(rule, picture)}
        seen |= self._of_events()
        for key in sorted(seen.keys() | self._alerts.keys()):
            self._judge(key, seen.get(key), now)
        self._forget(now)

    def _of_events(self) -> dict[AlertKey, Sample]:
        """What happened since the last look, and nothing for the alerts of earlier events."""
        seen = {
            key: Sample(subject=key[1], holds=False)
            for key in self._alerts
            if key[0] in self._rules and self._rules[key[0]].when in ALERT_EVENTS
        }
        for key, one in self._news.items():
            if key[0] in self._rules:
                seen[key] = Sample(subject=one.subject, holds=not one.is_over, text=one.text, is_over=one.is_over)
        self._news.clear()
        return seen

    def _judge(self, key: AlertKey, sample: Sample | None, now: float) -> None:
        before = self._alerts.get(key)
        rule = self._rules.get(key[0])
        if before is None:
            if rule is None or sample is None or not sample.holds:
                return
            before = Alert(name=key[0], subject=key[1], severity=rule.severity, remedy=REMEDIES.get(rule.when, ""))
        alert = step(before, rule, sample, now)
        if alert.state is not before.state:
            self._tell(alert)
        alert = self._notify(alert, rule, now)
        self._keep(before, alert)

    def _tell(self, alert: Alert) -> None:
        """The log and those who follow events."""
        if alert.state not in (State.FIRING, State.RESOLVED):
            return
        is_firing = alert.state is State.FIRING
        about = {"alert": alert.name, "severity": alert.severity, "text": alert.text}
        subject = {name: value for name, value in msgspec.structs.asdict(alert.subject).items() if value}
        log = _log.warning if is_firing else _log.info
        log("alert fires" if is_firing else "alert is over", **about, **subject)
        self._source.publish(
            Event(
                kind="alert.firing" if is_firing else "alert.resolved",
                at=alert.fired_at if is_firing else alert.resolved_at,
                service=alert.subject.service,
                data={**about, **subject},
            )
        )

    def _notify(self, alert: Alert, rule: AlertRuleConfig | None, now: float) -> Alert:
        config = self._source.config.alerts
        what = due(alert, now, config.repeat_interval_s, is_silenced=self._silence_of(alert, now) is not None)
        if what is None:
            return alert
        wanted = rule.receivers if rule is not None and rule.receivers else list(config.receiver)
        for name in wanted:
            receiver = config.receiver.get(name)
            if receiver is None or (receiver.severities and alert.severity not in receiver.severities):
                continue
            if what == "resolved" and not receiver.send_resolved:
                continue
            self._post.send(name, what, alert)
        return msgspec.structs.replace(alert, told=what, told_at=now)

    def _keep(self, before: Alert, alert: Alert) -> None:
        is_worth = alert.state in (State.FIRING, State.RESOLVED) or alert.told == "firing"
        if is_worth or alert.state is State.PENDING:
            self._alerts[alert.key] = alert
        else:
            self._alerts.pop(alert.key, None)
        if (before.state, before.told, before.told_at) == (alert.state, alert.told, alert.told_at):
            return
        self._write(lambda: self._store.save(alert) if is_worth else self._store.drop(alert.key), alert)

    def _write(self, write: Callable[[], None], alert: Alert) -> None:
        """What fires must not depend on whether it can be written down."""
        try:
            write()
        except sqlite3.Error as error:
            _log.error("the state file cannot be written", what=f"alert {alert.name}", error=str(error))

    def _forget(self, now: float) -> None:
        """Alerts that have been over for long."""
        over = [alert for alert in self._alerts.values() if alert.state is State.RESOLVED and alert.told != "firing"]
        over.sort(key=lambda alert: alert.resolved_at, reverse=True)
        for index, alert in enumerate(over):
            if index >= RESOLVED_SHOWN_MAX or now - alert.resolved_at > RESOLVED_SHOWN_S:
                del self._alerts[alert.key]
                self._write(partial(self._store.drop, alert.key), alert)

    def _silence_of(self, alert: Alert, now: float) -> Silence | None:
        return next((one for one in self._silences if one.fits(alert, now)), None)

    # --- looking ------------------------------------------------------------------------------------------------------

    def views(self) -> list[AlertView]:
        """Alerts that are pending, fire, or were over within a day; the worst first, then the newest."""
        now = self._clock.wall()
        shown = [alert for alert in self._alerts.values() if alert.state is not State.INACTIVE]
        shown.sort(key=lambda alert: (-_ORDER.index(alert.state), -max(alert.since, alert.resolved_at), alert.key))
        return [
            AlertView(
                **msgspec.structs.asdict(alert),
                silenced_by=found.number if (found := self._silence_of(alert, now)) is not None else None,
            )
            for alert in shown
        ]

    def rules(self) -> list[RuleView]:
        """Every rule, by name; those that are not enabled, too."""
        config = self._source.config.alerts
        rules = {**(DEFAULT_RULES if config.defaults else {}), **config.rule}
        states: dict[str, State] = {}
        for alert in self._alerts.values():
            states[alert.name] = max(states.get(alert.name, State.INACTIVE), alert.state, key=_ORDER.index)
        return [
            RuleView(
                name=name,
                origin="config" if name in config.rule else "default",
                state=states.get(name, State.INACTIVE),
                **msgspec.structs.asdict(rule),
            )
            for name, rule in sorted(rules.items())
        ]

    def receivers(self) -> list[ReceiverView]:
        """Every receiver, by name."""
        return self._post.views()

    def deliveries(self, limit: int) -> list[Delivery]:
        """Newest first. Raises sqlite3.Error."""
        return self._store.deliveries(limit)

    def silences(self) -> list[Silence]:
        """Those that are in force."""
        now = self._clock.wall()
        self._silences = [one for one in self._silences if one.until > now]
        return list(self._silences)

    # --- doing --------------------------------------------------------------------------------------------------------

    async def test(self, receiver: str, by: str) -> Delivery:
        """Send a test message; returns what became of it. Raises NotFound."""
        now = self._clock.wall()
        known = [one.name for one in self._post.views()]
        if receiver not in known:
            there = f"receivers are: {', '.join(known)}" if known else "the config names none: see docs/alerts.md"
            raise NotFound(f"there is no receiver {receiver!r}", hint=there)
        alert = Alert(
            name="test",
            subject=Subject(),
            severity="info",
            state=State.FIRING,
            text=f"{by} tests whether alerts reach the receiver {receiver}",
            since=now,
            held_at=now,
            fired_at=now,
        )
        return await self._post.test(receiver, alert)

    def silence(self, silence: Silence) -> Silence:
        """Keep messages back until `silence.until`. Raises NotFound: no such rule or service; Conflict; sqlite3.Error."""
        rules = {rule.name for rule in self.rules()}
        services = self._source.config.service
        for what, name, known in (("alert", silence.alert, rules), ("service", silence.service, set(services))):
            if name and name not in known:
                raise NotFound(f"there is no {what} {name!r}", hint=f"there are: {', '.join(sorted(known))}")
        if silence.engine and not any(silence.engine in service.engine for service in services.values()):
            raise NotFound(f"there is no engine {silence.engine!r}", hint="`turnout engines` lists them")
        if len(self.silences()) >= SILENCES_MAX:
            raise Conflict(f"there are {SILENCES_MAX} silences already", hint="end some")
        kept = self._store.silence(silence)
        self._silences.append(kept)
        return kept

    def unsilence(self, number: int) -> Silence:
        """End a silence before its time. Raises NotFound, sqlite3.Error."""
        for silence in self.silences():
            if silence.number == number:
                self._store.unsilence(number)
                self._silences.remove(silence)
                return silence
        raise NotFound(f"there is no silence {number}", hint="`turnout alert silences` lists them")
