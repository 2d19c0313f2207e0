"""Rows that repeat an earlier one, found over all blocks without moving rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import ray

from raysys.data._blocks import BlockMeta, results, table_task, value_task
from raysys.data._row_hash import hash_rows
from raysys.data._table import Table
from raysys.data.readers._column_types import FILE, ROW
from raysys.data.validation._row_rules import as_text, polars_column, to_arrow, where, with_examples
from raysys.data.validation._schema import REASON

if TYPE_CHECKING:
    from collections.abc import Sequence


_ROWS_A_TASK = 16_000_000  # whose hashes one task compares: 16 bytes each
_PLACE, _KIND = "\1place", "\1kind"  # a row's number in the table; its reason without the place


def split_repeated(
    table: Table, groups: Sequence[Sequence[str]], columns: Sequence[str]
) -> tuple[Table, Table]:
    """Split off rows that are equal to an earlier one in one of these groups of columns.

    Tasks hash the columns of each block and compare the hashes of all, each task its share of
    them; of rows that share a hash the values themselves are compared, in one task. Only blocks
    with such rows are looked at again, and only those with repeated rows are made anew. The
    groups count one after the other: a row that is turned away by one is no earlier row for the
    next. Rows with a missing value in a group repeat none by it.

    Args:
        table: Rows, with `_row` and, if they are of files, `_file`.
        groups: Names of columns.
        columns: The quarantine's, in their order; those that the table lacks are left empty.

    Returns:
        Rows that repeat none; and the others as text with the reason, which may have no block.
    """
    blocks, metas = list(table.blocks()), list(table.metas())
    firsts, suspects, there = find_suspects(table, groups)
    taken = value_task("unique_values")
    values = [
        taken.remote(candidates, blocks[n], groups, firsts[n], *suspects)
        for n in np.flatnonzero(there)
    ]
    counted = ray.remote(repeats).options(name="unique_repeats", num_returns=2)
    repeated, there = counted.remote(groups, firsts, *values)
    task, bad = table_task("unique_split", tables=2), []
    for n in results([there])[0]:
        good, good_meta, *pair = task.remote(without, blocks[n], firsts[n], repeated, columns)
        blocks[n], metas[n] = good, good_meta
        bad.append(pair)
    changed = Table.from_blocks(bad) if bad else Table((), ())
    metas = [m if isinstance(m, BlockMeta) else results([m])[0] for m in metas]
    return Table(blocks, metas, table.lineage), changed


def find_suspects(
    table: Table, groups: Sequence[Sequence[str]]
) -> tuple[np.ndarray, list[Any], np.ndarray]:
    """Rows whose hash of a group's columns stands in another row too.

    Returns:
        The number of each block's first row, and of all rows; references to what `shared` finds,
        for each part of the hashes; and which blocks have such rows.
    """
    firsts = np.cumsum([0, *(meta.rows for meta in table.metas())])
    parts = max(1, -(-len(table) // _ROWS_A_TASK))
    hashed = ray.remote(hashes).options(name="unique_hash", num_returns=parts)
    made = [
        hashed.remote(b, groups, n, parts) for b, n in zip(table.blocks(), firsts, strict=False)
    ]
    pieces = [[part] for part in made] if parts == 1 else made
    compared = ray.remote(shared).options(name="unique_compare", num_returns=2)
    found = [compared.remote(firsts, *[piece[n] for piece in pieces]) for n in range(parts)]
    there = np.any(results([there for _, there in found]), axis=0)
    return firsts, [places for places, _ in found], there


def hashes(block: pa.Table, groups: Sequence[Sequence[str]], first: int, parts: int) -> Any:
    """Hashes of each group's columns and the places of their rows, dealt out by hash.

    Returns:
        For each part a list with, for each group, hashes (uint64) and places (int64).
    """
    dealt: list[Any] = [[] for _ in range(parts)]
    for group in groups:
        there = _complete(block, group)
        found = hash_rows(block, group)[there]
        places = first + np.flatnonzero(there)
        part_of = found % np.uint64(parts)
        for part in range(parts):
            mine = part_of == part if parts > 1 else slice(None)
            dealt[part].append((found[mine], places[mine]))
    return dealt[0] if parts == 1 else dealt


def shared(firsts: np.ndarray, *pieces: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """Places whose hash stands at another place too.

    Returns:
        For each group the places, ascending; and which blocks have any.
    """
    found, there = [], np.zeros(len(firsts) - 1, bool)
    for group in zip(*pieces, strict=True):
        values = np.concatenate([values for values, _ in group])
        places = np.concatenate([places for _, places in group])
        ordered = np.sort(values)
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        mine = np.sort(places[np.isin(values, twice)]) if len(twice) else places[:0]
        there[_block_of(mine, firsts)] = True
        found.append(mine)
    return found, there


def candidates(
    block: pa.Table, groups: Sequence[Sequence[str]], first: int, *suspects: list[np.ndarray]
) -> list[pa.Table]:
    """For each group its columns of the suspect rows in this block, their place and origin."""
    taken = []
    for number, group in enumerate(groups):
        places = np.sort(np.concatenate([places[number] for places in suspects]))
        low, high = np.searchsorted(places, [first, first + len(block)])
        origin = [name for name in (FILE, ROW) if name in block.column_names]
        rows = block.select(list(dict.fromkeys([*group, *origin]))).take(places[low:high] - first)
        taken.append(rows.append_column(_PLACE, pa.array(places[low:high])))
    return taken


def repeats(
    groups: Sequence[Sequence[str]], firsts: np.ndarray, *values: list[pa.Table]
) -> tuple[pa.Table, np.ndarray]:
    """Rows that repeat an earlier one, by comparing the values.

    Returns:
        Their places, with the reason and its kind; and the numbers of the blocks that have any.
    """
    found: list[pl.DataFrame] = []
    for group, parts in zip(groups, zip(*values, strict=True), strict=False):
        rows = pa.concat_tables(parts, promote_options="permissive")
        frame = pl.DataFrame({name: polars_column(rows, name) for name in rows.column_names})
        for earlier_group in found:
            frame = frame.join(earlier_group, on=_PLACE, how="anti")
        frame = frame.sort(_PLACE).with_columns(
            pl.col(name).first().over(list(group)).alias("\1first " + name)
            for name in (FILE, ROW, _PLACE)
            if name in frame.columns
        )
        frame = frame.filter(pl.col(_PLACE) != pl.col("\1first " + _PLACE))
        kind = f"{', '.join(group)}: stands in an earlier row"
        earlier = pl.format("row {}", pl.col("\1first " + ROW))
        if FILE in frame.columns:
            file = pl.col("\1first " + FILE).cast(pl.String)
            earlier = pl.concat_str(file, pl.lit(", "), earlier)
        reason = pl.format("{} ({})", pl.lit(kind), earlier)
        found.append(frame.select(_PLACE, reason.alias(REASON), pl.lit(kind).alias(_KIND)))
    if not found:
        return pa.table({}), np.zeros(0, np.int64)
    joined = pl.concat(found)
    return to_arrow(joined), np.unique(_block_of(joined[_PLACE].to_numpy(), firsts))


def without(
    block: pa.Table, first: int, repeated: pa.Table, columns: Sequence[str]
) -> tuple[pa.Table, pa.Table]:
    """A block's other rows; and those that repeat an earlier one, as the quarantine has them."""
    mine = pl.DataFrame(repeated).filter(
        pl.col(_PLACE).is_between(first, first + len(block), closed="left")
    )
    mine = mine.sort(_PLACE)
    numbers = mine[_PLACE].to_numpy() - first
    keep = np.ones(len(block), bool)
    keep[numbers] = False
    bad = as_text(block.take(numbers)).with_columns(mine[REASON])
    bad = bad.select(
        pl.col(name) if name in bad.columns else pl.lit(None, pl.String).alias(name)
        for name in columns
    )
    examples = {}
    for (kind,), rows in mine.group_by([_KIND], maintain_order=True):
        at = int(np.searchsorted(numbers, rows[_PLACE][0] - first))
        examples[str(kind)] = (len(rows), where(bad.row(at, named=True)))
    return block.filter(pa.array(keep)), with_examples(to_arrow(bad), examples)


def _complete(block: pa.Table, group: Sequence[str]) -> np.ndarray:
    """Rows with a value in each of these columns."""
    there = np.ones(len(block), bool)
    for name in group:
        if block[name].null_count:
            there &= block[name].is_valid().to_numpy()
    return there


def _block_of(places: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    return np.searchsorted(firsts, places, "right") - 1
