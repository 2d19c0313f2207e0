"""A report before training: what a model could know that it will not know when it is used.

What leaks are and how they come about: Kaufman, Rosset & Perlich, "Leakage in data mining:
formulation, detection, and avoidance" (2012).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.data._blocks import coordinate
from raysys.data._row_hash import hash_rows
from raysys.data._row_numbers import each_block, need
from raysys.data.leakage import _checks as checks
from raysys.data.leakage._bins import as_numbers, is_number
from raysys.data.leakage._column_power import Label
from raysys.data.leakage._report import LeakLimits, LeakReport
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from raysys.data._table import Table
    from raysys.data.sampling._split import Splits


def check_leaks(
    splits: Splits,
    *,
    label: str | None = None,
    keys: Sequence[str] = (),
    time: str | None = None,
    features: Sequence[str] | None = None,
    fitted: Iterable[Any] = (),
    limits: LeakLimits | None = None,
) -> LeakReport:
    """Look for what leaks between splits, and for columns that tell too much.

    A balanced training split is looked at as it was drawn. The report alone reaches this process;
    it does not depend on the blocks, but for the last digits of sums of floats.

    Args:
        splits: The splits; where `time` is given, in the order of time.
        label: The column that will be predicted; without it, columns are not asked for it.
        keys: Columns that identify a row: that it stands in two splits is a leak. Without them
            rows that are equal in all features are a suspicion.
        time: A column of times or numbers: each split must end before the next one starts.
        features: Columns to look at; by default all but `label`, `keys` and `time`.
        fitted: Things that were fitted, such as `raysys.features.FittedFeaturizer`, with
            `fitted_on` (the fingerprint of a Table) and `rows` (of it): it must have been the
            training split.
        limits: From which figures on columns are reported.

    Raises:
        DataError: A split lacks a column or has no rows, times are in different units, or a row has
            no time.
    """
    return coordinate(
        "check_leaks", _look, splits, label, keys, time, features, list(fitted),
        limits or LeakLimits(),
    )  # fmt: skip


def _look(
    splits: Splits,
    label: str | None,
    keys: Sequence[str],
    time: str | None,
    features: Sequence[str] | None,
    fitted: Sequence[Any],
    limits: LeakLimits,
) -> LeakReport:
    """What `check_leaks` finds."""
    tables = splits.as_drawn
    need(splits.train, keys)
    named = [*keys, *([label] if label else []), *([time] if time else [])]
    schema = splits.train.schema
    others = [name for name in schema.names if name not in named]
    columns = others if features is None else list(features)
    for table in tables.values():
        need(table, [*named, *columns])
        _same_clock(schema, table.schema, [*named, *columns])
    flat = [name for name in columns if _is_flat(schema.field(name).type)]
    nested = [name for name in columns if name not in flat]
    target, why_not = label_of(tables[splits.training], label)
    findings, checked = checks.rows_and_categories(
        splits, keys, columns, [name for name in flat if not is_number(schema.field(name).type)],
        limits,
    )  # fmt: skip
    if time is not None:
        findings += checks.time_order(tables, time)
        checked.append(f"that {', then '.join(tables)} follow each other in {time}")
    if fitted:
        findings += [found for one in fitted if (found := checks.fitted_beyond(splits, one))]
        checked.append(f"what {len(fitted)} fitted things were fitted on")
    findings += checks.columns_in_bins(splits, flat, target, limits)
    checked.append(f"the distributions of {len(flat)} columns")
    if target is not None:
        kind = "a number" if target.classes is None else f"{len(target.classes)} classes"
        checked.append(f"what each of them tells of {target.column}, {kind}")
    if why_not:
        checked.append(why_not)
    if nested:
        checked.append(f"not looked at, being lists or structs: {', '.join(nested)}")
    findings.sort(key=lambda found: (not found.certain, found.kind, -found.figure, found.subject))
    return LeakReport(tuple(findings), tuple(checked))


def label_of(train: Table, column: str | None) -> tuple[Label | None, str]:
    """How a label is told: by its classes, up to 100 of them, or as a number of over 20 values.

    Returns:
        The label, or None and why it cannot be told.
    """
    if column is None:
        return None, ""
    number = is_number(train.schema.field(column).type)
    most = 20 if number else 100
    parts = list(each_block(train, "leaks_label")(_label_values, column, number, most))
    classes = np.unique(np.concatenate([part[0] for part in parts]))
    if len(classes) < 2:
        return None, f"not what columns tell of {column}: it has {len(classes)} values"
    if len(classes) <= most:
        return Label(column, classes), ""
    if not number:
        return None, f"not what columns tell of {column}: it has more than {most} classes"
    total, rows = (sum(part[n] for part in parts) for n in (1, 2))
    return Label(column, None, float(total / rows)), ""


def _label_values(
    block: pa.Table, first: int, column: str, number: bool, most: int
) -> tuple[np.ndarray, float, int]:
    """Hashes of values, a few more than `most` at most; sum and number of the values."""
    there = block[column].is_valid().to_numpy()
    values = as_numbers(block[column])[there] if number else np.zeros(0)
    values = values[~np.isnan(values)]
    hashes = np.unique(hash_rows(block, [column])[there])[: most + 1]
    return hashes, float(values.sum()), len(values)


def _same_clock(schema: pa.Schema, other: pa.Schema, columns: Sequence[str]) -> None:
    for name in columns:
        ours, theirs = schema.field(name).type, other.field(name).type
        if ours != theirs and (pa.types.is_temporal(ours) or pa.types.is_temporal(theirs)):
            raise DataError(
                f"{name} is {ours} in the training split and {theirs} in another: times are "
                "compared in one unit. Cast the column to one type before the split"
            )


def _is_flat(kind: Any) -> bool:
    return not pa.types.is_nested(kind)
