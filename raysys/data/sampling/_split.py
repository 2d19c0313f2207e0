"""Splits of a table into rows for training and for evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.data._order_statistics import RankedKey, count_groups, locate
from raysys.data._row_hash import hash_rows, mix
from raysys.data._row_numbers import deal, each_block, need
from raysys.data._table import Table
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from raysys.data._order_statistics import Key
    from raysys.data._row_numbers import Each


@dataclass(frozen=True, repr=False)
class Splits(Mapping[str, Table]):
    """Tables by the name of their split, one of them for training.

    `splits["test"]` is a Table, and `train, test = splits.values()` works. Functions that balance
    classes take Splits and change the training split only.

    Attributes:
        tables: The splits, in order.
        training: Name of the training split.
        description: Method and parameters of the split, for people and run records.
        unbalanced: The training split before it was balanced; None if it was not.
    """

    tables: Mapping[str, Table]
    training: str = "train"
    description: str = "custom"
    unbalanced: Table | None = None

    def __post_init__(self) -> None:
        if self.training not in self.tables:
            raise DataError(
                f"no split {self.training!r} in {list(self.tables)}: name the training split with "
                "training=NAME"
            )

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def __repr__(self) -> str:
        return f"<Splits {', '.join(self)}: {self.description}>"

    @property
    def train(self) -> Table:
        """The training split."""
        return self.tables[self.training]

    @property
    def evaluation(self) -> dict[str, Table]:
        """The evaluation splits."""
        return {name: table for name, table in self.items() if name != self.training}

    @property
    def original(self) -> dict[str, Table]:
        """All splits, the training split before it was balanced."""
        return {**self.tables, self.training: self._unbalanced()}

    def _unbalanced(self) -> Table:
        return self.train if self.unbalanced is None else self.unbalanced

    def with_train(self, table: Table, description: str) -> Splits:
        """The same evaluation splits beside a balanced training split."""
        return dataclasses.replace(
            self,
            tables={**self.tables, self.training: table},
            description=f"{self.description}; {description}",
            unbalanced=self._unbalanced(),
        )


def split_by_hash(
    table: Table,
    fractions: Mapping[str, float],
    columns: Sequence[str],
    *,
    seed: int = 0,
    training: str = "train",
) -> Splits:
    """Split by a hash of a key: a row keeps its split when rows are added later.

    Rows equal in `columns` are in one split. The fractions are met at random, to about one over
    the square root of the number of keys.

    Args:
        table: The rows.
        fractions: Fraction of the rows of each split; they sum to 1.
        columns: Columns of the key that identifies a row or its group.
        seed: Seed of the hash.
        training: Name of the training split.

    Raises:
        DataError: Invalid fractions, a missing column, or an empty split.
    """
    need(table, columns)
    cuts = [min(int(upto * 2**64), 2**64 - 1) for upto in cumulative(fractions)]
    description = f"by hash of {', '.join(columns)}, {describe_fractions(fractions)}, seed {seed}"
    return cut(table, list(fractions), hash_key(columns, seed), cuts, description, training)


def split_by_group(
    table: Table,
    fractions: Mapping[str, float],
    columns: Sequence[str],
    *,
    seed: int = 0,
    training: str = "train",
) -> Splits:
    """Split so that no group is in two splits.

    Like `split_by_hash`, but cut where the fractions are met to half of a group's rows; the cuts
    move when rows are added, and groups beside a cut change their split.

    Args:
        table: The rows.
        fractions: Fraction of the rows of each split; they sum to 1.
        columns: Columns of the groups; rows equal in them are of one group.
        seed: Seed of the hash.
        training: Name of the training split.

    Raises:
        DataError: Invalid fractions, a missing column, or an empty split.
    """
    need(table, columns)
    key = hash_key(columns, seed)
    cuts = cuts_of(each_block(table, "split_by_group"), key, cumulative(fractions))
    description = f"by group of {', '.join(columns)}, {describe_fractions(fractions)}, seed {seed}"
    return cut(table, list(fractions), key, cuts, description, training)


def hash_key(columns: Sequence[str], seed: int) -> Key:
    """Keys that hash these columns."""
    return functools.partial(_hash_key, columns=tuple(columns), seed=seed)


def cuts_of(map_blocks: Each, key: Key, upto: Sequence[float]) -> list[int]:
    """Keys at which the later splits start, nearest to these cumulative fractions."""
    groups = count_groups(map_blocks, key)
    rows = sum(group.rows for group in groups.values())
    ranks = [min(max(int(fraction * rows + 0.5), 1), rows) for fraction in upto]
    places = locate(map_blocks, key, [(0, rank) for rank in ranks], groups)

    def start(place: RankedKey, rank: int) -> int:
        if rank - place.below < place.upto - rank:
            return place.key
        return min(place.key + 1, 2**64 - 1)

    return [start(place, rank) for place, rank in zip(places, ranks, strict=True)]


def cut(
    table: Table,
    names: Sequence[str],
    key: Key,
    cuts: Sequence[int],
    description: str,
    training: str,
    ends: Sequence[int] | None = None,
) -> Splits:
    """Splits of the rows by their key, each from one cut to the end before the next."""
    return deal_splits(table, names, description, training, _between, key, cuts, ends or cuts)


def deal_splits(
    table: Table,
    names: Sequence[str],
    description: str,
    training: str,
    function: Callable[..., tuple[pa.Table, ...]],
    *args: Any,
) -> Splits:
    """Splits of what `function(block, first row, *args)` returns; an empty one is refused."""
    how = {"description": description}
    parts = deal(table, names, function, *args, name="split", how=how)
    splits = Splits(dict(zip(names, parts, strict=True)), training, description)
    if empty := [name for name, part in splits.items() if len(part) == 0]:
        rows = {name: len(part) for name, part in splits.items()}
        raise DataError(
            f"the splits {empty} would be empty; number of rows: {rows}. Give them a larger "
            "fraction, or split by columns with more values"
        )
    return splits


def cumulative(fractions: Mapping[str, float]) -> list[float]:
    """The cumulative fractions at which one split ends and the next starts."""
    values = list(fractions.values())
    if len(values) < 2 or min(values) <= 0 or abs(sum(values) - 1) > 1e-9:
        raise DataError(
            f"fractions={dict(fractions)}: give at least two positive fractions that sum to 1, as "
            'in {"train": 0.8, "validation": 0.1, "test": 0.1}'
        )
    # Rounded, so that 0.7 + 0.1 of 10 rows are 8 rows.
    return [round(float(upto), 12) for upto in np.cumsum(values)[:-1]]


def describe_fractions(fractions: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items())


def _hash_key(block: pa.Table, first: int, columns: Sequence[str], seed: int) -> np.ndarray:
    return mix(hash_rows(block, columns), seed)


def _between(
    block: pa.Table, first: int, key: Key, cuts: Sequence[int], ends: Sequence[int]
) -> tuple[pa.Table, ...]:
    """Rows between consecutive cuts, up to the end that belongs to the later one."""
    keys = key(block, first)
    part = np.searchsorted(np.array(cuts, np.uint64), keys, side="right")
    bounds = np.array([*ends, 2**64 - 1], np.uint64)
    inside = (keys < bounds[part]) | (part == len(cuts))
    return tuple(block.filter(pa.array((part == n) & inside)) for n in range(len(cuts) + 1))
