"""Splits with the same shares of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raysys.data._order_statistics import groups_of, locate
from raysys.data._row_hash import mix
from raysys.data._row_numbers import each_block, need
from raysys.data.sampling._sample import random_key, strata
from raysys.data.sampling._split import Splits, cumulative, deal_splits, describe_fractions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.data._order_statistics import Key
    from raysys.data._row_numbers import Each
    from raysys.data._table import Table


def split_stratified(
    table: Table,
    fractions: Mapping[str, float],
    stratify: Sequence[str],
    *,
    seed: int = 0,
    training: str = "train",
) -> Splits:
    """Split at random so that every class is split by the fractions, to less than a row.

    Args:
        table: The rows.
        fractions: Fraction of the rows of each split; they sum to 1.
        stratify: Columns of the classes; an empty list gives a plain random split.
        seed: Seed of the draw.
        training: Name of the training split.

    Raises:
        DataError: Invalid fractions, a missing column, more than 100,000 classes, or an empty
            split.
    """
    need(table, stratify)
    map_blocks = each_block(table, "split_stratified")
    limits = stratified_cuts(map_blocks, cumulative(fractions), stratify, seed)
    classes = f"stratified by {', '.join(stratify)}" if stratify else "at random"
    return deal_splits(
        table, list(fractions), f"{classes}, {describe_fractions(fractions)}, seed {seed}",
        training, _stratified, random_key(seed), tuple(stratify), limits, len(fractions),
    )  # fmt: skip


def stratified_cuts(
    map_blocks: Each, upto: Sequence[float], by: Sequence[str], seed: int
) -> dict[int, list[int]]:
    """The largest key of each part except the last, or -1, by class.

    A class draws once whether its fractional numbers of rows are rounded up: systematic sampling
    (Madow, 1949), under which a difference of two cuts is within a row of its fraction too.
    """
    key = random_key(seed)
    groups = strata(map_blocks, key, by)
    draws = mix(np.array(list(groups), np.uint64), seed).astype(np.float64) / 2.0**64
    ranks = [
        (group, int(fraction * counted.rows + draw))
        for (group, counted), draw in zip(groups.items(), draws.tolist(), strict=True)
        for fraction in upto
    ]
    positive = [pair for pair in ranks if pair[1] > 0]
    located = dict(zip(positive, locate(map_blocks, key, positive, groups, by), strict=True))
    limits: dict[int, list[int]] = {group: [] for group in groups}
    for pair in ranks:
        limits[pair[0]].append(located[pair].key if pair in located else -1)
    return limits


def _stratified(
    block: pa.Table,
    first: int,
    key: Key,
    by: Sequence[str],
    limits: dict[int, list[int]],
    parts: int,
) -> tuple[pa.Table, ...]:
    groups = np.array(sorted(limits), np.uint64)
    at = np.searchsorted(groups, groups_of(block, by))
    keys, part = key(block, first), np.zeros(len(block), np.int64)
    for number in range(parts - 1):
        # One more than the largest key, so that 0 is below all keys.
        start = np.array([limits[group][number] + 1 for group in groups.tolist()], np.uint64)
        part += keys >= start[at]
    return tuple(block.filter(pa.array(part == number)) for number in range(parts))
