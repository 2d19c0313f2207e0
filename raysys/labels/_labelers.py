"""Labelling functions as columns of votes, and how often each pattern of votes occurs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from raysys.data import Table

# Distinct patterns of votes reach the driver; so many take it seconds.
MOST_PATTERNS = 100_000
SILENT = -1
_ROWS = "rows_of_pattern"


def apply_labelers(table: Table, labelers: Mapping[str, pl.Expr]) -> Table:
    """Let labelling functions vote on every row.

    A labelling function is a polars expression over one row that gives a class from 0 on, or null
    where it has nothing to say. One that gives a boolean votes for 0 or 1.

    Args:
        table: Any rows.
        labelers: Labelling functions by name.

    Returns:
        The table with a column of int8 votes for each, planned like `with_columns`.

    Raises:
        DataError: A name is a column already, or an expression gives something else than
            integers or booleans.

    Example:
        >>> text = pl.col("text").str.to_lowercase()  # doctest: +SKIP
        >>> labelers = {  # doctest: +SKIP
        ...     "asks_refund": pl.when(text.str.contains("refund")).then(1),
        ...     "says_thanks": pl.when(text.str.contains("thank")).then(0),
        ... }
        >>> votes = apply_labelers(table, labelers)  # doctest: +SKIP
    """
    if taken := [name for name in labelers if name in table.schema.names]:
        raise DataError(
            f"labelers {taken}: the table has such columns already; rename the labelers"
        )
    if not labelers:
        raise DataError("no labelers were given: give at least one, as {name: expression}")
    voted = table.with_columns(**labelers)
    for name in labelers:
        kind = voted.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            raise DataError(
                f"labeler {name} gives {kind}: a vote is a class's number from 0 on, or null. "
                "For a class's name use .replace_strict({name: number}, default=None)"
            )
    return table.with_columns(**{name: made.cast(pl.Int8) for name, made in labelers.items()})


@dataclass(frozen=True)
class Patterns:
    """Each pattern of votes that occurs, once: all that a label model needs of the rows.

    Attributes:
        labelers: Names of the columns of votes.
        votes: int8 `(patterns, labelers)`, -1 where silent; ascending.
        rows: int64 `(patterns,)`, how many rows have it.
        gold: int8 `(patterns,)`, the known class of these rows, -1 if it is not known.
    """

    labelers: tuple[str, ...]
    votes: np.ndarray
    rows: np.ndarray
    gold: np.ndarray


def count_patterns(votes: Table, labelers: Iterable[str], gold: str | None = None) -> Patterns:
    """Count the patterns of votes in tasks; the distinct ones reach this process.

    Raises:
        DataError: A column is missing or holds no votes, or there are too many patterns.
    """
    names = names_of(labelers)
    by = names_of([*names, *([gold] if gold else [])])
    check_columns(votes, by)
    counted = votes.aggregate(by, **{_ROWS: "rows"})
    if len(counted) > MOST_PATTERNS:
        raise DataError(
            f"the {len(names)} labelers make {len(counted)} different patterns of votes, more than "
            f"{MOST_PATTERNS}: fit fewer at once, or let those that vote alike vote as one"
        )
    return patterns_of(counted.to_arrow(), names, gold)


def patterns_of(counted: pa.Table, names: tuple[str, ...], gold: str | None) -> Patterns:
    """Patterns in an order that does not depend on the blocks, so that sums round alike."""
    columns = codes_of(counted, [*names, *([gold] if gold else [])])
    order = np.lexsort(columns.T[::-1])
    columns, rows = columns[order], counted[_ROWS].to_numpy()[order].astype(np.int64)
    known = columns[:, -1] if gold else np.full(len(rows), SILENT, np.int8)
    return Patterns(names, columns[:, : len(names)], rows, known)


def names_of(labelers: Iterable[str]) -> tuple[str, ...]:
    """Names of labelers, given as such or as a mapping."""
    names = (labelers,) if isinstance(labelers, str) else tuple(labelers)
    if not names or len(set(names)) < len(names):
        raise DataError(f"labelers {list(names)}: give the names of columns of votes, each once")
    return names


def check_columns(votes: Table, names: Iterable[str]) -> None:
    """Refuse what are no columns of class numbers."""
    schema = votes.schema
    for name in names:
        if name not in schema.names:
            raise DataError(
                f"there is no column of votes {name!r}; the table has {schema.names[:20]}. "
                "apply_labelers adds them"
            )
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise DataError(f"{name}: a column of classes holds integers from 0 on, not {kind}")


def codes_of(block: pa.Table, names: Iterable[str]) -> np.ndarray:
    """Votes of a block, int8 `(rows, labelers)`, -1 where silent.

    Raises:
        DataError: A value is no class.
    """
    columns = [_checked(name, pc.cast(block[name], pa.int64())) for name in names]
    made = [pc.fill_null(column, SILENT).to_numpy().astype(np.int8) for column in columns]
    return np.stack(made, axis=1)


def _checked(name: str, column: Any) -> Any:
    least, most = pc.min_max(column).as_py().values()
    if least is not None and (least < 0 or most > 126):
        raise DataError(
            f"{name} holds {least if least < 0 else most}: classes are numbers from 0 to 126, and "
            "null says that a labeler is silent"
        )
    return column


def check_classes(names: Iterable[str], votes: np.ndarray, classes: int) -> None:
    """Refuse votes, as of `codes_of`, for classes that there are not."""
    for name, column in zip(names, votes.T, strict=True):
        if len(column) and column.max() >= classes:
            raise DataError(
                f"labeler {name} votes for class {column.max()}, and there are {classes} classes, "
                f"0 to {classes - 1}: correct it, or say classes={column.max() + 1}"
            )
