"""Steps 1 and 2 of loading: the text is TOML, every key is known, every value has its type and range."""

from __future__ import annotations

import difflib
import functools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from proxy.config.problems import ConfigErrors, Problems
from proxy.config.table import Secret
from proxy.config.text import KeyPath, spell
from proxy.errors import ConfigError

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""Names of services and engines: they stand in URLs, on command lines and in metric labels."""

CONFIG_BYTES_MAX: Final = 1024 * 1024
"""No config is longer; a longer file is something else."""


def read_text(path: Path) -> str:
    """The file's text. Raises ConfigErrors: it cannot be read, is too long, or is no UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigErrors([ConfigError(str(path), f"cannot be read: {error.strerror}")]) from error
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigErrors([ConfigError(str(path), f"is longer than {CONFIG_BYTES_MAX} bytes; not a config file")])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigErrors([ConfigError(f"{path}:{line}", "is not UTF-8, which TOML must be")]) from error


def toml_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> ConfigError:
    """The parser gives the place in its message only, and counts the end of the document as a place."""
    said = str(error)
    found = re.search(r" \(at line (\d+), column (\d+)\)$", said)
    if found is None:
        return ConfigError(
            f"{path}:{text.count(chr(10)) + 1}", f"not TOML: {said.removesuffix(' (at end of document)')}"
        )
    return ConfigError(f"{path}:{found[1]}", f"not TOML: {said[: found.start()]} (column {found[2]})")


@functools.cache
def struct_of(of: type[msgspec.Struct]) -> inspect.StructType:
    """How msgspec describes a table. Found out once: for the whole config it takes ten milliseconds, and whoever looks at it
    asks."""
    described = inspect.type_info(of)
    assert isinstance(described, inspect.StructType)
    return described


def bare(kind: inspect.Type) -> tuple[inspect.Type, bool]:
    """The type without its Meta, and whether a reload applies it."""
    is_reloadable = False
    while isinstance(kind, inspect.Metadata):
        is_reloadable = is_reloadable or bool((kind.extra or {}).get("reload"))
        kind = kind.type
    return kind, is_reloadable


def fields_of(table: inspect.StructType) -> Iterator[tuple[inspect.Field, inspect.Type, bool]]:
    """Each with its type, without Meta and without the None of `X | None`, and whether a reload applies it."""
    for field in table.fields:
        kind, is_reloadable = bare(field.type)
        if isinstance(kind, inspect.UnionType):
            kind, inner = bare(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
            is_reloadable = is_reloadable or inner
        yield field, kind, is_reloadable


def is_leaf(kind: inspect.Type) -> bool:
    """A value of one key, or an array of such."""
    if isinstance(kind, inspect.ListType):
        return is_leaf(bare(kind.item_type)[0])
    return not isinstance(kind, inspect.StructType | inspect.DictType)


class Reader:
    """Checks a parsed file against the structs. Returns what it read; what is wrong goes to `problems`."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems

    def table(self, of: inspect.StructType, raw: Any, at: KeyPath) -> Any:
        if not isinstance(raw, dict):
            self._problems.add(at, f"expected a table, got {quoted(raw)}")
            return raw
        known = {field.encode_name: field for field in of.fields}
        if of.cls is Secret:
            known.pop("value")
            if "value" in raw:
                self._problems.add(
                    (*at, "value"), "a secret does not stand in the config file; name a variable (env) or a file (file)"
                )
                return raw
        for key in raw:
            if key not in known:
                self._problems.add((*at, key), _unknown(key, known))
        for name, field in known.items():
            if name in raw:
                self._value(field.type, raw[name], (*at, name))
            elif field.required:
                shape = "table" if isinstance(bare(field.type)[0], inspect.StructType | inspect.DictType) else "key"
                self._problems.add(at, f'the {shape} "{name}" is missing')
        if of.cls is Secret and not (raw.keys() - known.keys()) and len(raw) != 1:
            self._problems.add(at, 'expected exactly one of "env" and "file"')
        return raw

    def _value(self, kind: inspect.Type, raw: Any, at: KeyPath) -> None:
        kind, _is_reloadable = bare(kind)
        match kind:
            case inspect.StructType():
                self.table(kind, raw, at)
            case inspect.UnionType():  # `X | None`: TOML has no null, so what stands there is X
                self._value(next(one for one in kind.types if not isinstance(one, inspect.NoneType)), raw, at)
            case inspect.DictType():
                self._names(kind, raw, at)
            case inspect.ListType():
                if not isinstance(raw, list):
                    self._problems.add(at, f"expected an array, got {quoted(raw)}")
                    return
                for index, item in enumerate(raw):
                    self._value(kind.item_type, item, (*at, index))
            case inspect.LiteralType():
                if raw not in kind.values:
                    self._problems.add(
                        at, f"expected {spell_choice(kind.values)}, got {quoted(raw)}{_meant(raw, kind.values)}"
                    )
            case inspect.StrType():
                if not isinstance(raw, str):
                    self._problems.add(at, f"expected text in quotes, got {quoted(raw)}")
            case inspect.IntType():
                self._number(kind, raw, at, isinstance(raw, int) and not isinstance(raw, bool), "a whole number")
            case inspect.FloatType():
                is_number = isinstance(raw, int | float) and not isinstance(raw, bool) and math.isfinite(raw)
                self._number(kind, raw, at, is_number, "a number")
            case inspect.BoolType():
                if not isinstance(raw, bool):
                    self._problems.add(at, f"expected true or false, got {quoted(raw)}")
            case _:
                raise AssertionError(f"the config has a type the reader does not know: {kind}")

    def _names(self, kind: inspect.DictType, raw: Any, at: KeyPath) -> None:
        if not isinstance(raw, dict):
            self._problems.add(at, f"expected a table of tables, got {quoted(raw)}")
            return
        if not raw:
            self._problems.add(at, f"at least one [{spell((*at, 'NAME'))}] is needed")
        for name, item in raw.items():
            if not NAME.fullmatch(name):
                self._problems.add(
                    (*at, name), "a name has letters, digits, _ . - only, at most 63, a letter or digit first"
                )
            self._value(kind.value_type, item, (*at, name))

    def _number(
        self, kind: inspect.IntType | inspect.FloatType, raw: Any, at: KeyPath, is_right_type: bool, what: str
    ) -> None:
        is_in_range = is_right_type and (
            (kind.ge is None or raw >= kind.ge)
            and (kind.gt is None or raw > kind.gt)
            and (kind.le is None or raw <= kind.le)
            and (kind.lt is None or raw < kind.lt)
        )
        if not is_in_range:
            self._problems.add(at, f"expected {what}{spell_range(kind)}, got {quoted(raw)}")


def spell_range(kind: inspect.IntType | inspect.FloatType) -> str:
    """` from 1 to 64`, ` above 0, at most 300`, or nothing."""
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge:g} to {kind.le:g}" if kind.le < 1e5 else f" from {kind.ge} to {kind.le}"
    parts = []
    if kind.ge is not None:
        parts.append(f"not below {kind.ge}")
    if kind.gt is not None:
        parts.append(f"above {kind.gt}")
    if kind.le is not None:
        parts.append(f"at most {kind.le}")
    if kind.lt is not None:
        parts.append(f"below {kind.lt}")
    return " " + ", ".join(parts) if parts else ""


def _unknown(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f'unknown key; did you mean "{near[0]}"?'
    return f"unknown key; here may stand: {', '.join(known)}"


def _meant(raw: Any, values: tuple[Any, ...]) -> str:
    near = difflib.get_close_matches(raw.lower(), values, n=1, cutoff=0.5) if isinstance(raw, str) else []
    return f'; did you mean "{near[0]}"?' if near else ""


def spell_choice(values: tuple[Any, ...]) -> str:
    """`"a", "b" or "c"`."""
    shown = [f'"{value}"' for value in values]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " or " + shown[-1]


def quoted(raw: Any) -> str:
    """A value of the file as an error message quotes it."""
    match raw:
        case bool():
            return "true" if raw else "false"
        case str():
            return f'"{raw}"' if len(raw) <= 60 else f'"{raw[:57]}..."'
        case dict():
            return "a table"
        case list():
            return "an array"
        case _:
            return str(raw)
