"""What can be watched, from figures and events that Turnout has anyway, and the rules it brings itself. Pure.

A rule's `when` is one of three kinds. A *figure* is a number that is above or below something, or not known. A *state* holds
or not. An *event* happens, and its alert then fires for a while, or until something makes up for it (`Happened.is_over`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, get_args

import msgspec

from proxy.config import ALERT_FIGURES, AlertEngineFigure, AlertLag, AlertRuleConfig, ServiceConfig
from proxy.control.alerts.model import Subject
from proxy.control.alerts.state import Sample
from proxy.engines.engine import Role
from proxy.switch.failover_run import FAILOVER
from proxy.switch.plan import SwitchRecord
from proxy.switch.state import Phase
from proxy.switch.views import EngineView, Event, ServiceView, WorkerView

DEFAULT_RULES: Final[Mapping[str, AlertRuleConfig]] = {
    "active_engine_down": AlertRuleConfig(when="engine_down", of="active", for_s=5, severity="critical"),
    "engine_down": AlertRuleConfig(when="engine_down", of="others", for_s=30, severity="warning"),
    "replication_broken": AlertRuleConfig(when="replication_broken", for_s=30, severity="warning"),
    "replication_lag": AlertRuleConfig(when="replication_lag_ms", above=30_000, for_s=60, severity="warning"),
    "former_primary_writes": AlertRuleConfig(when="former_primary_writes", for_s=5, severity="critical"),
    "service_takes_no_writes": AlertRuleConfig(when="service_takes_no_writes", for_s=15, severity="critical"),
    "error_rate": AlertRuleConfig(
        when="error_rate_percent", above=5, of="active", for_s=60, keep_firing_for_s=60, severity="warning"
    ),
    "worker_down": AlertRuleConfig(when="worker_down", for_s=10, severity="critical"),
    "switch_failed": AlertRuleConfig(when="switch_failed", severity="critical"),
    "switch_undone": AlertRuleConfig(when="switch_undone", severity="warning"),
    "failover": AlertRuleConfig(when="failover", severity="warning"),
    "failover_impossible": AlertRuleConfig(when="failover_impossible", severity="critical"),
    "automation_off": AlertRuleConfig(when="automation_off", for_s=5, severity="warning"),
    "data_differs": AlertRuleConfig(when="data_differs", severity="critical"),
}
"""Turnout's own rules. A rule of the config with the same name takes its place."""

REMEDIES: Final[Mapping[str, str]] = {
    "engine_down": "look at the server; `turnout engines` says what the last probe found",
    "replication_broken": "look at the standby's log; until it follows again it cannot take over",
    "replication_lag_ms": "look what holds the standby up; a switch to it has to wait for it",
    "replication_lag_bytes": "look what holds the standby up; a switch to it has to wait for it",
    "former_primary_writes": "end what writes there, or stop that server: it is not the service's primary any more",
    "service_takes_no_writes": "see who is the primary (`turnout engines`), and switch to it or promote one",
    "error_rate_percent": "look at the server's log",
    "response_time_ms": "look what the server does; `slow_query_ms` logs what takes long",
    "worker_down": "look at Turnout's log for why the process ended",
    "switch_failed": "read `turnout report ID`: a person is needed",
    "switch_undone": "read `turnout report ID`, mend what it names, and switch again",
    "failover": "bring the engine that failed back as a standby",
    "failover_impossible": "bring the engine back, or a standby that may take over",
    "automation_off": "`turnout failover on` lets another engine take over by itself again",
    "policy_refused": "see `turnout policy history`",
    "data_differs": "do not switch to that engine; `turnout datacheck` lists where it differs",
}
"""What to do about it, by `when`; nothing is said of the others."""


class ServiceSums(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers count of a service, together."""

    sessions: int
    sessions_held: int
    clients_waiting: int


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that rules look at, at one moment."""

    now: float
    config: Mapping[str, ServiceConfig]
    services: list[ServiceView]
    workers: list[WorkerView]
    sums: Mapping[str, ServiceSums] | None = None
    """Only if a rule asks for it (`needs_sums`), and the workers have answered."""


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """What an event means for rules of one `when`."""

    when: str
    subject: Subject
    text: str = ""
    is_over: bool = False
    """It makes up for what happened before."""


SUMS: Final = frozenset(ServiceSums.__struct_fields__)


def needs_sums(rule: AlertRuleConfig) -> bool:
    """It looks at what workers count, which they have to be asked for."""
    return rule.when in SUMS


# --- figures and states -------------------------------------------------------------------------------------------


def samples(rule: AlertRuleConfig, picture: Picture) -> Iterator[Sample]:
    """What the rule finds at everything it watches; nothing for a rule about an event."""
    for service in picture.services:
        if rule.services and service.name not in rule.services:
            continue
        if rule.when in _OF_SERVICES:
            yield _OF_SERVICES[rule.when](rule, service, picture)
        elif rule.when in _OF_ENGINES:
            yield from (_OF_ENGINES[rule.when](rule, service, engine) for engine in _engines(rule, service))
    if rule.when == "worker_down":
        for worker in picture.workers:
            text = f"worker {worker.index} is not there" if not worker.is_connected else ""
            yield Sample(subject=Subject(worker=str(worker.index)), holds=not worker.is_connected, text=text)


def _engines(rule: AlertRuleConfig, service: ServiceView) -> Iterator[EngineView]:
    for engine in service.engines:
        is_meant = rule.of == "all" or (rule.of == "active") == engine.is_active
        if is_meant and (not rule.engines or engine.name in rule.engines):
            yield engine


def _measured(rule: AlertRuleConfig, subject: Subject, value: float | None) -> Sample:
    """A figure beside its limit."""
    if value is None:
        return Sample(subject=subject, holds=None)
    holds, limit = False, ""
    if rule.above is not None and value > rule.above:
        holds, limit = True, f"above {rule.above:g}"
    if rule.below is not None and value < rule.below:
        holds, limit = True, f"below {rule.below:g}"
    text = f"{rule.when} of {subject} is {value:,.6g}, {limit}" if holds else ""
    return Sample(subject=subject, holds=holds, text=text, value=value)


def _figure(rule: AlertRuleConfig, service: ServiceView, engine: EngineView) -> Sample:
    value = getattr(engine.figures, rule.when) if engine.figures is not None else None
    return _measured(rule, Subject(service=service.name, engine=engine.name), value)


def _lag(rule: AlertRuleConfig, service: ServiceView, engine: EngineView) -> Sample:
    subject, state = Subject(service=service.name, engine=engine.name), engine.state
    if state is None or not state.is_reachable:
        return _measured(rule, subject, None)
    if engine.is_active or state.role is Role.PRIMARY:
        # It follows nobody: what lag it had is over.
        return Sample(subject=subject, holds=False)
    return _measured(rule, subject, state.lag_ms if rule.when == "replication_lag_ms" else state.lag_bytes)


def _engine_down(_rule: AlertRuleConfig, service: ServiceView, engine: EngineView) -> Sample:
    subject, state = Subject(service=service.name, engine=engine.name), engine.state
    if state is None:
        return Sample(subject=subject, holds=None)
    text = f"{engine.name} of {service.name} does not answer: {state.why}"
    return Sample(subject=subject, holds=not state.is_reachable, text=text)


def _replication_broken(_rule: AlertRuleConfig, service: ServiceView, engine: EngineView) -> Sample:
    subject, state = Subject(service=service.name, engine=engine.name), engine.state
    if state is None or not state.is_reachable or service.running is not None:
        return Sample(subject=subject, holds=None)
    holds = state.role is Role.STANDBY and not state.is_replicating
    why = f": {state.replication_error}" if state.replication_error else ""
    return Sample(subject=subject, holds=holds, text=f"{engine.name} of {service.name} follows nobody{why}")


def _former_primary_writes(_rule: AlertRuleConfig, service: ServiceView, engine: EngineView) -> Sample:
    subject, state = Subject(service=service.name, engine=engine.name), engine.state
    if engine.deposed is None:
        return Sample(subject=subject, holds=False)
    if state is None or not state.is_reachable:
        return Sample(subject=subject, holds=None)
    text = f"{engine.name} of {service.name}, which a failover left, takes writes"
    return Sample(subject=subject, holds=state.is_writable, text=text)


def _takes_no_writes(_rule: AlertRuleConfig, service: ServiceView, _picture: Picture) -> Sample:
    subject = Subject(service=service.name)
    state = next((engine.state for engine in service.engines if engine.is_active), None)
    if state is None or not state.is_reachable or service.running is not None:
        return Sample(subject=subject, holds=None)
    text = f"{service.active}, which serves {service.name}, takes no writes"
    return Sample(subject=subject, holds=not state.is_writable, text=text)


def _automation_off(_rule: AlertRuleConfig, service: ServiceView, picture: Picture) -> Sample:
    subject, view = Subject(service=service.name), service.failover
    config = picture.config.get(service.name)
    is_wanted = config is not None and config.failover.automatic
    holds = is_wanted and view is not None and not view.is_automatic
    why = view.why_not if view is not None else ""
    return Sample(subject=subject, holds=holds, text=f"no engine of {service.name} takes over by itself: {why}")


def _sum(rule: AlertRuleConfig, service: ServiceView, picture: Picture) -> Sample:
    found = picture.sums.get(service.name) if picture.sums is not None else None
    return _measured(rule, Subject(service=service.name), getattr(found, rule.when) if found is not None else None)


def _running_switch(rule: AlertRuleConfig, service: ServiceView, picture: Picture) -> Sample:
    value = picture.now - service.running.began_at if service.running is not None else 0.0
    return _measured(rule, Subject(service=service.name), round(value, 1))


_OF_ENGINES: Final[Mapping[str, Callable[[AlertRuleConfig, ServiceView, EngineView], Sample]]] = {
    **dict.fromkeys(get_args(AlertEngineFigure), _figure),
    **dict.fromkeys(get_args(AlertLag), _lag),
    "engine_down": _engine_down,
    "replication_broken": _replication_broken,
    "former_primary_writes": _former_primary_writes,
}

_OF_SERVICES: Final[Mapping[str, Callable[[AlertRuleConfig, ServiceView, Picture], Sample]]] = {
    **dict.fromkeys(SUMS, _sum),
    "running_switch_s": _running_switch,
    "service_takes_no_writes": _takes_no_writes,
    "automation_off": _automation_off,
}

assert set(_OF_ENGINES) | set(_OF_SERVICES) >= ALERT_FIGURES


# --- events -------------------------------------------------------------------------------------------------------


def happened(event: Event, record_of: Callable[[str], SwitchRecord]) -> Iterator[Happened]:
    """What an event of the supervisor means. `record_of` gives the record of a switch by its id."""
    subject, data = Subject(service=event.service), event.data
    match event.kind:
        case "switch.ended":
            yield from _switch_ended(subject, record_of(str(data["id"])))
        case "failover.impossible":
            text = f"nobody takes over from {data['engine']} of {event.service}: {data['why']}"
            yield Happened(when="failover_impossible", subject=subject, text=text)
        case "engine.health" if data["health"] == "answering":
            yield Happened(when="failover_impossible", subject=subject, is_over=True)
        case "policy.decided" if data["code"] == "refused":
            text = f"policy {data['policy']} of {event.service}: {data['text']}"
            yield Happened(when="policy_refused", subject=subject, text=text)
        case "policy.decided" if data["code"] == "switched":
            yield Happened(when="policy_refused", subject=subject, is_over=True)
        case "datacheck.ended":
            is_different = data["state"] == "different"
            of = Subject(service=event.service, engine=str(data["target"]))
            text = f"{data['target']} of {event.service} has other rows than {data['source']} (data check {data['id']})"
            if is_different or data["state"] == "equal":
                yield Happened(
                    when="data_differs", subject=of, text=text if is_different else "", is_over=not is_different
                )
        case _:
            return


def _switch_ended(subject: Subject, record: SwitchRecord) -> Iterator[Happened]:
    what = f"switch {record.id} of {record.service} from {record.source} to {record.target}"
    match record.phase:
        case Phase.COMPLETED:
            for when in ("switch_failed", "switch_undone", "failover_impossible"):
                yield Happened(when=when, subject=subject, is_over=True)
            if record.strategy == FAILOVER:
                text = f"{record.target} took over from {record.source} in {record.service}: {record.plan.reason}"
                yield Happened(when="failover", subject=subject, text=text)
        case Phase.FAILED:
            yield Happened(when="switch_failed", subject=subject, text=f"{what} failed: {record.error}")
        case Phase.ABORTED | Phase.ROLLED_BACK if record.was_tried:
            how = "was rolled back" if record.phase is Phase.ROLLED_BACK else "was undone"
            yield Happened(when="switch_undone", subject=subject, text=f"{what} {how}: {record.error}")
        case _:
            return
