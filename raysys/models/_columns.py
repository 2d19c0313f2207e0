"""Batches that models are called with, as columns by name or as a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raysys.errors import DataError, unknown_names


def named_columns(features: Any, names: Sequence[str]) -> dict[str, Any]:
    """Columns by name, of columns (a mapping, a frame) or of a matrix `(n, names)`.

    Raises:
        DataError: A column is missing, or the matrix has another shape.
    """
    if hasattr(features, "keys"):
        present = list(features.keys())
        if missing := [name for name in names if name not in present]:
            near = unknown_names(missing, present)
            raise DataError(f"missing features: {near}; the model needs {list(names)[:20]}")
        return {name: features[name] for name in names}
    matrix = np.asarray(features)
    if matrix.ndim != 2 or matrix.shape[1] != len(names):
        raise DataError(
            f"features of shape {matrix.shape}; expected (rows, {len(names)}): {list(names)[:20]}"
        )
    return dict(zip(names, matrix.T, strict=True))


def stacked(features: Any, names: Sequence[str]) -> np.ndarray:
    """A matrix of numbers `(n, names)`."""
    if not hasattr(features, "keys"):
        named_columns(features, names)
        return np.asarray(features)
    columns = named_columns(features, names)
    return np.column_stack([as_array(name, column) for name, column in columns.items()])


def as_array(name: str, column: Any) -> np.ndarray:
    """A column as an array; rows that are lists of one length become its further dimensions."""
    array = np.asarray(column)
    if array.dtype != object:
        return array
    try:
        return np.array([np.asarray(row) for row in array])
    except ValueError as error:
        raise DataError(f"column {name!r}: rows of different lengths: {error}") from error
