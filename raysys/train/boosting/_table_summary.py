"""Summary of a Table for boosting: rows, classes, categories, and checks of labels and weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.errors import DataError
from raysys.train.boosting._feature_columns import (
    FeatureColumns,
    decode_dictionary,
    group_starts,
    is_classification,
    to_float32,
)

if TYPE_CHECKING:
    from raysys.data import Table

ClassWeights = Literal["balanced"] | Mapping[Any, float]

# Ranges of labels. The gain of rank:ndcg, 2^label - 1, must fit into 32 bits.
_LABEL_RANGES: dict[str, tuple[float, float]] = {
    "reg:logistic": (0, 1),
    "reg:gamma": (float(np.finfo(np.float32).tiny), np.inf),
    "reg:tweedie": (0, np.inf),
    "count:poisson": (0, np.inf),
    "rank:ndcg": (0, 31),
    "rank:map": (0, 1),
    "rank:pairwise": (0, np.inf),
}
_INTEGER_LABELS = ("rank:ndcg", "rank:map")
_MAX_CLASSES = 1000
_MAX = float(np.finfo(np.float32).max)


class TableSummary(NamedTuple):
    """Facts about a Table that the driver needs before training.

    Attributes:
        rows: Number of rows.
        classes: Rows of each class, ascending by class; empty for numeric labels.
        categories: Values of each categorical feature, ascending.
    """

    rows: int
    classes: dict[Any, int]
    categories: dict[str, list[Any]]


def summarize(table: Table, columns: FeatureColumns, objective: str, *, name: str) -> TableSummary:
    """Summarize every block in a task, and refuse values that trees cannot be trained on.

    Raises:
        DataError: No rows; labels missing, infinite or invalid for the objective; weights
            missing or negative; infinite features; groups that are not contiguous.
    """
    classify = is_classification(objective)
    parts = table.gather(_summarize_block, columns, classify, name="boost_summary")
    rows = sum(part["rows"] for part in parts)
    if not rows:
        raise DataError(f"{name}: the Table has no rows")
    if missing := sum(part["missing_labels"] for part in parts):
        raise DataError(
            f"{name}: {missing} of {rows} rows have no label in {columns.label!r} (missing or not "
            "finite). Drop them: table.filter(pl.col(...).is_finite())"
        )
    if wrong := sum(part["bad_weights"] for part in parts):
        raise DataError(
            f"{name}: {wrong} weights in {columns.weight!r} are missing, infinite or negative"
        )
    if columns.weight and not any(part["has_weight"] for part in parts):
        raise DataError(f"{name}: all weights in {columns.weight!r} are 0: leave weight= out")
    if infinite := sorted({feature for part in parts for feature in part["infinite"]}):
        raise DataError(
            f"{name}: values that are infinite in float32 in {infinite[:20]}: replace them by "
            "nulls, or clip or scale them"
        )
    low, high = _LABEL_RANGES.get(objective, (-np.inf, np.inf))
    smallest = min(part["smallest"] for part in parts)
    largest = max(part["largest"] for part in parts)
    if smallest < low or largest > high:
        raise DataError(
            f"{name}: {columns.label!r} ranges from {smallest:g} to {largest:g}; {objective} needs "
            f"labels from {low:g} to {high:g}: scale them, or use another objective"
        )
    if objective in _INTEGER_LABELS and (odd := [p["fraction"] for p in parts if p["fraction"]]):
        raise DataError(
            f"{name}: {columns.label!r} has {odd[0]:g}; {objective} needs integers from 0: use "
            "grades of relevance, or 'rank:pairwise'"
        )
    if columns.group:
        runs = sum(part["runs"] for part in parts)
        groups = len(table.select([columns.group]).distinct())
        if runs != groups:
            raise DataError(
                f"{name}: the {groups} groups of {columns.group!r} are split into {runs} runs of "
                f"rows. Make each contiguous, in one block: table.sort({columns.group!r})"
            )
    categories = {
        feature: sorted({value for part in parts for value in part["categories"][feature]})
        for feature in columns.categorical
    }
    classes: Counter[Any] = Counter()
    for part in parts:
        classes.update(part["classes"])
    if len(classes) > _MAX_CLASSES:
        raise DataError(
            f"{name}: {columns.label!r} has more than {_MAX_CLASSES} values, too many for "
            "classes. To predict numbers use objective='reg:squarederror'"
        )
    return TableSummary(rows, {value: classes[value] for value in sorted(classes)}, categories)


def check_classes(classes: Mapping[Any, int], objective: str, label: str) -> None:
    """Refuse training classes of wrong types, or too many or too few for the objective."""
    if odd := [value for value in classes if not isinstance(value, str | int | float)]:
        raise DataError(f"{label!r} holds {odd[:3]}: classes are text, integers or booleans")
    binary = objective == "binary:logistic"
    if len(classes) < 2 or (binary and len(classes) > 2):
        suggestion = "multi:softprob" if len(classes) > 2 else "reg:squarederror"
        raise DataError(
            f"{objective} needs two {'' if binary else 'or more '}classes; {label!r} has "
            f"{len(classes)}: {list(classes)[:10]}. For these labels use objective={suggestion!r}"
        )


def weights_by_class(
    classes: Mapping[Any, int], class_weights: ClassWeights | None
) -> list[float] | None:
    """Weight of each class in their order.

    "balanced" is rows / (classes * rows of the class), as in scikit-learn.
    """
    if class_weights is None:
        return None
    if class_weights == "balanced":
        rows = sum(classes.values())
        return [rows / (len(classes) * count) for count in classes.values()]
    assert isinstance(class_weights, Mapping)
    values = class_weights.values()
    if set(class_weights) != set(classes) or any(not 0 <= value < np.inf for value in values):
        raise DataError(
            f"class_weights={dict(class_weights)}: give a finite weight that is not negative for "
            f"each of the classes {list(classes)}, or 'balanced'"
        )
    return [float(class_weights[value]) for value in classes]


def _summarize_block(block: pa.Table, columns: FeatureColumns, classify: bool) -> dict[str, Any]:
    label = decode_dictionary(block[columns.label])
    summary: dict[str, Any] = {
        "rows": len(block), "classes": {}, "smallest": np.inf, "largest": -np.inf, "bad_weights": 0,
        "has_weight": False, "fraction": 0.0,
    }  # fmt: skip
    if classify:
        missing = label.is_null(nan_is_null=True)
        counts = pc.value_counts(label.filter(pc.invert(missing)))[: _MAX_CLASSES + 1]
        summary["classes"] = {_class(row["values"]): row["counts"] for row in counts.to_pylist()}
        summary["missing_labels"] = pc.sum(missing).as_py() or 0
    else:
        try:
            numbers = to_float32(label)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{columns.label!r} holds {label.type}: this objective predicts numbers. For "
                "classes use 'binary:logistic' or 'multi:softprob'"
            ) from error
        finite = np.isfinite(numbers)
        summary["missing_labels"] = int((~finite).sum())
        if finite.any():
            summary["smallest"] = float(numbers[finite].min())
            summary["largest"] = float(numbers[finite].max())
            fractions = numbers[finite & (numbers % 1 != 0)]
            summary["fraction"] = float(fractions[0]) if len(fractions) else 0.0
    if columns.weight:
        weights = to_float32(block[columns.weight])
        summary["bad_weights"] = int((~(np.isfinite(weights) & (weights >= 0))).sum())
        summary["has_weight"] = bool((weights > 0).any())
    summary["infinite"] = [name for name in columns.features if _is_infinite(block[name])]
    summary["categories"] = {
        name: pc.unique(decode_dictionary(block[name])).drop_null().to_pylist()
        for name in columns.categorical
    }  # fmt: skip
    if columns.group:
        summary["runs"] = len(group_starts(block[columns.group]))
    return summary


def _is_infinite(column: pa.ChunkedArray) -> bool:
    """Whether a value of a column of numbers is infinite in float32."""
    if not (pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        return False
    extremes = pc.min_max(column).as_py()
    return any(v is not None and abs(v) > _MAX for v in extremes.values())


def _class(value: Any) -> Any:
    """A class as a user writes it: 1.0 of a column of floats is 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
