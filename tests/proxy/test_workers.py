"""Worker processes: spawned, adopted, replaced. The processes are real; what runs in them only speaks."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from proxy import ipc, workers
from proxy.workers import WorkerFailed, Workers
from tests.kit.waiting import until

COMMAND = (sys.executable, "-m", "tests.proxy.scripted_worker")

pytestmark = pytest.mark.slow


class Heard:
    """Fulfils `Ears`."""

    def __init__(self) -> None:
        self.joined: list[tuple[int, ipc.Hello]] = []
        self.lost: list[int] = []
        self.said: list[tuple[int, ipc.Fact]] = []

    def configuration(self) -> ipc.Configure:
        return ipc.Configure(config=b"{}", active={"app": "blue"}, epochs={"app": 3})

    def worker_joined(self, worker: int, hello: ipc.Hello) -> None:
        self.joined.append((worker, hello))

    def worker_said(self, worker: int, fact: ipc.Fact) -> None:
        self.said.append((worker, fact))

    def worker_lost(self, worker: int, why: str) -> None:
        self.lost.append(worker)


Crew = Callable[..., Workers]


@pytest_asyncio.fixture
async def crew(tmp_path: Path) -> AsyncIterator[Crew]:
    """Makes crews on one socket; stops each, and no process may be left."""
    made: list[Workers] = []

    def make(wanted: int = 2, **options: frozenset[str]) -> Workers:
        made.append(Workers(tmp_path / "s.sock", wanted, command=COMMAND, **options))
        return made[-1]

    yield make
    for one in made:
        await one.stop(0.0)
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    assert left == []


async def _started(workers: Workers, heard: Heard | None = None) -> Workers:
    await workers.listen(heard or Heard())
    await workers.adopt()
    workers.configure_adopted()
    workers.fill()
    await workers.wait_configured()
    return workers


async def _abandon(workers: Workers) -> None:
    """What a SIGKILL of the supervisor leaves behind: processes, and a socket nobody listens to."""
    assert workers._server is not None
    loop = asyncio.get_running_loop()
    workers._server.close()
    for worker in workers._alive.values():
        loop.remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        writer, worker.writer = worker.writer, None
        assert writer is not None
        writer.close()
        # Still a child of this process, and reaped with it; the object must not mind.
        assert worker.process is not None
        worker.process.returncode = 0
    workers._alive.clear()


async def test_every_index_is_spawned_and_configured(crew: Crew) -> None:
    workers, heard = crew(3), Heard()
    await _started(workers, heard)
    assert [view.index for view in workers.views()] == [0, 1, 2]
    assert all(view.is_configured and view.is_connected for view in workers.views())
    assert sorted(worker for worker, _ in heard.joined) == [0, 1, 2]
    assert sorted(figures.rss_bytes for figures in await workers.figures()) == [0, 1, 2]


async def test_sessions_that_a_worker_tells_in_parts_are_one_list(crew: Crew) -> None:
    workers = crew(2)
    await _started(workers)
    asked = asyncio.ensure_future(workers.sessions())

    def has_first_parts() -> bool:
        return sum(len(answers) for _, answers, _ in workers._requests.values()) == 2

    await until(has_first_parts, "the first part of both is there")
    assert not asked.done()
    await workers.figures()
    assert sorted(one.id for one in await asked) == [1, 2, (1 << 24) + 1, (1 << 24) + 2]


async def test_the_socket_is_for_this_account_only(crew: Crew, tmp_path: Path) -> None:
    workers = crew(1)
    await _started(workers)
    assert (tmp_path / "s.sock").stat().st_mode & 0o777 == 0o600


async def test_a_worker_that_dies_is_told_and_replaced(crew: Crew) -> None:
    workers, heard = crew(), Heard()
    await _started(workers, heard)
    before = workers.views()[1].pid
    os.kill(before, signal.SIGKILL)
    await until(lambda: heard.lost == [1] and workers.is_ready(), "worker 1 is replaced")
    assert workers.views()[1].pid != before
    assert workers.views()[1].restarts == 1


async def test_a_worker_that_is_replaced_ends_surely(crew: Crew) -> None:
    workers, heard = crew(), Heard()
    await _started(workers, heard)
    before = workers.views()[0].pid
    workers.replace(0, "a test")
    await until(lambda: heard.lost == [0] and workers.is_ready(), "worker 0 is replaced")
    assert not psutil.pid_exists(before)


async def test_a_worker_that_leaves_the_socket_is_ended_and_replaced(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "RECONNECT_GRACE_S", 0.1)
    monkeypatch.setenv("SCRIPTED_MUTE", "1")
    mute, heard = crew(1), Heard()
    await mute.listen(heard)
    await mute.adopt()
    mute.configure_adopted()
    mute.fill()
    await until(lambda: bool(heard.joined), "it says hello")
    monkeypatch.delenv("SCRIPTED_MUTE")
    before = mute.views()[0].pid
    writer = mute._alive[0].writer
    assert writer is not None
    writer.close()
    await until(lambda: heard.lost == [0] and mute.is_ready(), "it is replaced")
    assert mute.views()[0].pid != before


async def test_the_workers_of_an_earlier_supervisor_are_adopted(crew: Crew) -> None:
    first = crew()
    await _started(first)
    pids = [view.pid for view in first.views()]
    await _abandon(first)
    second, heard = crew(), Heard()
    await second.listen(heard)
    hellos = await second.adopt()
    assert sorted(hellos) == [0, 1]
    assert hellos[0].epochs == {"app": 3}
    assert heard.joined == [], "none takes part before it was configured"
    second.configure_adopted()
    second.fill()
    await second.wait_configured()
    assert [view.pid for view in second.views()] == pids
    os.kill(pids[0], signal.SIGKILL)
    await until(lambda: heard.lost == [0] and second.is_ready(), "an adopted worker is watched like any other")


async def test_a_worker_that_a_smaller_config_has_no_place_for_quits(crew: Crew) -> None:
    first = crew(2)
    await _started(first)
    surplus = first.views()[1].pid
    await _abandon(first)
    second, heard = crew(1), Heard()
    await _started(second, heard)
    await until(lambda: not psutil.pid_exists(surplus) or psutil.Process(surplus).status() == "zombie", "it quits")
    assert heard.lost == []


async def test_a_port_that_is_taken_is_told_at_the_start(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_FAILS", "port 6432 is taken")
    workers = crew()
    with pytest.raises(WorkerFailed, match="port 6432 is taken"):
        await _started(workers)


async def test_a_worker_that_cannot_begin_is_told_at_the_start(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_EXIT", "3")
    workers = crew(1)
    with pytest.raises(WorkerFailed, match="ended as it began"):
        await _started(workers)


async def test_secrets_do_not_reach_the_environment_of_workers(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "sesame")
    workers = crew(1, withheld=frozenset({"A_SECRET"}))
    await _started(workers)
    assert "A_SECRET" not in psutil.Process(workers.views()[0].pid).environ()


async def test_one_that_does_not_answer_is_left_out(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ANSWER_TIMEOUT_S", 0.2)
    both = crew(2)
    await _started(both)
    os.kill(both.views()[0].pid, signal.SIGSTOP)
    try:
        assert [figures.rss_bytes for figures in await both.figures()] == [1]
    finally:
        os.kill(both.views()[0].pid, signal.SIGCONT)


async def test_a_stranger_on_the_socket_is_sent_away(crew: Crew, tmp_path: Path) -> None:
    workers, heard = crew(1), Heard()
    await _started(workers, heard)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s.sock")
    writer.write(b"\xff\xff\xff\xff")
    assert await reader.read() == b""
    writer.close()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s.sock")
    writer.write(ipc.encode(ipc.Configured()))
    assert await reader.read() == b""
    writer.close()
    assert workers.is_ready()
    assert heard.lost == []


async def test_a_socket_path_that_is_too_long_is_one_clear_line(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    with pytest.raises(WorkerFailed, match="too long") as refused:
        await Workers(folder / "s.sock", 1, command=COMMAND).listen(Heard())
    assert "runtime_dir" in refused.value.hint


async def test_stopping_tells_the_workers_to_quit_and_removes_the_socket(crew: Crew, tmp_path: Path) -> None:
    workers, heard = crew(), Heard()
    await _started(workers, heard)
    await workers.stop(5.0)
    assert workers.views() == []
    assert heard.lost == []
    assert not (tmp_path / "s.sock").exists()
