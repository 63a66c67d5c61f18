from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import ROOT, Docs, produced, sample
from proxy import config
from proxy.config import Config, load


@pytest.mark.parametrize("path", produced(), ids=lambda path: path.name)
def test_what_is_made_from_the_code_is_up_to_date(path: Path) -> None:
    assert path.read_text() == produced()[path], "run `make docs`"


def test_every_key_of_the_config_says_what_it_is() -> None:
    docs = Docs()
    for name, struct in vars(config).items():
        if isinstance(struct, type) and issubclass(struct, config._Table) and struct.__struct_fields__:
            assert docs.of_struct[name]
            assert [field for field in struct.__struct_fields__ if (name, field) not in docs.of_field] == []


def test_the_sample_config_is_a_config() -> None:
    loaded = load(ROOT / "conf/turnout.toml", environ={"TURNOUT_ADMIN_PASSWORD": "x"})
    assert list(loaded.service) == ["shop"]


def test_the_sample_config_is_one_with_every_key_set_too(tmp_path: Path) -> None:
    (tmp_path / "turnout.toml").write_text(re.sub(r"^#(?=\S)", "", sample(), flags=re.MULTILINE))
    (tmp_path / "users.txt").write_text((ROOT / "conf/users.txt").read_text())
    (tmp_path / "login.txt").write_text("x\n")
    loaded = load(tmp_path / "turnout.toml", environ={"TURNOUT_ADMIN_PASSWORD": "x", "TURNOUT_TOKEN": "y"})
    assert sorted(loaded.service) == ["blog", "shop"]


def test_what_the_sample_shows_as_default_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "turnout.toml").write_text(re.sub(r"^#(?=\S)", "", sample(), flags=re.MULTILINE))
    (tmp_path / "users.txt").write_text('"a" "b"\n')
    (tmp_path / "login.txt").write_text("x\n")
    shown = load(tmp_path / "turnout.toml", environ={"TURNOUT_ADMIN_PASSWORD": "x", "TURNOUT_TOKEN": "y"})
    default = Config(listener=shown.listener, service=shown.service)
    for field in ("workers", "max_client_conn", "client_login_timeout_s", "log"):
        assert getattr(shown, field) == getattr(default, field)
    assert shown.service["shop"].switch == shown.service["blog"].switch
