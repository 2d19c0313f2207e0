"""Votes of labelling functions, and counts of their patterns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from raysys.arguments import checked
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from raysys.data import Table

# Distinct patterns reach the driver; this many take seconds.
MAX_PATTERNS = 100_000
ABSTAIN = -1
_ROWS = "rows_of_pattern"


@checked
def apply_labelers(table: Table, labelers: Mapping[str, pl.Expr]) -> Table:
    """Add the votes of labelling functions.

    A labelling function is a polars expression of one row: a class number from 0, or null to
    abstain. A boolean is a vote for 0 or 1.

    Args:
        table: Any rows.
        labelers: Labelling functions by name.

    Returns:
        The table with an int8 column of votes for each; lazy, as `with_columns`.

    Raises:
        DataError: A name is already a column, or an expression has another type than integer or
            boolean.

    Example:
        text = pl.col("text").str.to_lowercase()
        labelers = {
            "asks_refund": pl.when(text.str.contains("refund")).then(1),
            "says_thanks": pl.when(text.str.contains("thank")).then(0),
        }
        votes = apply_labelers(table, labelers)
    """
    if duplicates := [name for name in labelers if name in table.schema.names]:
        raise DataError(
            f"labelers {duplicates}: the table already has these columns; rename the labelers"
        )
    if not labelers:
        raise DataError("labelers={}: give at least one, as {name: expression}")
    voted = table.with_columns(**labelers)
    for name in labelers:
        kind = voted.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            raise DataError(
                f"labeler {name} returns {kind}: a vote is a class number from 0, or null. "
                "For class names use .replace_strict({name: number}, default=None)"
            )
    return table.with_columns(**{name: vote.cast(pl.Int8) for name, vote in labelers.items()})


@dataclass(frozen=True)
class VotePatterns:
    """Distinct patterns of votes with their counts, the sufficient statistic of a label model."""

    labelers: tuple[str, ...]  # names of the vote columns
    votes: np.ndarray  # int8 `(patterns, labelers)`, -1 for abstaining; ascending
    rows: np.ndarray  # int64 `(patterns,)`, number of rows
    gold: np.ndarray  # int8 `(patterns,)`, gold label of these rows, -1 if unknown


def count_patterns(votes: Table, labelers: Iterable[str], gold: str | None = None) -> VotePatterns:
    """Count the patterns of votes in tasks; distinct patterns reach this process."""
    names = names_of(labelers)
    by = names_of([*names, *([gold] if gold else [])])
    check_columns(votes, by)
    counted = votes.aggregate(by, **{_ROWS: "rows"})
    if len(counted) > MAX_PATTERNS:
        raise DataError(
            f"the {len(names)} labelers make {len(counted)} different patterns of votes, more than "
            f"{MAX_PATTERNS}: fit fewer at once, or merge those that vote alike"
        )
    return patterns_of(counted.to_arrow(), names, gold)


def patterns_of(counted: pa.Table, names: tuple[str, ...], gold: str | None) -> VotePatterns:
    """Patterns in ascending order, so that rounding does not depend on the blocks."""
    columns = codes_of(counted, [*names, *([gold] if gold else [])])
    order = np.lexsort(columns.T[::-1])
    columns, rows = columns[order], counted[_ROWS].to_numpy()[order].astype(np.int64)
    labels = columns[:, -1] if gold else np.full(len(rows), ABSTAIN, np.int8)
    return VotePatterns(names, columns[:, : len(names)], rows, labels)


def names_of(labelers: Iterable[str]) -> tuple[str, ...]:
    """Names of labelers, from names or a mapping."""
    names = (labelers,) if isinstance(labelers, str) else tuple(labelers)
    if not names or len(set(names)) < len(names):
        raise DataError(f"labelers {list(names)}: name vote columns, without duplicates")
    return names


def check_columns(votes: Table, names: Iterable[str]) -> None:
    """Refuse columns that do not hold class numbers."""
    schema = votes.schema
    for name in names:
        if name not in schema.names:
            raise DataError(
                f"no vote column {name!r}; the table has {schema.names[:20]}. Add the votes with "
                "apply_labelers"
            )
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise DataError(f"{name}: votes are integers from 0, not {kind}")


def codes_of(block: pa.Table, names: Iterable[str]) -> np.ndarray:
    """Votes of a block, int8 `(rows, labelers)`, -1 for abstaining."""
    votes = []
    for name in names:
        column = pc.cast(block[name], pa.int64())
        low, high = pc.min_max(column).as_py().values()
        if low is not None and (low < 0 or high > 126):
            raise DataError(
                f"{name} holds {low if low < 0 else high}: classes are numbers from 0 to 126, and "
                "a labeler abstains with null"
            )
        votes.append(pc.fill_null(column, ABSTAIN).to_numpy().astype(np.int8))
    return np.stack(votes, axis=1)


def check_classes(names: Iterable[str], votes: np.ndarray, classes: int) -> None:
    """Refuse votes for unknown classes."""
    for name, column in zip(names, votes.T, strict=True):
        if len(column) and column.max() >= classes:
            raise DataError(
                f"labeler {name} votes for class {column.max()}, but the {classes} classes are "
                f"0 to {classes - 1}: correct it, or use classes={column.max() + 1}"
            )
