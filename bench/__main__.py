"""All measurements one after the other, then the charts: `make bench`, about 55 minutes.

make bench ARGS="--quick"           a few minutes: the rows with 16 clients, fewer idle clients, a shorter load
make bench ARGS="relay --quick"     one of them, with its own options
"""

from __future__ import annotations

import subprocess
import sys
from typing import Final

ALL: Final = ("relay", "mysql", "idle", "tail", "control", "cutover")

QUICK: Final = {
    "relay": ("--quick",),
    "mysql": ("--rounds", "2", "--seconds", "1"),
    "idle": ("--clients", "1000", "--rounds", "2"),
    "tail": ("--rounds", "1", "--seconds", "2"),
    "control": ("--rounds", "2", "--seconds", "2"),
    "cutover": ("--switches", "2", "--pgbouncer-switches", "1", "--minutes", "0"),
}


def main() -> int:
    """Each is a process of its own: what one leaves behind must not show in the next. The worst exit code."""
    words = sys.argv[1:]
    if words[:1] and words[0] in (*ALL, "charts"):
        return subprocess.run([sys.executable, "-m", f"bench.{words[0]}", *words[1:]], check=False).returncode
    if words not in ([], ["--quick"]):
        print(f"usage: bench [--quick] | {'|'.join((*ALL, 'charts'))} [its options]", file=sys.stderr)
        return 2
    worst = 0
    for name in ALL:
        options = QUICK[name] if words else ()
        worst = max(worst, subprocess.run([sys.executable, "-m", f"bench.{name}", *options], check=False).returncode)
    return max(worst, subprocess.run([sys.executable, "-m", "bench.charts"], check=False).returncode)


if __name__ == "__main__":
    sys.exit(main())
