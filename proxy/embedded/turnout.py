"""A Turnout of its own: config, `python -m proxy serve` as a child, and its control port."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import psutil

from proxy.embedded.process import Process, ServerFailed, free_port

SERVICE: Final = "app"
"""Name of the one service of the configs written here."""


_ROOT: Final = str(Path(__file__).resolve().parents[2])
"""Folder of the packages, for a child that does not run in it."""


@dataclass(kw_only=True)
class Setup:
    """What differs between the throwaway Turnouts of the demo and of the tests."""

    protocol: Literal["postgresql", "mysql"]
    engines: Mapping[str, str]
    """Address by name; the first one is active."""
    admin_user: str
    admin_password: str
    users: Mapping[str, str]
    """Passwords by user, for login at the proxy and at the engines; with `auth_method` trust none."""
    auth_method: str = "scram-sha-256"
    pool_mode: Literal["session", "transaction"] = "session"
    workers: int = 1
    databases: Iterable[str] = ()
    client_port: int = field(default_factory=free_port)
    control_port: int = field(default_factory=free_port)
    switch: Mapping[str, object] = field(default_factory=dict)
    """Keys of `[service.app.switch]`."""
    service: Mapping[str, object] = field(default_factory=dict)
    """More keys of `[service.app]`."""
    listener: Mapping[str, object] = field(default_factory=dict)
    """More keys of `[[listener]]`."""
    engine: Mapping[str, object] = field(default_factory=dict)
    """More keys of every `[service.app.engine.…]`."""
    top: Mapping[str, object] = field(default_factory=dict)
    """More keys at the top."""
    control: Mapping[str, object] = field(default_factory=dict)
    """More keys of `[control]`. Unless one says so, `processor_share` sets no limit: whoever starts this one asks often."""
    env: Mapping[str, str] = field(default_factory=dict)
    """More of the environment; folders of PYTHONPATH come before those of our own."""
    control_token: str | None = None
    """What our own requests to the control port show."""
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"

    def write(self, folder: Path) -> Path:
        """Config, admin password and users file in `folder`; returns the config's path."""
        _write_secret(folder / "admin.txt", self.admin_password + "\n")
        _write_secret(folder / "users.txt", "".join(f'"{user}" "{word}"\n' for user, word in self.users.items()))
        auth: dict[str, object] = {"method": self.auth_method}
        if self.auth_method != "trust":
            auth["users"] = {"file": "users.txt"}
        top: dict[str, object] = {
            "workers": self.workers,
            "state_file": "turnout.sqlite",
            "runtime_dir": str(folder / "run"),
            **self.top,
        }
        service: dict[str, object] = {
            "protocol": self.protocol,
            "databases": list(self.databases),
            "pool_mode": self.pool_mode,
            "active": next(iter(self.engines)),
            "admin": {"user": self.admin_user, "password": {"file": "admin.txt"}},
            "auth": auth,
            **self.service,
        }
        tables: list[tuple[str, Mapping[str, object]]] = [
            ("control", {"listen": f"127.0.0.1:{self.control_port}", "processor_share": 1.0, **self.control}),
            ("log", {"level": self.log_level, "format": self.log_format}),
            (f"service.{SERVICE}", service),
        ]
        tables += [
            (
                f"service.{SERVICE}.engine.{name}",
                {"address": address, "role": "standby" if number else "primary", **self.engine},
            )
            for number, (name, address) in enumerate(self.engines.items())
        ]
        if self.switch:
            tables.append((f"service.{SERVICE}.switch", self.switch))
        lines = [f"{key} = {_toml(value)}" for key, value in top.items()]
        lines += ["", "[[listener]]", f'protocol = "{self.protocol}"', f'listen = "127.0.0.1:{self.client_port}"']
        lines += [f"{key} = {_toml(value)}" for key, value in self.listener.items()]
        for title, table in tables:
            lines += ["", f"[{title}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        path = folder / "turnout.toml"
        path.write_text("\n".join(lines) + "\n")
        return path


class Turnout:
    """`python -m proxy serve` as a child, in a folder of its own."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self.setup = setup
        self.folder = folder
        self.log = folder / "turnout.log"
        self.config = setup.write(folder)
        self.host = "127.0.0.1"
        self.port = setup.client_port
        """For clients."""
        self.control_url = f"http://127.0.0.1:{setup.control_port}"
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the supervisor, while it runs."""
        return self._process.pid if self._process is not None and self._process.exit_code is None else None

    @property
    def exit_code(self) -> int | None:
        """Of the supervisor; None while it runs, or before."""
        return self._process.exit_code if self._process is not None else None

    def text_of_log(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    async def start(self, timeout_s: float = 30.0) -> None:
        """Until `/readyz` says that it serves. Raises ServerFailed with the end of its log."""
        env = self.setup.env
        path = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), _ROOT, os.environ.get("PYTHONPATH"))))
        self._process = Process(
            [sys.executable, "-m", "proxy", "serve", self.config],
            log=self.log,
            cwd=self.folder,
            as_nobody=False,
            death_signal=signal.SIGTERM,
            env={**os.environ, **env, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        )
        deadline = time.monotonic() + timeout_s
        why = "no answer"
        async with self.control() as client:
            while time.monotonic() < deadline:
                if self._process.exit_code is not None:
                    raise ServerFailed(
                        f"turnout serve ended with code {self._process.exit_code}: {self._process.last_words(15)}"
                    )
                try:
                    answer = await client.get("/readyz")
                except httpx.HTTPError as error:
                    why = str(error) or type(error).__name__
                else:
                    if answer.status_code == httpx.codes.OK:
                        return
                    why = answer.text
                await asyncio.sleep(0.03)
        words = self._process.last_words(15)
        await self.kill()
        raise ServerFailed(f"turnout serve is not ready after {timeout_s:g} s ({why}): {words}")

    def control(self, timeout_s: float = 10.0, *, token: str | None = None) -> httpx.AsyncClient:
        """A client of the control port, to be closed by the caller; it shows `token`, or the one of the setup."""
        shown = token or self.setup.control_token
        headers = {"Authorization": f"Bearer {shown}"} if shown is not None else {}
        return httpx.AsyncClient(base_url=self.control_url, timeout=timeout_s, trust_env=False, headers=headers)

    async def get(self, path: str) -> Any:
        """The JSON at `path` of the control port. Raises httpx.HTTPStatusError."""
        async with self.control() as client:
            answer = await client.get(path)
            answer.raise_for_status()
            return answer.json()

    async def switch(self, target: str, *, timeout_s: float = 60.0, **body: object) -> dict[str, Any]:
        """Switch and wait until it has ended, one way or the other; returns the switch with its report."""
        async with self.control() as client:
            answer = await client.post(
                f"/v1/services/{SERVICE}/switch", json={"target_engine": target, "strategy": "graceful", **body}
            )
            if answer.is_error:
                raise ServerFailed(f"the switch to {target} was refused: {answer.text}")
            started: dict[str, Any] = answer.json()
            deadline = time.monotonic() + timeout_s
            while time.monotonic() < deadline:
                answer = await client.get(f"/v1/switches/{started['id']}")
                answer.raise_for_status()
                switch: dict[str, Any] = answer.json()
                if switch.get("phase") in ENDED:
                    return switch
                await asyncio.sleep(0.05)
        raise ServerFailed(f"the switch to {target} has not ended after {timeout_s:g} s: {switch}")

    def processes(self) -> list[psutil.Process]:
        """Supervisor and all below it."""
        if self.pid is None:
            return []
        try:
            supervisor = psutil.Process(self.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    async def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM, and wait for all its processes. Returns the exit code; raises ServerFailed if one is left."""
        if self._process is None:
            return 0
        family = self.processes()
        self._process.send(signal.SIGTERM)
        code = await self._process.wait(timeout_s)
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, timeout=2.0)
        if code is not None and not alive:
            return code
        names = [f"{one.pid} ({' '.join(_command(one))})" for one in alive]
        await self.kill(family)
        raise ServerFailed(
            f"after SIGTERM and {timeout_s:g} s these are left: {', '.join(names)}; {self.text_of_log()[-2000:]}"
        )

    async def kill(self, family: list[psutil.Process] | None = None) -> None:
        """SIGKILL to supervisor and workers."""
        for process in family if family is not None else self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if self._process is not None:
            await self._process.stop()


ENDED: Final = frozenset({"completed", "aborted", "rolled_back", "failed"})
"""Phases in which a switch stays."""


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return ["ended"]


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _toml(value: object) -> str:
    """A value as TOML; only what configs need."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    raise TypeError(f"no TOML for {type(value).__name__}")
