"""Splits of a table into rows for training and rows for evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raysys.data._order_statistics import RankedKey, count_groups, locate
from raysys.data._row_hash import hash_rows, mix
from raysys.data._row_numbers import deal, each_block, need
from raysys.data._table import Table
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data._order_statistics import Key
    from raysys.data._row_numbers import Each


@dataclass(frozen=True)
class Splits(Mapping[str, Table]):
    """Tables by the name of their split; it is known which one is for training.

    `splits["test"]` is a Table, and `train, test = splits.values()` works. What changes the shares
    of classes takes Splits and changes the training split, so an evaluation split stays as it was
    drawn.

    Attributes:
        tables: The splits, in the order in which they were asked for.
        training: Name of the one for training.
        how: How they were made, for people and run records.
        drawn: The training split as it was drawn, if it has been balanced since.
    """

    tables: Mapping[str, Table]
    training: str = "train"
    how: str = "made by hand"
    drawn: Table | None = None

    def __post_init__(self) -> None:
        if self.training not in self.tables:
            raise DataError(
                f"none of the splits {list(self.tables)} is called {self.training!r}: say which "
                "one is for training, with training=NAME"
            )

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    @property
    def train(self) -> Table:
        """The training split."""
        return self.tables[self.training]

    @property
    def evaluation(self) -> dict[str, Table]:
        """The other splits."""
        return {name: table for name, table in self.items() if name != self.training}

    @property
    def as_drawn(self) -> dict[str, Table]:
        """All splits, the training split as it was before it was balanced."""
        return {**self.tables, self.training: self.drawn or self.train}

    def with_train(self, table: Table, how: str) -> Splits:
        """The same evaluation splits beside another training split, made of this one."""
        return dataclasses.replace(
            self,
            tables={**self.tables, self.training: table},
            how=f"{self.how}; {how}",
            drawn=self.drawn or self.train,
        )


def split_by_hash(
    table: Table,
    shares: Mapping[str, float],
    columns: Sequence[str],
    *,
    seed: int = 0,
    training: str = "train",
) -> Splits:
    """Split by a hash of a key: a row never changes its split, whatever rows are added later.

    Rows that are equal in `columns` stand in one split. The shares are met by chance only, to
    about one over the square root of the number of keys.

    Args:
        table: The rows.
        shares: The share of the rows for each split; they sum to 1.
        columns: What identifies a row, or what it belongs to.
        seed: Another seed splits otherwise.
        training: Name of the split that is for training.

    Raises:
        DataError: The shares are none, a column is missing, or a split would be empty.
    """
    need(table, columns)
    cuts = [min(int(upto * 2**64), 2**64 - 1) for upto in cuts_of_shares(shares)]
    how = f"by hash of {', '.join(columns)}, {described_shares(shares)}, seed {seed}"
    return cut(table, shares, hash_key(columns, seed), cuts, how, training)


def split_by_group(
    table: Table,
    shares: Mapping[str, float],
    columns: Sequence[str],
    *,
    seed: int = 0,
    training: str = "train",
) -> Splits:
    """Split into shares of the rows so that no group stands in two splits.

    Like `split_by_hash`, but the cuts are laid where they meet the shares to half of a group's
    rows; so they move when rows are added, and groups beside a cut change their split.

    Args:
        table: The rows.
        shares: The share of the rows for each split; they sum to 1.
        columns: Rows that are equal in these are of one group.
        seed: Another seed splits otherwise.
        training: Name of the split that is for training.

    Raises:
        DataError: The shares are none, a column is missing, or a split would be empty.
    """
    need(table, columns)
    key = hash_key(columns, seed)
    cuts = cuts_of(each_block(table, "split_by_group"), key, cuts_of_shares(shares))
    how = f"by group of {', '.join(columns)}, {described_shares(shares)}, seed {seed}"
    return cut(table, shares, key, cuts, how, training)


def hash_key(columns: Sequence[str], seed: int) -> Key:
    """Keys that are equal where these columns are."""
    return functools.partial(_hash_key, columns=tuple(columns), seed=seed)


def cuts_of(each: Each, key: Key, shares: Sequence[float]) -> list[int]:
    """The keys at which the later parts start, so that their shares are met most closely."""
    groups = count_groups(each, key)
    rows = sum(group.rows for group in groups.values())
    ranks = [min(max(int(share * rows + 0.5), 1), rows) for share in shares]
    places = locate(each, key, [(0, rank) for rank in ranks], groups)

    def start(place: RankedKey, rank: int) -> int:
        if rank - place.below < place.upto - rank:
            return place.key
        return min(place.key + 1, 2**64 - 1)

    return [start(place, rank) for place, rank in zip(places, ranks, strict=True)]


def cut(
    table: Table,
    names: Mapping[str, float],
    key: Key,
    cuts: Sequence[int],
    how: str,
    training: str,
    ends: Sequence[int] | None = None,
) -> Splits:
    parts = deal(
        table, list(names), _between, key, cuts, ends or cuts, name="split", how={"how": how}
    )
    return splits_of(names, parts, how, training)


def splits_of(names: Mapping[str, float], parts: list[Table], how: str, training: str) -> Splits:
    """Splits of these tables; an empty one is refused."""
    splits = Splits(dict(zip(names, parts, strict=True)), training, how)
    if empty := [name for name, part in splits.items() if len(part) == 0]:
        rows = {name: len(part) for name, part in splits.items()}
        raise DataError(
            f"the splits {empty} would be empty; the rows of each: {rows}. Give them a larger "
            "share, or split by something that has more values"
        )
    return splits


def cuts_of_shares(shares: Mapping[str, float]) -> list[float]:
    """The cumulative shares at which one split ends and the next starts."""
    if len(shares) < 2 or any(share <= 0 for share in shares.values()) or (
        abs(sum(shares.values()) - 1) > 1e-9
    ):  # fmt: skip
        raise DataError(
            f"shares={dict(shares)}: give at least two shares over 0 that sum to 1, as in "
            '{"train": 0.8, "validation": 0.1, "test": 0.1}'
        )
    # Rounded, so that 0.7 + 0.1 of 10 rows are 8 rows.
    return [round(float(upto), 12) for upto in np.cumsum(list(shares.values()))[:-1]]


def described_shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in shares.items())


def _hash_key(block: pa.Table, first: int, columns: Sequence[str], seed: int) -> np.ndarray:
    return mix(hash_rows(block, columns), seed)


def _between(
    block: pa.Table, first: int, key: Key, cuts: Sequence[int], ends: Sequence[int]
) -> tuple[pa.Table, ...]:
    """Rows before the first cut, from it on to the second, and so on, each up to its end."""
    keys = key(block, first)
    part = np.searchsorted(np.array(cuts, np.uint64), keys, side="right")
    bounds = np.array([*ends, 2**64 - 1], np.uint64)
    inside = (keys < bounds[part]) | (part == len(cuts))
    return tuple(block.filter(pa.array((part == n) & inside)) for n in range(len(cuts) + 1))
