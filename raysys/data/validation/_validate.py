"""Checking a table against a schema: good rows go on, bad rows to quarantine with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data._lazy_plan import LazyOperation, evaluate
from raysys.data._shuffle import concat
from raysys.data._table import Table
from raysys.data.readers._column_types import ROW
from raysys.data.readers._csv_typed import raw_part, read_typed
from raysys.data.validation._column_statistics import medians, statistics
from raysys.data.validation._row_rules import as_time, examples_of, say, split_block, with_examples
from raysys.data.validation._uniqueness import split_repeated
from raysys.errors import DataError
from raysys.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.data.validation._schema import Schema

MOST_KEYS = 10_000_000  # values of a key's column, which every task holds


@dataclass(frozen=True)
class Figure:
    """A statistic of the whole table beside its bounds; a bound of None is free."""

    name: str
    value: Any
    low: Any
    high: Any

    @property
    def holds(self) -> bool:
        """Whether it is within the bounds, both included; one without a value is not."""
        return (
            self.value is not None
            and (self.low is None or self.value >= self.low)
            and (self.high is None or self.value <= self.high)
        )

    def __str__(self) -> str:
        value = "none" if self.value is None else _say(self.value)
        low = "" if self.low is None else f"from {_say(self.low)}"
        high = "" if self.high is None else f"to {_say(self.high)}"
        return f"{self.name}: {value}, bounds: {' '.join(filter(None, [low, high]))}"


@dataclass(frozen=True)
class Checked:
    """The two ways that rows took.

    Attributes:
        good: Rows that satisfy the schema, in its types and order, in the blocks and the order
            that they came in. Columns that the schema does not name are left out.
        quarantine: The others as text, with all their columns as they were written, `_row`
            (int64), `_file` if they come from files, and `_reason`.
        reasons: Number of rows turned away, by kind of reason, most first; a row may have several.
        examples: Where the first row stood, by kind of reason.
        figures: What the schema's table checks found.
    """

    good: Table
    quarantine: Table
    reasons: dict[str, int]
    examples: dict[str, str]
    figures: tuple[Figure, ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows that were checked."""
        return len(self.good) + len(self.quarantine)


class CheckError(DataError):
    """The table as a whole breaks its schema.

    Attributes:
        checked: The outcome, with the quarantine and the figures: nothing is lost.
    """

    def __init__(self, message: str, checked: Checked) -> None:
        super().__init__(message)
        self.checked = checked

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.checked)


def check(table: Table, schema: Schema, *, tables: Mapping[str, Table] | None = None) -> Checked:
    """Check every row, in one task a block, and then the table as a whole.

    Values are first read as the types of the schema's columns (see `Schema`), of text or of any
    other type that they have. A row with a missing or unreadable value or that breaks a rule
    is turned away, with all of its reasons. Of those that pass and are equal in a group of
    `unique` columns the first stays. The statistics of `distributions` are of the good rows.

    Args:
        table: Rows with at least the schema's columns. As `read(path, raw=True)` gives it, a
            reason can name the file and the row in it, and lines that are no records go to
            quarantine too; else `_row` counts the table's rows from 0.
        schema: What they must satisfy.
        tables: The other tables that the schema's keys name. The distinct values of a key's
            column are sent to every node: up to 10 million.

    Raises:
        CheckError: No row satisfies the schema, or a table check fails: the message has the
            figures, `checked` on the error the rows.
        DataError: A column or a table is missing.
    """
    if missing := [name for name in schema.columns if name not in table.schema.names]:
        raise DataError(
            f"the table lacks the columns {missing} of the schema {schema.name!r}; it has "
            f"{[name for name in table.schema.names if name[:1] != '_'][:20]}. Rename its columns "
            "or edit the schema"
        )
    keys = _keys(schema, tables or {})
    if ROW not in table.schema.names:
        table = table.with_row_number(ROW)
    good, bad = table.split_sources(_split, schema, keys, name="check")
    found = [bad]
    if schema.unique:
        good, repeated = split_repeated(good, schema.unique, bad.schema.names)
        good = good.select(list(schema.columns))
        if len(repeated):
            found.append(repeated)
    reasons: dict[str, int] = {}
    examples: dict[str, str] = {}
    for meta in (meta for part in found for meta in part.metas()):
        for kind, (count, place) in examples_of(meta.schema).items():
            reasons[kind] = reasons.get(kind, 0) + count
            examples.setdefault(kind, place)
    reasons = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    quarantine = Table(
        [block for part in found for block in part.blocks()],
        [meta for part in found for meta in part.metas()],
        bad.lineage,
    )
    checked = Checked(good, quarantine, reasons, examples)
    _count(checked, schema.name)
    if len(good) == 0:
        most = "; ".join(f"{count} x {kind}" for kind, count in list(reasons.items())[:5])
        raise CheckError(
            f"none of the {checked.rows} rows satisfies the schema {schema.name!r}: this is not "
            f"the kind of file that it describes, or its columns are mixed up ({most})",
            checked,
        )
    return _check_whole(checked, schema)


def _count(checked: Checked, schema: str) -> None:
    """Metrics of a check."""
    metrics.DATA_CHECKED_ROWS.inc(checked.rows, {"schema": schema})
    metrics.DATA_QUARANTINED_ROWS.inc(len(checked.quarantine), {"schema": schema})


def _split(
    source: Any, steps: Sequence[LazyOperation], schema: Schema, keys: Mapping[str, Table]
) -> tuple[pa.Table, pa.Table]:
    """Read a block, of a raw CSV file with types where its values have them, and split it."""
    values = {key: table.to_arrow().column(0).combine_chunks() for key, table in keys.items()}
    found = None
    if (part := raw_part(source)) and all(step.columns for step in steps):
        found = read_typed(part, _arrow_types(schema))
    if found is None:
        good, bad, examples = split_block(evaluate(source, steps), schema, values)
    else:
        names = list(steps[-1].columns or ()) if steps else found.malformed.column_names
        typed = found.block.select([name for name in names if name in found.block.column_names])
        good, bad, examples = split_block(
            typed, schema, values, lambda rows: found.texts(rows).select(names)
        )
        _, lines, others = split_block(found.malformed.select(names), schema, values)
        bad, examples = concat(bad, lines), {**examples, **others}
    return good, with_examples(bad, examples)


def _arrow_types(schema: Schema) -> dict[str, pa.DataType]:
    """Types that Arrow reads as `read_values` does: the others are left to it."""
    kinds = schema.polars_types()
    wanted = {
        name: kind
        for name, kind in kinds.items()
        if kind.is_numeric() or (kind == pl.Datetime and kind.time_zone)
    }
    frame = pl.DataFrame(schema=wanted)
    return {field.name: field.type for field in frame.to_arrow().schema}


def _keys(schema: Schema, tables: Mapping[str, Table]) -> dict[str, Table]:
    """The distinct values of each column that a key names."""
    keys = {}
    for name, column in schema.columns.items():
        if column.key is None or column.key in keys:
            continue
        of, _, other = column.key.partition(".")
        if of not in tables or other not in tables[of].schema.names:
            raise DataError(
                f"column {name!r} has the key {column.key!r}, which names no column of the tables "
                f"given, {list(tables)}. Give it: check(..., tables={{{of!r}: ...}})"
            )
        parts = tables[of].map_blocks(_distinct, other, name="keys")
        keys[column.key] = Table.load(_merge, parts, name="keys")
        if len(keys[column.key]) > MOST_KEYS:
            raise DataError(
                f"column {name!r}: the key {column.key!r} has {len(keys[column.key])} values, more "
                f"than the {MOST_KEYS} that are sent to every task: find rows without a partner "
                "with a join instead"
            )
    return keys


def _distinct(block: pa.Table, column: str) -> pa.Table:
    return pa.table({column: pc.unique(block[column])})


def _merge(parts: Table) -> pa.Table:
    whole = parts.to_arrow()
    return _distinct(whole, whole.column_names[0])


def _check_whole(checked: Checked, schema: Schema) -> Checked:
    """With the figures of the table checks.

    Raises:
        CheckError: One of them is out of its bounds.
    """
    figures = [*_row_figures(checked, schema), *_column_figures(checked.good, schema)]
    checked = Checked(
        checked.good, checked.quarantine, checked.reasons, checked.examples, tuple(figures)
    )
    if broken := [figure for figure in figures if not figure.holds]:
        raise CheckError(
            f"{len(broken)} of {len(figures)} table checks of the schema {schema.name!r} fail over "
            f"{len(checked.good)} good rows ({len(checked.quarantine)} in quarantine): "
            f"{'; '.join(map(str, broken))}. Look at what changed in the data; if it is right as "
            "it is, edit the bounds",
            checked,
        )
    return checked


def _row_figures(checked: Checked, schema: Schema) -> list[Figure]:
    rows, figures = schema.rows, []
    if rows.min is not None or rows.max is not None:
        figures.append(Figure("rows", len(checked.good), rows.min, rows.max))
    if rows.quarantined_share is not None:
        share = len(checked.quarantine) / checked.rows
        figures.append(Figure("rows quarantined_share", share, None, rows.quarantined_share))
    return figures


def _column_figures(good: Table, schema: Schema) -> list[Figure]:
    wanted = {
        name: distribution.bounds(name, schema.columns[name].type)
        for name, distribution in schema.distributions.items()
    }
    if not wanted:
        return []
    found = statistics(good, list(wanted))
    for name, value in medians(good, [n for n in wanted if "median" in wanted[n]]).items():
        found[name]["median"] = value
    types, figures = schema.polars_types(), []
    for name, bounds in wanted.items():
        for what, (low, high) in bounds.items():
            value = found[name][what]
            if what != "null_share" and types[name].is_temporal():
                value = as_time(value, types[name])
            figures.append(Figure(f"{name} {what}", value, low, high))
    return figures


def _say(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else say(value)
