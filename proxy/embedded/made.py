"""A server's folder is made once where many are wanted, and copied from then on.

`TURNOUT_MADE` names the folder in which what was made is kept, for all processes that have it in their environment: tests
that run side by side. Without it each server is made anew. Copies of a PostgreSQL cluster have one system identifier.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from proxy.embedded.process import Workspace, run

MADE: Final = "TURNOUT_MADE"


async def make_once(what: str, folder: Path, make: Callable[[], Awaitable[None]], workspace: Workspace) -> None:
    """Fill `folder`, which does not exist, by `make`, or by a copy of what `make` left the first time for the same `what`.

    What `make` starts it must have ended."""
    store = os.environ.get(MADE)
    if store is None:
        await make()
        return
    kept = Path(store) / hashlib.sha256(what.encode()).hexdigest()[:16]
    lock = os.open(f"{kept}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    try:
        # Waits for another process that makes the same; in a thread, for this one may have more to do.
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if not kept.exists():
            await make()
            half = kept.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            await copy_folder(folder, half, workspace)
            half.rename(kept)
            return
    finally:
        os.close(lock)
    await copy_folder(kept, folder, workspace)


async def copy_folder(source: Path, target: Path, workspace: Workspace) -> None:
    """As the servers' account, with owners and holes. Raises ServerFailed."""
    await run(
        ["cp", "-a", "--reflink=auto", source, target],
        workspace=workspace,
        log=workspace.path / f"{target.name}-cp.log",
        timeout_s=60,
    )
