"""`python -m proxy.demo` is `turnout demo`."""

from __future__ import annotations

import typer

from proxy.demo import demo

if __name__ == "__main__":
    typer.run(demo)
