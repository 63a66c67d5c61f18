"""What a reload changes: two configs compared, and the first one with all of the second that a reload applies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from proxy.config.reader import bare, fields_of, is_leaf, quoted, struct_of
from proxy.config.table import Secret
from proxy.config.text import KeyPath, spell
from proxy.config.whole import Config


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


def reloaded(old: Config, new: Config) -> Config:
    """`old` with the values of `new` that a reload applies, at any depth; what has come or gone needs a restart."""
    merged = _merged(struct_of(Config), old, new)
    assert isinstance(merged, Config)
    return merged


def _differences(
    kind: inspect.Type, old: Any, new: Any, at: KeyPath, is_reloadable: bool
) -> Iterator[tuple[KeyPath, str | None, str | None, bool]]:
    """Path, old and new as text (None for both: not to be told), and whether a reload applies it."""
    if old == new:
        return
    match kind:
        case inspect.StructType() if old is not None and new is not None and kind.cls is not Secret:
            for field, inner, applies in fields_of(kind):
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
        case inspect.ListType() if not is_leaf(kind):
            yield at, f"{len(old)} of them", f"{len(new)} of them, or others", is_reloadable
        case _:
            yield at, _said_plain(old), _said_plain(new), is_reloadable


def _merged(kind: inspect.Type, old: Any, new: Any) -> Any:
    match kind:
        case inspect.StructType() if old is not None and new is not None:
            changes = {}
            for field, inner, applies in fields_of(kind):
                before, after = getattr(old, field.name), getattr(new, field.name)
                changes[field.name] = after if applies else _merged(inner, before, after)
            return msgspec.structs.replace(old, **changes)
        case inspect.DictType() if old is not None and new is not None:
            inner, _applies = bare(kind.value_type)
            return {name: _merged(inner, one, new[name]) if name in new else one for name, one in old.items()}
        case _:
            return old


def _said_plain(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else quoted(value)
