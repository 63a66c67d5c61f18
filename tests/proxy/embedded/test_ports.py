from __future__ import annotations

import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

from proxy.embedded import ServerFailed, free_port, process

ASK = "from proxy.embedded import free_port; print(free_port(), flush=True); input()"


def test_a_free_port_is_below_the_ephemeral_range() -> None:
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 < free_port() < min(ephemeral, 32768) for _ in range(20))


def test_a_port_that_another_process_was_given_is_not_given_until_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody listens on it yet: a server takes a second to start, and another test's took its control port meanwhile."""
    other = subprocess.Popen([sys.executable, "-c", ASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        monkeypatch.setattr(process, "PORTS", range(theirs, theirs + 1))
        with pytest.raises(ServerFailed, match=f"no free loopback port between {theirs} and {theirs}"):
            free_port()
    finally:
        other.communicate("\n", timeout=20)
    assert free_port() == theirs


def test_a_process_gives_its_oldest_port_back_when_it_asks_for_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    given: deque[socket.socket] = deque()
    monkeypatch.setattr(process, "_given", given)
    monkeypatch.setattr(process, "_GIVEN_MAX", 3)
    oldest = free_port()
    assert oldest not in {free_port(), free_port()}
    monkeypatch.setattr(process, "PORTS", range(oldest, oldest + 1))
    assert free_port() == oldest
    for keeper in given:
        keeper.close()
