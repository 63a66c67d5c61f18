"""Fetch a real MySQL server: Debian sid's packages, unpacked into a cache folder, with their own C library.

Debian 12 has MariaDB only. The packages come from the mirror that apt on this machine is configured for, checked with
Debian's own keys; neither the system's apt nor dpkg is changed. `python -m proxy.embedded.fetch_mysql` does it by hand.

The folder: `turnout/mysql` below `$XDG_CACHE_HOME` or `~/.cache`; below `/var/cache` when root's home is closed to the
account that the server runs as. `TURNOUT_CACHE` overrides.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from proxy.embedded.process import BinaryMissing, is_closed_to_nobody

SERVER: Final = "mysql-server-core"
CLIENT: Final = "mysql-client-core"
"""MySQL's own client, which speaks what MariaDB's does not: query attributes, zstd."""
ROUTER: Final = "mysql-router"
"""MySQL's own proxy, which the measurements compare with."""

_PROGRAMS: Final = {SERVER: "mysqld", CLIENT: "mysql", ROUTER: "mysqlrouter"}
_FOLDERS: Final = {SERVER: "mysql", CLIENT: "mysql-client", ROUTER: "mysql-router"}

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TIMEOUT_S: Final = 300


def cache_folder(package: str = SERVER) -> Path:
    """Where the unpacked package is kept, whether it is there or not."""
    if "TURNOUT_CACHE" in os.environ:
        return Path(os.environ["TURNOUT_CACHE"]) / _FOLDERS[package]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if is_closed_to_nobody(cache):
        cache = Path("/var/cache")
    return cache / "turnout" / _FOLDERS[package]


def program(package: str = SERVER) -> list[str | Path]:
    """The words that start the package's program, which is fetched if it is not there. Raises BinaryMissing."""
    return _started(_path(fetch(package) / "root", package), package)


def tool(name: str) -> list[str | Path]:
    """The words that start a program that comes with the server (mysqlbinlog)."""
    return _started(fetch() / "root/usr/bin" / name, SERVER)


def _started(path: Path, package: str) -> list[str | Path]:
    root = cache_folder(package) / "root"
    # The unpacked C library's own loader: the machine's one may be older.
    libraries = [root / "usr/lib/x86_64-linux-gnu", root / "usr/lib", root / "usr/lib/mysql/private"]
    if package == ROUTER:
        libraries.append(root / "usr/lib/mysql-router")
    return [root / "lib64/ld-linux-x86-64.so.2", "--library-path", ":".join(map(str, libraries)), path]


def _path(root: Path, package: str) -> Path:
    return root / "usr" / ("sbin" if package == SERVER else "bin") / _PROGRAMS[package]


def fetch(package: str = SERVER) -> Path:
    """The folder with the unpacked package, fetched if it is not there yet. Blocks; up to some minutes, once.

    Raises BinaryMissing with the reason."""
    folder = cache_folder(package)
    if _path(folder / "root", package).exists():
        return folder
    for tool in ("apt-get", "dpkg-deb", "tar"):
        if shutil.which(tool) is None:
            raise BinaryMissing(f"a real MySQL server is fetched with Debian's tools, and {tool} is not here")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "w") as lock:
        # One process fetches, those that want the same meanwhile wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _path(folder / "root", package).exists():
            return folder
        # Built beside its place and renamed: whoever finds the folder finds all of it.
        work = Path(tempfile.mkdtemp(prefix="mysql-", dir=folder.parent))
        try:
            _unpack(work, package)
            work.chmod(0o755)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _unpack(work: Path, package: str) -> None:
    for name in ("lists/partial", "cache/archives/partial", "root/usr"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_mirror()} sid main\n")
    options = [
        f"-oDir::Etc::SourceList={work}/sources.list",
        "-oDir::Etc::SourceParts=/dev/null",
        f"-oDir::State::Lists={work}/lists",
        f"-oDir::Cache={work}/cache",
        f"-oDir::State::status={work}/status",
        "-oDebug::NoLocking=1",
        "-oAcquire::Languages=none",
        # The sandbox account cannot write into a home.
        f"-oAPT::Sandbox::User={_account()}",
    ]
    _run(["apt-get", "-q", *options, "update"])
    _run(["apt-get", "-q", *options, "--no-install-recommends", "-y", "-d", "install", package])
    root = work / "root"
    # Merged /usr: packages put files below both names.
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir()
        (root / name).symlink_to(f"usr/{name}")
    for file in sorted((work / "cache/archives").glob("*.deb")):
        archive = work / "package.tar"
        with open(archive, "wb") as out:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", file], check=True, stdout=out, timeout=_TIMEOUT_S)
        _run(["tar", "-xf", str(archive), "--keep-directory-symlink", "--no-same-owner", "-C", str(root)])
        archive.unlink()
    for name in ("lists", "cache"):
        shutil.rmtree(work / name)
    for path in root.glob("usr/share/*"):
        if path.name not in {"mysql", "mysql-9.7"} and not path.name.startswith("mysql"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _mirror() -> str:
    """Address of the archive apt on this machine uses for the main suite."""
    listing = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"])
    for line in listing.splitlines():
        address, _, suite = line.partition(" ")
        if not any(word in suite for word in ("security", "updates", "backports")):
            return address
    raise BinaryMissing("apt on this machine knows no Debian archive, so MySQL cannot be fetched")


def _account() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _run(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout).strip().splitlines()[-3:]
        raise BinaryMissing(f"MySQL could not be fetched: {argv[0]}: {' / '.join(words)}") from error
    except subprocess.TimeoutExpired as error:
        raise BinaryMissing(f"MySQL could not be fetched: {argv[0]} did not end within {_TIMEOUT_S} s") from error
    return done.stdout


def main() -> int:
    """Fetch it and say where it is."""
    try:
        folder = fetch()
    except BinaryMissing as error:
        sys.stderr.write(f"{error.text}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
