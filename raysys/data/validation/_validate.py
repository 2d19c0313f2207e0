"""Validation of a Table: valid rows go on, bad rows go to quarantine with their reasons."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from raysys.arguments import checked
from raysys.console import html_table
from raysys.data._lazy_plan import LazyOperation, evaluate
from raysys.data._polars import pl
from raysys.data._shuffle import concat
from raysys.data._table import Table
from raysys.data.readers._column_types import LINE, ROW
from raysys.data.readers._csv_typed import raw_part, read_typed
from raysys.data.validation._column_statistics import medians, statistics
from raysys.data.validation._row_rules import (
    as_time,
    examples_of,
    format_bound,
    split_block,
    with_examples,
)
from raysys.data.validation._uniqueness import hashes_of, split_repeated
from raysys.errors import DataError
from raysys.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.data.validation._schema import Schema

MAX_KEYS = 10_000_000  # values of a foreign key's column, which every task loads


@dataclass(frozen=True)
class TableCheck:
    """A statistic of the table and its bounds, both included; None is unbounded."""

    name: str
    value: Any
    min: Any
    max: Any

    @property
    def passed(self) -> bool:
        """Whether the value is within the bounds; a missing one is not."""
        return (
            self.value is not None
            and (self.min is None or self.value >= self.min)
            and (self.max is None or self.value <= self.max)
        )

    def __str__(self) -> str:
        value = "no value" if self.value is None else _format(self.value)
        low = "" if self.min is None else f"from {_format(self.min)}"
        high = "" if self.max is None else f"to {_format(self.max)}"
        return f"{self.name}: {value}, bounds: {' '.join(filter(None, [low, high]))}"


@dataclass(frozen=True)
class ValidationResult:
    """Rows split into valid and quarantined, with the reasons.

    Attributes:
        valid: Rows that satisfy the schema, with its columns, types and order, in the blocks and
            the order of the input.
        quarantine: All other rows as text, with all their columns as they were written, `_line`
            or `_row` (int64), `_file` if they come from files, and `_reason`.
        reasons: Number of rows by kind of reason, in descending order; a row may have several.
        examples: Place of the first row, by kind of reason.
        checks: Table checks: bounds of `rows` and `distributions`.
    """

    valid: Table
    quarantine: Table
    reasons: dict[str, int]
    examples: dict[str, str]
    checks: tuple[TableCheck, ...] = ()

    @property
    def rows(self) -> int:
        """Number of validated rows."""
        return len(self.valid) + len(self.quarantine)

    def __repr__(self) -> str:
        failed = sum(not check.passed for check in self.checks)
        return (
            f"ValidationResult({len(self.valid)} valid, {len(self.quarantine)} in quarantine, "
            f"{len(self.reasons)} kinds of reasons, {failed} of {len(self.checks)} checks failed)"
        )

    def _repr_html_(self) -> str:
        rows = [(kind, count, self.examples[kind]) for kind, count in self.reasons.items()]
        return html_table(["reason", ">rows", "first"], rows, repr(self))


class ValidationError(DataError):
    """The table as a whole does not satisfy its schema.

    Attributes:
        result: Valid rows, quarantine and table checks.
    """

    def __init__(self, message: str, result: ValidationResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.result)


@checked
def validate(
    table: Table, schema: Schema, *, tables: Mapping[str, Table] | None = None
) -> ValidationResult:
    """Validate every row, in one task per block, and then the table as a whole.

    Values are first read as the types of the schema's columns (see `Schema`), from text or any
    other type. A row with a missing or unreadable value, or that breaks a rule, goes to quarantine
    with all of its reasons. Of rows that pass all else and are equal in a group of `unique`
    columns the first is valid. The statistics of `distributions` are of the valid rows.

    Args:
        table: Rows with at least the schema's columns. From `read(path, raw=True)`, `_file` and
            `_line` say where a row starts, as an editor counts (`_row`, from 0, in a Parquet or
            Arrow file), and malformed lines go to quarantine too; otherwise `_row` counts the
            table's rows from 0.
        schema: Rules for rows and bounds for the table.
        tables: Tables that the schema's foreign keys name. The distinct values of a key's column
            are sent to every node: at most 10 million.

    Raises:
        ValidationError: No row satisfies the schema, or a table check fails.
        DataError: A column or a table is missing.
    """
    if missing := [name for name in schema.columns if name not in table.schema.names]:
        raise DataError(
            f"the table lacks the columns {missing} of the schema {schema.name!r}; it has "
            f"{[name for name in table.schema.names if name[:1] != '_'][:20]}. Rename its columns "
            "or edit the schema"
        )
    keys = _foreign_keys(schema, tables or {})
    if not {LINE, ROW} & set(table.schema.names):
        table = table.with_row_number(ROW)
    valid, bad, row_keys = table.split_sources(_split, schema, keys, name="validate", values=2)
    quarantines = [bad]
    if schema.unique:
        valid, repeated = split_repeated(valid, row_keys, schema.unique, bad.schema.names)
        if len(repeated):
            quarantines.append(repeated)
    blocks = [block for part in quarantines for block in part.blocks()]
    metas = [meta for part in quarantines for meta in part.metas()]
    reasons: dict[str, int] = {}
    examples: dict[str, str] = {}
    for meta in metas:
        for kind, (count, place) in examples_of(meta.schema).items():
            reasons[kind] = reasons.get(kind, 0) + count
            examples.setdefault(kind, place)
    reasons = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    result = ValidationResult(valid, Table(blocks, metas, bad.lineage), reasons, examples)
    metrics.DATA_VALIDATED_ROWS.inc(result.rows, {"schema": schema.name})
    metrics.DATA_QUARANTINED_ROWS.inc(len(result.quarantine), {"schema": schema.name})
    if len(valid) == 0:
        most_frequent = "; ".join(f"{count} x {kind}" for kind, count in [*reasons.items()][:5])
        raise ValidationError(
            f"none of the {result.rows} rows satisfies the schema {schema.name!r} "
            f"({most_frequent}): give the kind of file that it describes, or edit the schema",
            result,
        )
    checks = (*_row_checks(result, schema), *_distribution_checks(valid, schema))
    result = replace(result, checks=checks)
    if failed := [check for check in checks if not check.passed]:
        raise ValidationError(
            f"{len(failed)} of {len(checks)} table checks of the schema {schema.name!r} fail over "
            f"{len(valid)} valid rows ({len(result.quarantine)} in quarantine): "
            f"{'; '.join(map(str, failed))}. Find out what changed in the data; if it is correct, "
            "edit the bounds",
            result,
        )
    return result


def _split(
    source: Any, steps: Sequence[LazyOperation], schema: Schema, keys: Mapping[str, Table]
) -> tuple[Any, ...]:
    """Read a block, typed where it is a part of a raw CSV file, and split it.

    Returns:
        Valid rows and bad rows; hashes of the valid ones, and their origin by column.
    """
    values = {key: table.to_arrow().column(0).combine_chunks() for key, table in keys.items()}
    typed = None
    if (part := raw_part(source)) and all(step.columns for step in steps):
        typed = read_typed(part, _arrow_types(schema))
    if typed is None:
        valid, bad, examples = split_block(evaluate(source, steps), schema, values)
    else:
        names = list(steps[-1].columns or ()) if steps else typed.malformed.column_names
        block = typed.block.select([name for name in names if name in typed.block.column_names])
        valid, bad, examples = split_block(
            block, schema, values, lambda rows: typed.texts(rows).select(names)
        )
        _, lines, malformed = split_block(typed.malformed.select(names), schema, values)
        bad, examples = concat(bad, lines), examples | malformed
    origin = [name for name in valid.column_names if name not in schema.columns]
    places = {name: valid[name].combine_chunks() for name in origin}
    hashes = hashes_of(valid, schema.unique)
    return valid.select(list(schema.columns)), with_examples(bad, examples), hashes, places


def _arrow_types(schema: Schema) -> dict[str, pa.DataType]:
    """Types that Arrow reads as `read_values` does; columns of all others stay text."""
    types = {
        name: kind
        for name, kind in schema.polars_types().items()
        if kind.is_numeric() or (kind == pl.Datetime and kind.time_zone)
    }
    return {field.name: field.type for field in pl.DataFrame(schema=types).to_arrow().schema}


def _foreign_keys(schema: Schema, tables: Mapping[str, Table]) -> dict[str, Table]:
    """Distinct values of each column that a foreign key names."""
    keys: dict[str, Table] = {}
    for name, column in schema.columns.items():
        key = column.foreign_key
        if key is None or key in keys:
            continue
        parent, _, parent_column = key.partition(".")
        if parent not in tables or parent_column not in tables[parent].schema.names:
            raise DataError(
                f"column {name!r}: no such column: {key!r}, its foreign key, in the tables "
                f"{list(tables)}. Give it: validate(..., tables={{{parent!r}: ...}})"
            )
        parts = tables[parent].map_blocks(_distinct, parent_column, name="keys")
        keys[key] = Table.load(_merge, parts, name="keys")
        if len(keys[key]) > MAX_KEYS:
            raise DataError(
                f"column {name!r}: the foreign key {key!r} has {len(keys[key])} values, more than "
                f"the {MAX_KEYS} that are sent to every task: find rows without a partner with a "
                "join instead"
            )
    return keys


def _distinct(block: pa.Table, column: str) -> pa.Table:
    return pa.table({column: pc.unique(block[column])})


def _merge(parts: Table) -> pa.Table:
    values = parts.to_arrow()
    return _distinct(values, values.column_names[0])


def _row_checks(result: ValidationResult, schema: Schema) -> list[TableCheck]:
    bounds, checks = schema.rows, []
    if bounds.min is not None or bounds.max is not None:
        checks.append(TableCheck("rows", len(result.valid), bounds.min, bounds.max))
    if (limit := bounds.max_quarantined_share) is not None:
        share = len(result.quarantine) / result.rows
        checks.append(TableCheck("quarantined share", share, None, limit))
    return checks


def _distribution_checks(valid: Table, schema: Schema) -> list[TableCheck]:
    all_bounds = {
        name: distribution.bounds(name, schema.columns[name].type)
        for name, distribution in schema.distributions.items()
    }
    if not all_bounds:
        return []
    stats = statistics(valid, list(all_bounds))
    with_median = [name for name, bounds in all_bounds.items() if "median" in bounds]
    for name, median in medians(valid, {name: stats[name] for name in with_median}).items():
        stats[name]["median"] = median
    types, checks = schema.polars_types(), []
    for name, bounds in all_bounds.items():
        for statistic, (low, high) in bounds.items():
            value = stats[name][statistic]
            if statistic != "null_share" and types[name].is_temporal():
                value = as_time(value, types[name])
            checks.append(TableCheck(f"{name} {statistic}", value, low, high))
    return checks


def _format(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else format_bound(value)
