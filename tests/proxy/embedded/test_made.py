from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.embedded import ServerFailed, Workspace
from proxy.embedded.made import MADE, make_once


class Maker:
    """Makes folders, and knows how many."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.made = 0

    async def fill(self, name: str) -> Path:
        async def make() -> None:
            self.made += 1
            (self.workspace.folder(name) / "file").write_text(f"number {self.made}")

        folder = self.workspace.path / name
        await make_once("a folder with a file", folder, make, self.workspace)
        return folder


@pytest.fixture
def maker(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.setenv(MADE, str(workspace.folder("made")))
    return Maker(workspace)


async def test_a_server_is_made_once_and_copied_from_then_on_even_for_those_who_ask_at_the_same_time(
    maker: Maker,
) -> None:
    folders = await asyncio.gather(*(maker.fill(name) for name in ("blue", "green", "grey")))
    assert [(folder / "file").read_text() for folder in folders] == ["number 1"] * 3


async def test_a_copy_is_its_owner_s_alone(maker: Maker) -> None:
    blue, green = await maker.fill("blue"), await maker.fill("green")
    assert blue.stat().st_uid == green.stat().st_uid
    (blue / "file").write_text("changed")
    assert (green / "file").read_text() == "number 1"
    assert ((await maker.fill("grey")) / "file").read_text() == "number 1"


async def test_what_could_not_be_made_is_made_by_the_next_who_asks(maker: Maker) -> None:
    async def fail() -> None:
        raise ServerFailed("no room left")

    with pytest.raises(ServerFailed, match="no room left"):
        await make_once("a folder with a file", maker.workspace.path / "never", fail, maker.workspace)
    assert ((await maker.fill("blue")) / "file").read_text() == "number 1"


async def test_without_a_place_to_keep_them_all_are_made(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MADE)
    await maker.fill("blue")
    assert ((await maker.fill("green")) / "file").read_text() == "number 2"
