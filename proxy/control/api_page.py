"""The API's own page, made from its OpenAPI schema: plain HTML that needs no script and nothing from the internet."""

from __future__ import annotations

from html import escape
from typing import Any

from litestar import Request
from litestar.openapi.plugins import OpenAPIRenderPlugin

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, .path { font-family: ui-monospace, monospace; }
section { border-top: 1px solid #8884; padding: .5rem 0 1rem; }
h2 { font-size: 1.05rem; margin: .5rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8882; }
.method { display: inline-block; min-width: 3.5rem; font-weight: 700; }
"""


class ApiPage(OpenAPIRenderPlugin):
    """Renders the schema as one page."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The page, UTF-8."""
        return render_page(openapi_schema, self.get_openapi_json_route(request)).encode()


def render_page(schema: dict[str, Any], json_path: str) -> str:
    """One section for each operation, one for each type."""
    info = schema["info"]
    out = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('description', ''))}",
        f" As <a href='{escape(json_path)}'>OpenAPI</a>.</p>",
    ]
    for path, item in schema["paths"].items():
        out.extend(
            _operation(method, path, item[method]) for method in ("get", "post", "put", "delete") if method in item
        )
    out.append("<h1>Types</h1>")
    for name, described in sorted(schema.get("components", {}).get("schemas", {}).items()):
        out.append(_type(name, described))
    return "".join(out)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    out = [f"<section><h2><span class=method>{method.upper()}</span><span class=path>{escape(path)}</span></h2>"]
    out.append(f"<p>{escape(operation.get('description') or operation.get('summary') or '')}</p>")
    rows = [
        (one["name"], _kind(one.get("schema", {})), one.get("description", ""))
        for one in operation.get("parameters", [])
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        rows.append(("body", _kind(body), ""))
    for code, answer in operation.get("responses", {}).items():
        content: dict[str, Any] = next(iter(answer.get("content", {}).values()), {})
        rows.append((f"answer {code}", _kind(content.get("schema", {})), answer.get("description", "")))
    out.append(_table(rows))
    out.append("</section>")
    return "".join(out)


def _type(name: str, described: dict[str, Any]) -> str:
    rows = [
        (field, _kind(kind), kind.get("description", "")) for field, kind in described.get("properties", {}).items()
    ]
    if "enum" in described:
        rows.append(("one of", ", ".join(map(str, described["enum"])), ""))
    title = described.get("title", name)
    return f"<section id='{escape(name)}'><h2 class=path>{escape(title)}</h2>{_table(rows)}</section>"


def _table(rows: list[tuple[str, str, str]]) -> str:
    cells = (f"<tr><td><code>{escape(a)}</code><td>{b}<td>{escape(c)}" for a, b, c in rows)
    return f"<table>{''.join(cells)}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A type in a few words, as HTML; types of ours are links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"<a href='#{escape(name)}'>{escape(name.rpartition('_')[2] or name)}</a>"
    if "oneOf" in schema or "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema.get("oneOf") or schema["anyOf"])
    if "enum" in schema:
        return escape(", ".join(map(str, schema["enum"])))
    if schema.get("type") == "array":
        return f"array of {_kind(schema.get('items', {}))}"
    kind = schema.get("type", "")
    shown = ", ".join(kind) if isinstance(kind, list) else str(kind)
    bounds = [
        f"{word} {schema[key]}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("maxLength", "at most"),
        )
        if key in schema
    ]
    return escape(" ".join([shown or "anything", *bounds]))
