"""`python -m proxy` is `turnout`."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Entry point. Ends with SystemExit."""
    match sys.argv[1:]:
        case ["serve", config] if not config.startswith("-"):
            # As `proxy.cli` would, but without importing it.
            from proxy.serving import serve

            sys.exit(serve(Path(config)))
        case _:
            from proxy.cli import main as command_line

            command_line()


if __name__ == "__main__":
    main()
