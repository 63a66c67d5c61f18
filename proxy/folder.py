"""The runtime folder: it is this account's alone, and one supervisor's at a time."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from proxy.errors import ProxyError

LOCK_NAME: Final = "supervisor.lock"
"""Locked by the supervisor that runs; its process id stands in it."""


class FolderRefused(ProxyError):
    """Turnout cannot run there; the text is one line for the operator."""


class RuntimeFolder:
    """See the module. The lock ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd = -1

    def take(self) -> None:
        """Make it if it is not there, and lock it. Raises FolderRefused: somebody else's, in use, not to be used."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise FolderRefused(f"runtime_dir {self.path} is not a folder of this account", hint="set another one")
            self.path.chmod(0o700)
            self._lock_fd = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FolderRefused(
                f"runtime_dir {self.path} cannot be used: {error.strerror}", hint="set another one in the config"
            ) from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._lock_fd, 32, 0).decode(errors="replace").strip()
            self.release()
            raise FolderRefused(
                f"another supervisor (pid {pid or 'unknown'}) runs in {self.path}",
                hint="stop it first, or set another runtime_dir",
            ) from None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next one have it. Does nothing if it was not taken."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
