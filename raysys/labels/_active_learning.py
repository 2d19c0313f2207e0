"""Active learning by uncertainty sampling: the most informative rows to label next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from raysys.arguments import checked
from raysys.errors import DataError
from raysys.imports import lazy_import

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data import Table

pandas = lazy_import("pandas")

QueryStrategy = Literal["entropy", "margin", "least_confidence"]
UNCERTAINTY = "uncertainty"
# Temporary columns, with a character that user columns do not contain.
_ROW, _RANK = "\x1frow", "\x1frank"


@checked
def select_for_labeling(
    table: Table, probabilities: Sequence[str], n_rows: int, *,
    strategy: QueryStrategy = "entropy", balance_by: str | None = None,
) -> Table:  # fmt: skip
    """The rows that a model is most uncertain about, most uncertain first.

    Uncertainty sampling with the strategies of Settles, "Active learning literature survey" (2009),
    section 3.1. Equally uncertain rows stay in the order of the Table.

    Args:
        table: Unlabelled rows with predicted probabilities.
        probabilities: Columns of the probabilities, one a class.
        n_rows: Number of rows to select; all if the Table has fewer.
        strategy: "entropy" of the probabilities; "margin", 1 minus the difference between the
            two largest; or "least_confidence", 1 minus the largest.
        balance_by: Column of groups, such as clusters or sources, that share the selection: first
            the most uncertain row of each group, then the second, and so on.

    Returns:
        The rows with a column `uncertainty`, float64; selected in tasks, without rows in this
        process.

    Raises:
        DataError: A column is missing, or the probabilities of a row are invalid.
    """
    names = table.schema.names
    needed = [*probabilities, *([] if balance_by is None else [balance_by])]
    if isinstance(probabilities, str) or len(set(probabilities)) < 2:
        raise DataError(f"probabilities={probabilities!r}: name the columns of at least 2 classes")
    if missing := [name for name in needed if name not in names]:
        raise DataError(f"no such column: {missing}; the table has {names[:20]}")
    if UNCERTAINTY in names:
        raise DataError(f"the table already has a column {UNCERTAINTY!r}: rename or drop it")
    if strategy not in get_args(QueryStrategy):
        raise DataError(f"strategy={strategy!r}: use one of {get_args(QueryStrategy)}")
    if n_rows < 1:
        raise DataError(f"n_rows={n_rows}: select at least one")
    keys, descending = [UNCERTAINTY, _ROW], [True, False]
    selected = table.with_row_number(_ROW).map_blocks(
        select_in_block, list(probabilities), n_rows, strategy, balance_by, name="select"
    )
    if balance_by is not None:
        keys, descending = [_RANK, *keys], [False, *descending]
        by_group = selected.partition_by(balance_by, len(selected.blocks()))
        selected = by_group.map_blocks(
            select_in_groups, n_rows, balance_by, name="select_in_groups"
        )
    columns = [*names, UNCERTAINTY]
    ordered = selected.sort(keys, descending=descending).select(columns).with_row_number(_ROW)
    return ordered.filter(pl.col(_ROW) < n_rows).select(columns).materialize()


def uncertainty(probabilities: np.ndarray, strategy: QueryStrategy) -> np.ndarray:
    """Uncertainty of each row, float64 `(rows,)`.

    Args:
        probabilities: float64 `(rows, classes)`, of sum 1.
        strategy: See `select_for_labeling`.
    """
    # Sorted, so that the same probabilities of other classes make an exact tie.
    probabilities = np.sort(probabilities, axis=1)
    if strategy == "entropy":
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(probabilities > 0, probabilities * np.log(probabilities), 0.0)
        return -terms.sum(axis=1)
    second, first = probabilities[:, -2:].T
    return 1 - (first - second) if strategy == "margin" else 1 - first


def select_in_block(
    block: pa.Table, probabilities: Sequence[str], n_rows: int, strategy: QueryStrategy,
    group: str | None,
) -> pa.Table:  # fmt: skip
    """Candidates of a block, with their uncertainty."""
    scores = uncertainty(_matrix(block, probabilities), strategy)
    block = block.append_column(UNCERTAINTY, pa.array(scores))
    if group is not None:
        return select_in_groups(block, n_rows, group).drop_columns([_RANK])
    return block.take(_most_uncertain(block)[:n_rows])


def select_in_groups(block: pa.Table, n_rows: int, group: str) -> pa.Table:
    """The `n_rows` most uncertain rows of each group, with their rank in it from 0."""
    ordered = block.take(_most_uncertain(block))
    encoded = ordered[group].combine_chunks().dictionary_encode(null_encoding="encode")
    codes = encoded.indices.to_numpy()
    ranks = pandas.Series(codes).groupby(codes).cumcount().to_numpy()
    ranked = ordered.append_column(_RANK, pa.array(ranks, pa.int64()))
    return ranked.filter(pa.array(ranks < n_rows))


def _most_uncertain(block: pa.Table) -> np.ndarray:
    return np.lexsort((block[_ROW].to_numpy(), -block[UNCERTAINTY].to_numpy()))


def _matrix(block: pa.Table, names: Sequence[str]) -> np.ndarray:
    columns = [
        pc.fill_null(pc.cast(block[name], pa.float64()), np.nan).to_numpy() for name in names
    ]
    matrix = np.stack(columns, axis=1)
    wrong = ~((matrix >= 0).all(axis=1) & (np.abs(matrix.sum(axis=1) - 1) < 1e-3))
    if wrong.any():
        first = dict(zip(names, matrix[wrong][0].tolist(), strict=True))
        raise DataError(
            f"{int(wrong.sum())} rows of a block have invalid probabilities, the first {first}: "
            "they must be at least 0, of sum 1. Name the columns of all classes"
        )
    return matrix
