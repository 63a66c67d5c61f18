"""Hooks: real commands, a real HTTP server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from proxy.config import HookConfig, Secret
from proxy.hidden import secrets_of
from proxy.outside import OUTPUT_CHARS_MAX
from proxy.switch.hooks import HookResult, facts, run_hook
from tests.kit.waiting import until

TOLD = facts("s1", "shop", ("blue", "10.0.0.11:5432"), ("green", "10.0.0.12:5432"))


async def ran(*command: str, secrets: tuple[str, ...] = (), timeout_s: float = 5.0) -> HookResult:
    return await run_hook(HookConfig(at="before_fence", command=list(command), timeout_s=timeout_s), TOLD, secrets)


async def test_a_command_is_told_what_moves_and_its_output_is_kept() -> None:
    result = await ran("sh", "-c", "echo $0 $TURNOUT_SERVICE $TURNOUT_TARGET_ADDRESS; echo oops >&2", "{source}")
    assert (result.is_good, result.outcome) == (True, "exit code 0")
    assert result.output == "blue shop 10.0.0.12:5432\noops"


async def test_a_command_fails_by_its_exit_code_or_if_there_is_none() -> None:
    assert (await ran("sh", "-c", "exit 3")).outcome == "exit code 3"
    missing = await ran("/nowhere/hook")
    assert (missing.is_good, missing.outcome) == (False, "cannot be run: No such file or directory")


async def test_a_command_that_takes_too_long_is_ended_with_all_its_children() -> None:
    result = await ran("sh", "-c", "sleep 300 & echo $!; wait", timeout_s=0.3)
    assert (result.is_good, result.outcome) == (False, "not done within 0.3 s")
    child = int(result.output)
    await until(lambda: not psutil.pid_exists(child), "the child is gone")


async def test_output_is_bounded_and_shows_no_secret_of_the_config() -> None:
    result = await ran(sys.executable, "-c", "print('pass hunter2 \\x1b[1m' + 'x' * 10**6)", secrets=("hunter2",))
    assert result.output.startswith("pass *** \N{REPLACEMENT CHARACTER}[1mxxx")
    assert len(result.output) < OUTPUT_CHARS_MAX + 20


async def test_a_command_does_not_see_the_secrets_in_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_ADMIN_PASSWORD", "hunter2")
    assert "hunter2" not in (await ran("env")).output


def test_every_secret_of_a_config_is_known() -> None:
    hook = HookConfig(at="promote", url="http://x", token=Secret(env="T", value="t0ken"))
    assert secrets_of({"a": [hook]}) == {"t0ken"}


@pytest_asyncio.fixture
async def web() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers what the path says: `/200`, `/503`, or nothing for `/mute`."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        asked.append(head + await reader.readexactly(size))
        status = head.split()[1].lstrip(b"/")
        if status == b"mute":
            await reader.read()
        else:
            writer.write(b"HTTP/1.1 " + status + b" X\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()


async def test_a_call_sends_body_and_token_and_is_judged_by_its_status(web: tuple[str, list[bytes]]) -> None:
    url, asked = web
    hook = HookConfig(
        at="promote",
        url=f"{url}/200",
        body='{"leader": "{source}", "candidate": "{target}"}',
        token=Secret(env="T", value="t0ken"),
    )
    result = await run_hook(hook, TOLD, ())
    assert (result.is_good, result.outcome, result.output) == (True, "HTTP 200", "done")
    assert result.what == f"POST {url}/200"
    assert asked[0].startswith(b"POST /200 ")
    assert b"bearer t0ken" in asked[0].lower()
    assert asked[0].endswith(b'{"leader": "blue", "candidate": "green"}')
    bad = await run_hook(HookConfig(at="promote", url=f"{url}/503"), TOLD, ())
    assert (bad.is_good, bad.outcome) == (False, "HTTP 503")


async def test_a_call_without_an_answer_is_given_up(web: tuple[str, list[bytes]]) -> None:
    url, _ = web
    mute = await run_hook(HookConfig(at="promote", url=f"{url}/mute", timeout_s=0.2), TOLD, ())
    assert (mute.is_good, mute.outcome) == (False, "no answer within 0.2 s")
