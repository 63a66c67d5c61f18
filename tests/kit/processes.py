"""Keep a process from running for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    """It gets no processor meanwhile; the kernel goes on taking in what is sent to it."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()
