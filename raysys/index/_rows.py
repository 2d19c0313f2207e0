"""Rows of an index: ids, vectors and attributes, checked and converted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.errors import DataError
from raysys.splitmix import splitmix64

if TYPE_CHECKING:
    from raysys.index._settings import Metric

NO_ID = -1
_MAX_SHOWN = 5
_ROUNDING = 2e-7
_MAX_SQUARE = float(np.finfo(np.float32).max) / 4  # of a length: twice that is the longest distance


def vector_table(
    ids: Any, vectors: Any, attributes: Mapping[str, Any] | pa.Table | None = None
) -> pa.Table:
    """A table of index rows from arrays.

    Args:
        ids: Integers `(n,)`.
        vectors: Numbers `(n, dim)`; C-contiguous float32 is not copied.
        attributes: Columns of n values, by name.

    Returns:
        Columns `id` (int64), `vector` (fixed-size list of float32) and the attributes.

    Raises:
        DataError: The shapes do not fit each other, or an id is not an integer.

    Example:
        >>> vector_table([1, 2], [[0.0, 1.0], [1.0, 0.0]], {"year": [1984, 1999]}).column_names
        ['id', 'vector', 'year']
    """
    ids, matrix = as_ids(ids), as_matrix(vectors)
    if len(ids) != len(matrix):
        raise DataError(f"{len(ids)} ids for {len(matrix)} vectors: give one id per vector")
    columns: dict[str, Any] = {"id": pa.array(ids), "vector": vector_column(matrix)}
    for name in () if attributes is None else getattr(attributes, "column_names", attributes):
        if name in ("id", "vector"):
            raise DataError(f"the attribute name {name!r} is reserved: rename the attribute")
        column = attributes[name]  # type: ignore[index]
        try:
            columns[name] = column if isinstance(column, pa.ChunkedArray) else pa.array(column)
        except (pa.ArrowException, ValueError) as error:
            raise DataError(f"attribute {name!r} has values of several types: {error}") from error
        if len(columns[name]) != len(ids):
            raise DataError(
                f"attribute {name!r} has {len(columns[name])} values for {len(ids)} ids"
            )
    return pa.table(columns)


def as_ids(ids: Any) -> np.ndarray:
    """Ids as int64 `(n,)`."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"ids must be integers (n,); given: {array.dtype} {array.shape}")
    if array.dtype == np.uint64 and (array >> np.uint64(63)).any():
        raise DataError(f"ids must be int64, below 2**63; given: {array.max()}")
    return array.astype(np.int64)


def as_matrix(vectors: Any) -> np.ndarray:
    """Vectors as float32 `(n, dim)`, C-contiguous; other numbers and layouts are converted."""
    try:
        array = np.asarray(vectors)
    except ValueError as error:
        raise DataError(f"vectors must be a matrix of numbers (n, dim): {error}") from error
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.shape[1]:
        hint = "; a single vector is vectors[None, :]" if array.ndim == 1 else ""
        raise DataError(
            f"vectors must be a matrix of numbers (n, dim); given: {array.dtype} "
            f"{array.shape}{hint}"
        )
    if array.dtype == np.float32:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):  # values too large for float32 are refused as infinite
        return np.ascontiguousarray(array, np.float32)


def check_vectors(matrix: np.ndarray, names: np.ndarray, kind: str, metric: Metric) -> None:
    """Refuse vectors without finite distances; the message names the first of them.

    Args:
        matrix: float32 `(n, dim)`.
        names: Name of each vector in messages `(n,)`.
        kind: Kind of the names, such as "id".
        metric: Metric of the index.
    """
    # Single passes without a large temporary; only a large sum is checked vector by vector.
    if metric == "cosine":
        fact = "vectors of zeros have no direction, and so no cosine"
        _refuse(
            np.logical_not(matrix.any(axis=1)), names, kind, fact, "Drop them, or use metric 'ip'"
        )
    square = np.vdot(matrix, matrix)
    if square <= _MAX_SQUARE or (metric == "cosine" and np.isfinite(square)):
        return
    fact = "vectors must be finite float32, without NaN and infinity"
    _refuse(~np.isfinite(matrix).all(axis=1), names, kind, fact, "Repair or drop them")
    if metric != "cosine":
        squares = np.einsum("nd,nd->n", matrix, matrix, dtype=np.float64)
        fact = f"vectors longer than {_MAX_SQUARE**0.5:.1e} have infinite distances in float32"
        _refuse(squares > _MAX_SQUARE, names, kind, fact, "Scale all vectors")


def _refuse(bad: np.ndarray, names: np.ndarray, kind: str, fact: str, remedy: str) -> None:
    if bad.any():
        shown = names[bad][:_MAX_SHOWN].tolist()
        raise DataError(f"{fact}: {int(bad.sum())}, such as {kind} {shown}. {remedy}")


def split_rows(table: pa.Table, metric: Metric) -> tuple[np.ndarray, np.ndarray, pa.Table]:
    """Validate a table and split it into ids, vectors and attributes.

    Returns:
        Ids int64 `(n,)`, vectors float32 `(n, dim)` C-contiguous (normalized for "cosine"), and
        the attribute columns.

    Raises:
        DataError: A column is missing or of another type, an id is duplicate or -1, or a vector
            is not finite, or is zero under "cosine".
    """
    if len(set(table.column_names)) < table.num_columns:
        raise DataError(f"duplicate column name in {table.column_names}: rename one")
    types = {field.name: field.type for field in table.schema}
    if unusable := [name for name in types if not name or "`" in name]:
        raise DataError(f"no filter can name the attributes {unusable}: rename them")
    if not pa.types.is_integer(types.get("id", pa.null())) or not _is_vector(types.get("vector")):
        raise DataError(
            f"an index requires columns `id` (int64) and `vector` (fixed-size list of float32, so "
            f"that all have the same length); given: {_type_list(table.schema)}. Create them with "
            "`raysys.index.vector_table`"
        )
    if table["id"].null_count or table["vector"].null_count:
        raise DataError("an id or a vector is missing (null): drop those rows")
    try:
        ids = table["id"].cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(f"ids must be int64: {error}") from error
    values = table["vector"].combine_chunks().flatten()
    if values.null_count:
        raise DataError("a vector has missing values (null): repair or drop those rows")
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(values.to_numpy(zero_copy_only=False), np.float32)
    vectors = flat.reshape(len(table), types["vector"].list_size)
    check_vectors(vectors, ids, "id", metric)
    check_ids(ids)
    if metric == "cosine":
        vectors = normalized(vectors)
    return ids, vectors, table.drop_columns(["id", "vector"])


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length one, float32 `(n, dim)`.

    Vectors of length zero or one are unchanged, so that a row that is restored or sent again
    stays the same.
    """
    # In float64: the square of a float32 may overflow or underflow.
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    unchanged = (lengths == 0) | (np.abs(lengths - 1) < _ROUNDING)
    divisors = np.where(unchanged, 1, lengths)[:, None]
    return np.divide(vectors, divisors, out=np.empty_like(vectors), casting="same_kind")


def _is_vector(kind: Any) -> bool:
    return pa.types.is_fixed_size_list(kind or pa.null()) and (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    )


def _type_list(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def check_ids(ids: np.ndarray) -> None:
    """Refuse duplicate ids, and -1; the message names the first of them."""
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise DataError(
            f"duplicate ids: {int((counts > 1).sum())}, such as "
            f"{unique[counts > 1][:_MAX_SHOWN].tolist()}. Keep one row per id"
        )
    if len(ids) and (ids == NO_ID).any():
        raise DataError(f"id {NO_ID} marks the absence of a neighbour: use another")


def check_attributes(attributes: pa.Table, schema: pa.Schema) -> pa.Table:
    """Attribute columns in the index's order and types."""
    missing = [name for name in schema.names if name not in attributes.column_names]
    unknown = [name for name in attributes.column_names if name not in schema.names]
    if missing or unknown:
        raise DataError(
            f"the index has attributes {schema.names or 'none'}; missing: {missing}, unknown: "
            f"{unknown}. An upsert replaces the full row: give every attribute (null for no value)"
        )
    try:
        return attributes.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"attributes do not fit {_type_list(schema)}: {error}") from error


def with_id(ids: np.ndarray, attributes: pa.Table) -> pa.Table:
    """Columns `id` and the attributes; a table without columns has no number of rows."""
    columns = {name: attributes[name] for name in attributes.column_names}
    return pa.table({"id": pa.array(ids), **columns})


def with_vector(table: pa.Table, vectors: np.ndarray) -> pa.Table:
    """The table with a column `vector` after `id`."""
    return table.add_column(1, "vector", vector_column(vectors))


def vector_column(vectors: np.ndarray) -> pa.Array:
    """Vectors `(n, dim)` as a column, not copied."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def vector_matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of vectors without nulls as `(n, dim)`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy().reshape(-1, column.type.list_size)


def shard_of(ids: np.ndarray, shards: int) -> np.ndarray:
    """Shard of each id, int64 `(n,)`; any pattern of ids spreads evenly."""
    mixed = splitmix64(np.asarray(ids, np.int64).view(np.uint64), increment=0)
    return (mixed % np.uint64(shards)).astype(np.int64)
