"""Row rules of a schema as polars expressions, and the split of a block by them."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from raysys.data._polars import pl
from raysys.data.readers._column_types import FILE, MALFORMED, place_column
from raysys.data.validation._schema import REASON
from raysys.data.validation._value_types import polars_type, read_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from raysys.data.validation._schema import Column, Schema

# Prefixes of working columns: a value as it was written, and whether it is unreadable.
_WRITTEN, _UNREADABLE = "\1written ", "\1unreadable "
_EXAMPLES = b"raysys.reasons"
_MAX_COMPARED = 8  # allowed values that are faster compared one by one than looked up
_MAX_SHOWN = 80  # characters of a value in a reason


@dataclass(frozen=True)
class RowRule:
    """A rule that each row must satisfy.

    Attributes:
        kind: The reason without the value, by which rows are counted.
        broken: Expression over the read columns, true where a row breaks the rule; null passes.
        text: Function that makes the expression of the reason, which few blocks need.
    """

    kind: str
    broken: pl.Expr
    text: Callable[[], pl.Expr]


# Number of rows and place of the first, by kind of reason.
Examples = dict[str, tuple[int, str]]


class BlockSplit(NamedTuple):
    """Valid and bad rows of a block.

    Attributes:
        valid: The schema's columns in its types and order, text as large_string; with `_file` and
            `_line` or `_row` where the schema has `unique`, which is checked later.
        bad: All columns of the block as text, with `_line` or `_row`, and `_reason`.
        examples: Number of bad rows and place of the first, by kind of reason.
    """

    valid: pa.Table
    bad: pa.Table
    examples: Examples


def split_block(
    block: pa.Table,
    schema: Schema,
    keys: Mapping[str, pa.Array] | None = None,
    texts: Callable[[np.ndarray], pa.Table] | None = None,
) -> BlockSplit:
    """Split a block's rows into those that pass all row rules and those that do not.

    All rows are read and checked in one pass over columns; a second pass over the bad rows makes
    their reasons.

    Args:
        block: The schema's columns, of any type; `_line` or `_row`, `_file` if it comes from
            files, and `_malformed` if lines may be malformed.
        schema: Rules for rows.
        keys: Values of each foreign key.
        texts: Function of row numbers to the rows as they are written, for a typed block.
    """
    columns = {name: polars_column(block, name) for name in schema.columns}
    frame, unreadable = {}, []
    for name, kind in schema.polars_types().items():
        frame[name], wrong = read_values(columns[name], kind)
        if wrong is not None:
            frame[_UNREADABLE + name] = wrong
            unreadable.append(name)
    rules = compile_rules(schema, unreadable, keys or {})
    read = pl.DataFrame(frame)
    broken = read.select(pl.any_horizontal([rule.broken for rule in rules]).fill_null(False))
    mask = broken.to_series() if len(block) else pl.Series([], dtype=pl.Boolean)
    malformed = None
    if MALFORMED in block.column_names and block[MALFORMED].null_count < len(block):
        malformed = polars_column(block, MALFORMED)
        mask = mask | malformed.is_not_null()
    as_written = [
        name
        for name in schema.columns
        if frame[name] is columns[name] and pa.types.is_large_string(block[name].type)
    ]
    valid = _valid_rows(read.select(list(schema.columns)), block.select(as_written), mask)
    for name in (FILE, place_column(block.column_names)):
        if schema.unique and name in block.column_names:
            valid = valid.append_column(name, block[name].filter((~mask).to_numpy()))
    rows = mask.arg_true()
    written = texts(rows.to_numpy()) if texts else block.take(rows.to_numpy())
    bad = as_text(written)
    if not len(bad):
        return BlockSplit(valid, to_arrow(bad), {})
    shown = [polars_column(written, name).alias(_WRITTEN + name) for name in schema.columns]
    bad_rows = read[rows].with_columns(shown)
    if malformed is not None:
        bad_rows = bad_rows.with_columns(bad[MALFORMED].alias(_WRITTEN + MALFORMED))
        rules = _with_malformed(rules)
    marks = bad_rows.select(r.broken.fill_null(False).alias(str(n)) for n, r in enumerate(rules))
    counts = marks.sum().row(0)
    whys = [pl.when(marks[str(n)]).then(r.text()) for n, r in enumerate(rules) if counts[n]]
    joined = pl.concat_str(whys, separator="; ", ignore_nulls=True).alias(REASON)
    bad = bad.with_columns(bad_rows.select(joined).to_series())
    examples = {
        rule.kind: (counts[n], location(bad.row(marks[str(n)].arg_max() or 0, named=True)))
        for n, rule in enumerate(rules)
        if counts[n]
    }
    return BlockSplit(valid, to_arrow(bad), examples)


def _valid_rows(read: pl.DataFrame, texts: pa.Table, bad: pl.Series) -> pa.Table:
    """The rows that are not bad; columns of unchanged text are Arrow's, which spares two copies."""
    values = read.drop(texts.column_names)
    if bad.any():
        values, texts = values.filter(~bad), texts.filter((~bad).to_arrow())
    columns = to_arrow(values)
    return pa.table({n: (texts if n in texts.column_names else columns)[n] for n in read.columns})


def compile_rules(
    schema: Schema, unreadable: Sequence[str], keys: Mapping[str, pa.Array]
) -> list[RowRule]:
    """Row rules of a schema, in the order of its columns, `rules` last."""
    rules = []
    for name, column in schema.columns.items():
        value, wrong = pl.col(name), pl.col(_UNREADABLE + name)
        if name in unreadable:
            rules.append(_rule(name, f" is not a valid {column.type}", wrong, quoted=True))
        if not column.nullable:
            missing = value.is_null() & ~wrong if name in unreadable else value.is_null()
            kind = f"{name}: missing"
            rules.append(RowRule(kind, missing, functools.partial(pl.lit, kind)))
        for ending, broken in _value_rules(column, value, keys):
            rules.append(_rule(name, ending, broken, quoted=column.type == "string"))
    for name in schema.rules:
        rule, kind = schema.rule(name), f"rule '{name}' fails"
        text = functools.partial(_operands, kind, rule.meta.root_names())
        rules.append(RowRule(kind, ~rule, text))
    return rules


def _value_rules(
    column: Column, value: pl.Expr, keys: Mapping[str, pa.Array]
) -> list[tuple[str, pl.Expr]]:
    """Constraints of a column: the end of the reason, and where a value breaks it."""
    kind, rules = polars_type(column.type), []
    if (low := column.min) is not None:
        rules.append((f" is below min {format_bound(low)}", value < literal(low, kind)))
    if (high := column.max) is not None:
        rules.append((f" exceeds max {format_bound(high)}", value > literal(high, kind)))
    if column.pattern is not None:
        matches = value.str.contains(f"^(?:{column.pattern})$")
        rules.append((f" does not match pattern {column.pattern}", ~matches))
    if column.allowed is not None:
        allowed = column.allowed_values(kind)
        if len(allowed) <= _MAX_COMPARED:
            is_allowed = pl.any_horizontal([value == one for one in allowed])
        else:
            is_allowed = value.is_in(allowed.implode())
        rules.append((" is not an allowed value", ~is_allowed))
    if column.foreign_key is not None:
        parents, _ = read_values(pl.Series(keys[column.foreign_key]), kind)
        rules.append((f" is not in {column.foreign_key}", ~value.is_in(parents.implode())))
    return rules


def _written(name: str) -> pl.Expr:
    """A column's value as it was written."""
    return pl.col(_WRITTEN + name).cast(pl.String, strict=False).str.head(_MAX_SHOWN)


def _rule(name: str, ending: str, broken: pl.Expr, *, quoted: bool) -> RowRule:
    def text() -> pl.Expr:
        shown = pl.format("'{}'", _written(name)) if quoted else _written(name)
        return pl.concat_str([pl.lit(f"{name}: "), shown, pl.lit(ending)])

    return RowRule(name + ending, broken, text)


def _operands(kind: str, names: Sequence[str]) -> pl.Expr:
    """The reason of a rule between columns, with their values."""
    values = [
        pl.format("{}={}", pl.lit(name), _written(name).fill_null("missing"))
        for name in dict.fromkeys(names)
    ]
    return pl.concat_str([pl.lit(f"{kind}: "), pl.concat_str(values, separator=", ")])


def _with_malformed(rules: Sequence[RowRule]) -> list[RowRule]:
    """Rules with one for malformed lines, whose columns are empty and break no other rule."""
    line = pl.col(_WRITTEN + MALFORMED)
    text = functools.partial(pl.format, "malformed line: '{}'", line.str.head(_MAX_SHOWN))
    records = [replace(rule, broken=rule.broken & line.is_null()) for rule in rules]
    return [RowRule("malformed line", line.is_not_null(), text), *records]


def location(row: Mapping[str, Any]) -> str:
    """File and line of a row, or its number."""
    column = place_column(row)
    place = f"{column[1:]} {row[column]}"
    return f"{row[FILE]}: {place}" if FILE in row else place


def with_examples(block: pa.Table, examples: Examples) -> pa.Table:
    """A block of the quarantine with its examples in the schema's metadata, for the driver."""
    return block.replace_schema_metadata({_EXAMPLES: json.dumps(examples)})


def examples_of(schema: pa.Schema) -> Examples:
    """Examples that `with_examples` stored."""
    examples = json.loads((schema.metadata or {}).get(_EXAMPLES, b"{}"))
    return {kind: (count, place) for kind, (count, place) in examples.items()}


def as_text(rows: pa.Table) -> pl.DataFrame:
    """Rows with all values but `_line` or `_row` as text, and an empty `_reason`."""
    place = place_column(rows.column_names)
    columns = [polars_column(rows, name) for name in rows.column_names]
    texts = [c if c.name == place else c.cast(pl.String, strict=False) for c in columns]
    return pl.DataFrame(texts).with_columns(pl.lit(None, pl.String).alias(REASON))


def polars_column(block: pa.Table, name: str) -> pl.Series:
    """A column of a block as a series."""
    values = pl.Series(name, block[name])
    if isinstance(values.dtype, (pl.List, pl.Array, pl.Struct)):
        return pl.Series(name, [None if v is None else str(v) for v in values], pl.String)
    return values


def to_arrow(frame: pl.DataFrame) -> pa.Table:
    """A frame as a block: text as large_string."""
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def literal(value: Any, kind: Any) -> pl.Expr:
    """A schema's bound as an expression that compares with a column of a type."""
    if isinstance(value, datetime):
        naive = value.astimezone(UTC).replace(tzinfo=None)
        if kind.time_zone is None:
            return pl.lit(naive)
        return pl.lit(naive).dt.replace_time_zone("UTC").dt.convert_time_zone(kind.time_zone)
    return pl.lit(value)


def as_time(value: float | None, kind: Any) -> Any:
    """A count of a type's unit as a date or a time in UTC."""
    if value is None:
        return None
    zoned = kind if kind == pl.Date else pl.Datetime(kind.time_unit, "UTC")
    return pl.Series([int(value)], dtype=pl.Int64).cast(zoned)[0]


@functools.lru_cache(1024)
def format_bound(value: Any) -> str:
    """A bound as text."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S").removesuffix("T00:00:00")
    return str(value)
