"""Duplicate rows, over all blocks and without moving rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.data._blocks import results, scatter, table_task, value_task
from raysys.data._lazy_plan import frame_of
from raysys.data._polars import pl
from raysys.data._remaining_rows import RemainingRows
from raysys.data._table import Table
from raysys.data.readers._column_types import FILE, LINE, ROW, place_column
from raysys.data.validation._row_rules import (
    as_text,
    location,
    polars_column,
    to_arrow,
    with_examples,
)
from raysys.data.validation._schema import REASON

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
_ROWS_PER_TASK = 16_000_000  # hashes that one task compares: 8 bytes each
_PLACE, _KIND = "\1place", "\1kind"  # number of a row in the table; kind of its reason


def split_repeated(
    table: Table, keys: Sequence[Sequence[Any]], groups: Sequence[Sequence[str]],
    columns: Sequence[str],
) -> tuple[Table, Table]:  # fmt: skip
    """Split off rows that are equal to an earlier one in one of these groups of columns.

    Hashes of all rows are compared, each task a share of them; rows with equal hashes are compared
    by value, in one task. The groups count one after the other: a row that one removes is not an
    earlier row for the next. Rows with a missing value in a group are never duplicates by it.

    Args:
        table: Rows.
        keys: References to the `hashes_of` each block and its rows' origin, arrays by column.
        groups: Groups of columns.
        columns: Columns of the duplicates; those that the table lacks are left empty.

    Returns:
        Rows without duplicates, which are left out when blocks are read; and the duplicates as
        text with the reason, which may be a Table without blocks.
    """
    blocks, metas = table.blocks(), table.metas()
    twice, counts = repeated_hashes([hashes for hashes, _ in keys], len(table))
    if not any(counts):
        return table, Table((), ())
    firsts = np.cumsum([0, *(meta.rows for meta in metas)])
    gather = value_task("unique_values")
    values = [
        gather.remote(candidates, block, *key, groups, first, *twice)
        for block, key, first in zip(blocks, keys, firsts, strict=False)
    ]
    calls = [(groups, firsts, *values)]
    ((repeated, removed, of_block),) = scatter("unique_repeats", 3, repeats, calls)
    task, sources, bad = table_task("unique_rows"), list(blocks), []
    for n in np.flatnonzero(results([of_block])[0]):
        bad.append(task.remote(duplicates, blocks[n], firsts[n], repeated, columns))
        sources[n] = RemainingRows(blocks[n], removed, int(firsts[n]), metas[n].schema)
    repeats_table = Table.from_blocks(bad) if bad else Table((), ())
    unique = Table.from_plan(sources, table.schema, (), table.lineage)
    unique.lineage.rows = len(table) - len(repeats_table)
    return unique, repeats_table


def repeated_hashes(hashes: Sequence[Any], rows: int) -> tuple[list[Any], list[int]]:
    """Hashes that occur twice.

    Args:
        hashes: References to the hashes of each block, by group.
        rows: Number of rows of all blocks.

    Returns:
        References to the hashes by group, ascending, of each part of them; and their number by
        group.
    """
    parts = max(1, -(-rows // _ROWS_PER_TASK))
    pieces: Any = [hashes]
    if parts > 1:
        calls = [(of_block, parts) for of_block in hashes]
        pieces = zip(*scatter("unique_partition", parts, partition, calls), strict=True)
    compared = scatter("unique_compare", 2, shared, pieces)
    counts = np.sum(results([count for _, count in compared]), axis=0)
    return [twice for twice, _ in compared], counts.tolist()


def hashes_of(block: pa.Table, groups: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Hashes (uint64) by group, of the rows without a missing value in it.

    They are polars' hashes, equal in all processes with one release of it.
    """
    hashes = []
    for group in groups:
        values = frame_of(block.select(list(group))).hash_rows(seed=0).to_numpy()
        rows = _complete(block, group)
        hashes.append(values if rows is None else values[rows])
    return hashes


def _complete(block: pa.Table, group: Sequence[str]) -> np.ndarray | None:
    """Numbers of the rows without a missing value; None for all."""
    if not any(block[name].null_count for name in group):
        return None
    return np.flatnonzero(np.all([block[name].is_valid().to_numpy() for name in group], axis=0))


def partition(hashes: Sequence[np.ndarray], parts: int) -> list[list[np.ndarray]]:
    """The hashes of each group that belong to each part, by their remainder."""
    parts_of = [values % np.uint64(parts) for values in hashes]
    return [
        [values[part_of == part] for values, part_of in zip(hashes, parts_of, strict=True)]
        for part in range(parts)
    ]


def shared(*pieces: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """By group, the hashes that occur twice, ascending, and their number."""
    twice = []
    for group in zip(*pieces, strict=True):
        values = np.concatenate(group)
        values.sort()
        twice.append(np.unique(values[1:][values[1:] == values[:-1]]))
    return twice, [len(values) for values in twice]


def candidates(
    block: pa.Table,
    hashes: Sequence[np.ndarray],
    origin: Mapping[str, pa.Array],
    groups: Sequence[Sequence[str]],
    first: int,
    *twice: Sequence[np.ndarray],
) -> list[pa.Table]:
    """Columns of the rows whose hash occurs twice, with their place and origin, for each group."""
    values = []
    for group, of_group, *parts in zip(groups, hashes, *twice, strict=True):
        rows = np.flatnonzero(np.isin(of_group, np.concatenate(parts)))
        complete = _complete(block, group)
        rows = rows if complete is None else complete[rows]
        table = block.select(list(group)).take(rows)
        for name, values_of in origin.items():
            table = table.append_column(name, values_of.take(pa.array(rows)))
        values.append(table.append_column(_PLACE, pa.array(rows + first)))
    return values


def repeats(
    groups: Sequence[Sequence[str]], firsts: np.ndarray, *values: list[pa.Table]
) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Rows that repeat an earlier one by value.

    Returns:
        Their places, origins, reasons and kinds of reasons; their places, ascending; and their
        number in each block.
    """
    repeated: list[pl.DataFrame] = []
    for group, parts in zip(groups, zip(*values, strict=True), strict=True):
        rows = pa.concat_tables(parts, promote_options="permissive")
        frame = pl.DataFrame({name: polars_column(rows, name) for name in rows.column_names})
        frame = frame.cast({pl.Categorical: pl.String})  # `_file`
        for earlier_group in repeated:
            frame = frame.join(earlier_group, on=_PLACE, how="anti")
        origin = [name for name in (FILE, LINE, ROW) if name in frame.columns]
        frame = frame.sort(_PLACE).with_columns(
            pl.col(name).first().over(list(group)).alias("\1first " + name)
            for name in [*origin, _PLACE]
        )
        frame = frame.filter(pl.col(_PLACE) != pl.col("\1first " + _PLACE))
        kind = f"duplicate {', '.join(group)}"
        place = place_column(frame.columns)
        earlier = pl.format(f"{place[1:]} {{}}", pl.col("\1first " + place))
        if FILE in origin:
            earlier = pl.concat_str(pl.col("\1first " + FILE), pl.lit(", "), earlier)
        reason = pl.format("{} (first in {})", pl.lit(kind), earlier)
        reasons = reason.alias(REASON), pl.lit(kind).alias(_KIND)
        repeated.append(frame.select(_PLACE, *origin, *reasons))
    joined = pl.concat(repeated).sort(_PLACE)
    places = joined[_PLACE].to_numpy()
    of_block = np.searchsorted(firsts, places, "right") - 1
    return to_arrow(joined), places, np.bincount(of_block, minlength=len(firsts) - 1)


def duplicates(block: pa.Table, first: int, repeated: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The repeated rows of a block, with the columns of the quarantine."""
    in_block = pl.col(_PLACE).is_between(first, first + len(block), closed="left")
    of_block = pl.DataFrame(repeated).filter(in_block)
    numbers = of_block[_PLACE].to_numpy() - first
    bad = as_text(block.take(numbers))
    bad = bad.with_columns(of_block.drop(_PLACE, _KIND))
    bad = bad.select(
        pl.col(name) if name in bad.columns else pl.lit(None, pl.String).alias(name)
        for name in columns
    )
    examples = {}
    for (kind,), rows in of_block.group_by([_KIND], maintain_order=True):
        index = int(np.searchsorted(numbers, rows[_PLACE][0] - first))
        examples[str(kind)] = (len(rows), location(bad.row(index, named=True)))
    return with_examples(to_arrow(bad), examples)
