"""Target means: over all rows for serving, without a row's own target for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from raysys.features import _raw_inputs as _inputs
from raysys.features._hashing import hashes_of, pair_hashes
from raysys.features._raw_inputs import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data import Table
    from raysys.features._transforms import State, TargetEncoded

# Limit of the categories that one block reports, which bounds the driver's memory.
CATEGORY_CAP = 100_000
ROW = "_raysys_row"


class TargetCounts(NamedTuple):
    """Rows with a target and the sum of the targets, by category and fold.

    float64 `(categories + 2, folds + 1)`: the last rows are of missing, then unreported
    categories, the last column is the total.
    """

    values: list[str]  # categories
    rows: np.ndarray
    sums: np.ndarray


def target_counts(
    block: pa.Table, transform: TargetEncoded, name: str, row_number: str | None
) -> TargetCounts:
    """Counts of a column's categories in one block.

    `row_number` is the column that numbers the rows, for folds; None makes no folds.
    """
    values, codes = _inputs.categories(name, block[name])
    target = _inputs.numbers(transform.target, block[transform.target])
    present = np.flatnonzero(np.isfinite(target))
    category = np.where(codes < 0, len(values), codes)[present]
    folds = 0 if row_number is None else transform.cv
    rows, sums = np.zeros((2, len(values) + 2, folds + 1))
    rows[:, -1] = np.bincount(category, minlength=len(rows))
    sums[:, -1] = np.bincount(category, weights=target[present], minlength=len(rows))
    if row_number is not None:
        cell = category * folds + folds_of(block, transform, row_number)[present]
        size = len(rows) * folds
        rows[:, :-1] = np.bincount(cell, minlength=size).reshape(-1, folds)
        sums[:, :-1] = np.bincount(cell, target[present], minlength=size).reshape(-1, folds)
    if len(values) <= CATEGORY_CAP:
        return TargetCounts(values, rows, sums)
    order = np.argsort(-rows[:-2, -1], kind="stable")
    frequent, dropped = order[:CATEGORY_CAP], order[CATEGORY_CAP:]
    for array in (rows, sums):
        array[-1] = array[dropped].sum(axis=0)
    places = [*frequent.tolist(), -2, -1]
    return TargetCounts([values[place] for place in frequent], rows[places], sums[places])


def folds_of(block: pa.Table, transform: TargetEncoded, row_number: str) -> np.ndarray:
    """The fold of each row, int64 `(n,)`."""
    if transform.group is None:
        hashes = block[row_number].to_numpy().astype(np.uint64)
    else:
        values, codes = _inputs.categories(transform.group, block[transform.group])
        hashes = hashes_of(values)[codes]
    mixed = pair_hashes(hashes, np.full(len(hashes), transform.seed, np.uint64))
    return (mixed % np.uint64(transform.cv)).astype(np.int64)


def merge_counts(parts: Sequence[TargetCounts]) -> TargetCounts:
    """Counts of all blocks, added in their order."""
    index: dict[str, int] = {}
    places = [[index.setdefault(value, len(index)) for value in part.values] for part in parts]
    rows, sums = np.zeros((2, len(index) + 2, parts[0].rows.shape[1]))
    for part, place in zip(parts, places, strict=True):
        at = np.array([*place, -2, -1], np.int64)
        np.add.at(rows, at, part.rows)
        np.add.at(sums, at, part.sums)
    return TargetCounts(list(index), rows, sums)


def smoothed(rows: Any, sums: Any, prior: Any, smooth: float) -> np.ndarray:
    """Mean of a target, shrunk towards the prior as if `smooth` rows had it."""
    weight = np.asarray(rows + smooth, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, (sums + smooth * prior) / weight, prior)


def _prior(rows: Any, sums: Any) -> np.ndarray:
    """Mean of the target; 0 without rows."""
    return np.divide(sums, rows, out=np.zeros(np.shape(sums)), where=np.asarray(rows) > 0)


def means(counts: TargetCounts, transform: TargetEncoded) -> State:
    """State for serving: the means over all rows."""
    rows, sums = counts.rows[:, -1], counts.sums[:, -1]
    prior = float(_prior(rows.sum(keepdims=True), sums.sum(keepdims=True))[0])
    encoded = smoothed(rows, sums, prior, transform.smooth)
    places = [place for place in range(len(counts.values)) if rows[place]]
    places.sort(key=lambda place: (-rows[place], counts.values[place]))
    frequent = sorted(places[: transform.max_categories], key=counts.values.__getitem__)
    return {
        "categories": [counts.values[place] for place in frequent],
        "means": encoded[frequent],
        "missing": float(encoded[-2]),
        "prior": prior,
    }


# --- for training ---


class OutOfFold(NamedTuple):
    """Means over the rows outside each fold.

    float64 `(categories + 2, folds)`: the last row is for categories without a row of their own,
    the one before for missing ones.
    """

    places: dict[str, int]  # row of each category in `means`
    means: np.ndarray


def out_of_fold(counts: TargetCounts, transform: TargetEncoded) -> OutOfFold:
    """Out-of-fold means from the counts by fold."""
    rows = counts.rows[:, -1:] - counts.rows[:, :-1]
    sums = counts.sums[:, -1:] - counts.sums[:, :-1]
    prior = _prior(rows.sum(axis=0), sums.sum(axis=0))
    encoded = smoothed(rows, sums, prior, transform.smooth)
    places = {value: place for place, value in enumerate(counts.values)}
    encoded[-1] = prior
    return OutOfFold(places, encoded)


def encode_out_of_fold(
    block: pa.Table, transform: TargetEncoded, name: str, learned: OutOfFold
) -> np.ndarray:
    """Training values of a block, float64 `(n,)`."""
    values, codes = _inputs.categories(name, block[name])
    last = len(learned.means) - 1
    places = np.array([*(learned.places.get(v, last) for v in values), last - 1], np.int64)
    return learned.means[places[codes], folds_of(block, transform, ROW)]


def by_time(block: pa.Table, transform: TargetEncoded, name: str) -> pa.Table:
    """Rows with a target and the sum of the targets, by category and time."""
    assert transform.time is not None
    values, codes = _inputs.categories(name, block[name])
    times = _inputs.times(transform.time, block[transform.time])
    target = _inputs.numbers(transform.target, block[transform.target])
    present = np.isfinite(target) & (times != NO_TIME)
    places = pa.array(codes[present], mask=codes[present] < 0)
    category = pa.array(values, pa.large_string()).take(places)
    rows = pa.table({"category": category, "time": times[present], "target": target[present]})
    counted = rows.group_by(["category", "time"], use_threads=False).aggregate(
        [("target", "count"), ("target", "sum")]
    )
    return counted.rename_columns(["category", "time", "rows", "sums"])


def encode_by_time(
    block: pa.Table, transform: TargetEncoded, name: str, learned: Table
) -> np.ndarray:
    """Training values of a block from rows of strictly earlier times, float64 `(n,)`.

    `learned` has the results of `by_time` for all blocks. The task loads all of it: one row for
    each pair of category and time.
    """
    assert transform.time is not None
    counted = learned.to_arrow()
    categories, category = _inputs.categories(name, counted["category"])
    category = np.where(category < 0, len(categories), category)
    moments, moment = np.unique(counted["time"].to_numpy(), return_inverse=True)
    rows = counted["rows"].to_numpy().astype(np.float64)
    sums = counted["sums"].to_numpy()

    values, codes = _inputs.categories(name, block[name])
    index = {value: place for place, value in enumerate(categories)}
    last = len(categories)
    place = np.array([*(index.get(v, last + 1) for v in values), last], np.int64)[codes]
    times = _inputs.times(transform.time, block[transform.time])
    delay = round(transform.delay_s * 1e6)
    # A missing time precedes all times: no row is earlier.
    rank = np.searchsorted(moments, np.maximum(times, NO_TIME + delay) - delay, side="left")

    # All pairs of (category, time) in order: the earlier rows of a category are a slice.
    width = len(moments) + 1
    key = category * width + moment
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.searchsorted(key, place * width)
    until = np.searchsorted(key, place * width + rank)
    runs = [_before(weights[order]) for weights in (rows, sums)]
    totals = [_before(np.bincount(moment, weights, len(moments)))[rank] for weights in (rows, sums)]
    rows, sums = (run[until] - run[first] for run in runs)
    return smoothed(rows, sums, _prior(*totals), transform.smooth)


def _before(weights: np.ndarray) -> np.ndarray:
    """Exclusive running sums."""
    return np.concatenate([[0.0], np.cumsum(weights)])
