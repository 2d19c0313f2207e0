"""Balancing of classes in the training split: oversampling, undersampling and weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from raysys.arguments import checked
from raysys.data._order_statistics import groups_of
from raysys.data._row_numbers import deal, each_block, need
from raysys.data.sampling._sample import drawn, limits_of, random_key, strata
from raysys.data.sampling._split import Splits
from raysys.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from raysys.data._table import Table


def oversample(
    splits: Splits, label: str, *, sampling_strategy: float = 1.0, seed: int = 0
) -> Splits:
    """Repeat rows of the smaller classes of the training split.

    The numbers of copies of a class's rows differ by at most one; rows with an extra copy are
    drawn. Copies of a row follow it.

    Args:
        splits: The splits, see `split_stratified`.
        label: Column of classes.
        sampling_strategy: Minimum number of rows of a class relative to the largest class, in
            (0, 1].
        seed: Seed of the draw.

    Raises:
        DataError: Given a Table instead of Splits, rows without a class, or one class only.
    """
    return _balance("oversample", splits, label, sampling_strategy, seed)


def undersample(
    splits: Splits, label: str, *, sampling_strategy: float = 1.0, seed: int = 0
) -> Splits:
    """Leave out rows of the larger classes of the training split.

    Each class keeps at most the rows of the smallest class divided by `sampling_strategy`, drawn
    at random; rows stay in their order. Arguments and errors as for `oversample`.
    """
    return _balance("undersample", splits, label, sampling_strategy, seed)


def class_weights(splits: Splits, label: str) -> dict[Any, float]:
    """Weights that balance the classes of the training split.

    rows / (classes * rows of the class), scikit-learn's "balanced"; after King & Zeng, "Logistic
    regression in rare events data" (2001). The mean over the rows is 1.

    Args:
        splits: The splits, see `split_stratified`.
        label: Column of classes.

    Returns:
        Weights by class, in the order of the classes.

    Raises:
        DataError: Given a Table instead of Splits, or rows without a class.
    """
    table = training_of(splits, "class_weights")
    counts = class_counts(table, label)
    return {value: len(table) / (len(counts) * rows) for value, rows in counts.items()}


@checked
def class_counts(table: Table, label: str) -> dict[Any, int]:
    """Number of rows of each class, in the order of the classes.

    Raises:
        DataError: A row has no class, or there are more than 100,000 classes.
    """
    need(table, [label])
    counts: dict[Any, int] = {}
    for part in table.gather(_class_counts, label, name="class_counts"):
        for value, rows in part:
            counts[value] = counts.get(value, 0) + rows
    if missing := counts.pop(None, 0):
        raise DataError(
            f"{label}: {missing} of the {len(table)} rows have no class. Drop them, or give "
            "them a class of their own"
        )
    return {value: counts[value] for value in sorted(counts)}


def training_of(splits: Any, action: str) -> Table:
    """The training split of Splits; anything else is refused."""
    if not isinstance(splits, Splits):
        raise DataError(
            f"{action} takes Splits and changes the training split only: the classes of an "
            "evaluation split must keep their natural sizes. Give the Splits of the table, or "
            'Splits({"train": table})'
        )
    return splits.train


def _balance(
    action: str, splits: Splits, label: str, sampling_strategy: float, seed: int
) -> Splits:
    """Splits with at least or at most a target number of rows of each class."""
    if not 0 < sampling_strategy <= 1:
        raise DataError(
            f"sampling_strategy={sampling_strategy}: give the ratio of the smallest class to the "
            "largest, in (0, 1]"
        )
    table = training_of(splits, action)
    classes = class_counts(table, label)
    if len(classes) < 2:
        raise DataError(
            f"{label}: every row of the training split is of class {next(iter(classes), None)!r}, "
            "so there is nothing to balance. Is this the column of classes?"
        )
    map_blocks, key = each_block(table, "count_classes"), random_key(seed)
    groups = strata(map_blocks, key, [label])
    bound: Any
    if action == "oversample":
        bound, target = max, max(classes.values()) * sampling_strategy
    else:
        bound, target = min, min(classes.values()) / sampling_strategy
    sizes = {group: bound(counted.rows, int(target + 0.5)) for group, counted in groups.items()}
    changed = sum(size != groups[group].rows for group, size in sizes.items())
    copies = {group: size // groups[group].rows for group, size in sizes.items()}
    extra = {group: size % groups[group].rows for group, size in sizes.items()}
    limits = limits_of(map_blocks, key, groups, extra, [label])
    balanced = deal(
        table, [splits.training], _repeated, seed, label, limits, copies,
        name=action, how={"label": label, "sampling_strategy": sampling_strategy, "seed": seed},
    )[0]  # fmt: skip
    return splits.with_train(
        balanced, f"{changed} classes of {label} {action}d to {sampling_strategy:g}"
    )


def _repeated(
    block: pa.Table,
    first: int,
    seed: int,
    label: str,
    limits: dict[int, tuple[int, int]],
    copies: dict[int, int],
) -> tuple[pa.Table]:
    groups = np.array(sorted(copies), np.uint64)
    counts = np.array([copies[group] for group in groups.tolist()])
    at = np.searchsorted(groups, groups_of(block, [label]))
    extra = drawn(block, first, random_key(seed), [label], limits)
    return (block.take(np.repeat(np.arange(len(block)), counts[at] + extra)),)


def _class_counts(block: pa.Table, label: str) -> list[tuple[Any, int]]:
    counted = pc.value_counts(block[label])
    if len(counted) > 100_000:
        raise DataError(
            f"{label}: more than 100,000 values, too many for classes. Name the column of classes"
        )
    return [(entry["values"], entry["counts"]) for entry in counted.to_pylist()]
