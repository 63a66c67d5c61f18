"""Commands and HTTP calls of the operator's, each with a deadline, each with an outcome that may be shown.

For hooks of switches and for alerts. Nothing here raises for what the other side does; what it answers is kept up to
`OUTPUT_CHARS_MAX`. Commands run without a shell and get nothing of Turnout's environment but `PASSED_ON`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import httpx

from proxy.tasks import spawn

OUTPUT_CHARS_MAX: Final = 2_000
_READ_BYTES_MAX: Final = 8_192
"""More of an answer is read and dropped."""
PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


class Outcome(NamedTuple):
    """What came of it."""

    is_good: bool
    text: str
    """`exit code 0`, `HTTP 200`, `no answer within 10 s`."""
    output: str
    is_final: bool = False
    """It would be the same if it were tried again."""


def clean(text: str, secrets: Collection[str]) -> str:
    """What may be kept and shown: without `secrets`, without control characters, not too long."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text).strip()
    return text if len(text) <= OUTPUT_CHARS_MAX else text[:OUTPUT_CHARS_MAX] + " (cut)"


async def run_command(
    words: Sequence[str], environment: Mapping[str, str], timeout_s: float, *, stdin: bytes = b""
) -> Outcome:
    """Run a program to its end or its deadline; one that is late is ended with all its children, and so with a cancel."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={name: os.environ[name] for name in PASSED_ON if name in os.environ} | dict(environment),
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(False, f"cannot be run: {error.strerror}", "")
    kept = bytearray()
    reading = spawn(_drain(process.stdout, kept), name=f"output of {words[0]}")
    writing = spawn(_fill(process.stdin, stdin), name=f"input of {words[0]}")
    try:
        async with asyncio.timeout(timeout_s):
            await reading
            code = await process.wait()
        return Outcome(code == 0, f"exit code {code}", kept.decode(errors="replace"))
    except TimeoutError:
        return Outcome(False, f"not done within {timeout_s:g} s", kept.decode(errors="replace"))
    finally:
        # The whole family, also what it left in the background with our pipe.
        if process.returncode is None or not reading.done():
            _end(process.pid)
            await process.wait()
        reading.cancel()
        writing.cancel()


async def _drain(stream: asyncio.StreamReader | None, kept: bytearray) -> None:
    assert stream is not None
    while chunk := await stream.read(_READ_BYTES_MAX):
        kept += chunk[: _READ_BYTES_MAX - len(kept)]


async def _fill(stream: asyncio.StreamWriter | None, data: bytes) -> None:
    if stream is None:
        return
    try:
        stream.write(data)
        await stream.drain()
        stream.close()
    except (BrokenPipeError, ConnectionResetError):
        return  # it does not want to read


def _end(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # nobody of it is left


async def call(
    method: str,
    url: str,
    timeout_s: float,
    *,
    body: bytes = b"",
    content_type: str = "application/json",
    token: str = "",
    tls: ssl.SSLContext | None = None,
) -> Outcome:
    """Make an HTTP request; 2xx is good. Redirects are not followed: who was named is asked, and nobody else."""
    headers = {"User-Agent": "turnout"}
    if body:
        headers["Content-Type"] = content_type
    if token:
        headers["Authorization"] = f"Bearer {token}"
    kept = bytearray()
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(trust_env=False, timeout=timeout_s, verify=True if tls is None else tls) as client,
            client.stream(method, url, content=body, headers=headers) as answer,
        ):
            async for chunk in answer.aiter_bytes(_READ_BYTES_MAX):
                kept += chunk[: _READ_BYTES_MAX - len(kept)]
        code = answer.status_code
        # 408 and 429 ask for another try, 5xx may be over soon; any other refusal is about what was sent.
        is_final = 300 <= code < 500 and code not in (408, 429)
        return Outcome(answer.is_success, f"HTTP {code}", kept.decode(errors="replace"), is_final)
    except (TimeoutError, httpx.TimeoutException):
        return Outcome(False, f"no answer within {timeout_s:g} s", kept.decode(errors="replace"))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Outcome(False, f"cannot be reached: {error}", kept.decode(errors="replace"))
