"""Which statements surely only read: judged by their text alone, by sqlglot, with a list of what is known to be harmless.

Everything that is not on the list stays with the engine that serves: functions nobody knows, locks (`FOR UPDATE`), `INTO`,
data-modifying CTEs, several statements in one text, what cannot be parsed. What a text cannot tell is told in
docs/routing.md (views and operators that call functions, for one); there the last word is the standby's, which refuses every
write.

sqlglot takes some hundred microseconds for a text and half a second to be imported, so this module is imported only where a
service has rules, judgements are kept by text, and no more than `PARSES_PER_S_MAX` are made in a second: a client that
writes its values into its texts must not cost more than the reads it moves away.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection
from typing import Final

import msgspec
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

KEPT: Final = 10_000
"""Texts whose judgement is kept; the one not asked for for longest goes."""

TEXT_BYTES_MAX: Final = 16 * 1024
"""Longer texts are not read."""

PARSES_PER_S_MAX: Final = 200
"""Some tenth of a processor."""

SYSTEM_SCHEMAS: Final = frozenset({"pg_catalog", "information_schema", "pg_toast"})
"""What stands there is about the server that is asked."""

# sqlglot warns of what it takes for a command of another dialect. Such texts stay; nobody has to be told.
logging.getLogger("sqlglot").setLevel(logging.CRITICAL)  # noqa: TID251  that library's own, to silence it


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NODES: Final = _words(
    """
    Add Alias All And Any AtTimeZone Between BitString BitwiseAnd BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift
    BitwiseXor Boolean Bracket ByteString CTE Collate Column Cube DPipe DataType DataTypeParam Distance Distinct Div EQ
    Escape Except Fetch Filter From GT GTE Group GroupingSets Having HexString ILike Identifier In Intersect Interval
    IntervalSpan Is JSONPath JSONPathKey JSONPathPart JSONPathRoot JSONPathSlice JSONPathSubscript JSONPathWildcard Join LT
    LTE Lateral Like Limit LimitOptions Literal Mod Mul NEQ National Neg Not Null NullSafeEQ NullSafeNEQ ObjectIdentifier
    Offset Operator Or Order Ordered Overlaps Parameter Paren RawString Rollup Select SimilarTo Slice Star Sub Subquery
    Table TableAlias TableSample Tuple UnicodeString Union Values Var Where Window WindowSpec With WithinGroup
    """
)
"""sqlglot's names of what may stand in a read beside functions."""

_FUNCTIONS: Final = _words(
    """
    Abs Acos AnyValue Array ArrayAgg ArrayAppend ArrayConcat ArrayContainedBy ArrayContainsAll ArrayOverlaps ArrayPosition
    ArrayPrepend ArrayRemove ArraySize ArrayToString Ascii Asin Atan Atan2 Avg BitLength BitwiseAndAgg BitwiseOrAgg
    BitwiseXorAgg Case Cast Cbrt Ceil Chr Coalesce Concat ConcatWs Corr Cos Cot Count CovarPop CovarSamp CumeDist
    CurrentDate CurrentTime CurrentTimestamp DateBin DateTrunc Degrees DenseRank Encode Decode Exists Exp
    ExplodingGenerateSeries Explode Extract FirstValue Floor Format GenerateSeries Greatest GroupConcat Grouping If Initcap
    JSONArrayAgg JSONBContains JSONBContainsAllTopKeys JSONBContainsAnyTopKeys JSONBContainsTopKey JSONBExtract
    JSONBExtractScalar JSONBObjectAgg JSONExtract JSONExtractScalar JSONObject JSONObjectAgg Lag LastValue Lead Least Left
    Length Ln Localtime Localtimestamp Log LogicalAnd LogicalOr Lower MD5 MakeInterval MatchAgainst Max Min Mode NthValue
    Ntile Nullif Overlay Pad PercentRank PercentileCont PercentileDisc Pi Pow Radians Rand Rank RegexpILike RegexpLike
    RegexpReplace RegexpSplit Repeat Replace Reverse Right Round RowNumber SHA2 SHA2Digest Sign Sin SplitPart Sqrt
    StartsWith Stddev StddevPop StddevSamp StrPosition StrToDate StrToTime StringToArray Substring Sum Tan TimeToStr
    TimestampTrunc ToChar ToNumber Transform Translate Trim Trunc Unnest UnixToTime Upper Uuid Variance VariancePop
    WidthBucket Xor
    """
)
"""Functions that sqlglot knows, and that every PostgreSQL has and answers alike on every server."""

_HARMLESS: Final = _NODES | _FUNCTIONS

_BY_NAME: Final = _words(
    """
    age array_length array_lower array_upper btrim cardinality clock_timestamp convert_from convert_to every
    generate_subscripts isfinite json_agg json_array_elements json_array_elements_text json_array_length json_build_array
    json_build_object json_each json_each_text json_object_keys json_typeof jsonb_agg jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text
    jsonb_object_keys jsonb_path_exists jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_pretty
    jsonb_set jsonb_typeof justify_days justify_hours make_date make_time make_timestamp make_timestamptz num_nonnulls
    num_nulls octet_length phraseto_tsquery plainto_tsquery quote_ident quote_literal quote_nullable regexp_count
    regexp_instr regexp_match regexp_matches regexp_substr row row_to_json setweight similarity statement_timestamp strip
    to_ascii to_hex to_json to_jsonb to_tsquery to_tsvector transaction_timestamp ts_headline ts_rank ts_rank_cd
    websearch_to_tsquery
    """
)
"""Functions that sqlglot does not know, by their names without a schema."""


class Judged(msgspec.Struct, frozen=True):
    """What a text says."""

    is_read: bool
    is_aggregate: bool = False
    """It adds up many rows: it has an aggregate, GROUP BY or DISTINCT."""


STAYS: Final = Judged(False)


class Reads:
    """Judges texts and keeps what it found; one for each service."""

    def __init__(self, dialect: str, functions: Collection[str] = ()) -> None:
        """`functions`: names of an operator's own functions that only read, in lower case, with schema where they are
        called with one."""
        self._dialect = dialect
        self._functions = _BY_NAME | set(functions)
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
        try:
            statements = sqlglot.parse(text.decode(), read=self._dialect)
        except (SqlglotError, UnicodeDecodeError, RecursionError):
            return STAYS
        found = [statement for statement in statements if statement is not None]
        if len(found) != 1 or not isinstance(found[0], exp.Select | exp.SetOperation | exp.Values | exp.Subquery):
            return STAYS
        nodes = list(found[0].walk())
        if not all(map(self._is_harmless, nodes)):
            return STAYS
        return Judged(True, any(isinstance(node, exp.AggFunc | exp.Group | exp.Distinct) for node in nodes))

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
                return node.db.lower() not in SYSTEM_SCHEMAS and not node.name.lower().startswith("pg_")
            case _:
                return type(node).__name__ in _HARMLESS


def _name_of(call: exp.Anonymous) -> str:
    """With the schema it is called by."""
    name = call.name.lower()
    above: exp.Expr | None = call.parent
    while isinstance(above, exp.Dot):
        name = f"{above.this.name.lower()}.{name}"
        above = above.parent
    return name
