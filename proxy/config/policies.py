"""The table of a policy, and what cannot be about one."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cronsim import CronSim, CronSimError
from msgspec import Meta

from proxy.config.table import Table

if TYPE_CHECKING:
    from proxy.config.service import ServiceConfig

StrategyName = Literal["graceful", "immediate", "rolling", "canary"]


class PolicyConfig(Table, frozen=True, kw_only=True):
    """When Turnout switches by itself, and to which engine. Its name is the key, and no other policy of any service has
    it. See docs/policies.md. Policies can be set by command, too; those that stand in the file are changed there."""

    trigger: Literal["performance_degradation", "load_threshold", "error_rate", "failure", "manual", "scheduled"]
    """What makes it fire; the figures are those of the engine that serves. `performance_degradation`: requests take longer
    than `response_time_threshold_ms`. `load_threshold`: processor, memory or connections are above their thresholds.
    `error_rate`: more requests than `error_rate_threshold` end with an error that is not the client's own. `failure`: the
    engine has failed; the policy says who is to take over. `manual`: when an operator says so. `scheduled`: by
    `cron_expression`."""
    target_engine: str
    """Engine to go to."""
    strategy: StrategyName = "graceful"
    """How, as in `turnout switch --strategy`."""
    priority: Annotated[int, Meta(ge=0, le=255)] = 100
    """Of several that could fire at once the one with the highest number does; of equals the first by name."""
    enabled: bool = True
    """False: it is kept, and never fires."""
    window_duration: Annotated[int, Meta(ge=1, le=900)] = 60
    """The last so many seconds are looked at as a whole."""
    response_time_threshold_ms: Annotated[float, Meta(ge=0, le=3_600_000)] = 0.0
    """With `performance_degradation`: mean time from request to the end of its answer, in milliseconds, as Turnout sees it;
    a tenth of the requests must be slower, too, so that a few long ones are not mistaken for a slow engine."""
    error_rate_threshold: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """With `error_rate`: share of requests that ended with an error of the server, in percent."""
    cpu_threshold: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """With `load_threshold`: mean of `cpu_usage_percent`; 0: not looked at."""
    memory_threshold: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """With `load_threshold`: mean of `memory_usage_percent`; 0: not looked at."""
    connection_threshold: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """With `load_threshold`: mean of `active_connections`; 0: not looked at."""
    cron_expression: str = ""
    """With `scheduled`: minute, hour, day of month, month, day of week as in Debian's cron: `30 2 * * SUN`."""
    time_zone: str = "UTC"
    """With `scheduled`: zone of these times, by its name: `Europe/Berlin`."""
    cool_down: Annotated[int, Meta(ge=0, le=604_800)] = 300
    """Triggers that watch figures do not fire for so many seconds after any switch of the service, by whomever."""
    hysteresis: Annotated[float, Meta(ge=0, le=100)] = 10.0
    """Percent of the threshold. One that has fired fires again only after the figure has been so far below the threshold
    over a whole window."""
    max_switches_per_hour: Annotated[int, Meta(ge=1, le=3_600)] = 4
    """It does not fire once policies have begun so many switches of the service within an hour."""
    min_evidence: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    """Least number of requests in the window that time and errors are judged by."""


CRON_CHARS_MAX: Final = 200
"""No schedule that a person can read is longer."""


def policy_faults(policy: PolicyConfig, service: ServiceConfig) -> Iterator[tuple[str, str]]:
    """What cannot be about a policy of this service: the key, or nothing, and a line that says what to change."""
    if policy.target_engine not in service.engine:
        names = ", ".join(service.engine)
        yield "target_engine", f'no engine of this service is called "{policy.target_engine}"; there are: {names}'
    match policy.trigger:
        case "performance_degradation" if not policy.response_time_threshold_ms:
            yield "response_time_threshold_ms", "is missing; the trigger needs a time above 0 milliseconds"
        case "error_rate" if not policy.error_rate_threshold:
            yield "error_rate_threshold", "is missing; the trigger needs a share above 0 percent"
        case "load_threshold" if not (policy.cpu_threshold or policy.memory_threshold or policy.connection_threshold):
            yield "", "the trigger needs cpu_threshold, memory_threshold or connection_threshold"
        case "scheduled":
            yield from _schedule_faults(policy)
        case _:
            return


def _schedule_faults(policy: PolicyConfig) -> Iterator[tuple[str, str]]:
    expression = policy.cron_expression
    if len(expression) > CRON_CHARS_MAX or len(expression.split()) != 5:
        yield "cron_expression", "expected five fields: minute, hour, day of month, month, day of week"
    else:
        try:
            next(CronSim(expression, datetime.now(UTC)))
        except CronSimError as error:
            yield "cron_expression", f'"{expression}": {str(error).lower()}'
        except StopIteration:
            yield "cron_expression", f'"{expression}" never comes'
    try:
        zoneinfo.ZoneInfo(policy.time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        yield "time_zone", f'"{policy.time_zone}" is no time zone; expected a name like "Europe/Berlin"'
