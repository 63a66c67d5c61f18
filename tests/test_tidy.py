"""Rules about the repository itself that no other program checks."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pip._internal.models.index import PyPI

from protocols import codes

ROOT = Path(__file__).parents[1]
FOLDERS = (".ci", "bench", "conf", "docs", "protocols", "proxy", "tests", "tools")
MADE_HERE = {".c", ".so", ".pyc", ".pyd", ".html.orig"}

# `from X import`, `from X cimport`, `import X`, `cimport X`; X alone is of interest.
IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\b|c?import\s+([\w.]+))", re.MULTILINE)
ENUM_LINE = re.compile(r"^\s+([A-Z][A-Z_]*) = (\d+)$", re.MULTILINE)

LOWEST = {"cython", "libc", "cpython", "posix", "typing", "enum", "__future__", "dataclasses", "collections"}


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the repository, built files left out."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in files:
        if path.suffix in MADE_HERE or "__pycache__" in path.parts:
            continue
        try:
            yield path, path.read_text()
        except UnicodeDecodeError:
            continue  # recorded bytes of a conversation


def native_files() -> list[Path]:
    return sorted(path for folder in ("protocols", "proxy") for path in (ROOT / folder).rglob("*.p[yx][xd]"))


def imported(path: Path) -> set[str]:
    return {first or second for first, second in IMPORT.findall(path.read_text())}


@pytest.mark.parametrize("path", native_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_native_files_import_downwards_only(path: Path) -> None:
    place = path.relative_to(ROOT)
    for name in imported(path):
        top, _, rest = name.partition(".")
        if place.parts[0] == "protocols":
            assert top in LOWEST | {"protocols"}, f"{place} imports {name}: wire code does no I/O"
            family = rest.split(".")[0]
            if family in ("postgres", "mysql"):
                assert family in place.parts, f"{place} imports {name}: the protocols do not know each other"
        elif top == "proxy":
            assert rest.split(".")[0] not in {
                "control",
                "policy",
                "switch",
                "engines",
                "serving",
                "supervisor",
                "watching",
                "hearing",
                "worker",
                "workers",
                "cli",
            }, f"{place} imports {name}: imports point downwards"


@pytest.mark.parametrize("path", [p for p in native_files() if p.suffix == ".pyx"], ids=lambda path: path.name)
def test_a_native_module_has_a_stub_for_the_type_checker(path: Path) -> None:
    assert path.with_suffix(".pyi").exists()


def test_the_readable_run_uses_the_numbers_of_the_compiled_one() -> None:
    compiled = {name: int(value) for name, value in ENUM_LINE.findall((ROOT / "protocols/wire.pxd").read_text())}
    readable = {name: value for name, value in vars(codes).items() if name.isupper()}
    assert compiled == readable


def registry_hosts() -> set[str]:
    """Hosts that packages come from on this machine and by default; none is spelled out here."""
    hosts = {PyPI.netloc, PyPI.file_storage_domain}
    try:
        targets = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=False
        ).stdout
    except FileNotFoundError:
        targets = ""
    return hosts | set(re.findall(r"://([^/:\s]+)", targets))


def test_no_file_names_the_host_of_a_package_registry() -> None:
    hosts = registry_hosts()
    found = [f"{path.relative_to(ROOT)}: {host}" for path, text in texts() for host in hosts if host in text]
    assert not found


def test_no_file_names_a_place_of_the_machine_it_was_written_on() -> None:
    # A home directory or a checkout; `~`, /tmp, /etc and /usr are the same everywhere.
    place = re.compile(r"(?<![\w.$}])/(?:home|Users|root|work|workspace)/(?=\w)")
    found = [f"{path.relative_to(ROOT)}: {hit.group()}" for path, text in texts() for hit in place.finditer(text)]
    assert not found
