"""What an index is made of, takes and gives."""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from raysys.data import splitmix64
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


Metric = Literal["cosine", "ip", "l2"]
NO_ID = -1
_SHOWN = 5
_ROUNDING = 2e-7


class Settings(BaseModel, frozen=True, extra="forbid"):
    """How an index is built; kept beside its snapshots.

    Attributes:
        metric: Distance, smaller is nearer: "cosine" is 1 - cosine, "ip" 1 - inner product, "l2"
            the squared Euclidean one. With "cosine" vectors are kept at length one.
        dim: Length of the vectors.
        m: Links a node of the graph keeps.
        ef_construction: Candidates looked at for each insertion.
        ef: Candidates looked at by a query, in each shard; `tune` sets it.
        seed: Of the graph's random levels.
        shards: Parts that the rows are spread over.
        replicas: Actors that hold the same part.
        max_tombstones: Share of deleted and replaced rows at which a shard is rebuilt without them.
        keep_snapshots: How many are kept; older ones and their log are removed.
        snapshot_after_bytes: Of log since the last snapshot, after which one is taken.
    """

    metric: Metric = "cosine"
    dim: int = Field(ge=1)
    m: int = Field(16, ge=2, le=128)
    ef_construction: int = Field(200, ge=1)
    ef: int = Field(64, ge=1)
    seed: int = 0
    shards: int = Field(1, ge=1)
    replicas: int = Field(1, ge=1)
    max_tombstones: float = Field(0.25, gt=0, le=1)
    keep_snapshots: int = Field(2, ge=1)
    snapshot_after_bytes: int = Field(256 << 20, ge=1)


class Found(NamedTuple):
    """The answer to a batch of queries.

    Attributes:
        ids: int64 `(n, k)`, nearest first; -1 where fewer than k rows exist or match.
        distances: float32 `(n, k)`, see `Settings.metric`; infinite where the id is -1.
        missing_shards: Shards that did not answer; their rows are not among the ids.
    """

    ids: np.ndarray
    distances: np.ndarray
    missing_shards: tuple[int, ...] = ()


def rows(
    ids: Any, vectors: Any, attributes: Mapping[str, Any] | pa.Table | None = None
) -> pa.Table:
    """Rows of an index from arrays.

    Args:
        ids: Integers `(n,)`.
        vectors: Numbers `(n, dim)`; float32 and C-contiguous ones are not copied.
        attributes: Columns of n values, by name.

    Returns:
        Columns `id` (int64), `vector` (fixed-size list of float32) and the attributes.

    Raises:
        DataError: The shapes do not fit each other, or an id is not an integer.
    """
    ids, matrix = as_ids(ids), as_matrix(vectors)
    if len(ids) != len(matrix):
        raise DataError(f"{len(ids)} ids for {len(matrix)} vectors: give one id a vector")
    columns: dict[str, Any] = {
        "id": pa.array(ids),
        "vector": vector_column(matrix),
    }
    for name in [] if attributes is None else list(_names(attributes)):
        if name in ("id", "vector"):
            raise DataError(f"an attribute is named {name!r}, as a column of its own: rename it")
        column = attributes[name]  # type: ignore[index]
        try:
            columns[name] = column if isinstance(column, pa.ChunkedArray) else pa.array(column)
        except (pa.ArrowException, ValueError) as error:
            raise DataError(f"attribute {name!r} is no column of one type: {error}") from error
        if len(columns[name]) != len(ids):
            raise DataError(
                f"attribute {name!r} has {len(columns[name])} values for {len(ids)} ids"
            )
    return pa.table(columns)


def _names(attributes: Any) -> Sequence[str]:
    return attributes.column_names if hasattr(attributes, "column_names") else list(attributes)


def as_ids(ids: Any) -> np.ndarray:
    """Ids as int64 `(n,)`.

    Raises:
        DataError: They are not integers, or too large.
    """
    given = np.asarray(ids)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise DataError(f"ids are integers (n,); given: {given.dtype} {given.shape}")
    if given.dtype == np.uint64 and (given >> np.uint64(63)).any():
        raise DataError(f"ids are int64, below 2**63; given: {given.max()}")
    return given.astype(np.int64)


def as_matrix(vectors: Any) -> np.ndarray:
    """Vectors as float32 `(n, dim)`, C-contiguous; other numbers and layouts are converted.

    Raises:
        DataError: It is no matrix of numbers.
    """
    try:
        given = np.asarray(vectors)
    except ValueError as error:
        raise DataError(f"vectors are a matrix of numbers (n, dim): {error}") from error
    if given.ndim != 2 or given.dtype.kind not in "fiu" or not given.shape[1]:
        hint = "; one vector is vectors[None, :]" if given.ndim == 1 else ""
        raise DataError(
            f"vectors are a matrix of numbers (n, dim); given: {given.dtype} {given.shape}{hint}"
        )
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinite
        return np.ascontiguousarray(given, np.float32)


def check_queries(vectors: Any, settings: Settings) -> np.ndarray:
    """Query vectors as float32 `(n, dim)`, C-contiguous.

    Raises:
        DataError: No matrix, another length of vectors, or values that are not finite.
    """
    matrix = as_matrix(vectors)
    if matrix.shape[1] != settings.dim:
        raise DataError(
            f"the index holds vectors of {settings.dim} numbers; given: {matrix.shape[1]}"
        )
    # One pass without a temporary; a sum that overflows is looked at again.
    if not np.isfinite(np.vdot(matrix, matrix)):
        _check_finite(matrix, np.arange(len(matrix)), "query")
    return matrix


def check_question(
    matrix: np.ndarray, k: int, ef: int | None, filters: str | Sequence[str | None] | None
) -> Sequence[str | None] | None:
    """A filter for each vector, or None for none at all.

    Raises:
        DataError: The arguments of a query do not fit each other.
    """
    if not isinstance(k, (int, np.integer)) or k < 1 or (ef is not None and ef < 1):
        raise DataError(f"k and ef are positive integers; given: k={k!r}, ef={ef!r}")
    if filters is None:
        return None
    if isinstance(filters, str):
        return [filters] * len(matrix)
    if len(filters) != len(matrix):
        raise DataError(f"{len(filters)} filters for {len(matrix)} vectors: give one a vector")
    if wrong := [one for one in filters if not isinstance(one, (str, NoneType))]:
        raise DataError(f"a filter is a string, or None for all rows; given: {wrong[0]!r}")
    return list(filters)


def _check_finite(matrix: np.ndarray, names: np.ndarray, what: str) -> None:
    bad = ~np.isfinite(matrix).all(axis=1)
    if bad.any():
        raise DataError(
            f"vectors hold finite float32 numbers; NaN or infinity in {bad.sum()}, such as those "
            f"of {what} {names[bad][:_SHOWN].tolist()}. Repair them or leave them out"
        )


def split_rows(table: pa.Table, metric: Metric) -> tuple[np.ndarray, np.ndarray, pa.Table]:
    """Check rows and take them apart.

    Args:
        table: Columns `id` and `vector`, and attributes.
        metric: Of the index.

    Returns:
        Ids int64 `(n,)`, vectors float32 `(n, dim)` C-contiguous (of length one for "cosine"),
        and the attribute columns.

    Raises:
        DataError: A column is missing or of another type, an id stands twice or is -1, or a
            vector is not finite, or is zero under "cosine".
    """
    given = {field.name: field.type for field in table.schema}
    if len(given) < table.num_columns:
        raise DataError(f"a column's name stands twice: {table.column_names}. Rename one")
    if not pa.types.is_integer(given.get("id", pa.null())):
        raise DataError(
            f"an index takes columns `id` (int64) and `vector` (fixed-size list of float32); "
            f"given: {_shown(given)}. `raysys.index.rows` makes them of arrays"
        )
    if table["id"].null_count or _has_nulls(table["vector"] if "vector" in given else None):
        raise DataError("an id or a vector is missing (null): leave those rows out")
    try:
        ids = table["id"].cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(f"ids are int64: {error}") from error
    vectors = _vectors(table, given)
    if len(vectors) and not np.isfinite(np.vdot(vectors, vectors)):
        _check_finite(vectors, ids, "id")
    check_ids(ids)
    if metric == "cosine" and len(vectors):
        vectors, lengths = unit(vectors)
        if not lengths.all():
            raise DataError(
                f"a vector of zeros has no direction, and so no cosine: id "
                f"{ids[lengths == 0][:_SHOWN].tolist()}. Leave it out, or use metric 'ip'"
            )
    return ids, vectors, table.drop_columns(["id", "vector"])


def unit(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of length one, float32 `(n, dim)`, and what their lengths were.

    Zeros stay, and so do vectors of length one: a row that is restored or sent again is the same.
    """
    # In doubles: the square of a float32 may be too large or too small for one.
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    stay = (lengths == 0) | (np.abs(lengths - 1) < _ROUNDING)
    divisors = np.where(stay, 1, lengths)[:, None]
    return np.divide(vectors, divisors, out=np.empty_like(vectors), casting="same_kind"), lengths


def _vectors(table: pa.Table, given: Mapping[str, Any]) -> np.ndarray:
    kind = given.get("vector", pa.null())
    if not pa.types.is_fixed_size_list(kind) or not (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    ):
        raise DataError(
            f"an index takes columns `id` (int64) and `vector` (fixed-size list of float32); "
            f"given: {_shown(given)}. Cast them: every vector has the same length"
        )
    column = table["vector"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no chunk at all
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], kind)
    values = column.flatten()
    if values.null_count:
        raise DataError("a vector holds missing values (null): repair those rows or leave them out")
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(values.to_numpy(zero_copy_only=False), np.float32)
    return flat.reshape(len(column), kind.list_size)


def _has_nulls(column: pa.ChunkedArray | None) -> bool:
    return column is not None and column.null_count > 0


def _shown(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in given.items())


def check_ids(ids: np.ndarray) -> None:
    """Refuse ids that stand twice, and -1.

    Raises:
        DataError: The first of them are named.
    """
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise DataError(
            f"an id stands once in a batch; {int((counts > 1).sum())} stand more often, such as "
            f"{unique[counts > 1][:_SHOWN].tolist()}. Keep the row that counts"
        )
    if len(ids) and (ids == NO_ID).any():
        raise DataError(f"id {NO_ID} marks the absence of a neighbour: use another")


def check_attributes(attributes: pa.Table, schema: pa.Schema) -> pa.Table:
    """Attribute columns in the index's order and types.

    Raises:
        DataError: Columns are missing or unknown, or a value does not fit its type.
    """
    missing = [name for name in schema.names if name not in attributes.column_names]
    unknown = [name for name in attributes.column_names if name not in schema.names]
    if missing or unknown:
        raise DataError(
            f"the index's attributes are {schema.names or 'none'}; missing: {missing}, unknown: "
            f"{unknown}. A row is replaced as a whole: give every attribute (null for no value)"
        )
    try:
        return attributes.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        types = _shown({field.name: field.type for field in schema})
        raise DataError(f"attributes do not fit {types}: {error}") from error


def with_id(ids: np.ndarray, attributes: pa.Table) -> pa.Table:
    """Columns `id` and the attributes; a table without columns knows no number of rows."""
    columns = {name: attributes[name] for name in attributes.column_names}
    return pa.table({"id": pa.array(ids), **columns})


def shard_of(ids: np.ndarray, shards: int) -> np.ndarray:
    """Shard of each id, int64 `(n,)`; any pattern of ids spreads evenly."""
    mixed = splitmix64(np.asarray(ids, np.int64).view(np.uint64), increment=0)
    return (mixed % np.uint64(shards)).astype(np.int64)


def vector_column(vectors: np.ndarray) -> pa.Array:
    """Vectors `(n, dim)` as a column, not copied."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def padding(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and distances `(rows, k)` where nothing was found."""
    return np.full((rows, k), NO_ID), np.full((rows, k), np.inf, np.float32)


def merge(parts: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of what several searches found, ids and distances `(n, k)`."""
    if len(parts) == 1:
        return parts[0]
    ids = np.concatenate([part[0] for part in parts], axis=1)
    distances = np.concatenate([part[1] for part in parts], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)
