"""Whether policies fire: one place, pure. Told the moment and what is known, it answers with a judgement of each policy.

Theory of operation
-------------------
A trigger that watches figures looks at the engine that serves, over the last `window_duration` seconds as a whole. It is
met if the figure is above its threshold, and if there was enough to judge by: the engine was watched for the whole window,
with `min_evidence` requests in it. An engine that does not answer is no slow one: that is for the failover. The brakes come then, in the order of `_braked`: the policy rests (hysteresis), a switch
runs, the service cools down, policies have moved it often enough within the hour. What is left may fire; of several the one
with the highest priority does (`choose`).

A policy rests from its firing until the figure of whoever serves has been below `threshold - hysteresis` for a whole window.
So it does not fire twice for one cause: not when the switch was rolled back, nor when the cause moved along to the target.
A switch that was refused or undone before the cutover ends the rest at once: it is tried again after the cool-down.

A schedule has none of these brakes but the cap and the switch that runs: an operator has said when.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

import msgspec

from proxy.engines.figures import Window
from proxy.policy.model import Code, Judgement, Policy
from proxy.policy.schedule import GRACE_S

SLOW_SHARE_PERCENT: Final = 10.0
"""At least so many of the requests must be slower than the threshold: the mean alone is moved by a few long ones."""

COVERED_SHARE: Final = 0.9
"""So much of a window must have been watched."""

HOUR_S: Final = 3_600.0


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one service."""

    now: float
    """Seconds since 1970."""
    active: str
    """Engine that serves."""
    engines: Collection[str]
    """All that the service has."""
    running: str | None
    """Id of the switch that runs."""
    last_ended: float | None
    """When the last switch of the service ended, by whomever it was asked for; seconds since 1970."""
    is_answering: bool
    """The engine that serves has answered the last probe."""
    begun_by_policies: int
    """Switches of the service that policies began within the last hour."""
    window: Callable[[int], Window]
    """The last so many seconds of the active engine."""
    slower_percent: Callable[[int, float], float]
    """Share of the requests of these seconds that took longer than so many milliseconds."""


class Standing(msgspec.Struct, frozen=True):
    """What is remembered of one policy between two moments."""

    is_resting: bool = False
    due: float | None = None
    """Of a schedule: the next time, or one that has come and was not dealt with; seconds since 1970."""


def judge(policy: Policy, moment: Moment, standing: Standing) -> Judgement:
    """One policy for itself. Whether another one goes before it, `choose` knows."""
    if not policy.enabled:
        return _no(policy, Code.DISABLED, "it is disabled", standing)
    if policy.target_engine not in moment.engines:
        return _no(policy, Code.NO_ENGINE, f"service {policy.service} has no engine {policy.target_engine}", standing)
    match policy.trigger:
        case "performance_degradation" | "error_rate" | "load_threshold":
            return _watch(policy, moment, standing)
        case "scheduled":
            return _keep_time(policy, moment, standing)
        case "failure":
            return _no(policy, Code.WAITS, f"{moment.active} has not failed", standing)
        case "manual":
            return _no(policy, Code.WAITS, "it waits for an operator", standing)


def choose(judged: Iterable[tuple[Policy, Judgement]]) -> list[tuple[Policy, Judgement]]:
    """At most one of a service fires: the one of the highest priority, of equals the first by name."""
    judged = list(judged)
    firing = [policy for policy, judgement in judged if judgement.fires]
    if len(firing) < 2:
        return judged
    first = min(firing, key=lambda policy: (-policy.priority, policy.name))
    text = f"did not fire because policy {first.name} with priority {first.priority} goes before it"
    return [
        (policy, msgspec.structs.replace(judgement, code=Code.LOWER_PRIORITY, text=text, is_resting=False))
        if judgement.fires and policy is not first
        else (policy, judgement)
        for policy, judgement in judged
    ]


def choose_after_failure(policies: Iterable[Policy], failed: str) -> Policy | None:
    """Who says which engine takes over from `failed`: the enabled policy with the trigger `failure` of the highest
    priority that names another one."""
    fitting = [
        policy
        for policy in policies
        if policy.enabled and policy.trigger == "failure" and policy.target_engine != failed
    ]
    return min(fitting, key=lambda policy: (-policy.priority, policy.name), default=None)


# --- triggers that watch figures ----------------------------------------------------------------------------------


class _Reading(msgspec.Struct, frozen=True):
    """One figure beside its threshold."""

    figure: float | None
    threshold: float
    what: str
    """`the mean response time of blue was 12.3 ms over 60 s (4,301 requests)`."""
    unit: str
    lacks: str = ""
    """Why it may not be judged by, although it is above."""

    def is_above(self) -> bool:
        return self.figure is not None and self.figure > self.threshold and not self.lacks

    def is_well_below(self, hysteresis: float) -> bool:
        return self.figure is not None and self.figure < self.threshold * (1 - hysteresis / 100)


def _watch(policy: Policy, moment: Moment, standing: Standing) -> Judgement:
    window = moment.window(policy.window_duration)
    over = f"over {policy.window_duration} s"
    if window.covered_s < COVERED_SHARE * policy.window_duration:
        why = f"{moment.active} has been watched for {window.covered_s:.0f} s of {policy.window_duration}"
        return _no(policy, Code.TOO_LITTLE_EVIDENCE, why, standing)
    is_by_requests = policy.trigger != "load_threshold"
    if is_by_requests and window.requests < policy.min_evidence:
        why = f"{moment.active} had {window.requests:,} requests {over}, and {policy.min_evidence:,} are needed"
        return _no(policy, Code.TOO_LITTLE_EVIDENCE, why, standing)
    readings = list(_read(policy, moment, window, over))
    if all(one.figure is None for one in readings):
        why = f"{' and '.join(one.what for one in readings)} {'are' if len(readings) > 1 else 'is'} not known"
        return _no(policy, Code.UNKNOWN, why, standing)
    if all(one.figure is None or one.is_well_below(policy.hysteresis) for one in readings):
        standing = msgspec.structs.replace(standing, is_resting=False)
    if moment.active == policy.target_engine:
        return _no(policy, Code.TARGET_SERVES, f"{policy.target_engine} serves already", standing)
    if not moment.is_answering:
        return _no(policy, Code.ENGINE_FAILED, f"{moment.active} does not answer, which is for the failover", standing)
    above = next((one for one in readings if one.is_above()), None)
    if above is None:
        return _no(policy, Code.NOT_ABOVE, "; ".join(map(_spell_not_above, readings)), standing)
    cause = f"{above.what}, above {above.threshold:g} {above.unit}"
    braked = _braked(policy, moment, standing, cause)
    if braked is not None:
        return braked
    return Judgement(policy=policy.name, code=Code.FIRED, text=f"fired because {cause}", is_resting=True)


def _spell_not_above(reading: _Reading) -> str:
    if reading.figure is None:
        return f"{reading.what} is not known"
    return f"{reading.what}, {reading.lacks or f'not above {reading.threshold:g} {reading.unit}'}"


def _read(policy: Policy, moment: Moment, window: Window, over: str) -> Iterable[_Reading]:
    engine = moment.active
    match policy.trigger:
        case "performance_degradation":
            figure, threshold = window.response_time_ms, policy.response_time_threshold_ms
            what, lacks = f"the mean response time of {engine}", ""
            if figure is not None:
                what += f" was {figure:.1f} ms {over} ({window.requests:,} requests"
                if figure > threshold:
                    slower = moment.slower_percent(policy.window_duration, threshold)
                    what += f", {slower:.0f} % slower than {threshold:g} ms"
                    if slower < SLOW_SHARE_PERCENT:
                        lacks = f"but less than {SLOW_SHARE_PERCENT:g} % of them were slower than {threshold:g} ms"
                what += ")"
            yield _Reading(figure, threshold, what, "ms", lacks)
        case "error_rate":
            figure = window.error_rate_percent
            what = f"the error rate of {engine}"
            if figure is not None:
                what += f" was {figure:.2f} % {over} ({window.server_errors:,} of {window.requests:,} requests)"
            yield _Reading(figure, policy.error_rate_threshold, what, "%")
        case _:
            for name, figure, threshold, unit in (
                ("cpu_usage_percent", window.cpu_percent, policy.cpu_threshold, "%"),
                ("memory_usage_percent", window.memory_percent, policy.memory_threshold, "%"),
                ("active_connections", window.connections, policy.connection_threshold, "connections"),
            ):
                if threshold:
                    what = f"{name} of {engine}"
                    if figure is not None:
                        what += f" was {figure:.1f} {over}"
                    yield _Reading(figure, threshold, what, unit)


def _braked(policy: Policy, moment: Moment, standing: Standing, cause: str) -> Judgement | None:
    """Why it does not fire although its cause is there; None: it may."""
    if standing.is_resting:
        why = f"it has fired, and the figure has not been {policy.hysteresis:g} % below the threshold since"
        return _no(policy, Code.RESTS, f"{why} ({cause})", standing)
    if moment.running is not None:
        return _no(policy, Code.SWITCH_RUNS, f"switch {moment.running} runs ({cause})", standing)
    since = moment.now - moment.last_ended if moment.last_ended is not None else None
    if since is not None and since < policy.cool_down:
        why = f"the last switch ended {max(since, 0):.0f} s ago, and the cool-down is {policy.cool_down} s"
        return _no(policy, Code.COOLS_DOWN, f"{why} ({cause})", standing)
    return _capped(policy, moment, standing, cause)


def _capped(policy: Policy, moment: Moment, standing: Standing, cause: str) -> Judgement | None:
    if moment.begun_by_policies < policy.max_switches_per_hour:
        return None
    why = f"policies have begun {moment.begun_by_policies} switches within an hour"
    return _no(policy, Code.CAPPED, f"{why}, and {policy.max_switches_per_hour} are allowed ({cause})", standing)


# --- schedules ----------------------------------------------------------------------------------------------------


def _keep_time(policy: Policy, moment: Moment, standing: Standing) -> Judgement:
    due = standing.due
    if due is None or due > moment.now:
        return _no(policy, Code.WAITS, "its time has not come", standing)
    cause = f"its time has come ({policy.cron_expression} {policy.time_zone})"
    if moment.active == policy.target_engine:
        return _no(policy, Code.TARGET_SERVES, f"{policy.target_engine} serves already, when its time came", standing)
    if moment.now - due > GRACE_S:
        why = f"{moment.now - due:.0f} s have passed since its time, more than {GRACE_S:g}"
        return _no(policy, Code.MISSED, why, standing)
    if moment.running is not None:
        return _no(policy, Code.SWITCH_RUNS, f"switch {moment.running} runs; it is tried for {GRACE_S:g} s", standing)
    return _capped(policy, moment, standing, cause) or Judgement(
        policy=policy.name, code=Code.FIRED, text=f"fired because {cause}"
    )


def is_dealt_with(judgement: Judgement) -> bool:
    """The time of a schedule that had come is over, one way or the other; see `Standing.due`."""
    return judgement.code in (Code.FIRED, Code.TARGET_SERVES, Code.MISSED, Code.CAPPED)


def _no(policy: Policy, code: Code, why: str, standing: Standing) -> Judgement:
    return Judgement(policy=policy.name, code=code, text=f"did not fire because {why}", is_resting=standing.is_resting)
