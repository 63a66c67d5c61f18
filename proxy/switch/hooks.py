"""What an operator has put around a switch: commands and HTTP calls, each with a deadline, each in the report.

They get names and addresses, never a password: a command by its environment (`TURNOUT_SERVICE`, `TURNOUT_TARGET`, …) and,
like URL and body, by `{target}` and its like in its words. What they answer is kept up to `OUTPUT_CHARS_MAX`, without the
secrets that stand in the config.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Collection, Mapping
from typing import Any, Final

import httpx
import msgspec

from proxy.config import HookConfig, Secret
from proxy.tasks import spawn

OUTPUT_CHARS_MAX: Final = 2_000
_READ_BYTES_MAX: Final = 8_192
"""More of an answer is read and dropped."""
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


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


def secrets_of(part: Any) -> set[str]:
    """Every secret value in a part of the config."""
    if isinstance(part, Secret):
        return {part.value} if part.value else set()
    if isinstance(part, msgspec.Struct):
        return set().union(*(secrets_of(getattr(part, name)) for name in part.__struct_fields__))
    if isinstance(part, dict):
        return set().union(*map(secrets_of, part.values()))
    if isinstance(part, list | tuple):
        return set().union(*map(secrets_of, part))
    return set()


async def run_hook(hook: HookConfig, told: Mapping[str, str], secrets: Collection[str]) -> HookResult:
    """Run it to its end or its deadline. Never raises for what the hook does; a cancel ends it."""
    began = time.monotonic()
    if hook.command:
        what = _filled(hook.command[0], told)
        is_good, outcome, output = await _command(hook, told)
    else:
        what = f"{hook.method} {_filled(hook.url, told).partition('?')[0]}"
        is_good, outcome, output = await _call(hook, told)
    return HookResult(
        at=hook.at,
        what=_clean(what, secrets),
        is_good=is_good,
        outcome=_clean(outcome, secrets),
        output=_clean(output, secrets),
        took_ms=round((time.monotonic() - began) * 1e3, 3),
    )


def _filled(text: str, told: Mapping[str, str]) -> str:
    """Only names that are known are replaced, so that JSON needs no doubled braces."""
    for name, value in told.items():
        text = text.replace("{" + name + "}", value)
    return text


def _clean(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text).strip()
    return text if len(text) <= OUTPUT_CHARS_MAX else text[:OUTPUT_CHARS_MAX] + " (cut)"


async def _command(hook: HookConfig, told: Mapping[str, str]) -> tuple[bool, str, str]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {f"TURNOUT_{name.upper()}": value for name, value in told.items()}
    try:
        process = await asyncio.create_subprocess_exec(
            *(_filled(word, told) for word in hook.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        return False, f"cannot be run: {error.strerror}", ""
    kept = bytearray()
    reading = spawn(_drain(process.stdout, kept), name=f"output of hook {hook.command[0]}")
    try:
        async with asyncio.timeout(hook.timeout_s):
            await reading
            code = await process.wait()
        return code == 0, f"exit code {code}", kept.decode(errors="replace")
    except TimeoutError:
        return False, f"not done within {hook.timeout_s:g} s", kept.decode(errors="replace")
    finally:
        reading.cancel()
        # The whole family, also what it left in the background with our pipe.
        if process.returncode is None or not reading.done():
            _end(process.pid)
            await process.wait()


async def _drain(stream: asyncio.StreamReader | None, kept: bytearray) -> None:
    assert stream is not None
    while chunk := await stream.read(_READ_BYTES_MAX):
        kept += chunk[: _READ_BYTES_MAX - len(kept)]


def _end(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # nobody of it is left


async def _call(hook: HookConfig, told: Mapping[str, str]) -> tuple[bool, str, str]:
    headers = {"User-Agent": "turnout"}
    body = _filled(hook.body, told)
    if body:
        headers["Content-Type"] = hook.content_type
    if hook.token is not None and hook.token.value:
        headers["Authorization"] = f"Bearer {hook.token.value}"
    kept = bytearray()
    try:
        async with (
            asyncio.timeout(hook.timeout_s),
            httpx.AsyncClient(trust_env=False, timeout=hook.timeout_s) as client,
            client.stream(hook.method, _filled(hook.url, told), content=body.encode(), headers=headers) as answer,
        ):
            async for chunk in answer.aiter_bytes(_READ_BYTES_MAX):
                kept += chunk[: _READ_BYTES_MAX - len(kept)]
        return answer.is_success, f"HTTP {answer.status_code}", kept.decode(errors="replace")
    except (TimeoutError, httpx.TimeoutException):
        return False, f"no answer within {hook.timeout_s:g} s", kept.decode(errors="replace")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return False, f"cannot be reached: {error}", kept.decode(errors="replace")
