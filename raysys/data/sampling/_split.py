"""Splits of a table into rows for training and for evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.arguments import checked
from raysys.data._order_statistics import (
    RankedKey,
    count_groups,
    groups_of,
    locate,
    ordered,
    value_of,
)
from raysys.data._row_hash import hash_rows, mix
from raysys.data._row_numbers import deal, each_block, need
from raysys.data._table import Table
from raysys.data.sampling._sample import random_key, strata
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
        train = self.train if self.unbalanced is None else self.unbalanced
        return {**self.tables, self.training: train}

    @checked
    def with_train(self, table: Table, description: str) -> Splits:
        """The same evaluation splits beside a balanced training split."""
        return dataclasses.replace(
            self,
            tables={**self.tables, self.training: table},
            description=f"{self.description}; {description}",
            unbalanced=self.original[self.training],
        )


@checked
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


@checked
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
    move when rows are added, and groups beside a cut change their split. Arguments and errors as
    for `split_by_hash`.
    """
    need(table, columns)
    key = hash_key(columns, seed)
    cuts = cuts_of(each_block(table, "split_by_group"), key, cumulative(fractions))
    description = f"by group of {', '.join(columns)}, {describe_fractions(fractions)}, seed {seed}"
    return cut(table, list(fractions), key, cuts, description, training)


@checked
def split_stratified(
    table: Table,
    fractions: Mapping[str, float],
    stratify: Sequence[str],
    *,
    seed: int = 0,
    training: str = "train",
) -> Splits:
    """Split at random so that every class is split by the fractions, to less than a row.

    `stratify` are the columns of the classes; an empty list gives a plain random split. Arguments
    and errors are otherwise as for `split_by_hash`; more than 100,000 classes are refused.
    """
    need(table, stratify)
    map_blocks = each_block(table, "split_stratified")
    limits = stratified_cuts(map_blocks, cumulative(fractions), stratify, seed)
    classes = f"stratified by {', '.join(stratify)}" if stratify else "at random"
    return deal_splits(
        table, list(fractions), f"{classes}, {describe_fractions(fractions)}, seed {seed}",
        training, _stratified, random_key(seed), tuple(stratify), limits, len(fractions),
    )  # fmt: skip


@checked
def split_by_time(
    table: Table,
    column: str,
    fractions: Mapping[str, float] | None = None,
    *,
    starts: Mapping[str, Any] | None = None,
    gap: Any = None,
    training: str = "train",
) -> Splits:
    """Split by time: the first split before the second, and so on; equal times stay together.

    Args:
        table: The rows.
        column: Column of times or numbers, without missing values.
        fractions: Fraction of the rows of each split, the earliest first; met to half of the rows
            of one time; or
        starts: start of each evaluation split, the earliest first.
        gap: A timedelta, or a number for a column of numbers. Rows within the gap before a start
            are dropped from the split before it, because their labels may look ahead into the next
            one. (The purging of Lopez de Prado, "Advances in financial machine learning", 2018,
            chapter 7.)
        training: Name of the training split.

    Raises:
        DataError: Neither or both of `fractions` and `starts`, a row without a time, starts out
            of order, or an empty split.
    """
    need(table, [column])
    if (fractions is None) == (starts is None):
        raise DataError("give either the fractions of the splits or their starts")
    kind, key = table.schema.field(column).type, functools.partial(time_key, column=column)
    if starts is None:
        assert fractions is not None
        names = list(fractions)
        description = f"by time in {column}, {describe_fractions(fractions)}"
        cuts = cuts_of(each_block(table, "split_by_time"), key, cumulative(fractions))
        description += f", cut at {', '.join(str(value_of(cut, kind)) for cut in cuts)}"
    else:
        names = [training, *starts]
        times = ", ".join(f"{name} from {start}" for name, start in starts.items())
        description = f"by time in {column}, {times}"
        cuts = [_as_key(start, kind, column) for start in starts.values()]
        if cuts != sorted(set(cuts)):
            raise DataError(f"starts={dict(starts)} are not in order: give the earliest first")
    ends = cuts
    if gap is not None:
        ends = [_as_key(_before(value_of(cut, kind), gap, column), kind, column) for cut in cuts]
        description += f", gap {gap}"
    return cut(table, names, key, cuts, description, training, ends)


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


def time_key(block: pa.Table, first: int, column: str) -> np.ndarray:
    return ordered(block[column], column)


def _as_key(value: Any, kind: Any, column: str) -> int:
    try:
        return int(ordered(pa.array([value], kind), column)[0])
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise DataError(f"{value!r} is not a valid {kind} for {column}: {error}") from error


def _before(start: Any, gap: Any, column: str) -> Any:
    try:
        return start - gap
    except TypeError as error:
        raise DataError(
            f"cannot subtract gap={gap!r} from {start!r}, a value of {column}: give a timedelta "
            "for times, a number for numbers"
        ) from error
