"""The config shown with its secrets masked, and two of them compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from msgspec import inspect

from proxy.config.reader import bare, quoted, struct_of
from proxy.config.table import Secret
from proxy.config.text import KeyPath, spell
from proxy.config.whole import Config

_NO_DEFAULT: Final = msgspec.NODEFAULT


def masked(config: Config) -> dict[str, Any]:
    """The config for showing: each value as `{"value": …, "origin": "default" | "file"}`, secrets as `***`.

    A value that equals its default counts as default, whoever wrote it.
    """
    shown = _masked(config, struct_of(Config))
    assert isinstance(shown, dict)
    return shown


def reload_diff(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """What a reload from `old` to `new` changes: lines that are applied, and lines that need a restart.

    A line is `service.shop.pool_size: 200 -> 300`; of a secret only the key is told.
    """
    applied: list[str] = []
    needs_restart: list[str] = []
    for path, before, after, is_reloadable in _differences(struct_of(Config), old, new, (), False):
        line = spell(path) if before is None and after is None else f"{spell(path)}: {before} -> {after}"
        (applied if is_reloadable else needs_restart).append(line)
    return applied, needs_restart


def _fields(of: inspect.StructType) -> Iterator[tuple[inspect.Field, inspect.Type, bool]]:
    for field in of.fields:
        kind, is_reloadable = bare(field.type)
        if isinstance(kind, inspect.UnionType):
            kind, inner = bare(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
            is_reloadable = is_reloadable or inner
        yield field, kind, is_reloadable


def _default(field: inspect.Field) -> Any:
    if field.default is not _NO_DEFAULT:
        return field.default
    if field.default_factory is not _NO_DEFAULT:
        make: Callable[[], Any] = field.default_factory
        return make()
    return _NO_DEFAULT


def _masked(value: Any, kind: inspect.Type) -> Any:
    if value is None:
        return None
    match kind:
        case inspect.StructType() if kind.cls is Secret:
            return {"value": "***", "origin": "env" if value.env is not None else "file"}
        case inspect.StructType():
            shown = {}
            for field, inner, _is_reloadable in _fields(kind):
                held = getattr(value, field.name)
                if _is_leaf(inner):
                    origin = "default" if held == _default(field) else "file"
                    shown[field.encode_name] = {"value": held, "origin": origin}
                else:
                    shown[field.encode_name] = _masked(held, inner)
            return shown
        case inspect.DictType():
            return {name: _masked(item, bare(kind.value_type)[0]) for name, item in value.items()}
        case inspect.ListType():
            return [_masked(item, bare(kind.item_type)[0]) for item in value]
        case _:
            raise AssertionError(f"not a table: {kind}")


def _is_leaf(kind: inspect.Type) -> bool:
    """A value of one key, or an array of such."""
    if isinstance(kind, inspect.ListType):
        return _is_leaf(bare(kind.item_type)[0])
    return not isinstance(kind, inspect.StructType | inspect.DictType)


def _differences(
    kind: inspect.Type, old: Any, new: Any, at: KeyPath, is_reloadable: bool
) -> Iterator[tuple[KeyPath, str | None, str | None, bool]]:
    """Path, old and new as text (None for both: not to be told), and whether a reload applies it."""
    if old == new:
        return
    match kind:
        case inspect.StructType() if old is not None and new is not None and kind.cls is not Secret:
            for field, inner, applies in _fields(kind):
                before, after = getattr(old, field.name), getattr(new, field.name)
                yield from _differences(inner, before, after, (*at, field.encode_name), applies or is_reloadable)
        case inspect.StructType() if kind.cls is Secret:
            yield at, None, None, is_reloadable
        case inspect.DictType() if old is not None and new is not None:
            for name in sorted(old.keys() | new.keys()):
                inner, _applies = bare(kind.value_type)
                yield from _differences(inner, old.get(name), new.get(name), (*at, name), is_reloadable)
        case inspect.StructType() | inspect.DictType():
            yield at, "absent" if old is None else "present", "absent" if new is None else "present", is_reloadable
        case inspect.ListType() if not _is_leaf(kind):
            yield at, f"{len(old)} of them", f"{len(new)} of them, or others", is_reloadable
        case _:
            yield at, _said_plain(old), _said_plain(new), is_reloadable


def _said_plain(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else quoted(value)
