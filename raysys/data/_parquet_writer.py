"""Writing a block as Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.data._lazy_plan import frame_of
from raysys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raysys.storage import Storage

_MAX_FOLDERS = 10_000


def write_part(block: pa.Table, folder: Storage, number: int, partition_by: Sequence[str]) -> int:
    """Write a block as files of a folder; returns the number of its rows."""
    name = f"part-{number:05d}.parquet"
    block = readable(block)
    if not partition_by:
        with folder.new_file(name) as local:
            pq.write_table(block, local)
        return len(block)
    for values, rows in _by_value(block, partition_by):
        below = "/".join(
            f"{key}={quote(str(value), safe=' ')}"
            for key, value in zip(partition_by, values, strict=True)
        )
        with folder.new_file(f"{below}/{name}") as local:
            pq.write_table(rows, local)
    return len(block)


def readable(block: pa.Table) -> pa.Table:
    """Fixed-size lists with missing values as large lists: Arrow cannot read them otherwise."""
    for number, field in enumerate(block.schema):
        if pa.types.is_fixed_size_list(field.type) and block[field.name].null_count:
            kind = pa.large_list(field.type.value_type)
            block = block.set_column(number, field.name, block[field.name].cast(kind))
    return block


def _by_value(block: pa.Table, columns: Sequence[str]) -> list[tuple[tuple[object, ...], pa.Table]]:
    frame = frame_of(block)
    if any(frame[name].null_count() for name in columns):
        raise DataError(
            f"write_parquet: {list(columns)} contain missing values, which cannot name a "
            "folder: fill them first"
        )
    groups = frame.partition_by(list(columns), maintain_order=True, as_dict=True, include_key=False)
    if len(groups) > _MAX_FOLDERS:
        raise DataError(
            f"write_parquet: {list(columns)} have {len(groups)} values in one block: partition by "
            "columns of few values"
        )
    return [(values, rows.to_arrow()) for values, rows in groups.items()]
