"""What an operator has put around a switch: commands and HTTP calls, each with a deadline, each in the report.

They get names and addresses, never a password: a command by its environment (`TURNOUT_SERVICE`, `TURNOUT_TARGET`, …) and,
like URL and body, by `{target}` and its like in its words. What they answer is kept up to `OUTPUT_CHARS_MAX`, without the
secrets that stand in the config.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

import msgspec

from proxy.config import HookConfig
from proxy.outside import Outcome, call, clean, run_command


class HookResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one hook; goes into the report."""

    at: str
    what: str
    """The command's first word, or method and URL."""
    is_good: bool
    outcome: str
    """`exit code 0`, `HTTP 200`, `no answer within 10 s`."""
    output: str
    took_ms: float


def facts(switch: str, service: str, source: tuple[str, str], target: tuple[str, str]) -> dict[str, str]:
    """What hooks are told; `source` and `target` are name and address."""
    return {
        "switch": switch,
        "service": service,
        "source": source[0],
        "source_address": source[1],
        "target": target[0],
        "target_address": target[1],
    }


async def run_hook(hook: HookConfig, told: Mapping[str, str], secrets: Collection[str]) -> HookResult:
    """Run it to its end or its deadline. Never raises for what the hook does; a cancel ends it."""
    began = time.monotonic()
    if hook.command:
        what = _filled(hook.command[0], told)
        outcome = await _command(hook, told)
    else:
        what = f"{hook.method} {_filled(hook.url, told).partition('?')[0]}"
        outcome = await _call(hook, told)
    return HookResult(
        at=hook.at,
        what=clean(what, secrets),
        is_good=outcome.is_good,
        outcome=clean(outcome.text, secrets),
        output=clean(outcome.output, secrets),
        took_ms=round((time.monotonic() - began) * 1e3, 3),
    )


def _filled(text: str, told: Mapping[str, str]) -> str:
    """Only names that are known are replaced, so that JSON needs no doubled braces."""
    for name, value in told.items():
        text = text.replace("{" + name + "}", value)
    return text


async def _command(hook: HookConfig, told: Mapping[str, str]) -> Outcome:
    environment = {f"TURNOUT_{name.upper()}": value for name, value in told.items()}
    return await run_command([_filled(word, told) for word in hook.command], environment, hook.timeout_s)


async def _call(hook: HookConfig, told: Mapping[str, str]) -> Outcome:
    return await call(
        hook.method,
        _filled(hook.url, told),
        hook.timeout_s,
        body=_filled(hook.body, told).encode(),
        content_type=hook.content_type,
        token=(hook.token.value or "") if hook.token is not None else "",
    )
