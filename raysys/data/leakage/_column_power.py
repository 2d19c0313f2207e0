"""Predictive power and distribution of single columns, from counts in bins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysys.data._blocks import results, value_task
from raysys.data._row_hash import hash_rows, uniforms
from raysys.data._row_numbers import numbered
from raysys.data.leakage._bins import LeakBins, as_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from raysys.data._table import Table

# Chance produces a score this far off once in millions of columns.
CHANCE_SIGMAS = 5.0


@dataclass(frozen=True)
class Label:
    """The label that single columns predict.

    Attributes:
        column: Name of the column.
        classes: Hashes of the classes, ascending; None for a numeric label.
        middle: Number near the mean, subtracted to keep sums of squares precise.
    """

    column: str
    classes: np.ndarray | None
    middle: float = 0.0


def joint_counts(table: Table, bins: Sequence[LeakBins], label: Label | None) -> list[np.ndarray]:
    """Joint counts of the bins of each column and the label, over all blocks.

    Returns:
        float64 `(2, bins, k)` for each column: random halves of the rows, bins, and the rows of
        each class, then those without a class. For a numeric label k = 4: rows with a label, its
        sum, the sum of its squares, and rows without a label; k = 1, the rows, if there is no
        label.
    """
    count = value_task("leaks_count")
    parts = [count.remote(count_block, block, n, list(bins), label) for block, n in numbered(table)]
    # Summed in a task, so that the driver receives the counts of one block only.
    return results([value_task("leaks_sum").remote(_sum, *parts)])[0]


def count_block(
    block: pa.Table, first: int, bins: Sequence[LeakBins], label: Label | None
) -> list[np.ndarray]:
    """Result of `joint_counts` for one block."""
    half = (uniforms(first, len(block), seed=1) < 0.5).astype(np.int64)
    codes, kinds, sums = np.zeros(len(block), np.int64), 1, None
    if label is not None and label.classes is not None:
        hashes, kinds = hash_rows(block, [label.column]), len(label.classes) + 1
        at = np.minimum(np.searchsorted(label.classes, hashes), kinds - 2)
        codes = np.where(label.classes[at] == hashes, at, kinds - 1)
    elif label is not None:
        sums = as_numbers(block[label.column]) - label.middle
    counted = []
    for column in bins:
        cells, size = column.of(block) + half * column.count, 2 * column.count
        if sums is None:
            counts = np.bincount(cells * kinds + codes, minlength=size * kinds)
            counted.append(counts.reshape(2, column.count, kinds).astype(float))
            continue
        present = ~np.isnan(sums)
        weights = [present, np.where(present, sums, 0), np.where(present, sums, 0) ** 2, ~present]
        columns = [np.bincount(cells, weight, minlength=size) for weight in weights]
        counted.append(np.stack(columns, axis=-1).reshape(2, column.count, 4))
    return counted


def auc(below: np.ndarray, above: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve of a score that was counted in bins.

    Args:
        below: Rows of the negative class in each bin, in the order of the score, `(bins,)`.
        above: Rows of the positive class, `(bins,)`.

    Returns:
        The area with rows in one bin as ties, and the largest error against the area of the
        scores, in both directions; (0.5, 0.5) without rows of a class.
    """
    pairs = below.sum() * above.sum()
    if pairs == 0:
        return 0.5, 0.5
    ties = 0.5 * (below * above).sum() / pairs
    upto = np.cumsum(below) - below
    return float((above * upto).sum() / pairs + ties), float(ties)


@dataclass(frozen=True)
class PredictivePower:
    """Quality of the prediction of the label by one column.

    Attributes:
        score: Area under the ROC curve, the largest of one class against the rest; explained
            variance for a numeric label.
        error: Standard error of the score; 0 for a numeric label.
        sigmas: Distance from the score of chance, in standard errors of chance.
    """

    score: float
    error: float
    sigmas: float


def predictive_power(counts: np.ndarray, numeric_label: bool, ordered: bool) -> PredictivePower:
    """Cross-validated power of a column.

    Each half of the rows is predicted from the bins of the second half, so a column of unique
    values has no power. For two classes, the order of numbers is used too.
    `counts` is the column's result of `joint_counts`; the bins of numbers are `ordered`.
    """
    halves = [_predict(counts[1 - half], counts[half], numeric_label) for half in (0, 1)]
    scores = np.mean([score for score, _ in halves], axis=0)
    sizes = np.sum([size for _, size in halves], axis=0)
    if ordered and not numeric_label and counts.shape[2] == 3:
        both = counts.sum(axis=0)
        area = auc(both[:, 0], both[:, 1])[0]
        scores = np.maximum(scores, max(area, 1 - area))
    return _best(scores, sizes, numeric_label)


def transferred_power(train: np.ndarray, test: np.ndarray, numeric_label: bool) -> PredictivePower:
    """Power of a column's bins in the training split for the label of another split."""
    return _best(*_predict(train.sum(axis=0), test.sum(axis=0), numeric_label), numeric_label)


def kolmogorov_smirnov(train: np.ndarray, test: np.ndarray) -> float:
    """The largest distance of two cumulative distributions at the edges of their bins.

    Both are rows in each bin of a numeric column, without missing values, `(bins,)`.
    """
    both = [np.cumsum(counts) / max(counts.sum(), 1) for counts in (train, test)]
    return float(np.abs(both[0] - both[1]).max(initial=0))


def stability_index(train: np.ndarray, test: np.ndarray) -> tuple[float, int]:
    """The population stability index of two distributions over categories.

    Siddiqi, "Credit risk scorecards" (2006). Categories with less than a hundredth of the rows
    of both are merged; half a row is added to each category, so that none is empty.

    Returns:
        The index and the number of categories.
    """
    small = train + test < 0.01 * (train.sum() + test.sum())
    shares = []
    for counts in (train, test):
        merged = np.append(counts[~small], counts[small].sum())[: None if small.any() else -1] + 0.5
        shares.append(merged / merged.sum())
    a, b = shares
    return float(((b - a) * np.log(b / a)).sum()), len(a)


def _predict(train: np.ndarray, test: np.ndarray, numeric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores of predicting `test` from `train`, both `(bins, k)`, and rows of rest and class."""
    if numeric:
        rows, total = train[:, 0], train[:, 1]
        mean = (total + total.sum() / max(rows.sum(), 1)) / (rows + 1)
        n, first, second = test[:, 0], test[:, 1], test[:, 2]
        variance = second.sum() - first.sum() ** 2 / max(n.sum(), 1)
        error = (second - 2 * mean * first + mean**2 * n).sum()
        explained = 1 - error / variance if variance > 0 else 0.0
        return np.array([max(explained, 0.0)]), np.array([[n.sum(), n.sum()]])
    classes = train.shape[1] - 1
    rows, test_rows = train[:, :classes].sum(axis=1), test[:, :classes].sum(axis=1)
    scores, sizes = np.full(classes, 0.5), np.zeros((classes, 2))
    for number in range(classes):
        above, test_above = train[:, number], test[:, number]
        share = (above + above.sum() / max(rows.sum(), 1)) / (rows + 1)
        values, at = np.unique(share, return_inverse=True)
        parts = test_rows - test_above, test_above
        scores[number] = auc(*(np.bincount(at, part, minlength=len(values)) for part in parts))[0]
        sizes[number] = [part.sum() for part in parts]
    return scores, sizes


def _best(scores: np.ndarray, sizes: np.ndarray, numeric: bool) -> PredictivePower:
    """The highest significant score; the most significant one if none is.

    Without power an area varies with variance (m + n + 1) / (12 m n) (Mann & Whitney, 1947), and
    a correlation with 1 / n. Otherwise the variance of an area is at most area * (1 - area) over
    the rows of the smaller class (Birnbaum & Klose, 1957); half a row on each side keeps it above
    0 for a perfect prediction.
    """
    if numeric:
        return PredictivePower(float(scores[0]), 0.0, float(np.sqrt(scores[0] * sizes[0, 0])))
    remaining, mine = np.maximum(sizes, 1).T
    sigmas = (scores - 0.5) / np.sqrt((remaining + mine + 1) / (12 * remaining * mine))
    sure = sigmas > CHANCE_SIGMAS
    best = int(np.argmax(np.where(sure, scores, 0) if sure.any() else sigmas))
    few = min(remaining[best], mine[best])
    near = (scores[best] * few + 0.5) / (few + 1)
    error = np.sqrt(near * (1 - near) / few)
    return PredictivePower(float(scores[best]), float(error), float(sigmas[best]))


def _sum(*parts: list[np.ndarray]) -> list[np.ndarray]:
    return [sum(column[1:], start=column[0]) for column in zip(*parts, strict=True)]
