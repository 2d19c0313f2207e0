"""Classes of unlike sizes: rows repeated or left out, or weights; in the training split only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from raysys.data._order_statistics import groups_of
from raysys.data._row_numbers import deal, each_block, need
from raysys.data.sampling._sample import drawn, limits_of, random_key, strata
from raysys.data.sampling._split import Splits
from raysys.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from raysys.data._table import Table


def oversample(splits: Splits, label: str, *, ratio: float = 1.0, seed: int = 0) -> Splits:
    """Repeat rows of the smaller classes of the training split.

    Each class gets at least `ratio` times the rows of the largest. Its rows are repeated equally
    often, to one: which ones once more is drawn. Copies of a row follow it.

    Args:
        splits: Splits as `split_stratified` and its like make them.
        label: The column of classes.
        ratio: In (0, 1].
        seed: Another seed draws other rows.

    Raises:
        DataError: Given a Table instead of Splits, rows without a class, or one class only.
    """
    table = training_of(splits, "oversample")
    counts, limits, times = _plan(table, label, seed, lambda rows: max(rows) * _checked(ratio), max)
    how = {"label": label, "ratio": ratio, "seed": seed}
    made = deal(
        table, [splits.training], _repeated, seed, label, limits, times,
        name="oversample", how=how,
    )[0]  # fmt: skip
    return splits.with_train(made, f"{counts} classes of {label} oversampled to {ratio:g}")


def undersample(splits: Splits, label: str, *, ratio: float = 1.0, seed: int = 0) -> Splits:
    """Leave out rows of the larger classes of the training split.

    Each class keeps at most the rows of the smallest divided by `ratio`, drawn at random; rows
    stay in their order. Arguments and errors as for `oversample`.
    """
    table = training_of(splits, "undersample")
    counts, limits, times = _plan(table, label, seed, lambda rows: min(rows) / _checked(ratio), min)
    how = {"label": label, "ratio": ratio, "seed": seed}
    made = deal(
        table, [splits.training], _repeated, seed, label, limits, times,
        name="undersample", how=how,
    )[0]  # fmt: skip
    return splits.with_train(made, f"{counts} classes of {label} undersampled to {ratio:g}")


def class_weights(splits: Splits, label: str) -> dict[Any, float]:
    """Weights under which each class of the training split counts the same.

    Rows divided by (classes times rows of the class), which is scikit-learn's "balanced"; after
    King & Zeng, "Logistic regression in rare events data" (2001). The mean over the rows is 1.

    Args:
        splits: Splits as `split_stratified` and its like make them.
        label: The column of classes.

    Returns:
        The weight of each class, by its value, in the order of the values.

    Raises:
        DataError: Given a Table instead of Splits, or rows without a class.
    """
    table = training_of(splits, "class_weights")
    counts = class_counts(table, label)
    return {value: len(table) / (len(counts) * rows) for value, rows in counts.items()}


def class_counts(table: Table, label: str) -> dict[Any, int]:
    """Number of rows of each class, in the order of their values.

    Raises:
        DataError: A row has no class, or there are more than 100,000.
    """
    need(table, [label])
    counts: dict[Any, int] = {}
    for part in table.gather(_class_counts, label, name="class_counts"):
        for value, rows in part:
            counts[value] = counts.get(value, 0) + rows
    if missing := counts.pop(None, 0):
        raise DataError(
            f"{label}: {missing} of the {len(table)} rows have no class. Leave them out, or give "
            "them a class of their own"
        )
    return {value: counts[value] for value in sorted(counts)}


def training_of(splits: Any, action: str) -> Table:
    """The training split; what is not known to have one is refused."""
    if not isinstance(splits, Splits):
        raise DataError(
            f"{action} takes Splits, and changes the training split only: in a Table of an "
            "evaluation split the classes must keep the sizes that the model will meet. Give the "
            'Splits that the table is from, or Splits({"train": table})'
        )
    return splits.train


def _plan(
    table: Table, label: str, seed: int, wanted: Any, side: Any
) -> tuple[int, dict[int, tuple[int, int]], dict[int, int]]:
    """Of each class, how often its rows stay, and up to which key they stay once more."""
    classes = class_counts(table, label)
    if len(classes) < 2:
        raise DataError(
            f"{label}: every row of the training split is of class {next(iter(classes), None)!r}, "
            "so there is nothing to balance. Is this the column of classes?"
        )
    each, key = each_block(table, "count_classes"), random_key(seed)
    groups = strata(each, key, [label])
    target = int(wanted(classes.values()) + 0.5)
    sizes = {group: side(found.rows, target) for group, found in groups.items()}
    changed = sum(size != groups[group].rows for group, size in sizes.items())
    times = {group: size // groups[group].rows for group, size in sizes.items()}
    more = {group: size % groups[group].rows for group, size in sizes.items()}
    return changed, limits_of(each, key, groups, more, [label]), times


def _repeated(
    block: pa.Table,
    first: int,
    seed: int,
    label: str,
    limits: dict[int, tuple[int, int]],
    times: dict[int, int],
) -> tuple[pa.Table]:
    groups = np.array(sorted(times), np.uint64)
    whole = np.array([times[group] for group in groups.tolist()])
    at = np.searchsorted(groups, groups_of(block, [label]))
    once_more = drawn(block, first, random_key(seed), [label], limits)
    return (block.take(np.repeat(np.arange(len(block)), whole[at] + once_more)),)


def _class_counts(block: pa.Table, label: str) -> list[tuple[Any, int]]:
    counted = pc.value_counts(block[label])
    if len(counted) > 100_000:
        raise DataError(
            f"{label}: more than 100,000 values are no classes. Name the column of classes"
        )
    return [(entry["values"], entry["counts"]) for entry in counted.to_pylist()]


def _checked(ratio: float) -> float:
    if not 0 < ratio <= 1:
        raise DataError(f"ratio={ratio}: give the smallest class's share of the largest, in (0, 1]")
    return ratio
