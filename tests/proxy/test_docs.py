from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from docs.generate import PRODUCED, ROOT, Docs, sample
from proxy.cli import app
from proxy.config import Config, load
from proxy.config.table import Table
from proxy.control.metrics import Metrics
from tests.proxy.control.scripted import ScriptedSupervisor


@pytest.mark.parametrize("path", PRODUCED, ids=lambda path: path.name)
def test_what_is_made_from_the_code_is_up_to_date(path: Path) -> None:
    assert path.read_text() == PRODUCED[path](), "run `make docs`"


SECRETS = dict.fromkeys(("TURNOUT_ADMIN_PASSWORD", "TURNOUT_TOKEN", "REPLICATION_PASSWORD", "HOOK_TOKEN"), "x" * 16) | {
    "OPS_SLACK_URL": "https://chat.example/services/x",
    "OPS_TOKEN": "x",
    "SMTP_PASSWORD": "x",
}
"""Variables that the sample names when all of it is set."""


def test_every_key_of_the_config_says_what_it_is() -> None:
    docs = Docs()
    tables = [table for table in Table.__subclasses__() if table.__module__.startswith("proxy.config.")]
    assert Config in tables
    for table in tables:
        name = table.__name__
        assert docs.of_struct[name]
        assert [field for field in table.__struct_fields__ if (name, field) not in docs.of_field] == []


def test_the_sample_config_is_a_config() -> None:
    loaded = load(ROOT / "conf/turnout.toml", environ={"TURNOUT_ADMIN_PASSWORD": "x"})
    assert list(loaded.service) == ["shop"]


def _with_every_key() -> str:
    """The sample with nothing commented out; rules about reads are for transaction mode."""
    text = re.sub(r"^#(?=\S)", "", sample(), flags=re.MULTILINE)
    return text.replace('pool_mode = "session"', 'pool_mode = "transaction"', 1)


def test_the_sample_config_is_one_with_every_key_set_too(tmp_path: Path) -> None:
    (tmp_path / "turnout.toml").write_text(_with_every_key())
    (tmp_path / "users.txt").write_text((ROOT / "conf/users.txt").read_text())
    (tmp_path / "login.txt").write_text("x\n")
    (tmp_path / "alice.txt").write_text("y" * 16)
    (tmp_path / "hba.conf").write_text("host all all all md5\n")
    (tmp_path / "headers.txt").write_text("authorization=Bearer%20x\n")
    loaded = load(tmp_path / "turnout.toml", environ=SECRETS)
    assert sorted(loaded.service) == ["blog", "shop"]


def test_what_the_sample_shows_as_default_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "turnout.toml").write_text(_with_every_key())
    (tmp_path / "users.txt").write_text('"a" "b"\n')
    (tmp_path / "login.txt").write_text("x\n")
    (tmp_path / "alice.txt").write_text("y" * 16)
    (tmp_path / "hba.conf").write_text("host all all all md5\n")
    (tmp_path / "headers.txt").write_text("authorization=Bearer%20x\n")
    shown = load(tmp_path / "turnout.toml", environ=SECRETS)
    default = Config(listener=shown.listener, service=shown.service)
    for field in ("workers", "max_client_conn", "client_login_timeout_s", "log"):
        assert getattr(shown, field) == getattr(default, field)
    assert shown.service["shop"].switch == shown.service["blog"].switch


def test_the_config_of_the_readme_is_a_config(tmp_path: Path) -> None:
    [block] = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "turnout.toml").write_text(block)
    (tmp_path / "users.txt").write_text('"app" "x"\n')
    assert load(tmp_path / "turnout.toml", environ={"TURNOUT_ADMIN_PASSWORD": "x"}).service["shop"].active == "blue"


async def test_every_metric_is_described_in_the_docs() -> None:
    supervisor = ScriptedSupervisor()
    text, _ = await Metrics(supervisor).scrape("")
    page = (ROOT / "docs/metrics.md").read_text()
    families = set(re.findall(r"^# TYPE (\S+)", text.decode(), re.MULTILINE))
    assert len(families) > 30
    assert set(re.findall(r"`(turnout_\w+)`", page)) == families


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_is_described_in_the_docs() -> None:
    page = (ROOT / "docs/operation.md").read_text()
    for command in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"`(?:turnout )?{command}\b", page), command


def test_every_command_that_the_docs_show_is_one_with_these_options() -> None:
    shown = 0
    turnout = typer.main.get_command(app)
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for line in re.findall(r"(?:`|^(?:\$ )?)turnout ([^`\n#|]+)", page.read_text(), re.MULTILINE):
            words = [word.strip("\\,;:()") for word in line.split()]
            command: Any = turnout
            while words and not words[0].startswith("-") and hasattr(command, "commands"):
                assert words[0] in command.commands, f"{page.name}: turnout {line}"
                command = command.commands[words.pop(0)]
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            for option in (word.partition("=")[0] for word in words if word.startswith("-")):
                assert option in {*known, "--help", "-h", "--install-completion"}, f"{page.name}: turnout {line}"
            shown += 1
    assert shown > 50
