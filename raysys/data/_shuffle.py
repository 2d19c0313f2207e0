"""Moving rows between blocks: by hash for joins and groups, by range for sorting."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.data._blocks import scatter, table_task, value_task
from raysys.data._lazy_plan import collect, evaluate, lazy
from raysys.data._polars import pl
from raysys.data._row_hash import hash_rows
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.data._lazy_plan import LazyOperation

_SAMPLES_A_BLOCK = 256
_FLAG, _PART = "\x1fflag", "\x1fpart"


def by_hash(
    sources: Sequence[Any], operations: Sequence[Any], columns: Sequence[str], parts: int, name: str
) -> list[list[Any]]:
    """Refs of pieces, [block][part]: rows with equal values of the columns share a part."""
    calls = [(source, operations, list(columns), parts) for source in sources]
    return scatter(name, parts, _split_by_hash, calls)


def evenly(blocks: Sequence[Any], rows: Sequence[int], parts: int) -> list[Any]:
    """(block, meta) refs of parts of about equal numbers of rows, in the same order."""
    task, ends = table_task("repartition"), [0, *itertools.accumulate(rows)]
    pairs = []
    for number in range(parts):
        first, last = ends[-1] * number // parts, ends[-1] * (number + 1) // parts
        within = [
            (block, max(first, start) - start, min(last, end) - start)
            for block, (start, end) in zip(blocks, itertools.pairwise(ends), strict=True)
            if start < last and end > first
        ] or [(blocks[0], 0, 0)]
        ranges = [(start, end) for _, start, end in within]
        pairs.append(task.remote(_slices, ranges, *[block for block, _, _ in within]))
    return pairs


def _slices(ranges: Sequence[tuple[int, int]], *blocks: pa.Table) -> pa.Table:
    return concat(*[b.slice(a, z - a) for b, (a, z) in zip(blocks, ranges, strict=True)])


def merge(pieces: Sequence[Sequence[Any]], *operations: LazyOperation, name: str = "") -> list[Any]:
    """(block, meta) refs of each part: its pieces in the order of their blocks, and operations."""
    task = table_task(name or operations[-1].name)
    return [task.remote(_merge, operations, *of_part) for of_part in zip(*pieces, strict=True)]


def concat(*pieces: pa.Table) -> pa.Table:
    """Pieces after one another; numbers of several widths become the widest."""
    return pa.concat_tables(pieces, promote_options="permissive")


def common_schema(schemas: Sequence[pa.Schema], what: str) -> pa.Schema:
    """The schema of rows that lie under one another; numbers become the widest type.

    Raises:
        DataError: A column's types have nothing in common.
    """
    common = schemas[0]
    for number, schema in enumerate(schemas):
        try:
            common = pa.unify_schemas([common, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(
                f"{what} {number} does not fit those before it: {error}. Cast with with_columns"
            ) from None
    return common


def _merge(operations: Sequence[LazyOperation], *pieces: pa.Table) -> pa.Table:
    return evaluate(concat(*pieces), operations)


def _split_by_hash(source: Any, operations: Sequence[Any], columns: list[str], parts: int) -> Any:
    block = evaluate(source, operations)
    if parts == 1:
        return [block]
    place = hash_rows(block, columns) % np.uint64(parts)
    order = np.argsort(place, kind="stable")
    ends = np.searchsorted(place[order], np.arange(parts + 1, dtype=np.uint64))
    # Copies, one after the other: a slice would carry the whole block with it.
    return [block.take(order[a:b]) for a, b in itertools.pairwise(ends)]


def by_range(
    blocks: Sequence[Any], by: Sequence[str], how: dict[str, Any], parts: int
) -> list[list[Any]]:
    """Refs of sorted pieces, [block][part]: each part's rows come before those of the next."""
    sample, bounds = value_task("sort").remote, value_task("sort")
    keys = [sample(_sample_keys, block, by, how) for block in blocks]
    cuts = bounds.remote(_bounds, by, how, parts, *keys)
    calls = [(block, cuts, by, how, parts) for block in blocks]
    return scatter("sort", parts, _split_by_range, calls)


def sort_rows(frame: pl.LazyFrame, by: Sequence[str], how: dict[str, Any]) -> pl.LazyFrame:
    """Sorted; rows with equal keys keep their order."""
    return frame.sort(by, **how, maintain_order=True)


def _sample_keys(block: pa.Table, by: Sequence[str], how: dict[str, Any]) -> pa.Table:
    keys = collect(sort_rows(lazy(block.select(list(by))), by, how), "sort")
    step = max(1, len(keys) // _SAMPLES_A_BLOCK)
    return keys.take(np.arange(step // 2, len(keys), step))


def _bounds(by: Sequence[str], how: dict[str, Any], parts: int, *keys: pa.Table) -> pa.Table:
    """First keys of all parts but the first, from evenly spaced samples of the blocks."""
    sample = collect(sort_rows(lazy(concat(*keys)), by, how), "sort")
    places = [len(sample) * part // parts for part in range(1, parts)] if len(sample) else []
    return sample.take(pa.array(places, pa.int64()))


def _split_by_range(
    block: pa.Table, cuts: pa.Table, by: list[str], how: dict[str, Any], parts: int
) -> Any:
    if parts == 1:
        return [block]
    rows = lazy(block).with_columns(pl.lit(1, pl.Int8).alias(_FLAG))
    marks = lazy(cuts).with_columns(pl.lit(0, pl.Int8).alias(_FLAG))
    # A row belongs to the part that the last bound before it opens: sort both together, bounds
    # first among equals, and count bounds. This holds for any type, nulls, and directions.
    both: pl.LazyFrame = pl.concat([marks, rows], how="diagonal_relaxed")
    flags: dict[str, Any] = {key: [*value, False] for key, value in how.items()}
    both = both.sort([*by, _FLAG], **flags, maintain_order=True)
    counted = both.with_columns((1 - pl.col(_FLAG)).cum_sum().cast(pl.Int64).alias(_PART))
    placed = counted.filter(pl.col(_FLAG) == 1).collect()
    number = placed[_PART].to_numpy()
    table = placed.select(block.column_names).to_arrow().cast(_as_polars(block))
    ends = [int(n) for n in number.searchsorted(range(parts + 1))]
    return [table.slice(a, b - a).combine_chunks() for a, b in itertools.pairwise(ends)]


def _as_polars(block: pa.Table) -> pa.Schema:
    return lazy(block.schema.empty_table()).collect().to_arrow().schema
