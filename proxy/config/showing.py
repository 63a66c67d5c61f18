"""The config shown, with its secrets masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import inspect

from proxy.config.reader import bare, fields_of, is_leaf, struct_of
from proxy.config.table import Secret
from proxy.config.whole import Config

_NO_DEFAULT: Final = msgspec.NODEFAULT


def masked(config: Config) -> dict[str, Any]:
    """The config for showing: each value as `{"value": …, "origin": "default" | "file"}`, secrets as `***`.

    A value that equals its default counts as default, whoever wrote it.
    """
    shown = _masked(config, struct_of(Config))
    assert isinstance(shown, dict)
    return shown


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
            for field, inner, _is_reloadable in fields_of(kind):
                held = getattr(value, field.name)
                if is_leaf(inner):
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
