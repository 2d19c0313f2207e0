"""What to label next: the rows of which a model is least sure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data import Table

By = Literal["entropy", "margin", "least_confident"]
SCORE = "uncertainty"
# Helpers that leave again; no column of a user's has this in its name.
_ROW, _RANK = "\x1frow", "\x1frank"


def pick(
    table: Table,
    probabilities: Sequence[str],
    rows: int,
    *,
    by: By = "entropy",
    diverse: str | None = None,
) -> Table:
    """The rows of which a model is least sure, the least sure first.

    The measures are those of Settles, "Active learning literature survey" (2009), section 3.1.
    Of equally unsure rows the earlier in the table comes first.

    Args:
        table: Rows without a label, with what a model gives for each class.
        probabilities: The columns of the classes' probabilities.
        rows: How many to pick; all if there are fewer.
        by: "entropy" of the probabilities; "margin", 1 less what the likeliest class is ahead
            of the second; or "least_confident", 1 less the likeliest class's.
        diverse: A column of groups, such as clusters or sources, that share the rows equally, as
            far as each has some: first the least sure row of each, then the second, and so on.

    Returns:
        The rows with a column `uncertainty`, float64; chosen in tasks, no row passes through
        this process.

    Raises:
        DataError: A column is missing, or a row's probabilities are none.

    Example:
        >>> pick(scored, ["probability_0", "probability_1"], 50)  # doctest: +SKIP
    """
    _check(table, probabilities, rows, by, diverse)
    keys, descending = [SCORE, _ROW], [True, False]
    best = table.with_row_number(_ROW).map_blocks(
        best_of_block, list(probabilities), rows, by, diverse, name="pick"
    )
    if diverse is not None:
        keys, descending = [_RANK, *keys], [False, *descending]
        together = best.partition_by(diverse, len(best.blocks()))
        best = together.map_blocks(first_of_groups, rows, diverse, name="pick_of_groups")
    ordered = best.sort(keys, descending=descending).select([*table.schema.names, SCORE])
    return ordered.with_row_number(_ROW).filter(pl.col(_ROW) < rows).select(
        [*table.schema.names, SCORE]
    ).materialize()  # fmt: skip


def uncertainty(probabilities: np.ndarray, by: By) -> np.ndarray:
    """How unsure a model is of each row, float64 `(rows,)`, larger where it is less sure.

    Args:
        probabilities: float64 `(rows, classes)`, of sum 1.
        by: See `pick`.
    """
    # In one order, so that the same probabilities of other classes make a tie, not nearly one.
    probabilities = np.sort(probabilities, axis=1)
    if by == "entropy":
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(probabilities > 0, probabilities * np.log(probabilities), 0.0)
        return -terms.sum(axis=1)
    second, first = probabilities[:, -2:].T
    return 1 - (first - second) if by == "margin" else 1 - first


def best_of_block(
    block: pa.Table, probabilities: Sequence[str], rows: int, by: By, diverse: str | None
) -> pa.Table:
    """The rows of a block that can be among the picked, with their uncertainty."""
    block = block.append_column(SCORE, pa.array(uncertainty(_matrix(block, probabilities), by)))
    if diverse is not None:
        return first_of_groups(block, rows, diverse).drop_columns([_RANK])
    return block.take(_least_sure(block)[:rows])


def first_of_groups(block: pa.Table, rows: int, group: str) -> pa.Table:
    """The `rows` least sure rows of each group, with their rank in it from 0."""
    import pandas as pd

    ordered = block.take(_least_sure(block))
    codes = ordered[group].combine_chunks().dictionary_encode(null_encoding="encode").indices
    ranks = pd.Series(codes.to_numpy()).groupby(codes.to_numpy()).cumcount().to_numpy()
    kept = ordered.append_column(_RANK, pa.array(ranks, pa.int64()))
    return kept.filter(pa.array(ranks < rows))


def _least_sure(block: pa.Table) -> np.ndarray:
    return np.lexsort((block[_ROW].to_numpy(), -block[SCORE].to_numpy()))


def _matrix(block: pa.Table, names: Sequence[str]) -> np.ndarray:
    columns = [
        pc.fill_null(pc.cast(block[name], pa.float64()), np.nan).to_numpy() for name in names
    ]
    made = np.stack(columns, axis=1)
    wrong = ~((made >= 0).all(axis=1) & (np.abs(made.sum(axis=1) - 1) < 1e-3))
    if wrong.any():
        given = dict(zip(names, made[wrong][0].tolist(), strict=True))
        raise DataError(
            f"{int(wrong.sum())} rows of a block have no probabilities, the first {given}: they "
            "must be from 0 on, of sum 1. Name the columns of all classes"
        )
    return made


def _check(
    table: Table, probabilities: Sequence[str], rows: int, by: By, diverse: str | None
) -> None:
    names = table.schema.names
    wanted = [*probabilities, *([] if diverse is None else [diverse])]
    if isinstance(probabilities, str) or len(set(probabilities)) < 2:
        raise DataError(f"probabilities={probabilities!r}: name the columns of at least 2 classes")
    if missing := [name for name in wanted if name not in names]:
        raise DataError(f"pick: {missing} are no columns; the table has {names[:20]}")
    if SCORE in names:
        raise DataError(f"the table has a column {SCORE!r} already: rename or leave it out")
    if by not in ("entropy", "margin", "least_confident"):
        raise DataError(f"by={by!r}: give 'entropy', 'margin' or 'least_confident'")
    if rows < 1:
        raise DataError(f"rows={rows}: pick at least one")
