"""The admin console as a face of the door: its grammar, and who may do what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from protocols.postgres.messages import parse_error
from proxy import ipc
from proxy.config import ConsoleConfig
from proxy.control.console import AdminConsole
from proxy.control.service import ControlService
from tests.kit.waiting import until
from tests.proxy.control.scripted import ScriptedSupervisor, make_config

USERS = ConsoleConfig(admin_users=["admin"], operator_users=["operator"], stats_users=["stats"])

OPERATORS = ["pause", "pause shop", "reconnect", "reconnect shop", "wait_close", "switch target green", "cancel 1"]
"""Commands that change the state, or wait for it, by the least role that may."""
ADMINS = [
    "kill", "kill shop", "kill_client 1", "disable shop", "enable shop", "reload", "shutdown",
    "shutdown wait_for_clients", "suspend", "set max_client_conn = 5", "show fds", "switch target green force",
]  # fmt: skip


class Scene:
    """A console before a scripted supervisor."""

    def __init__(self) -> None:
        config = msgspec.structs.replace(make_config(), console=USERS)
        self.supervisor = ScriptedSupervisor(config)
        self.door = ControlService(self.supervisor)
        self.answers: list[ipc.Order] = []
        self.console = AdminConsole(self.door, lambda worker, order: self.answers.append(order))
        self.question = 0

    def ask(self, user: str, text: str) -> None:
        self.question += 1
        asked = ipc.ConsoleAsked(session=1, question=self.question, user=user, client="10.0.0.1:5000", text=text)
        self.console.asked(0, asked)

    def stop(self, *, has_left: bool) -> None:
        self.console.stopped(0, ipc.ConsoleStopped(session=1, question=self.question, has_left=has_left))

    async def answer(self) -> bytes:
        await until(lambda: bool(self.answers), "the console answers")
        order = self.answers.pop()
        assert isinstance(order, ipc.ConsoleAnswer)
        assert order.question == self.question
        return order.data

    async def said(self, user: str, text: str) -> str:
        """The tag of the answer, or its error with the SQLSTATE before it."""
        self.ask(user, text)
        data = await self.answer()
        assert data.endswith(b"Z\0\0\0\x05I"), "the client may go on"
        while data:
            size = 1 + int.from_bytes(data[1:5], "big")
            message, data = data[:size], data[size:]
            if message[:1] == b"C":
                return message[5:-1].decode()
            if message[:1] == b"E":
                error = parse_error(message)
                return f"{error.sqlstate} {error.message}"
        raise AssertionError("neither a tag nor an error")


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    one = Scene()
    yield one
    await one.console.close()


@pytest.mark.parametrize("command", [*OPERATORS, *ADMINS, "resume", "resume shop"])
async def test_whoever_may_only_look_changes_nothing_and_is_remembered(scene: Scene, command: str) -> None:
    """The class of CVE that PgBouncer's KILL_CLIENT had: a command that forgets to ask who asks."""
    config = scene.supervisor.config
    assert await scene.said("stats", command) == "42501 admin access needed"
    assert scene.supervisor.told == []
    assert scene.supervisor.retired == []
    assert scene.supervisor.ended_sessions == []
    assert scene.supervisor.records == {}
    assert scene.supervisor.ends == 0
    assert scene.supervisor.config is config
    if command != "wait_close":
        entry = scene.door.audit.entries(10)[0]
        assert (entry.outcome, entry.role) == ("refused", "viewer")
        assert entry.caller == "stats at 10.0.0.1:5000"


@pytest.mark.parametrize("command", ADMINS)
async def test_an_operator_may_not_do_what_is_the_admins(scene: Scene, command: str) -> None:
    assert await scene.said("operator", command) == "42501 admin access needed"
    assert scene.supervisor.ended_sessions == []
    assert scene.supervisor.retired == []


@pytest.mark.parametrize("command", ["show pools", "show clients", "show config", "show stats", "show sessions"])
async def test_whoever_is_in_no_list_any_more_sees_nothing(scene: Scene, command: str) -> None:
    assert await scene.said("somebody", command) == "28000 not allowed"


async def test_each_change_of_state_is_in_the_audit_log_with_its_caller(scene: Scene) -> None:
    for user, command, action, tag in (
        ("operator", "pause", "pause", "PAUSE"),
        ("operator", "resume", "resume", "RESUME"),
        ("operator", "reconnect shop", "reconnect", "RECONNECT"),
        ("admin", "disable shop", "disable", "DISABLE"),
        ("admin", "enable shop", "enable", "ENABLE"),
        ("admin", "kill shop", "kill", "KILL"),
        ("admin", "kill_client 1", "end_session", "KILL_CLIENT"),
        ("admin", "reload", "reload", "RELOAD"),
        ("admin", "shutdown", "shut_down", "SHUTDOWN"),
    ):
        assert await scene.said(user, command) == tag
        entry = scene.door.audit.entries(1)[0]
        assert (entry.action, entry.outcome, entry.caller) == (action, "done", f"{user} at 10.0.0.1:5000")
    assert scene.supervisor.ended_sessions == [(1, "KILL_CLIENT at the console")]
    assert scene.supervisor.retired == [("shop", "shop", False), ("shop", "shop", True)]
    assert scene.supervisor.ends == 1


@pytest.mark.parametrize(
    ("command", "tag"),
    [
        ("SHOW VERSION", "SHOW"),
        ("  show\tversion ; ", "SHOW"),
        ('SHOW "version"', "SHOW"),
        ("select version", "SHOW"),
        ("show client_encoding", "SHOW"),
        ("set client_encoding to 'utf8'", "SET"),
        ("SET DateStyle = ISO;", "SET"),
        ("show help", "SHOW"),
        ("", "42601 invalid command '', use SHOW HELP;"),
        ("SELECT 1", "42601 invalid command 'SELECT 1', use SHOW HELP;"),
        ("BEGIN", "42601 invalid command 'BEGIN', use SHOW HELP;"),
        ("show pools; show pools", "42601 invalid command 'show pools; show pools', use SHOW HELP;"),
        ("pause shop blog", "42601 invalid command 'pause shop blog', use SHOW HELP;"),
        (f"show {'x' * 64}", "42601 bad arguments"),
        ("kill_client me", "22P02 invalid client pointer supplied"),
        ("kill_client 77", "42704 client not found"),
        ("disable", "55000 a database is required"),
        ("resume", "55000 pooler is not paused/suspended"),
        ("pause nosuch", "3D000 no such database: nosuch"),
        ("set pool_mode = session", "0A000 SET failed"),
        ("suspend", "0A000 SUSPEND is not supported by Turnout"),
        ("show fds", "0A000 SHOW FDS is not supported by Turnout"),
        ("shutdown wait_for_servers", "0A000 SHUTDOWN WAIT_FOR_SERVERS is not supported by Turnout"),
        ("switch", "42601 invalid command 'switch', use SHOW HELP;"),
        ("switch target", "42601 invalid command 'switch target', use SHOW HELP;"),
        ("switch target nosuch", "42704 there is no engine nosuch"),
        ("switch target green maybe", "42601 invalid command 'switch target green maybe', use SHOW HELP;"),
        ("switch target green drain_timeout soon", "22P02 DRAIN_TIMEOUT soon is no number of seconds"),
        ('SWITCH TARGET "green" SERVICE shop STRATEGY immediate DRAIN_TIMEOUT 1.5;', "SWITCH"),
        ("switch target green dry_run", "SWITCH"),
        ("cancel", "55000 no switch is under way"),
        ("cancel nosuch", "42704 there is no switch 'nosuch'"),
    ],
)
async def test_the_grammar_is_pgbouncers_and_a_little_more(scene: Scene, command: str, tag: str) -> None:
    assert await scene.said("admin", command) == tag


async def test_a_pause_answers_when_the_last_backend_is_gone(scene: Scene) -> None:
    scene.supervisor.backends_left = 1
    scene.ask("operator", "pause shop")
    await until(lambda: scene.supervisor.counted > 2, "the console looks")
    assert scene.answers == []
    scene.supervisor.backends_left = None  # a worker does not answer
    seen = scene.supervisor.counted
    await until(lambda: scene.supervisor.counted > seen + 1, "the console looks")
    assert scene.answers == []
    scene.supervisor.backends_left = 0
    assert b"PAUSE" in await scene.answer()


async def test_a_client_that_leaves_leaves_its_pause_behind_and_one_that_cancels_undoes_it(scene: Scene) -> None:
    scene.supervisor.backends_left = 1
    for has_left, is_paused in ((True, True), (False, False)):
        scene.ask("operator", "pause")
        await until(lambda: scene.supervisor.counted > 0, "the console looks")
        scene.stop(has_left=has_left)
        data = await scene.answer()
        assert b"57014" in data
        assert scene.supervisor.standstills.is_paused == is_paused
        if is_paused:
            assert await scene.said("operator", "resume") == "RESUME"
        scene.supervisor.counted = 0


async def test_a_resume_by_somebody_else_ends_the_wait_with_an_error(scene: Scene) -> None:
    scene.supervisor.backends_left = 1
    waiting = asyncio.ensure_future(scene.said("operator", "pause shop"))
    await until(lambda: scene.supervisor.counted > 0, "the console looks")
    scene.supervisor.standstills.resume("shop")
    assert await waiting == "55000 the pause was undone by RESUME before all servers were released"


async def test_no_pause_begins_in_a_switch(scene: Scene) -> None:
    scene.supervisor.runs_by_itself = False
    scene.ask("operator", "switch target green nowait")
    await until(lambda: bool(scene.supervisor.records), "the switch begins")
    [switch] = scene.supervisor.records
    for command in ("PAUSE", "KILL"):
        asked = ipc.ConsoleAsked(session=2, question=1, user="admin", client="", text=command)
        scene.console.asked(1, asked)
        await until(lambda: bool(scene.answers), "the console answers")
        order = scene.answers.pop()
        assert isinstance(order, ipc.ConsoleAnswer)
        assert f"cannot {command} while switch {switch} of service shop is under way".encode() in order.data
    assert scene.supervisor.told == []
    scene.supervisor.run(switch)
    assert b"SWITCH" in await scene.answer()


async def test_a_switch_that_a_check_refuses_is_an_error_with_what_to_do(scene: Scene) -> None:
    from tests.proxy.control.scripted import LAG

    scene.supervisor.checks = [LAG]
    scene.ask("operator", "switch target green")
    data = await scene.answer()
    assert data[:1] == b"E"
    assert b"lag failed: 9 GB behind" in data
    assert b"wait for green" in data


async def test_no_answer_goes_to_the_worker_in_place_of_one_that_was_lost(scene: Scene) -> None:
    """It counts sessions and questions from the beginning, so that the answer would be taken for somebody else's."""
    scene.supervisor.backends_left = 1
    scene.ask("operator", "pause")
    await until(lambda: scene.supervisor.standstills.is_paused, "the pause has begun")
    scene.console.worker_lost(0)
    scene.question = 0
    assert await scene.said("stats", "show version") == "SHOW"
    await until(lambda: not scene.console._open, "nobody is answered any more")
    assert scene.answers == []
    assert scene.supervisor.standstills.is_paused


async def test_a_digit_of_another_script_is_no_number_of_a_client(scene: Scene) -> None:
    assert await scene.said("admin", 'kill_client "²"') == "22P02 invalid client pointer supplied"


async def test_no_secret_is_in_show_config(scene: Scene) -> None:
    scene.ask("stats", "show config")
    data = await scene.answer()
    assert b"service.shop.admin.password" in data
    assert b"opensesame" not in data
    assert b"max_client_conn" in data


async def test_what_is_stopped_in_the_moment_in_which_it_is_asked_does_not_begin(scene: Scene) -> None:
    scene.ask("operator", "pause")
    scene.stop(has_left=False)
    assert b"C57014\0" in await scene.answer()
    assert not scene.supervisor.standstills.is_paused
