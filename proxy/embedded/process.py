"""Processes and folders that do not outlive us.

A throwaway server has to be gone after every kind of end: normally, by an exception, by Ctrl-C, and by a SIGKILL of our
own process, which no `finally` sees. So the kernel sends each server a signal when its parent dies, and each folder has
a reaper: a shell that reads from a pipe only we hold, and removes the folder when the pipe ends.

Servers that refuse to run as root run as nobody (uid 65534); their folder belongs to it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from proxy.errors import EngineError

NOBODY: Final = 65534
"""Account and group without rights, on every Debian."""

PORTS: Final = range(20_000, 32_000)
"""Below Linux' ephemeral range (32768–60999): a connection to a closed port inside that range can be answered by
itself, and an outgoing connection of somebody else can take a port that was just found free."""
_GIVEN_MAX: Final = 200
"""Ports that one process keeps for itself at a time."""
_given: Final[deque[socket.socket]] = deque()
"""What keeps the ports that `free_port` answered, newest last; each costs a descriptor."""

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)

_REAPER: Final = """
cat >/dev/null
n=0
while [ -e "$1" ] && [ $n -lt 100 ]; do rm -rf -- "$1" 2>/dev/null || sleep 0.1; n=$((n+1)); done
"""


class ServerFailed(EngineError):
    """A throwaway server, or a tool that makes one, did not do what it should. The text ends with its last words."""


class BinaryMissing(ServerFailed):
    """A program is not installed; the text says which package has it."""


def free_port() -> int:
    """A loopback port nobody listens on, below the ephemeral range, and that no process of this machine was given: its
    server may not have begun to listen, or is between two starts. It is kept for this process until that ends or has
    asked for two hundred more. Raises ServerFailed if there is none."""
    while len(_given) >= _GIVEN_MAX:
        _given.popleft().close()
    for port in random.sample(PORTS, len(PORTS)):
        # A name in Linux' abstract namespace (unix(7)): one socket can have it, and nothing is left of it.
        keeper = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            keeper.bind(f"\0turnout-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            keeper.close()
            continue
        _given.append(keeper)
        return port
    raise ServerFailed(f"no free loopback port between {PORTS.start} and {PORTS.stop - 1}")


def is_root() -> bool:
    """Servers refuse to run as root."""
    return os.geteuid() == 0


def is_closed_to_nobody(path: Path) -> bool:
    """Whether we are root and an account without rights cannot get to `path` (or to where it will be)."""
    if not is_root():
        return False
    return any(not place.stat().st_mode & stat.S_IXOTH for place in (path, *path.parents) if place.exists())


class Process:
    """One child with a log file. Made in the main thread: the kernel's death signal follows the thread that forked."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path,
        as_nobody: bool,
        death_signal: signal.Signals,
        env: Mapping[str, str] | None = None,
        niceness: int = 0,
        stdin: Path = Path(os.devnull),
    ) -> None:
        self.log = log
        self.name = Path(argv[0]).name
        parent = os.getpid()

        def before_exec() -> None:
            # After setuid, which clears it (prctl(2)); the check closes the gap before it was set.
            _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal))
            if os.getppid() != parent:
                os._exit(1)
            if niceness:
                os.nice(niceness)

        drop = is_root() and as_nobody
        with open(log, "ab") as out, open(stdin, "rb") as script:
            if drop:
                # Some servers open it again by its name.
                os.fchown(out.fileno(), NOBODY, NOBODY)
            try:
                self._popen = subprocess.Popen(
                    [str(word) for word in argv],
                    stdin=script,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env=dict(env) if env is not None else None,
                    # Not ours to Ctrl-C: we stop it in order.
                    start_new_session=True,
                    user=NOBODY if drop else None,
                    group=NOBODY if drop else None,
                    extra_groups=[] if drop else None,
                    umask=0o077,
                    # Two system calls and a comparison: nothing that another thread could hold a lock of.
                    preexec_fn=before_exec,  # noqa: PLW1509
                )
            except OSError as error:
                raise ServerFailed(f"cannot start {argv[0]}: {error.strerror}") from error
        self.pid = self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    def send(self, what: signal.Signals) -> None:
        """Nothing happens if it has ended; the process id cannot be another's, since it is reaped here only."""
        if self.exit_code is None:
            self._popen.send_signal(what)

    async def wait(self, timeout_s: float) -> int | None:
        """Its exit code, or None at the deadline."""
        deadline = time.monotonic() + timeout_s
        pause_s = 0.002
        while (code := self.exit_code) is None and time.monotonic() < deadline:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.05)
        return code

    async def stop(self, *steps: tuple[signal.Signals, float]) -> None:
        """Send each signal in turn and give it that many seconds; SIGKILL at last."""
        for what, patience_s in (*steps, (signal.SIGKILL, 10.0)):
            self.send(what)
            if await self.wait(patience_s) is not None:
                return
        raise ServerFailed(f"{self.name} (process {self.pid}) does not end, not even by SIGKILL")

    def last_words(self, lines: int = 6) -> str:
        """The end of its log."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                text = file.read().decode(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])


class Workspace:
    """A temporary folder that belongs to the account the servers run as, and is gone afterwards in any case."""

    def __init__(self, prefix: str = "turnout-", *, niceness: int = 0) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
        self.niceness = niceness
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", _REAPER, "turnout-reaper", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        if is_root():
            os.chown(self.path, NOBODY, NOBODY)
            if is_closed_to_nobody(self.path.parent):
                self.close()
                raise ServerFailed(
                    f"the temporary folder {self.path.parent} is closed to the unprivileged account that servers run "
                    "as; set TMPDIR to another one"
                )

    def folder(self, name: str) -> Path:
        """A folder in it, owned like it."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        if is_root():
            os.chown(path, NOBODY, NOBODY)
        return path

    def give(self, path: Path) -> None:
        """Make a file of ours the servers' own."""
        if is_root():
            os.chown(path, NOBODY, NOBODY)

    def close(self) -> None:
        """Remove it. Servers in it must have ended."""
        shutil.rmtree(self.path, ignore_errors=True)
        assert self._reaper.stdin is not None
        self._reaper.stdin.close()
        self._reaper.wait(timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


async def run(
    argv: Sequence[str | Path],
    *,
    workspace: Workspace,
    log: Path,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    stdin: Path = Path(os.devnull),
) -> None:
    """Run a tool to its end as the servers' account. Raises ServerFailed with its last words."""
    process = Process(
        argv,
        log=log,
        cwd=workspace.path,
        as_nobody=True,
        death_signal=signal.SIGKILL,
        env=env,
        niceness=workspace.niceness,
        stdin=stdin,
    )
    try:
        code = await process.wait(timeout_s)
    finally:
        if process.exit_code is None:
            await process.stop((signal.SIGTERM, 2.0))
    if code is None:
        raise ServerFailed(f"{process.name} did not end within {timeout_s:g} s: {process.last_words()}")
    if code != 0:
        raise ServerFailed(f"{process.name} ended with code {code}: {process.last_words()}")
