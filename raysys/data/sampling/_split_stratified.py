"""Splits that keep the shares of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raysys.data._order_statistics import groups_of, locate
from raysys.data._row_hash import mix
from raysys.data._row_numbers import deal, each_block, need
from raysys.data.sampling._sample import random_key, strata
from raysys.data.sampling._split import Splits, cuts_of_shares, described_shares, splits_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.data._order_statistics import Key
    from raysys.data._row_numbers import Each
    from raysys.data._table import Table


def split_stratified(
    table: Table,
    shares: Mapping[str, float],
    by: Sequence[str],
    *,
    seed: int = 0,
    training: str = "train",
) -> Splits:
    """Split at random so that each class has each share of its rows, to less than a row.

    Args:
        table: The rows.
        shares: The share of the rows for each split; they sum to 1.
        by: Columns whose values make the classes; none for a plain random split.
        seed: Another seed splits otherwise.
        training: Name of the split that is for training.

    Raises:
        DataError: The shares are none, a column is missing, there are more than 100,000 classes,
            or a split would be empty.
    """
    need(table, by)
    limits = stratified_cuts(
        each_block(table, "split_stratified"), cuts_of_shares(shares), by, seed
    )
    classes = f"within {', '.join(by)}" if by else "at random"
    how = f"{classes}, {described_shares(shares)}, seed {seed}"
    parts = deal(
        table, list(shares), _stratified, random_key(seed), tuple(by), limits, len(shares),
        name="split", how={"how": how},
    )  # fmt: skip
    return splits_of(shares, parts, how, training)


def stratified_cuts(
    each: Each, shares: Sequence[float], by: Sequence[str], seed: int
) -> dict[int, list[int]]:
    """The largest key of each part but the last, or -1, for each class.

    Where a class's share is no whole number of rows, the class draws once whether it is rounded
    up: systematic sampling (Madow, 1949), under which a difference of two cuts is within a row of
    its share too.
    """
    key = random_key(seed)
    groups = strata(each, key, by)
    draws = mix(np.array(list(groups), np.uint64), seed).astype(np.float64) / 2.0**64
    wanted = [
        (group, int(share * found.rows + draw))
        for (group, found), draw in zip(groups.items(), draws.tolist(), strict=True)
        for share in shares
    ]
    inside = [pair for pair in wanted if pair[1] > 0]
    found = dict(zip(inside, locate(each, key, inside, groups, by), strict=True))
    limits: dict[int, list[int]] = {group: [] for group in groups}
    for pair in wanted:
        limits[pair[0]].append(found[pair].key if pair in found else -1)
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
        # One more than the largest key, so that there is a number below them all.
        start = np.array([limits[group][number] + 1 for group in groups.tolist()], np.uint64)
        part += keys >= start[at]
    return tuple(block.filter(pa.array(part == number)) for number in range(parts))
