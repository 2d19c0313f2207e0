"""Tables as Modin frames and RayDMatrix, and back."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from raysys.data._blocks import value_task
from raysys.errors import DataError
from raysys.imports import lazy_import

if TYPE_CHECKING:
    from raysys.data._table import Table

pd = lazy_import("pandas")
modin_config = lazy_import("modin.config")
modin_partitioning = lazy_import("modin.distributed.dataframe.pandas")
xgboost_ray = lazy_import("xgboost_ray")


def to_modin(table: Table) -> Any:
    """A Modin frame whose row partitions are made from the blocks, in tasks."""
    use_ray_engine()
    names, task = table.schema.names, value_task("to_pandas")
    # With lengths from the blocks' metadata, Modin does not fetch row labels to the driver.
    return modin_partitioning.from_partitions(
        [task.remote(pa.Table.to_pandas, block) for block in table.blocks()],
        axis=0,
        index=pd.RangeIndex(len(table)),
        columns=pd.Index(names),
        row_lengths=[meta.rows for meta in table.metas()],
        column_widths=[len(names)],
    )


def modin_partitions(frame: Any) -> list[Any]:
    """References to the row partitions of a Modin frame, pandas frames."""
    return list(modin_partitioning.unwrap_partitions(frame, axis=0))


def to_dmatrix(table: Table, *, label: str, **options: Any) -> Any:
    """A RayDMatrix whose actor `i % num_actors` loads block `i`.

    A list of references would be loaded by the driver and dealt out row by row, which splits
    groups: hence whole blocks, which become pandas frames in the actors.
    """
    # "shape" is read only to check that no actor is left without a partition (it would load all).
    # One location for all partitions has them dealt out in turn, so alike in every run.
    blocks = table.blocks()
    layout = {
        "shape": (len(blocks), 1),
        "partition_tiling": (len(blocks), 1),
        "partitions": {(i, 0): {"data": b, "location": [""]} for i, b in enumerate(blocks)},
        "get": _get_pandas,
    }
    source = SimpleNamespace(__partitioned__=layout)
    return xgboost_ray.RayDMatrix(source, label=label, distributed=True, **options)


def _get_pandas(refs: Any) -> Any:
    blocks = ray.get(refs)
    return [b.to_pandas() for b in blocks] if isinstance(refs, list) else blocks.to_pandas()


def from_pandas(frame: Any) -> pa.Table:
    """A partition's rows as Arrow, without its labels."""
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"a column holds values of more than one type ({error}): convert it before the "
            "frame becomes a Table"
        ) from error


def kind_of(kind: pa.DataType) -> str:
    """A type's name without its memory layout, such as large or view strings."""
    if pa.types.is_dictionary(kind):
        return kind_of(kind.value_type)
    # Writers choose the names of list items freely.
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{kind_of(kind.value_type)}>"
    if pa.types.is_fixed_size_list(kind):
        return f"list<{kind_of(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{field.name}: {kind_of(field.type)}' for field in kind)}>"
    return str(kind).replace("large_", "").replace("string_view", "string")


@functools.cache
def use_ray_engine() -> None:
    """Point Modin at the connected cluster, once a process."""
    modin_config.Engine.put("ray")
    # Modin would cut a frame into a partition for each CPU that it detects.
    modin_config.NPartitions.put(max(2, int(ray.cluster_resources().get("CPU", 2)) // 2))
