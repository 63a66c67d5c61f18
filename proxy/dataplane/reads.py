"""Which statements surely only read: judged by their text alone, by sqlglot, with a list of what is known to be harmless.

Everything that is not on the list (`vocabulary`) stays with the engine that serves: functions nobody knows, locks (`FOR
UPDATE`), `INTO`, data-modifying CTEs, several statements in one text, what cannot be parsed. What a text cannot tell is told in
docs/routing.md (views and operators that call functions, for one); there the last word is the standby's, which refuses every
write.

sqlglot takes some hundred microseconds for a text and half a second to be imported, so this module is imported only where a
service has rules, judgements are kept by text, and no more than `PARSES_PER_S_MAX` are made in a second: a client that
writes its values into its texts must not cost more than the reads it moves away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Final, Literal

import msgspec
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from proxy.dataplane.vocabulary import VOCABULARIES

KEPT: Final = 10_000
"""Texts whose judgement is kept; the one not asked for for longest goes."""

TEXT_BYTES_MAX: Final = 16 * 1024
"""Longer texts are not read."""

PARSES_PER_S_MAX: Final = 200
"""Some tenth of a processor."""

_PLAIN_MODIFIERS: Final = frozenset(
    {"SQL_BIG_RESULT", "SQL_BUFFER_RESULT", "SQL_NO_CACHE", "SQL_SMALL_RESULT", "STRAIGHT_JOIN"}
)
"""Words behind SELECT in MySQL that say how, and nothing else. (SQL_CALC_FOUND_ROWS leaves something to be asked for.)"""

_NUMBERS: Final = frozenset({"nextval", "currval"})
"""Columns by these names are no columns where MariaDB's sql_mode is ORACLE."""


class Judged(msgspec.Struct, frozen=True):
    """What a text says."""

    is_read: bool
    is_aggregate: bool = False
    """It adds up many rows: it has an aggregate, GROUP BY or DISTINCT."""


STAYS: Final = Judged(False)


class Reads:
    """Judges texts and keeps what it found; one for each service."""

    def __init__(self, protocol: Literal["postgresql", "mysql"], functions: Collection[str] = ()) -> None:
        """`functions`: names of an operator's own functions that only read, in lower case, with schema where they are
        called with one."""
        self._words = VOCABULARIES[protocol]
        self._functions = self._words.functions | set(functions)
        self._kept: OrderedDict[bytes, Judged] = OrderedDict()
        self._second = 0
        self._parses = 0

    def judge(self, text: bytes, now_ns: int) -> Judged:
        """Whether it surely only reads. A text that is new, when too many are, stays for now."""
        known = self._kept.get(text)
        if known is not None:
            self._kept.move_to_end(text)
            return known
        if len(text) > TEXT_BYTES_MAX:
            return STAYS
        second = now_ns // 1_000_000_000
        if second != self._second:
            self._second, self._parses = second, 0
        self._parses += 1
        if self._parses > PARSES_PER_S_MAX:
            return STAYS
        judged = self._kept[text] = self._parse(text)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return judged

    def _parse(self, text: bytes) -> Judged:
        if self._words.strange is not None and self._words.strange.search(text):
            return STAYS
        try:
            statements = sqlglot.parse(text.decode(), read=self._words.dialect)
        except (SqlglotError, UnicodeDecodeError, RecursionError):
            return STAYS
        found = [statement for statement in statements if statement is not None]
        if len(found) != 1 or not isinstance(found[0], exp.Select | exp.SetOperation | exp.Values | exp.Subquery):
            return STAYS
        nodes = list(found[0].walk())
        if not all(map(self._is_harmless, nodes)):
            return STAYS
        return Judged(True, any(map(self._adds_up, nodes)))

    def _adds_up(self, node: exp.Expr) -> bool:
        return isinstance(node, exp.AggFunc | exp.Group | exp.Distinct) or (
            isinstance(node, exp.Anonymous) and _name_of(node) in self._words.aggregates
        )

    def _is_harmless(self, node: exp.Expr) -> bool:
        match node:
            case exp.Anonymous():
                return _name_of(node) in self._functions
            case exp.Dot():
                # `schema.function(…)` is judged where the function stands; else it is a type or a field.
                return all(
                    isinstance(part, exp.Identifier | exp.Dot | exp.Anonymous) for part in (node.this, node.expression)
                )
            case exp.Table():
                # The server's own views may be named without their schema.
                name, prefix = node.name.lower(), self._words.system_prefix
                return node.db.lower() not in self._words.system_schemas and not (prefix and name.startswith(prefix))
            case exp.Column():
                return node.name.lower() not in _NUMBERS
            case exp.Select():
                return {one.name.upper() for one in node.args.get("operation_modifiers") or ()} <= _PLAIN_MODIFIERS
            case _:
                return type(node).__name__ in self._words.nodes


def _name_of(call: exp.Anonymous) -> str:
    """With the schema it is called by."""
    name = call.name.lower()
    above: exp.Expr | None = call.parent
    while isinstance(above, exp.Dot):
        name = f"{above.this.name.lower()}.{name}"
        above = above.parent
    return name
