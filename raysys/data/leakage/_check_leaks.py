"""A check before training for information that a model will lack in use.

On kinds and causes of leaks: Kaufman, Rosset & Perlich, "Leakage in data mining:
formulation, detection, and avoidance" (2012).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.arguments import checked
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


@checked
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
    """Look for leaks between splits, and for columns that predict the label too well.

    A balanced training split is checked as it was before it was balanced. Only the report reaches
    this process; it does not depend on the blocks, except for the last digits of sums of floats.

    Args:
        splits: The splits, in the order of time if `time` is given.
        label: Column to predict; without it, the power of the columns is not checked.
        keys: Columns that identify a row; a row in two splits is a leak. Without them, rows
            equal in all features are a suspicion.
        time: Column of times or numbers; each split must end before the next one starts.
        features: Columns to check; by default all except `label`, `keys` and `time`.
        fitted: Fitted objects such as `raysys.features.FittedFeaturizer`, with `fitted_on` (the
            fingerprint of a Table) and `rows`; they must be fitted on the training split.
        limits: Thresholds for reporting columns.

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
    """The report of `check_leaks`."""
    tables = splits.original
    need(splits.train, keys)
    named = [*keys, *([label] if label else []), *([time] if time else [])]
    schema = splits.train.schema
    columns = (
        [name for name in schema.names if name not in named] if features is None else list(features)
    )
    for table in tables.values():
        need(table, [*named, *columns])
        _same_clock(schema, table.schema, [*named, *columns])
    nested = [name for name in columns if pa.types.is_nested(schema.field(name).type)]
    flat = [name for name in columns if name not in nested]
    target, skipped = label_of(tables[splits.training], label)
    findings, done = checks.rows_and_categories(
        splits, keys, columns, [name for name in flat if not is_number(schema.field(name).type)],
        limits,
    )  # fmt: skip
    if time is not None:
        findings += checks.time_order(tables, time)
        done.append(f"the order of {', '.join(tables)} in {time}")
    if fitted:
        results = [checks.fitted_beyond(splits, item) for item in fitted]
        findings += [finding for finding in results if finding]
        done.append(f"the tables of {len(fitted)} fitted objects")
    findings += checks.columns_in_bins(splits, flat, target, limits)
    done.append(f"the distributions of {len(flat)} columns")
    if target is not None:
        kind = "a number" if target.classes is None else f"{len(target.classes)} classes"
        done.append(f"how well each of them predicts {target.column}, {kind}")
    if skipped:
        done.append(skipped)
    if nested:
        done.append(f"not the nested columns {', '.join(nested)}")
    findings.sort(key=lambda f: (not f.certain, f.kind, -f.value, f.subject))
    return LeakReport(tuple(findings), tuple(done))


def label_of(train: Table, column: str | None) -> tuple[Label | None, str]:
    """Type of the label: up to 100 classes, or a number of more than 20 values.

    Returns:
        The label, or None and the reason why its prediction cannot be checked.
    """
    if column is None:
        return None, ""
    number = is_number(train.schema.field(column).type)
    max_classes = 20 if number else 100
    parts = list(each_block(train, "leaks_label")(_label_values, column, number, max_classes))
    classes = np.unique(np.concatenate([part[0] for part in parts]))
    if len(classes) < 2:
        return None, f"not the prediction of {column}: it has {len(classes)} values"
    if len(classes) <= max_classes:
        return Label(column, classes), ""
    if not number:
        return None, f"not the prediction of {column}: it has more than {max_classes} classes"
    total, rows = (sum(part[n] for part in parts) for n in (1, 2))
    return Label(column, None, float(total / rows)), ""


def _label_values(
    block: pa.Table, first: int, column: str, number: bool, max_classes: int
) -> tuple[np.ndarray, float, int]:
    """Hashes of up to `max_classes` + 1 distinct values; sum and number of the values."""
    present = block[column].is_valid().to_numpy()
    values = as_numbers(block[column])[present] if number else np.zeros(0)
    values = values[~np.isnan(values)]
    hashes = np.unique(hash_rows(block, [column])[present])[: max_classes + 1]
    return hashes, float(values.sum()), len(values)


def _same_clock(training: pa.Schema, evaluation: pa.Schema, columns: Sequence[str]) -> None:
    for name in columns:
        ours, theirs = training.field(name).type, evaluation.field(name).type
        if ours != theirs and (pa.types.is_temporal(ours) or pa.types.is_temporal(theirs)):
            raise DataError(
                f"{name} is {ours} in the training split and {theirs} in another one, but "
                "times are compared in one unit. Cast the column to one type before the split"
            )
