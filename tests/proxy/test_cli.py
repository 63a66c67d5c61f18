"""The command line against a control port that is really served; only the supervisor behind it is scripted."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest
import structlog
import typer

from proxy.cli import app, main
from proxy.config import ControlConfig
from proxy.control.app import serve_control
from proxy.control.service import ControlService
from proxy.embedded import free_port
from proxy.switch.state import Phase
from tests.proxy.control.scripted import LAG, PASSED, WARNED, ScriptedSupervisor, make_config


class Served:
    """A control port in a thread of its own, since a command blocks the one it runs in."""

    def __init__(self, supervisor: ScriptedSupervisor, requests_per_s: float = 200.0) -> None:
        self.supervisor = supervisor
        self.requests_per_s = requests_per_s
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        # What a command prints is the test's subject; the control port's own log is not.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        self._thread.start()
        control = ControlConfig(
            listen=f"127.0.0.1:{self.port}",
            token=self.supervisor.config.control.token,
            requests_per_s=self.requests_per_s,
        )
        config = msgspec.structs.replace(self.supervisor.config, control=control)
        opening = serve_control(ControlService(self.supervisor), config)
        self._server = asyncio.run_coroutine_threadsafe(opening, self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        structlog.reset_defaults()

    def later(self, do: Any) -> None:
        """Do it in the supervisor's loop."""
        self._loop.call_soon_threadsafe(do)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("TURNOUT_TOKEN", raising=False)
    with Served(ScriptedSupervisor()) as one:
        monkeypatch.setenv("TURNOUT_URL", one.url)
        yield one


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def turnout(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        code = ended.value.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(code if isinstance(code, int) else 0, out, err)

    return run


# --- exit codes ---------------------------------------------------------------------------------------------------


def test_done_is_0(served: Served, turnout: Any) -> None:
    for arguments in (["status"], ["engines"], ["sessions"], ["history"], ["ready", "green"], ["version"]):
        ran = turnout(*arguments)
        assert (ran.code, ran.err) == (0, ""), arguments


def test_every_command_speaks_json(served: Served, turnout: Any) -> None:
    ended = turnout("switch", "green", "--json").json
    for arguments in (["status"], ["engines"], ["sessions"], ["history"], ["report", ended["id"]], ["version"]):
        ran = turnout(*arguments, "--json")
        assert ran.code == 0
        assert ran.json


def test_every_command_but_those_that_stay_has_json() -> None:
    found: dict[str, bool] = {}

    def walk(group: Any, prefix: str) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                walk(command, f"{prefix}{name} ")
            else:
                found[prefix + name] = any("--json" in one.opts for one in command.params)

    walk(typer.main.get_command(app), "")
    assert len(found) > 30
    assert {name for name, has_json in found.items() if not has_json} == {"serve", "mcp"}


def test_every_command_has_its_line_in_the_help_whole(turnout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for group in ((), ("engine",), ("policy",), ("alert",), ("database",)):
        assert "..." not in turnout(*group, "--help").out.partition("Commands:")[2]


def test_top_says_that_it_needs_a_terminal_that_can_do_more_than_print(
    served: Served, turnout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    ran = turnout("top")
    assert ran.code == 2
    assert "a terminal that can move its cursor" in ran.err


def test_top_is_one_look_with_json_and_wrong_use_without_a_terminal(served: Served, turnout: Any) -> None:
    found = turnout("top", "--json").json
    assert found["status"]["services"][0]["grades"] == {"A": 6, "D": 4}
    assert [pool["engine"] for pool in found["pools"]] == ["blue"]
    ran = turnout("top")
    assert (ran.code, ran.err) == (2, "turnout: `turnout top` needs a terminal; --json prints one look\n")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_options(shell: str) -> None:
    def complete(*words: str) -> str:
        line = " ".join(("turnout", *words))
        asked = {
            "_TURNOUT_COMPLETE": f"complete_{shell}",
            "_TYPER_COMPLETE_ARGS": line,
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words)),
        }
        ran = subprocess.run(
            [sys.executable, "-c", "from proxy.cli import app\napp(prog_name='turnout')"],
            env={**os.environ, **asked}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.stderr == ""
        return ran.stdout

    assert "switch" in complete("sw")
    assert "status" not in complete("sw")
    assert "--drain-timeout" in complete("switch", "--dr")


@pytest.mark.parametrize(
    "arguments",
    [
        ["switch"],
        ["nonsense"],
        ["switch", "green", "--drain-timeout", "3601"],
        ["switch", "green", "--strategy", "gracefull"],
        ["history", "--limit", "0"],
        ["--url", "nonsense", "status"],
        ["--url", "http://127.0.0.1:x", "status"],
        ["--url", "http://exa mple", "status"],
        ["--url", "http://[::1", "status"],
        ["--token-file", "nowhere.txt", "status"],
        ["--key-file", "key.pem", "status"],
        [],
    ],
)
def test_wrong_use_is_2(served: Served, turnout: Any, arguments: list[str]) -> None:
    ran = turnout(*arguments)
    assert ran.code == 2
    assert not served.supervisor.records


def test_not_running_is_one_line_that_says_what_to_do(turnout: Any) -> None:
    ran = turnout("--url", f"http://127.0.0.1:{free_port()}", "status")
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.count("\n") == 1
    assert "start one with `turnout serve CONFIG`" in ran.err


def test_a_host_that_is_no_name_is_told_as_one_that_nobody_answers_at(turnout: Any) -> None:
    ran = turnout("--url", f"http://{'a' * 64}.example", "status")
    assert ran.code == 1
    assert "label empty or too long" in ran.err


def test_something_else_on_that_port_is_told(turnout: Any) -> None:
    import http.server

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            """Nothing: a test is quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as other:
        thread = threading.Thread(target=other.handle_request)
        thread.start()
        ran = turnout("--url", f"http://127.0.0.1:{other.server_port}", "status")
        thread.join(10)
    assert ran.code == 1
    assert "is not a Turnout's control port" in ran.err


def test_a_command_that_comes_too_often_waits_for_its_turn(turnout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Served(ScriptedSupervisor(), requests_per_s=1.0) as served:
        monkeypatch.setenv("TURNOUT_URL", served.url)
        for _ in range(3):
            ran = turnout("status", "--json")
            assert (ran.code, ran.err) == (0, "")


# --- switching ----------------------------------------------------------------------------------------------------


def test_a_switch_shows_its_phases_and_its_figures(served: Served, turnout: Any) -> None:
    ran = turnout("switch", "green", "--reason", "upgrade")
    assert (ran.code, ran.err) == (0, "")
    phases = [line.split()[-1] for line in ran.out.splitlines() if " ms  " in line][:10]
    assert phases[:4] == ["validating", "preparing", "holding", "fencing"]
    assert "completed: green serves shop" in ran.out
    assert "12.5  Turnout's own part" in ran.out
    assert "49 requests waited, 0 errors seen by clients" in ran.out
    [record] = served.supervisor.records.values()
    assert record.plan.reason == "upgrade"


def test_a_refused_switch_is_1_and_says_which_check_and_what_to_do(served: Served, turnout: Any) -> None:
    served.supervisor.checks = [PASSED, LAG]
    ran = turnout("switch", "green")
    assert ran.code == 1
    assert ran.err == "turnout: refused by check lag: 9 GB behind; wait for green\n"
    as_json = turnout("switch", "green", "--json")
    assert as_json.code == 1
    assert as_json.json["remedy"] == "wait for green"


def test_force_goes_on(served: Served, turnout: Any) -> None:
    served.supervisor.checks = [LAG]
    assert turnout("switch", "green", "--force").code == 0


def test_a_dry_run_shows_the_checks_and_changes_nothing(served: Served, turnout: Any) -> None:
    served.supervisor.checks = [PASSED, WARNED]
    ran = turnout("switch", "green", "--dry-run")
    assert ran.code == 0
    assert "to do: they are waited for" in ran.out
    served.supervisor.checks = [LAG]
    ran = turnout("switch", "green", "--dry-run")
    assert ran.code == 1
    assert ran.err == "turnout: lag: 9 GB behind; wait for green\n"
    assert not served.supervisor.records


def test_a_switch_that_is_aborted_later_is_1_and_says_why(served: Served, turnout: Any) -> None:
    supervisor = served.supervisor
    supervisor.runs_by_itself = False

    def cancel_when_preparing() -> None:
        [record] = supervisor.records.values()
        supervisor.run(record.id, until=Phase.PREPARING)
        record.error, record.remedy = "the target was lost", "start it"
        supervisor._end(record, Phase.ABORTED)

    supervisor.subscribe(
        lambda event: served.later(cancel_when_preparing) if event.data["phase"] == "validating" else None
    )
    ran = turnout("switch", "green")
    assert ran.code == 1
    assert "aborted: blue goes on serving shop" in ran.out
    assert ran.err.endswith("aborted: the target was lost; start it\n")


def test_cancel_undoes_a_running_switch(served: Served, turnout: Any) -> None:
    supervisor = served.supervisor
    supervisor.runs_by_itself = False
    answers = []
    asked = threading.Thread(target=lambda: answers.append(_post_switch(served)))
    asked.start()
    while not supervisor.records:
        asked.join(0.01)
    [switch_id] = supervisor.records
    served.later(lambda: supervisor.run(switch_id, until=Phase.HOLDING))
    asked.join(10)
    ran = turnout("cancel", switch_id)
    assert ran.code == 0
    assert "aborted: blue goes on serving shop" in ran.out
    too_late = turnout("cancel", switch_id)
    assert too_late.code == 1
    assert "has ended: aborted; plan another" in too_late.err


def test_failover_switches_the_automation(served: Served, turnout: Any) -> None:
    off = turnout("failover", "off")
    assert off.code == 0
    assert "automatic failover is off: switched off by" in off.out
    assert "automatic failover is on" in turnout("failover", "on").out
    assert turnout("failover", "perhaps").code == 2
    assert turnout("failover", "off", "green").code == 2


def test_a_failover_by_hand_is_refused_while_the_active_engine_answers(served: Served, turnout: Any) -> None:
    refused = turnout("failover", "start")
    assert refused.code == 1
    assert "the active engine 'blue' answers" in refused.err
    served.supervisor.active_answers = False
    ran = turnout("failover", "start", "green", "--reason", "the rack burns")
    assert ran.code == 0, ran.err
    [record] = served.supervisor.records.values()
    assert (record.target, record.plan.reason) == ("green", "the rack burns")


def _post_switch(served: Served) -> Any:
    from proxy.control.client import ControlClient

    return ControlClient(served.url).post("/v1/services/shop/switch", {"target_engine": "green"})


def test_a_report_reads_without_its_json(served: Served, turnout: Any) -> None:
    switch_id = turnout("switch", "green", "--json").json["id"]
    ran = turnout("report", switch_id)
    assert ran.code == 0
    for words in (
        "shop: blue > green, graceful",
        "cutover_ms",
        "25006, 0 outside sessions ended",
        "source stood at 0/3000060",
    ):
        assert words in ran.out
    unknown = turnout("report", "nope")
    assert unknown.code == 1
    assert unknown.err == "turnout: there is no switch 'nope'; `turnout history` lists them\n"


def test_history_shows_the_figures_of_each_switch(served: Served, turnout: Any) -> None:
    assert "no switch yet" in turnout("history").out
    turnout("switch", "green")
    assert "12.5 ms" in turnout("history").out


def test_a_service_has_to_be_named_only_if_there_are_several(turnout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Served(ScriptedSupervisor(make_config(services=("shop", "store")))) as served:
        monkeypatch.setenv("TURNOUT_URL", served.url)
        ran = turnout("switch", "green")
        assert ran.code == 2
        assert ran.err == "turnout: there are several services (shop, store); name one with --service\n"
        assert turnout("switch", "green", "--service", "store").code == 0
        assert turnout("switch", "green", "--service", "no").code == 1


# --- showing ------------------------------------------------------------------------------------------------------


def test_nothing_is_wider_than_80_columns(served: Served, turnout: Any) -> None:
    served.supervisor.checks = [PASSED, WARNED]
    switch_id = turnout("switch", "green", "--json").json["id"]
    turnout("policy", "set", "a-name-that-people-give-it", *SLOW[1:])
    turnout("policy", "run", "a-name-that-people-give-it")
    for arguments in (
        ["status"], ["engines"], ["sessions"], ["history"], ["ready", "blue"], ["report", switch_id], ["policy", "list"],
        ["policy", "history"], ["alert", "rules"],
    ):  # fmt: skip
        ran = turnout(*arguments)
        assert max(map(len, ran.out.splitlines())) <= 80, arguments
    entries = turnout("audit").out
    assert max(map(len, entries.splitlines())) <= 80
    for whole in ("set_policy a-name-that-people-give-it", "local user at 127.0.0.1"):
        assert whole in entries


def test_names_are_shown_as_they_are(served: Served, turnout: Any) -> None:
    assert "[red]app@shop" in turnout("sessions").out


def test_an_engine_that_is_down_says_why(served: Served, turnout: Any) -> None:
    assert "red: connection refused" in turnout("status").out


# --- tokens -------------------------------------------------------------------------------------------------------


def test_a_token_is_taken_from_the_environment_or_from_a_file(
    turnout: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Served(ScriptedSupervisor(make_config(token="s3cret"))) as served:
        monkeypatch.setenv("TURNOUT_URL", served.url)
        monkeypatch.delenv("TURNOUT_TOKEN", raising=False)
        ran = turnout("status")
        assert ran.code == 1
        assert "put a token into TURNOUT_TOKEN" in ran.err
        (tmp_path / "token").write_text("s3cret\n")
        assert turnout("status", "--token-file", str(tmp_path / "token")).code == 0
        assert turnout("--token-file", str(tmp_path / "token"), "status").code == 0
        monkeypatch.setenv("TURNOUT_TOKEN", "s3cret")
        assert turnout("status").code == 0
        monkeypatch.setenv("TURNOUT_TOKEN", "wrong")
        ran = turnout("status")
        assert ran.code == 1
        assert "wrong" in ran.err
        assert "s3cret" not in ran.err
        for unfit in ("two words", "two\nlines", "tök€n"):
            monkeypatch.setenv("TURNOUT_TOKEN", unfit)
            ran = turnout("status")
            assert ran.code == 2
            assert "the token has a character that no token has" in ran.err
            assert unfit not in ran.err


def test_a_certificate_that_cannot_be_used_is_named(turnout: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for option, name, why in (
        ("--ca-file", "nowhere.pem", "No such file or directory"),
        ("--cert-file", "nowhere.pem", "No such file or directory"),
        ("--cert-file", "empty.pem", "PEM lib"),
    ):
        ran = turnout("--url", "https://127.0.0.1:1", option, str(tmp_path / name), "status")
        assert ran.code == 2
        assert ran.err.startswith(f"turnout: {option} {tmp_path / name} cannot be used: ")
        assert why in ran.err


# --- without a running Turnout ------------------------------------------------------------------------------------


def test_serve_and_check_tell_every_error_of_the_config_in_a_line(turnout: Any, tmp_path: Path) -> None:
    path = tmp_path / "turnout.toml"
    path.write_text("wrokers = 2\nlistener = 3\n")
    for command in ("serve", "check"):
        ran = turnout(command, str(path))
        assert ran.code == 1
        assert ran.err.splitlines() == [
            f'turnout: {path}:1: wrokers: unknown key; did you mean "workers"?',
            f'turnout: {path}:1: the table "service" is missing',
            f"turnout: {path}:2: listener: expected an array, got 3",
        ]


def test_help_needs_no_heavy_module() -> None:
    code = (
        "import sys\nsys.argv = ['turnout', '--help']\nfrom proxy.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'litestar', 'uvicorn', 'prometheus_client', 'asyncpg', 'pymysql', 'uvloop', 'httpx', 'rich.live'}\n"
        "heavy |= {'asyncio', 'http.client', 'ssl'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_module_is_the_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "proxy", "version"], capture_output=True, text=True, check=False)
    assert ran.stdout == "turnout 0.1.0\n"


# --- policies -----------------------------------------------------------------------------------------------------

SLOW = ("slow", "--trigger", "performance_degradation", "--response-time-threshold-ms", "250", "--target", "green")


def test_a_policy_is_set_switched_off_and_removed(served: Served, turnout: Any) -> None:
    assert turnout("policy", "list").out == "no policies: Turnout switches when it is told to\n"
    view = turnout("policy", "set", *SLOW, "--window-duration", "30", "--json").json
    assert view["policy"]["response_time_threshold_ms"] == 250.0
    assert view["policy"]["window_duration"] == 30
    assert "performance_degradation" in turnout("policy", "list").out
    assert not turnout("policy", "disable", "slow", "--json").json["policy"]["enabled"]
    assert turnout("policy", "enable", "slow", "--json").json["policy"]["enabled"]
    assert turnout("policy", "history", "slow").out == "nothing was decided yet\n"
    assert turnout("policy", "remove", "slow").out == "policy slow is removed\n"
    gone = turnout("policy", "remove", "slow")
    assert gone.code == 1
    assert "there is no policy 'slow'" in gone.err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--trigger", "scheduled", "--cron-expression", "x"), "expected five fields"),
        (("--trigger", "error_rate"), "error_rate_threshold: is missing"),
        (("--priority", "256"), "priority"),
        (("--trigger", "sometimes"), "trigger"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_the_key(
    served: Served, turnout: Any, more: tuple[str, ...], says: str
) -> None:
    ran = turnout("policy", "set", *SLOW, *more)
    assert ran.code != 0
    assert says in ran.err


def test_a_pause_waits_for_the_last_backend_and_shows_what_stands_still(served: Served, turnout: Any) -> None:
    supervisor = served.supervisor
    supervisor.backends_left = 1

    def leave() -> None:
        """After some looks, the last one."""
        supervisor.backends_left = 1 if supervisor.counted < 3 else 0
        if supervisor.backends_left:
            served.later(leave)

    served.later(leave)
    [row] = turnout("database", "pause", "--json").json
    assert (row["is_paused"], row["backends_left"]) == (True, 0)
    assert supervisor.counted >= 3
    again = turnout("database", "pause")
    assert (again.code, "already suspended/paused" in again.err) == (1, True)
    assert "all databases" in turnout("database", "list").out
    assert not turnout("database", "resume", "--json").json[0]["is_paused"]
    assert turnout("database", "disable", "shop", "--json").json[0]["disabled"] == ["shop"]
    assert turnout("database", "enable", "shop", "--json").json[0]["disabled"] == []
    assert turnout("database", "kill", "nowhere").code == 1
    assert supervisor.retired == []
    turnout("database", "kill", "shop")
    assert supervisor.retired == [("shop", "shop", True)]
    assert turnout("database", "resume", "shop", "--json").json[0]["paused"] == []


def test_alerts_are_shown_silenced_and_their_receivers_tested(served: Served, turnout: Any) -> None:
    assert turnout("alert", "list").out == "no alert fires, and none did within a day\n"
    assert "nobody is told of alerts" in turnout("alert", "receivers").out
    assert turnout("alert", "deliveries").out == "no message was sent yet\n"
    shown = turnout("alert", "rules").out
    assert "active_engine_down" in shown
    assert "30000" in shown
    assert "service_takes_no_writes  service_takes_no_writes" in shown
    kept = turnout("alert", "silence", "--for", "60", "--alert", "engine_down", "--engine", "green", "--json").json
    assert (kept["alert"], kept["engine"]) == ("engine_down", "green")
    assert "engine_down of green" in turnout("alert", "silences").out
    assert turnout("alert", "unsilence", str(kept["number"])).out == f"silence {kept['number']} is over\n"
    assert turnout("alert", "silences").out == "nothing is silenced\n"
    nobody = turnout("alert", "test", "ops")
    assert nobody.code == 1
    assert "there is no receiver 'ops'" in nobody.err
