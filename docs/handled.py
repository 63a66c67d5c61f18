"""The page "what we handle": pitfalls of the PostgreSQL protocol, and the tests that name them.

A test names a pitfall by a line `field-notes: …` in its docstring, a conversation of the corpus by such a line of its own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.corpus.postgres import conversations

NAMED: Final = "field-notes: "

INTRO: Final = """\
# What we handle

Where proxies for PostgreSQL went wrong before, by the name that the pitfall has among us, and the tests that hold Turnout
to it. A conversation is a written exchange of messages (`tests/corpus/postgres`) that is held with the server directly and
through Turnout, in both pool modes where that makes sense; any difference in what the client receives fails the build.
"""


def page(root: Path, mark: str) -> str:
    """The page, from the tests below `root`."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        for name, pitfall in _named_in(ast.parse(path.read_text())):
            found.setdefault(pitfall, []).append(f"`{path.relative_to(root)}` {name}")
    for conversation in conversations():
        for pitfall in conversation.notes:
            found.setdefault(pitfall, []).append(f'conversation "{conversation}"')
    rows = [
        f"| {pitfall.replace('|', '/')} | {'<br>'.join(dict.fromkeys(tests))} |"
        for pitfall, tests in sorted(found.items(), key=lambda one: one[0].lower())
    ]
    return "\n".join([INTRO, mark, "", "| pitfall | held to by |", "|---|---|", *rows]) + "\n"


def _named_in(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            continue
        name = "(all)" if isinstance(node, ast.Module) else node.name
        for line in (ast.get_docstring(node) or "").splitlines():
            if line.strip().startswith(NAMED):
                yield name, line.strip().removeprefix(NAMED).strip()
