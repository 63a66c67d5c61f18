"""Programs the measurements start that are not Turnout: found on this machine, or compiled from a file beside this one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.embedded import BinaryMissing, ServerFailed, Workspace

_ROOT: Final = Path(__file__).resolve().parents[1]

BUILT_PGBOUNCER: Final = _ROOT / ".venv" / "pgbouncer" / "pgbouncer"
"""Where tools/setup.sh puts one newer than the system's."""

_PREPARED_SINCE: Final = (1, 21)
"""PgBouncer's first version with protocol-level prepared statements in transaction mode."""


def program(name: str, package: str) -> str:
    """Path of an installed program. Raises BinaryMissing."""
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        raise BinaryMissing(f"{name} is not installed: apt-get install {package}, or `make bench`, which does it")
    return found


@dataclass(frozen=True, slots=True)
class PgBouncer:
    """One of the PgBouncers that may be here."""

    path: str
    version: tuple[int, ...]

    @property
    def prepares_in_transactions(self) -> bool:
        return self.version >= _PREPARED_SINCE

    def __str__(self) -> str:
        return f"PgBouncer {'.'.join(map(str, self.version))}"


def find_pgbouncer() -> PgBouncer:
    """$PGBOUNCER, or else the one tools/setup.sh has built, or else the system's. Raises BinaryMissing."""
    path = os.environ.get("PGBOUNCER") or str(BUILT_PGBOUNCER)
    if not Path(path).exists():
        if "PGBOUNCER" in os.environ:
            raise BinaryMissing(f"PGBOUNCER={path}: there is no such file")
        path = program("pgbouncer", "pgbouncer")
    says = _first_line(path, "-V")
    version = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", says)
    if version is None:
        raise ServerFailed(f"{path} -V says: {says}")
    return PgBouncer(path=path, version=tuple(int(part) for part in version.groups() if part is not None))


def haproxy_version(path: str) -> str:
    """As it says itself."""
    version = re.search(r"version (\d[\d.]*\d)", _first_line(path, "-v"))
    return f"HAProxy {version[1] if version else '(version unknown)'}"


def compile_c(name: str, workspace: Workspace) -> Path:
    """`bench/NAME.c` as a program in the workspace. Raises BinaryMissing, ServerFailed."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise BinaryMissing("no C compiler: apt-get install gcc libc6-dev")
    made = workspace.path / name
    source = Path(__file__).with_name(f"{name}.c")
    ran = subprocess.run(
        [compiler, "-O2", "-Wall", "-o", made, source], capture_output=True, text=True, check=False, timeout=60
    )
    if ran.returncode != 0:
        raise ServerFailed(f"{compiler} does not compile {source.name}: {ran.stderr[-800:]}")
    workspace.give(made)
    return made


def in_workspace(path: str, workspace: Workspace) -> Path:
    """A copy that the servers' account can reach: one in a home of mode 0700 cannot be run by it."""
    copy = workspace.path / Path(path).name
    if not copy.exists():
        shutil.copyfile(path, copy)
        copy.chmod(0o755)
        workspace.give(copy)
    return copy


def _first_line(*argv: str) -> str:
    ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    return (ran.stdout or ran.stderr).partition("\n")[0]
