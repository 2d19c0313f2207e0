"""Duplicate rows, over all blocks and without moving rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.data._blocks import BlockMeta, results, scatter, table_task, value_task
from raysys.data._polars import pl
from raysys.data._row_hash import hash_rows
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
    from collections.abc import Sequence
_ROWS_PER_TASK = 16_000_000  # hashes that one task compares: 16 bytes each
_PLACE, _KIND = "\1place", "\1kind"  # number of a row in the table; kind of its reason


def split_repeated(
    table: Table, groups: Sequence[Sequence[str]], columns: Sequence[str]
) -> tuple[Table, Table]:
    """Split off rows that are equal to an earlier one in one of these groups of columns.

    Tasks hash the columns of each block and compare the hashes of all, each task a share of them;
    rows with equal hashes are compared by value, in one task. Only blocks with such rows are read
    again, and only those with duplicates are written again. The groups count one after the other:
    a row that one removes is not an earlier row for the next. Rows with a missing value in a
    group are never duplicates by it.

    Returns:
        Rows without duplicates; and the duplicates as text with the reason, which may be a Table
        without blocks, with these columns: those that the table lacks are left empty.
    """
    blocks, metas = list(table.blocks()), list(table.metas())
    firsts, suspects, is_suspect = find_suspects(table, groups)
    gather = value_task("unique_values")
    values = [
        gather.remote(candidates, blocks[n], groups, firsts[n], *suspects)
        for n in np.flatnonzero(is_suspect)
    ]
    ((repeated, numbers),) = scatter("unique_repeats", 2, repeats, [(groups, firsts, *values)])
    task, bad = table_task("unique_split", tables=2), []
    for n in results([numbers])[0]:
        blocks[n], metas[n], *pair = task.remote(without, blocks[n], firsts[n], repeated, columns)
        bad.append(pair)
    duplicates = Table.from_blocks(bad) if bad else Table((), ())
    metas = [m if isinstance(m, BlockMeta) else results([m])[0] for m in metas]
    return Table(blocks, metas, table.lineage), duplicates


def find_suspects(
    table: Table, groups: Sequence[Sequence[str]]
) -> tuple[np.ndarray, list[Any], np.ndarray]:
    """Rows whose hash of a group's columns occurs in another row too.

    Returns:
        The number of each block's first row, and of all rows; references to results of `shared`,
        for each part of the hashes; and a mask of the blocks with such rows.
    """
    firsts = np.cumsum([0, *(meta.rows for meta in table.metas())])
    parts = max(1, -(-len(table) // _ROWS_PER_TASK))
    calls = [(b, groups, n, parts) for b, n in zip(table.blocks(), firsts, strict=False)]
    pieces = zip(*scatter("unique_hash", parts, hashes, calls), strict=True)
    compared = scatter("unique_compare", 2, shared, [(firsts, *of_part) for of_part in pieces])
    is_suspect = np.any(results([mask for _, mask in compared]), axis=0)
    return firsts, [places for places, _ in compared], is_suspect


def hashes(block: pa.Table, groups: Sequence[Sequence[str]], first: int, parts: int) -> Any:
    """Hashes of each group's columns and the places of their rows, partitioned by hash.

    Returns:
        For each part a list with, for each group, hashes (uint64) and places (int64).
    """
    partitions: list[Any] = [[] for _ in range(parts)]
    for group in groups:
        complete = np.all([block[name].is_valid().to_numpy() for name in group], axis=0)
        values = hash_rows(block, group)[complete]
        places = first + np.flatnonzero(complete)
        part_of = values % np.uint64(parts)
        for part in range(parts):
            mask = part_of == part if parts > 1 else slice(None)
            partitions[part].append((values[mask], places[mask]))
    return partitions


def shared(firsts: np.ndarray, *pieces: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """Places whose hash occurs at another place too.

    Returns:
        For each group the places, ascending; and a mask of the blocks that have any.
    """
    suspects, is_suspect = [], np.zeros(len(firsts) - 1, bool)
    for group in zip(*pieces, strict=True):
        values = np.concatenate([values for values, _ in group])
        places = np.concatenate([places for _, places in group])
        ordered = np.sort(values)
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        repeated = np.sort(places[np.isin(values, twice)]) if len(twice) else places[:0]
        is_suspect[_block_of(repeated, firsts)] = True
        suspects.append(repeated)
    return suspects, is_suspect


def candidates(
    block: pa.Table, groups: Sequence[Sequence[str]], first: int, *suspects: list[np.ndarray]
) -> list[pa.Table]:
    """Columns of the suspect rows in a block, with their place and origin, for each group."""
    values = []
    for number, group in enumerate(groups):
        places = np.sort(np.concatenate([places[number] for places in suspects]))
        low, high = np.searchsorted(places, [first, first + len(block)])
        origin = [name for name in (FILE, LINE, ROW) if name in block.column_names]
        rows = block.select(list(dict.fromkeys([*group, *origin]))).take(places[low:high] - first)
        values.append(rows.append_column(_PLACE, pa.array(places[low:high])))
    return values


def repeats(
    groups: Sequence[Sequence[str]], firsts: np.ndarray, *values: list[pa.Table]
) -> tuple[pa.Table, np.ndarray]:
    """Rows that repeat an earlier one by value.

    Returns:
        Their places, reasons and kinds of reasons; and the numbers of the blocks that have any.
    """
    repeated: list[pl.DataFrame] = []
    for group, parts in zip(groups, zip(*values, strict=True), strict=False):
        rows = pa.concat_tables(parts, promote_options="permissive")
        frame = pl.DataFrame({name: polars_column(rows, name) for name in rows.column_names})
        for earlier_group in repeated:
            frame = frame.join(earlier_group, on=_PLACE, how="anti")
        frame = frame.sort(_PLACE).with_columns(
            pl.col(name).first().over(list(group)).alias("\1first " + name)
            for name in (FILE, LINE, ROW, _PLACE)
            if name in frame.columns
        )
        frame = frame.filter(pl.col(_PLACE) != pl.col("\1first " + _PLACE))
        kind = f"duplicate {', '.join(group)}"
        place = place_column(frame.columns)
        earlier = pl.format(f"{place[1:]} {{}}", pl.col("\1first " + place))
        if FILE in frame.columns:
            file = pl.col("\1first " + FILE).cast(pl.String)
            earlier = pl.concat_str(file, pl.lit(", "), earlier)
        reason = pl.format("{} (first in {})", pl.lit(kind), earlier)
        repeated.append(frame.select(_PLACE, reason.alias(REASON), pl.lit(kind).alias(_KIND)))
    if not repeated:
        return pa.table({}), np.zeros(0, np.int64)
    joined = pl.concat(repeated)
    return to_arrow(joined), np.unique(_block_of(joined[_PLACE].to_numpy(), firsts))


def without(
    block: pa.Table, first: int, repeated: pa.Table, columns: Sequence[str]
) -> tuple[pa.Table, pa.Table]:
    """A block without repeated rows; and those, with the columns of the quarantine."""
    in_block = pl.col(_PLACE).is_between(first, first + len(block), closed="left")
    duplicates = pl.DataFrame(repeated).filter(in_block).sort(_PLACE)
    numbers = duplicates[_PLACE].to_numpy() - first
    keep = np.ones(len(block), bool)
    keep[numbers] = False
    bad = as_text(block.take(numbers)).with_columns(duplicates[REASON])
    bad = bad.select(
        pl.col(name) if name in bad.columns else pl.lit(None, pl.String).alias(name)
        for name in columns
    )
    examples = {}
    for (kind,), rows in duplicates.group_by([_KIND], maintain_order=True):
        index = int(np.searchsorted(numbers, rows[_PLACE][0] - first))
        examples[str(kind)] = (len(rows), location(bad.row(index, named=True)))
    return block.filter(pa.array(keep)), with_examples(to_arrow(bad), examples)


def _block_of(places: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    return np.searchsorted(firsts, places, "right") - 1
