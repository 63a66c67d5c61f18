"""What a client's first packet asks for besides user and database: settings, as parameters of their own or in `options`.

In session mode they are passed on as they came and the server sees to them. In transaction mode a backend serves many
clients, so they are taken apart into settings that each backend is given by SET. Nothing is dropped: what cannot be
taken apart is refused by name, unless the config says to ignore that name.

Source: PostgreSQL, utils/init/postinit.c (`pg_split_opts`, `process_startup_options`) and tcop/postgres.c
(`process_postgres_switches`): `options` are split at spaces, a backslash takes the next character as it is; then come
`-c name=value`, `--name=value`, and switches of the server program. Parameters of their own win over `options`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from protocols.wire import Startup

_NAME: Final = re.compile(r"[A-Za-z_][\w$]*(?:\.[A-Za-z_][\w$]*)*")


class RefusedOption(Exception):
    """`options` hold something that cannot be applied; the text names it."""

    def __init__(self, text: str, sqlstate: str) -> None:
        super().__init__(text)
        self.text = text
        self.sqlstate = sqlstate


def split_options(text: str) -> list[str]:
    """Words of `options`."""
    words: list[str] = []
    word: list[str] | None = None
    position = 0
    while position < len(text):
        c = text[position]
        position += 1
        if c in " \t\n\v\f\r":
            if word is not None:
                words.append("".join(word))
                word = None
            continue
        word = [] if word is None else word
        if c == "\\":
            if position < len(text):
                word.append(text[position])
                position += 1
        else:
            word.append(c)
    if word is not None:
        words.append("".join(word))
    return words


def parse_options(text: str) -> list[tuple[str, str]]:
    """Settings in `options`, in their order. Raises RefusedOption."""
    settings: list[tuple[str, str]] = []
    words = iter(split_options(text))
    for word in words:
        if word.startswith("--") and len(word) > 2:
            setting = word[2:]
        elif word == "-c":
            setting = next(words, "")
        elif word.startswith("-c"):
            setting = word[2:]
        elif word.startswith("-") and len(word) > 1:
            raise RefusedOption(
                f'startup option "{word}" cannot be applied to a shared backend; use -c name=value', "0A000"
            )
        else:
            raise RefusedOption(f"invalid command-line argument for server process: {word}", "42601")
        name, equals, value = setting.partition("=")
        if not equals:
            raise RefusedOption(f"-c {setting} requires a value", "42601")
        settings.append((_checked(name.replace("-", "_")), value))
    return settings


def build_options(settings: list[tuple[str, str]]) -> str:
    """The inverse of `parse_options`."""
    return " ".join(
        "-c " + re.sub(r"([\\\s])", lambda found: "\\" + found[1], f"{name}={value}") for name, value in settings
    )


def without(startup: Startup, ignored: Collection[str]) -> Startup:
    """`startup` less the settings that the config ignores, wherever they stand. Raises RefusedOption."""
    names = {name.lower() for name in ignored}
    if not names or not startup.parameters:
        return startup
    kept = [(name, value) for name, value in startup.parameters if name.lower() not in names]
    for place, (name, value) in enumerate(kept):
        if name.lower() == "options" and any(ignored_name in value.replace("-", "_").lower() for ignored_name in names):
            options = [setting for setting in parse_options(value) if setting[0].lower() not in names]
            kept[place] = (name, build_options(options))
    return replace(startup, parameters=tuple(one for one in kept if one[1] or one[0].lower() != "options"))


def as_settings(startup: Startup) -> Startup:
    """`startup` with its `options` taken apart: every parameter is a setting. Raises RefusedOption."""
    if not startup.parameters:
        return startup
    settings: dict[str, tuple[str, str]] = {}
    for name, value in startup.parameters:
        if name.lower() == "options":
            for option in parse_options(value):
                settings[option[0].lower()] = option
    for name, value in startup.parameters:
        if name.lower() != "options":
            settings[name.lower()] = (_checked(name), value)
    return replace(startup, parameters=tuple(sorted(settings.values())))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise RefusedOption(f'unrecognized configuration parameter "{name}"', "42704")
    return name
