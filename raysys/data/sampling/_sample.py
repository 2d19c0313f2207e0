"""Samples of tables: every row draws a number, and the rows with the smallest are the sample.

A row's number depends on its place in the table and the seed only, so a sample does not depend on
the blocks, and equals the sample of the same rows as a stream.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.arguments import checked
from raysys.data._order_statistics import Group, count_groups, groups_of, locate
from raysys.data._row_hash import mix, uniforms
from raysys.data._row_numbers import deal, each_block, need
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from raysys.data._order_statistics import Key
    from raysys.data._row_numbers import Each
    from raysys.data._table import Table

# Bits of the key of a row that is never drawn; key and row number above all, and below all.
NEVER = int(np.array(np.inf).view(np.uint64))
_ALL = (2**64 - 1, np.iinfo(np.int64).max)
_NONE = (0, -1)
# Limit of the group counts in the driver.
_MAX_GROUPS = 100_000


@checked
def sample(
    table: Table,
    rows: int | None = None,
    fraction: float | None = None,
    *,
    stratify: Sequence[str] = (),
    allocation: Literal["proportional", "equal"] = "proportional",
    weights: str | None = None,
    seed: int = 0,
) -> Table:
    """Draw rows without replacement; they stay in their order.

    Simple by default; stratified with `stratify`; weighted with `weights`, by the keys of
    Efraimidis & Spirakis, "Weighted random sampling with a reservoir" (2006): as if one row after
    the other were drawn with a probability in proportion to its weight among the remaining rows.

    Args:
        table: The rows.
        rows: Number of rows to draw; or
        fraction: their fraction of the table, in (0, 1].
        stratify: Columns of the strata; rows equal in them are of one stratum.
        allocation: Rows of each stratum: "proportional" to its size, rounded by the largest
            remainders, or "equal", as far as a stratum has as many.
        weights: Column of numbers from 0 on; a row of weight 0 is never drawn.
        seed: Seed of the draw.

    Raises:
        DataError: There are fewer rows, a column is missing, too many strata, or an invalid
            weight.
    """
    need(table, stratify)
    map_blocks = each_block(table, "sample")
    size = _size(len(table), rows, fraction)
    limits = choose(
        map_blocks, size, by=stratify, allocation=allocation, weights=weights, seed=seed
    )
    key = random_key(seed, weights)
    how = {
        "rows": size, "stratify": stratify, "allocation": allocation, "weights": weights,
        "seed": seed,
    }  # fmt: skip
    return deal(table, ["sample"], _drawn, key, tuple(stratify), limits, name="sample", how=how)[0]


@checked
def importance_sample(
    table: Table, rows: int, *, weights: str, column: str = "weight", seed: int = 0
) -> Table:
    """A weighted sample with inverse-probability weights.

    `column` is the inverse of a row's conditional probability of being drawn: the sum over the
    sample of a value times `column` is an unbiased estimate of the sum of the value over all rows
    with a positive weight. (Horvitz-Thompson estimates with conditioned ranks: Cohen & Kaplan,
    "Summarizing data using bottom-k sketches", PODC 2007.) It varies least for values in
    proportion to the weights.

    Args:
        table: The rows.
        rows: Number of rows to draw.
        weights: Column of numbers from 0 on, large where a row matters.
        column: Name of the float64 column to add.
        seed: Seed of the draw.

    Raises:
        DataError: Fewer rows have a positive weight, or the column exists already.
    """
    if column in table.schema.names:
        raise DataError(f"the table has a column {column!r} already: give another name as column=")
    map_blocks, key = each_block(table, "importance_sample"), random_key(seed, weights)
    size = _size(len(table), rows, None)
    limits, beyond = importance_limits(map_blocks, size, len(table), weights, seed)
    how = {"rows": size, "weights": weights, "column": column, "seed": seed}
    return deal(
        table, ["sample"], _drawn_with_weight, key, limits, weights, beyond, column,
        name="importance_sample", how=how,
    )[0]  # fmt: skip


def reservoir_sample(
    batches: Iterable[Any], rows: int, *, weights: str | None = None, seed: int = 0
) -> pa.Table:
    """Draw rows of a stream of unknown length, in one pass and the memory of a few samples.

    The result equals `sample` of all batches as one table; it has all rows if there are fewer.

    Args:
        batches: Arrow tables or record batches of one schema.
        rows: Number of rows to draw, from 1 on.
        weights: Column of weights, see `sample`.
        seed: Seed of the draw, see `sample`.

    Raises:
        DataError: The stream is empty, or a weight is invalid.
    """
    if rows < 1:
        raise DataError(f"rows={rows}: a reservoir holds at least 1 row")
    key, first = random_key(seed, weights), 0
    reservoir: pa.Table | None = None
    keys, limit = np.zeros(0, np.uint64), np.uint64(NEVER if weights else 2**64 - 1)
    for batch in batches:
        block = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        drawn = key(block, first)
        first += len(block)
        # Rows stay in the order of the stream: the earlier of two equal keys wins.
        close = drawn < limit
        candidates = block.filter(pa.array(close))
        parts = [candidates] if reservoir is None else [reservoir, candidates]
        reservoir = pa.concat_tables(parts)
        keys = np.concatenate([keys, drawn[close]])
        if len(keys) >= 2 * rows:
            keys, reservoir = _smallest(keys, reservoir, rows)
            limit = keys.max()
    if reservoir is None:
        raise DataError("the stream ended before its first batch: give at least one batch")
    return _smallest(keys, reservoir, rows)[1].combine_chunks()


def random_key(seed: int, weights: str | None = None) -> Key:
    """Keys of a draw: distinct uniform uint64, or exponential with the weights as rates."""
    if weights is None:
        return functools.partial(_uniform_keys, seed=seed)
    return functools.partial(_weighted_keys, seed=seed, weights=weights)


def choose(
    map_blocks: Each,
    size: int,
    *,
    by: Sequence[str] = (),
    allocation: str = "proportional",
    weights: str | None = None,
    seed: int = 0,
) -> dict[int, tuple[int, int]]:
    """The largest drawn key of each group, and its row."""
    key = random_key(seed, weights)
    groups = strata(map_blocks, key, by)
    shares = allot({group: counted.rows for group, counted in groups.items()}, size, allocation)
    return limits_of(map_blocks, key, groups, shares, by)


def importance_limits(
    map_blocks: Each, size: int, rows: int, weights: str, seed: int
) -> tuple[dict[int, tuple[int, int]], float]:
    """Limits as `choose` returns them, and the smallest key not drawn, infinite without one."""
    key = random_key(seed, weights)
    groups = count_groups(map_blocks, key)
    limits = limits_of(map_blocks, key, groups, {0: size})
    if size == rows:
        return limits, np.inf
    place = locate(map_blocks, key, [(0, size + 1)], groups)[0]
    return limits, float(np.array(place.key, np.uint64).view(np.float64))


def strata(map_blocks: Each, key: Key, by: Sequence[str]) -> dict[int, Group]:
    """The groups of rows equal in `by`; too many to be strata are refused."""
    groups = count_groups(map_blocks, key, by)
    if len(groups) > _MAX_GROUPS:
        raise DataError(
            f"the columns {list(by)} have {len(groups)} combinations of values, more than "
            f"{_MAX_GROUPS}: name columns of fewer values, or bin them first"
        )
    return groups


def limits_of(
    map_blocks: Each,
    key: Key,
    groups: dict[int, Group],
    sizes: dict[int, int],
    by: Sequence[str] = (),
) -> dict[int, tuple[int, int]]:
    """The largest key, and its row, among the `sizes` smallest of each group."""
    limits = {group: _ALL if sizes[group] else _NONE for group in groups}
    ranks = [(group, sizes[group]) for group in groups if 0 < sizes[group] < groups[group].rows]
    for (group, size), place in zip(ranks, locate(map_blocks, key, ranks, groups, by), strict=True):
        limits[group] = place.key, place.row
        _refuse_never(place.key, place.below, size)
    for group, counted in groups.items():
        if sizes[group] == counted.rows and counted.high == NEVER:
            _refuse_never(NEVER, counted.rows - 1, counted.rows)
    return limits


def allot(sizes: dict[int, int], total: int, allocation: str) -> dict[int, int]:
    """Allocate `total` rows to groups of these sizes, none more than it has."""
    if allocation == "proportional":
        rows = sum(sizes.values())
        shares = {group: size * total // rows for group, size in sizes.items()}
        by_remainder = sorted(sizes, key=lambda group: (-(sizes[group] * total % rows), group))
        for group in by_remainder[: total - sum(shares.values())]:
            shares[group] += 1
        return shares
    if allocation != "equal":
        raise DataError(f"allocation={allocation!r}: give 'proportional' or 'equal'")
    shares, left = {}, total
    for done, group in enumerate(sorted(sizes, key=lambda group: (sizes[group], group))):
        shares[group] = min(sizes[group], left // (len(sizes) - done))
        left -= shares[group]
    return shares


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


def _size(available: int, rows: int | None, fraction: float | None) -> int:
    if (rows is None) == (fraction is None):
        raise DataError(f"rows={rows}, fraction={fraction}: give one of them")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise DataError(f"fraction={fraction}: give a fraction of the rows in (0, 1]")
        rows = int(fraction * available + 0.5)
    assert rows is not None
    if not 0 < rows <= available:
        raise DataError(
            f"cannot draw {rows} rows from {available} without replacement: give 1 to {available}"
        )
    return rows


def _refuse_never(key: int, positive: int, size: int) -> None:
    if key == NEVER:
        raise DataError(
            f"cannot draw {size} rows: only {positive} have a positive weight. Draw fewer, or give "
            "every row a positive weight"
        )


def _uniform_keys(block: pa.Table, first: int, seed: int) -> np.ndarray:
    return mix(mix(np.arange(first, first + len(block), dtype=np.uint64), seed))


def _weighted_keys(block: pa.Table, first: int, seed: int, weights: str) -> np.ndarray:
    """Bits of -log(u) / w, which sort as these floats, and as -u ** (1 / w) but more precisely."""
    rates = weights_of(block, weights)
    with np.errstate(divide="ignore", over="ignore"):
        keys = -np.log(uniforms(first, len(block), seed)) / rates
    return keys.view(np.uint64)


def weights_of(block: pa.Table, column: str) -> np.ndarray:
    """A validated column of weights, float64 `(rows,)`."""
    if column not in block.column_names:
        raise DataError(f"no column {column!r} of weights; the table has {block.column_names}")
    weights = pc.fill_null(pc.cast(block[column], pa.float64()), np.nan).to_numpy()
    if bad := int((~(np.isfinite(weights) & (weights >= 0))).sum()):
        raise DataError(
            f"{column}: {bad} rows of a block have a missing, negative or infinite weight. Give "
            "numbers from 0 on; a row of weight 0 is never drawn"
        )
    return weights


def _drawn(
    block: pa.Table, first: int, key: Key, by: Sequence[str], limits: dict[int, tuple[int, int]]
) -> tuple[pa.Table]:
    return (block.filter(pa.array(drawn(block, first, key, by, limits))),)


def _drawn_with_weight(
    block: pa.Table,
    first: int,
    key: Key,
    limits: dict[int, tuple[int, int]],
    weights: str,
    beyond: float,
    column: str,
) -> tuple[pa.Table]:
    rows = _drawn(block, first, key, (), limits)[0]
    probability = -np.expm1(-weights_of(rows, weights) * beyond)
    return (rows.append_column(column, pa.array(1.0 / probability)),)


def _smallest(keys: np.ndarray, rows: Any, count: int) -> tuple[np.ndarray, Any]:
    """The rows with the smallest keys, in their order."""
    chosen = np.sort(np.argsort(keys, kind="stable")[:count])
    return keys[chosen], rows.take(chosen)
