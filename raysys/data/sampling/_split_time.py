"""Splits by time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysys.data._order_statistics import ordered, value_of
from raysys.data._row_numbers import each_block, need
from raysys.data.sampling._split import Splits, cut, cuts_of, cuts_of_shares, described_shares
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from raysys.data._table import Table


def split_by_time(
    table: Table,
    column: str,
    shares: Mapping[str, float] | None = None,
    *,
    starts: Mapping[str, Any] | None = None,
    gap: Any = None,
    training: str = "train",
) -> Splits:
    """Split by time: the first split before the second, and so on; equal times stay together.

    Args:
        table: The rows.
        column: Times or numbers that all rows have.
        shares: The share of the rows for each split, the earliest first; met to half of the rows
            that have one time; or
        starts: the time at which each split but the training split starts, in their order.
        gap: A timedelta, or a number for a column of numbers: rows so shortly before a start are
            left out of the split before it, because what their labels look ahead to may lie in
            the next one. (The purging of Lopez de Prado, "Advances in financial machine learning",
            2018, chapter 7.)
        training: Name of the split that is for training.

    Raises:
        DataError: Neither or both of `shares` and `starts`, a row without a time, starts out of
            order, or a split would be empty.
    """
    need(table, [column])
    if (shares is None) == (starts is None):
        raise DataError("give either the shares of the splits or the times at which they start")
    kind, key = table.schema.field(column).type, functools.partial(time_key, column=column)
    if starts is None:
        assert shares is not None
        names, how = shares, f"by time in {column}, {described_shares(shares)}"
        cuts = cuts_of(each_block(table, "split_by_time"), key, cuts_of_shares(shares))
        how += f", cut at {', '.join(str(value_of(cut, kind)) for cut in cuts)}"
    else:
        names = {training: 0.0, **dict.fromkeys(starts, 0.0)}
        times = ", ".join(f"{name} from {start}" for name, start in starts.items())
        how = f"by time in {column}, {times}"
        cuts = [_as_key(start, kind, column) for start in starts.values()]
        if cuts != sorted(set(cuts)):
            raise DataError(f"the starts {dict(starts)} are not in order: give the earliest first")
    ends = cuts
    if gap is not None:
        ends = [_as_key(_before(value_of(cut, kind), gap, column), kind, column) for cut in cuts]
        how += f", gap {gap}"
    return cut(table, names, key, cuts, how, training, ends)


def time_key(block: pa.Table, first: int, column: str) -> np.ndarray:
    return ordered(block[column], column)


def _as_key(value: Any, kind: Any, column: str) -> int:
    try:
        return int(ordered(pa.array([value], kind), column)[0])
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise DataError(f"{column} holds {kind}, and {value!r} is none: {error}") from error


def _before(start: Any, gap: Any, column: str) -> Any:
    try:
        return start - gap
    except TypeError as error:
        raise DataError(
            f"gap={gap!r} cannot be taken from {start!r}, a value of {column}: give a timedelta "
            "for times, a number for numbers"
        ) from error
