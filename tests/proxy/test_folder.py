from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.folder import FolderRefused, RuntimeFolder

TAKES_AND_STAYS = """
import sys
from pathlib import Path
from proxy.folder import RuntimeFolder
folder = RuntimeFolder(Path(sys.argv[1]))
folder.take()
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> RuntimeFolder:
    return RuntimeFolder(tmp_path / "run")


def test_it_is_made_for_this_account_only(folder: RuntimeFolder) -> None:
    folder.take()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.release()


def test_one_that_is_open_to_others_is_closed_to_them(folder: RuntimeFolder) -> None:
    folder.path.mkdir(mode=0o755)
    folder.take()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.release()


def test_a_second_one_is_told_who_is_there_and_gets_it_afterwards(folder: RuntimeFolder) -> None:
    second = RuntimeFolder(folder.path)
    folder.take()
    for _ in range(2):
        with pytest.raises(FolderRefused, match=rf"pid {os.getpid()}\)") as refused:
            second.take()
    assert "another runtime_dir" in refused.value.hint
    second.release()
    folder.release()
    second.take()
    second.release()


def test_one_whose_holder_was_killed_is_free(folder: RuntimeFolder) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", TAKES_AND_STAYS, folder.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"taken\n"
        with pytest.raises(FolderRefused, match=rf"pid {holder.pid}\)"):
            folder.take()
        holder.send_signal(signal.SIGKILL)
    folder.take()
    folder.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_one_of_another_account_is_refused(folder: RuntimeFolder) -> None:
    folder.path.mkdir()
    os.chown(folder.path, 65534, 65534)
    with pytest.raises(FolderRefused, match="not a folder of this account"):
        folder.take()


def test_a_link_to_a_folder_is_refused(folder: RuntimeFolder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FolderRefused, match="not a folder of this account"):
        folder.take()


def test_a_file_in_its_place_is_refused(folder: RuntimeFolder) -> None:
    folder.path.write_text("")
    with pytest.raises(FolderRefused, match="cannot be used"):
        folder.take()
