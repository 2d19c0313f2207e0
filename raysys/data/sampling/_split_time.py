"""Splits by time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysys.data._order_statistics import ordered, value_of
from raysys.data._row_numbers import each_block, need
from raysys.data.sampling._split import Splits, cumulative, cut, cuts_of, describe_fractions
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from raysys.data._table import Table


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
