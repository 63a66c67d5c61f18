"""Writes what can be produced from the code: the sample config, and the references of config and REST.

`make docs` writes the files again; a test fails if one of them is not what the code says. What stands here is only how
they look and which values the sample shows.
"""

from __future__ import annotations

import ast
import json
import sqlite3
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from docs import handled
from proxy.config import Config, Secret, spell_range
from proxy.control.rest import build_app
from proxy.control.service import ControlService

ROOT: Final = Path(__file__).parents[1]

MARK: Final = "Made by `make docs` from the code; changes here are lost."

WIDTH: Final = 100

EXAMPLES: Final[Mapping[str, str]] = {
    "control.listen": '"127.0.0.1:7432"',
    "control.token": '{ env = "TURNOUT_TOKEN" }',
    "control.caller.alice.role": '"operator"',
    "control.caller.alice.token": '{ file = "alice.txt" }',
    "control.jwt.issuer": '"https://login.example"',
    "control.jwt.audience": '"turnout"',
    "console.admin_users": '["ops"]',
    "console.stats_users": '["prometheus"]',
    "console.auth.method": '"scram-sha-256"',
    "console.auth.users": '{ file = "users.txt" }',
    "console.auth.hba": '{ file = "hba.conf" }',
    "telemetry.endpoint": '"https://collector:4318/v1/traces"',
    "telemetry.headers": '{ file = "headers.txt" }',
    "service.shop.protocol": '"postgresql"',
    "service.shop.databases": '["shop"]',
    "service.shop.pool_mode": '"session"',
    "service.shop.active": '"blue"',
    "service.shop.admin.user": '"turnout"',
    "service.shop.admin.password": '{ env = "TURNOUT_ADMIN_PASSWORD" }',
    "service.shop.auth.method": '"scram-sha-256"',
    "service.shop.auth.users": '{ file = "users.txt" }',
    "service.shop.auth.hba": '{ file = "hba.conf" }',
    "service.shop.engine.blue.address": '"127.0.0.1:5432"',
    "service.shop.engine.blue.role": '"primary"',
    "service.shop.engine.blue.login.user": '"app"',
    "service.shop.replication_login.user": '"repl"',
    "service.shop.replication_login.password": '{ env = "REPLICATION_PASSWORD" }',
    "service.shop.hook.at": '"after_release"',
    "service.shop.hook.command": '["/usr/local/bin/notify", "{target} serves {service}"]',
    "service.shop.hook.token": '{ env = "HOOK_TOKEN" }',
    "service.shop.engine.blue.login.password": '{ file = "login.txt" }',
    "service.shop.policy.slow.trigger": '"performance_degradation"',
    "service.shop.policy.slow.response_time_threshold_ms": "250.0",
    "service.shop.policy.slow.target_engine": '"green"',
    "service.shop.route.to": '["green"]',
    "alerts.rule.lag.when": '"replication_lag_ms"',
    "alerts.rule.lag.above": "5000.0",
    "alerts.rule.lag.keep_firing_for_s": "60.0",
    "alerts.receiver.ops.kind": '"slack"',
    "alerts.receiver.ops.url": '{ env = "OPS_SLACK_URL" }',
    "alerts.receiver.ops.token": '{ env = "OPS_TOKEN" }',
    "alerts.receiver.ops.password": '{ env = "SMTP_PASSWORD" }',
}
"""Values of the sample that are not the default, or show it although it is."""

_OPTIONAL: Final = ("engine.blue.login.", "replication_login.", "hook.", "policy.", "route.")
"""Tables of the sample's service that are commented out as a whole."""

LIVE: Final = frozenset(
    key
    for key in EXAMPLES
    if key not in ("control.token", "service.shop.auth.hba")
    and not key.startswith(("alerts.", "console.", "control.caller.", "control.jwt.", "telemetry."))
    and not key.startswith(tuple(f"service.shop.{table}" for table in _OPTIONAL))
)
"""Keys of the sample that are not commented out."""

NAMES: Final = {
    "service": "shop",
    "engine": "blue",
    "policy": "slow",
    "caller": "alice",
    "rule": "lag",
    "receiver": "ops",
}
"""Name of the sample's entry in a table of tables."""

INTRO: Final = f"""\
Turnout's config: every key there is, with its default. {MARK}

Prose begins with "# ", a key that may be set with "#" alone. A key marked (reload) is applied by SIGHUP, and so are
engines that come and go; the others need a restart. `turnout check` tells what is wrong with a file and reaches every
engine it names.

To try it: put the addresses of two servers below, one a standby of the other, and the password of their admin account
into TURNOUT_ADMIN_PASSWORD; the users of the application stand in users.txt."""

SECOND_ENGINE: Final = """\
[service.shop.engine.green]
address = "127.0.0.1:5433"
role = "standby"
"""

MYSQL: Final = """\
# --- a service on MySQL or MariaDB ---------------------------------------------------------------
# The same keys; only protocol, ports and methods differ. Take the "#" away to have both. MySQL's
# clients from version 9 on know caching_sha2_password only; most of MariaDB's want
# mysql_native_password. The engines' own method does not matter here.

#[[listener]]
#protocol = "mysql"
#listen = "127.0.0.1:6033"

#[service.blog]
#protocol = "mysql"
#databases = ["blog"]
#active = "red"
#admin = { user = "turnout", password = { env = "TURNOUT_ADMIN_PASSWORD" } }
#auth = { method = "caching_sha2_password", users = { file = "users.txt" } }
#engine.red = { address = "127.0.0.1:3306" }
#engine.black = { address = "127.0.0.1:3307", role = "standby" }
"""


# --- what the structs say -----------------------------------------------------------------------------------------


class Docs:
    """Docstrings of the config's structs and of their fields, which Python itself does not keep."""

    def __init__(self) -> None:
        self.of_struct: dict[str, str] = {}
        self.of_field: dict[tuple[str, str], str] = {}
        modules = sorted((ROOT / "proxy/config").glob("*.py"))
        for node in (node for module in modules for node in ast.parse(module.read_text()).body):
            if isinstance(node, ast.ClassDef):
                self.of_struct[node.name] = _one_line(ast.get_docstring(node) or "")
                for field, after in zip(node.body, node.body[1:], strict=False):
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                        text = after.value if isinstance(after, ast.Expr) else None
                        if isinstance(text, ast.Constant) and isinstance(text.value, str):
                            self.of_field[node.name, field.target.id] = _one_line(text.value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _bare(kind: inspect.Type) -> tuple[inspect.Type, bool]:
    """The type without Meta and without `| None`, and whether a reload applies it."""
    is_reloadable = False
    while True:
        if isinstance(kind, inspect.Metadata):
            is_reloadable |= bool((kind.extra or {}).get("reload"))
            kind = kind.type
        elif isinstance(kind, inspect.UnionType):
            kind = next(one for one in kind.types if not isinstance(one, inspect.NoneType))
        else:
            return kind, is_reloadable


def _struct(of: type[msgspec.Struct]) -> inspect.StructType:
    kind = inspect.type_info(of)
    assert isinstance(kind, inspect.StructType)
    return kind


def _is_table(kind: inspect.Type) -> bool:
    match kind:
        case inspect.StructType():
            return kind.cls is not Secret
        case inspect.DictType():
            return True
        case inspect.ListType():
            return _is_table(_bare(kind.item_type)[0])
        case _:
            return False


def _kind(kind: inspect.Type) -> str:
    match kind:
        case inspect.LiteralType():
            return ", ".join(f'"{value}"' for value in kind.values)
        case inspect.StrType():
            return "text"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "whole number" + spell_range(kind)
        case inspect.FloatType():
            return "number" + spell_range(kind)
        case inspect.ListType():
            return f"array of {_kind(_bare(kind.item_type)[0])}"
        case inspect.StructType() if kind.cls is Secret:
            return "secret"
        case _:
            raise AssertionError(f"no words for {kind}")


def _default(field: inspect.Field) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return msgspec.NODEFAULT


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value)
        case int() if value >= 10_000:
            return f"{value:_}"
        case int() | float():
            return str(value)
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            raise AssertionError(f"no TOML for {value!r}")


# --- conf/turnout.toml --------------------------------------------------------------------------------------------


def sample() -> str:
    """The sample config file."""
    docs = Docs()
    lines = [*_comment(INTRO), ""]
    lines += _sample_table(docs, _struct(Config), ())
    lines += ["", MYSQL.rstrip()]
    return "\n".join(lines) + "\n"


def _sample_table(docs: Docs, of: inspect.StructType, at: tuple[str, ...]) -> Iterator[str]:
    """The keys of one table, and then the tables in it: TOML wants them in this order."""
    fields = [(field, *_bare(field.type)) for field in of.fields]
    for field, kind, is_reloadable in fields:
        if not _is_table(kind):
            yield from _sample_key(docs, of, field, is_reloadable, (*at, field.name))
    for field, kind, _is_reloadable in fields:
        if _is_table(kind):
            yield from _sample_tables(docs, kind, (*at, field.name))


def _sample_key(
    docs: Docs, of: inspect.StructType, field: inspect.Field, is_reloadable: bool, at: tuple[str, ...]
) -> Iterator[str]:
    key, default = ".".join(at), _default(field)
    mark = " (reload)" if is_reloadable else ""
    yield from _comment(docs.of_field[of.cls.__name__, field.name] + mark)
    if default is None and key not in EXAMPLES:
        # Not to be set together with the others: prose, which nobody takes the "#" away from.
        yield f"# {field.name} = …"
        yield ""
        return
    value = EXAMPLES.get(key) or _toml(default)
    yield f"{'' if key in LIVE else '#'}{field.name} = {value}"
    yield ""


def _sample_tables(docs: Docs, kind: inspect.Type, at: tuple[str, ...]) -> Iterator[str]:
    match kind:
        case inspect.ListType():
            inner, _is_reloadable = _bare(kind.item_type)
            assert isinstance(inner, inspect.StructType)
            yield from _comment(docs.of_struct[inner.cls.__name__])
            if "protocol" not in inner.cls.__struct_fields__:
                yield f"#[[{'.'.join(at)}]]"
                yield from _sample_table(docs, inner, at)
                return
            yield f"[[{'.'.join(at)}]]"
            yield from _comment(docs.of_field[inner.cls.__name__, "protocol"])
            yield 'protocol = "postgresql"'
            yield from _comment(docs.of_field[inner.cls.__name__, "listen"])
            yield 'listen = "127.0.0.1:6432"'
            yield ""
        case inspect.DictType():
            inner, _is_reloadable = _bare(kind.value_type)
            yield from _sample_tables(docs, inner, (*at, NAMES[at[-1]]))
            if at[-1] == "engine":
                yield SECOND_ENGINE.rstrip()
                yield ""
        case inspect.StructType():
            title = ".".join(at)
            is_live = any(key.startswith(f"{title}.") for key in LIVE)
            yield from _comment(docs.of_struct[kind.cls.__name__])
            yield f"{'' if is_live or not _has_required(kind) else '#'}[{title}]"
            yield from _sample_table(docs, kind, at)
        case _:
            raise AssertionError(f"not a table: {kind}")


def _has_required(kind: inspect.StructType) -> bool:
    return any(field.required for field in kind.fields)


def _comment(text: str) -> list[str]:
    out: list[str] = []
    for paragraph in text.split("\n\n"):
        out += ["#"] if out else []
        out += [f"# {line}" for line in textwrap.wrap(_one_line(paragraph), WIDTH - 2, break_on_hyphens=False)]
    return out


# --- docs/reference-config.md -------------------------------------------------------------------------------------

_SECRETS: Final = """\
A *secret* does not stand in the file. It is one of

- `{ env = "NAME" }`: the value of an environment variable,
- `{ file = "path" }`: the first line of a file, relative to the config file. `auth.users` and `auth.hba` take the whole file.

A file that others on the machine must not read should have mode 0600 and belong to the account Turnout runs as.
"""


def config_reference() -> str:
    """The page with every key of the config."""
    docs = Docs()
    out = [
        "# Config reference",
        "",
        f"<!-- {MARK} -->",
        "",
        (
            "The file is TOML. An unknown key is an error that names the line and the nearest key. "
            "*Reload* says whether SIGHUP applies a change; engines come and go with it, too; the rest needs a "
            "restart. See [reload](operation.md#reload)."
        ),
        "",
        _SECRETS,
    ]
    for title, struct in _all_tables(_struct(Config), ()):
        out += [f"## {title}", "", docs.of_struct[struct.cls.__name__], ""]
        out += ["| key | type | default | reload | |", "|---|---|---|---|---|"]
        for field in struct.fields:
            kind, is_reloadable = _bare(field.type)
            if _is_table(kind):
                continue
            default = _default(field)
            if default is msgspec.NODEFAULT:
                shown = "*required*"
            else:
                shown = "none" if default is None else f"`{_toml(default)}`"
            text = docs.of_field[struct.cls.__name__, field.name]
            out.append(f"| `{field.name}` | {_kind(kind)} | {shown} | {'yes' if is_reloadable else ''} | {text} |")
        out.append("")
    return "\n".join(out)


def _all_tables(of: inspect.StructType, at: tuple[str, ...]) -> Iterator[tuple[str, inspect.StructType]]:
    yield f"`[{'.'.join(at)}]`" if at else "Top of the file", of
    for field in of.fields:
        kind, _is_reloadable = _bare(field.type)
        here = (*at, field.name)
        match kind:
            case inspect.StructType() if kind.cls is not Secret:
                yield from _all_tables(kind, here)
            case inspect.DictType():
                inner, _is_reloadable = _bare(kind.value_type)
                assert isinstance(inner, inspect.StructType)
                yield from _all_tables(inner, (*here, "NAME"))
            case inspect.ListType():
                inner, _is_reloadable = _bare(kind.item_type)
                if isinstance(inner, inspect.StructType):
                    yield f"`[[{'.'.join(here)}]]`", inner
            case _:
                pass


# --- docs/openapi.json, docs/reference-rest.md --------------------------------------------------------------------


class _NoSupervisor:
    """The schema needs a door, and nobody behind it."""

    config = Config(listener=[], service={})
    started_at = 0.0

    @property
    def database(self) -> sqlite3.Connection:
        return sqlite3.connect(":memory:")

    def subscribe(self, _callback: object) -> object:
        return lambda: None


def openapi() -> dict[str, Any]:
    """The OpenAPI schema of the control port."""
    nobody: Any = _NoSupervisor()
    app = build_app(ControlService(nobody), nobody.config)
    schema: dict[str, Any] = app.openapi_schema.to_schema()
    return schema


def rest_reference() -> str:
    """The page with every path of the control port."""
    schema = openapi()
    out = [
        "# REST reference",
        "",
        f"<!-- {MARK} -->",
        "",
        (
            "The same as a page of a running Turnout: `/docs`; for programs: [openapi.json](openapi.json). "
            "Errors are `application/problem+json` with `title`, `detail` and `remedy`."
        ),
        "",
    ]
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            out += [f"## `{method.upper()} {path}`", "", operation["description"], ""]
            rows = [
                (f"`{one['name']}` in {one['in']}", _json_kind(one["schema"]), one.get("description", ""))
                for one in operation.get("parameters", [])
            ]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            if body is not None:
                rows.append(("body", _json_kind(body), ""))
            for code, answer in operation["responses"].items():
                content: dict[str, Any] = next(iter(answer.get("content", {}).values()), {})
                rows.append((code, _json_kind(content.get("schema", {})), answer["description"]))
            out += ["| | | |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    out += ["# Types", ""]
    for name, kind in sorted(schema["components"]["schemas"].items()):
        out += [f"## {_short(name)}", ""]
        if "enum" in kind:
            out += [", ".join(f"`{value}`" for value in kind["enum"]), ""]
            continue
        out += ["| field | type | |", "|---|---|---|"]
        required = kind.get("required", [])
        for field, one in kind.get("properties", {}).items():
            mark = " *required*" if field in required else ""
            out.append(f"| `{field}` | {_json_kind(one)}{mark} | {one.get('description', '')} |")
        out.append("")
    return "\n".join(out)


def _short(name: str) -> str:
    return name.rpartition("_")[2] or name


def _json_kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = _short(schema["$ref"].rpartition("/")[2])
        return f"[{name}](#{name.lower()})"
    if "oneOf" in schema or "anyOf" in schema:
        return " or ".join(_json_kind(one) for one in schema.get("oneOf") or schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_json_kind(schema.get('items', {}))}"
    kind = schema.get("type", "anything")
    words = [
        f"{word} {schema[key]}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("maxLength", "at most"),
        )
        if key in schema
    ]
    return " ".join([" or ".join(kind) if isinstance(kind, list) else kind, *words])


# --- writing ------------------------------------------------------------------------------------------------------


PRODUCED: Final[Mapping[Path, Callable[[], str]]] = {
    ROOT / "conf/turnout.toml": sample,
    ROOT / "docs/reference-config.md": config_reference,
    ROOT / "docs/reference-rest.md": rest_reference,
    ROOT / "docs/what-we-handle.md": lambda: handled.page(ROOT, MARK),
    ROOT / "docs/openapi.json": lambda: json.dumps(openapi(), indent=1) + "\n",
}
"""Every file that is made here, and what makes its text."""


if __name__ == "__main__":
    for path, make in PRODUCED.items():
        path.write_text(make())
