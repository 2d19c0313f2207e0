"""How well each column alone tells the label, and how its values are spread: counts in bins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysys.data._blocks import results, value_task
from raysys.data._row_hash import hash_rows, uniforms
from raysys.data._row_numbers import numbered
from raysys.data.leakage._bins import Bins, as_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from raysys.data._table import Table

# A score by chance is that far off once in millions of columns.
CHANCE_SIGMAS = 5.0


@dataclass(frozen=True)
class Label:
    """What single columns are asked to tell.

    Attributes:
        column: Name of the column.
        classes: Hashes of its classes in the order of the hashes; None if it is a number.
        middle: A number near its mean, which keeps sums of squares exact.
    """

    column: str
    classes: np.ndarray | None
    middle: float = 0.0


def joint_counts(table: Table, bins: Sequence[Bins], label: Label | None) -> list[np.ndarray]:
    """How each column goes with the label, over all blocks.

    Returns:
        For each column float64 `(2, bins, k)`: halves of the rows that chance makes, bins, and
        rows of each class and without one; or for a number the rows with one, its sum, the sum
        of its squares, and rows without one; only the rows (k = 1) without a label.
    """
    count = value_task("leaks_count")
    parts = [count.remote(count_block, block, n, list(bins), label) for block, n in numbered(table)]
    # Summed where they are, so that the driver gets one block's worth of numbers.
    return results([value_task("leaks_sum").remote(_sum, *parts)])[0]


def count_block(
    block: pa.Table, first: int, bins: Sequence[Bins], label: Label | None
) -> list[np.ndarray]:
    """What `joint_counts` returns, of one block."""
    half = (uniforms(first, len(block), seed=1) < 0.5).astype(np.int64)
    codes, kinds, sums = np.zeros(len(block), np.int64), 1, None
    if label is not None and label.classes is not None:
        hashes, kinds = hash_rows(block, [label.column]), len(label.classes) + 1
        at = np.minimum(np.searchsorted(label.classes, hashes), kinds - 2)
        codes = np.where(label.classes[at] == hashes, at, kinds - 1)
    elif label is not None:
        sums = as_numbers(block[label.column]) - label.middle
    counted = []
    for one in bins:
        cells = one.of(block) + half * one.count
        if sums is None:
            counts = np.bincount(cells * kinds + codes, minlength=2 * one.count * kinds)
            counted.append(counts.reshape(2, one.count, kinds).astype(float))
            continue
        there = ~np.isnan(sums)
        weights = [there, np.where(there, sums, 0), np.where(there, sums, 0) ** 2, ~there]
        columns = [np.bincount(cells, weight, minlength=2 * one.count) for weight in weights]
        counted.append(np.stack(columns, axis=-1).reshape(2, one.count, 4))
    return counted


def auc(below: np.ndarray, above: np.ndarray) -> tuple[float, float]:
    """The area under the ROC curve of a score that was counted in bins.

    Args:
        below: Rows of the negative class in each bin, in the order of the score, `(bins,)`.
        above: Those of the positive class.

    Returns:
        The area where rows in one bin count as ties, and how far the area by the scores
        themselves can be from it, in both directions; (0.5, 0.5) without rows of a class.
    """
    pairs = below.sum() * above.sum()
    if pairs == 0:
        return 0.5, 0.5
    ties = 0.5 * (below * above).sum() / pairs
    upto = np.cumsum(below) - below
    return float((above * upto).sum() / pairs + ties), float(ties)


@dataclass(frozen=True)
class Power:
    """How well a column tells the label.

    Attributes:
        score: Area under the ROC curve, the largest over the classes against the rest; or for a
            number the share of its variance that is explained.
        error: The score's standard error; 0 for a number.
        sigmas: How many standard errors of chance it is above what chance gives.
    """

    score: float
    error: float
    sigmas: float


def power(counts: np.ndarray, numeric_label: bool, ordered: bool) -> Power:
    """What a column tells of the label on rows that its table of bins was not made of.

    Each half of the rows is told by what the bins of the other half hold, so a column that is
    different in each row tells nothing. For two classes, numbers are taken by their order too.

    Args:
        counts: What `joint_counts` returns for the column.
        numeric_label: Whether the label is a number.
        ordered: Whether bins have an order: those of numbers.
    """
    halves = [_told(counts[1 - half], counts[half], numeric_label) for half in (0, 1)]
    scores = np.mean([score for score, _ in halves], axis=0)
    sizes = np.sum([size for _, size in halves], axis=0)
    if ordered and not numeric_label and counts.shape[2] == 3:
        both = counts.sum(axis=0)
        area = auc(both[:, 0], both[:, 1])[0]
        scores = np.maximum(scores, max(area, 1 - area))
    return _best(scores, sizes, numeric_label)


def power_held(train: np.ndarray, other: np.ndarray, numeric_label: bool) -> Power:
    """What a column's bins in the training split tell of another split's label."""
    return _best(*_told(train.sum(axis=0), other.sum(axis=0), numeric_label), numeric_label)


def kolmogorov_smirnov(train: np.ndarray, other: np.ndarray) -> float:
    """The largest distance of two cumulative distributions at the edges of their bins.

    Args:
        train: Rows in each bin of a number, missing ones left out, `(bins,)`.
        other: Those of the other split.
    """
    both = [np.cumsum(counts) / max(counts.sum(), 1) for counts in (train, other)]
    return float(np.abs(both[0] - both[1]).max(initial=0))


def stability_index(train: np.ndarray, other: np.ndarray) -> tuple[float, int]:
    """The population stability index of two distributions over categories.

    Siddiqi, "Credit risk scorecards" (2006). Categories with less than a hundredth of the rows
    of both are taken together; each gets half a row, so that none is empty.

    Returns:
        The index and the number of categories.
    """
    small = train + other < 0.01 * (train.sum() + other.sum())
    shares = []
    for counts in (train, other):
        merged = np.append(counts[~small], counts[small].sum())[: None if small.any() else -1] + 0.5
        shares.append(merged / merged.sum())
    a, b = shares
    return float(((b - a) * np.log(b / a)).sum()), len(a)


def _told(known: np.ndarray, asked: np.ndarray, numeric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of `asked` told by `known`, both `(bins, k)`: scores, and rows of the rest and the class."""
    if numeric:
        rows, total = known[:, 0], known[:, 1]
        told = (total + total.sum() / max(rows.sum(), 1)) / (rows + 1)
        n, first, second = asked[:, 0], asked[:, 1], asked[:, 2]
        spread = second.sum() - first.sum() ** 2 / max(n.sum(), 1)
        wrong = (second - 2 * told * first + told**2 * n).sum()
        explained = 1 - wrong / spread if spread > 0 else 0.0
        return np.array([max(explained, 0.0)]), np.array([[n.sum(), n.sum()]])
    classes = known.shape[1] - 1
    rows = known[:, :classes].sum(axis=1)
    scores, sizes = np.full(classes, 0.5), np.zeros((classes, 2))
    for one in range(classes):
        above, asked_above = known[:, one], asked[:, one]
        share = (above + above.sum() / max(rows.sum(), 1)) / (rows + 1)
        values, at = np.unique(share, return_inverse=True)
        below = asked[:, :classes].sum(axis=1) - asked_above
        counts = [np.bincount(at, part, minlength=len(values)) for part in (below, asked_above)]
        scores[one] = auc(*counts)[0]
        sizes[one] = [part.sum() for part in counts]
    return scores, sizes


def _best(scores: np.ndarray, sizes: np.ndarray, numeric: bool) -> Power:
    """The highest score that is no chance; the least likely one if all may be.

    Without power an area varies with variance (m + n + 1) / (12 m n) (Mann & Whitney, 1947), and
    a correlation with 1 / n. Otherwise the variance of an area is at most area * (1 - area) over
    the rows of the smaller class (Birnbaum & Klose, 1957); half a row on each side keeps it from
    0 where all are told.
    """
    if numeric:
        return Power(float(scores[0]), 0.0, float(np.sqrt(scores[0] * sizes[0, 0])))
    rest, mine = np.maximum(sizes, 1).T
    sigmas = (scores - 0.5) / np.sqrt((rest + mine + 1) / (12 * rest * mine))
    sure = sigmas > CHANCE_SIGMAS
    best = int(np.argmax(np.where(sure, scores, 0) if sure.any() else sigmas))
    few = min(rest[best], mine[best])
    near = (scores[best] * few + 0.5) / (few + 1)
    error = np.sqrt(near * (1 - near) / few)
    return Power(float(scores[best]), float(error), float(sigmas[best]))


def _sum(*parts: list[np.ndarray]) -> list[np.ndarray]:
    return [sum(column[1:], start=column[0]) for column in zip(*parts, strict=True)]
