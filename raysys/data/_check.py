"""Checking rows against a schema: good rows go on, bad rows to quarantine with the reason."""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysys.data._table import Table
from raysys.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

# Where a row stood in what was checked, from 0; and why it was turned away.
ROW, REASON = "_row", "_reason"
# Text as repr() writes it.
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'" + r'|"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Checked:
    """The two ways that rows took.

    Attributes:
        good: Rows that satisfy the schema, in its types and order.
        quarantine: The others as text, with `_row` (int64) and `_reason`.
        reasons: Number of rows turned away, by kind of reason.
    """

    good: Table
    quarantine: Table
    reasons: dict[str, int]

    @property
    def rows(self) -> int:
        """Number of rows that were checked."""
        return self.good.rows + self.quarantine.rows


def check(table: Table, schema: Any, *, partition_by: str, blocks: int) -> Checked:
    """Check every row, in tasks over the blocks.

    Values are first read as the types of the schema's columns. A missing or unreadable value
    or a failed check turns the row away, with all of its reasons. Of rows that are equal in
    the schema's `unique` columns the first stays.

    Args:
        table: Rows with at least the schema's columns, of any type.
        schema: A `pandera.DataFrameSchema` of row checks.
        partition_by: One of the `unique` columns: good rows that share a value of it come
            back in one block.
        blocks: Number of blocks of the good rows.

    Raises:
        DataError: No row satisfies the schema.
    """
    import ray

    numbered = table.with_row_number(ROW)
    typed, bad = numbered.split_blocks(_split_rows, schema, name="check")
    typed = typed.partition_by(partition_by, blocks)
    good, repeated = typed.split_blocks(_split_repeated, schema, name="check_unique")
    if good.rows == 0:
        raise DataError(
            f"none of the {table.rows} rows satisfies the schema {schema.name!r}: this is not the "
            "kind of file that it describes, or its columns are mixed up"
        )
    quarantine = Table(bad.blocks + repeated.blocks, bad.metas + repeated.metas)
    count = ray.remote(_count_reasons).options(name="count_reasons")
    counted: Counter[str] = Counter()
    for part in ray.get([count.remote(block) for block in quarantine.blocks]):
        counted.update(part)
    return Checked(good, quarantine, dict(counted.most_common()))


def _split_rows(block: pa.Table, schema: Any) -> tuple[pa.Table, pa.Table]:
    import pandas as pd
    import pandera.errors
    import pyarrow as pa

    # Without pandas's metadata, and integers as they are: each value is null or itself.
    raw = block.to_pandas(ignore_metadata=True, integer_object_nulls=True)
    reasons = pd.Series("", index=raw.index)
    typed = pd.DataFrame({ROW: raw[ROW]})
    for name, column in schema.columns.items():
        kind, values = str(column.dtype), raw[name]
        if kind.startswith(("int", "float")):
            if pa.types.is_temporal(block.schema.field(name).type):
                values = values.astype(str)  # in no unit that a number would have
            numbers = pd.to_numeric(values, errors="coerce")
            if kind.startswith("int"):
                numbers = _integers(values, numbers, kind)
            unreadable = numbers.isna() & values.notna()
            for row in raw.index[unreadable]:
                reasons[row] += f"{name}: {values[row]!r} is no {kind}; "
            values = numbers
        if not column.nullable:
            reasons[raw.index[raw[name].isna()]] += f"{name}: missing; "
        typed[name] = values
    whole = typed[reasons == ""].astype({n: str(c.dtype) for n, c in schema.columns.items()
                                         if str(c.dtype).startswith(("int", "float"))})  # fmt: skip
    rows_only = copy.deepcopy(schema)
    rows_only.unique = None
    try:
        rows_only.validate(whole, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        for row, name, rule, value in zip(
            cases["index"], cases["column"], cases["check"], cases["failure_case"], strict=True
        ):
            reasons[row] += f"{name}: {value!r} fails {rule}; "
    failed = reasons != ""
    good = _arrow(whole[~failed[whole.index]])
    return good, _quarantined(raw[failed], reasons[failed])


def _integers(values: Any, numbers: Any, kind: str) -> Any:
    """`numbers`, which were read from `values`, exactly; missing where one is no `kind`."""
    import numpy as np

    limits = np.iinfo(kind)
    large = numbers.abs() >= 2.0**53  # from here on, not every integer is a float
    inside = large | numbers.between(limits.min, limits.max)
    whole = numbers.where((numbers % 1 == 0) & inside)
    if not large.any():
        return whole
    whole = whole.astype(object)
    for row in numbers.index[large]:
        try:
            exact = int(values[row])
        except (OverflowError, ValueError):
            exact = limits.max + 1
        whole[row] = exact if limits.min <= exact <= limits.max else None
    return whole


def _split_repeated(block: pa.Table, schema: Any) -> tuple[pa.Table, pa.Table]:
    import pandas as pd

    rows = block.to_pandas()
    repeated = rows.duplicated(schema.unique, keep="first")
    reason = f"{', '.join(schema.unique)}: stands in an earlier row"
    good = _arrow(rows[~repeated].drop(columns=ROW))
    return good, _quarantined(rows[repeated], pd.Series(reason, index=rows.index[repeated]))


def _arrow(rows: Any) -> pa.Table:
    """Rows as Arrow; a text column without a value in this block is text still."""
    import pyarrow as pa

    table = pa.Table.from_pandas(rows, preserve_index=False)
    for number, field in enumerate(table.schema):
        if pa.types.is_null(field.type):
            table = table.set_column(number, field.name, table[number].cast(pa.string()))
    return table


def _quarantined(rows: Any, reasons: Any) -> pa.Table:
    import pyarrow as pa

    names = [name for name in rows.columns if name != ROW]
    # As text: a quarantine must take any value, and keep it as it was written.
    columns = {
        name: pa.array([None if value is None or value != value else str(value)
                        for value in rows[name]], pa.string())
        for name in names
    }  # fmt: skip
    columns[ROW] = pa.array(rows[ROW], pa.int64())
    columns[REASON] = pa.array(reasons.str.rstrip("; "), pa.string())
    return pa.table(columns)


def _count_reasons(block: pa.Table) -> Counter[str]:
    """Counts by kind: the value that was given is cut out."""
    texts = (_QUOTED.sub("", text) for text in block[REASON].to_pylist())
    reasons = (reason for text in texts for reason in text.split("; "))
    return Counter(re.sub(r": .*?(is no|fails) ", r" \1 ", reason) for reason in reasons)
