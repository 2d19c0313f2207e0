"""Changes of rows within a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from raysys.data._lazy_plan import collect, lazy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    import pyarrow as pa


def select(frame: pl.LazyFrame, columns: Sequence[str]) -> pl.LazyFrame:
    """These columns, in this order."""
    return frame.select(columns)


def rename(frame: pl.LazyFrame, names: Mapping[str, str]) -> pl.LazyFrame:
    """Other names for some columns."""
    return frame.rename(dict(names))


def filter_rows(frame: pl.LazyFrame, predicate: pl.Expr) -> pl.LazyFrame:
    """Rows for which the predicate is true."""
    return frame.filter(predicate)


def with_columns(frame: pl.LazyFrame, columns: Mapping[str, Any]) -> pl.LazyFrame:
    """Added or replaced columns."""
    return frame.with_columns(**columns)


def distinct(frame: pl.LazyFrame, columns: Sequence[str]) -> pl.LazyFrame:
    """The first of equal rows."""
    return frame.unique(list(columns), keep="first", maintain_order=True)


def distinct_rows(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The first of equal rows of a part."""
    return collect(distinct(lazy(rows), columns), "distinct")


def number(block: pa.Table, column: str, first: int) -> pa.Table:
    """With the row's number, from `first` on."""
    return block.append_column(column, [np.arange(first, first + len(block))])
