"""`turnout serve` as an operator meets it: refusals to start, signals, workers that die."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import pytest_asyncio

from proxy.embedded import PostgresPair, Setup, Turnout
from proxy.embedded.postgres import PASSWORD, SUPERUSER
from tests.kit.waiting import until

pytestmark = [pytest.mark.postgresql, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


def _setup(pair: PostgresPair, **changes: object) -> Setup:
    return Setup(
        protocol="postgresql",
        engines={server.name: server.address for server in (pair.primary, pair.standby)},
        admin_user=SUPERUSER,
        admin_password=PASSWORD,
        users={"app": PASSWORD},
        databases=["app"],
        workers=2,
        **changes,  # type: ignore[arg-type]
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(postgres_pair: PostgresPair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Turnout]:
    """Two workers, in front of the shared pair, for those who only look."""
    turnout = Turnout(_setup(postgres_pair), tmp_path_factory.mktemp("running"))
    await turnout.start()
    try:
        yield turnout
    finally:
        await turnout.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def turnout(postgres_pair: PostgresPair, tmp_path: Path) -> AsyncIterator[Turnout]:
    """The same, for one test alone; nothing here switches."""
    turnout = Turnout(_setup(postgres_pair), tmp_path)
    await turnout.start()
    try:
        yield turnout
    finally:
        await turnout.stop()


async def _connect(turnout: Turnout) -> asyncpg.Connection:
    return await asyncpg.connect(
        host=turnout.host, port=turnout.port, user="app", password=PASSWORD, database="app", timeout=10
    )


async def _serve_refused(config: Path) -> str:
    """What `turnout serve` says before it ends with code 1; without what is logged on the way."""
    serve = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "serve", str(config),
        stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    _, said = await asyncio.wait_for(serve.communicate(), 30)
    assert serve.returncode == 1
    assert b"Traceback" not in said, said.decode()
    lines = [line for line in said.decode().splitlines() if line.startswith("turnout:")]
    assert len(lines) == 1, said.decode()
    return lines[0]


def _processes_of(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or []):
            found.append(process.pid)
    return found


# --- refusals to start --------------------------------------------------------------------------------------------


async def test_a_second_supervisor_is_told_who_is_there(running: Turnout) -> None:
    said = await _serve_refused(running.config)
    assert f"pid {running.pid}" in said
    assert "runtime_dir" in said


@pytest.mark.parametrize("which", ["client", "control"])
async def test_a_port_that_is_taken_is_one_line_and_leaves_no_process(
    postgres_pair: PostgresPair, tmp_path: Path, which: str
) -> None:
    setup = _setup(postgres_pair)
    config = setup.write(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", setup.client_port if which == "client" else setup.control_port))
        taken.listen()
        said = await _serve_refused(config)
    assert str(setup.client_port if which == "client" else setup.control_port) in said
    assert _processes_of(tmp_path) == []


async def test_a_state_file_that_cannot_be_read_is_one_line(postgres_pair: PostgresPair, tmp_path: Path) -> None:
    config = _setup(postgres_pair).write(tmp_path)
    (tmp_path / "turnout.sqlite").write_bytes(b"x" * 5000)
    said = await _serve_refused(config)
    assert "turnout.sqlite cannot be read" in said
    assert "move it away" in said


async def test_a_runtime_folder_of_somebody_else_is_refused(postgres_pair: PostgresPair, tmp_path: Path) -> None:
    config = _setup(postgres_pair).write(tmp_path)
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 65534, 65534)
    said = await _serve_refused(config)
    assert "runtime_dir" in said


# --- life ---------------------------------------------------------------------------------------------------------


async def test_the_runtime_folder_is_for_this_account_only(running: Turnout) -> None:
    assert (running.folder / "run").stat().st_mode & 0o777 == 0o700


async def test_no_secret_stands_on_a_command_line_or_in_the_log(running: Turnout) -> None:
    for process in running.processes():
        assert PASSWORD not in process.cmdline()
    assert PASSWORD not in running.text_of_log()


async def test_what_serving_does_not_need_takes_no_memory(running: Turnout) -> None:
    """Pydantic comes with the reader of command lines and with MCP, and with Litestar where it is let."""
    loaded = {Path(place.path).name for process in running.processes() for place in process.memory_maps()}
    assert any(name.startswith("_core") for name in loaded)
    assert not [name for name in loaded if name.startswith("_pydantic_core")]


async def test_a_worker_that_dies_is_replaced_and_the_clients_of_others_notice_nothing(turnout: Turnout) -> None:
    clients = [await _connect(turnout) for _ in range(8)]
    try:
        workers = (await turnout.get("/v1/status"))["workers"]
        sessions = await turnout.get("/v1/sessions")
        victim = sessions[0]["worker"]
        spared = sum(session["worker"] != victim for session in sessions)
        os.kill(workers[victim]["pid"], signal.SIGKILL)

        async def is_replaced() -> bool:
            status = await turnout.get("/v1/status")
            pids = {worker["pid"] for worker in status["workers"]}
            return bool(status["is_ready"] and len(pids) == 2 and workers[victim]["pid"] not in pids)

        await until(is_replaced, "the worker is replaced")
        answers = await asyncio.gather(*(one.fetchval("select 1") for one in clients), return_exceptions=True)
        assert answers.count(1) == spared
        fresh = await _connect(turnout)
        assert await fresh.fetchval("select 2") == 2
        await fresh.close()
    finally:
        for one in clients:
            one.terminate()


async def test_a_cancel_reaches_its_session_whichever_worker_it_comes_to(
    turnout: Turnout, postgres_pair: PostgresPair
) -> None:
    clients = [await _connect(turnout) for _ in range(10)]
    workers = {session["worker"] for session in await turnout.get("/v1/sessions")}
    assert workers == {0, 1}, "the kernel gave each worker a share"
    sleeping = "select count(*) from pg_stat_activity where query like 'select pg_sleep(60)%' and state = 'active'"
    try:
        tasks = [asyncio.ensure_future(one.execute("select pg_sleep(60)")) for one in clients]

        async def all_sleep() -> bool:
            return bool(await postgres_pair.primary.fetchval(sleeping) == len(clients))

        await until(all_sleep, "every query runs")
        for task in tasks:
            task.cancel()

        async def none_sleeps() -> bool:
            return bool(await postgres_pair.primary.fetchval(sleeping) == 0)

        await until(none_sleeps, "every query was cancelled at the server")
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        for one in clients:
            one.terminate()


async def test_sighup_applies_what_may_be_reloaded_and_says_what_may_not(turnout: Turnout) -> None:
    assert turnout.pid is not None
    text = turnout.config.read_text()
    changed = text.replace('level = "info"', 'level = "debug"').replace("workers = 2", "workers = 3")
    assert changed != text
    turnout.config.write_text(changed)
    os.kill(turnout.pid, signal.SIGHUP)
    await until(lambda: "config reloaded" in turnout.text_of_log(), "it is reloaded")
    line = next(line for line in turnout.text_of_log().splitlines() if "config reloaded" in line)
    assert 'log.level: "info" -> "debug"' in line
    assert "workers: 2 -> 3" in line.split("needs_restart")[1]
    assert len((await turnout.get("/v1/status"))["workers"]) == 2


async def test_a_config_with_an_error_is_not_reloaded(turnout: Turnout) -> None:
    assert turnout.pid is not None
    turnout.config.write_text(turnout.config.read_text() + "\nlisteners = 3\n")
    os.kill(turnout.pid, signal.SIGHUP)
    await until(lambda: "not reloaded" in turnout.text_of_log(), "the error is told")
    one = await _connect(turnout)
    assert await one.fetchval("select 1") == 1
    await one.close()


async def test_sigterm_lets_an_open_transaction_end(turnout: Turnout, postgres_pair: PostgresPair) -> None:
    assert turnout.pid is not None
    await postgres_pair.primary.execute("create table if not exists drained (n int)", database="app")
    await postgres_pair.primary.execute("grant all on drained to app", database="app")
    one = await _connect(turnout)
    transaction = one.transaction()
    await transaction.start()
    await one.execute("insert into drained values (1)")
    os.kill(turnout.pid, signal.SIGTERM)
    await until(lambda: "stopping" in turnout.text_of_log(), "it is stopping")
    await transaction.commit()
    assert await turnout.stop() == 0
    assert await postgres_pair.primary.fetchval("select count(*) from drained", database="app") == 1
    await postgres_pair.primary.execute("drop table drained", database="app")
    one.terminate()


async def test_a_restart_in_order_leaves_no_worker_and_knows_who_is_active(turnout: Turnout) -> None:
    workers = [worker["pid"] for worker in (await turnout.get("/v1/status"))["workers"]]
    assert await turnout.stop() == 0
    assert not any(psutil.pid_exists(pid) for pid in workers)
    assert not (turnout.folder / "run" / "supervisor.sock").exists()
    await turnout.start()
    (service,) = (await turnout.get("/v1/status"))["services"]
    assert service["view"]["epoch"] == 1
