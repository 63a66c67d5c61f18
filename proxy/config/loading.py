"""Loading as a whole, and the way of a loaded config to the workers."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from proxy.config.meaning import check_meaning, check_tls
from proxy.config.paths import with_paths
from proxy.config.problems import ConfigErrors, Problems
from proxy.config.reader import Reader, read_text, struct_of, toml_error
from proxy.config.resolver import Resolver
from proxy.config.text import key_lines
from proxy.config.whole import Config


def load(path: str | Path, *, environ: Mapping[str, str] | None = None) -> Config:
    """The config of the file at `path`, checked, with secrets resolved and `state_file`, `runtime_dir` absolute.

    `environ` is where secrets of the form `{ env = … }` are looked up (default: this process's environment).
    Raises ConfigErrors, with file, line and key of everything that is wrong.
    """
    path = Path(path)
    text = read_text(path)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigErrors([toml_error(path, text, error)]) from error
    problems = Problems(path, key_lines(text))
    checked = Reader(problems).table(struct_of(Config), raw, ())
    problems.raise_any()
    config = msgspec.convert(checked, Config)
    check_meaning(config, problems)
    problems.raise_any()
    resolved = with_paths(Resolver(problems, os.environ if environ is None else environ).resolve(config), path)
    check_tls(resolved, problems)
    problems.raise_any()
    return resolved


def encode_effective(config: Config) -> bytes:
    """The config with its secrets, for the workers: `ipc.Configure.config`. Never written to a file or a log."""
    return msgspec.json.encode(config)


def decode_effective(data: bytes) -> Config:
    """What `encode_effective` made. Raises msgspec.DecodeError."""
    return msgspec.json.decode(data, type=Config)
