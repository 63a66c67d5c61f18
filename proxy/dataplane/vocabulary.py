"""What a text that surely only reads is made of, in either protocol: sqlglot's names of its parts, and names of functions.

sqlglot takes functions of other databases for its own (`EXPLODE`), and in MySQL such a name is a stored function's, which may do
anything. So for MySQL functions are known by their names, as the manuals of MySQL and MariaDB both have them; those that only
one of the two has are left out, and so is what asks for something of its connection or of its server: LAST_INSERT_ID,
FOUND_ROWS, ROW_COUNT, CONNECTION_ID, GET_LOCK, SLEEP, LOAD_FILE, UUID_SHORT, VERSION, @@variables and @variables.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from sqlglot.dialects.dialect import Dialect
from sqlglot.dialects.mysql import MySQL
from sqlglot.dialects.postgres import Postgres
from sqlglot.parsers.mysql import MySQLParser

# sqlglot warns of what it takes for a command of another dialect. Such texts stay; nobody has to be told.
logging.getLogger("sqlglot").setLevel(logging.CRITICAL)  # noqa: TID251  that library's own, to silence it


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Of one protocol. What is not in it is not surely a read."""

    dialect: type[Dialect]
    nodes: frozenset[str]
    """sqlglot's classes."""
    functions: frozenset[str]
    """Functions that sqlglot does not know, by their names in lower case, without a schema."""
    aggregates: frozenset[str]
    """Those among `functions` that add up rows."""
    system_schemas: frozenset[str]
    """What stands there is about the server that is asked."""
    system_prefix: str
    """Tables whose names begin so are the server's own wherever they are looked for; empty: there are none."""
    strange: re.Pattern[bytes] | None = None
    """Texts in which this is found are not judged: the server may read them otherwise than sqlglot does."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- PostgreSQL ---------------------------------------------------------------------------------------------------

_POSTGRES_NODES: Final = _words(
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
"""What may stand in a read beside functions."""

_POSTGRES_FUNCTION_NODES: Final = _words(
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

_POSTGRES_FUNCTIONS: Final = _words(
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

# --- MySQL and MariaDB --------------------------------------------------------------------------------------------


class _NamedFunctions(MySQLParser):
    """sqlglot's for MySQL, without what it knows of functions but for those with a grammar of their own (CAST, TRIM …)."""

    FUNCTIONS: ClassVar[dict[str, Any]] = {}


class _MySQL(MySQL):
    Parser = _NamedFunctions


_MYSQL_NODES: Final = _words(
    """
    Add Alias All And Any Between BitString BitwiseAnd BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor
    Boolean CTE Case Cast Ceil Chr Collate Column Concat CurrentDate CurrentTime CurrentTimestamp DataType DataTypeParam
    Distinct Div EQ Escape Except Exists Extract Floor From GT GTE Group GroupConcat Having HexString Identifier If In
    IndexTableHint IntDiv Intersect Interval Introducer Is JSONArrayContains JSONColumnDef JSONExtract JSONExtractScalar
    JSONKeyValue JSONObject JSONObjectAgg JSONPath JSONPathKey JSONPathRoot JSONPathSubscript JSONPathWildcard JSONSchema
    JSONTable Join LT LTE Lateral Like Limit Literal Localtime Localtimestamp MatchAgainst Mod Mul NEQ National Neg Not
    Null NullSafeEQ Offset Or Order Ordered Paren Partition RegexpLike Rollup Select Soundex Star StrPosition Sub Subquery
    Substring Table TableAlias Trim Tuple Union Values Var WeightString Where Window WindowSpec With Xor
    """
)

_MYSQL_AGGREGATES: Final = _words(
    """
    avg bit_and bit_or bit_xor count json_arrayagg max min std stddev stddev_pop stddev_samp sum var_pop var_samp variance
    """
)

_MYSQL_FUNCTIONS: Final = _MYSQL_AGGREGATES | _words(
    """
    abs acos adddate addtime aes_decrypt aes_encrypt ascii asin atan atan2 bin bit_count bit_length ceil ceiling char
    char_length character_length charset coalesce coercibility collation compress concat concat_ws conv convert_tz cos cot
    crc32 cume_dist curdate current_date current_time current_timestamp curtime database date date_add date_format
    date_sub datediff day dayname dayofmonth dayofweek dayofyear degrees dense_rank elt exp export_set field find_in_set
    first_value floor format from_base64 from_days from_unixtime get_format greatest hex hour if ifnull inet6_aton
    inet6_ntoa inet_aton inet_ntoa insert instr is_ipv4 is_ipv6 isnull json_array json_array_append json_array_insert
    json_contains json_contains_path json_depth json_extract json_insert json_keys json_length json_merge_patch
    json_merge_preserve json_object json_quote json_remove json_replace json_search json_set json_type json_unquote
    json_valid json_value lag last_day last_value lcase lead least left length ln localtime localtimestamp locate log log10
    log2 lower lpad ltrim make_set makedate maketime md5 microsecond mid minute mod month monthname now nth_value ntile
    nullif oct octet_length ord percent_rank period_add period_diff pi position pow power quarter quote radians rand rank
    regexp_instr regexp_replace regexp_substr repeat replace reverse right round row row_number rpad rtrim schema
    sec_to_time second sha sha1 sha2 sign sin soundex space sqrt st_astext st_contains st_distance st_geomfromtext
    st_intersects st_within st_x st_y str_to_date strcmp subdate substr substring substring_index subtime sysdate tan time
    time_format time_to_sec timediff timestamp timestampadd timestampdiff to_base64 to_days to_seconds trim truncate ucase
    uncompress uncompressed_length unhex unix_timestamp upper utc_date utc_time utc_timestamp uuid week weekday weekofyear
    year yearweek
    """
)

_STRANGE_IN_MYSQL: Final = re.compile(rb"/\*M?!|\\", re.IGNORECASE)
"""Comments that are executed; and backslashes, which escape or not, as the session's sql_mode has it."""

VOCABULARIES: Final[dict[Literal["postgresql", "mysql"], Vocabulary]] = {
    "postgresql": Vocabulary(
        dialect=Postgres,
        nodes=_POSTGRES_NODES | _POSTGRES_FUNCTION_NODES,
        functions=_POSTGRES_FUNCTIONS,
        aggregates=frozenset(),
        system_schemas=_words("pg_catalog information_schema pg_toast"),
        system_prefix="pg_",
    ),
    "mysql": Vocabulary(
        dialect=_MySQL,
        nodes=_MYSQL_NODES,
        functions=_MYSQL_FUNCTIONS,
        aggregates=_MYSQL_AGGREGATES,
        system_schemas=_words("mysql information_schema performance_schema sys"),
        system_prefix="",
        strange=_STRANGE_IN_MYSQL,
    ),
}
