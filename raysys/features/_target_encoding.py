"""Target means: of all rows for what is served, without a row's own target for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from raysys.features import _raw_inputs as _inputs
from raysys.features._hashing import hashes_of, joined_arrays
from raysys.features._raw_inputs import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data import Table
    from raysys.features._transform_base import State
    from raysys.features._transforms import TargetEncoded

# Categories that one block reports, so that the driver holds little.
CATEGORY_CAP = 100_000
ROW = "_raysys_row"


class Counts(NamedTuple):
    """Rows with a target and the sum of it, by category and fold.

    Attributes:
        values: The categories; two more rows of the arrays are that of missing ones, and that of
            all that are not reported.
        rows: float64 `(categories + 2, folds + 1)`; the last column is that of all folds.
        sums: As `rows`.
    """

    values: list[str]
    rows: np.ndarray
    sums: np.ndarray


def counts(block: pa.Table, transform: TargetEncoded, name: str, row_number: str | None) -> Counts:
    """Of one block.

    Args:
        block: Rows.
        transform: Its target, and how folds are made.
        name: The column of categories.
        row_number: The column that numbers the rows, for folds; None makes none.
    """
    values, codes = _inputs.categories(name, block[name])
    target = _inputs.numbers(transform.target, block[transform.target])
    there = np.flatnonzero(np.isfinite(target))
    known = np.where(codes < 0, len(values), codes)[there]
    folds = 0 if row_number is None else transform.folds
    rows, sums = np.zeros((2, len(values) + 2, folds + 1))
    rows[:, -1] = np.bincount(known, minlength=len(rows))
    sums[:, -1] = np.bincount(known, weights=target[there], minlength=len(rows))
    if row_number is not None:
        cell = known * folds + folds_of(block, transform, row_number)[there]
        size = len(rows) * folds
        rows[:, :-1] = np.bincount(cell, minlength=size).reshape(-1, folds)
        sums[:, :-1] = np.bincount(cell, target[there], minlength=size).reshape(-1, folds)
    if len(values) <= CATEGORY_CAP:
        return Counts(values, rows, sums)
    order = np.argsort(-rows[:-2, -1], kind="stable")
    kept, dropped = order[:CATEGORY_CAP], order[CATEGORY_CAP:]
    for array in (rows, sums):
        array[-1] = array[dropped].sum(axis=0)
    both = [*kept.tolist(), -2, -1]
    return Counts([values[place] for place in kept], rows[both], sums[both])


def folds_of(block: pa.Table, transform: TargetEncoded, row_number: str) -> np.ndarray:
    """The fold of each row, int64 `(n,)`."""
    if transform.group is None:
        hashes = block[row_number].to_numpy().astype(np.uint64)
    else:
        values, codes = _inputs.categories(transform.group, block[transform.group])
        hashes = hashes_of(values)[codes]
    mixed = joined_arrays(hashes, np.full(len(hashes), transform.seed, np.uint64))
    return (mixed % np.uint64(transform.folds)).astype(np.int64)


def merged(parts: Sequence[Counts]) -> Counts:
    """The counts of all blocks, added in their order."""
    index: dict[str, int] = {}
    places = [[index.setdefault(value, len(index)) for value in part.values] for part in parts]
    rows, sums = np.zeros((2, len(index) + 2, parts[0].rows.shape[1]))
    for part, place in zip(parts, places, strict=True):
        at = np.array([*place, -2, -1], np.int64)
        np.add.at(rows, at, part.rows)
        np.add.at(sums, at, part.sums)
    return Counts(list(index), rows, sums)


def smoothed(rows: Any, sums: Any, prior: Any, smoothing: float) -> np.ndarray:
    """The mean of a target, drawn towards the prior as if `smoothing` rows had it."""
    weight = np.asarray(rows + smoothing, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, (sums + smoothing * prior) / weight, prior)


def _prior(rows: Any, sums: Any) -> np.ndarray:
    """The mean of the target; 0 where no row counts."""
    return np.divide(sums, rows, out=np.zeros(np.shape(sums)), where=np.asarray(rows) > 0)


def means(found: Counts, transform: TargetEncoded) -> State:
    """What is served: the means over all rows."""
    rows, sums = found.rows[:, -1], found.sums[:, -1]
    prior = float(_prior(rows.sum(keepdims=True), sums.sum(keepdims=True))[0])
    encoded = smoothed(rows, sums, prior, transform.smoothing)
    known = [place for place in range(len(found.values)) if rows[place]]
    known.sort(key=lambda place: (-rows[place], found.values[place]))
    kept = sorted(known[: transform.most], key=found.values.__getitem__)
    return {
        "categories": [found.values[place] for place in kept],
        "means": encoded[kept],
        "missing": float(encoded[-2]),
        "prior": prior,
    }


# --- for training ---


class OutOfFold(NamedTuple):
    """Means of the rows of the other folds.

    Attributes:
        places: Of each category, its row in `means`.
        means: float64 `(categories + 2, folds)`; the last row is for categories that have none,
            the one before for missing ones.
    """

    places: dict[str, int]
    means: np.ndarray


def out_of_fold(found: Counts, transform: TargetEncoded) -> OutOfFold:
    """Of the counts by fold."""
    rows = found.rows[:, -1:] - found.rows[:, :-1]
    sums = found.sums[:, -1:] - found.sums[:, :-1]
    prior = _prior(rows.sum(axis=0), sums.sum(axis=0))
    encoded = smoothed(rows, sums, prior, transform.smoothing)
    places = {value: place for place, value in enumerate(found.values)}
    encoded[-1] = prior
    return OutOfFold(places, encoded)


def encode_out_of_fold(
    block: pa.Table, transform: TargetEncoded, name: str, learned: OutOfFold
) -> np.ndarray:
    """A block's training values, float64 `(n,)`."""
    values, codes = _inputs.categories(name, block[name])
    last = len(learned.means) - 1
    places = np.array([*(learned.places.get(v, last) for v in values), last - 1], np.int64)
    return learned.means[places[codes], folds_of(block, transform, ROW)]


def by_time(block: pa.Table, transform: TargetEncoded, name: str) -> pa.Table:
    """Rows with a target and the sum of it, by category and time."""
    assert transform.time is not None
    values, codes = _inputs.categories(name, block[name])
    times = _inputs.times(transform.time, block[transform.time])
    target = _inputs.numbers(transform.target, block[transform.target])
    there = np.isfinite(target) & (times != NO_TIME)
    category = pa.array(values, pa.large_string()).take(
        pa.array(codes[there], mask=codes[there] < 0)
    )
    rows = pa.table({"category": category, "time": times[there], "target": target[there]})
    made = rows.group_by(["category", "time"], use_threads=False).aggregate(
        [("target", "count"), ("target", "sum")]
    )
    return made.rename_columns(["category", "time", "rows", "sums"])


def encode_by_time(
    block: pa.Table, transform: TargetEncoded, name: str, learned: Table
) -> np.ndarray:
    """A block's training values by rows of strictly earlier times, float64 `(n,)`.

    Args:
        block: Rows.
        transform: Its target and its time.
        name: The column of categories.
        learned: What `by_time` gives, of all blocks. This task holds it whole: one row for each
            category and time that occur together.
    """
    assert transform.time is not None
    counted = learned.arrow()
    known, of = _inputs.categories(name, counted["category"])
    of = np.where(of < 0, len(known), of)
    moments, moment = np.unique(counted["time"].to_numpy(), return_inverse=True)
    rows = counted["rows"].to_numpy().astype(np.float64)
    sums = counted["sums"].to_numpy()

    values, codes = _inputs.categories(name, block[name])
    index = {value: place for place, value in enumerate(known)}
    place = np.array([*(index.get(v, len(known) + 1) for v in values), len(known)], np.int64)[codes]
    times = _inputs.times(transform.time, block[transform.time])
    delay = round(transform.delay_s * 1e6)
    # A missing time is before all others: nothing is known to be earlier.
    rank = np.searchsorted(moments, np.maximum(times, NO_TIME + delay) - delay, side="left")

    # All pairs of (category, time) in order: what is earlier within a category is a slice.
    width = len(moments) + 1
    key = of * width + moment
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.searchsorted(key, place * width)
    until = np.searchsorted(key, place * width + rank)
    row_runs, sum_runs = (_before(weights[order]) for weights in (rows, sums))
    all_rows, all_sums = (
        _before(np.bincount(moment, weights, len(moments)))[rank] for weights in (rows, sums)
    )
    prior = _prior(all_rows, all_sums)
    in_category = row_runs[until] - row_runs[first], sum_runs[until] - sum_runs[first]
    return smoothed(*in_category, prior, transform.smoothing)


def _before(weights: np.ndarray) -> np.ndarray:
    """Running sums, each without its own."""
    return np.concatenate([[0.0], np.cumsum(weights)])
