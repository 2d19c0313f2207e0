"""Samples: each row draws a number of its own, and the rows with the smallest are the sample.

A row's number depends on its place in the table and the seed, so a sample is the same however
the rows lie in blocks, and the same again when they come as a stream.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.data._order_statistics import Group, count_groups, groups_of, locate
from raysys.data._row_hash import mix, uniforms
from raysys.data._row_numbers import deal, each_block, need
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data._order_statistics import Key
    from raysys.data._row_numbers import Each
    from raysys.data._table import Table

# The bits of the key of a row that is never drawn, and a key and row beyond all others.
NEVER = int(np.array(np.inf).view(np.uint64))
_ALL = (2**64 - 1, np.iinfo(np.int64).max)
_NONE = (0, -1)
# Groups become counts in the driver.
_MOST_GROUPS = 100_000


def sample(
    table: Table,
    rows: int | None = None,
    fraction: float | None = None,
    *,
    by: Sequence[str] = (),
    allocation: Literal["proportional", "equal"] = "proportional",
    weights: str | None = None,
    seed: int = 0,
) -> Table:
    """Draw rows without replacement; they stay in their order.

    Simple as it stands; stratified with `by`; weighted with `weights`, by the keys of Efraimidis
    & Spirakis, "Weighted random sampling with a reservoir" (2006): as if one row after the other
    were drawn with a chance in proportion to its weight among the rows that are left.

    Args:
        table: The rows.
        rows: How many to draw; or
        fraction: their share of the table, in (0, 1].
        by: Columns whose values make the strata.
        allocation: What the strata get: rows in proportion to theirs, shares rounded by the
            largest remainders; or equally many, where they have as many.
        weights: A column of numbers from 0 on; a row of weight 0 is never drawn.
        seed: Another seed draws another sample.

    Raises:
        DataError: There are fewer rows, a column is missing, too many strata, or weights that
            are none.
    """
    need(table, by)
    each = each_block(table, "sample")
    size = _size(len(table), rows, fraction)
    limits = choose(each, size, by=by, allocation=allocation, weights=weights, seed=seed)
    key = random_key(seed, weights)
    how = {"rows": size, "by": by, "allocation": allocation, "weights": weights, "seed": seed}
    return deal(table, ["sample"], _kept, key, tuple(by), limits, name="sample", how=how)[0]


def importance_sample(
    table: Table, rows: int, *, weights: str, column: str = "weight", seed: int = 0
) -> Table:
    """A weighted sample with the weights that undo the choice.

    `column` is one over the chance that a row was drawn, given the others: a sum over the sample
    of a value times `column` is an unbiased estimate of the sum of the value over all rows with a
    positive weight. (Horvitz-Thompson estimates with conditioned ranks: Cohen & Kaplan,
    "Summarizing data using bottom-k sketches", PODC 2007.) It varies least for values in
    proportion to the weights.

    Args:
        table: The rows.
        rows: How many to draw.
        weights: A column of numbers from 0 on, large where a row matters.
        column: Name of the float64 column that is added.
        seed: Another seed draws another sample.

    Raises:
        DataError: Fewer rows have a positive weight; or there is such a column already.
    """
    if column in table.schema.names:
        raise DataError(f"the table has a column {column!r} already: give another name as column=")
    each, key = each_block(table, "importance_sample"), random_key(seed, weights)
    size = _size(len(table), rows, None)
    limits, beyond = importance_limits(each, size, len(table), weights, seed)
    how = {"rows": size, "weights": weights, "column": column, "seed": seed}
    return deal(
        table, ["sample"], _kept_with_chance, key, limits, weights, beyond, column,
        name="importance_sample", how=how,
    )[0]  # fmt: skip


def random_key(seed: int, weights: str | None = None) -> Key:
    """Keys that draw: uniform uint64 of which no two are equal, or exponential of these rates."""
    if weights is None:
        return functools.partial(_uniform_keys, seed=seed)
    return functools.partial(_weighted_keys, seed=seed, weights=weights)


def choose(
    each: Each,
    size: int,
    *,
    by: Sequence[str] = (),
    allocation: str = "proportional",
    weights: str | None = None,
    seed: int = 0,
) -> dict[int, tuple[int, int]]:
    """The largest key, and its row, that is drawn of each group."""
    key = random_key(seed, weights)
    groups = strata(each, key, by)
    shares = allot({group: found.rows for group, found in groups.items()}, size, allocation)
    return limits_of(each, key, groups, shares, by)


def importance_limits(
    each: Each, size: int, rows: int, weights: str, seed: int
) -> tuple[dict[int, tuple[int, int]], float]:
    """What `choose` gives, and the smallest key that was not drawn, infinite if there is none."""
    key = random_key(seed, weights)
    groups = count_groups(each, key)
    limits = limits_of(each, key, groups, {0: size})
    if size == rows:
        return limits, np.inf
    place = locate(each, key, [(0, size + 1)], groups)[0]
    return limits, float(np.array(place.key, np.uint64).view(np.float64))


def strata(each: Each, key: Key, by: Sequence[str]) -> dict[int, Group]:
    """The groups of rows equal in `by`, if they are few enough to be strata."""
    groups = count_groups(each, key, by)
    if len(groups) > _MOST_GROUPS:
        raise DataError(
            f"the columns {list(by)} have {len(groups)} combinations of values, more than "
            f"{_MOST_GROUPS}: name columns of fewer values, or bin them first"
        )
    return groups


def limits_of(
    each: Each,
    key: Key,
    groups: dict[int, Group],
    sizes: dict[int, int],
    by: Sequence[str] = (),
) -> dict[int, tuple[int, int]]:
    """The largest key, and its row, among the `sizes` smallest of each group."""
    limits = {group: _ALL if sizes[group] else _NONE for group in groups}
    wanted = [(group, sizes[group]) for group in groups if 0 < sizes[group] < groups[group].rows]
    for (group, size), place in zip(wanted, locate(each, key, wanted, groups, by), strict=True):
        limits[group] = place.key, place.row
        _refuse_never(place.key, place.below, size)
    for group, found in groups.items():
        if sizes[group] == found.rows and found.high == NEVER:
            _refuse_never(NEVER, found.rows - 1, found.rows)
    return limits


def allot(sizes: dict[int, int], total: int, allocation: str) -> dict[int, int]:
    """Deal `total` rows out to groups of these sizes, none more than it has."""
    if allocation == "proportional":
        rows = sum(sizes.values())
        given = {group: size * total // rows for group, size in sizes.items()}
        by_remainder = sorted(sizes, key=lambda group: (-(sizes[group] * total % rows), group))
        for group in by_remainder[: total - sum(given.values())]:
            given[group] += 1
        return given
    if allocation != "equal":
        raise DataError(f"allocation={allocation!r}: give 'proportional' or 'equal'")
    given, left = {}, total
    for done, group in enumerate(sorted(sizes, key=lambda group: (sizes[group], group))):
        given[group] = min(sizes[group], left // (len(sizes) - done))
        left -= given[group]
    return given


def drawn(
    block: pa.Table, first: int, key: Key, by: Sequence[str], limits: dict[int, tuple[int, int]]
) -> np.ndarray:
    """Whether a row is within its group's limit, bool `(rows,)`."""
    groups = np.array(sorted(limits), np.uint64)
    keys_upto = np.array([limits[group][0] for group in groups.tolist()], np.uint64)
    rows_upto = np.array([limits[group][1] for group in groups.tolist()], np.int64)
    at = np.searchsorted(groups, groups_of(block, by)) if by else 0
    keys, rows = key(block, first), np.arange(first, first + len(block))
    return (keys < keys_upto[at]) | ((keys == keys_upto[at]) & (rows <= rows_upto[at]))


def _size(rows: int, wanted: int | None, fraction: float | None) -> int:
    if (wanted is None) == (fraction is None):
        raise DataError(f"rows={wanted}, fraction={fraction}: give one of them")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise DataError(f"fraction={fraction}: give a share of the rows, over 0 and up to 1")
        wanted = int(fraction * rows + 0.5)
    assert wanted is not None
    if not 0 < wanted <= rows:
        raise DataError(
            f"{wanted} rows cannot be drawn from {rows} without replacement: ask for 1 to {rows}"
        )
    return wanted


def _refuse_never(key: int, positive: int, size: int) -> None:
    if key == NEVER:
        raise DataError(
            f"{size} rows were asked for, and only {positive} have a positive weight: draw fewer, "
            "or give the others a small weight"
        )


def _uniform_keys(block: pa.Table, first: int, seed: int) -> np.ndarray:
    return mix(mix(np.arange(first, first + len(block), dtype=np.uint64), seed))


def _weighted_keys(block: pa.Table, first: int, seed: int, weights: str) -> np.ndarray:
    """Bits of -log(u) / w, which sort as these floats and as -u ** (1 / w), of more precision."""
    given = weights_of(block, weights)
    with np.errstate(divide="ignore", over="ignore"):
        keys = -np.log(uniforms(first, len(block), seed)) / given
    return keys.view(np.uint64)


def weights_of(block: pa.Table, column: str) -> np.ndarray:
    """A column of weights, float64 `(rows,)`, checked."""
    if column not in block.column_names:
        raise DataError(f"there is no column {column!r} of weights: there is {block.column_names}")
    weights = pc.fill_null(pc.cast(block[column], pa.float64()), np.nan).to_numpy()
    if bad := int((~(np.isfinite(weights) & (weights >= 0))).sum()):
        raise DataError(
            f"{column}: {bad} rows of a block have no weight: missing, negative or not finite. "
            "Weights are numbers from 0 on; a row of weight 0 is never drawn"
        )
    return weights


def _kept(
    block: pa.Table, first: int, key: Key, by: Sequence[str], limits: dict[int, tuple[int, int]]
) -> tuple[pa.Table]:
    return (block.filter(pa.array(drawn(block, first, key, by, limits))),)


def _kept_with_chance(
    block: pa.Table,
    first: int,
    key: Key,
    limits: dict[int, tuple[int, int]],
    weights: str,
    beyond: float,
    column: str,
) -> tuple[pa.Table]:
    kept = _kept(block, first, key, (), limits)[0]
    chance = -np.expm1(-weights_of(kept, weights) * beyond)
    return (kept.append_column(column, pa.array(1.0 / chance)),)
