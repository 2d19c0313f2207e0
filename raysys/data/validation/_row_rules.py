"""A schema's row checks as polars expressions, and the kernel that splits a block by them."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from raysys.data.readers._column_types import FILE, MALFORMED, ROW
from raysys.data.validation._schema import REASON
from raysys.data.validation._value_types import read_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import pyarrow as pa

    from raysys.data.validation._schema import Column, Schema

# Prefixes of working columns: a value as it was given, and whether it cannot be read.
_GIVEN, _UNREADABLE = "\1given ", "\1unreadable "
_EXAMPLES = b"raysys.reasons"
_LONGEST = 80  # characters of a value that a reason shows; the row itself keeps it whole


@dataclass(frozen=True)
class Rule:
    """One check of a row.

    Attributes:
        kind: What is counted: the reason without the value.
        broken: True where a row breaks it; null passes. Over the columns as read.
        text: The reason that a broken row is given.
    """

    kind: str
    broken: pl.Expr
    text: pl.Expr


# Of each kind of reason, how many rows have it and where the first stood.
Examples = dict[str, tuple[int, str]]


class Split(NamedTuple):
    """The two ways that a block's rows took.

    Attributes:
        good: The schema's columns in its types and order, text as large_string; where the schema
            has `unique`, which is yet to be checked, with `_file` and `_row`.
        bad: All columns of the block as text, with `_row` and `_reason`.
        examples: Of each kind of reason, how many rows have it and where the first stood.
    """

    good: pa.Table
    bad: pa.Table
    examples: Examples


def split_block(
    block: pa.Table,
    schema: Schema,
    keys: Mapping[str, pa.Array] | None = None,
    texts: Callable[[np.ndarray], pa.Table] | None = None,
) -> Split:
    """Split a block's rows into those that pass all row checks and those that do not.

    Every row is read and checked in one pass over columns. Texts are made of the broken rows
    only, in a second pass over them.

    Args:
        block: The schema's columns, of any type; `_row` and, if it is of files, `_file`; and
            `_malformed`, if lines were not records.
        schema: What they must satisfy.
        keys: The values of each `key` that a column names.
        texts: Gives rows by their places as they are written, where the block has values.
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
    good = to_arrow(read.select(list(schema.columns)).filter(~mask))
    for name in (FILE, ROW):
        if schema.unique and name in block.column_names:
            good = good.append_column(name, block[name].filter((~mask).to_numpy()))
    rows = mask.arg_true()
    few = texts(rows.to_numpy()) if texts else block.take(rows.to_numpy())
    if not len(few):
        return Split(good, to_arrow(as_text(few)), {})
    bad = as_text(few)
    given = [polars_column(few, name).alias(_GIVEN + name) for name in schema.columns]
    found = read[rows].with_columns(given)
    if malformed is not None:
        found = found.with_columns(bad[MALFORMED].alias(_GIVEN + MALFORMED))
        rules = _with_malformed(rules)
    reasons, marks = _reasons(found, rules)
    bad = bad.with_columns(reasons)
    return Split(good, to_arrow(bad), _count(bad, rules, marks))


def compile_rules(
    schema: Schema, unreadable: Sequence[str], keys: Mapping[str, pa.Array]
) -> list[Rule]:
    """The row checks of a schema, in the order of its columns, its rules last.

    Args:
        schema: What rows must satisfy.
        unreadable: Columns of which some values could not be read.
        keys: The values of each `key` that a column names.
    """
    rules = []
    for name, column in schema.columns.items():
        value, wrong = pl.col(name), pl.col(_UNREADABLE + name)
        given = _text(name)
        quoted = pl.format("'{}'", given)
        shown = quoted if column.type == "string" else given
        if name in unreadable:
            rules.append(_rule(name, f" is no {column.type}", wrong, quoted))
        if not column.nullable:
            missing = value.is_null() & ~wrong if name in unreadable else value.is_null()
            rules.append(Rule(f"{name}: missing", missing, pl.lit(f"{name}: missing")))
        rules += [
            _rule(name, what, broken, shown) for what, broken in _value_rules(column, value, keys)
        ]
    for name in schema.rules:
        rule = schema.rule(name)
        values = [
            pl.format("{}={}", pl.lit(used), _text(used).fill_null("missing"))
            for used in dict.fromkeys(rule.meta.root_names())
        ]
        kind = f"rule '{name}' fails"
        text = pl.concat_str([pl.lit(f"{kind}: "), pl.concat_str(values, separator=", ")])
        rules.append(Rule(kind, ~rule, text))
    return rules


def _value_rules(
    column: Column, value: pl.Expr, keys: Mapping[str, pa.Array]
) -> list[tuple[str, pl.Expr]]:
    """What a value may fail, in words, and where it does."""
    from raysys.data.validation._value_types import polars_type

    kind, rules = polars_type(column.type), []
    if column.min is not None:
        rules.append((f" fails min {say(column.min)}", value < literal(column.min, kind)))
    if column.max is not None:
        rules.append((f" fails max {say(column.max)}", value > literal(column.max, kind)))
    if column.pattern is not None:
        whole = value.str.contains(f"^(?:{column.pattern})$")
        rules.append((f" fails pattern {column.pattern}", ~whole))
    if column.allowed is not None:
        allowed = column.allowed_values(kind)
        rules.append((" is not among those allowed", ~value.is_in(allowed.implode())))
    if column.key is not None:
        known, _ = read_values(pl.Series(keys[column.key]), kind)
        rules.append((f" is not in {column.key}", ~value.is_in(known.implode())))
    return rules


def _text(name: str) -> pl.Expr:
    """A column's value as it was given."""
    return pl.col(_GIVEN + name).cast(pl.String, strict=False).str.head(_LONGEST)


def _rule(name: str, what: str, broken: pl.Expr, shown: pl.Expr) -> Rule:
    return Rule(name + what, broken, pl.concat_str([pl.lit(f"{name}: "), shown, pl.lit(what)]))


def _with_malformed(rules: Sequence[Rule]) -> list[Rule]:
    """Of a line that is no record nothing else is said: its columns are empty."""
    line = pl.col(_GIVEN + MALFORMED)
    kind = "line is no record"
    text = pl.format("line is no record of the file's columns: '{}'", line.str.head(_LONGEST))
    others = [Rule(rule.kind, rule.broken & line.is_null(), rule.text) for rule in rules]
    return [Rule(kind, line.is_not_null(), text), *others]


def _reasons(found: pl.DataFrame, rules: Sequence[Rule]) -> tuple[pl.Series, pl.DataFrame]:
    """The broken rows' reasons, and which rules each breaks, by the rules' numbers."""
    marks = found.select(rule.broken.fill_null(False).alias(str(n)) for n, rule in enumerate(rules))
    texts = [
        pl.when(marks[str(n)]).then(rule.text)
        for n, rule in enumerate(rules)
        if marks[str(n)].any()
    ]
    joined = pl.concat_str(texts, separator="; ", ignore_nulls=True).alias(REASON)
    return found.select(joined).to_series(), marks


def _count(bad: pl.DataFrame, rules: Sequence[Rule], marks: pl.DataFrame) -> Examples:
    examples = {}
    for number, rule in enumerate(rules):
        rows = marks[str(number)].arg_true()
        if len(rows):
            examples[rule.kind] = (len(rows), where(bad.row(rows[0], named=True)))
    return examples


def where(row: Mapping[str, Any]) -> str:
    """The place that a row says it comes from."""
    return f"{row[FILE]}: row {row[ROW]}" if FILE in row else f"row {row[ROW]}"


def with_examples(block: pa.Table, examples: Examples) -> pa.Table:
    """A block of the quarantine whose schema says what is in it, for the driver to read."""
    return block.replace_schema_metadata({_EXAMPLES: json.dumps(examples)})


def examples_of(schema: pa.Schema) -> Examples:
    """What `with_examples` noted."""
    noted = json.loads((schema.metadata or {}).get(_EXAMPLES, b"{}"))
    return {kind: (count, place) for kind, (count, place) in noted.items()}


def as_text(rows: pa.Table) -> pl.DataFrame:
    """Rows with all values as text, `_row` as it is; and a `_reason` that is yet to be found."""
    columns = [polars_column(rows, name) for name in rows.column_names]
    texts = [c if c.name == ROW else c.cast(pl.String, strict=False) for c in columns]
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
    """A schema's bound as what compares with a column of this type."""
    if isinstance(value, datetime):
        naive = value.astimezone(UTC).replace(tzinfo=None)
        if kind.time_zone is None:
            return pl.lit(naive)
        return pl.lit(naive).dt.replace_time_zone("UTC").dt.convert_time_zone(kind.time_zone)
    return pl.lit(value)


def as_time(value: float | None, kind: Any) -> Any:
    """A count of a type's unit as the date or time in UTC that bounds are compared with."""
    if value is None:
        return None
    zoned = kind if kind == pl.Date else pl.Datetime(kind.time_unit, "UTC")
    return pl.Series([int(value)], dtype=pl.Int64).cast(zoned)[0]


@functools.lru_cache(1024)
def say(value: Any) -> str:
    """A bound in words."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S").removesuffix("T00:00:00")
    return str(value)
